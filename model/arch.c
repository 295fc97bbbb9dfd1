/* model/arch.c - the architecture table, tensor roles and the configuration's rules. */
#include "core/json.h"
#include "core/memory.h"
#include "core/nearest.h"
#include "model/arch_internal.h"

#include <string.h>

const char *const qb_norm_names[QB_NORM_COUNT] = {"layernorm", "rmsnorm", "rmsnorm_single"};
const char *const qb_act_names[QB_ACT_COUNT] = {"gelu_tanh", "relu", "swiglu"};
const char *const qb_pos_names[QB_POS_COUNT] = {"learned", "rope", "none"};
const char *const qb_softmax_names[QB_SOFTMAX_COUNT] = {"softmax", "softmax1", "relu", "clipped",
                                                        "sink"};

/* Of a clipped softmax without others (arXiv:2306.12929, table 1). */
#define SOFTMAX_DEFAULTS .softmax = QB_SOFTMAX, .softmax_gamma = -0.025, .softmax_zeta = 1.0

/* The rope fields that a kind does not use keep harmless values, so that every row is complete. */
#define ROPE_DEFAULTS                                                                              \
    {                                                                                              \
        .kind = QB_ROPE_DEFAULT, .theta = 10000.0, .factor = 1.0, .low_freq_factor = 1.0,          \
        .high_freq_factor = 4.0, .original_context = 8192, .beta_fast = 32.0, .beta_slow = 1.0,    \
        .attention_factor = 1.0, .truncate = true                                                  \
    }

const qb_arch qb_archs[] = {
    {.name = "gpt2",
     .defaults = {.norm = QB_NORM_LAYERNORM,
                  .act = QB_ACT_GELU_TANH,
                  .pos = QB_POS_LEARNED,
                  SOFTMAX_DEFAULTS,
                  .attn_bias = true,
                  .mlp_bias = true,
                  .norm_bias = true,
                  .tied_head = true,
                  .fused_qkv = true,
                  .norm_eps = 1e-5,
                  .rope = ROPE_DEFAULTS},
     .source = "Radford et al. 2019"},
    {.name = "llama",
     .defaults = {.norm = QB_NORM_RMSNORM,
                  .act = QB_ACT_SWIGLU,
                  .pos = QB_POS_ROPE,
                  SOFTMAX_DEFAULTS,
                  .norm_eps = 1e-6,
                  .rope = ROPE_DEFAULTS},
     .source = "Touvron et al. 2023, arXiv:2302.13971"},
    {.name = "opt",
     .defaults = {.norm = QB_NORM_LAYERNORM,
                  .act = QB_ACT_RELU,
                  .pos = QB_POS_LEARNED,
                  SOFTMAX_DEFAULTS,
                  .attn_bias = true,
                  .mlp_bias = true,
                  .norm_bias = true,
                  .tied_head = true,
                  .norm_eps = 1e-5,
                  .rope = ROPE_DEFAULTS},
     .source = "Zhang et al. 2022, arXiv:2205.01068"},
    {0},
};

const qb_arch *qb_arch_find(const char *name)
{
    for (const qb_arch *arch = qb_archs; arch->name; arch++)
        if (!strcmp(arch->name, name)) return arch;
    return NULL;
}

