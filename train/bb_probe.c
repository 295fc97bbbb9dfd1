/* train/bb_probe.c - see bb_probe.h. */
#include "train/bb_probe.h"

#include "core/memory.h"
#include "kernels/gemm_f32.h"

#include <math.h>
#include <string.h>

typedef struct mean {
    double sum, n;
} mean;

typedef struct layer_sums {
    mean attn_bos, attn_triggers, score_gap;
    mean value[2], stream[2]; /* [0] at <s>, [1] elsewhere */
    mean value_triggers;
} layer_sums;

struct qb_bb_probe {
    const qb_bb *bb;
    const qb_params *params;
    const float *weights;
    const int32_t *tokens;
    size_t context;
    qb_pool *pool;
    double *entropy; /* (vocab) of the truth after each token */
    mean backcopy, bigram, bigram_rest, oracle;
    layer_sums layers[QB_BB_MAX_LAYERS];
};

static void add(mean *m, double value)
{
    m->sum += value;
    m->n++;
}

static double value_of(const mean *m) /* 0 / 0 = NaN */
{
    return m->sum / m->n;
}

/* ---- norms ---- */

enum { SPAN_ROWS = 64 };

static const int32_t *window_of(const qb_bb_probe *p, size_t window)
{
    return p->tokens + window * (p->context + 1);
}

/* Of rows of x, the first of them of window `first`: at <s> and elsewhere; at triggers unless NULL.
 */
static qb_status add_norms(qb_bb_probe *p, const float *x, size_t first, size_t n_rows,
                           size_t width, mean sums[2], mean *triggers)
{
    qb_token_figures *rows;
    QB_TRY(QB_NEW(&rows, n_rows, "norms"));
    qb_token_figures_of(x, n_rows, width, p->pool, rows);
    for (size_t row = 0; row < n_rows; row++) {
        size_t t = row % p->context;
        add(&sums[t > 0], rows[row].norm);
        if (triggers && p->bb->is_trigger[window_of(p, first + row / p->context)[t]])
            add(triggers, rows[row].norm);
    }
    qb_free(rows);
    return QB_OK;
}

/* ---- the probe ---- */

static void fill_entropy(const qb_bb *bb, double *entropy)
{
    for (size_t token = 0; token < bb->vocab; token++) {
        const double *truth = bb->conditional + token * bb->vocab;
        for (size_t v = 0; v < bb->vocab; v++)
            if (truth[v] > 0) entropy[token] -= truth[v] * log(truth[v]);
    }
}

qb_status qb_bb_probe_create(const qb_bb *bb, const qb_params *params, const float *weights,
                             const int32_t *tokens, size_t context, qb_pool *pool,
                             qb_bb_probe **out)
{
    qb_bb_probe *p;
    QB_TRY(QB_NEW_ZERO(&p, 1, "probe"));
    *p = (qb_bb_probe){.bb = bb,
                       .params = params,
                       .weights = weights,
                       .tokens = tokens,
                       .context = context,
                       .pool = pool};
    qb_status status = QB_NEW_ZERO(&p->entropy, bb->vocab, "probe");
    if (status != QB_OK) {
        qb_bb_probe_destroy(p);
        return status;
    }
    fill_entropy(bb, p->entropy);
    *out = p;
    return QB_OK;
}

void qb_bb_probe_destroy(qb_bb_probe *probe)
{
    if (!probe) return;
    qb_free(probe->entropy);
    qb_free(probe);
}

/* y (m, n) = x (m, k) w^T. */
static qb_status multiply(qb_bb_probe *p, const float *w, size_t m, size_t n, size_t k,
                          const float *x, float *y)
{
    const qb_gemm_f32_row *row = QB_KERNEL_PICK(qb_gemm_f32_kernels);
    qb_gemm_f32_args args = {.m = m, .n = n, .k = k, .x = x, .x_stride = k, .y = y, .y_stride = n};
    void *packed;
    QB_TRY(qb_alloc_zero(&packed, row->packed_bytes(n, k), 1, "operand"));
    row->pack(w, 0, n, n, k, packed);
    args.w = packed;
    qb_gemm_f32_run(row, &args, 1, p->pool);
    qb_free(packed);
    return QB_OK;
}

/* ---- attention ---- */

static void add_first_key(qb_bb_probe *p, const qb_observed *o, const qb_first_key_view *view)
{
    size_t heads = p->params->config.n_heads;
    layer_sums *sums = &p->layers[o->layer];
    for (size_t i = 0; i < o->batch * heads * p->context; i++) {
        size_t t = i % p->context, window = i / p->context / heads;
        if (p->bb->is_trigger[window_of(p, o->first + window)[t]]) continue;
        add(&sums->attn_bos, view->weight[i]);
        add(&sums->attn_triggers, view->marked_weight[i]);
        if (t > 1) add(&sums->score_gap, view->gap[i]);
    }
}

/* v (H D) of each token, the heads of a group sharing theirs, side by side. */
static void copy_values(const qb_config *c, const qb_observed *qkv, size_t rows, float *v)
{
    size_t dim = c->head_dim, per_group = c->n_heads / c->n_kv_heads;
    for (size_t row = 0; row < rows; row++)
        for (size_t h = 0; h < c->n_heads; h++)
            memcpy(v + (row * c->n_heads + h) * dim,
                   qkv->values + row * qkv->width +
                       (c->n_heads + c->n_kv_heads + h / per_group) * dim,
                   dim * sizeof *v);
}

