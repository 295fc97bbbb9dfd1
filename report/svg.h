/* report/svg.h - scales, ticks and marks of figures: SVG inside a page of HTML.
 *
 * Colours come from the page's style sheet by classes (c0 ... c11), so that one figure serves a
 * light and a dark page. Lengths are units of the figure's viewBox. Texts are escaped here. */
#ifndef QB_REPORT_SVG_H
#define QB_REPORT_SVG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum qb_scale_kind {
    QB_SCALE_LINEAR,
    QB_SCALE_LOG,    /* values above 0 */
    QB_SCALE_SYMLOG, /* sign(v) log10(1 + |v| / linear_to): linear around 0, logarithmic beyond */
} qb_scale_kind;

typedef struct qb_scale {
    qb_scale_kind kind;
    double low, high; /* of the data, widened to round numbers */
    double from, to;  /* where low and high are drawn */
    double step;      /* of QB_SCALE_LINEAR, between ticks */
    double linear_to; /* of QB_SCALE_SYMLOG */
} qb_scale;

#define QB_SCALE_MAX_TICKS 16
#define QB_SCALE_LIMIT 1e15  /* what is larger is not drawn */
#define QB_SCALE_LEAST 1e-12 /* what is smaller is zero, and not drawn on a logarithmic scale */

/* Covers [low, high], both finite and within the limit; of a logarithmic one low is
 * QB_SCALE_LEAST or more. */
qb_scale qb_scale_make(qb_scale_kind kind, double low, double high, double linear_to);
double qb_scale_at(const qb_scale *scale, double value); /* clamped to [from, to] */
/* Round numbers, ascending; at most QB_SCALE_MAX_TICKS. */
size_t qb_scale_ticks(const qb_scale *scale, double *ticks);
/* "0", "0.05", "1,500", "1e7"; text holds QB_FORMAT_BYTES. */
char *qb_scale_tick_text(const qb_scale *scale, double tick, char *text);

/* Smallest and largest of what was added. */
typedef struct qb_range {
    double low, high, smallest; /* smallest: of |value|, without zeros */
    size_t n;
} qb_range;
void qb_range_add(qb_range *range, double value);   /* NaN and too large ones are left out */
void qb_range_widen(qb_range *range, double value); /* the same, but `smallest` and n stay */
bool qb_is_drawable(double value);
/* A scale that starts at zero or below it: linear, or symlog where values differ by more than 50
 * times. */
qb_scale qb_scale_from_zero(const qb_range *range);

/* Where a figure with two axes has its data. */
typedef struct qb_plot {
    double width, height;
    double left, right, top, bottom;
    qb_scale x, y;
} qb_plot;

enum { QB_SVG_WIDTH = 400, QB_SVG_N_COLOURS = 12, QB_SVG_N_MARKERS = 6 };

/* <svg role="img">, its title and description; id makes the names of both unique in the page. */
void qb_svg_open(FILE *out, size_t id, double height, const char *title, const char *text);
void qb_svg_close(FILE *out);
/* class may be "start", "middle" or "end" (where the text is anchored), with others behind it. */
void qb_svg_text(FILE *out, double x, double y, const char *css_class, const char *text);
void qb_svg_line(FILE *out, double x1, double y1, double x2, double y2, const char *css_class);
/* One of QB_SVG_N_MARKERS shapes around (x, y); tip is shown where the pointer rests, or NULL. */
void qb_svg_marker(FILE *out, size_t shape, double x, double y, size_t colour, const char *tip);
/* Grid lines, tick texts and names of both axes; sets from and to of the scales. */
void qb_svg_axes(FILE *out, qb_plot *plot, const char *x_name, const char *y_name);
/* Grid lines and tick texts of a horizontal axis between `top` and `bottom`, its name below. */
void qb_svg_x_axis(FILE *out, const qb_scale *x, double top, double bottom, const char *name);
/* At most max_chars characters, the last of them an ellipsis where some were left out; text holds
 * 4 * max_chars + 1 bytes. */
char *qb_shorten(const char *value, size_t max_chars, char *text);

#ifdef __cplusplus
}
#endif
#endif
