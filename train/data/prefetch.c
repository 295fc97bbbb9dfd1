/* train/data/prefetch.c - two buffers and one thread that fills the one that is not in use. */
#include "train/data/prefetch.h"

#include "core/memory.h"

#include <pthread.h>
#include <stdio.h>

struct qb_prefetch {
    const qb_batches *batches;
    size_t n_windows, step;
    int32_t *buffers[2];
    int filled;            /* which buffer the thread fills; the other is the caller's */
    uint64_t first_window; /* of the buffer `filled` */
    qb_status status;
    char message[512]; /* of a failure: messages are kept by thread */
    bool wanted, done, stop;
    pthread_t thread;
    bool has_thread;
    pthread_mutex_t mutex;
    pthread_cond_t changed;
};

static void *thread_main(void *arg)
{
    qb_prefetch *p = arg;
    pthread_mutex_lock(&p->mutex);
    for (;;) {
        while (!p->wanted && !p->stop) pthread_cond_wait(&p->changed, &p->mutex);
        if (p->stop) break;
        p->wanted = false;
        pthread_mutex_unlock(&p->mutex);
        p->status =
            qb_batches_fill(p->batches, p->first_window, p->n_windows, p->buffers[p->filled]);
        if (p->status != QB_OK) snprintf(p->message, sizeof p->message, "%s", qb_error_message());
        pthread_mutex_lock(&p->mutex);
        p->done = true;
        pthread_cond_broadcast(&p->changed);
    }
    pthread_mutex_unlock(&p->mutex);
    return NULL;
}

/* The thread rests: it is nobody's turn to write but the caller's. */
static void wait_until_done(qb_prefetch *p)
{
    pthread_mutex_lock(&p->mutex);
    while (!p->done) pthread_cond_wait(&p->changed, &p->mutex);
    pthread_mutex_unlock(&p->mutex);
}

static void begin(qb_prefetch *p, uint64_t first_window)
{
    pthread_mutex_lock(&p->mutex);
    p->first_window = first_window;
    p->done = false;
    p->wanted = true;
    pthread_cond_broadcast(&p->changed);
    pthread_mutex_unlock(&p->mutex);
}

static qb_status start(qb_prefetch *p)
{
    size_t n = p->n_windows * (qb_batches_context(p->batches) + 1);
    for (int i = 0; i < 2; i++) QB_TRY(QB_NEW(&p->buffers[i], n, "tokens of a step"));
    if (pthread_create(&p->thread, NULL, thread_main, p))
        return QB_FAIL(QB_ERR_DEVICE, "cannot start a thread for the next windows");
    p->has_thread = true;
    return QB_OK;
}

qb_status qb_prefetch_create(const qb_batches *batches, size_t n_windows, size_t step,
                             qb_prefetch **out)
{
    qb_prefetch *p;
    QB_TRY(QB_NEW_ZERO(&p, 1, "next windows"));
    p->batches = batches;
    p->n_windows = n_windows;
    p->step = step;
    p->first_window = UINT64_MAX; /* nothing is there yet */
    p->done = true;
    pthread_mutex_init(&p->mutex, NULL);
    pthread_cond_init(&p->changed, NULL);
    qb_status status = start(p);
    if (status != QB_OK)
        qb_prefetch_destroy(p);
    else
        *out = p;
    return status;
}

void qb_prefetch_destroy(qb_prefetch *p)
{
    if (!p) return;
    pthread_mutex_lock(&p->mutex);
    p->stop = true;
    pthread_cond_broadcast(&p->changed);
    pthread_mutex_unlock(&p->mutex);
    if (p->has_thread) pthread_join(p->thread, NULL);
    pthread_cond_destroy(&p->changed);
    pthread_mutex_destroy(&p->mutex);
    for (int i = 0; i < 2; i++) qb_free(p->buffers[i]);
    qb_free(p);
}

qb_status qb_prefetch_get(qb_prefetch *p, uint64_t first_window, const int32_t **tokens)
{
    wait_until_done(p);
    if (p->first_window != first_window) {
        p->first_window = UINT64_MAX; /* a failure leaves half of something */
        QB_TRY(qb_batches_fill(p->batches, first_window, p->n_windows, p->buffers[p->filled]));
    } else if (p->status != QB_OK) {
        return QB_FAIL(p->status, "%s", p->message);
    }
    *tokens = p->buffers[p->filled];
    p->filled = !p->filled;
    begin(p, first_window + p->step);
    return QB_OK;
}
