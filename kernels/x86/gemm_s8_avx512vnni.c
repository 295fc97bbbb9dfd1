/* kernels/x86/gemm_s8_avx512vnni.c - gemm_s8.h by vpdpbusd: sums of four u8 * s8 products.
 *
 * The unsigned side is w + 128, so that x can be the operand that is broadcast from memory; since
 *
 *     sum of (w + 128) * x = sum of w * x + 128 * sum of x,                                     (3)
 *
 * accumulators start at -128 * x_sum[m] and end at the sum wanted (all modulo 2^32).
 *
 * Packed w: panels of 32 output channels; inside a panel groups of four input channels, 128 bytes
 * each: [ceil(n / 32)][ceil(k / 4)][32][4]. A tile of up to 12 tokens x 32 channels has its 24
 * accumulators in registers over the whole of k; each step loads 128 bytes of w from the first or
 * second cache level for 24 instructions of one cycle each. Missing channels are packed as 128
 * (code 0), missing k too; x is padded by its contract. */
#include "kernels/gemm_s8_internal.h"

#include "kernels/tiling.h"

#include <immintrin.h>
#include <string.h>

enum { PANEL_N = 32, GROUP_K = 4, GROUP_BYTES = PANEL_N * GROUP_K, TILE_M = 12 };

static inline size_t n_groups_of(size_t k)
{
    return (k + GROUP_K - 1) / GROUP_K;
}

size_t qb__gemm_s8_packed_bytes_avx512vnni(size_t n, size_t k)
{
    return (n + PANEL_N - 1) / PANEL_N * n_groups_of(k) * GROUP_BYTES;
}

void qb__gemm_s8_pack_avx512vnni(const int8_t *w_rows, size_t n0, size_t n1, size_t n, size_t k,
                                 void *packed)
{
    const size_t n_groups = n_groups_of(k);
    (void)n;
    for (size_t first = n0; first < n1; first += PANEL_N) {
        uint8_t *panel = (uint8_t *)packed + first * n_groups * GROUP_K;
        const size_t n_cols = n1 - first < PANEL_N ? n1 - first : PANEL_N;
        if (n_cols < PANEL_N || k % GROUP_K) memset(panel, 128, n_groups * GROUP_BYTES);
        for (size_t c = 0; c < n_cols; c++) {
            const int8_t *w = w_rows + (first - n0 + c) * k;
            for (size_t i = 0; i < k; i++)
                panel[i / GROUP_K * GROUP_BYTES + c * GROUP_K + i % GROUP_K] =
                    (uint8_t)(w[i] + 128);
        }
    }
}

typedef struct tile {
    const qb_gemm_s8_args *args;
    size_t m, n; /* its first token and output channel */
    const uint8_t *panel;
    __m512 max_abs;
} tile;

static inline __m512i broadcast4(const int8_t *x)
{
    int32_t four;
    memcpy(&four, x, sizeof four);
    return _mm512_set1_epi32(four);
}

/* What the epilogue of all tokens of a tile shares: two vectors of 16 channels. */
typedef struct columns {
    __mmask16 mask[2];
    __m512 scale[2], bias[2];
} columns;

static inline columns columns_of(const qb_gemm_s8_args *a, size_t n)
{
    columns c;
    for (size_t h = 0; h < 2; h++, n += 16) {
        const size_t n_left = a->n > n ? a->n - n : 0;
        c.mask[h] = n_left >= 16 ? 0xffff : (__mmask16)((1u << n_left) - 1);
        c.scale[h] = a->w_scale_step ? _mm512_maskz_loadu_ps(c.mask[h], a->w_scale + n)
                                     : _mm512_set1_ps(a->w_scale[0]); /* the step is 0 or 1 */
        c.bias[h] = a->bias ? _mm512_maskz_loadu_ps(c.mask[h], a->bias + n) : _mm512_setzero_ps();
    }
    return c;
}

/* Stores 16 sums of token m from channel n on, and (2) of gemm_s8.h of them; returns the larger of
 * max_abs and |y|. */
static inline __m512 store16(const qb_gemm_s8_args *a, size_t m, size_t n, const columns *c,
                             size_t h, __m512i sum, __m512 max_abs)
{
    const __mmask16 mask = c->mask[h];
    if (a->acc) _mm512_mask_storeu_epi32(a->acc + m * a->n + n, mask, sum);
    if (!a->y) return max_abs;
    const __m512 scale =
        _mm512_mul_ps(_mm512_set1_ps(a->x_scale[m * a->x_scale_step]), c->scale[h]);
    __m512 y = _mm512_mul_ps(_mm512_cvtepi32_ps(sum), scale);
    if (a->bias) y = _mm512_add_ps(y, c->bias[h]);
    float *out = a->y + m * a->y_stride + n;
    if (mask == 0xffff)
        _mm512_storeu_ps(out, y);
    else
        _mm512_mask_storeu_ps(out, mask, y);
    /* maxps returns its second operand where either is a NaN */
    return _mm512_mask_max_ps(max_abs, mask, _mm512_abs_ps(y), max_abs);
}

