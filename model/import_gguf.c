/* model/import_gguf.c - GGUF files of the gpt2, llama and qwen2 architectures as models.
 *
 * Tensors stay as they are, block formats too, and are mapped. The one exception: llama.cpp's
 * converter permutes the rows of llama's query and key weights, because its rotary kernel turns
 * neighbouring pairs: row (h, 2 i + j) there is row (h, j D/2 + i) here (j = 0, 1; i < D/2). Whole
 * rows are copied back, so block formats need no requantising. */
#include "core/memory.h"
#include "core/nearest.h"
#include "model/gguf_internal.h"
#include "model/importers_internal.h"

#include <math.h>
#include <stdlib.h>

#define MAX_SIZE ((size_t)1 << 24)

/* ---- tensor names ---- */

static const struct {
    qb_role role;
    const char *name; /* of a layer's tensors: after "blk.N." */
} names[] = {
    {QB_ROLE_TOK_EMBD, "token_embd.weight"},
    {QB_ROLE_POS_EMBD, "position_embd.weight"},
    {QB_ROLE_POS_EMBD, "pos_embd.weight"}, /* the specification's name for it */
    {QB_ROLE_NORM1, "attn_norm.weight"},
    {QB_ROLE_NORM1_B, "attn_norm.bias"},
    {QB_ROLE_QKV, "attn_qkv.weight"},
    {QB_ROLE_QKV_B, "attn_qkv.bias"},
    {QB_ROLE_Q, "attn_q.weight"},
    {QB_ROLE_Q_B, "attn_q.bias"},
    {QB_ROLE_K, "attn_k.weight"},
    {QB_ROLE_K_B, "attn_k.bias"},
    {QB_ROLE_V, "attn_v.weight"},
    {QB_ROLE_V_B, "attn_v.bias"},
    {QB_ROLE_O, "attn_output.weight"},
    {QB_ROLE_O_B, "attn_output.bias"},
    {QB_ROLE_NORM2, "ffn_norm.weight"},
    {QB_ROLE_NORM2_B, "ffn_norm.bias"},
    {QB_ROLE_GATE, "ffn_gate.weight"},
    {QB_ROLE_GATE_B, "ffn_gate.bias"},
    {QB_ROLE_UP, "ffn_up.weight"},
    {QB_ROLE_UP_B, "ffn_up.bias"},
    {QB_ROLE_DOWN, "ffn_down.weight"},
    {QB_ROLE_DOWN_B, "ffn_down.bias"},
    {QB_ROLE_NORM_F, "output_norm.weight"},
    {QB_ROLE_NORM_F_B, "output_norm.bias"},
    {QB_ROLE_HEAD, "output.weight"},
};

/* "blk.12.attn_q.weight" gives 12 and moves the text past the prefix. */
static bool split_layer(qb_gguf_text *name, size_t *layer_idx)
{
    size_t at = 4, layer = 0;
    if (name->bytes < 4 || memcmp(name->data, "blk.", 4)) return false;
    while (at < name->bytes && at < 10 && name->data[at] >= '0' && name->data[at] <= '9')
        layer = layer * 10 + (size_t)(name->data[at++] - '0');
    bool canonical = at > 4 && (at == 5 || name->data[4] != '0');
    if (!canonical || at >= name->bytes || name->data[at] != '.') return false;
    *layer_idx = layer;
    *name = (qb_gguf_text){name->data + at + 1, name->bytes - at - 1};
    return true;
}

static bool find_role(qb_gguf_text name, qb_role *role, size_t *layer_idx)
{
    *layer_idx = 0;
    bool in_layer = split_layer(&name, layer_idx);
    for (size_t i = 0; i < QB_COUNT(names); i++)
        if (qb_roles[names[i].role].per_layer == in_layer && qb_gguf_text_is(name, names[i].name)) {
            *role = names[i].role;
            return true;
        }
    return false;
}

static const qb_gguf_tensor *find_tensor(const qb_gguf *g, const char *name)
{
    for (size_t i = 0; i < g->n_tensors; i++)
        if (qb_gguf_text_is(g->tensors[i].name, name)) return &g->tensors[i];
    return NULL;
}

/* ---- configuration ---- */

typedef struct gguf_keys {
    const qb_gguf *g;
    const char *prefix; /* the architecture's name */
    bool d_ff_may_lack; /* it is 4 times d_model then */
} gguf_keys;

