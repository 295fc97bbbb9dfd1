/* tests/cuda/test_cuda_logits.c - statistics of rows of logits against the reference row. */
#include "gpu.h"

#include "core/rng.h"
#include "kernels/cuda/logits.h"
#include "kernels/cuda/matrix.h"
#include "kernels/pointwise_internal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct logits_case {
    size_t m, vocab, stride;
    float *a, *b; /* host */
    int32_t *target;
    float *a_dev, *b_dev;
    int32_t *target_dev;
} logits_case;

/* b is a with noise; every fifth target is negative; logits tie in places. Padding is huge. */
static logits_case case_make(size_t m, size_t vocab, float spread)
{
    logits_case t = {.m = m, .vocab = vocab, .stride = qb_cuda_stride(vocab)};
    size_t n = m * t.stride;
    t.a = malloc(n * sizeof *t.a);
    t.b = malloc(n * sizeof *t.b);
    t.target = malloc(m * sizeof *t.target);
    qb_rng_normal_f32(1 + vocab, QB_STREAM_TEST, 0, n, spread, t.a);
    qb_rng_normal_f32(2 + vocab, QB_STREAM_TEST, 0, n, 0.1f, t.b);
    for (size_t i = 0; i < n; i++) {
        t.b[i] += t.a[i];
        if (i % t.stride >= vocab) t.a[i] = t.b[i] = 1e30f;
    }
    for (size_t i = 0; i < m; i++)
        t.target[i] = i % 5 == 4 ? -1 : (int32_t)qb_rng_below(3, QB_STREAM_TEST, i, vocab);
    return t;
}

static void case_upload(logits_case *t)
{
    t->a_dev = qb_gpu_upload(t->a, t->m * t->stride * sizeof(float));
    t->b_dev = qb_gpu_upload(t->b, t->m * t->stride * sizeof(float));
    t->target_dev = qb_gpu_upload(t->target, t->m * sizeof *t->target);
}

static void case_free(logits_case *t)
{
    qb_gpu_free(t->a_dev);
    qb_gpu_free(t->b_dev);
    qb_gpu_free(t->target_dev);
    free(t->a);
    free(t->b);
    free(t->target);
}

static bool is_near(double got, double want, double bound)
{
    if (isnan(want)) return isnan(got);
    if (isinf(want)) return got == want;
    return fabs(got - want) <= bound;
}

/* Powers are good to 2 ulp of f32 and their sums are made in double. */
static void check_stats(const logits_case *t, size_t i, const qb_logit_stats *got, bool pair)
{
    qb_logit_stats want;
    const float *a = t->a + i * t->stride, *b = pair ? t->b + i * t->stride : a;
    qb__logit_stats_ref(a, b, t->vocab, t->target[i], &want);
    if (!pair) want.kl = want.max_diff = 0, want.nll_b = 0, want.top_b = 0;
    double nll_bound = 1e-6, kl_bound = 1e-6 + 2e-7 * want.max_diff;
    if (!is_near(got->nll_a, want.nll_a, nll_bound) ||
        !is_near(got->nll_b, want.nll_b, nll_bound) || !is_near(got->kl, want.kl, kl_bound) ||
        got->max_diff != want.max_diff || got->top_a != want.top_a || got->top_b != want.top_b)
        fail_msg("row %zu of %zu x %zu: nll %.9g %.9g kl %.9g diff %.9g top %d %d, expected %.9g "
                 "%.9g %.9g %.9g %d %d",
                 i, t->m, t->vocab, got->nll_a, got->nll_b, got->kl, got->max_diff, got->top_a,
                 got->top_b, want.nll_a, want.nll_b, want.kl, want.max_diff, want.top_a,
                 want.top_b);
}

