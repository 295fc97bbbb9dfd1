/* infer/cuda/cuda_mixed.c - engines whose norms or layers are not their backbone's or their own:
 * the norms before smoothed layers, and engines mixed of two others. */
#include "infer/cuda/cuda_engine.h"

#include "core/memory.h"

#include <assert.h>
#include <cuda_runtime_api.h>

/* ---- smoothing: norms that divide by the factors ---- */

/* The factors of the layers behind a norm; NULL = not smoothed. */
static const float *factors_behind(const qb_model *codes, qb_role norm, size_t layer)
{
    for (int role = 0; role < QB_ROLE_COUNT; role++) {
        const qb_tensor *t = qb_model_tensor(codes, (qb_role)role, layer);
        if (qb_roles[role].norm == norm && t->data && t->quant.fold) return t->quant.fold;
    }
    return NULL;
}

/* (width) of a norm's vector, which may be one value for all, divided by the factors. */
static qb_status upload_divided(const qb_tensor *t, const float *factor, size_t width, float **out)
{
    float *values, one;
    *out = NULL;
    if (!t->data) return QB_OK;
    QB_TRY(QB_NEW(&values, width, "norm"));
    if (t->cols == 1) qb_tensor_rows_f32(t, 0, 1, &one);
    if (t->cols != 1) qb_tensor_rows_f32(t, 0, 1, values);
    for (size_t i = 0; i < width; i++) {
        if (t->cols == 1) values[i] = one;
        if (factor) values[i] /= factor[i];
    }
    qb_status status = QB_CUDA_NEW(out, width, "norm");
    if (status == QB_OK) status = qb_cuda_upload(*out, values, width * sizeof *values, 0);
    if (status == QB_OK) status = qb_cuda_sync(0);
    qb_free(values);
    return status;
}

qb_status qb__cuda_smooth_norms(cuda_engine *e, const qb_model *codes, bool quantize_head)
{
    static const qb_role roles[] = {QB_ROLE_NORM1, QB_ROLE_NORM2};
    const cuda_backbone *b = (const cuda_backbone *)e->base.backbone;
    const qb_config *c = b->base.config;
    e->norms = NULL;
    QB_TRY(QB_NEW_ZERO(&e->norms, 2 * c->n_layers + 1, "norms"));
    e->own_norms = true;
    qb_norm_kind kind = c->norm == QB_NORM_RMSNORM_SINGLE ? QB_NORM_RMSNORM : c->norm;
    for (size_t i = 0; i <= 2 * c->n_layers; i++) {
        qb_role role = i == 2 * c->n_layers ? QB_ROLE_NORM_F : roles[i % 2];
        size_t layer = role == QB_ROLE_NORM_F ? 0 : i / 2;
        bool stays = role == QB_ROLE_NORM_F && !quantize_head;
        const float *factor = stays ? NULL : factors_behind(codes, role, layer);
        const qb_tensor *gain = qb_model_tensor(b->base.model, role, layer),
                        *bias = qb_model_tensor(b->base.model, (qb_role)(role + 1), layer);
        e->norms[i].kind = kind;
        QB_TRY(upload_divided(gain, factor, c->d_model, &e->norms[i].gain));
        QB_TRY(upload_divided(bias, factor, c->d_model, &e->norms[i].bias));
    }
    return QB_OK;
}

void qb__cuda_destroy_norms(cuda_engine *e)
{
    size_t n = 2 * e->base.backbone->config->n_layers + 1;
    if (!e->own_norms) return;
    for (size_t i = 0; !e->base.full && i < n; i++) {
        qb_cuda_free(e->norms[i].gain);
        qb_cuda_free(e->norms[i].bias);
    }
    qb_free(e->norms);
}

/* ---- mixed engines: copies of their parts' products and norms, which own what these point to ----
 */

qb_status qb__cuda_mixed_create(const qb_engine *base, qb_engine **out)
{
    const cuda_backbone *b = (const cuda_backbone *)base->backbone;
    cuda_engine *e;
    QB_TRY(qb_cuda_use(b->base.device_idx));
    QB_TRY(QB_NEW_ZERO(&e, 1, "engine"));
    e->base = *base;
    e->own_norms = true;
    e->type = qb__cuda_engine(base->part)->type;
    assert(e->type == qb__cuda_engine(base->full)->type);
    size_t n_layers = b->base.config->n_layers;
    size_t hidden = (b->base.max_tokens + QB_CUDA_ROW_PAD) * b->table_stride;
    qb_status status;
    QB_TRY_GOTO(status, QB_NEW_ZERO(&e->blocks, n_layers, "linear layers"), failed);
    QB_TRY_GOTO(status, QB_NEW_ZERO(&e->norms, 2 * n_layers + 1, "norms"), failed);
    QB_TRY_GOTO(status, QB_CUDA_NEW_ZERO(&e->hidden, hidden, "hidden states"), failed);
    *out = &e->base;
    return QB_OK;
failed:
    qb__cuda_engine_destroy(&e->base);
    return status;
}

static void take_product(cuda_engine *e, const qb_cuda_linear *from, bool is_part,
                         qb_cuda_linear *to)
{
    *to = *from;
    if (to->n) qb__engine_count_linear(&e->base, to->n, to->k, is_part);
}

qb_status qb__cuda_mix(qb_engine *mixed, const uint8_t *from_part)
{
    cuda_engine *e = qb__cuda_engine(mixed);
    const cuda_engine *of[] = {qb__cuda_engine(mixed->full), qb__cuda_engine(mixed->part)};
    size_t n_layers = mixed->backbone->config->n_layers;
    for (size_t i = 0; i < n_layers; i++) {
        const uint8_t *chosen = from_part + i * QB_ROLE_COUNT;
        const bool qkv = chosen[QB_ROLE_QKV] || chosen[QB_ROLE_Q], o = chosen[QB_ROLE_O],
                   up = chosen[QB_ROLE_UP], down = chosen[QB_ROLE_DOWN];
        cuda_block *block = &e->blocks[i];
        take_product(e, &of[qkv]->blocks[i].qkv, qkv, &block->qkv);
        take_product(e, &of[o]->blocks[i].o, o, &block->o);
        take_product(e, &of[up]->blocks[i].up, up, &block->up);
        take_product(e, &of[down]->blocks[i].down, down, &block->down);
        e->norms[2 * i] = of[qkv]->norms[2 * i];
        e->norms[2 * i + 1] = of[up]->norms[2 * i + 1];
    }
    e->norms[2 * n_layers] = of[0]->norms[2 * n_layers];
    const qb_cuda_linear *head = &qb__cuda_backbone(mixed->backbone)->head[e->type];
    qb__engine_count_linear(mixed, head->n, head->k, false);
    cuda_graph *const graphs[] = {&e->prefill, &e->timed};
    for (size_t i = 0; i < QB_COUNT(graphs); i++) {
        if (graphs[i]->exec) cudaGraphExecDestroy(graphs[i]->exec);
        *graphs[i] = (cuda_graph){0};
    }
    return QB_OK;
}
