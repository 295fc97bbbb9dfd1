/* kernels/cuda/decode_chain_sm90.cu - the kernels of the decode chain: what stands before a product
 * (decode_chain_stage.cuh), the product, and here what becomes of its sums. */
#include "kernels/cuda/decode_chain_attention.cuh"
#include "kernels/cuda/decode_chain_products.cuh"

namespace qb_chain
{

/* ---- epilogue: LANES lanes an output channel, each has two warps' sums ---- */

constexpr int LANES = WARPS / 2, ROWS = CONSUMERS / LANES; /* output channels at once */

struct channel { /* what a lane needs of its output channel */
    uint32_t n;  /* NONE: it has none */
    float scale, bias, zero_point;
};
constexpr uint32_t NONE = 0xffffffffu;

template <int KIND>
__device__ __forceinline__ channel load_channel(const qb__chain_linear &l, uint32_t n)
{
    channel ch = {n, 1.0f, 0.0f, 0.0f};
    if (n >= l.n) {
        ch.n = NONE;
        return ch;
    }
    if (KIND == QB_CUDA_LINEAR_S8 || KIND == QB_CUDA_LINEAR_U4) ch.scale = l.w_scale[n];
    if (KIND == QB_CUDA_LINEAR_U4) ch.zero_point = 128.0f + (float)l.zero_point[n];
    if (l.bias) ch.bias = l.bias[n];
    return ch;
}

/* The row-th output channel of the block; of a paired layer, of its tiles of up. */
__device__ __forceinline__ uint32_t channel_at(const tile_run &run, uint32_t row, uint32_t n_rows)
{
    return row < n_rows ? run.first * TILE + row : NONE;
}

/* The block's sum (i: tile and channel in it, as multiply leaves them); the same in all lanes. */
template <int KIND, bool PLAIN>
__device__ __forceinline__ typename sums<KIND>::type sum_of(const qb__chain_product &p,
                                                            const head *h, const char *smem,
                                                            const channel &ch, uint32_t i, int sub)
{
    using T = typename sums<KIND>::type;
    const T *part = (const T *)(smem + p.sums_off) + i * WARPS + sub;
    const T sum = sum_lanes<LANES>(part[0] + part[LANES]);
    if constexpr (KIND == QB_CUDA_LINEAR_U4) {
        const float2 a = h->x_sum[sub], b = h->x_sum[sub + LANES];
        const float x_sum = sum_lanes<LANES>(a.x + b.x);
        const float correction = PLAIN ? 0.0f : sum_lanes<LANES>(a.y + b.y);
        return sum - ch.zero_point * x_sum - correction;
    }
    return sum;
}

template <int KIND>
__device__ __forceinline__ float scale_sum(const qb__chain_linear &l, const channel &ch,
                                           typename sums<KIND>::type sum, float x_scale)
{
    float y = (float)sum;
    if constexpr (KIND == QB_CUDA_LINEAR_S8) y = __fmul_rn(y, __fmul_rn(x_scale, ch.scale));
    if constexpr (KIND == QB_CUDA_LINEAR_U4) y = ch.scale * sum;
    return __fadd_rn(y, ch.bias); /* 0 where there is none */
}

/* Raises the maxima: one of all, or one a segment. */
__device__ __forceinline__ void raise_max(const qb__chain_product &p, head *h, uint32_t n,
                                          float most, int tid)
{
    if (p.n_max == 1) {
        const float all = max_block(h->out_max, most, tid);
        if (tid == 0) atomicMax(p.out_max, __float_as_uint(all));
        return;
    }
    for (uint32_t s = 0; s < p.n_max; s++) {
        const bool mine =
            (int)n < p.l.seg_end[s] && (s == 0 || (int)n >= p.l.seg_end[s - 1]) && n != NONE;
        const uint32_t m = __reduce_max_sync(0xffffffffu, mine ? __float_as_uint(most) : 0u);
        if ((tid & 31) == 0 && m) atomicMax(p.out_max + s, m);
    }
}

/* y of the row-th channel, in each of its lanes. */
template <int KIND, bool PLAIN>
__device__ __forceinline__ float output_of(const qb__chain_product &p, const head *h,
                                           const char *smem, const channel &ch, uint32_t row,
                                           float x_scale, int sub)
{
    if (!p.l.paired) {
        const float y =
            scale_sum<KIND>(p.l, ch, sum_of<KIND, PLAIN>(p, h, smem, ch, row, sub), x_scale);
        return p.activate ? activate(p.act, y) : y;
    }
    const uint32_t i = row / TILE * 2 * TILE + row % TILE;
    const channel gate = load_channel<KIND>(p.l, ch.n == NONE ? NONE : ch.n + p.l.n / 2);
    const float up = scale_sum<KIND>(p.l, ch, sum_of<KIND, PLAIN>(p, h, smem, ch, i, sub), x_scale);
    return qb_swiglu(
        up,
        scale_sum<KIND>(p.l, gate, sum_of<KIND, PLAIN>(p, h, smem, gate, i + TILE, sub), x_scale));
}

/* ---- the epilogue of a cluster: tile i belongs to the block of rank i % n_ranks ---- */

/* The block's sums to the owners of their tiles, (rank, the owner's channels) there. */
template <int KIND, bool PLAIN>
__device__ __forceinline__ void send_sums(const qb__chain_product &p, const head *h, char *smem,
                                          const tile_run &run, const channel &first, int rank,
                                          int tid)
{
    using T = typename sums<KIND>::type;
    const int sub = tid % LANES;
    const uint32_t n_rows = run.count * TILE, own = QB__CHAIN_OWN_ROWS;
    T *to = (T *)(smem + p.ranks_off) + rank * own;
#pragma unroll 1
    for (uint32_t row = tid / LANES; row < n_rows; row += ROWS) {
        const channel ch = row < ROWS ? first : load_channel<KIND>(p.l, run.first * TILE + row);
        const T sum = sum_of<KIND, PLAIN>(p, h, smem, ch, row, sub);
        const uint32_t tile = row / TILE, owner = tile % p.n_ranks;
        if (sub == 0)
            send(to + tile / p.n_ranks * TILE + row % TILE, sum, &h->received, (int)owner);
    }
}

/* Before the cluster starts: what the block is going to receive. */
__device__ __forceinline__ void expect_sums(const qb__chain_product &p, head *h,
                                            const tile_run &run, uint32_t rank)
{
    const uint32_t tiles = (run.count + p.n_ranks - 1 - rank) / p.n_ranks;
    qb_mbar_init(qb_smem(&h->received), 1);
    qb_mbar_init_fence();
    qb_mbar_expect(qb_smem(&h->received), tiles * TILE * 4 * p.n_ranks);
}

/* The output channel that a thread has of its block's tiles. */
__device__ __forceinline__ uint32_t own_channel(const qb__chain_product &p, const tile_run &run,
                                                int rank, int tid)
{
    const uint32_t tile = tid / TILE * p.n_ranks + rank;
    return tile < run.count ? (run.first + tile) * TILE + tid % TILE : NONE;
}

template <int KIND>
__device__ __forceinline__ void write_own(const qb__chain_product &p, head *h, const char *smem,
                                          const channel &own, float x_scale, int tid)
{
    using T = typename sums<KIND>::type;
    float most = 0.0f;
    if (own.n != NONE) {
        wait_for(&h->received, 0);
        const T *from = (const T *)(smem + p.ranks_off) + tid;
        T sum = 0;
        for (uint32_t i = 0; i < p.n_ranks; i++) sum += from[i * QB__CHAIN_OWN_ROWS];
        const float y = scale_sum<KIND>(p.l, own, sum, x_scale);
        p.y[own.n] = y;
        most = fabsf(y);
    }
    if (p.n_max == 1) raise_max(p, h, 0, most, tid);
}

template <int KIND, bool PLAIN>
__device__ __forceinline__ void write_outputs(const qb__chain_product &p, head *h, const char *smem,
                                              const tile_run &run, const channel &first,
                                              float x_scale, int tid)
{
    const uint32_t n_rows = (run.count * TILE) >> p.l.paired;
    const int sub = tid % LANES;
    channel ch = first;
    float most = 0.0f;
#pragma unroll 1
    for (uint32_t row = tid / LANES;; ch = load_channel<KIND>(p.l, channel_at(run, row, n_rows))) {
        const float y = output_of<KIND, PLAIN>(p, h, smem, ch, min(row, n_rows - 1), x_scale, sub);
        if (ch.n != NONE) {
            if (sub == 0) p.y[ch.n] = y;
            most = fmaxf(most, fabsf(y));
        }
        if (!PLAIN && p.n_max > 1) raise_max(p, h, ch.n, fabsf(y), tid);
        row += ROWS;
        if (row - tid / LANES >= n_rows) break;
    }
    if (p.n_max == 1) raise_max(p, h, 0, most, tid);
}

/* ---- the kernels ---- */

__device__ __forceinline__ void init_ring(const qb__chain_product &p, head *h)
{
    for (uint32_t i = 0; i < p.n_slots; i++) {
        qb_mbar_init(qb_smem(&h->full[i]), 1);
        qb_mbar_init(qb_smem(&h->empty[i]), CONSUMERS);
    }
    qb_mbar_init_fence();
    h->zero = 0;
}

/* One barrier for all tiles. */
__device__ __forceinline__ void init_whole(head *h, const tile_run &run)
{
    qb_mbar_init(qb_smem(&h->full[0]), run.count);
    qb_mbar_init_fence();
    h->zero = 0;
}

/* N: 4 N values of the input a thread. PLAIN: without the rarer cases, whose code, though it is
 * jumped over, takes longer to fetch than the rest takes to run. RING: a warp of its own fetches
 * the weights as there is room; else one of those that compute fetches all of them at once. */
template <int KIND, int N, bool PLAIN, bool RING>
__global__ void __launch_bounds__(RING ? THREADS : CONSUMERS, N <= 2 ? 2 : 1)
    chain_product(const __grid_constant__ qb__chain_product p)
{
    extern __shared__ __align__(128) char smem[];
    head *h = (head *)smem;
    char *x = smem + QB__CHAIN_HEADER_BYTES;
    const int tid = (int)threadIdx.x;
    constexpr int FETCHER = RING ? CONSUMERS : 0;
    if (RING && tid == FETCHER) init_ring(p, h);
    qb__start_next_grid();
    const k_part part = part_of(p);
    const bool alone = p.n_ranks == 1;
    const tile_run run = run_of(p);
    if (!RING && tid == FETCHER) init_whole(h, run);
    const int rank = alone ? 0 : (int)(blockIdx.x % p.n_ranks);
    if (!alone) {
        if (tid == FETCHER) expect_sums(p, h, run, rank);
        cluster_start();
    }
    __syncwarp();
    if (!RING && tid < 32) fetch_whole(p, h, smem, run, part, tid);
    if (RING && tid >= CONSUMERS) {
        asm volatile("bar.arrive 2, %0;" ::"n"(THREADS) : "memory");
        fetch_weights(p, h, smem, run, part, tid - CONSUMERS);
        return;
    }
    const channel first =
        load_channel<KIND>(p.l, channel_at(run, tid / LANES, (run.count * TILE) >> p.l.paired));
    channel own = {NONE, 0.0f, 0.0f, 0.0f};
    if (!alone) own = load_channel<KIND>(p.l, own_channel(p, run, rank, tid));
    /* A tile is one chunk then, and a warp's part of the input is four windows at most. */
    constexpr bool KEPT = PLAIN && KIND != U4_GROUPS && N <= (KIND == QB_CUDA_LINEAR_FLOAT ? 1 : 2);
    constexpr bool CAN_NORM = !PLAIN || N <= 2; /* the gains of a wide one need registers */
    const bool norm = CAN_NORM && p.source == QB__CHAIN_NORM;
    norm_constants<CAN_NORM ? N : 1> constants;
    if constexpr (CAN_NORM)
        if (norm) load_constants<N>(p, constants, tid);
    __syncwarp();
    asm volatile("bar.sync 2, %0;" ::"n"(RING ? THREADS : CONSUMERS) : "memory");
    const uint32_t zero = *(volatile uint32_t *)&h->zero;
    const int late = tid + (int)zero; /* held as what input_place has is */
    const input_place at = place_input(p, part, tid, zero);
    const walk way = walk_of<KIND>(p, part, smem, x, zero);
    typename sums<KIND>::type *const sums_at =
        (typename sums<KIND>::type *)(smem + p.sums_off + zero);
    qb__wait_previous_grid();
    row<N> r;
    if (norm) {
        if constexpr (CAN_NORM) stage_norm<N, PLAIN>(p, h, constants, at, r, late);
    } else {
        load_input<N>(at, part.k, r, late);
        if (!PLAIN && p.source == QB__CHAIN_ACT) stage_act<N>(p, r, late);
    }
    float x_scale = 1.0f;
    if constexpr (KIND == QB_CUDA_LINEAR_S8)
        x_scale = store_codes<N, PLAIN>(p, h, at, r, part.x_bytes, x, late);
    else if constexpr (KIND == QB_CUDA_LINEAR_FLOAT)
        store_bf16<N>(r, part.x_bytes, x, late);
    else
        store_u4<N, PLAIN>(p, h, r, part.x_bytes, x, late);
    block_sync();
    if constexpr (RING)
        multiply<KIND, KEPT>(p, h, sums_at, way, run.count, part, late);
    else
        multiply_whole<KIND>(h, sums_at, way, run.count, late);
    block_sync();
    if (alone) {
        write_outputs<KIND, PLAIN>(p, h, smem, run, first, x_scale, late);
    } else {
        send_sums<KIND, PLAIN>(p, h, smem, run, first, rank, late);
        write_own<KIND>(p, h, smem, own, x_scale, late);
    }
    if (blockIdx.x != 0) return;
#pragma unroll 1
    for (uint32_t i = late; i < p.n_zero; i += CONSUMERS) p.zero[i] = 0;
}

template <bool PLAIN>
__global__ void __launch_bounds__(CONSUMERS)
    chain_attention(const __grid_constant__ qb__chain_attention a)
{
    __shared__ attention_memory memory;
    qb__start_next_grid();
    const int tid = (int)threadIdx.x;
    const attender c = {a, &memory, tid, tid / 32, tid % 32, *a.position};
    expect_parts(c);
    cluster_start();
    const unit u = unit_of(a, (int)blockIdx.x, c.position + 1);
    some_keys ahead;
    load_keys(c, u, place_of(c), u.first, ahead);
    if (c.warp == 0) prefetch_cache(c, u);
    const head_place at = place_head(c, u);
    qb__wait_previous_grid();
    if (PLAIN)
        load_plain_head(c, at, attention_scale(a));
    else
        load_head(c, requantizer(a.pending), u);
    attend(c, u, ahead);
    send_parts(c, u.split);
    sum_parts(c, u.head, u.split);
}

__global__ void chain_finish(const __grid_constant__ qb__chain_finish f)
{
    qb__wait_previous_grid();
    const requantizer finish(f.requant);
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < f.n) f.y[i] = finish.one(__ldcg(f.y + i), (int)i);
}

