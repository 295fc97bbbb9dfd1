/* tests/unit/test_outliers.c - the outlier metrics of an evaluation: against plain loops for every
 * softmax. Through a trainer: test_evaluation.c. */
#include "support.h"

#include "core/memory.h"
#include "quant/outliers.h"

#include <math.h>
#include <string.h>

/* ---- the residual stream ---- */

static void kurtosis_and_maxima_of_known_rows(void **state)
{
    (void)state;
    enum { WIDTH = 8 };
    /* two windows of three tokens: one spike among zeros (kurtosis n - 2 + 1 / (n - 1)), others +-1
     * (kurtosis 1, the least there is) */
    float x[6 * WIDTH];
    for (size_t i = 0; i < 6 * WIDTH; i++) x[i] = i % 2 ? 2.0f : -2.0f;
    for (size_t w = 0; w < 2; w++) {
        memset(x + 3 * w * WIDTH, 0, WIDTH * sizeof *x);
        x[3 * w * WIDTH + 5] = w ? -30.0f : 10.0f;
    }
    qb_outlier_sums sums = {.n_queries = 0};
    QB_CHECK_OK(qb_outlier_add_stream(&sums, x, 2, 3, WIDTH, NULL));
    qb_outliers o = qb_outlier_finish(&sums);
    assert_true(fabs(o.kurt_token_first - (WIDTH - 2 + 1.0 / (WIDTH - 1))) < 1e-12);
    assert_true(fabs(o.kurt_token_rest - 1) < 1e-12);
    assert_true(o.max_abs_first == 20 && o.max_abs_rest == 2);
    assert_true(isnan(o.attn_first_share));
}

static void a_token_without_spread_has_no_kurtosis(void **state)
{
    (void)state;
    enum { WIDTH = 4 };
    const float x[3 * WIDTH] = {7, 7, 7, 7, 2, -2, 2, -2, 0, 0, 0, 0};
    qb_outlier_sums sums = {.n_queries = 0};
    QB_CHECK_OK(qb_outlier_add_stream(&sums, x, 1, 3, WIDTH, NULL));
    qb_outliers o = qb_outlier_finish(&sums);
    assert_true(isnan(o.kurt_token_first) && o.kurt_token_rest == 1);
    assert_true(o.max_abs_first == 7 && o.max_abs_rest == 1);
    const float broken[WIDTH] = {1, NAN, 1, 1}; /* that, however, is to be seen */
    QB_CHECK_OK(qb_outlier_add_stream(&sums, broken, 1, 1, WIDTH, NULL));
    QB_CHECK_OK(qb_outlier_add_stream(&sums, x + WIDTH, 1, 1, WIDTH, NULL));
    assert_true(isnan(qb_outlier_finish(&sums).kurt_token_first));
}

/* ---- attention ---- */

enum { BATCH = 2, CONTEXT = 70, HEADS = 4, KV_HEADS = 2, DIM = 6 }; /* over one block of queries */

static void weights_of_query(const qb_config *c, const double *s, size_t seen, double sink,
                             double *p)
{
    double sum = c->softmax == QB_SOFTMAX1 ? 1 : c->softmax == QB_SOFTMAX_SINK ? exp(sink) : 0;
    for (size_t j = 0; j < seen; j++) sum += exp(s[j]);
    for (size_t j = 0; j < seen; j++) {
        p[j] = exp(s[j]) / sum;
        if (c->softmax == QB_SOFTMAX_RELU) p[j] = s[j] > 0 ? s[j] / (double)seen : 0;
        if (c->softmax != QB_SOFTMAX_CLIPPED) continue;
        p[j] = (c->softmax_zeta - c->softmax_gamma) * p[j] + c->softmax_gamma;
        p[j] = p[j] < 0 ? 0 : p[j] > 1 ? 1 : p[j];
    }
}

static void plain(const qb_config *c, const float *qkv, const float *sink, double *argmax,
                  double *share)
{
    size_t width = (HEADS + 2 * KV_HEADS) * DIM, n = 0;
    *argmax = *share = 0;
    for (size_t b = 0; b < BATCH; b++)
        for (size_t h = 0; h < HEADS; h++)
            for (size_t i = 1; i < CONTEXT; i++, n++) {
                double s[CONTEXT], p[CONTEXT];
                size_t best = 0, seen = i + 1 > c->free_prefix ? i + 1 : c->free_prefix;
                const float *q = qkv + (b * CONTEXT + i) * width + h * DIM;
                for (size_t j = 0; j < seen; j++) {
                    const float *k = qkv + (b * CONTEXT + j) * width + (HEADS + h / 2) * DIM;
                    s[j] = 0;
                    for (size_t d = 0; d < DIM; d++) s[j] += (double)q[d] * k[d] / sqrt(DIM);
                }
                weights_of_query(c, s, seen, sink[h], p);
                for (size_t j = 1; j < seen; j++) best = p[j] > p[best] ? j : best;
                *argmax += best == 0;
                *share += p[0];
            }
    *argmax /= (double)n;
    *share /= (double)n;
}

static void attention_equals_plain_loops_for_every_softmax(void **state)
{
    (void)state;
    float qkv[BATCH * CONTEXT * (HEADS + 2 * KV_HEADS) * DIM], sink[HEADS] = {-1, 0, 2, 5};
    for (int kind = 0; kind < QB_SOFTMAX_COUNT; kind++)
        for (size_t free_prefix = 0; free_prefix < 10; free_prefix += 9)
            for (size_t n_threads = 1; n_threads < 4; n_threads += 2) {
                qb_config c = {.softmax = (qb_softmax_kind)kind,
                               .n_heads = HEADS,
                               .n_kv_heads = KV_HEADS,
                               .head_dim = DIM,
                               .free_prefix = free_prefix,
                               .softmax_gamma = -0.05,
                               .softmax_zeta = 1.1};
                double argmax, share;
                qb_outlier_sums sums = {.n_queries = 0};
                qb_pool *pool;
                qb_test_fill_f32(qkv, QB_COUNT(qkv), 100 + (uint64_t)kind);
                plain(&c, qkv, sink, &argmax, &share);
                QB_CHECK_OK(qb_pool_create(n_threads, &pool));
                QB_CHECK_OK(
                    qb_outlier_add_attention(&sums, &c, qkv, sink, BATCH, CONTEXT, pool, NULL));
                qb_pool_destroy(pool);
                qb_outliers o = qb_outlier_finish(&sums);
                assert_true(fabs(o.attn_first_argmax - argmax) < 1e-12);
                assert_true(fabs(o.attn_first_share - share) < 1e-6);
                assert_true(argmax > 0 && argmax < 1);
            }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(kurtosis_and_maxima_of_known_rows),
        cmocka_unit_test(a_token_without_spread_has_no_kurtosis),
        cmocka_unit_test(attention_equals_plain_loops_for_every_softmax),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
