/* report/html_analysis.c - outliers and attention layer by layer as columns; what each part of a
 * model costs as bars. */
#include "report/html_internal.h"

#include "core/memory.h"

#include <math.h>
#include <string.h>

enum { MAX_SHOWN = 4 }; /* analyses in one figure */

/* Each a figure: a group of columns a layer, one column an analysis. */
static const struct figure {
    const char *title, *unit;
    qb_layer_metric metric;
    double factor;
} figures[] = {
    {"Kurtosis by layer, first token", "kurtosis", QB_LAYER_KURT_FIRST, 1},
    {"Kurtosis by layer, other tokens", "kurtosis", QB_LAYER_KURT_REST, 1},
    {"Largest activation by layer, first token", "largest magnitude", QB_LAYER_MAX_FIRST, 1},
    {"Largest activation by layer, other tokens", "largest magnitude", QB_LAYER_MAX_REST, 1},
    {"Largest activation over the norm, first token", "maximum over norm", QB_LAYER_RATIO_FIRST, 1},
    {"Largest activation over the norm, other tokens", "maximum over norm", QB_LAYER_RATIO_REST, 1},
    {"Attention that is largest on the first token", "queries, %", QB_LAYER_FIRST_ARGMAX, 100},
    {"Weight on the first token", "attention, %", QB_LAYER_FIRST_SHARE, 100},
};

size_t qb_page_n_analyses(const qb_page *page)
{
    return page->report->n_analyses < MAX_SHOWN ? page->report->n_analyses : MAX_SHOWN;
}

const char *qb_page_analysis(const qb_page *page, size_t i, char *text)
{
    const qb_analysis_record *all = page->report->analyses;
    bool shared = false;
    for (size_t k = 0; k < page->report->n_analyses; k++)
        shared = shared || (k != i && qb_same_text(all[k].model, all[i].model));
    qb_shorten(all[i].model ? all[i].model : "unnamed", 28, text);
    if (shared) snprintf(text + strlen(text), 8, " (%zu)", i + 1);
    return text;
}

static double value_of(const qb_page *page, const struct figure *f, size_t i, size_t layer)
{
    const qb_analysis_record *a = &page->report->analyses[i];
    if (layer >= a->n_layers) return NAN;
    double value = f->factor * a->values[layer * QB_LAYER_METRIC_COUNT + f->metric];
    return qb_is_drawable(value) ? value : NAN;
}

static size_t most_layers(const qb_page *page)
{
    size_t n = 0;
    for (size_t i = 0; i < qb_page_n_analyses(page); i++)
        if (page->report->analyses[i].n_layers > n) n = page->report->analyses[i].n_layers;
    return n;
}

static void write_columns(qb_page *page, const struct figure *f, const qb_plot *plot)
{
    size_t n = qb_page_n_analyses(page), n_layers = most_layers(page);
    double group = (plot->x.to - plot->x.from) / (double)n_layers, zero = qb_scale_at(&plot->y, 0);
    double width = fmin(0.8 * group / (double)n, 16);
    for (size_t i = 0; i < n; i++)
        for (size_t layer = 0; layer < n_layers; layer++) {
            double value = value_of(page, f, i, layer), at = qb_scale_at(&plot->y, value);
            if (isnan(value)) continue;
            double x =
                qb_scale_at(&plot->x, (double)layer + 1) + width * ((double)i - (double)n / 2);
            fprintf(page->out,
                    "<rect class=\"f%zu\" x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\"/>\n",
                    qb_page_run_colour(i), x, fmin(zero, at), 0.92 * width,
                    fmax(fabs(at - zero), 0.8));
        }
}

static void write_legend(qb_page *page)
{
    char name[QB_NAME_BYTES];
    fputs("<ul class=\"legend\">\n", page->out);
    for (size_t i = 0; i < qb_page_n_analyses(page); i++) {
        fprintf(page->out, "<li><i class=\"swatch b%zu\"></i>", qb_page_run_colour(i));
        qb_page_text(page, qb_page_analysis(page, i, name));
        fputs("</li>\n", page->out);
    }
    fputs("</ul>\n", page->out);
}

