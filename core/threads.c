/* core/threads.c - workers spin for a short while, then sleep on a futex-backed condition.
 *
 * A decode step forks some 150 loops of 10-100 us, so waking through the kernel each time (5-50 us)
 * would dominate: workers spin for about SPIN_ROUNDS pauses after a loop before they sleep. The
 * epoch counter carries a loop to the workers; `next` hands out tasks; `running` counts workers
 * that have not yet finished the present epoch. */
#include "core/threads.h"

#include "core/clock.h"
#include "core/memory.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>

enum { MAX_THREADS = 256, SPIN_ROUNDS = 4000 };

struct qb_pool {
    size_t n_threads;
    pthread_t *threads; /* n_threads - 1 workers */
    size_t n_started;
    pthread_mutex_t mutex;
    pthread_cond_t wake, finished;
    qb_task task;
    void *context;
    size_t n_tasks;
    qb_pool_watcher watcher; /* NULL = nobody */
    void *watcher_context;
    _Alignas(64) atomic_size_t epoch;
    _Alignas(64) atomic_size_t next;
    _Alignas(64) atomic_size_t running;
    atomic_size_t sleepers;
    atomic_bool stop, busy, caller_sleeps;
};

typedef struct worker_start {
    qb_pool *pool;
    size_t thread_idx;
} worker_start;

static inline void cpu_pause(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

static _Thread_local size_t own_idx;

size_t qb_thread_idx(void)
{
    return own_idx;
}

void qb_pool_watch(qb_pool *pool, qb_pool_watcher watcher, void *context)
{
    if (!pool) return;
    pool->watcher = watcher;
    pool->watcher_context = context;
}

static void run_tasks(qb_pool *pool, size_t thread_idx)
{
    int64_t begin_ns = pool->watcher ? qb_now_ns() : 0;
    for (;;) {
        size_t i = atomic_fetch_add_explicit(&pool->next, 1, memory_order_relaxed);
        if (i >= pool->n_tasks) break;
        pool->task(pool->context, i, thread_idx);
    }
    if (pool->watcher) pool->watcher(pool->watcher_context, thread_idx, begin_ns, qb_now_ns());
}

static size_t wait_for_epoch(qb_pool *pool, size_t seen)
{
    for (int round = 0; round < SPIN_ROUNDS; round++) {
        size_t now = atomic_load_explicit(&pool->epoch, memory_order_acquire);
        if (now != seen) return now;
        cpu_pause();
    }
    pthread_mutex_lock(&pool->mutex);
    atomic_fetch_add(&pool->sleepers, 1);
    while (atomic_load(&pool->epoch) == seen) pthread_cond_wait(&pool->wake, &pool->mutex);
    atomic_fetch_sub(&pool->sleepers, 1);
    pthread_mutex_unlock(&pool->mutex);
    return atomic_load(&pool->epoch);
}

static void *worker_main(void *arg)
{
    worker_start start = *(worker_start *)arg;
    qb_free(arg);
    qb_pool *pool = start.pool;
    size_t seen = 0;
    own_idx = start.thread_idx;
    for (;;) {
        seen = wait_for_epoch(pool, seen);
        if (atomic_load(&pool->stop)) return NULL;
        run_tasks(pool, start.thread_idx);
        if (atomic_fetch_sub(&pool->running, 1) == 1 && atomic_load(&pool->caller_sleeps)) {
            pthread_mutex_lock(&pool->mutex);
            pthread_cond_signal(&pool->finished);
            pthread_mutex_unlock(&pool->mutex);
        }
    }
}

size_t qb_n_cpus(void)
{
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set)) return 1;
    int n = CPU_COUNT(&set);
    return n > 0 ? (size_t)n : 1;
}

static qb_status start_worker(qb_pool *pool, size_t thread_idx)
{
    worker_start *start;
    QB_TRY(QB_NEW(&start, 1, "thread"));
    *start = (worker_start){pool, thread_idx};
    if (pthread_create(&pool->threads[thread_idx - 1], NULL, worker_main, start)) {
        qb_free(start);
        return QB_FAIL(QB_ERR_DEVICE, "cannot start thread %zu of %zu", thread_idx + 1,
                       pool->n_threads);
    }
    pool->n_started++;
    return QB_OK;
}

