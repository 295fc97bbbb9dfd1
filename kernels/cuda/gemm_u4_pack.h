/* kernels/cuda/gemm_u4_pack.h - 4-bit weights in the layout of gemm_u4.h, still on the host. */
#ifndef QB_KERNELS_CUDA_GEMM_U4_PACK_H
#define QB_KERNELS_CUDA_GEMM_U4_PACK_H

#include "kernels/gemm_u4.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct qb__cuda_u4_host { /* as qb_cuda_u4; the arrays are from qb_alloc */
    size_t n, k, n_pad, k_pad, group, n_groups;
    uint32_t *codes;
    float *scale;
    int16_t *zero_point;
    float *x_scale;        /* NULL = none */
    int16_t *x_zero_point; /* NULL = none */
} qb__cuda_u4_host;

/* As qb_cuda_u4_pack_many, without a device. Where *why is set, *out is untouched. */
qb_status qb__cuda_u4_pack_host(const qb_u4_weights *weights, size_t n_weights,
                                qb__cuda_u4_host *out, const char **why);
void qb__cuda_u4_host_free(qb__cuda_u4_host *host);

#ifdef __cplusplus
}
#endif
#endif