static void write_table(qb_page *page, const struct figure *f)
{
    char name[QB_NAME_BYTES], t[QB_FORMAT_BYTES], columns[100];
    snprintf(columns, sizeof columns, "model|#layer|#%s", f->unit);
    qb_page_details_open(page);
    qb_page_table_open(page, f->title, columns);
    for (size_t i = 0; i < qb_page_n_analyses(page); i++)
        for (size_t layer = 0; layer < page->report->analyses[i].n_layers; layer++) {
            qb_page_row_open(page, qb_page_analysis(page, i, name));
            qb_page_number(page, qb_format_count((int64_t)layer + 1, t));
            qb_page_number(page, qb_format_significant(value_of(page, f, i, layer), t));
            qb_page_row_close(page);
        }
    qb_page_table_close(page);
    qb_page_details_close(page);
}

static void write_figure(qb_page *page, const struct figure *f)
{
    qb_range y = {0};
    size_t n_layers = most_layers(page);
    for (size_t i = 0; i < qb_page_n_analyses(page); i++)
        for (size_t layer = 0; layer < n_layers; layer++)
            qb_range_add(&y, value_of(page, f, i, layer));
    if (!y.n) return;
    qb_plot plot = {
        .width = QB_SVG_WIDTH, .height = 240, .left = 52, .right = 14, .top = 26, .bottom = 44};
    plot.x = qb_scale_make(QB_SCALE_LINEAR, 0.5, (double)n_layers + 0.5, 0);
    plot.x.step = fmax(plot.x.step, 1);
    plot.x.low = 0.5;
    plot.x.high = (double)n_layers + 0.5;
    plot.y = qb_scale_from_zero(&y);
    char name[QB_NAME_BYTES];
    qb_page_figure_open(page, plot.height, f->title,
                        "A group of columns for each layer, from the first on the left; one column "
                        "for each model.");
    qb_svg_axes(page->out, &plot, "layer", qb_page_axis_name(f->unit, &plot.y, name));
    write_columns(page, f, &plot);
    qb_page_figure_caption(page, f->title);
    write_legend(page);
    write_table(page, f);
    qb_page_figure_close(page);
}

bool qb_page_has_analysis(const qb_page *page)
{
    return page->report->n_analyses > 0;
}

qb_status qb_page_analyses(qb_page *page)
{
    if (page->report->n_analyses > MAX_SHOWN)
        fprintf(page->out, "<p class=\"note\">The first %d of %zu analyses are drawn.</p>\n",
                MAX_SHOWN, page->report->n_analyses);
    fputs("<div class=\"figures\">\n", page->out);
    for (size_t i = 0; i < QB_COUNT(figures); i++) write_figure(page, &figures[i]);
    fputs("</div>\n<p class=\"note\">Kurtosis over the channels of the residual stream after each "
          "layer: 3 for a Gaussian; what is far above it makes a tensor hard to quantise.</p>\n",
          page->out);
    return QB_OK;
}

/* ---- sensitivity: what each part costs alone, and how hard its input is ---- */

static bool has_penalty(const qb_analysis_record *a)
{
    for (size_t i = 0; i < a->n_parts; i++)
        if (qb_is_drawable(a->parts[i].penalty)) return true;
    return false;
}

bool qb_page_has_sensitivity(const qb_page *page)
{
    for (size_t i = 0; i < qb_page_n_analyses(page); i++)
        if (has_penalty(&page->report->analyses[i])) return true;
    return false;
}

static const char *or_unnamed(const char *name)
{
    return name ? name : "unnamed";
}

