/* infer/interventions.c - see interventions.h. */
#include "infer/interventions.h"

#include "core/memory.h"
#include "kernels/attention.h"

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
    /* Of drop-first-key: */
    const qb_attention_row *attention;
    float *qkv;     /* (max_rows, (H + 2 Hkv) D) of the layer at work */
    float *scratch; /* of each thread */
    float *sink;    /* (H) where softmax is sink */
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

/* Keeps what the scores are made of. */
static void keep_qkv(qb_intervention *i, const qb_tap_view *v)
{
    for (size_t row = 0; row < v->batch * v->n_tokens; row++)
        memcpy(i->qkv + row * v->width, row_of(v, row), v->width * sizeof *v->x);
}

/* A window without its first token: positions are in q and k already, so what is left of the keys
 * takes the first one's share in proportion. To take p_1 v_1 from the sum and divide by 1 - p_1
 * would leave nothing but rounding where p_1 is near 1. The first query has no other key and stays.
 */
static void attend_without_first(const qb_intervention *i, const qb_tap_view *v, size_t b)
{
    const qb_config *c = i->c;
    size_t width = (c->n_heads + 2 * c->n_kv_heads) * c->head_dim;
    const float *second = i->qkv + (b * v->n_tokens + 1) * width;
    const qb_attention_args args = {.batch = 1,
                                    .n_q = v->n_tokens - 1,
                                    .n_heads = c->n_heads,
                                    .n_kv_heads = c->n_kv_heads,
                                    .head_dim = c->head_dim,
                                    .softmax = c->softmax,
                                    .sink = i->sink,
                                    .scale = 1.0f / sqrtf((float)c->head_dim),
                                    .q = second,
                                    .q_stride = width,
                                    .k = second + c->n_heads * c->head_dim,
                                    .v = second + (c->n_heads + c->n_kv_heads) * c->head_dim,
                                    .kv_stride = width,
                                    .out = row_of(v, b * v->n_tokens + 1),
                                    .out_stride = v->stride,
                                    .scratch = i->scratch};
    qb_attention_run(i->attention, &args, i->options.pool);
}

static qb_status drop_first_key(qb_intervention *i, const qb_tap_view *v)
{
    const qb_tensor *sink = qb_model_tensor(i->model, QB_ROLE_SINK, v->layer);
    if (v->tap == QB_TAP_QKV) {
        keep_qkv(i, v);
        return QB_OK;
    }
    if (i->sink) qb_tensor_rows_f32(sink, 0, 1, i->sink);
    for (size_t b = 0; v->n_tokens > 1 && b < v->batch; b++) attend_without_first(i, v, b);
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
        "--remove: found %.40s, expected head:L.H, attn:L or mlp:L with L from 1 to %zu, H to %zu",
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

static qb_status create_attention(qb_intervention *i)
{
    const qb_config *c = i->c;
    size_t rows = i->options.max_rows, width = (c->n_heads + 2 * c->n_kv_heads) * c->head_dim;
    const qb_attention_args shape = {.batch = 1,
                                     .n_q = rows,
                                     .n_heads = c->n_heads,
                                     .n_kv_heads = c->n_kv_heads,
                                     .head_dim = c->head_dim};
    size_t elems, n_threads = qb_pool_n_threads(i->options.pool);
    i->attention = QB_KERNEL_PICK(qb_attention_kernels);
    if (!qb_mul_size(rows, width, &elems))
        return QB_FAIL(QB_ERR_MEMORY, "drop-first-key: %zu rows overflow", rows);
    QB_TRY(QB_NEW(&i->qkv, elems, "queries, keys, values"));
    QB_TRY(QB_NEW(&i->scratch, n_threads * i->attention->scratch_elems(&shape), "scores"));
    return c->softmax == QB_SOFTMAX_SINK ? QB_NEW(&i->sink, c->n_heads, "sink logits") : QB_OK;
}

static qb_status create(qb_intervention *i, const char *what)
{
    QB_TRY(check(i, what));
    i->taps = (qb_taps){.sees = i->kind->taps, .edits = i->kind->taps, .see = see, .context = i};
    if (i->kind->edit != drop_first_key) return QB_OK;
    i->taps.edits = QB_TAP_BIT(QB_TAP_ATTENTION);
    return create_attention(i);
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
    qb_free(i->qkv);
    qb_free(i->scratch);
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
