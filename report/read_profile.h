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
typedef struct qb_profile_seen_part {
    char *name, *phase, *role; /* a phase has its name alone; role may be NULL */
    double ms, share, bytes, ops, gb_per_s, gops_per_s, roofline_share; /* NaN = not known */
} qb_profile_seen_part;

/* One engine in one operation. */
typedef struct qb_profile_seen_run {
    char *scheme;
    double ms, gaps_ms, tok_per_s, roof_ms;
    qb_profile_seen_part *phases, *kernels;
    size_t n_phases, n_kernels;
} qb_profile_seen_run;

typedef struct qb_profile_seen_operation {
    char *name; /* prefill, decode */
    int64_t context, rows;
    qb_profile_seen_run runs[2]; /* full precision, the scheme */
    size_t n_runs;
} qb_profile_seen_operation;

enum {
    QB_PROFILE_SEEN_MAX_OPERATIONS = 8,
    QB_PROFILE_SEEN_MAX_PARTS = 200,
    QB_PROFILE_SEEN_N_ROOFS = 3,
    QB_PROFILE_SEEN_MAX_VERDICTS = 40
};

typedef struct qb_profile_seen {
    char *model, *scheme, *device, *machine, *cpu, *command;
    int64_t threads, batch, context;
    double memory_gb_per_s, cache_gb_per_s;           /* measured peaks; NaN = not known */
    double roofs_gops_per_s[QB_PROFILE_SEEN_N_ROOFS]; /* of qb_profile_seen_roofs */
    qb_profile_seen_operation *operations;
    size_t n_operations;
    qb_texts verdicts; /* in words */
} qb_profile_seen;
extern const char *const qb_profile_seen_roofs[QB_PROFILE_SEEN_N_ROOFS]; /* f32, bf16, s8 */

#define QB_PROFILE_SCHEMA "qbench.profile/1"

/* `what` opens messages. *out is set on success alone. */
qb_status qb_profile_seen_read(const json_t *root, const char *what, qb_profile_seen *out);
void qb_profile_seen_deinit(qb_profile_seen *record); /* accepts a zeroed one */

#ifdef __cplusplus
}
#endif
#endif
