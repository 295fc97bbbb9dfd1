/* kernels/cuda/gemm_bf16.h - bf16 products of a training step whose epilogue is worth a kernel of
 * our own: what follows a tile happens while the next one is multiplied, and so costs its traffic
 * alone.
 *
 *     z[i, j] = sum over k of x[i, k] * w[j, k]                                                 (1)
 *     QB_BF16_GELU   y = GELU(z), aux = its slope at z, by which TIMES leads the gradient back
 *     QB_BF16_TIMES  y = z * aux; w is stored as (k, n)
 *     QB_BF16_RELU   y = max(z, 0)
 *     QB_BF16_WHERE  y = z where aux > 0, else 0; w is stored as (k, n)
 *     QB_BF16_EXP    y = e^(z - shift[i]), and the sums of y's rows                          (2)
 *
 * sums[t, i] is the f32 sum of (2) over the columns t * QB_BF16_TILE to (t + 1) * QB_BF16_TILE of
 * row i; where it is no number, or above QB_BF16_MOST, maxima[t, i] is the largest z there. y NULL:
 * the sums alone. Sums have a fixed order. Queued. */
#ifndef QB_KERNELS_CUDA_GEMM_BF16_H
#define QB_KERNELS_CUDA_GEMM_BF16_H

#include "kernels/cuda/matrix.h"

#ifdef __cplusplus
extern "C" {
#endif

#define QB_BF16_TILE 192
#define QB_BF16_MOST 1e18f /* gradients of sums up to here are far from bf16's smallest numbers */

typedef enum {
    QB_BF16_GELU,
    QB_BF16_TIMES,
    QB_BF16_RELU,
    QB_BF16_WHERE,
    QB_BF16_EXP
} qb_cuda_gemm_bf16_epilogue;

typedef struct qb_cuda_gemm_bf16_args {
    qb_cuda_gemm_bf16_epilogue epilogue;
    size_t m, n, k;
    const void *x, *w; /* (m, k); (n, k), of TIMES and WHERE (k, n) */
    void *y, *aux;     /* (m, n) */
    size_t x_stride, w_stride, y_stride, aux_stride;
    const float *shift;   /* (m) */
    float *sums, *maxima; /* (tiles of n, m) */
    const int32_t *run;   /* NULL, or nothing happens where it is 0 */
} qb_cuda_gemm_bf16_args;

typedef struct qb_cuda_gemm_bf16_row {
    qb_kernel_info info;
    const char *(*refuse)(const qb_cuda_gemm_bf16_args *args); /* NULL = takes all */
    /* NULL: the caller does it, by products of cublaslt.h and passes of train.h */
    qb_status (*run)(const qb_cuda_gemm_bf16_args *args, qb_cuda_stream stream);
} qb_cuda_gemm_bf16_row;
extern const qb_cuda_gemm_bf16_row qb_cuda_gemm_bf16_kernels[]; /* ends with a zero row */

/* NULL, or why the caller has to do it. */
const char *qb_cuda_gemm_bf16_refuse(const qb_cuda_gemm_bf16_args *args);
qb_status qb_cuda_gemm_bf16(const qb_cuda_gemm_bf16_args *args, qb_cuda_stream stream);

#ifdef __cplusplus
}
#endif
#endif
