/* tests/ranks/fake_cuda.c - see fake_cuda.h. */
#include "tests/ranks/fake_cuda.h"

#include "kernels/cuda/nccl.h"
#include "kernels/cuda/ranks.h"

#include <cuda.h>
#include <cuda_runtime_api.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- streams ---- */

typedef struct task {
    struct task *next;
    void (*run)(const void *argument);
    _Alignas(16) char argument[FAKE_ARGUMENT_BYTES];
} task;

struct CUstream_st {
    pthread_t thread;
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    task *first, *last;
    bool stop;
    unsigned seed;
};

static void *work(void *argument)
{
    struct CUstream_st *s = argument;
    for (;;) {
        pthread_mutex_lock(&s->mutex);
        while (!s->first && !s->stop) pthread_cond_wait(&s->changed, &s->mutex);
        task *t = s->first;
        pthread_mutex_unlock(&s->mutex);
        if (!t) return NULL;
        if (rand_r(&s->seed) % 3 == 0) usleep((useconds_t)(rand_r(&s->seed) % 200));
        t->run(t->argument);
        pthread_mutex_lock(&s->mutex);
        s->first = t->next;
        pthread_cond_broadcast(&s->changed);
        pthread_mutex_unlock(&s->mutex);
        free(t);
    }
}

qb_status qb_cuda_stream_create(qb_cuda_stream *out)
{
    static _Atomic unsigned n_made;
    struct CUstream_st *s = calloc(1, sizeof *s);
    s->seed = ++n_made;
    pthread_mutex_init(&s->mutex, NULL);
    pthread_cond_init(&s->changed, NULL);
    pthread_create(&s->thread, NULL, work, s);
    *out = s;
    return QB_OK;
}

void qb_cuda_stream_destroy(qb_cuda_stream s)
{
    if (!s) return;
    pthread_mutex_lock(&s->mutex);
    s->stop = true;
    pthread_cond_broadcast(&s->changed);
    pthread_mutex_unlock(&s->mutex);
    pthread_join(s->thread, NULL);
    free(s);
}

void fake_queue(qb_cuda_stream s, void (*run)(const void *), const void *argument, size_t bytes)
{
    task *t = calloc(1, sizeof *t);
    t->run = run;
    memcpy(t->argument, argument, bytes);
    pthread_mutex_lock(&s->mutex);
    if (s->first)
        s->last->next = t;
    else
        s->first = t;
    s->last = t;
    pthread_cond_broadcast(&s->changed);
    pthread_mutex_unlock(&s->mutex);
}

cudaError_t cudaStreamQuery(cudaStream_t s)
{
    pthread_mutex_lock(&s->mutex);
    bool idle = !s->first;
    pthread_mutex_unlock(&s->mutex);
    return idle ? cudaSuccess : cudaErrorNotReady;
}

qb_status qb_cuda_sync(qb_cuda_stream s)
{
    pthread_mutex_lock(&s->mutex);
    while (s->first) pthread_cond_wait(&s->changed, &s->mutex);
    pthread_mutex_unlock(&s->mutex);
    return QB_OK;
}

/* ---- events ---- */

struct CUevent_st {
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    size_t recorded, reached;
};

typedef struct moment {
    struct CUevent_st *event;
    size_t count;
} moment;

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *out, unsigned flags)
{
    (void)flags;
    *out = calloc(1, sizeof **out);
    pthread_mutex_init(&(*out)->mutex, NULL);
    pthread_cond_init(&(*out)->changed, NULL);
    return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t e)
{
    free(e);
    return cudaSuccess;
}

static void reach(const void *argument)
{
    const moment *m = argument;
    pthread_mutex_lock(&m->event->mutex);
    m->event->reached = m->count;
    pthread_cond_broadcast(&m->event->changed);
    pthread_mutex_unlock(&m->event->mutex);
}

static void await(const void *argument)
{
    const moment *m = argument;
    pthread_mutex_lock(&m->event->mutex);
    while (m->event->reached < m->count) pthread_cond_wait(&m->event->changed, &m->event->mutex);
    pthread_mutex_unlock(&m->event->mutex);
}

