/* report/page_tables.c - the tables of a page: as HTML, and as its twins in Markdown and CSV. */
#include "report/html_internal.h"

#include "core/file.h"
#include "core/memory.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

/* ---- cells ---- */

/* Of numbers 1,234 is 1234; what still has a comma, quote or line is quoted (RFC 4180). */
static void write_csv_cell(const char *text, bool number, FILE *out)
{
    bool grouped = false, special = false;
    for (const char *p = text; *p; p++) {
        grouped = number && *p == ',' && isdigit((unsigned char)p[1]);
        special = special || (!grouped && strchr(",\"\r\n", *p));
    }
    if (special) fputc('"', out);
    for (const char *p = text; *p; p++) {
        grouped = number && *p == ',' && isdigit((unsigned char)p[1]);
        if (*p == '"') fputc('"', out);
        if (!grouped) fputc(*p, out);
    }
    if (special) fputc('"', out);
}

/* `open` and `close` are HTML's. */
static void cell(qb_page *page, const char *open, const char *text, const char *close)
{
    switch (page->form) {
    case QB_PAGE_HTML:
        fputs(open, page->out);
        qb_page_text(page, text);
        fputs(close, page->out);
        break;
    case QB_PAGE_MARKDOWN:
        qb_markdown_cell(text, page->twin);
        break;
    case QB_PAGE_CSV:
        if (!page->twin) break;
        fputc(',', page->twin);
        write_csv_cell(text && strcmp(text, "-") ? text : "", strstr(open, "\"n\""), page->twin);
        break;
    }
}

void qb_page_row_open(qb_page *page, const char *head)
{
    switch (page->form) {
    case QB_PAGE_HTML:
        fputs("<tr><th scope=\"row\">", page->out);
        qb_page_text(page, head);
        fputs("</th>", page->out);
        break;
    case QB_PAGE_MARKDOWN:
        fputc('|', page->twin);
        qb_markdown_cell(head, page->twin);
        break;
    case QB_PAGE_CSV:
        if (page->twin) write_csv_cell(head ? head : "", false, page->twin);
        break;
    }
}

void qb_page_cell(qb_page *page, const char *text)
{
    cell(page, "<td>", text, "</td>");
}

void qb_page_long_cell(qb_page *page, const char *text)
{
    cell(page, "<td class=\"w\">", text, "</td>");
}

void qb_page_code_cell(qb_page *page, const char *text)
{
    cell(page, "<td><code>", text, "</code></td>");
}

void qb_page_scheme_cell(qb_page *page, const char *scheme)
{
    char open[60];
    snprintf(open, sizeof open, "<td><i class=\"swatch b%zu\"></i>", qb_page_colour(page, scheme));
    cell(page, open, scheme, "</td>");
}

void qb_page_number(qb_page *page, const char *text)
{
    cell(page, "<td class=\"n\">", text, "</td>");
}

void qb_page_row_close(qb_page *page)
{
    if (page->form == QB_PAGE_HTML)
        fputs("</tr>\n", page->out);
    else if (page->twin)
        fputs(page->form == QB_PAGE_CSV ? "\r\n" : "\n", page->twin);
}

/* ---- headings ---- */

static void open_html(qb_page *page, const char *caption, const char *columns)
{
    fprintf(page->out,
            "<div class=\"scroll\" role=\"region\" tabindex=\"0\" aria-labelledby=\"c%zu\">"
            "<table>\n<caption id=\"c%zu\">",
            page->n_tables, page->n_tables);
    qb_page_text(page, caption);
    fputs("</caption>\n<thead><tr>", page->out);
    while (*columns) {
        size_t n = strcspn(columns, "|");
        bool number = *columns == '#';
        fprintf(page->out, "<th scope=\"col\"%s>%.*s</th>", number ? " class=\"n\"" : "",
                (int)n - number, columns + number);
        columns += n + (columns[n] == '|');
    }
    fputs("</tr></thead>\n<tbody>\n", page->out);
}

static void open_markdown(qb_page *page, const char *caption, const char *columns)
{
    fputs("\n**", page->twin);
    for (const char *p = caption; *p; p++) fputc(*p == '\n' ? ' ' : *p, page->twin);
    fputs("**\n\n|", page->twin);
    for (const char *p = columns; *p;) {
        size_t n = strcspn(p, "|");
        fprintf(page->twin, " %.*s |", (int)n - (*p == '#'), p + (*p == '#'));
        p += n + (p[n] == '|');
    }
    fputs("\n|", page->twin);
    for (const char *p = columns; *p;) {
        size_t n = strcspn(p, "|");
        fputs(*p == '#' ? "---:|" : "---|", page->twin);
        p += n + (p[n] == '|');
    }
    fputc('\n', page->twin);
}

static void open_csv(qb_page *page, const char *caption, const char *columns)
{
    snprintf(page->caption, sizeof page->caption, "%s", caption);
    page->twin = open_memstream(&page->csv, &page->csv_bytes);
    if (!page->twin) {
        page->status = QB_FAIL(QB_ERR_MEMORY, "%s: no memory for its tables", page->folder);
        return;
    }
    for (const char *p = columns; *p;) {
        char head[QB_NAME_BYTES];
        size_t n = strcspn(p, "|");
        snprintf(head, sizeof head, "%.*s", (int)n - (*p == '#'), p + (*p == '#'));
        write_csv_cell(head, false, page->twin);
        p += n + (p[n] == '|');
        if (*p) fputc(',', page->twin);
    }
    fputs("\r\n", page->twin);
}

void qb_page_table_open(qb_page *page, const char *caption, const char *columns)
{
    if (page->form == QB_PAGE_HTML) open_html(page, caption, columns);
    if (page->form == QB_PAGE_MARKDOWN) open_markdown(page, caption, columns);
    if (page->form == QB_PAGE_CSV) open_csv(page, caption, columns);
    page->n_tables++;
}

/* ---- ends ---- */

/* FOLDER/03-latency-of-decode.csv: the number of the table on the page, and its caption. */
static qb_status write_csv_file(const qb_page *page)
{
    char name[80], *path;
    size_t n = (size_t)snprintf(name, sizeof name, "%02zu", page->n_tables);
    for (const char *p = page->caption; *p && n < sizeof name - 6; p++) {
        if (isascii((unsigned char)*p) && isalnum((unsigned char)*p)) {
            if (p == page->caption || !isalnum((unsigned char)p[-1])) name[n++] = '-';
            name[n++] = (char)tolower((unsigned char)*p);
        }
    }
    strcpy(name + n, ".csv");
    QB_TRY(qb_path_join(page->folder, name, &path));
    qb_status status = qb_file_write_whole(path, page->csv, page->csv_bytes);
    qb_free(path);
    return status;
}

static void close_csv(qb_page *page)
{
    if (!page->twin) return;
    if (fclose(page->twin) && page->status == QB_OK)
        page->status = QB_FAIL(QB_ERR_MEMORY, "%s: no memory for its tables", page->folder);
    page->twin = NULL;
    if (page->status == QB_OK) page->status = write_csv_file(page);
    free(page->csv);
    page->csv = NULL;
}

void qb_page_table_close(qb_page *page)
{
    if (page->form == QB_PAGE_HTML) fputs("</tbody></table></div>\n", page->out);
    if (page->form == QB_PAGE_CSV) close_csv(page);
}
