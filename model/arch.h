/* model/arch.h - what a transformer is made of: the architecture table and the configuration of one
 * model. One forward (infer/) and one backward (train/) follow the fields; nothing asks for a name.
 *
 *   x = tok_embd[token] (+ pos_embd[t])
 *   per block:  x += O(attention(norm1(x)));   x += down(act(up(norm2(x))))     [GELU, ReLU]
 *                                              x += down(silu(gate(h)) * up(h)) [SwiGLU]
 *   logits = norm_f(x) . head^T                                                            (1)
 *
 * With attn_gate, head h of attention's output is multiplied by
 *
 *   sigmoid(attn_gate[h] . norm1(x) + attn_gate.bias[h])                                   (2)
 *
 * before O (Bondarenko et al. 2023, arXiv:2306.12929, linear; Qiu et al. 2025, arXiv:2505.06708,
 * head-wise). With free_prefix n, the first n tokens of a window see each other without a causal
 * mask (arXiv:2410.17174, sec. 3); the first n targets of a window then score nothing, since they
 * could have been seen. A block of no_attention has neither norm1 nor attention, just its MLP
 * (arXiv:2410.13835 removes parts of a model so).
 *
 * GPT2: Radford et al. 2019. Llama: Touvron et al. 2023. OPT: Zhang et al. 2022. Softmax-1,
 * RMSNorm-Single: arXiv:2410.17174. */
#ifndef QB_MODEL_ARCH_H
#define QB_MODEL_ARCH_H

#include "core/kinds.h"
#include "core/status.h"

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Names in model.bin, JSON and --help; order of the enums. */
extern const char *const qb_norm_names[QB_NORM_COUNT];       /* layernorm rmsnorm rmsnorm_single */
extern const char *const qb_act_names[QB_ACT_COUNT];         /* gelu_tanh relu swiglu */
extern const char *const qb_pos_names[QB_POS_COUNT];         /* learned rope none */
extern const char *const qb_softmax_names[QB_SOFTMAX_COUNT]; /* softmax softmax1 relu
                                                                clipped sink */
extern const char *const qb_rope_names[QB_ROPE_COUNT];       /* default linear llama3 yarn */

typedef struct qb_rope {
    qb_rope_kind kind;
    double theta;                             /* base, > 0 */
    double factor;                            /* all but default */
    double low_freq_factor, high_freq_factor; /* llama3 */
    size_t original_context;                  /* llama3, yarn */
    double beta_fast, beta_slow;              /* yarn: turns in original_context, fast > slow */
    double attention_factor;                  /* yarn: cosine and sine are multiplied by it */
    bool truncate;                            /* yarn: the ramp's ends are whole numbers */
} qb_rope;

typedef struct qb_arch qb_arch;

enum { QB_MASKED_LAYERS = 64 }; /* the first blocks: those that no_attention can name */

typedef struct qb_config {
    const qb_arch *arch; /* the row; gives the family's name and its linear layers */
    qb_norm_kind norm;
    qb_act_kind act;
    qb_pos_kind pos;
    qb_softmax_kind softmax;
    double softmax_gamma, softmax_zeta; /* where softmax is clipped: gamma <= 0, zeta >= 1 */
    bool attn_gate;                     /* (2) */
    size_t free_prefix;                 /* tokens that see each other; 0 = plain causal */
    uint64_t no_attention;              /* bit l: block l (from 0) has no attention; one keeps it */
    bool attn_bias, mlp_bias; /* biases of the linear layers; a LayerNorm's own is norm_bias */
    bool qkv_bias_only;       /* attn_bias, but attn.o has none (Qwen2) */
    bool norm_bias, tied_head, fused_qkv;
    size_t n_layers, d_model, n_heads, n_kv_heads, head_dim, d_ff, vocab, context;
    size_t sliding_window; /* tokens that a query sees (Mistral), 0 = all. It is not computed: no
                            * text is longer than it, and within it it changes nothing */
    double norm_eps;
    qb_rope rope; /* where pos is QB_POS_ROPE */
} qb_config;

