/* report/html_parts.c - what the sections are made of: names, groups, tables, figures. */
#include "report/html_internal.h"

#include "core/memory.h"

#include <math.h>
#include <string.h>

/* ---- text, names, colours ---- */

void qb_page_text(qb_page *page, const char *text)
{
    qb_xml_text(text ? text : "-", page->out);
}

static bool shares_name(const qb_page *page, const qb_result *r)
{
    const qb_results *all = &page->report->results;
    for (size_t i = 0; i < all->n; i++)
        if (qb_same_text(all->items[i].model.name, r->model.name) &&
            !qb_same_text(all->items[i].model.sha256, r->model.sha256))
            return true;
    return false;
}

char *qb_page_model(const qb_page *page, const qb_result *r, char *text)
{
    bool shared = shares_name(page, r);
    qb_shorten(r->model.name ? r->model.name : "unnamed", shared ? 19 : 30, text);
    if (shared)
        snprintf(text + strlen(text), 16, " (%.8s)", r->model.sha256 ? r->model.sha256 : "?");
    return text;
}

const char *qb_page_scheme(const qb_result *r)
{
    return r->scheme.name ? r->scheme.name : "unnamed";
}

static size_t place_of(const qb_texts *texts, const char *text)
{
    for (size_t i = 0; i < texts->n; i++)
        if (!strcmp(texts->items[i], text)) return i;
    return 0;
}

/* A known scheme has the same colour on every page; the others take what is left, in the order of
 * appearance. */
size_t qb_page_colour(const qb_page *page, const char *scheme)
{
    static const char *const known[] = {
        "full",       "fine",          "fine-channel",      "moderate",        "coarse",
        "zeropoint4", "zeropoint4-in", "zeropoint4-tensor", "zeropoint4-g128", "llm-int8",
        "smoothquant"};
    enum { N_KNOWN = QB_COUNT(known), N_FREE = QB_SVG_N_COLOURS - N_KNOWN };
    for (size_t i = 0; i < N_KNOWN; i++)
        if (!strcmp(known[i], scheme)) return i;
    return N_KNOWN + place_of(&page->schemes, scheme) % N_FREE;
}

size_t qb_page_marker(const qb_page *page, const qb_result *r)
{
    char name[QB_NAME_BYTES];
    return place_of(&page->models, qb_page_model(page, r, name)) % QB_SVG_N_MARKERS;
}

/* ---- groups ---- */

bool qb_same_text(const char *a, const char *b)
{
    return a == b || (a && b && !strcmp(a, b));
}

bool qb_same_model(const qb_result *a, const qb_result *b)
{
    return qb_same_text(a->model.name, b->model.name) &&
           qb_same_text(a->model.sha256, b->model.sha256);
}

bool qb_same_quality(const qb_result *a, const qb_result *b)
{
    return qb_same_text(a->text.sha256, b->text.sha256) && a->text.tokens == b->text.tokens &&
           qb_same_text(a->protocol.name, b->protocol.name) &&
           a->protocol.context == b->protocol.context && a->protocol.stride == b->protocol.stride &&
           a->protocol.batch == b->protocol.batch &&
           a->protocol.scored_tokens == b->protocol.scored_tokens;
}

bool qb_same_machine(const qb_result *a, const qb_result *b)
{
    return qb_same_text(a->environment.device, b->environment.device) &&
           qb_same_text(a->environment.cpu, b->environment.cpu) &&
           qb_same_text(a->environment.gpu.name, b->environment.gpu.name) &&
           a->environment.threads == b->environment.threads && a->speed.batch == b->speed.batch &&
           a->speed.context == b->speed.context;
}

bool qb_same_setting(const qb_result *a, const qb_result *b)
{
    return qb_same_quality(a, b) && qb_same_machine(a, b);
}

