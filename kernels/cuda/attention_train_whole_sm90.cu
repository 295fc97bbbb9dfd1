/* kernels/cuda/attention_train_whole_sm90.cu - the gradients of attention over several hundred
 * tokens with heads of 64: two tiles of keys at a time, so that the scores are made once.
 *
 * Against two tiles of keys come all tiles of queries that see them, the last first. What earlier
 * keys gave to dq waits in global memory, a block's own, which stays in the L2 cache: no sum
 * crosses blocks, and its order is that of the keys. delta is kept for the next keys. Roles, rings
 * and barriers: attention_train_blocks_sm90.cuh. */
#include "kernels/cuda/attention_train_blocks_sm90.cuh"

#include <algorithm>

using namespace attention_train;

namespace
{

constexpr int KEY_SLOTS = 2 * OWNERS;
constexpr int SUM_FLOAT4S = ROWS * DIM / 4; /* of a tile of dq */

struct whole_params {
    static constexpr int KEY_SLOTS = ::KEY_SLOTS;
    CUtensorMap q, k, v, out, d_out;
    const float *lse;
    float *lse2, *delta; /* (items, stats_stride): query_stats */
    float4 *sums;        /* (blocks, n_tiles, SUM_FLOAT4S): dq so far, each thread's own */
    __nv_bfloat16 *d_q, *d_k, *d_v;
    size_t d_qkv_stride;
    int n_tokens, n_tiles, n_heads, n_items, stats_stride; /* items: heads of all sequences */
    float scale;
    bool relu;
};
typedef head_block<whole_params> block;

/* Where a role is: keys `first` and, where there are such, first + 1 of a head; tiles of queries
 * n_tiles - 1 down to first. Counts of what went before say which slots are in turn. */
struct place {
    const whole_params &p;
    int item, first = 0;
    uint32_t keys_used = 0, queries_used = 0;

    __device__ explicit place(const whole_params &params) : p(params), item((int)blockIdx.x)
    {
    }
    __device__ bool none() const
    {
        return item >= p.n_items;
    }
    __device__ int n_keys() const
    {
        return min(OWNERS, p.n_tiles - first);
    }
    __device__ uint32_t query(int i) const
    {
        return queries_used + p.n_tiles - 1 - i;
    }
    __device__ void step()
    {
        keys_used += n_keys();
        queries_used += p.n_tiles - first;
        first += OWNERS;
        if (first >= p.n_tiles) first = 0, item += (int)gridDim.x;
    }
    __device__ int head() const
    {
        return item % p.n_heads;
    }
    __device__ int sequence() const
    {
        return item / p.n_heads;
    }
    /* Of a tile's first row, in a gradient. */
    __device__ size_t row(int tile) const
    {
        return ((size_t)sequence() * p.n_tokens + tile * ROWS) * p.d_qkv_stride + head() * DIM;
    }
};

/* ---- loads ---- */

__device__ void feed(const block &b)
{
    for (place at(b.p); !at.none(); at.step()) {
        for (int j = 0; j < at.n_keys(); j++) {
            const turn<KEY_SLOTS> to(at.keys_used + j);
            qb_mbar_wait_block(b.bar(block::KEYS_EMPTY + to.slot), to.parity ^ 1);
            load_pair(b.keys(to.slot), b.bar(block::KEYS_FULL + to.slot), &b.p.k, &b.p.v, at.head(),
                      at.first + j, at.sequence());
        }
        for (int i = b.p.n_tiles - 1; i >= at.first; i--) {
            const turn<QUERY_SLOTS> to(at.query(i));
            qb_mbar_wait_block(b.bar(block::QUERIES_EMPTY + to.slot), to.parity ^ 1);
            load_pair(b.queries(to.slot), b.bar(block::QUERIES_FULL + to.slot), &b.p.q, &b.p.d_out,
                      at.head(), i, at.sequence());
        }
    }
}

__device__ void feed_out(const block &b)
{
    uint32_t used = 0;
    for (place at(b.p); !at.none(); at.step()) {
        if (at.first) continue;
        for (int i = b.p.n_tiles - 1; i >= 0; i--, used++) {
            const turn<OUT_SLOTS> to(used);
            const uint32_t full = b.bar(block::OUT_FULL + to.slot);
            qb_mbar_wait_block(b.bar(block::OUT_EMPTY + to.slot), to.parity ^ 1);
            qb_mbar_expect(full, TILE_BYTES);
            qb_tma_load_4d(b.out(to.slot), &b.p.out, full, 0, at.head(), i * ROWS, at.sequence());
        }
    }
}

/* ---- delta ---- */

/* A thread a row: statistics of its query, made with the first keys, read again with the others. */
__device__ void make_stats(const block &b, int row)
{
    const whole_params &p = b.p;
    uint32_t out_used = 0;
    for (place at(p); !at.none(); at.step())
        for (int i = p.n_tiles - 1; i >= at.first; i--) {
            const turn<QUERY_SLOTS> slot(at.query(i));
            const int query = i * ROWS + row;
            const size_t kept = (size_t)at.item * p.stats_stride + query;
            float2 two;
            if (at.first == 0) {
                const turn<OUT_SLOTS> out(out_used++);
                const bool valid = query < p.n_tokens;
                const float lse =
                    valid && !p.relu ? p.lse[(size_t)at.item * p.n_tokens + query] : 0;
                qb_mbar_wait_block(b.bar(block::QUERIES_FULL + slot.slot), slot.parity);
                qb_mbar_wait_block(b.bar(block::OUT_FULL + out.slot), out.parity);
                const float delta = delta_of(
                    (const char *)__cvta_shared_to_generic(b.out(out.slot)),
                    (const char *)__cvta_shared_to_generic(b.queries(slot.slot) + TILE_BYTES), row);
                two = query_stats(p.relu, valid, query, lse, delta);
                p.lse2[kept] = two.x, p.delta[kept] = two.y;
                __syncwarp();
                if (row % 32 == 0) qb_mbar_arrive(b.bar(block::OUT_EMPTY + out.slot));
            } else {
                two = make_float2(p.lse2[kept], p.delta[kept]);
                qb_mbar_wait_block(b.bar(block::QUERIES_FULL + slot.slot), slot.parity);
            }
            float *stats = (float *)__cvta_shared_to_generic(b.stats(slot.slot));
            stats[row] = two.x;
            stats[ROWS + row] = two.y;
            qb_mbar_arrive(b.bar(block::STATS_FULL + slot.slot));
        }
}

/* ---- p, ds, dv, dk ---- */

struct owner {
    const block &b;
    const int wg;
    const bool leader; /* of its warp */
    uint32_t ds_used;
    int unreleased; /* barrier to arrive at once the products under way are done, or -1 */

