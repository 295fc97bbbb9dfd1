/* tests/cuda/test_cuda_gemm_u4.c - every CUDA row of gemm_u4 against a double loop, within a
 * derived bound.
 *
 * Activations are bf16 and q - zero point is a small integer, so products are exact in f32; each of
 * the K sums, the scale and the bias may be off by 2^-23 (tensor cores cut off) of the magnitude
 * that has passed: (K + 16) * 2^-23 * (sum of |x| * |w|, + |bias|). A bf16 output adds 2^-8 of the
 * value, an f32 residual 2^-23 of itself; GELU has a slope below 1.13 and an error of its own. */
#include "gpu.h"

#include "core/memory.h"
#include "core/rng.h"
#include "kernels/cuda/gemm_u4.h"

#include <math.h>
#include <string.h>

typedef enum { BY_OUT, BY_IN, BY_TENSOR, BY_GROUP } axis;
typedef struct product_case {
    size_t m, n, k;
    axis axis;
    size_t group; /* BY_GROUP */
    bool has_bias, has_y, has_residual;
    qb_epilogue_act act;
    qb_cuda_dtype out;
    int zero_offset; /* added to zero points of 0 to 15 */
    /* made by create() */
    size_t x_stride, y_stride, y_bytes, n_slices;
    float *x, *scale, *fill, *bias, *residual;
    int32_t *zero_point;
    uint16_t *x_bf16;
    uint8_t *codes, *y;
    qb_u4_weights w;
    qb_cuda_u4 u4;
    void *x_dev, *scaled_dev, *y_dev, *bias_dev, *residual_dev;
} product_case;

