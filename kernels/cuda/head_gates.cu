/* kernels/cuda/head_gates.cu - see head_gates.h. A block takes a row: statistics of the norm over
 * all threads, a warp a head for the products, then all threads multiply. */
#include "kernels/cuda/head_gates.h"

#include "kernels/cuda/pointwise.cuh"

namespace
{

constexpr int THREADS = 256, WARPS = THREADS / 32;

/* The same sum in every thread; `partial` is used up again after the next barrier. */
__device__ float block_sum(float x, float *partial)
{
    x = qb_warp_sum(x);
    __syncthreads();
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = x;
    __syncthreads();
    float sum = 0;
    for (int w = 0; w < WARPS; w++) sum += partial[w];
    return sum;
}

__global__ void __launch_bounds__(THREADS) head_gates(const qb_cuda_head_gates_args a)
{
    extern __shared__ float gates[]; /* (n_heads) */
    __shared__ float partial[WARPS];
    const float *x = a.x + blockIdx.x * a.x_stride;
    const int width = (int)a.width, lane = threadIdx.x % 32;
    const bool one_gain = a.norm == QB_NORM_RMSNORM_SINGLE;
    float mean = 0, squares = 0;
    if (a.norm == QB_NORM_LAYERNORM) {
        for (int i = threadIdx.x; i < width; i += THREADS) mean += x[i];
        mean = block_sum(mean, partial) / (float)width;
    }
    for (int i = threadIdx.x; i < width; i += THREADS) squares += (x[i] - mean) * (x[i] - mean);
    const float inverse = 1 / sqrtf(block_sum(squares, partial) / (float)width + a.eps);
    for (int h = threadIdx.x / 32; h < (int)a.n_heads; h += WARPS) {
        const float *w = a.gate_w + (size_t)h * a.width;
        float sum = 0;
        for (int i = lane; i < width; i += 32) {
            float normed = (x[i] - mean) * inverse * a.gain[one_gain ? 0 : i];
            if (a.bias) normed += a.bias[i];
            sum = fmaf(w[i], normed, sum);
        }
        sum = qb_warp_sum(sum) + a.gate_bias[h];
        if (lane == 0) gates[h] = 1 / (1 + expf(-sum));
    }
    __syncthreads();
    const size_t row = blockIdx.x * a.y_stride;
    for (int i = threadIdx.x; i < (int)(a.n_heads * a.head_dim); i += THREADS) {
        float y = qb_load_one(a.y, a.type, row + i);
        qb_store_one(a.y, a.type, row + i, y * gates[i / (int)a.head_dim]);
    }
}

} // namespace

qb_status qb_cuda_head_gates(const qb_cuda_head_gates_args *args, qb_cuda_stream stream)
{
    if (args->m == 0) return QB_OK;
    if (args->n_heads * sizeof(float) > 32 << 10)
        return QB_FAIL(QB_ERR_UNSUPPORTED, "head gates: found %zu heads, at most %d", args->n_heads,
                       (32 << 10) / (int)sizeof(float));
    head_gates<<<(unsigned)args->m, THREADS, args->n_heads * sizeof(float), stream>>>(*args);
    QB_CUDA_TRY(cudaGetLastError());
    return QB_OK;
}
