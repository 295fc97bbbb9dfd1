/* kernels/cuda/decode_chain_products.cuh - the products of the decode chain.
 *
 * A product's output channels are cut into tiles of 16, dealt to the blocks in runs. A block's
 * tiles stream through a ring in shared memory, in chunks of their input channels; where the ring
 * holds all of them, as it mostly does, they are there before the input is. The warps share each
 * chunk; their sums meet in shared memory once, behind the last tile. */
#ifndef QB_KERNELS_CUDA_DECODE_CHAIN_PRODUCTS_CUH
#define QB_KERNELS_CUDA_DECODE_CHAIN_PRODUCTS_CUH

#include "kernels/cuda/decode_chain_stage.cuh"

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

/* A slot's turn: all lanes have left it (empty: an arrival of each, docs/cuda.md), its bytes are
 * asked for, they are there (full: each reader waits for itself). The wait is lane 0's, and
 * __syncwarp passes it on to the lanes that copy. */
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

/* All of the block's tiles, a chunk each. */
__device__ __forceinline__ void fetch_whole(const qb__chain_product &p, head *h, char *smem,
                                            const tile_run &run, const k_part &part, int lane)
{
    for (uint32_t i = 0; i < run.count; i++)
        fetch_chunk(p, h, smem + p.ring_off + i * p.slot_bytes, &h->full[0], tile_at(p.l, run, i),
                    part.first_chunk, lane);
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
 * an mma is free as long as A and B agree: a lane takes 16 bytes side by side. A window is 64 bytes
 * of 16 rows, of 4-bit weights 512 bytes of a tile: 64 channels. */
template <int KIND> struct weights {
    uint4 lo, hi;
};
template <> struct weights<QB_CUDA_LINEAR_U4> {
    uint4 codes;
};
template <> struct weights<U4_GROUPS> {
    uint4 codes;
    __nv_bfloat162 zero[2]; /* 128 + zero point of the lane's two rows */
    float scale[2];
};
template <int KIND> struct inputs { /* of a window */
    uint4 x[IS_U4<KIND> ? 2 : 1];
};

template <int KIND>
__device__ __forceinline__ void load_weights(weights<KIND> &w, uint32_t pitch, const char *chunk,
                                             const char *, int index, int lane)
{
    const char *a = chunk + (lane >> 2) * pitch + (lane & 3) * 16 + index * 64;
    w.lo = *(const uint4 *)a, w.hi = *(const uint4 *)(a + 8 * pitch);
}

template <>
__device__ __forceinline__ void load_weights<QB_CUDA_LINEAR_U4>(weights<QB_CUDA_LINEAR_U4> &w,
                                                                uint32_t, const char *chunk,
                                                                const char *, int index, int lane)
{
    w.codes = *(const uint4 *)(chunk + index * 512 + lane * 16);
}

template <>
__device__ __forceinline__ void load_weights<U4_GROUPS>(weights<U4_GROUPS> &w, uint32_t,
                                                        const char *chunk, const char *group,
                                                        int index, int lane)
{
    w.codes = *(const uint4 *)(chunk + index * 512 + lane * 16);
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const int row = (lane >> 2) + 8 * i;
        w.zero[i] =
            __float2bfloat162_rn(128.0f + (float)((const int16_t *)(group + TILE * 4))[row]);
        w.scale[i] = ((const float *)group)[row];
    }
}

template <int KIND>
__device__ __forceinline__ void load_inputs(inputs<KIND> &in, const char *x, int index, int lane)
{
    constexpr int N = IS_U4<KIND> ? 2 : 1;
#pragma unroll
    for (int i = 0; i < N; i++)
        in.x[i] = *(const uint4 *)(x + index * 64 * N + i * 64 + (lane & 3) * 16);
}

