/* kernels/cuda/gemm_bf16.c - the table of gemm_bf16.h and the choice of a row. */
#include "kernels/cuda/gemm_bf16_internal.h"

const qb_cuda_gemm_bf16_row qb_cuda_gemm_bf16_kernels[] = {
    {{"gemm_bf16/sm90", "cuda", QB_CUDA_SM90A},
     qb__cuda_gemm_bf16_refuse_sm90,
     qb__cuda_gemm_bf16_sm90},
    {{"gemm_bf16/cublaslt", "cuda", QB_CUDA_SM80 | QB_CUDA_BLASLT}, NULL, NULL},
    {{0}, NULL, NULL},
};

/* The first row that can be used, if it is a kernel. */
static const qb_cuda_gemm_bf16_row *pick(const qb_cuda_gemm_bf16_args *args, const char **why)
{
    *why = "no row";
    for (const qb_cuda_gemm_bf16_row *row = qb_cuda_gemm_bf16_kernels; row->info.name; row++) {
        const char *refusal = qb_kernel_refusal(&row->info);
        if (!refusal && row->refuse) refusal = row->refuse(args);
        if (!refusal && row->run) return row;
        if (!refusal) break;
        *why = refusal;
    }
    return NULL;
}

const char *qb_cuda_gemm_bf16_refuse(const qb_cuda_gemm_bf16_args *args)
{
    const char *why;
    return pick(args, &why) ? NULL : why;
}

qb_status qb_cuda_gemm_bf16(const qb_cuda_gemm_bf16_args *args, qb_cuda_stream stream)
{
    const char *why;
    const qb_cuda_gemm_bf16_row *row = pick(args, &why);
    if (!row) return QB_FAIL(QB_ERR_UNSUPPORTED, "gemm_bf16: %s", why);
    return row->run(args, stream);
}
