/* report/write_analysis.c - an analysis on the screen: a line a layer, the mean, and what stands
 * out; the same as Markdown; every metric as CSV. */
#include "report/write_analysis.h"

#include "report/format.h"
#include "report/head_spread.h"

#include <math.h>
#include <string.h>

/* ---- layers ---- */

static const struct {
    const char *key, *head;
    bool percent;
} columns[] = {
    {"kurt_token_first", "kurt 1st", false}, {"kurt_token_rest", "rest", false},
    {"max_abs_first", "max 1st", false},     {"max_abs_rest", "rest", false},
    {"attn_first_argmax", "argm 1st", true}, {"attn_first_share", "share", true},
    {"dormant_share", "dormant", true},      {"massive_count", "massive", false},
};

static char *column_text(const json_t *layer, size_t i, char text[QB_FORMAT_BYTES])
{
    double value = qb_json_real_at(layer, columns[i].key);
    return columns[i].percent ? qb_format_percent(value, text) : qb_format_significant(value, text);
}

static void write_row(const char *name, const json_t *layer, FILE *stream)
{
    char text[QB_FORMAT_BYTES];
    fprintf(stream, "%-8s", name);
    for (size_t i = 0; i < sizeof columns / sizeof *columns; i++)
        fprintf(stream, " %8s", column_text(layer, i, text));
    fputc('\n', stream);
}

/* The layers by their numbers, then their mean. */
static void each_layer(const json_t *root,
                       void (*write)(const char *name, const json_t *metrics, FILE *stream),
                       FILE *stream)
{
    size_t i;
    json_t *layer;
    json_array_foreach(json_object_get(root, "layers"), i, layer)
    {
        char name[32];
        snprintf(name, sizeof name, "%zu", i + 1);
        write(name, layer, stream);
    }
    write("mean", json_object_get(root, "mean"), stream);
}

static void write_layers(const json_t *root, FILE *stream)
{
    fprintf(stream, "\n%-8s", "layer");
    for (size_t i = 0; i < sizeof columns / sizeof *columns; i++)
        fprintf(stream, " %8s", columns[i].head);
    fputc('\n', stream);
    each_layer(root, write_row, stream);
}

/* ---- above and below ---- */

static void write_texts(const json_t *root, FILE *stream)
{
    size_t i;
    json_t *text;
    json_array_foreach(json_object_get(root, "texts"), i, text)
    {
        char tokens[QB_FORMAT_BYTES], windows[QB_FORMAT_BYTES], ppl[QB_FORMAT_BYTES];
        const json_t *protocol = json_object_get(text, "protocol");
        double loss = qb_json_real_at(text, "ppl");
        qb_write_labelled(stream, "text", 9, "%s: %s tokens, %s windows of %.0f (%s)%s%s",
                          qb_json_text_at(text, "name"),
                          qb_format_count((int64_t)qb_json_real_at(text, "tokens"), tokens),
                          qb_format_count((int64_t)qb_json_real_at(protocol, "windows"), windows),
                          qb_json_real_at(protocol, "context"), qb_json_text_at(protocol, "name"),
                          isnan(loss) ? "" : ", perplexity ",
                          isnan(loss) ? "" : qb_format_perplexity(loss, ppl));
    }
}

static void write_summary(const json_t *root, FILE *stream)
{
    char a[QB_FORMAT_BYTES], b[QB_FORMAT_BYTES];
    const json_t *correlation = json_object_get(root, "kurt_norm_ratio_correlation"),
                 *sinks = json_object_get(root, "sinks");
    fprintf(stream, "\nsinks    %s %% of (window, head) have alpha_1 > %.1f over %.0f tokens\n",
            qb_format_significant(qb_json_real_at(sinks, "sink_1"), a),
            qb_json_real_at(sinks, "eps"), qb_json_real_at(sinks, "tokens"));
    fprintf(stream, "kurtosis and max|x|/||x|| correlate over layers: first %s, rest %s\n",
            qb_format_significant(qb_json_real_at(correlation, "first"), a),
            qb_format_significant(qb_json_real_at(correlation, "rest"), b));
}

enum { SHOWN_MASSIVE = 5 };

static void write_massive(const json_t *root, FILE *stream)
{
    size_t i;
    json_t *m;
    const json_t *list = json_object_get(root, "massive");
    if (!json_array_size(list)) fprintf(stream, "massive  none\n");
    json_array_foreach(list, i, m)
    {
        char mean[QB_FORMAT_BYTES], deviation[QB_FORMAT_BYTES], first[QB_FORMAT_BYTES];
        if (i == SHOWN_MASSIVE) {
            fprintf(stream, "         %.0f places in all\n",
                    qb_json_real_at(root, "massive_places"));
            break;
        }
        fprintf(stream, "%-8s layer %.0f channel %.0f: %s +- %s, %s of them on first tokens\n",
                i ? "" : "massive", qb_json_real_at(m, "layer"), qb_json_real_at(m, "channel"),
                qb_format_significant(qb_json_real_at(m, "mean"), mean),
                qb_format_significant(qb_json_real_at(m, "std"), deviation),
                qb_format_percent(qb_json_real_at(m, "first_share"), first));
    }
}

