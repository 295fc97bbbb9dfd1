/* kernels/cuda/gemm_s8_epilogue.cuh - from accumulators of wgmma to what gemm_s8.h says is stored.
 *
 * One warpgroup finishes 64 rows by N columns. Values stay in the accumulators' registers (as bits
 * of f32), then go in slices of 64 rows by 128 bytes through shared memory to the copy engine,
 * which clips them to the matrix. A residual is either added by the copy engine as well, or, where
 * another tile is multiplied meanwhile, loaded, added to and stored, which memory does faster: in
 * either case one addition an element, so the sum does not depend on any order. What differs
 * between calls is uniform over the grid and so a branch, not a template. */
#ifndef QB_KERNELS_CUDA_GEMM_S8_EPILOGUE_CUH
#define QB_KERNELS_CUDA_GEMM_S8_EPILOGUE_CUH

#include "kernels/cuda/gemm_s8_math.cuh"
#include "kernels/cuda/gemm_s8_sm90.h"
#include "kernels/cuda/ptx.cuh"

#include <cuda_bf16.h>

namespace gemm_s8
{

constexpr int kSliceBytes = 64 * 128;

/* What a warpgroup has for its own. */
struct place {
    int bar;            /* its barrier */
    uint32_t staging;   /* its slices */
    int slot;           /* next slice to write */
    const float *scale; /* of the tile's columns, then the biases */
    uint32_t loaded;    /* a slot's barrier each, for slices of the residual */
    uint32_t parities;  /* of their next phases, a bit each */
};

static __device__ __forceinline__ int lane_of(void)
{
    return threadIdx.x % 32;
}

static __device__ __forceinline__ int warp_of(void) /* within the warpgroup */
{
    return threadIdx.x / 32 % 4;
}

static __device__ __forceinline__ int segment_of(const qb__gemm_s8_params &p, int col)
{
    int s = 0;
#pragma unroll
    for (int i = 0; i < QB_CUDA_SEGMENTS - 1; i++)
        s += i < p.n_segments - 1 && col >= p.segment_end[i];
    return s;
}

/* The columns of one segment, counted from the first that a thread holds in a tile. */
struct span {
    int begin, end;
    __device__ span(const qb__gemm_s8_params &p, int segment, int col0)
    {
        const int from = col0 + lane_of() % 4 * 2;
        begin = (segment ? p.segment_end[segment - 1] : 0) - from;
        end = (segment < p.n_segments - 1 ? p.segment_end[segment] : p.n) - from;
    }
    __device__ bool has(int offset) const
    {
        return offset >= begin && offset < end;
    }
};

/* (2) of gemm_s8.h, in place. ROWS: scales a row and a column; else the list has their product.
 * While one warpgroup does this another multiplies, and every instruction takes registers'
 * bandwidth from it: so what a call does not need is not done. */
template <int N, bool ROWS, bool BIAS>
static __device__ __forceinline__ void scale_columns(int (&acc)[N / 2], const place &at,
                                                     const float (&x_scale)[2])
{
    const float2 *scale = (const float2 *)at.scale + lane_of() % 4;
    const float2 *bias = (const float2 *)(at.scale + N) + lane_of() % 4;
#pragma unroll
    for (int j = 0; j < N / 8; j++) {
        const float2 s = scale[4 * j], b = BIAS ? bias[4 * j] : s;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const float column = i % 2 ? s.y : s.x;
            float z = __fmul_rn(__int2float_rn(acc[4 * j + i]),
                                ROWS ? __fmul_rn(x_scale[i / 2], column) : column);
            if (BIAS) z = __fadd_rn(z, i % 2 ? b.y : b.x);
            acc[4 * j + i] = __float_as_int(z);
        }
    }
}

/* (2) and (3). */
template <int N>
static __device__ __forceinline__ void scale_tile(int (&acc)[N / 2], const qb__gemm_s8_params &p,
                                                  const place &at, const float (&x_scale)[2])
{
    if (p.x_scale_step && p.bias)
        scale_columns<N, true, true>(acc, at, x_scale);
    else if (p.x_scale_step)
        scale_columns<N, true, false>(acc, at, x_scale);
    else if (p.bias)
        scale_columns<N, false, true>(acc, at, x_scale);
    else
        scale_columns<N, false, false>(acc, at, x_scale);
    if (p.act == QB_EPI_GELU) {
#pragma unroll
        for (int i = 0; i < N / 2; i++) acc[i] = __float_as_int(qb_gelu(__int_as_float(acc[i])));
    } else if (p.act == QB_EPI_RELU) {
#pragma unroll
        for (int i = 0; i < N / 2; i++) acc[i] = __int_as_float(acc[i]) < 0.0f ? 0 : acc[i];
    }
}

