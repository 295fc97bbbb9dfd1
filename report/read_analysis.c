/* report/read_analysis.c - see read_analysis.h. */
#include "report/read_analysis.h"

#include "core/memory.h"

#include <math.h>
#include <string.h>

enum { MAX_HEADS = 256 };

const char *const qb_layer_metric_keys[QB_LAYER_METRIC_COUNT] = {
    [QB_LAYER_KURT_FIRST] = "kurt_token_first",    [QB_LAYER_KURT_REST] = "kurt_token_rest",
    [QB_LAYER_MAX_FIRST] = "max_abs_first",        [QB_LAYER_MAX_REST] = "max_abs_rest",
    [QB_LAYER_FIRST_ARGMAX] = "attn_first_argmax", [QB_LAYER_FIRST_SHARE] = "attn_first_share",
    [QB_LAYER_RATIO_FIRST] = "norm_ratio_first",   [QB_LAYER_RATIO_REST] = "norm_ratio_rest"};

/* ---- values ---- */

/* The list under a key, at most so long; NULL where it is absent or null. */
static qb_status get_list(const json_t *object, const char *key, size_t max, const json_t **out)
{
    const json_t *list = json_object_get(object, key);
    *out = NULL;
    if (!list || json_is_null(list)) return QB_OK;
    if (!json_is_array(list)) return QB_FAIL(QB_ERR_FORMAT, "%s: found no list, expected one", key);
    if (json_array_size(list) > max)
        return QB_FAIL(QB_ERR_FORMAT, "%s: found %zu items, expected at most %zu", key,
                       json_array_size(list), max);
    *out = list;
    return QB_OK;
}

static qb_status get_place(const json_t *object, const char *key, size_t max, size_t *out)
{
    *out = 0;
    QB_TRY(qb_json_get_size(object, key, 1, max, out));
    if (!*out) return QB_FAIL(QB_ERR_FORMAT, "%s: found nothing, expected a number", key);
    return QB_OK;
}

/* ---- layers ---- */

static qb_status read_layer(const json_t *object, size_t i, double *values)
{
    size_t layer;
    if (!json_is_object(object)) return QB_FAIL(QB_ERR_FORMAT, "found no object, expected one");
    QB_TRY(get_place(object, "layer", QB_ANALYSIS_MAX_LAYERS, &layer));
    if (layer != i + 1)
        return QB_FAIL(QB_ERR_FORMAT, "layer: found %zu, expected %zu", layer, i + 1);
    for (size_t m = 0; m < QB_LAYER_METRIC_COUNT; m++) {
        values[m] = NAN;
        QB_TRY(
            qb_json_get_double(object, qb_layer_metric_keys[m], -INFINITY, INFINITY, &values[m]));
    }
    return QB_OK;
}

static qb_status read_layers(const json_t *root, qb_analysis_record *out)
{
    const json_t *list;
    QB_TRY(get_list(root, "layers", QB_ANALYSIS_MAX_LAYERS, &list));
    if (!json_array_size(list))
        return QB_FAIL(QB_ERR_FORMAT, "layers: found nothing, expected a list");
    QB_TRY(QB_NEW(&out->values, json_array_size(list) * QB_LAYER_METRIC_COUNT, "layers"));
    out->n_layers = json_array_size(list);
    for (size_t i = 0; i < out->n_layers; i++) {
        char where[40];
        qb_status status =
            read_layer(json_array_get(list, i), i, out->values + i * QB_LAYER_METRIC_COUNT);
        snprintf(where, sizeof where, "layers[%zu]", i);
        if (status != QB_OK) return qb_error_prefix(status, where);
    }
    return QB_OK;
}

/* ---- grids ---- */

static qb_status create_grid(size_t n_rows, size_t n_cols, qb_grid *out)
{
    double *cells;
    QB_TRY(QB_NEW(&cells, n_rows * n_cols, "cells"));
    for (size_t i = 0; i < n_rows * n_cols; i++) cells[i] = NAN;
    *out = (qb_grid){n_rows, n_cols, cells};
    return QB_OK;
}

