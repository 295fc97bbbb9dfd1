/* tests/cuda/test_cuda_attention_train.c - every row of attention for training on the GPU against a
 * reference in double: forward and gradients, all kinds of softmax, grouped heads, free prefixes,
 * head sizes and lengths. Two runs must agree bit for bit. */
#include "gpu.h"

#include "core/dtype.h"
#include "core/memory.h"
#include "core/rng.h"
#include "core/threads.h"
#include "kernels/cuda/attention_train.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define U 0x1p-24
#define U_BF16 0x1p-8 /* of a value: half the distance of its neighbours */

typedef struct shape {
    size_t batch, n_tokens, n_heads, n_kv_heads, head_dim;
    qb_softmax_kind softmax;
    qb_cuda_dtype type;
    size_t free_prefix;
} shape;

/* What the reference gives for each element: its value and how far a row may be from it. */
typedef struct expected {
    double *value, *error;
} expected;

typedef struct train_case {
    shape s;
    size_t width, kv_width, stride, out_stride; /* of q | k | v and its gradients; of out */
    float scale, gamma, zeta;
    float *sink;        /* (n_heads) */
    float *qkv, *d_out; /* as the GPU has them: representable in `type` */
    expected out, lse, d_qkv, d_sink;
    qb_cuda_attention_train_args gpu;
    void *qkv_dev, *out_dev, *lse_dev, *d_out_dev, *sink_dev; /* inputs of both passes */
} train_case;

static qb_pool *pool;

static void *new (size_t n, size_t bytes)
{
    void *p = calloc(n, bytes);
    assert_non_null(p);
    return p;
}
static expected new_expected(size_t n)
{
    return (expected){new (n, sizeof(double)), new (n, sizeof(double))};
}
static void free_expected(expected *e)
{
    free(e->value);
    free(e->error);
}
static void add(expected *to, size_t i, double value, double error)
{
    to->value[i] += value;
    to->error[i] += error;
}

/* ---- the reference ---- */

/* Where things of one head lie, and what one row of scores gives. */
typedef struct head_view {
    const train_case *c;
    size_t b, h;
    const float *q, *k, *v, *g; /* token 0 */
} head_view;
typedef struct score {
    double s, w, p, dw; /* attention_train.h */
    double s_error, w_error, p_error, dw_error;
} score;

static size_t n_keys(const train_case *c, size_t query)
{
    size_t prefix = c->s.free_prefix < c->s.n_tokens ? c->s.free_prefix : c->s.n_tokens;
    return query + 1 > prefix ? query + 1 : prefix;
}

/* A product of D terms: the sum, and (D + 2) u times the sum of their sizes. */
static double dot(const float *a, const float *b, size_t n, double u, double *error)
{
    double sum = 0, size = 0;
    for (size_t d = 0; d < n; d++) {
        sum += (double)a[d] * b[d];
        size += fabs((double)a[d] * b[d]);
    }
    *error = (double)(n + 2) * u * size;
    return sum;
}

/* Tensor cores drop bits of a product's sum: 4 u for u. */
static double unit(const train_case *c)
{
    return c->s.type == QB_CUDA_BF16 ? 4 * U : U;
}
static double rounding(const train_case *c)
{
    return c->s.type == QB_CUDA_BF16 ? 1.01 * U_BF16 : 2 * U;
}

/* Scores of a query become w and p. An exponential errs by its argument's error and 4 u, the sum of
 * them by the mean of that and by (n / 8 + 80) u; lse, where it is large, by u of itself. */
