/* infer/timeline.h - when each phase of a pass began and ended, for `qbench profile`.
 *
 * An engine that was given a timeline (qb_engine_set_timeline) opens a section before each part of
 * a pass and closes it with the work that was done; without one each costs a branch. A section that
 * did several works at once (a pass over rows that adds, norms and quantises) becomes as many
 * spans, whose lengths are shares of the section: in proportion to the time that the threads
 * counted for each by qb_lap. All memory is there before the pass.
 *
 * A backend says how an instant is taken: the processor reads a clock; CUDA queues a kernel of one
 * thread, whose number is read when the pass is over. Spans are of the last pass: a prefill or
 * decode step and the head behind it. */
#ifndef QB_INFER_TIMELINE_H
#define QB_INFER_TIMELINE_H

#include "core/phases.h"
#include "infer/engine.h"
#include "model/arch.h"

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* What a span did. bytes: the least that has to move. ops: a multiply-add is two. */
typedef struct qb_work {
    qb_phase phase;
    int layer;          /* -1 = none */
    int role;           /* qb_role of a product's weights; -1 = none */
    const char *kernel; /* row of `qbench kernels`; static */
    qb_rate rate;       /* at which ops can go at most */
    double bytes, ops;
} qb_work;

typedef struct qb_timespan {
    qb_work work;
    size_t section;
    bool is_share;           /* of a section with several works */
    double begin_us, end_us; /* since the pass began */
} qb_timespan;

/* A thread's part of a parallel loop of a section. */
typedef struct qb_thread_span {
    size_t section;
    double begin_us, end_us;
} qb_thread_span;

/* How a backend takes instants; stamp i is overwritten by the next of that number. */
typedef struct qb_timeline_clock {
    void *context;
    bool joins; /* a section that follows another begins with that one's end: stamps are dear */
    qb_status (*stamp)(void *context, size_t i);
    /* us[i] of stamps 0 to n - 1, since stamp 0. Waits. */
    qb_status (*read)(void *context, size_t n, double *us);
    void (*destroy)(void *context);
} qb_timeline_clock;

/* For engines of this backbone. */
qb_status qb_timeline_create(qb_backbone *backbone, qb_timeline **out);
void qb_timeline_destroy(qb_timeline *timeline); /* accepts NULL */
/* From the next pass on only layers l with l % n_slices == slice are timed, and what is of no layer
 * with slice 0. */
void qb_timeline_set_slice(qb_timeline *timeline, size_t slice, size_t n_slices);
/* Instants are of the processor's clock: a pass that is timed alone has no wait in it. */
bool qb_timeline_on_host(const qb_timeline *timeline);
/* Never the same for two timelines, and another after each qb_timeline_set_slice and
 * qb__timeline_begin: what was captured before stamps elsewhere, times other layers, or its spans
 * are gone. 0 for NULL. */
size_t qb_timeline_version(const qb_timeline *timeline);
/* The spans of the last pass, in order; waits for it. Borrowed until the next pass. */
qb_status qb_timeline_read(qb_timeline *timeline, const qb_timespan **spans, size_t *n_spans);
/* After qb_timeline_read: the parallel loops of that pass on one thread of the pool. */
const qb_thread_span *qb_timeline_thread(const qb_timeline *timeline, size_t thread_idx, size_t *n);

/* ---- for engines; timeline NULL = off ---- */

/* splits: several works will close it, whose tasks count their time by qb_lap. */
void qb__timeline_open(qb_timeline *timeline, int layer, bool splits);
void qb__timeline_close(qb_timeline *timeline, const qb_work *works, size_t n_works);
/* Begins a pass, and forgets the spans of the one before. */
void qb__timeline_begin(qb_timeline *timeline);
/* Begins a pass, of which the first n_spans spans (and n_stamps stamps) of the one before stay:
 * those of a graph that is run again. */
void qb__timeline_restart(qb_timeline *timeline, size_t n_spans, size_t n_stamps);
void qb__timeline_count(const qb_timeline *timeline, size_t *n_spans, size_t *n_stamps);
/* A watcher for qb_pool_watch; context: the timeline. */
void qb__timeline_thread_ran(void *context, size_t thread_idx, int64_t begin_ns, int64_t end_ns);
/* A section is open: it is worth working out what was done. */
bool qb__timeline_is_open(const qb_timeline *timeline);

/* A task's clock: qb_lap_mark counts the time since the mark before for `phase`. */
typedef struct qb_lap {
    qb_timeline *timeline; /* NULL = off, or nothing is split */
    int64_t at_ns, ns[QB_PHASE_COUNT];
} qb_lap;
void qb_lap_begin(qb_lap *lap, qb_timeline *timeline);
void qb__lap_mark(qb_lap *lap, qb_phase phase);
static inline void qb_lap_mark(qb_lap *lap, qb_phase phase)
{
    if (lap->timeline) qb__lap_mark(lap, phase);
}
/* Hands the counts to the open section. */
void qb_lap_end(qb_lap *lap);

#ifdef __cplusplus
}
#endif
#endif
