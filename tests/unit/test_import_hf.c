/* tests/unit/test_import_hf.c - Hugging Face folders: the golden models, configurations old and
 * new, shards, what is refused by name, and folders written by qb_model_export_hf. */
#include "support.h"

#include "core/interrupt.h"
#include "core/json.h"
#include "core/memory.h"
#include "model/export_hf.h"
#include "model/hf_internal.h"
#include "model/random_model.h"
#include "model/safetensors.h"
#include "model/tokenizer.h"
#include "model_bytes.h"
#include "tiny_model.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static void write_text(const char *path, const char *text)
{
    QB_CHECK_OK(qb_file_write_whole(path, text, strlen(text)));
}

static void refused(const char *path, const char *message)
{
    qb_model *model;
    qb_status status = qb_model_open(path, &model);
    if (status == QB_OK || !strstr(qb_error_message(), message))
        fail_msg("%s: expected \"%s\", found \"%s\"", path, message,
                 status ? qb_error_message() : "accepted");
    assert_int_equal(qb_status_exit_code(status), 3);
}

/* ---- configurations ---- */

static qb_status config_from(const char *text, qb_config *out)
{
    json_t *root;
    QB_CHECK_OK(qb_json_parse(text, strlen(text), 1 << 20, "config.json", &root));
    qb_status status = qb__hf_config_from_json(root, out);
    json_decref(root);
    return status;
}

#define LLAMA_SIZES                                                                                \
    "\"model_type\":\"llama\",\"vocab_size\":100,\"max_position_embeddings\":64,"                  \
    "\"hidden_size\":64,\"intermediate_size\":96,\"num_hidden_layers\":2,"                         \
    "\"num_attention_heads\":4"
#define GPT2_SIZES                                                                                 \
    "\"model_type\":\"gpt2\",\"vocab_size\":100,\"n_positions\":64,\"n_embd\":64,\"n_layer\":2,"   \
    "\"n_head\":4"

#define OPT_SIZES                                                                                  \
    "\"model_type\":\"opt\",\"vocab_size\":100,\"max_position_embeddings\":64,"                    \
    "\"hidden_size\":64,\"ffn_dim\":96,\"num_hidden_layers\":2,\"num_attention_heads\":4"

static void configurations_old_and_new_are_read(void **state)
{
    (void)state;
    qb_config c;
    QB_CHECK_OK(config_from("{" LLAMA_SIZES "}", &c));
    assert_int_equal(c.n_kv_heads, 4);
    assert_int_equal(c.head_dim, 16);
    assert_true(c.rope.theta == 10000.0 && c.rope.kind == QB_ROPE_DEFAULT && !c.tied_head);
    QB_CHECK_OK(config_from("{" LLAMA_SIZES ",\"rope_theta\":5e5,\"head_dim\":32,"
                            "\"num_key_value_heads\":2,\"attention_bias\":true,\"rope_scaling\":"
                            "{\"type\":\"linear\",\"factor\":2},\"tie_word_embeddings\":true}",
                            &c));
    assert_true(c.rope.kind == QB_ROPE_LINEAR && c.rope.factor == 2.0 && c.rope.theta == 5e5);
    assert_true(c.tied_head && c.attn_bias && !c.mlp_bias && c.head_dim == 32 && c.n_kv_heads == 2);
    QB_CHECK_OK(config_from("{" LLAMA_SIZES ",\"rope_parameters\":{\"rope_type\":\"llama3\","
                            "\"rope_theta\":7.0,\"factor\":8.0,\"low_freq_factor\":1,"
                            "\"high_freq_factor\":4,\"original_max_position_embeddings\":64}}",
                            &c));
    assert_true(c.rope.kind == QB_ROPE_LLAMA3 && c.rope.theta == 7.0);
    assert_int_equal(c.rope.original_context, 64);
    QB_CHECK_OK(
        config_from("{" GPT2_SIZES ",\"n_inner\":null,\"activation_function\":\"relu\"}", &c));
    assert_true(c.act == QB_ACT_RELU && c.d_ff == 256 && c.tied_head && c.norm_eps == 1e-5);
    QB_CHECK_OK(config_from("{" GPT2_SIZES ",\"quantization_config\":null}", &c));
    QB_CHECK_OK(config_from("{\"model_type\":\"gpt2\",\"vocab_size\":9,\"hidden_size\":8,"
                            "\"num_attention_heads\":2,\"num_hidden_layers\":3,"
                            "\"max_position_embeddings\":5}",
                            &c));
    assert_true(c.d_model == 8 && c.n_heads == 2 && c.n_layers == 3 && c.context == 5);
    QB_CHECK_OK(config_from("{" OPT_SIZES "}", &c));
    assert_true(c.act == QB_ACT_RELU && c.tied_head && c.attn_bias && c.mlp_bias && !c.fused_qkv);
    QB_CHECK_OK(config_from("{" OPT_SIZES ",\"enable_bias\":false}", &c));
    assert_true(!c.attn_bias && !c.mlp_bias && c.norm_bias);
}

