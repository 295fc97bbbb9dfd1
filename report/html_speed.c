/* report/html_speed.c - what each scheme brings: penalty against speed, latency, memory. */
#include "report/html_internal.h"

#include "core/memory.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* What is timed, of a scheme and of full precision. */
static const struct phase {
    const char *name;
    size_t offset, full_offset;
} phases[] = {
    {"decode", offsetof(qb_result, speed.decode), offsetof(qb_result, speed.full.decode)},
    {"prefill", offsetof(qb_result, speed.prefill), offsetof(qb_result, speed.full.prefill)},
};

static const qb_result_timing *timing_at(const qb_result *r, size_t offset)
{
    return (const qb_result_timing *)((const char *)r + offset);
}

static bool is_speed(double tok_per_s)
{
    return tok_per_s >= QB_SCALE_LEAST && qb_is_drawable(tok_per_s);
}

bool qb_has_speed(const qb_result *r)
{
    return is_speed(r->speed.prefill.tok_per_s) || is_speed(r->speed.decode.tok_per_s);
}

/* ---- penalty against speed ---- */

typedef struct point {
    const qb_result *r;
    const char *scheme;
    double speed, penalty;
    bool on_front;
} point;

static bool has_both(const qb_result *r)
{
    return qb_has_speed(r) && qb_is_drawable(r->quality.penalty);
}

static int by_speed_down(const void *a, const void *b)
{
    const point *p = a, *q = b;
    if (p->speed < q->speed || p->speed > q->speed) return p->speed < q->speed ? 1 : -1;
    return p->penalty < q->penalty ? -1 : p->penalty > q->penalty;
}

/* Of each model also full precision, whose penalty is zero. Sorted by speed, fastest first. */
static size_t fill_points(qb_page *page, size_t n, const struct phase *phase, point *points)
{
    size_t k = 0;
    for (size_t i = 0; i < n; i++) {
        const qb_result *r = page->rows[i];
        double full = timing_at(r, phase->full_offset)->tok_per_s;
        double speed = timing_at(r, phase->offset)->tok_per_s;
        if ((!i || !qb_same_model(page->rows[i - 1], r)) && is_speed(full))
            points[k++] = (point){r, "full", full, 0, false};
        if (is_speed(speed))
            points[k++] = (point){r, qb_page_scheme(r), speed, r->quality.penalty, false};
    }
    qsort(points, k, sizeof *points, by_speed_down);
    double best = INFINITY;
    for (size_t i = 0; i < k; i++) {
        points[i].on_front = points[i].penalty < best;
        best = fmin(best, points[i].penalty);
    }
    return k;
}

/* Steps: what is to the left of the front and above it, another point beats. */
static void write_front(FILE *out, const qb_plot *plot, const point *points, size_t n)
{
    bool begun = false;
    fputs("<path class=\"front\" d=\"", out);
    for (size_t i = 0; i < n; i++) {
        if (!points[i].on_front) continue;
        double x = qb_scale_at(&plot->x, points[i].speed);
        double y = qb_scale_at(&plot->y, points[i].penalty);
        fprintf(out, begun ? "H%.1fV%.1f" : "M%.1f %.1f", x, y);
        begun = true;
    }
    fputs("\"/>\n", out);
}

static void write_points(qb_page *page, const qb_plot *plot, const point *points, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        const point *p = &points[i];
        char name[QB_NAME_BYTES], speed[QB_FORMAT_BYTES], penalty[QB_FORMAT_BYTES], tip[320];
        snprintf(tip, sizeof tip, "%s, %.60s: %s tokens/s, penalty %s",
                 qb_page_model(page, p->r, name), p->scheme, qb_format_significant(p->speed, speed),
                 qb_format_signed(p->penalty, penalty));
        qb_svg_marker(page->out, qb_page_marker(page, p->r), qb_scale_at(&plot->x, p->speed),
                      qb_scale_at(&plot->y, p->penalty), qb_page_colour(page, p->scheme), tip);
    }
}

