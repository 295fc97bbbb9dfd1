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
    mean attn_bos, score_gap, value[2], stream[2]; /* [0] at <s>, [1] elsewhere */
} layer_sums;

struct qb_bb_probe {
    const qb_bb *bb;
    const qb_params *params;
    const float *weights;
    const int32_t *tokens;
    size_t context;
    qb_pool *pool;
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

static double norm_of(const float *x, size_t n)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += (double)x[i] * x[i];
    return sqrt(sum);
}

qb_status qb_bb_probe_create(const qb_bb *bb, const qb_params *params, const float *weights,
                             const int32_t *tokens, size_t context, qb_pool *pool,
                             qb_bb_probe **out)
{
    QB_TRY(QB_NEW_ZERO(out, 1, "probe"));
    **out = (qb_bb_probe){.bb = bb,
                          .params = params,
                          .weights = weights,
                          .tokens = tokens,
                          .context = context,
                          .pool = pool};
    return QB_OK;
}

void qb_bb_probe_destroy(qb_bb_probe *probe)
{
    qb_free(probe);
}

static const int32_t *window_of(const qb_bb_probe *p, size_t window)
{
    return p->tokens + window * (p->context + 1);
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
    for (size_t row = 0; row < rows && status == QB_OK; row++)
        add(&p->layers[o->layer].value[row % p->context > 0],
            norm_of(y + row * c->d_model, c->d_model));
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

void qb_bb_probe_stream(qb_bb_probe *p, const qb_observed *x)
{
    if (x->layer >= QB_BB_MAX_LAYERS) return;
    for (size_t row = 0; row < x->batch * p->context; row++)
        add(&p->layers[x->layer].stream[row % p->context > 0],
            norm_of(x->values + row * x->width, x->width));
}

/* ---- risks ---- */

static double log_sum_exp(const float *logits, size_t n)
{
    double top = logits[0], sum = 0;
    for (size_t i = 1; i < n; i++) top = logits[i] > top ? logits[i] : top;
    for (size_t i = 0; i < n; i++) sum += exp(logits[i] - top);
    return top + log(sum);
}

static void add_bigram(qb_bb_probe *p, int32_t token, size_t t, const float *logits, double log_sum)
{
    const double *truth = p->bb->conditional + (size_t)token * p->bb->vocab;
    double risk = 0, least = 0;
    for (size_t v = 0; v < p->bb->vocab; v++) {
        if (truth[v] <= 0) continue;
        risk += truth[v] * (log_sum - logits[v]);
        least -= truth[v] * log(truth[v]);
    }
    add(&p->bigram, risk);
    add(&p->oracle, least);
    if (t) add(&p->bigram_rest, risk);
}

static void add_risks(qb_bb_probe *p, const int32_t *window, const float *logits, size_t vocab)
{
    for (size_t t = 0; t < p->context; t++, logits += vocab) {
        double log_sum = log_sum_exp(logits, vocab);
        if (!p->bb->is_trigger[window[t]])
            add_bigram(p, window[t], t, logits, log_sum);
        else if (t)
            add(&p->backcopy, log_sum - logits[window[t - 1]]);
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
    qb_status status = multiply(p, w, rows, c->vocab, c->d_model, h->values, logits);
    for (size_t b = 0; b < h->batch && status == QB_OK; b++)
        add_risks(p, window_of(p, h->first + b), logits + b * p->context * c->vocab, c->vocab);
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
                                       .score_gap = value_of(&s->score_gap),
                                       .value_bos = value_of(&s->value[0]),
                                       .value_rest = value_of(&s->value[1]),
                                       .stream_bos = value_of(&s->stream[0]),
                                       .stream_rest = value_of(&s->stream[1])};
    }
}
