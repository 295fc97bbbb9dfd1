/* report/read_profile.c - see read_profile.h. */
#include "report/read_profile.h"

#include "core/memory.h"

#include <math.h>
#include <string.h>

const char *const qb_profile_seen_roofs[QB_PROFILE_SEEN_N_ROOFS] = {"f32", "bf16", "s8"};

static qb_status get_real(const json_t *object, const char *key, double *out)
{
    *out = NAN;
    return qb_json_get_double(object, key, -INFINITY, INFINITY, out);
}

static qb_status get_count(const json_t *object, const char *key, int64_t *out)
{
    size_t n = SIZE_MAX;
    QB_TRY(qb_json_get_size(object, key, 0, (size_t)1 << 50, &n));
    *out = n == SIZE_MAX ? -1 : (int64_t)n;
    return QB_OK;
}

/* Calls read(context, item) for each object of a list, which may be absent. */
typedef qb_status (*item_reader)(void *context, const json_t *item);
static qb_status each(const json_t *object, const char *key, size_t max, item_reader read,
                      void *context)
{
    const json_t *list = json_object_get(object, key), *item;
    size_t i;
    if (!list || json_is_null(list)) return QB_OK;
    if (!json_is_array(list)) return QB_FAIL(QB_ERR_FORMAT, "%s: found no list, expected one", key);
    if (json_array_size(list) > max)
        return QB_FAIL(QB_ERR_FORMAT, "%s: found %zu items, expected at most %zu", key,
                       json_array_size(list), max);
    json_array_foreach(list, i, item)
    {
        char where[60];
        qb_status status = json_is_object(item)
                               ? read(context, item)
                               : QB_FAIL(QB_ERR_FORMAT, "found no object, expected one");
        snprintf(where, sizeof where, "%.30s[%zu]", key, i);
        if (status != QB_OK) return qb_error_prefix(status, where);
    }
    return QB_OK;
}

/* ---- a run ---- */

static qb_status read_part(const json_t *o, const char *name_key, qb_profile_seen_part *p)
{
    const struct {
        const char *key;
        double *at;
    } reals[] = {{"ms", &p->ms},
                 {"share", &p->share},
                 {"bytes", &p->bytes},
                 {"ops", &p->ops},
                 {"gb_per_s", &p->gb_per_s},
                 {"gops_per_s", &p->gops_per_s},
                 {"roofline_share", &p->roofline_share}};
    QB_TRY(qb_result_read_text(o, name_key, &p->name));
    QB_TRY(qb_result_read_text(o, "phase", &p->phase));
    QB_TRY(qb_result_read_text(o, "role", &p->role));
    for (size_t i = 0; i < QB_COUNT(reals); i++) QB_TRY(get_real(o, reals[i].key, reals[i].at));
    return QB_OK;
}

static qb_status add_part(qb_profile_seen_part **parts, size_t *n, const json_t *o,
                          const char *name_key)
{
    QB_TRY(qb_realloc((void **)parts, *n, *n + 1, sizeof **parts, "parts"));
    qb_profile_seen_part *p = &(*parts)[(*n)++];
    *p = (qb_profile_seen_part){0};
    return read_part(o, name_key, p);
}

static qb_status add_phase(void *context, const json_t *o)
{
    qb_profile_seen_run *run = context;
    return add_part(&run->phases, &run->n_phases, o, "phase");
}

static qb_status add_kernel(void *context, const json_t *o)
{
    qb_profile_seen_run *run = context;
    return add_part(&run->kernels, &run->n_kernels, o, "kernel");
}

static qb_status read_run(const json_t *o, qb_profile_seen_run *run)
{
    QB_TRY(qb_result_read_text(o, "scheme", &run->scheme));
    QB_TRY(get_real(o, "ms", &run->ms));
    QB_TRY(get_real(o, "gaps_ms", &run->gaps_ms));
    QB_TRY(get_real(o, "tok_per_s", &run->tok_per_s));
    QB_TRY(get_real(o, "roof_ms", &run->roof_ms));
    QB_TRY(each(o, "phases", QB_PROFILE_SEEN_MAX_PARTS, add_phase, run));
    return each(o, "kernels", QB_PROFILE_SEEN_MAX_PARTS, add_kernel, run);
}

/* ---- the file ---- */

static qb_status add_operation(void *context, const json_t *o)
{
    static const char *const sides[] = {"full", "scheme"};
    qb_profile_seen *p = context;
    QB_TRY(qb_realloc((void **)&p->operations, p->n_operations, p->n_operations + 1,
                      sizeof *p->operations, "operations"));
    qb_profile_seen_operation *operation = &p->operations[p->n_operations++];
    *operation = (qb_profile_seen_operation){0};
    QB_TRY(qb_result_read_text(o, "operation", &operation->name));
    QB_TRY(get_count(o, "context", &operation->context));
    QB_TRY(get_count(o, "rows", &operation->rows));
    for (size_t i = 0; i < QB_COUNT(sides); i++) {
        const json_t *side = json_object_get(o, sides[i]);
        if (!side || json_is_null(side)) continue;
        if (!json_is_object(side))
            return QB_FAIL(QB_ERR_FORMAT, "%s: found no object, expected one or null", sides[i]);
        qb_status status = read_run(side, &operation->runs[operation->n_runs++]);
        if (status != QB_OK) return qb_error_prefix(status, sides[i]);
    }
    return QB_OK;
}

