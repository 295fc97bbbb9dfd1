/* report/compare_internal.h - the figures of one pair, for report/compare.c. */
#ifndef QB_REPORT_COMPARE_INTERNAL_H
#define QB_REPORT_COMPARE_INTERNAL_H

#include "report/compare.h"

/* What a process needs for the model; cache and scratch where they were measured. NaN = unknown. */
double qb__memory_bytes(const qb_result *r, bool with_kv, bool with_scratch);

/* Quality of a pair with one text and protocol: fills its changes, from the windows of the token
 * files (NULL = none), else of the records, else from their intervals. */
qb_status qb__compare_quality(qb_pair *pair, const qb_result_windows *tokens_a,
                              const qb_result_windows *tokens_b, const qb_compare_options *options);
/* One timing of a pair on one kind of machine. */
qb_status qb__compare_timing(const qb_result_timing *a, const qb_result_timing *b,
                             const qb_compare_options *options, qb_change *out);
/* One gain over full precision. */
qb_status qb__compare_gain(qb_pair *pair, qb_figure_id figure, const qb_compare_options *options);

#endif
