/* infer/analysis_json.c - an analysis as JSON; docs/analyze.md and docs/analysis.schema.json name
 * its keys. */
#include "infer/analysis_internal.h"

#include "core/json.h"
#include "core/memory.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Figures of which few digits are looked at: the cells of maps. */
static json_t *rounded(double value)
{
    char text[32];
    snprintf(text, sizeof text, "%.4g", value);
    return qb_json_real(strtod(text, NULL));
}

static json_t *list_of(const double *values, size_t n, double divisor)
{
    json_t *list = json_array();
    for (size_t i = 0; i < n; i++) json_array_append_new(list, qb_json_real(values[i] / divisor));
    return list;
}

/* ---- layers and their mean ---- */

static void set_metrics(const qb_analysis *a, const layer_sums *l, json_t *object)
{
    for (const layer_metric *m = qb__analysis_metrics; m->name; m++)
        qb_json_set_real(object, m->name, qb__analysis_value(a, l, m));
}

/* Over the layers that have the metric; NaN where a stream holds NaN, since the others' mean would
 * hide it. */
static double mean_of(const qb_analysis *a, const layer_metric *m)
{
    double sum = 0, n = 0;
    for (size_t i = 0; i < a->c->n_layers; i++) {
        const qb_outlier_sums *stream = &a->layers[i].outliers;
        double value = qb__analysis_value(a, &a->layers[i], m);
        if (isnan(stream->max_abs[0] + stream->max_abs[1])) return NAN;
        if (isnan(value)) continue;
        sum += value;
        n++;
    }
    return sum / n;
}

static void add_layers(const qb_analysis *a, json_t *root)
{
    json_t *mean = json_object(), *layers = json_array(), *embedding = json_object();
    for (const layer_metric *m = qb__analysis_metrics; m->name; m++)
        qb_json_set_real(mean, m->name, mean_of(a, m));
    for (size_t i = 0; i < a->c->n_layers; i++) {
        json_t *layer = json_object();
        qb_json_set_size(layer, "layer", i + 1);
        set_metrics(a, &a->layers[i], layer);
        json_array_append_new(layers, layer);
    }
    set_metrics(a, &a->embedding, embedding);
    json_object_set_new(root, "mean", mean);
    json_object_set_new(root, "layers", layers);
    json_object_set_new(root, "embedding", embedding);
}

/* ---- over all layers ---- */

static const layer_metric *metric_named(const char *name)
{
    const layer_metric *m = qb__analysis_metrics;
    while (strcmp(m->name, name)) m++;
    return m;
}

static double correlation_of(const qb_analysis *a, const char *x_name, const char *y_name,
                             double *xy)
{
    size_t n = a->c->n_layers;
    for (size_t i = 0; i < n; i++) {
        xy[i] = qb__analysis_value(a, &a->layers[i], metric_named(x_name));
        xy[n + i] = qb__analysis_value(a, &a->layers[i], metric_named(y_name));
    }
    return qb_correlation(xy, xy + n, n);
}

/* Table 9: of kurtosis with max|x| / ||x||, over layers. */
static qb_status add_correlations(const qb_analysis *a, json_t *root)
{
    double *xy;
    QB_TRY(QB_NEW(&xy, 2 * a->c->n_layers, "correlations"));
    json_t *object = json_object();
    qb_json_set_real(object, "first",
                     correlation_of(a, "kurt_token_first", "norm_ratio_first", xy));
    qb_json_set_real(object, "rest", correlation_of(a, "kurt_token_rest", "norm_ratio_rest", xy));
    json_object_set_new(root, "kurt_norm_ratio_correlation", object);
    qb_free(xy);
    return QB_OK;
}

