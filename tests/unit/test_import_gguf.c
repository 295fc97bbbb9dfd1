/* tests/unit/test_import_gguf.c - GGUF files made here give back the model they came from (rows of
 * llama's queries and keys permuted as llama.cpp's converter does it); every rule of the format and
 * every known attack on other parsers is refused by name. */
#include "support.h"

#include "core/memory.h"
#include "model/gguf.h"
#include "model/importers_internal.h"
#include "model/tokenizer.h"
#include "model_bytes.h"
#include "tiny_model.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- pieces of a file ---- */

static void add_text(test_bytes *b, const char *text)
{
    test_bytes_u64(b, strlen(text));
    test_bytes_add(b, text, strlen(text));
}

static void add_header(test_bytes *b, uint64_t n_tensors, uint64_t n_kvs)
{
    test_bytes_add(b, "GGUF", 4);
    test_bytes_u32(b, 3);
    test_bytes_u64(b, n_tensors);
    test_bytes_u64(b, n_kvs);
}

static void kv_u32(test_bytes *b, const char *key, uint32_t value)
{
    add_text(b, key);
    test_bytes_u32(b, QB_GGUF_U32);
    test_bytes_u32(b, value);
}

static void kv_f32(test_bytes *b, const char *key, float value)
{
    add_text(b, key);
    test_bytes_u32(b, QB_GGUF_F32);
    test_bytes_u32(b, qb_f32_bits(value));
}

static void kv_text(test_bytes *b, const char *key, const char *value)
{
    add_text(b, key);
    test_bytes_u32(b, QB_GGUF_STRING);
    add_text(b, value);
}

static void kv_array(test_bytes *b, const char *key, uint32_t type, uint64_t n)
{
    add_text(b, key);
    test_bytes_u32(b, QB_GGUF_ARRAY);
    test_bytes_u32(b, type);
    test_bytes_u64(b, n);
}

static void tensor_info(test_bytes *b, const char *name, size_t rows, size_t cols, uint32_t type,
                        uint64_t offset)
{
    add_text(b, name);
    test_bytes_u32(b, rows > 1 ? 2 : 1);
    test_bytes_u64(b, cols);
    if (rows > 1) test_bytes_u64(b, rows);
    test_bytes_u32(b, type);
    test_bytes_u64(b, offset);
}

/* ---- a whole model as a file ---- */

static const char *const role_names[QB_ROLE_COUNT] = {
    [QB_ROLE_TOK_EMBD] = "token_embd.weight",
    [QB_ROLE_POS_EMBD] = "position_embd.weight",
    [QB_ROLE_NORM1] = "attn_norm.weight",
    [QB_ROLE_NORM1_B] = "attn_norm.bias",
    [QB_ROLE_QKV] = "attn_qkv.weight",
    [QB_ROLE_QKV_B] = "attn_qkv.bias",
    [QB_ROLE_Q] = "attn_q.weight",
    [QB_ROLE_Q_B] = "attn_q.bias",
    [QB_ROLE_K] = "attn_k.weight",
    [QB_ROLE_K_B] = "attn_k.bias",
    [QB_ROLE_V] = "attn_v.weight",
    [QB_ROLE_V_B] = "attn_v.bias",
    [QB_ROLE_O] = "attn_output.weight",
    [QB_ROLE_O_B] = "attn_output.bias",
    [QB_ROLE_NORM2] = "ffn_norm.weight",
    [QB_ROLE_NORM2_B] = "ffn_norm.bias",
    [QB_ROLE_GATE] = "ffn_gate.weight",
    [QB_ROLE_GATE_B] = "ffn_gate.bias",
    [QB_ROLE_UP] = "ffn_up.weight",
    [QB_ROLE_UP_B] = "ffn_up.bias",
    [QB_ROLE_DOWN] = "ffn_down.weight",
    [QB_ROLE_DOWN_B] = "ffn_down.bias",
    [QB_ROLE_NORM_F] = "output_norm.weight",
    [QB_ROLE_NORM_F_B] = "output_norm.bias",
    [QB_ROLE_HEAD] = "output.weight",
};

static const char *file_arch(const qb_config *c)
{
    return c->qkv_bias_only ? "qwen2" : c->arch->name;
}

