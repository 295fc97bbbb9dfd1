/* kernels/cuda/gemm_float_internal.h - what the rows of gemm_float.h share. */
#ifndef QB_KERNELS_CUDA_GEMM_FLOAT_INTERNAL_H
#define QB_KERNELS_CUDA_GEMM_FLOAT_INTERNAL_H

#include "kernels/cuda/gemm_float.h"

#ifdef __cplusplus
extern "C" {
#endif

qb_status qb__cuda_gemm_float_plain(const qb_cuda_gemm_float_args *args, qb_cuda_stream stream);

/* y = act(y + bias) in place. */
qb_status qb__cuda_gemm_float_finish(void *y, qb_cuda_dtype type, size_t stride, size_t m, size_t n,
                                     const float *bias, qb_epilogue_act act, qb_cuda_stream stream);

/* out = bias rounded to bf16. */
qb_status qb__cuda_bias_bf16(const float *bias, size_t n, void *out, qb_cuda_stream stream);

/* gemm_stream.cuh: a few tokens. */
const char *qb__cuda_gemm_float_stream_refuse(const qb_cuda_gemm_float_args *args);
qb_status qb__cuda_gemm_float_stream(const qb_cuda_gemm_float_args *args, qb_cuda_stream stream);
bool qb__cuda_gemm_float_stream_is_slower(const qb_cuda_gemm_float_args *args);

/* cuBLASLt's row; where the build has no cublasLt.h, it refuses everything. */
const char *qb__cuda_gemm_float_lt_refuse(const qb_cuda_gemm_float_args *args);
qb_status qb__cuda_gemm_float_lt(const qb_cuda_gemm_float_args *args, qb_cuda_stream stream);

#ifdef __cplusplus
}
#endif
#endif
