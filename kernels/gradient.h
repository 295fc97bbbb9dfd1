/* kernels/gradient.h - the backward passes of pointwise.h, row by row, and the derivatives of
 * softmax.
 *
 * A row's result depends on its values alone; sums over a row are in double or in a fixed blocked
 * order. */
#ifndef QB_KERNELS_GRADIENT_H
#define QB_KERNELS_GRADIENT_H

#include "kernels/registry.h"

#include <stdbool.h>

#ifdef __cplusplus
extern "C" {
#endif

/* One norm: y = u gain + bias, u = (x - mean) / sqrt(var + eps), mean = 0 where not centred. */
typedef struct qb_norm_shape {
    size_t n;
    bool centred; /* LayerNorm */
    double eps;
    const float *gain;
    size_t gain_step; /* 0 = RMSNorm-Single (one gain) */
} qb_norm_shape;

typedef struct qb_gradient_row {
    qb_kernel_info info;
    /* dx (+)= (g - mean(g) - u mean(g u)) / sqrt(var + eps) with g = dy gain (mean(g) only where
     * centred); dgain += dy u, (n) or summed to (1); dbias (n) += dy, or NULL. */
    void (*norm)(const qb_norm_shape *norm, const float *x, const float *dy, bool accumulate,
                 float *dx, float *dgain, float *dbias);
    void (*gelu_tanh)(const float *x, size_t n, float *d); /* d *= gelu'(x) */
    void (*relu)(const float *x, size_t n, float *d);      /* d = 0 where x <= 0 */
    /* d_gate = d silu'(gate) up, d_up = d silu(gate); d may be d_up. */
    void (*swiglu)(const float *gate, const float *up, size_t n, const float *d, float *d_gate,
                   float *d_up);
    /* x = e^(x - log_sum), log_sum >= all x: softmax of a row whose log-sum-exp is known. */
    void (*exp_shift)(float *x, size_t n, float log_sum);
    /* d = p (d - sum p d); returns that sum. */
    float (*softmax)(const float *p, size_t n, float *d);
    void (*scale)(const float *x, size_t n, float factor, float *y); /* y may be x */
    double (*sum_squares)(const float *x, size_t n);
} qb_gradient_row;
extern const qb_gradient_row qb_gradient_kernels[];

#ifdef __cplusplus
}
#endif
#endif
