/* tests/cuda/test_cuda_head_gates.c - gated attention on the GPU against (2) of model/arch.h in
 * double: every norm, odd widths and heads, both types. */
#include "gpu.h"

#include "core/dtype.h"
#include "core/rng.h"
#include "kernels/cuda/head_gates.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define U 0x1p-24

typedef struct gates_case {
    size_t m, width, n_heads, head_dim;
    qb_norm_kind norm;
    qb_cuda_dtype type;
} gates_case;

static float *draw(uint64_t seed, size_t n, float deviation)
{
    float *x = malloc(n * sizeof *x);
    assert_non_null(x);
    qb_rng_normal_f32(seed, QB_STREAM_TEST, 0, n, deviation, x);
    return x;
}

/* The operands on the host; y as the type has it. */
typedef struct operands {
    float *x, *gain, *bias, *w, *gate_bias, *y;
    size_t x_stride, y_stride;
} operands;

static operands operands_create(const gates_case *t, uint64_t seed)
{
    operands o = {.x_stride = qb_cuda_stride(t->width),
                  .y_stride = qb_cuda_stride(t->n_heads * t->head_dim)};
    o.x = draw(seed, t->m * o.x_stride, 2);
    o.gain = draw(seed + 1, t->width, 1);
    o.bias = draw(seed + 2, t->width, 0.3f);
    o.w = draw(seed + 3, t->n_heads * t->width, 1 / sqrtf((float)t->width));
    o.gate_bias = draw(seed + 4, t->n_heads, 1);
    o.y = draw(seed + 5, t->m * o.y_stride, 1);
    for (size_t i = 0; t->type == QB_CUDA_BF16 && i < t->m * o.y_stride; i++)
        o.y[i] = qb_f32_from_bf16(qb_bf16_from_f32(o.y[i]));
    return o;
}

static void operands_destroy(operands *o)
{
    float *const all[] = {o->x, o->gain, o->bias, o->w, o->gate_bias, o->y};
    for (size_t i = 0; i < QB_COUNT(all); i++) free(all[i]);
}

/* The gate in double, and how far f32 sums over the width in 32 chains may be from it: a gate moves
 * by a quarter of what its argument does. */
static double gate_of(const gates_case *t, const operands *o, size_t row, size_t h, double *error)
{
    const float *x = o->x + row * o->x_stride, *w = o->w + h * t->width;
    double mean = 0, square = 0, sum = o->gate_bias[h], size = fabs(sum), n = (double)t->width;
    for (size_t i = 0; t->norm == QB_NORM_LAYERNORM && i < t->width; i++) mean += x[i] / n;
    for (size_t i = 0; i < t->width; i++) square += (x[i] - mean) * (x[i] - mean) / n;
    for (size_t i = 0; i < t->width; i++) {
        double v = (x[i] - mean) / sqrt(square + 1e-5);
        v *= (double)o->gain[t->norm == QB_NORM_RMSNORM_SINGLE ? 0 : i];
        if (t->norm == QB_NORM_LAYERNORM) v += (double)o->bias[i];
        sum += v * w[i];
        size += fabs(v * w[i]);
    }
    *error = 0.25 * (n / 16 + 100) * U * size + 4 * U;
    return 1 / (1 + exp(-sum));
}

/* y before and after; the padding between the rows stays as it was. */
static void compare(const gates_case *t, const operands *o, const char *got)
{
    for (size_t i = 0; i < t->m * o->y_stride; i++) {
        size_t row = i / o->y_stride, at = i % o->y_stride;
        float y;
        if (t->type == QB_CUDA_F32)
            memcpy(&y, got + i * 4, 4);
        else {
            uint16_t half;
            memcpy(&half, got + i * 2, 2);
            y = qb_f32_from_bf16(half);
        }
        if (at >= t->n_heads * t->head_dim) {
            assert_true(y == o->y[i]);
            continue;
        }
        double error, want = o->y[i] * gate_of(t, o, row, at / t->head_dim, &error);
        double bound = error * fabs(o->y[i]) +
                       (t->type == QB_CUDA_BF16 ? 0x1.02p-8 : 2 * U) * fabs(want) + 1e-38;
        if (!(fabs(y - want) <= bound))
            fail_msg("norm %d type %d width %zu heads %zu x %zu at (%zu, %zu): %.8g, not %.8g "
                     "(bound %.2g)",
                     t->norm, t->type, t->width, t->n_heads, t->head_dim, row, at, y, want, bound);
    }
}

