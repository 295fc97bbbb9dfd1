/* core/json.c - limits around jansson. */
#include "core/json.h"

#include "core/file.h"
#include "core/memory.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { MAX_DEPTH = 64, MAX_CONTAINERS = 1 << 20 };

/* jansson reports a failed allocation as some other error, or none: remembered here instead. */
static _Thread_local size_t n_failed;

static void *json_alloc(size_t bytes)
{
    void *block = qb_library_alloc(bytes);
    if (!block) n_failed++;
    return block;
}

/* Before main, so that no value made with another allocator can exist. */
__attribute__((constructor)) static void route_allocations(void)
{
    json_set_alloc_funcs(json_alloc, qb_library_free);
}

size_t qb_json_mark(void)
{
    return n_failed;
}

qb_status qb_json_check_memory(size_t mark, const char *what)
{
    if (n_failed == mark) return QB_OK;
    return QB_FAIL(QB_ERR_MEMORY, "%s: no memory for JSON", what);
}

static bool is_mark(char c)
{
    return c == '{' || c == '}' || c == '[' || c == ']' || c == ',';
}

char qb_json_next_mark(const char *text, size_t bytes, size_t *at)
{
    bool in_string = false;
    for (size_t i = *at; i < bytes; i++) {
        char c = text[i];
        if (in_string && c == '\\')
            i++;
        else if (c == '"')
            in_string = !in_string;
        else if (!in_string && is_mark(c)) {
            *at = i + 1;
            return c;
        }
    }
    *at = bytes;
    return 0;
}

/* What is refused before parsing: jansson recurses, and its own limit (2048) is deeper than any
 * file here needs; and a list of empty lists takes 40 times its text in memory. */
static qb_status check_containers(const char *text, size_t bytes, const char *what)
{
    size_t depth = 0, n = 0, at = 0;
    for (char c; (c = qb_json_next_mark(text, bytes, &at));) {
        if (c == '{' || c == '[') {
            if (++depth > MAX_DEPTH)
                return QB_FAIL(
                    QB_ERR_FORMAT,
                    "%s: JSON nested too deep: found more levels than %d, expected fewer", what,
                    MAX_DEPTH);
            if (++n > MAX_CONTAINERS)
                return QB_FAIL(
                    QB_ERR_FORMAT,
                    "%s: JSON too large: found more than %d lists and objects, expected fewer",
                    what, MAX_CONTAINERS);
        } else if (c != ',' && depth) {
            depth--;
        }
    }
    return QB_OK;
}

qb_status qb_json_parse(const char *text, size_t bytes, size_t max_bytes, const char *what,
                        json_t **out)
{
    if (bytes > max_bytes)
        return QB_FAIL(QB_ERR_FORMAT, "%s: JSON too large: found %zu bytes, expected at most %zu",
                       what, bytes, max_bytes);
    QB_TRY(check_containers(text, bytes, what));
    json_error_t error;
    size_t mark = qb_json_mark();
    json_t *value = json_loadb(text, bytes, JSON_REJECT_DUPLICATES, &error);
    qb_status status = qb_json_check_memory(mark, what);
    if (status != QB_OK) {
        json_decref(value);
        return status;
    }
    if (!value)
        return QB_FAIL(QB_ERR_FORMAT,
                       "%s: not JSON: found an error in line %d, column %d (%s), expected JSON",
                       what, error.line, error.column, error.text);
    *out = value;
    return QB_OK;
}

static qb_status walk_line(const char *text, size_t bytes, size_t max_bytes, const char *where,
                           qb_json_line line, void *context)
{
    json_t *object;
    QB_TRY(qb_json_parse(text, bytes, max_bytes, where, &object));
    qb_status status =
        json_is_object(object)
            ? line(context, object, where)
            : QB_FAIL(QB_ERR_FORMAT, "%s: found no object, expected one a line", where);
    json_decref(object);
    return status;
}

