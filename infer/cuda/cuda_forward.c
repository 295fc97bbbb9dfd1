/* infer/cuda/cuda_forward.c - one forward pass on the GPU, for every architecture and scheme.
 *
 *     add + norm1 -> [qkv] -> requantise, rotate, cache -> attention (times gates) -> [o] ->
 *     add + norm2 -> [up] -> act -> [down]
 *
 * A product that is not requantised adds to the residual stream and applies its activation in its
 * own epilogue; one that is (coarse) leaves that to the next pass, which knows its largest value.
 */
#include "infer/cuda/cuda_engine.h"

#include "kernels/running.h"

#include <cuda_runtime_api.h>
#include <math.h>

typedef struct forward {
    cuda_engine *e;
    cuda_backbone *b;
    const qb_config *c;
    size_t batch, n_tokens, past, m; /* past: of a captured step the most it may be */
    const int32_t *tokens, *past_dev;
    bool last_only;
    float *x;  /* (m, C) residual stream */
    void *att; /* (m, H D) */
    size_t layer;
    const cuda_block *block;
    qb_cuda_pending pending; /* of the product before, to be added to the residual stream */
    size_t q_width, kv_width, qkv_width, x_stride;
    const qb_taps *taps; /* who looks; NULL = nobody */
} forward;

/* ---- who looks (infer/taps.h) ---- */

static qb_status show(const forward *f, qb_tap tap, qb_role role, void *dev, qb_cuda_dtype type,
                      size_t width, size_t stride)
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

static qb_status show_x(const forward *f, qb_tap tap, qb_role role)
{
    return show(f, tap, role, f->x, QB_CUDA_F32, f->c->d_model, f->x_stride);
}

static qb_status show_normed(const forward *f, qb_role role, const qb_cuda_stage *stage)
{
    return show(f, QB_TAP_NORMED, role, stage->y, stage->type, f->c->d_model, stage->stride);
}

/* ---- timeline (infer/timeline.h) ---- */

static int layer_of(const forward *f)
{
    return f->layer < f->c->n_layers ? (int)f->layer : -1;
}

static void open_part(const forward *f)
{
    qb__timeline_open(f->e->base.timeline, layer_of(f), false);
}

/* A pass over rows of `width` that reads and writes so many bytes an element. */
static void close_pass(const forward *f, qb_phase phase, size_t width, size_t elem_bytes)
{
    if (!qb__timeline_is_open(f->e->base.timeline)) return;
    const qb_kernel_info *row = QB_KERNEL_PICK(qb_cuda_pointwise_kernels);
    const qb_work work = {.phase = phase,
                          .layer = layer_of(f),
                          .role = -1,
                          .kernel = row->name,
                          .bytes = (double)(f->m * width) * (double)elem_bytes};
    qb__timeline_close(f->e->base.timeline, &work, 1);
}

static size_t staged_bytes(const qb_cuda_stage *stage)
{
    return stage->kind == QB_STAGE_FLOAT || stage->fake ? qb_cuda_dtype_bytes(stage->type) : 1;
}

