/* train/transformer.c - see transformer.h. */
#include "train/transformer.h"

#include "core/memory.h"

/* Offsets of one block's parameters. */
typedef struct block {
    bool has_attention;
    qb_train_norm norm1, norm2;
    qb_train_linear qkv, gate, o, up, down;
    size_t sink;
} block;

/* What a block's forward pass leaves for the backward pass. */
typedef struct saved {
    void *x2;      /* the residual stream after attention; its input is `inputs` of the walk, and
                      where there is no attention both are one */
    void *h1, *h2; /* norms' outputs */
    void *stats1, *stats2;
    void *qkv, *att, *lse;
    void *gate, *gated; /* attn_gate only; else gated = att */
    void *pre, *act;    /* ReLU: one buffer, whose sign both have */
} saved;

struct qb_transformer {
    const qb_params *params;
    const qb_config *c;
    const qb_train_ops *ops;
    qb_train_device *d;
    bool recompute;
    block *blocks;        /* (n_layers) */
    saved *kept;          /* (n_layers), or one shared */
    void **inputs;        /* (n_layers + 1) residual stream before each block and the last norm */
    const void **streams; /* (n_layers + 1) the same, wherever a pass that skips parts has it */
    size_t n_streams;     /* known so far in this pass */
    qb_train_norm norm_f;
    void *h_f, *stats_f;
    void *branch;  /* what attention or the feed-forward adds to the stream */
    void *dx, *dh; /* gradients of the stream, of a norm's output */
    void *d_att, *d_gate, *d_qkv, *d_pre;
};

/* ---- parameters ---- */

static size_t offset_of(const qb_params *p, qb_role role, size_t layer)
{
    const qb_param *q = qb_params_find(p, role, layer);
    return q ? q->offset : QB_NO_PARAM;
}

static qb_train_linear linear_of(const qb_params *p, qb_role role, size_t layer, size_t n, size_t k)
{
    return (qb_train_linear){offset_of(p, role, layer), offset_of(p, (qb_role)(role + 1), layer), n,
                             k};
}

static qb_train_norm norm_of(const qb_params *p, qb_role role, size_t layer)
{
    return (qb_train_norm){offset_of(p, role, layer), offset_of(p, (qb_role)(role + 1), layer)};
}

static block block_of(const qb_params *p, size_t l)
{
    const qb_config *c = &p->config;
    size_t q_width = c->n_heads * c->head_dim;
    bool gated = c->act == QB_ACT_SWIGLU;
    return (block){
        .has_attention = qb_config_has_attention(c, l),
        .norm1 = norm_of(p, QB_ROLE_NORM1, l),
        .norm2 = norm_of(p, QB_ROLE_NORM2, l),
        .qkv = linear_of(p, c->fused_qkv ? QB_ROLE_QKV : QB_ROLE_Q, l, qb_train_qkv_width(c),
                         c->d_model),
        .gate = linear_of(p, QB_ROLE_ATTN_GATE, l, c->n_heads, c->d_model),
        .o = linear_of(p, QB_ROLE_O, l, c->d_model, q_width),
        .up = linear_of(p, gated ? QB_ROLE_GATE : QB_ROLE_UP, l, qb_train_pre_width(c), c->d_model),
        .down = linear_of(p, QB_ROLE_DOWN, l, c->d_model, c->d_ff),
        .sink = offset_of(p, QB_ROLE_SINK, l)};
}

/* ---- buffers ---- */

static qb_status alloc(qb_transformer *t, size_t width, void **out)
{
    return t->ops->alloc(t->d, QB_BUFFER_ACTIVATION, width, out);
}

static qb_status alloc_attention(qb_transformer *t, saved *s)
{
    const qb_config *c = t->c;
    size_t q_width = c->n_heads * c->head_dim;
    QB_TRY(alloc(t, c->d_model, &s->x2));
    QB_TRY(alloc(t, c->d_model, &s->h1));
    QB_TRY(t->ops->alloc(t->d, QB_BUFFER_F32, 2, &s->stats1));
    QB_TRY(t->ops->alloc(t->d, QB_BUFFER_F32, c->n_heads, &s->lse));
    QB_TRY(alloc(t, qb_train_qkv_width(c), &s->qkv));
    QB_TRY(alloc(t, q_width, &s->att));
    s->gated = s->att;
    if (!c->attn_gate) return QB_OK;
    QB_TRY(alloc(t, c->n_heads, &s->gate));
    return alloc(t, q_width, &s->gated);
}

