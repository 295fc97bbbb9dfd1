/* kernels/cuda/train_softmax.cu - the passes around a product that leaves exponentials in place of
 * logits (train.h): they read a few numbers a row and never the rows. */
#include "kernels/cuda/gemm_bf16.h"
#include "kernels/cuda/pointwise.cuh"
#include "kernels/cuda/train.h"

namespace
{
enum { UNIT = 8, LANES = 32, WARPS = 8, THREADS = LANES * WARPS };

__device__ __forceinline__ int target_of(const qb_cuda_train_softmax &a, size_t row)
{
    const size_t at = a.first_row + row;
    return a.tokens[at / a.n_tokens * (a.n_tokens + 1) + at % a.n_tokens + 1];
}

/* A warp takes a row. */
__global__ void __launch_bounds__(THREADS)
    target_logits(const __grid_constant__ qb_cuda_train_softmax a)
{
    const size_t row = (size_t)blockIdx.x * WARPS + threadIdx.y;
    if (row == 0 && threadIdx.x == 0) *a.redo = 0;
    if (row >= a.n_rows) return;
    const size_t h = row * a.h_stride, w = (size_t)target_of(a, row) * a.width;
    float sum = 0.0f;
    for (size_t c = threadIdx.x * UNIT; c < a.width; c += LANES * UNIT) {
        float x[UNIT], y[UNIT];
        qb_load(a.h, QB_CUDA_BF16, h + c, x);
        qb_load(a.w, QB_CUDA_BF16, w + c, y);
#pragma unroll
        for (int i = 0; i < UNIT; i++) sum += x[i] * y[i];
    }
    sum = qb_warp_sum(sum);
    if (threadIdx.x == 0) a.target[row] = a.shift[row] = sum;
}

/* A block takes LANES rows, lane = row, and its warps their tiles in turn. */
__global__ void __launch_bounds__(THREADS)
    check_sums(const __grid_constant__ qb_cuda_train_softmax a, int n_tiles)
{
    __shared__ float part[WARPS][LANES];
    const size_t row = (size_t)blockIdx.x * LANES + threadIdx.x;
    float max = -CUDART_INF_F;
    bool bad = false;
    if (row < a.n_rows)
#pragma unroll 4
        for (int t = threadIdx.y; t < n_tiles; t += WARPS)
            if (!(a.sums[t * a.n_rows + row] <= QB_BF16_MOST)) {
                bad = true;
                max = fmaxf(max, a.maxima[t * a.n_rows + row]);
            }
    part[threadIdx.y][threadIdx.x] = max;
    if (!__syncthreads_or(bad) || threadIdx.y != 0) return;
    for (int i = 1; i < WARPS; i++) max = fmaxf(max, part[i][threadIdx.x]);
    if (threadIdx.x == 0) *a.redo = 1;
    if (row < a.n_rows && max > -CUDART_INF_F) a.shift[row] = max;
}

__global__ void __launch_bounds__(THREADS)
    finish_rows(const __grid_constant__ qb_cuda_train_softmax a, int n_tiles)
{
    __shared__ float part[WARPS][LANES];
    const size_t row = (size_t)blockIdx.x * LANES + threadIdx.x;
    float sum = 0.0f;
    if (row < a.n_rows)
#pragma unroll 4
        for (int t = threadIdx.y; t < n_tiles; t += WARPS) sum += a.sums[t * a.n_rows + row];
    part[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y != 0 || row >= a.n_rows) return;
    for (int i = 1; i < WARPS; i++) sum += part[i][threadIdx.x];
    const size_t at = a.first_row + row;
    const bool scored = at % a.n_tokens >= a.first_target;
    const float above = a.shift[row] - a.target[row];
    a.losses[at] = scored ? logf(sum) + above : 0.0f;
    if (!a.e) return;
    a.factors[at] = scored ? a.scale / sum : 0.0f;
    qb_store_one(a.e, QB_CUDA_BF16, row * a.e_stride + target_of(a, row), __expf(-above) - sum);
}

__global__ void __launch_bounds__(THREADS)
    scale_rows(const void *x, void *y, size_t m, size_t width, size_t stride, const float *factors)
{
    const size_t units = (width + UNIT - 1) / UNIT;
    const size_t unit = (size_t)blockIdx.x * THREADS + threadIdx.x, row = unit / units;
    if (row >= m) return;
    const size_t at = row * stride + unit % units * UNIT;
    const float factor = factors[row];
    float v[UNIT];
    qb_load(x, QB_CUDA_BF16, at, v);
#pragma unroll
    for (int i = 0; i < UNIT; i++) v[i] *= factor;
    qb_store(y, QB_CUDA_BF16, at, v);
}

unsigned blocks_of(size_t n, size_t each)
{
    return (unsigned)((n + each - 1) / each);
}
int tiles_of(const qb_cuda_train_softmax *a)
{
    return (int)blocks_of(a->vocab, QB_BF16_TILE);
}
} // namespace

qb_status qb_cuda_train_softmax_begin(const qb_cuda_train_softmax *args, qb_cuda_stream stream)
{
    target_logits<<<blocks_of(args->n_rows, WARPS), dim3(LANES, WARPS), 0, stream>>>(*args);
    return qb_launched();
}

qb_status qb_cuda_train_softmax_check(const qb_cuda_train_softmax *args, qb_cuda_stream stream)
{
    check_sums<<<blocks_of(args->n_rows, LANES), dim3(LANES, WARPS), 0, stream>>>(*args,
                                                                                  tiles_of(args));
    return qb_launched();
}

qb_status qb_cuda_train_softmax_finish(const qb_cuda_train_softmax *args, qb_cuda_stream stream)
{
    finish_rows<<<blocks_of(args->n_rows, LANES), dim3(LANES, WARPS), 0, stream>>>(*args,
                                                                                   tiles_of(args));
    return qb_launched();
}

qb_status qb_cuda_train_scale_rows(const void *x, void *y, size_t m, size_t width, size_t stride,
                                   const float *factors, qb_cuda_stream stream)
{
    const size_t units = m * ((width + UNIT - 1) / UNIT);
    scale_rows<<<blocks_of(units, THREADS), THREADS, 0, stream>>>(x, y, m, width, stride, factors);
    return qb_launched();
}
