/* report/html.c - the page: its inputs, its frame and the table of its sections; see html.h. */
#include "report/html_internal.h"

#include "core/file.h"
#include "core/memory.h"
#include "report/read_json.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>

/* ---- inputs ---- */

static qb_status add_results(qb_report *report, const json_t *root, const char *path)
{
    qb_results more;
    qb_status status = QB_OK;
    QB_TRY(qb_results_from_json(root, path, &more));
    if (report->results.n + more.n > QB_REPORT_MAX_RECORDS)
        status = QB_FAIL(QB_ERR_FORMAT, "%s: found %zu records, expected at most %d", path,
                         report->results.n + more.n, QB_REPORT_MAX_RECORDS);
    for (size_t i = 0; i < more.n && status == QB_OK; i++) {
        qb_result *r;
        status = qb_results_add(&report->results, &r);
        if (status != QB_OK) break;
        *r = more.items[i]; /* its texts move */
        qb_result_init(&more.items[i]);
    }
    qb_results_deinit(&more);
    return status;
}

static qb_status check_files(size_t n, const char *path)
{
    if (n < QB_REPORT_MAX_FILES) return QB_OK;
    return QB_FAIL(QB_ERR_FORMAT, "%s: found more files of its kind than %d, expected fewer", path,
                   QB_REPORT_MAX_FILES);
}

qb_status qb_report_add_analysis(qb_report *report, const json_t *root, const char *path)
{
    QB_TRY(check_files(report->n_analyses, path));
    QB_TRY(qb_realloc((void **)&report->analyses, report->n_analyses, report->n_analyses + 1,
                      sizeof *report->analyses, "analyses"));
    QB_TRY(qb_analysis_record_read(root, path, &report->analyses[report->n_analyses]));
    report->n_analyses++;
    return QB_OK;
}

static qb_status add_profile(qb_report *report, const json_t *root, const char *path)
{
    QB_TRY(check_files(report->n_profiles, path));
    QB_TRY(qb_realloc((void **)&report->profiles, report->n_profiles, report->n_profiles + 1,
                      sizeof *report->profiles, "profiles"));
    QB_TRY(qb_profile_seen_read(root, path, &report->profiles[report->n_profiles]));
    report->n_profiles++;
    return QB_OK;
}

/* Told by its schema; a file without a known one is results that break a rule. */
static qb_status add_json(qb_report *report, const char *text, size_t bytes, const char *path)
{
    json_t *root;
    QB_TRY(qb_json_parse(text, bytes, QB_RESULTS_MAX_BYTES, path, &root));
    const char *schema = json_string_value(json_object_get(root, "schema"));
    qb_status status =
        schema && !strcmp(schema, QB_ANALYSIS_SCHEMA)  ? qb_report_add_analysis(report, root, path)
        : schema && !strcmp(schema, QB_PROFILE_SCHEMA) ? add_profile(report, root, path)
                                                       : add_results(report, root, path);
    json_decref(root);
    return status;
}

static qb_status add_run(qb_report *report, const char *text, size_t bytes, const char *path)
{
    QB_TRY(qb_realloc((void **)&report->runs, report->n_runs, report->n_runs + 1,
                      sizeof *report->runs, "training runs"));
    QB_TRY(qb_metrics_parse(text, bytes, path, &report->runs[report->n_runs]));
    report->n_runs++;
    return QB_OK;
}

static qb_status add_file_name(qb_report *report, const qb_file *file, const char *path)
{
    QB_TRY(qb_realloc((void **)&report->files, report->n_files, report->n_files + 1,
                      sizeof *report->files, "names of files"));
    qb_report_file *f = &report->files[report->n_files];
    const char *slash = strrchr(path, '/');
    *f = (qb_report_file){.bytes = (int64_t)file->bytes};
    QB_TRY(qb_sha256_hex(file->data, file->bytes, f->sha256));
    QB_TRY(qb_result_set(&f->name, slash ? slash + 1 : path));
    report->n_files++;
    return QB_OK;
}

static qb_status add_file(qb_report *report, const char *path)
{
    qb_file file;
    QB_TRY(qb_file_open(path, &file));
    const char *text = file.bytes ? (const char *)file.data : "";
    bool is_run = false;
    qb_status status = qb_metrics_recognise(text, file.bytes, &is_run);
    if (status == QB_OK)
        status = is_run ? add_run(report, text, file.bytes, path)
                        : add_json(report, text, file.bytes, path);
    if (status == QB_OK) status = add_file_name(report, &file, path);
    qb_file_close(&file);
    return status;
}

qb_status qb_report_add(qb_report *report, const char *path)
{
    char *inside;
    if (!qb_is_folder(path)) return add_file(report, path);
    QB_TRY(qb_path_join(path, "metrics.jsonl", &inside));
    qb_status status = add_file(report, inside);
    qb_free(inside);
    return status;
}

void qb_report_deinit(qb_report *report)
{
    qb_results_deinit(&report->results);
    for (size_t i = 0; i < report->n_runs; i++) qb_metrics_deinit(&report->runs[i]);
    for (size_t i = 0; i < report->n_files; i++) qb_free(report->files[i].name);
    for (size_t i = 0; i < report->n_analyses; i++) qb_analysis_record_deinit(&report->analyses[i]);
    for (size_t i = 0; i < report->n_profiles; i++) qb_profile_seen_deinit(&report->profiles[i]);
    qb_free(report->runs);
    qb_free(report->analyses);
    qb_free(report->profiles);
    qb_free(report->files);
    *report = (qb_report){0};
}

