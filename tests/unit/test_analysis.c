/* tests/unit/test_analysis.c - an analysis of models whose figures are known, of every flag of the
 * architecture table, and without memory. Against an independent computation:
 * tests/cli/analyze_tests.py. */
#include "support.h"
#include "tiny_model.h"

#include "core/memory.h"
#include "infer/analysis.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { BATCH = 3, TOKENS = 21, ROWS = BATCH * TOKENS };

static qb_status analyse(const qb_model *model, bool maps, json_t *root)
{
    const qb_analysis_options options = {
        .max_rows = ROWS, .context = TOKENS, .n_texts = 1, .maps = maps};
    int32_t tokens[ROWS];
    qb_backbone *backbone = NULL;
    qb_engine *e = NULL;
    qb_analysis *a = NULL;
    qb_status status;
    qb_test_tokens(&model->config, tokens, ROWS, 4);
    QB_TRY_GOTO(status, qb_analysis_create(model, &options, &a), done);
    QB_TRY_GOTO(status,
                qb_backbone_create(model, &(qb_backbone_options){.max_tokens = ROWS}, &backbone),
                done);
    QB_TRY_GOTO(
        status,
        qb_engine_create(backbone, &(qb_engine_options){.scheme = qb_scheme_find("full")}, &e),
        done);
    QB_TRY_GOTO(status, qb_engine_observe(e, qb_analysis_taps(a)), done);
    QB_TRY_GOTO(status, qb_engine_prefill(e, tokens, BATCH, TOKENS), done);
    status = qb_analysis_to_json(a, root);
done:
    qb_engine_destroy(e);
    qb_backbone_destroy(backbone);
    qb_analysis_destroy(a);
    return status;
}

static double real_of(const json_t *object, const char *key)
{
    const json_t *value = json_object_get(object, key);
    return json_is_number(value) ? json_number_value(value) : NAN;
}

/* ---- every architecture ---- */

static bool is_of_attention(const char *key)
{
    static const char *const starts[] = {"attn_",
                                         "norm_key",
                                         "norm_value",
                                         "value_",
                                         "sink_",
                                         "dormant",
                                         "kurt_sample_attn",
                                         "inf_norm_attn",
                                         "kurt_sample_norm1",
                                         "inf_norm_norm1"};
    for (size_t i = 0; i < QB_COUNT(starts); i++)
        if (!strncmp(key, starts[i], strlen(starts[i]))) return true;
    return false;
}

static void check_config(const qb_config *config, const char *what)
{
    qb_model *model = qb_test_tiny_model(config, 8);
    json_t *root = json_object(), *layer, *value;
    const char *key;
    size_t i;
    QB_CHECK_OK(analyse(model, true, root));
    assert_int_equal(json_array_size(json_object_get(root, "layers")), config->n_layers);
    json_array_foreach(json_object_get(root, "layers"), i, layer) json_object_foreach(
        layer, key, value) if (json_is_number(value) !=
                               (!is_of_attention(key) || qb_config_has_attention(config, i)))
        fail_msg("%s: layer %zu: %s", what, i + 1, key);
    assert_int_equal(json_array_size(json_object_get(root, "heads")),
                     qb_config_n_attention(config) * config->n_heads);
    const json_t *maps = json_object_get(json_object_get(root, "maps"), "layers");
    assert_true(json_array_size(maps) >= 2);
    /* Rows of a map are means over queries; with one token a cell a query's weights sum to at most
     * one, and to one of plain softmax. */
    const json_t *map = json_object_get(json_array_get(maps, 0), "attention");
    json_array_foreach(map, i, layer)
    {
        double sum = 0;
        for (size_t k = 0; k < json_array_size(layer); k++)
            sum += json_number_value(json_array_get(layer, k));
        if (config->softmax == QB_SOFTMAX && fabs(sum - 1) > 1e-3)
            fail_msg("%s: weights of query %zu sum to %g", what, i + 1, sum);
        assert_true(sum < 1.001 || config->softmax == QB_SOFTMAX_RELU ||
                    config->softmax == QB_SOFTMAX_CLIPPED);
    }
    json_decref(root);
    qb_model_close(model);
}

