/* cli/analyze.h - the parts of `qbench analyze` (cli/cmd_analyze.c): texts and windows, engine and
 * passes, and what sections of the result are made from. */
#ifndef QB_CLI_ANALYZE_H
#define QB_CLI_ANALYZE_H

#include "cli/run.h"
#include "infer/analysis.h"

typedef struct qb_analyze_text {
    qb_text text;
    qb_run_text run;
} qb_analyze_text;

typedef struct qb_analyze {
    const qb_cli *cli;
    qb_device device;
    qb_pool *pool;
    qb_model *model;
    qb_analyze_text *texts;
    size_t n_texts, max_rows, context;
    qb_backbone *backbone;
    qb_engine *engine; /* full precision in f32 */
    qb_analysis *analysis;
    double *nll_sums; /* (n_texts) of the untouched model; NaN = losses were not asked for */
    qb_machine machine;
    char time_utc[32];
} qb_analyze;

/* ---- cli/analyze_text.c ---- */

/* --text or --tokens as windows: a row of --tokens is one. Also max_rows and context. */
qb_status qb_analyze_open_texts(qb_analyze *a);
void qb_analyze_close_texts(qb_analyze *a);

/* ---- cli/analyze_interventions.c ---- */

bool qb_analyze_wants_interventions(const qb_cli *cli);
/* Before the long work: all that are asked for can be made of this model. */
qb_status qb_analyze_check_interventions(qb_analyze *a);
qb_status qb_analyze_add_interventions(qb_analyze *a, json_t *root);

/* ---- cli/analyze_weights.c ---- */

qb_status qb_analyze_add_weights(qb_analyze *a, json_t *root);

/* ---- cli/analyze_basis.c ---- */

bool qb_analyze_wants_basis(const qb_cli *cli);
qb_status qb_analyze_check_basis(const qb_analyze *a); /* before the long work */
qb_status qb_analyze_add_basis(qb_analyze *a, json_t *root);

/* ---- cli/cmd_analyze.c ---- */

/* Runs all texts through the engine. nll_sums (n_texts), of the scored tokens, or NULL: no losses.
 */
qb_status qb_analyze_pass(qb_analyze *a, const char *label, double *nll_sums);

/* A section of the result beside the metrics: adds its keys to root. */
typedef struct qb_analyze_section {
    bool (*wanted)(const qb_cli *cli); /* by its options; NULL = always */
    bool losses;                       /* needs nll_sums */
    qb_status (*add)(qb_analyze *a, json_t *root);
} qb_analyze_section;

/* ---- cli/analyze_sensitivity.c ---- */

bool qb_analyze_wants_sensitivity(const qb_cli *cli);
qb_status qb_analyze_add_sensitivity(qb_analyze *a, json_t *root);

#endif