static const char *full_key(const gguf_keys *k, const char *name, char text[128])
{
    snprintf(text, 128, "%s.%s", k->prefix, name);
    return text;
}

static qb_status get_size(const gguf_keys *k, const char *name, bool required, size_t *out)
{
    char key[128];
    full_key(k, name, key);
    if (required && !qb_gguf_find(k->g, key))
        return QB_FAIL(QB_ERR_FORMAT, "key %s is missing: found none, expected one", key);
    return qb_gguf_get_size(k->g, key, MAX_SIZE, out);
}

static qb_status get_double(const gguf_keys *k, const char *name, bool required, double *out)
{
    char key[128];
    full_key(k, name, key);
    if (required && !qb_gguf_find(k->g, key))
        return QB_FAIL(QB_ERR_FORMAT, "key %s is missing: found none, expected one", key);
    return qb_gguf_get_double(k->g, key, out);
}

/* What other models have and these must not: the name, and the value that changes nothing (0 too,
 * which llama.cpp takes for absent). */
static qb_status check_neutral(const gguf_keys *k)
{
    static const struct {
        const char *name;
        double neutral;
    } scales[] = {
        {"attention.scale", 0},          {"attention.clamp_kqv", 0},
        {"attn_logit_softcapping", 0},   {"final_logit_softcapping", 0},
        {"attention.max_alibi_bias", 0}, {"logit_scale", 1},
        {"residual_scale", 1},           {"embedding_scale", 1},
        {"rope.scaling.attn_factor", 1},
    };
    char key[128];
    for (size_t i = 0; i < QB_COUNT(scales); i++) {
        double found = 0.0;
        QB_TRY(get_double(k, scales[i].name, false, &found));
        if (found != 0.0 && found != scales[i].neutral)
            return QB_FAIL(QB_ERR_UNSUPPORTED, "key %s: found %g, expected %s",
                           full_key(k, scales[i].name, key), found,
                           scales[i].neutral != 0.0 ? "1" : "none");
    }
    bool causal = true, parallel = false;
    QB_TRY(qb_gguf_get_bool(k->g, full_key(k, "attention.causal", key), &causal));
    if (!causal) return QB_FAIL(QB_ERR_UNSUPPORTED, "key %s: found false, expected true", key);
    QB_TRY(qb_gguf_get_bool(k->g, full_key(k, "use_parallel_residual", key), &parallel));
    if (parallel) return QB_FAIL(QB_ERR_UNSUPPORTED, "key %s: found true, expected false", key);
    return QB_OK;
}

static qb_status read_heads(const gguf_keys *k, qb_config *c)
{
    QB_TRY(get_size(k, "attention.head_count", true, &c->n_heads));
    c->n_kv_heads = c->n_heads;
    QB_TRY(get_size(k, "attention.head_count_kv", false, &c->n_kv_heads));
    size_t key_length = 0;
    QB_TRY(get_size(k, "attention.key_length", false, &key_length));
    if (!c->n_heads || (!key_length && c->d_model % c->n_heads))
        return QB_FAIL(QB_ERR_FORMAT,
                       "key %s.attention.head_count: found %zu, expected a divisor of %zu",
                       k->prefix, c->n_heads, c->d_model);
    c->head_dim = key_length ? key_length : c->d_model / c->n_heads;
    size_t value_length = c->head_dim;
    QB_TRY(get_size(k, "attention.value_length", false, &value_length));
    if (value_length != c->head_dim)
        return QB_FAIL(QB_ERR_UNSUPPORTED,
                       "key %s.attention.value_length: found %zu, expected the key length %zu",
                       k->prefix, value_length, c->head_dim);
    return QB_OK;
}

static qb_status read_sizes(const gguf_keys *k, qb_config *c)
{
    const qb_gguf_tensor *embd = find_tensor(k->g, "token_embd.weight");
    if (!embd)
        return QB_FAIL(QB_ERR_FORMAT,
                       "tensor token_embd.weight is missing: found none, expected one");
    c->vocab = embd->rows;
    QB_TRY(get_size(k, "context_length", true, &c->context));
    QB_TRY(get_size(k, "embedding_length", true, &c->d_model));
    QB_TRY(get_size(k, "block_count", true, &c->n_layers));
    c->d_ff = 4 * c->d_model;
    QB_TRY(get_size(k, "feed_forward_length", !k->d_ff_may_lack, &c->d_ff));
    QB_TRY(read_heads(k, c));
    size_t n_experts = 0;
    QB_TRY(get_size(k, "expert_count", false, &n_experts));
    if (n_experts)
        return QB_FAIL(QB_ERR_UNSUPPORTED, "key %s.expert_count: found %zu, expected 0", k->prefix,
                       n_experts);
    QB_TRY(get_size(k, "attention.sliding_window", false, &c->sliding_window));
    if (c->sliding_window && c->context > c->sliding_window) c->context = c->sliding_window;
    c->tied_head = !find_tensor(k->g, "output.weight");
    return check_neutral(k);
}

