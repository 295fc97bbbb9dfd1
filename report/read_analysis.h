/* report/read_analysis.h - what the page shows of a file of `qbench analyze --json`: metrics layer
 * by layer, heads, and maps (docs/analyze.md).
 *
 * Files come from anywhere: types, sizes and what belongs together are checked before anything of
 * that size is allocated, and a message names the place ("layers[2].layer: found ..."). Keys that
 * the page does not show are left out. */
#ifndef QB_REPORT_READ_ANALYSIS_H
#define QB_REPORT_READ_ANALYSIS_H

#include "report/result.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum qb_layer_metric {
    QB_LAYER_KURT_FIRST,
    QB_LAYER_KURT_REST,
    QB_LAYER_MAX_FIRST,
    QB_LAYER_MAX_REST,
    QB_LAYER_FIRST_ARGMAX,
    QB_LAYER_FIRST_SHARE,
    QB_LAYER_RATIO_FIRST,
    QB_LAYER_RATIO_REST,
    QB_LAYER_METRIC_COUNT
} qb_layer_metric;
extern const char *const qb_layer_metric_keys[QB_LAYER_METRIC_COUNT]; /* in JSON */

/* Row-major; NaN = not measured. Without cells where there is none. */
typedef struct qb_grid {
    size_t n_rows, n_cols;
    double *cells;
} qb_grid;

typedef struct qb_analysis_map {
    int64_t layer;     /* from 1; -1 = the mean over layers */
    qb_grid attention; /* queries, keys */
    qb_grid hidden;    /* positions, channels */
} qb_analysis_map;

/* What one part (a linear layer, a block, a role) costs when it alone is quantised. NaN = not
 * measured. */
typedef struct qb_analysis_part {
    char *name;
    double penalty, share, sqnr_db, input_kurtosis;
    qb_interval penalty_ci95;
} qb_analysis_part;

typedef struct qb_analysis_record {
    char *model, *sha256, *text, *command;
    int64_t context, channels; /* what maps span; -1 = not known */
    size_t n_layers;
    double *values; /* (n_layers, QB_LAYER_METRIC_COUNT) */
    qb_grid heads;  /* (n_layers, heads): mean weight on the first token */
    qb_analysis_map *maps;
    size_t n_maps;
    json_t *root; /* all of it, for what is shown as it stands; shared with the reader's caller */
    char *scheme; /* of the sensitivity */
    qb_analysis_part *parts;
    size_t n_parts;
} qb_analysis_record;

#define QB_ANALYSIS_SCHEMA "qbench.analysis/1"
enum {
    QB_ANALYSIS_MAX_LAYERS = 1000,
    QB_ANALYSIS_MAX_CELLS = 64,
    QB_ANALYSIS_MAX_MAPS = 16,
    QB_ANALYSIS_MAX_PARTS = 1 << 14
};

/* `what` opens messages. *out is set on success alone. */
qb_status qb_analysis_record_read(const json_t *root, const char *what, qb_analysis_record *out);
void qb_analysis_record_deinit(qb_analysis_record *record); /* accepts a zeroed one */

#ifdef __cplusplus
}
#endif
#endif
