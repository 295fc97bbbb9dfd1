/* train/cuda/cuda_ranks.c - see cuda_ranks.h. */
#include "train/cuda/cuda_ranks.h"

#include "core/clock.h"
#include "core/memory.h"
#include "kernels/cuda/nccl.h"

#include <cuda_runtime_api.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

enum { CHUNK_ELEMS = 1 << 22, WATCH_EVERY_MS = 200 };

struct qb_cuda_ranks {
    const qb_train_share *share;
    const qb_nccl *api;
    qb_nccl_comm comm;
    size_t rank, size;
    int device;
    bool ordered;
    qb_cuda_stream stream, side; /* the trainer's; that of all NCCL calls */
    cudaEvent_t here, there;     /* how far either has come, for the other */
    float *others;               /* (size, CHUNK_ELEMS): what is added up */
    double *all;                 /* (size, 2) */
    size_t bytes;

    cudaEvent_t moved; /* the last call's end */
    pthread_t watcher;
    bool watched;
    pthread_mutex_t mutex; /* of what follows */
    bool recorded, stop;
    double recorded_s;
    atomic_bool aborted;
};

/* ---- watching ---- */

static void rest(void)
{
    const struct timespec t = {.tv_nsec = WATCH_EVERY_MS * 1000000L};
    nanosleep(&t, NULL);
}

static bool is_stuck(qb_cuda_ranks *k)
{
    pthread_mutex_lock(&k->mutex);
    bool waits = k->recorded && cudaEventQuery(k->moved) == cudaErrorNotReady;
    double waited_s = waits ? qb_now_s() - k->recorded_s : 0;
    pthread_mutex_unlock(&k->mutex);
    return waited_s > qb_comm_timeout_s(k->share->comm);
}

static void watch_once(qb_cuda_ranks *k)
{
    int fault = QB_NCCL_SUCCESS;
    char why[128] = "";
    bool broken = k->api->CommGetAsyncError(k->comm, &fault) != QB_NCCL_SUCCESS ||
                  (fault != QB_NCCL_SUCCESS && fault != QB_NCCL_IN_PROGRESS);
    if (broken)
        snprintf(why, sizeof why, "NCCL reports: %.100s", k->api->GetErrorString(fault));
    else if (is_stuck(k))
        snprintf(why, sizeof why, "the GPUs waited for each other in vain");
    if (why[0]) qb_comm_lose(k->share->comm, why);
    if (qb_comm_check_alive(k->share->comm) == QB_OK) return;
    atomic_store(&k->aborted, true);
    k->api->CommAbort(k->comm);
}

static bool is_stopped(qb_cuda_ranks *k)
{
    pthread_mutex_lock(&k->mutex);
    bool stop = k->stop;
    pthread_mutex_unlock(&k->mutex);
    return stop || atomic_load(&k->aborted);
}

static void *watch(void *argument)
{
    qb_cuda_ranks *k = argument;
    qb_cuda_use(k->device);
    while (!is_stopped(k)) {
        watch_once(k);
        rest();
    }
    return NULL;
}

/* ---- making ---- */

/* NCCL's id travels through the ranks' own way of talking. */
static qb_status join(qb_cuda_ranks *k)
{
    qb_nccl_id own = {.bytes = {0}}, *all;
    if (!k->rank) QB_NCCL_TRY(k->api->GetUniqueId(&own));
    QB_TRY(QB_NEW(&all, k->size, "ids of NCCL"));
    qb_status status = qb_comm_all(k->share->comm, &own, sizeof own, all);
    if (status == QB_OK) own = all[0];
    qb_free(all);
    QB_TRY(status);
    QB_NCCL_TRY(k->api->CommInitRank(&k->comm, (int)k->size, own, (int)k->rank));
    return QB_OK;
}