static bool is_permuted(const qb_config *c, qb_role role)
{
    bool rotary =
        role == QB_ROLE_Q || role == QB_ROLE_K || role == QB_ROLE_Q_B || role == QB_ROLE_K_B;
    return rotary && !strcmp(file_arch(c), "llama");
}

/* convert_hf_to_gguf.py: w.reshape(heads, 2, D / 2, ...).swapaxes(1, 2).reshape(w.shape). */
static void add_data(const qb_config *c, const qb_tensor *t, test_bytes *b)
{
    bool bias = t->rows == 1;
    size_t rows = bias ? t->cols : t->rows, width = bias ? 1 : t->cols, half = c->head_dim / 2;
    const float *w = t->data;
    if (!is_permuted(c, t->role)) {
        test_bytes_add(b, w, t->bytes);
    } else {
        for (size_t head = 0; head < rows / c->head_dim; head++)
            for (size_t i = 0; i < half; i++)
                for (size_t j = 0; j < 2; j++)
                    test_bytes_add(b, w + ((head * 2 + j) * half + i) * width, 4 * width);
    }
    test_bytes_pad(b, 32);
}

typedef struct extra { /* what a test adds to the file */
    void (*add_kvs)(test_bytes *b);
    size_t n_kvs;
    const float *rope_factors;
} extra;

static void add_config(const qb_config *c, test_bytes *b)
{
    static const char *const keys[] = {"context_length",       "embedding_length",
                                       "block_count",          "feed_forward_length",
                                       "attention.head_count", "attention.head_count_kv",
                                       "attention.key_length", "attention.value_length"};
    const size_t values[] = {c->context, c->d_model,    c->n_layers, c->d_ff,
                             c->n_heads, c->n_kv_heads, c->head_dim, c->head_dim};
    char key[80];
    kv_text(b, "general.architecture", file_arch(c));
    for (size_t i = 0; i < QB_COUNT(keys); i++) {
        snprintf(key, sizeof key, "%s.%s", file_arch(c), keys[i]);
        kv_u32(b, key, (uint32_t)values[i]);
    }
    bool llama = !strcmp(c->arch->name, "llama");
    snprintf(key, sizeof key, "%s.attention.layer_norm_%s", file_arch(c),
             llama ? "rms_epsilon" : "epsilon");
    kv_f32(b, key, (float)c->norm_eps);
    snprintf(key, sizeof key, "%s.rope.freq_base", file_arch(c));
    kv_f32(b, key, (float)c->rope.theta);
}

static test_bytes file_of(const qb_model *m, const extra *more)
{
    const qb_config *c = &m->config;
    const qb_tensor *list[256];
    size_t n = 0, offset = 0;
    for (int r = 0; r < QB_ROLE_COUNT; r++)
        for (size_t i = 0; i < (qb_roles[r].per_layer ? c->n_layers : 1); i++)
            if (qb_model_tensor(m, (qb_role)r, i)->data)
                list[n++] = qb_model_tensor(m, (qb_role)r, i);
    test_bytes b = {0};
    bool factors = more && more->rope_factors;
    add_header(&b, n + factors, 11 + (more ? more->n_kvs : 0));
    add_config(c, &b);
    if (more && more->add_kvs) more->add_kvs(&b);
    for (size_t i = 0; i < n; i++) {
        char name[64];
        const char *stem = role_names[list[i]->role];
        snprintf(name, sizeof name, qb_roles[list[i]->role].per_layer ? "blk.%zu.%s" : "%.0zu%s",
                 list[i]->layer_idx, stem);
        tensor_info(&b, name, list[i]->rows, list[i]->cols, 0, offset);
        offset = qb_round_up(offset + list[i]->bytes, 32);
    }
    if (factors) tensor_info(&b, "rope_freqs.weight", 1, c->head_dim / 2, 0, offset);
    test_bytes_pad(&b, 32);
    for (size_t i = 0; i < n; i++) add_data(c, list[i], &b);
    if (factors) test_bytes_add(&b, more->rope_factors, 2 * c->head_dim);
    return b;
}

/* f32 keys hold what f32 can. */
static qb_config config_of(const char *arch)
{
    qb_config c = qb_test_tiny_config(arch);
    c.norm_eps = (double)(float)c.norm_eps;
    return c;
}

/* ---- good files ---- */

