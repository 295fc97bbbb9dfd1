/* kernels/x86/gradient_body_internal.h - gradient.h for AVX2 and AVX-512: one text, compiled twice.
 */
#include "kernels/gradient_internal.h"
#include "kernels/x86/vector_math_internal.h"
#include "kernels/x86/wide_internal.h"

#include <math.h>

/* What a norm's backward pass needs of its row. */
typedef struct norm_row {
    const qb_norm_shape *shape;
    const float *x, *dy;
    double mean, inverse;
} norm_row;

QB_INLINE vf normed(const norm_row *r, size_t i, size_t left)
{
    vf x = vf_load_n(r->x + i, left);
    return r->shape->centred ? wide_normed(x, r->mean, r->inverse)
                             : vf_mul(x, vf_set((float)r->inverse));
}

QB_INLINE vf gained(const norm_row *r, vf dy, size_t i, size_t left)
{
    const float *gain = r->shape->gain;
    return vf_mul(dy, r->shape->gain_step ? vf_load_n(gain + i, left) : vf_set(gain[0]));
}

QB_INLINE void add_n(float *to, vf x, size_t n)
{
    vf_store_n(to, vf_add(vf_load_n(to, n), x), n);
}

/* Gradients of gain and bias, and the means of g and g u. */
static void norm_sums(const norm_row *r, float *dgain, float *dbias, double *mean_g,
                      double *mean_gu)
{
    size_t n = r->shape->n;
    wide g_sum = wide_zero(), gu_sum = wide_zero(), gain_sum = wide_zero();
    for (size_t i = 0; i < n; i += LANES) {
        vf dy = vf_load_n(r->dy + i, n - i), u = normed(r, i, n - i), g = gained(r, dy, i, n - i);
        vf du = vf_mul(dy, u); /* lanes past n have dy = 0 */
        wide_add(&g_sum, g);
        wide_add(&gu_sum, vf_mul(g, u));
        if (r->shape->gain_step)
            add_n(dgain + i, du, n - i);
        else
            wide_add(&gain_sum, du);
        if (dbias) add_n(dbias + i, dy, n - i);
    }
    if (!r->shape->gain_step) dgain[0] += (float)wide_total(gain_sum);
    *mean_g = r->shape->centred ? wide_total(g_sum) / (double)n : 0;
    *mean_gu = wide_total(gu_sum) / (double)n;
}

void QB_ISA(qb__norm_backward)(const qb_norm_shape *norm, const float *x, const float *dy,
                               bool accumulate, float *dx, float *dgain, float *dbias)
{
    norm_row r = {.shape = norm, .x = x, .dy = dy};
    double mean_g, mean_gu;
    r.mean = norm->centred ? wide_sum(x, norm->n) / (double)norm->n : 0;
    r.inverse = 1 / sqrt(wide_squares(x, norm->n, r.mean) / (double)norm->n + norm->eps);
    norm_sums(&r, dgain, dbias, &mean_g, &mean_gu);
    vf inverse = vf_set((float)r.inverse), of_g = vf_set((float)mean_g),
       of_gu = vf_set((float)-mean_gu);
    for (size_t i = 0; i < norm->n; i += LANES) {
        size_t left = norm->n - i;
        vf g = gained(&r, vf_load_n(dy + i, left), i, left);
        vf d = vf_mul(inverse, vf_fma(normed(&r, i, left), of_gu, vf_sub(g, of_g)));
        if (accumulate) d = vf_add(vf_load_n(dx + i, left), d);
        vf_store_n(dx + i, d, left);
    }
}

void QB_ISA(qb__gelu_tanh_backward)(const float *x, size_t n, float *d)
{
    const vf one = vf_set(1);
    for (size_t i = 0; i < n; i += LANES) {
        vf v = vf_load_n(x + i, n - i), s = times_logistic(one, gelu_z(v));
        vf t = vf_mul(vf_mul(v, s), vf_mul(vf_sub(one, s), gelu_z_slope(v)));
        vf_store_n(d + i, vf_mul(vf_load_n(d + i, n - i), vf_add(s, t)), n - i);
    }
}

void QB_ISA(qb__relu_backward)(const float *x, size_t n, float *d)
{
    const vf zero = vf_set(0);
    for (size_t i = 0; i < n; i += LANES) {
        vf v = vf_load_n(x + i, n - i);
        vf_store_n(d + i, vf_where_at_most(v, zero, zero, vf_load_n(d + i, n - i)), n - i);
    }
}

void QB_ISA(qb__swiglu_backward)(const float *gate, const float *up, size_t n, const float *d,
                                 float *d_gate, float *d_up)
{
    const vf one = vf_set(1);
    for (size_t i = 0; i < n; i += LANES) {
        vf g = vf_load_n(gate + i, n - i), dy = vf_load_n(d + i, n - i);
        vf s = times_logistic(one, g), slope = vf_mul(s, vf_fma(g, vf_sub(one, s), one));
        vf_store_n(d_gate + i, vf_mul(vf_mul(dy, vf_load_n(up + i, n - i)), slope), n - i);
        vf_store_n(d_up + i, vf_mul(dy, vf_mul(g, s)), n - i);
    }
}

void QB_ISA(qb__exp_shift)(float *x, size_t n, float log_sum)
{
    vf shift = vf_set(log_sum);
    for (size_t i = 0; i < n; i += LANES)
        vf_store_n(x + i, vf_exp_neg(vf_sub(vf_load_n(x + i, n - i), shift)), n - i);
}

float QB_ISA(qb__softmax_backward)(const float *p, size_t n, float *d)
{
    vf lanes = vf_set(0);
    wide wider = wide_zero();
    for (size_t i = 0; i < n; i += LANES)
        lanes = vf_fma(vf_load_n(p + i, n - i), vf_load_n(d + i, n - i), lanes);
    wide_add(&wider, lanes);
    float sum = (float)wide_total(wider);
    for (size_t i = 0; i < n; i += LANES) {
        vf shifted = vf_sub(vf_load_n(d + i, n - i), vf_set(sum));
        vf_store_n(d + i, vf_mul(vf_load_n(p + i, n - i), shifted), n - i);
    }
    return sum;
}

void QB_ISA(qb__scale)(const float *x, size_t n, float factor, float *y)
{
    for (size_t i = 0; i < n; i += LANES)
        vf_store_n(y + i, vf_mul(vf_set(factor), vf_load_n(x + i, n - i)), n - i);
}

double QB_ISA(qb__sum_squares)(const float *x, size_t n)
{
    return wide_squares(x, n, 0);
}
