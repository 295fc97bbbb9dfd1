/* cli/profile_sweep.h - what qbench profile runs: a model and scheme at one batch and context, and
 * the same over ranges of both. */
#ifndef QB_CLI_PROFILE_SWEEP_H
#define QB_CLI_PROFILE_SWEEP_H

#include "cli/cli.h"
#include "infer/profiling.h"
#include "report/profile.h"

typedef struct qb_profile_case {
    const qb_cli *cli;
    qb_device device;
    qb_pool *pool;
    qb_model *model; /* NULL: peaks alone */
    qb_scheme scheme;
    bool is_full; /* the scheme is full precision here: one engine */
    qb_calibration *calibration;
    qb_model *codes;                  /* NULL where nothing is quantised */
    size_t batch, context;            /* within the trained context */
    size_t decode_from, decode_steps; /* tokens before the decoding, and positions for it */
} qb_profile_case;
/* Everything that the command line names. The caller closes it, also after a failure. */
qb_status qb_profile_case_open(const qb_cli *cli, qb_profile_case *c);
void qb_profile_case_close(qb_profile_case *c); /* accepts a zeroed one */

typedef struct qb_profile_engines {
    qb_backbone *backbone;
    qb_engine *items[QB_PROFILED_ENGINES]; /* full precision, the scheme */
    size_t n;
} qb_profile_engines;
qb_status qb_profile_engines_create(const qb_profile_case *c, qb_profile_engines *out);
void qb_profile_engines_destroy(qb_profile_engines *engines); /* accepts a zeroed one */
/* A plan for these engines; the caller adds how it is measured. */
qb_profiling_plan qb_profile_plan(const qb_profile_case *c, const qb_profile_engines *engines,
                                  bool decode);

typedef struct qb_profile_range {
    size_t from, to; /* each next is twice the one before; `to` ends them */
} qb_profile_range;
typedef struct qb_profile_ranges {
    bool given;
    qb_profile_range batch, context;
} qb_profile_ranges;
/* --sweep batch=1..64 and context=128..1024, also as words behind MODEL. */
qb_status qb_profile_ranges_parse(const qb_cli *cli, qb_profile_ranges *out);
/* Fills profile->sweep. */
qb_status qb_profile_sweep(const qb_profile_case *c, const qb_profile_ranges *ranges,
                           qb_profile *profile);

#endif
