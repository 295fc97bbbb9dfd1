/* kernels/cuda/absmax.cu - see absmax.h. One block a few rows; a block's maximum is one atomic. */
#include "kernels/cuda/absmax.h"

#include <cuda_bf16.h>

enum { THREADS = 256 };

static __device__ float magnitude(const float *y, size_t i)
{
    return fabsf(y[i]);
}
static __device__ float magnitude(const __nv_bfloat16 *y, size_t i)
{
    return fabsf(__bfloat162float(y[i]));
}

/* fmaxf drops NaN, as the definition asks. The bits of non-negative floats compare like integers.
 */
template <typename T>
static __global__ void __launch_bounds__(THREADS)
    absmax_kernel(const T *__restrict__ y, int m, size_t stride, int first, int end,
                  uint32_t *__restrict__ max_bits)
{
    float largest = 0.0f;
    for (int row = blockIdx.x; row < m; row += gridDim.x)
        for (int col = first + threadIdx.x; col < end; col += THREADS)
            largest = fmaxf(largest, magnitude(y, row * stride + col));
    uint32_t bits = __reduce_max_sync(0xffffffffu, __float_as_uint(largest));
    if (threadIdx.x % 32 == 0 && bits) atomicMax(max_bits, bits);
}

static __global__ void scale_kernel(const uint32_t *max_bits, float *scale)
{
    *scale = __fdiv_rn(__uint_as_float(*max_bits), 127.0f);
}

extern "C" qb_status qb_cuda_absmax(const void *y, qb_cuda_dtype type, size_t m, size_t stride,
                                    const qb_cuda_segments *segments, uint32_t *max_bits,
                                    qb_cuda_stream stream)
{
    int blocks = m < 1024 ? (int)m : 1024;
    for (int s = 0, first = 0; s < segments->n; first = segments->end[s++]) {
        int end = segments->end[s];
        if (type == QB_CUDA_F32)
            absmax_kernel<<<blocks, THREADS, 0, stream>>>((const float *)y, (int)m, stride, first,
                                                          end, max_bits + s);
        else
            absmax_kernel<<<blocks, THREADS, 0, stream>>>((const __nv_bfloat16 *)y, (int)m, stride,
                                                          first, end, max_bits + s);
    }
    QB_CUDA_TRY(cudaGetLastError());
    return QB_OK;
}

extern "C" qb_status qb_cuda_absmax_scale(const uint32_t *max_bits, float *scale,
                                          qb_cuda_stream stream)
{
    scale_kernel<<<1, 1, 0, stream>>>(max_bits, scale);
    QB_CUDA_TRY(cudaGetLastError());
    return QB_OK;
}