static qb_status run_linear(const forward *f, const qb_cuda_linear *l, qb_role role,
                            const cuda_input *in, const cuda_output *out)
{
    open_part(f);
    QB_TRY(qb__cuda_linear_run(l, in, out, f->b));
    if (!qb__timeline_is_open(f->e->base.timeline)) return QB_OK;
    const qb_work work = qb__cuda_linear_work(l, in, out, layer_of(f), (int)role);
    qb__timeline_close(f->e->base.timeline, &work, 1);
    return QB_OK;
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

/* ---- products ---- */

/* The output in floats, or, where it is to be requantised, in f32 with its largest value. */
static cuda_output float_output(const forward *f, const qb_cuda_linear *l, void *y, size_t width)
{
    cuda_output out = {.y = y, .stride = qb_cuda_stride(width), .type = f->e->type};
    if (l->requant != QB_CUDA_REQUANT_NONE) out.type = QB_CUDA_F32;
    if (l->requant == QB_CUDA_REQUANT_DYNAMIC) out.max_bits = f->b->max_bits;
    return out;
}

static qb_status add_norm(const forward *f, const cuda_norm *w, const qb_cuda_stage *stage,
                          uint32_t *cleared);

/* A pass that only adds what is pending to x; its norm goes where nothing is kept yet. */
static qb_status settle(forward *f)
{
    qb_cuda_stage ignored = {
        .kind = QB_STAGE_FLOAT, .type = QB_CUDA_F32, .y = f->e->hidden, .stride = f->x_stride};
    QB_TRY(add_norm(f, &f->e->norms[2 * f->layer + 1], &ignored, NULL));
    f->pending = (qb_cuda_pending){0};
    return QB_OK;
}

/* run_into_x for those who look: first the output, then the sum. */
static qb_status show_into_x(forward *f, const qb_cuda_linear *l, const cuda_input *in)
{
    bool is_down = l == &f->block->down;
    cuda_output out = {
        .y = f->b->out, .stride = qb_cuda_stride(f->c->d_model), .type = QB_CUDA_F32};
    QB_TRY(run_linear(f, l, is_down ? QB_ROLE_DOWN : QB_ROLE_O, in, &out));
    QB_TRY(show(f, QB_TAP_ADDED, is_down ? QB_ROLE_DOWN : QB_ROLE_O, out.y, out.type, f->c->d_model,
                out.stride));
    f->pending = qb__cuda_pending(l, &out);
    QB_TRY(settle(f));
    return is_down ? show_x(f, QB_TAP_STREAM, QB_ROLE_DOWN) : QB_OK;
}

/* A product whose output is added to x. */
static qb_status run_into_x(forward *f, const qb_cuda_linear *l, const cuda_input *in)
{
    if (f->taps) return show_into_x(f, l, in);
    cuda_output out = float_output(f, l, f->b->out, f->c->d_model);
    f->pending = (qb_cuda_pending){0};
    if (l->requant == QB_CUDA_REQUANT_NONE)
        out = (cuda_output){.type = QB_CUDA_F32, .residual = f->x, .residual_stride = f->x_stride};
    else
        f->pending = qb__cuda_pending(l, &out);
    return run_linear(f, l, l == &f->block->down ? QB_ROLE_DOWN : QB_ROLE_O, in, &out);
}

/* ---- passes ---- */

static qb_status embed(const forward *f)
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
    open_part(f);
    QB_TRY(qb_cuda_embed(&args, b->stream));
    close_pass(f, QB_PHASE_EMBEDDING, f->c->d_model,
               sizeof(float) + qb_cuda_dtype_bytes(f->e->type));
    return QB_OK;
}

static qb_status add_norm(const forward *f, const cuda_norm *w, const qb_cuda_stage *stage,
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
    open_part(f);
    QB_TRY(qb_cuda_add_norm(&args, f->b->stream));
    size_t added = f->pending.y ? 2 * sizeof(float) : 0;
    close_pass(f, QB_PHASE_NORM, f->c->d_model, sizeof(float) + added + staged_bytes(stage));
    return QB_OK;
}

/* Where attention finds q, k and v; k_new: the token's own, for attention to put with the others.
 */
typedef struct qkv_place {
    void *q, *k, *v, *k_new, *v_new;
    size_t q_stride, kv_stride, kv_batch_stride;
} qkv_place;

static char *element(void *base, qb_cuda_dtype type, size_t i)
{
    return (char *)base + i * qb_cuda_dtype_bytes(type);
}

static qkv_place place_in(const forward *f, void *qkv)
{
    qb_cuda_dtype type = f->e->type;
    size_t stride = qb_cuda_stride(f->qkv_width);
    return (qkv_place){.q = qkv,
                       .k = element(qkv, type, f->q_width),
                       .v = element(qkv, type, f->q_width + f->kv_width),
                       .q_stride = stride,
                       .kv_stride = stride,
                       .kv_batch_stride = f->n_tokens * stride};
}