static double softmax_row(const head_view *v, score *x, size_t n, double *lse_error)
{
    const train_case *c = v->c;
    double max = -INFINITY, sum = 0, error = 0;
    for (size_t j = 0; j < n; j++) max = fmax(max, x[j].s);
    double silent = c->s.softmax == QB_SOFTMAX1       ? 0
                    : c->s.softmax == QB_SOFTMAX_SINK ? (double)c->sink[v->h]
                                                      : -INFINITY;
    max = fmax(max, silent);
    for (size_t j = 0; j < n; j++) {
        sum += exp(x[j].s - max);
        error += exp(x[j].s - max) * (x[j].s_error + U * (max - x[j].s) * 2 + 4 * U);
    }
    sum += exp(silent - max);
    double lse = max + log(sum);
    *lse_error = error / sum + ((double)n / 8 + 80) * U + 4 * U * (fabs(lse) + fabs(max));
    for (size_t j = 0; j < n; j++) {
        double p = exp(x[j].s - lse);
        x[j].p = x[j].w = p;
        x[j].p_error = x[j].w_error =
            p * (x[j].s_error + *lse_error + 2 * U * (fabs(x[j].s) + fabs(lse)) + 4 * U);
    }
    return lse;
}

/* w, p and dw of the kinds that differ from softmax. An edge that the error may cross counts. */
static void other_kinds(const train_case *c, score *x, size_t n)
{
    for (size_t j = 0; j < n; j++) {
        double slope = (double)c->zeta - c->gamma, raw = slope * x[j].p + c->gamma;
        if (c->s.softmax == QB_SOFTMAX_RELU) {
            bool unsure = fabs(x[j].s) <= x[j].s_error;
            x[j].w = fmax(0, x[j].s) / (double)n;
            x[j].w_error = x[j].s_error / (double)n + 2 * U * x[j].w;
            x[j].p = x[j].s > 0 ? 1 / (double)n : 0;
            x[j].p_error = unsure ? 1 / (double)n : U * x[j].p;
        } else if (c->s.softmax == QB_SOFTMAX_CLIPPED) {
            x[j].w = fmin(1, fmax(0, raw));
            x[j].w_error = slope * x[j].p_error + 2 * U;
            bool unsure = fmin(fabs(raw), fabs(raw - 1)) <= x[j].w_error;
            double gain = raw > 0 && raw < 1 ? slope : 0;
            x[j].dw_error = slope * x[j].dw_error + (unsure ? slope * fabs(x[j].dw) : 0);
            x[j].dw *= gain;
        }
    }
}

/* The scores of a query and what they give; lse. */
static double make_row(const head_view *v, size_t i, score *x, double *lse_error)
{
    const train_case *c = v->c;
    size_t n = n_keys(c, i), dim = c->s.head_dim;
    for (size_t j = 0; j < n; j++) {
        x[j].s =
            c->scale * dot(v->q + i * c->stride, v->k + j * c->stride, dim, unit(c), &x[j].s_error);
        x[j].s_error *= c->scale;
        x[j].dw = dot(v->g + i * c->width, v->v + j * c->stride, dim, unit(c), &x[j].dw_error);
    }
    double lse = c->s.softmax == QB_SOFTMAX_RELU ? 0 : softmax_row(v, x, n, lse_error);
    other_kinds(c, x, n);
    return lse;
}

/* out and lse. bf16: w is rounded before the product, out after it. */
static void forward_row(const head_view *v, size_t i, score *x, train_case *c)
{
    size_t n = n_keys(c, i), dim = c->s.head_dim, stat = (v->b * c->s.n_heads + v->h);
    double lse_error = 0, lse = make_row(v, i, x, &lse_error);
    add(&c->lse, stat * c->s.n_tokens + i, lse, lse_error);
    for (size_t d = 0; d < dim; d++) {
        size_t at = (v->b * c->s.n_tokens + i) * c->width + v->h * dim + d;
        for (size_t j = 0; j < n; j++) {
            double y = v->v[j * c->stride + d];
            double relative = rounding(c) + ((double)n + 80) * unit(c);
            add(&c->out, at, x[j].w * y, fabs(y) * (x[j].w_error + x[j].w * relative));
        }
        c->out.error[at] += rounding(c) * fabs(c->out.value[at]);
    }
}