static qb_status read_grid(const json_t *object, const char *key, qb_grid *out)
{
    const json_t *rows;
    QB_TRY(get_list(object, key, QB_ANALYSIS_MAX_CELLS, &rows));
    size_t n_rows = json_array_size(rows), n_cols = json_array_size(json_array_get(rows, 0));
    if (!n_rows) return QB_OK;
    if (!n_cols || n_cols > QB_ANALYSIS_MAX_CELLS)
        return QB_FAIL(QB_ERR_FORMAT, "%s: found %zu columns, expected 1 to %d", key, n_cols,
                       QB_ANALYSIS_MAX_CELLS);
    QB_TRY(create_grid(n_rows, n_cols, out));
    for (size_t r = 0; r < n_rows; r++) {
        const json_t *row = json_array_get(rows, r);
        if (json_array_size(row) != n_cols)
            return QB_FAIL(QB_ERR_FORMAT, "%s[%zu]: found %zu columns, expected %zu", key, r,
                           json_array_size(row), n_cols);
        for (size_t c = 0; c < n_cols; c++) {
            const json_t *cell = json_array_get(row, c);
            if (!json_is_number(cell) && !json_is_null(cell))
                return QB_FAIL(
                    QB_ERR_FORMAT,
                    "%s[%zu][%zu]: found another kind of value, expected a number or null", key, r,
                    c);
            if (json_is_number(cell)) out->cells[r * n_cols + c] = json_number_value(cell);
        }
    }
    return QB_OK;
}

static qb_status read_map(const json_t *object, qb_analysis_map *out)
{
    size_t layer = 0;
    if (!json_is_object(object)) return QB_FAIL(QB_ERR_FORMAT, "found no object, expected one");
    QB_TRY(qb_json_get_size(object, "layer", 1, QB_ANALYSIS_MAX_LAYERS, &layer));
    out->layer = layer ? (int64_t)layer : -1;
    QB_TRY(read_grid(object, "attention", &out->attention));
    return read_grid(object, "hidden", &out->hidden);
}

static qb_status read_maps(const json_t *root, qb_analysis_record *out)
{
    const json_t *maps = json_object_get(root, "maps"), *list;
    size_t channels = 0;
    if (!json_is_object(maps)) return QB_OK; /* without --maps */
    QB_TRY(qb_json_get_size(maps, "channels", 1, 1 << 20, &channels));
    if (channels) out->channels = (int64_t)channels;
    QB_TRY(get_list(maps, "layers", QB_ANALYSIS_MAX_MAPS, &list));
    QB_TRY(QB_NEW_ZERO(&out->maps, json_array_size(list), "maps"));
    for (; out->n_maps < json_array_size(list); out->n_maps++) {
        char where[40];
        qb_analysis_map *map = &out->maps[out->n_maps];
        qb_status status = read_map(json_array_get(list, out->n_maps), map);
        snprintf(where, sizeof where, "maps.layers[%zu]", out->n_maps);
        if (status == QB_OK) continue;
        out->n_maps++; /* what it holds is freed */
        return qb_error_prefix(status, where);
    }
    return QB_OK;
}

/* ---- heads ---- */

static qb_status read_head(const json_t *object, qb_grid *grid)
{
    size_t layer, head;
    double value = NAN;
    if (!json_is_object(object)) return QB_FAIL(QB_ERR_FORMAT, "found no object, expected one");
    QB_TRY(get_place(object, "layer", grid->n_rows, &layer));
    QB_TRY(get_place(object, "head", grid->n_cols, &head));
    QB_TRY(qb_json_get_double(object, "attn_first_share", -INFINITY, INFINITY, &value));
    grid->cells[(layer - 1) * grid->n_cols + head - 1] = value;
    return QB_OK;
}

static qb_status read_heads(const json_t *root, qb_analysis_record *out)
{
    const json_t *list, *head;
    size_t n_heads = 0, i;
    QB_TRY(get_list(root, "heads", out->n_layers * MAX_HEADS, &list));
    json_array_foreach(list, i, head)
    {
        const json_t *number = json_object_get(head, "head");
        if (json_integer_value(number) > (json_int_t)n_heads)
            n_heads = (size_t)json_integer_value(number);
    }
    if (!n_heads) return QB_OK;
    if (n_heads > MAX_HEADS)
        return QB_FAIL(QB_ERR_FORMAT, "heads: found head %zu, expected at most %d", n_heads,
                       MAX_HEADS);
    QB_TRY(create_grid(out->n_layers, n_heads, &out->heads));
    json_array_foreach(list, i, head)
    {
        char where[40];
        qb_status status = read_head(head, &out->heads);
        snprintf(where, sizeof where, "heads[%zu]", i);
        if (status != QB_OK) return qb_error_prefix(status, where);
    }
    return QB_OK;
}

/* ---- sensitivity ---- */

