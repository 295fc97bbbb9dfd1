/* report/history.h - results over time: a file of JSON lines, one a record, and the series of
 * figures in it, with the places where they changed. */
#ifndef QB_REPORT_HISTORY_H
#define QB_REPORT_HISTORY_H

#include "report/compare.h"

#ifdef __cplusplus
extern "C" {
#endif

/* QB_ERR_FORMAT names the line. A file that is not there holds no records. */
qb_status qb_history_read(const char *path, qb_results *out);
qb_status qb_history_parse(const char *text, size_t bytes, const char *what, qb_results *out);
/* Adds the records that the history does not hold yet, without samples and windows; *n_added is
 * their number. Whole lines, on disk when it returns. */
qb_status qb_history_append(const char *path, const qb_results *history, const qb_results *results,
                            size_t *n_added);

/* One figure of one model and scheme, on one text and protocol or one machine. */
typedef struct qb_series {
    char *title; /* what all its records share; also its key */
    qb_figure_id figure;
    size_t *records; /* (n) where in the history */
    double *values;  /* (n) */
    size_t n;
    size_t *changes; /* (n_changes) the first values after changes, ascending */
    size_t n_changes;
} qb_series;

typedef struct qb_watch {
    const qb_results *history; /* borrowed */
    qb_series *items;          /* of one title side by side */
    size_t n;
} qb_watch;
/* false_alarms: the share of series without a change in which one is seen. */
qb_status qb_watch_make(const qb_results *history, double false_alarms, uint64_t seed,
                        qb_watch *out);
void qb_watch_deinit(qb_watch *watch); /* accepts a zeroed one */
/* The newest change is for the worse and among the last n_recent values. */
bool qb_series_is_worse(const qb_series *series, size_t n_recent);
/* Medians before and after change i, as a share of the former. */
double qb_series_step(const qb_series *series, size_t i);
qb_status qb_watch_write_screen(const qb_watch *watch, bool colour, FILE *stream);

#ifdef __cplusplus
}
#endif
#endif