/* clang-format off */
const qb_role_info qb_roles[QB_ROLE_COUNT] = {
    /* name, per layer, attention, linear, norm, residual */
    [QB_ROLE_TOK_EMBD]    = {"tok_embd",              0, 0, 0, 0,              QB_RESIDUAL_COLS},
    [QB_ROLE_POS_EMBD]    = {"pos_embd",              0, 0, 0, 0,              QB_RESIDUAL_COLS},
    [QB_ROLE_NORM1]       = {"h.%zu.norm1",           1, 1, 0, 0,              QB_RESIDUAL_NONE},
    [QB_ROLE_NORM1_B]     = {"h.%zu.norm1.bias",      1, 1, 0, 0,              QB_RESIDUAL_NONE},
    [QB_ROLE_QKV]         = {"h.%zu.attn.qkv",        1, 1, 1, QB_ROLE_NORM1,  QB_RESIDUAL_COLS},
    [QB_ROLE_QKV_B]       = {"h.%zu.attn.qkv.bias",   1, 1, 0, 0,              QB_RESIDUAL_NONE},
    [QB_ROLE_Q]           = {"h.%zu.attn.q",          1, 1, 1, QB_ROLE_NORM1,  QB_RESIDUAL_COLS},
    [QB_ROLE_Q_B]         = {"h.%zu.attn.q.bias",     1, 1, 0, 0,              QB_RESIDUAL_NONE},
    [QB_ROLE_K]           = {"h.%zu.attn.k",          1, 1, 1, QB_ROLE_NORM1,  QB_RESIDUAL_COLS},
    [QB_ROLE_K_B]         = {"h.%zu.attn.k.bias",     1, 1, 0, 0,              QB_RESIDUAL_NONE},
    [QB_ROLE_V]           = {"h.%zu.attn.v",          1, 1, 1, QB_ROLE_NORM1,  QB_RESIDUAL_COLS},
    [QB_ROLE_V_B]         = {"h.%zu.attn.v.bias",     1, 1, 0, 0,              QB_RESIDUAL_NONE},
    [QB_ROLE_O]           = {"h.%zu.attn.o",          1, 1, 1, 0,              QB_RESIDUAL_ROWS},
    [QB_ROLE_O_B]         = {"h.%zu.attn.o.bias",     1, 1, 0, 0,              QB_RESIDUAL_NONE},
    [QB_ROLE_NORM2]       = {"h.%zu.norm2",           1, 0, 0, 0,              QB_RESIDUAL_NONE},
    [QB_ROLE_NORM2_B]     = {"h.%zu.norm2.bias",      1, 0, 0, 0,              QB_RESIDUAL_NONE},
    [QB_ROLE_GATE]        = {"h.%zu.mlp.gate",        1, 0, 1, QB_ROLE_NORM2,  QB_RESIDUAL_COLS},
    [QB_ROLE_GATE_B]      = {"h.%zu.mlp.gate.bias",   1, 0, 0, 0,              QB_RESIDUAL_NONE},
    [QB_ROLE_UP]          = {"h.%zu.mlp.up",          1, 0, 1, QB_ROLE_NORM2,  QB_RESIDUAL_COLS},
    [QB_ROLE_UP_B]        = {"h.%zu.mlp.up.bias",     1, 0, 0, 0,              QB_RESIDUAL_NONE},
    [QB_ROLE_DOWN]        = {"h.%zu.mlp.down",        1, 0, 1, 0,              QB_RESIDUAL_ROWS},
    [QB_ROLE_DOWN_B]      = {"h.%zu.mlp.down.bias",   1, 0, 0, 0,              QB_RESIDUAL_NONE},
    [QB_ROLE_NORM_F]      = {"norm_f",                0, 0, 0, 0,              QB_RESIDUAL_NONE},
    [QB_ROLE_NORM_F_B]    = {"norm_f.bias",           0, 0, 0, 0,              QB_RESIDUAL_NONE},
    [QB_ROLE_HEAD]        = {"head",                  0, 0, 0, QB_ROLE_NORM_F, QB_RESIDUAL_COLS},
    [QB_ROLE_SINK]        = {"h.%zu.attn.sink",       1, 1, 0, 0,              QB_RESIDUAL_NONE},
    [QB_ROLE_ATTN_GATE]   = {"h.%zu.attn.gate",       1, 1, 0, 0,              QB_RESIDUAL_COLS},
    [QB_ROLE_ATTN_GATE_B] = {"h.%zu.attn.gate.bias",  1, 1, 0, 0,              QB_RESIDUAL_NONE},
};
/* clang-format on */

void qb_role_name(qb_role role, size_t layer_idx, char *text, size_t capacity)
{
    const char *name = qb_roles[role].name, *mark = strstr(name, "%zu");
    if (mark)
        snprintf(text, capacity, "%.*s%zu%s", (int)(mark - name), name, layer_idx, mark + 3);
    else
        snprintf(text, capacity, "%s", name);
}

/* ---- shapes ---- */

static bool shape(bool present, size_t rows, size_t cols, size_t *out_rows, size_t *out_cols)
{
    if (!present) return false;
    *out_rows = rows;
    *out_cols = cols;
    return true;
}

