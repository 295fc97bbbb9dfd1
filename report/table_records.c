/* report/table_records.c - see table_records.h. */
#include "report/table_records.h"

#include "core/file.h"
#include "core/memory.h"
#include "report/read_json.h"

#include <dirent.h>
#include <errno.h>
#include <math.h>
#include <string.h>

enum { MAX_DEPTH = 8, MAX_RECORDS = 4096 };

/* Where a figure stands in a run's record, and in an analysis. */
static const struct {
    const char *name, *run_object, *run_key, *analysis_object, *analysis_key;
    double unit;
} figures[QB_FIGURE_COUNT] = {
#define OUTLIER(name)                                                                              \
    {                                                                                              \
        name, "evaluation", name, "mean", name, 1                                                  \
    }
    [QB_FIGURE_PPL] = {"ppl", "evaluation", "ppl", NULL, NULL, 1},
    [QB_FIGURE_KURT_FIRST] = OUTLIER("kurt_token_first"),
    [QB_FIGURE_KURT_REST] = OUTLIER("kurt_token_rest"),
    [QB_FIGURE_MAX_FIRST] = OUTLIER("max_abs_first"),
    [QB_FIGURE_MAX_REST] = OUTLIER("max_abs_rest"),
    [QB_FIGURE_ARGMAX] = OUTLIER("attn_first_argmax"),
#undef OUTLIER
    [QB_FIGURE_STEPS] = {"step_per_s", "speed", "step_per_s", NULL, NULL, 1},
    [QB_FIGURE_MEMORY] = {"memory_gb", "speed", "memory_bytes", NULL, NULL, 1e-9},
    [QB_FIGURE_CORRELATION_FIRST] = {"correlation_first", NULL, NULL, "kurt_norm_ratio_correlation",
                                     "first", 1},
    [QB_FIGURE_CORRELATION_REST] = {"correlation_rest", NULL, NULL, "kurt_norm_ratio_correlation",
                                    "rest", 1},
};

const qb_result *qb_table_record_scheme(const qb_table_record *record, const char *scheme)
{
    for (size_t i = 0; i < record->n_schemes; i++)
        if (record->schemes[i].scheme.name && !strcmp(record->schemes[i].scheme.name, scheme))
            return &record->schemes[i];
    return NULL;
}

double qb_table_record_figure(const qb_table_record *record, const char *name)
{
    for (size_t i = 0; i < QB_FIGURE_COUNT; i++)
        if (!strcmp(figures[i].name, name)) return record->figures[i];
    return NAN;
}

/* ---- records ---- */

static void record_deinit(qb_table_record *r)
{
    char *texts[] = {r->name,   r->row,      r->path,       r->folder,  r->sha256, r->trained_on,
                     r->device, r->time_utc, r->git_commit, r->command, r->text};
    for (size_t i = 0; i < QB_COUNT(texts); i++) qb_free(texts[i]);
}

/* For lines of text: in UTF-8, and without what would end or colour a line. */
static qb_status set_plain(char **text, const char *value)
{
    QB_TRY(qb_result_set(text, value));
    for (char *p = *text; p && *p; p++)
        if ((unsigned char)*p < ' ' || *p == 0x7f) *p = ' ';
    return QB_OK;
}

static qb_status add_record(qb_table_records *records, const char *path, qb_table_record **out)
{
    if (records->n == MAX_RECORDS)
        return QB_FAIL(QB_ERR_FORMAT, "found more than %d records, expected fewer", MAX_RECORDS);
    if (records->n == records->capacity) {
        size_t more = records->capacity ? 2 * records->capacity : 16;
        QB_TRY(qb_realloc((void **)&records->items, records->capacity, more, sizeof *records->items,
                          "records"));
        records->capacity = more;
    }
    qb_table_record *r = &records->items[records->n];
    *r = (qb_table_record){.tokens = NAN, .vocab = NAN, .seed = NAN, .scored_tokens = NAN};
    for (size_t i = 0; i < QB_FIGURE_COUNT; i++) r->figures[i] = NAN;
    QB_TRY(set_plain(&r->path, path));
    records->n++;
    *out = r;
    return QB_OK;
}

/* "results/paper/x" of "results/paper/x/run.json"; owned by the caller. */
static qb_status folder_of(const char *path, char **out)
{
    const char *slash = strrchr(path, '/');
    return qb_strndup(out, path, slash ? (size_t)(slash - path) : 0);
}

/* The record of the run that has this folder to itself; NULL = none. */
static qb_table_record *run_in(const qb_table_records *records, const char *folder)
{
    for (size_t i = 0; i < records->n; i++)
        if (records->items[i].folder && !strcmp(records->items[i].folder, folder))
            return &records->items[i];
    return NULL;
}

