/* kernels/gemm_f32.h - f32 matrix product.
 *
 *     y[m, n] = sum over k < K of x[m, k] * w[n, k] + bias[n]                                   (1)
 *
 * The order of the sum depends on k and on the row alone, not on m, M or the number of threads, so
 * a token's result does not depend on its batch within one row. M = 1 is the decode case. Training
 * also takes x or w transposed and adds to y, which the weights' gradients need. */
#ifndef QB_KERNELS_GEMM_F32_H
#define QB_KERNELS_GEMM_F32_H

#include "core/threads.h"
#include "kernels/registry.h"

#include <stdbool.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct qb_gemm_f32_args {
    size_t m, n, k;
    const float *x; /* (m, k), or (k, m) where x_transposed; row stride x_stride */
    size_t x_stride;
    bool x_transposed;
    const void *w; /* packed; one of k <= 256 serves any smaller n too */
    float *y;      /* (m, n), row stride y_stride */
    size_t y_stride;
    bool accumulate;        /* y += instead of y = */
    const float *bias;      /* (n) or NULL */
    uint32_t *max_abs_bits; /* as in gemm_s8.h */
} qb_gemm_f32_args;

typedef struct qb_gemm_f32_row {
    qb_kernel_info info;
    size_t (*packed_bytes)(size_t n, size_t k);
    /* Output channels [n0, n1); w_rows points at row n0, (n1 - n0, k) dense. n0 is a multiple of
     * pack_n_align, n1 too or n. */
    void (*pack)(const float *w_rows, size_t n0, size_t n1, size_t n, size_t k, void *packed);
    /* The same from w (k, n) with that row stride: w points at channel n0 of its first row. */
    void (*pack_transposed)(const float *w, size_t stride, size_t n0, size_t n1, size_t n, size_t k,
                            void *packed);
    size_t pack_n_align;
    size_t (*n_tasks)(const qb_gemm_f32_args *args, size_t n_threads);
    void (*task)(const qb_gemm_f32_args *args, size_t i, size_t n_tasks);
} qb_gemm_f32_row;
extern const qb_gemm_f32_row qb_gemm_f32_kernels[];

/* Several products as one parallel loop, as qb_gemm_s8_run. */
void qb_gemm_f32_run(const qb_gemm_f32_row *row, const qb_gemm_f32_args *jobs, size_t n_jobs,
                     qb_pool *pool);

#ifdef __cplusplus
}
#endif
#endif
