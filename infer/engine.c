/* infer/engine.c - making backbones and engines: everything that allocates. Running is in
 * forward.c. */
#include "infer/engine_internal.h"

#include "core/memory.h"
#include "quant/quantize_model.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* ---- backbone ---- */

static qb_status load_vector(const qb_tensor *t, float **out)
{
    if (!t->data) return QB_OK;
    QB_TRY(QB_NEW(out, t->rows * t->cols, "vector"));
    qb_tensor_rows_f32(t, 0, t->rows, *out);
    return QB_OK;
}

static qb_status load_norm(const qb_model *model, qb_role role, size_t layer, norm_weights *out)
{
    QB_TRY(load_vector(qb_model_tensor(model, role, layer), &out->gain));
    return load_vector(qb_model_tensor(model, (qb_role)(role + 1), layer), &out->bias);
}

static qb_status load_float_weights(qb_backbone *b)
{
    size_t n_layers = b->config->n_layers;
    QB_TRY(QB_NEW_ZERO(&b->norms, 2 * n_layers + 1, "norms"));
    for (size_t layer = 0; layer < n_layers; layer++) {
        QB_TRY(load_norm(b->model, QB_ROLE_NORM1, layer, &b->norms[2 * layer]));
        QB_TRY(load_norm(b->model, QB_ROLE_NORM2, layer, &b->norms[2 * layer + 1]));
    }
    QB_TRY(load_norm(b->model, QB_ROLE_NORM_F, 0, &b->norms[2 * n_layers]));
    if (b->config->pos != QB_POS_LEARNED) return QB_OK;
    return load_vector(qb_model_tensor(b->model, QB_ROLE_POS_EMBD, 0), &b->pos_embd);
}

/* Angles in double, so that long contexts keep their precision. */
static qb_status make_rope(qb_backbone *b, size_t n_positions)
{
    if (b->config->pos != QB_POS_ROPE || n_positions <= b->n_rope) return QB_OK;
    size_t half = b->config->head_dim / 2;
    double inv_freq[QB_ATTENTION_MAX_HEAD_DIM / 2];
    qb_rope_inv_freq(&b->config->rope, b->config->head_dim, inv_freq);
    qb_free(b->cosine);
    qb_free(b->sine);
    b->cosine = b->sine = NULL;
    b->n_rope = 0;
    QB_TRY(QB_NEW(&b->cosine, n_positions * half, "rotary table"));
    QB_TRY(QB_NEW(&b->sine, n_positions * half, "rotary table"));
    for (size_t t = 0; t < n_positions; t++)
        for (size_t i = 0; i < half; i++) {
            b->cosine[t * half + i] = (float)cos((double)t * inv_freq[i]);
            b->sine[t * half + i] = (float)sin((double)t * inv_freq[i]);
        }
    b->n_rope = n_positions;
    return QB_OK;
}

static qb_status new_rows(qb_backbone *b, size_t width, float **out)
{
    b->scratch_bytes += b->max_tokens * width * sizeof **out;
    size_t elems;
    if (!qb_mul_size(b->max_tokens, width, &elems))
        return QB_FAIL(QB_ERR_MEMORY, "scratch: %zu rows of %zu overflow", b->max_tokens, width);
    return QB_NEW(out, elems, "scratch of a forward call");
}

static qb_status make_attention_scratch(qb_backbone *b, size_t n_q, size_t n_past)
{
    qb_attention_args shape = {.batch = 1,
                               .n_q = n_q,
                               .n_past = n_past,
                               .n_heads = b->config->n_heads,
                               .n_kv_heads = b->config->n_kv_heads,
                               .head_dim = b->config->head_dim};
    size_t elems = b->attention->scratch_elems(&shape) * qb_pool_n_threads(b->pool);
    if (elems <= b->attention_scratch_elems) return QB_OK;
    qb_free(b->attention_scratch);
    b->attention_scratch = NULL;
    b->attention_scratch_elems = 0;
    QB_TRY(QB_NEW(&b->attention_scratch, elems, "attention scratch"));
    b->attention_scratch_elems = elems;
    return QB_OK;
}

static qb_status make_scratch(qb_backbone *b)
{
    const qb_config *c = b->config;
    QB_TRY(new_rows(b, c->d_model, &b->x));
    QB_TRY(new_rows(b, c->d_model, &b->h));
    QB_TRY(new_rows(b, (c->n_heads + 2 * c->n_kv_heads) * c->head_dim, &b->qkv));
    QB_TRY(new_rows(b, c->n_heads * c->head_dim, &b->att));
    QB_TRY(new_rows(b, c->d_ff, &b->ff));
    if (c->act == QB_ACT_SWIGLU) QB_TRY(new_rows(b, c->d_ff, &b->ff2));
    return make_attention_scratch(b, b->max_tokens, 0);
}

