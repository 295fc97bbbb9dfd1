/* tests/cuda/test_cuda_gemm_float.c - float products of every row against sums in double. */
#include "gpu.h"

#include "core/dtype.h"
#include "core/rng.h"
#include "kernels/cuda/gemm_float.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct product {
    qb_cuda_gemm_float_args args;
    float *x, *w, *bias, *residual; /* host, as stored */
} product;

static float stored(float x, qb_cuda_dtype type)
{
    return type == QB_CUDA_BF16 ? qb_f32_from_bf16(qb_bf16_from_f32(x)) : x;
}

static float *values(size_t rows, size_t width, size_t stride, qb_cuda_dtype type, float size,
                     uint64_t seed)
{
    float *x = malloc(rows * stride * sizeof *x);
    qb_rng_normal_f32(seed, QB_STREAM_TEST, 0, rows * stride, size, x);
    for (size_t i = 0; i < rows * stride; i++)
        x[i] = i % stride < width ? stored(x[i], type) : 0.0f;
    return x;
}

static void *upload(const float *x, size_t n, qb_cuda_dtype type)
{
    if (type == QB_CUDA_F32) return qb_gpu_upload(x, n * sizeof *x);
    uint16_t *half = malloc(n * sizeof *half);
    for (size_t i = 0; i < n; i++) half[i] = qb_bf16_from_f32(x[i]);
    void *dev = qb_gpu_upload(half, n * sizeof *half);
    free(half);
    return dev;
}

typedef struct kind {
    qb_cuda_dtype in, out;
    bool bias, residual;
    qb_epilogue_act act;
} kind;

static product product_make(size_t m, size_t n, size_t k, kind c)
{
    size_t xs = qb_cuda_stride(k), ys = qb_cuda_stride(n);
    product p = {.x = values(m, k, xs, c.in, 1.0f, 1),
                 .w = values(n, k, xs, c.in, 1.0f / sqrtf((float)k), 2),
                 .bias = values(1, n, n, QB_CUDA_F32, 1.0f, 3),
                 .residual = values(m, n, ys, QB_CUDA_F32, 1.0f, 4)};
    p.args = (qb_cuda_gemm_float_args){.m = m,
                                       .n = n,
                                       .k = k,
                                       .in = c.in,
                                       .x = upload(p.x, m * xs, c.in),
                                       .w = upload(p.w, n * xs, c.in),
                                       .x_stride = xs,
                                       .w_stride = xs,
                                       .act = c.act,
                                       .out = c.out,
                                       .y_stride = ys,
                                       .residual_stride = ys};
    if (c.bias) p.args.bias = upload(p.bias, n, QB_CUDA_F32);
    return p;
}

/* The output is made anew for every call. */
static void reset_output(product *p, kind c)
{
    size_t n = p->args.m * p->args.y_stride;
    qb_gpu_free(p->args.y);
    qb_gpu_free(p->args.residual);
    p->args.y = c.residual ? NULL : qb_gpu_poison(n * qb_cuda_dtype_bytes(c.out));
    p->args.residual = c.residual ? upload(p->residual, n, QB_CUDA_F32) : NULL;
}

static float *output(const product *p, kind c)
{
    size_t n = p->args.m * p->args.y_stride;
    float *y = malloc(n * sizeof *y);
    if (c.residual || c.out == QB_CUDA_F32) {
        qb_gpu_fetch(y, c.residual ? p->args.residual : p->args.y, n * sizeof *y);
        return y;
    }
    uint16_t *half = malloc(n * sizeof *half);
    qb_gpu_fetch(half, p->args.y, n * sizeof *half);
    for (size_t i = 0; i < n; i++) y[i] = qb_f32_from_bf16(half[i]);
    free(half);
    return y;
}

static void product_free(product *p)
{
    qb_gpu_free((void *)p->args.x);
    qb_gpu_free((void *)p->args.w);
    qb_gpu_free((void *)p->args.bias);
    qb_gpu_free(p->args.y);
    qb_gpu_free(p->args.residual);
    free(p->x), free(p->w), free(p->bias), free(p->residual);
}

static double activated(qb_epilogue_act act, double y)
{
    if (act == QB_EPI_RELU) return y < 0 ? 0 : y;
    if (act == QB_EPI_NONE) return y;
    return 0.5 * y * (1 + tanh(0.79788456080286535588 * (y + 0.044715 * y * y * y)));
}

/* f32 sums of k products, in any order, are good to k * 2^-24 of the sum of their sizes; a bf16
 * output adds half an ulp of itself (2^-9), and so does its bias; GELU (slope below 1.13) about
 * 2^-11, as the fast hyperbolic tangent of the tensor epilogues has. */
