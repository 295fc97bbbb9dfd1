/* model/hf_config.c - config.json of Hugging Face transformers, in; out is hf_config_write.c.
 * Versions before 5 write rope_theta and rope_scaling, later ones rope_parameters; both are read.
 * What this program would compute differently is refused by its name. */
#include "core/json.h"
#include "core/nearest.h"
#include "model/hf_internal.h"

#include <math.h>
#include <string.h>

#define MAX_SIZE ((size_t)1 << 24)

static qb_status need_size(const json_t *root, const char *key, size_t *out)
{
    *out = 0;
    QB_TRY(qb_json_get_size(root, key, 1, MAX_SIZE, out));
    if (!*out)
        return QB_FAIL(QB_ERR_FORMAT, "key \"%s\" is missing: found none, expected one", key);
    return QB_OK;
}

/* transformers takes GPT2's sizes under the other families' names too. */
static qb_status need_size_or(const json_t *root, const char *key, const char *other, size_t *out)
{
    size_t found = 0;
    QB_TRY(qb_json_get_size(root, other, 1, MAX_SIZE, &found));
    *out = found;
    if (found) QB_TRY(qb_json_get_size(root, key, 1, MAX_SIZE, out));
    if (!found) QB_TRY(need_size(root, key, out));
    if (found && found != *out)
        return QB_FAIL(QB_ERR_FORMAT, "key \"%s\": found %zu, expected that of \"%s\", %zu", other,
                       found, key, *out);
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

/* The same for a number. */
static qb_status need_number(const json_t *root, const char *key, double value)
{
    double found = value;
    QB_TRY(qb_json_get_double(root, key, -1e12, 1e12, &found));
    if (found != value)
        return QB_FAIL(QB_ERR_UNSUPPORTED, "key \"%s\": found %g, expected %g", key, found, value);
    return QB_OK;
}

/* ---- activations ---- */

/* By how the family's MLP is built: with a gate, or without. */
static const struct {
    bool gated;
    const char *name;
    qb_act_kind act;
} activations[] = {
    {false, "gelu_new", QB_ACT_GELU_TANH}, {false, "gelu_pytorch_tanh", QB_ACT_GELU_TANH},
    {false, "relu", QB_ACT_RELU},          {true, "silu", QB_ACT_SWIGLU},
    {true, "swish", QB_ACT_SWIGLU},
};

static qb_status get_activation(const json_t *root, const char *key, qb_config *c)
{
    const char *name = NULL;
    bool gated = c->act == QB_ACT_SWIGLU;
    QB_TRY(qb_json_get_string(root, key, &name));
    if (!name) return QB_OK; /* the family's default */
    for (size_t i = 0; i < QB_COUNT(activations); i++)
        if (activations[i].gated == gated && !strcmp(activations[i].name, name)) {
            c->act = activations[i].act;
            return QB_OK;
        }
    return QB_FAIL(QB_ERR_UNSUPPORTED, "key \"%s\": found activation \"%.40s\", expected %s", key,
                   name, gated ? "silu" : "gelu_new, gelu_pytorch_tanh or relu");
}

/* ---- rotary positions ---- */

static qb_status need_double(const json_t *object, const char *key, double *out)
{
    if (!json_is_number(json_object_get(object, key)))
        return QB_FAIL(QB_ERR_FORMAT, "rope: key \"%s\" is missing: found none, expected one", key);
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
                   "rope_type: found \"%.40s\", expected default, linear, llama3 or yarn", name);
}

/* transformers lets one of the model's own keys stand before that of the object, and the context
 * for both. */
static qb_status get_original_context(const json_t *root, const json_t *o, size_t context,
                                      size_t *out)
{
    static const char key[] = "original_max_position_embeddings";
    *out = context;
    QB_TRY(qb_json_get_size(o, key, 1, MAX_SIZE, out));
    return qb_json_get_size(root, key, 1, MAX_SIZE, out);
}

/* YaRN's multiplier of cosine and sine, 0.1 ln(factor) + 1 (arXiv:2309.00071, eq. 22); with mscale
 * and mscale_all_dim the quotient of two such (DeepSeek). */
static double yarn_scale(double factor, double mscale)
{
    return factor <= 1.0 ? 1.0 : 0.1 * mscale * log(factor) + 1.0;
}