/* dq of a query and what it adds to dk and dv. ds errs by what enters it; bf16 rounds it. */
static void backward_row(const head_view *v, size_t i, score *x, train_case *c)
{
    size_t n = n_keys(c, i), dim = c->s.head_dim, group = c->s.n_heads / c->s.n_kv_heads;
    size_t row = v->b * c->s.n_tokens, kv = v->h / group * dim, q_width = c->width;
    double lse_error = 0, lse = make_row(v, i, x, &lse_error), delta = 0, delta_error = 0;
    double terms = (double)(c->s.n_tokens * group) + 2;
    const float *g = v->g + i * c->width;
    for (size_t j = 0; j < n && c->s.softmax != QB_SOFTMAX_RELU; j++) delta += x[j].p * x[j].dw;
    for (size_t j = 0; j < n && c->s.softmax == QB_SOFTMAX_CLIPPED; j++)
        delta_error += x[j].p_error * fabs(x[j].dw) + x[j].p * x[j].dw_error +
                       (double)n * U * x[j].p * fabs(x[j].dw);
    for (size_t d = 0; d < dim && c->s.softmax != QB_SOFTMAX_CLIPPED; d++) {
        double o = c->out.value[(row + i) * c->width + v->h * dim + d]; /* which the row reads */
        delta_error += fabs(o * g[d]) * (rounding(c) + (double)(dim + 2) * U);
    }
    if (c->s.softmax == QB_SOFTMAX_SINK) {
        double p = exp(c->sink[v->h] - lse);
        add(&c->d_sink, v->h, -p * delta,
            p * (delta_error + fabs(delta) * (lse_error + (fabs(lse) + terms) * 4 * U)));
    }
    for (size_t j = 0; j < n; j++) {
        double diff = x[j].dw - delta, ds = x[j].p * diff;
        double ds_error = x[j].p_error * fabs(diff) + x[j].p * (x[j].dw_error + delta_error) +
                          fabs(ds) * (rounding(c) + terms * unit(c));
        double w_error = x[j].w_error + x[j].w * (rounding(c) + terms * unit(c));
        for (size_t d = 0; d < dim; d++) {
            double q = v->q[i * c->stride + d], k = v->k[j * c->stride + d];
            size_t dq_at = (row + i) * c->stride + v->h * dim + d;
            size_t dk_at = (row + j) * c->stride + q_width + kv + d, dv_at = dk_at + c->kv_width;
            add(&c->d_qkv, dq_at, c->scale * ds * k, c->scale * ds_error * fabs(k));
            add(&c->d_qkv, dk_at, c->scale * ds * q, c->scale * ds_error * fabs(q));
            add(&c->d_qkv, dv_at, x[j].w * g[d], w_error * fabs(g[d]));
        }
    }
}

/* A task: the heads of a sequence that share a key head. */
static void reference_task(void *context, size_t task, size_t thread)
{
    train_case *c = context;
    (void)thread;
    size_t group = c->s.n_heads / c->s.n_kv_heads, b = task / c->s.n_kv_heads;
    score *x = new (c->s.n_tokens, sizeof *x);
    for (size_t h = task % c->s.n_kv_heads * group, end = h + group; h < end; h++) {
        const float *row = c->qkv + b * c->s.n_tokens * c->stride;
        const float *kv = row + c->width + h / group * c->s.head_dim;
        head_view v = {c,
                       b,
                       h,
                       row + h * c->s.head_dim,
                       kv,
                       kv + c->kv_width,
                       c->d_out + b * c->s.n_tokens * c->width + h * c->s.head_dim};
        for (size_t i = 0; i < c->s.n_tokens; i++) {
            forward_row(&v, i, x, c);
            backward_row(&v, i, x, c);
        }
    }
    free(x);
}

