/* kernels/cuda/logits.cu - statistics of rows of logits: one block a row, one trip over it.
 *
 * Each thread keeps a running maximum and, in double, sums relative to it; at the end all are made
 * relative to the row's maximum and added in a fixed order. With S = sum e^(a - max) and
 * D = sum e^(a - max) (a - b):
 *     kl = sum p (a - b) - lse_a + lse_b = D / S - lse_a + lse_b                                (1)
 */
#include "kernels/cuda/logits.h"
#include "kernels/cuda/scalar.cuh"

#include <cuda_runtime.h>
#include <math_constants.h>

namespace
{
enum { THREADS = 512, WARPS = THREADS / 32, UNIT = 4, NO_TOP = 0x7fffffff };

/* One thread's share of one matrix's row. */
struct running {
    float max;  /* largest so far, NaN left out; -inf at first */
    int top;    /* its lowest index; NO_TOP at first */
    double sum; /* of e^(x - max) */
};

struct running_pair {
    running a, b;
    double difference; /* sum of e^(a - a.max) (a - b) */
    float max_diff;
    bool infinite; /* b is -inf somewhere where a is not */
};

__device__ __forceinline__ running running_start()
{
    return {-CUDART_INF_F, NO_TOP, 0.0};
}

/* ---- one thread's share ---- */

/* Groups of UNIT columns, THREADS groups apart; columns from vocab on are -inf. */
template <int GROUPS>
__device__ __forceinline__ void load(const float *row, int first, int vocab,
                                     float (&v)[GROUPS * UNIT])
{
#pragma unroll
    for (int g = 0; g < GROUPS; g++) {
        const int column = first + g * THREADS * UNIT;
        if (column + UNIT <= vocab) {
            float4 f = *(const float4 *)(row + column);
            v[4 * g] = f.x, v[4 * g + 1] = f.y, v[4 * g + 2] = f.z, v[4 * g + 3] = f.w;
            continue;
        }
#pragma unroll
        for (int i = 0; i < UNIT; i++)
            v[4 * g + i] = column + i < vocab ? row[column + i] : -CUDART_INF_F;
    }
}

/* e^x to about 3 ulp for x <= 0, tiny results are 0. A NaN stays one, and spoils the sum. */
__device__ __forceinline__ float power(float x)
{
    return qb_exp2(x * QB_LOG2E);
}

/* What is subtracted: the maximum, or 0 as long as there is nothing but -inf. */
__device__ __forceinline__ float base_of(const running &r)
{
    return r.max == -CUDART_INF_F ? 0.0f : r.max;
}

/* Raises the maximum to that of v; returns the factor for sums relative to the old one. */
template <int GROUPS>
__device__ __forceinline__ double raise(running &r, int first, const float (&v)[GROUPS * UNIT])
{
    float largest = v[0];
#pragma unroll
    for (int i = 1; i < GROUPS * UNIT; i++) largest = fmaxf(largest, v[i]);
    if (!(largest > r.max)) return 1.0;
#pragma unroll
    for (int i = GROUPS * UNIT - 1; i >= 0; i--)
        if (v[i] == largest) r.top = first + i / UNIT * THREADS * UNIT + i % UNIT;
    const double factor = r.max == -CUDART_INF_F ? 0.0 : (double)expf(r.max - largest);
    r.max = largest;
    return factor;
}

template <int N>
__device__ __forceinline__ void add_powers(running &r, double factor, const float (&v)[N],
                                           float (&e)[N])
{
    const float base = base_of(r);
    float sums[N / UNIT];
#pragma unroll
    for (int i = 0; i < N; i++) e[i] = power(v[i] - base);
#pragma unroll
    for (int g = 0; g < N / UNIT; g++)
        sums[g] = (e[4 * g] + e[4 * g + 1]) + (e[4 * g + 2] + e[4 * g + 3]);
    if (factor != 1.0) r.sum *= factor;
#pragma unroll
    for (int g = 0; g < N / UNIT; g++) r.sum += (double)sums[g];
}

template <int GROUPS>
__device__ __forceinline__ void add_pair(running_pair &r, int first,
                                         const float (&a)[GROUPS * UNIT],
                                         const float (&b)[GROUPS * UNIT])
{
    float e[GROUPS * UNIT], unused[GROUPS * UNIT];
    const double factor = raise<GROUPS>(r.a, first, a), factor_b = raise<GROUPS>(r.b, first, b);
    add_powers(r.a, factor, a, e);
    add_powers(r.b, factor_b, b, unused);
    if (factor != 1.0) r.difference *= factor;
#pragma unroll
    for (int g = 0; g < GROUPS; g++) {
        float sum = 0.0f;
#pragma unroll
        for (int i = 4 * g; i < 4 * g + UNIT; i++) {
            const float diff = a[i] - b[i];
            const bool counts = a[i] != -CUDART_INF_F, masked = b[i] == -CUDART_INF_F;
            r.max_diff = fmaxf(r.max_diff, fabsf(diff)); /* a NaN of inf - inf is left out */
            r.infinite |= counts && masked;
            if (counts && !masked) sum += e[i] * diff;
        }
        r.difference += (double)sum;
    }
}

/* ---- joining the threads of a block ---- */

struct block_scratch {
    double sum[3][WARPS];
    float max[3][WARPS];
    int top[2][WARPS];
};

/* All threads get the row's maximum, and its lowest index; the sum becomes relative to it. Returns
 * the factor that does so. */
__device__ __forceinline__ double join_max(running &r, block_scratch &s, int which)
{
    float max = r.max;
    int top = r.top;
#pragma unroll
    for (int step = 16; step; step /= 2) {
        const float other = __shfl_xor_sync(0xffffffffu, max, step);
        const int other_top = __shfl_xor_sync(0xffffffffu, top, step);
        if (other > max || (other == max && other_top < top)) max = other, top = other_top;
    }
    if (threadIdx.x % 32 == 0)
        s.max[which][threadIdx.x / 32] = max, s.top[which][threadIdx.x / 32] = top;
    __syncthreads();
    for (int i = 0; i < WARPS; i++) {
        const float other = s.max[which][i];
        const int other_top = s.top[which][i];
        if (other > max || (other == max && other_top < top)) max = other, top = other_top;
    }
    const double factor = r.max == max ? 1.0 : exp((double)r.max - (double)max); /* -inf gives 0 */
    r.sum *= factor;
    r.max = max;
    r.top = top;
    return factor;
}

/* Thread 0 gets the sum of all. */
__device__ __forceinline__ double join_sum(double v, block_scratch &s, int which)
{
#pragma unroll
    for (int step = 16; step; step /= 2) v += __shfl_xor_sync(0xffffffffu, v, step);
    if (threadIdx.x % 32 == 0) s.sum[which][threadIdx.x / 32] = v;
    __syncthreads();
    if (threadIdx.x) return v;
    v = 0.0;
    for (int i = 0; i < WARPS; i++) v += s.sum[which][i];
    return v;
}

__device__ __forceinline__ float join_max_diff(float v, block_scratch &s)
{
#pragma unroll
    for (int step = 16; step; step /= 2) v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, step));
    if (threadIdx.x % 32 == 0) s.max[2][threadIdx.x / 32] = v;
    __syncthreads();
    for (int i = 0; i < WARPS; i++) v = fmaxf(v, s.max[2][i]);
    return v;
}

