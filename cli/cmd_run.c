/* cli/cmd_run.c - qbench run, the main job on one page:
 *
 *     models, text -> tokens, windows -> engines of full precision and each scheme
 *         -> quality in step -> speed in turns -> one record a (model, scheme) -> screen and files
 *
 * The parts are in cli/run_*.c, the measurements in infer/, the writers in report/. */
#include "cli/run.h"

#include "cli/output.h"
#include "cli/prepare.h"
#include "core/memory.h"
#include "infer/nll_file.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* What all models of a run share. */
typedef struct run {
    const qb_cli *cli;
    const qb_run_given *given; /* NULL = models and text are opened here */
    qb_pool *pool;
    qb_device device;
    qb_model **models;
    size_t n_models;
    qb_text text;
    qb_machine machine;
    char time_utc[32];
    qb_results results;
} run;

/* What belongs to one model while it is measured. */
typedef struct model_run {
    const run *r;
    const qb_model *model;
    bool wants_quality, wants_speed;
    qb_run_text text;
    qb_speed_plan speed_plan;
    qb_backbone *backbone;
    qb_backbone_options backbone_options;
    qb_run_schemes schemes;
    qb_run_facts *facts; /* of the engines, as in qb_run_engines.items */
    qb_quality quality;
    qb_speed speed;
    qb_machine_watch watch;
} model_run;

/* ---- outputs ---- */

static const struct {
    const char *option;
    qb_results_writer write;
} formats[] = {{"json", qb_results_write_json},
               {"csv", qb_results_write_csv},
               {"md", qb_results_write_markdown},
               {"junit", qb_results_write_junit}};

typedef struct output {
    const qb_results *results;
    qb_results_writer write;
} output;

static qb_status write_output(const void *what, FILE *stream)
{
    const output *o = what;
    return o->write(o->results, stream);
}

static qb_status write_screen(const qb_results *results, FILE *stream)
{
    return qb_results_write_screen(results, qb_cli_wants_colour(), stream);
}

static qb_status write_outputs(const qb_cli *cli, const qb_results *results)
{
    bool screen = true;
    for (size_t i = 0; i < QB_COUNT(formats); i++) {
        const char *path = qb_cli_string(cli, formats[i].option);
        const output o = {results, formats[i].write};
        if (path) QB_TRY(qb_cli_write(path, write_output, &o));
        if (qb_cli_is_stdout(path)) screen = false;
    }
    const output o = {results, write_screen};
    return screen ? qb_cli_write("-", write_output, &o) : QB_OK;
}

/* ---- one model ---- */

static void plan_speed(model_run *m)
{
    const qb_cli *cli = m->r->cli;
    m->speed_plan = (qb_speed_plan){.batch = qb_cli_size(cli, "speed-batch"),
                                    .budget_s = 5,
                                    .seed = qb_cli_size(cli, "seed"),
                                    .label = "speed"};
    qb_speed_plan_contexts(&m->model->config, qb_cli_size(cli, "speed-context"), &m->speed_plan);
}

static void raise_to(size_t *most, size_t n)
{
    if (n > *most) *most = n;
}

/* As large as the largest of what is to be measured. */
static qb_status make_backbone(model_run *m)
{
    const qb_speed_plan *speed = &m->speed_plan;
    qb_backbone_options *o = &m->backbone_options;
    *o = (qb_backbone_options){
        .max_tokens = 1, .pool = m->r->pool, .device = m->r->device, .logit_slots = 1};
    if (m->wants_quality) {
        raise_to(&o->max_tokens, m->text.batch * m->text.windows.n_feed_max);
        o->logit_slots = QB_LOGIT_SLOTS;
        o->logit_rows = qb_device_logit_rows(&m->r->device, m->model->config.vocab);
    }
    if (m->wants_speed) {
        raise_to(&o->max_tokens, speed->batch * qb_speed_cache_context(speed));
        raise_to(&o->logit_rows, speed->batch);
    }
    return qb_backbone_create(m->model, o, &m->backbone);
}

static void remember(model_run *m, const qb_run_engines *engines)
{
    for (size_t i = 0; i <= engines->n; i++) {
        if (!engines->items[i]) continue;
        qb_engine_coverage(engines->items[i], &m->facts[i].coverage);
        qb_engine_memory_get(engines->items[i], &m->facts[i].memory);
        snprintf(m->facts[i].kernels, sizeof m->facts[i].kernels, "%s",
                 qb_engine_kernels(engines->items[i]));
    }
}