static void reference(train_case *c)
{
    size_t n = c->s.batch * c->s.n_tokens;
    c->out = new_expected(n * c->width);
    c->lse = new_expected(n * c->s.n_heads);
    c->d_qkv = new_expected(n * c->stride);
    c->d_sink = new_expected(c->s.n_heads);
    /* d_sink sums over sequences: no two tasks may share a head. */
    qb_parallel_for(c->s.softmax == QB_SOFTMAX_SINK ? NULL : pool, c->s.batch * c->s.n_kv_heads,
                    reference_task, c);
    for (size_t h = 0; h < c->s.n_heads; h++) /* what it is added to */
        add(&c->d_sink, h, c->sink[h], 2 * U * (fabs(c->sink[h]) + fabs(c->d_sink.value[h])));
    for (size_t i = 0; i < n * c->stride; i++)
        c->d_qkv.error[i] += rounding(c) * fabs(c->d_qkv.value[i]);
}

/* ---- cases ---- */

static float *random_floats(uint64_t seed, size_t n, float size, qb_cuda_dtype type)
{
    float *x = new (n, sizeof *x);
    qb_rng_normal_f32(seed, QB_STREAM_TEST, 0, n, size, x);
    for (size_t i = 0; type == QB_CUDA_BF16 && i < n; i++)
        x[i] = qb_f32_from_bf16(qb_bf16_from_f32(x[i]));
    return x;
}

/* (n_rows, width) values to the GPU as `type`, with that stride and poison between. */
static void *upload(const double *values, const float *floats, size_t n_rows, size_t width,
                    size_t in_stride, size_t stride, qb_cuda_dtype type)
{
    size_t elem = qb_cuda_dtype_bytes(type);
    char *bytes = new (n_rows * stride, elem);
    for (size_t i = 0; i < n_rows; i++)
        for (size_t j = 0; j < width; j++) {
            float x = values ? (float)values[i * in_stride + j] : floats[i * in_stride + j];
            uint16_t half = qb_bf16_from_f32(x);
            memcpy(bytes + (i * stride + j) * elem, elem == 4 ? (void *)&x : &half, elem);
        }
    void *dev = qb_gpu_upload(bytes, n_rows * stride * elem);
    free(bytes);
    return dev;
}

static train_case case_create(shape s, uint64_t seed)
{
    train_case c = {.s = s, .scale = 1 / sqrtf((float)s.head_dim), .gamma = -0.03f, .zeta = 1.02f};
    size_t n = s.batch * s.n_tokens;
    c.width = s.n_heads * s.head_dim, c.kv_width = s.n_kv_heads * s.head_dim;
    c.stride = qb_cuda_stride(c.width + 2 * c.kv_width), c.out_stride = qb_cuda_stride(c.width);
    c.qkv = random_floats(seed, n * c.stride, 1.5f, s.type);
    c.d_out = random_floats(seed + 1, n * c.width, 1, s.type);
    c.sink = random_floats(seed + 2, s.n_heads, 2, QB_CUDA_F32);
    reference(&c);
    float *lse = new (n * s.n_heads, sizeof *lse);
    for (size_t i = 0; i < n * s.n_heads; i++) lse[i] = (float)c.lse.value[i];
    c.qkv_dev = upload(NULL, c.qkv, n, c.stride, c.stride, c.stride, s.type);
    c.d_out_dev = upload(NULL, c.d_out, n, c.width, c.width, c.out_stride, s.type);
    c.out_dev = upload(c.out.value, NULL, n, c.width, c.width, c.out_stride, s.type);
    c.lse_dev = qb_gpu_upload(lse, n * s.n_heads * sizeof *lse);
    c.sink_dev = qb_gpu_upload(c.sink, s.n_heads * sizeof *c.sink);
    free(lse);
    size_t elem = qb_cuda_dtype_bytes(s.type);
    const char *q = c.qkv_dev;
    c.gpu = (qb_cuda_attention_train_args){.type = s.type,
                                           .batch = s.batch,
                                           .n_tokens = s.n_tokens,
                                           .n_heads = s.n_heads,
                                           .n_kv_heads = s.n_kv_heads,
                                           .head_dim = s.head_dim,
                                           .softmax = s.softmax,
                                           .gamma = c.gamma,
                                           .zeta = c.zeta,
                                           .sink = c.sink_dev,
                                           .free_prefix = s.free_prefix,
                                           .scale = c.scale,
                                           .q = q,
                                           .k = q + c.width * elem,
                                           .v = q + (c.width + c.kv_width) * elem,
                                           .qkv_stride = c.stride,
                                           .out_stride = c.out_stride,
                                           .d_out = c.d_out_dev,
                                           .d_out_stride = c.out_stride,
                                           .d_qkv_stride = c.stride};
    return c;
}

