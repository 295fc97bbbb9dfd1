/* tests/unit/test_train_config.c - the table of training keys, presets, learning-rate schedules and
 * the nearest word. */
#include "support.h"

#include "core/json.h"
#include "core/memory.h"
#include "core/nearest.h"
#include "train/presets.h"

#include <math.h>
#include <string.h>

static qb_train_config preset(const char *name)
{
    qb_train_config config;
    qb_train_config_init(&config);
    QB_CHECK_OK(qb_preset_apply(name, &config));
    return config;
}

static qb_train_config resolved(const char *name)
{
    qb_train_config config = preset(name);
    QB_CHECK_OK(qb_train_config_resolve(&config, config.task == QB_TASK_BB ? 67 : 8192));
    return config;
}

static void check_message(qb_status status, qb_status want, const char *part)
{
    assert_int_equal(status, want);
    if (!strstr(qb_error_message(), part))
        fail_msg("message '%s' does not say '%s'", qb_error_message(), part);
}

/* ---- the table ---- */

static void keys_are_unique_described_and_fit_their_defaults(void **state)
{
    (void)state;
    for (size_t i = 0; i < QB_TRAIN_N_KEYS; i++) {
        const qb_train_key *key = &qb_train_keys[i];
        char json_name[32];
        qb_train_key_json_name(key, json_name);
        assert_null(strchr(key->name, '_'));
        assert_null(strchr(json_name, '-'));
        assert_ptr_equal(qb_train_key_find(key->name), key);
        assert_ptr_equal(qb_train_key_find(json_name), key);
        assert_true(strlen(key->help) > 4 && key->help[strlen(key->help) - 1] != '.');
        assert_int_equal(key->kind == QB_KEY_WORD, key->words != NULL);
        qb_train_config config;
        qb_train_config_init(&config);
        if (key->default_text)
            QB_CHECK_OK(qb_train_config_set(&config, key->name, key->default_text));
    }
    assert_null(qb_train_keys[QB_TRAIN_N_KEYS].name);
}

static void values_out_of_range_are_refused(void **state)
{
    (void)state;
    static const char *const bad[][2] = {
        {"batch", "0"},
        {"batch", "-1"},
        {"batch", "1.5"},
        {"batch", "9x"},
        {"batch", ""},
        {"lr", "nan"},
        {"lr", "-1"},
        {"lr", "1e4"},
        {"lr", "fast"},
        {"optimizer", "ad"},
        {"optimizer", ""},
        {"recompute", "yes"},
        {"seed", "99999999999999999999"},
    };
    qb_train_config config, before;
    qb_train_config_init(&config);
    before = config;
    for (size_t i = 0; i < QB_COUNT(bad); i++)
        check_message(qb_train_config_set(&config, bad[i][0], bad[i][1]), QB_ERR_USAGE, bad[i][0]);
    assert_memory_equal(&config, &before, sizeof config);
    check_message(qb_train_config_set(&config, "wieght_decay", "0"), QB_ERR_USAGE, "weight-decay");
    check_message(qb_train_config_set(&config, "bacth", "1"), QB_ERR_USAGE, "did you mean 'batch'");
    check_message(qb_train_config_set(&config, "xyzzy", "1"), QB_ERR_USAGE, "qbench help train");
}

/* ---- JSON ---- */

static qb_status merge(const char *text, qb_train_config *config)
{
    json_t *object;
    QB_CHECK_OK(qb_json_parse(text, strlen(text), 1 << 16, "test", &object));
    qb_status status = qb_train_config_merge(config, object);
    json_decref(object);
    return status;
}

static void json_overrides_its_preset_wherever_that_stands(void **state)
{
    (void)state;
    qb_train_config config;
    qb_train_config_init(&config);
    QB_CHECK_OK(merge("{\"lr\": 0.25, \"n-layers\": 3, \"clip\": null, \"recompute\": true,"
                      " \"optimizer\": \"orthoadam\", \"preset\": \"gpt2-1m\"}",
                      &config));
    QB_CHECK_OK(qb_train_config_resolve(&config, 500));
    assert_true(config.schedule.peak == 0.25 && config.recompute);
    assert_int_equal(config.model.n_layers, 3);
    assert_int_equal(config.model.d_model, 128);
    assert_int_equal(config.model.vocab, 512);
    assert_string_equal(qb_optimizers[config.optimizer].name, "orthoadam");
    assert_true(config.clip == 1);
}

static void json_of_the_wrong_kind_is_refused(void **state)
{
    (void)state;
    static const char *const bad[] = {
        "[]",
        "{\"preset\": 1}",
        "{\"preset\": \"gpt2-1n\"}",
        "{\"batch\": \"8\"}",
        "{\"batch\": 8.0}",
        "{\"batch\": true}",
        "{\"batch\": -8}",
        "{\"batch\": [8]}",
        "{\"lr\": \"1e-3\"}",
        "{\"recompute\": 1}",
        "{\"recompute\": \"on\"}",
        "{\"optimizer\": 2}",
        "{\"learning_rate\": 1}",
        "{\"learning_rate\": null}",
    };
    for (size_t i = 0; i < QB_COUNT(bad); i++) {
        qb_train_config config;
        qb_train_config_init(&config);
        assert_int_equal(merge(bad[i], &config), QB_ERR_FORMAT);
    }
}

