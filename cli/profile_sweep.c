/* cli/profile_sweep.c - the engines of a profile, and speeds over batch and context; see
 * profile_sweep.h. */
#include "cli/profile_sweep.h"

#include "cli/prepare.h"
#include "core/interrupt.h"
#include "core/memory.h"
#include "quant/quantize_model.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { DECODE_STEPS = 96, MAX_BATCH = 4096, MAX_CONTEXT = 1 << 24 };

/* ---- one batch and context ---- */

/* Decoding needs room behind the prompt, within what a sequence may have. */
static void fit_context(qb_profile_case *c, size_t context)
{
    size_t most = qb_config_longest(&c->model->config);
    c->context = context < most ? context : most;
    c->decode_steps = DECODE_STEPS < most / 2 ? DECODE_STEPS : most / 2;
    c->decode_from = c->context + c->decode_steps <= most ? c->context : most - c->decode_steps;
}

static qb_status open_scheme(const qb_cli *cli, qb_profile_case *c)
{
    QB_TRY(qb_cli_scheme(cli, qb_cli_string(cli, "scheme"), c->model, &c->scheme));
    bool quantises = c->scheme.weights.bits || c->scheme.input.bits || c->scheme.output.bits;
    c->is_full = !quantises && (!c->scheme.f32 || qb_device_full_is_f32(&c->device));
    QB_TRY(qb_cli_calibration(cli, &c->scheme, c->model, c->pool, &c->calibration));
    if (!c->scheme.weights.bits) return QB_OK;
    return qb_quantize_model(c->model, &c->scheme, c->calibration,
                             qb_cli_flag(cli, "quantize-head"), c->pool, &c->codes);
}

qb_status qb_profile_case_open(const qb_cli *cli, qb_profile_case *c)
{
    *c = (qb_profile_case){.cli = cli, .batch = qb_cli_size(cli, "batch")};
    QB_TRY(qb_cli_prepare(cli, &c->device, &c->pool));
    if (!qb_cli_n_args(cli)) return QB_OK;
    QB_TRY(qb_model_open(qb_cli_arg(cli, 0), &c->model));
    QB_TRY(open_scheme(cli, c));
    size_t asked = qb_cli_size(cli, "context");
    fit_context(c, asked);
    if (c->context < asked)
        qb_cli_note(cli, "--context %zu: %zu tokens are taken, since the model has %zu positions",
                    asked, c->context, qb_config_longest(&c->model->config));
    return QB_OK;
}

void qb_profile_case_close(qb_profile_case *c)
{
    qb_model_close(c->codes);
    qb_calibration_destroy(c->calibration);
    qb_model_close(c->model);
    qb_pool_destroy(c->pool);
    *c = (qb_profile_case){0};
}

static size_t cache_context(const qb_profile_case *c)
{
    size_t decode = c->decode_from + c->decode_steps;
    return c->context > decode ? c->context : decode;
}

static qb_status create_engines(const qb_profile_case *c, qb_profile_engines *e)
{
    size_t tokens;
    if (!qb_mul_size(c->batch, c->context, &tokens))
        return QB_FAIL(QB_ERR_MEMORY, "%zu x %zu tokens overflow", c->batch, c->context);
    qb_backbone_options wide = {.max_tokens = tokens,
                                .pool = c->pool,
                                .device = c->device,
                                .logit_slots = 1,
                                .logit_rows = c->batch};
    QB_TRY(qb_backbone_create(c->model, &wide, &e->backbone));
    qb_engine_options o = {.scheme = qb_scheme_find("full"),
                           .cache_batch = c->batch,
                           .cache_context = cache_context(c)};
    QB_TRY(qb_engine_create(e->backbone, &o, &e->items[0]));
    e->n = 1;
    if (c->is_full) return QB_OK;
    o.scheme = &c->scheme;
    o.quantize_head = qb_cli_flag(c->cli, "quantize-head");
    o.calibration = c->calibration;
    o.quantized = c->codes;
    QB_TRY(qb_engine_create(e->backbone, &o, &e->items[1]));
    e->n = 2;
    return QB_OK;
}

qb_status qb_profile_engines_create(const qb_profile_case *c, qb_profile_engines *out)
{
    qb_profile_engines engines = {0};
    qb_status status = create_engines(c, &engines);
    if (status != QB_OK)
        qb_profile_engines_destroy(&engines);
    else
        *out = engines;
    return status;
}

void qb_profile_engines_destroy(qb_profile_engines *e)
{
    for (size_t i = 0; i < QB_PROFILED_ENGINES; i++) qb_engine_destroy(e->items[i]);
    qb_backbone_destroy(e->backbone);
    *e = (qb_profile_engines){0};
}

qb_profiling_plan qb_profile_plan(const qb_profile_case *c, const qb_profile_engines *engines,
                                  bool decode)
{
    return (qb_profiling_plan){.decode = decode,
                               .batch = c->batch,
                               .context = decode ? c->decode_from : c->context,
                               .decode_steps = c->decode_steps,
                               .seed = qb_cli_size(c->cli, "seed"),
                               .engines = engines->items,
                               .n_engines = engines->n};
}

/* ---- ranges ---- */

