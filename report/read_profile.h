/* report/read_profile.h - what the page shows of a file of `qbench profile --json`: where the time
 * of a pass goes, and the roofline (docs/profile.md).
 *
 * Checked as read_analysis.h's: types and sizes first, messages with the place, unknown keys left
 * out. */
#ifndef QB_REPORT_READ_PROFILE_H
#define QB_REPORT_READ_PROFILE_H

#include "report/result.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A phase of a pass, or a kernel in one role. */
typedef struct qb_profiled_part {
    char *name, *phase, *role; /* a phase has its name alone; role may be NULL */
    double ms, share, bytes, ops, gb_per_s, gops_per_s, roofline_share; /* NaN = not known */
} qb_profiled_part;

/* One engine in one operation. */
typedef struct qb_profiled_run {
    char *scheme;
    double ms, gaps_ms, tok_per_s, roof_ms;
    qb_profiled_part *phases, *kernels;
    size_t n_phases, n_kernels;
} qb_profiled_run;

typedef struct qb_profiled_operation {
    char *name; /* prefill, decode */
    int64_t context, rows;
    qb_profiled_run runs[2]; /* full precision, the scheme */
    size_t n_runs;
} qb_profiled_operation;

enum {
    QB_PROFILED_MAX_OPERATIONS = 8,
    QB_PROFILED_MAX_PARTS = 200,
    QB_PROFILED_N_ROOFS = 3,
    QB_PROFILED_MAX_VERDICTS = 40
};

typedef struct qb_profiled {
    char *model, *scheme, *machine, *cpu, *command;
    int64_t threads, batch, context;
    double memory_gb_per_s, cache_gb_per_s;       /* measured peaks; NaN = not known */
    double roofs_gops_per_s[QB_PROFILED_N_ROOFS]; /* of qb_profiled_roofs */
    qb_profiled_operation *operations;
    size_t n_operations;
    qb_texts verdicts; /* in words */
} qb_profiled;
extern const char *const qb_profiled_roofs[QB_PROFILED_N_ROOFS]; /* f32, bf16, s8 */

#define QB_PROFILE_SCHEMA "qbench.profile/1"

/* `what` opens messages. *out is set on success alone. */
qb_status qb_profiled_read(const json_t *root, const char *what, qb_profiled *out);
void qb_profiled_deinit(qb_profiled *record); /* accepts a zeroed one */

#ifdef __cplusplus
}
#endif
#endif
