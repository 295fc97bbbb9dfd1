/* infer/cuda/cuda_head.c - hidden states to logits, and comparisons of logits, on the device. */
#include "infer/cuda/cuda_engine.h"

#include "kernels/cuda/absmax.h"
#include "kernels/cuda/logits.h"

static const qb_cuda_linear *head_of(const cuda_engine *e)
{
    const cuda_backbone *b = (const cuda_backbone *)e->base.backbone;
    return e->own_head.n ? &e->own_head : &b->head[e->type];
}

/* Rows of the final hidden states as the head wants them. */
static qb_status stage_head(cuda_engine *e, size_t first_row, size_t row_step, size_t n_rows,
                            cuda_input *in)
{
    cuda_backbone *b = qb__cuda_backbone(e->base.backbone);
    const qb_cuda_linear *head = head_of(e);
    size_t width = b->base.config->d_model, stride = qb_cuda_stride(width);
    qb_cuda_stage stage = qb__cuda_stage(e, head, b->head_x);
    stage.q = b->head_q;
    if (stage.kind == QB_STAGE_TENSOR) { /* its scale spans all rows: made by prepare_head */
        stage.kind = QB_STAGE_STATIC;
        stage.scale = b->head_scale;
    }
    qb_cuda_act_args args = {.m = n_rows,
                             .width = width,
                             .in = {.y = e->hidden + first_row * stride,
                                    .type = QB_CUDA_F32,
                                    .stride = stride * row_step},
                             .stage = stage};
    QB_TRY(qb_cuda_act(&args, b->stream));
    *in = qb__cuda_staged(head, &stage, n_rows, b);
    if (head->outlier_min > 0) in->outliers = &e->head_outliers;
    return QB_OK;
}

/* The product into `slot`, without requantising; max_bits NULL = nobody asks for the maximum. */
static qb_status run_head(cuda_engine *e, size_t slot, size_t first_row, size_t row_step,
                          size_t n_rows, cuda_output *out)
{
    cuda_backbone *b = qb__cuda_backbone(e->base.backbone);
    cuda_input in;
    QB_TRY(stage_head(e, first_row, row_step, n_rows, &in));
    *out = (cuda_output){.y = b->slots[slot], .stride = b->slot_stride, .type = QB_CUDA_F32};
    b->slot_owner = NULL;
    return qb__cuda_linear_run(head_of(e), &in, out, b);
}

/* Scales of a quantised head span all rows of the call: they are found before its first logits. */
static qb_status prepare_head(cuda_engine *e, size_t slot)
{
    cuda_backbone *b = qb__cuda_backbone(e->base.backbone);
    const qb_cuda_linear *head = head_of(e);
    uint32_t *max_bits = b->max_bits + 2 * QB_CUDA_SEGMENTS;
    size_t n = e->base.n_rows, stride = qb_cuda_stride(b->base.config->d_model);
    e->head_ready = true;
    if (head->outlier_min > 0)
        QB_TRY(qb_cuda_outliers_find(e->hidden, n, head->k, stride, head->outlier_min,
                                     &e->head_outliers, b->stream));
    if (head->input != QB_STAGE_TENSOR && head->requant != QB_CUDA_REQUANT_DYNAMIC) return QB_OK;
    QB_TRY(qb_cuda_zero(max_bits, QB_CUDA_SEGMENTS * sizeof *max_bits, b->stream));
    if (head->input == QB_STAGE_TENSOR) {
        qb_cuda_segments all = {1, {(int)b->base.config->d_model}};
        QB_TRY(qb_cuda_absmax(e->hidden, QB_CUDA_F32, n, stride, &all, max_bits, b->stream));
        QB_TRY(qb_cuda_absmax_scale(max_bits, b->head_scale, b->stream));
        QB_TRY(qb_cuda_zero(max_bits, QB_CUDA_SEGMENTS * sizeof *max_bits, b->stream));
    }
    if (head->requant != QB_CUDA_REQUANT_DYNAMIC) return QB_OK;
    for (size_t row = 0; row < n; row += b->base.logit_rows) {
        size_t rows = n - row < b->base.logit_rows ? n - row : b->base.logit_rows;
        cuda_output out;
        QB_TRY(run_head(e, slot, row, 1, rows, &out));
        QB_TRY(qb_cuda_absmax(out.y, out.type, rows, out.stride, &head->segments, max_bits,
                              b->stream));
    }
    return QB_OK;
}