/* n_rows tokens x 32 channels over the whole of k. Named accumulators, since compilers keep an
 * array of 24 in memory; rows from n_rows on fold away. */
#define EACH_ROW(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11)
static inline __attribute__((always_inline)) void compute_tile(tile *t, const size_t n_rows)
{
    const qb_gemm_s8_args *a = t->args;
    const size_t stride = a->x_stride;
    const uint8_t *w = t->panel, *const end = w + n_groups_of(a->k) * GROUP_BYTES;
    const int8_t *x = a->x + t->m * stride;
    if (a->y) /* fetched for writing while the sums are made */
        for (size_t r = 0; r < n_rows; r++) {
            const float *y = a->y + (t->m + r) * a->y_stride + t->n;
            __builtin_prefetch(y, 1);
            __builtin_prefetch(y + 16, 1);
        }
#define START(r)                                                                                   \
    __m512i left##r = _mm512_setzero_si512(), right##r = left##r;                                  \
    if (r < n_rows)                                                                                \
        left##r = right##r = _mm512_set1_epi32((int32_t)((uint32_t)a->x_sum[t->m + r] * -128u));
    EACH_ROW(START)
    for (; w < end; w += GROUP_BYTES, x += GROUP_K) {
        const __m512i w_left = _mm512_load_si512(w), w_right = _mm512_load_si512(w + 64);
#define STEP(r)                                                                                    \
    if (r < n_rows) {                                                                              \
        const __m512i four = broadcast4(x + r * stride);                                           \
        left##r = _mm512_dpbusd_epi32(left##r, w_left, four);                                      \
        right##r = _mm512_dpbusd_epi32(right##r, w_right, four);                                   \
        __asm__("" : "+v"(left##r), "+v"(right##r));                                               \
    }
        EACH_ROW(STEP)
    }
    const columns c = columns_of(a, t->n);
    __m512 max_abs = t->max_abs;
#define FINISH(r)                                                                                  \
    if (r < n_rows) {                                                                              \
        max_abs = store16(a, t->m + r, t->n, &c, 0, left##r, max_abs);                             \
        max_abs = store16(a, t->m + r, t->n + 16, &c, 1, right##r, max_abs);                       \
    }
    EACH_ROW(FINISH)
    t->max_abs = max_abs;
}

#define TILE_ROWS(n_rows)                                                                          \
    static __attribute__((noinline)) void compute_tile_##n_rows(tile *t)                           \
    {                                                                                              \
        compute_tile(t, n_rows);                                                                   \
    }
TILE_ROWS(1)
TILE_ROWS(2)
TILE_ROWS(3)
TILE_ROWS(4)
TILE_ROWS(5)
TILE_ROWS(6)
TILE_ROWS(7)
TILE_ROWS(8)
TILE_ROWS(9)
TILE_ROWS(10)
TILE_ROWS(11)
TILE_ROWS(12)

static void (*const compute_tile_of[TILE_M + 1])(tile *) = {
    NULL,           compute_tile_1, compute_tile_2,  compute_tile_3,
    compute_tile_4, compute_tile_5, compute_tile_6,  compute_tile_7,
    compute_tile_8, compute_tile_9, compute_tile_10, compute_tile_11,
    compute_tile_12};

static qb_tiling tiling_of(const qb_gemm_s8_args *a)
{
    return (qb_tiling){(a->n + PANEL_N - 1) / PANEL_N, (a->m + TILE_M - 1) / TILE_M,
                       TILE_M * a->x_stride};
}

size_t qb__gemm_s8_n_tasks_avx512vnni(const qb_gemm_s8_args *a, size_t n_threads)
{
    const qb_tiling tiling = tiling_of(a);
    return qb_tiling_n_tasks(&tiling, n_threads);
}

void qb__gemm_s8_task_avx512vnni(const qb_gemm_s8_args *a, size_t i, size_t n_tasks)
{
    const qb_tiling tiling = tiling_of(a);
    const qb_task_span span = qb_tiling_span(&tiling, i, n_tasks);
    tile t = {.args = a, .max_abs = _mm512_setzero_ps()};
    for (size_t p = span.panel0; p < span.panel1; p++)
        for (size_t j = span.tile0; j < span.tile1; j++) {
            t.m = j * TILE_M;
            t.n = p * PANEL_N;
            t.panel = (const uint8_t *)a->w + p * n_groups_of(a->k) * GROUP_BYTES;
            compute_tile_of[a->m - t.m < TILE_M ? a->m - t.m : TILE_M](&t);
        }
    if (a->max_abs_bits) qb__raise_max_abs(a->max_abs_bits, _mm512_reduce_max_ps(t.max_abs));
}
