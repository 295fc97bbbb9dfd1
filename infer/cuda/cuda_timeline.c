/* infer/cuda/cuda_timeline.c - instants on the device for infer/timeline.h: stamps on the
 * backbone's stream, in captured graphs too; and what a product there did. */
#include "infer/cuda/cuda_engine.h"

#include "core/memory.h"
#include "kernels/cuda/stamp.h"
#include "kernels/running.h"

typedef struct device_clock {
    qb_cuda_stream stream;
    int device_idx;
    uint64_t *ns_dev, *ns; /* (n) stamps, and as they were read */
    size_t n;
} device_clock;

static qb_status take_stamp(void *context, size_t i)
{
    const device_clock *c = context;
    return qb_cuda_stamp(c->ns_dev + i, c->stream);
}

static qb_status read_stamps(void *context, size_t n, double *us)
{
    const device_clock *c = context;
    QB_TRY(qb_cuda_use(c->device_idx));
    QB_TRY(qb_cuda_download(c->ns, c->ns_dev, n * sizeof *c->ns, c->stream));
    QB_TRY(qb_cuda_sync(c->stream));
    for (size_t i = 0; i < n; i++) us[i] = 1e-3 * (double)(int64_t)(c->ns[i] - c->ns[0]);
    return QB_OK;
}

static void destroy_clock(void *context)
{
    device_clock *c = context;
    qb_cuda_free(c->ns_dev);
    qb_free(c->ns);
    qb_free(c);
}

static qb_status make_stamps(device_clock *c)
{
    QB_TRY(qb_cuda_use(c->device_idx));
    QB_TRY(QB_NEW_ZERO(&c->ns, c->n, "stamps"));
    return QB_CUDA_NEW_ZERO(&c->ns_dev, c->n, "stamps");
}

qb_status qb__cuda_timeline_clock(qb_backbone *backbone, size_t n_stamps, qb_timeline_clock *out)
{
    device_clock *c;
    QB_TRY(QB_NEW_ZERO(&c, 1, "stamps"));
    c->stream = qb__cuda_backbone(backbone)->stream;
    c->device_idx = backbone->device_idx;
    c->n = n_stamps;
    qb_status status = make_stamps(c);
    if (status != QB_OK) {
        destroy_clock(c);
        return status;
    }
    *out = (qb_timeline_clock){.context = c,
                               .joins = true,
                               .stamp = take_stamp,
                               .read = read_stamps,
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

static qb_work attention_work(const cuda_engine *e, int layer)
{
    const qb_config *c = e->base.backbone->config;
    double keys = (double)e->base.position + 1, q_width = (double)(c->n_heads * c->head_dim);
    return (qb_work){.phase = QB_PHASE_ATTENTION,
                     .layer = layer,
                     .role = -1,
                     .rate = QB_RATE_BF16,
                     .bytes = 2 * keys * (double)e->kv_stride * 2 + 2 * q_width * sizeof(float),
                     .ops = 4 * keys * q_width};
}

qb_work qb__cuda_part_work(const cuda_engine *e, int layer, qb_cuda_decode_part part)
{
    static const int roles[] = {QB_ROLE_QKV, -1, QB_ROLE_O, QB_ROLE_UP, QB_ROLE_DOWN, QB_ROLE_HEAD};
    const cuda_backbone *b = (const cuda_backbone *)e->base.backbone;
    const qb_cuda_linear *head = e->own_head.n ? &e->own_head : &b->head[e->type];
    const cuda_block *block = &e->blocks[layer < 0 ? 0 : layer];
    const qb_cuda_linear *const linears[] = {&block->qkv, NULL,         &block->o,
                                             &block->up,  &block->down, head};
    const cuda_input in = {.m = 1, .type = QB_CUDA_F32};
    const cuda_output out = {.type = QB_CUDA_F32};
    qb_work work = part == QB_CUDA_DECODE_ATTENTION
                       ? attention_work(e, layer)
                       : qb__cuda_linear_work(linears[part], &in, &out, layer, roles[part]);
    if (part == QB_CUDA_DECODE_HEAD) work.phase = QB_PHASE_HEAD;
    work.kernel = e->decode_row->info.name;
    return work;
}
