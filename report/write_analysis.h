/* report/write_analysis.h - what `qbench analyze` found (a JSON object of schema qbench.analysis/1)
 * for people. */
#ifndef QB_REPORT_WRITE_ANALYSIS_H
#define QB_REPORT_WRITE_ANALYSIS_H

#include "core/json.h"

#include <stdio.h>

#ifdef __cplusplus
extern "C" {
#endif

/* A line a layer, and the mean. */
qb_status qb_analysis_write_screen(const json_t *analysis, FILE *stream);
/* What the screen shows, as tables. */
qb_status qb_analysis_write_markdown(const json_t *analysis, FILE *stream);
/* A line each for the embedding, the layers and their mean; a column each for their metrics. */
qb_status qb_analysis_write_csv(const json_t *analysis, FILE *stream);
/* The object `sensitivity` of it: a line for each of the most costly parts. */
void qb_sensitivity_write_screen(const json_t *sensitivity, FILE *stream);
/* All parts, as a table. */
void qb_sensitivity_write_markdown(const json_t *sensitivity, FILE *stream);

#ifdef __cplusplus
}
#endif
#endif