static void every_architecture_has_its_figures(void **state)
{
    (void)state;
    qb_test_each_tiny_config(check_config);
}

/* ---- massive activations ---- */

enum { CHANNEL = 3, VALUE = 5000 };

/* All tokens hold VALUE in one channel of the embedding, and no block adds anything. */
static qb_model *massive_model(const qb_config *config)
{
    qb_model *model = qb_test_tiny_model(config, 8);
    for (size_t layer = 0; layer < config->n_layers; layer++)
        for (int r = 0; r < 2; r++) {
            const qb_tensor *t = qb_model_tensor(model, r ? QB_ROLE_DOWN : QB_ROLE_O, layer);
            memset((float *)(uintptr_t)t->data, 0, t->bytes);
        }
    const qb_tensor *table = qb_model_tensor(model, QB_ROLE_TOK_EMBD, 0);
    float *x = (float *)(uintptr_t)table->data;
    for (size_t i = 0; i < table->rows * table->cols; i++)
        x[i] = i % table->cols == CHANNEL ? VALUE : i % 2 ? 1 : -1;
    return model;
}

static void massive_activations_are_found(void **state)
{
    (void)state;
    const qb_config config = qb_test_tiny_config("llama"); /* rotary positions, no biases */
    qb_model *model = massive_model(&config);
    json_t *root = json_object();
    QB_CHECK_OK(analyse(model, false, root));
    double width = (double)config.d_model;
    for (size_t i = 0; i < config.n_layers; i++) {
        const json_t *layer = json_array_get(json_object_get(root, "layers"), i),
                     *massive = json_array_get(json_object_get(root, "massive"), i);
        assert_true(real_of(layer, "massive_count") == TOKENS);
        assert_true(real_of(layer, "act_top1") == VALUE && real_of(layer, "act_top3") == VALUE);
        assert_true(real_of(layer, "act_median") == 1);
        assert_true(fabs(real_of(layer, "residual_peak") - 1) < 1e-6);
        assert_true(fabs(real_of(layer, "kurt_token_rest") - (width - 2)) < 0.1);
        assert_true(fabs(real_of(layer, "kurt_neuron_rms") - width) < 0.1);
        assert_true(real_of(massive, "layer") == (double)i + 1);
        assert_true(real_of(massive, "channel") == CHANNEL && real_of(massive, "mean") == VALUE);
        assert_true(real_of(massive, "std") == 0 && real_of(massive, "count") == ROWS);
        assert_true(real_of(massive, "window_share") == 1);
        assert_true(fabs(real_of(massive, "first_share") - 1.0 / TOKENS) < 1e-12);
    }
    assert_true(real_of(root, "massive_places") == (double)config.n_layers);
    json_decref(root);
    qb_model_close(model);
}

/* ---- memory ---- */

static void failed_allocations_leave_nothing(void **state)
{
    (void)state;
    const qb_config config = qb_test_tiny_config("gpt2");
    qb_model *model = qb_test_tiny_model(&config, 8);
    size_t before = qb_memory_live_blocks(), n_failed = 0;
    qb_status status = QB_ERR_MEMORY;
    for (size_t n = 1; status != QB_OK; n = n < 150 ? n + 1 : n + n / 4) {
        json_t *root = json_object();
        qb_memory_fail_at(n);
        status = analyse(model, true, root);
        qb_memory_fail_at(0);
        json_decref(root);
        if (status != QB_OK) assert_int_equal(status, QB_ERR_MEMORY);
        n_failed += status != QB_OK;
        assert_int_equal(qb_memory_live_blocks(), before);
    }
    assert_true(n_failed > 150);
    qb_model_close(model);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_architecture_has_its_figures),
        cmocka_unit_test(massive_activations_are_found),
        cmocka_unit_test(failed_allocations_leave_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
