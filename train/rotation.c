/* train/rotation.c - see rotation.h. */
#include "train/rotation.h"

#include "core/memory.h"
#include "core/rng.h"
#include "kernels/reflections.h"

#include <math.h>
#include <string.h>

const char *const qb_rotation_names[QB_ROTATION_COUNT] = {"haar", "block", "hadamard"};

static void draw(uint64_t seed, uint64_t stream, uint64_t first, size_t n_elems, double *a)
{
    for (size_t i = 0; i < n_elems; i += 256) {
        float some[256];
        size_t now = n_elems - i < 256 ? n_elems - i : 256;
        qb_rng_normal_f32(seed, stream, first + i, now, 1, some);
        for (size_t j = 0; j < now; j++) a[i + j] = (double)some[j];
    }
}

/* ---- Haar: Q = H_0 ... H_(n-1) diag(sign R) of the QR decomposition of a Gaussian matrix ----
 *
 * Panels of PANEL reflections are made one after the other; what comes behind a panel has all of
 * it at once. Columns are padded to whole units of lanes, and so that those of a panel do not fall
 * into the same sets of a cache. */
enum { PANEL = QB_REFLECTIONS };

typedef struct haar_qr {
    size_t n, stride; /* elements from one column to the next */
    double *a;        /* (n rounded up to PANEL, stride); from its diagonal down column k becomes
                       * v of H_k = I - 2 v v^T, |v| = 1 */
    double *q;        /* (n, stride) by columns */
    double *t;        /* (panels, PANEL, PANEL) T^T of each, see reflections.h */
    const qb_reflections_row *row;
} haar_qr;

static size_t haar_columns(size_t n)
{
    return qb_round_up(n, PANEL);
}

static size_t haar_stride(size_t n)
{
    return qb_round_up(n, QB_REFLECTION_LANES) + QB_REFLECTION_LANES;
}

static size_t haar_elems(size_t n)
{
    return haar_columns(n) * (2 * haar_stride(n) + PANEL);
}

static haar_qr haar_begin(size_t n, double *scratch)
{
    const size_t columns = haar_columns(n), stride = haar_stride(n);
    memset(scratch, 0, haar_elems(n) * sizeof *scratch);
    return (haar_qr){.n = n,
                     .stride = stride,
                     .a = scratch,
                     .q = scratch + columns * stride,
                     .t = scratch + 2 * columns * stride,
                     .row = QB_KERNEL_PICK(qb_reflections_kernels)};
}

/* The panel whose first column is k0, on elements k0 and after. */
static qb_reflections panel_at(const haar_qr *h, size_t k0)
{
    return (qb_reflections){.n = h->stride - QB_REFLECTION_LANES - k0,
                            .v = h->a + k0 * h->stride + k0,
                            .stride = h->stride,
                            .t = h->t + k0 * PANEL};
}

static double norm_of(const double *x, size_t n)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += x[i] * x[i];
    return sqrt(sum);
}

/* Column k, which has all reflections before it, gives the k-th; returns the diagonal element of R,
 * *found is whether there is one to reflect with. */
static double make_reflection(const haar_qr *h, size_t k0, size_t k, bool *found)
{
    double *column = h->a + k * h->stride, *v = column + k;
    const size_t left = h->n - k;
    const double size = norm_of(v, left), diagonal = v[0] > 0 ? -size : size;
    for (size_t i = k0; i < k; i++) column[i] = 0; /* R's, which nobody reads */
    v[0] -= diagonal;
    const double norm = norm_of(v, left);
    for (size_t i = 0; i < left; i++) v[i] = norm > 0 ? v[i] / norm : 0;
    *found = norm > 0;
    return diagonal;
}

/* T's next column: I - V T V^T, times H = I - 2 v v^T, has 2 at its end and -2 T V^T v above. */
static void extend(const haar_qr *h, const qb_reflections *panel, size_t k0, size_t k)
{
    double w[PANEL], *t = h->t + k0 * PANEL;
    const size_t new = k - k0;
    h->row->dots(panel, h->a + k * h->stride + k0, w);
    t[new *PANEL + new] = 2;
    for (size_t i = 0; i < new; i++)
        for (size_t j = i; j < new; j++) t[new *PANEL + i] -= 2 * t[j * PANEL + i] * w[j];
}

