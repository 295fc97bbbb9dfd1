/* report/html_profile.c - where the time of a pass goes, and how far kernels are from the roof. */
#include "report/html_internal.h"

#include "core/memory.h"

#include <math.h>
#include <string.h>

static const char *run_name(const qb_profile_seen_run *run)
{
    return run->scheme ? run->scheme : "unnamed";
}

static const char *or_dash(const char *text)
{
    return text && *text ? text : "-";
}

/* ---- phases as bars ---- */

static const qb_profile_seen_part *find_phase(const qb_profile_seen_run *run, const char *phase)
{
    for (size_t i = 0; i < run->n_phases; i++)
        if (qb_same_text(run->phases[i].name, phase)) return &run->phases[i];
    return NULL;
}

static bool is_new_phase(const qb_profile_seen_operation *o, size_t run, size_t i)
{
    const char *name = o->runs[run].phases[i].name;
    if (!name) return false;
    for (size_t k = 0; k < i; k++)
        if (qb_same_text(o->runs[run].phases[k].name, name)) return false;
    return run == 0 || !find_phase(&o->runs[0], name);
}

static qb_bar phase_bar(qb_page *page, const char *phase, const qb_profile_seen_run *run, double ms)
{
    char scheme[QB_NAME_BYTES];
    qb_bar b = {.group = phase, .colour = qb_page_colour(page, run_name(run)), .value = ms};
    b.ci = (qb_interval){NAN, NAN};
    snprintf(b.label, sizeof b.label, "%s", qb_shorten(run_name(run), 24, scheme));
    snprintf(b.text, sizeof b.text, "%.3g ms (%.1f %%)", ms, 100 * ms / run->ms);
    return b;
}

/* Of each phase a bar a run, in the order of the first run; gaps last. */
static size_t fill_phases(qb_page *page, const qb_profile_seen_operation *o, qb_bar *bars)
{
    size_t n = 0;
    for (size_t r = 0; r < o->n_runs; r++)
        for (size_t i = 0; i < o->runs[r].n_phases; i++) {
            const char *phase = o->runs[r].phases[i].name;
            if (!is_new_phase(o, r, i)) continue;
            for (size_t k = 0; k < o->n_runs; k++) {
                const qb_profile_seen_part *part = find_phase(&o->runs[k], phase);
                if (part) bars[n++] = phase_bar(page, phase, &o->runs[k], part->ms);
            }
        }
    for (size_t k = 0; k < o->n_runs; k++)
        if (!isnan(o->runs[k].gaps_ms))
            bars[n++] = phase_bar(page, "gaps", &o->runs[k], o->runs[k].gaps_ms);
    return n;
}

static void write_phase_table(qb_page *page, const char *title, const qb_profile_seen_operation *o)
{
    char t[QB_FORMAT_BYTES];
    qb_page_details_open(page);
    qb_page_table_open(page, title, "scheme|phase|#ms|#share|#GB/s|#Gop/s|#of the roofline");
    for (size_t r = 0; r < o->n_runs; r++)
        for (size_t i = 0; i < o->runs[r].n_phases; i++) {
            const qb_profile_seen_part *p = &o->runs[r].phases[i];
            qb_page_row_open(page, run_name(&o->runs[r]));
            qb_page_cell(page, or_dash(p->name));
            qb_page_number(page, qb_format_significant(p->ms, t));
            qb_page_number(page, qb_format_percent(p->share, t));
            qb_page_number(page, qb_format_significant(p->gb_per_s, t));
            qb_page_number(page, qb_format_significant(p->gops_per_s, t));
            qb_page_number(page, qb_format_percent(p->roofline_share, t));
            qb_page_row_close(page);
        }
    qb_page_table_close(page);
    qb_page_details_close(page);
}

static qb_status write_phases(qb_page *page, const qb_profile_seen_operation *o)
{
    qb_bar *bars;
    char title[QB_NAME_BYTES];
    size_t n = 2;
    for (size_t r = 0; r < o->n_runs; r++) n += o->runs[r].n_phases;
    QB_TRY(QB_NEW(&bars, 2 * n, "bars"));
    n = fill_phases(page, o, bars);
    snprintf(title, sizeof title, "Time of a pass: %.40s", or_dash(o->name));
    if (n) {
        qb_page_bars(page, bars, n, QB_SCALE_LINEAR, "ms", title,
                     "Bars show the milliseconds that each phase takes in a pass, in full "
                     "precision and under the scheme; gaps are what the phases leave of the pass.");
        qb_page_figure_caption(page, title);
        write_phase_table(page, title, o);
        qb_page_figure_close(page);
    }
    qb_free(bars);
    return QB_OK;
}

/* ---- the roofline ---- */

static bool is_positive(double value)
{
    return value >= QB_SCALE_LEAST && qb_is_drawable(value);
}

