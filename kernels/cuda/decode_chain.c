/* kernels/cuda/decode_chain.c - the host side of the decode chain: what each kernel of a step is
 * told, and the graph that holds them. */
#include "kernels/cuda/decode_chain.h"

#include "core/memory.h"

#include <cuda_runtime.h>
#include <string.h>

/* Of a block's shared memory: two or three kernels of the chain share a multiprocessor. */
enum { BUDGET_BYTES = 100 << 10, MIN_SLOTS = 2 };
/* The sums of a block's tiles then still fit beside two chunks. */
enum { MAX_VOCAB = 1 << 18 };
enum { CHUNK_ROW_BYTES = 2048, CHUNK_U4_BYTES = 16384 };

typedef struct node { /* a product of the step */
    qb__chain_product product;
    uint32_t n_blocks, smem_bytes;
} node;

typedef struct chain {
    qb__decode_params p;
    qb__decode_limits limits;
    qb__decode_layer *layers; /* n_layers, and one whose first linear is the head */
    node *nodes;              /* 4 a layer, and the head */
    qb__chain_attention *attentions;
    qb__chain_finish finish;
    float *x[2], *mean; /* residual streams before and behind a norm, means likewise */
    void *scratch_dev;
    size_t bytes;
    qb_cuda_stream stream; /* to capture on */
    cudaGraphExec_t exec;
} chain;

/* ---- shared memory and blocks of a product ---- */

static uint32_t round_up(uint32_t x, uint32_t to)
{
    return (x + to - 1) / to * to;
}

/* Cuts the input channels into n_ranks equal parts of whole chunks; false if they do not divide. */
static bool cut_ranks(qb__chain_product *p, uint32_t n_ranks)
{
    qb__decode_linear *l = &p->l;
    const bool u4 = l->kind == QB_CUDA_LINEAR_U4;
    const uint32_t whole = u4 ? l->tile_bytes : l->x_bytes, unit = u4 ? 512 : 64;
    for (uint32_t chunks = 1; chunks <= 4; chunks++) {
        const uint32_t bytes = whole / (n_ranks * chunks);
        if (bytes * n_ranks * chunks != whole || bytes % unit || bytes > l->chunk_bytes) continue;
        l->chunk_bytes = bytes, l->x_chunk = u4 ? bytes / 4 : bytes;
        l->n_chunks = n_ranks * chunks;
        p->n_ranks = n_ranks, p->rank_chunks = chunks;
        return true;
    }
    return false;
}

/* Whether a block can stage a part of the input without the rest. */
static bool can_share(const qb__chain_product *p)
{
    return p->plain && p->source == QB__CHAIN_ACT && !p->l.paired && !p->l.group &&
           (p->l.kind != QB_CUDA_LINEAR_S8 || p->in_max) && p->l.k > QB__CHAIN_CONSUMERS;
}

