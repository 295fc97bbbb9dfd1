/* tests/unit/test_pointwise.c - every row of pointwise against the reference, which sums in double
 * and rounds once. Bounds are in units of u = 2^-24. */
#include "support.h"

#include "core/memory.h"
#include "kernels/pointwise.h"

#include <float.h>
#include <math.h>
#include <string.h>

#define U 0x1p-24

static const size_t sizes[] = {1, 2, 7, 8, 9, 15, 16, 17, 31, 33, 64, 100, 255, 576, 1000, 1537};

#define FOR_USABLE_ROWS(row)                                                                       \
    for (const qb_pointwise_row *row = qb_pointwise_kernels; row->info.name; row++)                \
        if (!qb_kernel_refusal(&row->info))

static const qb_pointwise_row *reference(void)
{
    const qb_pointwise_row *row = qb_pointwise_kernels;
    while (row[1].info.name) row++;
    return row;
}

/* n floats that end at a guard page. */
static float *vector(size_t n, uint64_t seed)
{
    float *x = qb_test_guarded_alloc(n * sizeof *x);
    if (seed) qb_test_fill_f32(x, n, seed);
    return x;
}

static void vector_free(float *x, size_t n)
{
    qb_test_guarded_free(x, n * sizeof *x);
}

static void check_near(const char *row, const char *what, size_t i, double got, double want,
                       double bound)
{
    if (!(fabs(got - want) <= bound))
        fail_msg("%s %s at %zu: %.9g, not %.9g (bound %.3g)", row, what, i, got, want, bound);
}

/* The sums are in double, so the statistics err by far less than u. LayerNorm then rounds
 * (x - mean) / sd, its product with the gain and the sum: 3 u of the terms' sizes, and 1 for the
 * reference. RMSNorm rounds 1 / rms and two products, 3 u, and 1 for the reference. */
static void norms_agree(void **state)
{
    (void)state;
    FOR_USABLE_ROWS(row)
    for (size_t s = 0; s < QB_COUNT(sizes); s++) {
        size_t n = sizes[s];
        float *x = vector(n, 1), *gain = vector(n, 2), *bias = vector(n, 3), *y = vector(n, 0),
              *want = vector(n, 0);
        for (size_t i = 0; i < n; i++) x[i] += s % 2 ? 1000.0f : 0; /* a mean far from 0 */
        for (int with_bias = 0; with_bias < 2; with_bias++) {
            const float *b = with_bias ? bias : NULL;
            row->layernorm(x, n, gain, b, 1e-5, y);
            reference()->layernorm(x, n, gain, b, 1e-5, want);
            for (size_t i = 0; i < n; i++)
                check_near(row->info.name, "layernorm", i, y[i], want[i],
                           4 * U * (fabs(want[i]) + (b ? 2 * fabs(b[i]) : 0)));
        }
        for (size_t step = 0; step < 2; step++) {
            row->rmsnorm(x, n, gain, step, 1e-5, y);
            reference()->rmsnorm(x, n, gain, step, 1e-5, want);
            for (size_t i = 0; i < n; i++)
                check_near(row->info.name, "rmsnorm", i, y[i], want[i], 4 * U * fabs(want[i]));
        }
        memset(x, 0, n * sizeof *x); /* a constant row: the variance is 0 */
        row->layernorm(x, n, gain, bias, 1e-5, y);
        assert_memory_equal(y, bias, n * sizeof *y);
        row->rmsnorm(x, n, gain, 1, 1e-5, y);
        for (size_t i = 0; i < n; i++) assert_true(y[i] == 0);
        vector_free(x, n), vector_free(gain, n), vector_free(bias, n), vector_free(y, n),
            vector_free(want, n);
    }
}

