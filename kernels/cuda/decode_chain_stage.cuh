/* kernels/cuda/decode_chain_stage.cuh - what stands before a product of the decode chain: residual
 * sum and norm, the sum of attention's parts, the activation; then codes or bf16 of the row in
 * shared memory. Every block stages the whole row for itself, in registers: 4 values side by side,
 * N times. */
#ifndef QB_KERNELS_CUDA_DECODE_CHAIN_STAGE_CUH
#define QB_KERNELS_CUDA_DECODE_CHAIN_STAGE_CUH

#include "kernels/cuda/decode_chain_parts.cuh"

namespace qb_chain
{

/* Starts shared memory. */
struct head {
    uint64_t full[QB__CHAIN_MAX_SLOTS], empty[QB__CHAIN_MAX_SLOTS];
    float2 sums[WARPS];
    uint32_t max[WARPS], out_max[WARPS];
    uint64_t received;   /* the cluster's sums for this block's channels */
    uint32_t zero;       /* 0, as the compiler cannot know */
    float2 x_sum[WARPS]; /* of the staged row, and its correction; a warp's part each */
};
static_assert(sizeof(head) <= QB__CHAIN_HEADER_BYTES, "the plan reserves them");

/* Sums over `lanes` lanes side by side, in a fixed order; the same in each. */
template <int LANES, typename T> __device__ __forceinline__ T sum_lanes(T v)
{
#pragma unroll
    for (int step = LANES / 2; step > 0; step /= 2) v += __shfl_xor_sync(0xffffffffu, v, step);
    return v;
}

/* Sums over the consumers; the same in each. */
__device__ __forceinline__ float2 sum_block(head *h, float a, float b, int tid)
{
    a = sum_lanes<32>(a), b = sum_lanes<32>(b);
    if ((tid & 31) == 0) h->sums[tid >> 5] = make_float2(a, b);
    block_sync();
    const float2 part = h->sums[tid % WARPS];
    return make_float2(sum_lanes<WARPS>(part.x), sum_lanes<WARPS>(part.y));
}

/* The largest of values that are not negative. */
__device__ __forceinline__ float max_block(uint32_t *slots, float v, int tid)
{
    const uint32_t bits = __reduce_max_sync(0xffffffffu, __float_as_uint(v));
    if ((tid & 31) == 0) slots[tid >> 5] = bits;
    block_sync();
    return __uint_as_float(__reduce_max_sync(0xffffffffu, slots[tid % WARPS]));
}

/* ---- codes ---- */

__device__ __forceinline__ float max_nan(float a, float b)
{
    float y;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(y) : "f"(a), "f"(b));
    return y;
}

__device__ __forceinline__ float min_nan(float a, float b)
{
    float y;
    asm("min.NaN.f32 %0, %1, %2;" : "=f"(y) : "f"(a), "f"(b));
    return y;
}

/* The codes of 4 values by the rounded quotient itself. Out of the way: code that is jumped over
 * costs the instruction cache as well. */
static __device__ __noinline__ uint32_t exact_codes(float a, float b, float c, float d, float scale)
{
    const divisor by(scale);
    const int code[4] = {(int)by.code(a), (int)by.code(b), (int)by.code(c), (int)by.code(d)};
    return (code[0] & 0xff) | (code[1] & 0xff) << 8 | (code[2] & 0xff) << 16 |
           (uint32_t)code[3] << 24;
}

/* The codes of 4 values, as one word. x * inverse differs from the rounded quotient by less than
 * 127 * 2^-22, so it rounds to the same integer unless it lies within 1e-4 of a border. */
template <bool CLAMP>
__device__ __forceinline__ uint32_t codes_of(const float (&v)[4], float scale, float inverse)
{
    constexpr float ROUND = 12582912.0f; /* 1.5 * 2^23: the sum's last bits are the integer */
    uint32_t code[4];
    float away = 0.0f;
#pragma unroll
    for (int e = 0; e < 4; e++) {
        float t = v[e] * inverse;
        if (CLAMP) t = min_nan(max_nan(t, -127.0f), 127.0f);
        const float sum = t + ROUND;
        code[e] = __float_as_uint(sum);
        away = max_nan(away, fabsf(t - (sum - ROUND)));
    }
    if (!(away <= 0.4999f && scale > 1e-30f)) return exact_codes(v[0], v[1], v[2], v[3], scale);
    return __byte_perm(__byte_perm(code[0], code[1], 0x0040), __byte_perm(code[2], code[3], 0x0040),
                       0x5410);
}

/* ---- sources ---- */

template <int N> struct row { /* 4 N values of a thread: 4 from tid * 4 + j * STEP on */
    float v[N][4];
};