static __device__ __forceinline__ void raise_warp_max(uint32_t *max_bits, float value)
{
    uint32_t bits = __reduce_max_sync(0xffffffffu, __float_as_uint(value));
    if (threadIdx.x % 32 == 0 && bits) atomicMax(max_bits, bits);
}

/* The maxima of |z| over a segment and over a row. */
template <int N>
static __device__ __forceinline__ void raise_maxima(const int (&acc)[N / 2],
                                                    const qb__gemm_s8_params &p, const place &at,
                                                    int row0, int col0)
{
    const int row = row0 + warp_of() * 16 + lane_of() / 4;
    const int first = segment_of(p, col0), last = segment_of(p, min(col0 + N, p.n) - 1);
    float row_max[2] = {0.0f, 0.0f};
#pragma unroll
    for (int i = 0; i < N / 2; i++) /* fmaxf ignores NaN */
        row_max[i / 2 % 2] = fmaxf(row_max[i / 2 % 2], fabsf(__int_as_float(acc[i])));
#pragma unroll
    for (int h = 0; h < 2; h++)
        if (row + 8 * h >= p.m) row_max[h] = 0.0f;
    if (p.max_bits && first == last)
        raise_warp_max(p.max_bits + first, fmaxf(row_max[0], row_max[1]));
    if (p.max_bits && first != last)
#pragma unroll 1
        for (int s = first; s <= last; s++) {
            const span in(p, s, col0);
            float max[2] = {0.0f, 0.0f};
#pragma unroll
            for (int i = 0; i < N / 2; i++)
                if (in.has(i / 4 * 8 + i % 2))
                    max[i / 2 % 2] = fmaxf(max[i / 2 % 2], fabsf(__int_as_float(acc[i])));
            raise_warp_max(p.max_bits + s,
                           fmaxf(row < p.m ? max[0] : 0.0f, row + 8 < p.m ? max[1] : 0.0f));
        }
    if (!p.row_max_bits) return;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        float max = row_max[h];
        max = fmaxf(max, __shfl_xor_sync(0xffffffffu, max, 1));
        max = fmaxf(max, __shfl_xor_sync(0xffffffffu, max, 2));
        if (p.out == QB_CUDA_BF16 && p.has_y) /* rounding is monotonic */
            max = __bfloat162float(__float2bfloat16_rn(max));
        if (lane_of() % 4 == 0 && row + 8 * h < p.m)
            atomicMax(p.row_max_bits + row + 8 * h, __float_as_uint(max));
    }
}

/* ---- slices: written to slots of shared memory, a step of one or two at a time ---- */

template <int SLOTS> constexpr int kStepSlices = SLOTS >= 4 ? 2 : 1;

/* Until the slots of the next step are free. */
template <int SLOTS> static __device__ __forceinline__ void step_begin(const place &at)
{
    if (warp_of() == 0 && lane_of() == 0) qb_tma_wait_read<SLOTS / kStepSlices<SLOTS> - 1>();
    qb_bar_sync(at.bar, 128);
}

template <int SLOTS> static __device__ __forceinline__ uint32_t slot_at(const place &at, int ahead)
{
    const int slot = at.slot + ahead < SLOTS ? at.slot + ahead : at.slot + ahead - SLOTS;
    return at.staging + slot * kSliceBytes;
}

/* One thread. Where there is a cache a slice lies in one of y, keys and values, and in one
 * sequence.
 */
static __device__ __forceinline__ void send_slice(const qb__gemm_s8_params &p,
                                                  const CUtensorMap *map, uint32_t from, int col,
                                                  int row, bool add)
{
    if (add) {
        qb_tma_add(map, from, col, row);
    } else if (p.n_tokens && col >= p.cache_first) {
        const int sequence = row / p.n_tokens, position = row - sequence * p.n_tokens;
        const int at = col - p.cache_first, values = at >= p.cache_width;
        qb_tma_store_plane(&p.cache[values], from, values ? at - p.cache_width : at, position,
                           sequence);
    } else {
        qb_tma_store(map, from, col, row);
    }
}

