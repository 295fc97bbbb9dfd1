/* tests/cuda/test_cuda_pointwise.c - the passes between two products against the reference rows.
 *
 * Floats have a bound. Codes and scales have none: they must be the reference's for the very values
 * that the kernel holds, which the same call stores when it is asked for f32. */
#include "gpu.h"

#include "core/dtype.h"
#include "core/memory.h"
#include "core/rng.h"
#include "kernels/cuda/pointwise.h"
#include "kernels/pointwise_internal.h"
#include "kernels/quantize_internal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- matrices ---- */

typedef struct matrix {
    size_t m, width, stride;
    qb_cuda_dtype type;
    float *host; /* (m, stride), what the device holds, as f32 */
    void *dev;
} matrix;

static float as_stored(float x, qb_cuda_dtype type)
{
    return type == QB_CUDA_BF16 ? qb_f32_from_bf16(qb_bf16_from_f32(x)) : x;
}

static void *upload_as(const float *x, size_t n, qb_cuda_dtype type)
{
    if (type == QB_CUDA_F32) return qb_gpu_upload(x, n * sizeof *x);
    uint16_t *half = malloc(n * sizeof *half);
    for (size_t i = 0; i < n; i++) half[i] = qb_bf16_from_f32(x[i]);
    void *dev = qb_gpu_upload(half, n * sizeof *half);
    free(half);
    return dev;
}

static float *fetch_as_f32(const void *dev, size_t n, qb_cuda_dtype type)
{
    float *x = malloc(n * sizeof *x);
    if (type == QB_CUDA_F32) {
        qb_gpu_fetch(x, dev, n * sizeof *x);
        return x;
    }
    uint16_t *half = malloc(n * sizeof *half);
    qb_gpu_fetch(half, dev, n * sizeof *half);
    for (size_t i = 0; i < n; i++) x[i] = qb_f32_from_bf16(half[i]);
    free(half);
    return x;
}

/* Random rows of different sizes; row 1 is 0, row 2 has a NaN. Padding is junk. */
static matrix matrix_make(size_t m, size_t width, qb_cuda_dtype type, uint64_t seed)
{
    matrix a = {m, width, qb_cuda_stride(width), type, NULL, NULL};
    a.host = malloc(m * a.stride * sizeof *a.host);
    qb_test_fill_f32(a.host, m * a.stride, seed);
    for (size_t i = 0; i < m; i++)
        for (size_t c = 0; c < a.stride; c++) {
            float *x = &a.host[i * a.stride + c];
            if (i == 1) *x = 0.0f;
            if (i == 2 && c == width / 2) *x = NAN;
            if (i % 7 == 5) *x *= 1e-3f;
            *x = as_stored(*x, type);
        }
    a.dev = upload_as(a.host, m * a.stride, type);
    return a;
}

static void matrix_free(matrix *a)
{
    qb_gpu_free(a->dev);
    free(a->host);
}

static bool same_bits(float a, float b)
{
    return qb_f32_bits(a) == qb_f32_bits(b) || (isnan(a) && isnan(b));
}

/* ---- stages ---- */

typedef struct stage_case {
    qb_stage_kind kind;
    bool fake;
    qb_cuda_dtype type;
} stage_case;
static const stage_case stages[] = {
    {QB_STAGE_TOKEN, false, QB_CUDA_F32},   {QB_STAGE_TOKEN, true, QB_CUDA_F32},
    {QB_STAGE_TOKEN, true, QB_CUDA_BF16},   {QB_STAGE_TENSOR, false, QB_CUDA_F32},
    {QB_STAGE_TENSOR, true, QB_CUDA_BF16},  {QB_STAGE_STATIC, false, QB_CUDA_F32},
    {QB_STAGE_STATIC, true, QB_CUDA_F32},   {QB_STAGE_CHANNEL, false, QB_CUDA_F32},
    {QB_STAGE_CHANNEL, true, QB_CUDA_BF16}, {QB_STAGE_FLOAT, false, QB_CUDA_BF16},
};

/* Each check takes every third stage, by chance which third: a device that is shared, or watched by
 * a sanitiser, waits long at each of the many small calls. */
static size_t n_checks;

static bool is_turn(size_t stage)
{
    return (stage + qb_rng_u32(9, QB_STREAM_TEST, n_checks)) % 3 == 0;
}

typedef struct staged {
    qb_cuda_stage stage;
    size_t m, width;
    float *given; /* scales of STATIC and CHANNEL */
} staged;

