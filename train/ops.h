/* train/ops.h - what the model's walk (train/transformer.c) and the trainer ask of a device.
 *
 * A device keeps the tokens of one pass, and the weights, gradients and states of the optimiser in
 * the layout of train/params.h; the walk names parameters by their offset there. Activations are
 * buffers of the device, one row a token: all functions work on the m = batch * context rows of the
 * tokens loaded last, row b * context + t. The walk hands buffers on and never looks inside; their
 * element type is the device's own (f32 on the CPU). Activation, softmax and positions are the
 * configuration's.
 *
 * Gradients of weights are added to what is there. Everything is allocated by create and alloc, and
 * calls on a GPU are queued: only copies, has_nonfinite and receive_totals wait. */
#ifndef QB_TRAIN_OPS_H
#define QB_TRAIN_OPS_H

#include "train/trainer.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct qb_train_device qb_train_device; /* one a trainer; what it is the row knows */

/* What is this process's among those that train together (train/comm.h): the elements first to end
 * of the parameters. Alone (comm NULL) it owns all. Weights and gradients are whole in every rank,
 * states of the optimiser are held by the owner alone (ZeRO-1, arXiv:1910.02054). */
typedef struct qb_train_share {
    qb_comm *comm;
    size_t *bounds; /* of each rank's elements, as in comm.h */
    size_t first, end;
} qb_train_share;
static inline bool qb_train_owns(const qb_train_share *share, const qb_param *p)
{
    return p->offset >= share->first && p->offset < share->end;
}

#define QB_NO_PARAM SIZE_MAX

typedef enum {
    QB_BUFFER_ACTIVATION, /* (m, width) in the device's type */
    QB_BUFFER_F32,        /* (m, width): statistics */
} qb_train_buffer;

typedef enum {
    QB_ARRAY_WEIGHTS,
    QB_ARRAY_GRADIENTS,
    QB_ARRAY_STATE0,
    QB_ARRAY_STATE1,
    QB_ARRAY_COUNT
} qb_train_array;

/* y (m, n) = x (m, k) W^T + bias; parameters that lie back to back may be one W. */
typedef struct qb_train_linear {
    size_t w, bias; /* offsets; bias may be QB_NO_PARAM */
    size_t n, k;
} qb_train_linear;

typedef struct qb_train_norm {
    size_t gain, bias;
} qb_train_norm;

/* One layer's attention. qkv (m, (H + 2 Hkv) D) holds q, k and v as they enter the scores; out
 * (m, H D). lse (m, H) is what the backward pass needs of a row of scores. */
typedef struct qb_train_attention {
    void *qkv, *out;
    void *lse;
    size_t sink; /* offset of the (H) learned logits, or QB_NO_PARAM */
} qb_train_attention;

typedef struct qb_train_totals {
    double loss_sum;  /* over the scored targets since begin */
    double grad_norm; /* of gradient_norm */
} qb_train_totals;
enum { QB_TRAIN_TOTALS = 4 }; /* places for them */

/* Calls of this table that are made again and again: all that they queue depends on the fields
 * below alone, and on what load_tokens and set_update have brought. */
typedef struct qb_train_repeat {
    unsigned what; /* the caller's own mark */
    size_t batch;  /* of load_tokens */
    float scale;   /* of classifier */
    qb_status (*queue)(void *context);
    void *context;
} qb_train_repeat;