    __device__ __forceinline__ void release()
    {
        if (leader && unreleased >= 0) qb_mbar_arrive(b.bar(unreleased));
        unreleased = -1;
    }
    /* Everything of the key tile j. */
    __device__ __forceinline__ void key_tile(const place &at, int j)
    {
        const whole_params &p = b.p;
        const turn<KEY_SLOTS> k_at(at.keys_used + wg);
        float dk[32], dv[32];
        clear(dk);
        clear(dv);
        qb_mbar_wait_block(b.bar(block::KEYS_FULL + k_at.slot), k_at.parity);
#pragma unroll 1
        for (int i = p.n_tiles - 1; i >= j; i--) {
            const turn<QUERY_SLOTS> q_at(at.query(i));
            const ds_turn to(wg, ds_used++);
            const meeting m = {b.keys(k_at.slot),
                               b.queries(q_at.slot),
                               b.stats(q_at.slot),
                               b.bar(block::QUERIES_FULL + q_at.slot),
                               b.bar(block::STATS_FULL + q_at.slot),
                               q_at.parity,
                               b.ds(to.slot),
                               b.bar(block::DS_FULL + to.slot),
                               b.bar(block::DS_EMPTY + to.slot),
                               to.parity};
            meet(dk, dv, m, p.scale, p.relu, i == j, [&] { release(); });
            unreleased = block::QUERIES_EMPTY + q_at.slot;
        }
        qb_wgmma_wait<0>();
        pin(dk);
        pin(dv);
        release();
        if (leader) qb_mbar_arrive(b.bar(block::KEYS_EMPTY + k_at.slot));
        store_rows(dk, p.scale, p.d_k + at.row(j), p.d_qkv_stride, p.n_tokens - j * ROWS);
        store_rows(dv, 1, p.d_v + at.row(j), p.d_qkv_stride, p.n_tokens - j * ROWS);
    }
};

__device__ void own_keys(const block &b, int wg)
{
    owner o = {b, wg, threadIdx.x % 32 == 0, 0, -1};
    for (place at(b.p); !at.none(); at.step()) {
        const int j = at.first + wg;
        if (wg < at.n_keys()) o.key_tile(at, j);
        for (int i = min(j, b.p.n_tiles) - 1; i >= at.first; i--) { /* see none of its keys */
            const turn<QUERY_SLOTS> q_at(at.query(i));
            qb_mbar_wait_block(b.bar(block::QUERIES_FULL + q_at.slot), q_at.parity);
            if (o.leader) qb_mbar_arrive(b.bar(block::QUERIES_EMPTY + q_at.slot));
        }
    }
}

/* ---- dq ---- */

__device__ __forceinline__ void load_sums(float (&dq)[32], const float4 *from)
{
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const float4 x = __ldcg(from + i * 128);
        dq[4 * i] = x.x, dq[4 * i + 1] = x.y, dq[4 * i + 2] = x.z, dq[4 * i + 3] = x.w;
    }
}
__device__ __forceinline__ void store_sums(const float (&dq)[32], float4 *to)
{
#pragma unroll
    for (int i = 0; i < 8; i++)
        __stcg(to + i * 128, make_float4(dq[4 * i], dq[4 * i + 1], dq[4 * i + 2], dq[4 * i + 3]));
}