static qb_cuda_attention_args attention_args(const forward *f, const qkv_place *place)
{
    return (qb_cuda_attention_args){.type = f->e->type,
                                    .batch = f->batch,
                                    .n_q = f->n_tokens,
                                    .n_past = f->past,
                                    .n_past_dev = f->past_dev,
                                    .n_heads = f->c->n_heads,
                                    .n_kv_heads = f->c->n_kv_heads,
                                    .head_dim = f->c->head_dim,
                                    .softmax = f->c->softmax,
                                    .gamma = (float)f->c->softmax_gamma,
                                    .zeta = (float)f->c->softmax_zeta,
                                    .sink = f->b->sinks ? f->b->sinks[f->layer] : NULL,
                                    .free_prefix = f->c->free_prefix,
                                    .scale = 1.0f / sqrtf((float)f->c->head_dim),
                                    .q = place->q,
                                    .q_stride = place->q_stride,
                                    .k = place->k,
                                    .v = place->v,
                                    .kv_stride = place->kv_stride,
                                    .kv_batch_stride = place->kv_batch_stride,
                                    .k_new = place->k_new,
                                    .v_new = place->v_new,
                                    .new_stride = place->q_stride,
                                    .past_is_constant = f->past_dev != NULL,
                                    .out = f->att,
                                    .out_stride = qb_cuda_stride(f->q_width),
                                    .workspace = f->b->attention_workspace};
}

/* Whether attention can take k and v of a step as the product left them. */
static bool attention_appends(const forward *f, const qkv_place *place)
{
    if (!f->past_dev || f->b->cosine || f->block->qkv.requant != QB_CUDA_REQUANT_NONE) return false;
    qb_cuda_attention_args args = attention_args(f, place);
    return qb_cuda_attention_takes(&args);
}

/* Keys and values in the cache, where there is one. */
static qkv_place place_of_layer(const forward *f)
{
    const cuda_engine *e = f->e;
    bool requantised = f->block->qkv.requant != QB_CUDA_REQUANT_NONE;
    qkv_place place = place_in(f, requantised ? f->b->rotated : f->b->qkv);
    if (!e->k_cache) return place;
    size_t sequence = e->base.cache_context * e->kv_stride;
    size_t layer = f->layer * e->base.cache_batch * sequence;
    place.k_new = place.k;
    place.v_new = place.v;
    place.k = element(e->k_cache, e->type, layer);
    place.v = element(e->v_cache, e->type, layer);
    place.kv_stride = e->kv_stride;
    place.kv_batch_stride = sequence;
    if (!attention_appends(f, &place)) place.k_new = place.v_new = NULL;
    return place;
}

/* Keys and values that nothing changes go to the cache straight from a prompt's product. */
static qb_cuda_gemm_s8_cache cache_of(const forward *f, const qkv_place *place)
{
    bool changed = f->b->cosine || f->block->qkv.requant != QB_CUDA_REQUANT_NONE;
    if (!f->e->k_cache || changed || f->past || f->past_dev) return (qb_cuda_gemm_s8_cache){0};
    return (qb_cuda_gemm_s8_cache){.y = {place->k, place->v},
                                   .n_tokens = f->n_tokens,
                                   .first = f->q_width,
                                   .width = f->kv_width,
                                   .stride = place->kv_stride,
                                   .batch_stride = place->kv_batch_stride};
}

/* Requantises, rotates, copies to the cache: what need not be done stays where the product left it
 * (the pass skips heads that stay as and where they are). */
