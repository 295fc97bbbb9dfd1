/* model/hf_names.c - tensor names of Hugging Face checkpoints, one table a family. */
#include "model/hf_internal.h"

#include <stdlib.h>
#include <string.h>

typedef struct hf_name {
    qb_role role;
    const char *name; /* after the layer's prefix */
    qb__hf_form form;
} hf_name;

typedef struct hf_family {
    const char *arch;
    const char *prefix; /* of all but the head; older files leave it out */
    const char *layer;  /* before the layer's number */
    hf_name names[QB_ROLE_COUNT + 1];
    const char *harmless[4]; /* buffers that old versions saved, in the layers or beside them */
} hf_family;

#define PLAIN                                                                                      \
    {                                                                                              \
        false, 0                                                                                   \
    }
#define TRANSPOSED                                                                                 \
    {                                                                                              \
        true, 0                                                                                    \
    }

static const hf_family families[] = {
    {"gpt2",
     "transformer.",
     "h.",
     {{QB_ROLE_TOK_EMBD, "wte.weight", PLAIN},
      {QB_ROLE_POS_EMBD, "wpe.weight", PLAIN},
      {QB_ROLE_NORM1, "ln_1.weight", PLAIN},
      {QB_ROLE_NORM1_B, "ln_1.bias", PLAIN},
      {QB_ROLE_QKV, "attn.c_attn.weight", TRANSPOSED},
      {QB_ROLE_QKV_B, "attn.c_attn.bias", PLAIN},
      {QB_ROLE_O, "attn.c_proj.weight", TRANSPOSED},
      {QB_ROLE_O_B, "attn.c_proj.bias", PLAIN},
      {QB_ROLE_NORM2, "ln_2.weight", PLAIN},
      {QB_ROLE_NORM2_B, "ln_2.bias", PLAIN},
      {QB_ROLE_GATE, "mlp.c_gate.weight", TRANSPOSED}, /* our own */
      {QB_ROLE_GATE_B, "mlp.c_gate.bias", PLAIN},
      {QB_ROLE_UP, "mlp.c_fc.weight", TRANSPOSED},
      {QB_ROLE_UP_B, "mlp.c_fc.bias", PLAIN},
      {QB_ROLE_DOWN, "mlp.c_proj.weight", TRANSPOSED},
      {QB_ROLE_DOWN_B, "mlp.c_proj.bias", PLAIN},
      {QB_ROLE_NORM_F, "ln_f.weight", PLAIN},
      {QB_ROLE_NORM_F_B, "ln_f.bias", PLAIN},
      {QB_ROLE_HEAD, "lm_head.weight", PLAIN},
      {QB_ROLE_SINK, "attn.sinks", PLAIN},
      {QB_ROLE_ATTN_GATE, "attn.gate.weight", PLAIN},
      {QB_ROLE_ATTN_GATE_B, "attn.gate.bias", PLAIN},
      {QB_ROLE_COUNT, NULL, PLAIN}},
     {"attn.bias", "attn.masked_bias"}},
    {"llama",
     "model.",
     "layers.",
     {{QB_ROLE_TOK_EMBD, "embed_tokens.weight", PLAIN},
      {QB_ROLE_POS_EMBD, "embed_positions.weight", PLAIN}, /* our own, as are norms' biases */
      {QB_ROLE_NORM1, "input_layernorm.weight", PLAIN},
      {QB_ROLE_NORM1_B, "input_layernorm.bias", PLAIN},
      {QB_ROLE_Q, "self_attn.q_proj.weight", PLAIN},
      {QB_ROLE_Q_B, "self_attn.q_proj.bias", PLAIN},
      {QB_ROLE_K, "self_attn.k_proj.weight", PLAIN},
      {QB_ROLE_K_B, "self_attn.k_proj.bias", PLAIN},
      {QB_ROLE_V, "self_attn.v_proj.weight", PLAIN},
      {QB_ROLE_V_B, "self_attn.v_proj.bias", PLAIN},
      {QB_ROLE_O, "self_attn.o_proj.weight", PLAIN},
      {QB_ROLE_O_B, "self_attn.o_proj.bias", PLAIN},
      {QB_ROLE_NORM2, "post_attention_layernorm.weight", PLAIN},
      {QB_ROLE_NORM2_B, "post_attention_layernorm.bias", PLAIN},
      {QB_ROLE_GATE, "mlp.gate_proj.weight", PLAIN},
      {QB_ROLE_GATE_B, "mlp.gate_proj.bias", PLAIN},
      {QB_ROLE_UP, "mlp.up_proj.weight", PLAIN},
      {QB_ROLE_UP_B, "mlp.up_proj.bias", PLAIN},
      {QB_ROLE_DOWN, "mlp.down_proj.weight", PLAIN},
      {QB_ROLE_DOWN_B, "mlp.down_proj.bias", PLAIN},
      {QB_ROLE_NORM_F, "norm.weight", PLAIN},
      {QB_ROLE_NORM_F_B, "norm.bias", PLAIN},
      {QB_ROLE_HEAD, "lm_head.weight", PLAIN},
      {QB_ROLE_SINK, "self_attn.sinks", PLAIN},
      {QB_ROLE_ATTN_GATE, "self_attn.gate.weight", PLAIN},
      {QB_ROLE_ATTN_GATE_B, "self_attn.gate.bias", PLAIN},
      {QB_ROLE_COUNT, NULL, PLAIN}},
     {"self_attn.rotary_emb.inv_freq", "rotary_emb.inv_freq"}},
    {"opt",
     "model.decoder.",
     "layers.",
     {{QB_ROLE_TOK_EMBD, "embed_tokens.weight", PLAIN},
      {QB_ROLE_POS_EMBD, "embed_positions.weight", {false, 2}}, /* of padding, from fairseq */
      {QB_ROLE_NORM1, "self_attn_layer_norm.weight", PLAIN},
      {QB_ROLE_NORM1_B, "self_attn_layer_norm.bias", PLAIN},
      {QB_ROLE_Q, "self_attn.q_proj.weight", PLAIN},
      {QB_ROLE_Q_B, "self_attn.q_proj.bias", PLAIN},
      {QB_ROLE_K, "self_attn.k_proj.weight", PLAIN},
      {QB_ROLE_K_B, "self_attn.k_proj.bias", PLAIN},
      {QB_ROLE_V, "self_attn.v_proj.weight", PLAIN},
      {QB_ROLE_V_B, "self_attn.v_proj.bias", PLAIN},
      {QB_ROLE_O, "self_attn.out_proj.weight", PLAIN},
      {QB_ROLE_O_B, "self_attn.out_proj.bias", PLAIN},
      {QB_ROLE_NORM2, "final_layer_norm.weight", PLAIN},
      {QB_ROLE_NORM2_B, "final_layer_norm.bias", PLAIN},
      {QB_ROLE_UP, "fc1.weight", PLAIN},
      {QB_ROLE_UP_B, "fc1.bias", PLAIN},
      {QB_ROLE_DOWN, "fc2.weight", PLAIN},
      {QB_ROLE_DOWN_B, "fc2.bias", PLAIN},
      {QB_ROLE_NORM_F, "final_layer_norm.weight", PLAIN},
      {QB_ROLE_NORM_F_B, "final_layer_norm.bias", PLAIN},
      {QB_ROLE_HEAD, "lm_head.weight", PLAIN},
      {QB_ROLE_SINK, "self_attn.sinks", PLAIN},
      {QB_ROLE_ATTN_GATE, "self_attn.gate.weight", PLAIN},
      {QB_ROLE_ATTN_GATE_B, "self_attn.gate.bias", PLAIN},
      {QB_ROLE_COUNT, NULL, PLAIN}},
     {NULL}},
};