static void huge_and_tiny_norms(void **state)
{
    (void)state;
    enum { N = 40 };
    FOR_USABLE_ROWS(row)
    {
        float x[N], y[N], want[N], gain[N];
        for (size_t i = 0; i < N; i++) x[i] = i % 2 ? FLT_MAX : -FLT_MAX / 2, gain[i] = 1;
        for (int tiny = 0; tiny < 2; tiny++) {
            row->rmsnorm(x, N, gain, 1, 0, y);
            reference()->rmsnorm(x, N, gain, 1, 0, want);
            for (size_t i = 0; i < N && !tiny; i++) /* 1 / rms is denormal: its ulp is 2^-149 */
                check_near(row->info.name, "rmsnorm", i, y[i], want[i], 0x1p-149 * FLT_MAX + 4 * U);
            row->layernorm(x, N, gain, NULL, 0, y);
            reference()->layernorm(x, N, gain, NULL, 0, want);
            for (size_t i = 0; i < N; i++)
                check_near(row->info.name, "layernorm", i, y[i], want[i], 4 * U * fabs(want[i]));
            for (size_t i = 0; i < N; i++) x[i] = i % 2 ? 1e-30f : -2e-30f;
        }
    }
}

/* y = x / (1 + e^-z). The exponential errs by 2 u (x <= 88.72), by 3 u |z| through the three
 * roundings of z, so the quotient by (4 + 3 |z|) u, and less where e^-z is small against 1; where
 * e^-z saturates (3.4e38), by |x| 2^-127. */
static double logistic_bound(double x, double y, double z)
{
    double saturated = fabs(x) * 0x1p-126;
    return (5 + (z < 0 ? -3 * z : 2)) * U * fabs(y) + saturated + 0x1p-148;
}

static void activations_agree(void **state)
{
    (void)state;
    enum { N = 20011 };
    FOR_USABLE_ROWS(row)
    {
        float *x = vector(N, 0), *up = vector(N, 4), *y = vector(N, 0), *want = vector(N, 0);
        for (size_t i = 0; i < N; i++) /* fine near 0, then out to 1e30 */
            x[i] = i % 7 ? ((float)i - N / 2) * 2e-3f
                         : ldexpf((float)i / N - 0.5f, (int)(i % 200) - 100);
        row->gelu_tanh(x, N, y);
        reference()->gelu_tanh(x, N, want);
        for (size_t i = 0; i < N; i++) {
            double z = 1.5957691216 * x[i] * (1 + 0.044715 * (double)x[i] * x[i]);
            /* the reference, 1 + tanh(u) in double, cancels: 2^-53 |x| */
            check_near(row->info.name, "gelu", i, y[i], want[i],
                       logistic_bound(x[i], want[i], z) + 0x1p-52 * fabs(x[i]));
        }
        row->swiglu(x, up, N, y);
        reference()->swiglu(x, up, N, want);
        for (size_t i = 0; i < N; i++)
            check_near(row->info.name, "swiglu", i, y[i], want[i],
                       logistic_bound(x[i], want[i] / up[i], x[i]) * fabs(up[i]) +
                           2 * U * fabs(want[i]));
        memcpy(want, x, N * sizeof *x);
        row->gelu_tanh(x, N, y);
        row->gelu_tanh(want, N, want); /* in place */
        assert_memory_equal(y, want, N * sizeof *y);
        row->relu(x, N, y);
        for (size_t i = 0; i < N; i++) assert_true(y[i] == (x[i] > 0 ? x[i] : 0));
        vector_free(x, N), vector_free(up, N), vector_free(y, N), vector_free(want, N);
    }
}

/* add and rope round as the reference does: same bits. */
static void sums_and_rotations_are_exact(void **state)
{
    (void)state;
    FOR_USABLE_ROWS(row)
    for (size_t s = 0; s < QB_COUNT(sizes); s++) {
        size_t n = sizes[s], heads = 3, n_all = 2 * n * heads;
        float *x = vector(n_all, 5), *y = vector(n_all, 6), *want = vector(n_all, 5);
        float *cosine = vector(n, 7), *sine = vector(n, 8);
        row->add(x, y, n_all);
        reference()->add(want, y, n_all);
        assert_memory_equal(x, want, n_all * sizeof *x);
        row->rope(x, heads, n, cosine, sine);
        reference()->rope(want, heads, n, cosine, sine);
        assert_memory_equal(x, want, n_all * sizeof *x);
        vector_free(x, n_all), vector_free(y, n_all), vector_free(want, n_all);
        vector_free(cosine, n), vector_free(sine, n);
    }
}

