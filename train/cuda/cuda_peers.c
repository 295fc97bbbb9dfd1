/* train/cuda/cuda_peers.c - see cuda_peers.h. */
#include "train/cuda/cuda_peers.h"

#include "core/memory.h"

#include <cuda.h>
#include <cudaTypedefs.h>
#include <cuda_runtime_api.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum {
    COUNTER_BYTES = 64, /* a line of its own */
    GIVEN_UP = 0x3f,    /* each byte of a counter that all waits are through with */
    GREETING_MS = 3000
};

struct qb_cuda_peers {
    size_t rank, size, place_bytes, bytes;
    char *inbox;        /* places of (size - 1, PLACES), then the counters */
    char **inboxes;     /* (size) of all ranks, as this device sees them */
    uint32_t *sent;     /* (size) messages to each */
    uint32_t received;  /* from each */
    qb_cuda_stream aid; /* for giving up */
    PFN_cuStreamWaitValue32_v11070 wait;
    PFN_cuStreamWriteValue32_v11070 write;
};

/* What a rank tells the others. */
typedef struct card {
    bool can;
    cudaIpcMemHandle_t handle;
} card;

/* ---- where things lie ---- */

/* Of rank `of` among the others of rank `at`. */
static size_t index_of(size_t of, size_t at)
{
    return of < at ? of : of - 1;
}

static size_t place_offset(const qb_cuda_peers *p, size_t from, size_t to, uint32_t message)
{
    return (index_of(from, to) * QB_CUDA_PEERS_PLACES + message % QB_CUDA_PEERS_PLACES) *
           p->place_bytes;
}

/* In the inbox of `at`: how many messages of `of` have arrived, or how many of its own `of` has
 * done with. */
static size_t counter_offset(const qb_cuda_peers *p, size_t of, size_t at, bool of_done)
{
    const size_t places = (p->size - 1) * QB_CUDA_PEERS_PLACES * p->place_bytes;
    return places + (2 * index_of(of, at) + of_done) * COUNTER_BYTES;
}

/* ---- making ---- */

static bool find_entry(const char *name, void *entry)
{
    enum cudaDriverEntryPointQueryResult result;
    return cudaGetDriverEntryPointByVersion(name, (void **)entry, 12000, cudaEnableDefault,
                                            &result) == cudaSuccess &&
           result == cudaDriverEntryPointSuccess;
}

static bool can_begin(qb_cuda_peers *p, const qb_comm *comm, card *own)
{
    const char *wish = getenv("QB_PEER_COPIES");
    if (wish && !strcmp(wish, "off")) return false;
    for (size_t r = 0; r < p->size; r++)
        if (!qb_comm_is_near(comm, r)) return false;
    bool can = find_entry("cuStreamWaitValue32", &p->wait) &&
               find_entry("cuStreamWriteValue32", &p->write) &&
               cudaIpcGetMemHandle(&own->handle, p->inbox) == cudaSuccess;
    cudaGetLastError(); /* a refusal is no error */
    return can;
}

static bool open_inboxes(qb_cuda_peers *p, const card *cards)
{
    p->inboxes[p->rank] = p->inbox;
    for (size_t r = 0; r < p->size; r++)
        if (!cards[r].can) return false;
    for (size_t r = 0; r < p->size; r++) {
        void *inbox = NULL;
        if (r == p->rank) continue;
        cudaError_t code =
            cudaIpcOpenMemHandle(&inbox, cards[r].handle, cudaIpcMemLazyEnablePeerAccess);
        cudaGetLastError();
        if (code != cudaSuccess) return false;
        p->inboxes[r] = inbox;
    }
    return true;
}

static void close_inboxes(qb_cuda_peers *p)
{
    for (size_t r = 0; p->inboxes && r < p->size; r++)
        if (r != p->rank && p->inboxes[r]) cudaIpcCloseMemHandle(p->inboxes[r]);
}

static bool ends_soon(qb_cuda_stream stream)
{
    const struct timespec rest = {.tv_nsec = 1000000};
    for (int ms = 0; ms < GREETING_MS; ms++) {
        cudaError_t code = cudaStreamQuery(stream);
        if (code != cudaErrorNotReady) return code == cudaSuccess;
        nanosleep(&rest, NULL);
    }
    return false;
}

static qb_status queue_greetings(qb_cuda_peers *p, qb_cuda_stream stream)
{
    const void *messages;
    size_t stride;
    for (size_t r = 0; r < p->size; r++)
        if (r != p->rank) QB_TRY(qb_cuda_peers_send(p, r, p->inbox, 4, stream));
    QB_TRY(qb_cuda_peers_receive(p, &messages, &stride, stream));
    return qb_cuda_peers_done(p, stream);
}

/* A message to everyone shows that all of it works here. */
static bool greet(qb_cuda_peers *p)
{
    qb_cuda_stream stream;
    if (qb_cuda_stream_create(&stream) != QB_OK) return false;
    bool met = queue_greetings(p, stream) == QB_OK && ends_soon(stream);
    if (!met) {
        qb_cuda_peers_give_up(p);
        qb_cuda_sync(stream); /* before the others hear of it and free what it still writes to */
    }
    qb_cuda_stream_destroy(stream);
    cudaGetLastError();
    return met;
}