static qb_status create(qb_cuda_ranks *k)
{
    const char *why = qb_nccl_refusal();
    if (why) return QB_FAIL(QB_ERR_UNSUPPORTED, "training on several GPUs: %s", why);
    k->api = qb_nccl_get();
    QB_TRY(qb_cuda_use(k->device));
    QB_TRY(join(k));
    QB_TRY(QB_CUDA_NEW(&k->all, 2 * k->size, "totals of the ranks"));
    if (k->ordered) {
        QB_TRY(QB_CUDA_NEW(&k->others, k->size * CHUNK_ELEMS, "gradients of the ranks"));
        k->bytes = k->size * CHUNK_ELEMS * sizeof *k->others;
    }
    QB_TRY(qb_cuda_stream_create(&k->side));
    QB_CUDA_TRY(cudaEventCreateWithFlags(&k->here, cudaEventDisableTiming));
    QB_CUDA_TRY(cudaEventCreateWithFlags(&k->there, cudaEventDisableTiming));
    QB_CUDA_TRY(cudaEventCreateWithFlags(&k->moved, cudaEventDisableTiming));
    if (pthread_create(&k->watcher, NULL, watch, k))
        return QB_FAIL(QB_ERR_MEMORY, "no thread to watch the ranks");
    k->watched = true;
    return QB_OK;
}

qb_status qb_cuda_ranks_create(const qb_train_share *share, bool ordered, int device,
                               qb_cuda_stream stream, qb_cuda_ranks **out)
{
    qb_cuda_ranks *k;
    QB_TRY(QB_NEW_ZERO(&k, 1, "GPUs of the ranks"));
    k->share = share;
    k->rank = qb_comm_rank(share->comm);
    k->size = qb_comm_size(share->comm);
    k->ordered = ordered;
    k->device = device;
    k->stream = stream;
    pthread_mutex_init(&k->mutex, NULL);
    qb_status status = create(k);
    if (status == QB_OK)
        *out = k;
    else
        qb_cuda_ranks_destroy(k);
    return status;
}

void qb_cuda_ranks_destroy(qb_cuda_ranks *k)
{
    if (!k) return;
    if (k->side) qb_cuda_sync(k->side); /* while the watcher can still abort it */
    pthread_mutex_lock(&k->mutex);
    k->stop = true;
    pthread_mutex_unlock(&k->mutex);
    if (k->watched) pthread_join(k->watcher, NULL);
    /* NCCL's own part stays for the little while that the process still has: destroying it would
     * wait for ranks that may have ended otherwise, aborting it take from them what they still
     * read. */
    cudaEvent_t events[] = {k->here, k->there, k->moved};
    for (size_t i = 0; i < QB_COUNT(events); i++)
        if (events[i]) cudaEventDestroy(events[i]);
    qb_cuda_free(k->others);
    qb_cuda_free(k->all);
    qb_cuda_stream_destroy(k->side);
    pthread_mutex_destroy(&k->mutex);
    qb_free(k);
}

size_t qb_cuda_ranks_memory_bytes(const qb_cuda_ranks *k)
{
    return k ? k->bytes : 0;
}

/* ---- moving ---- */

static qb_status mark_moved(qb_cuda_ranks *k)
{
    pthread_mutex_lock(&k->mutex);
    qb_status status = qb_cuda_check((int)cudaEventRecord(k->moved, k->side), "cudaEventRecord");
    k->recorded = true;
    k->recorded_s = qb_now_s();
    pthread_mutex_unlock(&k->mutex);
    return status;
}

static qb_status follow(qb_cuda_stream behind, qb_cuda_stream before, cudaEvent_t event)
{
    QB_CUDA_TRY(cudaEventRecord(event, before));
    QB_CUDA_TRY(cudaStreamWaitEvent(behind, event, 0));
    return QB_OK;
}

/* What is queued on the side stream next comes after all that is on the trainer's. */
static qb_status set_out(qb_cuda_ranks *k)
{
    QB_TRY(qb_comm_check_alive(k->share->comm));
    return follow(k->side, k->stream, k->here);
}

qb_status qb_cuda_ranks_join(qb_cuda_ranks *k)
{
    return follow(k->stream, k->side, k->there);
}

/* The part of [first, end) that rank r owns. */
static void part_of(const qb_cuda_ranks *k, size_t r, size_t first, size_t end, size_t *from,
                    size_t *n)
{
    const size_t *bounds = k->share->bounds;
    size_t to = bounds[r + 1] < end ? bounds[r + 1] : end;
    *from = bounds[r] > first ? bounds[r] : first;
    *n = to > *from ? to - *from : 0;
}

