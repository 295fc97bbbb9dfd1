/* kernels/x86/pointwise_body_internal.h - pointwise.h for AVX2 and AVX-512: one text, compiled
 * twice. Sums of norms are in double, lane by lane, then over the lanes. */
#include "kernels/pointwise_internal.h"
#include "kernels/x86/vector_math_internal.h"
#include "kernels/x86/wide_internal.h"

#include <math.h>

void QB_ISA(qb__layernorm)(const float *x, size_t n, const float *gain, const float *bias,
                           double eps, float *y)
{
    double mean = wide_sum(x, n) / (double)n;
    double inverse = 1 / sqrt(wide_squares(x, n, mean) / (double)n + eps);
    for (size_t i = 0; i < n; i += LANES) {
        vf t = wide_normed(vf_load_n(x + i, n - i), mean, inverse);
        t = vf_mul(t, vf_load_n(gain + i, n - i));
        if (bias) t = vf_add(t, vf_load_n(bias + i, n - i));
        vf_store_n(y + i, t, n - i);
    }
}

void QB_ISA(qb__rmsnorm)(const float *x, size_t n, const float *gain, size_t gain_step, double eps,
                         float *y)
{
    vf inverse = vf_set((float)(1 / sqrt(wide_squares(x, n, 0) / (double)n + eps)));
    vf one_gain = vf_set(gain[0]);
    for (size_t i = 0; i < n; i += LANES) {
        vf g = gain_step ? vf_load_n(gain + i, n - i) : one_gain;
        vf_store_n(y + i, vf_mul(vf_mul(vf_load_n(x + i, n - i), inverse), g), n - i);
    }
}

void QB_ISA(qb__gelu_tanh)(const float *x, size_t n, float *y)
{
    for (size_t i = 0; i < n; i += LANES) {
        vf v = vf_load_n(x + i, n - i);
        vf_store_n(y + i, times_logistic(v, gelu_z(v)), n - i);
    }
}

void QB_ISA(qb__relu)(const float *x, size_t n, float *y)
{
    for (size_t i = 0; i < n; i += LANES)
        vf_store_n(y + i, vf_max(vf_set(0), vf_load_n(x + i, n - i)), n - i);
}

void QB_ISA(qb__swiglu)(const float *gate, const float *up, size_t n, float *y)
{
    for (size_t i = 0; i < n; i += LANES) {
        vf g = vf_load_n(gate + i, n - i);
        vf_store_n(y + i, vf_mul(times_logistic(g, g), vf_load_n(up + i, n - i)), n - i);
    }
}

void QB_ISA(qb__add)(float *x, const float *y, size_t n)
{
    for (size_t i = 0; i < n; i += LANES)
        vf_store_n(x + i, vf_add(vf_load_n(x + i, n - i), vf_load_n(y + i, n - i)), n - i);
}

void QB_ISA(qb__rope)(float *x, size_t n_heads, size_t half, const float *cosine, const float *sine)
{
    for (size_t h = 0; h < n_heads; h++, x += 2 * half)
        for (size_t i = 0; i < half; i += LANES) {
            size_t left = half - i;
            vf a = vf_load_n(x + i, left), b = vf_load_n(x + half + i, left);
            vf c = vf_load_n(cosine + i, left), s = vf_load_n(sine + i, left);
            vf_store_n(x + i, vf_sub(vf_mul(a, c), vf_mul(b, s)), left);
            vf_store_n(x + half + i, vf_add(vf_mul(b, c), vf_mul(a, s)), left);
        }
}

void QB_ISA(qb__head_gates)(const float *x, size_t n, const float *w, const float *bias,
                            size_t n_heads, float *gates)
{
    for (size_t h = 0; h < n_heads; h++, w += n) {
        wide sum = wide_zero();
        for (size_t i = 0; i < n; i += LANES) {
            vf a = vf_load_n(x + i, n - i), b = vf_load_n(w + i, n - i);
            sum.low = vd_fma(vd_low(a), vd_low(b), sum.low);
            sum.high = vd_fma(vd_high(a), vd_high(b), sum.high);
        }
        gates[h] = (float)(1 / (1 + exp(-(wide_total(sum) + bias[h]))));
    }
}

