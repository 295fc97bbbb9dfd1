/* tests/cuda/test_cuda_gemm_s8.c - int8 products of every row and of every variant of gemm_s8/sm90
 * against sums on the processor: integers and f32 without an activation bit for bit. Large products
 * are compared in some rows. */
#include "gpu.h"

#include "core/dtype.h"
#include "core/rng.h"
#include "kernels/cuda/gemm_s8_internal.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_CHECKED = 48, CHECK_ALL_MACS = 30 << 20 };

/* What is asked of the epilogue. */
typedef struct kind {
    const char *name;
    qb_cuda_dtype out;
    qb_epilogue_act act;
    bool bias, y, residual, max, row_max;
    int n_segments, x_scale_step;
} kind;

static const kind kinds[] = {
    {"s32", QB_CUDA_S32, QB_EPI_NONE, false, true, false, false, false, 1, 1},
    {"f32, bias", QB_CUDA_F32, QB_EPI_NONE, true, true, false, false, false, 1, 1},
    {"bf16, row max", QB_CUDA_BF16, QB_EPI_NONE, true, true, false, false, true, 1, 1},
    {"bf16, max of 3", QB_CUDA_BF16, QB_EPI_NONE, false, true, false, true, false, 3, 0},
    {"s8 of 3, ReLU", QB_CUDA_S8, QB_EPI_RELU, true, true, false, true, false, 3, 0},
    {"s8", QB_CUDA_S8, QB_EPI_NONE, true, true, false, false, false, 1, 0},
    {"residual", QB_CUDA_F32, QB_EPI_NONE, true, false, true, false, false, 1, 1},
    {"f32 and residual, GELU", QB_CUDA_F32, QB_EPI_GELU, true, true, true, true, true, 2, 1},
    {"bf16, GELU", QB_CUDA_BF16, QB_EPI_GELU, true, true, false, true, true, 1, 1},
    {"s8, GELU", QB_CUDA_S8, QB_EPI_GELU, true, true, false, false, false, 1, 1},
    {"s32 and max", QB_CUDA_S32, QB_EPI_NONE, false, true, false, true, true, 1, 1},
};

typedef struct product {
    size_t m, n, k, k_stride, y_stride, y_bytes; /* y_bytes: of the widest type */
    size_t n_checked, *rows;                     /* rows to compare */
    int8_t *x, *w;
    float *x_scale, *w_scale, *bias, *residual, out_scale[QB_CUDA_SEGMENTS];
    int32_t *acc; /* (n_checked, n) */
    void *x_dev, *w_dev, *x_scale_dev, *w_scale_dev, *bias_dev, *out_scale_dev;
} product;

static int8_t *codes(size_t rows, size_t width, size_t stride, uint64_t seed)
{
    int8_t *x = calloc(rows * stride, 1);
    for (size_t r = 0; r < rows; r++) {
        qb_test_fill_bytes(x + r * stride, width, seed + r);
        for (size_t c = 0; c < width; c++)
            if (x[r * stride + c] == -128) x[r * stride + c] = 127;
    }
    return x;
}

static float *positive(size_t n, float size, uint64_t seed)
{
    float *x = malloc(n * sizeof *x);
    qb_rng_normal_f32(seed, QB_STREAM_TEST, 0, n, size, x);
    for (size_t i = 0; i < n; i++) x[i] = fabsf(x[i]) + size;
    return x;
}

static void choose_rows(product *p)
{
    const bool all = (double)p->m * (double)p->n * (double)p->k <= CHECK_ALL_MACS;
    p->n_checked = all || p->m < MAX_CHECKED ? p->m : MAX_CHECKED;
    p->rows = malloc(p->n_checked * sizeof *p->rows);
    for (size_t i = 0; i < p->n_checked; i++)
        p->rows[i] = p->n_checked == p->m ? i : i * (p->m - 1) / (p->n_checked - 1);
}

static void sum_up(product *p)
{
    p->acc = malloc(p->n_checked * p->n * sizeof *p->acc);
    for (size_t i = 0; i < p->n_checked; i++)
        for (size_t c = 0; c < p->n; c++) {
            const int8_t *x = p->x + p->rows[i] * p->k_stride, *w = p->w + c * p->k_stride;
            int32_t sum = 0;
            for (size_t k = 0; k < p->k; k++) sum += x[k] * w[k];
            p->acc[i * p->n + c] = sum;
        }
}

