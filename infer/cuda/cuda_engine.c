/* infer/cuda/cuda_engine.c - making engines on a GPU: products, cache, the row that decodes. */
#include "infer/cuda/cuda_engine.h"

#include "core/memory.h"
#include "quant/quantize_model.h"

#include <cuda_runtime_api.h>

/* ---- engine ---- */

static void name_linear(cuda_engine *e, const qb_cuda_linear *l)
{
    qb__engine_name_kernel(&e->base, qb__cuda_linear_kernel(l));
}

/* The product of the roles that the model has of `roles`; a missing first one ends the list. */
static qb_status make_product(cuda_engine *e, const qb_model *codes, const qb_role *roles,
                              size_t n_roles, size_t layer, const qb_engine_options *o,
                              qb_cuda_linear *out)
{
    const cuda_backbone *b = (const cuda_backbone *)e->base.backbone;
    const qb_tensor *weights[QB_CUDA_SEGMENTS], *biases[QB_CUDA_SEGMENTS];
    size_t n = 0, bytes = 0;
    for (size_t i = 0; i < n_roles; i++) {
        const qb_tensor *w = roles[i] == QB_ROLE_HEAD ? qb_model_head(codes)
                                                      : qb_model_tensor(codes, roles[i], layer);
        if (!w->data) continue;
        weights[n] = w;
        biases[n++] = qb_model_tensor(codes, (qb_role)(roles[i] + 1), layer);
        bytes += w->bytes;
    }
    cuda_linear_options options = {.scheme = &e->base.scheme,
                                   .fake = e->fake,
                                   .type = e->type,
                                   .calibration = o->calibration,
                                   .pool = b->base.pool};
    const qb_tensor *const *with_biases = roles[0] == QB_ROLE_HEAD ? NULL : biases;
    qb_status status = qb__cuda_linear_create(weights, with_biases, n, &options, out);
    if (status != QB_OK) {
        char name[64];
        qb_role_name(roles[0], layer, name, sizeof name);
        return qb_error_prefix(status, name);
    }
    for (size_t i = 0; i < n; i++) {
        bool quantised = e->base.scheme.weights.bits && weights[i]->quant.axis != QB_AXIS_NONE;
        qb__engine_count_linear(&e->base, weights[i]->rows, weights[i]->cols, quantised);
        if (weights[i]->data == qb_model_tensor(b->base.model, roles[i], layer)->data)
            qb_tensor_forget(b->base.model, weights[i]);
    }
    e->base.weights_bytes += e->fake ? bytes : qb__cuda_linear_bytes(out);
    return QB_OK;
}

static qb_status make_blocks(cuda_engine *e, const qb_model *codes, const qb_engine_options *o)
{
    static const qb_role fused[] = {QB_ROLE_QKV}, split[] = {QB_ROLE_Q, QB_ROLE_K, QB_ROLE_V},
                         out[] = {QB_ROLE_O}, up[] = {QB_ROLE_UP, QB_ROLE_GATE},
                         down[] = {QB_ROLE_DOWN};
    size_t n_layers = e->base.backbone->config->n_layers;
    bool is_fused = e->base.backbone->config->fused_qkv;
    QB_TRY(QB_NEW_ZERO(&e->blocks, n_layers, "linear layers"));
    for (size_t layer = 0; layer < n_layers; layer++) {
        cuda_block *block = &e->blocks[layer];
        if (qb_config_has_attention(e->base.backbone->config, layer)) {
            QB_TRY(make_product(e, codes, is_fused ? fused : split, is_fused ? 1 : 3, layer, o,
                                &block->qkv));
            QB_TRY(make_product(e, codes, out, 1, layer, o, &block->o));
        }
        QB_TRY(make_product(e, codes, up, 2, layer, o, &block->up));
        QB_TRY(make_product(e, codes, down, 1, layer, o, &block->down));
    }
    return QB_OK;
}

static qb_status make_head(cuda_engine *e, const qb_model *codes, const qb_engine_options *o)
{
    static const qb_role head[] = {QB_ROLE_HEAD};
    cuda_backbone *b = qb__cuda_backbone(e->base.backbone);
    QB_TRY(qb__cuda_need_tables(b, e->type));
    if (o->quantize_head && e->base.scheme.weights.bits)
        return make_product(e, codes, head, 1, 0, o, &e->own_head);
    qb__engine_count_linear(&e->base, b->head[e->type].n, b->head[e->type].k, false);
    e->base.weights_bytes += qb__cuda_linear_bytes(&b->head[e->type]);
    return QB_OK;
}