static size_t in_chunk(size_t n, size_t done)
{
    size_t left = n > done ? n - done : 0;
    return left < CHUNK_ELEMS ? left : CHUNK_ELEMS;
}

/* Elements [done, done + CHUNK_ELEMS) of every rank's part to their owners. */
static qb_status send_chunk(const qb_cuda_ranks *k, float *x, size_t first, size_t end, size_t done)
{
    size_t from, n;
    part_of(k, k->rank, first, end, &from, &n);
    size_t own = in_chunk(n, done);
    QB_NCCL_TRY(k->api->GroupStart());
    for (size_t r = 0; r < k->size; r++) {
        if (r == k->rank) continue;
        part_of(k, r, first, end, &from, &n);
        n = in_chunk(n, done);
        if (n) QB_NCCL_TRY(k->api->Send(x + from + done, n, QB_NCCL_F32, (int)r, k->comm, k->side));
        if (own)
            QB_NCCL_TRY(k->api->Recv(k->others + r * CHUNK_ELEMS, own, QB_NCCL_F32, (int)r, k->comm,
                                     k->side));
    }
    QB_NCCL_TRY(k->api->GroupEnd());
    return QB_OK;
}

static qb_status reduce_in_order(const qb_cuda_ranks *k, float *x, size_t first, size_t end)
{
    size_t from, n, most = 0;
    for (size_t r = 0; r < k->size; r++) {
        part_of(k, r, first, end, &from, &n);
        if (n > most) most = n;
    }
    part_of(k, k->rank, first, end, &from, &n);
    for (size_t done = 0; done < most; done += CHUNK_ELEMS) {
        QB_TRY(send_chunk(k, x, first, end, done));
        size_t own = in_chunk(n, done);
        if (own)
            QB_TRY(qb_cuda_ranks_add(x + from + done, own, k->others, CHUNK_ELEMS, k->rank, k->size,
                                     k->side));
    }
    return QB_OK;
}

static qb_status reduce_freely(const qb_cuda_ranks *k, float *x, size_t first, size_t end)
{
    size_t from, n;
    QB_NCCL_TRY(k->api->GroupStart());
    for (size_t r = 0; r < k->size; r++) {
        part_of(k, r, first, end, &from, &n);
        if (n)
            QB_NCCL_TRY(k->api->Reduce(x + from, x + from, n, QB_NCCL_F32, QB_NCCL_SUM, (int)r,
                                       k->comm, k->side));
    }
    QB_NCCL_TRY(k->api->GroupEnd());
    return QB_OK;
}

qb_status qb_cuda_ranks_reduce(qb_cuda_ranks *k, float *x, size_t first, size_t end)
{
    QB_TRY(set_out(k));
    QB_TRY(k->ordered ? reduce_in_order(k, x, first, end) : reduce_freely(k, x, first, end));
    return mark_moved(k);
}

qb_status qb_cuda_ranks_gather(qb_cuda_ranks *k, float *x)
{
    const size_t *bounds = k->share->bounds;
    QB_TRY(set_out(k));
    QB_NCCL_TRY(k->api->GroupStart());
    for (size_t r = 0; r < k->size; r++)
        if (bounds[r + 1] > bounds[r])
            QB_NCCL_TRY(k->api->Broadcast(x + bounds[r], x + bounds[r], bounds[r + 1] - bounds[r],
                                          QB_NCCL_F32, (int)r, k->comm, k->side));
    QB_NCCL_TRY(k->api->GroupEnd());
    QB_TRY(mark_moved(k));
    return qb_cuda_ranks_join(k);
}

qb_status qb_cuda_ranks_totals(qb_cuda_ranks *k, qb_cuda_train_totals *totals)
{
    QB_TRY(set_out(k));
    QB_NCCL_TRY(k->api->AllGather(totals, k->all, 2, QB_NCCL_F64, k->comm, k->side));
    QB_TRY(qb_cuda_ranks_add_totals(k->all, k->size, totals, k->side));
    return qb_cuda_ranks_join(k);
}
