/* kernels/x86/tile_f32_internal.h - the inner loop of every f32 product: a tile of up to TILE_ROWS
 * rows by PANEL columns whose sums stay in registers.
 *
 *     acc[r][c] = sum over i < k of x[r * x_stride + i] * panel[i * PANEL + c]                 (1)
 *
 * Each sum is one chain of fused multiply-adds from i = 0 upwards, whatever the number of rows; so
 * a row's bits do not depend on the tile it sits in. AVX-512: 14 x 32, 28 sums, 2 columns, 1
 * broadcast of 32 registers; AVX2: 6 x 16, 12 + 2 + 1 of 16. */
#ifndef QB_KERNELS_X86_TILE_F32_INTERNAL_H
#define QB_KERNELS_X86_TILE_F32_INTERNAL_H

#include "kernels/x86/vector_internal.h"

#ifdef __AVX512F__
enum { TILE_ROWS = 14 };
#define QB_TILE_LIST(X) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12) X(13) X(14)
#else
enum { TILE_ROWS = 6 };
#define QB_TILE_LIST(X) X(1) X(2) X(3) X(4) X(5) X(6)
#endif
enum { PANEL = 2 * LANES };

/* (1) with a constant number of rows; prefetch: rows of the panel to fetch ahead, 0 = none. Rows
 * are addressed as base[3 * j] + {0, 1, 2} strides: five pointers and one index fit the general
 * registers, fourteen pointers would not. */
QB_INLINE void tile_sum(const int rows, const int prefetch, const float *x, size_t x_stride,
                        const float *panel, size_t k, vf acc[][2])
{
    const float *base[(TILE_ROWS + 2) / 3];
#pragma GCC unroll 5
    for (int r = 0; r < rows; r += 3) base[r / 3] = x + (size_t)r * x_stride;
#pragma GCC unroll 14
    for (int r = 0; r < rows; r++) acc[r][0] = acc[r][1] = vf_set(0);
    for (size_t i = 0; i < k; i++) {
        vf w0 = vf_load(panel + i * PANEL), w1 = vf_load(panel + i * PANEL + LANES);
        if (prefetch) {
            const float *ahead = panel + (i + (size_t)prefetch) * PANEL;
            _mm_prefetch((const char *)ahead, _MM_HINT_T0);
            if (PANEL > 16) _mm_prefetch((const char *)(ahead + 16), _MM_HINT_T0);
        }
#pragma GCC unroll 14
        for (int r = 0; r < rows; r++) {
            vf b = vf_set(base[r / 3][(size_t)(r % 3) * x_stride + i]);
            acc[r][0] = vf_fma(b, w0, acc[r][0]);
            acc[r][1] = vf_fma(b, w1, acc[r][1]);
        }
    }
}

/* Up to PANEL rows of k elements become a panel: panel[i * PANEL + c] = rows[c * stride + i];
 * columns from n_rows on become 0. */
static inline void tile_pack(const float *rows, size_t stride, size_t n_rows, size_t k,
                             float *panel)
{
    for (size_t c = 0; c < PANEL; c += LANES)
        for (size_t i = 0; i < k; i += LANES) {
            size_t n = k - i < LANES ? k - i : LANES;
            vf square[LANES];
#pragma GCC unroll 16
            for (size_t r = 0; r < LANES; r++)
                square[r] = c + r < n_rows ? vf_load_n(rows + (c + r) * stride + i, n) : vf_set(0);
            vf_transpose(square);
            float *to = panel + i * PANEL + c;
#pragma GCC unroll 16
            for (size_t r = 0; r < LANES; r++)
                if (r < n) vf_store(to + r * PANEL, square[r]);
        }
}

#endif
