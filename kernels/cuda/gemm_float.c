/* kernels/cuda/gemm_float.c - the table of the float products and the choice of a row. */
#include "kernels/cuda/gemm_float_internal.h"

#include "kernels/running.h"

static const char *refuse_nothing(const qb_cuda_gemm_float_args *args)
{
    (void)args;
    return NULL;
}

const qb_cuda_gemm_float_row qb_cuda_gemm_float_kernels[] = {
    {{"gemm_float/stream", "cuda", QB_CUDA_SM90A},
     qb__cuda_gemm_float_stream_refuse,
     qb__cuda_gemm_float_stream,
     qb__cuda_gemm_float_stream_is_slower},
    {{"gemm_float/cublaslt", "cuda", QB_CUDA_SM80 | QB_CUDA_BLASLT},
     qb__cuda_gemm_float_lt_refuse,
     qb__cuda_gemm_float_lt,
     NULL},
    {{"gemm_float/plain", "cuda", QB_CUDA_SM80}, refuse_nothing, qb__cuda_gemm_float_plain, NULL},
    {{0}, 0, 0, 0},
};

qb_status qb_cuda_gemm_float(const qb_cuda_gemm_float_args *args, qb_cuda_stream stream)
{
    const char *why = "no row";
    for (const qb_cuda_gemm_float_row *row = qb_cuda_gemm_float_kernels; row->info.name; row++) {
        why = qb_kernel_refusal(&row->info);
        if (!why) why = row->refuse(args);
        if (!why && row->is_slower && row->is_slower(args)) why = "a later row is as fast";
        if (why) continue;
        qb_kernel_runs(&row->info);
        return row->run(args, stream);
    }
    return QB_FAIL(QB_ERR_DEVICE, "gemm_float: %s", why);
}
