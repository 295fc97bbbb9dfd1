/* kernels/cuda/decode_plan.c - how the persistent decode kernel cuts its work; host arithmetic
 * only.
 *
 * A product's output channels are cut into tiles of 16, dealt to the blocks in turn; a tile streams
 * through shared memory in chunks of its input channels. What is not the ring of chunks holds the
 * staged input of all sequences, or as much of it as fits (the product then runs in passes). */
#include "kernels/cuda/decode_internal.h"

#include <math.h>
#include <string.h>

/* A group of warps may be up to 6 chunks ahead of another (decode_gemm.cuh). */
enum { DEFAULT_CHUNK_ROW = 1024, DEFAULT_CHUNK_U4 = 16384, MIN_STAGES = 7 };

static uint32_t round_up(uint32_t x, uint32_t to)
{
    return (x + to - 1) / to * to;
}

static const char *refuse_linear(const qb_cuda_linear *l)
{
    if (l->k > QB__DECODE_MAX_K) return "a layer has more than 8192 input channels";
    if (l->kind == QB_CUDA_LINEAR_FLOAT && l->type != QB_CUDA_BF16) return "f32 weights";
    if (l->kind != QB_CUDA_LINEAR_S8 && l->input != QB_STAGE_FLOAT)
        return "quantised activations with float weights";
    if (l->kind == QB_CUDA_LINEAR_S8 && l->input == QB_STAGE_FLOAT)
        return "8-bit weights with float activations";
    if (l->kind == QB_CUDA_LINEAR_U4 && l->u4.n_groups > 1 && l->u4.group % 64)
        return "groups that are not a multiple of 64";
    return NULL;
}

void qb__decode_set_shape(const qb_cuda_decode_model *m, qb__decode_params *p)
{
    p->n_layers = (uint32_t)m->n_layers, p->d_model = (uint32_t)m->d_model;
    p->n_heads = (uint32_t)m->n_heads, p->n_kv_heads = (uint32_t)m->n_kv_heads;
    p->head_dim = (uint32_t)m->head_dim, p->d_ff = (uint32_t)m->d_ff;
    p->vocab = (uint32_t)m->vocab, p->context = (uint32_t)m->context;
    p->norm = m->norm, p->act = m->act, p->softmax = m->softmax;
    p->inverse_d = 1.0f / (float)m->d_model;
    p->eps = m->norm_eps, p->scale = 1.0f / sqrtf((float)m->head_dim);
    p->tok_embd = m->tok_embd, p->pos_embd = m->pos_embd;
    p->table_stride = (uint32_t)m->table_stride;
    p->cosine = m->cosine, p->sine = m->sine;
    p->qkv_stride = (uint32_t)qb_cuda_stride((m->n_heads + 2 * m->n_kv_heads) * m->head_dim);
    p->o_stride = (uint32_t)qb_cuda_stride(m->d_model);
    p->up_stride = (uint32_t)qb_cuda_stride(m->d_ff * (m->act == QB_ACT_SWIGLU ? 2 : 1));
}

