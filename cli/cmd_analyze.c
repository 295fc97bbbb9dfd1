/* cli/cmd_analyze.c - qbench analyze: what a model's activations and attention look like.
 *
 *     model, texts -> windows -> the full-precision engine, with an analysis as its observer
 *         -> metrics by layer -> the sections that options ask for -> screen, JSON
 *
 * The metrics are in infer/analysis*.c; a further section is a row of `sections` and a file. */
#include "cli/analyze.h"

#include "cli/output.h"
#include "cli/prepare.h"
#include "core/memory.h"
#include "report/html.h"
#include "report/write_analysis.h"

#include <math.h>
#include <string.h>
#include <time.h>

static const qb_analyze_section sections[] = {
    {NULL, false, qb_analyze_add_weights},
    {qb_analyze_wants_basis, false, qb_analyze_add_basis},
    {qb_analyze_wants_interventions, true, qb_analyze_add_interventions},
    {qb_analyze_wants_sensitivity, false, qb_analyze_add_sensitivity},
    {0},
};

/* ---- passes ---- */

/* Windows of which nothing is scored: no logits are made. */
static qb_status unscored(const qb_windows *from, qb_windows *to)
{
    *to = *from;
    to->n_scored = 0;
    QB_TRY(QB_NEW(&to->items, from->n, "windows"));
    for (size_t i = 0; i < from->n; i++) {
        to->items[i] = from->items[i];
        to->items[i].n_scored = 0;
    }
    return QB_OK;
}

static qb_status pass_text(qb_analyze *a, const qb_run_text *r, const char *label, double *nll_sum)
{
    qb_windows silent = {0};
    qb_quality quality = {0};
    if (!nll_sum) QB_TRY(unscored(&r->windows, &silent));
    const qb_quality_plan plan = {.stream = &r->stream,
                                  .windows = nll_sum ? &r->windows : &silent,
                                  .batch = r->batch,
                                  .full = a->engine,
                                  .label = label};
    qb_status status = qb_quality_measure(&plan, &quality);
    if (status == QB_OK && nll_sum) *nll_sum = qb_sum(quality.nll_full, quality.n);
    qb_quality_deinit(&quality);
    qb_free(silent.items);
    return status;
}

qb_status qb_analyze_pass(qb_analyze *a, const char *label, double *nll_sums)
{
    for (size_t i = 0; i < a->n_texts; i++) {
        if (a->analysis) qb_analysis_begin_text(a->analysis, i);
        QB_TRY(pass_text(a, &a->texts[i].run, label, nll_sums ? &nll_sums[i] : NULL));
    }
    return QB_OK;
}

static bool is_wanted(const qb_analyze_section *s, const qb_cli *cli)
{
    return !s->wanted || s->wanted(cli);
}

static bool wants_losses(const qb_cli *cli)
{
    for (const qb_analyze_section *s = sections; s->add; s++)
        if (s->losses && is_wanted(s, cli)) return true;
    return false;
}

/* ---- preparing ---- */

static qb_status create_engine(qb_analyze *a)
{
    qb_backbone_options wide = {.max_tokens = a->max_rows,
                                .pool = a->pool,
                                .device = a->device,
                                .logit_slots = QB_LOGIT_SLOTS,
                                .logit_rows =
                                    qb_device_logit_rows(&a->device, a->model->config.vocab)};
    QB_TRY(qb_backbone_create(a->model, &wide, &a->backbone));
    const qb_engine_options options = {.scheme = qb_scheme_find("full-f32")};
    return qb_engine_create(a->backbone, &options, &a->engine);
}

static qb_status create_analysis(qb_analyze *a)
{
    const qb_analysis_options options = {.max_rows = a->max_rows,
                                         .context = a->context,
                                         .n_texts = a->n_texts,
                                         .maps = qb_cli_flag(a->cli, "maps") ||
                                                 qb_cli_is_set(a->cli, "html"),
                                         .pool = a->pool};
    return qb_analysis_create(a->model, &options, &a->analysis);
}

static qb_status prepare(qb_analyze *a)
{
    time_t now = time(NULL);
    struct tm utc;
    qb_machine_read(&a->machine);
    strftime(a->time_utc, sizeof a->time_utc, "%Y-%m-%dT%H:%M:%SZ", gmtime_r(&now, &utc));
    QB_TRY(qb_cli_prepare(a->cli, &a->device, &a->pool));
    QB_TRY(qb_model_open(qb_cli_arg(a->cli, 0), &a->model));
    QB_TRY(qb_analyze_check_interventions(a));
    QB_TRY(qb_analyze_check_basis(a));
    QB_TRY(qb_analyze_open_texts(a));
    QB_TRY(create_engine(a));
    QB_TRY(create_analysis(a));
    QB_TRY(QB_NEW(&a->nll_sums, a->n_texts, "losses"));
    for (size_t i = 0; i < a->n_texts; i++) a->nll_sums[i] = NAN;
    return QB_OK;
}

static void destroy(qb_analyze *a)
{
    qb_free(a->nll_sums);
    qb_analysis_destroy(a->analysis);
    qb_engine_destroy(a->engine);
    qb_backbone_destroy(a->backbone);
    qb_analyze_close_texts(a);
    qb_model_close(a->model);
    qb_pool_destroy(a->pool);
}

/* ---- the result ---- */