static qb_status alloc_saved(qb_transformer *t, bool has_attention, saved *s)
{
    const qb_config *c = t->c;
    if (has_attention) QB_TRY(alloc_attention(t, s));
    QB_TRY(alloc(t, c->d_model, &s->h2));
    QB_TRY(t->ops->alloc(t->d, QB_BUFFER_F32, 2, &s->stats2));
    QB_TRY(alloc(t, c->d_ff, &s->act));
    s->pre = s->act;
    return c->act == QB_ACT_RELU ? QB_OK : alloc(t, qb_train_pre_width(c), &s->pre);
}

static qb_status alloc_all(qb_transformer *t)
{
    const qb_config *c = t->c;
    for (size_t l = 0; l <= c->n_layers; l++) QB_TRY(alloc(t, c->d_model, &t->inputs[l]));
    for (size_t l = 0; l < (t->recompute ? 1 : c->n_layers); l++)
        QB_TRY(alloc_saved(t, t->recompute || t->blocks[l].has_attention, &t->kept[l]));
    QB_TRY(alloc(t, c->d_model, &t->h_f));
    QB_TRY(t->ops->alloc(t->d, QB_BUFFER_F32, 2, &t->stats_f));
    QB_TRY(alloc(t, c->d_model, &t->branch));
    QB_TRY(alloc(t, c->d_model, &t->dx));
    QB_TRY(alloc(t, c->d_model, &t->dh));
    QB_TRY(alloc(t, c->n_heads * c->head_dim, &t->d_att));
    if (c->attn_gate) QB_TRY(alloc(t, c->n_heads, &t->d_gate));
    QB_TRY(alloc(t, qb_train_qkv_width(c), &t->d_qkv));
    return alloc(t, qb_train_pre_width(c), &t->d_pre);
}

static saved *saved_of(const qb_transformer *t, size_t layer)
{
    return &t->kept[t->recompute ? 0 : layer];
}

qb_status qb_transformer_create(const qb_params *params, const qb_train_ops *ops,
                                qb_train_device *device, bool recompute, qb_transformer **out)
{
    const qb_config *c = &params->config;
    qb_transformer *t;
    QB_TRY(QB_NEW_ZERO(&t, 1, "walk"));
    *t =
        (qb_transformer){.params = params, .c = c, .ops = ops, .d = device, .recompute = recompute};
    t->norm_f = norm_of(params, QB_ROLE_NORM_F, 0);
    qb_status status = QB_NEW(&t->blocks, c->n_layers, "blocks");
    if (status == QB_OK) status = QB_NEW_ZERO(&t->kept, c->n_layers, "activations");
    if (status == QB_OK) status = QB_NEW_ZERO(&t->inputs, c->n_layers + 1, "activations");
    if (status == QB_OK) status = QB_NEW_ZERO(&t->streams, c->n_layers + 1, "activations");
    for (size_t l = 0; status == QB_OK && l < c->n_layers; l++) t->blocks[l] = block_of(params, l);
    if (status == QB_OK) status = alloc_all(t);
    if (status == QB_OK)
        *out = t;
    else
        qb_transformer_destroy(t);
    return status;
}

void qb_transformer_destroy(qb_transformer *t)
{
    if (!t) return;
    qb_free(t->blocks);
    qb_free(t->kept);
    qb_free(t->inputs);
    qb_free(t->streams);
    qb_free(t);
}

/* ---- forward ---- */

/* The residual stream on its way: x, to which `add` has still to be added where it is not NULL. */
typedef struct stream {
    const void *x;
    const void *add;
} stream;

/* The norm of the stream, which then lies in `sum` if something was added; no block before `layer`
 * adds to it any more. */
static qb_status norm_stream(qb_transformer *t, size_t layer, const qb_train_norm *norm, stream *at,
                             void *sum, void *stats, void *h)
{
    QB_TRY(t->ops->norm_forward(t->d, norm, at->x, at->add, at->add ? sum : NULL, stats, h));
    if (at->add) *at = (stream){sum, NULL};
    while (t->n_streams <= layer) t->streams[t->n_streams++] = at->x;
    return QB_OK;
}

