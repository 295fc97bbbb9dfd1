/* tests/unit/test_sampler.c - greedy, temperature and nucleus against the definition. */
#include "support.h"

#include "core/memory.h"
#include "infer/sampler.h"

#include <math.h>

enum { VOCAB = 8, DRAWS = 20000 };

static const float logits[VOCAB] = {0.5f, 2.0f, -1.0f, 2.0f, 1.0f, -INFINITY, 0.0f, NAN};

static void count_draws(double temperature, double top_p, uint64_t seed, double share[VOCAB])
{
    qb_sampler *sampler;
    qb_sampler_options options = {temperature, top_p, seed};
    QB_CHECK_OK(qb_sampler_create(VOCAB, &options, &sampler));
    for (int i = 0; i < VOCAB; i++) share[i] = 0;
    for (int i = 0; i < DRAWS; i++) share[qb_sampler_next(sampler, logits)] += 1.0 / DRAWS;
    qb_sampler_destroy(sampler);
}

static void probabilities(double temperature, double p[VOCAB])
{
    double sum = 0;
    for (int i = 0; i < VOCAB; i++) {
        p[i] = isnan(logits[i]) ? 0 : exp((double)logits[i] / temperature);
        sum += p[i];
    }
    for (int i = 0; i < VOCAB; i++) p[i] /= sum;
}

static void temperature_0_takes_the_first_largest(void **state)
{
    (void)state;
    double share[VOCAB];
    count_draws(0, 0.95, 1, share);
    assert_true(share[1] > 0.9999);
}

static void draws_follow_the_probabilities(void **state)
{
    (void)state;
    static const double temperatures[] = {0.5, 1.0, 3.0};
    for (size_t t = 0; t < QB_COUNT(temperatures); t++) {
        double share[VOCAB], p[VOCAB];
        count_draws(temperatures[t], 1, 7, share);
        probabilities(temperatures[t], p);
        for (int i = 0; i < VOCAB; i++) { /* 5 standard deviations of a share of DRAWS */
            double bound = 5 * sqrt(p[i] * (1 - p[i]) / DRAWS) + 1e-12;
            assert_true(fabs(share[i] - p[i]) <= bound);
        }
    }
}

static void nucleus_keeps_the_fewest_that_reach_top_p(void **state)
{
    (void)state;
    double share[VOCAB], p[VOCAB];
    probabilities(1, p); /* tokens 1 and 3 share the top, then 4, 0, 6, 2 */
    count_draws(1, p[1] + p[3] + p[4] / 2, 3, share);
    double kept = p[1] + p[3] + p[4];
    for (int i = 0; i < VOCAB; i++) {
        double want = i == 1 || i == 3 || i == 4 ? p[i] / kept : 0;
        assert_true(fabs(share[i] - want) <= 5 * sqrt(want / DRAWS) + 1e-12);
    }
    count_draws(1, 0, 3, share); /* nothing but the likeliest */
    assert_true(share[1] > 0.9999);
}

static void seed_decides(void **state)
{
    (void)state;
    double a[VOCAB], b[VOCAB], c[VOCAB];
    count_draws(1, 0.95, 11, a);
    count_draws(1, 0.95, 11, b);
    count_draws(1, 0.95, 12, c);
    assert_memory_equal(a, b, sizeof a);
    assert_memory_not_equal(a, c, sizeof a);
}

static void all_nan_gives_some_token(void **state)
{
    (void)state;
    float x[VOCAB];
    for (int i = 0; i < VOCAB; i++) x[i] = NAN;
    qb_sampler *sampler;
    QB_CHECK_OK(qb_sampler_create(VOCAB, &(qb_sampler_options){1, 0.9, 1}, &sampler));
    assert_in_range(qb_sampler_next(sampler, x), 0, VOCAB - 1);
    qb_sampler_destroy(sampler);
}

static void failed_allocation_leaks_nothing(void **state)
{
    (void)state;
    qb_sampler *sampler = NULL;
    size_t before = qb_memory_live_blocks();
    for (size_t n = 1; n <= 2; n++) {
        qb_memory_fail_at(n);
        assert_int_equal(qb_sampler_create(VOCAB, &(qb_sampler_options){1, 1, 1}, &sampler),
                         QB_ERR_MEMORY);
        assert_null(sampler);
    }
    qb_memory_fail_at(0);
    assert_int_equal(qb_memory_live_blocks(), before);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(temperature_0_takes_the_first_largest),
        cmocka_unit_test(draws_follow_the_probabilities),
        cmocka_unit_test(nucleus_keeps_the_fewest_that_reach_top_p),
        cmocka_unit_test(seed_decides),
        cmocka_unit_test(all_nan_gives_some_token),
        cmocka_unit_test(failed_allocation_leaks_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
