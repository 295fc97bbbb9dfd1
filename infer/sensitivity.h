/* infer/sensitivity.h - which layers a scheme's penalty comes from (docs/analyze.md).
 *
 * A mixed engine (infer/engine.h) runs the same windows again and again: with one part of the model
 * quantised, with all but that part, and with the most costly parts left out. Full precision and
 * the whole scheme are run once each. Deterministic at any number of threads. */
#ifndef QB_INFER_SENSITIVITY_H
#define QB_INFER_SENSITIVITY_H

#include "infer/quality.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum {
    QB_SENSITIVITY_LINEAR, /* each linear layer, or those that cannot be told apart */
    QB_SENSITIVITY_LAYER,  /* those of a block */
    QB_SENSITIVITY_ROLE,   /* those of a role in all blocks */
    QB_SENSITIVITY_COUNT
} qb_sensitivity_by;
extern const char *const qb_sensitivity_words[QB_SENSITIVITY_COUNT]; /* linear layer role */

typedef struct qb_sensitivity_plan {
    const qb_stream *stream;
    const qb_windows *windows;
    size_t batch;          /* most windows a forward call */
    qb_engine *full;       /* its backbone has a slot of logits */
    qb_engine *scheme;     /* of the same backbone */
    qb_engine *probe_full; /* the same on the CPU, for what products say of themselves; may be */
    qb_engine *probe;      /* full and scheme; NULL = left out */
    qb_sensitivity_by by;
    uint64_t seed;
} qb_sensitivity_plan;

typedef struct qb_sensitivity_part {
    char name[64]; /* tensor "h.3.mlp.down", "layer 4", "mlp.down" */
    size_t layer;  /* from 1; 0 = several */
    char role[32]; /* "" = several */
    uint8_t *mask; /* (n_layers, QB_ROLE_COUNT) 1 = belongs to it */
    size_t linears;
    double ppl, penalty, share, cumulative_share, ppl_without, saved;
    qb_interval penalty_ci95, saved_ci95;
    double sqnr_db, input_kurtosis, input_amax, input_p999, amax_ratio; /* NaN = not measured */
} qb_sensitivity_part;

typedef struct qb_sensitivity_kept {
    size_t n;
    double ppl, penalty, removed;
    qb_interval penalty_ci95;
} qb_sensitivity_kept;

typedef struct qb_sensitivity {
    qb_sensitivity_by by;
    size_t n_windows, n_scored;
    double ppl_full, ppl, penalty;
    qb_interval penalty_ci95;
    qb_sensitivity_part *parts; /* largest penalty first */
    size_t n_parts;
    qb_sensitivity_kept *kept; /* until 90 % of the penalty is gone */
    size_t n_kept;
} qb_sensitivity;

/* QB_ERR_INTERRUPTED on Ctrl-C. The caller deinits *out after success. */
qb_status qb_sensitivity_measure(const qb_sensitivity_plan *plan, qb_sensitivity *out);
void qb_sensitivity_deinit(qb_sensitivity *sensitivity); /* accepts a zeroed one */
/* The object of docs/analyze.md, without `scheme`. */
json_t *qb_sensitivity_to_json(const qb_sensitivity *sensitivity);

/* ---- infer/sensitivity_streams.c ---- */

/* Residual streams of the passes of full precision and of the whole scheme: another pass need only
 * run from the first block on that differs from one of them. */
typedef struct qb__streams qb__streams;
/* *out = NULL where nothing would be gained or they would be too large. */
qb_status qb__streams_create(const qb_sensitivity_plan *plan, const qb_engine *mixed,
                             qb__streams **out);
void qb__streams_destroy(qb__streams *streams); /* accepts NULL */
/* Runs windows [first, ...) with the layers of the mask (n_layers, QB_ROLE_COUNT), which the engine
 * has, from as far on as is known; a pass with none or all of them is kept. streams may be NULL. */
qb_status qb__streams_prefill(qb__streams *streams, qb_engine *mixed, const uint8_t *mask,
                              size_t first_window, const int32_t *tokens, size_t batch,
                              size_t n_tokens);

/* ---- infer/sensitivity_probe.c ---- */

/* Fills the figures of products and their inputs from one forward call of (batch, n_tokens)
 * tokens, the first the plan's engines run. */
qb_status qb__sensitivity_probe(const qb_sensitivity_plan *plan, const int32_t *tokens,
                                size_t batch, size_t n_tokens, qb_sensitivity_part *parts,
                                size_t n_parts);

#ifdef __cplusplus
}
#endif
#endif