/* From h1 = norm1(x) to what attention adds to x. */
static qb_status attention_forward(qb_transformer *t, const block *b, const saved *s, stream *at)
{
    const qb_train_ops *o = t->ops;
    qb_train_attention attention = {s->qkv, s->att, s->lse, b->sink};
    QB_TRY(o->linear_forward(t->d, &b->qkv, s->h1, NULL, s->qkv));
    if (t->c->pos == QB_POS_ROPE) QB_TRY(o->rope(t->d, s->qkv, false));
    QB_TRY(o->attention_forward(t->d, &attention));
    if (t->c->attn_gate) {
        QB_TRY(o->linear_forward(t->d, &b->gate, s->h1, NULL, s->gate));
        QB_TRY(o->gate_forward(t->d, s->att, s->gate, s->gated));
    }
    at->add = t->branch;
    return o->linear_forward(t->d, &b->o, s->gated, NULL, t->branch);
}

static qb_status feed_forward(qb_transformer *t, const block *b, const saved *s, stream *at)
{
    QB_TRY(t->ops->linear_forward(t->d, &b->up, s->h2, s->pre, s->act));
    at->add = t->branch;
    return t->ops->linear_forward(t->d, &b->down, s->act, NULL, t->branch);
}

static bool skips(const qb_walk_tap *tap, size_t layer, bool of_attention)
{
    return tap && layer == tap->skip.layer && (of_attention ? tap->skip.attention : tap->skip.mlp);
}

/* The first norm of a block finds its input. tap may be NULL. */
static qb_status block_forward(qb_transformer *t, size_t layer, const qb_walk_tap *tap, stream *at)
{
    const block *b = &t->blocks[layer];
    const saved *s = saved_of(t, layer);
    void *sum = t->inputs[layer];
    if (b->has_attention && !skips(tap, layer, true)) {
        QB_TRY(norm_stream(t, layer, &b->norm1, at, sum, s->stats1, s->h1));
        QB_TRY(attention_forward(t, b, s, at));
        if (tap) QB_TRY(tap->attention(tap->context, layer, s->qkv));
        sum = s->x2;
    }
    if (skips(tap, layer, false)) return QB_OK;
    QB_TRY(norm_stream(t, layer, &b->norm2, at, sum, s->stats2, s->h2));
    return feed_forward(t, b, s, at);
}

/* Up to the head's input. tap may be NULL. */
static qb_status forward(qb_transformer *t, const qb_walk_tap *tap)
{
    size_t last = t->c->n_layers;
    stream at = {t->inputs[0], NULL};
    t->n_streams = 0;
    QB_TRY(t->ops->embed_forward(t->d, t->inputs[0]));
    for (size_t l = 0; l < last; l++) QB_TRY(block_forward(t, l, tap, &at));
    QB_TRY(norm_stream(t, last, &t->norm_f, &at, t->inputs[last], t->stats_f, t->h_f));
    for (size_t l = 0; tap && l < last; l++)
        QB_TRY(tap->stream(tap->context, l, t->streams[l + 1]));
    return tap ? tap->head_input(tap->context, t->h_f) : QB_OK;
}

qb_status qb_transformer_observe(qb_transformer *t, const qb_walk_tap *tap)
{
    return forward(t, tap);
}

qb_status qb_transformer_evaluate(qb_transformer *t)
{
    QB_TRY(forward(t, NULL));
    return t->ops->classifier(t->d, t->h_f, 0, NULL);
}

/* ---- backward ---- */

/* What the forward pass of the block left, if a later block has used its place since. */
static qb_status restore(qb_transformer *t, size_t layer)
{
    if (!t->recompute || layer + 1 == t->c->n_layers) return QB_OK;
    stream at = {t->inputs[layer], NULL};
    return block_forward(t, layer, NULL, &at);
}

/* The weights' gradients of the first block that what they are made of outlives: they come last, so
 * that the embeddings' can be on their way meanwhile. */
static qb_status make_last_products(qb_transformer *t)
{
    const block *b = &t->blocks[0];
    const saved *s = saved_of(t, 0);
    if (b->has_attention) QB_TRY(t->ops->linear_backward_weights(t->d, &b->qkv, s->h1, t->d_qkv));
    return t->ops->linear_backward_weights(t->d, &b->up, s->h2, t->d_pre);
}