/* Engines of a run on one device, and the cases that an evaluation makes of them. */
typedef struct engine_set {
    qb_backbone *own_backbone; /* NULL = the run's */
    qb_run_engines engines;
    qb_quality_case *cases;
} engine_set;

static qb_status create_set(const model_run *m, qb_backbone *backbone, engine_set *set)
{
    bool with_fakes = !qb_cli_flag(m->r->cli, "no-fake");
    QB_TRY(qb_run_engines_create(&m->schemes, backbone, with_fakes, 0, 0, &set->engines));
    QB_TRY(QB_NEW(&set->cases, set->engines.n, "cases"));
    for (size_t i = 0; i < set->engines.n; i++)
        set->cases[i] = (qb_quality_case){set->engines.items[1 + i], set->engines.fakes[i]};
    return QB_OK;
}

/* The first set is of the run's backbone; the others, where the device is several GPUs, have one
 * each. */
static qb_status create_sets(const model_run *m, engine_set *sets, size_t n)
{
    QB_TRY(create_set(m, m->backbone, &sets[0]));
    for (size_t i = 1; i < n; i++) {
        qb_backbone_options options = m->backbone_options;
        options.device.index += (int)i;
        QB_TRY(qb_backbone_create(m->model, &options, &sets[i].own_backbone));
        QB_TRY(create_set(m, sets[i].own_backbone, &sets[i]));
    }
    return QB_OK;
}

static void destroy_sets(engine_set *sets, size_t n)
{
    for (size_t i = 0; sets && i < n; i++) {
        qb_free(sets[i].cases);
        qb_run_engines_destroy(&sets[i].engines);
        qb_backbone_destroy(sets[i].own_backbone);
    }
    qb_free(sets);
}

/* No more sets than there are batches to share out. */
static size_t count_sets(const model_run *m)
{
    size_t n = m->r->device.n_shared, n_windows = m->text.windows.n;
    size_t n_batches = (n_windows + m->text.batch - 1) / m->text.batch;
    if (n > n_batches) n = n_batches;
    return n ? n : 1;
}

static qb_status measure_quality(model_run *m)
{
    engine_set *sets = NULL;
    qb_quality_replica *replicas = NULL;
    size_t n = count_sets(m);
    qb_status status;
    QB_TRY_GOTO(status, QB_NEW_ZERO(&sets, n, "engines"), done);
    QB_TRY_GOTO(status, QB_NEW_ZERO(&replicas, n, "replicas"), done);
    QB_TRY_GOTO(status, create_sets(m, sets, n), done);
    for (size_t i = 1; i < n; i++)
        replicas[i - 1] = (qb_quality_replica){sets[i].engines.items[0], sets[i].cases};
    qb_quality_plan plan = {.stream = &m->text.stream,
                            .windows = &m->text.windows,
                            .batch = m->text.batch,
                            .full = sets[0].engines.items[0],
                            .cases = sets[0].cases,
                            .n_cases = sets[0].engines.n,
                            .replicas = replicas,
                            .n_replicas = n - 1,
                            .label = "quality"};
    remember(m, &sets[0].engines);
    status = qb_quality_measure(&plan, &m->quality);
done:
    qb_free(replicas);
    destroy_sets(sets, n);
    return status;
}

enum { FEW_SCHEMES = 3 }; /* whose energy is measured without asking */

static qb_status measure_speed(model_run *m)
{
    qb_run_engines engines = {0};
    qb_engine **in_turn = NULL;
    qb_status status;
    QB_TRY_GOTO(status,
                qb_run_engines_create(&m->schemes, m->backbone, false, m->speed_plan.batch,
                                      qb_speed_cache_context(&m->speed_plan), &engines),
                done);
    QB_TRY_GOTO(status, QB_NEW(&in_turn, engines.n + 1, "engines"), done);
    m->speed_plan.n_engines = 0;
    for (size_t i = 0; i <= engines.n; i++)
        if (engines.items[i]) in_turn[m->speed_plan.n_engines++] = engines.items[i];
    m->speed_plan.engines = in_turn;
    m->speed_plan.energy = m->schemes.n <= FEW_SCHEMES || qb_cli_flag(m->r->cli, "energy");
    remember(m, &engines);
    qb_machine_watch_start(&m->watch);
    status = qb_speed_measure(&m->speed_plan, &m->speed);
    qb_machine_watch_stop(&m->watch);
    m->speed_plan.engines = NULL;
done:
    qb_free(in_turn);
    qb_run_engines_destroy(&engines);
    return status;
}