static void check_case(logits_case *t)
{
    case_upload(t);
    qb_logit_stats *got = malloc(t->m * sizeof *got), *again = malloc(t->m * sizeof *got);
    int32_t *ids = malloc(t->m * sizeof *ids);
    qb_logit_stats *dev = qb_gpu_poison(t->m * sizeof *dev);
    int32_t *ids_dev = qb_gpu_poison(t->m * sizeof *ids);
    for (int pair = 1; pair >= 0; pair--) {
        const float *b = pair ? t->b_dev : NULL;
        QB_CHECK_OK(
            qb_cuda_logit_stats(t->a_dev, b, t->m, t->vocab, t->stride, t->target_dev, dev, NULL));
        qb_gpu_fetch(got, dev, t->m * sizeof *got);
        for (size_t i = 0; i < t->m; i++) check_stats(t, i, &got[i], pair);
        QB_CHECK_OK(
            qb_cuda_logit_stats(t->a_dev, b, t->m, t->vocab, t->stride, t->target_dev, dev, NULL));
        qb_gpu_fetch(again, dev, t->m * sizeof *got);
        assert_memory_equal(got, again, t->m * sizeof *got);
    }
    QB_CHECK_OK(qb_cuda_argmax(t->a_dev, t->m, t->vocab, t->stride, ids_dev, NULL));
    qb_gpu_fetch(ids, ids_dev, t->m * sizeof *ids);
    for (size_t i = 0; i < t->m; i++) assert_int_equal(ids[i], got[i].top_a);
    qb_gpu_free(dev);
    qb_gpu_free(ids_dev);
    free(got);
    free(again);
    free(ids);
    case_free(t);
}

static void rows_equal_the_reference(void **state)
{
    (void)state;
    QB_NEEDS_GPU();
    static const size_t vocabs[] = {1, 2, 31, 97, 1000, 2047, 2048, 2049, 8192, 50304};
    static const float spreads[] = {0.0f, 1.0f, 10.0f};
    for (size_t i = 0; i < QB_COUNT(vocabs); i++) {
        if (qb_test_is_small() && vocabs[i] > 3000) continue;
        logits_case t = case_make(17, vocabs[i], spreads[i % 3]);
        check_case(&t);
    }
    if (qb_test_is_small()) return;
    logits_case wide = case_make(3, 262144, 3.0f), tall = case_make(4096, 1000, 3.0f);
    check_case(&wide);
    check_case(&tall);
}

/* Ties, masks, infinities and NaN, in the first column and elsewhere. */
static void odd_values_are_the_reference_s(void **state)
{
    (void)state;
    QB_NEEDS_GPU();
    enum { M = 12, VOCAB = 5000 };
    logits_case t = case_make(M, VOCAB, 2.0f);
    for (size_t i = 0; i < M; i++) t.target[i] = 77;
    float *a = t.a, *b = t.b;
    size_t s = t.stride;
    a[0 * s + 4321] = a[0 * s + 17] = a[0 * s + 2049] = 50.0f; /* ties */
    b[0 * s + 4999] = b[0 * s + 4998] = 51.0f;
    for (size_t c = 0; c < VOCAB; c++) {
        a[1 * s + c] = b[1 * s + c] = -7.0f; /* one large tie */
        if (c % 3) a[2 * s + c] = b[2 * s + c] = -INFINITY;
        if (c != 77) a[3 * s + c] = b[3 * s + c] = -INFINITY;
        if (c % 3) a[4 * s + c] = -INFINITY; /* masked in a alone */
        a[5 * s + c] = b[5 * s + c] = -INFINITY;
    }
    b[6 * s + 100] = -INFINITY; /* b gives no chance to what a does */
    a[7 * s + 100] = INFINITY;
    b[8 * s + 100] = NAN;
    a[9 * s + 0] = NAN;
    a[10 * s + 4999] = NAN;
    a[11 * s + 3] = 1e30f; /* all others vanish */
    check_case(&t);
}

static void bad_rows_are_refused(void **state)
{
    (void)state;
    QB_NEEDS_GPU();
    assert_int_equal(qb_cuda_argmax(NULL, 1, 0, 64, NULL, NULL), QB_ERR_SHAPE);
    assert_int_equal(qb_cuda_argmax(NULL, 1, 5, 5, NULL, NULL), QB_ERR_SHAPE);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rows_equal_the_reference),
        cmocka_unit_test(odd_values_are_the_reference_s),
        cmocka_unit_test(bad_rows_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