/* A family that is Llama but for a key or two. */
#define SIZES_OF(type)                                                                             \
    "{\"model_type\":\"" type "\",\"vocab_size\":100,\"max_position_embeddings\":64,"              \
    "\"hidden_size\":64,\"intermediate_size\":96,\"num_hidden_layers\":2,"                         \
    "\"num_attention_heads\":4"

static void sliding_windows_shorten_the_context(void **state)
{
    (void)state;
    qb_config c;
    QB_CHECK_OK(config_from(SIZES_OF("mistral") ",\"sliding_window\":null}", &c));
    assert_true(!c.sliding_window && c.context == 64 && !c.attn_bias);
    QB_CHECK_OK(config_from(SIZES_OF("mistral") "}", &c)); /* the class's default */
    assert_true(c.sliding_window == 4096 && c.context == 64);
    QB_CHECK_OK(config_from(SIZES_OF("mistral") ",\"sliding_window\":16}", &c));
    assert_true(c.sliding_window == 16 && c.context == 16 && qb_config_longest(&c) == 16);
    QB_CHECK_OK(config_from(SIZES_OF("qwen2") ",\"sliding_window\":16}", &c));
    assert_true(!c.sliding_window && c.context == 64 && c.attn_bias && c.qkv_bias_only);
    QB_CHECK_OK(
        config_from(SIZES_OF("qwen2") ",\"sliding_window\":16,\"use_sliding_window\":true}", &c));
    assert_true(c.sliding_window == 16 && c.context == 16);
}

static void yarn_settings_are_completed(void **state)
{
    (void)state;
    qb_config c;
    QB_CHECK_OK(config_from("{" LLAMA_SIZES ",\"rope_scaling\":{\"type\":\"yarn\",\"factor\":4,"
                            "\"original_max_position_embeddings\":16}}",
                            &c));
    assert_true(c.rope.kind == QB_ROPE_YARN && c.rope.original_context == 16);
    assert_true(c.rope.beta_fast == 32 && c.rope.beta_slow == 1 && c.rope.truncate);
    assert_true(fabs(c.rope.attention_factor - (0.1 * log(4) + 1)) < 1e-15);
    QB_CHECK_OK(config_from("{" LLAMA_SIZES ",\"rope_parameters\":{\"rope_type\":\"yarn\","
                            "\"factor\":4,\"mscale\":0.7,\"mscale_all_dim\":1.2,"
                            "\"beta_fast\":16,\"truncate\":false}}",
                            &c));
    assert_true(c.rope.original_context == 64 && c.rope.beta_fast == 16 && !c.rope.truncate);
    assert_true(fabs(c.rope.attention_factor - (0.07 * log(4) + 1) / (0.12 * log(4) + 1)) < 1e-15);
    QB_CHECK_OK(config_from("{" LLAMA_SIZES ",\"original_max_position_embeddings\":32,"
                            "\"rope_parameters\":{\"rope_type\":\"yarn\",\"factor\":4,"
                            "\"original_max_position_embeddings\":16,\"attention_factor\":1.5}}",
                            &c));
    assert_true(c.rope.original_context == 32 && c.rope.attention_factor == 1.5);
    /* rope_scaling stands before rope_parameters, as in transformers */
    QB_CHECK_OK(config_from("{" LLAMA_SIZES ",\"rope_theta\":7,\"rope_scaling\":{\"type\":"
                            "\"linear\",\"factor\":2},\"rope_parameters\":{\"rope_type\":"
                            "\"default\",\"rope_theta\":9}}",
                            &c));
    assert_true(c.rope.kind == QB_ROPE_LINEAR && c.rope.theta == 7);
}

