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

/* Random signs: numbers past those of any Haar matrix. */
static double sign_of(uint64_t seed, uint64_t stream, size_t i)
{
    return qb_rng_u32(seed, stream, (UINT64_C(1) << 40) + i) & 1 ? 1 : -1;
}

/* D1 (odd Haar (x) H) D2 / sqrt(power), with n = odd * power. */
static void fill_hadamard(uint64_t seed, uint64_t stream, size_t n, double *scratch, float *q)
{
    size_t power = n & (~n + 1), odd = n / power;
    double *haar = scratch + odd * odd, scale = 1 / sqrt((double)power);
    fill_haar(seed, stream, 0, odd, scratch, haar);
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j < n; j++) {
            int parity = __builtin_parityll((i % power) & (j % power));
            double h = haar[j / power * odd + i / power] * (parity ? -scale : scale);
            q[i * n + j] = (float)(sign_of(seed, stream, i) * h * sign_of(seed, stream, n + j));
        }
}

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
    uint64_t stream = QB_STREAM_ROTATION |
                      ((uint64_t)param->role << 13 | (uint64_t)param->layer_idx << 1 | (axis & 1))
                          << 32;
    double *scratch;
    QB_TRY(QB_NEW(&scratch, 2 * size * size, "rotation"));
    if (rotation->kind == QB_ROTATION_HADAMARD) {
        fill_hadamard(rotation->seed, stream, n, scratch, q);
    } else {
        memset(q, 0, n * n * sizeof *q);
        fill_blocks(rotation->seed, stream, n, size, scratch, q);
    }
    qb_free(scratch);
    return QB_OK;
}
