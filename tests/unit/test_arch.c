/* tests/unit/test_arch.c - configurations: shapes, rules, JSON there and back, rotary frequencies.
 */
#include "support.h"

#include "model/arch.h"

#include <math.h>
#include <string.h>

static qb_config small(const char *arch)
{
    qb_config c = qb_arch_find(arch)->defaults;
    c.arch = qb_arch_find(arch);
    c.n_layers = 2;
    c.d_model = 64;
    c.n_heads = 4;
    c.n_kv_heads = !strcmp(arch, "llama") ? 2 : 4;
    c.head_dim = 16;
    c.d_ff = 160;
    c.vocab = 100;
    c.context = 32;
    return c;
}

static void shapes_and_counts_follow_the_configuration(void **state)
{
    (void)state;
    qb_config gpt2 = small("gpt2"), llama = small("llama");
    size_t rows, cols;
    assert_true(qb_config_shape(&gpt2, QB_ROLE_QKV, &rows, &cols));
    assert_int_equal(rows, 192);
    assert_int_equal(cols, 64);
    assert_false(qb_config_shape(&gpt2, QB_ROLE_Q, &rows, &cols));
    assert_false(qb_config_shape(&gpt2, QB_ROLE_HEAD, &rows, &cols));
    assert_true(qb_config_shape(&llama, QB_ROLE_K, &rows, &cols));
    assert_int_equal(rows, 32);
    assert_false(qb_config_shape(&llama, QB_ROLE_POS_EMBD, &rows, &cols));
    size_t linear = 2 * (192 * 64 + 64 * 64 + 2 * 160 * 64);
    assert_int_equal(qb_config_n_linear_params(&gpt2), linear);
    assert_int_equal(qb_config_n_params(&gpt2),
                     linear + 2 * (192 + 64 + 160 + 64 + 4 * 64) + 100 * 64 + 32 * 64 + 2 * 64);
    assert_int_equal(qb_config_n_params(&llama),
                     2 * (64 * 64 * 2 + 32 * 64 * 2 + 3 * 160 * 64 + 2 * 64) + 2 * 100 * 64 + 64);
    gpt2.norm = QB_NORM_RMSNORM_SINGLE;
    assert_true(qb_config_shape(&gpt2, QB_ROLE_NORM_F, &rows, &cols));
    assert_int_equal(rows * cols, 1);
}

static void sinks_and_gates_add_their_tensors(void **state)
{
    (void)state;
    qb_config c = small("llama");
    size_t rows, cols, before = qb_config_n_params(&c), linear = qb_config_n_linear_params(&c);
    for (int r = QB_ROLE_SINK; r <= QB_ROLE_ATTN_GATE_B; r++)
        assert_false(qb_config_shape(&c, (qb_role)r, &rows, &cols));
    c.softmax = QB_SOFTMAX_SINK;
    assert_true(qb_config_shape(&c, QB_ROLE_SINK, &rows, &cols));
    assert_int_equal(rows, 1);
    assert_int_equal(cols, 4);
    assert_int_equal(qb_config_n_params(&c), before + 2 * 4);
    c.attn_gate = true;
    assert_true(qb_config_shape(&c, QB_ROLE_ATTN_GATE, &rows, &cols));
    assert_int_equal(rows, 4);
    assert_int_equal(cols, 64);
    assert_int_equal(qb_config_n_params(&c), before + 2 * (4 + 4 * 64 + 4));
    assert_int_equal(qb_config_n_linear_params(&c), linear); /* no scheme quantises them */
}

static void role_names_are_distinct(void **state)
{
    (void)state;
    char a[64], b[64];
    qb_role_name(QB_ROLE_Q, 13, a, sizeof a);
    assert_string_equal(a, "h.13.attn.q");
    for (int i = 0; i < QB_ROLE_COUNT; i++)
        for (int j = 0; j < i; j++) {
            qb_role_name((qb_role)i, 0, a, sizeof a);
            qb_role_name((qb_role)j, 0, b, sizeof b);
            assert_string_not_equal(a, b);
        }
}

