/* tests/unit/test_engine.c - the engine against a plain forward pass in double, for every flag of
 * the architecture table and every scheme; prefill against decode; bits at any number of threads.
 */
#include "rig.h"
#include "support.h"

#include "core/interrupt.h"
#include "core/memory.h"
#include "infer/calibrate.h"
#include "quant/quantize_model.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { BATCH = 3, TOKENS = 17 };

static qb_test_rig rig_create(const qb_config *config, size_t n_threads)
{
    return qb_test_rig_create(
        config, &(qb_test_rig_options){.batch = BATCH, .n_tokens = TOKENS, .n_threads = n_threads});
}

static float *engine_logits(const qb_test_rig *r, const qb_scheme *scheme, bool fake,
                            bool quantize_head)
{
    return qb_test_logits(r, r->cpu, scheme, fake, quantize_head);
}

static double largest(const double *x, size_t n)
{
    double m = 0;
    for (size_t i = 0; i < n; i++) m = fmax(m, fabs(x[i]));
    return m;
}

static void check_full(const qb_config *config, const char *what)
{
    qb_test_rig r = rig_create(config, 2);
    float *got = engine_logits(&r, qb_scheme_find("full"), false, false);
    double *want = malloc(r.n_logits * sizeof *want), worst = 0;
    qb_test_forward(r.model, r.tokens, BATCH, TOKENS, want);
    for (size_t i = 0; i < r.n_logits; i++) worst = fmax(worst, fabs((double)got[i] - want[i]));
    double bound = 2e-6 * largest(want, r.n_logits); /* a few dozen roundings of 6e-8 */
    if (!(worst <= bound)) fail_msg("%s: difference %g, bound %g", what, worst, bound);
    free(got);
    free(want);
    qb_test_rig_destroy(&r);
}

static void full_precision_equals_plain_forward(void **state)
{
    (void)state;
    qb_test_each_tiny_config(check_full);
}

/* The fake twin differs from the integers by f32 rounding alone; a code that falls on the other
 * side of a rounding boundary moves a logit by a step, so the bound is a share of the effect of
 * quantisation. */
static void check_twin(const qb_test_rig *r, const qb_scheme *s, bool head, const float *full)
{
    float *real = engine_logits(r, s, false, head), *fake = engine_logits(r, s, true, head);
    double gap = qb_test_max_diff(real, fake, r->n_logits, NULL);
    double effect = qb_test_max_diff(real, full, r->n_logits, NULL);
    print_message("%s %s%s: effect %.3g, integer against fake %.3g\n", r->model->config.arch->name,
                  s->name, head ? " +head" : "", effect, gap);
    assert_true(effect > 1e-4);
    assert_true(gap < 0.35 * effect);
    free(real);
    free(fake);
}

static void integers_equal_their_fake_twin(void **state)
{
    (void)state;
    for (int arch = 0; arch < 3; arch++) {
        qb_config config = qb_test_tiny_config(arch == 1 ? "llama" : "gpt2");
        config.attn_gate = arch == 2; /* from the norm's output before it is quantised */
        qb_test_rig r = rig_create(&config, 2);
        float *full = engine_logits(&r, qb_scheme_find("full"), false, false);
        for (const qb_scheme *row = qb_schemes; row->name; row++)
            for (int head = 0; head < 2 && row->weights.bits; head++) {
                const qb_scheme tiny = qb_test_tiny_scheme(row);
                check_twin(&r, &tiny, head, full);
            }
        free(full);
        qb_test_rig_destroy(&r);
    }
}

/* What --weight-axis, --act-axis and --act-scale make of the rows. The largest values are measured,
 * so that static scales fit. */
