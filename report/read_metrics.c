/* report/read_metrics.c - see read_metrics.h. */
#include "report/read_metrics.h"

#include "core/json.h"
#include "core/memory.h"
#include "report/result.h"

#include <math.h>
#include <string.h>

enum { MAX_LINE_BYTES = 1 << 16 };

/* Which line holds a curve, under which key. */
static const struct {
    const char *kind, *key;
} curves[QB_CURVE_COUNT] = {
    [QB_CURVE_LOSS] = {"train", "loss"},
    [QB_CURVE_PPL] = {"eval", "ppl"},
    [QB_CURVE_KURT_FIRST] = {"eval", "kurt_token_first"},
    [QB_CURVE_KURT_REST] = {"eval", "kurt_token_rest"},
    [QB_CURVE_MAX_FIRST] = {"eval", "max_abs_first"},
    [QB_CURVE_MAX_REST] = {"eval", "max_abs_rest"},
    [QB_CURVE_FIRST_ARGMAX] = {"eval", "attn_first_argmax"},
    [QB_CURVE_FIRST_SHARE] = {"eval", "attn_first_share"},
    [QB_CURVE_LR] = {"train", "lr"},
    [QB_CURVE_GRAD_NORM] = {"train", "grad_norm"},
    [QB_CURVE_TOK_PER_S] = {"train", "tok_per_s"},
    [QB_CURVE_MFU] = {"train", "mfu"},
    [QB_CURVE_SECONDS] = {"train", "seconds"},
    [QB_CURVE_MEMORY] = {"train", "memory_bytes"},
};

/* ---- one line ---- */

static qb_status read_point(const json_t *object, qb_metrics_point *point, bool *known)
{
    const char *kind = NULL;
    point->step = point->tokens = NAN;
    QB_TRY(qb_json_get_string(object, "kind", &kind));
    QB_TRY(qb_json_get_double(object, "step", 0, 1e15, &point->step));
    QB_TRY(qb_json_get_double(object, "tokens", 0, 1e18, &point->tokens));
    if (!kind) return QB_FAIL(QB_ERR_FORMAT, "key \"kind\": found nothing, expected a text");
    if (isnan(point->step))
        return QB_FAIL(QB_ERR_FORMAT, "key \"step\": found nothing, expected a number");
    *known = false;
    for (size_t i = 0; i < QB_CURVE_COUNT; i++) {
        point->values[i] = NAN;
        if (strcmp(kind, curves[i].kind)) continue;
        QB_TRY(qb_json_get_double(object, curves[i].key, -INFINITY, INFINITY, &point->values[i]));
        *known = true;
    }
    return QB_OK;
}

/* ---- all lines ---- */

static qb_status add_point(qb_metrics *m, const qb_metrics_point *point)
{
    if (m->n && m->points[m->n - 1].step > point->step) /* resumed */
        while (m->n && m->points[m->n - 1].step >= point->step) m->n--;
    if (m->n == QB_METRICS_MAX_POINTS)
        return QB_FAIL(QB_ERR_FORMAT, "found more than %zu lines, expected fewer",
                       QB_METRICS_MAX_POINTS);
    if (m->n == m->capacity) {
        size_t more = m->capacity ? 2 * m->capacity : 64;
        QB_TRY(qb_realloc((void **)&m->points, m->capacity, more, sizeof *m->points, "curves"));
        m->capacity = more;
    }
    m->points[m->n++] = *point;
    return QB_OK;
}

static qb_status add_line(void *context, const json_t *object, const char *where)
{
    qb_metrics_point point;
    bool known = false;
    qb_status status = read_point(object, &point, &known);
    if (status == QB_OK && known) status = add_point(context, &point);
    return status == QB_OK ? QB_OK : qb_error_prefix(status, where);
}

/* Lines of evaluations name their step alone: tokens a step are those of the training line before,
 * else of the first one after. */
static void fill_tokens(qb_metrics *m)
{
    double per_step = NAN;
    for (size_t i = m->n; i-- > 0;)
        if (m->points[i].tokens > 0 && m->points[i].step > 0)
            per_step = m->points[i].tokens / m->points[i].step;
    m->has_tokens = true;
    for (size_t i = 0; i < m->n; i++) {
        qb_metrics_point *p = &m->points[i];
        if (p->tokens > 0 && p->step > 0)
            per_step = p->tokens / p->step;
        else if (isnan(p->tokens))
            p->tokens = p->step * per_step;
        if (isnan(p->tokens)) m->has_tokens = false;
    }
}

/* "runs/vanilla/metrics.jsonl" and "vanilla.metrics.jsonl" are the run "vanilla". */
static qb_status name_of(const char *path, char **out)
{
    static const char *const endings[] = {"/metrics.jsonl", ".metrics.jsonl", ".jsonl"};
    size_t n = strlen(path);
    for (size_t i = 0; i < QB_COUNT(endings); i++) {
        size_t length = strlen(endings[i]);
        if (n <= length || strcmp(path + n - length, endings[i])) continue;
        n -= length;
        break;
    }
    while (n > 1 && path[n - 1] == '/') n--;
    size_t start = n;
    while (start && path[start - 1] != '/') start--;
    char *name;
    QB_TRY(qb_strndup(&name, path + start, n - start));
    qb_status status = qb_result_set(out, name); /* as UTF-8 */
    qb_free(name);
    return status;
}

qb_status qb_metrics_recognise(const char *text, size_t bytes, bool *is)
{
    json_t *object;
    const char *end = memchr(text, '\n', bytes < MAX_LINE_BYTES ? bytes : MAX_LINE_BYTES);
    *is = false;
    if (!end) return QB_OK;
    qb_status status = qb_json_parse(text, (size_t)(end - text), MAX_LINE_BYTES, "line", &object);
    if (status == QB_ERR_FORMAT) return QB_OK;
    if (status != QB_OK) return status;
    *is = json_object_get(object, "kind") && json_object_get(object, "step");
    json_decref(object);
    return QB_OK;
}

qb_status qb_metrics_parse(const char *text, size_t bytes, const char *path, qb_metrics *out)
{
    qb_metrics m = {0};
    qb_status status =
        qb_json_walk_lines(text, bytes, MAX_LINE_BYTES, QB_LAST_LINE_MAY_BE_OPEN, add_line, &m);
    if (status != QB_OK) status = qb_error_prefix(status, path);
    if (status == QB_OK) status = name_of(path, &m.name);
    if (status != QB_OK) {
        qb_metrics_deinit(&m);
        return status;
    }
    fill_tokens(&m);
    *out = m;
    return QB_OK;
}

void qb_metrics_deinit(qb_metrics *metrics)
{
    qb_free(metrics->name);
    qb_free(metrics->points);
    *metrics = (qb_metrics){0};
}
