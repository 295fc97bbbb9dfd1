/* train/cuda/cuda_train.c - the GPU's row of train/ops.h: the device, its buffers and tokens, and
 * the passes that are no products. */
#include "train/cuda/cuda_train.h"

#include "core/dtype.h"
#include "kernels/cuda/nccl.h"

#ifdef QB_HAVE_CUBLASLT
#include <cuda_runtime_api.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- the device ---- */

qb_status qb__cuda_train_alloc(qb_train_device *d, size_t n_elems, size_t elem_bytes,
                               const char *what, void **out_dev)
{
    return qb_blocks_add(&d->blocks, qb_cuda_alloc_zero, n_elems, elem_bytes, what, out_dev);
}

static void destroy(qb_train_device *d)
{
    if (!d) return;
    qb_cuda_use(d->index);
    if (d->stream) {
        qb_cuda_sync(d->stream);
        qb_cuda_ranks_destroy(d->ranks);
        qb_cublaslt_forget(d->stream);
    }
    qb__cuda_train_graphs_destroy(d);
    for (size_t i = 0; i < QB__CUDA_SLOTS; i++) {
        qb__cuda_train_slot_destroy(&d->token_slots[i]);
        qb__cuda_train_slot_destroy(&d->rate_slots[i]);
    }
    for (size_t i = 0; i < QB_TRAIN_TOTALS; i++) qb__cuda_train_slot_destroy(&d->totals_slots[i]);
    qb_blocks_free(&d->blocks, qb_cuda_free);
    qb__cuda_train_update_destroy(d);
    qb__cuda_train_share_destroy(d);
    qb_cuda_stream_destroy(d->stream);
    qb_free(d->counts);
    qb_free(d);
}

static int device_index(const char *device) /* "cuda", "cuda:1" */
{
    const char *colon = strchr(device, ':');
    return colon ? atoi(colon + 1) : 0;
}

static qb_cuda_attention_train_args attention_args(const qb_config *c,
                                                   const qb_trainer_options *options, size_t batch)
{
    return (qb_cuda_attention_train_args){.type = options->full_f32 ? QB_CUDA_F32 : QB_CUDA_BF16,
                                          .batch = batch,
                                          .n_tokens = options->context,
                                          .n_heads = c->n_heads,
                                          .n_kv_heads = c->n_kv_heads,
                                          .head_dim = c->head_dim,
                                          .softmax = c->softmax,
                                          .gamma = (float)c->softmax_gamma,
                                          .zeta = (float)c->softmax_zeta,
                                          .free_prefix = c->free_prefix,
                                          .scale = 1.0f / sqrtf((float)c->head_dim),
                                          .qkv_stride = qb_cuda_stride(qb_train_qkv_width(c)),
                                          .d_qkv_stride = qb_cuda_stride(qb_train_qkv_width(c)),
                                          .out_stride = qb_cuda_stride(c->n_heads * c->head_dim),
                                          .d_out_stride = qb_cuda_stride(c->n_heads * c->head_dim)};
}

static const char *refuse(const qb_config *config, const qb_trainer_options *options)
{
    const char *why = qb_cuda_refusal(device_index(options->device));
    if (!why) why = qb_cublaslt_refusal();
    if (!why && qb_comm_size(options->comm) > 1) why = qb_nccl_refusal();
    if (!why && config->d_model > QB_CUDA_TRAIN_MAX_NORM) why = "d_model is over 2048";
    return why;
}

static size_t array_elems(const qb_train_device *d, qb_train_array array)
{
    return array < QB_ARRAY_STATE0 ? d->params->n_elems : qb__cuda_train_own_elems(d);
}

static qb_status create_arrays(qb_train_device *d)
{
    static const char *const names[QB_ARRAY_COUNT] = {"weights", "gradients", "moments", "moments"};
    const size_t n_arrays = QB_ARRAY_STATE0 + d->options->optimizer->n_states;
    for (size_t i = 0; i < n_arrays; i++)
        QB_TRY(QB__CUDA_TRAIN_NEW(d, &d->arrays[i], array_elems(d, (qb_train_array)i), names[i]));
    if (d->type == QB_CUDA_F32) return QB_OK;
    return QB__CUDA_TRAIN_NEW(d, &d->copy, d->params->n_elems, "bf16 weights");
}