static void configurations_are_refused_by_name(void **state)
{
    (void)state;
    static const struct {
        const char *text, *message;
    } bad[] = {
        {"[]", "object"},
        {"{}", "model_type"},
        {"{\"name\":\"bb-1l\",\"optimizer\":\"adamw\"}", "best.bin"},
        {"{\"model_type\":\"mamba\"}", "mamba"},
        {"{\"model_type\":7}", "model_type"},
        {"{\"model_type\":\"llama\"}", "vocab_size"},
        {"{" LLAMA_SIZES ",\"hidden_act\":\"gelu\"}", "gelu"},
        {"{" GPT2_SIZES ",\"activation_function\":\"gelu\"}", "\"gelu\""},
        {"{" GPT2_SIZES ",\"scale_attn_weights\":false}", "scale_attn_weights"},
        {"{" GPT2_SIZES ",\"scale_attn_by_inverse_layer_idx\":true}", "inverse_layer"},
        {"{" GPT2_SIZES ",\"layer_norm_epsilon\":-1}", "layer_norm_epsilon"},
        {"{" GPT2_SIZES ",\"n_inner\":-4}", "n_inner"},
        {"{" GPT2_SIZES ",\"quantization_config\":{}}", "quantization_config"},
        {"{" LLAMA_SIZES ",\"rope_scaling\":{\"type\":\"dynamic\",\"factor\":2}}", "dynamic"},
        {"{" LLAMA_SIZES ",\"rope_scaling\":{\"type\":\"yarn\"}}", "factor"},
        {"{" LLAMA_SIZES ",\"partial_rotary_factor\":0.5}", "partial_rotary"},
        {"{" LLAMA_SIZES ",\"rope_parameters\":{\"full_attention\":{\"rope_theta\":5}}}",
         "full_attention"},
        {"{" LLAMA_SIZES ",\"is_causal\":false}", "is_causal"},
        {"{" GPT2_SIZES ",\"num_attention_heads\":2}", "num_attention_heads"},
        {"{" OPT_SIZES ",\"do_layer_norm_before\":false}", "do_layer_norm_before"},
        {"{" OPT_SIZES ",\"word_embed_proj_dim\":32}", "word_embed_proj_dim"},
        {"{" OPT_SIZES ",\"_remove_final_layer_norm\":true}", "_remove_final_layer_norm"},
        {"{" OPT_SIZES ",\"layer_norm_elementwise_affine\":false}", "elementwise_affine"},
        {"{" OPT_SIZES ",\"activation_function\":\"gelu\"}", "\"gelu\""},
        {"{" LLAMA_SIZES ",\"rope_scaling\":{\"type\":\"linear\"}}", "factor"},
        {"{" LLAMA_SIZES ",\"rope_scaling\":7}", "rope_scaling"},
        {"{" LLAMA_SIZES ",\"rope_parameters\":{\"rope_type\":\"llama3\",\"factor\":8}}",
         "low_freq_factor"},
        {"{" LLAMA_SIZES ",\"rope_parameters\":{\"partial_rotary_factor\":0.5}}", "partial_rotary"},
        {"{" LLAMA_SIZES ",\"num_key_value_heads\":3}", "n_kv_heads"},
        {"{" LLAMA_SIZES ",\"num_key_value_heads\":0}", "num_key_value_heads"},
        {"{" LLAMA_SIZES ",\"head_dim\":100000}", "head_dim"},
        {"{\"model_type\":\"qbench\",\"qbench\":{\"arch\":\"gpt2\"}}", "n_layers"},
    };
    for (size_t i = 0; i < QB_COUNT(bad); i++) {
        qb_config c;
        qb_status status = config_from(bad[i].text, &c);
        if (status == QB_OK || !strstr(qb_error_message(), bad[i].message))
            fail_msg("%s: expected \"%s\", found \"%s\"", bad[i].text, bad[i].message,
                     status ? qb_error_message() : "accepted");
        assert_int_equal(qb_status_exit_code(status), 3);
    }
}

