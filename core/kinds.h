/* core/kinds.h - the words that model/ (files) and kernels/ (arithmetic) share. */
#ifndef QB_CORE_KINDS_H
#define QB_CORE_KINDS_H

typedef enum {
    QB_NORM_LAYERNORM,
    QB_NORM_RMSNORM,
    QB_NORM_RMSNORM_SINGLE,
    QB_NORM_COUNT
} qb_norm_kind;
typedef enum { QB_ACT_GELU_TANH, QB_ACT_RELU, QB_ACT_SWIGLU, QB_ACT_COUNT } qb_act_kind;
typedef enum { QB_POS_LEARNED, QB_POS_ROPE, QB_POS_NONE, QB_POS_COUNT } qb_pos_kind;
/* softmax1: y_i = e^(x_i-m) / (e^(-m) + sum_j e^(x_j-m)), m = max(0, max_j x_j) (arXiv:2410.17174).
 * relu: max(0, x_i) / t of a query that sees t keys, itself included (arXiv:2410.13835).
 * clipped: clip((zeta - gamma) softmax(x)_i + gamma, 0, 1) (Bondarenko et al. 2023,
 * arXiv:2306.12929).
 * sink: y_i = e^(x_i-m) / (e^(s-m) + sum_j e^(x_j-m)), m = max(s, max_j x_j), with one learned
 * logit s a head; s = 0 is softmax1 (learnable_sink of FlashAttention, "learnable" of
 * TransformerEngine). */
typedef enum {
    QB_SOFTMAX,
    QB_SOFTMAX1,
    QB_SOFTMAX_RELU,
    QB_SOFTMAX_CLIPPED,
    QB_SOFTMAX_SINK,
    QB_SOFTMAX_COUNT
} qb_softmax_kind;
typedef enum {
    QB_ROPE_DEFAULT,
    QB_ROPE_LINEAR,
    QB_ROPE_LLAMA3,
    QB_ROPE_YARN,
    QB_ROPE_COUNT
} qb_rope_kind;

#endif
