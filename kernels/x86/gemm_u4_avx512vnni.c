/* kernels/x86/gemm_u4_avx512vnni.c - gemm_u4.h in integers: x in block floating point.
 *
 * Blocks b of 128 input channels of a token become 16-bit integers X, x = s_b * X, with
 * s_b = max|x| / 32639, and X = 256 * hi + lo with hi and lo in s8 (32639 = 127 * 256 + 127). With
 * codes q as the unsigned side of vpdpbusd the sum over a run f of channels (a block, or a shorter
 * group of the weights) is an exact integer,
 *
 *     D_f = 256 * sum of q * hi + sum of q * lo - 8 * S_f = sum of (q - 8) * X,  S_f = sum of X,
 * (3)
 *
 * |D_f| <= 128 * 8 * 32639 < 2^26, and y follows in f32 (z = zero point - 8, w_scale per slice):
 *
 *     slices by n or one:  y = (sum of s_f * D_f - z * sum of s_f * S_f) * w_scale (4) groups along
 * k:      y = sum of s_f * w_scale_f * (D_f - z_f * S_f)                        (5) slices by k: x
 * * w_scale_k in place of x, y = sum of s_f * D_f - sum of x * z_k    (6)
 *
 * Subtracting 8 keeps the terms of (4) small. The error is that of X, at most s_b / 2 an element or
 * max|x| * 2^-16, and some f32 roundings.
 *
 * A tile of up to 4 tokens x 32 channels reads 128 bytes of w for 32 products, and a single token
 * streams half a byte a weight. */
#include "kernels/gemm_u4_internal.h"
#include "kernels/tiling.h"

#include <immintrin.h>
#include <string.h>

enum { PANEL_N = QB__U4_PANEL_N, GROUP_K = QB__U4_GROUP_K, GROUP_BYTES = QB__U4_GROUP_BYTES };
enum { BLOCK = QB_GEMM_U4_BLOCK, SHORTEST_RUN = 32, TILE_M = 4, X_MAX = 127 * 256 + 127 };

/* Channels of k under one integer sum. */
static size_t run_k_of(const qb_u4_weights *w)
{
    return w->k_step && w->n_step && w->k_group < BLOCK ? w->k_group : BLOCK;
}

size_t qb__gemm_u4_packed_bytes_avx512vnni(const qb_u4_weights *w)
{
    return qb__u4_packed_bytes(w, run_k_of(w));
}

const char *qb__gemm_u4_pack_avx512vnni(const qb_u4_weights *w, size_t n0, size_t n1, void *packed)
{
    if (w->k_step && w->n_step && w->k_group % BLOCK && w->k_group != 32 && w->k_group != 64)
        return "groups of weights are neither 32, 64 nor a multiple of 128";
    return qb__u4_pack(w, run_k_of(w), n0, n1, packed);
}

static inline size_t run_k_of_packed(const qb__u4_packed *p)
{
    return p->n_runs > 1 ? p->run_k : BLOCK;
}

/* ---- prepared activations: per token
 * int8_t parts[n_blocks][2][BLOCK]           hi, then lo
 * float scale[n_runs]                        s of its block
 * int32_t sum[n_runs]                        S
 * float correction                           sum of s * S (4), of x * z_k (6); to 64 bytes ---- */

static inline size_t max_runs_of(size_t k)
{
    return qb__u4_k_padded(k) / SHORTEST_RUN;
}
/* An odd number of cache lines, so that the tokens of a tile do not share a set. */
static inline size_t token_bytes_of(size_t k)
{
    size_t lines = qb__div_up(2 * qb__u4_k_padded(k) + max_runs_of(k) * 8 + 4, 64);
    return (lines | 1) * 64;
}
static inline float *run_scales_of(const void *token, size_t k)
{
    return (float *)((char *)token + 2 * qb__u4_k_padded(k));
}
static inline int32_t *run_sums_of(const void *token, size_t k)
{
    return (int32_t *)(run_scales_of(token, k) + max_runs_of(k));
}
static inline float *correction_of(const void *token, size_t k)
{
    return (float *)(run_sums_of(token, k) + max_runs_of(k));
}

size_t qb__gemm_u4_prepared_bytes_avx512vnni(size_t m, size_t k)
{
    return m * token_bytes_of(k);
}

static inline __mmask16 mask_below(size_t n)
{
    return n >= 16 ? 0xffff : (__mmask16)((1u << n) - 1);
}

enum { VECS = BLOCK / 16 };

/* A block from k0 on, 0 beyond the end of x; k_scale, where there is one, folded in. */
static inline void load_block(const float *x, size_t k0, size_t n_k, const float *k_scale,
                              __m512 block[VECS])
{
    for (size_t i = 0; i < VECS; i++) {
        const size_t k = k0 + 16 * i;
        if (k + 16 <= n_k)
            block[i] = _mm512_loadu_ps(x + k);
        else
            block[i] =
                k < n_k ? _mm512_maskz_loadu_ps(mask_below(n_k - k), x + k) : _mm512_setzero_ps();
        if (k_scale) block[i] = _mm512_mul_ps(block[i], _mm512_load_ps(k_scale + k));
    }
}