static staged staged_make(stage_case c, size_t m, size_t width)
{
    staged s = {{.kind = c.kind, .fake = c.fake, .type = c.type, .stride = qb_cuda_stride(width)},
                m,
                width,
                NULL};
    size_t n = m * s.stage.stride, n_scales = c.kind == QB_STAGE_CHANNEL ? width : m;
    if (c.kind == QB_STAGE_FLOAT || c.fake)
        s.stage.y = qb_gpu_poison(n * qb_cuda_dtype_bytes(c.type));
    else
        s.stage.q = qb_gpu_poison(n);
    s.given = malloc(n_scales * sizeof *s.given);
    for (size_t i = 0; i < n_scales; i++)
        s.given[i] = i == 3 ? 0.0f : 0.01f + 0.001f * (float)(i % 9);
    s.stage.scale = c.kind == QB_STAGE_CHANNEL || c.kind == QB_STAGE_STATIC
                        ? qb_gpu_upload(s.given, n_scales * sizeof *s.given)
                        : qb_gpu_poison(n_scales * sizeof *s.given);
    s.stage.max_bits = qb_gpu_poison(sizeof(uint32_t));
    s.stage.row_stats = qb_gpu_poison(2 * m * sizeof(float));
    return s;
}

static void staged_free(staged *s)
{
    qb_gpu_free(s->stage.y);
    qb_gpu_free(s->stage.q);
    qb_gpu_free(s->stage.scale);
    qb_gpu_free(s->stage.max_bits);
    qb_gpu_free(s->stage.row_stats);
    free(s->given);
}

/* The scales that the values y ask for; checked against what the kernel wrote. */
static float *expect_scales(const staged *s, const float *y, const char *what)
{
    size_t n = s->stage.kind == QB_STAGE_TENSOR ? 1 : s->m;
    float *want = malloc(s->m * sizeof *want), *got = malloc(n * sizeof *got), all = 0.0f;
    for (size_t i = 0; i < s->m; i++) {
        float max_abs = 0.0f;
        for (size_t c = 0; c < s->width; c++)
            max_abs = qb__max_abs(max_abs, y[i * s->stage.stride + c]);
        want[i] = max_abs / 127.0f;
        all = max_abs > all ? max_abs : all;
    }
    for (size_t i = 0; i < s->m; i++) {
        if (s->stage.kind == QB_STAGE_TENSOR) want[i] = all / 127.0f;
        if (s->stage.kind == QB_STAGE_STATIC) want[i] = s->given[0];
    }
    if (s->stage.kind == QB_STAGE_TOKEN || s->stage.kind == QB_STAGE_TENSOR) {
        qb_gpu_fetch(got, s->stage.scale, n * sizeof *got);
        for (size_t i = 0; i < n; i++)
            if (!same_bits(got[i], want[i]))
                fail_msg("%s: scale %zu is %a, expected %a", what, i, got[i], want[i]);
    }
    free(got);
    return want;
}

static void check_stored(const staged *s, const float *y, const float *scales, const char *what)
{
    size_t n = s->m * s->stage.stride;
    float *got = fetch_as_f32(s->stage.y, n, s->stage.type);
    for (size_t i = 0; i < s->m; i++)
        for (size_t c = 0; c < s->stage.stride; c++) {
            size_t at = i * s->stage.stride + c;
            float want = 0.0f;
            if (c < s->width && s->stage.kind == QB_STAGE_FLOAT) want = y[at];
            if (c < s->width && s->stage.kind != QB_STAGE_FLOAT) {
                float scale = s->stage.kind == QB_STAGE_CHANNEL ? s->given[c] : scales[i];
                want = (float)qb__code_s8(y[at], scale) * scale;
            }
            want = as_stored(want, s->stage.type);
            if (!same_bits(got[at], want))
                fail_msg("%s: (%zu, %zu) is %a, expected %a of %a", what, i, c, got[at], want,
                         y[at]);
        }
    free(got);
}

static void check_codes(const staged *s, const float *y, const float *scales, const char *what)
{
    size_t n = s->m * s->stage.stride;
    int8_t *got = malloc(n);
    qb_gpu_fetch(got, s->stage.q, n);
    for (size_t i = 0; i < s->m; i++)
        for (size_t c = 0; c < s->stage.stride; c++) {
            size_t at = i * s->stage.stride + c;
            float scale = s->stage.kind != QB_STAGE_CHANNEL ? scales[i]
                          : c < s->width                    ? s->given[c]
                                                            : 0.0f;
            int want = c < s->width ? qb__code_s8(y[at], scale) : 0;
            if (got[at] != want)
                fail_msg("%s: code (%zu, %zu) is %d, expected %d of %a / %a", what, i, c, got[at],
                         want, y[at], scale);
        }
    free(got);
}

/* y (m, stride): the f32 values of the same call. */
static void check_stage(const staged *s, const float *y, const char *what)
{
    char name[160];
    snprintf(name, sizeof name, "%s stage %d fake %d type %d", what, (int)s->stage.kind,
             s->stage.fake, (int)s->stage.type);
    float *scales = s->stage.kind == QB_STAGE_FLOAT ? NULL : expect_scales(s, y, name);
    if (s->stage.y)
        check_stored(s, y, scales, name);
    else
        check_codes(s, y, scales, name);
    free(scales);
}

/* ---- pending outputs ---- */