static qb_status position(const forward *f, const qb_cuda_pending *qkv, const qkv_place *place)
{
    const cuda_engine *e = f->e;
    qb_cuda_position_args args = {.batch = f->batch,
                                  .n_tokens = f->n_tokens,
                                  .past = f->past,
                                  .past_dev = f->past_dev,
                                  .n_heads = f->c->n_heads,
                                  .n_kv_heads = f->c->n_kv_heads,
                                  .head_dim = f->c->head_dim,
                                  .qkv = *qkv,
                                  .cosine = f->b->cosine,
                                  .sine = f->b->sine,
                                  .type = e->type,
                                  .q_out = place->q,
                                  .q_stride = place->q_stride,
                                  .k_out = place->k,
                                  .v_out = place->v,
                                  .kv_stride = place->kv_stride,
                                  .kv_batch_stride = place->kv_batch_stride};
    open_part(f);
    QB_TRY(qb_cuda_position(&args, f->b->stream));
    bool requantises = f->block->qkv.requant != QB_CUDA_REQUANT_NONE;
    close_pass(f, requantises ? QB_PHASE_REQUANTISE : QB_PHASE_POSITION, f->qkv_width,
               qb_cuda_dtype_bytes(qkv->type) + qb_cuda_dtype_bytes(e->type));
    return QB_OK;
}

/* Zeroes the columns from the width to the stride: what attention and the products write stops at
 * the width, and the next product may read the whole row. Widths are mostly multiples. */
static qb_status clear_padding(const forward *f, void *y, size_t width)
{
    size_t elem_bytes = qb_cuda_dtype_bytes(f->e->type), stride = qb_cuda_stride(width);
    if (width == stride) return QB_OK;
    QB_CUDA_TRY(cudaMemset2DAsync(element(y, f->e->type, width), stride * elem_bytes, 0,
                                  (stride - width) * elem_bytes, f->m, f->b->stream));
    return QB_OK;
}

/* A captured step is for any position: the present one stands for it. */
static void close_attention(const forward *f)
{
    if (!qb__timeline_is_open(f->e->base.timeline)) return;
    size_t past = f->past_dev ? f->e->base.position : f->past;
    double n = (double)f->n_tokens, keys = (double)past + n, batch = (double)f->batch;
    double pairs = n * (double)past + n * (n + 1) / 2; /* causal */
    double elems = 2 * keys * (double)f->kv_width + 2 * n * (double)f->q_width;
    const qb_work work = {.phase = QB_PHASE_ATTENTION,
                          .layer = layer_of(f),
                          .role = -1,
                          .kernel = qb_kernel_last(),
                          .rate = f->e->type == QB_CUDA_BF16 ? QB_RATE_BF16 : QB_RATE_F32,
                          .bytes = batch * elems * (double)qb_cuda_dtype_bytes(f->e->type),
                          .ops = 4 * batch * (double)f->q_width * pairs};
    qb__timeline_close(f->e->base.timeline, &work, 1);
}

static qb_status attend(const forward *f, const qkv_place *place)
{
    const qb_cuda_attention_args args = attention_args(f, place);
    open_part(f);
    QB_TRY(qb_cuda_attention(&args, f->b->stream));
    close_attention(f);
    return QB_OK;
}

/* Behind the last layer's attention only the rows that are asked for go on: in the final hidden
 * states' place, and where q, k and v have been. */
static qb_status keep_last_rows(forward *f)
{
    size_t batch = f->batch, n = f->n_tokens;
    size_t x_bytes = f->x_stride * sizeof(float),
           att_bytes = qb_cuda_stride(f->q_width) * qb_cuda_dtype_bytes(f->e->type);
    QB_CUDA_TRY(cudaMemcpy2DAsync(f->e->hidden, x_bytes, (char *)f->x + (n - 1) * x_bytes,
                                  n * x_bytes, x_bytes, batch, cudaMemcpyDeviceToDevice,
                                  f->b->stream));
    QB_CUDA_TRY(cudaMemcpy2DAsync(f->b->qkv, att_bytes, (char *)f->att + (n - 1) * att_bytes,
                                  n * att_bytes, att_bytes, batch, cudaMemcpyDeviceToDevice,
                                  f->b->stream));
    f->m = batch;
    f->x = f->e->hidden;
    f->att = f->b->qkv;
    return QB_OK;
}