qb_status qb_pool_create(size_t n_threads, qb_pool **out)
{
    if (n_threads == 0) n_threads = qb_n_cpus();
    if (n_threads > MAX_THREADS)
        return QB_FAIL(QB_ERR_USAGE, "threads: found %zu, at most %d", n_threads, MAX_THREADS);
    qb_pool *pool;
    QB_TRY(QB_NEW_ZERO(&pool, 1, "thread pool"));
    pool->n_threads = n_threads;
    pthread_mutex_init(&pool->mutex, NULL);
    pthread_cond_init(&pool->wake, NULL);
    pthread_cond_init(&pool->finished, NULL);
    qb_status status = QB_NEW_ZERO(&pool->threads, n_threads, "thread pool");
    for (size_t i = 1; status == QB_OK && i < n_threads; i++) status = start_worker(pool, i);
    if (status != QB_OK) {
        qb_pool_destroy(pool);
        return status;
    }
    *out = pool;
    return QB_OK;
}

static void publish_epoch(qb_pool *pool)
{
    atomic_fetch_add(&pool->epoch, 1);
    if (atomic_load(&pool->sleepers) == 0) return;
    pthread_mutex_lock(&pool->mutex);
    pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->mutex);
}

void qb_pool_destroy(qb_pool *pool)
{
    if (!pool) return;
    if (pool->n_started) {
        atomic_store(&pool->stop, true);
        pthread_mutex_lock(&pool->mutex); /* a worker may be between its check and its wait */
        atomic_fetch_add(&pool->epoch, 1);
        pthread_cond_broadcast(&pool->wake);
        pthread_mutex_unlock(&pool->mutex);
    }
    for (size_t i = 0; i < pool->n_started; i++) pthread_join(pool->threads[i], NULL);
    pthread_cond_destroy(&pool->finished);
    pthread_cond_destroy(&pool->wake);
    pthread_mutex_destroy(&pool->mutex);
    qb_free(pool->threads);
    qb_free(pool);
}

size_t qb_pool_n_threads(const qb_pool *pool)
{
    return pool ? pool->n_threads : 1;
}

static void wait_for_workers(qb_pool *pool)
{
    for (int round = 0; round < SPIN_ROUNDS; round++) {
        if (atomic_load_explicit(&pool->running, memory_order_acquire) == 0) return;
        cpu_pause();
    }
    pthread_mutex_lock(&pool->mutex);
    atomic_store(&pool->caller_sleeps, true);
    while (atomic_load(&pool->running) > 0) pthread_cond_wait(&pool->finished, &pool->mutex);
    atomic_store(&pool->caller_sleeps, false);
    pthread_mutex_unlock(&pool->mutex);
}

void qb_parallel_for(qb_pool *pool, size_t n_tasks, qb_task task, void *context)
{
    if (n_tasks == 0) return;
    bool serial = !pool || pool->n_threads == 1 || n_tasks == 1;
    if (serial || atomic_exchange(&pool->busy, true)) {
        for (size_t i = 0; i < n_tasks; i++) task(context, i, 0);
        return;
    }
    pool->task = task;
    pool->context = context;
    pool->n_tasks = n_tasks;
    atomic_store(&pool->next, 0);
    atomic_store(&pool->running, pool->n_threads - 1);
    publish_epoch(pool);
    run_tasks(pool, 0);
    wait_for_workers(pool);
    atomic_store(&pool->busy, false);
}

typedef struct spans {
    size_t n, span_elems;
    qb_span_task task;
    void *context;
} spans;

static void run_span(void *context, size_t i, size_t thread_idx)
{
    (void)thread_idx;
    const spans *s = context;
    size_t begin = i * s->span_elems, left = s->n - begin;
    s->task(s->context, begin, begin + (left < s->span_elems ? left : s->span_elems));
}

void qb_parallel_spans(qb_pool *pool, size_t n, size_t span_elems, qb_span_task task, void *context)
{
    spans s = {n, span_elems, task, context};
    qb_parallel_for(pool, n / span_elems + (n % span_elems != 0), run_span, &s);
}
