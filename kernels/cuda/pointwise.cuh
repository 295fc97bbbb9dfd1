/* kernels/cuda/pointwise.cuh - what the pointwise kernels share: units of N neighbouring columns
 * held in registers, reductions over a row, and the quantiser.
 *
 * A row belongs to one row of threads of a block (threadIdx.y picks it): thread threadIdx.x holds
 * the units threadIdx.x, threadIdx.x + blockDim.x, ... The split depends on the width alone, so a
 * row's sums do not depend on how many rows there are. */
#ifndef QB_KERNELS_CUDA_POINTWISE_CUH
#define QB_KERNELS_CUDA_POINTWISE_CUH

#include "kernels/cuda/pointwise.h"

#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <math_constants.h>

enum { QB_ROW_WARPS = 16 }; /* most warps that share a row */

/* ---- units of N columns, as f32 ---- */

static __device__ __forceinline__ float qb_bf16_low(uint32_t pair)
{
    return __uint_as_float(pair << 16);
}
static __device__ __forceinline__ float qb_bf16_high(uint32_t pair)
{
    return __uint_as_float(pair & 0xffff0000u);
}
static __device__ __forceinline__ uint32_t qb_bf16_pair(float low, float high)
{
    uint32_t pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}
static __device__ __forceinline__ float qb_bf16_rounded(float x)
{
    return __bfloat162float(__float2bfloat16_rn(x));
}

static __device__ __forceinline__ float qb_load_one(const void *p, qb_cuda_dtype type, size_t at)
{
    if (type == QB_CUDA_F32) return ((const float *)p)[at];
    return __bfloat162float(((const __nv_bfloat16 *)p)[at]);
}
static __device__ __forceinline__ void qb_store_one(void *p, qb_cuda_dtype type, size_t at, float x)
{
    if (type == QB_CUDA_F32)
        ((float *)p)[at] = x;
    else
        ((__nv_bfloat16 *)p)[at] = __float2bfloat16_rn(x);
}

/* N of 4 or 8 elements from an address that is aligned to them. */
template <int N>
static __device__ __forceinline__ void qb_load(const void *p, qb_cuda_dtype type, size_t at,
                                               float (&v)[N])
{
    if (type == QB_CUDA_F32) {
        const float4 *from = (const float4 *)((const float *)p + at);
#pragma unroll
        for (int i = 0; i < N / 4; i++) {
            float4 f = from[i];
            v[4 * i] = f.x, v[4 * i + 1] = f.y, v[4 * i + 2] = f.z, v[4 * i + 3] = f.w;
        }
        return;
    }
    uint32_t pairs[N / 2];
    const __nv_bfloat16 *from = (const __nv_bfloat16 *)p + at;
    if constexpr (N == 8) {
        uint4 u = *(const uint4 *)from;
        pairs[0] = u.x, pairs[1] = u.y, pairs[2] = u.z, pairs[3] = u.w;
    } else {
        uint2 u = *(const uint2 *)from;
        pairs[0] = u.x, pairs[1] = u.y;
    }
#pragma unroll
    for (int i = 0; i < N / 2; i++)
        v[2 * i] = qb_bf16_low(pairs[i]), v[2 * i + 1] = qb_bf16_high(pairs[i]);
}

template <int N>
static __device__ __forceinline__ void qb_store(void *p, qb_cuda_dtype type, size_t at,
                                                const float (&v)[N])
{
    if (type == QB_CUDA_F32) {
        float4 *to = (float4 *)((float *)p + at);
#pragma unroll
        for (int i = 0; i < N / 4; i++)
            to[i] = make_float4(v[4 * i], v[4 * i + 1], v[4 * i + 2], v[4 * i + 3]);
        return;
    }
    uint32_t pairs[N / 2];
#pragma unroll
    for (int i = 0; i < N / 2; i++) pairs[i] = qb_bf16_pair(v[2 * i], v[2 * i + 1]);
    __nv_bfloat16 *to = (__nv_bfloat16 *)p + at;
    if constexpr (N == 8)
        *(uint4 *)to = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
    else
        *(uint2 *)to = make_uint2(pairs[0], pairs[1]);
}

/* Any alignment, columns from `width` on are 0. */
template <int N>
static __device__ __forceinline__ void qb_load_edge(const void *p, qb_cuda_dtype type, size_t at,
                                                    int n_inside, float (&v)[N])
{
#pragma unroll
    for (int i = 0; i < N; i++) v[i] = i < n_inside ? qb_load_one(p, type, at + i) : 0.0f;
}

/* ---- quantiser: (2) of pointwise.h ---- */

/* Adding it leaves the nearest integer, halves to even, in the low bits (for |x| < 2^22). */
#define QB_ROUNDER 12582912.0f

typedef struct qb_quantiser {
    float scale, inverse;
    bool normal; /* the inverse is good to an ulp: scale is neither 0, tiny, huge nor NaN */
} qb_quantiser;

