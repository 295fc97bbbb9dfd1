/* infer/cpu_engine.c - making the CPU's backbones and engines: everything that allocates. Running
 * is in cpu_forward.c. */
#include "infer/cpu_engine.h"

#include "core/interrupt.h"
#include "core/memory.h"
#include "quant/quantize_model.h"

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

static qb_status load_gates(cpu_backbone *b)
{
    const qb_config *c = b->base.config;
    if (!c->attn_gate) return QB_OK;
    QB_TRY(QB_NEW_ZERO(&b->gates, c->n_layers, "gates"));
    for (size_t layer = 0; layer < c->n_layers; layer++) {
        const qb_tensor *w = qb_model_tensor(b->base.model, QB_ROLE_ATTN_GATE, layer),
                        *bias = qb_model_tensor(b->base.model, QB_ROLE_ATTN_GATE_B, layer);
        QB_TRY(load_vector(w, &b->gates[layer].w));
        QB_TRY(load_vector(bias, &b->gates[layer].bias));
    }
    return QB_OK;
}

static qb_status load_sinks(cpu_backbone *b)
{
    const qb_config *c = b->base.config;
    if (c->softmax != QB_SOFTMAX_SINK) return QB_OK;
    QB_TRY(QB_NEW_ZERO(&b->sinks, c->n_layers, "sink logits"));
    for (size_t layer = 0; layer < c->n_layers; layer++)
        QB_TRY(load_vector(qb_model_tensor(b->base.model, QB_ROLE_SINK, layer), &b->sinks[layer]));
    return QB_OK;
}

static qb_status load_float_weights(cpu_backbone *b)
{
    size_t n_layers = b->base.config->n_layers;
    QB_TRY(QB_NEW_ZERO(&b->norms, 2 * n_layers + 1, "norms"));
    for (size_t layer = 0; layer < n_layers; layer++) {
        QB_TRY(load_norm(b->base.model, QB_ROLE_NORM1, layer, &b->norms[2 * layer]));
        QB_TRY(load_norm(b->base.model, QB_ROLE_NORM2, layer, &b->norms[2 * layer + 1]));
    }
    QB_TRY(load_norm(b->base.model, QB_ROLE_NORM_F, 0, &b->norms[2 * n_layers]));
    QB_TRY(load_gates(b));
    QB_TRY(load_sinks(b));
    if (b->base.config->pos != QB_POS_LEARNED) return QB_OK;
    return load_vector(qb_model_tensor(b->base.model, QB_ROLE_POS_EMBD, 0), &b->pos_embd);
}

static qb_status make_rope(cpu_backbone *b, size_t n_positions)
{
    if (b->base.config->pos != QB_POS_ROPE || n_positions <= b->n_rope) return QB_OK;
    size_t half = b->base.config->head_dim / 2;
    qb_free(b->cosine);
    qb_free(b->sine);
    b->cosine = b->sine = NULL;
    b->n_rope = 0;
    QB_TRY(QB_NEW(&b->cosine, n_positions * half, "rotary table"));
    QB_TRY(QB_NEW(&b->sine, n_positions * half, "rotary table"));
    qb_rope_table(&b->base.config->rope, b->base.config->head_dim, n_positions, b->cosine, b->sine);
    b->n_rope = n_positions;
    return QB_OK;
}

static qb_status new_rows(cpu_backbone *b, size_t width, float **out)
{
    b->scratch_bytes += b->base.max_tokens * width * sizeof **out;
    size_t elems;
    if (!qb_mul_size(b->base.max_tokens, width, &elems))
        return QB_FAIL(QB_ERR_MEMORY, "scratch: %zu rows of %zu overflow", b->base.max_tokens,
                       width);
    return QB_NEW(out, elems, "scratch of a forward call");
}