/* ---- launches ---- */

using kernel = void (*)(qb__chain_product);

template <int KIND> kernel pick_width(const qb__chain_product *p)
{
    const uint32_t most = p->l.k / p->n_ranks; /* of a block */
    if (most <= STEP)
        return p->plain ? chain_product<KIND, 1, true, true> : chain_product<KIND, 1, false, true>;
    if (most <= 2 * STEP)
        return p->plain ? chain_product<KIND, 2, true, true> : chain_product<KIND, 2, false, true>;
    return p->plain ? chain_product<KIND, 8, true, true> : chain_product<KIND, 8, false, true>;
}

static kernel pick_whole(const qb__chain_product *p)
{
    if (p->l.kind == QB_CUDA_LINEAR_S8) return chain_product<QB_CUDA_LINEAR_S8, 1, true, false>;
    if (p->l.kind == QB_CUDA_LINEAR_FLOAT)
        return chain_product<QB_CUDA_LINEAR_FLOAT, 1, true, false>;
    return p->l.k / p->n_ranks <= STEP ? chain_product<QB_CUDA_LINEAR_U4, 1, true, false>
                                       : chain_product<QB_CUDA_LINEAR_U4, 2, true, false>;
}

static kernel pick(const qb__chain_product *p)
{
    if (p->whole) return pick_whole(p);
    if (p->l.kind == QB_CUDA_LINEAR_S8) return pick_width<QB_CUDA_LINEAR_S8>(p);
    if (p->l.kind == QB_CUDA_LINEAR_FLOAT) return pick_width<QB_CUDA_LINEAR_FLOAT>(p);
    return p->l.group ? pick_width<U4_GROUPS>(p) : pick_width<QB_CUDA_LINEAR_U4>(p);
}

