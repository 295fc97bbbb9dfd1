/* tests/unit/test_gemm_s8.c - integer sums have one right answer and the epilogue one order of
 * operations: every row must return the reference's bits, accumulators and floats alike. */
#include "support.h"

#include "core/dtype.h"
#include "core/memory.h"
#include "core/rng.h"
#include "kernels/gemm_s8.h"

#include <math.h>
#include <string.h>

typedef struct product_case {
    size_t m, n, k, x_stride, y_stride;
    bool per_token, per_channel, has_bias;
    int fill; /* 0 random, 1 all at +-127, 2 all -128 in w and -127 in x */
    int8_t *x, *w;
    int32_t *x_sum;
    float *x_scale, *w_scale, *bias;
} product_case;

typedef struct outcome {
    int32_t *acc;
    float *y;
    uint32_t max_abs_bits;
} outcome;

static float *scales_create(size_t n, uint64_t seed)
{
    float *s = qb_test_guarded_alloc(n * sizeof *s);
    for (size_t i = 0; i < n; i++) s[i] = (float)(0.001 + qb_rng_double(seed, QB_STREAM_TEST, i));
    return s;
}

static void case_create(product_case *t)
{
    t->x_stride = qb_round_up(t->k, QB_GEMM_S8_K_ALIGN) + (t->k % 3 ? QB_GEMM_S8_K_ALIGN : 0);
    t->y_stride = t->n + t->n % 3;
    t->x = qb_test_guarded_alloc(t->m * t->x_stride);
    t->w = qb_test_guarded_alloc(t->n * t->k);
    t->x_sum = qb_test_guarded_alloc(t->m * sizeof *t->x_sum);
    t->x_scale = scales_create(t->per_token ? t->m : 1, 1);
    t->w_scale = scales_create(t->per_channel ? t->n : 1, 2);
    t->bias = t->has_bias ? scales_create(t->n, 3) : NULL;
    qb_test_fill_bytes(t->x, t->m * t->x_stride, t->k);
    qb_test_fill_bytes(t->w, t->n * t->k, t->k + 1);
    for (size_t i = 0; t->fill && i < t->n * t->k; i++)
        t->w[i] = t->fill == 2 ? -128 : t->w[i] & 1 ? 127 : -127;
    for (size_t m = 0; m < t->m; m++) {
        t->x_sum[m] = 0;
        for (size_t k = 0; k < t->x_stride; k++) {
            int8_t *x = &t->x[m * t->x_stride + k];
            if (*x == -128) *x = -127; /* as quantize_s8 clamps */
            if (t->fill) *x = t->fill == 2 || *x & 1 ? -127 : 127;
            if (k >= t->k) *x = 0;
            t->x_sum[m] += *x;
        }
    }
}

static void case_destroy(product_case *t)
{
    qb_test_guarded_free(t->x, t->m * t->x_stride);
    qb_test_guarded_free(t->w, t->n * t->k);
    qb_test_guarded_free(t->x_sum, t->m * sizeof *t->x_sum);
    qb_test_guarded_free(t->x_scale, (t->per_token ? t->m : 1) * sizeof(float));
    qb_test_guarded_free(t->w_scale, (t->per_channel ? t->n : 1) * sizeof(float));
    if (t->bias) qb_test_guarded_free(t->bias, t->n * sizeof(float));
}

static void outcome_destroy(outcome *o, const product_case *t)
{
    qb_test_guarded_free(o->acc, t->m * t->n * sizeof *o->acc);
    qb_test_guarded_free(o->y, t->m * t->y_stride * sizeof *o->y);
}

/* Packs in two calls where the row's alignment allows, as a parallel pack would. */
static void *pack(const qb_gemm_s8_row *row, const product_case *t, size_t *bytes)
{
    *bytes = qb_round_up(row->packed_bytes(t->n, t->k), 64); /* the guard page wants alignment */
    void *packed = qb_test_guarded_alloc(*bytes);
    size_t half = t->n / 2 / row->pack_n_align * row->pack_n_align;
    if (half) row->pack(t->w, 0, half, t->n, t->k, packed);
    row->pack(t->w + half * t->k, half, t->n, t->n, t->k, packed);
    return packed;
}

