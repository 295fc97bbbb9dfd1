/* tests/unit/test_gemm_u4.c - every row against the reference in double, within a derived bound.
 *
 * A row that prepares x rounds it to block integers: at most max|x of a block| * 2^-16 an element
 * (gemm_u4.h), here times |w|. Beside that, and in rows of plain f32, each of the K products and
 * sums may be off by 2^-24 of the magnitude that passes through it: at most K * 2^-23 of the sum of
 * |x| * (code + |zero point| + 16) * scale. */
#include "support.h"

#include "core/memory.h"
#include "core/rng.h"
#include "kernels/gemm_u4.h"

#include <math.h>
#include <string.h>

typedef enum { BY_OUT, BY_IN, BY_TENSOR, BY_GROUP } axis;
typedef struct product_case {
    size_t m, n, k;
    axis axis;
    size_t group; /* BY_GROUP */
    bool has_bias, has_fill;
    int32_t zero_offset; /* added to the zero points */
    size_t n_slices, x_stride, y_stride;
    float *x, *scale, *fill, *bias;
    int32_t *zero_point;
    uint8_t *codes;
    qb_u4_weights w;
} product_case;

static void case_create(product_case *t)
{
    size_t row_bytes = (t->k + 1) / 2, group = t->axis == BY_GROUP ? t->group : 1;
    size_t per_row = (t->k + group - 1) / group;
    t->n_slices = t->axis == BY_OUT      ? t->n
                  : t->axis == BY_IN     ? t->k
                  : t->axis == BY_TENSOR ? 1
                                         : t->n * per_row;
    t->x_stride = t->k + t->k % 3;
    t->y_stride = t->n + t->n % 3;
    t->x = qb_test_guarded_alloc(t->m * t->x_stride * sizeof(float));
    t->codes = qb_test_guarded_alloc(t->n * row_bytes);
    t->scale = qb_test_guarded_alloc(t->n_slices * sizeof(float));
    t->fill = qb_test_guarded_alloc(t->n_slices * sizeof(float));
    t->bias = qb_test_guarded_alloc(t->n * sizeof(float));
    t->zero_point = qb_test_guarded_alloc(t->n_slices * sizeof(int32_t));
    qb_test_fill_f32(t->x, t->m * t->x_stride, t->k);
    qb_test_fill_f32(t->bias, t->n, 5);
    qb_test_fill_bytes(t->codes, t->n * row_bytes, t->k + t->n);
    for (size_t s = 0; s < t->n_slices; s++) {
        uint32_t r = qb_rng_u32(9, QB_STREAM_TEST, s);
        t->scale[s] = r % 11 == 0 ? 0.0f : 0.01f + (float)(r % 1000) * 1e-4f;
        t->fill[s] = (float)(r % 7) - 3.0f;
        t->zero_point[s] = (int32_t)(r / 8 % 16) + t->zero_offset;
    }
    t->w = (qb_u4_weights){.n = t->n,
                           .k = t->k,
                           .codes = t->codes,
                           .n_step = t->axis == BY_OUT     ? 1
                                     : t->axis == BY_GROUP ? per_row
                                                           : 0,
                           .k_group = group,
                           .k_step = t->axis == BY_IN || t->axis == BY_GROUP,
                           .scale = t->scale,
                           .zero_point = t->zero_point,
                           .fill = t->has_fill ? t->fill : NULL};
    for (size_t n = 0; n < t->n; n++) /* constant slices have codes 0 */
        for (size_t k = 0; k < t->k; k++)
            if (t->scale[n * t->w.n_step + k / group * t->w.k_step] == 0.0f)
                t->codes[n * row_bytes + k / 2] &= k % 2 ? 0x0f : 0xf0;
}

static void case_destroy(product_case *t)
{
    qb_test_guarded_free(t->x, t->m * t->x_stride * sizeof(float));
    qb_test_guarded_free(t->codes, t->n * ((t->k + 1) / 2));
    qb_test_guarded_free(t->scale, t->n_slices * sizeof(float));
    qb_test_guarded_free(t->fill, t->n_slices * sizeof(float));
    qb_test_guarded_free(t->bias, t->n * sizeof(float));
    qb_test_guarded_free(t->zero_point, t->n_slices * sizeof(int32_t));
}

