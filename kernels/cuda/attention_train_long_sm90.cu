/* kernels/cuda/attention_train_long_sm90.cu - the gradients of attention over any number of tokens,
 * heads of 64 and 128, keys shared by heads.
 *
 * Two passes of one kernel, each of which owns rows, streams the other side past them and keeps all
 * its sums in registers, so that no sum crosses blocks; the scores are made twice.
 *     queries: owns q, d_out, streams k, v:  s = q k^T,   dp = d_out v^T,   dq += ds k
 *     keys:    owns k, v, streams q, d_out:  s^T = k q^T, dp^T = v d_out^T, dk += ds^T q,
 *              dv += p^T d_out
 * With x1, x2 what is owned and y1, y2 what passes by, both are s = x1 y1^T, dp = x2 y2^T,
 * sum1 += ds y1, sum2 += p y2. The first pass makes delta and leaves it for the second.
 *
 * A block stays on its SM: one warp feeds rings of owned and of passing tiles through the copy
 * engine, two warpgroups of 64 owned rows each multiply. Owned tiles with the longest way to go
 * come first. */
#include "kernels/cuda/attention_train_sm90.cuh"

using namespace attention_train;

namespace
{

enum side { KEYS, QUERIES };

template <side SIDE_, int DIM_, int PASSING_, int STAGES_> struct config {
    static constexpr side SIDE = SIDE_;
    static constexpr int DIM = DIM_, PASSING = PASSING_, STAGES = STAGES_; /* PASSING: tokens */
    static constexpr int WGS = 2, OWNED = WGS * ROWS, OWNED_SLOTS = 2, BLOCKS = DIM / 64;
    static constexpr int X_BYTES = OWNED * DIM * 2, Y_BYTES = PASSING * DIM * 2;
    static constexpr int STATS_BYTES = SIDE == KEYS ? 2 * PASSING * 4 : 0; /* of a stage */
    static constexpr int Y_AT = OWNED_SLOTS * 2 * X_BYTES, STATS_AT = Y_AT + STAGES * 2 * Y_BYTES,
                         BARS_AT = STATS_AT + STAGES * STATS_BYTES;
    static constexpr int SMEM_BYTES = BARS_AT + 8 * 2 * (OWNED_SLOTS + STAGES) + 1024;
    static constexpr int THREADS = 128 * (WGS + 1),
                         MULTIPLY_REGS = SIDE == KEYS && DIM == 128 ? 240 : 232,
                         FEED_REGS = 504 - WGS * MULTIPLY_REGS;
    static_assert(SMEM_BYTES <= 227 * 1024, "shared memory");
};

struct long_params {
    CUtensorMap x1, x2, y1, y2; /* (batch, token, head, dimension) */
    float *lse2, *delta;        /* (batch, n_heads, stats_stride): query_stats */
    const float *lse;           /* as the forward pass left it */
    const __nv_bfloat16 *out;
    size_t out_stride;
    __nv_bfloat16 *sum1, *sum2;
    size_t sum_stride;
    int n_tokens, stats_stride, n_heads, n_kv_heads;
    int n_owners, n_tiles, n_items; /* heads of all sequences that own, owned tiles of each */
    float scale;
    bool relu;
};

/* ---- the order of work ---- */

/* What a block does in a round: an owned tile, and the passing tiles that it meets, which are those
 * from `first` to `end` of each of n_heads heads. */
template <class C> struct work {
    int b, owner, head, n_heads, row, first, end;
    bool none;

    __device__ work(const long_params &p, int round)
    {
        int turn = round & 1 ? (int)(gridDim.x - 1 - blockIdx.x) : (int)blockIdx.x;
        int item = round * (int)gridDim.x + turn, group = p.n_heads / p.n_kv_heads;
        int owners = C::SIDE == KEYS ? p.n_kv_heads : p.n_heads;
        int tile = item / p.n_owners; /* longest first */
        none = item >= p.n_items;
        b = item % p.n_owners / owners;
        owner = item % p.n_owners % owners;
        if (C::SIDE == KEYS) {
            row = tile * C::OWNED;
            head = owner * group, n_heads = group;
            first = row / C::PASSING, end = (p.n_tokens + C::PASSING - 1) / C::PASSING;
        } else {
            row = (p.n_tiles - 1 - tile) * C::OWNED;
            head = owner / group, n_heads = 1;
            first = 0, end = (min(row + C::OWNED, p.n_tokens) + C::PASSING - 1) / C::PASSING;
        }
    }
};

template <class C> struct block {
    const long_params &p;
    uint32_t smem;

    __device__ uint32_t x(int slot) const /* x1, then x2 */
    {
        return smem + slot * 2 * C::X_BYTES;
    }
    __device__ uint32_t y(int stage) const
    {
        return smem + C::Y_AT + stage * 2 * C::Y_BYTES;
    }
    __device__ uint32_t stats(int stage) const /* lse2, then delta */
    {
        return smem + C::STATS_AT + stage * C::STATS_BYTES;
    }
    __device__ uint32_t x_full(int slot) const
    {
        return smem + C::BARS_AT + 8 * slot;
    }
    __device__ uint32_t x_empty(int slot) const
    {
        return x_full(C::OWNED_SLOTS + slot);
    }
    __device__ uint32_t y_full(int stage) const
    {
        return x_full(2 * C::OWNED_SLOTS + stage);
    }
    __device__ uint32_t y_empty(int stage) const
    {
        return y_full(C::STAGES + stage);
    }
};

/* ---- the warp that loads ---- */

template <class C> __device__ void feed(const block<C> &k)
{
    const long_params &p = k.p;
    ring<C::OWNED_SLOTS> x_at;
    ring<C::STAGES> y_at;
    for (int round = 0;; round++, x_at.step()) {
        const work<C> w(p, round);
        if (w.none) return;
        const uint32_t x_full = k.x_full(x_at.slot);
        qb_mbar_wait_block(k.x_empty(x_at.slot), x_at.parity ^ 1);
        qb_mbar_expect(x_full, 2 * C::X_BYTES);
#pragma unroll 1
        for (int i = 0; i < C::WGS * C::BLOCKS; i++) {
            const uint32_t to = k.x(x_at.slot) + i * ROWS * 128;
            const int d = i % C::BLOCKS * 64, row = w.row + i / C::BLOCKS * ROWS;
            qb_tma_load_4d(to, &p.x1, x_full, d, w.owner, row, w.b);
            qb_tma_load_4d(to + C::X_BYTES, &p.x2, x_full, d, w.owner, row, w.b);
        }
#pragma unroll 1
        for (int h = w.head; h < w.head + w.n_heads; h++)
#pragma unroll 1
            for (int t = w.first; t < w.end; t++, y_at.step()) {
                const uint32_t full = k.y_full(y_at.slot), to = k.y(y_at.slot);
                qb_mbar_wait_block(k.y_empty(y_at.slot), y_at.parity ^ 1);
                qb_mbar_expect(full, 2 * C::Y_BYTES + C::STATS_BYTES);
#pragma unroll 1
                for (int i = 0; i < C::BLOCKS; i++) {
                    const uint32_t part = to + i * C::PASSING * 128;
                    qb_tma_load_4d(part, &p.y1, full, 64 * i, h, t * C::PASSING, w.b);
                    qb_tma_load_4d(part + C::Y_BYTES, &p.y2, full, 64 * i, h, t * C::PASSING, w.b);
                }
                if (C::SIDE == QUERIES) continue;
                const size_t at = ((size_t)w.b * p.n_heads + h) * p.stats_stride + t * C::PASSING;
                const uint32_t stats = k.stats(y_at.slot);
                qb_bulk_load(stats, p.lse2 + at, full, C::STATS_BYTES / 2);
                qb_bulk_load(stats + C::STATS_BYTES / 2, p.delta + at, full, C::STATS_BYTES / 2);
            }
    }
}

/* ---- the warpgroups that multiply ---- */

template <class C> struct multiplier {
    const block<C> &k;
    const int wg;
    const bool leader; /* of its warp, whose ordinary reads it answers for as well */
    ring<C::OWNED_SLOTS> x_at;
    ring<C::STAGES> y_at;
    int unreleased; /* stage that the products under way read, or -1 */

    __device__ __forceinline__ void release()
    {
        if (leader && unreleased >= 0) qb_mbar_arrive(k.y_empty(unreleased));
        unreleased = -1;
    }
    template <class V>
    __device__ __forceinline__ void step(float (&sum1)[C::DIM / 2], float (&sum2)[C::DIM / 2],
                                         V lse2, V delta, bool masked, int ahead)
    {
        float s[C::PASSING / 2], dp[C::PASSING / 2];
        uint32_t a[C::PASSING / 4], c[C::PASSING / 4];
        const uint32_t x = k.x(x_at.slot) + wg * ROWS * C::DIM * 2, y = k.y(y_at.slot);
        qb_wgmma_fence();
        start_scores<C::DIM, C::PASSING>(s, x, y);
        qb_wgmma_commit();
        start_scores<C::DIM, C::PASSING>(dp, x + C::X_BYTES, y + C::Y_BYTES);
        qb_wgmma_commit();
        qb_wgmma_wait<1>();
        pin(s);
        release();
        make_p(s, lse2, k.p.scale, k.p.relu, masked, ahead);
        if (C::SIDE == KEYS) {
            pack_p<C::PASSING>(s, a);
            qb_wgmma_fence();
            start_values<C::DIM, C::PASSING>(sum2, a, y + C::Y_BYTES);
            qb_wgmma_commit();
            qb_wgmma_wait<1>();
        } else
            qb_wgmma_wait<0>();
        pin(dp);
        make_ds(dp, s, delta, k.p.relu);
        qb_wgmma_wait<0>(); /* a's registers are free for c */
        pack_p<C::PASSING>(dp, c);
        qb_wgmma_fence();
        start_values<C::DIM, C::PASSING>(sum1, c, y);
        qb_wgmma_commit();
        unreleased = y_at.slot;
    }
};

/* Half a row of out, and lse, of a round's owned queries: two lanes a row, a warp its own 16 rows.
 */
template <class C> struct owned_queries {
    uint4 out[C::DIM / 16];
    float lse;

    __device__ __forceinline__ void load(const long_params &p, int round, int wg)
    {
        const work<C> w(p, round);
        const int row = w.row + wg * ROWS + threadIdx.x % 128 / 2, half = threadIdx.x % 2;
        const bool used = !w.none && row < p.n_tokens;
        const size_t at = used ? (size_t)w.b * p.n_tokens + row : 0;
        const __nv_bfloat16 *from = p.out + at * p.out_stride + (w.owner * 2 + half) * C::DIM / 2;
#pragma unroll
        for (int i = 0; i < C::DIM / 16; i++)
            out[i] = used ? __ldg((const uint4 *)from + i) : make_uint4(0, 0, 0, 0);
        if (used && !p.relu) lse = p.lse[((size_t)w.b * p.n_heads + w.owner) * p.n_tokens + row];
    }
    /* With the tile of d_out at g: what the thread's rows of a fragment need; to memory too, for
     * the other pass. */
    __device__ __forceinline__ void finish(const long_params &p, const work<C> &w, int wg,
                                           uint32_t g, by_row *lse2, by_row *delta) const
    {
        const int row = threadIdx.x % 128 / 2, half = threadIdx.x % 2, lane = threadIdx.x % 32;
        float sum = 0;
#pragma unroll
        for (int i = 0; i < C::DIM / 16; i++) {
            const int chunk = half * C::DIM / 16 + i;
            const uint32_t at = g + chunk / 8 * ROWS * 128 + row * 128 + (chunk % 8 ^ row % 8) * 16;
            sum += dot8(out[i], *(const uint4 *)__cvta_shared_to_generic(at));
        }
        sum += __shfl_xor_sync(~0u, sum, 1);
        const int query = w.row + wg * ROWS + row;
        const float2 stats = query_stats(p.relu, query < p.n_tokens, query, lse, sum);
        if (half == 0) {
            const size_t at = ((size_t)w.b * p.n_heads + w.owner) * p.stats_stride + query;
            p.lse2[at] = stats.x;
            p.delta[at] = stats.y;
        }
        const int first = lane / 4 * 2, second = first + 16;
        lse2->rows =
            make_float2(__shfl_sync(~0u, stats.x, first), __shfl_sync(~0u, stats.x, second));
        delta->rows =
            make_float2(__shfl_sync(~0u, stats.y, first), __shfl_sync(~0u, stats.y, second));
    }
};

template <class C> __device__ void multiply(const block<C> &k, int wg)
{
    const long_params &p = k.p;
    const int row0 = wg * ROWS + threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4,
              column0 = threadIdx.x % 4 * 2;
    multiplier<C> m = {k, wg, threadIdx.x % 32 == 0, {}, {}, -1};
    owned_queries<C> queries;
    work<C> w(p, 0);
    if (C::SIDE == QUERIES) queries.load(p, 0, wg);
    for (int round = 0; !w.none; round++) {
        float sum1[C::DIM / 2], sum2[C::DIM / 2];
        by_row lse2 = {}, delta = {};
        clear(sum1);
        clear(sum2);
        qb_mbar_wait_block(k.x_full(m.x_at.slot), m.x_at.parity);
        if (C::SIDE == QUERIES) {
            queries.finish(p, w, wg, k.x(m.x_at.slot) + C::X_BYTES + wg * ROWS * C::DIM * 2, &lse2,
                           &delta);
            queries.load(p, round + 1, wg);
        }
        const int mine = w.row + wg * ROWS;
        for (int h = 0; h < w.n_heads; h++)
            for (int t = w.first; t < w.end; t++, m.y_at.step()) {
                const int passing = t * C::PASSING;
                qb_mbar_wait_block(k.y_full(m.y_at.slot), m.y_at.parity);
                if (C::SIDE == KEYS ? passing + C::PASSING <= mine : passing >= mine + ROWS) {
                    /* no query of the one sees a key of the other */
                    if (m.leader) qb_mbar_arrive(k.y_empty(m.y_at.slot));
                    continue;
                }
                if (C::SIDE == KEYS) {
                    const uint32_t stats = k.stats(m.y_at.slot);
                    m.step(sum1, sum2, by_column{stats}, by_column{stats + C::STATS_BYTES / 2},
                           passing < mine + ROWS - 1, passing + column0 - (w.row + row0));
                } else
                    m.step(sum1, sum2, lse2, delta, passing + C::PASSING - 1 > mine,
                           w.row + row0 - passing - column0);
            }
        qb_wgmma_wait<0>();
        pin(sum1);
        if (C::SIDE == KEYS) pin(sum2);
        m.release();
        if (m.leader) qb_mbar_arrive(k.x_empty(m.x_at.slot));
        m.x_at.step();
        const size_t at = ((size_t)w.b * p.n_tokens + mine) * p.sum_stride + w.owner * C::DIM;
        store_rows(sum1, p.scale, p.sum1 + at, p.sum_stride, p.n_tokens - mine);
        if (C::SIDE == KEYS) store_rows(sum2, 1, p.sum2 + at, p.sum_stride, p.n_tokens - mine);
        w = work<C>(p, round + 1);
    }
}

template <class C>
__global__ void __launch_bounds__(C::THREADS, 1)
    backward_pass(const __grid_constant__ long_params p)
{
    extern __shared__ char raw[];
    const block<C> k = {p, (qb_smem(raw) + 1023) & ~1023u};
    const int wg = __shfl_sync(~0u, threadIdx.x / 128, 0);
    if (threadIdx.x == 0) {
        for (int i = 0; i < C::OWNED_SLOTS; i++) {
            qb_mbar_init(k.x_full(i), 1);
            qb_mbar_init(k.x_empty(i), 4 * C::WGS);
        }
        for (int i = 0; i < C::STAGES; i++) {
            qb_mbar_init(k.y_full(i), 1);
            qb_mbar_init(k.y_empty(i), 4 * C::WGS);
        }
        qb_mbar_init_fence();
    }
    __syncthreads();
    if (wg == C::WGS) {
        qb_regs_give<C::FEED_REGS>();
        if (threadIdx.x == 128 * C::WGS) feed(k);
    } else {
        qb_regs_take<C::MULTIPLY_REGS>();
        multiply(k, wg);
    }
}

/* ---- host ---- */

template <class C>
qb_status launch_pass(const qb_cuda_attention_train_args *a, long_params p, qb_cuda_stream stream)
{
    const bool keys = C::SIDE == KEYS;
    const int owned = ROWS, passing = C::PASSING;
    const size_t T = a->n_tokens;
    qb__head_map_args q = {a->q,     a->head_dim,   a->n_heads,        T,
                           a->batch, a->qkv_stride, T * a->qkv_stride, keys ? passing : owned};
    qb__head_map_args k = q, v, g = q;
    k.base = a->k, k.n_heads = a->n_kv_heads, k.box_tokens = keys ? owned : passing;
    v = k, v.base = a->v;
    g.base = a->d_out, g.stride = a->d_out_stride, g.batch_stride = T * a->d_out_stride;
    QB_TRY(qb__head_map(keys ? &p.y1 : &p.x1, &q));
    QB_TRY(qb__head_map(keys ? &p.y2 : &p.x2, &g));
    QB_TRY(qb__head_map(keys ? &p.x1 : &p.y1, &k));
    QB_TRY(qb__head_map(keys ? &p.x2 : &p.y2, &v));
    p.sum1 = (__nv_bfloat16 *)(keys ? a->d_k : a->d_q), p.sum2 = (__nv_bfloat16 *)a->d_v;
    p.n_owners = (int)(a->batch * (keys ? a->n_kv_heads : a->n_heads));
    p.n_tiles = (p.n_tokens + C::OWNED - 1) / C::OWNED, p.n_items = p.n_owners * p.n_tiles;
    int device, n_sms;
    QB_CUDA_TRY(cudaGetDevice(&device));
    QB_CUDA_TRY(cudaDeviceGetAttribute(&n_sms, cudaDevAttrMultiProcessorCount, device));
    QB_CUDA_TRY(cudaFuncSetAttribute(backward_pass<C>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                     C::SMEM_BYTES));
    int n_blocks = p.n_items < n_sms ? p.n_items : n_sms;
    backward_pass<C><<<(unsigned)n_blocks, C::THREADS, C::SMEM_BYTES, stream>>>(p);
    QB_CUDA_TRY(cudaGetLastError());
    return QB_OK;
}

} // namespace

