/* kernels/cuda/train.h - the passes of a training step on the GPU that are no matrix products.
 *
 * Matrices are row-major with a row stride in elements, bf16 or f32 (`type`), arithmetic is f32.
 * Parameters and their gradients are f32; gradients are added to what is there. Every sum has a
 * fixed order, so repeats give the same bits. Calls are queued; pointers are the device's. Buffers
 * are 256-byte aligned and strides multiples of QB_CUDA_ALIGN. */
#ifndef QB_KERNELS_CUDA_TRAIN_H
#define QB_KERNELS_CUDA_TRAIN_H

#include "kernels/cuda/matrix.h"

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ---- embedding ---- */

typedef struct qb_cuda_train_embed {
    size_t batch, n_tokens, width; /* rows: b * n_tokens + t */
    qb_cuda_dtype type;
    const int32_t *tokens; /* (batch, n_tokens + 1); the last of a window is no input */
    const void *tok_embd;  /* (vocab, width) dense, in `type` */
    const void *pos_embd;  /* (n_tokens.., width) dense, or NULL */
    void *x;               /* out, or with backward the gradient in */
    size_t x_stride;
    float *d_tok_embd, *d_pos_embd; /* backward: f32, dense; d_pos_embd may be NULL */
    /* Rows grouped by token: group g holds rows order[start[g]] .. order[start[g + 1]), of token
     * group_token[g]; made by qb_cuda_train_group_tokens. A token's groups are neighbours. */
    const int32_t *order, *start, *group_token;
    const int32_t *n_groups; /* device; at most max_groups */
    size_t max_groups;
    float *partials; /* qb_cuda_train_embed_partials floats of scratch */
} qb_cuda_train_embed;

/* Rows of a group at most: a block sums a group, and few tokens would keep few blocks busy. */
#define QB_CUDA_TRAIN_GROUP 512
size_t qb_cuda_train_most_groups(size_t n_rows, size_t vocab);
size_t qb_cuda_train_embed_partials(size_t n_rows, size_t width);

qb_status qb_cuda_train_embed_forward(const qb_cuda_train_embed *args, qb_cuda_stream stream);
qb_status qb_cuda_train_embed_backward(const qb_cuda_train_embed *args, qb_cuda_stream stream);
/* On the host: order, group_token have room for batch * n_tokens, start for one more; count
 * (vocab) is scratch. Returns the number of groups, smaller rows first within a token's. */
size_t qb_cuda_train_group_tokens(const int32_t *tokens, size_t batch, size_t n_tokens,
                                  size_t vocab, int32_t *count, int32_t *order, int32_t *start,
                                  int32_t *group_token);

/* ---- norms ---- */

#define QB_CUDA_TRAIN_MAX_NORM 2048 /* columns */
/* Floats of scratch that norm_backward and column_sums need for a width. */
size_t qb_cuda_train_partials(size_t width);

typedef struct qb_cuda_train_norm {
    size_t m, width;
    qb_cuda_dtype type;
    qb_norm_kind norm;
    float eps;
    const float *gain, *bias; /* (width), or (1) for RMSNorm-Single; bias may be NULL */
    size_t stride;            /* of all matrices below */
    const void *x;
    const void *add; /* forward: NULL, or x + add is stored in sum and normed */
    void *sum;       /* may be x */
    float *stats;    /* (m, 2): mean, 1 / deviation */
    void *y;         /* forward: out */
    const void *dy;  /* backward */
    void *dx;
    bool accumulate; /* dx += */
    float *d_gain, *d_bias;
    float *partials; /* backward: qb_cuda_train_partials(width) */
} qb_cuda_train_norm;

qb_status qb_cuda_train_norm_forward(const qb_cuda_train_norm *args, qb_cuda_stream stream);
qb_status qb_cuda_train_norm_backward(const qb_cuda_train_norm *args, qb_cuda_stream stream);

/* ---- activation, bias, rotation of positions, gate ---- */