/* ---- heads that depend on the text ---- */

enum { SHOWN_HEADS = 5, LISTED_HEADS = 32 };

static const char *text_name(const json_t *root, size_t i)
{
    return qb_json_text_at(json_array_get(json_object_get(root, "texts"), i), "name");
}

static void write_heads(const json_t *root, FILE *stream)
{
    qb_head_spread found[SHOWN_HEADS];
    size_t n = qb_head_spreads(json_object_get(root, "heads"), found, SHOWN_HEADS);
    for (size_t i = 0; i < n; i++) {
        char least[QB_FORMAT_BYTES], most[QB_FORMAT_BYTES];
        fprintf(stream, "%-8s layer %.0f head %.0f: %s dormant queries on %.24s, %s on %.24s\n",
                i ? "" : "heads", found[i].layer, found[i].head,
                qb_format_percent(found[i].least, least), text_name(root, found[i].least_text),
                qb_format_percent(found[i].most, most), text_name(root, found[i].most_text));
    }
}

/* Of tokens but the first, the mean over layers. */
static double mean_of_basis(const json_t *list, const char *part, const char *basis)
{
    double sum = 0, n = 0;
    size_t i;
    json_t *one;
    json_array_foreach(list, i, one)
    {
        double kurt = qb_json_real_at(json_object_get(one, basis), "rest");
        if (strcmp(qb_json_text_at(one, "part"), part) || isnan(kurt)) continue;
        sum += kurt;
        n++;
    }
    return sum / n;
}

static void write_bases(const json_t *root, FILE *stream)
{
    static const char *const parts[] = {"attn", "mlp"}, *const bases[] = {"own", "q", "qt", "v"};
    const json_t *list = json_object_get(root, "output_basis");
    for (size_t i = 0; i < 2 && json_array_size(list); i++) {
        char t[4][QB_FORMAT_BYTES];
        for (size_t b = 0; b < 4; b++)
            qb_format_significant(mean_of_basis(list, parts[i], bases[b]), t[b]);
        fprintf(stream, "%-8s kurtosis of what %s adds: X %s, X Q %s, X Q^T %s, X V %s\n",
                i ? "" : "bases", parts[i], t[0], t[1], t[2], t[3]);
    }
}

static void write_interventions(const json_t *root, FILE *stream)
{
    size_t i;
    json_t *one;
    const json_t *list = json_object_get(root, "interventions");
    if (json_array_size(list))
        fprintf(stream, "\n%-20s %12s %12s %14s\n", "intervention", "perplexity", "untouched",
                "loss");
    json_array_foreach(list, i, one)
    {
        char ppl[QB_FORMAT_BYTES], before[QB_FORMAT_BYTES], loss[QB_FORMAT_BYTES];
        fprintf(stream, "%-20s %12s %12s %14s\n", qb_json_text_at(one, "name"),
                qb_format_perplexity(qb_json_real_at(one, "ppl"), ppl),
                qb_format_perplexity(qb_json_real_at(one, "ppl_untouched"), before),
                qb_format_signed(qb_json_real_at(one, "loss_increase"), loss));
    }
}

qb_status qb_analysis_write_screen(const json_t *root, FILE *stream)
{
    const json_t *model = json_object_get(root, "model");
    fprintf(stream, "%s  %s, %.0f layers, d %.0f, %s\n", qb_json_text_at(model, "name"),
            qb_json_text_at(model, "arch"), qb_json_real_at(model, "n_layers"),
            qb_json_real_at(model, "d_model"), qb_json_text_at(model, "softmax"));
    write_texts(root, stream);
    write_layers(root, stream);
    write_summary(root, stream);
    write_massive(root, stream);
    write_heads(root, stream);
    write_bases(root, stream);
    write_interventions(root, stream);
    const json_t *sensitivity = json_object_get(root, "sensitivity");
    if (sensitivity) qb_sensitivity_write_screen(sensitivity, stream);
    return QB_OK;
}

/* ---- Markdown ---- */

static void write_cells(const char *const *cells, size_t n, FILE *stream)
{
    fputc('|', stream);
    for (size_t i = 0; i < n; i++) qb_markdown_cell(cells[i], stream);
    fputc('\n', stream);
}

static void write_rule(size_t n, FILE *stream)
{
    fputs("|---|", stream);
    for (size_t i = 1; i < n; i++) fputs("---:|", stream);
    fputc('\n', stream);
}

static void begin_table(const char *const *heads, size_t n, FILE *stream)
{
    fputc('\n', stream);
    write_cells(heads, n, stream);
    write_rule(n, stream);
}

static void write_layer_cells(const char *name, const json_t *layer, FILE *stream)
{
    char text[QB_FORMAT_BYTES];
    fputc('|', stream);
    qb_markdown_cell(name, stream);
    for (size_t i = 0; i < sizeof columns / sizeof *columns; i++)
        qb_markdown_cell(column_text(layer, i, text), stream);
    fputc('\n', stream);
}