enum { PENDING_NONE, PENDING_PLAIN, PENDING_DYNAMIC, PENDING_STATIC, N_PENDING };

typedef struct pending_case {
    matrix y;
    qb_cuda_pending pending;
    void *dev;   /* scales */
    float *want; /* (m, stride) requantised, as the CPU does it */
} pending_case;

static pending_case pending_make(int kind, size_t m, size_t width, int n_segments,
                                 qb_cuda_dtype type, uint64_t seed)
{
    pending_case p = {.y = matrix_make(m, width, type, seed)};
    qb_cuda_segments segments = {.n = n_segments};
    float max_abs[QB_CUDA_SEGMENTS] = {0.0f}, scale[QB_CUDA_SEGMENTS];
    for (int i = 0; i < n_segments; i++)
        segments.end[i] = (int)(width * (size_t)(i + 1) / (size_t)n_segments);
    p.pending =
        (qb_cuda_pending){.y = p.y.dev, .type = type, .stride = p.y.stride, .segments = segments};
    p.want = malloc(m * p.y.stride * sizeof *p.want);
    for (size_t i = 0; i < m * p.y.stride; i++) {
        int c = (int)(i % p.y.stride), segment = 0;
        while (segment < n_segments - 1 && c >= segments.end[segment]) segment++;
        if (c < (int)width) max_abs[segment] = qb__max_abs(max_abs[segment], p.y.host[i]);
    }
    for (int i = 0; i < n_segments; i++)
        scale[i] = kind == PENDING_STATIC ? 0.03f / (float)(i + 1) : max_abs[i] / 127.0f;
    for (size_t i = 0; i < m * p.y.stride; i++) {
        int c = (int)(i % p.y.stride), segment = 0;
        while (segment < n_segments - 1 && c >= segments.end[segment]) segment++;
        p.want[i] = p.y.host[i];
        if (kind > PENDING_PLAIN)
            p.want[i] = (float)qb__code_s8(p.y.host[i], scale[segment]) * scale[segment];
    }
    if (kind == PENDING_DYNAMIC)
        p.pending.max_bits = p.dev = qb_gpu_upload(max_abs, sizeof max_abs);
    if (kind == PENDING_STATIC) p.pending.scale = p.dev = qb_gpu_upload(scale, sizeof scale);
    return p;
}

static void pending_free(pending_case *p)
{
    qb_gpu_free(p->dev);
    matrix_free(&p->y);
    free(p->want);
}

/* ---- norm ---- */

typedef struct norm_case {
    qb_cuda_norm_args args;
    matrix x;
    pending_case pending;
    float *gain, *bias, *sum; /* host; sum = x + pending */
} norm_case;

static norm_case norm_case_make(qb_norm_kind norm, size_t m, size_t width, int pending,
                                qb_cuda_dtype type, int n_segments)
{
    norm_case t = {.x = matrix_make(m, width, QB_CUDA_F32, 11 + width)};
    size_t n = m * t.x.stride;
    t.gain = malloc(width * sizeof *t.gain);
    t.bias = malloc(width * sizeof *t.bias);
    t.sum = malloc(n * sizeof *t.sum);
    qb_test_fill_f32(t.gain, width, 3);
    qb_test_fill_f32(t.bias, width, 4);
    memcpy(t.sum, t.x.host, n * sizeof *t.sum);
    if (pending) {
        t.pending = pending_make(pending, m, width, n_segments, type, 5 + width);
        for (size_t i = 0; i < n; i++) t.sum[i] = t.x.host[i] + t.pending.want[i];
    }
    t.args = (qb_cuda_norm_args){.m = m,
                                 .width = width,
                                 .x_stride = t.x.stride,
                                 .pending = t.pending.pending,
                                 .norm = norm,
                                 .gain = qb_gpu_upload(t.gain, width * sizeof *t.gain),
                                 .eps = 1e-5f};
    if (norm == QB_NORM_LAYERNORM) t.args.bias = qb_gpu_upload(t.bias, width * sizeof *t.bias);
    return t;
}

static void norm_case_free(norm_case *t)
{
    qb_gpu_free((void *)t->args.gain);
    qb_gpu_free((void *)t->args.bias);
    matrix_free(&t->x);
    if (t->pending.y.dev) pending_free(&t->pending);
    free(t->gain);
    free(t->bias);
    free(t->sum);
}

