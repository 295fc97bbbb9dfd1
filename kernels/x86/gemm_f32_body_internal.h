/* kernels/x86/gemm_f32_body_internal.h - gemm_f32.h for AVX2 and AVX-512: one text, compiled twice.
 *
 * The sum over k is cut into blocks of equal size, at most MAX_K_BLOCK: within a block one chain of
 * fused multiply-adds, and the blocks' sums are added in order, y = (b0 + b1) + ... + bias. The cut
 * depends on K alone, so a token's bits depend on neither M nor the tasks.
 *
 * Packed w: [blocks of k][panels of PANEL output channels][k of the block][PANEL], missing channels
 * 0. So what a task reads together lies together, whatever power of two K is.
 *
 * Loops of a task: groups of panels (a block of a group stays in L2), blocks of k, tiles of rows (a
 * tile of x stays in L1), panels. */
#include "kernels/gemm_f32_internal.h"
#include "kernels/max_abs_internal.h"
#include "kernels/x86/tile_f32_internal.h"

#include <assert.h>
#include <string.h>

enum {
    MAX_K_BLOCK = 384, /* 14 rows of x: 21 KiB of L1; 8 panels of 32: 384 KiB of L2 */
    GROUP_PANELS = 8,
    SMALL_ROWS = 64, /* up to here only the channels are shared out */
    TASKS_A_THREAD = 12,
    MAX_BLOCK_TILES = 16, /* 14 rows each: 224 x 384 of x are 344 KiB of L2 */
    CACHED_W_BYTES = 8 << 20,
    PREFETCH_STEPS = 24, /* of k, ahead of a lone row: 3 KiB hide the latency of memory */
};

static inline size_t ceil_div(size_t a, size_t b)
{
    return (a + b - 1) / b;
}

static size_t n_k_blocks(size_t k)
{
    return ceil_div(k, MAX_K_BLOCK);
}

size_t QB_ISA(qb__gemm_f32_packed_bytes)(size_t n, size_t k)
{
    return ceil_div(n, PANEL) * PANEL * k * sizeof(float);
}

void QB_ISA(qb__gemm_f32_pack)(const float *w_rows, size_t n0, size_t n1, size_t n, size_t k,
                               void *packed)
{
    for (size_t b = 0; b < n_k_blocks(k); b++) {
        size_t k0 = k * b / n_k_blocks(k), k_elems = k * (b + 1) / n_k_blocks(k) - k0;
        float *block = (float *)packed + ceil_div(n, PANEL) * PANEL * k0;
        for (size_t p = n0; p < n1; p += PANEL)
            tile_pack(w_rows + (p - n0) * k + k0, k, n1 - p, k_elems, block + p * k_elems);
    }
}

void QB_ISA(qb__gemm_f32_pack_transposed)(const float *w, size_t stride, size_t n0, size_t n1,
                                          size_t n, size_t k, void *packed)
{
    for (size_t b = 0; b < n_k_blocks(k); b++) {
        size_t k0 = k * b / n_k_blocks(k), k_elems = k * (b + 1) / n_k_blocks(k) - k0;
        float *to = (float *)packed + ceil_div(n, PANEL) * PANEL * k0 + n0 * k_elems;
        for (size_t p = n0; p < n1; p += PANEL) {
            size_t right = n1 - p > LANES ? n1 - p - LANES : 0;
            for (size_t i = 0; i < k_elems; i++, to += PANEL) {
                const float *row = w + (k0 + i) * stride + (p - n0);
                vf_store(to, vf_load_n(row, n1 - p));
                vf_store(to + LANES, right ? vf_load_n(row + LANES, right) : vf_set(0));
            }
        }
    }
}

static size_t n_blocks(const qb_gemm_f32_args *a)
{
    return ceil_div(ceil_div(a->n, PANEL), GROUP_PANELS);
}

size_t QB_ISA(qb__gemm_f32_n_tasks)(const qb_gemm_f32_args *a, size_t n_threads)
{
    size_t n_panels = ceil_div(a->n, PANEL), want = n_threads == 1 ? 1 : TASKS_A_THREAD * n_threads;
    if (a->m <= SMALL_ROWS) {
        if (a->m < TILE_ROWS && n_threads > 1) want = 4 * n_threads;
        return want < n_panels ? want : n_panels;
    }
    size_t m_tiles = ceil_div(a->m, TILE_ROWS), m_blocks = ceil_div(want, n_blocks(a));
    if (m_blocks < ceil_div(m_tiles, MAX_BLOCK_TILES))
        m_blocks = ceil_div(m_tiles, MAX_BLOCK_TILES);
    return n_blocks(a) * (m_blocks < m_tiles ? m_blocks : m_tiles);
}

typedef struct tile_args {
    const float *x;
    size_t x_stride;
    const float *panel;
    size_t k;
    float *y;
    size_t y_stride, n_cols;
    const float *bias;  /* of this panel, or NULL */
    bool first, maxima; /* y is not yet there; the last block, and maxima are asked for */
} tile_args;

/* y = (y +) sum (+ bias), and the running maximum of |y| in each lane. */
QB_INLINE vf finish(const tile_args *t, vf sum, float *y, size_t from, size_t n_cols, vf max)
{
    if (!t->first) sum = vf_add(vf_load_n(y, n_cols), sum);
    if (t->bias) sum = vf_add(sum, vf_load_n(t->bias + from, n_cols));
    vf_store_n(y, sum, n_cols);
    return t->maxima ? vf_max(vf_abs(sum), max) : max;
}

