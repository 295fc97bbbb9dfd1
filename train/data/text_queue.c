/* train/data/text_queue.c - a ring of places: text i lies in place i mod n_ahead from when a reader
 * begins with it until it is taken. */
#include "train/data/text_queue.h"

#include "core/interrupt.h"
#include "core/memory.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>

typedef struct place {
    qb_text text;
    qb_status status;
    char message[512]; /* of a failure: messages are kept by thread */
    bool done;
} place;

struct qb_text_queue {
    const char *const *paths;
    size_t n_paths, n_ahead, max_bytes;
    size_t n_begun, n_taken; /* texts */
    bool stop;
    place places[QB_TEXT_QUEUE_MAX];
    pthread_t readers[QB_TEXT_QUEUE_MAX];
    size_t n_readers;
    pthread_mutex_t mutex;
    pthread_cond_t changed;
};

static void read_text(qb_text_queue *q, size_t i)
{
    place *p = &q->places[i % q->n_ahead];
    p->status = qb_interrupt_check();
    if (p->status == QB_OK) p->status = qb_text_open(q->paths[i], q->max_bytes, &p->text);
    if (p->status != QB_OK) snprintf(p->message, sizeof p->message, "%s", qb_error_message());
}

static void *reader_main(void *arg)
{
    qb_text_queue *q = arg;
    pthread_mutex_lock(&q->mutex);
    for (;;) {
        while (!q->stop && q->n_begun < q->n_paths && q->n_begun >= q->n_taken + q->n_ahead)
            pthread_cond_wait(&q->changed, &q->mutex);
        if (q->stop || q->n_begun == q->n_paths) break;
        size_t i = q->n_begun++;
        if (strcmp(q->paths[i], "-")) {
            pthread_mutex_unlock(&q->mutex);
            read_text(q, i);
            pthread_mutex_lock(&q->mutex);
        }
        q->places[i % q->n_ahead].done = true;
        pthread_cond_broadcast(&q->changed);
    }
    pthread_mutex_unlock(&q->mutex);
    return NULL;
}

qb_status qb_text_queue_open(const char *const *paths, size_t n_paths, size_t n_ahead,
                             size_t max_bytes, qb_text_queue **out)
{
    qb_text_queue *q;
    QB_TRY(QB_NEW_ZERO(&q, 1, "queue of texts"));
    q->paths = paths;
    q->n_paths = n_paths;
    q->n_ahead = n_ahead < 1 ? 1 : n_ahead > QB_TEXT_QUEUE_MAX ? QB_TEXT_QUEUE_MAX : n_ahead;
    q->max_bytes = max_bytes;
    pthread_mutex_init(&q->mutex, NULL);
    pthread_cond_init(&q->changed, NULL);
    while (q->n_readers < q->n_ahead && q->n_readers < n_paths) {
        if (pthread_create(&q->readers[q->n_readers], NULL, reader_main, q)) {
            qb_text_queue_close(q);
            return QB_FAIL(QB_ERR_DEVICE, "cannot start a thread to read texts");
        }
        q->n_readers++;
    }
    *out = q;
    return QB_OK;
}

qb_status qb_text_queue_next(qb_text_queue *q, qb_text *out)
{
    size_t i = q->n_taken;
    place *p = &q->places[i % q->n_ahead];
    pthread_mutex_lock(&q->mutex);
    while (!p->done) pthread_cond_wait(&q->changed, &q->mutex);
    pthread_mutex_unlock(&q->mutex);
    if (!strcmp(q->paths[i], "-")) read_text(q, i);
    place taken = *p;
    *p = (place){0};
    pthread_mutex_lock(&q->mutex);
    q->n_taken++;
    pthread_cond_broadcast(&q->changed);
    pthread_mutex_unlock(&q->mutex);
    if (taken.status != QB_OK) return QB_FAIL(taken.status, "%s", taken.message);
    *out = taken.text;
    return QB_OK;
}

void qb_text_queue_close(qb_text_queue *q)
{
    if (!q) return;
    pthread_mutex_lock(&q->mutex);
    q->stop = true;
    pthread_cond_broadcast(&q->changed);
    pthread_mutex_unlock(&q->mutex);
    for (size_t i = 0; i < q->n_readers; i++) pthread_join(q->readers[i], NULL);
    for (size_t i = 0; i < q->n_ahead; i++) qb_text_deinit(&q->places[i].text);
    pthread_cond_destroy(&q->changed);
    pthread_mutex_destroy(&q->mutex);
    qb_free(q);
}
