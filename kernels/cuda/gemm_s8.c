/* kernels/cuda/gemm_s8.c - the table of the int8 products and the choice of a row. */
#include "kernels/cuda/gemm_s8_internal.h"

#include "kernels/running.h"

const qb_cuda_gemm_s8_row qb_cuda_gemm_s8_kernels[] = {
    {{"gemm_s8/gemv", "cuda", QB_CUDA_SM80}, qb__gemm_s8_refuse_gemv, qb__gemm_s8_run_gemv},
    {{"gemm_s8/sm90", "cuda", QB_CUDA_SM90A}, qb__gemm_s8_refuse_sm90, qb__gemm_s8_run_sm90},
    {{"gemm_s8/cublaslt", "cuda", QB_CUDA_SM80 | QB_CUDA_BLASLT},
     qb__gemm_s8_refuse_cublaslt,
     qb__gemm_s8_run_cublaslt},
    {{"gemm_s8/sm80", "cuda", QB_CUDA_SM80}, qb__gemm_s8_refuse_sm80, qb__gemm_s8_run_sm80},
    {{0}, 0, 0},
};

/* The first row that takes the arguments; NULL and why not. */
static const qb_cuda_gemm_s8_row *find_row(const qb_cuda_gemm_s8_args *args, const char **why)
{
    for (const qb_cuda_gemm_s8_row *row = qb_cuda_gemm_s8_kernels; row->info.name; row++) {
        *why = qb_kernel_refusal(&row->info);
        if (!*why) *why = row->refuse(args);
        if (!*why) return row;
    }
    return NULL;
}

const char *qb_cuda_gemm_s8_refusal(const qb_cuda_gemm_s8_args *args)
{
    const char *why;
    find_row(args, &why);
    return why;
}

qb_status qb_cuda_gemm_s8(const qb_cuda_gemm_s8_args *args, qb_cuda_stream stream)
{
    const char *why;
    if (args->m == 0 || args->n == 0) return QB_OK;
    const qb_cuda_gemm_s8_row *row = find_row(args, &why);
    if (!row) return QB_FAIL(QB_ERR_DEVICE, "gemm_s8: %s", why);
    qb_kernel_runs(&row->info);
    return row->run(args, stream);
}
