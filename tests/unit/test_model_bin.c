/* tests/unit/test_model_bin.c - model.bin: what is written comes back bit for bit, every damaged or
 * hostile file is refused with a message that names the rule, and nothing half-written stays. */
#include "support.h"

#include "core/json.h"
#include "core/memory.h"
#include "core/rng.h"
#include "model/model_bin.h"
#include "model/tokenizer.h"

#include <fcntl.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- small models ---- */

enum { D_MODEL = 32, N_LAYERS = 2, VOCAB = 40 };

static qb_config small_config(const char *arch, size_t d_model)
{
    qb_config c = qb_arch_find(arch)->defaults;
    c.arch = qb_arch_find(arch);
    c.n_layers = N_LAYERS;
    c.d_model = d_model;
    c.n_heads = c.n_kv_heads = 2;
    c.head_dim = 16;
    c.d_ff = 2 * d_model;
    c.vocab = VOCAB;
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

typedef struct case_row {
    const char *arch;
    size_t d_model;
    qb_dtype matrix; /* of the linear layers; QB_S8 and QB_U4 = codes over slices of axis */
    qb_axis axis;
    bool repetitive; /* weights that deflate well */
    bool flags;      /* sink logits, gated attention, a free prefix */
} case_row;

static const case_row cases[] = {
    {"gpt2", D_MODEL, QB_F32, QB_AXIS_NONE, false, false},
    {"llama", D_MODEL, QB_F16, QB_AXIS_NONE, true, false},
    {"llama", D_MODEL, QB_BF16, QB_AXIS_NONE, true, false},
    {"llama", D_MODEL, QB_Q8_0, QB_AXIS_NONE, false, false},
    {"llama", D_MODEL, QB_Q4_0, QB_AXIS_NONE, false, false},
    {"gpt2", D_MODEL, QB_Q4_1, QB_AXIS_NONE, false, false},
    {"gpt2", D_MODEL, QB_S8, QB_AXIS_OUT, false, false},
    {"llama", D_MODEL, QB_S8, QB_AXIS_TENSOR, false, false},
    {"gpt2", 30, QB_U4, QB_AXIS_OUT, false, false},
    {"llama", 30, QB_U4, QB_AXIS_IN, false, false},
    {"gpt2", 31, QB_U4, QB_AXIS_TENSOR, false, false},
    {"llama", 51, QB_U4, QB_AXIS_GROUP, false, false},
    {"llama", D_MODEL, QB_S8, QB_AXIS_OUT, false, true},
    {"gpt2", D_MODEL, QB_F32, QB_AXIS_NONE, false, true},
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

static qb_model *make_model(const case_row *c)
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
        size_t rows, cols, n = qb_roles[r].per_layer ? N_LAYERS : 1;
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

static qb_status open_bin(const char *path, qb_model **out)
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

static void check_same_model(const qb_model *a, const qb_model *b)
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

/* ---- files as bytes ---- */

typedef struct bytes {
    uint8_t *data;
    size_t n;
} bytes;

static bytes read_bytes(const char *path)
{
    qb_file file;
    QB_CHECK_OK(qb_file_open(path, &file));
    bytes b = {.n = file.bytes};
    QB_CHECK_OK(qb_alloc((void **)&b.data, b.n, 1, "file"));
    memcpy(b.data, file.data, b.n);
    qb_file_close(&file);
    return b;
}

static uint64_t get_u64(const uint8_t *p)
{
    uint64_t v;
    memcpy(&v, p, 8);
    return v;
}

static void put_u64(uint8_t *p, uint64_t v)
{
    memcpy(p, &v, 8);
}

/* What an attacker would do after a change: all checksums but the payloads' fit again. */
static void fix_checksums(bytes *b)
{
    uint32_t crc = qb_crc32(b->data + 64, get_u64(b->data + 16));
    memcpy(b->data + 12, &crc, 4);
    char hex[65];
    QB_CHECK_OK(qb_sha256_hex(b->data, b->n - 32, hex));
    for (size_t i = 0; i < 32; i++) {
        const char byte[3] = {hex[2 * i], hex[2 * i + 1], 0};
        b->data[b->n - 32 + i] = (uint8_t)strtoul(byte, NULL, 16);
    }
}

/* Writes the bytes and expects verify and open to refuse them with `rule` in the message. */
static void expect_refused(const bytes *b, const char *rule)
{
    const char *path = qb_test_in_folder("hostile.bin");
    QB_CHECK_OK(qb_file_write_whole(path, b->data, b->n));
    size_t blocks = qb_memory_live_blocks();
    qb_model *m = NULL;
    assert_int_equal(open_bin(path, &m), QB_ERR_FORMAT);
    if (!strstr(qb_error_message(), rule))
        fail_msg("expected \"%s\" in: %s", rule, qb_error_message());
    assert_non_null(strstr(qb_error_message(), path));
    assert_int_equal(qb_model_bin_verify(path, NULL), QB_ERR_FORMAT);
    assert_int_equal(qb_memory_live_blocks(), blocks);
}

/* ---- tests ---- */

static void what_is_written_comes_back(void **state)
{
    (void)state;
    for (size_t i = 0; i < QB_COUNT(cases); i++)
        for (int level = 0; level <= 9; level += 3) {
            const char *path = qb_test_in_folder("round.bin");
            qb_model *m = make_model(&cases[i]), *back;
            qb_model_bin_options options = {.zlib_level = level};
            QB_CHECK_OK(qb_model_bin_write(m, path, &options));
            QB_CHECK_OK(open_bin(path, &back));
            assert_string_equal(back->format, "model.bin");
            check_same_model(m, back);
            size_t n = 0;
            QB_CHECK_OK(qb_model_bin_verify(path, &n));
            assert_true(n > N_LAYERS * 8);
            qb_model_close(m);
            qb_model_close(back);
        }
}

static void equal_models_give_equal_bytes(void **state)
{
    (void)state;
    for (int level = 0; level < 2; level++) {
        qb_model *m = make_model(&cases[1]), *back;
        qb_model_bin_options options = {.zlib_level = level};
        QB_CHECK_OK(qb_model_bin_write(m, qb_test_in_folder("one.bin"), &options));
        QB_CHECK_OK(open_bin(qb_test_in_folder("one.bin"), &back));
        QB_CHECK_OK(qb_model_bin_write(back, qb_test_in_folder("two.bin"), &options));
        bytes a = read_bytes(qb_test_in_folder("one.bin")),
              b = read_bytes(qb_test_in_folder("two.bin"));
        assert_int_equal(a.n, b.n);
        assert_memory_equal(a.data, b.data, a.n);
        qb_free(a.data);
        qb_free(b.data);
        qb_model_close(m);
        qb_model_close(back);
    }
}

static void zlib_makes_repetitive_weights_smaller(void **state)
{
    (void)state;
    qb_model *m = make_model(&cases[1]);
    QB_CHECK_OK(qb_model_bin_write(m, qb_test_in_folder("raw.bin"), NULL));
    QB_CHECK_OK(qb_model_bin_write(m, qb_test_in_folder("small.bin"),
                                   &(qb_model_bin_options){.zlib_level = 6}));
    struct stat raw, small;
    assert_int_equal(stat(qb_test_in_folder("raw.bin"), &raw), 0);
    assert_int_equal(stat(qb_test_in_folder("small.bin"), &small), 0);
    assert_true(small.st_size < raw.st_size / 2);
    qb_model_close(m);
}

static void floats_are_narrowed_on_request(void **state)
{
    (void)state;
    static const qb_dtype to[] = {QB_F32, QB_F16, QB_BF16};
    const char *path = qb_test_in_folder("narrow.bin");
    for (size_t i = 0; i < 6; i++)
        for (size_t t = 0; t < QB_COUNT(to); t++) {
            qb_model *m = make_model(&cases[i]), *back;
            qb_model_bin_options options = {.convert_floats = true, .float_dtype = to[t]};
            QB_CHECK_OK(qb_model_bin_write(m, path, &options));
            QB_CHECK_OK(open_bin(path, &back));
            const qb_tensor *a = qb_model_tensor(m, QB_ROLE_DOWN, 1);
            const qb_tensor *b = qb_model_tensor(back, QB_ROLE_DOWN, 1);
            assert_int_equal(b->dtype, to[t]);
            assert_int_equal(qb_model_tensor(back, QB_ROLE_NORM_F, 0)->dtype, QB_F32);
            float x[2 * D_MODEL], y[2 * D_MODEL];
            for (size_t r = 0; r < a->rows; r++) {
                qb_tensor_rows_f32(a, r, 1, x);
                qb_tensor_rows_f32(b, r, 1, y);
                for (size_t k = 0; k < a->cols; k++) {
                    float want = to[t] == QB_F32   ? x[k]
                                 : to[t] == QB_F16 ? qb_f32_from_f16(qb_f16_from_f32(x[k]))
                                                   : qb_f32_from_bf16(qb_bf16_from_f32(x[k]));
                    assert_int_equal(qb_f32_bits(y[k]), qb_f32_bits(want));
                }
            }
            qb_model_close(m);
            qb_model_close(back);
        }
}

static void values_too_large_are_refused(void **state)
{
    (void)state;
    qb_model *m = make_model(&cases[0]);
    float *w = (float *)qb_model_tensor(m, QB_ROLE_DOWN, 1)->data;
    const char *path = qb_test_in_folder("large.bin");
    w[5] = 65520.0f; /* rounds to 65536, which f16 has not */
    qb_model_bin_options options = {.convert_floats = true, .float_dtype = QB_F16};
    assert_int_equal(qb_model_bin_write(m, path, &options), QB_ERR_UNSUPPORTED);
    assert_non_null(strstr(qb_error_message(), "h.1.mlp.down"));
    assert_int_equal(access(path, F_OK), -1);
    w[5] = 65519.0f;
    QB_CHECK_OK(qb_model_bin_write(m, path, &options));
    qb_model_close(m);
}

static void golden_models_come_back(void **state)
{
    (void)state;
    static const char *const golden[] = {"a-gpt2", "a-llama-gqa-tied", "a-llama-mha",
                                         "a-llama3-scaled"};
    for (size_t i = 0; i < QB_COUNT(golden); i++) {
        const char *from = qb_test_golden(golden[i]);
        if (!from) QB_SKIP("no golden cases");
        qb_model *m, *back;
        QB_CHECK_OK(qb_model_open(from, &m));
        QB_CHECK_OK(qb_model_bin_write(m, qb_test_in_folder("golden.bin"), NULL));
        QB_CHECK_OK(qb_model_open(qb_test_in_folder("golden.bin"), &back));
        check_same_model(m, back);
        qb_model_close(m);
        qb_model_close(back);
    }
}

/* No bit of the file is unprotected: verify finds each flip, and open all but those in the digest,
 * which protects nothing but itself. */
static void every_flip_is_found(void **state)
{
    (void)state;
    enum { FLIPS = 1000 };
    const case_row *models[] = {&cases[1], &cases[11]};
    const char *path = qb_test_in_folder("flip.bin");
    for (int level = 0; level < 2; level++) {
        qb_model *m = make_model(models[level]), *back;
        QB_CHECK_OK(qb_model_bin_write(m, path, &(qb_model_bin_options){.zlib_level = level}));
        bytes b = read_bytes(path);
        int fd = open(path, O_WRONLY);
        assert_true(fd >= 0);
        for (uint64_t i = 0; i < FLIPS; i++) {
            size_t bit = qb_rng_below(42, QB_STREAM_TEST, i, b.n * 8), at = bit / 8;
            if (i < 64 * 8) at = i / 8, bit = i; /* every bit of the header and of the digest */
            if (i >= FLIPS - 32 * 8) at = b.n - (FLIPS - i - 1) / 8 - 1, bit = i;
            uint8_t flipped = b.data[at] ^ (uint8_t)(1u << bit % 8);
            assert_int_equal(pwrite(fd, &flipped, 1, (off_t)at), 1);
            assert_int_equal(qb_model_bin_verify(path, NULL), QB_ERR_FORMAT);
            qb_status status = open_bin(path, &back);
            assert_int_equal(status == QB_OK, at >= b.n - 32);
            if (status == QB_OK) {
                check_same_model(m, back);
                qb_model_close(back);
            }
            assert_int_equal(pwrite(fd, &b.data[at], 1, (off_t)at), 1);
        }
        close(fd);
        QB_CHECK_OK(qb_model_bin_verify(path, NULL)); /* all flips were taken back */
        qb_free(b.data);
        qb_model_close(m);
    }
}

static void every_truncation_is_found(void **state)
{
    (void)state;
    const char *path = qb_test_in_folder("short.bin");
    qb_model *m = make_model(&cases[8]), *back;
    QB_CHECK_OK(qb_model_bin_write(m, path, NULL));
    struct stat st;
    assert_int_equal(stat(path, &st), 0);
    for (off_t n = st.st_size - 1; n >= 0; n--) {
        assert_int_equal(truncate(path, n), 0);
        if (open_bin(path, &back) != QB_ERR_FORMAT || !strstr(qb_error_message(), "truncated"))
            fail_msg("%lld bytes: %s", (long long)n, qb_error_message());
    }
    qb_model_close(m);
}

static void bytes_after_the_end_are_refused(void **state)
{
    (void)state;
    qb_model *m = make_model(&cases[0]);
    QB_CHECK_OK(qb_model_bin_write(m, qb_test_in_folder("long.bin"), NULL));
    bytes b = read_bytes(qb_test_in_folder("long.bin"));
    bytes longer = {.n = b.n + 64};
    QB_CHECK_OK(qb_alloc_zero((void **)&longer.data, longer.n, 1, "file"));
    memcpy(longer.data, b.data, b.n);
    expect_refused(&longer, "bytes after the end");
    put_u64(longer.data + 32, longer.n);
    put_u64(longer.data + 40, longer.n - 32);
    expect_refused(&longer, "payloads: found their end at");
    qb_free(longer.data);
    qb_free(b.data);
    qb_model_close(m);
}

/* A change of the JSON that keeps its length: `from` becomes `to`, spaces fill up. */
static bool replace_in_json(bytes *b, const char *from, const char *to)
{
    size_t n = get_u64(b->data + 16), from_n = strlen(from), to_n = strlen(to);
    char *json = (char *)b->data + 64;
    char *at = memmem(json, n, from, from_n);
    if (!at) return false;
    size_t after = (size_t)(json + n - at) - from_n, end = n;
    while (to_n > from_n && end > 0 && json[end - 1] == ' ' && n - end < to_n - from_n) end--;
    if (to_n > from_n && n - end < to_n - from_n) return false;
    size_t move = to_n > from_n ? after - (to_n - from_n) : after;
    memmove(at + to_n, at + from_n, move);
    memcpy(at, to, to_n);
    if (to_n < from_n) memset(json + n - (from_n - to_n), ' ', from_n - to_n);
    return true;
}

static void hostile_json_is_refused(void **state)
{
    (void)state;
    static const struct {
        const char *from, *to, *rule;
    } changes[] = {
        {"\"dtype\":\"f32\"", "\"dtype\":\"f99\"", "dtype: found"},
        {"\"dtype\":\"f32\"", "\"dtype\":\"s32\"", "expected a float type"},
        {"\"dtype\":\"f32\"", "\"dtype\":\"f16\"", "expected its size"},
        {"\"shape\":[40,30]", "\"shape\":[30,40]", "shape"},
        {"\"shape\":[40,30]", "\"shape\":[4,300]", "shape"},
        {"\"shape\":[40,30]", "\"shape\":[40,-3]", "shape"},
        {"\"shape\":[40,30]", "\"shape\":[40, 0]", "shape"},
        {"\"shape\":[40,30]", "\"shape\":[]", "dimensions"},
        {"\"shape\":[40,30]", "\"shape\":[1,1,2]", "dimensions"},
        {"\"bytes\":4800", "\"bytes\":4801", "expected its size"},
        {"\"stored_bytes\":4800", "\"stored_bytes\":4736", "stored bytes"},
        {"\"offset\":", "\"offset\":1", "offset: found"},
        {"\"encoding\":\"raw\"", "\"encoding\":\"xyz\"", "encoding"},
        {"\"encoding\":\"raw\"", "\"encoding\":7", "expected a string"},
        {"\"encoding\":\"raw\"", "\"encodinG\":\"raw\"", "found none"},
        {"\"name\":\"tok_embd\"", "\"name\":\"pos_embd\"", "twice"},
        {"\"name\":\"norm_f\"", "\"name\":\"norm_g\"", "missing"},
        {"\"name\":\"h.1.attn.o\"", "\"name\":\"h.7.attn.o\"", "missing"},
        {"\"name\":\"h.1.attn.o\"", "\"name\":\"h.0.attn.o\"", "twice"},
        {"h.0.attn.o.scale", "h.0.attn.o.scalf", "found no h.0"},
        {"h.0.attn.o.zero_point", "h.0.attn.o.zero_poinu", "found no h.0"},
        {"h.0.attn.o.fill", "h.0.attn.o.film", "no such tensor"},
        {"\"axis\":\"group\"", "\"axis\":\"grope\"", "quant axis"},
        {"\"axis\":\"group\"", "\"axis\":\"out\"", "expected (96) f32"},
        {"\"bits\":4", "\"bits\":8", "expected 8 as s8 or 4 as u4"},
        {"\"bits\":4", "\"bits\":5", "expected 8 as s8 or 4 as u4"},
        {"\"group\":24", "\"group\":0", "key \"group\""},
        {"\"group\":24", "\"group\":31", "expected (96) f32"},
        {"\"group\":24", "\"group\":12", "expected ("},
        {"\"n_layers\":2", "\"n_layers\":1", "no such tensor"},
        {"\"n_layers\":2", "\"n_layers\":3", "missing"},
        {"\"n_layers\":2", "\"n_layers\":0", "n_layers"},
        {"\"vocab\":40", "\"vocab\":41", "expected (41, 30)"},
        {"\"name\":\"the name\"", "\"name\":17", "expected a string"},
        {"\"training\":{", "\"training\":[", "JSON"},
        {"\"crc32\":", "\"crc32\":-", "crc32"},
        {"\"tensors\":[", "\"tensorz\":[", "payload table"},
        {"{", "[", "JSON"},
        {"\"pre\":\"gpt-2\"", "\"sha256\":\"0\"", "JSON"},
    };
    const case_row group = {"gpt2", 30, QB_U4, QB_AXIS_GROUP, false, false};
    qb_model *m = make_model(&group);
    QB_CHECK_OK(qb_model_bin_write(m, qb_test_in_folder("good.bin"), NULL));
    for (size_t i = 0; i < QB_COUNT(changes); i++) {
        bytes b = read_bytes(qb_test_in_folder("good.bin"));
        if (!replace_in_json(&b, changes[i].from, changes[i].to))
            fail_msg("no %s in the file", changes[i].from);
        fix_checksums(&b);
        expect_refused(&b, changes[i].rule);
        qb_free(b.data);
    }
    qb_model_close(m);
}

static void hostile_headers_are_refused(void **state)
{
    (void)state;
    static const struct {
        size_t at;
        uint64_t value;
        const char *rule;
    } changes[] = {
        {0, 0x48434e454258ull, "magic"},
        {8, 2, "format version"},
        {8, 0, "format version"},
        {16, UINT64_MAX, "JSON length"},
        {16, (uint64_t)1 << 40, "JSON length"},
        {24, 0, "payload table"},
        {24, UINT64_MAX, "payload table"},
        {32, UINT64_MAX, "truncated"},
        {32, 64, "bytes after the end"},
        {40, 0, "digest offset"},
        {40, UINT64_MAX, "digest offset"},
        {48, 1, "reserved"},
    };
    qb_model *m = make_model(&cases[0]);
    QB_CHECK_OK(qb_model_bin_write(m, qb_test_in_folder("good.bin"), NULL));
    for (size_t i = 0; i < QB_COUNT(changes); i++) {
        bytes b = read_bytes(qb_test_in_folder("good.bin"));
        uint64_t json_crc_word = get_u64(b.data + 8);
        put_u64(b.data + changes[i].at, changes[i].value);
        if (changes[i].at == 8) /* the version is a u32, the JSON's CRC stands after it */
            put_u64(b.data + 8, (json_crc_word & ~(uint64_t)UINT32_MAX) | changes[i].value);
        expect_refused(&b, changes[i].rule);
        qb_free(b.data);
    }
    qb_model_close(m);
}

/* A scale that is no number, codes past the last column, a broken deflate stream: with CRCs that
 * fit, made by writing a model that has them. */
static void hostile_payloads_are_refused(void **state)
{
    (void)state;
    static const float bad_scales[] = {-1.0f, INFINITY, NAN};
    const char *path = qb_test_in_folder("payload.bin");
    for (size_t i = 0; i <= QB_COUNT(bad_scales); i++) {
        const case_row odd = {"gpt2", 31, QB_U4, QB_AXIS_OUT, false, false};
        qb_model *m = make_model(&odd);
        const qb_tensor_quant *q = &qb_model_tensor(m, QB_ROLE_UP, 1)->quant;
        if (i < QB_COUNT(bad_scales))
            ((float *)q->scale)[3] = bad_scales[i];
        else
            ((float *)q->fill)[3] = NAN;
        QB_CHECK_OK(qb_model_bin_write(m, path, NULL));
        bytes b = read_bytes(path);
        expect_refused(&b, i < QB_COUNT(bad_scales) ? "scale[3]" : "fill[3]");
        qb_free(b.data);
        qb_model_close(m);
    }
}

static void spare_nibbles_and_broken_streams_are_refused(void **state)
{
    (void)state;
    const case_row odd = {"gpt2", 31, QB_U4, QB_AXIS_OUT, false, false};
    qb_model *m = make_model(&odd);
    const qb_tensor *t = qb_model_tensor(m, QB_ROLE_UP, 0);
    ((uint8_t *)t->data)[2 * 16 - 1] |= 0x10; /* row 1, column 31 of 31 */
    QB_CHECK_OK(qb_model_bin_write(m, qb_test_in_folder("payload.bin"), NULL));
    bytes b = read_bytes(qb_test_in_folder("payload.bin"));
    expect_refused(&b, "row 1: found a code past the last column");
    qb_free(b.data);
    qb_model_close(m);

    /* One chunk that inflates to fewer bytes than it should; its CRC is of what is stored. */
    m = make_model(&cases[1]);
    QB_CHECK_OK(qb_model_bin_write(m, qb_test_in_folder("payload.bin"),
                                   &(qb_model_bin_options){.zlib_level = 9}));
    b = read_bytes(qb_test_in_folder("payload.bin"));
    assert_true(replace_in_json(&b, "\"shape\":[40,32]", "\"shape\":[80,32]"));
    assert_true(replace_in_json(&b, "\"bytes\":5120", "\"bytes\":10240"));
    assert_true(replace_in_json(&b, "\"vocab\":40", "\"vocab\":80"));
    fix_checksums(&b);
    expect_refused(&b, "expected those declared");
    assert_true(replace_in_json(&b, "\"chunks\":[", "\"chunks\":[1")); /* 34 becomes 134 */
    fix_checksums(&b);
    expect_refused(&b, "bytes in all");
    qb_free(b.data);
    qb_model_close(m);
}

/* Sizes that no deflate stream of that length can have are refused before anything is allocated. */
static void a_deflate_bomb_allocates_nothing(void **state)
{
    (void)state;
    qb_model *m = make_model(&cases[1]);
    QB_CHECK_OK(qb_model_bin_write(m, qb_test_in_folder("bomb.bin"),
                                   &(qb_model_bin_options){.zlib_level = 9}));
    bytes b = read_bytes(qb_test_in_folder("bomb.bin"));
    assert_true(replace_in_json(&b, "\"shape\":[40,32]", "\"shape\":[400000,32]"));
    assert_true(replace_in_json(&b, "\"bytes\":5120", "\"bytes\":51200000"));
    fix_checksums(&b);
    expect_refused(&b, "chunks: found 1, expected 49");
    assert_true(replace_in_json(&b, "\"chunk_bytes\":1048576", "\"chunk_bytes\":67108864"));
    fix_checksums(&b);
    size_t peak = qb_memory_peak_bytes();
    expect_refused(&b, "for 51200000, expected at most");
    assert_int_equal(qb_memory_peak_bytes(), peak);
    qb_free(b.data);
    qb_model_close(m);
}

/* A file of version 1 as the first writer made it, byte for byte: later readers must take it. */
static const char version_1_json[] =
    "{'architecture':{'arch':'gpt2','n_layers':1,'d_model':2,'n_heads':1,'n_kv_heads':1,'head_dim':"
    "2,'d_ff':1,"
    "'vocab':2,'context':4,'norm':'rmsnorm','norm_eps':1e-05,'act':'relu','pos':'none','softmax':'"
    "softmax1','attn_bias':false,'mlp_bias':false,'norm_bias':false,"
    "'tied_head':true,'fused_qkv':false},'name':'one','tensors':[{'name':'tok_embd','dtype':'f32','"
    "shape':[2,2],"
    "'offset':2048,'bytes':16,'stored_bytes':16,'encoding':'raw','crc32':1567524266},"
    "{'name':'h.0.norm1','dtype':'f32','shape':[2],"
    "'offset':2112,'bytes':8,'stored_bytes':8,'encoding':'raw','crc32':3733578258},"
    "{'name':'h.0.attn.q','dtype':'f32','shape':[2,2],"
    "'offset':2176,'bytes':16,'stored_bytes':16,'encoding':'raw','crc32':1579461987},"
    "{'name':'h.0.attn.k','dtype':'f32','shape':[2,2],"
    "'offset':2240,'bytes':16,'stored_bytes':16,'encoding':'raw','crc32':4055500680},"
    "{'name':'h.0.attn.v','dtype':'f32','shape':[2,2],"
    "'offset':2304,'bytes':16,'stored_bytes':16,'encoding':'raw','crc32':1020772188},"
    "{'name':'h.0.attn.o','dtype':'f32','shape':[2,2],"
    "'offset':2368,'bytes':16,'stored_bytes':16,'encoding':'raw','crc32':691749420},"
    "{'name':'h.0.norm2','dtype':'f32','shape':[2],"
    "'offset':2432,'bytes':8,'stored_bytes':8,'encoding':'raw','crc32':311387328},"
    "{'name':'h.0.mlp.up','dtype':'f32','shape':[2],"
    "'offset':2496,'bytes':8,'stored_bytes':8,'encoding':'raw','crc32':915542263},"
    "{'name':'h.0.mlp.down','dtype':'f32','shape':[2,1],"
    "'offset':2560,'bytes':8,'stored_bytes':8,'encoding':'raw','crc32':2139488317},"
    "{'name':'norm_f','dtype':'f32','shape':[2],"
    "'offset':2624,'bytes':8,'stored_bytes':8,'encoding':'raw','crc32':2763665763}]}";

static void version_1_stays_readable(void **state)
{
    (void)state;
    enum { JSON_BYTES = 1984, TOTAL = 2720, N = 10 };
    static const uint8_t n_floats[N] = {4, 2, 4, 4, 4, 4, 2, 2, 2, 2};
    static const uint8_t digest[32] = {0xaa, 0x28, 0xd7, 0x4d, 0x6c, 0xc1, 0xc8, 0x2f,
                                       0xe9, 0xdb, 0x74, 0xe2, 0x76, 0x46, 0xc3, 0x77,
                                       0x49, 0xff, 0xae, 0x9e, 0x22, 0xbd, 0xf4, 0x68,
                                       0x20, 0xc5, 0x9d, 0x0f, 0x6d, 0x9f, 0x05, 0x0d};
    uint8_t file[TOTAL] = "QBENCH";
    put_u64(file + 8, 1 | 0x87e5f51eull << 32); /* version, CRC-32 of the JSON */
    put_u64(file + 16, JSON_BYTES);
    put_u64(file + 24, N);
    put_u64(file + 32, TOTAL);
    put_u64(file + 40, TOTAL - 32);
    memset(file + 64, ' ', JSON_BYTES);
    for (size_t i = 0; version_1_json[i]; i++)
        file[64 + i] = version_1_json[i] == '\'' ? '"' : (uint8_t)version_1_json[i];
    int value = 0;
    for (size_t t = 0; t < N; t++)
        for (size_t i = 0; i < n_floats[t]; i++) {
            float x = 0.5f * (float)value++;
            memcpy(file + 2048 + 64 * t + 4 * i, &x, 4);
        }
    memcpy(file + TOTAL - 32, digest, 32);
    const char *path = qb_test_in_folder("v1.bin");
    QB_CHECK_OK(qb_file_write_whole(path, file, TOTAL));
    size_t n = 0;
    QB_CHECK_OK(qb_model_bin_verify(path, &n));
    assert_int_equal(n, N);
    qb_model *m;
    QB_CHECK_OK(open_bin(path, &m));
    assert_string_equal(m->name, "one");
    assert_int_equal(m->config.softmax, QB_SOFTMAX1);
    assert_null(m->tokenizer);
    float x[2];
    qb_tensor_rows_f32(qb_model_tensor(m, QB_ROLE_NORM_F, 0), 0, 1, x);
    assert_true(x[0] == 14.0f && x[1] == 14.5f);
    qb_model_close(m);
}

/* The folder holds `path` (or not) and nothing that was begun beside it. */
static void check_left(const char *path, bool expected)
{
    char tmp[300];
    snprintf(tmp, sizeof tmp, "%s.tmp.%ld", path, (long)getpid());
    assert_int_equal(access(tmp, F_OK), -1);
    assert_int_equal(access(path, F_OK), expected ? 0 : -1);
}

/* With sanitizers, under which a write takes ten times as long, at every 17th allocation. */
static void a_failed_write_leaves_no_file(void **state)
{
    (void)state;
#ifdef __SANITIZE_ADDRESS__
    enum { STEP = 17 };
#else
    enum { STEP = 1 };
#endif
    for (int level = 0; level < 2; level++) {
        qb_model *m = make_model(&cases[11]);
        char path[256];
        snprintf(path, sizeof path, "%s/failed%d.bin", qb_test_folder(), level);
        qb_model_bin_options options = {level, true, QB_F16, 2};
        size_t n = 1, blocks = qb_memory_live_blocks();
        for (;; n += STEP) {
            qb_memory_fail_at(n);
            qb_status status = qb_model_bin_write(m, path, &options);
            qb_memory_fail_at(0);
            assert_int_equal(qb_memory_live_blocks(), blocks);
            if (status == QB_OK) break;
            assert_int_equal(status, QB_ERR_MEMORY);
            check_left(path, false);
        }
        assert_true(n > 20);
        check_left(path, true);
        QB_CHECK_OK(qb_model_bin_verify(path, NULL));
        /* A later failure leaves the good file as it was. */
        qb_memory_fail_at(n / 2);
        assert_int_equal(qb_model_bin_write(m, path, &options), QB_ERR_MEMORY);
        qb_memory_fail_at(0);
        check_left(path, true);
        QB_CHECK_OK(qb_model_bin_verify(path, NULL));
        qb_model_close(m);
    }
    assert_int_equal(qb_model_bin_write(NULL, "x", &(qb_model_bin_options){.zlib_level = 10}),
                     QB_ERR_USAGE);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_written_comes_back),
        cmocka_unit_test(equal_models_give_equal_bytes),
        cmocka_unit_test(zlib_makes_repetitive_weights_smaller),
        cmocka_unit_test(floats_are_narrowed_on_request),
        cmocka_unit_test(values_too_large_are_refused),
        cmocka_unit_test(golden_models_come_back),
        cmocka_unit_test(every_flip_is_found),
        cmocka_unit_test(every_truncation_is_found),
        cmocka_unit_test(bytes_after_the_end_are_refused),
        cmocka_unit_test(hostile_json_is_refused),
        cmocka_unit_test(hostile_headers_are_refused),
        cmocka_unit_test(hostile_payloads_are_refused),
        cmocka_unit_test(spare_nibbles_and_broken_streams_are_refused),
        cmocka_unit_test(a_deflate_bomb_allocates_nothing),
        cmocka_unit_test(version_1_stays_readable),
        cmocka_unit_test(a_failed_write_leaves_no_file),
    };
    return cmocka_run_group_tests(tests, qb_test_make_folder, qb_test_remove_folder);
}