static qb_status common_record(const qb_analyze *a, const qb_analyze_text *t, json_t **out)
{
    char sha256[65];
    bool is_first = t == a->texts; /* the model is told of once */
    bool is_file = is_first && !qb_is_folder(a->model->path);
    if (is_file) {
        qb_file file;
        QB_TRY(qb_file_open(a->model->path, &file));
        qb_status status = qb_sha256_hex(file.data, file.bytes, sha256);
        qb_file_close(&file);
        QB_TRY(status);
    }
    const qb_run_seen seen = {.cli = a->cli,
                              .model = a->model,
                              .model_sha256 = is_file ? sha256 : NULL,
                              .text = &t->text,
                              .run_text = &t->run,
                              .machine = &a->machine,
                              .n_threads = qb_pool_n_threads(a->pool),
                              .time_utc = a->time_utc};
    qb_results one = {0};
    qb_result *record;
    qb_status status = qb_results_add(&one, &record);
    if (status == QB_OK) status = qb_run_record_common(&seen, record);
    if (status == QB_OK) status = qb_result_to_json(record, out);
    qb_results_deinit(&one);
    return status;
}

/* One text: what it is, how it was cut, and the loss where it was asked for. */
static void add_text(const qb_analyze *a, size_t i, json_t *record, json_t *texts)
{
    json_t *text = json_object_get(record, "text"), *protocol = json_object_get(record, "protocol");
    const qb_windows *w = &a->texts[i].run.windows;
    json_object_set(text, "protocol", protocol);
    json_object_set_new(text, "bos", json_boolean(qb_cli_flag(a->cli, "bos")));
    json_object_set_new(text, "ppl", qb_json_real(exp(a->nll_sums[i] / (double)w->n_scored)));
    json_array_append(texts, text);
}

static qb_status describe(const qb_analyze *a, json_t *root)
{
    static const char *const keys[] = {"model",          "environment", "time_utc",
                                       "qbench_version", "git_commit",  "command"};
    json_t *texts = json_array();
    qb_status status = QB_OK;
    for (size_t i = 0; i < a->n_texts && status == QB_OK; i++) {
        json_t *record;
        status = common_record(a, &a->texts[i], &record);
        if (status != QB_OK) break;
        for (size_t k = 0; i == 0 && k < QB_COUNT(keys); k++)
            json_object_set(root, keys[k], json_object_get(record, keys[k]));
        add_text(a, i, record, texts);
        json_decref(record);
    }
    json_object_set_new(root, "texts", texts);
    return status;
}

static qb_status fill(qb_analyze *a, json_t *root)
{
    size_t mark = qb_json_mark();
    double *losses = wants_losses(a->cli) ? a->nll_sums : NULL;
    QB_TRY(qb_engine_observe(a->engine, qb_analysis_taps(a->analysis)));
    QB_TRY(qb_analyze_pass(a, "analysis", losses));
    QB_TRY(qb_engine_observe(a->engine, NULL));
    json_object_set_new(root, "schema", json_string("qbench.analysis/1"));
    QB_TRY(qb_analysis_to_json(a->analysis, root));
    for (const qb_analyze_section *s = sections; s->add; s++)
        if (is_wanted(s, a->cli)) QB_TRY(s->add(a, root));
    QB_TRY(describe(a, root));
    return qb_json_check_memory(mark, "analysis");
}

static qb_status write_json(const void *what, FILE *stream)
{
    return qb_json_write_lines(what, "analysis", stream);
}

static qb_status write_html(const void *what, FILE *stream)
{
    return qb_report_write_html(what, "qbench analyze", stream);
}

static qb_status write_page(const char *path, const json_t *root)
{
    qb_report report = {0};
    qb_status status = qb_report_add_analysis(&report, root, "analysis");
    if (status == QB_OK) status = qb_cli_write(path, write_html, &report);
    qb_report_deinit(&report);
    return status;
}

static qb_status write_screen(const void *what, FILE *stream)
{
    return qb_analysis_write_screen(what, stream);
}

static qb_status write_csv(const void *what, FILE *stream)
{
    return qb_analysis_write_csv(what, stream);
}

static qb_status write_markdown(const void *what, FILE *stream)
{
    return qb_analysis_write_markdown(what, stream);
}

static const struct {
    const char *option;
    qb_cli_writer write; /* NULL = write_page */
} outputs[] = {{"json", write_json}, {"csv", write_csv}, {"md", write_markdown}, {"html", NULL}};

/* The screen, unless another output goes where it would. */
static qb_status write_outputs(const qb_cli *cli, const json_t *root)
{
    bool taken = false;
    for (size_t i = 0; i < QB_COUNT(outputs); i++) {
        const char *path = qb_cli_string(cli, outputs[i].option);
        if (!path) continue;
        taken |= qb_cli_is_stdout(path);
        QB_TRY(outputs[i].write ? qb_cli_write(path, outputs[i].write, root)
                                : write_page(path, root));
    }
    return taken ? QB_OK : qb_cli_write("-", write_screen, root);
}

qb_status qb_cmd_analyze(const qb_cli *cli)
{
    const char *names[QB_COUNT(outputs) + 1] = {0};
    qb_analyze a = {.cli = cli};
    for (size_t i = 0; i < QB_COUNT(outputs); i++) names[i] = outputs[i].option;
    QB_TRY(qb_cli_check_outputs(cli, names));
    json_t *root = json_object();
    qb_status status = root ? prepare(&a) : QB_FAIL(QB_ERR_MEMORY, "analysis: no memory for JSON");
    if (status == QB_OK) status = fill(&a, root);
    if (status == QB_OK) status = write_outputs(cli, root);
    json_decref(root);
    destroy(&a);
    return status;
}