static void case_destroy(train_case *c)
{
    void *devs[] = {c->qkv_dev, c->out_dev, c->lse_dev, c->d_out_dev, c->sink_dev};
    for (size_t i = 0; i < QB_COUNT(devs); i++) qb_gpu_free(devs[i]);
    expected *all[] = {&c->out, &c->lse, &c->d_qkv, &c->d_sink};
    for (size_t i = 0; i < QB_COUNT(all); i++) free_expected(all[i]);
    free(c->qkv);
    free(c->d_out);
    free(c->sink);
}

/* ---- comparing ---- */

typedef struct tally {
    size_t n, n_wrong, n_refused;
    double share;
} tally;

/* A matrix that a pass wrote, and what it should be. */
typedef struct compared {
    const char *got;
    const expected *want;
    size_t n_rows, want_stride, stride;
    qb_cuda_dtype type;
} compared;

/* Largest error of the columns from first to end as a share of its bound; infinite where something
 * was not written. */
static double worst(const compared *m, size_t first, size_t end)
{
    size_t elem = qb_cuda_dtype_bytes(m->type);
    double share = 0;
    for (size_t i = 0; i < m->n_rows; i++)
        for (size_t j = first; j < end; j++) {
            const char *at = m->got + (i * m->stride + j) * elem;
            float x = 0;
            uint16_t half;
            memcpy(elem == 4 ? (void *)&x : &half, at, elem);
            if (elem == 2) x = qb_f32_from_bf16(half);
            double e = fabs(x - m->want->value[i * m->want_stride + j]);
            if (!(e < INFINITY)) return INFINITY;
            share = fmax(share, e / (m->want->error[i * m->want_stride + j] + 1e-30));
        }
    return share;
}

/* Whether the columns from `first` to the stride still are poison. */
static bool untouched(const compared *m, size_t first)
{
    size_t elem = qb_cuda_dtype_bytes(m->type);
    for (size_t i = 0; i < m->n_rows; i++)
        if (!qb_gpu_is_poison(m->got + (i * m->stride + first) * elem, (m->stride - first) * elem))
            return false;
    return true;
}

/* What a pass writes, the first run's and the second's: over poison, or added to `start`. */
typedef struct result {
    void *dev[2];
    char *host[2];
    size_t bytes;
} result;
static result new_result(size_t n, size_t elem, const void *start)
{
    result r = {.bytes = n * elem};
    for (int i = 0; i < 2; i++) {
        r.dev[i] = start ? qb_gpu_upload(start, r.bytes) : qb_gpu_poison(r.bytes);
        r.host[i] = new (r.bytes, 1);
    }
    return r;
}
/* Whether both runs left the same bytes; without poison the gaps differ. */
static bool take(result *r)
{
    for (int i = 0; i < 2; i++) {
        qb_gpu_fetch(r->host[i], r->dev[i], r->bytes);
        qb_gpu_free(r->dev[i]);
    }
    return qb_test_is_bare() || !memcmp(r->host[0], r->host[1], r->bytes);
}
static void drop(result *r)
{
    free(r->host[0]);
    free(r->host[1]);
}

static void report(const train_case *c, const char *row, const char *part, double share, bool fine,
                   tally *t)
{
    const shape *s = &c->s;
    t->n++;
    t->share = fmax(t->share, share);
    if (share <= 1 && fine) return;
    t->n_wrong++;
    printf("FAIL %s %s %s D %zu T %zu batch %zu heads %zu:%zu softmax %d prefix %zu: error %.3g of "
           "the bound%s\n",
           row, part, s->type == QB_CUDA_F32 ? "f32" : "bf16", s->head_dim, s->n_tokens, s->batch,
           s->n_heads, s->n_kv_heads, s->softmax, s->free_prefix, share,
           fine ? "" : ", two runs differ or a gap was written");
}