qb_status qb_backbone_create(const qb_model *model, const qb_backbone_options *options,
                             qb_backbone **out)
{
    if (model->config.head_dim > QB_ATTENTION_MAX_HEAD_DIM)
        return QB_FAIL(QB_ERR_UNSUPPORTED, "%s: head_dim: found %zu, at most %d", model->path,
                       model->config.head_dim, QB_ATTENTION_MAX_HEAD_DIM);
    qb_backbone *b;
    QB_TRY(QB_NEW_ZERO(&b, 1, "backbone"));
    b->model = model;
    b->config = &model->config;
    b->pool = options->pool;
    b->max_tokens = options->max_tokens;
    b->pointwise = QB_KERNEL_PICK(qb_pointwise_kernels);
    b->attention = QB_KERNEL_PICK(qb_attention_kernels);
    qb_status status = load_float_weights(b);
    if (status == QB_OK) status = make_rope(b, b->max_tokens);
    if (status == QB_OK) status = make_scratch(b);
    if (status != QB_OK) {
        qb_backbone_destroy(b);
        return status;
    }
    *out = b;
    return QB_OK;
}

void qb_backbone_destroy(qb_backbone *b)
{
    if (!b) return;
    for (size_t i = 0; b->norms && i < 2 * b->config->n_layers + 1; i++) {
        qb_free(b->norms[i].gain);
        qb_free(b->norms[i].bias);
    }
    qb_free(b->norms);
    qb_free(b->pos_embd);
    qb_linear_deinit(&b->head);
    qb_free(b->cosine);
    qb_free(b->sine);
    float *scratch[] = {b->x, b->h, b->qkv, b->att, b->ff, b->ff2, b->attention_scratch};
    for (size_t i = 0; i < QB_COUNT(scratch); i++) qb_free(scratch[i]);
    qb_linear_scratch_deinit(&b->linear);
    qb_free(b);
}

/* ---- engine ---- */

typedef struct linear_slot {
    qb_role role;
    size_t offset; /* in qb_block */
} linear_slot;

static const linear_slot slots[] = {
    {QB_ROLE_QKV, offsetof(qb_block, qkv)}, {QB_ROLE_Q, offsetof(qb_block, q)},
    {QB_ROLE_K, offsetof(qb_block, k)},     {QB_ROLE_V, offsetof(qb_block, v)},
    {QB_ROLE_O, offsetof(qb_block, o)},     {QB_ROLE_GATE, offsetof(qb_block, gate)},
    {QB_ROLE_UP, offsetof(qb_block, up)},   {QB_ROLE_DOWN, offsetof(qb_block, down)},
};

static qb_linear *slot_of(qb_block *block, const linear_slot *slot)
{
    return (qb_linear *)((char *)block + slot->offset);
}

static qb_status make_linear(qb_engine *e, const qb_model *codes, qb_role role, size_t layer,
                             const qb_engine_options *o, qb_linear *out)
{
    qb_backbone *b = e->backbone;
    const qb_tensor *w = qb_model_tensor(codes, role, layer);
    if (role == QB_ROLE_HEAD) w = qb_model_head(codes);
    if (!w->data) return QB_OK;
    const qb_tensor *bias =
        role == QB_ROLE_HEAD ? NULL : qb_model_tensor(codes, (qb_role)(role + 1), layer);
    qb_status status = qb_linear_create(w, bias, &e->scheme, o->fake, o->calibration, b->pool, out);
    if (status != QB_OK) {
        char name[64];
        qb_role_name(role, layer, name, sizeof name);
        return qb_error_prefix(status, name);
    }
    if (w->data == qb_model_tensor(b->model, role, layer)->data) qb_tensor_forget(b->model, w);
    qb_linear_need_add(out, b->max_tokens, qb_pool_n_threads(b->pool), &b->need);
    e->weights_bytes += o->fake ? w->bytes : qb_linear_bytes(out);
    e->linears_quantised += out->kind != QB_LINEAR_F32;
    return QB_OK;
}