static qb_status make_attention_scratch(cpu_backbone *b, size_t n_q, size_t n_past)
{
    qb_attention_args shape = {.batch = 1,
                               .n_q = n_q,
                               .n_past = n_past,
                               .n_heads = b->base.config->n_heads,
                               .n_kv_heads = b->base.config->n_kv_heads,
                               .head_dim = b->base.config->head_dim};
    size_t elems = b->attention->scratch_elems(&shape) * qb_pool_n_threads(b->base.pool);
    if (elems <= b->attention_scratch_elems) return QB_OK;
    qb_free(b->attention_scratch);
    b->attention_scratch = NULL;
    b->attention_scratch_elems = 0;
    QB_TRY(QB_NEW(&b->attention_scratch, elems, "attention scratch"));
    b->attention_scratch_elems = elems;
    return QB_OK;
}

static qb_status make_scratch(cpu_backbone *b)
{
    const qb_config *c = b->base.config;
    QB_TRY(new_rows(b, c->d_model, &b->x));
    QB_TRY(new_rows(b, c->d_model, &b->h));
    QB_TRY(new_rows(b, (c->n_heads + 2 * c->n_kv_heads) * c->head_dim, &b->qkv));
    QB_TRY(new_rows(b, c->n_heads * c->head_dim, &b->att));
    if (c->attn_gate) QB_TRY(new_rows(b, c->n_heads, &b->gate_values));
    QB_TRY(new_rows(b, c->d_ff, &b->ff));
    if (c->act == QB_ACT_SWIGLU) QB_TRY(new_rows(b, c->d_ff, &b->ff2));
    return make_attention_scratch(b, b->base.max_tokens, 0);
}

static qb_status make_slots(cpu_backbone *b)
{
    size_t elems;
    if (!qb_mul_size(b->base.logit_rows, b->base.config->vocab, &elems))
        return QB_FAIL(QB_ERR_MEMORY, "logits: %zu rows overflow", b->base.logit_rows);
    for (size_t i = 0; i < b->base.logit_slots; i++) QB_TRY(QB_NEW(&b->slots[i], elems, "logits"));
    return QB_OK;
}

static void destroy_backbone(qb_backbone *backbone);

static qb_status create_backbone(const qb_backbone *base, qb_backbone **out)
{
    const qb_model *model = base->model;
    if (model->config.head_dim > QB_ATTENTION_MAX_HEAD_DIM)
        return QB_FAIL(QB_ERR_UNSUPPORTED, "%s: head_dim: found %zu, expected at most %d",
                       model->path, model->config.head_dim, QB_ATTENTION_MAX_HEAD_DIM);
    cpu_backbone *b;
    QB_TRY(QB_NEW_ZERO(&b, 1, "backbone"));
    b->base = *base;
    b->pointwise = QB_KERNEL_PICK(qb_pointwise_kernels);
    b->attention = QB_KERNEL_PICK(qb_attention_kernels);
    qb_status status = load_float_weights(b);
    if (status == QB_OK) status = make_rope(b, b->base.max_tokens);
    if (status == QB_OK) status = make_scratch(b);
    if (status == QB_OK) status = make_slots(b);
    if (status != QB_OK) {
        destroy_backbone(&b->base);
        return status;
    }
    *out = &b->base;
    return QB_OK;
}