static void check_forward(train_case *c, const qb_cuda_attention_train_row *row, tally *t)
{
    size_t n = c->s.batch * c->s.n_tokens, elem = qb_cuda_dtype_bytes(c->s.type);
    result out = new_result(n * c->out_stride, elem, NULL),
           lse = new_result(n * c->s.n_heads, 4, NULL);
    for (int i = 0; i < 2; i++) {
        c->gpu.out = out.dev[i];
        c->gpu.lse = lse.dev[i];
        QB_CHECK_OK(row->forward(&c->gpu, NULL));
    }
    const compared outs = {out.host[0], &c->out, n, c->width, c->out_stride, c->s.type},
                   lses = {lse.host[0],   &c->lse,       c->s.batch * c->s.n_heads,
                           c->s.n_tokens, c->s.n_tokens, QB_CUDA_F32};
    bool same = take(&out);
    report(c, row->info.name, "out", worst(&outs, 0, c->width), same && untouched(&outs, c->width),
           t);
    same = take(&lse);
    if (c->s.softmax != QB_SOFTMAX_RELU)
        report(c, row->info.name, "lse", worst(&lses, 0, c->s.n_tokens), same, t);
    drop(&out);
    drop(&lse);
}

static void check_backward(train_case *c, const qb_cuda_attention_train_row *row, tally *t)
{
    size_t n = c->s.batch * c->s.n_tokens, elem = qb_cuda_dtype_bytes(c->s.type);
    size_t k_at = c->width, v_at = k_at + c->kv_width, end = v_at + c->kv_width;
    result d_qkv = new_result(n * c->stride, elem, NULL),
           d_sink = new_result(c->s.n_heads, 4, c->sink);
    void *workspace = qb_gpu_poison(qb_cuda_attention_train_workspace(&c->gpu));
    c->gpu.workspace = workspace;
    c->gpu.out = c->out_dev;
    c->gpu.lse = c->lse_dev;
    for (int i = 0; i < 2; i++) {
        char *dq = d_qkv.dev[i];
        c->gpu.d_q = dq;
        c->gpu.d_k = dq + k_at * elem;
        c->gpu.d_v = dq + v_at * elem;
        c->gpu.d_sink = d_sink.dev[i];
        QB_CHECK_OK(row->backward(&c->gpu, NULL));
    }
    const compared all = {d_qkv.host[0], &c->d_qkv, n, c->stride, c->stride, c->s.type},
                   sinks = {d_sink.host[0], &c->d_sink, 1, c->s.n_heads, c->s.n_heads, QB_CUDA_F32};
    bool same = take(&d_qkv);
    report(c, row->info.name, "dq", worst(&all, 0, k_at), same && untouched(&all, end), t);
    report(c, row->info.name, "dk", worst(&all, k_at, v_at), true, t);
    report(c, row->info.name, "dv", worst(&all, v_at, end), true, t);
    same = take(&d_sink);
    if (c->s.softmax == QB_SOFTMAX_SINK)
        report(c, row->info.name, "d_sink", worst(&sinks, 0, c->s.n_heads), same, t);
    qb_gpu_free(workspace);
    drop(&d_qkv);
    drop(&d_sink);
}

static void check_shape(shape s, uint64_t seed, tally *tallies)
{
    train_case c = case_create(s, seed);
    const qb_cuda_attention_train_row *row = qb_cuda_attention_train_kernels;
    const bool many_heads =
        s.batch * s.n_heads > 90; /* whose sharing out is the first row's matter */
    size_t n_run = 0;
    for (size_t r = 0; row[r].info.name; r++)
        if (qb_kernel_refusal(&row[r].info) || row[r].refuse(&c.gpu))
            tallies[r].n_refused++;
        else if (!qb_test_is_small() || !many_heads || n_run++ == 0) {
            check_forward(&c, &row[r], &tallies[r]);
            check_backward(&c, &row[r], &tallies[r]);
        }
    case_destroy(&c);
}

