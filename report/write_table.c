/* report/write_table.c - a table as a screen, Markdown, CSV and JSON. See table.h. */
#include "report/format.h"
#include "report/svg.h"
#include "report/table.h"

#include <math.h>
#include <string.h>

enum { LABEL_BYTES = 160 };
enum { LABEL_COLUMNS = 48, NAME_COLUMNS = 31, WHO_COLUMNS = 9, LINE_COLUMNS = 100 };

/* ---- cells ---- */

/* Too large for a column's digits is shown in fewer. */
static const char *number(double value, int digits, char *text)
{
    if (!isfinite(value)) return strcpy(text, "-");
    bool fits = fabs(value) < 1e15;
    snprintf(text, QB_FORMAT_BYTES, fits ? "%.*f" : "%.*g", fits ? digits : 6, value);
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

typedef struct span {
    double low, high;
    size_t n;
} span;

static void widen(span *s, double value)
{
    if (isnan(value)) return;
    s->low = s->n ? fmin(s->low, value) : value;
    s->high = s->n ? fmax(s->high, value) : value;
    s->n++;
}

static void write_span(const span *s, const char *before, const char *after, double unit,
                       int digits, FILE *stream)
{
    if (!s->n) return;
    fprintf(stream, "; %s%.*f", before, digits, s->low / unit);
    if (s->high > s->low) fprintf(stream, " to %.*f", digits, s->high / unit);
    fputs(after, stream);
}

/* One line on all of our records: how much they were trained on and judged by. */
static void write_ours(const qb_table *table, FILE *stream)
{
    span tokens = {0}, vocab = {0}, seed = {0}, scored = {0};
    for (size_t i = 0; i < table->n_records; i++) {
        widen(&tokens, table->records[i]->tokens);
        widen(&vocab, table->records[i]->vocab);
        widen(&seed, table->records[i]->seed);
        widen(&scored, table->records[i]->scored_tokens);
    }
    fprintf(stream, "Ours: %zu record%s", table->n_records, table->n_records == 1 ? "" : "s");
    write_span(&tokens, "trained on ", " billion tokens", 1e9, 2, stream);
    write_span(&vocab, "vocabulary ", "", 1, 0, stream);
    write_span(&seed, "seed ", "", 1, 0, stream);
    write_span(&scored, "", " tokens scored", 1, 0, stream);
    fputc('.', stream);
}

static void write_record(const qb_table *table, size_t i, FILE *stream)
{
    const qb_table_record *r = table->records[i];
    fprintf(stream, "[%zu] %s", i + 1, r->name ? r->name : "unnamed");
    if (!isnan(r->tokens)) fprintf(stream, ", %.2f billion tokens", r->tokens / 1e9);
    if (!isnan(r->vocab)) fprintf(stream, ", vocabulary %.0f", r->vocab);
    if (!isnan(r->seed)) fprintf(stream, ", seed %.0f", r->seed);
    if (r->trained_on && *r->trained_on) fprintf(stream, ", trained on %s", r->trained_on);
    if (r->text) fprintf(stream, "; %s, %.0f tokens scored", r->text, r->scored_tokens);
    if (r->device) fprintf(stream, " on %s", r->device);
    if (r->time_utc) fprintf(stream, "; %.10s", r->time_utc);
    if (r->git_commit) fprintf(stream, ", commit %.12s", r->git_commit);
    fprintf(stream, "; %s", r->path);
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

/* Words of a paragraph in lines of LINE_COLUMNS. */
static void write_wrapped(const char *text, FILE *stream)
{
    int at = 0;
    while (*text) {
        size_t n = strcspn(text, " ");
        if (at && at + 1 + (int)n > LINE_COLUMNS) {
            fputc('\n', stream);
            at = 0;
        }
        at += fprintf(stream, "%s%.*s", at ? " " : "", (int)n, text);
        text += n + (text[n] == ' ');
    }
    fputc('\n', stream);
}

static void write_screen_line(const qb_table *table, size_t i, const char *dim, const char *reset,
                              FILE *stream)
{
    const qb_table_line *line = &table->lines[i];
    char text[LABEL_BYTES];
    const char *shown = new_label(table, i, text);
    fprintf(stream, "%s%*s", shown, LABEL_COLUMNS - qb_text_columns(shown), "");
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

qb_status qb_table_write_screen(const qb_table *table, bool colour, FILE *stream)
{
    const char *bold = colour ? "\033[1m" : "", *dim = colour ? "\033[2m" : "",
               *reset = colour ? "\033[0m" : "";
    fprintf(stream, "%sTable %d of arXiv:2410.17174: %s%s\n", bold, table->paper->number,
            table->paper->title, reset);
    for (size_t i = 0; i < QB_PAPER_MAX_NOTES && table->paper->notes[i]; i++)
        write_wrapped(table->paper->notes[i], stream);
    write_ours(table, stream);
    fprintf(stream, "\n\n%s%*s", dim, LABEL_COLUMNS + WHO_COLUMNS, "");
    for (size_t c = 0; table->paper->columns[c].name; c++)
        qb_write_right(stream, column_width(table, c), table->paper->columns[c].name);
    fprintf(stream, "%s\n", reset);
    for (size_t i = 0; i < table->n_lines; i++) write_screen_line(table, i, dim, reset, stream);
    if (table->n_records) fputc('\n', stream);
    for (size_t i = 0; i < table->n_records; i++) {
        write_record(table, i, stream);
        fputc('\n', stream);
    }
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
    fputc(' ', stream);
    write_ours(table, stream);
    fputs("\n\n| | |", stream);
    for (size_t c = 0; table->paper->columns[c].name; c++)
        qb_markdown_cell(table->paper->columns[c].name, stream);
    fputs("\n|---|---|", stream);
    for (size_t c = 0; table->paper->columns[c].name; c++) fputs("---:|", stream);
    fputc('\n', stream);
    for (size_t i = 0; i < table->n_lines; i++) write_markdown_line(table, i, stream);
    for (size_t i = 0; i < table->n_records; i++) {
        fputs(i ? "  \n" : "\n", stream);
        write_record(table, i, stream);
    }
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