/* A slot holds what load_tokens sends: tokens, and their rows grouped by token. */
static qb_status create_tokens(qb_train_device *d)
{
    const size_t n_tokens = d->options->micro_batch * (d->options->context + 1);
    d->slot_elems = n_tokens + 3 * d->max_rows + 2;
    QB_TRY(QB__CUDA_TRAIN_NEW(d, &d->tokens, d->slot_elems, "tokens"));
    d->n_groups = d->tokens + n_tokens;
    d->order = d->n_groups + 1;
    d->start = d->order + d->max_rows;
    d->group_token = d->start + d->max_rows + 1;
    for (size_t i = 0; i < QB__CUDA_SLOTS; i++)
        QB_TRY(qb__cuda_train_slot_create(&d->token_slots[i], d->slot_elems * sizeof *d->tokens));
    return QB_NEW(&d->counts, d->c->vocab, "counts of tokens");
}

static qb_status create_positions(qb_train_device *d)
{
    const size_t n = d->options->context * (d->c->head_dim / 2);
    float *host;
    if (d->c->pos != QB_POS_ROPE) return QB_OK;
    QB_TRY(QB__CUDA_TRAIN_NEW(d, &d->cosine, n, "angles"));
    QB_TRY(QB__CUDA_TRAIN_NEW(d, &d->sine, n, "angles"));
    QB_TRY(QB_NEW(&host, 2 * n, "angles"));
    qb_rope_table(&d->c->rope, d->c->head_dim, d->options->context, host, host + n);
    qb_status status = qb_cuda_upload(d->cosine, host, n * sizeof *host, d->stream);
    if (status == QB_OK) status = qb_cuda_upload(d->sine, host + n, n * sizeof *host, d->stream);
    if (status == QB_OK) status = qb_cuda_sync(d->stream);
    qb_free(host);
    return status;
}

static size_t widest(const qb_config *c)
{
    size_t most = qb_train_qkv_width(c);
    if (qb_train_pre_width(c) > most) most = qb_train_pre_width(c);
    return c->d_model > most ? c->d_model : most;
}

static qb_status create_scratch(qb_train_device *d)
{
    qb_cuda_attention_train_args attention =
        attention_args(d->c, d->options, d->options->micro_batch);
    size_t n_partials = qb_cuda_train_partials(widest(d->c));
    const size_t of_embeddings = qb_cuda_train_embed_partials(d->max_rows, d->c->d_model);
    if (of_embeddings > n_partials) n_partials = of_embeddings;
    QB_TRY(QB__CUDA_TRAIN_NEW(d, &d->partials, n_partials, "sums"));
    QB_TRY(QB__CUDA_TRAIN_NEW(d, &d->losses, d->max_rows, "losses"));
    QB_TRY(QB__CUDA_TRAIN_NEW(d, &d->totals, 1, "totals"));
    for (size_t i = 0; i < QB_TRAIN_TOTALS; i++)
        QB_TRY(qb__cuda_train_slot_create(&d->totals_slots[i], sizeof *d->totals));
    QB_TRY(qb__cuda_train_alloc(d, qb_cuda_attention_train_workspace(&attention), 1, "attention",
                                &d->attention_workspace));
    if (d->c->act != QB_ACT_SWIGLU) return QB_OK;
    return qb__cuda_train_alloc(d, d->max_rows * qb_cuda_stride(d->c->d_ff),
                                qb_cuda_dtype_bytes(d->type), "activations", &d->d_act);
}

static qb_status create_all(qb_train_device *d)
{
    QB_TRY(qb_cuda_use(d->index));
    QB_TRY(qb_cuda_stream_create(&d->stream));
    QB_TRY(create_arrays(d));
    QB_TRY(create_tokens(d));
    QB_TRY(create_positions(d));
    QB_TRY(create_scratch(d));
    QB_TRY(qb__cuda_train_products_create(d));
    QB_TRY(qb__cuda_train_update_create(d));
    return qb__cuda_train_share_create(d);
}

static qb_status create(const qb_params *params, const qb_trainer_options *options,
                        const qb_train_share *share, qb_train_device **out)
{
    qb_train_device *d;
    QB_TRY(QB_NEW_ZERO(&d, 1, "training device"));
    d->params = params;
    d->c = &params->config;
    d->options = options;
    d->share = share;
    d->index = device_index(options->device);
    d->type = options->full_f32 ? QB_CUDA_F32 : QB_CUDA_BF16;
    d->max_rows = options->micro_batch * options->context;
    qb_status status = create_all(d);
    if (status == QB_OK)
        *out = d;
    else
        destroy(d);
    return status;
}

static size_t memory_bytes(const qb_train_device *d)
{
    return d->blocks.bytes + qb_cuda_ranks_memory_bytes(d->ranks);
}

