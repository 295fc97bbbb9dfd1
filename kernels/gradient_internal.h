/* kernels/gradient_internal.h - the functions of the rows that stand in kernels/x86. */
#ifndef QB_KERNELS_GRADIENT_INTERNAL_H
#define QB_KERNELS_GRADIENT_INTERNAL_H

#include "kernels/gradient.h"

#define QB_GRADIENT_DECLARE(isa)                                                                   \
    void qb__norm_backward_##isa(const qb_norm_shape *norm, const float *x, const float *dy,       \
                                 bool accumulate, float *dx, float *dgain, float *dbias);          \
    void qb__gelu_tanh_backward_##isa(const float *x, size_t n, float *d);                         \
    void qb__relu_backward_##isa(const float *x, size_t n, float *d);                              \
    void qb__swiglu_backward_##isa(const float *gate, const float *up, size_t n, const float *d,   \
                                   float *d_gate, float *d_up);                                    \
    void qb__exp_shift_##isa(float *x, size_t n, float log_sum);                                   \
    float qb__softmax_backward_##isa(const float *p, size_t n, float *d);                          \
    void qb__scale_##isa(const float *x, size_t n, float factor, float *y);                        \
    double qb__sum_squares_##isa(const float *x, size_t n);
QB_GRADIENT_DECLARE(ref)
QB_GRADIENT_DECLARE(avx2)
QB_GRADIENT_DECLARE(avx512)
#undef QB_GRADIENT_DECLARE

#endif
