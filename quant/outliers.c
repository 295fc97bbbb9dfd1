/* quant/outliers.c - see outliers.h. */
#include "quant/outliers.h"

#include "core/memory.h"
#include "kernels/gemm_f32.h"
#include "kernels/pointwise.h"

#include <math.h>
#include <string.h>

const char *const qb_outlier_names[QB_N_OUTLIERS] = {"kurt_token_first",  "kurt_token_rest",
                                                     "max_abs_first",     "max_abs_rest",
                                                     "attn_first_argmax", "attn_first_share"};

/* ---- the residual stream ---- */

enum { SPAN_ROWS = 64 };

typedef struct token_rows {
    const float *x;
    size_t width;
    qb_token_figures *found;
} token_rows;

static void token_task(void *context, size_t begin, size_t end)
{
    const token_rows *t = context;
    for (size_t row = begin; row < end; row++) {
        const float *x = t->x + row * t->width;
        qb_token_figures *f = &t->found[row];
        *f = (qb_token_figures){.moments = qb_moments_of(x, t->width),
                                .max_abs = qb_max_abs(x, t->width)};
        f->norm = sqrt(f->moments.m2 + f->moments.n * f->moments.mean * f->moments.mean);
        if (isnan(f->norm)) f->max_abs = NAN; /* the largest of the others would hide it */
    }
}

void qb_token_figures_of(const float *x, size_t n_rows, size_t width, qb_pool *pool,
                         qb_token_figures *out)
{
    token_rows rows = {.x = x, .width = width, .found = out};
    qb_parallel_spans(pool, n_rows, SPAN_ROWS, token_task, &rows);
}

void qb_outlier_add_tokens(qb_outlier_sums *sums, const qb_token_figures *tokens, size_t batch,
                           size_t context)
{
    for (size_t row = 0; row < batch * context; row++) {
        int rest = row % context > 0;
        if (tokens[row].moments.m2 != 0) { /* NaN, too, is to be seen */
            sums->kurt[rest] += qb_moments_kurtosis(&tokens[row].moments);
            sums->n_kurt[rest]++;
        }
        sums->max_abs[rest] += tokens[row].max_abs;
        sums->n_tokens[rest]++;
    }
}

qb_status qb_outlier_add_stream(qb_outlier_sums *sums, const float *x, size_t batch, size_t context,
                                size_t width, qb_pool *pool)
{
    qb_token_figures *found;
    QB_TRY(QB_NEW(&found, batch * context, "outliers"));
    qb_token_figures_of(x, batch * context, width, pool, found);
    qb_outlier_add_tokens(sums, found, batch, context);
    qb_free(found);
    return QB_OK;
}

/* ---- attention ---- */

enum { QUERY_BLOCK = 64 };

/* All heads of all windows of one layer; a task has one. */
typedef struct heads {
    const qb_config *c;
    const qb_gemm_f32_row *gemm;
    const qb_pointwise_row *pointwise;
    const float *qkv, *sink;
    size_t context, width;
    float *scratch; /* of each thread: keys, packed keys, queries, scores */
    size_t keys_elems, packed_elems, query_elems, thread_elems;
    qb_head_figures *found; /* (batch H) */
    qb_attention_wishes wishes;
} heads;

/* What a query makes of the scores of the keys that it sees. */
typedef struct verdict {
    bool is_argmax;       /* of the first key */
    double first, silent; /* weight of the first key, and of none */
    double log_sum;
} verdict;

static double weight_of(const qb_config *c, double score, double log_sum, size_t seen)
{
    if (c->softmax == QB_SOFTMAX_RELU) return score > 0 ? score / (double)seen : 0;
    double p = exp(score - log_sum);
    if (c->softmax != QB_SOFTMAX_CLIPPED) return p;
    p = (c->softmax_zeta - c->softmax_gamma) * p + c->softmax_gamma;
    return p < 0 ? 0 : p > 1 ? 1 : p;
}

