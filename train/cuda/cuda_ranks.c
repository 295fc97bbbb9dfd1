/* train/cuda/cuda_ranks.c - see cuda_ranks.h. */
#include "train/cuda/cuda_ranks.h"

#include "core/clock.h"
#include "core/memory.h"
#include "kernels/cuda/nccl.h"
#include "train/cuda/cuda_peers.h"

#include <cuda_runtime_api.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#ifndef QB_RANKS_CHUNK_ELEMS /* with two ranks; tests have less to move */
#define QB_RANKS_CHUNK_ELEMS (1 << 23)
#endif
enum { WATCH_EVERY_MS = 200 };

struct qb_cuda_ranks {
    const qb_train_share *share;
    size_t rank, size, chunk_elems;
    int device;
    bool ordered;
    qb_cuda_peers *peers; /* or NULL, and NCCL: */
    const qb_nccl *api;
    qb_nccl_comm comm;
    qb_cuda_stream stream;       /* the trainer's */
    qb_cuda_stream out, in;      /* what leaves, and what arrives; with NCCL they are one */
    cudaEvent_t here, sent, got; /* how far the three have come, for the others */
    float *others;               /* NCCL: (size - 1, chunk_elems), what is added up */
    double *all;                 /* (size, 2), */
    size_t *all_bounds;          /* of each rank's there */
    size_t bytes;

    cudaEvent_t left, arrived; /* the last calls' ends */
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
    bool waits = k->recorded && (cudaEventQuery(k->left) == cudaErrorNotReady ||
                                 cudaEventQuery(k->arrived) == cudaErrorNotReady);
    double waited_s = waits ? qb_now_s() - k->recorded_s : 0;
    pthread_mutex_unlock(&k->mutex);
    return waited_s > qb_comm_timeout_s(k->share->comm);
}

static void see_nccl(const qb_cuda_ranks *k, char *why, size_t bytes)
{
    int fault = QB_NCCL_SUCCESS;
    if (k->api->CommGetAsyncError(k->comm, &fault) != QB_NCCL_SUCCESS ||
        (fault != QB_NCCL_SUCCESS && fault != QB_NCCL_IN_PROGRESS))
        snprintf(why, bytes, "NCCL reports: %.100s", k->api->GetErrorString(fault));
}

/* Ranks that go on for a while may count again what has been given up. */
static void abort_all(qb_cuda_ranks *k)
{
    bool again = atomic_exchange(&k->aborted, true);
    if (k->peers) qb_cuda_peers_give_up(k->peers);
    if (!k->peers && !again) k->api->CommAbort(k->comm);
}

static void watch_once(qb_cuda_ranks *k)
{
    char why[128] = "";
    if (!k->peers && !atomic_load(&k->aborted)) see_nccl(k, why, sizeof why);
    if (!why[0] && is_stuck(k)) snprintf(why, sizeof why, "the GPUs waited for each other in vain");
    if (why[0]) qb_comm_lose(k->share->comm, why);
    if (qb_comm_check_alive(k->share->comm) != QB_OK) abort_all(k);
}