/* ---- one row's result ---- */

__device__ __forceinline__ double logsumexp(const running &r, float first)
{
    if (first != first) return CUDART_NAN; /* the reference's maximum starts there */
    if (isinf(r.max)) return r.max;
    return (double)r.max + log(r.sum);
}

/* An index that no value was larger than -inf for is 0, as is that of a row that starts with NaN.
 */
__device__ __forceinline__ int32_t top_index(const running &r, float first)
{
    return r.top == NO_TOP || first != first ? 0 : r.top;
}

__device__ __forceinline__ void write_pair(const running_pair &r, const float *a, const float *b,
                                           int32_t target, qb_logit_stats *out)
{
    const double lse_a = logsumexp(r.a, a[0]), lse_b = logsumexp(r.b, b[0]);
    double kl = r.difference / r.a.sum - lse_a + lse_b;
    if (isinf(lse_a) || isinf(lse_b))
        kl = CUDART_NAN;
    else if (r.infinite && lse_a == lse_a && lse_b == lse_b)
        kl = CUDART_INF;
    out->kl = kl < 0 ? 0 : kl;
    out->max_diff = r.max_diff;
    out->nll_a = target < 0 ? 0 : lse_a - (double)a[target];
    out->nll_b = target < 0 ? 0 : lse_b - (double)b[target];
    out->top_a = top_index(r.a, a[0]);
    out->top_b = top_index(r.b, b[0]);
}