bool qb_config_shape(const qb_config *c, qb_role role, size_t *rows, size_t *cols)
{
    size_t q = c->n_heads * c->head_dim, kv = c->n_kv_heads * c->head_dim, qkv = q + 2 * kv;
    size_t norm = c->norm == QB_NORM_RMSNORM_SINGLE ? 1 : c->d_model;
    bool split = !c->fused_qkv, gated = c->act == QB_ACT_SWIGLU;
    switch (role) {
    case QB_ROLE_TOK_EMBD:
        return shape(true, c->vocab, c->d_model, rows, cols);
    case QB_ROLE_POS_EMBD:
        return shape(c->pos == QB_POS_LEARNED, c->context, c->d_model, rows, cols);
    case QB_ROLE_NORM1:
    case QB_ROLE_NORM2:
    case QB_ROLE_NORM_F:
        return shape(true, 1, norm, rows, cols);
    case QB_ROLE_NORM1_B:
    case QB_ROLE_NORM2_B:
    case QB_ROLE_NORM_F_B:
        return shape(c->norm_bias, 1, norm, rows, cols);
    case QB_ROLE_QKV:
        return shape(c->fused_qkv, qkv, c->d_model, rows, cols);
    case QB_ROLE_QKV_B:
        return shape(c->fused_qkv && c->attn_bias, 1, qkv, rows, cols);
    case QB_ROLE_Q:
        return shape(split, q, c->d_model, rows, cols);
    case QB_ROLE_Q_B:
        return shape(split && c->attn_bias, 1, q, rows, cols);
    case QB_ROLE_K:
    case QB_ROLE_V:
        return shape(split, kv, c->d_model, rows, cols);
    case QB_ROLE_K_B:
    case QB_ROLE_V_B:
        return shape(split && c->attn_bias, 1, kv, rows, cols);
    case QB_ROLE_O:
        return shape(true, c->d_model, q, rows, cols);
    case QB_ROLE_O_B:
        return shape(c->attn_bias && !c->qkv_bias_only, 1, c->d_model, rows, cols);
    case QB_ROLE_GATE:
        return shape(gated, c->d_ff, c->d_model, rows, cols);
    case QB_ROLE_GATE_B:
        return shape(gated && c->mlp_bias, 1, c->d_ff, rows, cols);
    case QB_ROLE_UP:
        return shape(true, c->d_ff, c->d_model, rows, cols);
    case QB_ROLE_UP_B:
        return shape(c->mlp_bias, 1, c->d_ff, rows, cols);
    case QB_ROLE_DOWN:
        return shape(true, c->d_model, c->d_ff, rows, cols);
    case QB_ROLE_DOWN_B:
        return shape(c->mlp_bias, 1, c->d_model, rows, cols);
    case QB_ROLE_HEAD:
        return shape(!c->tied_head, c->vocab, c->d_model, rows, cols);
    case QB_ROLE_SINK:
        return shape(c->softmax == QB_SOFTMAX_SINK, 1, c->n_heads, rows, cols);
    case QB_ROLE_ATTN_GATE:
        return shape(c->attn_gate, c->n_heads, c->d_model, rows, cols);
    case QB_ROLE_ATTN_GATE_B:
        return shape(c->attn_gate, 1, c->n_heads, rows, cols);
    case QB_ROLE_COUNT:
        break;
    }
    return false;
}

bool qb_config_has_attention(const qb_config *config, size_t layer_idx)
{
    return layer_idx >= QB_MASKED_LAYERS || !(config->no_attention >> layer_idx & 1);
}

size_t qb_config_n_attention(const qb_config *config)
{
    size_t n = config->n_layers;
    for (size_t i = 0; i < config->n_layers; i++) n -= !qb_config_has_attention(config, i);
    return n;
}

bool qb_config_has(const qb_config *config, qb_role role, size_t layer_idx)
{
    size_t rows, cols;
    return qb_config_shape(config, role, &rows, &cols) &&
           (!qb_roles[role].attention || qb_config_has_attention(config, layer_idx));
}

size_t qb_config_longest(const qb_config *config)
{
    if (config->pos == QB_POS_LEARNED) return config->context;
    return config->sliding_window ? config->sliding_window : SIZE_MAX;
}

const char *qb_config_limit(const qb_config *config)
{
    return config->pos == QB_POS_LEARNED ? "learned positions" : "sliding window";
}

