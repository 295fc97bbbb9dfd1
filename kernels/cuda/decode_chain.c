/* kernels/cuda/decode_chain.c - the host side of the decode chain: what each kernel of a step is
 * told, the graph that holds them, and the table. */
#include "kernels/cuda/decode_chain.h"

#include "core/memory.h"

#include <cuda_runtime.h>
#include <math.h>
#include <string.h>

struct qb_cuda_decode {
    qb_cuda_decode_model m; /* but for its layers */
    uint32_t n_sms;
    qb__chain_product *products; /* 4 a layer: qkv, o, up, down; and the head */
    qb__chain_attention *attentions;
    qb__chain_finish finish;
    float *qkv, *heads, *o, *up, *down; /* outputs */
    float *x[2], *mean; /* residual streams before and behind a norm, means likewise */
    uint32_t *maxima, n_maxima;
    void *scratch_dev;
    size_t bytes;
    qb_cuda_stream stream; /* to capture on */
    cudaGraphExec_t exec, watched;
    size_t version; /* of who watched */
};
typedef struct qb_cuda_decode chain;

/* ---- what the kernels are told ---- */

static qb__chain_requant requant_of(const chain *c, const qb__chain_linear *l)
{
    qb__chain_requant r = {0};
    if (l->requant == QB_CUDA_REQUANT_NONE) return r;
    r.n = l->seg_n;
    memcpy(r.end, l->seg_end, sizeof r.end);
    if (l->requant == QB_CUDA_REQUANT_STATIC)
        r.scale = l->out_scale;
    else
        r.max_bits = c->maxima + l->slot;
    return r;
}

static void set_output(const chain *c, qb__chain_product *p, float *y)
{
    p->y = y;
    if (p->l.requant != QB_CUDA_REQUANT_DYNAMIC) return;
    p->n_max = (uint32_t)p->l.seg_n;
    p->out_max = c->maxima + p->l.slot;
}

/* The norm that is the index-th of the step; `before` is the product whose output it adds. */
static void set_norm(const chain *c, qb__chain_product *p, uint32_t index,
                     const qb__chain_product *before, const float *gain, const float *bias)
{
    p->source = QB__CHAIN_NORM;
    p->gain = gain, p->bias = bias;
    p->norm = c->m.norm, p->eps = c->m.norm_eps, p->inverse_d = 1.0f / (float)c->m.d_model;
    p->x_out = c->x[(index + 1) & 1], p->mean_out = c->mean + ((index + 1) & 1);
    if (before) {
        p->in = before->y, p->pending = requant_of(c, &before->l);
        p->x_in = c->x[index & 1], p->mean_in = c->mean + (index & 1);
    } else {
        p->tok_embd = c->m.tok_embd, p->pos_embd = c->m.pos_embd;
        p->table_stride = (uint32_t)c->m.table_stride;
    }
}

/* Up's epilogue activates where its output is not requantised, and then knows the maximum that the
 * codes of down's input need. */
static void set_mlp(const chain *c, qb__chain_product *u, qb__chain_product *d)
{
    const bool swiglu = c->m.act == QB_ACT_SWIGLU;
    d->source = QB__CHAIN_ACT;
    d->in = u->y, d->pending = requant_of(c, &u->l);
    d->act = u->act = c->m.act;
    if (u->l.requant != QB_CUDA_REQUANT_NONE || (swiglu && !u->l.paired)) return;
    d->activated = u->activate = 1;
    if (d->l.kind != QB_CUDA_LINEAR_S8 ||
        (d->l.input != QB_STAGE_TOKEN && d->l.input != QB_STAGE_TENSOR))
        return;
    u->n_max = 1;
    u->out_max = c->maxima + d->l.slot + QB_CUDA_SEGMENTS;
    d->in_max = u->out_max;
}

