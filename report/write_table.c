/* report/write_table.c - a table as a screen, Markdown, CSV and JSON. See table.h. */
#include "report/format.h"
#include "report/svg.h"
#include "report/table.h"

#include <math.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

enum { LABEL_BYTES = 160, NOTE_BYTES = 4096 };
enum { NAME_COLUMNS = 31, WHO_COLUMNS = 9 };

/* ---- cells ---- */

/* "2,087,638.0"; too large for a column's digits is shown in fewer. */
static const char *number(double value, int digits, char *text)
{
    char plain[QB_FORMAT_BYTES];
    if (!isfinite(value)) return strcpy(text, "-");
    bool fits = fabs(value) < 1e15;
    snprintf(plain, sizeof plain, fits ? "%.*f" : "%.*g", fits ? digits : 6, value);
    if (!fits) return strcpy(text, plain);
    const char *p = plain;
    char *out = text;
    if (*p == '-') *out++ = *p++;
    for (size_t whole = strcspn(p, "."); whole; whole--) {
        *out++ = *p++;
        if (whole % 3 == 1 && whole > 1) *out++ = ',';
    }
    strcpy(out, p);
    return text;
}

/* The paper's row; of a model that stands for none its name. */
static const char *label(const qb_table *table, const qb_table_line *line, char *text)
{
    char name[4 * NAME_COLUMNS + 1];
    if (line->row) return line->row->label;
    const qb_table_record *r = table->records[line->record];
    snprintf(text, LABEL_BYTES, "%s%s",
             qb_shorten(r->name ? r->name : "unnamed", NAME_COLUMNS, name),
             r->head_quantised ? ", head quantised" : "");
    return text;
}

static const char *who(const qb_table_line *line, char *text)
{
    if (line->who == QB_TABLE_PAPER) return "paper";
    if (line->who == QB_TABLE_NOT_RUN) return "ours";
    snprintf(text, QB_FORMAT_BYTES, "ours [%zu]", line->record + 1);
    return text;
}

/* The same label once alone, where lines of one row follow one another. */
static const char *new_label(const qb_table *table, size_t i, char *text)
{
    const qb_table_line *line = &table->lines[i];
    return i && line->row && line->row == line[-1].row ? "" : label(table, line, text);
}

/* ---- what differs ---- */

/* Of a line of text that is built up; what does not fit is cut off. */
typedef struct note {
    char text[NOTE_BYTES];
    size_t n;
} note;

__attribute__((format(printf, 2, 3))) static void add(note *out, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    int n = vsnprintf(out->text + out->n, sizeof out->text - out->n, format, args);
    va_end(args);
    if (n > 0) out->n += (size_t)n;
    if (out->n >= sizeof out->text) out->n = sizeof out->text - 1;
}

/* What records say in numbers: one for all is said above the table, else each its own. */
typedef struct quantity {
    size_t offset;
    const char *before, *after;
    double unit;
    int digits;
} quantity;

static const quantity quantities[] = {
    {offsetof(qb_table_record, tokens), "", " billion tokens of training", 1e9, 2},
    {offsetof(qb_table_record, vocab), "vocabulary ", "", 1, 0},
    {offsetof(qb_table_record, seed), "seed ", "", 1, 0},
    {offsetof(qb_table_record, scored_tokens), "", " tokens scored", 1, 0},
};

static double quantity_of(const qb_table_record *r, const quantity *q)
{
    double value;
    memcpy(&value, (const char *)r + q->offset, sizeof value);
    return value;
}

/* Smallest and largest of those that are known. */
static bool span(const qb_table *table, const quantity *q, double *low, double *high)
{
    *low = INFINITY, *high = -INFINITY;
    for (size_t i = 0; i < table->n_records; i++) {
        double value = quantity_of(table->records[i], q);
        if (isnan(value)) continue;
        *low = fmin(*low, value), *high = fmax(*high, value);
    }
    return *low <= *high;
}

/* And in words, of which the first are shown. */
typedef struct wording {
    size_t offset;
    const char *before, *ends; /* at the first of these characters, and */
    int most;                  /* after so many */
} wording;

enum { TRAINED_ON, TEXT, DEVICE, DATE, COMMIT };
static const wording wordings[] = {
    [TRAINED_ON] = {offsetof(qb_table_record, trained_on), "trained on ", ",;", 80},
    [TEXT] = {offsetof(qb_table_record, text), "text ", "", 80},
    [DEVICE] = {offsetof(qb_table_record, device), "scored on ", "", 80},
    [DATE] = {offsetof(qb_table_record, time_utc), "", "", 10},
    [COMMIT] = {offsetof(qb_table_record, git_commit), "commit ", "", 12},
};