void qb__decode_flatten(const qb_cuda_linear *in, const qb__decode_limits *limits,
                        uint32_t *n_slots, uint32_t *rotate, qb__decode_linear *out)
{
    memset(out, 0, sizeof *out);
    const bool u4 = in->kind == QB_CUDA_LINEAR_U4;
    const uint32_t elem_bytes = in->kind == QB_CUDA_LINEAR_S8 ? 1 : 2;
    out->w = u4 ? (const void *)in->u4.codes : in->w;
    out->w_scale = u4 ? in->u4.scale : in->w_scale;
    out->zero_point = u4 ? in->u4.zero_point : NULL;
    out->x_scale = u4 ? in->u4.x_scale : NULL;
    out->x_zero_point = u4 ? in->u4.x_zero_point : NULL;
    out->bias = in->bias, out->in_scale = in->in_scale, out->out_scale = in->out_scale;
    out->n = (uint32_t)in->n, out->k = (uint32_t)in->k;
    uint32_t k_pad = u4 ? (uint32_t)in->u4.k_pad : (uint32_t)qb_cuda_stride(in->k);
    out->row_bytes = u4 ? 0 : (uint32_t)in->w_stride * elem_bytes;
    out->tile_bytes = u4 ? k_pad * 8 : out->row_bytes * QB__DECODE_TILE;
    uint32_t streamed = u4 ? out->tile_bytes : k_pad * elem_bytes;
    uint32_t most = limits->chunk_bytes[in->kind];
    if (!most) most = u4 ? DEFAULT_CHUNK_U4 : DEFAULT_CHUNK_ROW;
    out->chunk_bytes = streamed < most ? streamed : most;
    out->n_chunks = (streamed + out->chunk_bytes - 1) / out->chunk_bytes;
    out->x_bytes = k_pad * elem_bytes;
    out->x_chunk = u4 ? out->chunk_bytes / 4 : out->chunk_bytes;
    if (u4 && in->u4.n_groups > 1)
        out->group = (uint32_t)in->u4.group, out->n_pad = (uint32_t)in->u4.n_pad;
    out->n_tiles = (out->n + QB__DECODE_TILE - 1) / QB__DECODE_TILE;
    out->rotate = *rotate;
    *rotate = (*rotate + out->n_tiles) % limits->n_blocks;
    out->seg_n = in->segments.n > 0 ? in->segments.n : 1;
    for (int i = 0; i < out->seg_n; i++)
        out->seg_end[i] = in->segments.n > 0 ? in->segments.end[i] : (int32_t)in->n;
    out->kind = (uint8_t)in->kind, out->input = (uint8_t)in->input;
    out->requant = (uint8_t)in->requant;
    out->slot = *n_slots;
    *n_slots += QB__DECODE_SLOTS;
}

/* Largest chunk of any layer in a stage, and the largest staged row. */
typedef struct widest {
    uint32_t row_chunk, u4_chunk, x_bytes, x_chunk;
} widest;

static void widen(widest *w, const qb__decode_linear *l)
{
    uint32_t *chunk = l->kind == QB_CUDA_LINEAR_U4 ? &w->u4_chunk : &w->row_chunk;
    uint32_t bytes = l->chunk_bytes;
    if (l->group) bytes += (l->chunk_bytes / 8 / l->group + 2) * QB__DECODE_GROUP_BYTES;
    if (bytes > *chunk) *chunk = bytes;
    if (l->x_bytes > w->x_bytes) w->x_bytes = l->x_bytes;
    if (l->x_chunk > w->x_chunk) w->x_chunk = l->x_chunk;
}

/* Rows 64 bytes beside a multiple of 128, so that 8 lanes of two rows meet distinct banks. */
static uint32_t padded(uint32_t row_bytes)
{
    return round_up(row_bytes, 128) + 64;
}

static qb__decode_divisor divisor_of(uint32_t d)
{
    return (qb__decode_divisor){d == 1 ? 0 : (uint32_t)((((uint64_t)1 << 32) + d - 1) / d)};
}

static void set_divisors(qb__decode_params *p)
{
    p->repeat = p->n_heads / p->n_kv_heads;
    p->lanes_shift = 0;
    while ((8u << p->lanes_shift) < p->head_dim) p->lanes_shift++;
    p->by_splits = divisor_of(p->n_splits), p->by_heads = divisor_of(p->n_heads);
    p->by_head_dim = divisor_of(p->head_dim), p->by_repeat = divisor_of(p->repeat);
    p->by_lines = divisor_of((p->head_dim * 2 + 127) / 128 * 2);
}

void qb__decode_split(qb__decode_params *p, const qb__decode_limits *limits, uint32_t batch)
{
    p->batch = batch;
    p->n_blocks = limits->n_blocks;
    uint32_t splits = limits->splits;
    if (!splits) {
        splits = limits->n_blocks / (batch * p->n_heads);
        if (splits < 1) splits = 1;
        if (splits > QB__DECODE_MAX_SPLITS) splits = QB__DECODE_MAX_SPLITS;
    }
    p->n_splits = splits;
    set_divisors(p);
}

