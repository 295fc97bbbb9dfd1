/* report/html_training.c - the curves of training runs over tokens. */
#include "report/html_internal.h"

#include <math.h>
#include <string.h>

enum { MAX_DRAWN = 400, MAX_LISTED = 40, MAX_RUNS = 8 };

/* A figure draws one curve, or two of a kind: the second one dashed. */
static const struct figure {
    const char *title, *unit, *names[2];
    qb_curve_id curves[2];
    bool logarithmic;
    double factor;
    bool live; /* for who watches the run, not for who reads of it */
} figures[] = {
    {"Training loss", "loss, nats/token", {"loss", NULL}, {QB_CURVE_LOSS}, false, 1, false},
    {"Evaluation perplexity", "perplexity", {"perplexity", NULL}, {QB_CURVE_PPL}, true, 1, false},
    {"Kurtosis of the hidden states",
     "kurtosis",
     {"first token", "other tokens"},
     {QB_CURVE_KURT_FIRST, QB_CURVE_KURT_REST},
     true,
     1,
     false},
    {"Largest activation",
     "max |x|",
     {"first token", "other tokens"},
     {QB_CURVE_MAX_FIRST, QB_CURVE_MAX_REST},
     true,
     1,
     false},
    {"Attention on the first token",
     "attention, %",
     {"largest there", "mean share"},
     {QB_CURVE_FIRST_ARGMAX, QB_CURVE_FIRST_SHARE},
     false,
     100,
     false},
    {"Gradient norm", "norm", {"norm", NULL}, {QB_CURVE_GRAD_NORM}, true, 1, true},
    {"Learning rate", "rate", {"rate", NULL}, {QB_CURVE_LR}, false, 1, true},
    {"Speed", "tokens/s", {"speed", NULL}, {QB_CURVE_TOK_PER_S}, false, 1, true},
};

typedef struct axis {
    const char *name, *unit;
    double factor; /* of a point's tokens or steps */
    bool steps;
} axis;

static size_t n_runs(const qb_page *page)
{
    return page->report->n_runs < MAX_RUNS ? page->report->n_runs : MAX_RUNS;
}

static axis find_axis(const qb_page *page)
{
    double most = 0;
    for (size_t i = 0; i < n_runs(page); i++) {
        const qb_metrics *m = &page->report->runs[i];
        if (!m->has_tokens) return (axis){"steps", "step", 1, true};
        for (size_t k = 0; k < m->n; k++) most = fmax(most, m->points[k].tokens);
    }
    if (most >= 2e9) return (axis){"tokens, thousand millions", "10^9 tokens", 1e-9, false};
    if (most >= 2e6) return (axis){"tokens, millions", "10^6 tokens", 1e-6, false};
    return (axis){"tokens", "tokens", 1, false};
}

static double place_of(const axis *a, const qb_metrics_point *p)
{
    return a->factor * (a->steps ? p->step : p->tokens);
}

/* What can be drawn of one curve: the value, else NaN. */
static double value_of(const struct figure *f, size_t curve, const qb_metrics_point *p)
{
    double value = f->factor * p->values[f->curves[curve]];
    if (!qb_is_drawable(value) || (f->logarithmic && !(value >= QB_SCALE_LEAST))) return NAN;
    return value;
}

static size_t count_values(const struct figure *f, size_t curve, const qb_metrics *m)
{
    size_t n = 0;
    for (size_t i = 0; i < m->n; i++)
        if (!isnan(value_of(f, curve, &m->points[i]))) n++;
    return n;
}

/* Colours that are far apart, and none of them of full precision. */
size_t qb_page_run_colour(size_t i)
{
    static const size_t order[MAX_RUNS] = {4, 1, 5, 3, 6, 2, 7, 8};
    return order[i % MAX_RUNS];
}

static void write_curve(FILE *out, const struct figure *f, size_t curve, const qb_metrics *m,
                        const axis *a, const qb_plot *plot, size_t colour)
{
    size_t n = count_values(f, curve, m), step = n / MAX_DRAWN + 1, k = 0;
    if (!n) return;
    fprintf(out, "<path class=\"curve s%zu%s\" d=\"", colour, curve ? " dashed" : "");
    char letter = 'M';
    for (size_t i = 0; i < m->n; i++) {
        double value = value_of(f, curve, &m->points[i]);
        if (isnan(value)) continue;
        if (k++ % step && k != n) continue;
        fprintf(out, "%c%.1f %.1f", letter, qb_scale_at(&plot->x, place_of(a, &m->points[i])),
                qb_scale_at(&plot->y, value));
        letter = 'L';
    }
    fputs("\"/>\n", out);
}

