/* kernels/quantize_internal.h - one element of the quantise passes, and the rows of kernels/x86. */
#ifndef QB_KERNELS_QUANTIZE_INTERNAL_H
#define QB_KERNELS_QUANTIZE_INTERNAL_H

#include "kernels/quantize.h"

#include <math.h>

/* Equation (1) of quantize.h. The comparisons are written so that a NaN (of x, or inf / inf) falls
 * through to 0. */
static inline int8_t qb__code_s8(float x, float scale)
{
    if (scale == 0.0f) return 0;
    float r = rintf(x / scale); /* halves to even: the default rounding mode */
    if (r >= 127.0f) return 127;
    if (r <= -127.0f) return -127;
    return r == r ? (int8_t)r : 0;
}
/* The larger; a NaN in x counts as 0. */
static inline float qb__max_abs(float max_abs, float x)
{
    float a = fabsf(x);
    return a > max_abs ? a : max_abs;
}

#define QB__QUANTIZE_ROW(isa)                                                                      \
    float qb__absmax_##isa(const float *x, size_t n);                                              \
    void qb__absmax_channels_##isa(const float *x, size_t n, float *max_abs);                      \
    int32_t qb__quantize_s8_##isa(const float *x, size_t n, float scale, int8_t *q);               \
    int32_t qb__quantize_s8_channels_##isa(const float *x, size_t n, const float *scale,           \
                                           int8_t *q);                                             \
    void qb__requantize_##isa(float *y, size_t n, float scale, int8_t *q);                         \
    void qb__requantize_channels_##isa(float *y, size_t n, const float *scale, int8_t *q);
QB__QUANTIZE_ROW(avx2)
QB__QUANTIZE_ROW(avx512)
#undef QB__QUANTIZE_ROW

#endif