__global__ void __launch_bounds__(THREADS, 2)
    stats_of_pairs(const float *a_rows, const float *b_rows, int vocab, size_t stride,
                   const int32_t *target, qb_logit_stats *out)
{
    enum { GROUPS = 2 };
    __shared__ block_scratch shared;
    const float *a = a_rows + blockIdx.x * stride, *b = b_rows + blockIdx.x * stride;
    running_pair mine = {running_start(), running_start(), 0.0, 0.0f, false};
    for (int column = threadIdx.x * UNIT; column < vocab; column += GROUPS * THREADS * UNIT) {
        float va[GROUPS * UNIT], vb[GROUPS * UNIT];
        load<GROUPS>(a, column, vocab, va);
        load<GROUPS>(b, column, vocab, vb);
        add_pair<GROUPS>(mine, column, va, vb);
    }
    mine.difference *= join_max(mine.a, shared, 0);
    join_max(mine.b, shared, 1);
    mine.a.sum = join_sum(mine.a.sum, shared, 0);
    mine.b.sum = join_sum(mine.b.sum, shared, 1);
    mine.difference = join_sum(mine.difference, shared, 2);
    mine.max_diff = join_max_diff(mine.max_diff, shared);
    mine.infinite = __syncthreads_or(mine.infinite);
    if (threadIdx.x == 0)
        write_pair(mine, a, b, target ? target[blockIdx.x] : -1, &out[blockIdx.x]);
}

__global__ void __launch_bounds__(THREADS, 2)
    stats_of_rows(const float *rows, int vocab, size_t stride, const int32_t *target,
                  qb_logit_stats *out)
{
    enum { GROUPS = 4 };
    __shared__ block_scratch shared;
    const float *a = rows + blockIdx.x * stride;
    running mine = running_start();
    for (int column = threadIdx.x * UNIT; column < vocab; column += GROUPS * THREADS * UNIT) {
        float v[GROUPS * UNIT], e[GROUPS * UNIT];
        load<GROUPS>(a, column, vocab, v);
        const double factor = raise<GROUPS>(mine, column, v);
        add_powers(mine, factor, v, e);
    }
    join_max(mine, shared, 0);
    mine.sum = join_sum(mine.sum, shared, 0);
    if (threadIdx.x) return;
    const int32_t wanted = target ? target[blockIdx.x] : -1;
    qb_logit_stats stats = {0, 0, 0, 0.0f, 0, 0};
    if (wanted >= 0) stats.nll_a = logsumexp(mine, a[0]) - (double)a[wanted];
    stats.top_a = top_index(mine, a[0]);
    out[blockIdx.x] = stats;
}

__global__ void __launch_bounds__(THREADS, 2)
    argmax_of_rows(const float *rows, int vocab, size_t stride, int32_t *ids)
{
    enum { GROUPS = 4 };
    __shared__ block_scratch shared;
    const float *a = rows + blockIdx.x * stride;
    running mine = running_start();
    for (int column = threadIdx.x * UNIT; column < vocab; column += GROUPS * THREADS * UNIT) {
        float v[GROUPS * UNIT];
        load<GROUPS>(a, column, vocab, v);
        raise<GROUPS>(mine, column, v);
    }
    join_max(mine, shared, 0);
    if (threadIdx.x == 0) ids[blockIdx.x] = top_index(mine, a[0]);
}

qb_status check(size_t m, size_t vocab, size_t stride, const void *a, const void *b)
{
    if (vocab == 0 || vocab > 0x7fffffff - 4 * THREADS * UNIT || m > 0x7fffffff)
        return QB_FAIL(QB_ERR_SHAPE, "logits: %zu rows of %zu, expected 1 to 2^31 - 8193", m,
                       vocab);
    if (stride % UNIT || ((uintptr_t)a | (uintptr_t)b) % 16)
        return QB_FAIL(QB_ERR_SHAPE, "logits: rows %zu apart are not aligned to 16 bytes", stride);
    return QB_OK;
}
} /* namespace */

qb_status qb_cuda_logit_stats(const float *a, const float *b, size_t m, size_t vocab, size_t stride,
                              const int32_t *target, qb_logit_stats *out, qb_cuda_stream stream)
{
    if (m == 0) return QB_OK;
    QB_TRY(check(m, vocab, stride, a, b));
    if (b)
        stats_of_pairs<<<(unsigned)m, THREADS, 0, stream>>>(a, b, (int)vocab, stride, target, out);
    else
        stats_of_rows<<<(unsigned)m, THREADS, 0, stream>>>(a, (int)vocab, stride, target, out);
    QB_CUDA_TRY(cudaGetLastError());
    return QB_OK;
}

qb_status qb_cuda_argmax(const float *logits, size_t m, size_t vocab, size_t stride, int32_t *ids,
                         qb_cuda_stream stream)
{
    if (m == 0) return QB_OK;
    QB_TRY(check(m, vocab, stride, logits, NULL));
    argmax_of_rows<<<(unsigned)m, THREADS, 0, stream>>>(logits, (int)vocab, stride, ids);
    QB_CUDA_TRY(cudaGetLastError());
    return QB_OK;
}

const qb_cuda_logits_row qb_cuda_logits_kernels[] = {
    {{"logits/cuda", "cuda", QB_CUDA_SM80}, qb_cuda_logit_stats, qb_cuda_argmax},
    {{nullptr, nullptr, 0}, nullptr, nullptr},
};
