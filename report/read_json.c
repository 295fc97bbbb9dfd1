/* report/read_json.c - see read_json.h. */
#include "report/read_json.h"

#include "core/memory.h"

#include <math.h>
#include <string.h>

static const char *const kind_names[] = {
    [QB_FIELD_TEXT] = "a text or null",   [QB_FIELD_COUNT] = "a whole number from 0 on, or null",
    [QB_FIELD_REAL] = "a number or null", [QB_FIELD_INTERVAL] = "[number, number] or null",
    [QB_FIELD_TEXTS] = "a list of texts", [QB_FIELD_REALS] = "a list of numbers or null",
};

static const char *found_name(const json_t *value)
{
    switch (json_typeof(value)) {
    case JSON_OBJECT:
        return "an object";
    case JSON_ARRAY:
        return "another list";
    case JSON_STRING:
        return "a text";
    case JSON_INTEGER:
    case JSON_REAL:
        return "another number";
    case JSON_NULL:
        return "null";
    default:
        return "true or false";
    }
}

static qb_status fail_missing(const char *where, const char *path, size_t n_bytes)
{
    return QB_FAIL(QB_ERR_FORMAT, "%s.%.*s: found nothing, expected the key", where, (int)n_bytes,
                   path);
}

/* Keys that came later: a record without them is an older one. What is told of a machine grows. */
static bool may_miss(const qb_result_field *field)
{
    return field->kind == QB_FIELD_REALS || !strncmp(field->path, "environment.", 12) ||
           !strncmp(field->path, "quality.nll_file.", 17) ||
           !strcmp(field->path, "speed.decode_after");
}

/* *out = the value at "a.b.c"; NULL for null, for whatever is in an object that is null, and for
 * what may miss. */
static qb_status find(const json_t *object, const char *where, const qb_result_field *field,
                      const json_t **out)
{
    const char *key = field->path;
    for (;;) {
        size_t n = strcspn(key, "."), so_far = (size_t)(key - field->path) + n;
        const json_t *value = json_object_getn(object, key, n);
        *out = NULL;
        if (!value && may_miss(field)) return QB_OK;
        if (!value) return fail_missing(where, field->path, so_far);
        if (json_is_null(value)) return QB_OK;
        *out = value;
        if (!key[n]) return QB_OK;
        if (!json_is_object(value))
            return QB_FAIL(QB_ERR_FORMAT, "%s.%.*s: found %s, expected an object or null", where,
                           (int)so_far, field->path, found_name(value));
        object = value;
        key += n + 1;
    }
}

/* ---- one value of each kind: false = it is another ---- */

static bool is_list_of(const json_t *value, bool (*is_item)(const json_t *))
{
    if (!json_is_array(value)) return false;
    for (size_t i = 0; i < json_array_size(value); i++)
        if (!is_item(json_array_get(value, i))) return false;
    return true;
}

static bool is_text(const json_t *value)
{
    return json_is_string(value);
}

static bool is_number(const json_t *value)
{
    return json_is_number(value);
}

static bool is_number_or_null(const json_t *value)
{
    return json_is_number(value) || json_is_null(value);
}

static qb_status read_texts(const json_t *value, qb_texts *out)
{
    for (size_t i = 0; i < json_array_size(value); i++)
        QB_TRY(qb_texts_add(out, json_string_value(json_array_get(value, i))));
    return QB_OK;
}

static qb_status read_reals(const json_t *value, qb_reals *out)
{
    QB_TRY(qb_reals_resize(out, json_array_size(value)));
    for (size_t i = 0; i < out->n; i++) {
        const json_t *item = json_array_get(value, i);
        out->items[i] = json_is_null(item) ? NAN : json_number_value(item);
    }
    return QB_OK;
}

static bool fits(const json_t *value, qb_field_kind kind)
{
    switch (kind) {
    case QB_FIELD_TEXT:
        return json_is_string(value);
    case QB_FIELD_COUNT:
        return json_is_integer(value) && json_integer_value(value) >= 0;
    case QB_FIELD_REAL:
        return json_is_number(value);
    case QB_FIELD_INTERVAL:
        return is_list_of(value, is_number) && json_array_size(value) == 2;
    case QB_FIELD_TEXTS:
        return is_list_of(value, is_text);
    case QB_FIELD_REALS:
        return is_list_of(value, is_number_or_null);
    }
    return false;
}

static qb_status read_value(const json_t *value, qb_field_kind kind, char *at)
{
    switch (kind) {
    case QB_FIELD_TEXT:
        return qb_result_set((char **)at, json_string_value(value));
    case QB_FIELD_COUNT:
        *(int64_t *)at = json_integer_value(value);
        return QB_OK;
    case QB_FIELD_REAL:
        *(double *)at = json_number_value(value);
        return QB_OK;
    case QB_FIELD_INTERVAL:
        *(qb_interval *)at = (qb_interval){json_number_value(json_array_get(value, 0)),
                                           json_number_value(json_array_get(value, 1))};
        return QB_OK;
    case QB_FIELD_TEXTS:
        return read_texts(value, (qb_texts *)at);
    case QB_FIELD_REALS:
        return read_reals(value, (qb_reals *)at);
    }
    return QB_OK;
}

