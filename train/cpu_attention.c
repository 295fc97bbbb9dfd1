/* train/cpu_attention.c - attention forward and backward on the processor.
 *
 * A task has one key head of one window and goes through its query heads in blocks of queries. All
 * scores of a block stay in the second cache level; a block sees the keys up to its last query. The
 * backward pass works the scores out again from the saved log-sum-exp. With P the weights, O = P V:
 *
 *     dV = P^T dO    dP = dO V^T    dS = P (dP - sum_j P dP)    dQ = scale dS K    dK = scale dS^T
 * Q
 */
#include "core/memory.h"
#include "train/cpu_ops_internal.h"

#include <math.h>
#include <string.h>

enum { QUERY_BLOCK = 64 };

/* A thread's scratch. */
typedef struct buffers {
    float *q;                 /* (QUERY_BLOCK, D), times the scale */
    float *dense;             /* (T, D): keys or values side by side */
    float *keys, *values;     /* packed for scores and for dP */
    float *values_t, *keys_t; /* packed for O and for dQ; one place */
    float *packed_q, *packed_d;
    float *s, *ds; /* (QUERY_BLOCK, T) */
} buffers;

typedef struct call {
    const qb_train_device *d;
    const qb_train_attention *a;
    const float *dout;
    float *dqkv;
} call;

static size_t packed_elems(const qb_train_device *d, size_t n, size_t k)
{
    return qb_round_up(d->gemm->packed_bytes(n, k) / sizeof(float), 16);
}

static buffers buffers_at(const qb_train_device *d, size_t thread_idx, size_t *n_elems)
{
    size_t context = d->options->context, dim = d->c->head_dim;
    size_t scores = qb_round_up(QUERY_BLOCK * context, 16);
    const size_t sizes[] = {qb_round_up(QUERY_BLOCK * dim, 16),
                            qb_round_up(context * dim, 16),
                            packed_elems(d, context, dim),
                            packed_elems(d, context, dim),
                            packed_elems(d, dim, context),
                            packed_elems(d, dim, QUERY_BLOCK),
                            packed_elems(d, dim, QUERY_BLOCK),
                            scores,
                            scores};
    size_t at[QB_COUNT(sizes)], total = 0;
    for (size_t i = 0; i < QB_COUNT(sizes); i++) {
        at[i] = total;
        total += sizes[i];
    }
    *n_elems = total;
    float *p = d->attention_scratch ? d->attention_scratch + thread_idx * total : NULL;
    if (!p) return (buffers){0};
    return (buffers){.q = p + at[0],
                     .dense = p + at[1],
                     .keys = p + at[2],
                     .values = p + at[3],
                     .values_t = p + at[4],
                     .keys_t = p + at[4],
                     .packed_q = p + at[5],
                     .packed_d = p + at[6],
                     .s = p + at[7],
                     .ds = p + at[8]};
}

qb_status qb__cpu_attention_create(qb_train_device *d)
{
    size_t n_elems;
    buffers_at(d, 0, &n_elems);
    QB_TRY(qb__cpu_alloc(d, d->options->micro_batch * d->c->n_heads, sizeof(double),
                         "sums of sink logits", (void **)&d->sink_sums));
    return qb__cpu_alloc(d, qb_pool_n_threads(d->pool) * n_elems, sizeof(float),
                         "scratch of attention", (void **)&d->attention_scratch);
}

/* ---- one head of one window ---- */

typedef struct head {
    const qb_train_device *d;
    buffers b;
    size_t context, dim, width, q_width; /* width: of a row of qkv */
    const float *q, *k, *v;              /* row t at + t * width */
    float scale;
    float sink; /* logit; -inf = none, 0 for softmax1 */
} head;

static head head_of(const call *c, size_t batch_idx, size_t h, buffers b)
{
    const qb_config *config = c->d->c;
    head x = {.d = c->d, .b = b, .context = c->d->options->context, .dim = config->head_dim};
    x.width = qb_train_qkv_width(config);
    x.q_width = config->n_heads * x.dim;
    const float *row = (const float *)c->a->qkv + batch_idx * x.context * x.width;
    size_t g = h / (config->n_heads / config->n_kv_heads);
    x.q = row + h * x.dim;
    x.k = row + x.q_width + g * x.dim;
    x.v = x.k + config->n_kv_heads * x.dim;
    x.scale = 1.0f / sqrtf((float)x.dim);
    x.sink = config->softmax == QB_SOFTMAX1 ? 0 : -INFINITY;
    if (config->softmax == QB_SOFTMAX_SINK) x.sink = qb__cpu_weights(c->d, c->a->sink)[h];
    return x;
}