static void set_attention(const chain *c, qb__chain_attention *a, const qb__chain_product *qkv,
                          const qb_cuda_decode_layer *layer)
{
    const qb_cuda_decode_model *m = &c->m;
    *a = (qb__chain_attention){.qkv = qkv->y,
                               .pending = requant_of(c, &qkv->l),
                               .out = c->heads,
                               .k_cache = layer->k_cache,
                               .v_cache = layer->v_cache,
                               .cosine = m->cosine,
                               .sine = m->sine,
                               .n_heads = (uint32_t)m->n_heads,
                               .n_kv_heads = (uint32_t)m->n_kv_heads,
                               .head_dim = (uint32_t)m->head_dim,
                               .softmax = m->softmax,
                               .scale = 1.0f / sqrtf((float)m->head_dim)};
    qb__chain_split(a, c->n_sms);
}

static void set_layer(chain *c, uint32_t i, const qb_cuda_decode_layer *layer)
{
    qb__chain_product *p = c->products + 4 * i;
    float *const y[4] = {c->qkv, c->o, c->up, c->down};
    p[2].l.paired = c->m.act == QB_ACT_SWIGLU && c->m.d_ff % QB__CHAIN_TILE == 0 &&
                    layer->up.requant == QB_CUDA_REQUANT_NONE;
    for (int j = 0; j < 4; j++) set_output(c, &p[j], y[j]);
    set_norm(c, &p[0], 2 * i, i ? p - 1 : NULL, layer->norm1_gain, layer->norm1_bias);
    set_attention(c, &c->attentions[i], &p[0], layer);
    p[1].source = QB__CHAIN_ATTENTION, p[1].in = c->heads;
    set_norm(c, &p[2], 2 * i + 1, &p[1], layer->norm2_gain, layer->norm2_bias);
    set_mlp(c, &p[2], &p[3]);
}

static void set_head(chain *c, qb__chain_product *head)
{
    set_norm(c, head, 2 * (uint32_t)c->m.n_layers, head - 1, c->m.norm_f_gain, c->m.norm_f_bias);
    head->x_out = NULL, head->mean_out = NULL;
    set_output(c, head, NULL);
    c->finish.n = head->l.n, c->finish.requant = requant_of(c, &head->l);
}

/* Whether the kernel without the rarer cases takes it. */
static bool is_plain(const qb__chain_product *p)
{
    const qb__chain_linear *l = &p->l;
    return p->pending.n == 0 && !p->tok_embd && l->k % 4 == 0 && !l->x_scale &&
           (p->source != QB__CHAIN_NORM || l->k <= QB__CHAIN_CONSUMERS * 8) &&
           (p->source != QB__CHAIN_ACT || p->activated) && l->input != QB_STAGE_STATIC &&
           l->input != QB_STAGE_CHANNEL;
}

/* A maximum is cleared by a kernel that runs between its last reader and its next writer: by the
 * head all but those of the last product and its own, which the first product clears. */
static void set_zeros(chain *c, qb__chain_product *head)
{
    qb__chain_product *first = c->products, *last = head - 1;
    first->zero = c->maxima + last->l.slot, first->n_zero = 2 * QB__CHAIN_MAXIMA;
    head->zero = c->maxima, head->n_zero = last->l.slot;
}

static void describe(chain *c, const qb_cuda_decode_layer *layers)
{
    const uint32_t n = (uint32_t)c->m.n_layers;
    for (uint32_t i = 0; i < n; i++) set_layer(c, i, &layers[i]);
    set_head(c, c->products + 4 * n);
    set_zeros(c, c->products + 4 * n);
    for (uint32_t i = 0; i < 4 * n + 1; i++) {
        c->products[i].plain = is_plain(&c->products[i]);
        qb__chain_cut(&c->products[i], c->n_sms);
    }
}

/* ---- making a chain ---- */

static void flatten_layers(const qb_cuda_decode_model *m, chain *c)
{
    qb__chain_product *p = c->products;
    for (size_t i = 0; i < m->n_layers; i++) {
        const qb_cuda_decode_layer *in = &m->layers[i];
        const qb_cuda_linear *linears[4] = {&in->qkv, &in->o, &in->up, &in->down};
        for (int j = 0; j < 4; j++) qb__chain_flatten(linears[j], &c->n_maxima, &(p++)->l);
    }
    qb__chain_flatten(&m->head, &c->n_maxima, &p->l);
}

