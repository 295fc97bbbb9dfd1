/* kernels/cuda/gemm_s8_epilogue.cuh - from accumulators of wgmma to what gemm_s8.h says is stored.
 *
 * One warpgroup finishes 64 rows by N columns. Values stay in the accumulators' registers (as bits
 * of f32), then go in slices of 64 rows by 128 bytes through shared memory to the copy engine,
 * which clips them to the matrix and adds where there is a residual: one addition an element, so
 * the sum does not depend on any order. What differs between calls is uniform over the grid and so
 * a branch, not a template. */
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

/* (2) and (3) of gemm_s8.h, in place. No bias is a bias of -0, which changes no bit. */
template <int N>
static __device__ __forceinline__ void scale_tile(int (&acc)[N / 2], const qb__gemm_s8_params &p,
                                                  const place &at, const float (&x_scale)[2])
{
    const float2 *scale = (const float2 *)at.scale + lane_of() % 4;
    const float2 *bias = (const float2 *)(at.scale + N) + lane_of() % 4;
#pragma unroll
    for (int j = 0; j < N / 8; j++) {
        const float2 s = scale[4 * j], b = bias[4 * j];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float z = __fmul_rn(__int2float_rn(acc[4 * j + i]),
                                __fmul_rn(x_scale[i / 2], i % 2 ? s.y : s.x));
            acc[4 * j + i] = __float_as_int(__fadd_rn(z, i % 2 ? b.y : b.x));
        }
    }
    if (p.act == QB_EPI_GELU) {
#pragma unroll
        for (int i = 0; i < N / 2; i++) acc[i] = __float_as_int(gelu(__int_as_float(acc[i])));
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

/* ---- slices ---- */

template <int SLOTS> static __device__ __forceinline__ uint32_t slice_begin(const place &at)
{
    if (warp_of() == 0 && lane_of() == 0) qb_tma_wait_read<SLOTS - 1>();
    qb_bar_sync(at.bar, 128);
    return at.staging + at.slot * kSliceBytes;
}

template <int SLOTS>
static __device__ __forceinline__ void slice_end(place &at, const CUtensorMap *map, int col,
                                                 int row, bool add)
{
    qb_fence_async();
    qb_bar_sync(at.bar, 128);
    if (warp_of() == 0 && lane_of() == 0) {
        const uint32_t src = at.staging + at.slot * kSliceBytes;
        if (add)
            qb_tma_add(map, src, col, row);
        else
            qb_tma_store(map, src, col, row);
        qb_tma_commit();
    }
    at.slot = at.slot + 1 == SLOTS ? 0 : at.slot + 1;
}

/* 32-bit values as they are. */
template <int N, int SLOTS>
static __device__ __forceinline__ void
store_words(const int (&acc)[N / 2], const qb__gemm_s8_params &p, place &at, const CUtensorMap *map,
            int row0, int col0, bool add)
{
    const int row = warp_of() * 16 + lane_of() / 4; /* of the slice; row + 8 has the same swizzle */
#pragma unroll
    for (int c = 0; c < N; c += 32) {
        if (col0 + c >= p.n) return;
        const uint32_t base = slice_begin<SLOTS>(at) + row * 128 + lane_of() % 2 * 8;
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const uint32_t to = base + (((2 * j + lane_of() % 4 / 2) ^ (row & 7)) << 4);
            const int *v = acc + c / 2 + 4 * j;
            asm volatile("st.shared.v2.b32 [%0], {%1, %2};" ::"r"(to), "r"(v[0]), "r"(v[1])
                         : "memory");
            asm volatile("st.shared.v2.b32 [%0], {%1, %2};" ::"r"(to + 1024), "r"(v[2]), "r"(v[3])
                         : "memory");
        }
        slice_end<SLOTS>(at, map, col0 + c, row0, add);
    }
}

static __device__ __forceinline__ uint32_t pack_bf16(int lo, int hi)
{
    __nv_bfloat162 v = __floats2bfloat162_rn(__int_as_float(lo), __int_as_float(hi));
    return *(uint32_t *)&v;
}