static product product_make(size_t m, size_t n, size_t k, uint64_t seed)
{
    const float typical = 0.02f * 0.01f * 5300.0f * sqrtf((float)k); /* of |y| */
    product p = {.m = m, .n = n, .k = k, .k_stride = qb_cuda_stride(k)};
    p.y_stride = qb_cuda_stride(n) + (m + k) % 2 * QB_CUDA_ALIGN; /* or wider than it need be */
    p.y_bytes = m * p.y_stride * sizeof(float);
    p.x = codes(m, k, p.k_stride, seed);
    p.w = codes(n, k, p.k_stride, seed + 500000);
    p.x_scale = positive(m, 0.01f, seed + 1);
    p.w_scale = positive(n, 0.005f, seed + 2);
    p.bias = malloc(n * sizeof(float));
    qb_rng_normal_f32(seed + 3, QB_STREAM_TEST, 0, n, 1.0f, p.bias);
    p.residual = malloc(m * p.y_stride * sizeof(float));
    qb_rng_normal_f32(seed + 4, QB_STREAM_TEST, 0, m * p.y_stride, 1.0f, p.residual);
    /* most codes are used; a third is clipped; nothing at all */
    p.out_scale[0] = 3.0f * typical / 127.0f;
    p.out_scale[1] = typical / 127.0f;
    p.out_scale[2] = 0.0f;
    choose_rows(&p);
    sum_up(&p);
    p.x_dev = qb_gpu_upload(p.x, m * p.k_stride);
    p.w_dev = qb_gpu_upload(p.w, n * p.k_stride);
    p.x_scale_dev = qb_gpu_upload(p.x_scale, m * sizeof(float));
    p.w_scale_dev = qb_gpu_upload(p.w_scale, n * sizeof(float));
    p.bias_dev = qb_gpu_upload(p.bias, n * sizeof(float));
    p.out_scale_dev = qb_gpu_upload(p.out_scale, sizeof p.out_scale);
    return p;
}

static void product_free(product *p)
{
    void *host[] = {p->rows, p->x, p->w, p->x_scale, p->w_scale, p->bias, p->residual, p->acc};
    void *dev[] = {p->x_dev,       p->w_dev,    p->x_scale_dev,
                   p->w_scale_dev, p->bias_dev, p->out_scale_dev};
    for (size_t i = 0; i < QB_COUNT(host); i++) free(host[i]);
    for (size_t i = 0; i < QB_COUNT(dev); i++) qb_gpu_free(dev[i]);
}

/* Odd ends too. */
static qb_cuda_segments segments_of(const product *p, const kind *c)
{
    qb_cuda_segments s = {.n = p->n >= 3 ? c->n_segments : 1};
    for (int i = 0; i < s.n; i++) s.end[i] = (int)(p->n * (size_t)(i + 1) / (size_t)s.n);
    return s;
}

static int segment_at(const qb_cuda_segments *s, size_t col)
{
    int i = 0;
    while (col >= (size_t)s->end[i]) i++;
    return i;
}

/* ---- what is right ---- */

static float value(const product *p, const kind *c, size_t i, size_t col)
{
    const float scale = p->x_scale[c->x_scale_step ? p->rows[i] : 0] * p->w_scale[col];
    float y = (float)p->acc[i * p->n + col] * scale;
    if (c->bias) y += p->bias[col];
    const double v = y;
    if (c->act == QB_EPI_GELU)
        return (float)(0.5 * v * (1 + tanh(0.79788456080286535588 * (v + 0.044715 * v * v * v))));
    return c->act == QB_EPI_RELU && y < 0.0f ? 0.0f : y;
}

static int code_of(float z, float scale)
{
    if (scale == 0.0f) return 0;
    const float q = rintf(z / scale);
    return q > 127.0f ? 127 : q < -127.0f ? -127 : (int)q;
}

/* Of GELU: the powers of 2 and reciprocals of the GPU are good to 2 units in the last place; far
 * down the negative tail the rounding of the power's argument counts more, but not in absolute
 * terms. */
static float bound_of(const kind *c, float z)
{
    return c->act == QB_EPI_GELU ? 2e-6f * fabsf(z) + 1e-7f : 0.0f;
}

