/* infer/profiling.h - one operation of up to two engines, timed undisturbed and with a timeline in
 * turns: A, B, A with timeline, B with timeline, and again.
 *
 * What a timeline adds is the difference of the two kinds of passes. On a device where that is more
 * than 2 %, each pass with a timeline times only every n-th layer, in turn (slices); since each
 * span is longer by its stamp nevertheless, that is taken off again. */
#ifndef QB_INFER_PROFILING_H
#define QB_INFER_PROFILING_H

#include "infer/speed.h"
#include "infer/timeline.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { QB_PROFILED_ENGINES = 2 };

typedef struct qb_profiling_plan {
    bool decode;  /* one token of each sequence behind `context`, else a prefill of `context` */
    size_t batch; /* sequences */
    size_t context;
    size_t decode_steps;       /* positions that the cache has for decoding */
    double budget_s;           /* beyond the least number of rounds */
    bool with_timeline;        /* false: undisturbed passes alone, for sweeps */
    uint64_t seed;             /* of the random tokens */
    qb_engine *const *engines; /* with caches, as in qb_speed_plan; NULL ends nothing: n_engines */
    size_t n_engines;
    const char *label; /* of the progress line */
} qb_profiling_plan;

typedef struct qb_profiled_span {
    qb_timespan span; /* of the last pass */
    double *us;       /* its length in each pass that timed it */
    size_t n;
    double
        typical_us; /* mean over the middle third of the passes, by their length, less stamp_us */
} qb_profiled_span;

typedef struct qb_profiled {
    qb_samples undisturbed, instrumented; /* a pass */
    qb_profiled_span *spans; /* all of a pass; slice after slice, in the order of the pass */
    size_t n_spans;
    size_t n_slices;
    size_t n_passes; /* a sample: its time is their mean */
    size_t n_stamps; /* instants taken in the passes of all slices together */
    double overhead; /* what the timeline adds to a pass: a share, the median over rounds */
    double stamp_us; /* of that a stamp's part, which lengthens the span it ends; 0 on the
                        processor, where reading a clock is nothing beside the noise */
    qb_thread_span **threads; /* of the last pass of slice 0 */
    size_t *n_thread_spans, n_threads;
} qb_profiled;

/* out[n_engines]. QB_ERR_INTERRUPTED on Ctrl-C; the engines' own errors. The caller deinits each
 * after success. */
qb_status qb_profiling_run(const qb_profiling_plan *plan, qb_profiled *out);
/* Of what rounds saw: overhead, stamp_us and the spans' typical_us. */
qb_status qb__profiled_settle(qb_profiled *profiled, bool on_host);
void qb_profiled_deinit(qb_profiled *profiled); /* accepts a zeroed one */

#ifdef __cplusplus
}
#endif
#endif
