/* train/outliers.c - see outliers.h. */
#include "train/outliers.h"

#include "core/memory.h"
#include "kernels/gemm_f32.h"

#include <math.h>
#include <string.h>

const char *const qb_outlier_names[QB_N_OUTLIERS] = {"kurt_token_first",  "kurt_token_rest",
                                                     "max_abs_first",     "max_abs_rest",
                                                     "attn_first_argmax", "attn_first_share"};

/* ---- the residual stream ---- */

static double kurtosis(const float *x, size_t n)
{
    double sum = 0, second = 0, fourth = 0;
    for (size_t i = 0; i < n; i++) sum += x[i];
    double mean = sum / (double)n;
    for (size_t i = 0; i < n; i++) {
        double d = x[i] - mean;
        second += d * d;
        fourth += d * d * d * d;
    }
    double variance = second / (double)n;
    return variance > 0 ? fourth / (double)n / (variance * variance) : 0;
}

static double max_abs(const float *x, size_t n)
{
    float most = 0;
    for (size_t i = 0; i < n; i++) most = fabsf(x[i]) > most ? fabsf(x[i]) : most;
    return most;
}

enum { SPAN_ROWS = 64 };

typedef struct stream_rows {
    const float *x;
    size_t width;
    double (*found)[2]; /* of each row: kurtosis, largest value */
} stream_rows;

static void stream_task(void *context, size_t begin, size_t end)
{
    const stream_rows *s = context;
    for (size_t row = begin; row < end; row++) {
        s->found[row][0] = kurtosis(s->x + row * s->width, s->width);
        s->found[row][1] = max_abs(s->x + row * s->width, s->width);
    }
}

qb_status qb_outlier_add_stream(qb_outlier_sums *sums, const float *x, size_t batch, size_t context,
                                size_t width, qb_pool *pool)
{
    stream_rows rows = {.x = x, .width = width};
    QB_TRY(QB_NEW(&rows.found, batch * context, "outliers"));
    qb_parallel_spans(pool, batch * context, SPAN_ROWS, stream_task, &rows);
    for (size_t row = 0; row < batch * context; row++) {
        int rest = row % context > 0;
        sums->kurt[rest] += rows.found[row][0];
        sums->max_abs[rest] += rows.found[row][1];
        sums->n_tokens[rest]++;
    }
    qb_free(rows.found);
    return QB_OK;
}

/* ---- attention ---- */

enum { QUERY_BLOCK = 64 };

/* All heads of all windows of one layer; a task has one. */
typedef struct heads {
    const qb_config *c;
    const qb_gemm_f32_row *gemm;
    const float *qkv, *sink;
    size_t context, width;
    float *scratch; /* of each thread: keys, packed keys, queries, scores */
    size_t keys_elems, packed_elems, query_elems, thread_elems;
    double (*found)[2];            /* (batch H): argmax, share */
    const qb_first_key_view *view; /* or NULL */
} heads;

/* Key 0's weight and the largest of the others', given scores s of the keys that a query sees. */
typedef struct first_key {
    bool is_argmax;
    double weight;
} first_key;

static double weight_of(const qb_config *c, double score, double log_sum, size_t seen)
{
    if (c->softmax == QB_SOFTMAX_RELU) return score > 0 ? score / (double)seen : 0;
    double p = exp(score - log_sum);
    if (c->softmax != QB_SOFTMAX_CLIPPED) return p;
    p = (c->softmax_zeta - c->softmax_gamma) * p + c->softmax_gamma;
    return p < 0 ? 0 : p > 1 ? 1 : p;
}

/* silent: a logit beside the keys', -inf = none. */
static first_key judge(const qb_config *c, const float *s, size_t seen, double silent)
{
    double others = -INFINITY, sum = 0;
    for (size_t j = 1; j < seen; j++) others = s[j] > others ? s[j] : others;
    double top = s[0] > others ? s[0] : others;
    top = silent > top ? silent : top;
    for (size_t j = 0; j < seen; j++) sum += exp(s[j] - top);
    sum += exp(silent - top);
    double log_sum = top + log(sum), first = weight_of(c, s[0], log_sum, seen);
    /* Only these two make one weight of several scores. */
    bool ties = c->softmax == QB_SOFTMAX_RELU || c->softmax == QB_SOFTMAX_CLIPPED;
    bool is_argmax = s[0] >= others;
    if (ties) is_argmax = first >= weight_of(c, others, log_sum, seen);
    return (first_key){is_argmax, first};
}

static void copy_rows(const heads *h, const float *from, size_t n_rows, float scale, float *to)
{
    size_t dim = h->c->head_dim;
    for (size_t t = 0; t < n_rows; t++)
        for (size_t i = 0; i < dim; i++) to[t * dim + i] = scale * from[t * h->width + i];
}