/* ---- rotary positions ---- */

static qb_status read_rope_scaling(const gguf_keys *k, qb_rope *rope)
{
    char key[128];
    qb_gguf_text type = {NULL, 0};
    QB_TRY(qb_gguf_get_text(k->g, full_key(k, "rope.scaling.type", key), &type));
    double factor = 1.0;
    QB_TRY(get_double(k, "rope.scale_linear", false, &factor)); /* the old key */
    QB_TRY(get_double(k, "rope.scaling.factor", false, &factor));
    bool none = type.data && qb_gguf_text_is(type, "none");
    if (type.data && !none && !qb_gguf_text_is(type, "linear"))
        return QB_FAIL(QB_ERR_UNSUPPORTED, "key %s: found \"%.*s\", expected none or linear", key,
                       (int)(type.bytes < 40 ? type.bytes : 40), type.data);
    if (!none && factor != 1.0 && factor != 0.0) {
        rope->kind = QB_ROPE_LINEAR;
        rope->factor = factor;
    }
    return QB_OK;
}

/* True if the rule with these parameters gives the factors by which the file divides the plain
 * frequencies. They were rounded to f32 from a computation in f32. */
static bool factors_match(const qb_rope *rope, const float *factors, size_t head_dim)
{
    double plain[128], scaled[128]; /* head_dim / 2 <= 128: qb_config_check */
    qb_rope plain_rope = *rope;
    plain_rope.kind = QB_ROPE_DEFAULT;
    qb_rope_inv_freq(&plain_rope, head_dim, plain);
    qb_rope_inv_freq(rope, head_dim, scaled);
    for (size_t i = 0; i < head_dim / 2; i++) {
        double want = plain[i] / scaled[i];
        if (!(fabs(factors[i] - want) <= 1e-5 * want)) return false;
    }
    return true;
}

/* Llama 3.1's stretching is stored as one factor a frequency; the parameters that made them are not
 * in the file. They are found again among those in use (the largest factor is the stretch itself);
 * factors that no such rule makes are refused. */
static qb_status fit_llama3(const float *factors, size_t head_dim, qb_rope *rope)
{
    qb_rope fit = *rope;
    fit.kind = QB_ROPE_LLAMA3;
    fit.factor = 1.0;
    for (size_t i = 0; i < head_dim / 2; i++)
        if (factors[i] > fit.factor) fit.factor = factors[i];
    fit.low_freq_factor = 1.0;
    fit.high_freq_factor = 4.0;
    for (fit.original_context = 16; fit.original_context <= MAX_SIZE; fit.original_context *= 2)
        if (factors_match(&fit, factors, head_dim)) {
            *rope = fit;
            return QB_OK;
        }
    return QB_FAIL(QB_ERR_UNSUPPORTED,
                   "tensor rope_freqs.weight: found other factors, expected those of the "
                   "llama3 rule with low and high frequency factors 1 and 4");
}

static qb_status read_rope_factors(const qb_gguf *g, qb_config *c)
{
    const qb_gguf_tensor *t = find_tensor(g, "rope_freqs.weight");
    if (!t) return QB_OK;
    QB_TRY(qb_config_check(c)); /* bounds head_dim */
    float factors[128];
    if (t->dtype != QB_F32 || t->rows != 1 || t->cols != c->head_dim / 2)
        return QB_FAIL(QB_ERR_FORMAT,
                       "tensor rope_freqs.weight: found %zu elements of %s, expected %zu of f32",
                       t->rows * t->cols, qb_dtype_get(t->dtype)->name, c->head_dim / 2);
    memcpy(factors, t->data, t->bytes);
    bool plain = true;
    for (size_t i = 0; i < t->cols; i++) plain = plain && factors[i] == 1.0f;
    if (plain) return QB_OK;
    if (c->rope.kind != QB_ROPE_DEFAULT)
        return QB_FAIL(QB_ERR_UNSUPPORTED, "tensor rope_freqs.weight: found together with a linear "
                                           "rope.scaling, expected one of them");
    return fit_llama3(factors, c->head_dim, &c->rope);
}

