/* kernels/cuda/attention_train_short_sm90.cu - the gradients of attention over at most 256 tokens
 * with heads of 64: a block takes a whole head, so that everything is read once, the scores are
 * made once and no sum crosses blocks.
 *
 * Tokens are cut into n <= 4 tiles of 64. Roles of a block's four warpgroups:
 *   0, 1  own the key tiles 0 and 3, 1 and 2: for each tile of queries from the diagonal on they
 *         make p and ds, transposed, in registers, add to dv and dk, and leave ds in shared memory;
 *   2     makes dq of each tile of queries from the ds of all keys;
 *   3     feeds tiles through the copy engine and makes delta.
 * The tiles are rings, refilled as soon as all readers are through, so that a head's loads and the
 * stores of the one before run beside the products: memory sets the pace. */
#include "kernels/cuda/attention_train_sm90.cuh"

using namespace attention_train;

namespace
{

constexpr int DIM = 64, TILES = QB__ATTENTION_TRAIN_SHORT / ROWS, TILE_BYTES = ROWS * DIM * 2;
/* Pairs of tiles: q and d_out of the same queries, k and v of the same keys. Tiles of out. Tiles of
 * ds by the warpgroup that makes them. */
constexpr int QUERY_SLOTS = 4, KEY_SLOTS = 6, OUT_SLOTS = 2, DS_SLOTS_EACH = 3,
              DS_SLOTS = 2 * DS_SLOTS_EACH;
constexpr int QUERIES_AT = 0, KEYS_AT = QUERIES_AT + QUERY_SLOTS * 2 * TILE_BYTES,
              OUT_AT = KEYS_AT + KEY_SLOTS * 2 * TILE_BYTES,
              DS_AT = OUT_AT + OUT_SLOTS * TILE_BYTES, STATS_AT = DS_AT + DS_SLOTS * TILE_BYTES,
              STATS_BYTES = ROWS * 4, BARS_AT = STATS_AT + QUERY_SLOTS * 2 * STATS_BYTES;

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
constexpr int SMEM_BYTES = BARS_AT + 8 * N_BARS;
static_assert(SMEM_BYTES <= 227 * 1024, "shared memory");

/* The last warpgroup's threads: one that feeds queries and keys, one a row of a tile, one that
 * feeds out. */
constexpr int THREADS = 512, FEEDER = 384, FIRST_ROW = 416, OUT_FEEDER = FIRST_ROW + ROWS;
constexpr int OWNER_REGS = 200, DQ_REGS = 72, FEED_REGS = 40;

struct short_params {
    CUtensorMap q, k, v, out, d_out;
    const float *lse;
    __nv_bfloat16 *d_q, *d_k, *d_v;
    size_t d_qkv_stride;
    int n_tokens, n_tiles, n_heads, n_items; /* items: heads of all sequences */
    float scale;
    bool relu;
};

struct block {
    const short_params &p;
    uint32_t smem;