static void write_legend(qb_page *page, const struct figure *f)
{
    fputs("<ul class=\"legend\">\n", page->out);
    for (size_t i = 0; i < n_runs(page); i++)
        for (size_t c = 0; c < 2 && f->names[c]; c++) {
            fprintf(page->out,
                    "<li><svg aria-hidden=\"true\" viewBox=\"0 0 24 14\" class=\"key wide\">"
                    "<path class=\"curve s%zu%s\" d=\"M1 7H23\"/></svg>",
                    qb_page_run_colour(i), c ? " dashed" : "");
            qb_page_text(page, page->report->runs[i].name);
            if (f->names[1]) fprintf(page->out, ", %s", f->names[c]);
            fputs("</li>\n", page->out);
        }
    fputs("</ul>\n", page->out);
}

static void write_values(qb_page *page, const struct figure *f, const axis *a, const qb_metrics *m)
{
    char t[QB_FORMAT_BYTES];
    size_t n = count_values(f, 0, m), step = n / MAX_LISTED + 1, k = 0;
    for (size_t i = 0; i < m->n; i++) {
        double value = value_of(f, 0, &m->points[i]);
        if (isnan(value)) continue;
        if (k++ % step && k != n) continue;
        qb_page_row_open(page, m->name);
        qb_page_number(page, qb_format_count((int64_t)m->points[i].step, t));
        qb_page_number(page, qb_format_significant(place_of(a, &m->points[i]), t));
        qb_page_number(page, qb_format_significant(value, t));
        if (f->names[1])
            qb_page_number(page, qb_format_significant(value_of(f, 1, &m->points[i]), t));
        qb_page_row_close(page);
    }
}

static void write_figure_table(qb_page *page, const struct figure *f, const axis *a)
{
    char columns[200];
    if (f->names[1])
        snprintf(columns, sizeof columns, "run|#step|#%s|#%s, %s|#%s, %s", a->unit, f->unit,
                 f->names[0], f->unit, f->names[1]);
    else
        snprintf(columns, sizeof columns, "run|#step|#%s|#%s", a->unit, f->unit);
    qb_page_details_open(page);
    qb_page_table_open(page, f->title, columns);
    for (size_t i = 0; i < n_runs(page); i++) write_values(page, f, a, &page->report->runs[i]);
    qb_page_table_close(page);
    qb_page_details_close(page);
}

static void write_figure(qb_page *page, const struct figure *f, const axis *a)
{
    qb_range x = {0}, y = {0};
    for (size_t i = 0; i < n_runs(page); i++)
        for (size_t k = 0; k < page->report->runs[i].n; k++)
            for (size_t c = 0; c < 2 && f->names[c]; c++) {
                const qb_metrics_point *p = &page->report->runs[i].points[k];
                double value = value_of(f, c, p);
                qb_range_add(&y, value);
                if (!isnan(value)) qb_range_add(&x, place_of(a, p));
            }
    if (!y.n || !x.n) return;
    qb_plot plot = {
        .width = QB_SVG_WIDTH, .height = 280, .left = 52, .right = 14, .top = 26, .bottom = 44};
    plot.x = qb_scale_make(QB_SCALE_LINEAR, 0, x.high, 0);
    if (x.high > 0) plot.x.high = x.high; /* up to the last token, not to a round number */
    plot.y = qb_scale_make(f->logarithmic ? QB_SCALE_LOG : QB_SCALE_LINEAR, y.low, y.high, 0);
    char name[QB_NAME_BYTES];
    qb_page_figure_open(page, plot.height, f->title,
                        "One line a run, over the tokens it was trained on; where there are two of "
                        "a run, the second one is dashed.");
    qb_svg_axes(page->out, &plot, a->name, qb_page_axis_name(f->unit, &plot.y, name));
    for (size_t i = 0; i < n_runs(page); i++)
        for (size_t c = 0; c < 2 && f->names[c]; c++)
            write_curve(page->out, f, c, &page->report->runs[i], a, &plot, qb_page_run_colour(i));
    qb_page_figure_caption(page, f->title);
    write_legend(page, f);
    write_figure_table(page, f, a);
    qb_page_figure_close(page);
}

bool qb_page_has_training(const qb_page *page)
{
    return page->report->n_runs > 0;
}

qb_status qb_page_training(qb_page *page)
{
    axis a = find_axis(page);
    if (page->report->n_runs > MAX_RUNS)
        fprintf(page->out, "<p class=\"note\">The first %d of %zu runs are drawn.</p>\n", MAX_RUNS,
                page->report->n_runs);
    fputs("<div class=\"figures\">\n", page->out);
    for (size_t i = 0; i < QB_COUNT(figures); i++)
        if (page->live || !figures[i].live) write_figure(page, &figures[i], &a);
    fputs("</div>\n", page->out);
    return QB_OK;
}
