/* report/html_speed.c - what each scheme brings: penalty against speed. */
#include "report/html_internal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

const qb_page_phase qb_page_phases[QB_PAGE_PHASES] = {
    {"decode", offsetof(qb_result, speed.decode), offsetof(qb_result, speed.full.decode)},
    {"prefill", offsetof(qb_result, speed.prefill), offsetof(qb_result, speed.full.prefill)},
};

static const qb_result_timing *timing_at(const qb_result *r, size_t offset)
{
    return (const qb_result_timing *)((const char *)r + offset);
}

size_t qb_page_timings(const qb_page *page, size_t n, const qb_page_phase *phase,
                       bool (*has)(const qb_result_timing *timing), qb_page_timed *out)
{
    size_t k = 0;
    for (size_t i = 0; i < n; i++) {
        const qb_result *r = page->rows[i];
        const qb_result_timing *full = timing_at(r, phase->full_offset);
        const qb_result_timing *own = timing_at(r, phase->offset);
        bool is_first = !i || !qb_same_model(page->rows[i - 1], r);
        if (is_first && has(full)) out[k++] = (qb_page_timed){r, "full", full, 0, false};
        if (has(own))
            out[k++] = (qb_page_timed){r, qb_page_scheme(r), own, r->quality.penalty, false};
    }
    return k;
}

static bool has_rate(const qb_result_timing *timing)
{
    return timing->tok_per_s >= QB_SCALE_LEAST && qb_is_drawable(timing->tok_per_s);
}

bool qb_has_speed(const qb_result *r)
{
    return has_rate(&r->speed.prefill) || has_rate(&r->speed.decode);
}

/* ---- penalty against speed ---- */

static bool has_both(const qb_result *r)
{
    return qb_has_speed(r) && qb_is_drawable(r->quality.penalty);
}

static int by_speed_down(const void *a, const void *b)
{
    const qb_page_timed *p = a, *q = b;
    double speed = p->timing->tok_per_s, other = q->timing->tok_per_s;
    if (speed < other || speed > other) return speed < other ? 1 : -1;
    return p->penalty < q->penalty ? -1 : p->penalty > q->penalty;
}

/* Sorted by speed, fastest first; returns how many. */
static size_t fill_points(const qb_page *page, size_t n_rows, const qb_page_phase *phase,
                          qb_page_timed *points)
{
    size_t n = qb_page_timings(page, n_rows, phase, has_rate, points);
    qsort(points, n, sizeof *points, by_speed_down);
    double best = INFINITY;
    for (size_t i = 0; i < n; i++) {
        points[i].on_front = points[i].penalty < best;
        best = fmin(best, points[i].penalty);
    }
    return n;
}

/* Steps: what is to the left of the front and above it, another point beats. */
static void write_front(FILE *out, const qb_plot *plot, const qb_page_timed *points, size_t n)
{
    bool begun = false;
    fputs("<path class=\"front\" d=\"", out);
    for (size_t i = 0; i < n; i++) {
        if (!points[i].on_front) continue;
        double x = qb_scale_at(&plot->x, points[i].timing->tok_per_s);
        double y = qb_scale_at(&plot->y, points[i].penalty);
        fprintf(out, begun ? "H%.1fV%.1f" : "M%.1f %.1f", x, y);
        begun = true;
    }
    fputs("\"/>\n", out);
}

static void write_points(qb_page *page, const qb_plot *plot, const qb_page_timed *points, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        const qb_page_timed *p = &points[i];
        char name[QB_NAME_BYTES], speed[QB_FORMAT_BYTES], penalty[QB_FORMAT_BYTES], tip[320];
        snprintf(tip, sizeof tip, "%s, %.60s: %s tokens/s, penalty %s",
                 qb_page_model(page, p->r, name), p->scheme,
                 qb_format_significant(p->timing->tok_per_s, speed),
                 qb_format_signed(p->penalty, penalty));
        qb_svg_marker(page->out, qb_page_marker(page, p->r),
                      qb_scale_at(&plot->x, p->timing->tok_per_s),
                      qb_scale_at(&plot->y, p->penalty), qb_page_colour(page, p->scheme), tip);
    }
}

static bool has_scheme(const qb_page_timed *points, size_t n, const char *scheme)
{
    for (size_t i = 0; i < n; i++)
        if (!strcmp(points[i].scheme, scheme)) return true;
    return false;
}

static const qb_result *of_model(const qb_page *page, const qb_page_timed *points, size_t n,
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
static void write_legend(qb_page *page, const qb_page_timed *points, size_t n)
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

static void write_point_table(qb_page *page, const char *caption, const qb_page_timed *points,
                              size_t n)
{
    char name[QB_NAME_BYTES], t[QB_FORMAT_BYTES];
    qb_page_details_open(page);
    qb_page_table_open(page, caption, "scheme|model|#tokens/s|#penalty|on the front");
    for (size_t i = 0; i < n; i++) {
        qb_page_row_open(page, points[i].scheme);
        qb_page_cell(page, qb_page_model(page, points[i].r, name));
        qb_page_number(page, qb_format_significant(points[i].timing->tok_per_s, t));
        qb_page_number(page, qb_format_signed(points[i].penalty, t));
        qb_page_cell(page, points[i].on_front ? "yes" : "no");
        qb_page_row_close(page);
    }
    qb_page_table_close(page);
    qb_page_details_close(page);
}

static void write_scatter(qb_page *page, size_t n_rows, const qb_page_phase *phase,
                          qb_page_timed *points)
{
    size_t n = fill_points(page, n_rows, phase, points);
    qb_range x = {0}, y = {0};
    char title[80], speed[80], x_name[QB_NAME_BYTES], y_name[QB_NAME_BYTES];
    if (!n) return;
    for (size_t i = 0; i < n; i++) {
        qb_range_add(&x, points[i].timing->tok_per_s);
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
        "Each point is a model under a scheme: to the right faster, below nearer to full "
        "precision. The dashed line joins those that no other point beats in both.");
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

static void write_scatters(qb_page *page, size_t n, void *points)
{
    for (size_t p = 0; p < QB_PAGE_PHASES; p++) write_scatter(page, n, &qb_page_phases[p], points);
}

qb_status qb_page_tradeoff(qb_page *page)
{
    return qb_page_figures(page, has_both, qb_same_setting, 2 * sizeof(qb_page_timed),
                           write_scatters);
}
