/* report/html_latency.c - the times of single prefills and decode steps: a histogram a row. */
#include "report/html_internal.h"

enum { N_BINS = 60, ROW = 54, BARS = 30, AXIS = 44, MARGIN = 14, MAX_ROWS = 40 };

static bool is_sampled(const qb_result_timing *timing)
{
    return timing->samples_ms.n > 0;
}

static bool has_samples(const qb_result *r)
{
    return is_sampled(&r->speed.prefill) || is_sampled(&r->speed.decode);
}

static bool is_sample(double ms)
{
    return ms >= QB_SCALE_LEAST && qb_is_drawable(ms);
}

static void write_histogram(FILE *out, const qb_page_timed *s, const qb_scale *x, double top,
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

static void write_latency_row(qb_page *page, const qb_page_timed *s, const qb_scale *x, double top)
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

static void write_latency_table(qb_page *page, const char *title, const qb_page_timed *s, size_t n)
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

static void write_latency(qb_page *page, size_t n_rows, const qb_page_phase *phase,
                          qb_page_timed *s)
{
    size_t n = qb_page_timings(page, n_rows, phase, is_sampled, s),
           n_drawn = n < MAX_ROWS ? n : MAX_ROWS;
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

static void write_latencies(qb_page *page, size_t n, void *timed)
{
    for (size_t p = 0; p < QB_PAGE_PHASES; p++) write_latency(page, n, &qb_page_phases[p], timed);
}

qb_status qb_page_latency(qb_page *page)
{
    return qb_page_figures(page, has_samples, qb_same_machine, 2 * sizeof(qb_page_timed),
                           write_latencies);
}