/* One file a scheme; with several models their number goes first, since names may be equal. */
static void nll_name(const model_run *m, const char *scheme, char name[256])
{
    size_t n = 0, number = 1;
    while (m->r->models[number - 1] != m->model) number++;
    if (m->r->n_models > 1) n = (size_t)snprintf(name, 256, "%zu-", number);
    snprintf(name + n, 256 - n, "%.100s-%.60s", m->model->name, scheme);
    for (char *p = name; *p; p++)
        if (*p == '/') *p = '_';
}

/* What a comparison needs to know the file again. */
static qb_status record_nll_file(const char *path, qb_result *result)
{
    qb_file file;
    char sha256[65];
    QB_TRY(qb_file_open(path, &file));
    qb_status status = qb_sha256_hex(file.data, file.bytes, sha256);
    result->quality.nll_file.bytes = (int64_t)file.bytes;
    qb_file_close(&file);
    if (status == QB_OK) status = qb_result_set(&result->quality.nll_file.path, path);
    return status == QB_OK ? qb_result_set(&result->quality.nll_file.sha256, sha256) : status;
}

static qb_status write_nll(const model_run *m, size_t i, qb_result *result)
{
    const char *folder = qb_cli_string(m->r->cli, "nll");
    if (!folder || !m->wants_quality) return QB_OK;
    char name[256], *path = NULL;
    nll_name(m, result->scheme.name, name);
    json_t *metadata = json_pack("{s:s, s:s, s:s}", "model", result->model.name, "scheme",
                                 result->scheme.name, "protocol", result->protocol.name);
    if (!metadata) return QB_FAIL(QB_ERR_MEMORY, "%s: no memory for metadata", name);
    qb_status status =
        qb_nll_file_write(&m->quality, i, &m->text.windows, metadata, folder, name, &path);
    json_decref(metadata);
    if (status == QB_OK) status = record_nll_file(path, result);
    qb_free(path);
    return status;
}

static qb_status record(model_run *m, qb_results *results)
{
    char sha256[65];
    qb_file file;
    bool is_file = !qb_is_folder(m->model->path);
    if (is_file) {
        QB_TRY(qb_file_open(m->model->path, &file));
        qb_status status = qb_sha256_hex(file.data, file.bytes, sha256);
        qb_file_close(&file);
        QB_TRY(status);
    }
    qb_run_seen seen = {.cli = m->r->cli,
                        .model = m->model,
                        .model_sha256 = is_file ? sha256 : NULL,
                        .text = &m->r->text,
                        .run_text = m->wants_quality ? &m->text : NULL,
                        .quality = m->wants_quality ? &m->quality : NULL,
                        .speed_plan = m->wants_speed ? &m->speed_plan : NULL,
                        .speed = m->wants_speed ? &m->speed : NULL,
                        .watch = m->wants_speed ? &m->watch : NULL,
                        .machine = &m->r->machine,
                        .n_threads = qb_pool_n_threads(m->r->pool),
                        .time_utc = m->r->time_utc,
                        .schemes = &m->schemes,
                        .facts = m->facts};
    for (size_t i = 0, speed_idx = 1; i < m->schemes.n; i++) {
        qb_result *result;
        bool is_full = m->schemes.items[i].is_full;
        QB_TRY(qb_results_add(results, &result));
        QB_TRY(qb_run_record(&seen, i, is_full ? 0 : speed_idx++, result));
        QB_TRY(write_nll(m, i, result));
    }
    return QB_OK;
}

