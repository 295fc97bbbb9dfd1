/* report/svg.c - see svg.h. */
#include "report/svg.h"

#include "report/format.h"

#include <math.h>
#include <string.h>

enum { WANTED_TICKS = 5, CHAR_WIDTH = 8 };

/* ---- scales ---- */

bool qb_is_drawable(double value)
{
    return fabs(value) <= QB_SCALE_LIMIT;
}

void qb_range_add(qb_range *range, double value)
{
    if (!qb_is_drawable(value)) return;
    double size = fabs(value);
    if (!range->n) *range = (qb_range){value, value, 0, 0};
    range->low = fmin(range->low, value);
    range->high = fmax(range->high, value);
    if (size > 0 && (!(range->smallest > 0) || size < range->smallest)) range->smallest = size;
    range->n++;
}

void qb_range_widen(qb_range *range, double value)
{
    if (!qb_is_drawable(value) || !range->n) return;
    range->low = fmin(range->low, value);
    range->high = fmax(range->high, value);
}

/* 1, 2 or 5 times a power of ten: the smallest that is not below `value`. */
static double nice_above(double value)
{
    double power = pow(10, floor(log10(value)));
    const double factors[] = {1, 2, 5};
    for (size_t i = 0; i < QB_COUNT(factors); i++)
        if (factors[i] * power >= value * (1 - 1e-9)) return factors[i] * power;
    return 10 * power;
}

static double nice_below(double value)
{
    double power = pow(10, floor(log10(value)));
    return value >= 5 * power ? 5 * power : value >= 2 * power ? 2 * power : power;
}

static double forward(const qb_scale *s, double value)
{
    if (s->kind == QB_SCALE_LOG) return log10(value);
    if (s->kind == QB_SCALE_SYMLOG) return copysign(log10(1 + fabs(value) / s->linear_to), value);
    return value;
}

static void widen_linear(qb_scale *s)
{
    double spread = s->high - s->low, size = fmax(fabs(s->low), fabs(s->high));
    if (!(spread > fmax(size * 1e-9, QB_SCALE_LEAST))) { /* one value */
        double half = size > QB_SCALE_LEAST ? size / 10 : 0.5;
        s->low -= half;
        s->high += half;
    }
    s->step = nice_above((s->high - s->low) / WANTED_TICKS);
    s->low = floor(s->low / s->step + 1e-9) * s->step;
    s->high = ceil(s->high / s->step - 1e-9) * s->step;
}

static double nice_outward(double value, double least)
{
    return fabs(value) <= 0 ? 0 : copysign(nice_above(fmax(fabs(value), least)), value);
}

qb_scale qb_scale_make(qb_scale_kind kind, double low, double high, double linear_to)
{
    qb_scale s = {.kind = kind, .low = low, .high = high, .to = 1, .linear_to = linear_to};
    switch (kind) {
    case QB_SCALE_LINEAR:
        widen_linear(&s);
        break;
    case QB_SCALE_LOG:
        s.low = nice_below(low);
        s.high = nice_above(high);
        if (!(s.high > s.low)) s.high = nice_above(1.5 * s.low);
        break;
    case QB_SCALE_SYMLOG:
        s.low = nice_outward(low, linear_to);
        s.high = nice_outward(high, linear_to);
        if (!(s.high > s.low)) s.high = s.low + linear_to;
        break;
    }
    return s;
}

qb_scale qb_scale_from_zero(const qb_range *range)
{
    double low = fmin(range->low, 0), high = fmax(range->high, 0), most = fmax(-low, high);
    if (!(range->smallest > 0) || most < 50 * range->smallest)
        return qb_scale_make(QB_SCALE_LINEAR, low, high, 0);
    double linear_to = pow(10, ceil(log10(fmax(range->smallest, most * 1e-5))));
    return qb_scale_make(QB_SCALE_SYMLOG, low, high, linear_to);
}

double qb_scale_at(const qb_scale *s, double value)
{
    double low = forward(s, s->low), high = forward(s, s->high);
    double share = (forward(s, fmax(s->low, fmin(s->high, value))) - low) / (high - low);
    return s->from + share * (s->to - s->from);
}

/* ---- ticks ---- */

