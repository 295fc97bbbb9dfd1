/* kernels/cuda/logits.cu - statistics of rows of logits: one block a row, one trip over it.
 *
 * Each thread keeps a running maximum and sums relative to it, in double; what threads have is
 * joined in a fixed order. With the sums S = sum e^(a - max) and D = sum e^(a - max) (a - b),
 *     kl = sum p (a - b) - lse_a + lse_b = D / S - lse_a + lse_b                                (1)
 */
#include "kernels/cuda/logits.h"

#include <cuda_runtime.h>
#include <math_constants.h>

namespace
{
enum { THREADS = 512, WARPS = THREADS / 32, UNIT = 4 };

/* The running log-sum-exp of one matrix. */
struct running {
    float max;  /* largest so far, NaN left out; -inf at first */
    int top;    /* its lowest index; INT_MAX at first */
    double sum; /* of e^(x - max) */
};

__device__ __forceinline__ running running_start()
{
    return {-CUDART_INF_F, 0x7fffffff, 0.0};
}

/* What sums relative to `from` are multiplied by to be relative to `to`. */
__device__ __forceinline__ double rescale(float from, float to)
{
    return from == to ? 1.0 : exp((double)from - (double)to);
}

/* e^(x - max); with nothing but -inf so far, 0. A NaN stays one, and spoils the sum. */
__device__ __forceinline__ float power(float x, float max)
{
    return expf(x - (max == -CUDART_INF_F ? 0.0f : max));
}

__device__ __forceinline__ void join(running &r, const running &o)
{
    float max = fmaxf(r.max, o.max);
    if (max != -CUDART_INF_F)
        r.sum = r.sum * rescale(r.max, max) + o.sum * rescale(o.max, max);
    else
        r.sum += o.sum;
    if (o.max > r.max || (o.max == r.max && o.top < r.top)) r.top = o.top;
    r.max = max;
}

struct row_sums {
    running a, b;
    double difference; /* sum of e^(a - a.max) (a - b) */
    float max_diff;
    int infinite; /* b is -inf somewhere where a is not */
};

__device__ __forceinline__ void join(row_sums &r, const row_sums &o)
{
    float max = fmaxf(r.a.max, o.a.max);
    if (max != -CUDART_INF_F)
        r.difference = r.difference * rescale(r.a.max, max) + o.difference * rescale(o.a.max, max);
    else
        r.difference += o.difference;
    join(r.a, o.a);
    join(r.b, o.b);
    r.max_diff = fmaxf(r.max_diff, o.max_diff);
    r.infinite |= o.infinite;
}

/* ---- one thread's share ---- */

/* UNIT columns from `column`; columns from vocab on are -inf. */
__device__ __forceinline__ void load(const float *row, int column, int vocab, float (&v)[UNIT])
{
    if (column + UNIT <= vocab) {
        float4 f = *(const float4 *)(row + column);
        v[0] = f.x, v[1] = f.y, v[2] = f.z, v[3] = f.w;
        return;
    }
#pragma unroll
    for (int i = 0; i < UNIT; i++) v[i] = column + i < vocab ? row[column + i] : -CUDART_INF_F;
}

/* Raises the maximum; returns the factor for sums relative to the old one. */
__device__ __forceinline__ double raise(running &r, int column, const float (&v)[UNIT])
{
    const float before = r.max;
#pragma unroll
    for (int i = 0; i < UNIT; i++)
        if (v[i] > r.max) r.max = v[i], r.top = column + i;
    if (r.max == before) return 1.0;
    double factor = before == -CUDART_INF_F ? 0.0 : rescale(before, r.max);
    r.sum = r.sum * factor;
    return factor;
}

__device__ __forceinline__ void add_powers(running &r, const float (&v)[UNIT], float (&e)[UNIT])
{
#pragma unroll
    for (int i = 0; i < UNIT; i++) e[i] = power(v[i], r.max);
    r.sum += (double)(e[0] + e[1]) + (double)(e[2] + e[3]);
}

__device__ __forceinline__ void add_unit(row_sums &r, int column, const float (&a)[UNIT],
                                         const float (&b)[UNIT])
{
    float e[UNIT], unused[UNIT];
    double factor = raise(r.a, column, a);
    raise(r.b, column, b);
    if (factor != 1.0) r.difference *= factor;
    add_powers(r.a, a, e);
    add_powers(r.b, b, unused);
#pragma unroll
    for (int i = 0; i < UNIT; i++) {
        float diff = a[i] - b[i];
        r.max_diff = fmaxf(r.max_diff, fabsf(diff)); /* a NaN of inf - inf is left out */
        bool counts = a[i] != -CUDART_INF_F, masked = b[i] == -CUDART_INF_F;
        r.infinite |= counts && masked;
        if (counts && !masked) r.difference += (double)(e[i] * diff);
    }
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
    return r.top == 0x7fffffff || first != first ? 0 : r.top;
}

__device__ __forceinline__ void write_pair(const row_sums &r, const float *a, const float *b,
                                           int32_t target, qb_logit_stats *out)
{
    double lse_a = logsumexp(r.a, a[0]), lse_b = logsumexp(r.b, b[0]), kl;
    if (isinf(lse_a) || isinf(lse_b))
        kl = CUDART_NAN;
    else if (r.infinite && lse_a == lse_a && lse_b == lse_b)
        kl = CUDART_INF;
    else
        kl = r.difference / r.a.sum - lse_a + lse_b;
    out->kl = kl < 0 ? 0 : kl;
    out->max_diff = r.max_diff;
    out->nll_a = target < 0 ? 0 : lse_a - (double)a[target];
    out->nll_b = target < 0 ? 0 : lse_b - (double)b[target];
    out->top_a = top_index(r.a, a[0]);
    out->top_b = top_index(r.b, b[0]);
}

/* ---- joining the threads of a block ---- */

template <class T> __device__ __forceinline__ T shuffled(const T &v, int step)
{
    static_assert(sizeof(T) % 4 == 0, "words");
    union {
        T value;
        uint32_t words[sizeof(T) / 4];
    } u;
    u.value = v;
#pragma unroll
    for (size_t i = 0; i < sizeof(T) / 4; i++)
        u.words[i] = __shfl_down_sync(0xffffffffu, u.words[i], step);
    return u.value;
}

/* Thread 0 gets the whole. */
template <class T> __device__ __forceinline__ void join_block(T &mine, T *shared)
{
#pragma unroll 1
    for (int step = 1; step < 32; step *= 2) {
        T other = shuffled(mine, step);
        if (threadIdx.x % (2 * step) == 0) join(mine, other);
    }
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = mine;
    __syncthreads();
    if (threadIdx.x == 0)
        for (int i = 1; i < WARPS; i++) join(mine, shared[i]);
}

__global__ void __launch_bounds__(THREADS)
    stats_of_pairs(const float *a_rows, const float *b_rows, int vocab, size_t stride,
                   const int32_t *target, qb_logit_stats *out)
{
    __shared__ row_sums shared[WARPS];
    const float *a = a_rows + blockIdx.x * stride, *b = b_rows + blockIdx.x * stride;
    row_sums mine = {running_start(), running_start(), 0.0, 0.0f, 0};
#pragma unroll 2
    for (int column = threadIdx.x * UNIT; column < vocab; column += THREADS * UNIT) {
        float va[UNIT], vb[UNIT];
        load(a, column, vocab, va);
        load(b, column, vocab, vb);
        add_unit(mine, column, va, vb);
    }
    join_block(mine, shared);
    if (threadIdx.x == 0)
        write_pair(mine, a, b, target ? target[blockIdx.x] : -1, &out[blockIdx.x]);
}

__global__ void __launch_bounds__(THREADS)
    stats_of_rows(const float *rows, int vocab, size_t stride, const int32_t *target,
                  qb_logit_stats *out)
{
    __shared__ running shared[WARPS];
    const float *a = rows + blockIdx.x * stride;
    running mine = running_start();
#pragma unroll 4
    for (int column = threadIdx.x * UNIT; column < vocab; column += THREADS * UNIT) {
        float v[UNIT], e[UNIT];
        load(a, column, vocab, v);
        raise(mine, column, v);
        add_powers(mine, v, e);
    }
    join_block(mine, shared);
    if (threadIdx.x) return;
    const int32_t wanted = target ? target[blockIdx.x] : -1;
    qb_logit_stats stats = {0, 0, 0, 0.0f, 0, 0};
    if (wanted >= 0) stats.nll_a = logsumexp(mine, a[0]) - (double)a[wanted];
    stats.top_a = top_index(mine, a[0]);
    out[blockIdx.x] = stats;
}

__global__ void __launch_bounds__(THREADS)
    argmax_of_rows(const float *rows, int vocab, size_t stride, int32_t *ids)
{
    __shared__ running shared[WARPS];
    const float *a = rows + blockIdx.x * stride;
    running mine = running_start();
#pragma unroll 4
    for (int column = threadIdx.x * UNIT; column < vocab; column += THREADS * UNIT) {
        float v[UNIT];
        load(a, column, vocab, v);
#pragma unroll
        for (int i = 0; i < UNIT; i++)
            if (v[i] > mine.max) mine.max = v[i], mine.top = column + i;
    }
    join_block(mine, shared);
    if (threadIdx.x == 0) ids[blockIdx.x] = top_index(mine, a[0]);
}

qb_status check(size_t m, size_t vocab, size_t stride, const void *a, const void *b)
{
    if (vocab == 0 || vocab > 0x7fffffff - THREADS * UNIT || m > 0x7fffffff)
        return QB_FAIL(QB_ERR_SHAPE, "logits: %zu rows of %zu, expected 1 to 2^31 - 2049", m,
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
