/* tests/unit/test_changes.c - change points: found where they are, and seldom where there are none.
 */
#include "support.h"

#include "core/changes.h"
#include "core/memory.h"
#include "core/rng.h"

#include <math.h>

enum { N = 60 };

static void fill(double *x, uint64_t seed)
{
    float noise[N];
    qb_rng_normal_f32(seed, QB_STREAM_TEST, 0, N, 1.0f, noise);
    for (size_t i = 0; i < N; i++) x[i] = 100 + (double)noise[i];
}

static void changes_are_found_where_they_are(void **state)
{
    (void)state;
    double x[N];
    size_t places[N], n, near = 0, both = 0;
    for (uint64_t seed = 0; seed < 50; seed++) {
        fill(x, seed);
        for (size_t i = 40; i < N; i++) x[i] += 2; /* two deviations */
        QB_CHECK_OK(qb_find_changes(x, N, 0.01, seed, places, &n));
        near += n >= 1 && places[0] >= 38 && places[0] <= 42;
        for (size_t i = 20; i < 40; i++) x[i] -= 3;
        QB_CHECK_OK(qb_find_changes(x, N, 0.01, seed, places, &n));
        both += n >= 2 && places[0] >= 18 && places[0] <= 22;
    }
    printf("of 50 series: one change found in %zu, two in %zu\n", near, both);
    assert_true(near >= 45 && both >= 45);
}

static void series_without_a_change_have_none(void **state)
{
    (void)state;
    double x[N];
    size_t places[N], n, alarms = 0;
    for (uint64_t seed = 100; seed < 600; seed++) {
        fill(x, seed);
        if (seed % 2) x[30] = 1000; /* an outlier is no change */
        QB_CHECK_OK(qb_find_changes(x, N, 0.01, seed, places, &n));
        alarms += n > 0;
    }
    printf("of 500 series without a change: %zu alarms at a rate of 1 %%\n", alarms);
    assert_true(alarms <= 12); /* 1 % and 3 standard errors */
}

/* Figures that are the same bits every time: three new ones after ten old ones are enough. */
static void steps_of_exact_figures_are_found(void **state)
{
    (void)state;
    double x[13];
    size_t places[13], n;
    for (size_t i = 0; i < 13; i++) x[i] = i < 10 ? 24.886 : 24.887;
    QB_CHECK_OK(qb_find_changes(x, 13, 0.01, 1, places, &n));
    assert_int_equal(n, 1);
    assert_int_equal(places[0], 10);
    QB_CHECK_OK(qb_find_changes(x, 10, 0.01, 1, places, &n));
    assert_int_equal(n, 0);
    QB_CHECK_OK(qb_find_changes(x, 0, 0.01, 1, places, &n));
    assert_int_equal(n, 0);
    qb_memory_fail_at(2);
    assert_int_equal(qb_find_changes(x, 13, 0.01, 1, places, &n), QB_ERR_MEMORY);
    qb_memory_fail_at(0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(changes_are_found_where_they_are),
        cmocka_unit_test(series_without_a_change_have_none),
        cmocka_unit_test(steps_of_exact_figures_are_found),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
