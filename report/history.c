/* report/history.c - see history.h. */
#include "report/history.h"

#include "core/changes.h"
#include "core/file.h"
#include "core/memory.h"
#include "report/read_json.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- the file ---- */

static qb_status add_record(void *context, const json_t *object, const char *where)
{
    qb_result *result;
    QB_TRY(qb_results_add(context, &result));
    return qb_result_from_json(object, where, result);
}

qb_status qb_history_parse(const char *text, size_t bytes, const char *what, qb_results *out)
{
    qb_results results = {0};
    qb_status status = qb_json_walk_lines(text, bytes, QB_RESULTS_MAX_BYTES, QB_LAST_LINE_IS_WHOLE,
                                          add_record, &results);
    if (status != QB_OK) {
        qb_results_deinit(&results);
        return qb_error_prefix(status, what);
    }
    *out = results;
    return QB_OK;
}

qb_status qb_history_read(const char *path, qb_results *out)
{
    qb_file file;
    if (access(path, F_OK)) {
        *out = (qb_results){0};
        return QB_OK;
    }
    QB_TRY(qb_file_open(path, &file));
    qb_status status =
        qb_history_parse(file.bytes ? (const char *)file.data : "", file.bytes, path, out);
    qb_file_close(&file);
    return status;
}

/* One record as a line; the lists are for comparisons and would make a history of megabytes. */
static qb_status line_of(const qb_result *result, char **out)
{
    qb_result slim = *result; /* the texts stay the other's */
    json_t *object;
    for (const qb_result_field *f = qb_result_fields; f->path; f++)
        if (f->kind == QB_FIELD_REALS) *(qb_reals *)((char *)&slim + f->offset) = (qb_reals){0};
    QB_TRY(qb_result_to_json(&slim, &object));
    qb_status status = qb_json_dump(object, JSON_COMPACT | JSON_ENSURE_ASCII, "record", out);
    json_decref(object);
    return status;
}

static bool holds(const qb_texts *lines, const char *line)
{
    for (size_t i = 0; i < lines->n; i++)
        if (!strcmp(lines->items[i], line)) return true;
    return false;
}

static qb_status add_line(const qb_result *result, qb_texts *lines, bool *is_new)
{
    char *line;
    QB_TRY(line_of(result, &line));
    *is_new = !holds(lines, line);
    qb_status status = *is_new ? qb_texts_add(lines, line) : QB_OK;
    qb_library_free(line);
    return status;
}

static qb_status append(const char *path, const qb_texts *lines, size_t first)
{
    char *text;
    size_t bytes = 0, at = 0;
    for (size_t i = first; i < lines->n; i++) bytes += strlen(lines->items[i]) + 1;
    if (!bytes) return QB_OK;
    QB_TRY(QB_NEW(&text, bytes, "lines of the history"));
    for (size_t i = first; i < lines->n; i++) {
        size_t n = strlen(lines->items[i]);
        memcpy(text + at, lines->items[i], n);
        text[at + n] = '\n';
        at += n + 1;
    }
    qb_status status = qb_file_append_lines(path, text, bytes);
    qb_free(text);
    return status;
}

qb_status qb_history_append(const char *path, const qb_results *history, const qb_results *results,
                            size_t *n_added)
{
    qb_texts lines = {0};
    bool is_new;
    qb_status status = QB_OK;
    for (size_t i = 0; i < history->n && status == QB_OK; i++)
        status = add_line(&history->items[i], &lines, &is_new);
    size_t first = lines.n;
    for (size_t i = 0; i < results->n && status == QB_OK; i++)
        status = add_line(&results->items[i], &lines, &is_new);
    if (status == QB_OK) status = append(path, &lines, first);
    if (status == QB_OK) *n_added = lines.n - first;
    qb_texts_deinit(&lines);
    return status;
}

/* ---- series ---- */

static const char *or_none(const char *text)
{
    return text ? text : "-";
}

