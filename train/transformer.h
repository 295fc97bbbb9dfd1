/* train/transformer.h - the model's walk forward and backward, written once over the operations of
 * a device (train/ops.h); it follows equation (1) of model/arch.h.
 *
 * Kept for the backward pass, a block: both inputs of its norms and their outputs, q k v,
 * attention's output, and the hidden layer before and after its activation. With recompute only the
 * block's input is kept, and the rest is worked out again when the backward pass arrives there. */
#ifndef QB_TRAIN_TRANSFORMER_H
#define QB_TRAIN_TRANSFORMER_H

#include "train/ops.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct qb_transformer qb_transformer;

/* Allocates all activations on the device. params, ops and device are borrowed. */
qb_status qb_transformer_create(const qb_params *params, const qb_train_ops *ops,
                                qb_train_device *device, bool recompute, qb_transformer **out);
void qb_transformer_destroy(qb_transformer *transformer); /* accepts NULL */

/* The loaded tokens through the model; the loss is added up on the device. */
qb_status qb_transformer_evaluate(qb_transformer *transformer);
/* What one pass forward computed, as buffers of the device, layer by layer; each is good until the
 * function returns. */
typedef struct qb_walk_tap {
    qb_status (*attention)(void *context, size_t layer, const void *qkv); /* as it enters scores */
    qb_status (*stream)(void *context, size_t layer, const void *x);      /* after the block */
    qb_status (*head_input)(void *context, const void *h);                /* after the last norm */
    void *context;
    qb_walk_skip skip;
} qb_walk_tap;
/* Forward without a loss. */
qb_status qb_transformer_observe(qb_transformer *transformer, const qb_walk_tap *tap);
/* As evaluate, and the gradients of scale * loss are added. */
qb_status qb_transformer_learn(qb_transformer *transformer, float scale);
/* The same in parts, one after the other, and what each makes final of the gradients handed on
 * (share_gradients): for several ranks in the step's last pass, or without one. */
size_t qb_transformer_parts(const qb_transformer *transformer);
qb_status qb_transformer_learn_part(qb_transformer *transformer, size_t part, float scale);
qb_status qb_transformer_share_part(qb_transformer *transformer, size_t part);

#ifdef __cplusplus
}
#endif
#endif