/* On a fresh copy of x, which must come out as the sum; the words to be cleared are. */
static void norm_run(norm_case *t, const qb_cuda_stage *stage)
{
    size_t n = t->x.m * t->x.stride;
    uint32_t *words = malloc(t->x.m * sizeof *words);
    t->args.x = qb_gpu_upload(t->x.host, n * sizeof(float));
    t->args.stage = *stage;
    t->args.cleared = qb_gpu_poison(t->x.m * sizeof *words);
    QB_CHECK_OK(qb_cuda_add_norm(&t->args, NULL));
    qb_gpu_fetch(words, t->args.cleared, t->x.m * sizeof *words);
    for (size_t i = 0; i < t->x.m; i++) assert_int_equal(words[i], 0);
    qb_gpu_free(t->args.cleared);
    t->args.cleared = NULL;
    free(words);
    float *x = fetch_as_f32(t->args.x, n, QB_CUDA_F32);
    for (size_t i = 0; i < n; i++)
        if (i % t->x.stride < t->x.width && !same_bits(x[i], t->sum[i]))
            fail_msg("norm %d, %zu x %zu: x[%zu] is %a, expected %a", (int)t->args.norm, t->x.m,
                     t->x.width, i, x[i], t->sum[i]);
    free(x);
    qb_gpu_free(t->args.x);
}

/* Sums over a tree of f32 are good to about log2(width) + 4 roundings of the values' size. */
static void check_norm_floats(const norm_case *t, const float *y)
{
    float *want = malloc(t->x.width * sizeof *want);
    for (size_t i = 0; i < t->x.m; i++) {
        const float *x = t->sum + i * t->x.stride, *got = y + i * t->x.stride;
        double largest = 0;
        if (t->args.norm == QB_NORM_LAYERNORM)
            qb__layernorm_ref(x, t->x.width, t->gain, t->bias, t->args.eps, want);
        else
            qb__rmsnorm_ref(x, t->x.width, t->gain, t->args.norm != QB_NORM_RMSNORM_SINGLE,
                            t->args.eps, want);
        for (size_t c = 0; c < t->x.width; c++) largest = fmax(largest, fabs((double)want[c]));
        double bound = 16 * 0x1p-24 * largest;
        for (size_t c = 0; c < t->x.width; c++)
            if (isnan(want[c]) ? !isnan(got[c]) : !(fabs((double)got[c] - want[c]) <= bound))
                fail_msg("norm %d, %zu x %zu: (%zu, %zu) is %.9g, expected %.9g within %g",
                         (int)t->args.norm, t->x.m, t->x.width, i, c, got[c], want[c], bound);
    }
    free(want);
}

static void check_norm(qb_norm_kind norm, size_t m, size_t width, int pending, qb_cuda_dtype type)
{
    norm_case t = norm_case_make(norm, m, width, pending, type, pending > 1 && width > 2 ? 2 : 1);
    staged plain = staged_make((stage_case){QB_STAGE_FLOAT, false, QB_CUDA_F32}, m, width);
    norm_run(&t, &plain.stage);
    float *y = fetch_as_f32(plain.stage.y, m * plain.stage.stride, QB_CUDA_F32);
    check_norm_floats(&t, y);
    check_stage(&plain, y, "norm");
    for (size_t i = 0; i < QB_COUNT(stages); i++) {
        if (!is_turn(i)) continue;
        staged s = staged_make(stages[i], m, width);
        norm_run(&t, &s.stage);
        check_stage(&s, y, "norm");
        staged_free(&s);
    }
    n_checks++;
    free(y);
    staged_free(&plain);
    norm_case_free(&t);
}

static const size_t widths[] = {1,   31,  48,   97,   128,  256,  512,
                                576, 768, 1000, 2048, 4095, 8192, 8200};

static void norms_equal_the_reference(void **state)
{
    (void)state;
    QB_NEEDS_GPU();
    for (size_t w = 0; w < QB_COUNT(widths); w++)
        for (int pending = 0; pending < N_PENDING; pending++) {
            int norm = (int)(w + (size_t)pending) % QB_NORM_COUNT;
            if (qb_test_is_small() && (w + (size_t)pending) % 4 != w / 4 % 4) continue;
            check_norm((qb_norm_kind)norm, 9, widths[w], pending,
                       w % 2 ? QB_CUDA_F32 : QB_CUDA_BF16);
        }
    for (int norm = 0; norm < QB_NORM_COUNT; norm++) {
        check_norm((qb_norm_kind)norm, 1, 768, PENDING_PLAIN, QB_CUDA_BF16);
        check_norm((qb_norm_kind)norm, 257, 97, PENDING_DYNAMIC, QB_CUDA_BF16);
    }
    if (!qb_test_is_small()) check_norm(QB_NORM_LAYERNORM, 16384, 512, PENDING_PLAIN, QB_CUDA_BF16);
}