/* ---- families ---- */

static qb_status read_gpt2(const gguf_keys *k, qb_config *c)
{
    return get_double(k, "attention.layer_norm_epsilon", true, &c->norm_eps);
}

static qb_status read_llama(const gguf_keys *k, qb_config *c)
{
    QB_TRY(get_double(k, "attention.layer_norm_rms_epsilon", true, &c->norm_eps));
    size_t rotated = c->head_dim;
    QB_TRY(get_size(k, "rope.dimension_count", false, &rotated));
    if (rotated != c->head_dim)
        return QB_FAIL(QB_ERR_UNSUPPORTED,
                       "key %s.rope.dimension_count: found %zu, expected the head size %zu",
                       k->prefix, rotated, c->head_dim);
    QB_TRY(get_double(k, "rope.freq_base", false, &c->rope.theta));
    QB_TRY(read_rope_scaling(k, &c->rope));
    c->attn_bias = find_tensor(k->g, "blk.0.attn_q.bias") != NULL;
    c->qkv_bias_only = c->attn_bias && !find_tensor(k->g, "blk.0.attn_output.bias");
    c->mlp_bias = find_tensor(k->g, "blk.0.ffn_up.bias") != NULL;
    return read_rope_factors(k->g, c);
}

static const struct {
    const char *name, *arch; /* in the file and here */
    qb_status (*read)(const gguf_keys *keys, qb_config *config);
    bool d_ff_may_lack;      /* as in gguf_keys */
    bool permuted;           /* query and key rows */
    const char *default_pre; /* where tokenizer.ggml.pre is absent */
} families[] = {
    {"gpt2", "gpt2", read_gpt2, true, false, "gpt-2"},
    {"llama", "llama", read_llama, false, true, NULL},
    {"qwen2", "llama", read_llama, false, false, NULL},
};

/* Quantised files say by which version of the block formats; all are laid out alike since 2. */
static qb_status check_quantization(const qb_gguf *g)
{
    bool quantised = false;
    for (size_t i = 0; i < g->n_tensors; i++)
        quantised = quantised || qb_dtype_get(g->tensors[i].dtype)->block_elems > 1;
    size_t version = 0;
    QB_TRY(qb_gguf_get_size(g, "general.quantization_version", UINT32_MAX, &version));
    if (quantised && version != 2)
        return QB_FAIL(QB_ERR_UNSUPPORTED,
                       "key general.quantization_version: found %zu, expected 2 in a file with "
                       "quantised tensors",
                       version);
    return QB_OK;
}

static qb_status read_config(const qb_gguf *g, size_t *family, qb_config *out)
{
    qb_gguf_text name = {NULL, 0};
    QB_TRY(qb_gguf_get_text(g, "general.architecture", &name));
    if (!name.data)
        return QB_FAIL(QB_ERR_FORMAT,
                       "key general.architecture is missing: found none, expected one");
    for (size_t i = 0; i < QB_COUNT(families); i++) {
        const qb_arch *arch = qb_arch_find(families[i].arch);
        if (!qb_gguf_text_is(name, families[i].name)) continue;
        gguf_keys keys = {g, families[i].name, families[i].d_ff_may_lack};
        qb_config c = arch->defaults;
        c.arch = arch;
        QB_TRY(check_quantization(g));
        QB_TRY(read_sizes(&keys, &c));
        QB_TRY(families[i].read(&keys, &c));
        *family = i;
        *out = c;
        return qb_config_check(&c);
    }
    char known[128] = "";
    for (size_t i = 0; i < QB_COUNT(families); i++)
        qb_names_add(known, sizeof known, families[i].name);
    return QB_FAIL(QB_ERR_UNSUPPORTED,
                   "key general.architecture: found \"%.*s\", expected one of %s",
                   (int)(name.bytes < 60 ? name.bytes : 60), name.data, known);
}

/* ---- tensors ---- */

/* rows is n_heads * head_dim; checked by the caller. */
static void unpermute_rows(const uint8_t *src, size_t rows, size_t head_dim, size_t row_bytes,
                           uint8_t *dst)
{
    size_t half = head_dim / 2;
    for (size_t r = 0; r < rows; r++) {
        size_t head = r / head_dim, in_head = r % head_dim, j = in_head / half, i = in_head % half;
        memcpy(dst + r * row_bytes, src + (head * head_dim + 2 * i + j) * row_bytes, row_bytes);
    }
}

