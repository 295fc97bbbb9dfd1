/* cli/cmd_train.c - qbench train: starts a run or goes on with one. */
#include "cli/cli.h"

#include "cli/live.h"
#include "cli/output.h"
#include "cli/prepare.h"
#include "core/cuda.h"
#include "core/json.h"
#include "core/memory.h"
#include "core/progress.h"
#include "infer/engine.h"
#include "kernels/registry.h"
#include "report/format.h"
#include "train/loop.h"
#include "train/presets.h"
#include "train/replay.h"
#include "train/run_data.h"
#include "train/run_folder.h"
#include "train/trainer.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* Everything that a run needs, as it is opened. */
typedef struct train {
    const qb_cli *cli;
    qb_comm *comm;
    qb_train_config config;
    qb_run_folder folder;
    qb_checkpoint from; /* file.path NULL = from the start */
    qb_run_data data;
    char device[32]; /* "cpu", "cuda:1" */
    bool on_cpu;
    qb_peak peak;
    bool header_printed;
    qb_live live;
} train;

/* ---- the configuration ---- */

static qb_status read_config_file(const char *path, qb_train_config *config)
{
    json_t *object;
    QB_TRY(qb_json_read_file(path, 1 << 20, &object));
    qb_status status = qb_train_config_merge(config, object);
    json_decref(object);
    return status == QB_OK ? status : qb_error_prefix(status, path);
}

static qb_status apply_flags(train *t)
{
    for (const qb_train_key *key = qb_train_keys; key->name; key++)
        if (qb_cli_is_set(t->cli, key->name))
            QB_TRY(qb_train_config_set(&t->config, key->name, qb_cli_string(t->cli, key->name)));
    return QB_OK;
}

static bool is_root(const train *t)
{
    return qb_comm_rank(t->comm) == 0;
}

static qb_status begin_new(train *t)
{
    const char *preset = qb_cli_string(t->cli, "preset"), *file = qb_cli_string(t->cli, "config");
    const char *out = qb_cli_string(t->cli, "out");
    if (!out) return QB_FAIL(QB_ERR_USAGE, "--out: not given, expected a folder for the run");
    qb_train_config_init(&t->config);
    if (preset) QB_TRY(qb_preset_apply(preset, &t->config));
    if (file) QB_TRY(read_config_file(file, &t->config));
    QB_TRY(apply_flags(t));
    QB_TRY(qb_run_data_open(&t->config, &t->data));
    QB_TRY(qb_train_config_resolve(&t->config, t->data.vocab));
    return is_root(t) ? qb_run_folder_open(out, true, &t->folder)
                      : qb_run_folder_join(out, &t->folder);
}

static qb_status check_resumed(const train *t, const qb_train_config *stored)
{
    uint64_t n_steps = qb_train_config_n_steps(&t->config);
    QB_TRY(qb_train_config_check_same(stored, &t->config));
    if (n_steps < t->from.state.step)
        return QB_FAIL(QB_ERR_USAGE,
                       "--steps: found %llu, expected at least the %llu that are done",
                       (unsigned long long)n_steps, (unsigned long long)t->from.state.step);
    if (t->from.file.path && strcmp(t->from.state.data_sha256, qb_batches_sha256(t->data.train)))
        return QB_FAIL(QB_ERR_FORMAT,
                       "%s: the data are others than the run was begun with: found "
                       "%.12s..., expected %.12s...",
                       t->config.data, qb_batches_sha256(t->data.train), t->from.state.data_sha256);
    return QB_OK;
}

static qb_status find_checkpoint(train *t, const char *path)
{
    size_t n_broken = 0;
    QB_TRY(is_root(t) ? qb_run_folder_open(path, false, &t->folder)
                      : qb_run_folder_join(path, &t->folder));
    QB_TRY(qb_run_folder_resume(&t->folder, &t->config, &t->from, &n_broken));
    if (n_broken && is_root(t))
        qb_cli_note(t->cli, "%s: %zu newer checkpoint%s cannot be read: %s", path, n_broken,
                    n_broken > 1 ? "s" : "", qb_error_message());
    return QB_OK;
}

static qb_status begin_resumed(train *t, const char *path)
{
    static const char *const others[] = {"preset", "config", "out"};
    for (size_t i = 0; i < QB_COUNT(others); i++)
        if (qb_cli_is_set(t->cli, others[i]))
            return QB_FAIL(QB_ERR_USAGE, "--%s: found together with --resume, expected one of them",
                           others[i]);
    QB_TRY(find_checkpoint(t, path));
    QB_TRY(qb_train_config_resolve(&t->config, 0));
    qb_train_config stored = t->config;
    QB_TRY(apply_flags(t));
    QB_TRY(qb_run_data_open(&t->config, &t->data));
    QB_TRY(qb_train_config_resolve(&t->config, t->data.vocab));
    return check_resumed(t, &stored);
}

