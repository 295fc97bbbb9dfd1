/* infer/interventions.c - see interventions.h. */
#include "infer/interventions.h"

#include "core/memory.h"
#include "quant/outliers.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

typedef struct kind kind;

struct qb_intervention {
    const qb_model *model;
    const qb_config *c;
    const kind *kind;
    size_t layer, head; /* from 0, of a part */
    qb_intervention_options options;
    qb_taps taps;
    size_t n_edits;
    float *weight, *gap;    /* (windows, H, T) of the first key: drop-first-key */
    qb_head_figures *heads; /* (windows H) */
    float *first_values;    /* (windows, Hkv D) */
    float *sink;            /* (H) of the layer at work, where softmax is sink */
};

struct kind {
    const char *name; /* with a colon where a part's place follows */
    unsigned taps;
    qb_status (*edit)(qb_intervention *i, const qb_tap_view *v);
};

static float *row_of(const qb_tap_view *v, size_t row)
{
    return v->x + row * v->stride;
}

static void clear(qb_intervention *i, const qb_tap_view *v, size_t from, size_t n)
{
    for (size_t row = 0; row < v->batch * v->n_tokens; row++)
        memset(row_of(v, row) + from, 0, n * sizeof *v->x);
    i->n_edits += v->batch * v->n_tokens * n;
}

/* ---- massive activations ---- */

/* In every layer that holds them: where they are zero once, later layers hold none, unless they
 * make them anew. */
static void set_massive(qb_intervention *i, const qb_tap_view *v, bool to_mean)
{
    for (size_t p = 0; p < i->options.n_places; p++) {
        const qb_massive_place *place = &i->options.places[p];
        if (place->layer != v->layer) continue;
        for (size_t row = 0; row < v->batch * v->n_tokens; row++) {
            float *x = row_of(v, row) + place->channel;
            if (fabs(*x) < place->least) continue;
            *x = to_mean ? (float)place->mean : 0;
            i->n_edits++;
        }
    }
}

static qb_status zero_massive(qb_intervention *i, const qb_tap_view *v)
{
    set_massive(i, v, false);
    return QB_OK;
}

static qb_status mean_massive(qb_intervention *i, const qb_tap_view *v)
{
    set_massive(i, v, true);
    return QB_OK;
}

/* ---- the first token ---- */

static qb_status zero_first_value(qb_intervention *i, const qb_tap_view *v)
{
    size_t n = i->c->n_kv_heads * i->c->head_dim, from = v->width - n;
    for (size_t b = 0; b < v->batch; b++)
        memset(row_of(v, b * v->n_tokens) + from, 0, n * sizeof *v->x);
    i->n_edits += v->batch * n;
    return QB_OK;
}

/* Keeps what the first key does, to be taken away from attention's output. */
static qb_status look_at_first_key(qb_intervention *i, const qb_tap_view *v)
{
    const qb_first_key_view view = {.weight = i->weight};
    const qb_attention_wishes wishes = {.view = &view};
    size_t n = i->c->n_kv_heads * i->c->head_dim;
    const qb_tensor *sink = qb_model_tensor(i->model, QB_ROLE_SINK, v->layer);
    if (i->sink) qb_tensor_rows_f32(sink, 0, 1, i->sink);
    for (size_t b = 0; b < v->batch; b++)
        memcpy(i->first_values + b * n, row_of(v, b * v->n_tokens) + v->width - n,
               n * sizeof *v->x);
    return qb_attention_figures(i->c, v->x, i->sink, v->batch, v->n_tokens, i->options.pool,
                                &wishes, i->heads);
}

/* out = sum_j p_j v_j: without the first key, whose share the others take in proportion,
 * (out - p_1 v_1) / (1 - p_1). The first query has no other key and stays. */
static void drop_first_key_row(const qb_intervention *i, size_t b, size_t head, size_t t,
                               size_t n_tokens, float *out)
{
    size_t dim = i->c->head_dim, group = i->c->n_heads / i->c->n_kv_heads;
    const float *value = i->first_values + (b * i->c->n_kv_heads + head / group) * dim;
    double p = i->weight[(b * i->c->n_heads + head) * n_tokens + t];
    for (size_t d = 0; d < dim && p < 1; d++) out[d] = (float)((out[d] - p * value[d]) / (1 - p));
}

static qb_status drop_first_key(qb_intervention *i, const qb_tap_view *v)
{
    if (v->tap == QB_TAP_QKV) return look_at_first_key(i, v);
    for (size_t b = 0; b < v->batch; b++)
        for (size_t t = 1; t < v->n_tokens; t++)
            for (size_t h = 0; h < i->c->n_heads; h++)
                drop_first_key_row(i, b, h, t, v->n_tokens,
                                   row_of(v, b * v->n_tokens + t) + h * i->c->head_dim);
    i->n_edits += v->batch * (v->n_tokens - 1) * v->width;
    return QB_OK;
}

/* ---- parts ---- */

static qb_status remove_head(qb_intervention *i, const qb_tap_view *v)
{
    if (v->layer == i->layer) clear(i, v, i->head * i->c->head_dim, i->c->head_dim);
    return QB_OK;
}

static qb_status remove_attention(qb_intervention *i, const qb_tap_view *v)
{
    if (v->layer == i->layer && v->role == QB_ROLE_O) clear(i, v, 0, v->width);
    return QB_OK;
}

static qb_status remove_mlp(qb_intervention *i, const qb_tap_view *v)
{
    if (v->layer == i->layer && v->role == QB_ROLE_DOWN) clear(i, v, 0, v->width);
    return QB_OK;
}