/* ---- golden models ---- */

static void golden_models_load_as_stored(void **state)
{
    (void)state;
    static const char *const models[] = {"a-gpt2", "a-llama-mha", "a-llama-gqa-tied",
                                         "a-llama3-scaled"};
    if (!qb_test_golden("a-gpt2")) QB_SKIP("no golden models");
    for (size_t i = 0; i < QB_COUNT(models); i++) {
        qb_model *m;
        QB_CHECK_OK(qb_model_open(qb_test_golden(models[i]), &m));
        char path[1024];
        snprintf(path, sizeof path, "%s/model.safetensors", m->path);
        bool gpt2 = !strcmp(m->config.arch->name, "gpt2");
        size_t n;
        float *want = qb_test_safetensor(
            path, gpt2 ? "transformer.h.1.mlp.c_fc.weight" : "model.layers.1.mlp.up_proj.weight",
            "F32", &n);
        const qb_tensor *t = qb_model_tensor(m, QB_ROLE_UP, 1);
        assert_int_equal(t->rows, m->config.d_ff);
        assert_int_equal(t->rows * t->cols, n);
        float *got = malloc(n * sizeof *got);
        qb_tensor_rows_f32(t, 0, t->rows, got);
        for (size_t r = 0; r < t->rows; r++)
            for (size_t c = 0; c < t->cols; c++)
                assert_true(got[r * t->cols + c] ==
                            (gpt2 ? want[c * t->rows + r] : want[r * t->cols + c]));
        free(got);
        qb_free(want);
        qb_model_close(m);
    }
}

/* ---- written folders ---- */

static void written_folders_give_the_same_model(void **state)
{
    (void)state;
    for (int variant = 0; variant < 12; variant++) {
        qb_config c = qb_test_tiny_config(variant < 3 ? "gpt2" : variant == 11 ? "opt" : "llama");
        const char *foreign = variant == 0 || variant == 3 || variant == 11 ? c.arch->name : NULL;
        if (variant == 1) c.softmax = QB_SOFTMAX1;
        if (variant == 2) {
            c.norm = QB_NORM_RMSNORM_SINGLE;
            c.norm_bias = c.attn_bias = c.mlp_bias = false;
        }
        if (variant == 3)
            c.rope = (qb_rope){.kind = QB_ROPE_LLAMA3,
                               .theta = 1e4,
                               .factor = 8,
                               .low_freq_factor = 1,
                               .high_freq_factor = 4,
                               .original_context = 64};
        if (variant == 4) c.softmax = QB_SOFTMAX_RELU;
        if (variant == 5) c.softmax = QB_SOFTMAX_CLIPPED;
        if (variant == 6) {
            c.softmax = QB_SOFTMAX_SINK;
            c.attn_gate = true;
        }
        if (variant == 7) c.free_prefix = 3;
        if (variant == 8) c.attn_bias = c.qkv_bias_only = true, foreign = "qwen2";
        if (variant == 9) c.sliding_window = c.context, foreign = "mistral";
        if (variant == 10) c.rope.kind = QB_ROPE_YARN, c.rope.factor = 3, foreign = "llama";
        qb_model *source = qb_test_tiny_model(&c, 9), *read;
        QB_CHECK_OK(qb_model_export_hf(source, qb_test_in_folder("out")));
        QB_CHECK_OK(qb_model_open(qb_test_in_folder("out"), &read));
        test_models_equal(source, read);
        assert_string_equal(read->name, source->name);
        qb_model_close(read);
        QB_CHECK_OK(qb_model_open(qb_test_in_folder("out/model.safetensors"), &read));
        assert_string_equal(read->format, "safetensors");
        qb_model_close(read);
        json_t *config;
        QB_CHECK_OK(qb_json_read_file(qb_test_in_folder("out/config.json"), 1 << 20, &config));
        assert_string_equal(json_string_value(json_object_get(config, "model_type")),
                            foreign ? foreign : "qbench");
        json_decref(config);
        qb_model_close(source);
    }
}