/* Blocks: as few as have no more tiles than one of them must have. */
static void cut_product(node *n, uint32_t n_sms)
{
    qb__chain_product *p = &n->product;
    const qb__decode_linear *l = &p->l;
    const uint32_t units = l->n_tiles >> l->paired;
    p->n_ranks = 1, p->rank_chunks = l->n_chunks;
    if (can_share(p)) cut_ranks(p, QB__CHAIN_MAX_RANKS);
    const uint32_t each = (units + n_sms / p->n_ranks - 1) / (n_sms / p->n_ranks);
    n->n_blocks = (units + each - 1) / each * p->n_ranks;
    const uint32_t most = each << l->paired;
    /* rows 64 bytes beside a multiple of 128, so that 8 lanes of two rows meet distinct banks */
    p->pitch = round_up(l->chunk_bytes, 128) + 64;
    p->slot_bytes = l->row_bytes ? p->pitch * QB__DECODE_TILE : l->chunk_bytes;
    if (l->group) p->slot_bytes += (l->chunk_bytes / 8 / l->group + 2) * QB__DECODE_GROUP_BYTES;
    p->slot_bytes = round_up(p->slot_bytes, 128);
    const uint32_t x_bytes = p->n_ranks == 1 ? l->x_bytes : p->rank_chunks * l->x_chunk;
    p->sums_off = QB__CHAIN_HEADER_BYTES + round_up(x_bytes, 128);
    p->ranks_off = p->sums_off + most * QB__CHAIN_WARPS * QB__DECODE_TILE * 4;
    p->ring_off = p->ranks_off + (p->n_ranks == 1 ? 0 : p->n_ranks * QB__CHAIN_OWN_ROWS * 4);
    const uint32_t room = p->ring_off < BUDGET_BYTES ? BUDGET_BYTES - p->ring_off : 0;
    p->n_slots = room / p->slot_bytes;
    if (p->n_slots < MIN_SLOTS) p->n_slots = MIN_SLOTS;
    if (p->n_slots > QB__CHAIN_MAX_SLOTS) p->n_slots = QB__CHAIN_MAX_SLOTS;
    if (p->n_slots > most * p->rank_chunks) p->n_slots = most * p->rank_chunks;
    n->smem_bytes = p->ring_off + p->n_slots * p->slot_bytes;
}

/* ---- what the kernels are told ---- */

static qb__chain_requant requant_of(const chain *c, const qb__decode_linear *l)
{
    qb__chain_requant r = {0};
    if (l->requant == QB_CUDA_REQUANT_NONE) return r;
    r.n = l->seg_n;
    memcpy(r.end, l->seg_end, sizeof r.end);
    if (l->requant == QB_CUDA_REQUANT_STATIC)
        r.scale = l->out_scale;
    else
        r.max_bits = c->p.max_bits + l->slot;
    return r;
}

static void set_output(const chain *c, node *n, float *y)
{
    qb__chain_product *p = &n->product;
    p->y = y;
    if (p->l.requant != QB_CUDA_REQUANT_DYNAMIC) return;
    p->n_max = (uint32_t)p->l.seg_n;
    p->out_max = c->p.max_bits + p->l.slot;
}

/* The norm that is the index-th of the step; `before` is the product whose output it adds. */
static void set_norm(const chain *c, node *n, uint32_t index, const qb__decode_linear *before,
                     const float *in, const float *gain, const float *bias)
{
    qb__chain_product *p = &n->product;
    p->source = QB__CHAIN_NORM;
    p->gain = gain, p->bias = bias;
    p->norm = c->p.norm, p->eps = c->p.eps, p->inverse_d = c->p.inverse_d;
    p->x_out = c->x[(index + 1) & 1], p->mean_out = c->mean + ((index + 1) & 1);
    if (before) {
        p->in = in, p->pending = requant_of(c, before);
        p->x_in = c->x[index & 1], p->mean_in = c->mean + (index & 1);
    } else {
        p->tok_embd = c->p.tok_embd, p->pos_embd = c->p.pos_embd;
        p->table_stride = c->p.table_stride;
    }
}

/* Up's epilogue activates where its output is not requantised, and then knows the maximum that the
 * codes of down's input need. */
static void set_mlp(const chain *c, node *up, node *down)
{
    qb__chain_product *u = &up->product, *d = &down->product;
    const bool swiglu = c->p.act == QB_ACT_SWIGLU;
    d->source = QB__CHAIN_ACT;
    d->in = c->p.up, d->pending = requant_of(c, &u->l);
    d->act = u->act = c->p.act;
    if (u->l.requant != QB_CUDA_REQUANT_NONE || (swiglu && !u->l.paired)) return;
    d->activated = u->activate = 1;
    if (d->l.kind != QB_CUDA_LINEAR_S8 ||
        (d->l.input != QB_STAGE_TOKEN && d->l.input != QB_STAGE_TENSOR))
        return;
    u->n_max = 1;
    u->out_max = c->p.max_bits + d->l.slot + QB_CUDA_SEGMENTS;
    d->in_max = u->out_max;
}

