/* infer/cuda/cuda_attention.c - attention of a block: where its queries, keys and values lie, the
 * passes that bring them there, and what becomes of its output. */
#include "infer/cuda/cuda_forward_internal.h"

#include "kernels/running.h"

#include <cuda_runtime_api.h>
#include <math.h>

/* ---- places ---- */

/* Where attention finds q, k and v; k_new: the token's own, for attention to put with the others.
 */
typedef struct qkv_place {
    void *q, *k, *v, *k_new, *v_new;
    size_t q_stride, kv_stride, kv_batch_stride;
} qkv_place;

static qkv_place place_in(const cuda_forward *f, void *qkv)
{
    qb_cuda_dtype type = f->e->type;
    size_t stride = qb_cuda_stride(f->qkv_width);
    return (qkv_place){.q = qkv,
                       .k = qb__cuda_element(qkv, type, f->q_width),
                       .v = qb__cuda_element(qkv, type, f->q_width + f->kv_width),
                       .q_stride = stride,
                       .kv_stride = stride,
                       .kv_batch_stride = f->n_tokens * stride};
}

static qb_cuda_attention_args attention_args(const cuda_forward *f, const qkv_place *place)
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
static bool attention_appends(const cuda_forward *f, const qkv_place *place)
{
    if (!f->past_dev || f->b->cosine || f->block->qkv.requant != QB_CUDA_REQUANT_NONE) return false;
    qb_cuda_attention_args args = attention_args(f, place);
    return qb_cuda_attention_takes(&args);
}

/* Keys and values in the cache, where there is one. */
static qkv_place place_of_layer(const cuda_forward *f)
{
    const cuda_engine *e = f->e;
    bool requantised = f->block->qkv.requant != QB_CUDA_REQUANT_NONE;
    qkv_place place = place_in(f, requantised ? f->b->rotated : f->b->qkv);
    if (!e->k_cache) return place;
    size_t sequence = e->base.cache_context * e->kv_stride;
    size_t layer = f->layer * e->base.cache_batch * sequence;
    place.k_new = place.k;
    place.v_new = place.v;
    place.k = qb__cuda_element(e->k_cache, e->type, layer);
    place.v = qb__cuda_element(e->v_cache, e->type, layer);
    place.kv_stride = e->kv_stride;
    place.kv_batch_stride = sequence;
    if (!attention_appends(f, &place)) place.k_new = place.v_new = NULL;
    return place;
}

/* Keys and values that nothing changes go to the cache straight from a prompt's product. */
static qb_cuda_gemm_s8_cache cache_of(const cuda_forward *f, const qkv_place *place)
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
static qb_status position(const cuda_forward *f, const qb_cuda_pending *qkv, const qkv_place *place)
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
    qb__cuda_open_part(f);
    QB_TRY(qb_cuda_position(&args, f->b->stream));
    bool requantises = f->block->qkv.requant != QB_CUDA_REQUANT_NONE;
    qb__cuda_close_pass(f, requantises ? QB_PHASE_REQUANTISE : QB_PHASE_POSITION, f->qkv_width,
                        qb_cuda_dtype_bytes(qkv->type) + qb_cuda_dtype_bytes(e->type));
    return QB_OK;
}

/* ---- passes ---- */

/* A captured step is for any position: the present one stands for it. */
static void close_attention(const cuda_forward *f)
{
    if (!qb__timeline_is_open(f->e->base.timeline)) return;
    size_t past = f->past_dev ? f->e->base.position : f->past;
    double n = (double)f->n_tokens, keys = (double)past + n, batch = (double)f->batch;
    double pairs = n * (double)past + n * (n + 1) / 2; /* causal */
    double elems = 2 * keys * (double)f->kv_width + 2 * n * (double)f->q_width;
    const qb_work work = {.phase = QB_PHASE_ATTENTION,
                          .layer = qb__cuda_layer_of(f),
                          .role = -1,
                          .kernel = qb_kernel_last(),
                          .rate = f->e->type == QB_CUDA_BF16 ? QB_RATE_BF16 : QB_RATE_F32,
                          .bytes = batch * elems * (double)qb_cuda_dtype_bytes(f->e->type),
                          .ops = 4 * batch * (double)f->q_width * pairs};
    qb__timeline_close(f->e->base.timeline, &work, 1);
}

static qb_status attend(const cuda_forward *f, const qkv_place *place)
{
    const qb_cuda_attention_args args = attention_args(f, place);
    qb__cuda_open_part(f);
    QB_TRY(qb_cuda_attention(&args, f->b->stream));
    close_attention(f);
    return QB_OK;
}

qb_status qb__cuda_keep_last_rows(cuda_forward *f)
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
static qb_status gate_heads(const cuda_forward *f)
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
    qb__cuda_open_part(f);
    QB_TRY(qb_cuda_head_gates(&args, b->stream));
    qb__cuda_close_pass(f, QB_PHASE_ATTENTION, f->q_width, 2 * qb_cuda_dtype_bytes(f->e->type));
    return QB_OK;
}

qb_status qb__cuda_attention_part(cuda_forward *f)
{
    const qb_cuda_linear *qkv = &f->block->qkv, *o = &f->block->o;
    qb_cuda_stage stage = qb__cuda_stage(f->e, qkv, f->b->normed);
    QB_TRY(qb__cuda_add_norm(f, &f->e->norms[2 * f->layer], &stage, NULL));
    QB_TRY(qb__cuda_show_normed(f, QB_ROLE_NORM1, &stage));
    cuda_input in = qb__cuda_staged(qkv, &stage, f->m, f->b);
    cuda_output out = qb__cuda_float_output(f, qkv, f->b->qkv, f->qkv_width);
    const qkv_place place = place_of_layer(f);
    out.cache = cache_of(f, &place);
    if (!qb__cuda_linear_caches(qkv, &in, &out)) out.cache = (qb_cuda_gemm_s8_cache){0};
    QB_TRY(qb__cuda_run_linear(f, qkv, QB_ROLE_QKV, &in, &out));
    qb_cuda_pending pending = qb__cuda_pending(qkv, &out);
    if (!out.cache.n_tokens && !place.k_new) QB_TRY(position(f, &pending, &place));
    QB_TRY(qb__cuda_show_rows(f, QB_TAP_QKV, QB_ROLE_QKV, place.q, f->e->type, f->qkv_width,
                              place.q_stride));
    QB_TRY(attend(f, &place));
    QB_TRY(qb__cuda_show_rows(f, QB_TAP_ATTENTION, QB_ROLE_O, f->att, f->e->type, f->q_width,
                              qb_cuda_stride(f->q_width)));
    if (f->last_only && f->layer + 1 == f->c->n_layers) QB_TRY(qb__cuda_keep_last_rows(f));
    QB_TRY(gate_heads(f));
    qb_cuda_stage next = qb__cuda_stage(f->e, o, f->b->act);
    if (o->input == QB_STAGE_FLOAT) {
        next.y = f->att;
        QB_TRY(qb__cuda_clear_padding(f, next.y, f->q_width));
    } else {
        qb_cuda_act_args args = {
            .m = f->m,
            .width = f->q_width,
            .in = {.y = f->att, .type = f->e->type, .stride = qb_cuda_stride(f->q_width)},
            .stage = next};
        QB_TRY(qb__cuda_run_act(f, &args));
    }
    in = qb__cuda_staged(o, &next, f->m, f->b);
    return qb__cuda_run_into_x(f, o, QB_ROLE_O, &in);
}
