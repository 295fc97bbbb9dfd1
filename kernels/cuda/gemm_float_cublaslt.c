/* kernels/cuda/gemm_float_cublaslt.c - float products through cuBLASLt.
 *
 * A bias is added in the type of the output, in the epilogue, where there is one for the case:
 * for bf16 it is rounded to bf16 first. Otherwise a pass of our own follows. */
#include "kernels/cuda/cublaslt_matmul.h"
#include "kernels/cuda/gemm_float_internal.h"

#ifdef QB_HAVE_CUBLASLT

static qb_cuda_dtype out_type(const qb_cuda_gemm_float_args *a)
{
    return a->residual ? QB_CUDA_F32 : a->out;
}

const char *qb__cuda_gemm_float_lt_refuse(const qb_cuda_gemm_float_args *a)
{
    const char *why = qb_cublaslt_refusal();
    if (why) return why;
    if (a->in == QB_CUDA_F32 && out_type(a) != QB_CUDA_F32) return "makes f32 of f32 only";
    if (a->residual && a->act != QB_EPI_NONE) return "adds no activation to a residual";
    if (a->n * 2 > QB_LT_BIAS_BYTES && a->bias) return "n too large for a bias";
    return NULL;
}

static qb_lt_matmul_args product_of(const qb_cuda_gemm_float_args *a)
{
    return (qb_lt_matmul_args){.m = a->m,
                               .n = a->n,
                               .k = a->k,
                               .in = a->in,
                               .out = out_type(a),
                               .x = a->x,
                               .w = a->w,
                               .d = a->residual ? a->residual : a->y,
                               .x_stride = a->x_stride,
                               .w_stride = a->w_stride,
                               .d_stride = a->residual ? a->residual_stride : a->y_stride,
                               .alpha = 1.0f,
                               .beta = a->residual ? 1.0f : 0.0f};
}

static qb_lt_epilogue epilogue_of(qb_epilogue_act act)
{
    return act == QB_EPI_GELU ? QB_LT_GELU : act == QB_EPI_RELU ? QB_LT_RELU : QB_LT_NONE;
}

qb_status qb__cuda_gemm_float_lt(const qb_cuda_gemm_float_args *a, qb_cuda_stream stream)
{
    if (a->m == 0 || a->n == 0) return QB_OK;
    void *workspace;
    QB_TRY(qb_cublaslt_workspace(stream, &workspace));
    const bool rounds_bias = a->bias && out_type(a) == QB_CUDA_BF16;
    qb_lt_matmul_args product = product_of(a);
    product.epilogue = epilogue_of(a->act);
    product.bias = rounds_bias ? (char *)workspace + QB_LT_BYTES : (const void *)a->bias;
    bool fused = true;
    if (a->bias || a->act != QB_EPI_NONE) QB_TRY(qb_lt_matmul_prepare(&product, &fused));
    if (!fused && a->residual)
        return QB_FAIL(QB_ERR_DEVICE, "cuda: cuBLASLt has no algorithm for %zu x %zu x %zu", a->m,
                       a->n, a->k);
    if (!fused) product.epilogue = QB_LT_NONE, product.bias = NULL;
    if (fused && rounds_bias)
        QB_TRY(qb__cuda_bias_bf16(a->bias, a->n, (char *)workspace + QB_LT_BYTES, stream));
    QB_TRY(qb_lt_matmul(&product, stream));
    if (fused) return QB_OK;
    return qb__cuda_gemm_float_finish(a->y, a->out, a->y_stride, a->m, a->n, a->bias, a->act,
                                      stream);
}

#else

const char *qb__cuda_gemm_float_lt_refuse(const qb_cuda_gemm_float_args *args)
{
    (void)args;
    return qb_cublaslt_refusal();
}

qb_status qb__cuda_gemm_float_lt(const qb_cuda_gemm_float_args *args, qb_cuda_stream stream)
{
    (void)stream;
    return QB_FAIL(QB_ERR_DEVICE, "gemm_float: %s", qb__cuda_gemm_float_lt_refuse(args));
}

#endif
