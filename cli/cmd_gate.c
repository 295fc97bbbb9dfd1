/* cli/cmd_gate.c - qbench gate: a result, or a model that is run first, against a baseline and
 * limits. */
#include "cli/cmd_compare.h"
#include "cli/gate_run.h"
#include "cli/output.h"
#include "cli/prepare.h"
#include "core/file.h"
#include "report/gate.h"
#include "report/read_json.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define LIMITS_FILE "qbench-gate.json"

typedef struct gate_run {
    const qb_cli *cli;
    const char *baseline_path;
    qb_gate_limits limits;
    qb_compare_options options;
    qb_results baseline, result;
    bool by_default; /* no limit is given */
    bool has_run;    /* models, here and now */
    bool is_new;     /* there is no baseline yet: --update-baseline makes it */
    qb_comparison comparison;
    qb_gate gate;
} gate_run;

/* ---- limits ---- */

static qb_status read_limits(gate_run *g)
{
    const char *file = qb_cli_string(g->cli, "limits");
    bool any = file;
    if (!file && !access(LIMITS_FILE, F_OK)) file = LIMITS_FILE;
    if (file) QB_TRY(qb_gate_limits_read(file, &g->limits));
    for (size_t i = 0; i < QB_LIMIT_COUNT; i++) {
        char what[40];
        const char *text = qb_cli_string(g->cli, qb_limits[i].name);
        snprintf(what, sizeof what, "--%s", qb_limits[i].name);
        if (text) QB_TRY(qb_gate_limit_set(g->limits.limits, (qb_limit_id)i, text, what));
        any = any || text;
    }
    if (any || file) return QB_OK;
    g->by_default = true;
    return qb_gate_limit_set(g->limits.limits, QB_LIMIT_PPL_DELTA, "0.5%", "default");
}

static bool has_limit(const qb_gate_limits *limits, qb_limit_id id)
{
    bool found = isfinite(limits->limits[id].value);
    for (size_t i = 0; i < limits->n_schemes; i++)
        found = found || isfinite(limits->schemes[i].limits[id].value);
    return found;
}

/* ---- both sides ---- */

static qb_status read_baseline(gate_run *g)
{
    g->is_new = qb_cli_flag(g->cli, "update-baseline") && access(g->baseline_path, F_OK);
    return g->is_new ? QB_OK : qb_results_read_json(g->baseline_path, &g->baseline);
}

static qb_status get_result(gate_run *g)
{
    const char *first = qb_cli_arg(g->cli, 0);
    bool is_result = false, update = qb_cli_flag(g->cli, "update-baseline");
    if (!qb_is_folder(first)) QB_TRY(qb_cli_is_json_file(first, &is_result));
    if (is_result && qb_cli_n_args(g->cli) > 1)
        return QB_FAIL(QB_ERR_USAGE, "gate: found '%s' beside the result %s, expected nothing",
                       qb_cli_arg(g->cli, 1), first);
    if (is_result) return qb_results_read_json(first, &g->result);
    if (g->is_new)
        return QB_FAIL(QB_ERR_USAGE,
                       "%s: found no baseline to run %s like, expected a result of qbench run",
                       g->baseline_path, first);
    g->has_run = true;
    bool speed = update || has_limit(&g->limits, QB_LIMIT_SLOWDOWN) ||
                 has_limit(&g->limits, QB_LIMIT_SPEEDUP_LOSS);
    return qb_gate_run(g->cli, &g->baseline, speed, &g->result);
}

static bool has_model(const qb_results *results, const char *model_and_scheme)
{
    for (size_t i = 0; i < results->n; i++) {
        const char *name = results->items[i].model.name;
        size_t n = name ? strlen(name) : 0;
        if (n && !strncmp(model_and_scheme, name, n) && model_and_scheme[n] == ',') return true;
    }
    return false;
}

/* A scheme that is not there any more keeps no limit. Of the models those count that were named. */
static qb_status check_complete(const gate_run *g)
{
    const qb_texts *missing = &g->comparison.only_a;
    if (qb_cli_flag(g->cli, "update-baseline")) return QB_OK;
    for (size_t i = 0; i < missing->n; i++)
        if (!g->has_run || has_model(&g->result, missing->items[i]))
            return QB_FAIL(QB_ERR_FORMAT, "%s: found no record of %s, expected one as in %s",
                           qb_cli_arg(g->cli, 0), missing->items[i], g->baseline_path);
    return QB_OK;
}

static qb_status judge(gate_run *g)
{
    const qb_compare_side a = {&g->baseline, g->baseline_path};
    const qb_compare_side b = {&g->result, qb_cli_arg(g->cli, 0)};
    QB_TRY(qb_compare(&a, &b, &g->options, &g->comparison));
    QB_TRY(check_complete(g));
    return qb_gate_judge(&g->comparison, &g->limits, qb_cli_flag(g->cli, "strict"), &g->gate);
}

/* ---- outputs ---- */

