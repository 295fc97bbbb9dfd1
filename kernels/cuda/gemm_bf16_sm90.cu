/* kernels/cuda/gemm_bf16_sm90.cu - see gemm_bf16.h.
 *
 * The schedule is gemm_s8_sm90.cuh's ping-pong: a block is one warpgroup that loads and two that
 * take turns, one multiplying its tile of 128 x 192 while the other finishes the one before. Two
 * blocks of a cluster lie one above the other and share the columns of w: each loads half of them
 * and multicasts it. Clusters stay and take units of the raster order. */
#include "kernels/cuda/gemm_bf16_internal.h"
#include "kernels/cuda/pointwise.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/tensor_map.h"
#include "kernels/cuda/wgmma_bf16.cuh"

namespace gemm_bf16
{
constexpr int BM = 128, BN = QB_BF16_TILE, BK = 64, CM = 2;
constexpr int ROW_BYTES = 2 * BK, A_BYTES = BM * ROW_BYTES, B_BYTES = BN * ROW_BYTES;
constexpr int STAGE_BYTES = A_BYTES + B_BYTES, SLICE_BYTES = 64 * 128, SLICES = BN / 64;
constexpr int THREADS = 384;
constexpr int TURN = 8; /* named barriers: 1 and 2 are a warpgroup's own, 8 and 9 the turns */

struct params {
    CUtensorMap x, w, y, aux;
    int m, n, n_blocks_k, n_units_m, n_units_n, raster;
    const float *shift;
    float *sums, *maxima;
    const int32_t *run;
    bool stores;
};

/* A factor's six slices of a tile are all under way before the tile is multiplied; else what is
 * stored goes through fewer slots, and more stages of operands fit. */
template <qb_cuda_gemm_bf16_epilogue EPILOGUE> struct ring { /* shared memory by address */
    static constexpr bool READS_AUX = EPILOGUE == QB_BF16_TIMES || EPILOGUE == QB_BF16_WHERE;
    static constexpr bool W_IS_KN = READS_AUX;
    static constexpr int STAGES = READS_AUX ? 3 : 4;
    static constexpr int SLOTS = READS_AUX ? 2 * SLICES : 4;
    static constexpr int STAGING = STAGES * STAGE_BYTES;
    static constexpr int BARRIERS = STAGING + 2 * SLOTS * SLICE_BYTES, SMEM_BYTES = BARRIERS + 256;
    static_assert(SMEM_BYTES <= 232448 && (2 * STAGES + 2 * SLOTS) * 8 <= 256, "shared memory");

    uint32_t base;
    __device__ uint32_t a(int s) const
    {
        return base + s * STAGE_BYTES;
    }
    __device__ uint32_t b(int s) const
    {
        return a(s) + A_BYTES;
    }
    __device__ uint32_t slice(int wg, int i) const
    {
        return base + STAGING + (wg * SLOTS + i) * SLICE_BYTES;
    }
    __device__ uint32_t full_at(int s) const
    {
        return base + BARRIERS + 8 * s;
    }
    __device__ uint32_t empty_at(int s) const
    {
        return full_at(STAGES + s);
    }
    __device__ uint32_t loaded_at(int wg, int i) const
    {
        return full_at(2 * STAGES + wg * SLOTS + i);
    }
};

struct tile {
    int row, col;
};

/* Bands of `raster` unit rows, walked column by column. */
static __device__ __forceinline__ tile tile_of(const params &p, int cm, int unit)
{
    const int band_units = p.raster * p.n_units_n, band = unit / band_units,
              rest = unit - band * band_units;
    const int rows = min(p.raster, p.n_units_m - band * p.raster), un = rest / rows,
              um = band * p.raster + rest - un * rows;
    return {(um * CM + cm) * BM, un * BN};
}

/* ---- the warpgroup that loads: one thread ---- */

template <class R>
static __device__ __forceinline__ void load_w(const params &p, const R &r, int cm, int col,
                                              int stage, int k)
{
    const uint16_t both = (1 << CM) - 1;
    if (R::W_IS_KN)
#pragma unroll
        for (int i = 0; i < SLICES; i++)
            qb_tma_load_multicast(r.b(stage) + i * SLICE_BYTES + cm * (SLICE_BYTES / CM), &p.w,
                                  r.full_at(stage), col + 64 * i, k * BK + cm * (BK / CM), both);
    else
        qb_tma_load_multicast(r.b(stage) + cm * (B_BYTES / CM), &p.w, r.full_at(stage), k * BK,
                              col + cm * (BN / CM), both);
}

template <class R>
static __device__ __forceinline__ void produce(const params &p, const R &r, int cm, int first_unit,
                                               int unit_step)
{
    int stage = 0;
    uint32_t parity = 1; /* the first round finds every stage empty */
    for (int unit = first_unit; unit < p.n_units_m * p.n_units_n; unit += unit_step) {
        const tile t = tile_of(p, cm, unit);
        for (int k = 0; k < p.n_blocks_k; k++) {
            qb_mbar_wait_block(r.empty_at(stage), parity);
            qb_mbar_expect(r.full_at(stage), STAGE_BYTES);
            qb_tma_load(r.a(stage), &p.x, r.full_at(stage), k * BK, t.row);
            load_w(p, r, cm, t.col, stage, k);
            if (++stage == R::STAGES) {
                stage = 0;
                parity ^= 1;
            }
        }
    }
}

/* ---- products ---- */

/* Blocks of 64 columns lie SLICE_BYTES apart, groups of 8 k 1024. */
static __device__ __forceinline__ uint64_t desc_kn(uint32_t addr)
{
    return (uint64_t)((addr & 0x3ffff) >> 4) | (uint64_t)(SLICE_BYTES / 16) << 16 |
           (uint64_t)64 << 32 | (uint64_t)1 << 62;
}

template <class R> static __device__ __forceinline__ void release(const R &r, int stage, int lane)
{
    if (lane < CM) qb_mbar_arrive_cluster(r.empty_at(stage), lane);
}

/* Multiplies the n_k stages from `step` of the ring on. next: whether the other warpgroup goes on
 * with those after them; it is told as soon as it cannot mistake a stage. */
template <class R>
static __device__ __forceinline__ void multiply(float (&acc)[2][BN / 2], const R &r, int step,
                                                int n_k, int lane, int turn)
{
    int stage = step % R::STAGES, last = 0;
    uint32_t parity = step / R::STAGES & 1;
#pragma unroll 1
    for (int k = 0; k < n_k; k++) {
        qb_mbar_wait_block(r.full_at(stage), parity);
        const uint64_t a = qb_wgmma_desc(r.a(stage)),
                       b = R::W_IS_KN ? desc_kn(r.b(stage)) : qb_wgmma_desc(r.b(stage));
        qb_wgmma_fence();
#pragma unroll
        for (int kk = 0; kk < BK / 16; kk++)
#pragma unroll
            for (int mi = 0; mi < 2; mi++)
                qb_wgmma_bf16<R::W_IS_KN>(acc[mi], a + 2 * kk + mi * (64 * ROW_BYTES / 16),
                                          b + (R::W_IS_KN ? 16 * 128 / 16 : 2) * kk, k | kk);
        qb_wgmma_commit();
        qb_wgmma_wait<1>();
        if (k) release(r, last, lane);
        last = stage;
        if (++stage == R::STAGES) {
            stage = 0;
            parity ^= 1;
        }
    }
    if (turn) qb_bar_arrive(turn, 256);
    qb_wgmma_wait<0>();
    release(r, last, lane);
#pragma unroll
    for (int mi = 0; mi < 2; mi++) /* nothing reads them before the wait */
#pragma unroll
        for (int i = 0; i < BN / 2; i++) asm volatile("" : "+f"(acc[mi][i])::"memory");
}

/* ---- what is done with a tile ---- */

/* A warpgroup's way to memory: slices of 64 x 64 through its slots of shared memory. */
template <class R> struct finisher {
    const params &p;
    const R &r;
    int wg, thread, lane, warp;
    tile t;
    int slot;      /* the next to write */
    uint32_t from; /* of stmatrix's address: the lane's row within a slice */

    __device__ finisher(const params &p_, const R &r_, int wg_)
        : p(p_), r(r_), wg(wg_), thread(threadIdx.x % 128), lane(threadIdx.x % 32),
          warp(threadIdx.x / 32 % 4), t{0, 0}, slot(0),
          from((warp * 16 + lane / 8 % 2 * 8 + lane % 8) * 128)
    {
    }
    __device__ void sync() const
    {
        qb_bar_sync(1 + wg, 128);
    }
    /* columns 8 j to 8 j + 16 of the warp's 16 rows */
    __device__ void put(uint32_t slice, int j, const float *d) const
    {
        qb_stmatrix_x4(slice + from + (((j + lane / 16) ^ lane % 8) << 4), qb_bf16_pair(d[0], d[1]),
                       qb_bf16_pair(d[2], d[3]), qb_bf16_pair(d[4], d[5]),
                       qb_bf16_pair(d[6], d[7]));
    }
    __device__ void store(const CUtensorMap *map, uint32_t slice, int mi, int s) const
    {
        qb_tma_store(map, slice, t.col + 64 * s, t.row + 64 * mi);
    }
    /* Before slots are written: at most N groups of copies are still read from theirs. */
    template <int N> __device__ void claim() const
    {
        if (thread == 0) qb_tma_wait_read<N>();
        sync();
    }
    __device__ void written() const
    {
        qb_fence_async();
        sync();
    }
};

/* e^(z - shift) and their sums. */
template <class R>
static __device__ __forceinline__ void finish_exp(finisher<R> &f, float (&acc)[2][BN / 2],
                                                  const float (&shift)[2][2])
{
    const params &p = f.p;
    if (f.t.col + BN > p.n) { /* columns that are not there */
#pragma unroll
        for (int mi = 0; mi < 2; mi++)
#pragma unroll
            for (int i = 0; i < BN / 2; i++)
                if (f.t.col + i / 4 * 8 + f.lane % 4 * 2 + i % 2 >= p.n) acc[mi][i] = -CUDART_INF_F;
    }
#pragma unroll
    for (int mi = 0; mi < 2; mi++) {
        const float c[2] = {-QB_LOG2E * shift[mi][0], -QB_LOG2E * shift[mi][1]};
        float sum[2] = {0.0f, 0.0f};
#pragma unroll
        for (int s = 0; s < SLICES; s++) {
            const uint32_t slice = f.r.slice(f.wg, f.slot);
            if (p.stores) f.template claim<R::SLOTS - 1>();
#pragma unroll
            for (int j = 0; j < 8; j += 2) {
                float e[8];
#pragma unroll
                for (int i = 0; i < 8; i++) {
                    e[i] = qb_exp2(fmaf(acc[mi][32 * s + 4 * j + i], QB_LOG2E, c[i / 2 % 2]));
                    sum[i / 2 % 2] += e[i];
                }
                if (p.stores) f.put(slice, j, e);
            }
            if (p.stores) {
                f.written();
                if (f.thread == 0) {
                    f.store(&p.y, slice, mi, s);
                    qb_tma_commit();
                }
                f.slot = (f.slot + 1) % R::SLOTS;
            }
        }
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const int row = f.t.row + 64 * mi + f.warp * 16 + f.lane / 4 + 8 * h;
            const size_t at = (size_t)(f.t.col / BN) * p.m + row;
            sum[h] += __shfl_xor_sync(0xffffffffu, sum[h], 1);
            sum[h] += __shfl_xor_sync(0xffffffffu, sum[h], 2);
            const bool mine = f.lane % 4 == 0 && row < p.m;
            if (mine) p.sums[at] = sum[h];
            if (__any_sync(0xffffffffu, row < p.m && !(sum[h] <= QB_BF16_MOST))) {
                float max = -CUDART_INF_F;
#pragma unroll
                for (int i = 0; i < BN / 8; i++)
                    max = fmaxf(max, fmaxf(acc[mi][4 * i + 2 * h], acc[mi][4 * i + 2 * h + 1]));
                max = fmaxf(max, __shfl_xor_sync(0xffffffffu, max, 1));
                max = fmaxf(max, __shfl_xor_sync(0xffffffffu, max, 2));
                if (mine) p.maxima[at] = max;
            }
        }
    }
}