/* Sums in double on both sides: the gates differ by their last rounding. */
static void head_gates_agree(void **state)
{
    (void)state;
    FOR_USABLE_ROWS(row)
    for (size_t s = 0; s < QB_COUNT(sizes); s++) {
        enum { HEADS = 5 };
        size_t n = sizes[s];
        float *x = vector(n, 5), *w = vector(HEADS * n, 6), *bias = vector(HEADS, 7);
        float *gates = vector(HEADS, 0), *want = vector(HEADS, 0);
        for (size_t i = 0; i < HEADS * n; i++) w[i] *= 1 / sqrtf((float)n);
        row->head_gates(x, n, w, bias, HEADS, gates);
        reference()->head_gates(x, n, w, bias, HEADS, want);
        for (size_t h = 0; h < HEADS; h++) {
            check_near(row->info.name, "head_gates", h, gates[h], want[h], 2 * U * want[h]);
            double sum = bias[h];
            for (size_t i = 0; i < n; i++) sum += (double)x[i] * w[h * n + i];
            check_near(row->info.name, "head_gates", h, want[h], 1 / (1 + exp(-sum)), 2 * U);
        }
        vector_free(x, n), vector_free(w, HEADS * n), vector_free(bias, HEADS);
        vector_free(gates, HEADS), vector_free(want, HEADS);
    }
}

/* The f32 exponential errs by 2 u, x - max by u |x - max| <= 128 u where it counts at all; both
 * average out, but the bound that needs no luck is taken: u (4 + sum p |x - max|), and 16 lane sums
 * of a block add 16 u. */
static double logsumexp_bound(const float *x, size_t n, double lse)
{
    double max = -INFINITY, bound = 20;
    for (size_t i = 0; i < n; i++) max = fmax(max, x[i]);
    for (size_t i = 0; i < n; i++)
        if (x[i] > -INFINITY) bound += exp(x[i] - lse) * fabs(x[i] - max);
    return bound * U;
}

static void logsumexp_agrees(void **state)
{
    (void)state;
    FOR_USABLE_ROWS(row)
    for (size_t s = 0; s < QB_COUNT(sizes); s++) {
        size_t n = sizes[s];
        float *x = vector(n, 9 + s);
        int32_t top, want_top;
        double want = reference()->logsumexp(x, n, &want_top), got = row->logsumexp(x, n, &top);
        check_near(row->info.name, "logsumexp", n, got, want, logsumexp_bound(x, n, want));
        assert_int_equal(top, want_top);
        x[n - 1] = x[n / 2] = 300; /* a tie, and everything else below e^-200 */
        assert_true(fabs(row->logsumexp(x, n, &top) - (300 + log(n / 2 == n - 1 ? 1 : 2))) < 1e-6);
        assert_int_equal(top, n / 2);
        x[0] = -INFINITY;
        if (n > 2) assert_true(fabs(row->logsumexp(x, n, &top) - (300 + log(2))) < 1e-6);
        x[n / 3] = NAN;
        assert_true(isnan(row->logsumexp(x, n, &top)));
        for (size_t i = 0; i < n; i++) x[i] = -INFINITY;
        assert_true(row->logsumexp(x, n, &top) == -INFINITY && top == 0);
        vector_free(x, n);
    }
}

static void check_stats(const char *name, const float *a, const float *b, size_t n,
                        const qb_logit_stats *got, const qb_logit_stats *want)
{
    int32_t top;
    double lse_a = reference()->logsumexp(a, n, &top), lse_b = reference()->logsumexp(b, n, &top);
    double bound_a = logsumexp_bound(a, n, lse_a), bound_b = logsumexp_bound(b, n, lse_b);
    check_near(name, "nll_a", n, got->nll_a, want->nll_a, bound_a);
    /* the second row is known through a - b - shift, one rounding each */
    check_near(name, "nll_b", n, got->nll_b, want->nll_b,
               bound_a + bound_b + 2 * U * (fabs(lse_a - lse_b) + want->max_diff));
    /* both forms of the divergence err relative to sum p |log p / r|, which lies between kl and
     * sqrt(2 kl) + kl; 40 u covers the sums of lanes and the roundings of the terms. The
     * reference subtracts log-sum-exps rounded to 2^-53 of their size. */
    double size = 0;
    for (size_t i = 0; i < n; i++)
        if (a[i] > -INFINITY) size += exp(a[i] - lse_a) * fabs(a[i] - lse_a - (b[i] - lse_b));
    check_near(name, "kl", n, got->kl, want->kl,
               isinf(want->kl) ? 0
                               : 40 * U * size + 100 * U * want->kl +
                                     0x1p-51 * (1 + fabs(lse_a) + fabs(lse_b)));
    assert_true(got->max_diff == want->max_diff);
    assert_int_equal(got->top_a, want->top_a);
    assert_int_equal(got->top_b, want->top_b);
}

