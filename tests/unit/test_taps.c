/* tests/unit/test_taps.c - observers of an engine: looking changes no bit, the views add up to the
 * forward pass, and what an observer writes is what the pass goes on with. */
#include "support.h"
#include "tiny_model.h"

#include "core/memory.h"
#include "infer/taps.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { BATCH = 2, TOKENS = 13, ROWS = BATCH * TOKENS };

typedef struct seen {
    size_t n[QB_TAP_COUNT];
    float *stream; /* (ROWS, C) as the taps add up to it */
    double worst;  /* difference from what STREAM shows */
    const qb_config *config;
    bool silence; /* erase what is added */
} seen;

static qb_status see(void *context, const qb_tap_view *v)
{
    seen *s = context;
    size_t width = s->config->d_model;
    s->n[v->tap]++;
    assert_true(v->batch == BATCH && v->n_tokens == TOKENS && v->stride >= v->width);
    if (v->tap == QB_TAP_EMBEDDING) memcpy(s->stream, v->x, ROWS * width * sizeof *v->x);
    if (v->tap == QB_TAP_ADDED && s->silence) memset(v->x, 0, ROWS * width * sizeof *v->x);
    for (size_t i = 0; i < ROWS * width; i++) {
        if (v->tap == QB_TAP_ADDED) s->stream[i] += v->x[i];
        if (v->tap == QB_TAP_STREAM) s->worst = fmax(s->worst, fabs(s->stream[i] - v->x[i]));
    }
    return QB_OK;
}

static void run(qb_backbone *backbone, const char *scheme, const qb_calibration *calibration,
                const qb_taps *taps, const int32_t *tokens, float *logits)
{
    qb_engine *e;
    const qb_engine_options options = {.scheme = qb_scheme_find(scheme),
                                       .calibration = calibration};
    QB_CHECK_OK(qb_engine_create(backbone, &options, &e));
    QB_CHECK_OK(qb_engine_observe(e, taps));
    QB_CHECK_OK(qb_engine_prefill(e, tokens, BATCH, TOKENS));
    QB_CHECK_OK(qb_engine_logits(e, 0, ROWS, logits));
    qb_engine_destroy(e);
}

static void check_config(const qb_config *config, const char *what)
{
    qb_model *model = qb_test_tiny_model(config, 8);
    qb_calibration *calibration = qb_test_constant_calibration(config);
    qb_backbone *backbone;
    QB_CHECK_OK(qb_backbone_create(model, &(qb_backbone_options){.max_tokens = ROWS}, &backbone));
    int32_t tokens[ROWS];
    qb_test_tokens(config, tokens, ROWS, 4);
    size_t n = ROWS * config->vocab, width = config->d_model;
    float *plain = malloc(n * sizeof *plain), *watched = malloc(n * sizeof *watched);
    seen s = {.config = config, .stream = malloc(ROWS * width * sizeof(float))};
    const qb_taps taps = {.sees = QB_TAP_BIT(QB_TAP_COUNT) - 1, .see = see, .context = &s};
    static const char *const schemes[] = {"full", "coarse"};
    for (size_t i = 0; i < QB_COUNT(schemes); i++) {
        memset(s.n, 0, sizeof s.n);
        run(backbone, schemes[i], calibration, NULL, tokens, plain);
        run(backbone, schemes[i], calibration, &taps, tokens, watched);
        if (memcmp(plain, watched, n * sizeof *plain))
            fail_msg("%s, %s: looking changed the logits", what, schemes[i]);
        size_t n_attention = qb_config_n_attention(config), n_layers = config->n_layers;
        assert_true(s.worst == 0);
        assert_int_equal(s.n[QB_TAP_EMBEDDING], 1);
        assert_int_equal(s.n[QB_TAP_STREAM], n_layers);
        assert_int_equal(s.n[QB_TAP_QKV], n_attention);
        assert_int_equal(s.n[QB_TAP_ATTENTION], n_attention);
        assert_int_equal(s.n[QB_TAP_ADDED], n_layers + n_attention);
        assert_int_equal(s.n[QB_TAP_NORMED], n_layers + n_attention + 1);
        assert_int_equal(s.n[QB_TAP_INPUT], s.n[QB_TAP_OUTPUT]);
    }
    /* With nothing added the logits are those of the embedding through the final norm: the same
     * for equal tokens wherever they stand, unless positions are learned. */
    s.silence = true;
    tokens[3] = tokens[9];
    run(backbone, "full", calibration, &taps, tokens, watched);
    assert_true(memcmp(plain, watched, n * sizeof *plain) != 0);
    if (config->pos != QB_POS_LEARNED)
        assert_memory_equal(watched + 3 * config->vocab, watched + 9 * config->vocab,
                            config->vocab * sizeof *watched);
    free(s.stream);
    free(plain);
    free(watched);
    qb_backbone_destroy(backbone);
    qb_calibration_destroy(calibration);
    qb_model_close(model);
}

static void looking_changes_nothing_and_writing_does(void **state)
{
    (void)state;
    qb_test_each_tiny_config(check_config);
}

static qb_status refuse(void *context, const qb_tap_view *view)
{
    ++*(size_t *)context;
    return view->layer == 1 ? QB_FAIL(QB_ERR_SHAPE, "enough") : QB_OK;
}

static void an_error_of_the_observer_ends_the_looking(void **state)
{
    (void)state;
    const qb_config config = qb_test_tiny_config("llama");
    qb_model *model = qb_test_tiny_model(&config, 8);
    qb_backbone *backbone;
    qb_engine *e;
    int32_t tokens[ROWS] = {0};
    size_t n = 0;
    const qb_taps taps = {
        .sees = QB_TAP_BIT(QB_TAP_QKV) | QB_TAP_BIT(QB_TAP_STREAM), .see = refuse, .context = &n};
    QB_CHECK_OK(qb_backbone_create(model, &(qb_backbone_options){.max_tokens = ROWS}, &backbone));
    QB_CHECK_OK(
        qb_engine_create(backbone, &(qb_engine_options){.scheme = qb_scheme_find("full")}, &e));
    QB_CHECK_OK(qb_engine_observe(e, &taps));
    assert_int_equal(qb_engine_prefill(e, tokens, BATCH, TOKENS), QB_ERR_SHAPE);
    assert_int_equal(n, 3); /* block 0: two, block 1: its first */
    QB_CHECK_OK(qb_engine_observe(e, NULL));
    QB_CHECK_OK(qb_engine_prefill(e, tokens, BATCH, TOKENS));
    qb_engine_destroy(e);
    qb_backbone_destroy(backbone);
    qb_model_close(model);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(looking_changes_nothing_and_writing_does),
        cmocka_unit_test(an_error_of_the_observer_ends_the_looking),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
