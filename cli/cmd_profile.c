/* cli/cmd_profile.c - qbench profile: where the time of a model goes, in full precision and under a
 * scheme, against the measured peaks of the machine.
 *
 *     peaks -> engines of both -> prefill, decode: passes in turns -> figures -> sweep -> verdict
 *
 * The measurements are infer/profiling.c's, the figures cli/profile_figures.c's, the words
 * report/verdict.c's. */
#include "cli/output.h"
#include "cli/prepare.h"
#include "cli/profile_figures.h"
#include "cli/profile_sweep.h"
#include "core/clock.h"
#include "core/cuda.h"
#include "core/memory.h"
#include "infer/environment.h"
#include "infer/peaks.h"
#include "infer/sampler.h"
#include "report/verdict.h"

#include "version.h"

#include <math.h>
#include <string.h>
#include <time.h>

/* ---- outputs ---- */

static const char *const output_options[] = {"json", "md", "trace", NULL};

static qb_status write_json(const void *what, FILE *stream)
{
    return qb_profile_write_json(what, stream);
}

static qb_status write_markdown(const void *what, FILE *stream)
{
    return qb_profile_write_markdown(what, stream);
}

static qb_status write_screen(const void *what, FILE *stream)
{
    return qb_profile_write_screen(what, qb_cli_wants_colour(), stream);
}

static qb_status write_trace(const void *what, FILE *stream)
{
    return qb_trace_write(what, stream);
}

static qb_status write_outputs(const qb_cli *cli, const qb_profile *profile, const qb_trace *trace)
{
    const struct {
        const char *option;
        qb_cli_writer write;
        const void *what;
    } outputs[] = {{"json", write_json, profile},
                   {"md", write_markdown, profile},
                   {"trace", write_trace, trace}};
    bool screen = true;
    for (size_t i = 0; i < QB_COUNT(outputs); i++) {
        const char *path = qb_cli_string(cli, outputs[i].option);
        if (path) QB_TRY(qb_cli_write(path, outputs[i].write, outputs[i].what));
        if (qb_cli_is_stdout(path)) screen = false;
    }
    return screen ? qb_cli_write("-", write_screen, profile) : QB_OK;
}

/* ---- peaks ---- */

static void utc_now(char text[32])
{
    time_t now = time(NULL);
    struct tm utc;
    strftime(text, 32, "%Y-%m-%dT%H:%M:%SZ", gmtime_r(&now, &utc));
}

/* Those of the cache; measured where there are none or --peaks asks for it, and then the higher of
 * both: other work on a machine hides its peaks. */
static qb_status get_peaks(const qb_cli *cli, const qb_device *device, qb_pool *pool,
                           qb_kept_peaks *out)
{
    char key[QB_PEAKS_KEY_BYTES];
    qb_kept_peaks kept;
    bool found;
    qb_peaks_key(device, pool, key);
    QB_TRY(qb_peaks_load(key, &kept, &found));
    if (found && !qb_cli_flag(cli, "peaks")) {
        *out = kept;
        return QB_OK;
    }
    qb_machine machine;
    qb_machine_read(&machine);
    if (machine.load > 0.5 * (double)machine.n_cpus)
        qb_cli_note(cli, "the peaks are measured now, at a load of %.1f: --peaks does it again",
                    machine.load);
    QB_TRY(qb_peaks_measure(device, pool, &out->peaks));
    if (found) qb_peaks_raise(&kept.peaks, &out->peaks);
    utc_now(out->time_utc);
    if (qb_peaks_store(key, out) != QB_OK)
        qb_cli_note(cli, "the peaks are not kept: %s", qb_error_message());
    return QB_OK;
}

static void print_peaks(const qb_kept_peaks *kept)
{
    const qb_peaks *p = &kept->peaks;
    printf("copying            %10.1f GB/s\n", p->copy_gb_per_s);
    if (!isnan(p->read_gb_per_s)) printf("reading            %10.1f GB/s\n", p->read_gb_per_s);
    if (!isnan(p->cache_gb_per_s))
        printf("reading in cache   %10.1f GB/s (of %.0f MB)\n", p->cache_gb_per_s,
               1e-6 * p->cache_bytes);
    for (size_t i = 0; i < QB_RATE_COUNT; i++)
        if (!isnan(p->gops_per_s[i]))
            printf("%-4s product       %10.0f Gop/s\n", qb_rate_names[i], p->gops_per_s[i]);
}

/* ---- the profile ---- */