static qb_status alloc(qb_train_device *d, qb_train_buffer kind, size_t width, void **out)
{
    if (kind == QB_BUFFER_F32)
        return qb__cuda_train_alloc(d, d->max_rows * width, sizeof(float), "statistics", out);
    const size_t rows = d->max_rows + QB_CUDA_ROW_PAD;
    return qb__cuda_train_alloc(d, rows * qb_cuda_stride(width), qb_cuda_dtype_bytes(d->type),
                                "activations", out);
}

static qb_status copy_in(qb_train_device *d, qb_train_array array, const float *from)
{
    const size_t n = array_elems(d, array);
    QB_TRY(qb_cuda_use(d->index));
    QB_TRY(qb_cuda_upload(d->arrays[array], from, n * sizeof *from, d->stream));
    if (array == QB_ARRAY_WEIGHTS) d->lacks_weights = false;
    if (array == QB_ARRAY_WEIGHTS && d->copy)
        QB_TRY(qb_cuda_train_round(d->arrays[array], d->copy, n, d->stream));
    return qb_cuda_sync(d->stream);
}

static qb_status copy_out(qb_train_device *d, qb_train_array array, float *to)
{
    QB_TRY(qb_cuda_use(d->index));
    QB_TRY(qb_cuda_download(to, d->arrays[array], array_elems(d, array) * sizeof *to, d->stream));
    return qb_cuda_sync(d->stream);
}

/* The rows without what pads them, in the buffer's own type. */
static qb_status download_rows(qb_train_device *d, size_t elem_bytes, size_t width, size_t stride,
                               const void *buffer, void *to)
{
    QB_TRY(qb_cuda_use(d->index));
    QB_CUDA_TRY(cudaMemcpy2DAsync(to, width * elem_bytes, buffer, stride * elem_bytes,
                                  width * elem_bytes, d->m, cudaMemcpyDeviceToHost, d->stream));
    return qb_cuda_sync(d->stream);
}

static qb_status read_rows(qb_train_device *d, qb_train_buffer kind, size_t width,
                           const void *buffer, float *to)
{
    const size_t stride = kind == QB_BUFFER_F32 ? width : qb_cuda_stride(width);
    uint16_t *halves;
    if (kind == QB_BUFFER_F32 || d->type == QB_CUDA_F32)
        return download_rows(d, sizeof *to, width, stride, buffer, to);
    QB_TRY(QB_NEW(&halves, d->m * width, "activations"));
    qb_status status = download_rows(d, sizeof *halves, width, stride, buffer, halves);
    for (size_t i = 0; status == QB_OK && i < d->m * width; i++)
        to[i] = qb_f32_from_bf16(halves[i]);
    qb_free(halves);
    return status;
}

/* ---- a pass ---- */

static qb_status begin(qb_train_device *d, bool gradients)
{
    QB_TRY(qb_cuda_use(d->index));
    QB_TRY(qb_cuda_zero(d->totals, QB_CUDA_TRAIN_TOTALS_CLEARED, d->stream));
    if (gradients)
        QB_TRY(qb_cuda_zero(d->arrays[QB_ARRAY_GRADIENTS], d->params->n_elems * sizeof(float),
                            d->stream));
    return qb__cuda_train_await_weights(d);
}

/* A pass is sent at once what it needs, which is what stands before `end` in a slot. */
static qb_status load_tokens(qb_train_device *d, const int32_t *tokens, size_t batch, bool learn)
{
    cuda_slot *slot = &d->token_slots[d->next_tokens++ % QB__CUDA_SLOTS];
    const size_t n = batch * (d->options->context + 1);
    int32_t *host = slot->host;
    QB_TRY(qb_cuda_use(d->index));
    QB_TRY(qb_train_check_tokens(tokens, batch, d->options->context + 1, d->c->vocab));
    QB_TRY(qb__cuda_train_slot_open(slot));
    memcpy(host, tokens, n * sizeof *tokens);
    d->batch = batch;
    d->m = batch * d->options->context;
    if (learn)
        host[d->n_groups - d->tokens] = (int32_t)qb_cuda_train_group_tokens(
            host, batch, d->options->context, d->c->vocab, d->counts, host + (d->order - d->tokens),
            host + (d->start - d->tokens), host + (d->group_token - d->tokens));
    QB_TRY(qb_cuda_upload(d->tokens, host, (learn ? d->slot_elems : n) * sizeof *host, d->stream));
    return qb__cuda_train_slot_close(d, slot);
}

static qb_status send_totals(qb_train_device *d, size_t place)
{
    cuda_slot *slot = &d->totals_slots[place];
    QB_TRY(qb_cuda_download(slot->host, d->totals, sizeof *d->totals, d->stream));
    return qb__cuda_train_slot_close(d, slot);
}