static qb_status make_blocks(qb_engine *e, const qb_model *codes, const qb_engine_options *o)
{
    size_t n_layers = e->backbone->config->n_layers;
    QB_TRY(QB_NEW_ZERO(&e->blocks, n_layers, "linear layers"));
    for (size_t layer = 0; layer < n_layers; layer++)
        for (size_t i = 0; i < QB_COUNT(slots); i++)
            QB_TRY(make_linear(e, codes, slots[i].role, layer, o,
                               slot_of(&e->blocks[layer], &slots[i])));
    return QB_OK;
}

/* The head in full precision belongs to the backbone: all engines share it. */
static qb_status make_head(qb_engine *e, const qb_model *codes, const qb_engine_options *o)
{
    qb_backbone *b = e->backbone;
    if (o->quantize_head && e->scheme.weights.bits) {
        QB_TRY(make_linear(e, codes, QB_ROLE_HEAD, 0, o, &e->own_head));
        if (!e->own_head.output.bits || e->own_head.output.is_static) return QB_OK;
        return QB_NEW(&e->head_chunk, HEAD_CHUNK_ROWS * b->config->vocab, "head output");
    }
    if (!b->has_head) {
        qb_scheme full = {.name = "full"};
        QB_TRY(
            qb_linear_create(qb_model_head(b->model), NULL, &full, false, NULL, b->pool, &b->head));
        qb_linear_need_add(&b->head, 1, 1, &b->need);
        b->has_head = true;
    }
    e->weights_bytes += qb_linear_bytes(&b->head);
    return QB_OK;
}

static size_t float_weights_bytes(const qb_backbone *b)
{
    size_t bytes = 0;
    for (size_t layer = 0; layer < b->config->n_layers; layer++)
        for (int role = 0; role < QB_ROLE_COUNT; role++) {
            const qb_tensor *t = qb_model_tensor(b->model, (qb_role)role, layer);
            bool shared = !qb_roles[role].per_layer && layer > 0;
            bool counted = qb_roles[role].linear || role == QB_ROLE_HEAD || shared;
            if (t->data && !counted) bytes += t->bytes;
        }
    return bytes;
}

static qb_status make_cache(qb_engine *e, const qb_engine_options *o)
{
    const qb_config *c = e->backbone->config;
    e->cache_batch = o->cache_batch;
    e->cache_context = o->cache_context;
    if (!o->cache_batch || !o->cache_context) return QB_OK;
    if (c->pos == QB_POS_LEARNED && o->cache_context > c->context)
        return QB_FAIL(QB_ERR_SHAPE, "%s: context: found %zu, at most %zu (learned positions)",
                       e->backbone->model->path, o->cache_context, c->context);
    size_t elems;
    if (!qb_mul_size(c->n_layers * c->n_kv_heads * c->head_dim, o->cache_context, &elems) ||
        !qb_mul_size(elems, o->cache_batch, &elems))
        return QB_FAIL(QB_ERR_MEMORY, "KV cache: %zu x %zu positions overflow", o->cache_batch,
                       o->cache_context);
    QB_TRY(QB_NEW(&e->k_cache, elems, "KV cache"));
    QB_TRY(QB_NEW(&e->v_cache, elems, "KV cache"));
    QB_TRY(make_rope(e->backbone, o->cache_context));
    return make_attention_scratch(e->backbone, 1, o->cache_context);
}

static void add_kernel(char *text, const char *name)
{
    if (strstr(text, name)) return;
    size_t n = strlen(text);
    snprintf(text + n, ENGINE_KERNELS_TEXT - n, "%s%s", n ? " " : "", name);
}

static void name_linear_kernel(qb_engine *e, const qb_linear *l)
{
    if (!l->n) return;
    if (l->kind == QB_LINEAR_S8) add_kernel(e->kernels, l->s8->info.name);
    if (l->kind == QB_LINEAR_U4) add_kernel(e->kernels, l->u4->info.name);
    if (l->kind == QB_LINEAR_F32 || l->kind == QB_LINEAR_FAKE)
        add_kernel(e->kernels, l->f32->info.name);
    if (l->input.bits) add_kernel(e->kernels, l->quantize->info.name);
}

static void name_kernels(qb_engine *e)
{
    for (size_t i = 0; i < QB_COUNT(slots); i++)
        name_linear_kernel(e, slot_of(&e->blocks[0], &slots[i]));
    name_linear_kernel(e, e->own_head.n ? &e->own_head : &e->backbone->head);
    add_kernel(e->kernels, e->backbone->attention->info.name);
    add_kernel(e->kernels, e->backbone->pointwise->info.name);
}