static double intensity_of(const qb_profile_seen_part *p)
{
    return p->ops / p->bytes;
}

static bool is_point(const qb_profile_seen_part *p)
{
    return is_positive(p->ops) && is_positive(p->bytes) && is_positive(p->gops_per_s) &&
           is_positive(intensity_of(p));
}

/* Shapes are phases. */
static size_t phase_marker(const char *phase)
{
    static const char *const known[] = {"gemm", "attention", "head", "norm"};
    for (size_t i = 0; i < QB_COUNT(known); i++)
        if (qb_same_text(phase, known[i])) return i;
    return QB_COUNT(known);
}

static bool make_scales(const qb_profile_seen *p, const qb_profile_seen_operation *o, qb_plot *plot)
{
    qb_range x = {0}, y = {0};
    for (size_t r = 0; r < o->n_runs; r++)
        for (size_t i = 0; i < o->runs[r].n_kernels; i++) {
            const qb_profile_seen_part *k = &o->runs[r].kernels[i];
            if (!is_point(k)) continue;
            qb_range_add(&x, intensity_of(k));
            qb_range_add(&y, k->gops_per_s);
        }
    if (!x.n || !is_positive(p->memory_gb_per_s)) return false;
    for (size_t i = 0; i < QB_PROFILE_SEEN_N_ROOFS; i++) {
        double roof = p->roofs_gops_per_s[i], ridge = roof / p->memory_gb_per_s;
        if (!is_positive(roof) || !is_positive(ridge)) continue;
        qb_range_add(&y, roof);
        qb_range_add(&x, ridge);
        qb_range_add(&x, 3 * ridge);
    }
    plot->x = qb_scale_make(QB_SCALE_LOG, x.low, x.high, 0);
    plot->y = qb_scale_make(QB_SCALE_LOG, y.low, y.high, 0);
    return true;
}

static void write_roofs(FILE *out, const qb_profile_seen *p, const qb_plot *plot)
{
    double speed = p->memory_gb_per_s, x_first = fmax(plot->x.low, plot->y.low / speed);
    double x_last = fmin(plot->x.high, plot->y.high / speed);
    if (x_first < x_last)
        qb_svg_line(out, qb_scale_at(&plot->x, x_first), qb_scale_at(&plot->y, speed * x_first),
                    qb_scale_at(&plot->x, x_last), qb_scale_at(&plot->y, speed * x_last), "roof");
    for (size_t i = 0; i < QB_PROFILE_SEEN_N_ROOFS; i++) {
        double roof = p->roofs_gops_per_s[i], y = qb_scale_at(&plot->y, roof);
        if (is_positive(roof) && is_positive(roof / speed))
            qb_svg_line(out, qb_scale_at(&plot->x, roof / speed), y, plot->x.to, y, "roof");
    }
}

/* After the points, which may lie on them. */
static void write_roof_names(FILE *out, const qb_profile_seen *p, const qb_plot *plot)
{
    for (size_t i = 0; i < QB_PROFILE_SEEN_N_ROOFS; i++) {
        double roof = p->roofs_gops_per_s[i];
        char t[QB_FORMAT_BYTES], text[100];
        if (!is_positive(roof) || !is_positive(roof / p->memory_gb_per_s)) continue;
        snprintf(text, sizeof text, "%s: %s", qb_profile_seen_roofs[i],
                 roof < 10 ? qb_format_significant(roof, t) : qb_format_count(llround(roof), t));
        qb_svg_text(out, plot->x.to, qb_scale_at(&plot->y, roof) - 4, "end", text);
    }
}

static void write_points(qb_page *page, const qb_profile_seen_operation *o, const qb_plot *plot)
{
    for (size_t r = 0; r < o->n_runs; r++)
        for (size_t i = 0; i < o->runs[r].n_kernels; i++) {
            const qb_profile_seen_part *k = &o->runs[r].kernels[i];
            char tip[300], speed[QB_FORMAT_BYTES], share[QB_FORMAT_BYTES];
            if (!is_point(k)) continue;
            snprintf(tip, sizeof tip, "%.40s, %.60s, %.40s: %s Gop/s, %s of the roofline",
                     run_name(&o->runs[r]), or_dash(k->name), or_dash(k->role),
                     qb_format_significant(k->gops_per_s, speed),
                     qb_format_percent(k->roofline_share, share));
            qb_svg_marker(page->out, phase_marker(k->phase), qb_scale_at(&plot->x, intensity_of(k)),
                          qb_scale_at(&plot->y, k->gops_per_s),
                          qb_page_colour(page, run_name(&o->runs[r])), tip);
        }
}