static void models_come_back(void **state)
{
    (void)state;
    for (int variant = 0; variant < 5; variant++) {
        qb_config c = config_of(variant ? "llama" : "gpt2");
        c.qkv_bias_only = variant == 4; /* qwen2: nothing is permuted */
        c.attn_bias = c.attn_bias || variant == 2 || variant == 4;
        if (variant == 4) c.rope.theta = 5e4;
        c.tied_head = c.tied_head || variant == 3;
        qb_model *source = qb_test_tiny_model(&c, 5), *read;
        test_bytes b = file_of(source, NULL);
        QB_CHECK_OK(test_build_bytes(qb__gguf_build, b.data, b.n, &read));
        test_models_equal(source, read);
        assert_null(read->tokenizer);
        qb_model_close(read);
        qb_model_close(source);
        test_bytes_free(&b);
    }
}

static void golden_llama_comes_back(void **state)
{
    (void)state;
    const char *path = qb_test_golden("a-llama-gqa-tied");
    if (!path) QB_SKIP("no golden models");
    qb_model *source, *read;
    QB_CHECK_OK(qb_model_open(path, &source));
    source->config.norm_eps = (double)(float)source->config.norm_eps;
    test_bytes b = file_of(source, NULL);
    QB_CHECK_OK(test_build_bytes(qb__gguf_build, b.data, b.n, &read));
    test_models_equal(source, read);
    qb_model_close(read);
    qb_model_close(source);
    test_bytes_free(&b);
}

static void llama3_factors_give_the_rule(void **state)
{
    (void)state;
    qb_config c = config_of("llama");
    c.rope = (qb_rope){.kind = QB_ROPE_LLAMA3,
                       .theta = 500000.0,
                       .factor = 8.0,
                       .low_freq_factor = 1.0,
                       .high_freq_factor = 4.0,
                       .original_context = 8192};
    double plain[16], scaled[16];
    float factors[16];
    qb_rope_inv_freq(&c.rope, c.head_dim, scaled);
    c.rope.kind = QB_ROPE_DEFAULT;
    qb_rope_inv_freq(&c.rope, c.head_dim, plain);
    for (size_t i = 0; i < c.head_dim / 2; i++) factors[i] = (float)(plain[i] / scaled[i]);
    qb_model *source = qb_test_tiny_model(&c, 5), *read;
    extra more = {.rope_factors = factors};
    test_bytes b = file_of(source, &more);
    QB_CHECK_OK(test_build_bytes(qb__gguf_build, b.data, b.n, &read));
    assert_int_equal(read->config.rope.kind, QB_ROPE_LLAMA3);
    double found[16];
    qb_rope_inv_freq(&read->config.rope, c.head_dim, found);
    for (size_t i = 0; i < c.head_dim / 2; i++)
        assert_true(fabs(found[i] - scaled[i]) <= 1e-6 * scaled[i]);
    qb_model_close(read);
    test_bytes_free(&b);
    factors[1] = 3.0f; /* no rule makes this */
    b = file_of(source, &more);
    assert_int_equal(test_build_bytes(qb__gguf_build, b.data, b.n, &read), QB_ERR_UNSUPPORTED);
    assert_non_null(strstr(qb_error_message(), "rope_freqs"));
    qb_model_close(source);
    test_bytes_free(&b);
}

static void add_tokenizer(test_bytes *b)
{
    static const char *const tokens[] = {"a", "b", "ab", "<|end|>"};
    static const int32_t types[] = {1, 1, 1, 3};
    kv_text(b, "tokenizer.ggml.model", "gpt2");
    kv_array(b, "tokenizer.ggml.tokens", QB_GGUF_STRING, 4);
    for (size_t i = 0; i < 4; i++) add_text(b, tokens[i]);
    kv_array(b, "tokenizer.ggml.token_type", QB_GGUF_S32, 4);
    test_bytes_add(b, types, sizeof types);
    kv_array(b, "tokenizer.ggml.merges", QB_GGUF_STRING, 1);
    add_text(b, "a b");
    kv_u32(b, "tokenizer.ggml.eos_token_id", 3);
    kv_text(b, "general.name", "my model");
}