/* null and 0 mean the default, as in transformers. */
static qb_status get_yarn(const json_t *o, qb_rope *rope)
{
    double scale = 0.0, of_all = 0.0, fast = 0.0, slow = 0.0;
    QB_TRY(qb_json_get_double(o, "mscale", 0.0, 1e3, &scale));
    QB_TRY(qb_json_get_double(o, "mscale_all_dim", 0.0, 1e3, &of_all));
    QB_TRY(qb_json_get_double(o, "beta_fast", 0.0, 1e6, &fast));
    QB_TRY(qb_json_get_double(o, "beta_slow", 0.0, 1e6, &slow));
    if (fast > 0.0) rope->beta_fast = fast;
    if (slow > 0.0) rope->beta_slow = slow;
    rope->attention_factor = yarn_scale(rope->factor, 1.0);
    if (scale > 0.0 && of_all > 0.0)
        rope->attention_factor = yarn_scale(rope->factor, scale) / yarn_scale(rope->factor, of_all);
    QB_TRY(qb_json_get_double(o, "attention_factor", 0.0, 1e3, &rope->attention_factor));
    return qb_json_get_bool(o, "truncate", &rope->truncate);
}

/* Settings of their own for each type of layer (Gemma 3) are objects in the object. */
static qb_status check_rope_object(const json_t *o, const char *place)
{
    const char *key;
    json_t *value;
    if (!json_is_object(o))
        return QB_FAIL(QB_ERR_FORMAT, "key \"%s\": found another kind of value, expected an object",
                       place);
    json_object_foreach((json_t *)o, key, value) if (json_is_object(value)) return QB_FAIL(
        QB_ERR_UNSUPPORTED,
        "key \"%s\": found settings for \"%.40s\", expected the same for all "
        "layers",
        place, key);
    return need_number(o, "partial_rotary_factor", 1.0);
}

/* rope_scaling stands before rope_parameters, and rope_theta in one of them before the model's
 * own. */
static qb_status get_rope(const json_t *root, size_t context, qb_rope *rope)
{
    const char *place = "rope_scaling";
    const json_t *o = json_object_get(root, place);
    if (!o || json_is_null(o) || (json_is_object(o) && !json_object_size(o)))
        o = json_object_get(root, place = "rope_parameters");
    QB_TRY(need_number(root, "partial_rotary_factor", 1.0));
    QB_TRY(qb_json_get_double(root, "rope_theta", 0.0, 1e12, &rope->theta));
    if (!o || json_is_null(o)) return QB_OK;
    QB_TRY(check_rope_object(o, place));
    QB_TRY(get_rope_kind(o, &rope->kind));
    QB_TRY(qb_json_get_double(o, "rope_theta", 0.0, 1e12, &rope->theta));
    if (rope->kind == QB_ROPE_DEFAULT) return QB_OK;
    QB_TRY(need_double(o, "factor", &rope->factor));
    if (rope->kind == QB_ROPE_LINEAR) return QB_OK;
    QB_TRY(get_original_context(root, o, context, &rope->original_context));
    if (rope->kind == QB_ROPE_YARN) return get_yarn(o, rope);
    QB_TRY(need_double(o, "low_freq_factor", &rope->low_freq_factor));
    return need_double(o, "high_freq_factor", &rope->high_freq_factor);
}

/* ---- families ---- */

static qb_status read_gpt2(const json_t *root, qb_config *c)
{
    QB_TRY(need_size(root, "vocab_size", &c->vocab));
    QB_TRY(need_size_or(root, "n_positions", "max_position_embeddings", &c->context));
    QB_TRY(need_size_or(root, "n_embd", "hidden_size", &c->d_model));
    QB_TRY(need_size_or(root, "n_layer", "num_hidden_layers", &c->n_layers));
    QB_TRY(need_size_or(root, "n_head", "num_attention_heads", &c->n_heads));
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

/* Llama and what differs from it in a key or two. */
static qb_status read_gated(const json_t *root, qb_config *c)
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
    return get_rope(root, c->context, &c->rope);
}

static qb_status read_llama(const json_t *root, qb_config *c)
{
    QB_TRY(qb_json_get_bool(root, "attention_bias", &c->attn_bias));
    QB_TRY(qb_json_get_bool(root, "mlp_bias", &c->mlp_bias));
    return read_gated(root, c);
}

/* A window that masks something shortens the context, to where it does not. */
static qb_status read_window(const json_t *root, size_t window, qb_config *c)
{
    const json_t *v = json_object_get(root, "sliding_window");
    if (v && json_is_null(v)) return QB_OK;
    QB_TRY(qb_json_get_size(root, "sliding_window", 1, MAX_SIZE, &window));
    c->sliding_window = window;
    if (c->context > window) c->context = window;
    return QB_OK;
}

