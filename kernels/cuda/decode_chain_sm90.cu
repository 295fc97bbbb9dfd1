/* kernels/cuda/decode_chain_sm90.cu - the kernels of the decode chain.
 *
 * A product's output channels are cut into tiles of 16, dealt to the blocks in runs. A block's
 * tiles stream through a ring in shared memory, in chunks of their input channels; where the ring
 * holds all of them, as it mostly does, they are there before the input is. The warps share each
 * chunk; their sums meet in shared memory once, behind the last tile. */
#include "kernels/cuda/decode_chain_attention.cuh"
#include "kernels/cuda/decode_chain_stage.cuh"
#include "kernels/cuda/mma.cuh"

namespace qb_chain
{

constexpr int U4_GROUPS = QB_CUDA_LINEAR_U4 + 1; /* 4-bit weights with scales of groups */
template <int KIND> constexpr bool IS_U4 = KIND == QB_CUDA_LINEAR_U4 || KIND == U4_GROUPS;
template <int KIND> struct sums {
    using type = float;
};
template <> struct sums<QB_CUDA_LINEAR_S8> {
    using type = int;
};

/* ---- weights ---- */

struct tile_run {
    uint32_t first, count; /* tiles; of a paired layer, in turn up's and the gate's */
};

__device__ __forceinline__ tile_run run_of(const qb__chain_product &p)
{
    const qb__chain_linear &l = p.l;
    const uint32_t all = l.n_tiles >> l.paired, i = blockIdx.x / p.n_ranks;
    const uint32_t n = gridDim.x / p.n_ranks, each = all / n, more = all - each * n;
    return {i * each + min(i, more), (each + (i < more)) << l.paired};
}

__device__ __forceinline__ uint32_t tile_at(const qb__chain_linear &l, const tile_run &run,
                                            uint32_t i)
{
    return l.paired ? run.first + i / 2 + (i & 1) * (l.n_tiles / 2) : run.first + i;
}

struct ring_place {
    uint32_t slot, parity;
    __device__ __forceinline__ void advance(uint32_t n_slots)
    {
        if (++slot == n_slots) slot = 0, parity ^= 1;
    }
};

__device__ __forceinline__ uint32_t chunk_size(const qb__chain_linear &l, uint32_t chunk)
{
    const uint32_t whole = l.row_bytes == 0 ? l.tile_bytes : l.x_bytes;
    return min(l.chunk_bytes, whole - chunk * l.chunk_bytes);
}

/* Groups that a chunk of 4-bit weights meets: 8 bytes of a tile are one input channel. */
__device__ __forceinline__ uint32_t groups_of(const qb__chain_linear &l, uint32_t chunk)
{
    if (l.group == 0) return 0;
    const uint32_t first = chunk * l.chunk_bytes / 8;
    return (first + chunk_size(l, chunk) / 8 - 1) / l.group - first / l.group + 1;
}

__device__ __forceinline__ void fetch_chunk(const qb__chain_product &p, head *h, char *slot,
                                            uint64_t *full, uint32_t tile, uint32_t chunk, int lane)
{
    const qb__chain_linear &l = p.l;
    const uint32_t from = chunk * l.chunk_bytes, bytes = chunk_size(l, chunk);
    const uint32_t rows = l.row_bytes == 0 ? 1 : min((uint32_t)TILE, l.n - tile * TILE);
    const uint32_t groups = groups_of(l, chunk);
    const char *src = (const char *)l.w + (size_t)tile * l.tile_bytes + from;
    if (lane == 0) qb_mbar_expect(qb_smem(full), rows * bytes + groups * QB__CHAIN_GROUP_BYTES);
    __syncwarp();
    if (lane < (int)rows)
        qb_bulk_load(qb_smem(slot + lane * p.pitch), src + (size_t)lane * l.row_bytes,
                     qb_smem(full), bytes);
    for (uint32_t i = lane; i < groups; i += 32) {
        const size_t at = (size_t)(from / 8 / l.group + i) * l.n_pad + tile * TILE;
        char *to = slot + l.chunk_bytes + i * QB__CHAIN_GROUP_BYTES;
        qb_bulk_load(qb_smem(to), l.w_scale + at, qb_smem(full), TILE * 4);
        qb_bulk_load(qb_smem(to + TILE * 4), l.zero_point + at, qb_smem(full), TILE * 2);
    }
}

/* A slot's turn: all warps have left it (empty: an arrival of each one's lane 0, behind its lanes'
 * reads), its bytes are asked for, they are there (full: each reader waits for itself). The wait is
 * lane 0's, and __syncwarp passes it on to the lanes that copy. docs/cuda.md has why racecheck
 * nevertheless reports it. */
__device__ __forceinline__ void fetch_weights(const qb__chain_product &p, head *h, char *smem,
                                              const tile_run &run, const k_part &part, int lane)
{
    ring_place at = {0, 1};
    for (uint32_t i = 0; i < run.count; i++)
        for (uint32_t chunk = part.first_chunk; chunk < part.first_chunk + part.n_chunks; chunk++) {
            if (lane == 0) wait_for(&h->empty[at.slot], at.parity);
            __syncwarp();
            fetch_chunk(p, h, smem + p.ring_off + at.slot * p.slot_bytes, &h->full[at.slot],
                        tile_at(p.l, run, i), chunk, lane);
            at.advance(p.n_slots);
        }
}

/* ---- products ---- */

__device__ __forceinline__ void mma(int (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                                    uint32_t b0, uint32_t b1)
{
    const uint32_t a[4] = {a0, a1, a2, a3};
    qb__mma_s8(d, a, b0, b1);
}

__device__ __forceinline__ void mma(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2,
                                    uint32_t a3, uint32_t b0, uint32_t b1)
{
    const uint32_t a[4] = {a0, a1, a2, a3};
    qb__mma_bf16(d, a, b0, b1);
}

/* All columns of B hold the one input, so every column of D is its product. The order of k inside
 * an mma is free as long as A and B agree: a lane takes 16 bytes side by side. */
template <int KIND> struct window { /* 64 bytes of 16 rows, and of the input */
    uint4 lo, hi, x;
};
template <> struct window<QB_CUDA_LINEAR_U4> { /* 512 bytes of a tile: 64 channels */
    uint4 codes, x[2];
};
template <> struct window<U4_GROUPS> {
    uint4 codes, x[2];
    __nv_bfloat162 zero[2]; /* 128 + zero point of the lane's two rows */
    float scale[2];
};

template <int KIND>
__device__ __forceinline__ void load_window(window<KIND> &w, uint32_t pitch, const char *chunk,
                                            const char *x, const char *, int index, int lane)
{
    const char *a = chunk + (lane >> 2) * pitch + (lane & 3) * 16 + index * 64;
    w.lo = *(const uint4 *)a, w.hi = *(const uint4 *)(a + 8 * pitch);
    w.x = *(const uint4 *)(x + index * 64 + (lane & 3) * 16);
}

template <>
__device__ __forceinline__ void
load_window<QB_CUDA_LINEAR_U4>(window<QB_CUDA_LINEAR_U4> &w, uint32_t, const char *chunk,
                               const char *x, const char *, int index, int lane)
{
    w.codes = *(const uint4 *)(chunk + index * 512 + lane * 16);
#pragma unroll
    for (int i = 0; i < 2; i++)
        w.x[i] = *(const uint4 *)(x + index * 128 + i * 64 + (lane & 3) * 16);
}

template <>
__device__ __forceinline__ void load_window<U4_GROUPS>(window<U4_GROUPS> &w, uint32_t,
                                                       const char *chunk, const char *x,
                                                       const char *group, int index, int lane)
{
    w.codes = *(const uint4 *)(chunk + index * 512 + lane * 16);
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const int row = (lane >> 2) + 8 * i;
        w.x[i] = *(const uint4 *)(x + index * 128 + i * 64 + (lane & 3) * 16);
        w.zero[i] =
            __float2bfloat162_rn(128.0f + (float)((const int16_t *)(group + TILE * 4))[row]);
        w.scale[i] = ((const float *)group)[row];
    }
}

template <int KIND>
__device__ __forceinline__ void multiply_window(typename sums<KIND>::type (&acc)[2][4],
                                                const window<KIND> &w)
{
    mma(acc[0], w.lo.x, w.hi.x, w.lo.y, w.hi.y, w.x.x, w.x.y);
    mma(acc[1], w.lo.z, w.hi.z, w.lo.w, w.hi.w, w.x.z, w.x.w);
}

/* 16 channels of 4-bit codes as code + 128 in bf16 (gemm_u4.h). The 128 and the zero point are
 * taken off the sums; or, in groups, off the codes. */
__device__ __forceinline__ uint32_t codes_of_word(uint32_t word, int i)
{
    uint32_t a;
    asm("lop3.b32 %0, %1, 0x000f000f, 0x43004300, 0xea;" : "=r"(a) : "r"(word >> (4 * i)));
    return a;
}

template <>
__device__ __forceinline__ void
multiply_window<QB_CUDA_LINEAR_U4>(float (&acc)[2][4], const window<QB_CUDA_LINEAR_U4> &w)
{
    const uint32_t words[4] = {w.codes.x, w.codes.y, w.codes.z, w.codes.w};
#pragma unroll
    for (int j = 0; j < 4; j++) {
        const uint4 &x = w.x[j / 2];
        mma(acc[j & 1], codes_of_word(words[j], 0), codes_of_word(words[j], 1),
            codes_of_word(words[j], 2), codes_of_word(words[j], 3), j & 1 ? x.z : x.x,
            j & 1 ? x.w : x.y);
    }
}

template <>
__device__ __forceinline__ void multiply_window<U4_GROUPS>(float (&acc)[2][4],
                                                           const window<U4_GROUPS> &w)
{
    const uint32_t words[4] = {w.codes.x, w.codes.y, w.codes.z, w.codes.w};
    float part[2][4] = {};
#pragma unroll
    for (int j = 0; j < 4; j++) {
        const uint4 &x = w.x[j / 2];
        uint32_t a[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const uint32_t code = codes_of_word(words[j], i);
            const __nv_bfloat162 q = __hsub2(*(const __nv_bfloat162 *)&code, w.zero[i & 1]);
            a[i] = *(const uint32_t *)&q;
        }
        mma(part[j & 1], a[0], a[1], a[2], a[3], j & 1 ? x.z : x.x, j & 1 ? x.w : x.y);
    }
#pragma unroll
    for (int i = 0; i < 2; i++) acc[0][2 * i] += w.scale[i] * (part[0][2 * i] + part[1][2 * i]);
}

/* How the warps go through the chunks; `zero` as in input_place. */
struct walk {
    const char *ring, *x;
    uint32_t slot_bytes, n_slots, x_chunk, pitch;
    int n, n_last; /* windows of a chunk, of the last */
};

template <int KIND>
__device__ __forceinline__ walk walk_of(const qb__chain_product &p, const k_part &k,
                                        const char *smem, const char *x, uint32_t zero)
{
    constexpr int WINDOW = IS_U4<KIND> ? 512 : 64;
    return {smem + p.ring_off + zero,
            x,
            p.slot_bytes + zero,
            p.n_slots + zero,
            p.l.x_chunk + zero,
            p.pitch + zero,
            (int)(p.l.chunk_bytes / WINDOW + zero),
            (int)(chunk_size(p.l, k.first_chunk + k.n_chunks - 1) / WINDOW + zero)};
}

/* A warp's windows of a chunk, AHEAD of them loaded before the first is used. */
template <int KIND>
__device__ __forceinline__ void multiply_chunk(typename sums<KIND>::type (&acc)[2][4],
                                               const qb__chain_product &p, const char *chunk,
                                               uint32_t index, int n, uint32_t pitch, const char *x,
                                               int warp, int lane)
{
    constexpr int AHEAD = KIND == U4_GROUPS ? 2 : 4;
#pragma unroll 1
    for (int first = warp; first < n; first += AHEAD * WARPS) {
        window<KIND> w[AHEAD];
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            const int at = first + i * WARPS;
            if (at >= n) continue;
            const char *group = chunk;
            if constexpr (KIND == U4_GROUPS) {
                const uint32_t from = index * p.l.chunk_bytes / 8; /* channels */
                group += p.l.chunk_bytes +
                         ((from + at * 64) / p.l.group - from / p.l.group) * QB__CHAIN_GROUP_BYTES;
            }
            load_window<KIND>(w[i], pitch, chunk, x, group, at, lane);
        }
#pragma unroll
        for (int i = 0; i < AHEAD; i++)
            if (first + i * WARPS < n) multiply_window<KIND>(acc, w[i]);
    }
}

