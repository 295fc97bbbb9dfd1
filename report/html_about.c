/* report/html_about.c - where the numbers come from: machine, trust, commands, hashes. */
#include "core/file.h"
#include "report/html_internal.h"

#include <math.h>
#include <string.h>

static bool has_any(const qb_result *r)
{
    (void)r;
    return true;
}

/* ---- the machine: every key of the record below "environment." ---- */

static void format_count(const char *key, int64_t n, char *text)
{
    if (qb_ends_with(key, "_bytes"))
        qb_format_bytes(n, text);
    else
        qb_format_count(n, text);
    if (n >= 0 && qb_ends_with(key, "_mhz")) strcat(text, " MHz");
}

static void format_real(const char *key, double value, char *text)
{
    if (qb_ends_with(key, "_share"))
        qb_format_percent(value, text);
    else
        qb_format_significant(value, text);
    if (!isnan(value) && qb_ends_with(key, "_w")) strcat(text, " W");
    if (!isnan(value) && qb_ends_with(key, "_c")) strcat(text, " °C");
}

/* The value as text, NULL = not known. */
static const char *value_of(const qb_result *r, const qb_result_field *f, char *text)
{
    const char *at = (const char *)r + f->offset;
    if (f->kind == QB_FIELD_TEXT) return *(char *const *)at;
    if (f->kind == QB_FIELD_COUNT)
        format_count(f->path, *(const int64_t *)at, text);
    else if (f->kind == QB_FIELD_REAL)
        format_real(f->path, *(const double *)at, text);
    else
        return NULL;
    return strcmp(text, "-") ? text : NULL;
}

/* "environment.gpu.sm_max_mhz" is read as "gpu sm max". */
static void label_of(const char *path, char *label, size_t size)
{
    static const char *const units[] = {"_bytes", "_mhz", "_share", "_w", "_c"};
    snprintf(label, size, "%s", strchr(path, '.') + 1);
    for (size_t i = 0; i < QB_COUNT(units); i++)
        if (qb_ends_with(label, units[i])) {
            label[strlen(label) - strlen(units[i])] = 0;
            break;
        }
    for (char *p = label; *p; p++)
        if (*p == '.' || *p == '_') *p = ' ';
}

static bool same_environment(const qb_result *a, const qb_result *b)
{
    return qb_same_machine(a, b) && qb_same_text(a->qbench_version, b->qbench_version) &&
           qb_same_text(a->environment.compiler, b->environment.compiler) &&
           qb_same_text(a->environment.gpu.driver, b->environment.gpu.driver);
}

static void write_environment(qb_page *page, const qb_result *r)
{
    char text[QB_FORMAT_BYTES + 16], label[80];
    qb_page_table_open(page, r->environment.gpu.name ? r->environment.gpu.name : r->environment.cpu,
                       "machine|value");
    for (const qb_result_field *f = qb_result_fields; f->path; f++) {
        if (strncmp(f->path, "environment.", 12)) continue;
        const char *value = value_of(r, f, text);
        if (!value) continue;
        label_of(f->path, label, sizeof label);
        qb_page_row_open(page, label);
        qb_page_long_cell(page, value);
        qb_page_row_close(page);
    }
    qb_page_table_close(page);
}

/* ---- trust ---- */

static bool is_high(const qb_result *r)
{
    return r->trust.level && !strcmp(r->trust.level, "high");
}

static void write_reasons(qb_page *page, const qb_texts *reasons)
{
    char all[1000] = "";
    for (size_t i = 0, n = 0; i < reasons->n && n < sizeof all; i++)
        n += (size_t)snprintf(all + n, sizeof all - n, "%s%s", i ? "; " : "", reasons->items[i]);
    qb_page_long_cell(page, all);
}

