/* tests/unit/test_model.c - slots and their rules, codes widened to f32, names, random models. */
#include "support.h"

#include "core/memory.h"
#include "core/threads.h"
#include "model/random_model.h"
#include "model/tokenizer.h"
#include "tiny_model.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static void slots_refuse_what_does_not_fit(void **state)
{
    (void)state;
    qb_config c = qb_test_tiny_config("gpt2");
    qb_model *m;
    QB_CHECK_OK(qb_model_create(&c, "x", "random", &m));
    static float data[4096];
    size_t n = c.d_model;
    const struct {
        qb_role role;
        size_t layer, rows, cols, bytes;
        qb_dtype dtype;
        const char *message;
    } bad[] = {
        {QB_ROLE_NORM1, 2, 1, n, 4 * n, QB_F32, "layer 2"},
        {QB_ROLE_Q, 0, n, n, 4 * n * n, QB_F32, "not part"},
        {QB_ROLE_NORM1, 0, n, 1, 4 * n, QB_F32, "shape"},
        {QB_ROLE_NORM1, 0, 1, n, 4 * n - 1, QB_F32, "bytes"},
        {QB_ROLE_NORM1, 0, 1, n, n, QB_Q8_0, "block"},
    };
    for (size_t i = 0; i < QB_COUNT(bad); i++) {
        assert_int_equal(qb_model_set(m, bad[i].role, bad[i].layer, bad[i].dtype, bad[i].rows,
                                      bad[i].cols, data, bad[i].bytes, "t"),
                         QB_ERR_FORMAT);
        assert_non_null(strstr(qb_error_message(), bad[i].message));
    }
    QB_CHECK_OK(qb_model_set(m, QB_ROLE_NORM1, 0, QB_F32, 1, n, data, 4 * n, "t"));
    assert_int_equal(qb_model_set(m, QB_ROLE_NORM1, 0, QB_F32, 1, n, data, 4 * n, "t"),
                     QB_ERR_FORMAT);
    assert_non_null(strstr(qb_error_message(), "twice"));
    assert_int_equal(qb_model_check_complete(m), QB_ERR_FORMAT);
    assert_non_null(strstr(qb_error_message(), "tok_embd"));
    qb_model_close(m);
}

static void names_are_stems(void **state)
{
    (void)state;
    static const char *const cases[][2] = {{"a/b/tiny.gguf", "tiny"},
                                           {"model.bin", "model"},
                                           {"dir/SmolLM2-1.7B/", "SmolLM2-1.7B"},
                                           {"x.safetensors", "x"},
                                           {".bin", ".bin"}};
    qb_config c = qb_test_tiny_config("gpt2");
    for (size_t i = 0; i < QB_COUNT(cases); i++) {
        qb_model *m;
        QB_CHECK_OK(qb_model_create(&c, cases[i][0], "random", &m));
        assert_string_equal(m->name, cases[i][1]);
        assert_string_equal(m->path, cases[i][0]);
        qb_model_close(m);
    }
}

/* ---- codes ---- */

/* The definition, element by element. */
static float value_of(const qb_tensor *t, size_t n, size_t k, const int *codes)
{
    const qb_tensor_quant *q = &t->quant;
    size_t groups = q->group_elems ? (t->cols + q->group_elems - 1) / q->group_elems : 0;
    size_t s = q->axis == QB_AXIS_OUT     ? n
               : q->axis == QB_AXIS_IN    ? k
               : q->axis == QB_AXIS_GROUP ? n * groups + k / q->group_elems
                                          : 0;
    int zero_point = q->zero_point ? q->zero_point[s] : 0;
    if (q->scale[s] == 0.0f) return q->fill ? q->fill[s] : 0.0f;
    return (float)(codes[n * t->cols + k] - zero_point) * q->scale[s];
}

static void codes_widen_by_their_slices(void **state)
{
    (void)state;
    enum { ROWS = 5, COLS = 13, GROUP = 4 }; /* odd, so that u4 rows end in half a byte */
    static const qb_axis axes[] = {QB_AXIS_OUT, QB_AXIS_IN, QB_AXIS_TENSOR, QB_AXIS_GROUP};
    float scale[64], fill[64], got[ROWS * COLS];
    int32_t zero_point[64];
    int codes[ROWS * COLS];
    uint8_t s8[ROWS * COLS], u4[ROWS * ((COLS + 1) / 2)] = {0};
    qb_test_fill_f32(scale, 64, 1);
    qb_test_fill_f32(fill, 64, 2);
    for (size_t i = 0; i < 64; i++) zero_point[i] = (int32_t)(i * 7 % 40) - 20;
    for (unsigned bits = 4; bits <= 8; bits += 4)
        for (size_t a = 0; a < QB_COUNT(axes); a++) {
            scale[a] = 0; /* a constant slice */
            for (size_t i = 0; i < ROWS * COLS; i++)
                codes[i] = bits == 4 ? (int)(i * 5 % 16) : (int)(i * 37 % 255) - 127;
            memset(u4, 0, sizeof u4);
            for (size_t n = 0; n < ROWS; n++)
                for (size_t k = 0; k < COLS; k++) {
                    int code = codes[n * COLS + k];
                    s8[n * COLS + k] = (uint8_t)code;
                    if (bits == 4) u4[n * 7 + k / 2] |= (uint8_t)(code << 4 * (k % 2));
                }
            qb_tensor t = {.dtype = bits == 4 ? QB_U4 : QB_S8,
                           .rows = ROWS,
                           .cols = COLS,
                           .data = bits == 4 ? u4 : s8,
                           .bytes = bits == 4 ? sizeof u4 : sizeof s8};
            t.quant = (qb_tensor_quant){.axis = axes[a],
                                        .bits = bits,
                                        .group_elems = GROUP,
                                        .scale = scale,
                                        .fill = a % 2 ? fill : NULL};
            if (bits == 4) t.quant.zero_point = zero_point;
            qb_tensor_rows_f32(&t, 1, ROWS - 1, got);
            for (size_t n = 1; n < ROWS; n++)
                for (size_t k = 0; k < COLS; k++)
                    assert_true(got[(n - 1) * COLS + k] == value_of(&t, n, k, codes));
        }
}