/* Attention's output times the gates of its heads. */
static qb_status gate_heads(const forward *f)
{
    const cuda_backbone *b = f->b;
    if (!b->gates) return QB_OK;
    const cuda_norm *norm = &b->norms[2 * f->layer];
    qb_cuda_head_gates_args args = {.m = f->m,
                                    .width = f->c->d_model,
                                    .n_heads = f->c->n_heads,
                                    .head_dim = f->c->head_dim,
                                    .x = f->x,
                                    .x_stride = f->x_stride,
                                    .norm = f->c->norm,
                                    .gain = norm->gain,
                                    .bias = norm->bias,
                                    .eps = (float)f->c->norm_eps,
                                    .gate_w = b->gates[f->layer].w,
                                    .gate_bias = b->gates[f->layer].bias,
                                    .type = f->e->type,
                                    .y = f->att,
                                    .y_stride = qb_cuda_stride(f->q_width)};
    open_part(f);
    QB_TRY(qb_cuda_head_gates(&args, b->stream));
    close_pass(f, QB_PHASE_ATTENTION, f->q_width, 2 * qb_cuda_dtype_bytes(f->e->type));
    return QB_OK;
}

static qb_status run_act(const forward *f, const qb_cuda_act_args *args)
{
    open_part(f);
    QB_TRY(qb_cuda_act(args, f->b->stream));
    size_t parts = args->apply && args->act == QB_ACT_SWIGLU ? 2 : 1;
    close_pass(f, args->apply ? QB_PHASE_ACTIVATION : QB_PHASE_QUANTISE, args->width,
               parts * qb_cuda_dtype_bytes(args->in.type) + staged_bytes(&args->stage));
    return QB_OK;
}

static qb_status attention_part(forward *f)
{
    const qb_cuda_linear *qkv = &f->block->qkv, *o = &f->block->o;
    qb_cuda_stage stage = qb__cuda_stage(f->e, qkv, f->b->normed);
    QB_TRY(add_norm(f, &f->e->norms[2 * f->layer], &stage, NULL));
    QB_TRY(show_normed(f, QB_ROLE_NORM1, &stage));
    cuda_input in = qb__cuda_staged(qkv, &stage, f->m, f->b);
    cuda_output out = float_output(f, qkv, f->b->qkv, f->qkv_width);
    const qkv_place place = place_of_layer(f);
    out.cache = cache_of(f, &place);
    if (!qb__cuda_linear_caches(qkv, &in, &out)) out.cache = (qb_cuda_gemm_s8_cache){0};
    QB_TRY(run_linear(f, qkv, QB_ROLE_QKV, &in, &out));
    qb_cuda_pending pending = qb__cuda_pending(qkv, &out);
    if (!out.cache.n_tokens && !place.k_new) QB_TRY(position(f, &pending, &place));
    QB_TRY(show(f, QB_TAP_QKV, QB_ROLE_QKV, place.q, f->e->type, f->qkv_width, place.q_stride));
    QB_TRY(attend(f, &place));
    QB_TRY(show(f, QB_TAP_ATTENTION, QB_ROLE_O, f->att, f->e->type, f->q_width,
                qb_cuda_stride(f->q_width)));
    if (f->last_only && f->layer + 1 == f->c->n_layers) QB_TRY(keep_last_rows(f));
    QB_TRY(gate_heads(f));
    qb_cuda_stage next = qb__cuda_stage(f->e, o, f->b->act);
    if (o->input == QB_STAGE_FLOAT) {
        next.y = f->att;
        QB_TRY(clear_padding(f, next.y, f->q_width));
    } else {
        qb_cuda_act_args args = {
            .m = f->m,
            .width = f->q_width,
            .in = {.y = f->att, .type = f->e->type, .stride = qb_cuda_stride(f->q_width)},
            .stage = next};
        QB_TRY(run_act(f, &args));
    }
    in = qb__cuda_staged(o, &next, f->m, f->b);
    return run_into_x(f, o, &in);
}