static bool right_y(const product *p, const kind *c, const void *y, size_t i, size_t col)
{
    const size_t at = p->rows[i] * p->y_stride + col;
    const float z = value(p, c, i, col), bound = bound_of(c, z);
    const qb_cuda_segments s = segments_of(p, c);
    const float scale = p->out_scale[segment_at(&s, col)];
    const int32_t *words = y;
    const float *floats = y;
    const uint16_t *halves = y;
    const int8_t *bytes = y;
    if (c->out == QB_CUDA_S32) return words[at] == p->acc[i * p->n + col];
    if (c->out == QB_CUDA_F32) return fabsf(floats[at] - z) <= bound;
    if (c->out == QB_CUDA_BF16)
        return c->act == QB_EPI_GELU
                   ? fabsf(qb_f32_from_bf16(halves[at]) - z) <= bound + fabsf(z) / 256
                   : halves[at] == qb_bf16_from_f32(z);
    return bytes[at] == code_of(z, scale) || bytes[at] == code_of(z + bound, scale) ||
           bytes[at] == code_of(z - bound, scale);
}

static bool right_residual(const product *p, const kind *c, const float *got, size_t i, size_t col)
{
    const size_t at = p->rows[i] * p->y_stride + col;
    const float z = value(p, c, i, col), want = p->residual[at] + z;
    return fabsf(got[at] - want) <= bound_of(c, z) * 2.0f + (c->act ? 2.4e-7f * fabsf(want) : 0.0f);
}

/* ---- a run ---- */

typedef struct outputs {
    void *y, *residual, *max, *row_max; /* device */
    void *y_host;
    float *residual_host;
    uint32_t max_host[QB_CUDA_SEGMENTS], *row_max_host;
} outputs;

typedef struct way { /* a row, and of sm90 a variant */
    const char *name;
    const qb_cuda_gemm_s8_row *row;
    const qb__gemm_s8_variant *variant;
} way;

#define FAIL_AT(what)                                                                              \
    fail_msg("%s, %s: %s of %zu x %zu x %zu is wrong at row %zu, column %zu", w->name, c->name,    \
             what, p->m, p->n, p->k, p->rows[i], col)

static void check_elements(const product *p, const kind *c, const way *w, const outputs *o)
{
    for (size_t i = 0; i < p->n_checked; i++)
        for (size_t col = 0; col < p->n; col++) {
            if (c->y && !right_y(p, c, o->y_host, i, col)) FAIL_AT("y");
            if (c->residual && !right_residual(p, c, o->residual_host, i, col))
                FAIL_AT("the residual");
        }
}

