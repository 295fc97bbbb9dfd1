/* tests/unit/test_gradient.c - every row of gradient.h against the reference, and the reference
 * against differences of the forward functions. */
#include "support.h"

#include "kernels/gradient.h"
#include "kernels/pointwise.h"

#include <math.h>
#include <string.h>

static const size_t sizes[] = {1, 2, 7, 15, 16, 17, 33, 75, 256, 1003};
enum { MOST = 1003 };

/* Operands that end at a guard page. */
static float *filled(size_t n, uint64_t seed)
{
    float *x = qb_test_guarded_alloc(n * sizeof *x);
    qb_test_fill_f32(x, n, seed);
    return x;
}

/* Within `allowed` of the largest entry, or of floor where all may cancel. */
static void expect_near(const char *row, const char *what, const float *got, const float *want,
                        size_t n, double allowed, double floor)
{
    double size = 0;
    for (size_t i = 0; i < n; i++) size = fmax(size, fabs((double)want[i]));
    for (size_t i = 0; i < n; i++)
        if (!(fabs((double)got[i] - (double)want[i]) <= allowed * fmax(size, floor)))
            fail_msg("%s, %s of %zu at %zu: %g, not %g", row, what, n, i, (double)got[i],
                     (double)want[i]);
}

static const qb_gradient_row *reference(void)
{
    const qb_gradient_row *row = qb_gradient_kernels;
    while (row[1].info.name) row++;
    return row;
}

static void norm_case(const qb_gradient_row *row, size_t n, bool centred, bool one_gain)
{
    float *x = filled(n, 1), *dy = filled(n, 2), *gain = filled(one_gain ? 1 : n, 3);
    float *dx = filled(n, 4), want[MOST], dgain[MOST] = {0}, want_gain[MOST] = {0};
    float *dbias = filled(n, 5), want_bias[MOST];
    const qb_norm_shape shape = {n, centred, 1e-5, gain, !one_gain};
    for (int accumulate = 0; accumulate < 2; accumulate++) {
        memcpy(want, dx, n * sizeof *want);
        memcpy(want_bias, dbias, n * sizeof *want_bias);
        row->norm(&shape, x, dy, accumulate, dx, dgain, dbias);
        reference()->norm(&shape, x, dy, accumulate, want, want_gain, want_bias);
        expect_near(row->info.name, "norm", dx, want, n, 1e-5, 1);
        expect_near(row->info.name, "gain", dgain, want_gain, one_gain ? 1 : n, 3e-6, 1e-3);
        expect_near(row->info.name, "bias", dbias, want_bias, n, 1e-6, 1e-3);
    }
    row->norm(&shape, x, dy, false, dx, dgain, NULL);
    qb_test_guarded_free(x, n * sizeof *x);
    qb_test_guarded_free(dy, n * sizeof *x);
    qb_test_guarded_free(gain, (one_gain ? 1 : n) * sizeof *x);
    qb_test_guarded_free(dx, n * sizeof *x);
    qb_test_guarded_free(dbias, n * sizeof *x);
}

static void norms(void **state)
{
    (void)state;
    for (const qb_gradient_row *row = qb_gradient_kernels; row->info.name; row++)
        for (size_t i = 0; i < QB_COUNT(sizes) && !qb_kernel_refusal(&row->info); i++) {
            norm_case(row, sizes[i], true, false);
            norm_case(row, sizes[i], false, false);
            norm_case(row, sizes[i], false, true);
        }
}

static void rows_case(const qb_gradient_row *row, size_t n)
{
    const qb_gradient_row *ref = reference();
    const char *name = row->info.name;
    float *x = filled(n, 1), *y = filled(n, 2), *d = filled(n, 3), *e = filled(n, 4);
    float want[MOST], want2[MOST];
#define CASE(what, call, of_ref, allowed)                                                          \
    do {                                                                                           \
        memcpy(want, d, n * sizeof *want);                                                         \
        call;                                                                                      \
        of_ref;                                                                                    \
        expect_near(name, what, d, want, n, allowed, 1e-3);                                        \
    } while (0)
    CASE("gelu", row->gelu_tanh(x, n, d), ref->gelu_tanh(x, n, want), 1e-6);
    CASE("relu", row->relu(x, n, d), ref->relu(x, n, want), 0);
    CASE("swiglu", row->swiglu(x, y, n, d, e, d), ref->swiglu(x, y, n, want, want2, want), 1e-6);
    expect_near(name, "swiglu's gate", e, want2, n, 1e-6, 1e-3);
    CASE("scale", row->scale(x, n, 0.3f, d), ref->scale(x, n, 0.3f, want), 0);
    CASE("exp", row->exp_shift(d, n, 40), ref->exp_shift(want, n, 40), 1e-6);
    qb_test_fill_f32(d, n, 7);
    for (size_t i = 0; i < n; i++) y[i] = fabsf(y[i]) / (float)n;
    float sum = 0, want_sum = 0;
    CASE("softmax", sum = row->softmax(y, n, d), want_sum = ref->softmax(y, n, want), 3e-6);
    assert_true(fabsf(sum - want_sum) <= 1e-5f * (1 + fabsf(want_sum)));
    assert_true(fabs(row->sum_squares(x, n) / ref->sum_squares(x, n) - 1) < 1e-12);
#undef CASE
    float *const all[] = {x, y, d, e};
    for (size_t i = 0; i < QB_COUNT(all); i++) qb_test_guarded_free(all[i], n * sizeof *x);
}

static void rows_agree_with_the_reference(void **state)
{
    (void)state;
    for (const qb_gradient_row *row = qb_gradient_kernels; row->info.name; row++)
        for (size_t i = 0; i < QB_COUNT(sizes) && !qb_kernel_refusal(&row->info); i++)
            rows_case(row, sizes[i]);
}

/* (f(x + h) - f(x - h)) / 2 h in f32 functions that are as exact as their rounding. */
static void reference_is_the_slope(void **state)
{
    (void)state;
    const qb_pointwise_row *p = qb_pointwise_kernels;
    while (p[1].info.name) p++;
    for (float x = -5; x < 5; x += 0.37f) {
        const float h = 0x1p-8f, points[2] = {x + h, x - h}, one[2] = {1, 1};
        float y[2], d = 1, d_gate, d_up;
        p->gelu_tanh(points, 2, y);
        reference()->gelu_tanh(&x, 1, &d);
        assert_true(fabsf((y[0] - y[1]) / (2 * h) - d) < 2e-4f);
        p->swiglu(points, one, 2, y);
        d = 1;
        reference()->swiglu(&x, one, 1, &d, &d_gate, &d_up);
        assert_true(fabsf((y[0] - y[1]) / (2 * h) - d_gate) < 2e-4f);
        p->swiglu(&x, one, 1, y);
        assert_true(fabsf(d_up - y[0]) < 1e-6f);
    }
}

/* Weights of hidden keys are exactly 0. */
static void extremes(void **state)
{
    (void)state;
    for (const qb_gradient_row *row = qb_gradient_kernels; row->info.name; row++) {
        if (qb_kernel_refusal(&row->info)) continue;
        float x[3] = {-INFINITY, -300, 2}, big[2] = {-200, 200}, d[2] = {1, 1};
        row->exp_shift(x, 3, 2);
        assert_true(x[0] == 0 && x[1] == 0 && x[2] == 1);
        row->gelu_tanh(big, 2, d);
        assert_true(fabsf(d[0]) < 1e-30f && d[1] == 1);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(norms),
        cmocka_unit_test(rows_agree_with_the_reference),
        cmocka_unit_test(reference_is_the_slope),
        cmocka_unit_test(extremes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
