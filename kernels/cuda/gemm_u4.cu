/* kernels/cuda/gemm_u4.cu - the rows of gemm_u4.h, and scales per input channel. */
#include "kernels/cuda/gemm_u4_internal.h"
#include "kernels/running.h"

#include <cuda_runtime.h>

const qb_cuda_gemm_u4_row qb_cuda_gemm_u4_kernels[] = {
    {{"gemm_u4/stream", "cuda", QB_CUDA_SM90A},
     qb__gemm_u4_refuse_stream,
     qb__gemm_u4_stream,
     qb__gemm_u4_stream_is_slower},
    {{"gemm_u4/gemv", "cuda", QB_CUDA_SM80}, qb__gemm_u4_refuse_gemv, qb__gemm_u4_gemv, NULL},
    {{"gemm_u4/sm90", "cuda", QB_CUDA_SM90A}, qb__gemm_u4_refuse_sm90, qb__gemm_u4_sm90, NULL},
    {{"gemm_u4/sm80", "cuda", QB_CUDA_SM80}, qb__gemm_u4_refuse_sm80, qb__gemm_u4_sm80, NULL},
    {{NULL, NULL, 0}, NULL, NULL, NULL},
};

static const char *shape_refusal(const qb_cuda_gemm_u4_args *a)
{
    if (a->m > 1u << 30) return "too many tokens";
    if (a->x_stride < a->w->k_pad || a->x_stride % 8) return "activations are not padded";
    if (a->y && a->out != QB_CUDA_F32 && a->out != QB_CUDA_BF16) return "output is f32 or bf16";
    return a->y || a->residual ? NULL : "no output";
}

qb_status qb_cuda_gemm_u4(const qb_cuda_gemm_u4_args *args, qb_cuda_stream stream)
{
    if (args->m == 0) return QB_OK;
    const char *why = shape_refusal(args);
    if (why) return QB_FAIL(QB_ERR_SHAPE, "gemm_u4: %zu x %zu: %s", args->m, args->w->n, why);
    for (const qb_cuda_gemm_u4_row *row = qb_cuda_gemm_u4_kernels; row->info.name; row++)
        if (!qb_kernel_refusal(&row->info) && !row->refuse(args) &&
            !(row->is_slower && row->is_slower(args))) {
            qb_kernel_runs(&row->info);
            return row->run(args, stream);
        }
    return QB_FAIL(QB_ERR_DEVICE, "gemm_u4: no row for this GPU");
}

namespace
{
/* A thread makes 8 channels of one token. */
__global__ void scale_channels(const __nv_bfloat16 *x, size_t x_stride, const float *scale,
                               int chunks, __nv_bfloat16 *out, size_t out_stride)
{
    const int chunk = blockIdx.x * blockDim.x + threadIdx.x;
    if (chunk >= chunks) return;
    const size_t k = (size_t)chunk * 8;
    __nv_bfloat162 v[4];
    *(uint4 *)v = *(const uint4 *)(x + blockIdx.y * x_stride + k);
    for (int i = 0; i < 4; i++) {
        const float2 f = __bfloat1622float2(v[i]);
        v[i] = __floats2bfloat162_rn(f.x * scale[k + 2 * i], f.y * scale[k + 2 * i + 1]);
    }
    *(uint4 *)(out + blockIdx.y * out_stride + k) = *(const uint4 *)v;
}
} // namespace

qb_status qb_cuda_u4_x(const void *x, size_t x_stride, size_t m, const qb_cuda_u4 *w, void *out,
                       size_t out_stride, qb_cuda_stream stream)
{
    const int chunks = (int)(w->k_pad / 8);
    const size_t rows = 32768; /* of a launch: the grid's second axis is short */
    for (size_t m0 = 0; m0 < m; m0 += rows) {
        const dim3 grid((unsigned)(chunks + 127) / 128, (unsigned)(m - m0 < rows ? m - m0 : rows));
        scale_channels<<<grid, 128, 0, stream>>>(
            (const __nv_bfloat16 *)x + m0 * x_stride, x_stride, w->x_scale, chunks,
            (__nv_bfloat16 *)out + m0 * out_stride, out_stride);
    }
    QB_CUDA_TRY(cudaGetLastError());
    return QB_OK;
}