/* As Bondarenko et al. 2023 (arXiv:2306.12929) report a model: over all tensors tapped. */
static void add_samples(const qb_analysis *a, json_t *root)
{
    double sum = 0, n = 0, most = NAN, inf_norm = NAN;
    for (size_t i = 0; i <= a->c->n_layers * SAMPLE_COUNT; i++) {
        const sample_sums *s = i == a->c->n_layers * SAMPLE_COUNT
                                   ? &a->final_norm
                                   : &a->layers[i / SAMPLE_COUNT].samples[i % SAMPLE_COUNT];
        if (s->n_windows == 0) continue;
        sum += s->kurt / s->n_windows;
        n++;
        most = fmax(most, s->kurt / s->n_windows);
        inf_norm = fmax(inf_norm, s->inf_norm / s->n_windows);
    }
    qb_json_set_real(root, "kurt_sample_mean", sum / n);
    qb_json_set_real(root, "kurt_sample_max", most);
    qb_json_set_real(root, "inf_norm_max", inf_norm);
}

static void add_sinks(const qb_analysis *a, json_t *root)
{
    double alpha[ANALYSIS_SINK_TOKENS] = {0}, sinks[ANALYSIS_SINK_TOKENS] = {0},
           bins[ANALYSIS_SINK_BINS] = {0}, n = 0;
    for (size_t i = 0; i < a->c->n_layers; i++) {
        const layer_sums *l = &a->layers[i];
        for (size_t k = 0; k < ANALYSIS_SINK_TOKENS; k++) {
            alpha[k] += l->alpha[k];
            sinks[k] += l->sinks[k];
        }
        for (size_t k = 0; k < ANALYSIS_SINK_BINS; k++) bins[k] += l->sink_bins[k];
        n += l->n_alpha;
    }
    json_t *object = json_object();
    qb_json_set_real(object, "eps", ANALYSIS_SINK_EPS);
    qb_json_set_size(object, "tokens", a->sink_tokens);
    qb_json_set_real(object, "sink_1", 100 * sinks[0] / n);
    json_object_set_new(object, "alpha", list_of(alpha, a->sink_tokens, n));
    json_object_set_new(object, "sink", list_of(sinks, a->sink_tokens, n / 100));
    json_object_set_new(object, "alpha_1_bins", list_of(bins, ANALYSIS_SINK_BINS, n));
    json_object_set_new(root, "sinks", object);
}

/* ---- heads ---- */

static json_t *one_head(const qb_analysis *a, size_t layer, size_t head)
{
    head_sums all = {0};
    json_t *object = json_object(), *texts = json_array();
    for (size_t i = 0; i < a->options.n_texts; i++) {
        const head_sums *h = &a->layers[layer].heads[i * a->c->n_heads + head];
        all.figures.argmax += h->figures.argmax;
        all.figures.share += h->figures.share;
        all.figures.silent += h->figures.silent;
        all.figures.dormant += h->figures.dormant;
        all.n_queries += h->n_queries;
        all.alpha += h->alpha;
        all.sinks += h->sinks;
        all.n_windows += h->n_windows;
        json_array_append_new(texts, qb_json_real(h->figures.dormant / h->n_queries));
    }
    qb_json_set_size(object, "layer", layer + 1);
    qb_json_set_size(object, "head", head + 1);
    qb_json_set_real(object, "attn_first_argmax", all.figures.argmax / all.n_queries);
    qb_json_set_real(object, "attn_first_share", all.figures.share / all.n_queries);
    qb_json_set_real(object, "attn_silent_share", all.figures.silent / all.n_queries);
    qb_json_set_real(object, "sink_alpha", all.alpha / all.n_windows);
    qb_json_set_real(object, "sink_eps", 100 * all.sinks / all.n_windows);
    qb_json_set_real(object, "dormant_share", all.figures.dormant / all.n_queries);
    json_object_set_new(object, "dormant_share_by_text", texts);
    return object;
}