static size_t count_params(const qb_config *config, bool linear_only)
{
    size_t total = 0;
    for (int r = 0; r < QB_ROLE_COUNT; r++) {
        size_t rows, cols;
        if (linear_only && !qb_roles[r].linear) continue;
        if (!qb_config_shape(config, (qb_role)r, &rows, &cols)) continue;
        size_t n = qb_roles[r].per_layer ? config->n_layers : 1;
        total += rows * cols * (qb_roles[r].attention ? qb_config_n_attention(config) : n);
    }
    return total;
}

size_t qb_config_n_params(const qb_config *config)
{
    return count_params(config, false);
}

size_t qb_config_n_linear_params(const qb_config *config)
{
    return count_params(config, true);
}

/* ---- rules ---- */

enum {
    MAX_WIDTH = 1 << 20,
    MAX_LAYERS = 1 << 12,
    MAX_HEADS = 1 << 12,
    MAX_HEAD_DIM = 256, /* what the attention kernels take */
    MAX_CLIP = 16,      /* |gamma|, zeta: far beyond any use */
};

qb_status qb__check_range(const char *field, size_t value, size_t max)
{
    if (value < 1 || value > max)
        return QB_FAIL(QB_ERR_FORMAT, "%s: found %zu, expected 1 to %zu", field, value, max);
    return QB_OK;
}

/* Written so that NaN fails. */
qb_status qb__check_real(const char *field, double value, double min, double max)
{
    if (!(value >= min && value <= max))
        return QB_FAIL(QB_ERR_FORMAT, "%s: found %g, expected %g to %g", field, value, min, max);
    return QB_OK;
}

/* Engines and metrics have attention to look at in any model. */
static qb_status check_no_attention(const qb_config *c)
{
    if (c->n_layers < QB_MASKED_LAYERS && c->no_attention >> c->n_layers)
        return QB_FAIL(QB_ERR_FORMAT,
                       "no_attention: found a block above the last, expected at most %zu",
                       c->n_layers);
    if (!qb_config_n_attention(c))
        return QB_FAIL(QB_ERR_FORMAT,
                       "no_attention: found all blocks, expected all but one at most");
    return QB_OK;
}

qb_status qb_config_check(const qb_config *c)
{
    QB_TRY(qb__check_range("n_layers", c->n_layers, MAX_LAYERS));
    QB_TRY(qb__check_range("d_model", c->d_model, MAX_WIDTH));
    QB_TRY(qb__check_range("n_heads", c->n_heads, MAX_HEADS));
    QB_TRY(qb__check_range("n_kv_heads", c->n_kv_heads, MAX_HEADS));
    QB_TRY(qb__check_range("head_dim", c->head_dim, MAX_HEAD_DIM));
    QB_TRY(qb__check_range("d_ff", c->d_ff, MAX_WIDTH));
    QB_TRY(qb__check_range("vocab", c->vocab, QB__MAX_ROWS));
    QB_TRY(qb__check_range("context", c->context, QB__MAX_ROWS));
    if (c->n_heads % c->n_kv_heads)
        return QB_FAIL(QB_ERR_FORMAT, "n_heads: found %zu, expected a multiple of n_kv_heads %zu",
                       c->n_heads, c->n_kv_heads);
    QB_TRY(qb__check_range("n_heads * head_dim", c->n_heads * c->head_dim, MAX_WIDTH));
    QB_TRY(qb__check_real("norm_eps", c->norm_eps, 0.0, 1.0));
    if (c->norm_bias && c->norm != QB_NORM_LAYERNORM)
        return QB_FAIL(QB_ERR_FORMAT, "norm_bias: found true, expected false with %s",
                       qb_norm_names[c->norm]);
    QB_TRY(qb__check_real("softmax_gamma", c->softmax_gamma, -MAX_CLIP, 0.0));
    QB_TRY(qb__check_real("softmax_zeta", c->softmax_zeta, 1.0, MAX_CLIP));
    if (c->free_prefix > c->context)
        return QB_FAIL(QB_ERR_FORMAT, "free_prefix: found %zu, expected at most the context %zu",
                       c->free_prefix, c->context);
    QB_TRY(check_no_attention(c));
    if (c->qkv_bias_only && (!c->attn_bias || c->fused_qkv))
        return QB_FAIL(QB_ERR_FORMAT,
                       "qkv_bias_only: found true, expected false without attn_bias or with "
                       "fused_qkv");
    if (c->sliding_window && c->sliding_window < c->context)
        return QB_FAIL(QB_ERR_FORMAT, "context: found %zu, expected at most the sliding window %zu",
                       c->context, c->sliding_window);
    return c->pos == QB_POS_ROPE ? qb__rope_check(&c->rope, c->head_dim) : QB_OK;
}