static bool is_stopped(qb_cuda_ranks *k)
{
    pthread_mutex_lock(&k->mutex);
    bool stop = k->stop;
    pthread_mutex_unlock(&k->mutex);
    return stop;
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

size_t qb_cuda_ranks_chunk_elems(size_t n_ranks)
{
    const size_t each = (size_t)QB_RANKS_CHUNK_ELEMS / (n_ranks > 1 ? n_ranks - 1 : 1);
    return qb_round_up(each, 1024);
}

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

static qb_status create_nccl(qb_cuda_ranks *k)
{
    const char *why = qb_nccl_refusal();
    if (why) return QB_FAIL(QB_ERR_UNSUPPORTED, "training on several GPUs: %s", why);
    k->api = qb_nccl_get();
    QB_TRY(join(k));
    k->out = k->in;
    if (!k->ordered) return QB_OK;
    const size_t n = (k->size - 1) * k->chunk_elems;
    QB_TRY(QB_CUDA_NEW(&k->others, n, "gradients of the ranks"));
    k->bytes = n * sizeof *k->others;
    return QB_OK;
}

static qb_status create_totals(qb_cuda_ranks *k)
{
    QB_TRY(QB_CUDA_NEW(&k->all, 2 * k->size, "totals of the ranks"));
    QB_TRY(QB_NEW(&k->all_bounds, k->size + 1, "totals of the ranks"));
    for (size_t r = 0; r <= k->size; r++) k->all_bounds[r] = 2 * r;
    return QB_OK;
}

static qb_status create(qb_cuda_ranks *k)
{
    cudaEvent_t *events[] = {&k->here, &k->sent, &k->got, &k->left, &k->arrived};
    QB_TRY(qb_cuda_use(k->device));
    QB_TRY(create_totals(k));
    QB_TRY(qb_cuda_stream_create(&k->in));
    for (size_t i = 0; i < QB_COUNT(events); i++)
        QB_CUDA_TRY(cudaEventCreateWithFlags(events[i], cudaEventDisableTiming));
    QB_TRY(qb_cuda_peers_create(k->share->comm, k->chunk_elems * sizeof(float), &k->peers));
    if (k->peers) {
        QB_TRY(qb_cuda_stream_create(&k->out));
        k->bytes = qb_cuda_peers_memory_bytes(k->peers);
    } else {
        QB_TRY(create_nccl(k));
    }
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
    k->chunk_elems = qb_cuda_ranks_chunk_elems(k->size);
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
    if (k->in) qb_cuda_sync(k->in); /* while the watcher can still abort it */
    if (k->out) qb_cuda_sync(k->out);
    pthread_mutex_lock(&k->mutex);
    k->stop = true;
    pthread_mutex_unlock(&k->mutex);
    if (k->watched) pthread_join(k->watcher, NULL);
    /* NCCL's own part stays for the little while that the process still has: destroying it would
     * wait for ranks that may have ended otherwise, aborting it take from them what they still
     * read. */
    cudaEvent_t events[] = {k->here, k->sent, k->got, k->left, k->arrived};
    for (size_t i = 0; i < QB_COUNT(events); i++)
        if (events[i]) cudaEventDestroy(events[i]);
    qb_cuda_free(k->others);
    qb_cuda_free(k->all);
    qb_free(k->all_bounds);
    if (k->out != k->in) qb_cuda_stream_destroy(k->out);
    qb_cuda_stream_destroy(k->in);
    qb_cuda_peers_destroy(k->peers);
    pthread_mutex_destroy(&k->mutex);
    qb_free(k);
}

size_t qb_cuda_ranks_memory_bytes(const qb_cuda_ranks *k)
{
    return k ? k->bytes : 0;
}

/* ---- moving ---- */

static qb_status mark_ends(qb_cuda_ranks *k)
{
    pthread_mutex_lock(&k->mutex);
    int code = (int)cudaEventRecord(k->left, k->out);
    if (!code) code = (int)cudaEventRecord(k->arrived, k->in);
    k->recorded = true;
    k->recorded_s = qb_now_s();
    pthread_mutex_unlock(&k->mutex);
    return qb_cuda_check(code, "cudaEventRecord");
}

/* What is queued on the streams next comes after all that is on the trainer's. */
static qb_status set_out(qb_cuda_ranks *k)
{
    QB_TRY(qb_comm_check_alive(k->share->comm));
    QB_CUDA_TRY(cudaEventRecord(k->here, k->stream));
    QB_CUDA_TRY(cudaStreamWaitEvent(k->out, k->here, 0));
    if (k->in != k->out) QB_CUDA_TRY(cudaStreamWaitEvent(k->in, k->here, 0));
    return QB_OK;
}

qb_status qb_cuda_ranks_join(qb_cuda_ranks *k)
{
    QB_CUDA_TRY(cudaEventRecord(k->got, k->in));
    QB_CUDA_TRY(cudaStreamWaitEvent(k->stream, k->got, 0));
    if (k->in == k->out) return QB_OK;
    QB_CUDA_TRY(cudaEventRecord(k->sent, k->out));
    QB_CUDA_TRY(cudaStreamWaitEvent(k->stream, k->sent, 0));
    return QB_OK;
}

qb_cuda_stream qb_cuda_ranks_behind(const qb_cuda_ranks *k)
{
    return k->in;
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

static size_t in_chunk(const qb_cuda_ranks *k, size_t n, size_t done)
{
    size_t left = n > done ? n - done : 0;
    return left < k->chunk_elems ? left : k->chunk_elems;
}

/* ---- gradients ---- */

/* Elements [done, done + chunk_elems) of every rank's part to their owners; `own` of this one's.
 * What has arrived lies stride elements apart, as qb_cuda_ranks_add wants it. */
static qb_status trade_by_nccl(const qb_cuda_ranks *k, float *x, size_t first, size_t end,
                               size_t done, size_t own)
{
    size_t from, n;
    QB_NCCL_TRY(k->api->GroupStart());
    for (size_t r = 0, i = 0; r < k->size; r++) {
        if (r == k->rank) continue;
        part_of(k, r, first, end, &from, &n);
        n = in_chunk(k, n, done);
        if (n) QB_NCCL_TRY(k->api->Send(x + from + done, n, QB_NCCL_F32, (int)r, k->comm, k->out));
        if (own)
            QB_NCCL_TRY(k->api->Recv(k->others + i * k->chunk_elems, own, QB_NCCL_F32, (int)r,
                                     k->comm, k->in));
        i++;
    }
    QB_NCCL_TRY(k->api->GroupEnd());
    return QB_OK;
}

static qb_status send_to_owners(const qb_cuda_ranks *k, const float *x, size_t first, size_t end,
                                size_t done)
{
    for (size_t r = 0; r < k->size; r++) {
        size_t from, n;
        part_of(k, r, first, end, &from, &n);
        n = in_chunk(k, n, done);
        if (r != k->rank && n)
            QB_TRY(qb_cuda_peers_send(k->peers, r, x + from + done, n * sizeof *x, k->out));
    }
    return QB_OK;
}

static qb_status add_from_peers(const qb_cuda_ranks *k, float *x, size_t n)
{
    const void *others;
    size_t stride;
    QB_TRY(qb_cuda_peers_receive(k->peers, &others, &stride, k->in));
    QB_TRY(qb_cuda_ranks_add(x, n, others, stride / sizeof *x, k->rank, k->size, k->in));
    return qb_cuda_peers_done(k->peers, k->in);
}

static qb_status reduce_in_order(const qb_cuda_ranks *k, float *x, size_t first, size_t end)
{
    size_t from, n, most = 0;
    for (size_t r = 0; r < k->size; r++) {
        part_of(k, r, first, end, &from, &n);
        if (n > most) most = n;
    }
    part_of(k, k->rank, first, end, &from, &n);
    for (size_t done = 0; done < most; done += k->chunk_elems) {
        size_t own = in_chunk(k, n, done);
        QB_TRY(k->peers ? send_to_owners(k, x, first, end, done)
                        : trade_by_nccl(k, x, first, end, done, own));
        if (own && k->peers)
            QB_TRY(add_from_peers(k, x + from + done, own));
        else if (own)
            QB_TRY(qb_cuda_ranks_add(x + from + done, own, k->others, k->chunk_elems, k->rank,
                                     k->size, k->in));
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
                                       k->comm, k->in));
    }
    QB_NCCL_TRY(k->api->GroupEnd());
    return QB_OK;
}