__device__ void sum_queries(const block &b)
{
    const whole_params &p = b.p;
    const bool leader = threadIdx.x % 128 == 0;
    uint32_t ds_used[OWNERS] = {0, 0};
    for (place at(p); !at.none(); at.step()) {
        for (int j = 0; j < at.n_keys(); j++) {
            const turn<KEY_SLOTS> k_at(at.keys_used + j);
            qb_mbar_wait_block(b.bar(block::KEYS_FULL + k_at.slot), k_at.parity);
        }
        for (int i = p.n_tiles - 1; i >= at.first; i--) {
            float4 *sums =
                p.sums + ((size_t)blockIdx.x * p.n_tiles + i) * SUM_FLOAT4S + threadIdx.x % 128;
            float dq[32];
            if (at.first)
                load_sums(dq, sums);
            else
                clear(dq);
#pragma unroll
            for (int wg = 0; wg < OWNERS; wg++) {
                if (wg >= at.n_keys() || at.first + wg > i) continue;
                const ds_turn from(wg, ds_used[wg]++);
                qb_mbar_wait_block(b.bar(block::DS_FULL + from.slot), from.parity);
                qb_wgmma_fence();
                start_dq(dq, b.ds(from.slot), b.keys(turn<KEY_SLOTS>(at.keys_used + wg).slot));
                qb_wgmma_commit();
                qb_wgmma_wait<0>();
                pin(dq);
                if (leader) qb_mbar_arrive(b.bar(block::DS_EMPTY + from.slot));
            }
            if (i < at.first + OWNERS) /* these queries see no later keys */
                store_rows(dq, p.scale, p.d_q + at.row(i), p.d_qkv_stride, p.n_tokens - i * ROWS);
            else
                store_sums(dq, sums);
        }
        for (int j = 0; leader && j < at.n_keys(); j++)
            qb_mbar_arrive(b.bar(block::KEYS_EMPTY + turn<KEY_SLOTS>(at.keys_used + j).slot));
    }
}

__global__ void __launch_bounds__(THREADS, 1) backward_whole(const __grid_constant__ whole_params p)
{
    run_block(p);
}

} // namespace

const char *qb__attention_train_refuse_whole(const qb_cuda_attention_train_args *args)
{
    if (args->n_tokens > QB__ATTENTION_TRAIN_WHOLE) return "more than 640 tokens a sequence";
    if (const char *why = refuse_head(args)) return why;
    /* whole heads keep all blocks busy where they are many, or nearly so in each round */
    const size_t items = args->batch * args->n_heads, blocks = QB__ATTENTION_TRAIN_BLOCKS;
    const size_t rounds = (items + blocks - 1) / blocks;
    return 4 * items >= 3 * rounds * blocks ? NULL : "too few heads";
}

size_t qb__attention_train_whole_workspace(const qb_cuda_attention_train_args *a)
{
    const size_t n_tiles = (a->n_tokens + ROWS - 1) / ROWS, items = a->batch * a->n_heads;
    if (a->head_dim != DIM || a->n_tokens > QB__ATTENTION_TRAIN_WHOLE) return 0;
    return std::min<size_t>(items, QB__ATTENTION_TRAIN_BLOCKS) * n_tiles * SUM_FLOAT4S *
           sizeof(float4);
}

qb_status qb__attention_train_backward_whole(const qb_cuda_attention_train_args *a,
                                             qb_cuda_stream stream)
{
    whole_params p = {};
    QB_TRY(set_params(a, &p));
    p.stats_stride = p.n_tiles * ROWS;
    p.lse2 = (float *)a->workspace;
    p.delta = p.lse2 + (size_t)p.n_items * p.stats_stride;
    p.sums = (float4 *)(p.delta + (size_t)p.n_items * p.stats_stride);
    return launch(backward_whole, p, std::min(p.n_items, QB__ATTENTION_TRAIN_BLOCKS), stream);
}
