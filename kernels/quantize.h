/* kernels/quantize.h - absmax and quantise passes over f32 matrices (docs/schemes.md).
 *
 *     scale = max|x| / 127          q = clamp(round_half_even(x / scale), -127, 127)            (1)
 *
 * An all-zero slice has scale 0 and codes 0; so has a slice whose max/127 underflows to 0. (1) is a
 * true division, so every row gives the same bits. NaN counts as 0 in a maximum and gets code 0. */
#ifndef QB_KERNELS_QUANTIZE_H
#define QB_KERNELS_QUANTIZE_H

#include "kernels/registry.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct qb_quantize_row {
    qb_kernel_info info;
    /* max over c of |x[c]|, c < n; 0 for n = 0. */
    float (*absmax)(const float *x, size_t n);
    /* max_abs[c] = max(max_abs[c], |x[c]|): per-channel maxima, called row by row. */
    void (*absmax_channels)(const float *x, size_t n, float *max_abs);
    /* q[c] = (1) with one scale; returns the sum of the codes (gemm_s8 needs it). q has n elements.
     */
    int32_t (*quantize_s8)(const float *x, size_t n, float scale, int8_t *q);
    /* q[c] = (1) with scale[c]. */
    int32_t (*quantize_s8_channels)(const float *x, size_t n, const float *scale, int8_t *q);
    /* y[c] = q * scale with q from (1), in place; the codes go to q unless it is NULL. */
    void (*requantize)(float *y, size_t n, float scale, int8_t *q);
    /* y[c] = q * scale[c] likewise. */
    void (*requantize_channels)(float *y, size_t n, const float *scale, int8_t *q);
} qb_quantize_row;
extern const qb_quantize_row qb_quantize_kernels[];

#ifdef __cplusplus
}
#endif
#endif