/* safetensors has no blocks: a tensor that holds some is written as the f32 that they stand for. */
static void tensors_in_blocks_are_widened(void **state)
{
    (void)state;
    enum { ROWS = 61, COLS = 64, BLOCK_BYTES = 34 };
    qb_config c = qb_test_tiny_config("llama");
    c.n_heads = 2, c.n_kv_heads = 1, c.head_dim = 32, c.d_model = COLS;
    qb_model *source = qb_test_tiny_model(&c, 9), *read;
    static uint8_t blocks[ROWS * COLS / 32 * BLOCK_BYTES];
    static float want[ROWS * COLS];
    for (size_t i = 0; i < sizeof blocks; i++) blocks[i] = (uint8_t)(i * 7);
    for (size_t i = 0; i < sizeof blocks; i += BLOCK_BYTES) blocks[i + 1] = 0x38; /* about 0.5 */
    qb_dtype_to_f32(QB_Q8_0, blocks, ROWS * COLS, want);
    qb_tensor *t = (qb_tensor *)qb_model_tensor(source, QB_ROLE_TOK_EMBD, 0);
    assert_true(t->rows == ROWS && t->cols == COLS);
    t->dtype = QB_Q8_0;
    t->data = blocks;
    t->bytes = sizeof blocks;
    QB_CHECK_OK(qb_model_export_hf(source, qb_test_in_folder("blocks")));
    QB_CHECK_OK(qb_model_open(qb_test_in_folder("blocks"), &read));
    const qb_tensor *widened = qb_model_tensor(read, QB_ROLE_TOK_EMBD, 0);
    assert_int_equal(widened->dtype, QB_F32);
    assert_memory_equal(widened->data, want, sizeof want);
    qb_model_close(read);
    qb_model_close(source);
}

static void narrow_tensors_and_tokenizers_travel(void **state)
{
    (void)state;
    qb_model *source, *read;
    QB_CHECK_OK(qb_random_model("gpt2-60m", 7, NULL, &source));
    qb_model *late = NULL;
    qb_interrupt_set(true);
    assert_int_equal(qb_random_model("gpt2-60m", 7, NULL, &late), QB_ERR_INTERRUPTED);
    assert_int_equal(qb_model_export_hf(source, qb_test_in_folder("late")), QB_ERR_INTERRUPTED);
    qb_tokens none = {0};
    assert_int_equal(qb_tokenizer_encode(source->tokenizer, "a b", 3, true, &none),
                     QB_ERR_INTERRUPTED);
    qb_tokens_deinit(&none);
    qb_interrupt_set(false);
    assert_null(late);
    assert_int_equal(access(qb_test_in_folder("late"), F_OK), -1);
    QB_CHECK_OK(qb_model_export_hf(source, qb_test_in_folder("random")));
    QB_CHECK_OK(qb_model_open(qb_test_in_folder("random"), &read));
    test_models_equal(source, read);
    assert_int_equal(qb_model_tensor(read, QB_ROLE_DOWN, 2)->dtype, QB_BF16);
    qb_tokens ids = {0};
    QB_CHECK_OK(qb_tokenizer_encode(read->tokenizer, "a \xff", 3, true, &ids));
    const int32_t want[] = {'a', ' ', 0xff};
    assert_int_equal(ids.n, 3);
    assert_memory_equal(ids.ids, want, sizeof want);
    qb_tokens_deinit(&ids);
    qb_model_close(read);
    qb_model_close(source);
}