/* A product within a task. */
static void multiply(const head *x, qb_gemm_f32_args args)
{
    size_t n_tasks = x->d->gemm->n_tasks(&args, 1);
    for (size_t i = 0; i < n_tasks; i++) x->d->gemm->task(&args, i, n_tasks);
}

static void pack_rows(const head *x, const float *rows, size_t n_rows, float *packed)
{
    for (size_t t = 0; t < n_rows; t++)
        memcpy(x->b.dense + t * x->dim, rows + t * x->width, x->dim * sizeof *rows);
    x->d->gemm->pack(x->b.dense, 0, n_rows, n_rows, x->dim, packed);
}

static void pack_columns(const head *x, const float *rows, size_t stride, size_t n_rows,
                         float *packed)
{
    x->d->gemm->pack_transposed(rows, stride, 0, x->dim, x->dim, n_rows, packed);
}

/* Keys that query i sees, and keys that a block of queries up to i1 needs. */
static size_t keys_seen(const head *x, size_t i)
{
    size_t free = x->d->c->free_prefix < x->context ? x->d->c->free_prefix : x->context;
    return i + 1 > free ? i + 1 : free;
}

/* s (n_rows, n_keys) = scale q k^T of queries [i0, i0 + n_rows). */
static void scores(const head *x, size_t i0, size_t n_rows, size_t n_keys)
{
    for (size_t r = 0; r < n_rows; r++)
        x->d->gradient->scale(x->q + (i0 + r) * x->width, x->dim, x->scale, x->b.q + r * x->dim);
    multiply(x, (qb_gemm_f32_args){.m = n_rows,
                                   .n = n_keys,
                                   .k = x->dim,
                                   .x = x->b.q,
                                   .x_stride = x->dim,
                                   .w = x->b.keys,
                                   .y = x->b.s,
                                   .y_stride = n_keys});
}

/* ---- softmax kinds (core/kinds.h) ---- */

static float add_logs(float a, float b) /* log(e^a + e^b) */
{
    float high = a > b ? a : b, low = a > b ? b : a;
    return low == -INFINITY ? high : high + log1pf(expf(low - high));
}

static float log_sum_exp(const head *x, const float *s, size_t n)
{
    int32_t top;
    if (x->d->c->softmax == QB_SOFTMAX_RELU) return 0;
    return add_logs((float)x->d->pointwise->logsumexp(s, n, &top), x->sink);
}

/* Scores become weights, before they are clipped. */
static void weigh(const head *x, float *s, size_t seen, size_t n_keys, float lse)
{
    if (x->d->c->softmax == QB_SOFTMAX_RELU)
        for (size_t j = 0; j < seen; j++) s[j] = s[j] > 0 ? s[j] / (float)seen : 0;
    else
        x->d->gradient->exp_shift(s, seen, lse);
    memset(s + seen, 0, (n_keys - seen) * sizeof *s);
}

/* to = clip((zeta - gamma) p + gamma, 0, 1) of the keys seen; the others stay 0. */
static void clip(const head *x, const float *p, size_t seen, size_t n_keys, float *to)
{
    float gamma = (float)x->d->c->softmax_gamma, zeta = (float)x->d->c->softmax_zeta;
    for (size_t j = 0; j < n_keys; j++) {
        float y = j < seen ? (zeta - gamma) * p[j] + gamma : 0;
        to[j] = y < 0 ? 0 : y > 1 ? 1 : y;
    }
}

/* ds, the gradient of weights p, becomes that of the scores. Returns the sum of p ds. */
static float scores_backward(const head *x, const float *p, size_t seen, size_t n_keys, float *ds)
{
    const qb_config *c = x->d->c;
    memset(ds + seen, 0, (n_keys - seen) * sizeof *ds);
    if (c->softmax == QB_SOFTMAX_RELU) {
        for (size_t j = 0; j < seen; j++) ds[j] = p[j] > 0 ? ds[j] / (float)seen : 0;
        return 0;
    }
    if (c->softmax == QB_SOFTMAX_CLIPPED) {
        float gamma = (float)c->softmax_gamma, slope = (float)c->softmax_zeta - gamma;
        for (size_t j = 0; j < seen; j++) {
            float y = slope * p[j] + gamma;
            ds[j] = y > 0 && y < 1 ? slope * ds[j] : 0;
        }
    }
    return x->d->gradient->softmax(p, seen, ds);
}