    __device__ uint32_t bar(int i) const
    {
        return smem + BARS_AT + 8 * i;
    }
    __device__ uint32_t queries(int slot) const /* q, then d_out */
    {
        return smem + QUERIES_AT + slot * 2 * TILE_BYTES;
    }
    __device__ uint32_t keys(int slot) const /* k, then v */
    {
        return smem + KEYS_AT + slot * 2 * TILE_BYTES;
    }
    __device__ uint32_t out(int slot) const
    {
        return smem + OUT_AT + slot * TILE_BYTES;
    }
    __device__ uint32_t ds(int slot) const
    {
        return smem + DS_AT + slot * TILE_BYTES;
    }
    /* query_stats of a slot of queries: the first of all rows, then the second. */
    __device__ uint32_t stats(int slot) const
    {
        return smem + STATS_AT + slot * 2 * STATS_BYTES;
    }
};

/* Which warpgroup owns a key tile, and which of its two it is. */
__device__ __forceinline__ int owner_of(int key_tile)
{
    return key_tile == 1 || key_tile == 2;
}
__device__ __forceinline__ int second_tile(int wg)
{
    return 3 - wg;
}
/* ds tiles that a warpgroup makes of a head of n tiles; the place of (query tile i, key tile j). */
__device__ __forceinline__ int ds_count(int wg, int n)
{
    return max(n - wg, 0) + max(n - second_tile(wg), 0);
}
__device__ __forceinline__ int ds_place(int wg, int n, int i, int j)
{
    return i - j + (j == wg ? 0 : n - wg);
}
/* The n-th ds tile of a warpgroup. */
struct ds_turn : turn<DS_SLOTS_EACH> {
    __device__ ds_turn(int wg, uint32_t n) : turn<DS_SLOTS_EACH>(n)
    {
        slot += wg * DS_SLOTS_EACH;
    }
};

/* ---- loads ---- */

__device__ void load_pair(const block &b, uint32_t to, uint32_t full, const CUtensorMap *first,
                          const CUtensorMap *second, int item, int tile)
{
    const int h = item % b.p.n_heads, sequence = item / b.p.n_heads;
    qb_mbar_expect(full, 2 * TILE_BYTES);
    qb_tma_load_4d(to, first, full, 0, h, tile * ROWS, sequence);
    qb_tma_load_4d(to + TILE_BYTES, second, full, 0, h, tile * ROWS, sequence);
}

__device__ void feed(const block &b)
{
    const int n = b.p.n_tiles;
    uint32_t used = 0; /* tiles of queries, and of keys, of the items before */
    for (int item = (int)blockIdx.x; item < b.p.n_items; item += (int)gridDim.x, used += n) {
        auto keys = [&](int j) {
            const turn<KEY_SLOTS> at(used + j);
            qb_mbar_wait_block(b.bar(KEYS_EMPTY + at.slot), at.parity ^ 1);
            load_pair(b, b.keys(at.slot), b.bar(KEYS_FULL + at.slot), &b.p.k, &b.p.v, item, j);
        };
        for (int j = 0; j < min(n, 2); j++) keys(j);
        for (int i = 0; i < n; i++) {
            const turn<QUERY_SLOTS> at(used + i);
            qb_mbar_wait_block(b.bar(QUERIES_EMPTY + at.slot), at.parity ^ 1);
            load_pair(b, b.queries(at.slot), b.bar(QUERIES_FULL + at.slot), &b.p.q, &b.p.d_out,
                      item, i);
        }
        for (int j = 2; j < n; j++) keys(j);
    }
}

__device__ void feed_out(const block &b)
{
    uint32_t used = 0;
    for (int item = (int)blockIdx.x; item < b.p.n_items; item += (int)gridDim.x)
        for (int i = 0; i < b.p.n_tiles; i++, used++) {
            const turn<OUT_SLOTS> at(used);
            const uint32_t full = b.bar(OUT_FULL + at.slot);
            qb_mbar_wait_block(b.bar(OUT_EMPTY + at.slot), at.parity ^ 1);
            qb_mbar_expect(full, TILE_BYTES);
            qb_tma_load_4d(b.out(at.slot), &b.p.out, full, 0, item % b.p.n_heads, i * ROWS,
                           item / b.p.n_heads);
        }
}

/* ---- delta ---- */

/* A thread a row. */
__device__ void make_stats(const block &b, int row)
{
    const short_params &p = b.p;
    uint32_t used = 0;
    for (int item = (int)blockIdx.x; item < p.n_items; item += (int)gridDim.x)
        for (int i = 0; i < p.n_tiles; i++, used++) {
            const turn<QUERY_SLOTS> at(used);
            const turn<OUT_SLOTS> out_at(used);
            const int query = i * ROWS + row;
            const bool valid = query < p.n_tokens;
            const float lse = valid && !p.relu ? p.lse[(size_t)item * p.n_tokens + query] : 0;
            float delta = 0;
            qb_mbar_wait_block(b.bar(QUERIES_FULL + at.slot), at.parity);
            qb_mbar_wait_block(b.bar(OUT_FULL + out_at.slot), out_at.parity);
            const char *out = (const char *)__cvta_shared_to_generic(b.out(out_at.slot)),
                       *d_out =
                           (const char *)__cvta_shared_to_generic(b.queries(at.slot)) + TILE_BYTES;
#pragma unroll 1
            for (int chunk = 0; chunk < 8; chunk++) {
                const int from = row * 128 + (chunk ^ row % 8) * 16;
                delta += dot8(*(const uint4 *)(out + from), *(const uint4 *)(d_out + from));
            }
            float *stats = (float *)__cvta_shared_to_generic(b.stats(at.slot));
            const float2 two = query_stats(p.relu, valid, query, lse, delta);
            stats[row] = two.x;
            stats[ROWS + row] = two.y;
            __syncwarp();
            if (row % 32 == 0) {
                qb_mbar_arrive(b.bar(OUT_EMPTY + out_at.slot));
                qb_mbar_arrive(b.bar(STATS_FULL + at.slot));
            }
        }
}

/* ---- p, ds, dv, dk ---- */

struct owner {
    const block &b;
    const int wg, n;
    const bool leader;      /* of its warp */
    uint32_t used, ds_used; /* tiles of the items before */
    int unreleased;         /* barrier to arrive at once the products under way are done, or -1 */