static void configuration_survives_json_bit_for_bit(void **state)
{
    (void)state;
    qb_train_config config = preset("llama2-130m"), back;
    QB_CHECK_OK(qb_train_config_set(&config, "lr", "0.1234567890123456789"));
    QB_CHECK_OK(qb_train_config_set(&config, "data", "a \"folder\""));
    QB_CHECK_OK(qb_train_config_resolve(&config, 0));
    json_t *object;
    char *text;
    QB_CHECK_OK(qb_train_config_to_json(&config, &object));
    QB_CHECK_OK(qb_json_dump(object, JSON_REAL_PRECISION(17), "test", &text));
    json_decref(object);
    qb_train_config_init(&back);
    QB_CHECK_OK(merge(text, &back));
    qb_library_free(text);
    QB_CHECK_OK(qb_train_config_resolve(&back, 0));
    assert_memory_equal(&config, &back, sizeof config);
    QB_CHECK_OK(qb_train_config_check_same(&config, &back));
}

/* ---- resolution ---- */

static void unset_keys_come_from_architecture_and_optimizer(void **state)
{
    (void)state;
    qb_train_config config;
    qb_train_config_init(&config);
    const char *const set[][2] = {{"arch", "llama"},      {"n_layers", "2"}, {"d_model", "96"},
                                  {"n_heads", "3"},       {"vocab", "100"},  {"steps", "7"},
                                  {"optimizer", "adamw"}, {"beta1", "0.5"}};
    for (size_t i = 0; i < QB_COUNT(set); i++)
        QB_CHECK_OK(qb_train_config_set(&config, set[i][0], set[i][1]));
    QB_CHECK_OK(qb_train_config_resolve(&config, 99));
    const qb_optimizer *adamw = qb_optimizer_find("adamw");
    assert_int_equal(config.model.norm, QB_NORM_RMSNORM);
    assert_int_equal(config.model.act, QB_ACT_SWIGLU);
    assert_false(config.model.fused_qkv);
    assert_ptr_equal(config.model.arch, qb_arch_find("llama"));
    assert_int_equal(config.model.n_kv_heads, 3);
    assert_int_equal(config.model.head_dim, 32);
    assert_int_equal(config.model.d_ff, 384);
    assert_true(config.settings.beta1 == 0.5);
    assert_true(config.settings.beta2 == adamw->defaults.beta2);
    assert_true(config.settings.weight_decay == adamw->defaults.weight_decay);
    assert_true(config.schedule.peak == adamw->lr);
    assert_int_equal(config.model.context, 256);
}

static void impossible_configurations_name_the_key(void **state)
{
    (void)state;
    static const char *const bad[][3] = {
        {"n_kv_heads", "3", "n_kv_heads"}, {"micro_batch", "5", "micro-batch"},
        {"steps", "0", "steps"},           {"vocab", "8191", "vocab"},
        {"norm_bias", "on", "norm_bias"},
    };
    qb_train_config config;
    for (size_t i = 0; i < QB_COUNT(bad); i++) {
        config = preset("gpt2-1m");
        QB_CHECK_OK(qb_train_config_set(&config, bad[i][0], bad[i][1]));
        check_message(qb_train_config_resolve(&config, 8192), QB_ERR_USAGE, bad[i][2]);
    }
    qb_train_config_init(&config);
    check_message(qb_train_config_resolve(&config, 8192), QB_ERR_USAGE, "n-layers");
    config = preset("gpt2-1m");
    check_message(qb_train_config_resolve(&config, 0), QB_ERR_USAGE, "vocab");
}

static void only_free_keys_change_on_resume(void **state)
{
    (void)state;
    qb_train_config stored = resolved("gpt2-1m"), wanted = stored;
    QB_CHECK_OK(qb_train_config_set(&wanted, "steps", "9999"));
    QB_CHECK_OK(qb_train_config_set(&wanted, "log_every", "3"));
    QB_CHECK_OK(qb_train_config_check_same(&stored, &wanted));
    QB_CHECK_OK(qb_train_config_set(&wanted, "lr", "0.5"));
    check_message(qb_train_config_check_same(&stored, &wanted), QB_ERR_USAGE,
                  "--lr: cannot change on --resume: found 0.5, expected 0.001");
}

static void tokens_give_whole_steps(void **state)
{
    (void)state;
    qb_train_config config = resolved("gpt2-8m");
    assert_int_equal(qb_train_config_n_steps(&config), (1500000000ull + 131071) / 131072);
    config.steps = 5;
    assert_int_equal(qb_train_config_n_steps(&config), 5);
}

/* ---- presets ---- */

