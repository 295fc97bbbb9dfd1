/* report/write_compare.c - a comparison on the screen, as Markdown and as JSON. */
#include "report/compare.h"
#include "report/format.h"

#include <math.h>
#include <string.h>

/* ---- a change in words ---- */

static char *format_change(const qb_figure *figure, double value, char *text)
{
    char digits[QB_FORMAT_BYTES];
    double size = fabs(figure->percent ? 100 * value : value);
    if (isinf(value))
        strcpy(digits, "infinite");
    else if (figure->percent && size < 99.95)
        snprintf(digits, sizeof digits, "%.2f", size);
    else
        qb_format_significant(size, digits);
    snprintf(text, QB_FORMAT_BYTES, "%c%.40s", value < 0 ? '-' : '+', digits);
    return text;
}

char *qb_change_text(qb_figure_id id, const qb_draws *change, char text[QB_CHANGE_BYTES])
{
    const qb_figure *figure = &qb_figures[id];
    const char *unit = !figure->percent ? "" : figure->relative ? " %" : " points";
    char value[QB_FORMAT_BYTES], low[QB_FORMAT_BYTES], high[QB_FORMAT_BYTES];
    if (isnan(change->estimate)) return strcpy(text, "-");
    if (change->estimate == 0 && change->deviation == 0) return strcpy(text, "equal");
    format_change(figure, change->estimate, value);
    if (isnan(change->ci95.low) || change->ci95.low == change->ci95.high)
        snprintf(text, QB_CHANGE_BYTES, "%.24s%s", value, unit);
    else
        snprintf(text, QB_CHANGE_BYTES, "%.20s%s [%.20s, %.20s]", value, unit,
                 format_change(figure, change->ci95.low, low),
                 format_change(figure, change->ci95.high, high));
    return text;
}

const char *qb_pair_source_text(const qb_pair *pair, char text[QB_CHANGE_BYTES])
{
    char count[QB_FORMAT_BYTES];
    const char *from =
        pair->source == QB_FROM_TOKENS ? "the losses of each token" : "the records' sums";
    if (pair->source == QB_FROM_NOTHING) return NULL;
    if (pair->source == QB_FROM_INTERVALS)
        return strcpy(text, "quality from the records' intervals");
    snprintf(text, QB_CHANGE_BYTES, "quality from %s, %s windows in pairs", from,
             qb_format_count((int64_t)pair->n_windows, count));
    return text;
}

static bool is_measured(const qb_change *c)
{
    return !isnan(c->change.estimate);
}

static const char *or_unnamed(const char *name)
{
    return name ? name : "-";
}

/* ---- screen ---- */

static void write_rows(const qb_pair *pair, bool colour, FILE *stream)
{
    static const char *const colours[] = {[QB_SAME] = "",
                                          [QB_BETTER] = "\033[32m",
                                          [QB_WORSE] = "\033[31m",
                                          [QB_UNSURE] = "\033[33m"};
    for (size_t i = 0; i < QB_FIGURE_COUNT; i++) {
        const qb_change *c = &pair->changes[i];
        char before[QB_FORMAT_BYTES], after[QB_FORMAT_BYTES], change[QB_CHANGE_BYTES];
        if (!is_measured(c)) continue;
        const char *tint = colour ? colours[c->verdict] : "";
        fprintf(stream, "%-16s %9s %9s  %-34s %s%s%s\n", qb_figures[i].name,
                qb_figures[i].format(c->a, before), qb_figures[i].format(c->b, after),
                qb_change_text((qb_figure_id)i, &c->change, change), tint,
                qb_verdict_names[c->verdict], *tint ? "\033[0m" : "");
    }
    char source[QB_CHANGE_BYTES];
    if (qb_pair_source_text(pair, source)) qb_write_wrapped(stream, 0, source);
    for (size_t i = 0; i < pair->notes.n; i++)
        qb_write_labelled(stream, "note:", 6, "%s", pair->notes.items[i]);
}

static void write_only(const qb_texts *texts, const char *name, const char *begin, const char *end,
                       FILE *stream)
{
    for (size_t i = 0; i < texts->n; i++)
        fprintf(stream, "%sonly in %s: %s%s", begin, name, texts->items[i], end);
}

qb_status qb_comparison_write_screen(const qb_comparison *comparison, bool colour, FILE *stream)
{
    fprintf(stream, "A  %s\nB  %s\n", comparison->name_a, comparison->name_b);
    for (size_t i = 0; i < comparison->n; i++) {
        const qb_pair *pair = &comparison->pairs[i];
        const char *a = or_unnamed(pair->a->model.name), *b = or_unnamed(pair->b->model.name);
        fprintf(stream, "\n%s%s%s, %s\n", a, strcmp(a, b) ? " -> " : "", strcmp(a, b) ? b : "",
                or_unnamed(pair->a->scheme.name));
        fprintf(stream, "%-16s %9s %9s  %-34s %s\n", "", "A", "B", "change [95 %]", "verdict");
        write_rows(pair, colour, stream);
    }
    if (comparison->only_a.n + comparison->only_b.n) fputc('\n', stream);
    write_only(&comparison->only_a, "A", "", "\n", stream);
    write_only(&comparison->only_b, "B", "", "\n", stream);
    return QB_OK;
}