static qb_status run_model(run *r, const qb_model *model)
{
    model_run m = {.r = r,
                   .model = model,
                   .wants_quality = !qb_cli_flag(r->cli, "no-quality"),
                   .wants_speed = !qb_cli_flag(r->cli, "no-speed")};
    qb_status status = QB_OK;
    if (m.wants_quality)
        QB_TRY_GOTO(status, qb_run_text_open(r->cli, model, &r->text, r->given, &m.text), done);
    plan_speed(&m);
    QB_TRY_GOTO(status, make_backbone(&m), done);
    QB_TRY_GOTO(status, qb_run_schemes_open(r->cli, model, &r->device, r->pool, &m.schemes), done);
    QB_TRY_GOTO(status, QB_NEW_ZERO(&m.facts, m.schemes.n + 1, "facts of the engines"), done);
    if (m.wants_quality) QB_TRY_GOTO(status, measure_quality(&m), done);
    if (m.wants_speed) QB_TRY_GOTO(status, measure_speed(&m), done);
    status = record(&m, &r->results);
done:
    qb_speed_deinit(&m.speed);
    qb_quality_deinit(&m.quality);
    qb_free(m.facts);
    qb_run_schemes_close(&m.schemes);
    qb_backbone_destroy(m.backbone);
    qb_run_text_close(&m.text);
    return status;
}

/* ---- the run ---- */

static qb_status describe_tokens(const qb_run_given *given, qb_text *text)
{
    QB_TRY(qb_strdup(&text->name, "tokens"));
    text->raw_bytes = given->n_tokens * sizeof *given->tokens;
    return qb_sha256_hex(given->tokens, text->raw_bytes, text->sha256);
}

static qb_status open_text(run *r)
{
    const char *path = qb_cli_string(r->cli, "text");
    const qb_run_given *given = r->given;
    if (qb_cli_flag(r->cli, "no-quality")) return QB_OK;
    if (given && given->tokens) return describe_tokens(given, &r->text);
    if (given && given->text)
        return qb_text_from_memory("memory", given->text, given->n_text_bytes, &r->text);
    if (path) return qb_text_open(path, 0, &r->text);
    QB_TRY(qb_text_builtin(&r->text));
    for (size_t i = 0; i < r->n_models; i++) QB_TRY(qb_run_text_check(r->models[i]));
    qb_cli_note(r->cli, "no --text: the built-in text is used (%zu bytes)", r->text.raw_bytes);
    return QB_OK;
}

/* All models are opened before the first is measured: a wrong name shows at once. */
static qb_status open_models(run *r)
{
    size_t n = qb_cli_n_args(r->cli);
    QB_TRY(QB_NEW_ZERO(&r->models, n, "models"));
    if (r->given) {
        r->models[r->n_models++] = r->given->model;
        return QB_OK;
    }
    for (r->n_models = 0; r->n_models < n; r->n_models++)
        QB_TRY(qb_model_open(qb_cli_arg(r->cli, r->n_models), &r->models[r->n_models]));
    return QB_OK;
}

static qb_status run_all(run *r)
{
    qb_machine_read(&r->machine); /* before our own work raises the load */
    time_t now = time(NULL);
    struct tm utc;
    strftime(r->time_utc, sizeof r->time_utc, "%Y-%m-%dT%H:%M:%SZ", gmtime_r(&now, &utc));
    QB_TRY(qb_cli_prepare(r->cli, &r->device, &r->pool));
    QB_TRY(open_models(r));
    QB_TRY(open_text(r));
    for (size_t i = 0; i < r->n_models; i++) QB_TRY(run_model(r, r->models[i]));
    return QB_OK;
}

qb_status qb_run_measure(const qb_cli *cli, const qb_run_given *given, qb_results *out)
{
    run r = {.cli = cli, .given = given};
    qb_status status = run_all(&r);
    qb_text_deinit(&r.text);
    for (size_t i = 0; i < r.n_models && !given; i++) qb_model_close(r.models[i]);
    qb_free(r.models);
    qb_pool_destroy(r.pool);
    if (status != QB_OK)
        qb_results_deinit(&r.results);
    else
        *out = r.results;
    return status;
}

qb_status qb_cmd_run(const qb_cli *cli)
{
    static const char *const options[] = {"json", "csv", "md", "junit", NULL};
    if (qb_cli_flag(cli, "no-quality") && qb_cli_flag(cli, "no-speed"))
        return QB_FAIL(QB_ERR_USAGE, "--no-quality and --no-speed together leave nothing to do");
    qb_results results = {0};
    QB_TRY(qb_cli_check_outputs(cli, options));
    qb_status status = qb_run_measure(cli, NULL, &results);
    if (status == QB_OK) status = write_outputs(cli, &results);
    qb_results_deinit(&results);
    return status;
}
