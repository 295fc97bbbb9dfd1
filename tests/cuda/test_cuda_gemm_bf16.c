/* tests/cuda/test_cuda_gemm_bf16.c - products with the epilogues of a training step against sums in
 * double: odd edges, more tiles than blocks, sums that are too large, the same bits every time. */
#include "gpu.h"

#include "core/dtype.h"
#include "core/memory.h"
#include "core/rng.h"
#include "kernels/cuda/gemm_bf16.h"

#include <math.h>
#include <string.h>

typedef struct problem {
    size_t m, n, k, stride_k, stride_n, w_rows, w_stride, n_tiles;
    uint16_t *x, *w, *aux; /* (m, stride_k); (n, k) or (k, n); (m, stride_n) */
    float *shift;
    qb_cuda_gemm_bf16_args args;
    void *dev[7]; /* x, w, y, aux, shift, sums, maxima */
} problem;

static uint16_t *draw(size_t rows, size_t width, size_t stride, double scale, uint64_t stream)
{
    uint16_t *x;
    float *row;
    QB_CHECK_OK(QB_NEW_ZERO(&x, rows * stride, "matrix"));
    QB_CHECK_OK(QB_NEW(&row, width, "row"));
    for (size_t r = 0; r < rows; r++) {
        qb_rng_normal_f32(3, stream, r * width, width, (float)scale, row);
        for (size_t c = 0; c < width; c++) x[r * stride + c] = qb_bf16_from_f32(row[c]);
    }
    qb_free(row);
    return x;
}

static bool stores_kn(qb_cuda_gemm_bf16_epilogue epilogue)
{
    return epilogue == QB_BF16_TIMES || epilogue == QB_BF16_WHERE;
}

static problem make(qb_cuda_gemm_bf16_epilogue epilogue, size_t m, size_t n, size_t k, double scale)
{
    const bool kn = stores_kn(epilogue);
    problem p = {.m = m, .n = n, .k = k};
    p.stride_k = qb_cuda_stride(k), p.stride_n = qb_cuda_stride(n);
    p.w_rows = kn ? k : n, p.w_stride = kn ? n : k;
    p.n_tiles = (n + QB_BF16_TILE - 1) / QB_BF16_TILE;
    p.x = draw(m, k, p.stride_k, 1, 1);
    p.w = draw(p.w_rows, p.w_stride, p.w_stride, scale / sqrt((double)k), 2);
    p.aux = draw(m, n, p.stride_n, 2, 3);
    QB_CHECK_OK(QB_NEW(&p.shift, m, "shifts"));
    qb_rng_normal_f32(3, 4, 0, m, 1, p.shift);
    const size_t y_bytes = m * p.stride_n * 2, tile_bytes = p.n_tiles * m * sizeof(float);
    p.dev[0] = qb_gpu_upload(p.x, m * p.stride_k * 2);
    p.dev[1] = qb_gpu_upload(p.w, p.w_rows * p.w_stride * 2);
    p.dev[2] = qb_gpu_poison(y_bytes);
    p.dev[3] = epilogue == QB_BF16_GELU ? qb_gpu_poison(y_bytes) : qb_gpu_upload(p.aux, y_bytes);
    p.dev[4] = qb_gpu_upload(p.shift, m * sizeof(float));
    p.dev[5] = qb_gpu_poison(tile_bytes);
    p.dev[6] = qb_gpu_poison(tile_bytes);
    p.args = (qb_cuda_gemm_bf16_args){.epilogue = epilogue,
                                      .m = m,
                                      .n = n,
                                      .k = k,
                                      .x = p.dev[0],
                                      .w = p.dev[1],
                                      .y = p.dev[2],
                                      .aux = p.dev[3],
                                      .x_stride = p.stride_k,
                                      .w_stride = p.w_stride,
                                      .y_stride = p.stride_n,
                                      .aux_stride = p.stride_n,
                                      .shift = p.dev[4],
                                      .sums = p.dev[5],
                                      .maxima = p.dev[6]};
    return p;
}

static void destroy(problem *p)
{
    for (size_t i = 0; i < QB_COUNT(p->dev); i++) qb_gpu_free(p->dev[i]);
    qb_free(p->x), qb_free(p->w), qb_free(p->aux), qb_free(p->shift);
}

static double product(const problem *p, size_t i, size_t j)
{
    const bool kn = stores_kn(p->args.epilogue);
    double sum = 0;
    for (size_t k = 0; k < p->k; k++)
        sum += (double)qb_f32_from_bf16(p->x[i * p->stride_k + k]) *
               (double)qb_f32_from_bf16(p->w[kn ? k * p->n + j : j * p->k + k]);
    return sum;
}