/* Sums of every tile, output channel and warp, (tile, 16, warp). */
template <int KIND>
__device__ __forceinline__ void multiply(const qb__chain_product &p, head *h,
                                         typename sums<KIND>::type *sums_at, const walk &w,
                                         uint32_t n_tiles, const k_part &k, int tid)
{
    using T = typename sums<KIND>::type;
    const int warp = tid >> 5, lane = tid & 31;
    T *part = sums_at + (lane >> 2) * WARPS + warp;
    ring_place at = {0, 0};
#pragma unroll 1
    for (uint32_t i = 0; i < n_tiles; i++) {
        T acc[2][4] = {};
#pragma unroll 1
        for (uint32_t chunk = 0; chunk < k.n_chunks; chunk++) {
            wait_for(&h->full[at.slot], at.parity);
            __syncwarp(); /* the wait's loop may end at another time for each lane */
            multiply_chunk<KIND>(acc, p, w.ring + at.slot * w.slot_bytes, k.first_chunk + chunk,
                                 chunk + 1 == k.n_chunks ? w.n_last : w.n, w.pitch,
                                 w.x + chunk * w.x_chunk, warp, lane);
            __syncwarp();
            if (lane == 0) qb_mbar_arrive(qb_smem(&h->empty[at.slot]));
            at.advance(w.n_slots);
        }
        if ((lane & 3) == 0) {
            part[i * TILE * WARPS] = acc[0][0] + acc[1][0];
            part[(i * TILE + 8) * WARPS] = acc[0][2] + acc[1][2];
        }
    }
}

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
        qb_mbar_init(qb_smem(&h->empty[i]), WARPS);
    }
    qb_mbar_init_fence();
    h->zero = 0;
}