/* GELU and its slope; a group of copies is two slices. */
template <class R>
static __device__ __forceinline__ void finish_gelu(finisher<R> &f, const float (&acc)[2][BN / 2])
{
#pragma unroll
    for (int mi = 0; mi < 2; mi++)
#pragma unroll
        for (int s = 0; s < SLICES; s++) {
            const uint32_t aux = f.r.slice(f.wg, f.slot), y = aux + SLICE_BYTES;
            f.template claim<R::SLOTS / 2 - 1>();
#pragma unroll
            for (int j = 0; j < 8; j += 2) {
                float g[8], slope[8];
#pragma unroll
                for (int i = 0; i < 8; i++) {
                    const float x = acc[mi][32 * s + 4 * j + i], share = qb_gelu_share(x);
                    g[i] = x * share;
                    slope[i] = qb_gelu_slope(x, g[i], share);
                }
                f.put(aux, j, slope);
                f.put(y, j, g);
            }
            f.written();
            if (f.thread == 0) {
                f.store(&f.p.aux, aux, mi, s);
                f.store(&f.p.y, y, mi, s);
                qb_tma_commit();
            }
            f.slot = (f.slot + 2) % R::SLOTS;
        }
}

template <class R>
static __device__ __forceinline__ void finish_relu(finisher<R> &f, const float (&acc)[2][BN / 2])
{
#pragma unroll
    for (int mi = 0; mi < 2; mi++)
#pragma unroll
        for (int s = 0; s < SLICES; s++) {
            const uint32_t slice = f.r.slice(f.wg, f.slot);
            f.template claim<R::SLOTS - 1>();
#pragma unroll
            for (int j = 0; j < 8; j += 2) {
                float y[8];
#pragma unroll
                for (int i = 0; i < 8; i++) y[i] = fmaxf(acc[mi][32 * s + 4 * j + i], 0.0f);
                f.put(slice, j, y);
            }
            f.written();
            if (f.thread == 0) {
                f.store(&f.p.y, slice, mi, s);
                qb_tma_commit();
            }
            f.slot = (f.slot + 1) % R::SLOTS;
        }
}

