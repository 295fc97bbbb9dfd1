/* report/profile.h - the record of qbench profile: exactly the JSON of docs/profile.schema.json.
 *
 * What was not measured is NaN (reals) or an empty text, and null in JSON. Times are milliseconds
 * of one pass: a prefill of all sequences, or one decoded token of each. */
#ifndef QB_REPORT_PROFILE_H
#define QB_REPORT_PROFILE_H

#include "core/histogram.h"
#include "core/json.h"
#include "core/phases.h"
#include "core/stats.h"

#include <stdbool.h>
#include <stdio.h>

#ifdef __cplusplus
extern "C" {
#endif

enum {
    QB_PROFILE_TEXT_BYTES = 128,
    QB_PROFILE_MAX_FINDINGS = 24,
    QB_PROFILE_MAX_NOTES = 8,
    QB_FINDING_BYTES = 320,
};

/* Part of a pass: its time, the least it has to move and compute, and what that takes at the peaks.
 */
typedef struct qb_profile_part {
    double ms;
    double calls; /* a pass */
    double bytes, ops;
    double memory_ms, compute_ms; /* at the measured peaks; NaN = no peak */
    double bound_ms;              /* the larger of the two, span by span */
} qb_profile_part;

typedef struct qb_profile_kernel {
    char kernel[64]; /* row of `qbench kernels` */
    char role[24];   /* tensor of a product, "" = none */
    qb_phase phase;
    qb_profile_part part;
    double p50_us, p90_us, p99_us; /* of one call */
} qb_profile_kernel;

typedef struct qb_profile_layer {
    double ms, phase_ms[QB_PHASE_COUNT];
} qb_profile_layer;

/* One engine doing one operation. */
typedef struct qb_profile_run {
    char scheme[40];
    bool measured;
    /* Undisturbed passes. */
    double ms, p90_ms, p99_ms; /* ms: the median */
    qb_interval ms_ci95;
    double tok_per_s;
    size_t n_samples, n_passes; /* n_passes: a sample, whose time is their mean */
    double *samples_ms;         /* owned; NULL = not kept */
    qb_histogram *histogram;    /* owned */
    /* Passes in turn with them that carry the timeline. */
    double instrumented_ms, overhead; /* overhead: share that it added; may be negative by noise */
    size_t slices;                    /* a pass times every slices-th layer */
    double stamp_us; /* what an instant adds to a span, taken off below; 0 = none */
    qb_profile_part phases[QB_PHASE_COUNT];
    double covered_ms, gaps_ms; /* sum of the phases; what they leave of ms: negative by noise */
    double weights_bytes;       /* read by a pass of few rows */
    bool in_cache;              /* weights fit the last cache: held to its bandwidth */
    double roof_ms;             /* sum of bound_ms */
    qb_profile_layer *layers;   /* owned */
    size_t n_layers;
    qb_profile_kernel *kernels; /* owned, by time */
    size_t n_kernels;
} qb_profile_run;

typedef struct qb_profile_operation {
    bool measured;
    double tokens;      /* a pass */
    size_t rows;        /* that products see: tokens of a prefill, sequences of a step */
    size_t context;     /* tokens a sequence before and in the pass */
    double sampling_us; /* drawing a token from its logits on the processor, which is no part of a
                           pass; NaN = not measured */
    qb_profile_run full, scheme;
} qb_profile_operation;

/* report/verdict.h makes these. */
typedef struct qb_finding {
    const char *rule;            /* "launch-bound"; static */
    const char *operation;       /* "prefill", "decode"; static */
    bool of_full;                /* about full precision; else about the scheme */
    double weight;               /* share of the pass that it is about: findings are sorted by it */
    char text[QB_FINDING_BYTES]; /* what is so, with its numbers */
    const char *help;            /* what would help; static */
} qb_finding;

typedef struct qb_sweep_row {
    size_t batch, context;
    double full_tok_per_s[2], tok_per_s[2]; /* prefill, decode; NaN = not measured */
    const char *skipped;                    /* why, static; NULL = measured */
} qb_sweep_row;

enum { QB_PROFILE_PREFILL, QB_PROFILE_DECODE, QB_PROFILE_OPERATIONS };
extern const char *const qb_profile_operation_names[QB_PROFILE_OPERATIONS];

/* 10^9 operations a second: "91.2 Gop/s", "1657 Top/s". */
char *qb_profile_format_rate(double gops_per_s, char *text);

typedef struct qb_profile {
    struct {
        char *path, *name;
        char arch[QB_PROFILE_TEXT_BYTES];
        double n_layers, d_model, n_heads, n_params, vocab, context;
    } model;
    char scheme[40];
    char device[16], machine[QB_PROFILE_TEXT_BYTES]; /* "cuda", "NVIDIA H100 80GB HBM3" */
    char cpu[QB_PROFILE_TEXT_BYTES];
    size_t threads, batch, context;
    qb_peaks peaks;
    char peaks_time_utc[32];
    qb_profile_operation operations[QB_PROFILE_OPERATIONS];
    qb_finding findings[QB_PROFILE_MAX_FINDINGS];
    size_t n_findings;
    const char *notes[QB_PROFILE_MAX_NOTES]; /* what is not split and how it is counted; static */
    size_t n_notes;
    qb_sweep_row *sweep; /* owned; NULL = no sweep */
    size_t n_sweep;
    char time_utc[32];
    const char *qbench_version, *git_commit, *command; /* borrowed */
} qb_profile;
void qb_profile_deinit(qb_profile *profile);

/* The smallest batch of a context from which on the scheme is faster in every larger one of the
 * sweep; 0 = none. */
size_t qb_sweep_crossover(const qb_profile *profile, int operation, size_t context);

typedef qb_status (*qb_profile_writer)(const qb_profile *profile, FILE *stream);
qb_status qb_profile_write_json(const qb_profile *profile, FILE *stream);
qb_status qb_profile_write_markdown(const qb_profile *profile, FILE *stream);
qb_status qb_profile_write_screen(const qb_profile *profile, bool colour, FILE *stream);

#ifdef __cplusplus
}
#endif
#endif
