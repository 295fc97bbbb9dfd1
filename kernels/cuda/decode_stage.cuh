/* kernels/cuda/decode_stage.cuh - what stands between two products: residual sum and norm, the sum
 * of attention's parts, the activation; then codes or bf16 of one row, in the order in which the
 * product's lanes read them.
 *
 * A source gives 4 values at a time and is asked twice where a maximum has to be known before the
 * codes: loops that are small enough for the instruction cache beat keeping a row in registers.
 *
 * With one sequence every block stages the row for itself, which saves a barrier; with several,
 * block b stages row b for all. The residual stream of a row stays in its blocks' shared memory. */
#ifndef QB_KERNELS_CUDA_DECODE_STAGE_CUH
#define QB_KERNELS_CUDA_DECODE_STAGE_CUH

#include "kernels/cuda/decode_parts.cuh"

namespace qb_decode
{

__device__ __forceinline__ void load4(const float *p, int i, int n, float out[4])
{
    if (i + 3 < n) {
        float4 q = *(const float4 *)(p + i);
        out[0] = q.x, out[1] = q.y, out[2] = q.z, out[3] = q.w;
    } else {
#pragma unroll
        for (int e = 0; e < 4; e++) out[e] = i + e < n ? p[i + e] : 0.0f;
    }
}

__device__ __forceinline__ void load4_l2(const float *p, int i, float out[4])
{
    float4 q = __ldcg((const float4 *)(p + i));
    out[0] = q.x, out[1] = q.y, out[2] = q.z, out[3] = q.w;
}

__device__ __forceinline__ float *residual(context &c)
{
    return (float *)(c.smem + c.p.x_row_off);
}

/* x = tok_embd[token] + pos_embd[position] */
__device__ __forceinline__ void embed_row(context &c, int b)
{
    const qb__decode_params &p = c.p;
    const uint16_t *token = p.tok_embd + (size_t)p.tokens[b] * p.table_stride;
    const uint16_t *place = p.pos_embd ? p.pos_embd + (size_t)c.position * p.table_stride : NULL;
    float *x = residual(c);
    for (int i = c.tid; i < (int)p.d_model; i += N_CONSUMERS)
        x[i] = bf16_float(token[i]) + (place ? bf16_float(place[i]) : 0.0f);
    consumers_sync();
}

/* ---- sources ---- */

struct from_residual { /* norm(x) */
    const float *x, *gain, *bias;
    float mean, inverse, g[4], h[4]; /* g, h: of the thread's first 4 values */
    int first, d;
    bool single;

    __device__ __forceinline__ void constants(int i, float a[4], float b[4]) const
    {
        if (single)
            a[0] = a[1] = a[2] = a[3] = gain[0];
        else
            load4(gain, i, d, a);
        b[0] = b[1] = b[2] = b[3] = 0.0f;
        if (bias) load4(bias, i, d, b);
    }
    __device__ __forceinline__ void get(const context &, int i, float v[4]) const
    {
        float a[4] = {g[0], g[1], g[2], g[3]}, b[4] = {h[0], h[1], h[2], h[3]};
        if (i != first) constants(i, a, b);
        const float4 q = *(const float4 *)(x + i);
        const float in[4] = {q.x, q.y, q.z, q.w};
#pragma unroll
        for (int e = 0; e < 4; e++) v[e] = (in[e] - mean) * inverse * a[e] + b[e];
    }
};

/* x += requantised y, and the norm's mean and 1 / deviation. LayerNorm sums about the mean of the
 * norm before: one reduction, and no cancellation while the mean moves less than the deviation. */
__device__ __forceinline__ from_residual add_pending(context &c, const float *y,
                                                     const qb__decode_linear &from,
                                                     const float *gain, const float *bias)
{
    const qb__decode_params &p = c.p;
    const int d = (int)p.d_model, first = c.tid * 4;
    float *x = residual(c), sum = 0.0f, squares = 0.0f;
    from_residual r = {x,  gain, bias,  0.0f, 0.0f,
                       {}, {},   first, d,    p.norm == QB_NORM_RMSNORM_SINGLE};
    if (first < d) r.constants(first, r.g, r.h); /* before the reduction waits */
    const requantizer finish(p, from);
    for (int i = first; i < d; i += QB__DECODE_STEP) {
        float4 q = *(const float4 *)(x + i);
        float v[4] = {q.x, q.y, q.z, q.w}, add[4] = {};
        if (y) load4_l2(y, i, add);
        if (y) finish.apply(add, i);
#pragma unroll
        for (int e = 0; e < 4; e++) {
            v[e] += add[e];
            const float centred = i + e < d ? v[e] - c.mean : 0.0f;
            sum += centred, squares += centred * centred;
        }
        if (y) *(float4 *)(x + i) = make_float4(v[0], v[1], v[2], v[3]);
    }
    const float2 all = block_sums(c, sum, squares);
    float variance = all.y * p.inverse_d;
    if (p.norm == QB_NORM_LAYERNORM) {
        const float shift = all.x * p.inverse_d;
        c.mean += shift;
        variance = fmaxf(variance - shift * shift, 0.0f);
    }
    r.mean = c.mean, r.inverse = rsqrtf(variance + p.eps);
    return r;
}

struct from_attention {    /* the heads' outputs, summed over the splits of the keys */
    const float *att, *ml; /* of this sequence */