/* 4-bit weights with scales per input channel take inputs that were multiplied by them. */
static qb_status need_scaled_inputs(cuda_engine *e)
{
    cuda_backbone *b = qb__cuda_backbone(e->base.backbone);
    const qb_config *c = b->base.config;
    const qb_weight_quant *weights = &e->base.scheme.weights;
    if (weights->bits != 4 || weights->axis != QB_AXIS_IN || e->fake || b->u4_x) return QB_OK;
    size_t widest = qb_max_size(qb_max_size(c->d_model, c->n_heads * c->head_dim), c->d_ff);
    return qb__cuda_new_rows(b, qb_max_size(b->base.max_tokens, b->base.logit_rows), widest, 2,
                             &b->u4_x);
}

/* What layers with outliers need beside their input, sized for any layer of the model. */
static qb_status need_outliers(cuda_engine *e)
{
    cuda_backbone *b = qb__cuda_backbone(e->base.backbone);
    const qb_config *c = b->base.config;
    if (!(e->base.scheme.input.bits && e->base.scheme.input.outlier_min > 0)) return QB_OK;
    if (e->own_head.n) QB_TRY(qb__cuda_outliers_create(e->own_head.k, &e->head_outliers));
    size_t q_width = c->n_heads * c->head_dim, qkv = q_width + 2 * c->n_kv_heads * c->head_dim;
    const size_t shapes[][2] = {{qkv, c->d_model},
                                {c->d_model, q_width},
                                {2 * c->d_ff, c->d_model},
                                {c->d_model, c->d_ff},
                                {e->own_head.n, c->d_model}};
    size_t bytes = 0;
    for (size_t i = 0; i < QB_COUNT(shapes); i++)
        bytes = qb_max_size(bytes, shapes[i][0] * shapes[i][1]);
    if (!b->outliers.n)
        QB_TRY(qb__cuda_outliers_create(qb_max_size(qb_max_size(c->d_model, q_width), c->d_ff),
                                        &b->outliers));
    if (bytes <= b->outlier_w_bytes) return QB_OK;
    QB_TRY(qb_cuda_sync(b->stream));
    b->layout++;
    qb_cuda_free(b->outlier_w);
    b->outlier_w = NULL;
    QB_TRY(QB_CUDA_NEW(&b->outlier_w, bytes, "codes of outliers"));
    b->scratch_bytes += bytes - b->outlier_w_bytes;
    b->outlier_w_bytes = bytes;
    return QB_OK;
}

static qb_status make_cache(cuda_engine *e)
{
    cuda_backbone *b = qb__cuda_backbone(e->base.backbone);
    const qb_config *c = b->base.config;
    size_t elems, batch = e->base.cache_batch, context = e->base.cache_context;
    e->kv_stride = c->n_kv_heads * c->head_dim;
    if (!batch) return QB_OK;
    if (!qb_mul_size(c->n_layers * e->kv_stride, context, &elems) ||
        !qb_mul_size(elems, batch, &elems))
        return QB_FAIL(QB_ERR_MEMORY, "KV cache: %zu x %zu positions overflow", batch, context);
    if (batch > b->base.logit_rows)
        return QB_FAIL(QB_ERR_SHAPE, "KV cache: found %zu sequences, at most %zu rows of logits",
                       batch, b->base.logit_rows);
    size_t elem_bytes = qb_cuda_dtype_bytes(e->type);
    QB_TRY(qb_cuda_alloc_zero(&e->k_cache, elems, elem_bytes, "KV cache"));
    QB_TRY(qb_cuda_alloc_zero(&e->v_cache, elems, elem_bytes, "KV cache"));
    QB_TRY(qb_cuda_host_alloc((void **)&e->step_host, RING * (batch + 1), sizeof *e->step_host,
                              "tokens of a step"));
    QB_TRY(QB_CUDA_NEW_ZERO(&e->step, batch + 1, "tokens of a step"));
    QB_TRY(qb__cuda_make_rope(b, context));
    return qb__cuda_need_attention(b, e->type, batch, 1, context - 1);
}

static void describe_layers(cuda_engine *e)
{
    const cuda_backbone *b = (const cuda_backbone *)e->base.backbone;
    size_t layer_elems = e->base.cache_batch * e->base.cache_context * e->kv_stride;
    size_t layer_bytes = layer_elems * qb_cuda_dtype_bytes(e->type);
    for (size_t i = 0; i < b->base.config->n_layers; i++) {
        const cuda_norm *norms = &e->norms[2 * i];
        e->decode_layers[i] =
            (qb_cuda_decode_layer){.qkv = e->blocks[i].qkv,
                                   .o = e->blocks[i].o,
                                   .up = e->blocks[i].up,
                                   .down = e->blocks[i].down,
                                   .norm1_gain = norms[0].gain,
                                   .norm1_bias = norms[0].bias,
                                   .norm2_gain = norms[1].gain,
                                   .norm2_bias = norms[1].bias,
                                   .k_cache = (char *)e->k_cache + i * layer_bytes,
                                   .v_cache = (char *)e->v_cache + i * layer_bytes};
    }
}

