/* report/read_metrics.h - the curves of a training run, from its metrics.jsonl.
 *
 * A line is an object with "kind" ("train" or "eval"), "step" and figures; unknown kinds and keys
 * are left out, and so is a last line that is still being written. Where a resumed run wrote steps
 * anew, the later lines count. */
#ifndef QB_REPORT_READ_METRICS_H
#define QB_REPORT_READ_METRICS_H

#include "core/status.h"

#include <stdbool.h>
#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum qb_curve_id {
    QB_CURVE_LOSS,
    QB_CURVE_PPL,
    QB_CURVE_KURT_FIRST,
    QB_CURVE_KURT_REST,
    QB_CURVE_MAX_FIRST,
    QB_CURVE_MAX_REST,
    QB_CURVE_FIRST_ARGMAX,
    QB_CURVE_FIRST_SHARE,
    QB_CURVE_LR,
    QB_CURVE_GRAD_NORM,
    QB_CURVE_TOK_PER_S,
    QB_CURVE_MFU,
    QB_CURVE_SECONDS,
    QB_CURVE_MEMORY,
    QB_CURVE_COUNT
} qb_curve_id;

typedef struct qb_metrics_point {
    double step, tokens;           /* tokens: NaN = not known */
    double values[QB_CURVE_COUNT]; /* NaN = not in this line */
} qb_metrics_point;

typedef struct qb_metrics {
    char *name; /* of the run: its folder, or the file without ".metrics.jsonl" */
    qb_metrics_point *points;
    size_t n, capacity;
    bool has_tokens; /* of every point */
} qb_metrics;

#define QB_METRICS_MAX_POINTS ((size_t)1 << 20)

/* *is: the first line of text is an object with "kind" and "step". QB_ERR_MEMORY alone. */
qb_status qb_metrics_recognise(const char *text, size_t bytes, bool *is);
/* `path` names the run and opens messages. *out is set on success alone. */
qb_status qb_metrics_parse(const char *text, size_t bytes, const char *path, qb_metrics *out);
void qb_metrics_deinit(qb_metrics *metrics);

#ifdef __cplusplus
}
#endif
#endif