static void summarise(const tally *tallies, const char *what)
{
    size_t n_wrong = 0;
    for (size_t r = 0; qb_cuda_attention_train_kernels[r].info.name; r++) {
        const tally *t = &tallies[r];
        n_wrong += t->n_wrong;
        printf("%-22s %s: %zu run, %zu refused, %zu wrong; error at most %.2f of the bound\n",
               qb_cuda_attention_train_kernels[r].info.name, what, t->n, t->n_refused, t->n_wrong,
               t->share);
    }
    assert_int_equal(n_wrong, 0);
}

/* Of the lengths below, those that the d-th head size takes. */
static size_t n_lengths(size_t d, bool bf16, size_t n)
{
    if (qb_test_is_small()) return bf16 ? 3 : 2;
    return d > 1 ? 3 : d || !bf16 ? 5 : n;
}

/* Every head size over lengths around the tiles' edges; every kind of softmax in short sequences.
 */
static void sweep(qb_cuda_dtype type, const char *what)
{
    static const size_t dims[] = {64, 128, 16, 5, 256, 80};
    static const size_t all[] = {1, 64, 100, 256, 2, 63, 65, 127, 128, 129, 200, 255, 257, 300};
    static const size_t few[] = {1, 70, 130};
    static const size_t heads[][2] = {{1, 1}, {2, 2}, {2, 1}, {4, 2}, {3, 3}};
    bool small = qb_test_is_small(), bf16 = type == QB_CUDA_BF16;
    const size_t *lengths = small ? few : all;
    tally tallies[8] = {0};
    uint32_t draw = 0;
    for (size_t d = 0; d < QB_COUNT(dims); d++)
        for (size_t t = 0; t < n_lengths(d, bf16, QB_COUNT(all)); t++)
            for (int i = 0; i < (lengths[t] > 130 ? 2 : QB_SOFTMAX_COUNT); i++, draw++) {
                if (small && (!bf16 || d > 1) && (d + t + (size_t)i) % 5) continue;
                uint32_t x = qb_rng_u32(7, QB_STREAM_TEST, draw);
                const size_t *h = heads[x % (lengths[t] > 130 || small ? 3 : QB_COUNT(heads))];
                check_shape((shape){.batch = small ? 1 : 1 + (x >> 8) % 2,
                                    .n_tokens = lengths[t],
                                    .n_heads = h[0],
                                    .n_kv_heads = h[1],
                                    .head_dim = dims[d],
                                    .softmax = (qb_softmax_kind)i,
                                    .type = type,
                                    .free_prefix = x >> 12 & 3 ? 0 : (x >> 16) % 80},
                            draw, tallies);
            }
    summarise(tallies, what);
}

static void f32_equals_the_reference(void **state)
{
    (void)state;
    QB_NEEDS_GPU();
    sweep(QB_CUDA_F32, "f32");
}

static void bf16_equals_the_reference(void **state)
{
    (void)state;
    QB_NEEDS_GPU();
    sweep(QB_CUDA_BF16, "bf16");
}