static outcome run(const qb_gemm_s8_row *row, const product_case *t, qb_pool *pool)
{
    outcome o = {qb_test_guarded_alloc(t->m * t->n * sizeof *o.acc),
                 qb_test_guarded_alloc(t->m * t->y_stride * sizeof *o.y), 0};
    memset(o.y, 0x5a, t->m * t->y_stride * sizeof *o.y); /* what lies between rows must stay */
    size_t packed_bytes;
    void *packed = pack(row, t, &packed_bytes);
    const qb_gemm_s8_args args = {
        .m = t->m,
        .n = t->n,
        .k = t->k,
        .x = t->x,
        .x_stride = t->x_stride,
        .x_sum = t->x_sum,
        .w = packed,
        .acc = o.acc,
        .y = o.y,
        .y_stride = t->y_stride,
        .x_scale = t->x_scale,
        .x_scale_step = t->per_token,
        .w_scale = t->w_scale,
        .w_scale_step = t->per_channel,
        .bias = t->bias,
        .max_abs_bits = &o.max_abs_bits,
    };
    qb_gemm_s8_run(row, &args, 1, pool);
    qb_test_guarded_free(packed, packed_bytes);
    return o;
}

static const qb_gemm_s8_row *reference(void)
{
    const qb_gemm_s8_row *row = qb_gemm_s8_kernels;
    while (row[1].info.name) row++;
    return row;
}

static void check_rows(product_case t, qb_pool *pool)
{
    case_create(&t);
    outcome want = run(reference(), &t, NULL);
    for (const qb_gemm_s8_row *row = qb_gemm_s8_kernels; row < reference(); row++) {
        if (qb_kernel_refusal(&row->info)) continue;
        outcome got = run(row, &t, pool);
        if (memcmp(got.acc, want.acc, t.m * t.n * sizeof *got.acc) ||
            memcmp(got.y, want.y, t.m * t.y_stride * sizeof *got.y) ||
            got.max_abs_bits != want.max_abs_bits)
            fail_msg("%s: m %zu n %zu k %zu per_token %d per_channel %d bias %d fill %d",
                     row->info.name, t.m, t.n, t.k, t.per_token, t.per_channel, t.has_bias, t.fill);
        outcome_destroy(&got, &t);
    }
    outcome_destroy(&want, &t);
    case_destroy(&t);
}

static void reference_follows_the_equations(void **state)
{
    (void)state;
    product_case t = {.m = 3, .n = 5, .k = 70, .per_token = true, .has_bias = true};
    case_create(&t);
    outcome o = run(reference(), &t, NULL);
    float max_abs = 0;
    for (size_t m = 0; m < t.m; m++)
        for (size_t n = 0; n < t.n; n++) {
            int64_t acc = 0;
            for (size_t k = 0; k < t.k; k++) acc += t.x[m * t.x_stride + k] * t.w[n * t.k + k];
            assert_int_equal(o.acc[m * t.n + n], acc);
            float y = (float)acc * (t.x_scale[m] * t.w_scale[0]) + t.bias[n];
            assert_int_equal(qb_f32_bits(o.y[m * t.y_stride + n]), qb_f32_bits(y));
            max_abs = fmaxf(max_abs, fabsf(y));
        }
    assert_int_equal(o.max_abs_bits, qb_f32_bits(max_abs));
    outcome_destroy(&o, &t);
    case_destroy(&t);
}

