/* kernels/pointwise.h - what is done to one token's vector between the products: norms,
 * activations, rotary positions, residual sums, and the statistics of a row of logits.
 *
 * Sums inside a norm and a log-sum-exp are done in double or in a fixed blocked order, so a row's
 * result depends on its values alone. */
#ifndef QB_KERNELS_POINTWISE_H
#define QB_KERNELS_POINTWISE_H

#include "core/kinds.h"
#include "kernels/registry.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Of a pair of logit rows, a (full precision) and b (scheme); p = softmax(a), r = softmax(b). */
typedef struct qb_logit_stats {
    double nll_a, nll_b;  /* -log p[target], -log r[target]; 0 where target < 0 */
    double kl;            /* sum p log(p / r) >= 0, nats */
    float max_diff;       /* max |a - b| */
    int32_t top_a, top_b; /* argmax, lowest index at ties */
} qb_logit_stats;

typedef struct qb_pointwise_row {
    qb_kernel_info info;
    /* y = (x - mean) / sqrt(var + eps) * gain + bias; bias NULL = none. var is the biased variance.
     */
    void (*layernorm)(const float *x, size_t n, const float *gain, const float *bias, double eps,
                      float *y);
    /* y = x / sqrt(mean(x^2) + eps) * gain[i]; gain_step 0 = RMSNorm-Single (one gain). */
    void (*rmsnorm)(const float *x, size_t n, const float *gain, size_t gain_step, double eps,
                    float *y);
    void (*gelu_tanh)(const float *x, size_t n, float *y); /* y may be x */
    void (*relu)(const float *x, size_t n, float *y);      /* y may be x */
    void (*swiglu)(const float *gate, const float *up, size_t n,
                   float *y);                        /* silu(gate) * up; y may be either */
    void (*add)(float *x, const float *y, size_t n); /* x += y */
    /* Rotates the pairs (i, i + half) of each of n_heads heads of 2 * half elements, in place:
     * cosine, sine (half) of this position's angles. */
    void (*rope)(float *x, size_t n_heads, size_t half, const float *cosine, const float *sine);
    /* gates[h] = 1 / (1 + e^-(w[h] . x + bias[h])): gated attention (model/arch.h); w (n_heads, n).
     */
    void (*head_gates)(const float *x, size_t n, const float *w, const float *bias, size_t n_heads,
                       float *gates);
    /* log(sum exp x) and the argmax. */
    double (*logsumexp)(const float *x, size_t n, int32_t *argmax);
    void (*logit_stats)(const float *a, const float *b, size_t n, int32_t target,
                        qb_logit_stats *out);
} qb_pointwise_row;
extern const qb_pointwise_row qb_pointwise_kernels[];

#ifdef __cplusplus
}
#endif
#endif
