/* tests/unit/test_stats.c - quantiles, the interval of a median, the bootstrap. */
#include "support.h"

#include "core/rng.h"
#include "core/stats.h"

#include <math.h>

static void quantiles_interpolate(void **state)
{
    (void)state;
    double x[] = {4, 1, 3, 2};
    qb_sort(x, 4);
    assert_true(x[0] == 1 && x[3] == 4);
    assert_true(qb_quantile(x, 4, 0) == 1 && qb_quantile(x, 4, 1) == 4);
    assert_true(qb_quantile(x, 4, 0.5) == 2.5);
    assert_true(fabs(qb_quantile(x, 4, 0.9) - 3.7) < 1e-12);
    assert_true(qb_quantile(x, 1, 0.99) == 1);
    assert_true(isnan(qb_quantile(x, 0, 0.5)));
    assert_true(qb_sum(x, 4) == 10);
}

/* Ranks from printed tables of the sign test: n = 6 -> 1st and 6th, 10 -> 2nd and 9th, ... */
static void median_interval_has_the_tabulated_ranks(void **state)
{
    (void)state;
    static const struct {
        size_t n, k;
    } table[] = {{6, 1}, {8, 1}, {9, 2}, {10, 2}, {12, 3}, {15, 4}, {20, 6}, {25, 8}, {100, 40}};
    double x[2000];
    for (size_t i = 0; i < QB_COUNT(x); i++) x[i] = (double)(i + 1);
    for (size_t i = 0; i < QB_COUNT(table); i++) {
        qb_interval ci = qb_median_ci95(x, table[i].n);
        assert_true(ci.low == (double)table[i].k);
        assert_true(ci.high == (double)(table[i].n + 1 - table[i].k));
    }
    assert_true(isnan(qb_median_ci95(x, 5).low) && isnan(qb_median_ci95(x, 0).high));
    qb_interval wide = qb_median_ci95(x, 2000); /* 1000 -+ 1.96 sqrt(500) */
    assert_true(fabs(wide.low - 956.5) < 2 && fabs(wide.high - 1044.5) < 2);
}

static void student_t_matches_the_tables(void **state)
{
    (void)state;
    static const struct {
        size_t df;
        double t;
    } table[] = {{1, 12.706}, {4, 2.776}, {5, 2.571}, {9, 2.262}, {30, 2.042}, {1000, 1.962}};
    for (size_t i = 0; i < QB_COUNT(table); i++)
        assert_true(fabs(qb_student_t975(table[i].df) - table[i].t) < 2e-3);
}

static void penalty_is_the_difference_of_perplexities(void **state)
{
    (void)state;
    double a[] = {log(2) * 10, log(8) * 30}, b[] = {log(4) * 10, log(8) * 30};
    size_t count[] = {10, 30};
    qb_paired_blocks blocks = {a, b, count, 2};
    double want = exp((10 * log(4) + 30 * log(8)) / 40) - exp((10 * log(2) + 30 * log(8)) / 40);
    assert_true(fabs(qb_perplexity_difference(&blocks) - want) < 1e-12);
    qb_interval ci;
    blocks.n_blocks = 1;
    QB_CHECK_OK(qb_bootstrap_penalty(&blocks, 100, 1, &ci));
    assert_true(isnan(ci.low) && isnan(ci.high));
}

static void bootstrap_of_equal_blocks_is_a_point_and_repeats(void **state)
{
    (void)state;
    double a[20], b[20];
    size_t count[20];
    for (size_t i = 0; i < 20; i++) {
        a[i] = 30;
        b[i] = 31;
        count[i] = 10;
    }
    qb_paired_blocks blocks = {a, b, count, 20};
    qb_interval ci, again, other;
    QB_CHECK_OK(qb_bootstrap_penalty(&blocks, 500, 7, &ci));
    double want = exp(3.1) - exp(3.0);
    assert_true(fabs(ci.low - want) < 1e-9 && fabs(ci.high - want) < 1e-9);
    for (size_t i = 0; i < 20; i++) b[i] += 0.1 * (double)i;
    QB_CHECK_OK(qb_bootstrap_penalty(&blocks, 500, 7, &ci));
    QB_CHECK_OK(qb_bootstrap_penalty(&blocks, 500, 7, &again));
    QB_CHECK_OK(qb_bootstrap_penalty(&blocks, 500, 8, &other));
    assert_true(ci.low == again.low && ci.high == again.high);
    assert_true(ci.low != other.low);
    assert_true(ci.low < qb_perplexity_difference(&blocks));
    assert_true(ci.high > qb_perplexity_difference(&blocks));
    b[3] = INFINITY; /* a destroyed model has no interval, and does not crash */
    QB_CHECK_OK(qb_bootstrap_penalty(&blocks, 500, 7, &ci));
    assert_true(isnan(ci.low));
}

/* Texts are drawn whose true penalty is known; the interval must hold it about 95 times in 100,
 * also for as few windows as the built-in text has. */
static double coverage(size_t n_blocks, size_t n_texts)
{
    enum { TOKENS = 100, MAX_BLOCKS = 40 };
    double a[MAX_BLOCKS], b[MAX_BLOCKS];
    size_t count[MAX_BLOCKS], held = 0;
    double truth = exp(3.05) - exp(3.0);
    for (size_t text = 0; text < n_texts; text++) {
        float noise[2 * MAX_BLOCKS];
        qb_rng_normal_f32(11, QB_STREAM_TEST, text * 2 * MAX_BLOCKS, 2 * n_blocks, 1.0f, noise);
        for (size_t i = 0; i < n_blocks; i++) {
            double shared = 0.3 * (double)noise[2 * i]; /* hard windows are hard for both */
            a[i] = TOKENS * (3.0 + shared);
            b[i] = TOKENS * (3.05 + shared + 0.05 * (double)noise[2 * i + 1]);
            count[i] = TOKENS;
        }
        qb_interval ci;
        qb_paired_blocks blocks = {a, b, count, n_blocks};
        QB_CHECK_OK(qb_bootstrap_penalty(&blocks, 1000, text, &ci));
        held += ci.low <= truth && truth <= ci.high;
    }
    return (double)held / (double)n_texts;
}

static void bootstrap_covers_the_truth(void **state)
{
    (void)state;
    double few = coverage(10, 500), many = coverage(40, 500);
    printf("coverage of the 95 %% interval: %.3f with 10 blocks, %.3f with 40\n", few, many);
    assert_true(few > 0.92 && few < 0.98); /* 95 % +- 3 standard errors of 500 draws */
    assert_true(many > 0.92 && many < 0.98);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(quantiles_interpolate),
        cmocka_unit_test(median_interval_has_the_tabulated_ranks),
        cmocka_unit_test(student_t_matches_the_tables),
        cmocka_unit_test(penalty_is_the_difference_of_perplexities),
        cmocka_unit_test(bootstrap_of_equal_blocks_is_a_point_and_repeats),
        cmocka_unit_test(bootstrap_covers_the_truth),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
