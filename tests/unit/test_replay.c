/* tests/unit/test_replay.c - a record written here is replayed as the trainer runs it, and records
 * with something missing or misshapen are refused. */
#include "support.h"

#include "core/memory.h"
#include "model/safetensors.h"
#include "train/replay.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { STEPS = 2, WINDOWS = 3, T = 5, D = 12, V = 10, F = 20, N_ENTRIES = 11, N_NUMBERS = 4096 };

static char path[] = "/tmp/qb_replay.XXXXXX";
static float numbers[N_NUMBERS];
static int32_t tokens[STEPS * WINDOWS * (T + 1)];

/* One layer with RMSNorm. */
static const qb_st_entry entries[N_ENTRIES] = {
    {"init.wte", QB_F32, 2, {V, D}, numbers},
    {"init.wpe", QB_F32, 2, {T, D}, numbers + 50},
    {"init.h0.norm1", QB_F32, 1, {D}, numbers + 100},
    {"init.h0.attn.qkv", QB_F32, 2, {3 * D, D}, numbers + 150},
    {"init.h0.attn.out", QB_F32, 2, {D, D}, numbers + 200},
    {"init.h0.norm2", QB_F32, 1, {D}, numbers + 250},
    {"init.h0.mlp.fc", QB_F32, 2, {F, D}, numbers + 300},
    {"init.h0.mlp.out", QB_F32, 2, {D, F}, numbers + 350},
    {"init.norm_f", QB_F32, 1, {D}, numbers + 400},
    {"loss.softmax.sgd", QB_F32, 1, {STEPS}, numbers + 450},
    {"tokens", QB_S32, 3, {STEPS, WINDOWS, T + 1}, tokens},
};

static int make(void **state)
{
    (void)state;
    qb_test_fill_f32(numbers, N_NUMBERS, 3);
    for (size_t i = 0; i < QB_COUNT(tokens); i++) tokens[i] = (int32_t)(i * 7 % V);
    return mkstemp(path) < 0;
}

static int clear(void **state)
{
    (void)state;
    return unlink(path);
}

static void write_record(const qb_st_entry *list, size_t n, const char *heads)
{
    json_t *metadata = heads ? json_pack("{s:s}", "n_heads", heads) : NULL;
    QB_CHECK_OK(qb_safetensors_write(path, list, n, metadata));
    json_decref(metadata);
}

static qb_status run(qb_replay_result *out)
{
    return qb_replay_run(path, &(qb_replay_options){.softmax = "softmax", .optimizer = "sgd"}, out);
}

static void a_record_is_followed(void **state)
{
    (void)state;
    double first[2];
    for (int heads = 0; heads < 2; heads++) { /* 2 by default, 3 by the metadata */
        qb_replay_result r;
        write_record(entries, N_ENTRIES, heads ? "3" : NULL);
        QB_CHECK_OK(run(&r));
        assert_int_equal(r.n_steps, STEPS);
        assert_true(r.has_losses && !r.has_gradients && isnan(r.grad_max_rel_error));
        double worst = 0;
        for (size_t i = 0; i < STEPS; i++)
            worst = fmax(worst, fabs(r.losses[i] / (double)numbers[450 + i] - 1));
        assert_true(r.loss_max_rel_error == worst);
        first[heads] = r.losses[1];
        json_t *json;
        QB_CHECK_OK(qb_replay_to_json(&r, &json));
        assert_int_equal(json_array_size(json_object_get(json, "losses")), STEPS);
        assert_true(json_is_null(json_object_get(json, "grad_max_rel_error")));
        json_decref(json);
        qb_replay_result_deinit(&r);
    }
    assert_true(first[0] != first[1]);
}

static void incomplete_records_are_refused(void **state)
{
    (void)state;
    qb_replay_result r;
    for (size_t gone = 0; gone < N_ENTRIES; gone++) {
        qb_st_entry list[N_ENTRIES];
        memcpy(list, entries, sizeof list);
        list[gone] = list[N_ENTRIES - 1];
        if (!strncmp(entries[gone].name, "loss", 4)) continue;
        write_record(list, N_ENTRIES - 1, NULL);
        assert_int_equal(run(&r), QB_ERR_FORMAT);
    }
    qb_st_entry list[N_ENTRIES];
    memcpy(list, entries, sizeof list);
    list[4].shape[0]--;
    write_record(list, N_ENTRIES, NULL);
    assert_int_equal(run(&r), QB_ERR_FORMAT);
    write_record(entries, N_ENTRIES, "5");
    assert_int_equal(run(&r), QB_ERR_FORMAT);
    tokens[3] = V;
    write_record(entries, N_ENTRIES, NULL);
    assert_int_equal(run(&r), QB_ERR_FORMAT);
    tokens[3] = 1;
}

static void wrong_requests_are_refused(void **state)
{
    (void)state;
    qb_replay_result r;
    write_record(entries, N_ENTRIES, NULL);
    qb_replay_options wrong = {.softmax = "softmax", .optimizer = "adamant"};
    assert_int_equal(qb_replay_run(path, &wrong, &r), QB_ERR_USAGE);
    wrong = (qb_replay_options){.softmax = "soft", .optimizer = "sgd"};
    assert_int_equal(qb_replay_run(path, &wrong, &r), QB_ERR_USAGE);
    wrong = (qb_replay_options){.softmax = "softmax", .optimizer = "sgd", .norm = "layernorm"};
    assert_int_equal(qb_replay_run(path, &wrong, &r), QB_ERR_USAGE);
    wrong = (qb_replay_options){.softmax = "softmax", .optimizer = "orthoadam"};
    assert_int_equal(qb_replay_run(path, &wrong, &r), QB_ERR_FORMAT); /* no bases */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_record_is_followed),
        cmocka_unit_test(incomplete_records_are_refused),
        cmocka_unit_test(wrong_requests_are_refused),
    };
    return cmocka_run_group_tests(tests, make, clear);
}