static moment now_of(cudaEvent_t e, bool next)
{
    pthread_mutex_lock(&e->mutex);
    e->recorded += next;
    const moment m = {e, e->recorded};
    pthread_mutex_unlock(&e->mutex);
    return m;
}

cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s)
{
    const moment m = now_of(e, true);
    fake_queue(s, reach, &m, sizeof m);
    return cudaSuccess;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned flags)
{
    (void)flags;
    const moment m = now_of(e, false);
    fake_queue(s, await, &m, sizeof m);
    return cudaSuccess;
}

cudaError_t cudaEventQuery(cudaEvent_t e)
{
    pthread_mutex_lock(&e->mutex);
    bool there = e->reached >= e->recorded;
    pthread_mutex_unlock(&e->mutex);
    return there ? cudaSuccess : cudaErrorNotReady;
}

/* ---- memory ---- */

bool fake_shares_memory = true, fake_loses_writes;

qb_status qb_cuda_alloc_zero(void **out, size_t elems, size_t elem_bytes, const char *what)
{
    (void)what;
    *out = calloc(elems, elem_bytes);
    return QB_OK;
}

qb_status qb_cuda_alloc(void **out, size_t elems, size_t elem_bytes, const char *what)
{
    return qb_cuda_alloc_zero(out, elems, elem_bytes, what);
}

void qb_cuda_free(void *dev)
{
    free(dev);
}

cudaError_t cudaIpcGetMemHandle(cudaIpcMemHandle_t *handle, void *dev)
{
    memcpy(handle, &dev, sizeof dev);
    return fake_shares_memory ? cudaSuccess : cudaErrorNotSupported;
}

/* Where a device's memory cannot be had after all, it is another that is written to. */
cudaError_t cudaIpcOpenMemHandle(void **out, cudaIpcMemHandle_t handle, unsigned flags)
{
    static char elsewhere[1 << 20];
    (void)flags;
    memcpy(out, &handle, sizeof *out);
    if (fake_loses_writes) *out = elsewhere;
    return cudaSuccess;
}

cudaError_t cudaIpcCloseMemHandle(void *dev)
{
    (void)dev;
    return cudaSuccess;
}

typedef struct copy {
    void *to;
    const void *from; /* NULL: bytes of `value` */
    size_t bytes;
    uint32_t value;
} copy;

static void do_copy(const void *argument)
{
    const copy *c = argument;
    if (c->from)
        memcpy(c->to, c->from, c->bytes);
    else
        memset(c->to, (int)c->value, c->bytes);
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind,
                            cudaStream_t s)
{
    (void)kind;
    const copy c = {to, from, bytes, 0};
    fake_queue(s, do_copy, &c, sizeof c);
    return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void *to, int value, size_t bytes, cudaStream_t s)
{
    const copy c = {to, NULL, bytes, (uint32_t)value};
    fake_queue(s, do_copy, &c, sizeof c);
    return cudaSuccess;
}

/* ---- counters ---- */

static void wait_value(const void *argument)
{
    const copy *c = argument;
    while ((int32_t)(atomic_load((_Atomic uint32_t *)c->to) - c->value) < 0) usleep(20);
}

static void write_value(const void *argument)
{
    const copy *c = argument;
    atomic_store((_Atomic uint32_t *)c->to, c->value);
}

static CUresult queue_wait(CUstream s, CUdeviceptr at, cuuint32_t value, unsigned flags)
{
    const copy c = {.to = (void *)(uintptr_t)at, .value = value};
    if (flags != CU_STREAM_WAIT_VALUE_GEQ) return CUDA_ERROR_INVALID_VALUE;
    fake_queue((qb_cuda_stream)s, wait_value, &c, sizeof c);
    return CUDA_SUCCESS;
}

static CUresult queue_write(CUstream s, CUdeviceptr at, cuuint32_t value, unsigned flags)
{
    const copy c = {.to = (void *)(uintptr_t)at, .value = value};
    if (flags != CU_STREAM_WRITE_VALUE_DEFAULT) return CUDA_ERROR_INVALID_VALUE;
    fake_queue((qb_cuda_stream)s, write_value, &c, sizeof c);
    return CUDA_SUCCESS;
}