static qb_status write_screen(const void *what, FILE *stream)
{
    return qb_gate_write_screen(what, qb_cli_wants_colour(), stream);
}

static qb_status write_markdown(const void *what, FILE *stream)
{
    return qb_gate_write_markdown(what, stream);
}

static qb_status write_junit(const void *what, FILE *stream)
{
    return qb_gate_write_junit(what, stream);
}

static qb_status write_github(const void *what, FILE *stream)
{
    const qb_gate *gate = what;
    return qb_gate_write_github(gate, gate->comparison->name_a, stream);
}

static qb_status write_results(const void *what, FILE *stream)
{
    return qb_results_write_json(what, stream);
}

static qb_status to_json(const void *what, json_t **out)
{
    return qb_gate_to_json(what, out);
}

/* The summary file of a step is added to, never replaced. */
static qb_status append_summary(const qb_gate *gate)
{
    const char *path = getenv("GITHUB_STEP_SUMMARY");
    if (!path || !*path) return QB_OK;
    FILE *file = fopen(path, "a");
    if (!file) return QB_FAIL_SYSTEM(path, errno, "written", "a writable file with space for it");
    qb_status status = qb_gate_write_markdown(gate, file);
    if (fclose(file) && status == QB_OK)
        status = QB_FAIL_SYSTEM(path, errno, "written", "a writable file with space for it");
    return status;
}

static bool wants_github(const qb_cli *cli)
{
    const char *actions = getenv("GITHUB_ACTIONS");
    return qb_cli_flag(cli, "github") || (actions && !strcmp(actions, "true"));
}

static qb_status write_outputs(const gate_run *g)
{
    const char *json = qb_cli_string(g->cli, "json"), *md = qb_cli_string(g->cli, "md");
    const char *junit = qb_cli_string(g->cli, "junit");
    bool screen = !qb_cli_is_stdout(json) && !qb_cli_is_stdout(md) && !qb_cli_is_stdout(junit);
    if (json) QB_TRY(qb_cli_write_json(json, to_json, &g->gate));
    if (md) QB_TRY(qb_cli_write(md, write_markdown, &g->gate));
    if (junit) QB_TRY(qb_cli_write(junit, write_junit, &g->gate));
    if (screen) QB_TRY(qb_cli_write("-", write_screen, &g->gate));
    if (!wants_github(g->cli)) return QB_OK;
    if (screen) QB_TRY(qb_cli_write("-", write_github, &g->gate));
    return append_summary(&g->gate);
}

static qb_status update_baseline(const gate_run *g)
{
    QB_TRY(qb_cli_write(g->baseline_path, write_results, &g->result));
    qb_cli_note(g->cli, "%s: %s", g->baseline_path,
                g->is_new             ? "made"
                : g->gate.n_broken    ? "replaced, although limits are broken"
                : g->gate.n_undecided ? "replaced, although limits are undecided"
                                      : "replaced; all limits are kept");
    return QB_OK;
}

/* ---- the gate ---- */

static qb_status verdict(const gate_run *g)
{
    const char *name = qb_cli_arg(g->cli, 0);
    if (g->gate.n_broken)
        return QB_FAIL(QB_ERR_GATE, "%s: found %zu of %zu limits broken, expected none", name,
                       g->gate.n_broken, g->gate.n);
    if (g->gate.n_undecided)
        return QB_FAIL(QB_ERR_INCONCLUSIVE, "%s: found %zu of %zu limits undecided, expected none",
                       name, g->gate.n_undecided, g->gate.n);
    return QB_OK;
}

static qb_status run(gate_run *g)
{
    static const char *const outputs[] = {"json", "md", "junit", NULL};
    if (!g->baseline_path)
        return QB_FAIL(QB_ERR_USAGE,
                       "gate: found no --baseline, expected the file to compare with");
    QB_TRY(qb_cli_compare_options(g->cli, &g->options));
    QB_TRY(read_limits(g));
    QB_TRY(qb_cli_check_outputs(g->cli, outputs));
    QB_TRY(read_baseline(g));
    QB_TRY(get_result(g));
    if (!g->is_new) {
        QB_TRY(judge(g));
        if (g->by_default) qb_cli_note(g->cli, "no limit is given: --max-ppl-delta 0.5%%");
        QB_TRY(write_outputs(g));
    }
    return qb_cli_flag(g->cli, "update-baseline") ? update_baseline(g) : verdict(g);
}

qb_status qb_cmd_gate(const qb_cli *cli)
{
    gate_run g = {.cli = cli, .baseline_path = qb_cli_string(cli, "baseline")};
    qb_gate_limits_init(&g.limits);
    qb_status status = run(&g);
    qb_gate_deinit(&g.gate);
    qb_comparison_deinit(&g.comparison);
    qb_results_deinit(&g.baseline);
    qb_results_deinit(&g.result);
    qb_gate_limits_deinit(&g.limits);
    return status;
}
