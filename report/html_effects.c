/* report/html_effects.c - the rest of an analysis: massive activations and what is left without
 * them, norms by position, sinks, weights and bases by layer, heads that work on one text and not
 * on another.
 *
 * Read from the file as it stands: what is no number is not drawn. */
#include "report/html_internal.h"

#include "core/memory.h"
#include "report/head_spread.h"

#include <math.h>
#include <string.h>

enum { MAX_POINTS = 400, MAX_LINES = 8, MAX_HEADS = 12, MAX_ROWS = 64 };

static const json_t *root_of(const qb_page *page, size_t i)
{
    return page->report->analyses[i].root;
}

static bool any_has(const qb_page *page, const char *key)
{
    for (size_t i = 0; i < qb_page_n_analyses(page); i++)
        if (json_array_size(json_object_get(root_of(page, i), key))) return true;
    return false;
}

/* ---- tables ---- */

typedef struct column {
    const char *key;
    char *(*format)(double value, char *text);
} column;

static char *format_whole(double value, char *text)
{
    return qb_format_count(fabs(value) < 1e15 ? (int64_t)value : -1, text);
}

static const column intervention_columns[] = {{"ppl_untouched", qb_format_perplexity},
                                              {"ppl", qb_format_perplexity},
                                              {"loss_increase", qb_format_signed},
                                              {"values_set", format_whole}};
static const column massive_columns[] = {{"layer", format_whole},
                                         {"channel", format_whole},
                                         {"mean", qb_format_significant},
                                         {"std", qb_format_significant},
                                         {"count", format_whole},
                                         {"first_share", qb_format_percent},
                                         {"window_share", qb_format_percent}};

/* The first cell is the model's name, the second the item's, where items have one. */
static void write_items(qb_page *page, const char *key, const char *caption, const char *headings,
                        const column *columns, size_t n_columns, bool named)
{
    char name[QB_NAME_BYTES], t[QB_FORMAT_BYTES];
    if (!any_has(page, key)) return;
    qb_page_table_open(page, caption, headings);
    for (size_t i = 0; i < qb_page_n_analyses(page); i++) {
        const json_t *list = json_object_get(root_of(page, i), key);
        for (size_t k = 0; k < json_array_size(list) && k < MAX_ROWS; k++) {
            const json_t *item = json_array_get(list, k);
            qb_page_row_open(page, qb_page_analysis(page, i, name));
            if (named) qb_page_cell(page, qb_json_text_at(item, "name"));
            for (size_t c = 0; c < n_columns; c++)
                qb_page_number(page, columns[c].format(qb_json_real_at(item, columns[c].key), t));
            qb_page_row_close(page);
        }
    }
    qb_page_table_close(page);
}

/* ---- curves ---- */

typedef struct line {
    char name[QB_NAME_BYTES];
    double x[MAX_POINTS], y[MAX_POINTS];
    size_t n;
} line;

static void add_point(line *l, double x, double y)
{
    if (l->n == MAX_POINTS || !qb_is_drawable(x) || !qb_is_drawable(y)) return;
    if (x < QB_SCALE_LEAST || y < QB_SCALE_LEAST) return;
    l->x[l->n] = x;
    l->y[l->n++] = y;
}

static void write_lines_table(qb_page *page, const line *lines, size_t n, const char *title,
                              const char *x_name, const char *y_name)
{
    char t[QB_FORMAT_BYTES], columns[200];
    snprintf(columns, sizeof columns, "line|#%s|#%s", x_name, y_name);
    qb_page_details_open(page);
    qb_page_table_open(page, title, columns);
    for (size_t i = 0; i < n; i++)
        for (size_t k = 0; k < lines[i].n; k++) {
            qb_page_row_open(page, lines[i].name);
            qb_page_number(page, format_whole(lines[i].x[k], t));
            qb_page_number(page, qb_format_significant(lines[i].y[k], t));
            qb_page_row_close(page);
        }
    qb_page_table_close(page);
    qb_page_details_close(page);
}

static void write_lines(qb_page *page, const line *lines, size_t n, const qb_plot *plot)
{
    for (size_t i = 0; i < n; i++) {
        if (!lines[i].n) continue;
        fprintf(page->out, "<path class=\"curve s%zu\" d=\"", qb_page_run_colour(i));
        for (size_t k = 0; k < lines[i].n; k++)
            fprintf(page->out, "%c%.1f %.1f", k ? 'L' : 'M', qb_scale_at(&plot->x, lines[i].x[k]),
                    qb_scale_at(&plot->y, lines[i].y[k]));
        fputs("\"/>\n", page->out);
    }
}

static void write_line_legend(qb_page *page, const line *lines, size_t n)
{
    fputs("<ul class=\"legend\">\n", page->out);
    for (size_t i = 0; i < n; i++) {
        fprintf(page->out, "<li><i class=\"swatch b%zu\"></i>", qb_page_run_colour(i));
        qb_page_text(page, lines[i].name);
        fputs("</li>\n", page->out);
    }
    fputs("</ul>\n", page->out);
}