static uint16_t to_bf16(float f)
{
    uint32_t u;
    memcpy(&u, &f, 4);
    return (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}
static float from_bf16(uint16_t h)
{
    uint32_t u = (uint32_t)h << 16;
    float f;
    memcpy(&f, &u, 4);
    return f;
}

static void make_weights(product_case *t)
{
    const size_t row_bytes = (t->k + 1) / 2, group = t->axis == BY_GROUP ? t->group : 1;
    const size_t per_row = (t->k + group - 1) / group;
    t->n_slices = t->axis == BY_OUT      ? t->n
                  : t->axis == BY_IN     ? t->k
                  : t->axis == BY_TENSOR ? 1
                                         : t->n * per_row;
    QB_CHECK_OK(QB_NEW(&t->codes, t->n * row_bytes, "codes"));
    QB_CHECK_OK(QB_NEW(&t->scale, t->n_slices, "scales"));
    QB_CHECK_OK(QB_NEW(&t->fill, t->n_slices, "fill"));
    QB_CHECK_OK(QB_NEW(&t->zero_point, t->n_slices, "zero points"));
    qb_test_fill_bytes(t->codes, t->n * row_bytes, t->k + t->n);
    for (size_t s = 0; s < t->n_slices; s++) {
        uint32_t r = qb_rng_u32(9, QB_STREAM_TEST, s);
        t->scale[s] = r % 11 == 3 ? 0.0f : 0.01f + (float)(r % 1000) * 1e-4f;
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
                           .fill = t->fill};
    for (size_t n = 0; n < t->n; n++) /* constant slices have codes 0 */
        for (size_t k = 0; k < t->k; k++)
            if (t->scale[n * t->w.n_step + k / group * t->w.k_step] == 0.0f)
                t->codes[n * row_bytes + k / 2] &= k % 2 ? 0x0f : 0xf0;
}

/* Rows past m and columns past the widths of x and y are poison. */
static void make_activations(product_case *t)
{
    t->x_stride = qb_cuda_stride(t->k);
    t->y_stride = qb_cuda_stride(t->n) + 64;
    t->y_bytes = t->m * t->y_stride * qb_cuda_dtype_bytes(t->out);
    const size_t rows = t->m + QB_CUDA_ROW_PAD;
    QB_CHECK_OK(QB_NEW(&t->x, t->m * t->k, "x"));
    QB_CHECK_OK(QB_NEW(&t->x_bf16, rows * t->x_stride, "x"));
    QB_CHECK_OK(QB_NEW(&t->bias, t->n, "bias"));
    QB_CHECK_OK(QB_NEW(&t->y, t->y_bytes, "y"));
    QB_CHECK_OK(QB_NEW(&t->residual, t->m * t->y_stride, "residual"));
    qb_test_fill_f32(t->x, t->m * t->k, t->k);
    qb_test_fill_f32(t->bias, t->n, 5);
    qb_test_fill_f32(t->residual, t->m * t->y_stride, 6);
    memset(t->x_bf16, 0xff, rows * t->x_stride * 2);
    for (size_t m = 0; m < t->m; m++)
        for (size_t k = 0; k < t->x_stride; k++) {
            uint16_t h = k < t->k ? to_bf16(t->x[m * t->k + k]) : 0xffff;
            t->x_bf16[m * t->x_stride + k] = h;
            if (k < t->k) t->x[m * t->k + k] = from_bf16(h);
        }
    t->x_dev = qb_gpu_upload(t->x_bf16, rows * t->x_stride * 2);
    t->y_dev = qb_gpu_poison(t->y_bytes);
    t->bias_dev = qb_gpu_upload(t->bias, t->n * 4);
    t->residual_dev = qb_gpu_upload(t->residual, t->m * t->y_stride * 4);
}

static void create(product_case *t)
{
    const char *why;
    make_weights(t);
    make_activations(t);
    QB_CHECK_OK(qb_cuda_u4_pack(&t->w, &t->u4, &why));
    if (why) fail_msg("refused: %s", why);
    if (t->axis != BY_IN) return;
    /* x * scale, rounded once to bf16, is what the product then sees */
    t->scaled_dev = qb_gpu_upload(t->x_bf16, (t->m + QB_CUDA_ROW_PAD) * t->x_stride * 2);
    QB_CHECK_OK(
        qb_cuda_u4_x(t->x_dev, t->x_stride, t->m, &t->u4, t->scaled_dev, t->x_stride, NULL));
    for (size_t m = 0; m < t->m; m++)
        for (size_t k = 0; k < t->k; k++) {
            float scale = t->scale[k] != 0.0f ? t->scale[k] : t->fill[k];
            t->x[m * t->k + k] = from_bf16(to_bf16(t->x[m * t->k + k] * scale));
        }
}

static void destroy(product_case *t)
{
    void *host[] = {t->x,          t->scale,  t->fill,  t->bias, t->residual,
                    t->zero_point, t->x_bf16, t->codes, t->y};
    void *dev[] = {t->x_dev, t->scaled_dev, t->y_dev, t->bias_dev, t->residual_dev};
    for (size_t i = 0; i < QB_COUNT(host); i++) qb_free(host[i]);
    for (size_t i = 0; i < QB_COUNT(dev); i++) qb_gpu_free(dev[i]);
    qb_cuda_u4_free(&t->u4);
}

static qb_cuda_gemm_u4_args args_of(const product_case *t)
{
    return (qb_cuda_gemm_u4_args){.m = t->m,
                                  .x = t->scaled_dev ? t->scaled_dev : t->x_dev,
                                  .x_stride = t->x_stride,
                                  .w = &t->u4,
                                  .bias = t->has_bias ? t->bias_dev : NULL,
                                  .act = t->act,
                                  .out = t->out,
                                  .y = t->has_y ? t->y_dev : NULL,
                                  .y_stride = t->y_stride,
                                  .residual = t->has_residual ? t->residual_dev : NULL,
                                  .residual_stride = t->y_stride};
}

/* w of (n, k); scales per input channel are already in x. */
static double weight_at(const product_case *t, size_t n, size_t k)
{
    size_t s = n * t->w.n_step + k / t->w.k_group * t->w.k_step;
    uint8_t byte = t->codes[n * ((t->k + 1) / 2) + k / 2];
    int code = k % 2 ? byte >> 4 : byte & 15;
    if (t->axis == BY_IN) return t->scale[s] == 0.0f ? 1.0 : code - t->zero_point[s];
    if (t->scale[s] == 0.0f) return (double)t->fill[s];
    return (double)(code - t->zero_point[s]) * (double)t->scale[s];
}

static double activate(double v, qb_epilogue_act act)
{
    if (act == QB_EPI_RELU) return v < 0 ? 0 : v;
    if (act == QB_EPI_NONE) return v;
    return 0.5 * v * (1 + tanh(0.79788456080286535588 * (v + 0.044715 * v * v * v)));
}

static double expect(const product_case *t, size_t m, size_t n, double *bound)
{
    double y = t->has_bias ? (double)t->bias[n] : 0.0, passed = fabs(y);
    for (size_t k = 0; k < t->k; k++) {
        double term = (double)t->x[m * t->k + k] * weight_at(t, n, k);
        y += term;
        passed += fabs(term);
    }
    *bound = (double)(t->k + 16) * 0x1p-23 * passed;
    double z = activate(y, t->act);
    if (t->act == QB_EPI_GELU) *bound = *bound * 1.13 + fabs(y) * 0x1p-20;
    return z;
}

static void check_output(const product_case *t, const char *row, size_t m, size_t n, float y,
                         float residual)
{
    double bound, want = expect(t, m, n, &bound);
    double rounding = t->out == QB_CUDA_BF16 ? 0x1p-8 * fabs(want) : 0x1p-23 * fabs(want);
    if (t->has_y && !(fabs((double)y - want) <= bound + rounding))
        fail_msg("%s: m %zu n %zu k %zu axis %d group %zu at %zu,%zu: y %g, expected %g, error %g, "
                 "bound %g",
                 row, t->m, t->n, t->k, (int)t->axis, t->group, m, n, (double)y, want,
                 fabs((double)y - want), bound + rounding);
    if (!t->has_residual) return;
    want += (double)t->residual[m * t->y_stride + n];
    bound += 0x1p-23 * fabs(want);
    if (!(fabs((double)residual - want) <= bound))
        fail_msg("%s: m %zu n %zu k %zu axis %d group %zu at %zu,%zu: residual %g, expected %g, "
                 "error %g, bound %g",
                 row, t->m, t->n, t->k, (int)t->axis, t->group, m, n, (double)residual, want,
                 fabs((double)residual - want), bound);
}

static float y_at(const product_case *t, size_t at)
{
    float f;
    uint16_t h;
    if (t->out == QB_CUDA_BF16) {
        memcpy(&h, t->y + 2 * at, 2);
        return from_bf16(h);
    }
    memcpy(&f, t->y + 4 * at, 4);
    return f;
}

static bool is_poison(const product_case *t, size_t at)
{
    const size_t bytes = qb_cuda_dtype_bytes(t->out);
    return qb_gpu_is_poison(t->y + bytes * at, bytes);
}

/* The end of the 16 bytes that hold a row's last output. */
static size_t padded_n(const product_case *t)
{
    return qb_round_up(t->n, 16 / qb_cuda_dtype_bytes(t->out));
}

/* All outputs of small products, the edges and some others of large ones. */
static bool is_checked(const product_case *t, size_t m, size_t n)
{
    if (t->m * t->n * t->k < 20 * 1000 * 1000) return true;
    if ((m < 2 || m + 2 > t->m) && (n < 2 || n + 2 > t->n)) return true;
    return qb_rng_u32(3, QB_STREAM_TEST, m * t->n + n) % (t->m * t->n / 3000 + 1) == 0;
}

static void check_row(const qb_cuda_gemm_u4_row *row, const product_case *t)
{
    const qb_cuda_gemm_u4_args args = args_of(t);
    const size_t n_residual = t->m * t->y_stride;
    float *residual;
    if (row->refuse(&args)) return;
    QB_CHECK_OK(QB_NEW(&residual, n_residual, "residual"));
    memset(t->y, 0xA5, t->y_bytes);
    QB_CHECK_OK(qb_cuda_upload(t->y_dev, t->y, t->y_bytes, NULL));
    QB_CHECK_OK(qb_cuda_upload(t->residual_dev, t->residual, n_residual * 4, NULL));
    QB_CHECK_OK(row->run(&args, NULL));
    qb_gpu_fetch(t->y, t->y_dev, t->y_bytes);
    qb_gpu_fetch(residual, t->residual_dev, n_residual * 4);
    for (size_t m = 0; m < t->m; m++)
        for (size_t n = 0; n < t->y_stride; n++) {
            const size_t at = m * t->y_stride + n;
            if (n < t->n && is_checked(t, m, n))
                check_output(t, row->info.name, m, n, y_at(t, at), residual[at]);
            const bool padding = n >= t->n && n < padded_n(t); /* may become 0 */
            if (padding && t->has_y && y_at(t, at) == 0.0f) continue;
            if ((n >= t->n || !t->has_y) && !is_poison(t, at))
                fail_msg("%s: wrote y at %zu,%zu of %zu x %zu", row->info.name, m, n, t->m, t->n);
            if ((n >= t->n || !t->has_residual) && residual[at] != t->residual[at])
                fail_msg("%s: wrote the residual at %zu,%zu of %zu x %zu", row->info.name, m, n,
                         t->m, t->n);
        }
    qb_free(residual);
}

static void check_rows(product_case t)
{
    if (!t.has_residual) t.has_y = true;
    create(&t);
    for (const qb_cuda_gemm_u4_row *row = qb_cuda_gemm_u4_kernels; row->info.name; row++)
        if (!qb_kernel_refusal(&row->info)) check_row(row, &t);
    destroy(&t);
}

static void small_shapes_stay_within_the_bound(void **state)
{
    (void)state;
    QB_NEEDS_GPU();
    static const size_t ms[] = {1, 3, 8, 9, 16, 17, 64, 65, 130};
    static const size_t ns[] = {1, 15, 16, 33, 70, 130, 200};
    static const size_t ks[] = {1, 2, 63, 64, 65, 129, 300, 700};
    size_t i = 0;
    for (size_t m = 0; m < QB_COUNT(ms); m++)
        for (size_t n = 0; n < QB_COUNT(ns); n++)
            for (size_t k = 0; k < QB_COUNT(ks); k++, i++) {
                if (qb_test_is_small() && i % 13) continue;
                check_rows((product_case){.m = ms[m],
                                          .n = ns[n],
                                          .k = ks[k],
                                          .axis = (axis)(i % 3),
                                          .has_bias = i % 2,
                                          .has_y = i % 7 != 0,
                                          .has_residual = i % 5 < 2,
                                          .act = (qb_epilogue_act)(i / 3 % 3),
                                          .out = i % 4 < 2 ? QB_CUDA_BF16 : QB_CUDA_F32});
            }
}

static void groups_are_taken(void **state)
{
    (void)state;
    QB_NEEDS_GPU();
    static const size_t groups[] = {64, 128, 256, 1000};
    static const size_t ms[] = {1, 12, 40, 150};
    for (size_t g = 0; g < QB_COUNT(groups); g++)
        for (size_t m = 0; m < QB_COUNT(ms); m++)
            for (size_t k = 31; k < 1000; k += 223) {
                if (qb_test_is_small() && (g + m + k) % 4) continue;
                check_rows((product_case){.m = ms[m],
                                          .n = 35 + 100 * (k % 2),
                                          .k = k,
                                          .axis = BY_GROUP,
                                          .group = groups[g],
                                          .has_bias = k % 3 == 0,
                                          .out = m % 2 ? QB_CUDA_BF16 : QB_CUDA_F32});
            }
}

static void far_zero_points_are_exact(void **state)
{
    (void)state;
    QB_NEEDS_GPU();
    for (int offset = -120; offset <= 105; offset += 225)
        for (int a = BY_OUT; a <= BY_TENSOR; a++)
            check_rows((product_case){.m = 20,
                                      .n = 40,
                                      .k = 200,
                                      .axis = (axis)a,
                                      .zero_offset = offset,
                                      .out = QB_CUDA_F32});
}

static void layers_of_models_stay_within_the_bound(void **state)
{
    (void)state;
    QB_NEEDS_GPU();
    static const size_t shapes[][3] = {{1, 6144, 2048},   {1, 2048, 8192},  {5, 2048, 2048},
                                       {16, 2304, 768},   {64, 2048, 8192}, {512, 2048, 2048},
                                       {300, 2048, 8192}, {700, 2304, 768}, {1000, 768, 3072}};
    for (size_t i = 0; i < QB_COUNT(shapes); i++) {
        if (qb_test_is_small() && i != 1 && i != 2) continue;
        check_rows((product_case){.m = shapes[i][0],
                                  .n = shapes[i][1],
                                  .k = shapes[i][2],
                                  .axis = i % 4 == 3   ? BY_IN
                                          : i % 4 == 2 ? BY_GROUP
                                                       : BY_OUT,
                                  .group = 128,
                                  .has_bias = i % 2,
                                  .has_y = i % 3 > 0,
                                  .has_residual = i % 3 < 2,
                                  .out = i % 2 ? QB_CUDA_F32 : QB_CUDA_BF16});
    }
}

/* Equal calls give equal bits: sums are never added in the order of arrival. */
static void calls_repeat_bit_for_bit(void **state)
{
    (void)state;
    QB_NEEDS_GPU();
    static const size_t ms[] = {1, 16, 64, 300};
    for (size_t i = 0; i < QB_COUNT(ms); i++) {
        const size_t cut = qb_test_is_small() ? 4 : 1;
        product_case t = {
            .m = ms[i], .n = 2048 / cut, .k = 4096 / cut, .has_y = true, .out = QB_CUDA_F32};
        create(&t);
        const qb_cuda_gemm_u4_args args = args_of(&t);
        uint8_t *first;
        QB_CHECK_OK(QB_NEW(&first, t.y_bytes, "y"));
        for (const qb_cuda_gemm_u4_row *row = qb_cuda_gemm_u4_kernels; row->info.name; row++) {
            if (qb_kernel_refusal(&row->info) || row->refuse(&args)) continue;
            for (int repeat = 0; repeat < (qb_test_is_small() ? 2 : 5); repeat++) {
                QB_CHECK_OK(row->run(&args, NULL));
                qb_gpu_fetch(repeat ? t.y : first, t.y_dev, t.y_bytes);
                if (repeat && memcmp(first, t.y, t.y_bytes))
                    fail_msg("%s: m %zu: two calls differ", row->info.name, t.m);
            }
        }
        qb_free(first);
        destroy(&t);
    }
}

static void the_table_takes_any_number_of_tokens(void **state)
{
    (void)state;
    QB_NEEDS_GPU();
    for (size_t m = 1; m < 200; m += 33) {
        product_case t = {.m = m, .n = 100, .k = 192, .has_y = true, .out = QB_CUDA_F32};
        create(&t);
        const qb_cuda_gemm_u4_args args = args_of(&t);
        QB_CHECK_OK(qb_cuda_gemm_u4(&args, NULL));
        qb_gpu_fetch(t.y, t.y_dev, t.y_bytes);
        check_output(&t, "table", m - 1, 99, y_at(&t, (m - 1) * t.y_stride + 99), 0.0f);
        destroy(&t);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(small_shapes_stay_within_the_bound),
        cmocka_unit_test(groups_are_taken),
        cmocka_unit_test(far_zero_points_are_exact),
        cmocka_unit_test(layers_of_models_stay_within_the_bound),
        cmocka_unit_test(calls_repeat_bit_for_bit),
        cmocka_unit_test(the_table_takes_any_number_of_tokens),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