static void quant_rules_are_checked(void **state)
{
    (void)state;
    qb_config c = qb_test_tiny_config("gpt2");
    qb_model *m;
    QB_CHECK_OK(qb_model_create(&c, "x", "random", &m));
    size_t rows, cols;
    qb_config_shape(&c, QB_ROLE_O, &rows, &cols);
    static int8_t codes[4096];
    static float scale[4096];
    static int32_t zero_point[4096];
    QB_CHECK_OK(qb_model_set(m, QB_ROLE_O, 1, QB_S8, rows, cols, codes, rows * cols, "t"));
    qb_tensor_quant q = {.axis = QB_AXIS_OUT, .bits = 8, .n_slices = rows, .scale = scale};
    q.n_slices = rows + 1;
    assert_int_equal(qb_model_set_quant(m, QB_ROLE_O, 1, &q, "t"), QB_ERR_FORMAT);
    q.n_slices = rows;
    q.bits = 4;
    assert_int_equal(qb_model_set_quant(m, QB_ROLE_O, 1, &q, "t"), QB_ERR_FORMAT);
    q.bits = 8;
    q.zero_point = zero_point;
    assert_int_equal(qb_model_set_quant(m, QB_ROLE_O, 1, &q, "t"), QB_ERR_FORMAT);
    q.zero_point = NULL;
    assert_false(m->quantized);
    QB_CHECK_OK(qb_model_set_quant(m, QB_ROLE_O, 1, &q, "t"));
    assert_true(m->quantized);
    qb_model_close(m);
}

/* ---- random models ---- */

static void random_models_are_the_same_bits_at_any_threads(void **state)
{
    (void)state;
    qb_pool *pool;
    qb_model *a, *b, *other;
    QB_CHECK_OK(qb_pool_create(3, &pool));
    QB_CHECK_OK(qb_random_model("gpt2-60m", 1, NULL, &a));
    QB_CHECK_OK(qb_random_model("gpt2-60m", 1, pool, &b));
    QB_CHECK_OK(qb_random_model("gpt2-60m", 2, pool, &other));
    for (int r = 0; r < QB_ROLE_COUNT; r++) {
        const qb_tensor *s = qb_model_tensor(a, (qb_role)r, 0);
        const qb_tensor *t = qb_model_tensor(b, (qb_role)r, 0);
        assert_int_equal(s->bytes, t->bytes);
        if (s->data) assert_memory_equal(s->data, t->data, s->bytes);
    }
    const qb_tensor *up = qb_model_tensor(a, QB_ROLE_UP, 0);
    assert_memory_not_equal(up->data, qb_model_tensor(other, QB_ROLE_UP, 0)->data, up->bytes);
    assert_memory_not_equal(up->data, qb_model_tensor(a, QB_ROLE_UP, 1)->data, up->bytes);
    assert_int_equal(qb_tokenizer_vocab(a->tokenizer), a->config.vocab);
    double square = 0;
    const qb_tensor *down = qb_model_tensor(a, QB_ROLE_DOWN, 3);
    float row[4096];
    for (size_t i = 0; i < down->rows; i++) {
        qb_tensor_rows_f32(down, i, 1, row);
        for (size_t k = 0; k < down->cols; k++) square += (double)row[k] * (double)row[k];
    }
    /* 0.02 / sqrt(2 * 8 layers) = 0.005; a million draws lie within 0.3 % of it. */
    double found = sqrt(square / (double)(down->rows * down->cols));
    assert_true(fabs(found - 0.005) < 0.005 * 0.003);
    qb_model_close(a);
    qb_model_close(b);
    qb_model_close(other);
    qb_pool_destroy(pool);
}

static void presets_are_valid_and_unknown_names_list_them(void **state)
{
    (void)state;
    qb_model *m;
    assert_int_equal(qb_random_model("gpt3", 1, NULL, &m), QB_ERR_USAGE);
    for (const qb_random_preset *p = qb_random_presets; p->name; p++) {
        assert_non_null(strstr(qb_error_message(), p->name));
        assert_int_equal(p->d_model % p->n_heads, 0);
        assert_non_null(qb_arch_find(p->arch));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(slots_refuse_what_does_not_fit),
        cmocka_unit_test(names_are_stems),
        cmocka_unit_test(codes_widen_by_their_slices),
        cmocka_unit_test(quant_rules_are_checked),
        cmocka_unit_test(random_models_are_the_same_bits_at_any_threads),
        cmocka_unit_test(presets_are_valid_and_unknown_names_list_them),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