static void unused_rows_of_positions_are_kept(void **state)
{
    (void)state;
    qb_config c = qb_test_tiny_config("opt");
    qb_model *source = qb_test_tiny_model(&c, 9);
    QB_CHECK_OK(qb_model_export_hf(source, qb_test_in_folder("opt")));
    size_t n, width = c.d_model;
    float *stored = qb_test_safetensor(qb_test_in_folder("opt/model.safetensors"),
                                       "model.decoder.embed_positions.weight", "F32", &n);
    assert_int_equal(n, (c.context + 2) * width);
    for (size_t i = 0; i < 2 * width; i++) assert_true(stored[i] == 0.0f);
    assert_memory_equal(stored + 2 * width, qb_model_tensor(source, QB_ROLE_POS_EMBD, 0)->data,
                        c.context * width * sizeof *stored);
    qb_free(stored);
    qb_model_close(source);
}

/* ---- names, shards, damage ---- */

/* The tiny model's tensors as entries; names without the prefix, as the first GPT2 files had. */
typedef struct entry_list {
    qb_st_entry entries[128];
    char names[128][96];
    float *turned[128];
    size_t n;
} entry_list;

static void add_entry(entry_list *l, const qb_model *m, const qb_tensor *t)
{
    qb__hf_form form;
    size_t i = l->n++;
    assert_true(qb__hf_format_name(m->config.arch, t->role, t->layer_idx, l->names[i], 96, &form));
    const char *name = strncmp(l->names[i], "transformer.", 12) ? l->names[i] : l->names[i] + 12;
    l->entries[i] = (qb_st_entry){name, QB_F32, 2, {t->rows, t->cols}, t->data};
    if (t->rows == 1) l->entries[i] = (qb_st_entry){name, QB_F32, 1, {t->cols}, t->data};
    l->turned[i] = NULL;
    if (!form.transposed) return;
    l->turned[i] = malloc(t->bytes);
    const float *w = t->data;
    for (size_t r = 0; r < t->rows; r++)
        for (size_t c = 0; c < t->cols; c++) l->turned[i][c * t->rows + r] = w[r * t->cols + c];
    l->entries[i] = (qb_st_entry){name, QB_F32, 2, {t->cols, t->rows}, l->turned[i]};
}

static void list_entries(const qb_model *m, entry_list *l)
{
    l->n = 0;
    for (int r = 0; r < QB_ROLE_COUNT; r++)
        for (size_t i = 0; i < (qb_roles[r].per_layer ? m->config.n_layers : 1); i++)
            if (qb_model_tensor(m, (qb_role)r, i)->data)
                add_entry(l, m, qb_model_tensor(m, (qb_role)r, i));
}

static void free_entries(entry_list *l)
{
    for (size_t i = 0; i < l->n; i++) free(l->turned[i]);
}

static void start_folder(const qb_model *m, const char *name)
{
    char path[300];
    json_t *config;
    bool foreign;
    QB_CHECK_OK(qb__hf_config_to_json(&m->config, &config, &foreign));
    mkdir(qb_test_in_folder(name), 0777);
    char *text = json_dumps(config, 0);
    snprintf(path, sizeof path, "%s/config.json", qb_test_in_folder(name));
    write_text(path, text);
    qb_library_free(text);
    json_decref(config);
}

