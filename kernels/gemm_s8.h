/* kernels/gemm_s8.h - int8 matrix product with exact int32 sums, and its epilogue.
 *
 *     acc[m, n] = sum over k < K of x[m, k] * w[n, k]                                           (1)
 *     y[m, n]   = (float)acc[m, n] * (x_scale[m] * w_scale[n]) + bias[n]                        (2)
 *
 * (1) is exact, (2) is done in f32 with one rounding an operation, in the order written and without
 * fused multiply-add: so all rows return the same bits. M = 1 is the decode case (a GEMV bound by
 * reading w); rows may treat small M apart. Never allocates. */
#ifndef QB_KERNELS_GEMM_S8_H
#define QB_KERNELS_GEMM_S8_H

#include "core/threads.h"
#include "kernels/registry.h"

#ifdef __cplusplus
extern "C" {
#endif

#define QB_GEMM_S8_MAX_K 131071 /* floor((2^31 - 1) / 128^2): beyond it (1) can overflow */
#define QB_GEMM_S8_K_ALIGN 64   /* rows of x are padded with zero codes to a multiple of this */

/* The row stride to choose for x: an odd number of cache lines, so that the rows of a tile do not
 * fall into the same sets of the cache. */
static inline size_t qb_gemm_s8_x_stride(size_t k)
{
    return ((k + QB_GEMM_S8_K_ALIGN - 1) / QB_GEMM_S8_K_ALIGN | 1) * QB_GEMM_S8_K_ALIGN;
}

typedef struct qb_gemm_s8_args {
    size_t m, n, k;  /* 1 <= k <= QB_GEMM_S8_MAX_K */
    const int8_t *x; /* (m, k) codes; row stride x_stride; 64-byte aligned; the columns from k to
                        the next multiple of QB_GEMM_S8_K_ALIGN are 0 */
    size_t x_stride; /* a multiple of QB_GEMM_S8_K_ALIGN */
    const int32_t *x_sum; /* (m) sum of the codes of each row of x */
    const void *w;        /* packed by the same row's pack() */
    int32_t *acc;         /* (m, n) dense, or NULL: (1) as it is, for tests */
    float *y;             /* (m, n) with row stride y_stride, or NULL */
    size_t y_stride;
    const float *x_scale; /* x_scale[m * x_scale_step]: step 1 per token, 0 per tensor */
    size_t x_scale_step;
    const float *w_scale; /* likewise over n */
    size_t w_scale_step;
    const float *bias;      /* (n) or NULL */
    uint32_t *max_abs_bits; /* NULL, or raised atomically to the bits of max |y| (a non-negative
                               float compares like its bits); the caller sets it to 0 before */
} qb_gemm_s8_args;

typedef struct qb_gemm_s8_row {
    qb_kernel_info info;
    size_t (*packed_bytes)(size_t n, size_t k);
    /* w (n, k) row-major s8 codes in -127..127 (-128 is allowed too) into packed, 64-byte aligned.
     * Packs output channels [n0, n1); n0 a multiple of pack_n_align, n1 too or n. */
    void (*pack)(const int8_t *w_rows, size_t n0, size_t n1, size_t n, size_t k, void *packed);
    size_t pack_n_align;
    /* The work is cut into tasks that write disjoint parts of the output; n_threads is a hint for
     * the size of a task and never changes a bit of the result. */
    size_t (*n_tasks)(const qb_gemm_s8_args *args, size_t n_threads);
    void (*task)(const qb_gemm_s8_args *args, size_t i, size_t n_tasks);
} qb_gemm_s8_row;
extern const qb_gemm_s8_row qb_gemm_s8_kernels[];

/* Runs several products (q, k and v of one layer) as one parallel loop over the pool (NULL = one
 * thread). 1 <= n_jobs <= QB_MAX_JOBS (kernels/jobs.h). Never allocates. */
void qb_gemm_s8_run(const qb_gemm_s8_row *row, const qb_gemm_s8_args *jobs, size_t n_jobs,
                    qb_pool *pool);

#ifdef __cplusplus
}
#endif
#endif