static double gelu(double x)
{
    return 0.5 * x * (1 + tanh(sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
}
static double slope(double x)
{
    const double u = sqrt(2 / M_PI) * (x + 0.044715 * x * x * x), t = tanh(u);
    return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * sqrt(2 / M_PI) * (1 + 3 * 0.044715 * x * x);
}

/* bf16's rounding is 2^-9; z itself is off by what k products in f32 add up to. */
static void check_near(double got, double want, double z_error, const char *what)
{
    if (fabs(got - want) <= fabs(want) / 256 + z_error) return;
    fail_msg("%s: %.6g, expected %.6g", what, got, want);
}

/* All rows of some columns: those about the tiles' and the matrix' edges. */
static bool is_checked(const problem *p, size_t i, size_t j)
{
    if (p->m * p->n <= 1 << 17) return true;
    return j % 64 < 2 || j + 3 > p->n || i % 64 == 63 || i + 2 > p->m ? (i * 7 + j) % 11 == 0
                                                                      : false;
}

static void check_values(const problem *p)
{
    uint16_t *y, *aux;
    const size_t n = p->m * p->stride_n;
    QB_CHECK_OK(QB_NEW(&y, n, "y"));
    QB_CHECK_OK(QB_NEW(&aux, n, "aux"));
    qb_gpu_fetch(y, p->dev[2], n * 2);
    qb_gpu_fetch(aux, p->dev[3], n * 2);
    for (size_t i = 0; i < p->m; i++) {
        for (size_t j = 0; j < p->n; j++) {
            if (!is_checked(p, i, j)) continue;
            const double z = product(p, i, j),
                         got = (double)qb_f32_from_bf16(y[i * p->stride_n + j]);
            const double stored = (double)qb_f32_from_bf16(aux[i * p->stride_n + j]);
            if (p->args.epilogue == QB_BF16_EXP)
                check_near(got, exp(z - (double)p->shift[i]), 0, "exponential");
            if (p->args.epilogue == QB_BF16_GELU) {
                check_near(stored, slope(z), 1e-5, "slope");
                check_near(got, gelu(z), 1e-5, "GELU");
            }
            if (p->args.epilogue == QB_BF16_TIMES)
                check_near(got, z * stored, 1e-5, "product with a factor");
            if (p->args.epilogue == QB_BF16_RELU) check_near(got, fmax(z, 0), 1e-5, "ReLU");
            if (p->args.epilogue == QB_BF16_WHERE)
                check_near(got, stored > 0 ? z : 0, 1e-5, "product where a factor is positive");
        }
        /* what lies beside the matrix stays */
        assert_true(qb_gpu_is_poison(&y[i * p->stride_n + p->n], (p->stride_n - p->n) * sizeof *y));
    }
    qb_free(y);
    qb_free(aux);
}

static void check_sums(const problem *p)
{
    float *sums;
    QB_CHECK_OK(QB_NEW(&sums, p->n_tiles * p->m, "sums"));
    qb_gpu_fetch(sums, p->dev[5], p->n_tiles * p->m * sizeof *sums);
    for (size_t t = 0; t < p->n_tiles; t++)
        for (size_t i = t % 5; i<p->m; i += p->m * p->n> 1 << 17 ? 61 : 1) {
            double want = 0;
            for (size_t j = t * QB_BF16_TILE; j < p->n && j < (t + 1) * QB_BF16_TILE; j++)
                want += exp(product(p, i, j) - (double)p->shift[i]);
            const double got = (double)sums[t * p->m + i];
            if (fabs(got / want - 1) > 2e-5)
                fail_msg("sum %zu of row %zu: %g, %g", t, i, got, want);
        }
    qb_free(sums);
}

static const struct {
    size_t m, n, k;
} shapes[] = {{1, 8, 8},       {128, 192, 64},    {256, 384, 128},   {257, 200, 72},
              {130, 1000, 40}, {4096, 1536, 256}, {1024, 12296, 64}, {70, 320, 768}};

static void each_shape(qb_cuda_gemm_bf16_epilogue epilogue)
{
    for (size_t s = 0; s < QB_COUNT(shapes); s++) {
        if (qb_test_is_small() && shapes[s].m * shapes[s].n > 1 << 17) continue;
        problem p = make(epilogue, shapes[s].m, shapes[s].n, shapes[s].k, 3);
        const char *why = qb_cuda_gemm_bf16_refuse(&p.args);
        if (why) {
            destroy(&p);
            QB_SKIP("%s", why);
        }
        QB_CHECK_OK(qb_cuda_gemm_bf16(&p.args, NULL));
        check_values(&p);
        if (epilogue == QB_BF16_EXP) check_sums(&p);
        destroy(&p);
    }
}

static void exponentials(void **state)
{
    (void)state;
    QB_NEEDS_GPU();
    each_shape(QB_BF16_EXP);
}
static void gelus(void **state)
{
    (void)state;
    QB_NEEDS_GPU();
    each_shape(QB_BF16_GELU);
}
static void factors(void **state)
{
    (void)state;
    QB_NEEDS_GPU();
    each_shape(QB_BF16_TIMES);
}

static void relus(void **state)
{
    (void)state;
    QB_NEEDS_GPU();
    each_shape(QB_BF16_RELU);
    each_shape(QB_BF16_WHERE);
}

/* Sums beyond QB_BF16_MOST come with the largest z; without y nothing else changes; run = 0. */
static void large_sums(void **state)
{
    (void)state;
    QB_NEEDS_GPU();
    problem p = make(QB_BF16_EXP, 130, 400, 64, 15);
    const char *why = qb_cuda_gemm_bf16_refuse(&p.args);
    if (why) {
        destroy(&p);
        QB_SKIP("%s", why);
    }
    const size_t n = p.n_tiles * p.m;
    float *sums, *maxima, *again;
    size_t n_large = 0;
    int32_t zero = 0;
    void *no = qb_gpu_upload(&zero, sizeof zero);
    QB_CHECK_OK(QB_NEW(&sums, n, "sums"));
    QB_CHECK_OK(QB_NEW(&maxima, n, "maxima"));
    QB_CHECK_OK(QB_NEW(&again, n, "sums"));
    p.args.run = no;
    QB_CHECK_OK(qb_cuda_gemm_bf16(&p.args, NULL));
    qb_gpu_fetch(sums, p.dev[5], n * sizeof *sums);
    assert_true(qb_gpu_is_poison(sums, n * sizeof *sums));
    p.args.run = NULL, p.args.y = NULL;
    QB_CHECK_OK(qb_cuda_gemm_bf16(&p.args, NULL));
    qb_gpu_fetch(sums, p.dev[5], n * sizeof *sums);
    qb_gpu_fetch(maxima, p.dev[6], n * sizeof *maxima);
    for (size_t t = 0; t < p.n_tiles; t++)
        for (size_t i = 0; i < p.m; i++) {
            if (sums[t * p.m + i] <= QB_BF16_MOST) continue;
            double want = -INFINITY;
            for (size_t j = t * QB_BF16_TILE; j < p.n && j < (t + 1) * QB_BF16_TILE; j++)
                want = fmax(want, product(&p, i, j));
            assert_true(fabs((double)maxima[t * p.m + i] - want) < 1e-3);
            n_large++;
        }
    assert_true(n_large > 20 && n_large < n);
    p.args.y = p.dev[2];
    QB_CHECK_OK(qb_cuda_gemm_bf16(&p.args, NULL));
    qb_gpu_fetch(again, p.dev[5], n * sizeof *again);
    assert_memory_equal(sums, again, n * sizeof *sums);
    qb_gpu_free(no);
    qb_free(sums), qb_free(maxima), qb_free(again);
    destroy(&p);
}

/* cuBLASLt's row is the caller's own products and passes: whoever asks is told to do it. */
static void the_other_row_can_be_forced(void **state)
{
    (void)state;
    QB_NEEDS_GPU();
    problem p = make(QB_BF16_GELU, 128, 192, 64, 3);
    const char *why = qb_cuda_gemm_bf16_refuse(&p.args);
    if (!why && qb_kernel_force("gemm_bf16/cublaslt") == QB_OK) {
        assert_string_equal(qb_cuda_gemm_bf16_refuse(&p.args), "not forced");
        assert_int_equal(qb_cuda_gemm_bf16(&p.args, NULL), QB_ERR_UNSUPPORTED);
        QB_CHECK_OK(qb_kernel_force("gemm_bf16/sm90"));
        QB_CHECK_OK(qb_cuda_gemm_bf16(&p.args, NULL));
        QB_CHECK_OK(qb_kernel_force(NULL));
    }
    destroy(&p);
    if (why) QB_SKIP("%s", why);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(exponentials), cmocka_unit_test(gelus),
        cmocka_unit_test(factors),      cmocka_unit_test(relus),
        cmocka_unit_test(large_sums),   cmocka_unit_test(the_other_row_can_be_forced),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