/* Rows of logits are gone through in blocks: a block's sums are f32 lanes, the blocks' sums double.
 */
enum { BLOCK = 16 * LANES };

typedef struct top {
    float max;
    size_t block; /* where it stands first */
} top;

QB_INLINE void top_raise(top *t, vf block_max, size_t block)
{
    float max = vf_hmax(block_max);
    if (max > t->max) *t = (top){max, block};
}

static int32_t top_index(const float *x, size_t n, top t)
{
    for (size_t i = t.block; i < n; i++)
        if (x[i] == t.max) return (int32_t)i;
    return 0; /* not reached: max is finite and stands in the row */
}

double QB_ISA(qb__logsumexp)(const float *x, size_t n, int32_t *argmax)
{
    const vf none = vf_set(-INFINITY);
    top t = {-INFINITY, 0};
    for (size_t i = 0; i < n; i += BLOCK) {
        vf max = none;
        for (size_t j = i; j < n && j < i + BLOCK; j += LANES)
            max = vf_max(max, vf_first(vf_load_n(x + j, n - j), n - j, none));
        top_raise(&t, max, i);
    }
    if (!isfinite(t.max)) return qb__logsumexp_ref(x, n, argmax);
    *argmax = top_index(x, n, t);
    wide sum = wide_zero();
    for (size_t i = 0; i < n; i += BLOCK) {
        vf part = vf_set(0);
        for (size_t j = i; j < n && j < i + BLOCK; j += LANES) {
            vf v = vf_first(vf_load_n(x + j, n - j), n - j, none);
            part = vf_add(part, vf_exp_neg(vf_sub(v, vf_set(t.max))));
        }
        wide_add(&sum, part);
    }
    return t.max + log(wide_total(sum));
}

/* e^-d - 1 + d for |d| <= 1: d^2 times the polynomial of degree 6 that interpolates the quotient at
 * Chebyshev nodes; errs by 2e-7 of the value, so the divergence of nearly equal rows is as exact as
 * that of different ones. */
QB_INLINE vf exp_remainder(vf d)
{
    vf p = vf_set(0x1.a845p-16f);
    p = vf_fma(p, d, vf_set(-0x1.aa54b6p-13f));
    p = vf_fma(p, d, vf_set(0x1.6c066p-10f));
    p = vf_fma(p, d, vf_set(-0x1.10fc8ap-7f));
    p = vf_fma(p, d, vf_set(0x1.555566p-5f));
    p = vf_fma(p, d, vf_set(-0x1.55557ep-3f));
    p = vf_fma(p, d, vf_set(0.5f));
    return vf_mul(vf_mul(d, d), p);
}

/* With e_a = e^(a - max_a), d = (a - b) - shift and e_b = e_a e^-d: sums over the row of
 * e_a, e_b, e_a d and e_a (e^-d - 1 + d). */
typedef struct pair_sums {
    wide a, b, linear, remainder;
} pair_sums;

typedef struct pair_tops {
    float a, b, shift; /* shift = a - b, rounded */
} pair_tops;