static void add_heads(const qb_analysis *a, json_t *root)
{
    json_t *heads = json_array();
    for (size_t layer = 0; layer < a->c->n_layers; layer++)
        for (size_t h = 0; a->layers[layer].has_attention && h < a->c->n_heads; h++)
            json_array_append_new(heads, one_head(a, layer, h));
    json_object_set_new(root, "heads", heads);
    qb_json_set_real(root, "dormant_weight", QB_DORMANT_WEIGHT);
}

/* ---- massive activations ---- */

typedef struct listed {
    size_t layer, channel;
    const massive_sums *sums;
} listed;

static int by_value(const void *a, const void *b)
{
    const listed *x = a, *y = b;
    if (x->sums->most != y->sums->most) return x->sums->most < y->sums->most ? 1 : -1;
    if (x->layer != y->layer) return x->layer < y->layer ? -1 : 1;
    return x->channel < y->channel ? -1 : 1;
}

static json_t *one_massive(const qb_analysis *a, const listed *m)
{
    const massive_sums *s = m->sums;
    double mean = s->sum / s->n, variance = s->sum_squares / s->n - mean * mean;
    json_t *object = json_object();
    qb_json_set_size(object, "layer", m->layer + 1);
    qb_json_set_size(object, "channel", m->channel);
    qb_json_set_size(object, "count", (size_t)s->n);
    qb_json_set_real(object, "first_share", s->n_first / s->n);
    qb_json_set_real(object, "window_share", s->windows / a->layers[m->layer].n_windows);
    qb_json_set_real(object, "mean", mean);
    qb_json_set_real(object, "std", sqrt(fmax(variance, 0)));
    qb_json_set_real(object, "min_abs", s->least);
    qb_json_set_real(object, "max_abs", s->most);
    return object;
}

/* The largest of the (layer, channel) pairs that hold any. */
static qb_status add_massive(const qb_analysis *a, json_t *root)
{
    listed *list;
    size_t n = 0;
    QB_TRY(QB_NEW(&list, a->c->n_layers * a->c->d_model, "massive activations"));
    json_t *array = json_array();
    for (size_t i = 0; i < a->c->n_layers; i++)
        for (size_t c = 0; c < a->c->d_model; c++)
            if (a->layers[i].massive_channels[c].n > 0)
                list[n++] = (listed){i, c, &a->layers[i].massive_channels[c]};
    qsort(list, n, sizeof *list, by_value);
    for (size_t i = 0; i < n && i < ANALYSIS_LISTED_MASSIVE; i++)
        json_array_append_new(array, one_massive(a, &list[i]));
    json_object_set_new(root, "massive", array);
    qb_json_set_size(root, "massive_places", n);
    qb_free(list);
    return QB_OK;
}

/* ---- norms by position ---- */

/* All of the first, then ever fewer: 1 to 64, 76, 91, ... */
static size_t next_position(size_t t)
{
    return t < ANALYSIS_ALL_POSITIONS ? t + 1 : t + t / 5;
}

static json_t *norms_of(const qb_analysis *a, const norm_sums *s, double per_window)
{
    json_t *list = json_array();
    for (size_t t = 0; t < a->options.context && a->position_n[t]; t = next_position(t))
        json_array_append_new(
            list, qb_json_real(s->by_position[t] / ((double)a->position_n[t] * per_window)));
    return list;
}

static void add_positions(const qb_analysis *a, json_t *root)
{
    json_t *object = json_object(), *at = json_array(), *layers = json_array();
    for (size_t t = 0; t < a->options.context && a->position_n[t]; t = next_position(t))
        json_array_append_new(at, json_integer((json_int_t)t + 1));
    for (size_t i = 0; i < a->c->n_layers; i++) {
        const layer_sums *l = &a->layers[i];
        json_t *layer = json_object();
        qb_json_set_size(layer, "layer", i + 1);
        json_object_set_new(layer, "hidden", norms_of(a, &l->hidden, 1));
        if (l->has_attention) {
            json_object_set_new(layer, "key", norms_of(a, &l->key, (double)a->c->n_kv_heads));
            json_object_set_new(layer, "value", norms_of(a, &l->value, (double)a->c->n_kv_heads));
        }
        json_array_append_new(layers, layer);
    }
    json_object_set_new(object, "position", at);
    json_object_set_new(object, "layers", layers);
    json_object_set_new(root, "norms_by_position", object);
}

