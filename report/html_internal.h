/* report/html_internal.h - what the sections of the page share. A section is a row of `sections` in
 * html.c and a function here. */
#ifndef QB_REPORT_HTML_INTERNAL_H
#define QB_REPORT_HTML_INTERNAL_H

#include "report/format.h"
#include "report/html.h"
#include "report/svg.h"

/* A page, or its twin: the same tables in the same order, without what is around them. */
typedef enum qb_page_form { QB_PAGE_HTML, QB_PAGE_MARKDOWN, QB_PAGE_CSV } qb_page_form;

typedef struct qb_page {
    FILE *out; /* of a twin: nowhere */
    qb_page_form form;
    FILE *twin;         /* Markdown, or the table that is being written as CSV */
    const char *folder; /* of the tables as CSV */
    char caption[100];  /* of the table that is being written */
    char *csv;          /* text of the table so far, malloc's */
    size_t csv_bytes;
    qb_status status; /* of writing tables */
    const qb_report *report;
    bool live;                /* of a run under way */
    qb_texts schemes, models; /* names in the order of appearance: colours and markers */
    size_t n_figures, n_tables;
    const qb_result **rows; /* of the group at work: room for all records */
} qb_page;

/* ---- the frame ---- */
/* Up to the page's heading; `more` goes into the head as it is. */
void qb_page_head(qb_page *page, const char *title, const char *policy, const char *more);

/* ---- text ---- */
void qb_page_text(qb_page *page, const char *text); /* escaped; "-" for NULL */
/* "name", with the start of its hash where two models of the page have that name. */
enum { QB_NAME_BYTES = 160 };
char *qb_page_model(const qb_page *page, const qb_result *r, char *text);
const char *qb_page_scheme(const qb_result *r); /* "unnamed" for none */
size_t qb_page_colour(const qb_page *page, const char *scheme);
size_t qb_page_marker(const qb_page *page, const qb_result *r);

/* Of runs and of analyses, by their number: colours that are far apart. */
size_t qb_page_run_colour(size_t i);
/* How many analyses are shown; the name of one, with its number where two have that name. */
size_t qb_page_n_analyses(const qb_page *page);
const char *qb_page_analysis(const qb_page *page, size_t i, char *text);

/* ---- groups: records that may stand in one figure ---- */
typedef bool (*qb_page_has)(const qb_result *r);
typedef bool (*qb_page_same)(const qb_result *a, const qb_result *b);
/* Fills page->rows with the next group of records that have something and are the same as its
 * first; returns how many, 0 = there are no more. *at starts as 0. */
size_t qb_page_group(qb_page *page, size_t *at, qb_page_has has, qb_page_same same);
bool qb_page_any(const qb_page *page, qb_page_has has);
/* Draws each group: write(page, n, items) finds n records at page->rows, and memory that it may use
 * for item_bytes of each record of the report. */
typedef void (*qb_page_write)(qb_page *page, size_t n, void *items);
qb_status qb_page_figures(qb_page *page, qb_page_has has, qb_page_same same, size_t item_bytes,
                          qb_page_write write);
bool qb_same_text(const char *a, const char *b); /* NULL equals NULL */
bool qb_same_model(const qb_result *a, const qb_result *b);
bool qb_same_quality(const qb_result *a, const qb_result *b); /* text and protocol */
bool qb_same_machine(const qb_result *a, const qb_result *b);
bool qb_same_setting(const qb_result *a, const qb_result *b); /* both */
/* Sentences: what perplexities were measured on; what speed was. */
void qb_page_say_quality(qb_page *page, const qb_result *r);
void qb_page_say_speed(qb_page *page, const qb_result *r);