static void factor_panel(const haar_qr *h, size_t k0)
{
    const qb_reflections panel = panel_at(h, k0);
    const size_t k1 = k0 + PANEL < h->n ? k0 + PANEL : h->n;
    for (size_t k = k0; k < k1; k++) {
        bool found;
        h->row->apply(&panel, h->a + k * h->stride + k0, h->stride, 1);
        h->q[k * h->stride + k] = make_reflection(h, k0, k, &found) < 0 ? -1 : 1;
        if (found) extend(h, &panel, k0, k);
    }
    h->row->apply(&panel, h->a + k1 * h->stride + k0, h->stride, h->n - k1);
}

/* Q's columns before k0 are still those of I, which the panel leaves. */
static void reflect_q(const haar_qr *h, size_t k0)
{
    double t[PANEL * PANEL];
    qb_reflections panel = panel_at(h, k0);
    for (size_t i = 0; i < PANEL; i++)
        for (size_t j = 0; j < PANEL; j++) t[i * PANEL + j] = panel.t[j * PANEL + i];
    panel.t = t;
    h->row->apply(&panel, h->q + k0 * h->stride + k0, h->stride, h->n - k0);
}

/* From the numbers [first, first + n n) of the stream. */
static haar_qr fill_haar(uint64_t seed, uint64_t stream, uint64_t first, size_t n, double *scratch)
{
    const haar_qr h = haar_begin(n, scratch);
    for (size_t j = 0; j < n; j++) draw(seed, stream, first + j * n, n, h.a + j * h.stride);
    for (size_t k0 = 0; k0 < n; k0 += PANEL) factor_panel(&h, k0);
    for (size_t k1 = haar_columns(n); k1 > 0; k1 -= PANEL) reflect_q(&h, k1 - PANEL);
    return h;
}

/* Haar blocks along the diagonal of q (n, n), each of block_elems, the last maybe less. */
static void fill_blocks(uint64_t seed, uint64_t stream, size_t n, size_t block_elems,
                        double *scratch, float *q)
{
    uint64_t first = 0;
    for (size_t b = 0; b < n; b += block_elems) {
        size_t size = n - b < block_elems ? n - b : block_elems;
        const haar_qr h = fill_haar(seed, stream, first, size, scratch);
        first += size * size;
        for (size_t i = 0; i < size; i++)
            for (size_t j = 0; j < size; j++) q[(b + i) * n + b + j] = (float)h.q[j * h.stride + i];
    }
}

static uint64_t stream_of(const qb_param *param, size_t axis)
{
    uint64_t which = (uint64_t)param->role << 13 | (uint64_t)param->layer_idx << 1 | (axis & 1);
    return QB_STREAM_ROTATION | which << 32;
}

/* ---- Hadamard ---- */

/* Random signs: numbers past those of any Haar matrix. */
static float sign_of(uint64_t seed, uint64_t stream, size_t i)
{
    return qb_rng_u32(seed, stream, (UINT64_C(1) << 40) + i) & 1 ? 1 : -1;
}

static qb_status fill_odd(uint64_t seed, uint64_t stream, size_t odd, float *haar)
{
    double *scratch;
    QB_TRY(QB_NEW(&scratch, haar_elems(odd), "rotation"));
    fill_blocks(seed, stream, odd, odd, scratch, haar);
    qb_free(scratch);
    return QB_OK;
}

qb_status qb_hadamard_create(const qb_rotation *rotation, const qb_param *param, size_t axis,
                             size_t n, qb_hadamard *out)
{
    uint64_t seed = rotation->seed, stream = stream_of(param, axis);
    qb_hadamard h = {.n = n, .power = n & (~n + 1)};
    size_t odd = n / h.power;
    float scale = (float)(1 / sqrt((double)h.power));
    qb_status status = QB_NEW(&h.left, n, "rotation");
    if (status == QB_OK) status = QB_NEW(&h.right, n, "rotation");
    if (status == QB_OK) status = QB_NEW(&h.haar, odd * odd, "rotation");
    if (status == QB_OK) status = fill_odd(seed, stream, odd, h.haar);
    for (size_t i = 0; status == QB_OK && i < n; i++) {
        h.left[i] = scale * sign_of(seed, stream, i);
        h.right[i] = sign_of(seed, stream, n + i);
    }
    if (status == QB_OK)
        *out = h;
    else
        qb_hadamard_destroy(&h);
    return status;
}

