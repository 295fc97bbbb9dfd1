/* infer/cuda/cuda_passes.c - the single passes and products of a forward call (cuda_forward.c),
 * each a section of the timeline, and what those who look are shown between them. */
#include "infer/cuda/cuda_forward_internal.h"

#include <cuda_runtime_api.h>

/* ---- who looks (infer/taps.h) ---- */

qb_status qb__cuda_show_rows(const cuda_forward *f, qb_tap tap, qb_role role, void *dev,
                             qb_cuda_dtype type, size_t width, size_t stride)
{
    if (!f->taps) return QB_OK;
    const cuda_shown rows = {dev, type, stride, f->b->stream};
    const qb_tap_view view = {.tap = tap,
                              .role = role,
                              .layer = f->layer,
                              .batch = f->batch,
                              .n_tokens = f->n_tokens,
                              .width = width};
    return qb__cuda_show(&rows, f->taps, view);
}

qb_status qb__cuda_show_x(const cuda_forward *f, qb_tap tap, qb_role role)
{
    return qb__cuda_show_rows(f, tap, role, f->x, QB_CUDA_F32, f->c->d_model, f->x_stride);
}

qb_status qb__cuda_show_normed(const cuda_forward *f, qb_role role, const qb_cuda_stage *stage)
{
    return qb__cuda_show_rows(f, QB_TAP_NORMED, role, stage->y, stage->type, f->c->d_model,
                              stage->stride);
}

/* ---- timeline (infer/timeline.h) ---- */

int qb__cuda_layer_of(const cuda_forward *f)
{
    return f->layer < f->c->n_layers ? (int)f->layer : -1;
}

void qb__cuda_open_part(const cuda_forward *f)
{
    qb__timeline_open(f->e->base.timeline, qb__cuda_layer_of(f), false);
}

void qb__cuda_close_pass(const cuda_forward *f, qb_phase phase, size_t width, size_t elem_bytes)
{
    if (!qb__timeline_is_open(f->e->base.timeline)) return;
    const qb_kernel_info *row = QB_KERNEL_PICK(qb_cuda_pointwise_kernels);
    const qb_work work = {.phase = phase,
                          .layer = qb__cuda_layer_of(f),
                          .role = -1,
                          .kernel = row->name,
                          .bytes = (double)(f->m * width) * (double)elem_bytes};
    qb__timeline_close(f->e->base.timeline, &work, 1);
}

static size_t staged_bytes(const qb_cuda_stage *stage)
{
    return stage->kind == QB_STAGE_FLOAT || stage->fake ? qb_cuda_dtype_bytes(stage->type) : 1;
}

/* ---- staging ---- */

qb_cuda_stage qb__cuda_stage(const cuda_engine *e, const qb_cuda_linear *l, void *y)
{
    const cuda_backbone *b = (const cuda_backbone *)e->base.backbone;
    bool given = l->input == QB_STAGE_STATIC || l->input == QB_STAGE_CHANNEL;
    bool split = l->outlier_min > 0; /* floats, which qb__cuda_linear_run then stages further */
    qb_stage_kind kind = split ? QB_STAGE_FLOAT : l->input;
    return (qb_cuda_stage){.kind = kind,
                           .fake = e->fake && kind != QB_STAGE_FLOAT,
                           .type = split ? QB_CUDA_F32 : e->type,
                           .y = y,
                           .q = b->q,
                           .stride = qb_cuda_stride(l->k),
                           .scale = given ? l->in_scale : b->scale,
                           .max_bits = b->max_bits + QB_CUDA_SEGMENTS,
                           .row_stats = b->row_stats};
}

cuda_input qb__cuda_staged(const qb_cuda_linear *l, const qb_cuda_stage *stage, size_t m,
                           const cuda_backbone *b)
{
    return (cuda_input){.m = m,
                        .x = stage->y,
                        .x_stride = stage->stride,
                        .type = stage->type,
                        .q = stage->q,
                        .q_stride = stage->stride,
                        .scale = l->input == QB_STAGE_CHANNEL ? b->one : stage->scale,
                        .scale_step = l->input == QB_STAGE_TOKEN};
}

qb_status qb__cuda_clear_padding(const cuda_forward *f, void *y, size_t width)
{
    size_t elem_bytes = qb_cuda_dtype_bytes(f->e->type), stride = qb_cuda_stride(width);
    if (width == stride) return QB_OK;
    QB_CUDA_TRY(cudaMemset2DAsync(qb__cuda_element(y, f->e->type, width), stride * elem_bytes, 0,
                                  (stride - width) * elem_bytes, f->m, f->b->stream));
    return QB_OK;
}

/* ---- passes ---- */