static const hf_family *family_of(const qb_arch *arch)
{
    for (size_t i = 0; i < QB_COUNT(families); i++)
        if (!strcmp(families[i].arch, arch->name)) return &families[i];
    return NULL;
}

/* "h.12.rest" gives 12 and "rest"; canonical decimal numbers only, so that no two names meet. */
static const char *split_layer(const char *name, const char *layer, size_t *layer_idx)
{
    size_t n = strlen(layer);
    if (strncmp(name, layer, n)) return NULL;
    const char *digits = name + n;
    size_t n_digits = strspn(digits, "0123456789");
    if (!n_digits || n_digits > 6 || digits[n_digits] != '.') return NULL;
    if (digits[0] == '0' && n_digits > 1) return NULL;
    *layer_idx = (size_t)strtoul(digits, NULL, 10);
    return digits + n_digits + 1;
}

qb__hf_kind qb__hf_find_name(const qb_arch *arch, const char *name, qb_role *role,
                             size_t *layer_idx, qb__hf_form *form)
{
    const hf_family *f = family_of(arch);
    if (!f) return QB__HF_UNKNOWN;
    size_t n_prefix = strlen(f->prefix);
    if (!strncmp(name, f->prefix, n_prefix)) name += n_prefix;
    *layer_idx = 0;
    const char *rest = split_layer(name, f->layer, layer_idx);
    for (const hf_name *n = f->names; n->name; n++) {
        const char *text = qb_roles[n->role].per_layer ? rest : name;
        if (!text || strcmp(text, n->name)) continue;
        *role = n->role;
        *form = n->form;
        return QB__HF_TENSOR;
    }
    for (size_t i = 0; i < QB_COUNT(f->harmless) && f->harmless[i]; i++)
        if (!strcmp(rest ? rest : name, f->harmless[i])) return QB__HF_HARMLESS;
    return QB__HF_UNKNOWN;
}

