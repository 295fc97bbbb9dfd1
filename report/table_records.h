/* report/table_records.h - what a folder of recorded runs holds for the tables of report/paper.h.
 *
 * A record is one model: the evaluations of `qbench run --json`, a training's outliers and speed
 * (qbench.run/1 of bench/paper_runs.py, qbench.pair/1 of bench/pair.py) and its analysis
 * (qbench.analysis/1). Files that lie in the folder of a run.json belong to that run, others are
 * joined by the model's digest. Of several evaluations of a model that of most tokens counts, else
 * the one that is read first: paths are read in the order of their names. Files of other schemas
 * are left out, what is no JSON is refused. */
#ifndef QB_REPORT_TABLE_RECORDS_H
#define QB_REPORT_TABLE_RECORDS_H

#include "report/result.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Names as in the columns of report/paper.h; NaN = not measured. */
typedef enum qb_figure_id {
    QB_FIGURE_PPL,
    QB_FIGURE_KURT_FIRST,
    QB_FIGURE_KURT_REST,
    QB_FIGURE_MAX_FIRST,
    QB_FIGURE_MAX_REST,
    QB_FIGURE_ARGMAX,
    QB_FIGURE_STEPS,
    QB_FIGURE_MEMORY,
    QB_FIGURE_CORRELATION_FIRST,
    QB_FIGURE_CORRELATION_REST,
    QB_FIGURE_COUNT
} qb_figure_id;

typedef struct qb_table_record {
    char *name;   /* of the run, else of the model */
    char *row;    /* id of the row that it stands for; NULL = none */
    char *path;   /* of a run's run.json, else of its evaluation, else of what was read first */
    char *folder; /* of a run; NULL = no run */
    char *sha256; /* of the model; NULL = not known, as of all texts below */
    char *trained_on, *device;                    /* GPU, and what evaluated it */
    char *time_utc, *git_commit, *command, *text; /* of the evaluation, else the training */
    double tokens, vocab, seed, scored_tokens;    /* NaN = not known */
    double figures[QB_FIGURE_COUNT];
    bool head_quantised;
    const qb_result *schemes; /* borrowed from the records' results */
    size_t n_schemes;
} qb_table_record;

typedef struct qb_table_records {
    qb_table_record *items;
    size_t n, capacity;
    qb_results *results; /* of each file that was read */
    size_t n_results, results_capacity;
    qb_texts left_out; /* why files of folders were, that are no JSON */
} qb_table_records;

/* A record, or a folder with all that lies below it, where other files may lie, too. QB_ERR_FORMAT:
 * the file is no record, or a record breaks a rule. */
qb_status qb_table_records_add(qb_table_records *records, const char *path);
/* One file's text; `path` as it would be. *known: whether it is a record by its schema, broken or
 * not; nothing is done with what is none. */
qb_status qb_table_records_parse(qb_table_records *records, const char *text, size_t bytes,
                                 const char *path, bool *known);
void qb_table_records_deinit(qb_table_records *records);

/* NULL = it was not evaluated under that scheme. */
const qb_result *qb_table_record_scheme(const qb_table_record *record, const char *scheme);
/* The figure of that name; NaN = not measured, or no such name. */
double qb_table_record_figure(const qb_table_record *record, const char *name);

#ifdef __cplusplus
}
#endif
#endif