cudaError_t cudaGetDriverEntryPointByVersion(const char *name, void **out, unsigned version,
                                             unsigned long long flags,
                                             enum cudaDriverEntryPointQueryResult *result)
{
    CUresult (*entry)(CUstream, CUdeviceptr, cuuint32_t, unsigned) =
        strcmp(name, "cuStreamWaitValue32") ? queue_write : queue_wait;
    (void)version, (void)flags;
    memcpy(out, &entry, sizeof entry);
    *result = cudaDriverEntryPointSuccess;
    return cudaSuccess;
}

/* ---- the rest ---- */

qb_status qb_cuda_use(int index)
{
    (void)index;
    return QB_OK;
}

qb_status qb_cuda_check(int code, const char *what)
{
    return code ? QB_FAIL(QB_ERR_DEVICE, "%s: error %d", what, code) : QB_OK;
}

cudaError_t cudaGetLastError(void)
{
    return cudaSuccess;
}

const char *qb_nccl_refusal(void)
{
    return "no NCCL here";
}

const qb_nccl *qb_nccl_get(void)
{
    return NULL;
}

qb_status qb_nccl_check(int result, const char *what)
{
    return qb_cuda_check(result, what);
}

/* ---- ranks ---- */

typedef struct world {
    size_t size;
    pthread_barrier_t barrier;
    char board[16][256];
    atomic_bool lost;
    void (*run)(qb_comm *comm, void *context);
    void *context;
} world;

struct qb_comm {
    world *world;
    size_t rank;
};

static void *be_rank(void *argument)
{
    qb_comm *c = argument;
    c->world->run(c, c->world->context);
    return NULL;
}

void fake_ranks(size_t n, void (*run)(qb_comm *comm, void *context), void *context)
{
    world w = {.size = n, .run = run, .context = context};
    qb_comm comms[16];
    pthread_t threads[16];
    pthread_barrier_init(&w.barrier, NULL, (unsigned)n);
    for (size_t r = 0; r < n; r++) {
        comms[r] = (qb_comm){&w, r};
        pthread_create(&threads[r], NULL, be_rank, &comms[r]);
    }
    for (size_t r = 0; r < n; r++) pthread_join(threads[r], NULL);
    pthread_barrier_destroy(&w.barrier);
}

void fake_lose(qb_comm *c)
{
    atomic_store(&c->world->lost, true);
}

size_t qb_comm_rank(const qb_comm *c)
{
    return c->rank;
}

size_t qb_comm_size(const qb_comm *c)
{
    return c->world->size;
}

bool qb_comm_is_near(const qb_comm *c, size_t rank)
{
    return rank < c->world->size;
}

qb_status qb_comm_all(qb_comm *c, const void *mine, size_t bytes, void *all)
{
    memcpy(c->world->board[c->rank], mine, bytes);
    pthread_barrier_wait(&c->world->barrier);
    for (size_t r = 0; r < c->world->size; r++)
        memcpy((char *)all + r * bytes, c->world->board[r], bytes);
    pthread_barrier_wait(&c->world->barrier);
    return QB_OK;
}

qb_status qb_comm_agree(qb_comm *c, unsigned *bits)
{
    unsigned all[16];
    qb_comm_all(c, bits, sizeof *bits, all);
    for (size_t r = 0; r < c->world->size; r++) *bits |= all[r];
    return QB_OK;
}

qb_status qb_comm_check_alive(qb_comm *c)
{
    return atomic_load(&c->world->lost) ? QB_FAIL(QB_ERR_DEVICE, "lost") : QB_OK;
}

qb_status qb_comm_lose(qb_comm *c, const char *why)
{
    fake_lose(c);
    return QB_FAIL(QB_ERR_DEVICE, "%s", why);
}

double qb_comm_timeout_s(const qb_comm *c)
{
    (void)c;
    return 60;
}