QB_INLINE vf tile(const int rows, const tile_args *t, vf max)
{
    vf acc[TILE_ROWS][2];
    tile_sum(rows, rows == 1 ? PREFETCH_STEPS : 0, t->x, t->x_stride, t->panel, t->k, acc);
    size_t right = t->n_cols > LANES ? t->n_cols - LANES : 0;
#pragma GCC unroll 14
    for (int r = 0; r < rows; r++) {
        float *y = t->y + (size_t)r * t->y_stride;
        max = finish(t, acc[r][0], y, 0, t->n_cols, max);
        if (right) max = finish(t, acc[r][1], y + LANES, LANES, right, max);
    }
    return max;
}

#define TILE(rows)                                                                                 \
    static vf tile_##rows(const tile_args *t, vf max)                                              \
    {                                                                                              \
        return tile(rows, t, max);                                                                 \
    }
QB_TILE_LIST(TILE)
#undef TILE
#define TILE(rows) tile_##rows,
static vf (*const tiles[])(const tile_args *t, vf max) = {QB_TILE_LIST(TILE)};
#undef TILE

/* copy (n_rows, k_elems) = the transpose of x (k_elems, n_rows), n_rows <= TILE_ROWS */
static void transpose_rows(const float *x, size_t x_stride, size_t n_rows, size_t k_elems,
                           float *copy)
{
    for (size_t i = 0; i < k_elems; i += LANES) {
        size_t n = k_elems - i < LANES ? k_elems - i : LANES;
        vf square[LANES];
#pragma GCC unroll 16
        for (size_t r = 0; r < LANES; r++)
            square[r] = r < n ? vf_load_n(x + (i + r) * x_stride, n_rows) : vf_set(0);
        vf_transpose(square);
#pragma GCC unroll 16
        for (size_t r = 0; r < LANES; r++)
            if (r < n_rows) vf_store_n(copy + r * k_elems + i, square[r], n);
    }
}

/* Rows [m0, m1) times panels [p0, p1), k in [k0, k1). */
static vf block(const qb_gemm_f32_args *a, const size_t m[2], const size_t p[2], const size_t k[2],
                vf max)
{
    size_t n_tiles = ceil_div(m[1] - m[0], TILE_ROWS), k_elems = k[1] - k[0];
    const float *w = (const float *)a->w + ceil_div(a->n, PANEL) * PANEL * k[0];
    for (size_t t = 0; t < n_tiles; t++) {
        size_t r0 = m[0] + (m[1] - m[0]) * t / n_tiles;
        size_t r1 = m[0] + (m[1] - m[0]) * (t + 1) / n_tiles;
        const float *x = a->x + r0 * a->x_stride + k[0];
        size_t x_stride = a->x_stride;
        float copy[TILE_ROWS * MAX_K_BLOCK];
        if (a->x_transposed) {
            transpose_rows(a->x + k[0] * x_stride + r0, x_stride, r1 - r0, k_elems, copy);
            x = copy;
            x_stride = k_elems;
        } else if (r1 - r0 > 1 && p[1] - p[0] > 1) { /* rows 2^i apart would evict each other */
            for (size_t r = 0; r < r1 - r0; r++)
                memcpy(copy + r * k_elems, x + r * x_stride, k_elems * sizeof(float));
            x = copy;
            x_stride = k_elems;
        }
        for (size_t panel = p[0]; panel < p[1]; panel++) {
            size_t n0 = panel * PANEL;
            tile_args args = {.x = x,
                              .x_stride = x_stride,
                              .panel = w + n0 * k_elems,
                              .k = k_elems,
                              .y = a->y + r0 * a->y_stride + n0,
                              .y_stride = a->y_stride,
                              .n_cols = a->n - n0 < PANEL ? a->n - n0 : PANEL,
                              .bias = a->bias && k[1] == a->k ? a->bias + n0 : NULL,
                              .first = k[0] == 0 && !a->accumulate,
                              .maxima = a->max_abs_bits && k[1] == a->k};
            max = tiles[r1 - r0 - 1](&args, max);
        }
    }
    return max;
}

void QB_ISA(qb__gemm_f32_task)(const qb_gemm_f32_args *a, size_t i, size_t n_tasks)
{
    size_t n_panels = ceil_div(a->n, PANEL);
    size_t n_parts = a->m <= SMALL_ROWS ? n_tasks : n_blocks(a), m_parts = n_tasks / n_parts;
    assert(n_parts * m_parts == n_tasks);
    /* A w that fits the last-level cache is gone through for each block of rows, a larger one once.
     */
    bool w_cached = a->n * a->k * sizeof(float) <= CACHED_W_BYTES;
    size_t m_idx = w_cached ? i / n_parts : i % m_parts;
    size_t n_idx = w_cached ? i % n_parts : i / m_parts;
    size_t m[2] = {a->m * m_idx / m_parts, a->m * (m_idx + 1) / m_parts};
    size_t p_begin = n_panels * n_idx / n_parts, p_end = n_panels * (n_idx + 1) / n_parts;
    /* one tile reads w once, and in its own order */
    size_t group = a->m <= TILE_ROWS ? n_panels : GROUP_PANELS;
    vf max = vf_set(0);
    for (size_t p0 = p_begin; p0 < p_end; p0 += group) {
        size_t p[2] = {p0, p0 + group < p_end ? p0 + group : p_end};
        for (size_t b = 0; b < n_k_blocks(a->k); b++) {
            size_t k[2] = {a->k * b / n_k_blocks(a->k), a->k * (b + 1) / n_k_blocks(a->k)};
            max = block(a, m, p, k, max);
        }
    }
    if (a->max_abs_bits) qb__raise_max_abs(a->max_abs_bits, vf_hmax(max));
}