static void set_layer(chain *c, uint32_t i)
{
    const qb__decode_layer *layer = &c->layers[i];
    node *n = c->nodes + 4 * i;
    set_norm(c, &n[0], 2 * i, i ? &c->layers[i - 1].linear[3] : NULL, c->p.down, layer->norm1_gain,
             layer->norm1_bias);
    n[1].product.source = QB__CHAIN_ATTENTION, n[1].product.in = c->p.att;
    set_norm(c, &n[2], 2 * i + 1, &layer->linear[1], c->p.o, layer->norm2_gain, layer->norm2_bias);
    float *const y[4] = {c->p.qkv, c->p.o, c->p.up, c->p.down};
    for (int j = 0; j < 4; j++) set_output(c, &n[j], y[j]);
    set_mlp(c, &n[2], &n[3]);
    c->attentions[i].p = c->p;
    c->attentions[i].p.n_blocks = c->p.n_heads * c->p.n_splits;
    c->attentions[i].layer = *layer;
}

/* Whether the kernel without the rarer cases takes it. */
static bool is_plain(const qb__chain_product *p)
{
    const qb__decode_linear *l = &p->l;
    return p->pending.n == 0 && !p->tok_embd && l->k % 4 == 0 && !l->x_scale &&
           (p->source != QB__CHAIN_NORM || l->k <= QB__CHAIN_CONSUMERS * 8) &&
           (p->source != QB__CHAIN_ACT || p->activated) && l->input != QB_STAGE_STATIC &&
           l->input != QB_STAGE_CHANNEL;
}

/* A word of max_bits is cleared by a kernel that runs between its last reader and its next writer:
 * by the head all but those of the last product and its own, which the first product clears. */
static void set_zeros(chain *c)
{
    const uint32_t n = c->p.n_layers, last = c->layers[n - 1].linear[3].slot;
    qb__chain_product *first = &c->nodes[0].product, *head = &c->nodes[4 * n].product;
    first->zero = c->p.max_bits + last, first->n_zero = 2 * QB__DECODE_SLOTS;
    head->zero = c->p.max_bits, head->n_zero = last;
}

static void describe(chain *c)
{
    const uint32_t n = c->p.n_layers;
    for (uint32_t i = 0; i < 4 * n + 1; i++) c->nodes[i].product.l = c->layers[i / 4].linear[i % 4];
    for (uint32_t i = 0; i < n; i++) set_layer(c, i);
    node *head = c->nodes + 4 * n;
    set_norm(c, head, 2 * n, &c->layers[n - 1].linear[3], c->p.down, c->layers[n].norm1_gain,
             c->layers[n].norm1_bias);
    head->product.x_out = NULL, head->product.mean_out = NULL;
    set_output(c, head, NULL);
    c->finish.n = head->product.l.n, c->finish.requant = requant_of(c, &head->product.l);
    set_zeros(c);
    for (uint32_t i = 0; i < 4 * n + 1; i++) {
        c->nodes[i].product.plain = is_plain(&c->nodes[i].product);
        cut_product(&c->nodes[i], c->limits.n_blocks);
    }
}

/* ---- making a chain ---- */