static bool has_scheme(const point *points, size_t n, const char *scheme)
{
    for (size_t i = 0; i < n; i++)
        if (!strcmp(points[i].scheme, scheme)) return true;
    return false;
}

static const qb_result *of_model(const qb_page *page, const point *points, size_t n,
                                 const char *model)
{
    char name[QB_NAME_BYTES];
    for (size_t i = 0; i < n; i++)
        if (!strcmp(qb_page_model(page, points[i].r, name), model)) return points[i].r;
    return NULL;
}

static void write_scheme_key(qb_page *page, const char *scheme)
{
    fprintf(page->out, "<li><i class=\"swatch b%zu\"></i>", qb_page_colour(page, scheme));
    qb_page_text(page, scheme);
    fputs("</li>\n", page->out);
}

/* Colours are schemes, shapes are models. */
static void write_legend(qb_page *page, const point *points, size_t n)
{
    size_t neutral = qb_page_colour(page, "full");
    fputs("<ul class=\"legend\">\n", page->out);
    if (has_scheme(points, n, "full")) write_scheme_key(page, "full");
    for (size_t i = 0; i < page->schemes.n; i++)
        if (strcmp(page->schemes.items[i], "full") && has_scheme(points, n, page->schemes.items[i]))
            write_scheme_key(page, page->schemes.items[i]);
    for (size_t i = 0; i < page->models.n && page->models.n > 1; i++) {
        const qb_result *r = of_model(page, points, n, page->models.items[i]);
        if (r) qb_page_legend(page, qb_page_marker(page, r), neutral, page->models.items[i]);
    }
    fputs("<li><svg aria-hidden=\"true\" viewBox=\"0 0 24 14\" class=\"key wide\">"
          "<path class=\"front\" d=\"M1 7H23\"/></svg>Pareto front</li>\n</ul>\n",
          page->out);
}

static void write_point_table(qb_page *page, const char *caption, const point *points, size_t n)
{
    char name[QB_NAME_BYTES], t[QB_FORMAT_BYTES];
    qb_page_details_open(page);
    qb_page_table_open(page, caption, "scheme|model|#tokens/s|#penalty|on the front");
    for (size_t i = 0; i < n; i++) {
        qb_page_row_open(page, points[i].scheme);
        qb_page_cell(page, qb_page_model(page, points[i].r, name));
        qb_page_number(page, qb_format_significant(points[i].speed, t));
        qb_page_number(page, qb_format_signed(points[i].penalty, t));
        qb_page_cell(page, points[i].on_front ? "yes" : "no");
        qb_page_row_close(page);
    }
    qb_page_table_close(page);
    qb_page_details_close(page);
}

static void write_scatter(qb_page *page, size_t n_rows, const struct phase *phase, point *points)
{
    size_t n = fill_points(page, n_rows, phase, points);
    qb_range x = {0}, y = {0};
    char title[80], speed[80], x_name[QB_NAME_BYTES], y_name[QB_NAME_BYTES];
    if (!n) return;
    for (size_t i = 0; i < n; i++) {
        qb_range_add(&x, points[i].speed);
        qb_range_add(&y, points[i].penalty);
    }
    qb_plot plot = {
        .width = QB_SVG_WIDTH, .height = 320, .left = 52, .right = 14, .top = 26, .bottom = 44};
    plot.x = x.high > 20 * x.low ? qb_scale_make(QB_SCALE_LOG, x.low, x.high, 0)
                                 : qb_scale_make(QB_SCALE_LINEAR, 0, x.high, 0);
    plot.y = qb_scale_from_zero(&y);
    snprintf(title, sizeof title, "Penalty against speed of %s", phase->name);
    snprintf(speed, sizeof speed, "%s, tokens/s", phase->name);
    qb_page_figure_open(
        page, plot.height, title,
        "Each point is a model under a scheme: to the right faster, below nearer to "
        "full precision. The dashed line joins those that no other point beats in "
        "both.");
    qb_svg_axes(page->out, &plot, qb_page_axis_name(speed, &plot.x, x_name),
                qb_page_axis_name("penalty, perplexity", &plot.y, y_name));
    write_front(page->out, &plot, points, n);
    write_points(page, &plot, points, n);
    qb_page_figure_caption(page, title);
    write_legend(page, points, n);
    fputs("<p class=\"note\">", page->out);
    qb_page_say_quality(page, page->rows[0]);
    qb_page_say_speed(page, page->rows[0]);
    fputs("</p>\n", page->out);
    write_point_table(page, title, points, n);
    qb_page_figure_close(page);
}