/* Slice s of the upper and lower half of a tile has slot s and slot SLICES + s: from aux, changed
 * where it stands, to y. */
template <class R> static __device__ __forceinline__ void load_aux(const finisher<R> &f)
{
    qb_tma_wait_read<0>();
    for (int i = 0; i < 2 * SLICES; i++) {
        const uint32_t bar = f.r.loaded_at(f.wg, i);
        qb_mbar_expect(bar, SLICE_BYTES);
        qb_tma_load(f.r.slice(f.wg, i), &f.p.aux, bar, f.t.col + 64 * (i % SLICES),
                    f.t.row + 64 * (i / SLICES));
    }
}

/* WHERE: kept where aux is positive, else multiplied by it. */
template <bool WHERE, class R>
static __device__ __forceinline__ void finish_times(finisher<R> &f, float (&acc)[2][BN / 2],
                                                    uint32_t parity)
{
#pragma unroll
    for (int mi = 0; mi < 2; mi++)
#pragma unroll
        for (int s = 0; s < SLICES; s++) {
            const uint32_t slice = f.r.slice(f.wg, mi * SLICES + s);
            const uint32_t own = slice + (f.warp * 16 + f.lane / 4) * 128 + f.lane % 4 * 4;
            qb_mbar_wait_block(f.r.loaded_at(f.wg, mi * SLICES + s), parity);
#pragma unroll
            for (int j = 0; j < 8; j++)
#pragma unroll
                for (int h = 0; h < 2; h++) {
                    uint32_t pair;
                    float *z = &acc[mi][32 * s + 4 * j + 2 * h];
                    asm volatile("ld.shared.u32 %0, [%1];"
                                 : "=r"(pair)
                                 : "r"(own + h * 8 * 128 + ((j ^ f.lane / 4 % 8) << 4))
                                 : "memory");
                    const float low = qb_bf16_low(pair), high = qb_bf16_high(pair);
                    z[0] = !WHERE ? z[0] * low : low > 0.0f ? z[0] : 0.0f;
                    z[1] = !WHERE ? z[1] * high : high > 0.0f ? z[1] : 0.0f;
                }
            __syncwarp();
#pragma unroll
            for (int j = 0; j < 8; j += 2) f.put(slice, j, &acc[mi][32 * s + 4 * j]);
            f.written();
            if (f.thread == 0) {
                f.store(&f.p.y, slice, mi, s);
                qb_tma_commit();
            }
        }
}

