/* report/html_quality.c - the summary table, and what each scheme costs. */
#include "report/html_internal.h"

#include <math.h>

bool qb_has_quality(const qb_result *r)
{
    return !isnan(r->quality.ppl);
}

static bool has_penalty(const qb_result *r)
{
    return qb_is_drawable(r->quality.penalty);
}

/* ---- the table: a column is a row here ---- */

static char *ppl_text(const qb_result *r, char *text)
{
    return qb_format_perplexity(r->quality.ppl, text);
}

static char *kl_text(const qb_result *r, char *text)
{
    return qb_format_significant(r->quality.kl_mean, text);
}

static char *top1_text(const qb_result *r, char *text)
{
    return qb_format_percent(r->quality.top1_agreement, text);
}

static char *prefill_text(const qb_result *r, char *text)
{
    return qb_format_rate(&r->speed.prefill, text);
}

static char *decode_text(const qb_result *r, char *text)
{
    return qb_format_rate(&r->speed.decode, text);
}

static char *decode_ratio_text(const qb_result *r, char *text)
{
    return qb_format_ratio(&r->speed.decode, &r->speed.full.decode, text);
}

static char *weights_text(const qb_result *r, char *text)
{
    return qb_format_bytes(r->memory.weights_bytes, text);
}

static char *joule_text(const qb_result *r, char *text)
{
    return qb_format_significant(r->energy.j_per_token, text);
}

static const struct {
    const char *title;
    char *(*text)(const qb_result *r, char *text);
} columns[] = {
    {"#perplexity", ppl_text},
    {"#penalty [95 %]", qb_format_penalty},
    {"#KL, nats", kl_text},
    {"#same top-1", top1_text},
    {"#prefill, tokens/s", prefill_text},
    {"#decode, tokens/s", decode_text},
    {"#decode, × full", decode_ratio_text},
    {"#weights", weights_text},
    {"#energy, J/token", joule_text},
    {"quantised", qb_format_scheme},
};

/* A column of dashes says nothing. */
static bool is_measured(qb_page *page, size_t n, size_t column)
{
    char text[QB_FORMAT_BYTES];
    for (size_t i = 0; i < n; i++)
        if (columns[column].text(page->rows[i], text)[0] != '-' || text[1]) return true;
    return false;
}

/* Full precision as a record of its own, from what the others say of it; its texts are theirs. */
static qb_result full_of(const qb_result *r)
{
    qb_result full;
    qb_result_init(&full);
    full.quality.ppl = r->quality.ppl_full;
    full.speed.prefill = r->speed.full.prefill;
    full.speed.decode = r->speed.full.decode;
    full.speed.full = r->speed.full;
    full.memory.weights_bytes = r->memory.full_weights_bytes;
    return full;
}

static void write_row(qb_page *page, const qb_result *r, const char *model, const char *scheme,
                      const bool *shown)
{
    char text[QB_FORMAT_BYTES];
    qb_page_row_open(page, model);
    qb_page_scheme_cell(page, scheme);
    for (size_t c = 0; c < QB_COUNT(columns); c++) {
        if (!shown[c]) continue;
        const char *value = columns[c].text(r, text);
        if (columns[c].title[0] == '#')
            qb_page_number(page, value);
        else
            qb_page_cell(page, value);
    }
    qb_page_row_close(page);
}

static void write_table(qb_page *page, size_t n)
{
    bool shown[QB_COUNT(columns)];
    char heads[400], name[QB_NAME_BYTES];
    int length = snprintf(heads, sizeof heads, "model|scheme");
    for (size_t c = 0; c < QB_COUNT(columns); c++) {
        shown[c] = is_measured(page, n, c);
        if (shown[c])
            length +=
                snprintf(heads + length, sizeof heads - (size_t)length, "|%s", columns[c].title);
    }
    qb_page_table_open(page, "Every model and scheme", heads);
    for (size_t i = 0; i < n; i++) {
        const qb_result *r = page->rows[i];
        qb_page_model(page, r, name);
        if ((!i || !qb_same_model(page->rows[i - 1], r)) && !qb_result_is_full(r)) {
            qb_result full = full_of(r);
            write_row(page, &full, name, "full", shown);
        }
        write_row(page, r, name, qb_page_scheme(r), shown);
    }
    qb_page_table_close(page);
}