/* pre is (m, width), for SwiGLU (m, 2 width): gate | up. y (m, width) = act(pre). */
typedef struct qb_cuda_train_act {
    size_t m, width;
    qb_cuda_dtype type;
    qb_act_kind act;
    const void *pre;
    size_t pre_stride;
    void *y; /* forward: out; backward: the gradient of y in */
    size_t y_stride;
    void *d_pre; /* backward: out, stride pre_stride; may be y where the widths are equal */
} qb_cuda_train_act;
qb_status qb_cuda_train_act_forward(const qb_cuda_train_act *args, qb_cuda_stream stream);
qb_status qb_cuda_train_act_backward(const qb_cuda_train_act *args, qb_cuda_stream stream);

/* d_bias += column sums of dy. */
qb_status qb_cuda_train_column_sums(const void *dy, qb_cuda_dtype type, size_t m, size_t n,
                                    size_t stride, float *partials, float *d_bias,
                                    qb_cuda_stream stream);

/* q and k of (m, (H + 2 Hkv) D) rotated by the angles of row % n_tokens, or back. */
qb_status qb_cuda_train_rope(void *qkv, qb_cuda_dtype type, size_t m, size_t n_tokens,
                             size_t stride, size_t n_rotated_heads, size_t head_dim,
                             const float *cosine, const float *sine, bool inverse,
                             qb_cuda_stream stream);

/* gated = out * sigmoid(gate), gate (m, H) one a head; backward: d_out may be d_gated. */
typedef struct qb_cuda_train_gate {
    size_t m, n_heads, head_dim;
    qb_cuda_dtype type;
    size_t stride, gate_stride;
    const void *out, *gate;
    void *gated;
    const void *d_gated;
    void *d_out, *d_gate;
} qb_cuda_train_gate;
qb_status qb_cuda_train_gate_forward(const qb_cuda_train_gate *args, qb_cuda_stream stream);
qb_status qb_cuda_train_gate_backward(const qb_cuda_train_gate *args, qb_cuda_stream stream);

/* ---- loss ---- */

/* Rows first_row .. first_row + n_rows of the m rows: logits (n_rows, vocab) become the gradient of
 * scale * sum of losses where scale is not 0; losses[row] = -log p(target), 0 for targets that are
 * not scored (t < first_target). */
typedef struct qb_cuda_train_loss {
    size_t first_row, n_rows, vocab, n_tokens, first_target;
    qb_cuda_dtype type;
    void *logits;
    size_t stride;
    const int32_t *tokens; /* (batch, n_tokens + 1) */
    float scale;
    float *losses; /* (m) */
} qb_cuda_train_loss;
qb_status qb_cuda_train_cross_entropy(const qb_cuda_train_loss *args, qb_cuda_stream stream);

/* The same where the logits' product (QB_BF16_EXP of gemm_bf16.h) leaves exponentials e of the rows
 * in place of logits. With sums s of the rows and f = scale / s (0 for a row that is not scored)
 *     gradient of the logits = f (e - s where the target is)
 * so products with it are products with e, f being applied to their rows of width columns. The
 * shift of a row is its target's logit, and the exponentials are at most 1 / p(target); where these
 * are too large after all `redo` is set, and the shift is the row's largest logit. */
typedef struct qb_cuda_train_softmax {
    size_t first_row, n_rows, vocab, width, n_tokens, first_target;
    const void *h, *w; /* bf16: (n_rows, width), and the head (vocab, width) dense */
    size_t h_stride;
    const int32_t *tokens; /* (batch, n_tokens + 1) */
    float scale;
    void *e; /* NULL: no gradient is wanted */
    size_t e_stride;
    float *target, *shift; /* (n_rows) */
    const float *sums, *maxima;
    int32_t *redo;
    float *losses, *factors; /* (m); factors are f */
} qb_cuda_train_softmax;
/* Before the product: the targets' logits, the shifts, redo = 0. */
qb_status qb_cuda_train_softmax_begin(const qb_cuda_train_softmax *args, qb_cuda_stream stream);
/* After it: shifts that have to change, redo. */
qb_status qb_cuda_train_softmax_check(const qb_cuda_train_softmax *args, qb_cuda_stream stream);
/* After its repetition: losses, factors, e at the targets less the sums. */
qb_status qb_cuda_train_softmax_finish(const qb_cuda_train_softmax *args, qb_cuda_stream stream);
/* y (m, width) = x with its rows times factors (m), bf16; may be in place. */
qb_status qb_cuda_train_scale_rows(const void *x, void *y, size_t m, size_t width, size_t stride,
                                   const float *factors, qb_cuda_stream stream);

