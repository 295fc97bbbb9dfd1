/* kernels/cuda/pointwise.cuh - what the pointwise kernels share: units of N neighbouring columns
 * held in registers, reductions over a row, and the quantiser.
 *
 * A row belongs to one row of threads of a block (threadIdx.y picks it): thread threadIdx.x holds
 * the units threadIdx.x, threadIdx.x + blockDim.x, ... The split depends on the width alone, so a
 * row's sums do not depend on how many rows there are. Blocks stay and take row after row: while
 * one is reduced, the copies of the next are under way to shared memory, each thread's to a place
 * of its own, so that nobody has to wait for another thread's. */
#ifndef QB_KERNELS_CUDA_POINTWISE_CUH
#define QB_KERNELS_CUDA_POINTWISE_CUH

#include "kernels/cuda/pointwise.h"
#include "kernels/cuda/scalar.cuh"

#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <math_constants.h>

enum { QB_ROW_WARPS = 16, QB_BLOCK_ROWS = 4 }; /* most warps a row, most rows a block */

/* How a launch ends on the host: QB_OK once it is queued. */
static inline qb_status qb_launched()
{
    QB_CUDA_TRY(cudaGetLastError());
    return QB_OK;
}

/* ---- units of N columns, as f32 ---- */

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

/* Columns from n_inside on become 0; most units have none. */
template <int N> static __device__ __forceinline__ void qb_clear_edge(int n_inside, float (&v)[N])
{
    if (n_inside >= N) return;
#pragma unroll
    for (int i = 0; i < N; i++) v[i] = i < n_inside ? v[i] : 0.0f;
}

/* ---- copies that run ahead ---- */

/* `inside` bytes of the BYTES are copied, the others become 0. Both addresses are aligned. */
template <int BYTES>
static __device__ __forceinline__ void qb_copy_ahead(void *shared, const void *global, int inside)
{
    uint32_t to = (uint32_t)__cvta_generic_to_shared(shared);
    if constexpr (BYTES == 16)
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global),
                     "r"(inside)
                     : "memory");
    else
        asm volatile("cp.async.ca.shared.global [%0], [%1], %3, %2;" ::"r"(to), "l"(global),
                     "r"(inside), "n"(BYTES)
                     : "memory");
}
static __device__ __forceinline__ void qb_copies_commit()
{
    asm volatile("cp.async.commit_group;" ::: "memory");
}
/* All of this thread's copies but those of the last LATER commits have arrived. */
template <int LATER> static __device__ __forceinline__ void qb_copies_wait()
{
    asm volatile("cp.async.wait_group %0;" ::"n"(LATER) : "memory");
}

/* ---- quantiser: (2) of pointwise.h ---- */

/* Adding it leaves the nearest integer, halves to even, in the low bits (for |x| < 2^22). */
#define QB_ROUNDER 12582912.0f

typedef struct qb_quantiser {
    float scale, inverse; /* inverse: 1 / scale, correctly rounded */
    bool normal;          /* no step below can under- or overflow for codes that are not 0 */
} qb_quantiser;

static __device__ __forceinline__ qb_quantiser qb_quantiser_make(float scale)
{
    qb_quantiser q;
    q.scale = scale;
    q.inverse = __frcp_rn(scale);
    q.normal = scale > 0x1p-90f && scale < 0x1p90f;
    return q;
}

/* max_abs / 127, correctly rounded: checked for all significands. */
static __device__ __forceinline__ float qb_scale_of_max(float max_abs)
{
    const float inverse = 0x1.020408p-7f; /* 1 / 127, rounded */
    float t = __fmul_rn(max_abs, inverse);
    t = __fmaf_rn(__fmaf_rn(-127.0f, t, max_abs), inverse, t);
    return max_abs > 0x1p-90f && max_abs < 0x1p90f ? t : __fdiv_rn(max_abs, 127.0f);
}

/* The code as a float; NaN (of x, or inf / inf) gives 0. A call, for it is rare and its registers
 * are not. */
static __device__ __noinline__ float qb_code_divided(float x, float scale)
{
    if (scale == 0.0f) return 0.0f;
    float r = rintf(__fdiv_rn(x, scale));
    if (r >= 127.0f) return 127.0f;
    if (r <= -127.0f) return -127.0f;
    return r == r ? r : 0.0f;
}

/* code[i] + QB_ROUNDER. The product with the rounded inverse, corrected once by its remainder, is
 * within 2^-46 of the quotient; checked for all significands of the scale, all halves of codes and
 * the floats around them, that it rounds to the code that the rounded quotient has. What is out of
 * range or NaN takes the true division. */