static void write_roof_legend(qb_page *page, const qb_profile_seen_operation *o)
{
    static const char *const names[] = {"products", "attention", "head", "norm", "other phases"};
    fputs("<ul class=\"legend\">\n", page->out);
    for (size_t r = 0; r < o->n_runs; r++) {
        fprintf(page->out, "<li><i class=\"swatch b%zu\"></i>",
                qb_page_colour(page, run_name(&o->runs[r])));
        qb_page_text(page, run_name(&o->runs[r]));
        fputs("</li>\n", page->out);
    }
    for (size_t i = 0; i < QB_COUNT(names); i++)
        qb_page_legend(page, i, qb_page_colour(page, "full"), names[i]);
    fputs("<li><svg aria-hidden=\"true\" viewBox=\"0 0 24 14\" class=\"key wide\">"
          "<path class=\"roof\" d=\"M1 7H23\"/></svg>measured peaks</li>\n</ul>\n",
          page->out);
}

static void write_kernel_table(qb_page *page, const char *title, const qb_profile_seen_operation *o)
{
    char t[QB_FORMAT_BYTES];
    qb_page_details_open(page);
    qb_page_table_open(page, title,
                       "scheme|kernel|tensor|phase|#ms|#operations/byte|#Gop/s|#GB/s|"
                       "#of the roofline");
    for (size_t r = 0; r < o->n_runs; r++)
        for (size_t i = 0; i < o->runs[r].n_kernels; i++) {
            const qb_profile_seen_part *k = &o->runs[r].kernels[i];
            qb_page_row_open(page, run_name(&o->runs[r]));
            qb_page_cell(page, or_dash(k->name));
            qb_page_cell(page, or_dash(k->role));
            qb_page_cell(page, or_dash(k->phase));
            qb_page_number(page, qb_format_significant(k->ms, t));
            qb_page_number(page, qb_format_significant(intensity_of(k), t));
            qb_page_number(page, qb_format_significant(k->gops_per_s, t));
            qb_page_number(page, qb_format_significant(k->gb_per_s, t));
            qb_page_number(page, qb_format_percent(k->roofline_share, t));
            qb_page_row_close(page);
        }
    qb_page_table_close(page);
    qb_page_details_close(page);
}

static void write_roofline(qb_page *page, const qb_profile_seen *p,
                           const qb_profile_seen_operation *o)
{
    qb_plot plot = {
        .width = QB_SVG_WIDTH, .height = 320, .left = 62, .right = 14, .top = 26, .bottom = 44};
    char title[QB_NAME_BYTES];
    if (!make_scales(p, o, &plot)) return;
    snprintf(title, sizeof title, "Roofline: %.40s", or_dash(o->name));
    qb_page_figure_open(page, plot.height, title,
                        "Each point is a kernel: to the right it computes more with each byte, "
                        "above it is faster. The slanted line is what memory allows, the level "
                        "ones what products in each number type reach.");
    qb_svg_axes(page->out, &plot, "operations a byte", "Gop/s");
    write_roofs(page->out, p, &plot);
    write_points(page, o, &plot);
    write_roof_names(page->out, p, &plot);
    qb_page_figure_caption(page, title);
    write_roof_legend(page, o);
    write_kernel_table(page, title, o);
    qb_page_figure_close(page);
}

/* ---- a profile ---- */

static void say_profile(qb_page *page, const qb_profile_seen *p)
{
    char t[QB_FORMAT_BYTES];
    fputs("<p><b>", page->out);
    qb_page_text(page, p->model);
    fputs("</b>, ", page->out);
    qb_page_text(page, p->scheme);
    fputs(", on ", page->out);
    qb_page_text(page, p->machine && *p->machine ? p->machine : p->cpu);
    bool is_gpu = p->device && strcmp(p->device, "cpu");
    if (p->threads > 0 && !is_gpu)
        fprintf(page->out, ", %s threads", qb_format_count(p->threads, t));
    if (p->batch > 0) fprintf(page->out, ", batch %s", qb_format_count(p->batch, t));
    if (p->context > 0) fprintf(page->out, ", context %s", qb_format_count(p->context, t));
    fputs(".</p>\n", page->out);
    if (!p->verdicts.n) return;
    fputs("<ul>\n", page->out);
    for (size_t i = 0; i < p->verdicts.n; i++) {
        fputs("<li>", page->out);
        qb_page_text(page, p->verdicts.items[i]);
        fputs("</li>\n", page->out);
    }
    fputs("</ul>\n", page->out);
}

bool qb_page_has_profile(const qb_page *page)
{
    return page->report->n_profiles > 0;
}

qb_status qb_page_profile(qb_page *page)
{
    for (size_t i = 0; i < page->report->n_profiles; i++) {
        const qb_profile_seen *p = &page->report->profiles[i];
        say_profile(page, p);
        fputs("<div class=\"figures\">\n", page->out);
        for (size_t k = 0; k < p->n_operations; k++) {
            QB_TRY(write_phases(page, &p->operations[k]));
            write_roofline(page, p, &p->operations[k]);
        }
        fputs("</div>\n", page->out);
    }
    return QB_OK;
}
