/* tests/unit/test_moments.c - moments against plain two-pass sums in long double, however the
 * numbers come; selection against sorting. */
#include "support.h"

#include "core/moments.h"
#include "core/rng.h"

#include <math.h>
#include <stdlib.h>

enum { N = 1000 };

static double plain_kurtosis(const float *x, size_t n)
{
    long double mean = 0, second = 0, fourth = 0;
    for (size_t i = 0; i < n; i++) mean += x[i] / (long double)n;
    for (size_t i = 0; i < n; i++) {
        long double d = x[i] - mean;
        second += d * d / (long double)n;
        fourth += d * d * d * d / (long double)n;
    }
    return (double)(fourth / (second * second));
}

static void near(double found, double expected, double tolerance)
{
    if (!(fabs(found - expected) <= tolerance * fabs(expected)))
        fail_msg("found %.17g, expected %.17g", found, expected);
}

static void kurtosis_is_the_same_however_numbers_come(void **state)
{
    (void)state;
    for (int shift = 0; shift < 2; shift++) { /* far from zero, sums of powers would lose it all */
        float x[N];
        qb_test_fill_f32(x, N, 7);
        x[31] = 40;
        for (size_t i = 0; i < N; i++) x[i] += shift ? 3000.0f : 0.0f;
        qb_moments one_by_one = {0}, merged = {0};
        for (size_t i = 0; i < N; i++) qb_moments_add(&one_by_one, x[i]);
        for (size_t at = 0, n = 1; at < N; at += n, n = n * 2 + 1) {
            if (n > N - at) n = N - at;
            const qb_moments part = qb_moments_of(x + at, n);
            qb_moments_merge(&merged, &part);
        }
        const qb_moments whole = qb_moments_of(x, N);
        double expected = plain_kurtosis(x, N);
        near(qb_moments_kurtosis(&whole), expected, 1e-12);
        near(qb_moments_kurtosis(&one_by_one), expected, 1e-10);
        near(qb_moments_kurtosis(&merged), expected, 1e-10);
        near(merged.mean, whole.mean, 1e-13);
        near(merged.m3, whole.m3, 1e-8);
        near(one_by_one.m3, whole.m3, 1e-8);
    }
}

static void moments_of_little(void **state)
{
    (void)state;
    const float same[] = {2, 2, 2};
    qb_moments none = {0}, m = qb_moments_of(same, 3);
    assert_true(isnan(qb_moments_kurtosis(&none)));
    assert_true(isnan(qb_moments_kurtosis(&m)));
    qb_moments_merge(&m, &none);
    assert_true(m.n == 3 && m.mean == 2);
}

static int by_value(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

static void selection_finds_what_sorting_does(void **state)
{
    (void)state;
    for (size_t n = 1; n < 200; n += n < 12 ? 1 : 37)
        for (uint64_t values = 1; values < 1000; values *= 7) { /* few values: many are equal */
            float x[200], sorted[200];
            for (size_t i = 0; i < n; i++)
                sorted[i] = (float)qb_rng_below(n, QB_STREAM_DATA, i, values);
            for (size_t k = 0; k < n; k++) {
                for (size_t i = 0; i < n; i++)
                    x[i] = (float)qb_rng_below(n, QB_STREAM_DATA, i, values);
                if (k == 0) qsort(sorted, n, sizeof *sorted, by_value);
                assert_true(qb_select(x, n, k) == sorted[k]);
                for (size_t i = 0; i < n; i++) assert_true(i < k ? x[i] <= x[k] : x[i] >= x[k]);
            }
        }
}

static void correlation_of_known_numbers(void **state)
{
    (void)state;
    const double x[] = {1, 2, 3, 4}, up[] = {3, 5, 7, 9}, down[] = {1, 0, -1, -2},
                 flat[] = {1, 1, 1, 1}, some[] = {1, 3, 2, 4};
    near(qb_correlation(x, up, 4), 1, 1e-14);
    near(qb_correlation(x, down, 4), -1, 1e-14);
    near(qb_correlation(x, some, 4), 0.8, 1e-14);
    assert_true(isnan(qb_correlation(x, flat, 4)));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(kurtosis_is_the_same_however_numbers_come),
        cmocka_unit_test(moments_of_little),
        cmocka_unit_test(selection_finds_what_sorting_does),
        cmocka_unit_test(correlation_of_known_numbers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