bool qb_page_has_tradeoff(const qb_page *page)
{
    return qb_page_any(page, has_both);
}

qb_status qb_page_tradeoff(qb_page *page)
{
    point *points;
    size_t at = 0, n;
    QB_TRY(QB_NEW(&points, 2 * page->report->results.n, "points"));
    fputs("<div class=\"figures\">\n", page->out);
    while ((n = qb_page_group(page, &at, has_both, qb_same_setting)) > 0)
        for (size_t p = 0; p < QB_COUNT(phases); p++) write_scatter(page, n, &phases[p], points);
    fputs("</div>\n", page->out);
    qb_free(points);
    return QB_OK;
}

/* ---- latency: a histogram a row ---- */

enum { N_BINS = 60, ROW = 54, BARS = 30, AXIS = 44, MARGIN = 14, MAX_ROWS = 40 };

typedef struct series {
    const qb_result *r;
    const char *scheme;
    const qb_result_timing *timing;
} series;

static bool has_samples(const qb_result *r)
{
    return r->speed.prefill.samples_ms.n || r->speed.decode.samples_ms.n;
}

static size_t fill_series(qb_page *page, size_t n, const struct phase *phase, series *out)
{
    size_t k = 0;
    for (size_t i = 0; i < n; i++) {
        const qb_result *r = page->rows[i];
        const qb_result_timing *full = timing_at(r, phase->full_offset);
        const qb_result_timing *own = timing_at(r, phase->offset);
        if ((!i || !qb_same_model(page->rows[i - 1], r)) && full->samples_ms.n)
            out[k++] = (series){r, "full", full};
        if (own->samples_ms.n) out[k++] = (series){r, qb_page_scheme(r), own};
    }
    return k;
}

static bool is_sample(double ms)
{
    return ms >= QB_SCALE_LEAST && qb_is_drawable(ms);
}

static void write_histogram(FILE *out, const series *s, const qb_scale *x, double top,
                            size_t colour)
{
    size_t bins[N_BINS] = {0}, most = 1;
    double width = (x->to - x->from) / N_BINS;
    for (size_t i = 0; i < s->timing->samples_ms.n; i++) {
        double ms = s->timing->samples_ms.items[i];
        if (!is_sample(ms)) continue;
        size_t bin = (size_t)((qb_scale_at(x, ms) - x->from) / width);
        size_t n = ++bins[bin < N_BINS ? bin : N_BINS - 1];
        if (n > most) most = n;
    }
    for (size_t b = 0; b < N_BINS; b++) {
        double height = (double)bins[b] / (double)most * BARS;
        if (bins[b])
            fprintf(out,
                    "<rect class=\"f%zu\" x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" "
                    "height=\"%.1f\"/>\n",
                    colour, x->from + (double)b * width, top + BARS - height, width, height);
    }
    qb_svg_line(out, x->from, top + BARS, x->to, top + BARS, "base");
}

