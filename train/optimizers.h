/* train/optimizers.h - the optimiser table.
 *
 * An optimiser turns a gradient into a step, element by element, with up to two states:
 *
 *     delta = rule(g; m, v, t)                       w <- w - lr * (delta + weight_decay * w)   (1)
 *
 * Adam (Kingma & Ba 2015; decay decoupled as in AdamW, Loshchilov & Hutter 2019):
 *     m <- b1 m + (1 - b1) g, v <- b2 v + (1 - b2) g^2,
 *     delta = (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)                                   (2)
 * RMSProp (torch's): v <- a v + (1 - a) g^2, delta = g / (sqrt(v) + eps)                        (3)
 * SGD: m <- mu m + g, delta = m (mu = 0: no state, delta = g)                                   (4)
 *
 * A rotated optimiser (OrthoAdam, arXiv:2410.17174, Algorithm 1) applies the rule to Q g and steps
 * by Q^T delta; Q acts on the residual-stream axis of each matrix (train/rotation.h). */
#ifndef QB_TRAIN_OPTIMIZERS_H
#define QB_TRAIN_OPTIMIZERS_H

#include "core/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum { QB_RULE_ADAM, QB_RULE_RMSPROP, QB_RULE_SGD, QB_RULE_COUNT } qb_update_rule;

typedef struct qb_optimizer_settings {
    double beta1, beta2; /* (2); RMSProp's alpha is beta2 */
    double eps;
    double momentum; /* (4) */
    double weight_decay;
    bool decay_all; /* vectors and gains decay too */
} qb_optimizer_settings;

typedef struct qb_optimizer {
    const char *name; /* adam adamw orthoadam rmsprop sgd sgd_momentum */
    qb_update_rule rule;
    size_t n_states; /* buffers of the size of the weights: 0, 1 or 2 */
    bool rotated;
    qb_optimizer_settings defaults;
    double lr; /* the papers' peak rate */
    const char *source;
} qb_optimizer;
extern const qb_optimizer qb_optimizers[];               /* ends with a zero row */
const qb_optimizer *qb_optimizer_find(const char *name); /* NULL = none */

/* What an update of step t (1-based) needs, worked out once in double. */
typedef struct qb_update {
    qb_update_rule rule;
    float beta1, beta2, one_minus_beta1, one_minus_beta2, eps, momentum;
    float inv_bias1, inv_sqrt_bias2; /* 1 / (1 - b1^t), 1 / sqrt(1 - b2^t) */
    float lr, decay;                 /* decay: lr * weight_decay, of those that take it */
    float grad_scale;                /* clipping and averaging: g is multiplied by it first */
} qb_update;
qb_update qb_update_make(const qb_optimizer *optimizer, const qb_optimizer_settings *settings,
                         double lr, uint64_t step, double grad_scale);
/* delta[i] of (2)-(4) for n elements; m, v NULL where the rule has none. The reference. */
void qb_update_delta(const qb_update *update, size_t n, const float *g, float *m, float *v,
                     float *delta);

#ifdef __cplusplus
}
#endif
#endif