static void write_trust(qb_page *page)
{
    const qb_results *all = &page->report->results;
    char name[QB_NAME_BYTES];
    size_t n_high = 0;
    for (size_t i = 0; i < all->n; i++) n_high += is_high(&all->items[i]);
    fprintf(page->out, "<p>Trust is <b>high</b> in %zu of %zu records.</p>\n", n_high, all->n);
    if (n_high == all->n) return;
    qb_page_table_open(page, "Records to look at twice", "scheme|model|trust|why");
    for (size_t i = 0; i < all->n; i++) {
        const qb_result *r = &all->items[i];
        if (is_high(r)) continue;
        qb_page_row_open(page, qb_page_scheme(r));
        qb_page_cell(page, qb_page_model(page, r, name));
        qb_page_cell(page, r->trust.level);
        write_reasons(page, &r->trust.reasons);
        qb_page_row_close(page);
    }
    qb_page_table_close(page);
}

qb_status qb_page_environment(qb_page *page)
{
    size_t at = 0;
    write_trust(page);
    while (qb_page_group(page, &at, has_any, same_environment) > 0)
        write_environment(page, page->rows[0]);
    return QB_OK;
}

/* ---- commands and hashes ---- */

static bool same_run(const qb_result *a, const qb_result *b)
{
    return qb_same_text(a->command, b->command) && qb_same_text(a->git_commit, b->git_commit) &&
           qb_same_text(a->qbench_version, b->qbench_version);
}

static bool same_text_file(const qb_result *a, const qb_result *b)
{
    return qb_same_text(a->text.name, b->text.name) && qb_same_text(a->text.sha256, b->text.sha256);
}

static bool has_text(const qb_result *r)
{
    return r->text.sha256;
}

static void write_command(qb_page *page, const char *command)
{
    if (page->form == QB_PAGE_MARKDOWN) fprintf(page->twin, "\n    %s\n", command ? command : "-");
    fputs("<pre><code>", page->out);
    qb_page_text(page, command);
    fputs("</code></pre>\n", page->out);
}

static void write_runs(qb_page *page)
{
    size_t at = 0;
    while (qb_page_group(page, &at, has_any, same_run) > 0) {
        const qb_result *r = page->rows[0];
        fputs("<p>qbench ", page->out);
        qb_page_text(page, r->qbench_version);
        fputs(", commit <code>", page->out);
        qb_page_text(page, r->git_commit);
        fputs("</code>, ", page->out);
        qb_page_text(page, r->time_utc);
        fputs(":</p>\n", page->out);
        write_command(page, r->command);
    }
    for (size_t i = 0; i < page->report->n_analyses; i++)
        if (page->report->analyses[i].command)
            write_command(page, page->report->analyses[i].command);
    for (size_t i = 0; i < page->report->n_profiles; i++)
        if (page->report->profiles[i].command)
            write_command(page, page->report->profiles[i].command);
}

static void write_hash_row(qb_page *page, const char *kind, const char *name, int64_t bytes,
                           const char *sha256)
{
    char t[QB_FORMAT_BYTES];
    qb_page_row_open(page, kind);
    qb_page_cell(page, name);
    qb_page_number(page, qb_format_count(bytes, t));
    qb_page_code_cell(page, sha256);
    qb_page_row_close(page);
}

qb_status qb_page_reproduce(qb_page *page)
{
    const qb_report *report = page->report;
    size_t at = 0;
    write_runs(page);
    qb_page_table_open(page, "Hashes", "what|name|#bytes|SHA-256");
    while (qb_page_group(page, &at, has_any, qb_same_model) > 0)
        write_hash_row(page, "model", page->rows[0]->model.path, -1, page->rows[0]->model.sha256);
    at = 0;
    while (qb_page_group(page, &at, has_text, same_text_file) > 0)
        write_hash_row(page, "text", page->rows[0]->text.name, page->rows[0]->text.bytes,
                       page->rows[0]->text.sha256);
    for (size_t i = 0; i < report->n_files; i++)
        write_hash_row(page, "made from", report->files[i].name, report->files[i].bytes,
                       report->files[i].sha256);
    qb_page_table_close(page);
    return QB_OK;
}
