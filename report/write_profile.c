/* report/write_profile.c - a profile on the screen and as Markdown: the same tables. */
#include "report/format.h"
#include "report/profile.h"

#include <math.h>
#include <stdarg.h>
#include <string.h>

enum { MAX_CELLS = 12, CELL_BYTES = 64, MOST_KERNELS = 12, PARAGRAPH_BYTES = 2048 };

typedef struct page {
    FILE *stream;
    bool markdown;
    const char *bold, *dim, *reset; /* "" without colour */
} page;

/* A paragraph: wrapped behind its label on the screen, behind its mark in Markdown. */
static void say(const page *p, const char *mark, const char *label, int indent, const char *format,
                ...) __attribute__((format(printf, 5, 6)));
static void say(const page *p, const char *mark, const char *label, int indent, const char *format,
                ...)
{
    char text[PARAGRAPH_BYTES];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    if (p->markdown)
        fprintf(p->stream, "%s%s\n", mark, text);
    else
        qb_write_labelled(p->stream, label, indent, "%s", text);
}

/* ---- tables ---- */

typedef struct row {
    char cells[MAX_CELLS][CELL_BYTES];
    size_t n;
} row;

static void add_text(row *r, const char *text)
{
    snprintf(r->cells[r->n++], CELL_BYTES, "%s", text);
}

static void add_number(row *r, double value)
{
    char t[QB_FORMAT_BYTES];
    add_text(r, qb_format_significant(value, t));
}

/* To a tenth of a microsecond: finer differences are noise. */
static void add_ms(row *r, double ms)
{
    char text[QB_FORMAT_BYTES];
    if (!(fabs(ms) < 1e-4)) {
        add_number(r, ms);
        return;
    }
    snprintf(text, sizeof text, "%.4f", fabs(ms) < 5e-5 ? 0 : ms);
    add_text(r, text);
}

/* The speed of products has its unit in the head of the column: a GPU's is in Top/s. */
static bool counts_in_tera(const qb_profile *profile)
{
    const qb_peaks *k = &profile->peaks;
    char t[QB_FORMAT_BYTES];
    double most = 0;
    for (size_t i = 0; i < QB_RATE_COUNT; i++) most = fmax(most, k->gops_per_s[i]);
    return strstr(qb_profile_format_rate(most, t), "Top/s");
}

static void add_share(row *r, double share)
{
    char t[QB_FORMAT_BYTES];
    add_text(r, qb_format_percent(share, t));
}

/* Columns of a table on the screen. */
typedef struct layout {
    size_t n_left; /* the first cells are texts; numbers stand to the right */
    int first, text, number;
} layout;

static const layout phase_layout = {1, 10, 0, 9}, kernel_layout = {2, 19, 10, 6},
                    sweep_layout = {1, 8, 0, 9};

static void put(const page *p, const row *r, const layout *at)
{
    if (p->markdown) fputc('|', p->stream);
    for (size_t i = 0; i < r->n; i++) {
        if (p->markdown)
            qb_markdown_cell(r->cells[i], p->stream);
        else if (i < at->n_left)
            fprintf(p->stream, "%s%-*s", i ? " " : "", i ? at->text : at->first, r->cells[i]);
        else
            fprintf(p->stream, " %*s", at->number, r->cells[i]);
    }
    fputc('\n', p->stream);
}

static void put_head(const page *p, const row *r, const layout *at)
{
    fputs(p->markdown ? "\n" : p->dim, p->stream);
    put(p, r, at);
    if (p->markdown) {
        fputc('|', p->stream);
        for (size_t i = 0; i < r->n; i++) fputs(i < at->n_left ? "---|" : "---:|", p->stream);
        fputc('\n', p->stream);
    }
    fputs(p->reset, p->stream);
}

/* ---- above ---- */

static void write_peaks(const page *p, const qb_profile *profile)
{
    static const char *const names[] = {"copying", "reading", "reading in cache"};
    const qb_peaks *k = &profile->peaks;
    const double speeds[] = {k->copy_gb_per_s, k->read_gb_per_s, k->cache_gb_per_s};
    char t[QB_FORMAT_BYTES], text[PARAGRAPH_BYTES] = "";
    size_t used = 0;
    for (size_t i = 0; i < QB_COUNT(speeds); i++)
        if (!isnan(speeds[i]))
            used +=
                (size_t)snprintf(text + used, sizeof text - used, "%s%s %s GB/s", used ? ", " : "",
                                 names[i], qb_format_significant(speeds[i], t));
    for (size_t i = 0; i < QB_RATE_COUNT; i++)
        if (!isnan(k->gops_per_s[i]))
            used += (size_t)snprintf(text + used, sizeof text - used, "%s%s %s", used ? ", " : "",
                                     qb_rate_names[i], qb_profile_format_rate(k->gops_per_s[i], t));
    say(p, "\npeaks     ", "peaks", 10, "%s (measured %s)", text, profile->peaks_time_utc);
}