/* With many rows a pass that follows anyway waits for memory, while each instruction of an epilogue
 * takes time from the products beside it. */
static qb_epilogue_act epilogue_act(const forward *f, const qb_cuda_linear *up,
                                    const qb_cuda_linear *down)
{
    enum { FEW_ROWS = 128 };
    if (up->requant != QB_CUDA_REQUANT_NONE || f->c->act == QB_ACT_SWIGLU) return QB_EPI_NONE;
    if (up->outlier_min > 0) return QB_EPI_NONE; /* a part of the sum comes later */
    if (down->input != QB_STAGE_FLOAT && f->m > FEW_ROWS) return QB_EPI_NONE;
    return f->c->act == QB_ACT_RELU ? QB_EPI_RELU : QB_EPI_GELU;
}

static qb_status mlp_part(forward *f)
{
    const qb_cuda_linear *up = &f->block->up, *down = &f->block->down;
    qb_cuda_stage stage = qb__cuda_stage(f->e, up, f->b->normed);
    cuda_input in = qb__cuda_staged(up, &stage, f->m, f->b);
    cuda_output out = float_output(f, up, f->b->ff, up->n);
    out.act = epilogue_act(f, up, down);
    bool acted = out.act != QB_EPI_NONE;
    if (acted && up->kind == QB_CUDA_LINEAR_S8 && down->input == QB_STAGE_TOKEN)
        out.row_max_bits = f->b->row_max_bits;
    QB_TRY(add_norm(f, &f->e->norms[2 * f->layer + 1], &stage, out.row_max_bits));
    QB_TRY(show_normed(f, QB_ROLE_NORM2, &stage));
    QB_TRY(run_linear(f, up, QB_ROLE_UP, &in, &out));
    qb_cuda_stage next = qb__cuda_stage(f->e, down, f->b->act);
    if (acted && down->input == QB_STAGE_FLOAT) {
        next.y = f->b->ff;
        QB_TRY(clear_padding(f, next.y, f->c->d_ff));
    } else {
        qb_cuda_act_args args = {.m = f->m,
                                 .width = f->c->d_ff,
                                 .apply = !acted,
                                 .act = f->c->act,
                                 .in = qb__cuda_pending(up, &out),
                                 .row_max_bits = out.row_max_bits,
                                 .stage = next};
        QB_TRY(run_act(f, &args));
    }
    in = qb__cuda_staged(down, &next, f->m, f->b);
    return run_into_x(f, down, &in);
}

/* A step's logits, which go to slot 0; not where they need scales that span the call. */
static bool has_step_head(const forward *f)
{
    return f->past_dev && !f->e->own_head.n;
}

/* As after attention, in a last block that has none; what was to be added to x is added before. */
static qb_status keep_last_rows_here(forward *f)
{
    if (!f->last_only || f->layer + 1 < f->c->n_layers) return QB_OK;
    QB_TRY(settle(f));
    return keep_last_rows(f);
}

static qb_status run_layers(forward *f)
{
    f->layer = f->c->n_layers; /* none yet */
    QB_TRY(embed(f));
    f->layer = 0;
    QB_TRY(show_x(f, QB_TAP_EMBEDDING, QB_ROLE_TOK_EMBD));
    for (f->layer = 0; f->layer < f->c->n_layers; f->layer++) {
        f->block = &f->e->blocks[f->layer];
        bool has_attention = qb_config_has_attention(f->c, f->layer);
        QB_TRY((has_attention ? attention_part : keep_last_rows_here)(f));
        QB_TRY(mlp_part(f));
    }
    qb_cuda_stage last = {
        .kind = QB_STAGE_FLOAT, .type = QB_CUDA_F32, .y = f->e->hidden, .stride = f->x_stride};
    QB_TRY(add_norm(f, &f->e->norms[2 * f->c->n_layers], &last, NULL));
    QB_TRY(show_normed(f, QB_ROLE_NORM_F, &last));
    return has_step_head(f) ? qb__cuda_head(&f->e->base, 0, 0, 1, f->m) : QB_OK;
}