static qb_table_record *of_model(const qb_table_records *records, const char *sha256,
                                 bool head_quantised)
{
    for (size_t i = 0; i < records->n && sha256; i++) {
        qb_table_record *r = &records->items[i];
        if (r->sha256 && !strcmp(r->sha256, sha256) && r->head_quantised == head_quantised)
            return r;
    }
    return NULL;
}

/* Sets *text where it is not known yet. */
static qb_status learn(char **text, const char *value)
{
    return *text || !value ? QB_OK : set_plain(text, value);
}

/* ---- qbench.run/1 and the models of qbench.pair/1 ---- */

static qb_status learn_text(const json_t *object, const char *key, char **out)
{
    const char *value = NULL;
    QB_TRY(qb_json_get_string(object, key, &value));
    return learn(out, value);
}

static qb_status learn_number(const json_t *object, const char *key, double *out)
{
    return qb_json_get_double(object, key, -1e18, 1e18, out);
}

/* Of a training: its tokens and seed, and the vocabulary of its configuration. */
static qb_status learn_training(const json_t *training, qb_table_record *r)
{
    const json_t *config = json_object_get(training, "config");
    QB_TRY(learn_number(training, "tokens", &r->tokens));
    QB_TRY(learn_number(training, "seed", &r->seed));
    return learn_number(config, "vocab", &r->vocab);
}

/* Who trained it is said by the last session. */
static qb_status learn_sessions(const json_t *sessions, qb_table_record *r)
{
    size_t n = json_array_size(sessions);
    const json_t *last = n ? json_array_get(sessions, n - 1) : NULL;
    if (!last) return QB_OK;
    QB_TRY(learn_text(last, "gpu", &r->trained_on));
    QB_TRY(learn_text(last, "time_utc", &r->time_utc));
    return learn_text(last, "command", &r->command);
}

static qb_status learn_figures(const json_t *root, qb_table_record *r)
{
    for (size_t i = 0; i < QB_FIGURE_COUNT; i++) {
        if (!figures[i].run_object) continue;
        const json_t *object = json_object_get(root, figures[i].run_object);
        double value = NAN;
        QB_TRY(learn_number(object, figures[i].run_key, &value));
        if (!isnan(value)) r->figures[i] = figures[i].unit * value;
    }
    return QB_OK;
}

static qb_status read_run(qb_table_records *records, const json_t *root, const char *path)
{
    qb_table_record *r;
    char *folder;
    const json_t *config = json_object_get(root, "config");
    QB_TRY(folder_of(path, &folder));
    r = run_in(records, folder);
    qb_status status = r ? QB_OK : add_record(records, path, &r);
    if (status != QB_OK || r->folder)
        qb_free(folder);
    else
        r->folder = folder;
    QB_TRY(status);
    QB_TRY(learn_text(root, "name", &r->name));
    QB_TRY(learn_text(root, "row", &r->row));
    QB_TRY(learn_text(root, "git_commit", &r->git_commit));
    QB_TRY(learn_training(json_object_get(root, "training"), r));
    QB_TRY(learn_number(config, "vocab", &r->vocab)); /* of a run that left no training record */
    QB_TRY(learn_number(config, "seed", &r->seed));
    QB_TRY(learn_sessions(json_object_get(root, "sessions"), r));
    return learn_figures(root, r);
}

static qb_status read_pair(qb_table_records *records, const json_t *root, const char *path)
{
    const char *which;
    json_t *model;
    json_object_foreach(json_object_get(root, "models"), which, model)
    {
        const char *sha256 = NULL;
        const json_t *training = json_object_get(model, "training");
        QB_TRY(qb_json_get_string(model, "sha256", &sha256));
        qb_table_record *r = of_model(records, sha256, false);
        if (!r) QB_TRY(add_record(records, path, &r));
        QB_TRY(learn(&r->sha256, sha256));
        QB_TRY(learn_text(json_object_get(training, "config"), "name", &r->name));
        QB_TRY(learn_training(training, r));
        QB_TRY(learn_sessions(json_object_get(training, "sessions"), r));
        QB_TRY(learn_figures(training, r));
    }
    return QB_OK;
}

/* ---- qbench.analysis/1 ---- */