/* One block of at most BLOCK elements. */
QB_INLINE void add_pair_block(pair_sums *s, const float *a, const float *b, size_t n, pair_tops t)
{
    vf sum_a = vf_set(0), sum_b = sum_a, linear = sum_a, remainder = sum_a;
    const vf none = vf_set(-INFINITY), shift = vf_set(t.shift);
    for (size_t i = 0; i < n; i += LANES) {
        vf va = vf_first(vf_load_n(a + i, n - i), n - i, none);
        vf vb = vf_first(vf_load_n(b + i, n - i), n - i, none);
        vf d = vf_first(vf_sub(vf_sub(va, vb), shift), n - i, vf_set(0));
        vf ea = vf_exp_neg(vf_sub(va, vf_set(t.a))), size = vf_abs(d), one = vf_set(1);
        vf ed = vf_mul(ea, d), ef = vf_mul(ea, exp_remainder(d));
        vf eb = vf_add(ea, vf_sub(ef, ed));
        if (!vf_all_at_most(size, one)) {
            vf far_b = vf_exp_neg(vf_sub(vb, vf_set(t.b)));
            ed = vf_zero_where_zero(ed, ea); /* 0 * inf is 0 here */
            ef = vf_where_at_most(size, one, ef, vf_add(ed, vf_sub(far_b, ea)));
            eb = vf_where_at_most(size, one, eb, far_b);
        }
        sum_a = vf_add(sum_a, ea);
        sum_b = vf_add(sum_b, eb);
        linear = vf_add(linear, ed);
        remainder = vf_add(remainder, ef);
    }
    wide_add(&s->a, sum_a);
    wide_add(&s->b, sum_b);
    wide_add(&s->linear, linear);
    wide_add(&s->remainder, remainder);
}

/* KL = sum p (d - mean) with log-sum-exps for the means. Let E = sum_b / sum_a - 1. Then
 *     KL = linear / sum_a + log(1 + E) = remainder / sum_a + (log(1 + E) - E).
 * The second form is a sum of terms >= 0 and one of second order in E: for rows that are nearly
 * equal it does not cancel, and errors of e_a and e_b are of no account. */
static double pair_divergence(const pair_sums *s)
{
    double a = wide_total(s->a), excess = (wide_total(s->b) - a) / a;
    double kl = fabs(excess) < 0.5 ? wide_total(s->remainder) / a + (log1p(excess) - excess)
                                   : wide_total(s->linear) / a + log1p(excess);
    return kl < 0 ? 0 : kl;
}

static void pair_maxima(const float *a, const float *b, size_t n, top *top_a, top *top_b,
                        float *max_diff)
{
    const vf none = vf_set(-INFINITY);
    vf diff = vf_set(0);
    for (size_t i = 0; i < n; i += BLOCK) {
        vf max_a = none, max_b = none;
        for (size_t j = i; j < n && j < i + BLOCK; j += LANES) {
            vf va = vf_first(vf_load_n(a + j, n - j), n - j, none);
            vf vb = vf_first(vf_load_n(b + j, n - j), n - j, none);
            max_a = vf_max(max_a, va);
            max_b = vf_max(max_b, vb);
            diff = vf_max(vf_abs(vf_sub(va, vb)), diff); /* -inf - -inf, a NaN, is passed over */
        }
        top_raise(top_a, max_a, i);
        top_raise(top_b, max_b, i);
    }
    *max_diff = vf_hmax(diff);
}

void QB_ISA(qb__logit_stats)(const float *a, const float *b, size_t n, int32_t target,
                             qb_logit_stats *out)
{
    top top_a = {-INFINITY, 0}, top_b = {-INFINITY, 0};
    float max_diff;
    pair_maxima(a, b, n, &top_a, &top_b, &max_diff);
    if (!isfinite(top_a.max) || !isfinite(top_b.max)) {
        qb__logit_stats_ref(a, b, n, target, out);
        return;
    }
    const pair_tops tops = {top_a.max, top_b.max, top_a.max - top_b.max};
    pair_sums sums = {wide_zero(), wide_zero(), wide_zero(), wide_zero()};
    for (size_t i = 0; i < n; i += BLOCK)
        add_pair_block(&sums, a + i, b + i, n - i < BLOCK ? n - i : BLOCK, tops);
    double lse_a = tops.a + log(wide_total(sums.a));
    double lse_b = ((double)tops.a - tops.shift) + log(wide_total(sums.b));
    *out = (qb_logit_stats){.nll_a = target < 0 ? 0 : lse_a - a[target],
                            .nll_b = target < 0 ? 0 : lse_b - b[target],
                            .kl = pair_divergence(&sums),
                            .max_diff = max_diff,
                            .top_a = top_index(a, n, top_a),
                            .top_b = top_index(b, n, top_b)};
}