/* A NaN or infinity comes out as such, since their bits are the largest. */
static inline float block_max_abs(const __m512 block[VECS])
{
    __m512i most = _mm512_castps_si512(_mm512_abs_ps(block[0]));
    for (size_t i = 1; i < VECS; i++)
        most = _mm512_max_epu32(most, _mm512_castps_si512(_mm512_abs_ps(block[i])));
    uint32_t bits = _mm512_reduce_max_epu32(most);
    float max_abs;
    memcpy(&max_abs, &bits, sizeof max_abs);
    return max_abs;
}

/* Splits 64 integers into hi and lo, stores them, and returns 16 sums of four. Packing works in
 * 128-bit lanes, so that the result has its 32-bit parts transposed as 4 x 4. */
static inline __m512i split64(const __m512i X[4], int8_t *hi)
{
    const __m512i untwist = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const __m512i a = _mm512_packs_epi32(X[0], X[1]), b = _mm512_packs_epi32(X[2], X[3]);
    const __m512i half = _mm512_set1_epi16(128), ones = _mm512_set1_epi8(1);
    const __m512i high_a = _mm512_srai_epi16(_mm512_add_epi16(a, half), 8);
    const __m512i high_b = _mm512_srai_epi16(_mm512_add_epi16(b, half), 8);
    const __m512i low_a = _mm512_sub_epi16(a, _mm512_slli_epi16(high_a, 8));
    const __m512i low_b = _mm512_sub_epi16(b, _mm512_slli_epi16(high_b, 8));
    const __m512i high = _mm512_permutexvar_epi32(untwist, _mm512_packs_epi16(high_a, high_b));
    const __m512i low = _mm512_permutexvar_epi32(untwist, _mm512_packs_epi16(low_a, low_b));
    _mm512_storeu_si512(hi, high);
    _mm512_storeu_si512(hi + BLOCK, low);
    const __m512i high_sums = _mm512_dpbusd_epi32(_mm512_setzero_si512(), ones, high);
    return _mm512_dpbusd_epi32(_mm512_slli_epi32(high_sums, 8), ones, low);
}

/* The sums of the runs of a block from its 32 sums of four; returns that of the block. */
static inline int32_t run_sums(const __m512i sums[2], size_t run_k, int32_t *run)
{
    const int32_t all = _mm512_reduce_add_epi32(_mm512_add_epi32(sums[0], sums[1]));
    if (run_k == BLOCK) {
        run[0] = all;
        return all;
    }
    int32_t four[BLOCK / 4];
    memcpy(four, sums, sizeof four);
    for (size_t r = 0; r < BLOCK / run_k; r++) {
        uint32_t sum = 0;
        for (size_t i = 0; i < run_k / 4; i++) sum += (uint32_t)four[r * run_k / 4 + i];
        run[r] = (int32_t)sum;
    }
    return all;
}

/* One block of a token; returns its share of the correction. k_slices: scales, then z; or NULL. */
static inline float prepare_block(const float *x, size_t k0, size_t k, size_t run_k,
                                  const float *k_slices, void *token)
{
    __m512 block[VECS];
    __m512i X[VECS], sums[2];
    load_block(x, k0, k, k_slices, block);
    float max_abs = block_max_abs(block);
    if (max_abs < 0x1p-100f) max_abs = 0.0f; /* its inverse would overflow */
    const float scale = max_abs / X_MAX, inverse = max_abs == 0.0f ? 0.0f : X_MAX / max_abs;
    for (size_t i = 0; i < VECS; i++)
        X[i] = _mm512_cvtps_epi32(_mm512_mul_ps(block[i], _mm512_set1_ps(inverse)));
    for (size_t h = 0; h < 2; h++) sums[h] = split64(X + 4 * h, (int8_t *)token + 2 * k0 + 64 * h);

    const size_t first_run = k0 / run_k;
    const int32_t sum = run_sums(sums, run_k, run_sums_of(token, k) + first_run);
    for (size_t r = 0; r < BLOCK / run_k; r++) run_scales_of(token, k)[first_run + r] = scale;
    if (!k_slices) return scale * (float)sum;
    __m512 times_zero = _mm512_setzero_ps();
    for (size_t i = 0; i < VECS; i++)
        times_zero = _mm512_fmadd_ps(_mm512_cvtepi32_ps(X[i]),
                                     _mm512_load_ps(k_slices + qb__u4_k_padded(k) + k0 + 16 * i),
                                     times_zero);
    return scale * _mm512_reduce_add_ps(times_zero);
}