static qb_status read_analysis(qb_table_records *records, const json_t *root, const char *path)
{
    const char *sha256 = NULL;
    const json_t *model = json_object_get(root, "model");
    char *folder;
    QB_TRY(qb_json_get_string(model, "sha256", &sha256));
    QB_TRY(folder_of(path, &folder));
    qb_table_record *r = run_in(records, folder);
    qb_free(folder);
    if (!r) r = of_model(records, sha256, false);
    if (!r) QB_TRY(add_record(records, path, &r));
    QB_TRY(learn(&r->sha256, sha256));
    QB_TRY(learn_text(model, "name", &r->name));
    for (size_t i = 0; i < QB_FIGURE_COUNT; i++) {
        if (!figures[i].analysis_object || !isnan(r->figures[i])) continue;
        QB_TRY(learn_number(json_object_get(root, figures[i].analysis_object),
                            figures[i].analysis_key, &r->figures[i]));
    }
    return QB_OK;
}

/* ---- qbench.results/1 ---- */

static bool quantises_head(const qb_result *r)
{
    for (size_t i = 0; i < r->coverage.kept_float.n; i++)
        if (!strcmp(r->coverage.kept_float.items[i], "output projection")) return false;
    return r->coverage.linears_quantised > 0;
}

static double real_of(int64_t count)
{
    return count < 0 ? NAN : (double)count;
}

static qb_status take_schemes(qb_table_record *r, const qb_result *first, size_t n,
                              const char *path)
{
    if (!r->folder) QB_TRY(set_plain(&r->path, path));
    r->schemes = first;
    r->n_schemes = n;
    r->scored_tokens = real_of(first->protocol.scored_tokens);
    r->head_quantised = quantises_head(first);
    if (isnan(r->tokens)) r->tokens = real_of(first->model.train_tokens);
    if (isnan(r->vocab)) r->vocab = real_of(first->model.vocab);
    QB_TRY(learn(&r->name, first->model.name));
    QB_TRY(learn(&r->sha256, first->model.sha256));
    QB_TRY(set_plain(&r->text, first->text.name));
    QB_TRY(set_plain(&r->git_commit, first->git_commit));
    QB_TRY(set_plain(&r->device, first->environment.gpu.name ? first->environment.gpu.name
                                                             : first->environment.cpu));
    QB_TRY(set_plain(&r->time_utc, first->time_utc));
    return set_plain(&r->command, first->command);
}

/* The records first[0..n) are of one model. */
static qb_status add_schemes(qb_table_records *records, const qb_result *first, size_t n,
                             const char *path)
{
    char *folder;
    if (isnan(first->quality.ppl_full)) return QB_OK; /* its speed alone */
    QB_TRY(folder_of(path, &folder));
    qb_table_record *r = run_in(records, folder);
    qb_free(folder);
    if (!r) r = of_model(records, first->model.sha256, quantises_head(first));
    if (!r) QB_TRY(add_record(records, path, &r));
    if (r->schemes && !((double)first->protocol.scored_tokens > r->scored_tokens)) return QB_OK;
    return take_schemes(r, first, n, path);
}

static qb_status keep_results(qb_table_records *records, qb_results results)
{
    if (records->n_results == records->results_capacity) {
        size_t more = records->results_capacity ? 2 * records->results_capacity : 16;
        qb_status status = qb_realloc((void **)&records->results, records->results_capacity, more,
                                      sizeof *records->results, "results");
        if (status != QB_OK) {
            qb_results_deinit(&results);
            return status;
        }
        records->results_capacity = more;
    }
    records->results[records->n_results++] = results;
    return QB_OK;
}

static qb_status read_results(qb_table_records *records, const char *text, size_t bytes,
                              const char *path)
{
    qb_results results;
    QB_TRY(qb_results_parse_json(text, bytes, path, &results));
    QB_TRY(keep_results(records, results));
    for (size_t i = 0, n; i < results.n; i += n) {
        for (n = 1;
             i + n < results.n && qb_result_same_path(&results.items[i], &results.items[i + n]);
             n++)
            ;
        QB_TRY(add_schemes(records, &results.items[i], n, path));
    }
    return QB_OK;
}

/* ---- files and folders ---- */

static const struct {
    const char *schema;
    qb_status (*read)(qb_table_records *records, const json_t *root, const char *path);
} schemas[] = {
    {"qbench.run/1", read_run}, {"qbench.pair/1", read_pair}, {"qbench.analysis/1", read_analysis}};

qb_status qb_table_records_parse(qb_table_records *records, const char *text, size_t bytes,
                                 const char *path, bool *known)
{
    json_t *root;
    qb_status status = QB_OK;
    *known = false;
    QB_TRY(qb_json_parse(text, bytes, QB_RESULTS_MAX_BYTES, path, &root));
    const char *schema = json_string_value(json_object_get(root, "schema"));
    bool is_results = schema && !strcmp(schema, "qbench.results/1");
    *known = is_results;
    for (size_t i = 0; schema && i < QB_COUNT(schemas); i++)
        if (!strcmp(schema, schemas[i].schema)) {
            *known = true;
            status = schemas[i].read(records, root, path);
            if (status != QB_OK) status = qb_error_prefix(status, path);
        }
    json_decref(root);
    return is_results ? read_results(records, text, bytes, path) : status;
}