struct shape {
    uint32_t n_blocks, cluster, threads, smem_bytes;
    bool early; /* before the kernel before it has ended */
};

static qb_status launch(const void *kernel, const void *params, const shape &s,
                        qb_cuda_stream stream)
{
    cudaLaunchAttribute attributes[2] = {};
    attributes[0].id = cudaLaunchAttributeClusterDimension;
    attributes[0].val.clusterDim.x = s.cluster;
    attributes[0].val.clusterDim.y = attributes[0].val.clusterDim.z = 1;
    attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[1].val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(s.n_blocks), config.blockDim = dim3(s.threads);
    config.dynamicSmemBytes = s.smem_bytes, config.stream = stream;
    config.attrs = attributes, config.numAttrs = s.early ? 2 : 1;
    void *args[] = {(void *)params};
    QB_CUDA_TRY(cudaLaunchKernelExC(&config, kernel, args));
    return QB_OK;
}

} // namespace qb_chain

extern "C" qb_status qb__chain_prepare_product(const qb__chain_product *p)
{
    QB_CUDA_TRY(cudaFuncSetAttribute((const void *)qb_chain::pick(p),
                                     cudaFuncAttributeMaxDynamicSharedMemorySize, 227 << 10));
    return QB_OK;
}

extern "C" qb_status qb__chain_launch_product(const qb__chain_product *p, bool first,
                                              qb_cuda_stream stream)
{
    const uint32_t threads = p->whole ? QB__CHAIN_CONSUMERS : QB__CHAIN_THREADS;
    return qb_chain::launch((const void *)qb_chain::pick(p), p,
                            {p->n_blocks, p->n_ranks, threads, p->smem_bytes, !first}, stream);
}

extern "C" qb_status qb__chain_launch_attention(const qb__chain_attention *a, qb_cuda_stream stream)
{
    const bool plain = !a->cosine && a->pending.n == 0;
    return qb_chain::launch(
        plain ? (const void *)qb_chain::chain_attention<true>
              : (const void *)qb_chain::chain_attention<false>,
        a, {a->n_heads * a->n_splits, a->n_splits, QB__CHAIN_CONSUMERS, 0, true}, stream);
}

extern "C" qb_status qb__chain_launch_finish(const qb__chain_finish *f, qb_cuda_stream stream)
{
    return qb_chain::launch((const void *)qb_chain::chain_finish, f,
                            {(f->n + 255) / 256, 1, 256, 0, true}, stream);
}
