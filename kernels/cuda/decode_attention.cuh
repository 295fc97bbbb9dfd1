/* kernels/cuda/decode_attention.cuh - one query a sequence over the cached keys.
 *
 * A block takes a head of a sequence, or a part of its keys; its 16 warps share the keys, and the
 * lanes of a warp cut a key into 16 bytes each. Online softmax in base 2 with a maximum a group of
 * lanes; the parts meet in shared memory, the parts of a head in what stages the next product.
 * k and v of the new token come from the product, rounded to bf16 as the cache holds them. */
#ifndef QB_KERNELS_CUDA_DECODE_ATTENTION_CUH
#define QB_KERNELS_CUDA_DECODE_ATTENTION_CUH

#include "kernels/cuda/decode_parts.cuh"

namespace qb_decode
{

struct unit { /* keys [first, end) of a head of a sequence */
    int sequence, head, split, first, end;
};

struct partial { /* of the lanes that share a key */
    float most, sum, acc[8];
};

__device__ __forceinline__ unit unit_of(const qb__decode_params &p, int index, int n_keys)
{
    unit u;
    const int each = divide(n_keys + (int)p.n_splits - 1, p.by_splits);
    const int row = divide(index, p.by_splits);
    u.split = index - row * (int)p.n_splits;
    u.sequence = divide(row, p.by_heads);
    u.head = row - u.sequence * (int)p.n_heads;
    u.first = min(u.split * each, n_keys);
    u.end = min(u.first + each, n_keys);
    return u;
}

__device__ __forceinline__ size_t cache_at(const qb__decode_params &p, const unit &u, int key)
{
    const int group = divide(u.head, p.by_repeat);
    return (((size_t)u.sequence * p.context + key) * p.n_kv_heads + group) * p.head_dim;
}

/* Element d of the head that starts at `column` of the product's row, requantised and rotated. */
__device__ __forceinline__ float load_element(const qb__decode_params &p, const requantizer &finish,
                                              const float *row, int column, int d, int position,
                                              bool rotate)
{
    const int half = (int)p.head_dim / 2;
    const float x = finish.one(__ldcg(row + column + d), column + d);
    if (!rotate) return x;
    const int angle = d < half ? d : d - half, other = d < half ? d + half : d - half;
    const float cosine = p.cosine[(size_t)position * half + angle];
    const float sine = p.sine[(size_t)position * half + angle];
    const float pair = finish.one(__ldcg(row + column + other), column + other);
    return d < half ? x * cosine - pair * sine : x * cosine + pair * sine;
}

__device__ __forceinline__ void unpack8(const uint4 &q, float out[8])
{
    const uint32_t w[4] = {q.x, q.y, q.z, q.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        out[2 * i] = __uint_as_float(w[i] << 16);
        out[2 * i + 1] = __uint_as_float(w[i] & 0xffff0000u);
    }
}

__device__ __forceinline__ float dot8(const float a[8], const uint4 &b)
{
    float k[8], sum = 0.0f;
    unpack8(b, k);
#pragma unroll
    for (int e = 0; e < 8; e++) sum += a[e] * k[e];
    return sum;
}

/* Adds N keys; `there` is false for keys past the end. All lanes of a warp take part; only the
 * first n_some have keys in any of the block's lanes. */
template <int N>
__device__ __forceinline__ void
add_keys(const qb__decode_params &p, partial &r, const float q[8], const uint4 (&k)[N],
         const uint4 (&v)[N], const bool (&there)[N], int n_some, int lanes_a_key, int n_keys)
{
    float s[N], most = r.most;
#pragma unroll
    for (int i = 0; i < N; i++) {
        s[i] = 0.0f;
        if (i >= n_some) continue;
        s[i] = dot8(q, k[i]);
        for (int step = lanes_a_key / 2; step > 0; step /= 2)
            s[i] += __shfl_xor_sync(0xffffffffu, s[i], step);
    }
    const bool relu = p.softmax == QB_SOFTMAX_RELU;
#pragma unroll
    for (int i = 0; i < N; i++)
        if (there[i] && !relu) most = fmaxf(most, s[i]);
    const float keep = relu || r.most == most ? 1.0f : exp2_fast(r.most - most);
    r.most = most;
    r.sum *= keep;
#pragma unroll
    for (int e = 0; e < 8; e++) r.acc[e] *= keep;
#pragma unroll
    for (int i = 0; i < N; i++) {
        float f = 0.0f, x[8];
        if (i >= n_some) continue;
        if (there[i])
            f = relu ? fmaxf(s[i], 0.0f) * reciprocal((float)n_keys) : exp2_fast(s[i] - most);
        r.sum += f;
        unpack8(v[i], x);
#pragma unroll
        for (int e = 0; e < 8; e++) r.acc[e] += f * x[e];
    }
}

__device__ __forceinline__ float part_weight(uint32_t softmax, float most, float all)
{
    if (softmax == QB_SOFTMAX_RELU) return 1.0f;
    return most == -INFINITY ? 0.0f : exp2_fast(most - all);
}

__device__ __forceinline__ void merge_lanes(const qb__decode_params &p, partial &r, int lanes_a_key)
{
    for (int step = lanes_a_key; step < 32; step *= 2) {
        const float other = __shfl_xor_sync(0xffffffffu, r.most, step);
        const float most = fmaxf(r.most, other);
        const float f = part_weight(p.softmax, r.most, most);
        r.most = most;
        r.sum *= f;
        r.sum += __shfl_xor_sync(0xffffffffu, r.sum, step);
#pragma unroll
        for (int e = 0; e < 8; e++) {
            r.acc[e] *= f;
            r.acc[e] += __shfl_xor_sync(0xffffffffu, r.acc[e], step);
        }
    }
}

/* Warps' parts, in shared memory, to the head's output or to the parts of its splits. */
__device__ __forceinline__ void merge_warps(context &c, const unit &u)
{
    const qb__decode_params &p = c.p;
    const int d_head = (int)p.head_dim;
    const float *acc = partial_sums(c.smem), *most = acc + N_WARPS * 256, *sum = most + N_WARPS;
    const size_t at = ((size_t)u.sequence * p.n_heads + u.head) * p.n_splits + u.split;
    if (c.tid >= d_head) return;
    float all = p.n_splits == 1 && p.softmax == QB_SOFTMAX1 ? 0.0f : -INFINITY;
    for (int w = 0; w < N_WARPS; w++) all = fmaxf(all, most[w]);
    float y = 0.0f, total = 0.0f;
    for (int w = 0; w < N_WARPS; w++) {
        const float f = part_weight(p.softmax, most[w], all);
        total += f * sum[w];
        y += f * acc[w * d_head + c.tid];
    }
    if (p.softmax == QB_SOFTMAX_RELU) all = 0.0f, total = p.n_splits == 1 ? 1.0f : 0.0f;
    if (p.n_splits == 1) {
        if (p.softmax == QB_SOFTMAX1) total += exp2_fast(-all);
        y = total > 0.0f ? __fdividef(y, total) : 0.0f;
    } else if (c.tid == 0) {
        ((float2 *)p.att_ml)[at] = make_float2(all, total);
    }
    p.att[at * d_head + c.tid] = y;
}

/* Of q: base 2 for the exponentials; ReLU takes the scores as they are. */
__device__ __forceinline__ float attention_scale(const qb__decode_params &p)
{
    return p.softmax == QB_SOFTMAX_RELU ? p.scale : p.scale * 1.44269504088896341f;
}

/* q, scaled, and the new token's k and v to shared memory; the block that has the last keys of one
 * of the heads that share them keeps k and v in the cache. */
__device__ __forceinline__ void load_head(context &c, const qb__decode_layer &layer,
                                          const requantizer &finish, const unit &u, int position)
{
    const qb__decode_params &p = c.p;
    const int d_head = (int)p.head_dim, group = divide(u.head, p.by_repeat);
    const float *row = p.qkv + (size_t)u.sequence * p.qkv_stride;
    const bool last = u.first <= position && position < u.end;
    const float scale = attention_scale(p);
    for (int i = c.tid; i < (last ? 3 : 1) * d_head; i += N_CONSUMERS) {
        const int which = (i >= d_head) + (i >= 2 * d_head), d = i - which * d_head;
        int column = u.head * d_head;
        if (which) column = ((int)p.n_heads + group) * d_head;
        if (which == 2) column += (int)p.n_kv_heads * d_head;
        const float x = load_element(p, finish, row, column, d, position, which < 2 && p.cosine);
        if (which == 0) {
            c.h->q[d] = x * scale;
            continue;
        }
        const uint16_t rounded = (uint16_t)pack_bf16(x, 0.0f);
        (which == 1 ? c.h->new_k : c.h->new_v)[d] = rounded;
        if (u.head != group * (int)p.repeat) continue;
        void *cache = which == 1 ? layer.k_cache : layer.v_cache;
        ((uint16_t *)cache)[cache_at(p, u, position) + d] = rounded;
    }
    consumers_sync();
}

constexpr int N_KEYS = 4; /* that a lane loads at once */

struct some_keys {
    uint4 k[N_KEYS], v[N_KEYS];
};

struct lane_place {   /* of a lane in a unit */
    int lanes;        /* that share a key */
    int d, key, step; /* its first channel, its first key, keys of the block at once */
    bool active;
};

__device__ __forceinline__ lane_place place_of(const context &c)
{
    lane_place a;
    const int shift = (int)c.p.lanes_shift, keys = 32 >> shift;
    a.lanes = 1 << shift;
    a.d = (c.lane & (a.lanes - 1)) * 8, a.key = c.warp * keys + (c.lane >> shift);
    a.step = N_WARPS * keys, a.active = a.d < (int)c.p.head_dim;
    return a;
}

/* Cached keys from `at` on; zeros for the new token and past the end. */
__device__ __forceinline__ void load_keys(const context &c, const qb__decode_layer &layer,
                                          const unit &u, const lane_place &a, int at, some_keys &x)
{
    const int end = min(u.end, c.position);
#pragma unroll
    for (int i = 0; i < N_KEYS; i++) {
        const int key = at + i * a.step + a.key;
        x.k[i] = x.v[i] = make_uint4(0, 0, 0, 0);
        if (key >= end || !a.active) continue;
        const size_t from = cache_at(c.p, u, key) + a.d;
        x.k[i] = __ldcg((const uint4 *)((const uint16_t *)layer.k_cache + from));
        x.v[i] = __ldcg((const uint4 *)((const uint16_t *)layer.v_cache + from));
    }
}

/* The head is in shared memory; leaves the warps' parts there. */
__device__ __forceinline__ void attend(context &c, const qb__decode_layer &layer, const unit &u,
                                       some_keys &x)
{
    const qb__decode_params &p = c.p;
    const int d_head = (int)p.head_dim;
    const lane_place a = place_of(c);
    const int d = a.d, lanes = a.lanes;
    const bool active = a.active;
    float q[8] = {};
    partial r = {p.softmax == QB_SOFTMAX_RELU ? 0.0f : -INFINITY, 0.0f, {}};
#pragma unroll
    for (int e = 0; e < 8; e++)
        if (active) q[e] = c.h->q[d + e];
    for (int at = u.first; at < u.end; at += N_KEYS * a.step) {
        bool there[N_KEYS];
        int n_some = 0;
        if (at > u.first) load_keys(c, layer, u, a, at, x);
#pragma unroll
        for (int i = 0; i < N_KEYS; i++) {
            const int key = at + i * a.step + a.key;
            there[i] = key < u.end;
            n_some += at + i * a.step < u.end;
            if (key != c.position || !there[i] || !active) continue; /* else it is not there */
            x.k[i] = *(const uint4 *)(c.h->new_k + d), x.v[i] = *(const uint4 *)(c.h->new_v + d);
        }
        add_keys(p, r, q, x.k, x.v, there, n_some, lanes, c.position + 1);
    }
    merge_lanes(p, r, lanes);
    float *acc = partial_sums(c.smem), *most = acc + N_WARPS * 256, *sum = most + N_WARPS;
    if (c.lane < lanes && active) {
#pragma unroll
        for (int e = 0; e < 8; e++) acc[c.warp * d_head + d + e] = r.acc[e];
    }
    if (c.lane == 0) most[c.warp] = r.most, sum[c.warp] = r.sum;
    consumers_sync();
}

/* The first keys of the block's first unit: they do not wait for q. */
__device__ __forceinline__ some_keys load_ahead(const context &c, const qb__decode_layer &layer)
{
    some_keys x = {};
    if (blockIdx.x < c.p.batch * c.p.n_heads * c.p.n_splits) {
        const unit u = unit_of(c.p, (int)blockIdx.x, c.position + 1);
        load_keys(c, layer, u, place_of(c), u.first, x);
    }
    return x;
}

__device__ __forceinline__ void attention(context &c, const qb__decode_layer &layer,
                                          some_keys &ahead)
{
    const qb__decode_params &p = c.p;
    const int n = (int)(p.batch * p.n_heads * p.n_splits);
    const requantizer finish(p, layer.linear[0]);
    for (int i = (int)blockIdx.x; i < n; i += (int)p.n_blocks) {
        const unit u = unit_of(p, i, c.position + 1);
        if (i != (int)blockIdx.x) load_keys(c, layer, u, place_of(c), u.first, ahead);
        load_head(c, layer, finish, u, c.position);
        attend(c, layer, u, ahead);
        merge_warps(c, u);
        consumers_sync();
    }
}

/* Asks for the block's cached keys and values ahead of the phase that reads them. */
__device__ __forceinline__ void
prefetch_cache(const qb__decode_params &p, const qb__decode_layer &layer, int position, int lane)
{
    const int n = (int)(p.batch * p.n_heads * p.n_splits);
    const int lines = ((int)p.head_dim * 2 + 127) / 128;
    if ((int)blockIdx.x >= n) return;
    const unit u = unit_of(p, (int)blockIdx.x, position + 1);
    const int keys = min(u.end, position) - u.first;
    for (int i = lane; i < keys * lines * 2; i += 32) {
        const int key = divide(i, p.by_lines), line = (i - key * 2 * lines) >> 1;
        const void *cache = i & 1 ? layer.v_cache : layer.k_cache;
        const char *at = (const char *)cache + cache_at(p, u, u.first + key) * 2 + line * 128;
        asm volatile("prefetch.global.L2 [%0];" ::"l"(at));
    }
}

} // namespace qb_decode
#endif
