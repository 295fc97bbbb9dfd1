/* tests/cuda/test_cuda_outliers.c - the steps of kernels/cuda/outliers.h against plain loops: sets,
 * codes, scales and, since the order of (3) is fixed, f32 sums bit for bit. */
#include "gpu.h"

#include "core/dtype.h"
#include "core/rng.h"
#include "kernels/cuda/outliers.h"
#include "kernels/quantize.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define LEAST 6.0f

typedef struct outlier_case {
    size_t m, n, k, n_planted;
    qb_cuda_dtype type; /* of y */
} outlier_case;

/* The operands on the host and what is expected of them. */
typedef struct operands {
    size_t x_stride, y_stride;
    float *x, *w_scale, *scale, *y;
    int8_t *w, *q;
    uint8_t *is_outlier;
    int32_t *channel;
    int32_t n_outliers;
} operands;

static void *zeros(size_t n, size_t bytes)
{
    void *block = calloc(n ? n : 1, bytes);
    assert_non_null(block);
    return block;
}

static float of_type(float y, qb_cuda_dtype type)
{
    return type == QB_CUDA_BF16 ? qb_f32_from_bf16(qb_bf16_from_f32(y)) : y;
}

/* Values below LEAST, but for one in each planted channel, in any row: the first exactly LEAST. */
static operands operands_create(const outlier_case *t, uint64_t seed)
{
    operands o = {.x_stride = qb_cuda_stride(t->k), .y_stride = qb_cuda_stride(t->n)};
    o.x = zeros(t->m * o.x_stride, sizeof *o.x);
    o.w = zeros(t->n * o.x_stride, 1);
    o.w_scale = zeros(t->n, sizeof *o.w_scale);
    o.y = zeros(t->m * o.y_stride, sizeof *o.y);
    for (size_t i = 0; i < t->m * t->k; i++) {
        float v;
        qb_rng_normal_f32(seed, QB_STREAM_TEST, i, 1, 1.5f, &v);
        o.x[i / t->k * o.x_stride + i % t->k] = fminf(fmaxf(v, -5.9f), 5.9f);
    }
    for (size_t p = 0; p < t->n_planted; p++) {
        size_t c = qb_rng_below(seed + 1, QB_STREAM_TEST, p, t->k),
               row = qb_rng_below(seed + 2, QB_STREAM_TEST, p, t->m);
        o.x[row * o.x_stride + c] = p ? -7.5f * (float)p : LEAST;
    }
    for (size_t i = 0; i < t->n * t->k; i++)
        o.w[i / t->k * o.x_stride + i % t->k] =
            (int8_t)((int)qb_rng_below(seed + 3, QB_STREAM_TEST, i, 255) - 127);
    qb_rng_normal_f32(seed + 4, QB_STREAM_TEST, 0, t->n, 0.01f, o.w_scale);
    for (size_t i = 0; i < t->m * t->n; i++) {
        float v;
        qb_rng_normal_f32(seed + 5, QB_STREAM_TEST, i, 1, 1, &v);
        o.y[i / t->n * o.y_stride + i % t->n] = of_type(v, t->type);
    }
    return o;
}

static void expect(const outlier_case *t, operands *o)
{
    const qb_quantize_row *kernels = QB_KERNEL_PICK(qb_quantize_kernels);
    float *row = zeros(t->k, sizeof *row);
    o->is_outlier = zeros(t->k, 1);
    o->channel = zeros(t->k, sizeof *o->channel);
    o->q = zeros(t->m * o->x_stride, 1);
    o->scale = zeros(t->m, sizeof *o->scale);
    for (size_t c = 0; c < t->k; c++) {
        for (size_t m = 0; m < t->m; m++)
            if (fabsf(o->x[m * o->x_stride + c]) >= LEAST) o->is_outlier[c] = 1;
        if (o->is_outlier[c]) o->channel[o->n_outliers++] = (int32_t)c;
    }
    for (size_t m = 0; m < t->m; m++) {
        const float *x = o->x + m * o->x_stride;
        for (size_t c = 0; c < t->k; c++) row[c] = o->is_outlier[c] ? 0 : x[c];
        o->scale[m] = kernels->absmax(row, t->k) / 127.0f;
        kernels->quantize_s8(row, t->k, o->scale[m], o->q + m * o->x_stride);
        for (size_t n = 0; n < t->n; n++) {
            float sum = 0, *y = &o->y[m * o->y_stride + n];
            for (int32_t i = 0; i < o->n_outliers; i++)
                sum += x[o->channel[i]] * (float)o->w[n * o->x_stride + (size_t)o->channel[i]];
            *y = of_type(*y + sum * o->w_scale[n], t->type);
        }
    }
    free(row);
}

static void to_type(const float *y, size_t n, qb_cuda_dtype type, void *out)
{
    for (size_t i = 0; i < n; i++)
        if (type == QB_CUDA_F32)
            ((float *)out)[i] = y[i];
        else
            ((uint16_t *)out)[i] = qb_bf16_from_f32(y[i]);
}

