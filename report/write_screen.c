/* report/write_screen.c - the one screen: per model what it was measured on, a table of quality, a
 * table of speed, and below them what to know before believing a number. At most 100 columns. */
#include "report/format.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

typedef struct screen {
    FILE *stream;
    const char *bold, *dim, *red, *reset; /* "" without colour */
} screen;

static bool same_model(const qb_result *a, const qb_result *b)
{
    return a->model.path && b->model.path && !strcmp(a->model.path, b->model.path);
}

static const char *or_unknown(const char *text)
{
    return text ? text : "unknown";
}

/* ---- above the tables ---- */

static void write_head(const screen *s, const qb_result *r)
{
    char n[QB_FORMAT_BYTES], v[QB_FORMAT_BYTES], c[QB_FORMAT_BYTES];
    fprintf(s->stream,
            "%s%s%s  %s, %s parameters, %" PRId64 " layers, d %" PRId64 ", vocabulary %s, %s\n",
            s->bold, or_unknown(r->model.name), s->reset, or_unknown(r->model.arch),
            qb_format_params(r->model.n_params, n), r->model.n_layers, r->model.d_model,
            qb_format_count(r->model.vocab, v), or_unknown(r->model.softmax));
    if (r->protocol.name) {
        fprintf(s->stream, "text      %s: %s bytes, %s tokens\n", r->text.name,
                qb_format_count(r->text.bytes, n), qb_format_count(r->text.tokens, v));
        fprintf(s->stream, "protocol  %s: context %s, ", r->protocol.name,
                qb_format_count(r->protocol.context, c));
        fprintf(s->stream, "stride %s, batch %" PRId64 ", %s windows, ",
                qb_format_count(r->protocol.stride, c), r->protocol.batch,
                qb_format_count(r->protocol.windows, v));
        fprintf(s->stream, "%s tokens scored\n", qb_format_count(r->protocol.scored_tokens, n));
    }
    fprintf(s->stream, "machine   %s, %" PRId64 " of %" PRId64 " processors, %s\n",
            or_unknown(r->environment.cpu), r->environment.threads, r->environment.cores,
            or_unknown(r->environment.features));
    if (r->environment.gpu.name)
        fprintf(s->stream, "gpu       %s, driver %s, %" PRId64 " MHz\n", r->environment.gpu.name,
                or_unknown(r->environment.gpu.driver), r->environment.gpu.sm_mhz);
}

/* ---- quality ---- */

static void write_quality_row(const screen *s, const qb_result *r)
{
    char t[6][QB_FORMAT_BYTES];
    bool bad = r->quality.penalty > 0.1 * r->quality.ppl_full; /* a tenth worse is worth a colour */
    fprintf(s->stream, "%-17s %-22s %s%8s%s  %-24s %7s %7s %8s\n", r->scheme.name,
            qb_format_scheme(r, t[0]), bad ? s->red : "",
            qb_format_perplexity(r->quality.ppl, t[1]), bad ? s->reset : "",
            qb_format_penalty(r, t[2]), qb_format_significant(r->quality.kl_mean, t[3]),
            qb_format_percent(r->quality.top1_agreement, t[4]),
            qb_format_perplexity(r->quality.ppl_fake, t[5]));
}

static bool is_full(const qb_result *r)
{
    return r->scheme.weight_bits < 0 && r->scheme.act_bits < 0;
}

static void write_quality(const screen *s, const qb_result *rows, size_t n)
{
    char t[QB_FORMAT_BYTES];
    if (isnan(rows->quality.ppl_full)) return;
    fprintf(s->stream, "\n%s%-17s %-22s %8s  %-24s %7s %7s %8s%s\n", s->dim, "quality", "quantised",
            "ppl", "penalty [95 %]", "KL", "top-1", "fake ppl", s->reset);
    if (!is_full(rows))
        fprintf(s->stream, "%-17s %-22s %8s\n", "full", "-",
                qb_format_perplexity(rows->quality.ppl_full, t));
    for (size_t i = 0; i < n; i++) write_quality_row(s, &rows[i]);
    if (!isnan(rows->quality.word_ppl))
        for (size_t i = 0; i < n; i++)
            fprintf(s->stream,
                    "%s: word perplexity %.4g, byte perplexity %.5g, %.4f bits per byte\n",
                    rows[i].scheme.name, rows[i].quality.word_ppl, rows[i].quality.byte_ppl,
                    rows[i].quality.bits_per_byte);
}

/* ---- speed ---- */

static void write_speed_row(const screen *s, const char *name, const qb_result *r,
                            const qb_result_timing *prefill, const qb_result_timing *decode,
                            int64_t weights_bytes)
{
    char t[QB_FORMAT_BYTES];
    fprintf(s->stream, "%-17s", name);
    qb_write_right(s->stream, 17, qb_format_rate(prefill, t));
    qb_write_right(s->stream, 8, qb_format_ratio(prefill, &r->speed.full.prefill, t));
    qb_write_right(s->stream, 17, qb_format_rate(decode, t));
    qb_write_right(s->stream, 8, qb_format_ratio(decode, &r->speed.full.decode, t));
    qb_write_right(s->stream, 11, qb_format_bytes(weights_bytes, t));
    fputc('\n', s->stream);
}