/* "" = not known. */
static const char *words_of(const qb_table_record *r, size_t which, int *bytes)
{
    const char *text;
    memcpy(&text, (const char *)r + wordings[which].offset, sizeof text);
    if (!text) text = "";
    size_t n = strcspn(text, wordings[which].ends);
    *bytes = n < (size_t)wordings[which].most ? (int)n : wordings[which].most;
    return text;
}

static bool same_words(const qb_table_record *a, size_t x, const qb_table_record *b, size_t y)
{
    int n, m;
    const char *text = words_of(a, x, &n), *other = words_of(b, y, &m);
    return n == m && !memcmp(text, other, (size_t)n);
}

/* All records know it, and say the same. */
static bool is_shared(const qb_table *table, size_t which)
{
    int bytes = 0;
    for (size_t i = 0; i < table->n_records; i++)
        if (!same_words(table->records[0], which, table->records[i], which)) return false;
    if (table->n_records) words_of(table->records[0], which, &bytes);
    return bytes > 0;
}

static void add_words(note *out, const qb_table_record *r, size_t which, const char *before)
{
    int bytes;
    const char *text = words_of(r, which, &bytes);
    if (bytes) add(out, "; %s%.*s", before, bytes, text);
}

/* One line on all of our records: how much they were trained on and judged by, and where. */
static const char *ours(const qb_table *table, note *out)
{
    char text[QB_FORMAT_BYTES];
    double low, high;
    add(out, "Ours: %zu record%s", table->n_records, table->n_records == 1 ? "" : "s");
    for (size_t i = 0; i < QB_COUNT(quantities); i++) {
        const quantity *q = &quantities[i];
        if (!span(table, q, &low, &high)) continue;
        add(out, "; %s%s", q->before, number(low / q->unit, q->digits, text));
        if (high > low) add(out, " to %s", number(high / q->unit, q->digits, text));
        add(out, "%s", q->after);
    }
    for (size_t i = 0; i < QB_COUNT(wordings); i++)
        if (is_shared(table, i)) add_words(out, table->records[0], i, wordings[i].before);
    add(out, ".");
    return out->text;
}

/* What the line above does not say of a record already. */
static void add_record(const qb_table *table, size_t i, note *out)
{
    char text[QB_FORMAT_BYTES];
    const qb_table_record *r = table->records[i];
    double low, high;
    for (size_t k = 0; k < QB_COUNT(quantities); k++) {
        const quantity *q = &quantities[k];
        double value = quantity_of(r, q);
        if (isnan(value) || (span(table, q, &low, &high) && low == high)) continue;
        add(out, "; %s%s%s", q->before, number(value / q->unit, q->digits, text), q->after);
    }
    bool one_place = !is_shared(table, DEVICE) && same_words(r, TRAINED_ON, r, DEVICE);
    for (size_t k = 0; k < QB_COUNT(wordings); k++)
        if (!is_shared(table, k) && !(one_place && k == TRAINED_ON))
            add_words(out, r, k,
                      one_place && k == DEVICE ? "trained and scored on " : wordings[k].before);
}

/* Runs that belong together differ in nothing but their names. */
static const char *footnote(const qb_table *table, size_t i, note *out)
{
    note own = {0};
    size_t like = 0;
    add_record(table, i, &own);
    for (; like < i; like++) {
        note other = {0};
        add_record(table, like, &other);
        if (!strcmp(own.text, other.text)) break;
    }
    add(out, "%s", table->records[i]->name ? table->records[i]->name : "unnamed");
    if (like < i && own.n)
        add(out, "; the rest as [%zu]", like + 1);
    else
        add(out, "%s", own.text);
    add(out, "; %s", table->records[i]->path);
    return out->text;
}

/* ---- the screen ---- */

static int column_width(const qb_table *table, size_t column)
{
    char text[QB_FORMAT_BYTES];
    int digits = table->paper->columns[column].digits;
    int width = qb_text_columns(table->paper->columns[column].name);
    for (size_t i = 0; i < table->n_lines; i++) {
        int n = qb_text_columns(number(table->lines[i].values[column], digits, text));
        width = n > width ? n : width;
    }
    return width + 2;
}