/* A row's values do not depend on how many rows there are. */
static void norm_of_a_row_is_the_same_in_any_batch(void **state)
{
    (void)state;
    QB_NEEDS_GPU();
    enum { M = 300, WIDTH = 768 };
    norm_case t = norm_case_make(QB_NORM_LAYERNORM, M, WIDTH, PENDING_PLAIN, QB_CUDA_BF16, 1);
    staged all = staged_make((stage_case){QB_STAGE_FLOAT, false, QB_CUDA_F32}, M, WIDTH),
           one = staged_make((stage_case){QB_STAGE_FLOAT, false, QB_CUDA_F32}, M, WIDTH);
    norm_run(&t, &all.stage);
    t.args.m = 1;
    t.args.stage = one.stage;
    t.args.x = qb_gpu_upload(t.x.host, M * t.x.stride * sizeof(float));
    QB_CHECK_OK(qb_cuda_add_norm(&t.args, NULL));
    float *y = fetch_as_f32(all.stage.y, WIDTH, QB_CUDA_F32),
          *y1 = fetch_as_f32(one.stage.y, WIDTH, QB_CUDA_F32);
    assert_memory_equal(y, y1, WIDTH * sizeof *y);
    free(y);
    free(y1);
    qb_gpu_free(t.args.x);
    staged_free(&all);
    staged_free(&one);
    norm_case_free(&t);
}

/* ---- activations ---- */

static double want_act(qb_act_kind act, bool apply, float x, float gate)
{
    float y;
    if (!apply) return x;
    if (act == QB_ACT_GELU_TANH)
        qb__gelu_tanh_ref(&x, 1, &y);
    else if (act == QB_ACT_RELU)
        qb__relu_ref(&x, 1, &y);
    else
        qb__swiglu_ref(&gate, &x, 1, &y);
    return y;
}

/* Two special functions of about 2 ulp and a handful of roundings; the argument of the power is
 * rounded too, which counts by its size, up to 100 where the result is not yet 0. */
static void check_act_floats(const qb_cuda_act_args *a, const float *in, const float *y)
{
    for (size_t i = 0; i < a->m; i++)
        for (size_t c = 0; c < a->width; c++) {
            float x = in[i * a->in.stride + c],
                  gate = a->act == QB_ACT_SWIGLU ? in[i * a->in.stride + a->width + c] : 0.0f;
            double want = want_act(a->act, a->apply, x, gate), got = y[i * a->stage.stride + c];
            double relative = a->apply && a->act != QB_ACT_RELU ? 1e-6 : 0;
            double power = fmin(fabs((double)(a->act == QB_ACT_SWIGLU ? gate : x)), 100);
            /* the reference's 1 + tanh is good to 2^-53, not relative to what is left of it */
            double bound = fabs(want) * relative * (1 + power) + 0x1p-52 * fabs((double)x) + 1e-36;
            if (isnan(want) ? !isnan(got) : !(fabs(got - want) <= bound))
                fail_msg("act %d of %.9g, gate %.9g: %.9g, expected %.9g within %g", (int)a->act, x,
                         gate, got, want, bound);
        }
}

static void check_act(qb_act_kind act, bool apply, size_t m, size_t width, int pending,
                      qb_cuda_dtype type)
{
    bool pairs = apply && act == QB_ACT_SWIGLU;
    pending_case in =
        pending_make(pending, m, pairs ? 2 * width : width, pairs ? 2 : 1, type, 21 + width);
    qb_cuda_act_args args = {.m = m, .width = width, .apply = apply, .act = act, .in = in.pending};
    staged plain = staged_make((stage_case){QB_STAGE_FLOAT, false, QB_CUDA_F32}, m, width);
    args.stage = plain.stage;
    QB_CHECK_OK(qb_cuda_act(&args, NULL));
    float *y = fetch_as_f32(plain.stage.y, m * plain.stage.stride, QB_CUDA_F32);
    check_act_floats(&args, in.want, y);
    check_stage(&plain, y, "act");
    for (size_t i = 0; i < QB_COUNT(stages); i++) {
        if (!is_turn(i)) continue;
        staged s = staged_make(stages[i], m, width);
        args.stage = s.stage;
        QB_CHECK_OK(qb_cuda_act(&args, NULL));
        check_stage(&s, y, "act");
        staged_free(&s);
    }
    n_checks++;
    free(y);
    staged_free(&plain);
    pending_free(&in);
}

static void activations_equal_the_reference(void **state)
{
    (void)state;
    QB_NEEDS_GPU();
    for (size_t w = 0; w < QB_COUNT(widths); w++)
        for (int kind = 0; kind < 4; kind++) {
            if (qb_test_is_small() && (w + (size_t)kind) % 4 != w / 4 % 4) continue;
            check_act((qb_act_kind)(kind % 3), kind < 3, 9, widths[w],
                      1 + (int)(w + (size_t)kind) % 3,
                      (w + (size_t)kind) % 2 ? QB_CUDA_F32 : QB_CUDA_BF16);
        }
    check_act(QB_ACT_SWIGLU, true, 257, 97, PENDING_DYNAMIC, QB_CUDA_BF16);
    check_act(QB_ACT_GELU_TANH, true, 1, 3072, PENDING_DYNAMIC, QB_CUDA_BF16);
    check_act(QB_ACT_SWIGLU, true, 3, 20000, PENDING_PLAIN, QB_CUDA_BF16);
    check_act(QB_ACT_GELU_TANH, true, 300, 768, PENDING_PLAIN, QB_CUDA_BF16);
    check_act(QB_ACT_GELU_TANH, false, 7, 2304, PENDING_PLAIN, QB_CUDA_BF16);
    check_act(QB_ACT_SWIGLU, true, 7, 768, PENDING_STATIC, QB_CUDA_F32);
    if (!qb_test_is_small())
        check_act(QB_ACT_GELU_TANH, true, 16384, 256, PENDING_PLAIN, QB_CUDA_BF16);
}