static qb_status build(qb_engine *e, const qb_engine_options *o)
{
    qb_backbone *b = e->backbone;
    const qb_model *codes = o->quantized ? o->quantized : b->model;
    qb_model *made = NULL;
    if (!o->quantized && e->scheme.weights.bits) {
        QB_TRY(qb_quantize_model(b->model, &e->scheme, o->calibration, o->quantize_head, b->pool,
                                 &made));
        codes = made;
    }
    e->weights_bytes = float_weights_bytes(b);
    qb_status status;
    QB_TRY_GOTO(status, make_blocks(e, codes, o), done);
    QB_TRY_GOTO(status, make_head(e, codes, o), done);
    QB_TRY_GOTO(status, qb_linear_scratch_grow(&b->linear, b->max_tokens, &b->need), done);
    QB_TRY_GOTO(status, QB_NEW(&e->hidden, b->max_tokens * b->config->d_model, "hidden states"),
                done);
    QB_TRY_GOTO(status, make_cache(e, o), done);
    name_kernels(e);
done:
    if (o->fake)
        e->own_codes = made;
    else
        qb_model_close(made);
    return status;
}

qb_status qb_engine_create(qb_backbone *backbone, const qb_engine_options *options, qb_engine **out)
{
    qb_engine *e;
    QB_TRY(QB_NEW_ZERO(&e, 1, "engine"));
    e->backbone = backbone;
    e->scheme = *options->scheme;
    qb_status status = build(e, options);
    if (status != QB_OK) {
        qb_engine_destroy(e);
        return status;
    }
    *out = e;
    return QB_OK;
}

void qb_engine_destroy(qb_engine *e)
{
    if (!e) return;
    for (size_t layer = 0; e->blocks && layer < e->backbone->config->n_layers; layer++)
        for (size_t i = 0; i < QB_COUNT(slots); i++)
            qb_linear_deinit(slot_of(&e->blocks[layer], &slots[i]));
    qb_free(e->blocks);
    qb_linear_deinit(&e->own_head);
    qb_model_close(e->own_codes);
    qb_free(e->k_cache);
    qb_free(e->v_cache);
    qb_free(e->hidden);
    qb_free(e->head_chunk);
    qb_free(e);
}

/* ---- what is known about an engine ---- */

void qb_engine_coverage(const qb_engine *e, qb_coverage *out)
{
    const qb_backbone *b = e->backbone;
    double all = (double)b->config->vocab * (double)b->config->d_model, quantised = 0;
    if (e->own_head.n && e->own_head.kind != QB_LINEAR_F32) quantised += all;
    *out = (qb_coverage){.linears = 1, .linears_quantised = e->linears_quantised};
    for (size_t layer = 0; layer < b->config->n_layers; layer++)
        for (size_t i = 0; i < QB_COUNT(slots); i++) {
            const qb_linear *l = slot_of(&e->blocks[layer], &slots[i]);
            if (!l->n) continue;
            out->linears++;
            all += (double)l->n * (double)l->k;
            if (l->kind != QB_LINEAR_F32) quantised += (double)l->n * (double)l->k;
        }
    out->macs_share = quantised / all;
    out->bytes_share = quantised / (double)qb_config_n_params(b->config);
    static const char *const kept[] = {"embedding", "norms", "softmax", "attention products",
                                       "residual stream"};
    size_t n = 0;
    for (size_t i = 0; i < QB_COUNT(kept); i++) out->kept_float[n++] = kept[i];
    if (!e->own_head.n) out->kept_float[n++] = "output projection";
}

void qb_engine_memory_get(const qb_engine *e, qb_engine_memory *out)
{
    const qb_backbone *b = e->backbone;
    size_t kv = e->k_cache ? 2 * b->config->n_layers * e->cache_batch * e->cache_context *
                                 b->config->n_kv_heads * b->config->head_dim * sizeof(float)
                           : 0;
    *out = (qb_engine_memory){.weights_bytes = e->weights_bytes,
                              .kv_bytes = kv,
                              .scratch_bytes = b->scratch_bytes + b->linear.bytes +
                                               b->attention_scratch_elems * sizeof(float)};
}

const char *qb_engine_kernels(const qb_engine *e)
{
    return e->kernels;
}

const qb_model *qb_engine_model(const qb_engine *e)
{
    return e->backbone->model;
}

size_t qb_engine_position(const qb_engine *e)
{
    return e->position;
}

const float *qb_engine_hidden(const qb_engine *e)
{
    return e->hidden;
}