static qb_status requantise(cuda_engine *e, const cuda_output *out, size_t n_rows)
{
    cuda_backbone *b = qb__cuda_backbone(e->base.backbone);
    const qb_cuda_linear *head = head_of(e);
    if (head->requant == QB_CUDA_REQUANT_NONE) return QB_OK;
    qb_cuda_pending pending = qb__cuda_pending(head, out);
    if (head->requant == QB_CUDA_REQUANT_DYNAMIC)
        pending.max_bits = b->max_bits + 2 * QB_CUDA_SEGMENTS;
    qb_cuda_act_args args = {
        .m = n_rows,
        .width = head->n,
        .in = pending,
        .stage = {.kind = QB_STAGE_FLOAT, .type = QB_CUDA_F32, .y = out->y, .stride = out->stride}};
    return qb_cuda_act(&args, b->stream);
}

qb_status qb__cuda_head(qb_engine *engine, size_t slot, size_t first_row, size_t row_step,
                        size_t n_rows)
{
    cuda_engine *e = qb__cuda_engine(engine);
    cuda_backbone *b = qb__cuda_backbone(engine->backbone);
    QB_TRY(qb_cuda_use(b->base.device_idx));
    if (slot == 0 && b->slot_owner == engine && first_row == 0 && row_step == 1) return QB_OK;
    cuda_output out;
    qb__timeline_open(engine->timeline, -1, false);
    if (!e->head_ready) QB_TRY(prepare_head(e, slot));
    QB_TRY(run_head(e, slot, first_row, row_step, n_rows, &out));
    QB_TRY(requantise(e, &out, n_rows));
    if (!qb__timeline_is_open(engine->timeline)) return QB_OK;
    const cuda_input in = {.m = n_rows, .type = e->type};
    qb_work work = qb__cuda_linear_work(head_of(e), &in, &out, -1, QB_ROLE_HEAD);
    work.phase = QB_PHASE_HEAD;
    qb__timeline_close(engine->timeline, &work, 1);
    return QB_OK;
}

static qb_status download_rows(cuda_backbone *b, size_t n_rows, float *logits)
{
    size_t vocab = b->base.config->vocab;
    for (size_t i = 0; i < n_rows; i++)
        QB_TRY(qb_cuda_download(logits + i * vocab, b->slots[0] + i * b->slot_stride,
                                vocab * sizeof *logits, b->stream));
    return qb_cuda_sync(b->stream);
}

qb_status qb__cuda_logits(qb_engine *engine, size_t first_row, size_t n_rows, float *logits)
{
    cuda_backbone *b = qb__cuda_backbone(engine->backbone);
    size_t vocab = b->base.config->vocab;
    for (size_t row = 0; row < n_rows;) {
        size_t n = n_rows - row < b->base.logit_rows ? n_rows - row : b->base.logit_rows;
        QB_TRY(qb__cuda_head(engine, 0, first_row + row, 1, n));
        QB_TRY(download_rows(b, n, logits + row * vocab));
        row += n;
    }
    return QB_OK;
}

qb_status qb__cuda_compare(qb_backbone *backbone, int slot_a, int slot_b, size_t n_rows,
                           const int32_t *target, qb_logit_stats *out)
{
    cuda_backbone *b = qb__cuda_backbone(backbone);
    QB_TRY(qb_cuda_use(b->base.device_idx));
    QB_TRY(qb_cuda_upload(b->target, target, n_rows * sizeof *target, b->stream));
    QB_TRY(qb_cuda_logit_stats(b->slots[slot_a], slot_b < 0 ? NULL : b->slots[slot_b], n_rows,
                               backbone->config->vocab, b->slot_stride, b->target, b->stats,
                               b->stream));
    QB_TRY(qb_cuda_download(out, b->stats, n_rows * sizeof *out, b->stream));
    return qb_cuda_sync(b->stream);
}