qb_status qb_cuda_ranks_reduce(qb_cuda_ranks *k, float *x, size_t first, size_t end)
{
    QB_TRY(set_out(k));
    QB_TRY(k->ordered || k->peers ? reduce_in_order(k, x, first, end)
                                  : reduce_freely(k, x, first, end));
    return mark_ends(k);
}

/* ---- what all get ---- */

size_t qb_cuda_ranks_chunks(const size_t *bounds, size_t n_ranks)
{
    const size_t each = qb_cuda_ranks_chunk_elems(n_ranks);
    size_t most = 0;
    for (size_t r = 0; r < n_ranks; r++)
        if (bounds[r + 1] - bounds[r] > most) most = bounds[r + 1] - bounds[r];
    return (most + each - 1) / each;
}

typedef struct block {
    char *at;
    size_t bytes;
} block;

static block chunk_of(const qb_cuda_ranks *k, const qb_gather *g, size_t r)
{
    const size_t done = g->chunk_idx * k->chunk_elems;
    const size_t n = in_chunk(k, g->bounds[r + 1] - g->bounds[r], done);
    return (block){(char *)g->x + (n ? (g->bounds[r] + done) * g->elem_bytes : 0),
                   n * g->elem_bytes};
}

static qb_status gather_by_nccl(const qb_cuda_ranks *k, const qb_gather *g)
{
    QB_NCCL_TRY(k->api->GroupStart());
    for (size_t r = 0; r < k->size; r++) {
        const block b = chunk_of(k, g, r);
        if (b.bytes)
            QB_NCCL_TRY(k->api->Broadcast(b.at, b.at, b.bytes, QB_NCCL_U8, (int)r, k->comm, k->in));
    }
    QB_NCCL_TRY(k->api->GroupEnd());
    return QB_OK;
}

/* A rank that has no more sends nothing, which is a message too. */
static qb_status gather_by_peers(const qb_cuda_ranks *k, const qb_gather *g)
{
    const block own = chunk_of(k, g, k->rank);
    const char *others;
    size_t stride;
    for (size_t r = 0; r < k->size; r++)
        if (r != k->rank) QB_TRY(qb_cuda_peers_send(k->peers, r, own.at, own.bytes, k->out));
    QB_TRY(qb_cuda_peers_receive(k->peers, (const void **)&others, &stride, k->in));
    for (size_t r = 0; r < k->size; r++) {
        const block b = chunk_of(k, g, r);
        if (r == k->rank) continue;
        if (b.bytes)
            QB_CUDA_TRY(cudaMemcpyAsync(b.at, others, b.bytes, cudaMemcpyDeviceToDevice, k->in));
        others += stride;
    }
    return qb_cuda_peers_done(k->peers, k->in);
}

qb_status qb_cuda_ranks_gather(qb_cuda_ranks *k, const qb_gather *g)
{
    QB_TRY(set_out(k));
    QB_TRY(k->peers ? gather_by_peers(k, g) : gather_by_nccl(k, g));
    return mark_ends(k);
}

/* The own part of `all` is sent; it lies there till the next step. */
qb_status qb_cuda_ranks_totals(qb_cuda_ranks *k, qb_cuda_train_totals *totals)
{
    double *own = k->all + 2 * k->rank;
    QB_CUDA_TRY(cudaMemcpyAsync(own, totals, 2 * sizeof *own, cudaMemcpyDeviceToDevice, k->stream));
    QB_TRY(qb_cuda_ranks_gather(k, &(qb_gather){k->all, sizeof *own, k->all_bounds, 0}));
    QB_TRY(qb_cuda_ranks_add_totals(k->all, k->size, totals, k->in));
    return qb_cuda_ranks_join(k);
}