static void same(const outlier_case *t, const char *what, const void *dev, const void *want,
                 size_t bytes)
{
    char *got = zeros(bytes, 1);
    qb_gpu_fetch(got, dev, bytes);
    if (memcmp(got, want, bytes))
        fail_msg("%zu x %zu x %zu, %zu planted, type %d: %s differ", t->m, t->n, t->k, t->n_planted,
                 t->type, what);
    free(got);
}

/* A twin's x: code * scale where the channel is no outlier. */
static void check_twin(const outlier_case *t, const operands *o, const qb_cuda_outliers *outliers)
{
    size_t bytes = t->m * o->x_stride * sizeof(float);
    float *x = qb_gpu_upload(o->x, bytes), *scale = qb_gpu_poison(t->m * sizeof *scale);
    float *want = zeros(t->m * o->x_stride, sizeof *want);
    memcpy(want, o->x, bytes);
    for (size_t m = 0; m < t->m; m++)
        for (size_t c = 0; c < t->k; c++)
            if (!o->is_outlier[c])
                want[m * o->x_stride + c] = (float)o->q[m * o->x_stride + c] * o->scale[m];
    QB_CHECK_OK(qb_cuda_outliers_stage(
        &(qb_cuda_outliers_stage_args){t->m, t->k, x, o->x_stride, outliers, NULL, scale}, NULL));
    same(t, "a twin's values", x, want, bytes);
    free(want);
    qb_gpu_free(x);
    qb_gpu_free(scale);
}

static void check(const outlier_case *t, uint64_t seed)
{
    operands o = operands_create(t, seed);
    size_t y_elems = t->m * o.y_stride, elem = qb_cuda_dtype_bytes(t->type);
    void *y = zeros(y_elems, elem);
    to_type(o.y, y_elems, t->type, y);
    float *x = qb_gpu_upload(o.x, t->m * o.x_stride * sizeof *x);
    int8_t *w = qb_gpu_upload(o.w, t->n * o.x_stride);
    float *w_scale = qb_gpu_upload(o.w_scale, t->n * sizeof *w_scale);
    void *y_dev = qb_gpu_upload(y, y_elems * elem);
    expect(t, &o);
    to_type(o.y, y_elems, t->type, y);
    qb_cuda_outliers set = {qb_gpu_poison(t->k), qb_gpu_poison(t->k * sizeof *set.channel),
                            qb_gpu_poison(sizeof *set.n)};
    int8_t *q = qb_gpu_poison(t->m * o.x_stride), *gathered = qb_gpu_poison(t->k * t->n);
    float *scale = qb_gpu_poison(t->m * sizeof *scale);
    QB_CHECK_OK(qb_cuda_outliers_find(x, t->m, t->k, o.x_stride, LEAST, &set, NULL));
    QB_CHECK_OK(qb_cuda_outliers_stage(
        &(qb_cuda_outliers_stage_args){t->m, t->k, x, o.x_stride, &set, q, scale}, NULL));
    qb_cuda_outliers_add_args add = {t->m,       t->n,    x,        o.x_stride, &set,  w,
                                     o.x_stride, w_scale, gathered, t->type,    y_dev, o.y_stride};
    QB_CHECK_OK(qb_cuda_outliers_add(&add, NULL));
    same(t, "flags", set.is_outlier, o.is_outlier, t->k);
    same(t, "channels", set.channel, o.channel, (size_t)o.n_outliers * sizeof *o.channel);
    same(t, "their number", set.n, &o.n_outliers, sizeof o.n_outliers);
    same(t, "codes", q, o.q, t->m * o.x_stride);
    same(t, "scales", scale, o.scale, t->m * sizeof *scale);
    same(t, "outputs", y_dev, y, y_elems * elem);
    check_twin(t, &o, &set);
    void *const blocks[] = {x,           w, w_scale, y_dev, set.is_outlier,
                            set.channel, q, scale,   set.n, gathered};
    for (size_t i = 0; i < QB_COUNT(blocks); i++) qb_gpu_free(blocks[i]);
    void *const host[] = {o.x, o.w, o.w_scale, o.y, o.q, o.scale, o.is_outlier, o.channel, y};
    for (size_t i = 0; i < QB_COUNT(host); i++) free(host[i]);
}

static void outliers_equal_plain_loops(void **state)
{
    (void)state;
    QB_NEEDS_GPU();
    static const size_t shapes[][4] = {{1, 1, 1, 1},      {1, 61, 30, 3},       {7, 64, 257, 0},
                                       {9, 300, 768, 40}, {33, 257, 1000, 700}, {300, 96, 64, 5}};
    for (size_t i = 0; i < QB_COUNT(shapes); i++)
        for (int type = 0; type < 2; type++) {
            if (qb_test_is_small() && i > 2) continue;
            outlier_case t = {shapes[i][0], shapes[i][1], shapes[i][2], shapes[i][3],
                              type ? QB_CUDA_BF16 : QB_CUDA_F32};
            check(&t, 100 * i + (size_t)type);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(outliers_equal_plain_loops)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
