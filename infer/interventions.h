/* infer/interventions.h - changes to a running model that show what its outliers are for: an
 * intervention is an observer (infer/taps.h) that edits what it sees.
 *
 * Massive activations to zero or to their mean: arXiv:2402.17762, section 3. Parts of a model left
 * out, the first token's value zeroed: arXiv:2410.13835. The first key hidden from all queries but
 * its own: the cost of a sink. */
#ifndef QB_INFER_INTERVENTIONS_H
#define QB_INFER_INTERVENTIONS_H

#include "core/threads.h"
#include "infer/analysis.h"
#include "model/model.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct qb_intervention qb_intervention;

typedef struct qb_intervention_options {
    const qb_massive_place *places; /* of the massive ones; borrowed */
    size_t n_places;
    size_t max_rows; /* most rows (windows x tokens) of a call */
    qb_pool *pool;   /* borrowed; NULL = one thread */
} qb_intervention_options;

/* what: "zero-massive", "mean-massive", "zero-first-value", "drop-first-key", "head:L.H", "attn:L",
 * "mlp:L" (from 1). QB_ERR_USAGE: none of these, or the model has no such part; QB_ERR_UNSUPPORTED:
 * not with this softmax. The model is borrowed. */
qb_status qb_intervention_create(const qb_model *model, const char *what,
                                 const qb_intervention_options *options, qb_intervention **out);
void qb_intervention_destroy(qb_intervention *intervention); /* accepts NULL */
/* Whether `what` can be made: for checks before a long run. */
qb_status qb_intervention_check(const qb_model *model, const char *what);
const qb_taps *qb_intervention_taps(const qb_intervention *intervention);
/* Values that were set so far. */
size_t qb_intervention_n_edits(const qb_intervention *intervention);

#ifdef __cplusplus
}
#endif
#endif
