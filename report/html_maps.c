/* report/html_maps.c - attention maps, hidden states and heads as heat maps.
 *
 * Nine levels, each from a bound of the series 1, 2, 5 up to the next; one path a level, in which
 * neighbours of a row are one rectangle. What is below the lowest bound is not drawn. */
#include "report/html_internal.h"

#include <math.h>

enum { N_LEVELS = 9, MAX_MAPS = 24, COARSE = 8, LEFT = 52, TOP = 26, SIDE = 330, BOTTOM = 44 };

/* ---- levels ---- */

typedef struct levels {
    double bounds[N_LEVELS]; /* ascending */
} levels;

/* Down from the largest 1, 2 or 5 times a power of ten that is not above `highest`. */
static levels levels_below(double highest)
{
    static const double steps[] = {1, 2, 5};
    levels out;
    int decade = (int)floor(log10(highest) + 1e-9), s = 0;
    for (int i = 2; i > 0 && !s; i--)
        if (steps[i] * pow(10, decade) <= highest * (1 + 1e-9)) s = i;
    for (int i = N_LEVELS; i-- > 0; s--) {
        if (s < 0) s = 2, decade--;
        out.bounds[i] = steps[s] * pow(10, decade);
    }
    return out;
}

/* -1 = below all. */
static int level_of(const levels *l, double value)
{
    int level = -1;
    while (level + 1 < N_LEVELS && value >= l->bounds[level + 1] * (1 - 1e-12)) level++;
    return level;
}

static double highest_of(const qb_grid *grid)
{
    double most = 0;
    for (size_t i = 0; i < grid->n_rows * grid->n_cols; i++)
        if (qb_is_drawable(grid->cells[i])) most = fmax(most, grid->cells[i]);
    return most;
}

/* ---- one map ---- */

typedef struct map {
    const qb_grid *grid;
    const char *title, *text, *unit;
    const char *x_name, *y_name;
    int64_t x_last, y_last; /* what the last column and row stand for; the first stand for 1 */
    levels levels;
    bool largest; /* cells hold largest values, not means */
} map;

static void write_level(FILE *out, const map *m, int level)
{
    bool any = false;
    for (size_t r = 0; r < m->grid->n_rows; r++)
        for (size_t c = 0, end; c < m->grid->n_cols; c = end) {
            const double *row = m->grid->cells + r * m->grid->n_cols;
            for (end = c + 1; end < m->grid->n_cols; end++)
                if (level_of(&m->levels, row[end]) != level_of(&m->levels, row[c])) break;
            if (level_of(&m->levels, row[c]) != level) continue;
            if (!any) fprintf(out, "<path class=\"h%d\" d=\"", level);
            any = true;
            fprintf(out, "M%zu %zuh%zuv1h-%zuz", c, r, end - c, end - c);
        }
    if (any) fputs("\"/>\n", out);
}

static void write_ends(FILE *out, const map *m, double width, double height)
{
    char t[QB_FORMAT_BYTES];
    qb_svg_text(out, LEFT, TOP + height + 16, "start", "1");
    qb_svg_text(out, LEFT + width, TOP + height + 16, "end", qb_format_count(m->x_last, t));
    qb_svg_text(out, LEFT - 6, TOP + 11, "end", "1");
    qb_svg_text(out, LEFT - 6, TOP + height, "end", qb_format_count(m->y_last, t));
    qb_svg_text(out, LEFT + width / 2, TOP + height + 35, "middle name", m->x_name);
    qb_svg_text(out, 2, 14, "start name", m->y_name);
}

static void write_levels(qb_page *page, const map *m)
{
    fprintf(page->out, "<ul class=\"legend\"><li>%s, from</li>\n", m->unit);
    for (int i = 0; i < N_LEVELS; i++)
        fprintf(page->out, "<li><i class=\"swatch g%d\"></i>%g</li>\n", i, m->levels.bounds[i]);
    fputs("</ul>\n", page->out);
}