static qb_status set_permuted(qb_model *model, qb_role role, size_t layer_idx,
                              const qb_gguf_tensor *t, const char *name)
{
    bool bias = role == QB_ROLE_Q_B || role == QB_ROLE_K_B; /* (1, H D): elements, not rows */
    size_t rows = bias ? t->cols : t->rows, want_rows = 0, want_cols = 0;
    if (!qb_config_shape(&model->config, role, &want_rows, &want_cols) || t->rows != want_rows ||
        t->cols != want_cols) /* qb_model_set says so */
        return qb_model_set(model, role, layer_idx, t->dtype, t->rows, t->cols, t->data, t->bytes,
                            name);
    if (bias && qb_dtype_get(t->dtype)->block_elems > 1)
        return QB_FAIL(QB_ERR_UNSUPPORTED, "tensor %s: found %s, expected a bias in F32 or F16",
                       name, qb_dtype_get(t->dtype)->name);
    void *block;
    QB_TRY(qb_model_new_block(model, t->bytes, &block));
    unpermute_rows(t->data, rows, model->config.head_dim, t->bytes / rows, block);
    return qb_model_set(model, role, layer_idx, t->dtype, t->rows, t->cols, block, t->bytes, name);
}

static qb_status set_tensor(qb_model *model, bool permuted, const qb_gguf_tensor *t)
{
    char name[80];
    qb_role role;
    size_t layer_idx;
    snprintf(name, sizeof name, "%.*s", (int)t->name.bytes, t->name.data);
    if (qb_gguf_text_is(t->name, "rope_freqs.weight") && model->config.pos == QB_POS_ROPE)
        return QB_OK; /* in the configuration */
    if (!find_role(t->name, &role, &layer_idx))
        return QB_FAIL(QB_ERR_FORMAT, "tensor %s: found one, expected only those of %s models",
                       name, model->config.arch->name);
    if (t->n_dims > 2)
        return QB_FAIL(QB_ERR_FORMAT, "tensor %s: found %zu dimensions, expected 1 or 2", name,
                       t->n_dims);
    bool rotary =
        role == QB_ROLE_Q || role == QB_ROLE_K || role == QB_ROLE_Q_B || role == QB_ROLE_K_B;
    if (permuted && rotary) return set_permuted(model, role, layer_idx, t, name);
    return qb_model_set(model, role, layer_idx, t->dtype, t->rows, t->cols, t->data, t->bytes,
                        name);
}

static qb_status set_name(qb_model *model, const qb_gguf *g)
{
    qb_gguf_text name = {NULL, 0};
    QB_TRY(qb_gguf_get_text(g, "general.name", &name));
    if (!name.bytes || name.bytes > 255 || memchr(name.data, 0, name.bytes)) return QB_OK;
    char text[256];
    snprintf(text, sizeof text, "%.*s", (int)name.bytes, name.data);
    return qb_model_set_name(model, text);
}

static qb_status fill(qb_model *model, const qb_gguf *g, size_t family)
{
    for (size_t i = 0; i < g->n_tensors; i++)
        QB_TRY(set_tensor(model, families[family].permuted, &g->tensors[i]));
    QB_TRY(qb_model_check_complete(model));
    QB_TRY(set_name(model, g));
    return qb__gguf_tokenizer(g, families[family].default_pre, model->config.vocab,
                              &model->tokenizer);
}

qb_status qb__gguf_build(const qb_file *file, qb_model **out)
{
    qb_gguf g;
    qb_config config;
    qb_model *model = NULL;
    size_t family = 0;
    QB_TRY(qb_gguf_parse(file, &g));
    qb_status status = read_config(&g, &family, &config);
    if (status == QB_OK) status = qb_model_create(&config, file->path, "gguf", &model);
    if (status == QB_OK) status = fill(model, &g, family);
    qb_gguf_deinit(&g);
    if (status == QB_OK)
        *out = model;
    else
        qb_model_close(model);
    return status;
}

bool qb__gguf_recognise(const char *path, const qb_file *file)
{
    (void)path;
    return file && file->bytes >= 4 && !memcmp(file->data, "GGUF", 4);
}

qb_status qb__gguf_open(const char *path, qb_file *file, qb_model **out)
{
    return qb__open_built(path, file, qb__gguf_build, out);
}
