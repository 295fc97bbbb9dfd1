/* report/table.c - joins the paper's rows with records. See table.h. */
#include "report/table.h"

#include "core/memory.h"

#include <math.h>
#include <string.h>

static bool stands_for(const qb_table_record *record, const qb_paper_row *row)
{
    return record->row && row->id && !strcmp(record->row, row->id);
}

static bool has_row(const qb_paper_table *table, const qb_table_record *record)
{
    for (const qb_paper_row *row = table->rows; row->label; row++)
        if (stands_for(record, row)) return true;
    return false;
}

/* ---- figures ---- */

static double full_of(const qb_table_record *record)
{
    return record->n_schemes ? record->schemes[0].quality.ppl_full : record->figures[QB_FIGURE_PPL];
}

/* The row that vanilla has, where the row before this one is it: its id without the end. */
static const qb_paper_row *base_of(const qb_paper_table *table, const qb_paper_row *row)
{
    const qb_paper_row *before = row - 1;
    if (!row || row == table->rows || !before->id || !row->id) return NULL;
    return strncmp(row->id, before->id, strlen(before->id)) ? NULL : before;
}

static double base_time(const qb_paper_table *table, const qb_table_records *records,
                        const qb_paper_row *row, const qb_table_record *record)
{
    const qb_paper_row *base = base_of(table, row);
    for (size_t i = 0; base && i < records->n; i++) {
        const qb_table_record *other = &records->items[i];
        double rate = other->figures[QB_FIGURE_STEPS];
        if (stands_for(other, base) && !isnan(rate)) return rate / record->figures[QB_FIGURE_STEPS];
    }
    return NAN;
}

static double value_of(const qb_paper_table *table, const qb_table_records *records,
                       const qb_paper_row *row, const qb_table_record *record,
                       const qb_paper_column *column)
{
    const qb_result *r;
    switch (column->source) {
    case QB_OF_PAPER_ALONE:
        return NAN;
    case QB_OF_FULL:
        return full_of(record);
    case QB_OF_PPL:
        r = qb_table_record_scheme(record, column->key);
        return r ? r->quality.ppl : NAN;
    case QB_OF_PENALTY:
        r = qb_table_record_scheme(record, column->key);
        return r ? r->quality.penalty : NAN;
    case QB_OF_FIGURE:
        return qb_table_record_figure(record, column->key);
    case QB_OF_BASE_TIME:
        return base_time(table, records, row, record);
    }
    return NAN;
}

/* ---- lines ---- */

static qb_status add_line(qb_table *table, qb_table_who who, const qb_paper_row *row,
                          qb_table_line **out)
{
    if (table->n_lines == table->capacity) {
        size_t more = table->capacity ? 2 * table->capacity : 32;
        QB_TRY(qb_realloc((void **)&table->lines, table->capacity, more, sizeof *table->lines,
                          "table"));
        table->capacity = more;
    }
    *out = &table->lines[table->n_lines++];
    **out = (qb_table_line){.who = who, .row = row};
    for (size_t i = 0; i < QB_PAPER_MAX_COLUMNS; i++) (*out)->values[i] = NAN;
    return QB_OK;
}

static qb_status add_paper(qb_table *table, const qb_paper_row *row)
{
    qb_table_line *line;
    const qb_paper_row *base = base_of(table->paper, row);
    QB_TRY(add_line(table, QB_TABLE_PAPER, row, &line));
    for (size_t i = 0; table->paper->columns[i].name; i++) {
        line->values[i] = row->values[i];
        if (table->paper->columns[i].source == QB_OF_BASE_TIME && base)
            line->values[i] = base->values[0] / row->values[0];
    }
    return QB_OK;
}

/* A figure that full precision alone has says nothing in most tables, hence at_least. */
static qb_status add_ours(qb_table *table, const qb_table_records *records, const qb_paper_row *row,
                          const qb_table_record *record, int at_least)
{
    double values[QB_PAPER_MAX_COLUMNS];
    qb_table_line *line;
    int n = 0;
    for (size_t i = 0; table->paper->columns[i].name; i++) {
        values[i] = value_of(table->paper, records, row, record, &table->paper->columns[i]);
        n += !isnan(values[i]);
    }
    if (n < at_least) return QB_OK;
    QB_TRY(add_line(table, QB_TABLE_OURS, row, &line));
    for (size_t i = 0; table->paper->columns[i].name; i++) line->values[i] = values[i];
    line->record = table->n_records;
    table->records[table->n_records++] = record;
    return QB_OK;
}

static qb_status add_row(qb_table *table, const qb_table_records *records, const qb_paper_row *row)
{
    size_t before = table->n_records;
    qb_table_line *line;
    QB_TRY(add_paper(table, row));
    for (size_t i = 0; i < records->n; i++)
        if (stands_for(&records->items[i], row))
            QB_TRY(add_ours(table, records, row, &records->items[i], 1));
    if (before != table->n_records) return QB_OK;
    return add_line(table, QB_TABLE_NOT_RUN, row, &line);
}

static bool is_other(const qb_paper_table *paper, const qb_table_record *record)
{
    if (paper->others == QB_OTHERS_ALL) return !has_row(paper, record);
    return paper->others == QB_OTHERS_FREE && !record->row && !record->head_quantised;
}

static qb_status fill(qb_table *table, const qb_table_records *records)
{
    QB_TRY(QB_NEW(&table->records, records->n ? records->n : 1, "records of a table"));
    for (const qb_paper_row *row = table->paper->rows; row->label; row++)
        QB_TRY(add_row(table, records, row));
    for (size_t i = 0; i < records->n; i++)
        if (is_other(table->paper, &records->items[i]))
            QB_TRY(add_ours(table, records, NULL, &records->items[i], 2));
    return QB_OK;
}

qb_status qb_table_make(const qb_paper_table *paper, const qb_table_records *records, qb_table *out)
{
    qb_table table = {.paper = paper};
    qb_status status = fill(&table, records);
    if (status != QB_OK)
        qb_table_deinit(&table);
    else
        *out = table;
    return status;
}

void qb_table_deinit(qb_table *table)
{
    qb_free(table->lines);
    qb_free(table->records);
    *table = (qb_table){0};
}