/* One allocation, cut into 256-byte aligned parts. With base NULL it only counts. */
static size_t cut_scratch(chain *c, char *base)
{
    const qb_cuda_decode_model *m = &c->m;
    const size_t d_pad = qb_cuda_stride(m->d_model), up = m->act == QB_ACT_SWIGLU ? 2 : 1;
    size_t at = 0;
#define CUT(pointer, elems)                                                                        \
    do {                                                                                           \
        if (base) pointer = (void *)(base + at);                                                   \
        at += ((elems) * sizeof *(pointer) + 255) / 256 * 256;                                     \
    } while (0)
    CUT(c->qkv, qb_cuda_stride((m->n_heads + 2 * m->n_kv_heads) * m->head_dim));
    CUT(c->heads, qb_cuda_stride(m->n_heads * m->head_dim));
    CUT(c->o, d_pad);
    CUT(c->up, qb_cuda_stride(m->d_ff * up));
    CUT(c->down, d_pad);
    CUT(c->x[0], d_pad);
    CUT(c->x[1], d_pad);
    CUT(c->mean, (size_t)2);
    CUT(c->maxima, (size_t)c->n_maxima);
#undef CUT
    return at;
}

static void forget_graphs(chain *c)
{
    if (c->exec) cudaGraphExecDestroy(c->exec);
    if (c->watched) cudaGraphExecDestroy(c->watched);
    c->exec = c->watched = NULL;
}

static void destroy(chain *c)
{
    if (!c) return;
    forget_graphs(c);
    qb_cuda_stream_destroy(c->stream);
    qb_cuda_free(c->scratch_dev);
    qb_free(c->attentions);
    qb_free(c->products);
    qb_free(c);
}

static qb_status count_sms(uint32_t *out)
{
    int device, n;
    QB_CUDA_TRY(cudaGetDevice(&device));
    QB_CUDA_TRY(cudaDeviceGetAttribute(&n, cudaDevAttrMultiProcessorCount, device));
    *out = (uint32_t)n;
    return QB_OK;
}

static qb_status prepare(const qb_cuda_decode_model *m, chain *c)
{
    QB_TRY(count_sms(&c->n_sms));
    c->m = *m, c->m.layers = NULL;
    QB_TRY(QB_NEW_ZERO(&c->products, 4 * m->n_layers + 1, "products of the decode chain"));
    QB_TRY(QB_NEW_ZERO(&c->attentions, m->n_layers, "attention of the decode chain"));
    flatten_layers(m, c);
    c->bytes = cut_scratch(c, NULL);
    QB_TRY(qb_cuda_alloc_zero(&c->scratch_dev, c->bytes, 1, "scratch of the decode chain"));
    cut_scratch(c, c->scratch_dev);
    describe(c, m->layers);
    for (size_t i = 0; i < 4 * m->n_layers + 1; i++)
        QB_TRY(qb__chain_prepare_product(&c->products[i]));
    return qb_cuda_stream_create(&c->stream);
}

static qb_status create(const qb_cuda_decode_model *model, chain **out)
{
    const char *why = qb__chain_refuse(model);
    if (why) return QB_FAIL(QB_ERR_UNSUPPORTED, "decode/chain_sm90: %s", why);
    chain *c;
    QB_TRY(QB_NEW_ZERO(&c, 1, "decode chain"));
    qb_status status = prepare(model, c);
    if (status == QB_OK)
        *out = c;
    else
        destroy(c);
    return status;
}

static size_t scratch_bytes(const chain *c)
{
    return c->bytes;
}

/* ---- a step ---- */

static void begins(const qb_cuda_decode_watch *watch, int layer)
{
    if (watch) watch->begins(watch->context, layer);
}

static void ended(const qb_cuda_decode_watch *watch, int layer, qb_cuda_decode_part part)
{
    if (watch) watch->ended(watch->context, layer, part);
}

