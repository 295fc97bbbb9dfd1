/* kernels/cuda/train_loss.cu - cross-entropy of a few thousand rows of logits, in place.
 *
 * A block takes a row: first the maximum and the sum of exponentials, then the gradient where the
 * logits stood. The second reading finds the row in the cache: all blocks' rows together are less
 * than half of it. */
#include "kernels/cuda/pointwise.cuh"
#include "kernels/cuda/train.h"

namespace
{
enum { UNIT = 8, THREADS = 512, N_WARPS = THREADS / 32 };

/* max and sum of exp(x - max) of two parts */
struct softmax_part {
    float max, sum;
};
__device__ __forceinline__ softmax_part joined(softmax_part a, softmax_part b)
{
    const float max = fmaxf(a.max, b.max);
    if (max == -CUDART_INF_F) return {max, 0.0f};
    return {max, a.sum * __expf(a.max - max) + b.sum * __expf(b.max - max)};
}
__device__ __forceinline__ softmax_part shuffled(softmax_part a, int step)
{
    return {__shfl_xor_sync(0xffffffffu, a.max, step), __shfl_xor_sync(0xffffffffu, a.sum, step)};
}
__device__ __forceinline__ softmax_part warp_joined(softmax_part a)
{
#pragma unroll
    for (int step = 16; step; step >>= 1) a = joined(a, shuffled(a, step));
    return a;
}

__device__ softmax_part block_joined(softmax_part a)
{
    __shared__ softmax_part part[N_WARPS];
    a = warp_joined(a);
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = a;
    __syncthreads();
    const int lane = threadIdx.x % 32;
    a = lane < N_WARPS ? part[lane] : softmax_part{-CUDART_INF_F, 0.0f};
    return warp_joined(a);
}

template <qb_cuda_dtype TYPE>
__device__ __forceinline__ void load_logits(const qb_cuda_train_loss &a, size_t at, int n_inside,
                                            float (&v)[UNIT])
{
    qb_load(a.logits, TYPE, at, v);
    if (n_inside < UNIT)
#pragma unroll
        for (int i = 0; i < UNIT; i++)
            if (i >= n_inside) v[i] = -CUDART_INF_F;
}

template <qb_cuda_dtype TYPE>
__global__ void __launch_bounds__(THREADS)
    cross_entropy(const __grid_constant__ qb_cuda_train_loss a)
{
    const size_t row = a.first_row + blockIdx.x, t = row % a.n_tokens;
    const size_t base = (size_t)blockIdx.x * a.stride;
    const int target = a.tokens[row / a.n_tokens * (a.n_tokens + 1) + t + 1];
    const bool scored = t >= a.first_target;
    const int vocab = (int)a.vocab;
    softmax_part own = {-CUDART_INF_F, 0.0f};
#pragma unroll 2
    for (int c = threadIdx.x * UNIT; c < vocab; c += THREADS * UNIT) {
        float v[UNIT];
        load_logits<TYPE>(a, base + c, vocab - c, v);
        softmax_part p = {v[0], 0.0f};
#pragma unroll
        for (int i = 1; i < UNIT; i++) p.max = fmaxf(p.max, v[i]);
        const float max = p.max == -CUDART_INF_F ? 0.0f : p.max;
#pragma unroll
        for (int i = 0; i < UNIT; i++) p.sum += __expf(v[i] - max);
        own = joined(own, p);
    }
    own = block_joined(own);
    if (threadIdx.x == 0) {
        const float x = qb_load_one(a.logits, a.type, base + target);
        a.losses[row] = scored ? own.max + logf(own.sum) - x : 0.0f;
    }
    if (a.scale == 0.0f) return;
    __syncthreads(); /* the target's logit has been read */
    const float scale = scored ? a.scale : 0.0f, inverse = scale / own.sum;
#pragma unroll 2
    for (int c = threadIdx.x * UNIT; c < vocab; c += THREADS * UNIT) {
        float v[UNIT];
        load_logits<TYPE>(a, base + c, vocab - c, v);
#pragma unroll
        for (int i = 0; i < UNIT; i++) {
            v[i] = scored ? __expf(v[i] - own.max) * inverse : 0.0f;
            if (c + i == target) v[i] -= scale;
        }
        qb_store(a.logits, TYPE, base + c, v);
    }
}
} // namespace

qb_status qb_cuda_train_cross_entropy(const qb_cuda_train_loss *args, qb_cuda_stream stream)
{
    if (args->n_rows == 0) return QB_OK;
    if (args->type == QB_CUDA_F32)
        cross_entropy<QB_CUDA_F32><<<(unsigned)args->n_rows, THREADS, 0, stream>>>(*args);
    else
        cross_entropy<QB_CUDA_BF16><<<(unsigned)args->n_rows, THREADS, 0, stream>>>(*args);
    return qb_launched();
}
