/* tests/unit/test_sampler.c - greedy, temperature and nucleus against the definition. */
#include "support.h"

#include "core/memory.h"
#include "core/rng.h"
#include "infer/sampler.h"

#include <math.h>
#include <stdlib.h>

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

/* ---- against the plain definition ---- */

typedef struct weighted {
    double weight;
    int32_t id;
} weighted;

static int by_weight(const void *a, const void *b)
{
    const weighted *x = a, *y = b;
    if (x->weight != y->weight) return x->weight < y->weight ? 1 : -1;
    return x->id < y->id ? -1 : 1;
}

/* Sorts all, keeps the likeliest until they reach top_p, walks along them. */
static int32_t draw_plainly(const float *x, size_t n, const qb_sampler_options *o, uint64_t draw)
{
    weighted *w;
    float max = -INFINITY;
    double sum = 0, reached = 0;
    size_t n_kept = 0, i = 0;
    QB_CHECK_OK(QB_NEW(&w, n, "weights"));
    for (size_t k = 0; k < n; k++) max = fmaxf(max, x[k]);
    for (size_t k = 0; k < n; k++) {
        double e = isnan(x[k]) ? -INFINITY : ((double)x[k] - (double)max) / o->temperature;
        w[k] = (weighted){e > -45 ? exp(e) : 0, (int32_t)k};
        sum += w[k].weight;
    }
    qsort(w, n, sizeof *w, by_weight);
    while (n_kept < n && (!n_kept || reached < o->top_p * sum)) reached += w[n_kept++].weight;
    double left = qb_rng_double(o->seed, QB_STREAM_SAMPLER, draw) * reached;
    for (; i + 1 < n_kept && left >= w[i].weight; i++) left -= w[i].weight;
    int32_t id = w[i].id;
    qb_free(w);
    return id;
}

/* Flat, steep, stepped (ties), all alike, sorted either way, with NaN and -inf. */
static void fill_logits(float *x, size_t n, size_t kind, uint64_t seed)
{
    for (size_t i = 0; i < n; i++) {
        double u = qb_rng_double(seed, QB_STREAM_SAMPLER, i), at = (double)i / (double)n;
        const double values[] = {0.1 * u, 30 * u, floor(4 * u), 1, at, -at, 3 * u};
        x[i] = (float)values[kind];
        if (kind == 6 && i % 3) x[i] = i % 2 ? NAN : -INFINITY;
    }
}

static void draws_are_those_of_the_definition(void **state)
{
    (void)state;
    enum { MOST = 3000, KINDS = 7, EACH = 6 };
    static const size_t sizes[] = {1, 2, 3, 4, 7, 33, 500, MOST};
    static const double tops[] = {0, 1e-9, 0.3, 0.5, 0.95, 0.999999};
    static float x[MOST];
    for (size_t k = 0; k < QB_COUNT(sizes) * KINDS * QB_COUNT(tops); k++) {
        size_t n = sizes[k % QB_COUNT(sizes)], kind = k / QB_COUNT(sizes) % KINDS;
        qb_sampler_options o = {.temperature = k % 3 ? 0.8 : 2.5,
                                .top_p = tops[k / QB_COUNT(sizes) / KINDS],
                                .seed = k};
        qb_sampler *sampler;
        fill_logits(x, n, kind, k);
        QB_CHECK_OK(qb_sampler_create(n, &o, &sampler));
        for (uint64_t draw = 0; draw < EACH; draw++) {
            int32_t got = qb_sampler_next(sampler, x), want = draw_plainly(x, n, &o, draw);
            if (got != want)
                fail_msg("%zu logits of kind %zu, top_p %g, draw %d: %d, expected %d", n, kind,
                         o.top_p, (int)draw, (int)got, (int)want);
        }
        qb_sampler_destroy(sampler);
    }
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
        cmocka_unit_test(draws_are_those_of_the_definition),
        cmocka_unit_test(seed_decides),
        cmocka_unit_test(all_nan_gives_some_token),
        cmocka_unit_test(failed_allocation_leaks_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