static forward make_forward(cuda_engine *e, size_t batch, size_t n_tokens, size_t past)
{
    const qb_config *c = e->base.backbone->config;
    forward f = {.e = e,
                 .b = qb__cuda_backbone(e->base.backbone),
                 .c = c,
                 .batch = batch,
                 .n_tokens = n_tokens,
                 .past = past,
                 .m = batch * n_tokens,
                 .x = qb__cuda_backbone(e->base.backbone)->x,
                 .att = qb__cuda_backbone(e->base.backbone)->att,
                 .q_width = c->n_heads * c->head_dim,
                 .kv_width = c->n_kv_heads * c->head_dim,
                 .x_stride = qb_cuda_stride(c->d_model)};
    f.qkv_width = f.q_width + 2 * f.kv_width;
    return f;
}

/* Codes and values in a cache are not shown. */
static qb_status run_observed(forward *f)
{
    const qb_scheme *scheme = &f->e->base.scheme;
    if (scheme->input.bits || scheme->output.bits || f->e->k_cache)
        return QB_FAIL(QB_ERR_UNSUPPORTED,
                       "--device cuda: activations are shown of full precision without a cache, "
                       "found scheme %s",
                       scheme->name);
    return run_layers(f);
}

/* ---- graphs ---- */

static qb_status capture(forward *f, cuda_graph *g)
{
    cudaGraph_t graph = NULL;
    cudaGraphExec_t exec = NULL;
    QB_CUDA_TRY(cudaStreamBeginCapture(f->b->stream, cudaStreamCaptureModeThreadLocal));
    qb_status status = run_layers(f);
    qb_status end = qb_cuda_check((int)cudaStreamEndCapture(f->b->stream, &graph), "capture");
    if (status == QB_OK) status = end;
    if (status == QB_OK)
        status = qb_cuda_check((int)cudaGraphInstantiate(&exec, graph, 0), "graph");
    if (graph) cudaGraphDestroy(graph);
    g->exec = exec;
    return status;
}

static bool is_of(const cuda_graph *g, const forward *f)
{
    return g->batch == f->batch && g->n_tokens == f->n_tokens && g->layout == f->b->layout &&
           g->last_only == f->last_only && g->version == qb_timeline_version(f->e->base.timeline);
}

/* Kernels choose their algorithms at their first run, which a capture cannot hold: so the first
 * call of a shape runs as it is and the second is captured. With a timeline its stamps are kernels
 * of the graph. */
static qb_status run_captured(forward *f, cuda_graph *g)
{
    qb_timeline *timeline = f->e->base.timeline;
    if (timeline) g = &f->e->timed;
    if (!is_of(g, f)) {
        if (g->exec) cudaGraphExecDestroy(g->exec);
        *g = (cuda_graph){.batch = f->batch,
                          .n_tokens = f->n_tokens,
                          .layout = f->b->layout,
                          .last_only = f->last_only,
                          .version = qb_timeline_version(timeline)};
        qb__timeline_restart(timeline, 0, 0);
        return run_layers(f);
    }
    if (!g->exec) {
        qb__timeline_restart(timeline, 0, 0);
        QB_TRY(capture(f, g));
        if (timeline) qb__timeline_count(timeline, &g->n_spans, &g->n_stamps);
    }
    qb__timeline_restart(timeline, g->n_spans, g->n_stamps);
    QB_CUDA_TRY(cudaGraphLaunch(g->exec, f->b->stream));
    return QB_OK;
}

/* ---- one token a sequence ---- */

/* Queues the copy of position and tokens; the piece of host memory is not written again before it
 * was read. */