/* ---- Markdown ---- */

static void write_note(const qb_pair *pair, const char *text, FILE *stream)
{
    fprintf(stream, "\n- %s, %s: %s", or_unnamed(pair->b->model.name),
            or_unnamed(pair->b->scheme.name), text);
}

qb_status qb_comparison_write_markdown(const qb_comparison *comparison, FILE *stream)
{
    char t[QB_CHANGE_BYTES];
    fprintf(stream,
            "A is `%s`, B is `%s`.\n\n| model | scheme | figure | A | B | change [95 %%] | verdict "
            "|\n|---|---|---|---:|---:|---:|---|\n",
            comparison->name_a, comparison->name_b);
    for (size_t i = 0; i < comparison->n; i++)
        for (size_t f = 0; f < QB_FIGURE_COUNT; f++) {
            const qb_pair *pair = &comparison->pairs[i];
            const qb_change *c = &pair->changes[f];
            if (!is_measured(c)) continue;
            fputc('|', stream);
            qb_markdown_cell(pair->b->model.name, stream);
            qb_markdown_cell(pair->b->scheme.name, stream);
            qb_markdown_cell(qb_figures[f].name, stream);
            qb_markdown_cell(qb_figures[f].format(c->a, t), stream);
            qb_markdown_cell(qb_figures[f].format(c->b, t), stream);
            qb_markdown_cell(qb_change_text((qb_figure_id)f, &c->change, t), stream);
            qb_markdown_cell(qb_verdict_names[c->verdict], stream);
            fputc('\n', stream);
        }
    for (size_t i = 0; i < comparison->n; i++) {
        const qb_pair *pair = &comparison->pairs[i];
        const char *source = qb_pair_source_text(pair, t);
        if (source) write_note(pair, source, stream);
        for (size_t k = 0; k < pair->notes.n; k++) write_note(pair, pair->notes.items[k], stream);
    }
    write_only(&comparison->only_a, "A", "\n- ", "", stream);
    write_only(&comparison->only_b, "B", "\n- ", "", stream);
    fputc('\n', stream);
    return QB_OK;
}

/* ---- JSON ---- */

static json_t *interval_to_json(const qb_interval *ci)
{
    if (!isfinite(ci->low) || !isfinite(ci->high)) return json_null();
    return json_pack("[f, f]", ci->low, ci->high);
}

static json_t *change_to_json(const qb_figure *figure, const qb_change *c)
{
    return json_pack("{s:o, s:o, s:o, s:o, s:b, s:o, s:s}", "a", qb_json_real(c->a), "b",
                     qb_json_real(c->b), "change", qb_json_real(c->change.estimate), "change_ci95",
                     interval_to_json(&c->change.ci95), "relative", (int)figure->relative,
                     "mann_whitney_p", qb_json_real(c->u_p), "verdict",
                     qb_verdict_names[c->verdict]);
}

static json_t *texts_to_json(const qb_texts *texts)
{
    json_t *list = json_array();
    for (size_t i = 0; i < texts->n; i++) json_array_append_new(list, json_string(texts->items[i]));
    return list;
}

static json_t *pair_to_json(const qb_pair *pair)
{
    json_t *figures = json_object();
    for (size_t f = 0; f < QB_FIGURE_COUNT; f++)
        if (is_measured(&pair->changes[f]))
            json_object_set_new(figures, qb_figures[f].key,
                                change_to_json(&qb_figures[f], &pair->changes[f]));
    return json_pack("{s:s?, s:s?, s:s?, s:s?, s:I, s:o, s:o}", "model", pair->a->model.name,
                     "model_b", pair->b->model.name, "scheme", pair->a->scheme.name, "quality_from",
                     qb_quality_source_names[pair->source], "windows", (json_int_t)pair->n_windows,
                     "figures", figures, "notes", texts_to_json(&pair->notes));
}

qb_status qb_comparison_to_json(const qb_comparison *comparison, json_t **out)
{
    size_t mark = qb_json_mark();
    json_t *pairs = json_array();
    for (size_t i = 0; i < comparison->n; i++)
        json_array_append_new(pairs, pair_to_json(&comparison->pairs[i]));
    json_t *root = json_pack("{s:s, s:s, s:s, s:o, s:o, s:o}", "schema", "qbench.comparison/1", "a",
                             comparison->name_a, "b", comparison->name_b, "pairs", pairs,
                             "only_in_a", texts_to_json(&comparison->only_a), "only_in_b",
                             texts_to_json(&comparison->only_b));
    qb_status status = qb_json_check_memory(mark, "comparison");
    if (status == QB_OK && !root)
        status =
            QB_FAIL(QB_ERR_UNSUPPORTED, "comparison: a file name that is not UTF-8 is no JSON");
    if (status != QB_OK)
        json_decref(root);
    else
        *out = root;
    return status;
}
