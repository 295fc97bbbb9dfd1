/* kernels/cuda/gemm_s8_finish.cu - the epilogue of gemm_s8.h as a pass of its own over sums in
 * memory, for products that cannot do it themselves. */
#include "kernels/cuda/gemm_s8_internal.h"
#include "kernels/cuda/gemm_s8_math.cuh"

#include <cuda_bf16.h>

namespace
{

enum { kThreads = 256, kColumns = 4 * kThreads }; /* a block: four columns a thread, one row */

struct finish_args {
    const int32_t *acc;
    size_t acc_stride;
    qb_cuda_gemm_s8_args a;
};

__device__ int segment_of(const qb_cuda_segments &s, size_t col)
{
    int i = 0;
    while (i < s.n - 1 && col >= (size_t)s.end[i]) i++;
    return i;
}

__device__ float value(const qb_cuda_gemm_s8_args &a, size_t row, size_t col, int32_t acc)
{
    float z =
        __fmul_rn(__int2float_rn(acc), __fmul_rn(a.x_scale[row * a.x_scale_step], a.w_scale[col]));
    if (a.bias) z = __fadd_rn(z, a.bias[col]);
    if (a.act == QB_EPI_GELU) return qb_gelu(z);
    return a.act == QB_EPI_RELU && z < 0.0f ? 0.0f : z;
}

/* Returns |z| as stored. */
__device__ float store(const qb_cuda_gemm_s8_args &a, size_t row, size_t col, int32_t acc, float z)
{
    const size_t at = row * a.y_stride + col;
    if (a.residual) a.residual[row * a.residual_stride + col] += z;
    if (!a.y) return fabsf(z);
    if (a.out == QB_CUDA_S32) ((int32_t *)a.y)[at] = acc;
    if (a.out == QB_CUDA_F32) ((float *)a.y)[at] = z;
    if (a.out == QB_CUDA_S8) {
        const float s = a.out_scale[segment_of(a.segments, col)];
        ((int8_t *)a.y)[at] = (int8_t)min(gemm_s8::quantize(z, gemm_s8::make_divisor(s)), 127);
    }
    if (a.out != QB_CUDA_BF16) return fabsf(z);
    const __nv_bfloat16 half = __float2bfloat16_rn(z);
    ((__nv_bfloat16 *)a.y)[at] = half;
    return fabsf(__bfloat162float(half));
}

__global__ void __launch_bounds__(kThreads) finish(const __grid_constant__ finish_args f)
{
    const qb_cuda_gemm_s8_args &a = f.a;
    const size_t row = blockIdx.x;
    float row_max = 0.0f, max[QB_CUDA_SEGMENTS] = {0.0f, 0.0f, 0.0f};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const size_t col = (size_t)blockIdx.y * kColumns + i * kThreads + threadIdx.x;
        if (col >= a.n) continue;
        const int32_t acc = f.acc[row * f.acc_stride + col];
        const float z = value(a, row, col, acc);
        row_max = fmaxf(row_max, store(a, row, col, acc, z));
        const int segment = segment_of(a.segments, col);
#pragma unroll
        for (int s = 0; s < QB_CUDA_SEGMENTS; s++)
            if (s == segment) max[s] = fmaxf(max[s], fabsf(z));
    }
    const bool leads = threadIdx.x % 32 == 0;
    if (a.row_max_bits) {
        const uint32_t bits = __reduce_max_sync(0xffffffffu, __float_as_uint(row_max));
        if (leads && bits) atomicMax(a.row_max_bits + row, bits);
    }
    if (a.max_bits)
#pragma unroll
        for (int s = 0; s < QB_CUDA_SEGMENTS; s++) {
            const uint32_t bits = __reduce_max_sync(0xffffffffu, __float_as_uint(max[s]));
            if (leads && bits) atomicMax(a.max_bits + s, bits);
        }
}

} // namespace

qb_status qb__gemm_s8_finish(const int32_t *acc, size_t acc_stride,
                             const qb_cuda_gemm_s8_args *args, qb_cuda_stream stream)
{
    const finish_args f = {acc, acc_stride, *args};
    const dim3 grid((unsigned)args->m, (unsigned)((args->n + kColumns - 1) / kColumns));
    finish<<<grid, kThreads, 0, stream>>>(f);
    QB_CUDA_TRY(cudaGetLastError());
    return QB_OK;
}
