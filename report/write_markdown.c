/* report/write_markdown.c - one Markdown table, one row a result; what it was measured on stands
 * above it. */
#include "report/format.h"

#include <math.h>

void qb_markdown_cell(const char *text, FILE *stream)
{
    fputc(' ', stream);
    for (const char *p = text ? text : "-"; *p; p++) {
        if (*p == '|') fputc('\\', stream);
        fputc(*p == '\n' || *p == '\r' ? ' ' : *p, stream);
    }
    fputs(" |", stream);
}

static const char *or_unknown(const char *text)
{
    return text ? text : "unknown";
}

static void write_row(const qb_result *r, FILE *stream)
{
    char t[QB_FORMAT_BYTES];
    fputc('|', stream);
    qb_markdown_cell(r->model.name, stream);
    qb_markdown_cell(r->scheme.name, stream);
    qb_markdown_cell(qb_format_scheme(r, t), stream);
    qb_markdown_cell(qb_format_perplexity(r->quality.ppl_full, t), stream);
    qb_markdown_cell(qb_format_perplexity(r->quality.ppl, t), stream);
    qb_markdown_cell(qb_format_penalty(r, t), stream);
    qb_markdown_cell(qb_format_significant(r->quality.kl_mean, t), stream);
    qb_markdown_cell(qb_format_percent(r->quality.top1_agreement, t), stream);
    qb_markdown_cell(qb_format_perplexity(r->quality.ppl_fake, t), stream);
    qb_markdown_cell(qb_format_rate(&r->speed.prefill, t), stream);
    qb_markdown_cell(qb_format_ratio(&r->speed.prefill, &r->speed.full.prefill, t), stream);
    qb_markdown_cell(qb_format_rate(&r->speed.decode, t), stream);
    qb_markdown_cell(qb_format_ratio(&r->speed.decode, &r->speed.full.decode, t), stream);
    qb_markdown_cell(qb_format_bytes(r->memory.weights_bytes, t), stream);
    qb_markdown_cell(r->trust.level, stream);
    fputc('\n', stream);
}

qb_status qb_results_write_markdown(const qb_results *results, FILE *stream)
{
    if (results->n) {
        const qb_result *r = &results->items[0];
        char tokens[QB_FORMAT_BYTES], context[QB_FORMAT_BYTES];
        fprintf(stream, "Measured by qbench %s (%s) on %s, %s; %lld threads.",
                or_unknown(r->qbench_version), or_unknown(r->git_commit), or_unknown(r->time_utc),
                or_unknown(r->environment.cpu), (long long)r->environment.threads);
        if (r->protocol.name)
            fprintf(stream, " Perplexity: protocol %s, context %s, %s tokens of %s.",
                    r->protocol.name, qb_format_count(r->protocol.context, context),
                    qb_format_count(r->protocol.scored_tokens, tokens), or_unknown(r->text.name));
        fprintf(stream, "\n\n    %s\n\n", or_unknown(r->command));
    }
    fputs(
        "| model | scheme | quantised | ppl full | ppl | penalty [95 %] | KL | top-1 | ppl fake | "
        "prefill tok/s | x full | decode tok/s | x full | weights | trust |\n"
        "|---|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---|\n",
        stream);
    for (size_t i = 0; i < results->n; i++) write_row(&results->items[i], stream);
    return QB_OK;
}