static qb_status add_file(qb_table_records *records, const char *path, bool in_folder)
{
    qb_file file;
    bool known;
    QB_TRY(qb_file_open(path, &file));
    qb_status status = qb_table_records_parse(records, file.bytes ? (const char *)file.data : "",
                                              file.bytes, path, &known);
    qb_file_close(&file);
    if (in_folder && !known && status == QB_ERR_FORMAT)
        return qb_texts_add(&records->left_out, qb_error_message());
    if (!in_folder && !known && status == QB_OK)
        return QB_FAIL(QB_ERR_FORMAT,
                       "%s: found no schema of a record, expected qbench.results/1, "
                       "qbench.analysis/1, qbench.run/1 or qbench.pair/1",
                       path);
    return status;
}

typedef struct names {
    char **items;
    size_t n, capacity;
} names;

static void names_free(names *list)
{
    for (size_t i = 0; i < list->n; i++) qb_free(list->items[i]);
    qb_free(list->items);
}

/* run.json before the others of its folder, which join it. */
static int by_name(const void *a, const void *b)
{
    const char *x = *(char *const *)a, *y = *(char *const *)b;
    bool x_is_run = !strcmp(x, "run.json"), y_is_run = !strcmp(y, "run.json");
    return x_is_run != y_is_run ? y_is_run - x_is_run : strcmp(x, y);
}

static qb_status list_folder(const char *folder, names *list)
{
    DIR *dir = opendir(folder);
    struct dirent *entry;
    qb_status status = QB_OK;
    if (!dir) return QB_FAIL_SYSTEM(folder, errno, "opened", "a folder that can be read");
    while (status == QB_OK && (entry = readdir(dir))) {
        if (entry->d_name[0] == '.') continue;
        if (list->n == list->capacity) {
            size_t more = list->capacity ? 2 * list->capacity : 16;
            status = qb_realloc((void **)&list->items, list->capacity, more, sizeof *list->items,
                                "names");
            if (status != QB_OK) break;
            list->capacity = more;
        }
        status = qb_strdup(&list->items[list->n], entry->d_name);
        list->n += status == QB_OK;
    }
    closedir(dir);
    if (list->n) qsort(list->items, list->n, sizeof *list->items, by_name);
    return status;
}

static bool is_json(const char *name)
{
    size_t n = strlen(name);
    return n > 5 && !strcmp(name + n - 5, ".json");
}

static qb_status add_folder(qb_table_records *records, const char *folder, int depth);

static qb_status add_entry(qb_table_records *records, const char *folder, const char *name,
                           int depth)
{
    char *path;
    qb_status status = QB_OK;
    QB_TRY(qb_path_join(folder, name, &path));
    if (qb_is_folder(path))
        status = depth < MAX_DEPTH
                     ? add_folder(records, path, depth + 1)
                     : QB_FAIL(QB_ERR_FORMAT, "%s: found folders inside one another, expected %d",
                               path, MAX_DEPTH);
    else if (is_json(name))
        status = add_file(records, path, true);
    qb_free(path);
    return status;
}

static qb_status add_folder(qb_table_records *records, const char *folder, int depth)
{
    names list = {0};
    qb_status status = list_folder(folder, &list);
    for (size_t i = 0; i < list.n && status == QB_OK; i++)
        status = add_entry(records, folder, list.items[i], depth);
    names_free(&list);
    return status;
}

/* results/ as results. */
qb_status qb_table_records_add(qb_table_records *records, const char *path)
{
    char *trimmed;
    size_t n = strlen(path);
    while (n > 1 && path[n - 1] == '/') n--;
    if (!qb_is_folder(path)) return add_file(records, path, false);
    QB_TRY(qb_strndup(&trimmed, path, n));
    qb_status status = add_folder(records, trimmed, 1);
    qb_free(trimmed);
    return status;
}

void qb_table_records_deinit(qb_table_records *records)
{
    for (size_t i = 0; i < records->n; i++) record_deinit(&records->items[i]);
    for (size_t i = 0; i < records->n_results; i++) qb_results_deinit(&records->results[i]);
    qb_free(records->items);
    qb_free(records->results);
    qb_texts_deinit(&records->left_out);
    *records = (qb_table_records){0};
}