static qb_status parse_range(const char *text, size_t most, const char *item, qb_profile_range *out)
{
    char *end;
    unsigned long long from = strtoull(text, &end, 10), to = from;
    bool ok = *text >= '0' && *text <= '9';
    if (ok && !strncmp(end, "..", 2)) {
        const char *second = end + 2;
        to = strtoull(second, &end, 10);
        ok = *second >= '0' && *second <= '9';
    }
    if (!ok || *end || from < 1 || to < from || to > most)
        return QB_FAIL(QB_ERR_USAGE,
                       "--sweep: found '%.60s', expected A..B with 1 <= A <= B <= %zu", item, most);
    *out = (qb_profile_range){(size_t)from, (size_t)to};
    return QB_OK;
}

static qb_status parse_item(const char *item, qb_profile_ranges *out)
{
    out->given = true;
    if (!strncmp(item, "batch=", 6)) return parse_range(item + 6, MAX_BATCH, item, &out->batch);
    if (!strncmp(item, "context=", 8))
        return parse_range(item + 8, MAX_CONTEXT, item, &out->context);
    return QB_FAIL(QB_ERR_USAGE, "--sweep: found '%.60s', expected batch=A..B or context=A..B",
                   item);
}

qb_status qb_profile_ranges_parse(const qb_cli *cli, qb_profile_ranges *out)
{
    size_t batch = qb_cli_size(cli, "batch"), context = qb_cli_size(cli, "context");
    *out = (qb_profile_ranges){.batch = {batch, batch}, .context = {context, context}};
    for (size_t i = 0; i < qb_cli_list_n_items(cli, "sweep"); i++)
        QB_TRY(parse_item(qb_cli_list_item(cli, "sweep", i), out));
    if (!out->given && qb_cli_n_args(cli) > 1)
        return QB_FAIL(QB_ERR_USAGE, "profile: found '%.60s' behind MODEL, expected nothing",
                       qb_cli_arg(cli, 1));
    for (size_t i = 1; i < qb_cli_n_args(cli); i++) QB_TRY(parse_item(qb_cli_arg(cli, i), out));
    return QB_OK;
}

/* ---- the sweep ---- */

static const double longest_s = 8; /* of a prefill that is worth waiting for */
static const char too_long[] = "a prefill would take too long";
static const char no_memory[] = "not enough memory";
static const char too_wide[] = "more positions than the model has";

static qb_status measure_point(const qb_profile_case *c, qb_sweep_row *row)
{
    qb_profile_engines engines;
    qb_status status = qb_profile_engines_create(c, &engines);
    if (status == QB_ERR_MEMORY) {
        row->skipped = no_memory;
        return QB_OK;
    }
    QB_TRY(status);
    for (int i = 0; i < QB_PROFILE_OPERATIONS && status == QB_OK; i++) {
        if (i == QB_PROFILE_DECODE && !c->decode_steps) continue;
        qb_profiled seen[QB_PROFILED_ENGINES] = {0};
        qb_profiling_plan plan = qb_profile_plan(c, &engines, i == QB_PROFILE_DECODE);
        plan.budget_s = qb_cli_double(c->cli, "budget") / 8;
        plan.label = "sweep";
        status = qb_profiling_run(&plan, seen);
        for (size_t e = 0; e < engines.n && status == QB_OK; e++) {
            qb_timing timing;
            status = qb_samples_summarize(&seen[e].undisturbed, &timing);
            *(e ? &row->tok_per_s[i] : &row->full_tok_per_s[i]) = timing.tok_per_s;
        }
        for (size_t e = 0; e < engines.n; e++) qb_profiled_deinit(&seen[e]);
    }
    qb_profile_engines_destroy(&engines);
    return status;
}

/* Tokens a second of full precision's prefill at the point before, to foresee the next. */
static double slowest_prefill(const qb_profile *p)
{
    double slowest = p->operations[QB_PROFILE_PREFILL].full.tok_per_s;
    for (size_t i = 0; i < p->n_sweep; i++)
        if (!p->sweep[i].skipped)
            slowest = fmin(slowest, p->sweep[i].full_tok_per_s[QB_PROFILE_PREFILL]);
    return slowest;
}

static qb_status add_point(const qb_profile_case *base, size_t batch, size_t context, qb_profile *p)
{
    qb_profile_case c = *base;
    qb_sweep_row row = {.batch = batch, .context = context};
    for (size_t i = 0; i < QB_PROFILE_OPERATIONS; i++)
        row.full_tok_per_s[i] = row.tok_per_s[i] = NAN;
    c.batch = batch;
    fit_context(&c, context);
    QB_TRY(qb_interrupt_check());
    if (c.context < context)
        row.skipped = too_wide;
    else if ((double)(batch * context) / slowest_prefill(p) > longest_s)
        row.skipped = too_long;
    else
        QB_TRY(measure_point(&c, &row));
    QB_TRY(qb_realloc((void **)&p->sweep, p->n_sweep, p->n_sweep + 1, sizeof row, "sweep"));
    p->sweep[p->n_sweep++] = row;
    return QB_OK;
}

static size_t next_of(const qb_profile_range *range, size_t at)
{
    if (at == range->to) return 0;
    return 2 * at < range->to ? 2 * at : range->to;
}

qb_status qb_profile_sweep(const qb_profile_case *c, const qb_profile_ranges *ranges,
                           qb_profile *profile)
{
    if (c->is_full)
        return QB_FAIL(QB_ERR_USAGE, "--sweep: %s is full precision here: nothing to compare",
                       c->scheme.name);
    for (size_t t = ranges->context.from; t; t = next_of(&ranges->context, t))
        for (size_t b = ranges->batch.from; b; b = next_of(&ranges->batch, b))
            QB_TRY(add_point(c, b, t, profile));
    return QB_OK;
}