/* What one rank cannot no rank does. */
static qb_status meet(qb_cuda_peers *p, qb_comm *comm, bool *met)
{
    card own = {.can = false}, *all;
    own.can = can_begin(p, comm, &own);
    QB_TRY(QB_NEW(&all, p->size, "inboxes of the ranks"));
    qb_status status = qb_comm_all(comm, &own, sizeof own, all);
    unsigned lacks = status != QB_OK || !open_inboxes(p, all);
    qb_free(all);
    QB_TRY(status);
    QB_TRY(qb_comm_agree(comm, &lacks));
    if (lacks) return QB_OK;
    lacks = !greet(p);
    QB_TRY(qb_comm_agree(comm, &lacks));
    *met = !lacks;
    return QB_OK;
}

static qb_status create(qb_cuda_peers *p, qb_comm *comm, bool *met)
{
    p->bytes = (p->size - 1) * (QB_CUDA_PEERS_PLACES * p->place_bytes + 2 * COUNTER_BYTES);
    QB_TRY(QB_NEW_ZERO(&p->inboxes, p->size, "inboxes of the ranks"));
    QB_TRY(QB_NEW_ZERO(&p->sent, p->size, "inboxes of the ranks"));
    QB_TRY(qb_cuda_stream_create(&p->aid));
    QB_TRY(qb_cuda_alloc_zero((void **)&p->inbox, p->bytes, 1, "inbox"));
    return meet(p, comm, met);
}

qb_status qb_cuda_peers_create(qb_comm *comm, size_t max_bytes, qb_cuda_peers **out)
{
    qb_cuda_peers *p;
    bool met = false;
    QB_TRY(QB_NEW_ZERO(&p, 1, "inbox"));
    p->rank = qb_comm_rank(comm);
    p->size = qb_comm_size(comm);
    p->place_bytes = qb_round_up(max_bytes, 256);
    qb_status status = create(p, comm, &met);
    if (status == QB_OK && met) {
        *out = p;
        return QB_OK;
    }
    close_inboxes(p);
    qb_cuda_free(p->inbox);
    p->inbox = NULL;
    qb_cuda_peers_destroy(p);
    *out = NULL;
    return status;
}

void qb_cuda_peers_destroy(qb_cuda_peers *p)
{
    if (!p) return;
    qb_cuda_stream_destroy(p->aid);
    qb_free(p->inboxes);
    qb_free(p->sent);
    qb_free(p);
}

size_t qb_cuda_peers_memory_bytes(const qb_cuda_peers *p)
{
    return p ? p->bytes : 0;
}

/* ---- messages ---- */

static qb_status check(CUresult code, const char *what)
{
    if (code == CUDA_SUCCESS) return QB_OK;
    return QB_FAIL(QB_ERR_DEVICE, "cuda: %s: error %d", what, (int)code);
}

/* Counters wrap round; a wait is for the difference. */
static qb_status wait_for(const qb_cuda_peers *p, size_t of, bool done, uint32_t count,
                          qb_cuda_stream stream)
{
    char *own = p->inbox + counter_offset(p, of, p->rank, done);
    return check(p->wait(stream, (CUdeviceptr)(uintptr_t)own, count, CU_STREAM_WAIT_VALUE_GEQ),
                 "cuStreamWaitValue32");
}

/* Behind all that the stream has written. */
static qb_status tell(const qb_cuda_peers *p, size_t at, bool done, uint32_t count,
                      qb_cuda_stream stream)
{
    char *theirs = p->inboxes[at] + counter_offset(p, p->rank, at, done);
    return check(
        p->write(stream, (CUdeviceptr)(uintptr_t)theirs, count, CU_STREAM_WRITE_VALUE_DEFAULT),
        "cuStreamWriteValue32");
}

qb_status qb_cuda_peers_send(qb_cuda_peers *p, size_t to, const void *message, size_t bytes,
                             qb_cuda_stream stream)
{
    const uint32_t n = p->sent[to]++;
    char *place = p->inboxes[to] + place_offset(p, p->rank, to, n);
    QB_TRY(wait_for(p, to, true, n - QB_CUDA_PEERS_PLACES + 1, stream)); /* at first below 0 */
    if (bytes)
        QB_CUDA_TRY(cudaMemcpyAsync(place, message, bytes, cudaMemcpyDeviceToDevice, stream));
    return tell(p, to, false, n + 1, stream);
}

qb_status qb_cuda_peers_receive(qb_cuda_peers *p, const void **first, size_t *stride_bytes,
                                qb_cuda_stream stream)
{
    for (size_t r = 0; r < p->size; r++)
        if (r != p->rank) QB_TRY(wait_for(p, r, false, p->received + 1, stream));
    *first = p->inbox + p->received % QB_CUDA_PEERS_PLACES * p->place_bytes;
    *stride_bytes = QB_CUDA_PEERS_PLACES * p->place_bytes;
    return QB_OK;
}

qb_status qb_cuda_peers_done(qb_cuda_peers *p, qb_cuda_stream stream)
{
    p->received++;
    for (size_t r = 0; r < p->size; r++)
        if (r != p->rank) QB_TRY(tell(p, r, true, p->received, stream));
    return QB_OK;
}

void qb_cuda_peers_give_up(qb_cuda_peers *p)
{
    cudaMemsetAsync(p->inbox + counter_offset(p, p->rank ? 0 : 1, p->rank, false), GIVEN_UP,
                    (p->size - 1) * 2 * COUNTER_BYTES, p->aid);
}