/* ---- JSON ---- */

/* What few models have is written where it says something, so that the others' files stay as they
 * were. */
static void add_attention_flags(const qb_config *c, json_t *o)
{
    if (c->qkv_bias_only) json_object_set_new(o, "qkv_bias_only", json_true());
    if (c->sliding_window)
        json_object_set_new(o, "sliding_window", json_integer((json_int_t)c->sliding_window));
    if (c->softmax == QB_SOFTMAX_CLIPPED) {
        json_object_set_new(o, "softmax_gamma", json_real(c->softmax_gamma));
        json_object_set_new(o, "softmax_zeta", json_real(c->softmax_zeta));
    }
    if (c->attn_gate) json_object_set_new(o, "attn_gate", json_true());
    if (c->free_prefix)
        json_object_set_new(o, "free_prefix", json_integer((json_int_t)c->free_prefix));
    if (!c->no_attention) return;
    json_t *blocks = json_array();
    for (size_t i = 0; i < QB_MASKED_LAYERS; i++)
        if (c->no_attention >> i & 1)
            json_array_append_new(blocks, json_integer((json_int_t)i + 1));
    json_object_set_new(o, "no_attention", blocks);
}

qb_status qb_config_to_json(const qb_config *c, json_t **out)
{
    size_t mark = qb_json_mark();
    json_t *o = json_pack(
        "{s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:s, s:f, s:s, s:s, s:s, s:b, s:b, s:b, "
        "s:b, s:b}",
        "arch", c->arch->name, "n_layers", (json_int_t)c->n_layers, "d_model",
        (json_int_t)c->d_model, "n_heads", (json_int_t)c->n_heads, "n_kv_heads",
        (json_int_t)c->n_kv_heads, "head_dim", (json_int_t)c->head_dim, "d_ff", (json_int_t)c->d_ff,
        "vocab", (json_int_t)c->vocab, "context", (json_int_t)c->context, "norm",
        qb_norm_names[c->norm], "norm_eps", c->norm_eps, "act", qb_act_names[c->act], "pos",
        qb_pos_names[c->pos], "softmax", qb_softmax_names[c->softmax], "attn_bias", c->attn_bias,
        "mlp_bias", c->mlp_bias, "norm_bias", c->norm_bias, "tied_head", c->tied_head, "fused_qkv",
        c->fused_qkv);
    add_attention_flags(c, o);
    if (c->pos == QB_POS_ROPE) json_object_set_new(o, "rope", qb__rope_to_json(&c->rope));
    qb_status status = qb_json_check_memory(mark, "configuration");
    if (status != QB_OK)
        json_decref(o);
    else
        *out = o;
    return status;
}

qb_status qb__get_word(const json_t *object, const char *key, const char *const *words,
                       size_t n_words, int *out)
{
    const char *text = NULL;
    QB_TRY(qb_json_get_string(object, key, &text));
    if (!text) return QB_OK;
    for (size_t i = 0; i < n_words; i++)
        if (!strcmp(words[i], text)) {
            *out = (int)i;
            return QB_OK;
        }
    return QB_FAIL(QB_ERR_UNSUPPORTED, "key \"%s\": found \"%.40s\", expected one like \"%s\"", key,
                   text, words[0]);
}