/* The y axis is logarithmic, and so is x where it spans positions. */
static void write_curves(qb_page *page, const line *lines, size_t n, bool log_x, const char *title,
                         const char *text, const char *x_name, const char *y_name)
{
    qb_range x = {0}, y = {0};
    char name[QB_NAME_BYTES];
    for (size_t i = 0; i < n; i++)
        for (size_t k = 0; k < lines[i].n; k++) {
            qb_range_add(&x, lines[i].x[k]);
            qb_range_add(&y, lines[i].y[k]);
        }
    if (!x.n) return;
    qb_plot plot = {
        .width = QB_SVG_WIDTH, .height = 260, .left = 52, .right = 14, .top = 26, .bottom = 44};
    plot.x = qb_scale_make(log_x ? QB_SCALE_LOG : QB_SCALE_LINEAR, x.low, x.high, 0);
    plot.y = qb_scale_make(QB_SCALE_LOG, y.low, y.high, 0);
    qb_page_figure_open(page, plot.height, title, text);
    qb_svg_axes(page->out, &plot, x_name, qb_page_axis_name(y_name, &plot.y, name));
    write_lines(page, lines, n, &plot);
    qb_page_figure_caption(page, title);
    write_line_legend(page, lines, n);
    write_lines_table(page, lines, n, title, x_name, y_name);
    qb_page_figure_close(page);
}

/* ---- norms by position ---- */

/* The mean over layers. */
static void fill_norms(const json_t *norms, const char *key, line *out)
{
    const json_t *at = json_object_get(norms, "position"),
                 *layers = json_object_get(norms, "layers");
    for (size_t k = 0; k < json_array_size(at); k++) {
        double sum = 0, n = 0;
        for (size_t l = 0; l < json_array_size(layers); l++) {
            const json_t *list = json_object_get(json_array_get(layers, l), key);
            const json_t *value = json_array_get(list, k);
            if (!json_is_number(value)) continue;
            sum += json_number_value(value);
            n++;
        }
        const json_t *position = json_array_get(at, k);
        if (json_is_number(position)) add_point(out, json_number_value(position), sum / n);
    }
}

static void write_norms(qb_page *page, line *lines)
{
    static const struct {
        const char *key, *title;
    } figures[] = {{"hidden", "Norm of hidden states by position"},
                   {"key", "Norm of keys by position"},
                   {"value", "Norm of values by position"}};
    size_t n = qb_page_n_analyses(page);
    for (size_t f = 0; f < QB_COUNT(figures); f++) {
        for (size_t i = 0; i < n; i++) {
            lines[i].n = 0;
            qb_page_analysis(page, i, lines[i].name);
            fill_norms(json_object_get(root_of(page, i), "norms_by_position"), figures[f].key,
                       &lines[i]);
        }
        write_curves(page, lines, n, true, figures[f].title,
                     "One line a model: the mean over windows and layers at each position.",
                     "position", "norm");
    }
}

/* ---- sinks ---- */

/* How alpha_1 is distributed: no threshold tells what a sink is. */
static void write_sinks(qb_page *page, line *lines)
{
    size_t n = qb_page_n_analyses(page);
    for (size_t i = 0; i < n; i++) {
        const json_t *bins =
            json_object_get(json_object_get(root_of(page, i), "sinks"), "alpha_1_bins");
        double n_bins = (double)json_array_size(bins);
        lines[i].n = 0;
        qb_page_analysis(page, i, lines[i].name);
        for (size_t k = 0; k < json_array_size(bins); k++) {
            const json_t *share = json_array_get(bins, k);
            if (json_is_number(share))
                add_point(&lines[i], 100 * ((double)k + 0.5) / n_bins,
                          100 * json_number_value(share));
        }
    }
    write_curves(
        page, lines, n, false, "Heads by their mean weight on the first key",
        "One line a model: of all windows and heads, how many give the first key that much "
        "of their attention.",
        "mean weight, %", "windows and heads, %");
}

/* ---- the optimiser's basis ---- */

static const struct {
    const char *key, *name;
} bases[] = {{"own", "X"}, {"q", "X Q"}, {"qt", "X Q^T"}, {"v", "X V"}};