static qb_status add_values(qb_bb_probe *p, const qb_observed *o)
{
    const qb_config *c = &p->params->config;
    const float *w = p->weights + qb_params_find(p->params, QB_ROLE_O, o->layer)->offset;
    size_t rows = o->batch * p->context, k = c->n_heads * c->head_dim;
    float *v = NULL, *y = NULL;
    qb_status status = QB_NEW(&v, rows * k, "values");
    if (status == QB_OK) status = QB_NEW(&y, rows * c->d_model, "values");
    if (status == QB_OK) {
        copy_values(c, o, rows, v);
        status = multiply(p, w, rows, c->d_model, k, v, y);
    }
    layer_sums *sums = &p->layers[o->layer];
    if (status == QB_OK)
        status = add_norms(p, y, o->first, rows, c->d_model, sums->value, &sums->value_triggers);
    qb_free(v);
    qb_free(y);
    return status;
}

qb_status qb_bb_probe_attention(qb_bb_probe *p, const qb_observed *qkv,
                                const qb_first_key_view *view)
{
    if (qkv->layer >= QB_BB_MAX_LAYERS) return QB_OK;
    add_first_key(p, qkv, view);
    return add_values(p, qkv);
}

qb_status qb_bb_probe_stream(qb_bb_probe *p, const qb_observed *x)
{
    if (x->layer >= QB_BB_MAX_LAYERS) return QB_OK;
    return add_norms(p, x->values, x->first, x->batch * p->context, x->width,
                     p->layers[x->layer].stream, NULL);
}

/* ---- risks ---- */

static double log_sum_exp(const float *logits, size_t n)
{
    double top = logits[0], sum = 0;
    for (size_t i = 1; i < n; i++) top = logits[i] > top ? logits[i] : top;
    for (size_t i = 0; i < n; i++) sum += exp(logits[i] - top);
    return top + log(sum);
}

static double bigram_risk(const qb_bb *bb, int32_t token, const float *logits, double log_sum)
{
    const double *truth = bb->conditional + (size_t)token * bb->vocab;
    double risk = 0;
    for (size_t v = 0; v < bb->vocab; v++)
        if (truth[v] > 0) risk += truth[v] * (log_sum - logits[v]);
    return risk;
}

/* Of all rows of a pass. */
typedef struct risk_rows {
    const qb_bb_probe *p;
    size_t first_window, vocab;
    const float *logits;
    double *risks;
} risk_rows;

static int32_t token_of(const risk_rows *r, size_t row, size_t back)
{
    return window_of(r->p, r->first_window + row / r->p->context)[row % r->p->context - back];
}

/* The first token is <s>, no trigger. */
static void risk_task(void *context, size_t begin, size_t end)
{
    const risk_rows *r = context;
    for (size_t row = begin; row < end; row++) {
        const float *logits = r->logits + row * r->vocab;
        int32_t token = token_of(r, row, 0);
        double log_sum = log_sum_exp(logits, r->vocab);
        bool copies = r->p->bb->is_trigger[token] && row % r->p->context;
        r->risks[row] = copies ? log_sum - logits[token_of(r, row, 1)]
                               : bigram_risk(r->p->bb, token, logits, log_sum);
    }
}

static void add_risks(qb_bb_probe *p, const risk_rows *r, size_t n_rows)
{
    for (size_t row = 0; row < n_rows; row++) {
        int32_t token = token_of(r, row, 0);
        if (p->bb->is_trigger[token]) {
            if (row % p->context) add(&p->backcopy, r->risks[row]);
            continue;
        }
        add(&p->bigram, r->risks[row]);
        add(&p->oracle, p->entropy[token]);
        if (row % p->context) add(&p->bigram_rest, r->risks[row]);
    }
}

qb_status qb_bb_probe_head_input(qb_bb_probe *p, const qb_observed *h)
{
    const qb_config *c = &p->params->config;
    qb_role role = c->tied_head ? QB_ROLE_TOK_EMBD : QB_ROLE_HEAD;
    const float *w = p->weights + qb_params_find(p->params, role, 0)->offset;
    size_t rows = h->batch * p->context;
    float *logits;
    QB_TRY(QB_NEW(&logits, rows * c->vocab, "logits"));
    risk_rows r = {.p = p, .first_window = h->first, .vocab = c->vocab, .logits = logits};
    qb_status status = multiply(p, w, rows, c->vocab, c->d_model, h->values, logits);
    if (status == QB_OK) status = QB_NEW(&r.risks, rows, "risks");
    if (status == QB_OK) {
        qb_parallel_spans(p->pool, rows, SPAN_ROWS, risk_task, &r);
        add_risks(p, &r, rows);
    }
    qb_free(r.risks);
    qb_free(logits);
    return status;
}

void qb_bb_probe_finish(const qb_bb_probe *p, qb_bb_metrics *out)
{
    size_t n_layers = p->params->config.n_layers;
    *out = (qb_bb_metrics){.backcopy_risk = value_of(&p->backcopy),
                           .bigram_risk = value_of(&p->bigram),
                           .bigram_excess = value_of(&p->bigram) - value_of(&p->oracle),
                           .bigram_risk_rest = value_of(&p->bigram_rest),
                           .n_layers = n_layers < QB_BB_MAX_LAYERS ? n_layers : QB_BB_MAX_LAYERS};
    for (size_t l = 0; l < out->n_layers; l++) {
        const layer_sums *s = &p->layers[l];
        out->layers[l] = (qb_bb_layer){.attn_bos = value_of(&s->attn_bos),
                                       .attn_triggers = value_of(&s->attn_triggers),
                                       .score_gap = value_of(&s->score_gap),
                                       .value_bos = value_of(&s->value[0]),
                                       .value_triggers = value_of(&s->value_triggers),
                                       .value_rest = value_of(&s->value[1]),
                                       .stream_bos = value_of(&s->stream[0]),
                                       .stream_rest = value_of(&s->stream[1])};
    }
}
