/* tests/unit/test_interventions.c - interventions against models that are so by their weights or
 * their tokens: a part that adds nothing has zeros in its last product, and a key that no query
 * sees may as well not be there. */
#include "support.h"
#include "tiny_model.h"

#include "core/memory.h"
#include "infer/interventions.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { BATCH = 2, TOKENS = 19, ROWS = BATCH * TOKENS };

static float *run(const qb_model *model, const char *what, const qb_intervention_options *options,
                  const int32_t *tokens, size_t batch, size_t n_tokens, size_t *n_edits)
{
    qb_backbone *backbone;
    qb_engine *e;
    qb_intervention *i = NULL;
    float *logits = malloc(batch * n_tokens * model->config.vocab * sizeof *logits);
    QB_CHECK_OK(qb_backbone_create(model, &(qb_backbone_options){.max_tokens = ROWS}, &backbone));
    QB_CHECK_OK(
        qb_engine_create(backbone, &(qb_engine_options){.scheme = qb_scheme_find("full")}, &e));
    if (what) QB_CHECK_OK(qb_intervention_create(model, what, options, &i));
    QB_CHECK_OK(qb_engine_observe(e, i ? qb_intervention_taps(i) : NULL));
    QB_CHECK_OK(qb_engine_prefill(e, tokens, batch, n_tokens));
    QB_CHECK_OK(qb_engine_logits(e, 0, batch * n_tokens, logits));
    if (n_edits) *n_edits = qb_intervention_n_edits(i);
    qb_engine_destroy(e);
    qb_intervention_destroy(i);
    qb_backbone_destroy(backbone);
    return logits;
}

/* Columns [from, from + n) of a matrix, or of a vector all. */
static void erase(const qb_model *model, qb_role role, size_t layer, size_t from, size_t n)
{
    const qb_tensor *t = qb_model_tensor(model, role, layer);
    float *data = (float *)(uintptr_t)t->data;
    if (!data) return;
    assert_true(t->dtype == QB_F32);
    for (size_t row = 0; row < t->rows; row++)
        memset(data + row * t->cols + from, 0, n * sizeof *data);
}

static const qb_intervention_options plain = {.max_rows = ROWS};

static void check_parts(const qb_config *config, const char *what)
{
    int32_t tokens[ROWS];
    size_t dim = config->head_dim, width = config->n_heads * dim, last = config->n_layers - 1;
    qb_test_tokens(config, tokens, ROWS, 4);
    for (int part = 0; part < 3; part++) {
        qb_model *model = qb_test_tiny_model(config, 8), *without = qb_test_tiny_model(config, 8);
        char name[32];
        snprintf(name, sizeof name,
                 part == 0   ? "mlp:%zu"
                 : part == 1 ? "attn:%zu"
                             : "head:%zu.2",
                 last + 1);
        bool is_mlp = part == 0;
        if (!is_mlp && !qb_config_has_attention(config, last)) {
            qb_intervention *i;
            assert_int_equal(qb_intervention_create(model, name, &plain, &i), QB_ERR_USAGE);
        } else {
            qb_role role = is_mlp ? QB_ROLE_DOWN : QB_ROLE_O;
            erase(without, role, last, part == 2 ? dim : 0,
                  part == 2 ? dim
                  : is_mlp  ? config->d_ff
                            : width);
            if (part < 2) erase(without, (qb_role)(role + 1), last, 0, config->d_model);
            size_t n_edits, n = ROWS * config->vocab;
            float *found = run(model, name, &plain, tokens, BATCH, TOKENS, &n_edits),
                  *expected = run(without, NULL, NULL, tokens, BATCH, TOKENS, NULL),
                  *untouched = run(model, NULL, NULL, tokens, BATCH, TOKENS, NULL);
            for (size_t k = 0; k < n; k++)
                if (found[k] != expected[k]) fail_msg("%s, %s: another result", what, name);
            assert_true(memcmp(found, untouched, n * sizeof *found) != 0);
            assert_int_equal(n_edits, ROWS * (part == 2 ? dim : config->d_model));
            free(found);
            free(expected);
            free(untouched);
        }
        qb_model_close(model);
        qb_model_close(without);
    }
}

static void removed_parts_equal_erased_weights(void **state)
{
    (void)state;
    qb_test_each_tiny_config(check_parts);
}

/* The only token's attention is its own value. */
static void a_first_value_of_zero_is_no_attention(void **state)
{
    (void)state;
    const qb_config config = qb_test_tiny_config("llama");
    qb_model *model = qb_test_tiny_model(&config, 8), *without = qb_test_tiny_model(&config, 8);
    const int32_t tokens[BATCH] = {3, 11};
    for (size_t l = 0; l < config.n_layers; l++)
        erase(without, QB_ROLE_O, l, 0, config.n_heads * config.head_dim);
    float *found = run(model, "zero-first-value", &plain, tokens, BATCH, 1, NULL),
          *expected = run(without, NULL, NULL, tokens, BATCH, 1, NULL);
    for (size_t i = 0; i < BATCH * config.vocab; i++) assert_true(found[i] == expected[i]);
    free(found);
    free(expected);
    qb_model_close(model);
    qb_model_close(without);
}