static void logit_stats_agree(void **state)
{
    (void)state;
    static const float distances[] = {1e-5f, 1e-3f, 0.03f, 0.5f, 2, 10};
    static const size_t lengths[] = {1, 5, 16, 100, 257, 1000, 49152, 50257};
    FOR_USABLE_ROWS(row)
    for (size_t s = 0; s < QB_COUNT(lengths); s++)
        for (size_t d = 0; d < QB_COUNT(distances); d++) {
            size_t n = lengths[s];
            float *a = vector(n, 20 + s), *b = vector(n, 40 + d);
            for (size_t i = 0; i < n; i++) b[i] = a[i] + distances[d] * b[i] + (d % 2 ? 3 : 0);
            qb_logit_stats got, want;
            int32_t target = d == 2 ? -1 : (int32_t)(n / 3);
            row->logit_stats(a, b, n, target, &got);
            reference()->logit_stats(a, b, n, target, &want);
            check_stats(row->info.name, a, b, n, &got, &want);
            if (target < 0) assert_true(got.nll_a == 0 && got.nll_b == 0);
            vector_free(a, n), vector_free(b, n);
        }
}

static void divergence_of_equal_rows_is_zero(void **state)
{
    (void)state;
    enum { N = 3001 };
    FOR_USABLE_ROWS(row)
    {
        float *a = vector(N, 50), *b = vector(N, 50);
        qb_logit_stats got;
        row->logit_stats(a, b, N, 7, &got);
        assert_true(got.kl == 0 && got.max_diff == 0 && got.nll_a == got.nll_b);
        for (size_t i = 0; i < N; i++) a[i] = -2.5f, b[i] = 100; /* all equal, shifted */
        row->logit_stats(a, b, N, 7, &got);
        assert_true(fabs(got.kl) < 1e-15 && got.max_diff == 102.5f && got.top_a == 0);
        check_near(row->info.name, "nll", 0, got.nll_b, log(N), 1e-6);
        vector_free(a, N), vector_free(b, N);
    }
}

/* -inf: p = 0 counts nothing; p > 0 where r = 0 is an infinite divergence. */
static void infinite_logits(void **state)
{
    (void)state;
    enum { N = 100 };
    FOR_USABLE_ROWS(row)
    {
        float *a = vector(N, 60), *b = vector(N, 61);
        qb_logit_stats got, want;
        a[3] = a[50] = b[3] = -INFINITY;
        row->logit_stats(a, b, N, 1, &got);
        reference()->logit_stats(a, b, N, 1, &want);
        check_near(row->info.name, "kl", 0, got.kl, want.kl, 1e-5);
        assert_true(got.max_diff == INFINITY && want.max_diff == INFINITY);
        b[4] = -INFINITY;
        row->logit_stats(a, b, N, 1, &got);
        assert_true(got.kl == INFINITY && isfinite(got.nll_a) && isfinite(got.nll_b));
        a[4] = NAN;
        row->logit_stats(a, b, N, 1, &got);
        assert_true(isnan(got.kl) && isnan(got.nll_a));
        for (size_t i = 0; i < N; i++) a[i] = -INFINITY;
        row->logit_stats(a, b, N, 1, &got);
        assert_true(isnan(got.kl));
        vector_free(a, N), vector_free(b, N);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(norms_agree),       cmocka_unit_test(huge_and_tiny_norms),
        cmocka_unit_test(activations_agree), cmocka_unit_test(sums_and_rotations_are_exact),
        cmocka_unit_test(head_gates_agree),  cmocka_unit_test(logsumexp_agrees),
        cmocka_unit_test(logit_stats_agree), cmocka_unit_test(divergence_of_equal_rows_is_zero),
        cmocka_unit_test(infinite_logits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