template <qb_cuda_gemm_bf16_epilogue EPILOGUE>
static __device__ __forceinline__ void consume(const params &p, const ring<EPILOGUE> &r, int cm,
                                               int wg, int first_unit, int unit_step)
{
    const int n_units = p.n_units_m * p.n_units_n;
    finisher<ring<EPILOGUE>> f(p, r, wg);
    uint32_t parity = 0;
    int step = wg * p.n_blocks_k;
#pragma unroll 1
    for (int unit = first_unit + wg * unit_step; unit < n_units;
         unit += 2 * unit_step, step += 2 * p.n_blocks_k) {
        float acc[2][BN / 2], shift[2][2];
        f.t = tile_of(p, cm, unit);
        if (EPILOGUE == QB_BF16_EXP)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const int row = f.t.row + i / 2 * 64 + f.warp * 16 + f.lane / 4 + i % 2 * 8;
                shift[i / 2][i % 2] = row < p.m ? p.shift[row] : 0.0f;
            }
        if constexpr (ring<EPILOGUE>::READS_AUX)
            if (f.thread == 0) load_aux(f);
        if (unit != first_unit) qb_bar_sync(TURN + wg, 256);
        multiply(acc, r, step, p.n_blocks_k, f.lane,
                 unit + unit_step < n_units ? TURN + (wg ^ 1) : 0);
        if constexpr (EPILOGUE == QB_BF16_EXP) finish_exp(f, acc, shift);
        if constexpr (EPILOGUE == QB_BF16_GELU) finish_gelu(f, acc);
        if constexpr (EPILOGUE == QB_BF16_RELU) finish_relu(f, acc);
        if constexpr (ring<EPILOGUE>::READS_AUX)
            finish_times<EPILOGUE == QB_BF16_WHERE>(f, acc, parity);
        parity ^= 1;
    }
    if (f.thread == 0) qb_tma_wait_read<0>();
}

