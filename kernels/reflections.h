/* kernels/reflections.h - products of Householder reflections, applied to columns of doubles: what
 * the QR decomposition behind OrthoAdam's bases (train/rotation.h) spends its time on.
 *
 * H_0 H_1 ... H_(m-1) = I - V T V^T, T upper triangular (the compact WY form: Schreiber and Van
 * Loan 1989). All rows give the same bits, on any machine: every sum runs over 8 lanes, one fused
 * multiply-add a term, and the lanes are added up in one order. */
#ifndef QB_KERNELS_REFLECTIONS_H
#define QB_KERNELS_REFLECTIONS_H

#include "kernels/registry.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { QB_REFLECTIONS = 32, QB_REFLECTION_LANES = 8 }; /* m, and what n is a multiple of */

typedef struct qb_reflections {
    size_t n;        /* elements of a vector */
    const double *v; /* (m, n), stride elements apart */
    size_t stride;
    const double *t; /* (m, m) row-major: T, or T^T for the product's transpose */
} qb_reflections;

typedef struct qb_reflections_row {
    qb_kernel_info info;
    /* w (m) = V^T x */
    void (*dots)(const qb_reflections *reflections, const double *x, double *w);
    /* Each of n_columns columns (n), stride elements apart, becomes (I - V T V^T) times itself. */
    void (*apply)(const qb_reflections *reflections, double *columns, size_t stride,
                  size_t n_columns);
} qb_reflections_row;
extern const qb_reflections_row qb_reflections_kernels[];

#ifdef __cplusplus
}
#endif
#endif