static void check_refuses_and_names_the_field(void **state)
{
    (void)state;
    const struct {
        size_t offset, value;
        const char *names;
    } bad[] = {
        {offsetof(qb_config, n_layers), 0, "n_layers"},
        {offsetof(qb_config, n_layers), 5000, "n_layers"},
        {offsetof(qb_config, d_model), SIZE_MAX, "d_model"},
        {offsetof(qb_config, n_heads), 3, "n_heads"},
        {offsetof(qb_config, n_kv_heads), 0, "n_kv_heads"},
        {offsetof(qb_config, head_dim), 15, "head_dim"},
        {offsetof(qb_config, head_dim), 100000, "head_dim"},
        {offsetof(qb_config, d_ff), 1u << 21, "d_ff"},
        {offsetof(qb_config, vocab), (size_t)1 << 25, "vocab"},
        {offsetof(qb_config, context), 0, "context"},
        {offsetof(qb_config, free_prefix), 33, "free_prefix"},
        {offsetof(qb_config, sliding_window), 31, "sliding window"},
    };
    qb_config good = small("llama");
    QB_CHECK_OK(qb_config_check(&good));
    for (size_t i = 0; i < QB_COUNT(bad); i++) {
        qb_config c = good;
        memcpy((char *)&c + bad[i].offset, &bad[i].value, sizeof(size_t));
        assert_int_equal(qb_config_check(&c), QB_ERR_FORMAT);
        assert_non_null(strstr(qb_error_message(), bad[i].names));
    }
    qb_config c = good;
    c.norm_eps = NAN;
    assert_int_equal(qb_config_check(&c), QB_ERR_FORMAT);
    c = good;
    c.rope.theta = -1;
    assert_int_equal(qb_config_check(&c), QB_ERR_FORMAT);
    c = good;
    c.norm_bias = true;
    assert_int_equal(qb_config_check(&c), QB_ERR_FORMAT);
    c = good;
    c.qkv_bias_only = true;
    assert_int_equal(qb_config_check(&c), QB_ERR_FORMAT);
    c = good;
    c.rope.kind = QB_ROPE_YARN;
    QB_CHECK_OK(qb_config_check(&c));
    c.rope.beta_slow = c.rope.beta_fast;
    assert_int_equal(qb_config_check(&c), QB_ERR_FORMAT);
    const double bad_gamma[] = {NAN, 0.01, -17, -INFINITY}, bad_zeta[] = {NAN, 0.99, 17, INFINITY};
    for (size_t i = 0; i < QB_COUNT(bad_gamma); i++) {
        c = good;
        c.softmax_gamma = bad_gamma[i];
        assert_int_equal(qb_config_check(&c), QB_ERR_FORMAT);
        c = good;
        c.softmax_zeta = bad_zeta[i];
        assert_int_equal(qb_config_check(&c), QB_ERR_FORMAT);
    }
}

static void json_round_trip_keeps_every_field(void **state)
{
    (void)state;
    qb_config c = small("llama");
    c.softmax = QB_SOFTMAX1;
    c.norm = QB_NORM_RMSNORM_SINGLE;
    c.tied_head = c.attn_bias = true;
    c.norm_eps = 1.25e-6;
    c.rope = (qb_rope){.kind = QB_ROPE_LLAMA3,
                       .theta = 500000.0,
                       .factor = 8.0,
                       .low_freq_factor = 1.5,
                       .high_freq_factor = 4.5,
                       .original_context = 64};
    json_t *object, *again;
    qb_config back;
    QB_CHECK_OK(qb_config_to_json(&c, &object));
    QB_CHECK_OK(qb_config_from_json(object, &back));
    QB_CHECK_OK(qb_config_to_json(&back, &again));
    assert_true(json_equal(object, again));
    assert_ptr_equal(back.arch, c.arch);
    assert_int_equal(back.softmax, QB_SOFTMAX1);
    assert_int_equal(back.rope.original_context, 64);
    json_object_set_new(object, "softmax", json_string("softmax9"));
    assert_int_equal(qb_config_from_json(object, &back), QB_ERR_UNSUPPORTED);
    json_object_set_new(again, "vocab", json_integer(-1));
    assert_int_equal(qb_config_from_json(again, &back), QB_ERR_FORMAT);
    json_object_del(again, "vocab");
    assert_int_equal(qb_config_from_json(again, &back), QB_ERR_FORMAT);
    json_decref(object);
    json_decref(again);
}

