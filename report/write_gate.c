/* report/write_gate.c - judgements for people and for CI servers. */
#include "report/gate.h"

#include "report/format.h"

#include <math.h>
#include <string.h>

enum { INDENT = 11 };

static const char *or_unnamed(const char *name)
{
    return name ? name : "-";
}

/* B's value and its interval. */
static void level_text(qb_figure_id figure, const qb_change *c, char text[QB_CHANGE_BYTES])
{
    char value[QB_FORMAT_BYTES], low[QB_FORMAT_BYTES], high[QB_FORMAT_BYTES];
    qb_figures[figure].format(c->b, value);
    if (!isfinite(c->level.ci95.low))
        snprintf(text, QB_CHANGE_BYTES, "%.20s", value);
    else
        snprintf(text, QB_CHANGE_BYTES, "%.20s [%.20s, %.20s]", value,
                 qb_figures[figure].format(c->level.ci95.low, low),
                 qb_figures[figure].format(c->level.ci95.high, high));
}

char *qb_judgement_text(const qb_judgement *j, char text[QB_JUDGEMENT_BYTES])
{
    const qb_change *c = &j->pair->changes[j->figure];
    const qb_limit *limit = &qb_limits[j->limit];
    char value[QB_CHANGE_BYTES], number[QB_FORMAT_BYTES];
    if (limit->of_b_alone)
        level_text(j->figure, c, value);
    else
        qb_change_text(j->figure, &c->change, value);
    snprintf(number, sizeof number, "%.6g%s",
             j->amount.percent ? 100 * j->amount.value : j->amount.value,
             j->amount.percent ? "%" : "");
    snprintf(text, QB_JUDGEMENT_BYTES, "%.80s, %.60s: %s %s, %s %s%s%s",
             or_unnamed(j->pair->b->model.name), or_unnamed(j->pair->b->scheme.name),
             qb_figures[j->figure].name, value, limit->name, number, j->why ? ": " : "",
             j->why ? j->why : "");
    return text;
}

static void write_note(const qb_pair *pair, const char *text, FILE *stream)
{
    qb_write_labelled(stream, "note", INDENT, "%s, %s: %s", or_unnamed(pair->b->model.name),
                      or_unnamed(pair->b->scheme.name), text);
}

qb_status qb_gate_write_screen(const qb_gate *gate, bool colour, FILE *stream)
{
    static const char *const colours[] = {
        [QB_KEPT] = "\033[32m", [QB_BROKEN] = "\033[31m", [QB_UNDECIDED] = "\033[33m"};
    char text[QB_JUDGEMENT_BYTES];
    for (size_t i = 0; i < gate->n; i++) {
        const qb_judgement *j = &gate->items[i];
        fprintf(stream, "%s%-9s%s  ", colour ? colours[j->outcome] : "",
                qb_outcome_names[j->outcome], colour ? "\033[0m" : "");
        qb_write_wrapped(stream, INDENT, qb_judgement_text(j, text));
    }
    for (size_t i = 0; i < gate->comparison->n; i++) {
        const qb_pair *pair = &gate->comparison->pairs[i];
        char source[QB_CHANGE_BYTES];
        if (qb_pair_source_text(pair, source)) write_note(pair, source, stream);
        for (size_t k = 0; k < pair->notes.n; k++) write_note(pair, pair->notes.items[k], stream);
    }
    fprintf(stream, "limits: %zu kept, %zu broken, %zu undecided\n",
            gate->n - gate->n_broken - gate->n_undecided, gate->n_broken, gate->n_undecided);
    return QB_OK;
}

qb_status qb_gate_write_markdown(const qb_gate *gate, FILE *stream)
{
    char text[QB_JUDGEMENT_BYTES];
    const char *mark = gate->n_broken ? "broken" : gate->n_undecided ? "undecided" : "kept";
    fprintf(stream, "## qbench gate: %s\n\nLimits: %zu kept, %zu broken, %zu undecided.\n\n", mark,
            gate->n - gate->n_broken - gate->n_undecided, gate->n_broken, gate->n_undecided);
    fputs("| | limit |\n|---|---|\n", stream);
    for (size_t i = 0; i < gate->n; i++) {
        const qb_judgement *j = &gate->items[i];
        fputc('|', stream);
        qb_markdown_cell(qb_outcome_names[j->outcome], stream);
        qb_markdown_cell(qb_judgement_text(j, text), stream);
        fputc('\n', stream);
    }
    fputc('\n', stream);
    return qb_comparison_write_markdown(gate->comparison, stream);
}