static void rows_return_the_bits_of_the_reference(void **state)
{
    (void)state;
    static const size_t ks[] = {1, 3, 4, 15, 63, 64, 65, 1000, 4096};
    static const size_t ns[] = {1, 2, 15, 16, 17, 31, 33, 100};
    for (size_t i = 0; i < QB_COUNT(ks); i++)
        for (size_t j = 0; j < QB_COUNT(ns); j++)
            for (size_t m = 1; m <= 64; m += m < 17 ? (ks[i] > 100 ? 4 : 1) : 47)
                check_rows((product_case){.m = m,
                                          .n = ns[j],
                                          .k = ks[i],
                                          .per_token = m % 2,
                                          .per_channel = (m + j) % 3 != 0,
                                          .has_bias = (i + j + m) % 2},
                           NULL);
}

static void extremes_fit(void **state)
{
    (void)state;
    for (int fill = 1; fill <= 2; fill++)
        for (size_t m = 1; m <= 14; m += 13) {
            check_rows((product_case){.m = m, .n = 17, .k = QB_GEMM_S8_MAX_K, .fill = fill}, NULL);
            check_rows((product_case){.m = m, .n = 40, .k = 130, .fill = fill}, NULL);
        }
}

static void threads_do_not_change_a_bit(void **state)
{
    (void)state;
    for (size_t n_threads = 1; n_threads <= 16; n_threads += 5) {
        qb_pool *pool;
        QB_CHECK_OK(qb_pool_create(n_threads, &pool));
        for (size_t m = 1; m <= 401; m += 80)
            check_rows((product_case){.m = m, .n = 137, .k = 100, .per_channel = true}, pool);
        qb_pool_destroy(pool);
    }
}

/* q, k and v as one loop. */
static void jobs_run_together(void **state)
{
    (void)state;
    qb_pool *pool;
    QB_CHECK_OK(qb_pool_create(3, &pool));
    enum { N_JOBS = 3 };
    for (const qb_gemm_s8_row *row = qb_gemm_s8_kernels; row->info.name; row++) {
        if (qb_kernel_refusal(&row->info)) continue;
        product_case t[N_JOBS];
        qb_gemm_s8_args jobs[N_JOBS];
        outcome want[N_JOBS];
        float *y[N_JOBS];
        void *packed[N_JOBS];
        size_t packed_bytes[N_JOBS];
        for (size_t j = 0; j < N_JOBS; j++) {
            t[j] = (product_case){.m = 1 + 2 * j, .n = 40 * j + 9, .k = 96};
            case_create(&t[j]);
            want[j] = run(reference(), &t[j], NULL);
            packed[j] = pack(row, &t[j], &packed_bytes[j]);
            y[j] = qb_test_guarded_alloc(t[j].m * t[j].n * sizeof(float));
            jobs[j] = (qb_gemm_s8_args){.m = t[j].m,
                                        .n = t[j].n,
                                        .k = t[j].k,
                                        .x = t[j].x,
                                        .x_stride = t[j].x_stride,
                                        .x_sum = t[j].x_sum,
                                        .w = packed[j],
                                        .y = y[j],
                                        .y_stride = t[j].n,
                                        .x_scale = t[j].x_scale,
                                        .w_scale = t[j].w_scale};
        }
        qb_gemm_s8_run(row, jobs, N_JOBS, pool);
        for (size_t j = 0; j < N_JOBS; j++) {
            for (size_t m = 0; m < t[j].m; m++)
                assert_memory_equal(y[j] + m * t[j].n, want[j].y + m * t[j].y_stride,
                                    t[j].n * sizeof(float));
            qb_test_guarded_free(y[j], t[j].m * t[j].n * sizeof(float));
            qb_test_guarded_free(packed[j], packed_bytes[j]);
            outcome_destroy(&want[j], &t[j]);
            case_destroy(&t[j]);
        }
    }
    qb_pool_destroy(pool);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reference_follows_the_equations),
        cmocka_unit_test(rows_return_the_bits_of_the_reference),
        cmocka_unit_test(extremes_fit),
        cmocka_unit_test(threads_do_not_change_a_bit),
        cmocka_unit_test(jobs_run_together),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
