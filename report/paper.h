/* report/paper.h - the tables of arXiv:2410.17174 as they are printed there, and where our own
 * figure for each column is found.
 *
 * The values are the paper's to the last digit, with its own slips (said in a table's notes). A
 * row's id names a training (bench/paper_variants.py trains under these names); records that stand
 * for it say so. A row without an id is a model of others. */
#ifndef QB_REPORT_PAPER_H
#define QB_REPORT_PAPER_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { QB_PAPER_MAX_COLUMNS = 9, QB_PAPER_MAX_NOTES = 4 };

/* What a figure of ours is taken from (report/table_records.h). */
typedef enum qb_paper_source {
    QB_OF_PAPER_ALONE, /* we have several columns in its place */
    QB_OF_FULL,        /* perplexity in full precision */
    QB_OF_PPL,         /* perplexity under the scheme `key` */
    QB_OF_PENALTY,     /* what that scheme costs */
    QB_OF_FIGURE,      /* the figure `key` of the training's last evaluation, of its speed or of an
                          analysis */
    QB_OF_BASE_TIME,   /* time of a step, in that of the row before */
} qb_paper_source;

typedef struct qb_paper_column {
    const char *name; /* NULL ends the list */
    qb_paper_source source;
    const char *key;
    int digits; /* behind the point */
} qb_paper_column;

typedef struct qb_paper_row {
    const char *label; /* NULL ends the list */
    const char *id;
    double values[QB_PAPER_MAX_COLUMNS]; /* NaN: the paper has none */
} qb_paper_row;

/* Which of our models are shown below the paper's rows. */
typedef enum qb_paper_others {
    QB_OTHERS_NONE,
    QB_OTHERS_FREE, /* those that stand for no row of any table, with a head as the paper has it */
    QB_OTHERS_ALL,
} qb_paper_others;

typedef struct qb_paper_table {
    int number; /* 0 ends the table of tables */
    const char *title;
    qb_paper_others others;
    const char *notes[QB_PAPER_MAX_NOTES]; /* what differs, and the paper's slips */
    const qb_paper_column *columns;
    const qb_paper_row *rows;
} qb_paper_table;
extern const qb_paper_table qb_paper_tables[];

/* NULL = the paper has no such table, or we do not. */
const qb_paper_table *qb_paper_table_find(int number);

#ifdef __cplusplus
}
#endif
#endif