/* NULL where the row refuses the weights. */
static float *run(const qb_gemm_u4_row *row, const product_case *t, qb_pool *pool)
{
    size_t packed_bytes = qb_round_up(row->packed_bytes(&t->w), 64);
    size_t prepared_bytes = qb_round_up(row->prepared_bytes(t->m, t->k), 64);
    void *packed = qb_test_guarded_alloc(packed_bytes);
    void *prepared = prepared_bytes ? qb_test_guarded_alloc(prepared_bytes) : NULL;
    size_t half = t->n / 2 / row->pack_n_align * row->pack_n_align; /* as a parallel pack would */
    const char *why = row->pack(&t->w, half, t->n, packed);
    if (!why && half) why = row->pack(&t->w, 0, half, packed);
    float *y = NULL;
    if (!why) {
        y = qb_test_guarded_alloc(t->m * t->y_stride * sizeof *y);
        if (prepared) {
            row->prepare(t->x, t->x_stride, 0, t->m / 2, t->m, t->k, packed, prepared);
            row->prepare(t->x, t->x_stride, t->m / 2, t->m, t->m, t->k, packed, prepared);
        }
        const qb_gemm_u4_args args = {.m = t->m,
                                      .n = t->n,
                                      .k = t->k,
                                      .x = t->x,
                                      .x_stride = t->x_stride,
                                      .x_prepared = prepared,
                                      .w = packed,
                                      .y = y,
                                      .y_stride = t->y_stride,
                                      .bias = t->has_bias ? t->bias : NULL};
        qb_gemm_u4_run(row, &args, 1, pool);
    }
    qb_test_guarded_free(packed, packed_bytes);
    if (prepared) qb_test_guarded_free(prepared, prepared_bytes);
    return y;
}

/* w of (n, k) as folded * rest: with slices by k their scale goes into x before it is rounded. */
typedef struct weight {
    double folded, rest, passed; /* passed: |code| + |zero point| + 16, with the scale */
} weight;

static weight weight_at(const product_case *t, size_t n, size_t k)
{
    size_t s = n * t->w.n_step + k / t->w.k_group * t->w.k_step;
    uint8_t byte = t->codes[n * ((t->k + 1) / 2) + k / 2];
    int code = k % 2 ? byte >> 4 : byte & 15;
    double scale = (double)t->scale[s], zero = (double)t->zero_point[s];
    double passed = (code + fabs(zero) + 16.0) * scale;
    if (scale == 0.0) {
        scale = t->has_fill ? (double)t->fill[s] : 0.0;
        code = 1, zero = 0.0;
        passed = 16.0 * fabs(scale);
    }
    if (t->axis == BY_IN) return (weight){scale, code - zero, passed};
    return (weight){1.0, (code - zero) * scale, passed};
}

/* y in double, and the bound above. */
static double expect(const product_case *t, size_t m, size_t n, bool in_blocks, double *bound)
{
    const float *x = t->x + m * t->x_stride;
    double y = t->has_bias ? (double)t->bias[n] : 0.0, passed = fabs(y), rounded = 0.0;
    for (size_t k0 = 0; k0 < t->k; k0 += QB_GEMM_U4_BLOCK) {
        double largest = 0.0, rest = 0.0;
        for (size_t k = k0; k < t->k && k < k0 + QB_GEMM_U4_BLOCK; k++) {
            weight w = weight_at(t, n, k);
            y += (double)x[k] * w.folded * w.rest;
            passed += fabs((double)x[k]) * w.passed;
            largest = fmax(largest, fabs((double)x[k] * w.folded));
            rest += fabs(w.rest);
        }
        rounded += largest * 0x1p-16 * rest;
    }
    *bound = passed * (double)(t->k + 8) * 0x1p-23 + (in_blocks ? rounded * 1.001 : 0.0) + 1e-28;
    return y;
}

static void check_row(const qb_gemm_u4_row *row, const product_case *t, qb_pool *pool)
{
    float *y = run(row, t, pool);
    if (!y) return;
    bool in_blocks = row->prepared_bytes(1, 1) > 0;
    for (size_t m = 0; m < t->m; m++)
        for (size_t n = 0; n < t->n; n++) {
            double bound, want = expect(t, m, n, in_blocks, &bound);
            double error = fabs((double)y[m * t->y_stride + n] - want);
            if (!(error <= bound))
                fail_msg("%s: m %zu n %zu k %zu axis %d group %zu at %zu,%zu: %g, expected %g, "
                         "error %g, bound %g",
                         row->info.name, t->m, t->n, t->k, (int)t->axis, t->group, m, n,
                         (double)y[m * t->y_stride + n], want, error, bound);
        }
    qb_test_guarded_free(y, t->m * t->y_stride * sizeof *y);
}

static void check_rows(product_case t, qb_pool *pool)
{
    case_create(&t);
    for (const qb_gemm_u4_row *row = qb_gemm_u4_kernels; row->info.name; row++)
        if (!qb_kernel_refusal(&row->info)) check_row(row, &t, pool);
    case_destroy(&t);
}

static void rows_stay_within_the_bound(void **state)
{
    (void)state;
    static const size_t ks[] = {1, 3, 4, 15, 63, 64, 65, 128, 129, 300};
    static const size_t ns[] = {1, 2, 15, 16, 17, 31, 33, 70};
    for (size_t i = 0; i < QB_COUNT(ks); i++)
        for (size_t j = 0; j < QB_COUNT(ns); j++)
            for (int a = BY_OUT; a <= BY_TENSOR; a++)
                check_rows((product_case){.m = 1 + (i * 3 + j * 5) % 9,
                                          .n = ns[j],
                                          .k = ks[i],
                                          .axis = (axis)a,
                                          .has_bias = (i + j) % 2,
                                          .has_fill = (i + j) % 3 != 0},
                           NULL);
}

