/* model/hf_config.c - config.json of Hugging Face transformers, both ways. Versions before 5 write
 * rope_theta and rope_scaling, later ones rope_parameters; both are read. What this program would
 * compute differently is refused by its name. */
#include "core/json.h"
#include "model/hf_internal.h"

#include <string.h>

#define MAX_SIZE ((size_t)1 << 24)

static qb_status need_size(const json_t *root, const char *key, size_t *out)
{
    *out = 0;
    QB_TRY(qb_json_get_size(root, key, 1, MAX_SIZE, out));
    if (!*out) return QB_FAIL(QB_ERR_FORMAT, "key \"%s\" is missing", key);
    return QB_OK;
}

/* A switch that must have one value for the model to mean what is computed here. */
static qb_status need_bool(const json_t *root, const char *key, bool value)
{
    bool found = value;
    QB_TRY(qb_json_get_bool(root, key, &found));
    if (found != value)
        return QB_FAIL(QB_ERR_UNSUPPORTED, "key \"%s\": found %s, expected %s", key,
                       found ? "true" : "false", value ? "true" : "false");
    return QB_OK;
}

/* ---- activations ---- */

static const struct {
    const char *arch, *name;
    qb_act_kind act;
} activations[] = {
    {"gpt2", "gelu_new", QB_ACT_GELU_TANH}, {"gpt2", "gelu_pytorch_tanh", QB_ACT_GELU_TANH},
    {"gpt2", "relu", QB_ACT_RELU},          {"llama", "silu", QB_ACT_SWIGLU},
    {"llama", "swish", QB_ACT_SWIGLU},
};

static qb_status get_activation(const json_t *root, const char *key, qb_config *c)
{
    const char *name = NULL;
    QB_TRY(qb_json_get_string(root, key, &name));
    if (!name) return QB_OK; /* the family's default */
    for (size_t i = 0; i < QB_COUNT(activations); i++)
        if (!strcmp(activations[i].arch, c->arch->name) && !strcmp(activations[i].name, name)) {
            c->act = activations[i].act;
            return QB_OK;
        }
    return QB_FAIL(QB_ERR_UNSUPPORTED, "key \"%s\": found activation \"%.40s\", expected %s", key,
                   name,
                   !strcmp(c->arch->name, "gpt2") ? "gelu_new, gelu_pytorch_tanh or relu" : "silu");
}

/* ---- rotary positions ---- */

static qb_status need_double(const json_t *object, const char *key, double *out)
{
    if (!json_is_number(json_object_get(object, key)))
        return QB_FAIL(QB_ERR_FORMAT, "rope: key \"%s\" is missing", key);
    return qb_json_get_double(object, key, 0.0, 1e12, out);
}

static qb_status get_rope_kind(const json_t *scaling, qb_rope_kind *kind)
{
    const char *name = NULL;
    QB_TRY(qb_json_get_string(scaling, "type", &name));
    QB_TRY(qb_json_get_string(scaling, "rope_type", &name));
    if (!name) return QB_OK;
    for (int i = 0; i < QB_ROPE_COUNT; i++)
        if (!strcmp(qb_rope_names[i], name)) {
            *kind = (qb_rope_kind)i;
            return QB_OK;
        }
    return QB_FAIL(QB_ERR_UNSUPPORTED,
                   "rope_type: found \"%.40s\", expected default, linear or llama3", name);
}

static qb_status get_rope(const json_t *root, qb_rope *rope)
{
    static const char *const places[] = {"rope_scaling", "rope_parameters"};
    QB_TRY(qb_json_get_double(root, "rope_theta", 0.0, 1e12, &rope->theta));
    for (size_t i = 0; i < QB_COUNT(places); i++) {
        const json_t *o = json_object_get(root, places[i]);
        if (!o || json_is_null(o)) continue;
        if (!json_is_object(o))
            return QB_FAIL(QB_ERR_FORMAT, "key \"%s\": expected an object", places[i]);
        QB_TRY(get_rope_kind(o, &rope->kind));
        QB_TRY(qb_json_get_double(o, "rope_theta", 0.0, 1e12, &rope->theta));
        double rotated = 1.0;
        QB_TRY(qb_json_get_double(o, "partial_rotary_factor", 0.0, 1.0, &rotated));
        if (rotated != 1.0)
            return QB_FAIL(QB_ERR_UNSUPPORTED, "partial_rotary_factor: found %g, expected 1",
                           rotated);
        if (rope->kind != QB_ROPE_DEFAULT) QB_TRY(need_double(o, "factor", &rope->factor));
        if (rope->kind != QB_ROPE_LLAMA3) continue;
        QB_TRY(need_double(o, "low_freq_factor", &rope->low_freq_factor));
        QB_TRY(need_double(o, "high_freq_factor", &rope->high_freq_factor));
        QB_TRY(need_size(o, "original_max_position_embeddings", &rope->original_context));
    }
    return QB_OK;
}