static void write_latency_row(qb_page *page, const series *s, const qb_scale *x, double top)
{
    char name[QB_NAME_BYTES], label[2 * QB_NAME_BYTES], p50[QB_FORMAT_BYTES], p99[QB_FORMAT_BYTES];
    char value[160], scheme[100], shown[160];
    snprintf(label, sizeof label, "%s, %s", qb_shorten(s->scheme, 20, scheme),
             qb_page_model(page, s->r, name));
    snprintf(value, sizeof value, "p50 %s, p99 %s ms",
             qb_format_significant(s->timing->p50_ms, p50),
             qb_format_significant(s->timing->p99_ms, p99));
    qb_svg_text(page->out, MARGIN - 4, top + 13, "start", qb_shorten(label, 31, shown));
    qb_svg_text(page->out, QB_SVG_WIDTH - MARGIN + 4, top + 13, "end value", value);
    write_histogram(page->out, s, x, top + 19, qb_page_colour(page, s->scheme));
}

static void write_latency_table(qb_page *page, const char *title, const series *s, size_t n)
{
    char name[QB_NAME_BYTES], t[QB_FORMAT_BYTES];
    qb_page_details_open(page);
    qb_page_table_open(page, title, "scheme|model|#samples|#p50, ms|#p90, ms|#p99, ms|#tokens/s");
    for (size_t i = 0; i < n; i++) {
        qb_page_row_open(page, s[i].scheme);
        qb_page_cell(page, qb_page_model(page, s[i].r, name));
        qb_page_number(page, qb_format_count(s[i].timing->samples, t));
        qb_page_number(page, qb_format_significant(s[i].timing->p50_ms, t));
        qb_page_number(page, qb_format_significant(s[i].timing->p90_ms, t));
        qb_page_number(page, qb_format_significant(s[i].timing->p99_ms, t));
        qb_page_number(page, qb_format_rate(s[i].timing, t));
        qb_page_row_close(page);
    }
    qb_page_table_close(page);
    qb_page_details_close(page);
}

static void write_latency(qb_page *page, size_t n_rows, const struct phase *phase, series *s)
{
    size_t n = fill_series(page, n_rows, phase, s), n_drawn = n < MAX_ROWS ? n : MAX_ROWS;
    qb_range range = {0};
    char title[80], axis[80], name[QB_NAME_BYTES];
    for (size_t i = 0; i < n_drawn; i++)
        for (size_t k = 0; k < s[i].timing->samples_ms.n; k++)
            if (is_sample(s[i].timing->samples_ms.items[k]))
                qb_range_add(&range, s[i].timing->samples_ms.items[k]);
    if (!range.n) return;
    qb_scale x = qb_scale_make(range.high > 10 * range.low ? QB_SCALE_LOG : QB_SCALE_LINEAR,
                               range.low, range.high, 0);
    x.from = MARGIN;
    x.to = QB_SVG_WIDTH - MARGIN;
    snprintf(title, sizeof title, "Latency of %s", phase->name);
    snprintf(axis, sizeof axis, "%s, ms", phase->name);
    double height = (double)(n_drawn * ROW) + AXIS + 4;
    qb_page_figure_open(
        page, height, title,
        "One histogram of samples a row, on one axis of time; each is as high as its "
        "fullest bin. Further left is faster.");
    qb_svg_x_axis(page->out, &x, 2, height - AXIS, qb_page_axis_name(axis, &x, name));
    for (size_t i = 0; i < n_drawn; i++) write_latency_row(page, &s[i], &x, 2 + (double)(i * ROW));
    qb_page_figure_caption(page, title);
    fputs("<p class=\"note\">", page->out);
    qb_page_say_speed(page, page->rows[0]);
    if (n > n_drawn) fprintf(page->out, "The first %zu of %zu are drawn.", n_drawn, n);
    fputs("</p>\n", page->out);
    write_latency_table(page, title, s, n);
    qb_page_figure_close(page);
}

bool qb_page_has_latency(const qb_page *page)
{
    return qb_page_any(page, has_samples);
}

qb_status qb_page_latency(qb_page *page)
{
    series *s;
    size_t at = 0, n;
    QB_TRY(QB_NEW(&s, 2 * page->report->results.n, "histograms"));
    fputs("<div class=\"figures\">\n", page->out);
    while ((n = qb_page_group(page, &at, has_samples, qb_same_machine)) > 0)
        for (size_t p = 0; p < QB_COUNT(phases); p++) write_latency(page, n, &phases[p], s);
    fputs("</div>\n", page->out);
    qb_free(s);
    return QB_OK;
}