static void prepare_token(const float *x, size_t k, const qb__u4_packed *p, void *token)
{
    const size_t run_k = run_k_of_packed(p);
    float correction = 0.0f;
    for (size_t k0 = 0; k0 < k; k0 += BLOCK)
        correction += prepare_block(x, k0, k, run_k, qb__u4_k_slices(p), token);
    *correction_of(token, k) = correction;
}

void qb__gemm_u4_prepare_avx512vnni(const float *x, size_t x_stride, size_t m0, size_t m1, size_t m,
                                    size_t k, const void *packed, void *prepared)
{
    (void)m;
    for (size_t i = m0; i < m1; i++)
        prepare_token(x + i * x_stride, k, packed, (char *)prepared + i * token_bytes_of(k));
}

/* ---- the product ---- */

typedef struct tile {
    const qb_gemm_u4_args *args;
    const qb__u4_packed *packed;
    size_t m, n; /* its first token and output channel */
    const uint8_t *codes;
    const float *slices;
    const char *tokens; /* prepared, from m on */
    size_t token_bytes;
} tile;

/* What a run's sum starts from: the centre's part of it. Where x is not finite the sums hold
 * anything (the run's scale carries the NaN), hence the arithmetic that may wrap, as in run_sums.
 */
static inline int run_start(const char *token, size_t n_k, size_t run)
{
    return (int)(0u - QB__U4_CENTRE * (uint32_t)run_sums_of(token, n_k)[run]);
}

static inline __m512i broadcast4(const char *x)
{
    int32_t four;
    memcpy(&four, x, sizeof four);
    return _mm512_set1_epi32(four);
}

/* D of a run and its share of y: (5) where by_group, else (4) and (6). */
static inline __m512 add_run(__m512 y, __m512i hi, __m512i lo, float x_scale, float x_sum,
                             const float *slices, bool by_group)
{
    __m512 d = _mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_slli_epi32(hi, 8), lo));
    __m512 scale = _mm512_set1_ps(x_scale);
    if (by_group) {
        d = _mm512_fnmadd_ps(_mm512_load_ps(slices + PANEL_N), _mm512_set1_ps(x_sum), d);
        scale = _mm512_mul_ps(scale, _mm512_load_ps(slices));
    }
    return _mm512_fmadd_ps(d, scale, y);
}

static inline void store16(const tile *t, size_t r, size_t column, __m512 y)
{
    const qb_gemm_u4_args *a = t->args;
    const size_t m = t->m + r, n = t->n + column;
    if (n >= a->n) return;
    const __mmask16 mask = mask_below(a->n - n);
    if (t->packed->n_runs == 1) {
        __m512 correction = _mm512_set1_ps(*correction_of(t->tokens + r * t->token_bytes, a->k));
        y = _mm512_fnmadd_ps(_mm512_load_ps(t->slices + PANEL_N + column), correction, y);
        y = _mm512_mul_ps(y, _mm512_load_ps(t->slices + column));
    }
    if (a->bias) y = _mm512_add_ps(y, _mm512_maskz_loadu_ps(mask, a->bias + n));
    _mm512_mask_storeu_ps(a->y + m * a->y_stride + n, mask, y);
}

/* n_rows tokens x 32 channels; rows from n_rows on fold away. The empty asm keeps compilers from
 * holding the accumulators twice. */
