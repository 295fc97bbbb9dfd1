/* report/html.h - results, training curves, analyses and profiles as one page of HTML that needs
 * nothing else: no network, no script, its style inside. Every text of the files is escaped. */
#ifndef QB_REPORT_HTML_H
#define QB_REPORT_HTML_H

#include "report/read_analysis.h"
#include "report/read_metrics.h"
#include "report/read_profile.h"
#include "report/result.h"

#ifdef __cplusplus
extern "C" {
#endif

#define QB_REPORT_MAX_RECORDS 1000 /* more would be a page that nobody reads */

typedef struct qb_report_file {
    char *name, sha256[65];
    int64_t bytes;
} qb_report_file;

typedef struct qb_report {
    qb_results results;
    qb_metrics *runs;
    size_t n_runs;
    qb_analysis_record *analyses;
    size_t n_analyses;
    qb_profile_seen *profiles;
    size_t n_profiles;
    qb_report_file *files; /* what the page was made from */
    size_t n_files;
} qb_report;

enum { QB_REPORT_MAX_FILES = 64 }; /* of analyses, and of profiles */

/* Adds what is in `path`, told by its content: results of `run --json`, a run's metrics.jsonl, what
 * `analyze --json` or `profile --json` wrote, or a folder that holds a metrics.jsonl. */
qb_status qb_report_add(qb_report *report, const char *path);
/* The same of a JSON object of `analyze` in memory; `what` opens messages. */
qb_status qb_report_add_analysis(qb_report *report, const json_t *root, const char *what);
void qb_report_deinit(qb_report *report); /* accepts a zeroed one */

qb_status qb_report_write_html(const qb_report *report, const char *title, FILE *stream);
/* Its twins: the same tables, those behind figures too, under the same headings as Markdown; and
 * each as FOLDER/NN-CAPTION.csv, NN its number on the page. The folder is made where it is not
 * there. */
qb_status qb_report_write_markdown(const qb_report *report, const char *title, FILE *stream);
qb_status qb_report_write_tables(const qb_report *report, const char *folder);

/* ---- the page of a run under way (report/html_live.c) ---- */

/* It asks its server for itself anew by a script in it, without one by a meta tag. This is the
 * policy that allows just that, as its Content-Security-Policy. */
extern const char qb_report_live_policy[];
typedef struct qb_live_run {
    const char *name;
    double n_steps; /* of the whole run; 0 = not known */
} qb_live_run;
/* The run's curves so far, and a table of where it is. */
qb_status qb_report_write_live(const qb_metrics *metrics, const qb_live_run *run, FILE *stream);

#ifdef __cplusplus
}
#endif
#endif
