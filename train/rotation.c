/* train/rotation.c - see rotation.h. */
#include "train/rotation.h"

#include "core/memory.h"
#include "core/rng.h"

#include <math.h>
#include <string.h>

const char *const qb_rotation_names[QB_ROTATION_COUNT] = {"haar", "block", "hadamard"};

static double dot(const double *a, const double *b, size_t n)
{
    double sum[4] = {0}; /* four chains, which the processor works on side by side */
    size_t i = 0;
    for (; i + 4 <= n; i += 4)
        for (size_t j = 0; j < 4; j++) sum[j] += a[i + j] * b[i + j];
    for (; i < n; i++) sum[0] += a[i] * b[i];
    return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

/* y -= s x */
static void subtract(double *y, const double *x, double s, size_t n)
{
    for (size_t i = 0; i < n; i++) y[i] -= s * x[i];
}

/* Reflections I - 2 v v^T that are applied to a column while it is in the first cache level. */
enum { REFLECTIONS = 32 };

/* The k-th reflection of the QR decomposition of a, whose column j is a + j n: v, of norm 1,
 * replaces column k from its diagonal down. Returns the diagonal element of R. */
static double make_reflection(double *a, size_t k, size_t n)
{
    double *v = a + k * n + k;
    size_t left = n - k;
    double size = sqrt(dot(v, v, left)), diagonal = v[0] > 0 ? -size : size;
    v[0] -= diagonal;
    double norm = sqrt(dot(v, v, left));
    for (size_t i = 0; i < left; i++) v[i] = norm > 0 ? v[i] / norm : 0;
    return diagonal;
}

static void reflect(const double *a, size_t k, size_t n, double *column)
{
    const double *v = a + k * n + k;
    subtract(column + k, v, 2 * dot(v, column + k, n - k), n - k);
}

static void draw(uint64_t seed, uint64_t stream, uint64_t first, size_t n_elems, double *a)
{
    for (size_t i = 0; i < n_elems; i += 256) {
        float some[256];
        size_t now = n_elems - i < 256 ? n_elems - i : 256;
        qb_rng_normal_f32(seed, stream, first + i, now, 1, some);
        for (size_t j = 0; j < now; j++) a[i + j] = (double)some[j];
    }
}

/* Haar-distributed Q (n, n), by columns, from the numbers [first, first + n n) of the stream.
 * Q = H_0 ... H_(n-1) diag(sign R). */
static void fill_haar(uint64_t seed, uint64_t stream, uint64_t first, size_t n, double *a,
                      double *q)
{
    draw(seed, stream, first, n * n, a);
    memset(q, 0, n * n * sizeof *q);
    for (size_t k0 = 0; k0 < n; k0 += REFLECTIONS) {
        size_t k1 = k0 + REFLECTIONS < n ? k0 + REFLECTIONS : n;
        for (size_t j = k0; j < n; j++) {
            for (size_t k = k0; k < k1 && k < j; k++) reflect(a, k, n, a + j * n);
            if (j < k1) q[j * n + j] = make_reflection(a, j, n) < 0 ? -1 : 1;
        }
    }
    for (size_t k1 = n; k1 > 0;) {
        size_t k0 = (k1 - 1) / REFLECTIONS * REFLECTIONS;
        for (size_t j = k0; j < n; j++)
            for (size_t k = j < k1 ? j + 1 : k1; k-- > k0;) reflect(a, k, n, q + j * n);
        k1 = k0;
    }
}

/* Haar blocks along the diagonal of q (n, n), each of block_elems, the last maybe less. */
static void fill_blocks(uint64_t seed, uint64_t stream, size_t n, size_t block_elems,
                        double *scratch, float *q)
{
    uint64_t first = 0;
    for (size_t b = 0; b < n; b += block_elems) {
        size_t size = n - b < block_elems ? n - b : block_elems;
        double *a = scratch, *block = scratch + size * size;
        fill_haar(seed, stream, first, size, a, block);
        first += size * size;
        for (size_t i = 0; i < size; i++)
            for (size_t j = 0; j < size; j++) q[(b + i) * n + b + j] = (float)block[j * size + i];
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
    QB_TRY(QB_NEW(&scratch, 2 * odd * odd, "rotation"));
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
    QB_TRY(QB_NEW(&scratch, 2 * size * size, "rotation"));
    memset(q, 0, n * n * sizeof *q);
    fill_blocks(rotation->seed, stream_of(param, axis), n, size, scratch, q);
    qb_free(scratch);
    return QB_OK;
}
