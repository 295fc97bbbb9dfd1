/* kernels/x86/gemm_s8_avx2.c - gemm_s8.h without VNNI: both sides widened to 16 bits, then madd,
 * which is exact for all codes (maddubs would saturate).
 *
 * Packed w: panels of 16 output channels; inside a panel pairs of input channels, 32 bytes each:
 * [ceil(n / 16)][ceil(k / 2)][16][2]. A tile is up to 4 tokens x 16 channels. Missing channels and
 * the missing half of the last pair are code 0. */
#include "kernels/gemm_s8_internal.h"
#include "kernels/tiling.h"

#include <immintrin.h>
#include <string.h>

enum { PANEL_N = 16, GROUP_K = 2, GROUP_BYTES = PANEL_N * GROUP_K, TILE_M = 4, PASS_K = 1024 };

static inline size_t n_groups_of(size_t k)
{
    return (k + GROUP_K - 1) / GROUP_K;
}

static inline size_t n_panels_of(size_t n)
{
    return (n + PANEL_N - 1) / PANEL_N;
}

size_t qb__gemm_s8_packed_bytes_avx2(size_t n, size_t k)
{
    return n_panels_of(n) * n_groups_of(k) * GROUP_BYTES;
}

void qb__gemm_s8_pack_avx2(const int8_t *w_rows, size_t n0, size_t n1, size_t n, size_t k,
                           void *packed)
{
    const size_t panel_bytes = n_groups_of(k) * GROUP_BYTES;
    (void)n;
    for (size_t first = n0; first < n1; first += PANEL_N) {
        int8_t *panel = (int8_t *)packed + first / PANEL_N * panel_bytes;
        const size_t n_cols = n1 - first < PANEL_N ? n1 - first : PANEL_N;
        if (n_cols < PANEL_N || k % GROUP_K) memset(panel, 0, panel_bytes);
        for (size_t c = 0; c < n_cols; c++) {
            const int8_t *w = w_rows + (first - n0 + c) * k;
            for (size_t i = 0; i < k; i++)
                panel[i / GROUP_K * GROUP_BYTES + c * GROUP_K + i % GROUP_K] = w[i];
        }
    }
}

/* Two codes in every 32-bit lane. */
static inline __m256i broadcast2(const int16_t *x)
{
    int32_t two;
    memcpy(&two, x, sizeof two);
    return _mm256_set1_epi32(two);
}

static inline __m256i widen16(const int8_t *w)
{
    return _mm256_cvtepi8_epi16(_mm_load_si128((const __m128i *)w));
}

typedef struct tile {
    const qb_gemm_s8_args *args;
    size_t m, n; /* its first token and output channel */
    const int8_t *panel;
    __m256 max_abs;
} tile;

/* maxps returns its second operand where either is a NaN. */
static inline __m256 larger(__m256 y, __m256 max_abs)
{
    return _mm256_max_ps(_mm256_andnot_ps(_mm256_set1_ps(-0.0f), y), max_abs);
}

/* Equation (2) of gemm_s8.h for 8 channels, all of them present; returns the larger of max_abs and
 * |y|. */
static inline __m256 store8(const qb_gemm_s8_args *a, size_t m, size_t n, __m256i sum,
                            __m256 max_abs)
{
    if (a->acc) _mm256_storeu_si256((__m256i *)(a->acc + m * a->n + n), sum);
    if (!a->y) return max_abs;
    const __m256 w_scale =
        a->w_scale_step ? _mm256_loadu_ps(a->w_scale + n) : _mm256_set1_ps(a->w_scale[0]);
    const __m256 scale = _mm256_mul_ps(_mm256_set1_ps(a->x_scale[m * a->x_scale_step]), w_scale);
    __m256 y = _mm256_mul_ps(_mm256_cvtepi32_ps(sum), scale);
    if (a->bias) y = _mm256_add_ps(y, _mm256_loadu_ps(a->bias + n));
    _mm256_storeu_ps(a->y + m * a->y_stride + n, y);
    return larger(y, max_abs);
}

/* The same one by one, at the right edge. */
static __m256 store_some(const qb_gemm_s8_args *a, size_t m, size_t n, __m256i sum, __m256 max_abs)
{
    int32_t lane[8];
    float y[8] = {0};
    _mm256_storeu_si256((__m256i *)lane, sum);
    for (size_t j = 0; j < 8 && n + j < a->n; j++) {
        if (a->acc) a->acc[m * a->n + n + j] = lane[j];
        if (a->y) a->y[m * a->y_stride + n + j] = y[j] = qb__gemm_s8_value(a, m, n + j, lane[j]);
    }
    return larger(_mm256_loadu_ps(y), max_abs);
}

