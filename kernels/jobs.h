/* kernels/jobs.h - several products as one parallel loop.
 *
 * A decode step forks a loop for every few microseconds of work, so products of the same input (q,
 * k and v; gate and up) share one fork: their tasks are numbered through, job after job. */
#ifndef QB_KERNELS_JOBS_H
#define QB_KERNELS_JOBS_H

#include "core/threads.h"

#ifdef __cplusplus
extern "C" {
#endif

#define QB_MAX_JOBS 16

typedef struct qb_jobs {
    size_t n_jobs;               /* <= QB_MAX_JOBS */
    size_t n_tasks[QB_MAX_JOBS]; /* of each job */
    void (*task)(const void *context, size_t job, size_t i, size_t n_tasks);
    const void *context;
} qb_jobs;

/* Runs task(context, job, i, n_tasks[job]) once for each i < n_tasks[job] of each job. */
void qb_jobs_run(const qb_jobs *jobs, qb_pool *pool);

#ifdef __cplusplus
}
#endif
#endif