/* What must be equal for values of a figure to be of one series. */
static void write_title(const qb_result *r, qb_figure_id figure, char *text, size_t bytes)
{
    int n =
        snprintf(text, bytes, "%.60s, %.40s: ", or_none(r->model.name), or_none(r->scheme.name));
    text += n;
    bytes -= (size_t)n;
    if (figure <= QB_FIGURE_TOP1)
        snprintf(text, bytes,
                 "%.20s, context %" PRId64 ", batch %" PRId64 ", %" PRId64
                 " tokens of %.40s (%.8s)",
                 or_none(r->protocol.name), r->protocol.context, r->protocol.batch, r->text.tokens,
                 or_none(r->text.name), or_none(r->text.sha256));
    else if (figure == QB_FIGURE_MEMORY)
        snprintf(text, bytes, "memory on %.20s", or_none(r->environment.device));
    else
        snprintf(text, bytes, "%.60s, %" PRId64 " threads, batch %" PRId64 ", context %" PRId64,
                 or_none(r->environment.gpu.name ? r->environment.gpu.name : r->environment.cpu),
                 r->environment.threads, r->speed.batch, r->speed.context);
}

static qb_status add_value(qb_series *s, size_t record, double value)
{
    QB_TRY(qb_realloc((void **)&s->records, s->n, s->n + 1, sizeof *s->records, "series"));
    QB_TRY(qb_realloc((void **)&s->values, s->n, s->n + 1, sizeof *s->values, "series"));
    s->records[s->n] = record;
    s->values[s->n++] = value;
    return QB_OK;
}

static qb_status find_series(qb_watch *watch, const char *title, qb_figure_id figure,
                             qb_series **out)
{
    for (size_t i = 0; i < watch->n; i++) {
        *out = &watch->items[i];
        if ((*out)->figure == figure && !strcmp((*out)->title, title)) return QB_OK;
    }
    QB_TRY(
        qb_realloc((void **)&watch->items, watch->n, watch->n + 1, sizeof *watch->items, "series"));
    qb_series *s = &watch->items[watch->n];
    *s = (qb_series){.figure = figure};
    QB_TRY(qb_strdup(&s->title, title));
    watch->n++;
    *out = s;
    return QB_OK;
}

static qb_status collect(qb_watch *watch)
{
    for (size_t i = 0; i < watch->history->n; i++)
        for (size_t f = 0; f < QB_FIGURE_COUNT; f++) {
            const qb_result *r = &watch->history->items[i];
            double value = qb_figures[f].value(r);
            char title[400];
            qb_series *series;
            if (!isfinite(value)) continue;
            write_title(r, (qb_figure_id)f, title, sizeof title);
            QB_TRY(find_series(watch, title, (qb_figure_id)f, &series));
            QB_TRY(add_value(series, i, value));
        }
    return QB_OK;
}

static qb_status find_changes(qb_watch *watch, double false_alarms, uint64_t seed)
{
    for (size_t i = 0; i < watch->n; i++) {
        qb_series *s = &watch->items[i];
        QB_TRY(QB_NEW(&s->changes, s->n, "changes"));
        QB_TRY(qb_find_changes(s->values, s->n, false_alarms, seed, s->changes, &s->n_changes));
    }
    return QB_OK;
}

qb_status qb_watch_make(const qb_results *history, double false_alarms, uint64_t seed,
                        qb_watch *out)
{
    qb_watch watch = {.history = history};
    qb_status status = collect(&watch);
    if (status == QB_OK) status = find_changes(&watch, false_alarms, seed);
    if (status != QB_OK)
        qb_watch_deinit(&watch);
    else
        *out = watch;
    return status;
}

void qb_watch_deinit(qb_watch *watch)
{
    for (size_t i = 0; i < watch->n; i++) {
        qb_free(watch->items[i].title);
        qb_free(watch->items[i].records);
        qb_free(watch->items[i].values);
        qb_free(watch->items[i].changes);
    }
    qb_free(watch->items);
    *watch = (qb_watch){0};
}

static double mean(const double *x, size_t n)
{
    return qb_sum(x, n) / (double)n;
}

double qb_series_step(const qb_series *s, size_t i)
{
    size_t at = s->changes[i], first = i ? s->changes[i - 1] : 0;
    size_t end = i + 1 < s->n_changes ? s->changes[i + 1] : s->n;
    return mean(s->values + at, end - at) / mean(s->values + first, at - first) - 1;
}

bool qb_series_is_worse(const qb_series *s, size_t n_recent)
{
    if (!s->n_changes || s->changes[s->n_changes - 1] + n_recent < s->n) return false;
    double before = mean(s->values, s->changes[s->n_changes - 1]);
    double step = qb_series_step(s, s->n_changes - 1);
    return (before < 0 ? -step : step) * qb_figures[s->figure].better < 0;
}
