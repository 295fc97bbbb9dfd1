/* report/html_live.c - the page of a training run that is under way: where it is, and its curves as
 * the report draws them. */
#include "report/html_internal.h"

#include <math.h>

/* Puts a new main part in the place of the old one, with what was opened left open; keeps the last
 * one when the run has ended. Its hash stands in the policy (a test compares them). */
#define SCRIPT                                                                                     \
    "\n"                                                                                           \
    "setInterval(async () => {\n"                                                                  \
    "  const state = document.getElementById('state'), old = document.querySelector('main');\n"    \
    "  try {\n"                                                                                    \
    "    const answer = await fetch('/', {cache: 'no-store'});\n"                                  \
    "    if (!answer.ok) throw answer;\n"                                                          \
    "    const page = new DOMParser().parseFromString(await answer.text(), 'text/html');\n"        \
    "    const main = page.querySelector('main');\n"                                               \
    "    const open = [...old.querySelectorAll('details')].map(x => x.open);\n"                    \
    "    main.querySelectorAll('details').forEach((x, i) => { x.open = open[i]; });\n"             \
    "    old.replaceWith(main);\n"                                                                 \
    "    document.querySelector('h1').textContent = document.title = page.title;\n"                \
    "    state.textContent = 'Read anew every 5 seconds.';\n"                                      \
    "  } catch {\n"                                                                                \
    "    state.textContent = 'No answer: the run has ended, or the connection is lost.';\n"        \
    "  }\n"                                                                                        \
    "}, 5000);\n"
#define HASH "sha256-g0ClVdP8MQUrwBlKu3kVN88gX6Lt1Z7EZpkekx9uB8w="

const char qb_report_live_policy[] =
    "default-src 'none'; style-src 'unsafe-inline'; connect-src 'self'; script-src '" HASH "'";

/* ---- where the run is ---- */

/* The last value of a curve, NaN = none yet. */
static double last_of(const qb_metrics *m, qb_curve_id curve)
{
    for (size_t i = m->n; i-- > 0;)
        if (!isnan(m->points[i].values[curve])) return m->points[i].values[curve];
    return NAN;
}

static void write_row(qb_page *page, const char *name, const char *value)
{
    qb_page_row_open(page, name);
    qb_page_number(page, value);
    qb_page_row_close(page);
}

static void write_time(qb_page *page, const char *name, double seconds)
{
    char text[QB_FORMAT_BYTES];
    if (!(seconds >= 0 && seconds < 1e9)) return;
    long s = (long)seconds, hours = s / 3600;
    snprintf(text, sizeof text, "%ld:%02ld:%02ld", hours, s / 60 % 60, s % 60);
    write_row(page, name, text);
}

static void write_steps(qb_page *page, double step, double n_steps)
{
    char done[QB_FORMAT_BYTES], all[QB_FORMAT_BYTES], text[3 * QB_FORMAT_BYTES];
    qb_format_count((int64_t)step, done);
    if (n_steps > 0)
        snprintf(text, sizeof text, "%s of %s (%.1f %%)", done,
                 qb_format_count((int64_t)n_steps, all), 100 * step / n_steps);
    else
        snprintf(text, sizeof text, "%s", done);
    write_row(page, "step", text);
}

static void write_state(qb_page *page, const qb_metrics *m, const qb_live_run *run)
{
    static const struct {
        const char *name;
        qb_curve_id curve;
        char *(*format)(double value, char *text);
    } rows[] = {{"loss, nats/token", QB_CURVE_LOSS, qb_format_significant},
                {"perplexity at the last evaluation", QB_CURVE_PPL, qb_format_perplexity},
                {"learning rate", QB_CURVE_LR, qb_format_significant},
                {"gradient norm", QB_CURVE_GRAD_NORM, qb_format_significant},
                {"tokens/s", QB_CURVE_TOK_PER_S, qb_format_significant},
                {"MFU", QB_CURVE_MFU, qb_format_percent}};
    char text[QB_FORMAT_BYTES];
    double step = m->points[m->n - 1].step, seconds = last_of(m, QB_CURVE_SECONDS);
    double memory = last_of(m, QB_CURVE_MEMORY);
    qb_page_table_open(page, "Where the run is", "figure|#value");
    write_steps(page, step, run->n_steps);
    for (size_t i = 0; i < QB_COUNT(rows); i++) {
        double value = last_of(m, rows[i].curve);
        if (qb_is_drawable(value)) write_row(page, rows[i].name, rows[i].format(value, text));
    }
    if (memory >= 0 && qb_is_drawable(memory))
        write_row(page, "memory", qb_format_bytes((int64_t)memory, text));
    write_time(page, "trained for", seconds);
    if (step > 0) write_time(page, "about left", seconds / step * (run->n_steps - step));
    qb_page_table_close(page);
}

/* ---- the page ---- */

static void write_title(const qb_metrics *m, const qb_live_run *run, char *text, size_t bytes)
{
    char step[QB_FORMAT_BYTES] = "0";
    if (m->n) qb_format_count((int64_t)m->points[m->n - 1].step, step);
    snprintf(text, bytes, "Step %s: %.100s", step, run->name);
}

qb_status qb_report_write_live(const qb_metrics *metrics, const qb_live_run *run, FILE *stream)
{
    qb_metrics named = *metrics; /* the points stay the other's */
    named.name = (char *)run->name;
    const qb_report report = {.runs = &named, .n_runs = 1};
    qb_page page = {.out = stream, .report = &report, .live = true};
    char title[200];
    write_title(metrics, run, title, sizeof title);
    qb_page_head(&page, title, qb_report_live_policy,
                 "<noscript><meta http-equiv=\"refresh\" content=\"5\"></noscript>\n");
    fputs("<p class=\"note\" id=\"state\" role=\"status\">Read anew every 5 seconds.</p>\n"
          "</header>\n<main>\n",
          stream);
    if (metrics->n) {
        write_state(&page, metrics, run);
        QB_TRY(qb_page_training(&page));
    } else {
        fputs("<p>The run has written no figures yet.</p>\n", stream);
    }
    fputs("<p class=\"note\">All figures: <a href=\"/metrics.jsonl\">metrics.jsonl</a></p>\n"
          "</main>\n<script>" SCRIPT "</script>\n</body>\n</html>\n",
          stream);
    return QB_OK;
}
