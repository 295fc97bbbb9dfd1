/* kernels/cuda/outliers.h - products whose outlying input channels stay float: (4) of
 * quant/schemes.h. The steps around the product of codes:
 *
 *     O = {j : |x[m, j]| >= least in any row m}                                               (1)
 *     q = (2) of pointwise.h with a scale a row over the channels not in O; 0 in O            (2)
 *     y[m, n] += (sum over j of O, ascending, of x[m, j] w[n, j]) * w_scale[n]                (3)
 *
 * The sum of (3) is made in f32, one rounding an operation in this order, as on the CPU. How many
 * channels are in O stays on the device, so the steps can be captured in a graph. */
#ifndef QB_KERNELS_CUDA_OUTLIERS_H
#define QB_KERNELS_CUDA_OUTLIERS_H

#include "kernels/cuda/matrix.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A set O in device memory, owned by who made it. */
typedef struct qb_cuda_outliers {
    uint8_t *is_outlier; /* (k) 0 or 1 */
    int32_t *channel;    /* (n) ascending */
    int32_t *n;
} qb_cuda_outliers;

/* (1) of x (m, k), row stride x_stride. */
qb_status qb_cuda_outliers_find(const float *x, size_t m, size_t k, size_t x_stride, float least,
                                const qb_cuda_outliers *out, qb_cuda_stream stream);

typedef struct qb_cuda_outliers_stage_args {
    size_t m, k;
    float *x; /* (m, k) */
    size_t x_stride;
    const qb_cuda_outliers *outliers;
    int8_t *q;    /* (m, k) with x's stride; NULL: a twin's x becomes code * scale outside O */
    float *scale; /* (m) out */
} qb_cuda_outliers_stage_args;
qb_status qb_cuda_outliers_stage(const qb_cuda_outliers_stage_args *args, qb_cuda_stream stream);

typedef struct qb_cuda_outliers_add_args {
    size_t m, n;
    const float *x;
    size_t x_stride;
    const qb_cuda_outliers *outliers;
    const int8_t *w; /* (n, k) codes */
    size_t w_stride;
    const float *w_scale; /* (n) */
    int8_t *gathered;     /* scratch (k, n): the columns of O */
    qb_cuda_dtype type;   /* F32 or BF16, of y */
    void *y;
    size_t y_stride;
} qb_cuda_outliers_add_args;
qb_status qb_cuda_outliers_add(const qb_cuda_outliers_add_args *args, qb_cuda_stream stream);

#ifdef __cplusplus
}
#endif
#endif
