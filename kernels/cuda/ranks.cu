/* kernels/cuda/ranks.cu - see ranks.h. */
#include "kernels/cuda/ranks.h"

#include <cstddef>
#include <cuda_runtime.h>

namespace
{
constexpr size_t THREADS = 256, MAX_BLOCKS = 4096;

static_assert(offsetof(qb_cuda_train_totals, square_sum) == sizeof(double),
              "loss_sum and square_sum are sent as two doubles");

__global__ void __launch_bounds__(THREADS)
    add_ranks(float *x, size_t n, const float *others, size_t stride, size_t rank, size_t n_ranks)
{
    for (size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x; i < n;
         i += (size_t)gridDim.x * THREADS) {
        const float own = x[i];
        float sum = rank ? others[i] : own;
        for (size_t r = 1; r < n_ranks; r++)
            sum += r == rank ? own : others[(r < rank ? r : r - 1) * stride + i];
        x[i] = sum;
    }
}

__global__ void __launch_bounds__(THREADS)
    pick(const float *x, const uint64_t *places, size_t first, size_t end, float *packed)
{
    for (size_t i = first + (size_t)blockIdx.x * THREADS + threadIdx.x; i < end;
         i += (size_t)gridDim.x * THREADS)
        packed[i] = x[places[i]];
}

__global__ void __launch_bounds__(THREADS)
    place(const float *packed, const uint64_t *places, size_t n, float *x)
{
    for (size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x; i < n;
         i += (size_t)gridDim.x * THREADS)
        x[places[i]] = packed[i];
}

__global__ void add_totals(const double *all, size_t n_ranks, qb_cuda_train_totals *totals)
{
    double loss = all[0], squares = all[1];
    for (size_t r = 1; r < n_ranks; r++) loss += all[2 * r], squares += all[2 * r + 1];
    totals->loss_sum = loss;
    totals->square_sum = squares;
    totals->grad_norm = sqrt(squares);
}

unsigned blocks_for(size_t n)
{
    const size_t blocks = (n + THREADS - 1) / THREADS;
    return (unsigned)(blocks < MAX_BLOCKS ? blocks : MAX_BLOCKS);
}
} // namespace

qb_status qb_cuda_ranks_add(float *x, size_t n, const float *others, size_t stride, size_t rank,
                            size_t n_ranks, qb_cuda_stream stream)
{
    if (!n) return QB_OK;
    add_ranks<<<blocks_for(n), THREADS, 0, stream>>>(x, n, others, stride, rank, n_ranks);
    QB_CUDA_TRY(cudaGetLastError());
    return QB_OK;
}

qb_status qb_cuda_ranks_pick(const float *x, const uint64_t *places, size_t first, size_t end,
                             float *packed, qb_cuda_stream stream)
{
    if (first == end) return QB_OK;
    pick<<<blocks_for(end - first), THREADS, 0, stream>>>(x, places, first, end, packed);
    QB_CUDA_TRY(cudaGetLastError());
    return QB_OK;
}

qb_status qb_cuda_ranks_place(const float *packed, const uint64_t *places, size_t n, float *x,
                              qb_cuda_stream stream)
{
    if (!n) return QB_OK;
    place<<<blocks_for(n), THREADS, 0, stream>>>(packed, places, n, x);
    QB_CUDA_TRY(cudaGetLastError());
    return QB_OK;
}

qb_status qb_cuda_ranks_add_totals(const double *all, size_t n_ranks, qb_cuda_train_totals *totals,
                                   qb_cuda_stream stream)
{
    add_totals<<<1, 1, 0, stream>>>(all, n_ranks, totals);
    QB_CUDA_TRY(cudaGetLastError());
    return QB_OK;
}
