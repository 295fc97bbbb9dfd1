/* tests/golden/test_quant_kernels.c - every tensor of a-quant.safetensors (x, w; codes, scales,
 * sums and outputs of the schemes) from every kernel row. Integers bit for bit; floats to 1e-6 of
 * the largest of their tensor, but for rows of gemm_u4 that round x to 16-bit blocks: 2e-5 of it.
 */
#include "support.h"

#include "core/dtype.h"
#include "core/memory.h"
#include "kernels/gemm_s8.h"
#include "kernels/gemm_u4.h"
#include "kernels/quantize.h"

#include <math.h>
#include <string.h>

enum { M = 37, N = 64, K = 96, X_STRIDE = 128 };

static char path[4096];

static void *tensor(const char *scheme, const char *name, const char *dtype, size_t expect_elems)
{
    char full[128];
    snprintf(full, sizeof full, "%s%s", scheme, name);
    size_t n = 0;
    void *data = qb_test_safetensor(path, full, dtype, &n);
    if (expect_elems) assert_int_equal(n, expect_elems);
    return data;
}

static void check_floats(const char *row, const char *what, const float *got, const float *want,
                         size_t n, double tolerance)
{
    double largest = 0.0;
    for (size_t i = 0; i < n; i++) largest = fmax(largest, fabs((double)want[i]));
    size_t at = 0;
    double worst = qb_test_max_diff(got, want, n, &at);
    if (worst > tolerance * largest)
        fail_msg("%s: %s[%zu]: %.9g, expected %.9g: off by %.2g of the largest", row, what, at,
                 (double)got[at], (double)want[at], worst / largest);
}

typedef struct matrix { /* (rows, K) codes with padded rows, and their scales */
    int8_t *q;
    float scale[N];
    int32_t sum[N];
} matrix;

/* Quantises (rows, K) by absmax, one scale a row or one for all, and compares with the golden. */
static matrix quantize(const qb_quantize_row *row, const char *scheme, const char *which,
                       const float *x, size_t rows, size_t stride, bool per_row)
{
    char name[8];
    matrix out;
    void *q;
    QB_CHECK_OK(qb_alloc_zero(&q, rows, stride, "codes"));
    out.q = q;
    snprintf(name, sizeof name, ".s%s", which);
    float *want_scale = tensor(scheme, name, "F32", per_row ? rows : 1);
    snprintf(name, sizeof name, ".q%s", which);
    int8_t *want_q = tensor(scheme, name, "I8", rows * K);
    float shared = row->absmax(x, rows * K) / 127.0f;
    for (size_t r = 0; r < rows; r++) {
        out.scale[r] = per_row ? row->absmax(x + r * K, K) / 127.0f : shared;
        out.sum[r] = row->quantize_s8(x + r * K, K, out.scale[r], out.q + r * stride);
        assert_memory_equal(out.q + r * stride, want_q + r * K, K);
    }
    check_floats(row->info.name, "scales", out.scale, want_scale, per_row ? rows : 1, 1e-6);
    qb_free(want_scale);
    qb_free(want_q);
    return out;
}

static void check_requantize(const qb_quantize_row *row, float *y)
{
    float *want_scale = tensor("coarse", ".sy", "F32", 1);
    float *want_y = tensor("coarse", ".y_out", "F32", M * N);
    int8_t *want_q = tensor("coarse", ".qy", "I8", M * N), q[M * N];
    float scale = row->absmax(y, M * N) / 127.0f;
    check_floats(row->info.name, "sy", &scale, want_scale, 1, 1e-6);
    row->requantize(y, M * N, scale, q);
    assert_memory_equal(q, want_q, sizeof q);
    check_floats(row->info.name, "y_out", y, want_y, M * N, 1e-6);
    qb_free(want_scale);
    qb_free(want_y);
    qb_free(want_q);
}

static void check_product(const qb_gemm_s8_row *row, const qb_quantize_row *quantizer,
                          const char *scheme, const matrix *x, const matrix *w)
{
    int32_t *want_acc = tensor(scheme, ".acc", "I32", M * N), acc[M * N];
    float *want_y = tensor(scheme, ".y", "F32", M * N), y[M * N];
    uint32_t max_abs_bits = 0;
    void *packed;
    QB_CHECK_OK(qb_alloc(&packed, row->packed_bytes(N, K), 1, "packed"));
    row->pack(w->q, 0, N, N, K, packed);
    const qb_gemm_s8_args args = {.m = M,
                                  .n = N,
                                  .k = K,
                                  .x = x->q,
                                  .x_stride = X_STRIDE,
                                  .x_sum = x->sum,
                                  .w = packed,
                                  .acc = acc,
                                  .y = y,
                                  .y_stride = N,
                                  .x_scale = x->scale,
                                  .x_scale_step = 1,
                                  .w_scale = w->scale,
                                  .w_scale_step = 1,
                                  .max_abs_bits = &max_abs_bits};
    qb_gemm_s8_run(row, &args, 1, NULL);
    assert_memory_equal(acc, want_acc, sizeof acc);
    check_floats(row->info.name, "y", y, want_y, M * N, 1e-6);
    if (!strcmp(scheme, "coarse")) {
        float max_abs = quantizer->absmax(y, M * N);
        assert_int_equal(max_abs_bits, qb_f32_bits(max_abs));
        check_requantize(quantizer, y);
    }
    qb_free(packed);
    qb_free(want_acc);
    qb_free(want_y);
}

