/* infer/taps.h - what an engine shows while it runs: the residual stream and what adds to it.
 *
 * An observer is called once a tap and layer of each prefill, in the order of the forward pass,
 * with f32 values of all rows on the host. It may change them in place where it says so (`edits`):
 * the pass goes on with what it left. Without an observer an engine pays one branch a step. */
#ifndef QB_INFER_TAPS_H
#define QB_INFER_TAPS_H

#include "infer/engine.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum qb_tap {
    QB_TAP_EMBEDDING, /* (M, C) the stream before the first block */
    QB_TAP_NORMED,    /* (M, C) what a norm hands on: role NORM1, NORM2, NORM_F; not to be edited
                         where the layers behind it quantise their input */
    QB_TAP_QKV,       /* (M, (H + 2 Hkv) D) as they enter the scores, rotated */
    QB_TAP_ATTENTION, /* (M, H D) attention's output before gates and projection */
    QB_TAP_ADDED,     /* (M, C) what is about to be added to the stream: role O or DOWN */
    QB_TAP_STREAM,    /* (M, C) the stream after a block */
    QB_TAP_INPUT,     /* (M, k) of each linear layer of a block, by its role, in floats; of a
                         fake-quant twin already rounded. Not to be edited */
    QB_TAP_OUTPUT,    /* (M, n) likewise, before a scheme requantises it. Not to be edited */
    QB_TAP_COUNT
} qb_tap;

typedef struct qb_tap_view {
    qb_tap tap;
    qb_role role;           /* of NORMED, ADDED, INPUT, OUTPUT */
    size_t layer;           /* block, from 0; of EMBEDDING 0, of NORM_F the number of blocks */
    size_t batch, n_tokens; /* M = batch * n_tokens: row b * n_tokens + t */
    float *x;               /* row r begins at x + r * stride */
    size_t width, stride;
} qb_tap_view;

typedef struct qb_taps {
    unsigned sees, edits; /* bit 1 << tap of those that are wanted, and of those that it changes */
    qb_status (*see)(void *context, const qb_tap_view *view);
    void *context;
} qb_taps;
#define QB_TAP_BIT(tap) (1u << (tap))

/* From the next prefill on (not in decode steps, not in prefill_last). taps is borrowed; NULL ends
 * it. QB_ERR_UNSUPPORTED where the engine's device has not all that is wanted. */
qb_status qb_engine_observe(qb_engine *engine, const qb_taps *taps);

#ifdef __cplusplus
}
#endif
#endif
