/* report/write_screen.c - the one screen: per model what it was measured on, a table of quality, a
 * table of speed, and below them what to know before believing a number. */
#include "core/nearest.h"
#include "report/format.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

enum { INDENT = 10, SCHEME_COLUMNS = 36, SHOWN_REASONS = 4, LIST_BYTES = 1024 };

typedef struct screen {
    FILE *stream;
    const char *bold, *dim, *red, *reset; /* "" without colour */
} screen;

static const char *or_unknown(const char *text)
{
    return text ? text : "unknown";
}

/* ---- above the tables ---- */

static void write_protocol(const screen *s, const qb_result *r)
{
    char t[5][QB_FORMAT_BYTES];
    qb_write_labelled(s->stream, "text", INDENT, "%s: %s bytes, %s tokens", r->text.name,
                      qb_format_count(r->text.bytes, t[0]), qb_format_count(r->text.tokens, t[1]));
    qb_write_labelled(
        s->stream, "protocol", INDENT,
        "%s: context %s, stride %s, batch %s, %s windows, %s tokens scored", r->protocol.name,
        qb_format_count(r->protocol.context, t[0]), qb_format_count(r->protocol.stride, t[1]),
        qb_format_count(r->protocol.batch, t[2]), qb_format_count(r->protocol.windows, t[3]),
        qb_format_count(r->protocol.scored_tokens, t[4]));
}

static void write_head(const screen *s, const qb_result *r)
{
    char n[QB_FORMAT_BYTES], v[QB_FORMAT_BYTES];
    fprintf(s->stream, "%s%s%s\n", s->bold, or_unknown(r->model.name), s->reset);
    qb_write_labelled(s->stream, "model", INDENT,
                      "%s, %s parameters, %" PRId64 " layers, d %" PRId64 ", vocabulary %s, %s",
                      or_unknown(r->model.arch), qb_format_params(r->model.n_params, n),
                      r->model.n_layers, r->model.d_model, qb_format_count(r->model.vocab, v),
                      or_unknown(r->model.softmax));
    if (r->protocol.name) write_protocol(s, r);
    qb_write_labelled(s->stream, "machine", INDENT, "%s, %" PRId64 " of %" PRId64 " processors, %s",
                      or_unknown(r->environment.cpu), r->environment.threads, r->environment.cores,
                      or_unknown(r->environment.features));
    if (r->environment.gpu.name)
        qb_write_labelled(s->stream, "gpu", INDENT, "%s, driver %s, %" PRId64 " MHz",
                          r->environment.gpu.name, or_unknown(r->environment.gpu.driver),
                          r->environment.gpu.sm_mhz);
}

/* ---- quality ---- */

static void write_quality_row(const screen *s, const qb_result *r)
{
    char t[5][QB_FORMAT_BYTES];
    bool bad = r->quality.penalty > 0.1 * r->quality.ppl_full; /* a tenth worse is worth a colour */
    fprintf(s->stream, "%-17s %s%8s%s  %-27s %7s %7s %8s\n", r->scheme.name, bad ? s->red : "",
            qb_format_perplexity(r->quality.ppl, t[0]), bad ? s->reset : "",
            qb_format_penalty(r, t[1]), qb_format_significant(r->quality.kl_mean, t[2]),
            qb_format_percent(r->quality.top1_agreement, t[3]),
            qb_format_perplexity(r->quality.ppl_fake, t[4]));
}