template <qb_cuda_gemm_bf16_epilogue EPILOGUE>
__global__ void __launch_bounds__(THREADS, 1) gemm(const __grid_constant__ params p)
{
    extern __shared__ __align__(1024) uint8_t smem[];
    if (p.run && !*p.run) return; /* all blocks of all clusters alike */
    using R = ring<EPILOGUE>;
    const R r = {qb_smem(smem)};
    const int cm = (int)qb_cluster_rank();
    const int first_unit = blockIdx.x / CM, unit_step = gridDim.x / CM;
    const int wg = __shfl_sync(0xffffffffu, threadIdx.x / 128, 0); /* uniform, and seen to be */

    if (threadIdx.x == 0) {
        if (r.base & 1023) __trap(); /* swizzled tiles */
        qb_tma_prefetch_map(&p.x);
        qb_tma_prefetch_map(&p.w);
        for (int s = 0; s < R::STAGES; s++) {
            qb_mbar_init(r.full_at(s), 1);
            qb_mbar_init(r.empty_at(s), 4 * CM);
        }
        for (int i = 0; i < 2 * R::SLOTS; i++) qb_mbar_init(r.loaded_at(0, i), 1);
        qb_mbar_init_fence();
    }
    __syncthreads();
    qb_cluster_arrive();
    qb_cluster_wait();
    if (wg == 0) {
        qb_regs_give<24>();
        if (threadIdx.x == 0) produce(p, r, cm, first_unit, unit_step);
        __syncwarp();
    } else {
        qb_regs_take<240>();
        consume<EPILOGUE>(p, r, cm, wg - 1, first_unit, unit_step);
    }
    __syncwarp();
    qb_cluster_arrive(); /* no block leaves while the other may arrive at its barriers */
    qb_cluster_wait();
}

/* ---- launch ---- */

static void fill_config(cudaLaunchConfig_t *c, cudaLaunchAttribute *cluster, int n_clusters,
                        int smem_bytes, qb_cuda_stream stream)
{
    cluster->id = cudaLaunchAttributeClusterDimension;
    cluster->val.clusterDim.x = CM;
    cluster->val.clusterDim.y = cluster->val.clusterDim.z = 1;
    c->gridDim = dim3((unsigned)(n_clusters * CM));
    c->blockDim = dim3(THREADS);
    c->dynamicSmemBytes = (size_t)smem_bytes;
    c->stream = stream;
    c->attrs = cluster;
    c->numAttrs = 1;
}

/* How many clusters of a kernel fit at a time; sets up its shared memory. */
static qb_status resident_clusters(const void *kernel, int smem_bytes, int *out)
{
    cudaLaunchConfig_t config = {};
    cudaLaunchAttribute cluster;
    QB_CUDA_TRY(
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, smem_bytes));
    fill_config(&config, &cluster, 1, smem_bytes, nullptr);
    QB_CUDA_TRY(cudaOccupancyMaxActiveClusters(out, kernel, &config));
    if (*out > 0) return QB_OK;
    return QB_FAIL(QB_ERR_DEVICE, "cuda: no cluster of %d blocks with %d bytes fits", CM,
                   smem_bytes);
}