/* Keys that say nothing are not written, and absent ones mean the defaults: files from before the
 * flags read as they did. */
static void few_models_keys_travel(void **state)
{
    (void)state;
    qb_config c = small("llama"), back;
    c.attn_bias = c.qkv_bias_only = true;
    c.sliding_window = 40;
    c.rope = (qb_rope){.kind = QB_ROPE_YARN,
                       .theta = 5e5,
                       .factor = 8,
                       .low_freq_factor = 1,
                       .high_freq_factor = 4,
                       .original_context = 16,
                       .beta_fast = 20,
                       .beta_slow = 2,
                       .attention_factor = 1.25};
    json_t *object;
    QB_CHECK_OK(qb_config_to_json(&c, &object));
    QB_CHECK_OK(qb_config_from_json(object, &back));
    assert_true(back.qkv_bias_only && back.sliding_window == 40);
    assert_true(back.rope.beta_fast == 20 && back.rope.beta_slow == 2 && !back.rope.truncate);
    assert_true(back.rope.attention_factor == 1.25 && back.rope.original_context == 16);
    assert_int_equal(qb_config_longest(&back), 40);
    json_decref(object);
    size_t rows, cols;
    assert_true(qb_config_shape(&c, QB_ROLE_V_B, &rows, &cols));
    assert_false(qb_config_shape(&c, QB_ROLE_O_B, &rows, &cols));
    c = small("llama");
    assert_true(qb_config_longest(&c) == SIZE_MAX);
    c = small("opt");
    assert_int_equal(qb_config_longest(&c), 32);
}

static void attention_flags_travel_and_default(void **state)
{
    (void)state;
    static const char *const keys[] = {"softmax_gamma", "softmax_zeta", "attn_gate", "free_prefix",
                                       "no_attention"};
    qb_config c = small("gpt2"), back;
    json_t *object, *plain;
    QB_CHECK_OK(qb_config_to_json(&c, &plain));
    for (size_t i = 0; i < QB_COUNT(keys); i++) assert_null(json_object_get(plain, keys[i]));
    QB_CHECK_OK(qb_config_from_json(plain, &back));
    assert_true(back.softmax_gamma == -0.025 && back.softmax_zeta == 1);
    assert_false(back.attn_gate);
    assert_int_equal(back.free_prefix, 0);
    assert_int_equal(back.no_attention, 0);

    c.softmax = QB_SOFTMAX_CLIPPED;
    c.softmax_gamma = -0.03;
    c.softmax_zeta = 1.5;
    c.attn_gate = true;
    c.free_prefix = 10;
    c.no_attention = 2;
    QB_CHECK_OK(qb_config_to_json(&c, &object));
    QB_CHECK_OK(qb_config_from_json(object, &back));
    assert_int_equal(back.softmax, QB_SOFTMAX_CLIPPED);
    assert_true(back.softmax_gamma == -0.03 && back.softmax_zeta == 1.5);
    assert_true(back.attn_gate);
    assert_int_equal(back.free_prefix, 10);
    assert_int_equal(back.no_attention, 2);
    assert_false(qb_config_has(&back, QB_ROLE_QKV, 1) || qb_config_has(&back, QB_ROLE_NORM1, 1));
    assert_true(qb_config_has(&back, QB_ROLE_QKV, 0) && qb_config_has(&back, QB_ROLE_NORM2, 1));
    assert_int_equal(qb_config_n_attention(&back), back.n_layers - 1);
    static const char *const bad[] = {
        "{\"softmax_gamma\": 0.5}",  "{\"softmax_gamma\": -1e300}", "{\"softmax_zeta\": 0}",
        "{\"softmax_zeta\": \"1\"}", "{\"attn_gate\": 1}",          "{\"free_prefix\": -1}",
        "{\"free_prefix\": 33}",     "{\"free_prefix\": 1.5}",      "{\"no_attention\": 1}",
        "{\"no_attention\": [0]}",   "{\"no_attention\": [65]}",    "{\"no_attention\": [1, 1]}",
        "{\"no_attention\": [9]}",   "{\"no_attention\": [\"1\"]}"};
    for (size_t i = 0; i < QB_COUNT(bad); i++) {
        json_t *hostile = json_deep_copy(plain), *change = json_loads(bad[i], 0, NULL);
        assert_int_equal(json_object_update(hostile, change), 0);
        if (qb_config_from_json(hostile, &back) != QB_ERR_FORMAT) fail_msg("taken: %s", bad[i]);
        json_decref(change);
        json_decref(hostile);
    }
    json_decref(object);
    json_decref(plain);
}