static void write_top(const page *p, const qb_profile *profile)
{
    char n[QB_FORMAT_BYTES];
    if (p->markdown) fprintf(p->stream, "# Profile of %s\n\n", profile->model.name);
    fprintf(p->stream, "%s%s%s  %s, %s parameters, %.0f layers, d %.0f\n", p->bold,
            profile->model.name, p->reset, profile->model.arch,
            qb_format_params((int64_t)profile->model.n_params, n), profile->model.n_layers,
            profile->model.d_model);
    fprintf(p->stream, "%smachine   %s, %s", p->markdown ? "\n" : "", profile->device,
            profile->machine);
    if (!strcmp(profile->device, "cpu")) fprintf(p->stream, ", %zu threads", profile->threads);
    fputc('\n', p->stream);
    write_peaks(p, profile);
}

/* ---- an operation ---- */

/* "slowest 0.56 of 192", where fewer than a hundred have no 99th percentile. */
static void name_samples(const qb_profile_run *run, char text[96])
{
    char t[QB_FORMAT_BYTES], each[40] = "passes";
    if (run->n_passes > 1) snprintf(each, sizeof each, "means of %zu passes", run->n_passes);
    snprintf(text, 96, "%s %s of %zu %s", run->n_samples < 100 ? "slowest" : "p99",
             qb_format_significant(run->p99_ms, t), run->n_samples, each);
}

static void write_speed(const page *p, const qb_profile_run *run)
{
    char t[3][QB_FORMAT_BYTES], label[32], slices[64] = "", samples[96];
    if (run->slices > 1)
        snprintf(slices, sizeof slices, " (one in %zu layers a pass)", run->slices);
    snprintf(label, sizeof label, "  %.24s", run->scheme);
    name_samples(run, samples);
    const qb_result_timing rate = {.tok_per_s = run->tok_per_s, .tok_per_s_ci95 = {NAN, NAN}};
    say(p, "- ", label, 15, "%s%s%s tok/s; a pass %s ms, p90 %s, %s; the timeline adds %+.1f %%%s",
        p->markdown ? run->scheme : "", p->markdown ? " " : "", qb_format_rate(&rate, t[0]),
        qb_format_significant(run->ms, t[1]), qb_format_significant(run->p90_ms, t[2]), samples,
        100 * run->overhead, slices);
}

static double roof_share(const qb_profile_part *part)
{
    return part->bound_ms > 0 && part->ms > 0 ? part->bound_ms / part->ms : NAN;
}

static void add_run(row *r, const qb_profile_part *part, double total_ms)
{
    add_ms(r, part->calls > 0 ? part->ms : NAN);
    add_share(r, part->calls > 0 ? part->ms / total_ms : NAN);
    add_share(r, roof_share(part));
}

static row phase_head(const qb_profile_run *full, const qb_profile_run *scheme)
{
    row head = {.n = 0};
    add_text(&head, "phase");
    for (int i = 0; i < 1 + scheme->measured; i++) {
        char text[CELL_BYTES];
        snprintf(text, sizeof text, "%.6s ms", i ? scheme->scheme : full->scheme);
        add_text(&head, text);
        add_text(&head, "share");
        add_text(&head, "of roof");
    }
    if (scheme->measured) add_text(&head, "more ms");
    return head;
}

static void write_phase_sums(const page *p, const qb_profile_run *a, const qb_profile_run *b)
{
    const double gaps[] = {a->gaps_ms, b->gaps_ms}, totals[] = {a->ms, b->ms}, roofs[] = {NAN, NAN},
                 all[] = {a->roof_ms / a->ms, b->roof_ms / b->ms};
    for (size_t line = 0; line < 2; line++) {
        row r = {.n = 0};
        const double *ms = line ? totals : gaps, *share = line ? all : roofs;
        add_text(&r, line ? "total" : "gaps");
        for (size_t i = 0; i < 1 + (size_t)b->measured; i++) {
            add_ms(&r, ms[i]);
            add_share(&r, ms[i] / totals[i]);
            add_share(&r, share[i]);
        }
        if (b->measured) add_ms(&r, ms[1] - ms[0]);
        put(p, &r, &phase_layout);
    }
}

static void write_phases(const page *p, const qb_profile_operation *op)
{
    const qb_profile_run *a = &op->full, *b = &op->scheme;
    row head = phase_head(a, b);
    put_head(p, &head, &phase_layout);
    for (size_t i = 0; i < QB_PHASE_COUNT; i++) {
        if (!(a->phases[i].calls > 0) && !(b->phases[i].calls > 0)) continue;
        row r = {.n = 0};
        add_text(&r, qb_phase_names[i]);
        add_run(&r, &a->phases[i], a->ms);
        if (b->measured) {
            add_run(&r, &b->phases[i], b->ms);
            add_ms(&r, b->phases[i].ms - a->phases[i].ms);
        }
        put(p, &r, &phase_layout);
    }
    write_phase_sums(p, a, b);
}