/* ---- the device ---- */

/* Several ranks on a host: each its own GPU. Where the launcher shows each but one, that is it. */
static qb_status take_local_gpu(const train *t, char own[32], const char **wanted)
{
    size_t n_gpus = qb_comm_size(t->comm) > 1 ? qb_cuda_count() : 0;
    size_t place = qb_comm_local_rank(t->comm);
    *wanted = t->config.device;
    if (!n_gpus || !strcmp(*wanted, "cpu")) return QB_OK;
    if (strcmp(*wanted, "cuda") && strcmp(*wanted, "auto"))
        return QB_FAIL(QB_ERR_USAGE, "--device: found %s, expected cuda: each rank takes its own",
                       *wanted);
    if (n_gpus > 1 && place >= n_gpus)
        return QB_FAIL(QB_ERR_USAGE, "found more than %zu ranks on a host of %zu GPUs", place,
                       n_gpus);
    snprintf(own, 32, "cuda:%zu", place % n_gpus);
    *wanted = own;
    return QB_OK;
}

static qb_status choose_device(train *t)
{
    qb_device device;
    const char *note;
    char own[32];
    const char *wanted;
    QB_TRY(take_local_gpu(t, own, &wanted));
    QB_TRY(qb_device_find(wanted, &device, &note));
    QB_TRY(qb_kernel_force(qb_cli_string(t->cli, "kernel")));
    if (note && is_root(t)) qb_cli_note(t->cli, "no GPU is used: %s", note);
    const char *backend = qb_device_backend_name(&device);
    bool can = qb_trainer_has_device(backend) || strcmp(t->config.device, "auto");
    if (!can && is_root(t)) qb_cli_note(t->cli, "no GPU is used: this build cannot train on one");
    t->on_cpu = !can || qb_device_is_cpu(&device);
    if (t->on_cpu)
        snprintf(t->device, sizeof t->device, "cpu");
    else
        snprintf(t->device, sizeof t->device, "%.20s:%d", backend, device.index);
    return QB_OK;
}

/* What each rank found out itself. */
typedef struct found {
    uint64_t step; /* of the checkpoint; UINT64_MAX = none */
    uint64_t is_cpu;
} found;

static qb_status check_alike(train *t)
{
    found own = {t->from.file.path ? t->from.state.step : UINT64_MAX, t->on_cpu};
    found *all;
    size_t n = qb_comm_size(t->comm), r = 0;
    QB_TRY(QB_NEW(&all, n, "ranks"));
    qb_status status = qb_comm_all(t->comm, &own, sizeof own, all);
    while (status == QB_OK && r < n && !memcmp(&all[r], &all[0], sizeof own)) r++;
    bool same_step = status != QB_OK || r == n || all[r].step == all[0].step;
    qb_free(all);
    if (status != QB_OK || r == n) return status;
    if (!same_step)
        return QB_FAIL(QB_ERR_IO,
                       "%s: found different checkpoints in ranks 0 and %zu, expected one folder",
                       t->folder.path, r);
    return QB_FAIL(QB_ERR_USAGE,
                   "of ranks 0 and %zu one found a GPU, expected --device cpu or one for each", r);
}

/* ---- what is printed ---- */

static const char *run_name(const train *t)
{
    return t->config.name[0] ? t->config.name : t->config.model.arch->name;
}

/* On a processor, a preset made for GPUs: said before the first step, which may take minutes. */
static void warn_if_long(const train *t)
{
    const qb_train_config *c = &t->config;
    uint64_t n_steps = qb_train_config_n_steps(c) - (t->from.file.path ? t->from.state.step : 0);
    double tokens = (double)c->batch * (double)c->model.context;
    double flops = 6 * (double)qb_config_n_params(&c->model) * tokens;
    double peak = t->peak.tflops * 1e12 * (double)qb_comm_size(t->comm);
    double step_s = peak > 0 ? flops / peak : 0;
    double hours = step_s * (double)n_steps / 3600;
    if (t->on_cpu && hours >= 2)
        qb_cli_note(t->cli,
                    "at that peak a step takes %.*f s and the run %.0f hours, at the least; "
                    "gpt2-1m is a preset for a processor",
                    step_s < 10 ? 1 : 0, step_s, hours);
}

