/* cli/gate_run.c - the command line of `qbench run` that repeats a baseline; see gate_run.h. */
#include "cli/gate_run.h"

#include "cli/run.h"
#include "infer/protocols.h"
#include "model/text.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

enum { MAX_WORDS = 128, MAX_NUMBERS = 8, SCHEMES_BYTES = 1024 };

/* A command line that grows; words are borrowed or numbers of its own. */
typedef struct words {
    char *items[MAX_WORDS];
    size_t n;
    char numbers[MAX_NUMBERS][24];
    size_t n_numbers;
    char schemes[SCHEMES_BYTES];
} words;

static void add(words *w, const char *word)
{
    w->items[w->n++] = (char *)word; /* parsing changes no word */
}

static void add_option(words *w, const char *option, const char *value)
{
    if (!value) return;
    add(w, option);
    add(w, value);
}

static void add_number(words *w, const char *option, int64_t value)
{
    if (value < 0) return;
    char *text = w->numbers[w->n_numbers++];
    snprintf(text, sizeof w->numbers[0], "%" PRId64, value);
    add_option(w, option, text);
}

/* Each scheme once, in the order of the baseline. */
static qb_status add_schemes(words *w, const qb_results *baseline)
{
    size_t n = 0;
    for (size_t i = 0; i < baseline->n; i++) {
        const char *name = baseline->items[i].scheme.name;
        bool seen = !name;
        for (size_t k = 0; k < i && !seen; k++)
            seen = baseline->items[k].scheme.name && !strcmp(baseline->items[k].scheme.name, name);
        if (seen) continue;
        int more = snprintf(w->schemes + n, sizeof w->schemes - n, "%s%s", n ? "," : "", name);
        if ((size_t)more >= sizeof w->schemes - n)
            return QB_FAIL(QB_ERR_FORMAT, "scheme.name: longer than any list of schemes");
        n += (size_t)more;
    }
    if (!n) return QB_FAIL(QB_ERR_FORMAT, "results: found no scheme.name, expected one at least");
    add_option(w, "--scheme", w->schemes);
    return QB_OK;
}

static const qb_result *first_with_text(const qb_results *baseline)
{
    for (size_t i = 0; i < baseline->n; i++)
        if (baseline->items[i].text.sha256) return &baseline->items[i];
    return NULL;
}

static const qb_result *first_with_speed(const qb_results *baseline)
{
    for (size_t i = 0; i < baseline->n; i++)
        if (!isnan(baseline->items[i].speed.prefill.tok_per_s)) return &baseline->items[i];
    return NULL;
}

static void add_quality(words *w, const qb_result *r)
{
    const qb_protocol *protocol = r->protocol.name ? qb_protocol_find(r->protocol.name) : NULL;
    add_option(w, "--protocol", r->protocol.name);
    add_number(w, "--context", r->protocol.context);
    if (protocol && protocol->has_stride) add_number(w, "--stride", r->protocol.stride);
    add_number(w, "--batch", r->protocol.batch);
    add_number(w, "--max-tokens", r->text.tokens);
}

static void add_speed(words *w, const qb_result *r)
{
    add_number(w, "--speed-batch", r->speed.batch);
    add_number(w, "--speed-context", r->speed.context);
}

static qb_status check_text(const char *path, const qb_result *r)
{
    qb_text text;
    QB_TRY(path ? qb_text_open(path, 0, &text) : qb_text_builtin(&text));
    bool same = !strcmp(text.sha256, r->text.sha256);
    char found[65];
    snprintf(found, sizeof found, "%s", text.sha256);
    qb_text_deinit(&text);
    if (same) return QB_OK;
    return QB_FAIL(QB_ERR_FORMAT,
                   "%s: text.sha256: found %s, expected %.64s of the baseline's text, %.80s",
                   path ? path : "the built-in text", found, r->text.sha256,
                   r->text.name ? r->text.name : "without a name");
}

qb_status qb_gate_run(const qb_cli *cli, const qb_results *baseline, bool wants_speed,
                      qb_results *out)
{
    words w = {.n = 0};
    const qb_result *quality = first_with_text(baseline);
    const qb_result *speed = wants_speed ? first_with_speed(baseline) : NULL;
    const char *text = qb_cli_string(cli, "text");
    if (!quality && !speed)
        return QB_FAIL(QB_ERR_FORMAT, "%s: found neither quality nor speed to repeat, expected one",
                       qb_cli_string(cli, "baseline"));
    if (quality) QB_TRY(check_text(text, quality));
    add(&w, "qbench");
    add(&w, "run");
    QB_TRY(add_schemes(&w, baseline));
    if (quality)
        add_quality(&w, quality);
    else
        add(&w, "--no-quality");
    if (speed)
        add_speed(&w, speed);
    else
        add(&w, "--no-speed");
    if (!quality || isnan(quality->quality.ppl_fake)) add(&w, "--no-fake");
    add_option(&w, "--text", text);
    add_option(&w, "--device", qb_cli_string(cli, "device"));
    add_option(&w, "--kernel", qb_cli_string(cli, "kernel"));
    int64_t threads = qb_cli_is_set(cli, "threads") ? (int64_t)qb_cli_size(cli, "threads")
                                                    : baseline->items[0].environment.threads;
    add_number(&w, "--threads", threads > 0 ? threads : -1);
    add_number(&w, "--seed", (int64_t)qb_cli_size(cli, "seed"));
    if (qb_cli_flag(cli, "quiet")) add(&w, "--quiet");
    add(&w, "--");
    for (size_t i = 0; i < qb_cli_n_args(cli); i++) add(&w, qb_cli_arg(cli, i));
    qb_cli *run;
    QB_TRY(qb_cli_parse((int)w.n, w.items, &run));
    qb_status status = qb_run_measure(run, NULL, out);
    qb_cli_destroy(run);
    return status;
}