static void write_quality(const screen *s, const qb_result *rows, size_t n)
{
    char t[QB_FORMAT_BYTES];
    if (isnan(rows->quality.ppl_full)) return;
    fprintf(s->stream, "\n%s%-17s %8s  %-27s %7s %7s %8s%s\n", s->dim, "quality", "ppl",
            "penalty [95 %]", "KL", "top-1", "fake ppl", s->reset);
    if (!qb_result_is_full(rows))
        fprintf(s->stream, "%-17s %8s\n", "full", qb_format_perplexity(rows->quality.ppl_full, t));
    for (size_t i = 0; i < n; i++) write_quality_row(s, &rows[i]);
    if (!isnan(rows->quality.word_ppl))
        for (size_t i = 0; i < n; i++)
            fprintf(s->stream, "%-17s a word %.4g, a byte %.5g, %.4f bits a byte\n",
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
    if (!qb_result_is_full(r))
        write_speed_row(s, "full", r, &r->speed.full.prefill, &r->speed.full.decode,
                        r->memory.full_weights_bytes);
    for (size_t i = 0; i < n; i++)
        write_speed_row(s, rows[i].scheme.name, r, &rows[i].speed.prefill, &rows[i].speed.decode,
                        rows[i].memory.weights_bytes);
    char after[QB_FORMAT_BYTES];
    qb_write_labelled(s->stream, "timed", INDENT,
                      "prefill of %" PRId64 " tokens, decode after %s, batch %" PRId64 ", %" PRId64
                      " or more samples, medians",
                      r->speed.context, qb_format_count(r->speed.decode_after, after),
                      r->speed.batch, r->speed.prefill.samples);
}

/* ---- below the tables ---- */

/* What the schemes' names stand for, two a line: "fine w8/out a8/token". */
static void write_schemes(const screen *s, const qb_result *rows, size_t n)
{
    char t[QB_FORMAT_BYTES];
    size_t n_written = 0;
    int width = 0;
    for (size_t i = 0; i < n; i++) {
        if (qb_result_is_full(&rows[i])) continue;
        bool second = n_written++ % 2;
        if (!second)
            fprintf(s->stream, "%-*s", INDENT, n_written == 1 ? "quantised" : "");
        else
            fprintf(s->stream, "%*s", width < SCHEME_COLUMNS ? SCHEME_COLUMNS - width : 1, "");
        width = fprintf(s->stream, "%s %s", rows[i].scheme.name, qb_format_scheme(&rows[i], t));
        if (second) fputc('\n', s->stream);
    }
    if (n_written % 2) fputc('\n', s->stream);
}

static void write_coverage(const screen *s, const qb_result *r)
{
    char kept[LIST_BYTES] = "";
    if (r->coverage.linears_quantised <= 0) return;
    for (size_t i = 0; i < r->coverage.kept_float.n; i++)
        qb_names_add(kept, sizeof kept, r->coverage.kept_float.items[i]);
    qb_write_labelled(s->stream, "coverage", INDENT,
                      "%" PRId64 " of %" PRId64 " linear layers, %.1f %% of their multiply-adds, "
                      "%.1f %% of all weight bytes; kept float: %s",
                      r->coverage.linears_quantised, r->coverage.linears,
                      100 * r->coverage.macs_share, 100 * r->coverage.bytes_share, kept);
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
    qb_write_labelled(s->stream, "note", INDENT, "%s: integer and fake differ by %.2g %%: %s",
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
        qb_write_labelled(s->stream, "note", INDENT,
                          "%s costs most: %s times the perplexity of full precision",
                          worst->scheme.name,
                          qb_format_significant(worst->quality.ppl / worst->quality.ppl_full, t));
}

static size_t n_with_reason(const qb_result *rows, size_t n, const char *reason)
{
    size_t n_with = 0;
    for (size_t k = 0; k < n; k++)
        for (size_t i = 0; i < rows[k].trust.reasons.n; i++)
            n_with += !strcmp(rows[k].trust.reasons.items[i], reason);
    return n_with;
}

/* Those of all rows once, then those of some. */
static void write_reasons(const screen *s, const qb_result *rows, size_t n)
{
    size_t n_own = 0;
    for (size_t k = 0; k < rows->trust.reasons.n; k++)
        if (n_with_reason(rows, n, rows->trust.reasons.items[k]) == n)
            qb_write_labelled(s->stream, "", INDENT, "%s", rows->trust.reasons.items[k]);
    for (size_t i = 0; i < n; i++)
        for (size_t k = 0; k < rows[i].trust.reasons.n; k++) {
            const char *reason = rows[i].trust.reasons.items[k];
            if (n_with_reason(rows, n, reason) < n && n_own++ < SHOWN_REASONS)
                qb_write_labelled(s->stream, "", INDENT, "%s: %s", rows[i].scheme.name, reason);
        }
    if (n_own > SHOWN_REASONS)
        qb_write_labelled(s->stream, "", INDENT, "and %zu more (--json has all)",
                          n_own - SHOWN_REASONS);
}

/* The least of all rows. */
static void write_trust(const screen *s, const qb_result *rows, size_t n)
{
    static const char *const levels[] = {"low", "medium", "high"};
    const char *level = NULL;
    for (size_t l = 0; l < QB_COUNT(levels) && !level; l++)
        for (size_t i = 0; i < n; i++)
            if (rows[i].trust.level && !strcmp(rows[i].trust.level, levels[l])) level = levels[l];
    if (!level) return;
    const char *colour = strcmp(level, "low") ? "" : s->red;
    fprintf(s->stream, "%-*s%s%s%s\n", INDENT, "trust", colour, level, *colour ? s->reset : "");
    write_reasons(s, rows, n);
}

static void write_model(const screen *s, const qb_result *rows, size_t n)
{
    write_head(s, rows);
    write_quality(s, rows, n);
    write_speed(s, rows, n);
    fputc('\n', s->stream);
    write_schemes(s, rows, n);
    write_coverage(s, &rows[n - 1]);
    write_worst(s, rows, n);
    for (size_t i = 0; i < n; i++) write_fake_difference(s, &rows[i]);
    write_trust(s, rows, n);
}

qb_status qb_results_write_screen(const qb_results *results, bool colour, FILE *stream)
{
    screen s = {stream, "", "", "", ""};
    if (colour) s = (screen){stream, "\033[1m", "\033[2m", "\033[31m", "\033[0m"};
    for (size_t i = 0; i < results->n;) {
        size_t end = i + 1;
        while (end < results->n && qb_result_same_path(&results->items[i], &results->items[end]))
            end++;
        if (i) fputc('\n', stream);
        write_model(&s, &results->items[i], end - i);
        i = end;
    }
    return QB_OK;
}