static void flatten_layers(const qb_cuda_decode_model *m, chain *c)
{
    uint32_t slots = 0, rotate = 0;
    for (size_t i = 0; i < m->n_layers; i++) {
        const qb_cuda_decode_layer *in = &m->layers[i];
        qb__decode_layer *out = &c->layers[i];
        const qb_cuda_linear *linears[4] = {&in->qkv, &in->o, &in->up, &in->down};
        for (int j = 0; j < 4; j++)
            qb__decode_flatten(linears[j], &c->limits, &slots, &rotate, &out->linear[j]);
        out->linear[2].paired = m->act == QB_ACT_SWIGLU && m->d_ff % QB__DECODE_TILE == 0 &&
                                in->up.requant == QB_CUDA_REQUANT_NONE;
        out->norm1_gain = in->norm1_gain, out->norm1_bias = in->norm1_bias;
        out->norm2_gain = in->norm2_gain, out->norm2_bias = in->norm2_bias;
        out->k_cache = in->k_cache, out->v_cache = in->v_cache;
    }
    qb__decode_flatten(&m->head, &c->limits, &slots, &rotate, &c->layers[m->n_layers].linear[0]);
    c->layers[m->n_layers].norm1_gain = m->norm_f_gain;
    c->layers[m->n_layers].norm1_bias = m->norm_f_bias;
    c->p.n_max_bits = slots;
}

/* One allocation, cut into 256-byte aligned parts. With base NULL it only counts. */
static size_t cut_scratch(chain *c, char *base)
{
    qb__decode_params *p = &c->p;
    size_t at = 0;
#define CUT(pointer, elems)                                                                        \
    do {                                                                                           \
        if (base) pointer = (void *)(base + at);                                                   \
        at += ((elems) * sizeof *(pointer) + 255) / 256 * 256;                                     \
    } while (0)
    CUT(p->qkv, (size_t)p->qkv_stride);
    CUT(p->o, (size_t)p->o_stride);
    CUT(p->up, (size_t)p->up_stride);
    CUT(p->down, (size_t)p->o_stride);
    CUT(p->att, (size_t)p->n_heads * p->head_dim);
    CUT(p->max_bits, (size_t)p->n_max_bits);
    CUT(c->x[0], (size_t)p->o_stride);
    CUT(c->x[1], (size_t)p->o_stride);
    CUT(c->mean, (size_t)2);
#undef CUT
    return at;
}

void qb__chain_destroy(qb_cuda_decode *decode)
{
    chain *c = (chain *)decode;
    if (!c) return;
    if (c->exec) cudaGraphExecDestroy(c->exec);
    qb_cuda_stream_destroy(c->stream);
    qb_cuda_free(c->scratch_dev);
    qb_free(c->attentions);
    qb_free(c->nodes);
    qb_free(c->layers);
    qb_free(c);
}

static qb_status prepare(const qb_cuda_decode_model *m, chain *c)
{
    QB_TRY(qb__decode_limits_sm90(&c->limits));
    c->limits.chunk_bytes[QB_CUDA_LINEAR_FLOAT] = CHUNK_ROW_BYTES;
    c->limits.chunk_bytes[QB_CUDA_LINEAR_S8] = CHUNK_ROW_BYTES;
    c->limits.chunk_bytes[QB_CUDA_LINEAR_U4] = CHUNK_U4_BYTES;
    qb__decode_set_shape(m, &c->p);
    QB_TRY(QB_NEW_ZERO(&c->layers, m->n_layers + 1, "layers of the decode chain"));
    QB_TRY(QB_NEW_ZERO(&c->nodes, 4 * m->n_layers + 1, "products of the decode chain"));
    QB_TRY(QB_NEW_ZERO(&c->attentions, m->n_layers, "attention of the decode chain"));
    flatten_layers(m, c);
    c->limits.splits = QB__CHAIN_MAX_SPLITS;
    while (c->limits.splits > 1 && c->limits.splits * c->p.n_heads > c->limits.n_blocks)
        c->limits.splits /= 2;
    qb__decode_split(&c->p, &c->limits, 1);
    c->bytes = cut_scratch(c, NULL);
    QB_TRY(qb_cuda_alloc_zero(&c->scratch_dev, c->bytes, 1, "scratch of the decode chain"));
    cut_scratch(c, c->scratch_dev);
    describe(c);
    for (size_t i = 0; i < 4 * m->n_layers + 1; i++)
        QB_TRY(qb__chain_prepare_product(&c->nodes[i].product));
    return qb_cuda_stream_create(&c->stream);
}