static qb_status describe(const qb_cli *cli, const qb_profile_case *c, const qb_kept_peaks *peaks,
                          qb_profile *out)
{
    const qb_config *config = &c->model->config;
    qb_machine machine;
    qb_cuda_info gpu;
    bool is_cpu = qb_device_is_cpu(&c->device);
    qb_machine_read(&machine);
    if (!is_cpu) QB_TRY(qb_cuda_info_get(c->device.index, &gpu));
    QB_TRY(qb_strdup(&out->model.path, c->model->path));
    QB_TRY(qb_strdup(&out->model.name, c->model->name));
    snprintf(out->model.arch, sizeof out->model.arch, "%s", config->arch->name);
    out->model.n_layers = (double)config->n_layers;
    out->model.d_model = (double)config->d_model;
    out->model.n_heads = (double)config->n_heads;
    out->model.n_params = (double)qb_config_n_params(config);
    out->model.vocab = (double)config->vocab;
    out->model.context = (double)config->context;
    snprintf(out->scheme, sizeof out->scheme, "%s", c->scheme.name);
    snprintf(out->device, sizeof out->device, "%s", qb_device_backend_name(&c->device));
    snprintf(out->cpu, sizeof out->cpu, "%s", machine.cpu);
    snprintf(out->machine, sizeof out->machine, "%s", is_cpu ? machine.cpu : gpu.name);
    out->threads = qb_pool_n_threads(c->pool);
    out->peaks = peaks->peaks;
    snprintf(out->peaks_time_utc, sizeof out->peaks_time_utc, "%s", peaks->time_utc);
    utc_now(out->time_utc);
    out->qbench_version = QB_VERSION;
    out->git_commit = QB_GIT_COMMIT;
    out->command = qb_cli_command(cli);
    return QB_OK;
}

/* More than the peaks allow, and than the caches explain: these were measured on a busy machine. */
static bool beats_the_peaks(const qb_profile *p)
{
    bool beats = false;
    for (size_t i = 0; i < QB_PROFILE_OPERATIONS; i++) {
        const qb_profile_run *runs[] = {&p->operations[i].full, &p->operations[i].scheme};
        for (size_t e = 0; e < QB_COUNT(runs); e++) {
            const qb_profile_part *gemm = &runs[e]->phases[QB_PHASE_GEMM];
            beats |= gemm->compute_ms > 1.2 * gemm->ms && gemm->compute_ms > gemm->memory_ms;
        }
    }
    return beats;
}

/* Above the memory's roof by more than noise: what a step reads, the one before left in a cache. */
static bool beats_memory(const qb_profile *p)
{
    bool beats = false;
    for (size_t i = 0; i < QB_PROFILE_OPERATIONS; i++) {
        const qb_profile_run *runs[] = {&p->operations[i].full, &p->operations[i].scheme};
        for (size_t e = 0; e < QB_COUNT(runs); e++)
            for (size_t k = 0; k < QB_PHASE_COUNT; k++)
                beats |= runs[e]->phases[k].memory_ms > 1.03 * runs[e]->phases[k].ms;
    }
    return beats;
}

/* A prefill asks for the logits of the last tokens, so its last layer may leave out the others. */
static bool has_short_layer(const qb_profile *p)
{
    const qb_profile_run *run = &p->operations[QB_PROFILE_PREFILL].full;
    size_t n = run->n_layers;
    return n > 1 && run->layers[n - 1].ms < 0.8 * run->layers[n - 2].ms;
}

/* The processor overlaps nothing, so its phases cannot take longer than the pass. */
static bool is_disturbed(const qb_profile *p)
{
    bool disturbed = false;
    for (size_t i = 0; i < QB_PROFILE_OPERATIONS; i++) {
        const qb_profile_operation *op = &p->operations[i];
        disturbed |= op->full.gaps_ms < -0.08 * op->full.ms;
        disturbed |= op->scheme.gaps_ms < -0.08 * op->scheme.ms;
    }
    return disturbed && !strcmp(p->device, "cpu");
}

static void add_notes(qb_profile *p)
{
    if (is_disturbed(p))
        p->notes[p->n_notes++] =
            "phases add up to more than an undisturbed pass: other work disturbed "
            "these passes; profile again on a quiet machine";
    if (beats_the_peaks(p))
        p->notes[p->n_notes++] = "products beat the kept peaks, which were then measured on a busy "
                                 "machine: measure them again (--peaks)";
    if (beats_memory(p))
        p->notes[p->n_notes++] =
            "more than 100 % of the roof: what a step reads is in a cache yet, "
            "and the roof is the memory's";
    if (has_short_layer(p))
        p->notes[p->n_notes++] =
            "the last layer of a prefill works on the last tokens alone behind "
            "its attention, in kernels for few rows where it can";
    bool is_cpu = !strcmp(p->device, "cpu");
    p->notes[p->n_notes++] =
        "dequantising and biases are part of the products (gemm): they happen in their epilogues";
    if (is_cpu)
        p->notes[p->n_notes++] =
            "passes over rows do several phases at once: their time is shared out by what the "
            "threads' clocks say of each";
    else
        p->notes[p->n_notes++] =
            "norms and activations make the next product's codes in the same kernel, and "
            "requantise what they read: what that costs is their difference to full precision";
}

typedef struct profiling {
    const qb_cli *cli;
    qb_profile_case c;
    qb_profile profile;
    qb_trace trace;
} profiling;