static void overridden_integers_equal_their_fake_twin(void **state)
{
    (void)state;
    static const struct {
        const char *scheme;
        qb_scheme_overrides overrides;
    } cases[] = {{"moderate", {.act_scale = "static"}},
                 {"coarse", {.act_scale = "static"}},
                 {"smoothquant", {.act_axis = "tensor", .act_scale = "static"}},
                 {"moderate", {.weight_axis = "out"}},
                 {"fine", {.act_axis = "channel"}},
                 {"fine", {.weight_axis = "tensor"}},
                 {"zeropoint4", {.weight_axis = "group:8"}},
                 {"zeropoint4", {.weight_axis = "tensor"}}};
    qb_config config = qb_test_tiny_config("llama");
    qb_test_rig r = rig_create(&config, 2);
    qb_calibration_destroy(r.calibration);
    QB_CHECK_OK(qb_calibrate(r.model, r.pool, NULL, 0, &r.calibration));
    float *full = engine_logits(&r, qb_scheme_find("full"), false, false);
    for (size_t i = 0; i < QB_COUNT(cases); i++) {
        qb_scheme s;
        QB_CHECK_OK(qb_scheme_override(qb_scheme_find(cases[i].scheme), &cases[i].overrides, &s));
        check_twin(&r, &s, false, full);
    }
    free(full);
    qb_test_rig_destroy(&r);
}

static void bits_do_not_depend_on_threads(void **state)
{
    (void)state;
    qb_config config = qb_test_tiny_config("llama");
    for (const qb_scheme *row = qb_schemes; row->name; row++) {
        const qb_scheme tiny = qb_test_tiny_scheme(row), *s = &tiny;
        float *first = NULL;
        for (size_t threads = 1; threads <= 4; threads *= 2) {
            qb_test_rig r = rig_create(&config, threads);
            float *logits = engine_logits(&r, s, false, true);
            if (!first)
                first = logits;
            else {
                assert_memory_equal(first, logits, r.n_logits * sizeof *logits);
                free(logits);
            }
            qb_test_rig_destroy(&r);
        }
        free(first);
    }
}

/* The last logits of a prefill of the first n tokens, and those of n - 1 and a decoded one. */
static void check_last_step(qb_engine *e, const int32_t *tokens, size_t n, float *prefilled,
                            float *decoded)
{
    QB_CHECK_OK(qb_engine_prefill(e, tokens, 1, n));
    QB_CHECK_OK(qb_engine_logits(e, n - 1, 1, prefilled));
    QB_CHECK_OK(qb_engine_prefill(e, tokens, 1, n - 1));
    QB_CHECK_OK(qb_engine_decode_step(e, tokens + n - 1));
    QB_CHECK_OK(qb_engine_logits(e, 0, 1, decoded));
}

/* For every flag: what decoding adds is what the prefill would have seen, bit for bit, once the
 * prompt holds the whole free prefix. Within the prefix the two are different questions: a decoded
 * token sees what came before it, and those do not see it. */
static void check_decode(const qb_config *config, const char *what)
{
    qb_test_rig r = rig_create(config, 2);
    qb_engine *e;
    qb_engine_options options = {
        .scheme = qb_scheme_find("full"), .cache_batch = 1, .cache_context = TOKENS};
    QB_CHECK_OK(qb_engine_create(r.cpu, &options, &e));
    float prefilled[61], decoded[61];
    for (size_t n = 2; n <= TOKENS; n++) {
        check_last_step(e, r.tokens, n, prefilled, decoded);
        bool same = !memcmp(prefilled, decoded, config->vocab * sizeof *decoded);
        if (same != (n > config->free_prefix))
            fail_msg("%s: %zu tokens decoded are %s prefilled", what, n, same ? "as" : "unlike");
    }
    qb_engine_destroy(e);
    qb_test_rig_destroy(&r);
}

static void decode_continues_prefill_for_every_flag(void **state)
{
    (void)state;
    qb_test_each_tiny_config(check_decode);
}

/* Prefill of 9 tokens and 8 decode steps give the logits of the prefill of 17. Per-tensor scales
 * span a call, so this holds for schemes with none. */