static void groups_of_any_size_are_taken_by_some_row(void **state)
{
    (void)state;
    static const size_t groups[] = {1, 7, 32, 64, 96, 128, 256, 1000};
    for (size_t g = 0; g < QB_COUNT(groups); g++)
        for (size_t k = 31; k < 700; k += 223)
            check_rows((product_case){.m = 5,
                                      .n = 35,
                                      .k = k,
                                      .axis = BY_GROUP,
                                      .group = groups[g],
                                      .has_fill = g % 2},
                       NULL);
}

static void extremes_are_taken(void **state)
{
    (void)state;
    check_rows((product_case){.m = 2, .n = 3, .k = 131071, .axis = BY_OUT}, NULL);
    check_rows((product_case){.m = 3, .n = 20, .k = 200, .axis = BY_OUT, .zero_offset = -5000},
               NULL);
    check_rows((product_case){.m = 3, .n = 20, .k = 200, .axis = BY_IN, .zero_offset = 5000}, NULL);
}

/* Rows whose integers cannot hold a zero point say so, and another row takes the weights. */
static void huge_zero_points_are_refused_or_right(void **state)
{
    (void)state;
    product_case t = {.m = 1, .n = 2, .k = 8, .axis = BY_OUT, .zero_offset = 1 << 26};
    case_create(&t);
    size_t taken = 0;
    for (const qb_gemm_u4_row *row = qb_gemm_u4_kernels; row->info.name; row++) {
        if (qb_kernel_refusal(&row->info)) continue;
        float *y = run(row, &t, NULL);
        if (y) qb_test_guarded_free(y, t.m * t.y_stride * sizeof *y);
        taken += y != NULL;
        check_row(row, &t, NULL);
    }
    assert_true(taken >= 1);
    case_destroy(&t);
}

static void tokens_and_threads_do_not_change_a_bit(void **state)
{
    (void)state;
    product_case t = {.m = 61, .n = 150, .k = 300, .axis = BY_OUT, .has_bias = true};
    case_create(&t);
    for (const qb_gemm_u4_row *row = qb_gemm_u4_kernels; row->info.name; row++) {
        if (qb_kernel_refusal(&row->info)) continue;
        float *want = run(row, &t, NULL);
        for (size_t n_threads = 2; n_threads <= 5; n_threads += 3) {
            qb_pool *pool;
            QB_CHECK_OK(qb_pool_create(n_threads, &pool));
            float *got = run(row, &t, pool);
            for (size_t m = 0; m < t.m; m++)
                assert_memory_equal(got + m * t.y_stride, want + m * t.y_stride, t.n * sizeof *got);
            qb_test_guarded_free(got, t.m * t.y_stride * sizeof *got);
            qb_pool_destroy(pool);
        }
        for (size_t m = 0; m < t.m; m += 7) { /* a token alone, as in decoding */
            product_case one = t;
            one.m = 1;
            one.x = t.x + m * t.x_stride;
            float *got = run(row, &one, NULL);
            assert_memory_equal(got, want + m * t.y_stride, t.n * sizeof *got);
            qb_test_guarded_free(got, one.m * t.y_stride * sizeof *got);
        }
        qb_test_guarded_free(want, t.m * t.y_stride * sizeof *want);
    }
    case_destroy(&t);
}

static void special_values_of_x_spread_as_they_should(void **state)
{
    (void)state;
    static const float specials[] = {NAN, INFINITY, 0.0f, 1e-44f, 1e-38f, 1e35f};
    for (size_t i = 0; i < QB_COUNT(specials); i++) {
        product_case t = {.m = 2, .n = 40, .k = 150, .axis = BY_OUT};
        case_create(&t);
        for (size_t k = 0; k < t.k; k++)
            if (isfinite(specials[i]) || k == 3) t.x[k] = specials[i];
        for (const qb_gemm_u4_row *row = qb_gemm_u4_kernels; row->info.name; row++) {
            if (qb_kernel_refusal(&row->info)) continue;
            float *y = run(row, &t, NULL);
            for (size_t n = 0; n < t.n; n++) {
                if (t.scale[n] == 0.0f) continue;
                if (!isfinite(specials[i]))
                    assert_true(!isfinite(y[n]) || specials[i] > 0); /* a NaN is never hidden */
                else
                    assert_true(isfinite(y[n]));
                assert_true(isfinite(y[t.y_stride + n])); /* the other token is untouched */
            }
            qb_test_guarded_free(y, t.m * t.y_stride * sizeof *y);
        }
        case_destroy(&t);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rows_stay_within_the_bound),
        cmocka_unit_test(groups_of_any_size_are_taken_by_some_row),
        cmocka_unit_test(extremes_are_taken),
        cmocka_unit_test(huge_zero_points_are_refused_or_right),
        cmocka_unit_test(tokens_and_threads_do_not_change_a_bit),
        cmocka_unit_test(special_values_of_x_spread_as_they_should),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