/* Of rows begin to end and columns alike: the mean, or the largest. */
static double coarse_value(const map *m, size_t row, size_t row_end, size_t col, size_t col_end)
{
    double sum = 0, most = NAN;
    size_t n = 0;
    for (size_t r = row; r < row_end; r++)
        for (size_t c = col; c < col_end; c++) {
            double value = m->grid->cells[r * m->grid->n_cols + c];
            if (isnan(value)) continue;
            sum += value;
            most = n++ ? fmax(most, value) : value;
        }
    return m->largest ? most : sum / (double)n;
}

static void span_text(size_t begin, size_t end, size_t n, int64_t last, char *text)
{
    double scale = last > 0 ? (double)last / (double)n : 1;
    int64_t from = (int64_t)floor((double)begin * scale) + 1;
    int64_t to = (int64_t)ceil((double)end * scale - 1e-9);
    if (from >= to)
        snprintf(text, QB_FORMAT_BYTES, "%lld", (long long)from);
    else
        snprintf(text, QB_FORMAT_BYTES, "%lld to %lld", (long long)from, (long long)to);
}

/* The table behind: in at most 8 x 8 parts, since nobody reads thousands of cells. */
static void write_coarse(qb_page *page, const map *m)
{
    const qb_grid *g = m->grid;
    char columns[COARSE * 40 + 40], t[QB_FORMAT_BYTES];
    size_t n_rows = g->n_rows < COARSE ? g->n_rows : COARSE;
    size_t n_cols = g->n_cols < COARSE ? g->n_cols : COARSE;
    size_t at = (size_t)snprintf(columns, sizeof columns, "%s", m->y_name);
    for (size_t c = 0; c < n_cols; c++) {
        span_text(c * g->n_cols / n_cols, (c + 1) * g->n_cols / n_cols, g->n_cols, m->x_last, t);
        at += (size_t)snprintf(columns + at, sizeof columns - at, "|#%.30s", t);
    }
    qb_page_details_open(page);
    qb_page_table_open(page, m->title, columns);
    for (size_t r = 0; r < n_rows; r++) {
        size_t row = r * g->n_rows / n_rows, row_end = (r + 1) * g->n_rows / n_rows;
        span_text(row, row_end, g->n_rows, m->y_last, t);
        qb_page_row_open(page, t);
        for (size_t c = 0; c < n_cols; c++) {
            double value =
                coarse_value(m, row, row_end, c * g->n_cols / n_cols, (c + 1) * g->n_cols / n_cols);
            qb_page_number(page, qb_format_significant(value, t));
        }
        qb_page_row_close(page);
    }
    qb_page_table_close(page);
    qb_page_details_close(page);
}

static void write_map(qb_page *page, const map *m)
{
    const qb_grid *g = m->grid;
    double width = SIDE, height = g->n_rows >= 32 ? SIDE : fmax(10.0 * (double)g->n_rows, 40);
    qb_page_figure_open(page, TOP + height + BOTTOM, m->title, m->text);
    fprintf(page->out, "<g class=\"map\" transform=\"translate(%d %d) scale(%.4f %.4f)\">\n", LEFT,
            TOP, width / (double)g->n_cols, height / (double)g->n_rows);
    for (int level = 0; level < N_LEVELS; level++) write_level(page->out, m, level);
    fputs("</g>\n", page->out);
    fprintf(page->out, "<path class=\"box\" d=\"M%d %dh%.0fv%.0fh-%.0fz\"/>\n", LEFT, TOP, width,
            height, width);
    write_ends(page->out, m, width, height);
    qb_page_figure_caption(page, m->title);
    write_levels(page, m);
    write_coarse(page, m);
    qb_page_figure_close(page);
}

/* ---- all maps ---- */

static void layer_name(int64_t layer, char text[40])
{
    if (layer < 0)
        snprintf(text, 40, "mean over layers");
    else
        snprintf(text, 40, "layer %lld", (long long)layer);
}