static qb_status read_interval(const json_t *object, const char *key, qb_interval *out)
{
    const json_t *list;
    *out = (qb_interval){NAN, NAN};
    QB_TRY(get_list(object, key, 2, &list));
    const json_t *low = json_array_get(list, 0), *high = json_array_get(list, 1);
    if (!list || json_is_null(low) || json_is_null(high)) return QB_OK;
    if (!json_is_number(low) || !json_is_number(high))
        return QB_FAIL(QB_ERR_FORMAT, "%s: found another kind of value, expected [number, number]",
                       key);
    *out = (qb_interval){json_number_value(low), json_number_value(high)};
    return QB_OK;
}

static qb_status read_part(const json_t *object, qb_analysis_part *part)
{
    const struct {
        const char *key;
        double *at;
    } reals[] = {{"penalty", &part->penalty},
                 {"share", &part->share},
                 {"sqnr_db", &part->sqnr_db},
                 {"input_kurtosis", &part->input_kurtosis}};
    if (!json_is_object(object)) return QB_FAIL(QB_ERR_FORMAT, "found no object, expected one");
    QB_TRY(qb_result_read_text(object, "name", &part->name));
    for (size_t i = 0; i < QB_COUNT(reals); i++) {
        *reals[i].at = NAN;
        QB_TRY(qb_json_get_double(object, reals[i].key, -INFINITY, INFINITY, reals[i].at));
    }
    return read_interval(object, "penalty_ci95", &part->penalty_ci95);
}

static qb_status read_sensitivity(const json_t *root, qb_analysis_record *out)
{
    const json_t *sensitivity = json_object_get(root, "sensitivity"), *list;
    QB_TRY(get_list(sensitivity, "parts", QB_ANALYSIS_MAX_PARTS, &list));
    if (!list) return QB_OK;
    QB_TRY(qb_result_read_text(json_object_get(sensitivity, "scheme"), "name", &out->scheme));
    QB_TRY(QB_NEW_ZERO(&out->parts, json_array_size(list), "parts"));
    out->n_parts = json_array_size(list);
    for (size_t i = 0; i < out->n_parts; i++) {
        char where[40];
        qb_status status = read_part(json_array_get(list, i), &out->parts[i]);
        snprintf(where, sizeof where, "sensitivity.parts[%zu]", i);
        if (status != QB_OK) return qb_error_prefix(status, where);
    }
    return QB_OK;
}

/* ---- the file ---- */

static qb_status read_names(const json_t *root, qb_analysis_record *out)
{
    const json_t *model = json_object_get(root, "model"), *texts;
    QB_TRY(qb_result_read_text(model, "name", &out->model));
    QB_TRY(qb_result_read_text(model, "sha256", &out->sha256));
    QB_TRY(qb_result_read_text(root, "command", &out->command));
    QB_TRY(get_list(root, "texts", 1 << 16, &texts));
    const json_t *text = json_array_get(texts, 0);
    const json_t *protocol = json_object_get(text, "protocol");
    size_t context = 0;
    QB_TRY(qb_result_read_text(text, "name", &out->text));
    QB_TRY(qb_json_get_size(protocol, "context", 1, 1 << 24, &context));
    if (context) out->context = (int64_t)context;
    return QB_OK;
}

qb_status qb_analysis_record_read(const json_t *root, const char *what, qb_analysis_record *out)
{
    qb_analysis_record record = {.context = -1, .channels = -1};
    qb_status status = read_names(root, &record);
    if (status == QB_OK) status = read_layers(root, &record);
    if (status == QB_OK) status = read_maps(root, &record);
    if (status == QB_OK) status = read_heads(root, &record);
    if (status == QB_OK) status = read_sensitivity(root, &record);
    if (status != QB_OK) {
        qb_analysis_record_deinit(&record);
        return qb_error_prefix(status, what);
    }
    record.root = json_incref((json_t *)(uintptr_t)root); /* the count is all that changes */
    *out = record;
    return QB_OK;
}

void qb_analysis_record_deinit(qb_analysis_record *r)
{
    json_decref(r->root);
    char *const texts[] = {r->model, r->sha256, r->text, r->command, r->scheme};
    for (size_t i = 0; i < QB_COUNT(texts); i++) qb_free(texts[i]);
    for (size_t i = 0; i < r->n_maps; i++) {
        qb_free(r->maps[i].attention.cells);
        qb_free(r->maps[i].hidden.cells);
    }
    for (size_t i = 0; i < r->n_parts; i++) qb_free(r->parts[i].name);
    qb_free(r->parts);
    qb_free(r->maps);
    qb_free(r->values);
    qb_free(r->heads.cells);
    *r = (qb_analysis_record){0};
}