/* ---- memory ---- */

static bool has_memory(const qb_result *r)
{
    return r->memory.weights_bytes >= 0;
}

/* Files on another text say the same again. */
static bool is_repeated(const qb_result *const *rows, size_t i)
{
    for (size_t j = 0; j < i; j++)
        if (qb_same_model(rows[j], rows[i]) &&
            qb_same_text(rows[j]->scheme.name, rows[i]->scheme.name) &&
            rows[j]->memory.weights_bytes == rows[i]->memory.weights_bytes)
            return true;
    return false;
}

static qb_bar memory_bar(qb_page *page, const qb_result *r, const char *scheme, int64_t bytes)
{
    qb_bar b = {.colour = qb_page_colour(page, scheme), .value = (double)bytes / 1e6};
    char text[100];
    b.ci = (qb_interval){NAN, NAN};
    b.group = r->model.name ? r->model.name : "unnamed";
    snprintf(b.label, sizeof b.label, "%s", qb_shorten(scheme, 24, text));
    snprintf(b.text, sizeof b.text, "%.1f MB", b.value);
    return b;
}

static size_t fill_memory(qb_page *page, size_t n, qb_bar *bars)
{
    size_t k = 0;
    for (size_t i = 0; i < n; i++) {
        const qb_result *r = page->rows[i];
        if (is_repeated(page->rows, i)) continue;
        if ((!i || !qb_same_model(page->rows[i - 1], r)) && r->memory.full_weights_bytes >= 0)
            bars[k++] = memory_bar(page, r, "full", r->memory.full_weights_bytes);
        bars[k++] = memory_bar(page, r, qb_page_scheme(r), r->memory.weights_bytes);
    }
    return k;
}

static void write_memory_table(qb_page *page, size_t n)
{
    char name[QB_NAME_BYTES], t[QB_FORMAT_BYTES];
    qb_page_details_open(page);
    qb_page_table_open(
        page, "Memory",
        "scheme|model|#weights|#weights, full|#keys and values|#scratch|#peak of the "
        "process");
    for (size_t i = 0; i < n; i++) {
        const qb_result *r = page->rows[i];
        const int64_t bytes[] = {r->memory.weights_bytes, r->memory.full_weights_bytes,
                                 r->memory.kv_bytes, r->memory.scratch_bytes, r->memory.peak_bytes};
        qb_page_row_open(page, qb_page_scheme(r));
        qb_page_cell(page, qb_page_model(page, r, name));
        for (size_t b = 0; b < QB_COUNT(bytes); b++)
            qb_page_number(page, qb_format_bytes(bytes[b], t));
        qb_page_row_close(page);
    }
    qb_page_table_close(page);
    qb_page_details_close(page);
}

bool qb_page_has_memory(const qb_page *page)
{
    return qb_page_any(page, has_memory);
}

qb_status qb_page_memory(qb_page *page)
{
    qb_bar *bars;
    size_t at = 0, n_rows;
    QB_TRY(QB_NEW(&bars, 2 * page->report->results.n, "bars"));
    fputs("<div class=\"figures\">\n", page->out);
    while ((n_rows = qb_page_group(page, &at, has_memory, qb_same_model)) > 0) {
        size_t n = fill_memory(page, n_rows, bars);
        qb_page_bars(page, bars, n, QB_SCALE_SYMLOG, "weights, MB", "Memory of the weights",
                     "Bars show the bytes of the weights as they lie in memory under each scheme, "
                     "in millions of bytes. Shorter is better.");
        qb_page_figure_caption(page, "Weights in memory");
        write_memory_table(page, n_rows);
        qb_page_figure_close(page);
    }
    fputs("</div>\n", page->out);
    qb_free(bars);
    return QB_OK;
}