static qb_status receive_totals(qb_train_device *d, size_t place, qb_train_totals *out)
{
    const qb_cuda_train_totals *totals = d->totals_slots[place].host;
    QB_TRY(qb__cuda_train_slot_open(&d->totals_slots[place]));
    QB_TRY(qb_comm_check_alive(d->share->comm)); /* what was aborted left no sums */
    *out = (qb_train_totals){.loss_sum = totals->loss_sum, .grad_norm = totals->grad_norm};
    return QB_OK;
}

static qb_status has_nonfinite(qb_train_device *d, qb_train_array array, size_t offset,
                               size_t n_elems, bool *out)
{
    qb_cuda_train_totals totals;
    QB_TRY(qb_cuda_train_count_nonfinite(d->arrays[array] + offset, n_elems, d->totals, d->stream));
    QB_TRY(qb_cuda_download(&totals, d->totals, sizeof totals, d->stream));
    QB_TRY(qb_cuda_sync(d->stream));
    *out = totals.n_nonfinite != 0;
    return QB_OK;
}

/* ---- embeddings, norms, positions, attention ---- */

static size_t offset_of(const qb_train_device *d, qb_role role)
{
    const qb_param *p = qb_params_find(d->params, role, 0);
    return p ? p->offset : QB_NO_PARAM;
}

static qb_cuda_train_embed embed_args(const qb_train_device *d, void *x)
{
    const size_t tok = offset_of(d, QB_ROLE_TOK_EMBD), pos = offset_of(d, QB_ROLE_POS_EMBD);
    return (qb_cuda_train_embed){.batch = d->batch,
                                 .n_tokens = d->options->context,
                                 .width = d->c->d_model,
                                 .type = d->type,
                                 .tokens = d->tokens,
                                 .tok_embd = qb__cuda_train_weights(d, tok),
                                 .pos_embd = qb__cuda_train_weights(d, pos),
                                 .x = x,
                                 .x_stride = qb_cuda_stride(d->c->d_model),
                                 .d_tok_embd = qb__cuda_train_array(d, QB_ARRAY_GRADIENTS, tok),
                                 .d_pos_embd = qb__cuda_train_array(d, QB_ARRAY_GRADIENTS, pos),
                                 .order = d->order,
                                 .start = d->start,
                                 .group_token = d->group_token,
                                 .n_groups = d->n_groups,
                                 .max_groups = qb_cuda_train_most_groups(d->m, d->c->vocab),
                                 .partials = d->partials};
}

static qb_status embed_forward(qb_train_device *d, void *x)
{
    qb_cuda_train_embed args = embed_args(d, x);
    return qb_cuda_train_embed_forward(&args, d->stream);
}

static qb_status embed_backward(qb_train_device *d, const void *dx)
{
    qb_cuda_train_embed args = embed_args(d, (void *)dx); /* read */
    return qb_cuda_train_embed_backward(&args, d->stream);
}

static qb_cuda_train_norm norm_args(const qb_train_device *d, const qb_train_norm *norm,
                                    const void *x)
{
    return (qb_cuda_train_norm){.m = d->m,
                                .width = d->c->d_model,
                                .type = d->type,
                                .norm = d->c->norm,
                                .eps = (float)d->c->norm_eps,
                                .gain = qb__cuda_train_array(d, QB_ARRAY_WEIGHTS, norm->gain),
                                .bias = qb__cuda_train_array(d, QB_ARRAY_WEIGHTS, norm->bias),
                                .stride = qb_cuda_stride(d->c->d_model),
                                .x = x,
                                .d_gain = qb__cuda_train_array(d, QB_ARRAY_GRADIENTS, norm->gain),
                                .d_bias = qb__cuda_train_array(d, QB_ARRAY_GRADIENTS, norm->bias),
                                .partials = d->partials};
}

static qb_status norm_forward(qb_train_device *d, const qb_train_norm *norm, const void *x,
                              const void *add, void *sum, void *stats, void *y)
{
    qb_cuda_train_norm args = norm_args(d, norm, x);
    args.add = add, args.sum = sum, args.stats = stats, args.y = y;
    return qb_cuda_train_norm_forward(&args, d->stream);
}

static qb_status norm_backward(qb_train_device *d, const qb_train_norm *norm, const void *x,
                               const void *stats, const void *dy, bool accumulate, void *dx)
{
    qb_cuda_train_norm args = norm_args(d, norm, x);
    args.stats = (float *)stats; /* read */
    args.dy = dy, args.accumulate = accumulate, args.dx = dx;
    return qb_cuda_train_norm_backward(&args, d->stream);
}