/* What models train with, and more heads than a GPU has multiprocessors: blocks take several. */
static void common_shapes_equal_the_reference(void **state)
{
    (void)state;
    QB_NEEDS_GPU();
    static const size_t sizes[][5] = {
        /* batch, tokens, heads, key heads, size */
        {24, 100, 12, 12, 64}, {50, 64, 8, 8, 64},  {13, 256, 12, 12, 64}, {34, 200, 12, 12, 64},
        {2, 256, 9, 3, 64},    {1, 1024, 2, 2, 64}, {34, 300, 3, 3, 64},   {9, 600, 12, 12, 64},
        {17, 449, 6, 6, 64},   {2, 512, 12, 4, 64}, {1, 1000, 2, 1, 128},  {6, 384, 12, 12, 128}};
    static const size_t few[][5] = {{17, 20, 8, 8, 64}, {33, 257, 3, 3, 64}};
    tally tallies[8] = {0};
    bool small = qb_test_is_small();
    for (size_t i = 0; i < (small ? QB_COUNT(few) : 2 * QB_COUNT(sizes)); i++) {
        const size_t *z = small ? few[i] : sizes[i % QB_COUNT(sizes)];
        check_shape((shape){.batch = z[0],
                            .n_tokens = z[1],
                            .n_heads = z[2],
                            .n_kv_heads = z[3],
                            .head_dim = z[4],
                            .softmax = i % 2 ? QB_SOFTMAX1 : QB_SOFTMAX,
                            .type = QB_CUDA_BF16},
                    i, tallies);
    }
    summarise(tallies, "bf16, common shapes");
}

/* Rows that go over many tiles, with what few models have. */
static void every_kind_goes_far(void **state)
{
    (void)state;
    QB_NEEDS_GPU();
    static const size_t dims[] = {256, 32, 64, 128};
    tally tallies[8] = {0};
    for (size_t i = 0; i < (qb_test_is_small() ? 2 : 2 * QB_COUNT(dims) * QB_SOFTMAX_COUNT); i++)
        check_shape((shape){.batch = qb_test_is_small() ? 1 : 2,
                            .n_tokens = qb_test_is_small() ? 130
                                        : i % 3            ? 256
                                                           : 217,
                            .n_heads = i % 2 ? 2 : 1,
                            .n_kv_heads = 1,
                            .head_dim = dims[i / 2 / QB_SOFTMAX_COUNT],
                            .softmax = (qb_softmax_kind)(i % QB_SOFTMAX_COUNT),
                            .type = QB_CUDA_BF16,
                            .free_prefix = i / QB_SOFTMAX_COUNT % 2 ? 90 : 0},
                    i, tallies);
    summarise(tallies, "bf16, every kind far");
}

/* Every (type, head size, kind) has a row, and no tokens are no work. */
static void some_row_takes_anything(void **state)
{
    (void)state;
    QB_NEEDS_GPU();
    for (int kind = 0; kind < QB_SOFTMAX_COUNT; kind++) {
        train_case c = case_create((shape){.batch = 1,
                                           .n_tokens = 3,
                                           .n_heads = 2,
                                           .n_kv_heads = 1,
                                           .head_dim = kind % 2 ? 3 : 250,
                                           .softmax = (qb_softmax_kind)kind,
                                           .type = kind % 2 ? QB_CUDA_F32 : QB_CUDA_BF16},
                                   (uint64_t)kind);
        tally t = {0};
        const qb_cuda_attention_train_row by_choice = {{"attention_train", "cuda", 0},
                                                       NULL,
                                                       qb_cuda_attention_train_forward,
                                                       qb_cuda_attention_train_backward};
        check_forward(&c, &by_choice, &t);
        check_backward(&c, &by_choice, &t);
        assert_int_equal(t.n_wrong, 0);
        c.gpu.batch = 0;
        QB_CHECK_OK(qb_cuda_attention_train_forward(&c.gpu, NULL));
        QB_CHECK_OK(qb_cuda_attention_train_backward(&c.gpu, NULL));
        case_destroy(&c);
    }
}

static int pool_create(void **state)
{
    (void)state;
    return qb_pool_create(qb_test_is_small() ? 2 : 0, &pool) != QB_OK;
}
static int pool_destroy(void **state)
{
    (void)state;
    qb_pool_destroy(pool);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(f32_equals_the_reference),
        cmocka_unit_test(bf16_equals_the_reference),
        cmocka_unit_test(common_shapes_equal_the_reference),
        cmocka_unit_test(every_kind_goes_far),
        cmocka_unit_test(some_row_takes_anything),
    };
    return cmocka_run_group_tests(tests, pool_create, pool_destroy);
}