static bool find_golden(void)
{
    const char *found = qb_test_golden("a-quant.safetensors");
    if (found) snprintf(path, sizeof path, "%s", found);
    return found != NULL;
}

static void integer_schemes_are_reproduced(void **state)
{
    (void)state;
    if (!find_golden()) QB_SKIP("a-quant.safetensors is absent");
    static const char *const schemes[] = {"fine", "moderate", "coarse"};
    float *x = tensor("", "x", "F32", M * K), *w = tensor("", "w", "F32", N * K);
    for (size_t s = 0; s < QB_COUNT(schemes); s++)
        for (const qb_quantize_row *q = qb_quantize_kernels; q->info.name; q++) {
            if (qb_kernel_refusal(&q->info)) continue;
            matrix qx = quantize(q, schemes[s], "x", x, M, X_STRIDE, s == 0);
            matrix qw = quantize(q, schemes[s], "w", w, N, K, s == 0);
            for (const qb_gemm_s8_row *row = qb_gemm_s8_kernels; row->info.name; row++)
                if (!qb_kernel_refusal(&row->info)) check_product(row, q, schemes[s], &qx, &qw);
            qb_free(qx.q);
            qb_free(qw.q);
        }
    qb_free(x);
    qb_free(w);
}

/* The most that rounding x to blocks may change y[m, n]: the tokens of this file are one block. */
static double block_bound(const qb_u4_weights *w, const uint8_t *q, const float *x, size_t n)
{
    double largest = 0.0, rest = 0.0;
    for (size_t k = 0; k < K; k++) {
        size_t s = n * w->n_step + k * w->k_step;
        double scale = (double)w->scale[s], folded = w->k_step ? scale : 1.0;
        largest = fmax(largest, fabs((double)x[k] * folded));
        rest += fabs((q[n * K + k] - (double)w->zero_point[s]) * scale / (scale != 0 ? folded : 1.0));
    }
    return largest * 0x1p-16 * rest;
}

static void check_u4(const qb_gemm_u4_row *row, const char *scheme, const qb_u4_weights *weights,
                     const uint8_t *q, const float *x, const float *want_y)
{
    void *packed, *prepared;
    float y[M * N];
    QB_CHECK_OK(qb_alloc(&packed, row->packed_bytes(weights), 1, "packed"));
    QB_CHECK_OK(qb_alloc(&prepared, row->prepared_bytes(M, K), 1, "prepared"));
    assert_null(row->pack(weights, 0, N, packed));
    bool in_blocks = row->prepared_bytes(M, K) > 0;
    if (in_blocks) row->prepare(x, K, 0, M, M, K, packed, prepared);
    const qb_gemm_u4_args args = {.m = M,
                                  .n = N,
                                  .k = K,
                                  .x = x,
                                  .x_stride = K,
                                  .x_prepared = prepared,
                                  .w = packed,
                                  .y = y,
                                  .y_stride = N};
    qb_gemm_u4_run(row, &args, 1, NULL);
    for (size_t i = 0; in_blocks && i < M * N; i++) {
        double bound = block_bound(weights, q, x + i / N * K, i % N);
        if (fabs((double)y[i] - (double)want_y[i]) <= bound) y[i] = want_y[i];
    }
    check_floats(row->info.name, scheme, y, want_y, M * N, 1e-6);
    qb_free(packed);
    qb_free(prepared);
}

static void zeropoint4_products_are_reproduced(void **state)
{
    (void)state;
    if (!find_golden()) QB_SKIP("a-quant.safetensors is absent");
    static const struct {
        const char *name;
        size_t n_slices, n_step, k_step;
    } schemes[] = {
        {"zeropoint4_out", N, 1, 0}, {"zeropoint4_in", K, 0, 1}, {"zeropoint4_tensor", 1, 0, 0}};
    float *x = tensor("", "x", "F32", M * K);
    for (size_t s = 0; s < QB_COUNT(schemes); s++) {
        uint8_t *q = tensor(schemes[s].name, ".q", "U8", N * K), codes[N * K / 2];
        float *scale = tensor(schemes[s].name, ".scale", "F32", schemes[s].n_slices);
        int32_t *zero_point = tensor(schemes[s].name, ".zp", "I32", schemes[s].n_slices);
        float *y = tensor(schemes[s].name, ".y", "F32", M * N);
        for (size_t i = 0; i < sizeof codes; i++)
            codes[i] = (uint8_t)(q[2 * i] | q[2 * i + 1] << 4);
        const qb_u4_weights weights = {.n = N,
                                       .k = K,
                                       .codes = codes,
                                       .n_step = schemes[s].n_step,
                                       .k_group = 1,
                                       .k_step = schemes[s].k_step,
                                       .scale = scale,
                                       .zero_point = zero_point};
        for (const qb_gemm_u4_row *row = qb_gemm_u4_kernels; row->info.name; row++)
            if (!qb_kernel_refusal(&row->info)) check_u4(row, schemes[s].name, &weights, q, x, y);
        qb_free(q);
        qb_free(scale);
        qb_free(zero_point);
        qb_free(y);
    }
    qb_free(x);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(integer_schemes_are_reproduced),
        cmocka_unit_test(zeropoint4_products_are_reproduced),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