static void multiply(const heads *h, const float *q, const float *packed, size_t n_rows, float *s)
{
    qb_gemm_f32_args args = {.m = n_rows,
                             .n = h->context,
                             .k = h->c->head_dim,
                             .x = q,
                             .x_stride = h->c->head_dim,
                             .w = packed,
                             .y = s,
                             .y_stride = h->context};
    size_t n_tasks = h->gemm->n_tasks(&args, 1);
    for (size_t i = 0; i < n_tasks; i++) h->gemm->task(&args, i, n_tasks);
}

static float gap_of(const float *s, size_t query)
{
    double sum = 0;
    for (size_t j = 1; j < query; j++) sum += s[j];
    return query > 1 ? (float)(s[0] - sum / (double)(query - 1)) : 0;
}

static void look_at_query(const heads *h, size_t head, size_t query, const float *s, double silent)
{
    size_t seen = query + 1 > h->c->free_prefix ? query + 1 : h->c->free_prefix;
    if (seen > h->context) seen = h->context;
    first_key first = judge(h->c, s, seen, silent);
    if (h->view) {
        h->view->weight[head * h->context + query] = (float)first.weight;
        h->view->gap[head * h->context + query] = gap_of(s, query);
    }
    if (query == 0) return; /* it has no choice */
    h->found[head][0] += first.is_argmax;
    h->found[head][1] += first.weight;
}

static void head_task(void *context, size_t i, size_t thread_idx)
{
    const heads *h = context;
    const qb_config *c = h->c;
    size_t head = i % c->n_heads, group = head / (c->n_heads / c->n_kv_heads), dim = c->head_dim;
    const float *window = h->qkv + i / c->n_heads * h->context * h->width;
    float *keys = h->scratch + thread_idx * h->thread_elems, *packed = keys + h->keys_elems;
    float *q = packed + h->packed_elems, *s = q + h->query_elems;
    double silent = c->softmax == QB_SOFTMAX1 ? 0 : -INFINITY;
    if (c->softmax == QB_SOFTMAX_SINK) silent = h->sink[head];
    copy_rows(h, window + (c->n_heads + group) * dim, h->context, 1, keys);
    h->gemm->pack(keys, 0, h->context, h->context, dim, packed);
    for (size_t i0 = 0; i0 < h->context; i0 += QUERY_BLOCK) {
        size_t n = h->context - i0 < QUERY_BLOCK ? h->context - i0 : QUERY_BLOCK;
        copy_rows(h, window + i0 * h->width + head * dim, n, 1.0f / sqrtf((float)dim), q);
        multiply(h, q, packed, n, s);
        for (size_t r = 0; r < n; r++) look_at_query(h, i, i0 + r, s + r * h->context, silent);
    }
}

static qb_status alloc_scratch(heads *h, size_t batch, qb_pool *pool)
{
    size_t dim = h->c->head_dim;
    h->keys_elems = qb_round_up(h->context * dim, 16);
    h->packed_elems = qb_round_up(h->gemm->packed_bytes(h->context, dim) / sizeof(float), 16);
    h->query_elems = qb_round_up(QUERY_BLOCK * dim, 16);
    h->thread_elems = h->keys_elems + h->packed_elems + h->query_elems +
                      qb_round_up(QUERY_BLOCK * h->context, 16);
    QB_TRY(QB_NEW(&h->scratch, qb_pool_n_threads(pool) * h->thread_elems, "scores"));
    return QB_NEW_ZERO(&h->found, batch * h->c->n_heads, "scores");
}

qb_status qb_outlier_add_attention(qb_outlier_sums *sums, const qb_config *config, const float *qkv,
                                   const float *sink, size_t batch, size_t context, qb_pool *pool,
                                   const qb_first_key_view *view)
{
    heads h = {.c = config,
               .gemm = QB_KERNEL_PICK(qb_gemm_f32_kernels),
               .qkv = qkv,
               .sink = sink,
               .context = context,
               .view = view,
               .width = (config->n_heads + 2 * config->n_kv_heads) * config->head_dim};
    size_t n = batch * config->n_heads;
    qb_status status = alloc_scratch(&h, batch, pool);
    if (status == QB_OK) {
        qb_parallel_for(pool, n, head_task, &h);
        for (size_t i = 0; i < n; i++) {
            sums->argmax += h.found[i][0];
            sums->share += h.found[i][1];
        }
        sums->n_queries += (double)(n * (context - 1));
    }
    qb_free(h.scratch);
    qb_free(h.found);
    return status;
}

qb_outliers qb_outlier_finish(const qb_outlier_sums *s) /* 0 / 0 = NaN: not measured */
{
    return (qb_outliers){.kurt_token_first = s->kurt[0] / s->n_tokens[0],
                         .kurt_token_rest = s->kurt[1] / s->n_tokens[1],
                         .max_abs_first = s->max_abs[0] / s->n_tokens[0],
                         .max_abs_rest = s->max_abs[1] / s->n_tokens[1],
                         .attn_first_argmax = s->argmax / s->n_queries,
                         .attn_first_share = s->share / s->n_queries};
}