/* ---- optimiser ---- */

typedef struct qb_cuda_train_totals {
    double loss_sum, square_sum, grad_norm;
    float grad_scale;     /* what gradients are multiplied by; 0: the norm was not finite */
    float minus_lr, keep; /* -lr and 1 - decay, or 0 and 1 */
    float keep_all;       /* of those that take no decay: 1 */
    int32_t finite, n_nonfinite;
    int32_t halted;     /* a step was not finite: no later one is either. Outlives the others, */
} qb_cuda_train_totals; /* on the device, which are cleared for each step */
#define QB_CUDA_TRAIN_TOTALS_CLEARED offsetof(qb_cuda_train_totals, halted)

#define QB_CUDA_TRAIN_SUM_PARTIALS 1024 /* doubles */
/* totals->loss_sum += sum of losses (m). */
qb_status qb_cuda_train_add_losses(const float *losses, size_t m, qb_cuda_train_totals *totals,
                                   qb_cuda_stream stream);
/* totals->grad_norm. */
qb_status qb_cuda_train_norm_of(const float *g, size_t n, double *partials,
                                qb_cuda_train_totals *totals, qb_cuda_stream stream);
/* totals->n_nonfinite = elements that are NaN or infinite. */
qb_status qb_cuda_train_count_nonfinite(const float *x, size_t n, qb_cuda_train_totals *totals,
                                        qb_cuda_stream stream);

typedef enum { QB_CUDA_ADAM, QB_CUDA_RMSPROP, QB_CUDA_SGD } qb_cuda_rule;

/* A piece of one parameter: what a block updates. */
#define QB_CUDA_TRAIN_PIECE 4096
typedef struct qb_cuda_train_piece {
    uint64_t first;   /* element, from the start of the buffers */
    uint32_t n_elems; /* 1 to QB_CUDA_TRAIN_PIECE */
    uint16_t decays, rotated;
} qb_cuda_train_piece;

/* What changes from step to step (qb_update of train/optimizers.h). */
typedef struct qb_cuda_train_rates {
    float inv_bias1, inv_sqrt_bias2, lr, decay, grad_scale;
} qb_cuda_train_rates;

typedef struct qb_cuda_train_update {
    qb_cuda_rule rule;
    float beta1, beta2, one_minus_beta1, one_minus_beta2, eps, momentum;
    float clip;
    const qb_cuda_train_rates *rates;  /* device */
    const qb_cuda_train_piece *pieces; /* (n_pieces) device */
    size_t n_pieces;
    const float *gradients;
    float *rotated;         /* Q g of rotated pieces, replaced by their delta; may be NULL */
    float *weights, *m, *v; /* m, v NULL where the rule has none */
    void *copy;             /* bf16 copy of the weights, or NULL */
    qb_cuda_train_totals *totals;
} qb_cuda_train_update;
/* Works out totals->grad_scale, minus_lr, keep from totals->grad_norm; then the pass over all
 * pieces; weights of rotated ones are left to the products that turn delta back. */
qb_status qb_cuda_train_scales(const qb_cuda_train_update *args, qb_cuda_stream stream);
qb_status qb_cuda_train_apply(const qb_cuda_train_update *args, qb_cuda_stream stream);
/* bf16 copies of n f32 values. */
qb_status qb_cuda_train_round(const float *from, void *to, size_t n, qb_cuda_stream stream);

#ifdef __cplusplus
}
#endif
#endif
