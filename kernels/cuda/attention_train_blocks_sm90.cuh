/* kernels/cuda/attention_train_blocks_sm90.cuh - what the backward kernels share in which a block
 * takes a whole head of 64: their shared memory, barriers, roles and arguments.
 *
 * Tokens are cut into tiles of 64. Roles of a block's four warpgroups:
 *   0, 1  own tiles of keys: for each tile of queries they make p and ds, transposed, in registers,
 *         add to dv and dk, and leave ds in shared memory;
 *   2     makes dq of each tile of queries from the ds of both;
 *   3     feeds tiles through the copy engine and makes delta.
 * The tiles are rings, refilled as soon as all readers are through. A kernel is its type of
 * arguments P, which says how many slots keys have and holds at least what set_params sets, and its
 * feed, feed_out, make_stats, own_keys and sum_queries of a head_block<P>. */
#ifndef QB_KERNELS_CUDA_ATTENTION_TRAIN_BLOCKS_SM90_CUH
#define QB_KERNELS_CUDA_ATTENTION_TRAIN_BLOCKS_SM90_CUH

#include "kernels/cuda/attention_train_sm90.cuh"

namespace attention_train
{

constexpr int DIM = 64, OWNERS = 2, TILE_BYTES = ROWS * DIM * 2, STATS_BYTES = ROWS * 4;
/* The last warpgroup's threads: one that feeds queries and keys, one a row of a tile, one that
 * feeds out. */
constexpr int THREADS = 512, FEEDER = 384, FIRST_ROW = 416, OUT_FEEDER = FIRST_ROW + ROWS;
constexpr int OWNER_REGS = 200, DQ_REGS = 72, FEED_REGS = 40;

/* Pairs of tiles: q and d_out of the same queries, k and v of the same keys. Tiles of out. Tiles of
 * ds by the warpgroup that makes them. */
constexpr int QUERY_SLOTS = 4, OUT_SLOTS = 2, DS_SLOTS_EACH = 3, DS_SLOTS = OWNERS * DS_SLOTS_EACH;

template <int KEY_SLOTS> struct layout {
    static constexpr int QUERIES_AT = 0, KEYS_AT = QUERIES_AT + QUERY_SLOTS * 2 * TILE_BYTES,
                         OUT_AT = KEYS_AT + KEY_SLOTS * 2 * TILE_BYTES,
                         DS_AT = OUT_AT + OUT_SLOTS * TILE_BYTES,
                         STATS_AT = DS_AT + DS_SLOTS * TILE_BYTES,
                         BARS_AT = STATS_AT + QUERY_SLOTS * 2 * STATS_BYTES;
    /* Barriers, by place. */
    enum {
        QUERIES_FULL = 0,
        QUERIES_EMPTY = QUERIES_FULL + QUERY_SLOTS,
        KEYS_FULL = QUERIES_EMPTY + QUERY_SLOTS,
        KEYS_EMPTY = KEYS_FULL + KEY_SLOTS,
        OUT_FULL = KEYS_EMPTY + KEY_SLOTS,
        OUT_EMPTY = OUT_FULL + OUT_SLOTS,
        STATS_FULL = OUT_EMPTY + OUT_SLOTS, /* of a slot of queries, with which it is emptied */
        DS_FULL = STATS_FULL + QUERY_SLOTS,
        DS_EMPTY = DS_FULL + DS_SLOTS,
        N_BARS = DS_EMPTY + DS_SLOTS
    };
    static constexpr int SMEM_BYTES = BARS_AT + 8 * N_BARS;
    static_assert(SMEM_BYTES <= 227 * 1024, "shared memory");
};

template <class P> struct head_block : layout<P::KEY_SLOTS> {
    typedef layout<P::KEY_SLOTS> at;
    const P &p;
    uint32_t smem;

    __device__ head_block(const P &params, uint32_t base) : p(params), smem(base)
    {
    }
    __device__ uint32_t bar(int i) const
    {
        return smem + at::BARS_AT + 8 * i;
    }
    __device__ uint32_t queries(int slot) const /* q, then d_out */
    {
        return smem + at::QUERIES_AT + slot * 2 * TILE_BYTES;
    }
    __device__ uint32_t keys(int slot) const /* k, then v */
    {
        return smem + at::KEYS_AT + slot * 2 * TILE_BYTES;
    }
    __device__ uint32_t out(int slot) const
    {
        return smem + at::OUT_AT + slot * TILE_BYTES;
    }
    __device__ uint32_t ds(int slot) const
    {
        return smem + at::DS_AT + slot * TILE_BYTES;
    }
    /* query_stats of a slot of queries: the first of all rows, then the second. */
    __device__ uint32_t stats(int slot) const
    {
        return smem + at::STATS_AT + slot * 2 * STATS_BYTES;
    }
    __device__ void init(int first, int count, uint32_t arrivals) const
    {
        for (int i = 0; i < count; i++) qb_mbar_init(bar(first + i), arrivals);
    }
    __device__ void init_barriers() const
    {
        init(at::QUERIES_FULL, QUERY_SLOTS, 1);
        init(at::QUERIES_EMPTY, QUERY_SLOTS, 4 * OWNERS); /* warps of the owners */
        init(at::KEYS_FULL, P::KEY_SLOTS, 1);
        init(at::KEYS_EMPTY, P::KEY_SLOTS, 5); /* those of one, and dq's warpgroup */
        init(at::OUT_FULL, OUT_SLOTS, 1);
        init(at::OUT_EMPTY, OUT_SLOTS, 2);
        /* each for its row: racecheck does not see that __syncwarp orders them before one's */
        init(at::STATS_FULL, QUERY_SLOTS, ROWS);
        init(at::DS_FULL, DS_SLOTS, 4); /* warps of an owner */
        init(at::DS_EMPTY, DS_SLOTS, 1);
        qb_mbar_init_fence();
    }
};

/* The n-th ds tile of a warpgroup. */
struct ds_turn : turn<DS_SLOTS_EACH> {
    __device__ ds_turn(int wg, uint32_t n) : turn<DS_SLOTS_EACH>(n)
    {
        slot += wg * DS_SLOTS_EACH;
    }
};

/* Two tiles of 64 tokens of a head. */
static __device__ void load_pair(uint32_t to, uint32_t full, const CUtensorMap *first,
                                 const CUtensorMap *second, int head, int tile, int sequence)
{
    qb_mbar_expect(full, 2 * TILE_BYTES);
    qb_tma_load_4d(to, first, full, 0, head, tile * ROWS, sequence);
    qb_tma_load_4d(to + TILE_BYTES, second, full, 0, head, tile * ROWS, sequence);
}

/* Of a row of tiles. */
static __device__ __forceinline__ float delta_of(const char *out, const char *d_out, int row)
{
    float delta = 0;
#pragma unroll 1
    for (int chunk = 0; chunk < 8; chunk++) {
        const int from = row * 128 + (chunk ^ row % 8) * 16;
        delta += dot8(*(const uint4 *)(out + from), *(const uint4 *)(d_out + from));
    }
    return delta;
}

/* What a kernel does. */
template <class P> __device__ __forceinline__ void run_block(const P &p)
{
    extern __shared__ char raw[];
    const head_block<P> b(p, qb_smem(raw));
    const int wg = __shfl_sync(~0u, threadIdx.x / 128, 0);
    if (threadIdx.x == 0) b.init_barriers();
    if (b.smem % 1024) __trap(); /* nothing static stands before it */
    __syncthreads();
    if (wg == 3) {
        qb_regs_give<FEED_REGS>();
        if (threadIdx.x == FEEDER) feed(b);
        if (threadIdx.x == OUT_FEEDER) feed_out(b);
        if (threadIdx.x >= FIRST_ROW && threadIdx.x < OUT_FEEDER)
            make_stats(b, threadIdx.x - FIRST_ROW);
    } else if (wg == 2) {
        qb_regs_give<DQ_REGS>();
        sum_queries(b);
    } else {
        qb_regs_take<OWNER_REGS>();
        own_keys(b, wg);
    }
}

/* ---- on the host ---- */

static inline const char *refuse_head(const qb_cuda_attention_train_args *args)
{
    if (args->head_dim != DIM) return "head_dim is not 64";
    return args->n_heads != args->n_kv_heads ? "heads share keys" : NULL;
}

/* All that both kernels are given. */
template <class P> static qb_status set_params(const qb_cuda_attention_train_args *a, P *p)
{
    qb__head_map_args map = {
        a->q, DIM, a->n_heads, a->n_tokens, a->batch, a->qkv_stride, a->n_tokens * a->qkv_stride,
        ROWS};
    QB_TRY(qb__head_map(&p->q, &map));
    map.base = a->k;
    QB_TRY(qb__head_map(&p->k, &map));
    map.base = a->v;
    QB_TRY(qb__head_map(&p->v, &map));
    map.base = a->d_out, map.stride = a->d_out_stride;
    map.batch_stride = a->n_tokens * a->d_out_stride;
    QB_TRY(qb__head_map(&p->d_out, &map));
    map.base = a->out, map.stride = a->out_stride;
    map.batch_stride = a->n_tokens * a->out_stride;
    QB_TRY(qb__head_map(&p->out, &map));
    p->lse = a->lse;
    p->d_q = (__nv_bfloat16 *)a->d_q, p->d_k = (__nv_bfloat16 *)a->d_k;
    p->d_v = (__nv_bfloat16 *)a->d_v, p->d_qkv_stride = a->d_qkv_stride;
    p->n_tokens = (int)a->n_tokens, p->n_tiles = (p->n_tokens + ROWS - 1) / ROWS;
    p->n_heads = (int)a->n_heads, p->n_items = (int)(a->n_heads * a->batch);
    p->scale = a->scale, p->relu = a->softmax == QB_SOFTMAX_RELU;
    return QB_OK;
}

/* A block a multiprocessor, or fewer. */
template <class P>
static qb_status launch(void (*kernel)(const P), const P &p, int most_blocks, qb_cuda_stream stream)
{
    const int smem_bytes = layout<P::KEY_SLOTS>::SMEM_BYTES;
    int device, n_blocks;
    QB_CUDA_TRY(cudaGetDevice(&device));
    QB_CUDA_TRY(cudaDeviceGetAttribute(&n_blocks, cudaDevAttrMultiProcessorCount, device));
    QB_CUDA_TRY(
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, smem_bytes));
    if (n_blocks > most_blocks) n_blocks = most_blocks;
    kernel<<<(unsigned)n_blocks, THREADS, smem_bytes, stream>>>(p);
    QB_CUDA_TRY(cudaGetLastError());
    return QB_OK;
}

} // namespace attention_train

#endif
