/* infer/cuda/cuda_backbone.c - what engines of one model share on a GPU: norms, tables, scratch. */
#include "infer/cuda/cuda_engine.h"

#include "core/memory.h"
#include "kernels/attention.h"
#include "kernels/cuda/cublaslt.h"

/* ---- weights that stay float ---- */

static qb_status load_norm(const qb_model *model, qb_role role, size_t layer, cuda_norm *out)
{
    out->kind = model->config.norm;
    QB_TRY(qb__cuda_upload_vector(qb_model_tensor(model, role, layer), &out->gain));
    return qb__cuda_upload_vector(qb_model_tensor(model, (qb_role)(role + 1), layer), &out->bias);
}

static qb_status load_norms(cuda_backbone *b)
{
    size_t n_layers = b->base.config->n_layers;
    const qb_model *model = b->base.model;
    QB_TRY(QB_NEW_ZERO(&b->norms, 2 * n_layers + 1, "norms"));
    for (size_t layer = 0; layer < n_layers; layer++) {
        QB_TRY(load_norm(model, QB_ROLE_NORM1, layer, &b->norms[2 * layer]));
        QB_TRY(load_norm(model, QB_ROLE_NORM2, layer, &b->norms[2 * layer + 1]));
    }
    return load_norm(model, QB_ROLE_NORM_F, 0, &b->norms[2 * n_layers]);
}

static qb_status load_gates(cuda_backbone *b)
{
    const qb_config *c = b->base.config;
    const qb_model *model = b->base.model;
    if (!c->attn_gate) return QB_OK;
    QB_TRY(QB_NEW_ZERO(&b->gates, c->n_layers, "gates"));
    for (size_t layer = 0; layer < c->n_layers; layer++) {
        cuda_gate *gate = &b->gates[layer];
        QB_TRY(qb__cuda_upload_vector(qb_model_tensor(model, QB_ROLE_ATTN_GATE, layer), &gate->w));
        QB_TRY(qb__cuda_upload_vector(qb_model_tensor(model, QB_ROLE_ATTN_GATE_B, layer),
                                      &gate->bias));
    }
    return QB_OK;
}

static qb_status load_sinks(cuda_backbone *b)
{
    const qb_config *c = b->base.config;
    if (c->softmax != QB_SOFTMAX_SINK) return QB_OK;
    QB_TRY(QB_NEW_ZERO(&b->sinks, c->n_layers, "sink logits"));
    for (size_t layer = 0; layer < c->n_layers; layer++)
        QB_TRY(qb__cuda_upload_vector(qb_model_tensor(b->base.model, QB_ROLE_SINK, layer),
                                      &b->sinks[layer]));
    return QB_OK;
}

/* Tables and the full-precision head of one activation type, made by the first engine of it. */
qb_status qb__cuda_need_tables(cuda_backbone *b, qb_cuda_dtype type)
{
    const qb_model *model = b->base.model;
    const qb_config *c = b->base.config;
    if (b->head[type].n) return QB_OK;
    const qb_tensor *embd = qb_model_tensor(model, QB_ROLE_TOK_EMBD, 0);
    const qb_tensor *pos = qb_model_tensor(model, QB_ROLE_POS_EMBD, 0);
    const qb_tensor *head = qb_model_head(model);
    if (!b->tok_embd[type])
        QB_TRY(qb__cuda_upload_float(&embd, 1, type, b->base.pool, &b->tok_embd[type]));
    if (!b->pos_embd[type] && pos->data)
        QB_TRY(qb__cuda_upload_float(&pos, 1, type, b->base.pool, &b->pos_embd[type]));
    void *w = b->tok_embd[type];
    if (head != embd) QB_TRY(qb__cuda_upload_float(&head, 1, type, b->base.pool, &w));
    b->head[type] = (qb_cuda_linear){.kind = QB_CUDA_LINEAR_FLOAT,
                                     .n = c->vocab,
                                     .k = c->d_model,
                                     .segments = {1, {(int)c->vocab}},
                                     .type = type,
                                     .w = w,
                                     .w_stride = b->table_stride};
    return QB_OK;
}

qb_status qb__cuda_make_rope(cuda_backbone *b, size_t n_positions)
{
    const qb_config *c = b->base.config;
    if (c->pos != QB_POS_ROPE || n_positions <= b->n_rope) return QB_OK;
    size_t half = c->head_dim / 2, n = n_positions * half;
    float *host;
    QB_TRY(qb_cuda_sync(b->stream));
    b->layout++;
    qb_cuda_free(b->cosine);
    qb_cuda_free(b->sine);
    b->cosine = b->sine = NULL;
    b->n_rope = 0;
    QB_TRY(QB_CUDA_NEW(&b->cosine, n, "rotary table"));
    QB_TRY(QB_CUDA_NEW(&b->sine, n, "rotary table"));
    QB_TRY(QB_NEW(&host, 2 * n, "rotary table"));
    qb_rope_table(&c->rope, c->head_dim, n_positions, host, host + n);
    qb_status status = qb_cuda_upload(b->cosine, host, n * sizeof *host, b->stream);
    if (status == QB_OK) status = qb_cuda_upload(b->sine, host + n, n * sizeof *host, b->stream);
    if (status == QB_OK) status = qb_cuda_sync(b->stream);
    qb_free(host);
    b->n_rope = n_positions;
    return status;
}