/* The input channels of the block: all, or those of its rank in the cluster. */
struct k_part {
    uint32_t first_chunk, n_chunks;
    int k, x_bytes; /* of the part */
};

__device__ __forceinline__ k_part part_of(const qb__chain_product &p)
{
    const qb__chain_linear &l = p.l;
    if (p.n_ranks == 1) return {0, l.n_chunks, (int)l.k, (int)l.x_bytes};
    const uint32_t first = blockIdx.x % p.n_ranks * p.rank_chunks;
    const int elem_bytes = l.kind == QB_CUDA_LINEAR_S8 ? 1 : 2;
    const int from = (int)(first * l.x_chunk), bytes = (int)(p.rank_chunks * l.x_chunk);
    return {first, p.rank_chunks, min((int)l.k - from / elem_bytes, bytes / elem_bytes), bytes};
}

/* Where a thread reads its input, found before it is there. The kernel's parameters lie in a
 * constant bank of their own, so that a late first look at one has to be waited for; adding a zero
 * from shared memory keeps the compiler from looking again. */
struct input_place {
    const float *x, *in, *mean;
    const uint32_t *max;
};

__device__ __forceinline__ input_place place_input(const qb__chain_product &p, const k_part &part,
                                                   int tid, uint32_t zero)
{
    const uint32_t elem_bytes = p.l.kind == QB_CUDA_LINEAR_S8 ? 1 : 2;
    return {p.x_in + tid * 4 + zero,
            p.in + part.first_chunk * p.l.x_chunk / elem_bytes + tid * 4 + zero,
            (p.norm == QB_NORM_LAYERNORM ? p.mean_in : NULL) + zero, p.in_max + zero};
}

/* Of the norm; fetched before its input is there. */
template <int N> struct norm_constants {
    float gain[N][4], bias[N][4];
    uint32_t keeps; /* bit j: this block keeps the row's j-th values for the next norm */
};

template <int N>
__device__ __forceinline__ void load_constants(const qb__chain_product &p, norm_constants<N> &c,
                                               int tid)
{
    const int d = (int)p.l.k;
    c.keeps = 0;
#pragma unroll
    for (int j = 0; j < N; j++) {
        const int i = tid * 4 + j * STEP;
#pragma unroll
        for (int e = 0; e < 4; e++) c.gain[j][e] = c.bias[j][e] = 0.0f;
        if (i >= d) continue;
        if (p.x_out && (uint32_t)(i >> 4) % gridDim.x == blockIdx.x) c.keeps |= 1u << j;
        if (p.norm == QB_NORM_RMSNORM_SINGLE)
            c.gain[j][0] = c.gain[j][1] = c.gain[j][2] = c.gain[j][3] = p.gain[0];
        else
            load4(p.gain, i, d, c.gain[j]);
        if (p.bias) load4(p.bias, i, d, c.bias[j]);
    }
}

__device__ __forceinline__ void load_embedding(const qb__chain_product &p, int i, float v[4])
{
    const uint16_t *token = p.tok_embd + (size_t)*p.token * p.table_stride + i;
    const uint16_t *place =
        p.pos_embd ? p.pos_embd + (size_t)*p.position * p.table_stride + i : NULL;
#pragma unroll
    for (int e = 0; e < 4; e++)
        v[e] = qb_bf16_low(token[e]) + (place ? qb_bf16_low(place[e]) : 0.0f);
}

/* x += requantised `in`; the blocks keep a part each of it for the next norm. Past the row's end
 * stands the mean of the norm before, which is returned. */
template <int N, bool PLAIN>
__device__ __forceinline__ float load_residual(const qb__chain_product &p, const input_place &at,
                                               row<N> &r, uint32_t keeps, int tid)
{
    const int d = (int)p.l.k;
    float add[N][4];
#pragma unroll
    for (int j = 0; j < N; j++) {
        const int i = tid * 4 + j * STEP;
        if (i >= d) continue;
        if (!PLAIN && p.tok_embd)
            load_embedding(p, i, r.v[j]);
        else
            load4_l2(at.x, j * STEP, r.v[j]);
        if (PLAIN || p.in) load4_l2(at.in, j * STEP, add[j]);
    }
    const float mean = at.mean ? __ldcg(at.mean) : 0.0f;
    const requantizer finish(PLAIN ? qb__chain_requant{} : p.pending);
#pragma unroll
    for (int j = 0; j < N; j++) {
        const int i = tid * 4 + j * STEP;
        if (i < d && (PLAIN || p.in)) {
            if (!PLAIN) finish.apply(add[j], i);
#pragma unroll
            for (int e = 0; e < 4; e++) r.v[j][e] += add[j][e];
        }
        if (keeps >> j & 1)
            *(float4 *)(p.x_out + i) = make_float4(r.v[j][0], r.v[j][1], r.v[j][2], r.v[j][3]);
        if (PLAIN ? i >= d : i + 3 >= d) {
#pragma unroll
            for (int e = 0; e < 4; e++)
                if (PLAIN || i + e >= d) r.v[j][e] = mean;
        }
    }
    return mean;
}