static void write_kernel(const page *p, const qb_profile_run *run, const qb_profile_kernel *k,
                         double unit)
{
    row r = {.n = 0};
    char text[CELL_BYTES];
    add_text(&r, k->kernel);
    add_text(&r, *k->role ? k->role : qb_phase_names[k->phase]);
    add_ms(&r, k->part.ms);
    add_share(&r, k->part.ms / run->ms);
    snprintf(text, sizeof text, "%.4g", k->part.calls);
    add_text(&r, text);
    add_number(&r, k->p50_us);
    add_number(&r, k->part.bytes > 0 ? 1e-6 * k->part.bytes / k->part.ms : NAN);
    add_number(&r, k->part.ops > 0 ? 1e-6 * k->part.ops / k->part.ms / unit : NAN);
    add_share(&r, roof_share(&k->part));
    put(p, &r, &kernel_layout);
}

static void write_kernels(const page *p, const qb_profile *profile, const qb_profile_run *run)
{
    bool tera = counts_in_tera(profile);
    const char *const head_cells[] = {
        "role", "ms", "share", "calls", "p50 us", "GB/s", tera ? "Top/s" : "Gop/s", "roof"};
    row head = {.n = 0};
    char text[CELL_BYTES];
    snprintf(text, sizeof text, p->markdown ? "%.24s: kernel rows" : "%.12s: rows", run->scheme);
    add_text(&head, text);
    for (size_t i = 0; i < QB_COUNT(head_cells); i++) add_text(&head, head_cells[i]);
    put_head(p, &head, &kernel_layout);
    double left_ms = 0;
    for (size_t i = 0; i < run->n_kernels; i++) {
        if (i < MOST_KERNELS)
            write_kernel(p, run, &run->kernels[i], tera ? 1e3 : 1);
        else
            left_ms += run->kernels[i].part.ms;
    }
    if (run->n_kernels <= MOST_KERNELS) return;
    row r = {.n = 0};
    snprintf(text, sizeof text, "%zu more", run->n_kernels - MOST_KERNELS);
    add_text(&r, text);
    add_text(&r, "");
    add_ms(&r, left_ms);
    add_share(&r, left_ms / run->ms);
    for (size_t i = 0; i < 5; i++) add_text(&r, "");
    put(p, &r, &kernel_layout);
}

/* The layers that stand out: slowest and quickest, where they differ by more than a tenth. */
static void write_layers(const page *p, const qb_profile_run *run)
{
    size_t slow = 0, quick = 0;
    char t[2][QB_FORMAT_BYTES];
    for (size_t l = 1; l < run->n_layers; l++) {
        if (run->layers[l].ms > run->layers[slow].ms) slow = l;
        if (run->layers[l].ms < run->layers[quick].ms) quick = l;
    }
    if (!run->n_layers || !(run->layers[slow].ms > 1.1 * run->layers[quick].ms)) return;
    fprintf(p->stream, "%s%s: layers take %s ms (layer %zu) to %s ms (layer %zu)\n",
            p->markdown ? "\n" : "  ", run->scheme,
            qb_format_significant(run->layers[quick].ms, t[0]), quick + 1,
            qb_format_significant(run->layers[slow].ms, t[1]), slow + 1);
}

static void write_operation(const page *p, const qb_profile *profile, size_t i)
{
    const qb_profile_operation *op = &profile->operations[i];
    if (!op->measured) return;
    fprintf(p->stream, "\n%s%s%s%s, %zu x %zu tokens%s\n%s", p->markdown ? "## " : "", p->bold,
            qb_profile_operation_names[i], p->reset, profile->batch, op->context,
            i == QB_PROFILE_DECODE ? " before" : "", p->markdown ? "\n" : "");
    write_speed(p, &op->full);
    if (op->scheme.measured) write_speed(p, &op->scheme);
    char us[QB_FORMAT_BYTES];
    if (!isnan(op->sampling_us))
        say(p, "- ", "", 2, "drawing a token takes the processor %s us, which is in no pass",
            qb_format_significant(op->sampling_us, us));
    write_phases(p, op);
    write_kernels(p, profile, &op->full);
    if (op->scheme.measured) write_kernels(p, profile, &op->scheme);
    write_layers(p, &op->full);
    if (op->scheme.measured) write_layers(p, &op->scheme);
}

/* ---- below ---- */

/* One that was skipped at every batch has no batch from which the scheme wins. */
static bool is_context_measured(const qb_profile *profile, size_t context)
{
    for (size_t i = 0; i < profile->n_sweep; i++)
        if (profile->sweep[i].context == context && !profile->sweep[i].skipped) return true;
    return false;
}

