/* kernels/pointwise_internal.h - the functions of the rows that stand in kernels/x86, and what they
 * borrow from the reference. */
#ifndef QB_KERNELS_POINTWISE_INTERNAL_H
#define QB_KERNELS_POINTWISE_INTERNAL_H

#include "kernels/pointwise.h"

#define QB_POINTWISE_DECLARE(isa)                                                                  \
    void qb__layernorm_##isa(const float *x, size_t n, const float *gain, const float *bias,       \
                             double eps, float *y);                                                \
    void qb__rmsnorm_##isa(const float *x, size_t n, const float *gain, size_t gain_step,          \
                           double eps, float *y);                                                  \
    void qb__gelu_tanh_##isa(const float *x, size_t n, float *y);                                  \
    void qb__relu_##isa(const float *x, size_t n, float *y);                                       \
    void qb__swiglu_##isa(const float *gate, const float *up, size_t n, float *y);                 \
    void qb__add_##isa(float *x, const float *y, size_t n);                                        \
    void qb__rope_##isa(float *x, size_t n_heads, size_t half, const float *cosine,                \
                        const float *sine);                                                        \
    void qb__head_gates_##isa(const float *x, size_t n, const float *w, const float *bias,         \
                              size_t n_heads, float *gates);                                       \
    double qb__logsumexp_##isa(const float *x, size_t n, int32_t *argmax);                         \
    void qb__logit_stats_##isa(const float *a, const float *b, size_t n, int32_t target,           \
                               qb_logit_stats *out);
QB_POINTWISE_DECLARE(ref)
QB_POINTWISE_DECLARE(avx2)
QB_POINTWISE_DECLARE(avx512)
#undef QB_POINTWISE_DECLARE

#endif
