/* kernels/cuda/attention_train_short_sm90.cu - the gradients of attention over at most 256 tokens
 * with heads of 64: everything is read once, the scores are made once and no sum crosses blocks.
 *
 * There are n <= 4 tiles. Owners have the key tiles 0 and 3, 1 and 2, and meet queries from the
 * diagonal on; a head's loads and the stores of the one before run beside the products: memory sets
 * the pace. Roles, rings and barriers: attention_train_blocks_sm90.cuh. */
#include "kernels/cuda/attention_train_blocks_sm90.cuh"

using namespace attention_train;

namespace
{

constexpr int TILES = QB__ATTENTION_TRAIN_SHORT / ROWS, KEY_SLOTS = 6;

struct short_params {
    static constexpr int KEY_SLOTS = ::KEY_SLOTS;
    CUtensorMap q, k, v, out, d_out;
    const float *lse;
    __nv_bfloat16 *d_q, *d_k, *d_v;
    size_t d_qkv_stride;
    int n_tokens, n_tiles, n_heads, n_items; /* items: heads of all sequences */
    float scale;
    bool relu;
};
typedef head_block<short_params> block;

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
/* ---- loads ---- */

__device__ void feed(const block &b)
{
    const int n = b.p.n_tiles;
    uint32_t used = 0; /* tiles of queries, and of keys, of the items before */
    for (int item = (int)blockIdx.x; item < b.p.n_items; item += (int)gridDim.x, used += n) {
        auto keys = [&](int j) {
            const turn<KEY_SLOTS> at(used + j);
            qb_mbar_wait_block(b.bar(block::KEYS_EMPTY + at.slot), at.parity ^ 1);
            load_pair(b.keys(at.slot), b.bar(block::KEYS_FULL + at.slot), &b.p.k, &b.p.v,
                      item % b.p.n_heads, j, item / b.p.n_heads);
        };
        for (int j = 0; j < min(n, 2); j++) keys(j);
        for (int i = 0; i < n; i++) {
            const turn<QUERY_SLOTS> at(used + i);
            qb_mbar_wait_block(b.bar(block::QUERIES_EMPTY + at.slot), at.parity ^ 1);
            load_pair(b.queries(at.slot), b.bar(block::QUERIES_FULL + at.slot), &b.p.q, &b.p.d_out,
                      item % b.p.n_heads, i, item / b.p.n_heads);
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
            const uint32_t full = b.bar(block::OUT_FULL + at.slot);
            qb_mbar_wait_block(b.bar(block::OUT_EMPTY + at.slot), at.parity ^ 1);
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
            qb_mbar_wait_block(b.bar(block::QUERIES_FULL + at.slot), at.parity);
            qb_mbar_wait_block(b.bar(block::OUT_FULL + out_at.slot), out_at.parity);
            const float delta = delta_of(
                (const char *)__cvta_shared_to_generic(b.out(out_at.slot)),
                (const char *)__cvta_shared_to_generic(b.queries(at.slot)) + TILE_BYTES, row);
            float *stats = (float *)__cvta_shared_to_generic(b.stats(at.slot));
            const float2 two = query_stats(p.relu, valid, query, lse, delta);
            stats[row] = two.x;
            stats[ROWS + row] = two.y;
            qb_mbar_arrive(b.bar(block::STATS_FULL + at.slot));
            __syncwarp();
            if (row % 32 == 0) qb_mbar_arrive(b.bar(block::OUT_EMPTY + out_at.slot));
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
                           b.bar(block::QUERIES_FULL + q_at.slot),
                           b.bar(block::STATS_FULL + q_at.slot),
                           q_at.parity,
                           b.ds(to.slot),
                           b.bar(block::DS_FULL + to.slot),
                           b.bar(block::DS_EMPTY + to.slot),
                           to.parity};
        meet(dk, dv, m, b.p.scale, b.p.relu, i == j, [&] { release(); });
        /* the last of this warpgroup's tiles that these queries meet */
        if (j != wg || i < second_tile(wg)) unreleased = block::QUERIES_EMPTY + q_at.slot;
    }
    /* Everything of key tile j. */
    __device__ __forceinline__ void key_tile(int item, int j)
    {
        float dk[32], dv[32];
        const turn<KEY_SLOTS> k_at(used + j);
        clear(dk);
        clear(dv);
        qb_mbar_wait_block(b.bar(block::KEYS_FULL + k_at.slot), k_at.parity);
        for (int i = j; i < n; i++) pair(dk, dv, i, j, b.keys(k_at.slot));
        qb_wgmma_wait<0>();
        pin(dk);
        pin(dv);
        release();
        if (leader) qb_mbar_arrive(b.bar(block::KEYS_EMPTY + k_at.slot));
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
            qb_mbar_wait_block(b.bar(block::QUERIES_FULL + at.slot), at.parity);
            if (o.leader) qb_mbar_arrive(b.bar(block::QUERIES_EMPTY + at.slot));
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
            qb_mbar_wait_block(b.bar(block::KEYS_FULL + diagonal.slot), diagonal.parity);
            for (int j = 0; j <= i; j++) {
                const int wg = owner_of(j), key_slot = turn<KEY_SLOTS>(used + j).slot;
                const ds_turn at(wg, (wg ? used1 : used0) + ds_place(wg, n, i, j));
                qb_mbar_wait_block(b.bar(block::DS_FULL + at.slot), at.parity);
                qb_wgmma_fence();
                start_dq(dq, b.ds(at.slot), b.keys(key_slot));
                qb_wgmma_commit();
                qb_wgmma_wait<0>();
                pin(dq);
                if (leader) qb_mbar_arrive(b.bar(block::DS_EMPTY + at.slot));
                if (leader && i == n - 1) qb_mbar_arrive(b.bar(block::KEYS_EMPTY + key_slot));
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

__global__ void __launch_bounds__(THREADS, 1) backward_short(const __grid_constant__ short_params p)
{
    run_block(p);
}

} // namespace

const char *qb__attention_train_refuse_short(const qb_cuda_attention_train_args *args)
{
    if (args->n_tokens > QB__ATTENTION_TRAIN_SHORT) return "more than 256 tokens a sequence";
    return refuse_head(args);
}

qb_status qb__attention_train_backward_short(const qb_cuda_attention_train_args *a,
                                             qb_cuda_stream stream)
{
    short_params p = {};
    QB_TRY(set_params(a, &p));
    return launch(backward_short, p, p.n_items, stream);
}