static void write_attention(qb_page *page, const char *model, const qb_analysis_record *a,
                            const qb_analysis_map *of)
{
    char title[QB_NAME_BYTES + 60], layer[40];
    layer_name(of->layer, layer);
    snprintf(title, sizeof title, "Attention of %s, %s", model, layer);
    const map m = {.grid = &of->attention,
                   .title = title,
                   .text =
                       "Rows are queries, columns keys; darker, on a dark page lighter, is more "
                       "weight. A column at the left edge is attention on the first token.",
                   .unit = "weight",
                   .x_name = "key",
                   .y_name = "query",
                   .x_last = a->context,
                   .y_last = a->context,
                   .levels = levels_below(0.5)};
    if (highest_of(&of->attention) > 0) write_map(page, &m);
}

static void write_hidden(qb_page *page, const char *model, const qb_analysis_record *a,
                         const qb_analysis_map *of, double highest)
{
    char title[QB_NAME_BYTES + 60], layer[40];
    layer_name(of->layer, layer);
    snprintf(title, sizeof title, "Hidden state of %s, %s", model, layer);
    const map m = {.grid = &of->hidden,
                   .title = title,
                   .text =
                       "Rows are positions, columns channels; darker, on a dark page lighter, is "
                       "a larger magnitude. A column of its own is an outlier channel, a row at "
                       "the top an outlier token.",
                   .unit = "max |x|",
                   .x_name = "channel",
                   .y_name = "position",
                   .x_last = a->channels,
                   .y_last = a->context,
                   .levels = levels_below(highest),
                   .largest = true};
    if (highest_of(&of->hidden) >= QB_SCALE_LEAST) write_map(page, &m);
}

static void write_heads(qb_page *page, const char *model, const qb_analysis_record *a)
{
    char title[QB_NAME_BYTES + 60];
    snprintf(title, sizeof title, "Heads of %s: weight on the first token", model);
    const map m = {.grid = &a->heads,
                   .title = title,
                   .text =
                       "Rows are layers, columns heads; darker, on a dark page lighter, is more "
                       "weight on the first token.",
                   .unit = "weight",
                   .x_name = "head",
                   .y_name = "layer",
                   .x_last = (int64_t)a->heads.n_cols,
                   .y_last = (int64_t)a->heads.n_rows,
                   .levels = levels_below(0.5)};
    if (highest_of(&a->heads) > 0) write_map(page, &m);
}

static bool has_maps(const qb_analysis_record *a)
{
    return a->n_maps > 0 || a->heads.n_rows > 0;
}

bool qb_page_has_maps(const qb_page *page)
{
    for (size_t i = 0; i < qb_page_n_analyses(page); i++)
        if (has_maps(&page->report->analyses[i])) return true;
    return false;
}

/* Of all hidden states on the page, so that their colours can be compared. */
static double highest_hidden(const qb_page *page)
{
    double most = QB_SCALE_LEAST;
    for (size_t i = 0; i < qb_page_n_analyses(page); i++)
        for (size_t k = 0; k < page->report->analyses[i].n_maps; k++)
            most = fmax(most, highest_of(&page->report->analyses[i].maps[k].hidden));
    return most;
}

static void write_pairs(qb_page *page)
{
    char name[QB_NAME_BYTES];
    double highest = highest_hidden(page);
    size_t n = 0;
    fputs("<div class=\"figures\">\n", page->out);
    for (size_t i = 0; i < qb_page_n_analyses(page); i++) {
        const qb_analysis_record *a = &page->report->analyses[i];
        qb_page_analysis(page, i, name);
        for (size_t k = 0; k < a->n_maps && n < MAX_MAPS; k++, n++) {
            write_attention(page, name, a, &a->maps[k]);
            write_hidden(page, name, a, &a->maps[k], highest);
        }
    }
    fputs("</div>\n", page->out);
    if (!n) return;
    fputs("<p class=\"note\">Attention and hidden states are of the first window: weights as means "
          "over heads, magnitudes as largest values of a cell; the tables behind have parts of the "
          "map.</p>\n",
          page->out);
}

qb_status qb_page_maps(qb_page *page)
{
    char name[QB_NAME_BYTES];
    fputs("<div class=\"figures\">\n", page->out);
    for (size_t i = 0; i < qb_page_n_analyses(page); i++)
        write_heads(page, qb_page_analysis(page, i, name), &page->report->analyses[i]);
    fputs("</div>\n", page->out);
    write_pairs(page);
    return QB_OK;
}
