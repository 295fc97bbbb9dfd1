/* train/cuda/cuda_train_graphs.c - a step's launches as CUDA graphs, and the page-locked memory
 * through which the host and a device that is steps behind talk.
 *
 * The first time what is to be repeated is launched one by one, which lets libraries set themselves
 * up; the second time it is captured; from then on one launch makes all of it. */
#include "train/cuda/cuda_train.h"

#ifdef QB_HAVE_CUBLASLT
#include <cuda_runtime_api.h>

/* ---- slots ---- */

qb_status qb__cuda_train_slot_create(cuda_slot *slot, size_t bytes)
{
    cudaEvent_t moved;
    QB_TRY(qb_cuda_host_alloc(&slot->host, bytes, 1, "page-locked memory"));
    QB_CUDA_TRY(cudaEventCreateWithFlags(&moved, cudaEventDisableTiming));
    slot->moved = moved;
    return QB_OK;
}

void qb__cuda_train_slot_destroy(cuda_slot *slot)
{
    if (slot->moved) cudaEventDestroy(slot->moved);
    qb_cuda_host_free(slot->host);
}

qb_status qb__cuda_train_slot_open(const cuda_slot *slot)
{
    if (slot->used) QB_CUDA_TRY(cudaEventSynchronize(slot->moved));
    return QB_OK;
}

qb_status qb__cuda_train_slot_close(qb_train_device *d, cuda_slot *slot)
{
    QB_CUDA_TRY(cudaEventRecord(slot->moved, d->stream));
    slot->used = true;
    return QB_OK;
}

/* ---- graphs ---- */

static bool is_same(const qb_train_repeat *a, const qb_train_repeat *b)
{
    return a->what == b->what && a->batch == b->batch && a->scale == b->scale &&
           a->queue == b->queue;
}

/* What `queue` queues, which is not done now. */
static qb_status capture(qb_train_device *d, const qb_train_repeat *repeat, cudaGraph_t *out)
{
    QB_CUDA_TRY(cudaStreamBeginCapture(d->stream, cudaStreamCaptureModeThreadLocal));
    qb_status status = repeat->queue(repeat->context);
    cudaError_t code = cudaStreamEndCapture(d->stream, out);
    return status == QB_OK ? qb_cuda_check((int)code, "cudaStreamEndCapture") : status;
}

static qb_status make_graph(qb_train_device *d, cuda_graph *g, const qb_train_repeat *repeat)
{
    cudaGraph_t graph = NULL;
    cudaGraphExec_t exec = NULL;
    qb_status status = capture(d, repeat, &graph);
    if (status == QB_OK)
        status = qb_cuda_check((int)cudaGraphInstantiate(&exec, graph, 0), "cudaGraphInstantiate");
    if (graph) cudaGraphDestroy(graph);
    if (status == QB_OK) g->exec = exec;
    return status;
}

qb_status qb__cuda_train_repeat(qb_train_device *d, const qb_train_repeat *repeat)
{
    size_t i = 0;
    QB_TRY(qb_cuda_use(d->index));
    if (d->options->no_graphs) return repeat->queue(repeat->context);
    while (i < d->n_graphs && !is_same(&d->graphs[i].key, repeat)) i++;
    if (i == d->n_graphs) {
        if (d->n_graphs < QB__CUDA_GRAPHS) d->graphs[d->n_graphs++].key = *repeat;
        return repeat->queue(repeat->context);
    }
    if (!d->graphs[i].exec) QB_TRY(make_graph(d, &d->graphs[i], repeat));
    QB_CUDA_TRY(cudaGraphLaunch(d->graphs[i].exec, d->stream));
    return QB_OK;
}

void qb__cuda_train_graphs_destroy(qb_train_device *d)
{
    for (size_t i = 0; i < d->n_graphs; i++)
        if (d->graphs[i].exec) cudaGraphExecDestroy(d->graphs[i].exec);
}

#endif
