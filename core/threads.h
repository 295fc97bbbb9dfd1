/* core/threads.h - a small pool for parallel loops with short, steady fork and join times.
 *
 * A loop is cut into n_tasks independent tasks; which thread runs which task never matters, since a
 * task writes only its own part of the result: so the bits are the same at any number of threads.
 * The calling thread works too. One loop at a time a pool; no nesting (a nested call runs
 * serially). */
#ifndef QB_CORE_THREADS_H
#define QB_CORE_THREADS_H

#include "core/status.h"

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct qb_pool qb_pool;

/* n_threads including the caller; 0 = as many as this process may use (affinity). At most 256. */
qb_status qb_pool_create(size_t n_threads, qb_pool **out);
void qb_pool_destroy(qb_pool *pool);           /* accepts NULL */
size_t qb_pool_n_threads(const qb_pool *pool); /* 1 for NULL */

/* Runs task(context, i, thread) for each i in [0, n_tasks), each once; thread < n_threads names the
 * worker, for its scratch. Returns when all are done. pool NULL: serially. */
typedef void (*qb_task)(void *context, size_t i, size_t thread_idx);
void qb_parallel_for(qb_pool *pool, size_t n_tasks, qb_task task, void *context);

/* The same over [0, n) cut into spans of span_elems, the last maybe shorter: task(context, begin,
 * end). The cut depends on n alone. */
typedef void (*qb_span_task)(void *context, size_t begin, size_t end);
void qb_parallel_spans(qb_pool *pool, size_t n, size_t span_elems, qb_span_task task,
                       void *context);

/* Of the pool that the calling thread works for; 0 for a thread that is no pool's worker, so in
 * tasks of one pool at a time the numbers differ. */
size_t qb_thread_idx(void);
/* Tells `watcher` from the next loop on when each thread began and ended its part of a loop that
 * several threads share; NULL = nobody. Called by the thread itself, clock of core/clock.h. */
typedef void (*qb_pool_watcher)(void *context, size_t thread_idx, int64_t begin_ns, int64_t end_ns);
void qb_pool_watch(qb_pool *pool, qb_pool_watcher watcher, void *context); /* accepts NULL */

/* Processors that this process may run on. */
size_t qb_n_cpus(void);

#ifdef __cplusplus
}
#endif
#endif