static __device__ __forceinline__ qb_quantiser qb_quantiser_make(float scale)
{
    qb_quantiser q;
    q.scale = scale;
    q.inverse = __fdiv_rn(1.0f, scale);
    q.normal = scale > 0x1p-100f && scale < 0x1p100f;
    return q;
}
static __device__ __forceinline__ float qb_scale_of_max(float max_abs)
{
    return __fdiv_rn(max_abs, 127.0f);
}

/* The code as a float; NaN (of x, or inf / inf) gives 0. */
static __device__ __forceinline__ float qb_code_divided(float x, float scale)
{
    if (scale == 0.0f) return 0.0f;
    float r = rintf(__fdiv_rn(x, scale));
    if (r >= 127.0f) return 127.0f;
    if (r <= -127.0f) return -127.0f;
    return r == r ? r : 0.0f;
}

/* code[i] + QB_ROUNDER. The product with the inverse lies within 127.4 * 2^-23 + 2^-18 < 2e-5 of
 * the rounded quotient, so away from halves both round alike; near a half, and where the range or a
 * NaN asks for it, the true division decides. */
template <int N>
static __device__ __forceinline__ void qb_codes(const float (&v)[N], const qb_quantiser &q,
                                                float (&rounded)[N])
{
    bool sure = q.normal;
#pragma unroll
    for (int i = 0; i < N; i++) {
        float t = __fmul_rn(v[i], q.inverse);
        rounded[i] = __fadd_rn(t, QB_ROUNDER);
        float off = __fsub_rn(t, __fsub_rn(rounded[i], QB_ROUNDER));
        sure = sure && fabsf(off) < 0.49995f && fabsf(t) < 127.4f;
    }
    if (sure) return;
#pragma unroll
    for (int i = 0; i < N; i++) rounded[i] = __fadd_rn(qb_code_divided(v[i], q.scale), QB_ROUNDER);
}

static __device__ __forceinline__ uint32_t qb_pack_codes(const float *rounded)
{
    uint32_t low = __byte_perm(__float_as_uint(rounded[0]), __float_as_uint(rounded[1]), 0x0040),
             high = __byte_perm(__float_as_uint(rounded[2]), __float_as_uint(rounded[3]), 0x0040);
    return __byte_perm(low, high, 0x5410);
}

/* ---- requantising: (1) of pointwise.h ---- */

typedef struct qb_requantiser {
    bool on;
    qb_quantiser segment[QB_CUDA_SEGMENTS];
    int end[QB_CUDA_SEGMENTS]; /* the last one is beyond all columns */
} qb_requantiser;

static __device__ __forceinline__ qb_requantiser qb_requantiser_make(const qb_cuda_pending &p)
{
    qb_requantiser r;
    r.on = p.max_bits || p.scale;
    if (!r.on) return r;
#pragma unroll
    for (int i = 0; i < QB_CUDA_SEGMENTS; i++) {
        bool last = i >= p.segments.n - 1;
        r.end[i] = last ? 0x7fffffff : p.segments.end[i];
        int at = i < p.segments.n ? i : 0;
        r.segment[i] = qb_quantiser_make(
            p.scale ? p.scale[at] : qb_scale_of_max(__uint_as_float(p.max_bits[at])));
    }
    return r;
}

static __device__ __forceinline__ float qb_requantise_one(const qb_requantiser &r, int column,
                                                          float x)
{
    if (!r.on) return x;
    float scale = column < r.end[0]   ? r.segment[0].scale
                  : column < r.end[1] ? r.segment[1].scale
                                      : r.segment[2].scale;
    /* + 0: the code of -0.3 is the integer 0 */
    return __fmul_rn(__fadd_rn(qb_code_divided(x, scale), 0.0f), scale);
}

template <int N>
static __device__ __forceinline__ void qb_requantise(const qb_requantiser &r, int column,
                                                     float (&v)[N])
{
    if (!r.on) return;
    int first = (column >= r.end[0]) + (column >= r.end[1]),
        last = (column + N - 1 >= r.end[0]) + (column + N - 1 >= r.end[1]);
    if (first != last) {
#pragma unroll
        for (int i = 0; i < N; i++) v[i] = qb_requantise_one(r, column + i, v[i]);
        return;
    }
    qb_quantiser q = first == 0 ? r.segment[0] : first == 1 ? r.segment[1] : r.segment[2];
    float rounded[N];
    qb_codes(v, q, rounded);
#pragma unroll
    for (int i = 0; i < N; i++) v[i] = __fmul_rn(__fsub_rn(rounded[i], QB_ROUNDER), q.scale);
}

/* ---- reductions over a row ---- */

typedef struct qb_row_scratch { /* one a block; each reduction of a kernel has its own set */
    float value[3][32][QB_ROW_WARPS];
} qb_row_scratch;

