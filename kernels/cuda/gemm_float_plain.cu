/* kernels/cuda/gemm_float_plain.cu - float products that need no library: a tiled loop of
 * multiply-adds in f32, k in order. And the pass that finishes a product of cuBLASLt's where it
 * has no epilogue for the case. */
#include "kernels/cuda/gemm_float_internal.h"
#include "kernels/cuda/scalar.cuh"

#include <cuda_bf16.h>
#include <cuda_runtime.h>

namespace
{
enum { TILE = 64, DEPTH = 16, THREADS = 256, PER_THREAD = 4 };

__device__ __forceinline__ float load(const void *p, qb_cuda_dtype type, size_t at)
{
    if (type == QB_CUDA_F32) return ((const float *)p)[at];
    return __bfloat162float(((const __nv_bfloat16 *)p)[at]);
}

__device__ __forceinline__ void store(void *p, qb_cuda_dtype type, size_t at, float x)
{
    if (type == QB_CUDA_F32)
        ((float *)p)[at] = x;
    else
        ((__nv_bfloat16 *)p)[at] = __float2bfloat16_rn(x);
}

__device__ __forceinline__ float activate(qb_epilogue_act act, float x)
{
    if (act == QB_EPI_RELU) return x < 0.0f ? 0.0f : x;
    if (act == QB_EPI_NONE) return x;
    return qb_gelu(x);
}

/* Rows first .. first + TILE - 1 of a (rows, k) matrix, DEPTH columns from k0, transposed. */
__device__ __forceinline__ void load_tile(const void *from, qb_cuda_dtype type, size_t stride,
                                          size_t first, size_t n_rows, size_t k0, size_t k,
                                          float (&tile)[DEPTH][TILE + 1])
{
    for (int i = threadIdx.x; i < TILE * DEPTH; i += THREADS) {
        size_t row = first + i / DEPTH, column = k0 + i % DEPTH;
        bool inside = row < n_rows && column < k;
        tile[i % DEPTH][i / DEPTH] = inside ? load(from, type, row * stride + column) : 0.0f;
    }
}

__device__ __forceinline__ void finish(const qb_cuda_gemm_float_args &a, size_t row, size_t column,
                                       float sum)
{
    float z = activate(a.act, a.bias ? sum + a.bias[column] : sum);
    if (a.residual)
        a.residual[row * a.residual_stride + column] += z;
    else
        store(a.y, a.out, row * a.y_stride + column, z);
}

__global__ void __launch_bounds__(THREADS)
    gemm_plain(const __grid_constant__ qb_cuda_gemm_float_args a)
{
    __shared__ float x[DEPTH][TILE + 1], w[DEPTH][TILE + 1];
    const size_t m0 = (size_t)blockIdx.y * TILE, n0 = (size_t)blockIdx.x * TILE;
    const int row = threadIdx.x / 16 * PER_THREAD, column = threadIdx.x % 16;
    float sum[PER_THREAD][PER_THREAD] = {};
    for (size_t k0 = 0; k0 < a.k; k0 += DEPTH) {
        load_tile(a.x, a.in, a.x_stride, m0, a.m, k0, a.k, x);
        load_tile(a.w, a.in, a.w_stride, n0, a.n, k0, a.k, w);
        __syncthreads();
#pragma unroll
        for (int kk = 0; kk < DEPTH; kk++)
#pragma unroll
            for (int i = 0; i < PER_THREAD; i++)
#pragma unroll
                for (int j = 0; j < PER_THREAD; j++)
                    sum[i][j] = fmaf(x[kk][row + i], w[kk][column + 16 * j], sum[i][j]);
        __syncthreads();
    }
    for (int i = 0; i < PER_THREAD; i++)
        for (int j = 0; j < PER_THREAD; j++) {
            size_t to_row = m0 + row + i, to_column = n0 + column + 16 * j;
            if (to_row < a.m && to_column < a.n) finish(a, to_row, to_column, sum[i][j]);
        }
}

__global__ void finish_rows(void *y, qb_cuda_dtype type, size_t stride, size_t n, const float *bias,
                            qb_epilogue_act act)
{
    size_t column = (size_t)blockIdx.y * blockDim.x + threadIdx.x;
    if (column >= n) return;
    size_t at = (size_t)blockIdx.x * stride + column;
    float x = load(y, type, at);
    store(y, type, at, activate(act, bias ? x + bias[column] : x));
}

__global__ void round_bias(const float *bias, size_t n, void *out)
{
    size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) store(out, QB_CUDA_BF16, i, bias[i]);
}
} /* namespace */

qb_status qb__cuda_gemm_float_plain(const qb_cuda_gemm_float_args *a, qb_cuda_stream stream)
{
    if (a->m == 0 || a->n == 0) return QB_OK;
    const size_t rows_a_launch = (size_t)TILE * 65535;
    for (size_t m0 = 0; m0 < a->m; m0 += rows_a_launch) {
        qb_cuda_gemm_float_args part = *a;
        part.m = a->m - m0 < rows_a_launch ? a->m - m0 : rows_a_launch;
        part.x = (const char *)a->x + m0 * a->x_stride * qb_cuda_dtype_bytes(a->in);
        if (a->y) part.y = (char *)a->y + m0 * a->y_stride * qb_cuda_dtype_bytes(a->out);
        if (a->residual) part.residual = a->residual + m0 * a->residual_stride;
        dim3 grid((unsigned)((a->n + TILE - 1) / TILE), (unsigned)((part.m + TILE - 1) / TILE));
        gemm_plain<<<grid, THREADS, 0, stream>>>(part);
        QB_CUDA_TRY(cudaGetLastError());
    }
    return QB_OK;
}

qb_status qb__cuda_gemm_float_finish(void *y, qb_cuda_dtype type, size_t stride, size_t m, size_t n,
                                     const float *bias, qb_epilogue_act act, qb_cuda_stream stream)
{
    if (m == 0 || n == 0 || (!bias && act == QB_EPI_NONE)) return QB_OK;
    dim3 grid((unsigned)m, (unsigned)((n + 255) / 256));
    finish_rows<<<grid, 256, 0, stream>>>(y, type, stride, n, bias, act);
    QB_CUDA_TRY(cudaGetLastError());
    return QB_OK;
}

qb_status qb__cuda_bias_bf16(const float *bias, size_t n, void *out, qb_cuda_stream stream)
{
    round_bias<<<(unsigned)((n + 255) / 256), 256, 0, stream>>>(bias, n, out);
    QB_CUDA_TRY(cudaGetLastError());
    return QB_OK;
}