static inline __m256 store16(const qb_gemm_s8_args *a, size_t m, size_t n, __m256i left,
                             __m256i right, __m256 max_abs)
{
    if (a->n - n >= PANEL_N) return store8(a, m, n + 8, right, store8(a, m, n, left, max_abs));
    return store_some(a, m, n + 8, right, store_some(a, m, n, left, max_abs));
}

/* Codes [k0, k1) of n_rows tokens, widened once so that a step need only broadcast; the padding of
 * x fills the last vector. */
static inline void widen_x(const tile *t, size_t n_rows, size_t k0, size_t k1,
                           int16_t wide[TILE_M][PASS_K])
{
    for (size_t r = 0; r < n_rows; r++) {
        const int8_t *x = t->args->x + (t->m + r) * t->args->x_stride;
        for (size_t k = k0; k < k1; k += 16)
            _mm256_store_si256((__m256i *)(wide[r] + k - k0), widen16(x + k));
    }
}

#define EACH_ROW(X) X(0) X(1) X(2) X(3)
static inline __attribute__((always_inline)) void compute_tile(tile *t, const size_t n_rows)
{
    const size_t n_k = t->args->k;
    const int8_t *w = t->panel;
    _Alignas(32) int16_t wide[TILE_M][PASS_K];
#define START(r) __m256i left##r = _mm256_setzero_si256(), right##r = left##r;
    EACH_ROW(START)
    for (size_t k0 = 0; k0 < n_k; k0 += PASS_K) {
        const size_t k1 = n_k - k0 < PASS_K ? n_k : k0 + PASS_K;
        widen_x(t, n_rows, k0, k1, wide);
        for (size_t i = 0; i < k1 - k0; i += GROUP_K, w += GROUP_BYTES) {
            const __m256i w_left = widen16(w), w_right = widen16(w + 16);
#define STEP(r)                                                                                    \
    if (r < n_rows) {                                                                              \
        const __m256i two = broadcast2(wide[r] + i);                                               \
        left##r = _mm256_add_epi32(left##r, _mm256_madd_epi16(w_left, two));                       \
        right##r = _mm256_add_epi32(right##r, _mm256_madd_epi16(w_right, two));                    \
    }
            EACH_ROW(STEP)
        }
    }
#define FINISH(r)                                                                                  \
    if (r < n_rows) max_abs = store16(t->args, t->m + r, t->n, left##r, right##r, max_abs);
    __m256 max_abs = t->max_abs;
    EACH_ROW(FINISH)
    t->max_abs = max_abs;
}

static void compute_rows(tile *t, size_t n_rows)
{
    switch (n_rows) {
    case 1:
        compute_tile(t, 1);
        break;
    case 2:
        compute_tile(t, 2);
        break;
    case 3:
        compute_tile(t, 3);
        break;
    default:
        compute_tile(t, TILE_M);
    }
}

static qb_tiling tiling_of(const qb_gemm_s8_args *a)
{
    return (qb_tiling){n_panels_of(a->n), (a->m + TILE_M - 1) / TILE_M, TILE_M * a->x_stride};
}

size_t qb__gemm_s8_n_tasks_avx2(const qb_gemm_s8_args *a, size_t n_threads)
{
    const qb_tiling tiling = tiling_of(a);
    return qb_tiling_n_tasks(&tiling, n_threads);
}

void qb__gemm_s8_task_avx2(const qb_gemm_s8_args *a, size_t i, size_t n_tasks)
{
    const qb_tiling tiling = tiling_of(a);
    const qb_task_span span = qb_tiling_span(&tiling, i, n_tasks);
    tile t = {.args = a, .max_abs = _mm256_setzero_ps()};
    for (size_t p = span.panel0; p < span.panel1; p++)
        for (size_t j = span.tile0; j < span.tile1; j++) {
            t.m = j * TILE_M;
            t.n = p * PANEL_N;
            t.panel = (const int8_t *)a->w + p * n_groups_of(a->k) * GROUP_BYTES;
            compute_rows(&t, a->m - t.m < TILE_M ? a->m - t.m : TILE_M);
        }
    if (!a->max_abs_bits) return;
    float lane[8];
    _mm256_storeu_ps(lane, t.max_abs);
    for (size_t j = 0; j < 8; j++) qb__raise_max_abs(a->max_abs_bits, lane[j]);
}