static void tokenizer_and_name_are_read(void **state)
{
    (void)state;
    const extra more = {.add_kvs = add_tokenizer, .n_kvs = 6};
    qb_config c = config_of("gpt2");
    qb_model *source = qb_test_tiny_model(&c, 5), *read;
    test_bytes b = file_of(source, &more);
    QB_CHECK_OK(test_build_bytes(qb__gguf_build, b.data, b.n, &read));
    assert_string_equal(read->name, "my model");
    qb_tokens ids = {0};
    QB_CHECK_OK(qb_tokenizer_encode(read->tokenizer, "abba<|end|>", 11, true, &ids));
    const int32_t want[] = {2, 1, 0, 3};
    assert_int_equal(ids.n, 4);
    assert_memory_equal(ids.ids, want, sizeof want);
    assert_int_equal(qb_tokenizer_eos(read->tokenizer), 3);
    assert_string_equal(qb_tokenizer_pre(read->tokenizer), "gpt-2"); /* gpt2's default */
    qb_tokens_deinit(&ids);
    qb_model_close(read);
    qb_model_close(source);
    test_bytes_free(&b);
    c = config_of("llama"); /* which has no default: refused, never guessed */
    source = qb_test_tiny_model(&c, 5);
    b = file_of(source, &more);
    assert_int_equal(test_build_bytes(qb__gguf_build, b.data, b.n, &read), QB_ERR_UNSUPPORTED);
    assert_non_null(strstr(qb_error_message(), "tokenizer.ggml.pre"));
    qb_model_close(source);
    test_bytes_free(&b);
}

/* SentencePiece: pieces are joined by their scores; bos and the space before the text by default.
 */
static void add_scored_tokenizer(test_bytes *b)
{
    static const char *const tokens[] = {"<unk>", "<s>", "▁", "a", "b", "▁a", "ab"};
    static const int32_t types[] = {2, 3, 1, 1, 1, 1, 1};
    static const float scores[] = {0, 0, -1, -2, -3, -5, -4};
    kv_text(b, "tokenizer.ggml.model", "llama");
    kv_array(b, "tokenizer.ggml.tokens", QB_GGUF_STRING, QB_COUNT(tokens));
    for (size_t i = 0; i < QB_COUNT(tokens); i++) add_text(b, tokens[i]);
    kv_array(b, "tokenizer.ggml.token_type", QB_GGUF_S32, QB_COUNT(types));
    test_bytes_add(b, types, sizeof types);
    kv_array(b, "tokenizer.ggml.scores", QB_GGUF_F32, QB_COUNT(scores));
    test_bytes_add(b, scores, sizeof scores);
    kv_u32(b, "tokenizer.ggml.bos_token_id", 1);
    kv_u32(b, "tokenizer.ggml.unknown_token_id", 0);
}

static void scored_tokenizers_are_read(void **state)
{
    (void)state;
    const extra more = {.add_kvs = add_scored_tokenizer, .n_kvs = 6};
    qb_config c = config_of("llama");
    qb_model *source = qb_test_tiny_model(&c, 5), *read;
    test_bytes b = file_of(source, &more);
    QB_CHECK_OK(test_build_bytes(qb__gguf_build, b.data, b.n, &read));
    assert_true(qb_tokenizer_add_bos(read->tokenizer));
    assert_int_equal(qb_tokenizer_bos(read->tokenizer), 1);
    qb_tokens ids = {0};
    QB_CHECK_OK(qb_tokenizer_encode(read->tokenizer, "ab", 2, false, &ids));
    const int32_t want[] = {2, 6}; /* " ab": "ab" scores higher than " a" */
    assert_int_equal(ids.n, QB_COUNT(want));
    assert_memory_equal(ids.ids, want, sizeof want);
    qb_tokens_deinit(&ids);
    qb_model_close(read);
    qb_model_close(source);
    test_bytes_free(&b);
}

static void linear_scaling(test_bytes *b)
{
    kv_text(b, "llama.rope.scaling.type", "linear");
    add_text(b, "llama.rope.scaling.factor");
    test_bytes_u32(b, QB_GGUF_F64); /* as some tools write it */
    const double factor = 2.5;
    test_bytes_add(b, &factor, sizeof factor);
}