static size_t add_tick(const qb_scale *s, double value, double *ticks, size_t n)
{
    double margin = 1e-9 * (fabs(s->high) + fabs(s->low));
    if (n == QB_SCALE_MAX_TICKS || value < s->low - margin || value > s->high + margin) return n;
    ticks[n] = value;
    return n + 1;
}

static size_t linear_ticks(const qb_scale *s, double *ticks)
{
    double first = ceil(s->low / s->step - 1e-9);
    size_t n = 0;
    for (int i = 0; i < QB_SCALE_MAX_TICKS; i++) n = add_tick(s, (first + i) * s->step, ticks, n);
    return n;
}

/* Powers of ten from 10^first on, with 2 and 5 times them where there are few decades, and not each
 * where there are many. */
static size_t power_ticks(const qb_scale *s, int first, int last, double sign, double *ticks,
                          size_t n)
{
    int decades = last - first, skip = decades / 7 + 1;
    for (int i = 0; i <= decades; i += skip) {
        int k = sign < 0 ? last - i : first + i;
        double power = sign * pow(10, k);
        if (sign < 0 && decades <= 2) n = add_tick(s, 5 * power, ticks, n);
        if (sign < 0 && decades <= 1) n = add_tick(s, 2 * power, ticks, n);
        n = add_tick(s, power, ticks, n);
        if (sign > 0 && decades <= 1) n = add_tick(s, 2 * power, ticks, n);
        if (sign > 0 && decades <= 2) n = add_tick(s, 5 * power, ticks, n);
    }
    return n;
}

static int decade_of(double value)
{
    return (int)floor(log10(value) + 1e-9);
}

size_t qb_scale_ticks(const qb_scale *s, double *ticks)
{
    if (s->kind == QB_SCALE_LINEAR) return linear_ticks(s, ticks);
    if (s->kind == QB_SCALE_LOG)
        return power_ticks(s, decade_of(s->low), decade_of(s->high), 1, ticks, 0);
    int first = decade_of(s->linear_to);
    size_t n = 0;
    if (-s->low >= s->linear_to) n = power_ticks(s, first, decade_of(-s->low), -1, ticks, n);
    n = add_tick(s, 0, ticks, n);
    if (s->high >= s->linear_to) n = power_ticks(s, first, decade_of(s->high), 1, ticks, n);
    return n;
}

/* "2e5", "−1e5" */
static char *powers_text(double tick, char *text)
{
    int decade = decade_of(fabs(tick));
    snprintf(text, QB_FORMAT_BYTES, "%s%.3ge%d", tick < 0 ? "−" : "", fabs(tick) / pow(10, decade),
             decade);
    return text;
}

char *qb_scale_tick_text(const qb_scale *s, double tick, char *text)
{
    double unit = s->kind == QB_SCALE_LINEAR ? s->step : fabs(tick), size = fabs(tick);
    if (size < unit * 1e-6 || !(size > 0)) return strcpy(text, "0");
    const char *minus = tick < 0 ? "−" : "";
    char digits[QB_FORMAT_BYTES];
    int decade = decade_of(unit);
    if (size >= 1e7 || size < 1e-5) return powers_text(tick, text);
    if (decade < 0)
        snprintf(digits, sizeof digits, "%.*f", -decade, size);
    else
        qb_format_count((int64_t)llround(size), digits);
    snprintf(text, QB_FORMAT_BYTES, "%s%.50s", minus, digits);
    return text;
}

/* ---- marks ---- */

void qb_svg_open(FILE *out, size_t id, double height, const char *title, const char *text)
{
    fprintf(out,
            "<svg role=\"img\" viewBox=\"0 0 %d %.0f\" aria-labelledby=\"t%zu d%zu\">\n"
            "<title id=\"t%zu\">",
            QB_SVG_WIDTH, height, id, id, id);
    qb_xml_text(title, out);
    fprintf(out, "</title>\n<desc id=\"d%zu\">", id);
    qb_xml_text(text, out);
    fputs("</desc>\n", out);
}

void qb_svg_close(FILE *out)
{
    fputs("</svg>\n", out);
}