/* norm(x). LayerNorm sums about the mean of the norm before: one reduction, and no cancellation
 * while the mean moves less than the deviation. */
template <int N, bool PLAIN>
__device__ __forceinline__ void stage_norm(const qb__chain_product &p, head *h,
                                           const norm_constants<N> &c, const input_place &at,
                                           row<N> &r, int tid)
{
    const bool centre = p.norm == QB_NORM_LAYERNORM;
    float mean = load_residual<N, PLAIN>(p, at, r, c.keeps, tid), sum = 0.0f, squares = 0.0f;
#pragma unroll
    for (int j = 0; j < N; j++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
            const float x = r.v[j][e] - mean;
            sum += x, squares += x * x;
        }
    const float2 all = sum_block(h, sum, squares, tid);
    float variance = all.y * p.inverse_d;
    if (centre) {
        const float shift = all.x * p.inverse_d;
        mean += shift;
        variance = fmaxf(variance - shift * shift, 0.0f);
        if (p.mean_out && blockIdx.x == 0 && tid == 0) *p.mean_out = mean;
    }
    const float inverse = rsqrtf(variance + p.eps);
#pragma unroll
    for (int j = 0; j < N; j++)
#pragma unroll
        for (int e = 0; e < 4; e++)
            r.v[j][e] = (r.v[j][e] - mean) * inverse * c.gain[j][e] + c.bias[j][e];
    if (!p.hidden || blockIdx.x != 0) return;
#pragma unroll
    for (int j = 0; j < N; j++)
#pragma unroll
        for (int e = 0; e < 4; e++)
            if (tid * 4 + j * STEP + e < (int)p.l.k) p.hidden[tid * 4 + j * STEP + e] = r.v[j][e];
}

/* act(up), or silu(gate) * up, of 4 requantised values each. */
__device__ __forceinline__ void activate4(const qb__chain_product &p, const requantizer &finish,
                                          int i, float v[4])
{
    const int width = (int)p.l.k;
    float y[4] = {v[0], v[1], v[2], v[3]}, gate[4] = {};
    finish.apply(y, i);
    if (p.act == QB_ACT_SWIGLU) {
#pragma unroll
        for (int e = 0; e < 4; e++) gate[e] = __ldcg(p.in + min(width + i + e, 2 * width - 1));
        finish.apply(gate, width);
    }
#pragma unroll
    for (int e = 0; e < 4; e++)
        v[e] = p.act == QB_ACT_SWIGLU ? qb_swiglu(y[e], gate[e]) : activate(p.act, y[e]);
}

template <int N>
__device__ __forceinline__ void load_input(const input_place &at, int k, row<N> &r, int tid)
{
#pragma unroll
    for (int j = 0; j < N; j++) {
        const int i = tid * 4 + j * STEP;
        r.v[j][0] = r.v[j][1] = r.v[j][2] = r.v[j][3] = 0.0f;
        if (i < k) load4_l2(at.in, j * STEP, r.v[j]);
    }
}

/* Of the input that load_input has loaded. */
template <int N>
__device__ __forceinline__ void stage_act(const qb__chain_product &p, row<N> &r, int tid)
{
    const int k = (int)p.l.k;
    const requantizer finish(p.pending);
#pragma unroll
    for (int j = 0; j < N; j++) {
        const int i = tid * 4 + j * STEP;
        if (i < k && !p.activated) activate4(p, finish, i, r.v[j]);
        if (i + 3 < k) continue;
#pragma unroll
        for (int e = 0; e < 4; e++)
            if (i + e >= k) r.v[j][e] = 0.0f;
    }
}

/* ---- the product's input ---- */

/* Where 4 values, input channels i to i + 3, go in a row of bf16 for 4-bit weights: the two words
 * of a lane for 16 channels lie side by side, so that it reads 32 channels with one load. */
__device__ __forceinline__ void store_u4_order(char *row, int i, uint32_t lo, uint32_t hi)
{
    const int c = i & 63, j = c >> 4, half = (c >> 3) & 1, t = (c & 7) >> 1;
    char *at = row + (i >> 6) * 128 + (j >> 1) * 64 + t * 16 + (j & 1) * 8 + half * 4;
    *(uint32_t *)at = lo;
    *(uint32_t *)(at + 16) = hi;
}