/* Values of the llama3 rule worked out by hand: theta 10000, head_dim 8, so the plain frequencies
 * are 1, 0.1, 0.01, 0.001; original context 64 turns 10.19, 1.019, 0.1019 and 0.01019 times. */
static void rope_kinds_give_their_frequencies(void **state)
{
    (void)state;
    double f[4];
    qb_rope rope = {.kind = QB_ROPE_DEFAULT,
                    .theta = 10000.0,
                    .factor = 8.0,
                    .low_freq_factor = 1.0,
                    .high_freq_factor = 4.0,
                    .original_context = 64};
    qb_rope_inv_freq(&rope, 8, f);
    assert_true(fabs(f[1] - 0.1) < 1e-15 && fabs(f[3] - 0.001) < 1e-17);
    rope.kind = QB_ROPE_LINEAR;
    qb_rope_inv_freq(&rope, 8, f);
    assert_true(fabs(f[0] - 0.125) < 1e-15);
    rope.kind = QB_ROPE_LLAMA3;
    qb_rope_inv_freq(&rope, 8, f);
    double keep = (64 * 0.1 / (2 * M_PI) - 1.0) / 3.0;
    assert_true(fabs(f[0] - 1.0) < 1e-15);
    assert_true(fabs(f[1] - (0.1 * keep + 0.0125 * (1 - keep))) < 1e-15);
    assert_true(fabs(f[2] - 0.00125) < 1e-15);
}

/* Values of transformers 5.23, _compute_yarn_parameters, in f32: theta 10000, factor 4, 256 tokens
 * before. */
static void yarn_gives_the_frequencies_of_transformers(void **state)
{
    (void)state;
    static const double want[] = {1,      0.25693506, 0.0625, 0.0138349654,
                                  0.0025, 7.90569e-4, 2.5e-4, 7.90569466e-5};
    double f[8];
    float cosine[16], sine[16];
    qb_rope rope = qb_arch_find("llama")->defaults.rope;
    rope.kind = QB_ROPE_YARN;
    rope.factor = 4.0;
    rope.original_context = 256;
    rope.attention_factor = 1.138629436111989;
    qb_rope_inv_freq(&rope, 16, f);
    for (size_t i = 0; i < 8; i++) assert_true(fabs(f[i] - want[i]) < 1e-6 * want[i]);
    qb_rope_table(&rope, 16, 2, cosine, sine);
    assert_true(cosine[0] == (float)rope.attention_factor && sine[0] == 0.0f);
    assert_true(fabs((double)sine[8] - rope.attention_factor * sin(1.0)) < 1e-7);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(shapes_and_counts_follow_the_configuration),
        cmocka_unit_test(sinks_and_gates_add_their_tensors),
        cmocka_unit_test(role_names_are_distinct),
        cmocka_unit_test(check_refuses_and_names_the_field),
        cmocka_unit_test(json_round_trip_keeps_every_field),
        cmocka_unit_test(few_models_keys_travel),
        cmocka_unit_test(attention_flags_travel_and_default),
        cmocka_unit_test(rope_kinds_give_their_frequencies),
        cmocka_unit_test(yarn_gives_the_frequencies_of_transformers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