static int label_columns(const qb_table *table)
{
    char text[LABEL_BYTES];
    int width = 0;
    for (size_t i = 0; i < table->n_lines; i++) {
        int n = qb_text_columns(label(table, &table->lines[i], text));
        width = n > width ? n : width;
    }
    return width + 2;
}

static void write_screen_line(const qb_table *table, size_t i, int labels, const char *dim,
                              const char *reset, FILE *stream)
{
    const qb_table_line *line = &table->lines[i];
    char text[LABEL_BYTES];
    const char *shown = new_label(table, i, text);
    fprintf(stream, "%s%*s", shown, labels - qb_text_columns(shown), "");
    fprintf(stream, "%-*s", WHO_COLUMNS, who(line, text));
    if (line->who == QB_TABLE_NOT_RUN)
        fprintf(stream, "%snot run%s", dim, reset);
    else
        for (size_t c = 0; table->paper->columns[c].name; c++)
            qb_write_right(stream, column_width(table, c),
                           number(line->values[c], table->paper->columns[c].digits, text));
    fputc('\n', stream);
}

static void write_missing(const qb_table *table, FILE *stream)
{
    size_t n = 0;
    for (size_t i = 0; i < table->n_lines; i++) n += table->lines[i].who == QB_TABLE_NOT_RUN;
    if (n)
        fprintf(stream, "\nMissing: %zu row%s of ours; docs/reproduction.md has what makes them\n",
                n, n == 1 ? "" : "s");
}

static void write_footnotes(const qb_table *table, FILE *stream)
{
    char text[QB_FORMAT_BYTES];
    if (table->n_records) fputc('\n', stream);
    for (size_t i = 0; i < table->n_records; i++) {
        snprintf(text, sizeof text, "[%zu]", i + 1);
        qb_write_labelled(stream, text, 5, "%s", footnote(table, i, &(note){0}));
    }
}

qb_status qb_table_write_screen(const qb_table *table, bool colour, FILE *stream)
{
    const char *bold = colour ? "\033[1m" : "", *dim = colour ? "\033[2m" : "",
               *reset = colour ? "\033[0m" : "";
    int labels = label_columns(table);
    note title = {0};
    add(&title, "Table %d of arXiv:2410.17174: %s", table->paper->number, table->paper->title);
    fputs(bold, stream);
    qb_write_wrapped(stream, 0, title.text);
    fputs(reset, stream);
    for (size_t i = 0; i < QB_PAPER_MAX_NOTES && table->paper->notes[i]; i++)
        qb_write_wrapped(stream, 0, table->paper->notes[i]);
    qb_write_wrapped(stream, 0, ours(table, &(note){0}));
    fprintf(stream, "\n%s%*s", dim, labels + WHO_COLUMNS, "");
    for (size_t c = 0; table->paper->columns[c].name; c++)
        qb_write_right(stream, column_width(table, c), table->paper->columns[c].name);
    fprintf(stream, "%s\n", reset);
    for (size_t i = 0; i < table->n_lines; i++)
        write_screen_line(table, i, labels, dim, reset, stream);
    write_footnotes(table, stream);
    write_missing(table, stream);
    return QB_OK;
}

/* ---- Markdown ---- */

static void write_markdown_line(const qb_table *table, size_t i, FILE *stream)
{
    const qb_table_line *line = &table->lines[i];
    char text[LABEL_BYTES];
    fputc('|', stream);
    qb_markdown_cell(new_label(table, i, text), stream);
    qb_markdown_cell(who(line, text), stream);
    for (size_t c = 0; table->paper->columns[c].name; c++)
        qb_markdown_cell(line->who == QB_TABLE_NOT_RUN
                             ? (c ? "" : "not run")
                             : number(line->values[c], table->paper->columns[c].digits, text),
                         stream);
    fputc('\n', stream);
}

qb_status qb_table_write_markdown(const qb_table *table, FILE *stream)
{
    fprintf(stream, "**Table %d: %s.**", table->paper->number, table->paper->title);
    for (size_t i = 0; i < QB_PAPER_MAX_NOTES && table->paper->notes[i]; i++)
        fprintf(stream, " %s", table->paper->notes[i]);
    fprintf(stream, " %s\n\n| | |", ours(table, &(note){0}));
    for (size_t c = 0; table->paper->columns[c].name; c++)
        qb_markdown_cell(table->paper->columns[c].name, stream);
    fputs("\n|---|---|", stream);
    for (size_t c = 0; table->paper->columns[c].name; c++) fputs("---:|", stream);
    fputc('\n', stream);
    for (size_t i = 0; i < table->n_lines; i++) write_markdown_line(table, i, stream);
    for (size_t i = 0; i < table->n_records; i++)
        fprintf(stream, "%s[%zu] %s", i ? "  \n" : "\n", i + 1, footnote(table, i, &(note){0}));
    fputs(table->n_records ? "\n" : "", stream);
    return QB_OK;
}