/* ---- families ---- */

static qb_status read_gpt2(const json_t *root, qb_config *c)
{
    QB_TRY(need_size(root, "vocab_size", &c->vocab));
    QB_TRY(need_size(root, "n_positions", &c->context));
    QB_TRY(need_size(root, "n_embd", &c->d_model));
    QB_TRY(need_size(root, "n_layer", &c->n_layers));
    QB_TRY(need_size(root, "n_head", &c->n_heads));
    c->d_ff = 4 * c->d_model;
    QB_TRY(qb_json_get_size(root, "n_inner", 1, MAX_SIZE, &c->d_ff));
    if (c->d_model % c->n_heads)
        return QB_FAIL(QB_ERR_FORMAT,
                       "key \"n_embd\": found %zu, expected a multiple of n_head %zu", c->d_model,
                       c->n_heads);
    c->n_kv_heads = c->n_heads;
    c->head_dim = c->d_model / c->n_heads;
    QB_TRY(get_activation(root, "activation_function", c));
    QB_TRY(qb_json_get_double(root, "layer_norm_epsilon", 0.0, 1.0, &c->norm_eps));
    QB_TRY(need_bool(root, "scale_attn_weights", true));
    QB_TRY(need_bool(root, "scale_attn_by_inverse_layer_idx", false));
    return need_bool(root, "add_cross_attention", false);
}

static qb_status read_llama(const json_t *root, qb_config *c)
{
    QB_TRY(need_size(root, "vocab_size", &c->vocab));
    QB_TRY(need_size(root, "max_position_embeddings", &c->context));
    QB_TRY(need_size(root, "hidden_size", &c->d_model));
    QB_TRY(need_size(root, "intermediate_size", &c->d_ff));
    QB_TRY(need_size(root, "num_hidden_layers", &c->n_layers));
    QB_TRY(need_size(root, "num_attention_heads", &c->n_heads));
    c->n_kv_heads = c->n_heads;
    QB_TRY(qb_json_get_size(root, "num_key_value_heads", 1, MAX_SIZE, &c->n_kv_heads));
    c->head_dim = 0;
    QB_TRY(qb_json_get_size(root, "head_dim", 1, MAX_SIZE, &c->head_dim));
    if (!c->head_dim && c->d_model % c->n_heads)
        return QB_FAIL(QB_ERR_FORMAT,
                       "key \"hidden_size\": found %zu, expected a multiple of "
                       "num_attention_heads %zu, or head_dim",
                       c->d_model, c->n_heads);
    if (!c->head_dim) c->head_dim = c->d_model / c->n_heads;
    QB_TRY(get_activation(root, "hidden_act", c));
    QB_TRY(qb_json_get_double(root, "rms_norm_eps", 0.0, 1.0, &c->norm_eps));
    QB_TRY(qb_json_get_bool(root, "attention_bias", &c->attn_bias));
    QB_TRY(qb_json_get_bool(root, "mlp_bias", &c->mlp_bias));
    return get_rope(root, &c->rope);
}

static const struct {
    const char *type, *class_name;
    qb_status (*read)(const json_t *root, qb_config *config);
} families[] = {
    {"gpt2", "GPT2LMHeadModel", read_gpt2},
    {"llama", "LlamaForCausalLM", read_llama},
};

qb_status qb__hf_config_from_json(const json_t *root, qb_config *out)
{
    if (!json_is_object(root)) return QB_FAIL(QB_ERR_FORMAT, "expected a JSON object");
    const char *type = NULL;
    QB_TRY(qb_json_get_string(root, "model_type", &type));
    if (!type) return QB_FAIL(QB_ERR_FORMAT, "key \"model_type\" is missing");
    const json_t *own = json_object_get(root, "qbench");
    if (!strcmp(type, "qbench") && json_is_object(own)) return qb_config_from_json(own, out);
    if (json_object_get(root, "quantization_config"))
        return QB_FAIL(QB_ERR_UNSUPPORTED,
                       "key \"quantization_config\": expected unquantised weights");
    for (size_t i = 0; i < QB_COUNT(families); i++) {
        if (strcmp(families[i].type, type)) continue;
        const qb_arch *arch = qb_arch_find(type);
        qb_config c = arch->defaults;
        c.arch = arch;
        QB_TRY(families[i].read(root, &c));
        QB_TRY(qb_json_get_bool(root, "tie_word_embeddings", &c.tied_head));
        QB_TRY(qb_config_check(&c));
        *out = c;
        return QB_OK;
    }
    return QB_FAIL(QB_ERR_UNSUPPORTED, "model_type: found \"%.60s\", expected gpt2 or llama", type);
}

/* ---- writing ---- */

