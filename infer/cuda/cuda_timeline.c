/* infer/cuda/cuda_timeline.c - instants on the device for infer/timeline.h: events on the
 * backbone's stream, in captured graphs too; and what a product there did. */
#include "infer/cuda/cuda_engine.h"

#include "core/memory.h"
#include "kernels/running.h"

#include <cuda_runtime_api.h>

typedef struct event_clock {
    cudaStream_t stream;
    int device_idx;
    cudaEvent_t *events;
    size_t n;
} event_clock;

/* In a graph an event is a node, which stops the kernels beside it from overlapping. */
static qb_status record(void *context, size_t i)
{
    const event_clock *c = context;
    enum cudaStreamCaptureStatus capture;
    QB_CUDA_TRY(cudaStreamIsCapturing(c->stream, &capture));
    unsigned flags =
        capture == cudaStreamCaptureStatusActive ? cudaEventRecordExternal : cudaEventRecordDefault;
    QB_CUDA_TRY(cudaEventRecordWithFlags(c->events[i], c->stream, flags));
    return QB_OK;
}

static qb_status read_events(void *context, size_t n, double *us)
{
    const event_clock *c = context;
    QB_TRY(qb_cuda_use(c->device_idx));
    QB_TRY(qb_cuda_sync(c->stream));
    for (size_t i = 0; i < n; i++) {
        float ms;
        QB_CUDA_TRY(cudaEventElapsedTime(&ms, c->events[0], c->events[i]));
        us[i] = 1e3 * (double)ms;
    }
    return QB_OK;
}

static void destroy_clock(void *context)
{
    event_clock *c = context;
    bool usable = qb_cuda_use(c->device_idx) == QB_OK;
    for (size_t i = 0; usable && c->events && i < c->n; i++)
        if (c->events[i]) cudaEventDestroy(c->events[i]);
    qb_free(c->events);
    qb_free(c);
}

static qb_status create_events(event_clock *c)
{
    QB_TRY(qb_cuda_use(c->device_idx));
    QB_TRY(QB_NEW_ZERO(&c->events, c->n, "events"));
    for (size_t i = 0; i < c->n; i++) QB_CUDA_TRY(cudaEventCreate(&c->events[i]));
    return QB_OK;
}

qb_status qb__cuda_timeline_clock(qb_backbone *backbone, size_t n_stamps, qb_timeline_clock *out)
{
    event_clock *c;
    QB_TRY(QB_NEW_ZERO(&c, 1, "events"));
    c->stream = qb__cuda_backbone(backbone)->stream;
    c->device_idx = backbone->device_idx;
    c->n = n_stamps;
    qb_status status = create_events(c);
    if (status != QB_OK) {
        destroy_clock(c);
        return status;
    }
    *out = (qb_timeline_clock){.context = c,
                               .joins = true,
                               .stamp = record,
                               .read = read_events,
                               .destroy = destroy_clock};
    return QB_OK;
}

/* Where the sum goes to the residual stream, that is read and written. */
qb_work qb__cuda_linear_work(const qb_cuda_linear *l, const cuda_input *in, const cuda_output *out,
                             int layer, int role)
{
    bool is_s8 = l->kind == QB_CUDA_LINEAR_S8;
    bool is_f32 = l->kind == QB_CUDA_LINEAR_FLOAT && l->type == QB_CUDA_F32;
    double m = (double)in->m, in_bytes = is_s8 ? 1 : (double)qb_cuda_dtype_bytes(in->type),
           out_bytes = out->residual ? 2 * sizeof(float) : (double)qb_cuda_dtype_bytes(out->type);
    return (qb_work){.phase = QB_PHASE_GEMM,
                     .layer = layer,
                     .role = role,
                     .kernel = qb_kernel_last(),
                     .rate = is_s8    ? QB_RATE_S8
                             : is_f32 ? QB_RATE_F32
                                      : QB_RATE_BF16,
                     .bytes = (double)qb__cuda_linear_bytes(l) + m * (double)l->k * in_bytes +
                              m * (double)l->n * out_bytes,
                     .ops = 2 * m * (double)l->n * (double)l->k};
}