template <int N>
static __device__ __forceinline__ void qb_codes(const float (&v)[N], const qb_quantiser &q,
                                                float (&rounded)[N])
{
    bool sure = q.normal;
#pragma unroll
    for (int i = 0; i < N; i++) {
        float t = __fmul_rn(v[i], q.inverse);
        t = __fmaf_rn(__fmaf_rn(-t, q.scale, v[i]), q.inverse, t);
        rounded[i] = __fadd_rn(t, QB_ROUNDER);
        sure = sure && fabsf(t) < 127.4f;
    }
    if (sure) return;
#pragma unroll 1
    for (int i = 0; i < N; i++) {
        /* no run-time index into registers: each pass of the loop fixes one element */
        float x = 0.0f;
#pragma unroll
        for (int j = 0; j < N; j++) x = j == i ? v[j] : x;
        float code = __fadd_rn(qb_code_divided(x, q.scale), QB_ROUNDER);
#pragma unroll
        for (int j = 0; j < N; j++) rounded[j] = j == i ? code : rounded[j];
    }
}

static __device__ __forceinline__ uint32_t qb_pack_codes(const float *rounded)
{
    uint32_t low = __byte_perm(__float_as_uint(rounded[0]), __float_as_uint(rounded[1]), 0x0040),
             high = __byte_perm(__float_as_uint(rounded[2]), __float_as_uint(rounded[3]), 0x0040);
    return __byte_perm(low, high, 0x5410);
}

/* ---- requantising: (1) of pointwise.h ---- */

typedef struct qb_requantiser {
    qb_quantiser segment[QB_CUDA_SEGMENTS];
    int end[QB_CUDA_SEGMENTS]; /* the last one is beyond all columns */
} qb_requantiser;

/* Into shared memory; all threads of the block call it. */
static __device__ __forceinline__ void qb_requantiser_init(qb_requantiser &r,
                                                           const qb_cuda_pending &p)
{
    if (!p.max_bits && !p.scale) return;
    const int i = threadIdx.x, n = p.segments.n;
    if (i < QB_CUDA_SEGMENTS && threadIdx.y == 0) {
        const int at = i < n ? i : 0;
        r.end[i] = i >= n - 1 ? 0x7fffffff : p.segments.end[i];
        r.segment[i] = qb_quantiser_make(
            p.scale ? p.scale[at] : qb_scale_of_max(__uint_as_float(p.max_bits[at])));
    }
    __syncthreads();
}

static __device__ __forceinline__ float qb_requantise_one(const qb_requantiser &r, int column,
                                                          float x)
{
    const float scale = r.segment[(column >= r.end[0]) + (column >= r.end[1])].scale;
    /* + 0: the code of -0.3 is the integer 0 */
    return __fmul_rn(__fadd_rn(qb_code_divided(x, scale), 0.0f), scale);
}

template <int N>
static __device__ __forceinline__ void qb_requantise(const qb_requantiser &r, int column,
                                                     float (&v)[N])
{
    int first = (column >= r.end[0]) + (column >= r.end[1]),
        last = (column + N - 1 >= r.end[0]) + (column + N - 1 >= r.end[1]);
    if (first != last) {
#pragma unroll
        for (int i = 0; i < N; i++) v[i] = qb_requantise_one(r, column + i, v[i]);
        return;
    }
    const qb_quantiser q = r.segment[first];
    float rounded[N];
    qb_codes(v, q, rounded);
#pragma unroll
    for (int i = 0; i < N; i++) v[i] = __fmul_rn(__fsub_rn(rounded[i], QB_ROUNDER), q.scale);
}

/* ---- reductions over a row ---- */

/* One a block. Each reduction of a row has its own set, and each other row its own copy of them: a
 * thread that is ahead overwrites nothing that another still reads. */
typedef struct qb_row_scratch {
    float value[2][3][QB_BLOCK_ROWS][QB_ROW_WARPS];
} qb_row_scratch;

/* The sum over a warp, the same in every lane. */
template <typename T> static __device__ __forceinline__ T qb_warp_sum(T v)
{
#pragma unroll
    for (int step = 16; step; step /= 2) v += __shfl_xor_sync(0xffffffffu, v, step);
    return v;
}

/* The sum over the row's threads. All threads of the block call it; every thread of the row gets
 * the result, the same one. */
static __device__ __forceinline__ float qb_row_sum(float v, qb_row_scratch &scratch, int odd,
                                                   int set)
{
    const int n_warps = blockDim.x / 32, lane = threadIdx.x % 32;
#pragma unroll
    for (int step = 16; step; step /= 2) v = __fadd_rn(v, __shfl_xor_sync(0xffffffffu, v, step));
    if (n_warps == 1) return v;
    float *slot = scratch.value[odd][set][threadIdx.y];
    if (lane == 0) slot[threadIdx.x / 32] = v;
    __syncthreads();
    v = lane % QB_ROW_WARPS < n_warps ? slot[lane % QB_ROW_WARPS] : 0.0f;
#pragma unroll
    for (int step = QB_ROW_WARPS / 2; step; step /= 2)
        v = __fadd_rn(v, __shfl_xor_sync(0xffffffffu, v, step));
    return v;
}