/* dx, the gradient of the block's output, goes through down(act(up(norm2(x2)))) as well. */
static qb_status feed_forward_backward(qb_transformer *t, size_t layer)
{
    const block *b = &t->blocks[layer];
    const saved *s = saved_of(t, layer);
    const qb_train_ops *o = t->ops;
    QB_TRY(o->linear_backward_weights(t->d, &b->down, s->act, t->dx));
    QB_TRY(o->linear_backward_input(t->d, &b->down, t->dx, s->pre, false, t->d_pre));
    if (layer) QB_TRY(o->linear_backward_weights(t->d, &b->up, s->h2, t->d_pre));
    QB_TRY(o->linear_backward_input(t->d, &b->up, t->d_pre, NULL, false, t->dh));
    return o->norm_backward(t->d, &b->norm2, b->has_attention ? s->x2 : t->inputs[layer], s->stats2,
                            t->dh, true, t->dx);
}

static qb_status attention_backward(qb_transformer *t, size_t layer)
{
    const block *b = &t->blocks[layer];
    const saved *s = saved_of(t, layer);
    const qb_train_ops *o = t->ops;
    qb_train_attention attention = {s->qkv, s->att, s->lse, b->sink};
    QB_TRY(o->linear_backward_weights(t->d, &b->o, s->gated, t->dx));
    QB_TRY(o->linear_backward_input(t->d, &b->o, t->dx, NULL, false, t->d_att));
    if (t->c->attn_gate)
        QB_TRY(o->gate_backward(t->d, s->att, s->gate, t->d_att, t->d_att, t->d_gate));
    QB_TRY(o->attention_backward(t->d, &attention, t->d_att, t->d_qkv));
    if (t->c->pos == QB_POS_ROPE) QB_TRY(o->rope(t->d, t->d_qkv, true));
    if (layer) QB_TRY(o->linear_backward_weights(t->d, &b->qkv, s->h1, t->d_qkv));
    QB_TRY(o->linear_backward_input(t->d, &b->qkv, t->d_qkv, NULL, false, t->dh));
    if (t->c->attn_gate) {
        QB_TRY(o->linear_backward_weights(t->d, &b->gate, s->h1, t->d_gate));
        QB_TRY(o->linear_backward_input(t->d, &b->gate, t->d_gate, NULL, true, t->dh));
    }
    return o->norm_backward(t->d, &b->norm1, t->inputs[layer], s->stats1, t->dh, true, t->dx);
}

/* Where a layer's parameters begin; what comes before the first layer's are embeddings. */
static size_t layer_offset(const qb_transformer *t, size_t layer)
{
    const qb_params *p = t->params;
    size_t i = 0;
    if (layer == t->c->n_layers) return p->n_elems; /* the last norm and the head go with it */
    while (!qb_roles[p->list[i].role].per_layer || p->list[i].layer_idx != layer) i++;
    return p->list[i].offset;
}

/* A part a block, the first of them with all that comes before it, the last with the embeddings;
 * and the last products. */
size_t qb_transformer_parts(const qb_transformer *t)
{
    return t->c->n_layers + 1;
}

static qb_status learn_block(qb_transformer *t, size_t layer)
{
    QB_TRY(restore(t, layer));
    QB_TRY(feed_forward_backward(t, layer));
    return t->blocks[layer].has_attention ? attention_backward(t, layer) : QB_OK;
}

static qb_status learn_head(qb_transformer *t, float scale)
{
    const qb_train_ops *o = t->ops;
    QB_TRY(forward(t, NULL));
    QB_TRY(o->classifier(t->d, t->h_f, scale, t->dh));
    return o->norm_backward(t->d, &t->norm_f, t->inputs[t->c->n_layers], t->stats_f, t->dh, false,
                            t->dx);
}

qb_status qb_transformer_learn_part(qb_transformer *t, size_t part, float scale)
{
    const size_t n = t->c->n_layers;
    if (part == n) return make_last_products(t);
    if (!part) QB_TRY(learn_head(t, scale));
    QB_TRY(learn_block(t, n - 1 - part));
    return part + 1 == n ? t->ops->embed_backward(t->d, t->dx) : QB_OK;
}

qb_status qb_transformer_share_part(qb_transformer *t, size_t part)
{
    const size_t n = t->c->n_layers, layer = part < n ? n - 1 - part : 0;
    if (part + 1 == n) return t->ops->share_gradients(t->d, 0, layer_offset(t, 0));
    return t->ops->share_gradients(t->d, layer_offset(t, layer), layer_offset(t, layer + 1));
}

qb_status qb_transformer_learn(qb_transformer *t, float scale)
{
    for (size_t i = 0; i < qb_transformer_parts(t); i++)
        QB_TRY(qb_transformer_learn_part(t, i, scale));
    return QB_OK;
}