template <int N, int SLOTS>
static __device__ __forceinline__ void
store_bf16(const int (&acc)[N / 2], const qb__gemm_s8_params &p, place &at, int row0, int col0)
{
    const int row =
        warp_of() * 16 + lane_of() % 16; /* of stmatrix: matrices 1 and 3 are rows 8-15 */
#pragma unroll
    for (int c = 0; c < N; c += 64) {
        if (col0 + c >= p.n) return;
        const uint32_t base = slice_begin<SLOTS>(at) + row * 128;
#pragma unroll
        for (int j = 0; j < 8; j += 2) {
            const int *v = acc + c / 2 + 4 * j;
            qb_stmatrix_x4(base + (((j + lane_of() / 16) ^ (row & 7)) << 4), pack_bf16(v[0], v[1]),
                           pack_bf16(v[2], v[3]), pack_bf16(v[4], v[5]), pack_bf16(v[6], v[7]));
        }
        slice_end<SLOTS>(at, &p.y, col0 + c, row0, false);
    }
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

/* A slice of codes of one segment. */
template <int WIDTH>
static __device__ __forceinline__ void write_codes(const int *acc, uint32_t base, int swizzle,
                                                   const divisor &d)
{
#pragma unroll
    for (int j = 0; j < WIDTH / 8; j++) {
        const int *v = acc + 4 * j;
        const uint32_t to = base + ((j / 2 ^ swizzle) << 4) + j % 2 * 8;
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const uint32_t both =
                pack_s8(quantize_bits(v[2 * h], d), quantize_bits(v[2 * h + 1], d));
            asm volatile("st.shared.u16 [%0], %1;" ::"r"(to + h * 8 * WIDTH), "h"((uint16_t)both)
                         : "memory");
        }
    }
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
static __device__ __forceinline__ void store_s8(int (&acc)[N / 2], const qb__gemm_s8_params &p,
                                                place &at, int row0, int col0)
{
    constexpr int kWidth = kCodeWidth<N>;
    const int row = warp_of() * 16 + lane_of() / 4;
    const int swizzle = kWidth == 128 ? row & 7 : row >> 1 & 3;
    const int first = segment_of(p, col0), last = segment_of(p, min(col0 + N, p.n) - 1);
    divisor d = make_divisor(p.out_scale[first]);
#pragma unroll
    for (int c = 0; c < N; c += kWidth) {
        if (col0 + c >= p.n) return;
        const uint32_t base = slice_begin<SLOTS>(at) + row * kWidth + lane_of() % 4 * 2;
        if (first == last) {
            write_codes<kWidth>(acc + c / 2, base, swizzle, d);
        } else {
#pragma unroll 1
            for (int s = first; s <= last; s++) {
                d = make_divisor(p.out_scale[s]);
                write_codes_within<kWidth>(acc + c / 2, base, swizzle, d, span(p, s, col0 + c));
            }
        }
        slice_end<SLOTS>(at, &p.y, col0 + c, row0, false);
    }
}

/* Finishes rows [row0, row0 + 64) by columns [col0, col0 + N). */
template <int N, int SLOTS>
static __device__ __forceinline__ void finish(int (&acc)[N / 2], const qb__gemm_s8_params &p,
                                              place &at, int row0, int col0,
                                              const float (&x_scale)[2])
{
    if (row0 >= p.m || col0 >= p.n) return;
    if (p.out == QB_CUDA_S32 && p.has_y) {
        store_words<N, SLOTS>(acc, p, at, &p.y, row0, col0, false);
        if (!p.has_residual && !p.max_bits && !p.row_max_bits) return;
    }
    scale_tile<N>(acc, p, at, x_scale);
    if (p.max_bits || p.row_max_bits) raise_maxima<N>(acc, p, at, row0, col0);
    if (p.has_residual) store_words<N, SLOTS>(acc, p, at, &p.residual, row0, col0, true);
    if (!p.has_y) return;
    if (p.out == QB_CUDA_BF16) store_bf16<N, SLOTS>(acc, p, at, row0, col0);
    if (p.out == QB_CUDA_F32) store_words<N, SLOTS>(acc, p, at, &p.y, row0, col0, false);
    if (p.out == QB_CUDA_S8) store_s8<N, SLOTS>(acc, p, at, row0, col0);
}

} // namespace gemm_s8

#endif