size_t qb_page_group(qb_page *page, size_t *at, qb_page_has has, qb_page_same same)
{
    const qb_result *all = page->report->results.items;
    size_t n_all = page->report->results.n, n = 0;
    for (; *at < n_all && !n; (*at)++) {
        bool is_first = has(&all[*at]);
        for (size_t i = 0; i < *at && is_first; i++)
            is_first = !(has(&all[i]) && same(&all[i], &all[*at]));
        if (!is_first) continue;
        for (size_t i = *at; i < n_all; i++)
            if (has(&all[i]) && same(&all[*at], &all[i])) page->rows[n++] = &all[i];
    }
    return n;
}

bool qb_page_any(const qb_page *page, qb_page_has has)
{
    for (size_t i = 0; i < page->report->results.n; i++)
        if (has(&page->report->results.items[i])) return true;
    return false;
}

qb_status qb_page_figures(qb_page *page, qb_page_has has, qb_page_same same, size_t item_bytes,
                          qb_page_write write)
{
    void *items;
    size_t at = 0, n;
    QB_TRY(qb_alloc(&items, page->report->results.n, item_bytes, "figures"));
    fputs("<div class=\"figures\">\n", page->out);
    while ((n = qb_page_group(page, &at, has, same)) > 0) write(page, n, items);
    fputs("</div>\n", page->out);
    qb_free(items);
    return QB_OK;
}

static void say_count(qb_page *page, const char *before, int64_t n, const char *after)
{
    char t[QB_FORMAT_BYTES];
    if (n >= 0) fprintf(page->out, "%s%s%s", before, qb_format_count(n, t), after);
}

void qb_page_say_quality(qb_page *page, const qb_result *r)
{
    if (!qb_has_quality(r)) return;
    fputs("Perplexity on the text <b>", page->out);
    qb_page_text(page, r->text.name);
    fputs("</b>, protocol ", page->out);
    qb_page_text(page, r->protocol.name);
    say_count(page, ", context ", r->protocol.context, " tokens");
    say_count(page, ", ", r->protocol.batch, " windows a forward pass");
    say_count(page, "; ", r->protocol.scored_tokens, " tokens scored");
    fputs(". ", page->out);
}

void qb_page_say_speed(qb_page *page, const qb_result *r)
{
    if (!qb_has_speed(r)) return;
    fputs("Speed on ", page->out);
    qb_page_text(page, r->environment.gpu.name ? r->environment.gpu.name : r->environment.cpu);
    if (!r->environment.gpu.name) say_count(page, ", ", r->environment.threads, " threads");
    say_count(page, ", batch ", r->speed.batch, "");
    say_count(page, ", prefill of ", r->speed.context, " tokens");
    fputs(". ", page->out);
}

/* ---- figures ---- */

void qb_page_details_open(qb_page *page)
{
    fputs("<details><summary>The numbers of this figure</summary>\n", page->out);
}

void qb_page_details_close(qb_page *page)
{
    fputs("</details>\n", page->out);
}

void qb_page_figure_open(qb_page *page, double height, const char *title, const char *text)
{
    fputs("<figure>\n", page->out);
    qb_svg_open(page->out, page->n_figures++, height, title, text);
}

void qb_page_figure_caption(qb_page *page, const char *title)
{
    qb_svg_close(page->out);
    fputs("<figcaption><b>", page->out);
    qb_page_text(page, title);
    fputs("</b></figcaption>\n", page->out);
}

void qb_page_figure_close(qb_page *page)
{
    fputs("</figure>\n", page->out);
}

void qb_page_legend(qb_page *page, size_t marker, size_t colour, const char *name)
{
    fputs("<li><svg aria-hidden=\"true\" viewBox=\"0 0 14 14\" class=\"key\">", page->out);
    qb_svg_marker(page->out, marker, 7, 7, colour, NULL);
    fputs("</svg>", page->out);
    qb_page_text(page, name);
    fputs("</li>\n", page->out);
}