    __device__ __forceinline__ void release()
    {
        if (leader && unreleased >= 0) qb_mbar_arrive(b.bar(unreleased));
        unreleased = -1;
    }
    /* Query tile i against key tile j, whose k and v lie at `keys`. */
    __device__ __forceinline__ void pair(float (&dk)[32], float (&dv)[32], int i, int j,
                                         uint32_t keys)
    {
        const turn<QUERY_SLOTS> q_at(used + i);
        const ds_turn to(wg, ds_used + ds_place(wg, n, i, j));
        const meeting m = {keys,
                           b.queries(q_at.slot),
                           b.stats(q_at.slot),
                           b.bar(QUERIES_FULL + q_at.slot),
                           b.bar(STATS_FULL + q_at.slot),
                           q_at.parity,
                           b.ds(to.slot),
                           b.bar(DS_FULL + to.slot),
                           b.bar(DS_EMPTY + to.slot),
                           to.parity};
        meet(dk, dv, m, b.p.scale, b.p.relu, i == j, [&] { release(); });
        /* the last of this warpgroup's tiles that these queries meet */
        if (j != wg || i < second_tile(wg)) unreleased = QUERIES_EMPTY + q_at.slot;
    }
    /* Everything of key tile j. */
    __device__ __forceinline__ void key_tile(int item, int j)
    {
        float dk[32], dv[32];
        const turn<KEY_SLOTS> k_at(used + j);
        clear(dk);
        clear(dv);
        qb_mbar_wait_block(b.bar(KEYS_FULL + k_at.slot), k_at.parity);
        for (int i = j; i < n; i++) pair(dk, dv, i, j, b.keys(k_at.slot));
        qb_wgmma_wait<0>();
        pin(dk);
        pin(dv);
        release();
        if (leader) qb_mbar_arrive(b.bar(KEYS_EMPTY + k_at.slot));
        const short_params &p = b.p;
        const size_t row = (size_t)(item / p.n_heads) * p.n_tokens + j * ROWS,
                     at = row * p.d_qkv_stride + item % p.n_heads * DIM;
        store_rows(dk, p.scale, p.d_k + at, p.d_qkv_stride, p.n_tokens - j * ROWS);
        store_rows(dv, 1, p.d_v + at, p.d_qkv_stride, p.n_tokens - j * ROWS);
    }
};

__device__ void own_keys(const block &b, int wg)
{
    const int n = b.p.n_tiles;
    owner o = {b, wg, n, threadIdx.x % 32 == 0, 0, 0, -1};
    for (int item = (int)blockIdx.x; item < b.p.n_items; item += (int)gridDim.x) {
        if (wg == 1) { /* its keys come after the first queries; it must not run ahead of them */
            const turn<QUERY_SLOTS> at(o.used);
            qb_mbar_wait_block(b.bar(QUERIES_FULL + at.slot), at.parity);
            if (o.leader) qb_mbar_arrive(b.bar(QUERIES_EMPTY + at.slot));
        }
#pragma unroll 1
        for (int j = wg; j < n; j = j == wg ? second_tile(wg) : TILES) o.key_tile(item, j);
        o.used += n;
        o.ds_used += ds_count(wg, n);
    }
}

/* ---- dq ---- */

__device__ void sum_queries(const block &b)
{
    const short_params &p = b.p;
    const int n = p.n_tiles;
    const bool leader = threadIdx.x % 128 == 0;
    uint32_t used = 0, used0 = 0, used1 = 0; /* of keys; of ds by warpgroup */
    for (int item = (int)blockIdx.x; item < p.n_items; item += (int)gridDim.x) {
        for (int i = 0; i < n; i++) {
            float dq[32];
            clear(dq);
            const turn<KEY_SLOTS> diagonal(used + i);
            qb_mbar_wait_block(b.bar(KEYS_FULL + diagonal.slot), diagonal.parity);
            for (int j = 0; j <= i; j++) {
                const int wg = owner_of(j), key_slot = turn<KEY_SLOTS>(used + j).slot;
                const ds_turn at(wg, (wg ? used1 : used0) + ds_place(wg, n, i, j));
                qb_mbar_wait_block(b.bar(DS_FULL + at.slot), at.parity);
                qb_wgmma_fence();
                start_dq(dq, b.ds(at.slot), b.keys(key_slot));
                qb_wgmma_commit();
                qb_wgmma_wait<0>();
                pin(dq);
                if (leader) qb_mbar_arrive(b.bar(DS_EMPTY + at.slot));
                if (leader && i == n - 1) qb_mbar_arrive(b.bar(KEYS_EMPTY + key_slot));
            }
            const size_t row = (size_t)(item / p.n_heads) * p.n_tokens + i * ROWS;
            store_rows(dq, p.scale, p.d_q + row * p.d_qkv_stride + item % p.n_heads * DIM,
                       p.d_qkv_stride, p.n_tokens - i * ROWS);
        }
        used += n;
        used0 += ds_count(0, n);
        used1 += ds_count(1, n);
    }
}

__device__ void init_barriers(const block &b)
{
    auto init = [&](int first, int count, uint32_t arrivals) {
        for (int i = 0; i < count; i++) qb_mbar_init(b.bar(first + i), arrivals);
    };
    init(QUERIES_FULL, QUERY_SLOTS, 1);
    init(QUERIES_EMPTY, QUERY_SLOTS, 8); /* warps of the owners */
    init(KEYS_FULL, KEY_SLOTS, 1);
    init(KEYS_EMPTY, KEY_SLOTS, 5); /* those of one, and dq's warpgroup */
    init(OUT_FULL, OUT_SLOTS, 1);
    init(OUT_EMPTY, OUT_SLOTS, 2);
    init(STATS_FULL, QUERY_SLOTS, 2);
    init(DS_FULL, DS_SLOTS, 4); /* warps of an owner */
    init(DS_EMPTY, DS_SLOTS, 1);
    qb_mbar_init_fence();
}

__global__ void __launch_bounds__(THREADS, 1) backward_short(const __grid_constant__ short_params p)
{
    extern __shared__ char raw[];
    const block b = {p, qb_smem(raw)};
    const int wg = __shfl_sync(~0u, threadIdx.x / 128, 0);
    if (threadIdx.x == 0) init_barriers(b);
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

} // namespace

const char *qb__attention_train_refuse_short(const qb_cuda_attention_train_args *args)
{
    if (args->head_dim != DIM) return "head_dim is not 64";
    if (args->n_tokens > QB__ATTENTION_TRAIN_SHORT) return "more than 256 tokens a sequence";
    if (args->n_heads != args->n_kv_heads) return "heads share keys";
    return NULL;
}

qb_status qb__attention_train_backward_short(const qb_cuda_attention_train_args *a,
                                             qb_cuda_stream stream)
{
    short_params p = {};
    qb__head_map_args map = {
        a->q, DIM, a->n_heads, a->n_tokens, a->batch, a->qkv_stride, a->n_tokens * a->qkv_stride,
        ROWS};
    QB_TRY(qb__head_map(&p.q, &map));
    map.base = a->k;
    QB_TRY(qb__head_map(&p.k, &map));
    map.base = a->v;
    QB_TRY(qb__head_map(&p.v, &map));
    map.base = a->d_out, map.stride = a->d_out_stride;
    map.batch_stride = a->n_tokens * a->d_out_stride;
    QB_TRY(qb__head_map(&p.d_out, &map));
    map.base = a->out, map.stride = a->out_stride;
    map.batch_stride = a->n_tokens * a->out_stride;
    QB_TRY(qb__head_map(&p.out, &map));
    p.lse = a->lse;
    p.d_q = (__nv_bfloat16 *)a->d_q, p.d_k = (__nv_bfloat16 *)a->d_k;
    p.d_v = (__nv_bfloat16 *)a->d_v, p.d_qkv_stride = a->d_qkv_stride;
    p.n_tokens = (int)a->n_tokens, p.n_tiles = (p.n_tokens + ROWS - 1) / ROWS;
    p.n_heads = (int)a->n_heads, p.n_items = (int)(a->n_heads * a->batch);
    p.scale = a->scale, p.relu = a->softmax == QB_SOFTMAX_RELU;
    int device, n_sms;
    QB_CUDA_TRY(cudaGetDevice(&device));
    QB_CUDA_TRY(cudaDeviceGetAttribute(&n_sms, cudaDevAttrMultiProcessorCount, device));
    QB_CUDA_TRY(cudaFuncSetAttribute(backward_short, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                     SMEM_BYTES));
    int n_blocks = p.n_items < n_sms ? p.n_items : n_sms;
    backward_short<<<(unsigned)n_blocks, THREADS, SMEM_BYTES, stream>>>(p);
    QB_CUDA_TRY(cudaGetLastError());
    return QB_OK;
}