static bool has_any(const qb_result *r)
{
    (void)r;
    return true;
}

bool qb_page_has_summary(const qb_page *page)
{
    return page->report->results.n > 0;
}

qb_status qb_page_summary(qb_page *page)
{
    size_t at = 0, n;
    while ((n = qb_page_group(page, &at, has_any, qb_same_setting)) > 0) {
        fputs("<p>", page->out);
        qb_page_say_quality(page, page->rows[0]);
        qb_page_say_speed(page, page->rows[0]);
        fputs("</p>\n", page->out);
        write_table(page, n);
    }
    fputs(
        "<p class=\"note\">Penalty: perplexity of the scheme minus that of full precision on the "
        "same tokens, with its 95&nbsp;% interval. KL: mean divergence of the next-token "
        "distribution from full precision. Same top-1: share of tokens with the same likeliest "
        "continuation. Speed: medians, and half the width of their 95&nbsp;% intervals. 1&nbsp;MB "
        "is 10<sup>6</sup> bytes.</p>\n",
        page->out);
    return QB_OK;
}

/* ---- penalties as bars ---- */

static void write_penalty_table(qb_page *page, size_t n)
{
    char t[QB_FORMAT_BYTES], name[QB_NAME_BYTES];
    qb_page_details_open(page);
    qb_page_table_open(page, "Penalty in perplexity",
                       "scheme|model|#perplexity, full|#perplexity|#penalty|#95 % from|#to");
    for (size_t i = 0; i < n; i++) {
        const qb_result *r = page->rows[i];
        qb_page_row_open(page, qb_page_scheme(r));
        qb_page_cell(page, qb_page_model(page, r, name));
        qb_page_number(page, qb_format_perplexity(r->quality.ppl_full, t));
        qb_page_number(page, qb_format_perplexity(r->quality.ppl, t));
        qb_page_number(page, qb_format_signed(r->quality.penalty, t));
        qb_page_number(page, qb_format_signed(r->quality.penalty_ci95.low, t));
        qb_page_number(page, qb_format_signed(r->quality.penalty_ci95.high, t));
        qb_page_row_close(page);
    }
    qb_page_table_close(page);
    qb_page_details_close(page);
}

/* Schemes in the order of appearance, the models of each below one another. */
static size_t fill_bars(qb_page *page, size_t n, qb_bar *bars)
{
    size_t k = 0;
    for (size_t s = 0; s < page->schemes.n; s++)
        for (size_t i = 0; i < n; i++) {
            const qb_result *r = page->rows[i];
            if (!qb_same_text(qb_page_scheme(r), page->schemes.items[s])) continue;
            qb_bar *b = &bars[k++];
            *b = (qb_bar){.group = qb_page_scheme(r),
                          .colour = qb_page_colour(page, qb_page_scheme(r)),
                          .value = r->quality.penalty,
                          .ci = r->quality.penalty_ci95};
            qb_page_model(page, r, b->label);
            qb_format_penalty(r, b->text);
        }
    return k;
}

bool qb_page_has_penalty(const qb_page *page)
{
    return qb_page_any(page, has_penalty);
}

static void write_penalty(qb_page *page, size_t n_rows, void *bars)
{
    size_t n = fill_bars(page, n_rows, bars);
    qb_page_bars(page, bars, n, QB_SCALE_SYMLOG, "penalty, perplexity",
                 "Penalty of each scheme and model",
                 "Bars show the perplexity that a scheme adds to full precision; the thin line "
                 "over each is its 95 % interval. Shorter is better.");
    qb_page_figure_caption(page, "Penalty with its 95 % interval; shorter is better");
    fputs("<p class=\"note\">", page->out);
    qb_page_say_quality(page, page->rows[0]);
    if (n > QB_PAGE_MAX_BARS)
        fprintf(page->out, "The first %d of %zu are drawn.", QB_PAGE_MAX_BARS, n);
    fputs("</p>\n", page->out);
    write_penalty_table(page, n);
    qb_page_figure_close(page);
}

qb_status qb_page_penalty(qb_page *page)
{
    return qb_page_figures(page, has_penalty, qb_same_quality, sizeof(qb_bar), write_penalty);
}
