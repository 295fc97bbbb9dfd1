/* kernels/pointwise.c - the reference of pointwise.h in plain C with sums in double, and its table.
 */
#include "kernels/gelu_internal.h"
#include "kernels/pointwise_internal.h"

#include <math.h>

void qb__layernorm_ref(const float *x, size_t n, const float *gain, const float *bias, double eps,
                       float *y)
{
    double sum = 0, squares = 0;
    for (size_t i = 0; i < n; i++) sum += x[i];
    double mean = sum / (double)n;
    for (size_t i = 0; i < n; i++) squares += (x[i] - mean) * (x[i] - mean);
    double inverse = 1 / sqrt(squares / (double)n + eps);
    for (size_t i = 0; i < n; i++)
        y[i] = (float)((x[i] - mean) * inverse * gain[i] + (bias ? bias[i] : 0));
}

void qb__rmsnorm_ref(const float *x, size_t n, const float *gain, size_t gain_step, double eps,
                     float *y)
{
    double squares = 0;
    for (size_t i = 0; i < n; i++) squares += (double)x[i] * x[i];
    double inverse = 1 / sqrt(squares / (double)n + eps);
    for (size_t i = 0; i < n; i++) y[i] = (float)(x[i] * inverse * gain[i * gain_step]);
}

void qb__gelu_tanh_ref(const float *x, size_t n, float *y)
{
    for (size_t i = 0; i < n; i++) {
        double v = x[i];
        y[i] = (float)(0.5 * v * (1 + tanh(QB__GELU_A / 2 * (v + QB__GELU_B * v * v * v))));
    }
}

void qb__relu_ref(const float *x, size_t n, float *y)
{
    for (size_t i = 0; i < n; i++) y[i] = x[i] < 0 ? 0 : x[i];
}

void qb__swiglu_ref(const float *gate, const float *up, size_t n, float *y)
{
    for (size_t i = 0; i < n; i++) y[i] = (float)(gate[i] / (1 + exp(-(double)gate[i])) * up[i]);
}

void qb__add_ref(float *x, const float *y, size_t n)
{
    for (size_t i = 0; i < n; i++) x[i] += y[i];
}

void qb__rope_ref(float *x, size_t n_heads, size_t half, const float *cosine, const float *sine)
{
    for (size_t h = 0; h < n_heads; h++, x += 2 * half)
        for (size_t i = 0; i < half; i++) {
            float a = x[i], b = x[i + half];
            x[i] = a * cosine[i] - b * sine[i];
            x[i + half] = b * cosine[i] + a * sine[i];
        }
}

void qb__head_gates_ref(const float *x, size_t n, const float *w, const float *bias, size_t n_heads,
                        float *gates)
{
    for (size_t h = 0; h < n_heads; h++, w += n) {
        double sum = bias[h];
        for (size_t i = 0; i < n; i++) sum += (double)w[i] * x[i];
        gates[h] = (float)(1 / (1 + exp(-sum)));
    }
}

static int32_t argmax(const float *x, size_t n)
{
    size_t best = 0;
    for (size_t i = 1; i < n; i++)
        if (x[i] > x[best]) best = i;
    return (int32_t)best;
}

double qb__logsumexp_ref(const float *x, size_t n, int32_t *top)
{
    *top = argmax(x, n);
    double max = x[*top], sum = 0;
    if (isinf(max)) return max;
    for (size_t i = 0; i < n; i++) sum += exp(x[i] - max);
    return max + log(sum);
}

void qb__logit_stats_ref(const float *a, const float *b, size_t n, int32_t target,
                         qb_logit_stats *out)
{
    double lse_a = qb__logsumexp_ref(a, n, &out->top_a),
           lse_b = qb__logsumexp_ref(b, n, &out->top_b);
    double kl = 0;
    float max_diff = 0;
    for (size_t i = 0; i < n; i++) {
        double log_p = a[i] - lse_a, log_r = b[i] - lse_b;
        if (a[i] != b[i]) max_diff = fmaxf(max_diff, fabsf(a[i] - b[i]));
        if (log_p != -INFINITY) kl += exp(log_p) * (log_p - log_r);
    }
    out->kl = kl < 0 ? 0 : kl;
    out->max_diff = max_diff;
    out->nll_a = target < 0 ? 0 : lse_a - a[target];
    out->nll_b = target < 0 ? 0 : lse_b - b[target];
}

#define ROW(isa, needs)                                                                            \
    {                                                                                              \
        {"pointwise/" #isa, "cpu", needs}, qb__layernorm_##isa, qb__rmsnorm_##isa,                 \
            qb__gelu_tanh_##isa, qb__relu_##isa, qb__swiglu_##isa, qb__add_##isa, qb__rope_##isa,  \
            qb__head_gates_##isa, qb__logsumexp_##isa, qb__logit_stats_##isa                       \
    }
const qb_pointwise_row qb_pointwise_kernels[] = {
#ifdef QB_WITH_X86
    ROW(avx512, QB_CPU_AVX512),
    ROW(avx2, QB_CPU_AVX2),
#endif
    ROW(ref, 0),
    {{0}, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0},
};