static qb_status add_operation(profiling *s, size_t i, const qb_profile_engines *engines)
{
    qb_profile_operation *op = &s->profile.operations[i];
    qb_profiled seen[QB_PROFILED_ENGINES] = {0};
    qb_profiling_plan plan = qb_profile_plan(&s->c, engines, i == QB_PROFILE_DECODE);
    plan.budget_s = qb_cli_double(s->cli, "budget");
    plan.with_timeline = true;
    plan.label = qb_profile_operation_names[i];
    QB_TRY(qb_profiling_run(&plan, seen));
    bool keep = qb_cli_flag(s->cli, "samples");
    qb_status status = QB_OK;
    for (size_t e = 0; e < engines->n; e++) {
        char name[96];
        const char *scheme = e ? s->c.scheme.name : "full";
        if (status == QB_OK)
            status = qb_profile_figures(&seen[e], engines->items[e], scheme, &s->profile.peaks,
                                        keep, e ? &op->scheme : &op->full);
        snprintf(name, sizeof name, "%s, %s", qb_profile_operation_names[i], scheme);
        qb_profile_trace(&seen[e], QB_PROFILED_ENGINES * i + e, name, &s->trace);
        qb_profiled_deinit(&seen[e]);
    }
    op->measured = true;
    op->tokens = (double)(plan.batch * (plan.decode ? 1 : plan.context));
    op->rows = plan.batch * (plan.decode ? 1 : plan.context);
    op->context = plan.context;
    op->sampling_us = NAN;
    return status;
}

/* As `qbench generate` draws; the median of many. */
static qb_status measure_sampling(const profiling *s, const qb_profile_engines *engines,
                                  double *out)
{
    enum { DRAWS = 25 };
    const qb_sampler_options options = {.temperature = 0.8, .top_p = 0.95, .seed = 1};
    qb_sampler *sampler = NULL;
    float *logits = NULL;
    double us[DRAWS];
    qb_status status;
    size_t vocab = s->c.model->config.vocab;
    QB_TRY_GOTO(status, QB_NEW(&logits, vocab * s->c.batch, "logits"), done);
    QB_TRY_GOTO(status, qb_sampler_create(vocab, &options, &sampler), done);
    QB_TRY_GOTO(status, qb_engine_logits(engines->items[0], 0, s->c.batch, logits), done);
    for (size_t i = 0; i < DRAWS; i++) {
        int64_t start = qb_now_ns();
        qb_sampler_next(sampler, logits);
        us[i] = 1e-3 * (double)(qb_now_ns() - start);
    }
    qb_sort(us, DRAWS);
    *out = qb_quantile(us, DRAWS, 0.5);
done:
    qb_sampler_destroy(sampler);
    qb_free(logits);
    return status;
}

static qb_status measure(profiling *s)
{
    qb_profile_engines engines = {0};
    s->profile.batch = s->c.batch;
    s->profile.context = s->c.context;
    qb_status status = qb_profile_engines_create(&s->c, &engines);
    for (size_t i = 0; status == QB_OK && i < QB_PROFILE_OPERATIONS; i++) {
        if (i == QB_PROFILE_DECODE && !s->c.decode_steps) continue;
        status = add_operation(s, i, &engines);
    }
    qb_profile_operation *decode = &s->profile.operations[QB_PROFILE_DECODE];
    if (status == QB_OK && decode->measured)
        status = measure_sampling(s, &engines, &decode->sampling_us);
    qb_profile_engines_destroy(&engines);
    return status;
}

static void judge(qb_profile *p)
{
    for (int i = 0; i < QB_PROFILE_OPERATIONS; i++)
        p->n_findings += qb_verdict_judge(p, i, p->findings + p->n_findings,
                                          QB_PROFILE_MAX_FINDINGS - p->n_findings);
}

static qb_status run(profiling *s, const qb_profile_ranges *ranges)
{
    const qb_cli *cli = s->cli;
    qb_kept_peaks peaks;
    QB_TRY(qb_profile_case_open(cli, &s->c));
    QB_TRY(get_peaks(cli, &s->c.device, s->c.pool, &peaks));
    if (!qb_cli_n_args(cli)) {
        print_peaks(&peaks);
        return QB_OK;
    }
    QB_TRY(describe(cli, &s->c, &peaks, &s->profile));
    QB_TRY(measure(s));
    if (ranges->given) QB_TRY(qb_profile_sweep(&s->c, ranges, &s->profile));
    add_notes(&s->profile);
    judge(&s->profile);
    return write_outputs(cli, &s->profile, &s->trace);
}

qb_status qb_cmd_profile(const qb_cli *cli)
{
    qb_profile_ranges ranges;
    profiling s = {.cli = cli};
    if (!qb_cli_n_args(cli) && !qb_cli_flag(cli, "peaks"))
        return QB_FAIL(QB_ERR_USAGE, "profile: found no MODEL, expected one (or --peaks alone)");
    QB_TRY(qb_cli_check_outputs(cli, output_options));
    QB_TRY(qb_profile_ranges_parse(cli, &ranges));
    qb_status status = run(&s, &ranges);
    qb_trace_deinit(&s.trace);
    qb_profile_deinit(&s.profile);
    qb_profile_case_close(&s.c);
    return status;
}