/* Large matrices find the scale of GELU and ReLU by the largest input, unless all are negative. */
static void check_largest(qb_act_kind act, int pending, bool negative)
{
    enum { M = 1100, WIDTH = 504 };
    pending_case in = pending_make(pending, M, WIDTH, 1, QB_CUDA_BF16, 31);
    if (negative) {
        qb_gpu_free(in.y.dev);
        for (size_t i = 0; i < M * in.y.stride; i++) in.y.host[i] = -fabsf(in.y.host[i]);
        in.pending.y = in.y.dev = upload_as(in.y.host, M * in.y.stride, QB_CUDA_BF16);
    }
    qb_cuda_act_args args = {.m = M, .width = WIDTH, .apply = true, .act = act, .in = in.pending};
    staged plain = staged_make((stage_case){QB_STAGE_FLOAT, false, QB_CUDA_F32}, M, WIDTH),
           codes = staged_make((stage_case){QB_STAGE_TENSOR, false, QB_CUDA_F32}, M, WIDTH);
    args.stage = plain.stage;
    QB_CHECK_OK(qb_cuda_act(&args, NULL));
    float *y = fetch_as_f32(plain.stage.y, M * plain.stage.stride, QB_CUDA_F32);
    args.stage = codes.stage;
    QB_CHECK_OK(qb_cuda_act(&args, NULL));
    check_stage(&codes, y, negative ? "largest of negatives" : "largest");
    free(y);
    staged_free(&plain);
    staged_free(&codes);
    pending_free(&in);
}

static void the_largest_input_gives_the_scale(void **state)
{
    (void)state;
    QB_NEEDS_GPU();
    for (int pending = PENDING_PLAIN; pending < N_PENDING; pending++)
        for (int negative = 0; negative < 2; negative++) {
            const bool small = qb_test_is_small(), odd = (pending + negative) % 2;
            if (!small || odd) check_largest(QB_ACT_GELU_TANH, pending, negative);
            if (!small || !odd) check_largest(QB_ACT_RELU, pending, negative);
        }
}

/* Quotients at a half of a code and the floats around it, where the nearest integer is in doubt. */
static void halves_round_as_the_reference_s(void **state)
{
    (void)state;
    QB_NEEDS_GPU();
    enum { M = 64, WIDTH = 1280 };
    float *x = malloc(M * WIDTH * sizeof *x);
    for (size_t i = 0; i < M; i++) {
        float max_abs = 1.0f + (float)qb_rng_double(3, QB_STREAM_TEST, i), scale = max_abs / 127.0f;
        for (size_t c = 0; c < WIDTH; c++) {
            float half = ((float)(c % 254) - 126.5f) * scale;
            x[i * WIDTH + c] = qb_f32_from_bits(qb_f32_bits(half) + (uint32_t)(c / 254) - 2);
        }
        x[i * WIDTH] = max_abs;
    }
    staged s = staged_make((stage_case){QB_STAGE_TOKEN, false, QB_CUDA_F32}, M, WIDTH);
    qb_cuda_act_args args = {.m = M, .width = WIDTH, .stage = s.stage};
    args.in = (qb_cuda_pending){.type = QB_CUDA_F32, .stride = WIDTH};
    void *dev = qb_gpu_upload(x, M * WIDTH * sizeof *x);
    args.in.y = dev;
    QB_CHECK_OK(qb_cuda_act(&args, NULL));
    check_stage(&s, x, "halves");
    qb_gpu_free(dev);
    staged_free(&s);
    free(x);
}

/* With the maxima of the product's epilogue, scales come from them and from nothing else. */
static void given_row_maxima_are_used(void **state)
{
    (void)state;
    QB_NEEDS_GPU();
    enum { M = 33, WIDTH = 776 };
    pending_case in = pending_make(PENDING_PLAIN, M, WIDTH, 1, QB_CUDA_BF16, 9);
    staged s = staged_make((stage_case){QB_STAGE_TOKEN, false, QB_CUDA_F32}, M, WIDTH);
    float max_abs[M], got[M];
    for (size_t i = 0; i < M; i++) max_abs[i] = (float)i * 0.1f;
    void *dev = qb_gpu_upload(max_abs, sizeof max_abs);
    qb_cuda_act_args args = {
        .m = M, .width = WIDTH, .in = in.pending, .row_max_bits = dev, .stage = s.stage};
    QB_CHECK_OK(qb_cuda_act(&args, NULL));
    for (size_t i = 0; i < M; i++) max_abs[i] /= 127.0f;
    qb_gpu_fetch(got, s.stage.scale, sizeof got);
    assert_memory_equal(got, max_abs, sizeof got);
    check_codes(&s, in.want, max_abs, "given maxima");
    qb_gpu_free(dev);
    staged_free(&s);
    pending_free(&in);
}