/* Every tensor that a model may have. Per-layer roles come once a layer. */
typedef enum qb_role {
    QB_ROLE_TOK_EMBD, /* (V, C) */
    QB_ROLE_POS_EMBD, /* (T, C) */
    QB_ROLE_NORM1,
    QB_ROLE_NORM1_B, /* (C), RMSNorm-Single (1) */
    QB_ROLE_QKV,
    QB_ROLE_QKV_B, /* ((H + 2 Hkv) D, C): rows are q, then k, then v */
    QB_ROLE_Q,
    QB_ROLE_Q_B, /* (H D, C) */
    QB_ROLE_K,
    QB_ROLE_K_B, /* (Hkv D, C) */
    QB_ROLE_V,
    QB_ROLE_V_B,
    QB_ROLE_O,
    QB_ROLE_O_B, /* (C, H D) */
    QB_ROLE_NORM2,
    QB_ROLE_NORM2_B,
    QB_ROLE_GATE,
    QB_ROLE_GATE_B, /* (F, C), SwiGLU only */
    QB_ROLE_UP,
    QB_ROLE_UP_B, /* (F, C) */
    QB_ROLE_DOWN,
    QB_ROLE_DOWN_B, /* (C, F) */
    QB_ROLE_NORM_F,
    QB_ROLE_NORM_F_B,
    QB_ROLE_HEAD, /* (V, C); absent where tied */
    QB_ROLE_SINK, /* (H), softmax sink only */
    QB_ROLE_ATTN_GATE,
    QB_ROLE_ATTN_GATE_B, /* (H, C), (H), with attn_gate only; no linear layer of a scheme */
    QB_ROLE_COUNT
} qb_role;

/* Which axis of a matrix is the residual stream (length d_model): the axis that OrthoAdam rotates.
 * NONE for gains and biases, which are never rotated. */
typedef enum { QB_RESIDUAL_NONE, QB_RESIDUAL_ROWS, QB_RESIDUAL_COLS } qb_residual_axis;

typedef struct qb_role_info {
    const char *name; /* in model.bin: "tok_embd", "h.%zu.attn.q", ... */
    bool per_layer;
    bool attention; /* a block without attention has none */
    bool linear;    /* quantised by schemes (its bias is the next role) */
    qb_role norm;   /* whose output this product takes, which layers of one norm share; 0 = none */
    qb_residual_axis residual;
} qb_role_info;
extern const qb_role_info qb_roles[QB_ROLE_COUNT];

struct qb_arch {
    const char *name;   /* "gpt2", "llama", "opt" */
    qb_config defaults; /* what a configuration starts from */
    const char *source; /* who described it */
};
extern const qb_arch qb_archs[];               /* ends with a zero row */
const qb_arch *qb_arch_find(const char *name); /* NULL = none */

/* True if a model of this configuration has the tensor; *rows and *cols its shape (vectors: rows =
 * 1). */
bool qb_config_shape(const qb_config *config, qb_role role, size_t *rows, size_t *cols);
/* Whether block layer_idx has attention; false for the tensors of a block that has none. */
bool qb_config_has_attention(const qb_config *config, size_t layer_idx);
bool qb_config_has(const qb_config *config, qb_role role, size_t layer_idx);
size_t qb_config_n_attention(const qb_config *config); /* blocks that have it */
/* "h.3.attn.q" into text. */
void qb_role_name(qb_role role, size_t layer_idx, char *text, size_t capacity);
/* Ranges and divisibility of every field (hostile input): QB_ERR_FORMAT names the field. Limits are
 * such that no product of two fields and 8 can overflow: vocab <= 2^24, d_model, d_ff <= 2^20,
 * n_layers <= 2^12, context <= 2^24, heads <= 2^12. */
qb_status qb_config_check(const qb_config *config);
/* Tokens that a sequence may have: beyond learned positions or a sliding window this program would
 * compute another model. SIZE_MAX where nothing limits them. */
size_t qb_config_longest(const qb_config *config);
const char *qb_config_limit(const qb_config *config); /* what it comes from, for messages */
/* Parameters in all, and in the linear layers of the blocks. */
size_t qb_config_n_params(const qb_config *config);
size_t qb_config_n_linear_params(const qb_config *config);
/* The configuration as JSON (model.bin's header, inspect), and back (checked). */
qb_status qb_config_to_json(const qb_config *config, json_t **out);
qb_status qb_config_from_json(const json_t *object, qb_config *out);

/* inv_freq[i], i < head_dim / 2: angle = position * inv_freq[i] for the pair (i, i + head_dim/2).
 */
void qb_rope_inv_freq(const qb_rope *rope, size_t head_dim, double *inv_freq);
/* cosine, sine (n_positions, head_dim / 2) of every angle, times attention_factor with yarn; made
 * in double so that long contexts keep their precision; head_dim at most QB_ROPE_MAX_HEAD_DIM. */
#define QB_ROPE_MAX_HEAD_DIM 256
void qb_rope_table(const qb_rope *rope, size_t head_dim, size_t n_positions, float *cosine,
                   float *sine);

#ifdef __cplusplus
}
#endif
#endif