/* The same for the maximum of values that are not negative: they compare like their bits. */
static __device__ __forceinline__ float qb_row_max(float v, qb_row_scratch &scratch, int odd,
                                                   int set)
{
    const int n_warps = blockDim.x / 32, lane = threadIdx.x % 32;
    v = __uint_as_float(__reduce_max_sync(0xffffffffu, __float_as_uint(v)));
    if (n_warps == 1) return v;
    float *slot = scratch.value[odd][set][threadIdx.y];
    if (lane == 0) slot[threadIdx.x / 32] = v;
    __syncthreads();
    v = lane < n_warps ? slot[lane] : 0.0f;
    return __uint_as_float(__reduce_max_sync(0xffffffffu, __float_as_uint(v)));
}

static __device__ __forceinline__ float qb_unit_sum(const float (&v)[4])
{
    return __fadd_rn(__fadd_rn(v[0], v[1]), __fadd_rn(v[2], v[3]));
}
static __device__ __forceinline__ float qb_unit_squares(const float (&v)[4])
{
    return __fadd_rn(__fmaf_rn(v[0], v[0], __fmul_rn(v[1], v[1])),
                     __fmaf_rn(v[2], v[2], __fmul_rn(v[3], v[3])));
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

template <int N>
static __device__ __forceinline__ void qb_store_codes(int8_t *q, const float (&rounded)[N])
{
    if constexpr (N == 8)
        *(uint2 *)q = make_uint2(qb_pack_codes(rounded), qb_pack_codes(rounded + 4));
    else
        *(uint32_t *)q = qb_pack_codes(rounded);
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
    if (s.fake)
        qb_store(s.y, s.type, at, product);
    else
        qb_store_codes(s.q + at, rounded);
}

/* Writes this thread's units of a row. WHOLE: all of them lie inside the width. */
template <bool WHOLE, int V, int N>
static __device__ __forceinline__ void qb_stage_row(const qb_cuda_stage &s, size_t row, int width,
                                                    int n_columns, const float (&v)[V][N],
                                                    const qb_quantiser &q)
{
    const int first = threadIdx.x * N, step = blockDim.x * N;
    if (WHOLE && s.kind != QB_STAGE_FLOAT && s.kind != QB_STAGE_CHANNEL && !s.fake) {
        int8_t *to = s.q + row * s.stride + first;
#pragma unroll
        for (int u = 0; u < V; u++) {
            float rounded[N];
            qb_codes(v[u], q, rounded);
            qb_store_codes(to + u * step, rounded);
        }
        return;
    }
#pragma unroll
    for (int u = 0; u < V; u++)
        if (WHOLE || first + u * step < n_columns)
            qb_stage_unit(s, row, first + u * step, width, v[u], q);
}

/* ---- launch ---- */

/* Columns of this unit that lie inside the width; may be negative, or more than the unit has. With
 * WHOLE, which the launch has checked, the compiler knows and drops what edges need. */
template <bool WHOLE, int N> static __device__ __forceinline__ int qb_inside(int width, int column)
{
    return WHOLE ? N : width - column;
}

/* Columns that a stage writes: the padding too, as far as the rows have room. */
static inline int qb_stage_columns(const qb_cuda_stage *s, size_t width)
{
    size_t padded = qb_cuda_stride(width);
    return (int)(s->stride < padded ? s->stride : padded);
}

/* Threads for rows of n_units units, units_a_thread each: a function of the width alone. */
static inline dim3 qb_row_block(size_t n_units, int units_a_thread)
{
    unsigned warps = (unsigned)((n_units + 32 * units_a_thread - 1) / (32 * units_a_thread));
    return dim3(32 * warps, warps >= QB_BLOCK_ROWS ? 1 : QB_BLOCK_ROWS / warps);
}

/* As many blocks as fit on the device at once, or as there are rows for. The driver is asked once a
 * kernel and shape. */
template <auto KERNEL>
static inline qb_status qb_row_grid(dim3 block, size_t shared_bytes, size_t m, unsigned *grid)
{
    static thread_local struct {
        int device;
        unsigned threads;
        size_t shared_bytes, n_blocks;
    } known = {-1, 0, 0, 0};
    const unsigned threads = block.x * block.y;
    int device;
    QB_CUDA_TRY(cudaGetDevice(&device));
    if (device != known.device || threads != known.threads || shared_bytes != known.shared_bytes) {
        int n_sms, a_sm, most;
        QB_CUDA_TRY(cudaDeviceGetAttribute(&n_sms, cudaDevAttrMultiProcessorCount, device));
        QB_CUDA_TRY(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
        /* always the same value, since other threads set it too; less what is not dynamic */
        QB_CUDA_TRY(
            cudaFuncSetAttribute(KERNEL, cudaFuncAttributeMaxDynamicSharedMemorySize, most - 4096));
        QB_CUDA_TRY(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&a_sm, KERNEL, (int)threads,
                                                                  shared_bytes));
        known = {device, threads, shared_bytes, (size_t)n_sms * (a_sm > 0 ? a_sm : 1)};
    }
    const size_t wanted = (m + block.y - 1) / block.y;
    *grid = (unsigned)(wanted < known.n_blocks ? wanted : known.n_blocks);
    return QB_OK;
}

#endif