static qb_status queue(const chain *c, const qb_cuda_decode_watch *watch, qb_cuda_stream stream)
{
    static const qb_cuda_decode_part parts[] = {QB_CUDA_DECODE_QKV, QB_CUDA_DECODE_O,
                                                QB_CUDA_DECODE_UP, QB_CUDA_DECODE_DOWN};
    const size_t n_layers = c->m.n_layers;
    for (size_t i = 0; i < 4 * n_layers; i++) {
        const int layer = (int)(i / 4);
        begins(watch, layer);
        QB_TRY(qb__chain_launch_product(&c->products[i], i == 0, stream));
        ended(watch, layer, parts[i % 4]);
        if (i % 4) continue;
        begins(watch, layer);
        QB_TRY(qb__chain_launch_attention(&c->attentions[layer], stream));
        ended(watch, layer, QB_CUDA_DECODE_ATTENTION);
    }
    begins(watch, -1);
    QB_TRY(qb__chain_launch_product(&c->products[4 * n_layers], false, stream));
    if (c->finish.requant.n) QB_TRY(qb__chain_launch_finish(&c->finish, stream));
    ended(watch, -1, QB_CUDA_DECODE_HEAD);
    return QB_OK;
}

static qb_status capture(chain *c, const qb_cuda_decode_watch *watch, qb_cuda_stream stream,
                         cudaGraphExec_t *exec)
{
    cudaGraph_t graph = NULL;
    QB_CUDA_TRY(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    qb_status status = queue(c, watch, stream);
    int code = cudaStreamEndCapture(stream, &graph);
    if (status == QB_OK) status = qb_cuda_check(code, "cudaStreamEndCapture");
    if (status == QB_OK)
        status = qb_cuda_check(cudaGraphInstantiate(exec, graph, 0), "cudaGraphInstantiate");
    if (graph) cudaGraphDestroy(graph);
    return status;
}

/* Graphs made for other arguments are forgotten. */
static void set_arguments(chain *c, const int32_t *token, const int32_t *position, float *hidden,
                          float *logits)
{
    qb__chain_product *first = c->products, *head = c->products + 4 * c->m.n_layers;
    if (first->token == token && first->position == position && head->hidden == hidden &&
        head->y == logits)
        return;
    forget_graphs(c);
    first->token = token, first->position = position;
    head->hidden = hidden, head->y = logits, c->finish.y = logits;
    for (size_t i = 0; i < c->m.n_layers; i++) c->attentions[i].position = position;
}

static qb_status step(chain *c, const int32_t *token_dev, const int32_t *position_dev,
                      float *hidden_dev, float *logits_dev, qb_cuda_stream stream)
{
    set_arguments(c, token_dev, position_dev, hidden_dev, logits_dev);
    if (!c->exec) QB_TRY(capture(c, NULL, c->stream, &c->exec));
    QB_CUDA_TRY(cudaGraphLaunch(c->exec, stream));
    return QB_OK;
}

static qb_status watched_step(chain *c, const int32_t *token_dev, const int32_t *position_dev,
                              float *hidden_dev, float *logits_dev,
                              const qb_cuda_decode_watch *watch, qb_cuda_stream stream)
{
    set_arguments(c, token_dev, position_dev, hidden_dev, logits_dev);
    if (c->watched && c->version != watch->version) {
        cudaGraphExecDestroy(c->watched);
        c->watched = NULL;
    }
    c->version = watch->version;
    if (!c->watched) QB_TRY(capture(c, watch, stream, &c->watched));
    QB_CUDA_TRY(cudaGraphLaunch(c->watched, stream));
    return QB_OK;
}

const qb_cuda_decode_row qb_cuda_decode_kernels[] = {
    {{"decode/chain_sm90", "cuda", QB_CUDA_SM90A},
     qb__chain_refuse,
     create,
     destroy,
     scratch_bytes,
     step,
     watched_step},
    {{0}, 0, 0, 0, 0, 0, 0},
};