qb_status qb_gate_write_junit(const qb_gate *gate, FILE *stream)
{
    char text[QB_JUDGEMENT_BYTES];
    fprintf(stream,
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n"
            "<testsuites name=\"qbench gate\" tests=\"%zu\" failures=\"%zu\" skipped=\"%zu\">\n"
            "  <testsuite name=\"gate\" tests=\"%zu\" failures=\"%zu\" skipped=\"%zu\">\n",
            gate->n, gate->n_broken, gate->n_undecided, gate->n, gate->n_broken, gate->n_undecided);
    for (size_t i = 0; i < gate->n; i++) {
        const qb_judgement *j = &gate->items[i];
        fputs("    <testcase classname=\"", stream);
        qb_xml_text(j->pair->b->model.name, stream);
        fputc('.', stream);
        qb_xml_text(j->pair->b->scheme.name, stream);
        fprintf(stream, "\" name=\"%s, %s\"", qb_limits[j->limit].name, qb_figures[j->figure].name);
        if (j->outcome == QB_KEPT) {
            fputs("/>\n", stream);
            continue;
        }
        fprintf(stream, ">\n      <%s message=\"", j->outcome == QB_BROKEN ? "failure" : "skipped");
        qb_xml_text(qb_judgement_text(j, text), stream);
        fputs("\"/>\n    </testcase>\n", stream);
    }
    fputs("  </testsuite>\n</testsuites>\n", stream);
    return QB_OK;
}

/* As the runner's own library escapes: %, CR, LF; in a property : and , too. */
static void write_command_text(const char *text, const char *escaped, FILE *stream)
{
    for (const unsigned char *p = (const unsigned char *)text; *p; p++)
        if (strchr(escaped, *p))
            fprintf(stream, "%%%02X", *p);
        else
            fputc(*p, stream);
}

qb_status qb_gate_write_github(const qb_gate *gate, const char *file, FILE *stream)
{
    char text[QB_JUDGEMENT_BYTES];
    for (size_t i = 0; i < gate->n; i++) {
        const qb_judgement *j = &gate->items[i];
        if (j->outcome == QB_KEPT) continue;
        fprintf(stream, "::%s file=", j->outcome == QB_BROKEN ? "error" : "warning");
        write_command_text(file, "%\r\n:,", stream);
        fprintf(stream, ",title=qbench %s::", qb_limits[j->limit].name);
        write_command_text(qb_judgement_text(j, text), "%\r\n", stream);
        fputc('\n', stream);
    }
    return QB_OK;
}

static json_t *judgement_to_json(const qb_judgement *j)
{
    return json_pack("{s:s?, s:s?, s:s, s:s, s:f, s:b, s:o, s:s, s:s?}", "model",
                     j->pair->b->model.name, "scheme", j->pair->b->scheme.name, "limit",
                     qb_limits[j->limit].name, "figure", qb_figures[j->figure].key, "amount",
                     j->amount.value, "percent", (int)j->amount.percent, "p", qb_json_real(j->p),
                     "outcome", qb_outcome_names[j->outcome], "why", j->why);
}

qb_status qb_gate_to_json(const qb_gate *gate, json_t **out)
{
    json_t *root;
    QB_TRY(qb_comparison_to_json(gate->comparison, &root));
    size_t mark = qb_json_mark();
    json_t *limits = json_array();
    for (size_t i = 0; i < gate->n; i++)
        json_array_append_new(limits, judgement_to_json(&gate->items[i]));
    json_object_set_new(root, "limits", limits);
    qb_status status = qb_json_check_memory(mark, "gate");
    if (status != QB_OK)
        json_decref(root);
    else
        *out = root;
    return status;
}
