/* tests/unit/test_api.c - the library's interface on a tiny model without a tokenizer: what its
 * calls give, what they refuse, and several threads at once. */
#include "support.h"
#include "tiny_model.h"

#include "model/model_bin.h"
#include "qbench/qbench.h"

#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { N_TOKENS = 200 };
static const char *const quick[] = {"--no-speed", "--device",  "cpu", "--threads",
                                    "1",          "--context", "16",  NULL};

typedef struct rig {
    char path[64];
    qb_config config;
    qbench_model *model;
    int32_t tokens[N_TOKENS];
} rig;

static void rig_open(rig *r)
{
    snprintf(r->path, sizeof r->path, "/tmp/qbench-test-api-%d.bin", (int)getpid());
    r->config = qb_test_tiny_config("gpt2");
    qb_model *model = qb_test_tiny_model(&r->config, 5);
    QB_CHECK_OK(qb_model_bin_write(model, r->path, NULL));
    qb_model_close(model);
    qb_test_tokens(&r->config, r->tokens, N_TOKENS, 7);
    r->model = NULL;
    assert_int_equal(qbench_model_open(r->path, &r->model), QBENCH_OK);
}

static void rig_close(rig *r)
{
    qbench_model_close(r->model);
    unlink(r->path);
}

static void knows_its_model(void **state)
{
    (void)state;
    rig r;
    rig_open(&r);
    assert_int_equal(qbench_api_version(), QBENCH_API_VERSION);
    assert_int_equal(qbench_model_vocab(r.model), r.config.vocab);
    assert_int_equal(qbench_model_context(r.model), r.config.context);
    assert_string_equal(qbench_scheme_name(0), "full");
    assert_null(qbench_scheme_name(1000));
    qbench_model_close(NULL);
    rig_close(&r);
}

static void evaluates_tokens(void **state)
{
    (void)state;
    rig r;
    char *json = NULL;
    rig_open(&r);
    assert_int_equal(
        qbench_evaluate_tokens(r.model, "full,coarse", r.tokens, N_TOKENS, quick, &json),
        QBENCH_OK);
    assert_non_null(strstr(json, "\"schema\": \"qbench.results/1\""));
    assert_non_null(strstr(json, "\"name\": \"coarse\""));
    assert_non_null(strstr(json, "\"tokenizer_sha256\": null"));
    assert_null(strstr(json, "\"ppl\": null"));
    qbench_free(json);
    rig_close(&r);
}

static void gives_the_models_logits(void **state)
{
    (void)state;
    enum { BATCH = 2, T = 6 };
    static const char *const options[] = {"--device", "cpu", NULL};
    rig r;
    rig_open(&r);
    size_t n = BATCH * T * r.config.vocab;
    float *got = malloc(n * sizeof *got);
    double *want = malloc(n * sizeof *want), worst = 0;
    qb_model *model = qb_test_tiny_model(&r.config, 5);
    qb_test_forward(model, r.tokens, BATCH, T, want);
    assert_int_equal(qbench_logits(r.model, "full-f32", r.tokens, BATCH, T, options, got),
                     QBENCH_OK);
    for (size_t i = 0; i < n; i++) worst = fmax(worst, fabs((double)got[i] - want[i]));
    assert_true(worst < 1e-3);
    qb_model_close(model);
    free(got);
    free(want);
    rig_close(&r);
}

static void refuses(qbench_status got, qbench_status want, const char *word)
{
    assert_int_equal(got, want);
    if (!strstr(qbench_error(), word)) fail_msg("%s: no '%s' in it", qbench_error(), word);
}

static void refuses_what_is_wrong_and_leaves_the_result(void **state)
{
    (void)state;
    static const char *const wrong[] = {"--no-such", NULL};
    char untouched, *json = &untouched;
    float logits = 3;
    rig r;
    rig_open(&r);
    int32_t *tokens = r.tokens, bad[] = {1, -1};
    refuses(qbench_evaluate_tokens(r.model, "best", tokens, N_TOKENS, quick, &json),
            QBENCH_ERR_USAGE, "best");
    refuses(qbench_evaluate_tokens(r.model, "full", tokens, N_TOKENS, wrong, &json),
            QBENCH_ERR_USAGE, "no-such");
    refuses(qbench_evaluate_tokens(r.model, "full", bad, 2, quick, &json), QBENCH_ERR_INPUT,
            "token 1");
    refuses(qbench_evaluate_tokens(r.model, "full", tokens, 1, quick, &json), QBENCH_ERR_INPUT,
            "tokens");
    refuses(qbench_evaluate_text(r.model, "full", "words", 5, quick, &json), QBENCH_ERR_INPUT,
            "tokenizer");
    refuses(qbench_logits(r.model, NULL, tokens, 0, 1, NULL, &logits), QBENCH_ERR_INPUT, "0 x 1");
    refuses(qbench_model_open("/no/such/file", &r.model), QBENCH_ERR_INPUT, "/no/such/file");
    qbench_interrupt(1);
    refuses(qbench_evaluate_tokens(r.model, "full", tokens, N_TOKENS, quick, &json),
            QBENCH_ERR_INTERRUPTED, "interrupted");
    qbench_interrupt(0);
    assert_ptr_equal(json, &untouched);
    assert_true(logits == 3);
    rig_close(&r);
}

static void *evaluate_once(void *what)
{
    rig *r = what;
    char *json = NULL;
    qbench_status status =
        qbench_evaluate_tokens(r->model, "fine", r->tokens, N_TOKENS, quick, &json);
    char *quality = status ? NULL : strstr(json, "\"quality\""), *end = NULL;
    if (quality) end = strchr(quality, '}');
    char *copy = end ? strndup(quality, (size_t)(end - quality)) : NULL;
    qbench_free(json);
    return copy;
}

static void threads_get_the_same(void **state)
{
    (void)state;
    pthread_t threads[4];
    void *said[4];
    rig r;
    rig_open(&r);
    for (size_t i = 0; i < 4; i++) pthread_create(&threads[i], NULL, evaluate_once, &r);
    for (size_t i = 0; i < 4; i++) pthread_join(threads[i], &said[i]);
    for (size_t i = 0; i < 4; i++) {
        assert_non_null(said[i]);
        assert_string_equal(said[i], said[0]);
    }
    for (size_t i = 0; i < 4; i++) free(said[i]);
    rig_close(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(knows_its_model),
        cmocka_unit_test(evaluates_tokens),
        cmocka_unit_test(gives_the_models_logits),
        cmocka_unit_test(refuses_what_is_wrong_and_leaves_the_result),
        cmocka_unit_test(threads_get_the_same),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