static void linear_scaling_is_read(void **state)
{
    (void)state;
    const extra more = {.add_kvs = linear_scaling, .n_kvs = 2};
    qb_config c = config_of("llama");
    qb_model *source = qb_test_tiny_model(&c, 5), *read;
    test_bytes b = file_of(source, &more);
    QB_CHECK_OK(test_build_bytes(qb__gguf_build, b.data, b.n, &read));
    assert_int_equal(read->config.rope.kind, QB_ROPE_LINEAR);
    assert_true(read->config.rope.factor == 2.5);
    qb_model_close(read);
    qb_model_close(source);
    test_bytes_free(&b);
}

/* ---- broken containers ---- */

/* A file with one key and one tensor (1 x 4, f32), each part of which a case may replace. */
typedef struct container_case {
    const char *message; /* must appear */
    uint32_t version;
    uint64_t n_tensors, n_kvs;
    void (*add_kv)(test_bytes *b); /* NULL = a harmless one */
    const char *name;
    uint32_t n_dims;
    uint64_t dims[4];
    uint32_t type;
    uint64_t offset;
    size_t data_bytes;
} container_case;

static void long_key(test_bytes *b)
{
    test_bytes_u64(b, UINT64_MAX - 3);
}
static void long_text(test_bytes *b)
{
    add_text(b, "a");
    test_bytes_u32(b, QB_GGUF_STRING);
    test_bytes_u64(b, 1u << 30);
}
static void long_array(test_bytes *b)
{
    kv_array(b, "a", QB_GGUF_U8, 1u << 30);
}
static void wrapping_array(test_bytes *b)
{
    kv_array(b, "a", QB_GGUF_F64, 1ull << 61);
}
static void many_texts(test_bytes *b)
{
    kv_array(b, "a", QB_GGUF_STRING, 1ull << 60);
}
static void nested_array(test_bytes *b)
{
    kv_array(b, "a", QB_GGUF_ARRAY, 1);
}
static void wrong_type(test_bytes *b)
{
    add_text(b, "a");
    test_bytes_u32(b, 13);
}
static void wrong_item_type(test_bytes *b)
{
    kv_array(b, "a", 0xffffffff, 1);
}
static void binary_key(test_bytes *b)
{
    kv_u32(b, "a\x01", 1);
}
static void empty_key(test_bytes *b)
{
    kv_u32(b, "", 1);
}
static void zero_alignment(test_bytes *b)
{
    kv_u32(b, "general.alignment", 0);
}
static void odd_alignment(test_bytes *b)
{
    kv_u32(b, "general.alignment", 48);
}
static void huge_alignment(test_bytes *b)
{
    kv_u32(b, "general.alignment", 1u << 30);
}
static void text_alignment(test_bytes *b)
{
    kv_text(b, "general.alignment", "32");
}
static void twice(test_bytes *b)
{
    kv_u32(b, "a", 1);
    kv_u32(b, "a", 1);
}

static const char name_of_65[] =
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

/* A case is the good file with one field given again. */
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Woverride-init"
#define GOOD                                                                                       \
    .version = 3, .n_tensors = 1, .n_kvs = 1, .name = "t", .n_dims = 1, .dims = {4},               \
    .data_bytes = 16
