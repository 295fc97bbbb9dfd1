/* tests/unit/test_significance.c - tests of differences against numbers made by other means, and
 * how often they are wrong where the truth is known. */
#include "support.h"

#include "core/memory.h"
#include "core/rng.h"
#include "core/significance.h"

#include <math.h>
#include <string.h>

/* By Simpson's rule over the density (Python, math.gamma). */
static void distributions_match_integrals(void **state)
{
    (void)state;
    static const struct {
        double t;
        size_t df;
        double p;
    } table[] = {{1.5, 1, 0.8128329581890},  {-2.0, 2, 0.0917517095361},
                 {2.5, 3, 0.9561466764960},  {0.7, 8, 0.7481144739907},
                 {-3.1, 9, 0.0063612279891}, {1.96, 99, 0.9735964431245}};
    for (size_t i = 0; i < QB_COUNT(table); i++)
        assert_true(fabs(qb_student_cdf(table[i].t, table[i].df) - table[i].p) < 1e-10);
    assert_true(qb_student_cdf(INFINITY, 5) == 1 && qb_student_cdf(-INFINITY, 4) == 0);
}

/* The first by counting all 1,716 ways to share out 13 values (itertools.combinations), the second
 * by the formula with Python's statistics.NormalDist. */
static void mann_whitney_matches_enumeration(void **state)
{
    (void)state;
    static const double a[] = {1.1, 2.3, 0.7, 4.2, 3.9, 2.8},
                        b[] = {3.1, 5.2, 4.4, 6.0, 2.9, 7.5, 4.9}, c[] = {1, 2, 2, 3, 4, 4, 5},
                        d[] = {3, 4, 4, 5, 6, 7, 7, 8};
    double p, again;
    QB_CHECK_OK(qb_mann_whitney(a, 6, b, 7, &p));
    assert_true(fabs(p - 0.013986013986013986) < 1e-14);
    QB_CHECK_OK(qb_mann_whitney(b, 7, a, 6, &again));
    assert_true(fabs(p - again) < 1e-14);
    QB_CHECK_OK(qb_mann_whitney(c, 7, d, 8, &p));
    assert_true(fabs(p - 0.022287319014552942) < 1e-12);
    QB_CHECK_OK(qb_mann_whitney(a, 0, b, 7, &p));
    assert_true(p == 1);
    static const double same[] = {2, 2, 2};
    QB_CHECK_OK(qb_mann_whitney(same, 3, same, 3, &p));
    assert_true(p == 1);
}

static void holm_steps_down(void **state)
{
    (void)state;
    double p[] = {0.01, 0.04, 0.03, 0.5};
    static const double want[] = {0.04, 0.09, 0.09, 0.5};
    QB_CHECK_OK(qb_holm(p, 4));
    for (size_t i = 0; i < 4; i++) assert_true(fabs(p[i] - want[i]) < 1e-15);
    QB_CHECK_OK(qb_holm(p, 0));
}

static void draws_of_a_point_are_exact(void **state)
{
    (void)state;
    qb_draws point = qb_draws_exact(0.02);
    assert_true(qb_draws_p_at_most(&point, 0.01) == 0 && qb_draws_p_at_most(&point, 0.02) == 1);
    double values[] = {1, INFINITY, 2};
    qb_draws broken = qb_draws_summarize(1.5, values, 3, 10);
    assert_true(isnan(broken.ci95.low) && isnan(qb_draws_p_at_most(&broken, 0)));
    double few[] = {1, 2, 3};
    broken = qb_draws_summarize(2, few, 3, 1); /* one window has no spread */
    assert_true(isnan(broken.ci95.low) && isnan(broken.deviation));
}

/* Times with a heavy tail, as on a shared machine: normal noise, and every eighth sample late. */
static void make_times(double *ms, size_t n, double mean, uint64_t first)
{
    float noise[64];
    qb_rng_normal_f32(5, QB_STREAM_TEST, first * 128, n, 1.0f, noise);
    for (size_t i = 0; i < n; i++) {
        double late = qb_rng_double(6, QB_STREAM_TEST, first * 128 + i) < 0.125 ? 0.1 : 0;
        ms[i] = mean * (1 + 0.01 * (double)noise[i] + late);
    }
}

/* The intervals hold the truth about 95 times in 100, and both tests find 5 %, not nothing. */
static void medians_cover_the_truth_and_find_a_slowdown(void **state)
{
    (void)state;
    enum { N = 20, RUNS = 400 };
    double a[N], b[N], p;
    size_t held = 0, found = 0, false_p = 0, false_u = 0, wide = 0;
    for (uint64_t run = 0; run < RUNS; run++) {
        qb_draws draws;
        make_times(a, N, 10, 2 * run);
        make_times(b, N, 10, 2 * run + 1);
        QB_CHECK_OK(qb_bootstrap_medians(a, N, b, N, 400, run, &draws));
        held += draws.ci95.low <= 0 && 0 <= draws.ci95.high;
        false_p += qb_draws_p_at_most(&draws, 0) < 0.05;
        QB_CHECK_OK(qb_mann_whitney(a, N, b, N, &p));
        false_u += p < 0.05;
        for (size_t i = 0; i < N; i++) a[i] *= 1.05; /* b is 5 % faster than a */
        QB_CHECK_OK(qb_bootstrap_medians(a, N, b, N, 400, run, &draws));
        wide += !(fabs(draws.estimate - 0.05) < 0.02);
        QB_CHECK_OK(qb_mann_whitney(a, N, b, N, &p));
        found += qb_draws_p_at_most(&draws, 0.01) < 0.05 && p < 0.05;
    }
    printf("of %d: interval held 0 in %zu, one-sided p < 5 %% in %zu, U test in %zu; 5 %% found in "
           "%zu\n",
           RUNS, held, false_p, false_u, found);
    assert_in_range(held, 370,
                    395); /* 95 % +- 3 standard errors of 400, and a bit more is no harm */
    assert_in_range(false_p, 4, 33);
    assert_in_range(false_u, 7, 33);
    assert_true(found > 380 && wide < 8);
}

static void failed_allocations_come_back_clean(void **state)
{
    (void)state;
    size_t live = qb_memory_live_blocks();
    double a[3] = {1, 2, 3}, p;
    qb_draws draws;
    qb_memory_fail_at(1);
    assert_int_equal(qb_mann_whitney(a, 3, a, 3, &p), QB_ERR_MEMORY);
    qb_memory_fail_at(1);
    assert_int_equal(qb_holm(a, 3), QB_ERR_MEMORY);
    qb_memory_fail_at(1);
    assert_int_equal(qb_bootstrap_medians(a, 3, a, 3, 10, 1, &draws), QB_ERR_MEMORY);
    qb_memory_fail_at(0);
    assert_int_equal(qb_memory_live_blocks(), live);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(distributions_match_integrals),
        cmocka_unit_test(mann_whitney_matches_enumeration),
        cmocka_unit_test(holm_steps_down),
        cmocka_unit_test(draws_of_a_point_are_exact),
        cmocka_unit_test(medians_cover_the_truth_and_find_a_slowdown),
        cmocka_unit_test(failed_allocations_come_back_clean),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
