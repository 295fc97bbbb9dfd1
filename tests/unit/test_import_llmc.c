/* tests/unit/test_import_llmc.c - llm.c checkpoints made here give back the model they came from;
 * every broken header field is refused by name. */
#include "support.h"

#include "core/memory.h"
#include "model/importers_internal.h"
#include "model_bytes.h"
#include "tiny_model.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const qb_role order[] = {
    QB_ROLE_TOK_EMBD, QB_ROLE_POS_EMBD, QB_ROLE_NORM1,  QB_ROLE_NORM1_B,
    QB_ROLE_QKV,      QB_ROLE_QKV_B,    QB_ROLE_O,      QB_ROLE_O_B,
    QB_ROLE_NORM2,    QB_ROLE_NORM2_B,  QB_ROLE_UP,     QB_ROLE_UP_B,
    QB_ROLE_DOWN,     QB_ROLE_DOWN_B,   QB_ROLE_NORM_F, QB_ROLE_NORM_F_B,
};

enum { PADDED_VOCAB = 64 };

static qb_model *source_model(void)
{
    qb_config c = qb_test_tiny_config("gpt2");
    c.d_ff = 4 * c.d_model; /* the format knows no other */
    return qb_test_tiny_model(&c, 3);
}

static void add_tensor(const qb_tensor *t, bool bf16, test_bytes *b)
{
    size_t n = t->rows * t->cols, padding = 0;
    if (t->role == QB_ROLE_TOK_EMBD) padding = (PADDED_VOCAB - t->rows) * t->cols;
    const float *f = t->data;
    for (size_t i = 0; i < n + padding; i++) {
        float value = i < n ? f[i] : 99.0f;
        uint16_t narrow = qb_bf16_from_f32(value);
        test_bytes_add(b, bf16 ? (void *)&narrow : (void *)&value, bf16 ? 2 : 4);
    }
}

static test_bytes checkpoint_of(const qb_model *m, bool bf16)
{
    const qb_config *c = &m->config;
    int32_t header[256] = {20240326,         bf16 ? 5 : 3,    (int)c->context, (int)c->vocab,
                           (int)c->n_layers, (int)c->n_heads, (int)c->d_model, PADDED_VOCAB};
    test_bytes b = {0};
    test_bytes_add(&b, header, sizeof header);
    for (size_t i = 0; i < QB_COUNT(order); i++)
        for (size_t l = 0; l < (qb_roles[order[i]].per_layer ? c->n_layers : 1); l++)
            add_tensor(qb_model_tensor(m, order[i], l), bf16, &b);
    return b;
}

static void f32_gives_the_same_model(void **state)
{
    (void)state;
    qb_model *source = source_model(), *read;
    test_bytes b = checkpoint_of(source, false);
    QB_CHECK_OK(test_build_bytes(qb__llmc_build, b.data, b.n, &read));
    test_models_equal(source, read);
    assert_string_equal(read->format, "llm.c");
    assert_null(read->tokenizer);
    qb_model_close(read);
    qb_model_close(source);
    test_bytes_free(&b);
}

static void bf16_gives_the_rounded_model(void **state)
{
    (void)state;
    qb_model *source = source_model(), *read;
    test_bytes b = checkpoint_of(source, true);
    QB_CHECK_OK(test_build_bytes(qb__llmc_build, b.data, b.n, &read));
    const qb_tensor *t = qb_model_tensor(read, QB_ROLE_DOWN, 1);
    assert_int_equal(t->dtype, QB_BF16);
    const float *want = qb_model_tensor(source, QB_ROLE_DOWN, 1)->data;
    float row[300];
    qb_tensor_rows_f32(t, 2, 1, row);
    for (size_t i = 0; i < t->cols; i++)
        assert_true(row[i] == qb_f32_from_bf16(qb_bf16_from_f32(want[2 * t->cols + i])));
    qb_model_close(read);
    qb_model_close(source);
    test_bytes_free(&b);
}

static void broken_headers_are_refused_by_name(void **state)
{
    (void)state;
    static const struct {
        size_t field;
        int32_t value;
        const char *message;
    } bad[] = {
        {0, 20240327, "magic"},      {1, 4, "version"},          {2, 0, "context"},
        {2, -5, "context"},          {2, 2147483647, "context"}, {3, -1, "vocabulary"},
        {4, 1 << 20, "n_layers"},    {4, 3, "truncated"},        {5, 0, "heads"},
        {5, 7, "channels"},          {6, 1 << 24, "expected"},   {6, -2147483647, "channels"},
        {7, 3, "padded vocabulary"}, {7, 1 << 24, "truncated"},  {2, 23, "trailing bytes"},
    };
    qb_model *source = source_model(), *read;
    test_bytes b = checkpoint_of(source, false);
    for (size_t i = 0; i < QB_COUNT(bad); i++) {
        int32_t good;
        memcpy(&good, b.data + 4 * bad[i].field, 4);
        memcpy(b.data + 4 * bad[i].field, &bad[i].value, 4);
        qb_status status = test_build_bytes(qb__llmc_build, b.data, b.n, &read);
        assert_int_equal(qb_status_exit_code(status), 3);
        if (!strstr(qb_error_message(), bad[i].message))
            fail_msg("field %zu: expected \"%s\", found \"%s\"", bad[i].field, bad[i].message,
                     qb_error_message());
        memcpy(b.data + 4 * bad[i].field, &good, 4);
    }
    test_bytes_add(&b, "x", 1);
    assert_int_equal(test_build_bytes(qb__llmc_build, b.data, b.n, &read), QB_ERR_FORMAT);
    qb_model_close(source);
    test_bytes_free(&b);
}

static void damage_never_crashes(void **state)
{
    (void)state;
    qb_model *source = source_model();
    test_bytes b = checkpoint_of(source, true);
    /* Weights have no redundancy in this format: only flips of the header can be seen. */
    test_damage(qb__llmc_build, b.data, b.n);
    qb_model_close(source);
    test_bytes_free(&b);
}

static void files_open_and_failed_allocations_leave_nothing(void **state)
{
    (void)state;
    qb_model *source = source_model(), *read;
    test_bytes b = checkpoint_of(source, false);
    char path[64];
    snprintf(path, sizeof path, "/tmp/qb_llmc.%ld.bin", (long)getpid());
    QB_CHECK_OK(qb_file_write_whole(path, b.data, b.n));
    size_t live = qb_memory_live_blocks();
    for (size_t at = 1;; at++) {
        qb_memory_fail_at(at);
        qb_status status = qb_model_open(path, &read);
        qb_memory_fail_at(0);
        if (status == QB_OK) break;
        assert_int_equal(status, QB_ERR_MEMORY);
        assert_int_equal(qb_memory_live_blocks(), live);
    }
    test_models_equal(source, read);
    qb_model_close(read);
    unlink(path);
    qb_model_close(source);
    test_bytes_free(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(f32_gives_the_same_model),
        cmocka_unit_test(bf16_gives_the_rounded_model),
        cmocka_unit_test(broken_headers_are_refused_by_name),
        cmocka_unit_test(damage_never_crashes),
        cmocka_unit_test(files_open_and_failed_allocations_leave_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
