/* tests/bin_models.c - see bin_models.h. */
#include "bin_models.h"

#include "support.h"

#include "core/memory.h"
#include "model/model_bin.h"
#include "model/tokenizer.h"

#include <string.h>

/* ---- small models ---- */

static qb_config small_config(const char *arch, size_t d_model)
{
    qb_config c = qb_arch_find(arch)->defaults;
    c.arch = qb_arch_find(arch);
    c.n_layers = QB_TEST_BIN_N_LAYERS;
    c.d_model = d_model;
    c.n_heads = c.n_kv_heads = 2;
    c.head_dim = 16;
    c.d_ff = 2 * d_model;
    c.vocab = QB_TEST_BIN_VOCAB;
    c.context = 16;
    c.tied_head = true;
    return c;
}

static qb_tokenizer *small_tokenizer(void)
{
    static const char *const texts[] = {"a", "b", "ab", "<|end|>"}, *const merges[] = {"a b"};
    static const size_t text_bytes[] = {1, 1, 2, 7}, merge_bytes[] = {3};
    static const uint8_t types[] = {QB_TOKEN_NORMAL, QB_TOKEN_NORMAL, QB_TOKEN_NORMAL,
                                    QB_TOKEN_CONTROL};
    qb_tokenizer_spec spec = {.kind = QB_TOKENIZER_BPE,
                              .pre = "gpt-2",
                              .vocab = 4,
                              .texts = texts,
                              .text_bytes = text_bytes,
                              .types = types,
                              .n_merges = 1,
                              .merges = merges,
                              .merge_bytes = merge_bytes,
                              .bos = 3,
                              .eos = 3,
                              .unk = -1};
    qb_tokenizer *tokenizer;
    QB_CHECK_OK(qb_tokenizer_create(&spec, &tokenizer));
    return tokenizer;
}

/* Random codes and scales over slices of `axis`. */
static void set_codes(qb_model *m, qb_role role, size_t layer, size_t rows, size_t cols,
                      qb_axis axis, unsigned bits)
{
    qb_tensor_quant q = {.axis = axis, .bits = bits, .group_elems = 24};
    size_t bytes;
    qb_dtype dtype = bits == 8 ? QB_S8 : QB_U4;
    assert_true(qb_dtype_bytes(dtype, rows, cols, &bytes));
    q.n_slices = qb_axis_n_slices(q.axis, q.group_elems, rows, cols);
    uint8_t *codes;
    float *scale, *fill = NULL;
    int32_t *zero_point = NULL;
    QB_CHECK_OK(qb_model_new_block(m, bytes, (void **)&codes));
    QB_CHECK_OK(qb_model_new_block(m, q.n_slices * 4, (void **)&scale));
    qb_test_fill_bytes(codes, bytes, 77 + layer);
    for (size_t r = 0; bits == 4 && cols % 2 && r < rows; r++)
        codes[(r + 1) * (bytes / rows) - 1] &= 15;
    for (size_t i = 0; i < q.n_slices; i++) scale[i] = (float)(i % 7) * 0.125f;
    if (bits == 4) {
        QB_CHECK_OK(qb_model_new_block(m, q.n_slices * 4, (void **)&zero_point));
        QB_CHECK_OK(qb_model_new_block(m, q.n_slices * 4, (void **)&fill));
        for (size_t i = 0; i < q.n_slices; i++) {
            zero_point[i] = (int32_t)(i % 16);
            fill[i] = -0.5f * (float)i;
        }
    }
    q.scale = scale;
    q.zero_point = zero_point;
    q.fill = fill;
    if (bits == 8) { /* as of scales folded in */
        float *fold;
        QB_CHECK_OK(qb_model_new_block(m, cols * 4, (void **)&fold));
        for (size_t k = 0; k < cols; k++) fold[k] = 0.25f * (float)(k % 5);
        q.fold = fold;
    }
    QB_CHECK_OK(qb_model_set(m, role, layer, dtype, rows, cols, codes, bytes, "codes"));
    QB_CHECK_OK(qb_model_set_quant(m, role, layer, &q, "codes"));
}

const qb_test_bin_case qb_test_bin_cases[QB_TEST_BIN_CASES] = {
    {"gpt2", QB_TEST_BIN_D_MODEL, QB_F32, QB_AXIS_NONE, false, false},
    {"llama", QB_TEST_BIN_D_MODEL, QB_F16, QB_AXIS_NONE, true, false},
    {"llama", QB_TEST_BIN_D_MODEL, QB_BF16, QB_AXIS_NONE, true, false},
    {"llama", QB_TEST_BIN_D_MODEL, QB_Q8_0, QB_AXIS_NONE, false, false},
    {"llama", QB_TEST_BIN_D_MODEL, QB_Q4_0, QB_AXIS_NONE, false, false},
    {"gpt2", QB_TEST_BIN_D_MODEL, QB_Q4_1, QB_AXIS_NONE, false, false},
    {"gpt2", QB_TEST_BIN_D_MODEL, QB_S8, QB_AXIS_OUT, false, false},
    {"llama", QB_TEST_BIN_D_MODEL, QB_S8, QB_AXIS_TENSOR, false, false},
    {"gpt2", 30, QB_U4, QB_AXIS_OUT, false, false},
    {"llama", 30, QB_U4, QB_AXIS_IN, false, false},
    {"gpt2", 31, QB_U4, QB_AXIS_TENSOR, false, false},
    {"llama", 51, QB_U4, QB_AXIS_GROUP, false, false},
    {"llama", QB_TEST_BIN_D_MODEL, QB_S8, QB_AXIS_OUT, false, true},
    {"gpt2", QB_TEST_BIN_D_MODEL, QB_F32, QB_AXIS_NONE, false, true},
};