static qb_status rope(qb_train_device *d, void *qkv, bool inverse)
{
    return qb_cuda_train_rope(
        qkv, d->type, d->m, d->options->context, qb_cuda_stride(qb_train_qkv_width(d->c)),
        d->c->n_heads + d->c->n_kv_heads, d->c->head_dim, d->cosine, d->sine, inverse, d->stream);
}

static void *column(const qb_train_device *d, const void *x, size_t at)
{
    return (char *)x + at * qb_cuda_dtype_bytes(d->type);
}

static qb_cuda_attention_train_args attention_of(const qb_train_device *d,
                                                 const qb_train_attention *a)
{
    const size_t k = d->c->n_heads * d->c->head_dim, v = k + d->c->n_kv_heads * d->c->head_dim;
    qb_cuda_attention_train_args args = attention_args(d->c, d->options, d->batch);
    args.q = a->qkv, args.k = column(d, a->qkv, k), args.v = column(d, a->qkv, v);
    args.out = a->out, args.lse = a->lse;
    args.sink = qb__cuda_train_array(d, QB_ARRAY_WEIGHTS, a->sink);
    return args;
}

static qb_status attention_forward(qb_train_device *d, const qb_train_attention *attention)
{
    qb_cuda_attention_train_args args = attention_of(d, attention);
    return qb_cuda_attention_train_forward(&args, d->stream);
}

static qb_status attention_backward(qb_train_device *d, const qb_train_attention *attention,
                                    const void *dout, void *dqkv)
{
    const size_t k = d->c->n_heads * d->c->head_dim, v = k + d->c->n_kv_heads * d->c->head_dim;
    qb_cuda_attention_train_args args = attention_of(d, attention);
    args.d_out = dout;
    args.d_q = dqkv, args.d_k = column(d, dqkv, k), args.d_v = column(d, dqkv, v);
    args.d_sink = qb__cuda_train_array(d, QB_ARRAY_GRADIENTS, attention->sink);
    args.workspace = d->attention_workspace;
    return qb_cuda_attention_train_backward(&args, d->stream);
}

static qb_cuda_train_gate gate_args(const qb_train_device *d, const void *out, const void *gate)
{
    return (qb_cuda_train_gate){.m = d->m,
                                .n_heads = d->c->n_heads,
                                .head_dim = d->c->head_dim,
                                .type = d->type,
                                .stride = qb_cuda_stride(d->c->n_heads * d->c->head_dim),
                                .gate_stride = qb_cuda_stride(d->c->n_heads),
                                .out = out,
                                .gate = gate};
}

static qb_status gate_forward(qb_train_device *d, const void *out, const void *gate, void *gated)
{
    qb_cuda_train_gate args = gate_args(d, out, gate);
    args.gated = gated;
    return qb_cuda_train_gate_forward(&args, d->stream);
}

static qb_status gate_backward(qb_train_device *d, const void *out, const void *gate,
                               const void *d_gated, void *d_out, void *d_gate)
{
    qb_cuda_train_gate args = gate_args(d, out, gate);
    args.d_gated = d_gated, args.d_out = d_out, args.d_gate = d_gate;
    return qb_cuda_train_gate_backward(&args, d->stream);
}

const qb_train_ops qb__train_ops_cuda = {
    .device = "cuda",
    .steps_ahead = 2,
    .refuse = refuse,
    .create = create,
    .destroy = destroy,
    .memory_bytes = memory_bytes,
    .alloc = alloc,
    .copy_in = copy_in,
    .copy_out = copy_out,
    .read = read_rows,
    .set_rotation = qb__cuda_train_set_rotation,
    .begin = begin,
    .load_tokens = load_tokens,
    .set_update = qb__cuda_train_set_update,
    .repeat = qb__cuda_train_repeat,
    .embed_forward = embed_forward,
    .embed_backward = embed_backward,
    .norm_forward = norm_forward,
    .norm_backward = norm_backward,
    .linear_forward = qb__cuda_train_linear_forward,
    .linear_backward_input = qb__cuda_train_linear_backward_input,
    .linear_backward_weights = qb__cuda_train_linear_backward_weights,
    .rope = rope,
    .attention_forward = attention_forward,
    .attention_backward = attention_backward,
    .gate_forward = gate_forward,
    .gate_backward = gate_backward,
    .classifier = qb__cuda_train_classifier,
    .share_gradients = qb__cuda_train_share_gradients,
    .gradient_norm = qb__cuda_train_gradient_norm,
    .update = qb__cuda_train_update,
    .go_on = qb__cuda_train_go_on,
    .fetch_weights = qb__cuda_train_fetch_weights,
    .has_nonfinite = has_nonfinite,
    .send_totals = send_totals,
    .receive_totals = receive_totals,
};

#endif
