/* infer/speed.h - what a scheme brings: prefill and decode times of several engines, in turns.
 *
 * Prefill: `context` tokens a sequence and the logits of the last one. Decode: runs of tokens after
 * 256 tokens of context, logits each; a sample is one run, its time that of one token (of all
 * sequences). Engines take turns sample by sample (A B C A B C), so drift of the machine hits all
 * alike. Warm-up rounds come first, until one repeats the times of the one before; then rounds go
 * on until there are 10 samples of each, and after that until the intervals are narrow or the time
 * is up. */
#ifndef QB_INFER_SPEED_H
#define QB_INFER_SPEED_H

#include "core/stats.h"
#include "infer/engine.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct qb_speed_plan {
    size_t batch;              /* sequences at once */
    size_t context;            /* tokens a sequence of a prefill */
    size_t decode_from;        /* tokens before the decoding */
    size_t decode_steps;       /* positions that the cache has for decoding */
    size_t min_samples;        /* 0 = 10 */
    double budget_s;           /* for each of prefill and decode, beyond min_samples */
    uint64_t seed;             /* of the random tokens */
    qb_engine *const *engines; /* with caches of (batch, qb_speed_cache_context); their backbone has
                                  a slot of `batch` rows of logits */
    size_t n_engines;
    bool energy;       /* joules a token too, where there is a counter: over a second an engine */
    const char *label; /* of the progress line */
} qb_speed_plan;

/* context, decode_from and decode_steps for a model: as asked for, but within a trained context
 * that is shorter. */
void qb_speed_plan_contexts(const qb_config *config, size_t context, qb_speed_plan *plan);
/* Positions that an engine's cache must have. */
size_t qb_speed_cache_context(const qb_speed_plan *plan);

typedef struct qb_samples {
    double *ms; /* in the order of measurement */
    size_t n, capacity;
    double tokens_per_sample; /* that a time of `ms` stands for */
} qb_samples;
/* A time more; only memory can fail. */
qb_status qb_samples_add(qb_samples *samples, double ms);
void qb_samples_deinit(qb_samples *samples); /* accepts a zeroed one */

typedef struct qb_speed_result {
    qb_samples prefill, decode;
    double j_per_token; /* of decoding; NaN = no meter */
} qb_speed_result;

typedef struct qb_speed {
    qb_speed_result *engines; /* (n_engines) */
    size_t n_engines;
    bool steady; /* the warm-ups ended because times repeated, not because time was up */
} qb_speed;

/* QB_ERR_INTERRUPTED on Ctrl-C; the engines' own errors. The caller deinits *out after success. */
qb_status qb_speed_measure(const qb_speed_plan *plan, qb_speed *out);
void qb_speed_deinit(qb_speed *speed); /* accepts a zeroed one */

typedef struct qb_timing {
    double tok_per_s;
    qb_interval tok_per_s_ci95;
    double p50_ms, p90_ms, p99_ms;
    size_t n;
} qb_timing;
/* All NaN for no samples. */
qb_status qb_samples_summarize(const qb_samples *samples, qb_timing *out);
/* Half of the interval over the median; infinite where there is none. */
double qb_timing_half_width(const qb_timing *timing);

#ifdef __cplusplus
}
#endif
#endif