static void check_output(const product *p, kind c, const float *got, const char *row)
{
    const qb_cuda_gemm_float_args *a = &p->args;
    size_t step = a->m * a->n > 200000 ? 37 : 1;
    for (size_t i = 0; i < a->m * a->n; i += step) {
        size_t r = i / a->n, column = i % a->n;
        double sum = 0, sizes = 0, bias = c.bias ? p->bias[column] : 0;
        for (size_t j = 0; j < a->k; j++) {
            double t = (double)p->x[r * a->x_stride + j] * p->w[column * a->w_stride + j];
            sum += t;
            sizes += fabs(t);
        }
        double want = activated(c.act, sum + bias);
        double bound = ((double)a->k + 4) * 0x1p-24 * (sizes + fabs(bias)) * 1.13 + 1e-30;
        if (c.act == QB_EPI_GELU) bound += 0x1p-11 * fabs(sum + bias);
        if (c.residual) {
            want += p->residual[r * a->residual_stride + column];
            bound += 0x1p-22 * (fabs(want) + fabs(sum));
        } else if (c.out == QB_CUDA_BF16) {
            bound += 0x1p-8 * (fabs(want) + 1.13 * fabs(bias) + fabs(sum + bias));
        }
        double value = got[r * a->y_stride + column];
        if (!(fabs(value - want) <= bound))
            fail_msg("%s %zu x %zu x %zu in %d out %d bias %d act %d residual %d: (%zu, %zu) is "
                     "%.9g, expected %.9g within %g",
                     row, a->m, a->n, a->k, (int)c.in, (int)c.out, c.bias, (int)c.act, c.residual,
                     r, column, value, want, bound);
    }
}

static void check_row(const qb_cuda_gemm_float_row *row, product *p, kind c)
{
    const char *why = qb_kernel_refusal(&row->info);
    reset_output(p, c);
    if (!why) why = row->refuse(&p->args);
    if (why) {
        printf("%s: %s\n", row->info.name, why);
        return;
    }
    size_t bytes = p->args.m * p->args.y_stride * sizeof(float);
    QB_CHECK_OK(row->run(&p->args, NULL));
    float *first = output(p, c);
    check_output(p, c, first, row->info.name);
    reset_output(p, c);
    QB_CHECK_OK(row->run(&p->args, NULL));
    float *second = output(p, c);
    assert_memory_equal(first, second, bytes);
    free(first);
    free(second);
}

static const kind kinds[] = {
    {QB_CUDA_BF16, QB_CUDA_BF16, false, false, QB_EPI_NONE},
    {QB_CUDA_BF16, QB_CUDA_BF16, true, false, QB_EPI_NONE},
    {QB_CUDA_BF16, QB_CUDA_BF16, true, false, QB_EPI_GELU},
    {QB_CUDA_BF16, QB_CUDA_BF16, false, false, QB_EPI_RELU},
    {QB_CUDA_BF16, QB_CUDA_F32, true, false, QB_EPI_NONE},
    {QB_CUDA_BF16, QB_CUDA_F32, false, false, QB_EPI_NONE},
    {QB_CUDA_BF16, QB_CUDA_F32, true, true, QB_EPI_NONE},
    {QB_CUDA_BF16, QB_CUDA_F32, false, true, QB_EPI_NONE},
    {QB_CUDA_F32, QB_CUDA_F32, false, false, QB_EPI_NONE},
    {QB_CUDA_F32, QB_CUDA_F32, true, false, QB_EPI_GELU},
    {QB_CUDA_F32, QB_CUDA_F32, true, false, QB_EPI_RELU},
    {QB_CUDA_F32, QB_CUDA_F32, true, true, QB_EPI_NONE},
    {QB_CUDA_F32, QB_CUDA_F32, true, true, QB_EPI_GELU},
    {QB_CUDA_F32, QB_CUDA_BF16, true, false, QB_EPI_NONE},
};

static void check_shape(size_t m, size_t n, size_t k)
{
    for (size_t i = 0; i < QB_COUNT(kinds); i++) {
        product p = product_make(m, n, k, kinds[i]);
        for (const qb_cuda_gemm_float_row *row = qb_cuda_gemm_float_kernels; row->info.name; row++)
            check_row(row, &p, kinds[i]);
        reset_output(&p, kinds[i]);
        QB_CHECK_OK(qb_cuda_gemm_float(&p.args, NULL));
        product_free(&p);
    }
}

static void rows_equal_sums_in_double(void **state)
{
    (void)state;
    QB_NEEDS_GPU();
    static const size_t shapes[][3] = {{1, 1, 1},      {1, 768, 768},   {3, 97, 31},
                                       {257, 100, 97}, {16, 2304, 768}, {130, 64, 2048},
                                       {16, 200, 160}};
    for (size_t i = 0; i < QB_COUNT(shapes); i++) {
        if (qb_test_is_small() && shapes[i][1] * shapes[i][2] > 200 * 160) continue;
        check_shape(shapes[i][0], shapes[i][1], shapes[i][2]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(rows_equal_sums_in_double)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