static qb_status add_verdict(void *context, const json_t *o)
{
    qb_profile_seen *p = context;
    const char *parts[] = {NULL, NULL, NULL, NULL};
    static const char *const keys[] = {"operation", "text", "help", "engine"};
    for (size_t i = 0; i < QB_COUNT(keys); i++) QB_TRY(qb_json_get_string(o, keys[i], &parts[i]));
    char line[1000];
    if (!parts[1]) return QB_OK;
    bool of_scheme = parts[3] && !strcmp(parts[3], "scheme") && p->scheme;
    const char *engine = of_scheme ? p->scheme : parts[3];
    snprintf(line, sizeof line, "%.40s%s%.40s: %.600s%s%.300s", parts[0] ? parts[0] : "-",
             engine ? ", " : "", engine ? engine : "", parts[1], parts[2] && *parts[2] ? " - " : "",
             parts[2] ? parts[2] : "");
    return qb_texts_add(&p->verdicts, line);
}

static qb_status read_peaks(const json_t *peaks, qb_profile_seen *p)
{
    double copy;
    QB_TRY(get_real(peaks, "copy_gb_per_s", &copy));
    QB_TRY(get_real(peaks, "read_gb_per_s", &p->memory_gb_per_s));
    if (copy > p->memory_gb_per_s || isnan(p->memory_gb_per_s)) p->memory_gb_per_s = copy;
    QB_TRY(get_real(peaks, "cache_gb_per_s", &p->cache_gb_per_s));
    for (size_t i = 0; i < QB_PROFILE_SEEN_N_ROOFS; i++) {
        char key[40];
        snprintf(key, sizeof key, "%s_gops_per_s", qb_profile_seen_roofs[i]);
        QB_TRY(get_real(peaks, key, &p->roofs_gops_per_s[i]));
    }
    return QB_OK;
}

static qb_status read_root(const json_t *root, qb_profile_seen *p)
{
    QB_TRY(qb_result_read_text(json_object_get(root, "model"), "name", &p->model));
    QB_TRY(qb_result_read_text(root, "scheme", &p->scheme));
    QB_TRY(qb_result_read_text(root, "device", &p->device));
    QB_TRY(qb_result_read_text(root, "machine", &p->machine));
    QB_TRY(qb_result_read_text(root, "cpu", &p->cpu));
    QB_TRY(qb_result_read_text(root, "command", &p->command));
    QB_TRY(get_count(root, "threads", &p->threads));
    QB_TRY(get_count(root, "batch", &p->batch));
    QB_TRY(get_count(root, "context", &p->context));
    QB_TRY(read_peaks(json_object_get(root, "peaks"), p));
    QB_TRY(each(root, "operations", QB_PROFILE_SEEN_MAX_OPERATIONS, add_operation, p));
    return each(root, "verdict", QB_PROFILE_SEEN_MAX_VERDICTS, add_verdict, p);
}

qb_status qb_profile_seen_read(const json_t *root, const char *what, qb_profile_seen *out)
{
    qb_profile_seen profiled = {0};
    qb_status status = read_root(root, &profiled);
    if (status != QB_OK) {
        qb_profile_seen_deinit(&profiled);
        return qb_error_prefix(status, what);
    }
    *out = profiled;
    return QB_OK;
}

static void free_parts(qb_profile_seen_part *parts, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        qb_free(parts[i].name);
        qb_free(parts[i].phase);
        qb_free(parts[i].role);
    }
    qb_free(parts);
}

void qb_profile_seen_deinit(qb_profile_seen *p)
{
    char *const texts[] = {p->model, p->scheme, p->device, p->machine, p->cpu, p->command};
    for (size_t i = 0; i < QB_COUNT(texts); i++) qb_free(texts[i]);
    for (size_t i = 0; i < p->n_operations; i++) {
        qb_profile_seen_operation *o = &p->operations[i];
        qb_free(o->name);
        for (size_t r = 0; r < o->n_runs; r++) {
            qb_free(o->runs[r].scheme);
            free_parts(o->runs[r].phases, o->runs[r].n_phases);
            free_parts(o->runs[r].kernels, o->runs[r].n_kernels);
        }
    }
    qb_free(p->operations);
    qb_texts_deinit(&p->verdicts);
    *p = (qb_profile_seen){0};
}
