/* kernels/cuda/linear.h - one product of a layer as it lies on the device: what quant/linear.h is
 * on the CPU. q, k and v (and gate and up) are one product with segments. Filled by infer/, read by
 * the products' launchers and by the decode kernels. */
#ifndef QB_KERNELS_CUDA_LINEAR_H
#define QB_KERNELS_CUDA_LINEAR_H

#include "kernels/cuda/gemm_u4.h"
#include "kernels/cuda/pointwise.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum { QB_CUDA_LINEAR_FLOAT, QB_CUDA_LINEAR_S8, QB_CUDA_LINEAR_U4 } qb_cuda_linear_kind;
typedef enum {
    QB_CUDA_REQUANT_NONE,
    QB_CUDA_REQUANT_DYNAMIC,
    QB_CUDA_REQUANT_STATIC
} qb_cuda_requant;

typedef struct qb_cuda_linear {
    qb_cuda_linear_kind kind;
    size_t n, k;
    qb_cuda_segments segments;
    qb_cuda_dtype type; /* FLOAT: of w; F32 or BF16 */
    void *w;            /* FLOAT, S8: (n, k) row-major, row stride w_stride; owned by infer/ */
    size_t w_stride;    /* qb_cuda_stride(k) */
    float *w_scale;     /* S8: (n) */
    qb_cuda_u4 u4;
    float *bias;             /* (n) or NULL */
    qb_stage_kind input;     /* how the input is quantised; FLOAT where it is not */
    float *in_scale;         /* STATIC: (1), CHANNEL: (k) */
    float outlier_min;       /* > 0: input channels of this size stay float (outliers.h) */
    qb_cuda_requant requant; /* of the output, per segment (absmax 8) */
    float *out_scale;        /* STATIC: one a segment */
} qb_cuda_linear;

#ifdef __cplusplus
}
#endif
#endif