/* ---- figures, and the table behind each ---- */
void qb_page_figure_open(qb_page *page, double height, const char *title, const char *text);
void qb_page_figure_caption(qb_page *page, const char *title); /* ends the SVG */
void qb_page_figure_close(qb_page *page);
void qb_page_legend(qb_page *page, size_t marker, size_t colour, const char *name);
/* Columns: headings separated by '|'; one that starts with '#' holds numbers. (page_tables.c) */
void qb_page_table_open(qb_page *page, const char *caption, const char *columns);
void qb_page_row_open(qb_page *page, const char *head); /* a row and its heading cell */
void qb_page_cell(qb_page *page, const char *text);
void qb_page_long_cell(qb_page *page, const char *text); /* broken into lines where it must */
void qb_page_code_cell(qb_page *page, const char *text);
void qb_page_scheme_cell(qb_page *page, const char *scheme); /* with its colour */
void qb_page_number(qb_page *page, const char *text);
void qb_page_row_close(qb_page *page);
void qb_page_table_close(qb_page *page);
void qb_page_details_open(qb_page *page);
void qb_page_details_close(qb_page *page);

typedef struct qb_bar {
    const char *group; /* a heading stands where it changes; NULL = none */
    char label[QB_NAME_BYTES], text[QB_FORMAT_BYTES];
    size_t colour;
    double value;
    qb_interval ci; /* NaN = none */
} qb_bar;
enum { QB_PAGE_MAX_BARS = 60 }; /* in one figure; the table behind has all */
/* The axis's name, with what its scale is where it is not linear; text holds QB_NAME_BYTES. */
char *qb_page_axis_name(const char *name, const qb_scale *scale, char *text);
/* Horizontal bars from zero, linear or, with QB_SCALE_SYMLOG, not where it must be; figure_open and
 * the marks, without caption and end. */
void qb_page_bars(qb_page *page, const qb_bar *bars, size_t n, qb_scale_kind kind, const char *axis,
                  const char *title, const char *text);

/* ---- speed (html_speed.c) ---- */
/* What is timed: places of qb_result_timing in qb_result, of a scheme and of full precision. */
typedef struct qb_page_phase {
    const char *name;
    size_t offset, full_offset; /* bytes */
} qb_page_phase;
enum { QB_PAGE_PHASES = 2 };
extern const qb_page_phase qb_page_phases[QB_PAGE_PHASES];

typedef struct qb_page_timed {
    const qb_result *r;
    const char *scheme; /* "full" for full precision, whose penalty is 0 */
    const qb_result_timing *timing;
    double penalty;
    bool on_front; /* no other is both faster and better; for who asks */
} qb_page_timed;
/* Of the n records at page->rows the timings of a phase that `has` wants, each model's full
 * precision first. `out` has room for 2 n; returns how many. */
size_t qb_page_timings(const qb_page *page, size_t n, const qb_page_phase *phase,
                       bool (*has)(const qb_result_timing *timing), qb_page_timed *out);

/* ---- sections ---- */
bool qb_has_quality(const qb_result *r);
bool qb_has_speed(const qb_result *r);
bool qb_page_has_summary(const qb_page *page);
qb_status qb_page_summary(qb_page *page);
bool qb_page_has_penalty(const qb_page *page);
qb_status qb_page_penalty(qb_page *page);
bool qb_page_has_tradeoff(const qb_page *page);
qb_status qb_page_tradeoff(qb_page *page);
bool qb_page_has_latency(const qb_page *page);
qb_status qb_page_latency(qb_page *page);
bool qb_page_has_memory(const qb_page *page);
qb_status qb_page_memory(qb_page *page);
bool qb_page_has_profile(const qb_page *page);
qb_status qb_page_profile(qb_page *page);
bool qb_page_has_analysis(const qb_page *page);
qb_status qb_page_analyses(qb_page *page);
bool qb_page_has_effects(const qb_page *page);
qb_status qb_page_effects(qb_page *page);
bool qb_page_has_sensitivity(const qb_page *page);
qb_status qb_page_sensitivity(qb_page *page);
bool qb_page_has_maps(const qb_page *page);
qb_status qb_page_maps(qb_page *page);
bool qb_page_has_training(const qb_page *page);
qb_status qb_page_training(qb_page *page);
qb_status qb_page_environment(qb_page *page);
qb_status qb_page_reproduce(qb_page *page);

extern const char qb_page_style[];

#endif