static qb_status map_of(CUtensorMap *out, const void *base, size_t cols, size_t rows, size_t stride,
                        int box_rows)
{
    const qb__tensor_map_args args = {
        CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, base, cols, rows, stride, 64, box_rows,
        CU_TENSOR_MAP_SWIZZLE_128B};
    return qb__tensor_map(out, &args);
}

template <qb_cuda_gemm_bf16_epilogue EPILOGUE>
static qb_status launch(const qb_cuda_gemm_bf16_args *a, qb_cuda_stream stream)
{
    static int resident[64];
    constexpr int smem_bytes = ring<EPILOGUE>::SMEM_BYTES;
    int device = qb_cuda_current();
    const void *kernel = (const void *)gemm<EPILOGUE>;
    int n_resident = device < 64 ? __atomic_load_n(&resident[device], __ATOMIC_RELAXED) : 0;
    if (!n_resident) QB_TRY(resident_clusters(kernel, smem_bytes, &n_resident));
    if (device < 64) __atomic_store_n(&resident[device], n_resident, __ATOMIC_RELAXED);
    params p = {};
    p.m = (int)a->m, p.n = (int)a->n, p.n_blocks_k = (int)((a->k + BK - 1) / BK);
    p.n_units_m = (p.m + CM * BM - 1) / (CM * BM), p.n_units_n = (p.n + BN - 1) / BN;
    /* What is stored beside y wants whole rows soon; w of the logits is read seldom. */
    const int raster = EPILOGUE == QB_BF16_EXP ? 16 : 4;
    p.raster = p.n_units_m < raster ? p.n_units_m : raster;
    p.shift = a->shift, p.sums = a->sums, p.maxima = a->maxima, p.run = a->run;
    p.stores = a->y != NULL;
    QB_TRY(map_of(&p.x, a->x, a->k, a->m, a->x_stride, BM));
    if (ring<EPILOGUE>::W_IS_KN)
        QB_TRY(map_of(&p.w, a->w, a->n, a->k, a->w_stride, BK / CM));
    else
        QB_TRY(map_of(&p.w, a->w, a->k, a->n, a->w_stride, BN / CM));
    if (a->y) QB_TRY(map_of(&p.y, a->y, a->n, a->m, a->y_stride, 64));
    if (a->aux) QB_TRY(map_of(&p.aux, a->aux, a->n, a->m, a->aux_stride, 64));
    const int n_units = p.n_units_m * p.n_units_n;
    cudaLaunchConfig_t config = {};
    cudaLaunchAttribute cluster;
    void *args[] = {&p};
    fill_config(&config, &cluster, n_units < n_resident ? n_units : n_resident, smem_bytes, stream);
    QB_CUDA_TRY(cudaLaunchKernelExC(&config, kernel, args));
    return QB_OK;
}
} // namespace gemm_bf16

/* What the copy engine asks of a matrix. */
static bool fits_copy(const void *base, size_t stride)
{
    return (uintptr_t)base % 16 == 0 && stride % 8 == 0;
}

const char *qb__cuda_gemm_bf16_refuse_sm90(const qb_cuda_gemm_bf16_args *a)
{
    if (a->m > INT32_MAX / 2 || a->n > INT32_MAX / 2) return "m or n too large";
    if (!fits_copy(a->x, a->x_stride) || !fits_copy(a->w, a->w_stride) ||
        (a->y && !fits_copy(a->y, a->y_stride)) || (a->aux && !fits_copy(a->aux, a->aux_stride)))
        return "a matrix is not in rows of 16 bytes";
    return NULL;
}

qb_status qb__cuda_gemm_bf16_sm90(const qb_cuda_gemm_bf16_args *a, qb_cuda_stream stream)
{
    switch (a->epilogue) {
    case QB_BF16_EXP:
        return gemm_bf16::launch<QB_BF16_EXP>(a, stream);
    case QB_BF16_GELU:
        return gemm_bf16::launch<QB_BF16_GELU>(a, stream);
    case QB_BF16_TIMES:
        return gemm_bf16::launch<QB_BF16_TIMES>(a, stream);
    case QB_BF16_RELU:
        return gemm_bf16::launch<QB_BF16_RELU>(a, stream);
    case QB_BF16_WHERE:
        return gemm_bf16::launch<QB_BF16_WHERE>(a, stream);
    }
    return QB_OK;
}