#define EACH_ROW(X) X(0) X(1) X(2) X(3)
static inline __attribute__((always_inline)) void compute_tile(const tile *t, const size_t n_rows,
                                                               const bool by_group)
{
    const size_t n_k = t->args->k, run_k = run_k_of_packed(t->packed), stride = t->token_bytes;
    const __m512i low_nibble = _mm512_set1_epi8(15);
    const uint8_t *w = t->codes;
    const float *slices = t->slices;
#define START(r) __m512 left##r = _mm512_setzero_ps(), right##r = left##r;
    EACH_ROW(START)
    for (size_t k0 = 0, run = 0; k0 < n_k; k0 += run_k, run++) {
        const char *x = t->tokens + k0 / BLOCK * 2 * BLOCK + k0 % BLOCK;
        const size_t n_groups = qb__div_up(n_k - k0 < run_k ? n_k - k0 : run_k, GROUP_K);
#define START_RUN(r)                                                                               \
    __m512i left_hi##r = _mm512_setzero_si512(), right_hi##r = left_hi##r, left_lo##r,             \
            right_lo##r;                                                                           \
    left_lo##r = right_lo##r = _mm512_setzero_si512();                                             \
    if (r < n_rows)                                                                                \
        left_lo##r = right_lo##r = _mm512_set1_epi32(run_start(t->tokens + r * stride, n_k, run));
        EACH_ROW(START_RUN)
        for (const uint8_t *end = w + n_groups * GROUP_BYTES; w < end;
             w += GROUP_BYTES, x += GROUP_K) {
            const __m512i left = _mm512_load_si512(w), right = _mm512_load_si512(w + 64);
            __m512i left_q = _mm512_and_si512(left, low_nibble);
            __m512i right_q = _mm512_and_si512(right, low_nibble);
#define STEP(r, k)                                                                                 \
    if (r < n_rows) {                                                                              \
        const __m512i hi = broadcast4(x + r * stride + k);                                         \
        const __m512i lo = broadcast4(x + r * stride + BLOCK + k);                                 \
        left_hi##r = _mm512_dpbusd_epi32(left_hi##r, left_q, hi);                                  \
        right_hi##r = _mm512_dpbusd_epi32(right_hi##r, right_q, hi);                               \
        left_lo##r = _mm512_dpbusd_epi32(left_lo##r, left_q, lo);                                  \
        right_lo##r = _mm512_dpbusd_epi32(right_lo##r, right_q, lo);                               \
        __asm__("" : "+v"(left_hi##r), "+v"(right_hi##r), "+v"(left_lo##r), "+v"(right_lo##r));    \
    }
#define STEP_LOW(r) STEP(r, 0)
#define STEP_HIGH(r) STEP(r, 4)
            EACH_ROW(STEP_LOW)
            left_q = _mm512_and_si512(_mm512_srli_epi16(left, 4), low_nibble);
            right_q = _mm512_and_si512(_mm512_srli_epi16(right, 4), low_nibble);
            EACH_ROW(STEP_HIGH)
        }
#define FINISH_RUN(r)                                                                              \
    if (r < n_rows) {                                                                              \
        const float scale = run_scales_of(t->tokens + r * stride, n_k)[run];                       \
        const float sum = (float)run_sums_of(t->tokens + r * stride, n_k)[run];                    \
        left##r = add_run(left##r, left_hi##r, left_lo##r, scale, sum, slices, by_group);          \
        right##r = add_run(right##r, right_hi##r, right_lo##r, scale, sum, slices + 16, by_group); \
    }
        EACH_ROW(FINISH_RUN)
        if (by_group) slices += 2 * PANEL_N;
    }
#define FINISH(r)                                                                                  \
    if (r < n_rows) {                                                                              \
        store16(t, r, 0, left##r);                                                                 \
        store16(t, r, 16, right##r);                                                               \
    }
    EACH_ROW(FINISH)
}

#define TILE_ROWS(n_rows)                                                                          \
    static __attribute__((noinline)) void compute_tile_##n_rows(const tile *t)                     \
    {                                                                                              \
        compute_tile(t, n_rows, false);                                                            \
    }                                                                                              \
    static __attribute__((noinline)) void compute_tile_grouped_##n_rows(const tile *t)             \
    {                                                                                              \
        compute_tile(t, n_rows, true);                                                             \
    }
TILE_ROWS(1)
TILE_ROWS(2)
TILE_ROWS(3)
TILE_ROWS(4)

static void (*const compute_tile_of[2][TILE_M])(const tile *) = {
    {compute_tile_1, compute_tile_2, compute_tile_3, compute_tile_4},
    {compute_tile_grouped_1, compute_tile_grouped_2, compute_tile_grouped_3,
     compute_tile_grouped_4}};

static qb_tiling tiling_of(const qb_gemm_u4_args *a)
{
    return (qb_tiling){qb__div_up(a->n, PANEL_N), qb__div_up(a->m, TILE_M),
                       TILE_M * token_bytes_of(a->k)};
}

size_t qb__gemm_u4_n_tasks_avx512vnni(const qb_gemm_u4_args *a, size_t n_threads)
{
    const qb_tiling tiling = tiling_of(a);
    return qb_tiling_n_tasks(&tiling, n_threads);
}

void qb__gemm_u4_task_avx512vnni(const qb_gemm_u4_args *a, size_t i, size_t n_tasks)
{
    const qb_tiling tiling = tiling_of(a);
    const qb_task_span span = qb_tiling_span(&tiling, i, n_tasks);
    const qb__u4_packed *packed = a->w;
    tile t = {.args = a, .packed = packed, .token_bytes = token_bytes_of(a->k)};
    for (size_t p = span.panel0; p < span.panel1; p++)
        for (size_t j = span.tile0; j < span.tile1; j++) {
            t.m = j * TILE_M;
            t.n = p * PANEL_N;
            t.codes = qb__u4_codes_of(packed, p);
            t.slices = qb__u4_slices_of(packed, p);
            t.tokens = (const char *)a->x_prepared + t.m * t.token_bytes;
            size_t n_rows = a->m - t.m < TILE_M ? a->m - t.m : TILE_M;
            compute_tile_of[packed->n_runs > 1][n_rows - 1](&t);
        }
}