static qb_status send_step(cuda_engine *e, const int32_t *tokens, size_t batch, size_t past)
{
    cuda_backbone *b = qb__cuda_backbone(e->base.backbone);
    size_t piece = e->base.cache_batch + 1;
    if (e->n_steps % RING == 0) QB_TRY(qb_cuda_sync(b->stream));
    int32_t *host = e->step_host + e->n_steps++ % RING * piece;
    host[0] = (int32_t)past;
    for (size_t i = 0; i < batch; i++) host[1 + i] = tokens[i];
    return qb_cuda_upload(e->step, host, (1 + batch) * sizeof *host, b->stream);
}

/* A step by a row of decode.h, whose kernels are the sections: `captured` once they were told. */
typedef struct row_watch {
    cuda_engine *e;
    bool captured;
} row_watch;

static void row_begins(void *context, int layer)
{
    row_watch *w = context;
    if (!w->captured) qb__timeline_restart(w->e->base.timeline, 0, 0);
    w->captured = true;
    qb__timeline_open(w->e->base.timeline, layer, false);
}

static void row_ended(void *context, int layer, qb_cuda_decode_part part)
{
    const row_watch *w = context;
    qb_timeline *timeline = w->e->base.timeline;
    if (!qb__timeline_is_open(timeline)) return;
    const qb_work work = qb__cuda_part_work(w->e, layer, part);
    qb__timeline_close(timeline, &work, 1);
}

static qb_status run_watched(cuda_engine *e)
{
    cuda_backbone *b = qb__cuda_backbone(e->base.backbone);
    row_watch w = {.e = e};
    const qb_cuda_decode_watch watch = {.context = &w,
                                        .version = qb_timeline_version(e->base.timeline),
                                        .begins = row_begins,
                                        .ended = row_ended};
    QB_TRY(e->decode_row->watched_step(e->decode, e->step + 1, e->step, e->hidden, b->slots[0],
                                       &watch, b->stream));
    if (w.captured) qb__timeline_count(e->base.timeline, &e->row_spans, &e->row_stamps);
    qb__timeline_restart(e->base.timeline, e->row_spans, e->row_stamps);
    return QB_OK;
}

static qb_status run_row(cuda_engine *e)
{
    cuda_backbone *b = qb__cuda_backbone(e->base.backbone);
    QB_TRY(e->base.timeline ? run_watched(e)
                            : e->decode_row->step(e->decode, e->step + 1, e->step, e->hidden,
                                                  b->slots[0], b->stream));
    b->slot_owner = &e->base;
    return QB_OK;
}

static qb_status decode(cuda_engine *e, const int32_t *tokens, size_t batch, size_t past)
{
    cuda_backbone *b = qb__cuda_backbone(e->base.backbone);
    QB_TRY(send_step(e, tokens, batch, past));
    if (e->decode && batch == 1) return run_row(e);
    forward f = make_forward(e, batch, 1, e->base.cache_context - 1);
    f.tokens = e->step + 1;
    f.past_dev = e->step;
    QB_TRY(run_captured(&f, &e->single_step));
    if (has_step_head(&f)) b->slot_owner = &e->base;
    return QB_OK;
}

qb_status qb__cuda_forward(qb_engine *engine, const int32_t *tokens, size_t batch, size_t n_tokens,
                           size_t past, bool last_only)
{
    cuda_engine *e = qb__cuda_engine(engine);
    cuda_backbone *b = qb__cuda_backbone(engine->backbone);
    QB_TRY(qb_cuda_use(b->base.device_idx));
    e->head_ready = false;
    b->slot_owner = NULL;
    if (past) return decode(e, tokens, batch, past);
    forward f = make_forward(e, batch, n_tokens, past);
    f.tokens = b->tokens;
    f.last_only = last_only && n_tokens > 1;
    QB_TRY(qb_cuda_upload(b->tokens, tokens, f.m * sizeof *tokens, b->stream));
    f.taps = last_only ? NULL : engine->taps;
    if (f.taps) return run_observed(&f);
    return run_captured(&f, &e->prefill);
}