static void write_layer_table(const json_t *root, FILE *stream)
{
    const size_t n = sizeof columns / sizeof *columns;
    fputs("\n| layer |", stream);
    for (size_t i = 0; i < n; i++) qb_markdown_cell(columns[i].key, stream);
    fputc('\n', stream);
    write_rule(n + 1, stream);
    each_layer(root, write_layer_cells, stream);
}

static void write_massive_table(const json_t *root, FILE *stream)
{
    static const char *const heads[] = {"massive: layer", "channel", "mean", "std", "on first"};
    size_t i;
    json_t *m;
    const json_t *list = json_object_get(root, "massive");
    if (!json_array_size(list)) return;
    begin_table(heads, 5, stream);
    json_array_foreach(list, i, m)
    {
        char layer[32], channel[32], mean[QB_FORMAT_BYTES], deviation[QB_FORMAT_BYTES],
            first[QB_FORMAT_BYTES];
        snprintf(layer, sizeof layer, "%.0f", qb_json_real_at(m, "layer"));
        snprintf(channel, sizeof channel, "%.0f", qb_json_real_at(m, "channel"));
        const char *const cells[] = {layer, channel,
                                     qb_format_significant(qb_json_real_at(m, "mean"), mean),
                                     qb_format_significant(qb_json_real_at(m, "std"), deviation),
                                     qb_format_percent(qb_json_real_at(m, "first_share"), first)};
        write_cells(cells, 5, stream);
    }
}

static void write_head_table(const json_t *root, FILE *stream)
{
    static const char *const heads[] = {
        "dormant queries: layer", "head", "least", "text", "most", "text"};
    qb_head_spread found[LISTED_HEADS];
    size_t n = qb_head_spreads(json_object_get(root, "heads"), found, LISTED_HEADS);
    if (!n) return;
    begin_table(heads, 6, stream);
    for (size_t i = 0; i < n; i++) {
        char layer[32], head[32], least[QB_FORMAT_BYTES], most[QB_FORMAT_BYTES];
        snprintf(layer, sizeof layer, "%.0f", found[i].layer);
        snprintf(head, sizeof head, "%.0f", found[i].head);
        const char *const cells[] = {layer,
                                     head,
                                     qb_format_percent(found[i].least, least),
                                     text_name(root, found[i].least_text),
                                     qb_format_percent(found[i].most, most),
                                     text_name(root, found[i].most_text)};
        write_cells(cells, 6, stream);
    }
}

static void write_intervention_table(const json_t *root, FILE *stream)
{
    static const char *const heads[] = {"intervention", "perplexity", "untouched", "loss"};
    size_t i;
    json_t *one;
    const json_t *list = json_object_get(root, "interventions");
    if (!json_array_size(list)) return;
    begin_table(heads, 4, stream);
    json_array_foreach(list, i, one)
    {
        char ppl[QB_FORMAT_BYTES], before[QB_FORMAT_BYTES], loss[QB_FORMAT_BYTES];
        const char *const cells[] = {
            qb_json_text_at(one, "name"), qb_format_perplexity(qb_json_real_at(one, "ppl"), ppl),
            qb_format_perplexity(qb_json_real_at(one, "ppl_untouched"), before),
            qb_format_signed(qb_json_real_at(one, "loss_increase"), loss)};
        write_cells(cells, 4, stream);
    }
}

qb_status qb_analysis_write_markdown(const json_t *root, FILE *stream)
{
    const json_t *model = json_object_get(root, "model");
    fprintf(stream, "Analysis of %s by qbench %s (%s), %s.\n\n    %s\n",
            qb_json_text_at(model, "name"), qb_json_text_at(root, "qbench_version"),
            qb_json_text_at(root, "git_commit"), qb_json_text_at(root, "time_utc"),
            qb_json_text_at(root, "command"));
    write_layer_table(root, stream);
    write_massive_table(root, stream);
    write_head_table(root, stream);
    write_intervention_table(root, stream);
    const json_t *sensitivity = json_object_get(root, "sensitivity");
    if (sensitivity) qb_sensitivity_write_markdown(sensitivity, stream);
    return QB_OK;
}

/* ---- CSV ---- */

static void write_values(const char *name, const json_t *layer, json_t *keys, FILE *stream)
{
    const char *key;
    json_t *unused;
    fputs(name, stream);
    json_object_foreach(keys, key, unused)
    {
        double value = qb_json_real_at(layer, key);
        fputc(',', stream);
        if (!isnan(value)) fprintf(stream, "%.17g", value);
    }
    fputs("\r\n", stream);
}

qb_status qb_analysis_write_csv(const json_t *root, FILE *stream)
{
    size_t i;
    const char *key;
    json_t *layer, *value, *mean = json_object_get(root, "mean");
    fputs("layer", stream);
    json_object_foreach(mean, key, value) fprintf(stream, ",%s", key);
    fputs("\r\n", stream);
    write_values("embedding", json_object_get(root, "embedding"), mean, stream);
    json_array_foreach(json_object_get(root, "layers"), i, layer)
    {
        char name[32];
        snprintf(name, sizeof name, "%zu", i + 1);
        write_values(name, layer, mean, stream);
    }
    write_values("mean", mean, mean, stream);
    return QB_OK;
}