static const container_case cases[] = {
    {GOOD, .message = NULL},
    {GOOD, .message = "version", .version = 1},
    {GOOD, .message = "version", .version = 2},
    {GOOD, .message = "big-endian", .version = 3u << 24},
    {GOOD, .message = "tensor count", .n_tensors = UINT64_MAX},
    {GOOD, .message = "tensor count", .n_tensors = UINT64_MAX / 33 + 1},
    {GOOD, .message = "expected more", .n_tensors = 60000},
    {GOOD, .message = "key count", .n_kvs = UINT64_MAX / 14 + 1},
    {GOOD, .message = "expected more", .n_kvs = 60000},
    {GOOD, .message = "truncated: key", .add_kv = long_key},
    {GOOD, .message = "truncated: string", .add_kv = long_text},
    {GOOD, .message = "expected more", .add_kv = long_array},
    {GOOD, .message = "expected more", .add_kv = wrapping_array},
    {GOOD, .message = "strings: found", .add_kv = many_texts},
    {GOOD, .message = "array of arrays", .add_kv = nested_array},
    {GOOD, .message = "value type", .add_kv = wrong_type},
    {GOOD, .message = "value type", .add_kv = wrong_item_type},
    {GOOD, .message = "expected ASCII", .add_kv = binary_key},
    {GOOD, .message = "found 0 bytes", .add_kv = empty_key},
    {GOOD, .message = "general.alignment", .add_kv = zero_alignment},
    {GOOD, .message = "general.alignment", .add_kv = odd_alignment},
    {GOOD, .message = "general.alignment", .add_kv = huge_alignment},
    {GOOD, .message = "general.alignment", .add_kv = text_alignment},
    {GOOD, .message = "key a: found twice", .add_kv = twice, .n_kvs = 2},
    {GOOD, .message = "tensor name", .name = ""},
    {GOOD, .message = "tensor name", .name = name_of_65},
    {GOOD, .message = "dimensions: found 0", .n_dims = 0},
    {GOOD, .message = "dimensions: found 5", .n_dims = 5},
    {GOOD, .message = "dimensions: found 4294967295", .n_dims = UINT32_MAX},
    {GOOD, .message = "dimension 0: found 0", .dims = {0}},
    {GOOD, .message = "dimension 1: found 0", .n_dims = 2, .dims = {4, 0}},
    {GOOD, .message = "dimension 0", .dims = {UINT64_MAX}},
    {GOOD, .message = "overflows", .n_dims = 2, .dims = {INT64_MAX, 2}},
    {GOOD, .message = "overflows", .n_dims = 4, .dims = {1ull << 32, 1ull << 32, 1, 1}},
    {GOOD, .message = "does not overflow", .dims = {INT64_MAX}},
    {GOOD, .message = "unknown (99)", .type = 99},
    {GOOD, .message = "unknown (4294967295)", .type = UINT32_MAX},
    {GOOD, .message = "Q6_K block of 256", .type = 14},
    {GOOD, .message = "IQ2_XXS (16)", .type = 16},
    {GOOD, .message = "multiple of the Q8_0 block", .type = 8},
    {GOOD, .message = "offset: found 32", .offset = 32},
    {GOOD, .message = "offset: found 4", .offset = 4},
    {GOOD, .message = "truncated: tensor t", .dims = {5}},
    {GOOD, .message = "truncated: tensor t", .dims = {1ull << 40}},
    {GOOD, .message = "truncated: tensor t", .data_bytes = 15},
};
#pragma GCC diagnostic pop

static qb_status parse_only(const qb_file *file, qb_model **out)
{
    qb_gguf g;
    qb_status status = qb_gguf_parse(file, &g);
    if (status == QB_OK) qb_gguf_deinit(&g);
    *out = NULL;
    return status;
}

static test_bytes container_of(const container_case *c)
{
    static const uint8_t data[64];
    test_bytes b = {0};
    add_header(&b, c->n_tensors, c->n_kvs);
    memcpy(b.data + 4, &c->version, 4);
    if (c->add_kv)
        c->add_kv(&b);
    else
        kv_u32(&b, "a", 1);
    add_text(&b, c->name);
    test_bytes_u32(&b, c->n_dims);
    for (uint32_t i = 0; i < c->n_dims && i < 4; i++) test_bytes_u64(&b, c->dims[i]);
    test_bytes_u32(&b, c->type);
    test_bytes_u64(&b, c->offset);
    test_bytes_pad(&b, 32);
    test_bytes_add(&b, data, c->data_bytes);
    return b;
}

static void broken_containers_are_refused_by_name(void **state)
{
    (void)state;
    for (size_t i = 0; i < QB_COUNT(cases); i++) {
        const container_case *c = &cases[i];
        test_bytes b = container_of(c);
        qb_model *none;
        size_t peak = qb_memory_peak_bytes();
        qb_status status = test_build_bytes(parse_only, b.data, b.n, &none);
        assert_true(qb_memory_peak_bytes() < peak + (10u << 20));
        test_bytes_free(&b);
        if (!c->message) {
            QB_CHECK_OK(status);
            continue;
        }
        if (status == QB_OK || !strstr(qb_error_message(), c->message))
            fail_msg("case %zu: expected \"%s\", found \"%s\"", i, c->message,
                     status ? qb_error_message() : "accepted");
        assert_int_equal(qb_status_exit_code(status), 3);
    }
}

/* ---- broken models ---- */

