/* kernels/cuda/gemm_bf16_internal.h - the row of gemm_bf16.h, between its files. */
#ifndef QB_KERNELS_CUDA_GEMM_BF16_INTERNAL_H
#define QB_KERNELS_CUDA_GEMM_BF16_INTERNAL_H

#include "kernels/cuda/gemm_bf16.h"

#ifdef __cplusplus
extern "C" {
#endif

const char *qb__cuda_gemm_bf16_refuse_sm90(const qb_cuda_gemm_bf16_args *args);
qb_status qb__cuda_gemm_bf16_sm90(const qb_cuda_gemm_bf16_args *args, qb_cuda_stream stream);

#ifdef __cplusplus
}
#endif
#endif