static float float_of(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static void check_maxima(const product *p, const kind *c, const way *w, const outputs *o)
{
    const qb_cuda_segments s = segments_of(p, c);
    float max[QB_CUDA_SEGMENTS] = {0};
    for (size_t i = 0; i < p->n_checked; i++) {
        float row_max = 0.0f;
        for (size_t col = 0; col < p->n; col++) {
            const float z = fabsf(value(p, c, i, col));
            const int segment = segment_at(&s, col);
            if (z > max[segment]) max[segment] = z;
            if (z > row_max) row_max = z;
        }
        if (!c->row_max) continue;
        if (c->out == QB_CUDA_BF16) row_max = qb_f32_from_bf16(qb_bf16_from_f32(row_max));
        const float bound = c->act && c->out == QB_CUDA_BF16 ? row_max / 128 : bound_of(c, row_max);
        if (!(fabsf(float_of(o->row_max_host[p->rows[i]]) - row_max) <= bound))
            fail_msg("%s, %s: maximum of row %zu of %zu x %zu x %zu: found %g, expected %g",
                     w->name, c->name, p->rows[i], p->m, p->n, p->k,
                     float_of(o->row_max_host[p->rows[i]]), row_max);
    }
    for (int i = 0; c->max && p->n_checked == p->m && i < s.n; i++)
        if (!(fabsf(float_of(o->max_host[i]) - max[i]) <= bound_of(c, max[i])))
            fail_msg("%s, %s: maximum of segment %d of %zu x %zu x %zu: found %g, expected %g",
                     w->name, c->name, i, p->m, p->n, p->k, float_of(o->max_host[i]), max[i]);
}

/* From the width's end in whole copies of 16 bytes on nothing may be written. */
static void check_padding(const product *p, const kind *c, const way *w, const outputs *o)
{
    const size_t elem = qb_cuda_dtype_bytes(c->out), stride = p->y_stride * elem,
                 end = (p->n * elem + 15) / 16 * 16;
    const unsigned char *y = o->y_host;
    for (size_t r = 0; c->y && r < p->m; r++)
        if (end < stride && !qb_gpu_is_poison(y + r * stride + end, stride - end))
            fail_msg("%s, %s: %zu x %zu x %zu writes behind the end of row %zu", w->name, c->name,
                     p->m, p->n, p->k, r);
}

static outputs outputs_make(const product *p, const kind *c)
{
    const size_t bytes = p->m * p->y_stride * qb_cuda_dtype_bytes(c->out);
    const uint32_t none[QB_CUDA_SEGMENTS] = {0};
    outputs o = {.y_host = malloc(bytes),
                 .residual_host = malloc(p->y_bytes),
                 .row_max_host = calloc(p->m, sizeof(uint32_t))};
    if (c->y) o.y = qb_gpu_poison(bytes);
    if (c->residual) o.residual = qb_gpu_upload(p->residual, p->y_bytes);
    if (c->max) o.max = qb_gpu_upload(none, sizeof none);
    if (c->row_max) o.row_max = qb_gpu_upload(o.row_max_host, p->m * sizeof(uint32_t));
    return o;
}

static void outputs_fetch(outputs *o, const product *p, const kind *c)
{
    if (c->y) qb_gpu_fetch(o->y_host, o->y, p->m * p->y_stride * qb_cuda_dtype_bytes(c->out));
    if (c->residual) qb_gpu_fetch(o->residual_host, o->residual, p->y_bytes);
    if (c->max) qb_gpu_fetch(o->max_host, o->max, sizeof o->max_host);
    if (c->row_max) qb_gpu_fetch(o->row_max_host, o->row_max, p->m * sizeof(uint32_t));
}

static void outputs_free(outputs *o)
{
    qb_gpu_free(o->y);
    qb_gpu_free(o->residual);
    qb_gpu_free(o->max);
    qb_gpu_free(o->row_max);
    free(o->y_host);
    free(o->residual_host);
    free(o->row_max_host);
}

/* False where the way refuses. */
static bool run(const product *p, const kind *c, const way *w)
{
    outputs o = outputs_make(p, c);
    const qb_cuda_gemm_s8_args args = {.m = p->m,
                                       .n = p->n,
                                       .k = p->k,
                                       .x = p->x_dev,
                                       .x_stride = p->k_stride,
                                       .w = p->w_dev,
                                       .w_stride = p->k_stride,
                                       .x_scale = p->x_scale_dev,
                                       .x_scale_step = (size_t)c->x_scale_step,
                                       .w_scale = p->w_scale_dev,
                                       .bias = c->bias ? p->bias_dev : NULL,
                                       .act = c->act,
                                       .out = c->out,
                                       .y = o.y,
                                       .y_stride = p->y_stride,
                                       .residual = o.residual,
                                       .residual_stride = p->y_stride,
                                       .out_scale = p->out_scale_dev,
                                       .max_bits = o.max,
                                       .row_max_bits = o.row_max,
                                       .segments = segments_of(p, c),
                                       .w_is_constant = p->n % 2 == 0};
    const bool takes = !w->row->refuse(&args);
    if (takes) {
        QB_CHECK_OK(w->row->run(&args, NULL));
        outputs_fetch(&o, p, c);
        check_elements(p, c, w, &o);
        check_maxima(p, c, w, &o);
        check_padding(p, c, w, &o);
    }
    outputs_free(&o);
    return takes;
}

/* ---- the ways ---- */

enum { MAX_WAYS = 64 };

static size_t find_ways(way *ways)
{
    size_t n = 0;
    const qb__gemm_s8_variant *v;
    for (const qb_cuda_gemm_s8_row *row = qb_cuda_gemm_s8_kernels; row->info.name; row++) {
        const char *why = qb_kernel_refusal(&row->info);
        if (why) {
            printf("%s is left out: %s\n", row->info.name, why);
            continue;
        }
        ways[n++] = (way){row->info.name, row, NULL};
        for (size_t i = 0; row->run == qb__gemm_s8_run_sm90 && (v = qb__gemm_s8_variant_at(i)); i++)
            ways[n++] = (way){v->name, row, v};
    }
    assert_true(n > 0 && n <= MAX_WAYS);
    return n;
}

static void try_ways(const product *p, const kind *list, size_t n_kinds, size_t kind_step)
{
    way ways[MAX_WAYS];
    const size_t n_ways = find_ways(ways);
    for (size_t i = 0; i < n_ways; i++) {
        const qb__gemm_s8_variant *v = ways[i].variant;
        if (v && (p->k + 127) / 128 < (size_t)v->split) continue;
        qb__gemm_s8_force((qb__gemm_s8_plan){v, 3});
        for (size_t j = i % kind_step; j < n_kinds; j += kind_step) run(p, &list[j], &ways[i]);
    }
    qb__gemm_s8_force((qb__gemm_s8_plan){NULL, 0});
}

static void every_way_and_epilogue(void **state)
{
    (void)state;
    QB_NEEDS_GPU();
    static const size_t shapes[][3] = {
        {128, 256, 128}, {300, 511, 200}, {257, 387, 777}, {130, 259, 200}};
    const bool small = qb_test_is_small();
    for (size_t i = small ? 3 : 0; i < (small ? 4 : 3); i++) {
        product p = product_make(shapes[i][0], shapes[i][1], shapes[i][2], 10 * i + 7);
        try_ways(&p, kinds, QB_COUNT(kinds), 1);
        product_free(&p);
    }
}

static void every_way_and_odd_shapes(void **state)
{
    (void)state;
    QB_NEEDS_GPU();
    static const size_t shapes[][3] = {
        {1, 1, 1},      {2, 3, 65},      {15, 299, 7},    {16, 512, 128}, {17, 65, 200},
        {63, 17, 129},  {64, 301, 511},  {65, 64, 64},    {127, 257, 33}, {129, 129, 191},
        {255, 31, 768}, {64, 192, 2048}, {1024, 127, 99}, {1, 2304, 768}, {130, 100, 4096},
    };
    for (size_t i = 0; i < QB_COUNT(shapes); i++) {
        const bool small = qb_test_is_small();
        if (small && i % 6 != 2) continue;
        product p = product_make(shapes[i][0], shapes[i][1], shapes[i][2], 100 * i + 77);
        try_ways(&p, kinds, QB_COUNT(kinds), small ? QB_COUNT(kinds) : 4);
        product_free(&p);
    }
}

static void every_way_and_large_shapes(void **state)
{
    (void)state;
    QB_NEEDS_GPU();
    if (qb_test_is_small()) QB_SKIP("large shapes under a sanitiser");
    static const size_t shapes[][3] = {{4099, 300, 511}, {16384, 768, 512}, {2048, 2304, 768}};
    for (size_t i = 0; i < QB_COUNT(shapes); i++) {
        product p = product_make(shapes[i][0], shapes[i][1], shapes[i][2], 1000 * i + 777);
        try_ways(&p, kinds, 7, 5);
        product_free(&p);
    }
}

static void extreme_codes_and_scales(void **state)
{
    (void)state;
    QB_NEEDS_GPU();
    static const float scales[] = {1e-42f, 1e-38f, 3e-30f, 1.0f, 1e20f, 1e33f};
    for (size_t i = 0; i < QB_COUNT(scales); i += qb_test_is_small() ? 5 : 1) {
        product p = product_make(65, 130, 300, i);
        memset(p.x, 127, p.k); /* the largest sums, both signs */
        memset(p.w, 127, p.k);
        memset(p.w + p.k_stride, -127, p.k);
        for (size_t j = 0; j < QB_CUDA_SEGMENTS; j++) p.out_scale[j] = scales[i];
        for (size_t c = 0; c < p.n; c++) { /* quotients over the whole range of codes */
            p.w_scale[c] = scales[i] < 1e-37f ? scales[i] : scales[i] * 0.01f * p.w_scale[c];
            p.bias[c] *= scales[i];
        }
        free(p.acc);
        sum_up(&p);
        qb_gpu_free(p.x_dev);
        qb_gpu_free(p.w_dev);
        qb_gpu_free(p.w_scale_dev);
        qb_gpu_free(p.bias_dev);
        qb_gpu_free(p.out_scale_dev);
        p.x_dev = qb_gpu_upload(p.x, p.m * p.k_stride);
        p.w_dev = qb_gpu_upload(p.w, p.n * p.k_stride);
        p.w_scale_dev = qb_gpu_upload(p.w_scale, p.n * sizeof(float));
        p.bias_dev = qb_gpu_upload(p.bias, p.n * sizeof(float));
        p.out_scale_dev = qb_gpu_upload(p.out_scale, sizeof p.out_scale);
        try_ways(&p, kinds + 4, 2, qb_test_is_small() ? 2 : 1);
        product_free(&p);
    }
}

/* ---- keys and values in a cache ---- */

typedef struct cached {
    size_t n_tokens, n_positions, width; /* positions: of a sequence of the cache */
    size_t y_elems, cache_elems;
    uint16_t *whole, *y, *cache[2]; /* whole: all columns in y */
} cached;

static void run_cached(const product *p, const way *w, cached *c)
{
    void *y_dev = qb_gpu_poison(c->y_elems * 2), *whole_dev = qb_gpu_poison(c->y_elems * 2);
    void *k_dev = qb_gpu_poison(c->cache_elems * 2), *v_dev = qb_gpu_poison(c->cache_elems * 2);
    qb_cuda_gemm_s8_args args = {.m = p->m,
                                 .n = p->n,
                                 .k = p->k,
                                 .x = p->x_dev,
                                 .x_stride = p->k_stride,
                                 .w = p->w_dev,
                                 .w_stride = p->k_stride,
                                 .x_scale = p->x_scale_dev,
                                 .x_scale_step = 1,
                                 .w_scale = p->w_scale_dev,
                                 .bias = p->bias_dev,
                                 .out = QB_CUDA_BF16,
                                 .y = whole_dev,
                                 .y_stride = p->y_stride,
                                 .segments = {1, {(int)p->n}}};
    QB_CHECK_OK(w->row->run(&args, NULL));
    args.y = y_dev;
    args.cache = (qb_cuda_gemm_s8_cache){.y = {k_dev, v_dev},
                                         .n_tokens = c->n_tokens,
                                         .first = p->n - 2 * c->width,
                                         .width = c->width,
                                         .stride = c->width + 8,
                                         .batch_stride = c->n_positions * (c->width + 8)};
    assert_null(w->row->refuse(&args));
    QB_CHECK_OK(w->row->run(&args, NULL));
    qb_gpu_fetch(c->whole, whole_dev, c->y_elems * 2);
    qb_gpu_fetch(c->y, y_dev, c->y_elems * 2);
    qb_gpu_fetch(c->cache[0], k_dev, c->cache_elems * 2);
    qb_gpu_fetch(c->cache[1], v_dev, c->cache_elems * 2);
    void *dev[] = {y_dev, whole_dev, k_dev, v_dev};
    for (size_t i = 0; i < QB_COUNT(dev); i++) qb_gpu_free(dev[i]);
}

/* What the cache and y must hold, and nothing written beside. */
static void check_cached(const product *p, const way *w, const cached *c)
{
    const size_t n_q = p->n - 2 * c->width, stride = c->width + 8;
    for (size_t m = 0; m < p->m; m++)
        for (size_t col = 0; col < p->y_stride; col++) {
            const size_t at = m * p->y_stride + col;
            if (col < n_q ? c->y[at] != c->whole[at] : !qb_gpu_is_poison(&c->y[at], 2))
                fail_msg("%s: y of (%zu, %zu) is wrong", w->name, m, col);
        }
    for (size_t i = 0; i < c->cache_elems; i++) {
        const size_t position = i / stride % c->n_positions, sequence = i / stride / c->n_positions,
                     m = sequence * c->n_tokens + position, col = i % stride;
        const bool inside = position < c->n_tokens && m < p->m && col < c->width;
        for (size_t s = 0; s < 2; s++) {
            const uint16_t *got = &c->cache[s][i];
            if (inside ? *got != c->whole[m * p->y_stride + n_q + s * c->width + col]
                       : !qb_gpu_is_poison(got, sizeof *got))
                fail_msg("%s: cache %zu: position %zu of sequence %zu, column %zu is wrong",
                         w->name, s, position, sequence, col);
        }
    }
}

static void keys_and_values_go_to_a_cache(void **state)
{
    (void)state;
    QB_NEEDS_GPU();
    static const size_t shapes[][4] = {/* sequences, tokens, n_q, width */
                                       {3, 64, 128, 64},
                                       {2, 192, 192, 192},
                                       {1, 512, 320, 320}};
    way ways[MAX_WAYS];
    const size_t n_ways = find_ways(ways);
    for (size_t i = 0; i < (qb_test_is_small() ? 1 : QB_COUNT(shapes)); i++) {
        const size_t *s = shapes[i];
        product p = product_make(s[0] * s[1], s[2] + 2 * s[3], 512, 31 * i + 5);
        cached c = {.n_tokens = s[1],
                    .n_positions = s[1] + 5,
                    .width = s[3],
                    .y_elems = p.m * p.y_stride,
                    .cache_elems = (s[0] + 1) * (s[1] + 5) * (s[3] + 8)};
        uint16_t **buffers[] = {&c.whole, &c.y, &c.cache[0], &c.cache[1]};
        for (size_t b = 0; b < 4; b++)
            *buffers[b] = malloc((b < 2 ? c.y_elems : c.cache_elems) * sizeof(uint16_t));
        for (size_t j = 0; j < n_ways; j++) {
            if (!ways[j].variant) continue;
            qb__gemm_s8_force((qb__gemm_s8_plan){ways[j].variant, 3});
            run_cached(&p, &ways[j], &c);
            check_cached(&p, &ways[j], &c);
        }
        qb__gemm_s8_force((qb__gemm_s8_plan){NULL, 0});
        for (size_t b = 0; b < 4; b++) free(*buffers[b]);
        product_free(&p);
    }
}

static void caches_that_do_not_fit_are_refused(void **state)
{
    (void)state;
    QB_NEEDS_GPU();
    qb_cuda_gemm_s8_args args = {
        .m = 200,
        .n = 192,
        .k = 64,
        .x_stride = 64,
        .w_stride = 64,
        .out = QB_CUDA_BF16,
        .segments = {1, {192}},
        .cache = {.n_tokens = 100, .first = 64, .width = 64, .stride = 64, .batch_stride = 6400}};
    assert_non_null(qb_cuda_gemm_s8_refusal(&args)); /* a slice would span two sequences */
    args.m = 256;
    args.cache.n_tokens = 128;
    args.cache.first = 32;
    args.cache.width = 80;
    assert_non_null(qb_cuda_gemm_s8_refusal(&args)); /* or keys and values */
    args.cache.first = 0;
    args.cache.width = 64;
    assert_non_null(qb_cuda_gemm_s8_refusal(&args)); /* columns are left over */
    args.cache.first = 64;
    args.out = QB_CUDA_F32;
    assert_non_null(qb_cuda_gemm_s8_refusal(&args));
}

static void shapes_have_a_plan(void **state)
{
    (void)state;
    QB_NEEDS_GPU();
    static const size_t m[] = {1, 64, 500, 8192, 100000}, nk[] = {1, 64, 768, 2048, 50304};
    for (size_t i = 0; i < QB_COUNT(m); i++)
        for (size_t j = 0; j < QB_COUNT(nk); j++)
            for (size_t l = 0; l < QB_COUNT(nk); l++) {
                const qb_cuda_gemm_s8_args args = {.m = m[i], .n = nk[j], .k = nk[l]};
                const qb__gemm_s8_plan plan = qb__gemm_s8_choose(&args);
                assert_non_null(plan.variant);
                assert_true(plan.raster > 0);
                assert_true((nk[l] + 127) / 128 >= (size_t)plan.variant->split);
            }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_way_and_epilogue),
        cmocka_unit_test(every_way_and_odd_shapes),
        cmocka_unit_test(every_way_and_large_shapes),
        cmocka_unit_test(extreme_codes_and_scales),
        cmocka_unit_test(keys_and_values_go_to_a_cache),
        cmocka_unit_test(shapes_have_a_plan),
        cmocka_unit_test(caches_that_do_not_fit_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