/* ---- embedding and positions ---- */

static void check_embed(size_t width, qb_cuda_dtype type, bool positions, bool past_on_device)
{
    enum { V = 50, T = 40, B = 3, N = 7 };
    const int32_t past = 11;
    matrix tok = matrix_make(V, width, type, 1), pos = matrix_make(T, width, type, 2);
    int32_t tokens[B * N];
    for (size_t i = 0; i < B * N; i++) tokens[i] = (int32_t)qb_rng_below(5, QB_STREAM_TEST, i, V);
    size_t stride = tok.stride;
    qb_cuda_embed_args args = {.tokens = qb_gpu_upload(tokens, sizeof tokens),
                               .batch = B,
                               .n_tokens = N,
                               .width = width,
                               .past = past_on_device ? 1000000 : (size_t)past,
                               .past_dev = past_on_device ? qb_gpu_upload(&past, 4) : NULL,
                               .type = type,
                               .tok_embd = tok.dev,
                               .pos_embd = positions ? pos.dev : NULL,
                               .table_stride = stride,
                               .x = qb_gpu_poison(B * N * stride * sizeof(float)),
                               .x_stride = stride};
    QB_CHECK_OK(qb_cuda_embed(&args, NULL));
    float *x = fetch_as_f32(args.x, B * N * stride, QB_CUDA_F32);
    for (size_t i = 0; i < B * N; i++)
        for (size_t c = 0; c < stride; c++) {
            float want = tok.host[(size_t)tokens[i] * stride + c];
            if (positions) want += pos.host[((size_t)past + i % N) * stride + c];
            if (c >= width) want = 0.0f;
            if (!same_bits(x[i * stride + c], want))
                fail_msg("embed width %zu: (%zu, %zu) is %a, expected %a", width, i, c,
                         x[i * stride + c], want);
        }
    free(x);
    qb_gpu_free((void *)args.tokens);
    qb_gpu_free((void *)args.past_dev);
    qb_gpu_free(args.x);
    matrix_free(&tok);
    matrix_free(&pos);
}

static void embedding_equals_the_tables(void **state)
{
    (void)state;
    QB_NEEDS_GPU();
    static const size_t embed_widths[] = {1, 48, 97, 768, 2049};
    for (size_t w = 0; w < QB_COUNT(embed_widths); w++)
        for (int i = 0; i < 4; i++) {
            if (qb_test_is_small() && (w + (size_t)i) % 2) continue;
            check_embed(embed_widths[w], i % 2 ? QB_CUDA_BF16 : QB_CUDA_F32, i < 3, i == 2);
        }
}

typedef struct position_case {
    size_t n_heads, n_kv_heads, head_dim;
    int pending;
    qb_cuda_dtype from, to;
    bool rotate, cache;
} position_case;

