/* tests/unit/test_histogram.c - percentiles from buckets against sorted values, merging, ends. */
#include "support.h"

#include "core/histogram.h"
#include "core/rng.h"
#include "core/stats.h"

#include <math.h>
#include <string.h>

enum { N = 4000 };
static const double quantiles[] = {0.001, 0.01, 0.25, 0.5, 0.9, 0.99, 0.999};

/* Values over eleven powers of ten, as times of kernels and of whole runs are. */
static double value_at(size_t i, float normal)
{
    return i % 3 ? exp(0.3 * (double)normal) : pow(10, 2.5 * (double)normal);
}

/* The q-quantile as the rank-th of the sorted values: what the buckets are to find. */
static double sorted_quantile(const double *sorted, size_t n, double q)
{
    return sorted[(size_t)ceil(q * (double)n) - 1];
}

static void quantiles_are_within_one_per_cent(void **state)
{
    (void)state;
    static float normal[N];
    static double values[N];
    static qb_histogram h;
    for (uint64_t seed = 1; seed <= 5; seed++) {
        memset(&h, 0, sizeof h);
        qb_rng_normal_f32(seed, QB_STREAM_TEST, 0, N, 1.0f, normal);
        for (size_t i = 0; i < N; i++) {
            values[i] = fmin(fmax(value_at(i, normal[i]), 1e-5), 1e7);
            qb_histogram_add(&h, values[i]);
        }
        qb_sort(values, N);
        for (size_t k = 0; k < QB_COUNT(quantiles); k++) {
            double want = sorted_quantile(values, N, quantiles[k]);
            double got = qb_histogram_quantile(&h, quantiles[k]);
            if (!(fabs(got / want - 1) <= 0.01))
                fail_msg("%g: %g, sorted %g", quantiles[k], got, want);
        }
        assert_true(qb_histogram_quantile(&h, 0) == values[0]);
        assert_true(qb_histogram_quantile(&h, 1) == values[N - 1]);
    }
}

static void buckets_meet_and_ends_are_kept(void **state)
{
    (void)state;
    static qb_histogram h;
    assert_true(isnan(qb_histogram_quantile(&h, 0.5)));
    for (size_t i = 0; i + 1 < QB_HISTOGRAM_BUCKETS; i++) {
        double low = qb_histogram_bucket_low(i), next = qb_histogram_bucket_low(i + 1);
        assert_true(low < next && next / low <= 1.0 + 1.0 / QB_HISTOGRAM_STEPS);
    }
    qb_histogram_add(&h, 3.0);
    for (size_t k = 0; k < QB_COUNT(quantiles); k++)
        assert_true(qb_histogram_quantile(&h, quantiles[k]) == 3.0); /* one value: exact */
    static const double odd[] = {0, -1, NAN, INFINITY, 1e300, 1e-300};
    for (size_t i = 0; i < QB_COUNT(odd); i++) qb_histogram_add(&h, odd[i]);
    assert_int_equal(h.n, 7);
    assert_true(qb_histogram_quantile(&h, 0.5) > 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(quantiles_are_within_one_per_cent),
        cmocka_unit_test(buckets_meet_and_ends_are_kept),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
