/* tests/unit/test_gemm_f32.c - every row of gemm_f32 against the reference, and the promise that a
 * token's bits depend on its row of x alone. */
#include "support.h"

#include "core/dtype.h"
#include "core/memory.h"
#include "kernels/gemm_f32.h"

#include <float.h>
#include <math.h>
#include <string.h>

typedef struct gemm_case {
    const qb_gemm_f32_row *row;
    size_t m, n, k, x_stride, y_stride;
    float *x, *w, *bias, *y;
    void *packed;
    uint32_t max_abs_bits;
} gemm_case;

static size_t x_bytes(const gemm_case *c)
{
    return ((c->m - 1) * c->x_stride + c->k) * sizeof(float);
}

static size_t y_bytes(const gemm_case *c)
{
    return ((c->m - 1) * c->y_stride + c->n) * sizeof(float);
}

static const float untouched = 12345.0f;

/* All operands end at a guard page; strides leave gaps that must stay as they are. Weights are
 * packed in two pieces where the row allows a cut. */
static gemm_case case_create(const qb_gemm_f32_row *row, size_t m, size_t n, size_t k, size_t gap)
{
    gemm_case c = {.row = row, .m = m, .n = n, .k = k, .x_stride = k + gap, .y_stride = n + gap};
    c.x = qb_test_guarded_alloc(x_bytes(&c));
    c.y = qb_test_guarded_alloc(y_bytes(&c));
    c.w = qb_test_guarded_alloc(n * k * sizeof(float));
    c.bias = qb_test_guarded_alloc(n * sizeof(float));
    c.packed = qb_test_guarded_alloc(row->packed_bytes(n, k));
    qb_test_fill_f32(c.x, x_bytes(&c) / sizeof(float), 1);
    qb_test_fill_f32(c.w, n * k, 2);
    qb_test_fill_f32(c.bias, n, 3);
    for (size_t i = 0; i < y_bytes(&c) / sizeof(float); i++) c.y[i] = untouched;
    size_t cut = n / 2 / row->pack_n_align * row->pack_n_align;
    row->pack(c.w + cut * k, cut, n, n, k, c.packed);
    if (cut) row->pack(c.w, 0, cut, n, k, c.packed);
    return c;
}

static void case_destroy(gemm_case *c)
{
    qb_test_guarded_free(c->x, x_bytes(c));
    qb_test_guarded_free(c->y, y_bytes(c));
    qb_test_guarded_free(c->w, c->n * c->k * sizeof(float));
    qb_test_guarded_free(c->bias, c->n * sizeof(float));
    qb_test_guarded_free(c->packed, c->row->packed_bytes(c->n, c->k));
}

static qb_gemm_f32_args case_args(gemm_case *c)
{
    return (qb_gemm_f32_args){.m = c->m,
                              .n = c->n,
                              .k = c->k,
                              .x = c->x,
                              .x_stride = c->x_stride,
                              .w = c->packed,
                              .y = c->y,
                              .y_stride = c->y_stride,
                              .bias = c->bias,
                              .max_abs_bits = &c->max_abs_bits};
}

static void run_tasks(const qb_gemm_f32_row *row, const qb_gemm_f32_args *args, size_t n_threads)
{
    size_t n_tasks = row->n_tasks(args, n_threads);
    for (size_t i = n_tasks; i-- > 0;) row->task(args, i, n_tasks); /* any order will do */
}

/* A chain of k fused multiply-adds errs by at most k u sum|x w| (u = 2^-24), one cut into blocks by
 * less; each block adds a rounding of a partial sum, and so do the bias and the reference's own
 * rounding: (k + 4) u (sum|x w| + |bias|) holds for every order of the sum. */
static void check_against_double(const gemm_case *c)
{
    float max_abs = 0;
    for (size_t m = 0; m < c->m; m++)
        for (size_t n = 0; n < c->n; n++) {
            double sum = c->bias[n], size = fabs(sum);
            for (size_t k = 0; k < c->k; k++) {
                double product = (double)c->x[m * c->x_stride + k] * c->w[n * c->k + k];
                sum += product;
                size += fabs(product);
            }
            float got = c->y[m * c->y_stride + n];
            if (!(fabs(got - sum) <= (double)(c->k + 4) * 0x1p-24 * size))
                fail_msg("%s %zux%zux%zu at (%zu, %zu): %g, not %g", c->row->info.name, c->m, c->n,
                         c->k, m, n, got, sum);
            max_abs = fmaxf(max_abs, fabsf(got));
        }
    for (size_t m = 0; m + 1 < c->m; m++)
        for (size_t i = c->n; i < c->y_stride; i++)
            assert_true(c->y[m * c->y_stride + i] == untouched);
    assert_int_equal(c->max_abs_bits, qb_f32_bits(max_abs));
}