static void old_names_extra_buffers_and_heads(void **state)
{
    (void)state;
    qb_config c = qb_test_tiny_config("gpt2");
    qb_model *source = qb_test_tiny_model(&c, 9), *read;
    static entry_list l;
    list_entries(source, &l);
    start_folder(source, "old");
    char path[256];
    snprintf(path, sizeof path, "%s", qb_test_in_folder("old/model.safetensors"));
    const float mask[4] = {1, 0, 1, 1};
    size_t n = l.n;
    l.entries[l.n++] = (qb_st_entry){"h.0.attn.bias", QB_F32, 2, {2, 2}, mask};
    /* A head that repeats the embedding is the tied head. */
    const qb_tensor *embd = qb_model_tensor(source, QB_ROLE_TOK_EMBD, 0);
    l.entries[l.n++] =
        (qb_st_entry){"lm_head.weight", QB_F32, 2, {embd->rows, embd->cols}, embd->data};
    QB_CHECK_OK(qb_safetensors_write(path, l.entries, l.n, NULL));
    QB_CHECK_OK(qb_model_open(qb_test_in_folder("old"), &read));
    test_models_equal(source, read);
    qb_model_close(read);
    float *other = calloc(embd->rows * embd->cols, sizeof *other);
    l.entries[l.n - 1].data = other;
    QB_CHECK_OK(qb_safetensors_write(path, l.entries, l.n, NULL));
    refused(qb_test_in_folder("old"), "lm_head.weight");
    l.entries[n] = (qb_st_entry){"h.0.attn.extra", QB_F32, 1, {4}, mask};
    QB_CHECK_OK(qb_safetensors_write(path, l.entries, n + 1, NULL));
    refused(qb_test_in_folder("old"), "h.0.attn.extra: found one, expected only those");
    l.entries[n] = (qb_st_entry){"h.7.ln_1.bias", QB_F32, 1, {c.d_model}, embd->data};
    QB_CHECK_OK(qb_safetensors_write(path, l.entries, n + 1, NULL));
    refused(qb_test_in_folder("old"), "layer 7");
    QB_CHECK_OK(qb_safetensors_write(path, l.entries, n - 1, NULL));
    refused(qb_test_in_folder("old"), "is missing");
    l.entries[0].dtype = QB_S32;
    QB_CHECK_OK(qb_safetensors_write(path, l.entries, n, NULL));
    refused(qb_test_in_folder("old"), "found dtype I32");
    free(other);
    l.n = n;
    free_entries(&l);
    qb_model_close(source);
}

static void shards_are_joined_and_their_names_checked(void **state)
{
    (void)state;
    static const char *const bad_names[] = {"../x.safetensors", "/etc/passwd", "", "..",
                                            "a/b.safetensors"};
    qb_config c = qb_test_tiny_config("llama");
    qb_model *source = qb_test_tiny_model(&c, 9), *read;
    static entry_list l;
    list_entries(source, &l);
    start_folder(source, "shards");
    size_t half = l.n / 2;
    QB_CHECK_OK(
        qb_safetensors_write(qb_test_in_folder("shards/a.safetensors"), l.entries, half, NULL));
    QB_CHECK_OK(qb_safetensors_write(qb_test_in_folder("shards/b.safetensors"), l.entries + half,
                                     l.n - half, NULL));
    char index[256];
    snprintf(index, sizeof index, "%s", qb_test_in_folder("shards/model.safetensors.index.json"));
    json_t *map = json_object(), *root = json_pack("{s:o}", "weight_map", map);
    for (size_t i = 0; i < l.n; i++)
        json_object_set_new(map, l.entries[i].name,
                            json_string(i < half ? "a.safetensors" : "b.safetensors"));
    json_dump_file(root, index, 0);
    QB_CHECK_OK(qb_model_open(qb_test_in_folder("shards"), &read));
    test_models_equal(source, read);
    assert_int_equal(read->n_files, 2);
    qb_model_close(read);
    for (size_t i = 0; i < QB_COUNT(bad_names); i++) {
        json_object_set_new(map, l.entries[0].name, json_string(bad_names[i]));
        json_dump_file(root, index, 0);
        refused(qb_test_in_folder("shards"), "weight_map");
    }
    json_object_set_new(map, l.entries[0].name, json_string("c.safetensors"));
    json_dump_file(root, index, 0);
    refused(qb_test_in_folder("shards"), "c.safetensors");
    json_decref(root);
    write_text(index, "{\"weight_map\": 3}");
    refused(qb_test_in_folder("shards"), "weight_map");
    free_entries(&l);
    qb_model_close(source);
}