enum { DEFAULT_WINDOW = 4096 }; /* of Mistral and Qwen2, where the key is absent */

static qb_status read_mistral(const json_t *root, qb_config *c)
{
    QB_TRY(read_gated(root, c));
    return read_window(root, DEFAULT_WINDOW, c);
}

static qb_status read_qwen2(const json_t *root, qb_config *c)
{
    bool window = false;
    c->attn_bias = c->qkv_bias_only = true;
    QB_TRY(read_gated(root, c));
    QB_TRY(qb_json_get_bool(root, "use_sliding_window", &window));
    return window ? read_window(root, DEFAULT_WINDOW, c) : QB_OK;
}

static qb_status read_opt(const json_t *root, qb_config *c)
{
    QB_TRY(need_size(root, "vocab_size", &c->vocab));
    QB_TRY(need_size(root, "max_position_embeddings", &c->context));
    QB_TRY(need_size(root, "hidden_size", &c->d_model));
    QB_TRY(need_size(root, "ffn_dim", &c->d_ff));
    QB_TRY(need_size(root, "num_hidden_layers", &c->n_layers));
    QB_TRY(need_size(root, "num_attention_heads", &c->n_heads));
    if (c->d_model % c->n_heads)
        return QB_FAIL(QB_ERR_FORMAT,
                       "key \"hidden_size\": found %zu, expected a multiple of "
                       "num_attention_heads %zu",
                       c->d_model, c->n_heads);
    c->n_kv_heads = c->n_heads;
    c->head_dim = c->d_model / c->n_heads;
    QB_TRY(get_activation(root, "activation_function", c));
    QB_TRY(need_number(root, "word_embed_proj_dim", (double)c->d_model));
    QB_TRY(need_bool(root, "do_layer_norm_before", true));
    QB_TRY(need_bool(root, "_remove_final_layer_norm", false));
    QB_TRY(need_bool(root, "layer_norm_elementwise_affine", true));
    QB_TRY(qb_json_get_bool(root, "enable_bias", &c->attn_bias));
    c->mlp_bias = c->attn_bias;
    return QB_OK;
}

static const struct {
    const char *type, *arch;
    qb_status (*read)(const json_t *root, qb_config *config);
} families[] = {
    {"gpt2", "gpt2", read_gpt2},        {"llama", "llama", read_llama},
    {"mistral", "llama", read_mistral}, {"qwen2", "llama", read_qwen2},
    {"opt", "opt", read_opt},
};

qb_status qb__hf_config_from_json(const json_t *root, qb_config *out)
{
    if (!json_is_object(root))
        return QB_FAIL(QB_ERR_FORMAT, "found another kind of JSON, expected an object");
    const char *type = NULL;
    QB_TRY(qb_json_get_string(root, "model_type", &type));
    if (!type && json_object_get(root, "optimizer"))
        return QB_FAIL(QB_ERR_FORMAT, "found the configuration of a training run, expected a "
                                      "model, such as best.bin of the same folder");
    if (!type)
        return QB_FAIL(QB_ERR_FORMAT, "key \"model_type\" is missing: found none, expected one");
    const json_t *own = json_object_get(root, "qbench");
    if (!strcmp(type, "qbench") && json_is_object(own)) return qb_config_from_json(own, out);
    const json_t *quantised = json_object_get(root, "quantization_config");
    if (quantised && !json_is_null(quantised))
        return QB_FAIL(QB_ERR_UNSUPPORTED,
                       "key \"quantization_config\": found one, expected unquantised weights");
    for (size_t i = 0; i < QB_COUNT(families); i++) {
        if (strcmp(families[i].type, type)) continue;
        const qb_arch *arch = qb_arch_find(families[i].arch);
        qb_config c = arch->defaults;
        c.arch = arch;
        QB_TRY(families[i].read(root, &c));
        QB_TRY(need_bool(root, "is_causal", true));
        QB_TRY(qb_json_get_bool(root, "tie_word_embeddings", &c.tied_head));
        QB_TRY(qb_config_check(&c));
        *out = c;
        return QB_OK;
    }
    char types[128] = "";
    for (size_t i = 0; i < QB_COUNT(families); i++)
        qb_names_add(types, sizeof types, families[i].type);
    return QB_FAIL(QB_ERR_UNSUPPORTED, "model_type: found \"%.60s\", expected one of %s", type,
                   types);
}