/* ---- sections ---- */

static bool has_records(const qb_page *page)
{
    return page->report->results.n > 0;
}

static bool always(const qb_page *page)
{
    (void)page;
    return true;
}

static const struct {
    const char *id, *title;
    bool (*has)(const qb_page *page);
    qb_status (*write)(qb_page *page);
} sections[] = {
    {"summary", "Summary", qb_page_has_summary, qb_page_summary},
    {"tradeoff", "Penalty against speed", qb_page_has_tradeoff, qb_page_tradeoff},
    {"penalty", "Penalty of each scheme", qb_page_has_penalty, qb_page_penalty},
    {"latency", "Latency", qb_page_has_latency, qb_page_latency},
    {"memory", "Memory", qb_page_has_memory, qb_page_memory},
    {"profile", "Where the time goes", qb_page_has_profile, qb_page_profile},
    {"sensitivity", "What each part costs", qb_page_has_sensitivity, qb_page_sensitivity},
    {"layers", "Layer by layer", qb_page_has_analysis, qb_page_analyses},
    {"effects", "Massive activations, norms and weights", qb_page_has_effects, qb_page_effects},
    {"maps", "Attention and hidden states", qb_page_has_maps, qb_page_maps},
    {"training", "Training", qb_page_has_training, qb_page_training},
    {"environment", "Environment and trust", has_records, qb_page_environment},
    {"reproduce", "How to reproduce", always, qb_page_reproduce},
};

void qb_page_head(qb_page *page, const char *title, const char *policy, const char *more)
{
    fprintf(page->out,
            "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
            "<meta http-equiv=\"Content-Security-Policy\" content=\"%s\">\n"
            "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n"
            "<meta name=\"color-scheme\" content=\"light dark\">\n<title>",
            policy);
    qb_page_text(page, title);
    fprintf(page->out, "</title>\n<style>\n%s</style>\n%s</head>\n<body>\n<header>\n<h1>",
            qb_page_style, more);
    qb_page_text(page, title);
    fputs("</h1>\n", page->out);
}

static void write_links(qb_page *page)
{
    fputs("<nav aria-label=\"Sections\"><ul>\n", page->out);
    for (size_t i = 0; i < QB_COUNT(sections); i++)
        if (sections[i].has(page))
            fprintf(page->out, "<li><a href=\"#%s\">%s</a></li>\n", sections[i].id,
                    sections[i].title);
    fputs("</ul></nav>\n</header>\n<main>\n", page->out);
}

static qb_status write_page(qb_page *page, const char *title)
{
    qb_page_head(page, title, "default-src 'none'; style-src 'unsafe-inline'", "");
    write_links(page);
    for (size_t i = 0; i < QB_COUNT(sections); i++) {
        if (!sections[i].has(page)) continue;
        if (page->form == QB_PAGE_MARKDOWN) fprintf(page->twin, "\n## %s\n", sections[i].title);
        fprintf(page->out, "<section id=\"%s\">\n<h2>%s</h2>\n", sections[i].id, sections[i].title);
        QB_TRY(sections[i].write(page));
        fputs("</section>\n", page->out);
    }
    fputs("</main>\n</body>\n</html>\n", page->out);
    return page->status;
}

/* ---- names, in the order of appearance ---- */

static qb_status add_once(qb_texts *texts, const char *text)
{
    for (size_t i = 0; i < texts->n; i++)
        if (!strcmp(texts->items[i], text)) return QB_OK;
    return qb_texts_add(texts, text);
}

static qb_status find_names(qb_page *page)
{
    const qb_results *results = &page->report->results;
    char name[QB_NAME_BYTES];
    for (size_t i = 0; i < results->n; i++) {
        QB_TRY(add_once(&page->schemes, qb_page_scheme(&results->items[i])));
        QB_TRY(add_once(&page->models, qb_page_model(page, &results->items[i], name)));
    }
    return QB_OK;
}

static qb_status write_form(qb_page *page, const char *title)
{
    qb_status status;
    QB_TRY(QB_NEW(&page->rows, page->report->results.n, "rows of the page"));
    QB_TRY_GOTO(status, find_names(page), done);
    status = write_page(page, title);
done:
    qb_texts_deinit(&page->schemes);
    qb_texts_deinit(&page->models);
    qb_free(page->rows);
    return status;
}

qb_status qb_report_write_html(const qb_report *report, const char *title, FILE *stream)
{
    qb_page page = {.out = stream, .report = report};
    return write_form(&page, title);
}

static qb_status write_twin(qb_page *page, const char *title)
{
    page->out = fopen("/dev/null", "we");
    if (!page->out) return QB_FAIL(QB_ERR_IO, "/dev/null: %s", strerror(errno));
    qb_status status = write_form(page, title);
    fclose(page->out);
    return status;
}

qb_status qb_report_write_markdown(const qb_report *report, const char *title, FILE *stream)
{
    qb_page page = {.form = QB_PAGE_MARKDOWN, .twin = stream, .report = report};
    fprintf(stream, "# %s\n", title);
    return write_twin(&page, title);
}

qb_status qb_report_write_tables(const qb_report *report, const char *folder)
{
    qb_page page = {.form = QB_PAGE_CSV, .folder = folder, .report = report};
    if (mkdir(folder, 0777) && errno != EEXIST)
        return QB_FAIL_SYSTEM(folder, errno, "made", "a folder that can be");
    if (!qb_is_folder(folder))
        return QB_FAIL(QB_ERR_IO, "%s: found a file, expected a folder", folder);
    return write_twin(&page, "tables");
}