/* ---- scratch ---- */

/* Zeroed, so that padding columns are 0 and no kernel reads what nothing wrote. */
qb_status qb__cuda_new_rows(cuda_backbone *b, size_t rows, size_t width, size_t elem_bytes,
                            void *out)
{
    size_t elems;
    if (!qb_mul_size(rows + QB_CUDA_ROW_PAD, qb_cuda_stride(width), &elems))
        return QB_FAIL(QB_ERR_MEMORY, "scratch: %zu rows of %zu overflow", rows, width);
    b->scratch_bytes += elems * elem_bytes;
    return qb_cuda_alloc_zero(out, elems, elem_bytes, "scratch of a forward call");
}

static qb_status make_scratch(cuda_backbone *b)
{
    const qb_config *c = b->base.config;
    size_t rows = b->base.max_tokens, q_width = c->n_heads * c->head_dim;
    size_t qkv_width = q_width + 2 * c->n_kv_heads * c->head_dim;
    size_t widest = qb_max_size(qb_max_size(c->d_model, q_width), c->d_ff);
    QB_TRY(qb__cuda_new_rows(b, rows, c->d_model, 4, &b->x));
    QB_TRY(qb__cuda_new_rows(b, rows, c->d_model, 4, &b->normed));
    QB_TRY(qb__cuda_new_rows(b, rows, c->d_model, 4, &b->out));
    QB_TRY(qb__cuda_new_rows(b, rows, qkv_width, 4, &b->qkv));
    QB_TRY(qb__cuda_new_rows(b, rows, qkv_width, 4, &b->rotated));
    QB_TRY(qb__cuda_new_rows(b, rows, q_width, 4, &b->att));
    QB_TRY(qb__cuda_new_rows(b, rows, c->act == QB_ACT_SWIGLU ? 2 * c->d_ff : c->d_ff, 4, &b->ff));
    QB_TRY(qb__cuda_new_rows(b, rows, widest, 4, &b->act));
    QB_TRY(qb__cuda_new_rows(b, rows, widest, 1, &b->q));
    size_t padded = rows + QB_CUDA_ROW_PAD;
    QB_TRY(QB_CUDA_NEW_ZERO(&b->scale, padded, "row scales"));
    QB_TRY(QB_CUDA_NEW_ZERO(&b->row_stats, 2 * padded, "row statistics"));
    QB_TRY(QB_CUDA_NEW_ZERO(&b->row_max_bits, padded, "row maxima"));
    QB_TRY(QB_CUDA_NEW_ZERO(&b->max_bits, 3 * QB_CUDA_SEGMENTS, "maxima"));
    QB_TRY(QB_CUDA_NEW_ZERO(&b->tokens, padded, "tokens"));
    QB_TRY(QB_CUDA_NEW_ZERO(&b->head_scale, 1, "head scale"));
    float one = 1.0f;
    QB_TRY(QB_CUDA_NEW(&b->one, 1, "scale"));
    QB_TRY(qb_cuda_upload(b->one, &one, sizeof one, b->stream));
    return qb_cuda_sync(b->stream);
}

enum { MIN_LOGIT_ROWS = 64 }; /* a decode step of any batch leaves its logits in slot 0 */

static qb_status make_slots(cuda_backbone *b)
{
    if (!b->base.logit_slots) b->base.logit_slots = 1;
    b->base.logit_rows = qb_max_size(b->base.logit_rows, MIN_LOGIT_ROWS);
    size_t rows = b->base.logit_rows;
    b->slot_stride = qb_cuda_stride(b->base.config->vocab);
    for (size_t i = 0; i < b->base.logit_slots; i++)
        QB_TRY(qb__cuda_new_rows(b, rows, b->base.config->vocab, sizeof(float), &b->slots[i]));
    QB_TRY(qb__cuda_new_rows(b, rows, b->base.config->d_model, 4, &b->head_x));
    QB_TRY(qb__cuda_new_rows(b, rows, b->base.config->d_model, 1, &b->head_q));
    QB_TRY(QB_CUDA_NEW_ZERO(&b->target, rows, "targets"));
    return QB_CUDA_NEW_ZERO(&b->stats, rows, "statistics of logits");
}

