/* model/hf_config_write.c - config.json of Hugging Face transformers, out: the class that computes
 * the same, or model_type "qbench" where none does. */
#include "core/json.h"
#include "model/hf_internal.h"

#include <string.h>

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

/* One of three classes: llama_type. */
static bool is_plain_llama(const qb_config *c)
{
    bool known = !c->sliding_window && !c->qkv_bias_only;
    if (c->sliding_window) known = !c->attn_bias && !c->mlp_bias;
    if (c->qkv_bias_only) known = !c->sliding_window && !c->mlp_bias;
    return c->norm == QB_NORM_RMSNORM && !c->norm_bias && !c->fused_qkv && c->pos == QB_POS_ROPE &&
           has_plain_attention(c) && c->act == QB_ACT_SWIGLU && known;
}

static const char *llama_type(const qb_config *c, const char **class_name)
{
    const char *type = c->sliding_window ? "mistral" : c->qkv_bias_only ? "qwen2" : "llama";
    *class_name = c->sliding_window  ? "MistralForCausalLM"
                  : c->qkv_bias_only ? "Qwen2ForCausalLM"
                                     : "LlamaForCausalLM";
    return type;
}

static bool is_plain_opt(const qb_config *c)
{
    return c->norm == QB_NORM_LAYERNORM && c->norm_bias && c->attn_bias == c->mlp_bias &&
           !c->qkv_bias_only && !c->fused_qkv && c->pos == QB_POS_LEARNED &&
           has_plain_attention(c) && c->act == QB_ACT_RELU && c->norm_eps == 1e-5 &&
           c->n_kv_heads == c->n_heads && c->n_heads * c->head_dim == c->d_model;
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

static json_t *opt_to_json(const qb_config *c)
{
    return json_pack("{s:s, s:[s], s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:s, s:b, s:b}", "model_type",
                     "opt", "architectures", "OPTForCausalLM", "vocab_size", (json_int_t)c->vocab,
                     "max_position_embeddings", (json_int_t)c->context, "hidden_size",
                     (json_int_t)c->d_model, "word_embed_proj_dim", (json_int_t)c->d_model,
                     "ffn_dim", (json_int_t)c->d_ff, "num_hidden_layers", (json_int_t)c->n_layers,
                     "num_attention_heads", (json_int_t)c->n_heads, "activation_function", "relu",
                     "enable_bias", c->attn_bias, "tie_word_embeddings", c->tied_head);
}

static int add_yarn(json_t *o, const qb_rope *r)
{
    return json_object_set_new(o, "beta_fast", json_real(r->beta_fast)) |
           json_object_set_new(o, "beta_slow", json_real(r->beta_slow)) |
           json_object_set_new(o, "attention_factor", json_real(r->attention_factor)) |
           json_object_set_new(o, "truncate", json_boolean(r->truncate)) |
           json_object_set_new(o, "original_max_position_embeddings",
                               json_integer((json_int_t)r->original_context));
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
    if (r->kind == QB_ROPE_YARN) failed |= add_yarn(o, r);
    if (!failed) return o;
    json_decref(o);
    return NULL;
}

/* Only Llama's class has switches for biases, only Mistral's a window. */
static int add_flags(json_t *o, const qb_config *c)
{
    int failed = 0;
    if (c->sliding_window)
        failed |=
            json_object_set_new(o, "sliding_window", json_integer((json_int_t)c->sliding_window));
    if (c->qkv_bias_only) failed |= json_object_set_new(o, "use_sliding_window", json_false());
    if (c->sliding_window || c->qkv_bias_only) return failed;
    return failed | json_object_set_new(o, "attention_bias", json_boolean(c->attn_bias)) |
           json_object_set_new(o, "mlp_bias", json_boolean(c->mlp_bias));
}

static json_t *llama_to_json(const qb_config *c)
{
    const char *class_name, *type = llama_type(c, &class_name);
    json_t *o =
        json_pack("{s:s, s:[s], s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:s, s:f, s:b, s:f}",
                  "model_type", type, "architectures", class_name, "vocab_size",
                  (json_int_t)c->vocab, "max_position_embeddings", (json_int_t)c->context,
                  "hidden_size", (json_int_t)c->d_model, "intermediate_size", (json_int_t)c->d_ff,
                  "num_hidden_layers", (json_int_t)c->n_layers, "num_attention_heads",
                  (json_int_t)c->n_heads, "num_key_value_heads", (json_int_t)c->n_kv_heads,
                  "head_dim", (json_int_t)c->head_dim, "hidden_act", "silu", "rms_norm_eps",
                  c->norm_eps, "tie_word_embeddings", c->tied_head, "rope_theta", c->rope.theta);
    int failed = !o || add_flags(o, c) ||
                 json_object_set_new(o, "rope_parameters", rope_to_json(&c->rope, true));
    if (c->rope.kind != QB_ROPE_DEFAULT) /* versions before 5 read this one */
        failed |= json_object_set_new(o, "rope_scaling", rope_to_json(&c->rope, false));
    if (!failed) return o;
    json_decref(o);
    return NULL;
}

/* What transformers has a class for: the architecture, whether its class computes the same, and
 * what the class is told. */
static const struct {
    const char *arch;
    bool (*is_plain)(const qb_config *config);
    json_t *(*to_json)(const qb_config *config); /* NULL where memory lacks */
} families[] = {
    {"gpt2", is_plain_gpt2, gpt2_to_json},
    {"llama", is_plain_llama, llama_to_json},
    {"opt", is_plain_opt, opt_to_json},
};

static json_t *own_to_json(const qb_config *c)
{
    json_t *own;
    if (qb_config_to_json(c, &own) != QB_OK) return NULL;
    return json_pack("{s:s, s:o}", "model_type", "qbench", "qbench", own);
}

qb_status qb__hf_config_to_json(const qb_config *c, json_t **out, bool *foreign)
{
    size_t i = 0;
    while (i < QB_COUNT(families) &&
           (strcmp(families[i].arch, c->arch->name) || !families[i].is_plain(c)))
        i++;
    bool known = i < QB_COUNT(families);
    json_t *o = known ? families[i].to_json(c) : own_to_json(c);
    if (!o) return QB_FAIL(QB_ERR_MEMORY, "config.json: no memory");
    *foreign = known;
    *out = o;
    return QB_OK;
}
