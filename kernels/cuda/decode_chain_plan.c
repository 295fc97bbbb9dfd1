/* kernels/cuda/decode_chain_plan.c - how the decode chain cuts its work; host arithmetic only.
 *
 * A product's output channels are cut into tiles of 16, dealt to the blocks in runs; a tile streams
 * through shared memory in chunks of its input channels. Before the ring of chunks stand the staged
 * input and the sums of the block's tiles. */
#include "kernels/cuda/decode_chain.h"

#include <string.h>

/* Of a block's shared memory: two kernels of the chain share a multiprocessor, and with 4-bit
 * weights attention's beside them. */
enum { BUDGET_BYTES = 112 << 10, BUDGET_U4_BYTES = 100 << 10, MIN_SLOTS = 2 };
enum { MAX_TILES = 128 }; /* of a block: their sums still fit beside two chunks */
enum { CHUNK_ROW_BYTES = 2048, CHUNK_U4_BYTES = 16384 };

static uint32_t round_up(uint32_t x, uint32_t to)
{
    return (x + to - 1) / to * to;
}

/* ---- what is refused ---- */

static const char *refuse_linear(const qb_cuda_linear *l)
{
    if (l->k > QB__CHAIN_MAX_K) return "a layer has more than 8192 input channels";
    if (l->kind == QB_CUDA_LINEAR_FLOAT && l->type != QB_CUDA_BF16) return "f32 weights";
    if (l->kind != QB_CUDA_LINEAR_S8 && l->input != QB_STAGE_FLOAT)
        return "quantised activations with float weights";
    if (l->kind == QB_CUDA_LINEAR_S8 && l->input == QB_STAGE_FLOAT)
        return "8-bit weights with float activations";
    if (l->kind == QB_CUDA_LINEAR_U4 && l->u4.n_groups > 1 && l->u4.group % 64)
        return "groups that are not a multiple of 64";
    return NULL;
}

const char *qb__chain_refuse(const qb_cuda_decode_model *m)
{
    if (m->n_layers == 0) return "no layers";
    if (m->head_dim % 8 || m->head_dim > 256) return "head_dim is not a multiple of 8 up to 256";
    if (m->softmax > QB_SOFTMAX_RELU) return "the softmax is clipped or has sink logits";
    if (m->n_kv_heads == 0 || m->n_heads % m->n_kv_heads) return "n_heads % n_kv_heads != 0";
    const char *why = refuse_linear(&m->head);
    for (size_t i = 0; i < m->n_layers && !why; i++) {
        const qb_cuda_decode_layer *l = &m->layers[i];
        const qb_cuda_linear *all[] = {&l->qkv, &l->o, &l->up, &l->down};
        for (size_t j = 0; j < QB_COUNT(all) && !why; j++) why = refuse_linear(all[j]);
    }
    return why;
}

/* ---- layers ---- */

void qb__chain_flatten(const qb_cuda_linear *in, uint32_t *n_maxima, qb__chain_linear *out)
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
    out->tile_bytes = u4 ? k_pad * 8 : out->row_bytes * QB__CHAIN_TILE;
    uint32_t streamed = u4 ? out->tile_bytes : k_pad * elem_bytes;
    uint32_t most = u4 ? CHUNK_U4_BYTES : CHUNK_ROW_BYTES;
    out->chunk_bytes = streamed < most ? streamed : most;
    out->n_chunks = (streamed + out->chunk_bytes - 1) / out->chunk_bytes;
    out->x_bytes = k_pad * elem_bytes;
    out->x_chunk = u4 ? out->chunk_bytes / 4 : out->chunk_bytes;
    if (u4 && in->u4.n_groups > 1)
        out->group = (uint32_t)in->u4.group, out->n_pad = (uint32_t)in->u4.n_pad;
    out->n_tiles = (out->n + QB__CHAIN_TILE - 1) / QB__CHAIN_TILE;
    out->seg_n = in->segments.n > 0 ? in->segments.n : 1;
    for (int i = 0; i < out->seg_n; i++)
        out->seg_end[i] = in->segments.n > 0 ? in->segments.end[i] : (int32_t)in->n;
    out->kind = (uint8_t)in->kind, out->input = (uint8_t)in->input;
    out->requant = (uint8_t)in->requant;
    out->slot = *n_maxima;
    *n_maxima += QB__CHAIN_MAXIMA;
}

static qb__chain_divisor divisor_of(uint32_t d)
{
    return (qb__chain_divisor){d == 1 ? 0 : (uint32_t)((((uint64_t)1 << 32) + d - 1) / d)};
}