/* arXiv:2410.17174, figure 6. */
static void write_basis(qb_page *page, size_t i, const char *part, line *lines)
{
    const json_t *list = json_object_get(root_of(page, i), "output_basis");
    char name[QB_NAME_BYTES], title[2 * QB_NAME_BYTES];
    for (size_t b = 0; b < QB_COUNT(bases); b++) {
        lines[b].n = 0;
        strcpy(lines[b].name, bases[b].name);
        for (size_t k = 0; k < json_array_size(list); k++) {
            const json_t *one = json_array_get(list, k);
            if (!strcmp(qb_json_text_at(one, "part"), part))
                add_point(&lines[b], qb_json_real_at(one, "layer"),
                          qb_json_real_at(json_object_get(one, bases[b].key), "rest"));
        }
    }
    snprintf(title, sizeof title, "Kurtosis of what %s adds, by basis: %s",
             strcmp(part, "mlp") ? "attention" : "the MLP", qb_page_analysis(page, i, name));
    write_curves(
        page, lines, QB_COUNT(bases), false, title,
        "One line a basis, over the layers: the model's own, that of the optimiser and its "
        "transpose, and the right singular vectors.",
        "layer", "kurtosis");
}

/* ---- weights by layer ---- */

/* "attn.o" of "h.3.attn.o". */
static const char *part_of(const char *name)
{
    const char *dot = strchr(name, '.');
    dot = dot ? strchr(dot + 1, '.') : NULL;
    return dot ? dot + 1 : name;
}

static line *line_named(line *lines, size_t *n, const char *name)
{
    char cut[QB_NAME_BYTES];
    qb_shorten(name, 24, cut);
    for (size_t i = 0; i < *n; i++)
        if (!strcmp(lines[i].name, cut)) return &lines[i];
    if (*n == MAX_LINES) return NULL;
    lines[*n].n = 0;
    strcpy(lines[*n].name, cut);
    return &lines[(*n)++];
}

static void write_weights(qb_page *page, size_t i, const char *key, const char *what, line *lines)
{
    const json_t *list = json_object_get(root_of(page, i), "weights");
    char name[QB_NAME_BYTES], title[2 * QB_NAME_BYTES];
    size_t n = 0;
    for (size_t k = 0; k < json_array_size(list); k++) {
        const json_t *weight = json_array_get(list, k);
        double layer = qb_json_real_at(weight, "layer");
        line *l =
            isnan(layer) ? NULL : line_named(lines, &n, part_of(qb_json_text_at(weight, "name")));
        if (l) add_point(l, layer, qb_json_real_at(weight, key));
    }
    snprintf(title, sizeof title, "%s by layer: %s", what, qb_page_analysis(page, i, name));
    write_curves(page, lines, n, false, title, "One line a kind of matrix, over the layers.",
                 "layer", what);
}

/* ---- heads ---- */

static void write_heads(qb_page *page)
{
    char name[QB_NAME_BYTES], t[QB_FORMAT_BYTES];
    bool open = false;
    for (size_t i = 0; i < qb_page_n_analyses(page); i++) {
        qb_head_spread found[MAX_HEADS];
        size_t n = qb_head_spreads(json_object_get(root_of(page, i), "heads"), found, MAX_HEADS);
        if (n && !open)
            qb_page_table_open(page, "Heads that sleep on one text and work on another",
                               "model|#layer|#head|#dormant queries, least|#most");
        open = open || n;
        for (size_t k = 0; k < n; k++) {
            qb_page_row_open(page, qb_page_analysis(page, i, name));
            qb_page_number(page, format_whole(found[k].layer, t));
            qb_page_number(page, format_whole(found[k].head, t));
            qb_page_number(page, qb_format_percent(found[k].least, t));
            qb_page_number(page, qb_format_percent(found[k].most, t));
            qb_page_row_close(page);
        }
    }
    if (open) qb_page_table_close(page);
}

/* ---- the section ---- */

bool qb_page_has_effects(const qb_page *page)
{
    for (size_t i = 0; i < qb_page_n_analyses(page); i++)
        if (json_object_get(root_of(page, i), "norms_by_position")) return true;
    return any_has(page, "interventions") || any_has(page, "massive") || any_has(page, "weights");
}

qb_status qb_page_effects(qb_page *page)
{
    line *lines;
    QB_TRY(QB_NEW_ZERO(&lines, MAX_LINES, "curves"));
    write_items(page, "interventions", "What an intervention costs",
                "model|intervention|#perplexity before|#after|#loss, nats|#values set",
                intervention_columns, QB_COUNT(intervention_columns), true);
    write_items(page, "massive", "Massive activations",
                "model|#layer|#channel|#mean|#deviation|#count|#on first tokens|#of windows",
                massive_columns, QB_COUNT(massive_columns), false);
    write_heads(page);
    fputs("<div class=\"figures\">\n", page->out);
    write_norms(page, lines);
    write_sinks(page, lines);
    for (size_t i = 0; i < qb_page_n_analyses(page); i++) {
        write_weights(page, i, "rms", "Root mean square of weights", lines);
        write_weights(page, i, "second_moment_mean", "Second moment of gradients", lines);
        write_basis(page, i, "attn", lines);
        write_basis(page, i, "mlp", lines);
    }
    fputs("</div>\n", page->out);
    qb_free(lines);
    return QB_OK;
}