/* ---- the table ---- */

static const kind kinds[] = {
    {"zero-massive", QB_TAP_BIT(QB_TAP_STREAM), zero_massive},
    {"mean-massive", QB_TAP_BIT(QB_TAP_STREAM), mean_massive},
    {"zero-first-value", QB_TAP_BIT(QB_TAP_QKV), zero_first_value},
    {"drop-first-key", QB_TAP_BIT(QB_TAP_QKV) | QB_TAP_BIT(QB_TAP_ATTENTION), drop_first_key},
    {"head:", QB_TAP_BIT(QB_TAP_ATTENTION), remove_head},
    {"attn:", QB_TAP_BIT(QB_TAP_ADDED), remove_attention},
    {"mlp:", QB_TAP_BIT(QB_TAP_ADDED), remove_mlp},
};

static qb_status see(void *context, const qb_tap_view *v)
{
    qb_intervention *i = context;
    return i->kind->edit(i, v);
}

/* ---- making ---- */

static qb_status wrong(const qb_model *model, const char *what)
{
    return QB_FAIL(
        QB_ERR_USAGE,
        "--remove: found %.40s, expected head:L.H, attn:L or mlp:L with L from 1 to %zu, "
        "H to %zu",
        what, model->config.n_layers, model->config.n_heads);
}

/* "3.2" or "3" behind the colon. */
static qb_status parse_part(qb_intervention *i, const char *what)
{
    const char *place = strchr(what, ':') + 1;
    bool is_head = i->kind->edit == remove_head;
    unsigned layer = 0, head = 0;
    char rest;
    int n = is_head ? sscanf(place, "%4u.%4u%c", &layer, &head, &rest)
                    : sscanf(place, "%4u%c", &layer, &rest);
    bool whole = n == (is_head ? 2 : 1) && *place >= '0' && *place <= '9';
    if (!whole || layer < 1 || layer > i->c->n_layers) return wrong(i->model, what);
    if (is_head && (head < 1 || head > i->c->n_heads)) return wrong(i->model, what);
    i->layer = layer - 1;
    i->head = is_head ? head - 1 : 0;
    if (i->kind->edit != remove_mlp && !qb_config_has_attention(i->c, i->layer))
        return QB_FAIL(QB_ERR_USAGE, "--remove: found %.40s, expected a block with attention",
                       what);
    return QB_OK;
}

static qb_status parse(qb_intervention *i, const char *what)
{
    for (size_t k = 0; k < QB_COUNT(kinds); k++) {
        size_t n = strlen(kinds[k].name);
        bool is_part = kinds[k].name[n - 1] == ':';
        if (is_part ? strncmp(what, kinds[k].name, n) : strcmp(what, kinds[k].name)) continue;
        i->kind = &kinds[k];
        return is_part ? parse_part(i, what) : QB_OK;
    }
    return wrong(i->model, what);
}

static qb_status check(qb_intervention *i, const char *what)
{
    QB_TRY(parse(i, what));
    if (i->kind->edit != drop_first_key) return QB_OK;
    if (i->c->softmax == QB_SOFTMAX_RELU || i->c->softmax == QB_SOFTMAX_CLIPPED ||
        i->c->free_prefix)
        return QB_FAIL(QB_ERR_UNSUPPORTED,
                       "--drop-first-key: found softmax %s, free prefix %zu: expected weights that "
                       "sum to one over causal keys",
                       qb_softmax_names[i->c->softmax], i->c->free_prefix);
    return QB_OK;
}

qb_status qb_intervention_check(const qb_model *model, const char *what)
{
    qb_intervention probe = {.model = model, .c = &model->config};
    return check(&probe, what);
}

static qb_status create(qb_intervention *i, const char *what)
{
    size_t rows = i->options.max_rows, n_heads = i->c->n_heads;
    QB_TRY(check(i, what));
    i->taps = (qb_taps){.sees = i->kind->taps, .edits = i->kind->taps, .see = see, .context = i};
    if (i->kind->edit != drop_first_key) return QB_OK;
    i->taps.edits = QB_TAP_BIT(QB_TAP_ATTENTION);
    QB_TRY(QB_NEW(&i->weight, rows * n_heads, "weights of the first key"));
    QB_TRY(QB_NEW(&i->heads, rows * n_heads, "weights of the first key"));
    QB_TRY(QB_NEW(&i->first_values, rows * i->c->n_kv_heads * i->c->head_dim, "first values"));
    return i->c->softmax == QB_SOFTMAX_SINK ? QB_NEW(&i->sink, n_heads, "sink logits") : QB_OK;
}

qb_status qb_intervention_create(const qb_model *model, const char *what,
                                 const qb_intervention_options *options, qb_intervention **out)
{
    qb_intervention *i;
    QB_TRY(QB_NEW_ZERO(&i, 1, "intervention"));
    *i = (qb_intervention){.model = model, .c = &model->config, .options = *options};
    qb_status status = create(i, what);
    if (status != QB_OK)
        qb_intervention_destroy(i);
    else
        *out = i;
    return status;
}

void qb_intervention_destroy(qb_intervention *i)
{
    if (!i) return;
    qb_free(i->weight);
    qb_free(i->heads);
    qb_free(i->first_values);
    qb_free(i->sink);
    qb_free(i);
}

const qb_taps *qb_intervention_taps(const qb_intervention *i)
{
    return &i->taps;
}

size_t qb_intervention_n_edits(const qb_intervention *i)
{
    return i->n_edits;
}
