/* report/write_sensitivity.c - which layers cost a scheme's penalty, on the screen: the most costly
 * ones, and how many of them are enough. At most 100 columns. */
#include "report/write_analysis.h"

#include "report/format.h"

#include <string.h>

enum { SHOWN_PARTS = 12 };
static const double most_of_it = 0.8;

static char *penalty_text(const json_t *object, const char *key, const char *interval_key,
                          char text[QB_FORMAT_BYTES])
{
    char value[QB_FORMAT_BYTES], low[QB_FORMAT_BYTES], high[QB_FORMAT_BYTES];
    const json_t *interval = json_object_get(object, interval_key);
    qb_format_signed(qb_json_real_at(object, key), value);
    if (!json_is_array(interval)) {
        snprintf(text, QB_FORMAT_BYTES, "%.60s", value);
        return text;
    }
    qb_format_significant(json_number_value(json_array_get(interval, 0)), low);
    qb_format_significant(json_number_value(json_array_get(interval, 1)), high);
    snprintf(text, QB_FORMAT_BYTES, "%.18s [%.18s, %.18s]", value, low, high);
    return text;
}

static void write_part(const json_t *p, FILE *stream)
{
    char penalty[QB_FORMAT_BYTES], share[QB_FORMAT_BYTES], sum[QB_FORMAT_BYTES],
        saved[QB_FORMAT_BYTES], sqnr[QB_FORMAT_BYTES], kurtosis[QB_FORMAT_BYTES],
        ratio[QB_FORMAT_BYTES];
    fprintf(stream, "%-13s %-24s %6s %7s %7s %5s %6s %5s\n", qb_json_text_at(p, "name"),
            penalty_text(p, "penalty", "penalty_ci95", penalty),
            qb_format_percent(qb_json_real_at(p, "share"), share),
            qb_format_percent(qb_json_real_at(p, "cumulative_share"), sum),
            qb_format_signed(qb_json_real_at(p, "saved"), saved),
            qb_format_significant(qb_json_real_at(p, "sqnr_db"), sqnr),
            qb_format_significant(qb_json_real_at(p, "input_kurtosis"), kurtosis),
            qb_format_significant(qb_json_real_at(p, "amax_ratio"), ratio));
}

static void write_parts(const json_t *parts, FILE *stream)
{
    size_t i;
    json_t *part;
    fprintf(stream, "%-13s %-24s %6s %7s %7s %5s %6s %5s\n", "alone", "penalty [95 %]", "share",
            "sum", "saved", "dB", "kurt", "peak");
    json_array_foreach(parts, i, part)
    {
        if (i == SHOWN_PARTS) break;
        write_part(part, stream);
    }
    if (json_array_size(parts) > SHOWN_PARTS)
        fprintf(stream, "and %zu more (--json has all)\n", json_array_size(parts) - SHOWN_PARTS);
}

static void write_kept(const json_t *s, FILE *stream)
{
    size_t i;
    json_t *kept;
    json_array_foreach(json_object_get(s, "kept"), i, kept)
    {
        char before[QB_FORMAT_BYTES], after[QB_FORMAT_BYTES], removed[QB_FORMAT_BYTES];
        if (!(qb_json_real_at(kept, "removed") >= most_of_it)) continue;
        qb_write_labelled(
            stream, "kept", 6,
            "the first %.0f of %zu in full precision: penalty %s in place of %s, %s less",
            qb_json_real_at(kept, "n"), json_array_size(json_object_get(s, "parts")),
            qb_format_signed(qb_json_real_at(kept, "penalty"), after),
            qb_format_signed(qb_json_real_at(s, "penalty"), before),
            qb_format_percent(qb_json_real_at(kept, "removed"), removed));
        return;
    }
}

void qb_sensitivity_write_screen(const json_t *sensitivity, FILE *stream)
{
    char full[QB_FORMAT_BYTES], ppl[QB_FORMAT_BYTES], penalty[QB_FORMAT_BYTES];
    fprintf(stream, "\n%s    perplexity %s, full precision %s: %s\n",
            qb_json_text_at(json_object_get(sensitivity, "scheme"), "name"),
            qb_format_perplexity(qb_json_real_at(sensitivity, "ppl"), ppl),
            qb_format_perplexity(qb_json_real_at(sensitivity, "ppl_full"), full),
            penalty_text(sensitivity, "penalty", "penalty_ci95", penalty));
    write_parts(json_object_get(sensitivity, "parts"), stream);
    write_kept(sensitivity, stream);
}

/* ---- Markdown ---- */

static void write_part_cells(const json_t *p, FILE *stream)
{
    char text[QB_FORMAT_BYTES];
    fputc('|', stream);
    qb_markdown_cell(qb_json_text_at(p, "name"), stream);
    qb_markdown_cell(penalty_text(p, "penalty", "penalty_ci95", text), stream);
    qb_markdown_cell(qb_format_percent(qb_json_real_at(p, "share"), text), stream);
    qb_markdown_cell(qb_format_percent(qb_json_real_at(p, "cumulative_share"), text), stream);
    qb_markdown_cell(penalty_text(p, "saved", "saved_ci95", text), stream);
    qb_markdown_cell(qb_format_significant(qb_json_real_at(p, "sqnr_db"), text), stream);
    qb_markdown_cell(qb_format_significant(qb_json_real_at(p, "input_kurtosis"), text), stream);
    qb_markdown_cell(qb_format_significant(qb_json_real_at(p, "input_amax"), text), stream);
    qb_markdown_cell(qb_format_significant(qb_json_real_at(p, "amax_ratio"), text), stream);
    fputc('\n', stream);
}

void qb_sensitivity_write_markdown(const json_t *sensitivity, FILE *stream)
{
    size_t i;
    json_t *part;
    char penalty[QB_FORMAT_BYTES];
    fprintf(stream,
            "\n`%s`: penalty %s.\n\n| quantised alone | penalty [95 %%] | share | sum | saved "
            "[95 %%] | SQNR, dB | input: kurtosis | amax | amax / p99.9 |\n"
            "|---|---:|---:|---:|---:|---:|---:|---:|---:|\n",
            qb_json_text_at(json_object_get(sensitivity, "scheme"), "name"),
            penalty_text(sensitivity, "penalty", "penalty_ci95", penalty));
    json_array_foreach(json_object_get(sensitivity, "parts"), i, part)
        write_part_cells(part, stream);
}
