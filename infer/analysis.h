/* infer/analysis.h - the outlier and attention metrics of `qbench analyze`, gathered while an
 * engine runs texts (docs/analyze.md has every definition and its source).
 *
 * An analysis is an observer (infer/taps.h): each view is added up in double at once, in an order
 * that no number of threads changes, and forgotten. Memory depends on the model and the context,
 * not on the text's length. What is found is a JSON object of schema qbench.analysis/1. */
#ifndef QB_INFER_ANALYSIS_H
#define QB_INFER_ANALYSIS_H

#include "infer/taps.h"

#include <jansson.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct qb_analysis qb_analysis;
typedef struct qb_analysis_options {
    size_t max_rows; /* most rows (windows x tokens) of a call */
    size_t context;  /* most tokens of a window */
    size_t n_texts;  /* heads are told apart by text */
    bool maps;       /* of the first window, too */
    qb_pool *pool;   /* borrowed; NULL = one thread */
} qb_analysis_options;
/* The model is borrowed and must outlive the analysis. */
qb_status qb_analysis_create(const qb_model *model, const qb_analysis_options *options,
                             qb_analysis **out);
void qb_analysis_destroy(qb_analysis *analysis); /* accepts NULL */

/* For qb_engine_observe. */
const qb_taps *qb_analysis_taps(const qb_analysis *analysis);
/* What comes from now on belongs to this text (from 0). */
void qb_analysis_begin_text(qb_analysis *analysis, size_t text_idx);

/* Adds mean, layers and all the rest to the object; may be called at any time. */
qb_status qb_analysis_to_json(const qb_analysis *analysis, json_t *root);

/* Where massive activations were found: for interventions. */
typedef struct qb_massive_place {
    size_t layer, channel; /* from 0: the stream after this block holds one in this channel */
    double mean;           /* of their values there */
    double least;          /* smallest |value| that counted */
} qb_massive_place;
/* The caller frees *places. */
qb_status qb_analysis_massive(const qb_analysis *analysis, qb_massive_place **places, size_t *n);

#ifdef __cplusplus
}
#endif
#endif
