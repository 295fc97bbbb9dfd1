/* kernels/cuda/attention_sm90.cu - attention in bf16 for Hopper: wgmma, the copy engine, warps with
 * roles.
 *
 * After FlashAttention-3 (arXiv:2407.08608). A block stays on its SM and takes tiles of queries in
 * turn. One warp feeds a ring of key and value tiles (and the next tile's queries) through the copy
 * engine; WGS warpgroups of 64 queries each multiply. A warpgroup starts the scores of key tile j
 * and the products with the values of tile j - 1 together and makes the exponentials of j while the
 * latter run; named barriers make the warpgroups take turns in starting, so that one's exponentials
 * run beside the other's products.
 *
 * Causal tiles differ in length: a block takes the i-th and the i-th last of a head together where
 * there are enough heads, else tiles from the longest to the shortest. */
#include "kernels/cuda/attention_wgmma.cuh"
#include "kernels/cuda/tensor_map.h"

using namespace attention_wgmma;

namespace
{

template <int DIM_, int KEYS_, int WGS_, int STAGES_> struct config {
    static constexpr int DIM = DIM_, KEYS = KEYS_, WGS = WGS_, STAGES = STAGES_;
    static constexpr int BLOCKS = (DIM + 63) / 64; /* of 64 dimensions = 128 bytes of a row */
    static constexpr int Q_BYTES = BLOCKS * ROWS * 128, KV_BYTES = BLOCKS * KEYS * 128;
    /* Room for the next tile's queries and for results: the products of two tiles can overlap. Else
     * results leave by way of the queries' place. */
    static constexpr bool OVERLAP = 3 * WGS * Q_BYTES + 2 * STAGES * KV_BYTES + 2048 <= 227 * 1024;
    static constexpr int Q_STAGES = OVERLAP ? 2 : 1;
    static constexpr int K_AT = Q_STAGES * WGS * Q_BYTES, V_AT = K_AT + STAGES * KV_BYTES,
                         OUT_AT = OVERLAP ? V_AT + STAGES * KV_BYTES : 0,
                         BARS_AT = V_AT + STAGES * KV_BYTES + (OVERLAP ? WGS * Q_BYTES : 0);
    static constexpr int SMEM_BYTES = BARS_AT + 8 * (2 * Q_STAGES + 4 * STAGES) + 1024;
    static constexpr int THREADS = 128 * (WGS + 1);
    static constexpr int PRODUCER_REGS = WGS == 2 ? 24 : 32, CONSUMER_REGS = WGS == 2 ? 240 : 160;
};

struct sm90_params {
    CUtensorMap q, k, v, out; /* (batch, token, head, dimension) */
    int n_q, n_past, n_heads, group, n_tiles, n_pairs, n_items;
    qb_softmax_kind kind;
    float scale;
    float *lse; /* (batch, head, query) or NULL */
};

/* ---- the order of work, the same for all warps of a block ---- */

struct work {
    int tile, other; /* other < 0: only one */
    int h, b;
};

/* The round-th piece of this block; n_pairs > 0: pairs of tiles of a head, else single tiles. */
__device__ bool next_work(const sm90_params &p, int round, work *w)
{
    int turn = round & 1 ? (int)(gridDim.x - 1 - blockIdx.x) : (int)blockIdx.x;
    int item = round * (int)gridDim.x + turn, head;
    if (item >= p.n_items) return false;
    if (p.n_pairs) {
        int i = item % p.n_pairs;
        head = item / p.n_pairs;
        w->tile = p.n_tiles - 1 - i;
        w->other = i < w->tile ? i : -1;
    } else {
        int n_heads = p.n_items / p.n_tiles;
        head = item % n_heads;
        w->tile = p.n_tiles - 1 - item / n_heads;
        w->other = -1;
    }
    w->h = head % p.n_heads;
    w->b = head / p.n_heads;
    return true;
}

/* The tiles of queries of this block, one after the other. */
template <class C> struct tile_at {
    work w;
    int round, tile, n; /* n tiles of keys */
    bool done;

    __device__ explicit tile_at(const sm90_params &p) : round(0)
    {
        done = !next_work(p, 0, &w);
        begin(p, w.tile);
    }
    __device__ void next(const sm90_params &p)
    {
        if (tile == w.tile && w.other >= 0) return begin(p, w.other);
        done = !next_work(p, ++round, &w);
        begin(p, w.tile);
    }
    __device__ void begin(const sm90_params &p, int new_tile)
    {
        tile = new_tile;
        n = (p.n_past + min((tile + 1) * C::WGS * ROWS, p.n_q) + C::KEYS - 1) / C::KEYS;
    }
};

template <class C> struct barriers {
    uint32_t base;
    __device__ uint32_t q_full(int i) const
    {
        return base + 8 * i;
    }
    __device__ uint32_t q_empty(int i) const
    {
        return base + 8 * (C::Q_STAGES + i);
    }
    __device__ uint32_t k_full(int i) const
    {
        return base + 8 * (2 * C::Q_STAGES + i);
    }
    __device__ uint32_t k_empty(int i) const
    {
        return k_full(C::STAGES + i);
    }
    __device__ uint32_t v_full(int i) const
    {
        return k_full(2 * C::STAGES + i);
    }
    __device__ uint32_t v_empty(int i) const
    {
        return k_full(3 * C::STAGES + i);
    }
};

/* ---- the warp that loads ---- */

template <class C> __device__ void produce(const sm90_params &p, uint32_t smem, barriers<C> bars)
{
    ring<C::STAGES> at;
    ring<C::Q_STAGES> q_at;
    for (tile_at<C> now(p); !now.done; now.next(p))
        for (int j = 0; j < now.n; j++, at.step()) {
            int h = now.w.h, g = h / p.group, b = now.w.b;
            qb_mbar_wait_block(bars.k_empty(at.slot), at.parity ^ 1);
            qb_mbar_expect(bars.k_full(at.slot), C::KV_BYTES);
            for (int i = 0; i < C::BLOCKS; i++)
                qb_tma_load_4d(smem + C::K_AT + at.slot * C::KV_BYTES + i * C::KEYS * 128, &p.k,
                               bars.k_full(at.slot), 64 * i, g, j * C::KEYS, b);
            if (j == 0) {
                qb_mbar_wait_block(bars.q_empty(q_at.slot), q_at.parity ^ 1);
                qb_mbar_expect(bars.q_full(q_at.slot), C::WGS * C::Q_BYTES);
                for (int i = 0; i < C::WGS * C::BLOCKS; i++)
                    qb_tma_load_4d(smem + q_at.slot * C::WGS * C::Q_BYTES + i * ROWS * 128, &p.q,
                                   bars.q_full(q_at.slot), i % C::BLOCKS * 64, h,
                                   (now.tile * C::WGS + i / C::BLOCKS) * ROWS, b);
                q_at.step();
            }
            qb_mbar_wait_block(bars.v_empty(at.slot), at.parity ^ 1);
            qb_mbar_expect(bars.v_full(at.slot), C::KV_BYTES);
            for (int i = 0; i < C::BLOCKS; i++)
                qb_tma_load_4d(smem + C::V_AT + at.slot * C::KV_BYTES + i * C::KEYS * 128, &p.v,
                               bars.v_full(at.slot), 64 * i, g, j * C::KEYS, b);
        }
}

/* ---- the warpgroups that multiply ---- */

/* The warpgroup's 64 rows of a finished tile, through shared memory in the swizzle of the copy
 * engine's boxes. run: of this thread's keys. */
template <class C>
__device__ __forceinline__ void store_out(const sm90_params &p, const float (&out)[C::DIM / 2],
                                          const attention_running &run, uint32_t to, int wg,
                                          const tile_at<C> &of)
{
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
    const int row = 16 * warp + lane % 16, token = (of.tile * C::WGS + wg) * ROWS;
    float factor[2];
    for (int r = 0; r < 2; r++) {
        float sum = run.sum[r];
        sum += __shfl_xor_sync(~0u, sum, 1);
        sum += __shfl_xor_sync(~0u, sum, 2);
        int query = token + 16 * warp + lane / 4 + 8 * r, n_keys = p.n_past + query + 1;
        float divisor = attention_row_divisor(p.kind, sum, n_keys);
        factor[r] = divisor > 0 ? (p.kind == QB_SOFTMAX_RELU ? p.scale : 1) / divisor : 0;
        if (p.lse && lane % 4 == 0 && query < p.n_q)
            p.lse[((size_t)of.w.b * p.n_heads + of.w.h) * p.n_q + query] =
                run.max[r] * p.scale + logf(sum);
    }
    if (C::OVERLAP) { /* the tile before may still be on its way out of there */
        if (threadIdx.x % 128 == 0) qb_tma_wait_read<0>();
        qb_bar_sync(1 + wg, 128);
    }
#pragma unroll
    for (int n = 0; n < C::DIM / 8; n += 2) {
        uint32_t chunk = (uint32_t)((n + lane / 16) % 8 ^ row % 8);
        qb_stmatrix_x4(to + n / 8 * ROWS * 128 + row * 128 + chunk * 16,
                       qb_bf16_pair(out[4 * n] * factor[0], out[4 * n + 1] * factor[0]),
                       qb_bf16_pair(out[4 * n + 2] * factor[1], out[4 * n + 3] * factor[1]),
                       qb_bf16_pair(out[4 * n + 4] * factor[0], out[4 * n + 5] * factor[0]),
                       qb_bf16_pair(out[4 * n + 6] * factor[1], out[4 * n + 7] * factor[1]));
    }
    qb_fence_async();
    qb_bar_sync(1 + wg, 128);
    if (threadIdx.x % 128 == 0) {
        if (token < p.n_q)
            for (int i = 0; i < C::BLOCKS; i++)
                qb_tma_store_4d(&p.out, to + i * ROWS * 128, 64 * i, of.w.h, token, of.w.b);
        qb_tma_commit();
    }
}

/* What a warpgroup holds. */
template <class C> struct consumer {
    const sm90_params &p;
    const uint32_t smem;
    const barriers<C> bars;
    const int wg, my_turn, next_turn;
    const bool leader;
    ring<C::STAGES> k_at, v_at;
    ring<C::Q_STAGES> q_at;
    attention_running run;
    int last; /* the last key that the thread's first row sees, less the tile's first key */

    __device__ __forceinline__ void begin_tile(const tile_at<C> &now)
    {
        last = p.n_past + (now.tile * C::WGS + wg) * ROWS + threadIdx.x % 128 / 32 * 16 +
               threadIdx.x % 32 / 4;
        for (int r = 0; r < 2; r++) {
            attention_row_start(p.kind, &run.max[r], &run.sum[r]);
            if (threadIdx.x % 4) run.sum[r] = 0; /* one of the quad counts softmax-1's e^0 */
        }
    }
    __device__ __forceinline__ void start_qk(float (&s)[C::KEYS / 2])
    {
        qb_wgmma_fence();
        start_scores<C::DIM, C::KEYS>(s, smem + (q_at.slot * C::WGS + wg) * C::Q_BYTES,
                                      smem + C::K_AT + k_at.slot * C::KV_BYTES);
        qb_wgmma_commit();
    }
    __device__ __forceinline__ void start_pv(float (&out)[C::DIM / 2],
                                             const uint32_t (&weights)[C::KEYS / 4])
    {
        qb_mbar_wait_block(bars.v_full(v_at.slot), v_at.parity);
        qb_wgmma_fence();
        start_values<C::DIM, C::KEYS>(out, weights, smem + C::V_AT + v_at.slot * C::KV_BYTES);
        qb_wgmma_commit();
    }
    __device__ __forceinline__ void qk_done()
    {
        if (leader) qb_mbar_arrive(bars.k_empty(k_at.slot));
        k_at.step();
    }
    __device__ __forceinline__ void pv_done()
    {
        if (leader) qb_mbar_arrive(bars.v_empty(v_at.slot));
        v_at.step();
    }
    __device__ __forceinline__ void queries_done()
    {
        if (leader) qb_mbar_arrive(bars.q_empty(q_at.slot));
        q_at.step();
    }
    __device__ __forceinline__ void weigh(float (&s)[C::KEYS / 2], float (&rescale)[2])
    {
        softmax<C::KEYS>(s, run, rescale, last, p.scale * CUDART_L2E_F, p.kind == QB_SOFTMAX_RELU);
        last -= C::KEYS;
    }
    /* The first scores of a tile, nothing beside them. */
    __device__ __forceinline__ void begin(float (&s)[C::KEYS / 2], uint32_t (&weights)[C::KEYS / 4],
                                          const tile_at<C> &now)
    {
        float rescale[2];
        begin_tile(now);
        qb_mbar_wait_block(bars.q_full(q_at.slot), q_at.parity);
        qb_mbar_wait_block(bars.k_full(k_at.slot), k_at.parity);
        start_qk(s);
        qb_wgmma_wait<0>();
        pin(s);
        qk_done();
        weigh(s, rescale);
        pack_p<C::KEYS>(s, weights);
    }
    /* Scores of the next keys beside the products with the values before them. */
    __device__ __forceinline__ void start_both(float (&s)[C::KEYS / 2], float (&out)[C::DIM / 2],
                                               const uint32_t (&weights)[C::KEYS / 4])
    {
        qb_mbar_wait_block(bars.k_full(k_at.slot), k_at.parity);
        qb_bar_sync(my_turn, 256);
        start_qk(s);
        start_pv(out, weights);
        qb_bar_arrive(next_turn, 256);
        qb_wgmma_wait<1>();
        pin(s);
        qk_done();
    }
    __device__ __forceinline__ void middle(float (&s)[C::KEYS / 2], float (&out)[C::DIM / 2],
                                           uint32_t (&weights)[C::KEYS / 4])
    {
        float rescale[2];
        start_both(s, out, weights);
        weigh(s, rescale);
        qb_wgmma_wait<0>();
        pin(out);
        pin(s);
        pv_done();
#pragma unroll
        for (int i = 0; i < C::DIM / 2; i++) out[i] *= rescale[i / 2 % 2];
        pack_p<C::KEYS>(s, weights);
    }
    /* The last values of a tile beside the first scores of the next. */
    __device__ __forceinline__ void turn_over(float (&s)[C::KEYS / 2], float (&out)[C::DIM / 2],
                                              uint32_t (&weights)[C::KEYS / 4],
                                              const tile_at<C> &before, const tile_at<C> &now)
    {
        float rescale[2];
        const attention_running finished = run;
        qb_mbar_wait_block(bars.q_full(q_at.slot), q_at.parity);
        start_both(s, out, weights);
        begin_tile(now);
        weigh(s, rescale);
        qb_wgmma_wait<0>();
        pin(out);
        pin(s);
        pv_done();
        store_out<C>(p, out, finished, smem + C::OUT_AT + wg * C::Q_BYTES, wg, before);
        clear(out);
        pack_p<C::KEYS>(s, weights);
    }
    /* The last values of a tile, nothing beside them. */
    __device__ __forceinline__ void
    end(float (&out)[C::DIM / 2], const uint32_t (&weights)[C::KEYS / 4], const tile_at<C> &of)
    {
        start_pv(out, weights);
        qb_wgmma_wait<0>();
        pin(out);
        pv_done();
        store_out<C>(p, out, run, smem + C::OUT_AT + wg * C::Q_BYTES, wg, of);
    }
};

template <class C>
__device__ void consume(const sm90_params &p, uint32_t smem, barriers<C> bars, int wg)
{
    consumer<C> c = {p,
                     smem,
                     bars,
                     wg,
                     1 + C::WGS + wg,
                     1 + C::WGS + (wg + 1) % C::WGS,
                     threadIdx.x % 128 == 0,
                     {},
                     {},
                     {},
                     {},
                     0};
    float s[C::KEYS / 2], out[C::DIM / 2];
    uint32_t weights[C::KEYS / 4];
    tile_at<C> now(p);
    if (wg == C::WGS - 1) qb_bar_arrive(1 + C::WGS, 256); /* the first turn is warpgroup 0's */
    clear(out);
    c.begin(s, weights, now);
    for (;;) {
        for (int j = 1; j < now.n; j++) c.middle(s, out, weights);
        const tile_at<C> before = now;
        now.next(p);
        if (C::OVERLAP && !now.done) {
            c.queries_done();
            c.turn_over(s, out, weights, before, now);
            continue;
        }
        c.end(out, weights, before);
        if (c.leader)
            qb_tma_wait_read<0>(); /* out of the queries' place, or of the block's memory */
        if (now.done) return;
        c.queries_done();
        clear(out);
        c.begin(s, weights, now);
    }
}

template <class C>
__global__ void __launch_bounds__(C::THREADS, 1) attention(const __grid_constant__ sm90_params p)
{
    extern __shared__ char raw[];
    const uint32_t smem = (qb_smem(raw) + 1023) & ~1023u;
    const barriers<C> bars = {smem + C::BARS_AT};
    if (threadIdx.x == 0) {
        for (int i = 0; i < C::Q_STAGES; i++) {
            qb_mbar_init(bars.q_full(i), 1);
            qb_mbar_init(bars.q_empty(i), C::WGS);
        }
        for (int i = 0; i < C::STAGES; i++) {
            qb_mbar_init(bars.k_full(i), 1);
            qb_mbar_init(bars.k_empty(i), C::WGS);
            qb_mbar_init(bars.v_full(i), 1);
            qb_mbar_init(bars.v_empty(i), C::WGS);
        }
        qb_mbar_init_fence();
    }
    __syncthreads();
    const int wg = threadIdx.x / 128;
    if (wg == C::WGS) {
        qb_regs_give<C::PRODUCER_REGS>();
        if (threadIdx.x == 128 * C::WGS) produce<C>(p, smem, bars);
    } else {
        qb_regs_take<C::CONSUMER_REGS>();
        consume<C>(p, smem, bars, wg);
    }
}

/* ---- host ---- */

template <class C> qb_status launch(const qb_cuda_attention_args *a, qb_cuda_stream stream)
{
    sm90_params p = {};
    size_t n_keys = a->n_past + a->n_q;
    size_t kv_batch = a->batch > 1 ? a->kv_batch_stride : n_keys * a->kv_stride;
    const qb__head_map_args q = {a->q,     a->head_dim, a->n_heads,           a->n_q,
                                 a->batch, a->q_stride, a->n_q * a->q_stride, ROWS};
    const qb__head_map_args k = {a->k,     a->head_dim,  a->n_kv_heads, n_keys,
                                 a->batch, a->kv_stride, kv_batch,      C::KEYS};
    qb__head_map_args v = k, out = q;
    v.base = a->v;
    out.base = a->out, out.stride = a->out_stride, out.batch_stride = a->n_q * a->out_stride;
    QB_TRY(qb__head_map(&p.q, &q));
    QB_TRY(qb__head_map(&p.k, &k));
    QB_TRY(qb__head_map(&p.v, &v));
    QB_TRY(qb__head_map(&p.out, &out));
    p.n_q = (int)a->n_q, p.n_past = (int)a->n_past, p.n_heads = (int)a->n_heads;
    p.group = (int)(a->n_heads / a->n_kv_heads), p.kind = a->softmax, p.scale = a->scale,
    p.lse = a->lse;
    int device, n_sms;
    QB_CUDA_TRY(cudaGetDevice(&device));
    QB_CUDA_TRY(cudaDeviceGetAttribute(&n_sms, cudaDevAttrMultiProcessorCount, device));
    int n_rows = C::WGS * ROWS, n_heads = (int)(a->n_heads * a->batch);
    p.n_tiles = (p.n_q + n_rows - 1) / n_rows;
    p.n_pairs = (p.n_tiles + 1) / 2 * n_heads >= 2 * n_sms ? (p.n_tiles + 1) / 2 : 0;
    p.n_items = (p.n_pairs ? p.n_pairs : p.n_tiles) * n_heads;
    QB_CUDA_TRY(cudaFuncSetAttribute(attention<C>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                     C::SMEM_BYTES));
    int n_blocks = p.n_items < n_sms ? p.n_items : n_sms;
    attention<C><<<(unsigned)n_blocks, C::THREADS, C::SMEM_BYTES, stream>>>(p);
    QB_CUDA_TRY(cudaGetLastError());
    return QB_OK;
}

} // namespace

const char *qb__cuda_attention_refuse_sm90(const qb_cuda_attention_args *args)
{
    if (args->type != QB_CUDA_BF16) return "type is not bf16";
    if (qb__cuda_attention_uncommon(args)) return qb__cuda_attention_uncommon(args);
    if (args->n_past_dev) return "the number of past tokens is on the device";
    if (args->head_dim > 256) return "head_dim is over 256";
    if (!(args->scale > 0)) return "the scale is not positive";
    return qb__cuda_attention_misaligned(args);
}

qb_status qb__cuda_attention_run_sm90(const qb_cuda_attention_args *args, qb_cuda_stream stream)
{
    if (args->head_dim <= 64) return launch<config<64, 128, 2, 3>>(args, stream);
    if (args->head_dim <= 128) return launch<config<128, 128, 2, 2>>(args, stream);
    return launch<config<256, 64, 2, 2>>(args, stream);
}
