/* infer/analysis.c - making an analysis, and handing each view to those that add it up. */
#include "infer/analysis_internal.h"

#include "core/interrupt.h"
#include "core/memory.h"

#include <stdlib.h>

/* ---- which view goes where ---- */

static layer_sums *layer_of(qb_analysis *a, const qb_tap_view *v)
{
    return v->tap == QB_TAP_EMBEDDING ? &a->embedding : &a->layers[v->layer];
}

static void begin_windows(qb_analysis *a, const qb_tap_view *v)
{
    if (!a->n_windows && v->n_tokens < a->map_rows) a->map_rows = v->n_tokens;
    a->n_windows += v->batch;
    for (size_t t = 0; t < v->n_tokens; t++) a->position_n[t] += v->batch;
}

static sample_sums *sample_of(qb_analysis *a, const qb_tap_view *v)
{
    switch (v->role) {
    case QB_ROLE_NORM1:
        return &a->layers[v->layer].samples[SAMPLE_NORM1];
    case QB_ROLE_NORM2:
        return &a->layers[v->layer].samples[SAMPLE_NORM2];
    case QB_ROLE_O:
        return &a->layers[v->layer].samples[SAMPLE_ATTN_OUT];
    case QB_ROLE_DOWN:
        return &a->layers[v->layer].samples[SAMPLE_MLP_OUT];
    default:
        return &a->final_norm;
    }
}

static qb_status see(void *context, const qb_tap_view *v)
{
    qb_analysis *a = context;
    QB_TRY(qb_interrupt_check());
    switch (v->tap) {
    case QB_TAP_EMBEDDING:
        begin_windows(a, v);
        return qb__analysis_add_stream(a, layer_of(a, v), v);
    case QB_TAP_STREAM:
        return qb__analysis_add_stream(a, layer_of(a, v), v);
    case QB_TAP_QKV:
        return qb__analysis_add_heads(a, layer_of(a, v), v);
    case QB_TAP_NORMED:
    case QB_TAP_ADDED:
        qb__analysis_add_sample(a, sample_of(a, v), v);
        return QB_OK;
    default:
        return QB_OK;
    }
}

/* ---- making ---- */

static qb_status create_norms(const qb_analysis *a, norm_sums *s)
{
    return QB_NEW_ZERO(&s->by_position, a->options.context, "norms by position");
}

static qb_status create_layer(const qb_analysis *a, layer_sums *l)
{
    size_t width = a->c->d_model;
    QB_TRY(QB_NEW_ZERO(&l->channels, width, "channels"));
    QB_TRY(QB_NEW_ZERO(&l->massive_channels, width, "channels"));
    QB_TRY(create_norms(a, &l->hidden));
    if (a->options.maps) QB_TRY(QB_NEW_ZERO(&l->stream_map, a->map_rows * a->map_columns, "maps"));
    if (!l->has_attention) return QB_OK;
    QB_TRY(create_norms(a, &l->key));
    QB_TRY(create_norms(a, &l->value));
    QB_TRY(QB_NEW_ZERO(&l->heads, a->options.n_texts * a->c->n_heads, "heads"));
    if (!a->options.maps) return QB_OK;
    return QB_NEW_ZERO(&l->attention_map, a->map_rows * a->map_rows, "maps");
}

static qb_status create_layers(qb_analysis *a)
{
    QB_TRY(create_layer(a, &a->embedding));
    QB_TRY(QB_NEW_ZERO(&a->layers, a->c->n_layers, "layers"));
    for (size_t i = 0; i < a->c->n_layers; i++) {
        a->layers[i].is_block = true;
        a->layers[i].has_attention = qb_config_has_attention(a->c, i);
        QB_TRY(create_layer(a, &a->layers[i]));
    }
    return QB_OK;
}

static qb_status load_sinks(qb_analysis *a)
{
    if (a->c->softmax != QB_SOFTMAX_SINK) return QB_OK;
    QB_TRY(QB_NEW_ZERO(&a->sinks, a->c->n_layers, "sink logits"));
    for (size_t i = 0; i < a->c->n_layers; i++) {
        const qb_tensor *t = qb_model_tensor(a->model, QB_ROLE_SINK, i);
        if (!t->data) continue;
        QB_TRY(QB_NEW(&a->sinks[i], t->cols, "sink logits"));
        qb_tensor_rows_f32(t, 0, 1, a->sinks[i]);
    }
    return QB_OK;
}