/* ---- CSV ---- */

qb_status qb_table_write_csv(const qb_table *table, FILE *stream)
{
    char text[LABEL_BYTES];
    fputs("table,row,id,who,record", stream);
    for (size_t c = 0; table->paper->columns[c].name; c++) {
        fputc(',', stream);
        qb_csv_text(table->paper->columns[c].name, stream);
    }
    fputs("\r\n", stream);
    for (size_t i = 0; i < table->n_lines; i++) {
        const qb_table_line *line = &table->lines[i];
        bool ours = line->who == QB_TABLE_OURS;
        fprintf(stream, "%d,", table->paper->number);
        qb_csv_text(label(table, line, text), stream);
        fprintf(stream, ",%s,%s,", line->row && line->row->id ? line->row->id : "",
                ours                            ? "ours"
                : line->who == QB_TABLE_NOT_RUN ? "not run"
                                                : "paper");
        if (ours) qb_csv_text(table->records[line->record]->path, stream);
        for (size_t c = 0; table->paper->columns[c].name; c++)
            isfinite(line->values[c]) ? fprintf(stream, ",%.17g", line->values[c])
                                      : fputc(',', stream);
        fputs("\r\n", stream);
    }
    return QB_OK;
}

/* ---- JSON ---- */

static json_t *text_or_null(const char *text)
{
    return text ? json_string(text) : json_null();
}

static json_t *line_to_json(const qb_table *table, const qb_table_line *line)
{
    char text[LABEL_BYTES];
    json_t *values = json_array();
    for (size_t c = 0; table->paper->columns[c].name; c++)
        json_array_append_new(values, qb_json_real(line->values[c]));
    return json_pack(
        "{s:o, s:o, s:s, s:o, s:o}", "row", json_string(label(table, line, text)), "id",
        text_or_null(line->row ? line->row->id : NULL), "who",
        line->who == QB_TABLE_PAPER  ? "paper"
        : line->who == QB_TABLE_OURS ? "ours"
                                     : "not run",
        "record", line->who == QB_TABLE_OURS ? json_integer((json_int_t)line->record) : json_null(),
        "values", values);
}

static json_t *record_to_json(const qb_table_record *r)
{
    return json_pack("{s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o}", "name",
                     text_or_null(r->name), "path", text_or_null(r->path), "sha256",
                     text_or_null(r->sha256), "train_tokens", qb_json_real(r->tokens), "vocab",
                     qb_json_real(r->vocab), "seed", qb_json_real(r->seed), "text",
                     text_or_null(r->text), "scored_tokens", qb_json_real(r->scored_tokens),
                     "trained_on", text_or_null(r->trained_on), "device", text_or_null(r->device),
                     "time_utc", text_or_null(r->time_utc), "git_commit",
                     text_or_null(r->git_commit), "command", text_or_null(r->command));
}

qb_status qb_table_write_json(const qb_table *table, FILE *stream)
{
    size_t mark = qb_json_mark();
    json_t *differs = json_array(), *columns = json_array(), *lines = json_array(),
           *records = json_array();
    for (size_t i = 0; i < QB_PAPER_MAX_NOTES && table->paper->notes[i]; i++)
        json_array_append_new(differs, json_string(table->paper->notes[i]));
    for (size_t c = 0; table->paper->columns[c].name; c++)
        json_array_append_new(columns, json_string(table->paper->columns[c].name));
    for (size_t i = 0; i < table->n_lines; i++)
        json_array_append_new(lines, line_to_json(table, &table->lines[i]));
    for (size_t i = 0; i < table->n_records; i++)
        json_array_append_new(records, record_to_json(table->records[i]));
    json_t *root =
        json_pack("{s:s, s:s, s:i, s:s, s:o, s:o, s:o, s:o}", "schema", "qbench.table/1", "paper",
                  "arXiv:2410.17174", "table", table->paper->number, "title", table->paper->title,
                  "differs", differs, "columns", columns, "lines", lines, "records", records);
    qb_status status = qb_json_check_memory(mark, "table");
    if (status == QB_OK) status = qb_json_write_lines(root, "table", stream);
    json_decref(root);
    return status;
}