const char *qb__chain_refuse(const qb_cuda_decode_model *m)
{
    if (m->max_batch > 1) return "more than one sequence";
    if (m->n_layers == 0) return "no layers";
    if (m->vocab > MAX_VOCAB) return "more than 262144 output channels";
    return qb__decode_refuse(m);
}

qb_status qb__chain_create(const qb_cuda_decode_model *model, qb_cuda_decode **out)
{
    const char *why = qb__chain_refuse(model);
    if (why) return QB_FAIL(QB_ERR_UNSUPPORTED, "decode/chain_sm90: %s", why);
    chain *c;
    QB_TRY(QB_NEW_ZERO(&c, 1, "decode chain"));
    qb_status status = prepare(model, c);
    if (status == QB_OK)
        *out = (qb_cuda_decode *)c;
    else
        qb__chain_destroy((qb_cuda_decode *)c);
    return status;
}

size_t qb__chain_scratch_bytes(const qb_cuda_decode *decode)
{
    return ((const chain *)decode)->bytes;
}

/* ---- a step ---- */

static qb_status queue(const chain *c)
{
    for (uint32_t i = 0; i < 4 * c->p.n_layers + 1; i++) {
        const node *n = &c->nodes[i];
        QB_TRY(
            qb__chain_launch_product(&n->product, n->n_blocks, n->smem_bytes, i == 0, c->stream));
        if (i % 4 == 0 && i / 4 < c->p.n_layers)
            QB_TRY(qb__chain_launch_attention(&c->attentions[i / 4], c->stream));
    }
    if (c->finish.requant.n) QB_TRY(qb__chain_launch_finish(&c->finish, c->stream));
    return QB_OK;
}

static qb_status capture(chain *c)
{
    cudaGraph_t graph = NULL;
    QB_CUDA_TRY(cudaStreamBeginCapture(c->stream, cudaStreamCaptureModeThreadLocal));
    qb_status status = queue(c);
    int code = cudaStreamEndCapture(c->stream, &graph);
    if (status == QB_OK) status = qb_cuda_check(code, "cudaStreamEndCapture");
    if (status == QB_OK)
        status = qb_cuda_check(cudaGraphInstantiate(&c->exec, graph, 0), "cudaGraphInstantiate");
    if (graph) cudaGraphDestroy(graph);
    return status;
}

/* Whether the graph was made for these arguments; else they are set, and the graph is none. */
static bool same_arguments(chain *c, const int32_t *tokens, const int32_t *position, float *hidden,
                           float *logits)
{
    qb__chain_product *first = &c->nodes[0].product, *head = &c->nodes[4 * c->p.n_layers].product;
    if (c->exec && first->token == tokens && first->position == position &&
        head->hidden == hidden && head->y == logits)
        return true;
    if (c->exec) cudaGraphExecDestroy(c->exec);
    c->exec = NULL;
    first->token = tokens, first->position = position;
    head->hidden = hidden, head->y = logits, c->finish.y = logits;
    for (uint32_t i = 0; i < c->p.n_layers; i++) c->attentions[i].p.position = position;
    return false;
}

qb_status qb__chain_step(qb_cuda_decode *decode, size_t batch, const int32_t *tokens_dev,
                         const int32_t *position_dev, float *hidden_dev, float *logits_dev,
                         size_t logits_stride, qb_cuda_stream stream)
{
    (void)logits_stride; /* of one row */
    chain *c = (chain *)decode;
    if (batch != 1) return QB_FAIL(QB_ERR_SHAPE, "decode: found %zu sequences, expected 1", batch);
    if (!same_arguments(c, tokens_dev, position_dev, hidden_dev, logits_dev)) QB_TRY(capture(c));
    QB_CUDA_TRY(cudaGraphLaunch(c->exec, stream));
    return QB_OK;
}
