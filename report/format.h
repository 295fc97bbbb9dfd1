/* report/format.h - numbers as people read them, in tables and on the screen. Every function writes
 * at most QB_FORMAT_BYTES bytes with the NUL, "-" for what was not measured, and returns text. */
#ifndef QB_REPORT_FORMAT_H
#define QB_REPORT_FORMAT_H

#include "report/result.h"

#ifdef __cplusplus
extern "C" {
#endif

#define QB_FORMAT_BYTES 64

char *qb_format_count(int64_t n, char *text);          /* 10,532 */
char *qb_format_significant(double value, char *text); /* 8.09, 26.63, 1234, 23,457, 1.70e6 */
char *qb_format_perplexity(double value, char *text);  /* 8.091, 170.41, else as above */
char *qb_format_signed(double value, char *text);      /* +0.13 */
char *qb_format_percent(double share, char *text);     /* 95.1 % */
char *qb_format_bytes(int64_t bytes, char *text);      /* 134 MB (10^6) */
char *qb_format_params(int64_t n, char *text);         /* 134.5 M */
/* "+0.13 [0.10, 0.16]", without brackets where there is no interval. */
char *qb_format_penalty(const qb_result *result, char *text);
/* "w8/out a8/token o8/tensor": what the scheme quantises. */
char *qb_format_scheme(const qb_result *result, char *text);
/* "1,234 ±2.0 %": the median and half the width of its interval. */
char *qb_format_rate(const qb_result_timing *timing, char *text);
/* "2.43x" of the full model's. */
char *qb_format_ratio(const qb_result_timing *timing, const qb_result_timing *full, char *text);

/* The characters (not bytes) of a UTF-8 text. */
int qb_text_columns(const char *text);
/* The text at the right end of so many columns, behind one space at least. */
void qb_write_right(FILE *stream, int columns, const char *text);

/* What is printed fits a terminal of so many columns. */
enum { QB_SCREEN_COLUMNS = 80 };
/* Words in lines of at most QB_SCREEN_COLUMNS characters, each ended. The first begins at column
 * `indent`, where the cursor is; the others are indented as much. */
void qb_write_wrapped(FILE *stream, int indent, const char *text);
/* "label     text" wrapped, with the text from column `indent` on. */
void qb_write_labelled(FILE *stream, const char *label, int indent, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

#ifdef __cplusplus
}
#endif
#endif
