/* kernels/jobs.c - see jobs.h. */
#include "kernels/jobs.h"

#include <assert.h>

static void flat_task(void *context, size_t i, size_t thread_idx)
{
    (void)thread_idx;
    const qb_jobs *jobs = context;
    size_t job = 0;
    while (i >= jobs->n_tasks[job]) i -= jobs->n_tasks[job++];
    jobs->task(jobs->context, job, i, jobs->n_tasks[job]);
}

void qb_jobs_run(const qb_jobs *jobs, qb_pool *pool)
{
    size_t n_tasks = 0;
    assert(jobs->n_jobs <= QB_MAX_JOBS);
    for (size_t j = 0; j < jobs->n_jobs; j++) n_tasks += jobs->n_tasks[j];
    qb_parallel_for(pool, n_tasks, flat_task, (void *)jobs);
}