/* Of penalties with their intervals, or of kurtoses; without those that were not measured. */
static size_t fill_parts(qb_page *page, const qb_analysis_record *a, bool kurtosis, qb_bar *bars)
{
    char name[QB_NAME_BYTES], t[QB_FORMAT_BYTES];
    size_t n = 0;
    for (size_t i = 0; i < a->n_parts; i++) {
        const qb_analysis_part *p = &a->parts[i];
        double value = kurtosis ? p->input_kurtosis : p->penalty;
        if (!qb_is_drawable(value)) continue;
        qb_bar *b = &bars[n++];
        *b = (qb_bar){.colour = qb_page_colour(page, or_unnamed(a->scheme)), .value = value};
        b->ci = kurtosis ? (qb_interval){NAN, NAN} : p->penalty_ci95;
        snprintf(b->label, sizeof b->label, "%s", qb_shorten(or_unnamed(p->name), 30, name));
        snprintf(b->text, sizeof b->text, "%s",
                 kurtosis ? qb_format_significant(value, t) : qb_format_signed(value, t));
    }
    return n;
}

static void write_parts_table(qb_page *page, const char *title, const qb_analysis_record *a)
{
    char t[QB_FORMAT_BYTES];
    qb_page_details_open(page);
    qb_page_table_open(
        page, title,
        "part|#penalty|#95 % from|#to|#share of the sum|#SQNR, dB|#kurtosis of its input");
    for (size_t i = 0; i < a->n_parts; i++) {
        const qb_analysis_part *p = &a->parts[i];
        qb_page_row_open(page, or_unnamed(p->name));
        qb_page_number(page, qb_format_signed(p->penalty, t));
        qb_page_number(page, qb_format_signed(p->penalty_ci95.low, t));
        qb_page_number(page, qb_format_signed(p->penalty_ci95.high, t));
        qb_page_number(page, qb_format_percent(p->share, t));
        qb_page_number(page, qb_format_significant(p->sqnr_db, t));
        qb_page_number(page, qb_format_significant(p->input_kurtosis, t));
        qb_page_row_close(page);
    }
    qb_page_table_close(page);
    qb_page_details_close(page);
}

static void write_parts(qb_page *page, size_t i, bool kurtosis, qb_bar *bars)
{
    const qb_analysis_record *a = &page->report->analyses[i];
    char name[QB_NAME_BYTES], title[2 * QB_NAME_BYTES];
    size_t n = fill_parts(page, a, kurtosis, bars);
    if (!n) return;
    qb_page_analysis(page, i, name);
    if (kurtosis)
        snprintf(title, sizeof title, "Kurtosis of each part's input: %s", name);
    else
        snprintf(title, sizeof title, "Penalty of each part alone: %s, %.60s", name,
                 or_unnamed(a->scheme));
    qb_page_bars(page, bars, n, QB_SCALE_SYMLOG, kurtosis ? "kurtosis" : "penalty, perplexity",
                 title,
                 kurtosis ? "Bars show the kurtosis of what goes into a part: far above 3 a few "
                            "values are much larger than the rest."
                          : "Bars show the perplexity that a part adds when it alone is quantised; "
                            "the thin line over each is its 95 % interval.");
    qb_page_figure_caption(page, title);
    if (n > QB_PAGE_MAX_BARS)
        fprintf(page->out, "<p class=\"note\">The first %d of %zu are drawn.</p>\n",
                QB_PAGE_MAX_BARS, n);
    write_parts_table(page, title, a);
    qb_page_figure_close(page);
}

qb_status qb_page_sensitivity(qb_page *page)
{
    fputs("<div class=\"figures\">\n", page->out);
    for (size_t i = 0; i < qb_page_n_analyses(page); i++) {
        qb_bar *bars;
        if (!has_penalty(&page->report->analyses[i])) continue;
        QB_TRY(QB_NEW(&bars, page->report->analyses[i].n_parts, "bars"));
        write_parts(page, i, false, bars);
        write_parts(page, i, true, bars);
        qb_free(bars);
    }
    fputs("</div>\n", page->out);
    return QB_OK;
}