static void decode_continues_prefill(void **state)
{
    (void)state;
    static const char *const names[] = {"full", "fine", "zeropoint4"};
    qb_config config = qb_test_tiny_config("llama");
    for (size_t i = 0; i < QB_COUNT(names); i++) {
        qb_test_rig r = rig_create(&config, 2);
        size_t vocab = config.vocab;
        float *want = engine_logits(&r, qb_scheme_find(names[i]), false, false);
        qb_engine *e;
        qb_engine_options options = {
            .scheme = qb_scheme_find(names[i]), .cache_batch = BATCH, .cache_context = TOKENS};
        QB_CHECK_OK(qb_engine_create(r.cpu, &options, &e));
        int32_t start[BATCH * 9], next[BATCH];
        for (size_t b = 0; b < BATCH; b++)
            memcpy(start + b * 9, r.tokens + b * TOKENS, 9 * sizeof *start);
        QB_CHECK_OK(qb_engine_prefill(e, start, BATCH, 9));
        double worst = 0;
        for (size_t t = 9; t < TOKENS; t++) {
            float got[BATCH * 61];
            for (size_t b = 0; b < BATCH; b++) next[b] = r.tokens[b * TOKENS + t];
            QB_CHECK_OK(qb_engine_decode_step(e, next));
            QB_CHECK_OK(qb_engine_logits(e, 0, BATCH, got));
            for (size_t b = 0; b < BATCH; b++)
                worst = fmax(worst, qb_test_max_diff(got + b * vocab,
                                                     want + (b * TOKENS + t) * vocab, vocab, NULL));
        }
        print_message("%s: decode against prefill %.3g\n", names[i], worst);
        assert_true(worst < 2e-4);
        assert_int_equal(qb_engine_position(e), TOKENS);
        assert_int_not_equal(qb_engine_decode_step(e, next), QB_OK); /* the cache is full */
        qb_engine_destroy(e);
        free(want);
        qb_test_rig_destroy(&r);
    }
}

/* prefill_last gives the last rows of prefill, bit for bit, under every flag and scheme; decoding
 * goes on from either alike. */
static void check_last_rows(const qb_config *config, const char *what)
{
    qb_test_rig r = rig_create(config, 2);
    size_t vocab = config->vocab;
    for (const qb_scheme *row = qb_schemes; row->name; row++) {
        const qb_scheme tiny = qb_test_tiny_scheme(row), *s = &tiny;
        qb_engine *e;
        qb_engine_options options = {.scheme = s,
                                     .quantize_head = true,
                                     .calibration = r.calibration,
                                     .cache_batch = BATCH,
                                     .cache_context = TOKENS + 1};
        float all[BATCH * 61], last[BATCH * 61], next[2][BATCH * 61];
        QB_CHECK_OK(qb_engine_create(r.cpu, &options, &e));
        QB_CHECK_OK(qb_engine_prefill(e, r.tokens, BATCH, TOKENS));
        for (size_t b = 0; b < BATCH; b++)
            QB_CHECK_OK(qb_engine_logits(e, (b + 1) * TOKENS - 1, 1, all + b * vocab));
        QB_CHECK_OK(qb_engine_decode_step(e, r.tokens));
        QB_CHECK_OK(qb_engine_logits(e, 0, BATCH, next[0]));
        QB_CHECK_OK(qb_engine_prefill_last(e, r.tokens, BATCH, TOKENS));
        QB_CHECK_OK(qb_engine_logits(e, 0, BATCH, last));
        assert_int_equal(qb_engine_logits(e, BATCH, 1, next[1]), QB_ERR_SHAPE);
        QB_CHECK_OK(qb_engine_decode_step(e, r.tokens));
        QB_CHECK_OK(qb_engine_logits(e, 0, BATCH, next[1]));
        if (memcmp(last, all, sizeof all) || memcmp(next[1], next[0], sizeof next[0]))
            fail_msg("%s, %s: the last rows are not those of all", what, s->name);
        qb_engine_destroy(e);
    }
    qb_test_rig_destroy(&r);
}

static void last_rows_equal_those_of_all(void **state)
{
    (void)state;
    qb_test_each_tiny_config(check_last_rows);
}