/* Rows of y = the block's rows of weights (n_rows, n_keys) times packed (n_keys, D). */
static void sum_over_keys(const head *x, size_t n_rows, size_t n_keys, const float *weights,
                          const float *packed, float *y, size_t y_stride)
{
    multiply(x, (qb_gemm_f32_args){.m = n_rows,
                                   .n = x->dim,
                                   .k = n_keys,
                                   .x = weights,
                                   .x_stride = n_keys,
                                   .w = packed,
                                   .y = y,
                                   .y_stride = y_stride});
}

/* ---- forward ---- */

static void forward_block(const head *x, size_t i0, size_t n_rows, float *lse, float *out)
{
    size_t n_keys = keys_seen(x, i0 + n_rows - 1), heads = x->d->c->n_heads;
    scores(x, i0, n_rows, n_keys);
    for (size_t r = 0; r < n_rows; r++) {
        float *s = x->b.s + r * n_keys;
        size_t seen = keys_seen(x, i0 + r);
        lse[(i0 + r) * heads] = log_sum_exp(x, s, seen);
        weigh(x, s, seen, n_keys, lse[(i0 + r) * heads]);
        if (x->d->c->softmax == QB_SOFTMAX_CLIPPED) clip(x, s, seen, n_keys, s);
    }
    pack_columns(x, x->v, x->width, n_keys, x->b.values_t);
    sum_over_keys(x, n_rows, n_keys, x->b.s, x->b.values_t, out + i0 * x->q_width, x->q_width);
}

static void forward_task(void *context, size_t i, size_t thread_idx)
{
    const call *c = context;
    const qb_config *config = c->d->c;
    size_t n_elems, group = config->n_heads / config->n_kv_heads;
    size_t batch_idx = i / config->n_kv_heads, h0 = i % config->n_kv_heads * group;
    for (size_t h = h0; h < h0 + group; h++) {
        head x = head_of(c, batch_idx, h, buffers_at(c->d, thread_idx, &n_elems));
        size_t row = batch_idx * x.context;
        if (h == h0) pack_rows(&x, x.k, x.context, x.b.keys);
        for (size_t i0 = 0; i0 < x.context; i0 += QUERY_BLOCK)
            forward_block(&x, i0, x.context - i0 < QUERY_BLOCK ? x.context - i0 : QUERY_BLOCK,
                          (float *)c->a->lse + row * config->n_heads + h,
                          (float *)c->a->out + row * x.q_width + h * x.dim);
    }
}

qb_status qb__cpu_attention_forward(qb_train_device *d, const qb_train_attention *a)
{
    call c = {.d = d, .a = a};
    qb_parallel_for(d->pool, d->batch * d->c->n_kv_heads, forward_task, &c);
    return QB_OK;
}

/* ---- backward ---- */

/* Where the gradients of one head go. */
typedef struct head_gradients {
    const float *dout; /* row t at + t * q_width */
    float *dq, *dk, *dv;
    const float *lse; /* of query t at + t * H */
    double sink;
} head_gradients;

/* n_keys rows of dk or dv: (+)= weights^T of the block's rows times packed. */
static void add_to_keys(const head *x, size_t n_rows, size_t n_keys, const float *weights,
                        const float *packed, bool first, float *to)
{
    multiply(x, (qb_gemm_f32_args){.m = n_keys,
                                   .n = x->dim,
                                   .k = n_rows,
                                   .x = weights,
                                   .x_stride = n_keys,
                                   .x_transposed = true,
                                   .w = packed,
                                   .y = to,
                                   .y_stride = x->width,
                                   .accumulate = !first});
}

static void query_gradients(const head *x, size_t i0, size_t n_rows, size_t n_keys, float *dq)
{
    pack_columns(x, x->k, x->width, n_keys, x->b.keys_t);
    sum_over_keys(x, n_rows, n_keys, x->b.ds, x->b.keys_t, dq + i0 * x->width, x->width);
    for (size_t i = i0; i < i0 + n_rows; i++)
        x->d->gradient->scale(dq + i * x->width, x->dim, x->scale, dq + i * x->width);
}