/* The rows of decode.h are used for what the suite has shown them to compute in whole models: 4-bit
 * weights with one scale an output channel or one in all, inputs without scales of their channels.
 */
static bool is_for_decode(const qb_cuda_linear *l)
{
    return l->input != QB_STAGE_CHANNEL && !(l->outlier_min > 0) &&
           (l->kind != QB_CUDA_LINEAR_U4 || (!l->u4.x_scale && l->u4.n_groups == 1));
}

/* Layers of one scheme may differ: what cannot be joined into one qkv in codes stands as floats. */
static bool are_for_decode(const cuda_engine *e)
{
    if (!is_for_decode(&e->own_head)) return false;
    for (size_t i = 0; i < e->base.backbone->config->n_layers; i++) {
        const cuda_block *b = &e->blocks[i];
        const qb_cuda_linear *all[] = {&b->qkv, &b->o, &b->up, &b->down};
        for (size_t j = 0; j < QB_COUNT(all); j++)
            if (!is_for_decode(all[j])) return false;
    }
    return true;
}

/* A step of one sequence goes by a row of decode.h, where one takes this model. */
static qb_status make_decode(cuda_engine *e)
{
    const cuda_backbone *b = (const cuda_backbone *)e->base.backbone;
    const qb_config *c = b->base.config;
    if (!e->base.cache_batch || e->type != QB_CUDA_BF16 || c->attn_gate || c->no_attention ||
        !are_for_decode(e))
        return QB_OK;
    QB_TRY(QB_NEW_ZERO(&e->decode_layers, c->n_layers, "layers of a step"));
    describe_layers(e);
    qb_cuda_decode_model model = {.n_layers = c->n_layers,
                                  .d_model = c->d_model,
                                  .n_heads = c->n_heads,
                                  .n_kv_heads = c->n_kv_heads,
                                  .head_dim = c->head_dim,
                                  .d_ff = c->d_ff,
                                  .vocab = c->vocab,
                                  .context = e->base.cache_context,
                                  .norm = e->norms[0].kind,
                                  .act = c->act,
                                  .softmax = c->softmax,
                                  .norm_eps = (float)c->norm_eps,
                                  .layers = e->decode_layers,
                                  .tok_embd = b->tok_embd[e->type],
                                  .pos_embd = b->pos_embd[e->type],
                                  .table_stride = b->table_stride,
                                  .cosine = b->cosine,
                                  .sine = b->sine,
                                  .norm_f_gain = e->norms[2 * c->n_layers].gain,
                                  .norm_f_bias = e->norms[2 * c->n_layers].bias,
                                  .head = e->own_head.n ? e->own_head : b->head[e->type]};
    for (const qb_cuda_decode_row *row = qb_cuda_decode_kernels; row->info.name; row++) {
        if (qb_kernel_refusal(&row->info) || row->refuse(&model)) continue;
        QB_TRY(row->create(&model, &e->decode));
        e->decode_row = row;
        qb__engine_name_kernel(&e->base, row->info.name);
        return QB_OK;
    }
    return QB_OK;
}

static void name_kernels(cuda_engine *e)
{
    const cuda_block *block = &e->blocks[0];
    name_linear(e, &block->qkv);
    name_linear(e, &block->o);
    name_linear(e, &block->up);
    name_linear(e, &block->down);
    name_linear(e,
                e->own_head.n ? &e->own_head : &qb__cuda_backbone(e->base.backbone)->head[e->type]);
}

static qb_status build(cuda_engine *e, const qb_engine_options *o)
{
    cuda_backbone *b = qb__cuda_backbone(e->base.backbone);
    const qb_model *codes = o->quantized ? o->quantized : b->base.model;
    qb_model *made = NULL;
    qb_status status;
    if (!o->quantized && e->base.scheme.weights.bits) {
        QB_TRY(qb_quantize_model(b->base.model, &e->base.scheme, o->calibration, o->quantize_head,
                                 b->base.pool, &made));
        codes = made;
    }
    e->base.weights_bytes = qb__float_weights_bytes(b->base.model);
    e->norms = b->norms;
    if (e->base.scheme.weights.smooth_alpha > 0)
        QB_TRY_GOTO(status, qb__cuda_smooth_norms(e, codes, o->quantize_head), done);
    QB_TRY_GOTO(status, make_blocks(e, codes, o), done);
    QB_TRY_GOTO(status, make_head(e, codes, o), done);
    QB_TRY_GOTO(status, need_scaled_inputs(e), done);
    QB_TRY_GOTO(status, need_outliers(e), done);
    QB_TRY_GOTO(status, qb__cuda_need_attention(b, e->type, b->base.max_tokens, 1, 0), done);
    QB_TRY_GOTO(status, qb__cuda_need_attention(b, e->type, 1, b->base.max_tokens, 0), done);
    size_t hidden = (b->base.max_tokens + QB_CUDA_ROW_PAD) * b->table_stride;
    QB_TRY_GOTO(status, QB_CUDA_NEW_ZERO(&e->hidden, hidden, "hidden states"), done);
    QB_TRY_GOTO(status, make_cache(e), done);
    QB_TRY_GOTO(status, make_decode(e), done);
    name_kernels(e);
done:
    qb_model_close(made);
    return status;
}