/* ---- what belongs together ---- */

static qb_status check_samples(const qb_result_timing *timing, const char *where, const char *name)
{
    const qb_reals *ms = &timing->samples_ms;
    if (ms->n > QB_RESULT_MAX_SAMPLES)
        return QB_FAIL(QB_ERR_FORMAT,
                       "%s.speed.%s.samples_ms: found %zu items, expected at most %d", where, name,
                       ms->n, QB_RESULT_MAX_SAMPLES);
    for (size_t i = 0; i < ms->n; i++)
        if (!(ms->items[i] > 0))
            return QB_FAIL(QB_ERR_FORMAT,
                           "%s.speed.%s.samples_ms[%zu]: found %g, expected a number above 0",
                           where, name, i, ms->items[i]);
    return QB_OK;
}

static qb_status check_windows(const qb_result_windows *w, const char *where)
{
    const struct {
        const char *name;
        const qb_reals *list;
        bool may_miss;
    } lists[] = {{"nll", &w->nll, false},
                 {"nll_full", &w->nll_full, false},
                 {"kl", &w->kl, true},
                 {"agree", &w->agree, true}};
    if (w->n.n > QB_RESULT_MAX_BLOCKS)
        return QB_FAIL(QB_ERR_FORMAT, "%s.quality.windows.n: found %zu items, expected at most %d",
                       where, w->n.n, QB_RESULT_MAX_BLOCKS);
    for (size_t i = 0; i < QB_COUNT(lists); i++)
        if (lists[i].list->n != w->n.n && (lists[i].list->n || !lists[i].may_miss))
            return QB_FAIL(QB_ERR_FORMAT, "%s.quality.windows.%s: found %zu items, expected %zu",
                           where, lists[i].name, lists[i].list->n, w->n.n);
    for (size_t i = 0; i < w->n.n; i++)
        if (!(w->n.items[i] >= 1 && w->n.items[i] <= 1e15 && rint(w->n.items[i]) == w->n.items[i]))
            return QB_FAIL(QB_ERR_FORMAT,
                           "%s.quality.windows.n[%zu]: found %g, expected a whole number from 1 on",
                           where, i, w->n.items[i]);
    return QB_OK;
}

qb_status qb_result_from_json(const json_t *object, const char *where, qb_result *out)
{
    if (!json_is_object(object))
        return QB_FAIL(QB_ERR_FORMAT, "%s: found %s, expected an object", where,
                       found_name(object));
    for (const qb_result_field *f = qb_result_fields; f->path; f++) {
        const json_t *value;
        QB_TRY(find(object, where, f, &value));
        if (!value) continue;
        if (!fits(value, f->kind))
            return QB_FAIL(QB_ERR_FORMAT, "%s.%s: found %s, expected %s", where, f->path,
                           found_name(value), kind_names[f->kind]);
        QB_TRY(read_value(value, f->kind, (char *)out + f->offset));
    }
    QB_TRY(check_samples(&out->speed.prefill, where, "prefill"));
    QB_TRY(check_samples(&out->speed.decode, where, "decode"));
    QB_TRY(check_samples(&out->speed.full.prefill, where, "full.prefill"));
    QB_TRY(check_samples(&out->speed.full.decode, where, "full.decode"));
    return check_windows(&out->quality.windows, where);
}

/* ---- the file ---- */

static qb_status read_root(const json_t *root, qb_results *results)
{
    const char *schema = json_string_value(json_object_get(root, "schema"));
    const json_t *array = json_object_get(root, "results");
    if (!schema || strcmp(schema, "qbench.results/1"))
        return QB_FAIL(QB_ERR_FORMAT, "schema: found %.60s, expected qbench.results/1",
                       schema ? schema : "no text");
    if (!json_is_array(array))
        return QB_FAIL(QB_ERR_FORMAT, "results: found %s, expected a list",
                       array ? found_name(array) : "nothing");
    for (size_t i = 0; i < json_array_size(array); i++) {
        char where[40];
        qb_result *result;
        snprintf(where, sizeof where, "results[%zu]", i);
        QB_TRY(qb_results_add(results, &result));
        QB_TRY(qb_result_from_json(json_array_get(array, i), where, result));
    }
    return QB_OK;
}

qb_status qb_results_from_json(const json_t *root, const char *what, qb_results *out)
{
    qb_results results = {0};
    qb_status status = read_root(root, &results);
    if (status != QB_OK) {
        qb_results_deinit(&results);
        return qb_error_prefix(status, what);
    }
    *out = results;
    return QB_OK;
}

qb_status qb_results_parse_json(const char *text, size_t bytes, const char *what, qb_results *out)
{
    json_t *root;
    QB_TRY(qb_json_parse(text, bytes, QB_RESULTS_MAX_BYTES, what, &root));
    qb_status status = qb_results_from_json(root, what, out);
    json_decref(root);
    return status;
}

qb_status qb_results_read_json(const char *path, qb_results *out)
{
    json_t *root;
    QB_TRY(qb_json_read_file(path, QB_RESULTS_MAX_BYTES, &root));
    qb_status status = qb_results_from_json(root, path, out);
    json_decref(root);
    return status;
}
