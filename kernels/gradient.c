/* kernels/gradient.c - the reference of gradient.h in plain C with sums in double, and its table.
 */
#include "kernels/gelu_internal.h"
#include "kernels/gradient_internal.h"

#include <math.h>

void qb__norm_backward_ref(const qb_norm_shape *s, const float *x, const float *dy, bool accumulate,
                           float *dx, float *dgain, float *dbias)
{
    double mean = 0, squares = 0, mean_g = 0, mean_gu = 0, n = (double)s->n;
    for (size_t i = 0; s->centred && i < s->n; i++) mean += x[i] / n;
    for (size_t i = 0; i < s->n; i++) squares += (x[i] - mean) * (x[i] - mean);
    double inverse = 1 / sqrt(squares / n + s->eps);
    for (size_t i = 0; i < s->n; i++) {
        double u = (x[i] - mean) * inverse, g = (double)dy[i] * s->gain[i * s->gain_step];
        if (s->centred) mean_g += g / n;
        mean_gu += g * u / n;
        dgain[i * s->gain_step] += (float)(dy[i] * u);
        if (dbias) dbias[i] += dy[i];
    }
    for (size_t i = 0; i < s->n; i++) {
        double u = (x[i] - mean) * inverse, g = (double)dy[i] * s->gain[i * s->gain_step];
        double d = inverse * (g - mean_g - u * mean_gu);
        dx[i] = (float)(accumulate ? dx[i] + d : d);
    }
}

/* With s = 1 / (1 + e^-z): gelu = x s and gelu' = s + x s (1 - s) z' */
void qb__gelu_tanh_backward_ref(const float *x, size_t n, float *d)
{
    const double a = QB__GELU_A, b = QB__GELU_B;
    for (size_t i = 0; i < n; i++) {
        double v = x[i], s = 1 / (1 + exp(-a * (v + b * v * v * v)));
        d[i] = (float)(d[i] * (s + v * s * (1 - s) * a * (1 + 3 * b * v * v)));
    }
}

void qb__relu_backward_ref(const float *x, size_t n, float *d)
{
    for (size_t i = 0; i < n; i++) d[i] = x[i] > 0 ? d[i] : 0;
}

void qb__swiglu_backward_ref(const float *gate, const float *up, size_t n, const float *d,
                             float *d_gate, float *d_up)
{
    for (size_t i = 0; i < n; i++) {
        double g = gate[i], s = 1 / (1 + exp(-g)), dy = d[i];
        d_gate[i] = (float)(dy * up[i] * s * (1 + g * (1 - s)));
        d_up[i] = (float)(dy * g * s);
    }
}

void qb__exp_shift_ref(float *x, size_t n, float log_sum)
{
    for (size_t i = 0; i < n; i++) x[i] = (float)exp((double)x[i] - log_sum);
}

float qb__softmax_backward_ref(const float *p, size_t n, float *d)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += (double)p[i] * d[i];
    for (size_t i = 0; i < n; i++) d[i] = (float)(p[i] * (d[i] - sum));
    return (float)sum;
}

void qb__scale_ref(const float *x, size_t n, float factor, float *y)
{
    for (size_t i = 0; i < n; i++) y[i] = factor * x[i];
}

double qb__sum_squares_ref(const float *x, size_t n)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += (double)x[i] * x[i];
    return sum;
}

#define ROW(isa, needs)                                                                            \
    {                                                                                              \
        {"gradient/" #isa, "cpu", needs}, qb__norm_backward_##isa, qb__gelu_tanh_backward_##isa,   \
            qb__relu_backward_##isa, qb__swiglu_backward_##isa, qb__exp_shift_##isa,               \
            qb__softmax_backward_##isa, qb__scale_##isa, qb__sum_squares_##isa                     \
    }
const qb_gradient_row qb_gradient_kernels[] = {
#ifdef QB_WITH_X86
    ROW(avx512, QB_CPU_AVX512),
    ROW(avx2, QB_CPU_AVX2),
#endif
    ROW(ref, 0),
    {{0}, 0, 0, 0, 0, 0, 0, 0, 0},
};