void qb__chain_split(qb__chain_attention *a, uint32_t n_sms)
{
    a->n_splits = QB__CHAIN_MAX_SPLITS;
    while (a->n_splits > 1 && a->n_splits * a->n_heads > n_sms) a->n_splits /= 2;
    a->repeat = a->n_heads / a->n_kv_heads;
    a->lanes_shift = 0;
    while ((8u << a->lanes_shift) < a->head_dim) a->lanes_shift++;
    a->by_splits = divisor_of(a->n_splits), a->by_repeat = divisor_of(a->repeat);
    a->by_lines = divisor_of((a->head_dim * 2 + 127) / 128 * 2);
}

/* ---- shared memory and blocks of a product ---- */

/* Cuts the input channels into n_ranks equal parts of whole chunks; false if they do not divide. */
static bool cut_ranks(qb__chain_product *p, uint32_t n_ranks)
{
    qb__chain_linear *l = &p->l;
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

/* Whether a block can stage a part of the input without the rest, and clusters of such blocks have
 * room for the output channels. */
static bool can_share(const qb__chain_product *p, uint32_t n_sms)
{
    return p->plain && p->source == QB__CHAIN_ACT && !p->l.paired && !p->l.group &&
           (p->l.kind != QB_CUDA_LINEAR_S8 || p->in_max) && p->l.k > QB__CHAIN_CONSUMERS &&
           p->l.n_tiles <= n_sms / QB__CHAIN_MAX_RANKS * QB__CHAIN_MAX_RANKS *
                               (QB__CHAIN_OWN_ROWS / QB__CHAIN_TILE);
}

/* Tiles of a block, of a paired layer pairs: blocks are as few as have no more tiles than one of
 * them must have, and as many as have room for their sums. */
static uint32_t tiles_of_block(const qb__chain_product *p, uint32_t units, uint32_t n_sms)
{
    const uint32_t n = n_sms / p->n_ranks, each = (units + n - 1) / n;
    const uint32_t most = (uint32_t)MAX_TILES >> p->l.paired;
    return each < most ? each : most;
}

/* Rows of one-byte and two-byte weights are a copy each: more of them are better fetched by a warp
 * that has nothing else to do. */
static bool is_whole(const qb__chain_product *p, uint32_t tiles)
{
    const uint32_t most = p->l.kind == QB_CUDA_LINEAR_U4 ? 2048 : 1024;
    return p->plain && !p->l.group && p->l.k / p->n_ranks <= most && p->rank_chunks == 1 &&
           p->n_slots == tiles;
}

void qb__chain_cut(qb__chain_product *p, uint32_t n_sms)
{
    const qb__chain_linear *l = &p->l;
    const uint32_t units = l->n_tiles >> l->paired;
    p->n_ranks = 1, p->rank_chunks = l->n_chunks;
    if (can_share(p, n_sms)) cut_ranks(p, QB__CHAIN_MAX_RANKS);
    const uint32_t each = tiles_of_block(p, units, n_sms), most = each << l->paired;
    p->n_blocks = (units + each - 1) / each * p->n_ranks;
    /* rows 64 bytes beside a multiple of 128, so that 8 lanes of two rows meet distinct banks */
    p->pitch = round_up(l->chunk_bytes, 128) + 64;
    p->slot_bytes = l->row_bytes ? p->pitch * QB__CHAIN_TILE : l->chunk_bytes;
    if (l->group) p->slot_bytes += (l->chunk_bytes / 8 / l->group + 2) * QB__CHAIN_GROUP_BYTES;
    p->slot_bytes = round_up(p->slot_bytes, 128);
    const uint32_t x_bytes = p->n_ranks == 1 ? l->x_bytes : p->rank_chunks * l->x_chunk;
    p->sums_off = QB__CHAIN_HEADER_BYTES + round_up(x_bytes, 128);
    p->ranks_off = p->sums_off + most * QB__CHAIN_WARPS * QB__CHAIN_TILE * 4;
    p->ring_off = p->ranks_off + (p->n_ranks == 1 ? 0 : p->n_ranks * QB__CHAIN_OWN_ROWS * 4);
    const uint32_t budget = l->kind == QB_CUDA_LINEAR_U4 ? BUDGET_U4_BYTES : BUDGET_BYTES;
    p->n_slots = p->ring_off < budget ? (budget - p->ring_off) / p->slot_bytes : 0;
    if (p->n_slots < MIN_SLOTS) p->n_slots = MIN_SLOTS;
    if (p->n_slots > QB__CHAIN_MAX_SLOTS) p->n_slots = QB__CHAIN_MAX_SLOTS;
    if (p->n_slots > most * p->rank_chunks) p->n_slots = most * p->rank_chunks;
    p->whole = is_whole(p, most);
    p->smem_bytes = p->ring_off + p->n_slots * p->slot_bytes;
}