static void rows_agree_with_double_sums(void **state)
{
    (void)state;
    static const size_t shapes[][3] = {{1, 1, 1},   {1, 33, 7},   {2, 31, 5},     {3, 64, 385},
                                       {5, 17, 16}, {13, 15, 33}, {14, 32, 64},   {15, 65, 1000},
                                       {29, 48, 9}, {64, 47, 12}, {70, 290, 100}, {1, 300, 1537}};
    for (const qb_gemm_f32_row *row = qb_gemm_f32_kernels; row->info.name; row++) {
        if (qb_kernel_refusal(&row->info)) continue;
        for (size_t i = 0; i < QB_COUNT(shapes); i++)
            for (size_t gap = 0; gap < 4; gap += 3) {
                gemm_case c = case_create(row, shapes[i][0], shapes[i][1], shapes[i][2], gap);
                qb_gemm_f32_args args = case_args(&c);
                run_tasks(row, &args, 1 + i % 3);
                check_against_double(&c);
                case_destroy(&c);
            }
    }
}

static float *transposed(const float *x, size_t rows, size_t cols, size_t stride)
{
    float *t = qb_test_guarded_alloc(rows * cols * sizeof *t);
    for (size_t r = 0; r < rows; r++)
        for (size_t c = 0; c < cols; c++) t[c * rows + r] = x[r * stride + c];
    return t;
}

/* The order of the sums is the same, so the bits are. */
static void transposed_operands_give_the_same_bits(void **state)
{
    (void)state;
    static const size_t shapes[][3] = {{1, 1, 1}, {3, 20, 40}, {15, 65, 17}, {70, 290, 900}};
    for (const qb_gemm_f32_row *row = qb_gemm_f32_kernels; row->info.name; row++) {
        if (qb_kernel_refusal(&row->info)) continue;
        for (size_t i = 0; i < QB_COUNT(shapes); i++) {
            gemm_case c = case_create(row, shapes[i][0], shapes[i][1], shapes[i][2], 2);
            qb_gemm_f32_args args = case_args(&c);
            run_tasks(row, &args, 2);
            check_against_double(&c);
            float *want;
            QB_CHECK_OK(QB_NEW(&want, y_bytes(&c) / sizeof *want, "want"));
            memcpy(want, c.y, y_bytes(&c));
            float *xt = transposed(c.x, c.m, c.k, c.x_stride), *wt = transposed(c.w, c.n, c.k, c.k);
            size_t cut = c.n / 2 / row->pack_n_align * row->pack_n_align;
            memset(c.packed, 0xff, row->packed_bytes(c.n, c.k));
            row->pack_transposed(wt + cut, c.n, cut, c.n, c.n, c.k, c.packed);
            if (cut) row->pack_transposed(wt, c.n, 0, cut, c.n, c.k, c.packed);
            args.x = xt;
            args.x_stride = c.m;
            args.x_transposed = true;
            run_tasks(row, &args, 3);
            assert_memory_equal(c.y, want, y_bytes(&c));
            qb_test_guarded_free(xt, c.m * c.k * sizeof *xt);
            qb_test_guarded_free(wt, c.n * c.k * sizeof *wt);
            qb_free(want);
            case_destroy(&c);
        }
    }
}

static void sums_are_added_to_what_is_there(void **state)
{
    (void)state;
    for (const qb_gemm_f32_row *row = qb_gemm_f32_kernels; row->info.name; row++) {
        if (qb_kernel_refusal(&row->info)) continue;
        gemm_case c = case_create(row, 30, 70, 500, 0);
        qb_gemm_f32_args args = case_args(&c);
        for (size_t i = 0; i < c.m * c.n; i++) c.y[i] = 0.5f * (float)(i % 7);
        args.accumulate = true;
        run_tasks(row, &args, 2);
        for (size_t i = 0; i < c.m * c.n; i++) c.y[i] -= 0.5f * (float)(i % 7);
        float max_abs = 0;
        for (size_t i = 0; i < c.m * c.n; i++) max_abs = fmaxf(max_abs, fabsf(c.y[i]));
        c.max_abs_bits = qb_f32_bits(max_abs);
        check_against_double(&c);
        case_destroy(&c);
    }
}

/* Packed once for all keys, used for the first ones (attention). */
static void a_short_k_serves_fewer_channels(void **state)
{
    (void)state;
    for (const qb_gemm_f32_row *row = qb_gemm_f32_kernels; row->info.name; row++) {
        if (qb_kernel_refusal(&row->info)) continue;
        gemm_case c = case_create(row, 20, 200, 256, 0);
        qb_gemm_f32_args args = case_args(&c);
        run_tasks(row, &args, 1);
        float *want;
        QB_CHECK_OK(QB_NEW(&want, 20 * 200, "want"));
        memcpy(want, c.y, y_bytes(&c));
        args.n = 77;
        memset(c.y, 0, y_bytes(&c));
        run_tasks(row, &args, 2);
        for (size_t m = 0; m < 20; m++)
            assert_memory_equal(c.y + m * 200, want + m * 200, 77 * sizeof *want);
        qb_free(want);
        case_destroy(&c);
    }
}