qb_status qb_json_walk_lines(const char *text, size_t bytes, size_t max_line_bytes,
                             qb_last_line last, qb_json_line line, void *context)
{
    for (size_t at = 0, number = 1; at < bytes; number++) {
        const char *end = memchr(text + at, '\n', bytes - at);
        char where[40];
        snprintf(where, sizeof where, "line %zu", number);
        if (!end && last == QB_LAST_LINE_MAY_BE_OPEN) break;
        if (!end)
            return QB_FAIL(QB_ERR_FORMAT, "%s: found no end of the line, expected whole lines",
                           where);
        size_t n = (size_t)(end - text) - at;
        QB_TRY(walk_line(text + at, n, max_line_bytes, where, line, context));
        at += n + 1;
    }
    return QB_OK;
}

qb_status qb_json_dump(const json_t *value, size_t flags, const char *what, char **out)
{
    size_t mark = qb_json_mark();
    char *text = json_dumps(value, flags);
    qb_status status = qb_json_check_memory(mark, what);
    if (status == QB_OK && !text) status = QB_FAIL(QB_ERR_FORMAT, "%s: no JSON to write", what);
    if (status != QB_OK)
        qb_library_free(text);
    else
        *out = text;
    return status;
}

qb_status qb_json_read_file(const char *path, size_t max_bytes, json_t **out)
{
    qb_file file;
    QB_TRY(qb_file_open(path, &file));
    qb_status status =
        qb_json_parse(file.bytes ? (const char *)file.data : "", file.bytes, max_bytes, path, out);
    qb_file_close(&file);
    return status;
}

static const json_t *find(const json_t *object, const char *key)
{
    const json_t *value = json_object_get(object, key);
    return json_is_null(value) ? NULL : value;
}

qb_status qb_json_get_size(const json_t *object, const char *key, size_t min, size_t max,
                           size_t *out)
{
    const json_t *v = find(object, key);
    if (!v) return QB_OK;
    if (!json_is_integer(v))
        return QB_FAIL(QB_ERR_FORMAT,
                       "key \"%s\": found another kind of value, expected an integer", key);
    json_int_t n = json_integer_value(v);
    if (n < 0 || (uint64_t)n < min || (uint64_t)n > max)
        return QB_FAIL(QB_ERR_FORMAT, "key \"%s\": found %lld, expected %zu to %zu", key,
                       (long long)n, min, max);
    *out = (size_t)n;
    return QB_OK;
}

qb_status qb_json_get_double(const json_t *object, const char *key, double min, double max,
                             double *out)
{
    const json_t *v = find(object, key);
    if (!v) return QB_OK;
    if (!json_is_number(v))
        return QB_FAIL(QB_ERR_FORMAT, "key \"%s\": found another kind of value, expected a number",
                       key);
    double d = json_number_value(v);
    if (!(d >= min && d <= max))
        return QB_FAIL(QB_ERR_FORMAT, "key \"%s\": found %g, expected %g to %g", key, d, min, max);
    *out = d;
    return QB_OK;
}

qb_status qb_json_get_bool(const json_t *object, const char *key, bool *out)
{
    const json_t *v = find(object, key);
    if (!v) return QB_OK;
    if (!json_is_boolean(v))
        return QB_FAIL(QB_ERR_FORMAT,
                       "key \"%s\": found another kind of value, expected true or false", key);
    *out = json_is_true(v);
    return QB_OK;
}

qb_status qb_json_get_string(const json_t *object, const char *key, const char **out)
{
    const json_t *v = find(object, key);
    if (!v) return QB_OK;
    if (!json_is_string(v))
        return QB_FAIL(QB_ERR_FORMAT, "key \"%s\": found another kind of value, expected a string",
                       key);
    *out = json_string_value(v);
    return QB_OK;
}

double qb_json_real_at(const json_t *object, const char *key)
{
    const json_t *value = json_object_get(object, key);
    return json_is_number(value) ? json_number_value(value) : NAN;
}

const char *qb_json_text_at(const json_t *object, const char *key)
{
    const char *text = json_string_value(json_object_get(object, key));
    return text ? text : "-";
}

json_t *qb_json_real(double value)
{
    return isfinite(value) ? json_real(value) : json_null();
}

void qb_json_set_real(json_t *object, const char *key, double value)
{
    json_object_set_new(object, key, qb_json_real(value));
}

void qb_json_set_size(json_t *object, const char *key, size_t value)
{
    json_object_set_new(object, key, json_integer((json_int_t)value));
}