static void check_position(const position_case *c)
{
    enum { B = 3, N = 5, CONTEXT = 32 };
    const int32_t past = c->cache ? 9 : 0;
    const size_t d = c->head_dim, q_width = c->n_heads * d, kv_width = c->n_kv_heads * d,
                 width = q_width + 2 * kv_width, m = B * N, half = d / 2;
    pending_case in = pending_make(c->pending, m, width, c->pending > 1 ? 3 : 1, c->from, 77);
    size_t stride = in.y.stride, kv_stride = qb_cuda_stride(kv_width);
    float *angles = malloc(2 * CONTEXT * (half + 1) * sizeof *angles);
    qb_test_fill_f32(angles, 2 * CONTEXT * (half + 1), 78);
    float *cosine = angles, *sine = angles + CONTEXT * half;
    qb_cuda_position_args args = {.batch = B,
                                  .n_tokens = N,
                                  .past = c->cache ? 12345 : 0,
                                  .past_dev = c->cache ? qb_gpu_upload(&past, 4) : NULL,
                                  .n_heads = c->n_heads,
                                  .n_kv_heads = c->n_kv_heads,
                                  .head_dim = d,
                                  .qkv = in.pending,
                                  .type = c->to,
                                  .q_stride = qb_cuda_stride(q_width)};
    if (c->rotate) {
        args.cosine = qb_gpu_upload(cosine, CONTEXT * half * sizeof *cosine);
        args.sine = qb_gpu_upload(sine, CONTEXT * half * sizeof *sine);
    }
    size_t bytes = qb_cuda_dtype_bytes(c->to);
    if (c->cache) {
        args.q_out = qb_gpu_poison(m * args.q_stride * bytes);
        args.kv_stride = kv_stride;
        args.kv_batch_stride = CONTEXT * kv_stride;
        args.k_out = qb_gpu_poison(B * CONTEXT * kv_stride * bytes);
        args.v_out = qb_gpu_poison(B * CONTEXT * kv_stride * bytes);
    }
    QB_CHECK_OK(qb_cuda_position(&args, NULL));
    float *y = NULL, *q = NULL, *k = NULL, *v = NULL;
    if (c->cache) {
        q = fetch_as_f32(args.q_out, m * args.q_stride, c->to);
        k = fetch_as_f32(args.k_out, B * CONTEXT * kv_stride, c->to);
        v = fetch_as_f32(args.v_out, B * CONTEXT * kv_stride, c->to);
    } else {
        y = fetch_as_f32(in.y.dev, m * stride, c->to);
    }
    for (size_t i = 0; i < m; i++) {
        float *want = in.want + i * stride;
        size_t position = (size_t)past + i % N, cached = i / N * CONTEXT + position;
        if (c->rotate) {
            qb__rope_ref(want, c->n_heads, half, cosine + position * half, sine + position * half);
            qb__rope_ref(want + q_width, c->n_kv_heads, half, cosine + position * half,
                         sine + position * half);
        }
        for (size_t col = 0; col < width; col++) {
            float got = c->cache ? (col < q_width ? q[i * args.q_stride + col]
                                    : col < q_width + kv_width
                                        ? k[cached * kv_stride + col - q_width]
                                        : v[cached * kv_stride + col - q_width - kv_width])
                                 : y[i * stride + col];
            if (!same_bits(got, as_stored(want[col], c->to)))
                fail_msg("position H %zu/%zu D %zu: (%zu, %zu) is %a, expected %a", c->n_heads,
                         c->n_kv_heads, d, i, col, got, as_stored(want[col], c->to));
        }
    }
    free(y), free(q), free(k), free(v), free(angles);
    qb_gpu_free((void *)args.past_dev);
    qb_gpu_free((void *)args.cosine);
    qb_gpu_free((void *)args.sine);
    if (c->cache) {
        qb_gpu_free(args.q_out);
        qb_gpu_free(args.k_out);
        qb_gpu_free(args.v_out);
    }
    pending_free(&in);
}

static void positions_equal_the_reference(void **state)
{
    (void)state;
    QB_NEEDS_GPU();
    static const position_case cases[] = {
        {4, 4, 64, PENDING_PLAIN, QB_CUDA_BF16, QB_CUDA_BF16, true, false},
        {4, 4, 64, PENDING_PLAIN, QB_CUDA_BF16, QB_CUDA_BF16, true, true},
        {9, 3, 64, PENDING_DYNAMIC, QB_CUDA_BF16, QB_CUDA_BF16, true, true},
        {9, 3, 64, PENDING_STATIC, QB_CUDA_F32, QB_CUDA_F32, true, true},
        {12, 12, 64, PENDING_DYNAMIC, QB_CUDA_BF16, QB_CUDA_BF16, false, false},
        {12, 12, 64, PENDING_PLAIN, QB_CUDA_F32, QB_CUDA_BF16, false, true},
        {12, 12, 64, PENDING_PLAIN, QB_CUDA_BF16, QB_CUDA_BF16, false, true},
        {16, 16, 128, PENDING_PLAIN, QB_CUDA_F32, QB_CUDA_F32, true, false},
        {3, 1, 34, PENDING_DYNAMIC, QB_CUDA_F32, QB_CUDA_BF16, true, true},
        {3, 1, 33, PENDING_DYNAMIC, QB_CUDA_BF16, QB_CUDA_BF16, false, true},
        {2, 2, 1, PENDING_PLAIN, QB_CUDA_F32, QB_CUDA_F32, false, true},
        {2, 2, 256, PENDING_STATIC, QB_CUDA_BF16, QB_CUDA_BF16, true, true},
    };
    for (size_t i = 0; i < QB_COUNT(cases); i++) check_position(&cases[i]);
}

static void bad_shapes_are_refused(void **state)
{
    (void)state;
    QB_NEEDS_GPU();
    qb_cuda_norm_args norm = {.m = 1, .width = 20000, .x_stride = 20032, .stage.stride = 20032};
    assert_int_equal(qb_cuda_add_norm(&norm, NULL), QB_ERR_SHAPE);
    qb_cuda_act_args act = {.m = 1, .width = 64, .in.stride = 65, .stage.stride = 64};
    assert_int_equal(qb_cuda_act(&act, NULL), QB_ERR_SHAPE);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(norms_equal_the_reference),
        cmocka_unit_test(norm_of_a_row_is_the_same_in_any_batch),
        cmocka_unit_test(activations_equal_the_reference),
        cmocka_unit_test(the_largest_input_gives_the_scale),
        cmocka_unit_test(halves_round_as_the_reference_s),
        cmocka_unit_test(given_row_maxima_are_used),
        cmocka_unit_test(embedding_equals_the_tables),
        cmocka_unit_test(positions_equal_the_reference),
        cmocka_unit_test(bad_shapes_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