    __device__ __forceinline__ void get(const context &c, int i, float v[4]) const
    {
        const qb__decode_params &p = c.p;
        const int splits = (int)p.n_splits, width = (int)p.head_dim;
        if (splits == 1) {
            load4_l2(att, i, v);
            return;
        }
        const int head = divide(i, p.by_head_dim), d = i - head * width;
        float2 most_sum[QB__DECODE_MAX_SPLITS];
        float part[QB__DECODE_MAX_SPLITS][4];
#pragma unroll
        for (int s = 0; s < QB__DECODE_MAX_SPLITS; s++) {
            const int at = head * splits + min(s, splits - 1);
            most_sum[s] = __ldcg((const float2 *)ml + at);
            load4_l2(att + (size_t)at * width, d, part[s]);
            if (s >= splits) most_sum[s] = make_float2(-INFINITY, 0.0f);
        }
        float most = p.softmax == QB_SOFTMAX1 ? 0.0f : -INFINITY;
#pragma unroll
        for (int s = 0; s < QB__DECODE_MAX_SPLITS; s++) most = fmaxf(most, most_sum[s].x);
        float sum = p.softmax == QB_SOFTMAX1 ? exp2_fast(-most) : 0.0f;
        v[0] = v[1] = v[2] = v[3] = 0.0f;
#pragma unroll
        for (int s = 0; s < QB__DECODE_MAX_SPLITS; s++) {
            const float f = most_sum[s].x == -INFINITY ? 0.0f : exp2_fast(most_sum[s].x - most);
            sum += f * most_sum[s].y;
#pragma unroll
            for (int e = 0; e < 4; e++) v[e] += f * part[s][e];
        }
        const float f = p.softmax == QB_SOFTMAX_RELU ? 1.0f
                        : sum > 0.0f                 ? __fdividef(1.0f, sum)
                                                     : 0;
#pragma unroll
        for (int e = 0; e < 4; e++) v[e] *= f;
    }
};

__device__ __forceinline__ float gelu_tanh(float v) /* 0.5 v (1 + tanh u) = v sigmoid(2 u) */
{
    const float u = 0.79788456080286535588f * (v + 0.044715f * v * v * v);
    return __fdividef(v, 1.0f + __expf(-2.0f * u));
}

__device__ __forceinline__ float swiglu(float up, float gate)
{
    return __fdividef(up * gate, 1.0f + __expf(-gate));
}

__device__ __forceinline__ float activate(uint32_t act, float v)
{
    return act == QB_ACT_RELU ? (v < 0.0f ? 0.0f : v) : gelu_tanh(v);
}

struct from_up { /* act(up), or silu(gate) * up; or as it is, where the product did that */
    const float *up;
    const requantizer &finish;

