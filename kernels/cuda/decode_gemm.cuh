/* kernels/cuda/decode_gemm.cuh - the products: chunks of weights from the ring, staged rows from
 * shared memory, mma.sync with the weights as A and the batch as N.
 *
 * The order of k inside an mma is free as long as A and B agree, so a lane takes 16 bytes side by
 * side of a row. Four warps share a chunk; groups of four warps take different tiles, or different
 * chunks of a tile where the block has fewer than four. Sums meet in shared memory. */
#ifndef QB_KERNELS_CUDA_DECODE_GEMM_CUH
#define QB_KERNELS_CUDA_DECODE_GEMM_CUH

#include "kernels/cuda/decode_stage.cuh"

namespace qb_decode
{

struct tile_range {
    uint32_t first, count;
};

/* Tiles (of a paired layer: pairs) are dealt in runs; the blocks that get one more follow those of
 * the layer before. */
__device__ __forceinline__ tile_range tiles_of(const qb__decode_params &p,
                                               const qb__decode_linear &l)
{
    uint32_t i = blockIdx.x + p.n_blocks - l.rotate;
    if (i >= p.n_blocks) i -= p.n_blocks;
    const uint32_t all = l.n_tiles >> l.paired, each = all / p.n_blocks;
    const uint32_t more = all - each * p.n_blocks;
    return {i * each + min(i, more), (each + (i < more)) << l.paired};
}

/* The i-th tile of a range. */
__device__ __forceinline__ uint32_t tile_at(const qb__decode_linear &l, const tile_range &t,
                                            uint32_t i)
{
    return l.paired ? t.first + i / 2 + (i & 1) * (l.n_tiles / 2) : t.first + i;
}

__device__ __forceinline__ product_work work_of(const qb__decode_params &p,
                                                const qb__decode_linear &l)
{
    const tile_range t = tiles_of(p, l);
    product_work w = {t.first, t.count, l.n_chunks, 0};
    if (p.batch * ((l.x_bytes + 127) / 128 * 128 + 64) > p.x_space)
        w.pass = (p.x_space / p.batch - 64) / 128 * 128 / l.x_chunk;
    w.pitch = (min(w.pass * l.x_chunk, l.x_bytes) + 127) / 128 * 128 + 64;
    return w;
}

/* ---- the streaming warp ---- */

struct ring_writer {
    const qb__decode_params &p;
    header *h;
    char *ring;
    uint32_t slot, parity; /* parity of the wait for an empty slot */
};

/* Groups that a chunk of 4-bit weights meets: 8 bytes of a tile are one input channel. */
__device__ __forceinline__ uint32_t groups_of(const qb__decode_linear &l, uint32_t chunk,
                                              uint32_t bytes)
{
    if (l.group == 0) return 0;
    const uint32_t first = chunk * l.chunk_bytes / 8, last = first + bytes / 8 - 1;
    return last / l.group - first / l.group + 1;
}

__device__ __forceinline__ void stream_chunk(ring_writer &w, const qb__decode_linear &l,
                                             uint32_t tile, uint32_t chunk, int lane)
{
    const bool u4 = l.row_bytes == 0;
    const uint32_t whole = u4 ? l.tile_bytes : l.x_bytes, from = chunk * l.chunk_bytes;
    const uint32_t bytes = min(l.chunk_bytes, whole - from);
    const uint32_t rows = u4 ? 1 : min((uint32_t)TILE, l.n - tile * TILE);
    const char *src = (const char *)l.w + (size_t)tile * l.tile_bytes + from;
    char *dst = w.ring + w.slot * w.p.stage_bytes;
    const uint32_t groups = groups_of(l, chunk, bytes);
    if (lane == 0) {
        mbarrier_wait(&w.h->empty[w.slot], w.parity);
        mbarrier_expect(&w.h->full[w.slot], rows * bytes + groups * QB__DECODE_GROUP_BYTES);
    }
    __syncwarp();
    if (lane < (int)rows)
        bulk_copy(dst + lane * w.p.row_pitch, src + (size_t)lane * l.row_bytes, bytes,
                  &w.h->full[w.slot]);
    for (uint32_t i = lane; i < groups; i += 32) {
        const size_t at = (size_t)(from / 8 / l.group + i) * l.n_pad + tile * TILE;
        char *to = dst + l.chunk_bytes + i * QB__DECODE_GROUP_BYTES;
        bulk_copy(to, l.w_scale + at, TILE * 4, &w.h->full[w.slot]);
        bulk_copy(to + TILE * 4, l.zero_point + at, TILE * 2, &w.h->full[w.slot]);
    }
    if (++w.slot == w.p.n_stages) w.slot = 0, w.parity ^= 1;
}

__device__ __forceinline__ void stream_linear(ring_writer &w, const qb__decode_linear &l, int lane)
{
    const tile_range t = tiles_of(w.p, l);
    for (uint32_t i = 0; i < t.count; i += FLUSH) {
        const uint32_t n = min((uint32_t)FLUSH, t.count - i);
        for (uint32_t chunk = 0; chunk < l.n_chunks; chunk++)
            for (uint32_t j = 0; j < n; j++) stream_chunk(w, l, tile_at(l, t, i + j), chunk, lane);
    }
}

/* All weights of the block in the order in which they are used; never waits for activations. */
__device__ void stream_weights(const qb__decode_params &p, header *h, char *smem, int lane)
{
    ring_writer w = {p, h, smem + p.ring_off, 0, 1};
    for (uint32_t i = 0; i < p.n_layers; i++)
        for (int j = 0; j < 4; j++) {
            const qb__decode_linear l = p.layers[i].linear[j];
            stream_linear(w, l, lane);
        }
    const qb__decode_linear head = p.layers[p.n_layers].linear[0];
    stream_linear(w, head, lane);
}

/* ---- multiplying ---- */

__device__ __forceinline__ void mma_s8(int (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2,
                                       uint32_t a3, uint32_t b0, uint32_t b1)
{
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
                 "{%8,%9}, {%0,%1,%2,%3};"
                 : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
                 : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

__device__ __forceinline__ void mma_bf16(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2,
                                         uint32_t a3, uint32_t b0, uint32_t b1)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, "
                 "{%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

/* 4-bit weights with a scale and a zero point a group; otherwise they have them a channel. */
constexpr int LINEAR_U4_GROUPS = QB_CUDA_LINEAR_U4 + 1;
template <int KIND> constexpr bool IS_U4 = KIND == QB_CUDA_LINEAR_U4 || KIND == LINEAR_U4_GROUPS;

template <int KIND> struct sums {
    using type = float;
};
template <> struct sums<QB_CUDA_LINEAR_S8> {
    using type = int;
};

/* 16 bytes of a staged row, or zeros for a sequence that is not there. */
__device__ __forceinline__ uint4 load_x(const char *at, bool there)
{
    return there ? *(const uint4 *)at : make_uint4(0, 0, 0, 0);
}

/* One window: 64 bytes of 16 rows, and of the staged rows. */
template <int NT>
__device__ __forceinline__ void multiply(int (&acc)[NT][4], const uint4 &lo, const uint4 &hi,
                                         const uint4 (&x)[NT])
{
#pragma unroll
    for (int i = 0; i < NT; i++) {
        mma_s8(acc[i], lo.x, hi.x, lo.y, hi.y, x[i].x, x[i].y);
        mma_s8(acc[i], lo.z, hi.z, lo.w, hi.w, x[i].z, x[i].w);
    }
}

template <int NT>
__device__ __forceinline__ void multiply(float (&acc)[NT][4], const uint4 &lo, const uint4 &hi,
                                         const uint4 (&x)[NT])
{
#pragma unroll
    for (int i = 0; i < NT; i++) {
        mma_bf16(acc[i], lo.x, hi.x, lo.y, hi.y, x[i].x, x[i].y);
        mma_bf16(acc[i], lo.z, hi.z, lo.w, hi.w, x[i].z, x[i].w);
    }
}

/* 16 channels of 4-bit codes as code + 128 in bf16 (gemm_u4.h). The 128 and the zero point are
 * taken off the sums; or, in groups, off the codes: `zero` is 128 + zero point of the two rows. */
template <bool GROUPS, int NT>
__device__ __forceinline__ void multiply_u4(float (&acc)[NT][4], uint32_t word,
                                            const uint32_t (&b0)[NT], const uint32_t (&b1)[NT],
                                            const __nv_bfloat162 (&zero)[2])
{
    uint32_t a[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        asm("lop3.b32 %0, %1, 0x000f000f, 0x43004300, 0xea;" : "=r"(a[i]) : "r"(word >> (4 * i)));
        if (GROUPS) {
            const __nv_bfloat162 q = __hsub2(*(const __nv_bfloat162 *)&a[i], zero[i & 1]);
            a[i] = *(const uint32_t *)&q;
        }
    }
#pragma unroll
    for (int i = 0; i < NT; i++) mma_bf16(acc[i], a[0], a[1], a[2], a[3], b0[i], b1[i]);
}

struct lane_rows { /* where a lane reads staged rows */
    const char *x[2];
    bool there[2];
};

template <int KIND, int NT>
__device__ __forceinline__ void
    multiply_window(typename sums<KIND>::type (&acc)[NT][4], const char *chunk, const char *group,
                    uint32_t pitch, int window, const lane_rows &rows, uint32_t x_at, int lane)
{
    if constexpr (IS_U4<KIND>) {
        const uint4 w = *(const uint4 *)(chunk + window * 512 + lane * 16);
        const uint32_t words[4] = {w.x, w.y, w.z, w.w};
        __nv_bfloat162 zero[2] = {};
        float part[NT][4] = {};
        if (KIND == LINEAR_U4_GROUPS) {
#pragma unroll
            for (int i = 0; i < 2; i++)
                zero[i] = __float2bfloat162_rn(
                    128.0f + (float)((const int16_t *)(group + TILE * 4))[(lane >> 2) + 8 * i]);
        }
#pragma unroll
        for (int half = 0; half < 2; half++) {
            uint4 x[NT];
#pragma unroll
            for (int i = 0; i < NT; i++)
                x[i] = load_x(rows.x[i] + x_at + window * 128 + half * 64, rows.there[i]);
            uint32_t b[4][NT];
#pragma unroll
            for (int i = 0; i < NT; i++)
                b[0][i] = x[i].x, b[1][i] = x[i].y, b[2][i] = x[i].z, b[3][i] = x[i].w;
            constexpr bool GROUPS = KIND == LINEAR_U4_GROUPS;
            multiply_u4<GROUPS, NT>(GROUPS ? part : acc, words[2 * half], b[0], b[1], zero);
            multiply_u4<GROUPS, NT>(GROUPS ? part : acc, words[2 * half + 1], b[2], b[3], zero);
        }
        if (KIND == LINEAR_U4_GROUPS) {
#pragma unroll
            for (int e = 0; e < 4; e++) {
                const float scale = ((const float *)group)[(lane >> 2) + 8 * (e >> 1)];
#pragma unroll
                for (int i = 0; i < NT; i++) acc[i][e] += scale * part[i][e];
            }
        }
    } else {
        const char *a = chunk + (lane >> 2) * pitch + window * 64 + (lane & 3) * 16;
        const uint4 lo = *(const uint4 *)a, hi = *(const uint4 *)(a + 8 * pitch);
        uint4 x[NT];
#pragma unroll
        for (int i = 0; i < NT; i++) x[i] = load_x(rows.x[i] + x_at + window * 64, rows.there[i]);
        multiply<NT>(acc, lo, hi, x);
    }
}

/* A warp's part of one chunk: windows part, part + n_parts, ... */
template <int KIND, int NT>
__device__ __forceinline__ void
    multiply_chunk(typename sums<KIND>::type (&acc)[NT][4], const qb__decode_params &p,
                   const qb__decode_linear &l, const char *chunk, uint32_t index,
                   const lane_rows &rows, uint32_t x_at, int part, int n_parts, int lane)
{
    constexpr int WINDOW = IS_U4<KIND> ? 512 : 64;
    const uint32_t whole = IS_U4<KIND> ? l.tile_bytes : l.x_bytes;
    const int n = (int)(min(l.chunk_bytes, whole - index * l.chunk_bytes) / WINDOW);
    if constexpr (KIND == LINEAR_U4_GROUPS) {
        const uint32_t from = index * l.chunk_bytes / 8, first = from / l.group;
        const char *groups = chunk + l.chunk_bytes;
        for (int w = part; w < n; w += n_parts) {
            const uint32_t group = (from + w * 64) / l.group - first;
            multiply_window<KIND, NT>(acc, chunk, groups + group * QB__DECODE_GROUP_BYTES, 0, w,
                                      rows, x_at, lane);
        }
    } else {
#pragma unroll 4
        for (int w = part; w < n; w += n_parts)
            multiply_window<KIND, NT>(acc, chunk, NULL, p.row_pitch, w, rows, x_at, lane);
    }
}

/* ---- staged rows of several sequences ---- */

/* Copies bytes [from, from + bytes) of all staged rows, and their scales, to shared memory. */
__device__ __forceinline__ void load_rows(context &c, uint32_t from, uint32_t bytes, uint32_t pitch)
{
    const qb__decode_params &p = c.p;
    for (int row = c.warp; row < (int)p.batch; row += N_WARPS)
        for (uint32_t at = c.lane * 16; at < bytes; at += 32 * 16)
            copy_16(c.smem + p.x_off + row * pitch + at,
                    p.staged + (size_t)row * p.staged_stride + from + at);
    if (c.tid < (int)p.batch) c.h->x_scale[c.tid] = __ldcg(p.staged_scale + c.tid);
    if (c.tid < (int)p.batch * N_WARPS)
        (&c.h->x_sum[0][0])[c.tid] = __ldcg((const float2 *)p.staged_sums + c.tid);
    copies_wait();
    consumers_sync();
}

/* ---- one product ---- */

struct output {
    float *y;
    uint64_t stride;
    bool activate;
    int n_max; /* maxima to raise: of the segments, or one of all */
    uint32_t *max_bits;
};

struct channel { /* what an epilogue thread needs of its output channel */
    uint32_t n;
    bool there;
    float scale, bias, zero_point;
};

template <int KIND>
__device__ __forceinline__ channel load_channel(const qb__decode_linear &l, uint32_t tile,
                                                uint32_t row, bool there)
{
    channel ch = {tile * TILE + row, false, 1.0f, 0.0f, 0.0f};
    ch.there = there && ch.n < l.n;
    if (!ch.there) return ch;
    if (KIND == QB_CUDA_LINEAR_S8 || KIND == QB_CUDA_LINEAR_U4) ch.scale = l.w_scale[ch.n];
    if (KIND == QB_CUDA_LINEAR_U4) ch.zero_point = 128.0f + (float)l.zero_point[ch.n];
    if (l.bias) ch.bias = l.bias[ch.n];
    return ch;
}

template <int KIND, typename T>
__device__ __forceinline__ float finish_sum(const context &c, const qb__decode_linear &l,
                                            const channel &ch, T sum, int column)
{
    float y;
    if constexpr (KIND == QB_CUDA_LINEAR_S8) {
        y = __fmul_rn((float)sum, __fmul_rn(c.h->x_scale[column], ch.scale));
    } else if constexpr (KIND == QB_CUDA_LINEAR_U4) {
        float2 x = make_float2(0.0f, 0.0f);
#pragma unroll
        for (int w = 0; w < N_WARPS; w++)
            x.x += c.h->x_sum[column][w].x, x.y += c.h->x_sum[column][w].y;
        y = ch.scale * (sum - ch.zero_point * x.x - x.y);
    } else {
        y = sum;
    }
    return l.bias ? __fadd_rn(y, ch.bias) : y;
}

/* Sums of a column of the tile over the warps that had a part of it, in their order. */
template <int KIND, int NT>
__device__ __forceinline__ typename sums<KIND>::type
sum_parts(const typename sums<KIND>::type *parts, int tile, int n_tiles, int row, int column)
{
    typename sums<KIND>::type sum = 0;
    for (int group = tile; group < 4; group += n_tiles)
#pragma unroll
        for (int q = 0; q < GROUP_WARPS; q++)
            sum += parts[(group * GROUP_WARPS + q) * (TILE * 8 * NT) + row * (8 * NT) + column];
    return sum;
}

__device__ __forceinline__ void raise_max(context &c, const qb__decode_linear &l, int n_max,
                                          uint32_t n, float most)
{
    for (int s = 0; s < n_max; s++) {
        const bool mine =
            n_max == 1 || ((int)n < l.seg_end[s] && (s == 0 || (int)n >= l.seg_end[s - 1]));
        const uint32_t m = __reduce_max_sync(0xffffffffu, mine ? __float_as_uint(most) : 0u);
        if (c.lane == 0 && m) atomicMax(&c.h->seg_max[s], m);
    }
}

template <int KIND, int NT>
__device__ __forceinline__ void write_tiles(context &c, const qb__decode_linear &l,
                                            const channel &ch, int n_tiles, const output &out)
{
    using T = typename sums<KIND>::type;
    const T *parts = (const T *)partial_sums(c.smem);
    const int row = c.tid & 15, tile = (c.tid >> 4) & 3;
    float most = 0.0f;
    for (int column = c.tid >> 6; column < (int)c.p.batch; column += N_CONSUMERS / 64) {
        if (!ch.there) break;
        T sum = sum_parts<KIND, NT>(parts, tile, n_tiles, row, column);
        float y = finish_sum<KIND, T>(c, l, ch, sum, column);
        if (l.paired) { /* lanes 0 to 15 have a tile of up, the others the gate's */
            const float gate = __shfl_xor_sync(0xffffffffu, y, 16);
            if (c.lane >= 16) continue;
            y = swiglu(y, gate);
        } else if (out.activate) {
            y = activate(c.p.act, y);
        }
        most = fmaxf(most, fabsf(y));
        out.y[(size_t)column * out.stride + ch.n] = y;
    }
    if (out.n_max) raise_max(c, l, out.n_max, ch.n, most);
}

/* Chunks [first, end) of a tile. Groups tile, tile + n_tiles, ... share a tile: they take its
 * chunks in turn, or, where there are fewer chunks than groups, parts of each. */
template <int KIND, int NT>
__device__ __forceinline__ void
multiply_chunks(context &c, const qb__decode_linear &l, typename sums<KIND>::type (&acc)[NT][4],
                uint32_t first, uint32_t end, uint32_t n_tiles, const lane_rows &rows)
{
    const qb__decode_params &p = c.p;
    const uint32_t group = c.warp / GROUP_WARPS, mine = c.warp % GROUP_WARPS;
    const uint32_t rank = n_tiles == 4 ? 0 : n_tiles == 3 ? group == 3 : group >> (n_tiles - 1);
    const uint32_t tile = group - rank * n_tiles; /* 1, 2 or 4 groups share it */
    const uint32_t sharing = 1 + (tile + n_tiles < 4) + (tile + 2 * n_tiles < 4) * 2;
    const bool in_turn = l.n_chunks >= sharing;
    const uint32_t n_parts = in_turn ? GROUP_WARPS : GROUP_WARPS * sharing;
    const uint32_t step = in_turn ? sharing : 1;
    const uint32_t part = in_turn ? mine : rank * GROUP_WARPS + mine;
    uint32_t chunk = in_turn ? first + ((rank - first) & (sharing - 1)) : first;
    for (; chunk < end; chunk += step) {
        const uint32_t stage = c.stage + chunk * n_tiles + tile, turn = divide(stage, p.by_stages);
        const uint32_t slot = stage - turn * p.n_stages;
        /* Another group may not have had this slot's last chunk yet: parity alone cannot tell. */
        if (turn) mbarrier_wait(&c.h->empty[slot], (turn - 1) & 1);
        mbarrier_wait(&c.h->full[slot], turn & 1);
        multiply_chunk<KIND, NT>(acc, p, l, c.smem + p.ring_off + slot * p.stage_bytes, chunk, rows,
                                 (chunk - first) * l.x_chunk, part, n_parts, c.lane);
        __syncwarp();
        if (c.lane == 0) mbarrier_arrive(&c.h->empty[slot], N_WARPS / n_parts);
    }
}

template <int KIND, int NT>
__device__ __forceinline__ void put_parts(context &c, typename sums<KIND>::type (&acc)[NT][4])
{
    using T = typename sums<KIND>::type;
    T *part = (T *)partial_sums(c.smem) + c.warp * (TILE * 8 * NT);
    const int g = c.lane >> 2, t = c.lane & 3;
#pragma unroll
    for (int i = 0; i < NT; i++)
#pragma unroll
        for (int e = 0; e < 4; e++)
            part[(g + (e >> 1) * 8) * (8 * NT) + i * 8 + 2 * t + (e & 1)] = acc[i][e];
}

/* y = x . w^T for the block's tiles. */
template <int KIND, int NT>
__device__ __forceinline__ void product(context &c, const qb__decode_linear &l,
                                        const product_work &work, const output &out)
{
    const qb__decode_params &p = c.p;
    const tile_range t = {work.first, work.count};
    const uint32_t pass = work.pass, pitch = work.pitch, g = c.lane >> 2;
    lane_rows rows;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        rows.there[i] = g + 8 * i < p.batch;
        rows.x[i] = c.smem + p.x_off + (g + 8 * i) * pitch + (c.lane & 3) * 16;
    }
    for (uint32_t i = 0; i < t.count; i += FLUSH) {
        const uint32_t n = min((uint32_t)FLUSH, t.count - i), tile = (c.tid >> 4) & 3;
        const channel ch = load_channel<KIND>(l, tile_at(l, t, i + tile), c.tid & 15, tile < n);
        typename sums<KIND>::type acc[NT][4] = {};
        for (uint32_t first = 0; first < l.n_chunks; first += pass) {
            const uint32_t end = min(first + pass, l.n_chunks), from = first * l.x_chunk;
            if (p.batch > 1 && (i == 0 || pass < l.n_chunks)) {
                if (first > 0 || i > 0) consumers_sync();
                load_rows(c, from, min(end * l.x_chunk, l.x_bytes) - from, pitch);
            }
            multiply_chunks<KIND, NT>(c, l, acc, first, end, n, rows);
        }
        c.stage += l.n_chunks * n;
        put_parts<KIND, NT>(c, acc);
        consumers_sync();
        write_tiles<KIND, NT>(c, l, ch, (int)n, out);
        if (i + FLUSH < t.count) consumers_sync(); /* the next sums go to the same place */
    }
}

} // namespace qb_decode
#endif