static void destroy_backbone(qb_backbone *backbone)
{
    cpu_backbone *b = qb__cpu_backbone(backbone);
    for (size_t i = 0; b->norms && i < 2 * b->base.config->n_layers + 1; i++) {
        qb_free(b->norms[i].gain);
        qb_free(b->norms[i].bias);
    }
    qb_free(b->norms);
    for (size_t i = 0; i < b->base.config->n_layers; i++) {
        if (b->sinks) qb_free(b->sinks[i]);
        if (!b->gates) continue;
        qb_free(b->gates[i].w);
        qb_free(b->gates[i].bias);
    }
    qb_free(b->gates);
    qb_free(b->sinks);
    qb_free(b->pos_embd);
    qb_linear_deinit(&b->head);
    qb_free(b->cosine);
    qb_free(b->sine);
    float *scratch[] = {b->x,           b->h,  b->qkv, b->att,
                        b->gate_values, b->ff, b->ff2, b->attention_scratch};
    for (size_t i = 0; i < QB_COUNT(scratch); i++) qb_free(scratch[i]);
    for (size_t i = 0; i < QB_LOGIT_SLOTS; i++) qb_free(b->slots[i]);
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

static qb_status make_linear(cpu_engine *e, const qb_model *codes, qb_role role, size_t layer,
                             const qb_engine_options *o, qb_linear *out)
{
    cpu_backbone *b = qb__cpu_backbone(e->base.backbone);
    const qb_tensor *w = qb_model_tensor(codes, role, layer);
    if (role == QB_ROLE_HEAD) w = qb_model_head(codes);
    if (!w->data) return QB_OK;
    const qb_tensor *bias =
        role == QB_ROLE_HEAD ? NULL : qb_model_tensor(codes, (qb_role)(role + 1), layer);
    qb_status status =
        qb_linear_create(w, bias, &e->base.scheme, o->fake, o->calibration, b->base.pool, out);
    if (status != QB_OK) {
        char name[64];
        qb_role_name(role, layer, name, sizeof name);
        return qb_error_prefix(status, name);
    }
    if (w->data == qb_model_tensor(b->base.model, role, layer)->data)
        qb_tensor_forget(b->base.model, w);
    qb_linear_need_add(out, b->base.max_tokens, qb_pool_n_threads(b->base.pool), &b->need);
    e->base.weights_bytes += o->fake ? w->bytes : qb_linear_bytes(out);
    qb__engine_count_linear(&e->base, out->n, out->k, out->kind != QB_LINEAR_F32);
    return QB_OK;
}

static qb_status make_blocks(cpu_engine *e, const qb_model *codes, const qb_engine_options *o)
{
    size_t n_layers = e->base.backbone->config->n_layers;
    QB_TRY(QB_NEW_ZERO(&e->blocks, n_layers, "linear layers"));
    for (size_t layer = 0; layer < n_layers; layer++) {
        QB_TRY(qb_interrupt_check());
        for (size_t i = 0; i < QB_COUNT(slots); i++)
            QB_TRY(make_linear(e, codes, slots[i].role, layer, o,
                               slot_of(&e->blocks[layer], &slots[i])));
    }
    return QB_OK;
}

/* The head in full precision belongs to the backbone: all engines share it. */
static qb_status make_head(cpu_engine *e, const qb_model *codes, const qb_engine_options *o)
{
    cpu_backbone *b = qb__cpu_backbone(e->base.backbone);
    if (o->quantize_head && e->base.scheme.weights.bits) {
        QB_TRY(make_linear(e, codes, QB_ROLE_HEAD, 0, o, &e->own_head));
        if (e->own_head.input.outlier_min > 0) {
            QB_TRY(QB_NEW(&e->head_outliers.is_outlier, e->own_head.k, "outliers"));
            QB_TRY(QB_NEW(&e->head_outliers.channel, e->own_head.k, "outliers"));
        }
        if (!e->own_head.output.bits || e->own_head.output.is_static) return QB_OK;
        return QB_NEW(&e->head_chunk, HEAD_CHUNK_ROWS * b->base.config->vocab, "head output");
    }
    if (!b->has_head) {
        qb_scheme full = {.name = "full"};
        QB_TRY(qb_linear_create(qb_model_head(b->base.model), NULL, &full, false, NULL,
                                b->base.pool, &b->head));
        qb_linear_need_add(&b->head, 1, 1, &b->need);
        b->has_head = true;
    }
    qb__engine_count_linear(&e->base, b->head.n, b->head.k, false);
    e->base.weights_bytes += qb_linear_bytes(&b->head);
    return QB_OK;
}

static qb_status make_cache(cpu_engine *e, const qb_engine_options *o)
{
    const qb_config *c = e->base.backbone->config;
    cpu_backbone *b = qb__cpu_backbone(e->base.backbone);
    if (!e->base.cache_batch) return QB_OK;
    size_t elems;
    if (!qb_mul_size(c->n_layers * c->n_kv_heads * c->head_dim, o->cache_context, &elems) ||
        !qb_mul_size(elems, o->cache_batch, &elems))
        return QB_FAIL(QB_ERR_MEMORY, "KV cache: %zu x %zu positions overflow", o->cache_batch,
                       o->cache_context);
    QB_TRY(QB_NEW(&e->k_cache, elems, "KV cache"));
    QB_TRY(QB_NEW(&e->v_cache, elems, "KV cache"));
    QB_TRY(make_rope(b, o->cache_context));
    return make_attention_scratch(b, 1, o->cache_context);
}

static void name_linear_kernel(cpu_engine *e, const qb_linear *l)
{
    if (!l->n) return;
    if (l->kind == QB_LINEAR_S8) qb__engine_name_kernel(&e->base, l->s8->info.name);
    if (l->kind == QB_LINEAR_U4) qb__engine_name_kernel(&e->base, l->u4->info.name);
    if (l->kind == QB_LINEAR_F32 || l->kind == QB_LINEAR_FAKE)
        qb__engine_name_kernel(&e->base, l->f32->info.name);
    if (l->input.bits) qb__engine_name_kernel(&e->base, l->quantize->info.name);
}

static void name_kernels(cpu_engine *e)
{
    cpu_backbone *b = qb__cpu_backbone(e->base.backbone);
    for (size_t i = 0; i < QB_COUNT(slots); i++)
        name_linear_kernel(e, slot_of(&e->blocks[0], &slots[i]));
    name_linear_kernel(e, e->own_head.n ? &e->own_head : &b->head);
    qb__engine_name_kernel(&e->base, b->attention->info.name);
    qb__engine_name_kernel(&e->base, b->pointwise->info.name);
}

static qb_status build(cpu_engine *e, const qb_engine_options *o)
{
    cpu_backbone *b = qb__cpu_backbone(e->base.backbone);
    const qb_model *codes = o->quantized ? o->quantized : b->base.model;
    qb_model *made = NULL;
    if (!o->quantized && e->base.scheme.weights.bits) {
        QB_TRY(qb_quantize_model(b->base.model, &e->base.scheme, o->calibration, o->quantize_head,
                                 b->base.pool, &made));
        codes = made;
    }
    e->base.weights_bytes = qb__float_weights_bytes(b->base.model);
    qb_status status;
    QB_TRY_GOTO(status, make_blocks(e, codes, o), done);
    QB_TRY_GOTO(status, make_head(e, codes, o), done);
    QB_TRY_GOTO(status, qb_linear_scratch_grow(&b->linear, b->base.max_tokens, &b->need), done);
    QB_TRY_GOTO(status,
                QB_NEW(&e->hidden, b->base.max_tokens * b->base.config->d_model, "hidden states"),
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

static void destroy_engine(qb_engine *engine)
{
    cpu_engine *e = qb__cpu_engine(engine);
    for (size_t layer = 0; e->blocks && !e->base.full && layer < e->base.backbone->config->n_layers;
         layer++)
        for (size_t i = 0; i < QB_COUNT(slots); i++)
            qb_linear_deinit(slot_of(&e->blocks[layer], &slots[i]));
    qb_free(e->blocks);
    qb_linear_deinit(&e->own_head);
    qb_model_close(e->own_codes);
    qb_free(e->k_cache);
    qb_free(e->v_cache);
    qb_free(e->hidden);
    qb_free(e->head_chunk);
    qb_free(e->head_outliers.is_outlier);
    qb_free(e->head_outliers.channel);
    qb_free(e);
}

static qb_status create_engine(const qb_engine *base, const qb_engine_options *options,
                               qb_engine **out)
{
    cpu_engine *e;
    QB_TRY(QB_NEW_ZERO(&e, 1, "engine"));
    e->base = *base;
    qb_status status = build(e, options);
    if (status != QB_OK) {
        destroy_engine(&e->base);
        return status;
    }
    *out = &e->base;
    return QB_OK;
}

/* ---- mixed engines: copies of their parts' layers, which own what these point to ---- */

static qb_status create_mixed(const qb_engine *base, qb_engine **out)
{
    const qb_backbone *b = base->backbone;
    cpu_engine *e;
    QB_TRY(QB_NEW_ZERO(&e, 1, "engine"));
    e->base = *base;
    qb_status status = QB_NEW_ZERO(&e->blocks, b->config->n_layers, "linear layers");
    if (status == QB_OK)
        status = QB_NEW(&e->hidden, b->max_tokens * b->config->d_model, "hidden states");
    if (status != QB_OK) {
        destroy_engine(&e->base);
        return status;
    }
    *out = &e->base;
    return QB_OK;
}

static qb_status mix(qb_engine *mixed, const uint8_t *from_part)
{
    cpu_engine *e = qb__cpu_engine(mixed), *full = qb__cpu_engine(mixed->full),
               *part = qb__cpu_engine(mixed->part);
    const qb_linear *head = &qb__cpu_backbone(mixed->backbone)->head;
    for (size_t layer = 0; layer < mixed->backbone->config->n_layers; layer++)
        for (size_t i = 0; i < QB_COUNT(slots); i++) {
            bool is_part = from_part[layer * QB_ROLE_COUNT + slots[i].role];
            qb_linear *l = slot_of(&e->blocks[layer], &slots[i]);
            *l = *slot_of(&(is_part ? part : full)->blocks[layer], &slots[i]);
            if (l->n) qb__engine_count_linear(&e->base, l->n, l->k, l->kind != QB_LINEAR_F32);
        }
    qb__engine_count_linear(&e->base, head->n, head->k, false);
    return QB_OK;
}

static qb_status run_product(qb_engine *engine, qb_role role, size_t layer, float *x, size_t m,
                             float *y)
{
    cpu_backbone *b = qb__cpu_backbone(engine->backbone);
    qb_linear *l = NULL;
    for (size_t i = 0; i < QB_COUNT(slots); i++)
        if (slots[i].role == role) l = slot_of(&qb__cpu_engine(engine)->blocks[layer], &slots[i]);
    qb_linear_input input = {.x = x, .m = m, .k = l->k, .scratch = &b->linear};
    qb_linear_stage_rows(l, &input, 0, m);
    qb_linear_stage_finish(l, &input, b->base.pool);
    qb_linear_run(&l, &(qb_linear_output){y, l->n}, 1, &input, b->base.pool);
    for (size_t row = 0; row < m; row++) qb_linear_finish_row(l, y + row * l->n);
    return QB_OK;
}

static void get_memory(const qb_engine *engine, qb_engine_memory *out)
{
    const cpu_engine *e = (const cpu_engine *)engine;
    const cpu_backbone *b = (const cpu_backbone *)engine->backbone;
    const qb_config *c = b->base.config;
    size_t kv = e->k_cache ? 2 * c->n_layers * e->base.cache_batch * e->base.cache_context *
                                 c->n_kv_heads * c->head_dim * sizeof(float)
                           : 0;
    *out = (qb_engine_memory){.weights_bytes = e->base.weights_bytes,
                              .kv_bytes = kv,
                              .scratch_bytes = b->scratch_bytes + b->linear.bytes +
                                               b->attention_scratch_elems * sizeof(float)};
}

/* ---- the row ---- */

static const char *refuse_nothing(int index)
{
    return index ? "there is one CPU device" : NULL;
}

static size_t count_one(void)
{
    return 1;
}

static qb_status sync_nothing(qb_backbone *backbone)
{
    (void)backbone;
    return QB_OK;
}

const qb_backend qb__cpu_backend = {.name = "cpu",
                                    .refusal = refuse_nothing,
                                    .count = count_one,
                                    .full_is_f32 = true,
                                    .logit_bytes = 8 << 20,
                                    .taps = QB_TAP_BIT(QB_TAP_COUNT) - 1,
                                    .backbone_create = create_backbone,
                                    .backbone_destroy = destroy_backbone,
                                    .engine_create = create_engine,
                                    .engine_destroy = destroy_engine,
                                    .mixed_create = create_mixed,
                                    .mix = mix,
                                    .mixes_singly = true,
                                    .resumes = true,
                                    .product = run_product,
                                    .forward = qb__cpu_forward,
                                    .logits = qb__cpu_logits,
                                    .head = qb__cpu_head,
                                    .compare = qb__cpu_compare,
                                    .sync = sync_nothing,
                                    .memory = get_memory};