static void files_that_are_no_models_are_named(void **state)
{
    (void)state;
    write_text(qb_test_in_folder("pointer"),
               "version https://git-lfs.github.com/spec/v1\noid sha256:00\n");
    refused(qb_test_in_folder("pointer"), "git-LFS pointer");
    write_text(qb_test_in_folder("weights.safetensors"), "PK\003\004xxxxxxxxxxxxxxxx");
    refused(qb_test_in_folder("weights.safetensors"), "zip");
    write_text(qb_test_in_folder("noise"), "\x01\x02 noise noise");
    refused(qb_test_in_folder("noise"), "found bytes 01 02 20");
    write_text(qb_test_in_folder("empty"), "");
    refused(qb_test_in_folder("empty"), "empty");
    write_text(qb_test_in_folder("cut.safetensors"), "\x08");
    refused(qb_test_in_folder("cut.safetensors"), "header too small");
    mkdir(qb_test_in_folder("nothing"), 0777);
    refused(qb_test_in_folder("nothing"), "config.json");
    mkfifo(qb_test_in_folder("fifo"), 0666);
    refused(qb_test_in_folder("fifo"), "FIFO");
    refused("/dev/zero", "device");
    refused(qb_test_in_folder("absent"), "No such file");
    qb_config c = qb_test_tiny_config("gpt2");
    qb_model *source = qb_test_tiny_model(&c, 9);
    start_folder(source, "bare");
    refused(qb_test_in_folder("bare"), "no weights");
    write_text(qb_test_in_folder("bare/config.json"), "{\"model_type\":");
    refused(qb_test_in_folder("bare"), "JSON");
    qb_model_close(source);
}

static void failed_allocations_leave_nothing(void **state)
{
    (void)state;
    qb_config c = qb_test_tiny_config("gpt2");
    c.n_layers = 1;
    qb_model *source = qb_test_tiny_model(&c, 9), *read;
    size_t live = qb_memory_live_blocks();
    for (size_t at = 1;; at++) {
        qb_memory_fail_at(at);
        qb_status status = qb_model_export_hf(source, qb_test_in_folder("failing"));
        if (status == QB_OK) status = qb_model_open(qb_test_in_folder("failing"), &read);
        qb_memory_fail_at(0);
        if (status == QB_OK) break;
        if (status != QB_ERR_MEMORY) fail_msg("allocation %zu: %s", at, qb_error_message());
        assert_int_equal(qb_memory_live_blocks(), live);
    }
    test_models_equal(source, read);
    qb_model_close(read);
    qb_model_close(source);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(configurations_old_and_new_are_read),
        cmocka_unit_test(sliding_windows_shorten_the_context),
        cmocka_unit_test(yarn_settings_are_completed),
        cmocka_unit_test(configurations_are_refused_by_name),
        cmocka_unit_test(golden_models_load_as_stored),
        cmocka_unit_test(written_folders_give_the_same_model),
        cmocka_unit_test(unused_rows_of_positions_are_kept),
        cmocka_unit_test(narrow_tensors_and_tokenizers_travel),
        cmocka_unit_test(tensors_in_blocks_are_widened),
        cmocka_unit_test(old_names_extra_buffers_and_heads),
        cmocka_unit_test(shards_are_joined_and_their_names_checked),
        cmocka_unit_test(files_that_are_no_models_are_named),
        cmocka_unit_test(failed_allocations_leave_nothing),
    };
    return cmocka_run_group_tests(tests, qb_test_make_folder, qb_test_remove_folder);
}