/* Scores of all heads so many times as far apart: weights next to 0 and 1. */
static void sharpen(const qb_model *model, float factor)
{
    for (size_t l = 0; l < model->config.n_layers; l++) {
        const qb_tensor *t = qb_model_tensor(model, QB_ROLE_Q, l);
        float *data = (float *)(uintptr_t)t->data;
        for (size_t i = 0; i < t->rows * t->cols; i++) data[i] *= factor;
    }
}

/* Rotary positions are relative: without the first key, the window may as well begin behind it. */
static void a_dropped_first_key_is_a_shorter_window(void **state)
{
    (void)state;
    static const qb_softmax_kind kinds[] = {QB_SOFTMAX, QB_SOFTMAX1, QB_SOFTMAX_SINK, QB_SOFTMAX};
    for (size_t k = 0; k < QB_COUNT(kinds); k++) {
        qb_config config = qb_test_tiny_config("llama");
        config.softmax = kinds[k];
        qb_model *model = qb_test_tiny_model(&config, 8);
        if (k == 3) sharpen(model, 12);
        int32_t tokens[ROWS], later[ROWS];
        qb_test_tokens(&config, tokens, ROWS, 4);
        for (size_t b = 0; b < BATCH; b++)
            memcpy(later + b * (TOKENS - 1), tokens + b * TOKENS + 1,
                   (TOKENS - 1) * sizeof *tokens);
        float *found = run(model, "drop-first-key", &plain, tokens, BATCH, TOKENS, NULL),
              *expected = run(model, NULL, NULL, later, BATCH, TOKENS - 1, NULL),
              *untouched = run(model, NULL, NULL, tokens, BATCH, TOKENS, NULL);
        double worst = 0, moved = 0;
        for (size_t b = 0; b < BATCH; b++)
            for (size_t i = 0; i < (TOKENS - 1) * config.vocab; i++) {
                size_t at = (b * TOKENS + 1) * config.vocab + i;
                worst =
                    fmax(worst, fabs(found[at] - expected[b * (TOKENS - 1) * config.vocab + i]));
                moved = fmax(moved, fabs(found[at] - untouched[at]));
            }
        assert_true(worst < 2e-4 && moved > 100 * worst);
        free(found);
        free(expected);
        free(untouched);
        qb_model_close(model);
    }
}

static void massive_values_are_set_where_they_begin(void **state)
{
    (void)state;
    const qb_config config = qb_test_tiny_config("gpt2");
    qb_model *model = qb_test_tiny_model(&config, 8);
    int32_t tokens[ROWS];
    size_t n_edits, n = ROWS * config.vocab;
    qb_massive_place place = {.layer = 0, .channel = 3, .mean = 5, .least = INFINITY};
    const qb_intervention_options options = {.places = &place, .n_places = 1, .max_rows = ROWS};
    qb_test_tokens(&config, tokens, ROWS, 4);
    float *untouched = run(model, NULL, NULL, tokens, BATCH, TOKENS, NULL),
          *none = run(model, "zero-massive", &options, tokens, BATCH, TOKENS, &n_edits);
    assert_true(n_edits == 0 && !memcmp(untouched, none, n * sizeof *none));
    place.least = 0; /* all */
    float *zero = run(model, "zero-massive", &options, tokens, BATCH, TOKENS, &n_edits),
          *mean = run(model, "mean-massive", &options, tokens, BATCH, TOKENS, NULL);
    assert_int_equal(n_edits, ROWS);
    assert_true(memcmp(zero, untouched, n * sizeof *zero) != 0);
    assert_true(memcmp(zero, mean, n * sizeof *zero) != 0);
    place.mean = 0;
    float *zero_mean = run(model, "mean-massive", &options, tokens, BATCH, TOKENS, NULL);
    assert_memory_equal(zero, zero_mean, n * sizeof *zero);
    float *all[] = {untouched, none, zero, mean, zero_mean};
    for (size_t i = 0; i < QB_COUNT(all); i++) free(all[i]);
    qb_model_close(model);
}

static void what_cannot_be_is_refused(void **state)
{
    (void)state;
    qb_config config = qb_test_tiny_config("gpt2");
    config.softmax = QB_SOFTMAX_RELU;
    qb_model *model = qb_test_tiny_model(&config, 8);
    static const char *const wrong[] = {"head:1", "head:1.0", "head:0.1",  "head:1.9999",
                                        "mlp:",   "mlp:1.1",  "mlp:-1",    "attn:99",
                                        "nose:1", "",         "head:1.1x", "mlp: 1"};
    for (size_t i = 0; i < QB_COUNT(wrong); i++)
        if (qb_intervention_check(model, wrong[i]) != QB_ERR_USAGE)
            fail_msg("'%s' was taken", wrong[i]);
    QB_CHECK_OK(qb_intervention_check(model, "head:1.1"));
    assert_int_equal(qb_intervention_check(model, "drop-first-key"), QB_ERR_UNSUPPORTED);
    qb_model_close(model);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(removed_parts_equal_erased_weights),
        cmocka_unit_test(a_first_value_of_zero_is_no_attention),
        cmocka_unit_test(a_dropped_first_key_is_a_shorter_window),
        cmocka_unit_test(massive_values_are_set_where_they_begin),
        cmocka_unit_test(what_cannot_be_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