/* ---- maps ---- */

static json_t *rows_of(size_t n_rows, size_t n_columns, const double *values, const float *others)
{
    json_t *rows = json_array();
    for (size_t r = 0; r < n_rows; r++) {
        json_t *row = json_array();
        for (size_t c = 0; c < n_columns; c++) {
            size_t i = r * n_columns + c;
            json_array_append_new(row, rounded(values ? values[i] : (double)others[i]));
        }
        json_array_append_new(rows, row);
    }
    return rows;
}

/* The first layer, those at a quarter, half and three quarters, and the last. */
static bool is_shown(size_t layer, size_t n_layers)
{
    for (size_t i = 0; i <= 4; i++)
        if (layer == i * (n_layers - 1) / 4) return true;
    return false;
}

static json_t *one_map(const qb_analysis *a, size_t layer, const double *attention,
                       const float *stream)
{
    json_t *map = json_object();
    json_object_set_new(map, "layer", layer ? json_integer((json_int_t)layer) : json_null());
    if (attention)
        json_object_set_new(map, "attention", rows_of(a->map_rows, a->map_rows, attention, NULL));
    json_object_set_new(map, "hidden", rows_of(a->map_rows, a->map_columns, NULL, stream));
    return map;
}

/* Of all layers: means of attention, means of magnitudes. */
static qb_status mean_map(const qb_analysis *a, json_t **out)
{
    size_t n = a->map_rows * a->map_rows, n_stream = a->map_rows * a->map_columns;
    double *attention, n_layers = (double)a->c->n_layers,
                       n_attention = (double)qb_config_n_attention(a->c);
    float *stream = NULL;
    QB_TRY(QB_NEW_ZERO(&attention, n, "maps"));
    qb_status status = QB_NEW_ZERO(&stream, n_stream, "maps");
    for (size_t layer = 0; status == QB_OK && layer < a->c->n_layers; layer++) {
        const layer_sums *l = &a->layers[layer];
        for (size_t i = 0; l->attention_map && i < n; i++)
            attention[i] += l->attention_map[i] / n_attention;
        for (size_t i = 0; i < n_stream; i++) stream[i] += l->stream_map[i] / (float)n_layers;
    }
    if (status == QB_OK) *out = one_map(a, 0, attention, stream);
    qb_free(attention);
    qb_free(stream);
    return status;
}

static qb_status add_maps(const qb_analysis *a, json_t *root)
{
    json_t *mean;
    if (!a->options.maps || !a->n_windows) {
        json_object_set_new(root, "maps", json_null());
        return QB_OK;
    }
    QB_TRY(mean_map(a, &mean));
    json_t *maps = json_object(), *list = json_array();
    qb_json_set_size(maps, "channels", a->c->d_model);
    json_array_append_new(list, mean);
    for (size_t i = 0; i < a->c->n_layers; i++)
        if (is_shown(i, a->c->n_layers))
            json_array_append_new(
                list, one_map(a, i + 1, a->layers[i].attention_map, a->layers[i].stream_map));
    json_object_set_new(maps, "layers", list);
    json_object_set_new(root, "maps", maps);
    return QB_OK;
}

qb_status qb_analysis_to_json(const qb_analysis *a, json_t *root)
{
    size_t mark = qb_json_mark();
    add_layers(a, root);
    QB_TRY(add_correlations(a, root));
    add_samples(a, root);
    add_sinks(a, root);
    add_heads(a, root);
    QB_TRY(add_massive(a, root));
    add_positions(a, root);
    QB_TRY(add_maps(a, root));
    return qb_json_check_memory(mark, "analysis");
}
