/* report/write_csv.c - one header line, one line a result (RFC 4180); every key of the table, empty
 * where not measured. An interval makes two columns, a list of texts one column with semicolons;
 * lists of numbers (samples, windows) are in the JSON alone. */
#include "report/result.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

void qb_csv_text(const char *text, FILE *stream)
{
    if (!strpbrk(text, ",\"\r\n")) {
        fputs(text, stream);
        return;
    }
    fputc('"', stream);
    for (; *text; text++) {
        if (*text == '"') fputc('"', stream);
        fputc(*text, stream);
    }
    fputc('"', stream);
}

static void write_texts(const qb_texts *texts, FILE *stream)
{
    fputc('"', stream);
    for (size_t i = 0; i < texts->n; i++) {
        if (i) fputs("; ", stream);
        for (const char *p = texts->items[i]; *p; p++) {
            if (*p == '"') fputc('"', stream);
            fputc(*p, stream);
        }
    }
    fputc('"', stream);
}

static void write_real(double value, FILE *stream)
{
    if (isfinite(value)) fprintf(stream, "%.17g", value);
}

static void write_field(const qb_result_field *field, const qb_result *result, FILE *stream)
{
    const char *at = (const char *)result + field->offset;
    const char *text;
    switch (field->kind) {
    case QB_FIELD_TEXT:
        text = *(char *const *)at;
        if (text) qb_csv_text(text, stream);
        break;
    case QB_FIELD_COUNT:
        if (*(const int64_t *)at >= 0) fprintf(stream, "%" PRId64, *(const int64_t *)at);
        break;
    case QB_FIELD_REAL:
        write_real(*(const double *)at, stream);
        break;
    case QB_FIELD_INTERVAL:
        write_real(((const qb_interval *)at)->low, stream);
        fputc(',', stream);
        write_real(((const qb_interval *)at)->high, stream);
        break;
    case QB_FIELD_TEXTS:
        write_texts((const qb_texts *)at, stream);
        break;
    case QB_FIELD_REALS:
        break;
    }
}

qb_status qb_results_write_csv(const qb_results *results, FILE *stream)
{
    for (const qb_result_field *f = qb_result_fields; f->path; f++) {
        const char *comma = f == qb_result_fields ? "" : ",";
        if (f->kind == QB_FIELD_REALS) continue;
        if (f->kind == QB_FIELD_INTERVAL)
            fprintf(stream, "%s%s.low,%s.high", comma, f->path, f->path);
        else
            fprintf(stream, "%s%s", comma, f->path);
    }
    fputs("\r\n", stream);
    for (size_t i = 0; i < results->n; i++) {
        for (const qb_result_field *f = qb_result_fields; f->path; f++) {
            if (f->kind == QB_FIELD_REALS) continue;
            if (f != qb_result_fields) fputc(',', stream);
            write_field(f, &results->items[i], stream);
        }
        fputs("\r\n", stream);
    }
    return QB_OK;
}
