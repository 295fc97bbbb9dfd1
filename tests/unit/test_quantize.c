/* tests/unit/test_quantize.c - every row of quantize returns the bits of the equations in
 * quantize.h, which are written out here once more. */
#include "support.h"

#include "core/dtype.h"
#include "core/memory.h"
#include "core/rng.h"
#include "kernels/quantize.h"

#include <math.h>
#include <string.h>

static const size_t sizes[] = {0, 1, 3, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 100, 576, 1000};
enum { N_KINDS = 7 };

/* Inputs that have gone wrong before: plain, ties, NaN and infinities, tiny, zeros, huge. */
static void fill(float *x, size_t n, int kind, float scale)
{
    qb_test_fill_f32(x, n, 7 + (uint64_t)kind);
    for (size_t c = 0; c < n; c++) {
        uint32_t r = qb_rng_u32(1, QB_STREAM_TEST, c);
        if (kind == 1) /* halves of a code, and their neighbours */
            x[c] = qb_f32_from_bits(qb_f32_bits(((float)(r % 300) - 150.0f + 0.5f) * scale) +
                                    r / 1024 % 5 - 2);
        if (kind == 2 && r % 5 == 0) x[c] = NAN;
        if (kind == 2 && r % 5 == 1) x[c] = r % 2 ? INFINITY : -INFINITY;
        if (kind == 3) x[c] *= 0x1p-140f;
        if (kind == 4) x[c] = r % 2 ? 0.0f : -0.0f;
        if (kind == 5) x[c] *= 0x1p100f;
    }
}

static int want_code(float x, float scale)
{
    if (scale == 0.0f || isnan(x / scale)) return 0;
    float r = nearbyintf(x / scale);
    return r > 127.0f ? 127 : r < -127.0f ? -127 : (int)r;
}

static float want_absmax(const float *x, size_t n)
{
    float m = 0.0f;
    for (size_t c = 0; c < n; c++)
        if (!isnan(x[c]) && fabsf(x[c]) > m) m = fabsf(x[c]);
    return m;
}

static void check_one_scale(const qb_quantize_row *row, const float *x, size_t n, float scale)
{
    float *y = qb_test_guarded_alloc(n * sizeof *y);
    int8_t *q = qb_test_guarded_alloc(n), *q2 = qb_test_guarded_alloc(n);
    int32_t sum = 0;
    int32_t got_sum = row->quantize_s8(x, n, scale, q);
    if (n) memcpy(y, x, n * sizeof *y);
    row->requantize(y, n, scale, q2);
    for (size_t c = 0; c < n; c++) {
        int code = want_code(x[c], scale);
        sum += code;
        if (q[c] != code || q2[c] != code || qb_f32_bits(y[c]) != qb_f32_bits((float)code * scale))
            fail_msg("%s: x %a scale %a: code %d and %d, expected %d; y %a", row->info.name, x[c],
                     scale, q[c], q2[c], code, y[c]);
    }
    assert_int_equal(got_sum, sum);
    if (n) memcpy(y, x, n * sizeof *y);
    row->requantize(y, n, scale, NULL);
    for (size_t c = 0; c < n; c++)
        assert_int_equal(qb_f32_bits(y[c]), qb_f32_bits((float)q[c] * scale));
    qb_test_guarded_free(y, n * sizeof *y);
    qb_test_guarded_free(q, n);
    qb_test_guarded_free(q2, n);
}

static void check_channels(const qb_quantize_row *row, const float *x, size_t n, float scale)
{
    size_t bytes = n * sizeof(float);
    float *y = qb_test_guarded_alloc(bytes), *scales = qb_test_guarded_alloc(bytes);
    float *max_abs = qb_test_guarded_alloc(bytes);
    int8_t *q = qb_test_guarded_alloc(n);
    int32_t sum = 0;
    for (size_t c = 0; c < n; c++) {
        scales[c] = c % 7 == 3 ? 0.0f : scale * (float)(1 + c % 3);
        max_abs[c] = c % 2 ? 0.5f : 0.0f;
        y[c] = x[c];
    }
    row->absmax_channels(x, n, max_abs);
    int32_t got_sum = row->quantize_s8_channels(x, n, scales, q);
    row->requantize_channels(y, n, scales, NULL);
    for (size_t c = 0; c < n; c++) {
        int code = want_code(x[c], scales[c]);
        sum += code;
        assert_int_equal(q[c], code);
        assert_int_equal(qb_f32_bits(y[c]), qb_f32_bits((float)code * scales[c]));
        float m = want_absmax(x + c, 1), before = c % 2 ? 0.5f : 0.0f;
        assert_int_equal(qb_f32_bits(max_abs[c]), qb_f32_bits(m > before ? m : before));
    }
    assert_int_equal(got_sum, sum);
    qb_test_guarded_free(y, bytes);
    qb_test_guarded_free(scales, bytes);
    qb_test_guarded_free(max_abs, bytes);
    qb_test_guarded_free(q, n);
}

static void check_row(const qb_quantize_row *row)
{
    static const float scales[] = {0.01f, 1.0f / 3.0f, 0.0f, 0x1p-140f, 0x1p120f, INFINITY};
    for (size_t i = 0; i < QB_COUNT(sizes); i++)
        for (int kind = 0; kind < N_KINDS; kind++) {
            size_t n = sizes[i];
            float *x = qb_test_guarded_alloc(n * sizeof *x);
            for (size_t s = 0; s < QB_COUNT(scales); s++) {
                fill(x, n, kind, scales[s]);
                check_one_scale(row, x, n, scales[s]);
                check_channels(row, x, n, scales[s]);
            }
            fill(x, n, kind, 1.0f);
            float max_abs = want_absmax(x, n);
            assert_int_equal(qb_f32_bits(row->absmax(x, n)), qb_f32_bits(max_abs));
            check_one_scale(row, x, n, max_abs / 127.0f); /* as the schemes use it */
            qb_test_guarded_free(x, n * sizeof *x);
        }
}

static void rows_return_the_bits_of_the_equations(void **state)
{
    (void)state;
    for (const qb_quantize_row *row = qb_quantize_kernels; row->info.name; row++) {
        const char *why = qb_kernel_refusal(&row->info);
        if (why)
            print_message("skipped: %s: %s\n", row->info.name, why);
        else
            check_row(row);
    }
}

/* Every quotient near every half: where an estimate by the reciprocal could go wrong. */
static void ties_round_to_even_at_any_scale(void **state)
{
    (void)state;
    enum { N = 256 * 8 };
    float *x = qb_test_guarded_alloc(N * sizeof *x);
    for (const qb_quantize_row *row = qb_quantize_kernels; row->info.name; row++) {
        if (qb_kernel_refusal(&row->info)) continue;
        for (uint64_t t = 0; t < 200; t++) {
            float scale = (float)(0.001 + qb_rng_double(3, QB_STREAM_TEST, t));
            for (size_t c = 0; c < N; c++) {
                float tie = ((float)(c / 8) - 128.0f + 0.5f) * scale;
                x[c] = qb_f32_from_bits(qb_f32_bits(tie) + (uint32_t)(c % 8) - 4);
            }
            check_one_scale(row, x, N, scale);
        }
    }
    qb_test_guarded_free(x, N * sizeof *x);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rows_return_the_bits_of_the_equations),
        cmocka_unit_test(ties_round_to_even_at_any_scale),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