static qb_status create_scratch(qb_analysis *a)
{
    size_t rows = a->options.max_rows, windows = rows, elems, n_heads = a->c->n_heads;
    if (!qb_mul_size(rows, a->c->d_model, &elems))
        return QB_FAIL(QB_ERR_MEMORY, "analysis: %zu rows overflow", rows);
    QB_TRY(QB_NEW(&a->tokens, rows, "figures of tokens"));
    QB_TRY(QB_NEW(&a->magnitudes, elems, "magnitudes"));
    QB_TRY(QB_NEW(&a->windows, windows, "figures of windows"));
    QB_TRY(QB_NEW(&a->heads, windows * n_heads, "figures of heads"));
    QB_TRY(QB_NEW(&a->columns, rows * n_heads, "sinks"));
    QB_TRY(QB_NEW_ZERO(&a->position_n, a->options.context, "positions"));
    if (!a->options.maps) return QB_OK;
    return QB_NEW(&a->map, n_heads * a->map_rows * a->map_rows, "maps");
}

static size_t least(size_t a, size_t b)
{
    return a < b ? a : b;
}

qb_status qb_analysis_create(const qb_model *model, const qb_analysis_options *options,
                             qb_analysis **out)
{
    qb_analysis *a;
    QB_TRY(QB_NEW_ZERO(&a, 1, "analysis"));
    *a = (qb_analysis){.model = model,
                       .c = &model->config,
                       .options = *options,
                       .sink_tokens = least(options->context, ANALYSIS_SINK_TOKENS),
                       .map_rows = least(options->context, ANALYSIS_MAP_CELLS),
                       .map_columns = least(model->config.d_model, ANALYSIS_MAP_CELLS),
                       .taps = {.sees = QB_TAP_BIT(QB_TAP_EMBEDDING) | QB_TAP_BIT(QB_TAP_STREAM) |
                                        QB_TAP_BIT(QB_TAP_QKV) | QB_TAP_BIT(QB_TAP_NORMED) |
                                        QB_TAP_BIT(QB_TAP_ADDED),
                                .see = see,
                                .context = a}};
    qb_status status = create_layers(a);
    if (status == QB_OK) status = load_sinks(a);
    if (status == QB_OK) status = create_scratch(a);
    if (status != QB_OK)
        qb_analysis_destroy(a);
    else
        *out = a;
    return status;
}

static void destroy_layer(layer_sums *l)
{
    qb_free(l->channels);
    qb_free(l->massive_channels);
    qb_free(l->hidden.by_position);
    qb_free(l->key.by_position);
    qb_free(l->value.by_position);
    qb_free(l->heads);
    qb_free(l->attention_map);
    qb_free(l->stream_map);
}

void qb_analysis_destroy(qb_analysis *a)
{
    if (!a) return;
    destroy_layer(&a->embedding);
    for (size_t i = 0; i < a->c->n_layers; i++) {
        if (a->layers) destroy_layer(&a->layers[i]);
        if (a->sinks) qb_free(a->sinks[i]);
    }
    void *rest[] = {a->layers,  a->sinks, a->position_n, a->tokens, a->magnitudes,
                    a->windows, a->heads, a->columns,    a->map};
    for (size_t i = 0; i < QB_COUNT(rest); i++) qb_free(rest[i]);
    qb_free(a);
}

const qb_taps *qb_analysis_taps(const qb_analysis *a)
{
    return &a->taps;
}

void qb_analysis_begin_text(qb_analysis *a, size_t text_idx)
{
    a->text = text_idx;
}

/* ---- massive activations ---- */

static size_t count_massive(const qb_analysis *a)
{
    size_t n = 0;
    for (size_t layer = 0; layer < a->c->n_layers; layer++)
        for (size_t c = 0; c < a->c->d_model; c++) n += a->layers[layer].massive_channels[c].n > 0;
    return n;
}

qb_status qb_analysis_massive(const qb_analysis *a, qb_massive_place **places, size_t *n)
{
    qb_massive_place *p;
    size_t found = 0;
    QB_TRY(QB_NEW(&p, count_massive(a), "massive activations"));
    for (size_t layer = 0; layer < a->c->n_layers; layer++)
        for (size_t c = 0; c < a->c->d_model; c++) {
            const massive_sums *m = &a->layers[layer].massive_channels[c];
            if (m->n > 0) p[found++] = (qb_massive_place){layer, c, m->sum / m->n, m->least};
        }
    *places = p;
    *n = found;
    return QB_OK;
}