const char *qb__attention_train_refuse_long(const qb_cuda_attention_train_args *args)
{
    return args->head_dim == 64 || args->head_dim == 128 ? NULL : "head_dim is not 64 or 128";
}

qb_status qb__attention_train_backward_long(const qb_cuda_attention_train_args *a,
                                            qb_cuda_stream stream)
{
    long_params p = {};
    p.n_tokens = (int)a->n_tokens, p.stats_stride = (p.n_tokens + 127) / 128 * 128;
    p.n_heads = (int)a->n_heads, p.n_kv_heads = (int)a->n_kv_heads;
    p.scale = a->scale, p.relu = a->softmax == QB_SOFTMAX_RELU;
    p.sum_stride = a->d_qkv_stride;
    p.out = (const __nv_bfloat16 *)a->out, p.out_stride = a->out_stride, p.lse = a->lse;
    p.lse2 = (float *)a->workspace;
    p.delta = p.lse2 + a->batch * a->n_heads * (size_t)p.stats_stride;
    if (a->head_dim == 64) {
        QB_TRY((launch_pass<config<QUERIES, 64, 128, 4>>(a, p, stream)));
        return launch_pass<config<KEYS, 64, 64, 4>>(a, p, stream);
    }
    QB_TRY((launch_pass<config<QUERIES, 128, 64, 3>>(a, p, stream)));
    return launch_pass<config<KEYS, 128, 64, 3>>(a, p, stream);
}