static void set_floats(qb_model *m, qb_role role, size_t layer, size_t rows, size_t cols,
                       qb_dtype dtype, bool repetitive)
{
    size_t bytes;
    uint8_t *data;
    assert_true(qb_dtype_bytes(dtype, rows, cols, &bytes));
    QB_CHECK_OK(qb_model_new_block(m, bytes, (void **)&data));
    qb_test_fill_bytes(data, bytes, (uint64_t)role * 100 + layer);
    for (size_t i = 0; i < bytes; i++) data[i] &= 0x3f; /* no NaN, no infinity */
    if (repetitive) memset(data, 0x21, bytes);
    QB_CHECK_OK(qb_model_set(m, role, layer, dtype, rows, cols, data, bytes, "floats"));
}

qb_model *qb_test_bin_model(const qb_test_bin_case *c)
{
    qb_config config = small_config(c->arch, c->d_model);
    qb_model *m;
    if (c->flags) {
        config.softmax = QB_SOFTMAX_SINK;
        config.attn_gate = true;
        config.free_prefix = 5;
    }
    QB_CHECK_OK(qb_model_create(&config, "made.bin", "random", &m));
    for (int r = 0; r < QB_ROLE_COUNT; r++) {
        size_t rows, cols, n = qb_roles[r].per_layer ? QB_TEST_BIN_N_LAYERS : 1;
        if (!qb_config_shape(&config, (qb_role)r, &rows, &cols)) continue;
        for (size_t l = 0; l < n; l++)
            if (qb_roles[r].linear && c->axis != QB_AXIS_NONE)
                set_codes(m, (qb_role)r, l, rows, cols, c->axis, c->matrix == QB_S8 ? 8 : 4);
            else
                set_floats(m, (qb_role)r, l, rows, cols, qb_roles[r].linear ? c->matrix : QB_F32,
                           c->repetitive);
    }
    QB_CHECK_OK(qb_model_check_complete(m));
    QB_CHECK_OK(qb_model_set_name(m, "the name"));
    if (c->axis != QB_AXIS_NONE) QB_CHECK_OK(qb_strdup(&m->stored_scheme, "fine-channel"));
    m->tokenizer = small_tokenizer();
    m->training = json_pack("{s:s, s:I, s:f}", "optimizer", "adam", "tokens", (json_int_t)123456789,
                            "lr", 0.001);
    m->calibration = json_pack("{s:[f, f]}", "in_max", 0.1, 2.5);
    return m;
}

qb_status qb_test_bin_open(const char *path, qb_model **out)
{
    qb_file file;
    QB_TRY(qb_file_open(path, &file));
    return qb_model_bin_open(path, &file, out);
}

/* ---- equality ---- */

static void check_bytes(const void *a, const void *b, size_t bytes)
{
    assert_int_equal(a == NULL, b == NULL);
    if (a) assert_memory_equal(a, b, bytes);
}

static void check_same_tensor(const qb_tensor *a, const qb_tensor *b)
{
    assert_int_equal(a->dtype, b->dtype);
    assert_int_equal(a->rows, b->rows);
    assert_int_equal(a->cols, b->cols);
    assert_int_equal(a->bytes, b->bytes);
    check_bytes(a->data, b->data, a->bytes);
    assert_int_equal(a->quant.axis, b->quant.axis);
    assert_int_equal(a->quant.bits, b->quant.bits);
    assert_int_equal(a->quant.n_slices, b->quant.n_slices);
    if (a->quant.axis == QB_AXIS_GROUP)
        assert_int_equal(a->quant.group_elems, b->quant.group_elems);
    check_bytes(a->quant.scale, b->quant.scale, a->quant.n_slices * 4);
    check_bytes(a->quant.zero_point, b->quant.zero_point, a->quant.n_slices * 4);
    check_bytes(a->quant.fill, b->quant.fill, a->quant.n_slices * 4);
    check_bytes(a->quant.fold, b->quant.fold, a->cols * 4);
}

void qb_test_same_bin_model(const qb_model *a, const qb_model *b)
{
    json_t *x, *y;
    QB_CHECK_OK(qb_config_to_json(&a->config, &x));
    QB_CHECK_OK(qb_config_to_json(&b->config, &y));
    assert_true(json_equal(x, y));
    json_decref(x);
    json_decref(y);
    for (int r = 0; r < QB_ROLE_COUNT; r++)
        for (size_t l = 0; l < a->config.n_layers; l++)
            check_same_tensor(qb_model_tensor(a, (qb_role)r, l), qb_model_tensor(b, (qb_role)r, l));
    assert_int_equal(a->tokenizer == NULL, b->tokenizer == NULL);
    if (a->tokenizer)
        assert_string_equal(qb_tokenizer_sha256(a->tokenizer), qb_tokenizer_sha256(b->tokenizer));
    assert_true((!a->training && !b->training) || json_equal(a->training, b->training));
    assert_true((!a->calibration && !b->calibration) || json_equal(a->calibration, b->calibration));
    assert_string_equal(a->name, b->name);
    assert_int_equal(a->stored_scheme == NULL, b->stored_scheme == NULL);
    if (a->stored_scheme) assert_string_equal(a->stored_scheme, b->stored_scheme);
    assert_int_equal(a->quantized, b->quantized);
}

qb_test_bytes qb_test_read_bytes(const char *path)
{
    qb_file file;
    QB_CHECK_OK(qb_file_open(path, &file));
    qb_test_bytes b = {.n = file.bytes};
    QB_CHECK_OK(qb_alloc((void **)&b.data, b.n, 1, "file"));
    memcpy(b.data, file.data, b.n);
    qb_file_close(&file);
    return b;
}