static __device__ __forceinline__ float qb_sum_of(float a, float b)
{
    return __fadd_rn(a, b);
}
static __device__ __forceinline__ float qb_max_of(float a, float b)
{
    return fmaxf(a, b);
}

/* All threads of the block call it; every thread of the row gets the result, the same one. */
template <float (*op)(float, float)>
static __device__ __forceinline__ float qb_row_reduce(float v, qb_row_scratch &scratch, int set)
{
#pragma unroll
    for (int step = 16; step; step /= 2) v = op(v, __shfl_xor_sync(0xffffffffu, v, step));
    int n_warps = blockDim.x / 32;
    if (n_warps == 1) return v;
    float *slot = scratch.value[set][threadIdx.y];
    if (threadIdx.x % 32 == 0) slot[threadIdx.x / 32] = v;
    __syncthreads();
    v = slot[0];
    for (int i = 1; i < n_warps; i++) v = op(v, slot[i]);
    return v;
}

template <int N> static __device__ __forceinline__ float qb_unit_sum(const float (&v)[N])
{
    float s[N / 2];
#pragma unroll
    for (int i = 0; i < N / 2; i++) s[i] = __fadd_rn(v[2 * i], v[2 * i + 1]);
    if constexpr (N == 4)
        return __fadd_rn(s[0], s[1]);
    else
        return __fadd_rn(__fadd_rn(s[0], s[1]), __fadd_rn(s[2], s[3]));
}
template <int N>
static __device__ __forceinline__ float qb_unit_max(float max_abs, const float (&v)[N])
{
#pragma unroll
    for (int i = 0; i < N; i++) max_abs = fmaxf(max_abs, fabsf(v[i]));
    return max_abs;
}

/* *bits = max(*bits, max_abs's); most callers find it as large already. */
static __device__ __forceinline__ void qb_raise_max(uint32_t *bits, float max_abs)
{
    uint32_t mine = __float_as_uint(max_abs);
    if (mine > *(volatile uint32_t *)bits) atomicMax(bits, mine);
}

/* ---- staging ---- */

/* The scale of a stage that is known before the row is; TOKEN's comes from the row. */
static __device__ __forceinline__ float qb_stage_scale(const qb_cuda_stage &s)
{
    if (s.kind == QB_STAGE_TENSOR) return qb_scale_of_max(__uint_as_float(*s.max_bits));
    return s.kind == QB_STAGE_STATIC ? s.scale[0] : 0.0f;
}

template <int N>
static __device__ __forceinline__ void qb_stage_channels(const qb_cuda_stage &s, int column,
                                                         int width, const float (&v)[N],
                                                         float (&rounded)[N], float (&product)[N])
{
#pragma unroll
    for (int i = 0; i < N; i++) {
        float scale = column + i < width ? s.scale[column + i] : 0.0f;
        rounded[i] = __fadd_rn(qb_code_divided(v[i], scale), QB_ROUNDER);
        product[i] = __fmul_rn(__fsub_rn(rounded[i], QB_ROUNDER), scale);
    }
}

/* Writes one unit: columns from width on hold 0 in v. */
template <int N>
static __device__ __forceinline__ void qb_stage_unit(const qb_cuda_stage &s, size_t row, int column,
                                                     int width, const float (&v)[N],
                                                     const qb_quantiser &q)
{
    size_t at = row * s.stride + column;
    if (s.kind == QB_STAGE_FLOAT) {
        qb_store(s.y, s.type, at, v);
        return;
    }
    float rounded[N], product[N];
    if (s.kind == QB_STAGE_CHANNEL) {
        qb_stage_channels(s, column, width, v, rounded, product);
    } else {
        qb_codes(v, q, rounded);
#pragma unroll
        for (int i = 0; i < N; i++)
            product[i] = __fmul_rn(__fsub_rn(rounded[i], QB_ROUNDER), q.scale);
    }
    if (s.fake) {
        qb_store(s.y, s.type, at, product);
    } else if constexpr (N == 8) {
        *(uint2 *)(s.q + at) = make_uint2(qb_pack_codes(rounded), qb_pack_codes(rounded + 4));
    } else {
        *(uint32_t *)(s.q + at) = qb_pack_codes(rounded);
    }
}

/* ---- launch ---- */

/* Columns that a stage writes: the padding too, as far as the rows have room. */
static inline int qb_stage_columns(const qb_cuda_stage *s, size_t width)
{
    size_t padded = qb_cuda_stride(width);
    return (int)(s->stride < padded ? s->stride : padded);
}

/* Threads for rows of n_units units, at most `units_a_thread` each; a function of the width alone.
 */
static inline dim3 qb_row_block(size_t n_units, int units_a_thread)
{
    unsigned warps = (unsigned)((n_units + 32 * units_a_thread - 1) / (32 * units_a_thread));
    unsigned rows = warps >= 4 ? 1 : 4 / warps;
    return dim3(32 * warps, rows);
}

#endif