static void wrong_calls_are_refused(void **state)
{
    (void)state;
    qb_config config = qb_test_tiny_config("gpt2");
    qb_test_rig r = rig_create(&config, 1);
    qb_engine *e;
    QB_CHECK_OK(
        qb_engine_create(r.cpu, &(qb_engine_options){.scheme = qb_scheme_find("full")}, &e));
    float logits[61];
    assert_int_equal(qb_engine_logits(e, 0, 1, logits), QB_ERR_SHAPE);
    assert_int_equal(qb_engine_prefill(e, r.tokens, BATCH + 1, TOKENS), QB_ERR_SHAPE);
    assert_int_equal(qb_engine_prefill(e, r.tokens, 0, TOKENS), QB_ERR_SHAPE);
    assert_int_equal(qb_engine_prefill(e, r.tokens, 1, 25),
                     QB_ERR_SHAPE); /* learned positions: 24 */
    assert_int_equal(qb_engine_decode_step(e, r.tokens), QB_ERR_SHAPE);
    r.tokens[1] = 61;
    assert_int_equal(qb_engine_prefill(e, r.tokens, 1, TOKENS), QB_ERR_SHAPE);
    r.tokens[1] = -1;
    assert_int_equal(qb_engine_prefill(e, r.tokens, 1, TOKENS), QB_ERR_SHAPE);
    qb_engine_destroy(e);
    qb_test_rig_destroy(&r);
    config = qb_test_tiny_config("llama");
    config.sliding_window = config.context = TOKENS;
    r = rig_create(&config, 1);
    QB_CHECK_OK(
        qb_engine_create(r.cpu, &(qb_engine_options){.scheme = qb_scheme_find("full")}, &e));
    QB_CHECK_OK(qb_engine_prefill(e, r.tokens, 1, TOKENS));
    assert_int_equal(qb_engine_prefill(e, r.tokens, 1, TOKENS + 1), QB_ERR_SHAPE);
    qb_engine_destroy(e);
    qb_test_rig_destroy(&r);
}

/* Ctrl-C is seen within a pass: one over many tokens takes minutes. */
static void a_pass_is_interrupted(void **state)
{
    (void)state;
    qb_config config = qb_test_tiny_config("gpt2");
    qb_test_rig r = rig_create(&config, 1);
    const qb_engine_options options = {.scheme = qb_scheme_find("coarse")};
    qb_engine *e, *late = NULL;
    QB_CHECK_OK(qb_engine_create(r.cpu, &options, &e));
    qb_interrupt_set(true);
    assert_int_equal(qb_engine_prefill(e, r.tokens, 1, TOKENS), QB_ERR_INTERRUPTED);
    assert_int_equal(qb_engine_create(r.cpu, &options, &late), QB_ERR_INTERRUPTED);
    qb_interrupt_set(false);
    assert_null(late);
    QB_CHECK_OK(qb_engine_prefill(e, r.tokens, 1, TOKENS));
    qb_engine_destroy(e);
    qb_test_rig_destroy(&r);
}

static void nothing_leaks(void **state)
{
    (void)state;
    size_t before = qb_memory_live_blocks();
    qb_config config = qb_test_tiny_config("llama");
    qb_test_rig r = rig_create(&config, 2);
    free(engine_logits(&r, qb_scheme_find("coarse"), true, true));
    free(engine_logits(&r, qb_scheme_find("fine-channel"), false, false));
    qb_test_rig_destroy(&r);
    assert_int_equal(qb_memory_live_blocks(), before);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(full_precision_equals_plain_forward),
        cmocka_unit_test(integers_equal_their_fake_twin),
        cmocka_unit_test(overridden_integers_equal_their_fake_twin),
        cmocka_unit_test(bits_do_not_depend_on_threads),
        cmocka_unit_test(decode_continues_prefill),
        cmocka_unit_test(decode_continues_prefill_for_every_flag),
        cmocka_unit_test(last_rows_equal_those_of_all),
        cmocka_unit_test(wrong_calls_are_refused),
        cmocka_unit_test(a_pass_is_interrupted),
        cmocka_unit_test(nothing_leaks),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