/* Hands the step's slices, `width` columns each from `col` on, to the copy engine. */
template <int SLOTS>
static __device__ __forceinline__ void step_end(place &at, const qb__gemm_s8_params &p,
                                                const CUtensorMap *map, int col, int width,
                                                int n_slices, int row, bool add)
{
    qb_fence_async();
    qb_bar_sync(at.bar, 128);
    if (warp_of() == 0 && lane_of() == 0) {
        for (int i = 0; i < n_slices && col + i * width < p.n; i++)
            send_slice(p, map, slot_at<SLOTS>(at, i), col + i * width, row, add);
        qb_tma_commit();
    }
    at.slot = at.slot + n_slices < SLOTS ? at.slot + n_slices : at.slot + n_slices - SLOTS;
}

/* Stores N columns in slices of WIDTH: write(number of a slice, its shared memory). */
template <int N, int WIDTH, int SLOTS, class Write>
static __device__ __forceinline__ void store_slices(const qb__gemm_s8_params &p, place &at,
                                                    const CUtensorMap *map, int row0, int col0,
                                                    bool add, const Write &write)
{
    constexpr int kSlices = N / WIDTH, kStep = kStepSlices<SLOTS>;
#pragma unroll
    for (int first = 0; first < kSlices; first += kStep) {
        const int count = kSlices - first < kStep ? kSlices - first : kStep;
        if (col0 + first * WIDTH >= p.n) return;
        step_begin<SLOTS>(at);
#pragma unroll
        for (int i = 0; i < count; i++) write(first + i, slot_at<SLOTS>(at, i));
        step_end<SLOTS>(at, p, map, col0 + first * WIDTH, WIDTH, count, row0, add);
    }
}

/* 32-bit values as they are. */
template <int N, int SLOTS>
static __device__ __forceinline__ void
store_words(const int (&acc)[N / 2], const qb__gemm_s8_params &p, place &at, const CUtensorMap *map,
            int row0, int col0, bool add)
{
    const int row = warp_of() * 16 + lane_of() / 4; /* of the slice; row + 8 has the same swizzle */
    store_slices<N, 32, SLOTS>(p, at, map, row0, col0, add, [&](int slice, uint32_t slot) {
        const uint32_t base = slot + row * 128 + lane_of() % 2 * 8;
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const uint32_t to = base + (((2 * j + lane_of() % 4 / 2) ^ (row & 7)) << 4);
            const int *v = acc + slice * 16 + 4 * j;
            asm volatile("st.shared.v2.b32 [%0], {%1, %2};" ::"r"(to), "r"(v[0]), "r"(v[1])
                         : "memory");
            asm volatile("st.shared.v2.b32 [%0], {%1, %2};" ::"r"(to + 1024), "r"(v[2]), "r"(v[3])
                         : "memory");
        }
    });
}

/* ---- the residual, loaded ahead ---- */

/* The slices of one tile of a warpgroup, in the order in which they are finished. */
struct slices {
    int row0, col0, n_across, n;
    __device__ slices(const qb__gemm_s8_params &p, int row, int col, int rows, int cols)
    {
        row0 = row;
        col0 = col;
        n_across = (min(cols, p.n - col) + 31) / 32;
        n = col < p.n && row < p.m ? n_across * ((min(rows, p.m - row) + 63) / 64) : 0;
    }
};

/* One thread. */
static __device__ __forceinline__ void load_slice(const qb__gemm_s8_params &p, const place &at,
                                                  const slices &s, int i, int slot)
{
    const int down = i / s.n_across, across = i - down * s.n_across;
    qb_mbar_expect(at.loaded + 8 * slot, kSliceBytes);
    qb_tma_load(at.staging + slot * kSliceBytes, &p.residual, at.loaded + 8 * slot,
                s.col0 + across * 32, s.row0 + down * 64);
}

/* Before the tile is multiplied: fills the slots. */
template <int SLOTS>
static __device__ __forceinline__ void load_first(const qb__gemm_s8_params &p, place &at,
                                                  const slices &s)
{
    at.slot = 0;
    if (warp_of() || lane_of()) return;
    qb_tma_wait_read<0>();
    for (int i = 0; i < SLOTS && i < s.n; i++) load_slice(p, at, s, i, i);
}