static void print_start(const train *t)
{
    const qb_train_config *c = &t->config;
    char params[QB_FORMAT_BYTES], steps[QB_FORMAT_BYTES];
    qb_format_count((int64_t)qb_config_n_params(&c->model), params);
    qb_format_count((int64_t)qb_train_config_n_steps(c), steps);
    qb_cli_note(t->cli, "%s: %s parameters, %s, %s; %s steps of %zu windows of %zu; %s",
                run_name(t), params, qb_softmax_names[c->model.softmax],
                qb_optimizers[c->optimizer].name, steps, c->batch, c->model.context, t->device);
    if (qb_comm_size(t->comm) > 1)
        qb_cli_note(t->cli, "%zu ranks, each with %s and its share of every step's windows",
                    qb_comm_size(t->comm), t->on_cpu ? "its processors" : "a GPU");
    if (t->peak.tflops > 0)
        qb_cli_note(t->cli, "MFU is the share of %.3g TFLOP/s (%s)", t->peak.tflops,
                    t->peak.source);
    if (!t->data.valid && c->task == QB_TASK_TEXT)
        qb_cli_note(t->cli,
                    "%s: no validation shards (valid*.qbs, --valid), so nothing is evaluated",
                    c->data);
    if (!t->data.tokenizer && c->task == QB_TASK_TEXT)
        qb_cli_note(t->cli, "%s: no tokenizer.json, so the model gets no tokenizer", c->data);
    if (t->from.file.path)
        qb_cli_note(t->cli, "going on after step %llu", (unsigned long long)t->from.state.step);
    warn_if_long(t);
    if (c->minutes > 0)
        qb_cli_note(t->cli,
                    "saves and stops after %g minutes, as a resumed run does (--minutes 0: never)",
                    c->minutes);
}

/* One column of the table of evaluations. */
typedef struct column {
    const char *head;
    int width, precision;
    double value;
} column;

static void print_row(train *t, const column *columns, size_t n, const char *end)
{
    for (size_t i = 0; i < n && !t->header_printed; i++)
        printf("%s%*s", i ? " " : "", columns[i].width, columns[i].head);
    if (!t->header_printed) printf("\n");
    t->header_printed = true;
    for (size_t i = 0; i < n; i++) {
        const column *c = &columns[i];
        if (isfinite(c->value))
            printf("%s%*.*f", i ? " " : "", c->width, c->precision, c->value);
        else
            printf("%s%*s", i ? " " : "", c->width, "-");
    }
    printf("%s\n", end);
    fflush(stdout);
}

static void print_evaluation(void *context, const qb_loop_seen *s)
{
    train *t = context;
    const qb_evaluation *e = &s->evaluation;
    const qb_outliers *o = &e->outliers;
    const qb_bb_layer *first = &e->bb.layers[0], *last = first;
    if (e->bb.n_layers) last += e->bb.n_layers - 1;
    const column text[] = {
        {"step", 6, 0, (double)s->step},    {"train", 7, 4, s->loss},
        {"valid", 7, 4, e->loss},           {"ppl", 8, 3, qb_perplexity(e->loss)},
        {"bits/B", 6, 4, e->bits_per_byte}, {"kurt 1", 6, 2, o->kurt_token_first},
        {">1", 6, 2, o->kurt_token_rest},   {"max 1", 6, 2, o->max_abs_first},
        {">1", 6, 2, o->max_abs_rest},      {"%first", 6, 1, 100 * o->attn_first_argmax}};
    const column bb[] = {{"step", 8, 0, (double)s->step},
                         {"train", 8, 4, s->loss},
                         {"valid", 8, 4, e->loss},
                         {"backcopy", 10, 6, e->bb.backcopy_risk},
                         {"bigram", 8, 4, e->bb.bigram_risk},
                         {"attn <s>", 9, 3, last->attn_bos},
                         {"gap <s>", 8, 2, last->score_gap},
                         {"value <s>", 9, 2, last->value_bos},
                         {"others", 7, 2, last->value_rest},
                         {"stream <s>", 10, 2, first->stream_bos},
                         {"others", 7, 2, first->stream_rest},
                         {"tok/s", 9, 0, s->tok_per_s}};
    const char *end = s->is_best ? "  best" : "";
    if (e->bb.n_layers)
        print_row(t, bb, QB_COUNT(bb), end);
    else
        print_row(t, text, QB_COUNT(text), end);
}

static void print_end(const train *t, const qb_loop_result *r)
{
    const qb_run_state *s = &r->state;
    uint64_t n_steps = qb_train_config_n_steps(&t->config);
    printf("%s: %llu of %llu steps, %.1f s", t->folder.path, (unsigned long long)s->step,
           (unsigned long long)n_steps, s->seconds);
    if (isfinite(r->seen.loss)) printf(", loss %.4f", r->seen.loss);
    if (isfinite(s->best_loss))
        printf(", best %.4f at step %llu", s->best_loss, (unsigned long long)s->best_step);
    printf("\n");
    if (!t->config.checkpoints)
        qb_cli_note(t->cli, "nothing was saved");
    else if (r->end == QB_LOOP_TIME_UP)
        printf("the time is up; to go on: qbench train --resume %s\n", t->folder.path);
    else if (t->from.file.path && t->from.state.step == s->step)
        qb_cli_note(t->cli, "nothing was left to do; --steps N makes the run longer");
    else if (t->data.tokenizer)
        qb_cli_note(t->cli, "to see what quantisation costs it: qbench --scheme all %s/%s",
                    t->folder.path, isfinite(s->best_loss) ? "best.bin" : "model.bin");
}

