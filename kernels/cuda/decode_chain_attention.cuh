/* kernels/cuda/decode_chain_attention.cuh - attention of the decode chain: one query over the
 * cached keys. A cluster of blocks takes a head, a block a part of its keys.
 *
 * The warps of a block share its keys, and the lanes of a warp cut a key into 16 bytes each. Online
 * softmax in base 2 with a maximum a group of lanes; the warps' parts meet in shared memory, the
 * blocks' in distributed shared memory: each block sums some channels of the head over all parts.
 * k and v of the new token come from the product, rounded to bf16 as the cache holds them. */
#ifndef QB_KERNELS_CUDA_DECODE_CHAIN_ATTENTION_CUH
#define QB_KERNELS_CUDA_DECODE_CHAIN_ATTENTION_CUH

#include "kernels/cuda/decode_chain_parts.cuh"

namespace qb_chain
{

constexpr int MAX_HEAD = 256, MAX_SPLITS = QB__CHAIN_MAX_SPLITS;

struct attention_memory { /* shared */
    alignas(16) float q[MAX_HEAD];
    alignas(16) uint16_t new_k[MAX_HEAD], new_v[MAX_HEAD]; /* of the new token */
    float acc[WARPS * MAX_HEAD], most[WARPS], sum[WARPS];  /* the warps' parts */
    /* of the block's channels, from every part */
    uint64_t received;
    float2 part_most_sum[MAX_SPLITS];
    float part[MAX_HEAD];
};

struct attender { /* a thread */
    const qb__chain_attention &p;
    attention_memory *s;
    int tid, warp, lane, position;
};

struct unit { /* keys [first, end) of a head */
    int head, split, first, end;
};

struct partial { /* of the lanes that share a key */
    float most, sum, acc[8];
};

__device__ __forceinline__ unit unit_of(const qb__chain_attention &p, int index, int n_keys)
{
    unit u;
    const int each = divide(n_keys + (int)p.n_splits - 1, p.by_splits);
    u.head = divide(index, p.by_splits);
    u.split = index - u.head * (int)p.n_splits;
    u.first = min(u.split * each, n_keys);
    u.end = min(u.first + each, n_keys);
    return u;
}

__device__ __forceinline__ size_t cache_at(const qb__chain_attention &p, const unit &u, int key)
{
    return ((size_t)key * p.n_kv_heads + divide(u.head, p.by_repeat)) * p.head_dim;
}

/* Element d of the head that starts at `column` of the product's row, requantised and rotated. */
__device__ __forceinline__ float load_element(const qb__chain_attention &p,
                                              const requantizer &finish, int column, int d,
                                              int position, bool rotate)
{
    const int half = (int)p.head_dim / 2;
    const float x = finish.one(__ldcg(p.qkv + column + d), column + d);
    if (!rotate) return x;
    const int angle = d < half ? d : d - half, other = d < half ? d + half : d - half;
    const float cosine = p.cosine[(size_t)position * half + angle];
    const float sine = p.sine[(size_t)position * half + angle];
    const float pair = finish.one(__ldcg(p.qkv + column + other), column + other);
    return d < half ? x * cosine - pair * sine : x * cosine + pair * sine;
}

__device__ __forceinline__ void unpack8(const uint4 &q, float out[8])
{
    const uint32_t w[4] = {q.x, q.y, q.z, q.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        out[2 * i] = qb_bf16_low(w[i]);
        out[2 * i + 1] = qb_bf16_high(w[i]);
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
add_keys(const qb__chain_attention &p, partial &r, const float q[8], const uint4 (&k)[N],
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
    const float keep = relu || r.most == most ? 1.0f : qb_exp2(r.most - most);
    r.most = most;
    r.sum *= keep;
#pragma unroll
    for (int e = 0; e < 8; e++) r.acc[e] *= keep;
#pragma unroll
    for (int i = 0; i < N; i++) {
        float f = 0.0f, x[8];
        if (i >= n_some) continue;
        if (there[i])
            f = relu ? fmaxf(s[i], 0.0f) * qb_reciprocal((float)n_keys) : qb_exp2(s[i] - most);
        r.sum += f;
        unpack8(v[i], x);
#pragma unroll
        for (int e = 0; e < 8; e++) r.acc[e] += f * x[e];
    }
}

__device__ __forceinline__ float part_weight(uint32_t softmax, float most, float all)
{
    if (softmax == QB_SOFTMAX_RELU) return 1.0f;
    return most == -INFINITY ? 0.0f : qb_exp2(most - all);
}

__device__ __forceinline__ void merge_lanes(const qb__chain_attention &p, partial &r,
                                            int lanes_a_key)
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

/* Of q: base 2 for the exponentials; ReLU takes the scores as they are. */
__device__ __forceinline__ float attention_scale(const qb__chain_attention &p)
{
    return p.softmax == QB_SOFTMAX_RELU ? p.scale : p.scale * QB_LOG2E;
}

/* q, scaled, and the new token's k and v to shared memory; the block that has the last keys of one
 * of the heads that share them keeps k and v in the cache. */
__device__ __forceinline__ void load_head(const attender &c, const requantizer &finish,
                                          const unit &u)
{
    const qb__chain_attention &p = c.p;
    const int d_head = (int)p.head_dim, group = divide(u.head, p.by_repeat);
    const bool last = u.first <= c.position && c.position < u.end;
    const float scale = attention_scale(p);
    for (int i = c.tid; i < (last ? 3 : 1) * d_head; i += CONSUMERS) {
        const int which = (i >= d_head) + (i >= 2 * d_head), d = i - which * d_head;
        int column = u.head * d_head;
        if (which) column = ((int)p.n_heads + group) * d_head;
        if (which == 2) column += (int)p.n_kv_heads * d_head;
        const float x = load_element(p, finish, column, d, c.position, which < 2 && p.cosine);
        if (which == 0) {
            c.s->q[d] = x * scale;
            continue;
        }
        const uint16_t rounded = (uint16_t)qb_bf16_pair(x, 0.0f);
        (which == 1 ? c.s->new_k : c.s->new_v)[d] = rounded;
        if (u.head != group * (int)p.repeat) continue;
        void *cache = which == 1 ? p.k_cache : p.v_cache;
        ((uint16_t *)cache)[cache_at(p, u, c.position) + d] = rounded;
    }
    block_sync();
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

__device__ __forceinline__ lane_place place_of(const attender &c)
{
    lane_place a;
    const int shift = (int)c.p.lanes_shift, keys = 32 >> shift;
    a.lanes = 1 << shift;
    a.d = (c.lane & (a.lanes - 1)) * 8, a.key = c.warp * keys + (c.lane >> shift);
    a.step = WARPS * keys, a.active = a.d < (int)c.p.head_dim;
    return a;
}

/* Cached keys from `at` on; zeros for the new token and past the end. */
__device__ __forceinline__ void load_keys(const attender &c, const unit &u, const lane_place &a,
                                          int at, some_keys &x)
{
    const int end = min(u.end, c.position);
#pragma unroll
    for (int i = 0; i < N_KEYS; i++) {
        const int key = at + i * a.step + a.key;
        x.k[i] = x.v[i] = make_uint4(0, 0, 0, 0);
        if (key >= end || !a.active) continue;
        const size_t from = cache_at(c.p, u, key) + a.d;
        x.k[i] = __ldcg((const uint4 *)((const uint16_t *)c.p.k_cache + from));
        x.v[i] = __ldcg((const uint4 *)((const uint16_t *)c.p.v_cache + from));
    }
}

/* The head is in shared memory; leaves the warps' parts there. */
__device__ __forceinline__ void attend(const attender &c, const unit &u, some_keys &x)
{
    const qb__chain_attention &p = c.p;
    const int d_head = (int)p.head_dim;
    const lane_place a = place_of(c);
    const int d = a.d, lanes = a.lanes;
    const bool active = a.active;
    float q[8] = {};
    partial r = {p.softmax == QB_SOFTMAX_RELU ? 0.0f : -INFINITY, 0.0f, {}};
#pragma unroll
    for (int e = 0; e < 8; e++)
        if (active) q[e] = c.s->q[d + e];
    for (int at = u.first; at < u.end; at += N_KEYS * a.step) {
        bool there[N_KEYS];
        int n_some = 0;
        if (at > u.first) load_keys(c, u, a, at, x);
#pragma unroll
        for (int i = 0; i < N_KEYS; i++) {
            const int key = at + i * a.step + a.key;
            there[i] = key < u.end;
            n_some += at + i * a.step < u.end;
            if (key != c.position || !there[i] || !active) continue; /* else it is not there */
            x.k[i] = *(const uint4 *)(c.s->new_k + d), x.v[i] = *(const uint4 *)(c.s->new_v + d);
        }
        add_keys(p, r, q, x.k, x.v, there, n_some, lanes, c.position + 1);
    }
    merge_lanes(p, r, lanes);
    if (c.lane < lanes && active) {
#pragma unroll
        for (int e = 0; e < 8; e++) c.s->acc[c.warp * d_head + d + e] = r.acc[e];
    }
    if (c.lane == 0) c.s->most[c.warp] = r.most, c.s->sum[c.warp] = r.sum;
    block_sync();
}

/* Asks for the block's cached keys and values ahead of the phase that reads them. */
__device__ __forceinline__ void prefetch_cache(const attender &c, const unit &u)
{
    const qb__chain_attention &p = c.p;
    const int lines = ((int)p.head_dim * 2 + 127) / 128, keys = min(u.end, c.position) - u.first;
    for (int i = c.lane; i < keys * lines * 2; i += 32) {
        const int key = divide(i, p.by_lines), line = (i - key * 2 * lines) >> 1;
        const void *cache = i & 1 ? p.v_cache : p.k_cache;
        qb__prefetch((const char *)cache + cache_at(p, u, u.first + key) * 2 + line * 128);
    }
}

/* A thread's 4 values of q, or of the new token's k or v; in: NULL = none. */
struct head_place {
    const float *in;
    uint16_t *cache, *copy; /* of k and v: where they are kept, and in shared memory; q: NULL */
    int d;
};

__device__ __forceinline__ head_place place_head(const attender &c, const unit &u)
{
    const qb__chain_attention &p = c.p;
    const int width = (int)p.head_dim, quads = width / 4, group = divide(u.head, p.by_repeat);
    const int which = (c.tid >= quads) + (c.tid >= 2 * quads);
    const bool last = u.first <= c.position && c.position < u.end;
    head_place at = {NULL, NULL, NULL, (c.tid - which * quads) * 4};
    if (c.tid >= (last ? 3 : 1) * quads) return at;
    int column = u.head * width;
    if (which) column = ((int)p.n_heads + group + (which == 2 ? (int)p.n_kv_heads : 0)) * width;
    at.in = p.qkv + column + at.d;
    if (which == 0) return at;
    at.copy = (which == 1 ? c.s->new_k : c.s->new_v) + at.d;
    if (u.head == group * (int)p.repeat)
        at.cache =
            (uint16_t *)(which == 1 ? p.k_cache : p.v_cache) + cache_at(p, u, c.position) + at.d;
    return at;
}

/* load_head of neither rotated nor requantised heads. */
__device__ __forceinline__ void load_plain_head(const attender &c, const head_place &at,
                                                float scale)
{
    if (at.in) {
        float v[4];
        load4_l2(at.in, 0, v);
        if (!at.copy) {
#pragma unroll
            for (int e = 0; e < 4; e++) c.s->q[at.d + e] = v[e] * scale;
        } else {
            const uint2 rounded = make_uint2(qb_bf16_pair(v[0], v[1]), qb_bf16_pair(v[2], v[3]));
            *(uint2 *)at.copy = rounded;
            if (at.cache) *(uint2 *)at.cache = rounded;
        }
    }
    block_sync();
}

/* Before the cluster starts: what the block is going to receive. */
__device__ __forceinline__ void expect_parts(const attender &c)
{
    if (c.tid != 0) return;
    qb_mbar_init(qb_smem(&c.s->received), 1);
    qb_mbar_init_fence();
    qb_mbar_expect(qb_smem(&c.s->received), c.p.head_dim * 4 + c.p.n_splits * 8);
}

/* The sum of the block's warps, to the blocks whose channels it has. */
__device__ __forceinline__ void send_parts(const attender &c, int rank)
{
    const qb__chain_attention &p = c.p;
    attention_memory *s = c.s;
    const int width = (int)p.head_dim, slice = divide(width, p.by_splits);
    if (c.tid >= width) return;
    float all = -INFINITY, y = 0.0f, total = 0.0f;
#pragma unroll
    for (int w = 0; w < WARPS; w++) all = fmaxf(all, s->most[w]);
#pragma unroll
    for (int w = 0; w < WARPS; w++) {
        const float f = part_weight(p.softmax, s->most[w], all);
        total += f * s->sum[w];
        y += f * s->acc[w * width + c.tid];
    }
    const int owner = c.tid / slice;
    send(&s->part[rank * slice + c.tid - owner * slice], y, &s->received, owner);
    if (c.tid < (int)p.n_splits) {
        send(&s->part_most_sum[rank].x, all, &s->received, c.tid);
        send(&s->part_most_sum[rank].y, total, &s->received, c.tid);
    }
}

/* The block's channels of the head, from all parts. */
__device__ __forceinline__ void sum_parts(const attender &c, int head, int rank)
{
    const qb__chain_attention &p = c.p;
    const attention_memory *s = c.s;
    const int width = (int)p.head_dim, slice = divide(width, p.by_splits);
    if (c.tid >= slice) return;
    wait_for(&s->received, 0);
    float2 most_sum[MAX_SPLITS];
    float part[MAX_SPLITS], most = p.softmax == QB_SOFTMAX1 ? 0.0f : -INFINITY;
#pragma unroll
    for (int i = 0; i < MAX_SPLITS; i++) { /* all loads at once */
        const bool there = i < (int)p.n_splits;
        most_sum[i] = there ? s->part_most_sum[i] : make_float2(-INFINITY, 0.0f);
        part[i] = there ? s->part[i * slice + c.tid] : 0.0f;
        most = fmaxf(most, most_sum[i].x);
    }
    float total = p.softmax == QB_SOFTMAX1 ? qb_exp2(-most) : 0.0f, y = 0.0f;
#pragma unroll
    for (int i = 0; i < MAX_SPLITS; i++) {
        const float f = part_weight(p.softmax, most_sum[i].x, most);
        total += f * most_sum[i].y;
        y += f * part[i];
    }
    if (p.softmax != QB_SOFTMAX_RELU) y = total > 0.0f ? __fdividef(y, total) : 0.0f;
    p.out[head * width + rank * slice + c.tid] = y;
}

} // namespace qb_chain
#endif