void qb__cuda_engine_destroy(qb_engine *engine)
{
    cuda_engine *e = qb__cuda_engine(engine);
    cuda_backbone *b = qb__cuda_backbone(engine->backbone);
    if (qb_cuda_use(b->base.device_idx) == QB_OK) qb_cuda_sync(b->stream);
    if (b->slot_owner == engine) b->slot_owner = NULL;
    bool owns = !engine->full; /* a mixed engine's products are its parts' */
    for (size_t layer = 0; e->blocks && owns && layer < b->base.config->n_layers; layer++) {
        qb__cuda_linear_destroy(&e->blocks[layer].qkv);
        qb__cuda_linear_destroy(&e->blocks[layer].o);
        qb__cuda_linear_destroy(&e->blocks[layer].up);
        qb__cuda_linear_destroy(&e->blocks[layer].down);
    }
    qb_free(e->blocks);
    qb__cuda_destroy_norms(e);
    qb__cuda_outliers_destroy(&e->head_outliers);
    qb__cuda_linear_destroy(&e->own_head);
    if (e->decode) e->decode_row->destroy(e->decode);
    if (e->prefill.exec) cudaGraphExecDestroy(e->prefill.exec);
    if (e->single_step.exec) cudaGraphExecDestroy(e->single_step.exec);
    if (e->timed.exec) cudaGraphExecDestroy(e->timed.exec);
    qb_free(e->decode_layers);
    qb_cuda_free(e->k_cache);
    qb_cuda_free(e->v_cache);
    qb_cuda_free(e->hidden);
    qb_cuda_free(e->step);
    qb_cuda_host_free(e->step_host);
    qb_free(e);
}

static qb_status create_engine(const qb_engine *base, const qb_engine_options *options,
                               qb_engine **out)
{
    cuda_engine *e;
    QB_TRY(qb_cuda_use(base->backbone->device_idx));
    QB_TRY(QB_NEW_ZERO(&e, 1, "engine"));
    e->base = *base;
    e->fake = options->fake;
    e->type = options->fake || base->scheme.f32 ? QB_CUDA_F32 : QB_CUDA_BF16;
    qb_status status = build(e, options);
    if (status != QB_OK) {
        qb__cuda_engine_destroy(&e->base);
        return status;
    }
    *out = &e->base;
    return QB_OK;
}

/* ---- the row ---- */

static qb_status sync(qb_backbone *backbone)
{
    QB_TRY(qb_cuda_use(backbone->device_idx));
    return qb_cuda_sync(qb__cuda_backbone(backbone)->stream);
}

static void get_memory(const qb_engine *engine, qb_engine_memory *out)
{
    const cuda_engine *e = (const cuda_engine *)engine;
    const cuda_backbone *b = (const cuda_backbone *)engine->backbone;
    size_t kv = 2 * b->base.config->n_layers * engine->cache_batch * engine->cache_context *
                e->kv_stride * qb_cuda_dtype_bytes(e->type);
    size_t step = e->decode ? e->decode_row->scratch_bytes(e->decode) : 0;
    *out =
        (qb_engine_memory){.weights_bytes = engine->weights_bytes,
                           .kv_bytes = kv,
                           .scratch_bytes = b->scratch_bytes + b->attention_workspace_bytes + step};
}

const qb_backend qb__cuda_backend = {.name = "cuda",
                                     .refusal = qb_cuda_refusal,
                                     .count = qb_cuda_count_alike,
                                     .logit_bytes = 256 << 20,
                                     .taps = QB_TAP_BIT(QB_TAP_INPUT) - 1,
                                     .backbone_create = qb__cuda_backbone_create,
                                     .backbone_destroy = qb__cuda_backbone_destroy,
                                     .engine_create = create_engine,
                                     .engine_destroy = qb__cuda_engine_destroy,
                                     .mixed_create = qb__cuda_mixed_create,
                                     .mix = qb__cuda_mix,
                                     .forward = qb__cuda_forward,
                                     .logits = qb__cuda_logits,
                                     .head = qb__cuda_head,
                                     .compare = qb__cuda_compare,
                                     .sync = sync,
                                     .timeline_clock = qb__cuda_timeline_clock,
                                     .peaks = qb__cuda_peaks,
                                     .memory = get_memory};