template <int KIND>
__device__ __forceinline__ void multiply_window(typename sums<KIND>::type (&acc)[2][4],
                                                const weights<KIND> &w, const inputs<KIND> &in)
{
    mma(acc[0], w.lo.x, w.hi.x, w.lo.y, w.hi.y, in.x[0].x, in.x[0].y);
    mma(acc[1], w.lo.z, w.hi.z, w.lo.w, w.hi.w, in.x[0].z, in.x[0].w);
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
multiply_window<QB_CUDA_LINEAR_U4>(float (&acc)[2][4], const weights<QB_CUDA_LINEAR_U4> &w,
                                   const inputs<QB_CUDA_LINEAR_U4> &in)
{
    const uint32_t words[4] = {w.codes.x, w.codes.y, w.codes.z, w.codes.w};
#pragma unroll
    for (int j = 0; j < 4; j++) {
        const uint4 &x = in.x[j / 2];
        mma(acc[j & 1], codes_of_word(words[j], 0), codes_of_word(words[j], 1),
            codes_of_word(words[j], 2), codes_of_word(words[j], 3), j & 1 ? x.z : x.x,
            j & 1 ? x.w : x.y);
    }
}

template <>
__device__ __forceinline__ void multiply_window<U4_GROUPS>(float (&acc)[2][4],
                                                           const weights<U4_GROUPS> &w,
                                                           const inputs<U4_GROUPS> &in)
{
    const uint32_t words[4] = {w.codes.x, w.codes.y, w.codes.z, w.codes.w};
    float part[2][4] = {};
#pragma unroll
    for (int j = 0; j < 4; j++) {
        const uint4 &x = in.x[j / 2];
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

/* Windows that a warp loads before it uses the first. */
template <int KIND> constexpr int AHEAD = KIND == U4_GROUPS ? 2 : 4;

/* A warp's windows of a chunk. Where these inputs are the same for every tile they are `kept`. */
template <int KIND, bool KEPT>
__device__ __forceinline__ void
    multiply_chunk(typename sums<KIND>::type (&acc)[2][4], const qb__chain_product &p,
                   const char *chunk, uint32_t index, int n, uint32_t pitch, const char *x,
                   const inputs<KIND> (&kept)[AHEAD<KIND>], int warp, int lane)
{
    constexpr int N = AHEAD<KIND>;
#pragma unroll 1
    for (int first = warp; first < n; first += N * WARPS) {
        weights<KIND> w[N];
        inputs<KIND> in[N];
#pragma unroll
        for (int i = 0; i < N; i++) {
            const int at = first + i * WARPS;
            if (at >= n) continue;
            const char *group = chunk;
            if constexpr (KIND == U4_GROUPS) {
                const uint32_t from = index * p.l.chunk_bytes / 8; /* channels */
                group += p.l.chunk_bytes +
                         ((from + at * 64) / p.l.group - from / p.l.group) * QB__CHAIN_GROUP_BYTES;
            }
            load_weights<KIND>(w[i], pitch, chunk, group, at, lane);
            if (!KEPT) load_inputs<KIND>(in[i], x, at, lane);
        }
#pragma unroll
        for (int i = 0; i < N; i++)
            if (first + i * WARPS < n) multiply_window<KIND>(acc, w[i], KEPT ? kept[i] : in[i]);
        if (KEPT) break; /* there are no more */
    }
}

/* Sums of every tile, output channel and warp, (tile, 16, warp). */
template <int KIND, bool KEPT>
__device__ __forceinline__ void multiply(const qb__chain_product &p, head *h,
                                         typename sums<KIND>::type *sums_at, const walk &w,
                                         uint32_t n_tiles, const k_part &k, int tid)
{
    using T = typename sums<KIND>::type;
    const int warp = tid >> 5, lane = tid & 31;
    T *part = sums_at + (lane >> 2) * WARPS + warp;
    inputs<KIND> kept[AHEAD<KIND>];
#pragma unroll
    for (int i = 0; i < AHEAD<KIND>; i++)
        if (KEPT && warp + i * WARPS < w.n_last)
            load_inputs<KIND>(kept[i], w.x, warp + i * WARPS, lane);
    ring_place at = {0, 0};
#pragma unroll 1
    for (uint32_t i = 0; i < n_tiles; i++) {
        T acc[2][4] = {};
#pragma unroll 1
        for (uint32_t chunk = 0; chunk < (KEPT ? 1 : k.n_chunks); chunk++) {
            wait_for(&h->full[at.slot], at.parity);
            __syncwarp(); /* the wait's loop may end at another time for each lane */
            multiply_chunk<KIND, KEPT>(acc, p, w.ring + at.slot * w.slot_bytes,
                                       k.first_chunk + chunk,
                                       chunk + 1 == k.n_chunks ? w.n_last : w.n, w.pitch,
                                       w.x + chunk * w.x_chunk, kept, warp, lane);
            qb_mbar_arrive(qb_smem(&h->empty[at.slot]));
            at.advance(w.n_slots);
        }
        if ((lane & 3) == 0) {
            part[i * TILE * WARPS] = acc[0][0] + acc[1][0];
            part[(i * TILE + 8) * WARPS] = acc[0][2] + acc[1][2];
        }
    }
}

/* TILES tiles side by side: all their loads before the first product. */
template <int KIND, int TILES>
__device__ __forceinline__ void multiply_tiles(typename sums<KIND>::type *part, const char *tile,
                                               const walk &w, const inputs<KIND> (&kept)[4],
                                               int warp, int lane)
{
    weights<KIND> v[TILES][4];
    typename sums<KIND>::type acc[TILES][2][4] = {};
#pragma unroll
    for (int t = 0; t < TILES; t++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            if (warp + i * WARPS < w.n_last)
                load_weights<KIND>(v[t][i], w.pitch, tile + t * w.slot_bytes, NULL,
                                   warp + i * WARPS, lane);
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int t = 0; t < TILES; t++)
            if (warp + i * WARPS < w.n_last) multiply_window<KIND>(acc[t], v[t][i], kept[i]);
    if ((lane & 3) != 0) return;
#pragma unroll
    for (int t = 0; t < TILES; t++) {
        part[t * TILE * WARPS] = acc[t][0][0] + acc[t][1][0];
        part[(t * TILE + 8) * WARPS] = acc[t][0][2] + acc[t][1][2];
    }
}

/* The same where shared memory holds all tiles, a chunk each. */
template <int KIND>
__device__ __forceinline__ void multiply_whole(head *h, typename sums<KIND>::type *sums_at,
                                               const walk &w, uint32_t n_tiles, int tid)
{
    const int warp = tid >> 5, lane = tid & 31;
    auto *part = sums_at + (lane >> 2) * WARPS + warp;
    inputs<KIND> kept[4];
#pragma unroll
    for (int i = 0; i < 4; i++)
        if (warp + i * WARPS < w.n_last) load_inputs<KIND>(kept[i], w.x, warp + i * WARPS, lane);
    wait_for(&h->full[0], 0);
    __syncwarp();
    uint32_t i = 0;
#pragma unroll 1
    for (; i + 2 <= n_tiles; i += 2)
        multiply_tiles<KIND, 2>(part + i * TILE * WARPS, w.ring + i * w.slot_bytes, w, kept, warp,
                                lane);
    if (i < n_tiles)
        multiply_tiles<KIND, 1>(part + i * TILE * WARPS, w.ring + i * w.slot_bytes, w, kept, warp,
                                lane);
}

} // namespace qb_chain
#endif
