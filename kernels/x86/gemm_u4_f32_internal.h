/* kernels/x86/gemm_u4_f32_internal.h - gemm_u4.h in f32: the body of the rows without VNNI,
 * included once by each after it has defined its vector type:
 *
 *     LANES, vec, zero(), set1(f), load(p), store(p, v), add(a, b), fmadd(a, b, c),
 *     load_some(p, n), store_some(p, v, n)       min(n, LANES) elements, zeros beyond
 *     weight_of(codes, shift, zero, scale)       (code - CENTRE - zero) * scale, the code being the
 *                                                4 bits at shift of each 32-bit lane of codes
 *     KEEP(v), an asm operand                    ROW(name), the names of the functions
 *
 * Weights are dequantised to f32, exactly (code - zero point) * scale rounded once, for PASS_K
 * channels of a panel at a time, into a buffer on the stack that all tokens of the task then use.
 * Each output has one chain of fused multiply-adds in the order of k, kept in y between passes: the
 * same bits for one token as for many. */
#include "kernels/gemm_u4_internal.h"
#include "kernels/tiling.h"

enum { PANEL_N = QB__U4_PANEL_N, GROUP_K = QB__U4_GROUP_K, GROUP_BYTES = QB__U4_GROUP_BYTES };
enum { PASS_K = 128, TILE_M = 6 };

static size_t run_k_of(const qb_u4_weights *w)
{
    return w->k_step && w->n_step ? w->k_group : w->k;
}

size_t ROW(packed_bytes)(const qb_u4_weights *w)
{
    return qb__u4_packed_bytes(w, run_k_of(w));
}

const char *ROW(pack)(const qb_u4_weights *w, size_t n0, size_t n1, void *packed)
{
    return qb__u4_pack(w, run_k_of(w), n0, n1, packed);
}

/* LANES weights of channel k of the panel; `codes` is the lane's place in group k / 8. */
static inline vec weight_at(const qb__u4_packed *p, const uint8_t *codes, const float *slices,
                            size_t k)
{
    const float *k_slices = qb__u4_k_slices(p);
    const unsigned shift = (unsigned)(k % 4 * 8 + k % GROUP_K / 4 * 4);
    if (k_slices)
        return weight_of(codes, shift, set1(k_slices[qb__u4_k_padded(p->k) + k]),
                         set1(k_slices[k]));
    slices += p->n_runs == 1 ? 0 : k / p->run_k * 2 * PANEL_N;
    return weight_of(codes, shift, load(slices + PANEL_N), load(slices));
}

/* Channels [k0, k1) of a panel into out (k1 - k0, PANEL_N). */
static void dequantize(const qb__u4_packed *p, size_t panel, size_t k0, size_t k1, float *out)
{
    for (size_t k = k0; k < k1; k++)
        for (size_t c = 0; c < PANEL_N; c += LANES, out += LANES)
            store(out, weight_at(p, qb__u4_codes_of(p, panel) + k / GROUP_K * GROUP_BYTES + c * 4,
                                 qb__u4_slices_of(p, panel) + c, k));
}

typedef struct pass {
    const qb_gemm_u4_args *args;
    const float *w; /* (k1 - k0, PANEL_N) */
    size_t k0, k1, n;
} pass;

/* y of n_rows tokens from m on, 2 * LANES channels from c of the panel on, += x * w over the pass.
 */
static inline __attribute__((always_inline)) void add_tile(const pass *p, size_t m, size_t c,
                                                           const size_t n_rows)
{
    const qb_gemm_u4_args *a = p->args;
    const size_t n = p->n + c, n_left = a->n > n ? a->n - n : 0;
    const size_t n_right = n_left > LANES ? n_left - LANES : 0;
    const float *x = a->x + m * a->x_stride, *w = p->w + c;
    vec left[TILE_M], right[TILE_M];
#pragma GCC unroll 16
    for (size_t r = 0; r < n_rows; r++) {
        const float *y = a->y + (m + r) * a->y_stride + n;
        left[r] = p->k0 ? load_some(y, n_left) : zero();
        right[r] = p->k0 ? load_some(y + LANES, n_right) : zero();
    }
    for (size_t k = p->k0; k < p->k1; k++, w += PANEL_N) {
        const vec w_left = load(w), w_right = load(w + LANES);
#pragma GCC unroll 16
        for (size_t r = 0; r < n_rows; r++) {
            const vec one = set1(x[r * a->x_stride + k]);
            left[r] = fmadd(one, w_left, left[r]);
            right[r] = fmadd(one, w_right, right[r]);
            __asm__("" : KEEP(left[r]), KEEP(right[r])); /* or copies of it go to memory */
        }
    }
    const bool add_bias = a->bias && p->k1 == a->k;
#pragma GCC unroll 16
    for (size_t r = 0; r < n_rows; r++) {
        float *y = a->y + (m + r) * a->y_stride + n;
        if (add_bias) left[r] = add(left[r], load_some(a->bias + n, n_left));
        if (add_bias) right[r] = add(right[r], load_some(a->bias + n + LANES, n_right));
        store_some(y, left[r], n_left);
        store_some(y + LANES, right[r], n_right);
    }
}

static void add_rows(const pass *p, size_t m, size_t n_rows)
{
    for (size_t c = 0; c < PANEL_N && p->n + c < p->args->n; c += 2 * LANES) switch (n_rows) {
        case 1:
            add_tile(p, m, c, 1);
            break;
        case 2:
            add_tile(p, m, c, 2);
            break;
        case 3:
            add_tile(p, m, c, 3);
            break;
        case 4:
            add_tile(p, m, c, 4);
            break;
        case 5:
            add_tile(p, m, c, 5);
            break;
        default:
            add_tile(p, m, c, TILE_M);
        }
}

static qb_tiling tiling_of(const qb_gemm_u4_args *a)
{
    return (qb_tiling){qb__div_up(a->n, PANEL_N), qb__div_up(a->m, TILE_M),
                       TILE_M * a->k * sizeof(float)};
}

size_t ROW(n_tasks)(const qb_gemm_u4_args *a, size_t n_threads)
{
    const qb_tiling tiling = tiling_of(a);
    return qb_tiling_n_tasks(&tiling, n_threads);
}

void ROW(task)(const qb_gemm_u4_args *a, size_t i, size_t n_tasks)
{
    const qb_tiling tiling = tiling_of(a);
    const qb_task_span span = qb_tiling_span(&tiling, i, n_tasks);
    _Alignas(64) float w[PASS_K * PANEL_N];
    for (size_t panel = span.panel0; panel < span.panel1; panel++)
        for (size_t k0 = 0; k0 < a->k; k0 += PASS_K) {
            const size_t k1 = a->k - k0 < PASS_K ? a->k : k0 + PASS_K;
            const pass p = {a, w, k0, k1, panel * PANEL_N};
            dequantize(a->w, panel, k0, k1, w);
            for (size_t j = span.tile0; j < span.tile1; j++) {
                const size_t m = j * TILE_M;
                add_rows(&p, m, a->m - m < TILE_M ? a->m - m : TILE_M);
            }
        }
}