    __device__ __forceinline__ void get(const context &c, int i, float v[4]) const
    {
        const int width = (int)c.p.d_ff;
        load4_l2(up, i, v);
        if (c.p.act_in_epilogue) return;
        float y[4] = {v[0], v[1], v[2], v[3]}, gate[4];
        finish.apply(y, i);
        if (c.p.act == QB_ACT_SWIGLU) {
#pragma unroll
            for (int e = 0; e < 4; e++) gate[e] = __ldcg(up + min(width + i + e, 2 * width - 1));
            finish.apply(gate, width);
        }
#pragma unroll
        for (int e = 0; e < 4; e++)
            v[e] = c.p.act == QB_ACT_SWIGLU ? swiglu(y[e], gate[e]) : activate(c.p.act, y[e]);
    }
};

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

__device__ __forceinline__ void store_float(const qb__decode_linear &l, int i, const float v[4],
                                            char *row, float2 &sums)
{
    float x[4] = {v[0], v[1], v[2], v[3]};
    if (l.kind != QB_CUDA_LINEAR_U4) {
        *(uint2 *)(row + i * 2) = make_uint2(pack_bf16(x[0], x[1]), pack_bf16(x[2], x[3]));
        return;
    }
    if (l.x_scale) {
#pragma unroll
        for (int e = 0; e < 4; e++) x[e] *= l.x_scale[i + e];
    }
    const uint32_t lo = pack_bf16(x[0], x[1]), hi = pack_bf16(x[2], x[3]);
    const float rounded[4] = {bf16_float(lo & 0xffff), bf16_float(lo >> 16),
                              bf16_float(hi & 0xffff), bf16_float(hi >> 16)};
#pragma unroll
    for (int e = 0; e < 4; e++) {
        sums.x += rounded[e];
        if (l.x_zero_point) sums.y += rounded[e] * (float)l.x_zero_point[i + e];
    }
    store_u4_order(row, i, lo, hi);
}

__device__ __forceinline__ void store_codes(const qb__decode_linear &l, int i, const float v[4],
                                            const divisor &by, char *row)
{
    uint32_t word = 0;
    float s[4];
    if (l.input == QB_STAGE_CHANNEL) load4(l.in_scale, i, (int)l.k, s);
#pragma unroll
    for (int e = 0; e < 4; e++) {
        const float q = l.input == QB_STAGE_CHANNEL ? divisor(s[e]).code(v[e]) : by.code(v[e]);
        word |= ((uint32_t)(int)q & 0xff) << (8 * e);
    }
    *(uint32_t *)(row + i) = word;
}

/* The largest value of the row, and for TENSOR of the rows of the batch. `kept`: the thread's last
 * 4 values. */
template <typename S>
__device__ __forceinline__ float find_max(context &c, const qb__decode_linear &l, const S &source,
                                          float kept[4])
{
    float most = 0.0f;
    for (int i = c.tid * 4; i < (int)l.k; i += QB__DECODE_STEP) {
        source.get(c, i, kept);
#pragma unroll
        for (int e = 0; e < 4; e++)
            if (i + e < (int)l.k) most = fmaxf(most, fabsf(kept[e]));
    }
    most = block_max(c, most);
    if (l.input == QB_STAGE_TENSOR && c.p.batch > 1) {
        uint32_t *word = c.p.max_bits + l.slot + QB_CUDA_SEGMENTS;
        if (c.tid == 0) atomicMax(word, __float_as_uint(most));
        rows_sync(c);
        most = __uint_as_float(__ldcg(word));
    }
    return most;
}

/* The row as the product reads it; zeros past its width. Returns the codes' scale. */
template <typename S>
__device__ __forceinline__ float store_row(context &c, const qb__decode_linear &l, const S &source,
                                           bool max_known, char *row, float2 &sums)
{
    const bool s8 = l.kind == QB_CUDA_LINEAR_S8;
    const int width = (int)(s8 ? l.x_bytes : l.x_bytes / 2), k = (int)l.k;
    float scale = 1.0f, kept[4];
    bool have = false;
    if (s8 && l.input == QB_STAGE_STATIC) {
        scale = l.in_scale[0];
    } else if (s8 && l.input != QB_STAGE_CHANNEL) {
        const uint32_t *word = c.p.max_bits + l.slot + QB_CUDA_SEGMENTS;
        have = !max_known && k <= QB__DECODE_STEP;
        const float most = max_known ? __uint_as_float(__ldcg(word)) : find_max(c, l, source, kept);
        scale = scale_of_bits(__float_as_uint(most));
    }
    const divisor by(scale);
    sums = make_float2(0.0f, 0.0f);
    for (int i = c.tid * 4; i < width; i += QB__DECODE_STEP) {
        float v[4];
        if (!have && i < k) source.get(c, i, kept);
#pragma unroll
        for (int e = 0; e < 4; e++) v[e] = i + e < k ? kept[e] : 0.0f;
        if (s8)
            store_codes(l, i, v, by, row);
        else
            store_float(l, i, v, row, sums);
    }
    return scale;
}

} // namespace qb_decode
#endif