static void experts(test_bytes *b)
{
    kv_u32(b, "llama.expert_count", 8);
}
static void partial_rope(test_bytes *b)
{
    kv_u32(b, "llama.rope.dimension_count", 4);
}
static void scaled_scores(test_bytes *b)
{
    kv_f32(b, "llama.attention.scale", 0.3f);
}
static void scaled_logits(test_bytes *b)
{
    kv_f32(b, "llama.logit_scale", 0.5f);
}
static void capped_logits(test_bytes *b)
{
    kv_f32(b, "llama.final_logit_softcapping", 30.0f);
}
static void not_causal(test_bytes *b)
{
    add_text(b, "llama.attention.causal");
    test_bytes_u32(b, QB_GGUF_BOOL);
    test_bytes_add(b, "", 1);
}
static void parallel_residual(test_bytes *b)
{
    add_text(b, "llama.use_parallel_residual");
    test_bytes_u32(b, QB_GGUF_BOOL);
    test_bytes_add(b, "\1", 1);
}
static void neutral_values(test_bytes *b)
{
    kv_f32(b, "llama.logit_scale", 1.0f);
    kv_f32(b, "llama.residual_scale", 0.0f);
    kv_u32(b, "llama.attention.sliding_window", 9);
}
static void yarn(test_bytes *b)
{
    kv_text(b, "llama.rope.scaling.type", "yarn");
}
static void negative_experts(test_bytes *b)
{
    add_text(b, "llama.expert_count");
    test_bytes_u32(b, QB_GGUF_S32);
    test_bytes_u32(b, UINT32_MAX);
}
static void scores_as_bytes(test_bytes *b)
{
    kv_text(b, "tokenizer.ggml.model", "llama");
    kv_array(b, "tokenizer.ggml.tokens", QB_GGUF_STRING, 1);
    add_text(b, "a");
    kv_array(b, "tokenizer.ggml.scores", QB_GGUF_U8, 1);
    test_bytes_add(b, "", 1);
}
static void types_as_bytes(test_bytes *b)
{
    kv_text(b, "tokenizer.ggml.model", "llama");
    kv_array(b, "tokenizer.ggml.tokens", QB_GGUF_STRING, 1);
    add_text(b, "a");
    kv_array(b, "tokenizer.ggml.token_type", QB_GGUF_U8, 1);
    test_bytes_add(b, "", 1);
}
static void too_many_tokens(test_bytes *b)
{
    kv_text(b, "tokenizer.ggml.model", "gpt2");
    kv_array(b, "tokenizer.ggml.tokens", QB_GGUF_STRING, 100);
    for (int i = 0; i < 100; i++) add_text(b, "a");
}
static void unknown_tokenizer(test_bytes *b)
{
    kv_text(b, "tokenizer.ggml.model", "bert");
    kv_array(b, "tokenizer.ggml.tokens", QB_GGUF_STRING, 1);
    add_text(b, "a");
}

static void models_that_are_not_computed_are_refused(void **state)
{
    (void)state;
    static const struct {
        extra more;
        const char *message;
    } bad[] = {
        {{experts, 1, NULL}, "expert_count"},
        {{negative_experts, 1, NULL}, "negative"},
        {{partial_rope, 1, NULL}, "rope.dimension_count"},
        {{yarn, 1, NULL}, "yarn"},
        {{scaled_scores, 1, NULL}, "attention.scale: found 0.3"},
        {{scaled_logits, 1, NULL}, "logit_scale: found 0.5, expected 1"},
        {{capped_logits, 1, NULL}, "final_logit_softcapping"},
        {{not_causal, 1, NULL}, "attention.causal"},
        {{parallel_residual, 1, NULL}, "use_parallel_residual"},
        {{scores_as_bytes, 3, NULL}, "tokenizer.ggml.scores"},
        {{types_as_bytes, 3, NULL}, "tokenizer.ggml.token_type"},
        {{too_many_tokens, 2, NULL}, "tokenizer.ggml.tokens"},
        {{unknown_tokenizer, 2, NULL}, "bert"},
    };
    qb_config c = config_of("llama");
    qb_model *source = qb_test_tiny_model(&c, 5), *read;
    for (size_t i = 0; i < QB_COUNT(bad); i++) {
        test_bytes b = file_of(source, &bad[i].more);
        qb_status status = test_build_bytes(qb__gguf_build, b.data, b.n, &read);
        assert_int_equal(qb_status_exit_code(status), 3);
        if (!strstr(qb_error_message(), bad[i].message))
            fail_msg("expected \"%s\", found \"%s\"", bad[i].message, qb_error_message());
        test_bytes_free(&b);
    }
    test_bytes b = file_of(source, &(extra){neutral_values, 3, NULL});
    QB_CHECK_OK(test_build_bytes(qb__gguf_build, b.data, b.n, &read));
    assert_int_equal(qb_config_longest(&read->config), 9);
    assert_int_equal(read->config.context, 9);
    qb_model_close(read);
    test_bytes_free(&b);
    qb_model_close(source);
}