/* Of the batches that were measured, and up to the largest of them. */
static void write_crossover(const page *p, const qb_profile *profile, int operation, size_t context)
{
    size_t batch = qb_sweep_crossover(profile, operation, context), most = 0;
    for (size_t i = 0; i < profile->n_sweep; i++) {
        const qb_sweep_row *s = &profile->sweep[i];
        if (s->context == context && !s->skipped && s->batch > most) most = s->batch;
    }
    fprintf(p->stream, "%s%s of %zu tokens: %s ", p->markdown ? "- " : "  ",
            qb_profile_operation_names[operation], context, profile->scheme);
    if (batch)
        fprintf(p->stream, "wins from batch >= %zu (measured up to %zu)\n", batch, most);
    else
        fprintf(p->stream, "does not win at batch %zu, the largest measured\n", most);
}

static void write_sweep(const page *p, const qb_profile *profile)
{
    if (!profile->sweep) return;
    fprintf(p->stream, "\n%s%ssweep%s, tokens a second\n", p->markdown ? "## " : "", p->bold,
            p->reset);
    static const char *const cells[] = {"batch", "context", "prefill", "full",
                                        "x",     "decode",  "full",    "x"};
    row head = {.n = 0};
    for (size_t i = 0; i < QB_COUNT(cells); i++) add_text(&head, cells[i]);
    put_head(p, &head, &sweep_layout);
    for (size_t i = 0; i < profile->n_sweep; i++) {
        const qb_sweep_row *s = &profile->sweep[i];
        row r = {.n = 0};
        char t[QB_FORMAT_BYTES];
        add_text(&r, qb_format_count((int64_t)s->batch, t));
        add_text(&r, qb_format_count((int64_t)s->context, t));
        for (size_t k = 0; k < QB_PROFILE_OPERATIONS && !s->skipped; k++) {
            add_number(&r, s->tok_per_s[k]);
            add_number(&r, s->full_tok_per_s[k]);
            add_number(&r, s->tok_per_s[k] / s->full_tok_per_s[k]);
        }
        if (s->skipped) add_text(&r, s->skipped);
        put(p, &r, &sweep_layout);
    }
    fputs(p->markdown ? "\n" : "", p->stream);
    for (int k = 0; k < QB_PROFILE_OPERATIONS; k++)
        for (size_t i = 0; i < profile->n_sweep; i++) {
            size_t context = profile->sweep[i].context;
            bool is_new = !i || context != profile->sweep[i - 1].context;
            if (is_new && is_context_measured(profile, context))
                write_crossover(p, profile, k, context);
        }
}

static void write_verdict(const page *p, const qb_profile *profile)
{
    if (!profile->n_findings) return;
    fprintf(p->stream, "\n%s%sverdict%s\n%s", p->markdown ? "## " : "", p->bold, p->reset,
            p->markdown ? "\n" : "");
    for (size_t i = 0; i < profile->n_findings; i++) {
        const qb_finding *f = &profile->findings[i];
        const char *what = f->of_full ? "full" : profile->scheme;
        if (p->markdown) {
            fprintf(p->stream, "- %s, %s: %s: %s\n  %s\n", f->operation, what, f->rule, f->text,
                    f->help);
            continue;
        }
        fprintf(p->stream, "  %s, %s: %s%s%s\n", f->operation, what, p->bold, f->rule, p->reset);
        qb_write_labelled(p->stream, "", 4, "%s", f->text);
        fputs(p->dim, p->stream);
        qb_write_labelled(p->stream, "", 4, "%s", f->help);
        fputs(p->reset, p->stream);
    }
}

static qb_status write_profile(const page *p, const qb_profile *profile)
{
    write_top(p, profile);
    for (size_t i = 0; i < QB_PROFILE_OPERATIONS; i++) write_operation(p, profile, i);
    write_sweep(p, profile);
    write_verdict(p, profile);
    for (size_t i = 0; i < profile->n_notes; i++)
        say(p, i ? "note: " : "\nnote: ", i ? "note:" : "\nnote:", 6, "%s", profile->notes[i]);
    return QB_OK;
}

qb_status qb_profile_write_markdown(const qb_profile *profile, FILE *stream)
{
    const page p = {.stream = stream, .markdown = true, .bold = "", .dim = "", .reset = ""};
    return write_profile(&p, profile);
}

qb_status qb_profile_write_screen(const qb_profile *profile, bool colour, FILE *stream)
{
    const page p = {.stream = stream,
                    .bold = colour ? "\033[1m" : "",
                    .dim = colour ? "\033[2m" : "",
                    .reset = colour ? "\033[0m" : ""};
    return write_profile(&p, profile);
}