char *qb_page_axis_name(const char *name, const qb_scale *scale, char *text)
{
    char t[QB_FORMAT_BYTES];
    if (scale->kind == QB_SCALE_SYMLOG)
        snprintf(text, QB_NAME_BYTES, "%s (linear up to %s, then logarithmic)", name,
                 qb_scale_tick_text(scale, scale->linear_to, t));
    else
        snprintf(text, QB_NAME_BYTES, "%s%s", name,
                 scale->kind == QB_SCALE_LOG ? " (logarithmic)" : "");
    return text;
}

/* ---- bars ---- */

enum { BAR_ROW = 32, BAR_HEADING = 26, BAR_AXIS = 44, BAR_MARGIN = 10 };
enum { BAR_CHARS = 52 }; /* of label and value, that they do not meet */

static bool starts_group(const qb_bar *bars, size_t i)
{
    return bars[i].group && (!i || strcmp(bars[i - 1].group, bars[i].group));
}

static void write_bar(FILE *out, const qb_bar *b, const qb_scale *x, double top)
{
    double y = top + 18, height = 9;
    int room = BAR_CHARS - qb_text_columns(b->text);
    char label[QB_NAME_BYTES];
    qb_svg_text(out, BAR_MARGIN, top + 13, "start",
                qb_shorten(b->label, room > 8 ? (size_t)room : 8, label));
    qb_svg_text(out, QB_SVG_WIDTH - BAR_MARGIN, top + 13, "end value", b->text);
    if (!qb_is_drawable(b->value)) return;
    double zero = qb_scale_at(x, 0), at = qb_scale_at(x, b->value);
    fprintf(out,
            "<rect class=\"bar f%zu\" x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.0f\"/>\n",
            b->colour, fmin(zero, at), y, fmax(fabs(at - zero), 0.8), height);
    if (!qb_is_drawable(b->ci.low) || !qb_is_drawable(b->ci.high)) return;
    double low = qb_scale_at(x, b->ci.low), high = qb_scale_at(x, b->ci.high);
    double middle = y + height / 2;
    fprintf(out, "<path class=\"ci\" d=\"M%.1f %.1fH%.1fM%.1f %.1fv6M%.1f %.1fv6\"/>\n", low,
            middle, high, low, middle - 3, high, middle - 3);
}

void qb_page_bars(qb_page *page, const qb_bar *bars, size_t n, qb_scale_kind kind, const char *axis,
                  const char *title, const char *text)
{
    qb_range range = {0};
    double height = BAR_AXIS + 4, y = 2;
    if (n > QB_PAGE_MAX_BARS) n = QB_PAGE_MAX_BARS;
    for (size_t i = 0; i < n; i++) {
        qb_range_add(&range, bars[i].value);
        qb_range_widen(&range, bars[i].ci.low);
        qb_range_widen(&range, bars[i].ci.high);
        height += BAR_ROW + (starts_group(bars, i) ? BAR_HEADING : 0);
    }
    qb_scale x = kind == QB_SCALE_LINEAR
                     ? qb_scale_make(kind, fmin(range.low, 0), fmax(range.high, 0), 0)
                     : qb_scale_from_zero(&range);
    char name[QB_NAME_BYTES], heading[180];
    x.from = BAR_MARGIN - 4;
    x.to = QB_SVG_WIDTH - BAR_MARGIN - 4;
    qb_page_figure_open(page, height, title, text);
    qb_svg_x_axis(page->out, &x, 2, height - BAR_AXIS, qb_page_axis_name(axis, &x, name));
    for (size_t i = 0; i < n; i++) {
        if (starts_group(bars, i)) {
            qb_svg_text(page->out, BAR_MARGIN, y + 19, "start head",
                        qb_shorten(bars[i].group, 44, heading));
            y += BAR_HEADING;
        }
        write_bar(page->out, &bars[i], &x, y);
        y += BAR_ROW;
    }
}