void qb_svg_text(FILE *out, double x, double y, const char *css_class, const char *text)
{
    fprintf(out, "<text x=\"%.1f\" y=\"%.1f\" class=\"%s\">", x, y, css_class);
    qb_xml_text(text, out);
    fputs("</text>\n", out);
}

void qb_svg_line(FILE *out, double x1, double y1, double x2, double y2, const char *css_class)
{
    fprintf(out, "<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" class=\"%s\"/>\n", x1, y1,
            x2, y2, css_class);
}

void qb_svg_marker(FILE *out, size_t shape, double x, double y, size_t colour, const char *tip)
{
    static const char *const paths[QB_SVG_N_MARKERS] = {
        "m-5 0a5 5 0 1 0 10 0a5 5 0 1 0 -10 0z", /* circle */
        "m-4.5 -4.5h9v9h-9z",                    /* square */
        "m0 -5.5l5.5 9.5h-11z",                  /* triangle */
        "m0 -6l6 6l-6 6l-6 -6z",                 /* diamond */
        "m0 5.5l5.5 -9.5h-11z",                  /* triangle, point below */
        "m-2 -6h4v4h4v4h-4v4h-4v-4h-4v-4h4z",    /* cross */
    };
    fprintf(out, "<path class=\"mark f%zu\" d=\"M%.1f %.1f%s\"", colour, x, y,
            paths[shape % QB_SVG_N_MARKERS]);
    if (!tip) {
        fputs("/>\n", out);
        return;
    }
    fputs("><title>", out);
    qb_xml_text(tip, out);
    fputs("</title></path>\n", out);
}

void qb_svg_x_axis(FILE *out, const qb_scale *x, double top, double bottom, const char *name)
{
    double ticks[QB_SCALE_MAX_TICKS];
    char text[QB_FORMAT_BYTES];
    size_t n = qb_scale_ticks(x, ticks);
    double last = -INFINITY; /* where the last text ends */
    for (size_t i = 0; i < n; i++) {
        double half = CHAR_WIDTH / 2.0 * (double)strlen(qb_scale_tick_text(x, ticks[i], text));
        double line = qb_scale_at(x, ticks[i]),
               at = fmax(2 + half, fmin(line, QB_SVG_WIDTH - 2 - half));
        qb_svg_line(out, line, top, line, bottom, fabs(ticks[i]) > 0 ? "grid" : "zero");
        if (at - half < last + CHAR_WIDTH) continue;
        qb_svg_text(out, at, bottom + 16, "middle", text);
        last = at + half;
    }
    qb_svg_text(out, (x->from + x->to) / 2, bottom + 35, "middle name", name);
}

void qb_svg_axes(FILE *out, qb_plot *p, const char *x_name, const char *y_name)
{
    double ticks[QB_SCALE_MAX_TICKS];
    char text[QB_FORMAT_BYTES];
    p->x.from = p->left;
    p->x.to = p->width - p->right;
    p->y.from = p->height - p->bottom;
    p->y.to = p->top;
    qb_svg_x_axis(out, &p->x, p->y.to, p->y.from, x_name);
    size_t n = qb_scale_ticks(&p->y, ticks);
    for (size_t i = 0; i < n; i++) {
        double at = qb_scale_at(&p->y, ticks[i]);
        qb_svg_line(out, p->x.from, at, p->x.to, at, fabs(ticks[i]) > 0 ? "grid" : "zero");
        qb_scale_tick_text(&p->y, ticks[i], text);
        if (CHAR_WIDTH * (double)strlen(text) > p->left) powers_text(ticks[i], text);
        qb_svg_text(out, p->left - 6, at + 4, "end", text);
    }
    qb_svg_text(out, 2, 14, "start name", y_name);
}

char *qb_shorten(const char *value, size_t max_chars, char *text)
{
    size_t n = 0, bytes = 0, cut = 0;
    for (; value[bytes]; bytes++) {
        if (((unsigned char)value[bytes] & 0xc0) == 0x80) continue;
        if (++n == max_chars) cut = bytes; /* where the ellipsis would stand */
        if (n > max_chars) break;
    }
    if (n <= max_chars) return strcpy(text, value);
    memcpy(text, value, cut);
    strcpy(text + cut, "…");
    return text;
}
