/* kernels/cuda/gemm_s8_sm90.cuh - the kernel of gemm_s8/sm90.
 *
 * A block is one warpgroup that loads and one to three that multiply, over a ring of stages of 128
 * codes of k. It is persistent: cluster c takes units c, c + C, ... of the raster order. Two
 * schedules: cooperative, where the multiplying warpgroups share a tile, and ping-pong, where they
 * take turns, so that some finish their tiles (the epilogue) while another multiplies.
 *
 * Blocks of a cluster: cm of them stack in m and share columns of w, cn stand side by side and
 * share rows of x: each loads its part and multicasts it. `split` more share a tile's k; their sums
 * are exchanged through distributed shared memory, each block then finishing its part of the
 * columns, or the first of them all where the parts would be narrow. */
#ifndef QB_KERNELS_CUDA_GEMM_S8_SM90_CUH
#define QB_KERNELS_CUDA_GEMM_S8_SM90_CUH

#include "kernels/cuda/gemm_s8_epilogue.cuh"
#include "kernels/cuda/wgmma_s8.cuh"

namespace gemm_s8
{

constexpr int kBlockK = 128, kSmemBytes = 232448, kMaxStages = 16, kBarrierBytes = 512;

/* MI: blocks of 64 rows a warpgroup; BN: columns of a tile; WGS: warpgroups that multiply; SLOTS:
 * slices of staging a warpgroup; PP: ping-pong. */
template <int MI_, int BN_, int WGS_, int CM_, int CN_, int SPLIT_, bool PP_, int SLOTS_>
struct config {
    static constexpr int MI = MI_, BN = BN_, WGS = WGS_, CM = CM_, CN = CN_, SPLIT = SPLIT_,
                         SLOTS = SLOTS_;
    static constexpr bool PP = PP_;
    static constexpr int BM = 64 * MI * (PP ? 1 : WGS);
    static constexpr int CLUSTER = CM * CN * SPLIT;
    static constexpr bool GATHER = SPLIT > 1 && BN / SPLIT < 64; /* the first block finishes all */
    static constexpr int NOUT = GATHER ? BN : BN / SPLIT;        /* columns that a block finishes */
    static constexpr int THREADS = 128 * (WGS + 1);
    static constexpr int STAGE_BYTES = (BM + BN) * kBlockK;
    static constexpr int STAGING_BYTES = WGS * SLOTS * kSliceBytes;
    static constexpr int LIST_BYTES = 2 * NOUT * (int)sizeof(float);
    static constexpr int FIXED_BYTES = STAGING_BYTES + (PP ? WGS : 1) * LIST_BYTES + kBarrierBytes;
    static constexpr int FIT = (kSmemBytes - FIXED_BYTES) / STAGE_BYTES;
    static constexpr int STAGES = FIT < kMaxStages ? FIT : kMaxStages;
    static constexpr int SMEM_BYTES = STAGES * STAGE_BYTES + FIXED_BYTES;
    static constexpr int CONSUMERS = PP ? 1 : WGS; /* warpgroups that use a stage */
    static_assert((SPLIT - 1) * MI * NOUT / 2 * 128 * WGS * 4 <= STAGES * STAGE_BYTES, "exchange");
    static_assert((2 * kMaxStages + WGS * SLOTS) * 8 <= kBarrierBytes, "barriers");
    static_assert(STAGES >= 3 && (!PP || WGS > 1) && (SPLIT == 1 || !PP), "shape");
};

/* A block's place in its cluster. */
template <class C> struct cluster_place {
    int cm, cn, split;
    __device__ cluster_place()
    {
        const int rank = C::CLUSTER > 1 ? (int)qb_cluster_rank() : 0;
        cm = rank % C::CM;
        cn = rank / C::CM % C::CN;
        split = rank / (C::CM * C::CN);
    }
    __device__ int rank_of(int m, int n) const
    {
        return (split * C::CN + n) * C::CM + m;
    }
};

/* Shared memory by address: stages, staging, lists, barriers. */
template <class C> struct ring {
    uint32_t base;
    __device__ uint32_t a(int s) const
    {
        return base + s * C::STAGE_BYTES;
    }
    __device__ uint32_t b(int s) const
    {
        return a(s) + C::BM * kBlockK;
    }
    __device__ uint32_t staging(int wg) const
    {
        return base + C::STAGES * C::STAGE_BYTES + wg * C::SLOTS * kSliceBytes;
    }
    __device__ uint32_t full_at(int s) const
    {
        return base + C::SMEM_BYTES - kBarrierBytes + 8 * s;
    }
    __device__ uint32_t empty_at(int s) const
    {
        return full_at(kMaxStages + s);
    }
    __device__ uint32_t loaded_at(int wg) const /* of the slots of a warpgroup */
    {
        return full_at(2 * kMaxStages + wg * C::SLOTS);
    }
};

struct tile {
    int row, col;
};

/* The raster order: bands of `raster` unit rows, walked column by column. */
template <class C>
static __device__ __forceinline__ tile tile_of(const qb__gemm_s8_params &p,
                                               const cluster_place<C> &in, int unit)
{
    const int band_units = p.raster * p.n_units_n, band = unit / band_units,
              rest = unit - band * band_units;
    const int rows = min(p.raster, p.n_units_m - band * p.raster), un = rest / rows,
              um = band * p.raster + rest - un * rows;
    return {(um * C::CM + in.cm) * C::BM, (un * C::CN + in.cn) * C::BN};
}

template <class C>
static __device__ __forceinline__ void k_range(const qb__gemm_s8_params &p,
                                               const cluster_place<C> &in, int *first, int *end)
{
    *first = p.n_blocks_k * in.split / C::SPLIT;
    *end = p.n_blocks_k * (in.split + 1) / C::SPLIT;
}

/* Loads a block's part of a stage of x and of w, for itself and for those that share it. */
template <class C>
static __device__ __forceinline__ void load_x(const qb__gemm_s8_params &p, const ring<C> &r,
                                              const cluster_place<C> &in, const tile &t, int stage,
                                              int k)
{
    constexpr int kRows = C::BM / C::CN;
    const uint32_t to = r.a(stage) + in.cn * kRows * kBlockK;
    uint16_t mask = 0;
#pragma unroll
    for (int i = 0; i < C::CN; i++) mask |= 1 << in.rank_of(in.cm, i);
    if (C::CN > 1)
        qb_tma_load_multicast(to, &p.x, r.full_at(stage), k * kBlockK, t.row + in.cn * kRows, mask);
    else
        qb_tma_load(to, &p.x, r.full_at(stage), k * kBlockK, t.row);
}

template <class C>
static __device__ __forceinline__ void load_w(const qb__gemm_s8_params &p, const ring<C> &r,
                                              const cluster_place<C> &in, const tile &t, int stage,
                                              int k)
{
    constexpr int kRows = C::BN / C::CM;
    const uint32_t to = r.b(stage) + in.cm * kRows * kBlockK;
    uint16_t mask = 0;
#pragma unroll
    for (int i = 0; i < C::CM; i++) mask |= 1 << in.rank_of(i, in.cn);
    if (C::CM > 1)
        qb_tma_load_multicast(to, &p.w, r.full_at(stage), k * kBlockK, t.col + in.cm * kRows, mask);
    else
        qb_tma_load(to, &p.w, r.full_at(stage), k * kBlockK, t.col);
}

/* One thread. The first stages of constant weights are read while the kernel before still runs. */
template <class C>
static __device__ __forceinline__ void produce(const qb__gemm_s8_params &p, const ring<C> &r,
                                               const cluster_place<C> &in, int first_unit,
                                               int unit_step)
{
    int stage = 0, k0, k1, early = 0;
    uint32_t parity = 1; /* the first round finds every stage empty */
    k_range(p, in, &k0, &k1);
    if (p.w_is_constant) {
        const tile t = tile_of(p, in, first_unit);
        for (; early < C::STAGES && k0 + early < k1; early++) {
            qb_mbar_expect(r.full_at(early), C::STAGE_BYTES);
            load_w(p, r, in, t, early, k0 + early);
        }
    }
    qb__wait_previous_grid();
    for (int unit = first_unit; unit < p.n_units_m * p.n_units_n; unit += unit_step) {
        const tile t = tile_of(p, in, unit);
        for (int k = k0; k < k1; k++) {
            if (early > 0) {
                early--;
            } else {
                qb_mbar_wait(r.empty_at(stage), parity);
                qb_mbar_expect(r.full_at(stage), C::STAGE_BYTES);
                load_w(p, r, in, t, stage, k);
            }
            load_x(p, r, in, t, stage, k);
            if (++stage == C::STAGES) {
                stage = 0;
                parity ^= 1;
            }
        }
    }
}

/* One arrival a warp at each block that loads into this stage. */
template <class C>
static __device__ __forceinline__ void release(const ring<C> &r, const cluster_place<C> &in,
                                               int stage, int lane)
{
    if (C::CM * C::CN == 1) {
        if (lane == 0) qb_mbar_arrive(r.empty_at(stage));
        return;
    }
    const int beside = lane - C::CM; /* lanes from CM on: blocks in the same row of the cluster */
    const int to = beside < 0 ? in.rank_of(lane, in.cn) : in.rank_of(in.cm, beside);
    if (lane < C::CM + C::CN && beside != in.cn) qb_mbar_arrive_cluster(r.empty_at(stage), to);
}

/* Multiplies the n_k stages that follow `step` of the ring. turn: barrier of the warpgroup that
 * goes on with the stages after them, told as soon as it cannot mistake a stage; 0 = none. */
template <class C>
static __device__ __forceinline__ void multiply(int (&acc)[C::MI][C::BN / 2], const ring<C> &r,
                                                const cluster_place<C> &in, int row_in_tile,
                                                int step, int n_k, int lane, int turn)
{
    int stage = step % C::STAGES, last = 0;
    uint32_t parity = step / C::STAGES & 1;
#pragma unroll 1
    for (int k = 0; k < n_k; k++) {
        qb_mbar_wait(r.full_at(stage), parity);
        const uint64_t a = qb_wgmma_desc(r.a(stage) + row_in_tile * kBlockK),
                       b = qb_wgmma_desc(r.b(stage));
        qb_wgmma_fence();
#pragma unroll
        for (int kk = 0; kk < kBlockK / 32; kk++)
#pragma unroll
            for (int mi = 0; mi < C::MI; mi++)
                qb_wgmma_s8(acc[mi], a + 2 * kk + mi * (64 * kBlockK / 16), b + 2 * kk, k | kk);
        qb_wgmma_commit();
        qb_wgmma_wait<1>();
        if (k) release(r, in, last, lane);
        last = stage;
        if (++stage == C::STAGES) {
            stage = 0;
            parity ^= 1;
        }
    }
    if (C::PP && turn) qb_bar_arrive(turn, 256);
    qb_wgmma_wait<0>();
    release(r, in, last, lane);
#pragma unroll
    for (int mi = 0; mi < C::MI; mi++) /* nothing reads them before the wait */
#pragma unroll
        for (int i = 0; i < C::BN / 2; i++) asm volatile("" : "+r"(acc[mi][i])::"memory");
}

/* Adds up the sums of the blocks that share k: a block ends with the columns of its part in the
 * first NOUT / 2 accumulators. The stages are free by then: all of them were multiplied. */
template <class C>
static __device__ __forceinline__ void exchange(int (&acc)[C::MI][C::BN / 2], const ring<C> &r,
                                                const cluster_place<C> &in, int thread)
{
    constexpr int kPart = C::NOUT / 2, kThreads = 128 * C::WGS;
    qb_cluster_arrive();
    qb_cluster_wait();
#pragma unroll
    for (int to = 0; to < (C::GATHER ? 1 : C::SPLIT); to++) {
        if (to == in.split) continue;
        const int slot = in.split < to ? in.split : in.split - 1;
        const uint32_t base =
            qb_cluster_map(r.base + slot * C::MI * kPart * kThreads * 4 + thread * 16,
                           (to * C::CN + in.cn) * C::CM + in.cm);
#pragma unroll
        for (int mi = 0; mi < C::MI; mi++)
#pragma unroll
            for (int i = 0; i < kPart; i += 4) {
                const int *v = acc[mi] + to * kPart + i;
                qb_cluster_store(base + (mi * kPart + i) * kThreads * 4, v[0], v[1], v[2], v[3]);
            }
    }
#pragma unroll
    for (int s = 1; s < (C::GATHER ? 1 : C::SPLIT); s++)
        if (s == in.split)
#pragma unroll
            for (int mi = 0; mi < C::MI; mi++)
#pragma unroll
                for (int i = 0; i < kPart; i++) acc[mi][i] = acc[mi][s * kPart + i];
    qb_cluster_arrive();
    qb_cluster_wait();
    if (C::GATHER && in.split) return;
#pragma unroll
    for (int slot = 0; slot < C::SPLIT - 1; slot++)
#pragma unroll
        for (int mi = 0; mi < C::MI; mi++)
#pragma unroll
            for (int i = 0; i < kPart; i += 4) {
                const uint32_t from =
                    r.base + ((slot * C::MI + mi) * kPart + i) * kThreads * 4 + thread * 16;
                int v[4];
                asm volatile("ld.shared.v4.s32 {%0, %1, %2, %3}, [%4];"
                             : "=r"(v[0]), "=r"(v[1]), "=r"(v[2]), "=r"(v[3])
                             : "r"(from));
#pragma unroll
                for (int j = 0; j < 4; j++) acc[mi][i + j] += v[j];
            }
}

/* What a thread contributes to the list of its tile's scales and biases, and its rows' scales:
 * loaded before the tile is multiplied, used after. */
template <class C> struct scales {
    static constexpr int kThreads = C::PP ? 128 : 128 * C::WGS;
    static constexpr int kEach = (C::NOUT + kThreads - 1) / kThreads;
    float w[kEach], bias[kEach], x[C::MI][2];

    __device__ void load(const qb__gemm_s8_params &p, int row, int col0, int thread)
    {
        const float one = p.x_scale && !p.x_scale_step ? p.x_scale[0] : 0.0f;
#pragma unroll
        for (int j = 0; j < 2 * C::MI; j++) {
            const int at = row + j / 2 * 64 + j % 2 * 8;
            x[j / 2][j % 2] = one;
            if (p.x_scale_step && p.x_scale && at < p.m)
                x[j / 2][j % 2] = p.x_scale[(size_t)at * p.x_scale_step];
        }
#pragma unroll
        for (int i = 0; i < kEach; i++) {
            const int c = i * kThreads + thread;
            const bool inside = c < C::NOUT && col0 + c < p.n;
            w[i] = inside && p.w_scale ? p.w_scale[col0 + c] : 0.0f;
            bias[i] = inside && p.bias ? p.bias[col0 + c] : 0.0f;
        }
    }
    /* With one scale for all rows, the products of scales. */
    __device__ void share(float *list, int thread, bool rows) const
    {
#pragma unroll
        for (int i = 0; i < kEach; i++) {
            const int c = i * kThreads + thread;
            if (c >= C::NOUT) continue;
            list[c] = rows ? w[i] : __fmul_rn(x[0][0], w[i]);
            list[C::NOUT + c] = bias[i];
        }
    }
};

/* One warpgroup that multiplies, number wg. Barriers: 1 to 3 are a warpgroup's own, 4 is for all
 * that share a list, 8 to 10 are the turns of ping-pong. */
template <class C>
static __device__ __forceinline__ void consume(const qb__gemm_s8_params &p, const ring<C> &r,
                                               const cluster_place<C> &in, float *lists, int wg,
                                               int first_unit, int unit_step)
{
    constexpr int kTurn = 8, kListThreads = scales<C>::kThreads, kStep = C::PP ? C::WGS : 1;
    const int thread = threadIdx.x % 128, lane = threadIdx.x % 32;
    const int list_bar = C::PP ? 1 + wg : 4, list_thread = C::PP ? thread : wg * 128 + thread;
    const int row_in_tile = C::PP ? 0 : wg * 64 * C::MI;
    const int n_units = p.n_units_m * p.n_units_n;
    float *list = lists + (C::PP ? wg * 2 * C::NOUT : 0);
    place at = {1 + wg, r.staging(wg), 0, list, r.loaded_at(wg), 0};
    int k0, k1;
    k_range(p, in, &k0, &k1);
    int step = C::PP ? wg * (k1 - k0) : 0;

#pragma unroll 1
    for (int unit = first_unit + (C::PP ? wg : 0) * unit_step; unit < n_units;
         unit += kStep * unit_step, step += kStep * (k1 - k0)) {
        const tile t = tile_of(p, in, unit);
        const int row0 = t.row + row_in_tile, col0 = t.col + (C::GATHER ? 0 : in.split * C::NOUT);
        scales<C> s;
        s.load(p, row0 + thread / 32 * 16 + lane / 4, col0, list_thread);
        const slices all(p, row0, col0, 64 * C::MI, C::NOUT);
        if (C::PP && p.has_residual && !p.has_y) load_first<C::SLOTS>(p, at, all);
        int acc[C::MI][C::BN / 2];
        if (C::PP && unit != first_unit) qb_bar_sync(kTurn + wg, 256);
        multiply<C>(acc, r, in, row_in_tile, step, k1 - k0, lane,
                    unit + unit_step < n_units ? kTurn + (wg + 1) % C::WGS : 0);
        if (C::SPLIT > 1) exchange<C>(acc, r, in, wg * 128 + thread);
        qb_bar_sync(list_bar, kListThreads); /* the list of the tile before is done with */
        s.share(list, list_thread, p.x_scale_step);
        qb_bar_sync(list_bar, kListThreads);
        if (C::GATHER && in.split) continue;
#pragma unroll
        for (int mi = 0; mi < C::MI; mi++)
            finish<C::NOUT, C::SLOTS, C::PP>(*(int(*)[C::NOUT / 2]) & acc[mi], p, at, all, mi,
                                             s.x[mi]);
    }
    if (thread == 0) qb_tma_wait_read<0>();
}

template <class C>
__global__ void __launch_bounds__(C::THREADS, 1)
    gemm_s8_sm90(const __grid_constant__ qb__gemm_s8_params p)
{
    extern __shared__ __align__(1024) uint8_t smem[];
    const ring<C> r = {qb_smem(smem)};
    float *lists = (float *)(smem + C::STAGES * C::STAGE_BYTES + C::STAGING_BYTES);
    const cluster_place<C> in;
    const int first_unit = blockIdx.x / C::CLUSTER, unit_step = gridDim.x / C::CLUSTER;
    const int wg = __shfl_sync(0xffffffffu, threadIdx.x / 128, 0); /* uniform, and seen to be */

    if (threadIdx.x == 0) {
        if (r.base & 1023) __trap(); /* swizzled tiles */
        qb_tma_prefetch_map(&p.x);
        qb_tma_prefetch_map(&p.w);
        for (int s = 0; s < C::STAGES; s++) {
            qb_mbar_init(r.full_at(s), 1);
            qb_mbar_init(r.empty_at(s), 4 * C::CONSUMERS * (C::CM + C::CN - 1));
        }
        for (int s = 0; s < C::WGS * C::SLOTS; s++) qb_mbar_init(r.loaded_at(0) + 8 * s, 1);
        qb_mbar_init_fence();
    }
    __syncthreads();
    if (C::CLUSTER > 1) {
        qb_cluster_arrive();
        qb_cluster_wait();
    }
    qb__start_next_grid(); /* it waits for this one's end where it needs it */

    if (wg == 0) {
        if (C::WGS == 2) qb_regs_give<24>();
        if (C::WGS == 3) qb_regs_give<32>();
        if (threadIdx.x == 0) produce<C>(p, r, in, first_unit, unit_step);
        if (C::SPLIT > 1) { /* the two of exchange */
            __syncwarp();
            qb_cluster_arrive();
            qb_cluster_wait();
            qb_cluster_arrive();
            qb_cluster_wait();
        }
    } else {
        if (C::WGS == 2) qb_regs_take<240>();
        if (C::WGS == 3) qb_regs_take<160>();
        qb__wait_previous_grid();
        consume<C>(p, r, in, lists, wg - 1, first_unit, unit_step);
    }
    if (C::CLUSTER > 1) { /* no block leaves while others may arrive at its barriers */
        __syncwarp();
        qb_cluster_arrive();
        qb_cluster_wait();
    }
}

} // namespace gemm_s8

#endif