/* The first block that is run, the last of the window, sees all keys and overwrites dk and dv. */
static void backward_block(const head *x, size_t i0, size_t n_rows, bool first, head_gradients *g)
{
    size_t n_keys = keys_seen(x, i0 + n_rows - 1);
    const buffers *b = &x->b;
    const float *dout = g->dout + i0 * x->q_width, *weights = b->s;
    scores(x, i0, n_rows, n_keys);
    for (size_t r = 0; r < n_rows; r++) {
        size_t seen = keys_seen(x, i0 + r), at = r * n_keys;
        weigh(x, b->s + at, seen, n_keys, g->lse[(i0 + r) * x->d->c->n_heads]);
        if (x->d->c->softmax != QB_SOFTMAX_CLIPPED) continue;
        clip(x, b->s + at, seen, n_keys, b->ds + at);
        weights = b->ds;
    }
    pack_columns(x, dout, x->q_width, n_rows, b->packed_d);
    add_to_keys(x, n_rows, n_keys, weights, b->packed_d, first, g->dv);
    multiply(x, (qb_gemm_f32_args){.m = n_rows,
                                   .n = n_keys,
                                   .k = x->dim,
                                   .x = dout,
                                   .x_stride = x->q_width,
                                   .w = b->values,
                                   .y = b->ds,
                                   .y_stride = n_keys});
    for (size_t r = 0; r < n_rows; r++) {
        size_t seen = keys_seen(x, i0 + r), at = r * n_keys;
        float sum = scores_backward(x, b->s + at, seen, n_keys, b->ds + at);
        if (x->d->c->softmax == QB_SOFTMAX_SINK)
            g->sink -=
                exp((double)x->sink - (double)g->lse[(i0 + r) * x->d->c->n_heads]) * (double)sum;
    }
    pack_columns(x, b->q, x->dim, n_rows, b->packed_q);
    add_to_keys(x, n_rows, n_keys, b->ds, b->packed_q, first, g->dk);
    query_gradients(x, i0, n_rows, n_keys, g->dq);
}

static void backward_task(void *context, size_t i, size_t thread_idx)
{
    const call *c = context;
    const qb_config *config = c->d->c;
    size_t n_elems, group = config->n_heads / config->n_kv_heads;
    size_t batch_idx = i / config->n_kv_heads, h0 = i % config->n_kv_heads * group;
    for (size_t h = h0; h < h0 + group; h++) {
        head x = head_of(c, batch_idx, h, buffers_at(c->d, thread_idx, &n_elems));
        size_t row = batch_idx * x.context, blocks = (x.context + QUERY_BLOCK - 1) / QUERY_BLOCK;
        const float *qkv = c->a->qkv;
        head_gradients g = {.dout = c->dout + row * x.q_width + h * x.dim,
                            .dq = c->dqkv + (x.q - qkv),
                            .dk = c->dqkv + (x.k - qkv),
                            .dv = c->dqkv + (x.v - qkv),
                            .lse = (float *)c->a->lse + row * config->n_heads + h};
        if (h == h0) {
            pack_rows(&x, x.k, x.context, x.b.keys);
            pack_rows(&x, x.v, x.context, x.b.values);
        }
        for (size_t block = blocks; block-- > 0;) {
            size_t i0 = block * QUERY_BLOCK;
            backward_block(&x, i0, x.context - i0 < QUERY_BLOCK ? x.context - i0 : QUERY_BLOCK,
                           h == h0 && block + 1 == blocks, &g);
        }
        c->d->sink_sums[batch_idx * config->n_heads + h] = g.sink;
    }
}

qb_status qb__cpu_attention_backward(qb_train_device *d, const qb_train_attention *a,
                                     const void *dout, void *dqkv)
{
    call c = {.d = d, .a = a, .dout = dout, .dqkv = dqkv};
    qb_parallel_for(d->pool, d->batch * d->c->n_kv_heads, backward_task, &c);
    float *sink = qb__cpu_gradients(d, a->sink);
    for (size_t h = 0; sink && h < d->c->n_heads; h++) {
        double sum = 0;
        for (size_t b = 0; b < d->batch; b++) sum += d->sink_sums[b * d->c->n_heads + h];
        sink[h] += (float)sum;
    }
    return QB_OK;
}
