/* kernels/gemm_u4.h - product of f32 activations with 4-bit zero-point weights.
 *
 *     w[n, k] = (q[n, k] - zp[s]) * scale[s]                                                    (1)
 *     y[m, n] = sum over k < K of x[m, k] * w[n, k] + bias[n]                                   (2)
 *
 * s is the slice of (n, k): one per n, per k, of all, or groups along k (qb_u4_weights).
 *
 * Weight-only quantisation: activations keep at least 15 bits and a sign. A row computes either in
 * f32 (the reference, in double), or with x in block floating point: blocks of QB_GEMM_U4_BLOCK
 * input channels share a scale and hold 16-bit integers, so that sums inside a block are exact
 * integers; an element's error is then at most max|x of its block| * 2^-16. A token's result
 * depends on the row, the weights and its own x alone. A slice with scale 0 (constant) has codes 0
 * and the value fill. */
#ifndef QB_KERNELS_GEMM_U4_H
#define QB_KERNELS_GEMM_U4_H

#include "core/threads.h"
#include "kernels/registry.h"

#ifdef __cplusplus
extern "C" {
#endif

#define QB_GEMM_U4_BLOCK 128

typedef struct qb_u4_weights { /* (1); everything borrowed */
    size_t n, k;
    const uint8_t *codes; /* (n, ceil(k/2)) two a byte, even k in the low nibble */
    /* slice of (n, k) = n * n_step + (k / k_group) * k_step:
     * out: n_step 1, k_step 0 | in: 0, k_group 1, k_step 1 | tensor: 0, 0 |
     * groups of g: n_step ceil(k/g), k_group g, k_step 1. k_group >= 1 always */
    size_t n_step, k_group, k_step;
    const float *scale;        /* per slice; >= 0 */
    const int32_t *zero_point; /* per slice */
    const float *fill;         /* per slice, NULL = 0: the value where scale is 0 */
} qb_u4_weights;

typedef struct qb_gemm_u4_args {
    size_t m, n, k;
    const float *x; /* (m, k), row stride x_stride elements */
    size_t x_stride;
    const void *x_prepared; /* from the row's prepare(), shared by products with the same x AND the
                               same per-k slices; NULL where prepared_bytes is 0 */
    const void *w;          /* packed */
    float *y;               /* (m, n), row stride y_stride */
    size_t y_stride;
    const float *bias; /* (n) or NULL */
} qb_gemm_u4_args;

typedef struct qb_gemm_u4_row {
    qb_kernel_info info;
    size_t (*packed_bytes)(const qb_u4_weights *weights);
    /* Packs output channels [n0, n1) into packed (as gemm_s8); NULL = done, else why this row
     * cannot take these weights (a zero point too large), and the caller tries the next row. */
    const char *(*pack)(const qb_u4_weights *weights, size_t n0, size_t n1, void *packed);
    size_t pack_n_align;
    /* Bytes for prepare; 0 = the row reads x itself. */
    size_t (*prepared_bytes)(size_t m, size_t k);
    /* Rows [m0, m1) of x into prepared; `packed` gives per-k scales where the weights have them. */
    void (*prepare)(const float *x, size_t x_stride, size_t m0, size_t m1, size_t m, size_t k,
                    const void *packed, void *prepared);
    size_t (*n_tasks)(const qb_gemm_u4_args *args, size_t n_threads);
    void (*task)(const qb_gemm_u4_args *args, size_t i, size_t n_tasks);
} qb_gemm_u4_row;
extern const qb_gemm_u4_row qb_gemm_u4_kernels[];

/* Several products as one parallel loop, as qb_gemm_s8_run. */
void qb_gemm_u4_run(const qb_gemm_u4_row *row, const qb_gemm_u4_args *jobs, size_t n_jobs,
                    qb_pool *pool);

#ifdef __cplusplus
}
#endif
#endif