/* Slices from number `i` on, of 64 rows by N columns. */
template <int N, int SLOTS>
static __device__ __forceinline__ void
add_loaded(const int (&acc)[N / 2], const qb__gemm_s8_params &p, place &at, const slices &s, int i)
{
    const int row = warp_of() * 16 + lane_of() / 4;
    const int row0 = s.row0 + i / s.n_across * 64;
#pragma unroll
    for (int c = 0; c < N; c += 32, i++) {
        if (s.col0 + c >= p.n) return;
        const uint32_t src = at.staging + at.slot * kSliceBytes;
        const uint32_t base = src + row * 128 + lane_of() % 2 * 8;
        qb_mbar_wait(at.loaded + 8 * at.slot, at.parities >> at.slot & 1);
        at.parities ^= 1u << at.slot;
#pragma unroll
        for (int j = 0; j < 8; j++) {
            const uint32_t to =
                base + (((j / 2 * 2 + lane_of() % 4 / 2) ^ (row & 7)) << 4) + j % 2 * 1024;
            const int *v = acc + c / 2 + 2 * j;
            float x, y;
            asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(x), "=f"(y) : "r"(to));
            asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(to),
                         "f"(__fadd_rn(x, __int_as_float(v[0]))),
                         "f"(__fadd_rn(y, __int_as_float(v[1])))
                         : "memory");
        }
        qb_fence_async();
        qb_bar_sync(at.bar, 128);
        if (warp_of() == 0 && lane_of() == 0) {
            qb_tma_store(&p.residual, src, s.col0 + c, row0);
            qb_tma_commit();
            if (i > 0 && i - 1 + SLOTS < s.n) { /* the slot of the slice before is free soon */
                qb_tma_wait_read<1>();
                load_slice(p, at, s, i - 1 + SLOTS, at.slot ? at.slot - 1 : SLOTS - 1);
            }
        }
        at.slot = at.slot + 1 == SLOTS ? 0 : at.slot + 1;
    }
}

/* ---- narrow outputs ---- */

static __device__ __forceinline__ uint32_t pack_bf16(int lo, int hi)
{
    return qb_bf16_pair(__int_as_float(lo), __int_as_float(hi));
}

template <int N, int SLOTS>
static __device__ __forceinline__ void
store_bf16(const int (&acc)[N / 2], const qb__gemm_s8_params &p, place &at, int row0, int col0)
{
    const int row = warp_of() * 16 + lane_of() % 16; /* of stmatrix: 8-15 in matrices 1 and 3 */
    store_slices<N, 64, SLOTS>(p, at, &p.y, row0, col0, false, [&](int slice, uint32_t slot) {
#pragma unroll
        for (int j = 0; j < 8; j += 2) {
            const int *v = acc + slice * 32 + 4 * j;
            qb_stmatrix_x4(slot + row * 128 + (((j + lane_of() / 16) ^ (row & 7)) << 4),
                           pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]), pack_bf16(v[4], v[5]),
                           pack_bf16(v[6], v[7]));
        }
    });
}

static __device__ __forceinline__ int quantize_bits(int bits, const divisor &d)
{
    return quantize(__int_as_float(bits), d);
}

/* Clamps at 127 too. */
static __device__ __forceinline__ uint32_t pack_s8(int lo, int hi)
{
    uint32_t both;
    asm("cvt.pack.sat.s8.s32.b32 %0, %1, %2, 0;" : "=r"(both) : "r"(hi), "r"(lo));
    return both;
}

/* 32 columns of codes of one segment from column 8 * first on; false where one of the thread's is
 * to be divided exactly. */
template <int WIDTH>
static __device__ __forceinline__ bool write_codes_fast(const int *acc, uint32_t base, int swizzle,
                                                        int first, const divisor &d)
{
    const float limit = 127.0f * d.s;
    float worst = 0.0f;
#pragma unroll
    for (int j = first; j < first + 4; j++) {
        const uint32_t to = base + ((j / 2 ^ swizzle) << 4) + j % 2 * 8;
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const int *v = acc + 4 * j + 2 * h;
            const uint32_t both =
                __byte_perm(quantize_fast(__int_as_float(v[0]), d, limit, &worst),
                            quantize_fast(__int_as_float(v[1]), d, limit, &worst), 0x40);
            asm volatile("st.shared.u16 [%0], %1;" ::"r"(to + h * 8 * WIDTH), "h"((uint16_t)both)
                         : "memory");
        }
    }
    return worst <= kSafelyRounded;
}

template <int WIDTH>
static __device__ __forceinline__ void write_codes_exact(const int *acc, uint32_t base, int swizzle,
                                                         int first, const divisor &d)
{
#pragma unroll
    for (int j = first; j < first + 4; j++) {
        const uint32_t to = base + ((j / 2 ^ swizzle) << 4) + j % 2 * 8;
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const int *v = acc + 4 * j + 2 * h;
            const uint32_t both = pack_s8(quantize_bits(v[0], d), quantize_bits(v[1], d));
            asm volatile("st.shared.u16 [%0], %1;" ::"r"(to + h * 8 * WIDTH), "h"((uint16_t)both)
                         : "memory");
        }
    }
}

