/* report/table.h - a table of the paper with our recorded figures beside its own.
 *
 * Under each row of the paper stands a line for every record of it, or one that says "not run";
 * below them models that stand for none of its rows. Above the table is said what differs. */
#ifndef QB_REPORT_TABLE_H
#define QB_REPORT_TABLE_H

#include "report/paper.h"
#include "report/table_records.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum qb_table_who { QB_TABLE_PAPER, QB_TABLE_OURS, QB_TABLE_NOT_RUN } qb_table_who;

typedef struct qb_table_line {
    qb_table_who who;
    const qb_paper_row *row;             /* NULL = a model that stands for none */
    size_t record;                       /* of QB_TABLE_OURS: place in records, from 0 */
    double values[QB_PAPER_MAX_COLUMNS]; /* NaN = none */
} qb_table_line;

typedef struct qb_table {
    const qb_paper_table *paper;
    qb_table_line *lines;
    size_t n_lines, capacity;
    const qb_table_record **records; /* those with a line, in their order; borrowed */
    size_t n_records;
} qb_table;

/* The records must outlive the table. */
qb_status qb_table_make(const qb_paper_table *paper, const qb_table_records *records,
                        qb_table *out);
void qb_table_deinit(qb_table *table);

qb_status qb_table_write_screen(const qb_table *table, bool colour, FILE *stream);
qb_status qb_table_write_markdown(const qb_table *table, FILE *stream);
qb_status qb_table_write_csv(const qb_table *table, FILE *stream);
/* {"schema": "qbench.table/1", ...}: docs/reproduction.md. */
qb_status qb_table_write_json(const qb_table *table, FILE *stream);

#ifdef __cplusplus
}
#endif
#endif