/* silent: a logit beside the keys', -inf = none. */
static verdict judge(const heads *h, const float *s, size_t seen, double silent)
{
    const qb_config *c = h->c;
    int32_t top;
    double log_sum = h->pointwise->logsumexp(s, seen, &top);
    if (silent > log_sum)
        log_sum = silent + log1p(exp(log_sum - silent));
    else
        log_sum += log1p(exp(silent - log_sum));
    double first = weight_of(c, s[0], log_sum, seen);
    /* Only these two make one weight of several scores. */
    bool ties = c->softmax == QB_SOFTMAX_RELU || c->softmax == QB_SOFTMAX_CLIPPED;
    bool is_argmax = ties ? first >= weight_of(c, s[top], log_sum, seen) : s[0] >= s[top];
    bool is_sum = c->softmax == QB_SOFTMAX1 || c->softmax == QB_SOFTMAX_SINK;
    return (verdict){is_argmax, first, is_sum ? exp(silent - log_sum) : 0, log_sum};
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

static double weight_of_marked(const heads *h, size_t head, const float *s, size_t seen,
                               double log_sum)
{
    const bool *marked = h->wishes.view->marked + head / h->c->n_heads * h->context;
    double sum = 0;
    for (size_t j = 0; j < seen; j++)
        if (marked[j]) sum += weight_of(h->c, s[j], log_sum, seen);
    return sum;
}

/* The weights of one query, added to its columns and to its row of cells. */
static void spread_weights(const heads *h, size_t head, size_t query, const float *s, size_t seen,
                           double log_sum)
{
    const qb_attention_wishes *w = &h->wishes;
    double *column = w->column && query < w->n_columns ? w->column + head * w->n_columns : NULL;
    double *cells = NULL;
    if (w->map && head < h->c->n_heads)
        cells = w->map + (head * w->n_cells + query * w->n_cells / h->context) * w->n_cells;
    if (!column && !cells) return;
    for (size_t j = 0; j < seen; j++) {
        double weight = weight_of(h->c, s[j], log_sum, seen);
        if (column && j <= query) column[j] += weight;
        if (cells) cells[j * w->n_cells / h->context] += weight;
    }
}

static void look_at_query(const heads *h, size_t head, size_t query, const float *s, double silent)
{
    size_t seen = query + 1 > h->c->free_prefix ? query + 1 : h->c->free_prefix;
    if (seen > h->context) seen = h->context;
    verdict v = judge(h, s, seen, silent);
    const qb_first_key_view *view = h->wishes.view;
    size_t at = head * h->context + query;
    if (view) view->weight[at] = (float)v.first;
    if (view && view->gap) view->gap[at] = gap_of(s, query);
    if (view && view->marked)
        view->marked_weight[at] = (float)weight_of_marked(h, head, s, seen, v.log_sum);
    spread_weights(h, head, query, s, seen, v.log_sum);
    if (query == 0) return; /* it has no choice */
    qb_head_figures *found = &h->found[head];
    found->argmax += isnan(v.first) ? NAN : v.is_argmax;
    found->share += v.first;
    found->silent += v.silent;
    found->dormant += isnan(v.first) ? NAN : v.first + v.silent > QB_DORMANT_WEIGHT;
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

static qb_status alloc_scratch(heads *h, qb_pool *pool)
{
    size_t dim = h->c->head_dim;
    h->keys_elems = qb_round_up(h->context * dim, 16);
    h->packed_elems = qb_round_up(h->gemm->packed_bytes(h->context, dim) / sizeof(float), 16);
    h->query_elems = qb_round_up(QUERY_BLOCK * dim, 16);
    h->thread_elems = h->keys_elems + h->packed_elems + h->query_elems +
                      qb_round_up(QUERY_BLOCK * h->context, 16);
    return QB_NEW(&h->scratch, qb_pool_n_threads(pool) * h->thread_elems, "scores");
}

/* Tokens i of n with i * n_cells / n == cell. */
static size_t cell_tokens(size_t n, size_t n_cells, size_t cell)
{
    return ((cell + 1) * n + n_cells - 1) / n_cells - (cell * n + n_cells - 1) / n_cells;
}

/* Sums over the tokens of a cell become means. */
static void average_cells(const heads *h)
{
    const qb_attention_wishes *w = &h->wishes;
    for (size_t i = 0; i < h->c->n_heads * w->n_cells * w->n_cells; i++) {
        size_t row = i / w->n_cells % w->n_cells, column = i % w->n_cells;
        w->map[i] /= (double)cell_tokens(h->context, w->n_cells, row) *
                     (double)cell_tokens(h->context, w->n_cells, column);
    }
}

qb_status qb_attention_figures(const qb_config *config, const float *qkv, const float *sink,
                               size_t batch, size_t context, qb_pool *pool,
                               const qb_attention_wishes *wishes, qb_head_figures *out)
{
    heads h = {.c = config,
               .gemm = QB_KERNEL_PICK(qb_gemm_f32_kernels),
               .pointwise = QB_KERNEL_PICK(qb_pointwise_kernels),
               .qkv = qkv,
               .sink = sink,
               .context = context,
               .found = out,
               .width = (config->n_heads + 2 * config->n_kv_heads) * config->head_dim};
    size_t n = batch * config->n_heads;
    if (wishes) h.wishes = *wishes;
    QB_TRY(alloc_scratch(&h, pool));
    memset(out, 0, n * sizeof *out);
    if (h.wishes.column) memset(h.wishes.column, 0, n * h.wishes.n_columns * sizeof(double));
    if (h.wishes.map)
        memset(h.wishes.map, 0,
               config->n_heads * h.wishes.n_cells * h.wishes.n_cells * sizeof(double));
    qb_parallel_for(pool, n, head_task, &h);
    if (h.wishes.map) average_cells(&h);
    qb_free(h.scratch);
    return QB_OK;
}

void qb_outlier_add_heads(qb_outlier_sums *sums, const qb_head_figures *figures, size_t n,
                          size_t context)
{
    for (size_t i = 0; i < n; i++) {
        sums->argmax += figures[i].argmax;
        sums->share += figures[i].share;
    }
    sums->n_queries += (double)(n * (context - 1));
}

qb_status qb_outlier_add_attention(qb_outlier_sums *sums, const qb_config *config, const float *qkv,
                                   const float *sink, size_t batch, size_t context, qb_pool *pool,
                                   const qb_first_key_view *view)
{
    const qb_attention_wishes wishes = {.view = view};
    qb_head_figures *found;
    size_t n = batch * config->n_heads;
    QB_TRY(QB_NEW(&found, n, "scores"));
    qb_status status =
        qb_attention_figures(config, qkv, sink, batch, context, pool, &wishes, found);
    if (status == QB_OK) qb_outlier_add_heads(sums, found, n, context);
    qb_free(found);
    return status;
}

qb_outliers qb_outlier_finish(const qb_outlier_sums *s) /* 0 / 0 = NaN: not measured */
{
    return (qb_outliers){.kurt_token_first = s->kurt[0] / s->n_kurt[0],
                         .kurt_token_rest = s->kurt[1] / s->n_kurt[1],
                         .max_abs_first = s->max_abs[0] / s->n_tokens[0],
                         .max_abs_rest = s->max_abs[1] / s->n_tokens[1],
                         .attn_first_argmax = s->argmax / s->n_queries,
                         .attn_first_share = s->share / s->n_queries};
}
