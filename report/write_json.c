/* report/write_json.c - results as JSON, key by key from the table. */
#include "report/result.h"

#include "core/memory.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static json_t *texts_to_json(const qb_texts *texts)
{
    json_t *array = json_array();
    for (size_t i = 0; array && i < texts->n; i++)
        if (json_array_append_new(array, json_string(texts->items[i]))) {
            json_decref(array);
            return NULL;
        }
    return array;
}

static json_t *reals_to_json(const qb_reals *reals)
{
    if (!reals->n) return json_null();
    json_t *array = json_array();
    for (size_t i = 0; array && i < reals->n; i++)
        if (json_array_append_new(array, qb_json_real(reals->items[i]))) {
            json_decref(array);
            return NULL;
        }
    return array;
}

static json_t *field_to_json(const qb_result_field *field, const qb_result *result)
{
    const char *at = (const char *)result + field->offset;
    const qb_interval *interval = (const qb_interval *)at;
    const char *text;
    switch (field->kind) {
    case QB_FIELD_TEXT:
        text = *(char *const *)at;
        return text ? json_string(text) : json_null();
    case QB_FIELD_COUNT:
        return *(const int64_t *)at < 0 ? json_null() : json_integer(*(const int64_t *)at);
    case QB_FIELD_REAL:
        return qb_json_real(*(const double *)at);
    case QB_FIELD_INTERVAL:
        if (!isfinite(interval->low) || !isfinite(interval->high)) return json_null();
        return json_pack("[f,f]", interval->low, interval->high);
    case QB_FIELD_TEXTS:
        return texts_to_json((const qb_texts *)at);
    case QB_FIELD_REALS:
        return reals_to_json((const qb_reals *)at);
    }
    return NULL;
}

/* Puts value (taken) at "a.b.c", making the objects on the way. */
static bool put(json_t *object, const char *path, json_t *value)
{
    const char *dot;
    while ((dot = strchr(path, '.'))) {
        size_t n = (size_t)(dot - path);
        json_t *inner = json_object_getn(object, path, n);
        if (!inner && !json_object_setn_new(object, path, n, json_object()))
            inner = json_object_getn(object, path, n);
        object = inner;
        path = dot + 1;
    }
    return !json_object_set_new(object, path, value);
}

qb_status qb_result_to_json(const qb_result *result, json_t **out)
{
    json_t *object = json_object();
    bool ok = object;
    for (const qb_result_field *f = qb_result_fields; ok && f->path; f++)
        ok = put(object, f->path, field_to_json(f, result));
    if (ok && isnan(result->energy.j_per_token)) /* no meter: null as a whole */
        ok = !json_object_set_new(object, "energy", json_null());
    if (ok && !result->environment.gpu.name)
        ok = !json_object_set_new(json_object_get(object, "environment"), "gpu", json_null());
    if (ok && !result->quality.nll_file.path)
        ok = !json_object_set_new(json_object_get(object, "quality"), "nll_file", json_null());
    if (!ok) {
        json_decref(object);
        return QB_FAIL(QB_ERR_MEMORY, "result: no memory, or text that is not UTF-8, for JSON");
    }
    *out = object;
    return QB_OK;
}

/* ---- text ---- */

/* The end of a list of numbers that starts at p, NULL where it is another list. */
static const char *number_list_end(const char *p)
{
    const char *end = p + 1 + strspn(p + 1, "0123456789+-.eE, \nnul");
    return *end == ']' ? end : NULL;
}

/* In the fewest of 15 or 17 digits that read back as the same number. */
static const char *write_number(const char *p, FILE *stream)
{
    char *end, text[40];
    double value = strtod(p, &end) + 0.0; /* -0 would be read as the integer 0 */
    if (end == p) {
        fputs("null", stream);
        return p + strlen("null");
    }
    snprintf(text, sizeof text, "%.15g", value);
    if (strtod(text, NULL) != value) snprintf(text, sizeof text, "%.17g", value);
    fputs(text, stream);
    return end;
}

/* Indented JSON, but a list of numbers on one line: hundreds of samples would hide the rest. */
static void write_text(const char *text, FILE *stream)
{
    const char *end;
    bool in_string = false;
    for (const char *p = text; *p; p++) {
        if (*p == '"') in_string = !in_string;
        if (*p == '\\') fputc(*p++, stream); /* only in strings; what follows ends none */
        fputc(*p, stream);
        if (in_string || *p != '[' || !(end = number_list_end(p))) continue;
        for (p++; p < end;) {
            if (strchr(" \n", *p))
                p++;
            else if (*p == ',')
                fputs(", ", stream), p++;
            else
                p = write_number(p, stream);
        }
        fputc(']', stream);
    }
    fputc('\n', stream);
}

qb_status qb_json_write_lines(const json_t *root, const char *what, FILE *stream)
{
    char *text;
    QB_TRY(qb_json_dump(root, JSON_INDENT(1) | JSON_ENSURE_ASCII, what, &text));
    write_text(text, stream);
    qb_library_free(text);
    return QB_OK;
}

qb_status qb_results_write_json(const qb_results *results, FILE *stream)
{
    json_t *root = json_pack("{s:s, s:[]}", "schema", "qbench.results/1", "results");
    if (!root) return QB_FAIL(QB_ERR_MEMORY, "results: no memory for JSON");
    json_t *array = json_object_get(root, "results");
    qb_status status = QB_OK;
    for (size_t i = 0; i < results->n && status == QB_OK; i++) {
        json_t *record;
        status = qb_result_to_json(&results->items[i], &record);
        if (status == QB_OK && json_array_append_new(array, record))
            status = QB_FAIL(QB_ERR_MEMORY, "results: no memory for JSON");
    }
    if (status == QB_OK) status = qb_json_write_lines(root, "results", stream);
    json_decref(root);
    return status;
}