/* Of inputs that have scales or zero points of their channels. */
__device__ __forceinline__ void store_u4_scaled(const qb__chain_linear &l, int i, const float v[4],
                                                char *row, float2 &sums)
{
    float x[4] = {v[0], v[1], v[2], v[3]};
    if (l.x_scale) {
#pragma unroll
        for (int e = 0; e < 4; e++) x[e] *= l.x_scale[i + e];
    }
    const uint32_t lo = qb_bf16_pair(x[0], x[1]), hi = qb_bf16_pair(x[2], x[3]);
    const float rounded[4] = {qb_bf16_low(lo), qb_bf16_high(lo), qb_bf16_low(hi), qb_bf16_high(hi)};
#pragma unroll
    for (int e = 0; e < 4; e++) {
        sums.x += rounded[e];
        if (l.x_zero_point) sums.y += rounded[e] * (float)l.x_zero_point[i + e];
    }
    store_u4_order(row, i, lo, hi);
}

__device__ __forceinline__ void store_channel_codes(const qb__chain_linear &l, int i,
                                                    const float v[4], char *row)
{
    uint32_t word = 0;
    float s[4];
    load4(l.in_scale, i, (int)l.k, s);
#pragma unroll
    for (int e = 0; e < 4; e++) word |= ((uint32_t)(int)divisor(s[e]).code(v[e]) & 0xff) << (8 * e);
    *(uint32_t *)(row + i) = word;
}

template <int N, bool PLAIN>
__device__ __forceinline__ float store_codes(const qb__chain_product &p, head *h,
                                             const input_place &at, const row<N> &r, int width,
                                             char *x, int tid)
{
    const qb__chain_linear &l = p.l;
    if (!PLAIN && l.input == QB_STAGE_CHANNEL) {
#pragma unroll
        for (int j = 0; j < N; j++)
            if (tid * 4 + j * STEP < width) store_channel_codes(l, tid * 4 + j * STEP, r.v[j], x);
        return 1.0f;
    }
    const bool fixed = !PLAIN && l.input == QB_STAGE_STATIC;
    float scale;
    if (fixed) {
        scale = l.in_scale[0];
    } else if (at.max) {
        scale = scale_of_bits(__ldcg(at.max));
    } else {
        float most = 0.0f;
#pragma unroll
        for (int j = 0; j < N; j++)
#pragma unroll
            for (int e = 0; e < 4; e++) most = fmaxf(most, fabsf(r.v[j][e]));
        scale = scale_of_bits(__float_as_uint(max_block(h->max, most, tid)));
    }
    const float inverse = qb_reciprocal(scale);
#pragma unroll
    for (int j = 0; j < N; j++) {
        const int i = tid * 4 + j * STEP;
        if (i < width) *(uint32_t *)(x + i) = codes_of<!PLAIN>(r.v[j], scale, inverse);
    }
    return scale;
}

template <int N>
__device__ __forceinline__ void store_bf16(const row<N> &r, int x_bytes, char *x, int tid)
{
#pragma unroll
    for (int j = 0; j < N; j++) {
        const int i = tid * 4 + j * STEP;
        if (i * 2 < x_bytes)
            *(uint2 *)(x + i * 2) =
                make_uint2(qb_bf16_pair(r.v[j][0], r.v[j][1]), qb_bf16_pair(r.v[j][2], r.v[j][3]));
    }
}

/* bf16 in the order in which the lanes of 4-bit products read it, and its sums. */
template <int N, bool PLAIN>
__device__ __forceinline__ void store_u4(const qb__chain_product &p, head *h, const row<N> &r,
                                         int x_bytes, char *x, int tid)
{
    float2 sums = make_float2(0.0f, 0.0f);
#pragma unroll
    for (int j = 0; j < N; j++) {
        const int i = tid * 4 + j * STEP;
        if (i * 2 >= x_bytes) continue;
        if (!PLAIN) {
            store_u4_scaled(p.l, i, r.v[j], x, sums);
            continue;
        }
        const uint32_t lo = qb_bf16_pair(r.v[j][0], r.v[j][1]),
                       hi = qb_bf16_pair(r.v[j][2], r.v[j][3]);
        sums.x += qb_bf16_low(lo) + qb_bf16_high(lo) + qb_bf16_low(hi) + qb_bf16_high(hi);
        store_u4_order(x, i, lo, hi);
    }
    sums.x = sum_lanes<32>(sums.x);
    if (!PLAIN) sums.y = sum_lanes<32>(sums.y);
    if ((tid & 31) == 0) h->x_sum[tid >> 5] = sums;
}

} // namespace qb_chain
#endif