static void bits_depend_on_the_token_alone(void **state)
{
    (void)state;
    enum { M = 100, N = 290, K = 769 };
    for (const qb_gemm_f32_row *row = qb_gemm_f32_kernels; row->info.name; row++) {
        if (qb_kernel_refusal(&row->info)) continue;
        gemm_case c = case_create(row, M, N, K, 0);
        qb_gemm_f32_args args = case_args(&c);
        run_tasks(row, &args, 1);
        float *want;
        QB_CHECK_OK(QB_NEW(&want, M * N, "want"));
        memcpy(want, c.y, y_bytes(&c));
        for (size_t n_threads = 2; n_threads < 40; n_threads *= 3) {
            memset(c.y, 0, y_bytes(&c));
            run_tasks(row, &args, n_threads);
            assert_memory_equal(c.y, want, y_bytes(&c));
        }
        static const size_t parts[] = {1, 2, 5, 13, 14, 64, 65};
        for (size_t i = 0; i < QB_COUNT(parts); i++) {
            memset(c.y, 0, y_bytes(&c));
            for (size_t m = 0; m < M; m += parts[i]) {
                qb_gemm_f32_args part = args;
                part.m = M - m < parts[i] ? M - m : parts[i];
                part.x += m * part.x_stride;
                part.y += m * part.y_stride;
                run_tasks(row, &part, 2);
            }
            assert_memory_equal(c.y, want, y_bytes(&c));
        }
        qb_free(want);
        case_destroy(&c);
    }
}

static void several_products_in_one_loop(void **state)
{
    (void)state;
    enum { N_JOBS = 19 }; /* more than a loop holds */
    qb_pool *pool;
    QB_CHECK_OK(qb_pool_create(3, &pool));
    for (const qb_gemm_f32_row *row = qb_gemm_f32_kernels; row->info.name; row++) {
        if (qb_kernel_refusal(&row->info)) continue;
        gemm_case cases[N_JOBS];
        qb_gemm_f32_args jobs[N_JOBS];
        for (size_t j = 0; j < N_JOBS; j++) {
            cases[j] = case_create(row, 1 + j % 4 * 30, 20 + 9 * j, 40 + j, j % 2);
            jobs[j] = case_args(&cases[j]);
        }
        jobs[5].m = 0; /* nothing to do */
        qb_gemm_f32_run(row, jobs, N_JOBS, pool);
        assert_true(cases[5].y[0] == untouched);
        for (size_t j = 0; j < N_JOBS; j++) {
            if (j != 5) check_against_double(&cases[j]);
            case_destroy(&cases[j]);
        }
    }
    qb_pool_destroy(pool);
}

/* No bias, no maximum; infinities and huge values pass through as in the formula. */
static void extremes_pass_through(void **state)
{
    (void)state;
    for (const qb_gemm_f32_row *row = qb_gemm_f32_kernels; row->info.name; row++) {
        if (qb_kernel_refusal(&row->info)) continue;
        gemm_case c = case_create(row, 4, 40, 3, 0);
        qb_gemm_f32_args args = case_args(&c);
        args.bias = NULL;
        for (size_t i = 0; i < 40 * 3; i++) c.w[i] = 1;
        row->pack(c.w, 0, 40, 40, 3, c.packed);
        const float x[4][3] = {{INFINITY, 1, 2}, {0, NAN, 0}, {FLT_MAX, FLT_MAX, 0}, {-3, 1, -7}};
        memcpy(c.x, x, sizeof x);
        run_tasks(row, &args, 1);
        for (size_t n = 0; n < 40; n++) {
            assert_true(c.y[n] == INFINITY && isnan(c.y[40 + n]));
            assert_true(c.y[80 + n] == INFINITY && c.y[120 + n] == -9);
        }
        assert_int_equal(c.max_abs_bits, qb_f32_bits(INFINITY));
        args.max_abs_bits = NULL;
        run_tasks(row, &args, 1);
        case_destroy(&c);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rows_agree_with_double_sums),
        cmocka_unit_test(transposed_operands_give_the_same_bits),
        cmocka_unit_test(sums_are_added_to_what_is_there),
        cmocka_unit_test(a_short_k_serves_fewer_channels),
        cmocka_unit_test(bits_depend_on_the_token_alone),
        cmocka_unit_test(several_products_in_one_loop),
        cmocka_unit_test(extremes_pass_through),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