static void write_speed(const screen *s, const qb_result *rows, size_t n)
{
    const qb_result *r = rows;
    if (isnan(r->speed.prefill.tok_per_s) && isnan(r->speed.decode.tok_per_s)) return;
    fprintf(s->stream, "\n%s%-17s%17s%8s%17s%8s%11s%s\n", s->dim, "speed, tokens/s", "prefill",
            "x full", "decode", "x full", "weights", s->reset);
    if (!is_full(r))
        write_speed_row(s, "full", r, &r->speed.full.prefill, &r->speed.full.decode,
                        r->memory.full_weights_bytes);
    for (size_t i = 0; i < n; i++)
        write_speed_row(s, rows[i].scheme.name, r, &rows[i].speed.prefill, &rows[i].speed.decode,
                        rows[i].memory.weights_bytes);
    fprintf(s->stream,
            "prefill of %" PRId64 " tokens, decode after 256, batch %" PRId64 ", %" PRId64
            " or more samples each, medians\n",
            r->speed.context, r->speed.batch, r->speed.prefill.samples);
}

/* ---- below the tables ---- */

static void write_coverage(const screen *s, const qb_result *r)
{
    enum { INDENT = 10, COLUMNS = 98 };
    if (r->coverage.linears_quantised <= 0) return;
    fprintf(s->stream,
            "coverage  %" PRId64 " of %" PRId64 " linear layers, %.1f %% of their multiply-adds, "
            "%.1f %% of all weight bytes\n",
            r->coverage.linears_quantised, r->coverage.linears, 100 * r->coverage.macs_share,
            100 * r->coverage.bytes_share);
    int column = fprintf(s->stream, "%*skept float: ", INDENT, "");
    for (size_t i = 0; i < r->coverage.kept_float.n; i++) {
        const char *item = r->coverage.kept_float.items[i];
        if (i) column += fprintf(s->stream, ",");
        if (column + 1 + (int)strlen(item) > COLUMNS)
            column = fprintf(s->stream, "\n%*s", INDENT, "") - 1;
        else if (i)
            column += fprintf(s->stream, " ");
        column += fprintf(s->stream, "%s", item);
    }
    fputc('\n', s->stream);
}

/* Integer and fake-quant runs round the same numbers in another order. Where the difference is
 * visible, the reader should know which of the two steps makes it so. */
static void write_fake_difference(const screen *s, const qb_result *r)
{
    double share = fabs(r->quality.ppl_fake / r->quality.ppl - 1);
    if (!(share > 1e-3)) return;
    const char *why =
        r->scheme.out_bits > 0
            ? "a float sum off by one unit in the last place falls into another 8-bit output step"
        : r->scheme.act_bits > 0
            ? "inputs at a rounding boundary fall into another 8-bit step in the next layers"
            : "the model is so far off that last-place differences grow from layer to layer";
    fprintf(s->stream,
            "note      %s: integer and fake differ by %.2g %%:\n"
            "          %s\n",
            r->scheme.name, 100 * share, why);
}

static void write_worst(const screen *s, const qb_result *rows, size_t n)
{
    const qb_result *worst = NULL;
    for (size_t i = 0; i < n; i++)
        if (rows[i].quality.penalty > 0.1 * rows[i].quality.ppl_full &&
            (!worst || rows[i].quality.penalty > worst->quality.penalty))
            worst = &rows[i];
    char t[QB_FORMAT_BYTES];
    if (worst)
        fprintf(s->stream, "note      %s costs most: %s times the perplexity of full precision\n",
                worst->scheme.name,
                qb_format_significant(worst->quality.ppl / worst->quality.ppl_full, t));
}

static void write_trust(const screen *s, const qb_result *r)
{
    if (!r->trust.level) return;
    const char *colour = strcmp(r->trust.level, "low") ? "" : s->red;
    fprintf(s->stream, "trust     %s%s%s", colour, r->trust.level, *colour ? s->reset : "");
    for (size_t i = 0; i < r->trust.reasons.n; i++)
        fprintf(s->stream, "%s%s", i ? "\n          " : ": ", r->trust.reasons.items[i]);
    fputc('\n', s->stream);
}

static void write_model(const screen *s, const qb_result *rows, size_t n)
{
    write_head(s, rows);
    write_quality(s, rows, n);
    write_speed(s, rows, n);
    fputc('\n', s->stream);
    write_coverage(s, &rows[n - 1]);
    write_worst(s, rows, n);
    for (size_t i = 0; i < n; i++) write_fake_difference(s, &rows[i]);
    write_trust(s, rows);
}

qb_status qb_results_write_screen(const qb_results *results, bool colour, FILE *stream)
{
    screen s = {stream, "", "", "", ""};
    if (colour) s = (screen){stream, "\033[1m", "\033[2m", "\033[31m", "\033[0m"};
    for (size_t i = 0; i < results->n;) {
        size_t end = i + 1;
        while (end < results->n && same_model(&results->items[i], &results->items[end])) end++;
        if (i) fputc('\n', stream);
        write_model(&s, &results->items[i], end - i);
        i = end;
    }
    return QB_OK;
}