/* ---- recorded runs ---- */

static qb_status replay(train *t, const char *path)
{
    const char *out = qb_cli_string(t->cli, "out");
    if (qb_cli_is_set(t->cli, "serve"))
        return QB_FAIL(QB_ERR_USAGE, "--serve: found together with --replay, expected one of them");
    QB_TRY(qb_cli_check_outputs(t->cli, (const char *const[]){"out", NULL}));
    qb_train_config_init(&t->config);
    QB_TRY(apply_flags(t));
    QB_TRY(choose_device(t));
    bool norm = qb_cli_is_set(t->cli, "norm"), precision = qb_cli_is_set(t->cli, "precision");
    const qb_replay_options options = {.softmax = qb_softmax_names[t->config.model.softmax],
                                       .optimizer = qb_optimizers[t->config.optimizer].name,
                                       .norm = norm ? qb_norm_names[t->config.model.norm] : NULL,
                                       .lr = t->config.schedule.peak,
                                       .device = t->device,
                                       .full_f32 =
                                           !precision || t->config.precision == QB_PRECISION_F32,
                                       .recompute = t->config.recompute,
                                       .micro_batch = t->config.micro_batch,
                                       .n_threads = t->config.threads};
    qb_replay_result result;
    json_t *json;
    QB_TRY(qb_replay_run(path, &options, &result));
    qb_status status = qb_replay_to_json(&result, &json);
    if (status == QB_OK) {
        status = qb_cli_emit_json(out ? out : "-", json, "replay");
        json_decref(json);
    }
    qb_replay_result_deinit(&result);
    return status;
}

/* ---- the verb ---- */

static qb_status run(train *t)
{
    const qb_loop_options options = {.folder = t->folder.path,
                                     .device = t->device,
                                     .from = t->from.file.path ? &t->from : NULL,
                                     .comm = t->comm,
                                     .train = t->data.train,
                                     .valid = t->data.valid,
                                     .bb = t->config.task == QB_TASK_BB ? &t->data.bb : NULL,
                                     .tokenizer = t->data.tokenizer,
                                     .peak = t->peak,
                                     .evaluated = print_evaluation,
                                     .context = t};
    qb_loop_result result;
    QB_TRY(qb_loop_run(&options, &t->config, &result));
    if (is_root(t)) print_end(t, &result);
    return QB_OK;
}

static qb_status begin(train *t)
{
    const char *resume = qb_cli_string(t->cli, "resume");
    if (is_root(t)) QB_TRY(qb_live_open(t->cli, &t->live)); /* before anything is made */
    QB_TRY(resume ? begin_resumed(t, resume) : begin_new(t));
    QB_TRY(choose_device(t));
    if (!is_root(t)) return QB_OK;
    QB_TRY(qb_peak_find(t->device, t->config.peak_tflops, t->config.threads, &t->peak));
    QB_TRY(qb_run_folder_write_config(&t->folder, &t->config));
    return qb_live_start(t->cli, &t->live, t->folder.path, run_name(t),
                         qb_train_config_n_steps(&t->config));
}

static qb_status begin_and_run(train *t)
{
    QB_TRY(qb_comm_open(&t->comm));
    if (!is_root(t)) qb_progress_open(NULL, false);
    QB_TRY(qb_comm_check(t->comm, begin(t)));
    QB_TRY(check_alike(t));
    qb_cli_when_interrupted(
        t->cli, "\nqbench: finishing the step, then saving; Ctrl-C again leaves at once\n");
    if (is_root(t)) print_start(t);
    qb_status status = run(t);
    qb_cli_when_interrupted(t->cli, NULL);
    return status;
}

qb_status qb_cmd_train(const qb_cli *cli)
{
    train t = {.cli = cli, .folder = {.fd = -1}};
    const char *recorded = qb_cli_string(cli, "replay");
    qb_status status = recorded ? replay(&t, recorded) : begin_and_run(&t);
    qb_live_close(&t.live);
    qb_checkpoint_close(&t.from);
    qb_run_data_close(&t.data);
    qb_run_folder_close(&t.folder);
    if (qb_comm_close(t.comm, status)) qb_cli_leave_error_to_another();
    return status;
}