static void presets_have_their_sizes(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        double least, most; /* millions of parameters */
    } sizes[] = {
        {"gpt2-60m", 50, 66},        {"gpt2-130m", 120, 136},   {"gpt2-350m", 345, 360},
        {"gpt2-1.4b", 1300, 1420},   {"llama2-130m", 128, 136}, {"gpt2-8m", 8, 9},
        {"gpt2-1m", 0.7, 2},         {"bb-1l", 0.85, 0.93},     {"bb-3l", 2.3, 2.6},
        {"bb-3l-minimal", 2.1, 2.3},
    };
    size_t n_presets = 0;
    for (const qb_preset *p = qb_presets; p->name; p++) n_presets += p->summary != NULL;
    assert_int_equal(n_presets, QB_COUNT(sizes));
    for (size_t i = 0; i < QB_COUNT(sizes); i++) {
        qb_train_config config = resolved(sizes[i].name);
        double n = (double)qb_config_n_params(&config.model) / 1e6;
        if (n < sizes[i].least || n > sizes[i].most)
            fail_msg("%s: %g million parameters", sizes[i].name, n);
        assert_string_equal(config.name, sizes[i].name);
    }
}

static void paper_presets_have_its_hyper_parameters(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        size_t steps, warmup;
    } rows[] = {{"gpt2-60m", 160000, 1000},
                {"gpt2-130m", 320000, 2000},
                {"gpt2-350m", 960000, 6000},
                {"gpt2-1.4b", 600000, 10000},
                {"llama2-130m", 320000, 2000}};
    for (size_t i = 0; i < QB_COUNT(rows); i++) {
        qb_train_config c = resolved(rows[i].name);
        assert_int_equal(c.steps, rows[i].steps);
        assert_int_equal(c.schedule.warmup, rows[i].warmup);
        assert_int_equal(c.batch, 512);
        assert_int_equal(c.model.context, 256);
        assert_true(c.schedule.peak == 1e-3 && c.settings.beta1 == 0.9 &&
                    c.settings.beta2 == 0.999 && c.settings.weight_decay == 0);
        assert_int_equal(c.model.norm, QB_NORM_RMSNORM_SINGLE);
        assert_false(c.model.attn_bias || c.model.mlp_bias || c.model.norm_bias);
    }
}

static void unknown_presets_are_refused(void **state)
{
    (void)state;
    qb_train_config config;
    qb_train_config_init(&config);
    check_message(qb_preset_apply("gpt2-13m", &config), QB_ERR_USAGE, "did you mean 'gpt2-1");
    check_message(qb_preset_apply("paper", &config), QB_ERR_USAGE, "no such preset");
}

/* ---- schedules ---- */

static void schedules_rise_and_fall(void **state)
{
    (void)state;
    qb_schedule s = {.kind = QB_SCHEDULE_COSINE, .peak = 2, .floor = 0.1, .warmup = 4};
    assert_true(qb_schedule_lr(&s, 1, 104) == 0.5);
    assert_true(qb_schedule_lr(&s, 4, 104) == 2);
    assert_true(qb_schedule_lr(&s, 5, 104) == 2);
    assert_true(fabs(qb_schedule_lr(&s, 55, 104) - 1.1) < 1e-12); /* half way */
    double last = qb_schedule_lr(&s, 104, 104);
    assert_true(last > 0.2 && last < 0.21);
    assert_true(qb_schedule_lr(&s, 105, 104) == 0.2);
    s.kind = QB_SCHEDULE_CONSTANT;
    assert_true(qb_schedule_lr(&s, 2, 104) == 1 && qb_schedule_lr(&s, 104, 104) == 2);
    s.warmup = 0;
    assert_true(qb_schedule_lr(&s, 1, 104) == 2);
}

static void nearest_word_takes_slips_only(void **state)
{
    (void)state;
    qb_nearest n = qb_nearest_begin("shceme");
    qb_nearest_consider(&n, "softmax");
    assert_null(n.word);
    qb_nearest_consider(&n, "schemes");
    qb_nearest_consider(&n, "scheme"); /* nearer: one swap */
    assert_string_equal(n.word, "scheme");
    assert_int_equal(n.distance, 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(keys_are_unique_described_and_fit_their_defaults),
        cmocka_unit_test(values_out_of_range_are_refused),
        cmocka_unit_test(json_overrides_its_preset_wherever_that_stands),
        cmocka_unit_test(json_of_the_wrong_kind_is_refused),
        cmocka_unit_test(configuration_survives_json_bit_for_bit),
        cmocka_unit_test(unset_keys_come_from_architecture_and_optimizer),
        cmocka_unit_test(impossible_configurations_name_the_key),
        cmocka_unit_test(only_free_keys_change_on_resume),
        cmocka_unit_test(tokens_give_whole_steps),
        cmocka_unit_test(presets_have_their_sizes),
        cmocka_unit_test(paper_presets_have_its_hyper_parameters),
        cmocka_unit_test(unknown_presets_are_refused),
        cmocka_unit_test(schedules_rise_and_fall),
        cmocka_unit_test(nearest_word_takes_slips_only),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
