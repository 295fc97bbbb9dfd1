/* infer/analysis_heads.c - adding up what attention does: weights on the first key, sinks, norms of
 * keys and values. */
#include "infer/analysis_internal.h"

#include <assert.h>
#include <math.h>

/* ---- norms ---- */

static double norm_of(const float *x, size_t n)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += (double)x[i] * x[i];
    return sqrt(sum);
}

/* Of all key-value heads of a row; x is its first. */
static void add_norms(const qb_config *c, norm_sums *s, size_t position, const float *x)
{
    for (size_t h = 0; h < c->n_kv_heads; h++)
        qb__analysis_add_norm(s, position, norm_of(x + h * c->head_dim, c->head_dim));
}

static void add_rows(const qb_config *c, layer_sums *l, const qb_tap_view *v)
{
    for (size_t row = 0; row < v->batch * v->n_tokens; row++) {
        const float *k = v->x + row * v->stride + c->n_heads * c->head_dim;
        add_norms(c, &l->key, row % v->n_tokens, k);
        add_norms(c, &l->value, row % v->n_tokens, k + c->n_kv_heads * c->head_dim);
    }
}

/* ---- sinks (Gu et al. 2024, arXiv:2410.10781) ---- */

/* alpha_k = mean weight of key k over the queries k to T that can see it, T = sink_tokens. */
static void add_sinks(const qb_analysis *a, layer_sums *l, head_sums *h, const double *column)
{
    size_t n = a->sink_tokens;
    for (size_t k = 0; k < n; k++) {
        double alpha = column[k] / (double)(n - k);
        l->alpha[k] += alpha;
        l->sinks[k] += alpha > ANALYSIS_SINK_EPS;
        if (k) continue;
        size_t bin = (size_t)(alpha * ANALYSIS_SINK_BINS);
        l->sink_bins[bin < ANALYSIS_SINK_BINS ? bin : ANALYSIS_SINK_BINS - 1]++;
        h->alpha += alpha;
        h->sinks += alpha > ANALYSIS_SINK_EPS;
        h->n_windows++;
    }
    l->n_alpha++;
}

static void add_head(head_sums *h, const qb_head_figures *figures, size_t n_tokens)
{
    h->figures.argmax += figures->argmax;
    h->figures.share += figures->share;
    h->figures.silent += figures->silent;
    h->figures.dormant += figures->dormant;
    h->n_queries += (double)(n_tokens - 1);
}

/* The mean over heads. */
static void draw_attention(const qb_analysis *a, layer_sums *l)
{
    size_t n = a->map_rows * a->map_rows;
    for (size_t h = 0; h < a->c->n_heads; h++)
        for (size_t i = 0; i < n; i++)
            l->attention_map[i] += a->map[h * n + i] / (double)a->c->n_heads;
}

qb_status qb__analysis_add_heads(qb_analysis *a, layer_sums *l, const qb_tap_view *v)
{
    const float *sink = a->sinks ? a->sinks[v->layer] : NULL;
    size_t n_heads = a->c->n_heads, n = v->batch * n_heads;
    bool is_first = l->attention_map && l->key.n[0] == 0;
    qb_attention_wishes wishes = {0};
    assert(v->stride == v->width);
    if (v->n_tokens >= a->sink_tokens) {
        wishes.column = a->columns;
        wishes.n_columns = a->sink_tokens;
    }
    if (is_first) {
        wishes.map = a->map;
        wishes.n_cells = a->map_rows;
    }
    QB_TRY(qb_attention_figures(a->c, v->x, sink, v->batch, v->n_tokens, a->options.pool, &wishes,
                                a->heads));
    qb_outlier_add_heads(&l->outliers, a->heads, n, v->n_tokens);
    if (is_first) draw_attention(a, l);
    for (size_t i = 0; i < n; i++) {
        head_sums *h = &l->heads[a->text * n_heads + i % n_heads];
        add_head(h, &a->heads[i], v->n_tokens);
        if (wishes.column) add_sinks(a, l, h, wishes.column + i * wishes.n_columns);
    }
    add_rows(a->c, l, v);
    return QB_OK;
}