/* The fields that transformers' own class cannot express must have the class's values. */
static bool has_plain_attention(const qb_config *c)
{
    return c->softmax == QB_SOFTMAX && !c->attn_gate && !c->free_prefix && !c->no_attention;
}

static bool is_plain_gpt2(const qb_config *c)
{
    return c->norm == QB_NORM_LAYERNORM && c->norm_bias && c->attn_bias && c->mlp_bias &&
           c->fused_qkv && c->pos == QB_POS_LEARNED && has_plain_attention(c) &&
           c->act != QB_ACT_SWIGLU && c->n_kv_heads == c->n_heads &&
           c->n_heads * c->head_dim == c->d_model;
}

static bool is_plain_llama(const qb_config *c)
{
    return c->norm == QB_NORM_RMSNORM && !c->norm_bias && !c->fused_qkv && c->pos == QB_POS_ROPE &&
           has_plain_attention(c) && c->act == QB_ACT_SWIGLU;
}

static json_t *gpt2_to_json(const qb_config *c)
{
    return json_pack("{s:s, s:[s], s:I, s:I, s:I, s:I, s:I, s:I, s:s, s:f, s:b}", "model_type",
                     "gpt2", "architectures", "GPT2LMHeadModel", "vocab_size", (json_int_t)c->vocab,
                     "n_positions", (json_int_t)c->context, "n_embd", (json_int_t)c->d_model,
                     "n_layer", (json_int_t)c->n_layers, "n_head", (json_int_t)c->n_heads,
                     "n_inner", (json_int_t)c->d_ff, "activation_function",
                     c->act == QB_ACT_RELU ? "relu" : "gelu_new", "layer_norm_epsilon", c->norm_eps,
                     "tie_word_embeddings", c->tied_head);
}

static int add_llama3(json_t *o, const qb_rope *r)
{
    return json_object_set_new(o, "low_freq_factor", json_real(r->low_freq_factor)) |
           json_object_set_new(o, "high_freq_factor", json_real(r->high_freq_factor)) |
           json_object_set_new(o, "original_max_position_embeddings",
                               json_integer((json_int_t)r->original_context));
}

/* As rope_parameters (with theta) or as rope_scaling. */
static json_t *rope_to_json(const qb_rope *r, bool with_theta)
{
    json_t *o = json_pack("{s:s}", "rope_type", qb_rope_names[r->kind]);
    int failed = !o;
    if (with_theta) failed |= json_object_set_new(o, "rope_theta", json_real(r->theta));
    if (r->kind != QB_ROPE_DEFAULT)
        failed |= json_object_set_new(o, "factor", json_real(r->factor));
    if (r->kind == QB_ROPE_LLAMA3) failed |= add_llama3(o, r);
    if (!failed) return o;
    json_decref(o);
    return NULL;
}

static json_t *llama_to_json(const qb_config *c)
{
    json_t *o = json_pack(
        "{s:s, s:[s], s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:s, s:f, s:b, s:b, s:b, s:f}",
        "model_type", "llama", "architectures", "LlamaForCausalLM", "vocab_size",
        (json_int_t)c->vocab, "max_position_embeddings", (json_int_t)c->context, "hidden_size",
        (json_int_t)c->d_model, "intermediate_size", (json_int_t)c->d_ff, "num_hidden_layers",
        (json_int_t)c->n_layers, "num_attention_heads", (json_int_t)c->n_heads,
        "num_key_value_heads", (json_int_t)c->n_kv_heads, "head_dim", (json_int_t)c->head_dim,
        "hidden_act", "silu", "rms_norm_eps", c->norm_eps, "tie_word_embeddings", c->tied_head,
        "attention_bias", c->attn_bias, "mlp_bias", c->mlp_bias, "rope_theta", c->rope.theta);
    int failed = !o || json_object_set_new(o, "rope_parameters", rope_to_json(&c->rope, true));
    if (c->rope.kind != QB_ROPE_DEFAULT) /* versions before 5 read this one */
        failed |= json_object_set_new(o, "rope_scaling", rope_to_json(&c->rope, false));
    if (!failed) return o;
    json_decref(o);
    return NULL;
}

qb_status qb__hf_config_to_json(const qb_config *c, json_t **out, bool *foreign)
{
    bool gpt2 = !strcmp(c->arch->name, "gpt2") && is_plain_gpt2(c);
    bool llama = !strcmp(c->arch->name, "llama") && is_plain_llama(c);
    json_t *o;
    if (gpt2 || llama) {
        o = gpt2 ? gpt2_to_json(c) : llama_to_json(c);
    } else {
        json_t *own;
        QB_TRY(qb_config_to_json(c, &own));
        o = json_pack("{s:s, s:o}", "model_type", "qbench", "qbench", own);
    }
    if (!o) return QB_FAIL(QB_ERR_MEMORY, "config.json: no memory");
    *foreign = gpt2 || llama;
    *out = o;
    return QB_OK;
}