static void check(const gates_case *t, uint64_t seed)
{
    operands o = operands_create(t, seed);
    size_t elem = qb_cuda_dtype_bytes(t->type), n = t->m * o.y_stride;
    char *y = malloc(n * elem);
    assert_non_null(y);
    for (size_t i = 0; i < n; i++) {
        uint16_t half = qb_bf16_from_f32(o.y[i]);
        memcpy(y + i * elem, elem == 4 ? (const void *)&o.y[i] : (const void *)&half, elem);
    }
    float *x = qb_gpu_upload(o.x, t->m * o.x_stride * sizeof *x);
    float *gain = qb_gpu_upload(o.gain, t->width * sizeof *gain);
    float *bias = qb_gpu_upload(o.bias, t->width * sizeof *bias);
    float *w = qb_gpu_upload(o.w, t->n_heads * t->width * sizeof *w);
    float *gate_bias = qb_gpu_upload(o.gate_bias, t->n_heads * sizeof *gate_bias);
    void *y_dev = qb_gpu_upload(y, n * elem);
    qb_cuda_head_gates_args args = {.m = t->m,
                                    .width = t->width,
                                    .n_heads = t->n_heads,
                                    .head_dim = t->head_dim,
                                    .x = x,
                                    .x_stride = o.x_stride,
                                    .norm = t->norm,
                                    .gain = gain,
                                    .bias = t->norm == QB_NORM_LAYERNORM ? bias : NULL,
                                    .eps = 1e-5f,
                                    .gate_w = w,
                                    .gate_bias = gate_bias,
                                    .type = t->type,
                                    .y = y_dev,
                                    .y_stride = o.y_stride};
    QB_CHECK_OK(qb_cuda_head_gates(&args, NULL));
    qb_gpu_fetch(y, y_dev, n * elem);
    compare(t, &o, y);
    void *const blocks[] = {x, gain, bias, w, gate_bias, y_dev};
    for (size_t i = 0; i < QB_COUNT(blocks); i++) qb_gpu_free(blocks[i]);
    free(y);
    operands_destroy(&o);
}

static void gates_equal_the_formula(void **state)
{
    (void)state;
    QB_NEEDS_GPU();
    static const size_t widths[] = {1, 30, 64, 257, 768, 2048};
    static const size_t heads[][2] = {{1, 5}, {3, 10}, {8, 64}, {16, 128}, {33, 16}};
    for (size_t i = 0; i < QB_COUNT(widths); i++)
        for (size_t h = 0; h < QB_COUNT(heads); h++) {
            if (qb_test_is_small() && (i + h) % QB_COUNT(heads)) continue;
            for (int k = 0; k < 2 * QB_NORM_COUNT; k++) {
                gates_case t = {1 + (i + h) % 7,       widths[i],
                                heads[h][0],           heads[h][1],
                                (qb_norm_kind)(k / 2), k % 2 ? QB_CUDA_BF16 : QB_CUDA_F32};
                check(&t, 10 * i + h);
            }
        }
}

static void too_many_heads_are_refused(void **state)
{
    (void)state;
    QB_NEEDS_GPU();
    qb_cuda_head_gates_args args = {.m = 1, .n_heads = 8193};
    assert_int_equal(qb_cuda_head_gates(&args, NULL), QB_ERR_UNSUPPORTED);
    args.m = 0;
    QB_CHECK_OK(qb_cuda_head_gates(&args, NULL)); /* no rows are no work */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gates_equal_the_formula),
        cmocka_unit_test(too_many_heads_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