qb_status qb__cuda_embed(const cuda_forward *f)
{
    const cuda_backbone *b = f->b;
    qb_cuda_embed_args args = {.tokens = f->tokens,
                               .batch = f->batch,
                               .n_tokens = f->n_tokens,
                               .width = f->c->d_model,
                               .past = f->past,
                               .past_dev = f->past_dev,
                               .type = f->e->type,
                               .tok_embd = b->tok_embd[f->e->type],
                               .pos_embd = b->pos_embd[f->e->type],
                               .table_stride = b->table_stride,
                               .x = f->x,
                               .x_stride = f->x_stride};
    qb__cuda_open_part(f);
    QB_TRY(qb_cuda_embed(&args, b->stream));
    qb__cuda_close_pass(f, QB_PHASE_EMBEDDING, f->c->d_model,
                        sizeof(float) + qb_cuda_dtype_bytes(f->e->type));
    return QB_OK;
}

qb_status qb__cuda_add_norm(const cuda_forward *f, const cuda_norm *w, const qb_cuda_stage *stage,
                            uint32_t *cleared)
{
    qb_cuda_norm_args args = {.m = f->m,
                              .width = f->c->d_model,
                              .x = f->x,
                              .x_stride = f->x_stride,
                              .pending = f->pending,
                              .norm = w->kind,
                              .gain = w->gain,
                              .bias = w->bias,
                              .eps = (float)f->c->norm_eps,
                              .stage = *stage,
                              .cleared = cleared};
    qb__cuda_open_part(f);
    QB_TRY(qb_cuda_add_norm(&args, f->b->stream));
    size_t added = f->pending.y ? 2 * sizeof(float) : 0;
    qb__cuda_close_pass(f, QB_PHASE_NORM, f->c->d_model,
                        sizeof(float) + added + staged_bytes(stage));
    return QB_OK;
}

qb_status qb__cuda_run_act(const cuda_forward *f, const qb_cuda_act_args *args)
{
    qb__cuda_open_part(f);
    QB_TRY(qb_cuda_act(args, f->b->stream));
    size_t parts = args->apply && args->act == QB_ACT_SWIGLU ? 2 : 1;
    qb__cuda_close_pass(f, args->apply ? QB_PHASE_ACTIVATION : QB_PHASE_QUANTISE, args->width,
                        parts * qb_cuda_dtype_bytes(args->in.type) + staged_bytes(&args->stage));
    return QB_OK;
}

/* ---- products ---- */

cuda_output qb__cuda_float_output(const cuda_forward *f, const qb_cuda_linear *l, void *y,
                                  size_t width)
{
    cuda_output out = {.y = y, .stride = qb_cuda_stride(width), .type = f->e->type};
    if (l->requant != QB_CUDA_REQUANT_NONE) out.type = QB_CUDA_F32;
    if (l->requant == QB_CUDA_REQUANT_DYNAMIC) out.max_bits = f->b->max_bits;
    return out;
}

qb_status qb__cuda_run_linear(const cuda_forward *f, const qb_cuda_linear *l, qb_role role,
                              const cuda_input *in, const cuda_output *out)
{
    qb__cuda_open_part(f);
    QB_TRY(qb__cuda_linear_run(l, in, out, f->b));
    if (!qb__timeline_is_open(f->e->base.timeline)) return QB_OK;
    const qb_work work = qb__cuda_linear_work(l, in, out, qb__cuda_layer_of(f), (int)role);
    qb__timeline_close(f->e->base.timeline, &work, 1);
    return QB_OK;
}

qb_status qb__cuda_settle(cuda_forward *f)
{
    qb_cuda_stage ignored = {
        .kind = QB_STAGE_FLOAT, .type = QB_CUDA_F32, .y = f->e->hidden, .stride = f->x_stride};
    QB_TRY(qb__cuda_add_norm(f, &f->e->norms[2 * f->layer + 1], &ignored, NULL));
    f->pending = (qb_cuda_pending){0};
    return QB_OK;
}

/* qb__cuda_run_into_x for those who look: first the output, then the sum. */
static qb_status show_into_x(cuda_forward *f, const qb_cuda_linear *l, qb_role role,
                             const cuda_input *in)
{
    cuda_output out = {
        .y = f->b->out, .stride = qb_cuda_stride(f->c->d_model), .type = QB_CUDA_F32};
    QB_TRY(qb__cuda_run_linear(f, l, role, in, &out));
    QB_TRY(qb__cuda_show_rows(f, QB_TAP_ADDED, role, out.y, out.type, f->c->d_model, out.stride));
    f->pending = qb__cuda_pending(l, &out);
    QB_TRY(qb__cuda_settle(f));
    return role == QB_ROLE_DOWN ? qb__cuda_show_x(f, QB_TAP_STREAM, QB_ROLE_DOWN) : QB_OK;
}

qb_status qb__cuda_run_into_x(cuda_forward *f, const qb_cuda_linear *l, qb_role role,
                              const cuda_input *in)
{
    if (f->taps) return show_into_x(f, l, role, in);
    cuda_output out = qb__cuda_float_output(f, l, f->b->out, f->c->d_model);
    f->pending = (qb_cuda_pending){0};
    if (l->requant == QB_CUDA_REQUANT_NONE)
        out = (cuda_output){.type = QB_CUDA_F32, .residual = f->x, .residual_stride = f->x_stride};
    else
        f->pending = qb__cuda_pending(l, &out);
    return qb__cuda_run_linear(f, l, role, in, &out);
}