/* The parts of params that depend on the batch; false if shared memory is too small. */
static bool cut_memory(qb__decode_params *p, const widest *widths, const qb__decode_limits *limits,
                       uint32_t batch)
{
    const widest w = *widths;
    qb__decode_split(p, limits, batch);
    p->row_pitch = padded(w.row_chunk);
    p->stage_bytes = p->row_pitch * QB__DECODE_TILE;
    if (w.u4_chunk > p->stage_bytes || w.row_chunk == 0) p->stage_bytes = w.u4_chunk;
    p->stage_bytes = round_up(p->stage_bytes, 128);
    p->x_row_off = QB__DECODE_HEADER_BYTES + QB__DECODE_RED_BYTES;
    p->x_off = round_up(p->x_row_off + p->d_model * 4, 128);
    /* All of the staged rows if the ring then keeps its least, else what that leaves. */
    const uint32_t ring = MIN_STAGES * p->stage_bytes, all = batch * padded(w.x_bytes);
    const uint32_t used = p->x_off + ring, free = limits->smem_bytes;
    p->x_space = used < free ? (free - used) / 128 * 128 : 0;
    if (p->x_space > all) p->x_space = round_up(all, 128);
    p->ring_off = p->x_off + p->x_space;
    if (p->x_space < batch * padded(w.x_chunk) || (batch == 1 && p->x_space < all)) return false;
    p->n_stages = (limits->smem_bytes - p->ring_off) / p->stage_bytes;
    if (p->n_stages > QB__DECODE_MAX_STAGES) p->n_stages = QB__DECODE_MAX_STAGES;
    p->smem_bytes = p->ring_off + p->n_stages * p->stage_bytes;
    p->by_stages = divisor_of(p->n_stages);
    return true;
}

qb_status qb__decode_plan(qb__decode_params *p, const qb__decode_layer *layers,
                          const qb__decode_limits *limits, uint32_t batch)
{
    widest w = {0};
    for (uint32_t i = 0; i < p->n_layers; i++)
        for (int j = 0; j < 4; j++) widen(&w, &layers[i].linear[j]);
    widen(&w, &layers[p->n_layers].linear[0]);
    if (!cut_memory(p, &w, limits, batch))
        return QB_FAIL(QB_ERR_UNSUPPORTED, "decode: %u bytes of shared memory are too few",
                       limits->smem_bytes);
    return QB_OK;
}

/* Whether the largest batch fits into the shared memory of compute capability 9.0. */
static bool fits(const qb_cuda_decode_model *m)
{
    const qb__decode_limits limits = {.n_blocks = 1, .smem_bytes = 227 << 10};
    qb__decode_params p = {.d_model = (uint32_t)m->d_model};
    p.n_heads = (uint32_t)m->n_heads, p.n_kv_heads = (uint32_t)m->n_kv_heads;
    p.head_dim = (uint32_t)m->head_dim;
    widest w = {0};
    for (size_t i = 0; i <= m->n_layers; i++) {
        const qb_cuda_decode_layer *l = &m->layers[i < m->n_layers ? i : 0];
        const qb_cuda_linear *all[] = {&l->qkv, &l->o, &l->up, &l->down};
        for (size_t j = 0; j < QB_COUNT(all); j++) {
            qb__decode_linear flat;
            uint32_t slots = 0, rotate = 0;
            qb__decode_flatten(i < m->n_layers ? all[j] : &m->head, &limits, &slots, &rotate,
                               &flat);
            widen(&w, &flat);
        }
    }
    return cut_memory(&p, &w, &limits, (uint32_t)m->max_batch);
}

const char *qb__decode_refuse(const qb_cuda_decode_model *m)
{
    if (m->max_batch > QB_CUDA_DECODE_MAX_BATCH) return "more than 16 sequences";
    if (m->head_dim % 8 || m->head_dim > 256) return "head_dim is not a multiple of 8 up to 256";
    if (m->softmax > QB_SOFTMAX_RELU) return "the softmax is clipped or has sink logits";
    if (m->d_model > 8192) return "d_model is larger than 8192";
    if (m->n_kv_heads == 0 || m->n_heads % m->n_kv_heads) return "n_heads % n_kv_heads != 0";
    const char *why = refuse_linear(&m->head);
    for (size_t i = 0; i < m->n_layers && !why; i++) {
        const qb_cuda_decode_layer *l = &m->layers[i];
        const qb_cuda_linear *all[] = {&l->qkv, &l->o, &l->up, &l->down};
        for (size_t j = 0; j < QB_COUNT(all) && !why; j++) why = refuse_linear(all[j]);
    }
    return why ? why : fits(m) ? NULL : "staged rows of the largest batch exceed shared memory";
}