static qb_status get_kinds(const json_t *object, qb_config *c)
{
    int norm = (int)c->norm, act = (int)c->act, pos = (int)c->pos, softmax = (int)c->softmax;
    QB_TRY(qb__get_word(object, "norm", qb_norm_names, QB_NORM_COUNT, &norm));
    QB_TRY(qb__get_word(object, "act", qb_act_names, QB_ACT_COUNT, &act));
    QB_TRY(qb__get_word(object, "pos", qb_pos_names, QB_POS_COUNT, &pos));
    QB_TRY(qb__get_word(object, "softmax", qb_softmax_names, QB_SOFTMAX_COUNT, &softmax));
    c->norm = (qb_norm_kind)norm;
    c->act = (qb_act_kind)act;
    c->pos = (qb_pos_kind)pos;
    c->softmax = (qb_softmax_kind)softmax;
    QB_TRY(qb_json_get_double(object, "softmax_gamma", -MAX_CLIP, 0.0, &c->softmax_gamma));
    QB_TRY(qb_json_get_double(object, "softmax_zeta", 1.0, MAX_CLIP, &c->softmax_zeta));
    QB_TRY(qb_json_get_bool(object, "attn_gate", &c->attn_gate));
    QB_TRY(qb_json_get_bool(object, "attn_bias", &c->attn_bias));
    QB_TRY(qb_json_get_bool(object, "mlp_bias", &c->mlp_bias));
    QB_TRY(qb_json_get_bool(object, "norm_bias", &c->norm_bias));
    QB_TRY(qb_json_get_bool(object, "qkv_bias_only", &c->qkv_bias_only));
    QB_TRY(qb_json_get_bool(object, "tied_head", &c->tied_head));
    return qb_json_get_bool(object, "fused_qkv", &c->fused_qkv);
}

/* Blocks by their number from 1. */
static qb_status get_no_attention(const json_t *object, uint64_t *out)
{
    const json_t *list = json_object_get(object, "no_attention"), *item;
    size_t i;
    if (!list) return QB_OK;
    if (!json_is_array(list))
        return QB_FAIL(QB_ERR_FORMAT,
                       "key \"no_attention\": found no list, expected one of blocks");
    *out = 0;
    json_array_foreach(list, i, item)
    {
        json_int_t block = json_is_integer(item) ? json_integer_value(item) : 0;
        if (block < 1 || block > QB_MASKED_LAYERS || *out >> (block - 1) & 1)
            return QB_FAIL(QB_ERR_FORMAT,
                           "key \"no_attention\": found another value, expected different whole "
                           "numbers from 1 to %d",
                           QB_MASKED_LAYERS);
        *out |= (uint64_t)1 << (block - 1);
    }
    return QB_OK;
}

/* The sizes start at 0, so that qb_config_check names one that is absent. */
static qb_status get_sizes(const json_t *object, qb_config *c)
{
    const struct {
        const char *key;
        size_t *value;
    } sizes[] = {
        {"n_layers", &c->n_layers},
        {"d_model", &c->d_model},
        {"n_heads", &c->n_heads},
        {"n_kv_heads", &c->n_kv_heads},
        {"head_dim", &c->head_dim},
        {"d_ff", &c->d_ff},
        {"vocab", &c->vocab},
        {"context", &c->context},
        {"free_prefix", &c->free_prefix},
        {"sliding_window", &c->sliding_window},
    };
    for (size_t i = 0; i < QB_COUNT(sizes); i++)
        QB_TRY(qb_json_get_size(object, sizes[i].key, 0, QB__MAX_ROWS, sizes[i].value));
    return qb_json_get_double(object, "norm_eps", 0.0, 1.0, &c->norm_eps);
}

static qb_status no_such_arch(const char *name)
{
    char names[128] = "";
    for (const qb_arch *arch = qb_archs; arch->name; arch++)
        qb_names_add(names, sizeof names, arch->name);
    return QB_FAIL(QB_ERR_UNSUPPORTED, "key \"arch\": found \"%.40s\", expected one of %s", name,
                   names);
}

qb_status qb_config_from_json(const json_t *object, qb_config *out)
{
    const char *name = NULL;
    QB_TRY(qb_json_get_string(object, "arch", &name));
    const qb_arch *arch = name ? qb_arch_find(name) : NULL;
    if (!arch) return no_such_arch(name ? name : "nothing");
    qb_config c = arch->defaults;
    c.arch = arch;
    QB_TRY(get_kinds(object, &c));
    QB_TRY(get_sizes(object, &c));
    QB_TRY(get_no_attention(object, &c.no_attention));
    const json_t *rope = json_object_get(object, "rope");
    if (rope && !json_is_object(rope))
        return QB_FAIL(QB_ERR_FORMAT,
                       "key \"rope\": found another kind of value, expected an object");
    QB_TRY(qb__rope_from_json(rope, &c.rope));
    QB_TRY(qb_config_check(&c));
    *out = c;
    return QB_OK;
}
