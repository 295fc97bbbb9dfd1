/* kernels/cuda/gemm_s8_element.cuh - from one accumulator to what gemm_s8.h says is stored, for the
 * rows whose threads finish elements one at a time. */
#ifndef QB_KERNELS_CUDA_GEMM_S8_ELEMENT_CUH
#define QB_KERNELS_CUDA_GEMM_S8_ELEMENT_CUH

#include "kernels/cuda/gemm_s8_math.cuh"
#include "kernels/cuda/mma.cuh"

#include <cuda_bf16.h>

namespace gemm_s8_element
{

static __device__ __forceinline__ int segment_of(const qb_cuda_segments &s, int n)
{
    int i = 0;
    while (i < s.n - 1 && n >= s.end[i]) i++;
    return i;
}

/* (2) and (3) of gemm_s8.h. */
static __device__ __forceinline__ float finish(const qb_cuda_gemm_s8_args &a, int m, int n, int acc)
{
    const float scale =
        __fmul_rn(__ldg(a.x_scale + (size_t)m * a.x_scale_step), __ldg(a.w_scale + n));
    float z = __fmul_rn(__int2float_rn(acc), scale);
    if (a.bias) z = __fadd_rn(z, __ldg(a.bias + n));
    if (a.act == QB_EPI_GELU) return qb_gelu(z);
    return a.act == QB_EPI_RELU && z < 0.0f ? 0.0f : z;
}

static __device__ __forceinline__ void store(const qb_cuda_gemm_s8_args &a, int m, int n, int acc,
                                             float z)
{
    const size_t at = (size_t)m * a.y_stride + n;
    if (a.residual) {
        float *r = a.residual + (size_t)m * a.residual_stride + n;
        *r = __fadd_rn(*r, z);
    }
    if (!a.y) return;
    if (a.out == QB_CUDA_F32) ((float *)a.y)[at] = z;
    if (a.out == QB_CUDA_BF16) ((__nv_bfloat16 *)a.y)[at] = __float2bfloat16_rn(z);
    if (a.out == QB_CUDA_S32) ((int *)a.y)[at] = acc;
    if (a.out == QB_CUDA_S8) {
        const gemm_s8::divisor divisor =
            gemm_s8::make_divisor(__ldg(a.out_scale + segment_of(a.segments, n)));
        ((int8_t *)a.y)[at] = (int8_t)min(gemm_s8::quantize(z, divisor), 127);
    }
}

/* |z| as it goes into a row's maximum; fmaxf ignores a NaN. */
static __device__ __forceinline__ float row_magnitude(const qb_cuda_gemm_s8_args &a, float z)
{
    return fabsf(a.y && a.out == QB_CUDA_BF16 ? __bfloat162float(__float2bfloat16_rn(z)) : z);
}

static __device__ __forceinline__ void raise(uint32_t *max_bits, float value)
{
    const uint32_t bits = __float_as_uint(fmaxf(value, 0.0f));
    if (bits) atomicMax(max_bits, bits);
}

/* Raises each segment's maximum by the lanes' values, `value` of the segment `segment`; all lanes
 * of the warp take part, those with nothing give 0. */
static __device__ __forceinline__ void raise_segments(const qb_cuda_gemm_s8_args &a, int segment,
                                                      float value)
{
    for (int s = 0; s < a.segments.n; s++) {
        const float mine = segment == s ? fmaxf(value, 0.0f) : 0.0f;
        const uint32_t bits = __reduce_max_sync(0xffffffffu, __float_as_uint(mine));
        if (threadIdx.x % 32 == 0 && bits) atomicMax(a.max_bits + s, bits);
    }
}

} // namespace gemm_s8_element

#endif