bool qb__hf_format_name(const qb_arch *arch, qb_role role, size_t layer_idx, char *text,
                        size_t capacity, qb__hf_form *form)
{
    const hf_family *f = family_of(arch);
    if (!f) return false;
    for (const hf_name *n = f->names; n->name; n++) {
        if (n->role != role) continue;
        *form = n->form;
        if (role == QB_ROLE_HEAD)
            snprintf(text, capacity, "%s", n->name);
        else if (qb_roles[role].per_layer)
            snprintf(text, capacity, "%s%s%zu.%s", f->prefix, f->layer, layer_idx, n->name);
        else
            snprintf(text, capacity, "%s%s", f->prefix, n->name);
        return true;
    }
    return false;
}

/* ---- transposition ---- */

/* Tiles of 32 x 32 keep both sides' lines in the first-level cache. The element size is a constant
 * in each caller, so the copies become single moves. */
static inline void transpose_elems(const char *src, size_t rows, size_t cols, size_t size,
                                   char *dst)
{
    enum { TILE = 32 };
    for (size_t r0 = 0; r0 < rows; r0 += TILE) {
        size_t r1 = r0 + TILE < rows ? r0 + TILE : rows;
        for (size_t c0 = 0; c0 < cols; c0 += TILE) {
            size_t c1 = c0 + TILE < cols ? c0 + TILE : cols;
            for (size_t c = c0; c < c1; c++)
                for (size_t r = r0; r < r1; r++)
                    memcpy(dst + (c * rows + r) * size, src + (r * cols + c) * size, size);
        }
    }
}

void qb__transpose(const void *src, size_t rows, size_t cols, size_t elem_bytes, void *dst)
{
    if (elem_bytes == 2)
        transpose_elems(src, rows, cols, 2, dst);
    else if (elem_bytes == 4)
        transpose_elems(src, rows, cols, 4, dst);
    else
        transpose_elems(src, rows, cols, 8, dst);
}