void qb_hadamard_destroy(qb_hadamard *h)
{
    qb_free(h->left);
    qb_free(h->right);
    qb_free(h->haar);
    *h = (qb_hadamard){0};
}

enum { LANES = QB_HADAMARD_LANES };

static void multiply_rows(const float *diagonal, size_t n, float *x)
{
    for (size_t i = 0; i < n; i++)
        for (size_t l = 0; l < LANES; l++) x[i * LANES + l] *= diagonal[i];
}

/* a, b <- a + b, a - b for each pair that is `apart` rows apart. */
static void butterflies(float *x, size_t n, size_t apart)
{
    for (size_t i = 0; i < n; i += 2 * apart)
        for (size_t j = i; j < i + apart; j++) {
            float *a = x + j * LANES, *b = a + apart * LANES;
            for (size_t l = 0; l < LANES; l++) {
                float sum = a[l] + b[l];
                b[l] = a[l] - b[l];
                a[l] = sum;
            }
        }
}

/* The Haar factor: row a * power + b of y from the rows of x with the same b. */
static void mix_odd(const qb_hadamard *h, bool back, const float *x, float *y)
{
    size_t odd = h->n / h->power;
    memset(y, 0, h->n * LANES * sizeof *y);
    for (size_t to = 0; to < odd; to++)
        for (size_t from = 0; from < odd; from++) {
            float q = back ? h->haar[from * odd + to] : h->haar[to * odd + from];
            for (size_t i = 0; i < h->power; i++)
                for (size_t l = 0; l < LANES; l++)
                    y[(to * h->power + i) * LANES + l] += q * x[(from * h->power + i) * LANES + l];
        }
}

void qb_hadamard_turn(const qb_hadamard *h, bool back, float *x, float *scratch)
{
    multiply_rows(back ? h->left : h->right, h->n, x);
    for (size_t apart = 1; apart < h->power; apart *= 2) butterflies(x, h->n, apart);
    mix_odd(h, back, x, scratch);
    multiply_rows(back ? h->right : h->left, h->n, scratch);
    memcpy(x, scratch, h->n * LANES * sizeof *x);
}

static void fill_hadamard(const qb_hadamard *h, float *q)
{
    size_t n = h->n, power = h->power, odd = n / power;
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j < n; j++) {
            float haar = h->haar[i / power * odd + j / power];
            bool minus = __builtin_parityll((i % power) & (j % power));
            q[i * n + j] = h->left[i] * (minus ? -haar : haar) * h->right[j];
        }
}

/* ---- any kind ---- */

size_t qb_rotation_axis_elems(const qb_rotation *rotation, const qb_param *param, size_t axis)
{
    size_t n = axis ? param->cols : param->rows;
    bool residual = param->residual == (axis ? QB_RESIDUAL_COLS : QB_RESIDUAL_ROWS);
    if (param->residual == QB_RESIDUAL_NONE || n > QB_ROTATION_MAX_AXIS) return 0;
    return residual || rotation->both_axes ? n : 0;
}

qb_status qb_rotation_fill(const qb_rotation *rotation, const qb_param *param, size_t axis,
                           size_t n, float *q)
{
    size_t size = rotation->kind == QB_ROTATION_BLOCK ? rotation->block_elems : n;
    if (n < 1 || n > QB_ROTATION_MAX_AXIS)
        return QB_FAIL(QB_ERR_SHAPE, "rotation: axis of %zu elements, expected 1 to %d", n,
                       QB_ROTATION_MAX_AXIS);
    if (size < 1)
        return QB_FAIL(QB_ERR_USAGE, "rotation: blocks of 0 elements, expected at least 1");
    if (size > n) size = n;
    if (rotation->kind == QB_ROTATION_HADAMARD) {
        qb_hadamard h;
        QB_TRY(qb_hadamard_create(rotation, param, axis, n, &h));
        fill_hadamard(&h, q);
        qb_hadamard_destroy(&h);
        return QB_OK;
    }
    double *scratch;
    QB_TRY(QB_NEW(&scratch, haar_elems(size), "rotation"));
    memset(q, 0, n * n * sizeof *q);
    fill_blocks(rotation->seed, stream_of(param, axis), n, size, scratch, q);
    qb_free(scratch);
    return QB_OK;
}