/* N: 4 N values of the input a thread. PLAIN: without the rarer cases, whose code, though it is
 * jumped over, takes longer to fetch than the rest takes to run. */
template <int KIND, int N, bool PLAIN>
__global__ void __launch_bounds__(THREADS, N <= 2 ? 2 : 1)
    chain_product(const __grid_constant__ qb__chain_product p)
{
    extern __shared__ __align__(128) char smem[];
    head *h = (head *)smem;
    char *x = smem + QB__CHAIN_HEADER_BYTES;
    const int tid = (int)threadIdx.x;
    if (tid == CONSUMERS) init_ring(p, h);
    qb__start_next_grid();
    const k_part part = part_of(p);
    const bool alone = p.n_ranks == 1;
    const tile_run run = run_of(p);
    const int rank = alone ? 0 : (int)(blockIdx.x % p.n_ranks);
    if (!alone) {
        if (tid == CONSUMERS) expect_sums(p, h, run, rank);
        cluster_start();
    }
    __syncwarp();
    if (tid >= CONSUMERS) {
        asm volatile("bar.arrive 2, %0;" ::"n"(THREADS) : "memory");
        fetch_weights(p, h, smem, run, part, tid - CONSUMERS);
        return;
    }
    const channel first =
        load_channel<KIND>(p.l, channel_at(run, tid / LANES, (run.count * TILE) >> p.l.paired));
    channel own = {NONE, 0.0f, 0.0f, 0.0f};
    if (!alone) own = load_channel<KIND>(p.l, own_channel(p, run, rank, tid));
    constexpr bool CAN_NORM = !PLAIN || N <= 2; /* the gains of a wide one need registers */
    const bool norm = CAN_NORM && p.source == QB__CHAIN_NORM;
    norm_constants<CAN_NORM ? N : 1> constants;
    if constexpr (CAN_NORM)
        if (norm) load_constants<N>(p, constants, tid);
    __syncwarp();
    asm volatile("bar.sync 2, %0;" ::"n"(THREADS) : "memory");
    const uint32_t zero = *(volatile uint32_t *)&h->zero;
    const input_place at = place_input(p, part, tid, zero);
    const walk way = walk_of<KIND>(p, part, smem, x, zero);
    typename sums<KIND>::type *const sums_at =
        (typename sums<KIND>::type *)(smem + p.sums_off + zero);
    qb__wait_previous_grid();
    row<N> r;
    if (norm) {
        if constexpr (CAN_NORM) stage_norm<N, PLAIN>(p, h, constants, at, r, tid);
    } else {
        load_input<N>(at, part.k, r, tid);
        if (!PLAIN && p.source == QB__CHAIN_ACT) stage_act<N>(p, r, tid);
    }
    float x_scale = 1.0f;
    if constexpr (KIND == QB_CUDA_LINEAR_S8)
        x_scale = store_codes<N, PLAIN>(p, h, at, r, part.x_bytes, x, tid);
    else if constexpr (KIND == QB_CUDA_LINEAR_FLOAT)
        store_bf16<N>(r, part.x_bytes, x, tid);
    else
        store_u4<N, PLAIN>(p, h, r, part.x_bytes, x, tid);
    block_sync();
    multiply<KIND>(p, h, sums_at, way, run.count, part, tid);
    block_sync();
    if (alone) {
        write_outputs<KIND, PLAIN>(p, h, smem, run, first, x_scale, tid);
    } else {
        send_sums<KIND, PLAIN>(p, h, smem, run, first, rank, tid);
        write_own<KIND>(p, h, smem, own, x_scale, tid);
    }
    if (blockIdx.x != 0) return;
#pragma unroll 1
    for (uint32_t i = tid; i < p.n_zero; i += CONSUMERS) p.zero[i] = 0;
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
        return p->plain ? chain_product<KIND, 1, true> : chain_product<KIND, 1, false>;
    if (most <= 2 * STEP)
        return p->plain ? chain_product<KIND, 2, true> : chain_product<KIND, 2, false>;
    return p->plain ? chain_product<KIND, 8, true> : chain_product<KIND, 8, false>;
}

static kernel pick(const qb__chain_product *p)
{
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
    return qb_chain::launch((const void *)qb_chain::pick(p), p,
                            {p->n_blocks, p->n_ranks, QB__CHAIN_THREADS, p->smem_bytes, !first},
                            stream);
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