/* A byte of a name, a number or an architecture changed in place. */
static void replaced_names_and_numbers_are_refused(void **state)
{
    (void)state;
    static const struct {
        const char *old, *new, *message;
    } bad[] = {
        {"general.architecture", "general.architecturf", "general.architecture is missing"},
        {"llama.block_count", "llama.block_counu", "llama.block_count is missing"},
        {"token_embd.weight", "token_emba.weight", "token_embd.weight"},
        {"blk.1.attn_q.weight", "blk.0.attn_q.weight", "found twice"},
        {"blk.1.attn_q.weight", "blk.2.attn_q.weight", "layer 2"},
        {"blk.1.attn_q.weight", "blk.1.attn_x.weight", "expected only those"},
        {"blk.1.ffn_up.weight", "blk.1.ffn_dx.weight", "expected only those"},
        {"output.weight", "outpus.weight", "expected only those"},
    };
    qb_config c = config_of("llama");
    qb_model *source = qb_test_tiny_model(&c, 5), *read;
    for (size_t i = 0; i < QB_COUNT(bad); i++) {
        test_bytes b = file_of(source, NULL);
        char *at = memmem(b.data, b.n, bad[i].old, strlen(bad[i].old));
        assert_non_null(at);
        memcpy(at, bad[i].new, strlen(bad[i].new));
        qb_status status = test_build_bytes(qb__gguf_build, b.data, b.n, &read);
        assert_int_equal(qb_status_exit_code(status), 3);
        if (!strstr(qb_error_message(), bad[i].message))
            fail_msg("%s: expected \"%s\", found \"%s\"", bad[i].new, bad[i].message,
                     qb_error_message());
        test_bytes_free(&b);
    }
    qb_model_close(source);
}

static void damage_never_crashes(void **state)
{
    (void)state;
    const extra more = {.add_kvs = add_tokenizer, .n_kvs = 6};
    qb_config c = config_of("gpt2");
    qb_model *source = qb_test_tiny_model(&c, 5);
    test_bytes b = file_of(source, &more);
    while (b.n && !b.data[b.n - 1]) b.n--; /* the last padding may be cut */
    b.n = qb_round_up(b.n, 4);
    assert_true(test_damage(qb__gguf_build, b.data, b.n) > 200);
    qb_model_close(source);
    test_bytes_free(&b);
}

static void failed_allocations_leave_nothing(void **state)
{
    (void)state;
    const extra more = {.add_kvs = add_tokenizer, .n_kvs = 6};
    qb_config c = config_of("gpt2");
    qb_model *source = qb_test_tiny_model(&c, 5), *read;
    test_bytes b = file_of(source, &more);
    size_t live = qb_memory_live_blocks();
    for (size_t at = 1;; at++) {
        qb_memory_fail_at(at);
        qb_status status = test_build_bytes(qb__gguf_build, b.data, b.n, &read);
        qb_memory_fail_at(0);
        if (status == QB_OK) break;
        assert_int_equal(status, QB_ERR_MEMORY);
        assert_int_equal(qb_memory_live_blocks(), live);
    }
    qb_model_close(read);
    qb_model_close(source);
    test_bytes_free(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(models_come_back),
        cmocka_unit_test(golden_llama_comes_back),
        cmocka_unit_test(llama3_factors_give_the_rule),
        cmocka_unit_test(tokenizer_and_name_are_read),
        cmocka_unit_test(scored_tokenizers_are_read),
        cmocka_unit_test(linear_scaling_is_read),
        cmocka_unit_test(broken_containers_are_refused_by_name),
        cmocka_unit_test(models_that_are_not_computed_are_refused),
        cmocka_unit_test(replaced_names_and_numbers_are_refused),
        cmocka_unit_test(damage_never_crashes),
        cmocka_unit_test(failed_allocations_leave_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