typedef struct qb_train_ops {
    const char *device; /* "cpu", "cuda" */
    /* create makes bases of kind HADAMARD itself, for the fast transform; set_rotation refuses. */
    bool makes_hadamard;
    size_t steps_ahead; /* that keep the device busy when they are queued behind the present one */
    /* NULL, or why the device cannot train this. */
    const char *(*refuse)(const qb_config *config, const qb_trainer_options *options);
    /* params, options and share outlive the device. */
    qb_status (*create)(const qb_params *params, const qb_trainer_options *options,
                        const qb_train_share *share, qb_train_device **out);
    void (*destroy)(qb_train_device *d); /* accepts NULL; frees its buffers */
    size_t (*memory_bytes)(const qb_train_device *d);
    /* For the most rows that a pass may have. */
    qb_status (*alloc)(qb_train_device *d, qb_train_buffer kind, size_t width, void **out);

    /* An array from and to the host: all n_elems, but of states the own ones alone. */
    qb_status (*copy_in)(qb_train_device *d, qb_train_array array, const float *from);
    qb_status (*copy_out)(qb_train_device *d, qb_train_array array, float *to);
    /* The m rows of a buffer, as f32 on the host: for what an evaluation looks at. */
    qb_status (*read)(qb_train_device *d, qb_train_buffer kind, size_t width, const void *buffer,
                      float *to);
    /* The basis of an axis that options->rotation rotates; those of own parameters are set before
     * the first update. Of kind BLOCK only the blocks are read. */
    qb_status (*set_rotation)(qb_train_device *d, const qb_param *param, size_t axis,
                              const float *q);

    /* The loss becomes 0, and with gradients these too. */
    qb_status (*begin)(qb_train_device *d, bool gradients);
    /* tokens (batch, context + 1), batch <= micro_batch; learn: for gradients too. */
    qb_status (*load_tokens)(qb_train_device *d, const int32_t *tokens, size_t batch, bool learn);
    /* Of the update to come. */
    qb_status (*set_update)(qb_train_device *d, const qb_update *update);
    /* Calls queue, or does again what it did when the other fields were the same. Neither ranks'
     * calls may be in it nor, of several ranks, begin. */
    qb_status (*repeat)(qb_train_device *d, const qb_train_repeat *repeat);

    /* x = tok_embd[token] + pos_embd[t] */
    qb_status (*embed_forward)(qb_train_device *d, void *x);
    qb_status (*embed_backward)(qb_train_device *d, const void *dx);
    /* sum = x + add, y = norm(sum); add NULL: y = norm(x). stats (m, 2) f32 for the backward
     * pass, which gets the same x (or sum) again. */
    qb_status (*norm_forward)(qb_train_device *d, const qb_train_norm *norm, const void *x,
                              const void *add, void *sum, void *stats, void *y);
    /* dx (+)= the gradient through the norm. */
    qb_status (*norm_backward)(qb_train_device *d, const qb_train_norm *norm, const void *x,
                               const void *stats, const void *dy, bool accumulate, void *dx);
    /* pre NULL: y = x W^T + bias. Else pre is that, and y = act(pre); for SwiGLU a row of pre is
     * [gate | up], twice as wide as y; for ReLU pre may be y. */
    qb_status (*linear_forward)(qb_train_device *d, const qb_train_linear *linear, const void *x,
                                void *pre, void *y);
    /* dx (+)= dy W. pre not NULL: x was act(pre), and dx becomes the gradient of pre. */
    qb_status (*linear_backward_input)(qb_train_device *d, const qb_train_linear *linear,
                                       const void *dy, const void *pre, bool accumulate, void *dx);
    qb_status (*linear_backward_weights)(qb_train_device *d, const qb_train_linear *linear,
                                         const void *x, const void *dy);
    /* Rotary positions of q and k in place; inverse: of their gradients. */
    qb_status (*rope)(qb_train_device *d, void *qkv, bool inverse);
    qb_status (*attention_forward)(qb_train_device *d, const qb_train_attention *attention);
    qb_status (*attention_backward)(qb_train_device *d, const qb_train_attention *attention,
                                    const void *dout, void *dqkv);
    /* gated = out * sigmoid(gate), gate (m, H) one a head. d_out may be d_gated. */
    qb_status (*gate_forward)(qb_train_device *d, const void *out, const void *gate, void *gated);
    qb_status (*gate_backward)(qb_train_device *d, const void *out, const void *gate,
                               const void *d_gated, void *d_out, void *d_gate);
    /* Loss of the scored targets given the head's input h; dh not NULL: its gradient and the head's
     * weights', of `scale` times the sum of losses. Logits exist a few rows at a time. */
    qb_status (*classifier)(qb_train_device *d, const void *h, float scale, void *dh);

    /* Several ranks: the gradients of elements first to end are final on this rank, and may be
     * added up over the ranks from now on; the owner has the sums when gradient_norm begins. Every
     * element is in one call a step, and the calls are the same on all ranks: layer by layer while
     * the backward pass goes on. */
    qb_status (*share_gradients)(qb_train_device *d, size_t first, size_t end);
    /* Of all ranks' gradients; the loss becomes that of all ranks too. */
    qb_status (*gradient_norm)(qb_train_device *d);
    /* One optimiser step after gradient_norm: of own parameters, and the others' weights are on
     * their way, as far as a pass reads them: they are there behind begin. The gradient is also
     * multiplied by min(1, clip / norm), clip 0 = none. Where the loss or the norm is not finite
     * nothing changes, nor in any update after it until go_on. */
    qb_status (*update)(qb_train_device *d, double clip);
    qb_status (*go_on)(qb_train_device *d);
    /* Several ranks: until the next update copy_out has the others' weights too. NULL: always. */
    qb_status (*fetch_weights)(qb_train_device *d);
    qb_status (*has_nonfinite)(qb_train_device *d, qb_train_array array, size_t offset,
                               size_t n_elems, bool *out);
    /* The totals as they are behind all that is queued go to a place; received, they are there. */
    qb_status (*send_totals)(qb_train_device *d, size_t place);
    qb_status (*receive_totals)(qb_train_device *d, size_t place, qb_train_totals *out);
} qb_train_ops;

extern const qb_train_ops qb__train_ops_cpu;         /* the rows */
extern const qb_train_ops qb__train_ops_cuda;        /* in a build with CUDA */
extern const qb_train_ops *const qb_train_devices[]; /* ends with NULL */
/* (batch, window) ids: QB_ERR_FORMAT names the first outside the vocabulary. */
qb_status qb_train_check_tokens(const int32_t *tokens, size_t batch, size_t window, size_t vocab);

/* Scored targets of one window: those that free_prefix does not show. */
static inline size_t qb_train_first_target(const qb_config *config)
{
    return config->free_prefix ? config->free_prefix - 1 : 0;
}
/* Width of what comes before the activation. */
static inline size_t qb_train_pre_width(const qb_config *config)
{
    return config->act == QB_ACT_SWIGLU ? 2 * config->d_ff : config->d_ff;
}
static inline size_t qb_train_qkv_width(const qb_config *config)
{
    return (config->n_heads + 2 * config->n_kv_heads) * config->head_dim;
}

#ifdef __cplusplus
}
#endif
#endif