/* A slice of codes of one segment. Few of them are near a tie, but one in a slice of a warp often
 * is: so in small parts. */
template <int WIDTH>
static __device__ __forceinline__ void write_codes(const int *acc, uint32_t base, int swizzle,
                                                   const divisor &d)
{
    const bool ordinary = d.shift == 1.0f && d.inverse > 0.0f;
#pragma unroll
    for (int first = 0; first < WIDTH / 8; first += 4)
        if (!ordinary || !write_codes_fast<WIDTH>(acc, base, swizzle, first, d))
            write_codes_exact<WIDTH>(acc, base, swizzle, first, d);
}

/* Only the columns of one segment. */
template <int WIDTH>
static __device__ __forceinline__ void
write_codes_within(const int *acc, uint32_t base, int swizzle, const divisor &d, const span &in)
{
#pragma unroll
    for (int j = 0; j < WIDTH / 8; j++) {
        const uint32_t to = base + ((j / 2 ^ swizzle) << 4) + j % 2 * 8;
#pragma unroll
        for (int i = 0; i < 4; i++)
            if (in.has(8 * j + i % 2))
                asm volatile("st.shared.u8 [%0], %1;" ::"r"(to + i / 2 * 8 * WIDTH + i % 2),
                             "r"(min(quantize_bits(acc[4 * j + i], d), 127))
                             : "memory");
    }
}

/* Columns of a slice of codes: 128 where they divide the tile. */
template <int N> constexpr int kCodeWidth = N % 128 ? 64 : 128;

template <int N, int SLOTS>
static __device__ __forceinline__ void
store_s8(const int (&acc)[N / 2], const qb__gemm_s8_params &p, place &at, int row0, int col0)
{
    constexpr int kWidth = kCodeWidth<N>;
    const int row = warp_of() * 16 + lane_of() / 4;
    const int swizzle = kWidth == 128 ? row & 7 : row >> 1 & 3;
    const int first = segment_of(p, col0), last = segment_of(p, min(col0 + N, p.n) - 1);
    const divisor d = make_divisor(p.out_scale[first]);
    store_slices<N, kWidth, SLOTS>(p, at, &p.y, row0, col0, false, [&](int slice, uint32_t slot) {
        const int *v = acc + slice * (kWidth / 2);
        const uint32_t base = slot + row * kWidth + lane_of() % 4 * 2;
        if (first == last) {
            write_codes<kWidth>(v, base, swizzle, d);
            return;
        }
#pragma unroll 1
        for (int s = first; s <= last; s++)
            write_codes_within<kWidth>(v, base, swizzle, make_divisor(p.out_scale[s]),
                                       span(p, s, col0 + slice * kWidth));
    });
}

/* Finishes the rows from row0 and the columns from s.col0 on, 64 by N. LOADED: the residual is. */
template <int N, int SLOTS, bool LOADED>
static __device__ __forceinline__ void finish(int (&acc)[N / 2], const qb__gemm_s8_params &p,
                                              place &at, const slices &s, int mi,
                                              const float (&x_scale)[2])
{
    const int row0 = s.row0 + 64 * mi, col0 = s.col0;
    if (row0 >= p.m || col0 >= p.n) return;
    if (p.out == QB_CUDA_S32 && p.has_y) {
        store_words<N, SLOTS>(acc, p, at, &p.y, row0, col0, false);
        if (!p.has_residual && !p.max_bits && !p.row_max_bits) return;
    }
    scale_tile<N>(acc, p, at, x_scale);
    if (p.max_bits || p.row_max_bits) raise_maxima<N>(acc, p, at, row0, col0);
    if (LOADED && p.has_residual && !p.has_y) {
        add_loaded<N, SLOTS>(acc, p, at, s, mi * s.n_across);
        return;
    }
    if (p.has_residual) store_words<N, SLOTS>(acc, p, at, &p.residual, row0, col0, true);
    if (!p.has_y) return;
    if (p.out == QB_CUDA_BF16) store_bf16<N, SLOTS>(acc, p, at, row0, col0);
    if (p.out == QB_CUDA_F32) store_words<N, SLOTS>(acc, p, at, &p.y, row0, col0, false);
    if (p.out == QB_CUDA_S8) store_s8<N, SLOTS>(acc, p, at, row0, col0);
}

} // namespace gemm_s8

#endif
