/* train/bb_probe.h - what a model has learnt of the Bigram-Backcopy task, and the extreme-token
 * phenomena that go with it (Guo et al. 2024, arXiv:2410.13835).
 *
 * Risks, in nats: at a trigger x_t, -log p(x_{t-1}); at any other token, sum over v of
 * p(v | x_t) (-log p(v)) with the true p(v | x_t), and the excess over the same sum of the truth.
 * Of each layer: the attention that queries at non-triggers pay to <s> and to all triggers, and how
 * far the score of <s> is above the mean of the others'; the norm of W_O v and of the stream at
 * <s>, at triggers and elsewhere. */
#ifndef QB_TRAIN_BB_PROBE_H
#define QB_TRAIN_BB_PROBE_H

#include "quant/outliers.h"
#include "train/data/bb.h"
#include "train/trainer.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { QB_BB_MAX_LAYERS = 8 }; /* of which figures are kept: the first ones */

typedef struct qb_bb_layer {
    double attn_bos, attn_triggers, score_gap;
    double value_bos, value_triggers, value_rest; /* triggers are of the rest */
    double stream_bos, stream_rest;
} qb_bb_layer;

typedef struct qb_bb_metrics {
    double backcopy_risk;
    double bigram_risk, bigram_excess;
    double bigram_risk_rest; /* without the first position, whose next token is drawn otherwise */
    size_t n_layers;
    qb_bb_layer layers[QB_BB_MAX_LAYERS];
} qb_bb_metrics;

typedef struct qb_bb_probe qb_bb_probe;
/* All borrowed for its life: params and weights (n_elems) of the model, tokens (n_windows, context
 * + 1) of the windows that it is shown. */
qb_status qb_bb_probe_create(const qb_bb *bb, const qb_params *params, const float *weights,
                             const int32_t *tokens, size_t context, qb_pool *pool,
                             qb_bb_probe **out);
void qb_bb_probe_destroy(qb_bb_probe *probe); /* accepts NULL */
/* As in qb_observer. view: of the same pass's attention (quant/outliers.h). */
qb_status qb_bb_probe_attention(qb_bb_probe *probe, const qb_observed *qkv,
                                const qb_first_key_view *view);
qb_status qb_bb_probe_stream(qb_bb_probe *probe, const qb_observed *x);
qb_status qb_bb_probe_head_input(qb_bb_probe *probe, const qb_observed *h);
/* NaN where nothing was seen. */
void qb_bb_probe_finish(const qb_bb_probe *probe, qb_bb_metrics *out);

#ifdef __cplusplus
}
#endif
#endif