qb_status qb__cuda_need_attention(cuda_backbone *b, qb_cuda_dtype type, size_t batch, size_t n_q,
                                  size_t n_past)
{
    const qb_config *c = b->base.config;
    qb_cuda_attention_args args = {.type = type,
                                   .batch = batch,
                                   .n_q = n_q,
                                   .n_past = n_past,
                                   .n_heads = c->n_heads,
                                   .n_kv_heads = c->n_kv_heads,
                                   .head_dim = c->head_dim,
                                   .softmax = c->softmax};
    size_t bytes = qb_cuda_attention_workspace(&args);
    if (bytes <= b->attention_workspace_bytes) return QB_OK;
    QB_TRY(qb_cuda_sync(b->stream));
    b->layout++;
    qb_cuda_free(b->attention_workspace);
    b->attention_workspace = NULL;
    b->attention_workspace_bytes = 0;
    QB_TRY(qb_cuda_alloc(&b->attention_workspace, bytes, 1, "attention workspace"));
    b->attention_workspace_bytes = bytes;
    return QB_OK;
}

qb_status qb__cuda_outliers_create(size_t k, qb_cuda_outliers *out)
{
    QB_TRY(QB_CUDA_NEW_ZERO(&out->is_outlier, k, "outliers"));
    QB_TRY(QB_CUDA_NEW_ZERO(&out->channel, k, "outliers"));
    return QB_CUDA_NEW_ZERO(&out->n, 1, "outliers");
}

void qb__cuda_outliers_destroy(qb_cuda_outliers *o)
{
    qb_cuda_free(o->is_outlier);
    qb_cuda_free(o->channel);
    qb_cuda_free(o->n);
}

void qb__cuda_backbone_destroy(qb_backbone *backbone)
{
    cuda_backbone *b = qb__cuda_backbone(backbone);
    for (size_t i = 0; b->norms && i < 2 * b->base.config->n_layers + 1; i++) {
        qb_cuda_free(b->norms[i].gain);
        qb_cuda_free(b->norms[i].bias);
    }
    qb_free(b->norms);
    for (size_t i = 0; i < b->base.config->n_layers; i++) {
        if (b->sinks) qb_cuda_free(b->sinks[i]);
        if (!b->gates) continue;
        qb_cuda_free(b->gates[i].w);
        qb_cuda_free(b->gates[i].bias);
    }
    qb_free(b->gates);
    qb_free(b->sinks);
    for (size_t i = 0; i < CUDA_TYPES; i++) {
        if (b->head[i].w != b->tok_embd[i]) qb_cuda_free(b->head[i].w);
        qb_cuda_free(b->tok_embd[i]);
        qb_cuda_free(b->pos_embd[i]);
    }
    void *const blocks[] = {b->cosine,   b->sine,      b->one,
                            b->x,        b->normed,    b->out,
                            b->qkv,      b->rotated,   b->att,
                            b->ff,       b->act,       b->q,
                            b->scale,    b->row_stats, b->row_max_bits,
                            b->max_bits, b->u4_x,      b->tokens,
                            b->target,   b->stats,     b->head_scale,
                            b->head_x,   b->head_q,    b->slots[0],
                            b->slots[1], b->slots[2],  b->attention_workspace,
                            b->outlier_w};
    for (size_t i = 0; i < QB_COUNT(blocks); i++) qb_cuda_free(blocks[i]);
    qb__cuda_outliers_destroy(&b->outliers);
    qb_cublaslt_forget(b->stream);
    qb_cuda_stream_destroy(b->stream);
    qb_free(b);
}

qb_status qb__cuda_backbone_create(const qb_backbone *base, qb_backbone **out)
{
    const qb_config *c = base->config;
    cuda_backbone *b;
    if (c->head_dim > QB_ATTENTION_MAX_HEAD_DIM)
        return QB_FAIL(QB_ERR_UNSUPPORTED, "%s: head_dim: found %zu, expected at most %d",
                       base->model->path, c->head_dim, QB_ATTENTION_MAX_HEAD_DIM);
    QB_TRY(qb_cuda_use(base->device_idx));
    QB_TRY(QB_NEW_ZERO(&b, 1, "backbone"));
    b->base = *base;
    b->table_stride = qb_cuda_stride(c->d_model);
    qb_status status;
    QB_TRY_GOTO(status, qb_cuda_stream_create(&b->stream), failed);
    QB_TRY_GOTO(status, load_norms(b), failed);
    QB_TRY_GOTO(status, load_gates(b), failed);
    QB_TRY_GOTO(status, load_sinks(b), failed);
    QB_TRY_GOTO(status, qb__cuda_make_rope(b, b->base.max_tokens), failed);
    QB_TRY_GOTO(status, make_scratch(b), failed);
    QB_TRY_GOTO(status, make_slots(b), failed);
    *out = &b->base;
    return QB_OK;
failed:
    qb__cuda_backbone_destroy(&b->base);
    return status;
}
