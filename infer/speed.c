/* infer/speed.c - see speed.h. */
#include "infer/speed.h"

#include "core/clock.h"
#include "core/interrupt.h"
#include "core/memory.h"
#include "core/progress.h"
#include "core/rng.h"
#include "infer/energy.h"

#include <math.h>
#include <string.h>

enum {
    DECODE_FROM = 256,
    DECODE_STEPS = 128, /* then the cache is filled anew */
    DECODE_RUN = 8,     /* tokens a sample */
    FAST_RUN = 56,      /* the same where a token takes less than fast_ms: waits weigh less */
    MIN_SAMPLES = 10,
    MAX_SAMPLES = 200,
    MAX_WARM_UPS = 6,
};
static const double steady_change = 0.05; /* between two warm-up rounds */
static const double warm_up_ms = 4000;    /* after which a machine that is not steady will not be */
static const double fast_ms = 2;
static const double narrow_enough = 0.01; /* half width over median: more rounds add little */

/* ---- plan ---- */

void qb_speed_plan_contexts(const qb_config *config, size_t context, qb_speed_plan *plan)
{
    size_t most = config->context;
    plan->context = context < most ? context : most;
    plan->decode_steps = DECODE_STEPS < most / 2 ? DECODE_STEPS : most / 2;
    plan->decode_from =
        DECODE_FROM < most - plan->decode_steps ? DECODE_FROM : most - plan->decode_steps;
}

size_t qb_speed_cache_context(const qb_speed_plan *plan)
{
    size_t decode = plan->decode_from + plan->decode_steps;
    return plan->context > decode ? plan->context : decode;
}

/* ---- samples ---- */

qb_status qb_samples_add(qb_samples *samples, double ms)
{
    if (samples->n == samples->capacity) {
        size_t more = samples->capacity ? 2 * samples->capacity : 32;
        QB_TRY(qb_realloc((void **)&samples->ms, samples->capacity, more, sizeof *samples->ms,
                          "samples"));
        samples->capacity = more;
    }
    samples->ms[samples->n++] = ms;
    return QB_OK;
}

void qb_samples_deinit(qb_samples *samples)
{
    qb_free(samples->ms);
    *samples = (qb_samples){0};
}

qb_status qb_samples_summarize(const qb_samples *samples, qb_timing *out)
{
    *out = (qb_timing){NAN, {NAN, NAN}, NAN, NAN, NAN, samples->n};
    if (!samples->n) return QB_OK;
    double *sorted;
    QB_TRY(QB_NEW(&sorted, samples->n, "sorted samples"));
    memcpy(sorted, samples->ms, samples->n * sizeof *sorted);
    qb_sort(sorted, samples->n);
    out->p50_ms = qb_quantile(sorted, samples->n, 0.5);
    out->p90_ms = qb_quantile(sorted, samples->n, 0.9);
    out->p99_ms = qb_quantile(sorted, samples->n, 0.99);
    qb_interval ms = qb_median_ci95(sorted, samples->n);
    double tokens = 1e3 * samples->tokens_per_sample;
    out->tok_per_s = tokens / out->p50_ms;
    out->tok_per_s_ci95 = (qb_interval){tokens / ms.high, tokens / ms.low};
    qb_free(sorted);
    return QB_OK;
}

double qb_timing_half_width(const qb_timing *timing)
{
    qb_interval ci = timing->tok_per_s_ci95;
    double half = (ci.high - ci.low) / 2 / timing->tok_per_s;
    return isfinite(half) ? half : INFINITY;
}

/* ---- one operation of one engine ---- */

typedef struct stopwatch {
    const qb_speed_plan *plan;
    int32_t *tokens; /* (batch, longest context), random */
    size_t run;      /* tokens a sample of decoding */
    qb_progress progress;
    size_t done;
} stopwatch;

/* *ms = the time of one sample of engine `e`. */
typedef qb_status (*sample_fn)(stopwatch *s, size_t e, double *ms);

static qb_status sample_prefill(stopwatch *s, size_t e, double *ms)
{
    const qb_speed_plan *p = s->plan;
    qb_engine *engine = p->engines[e];
    QB_TRY(qb_engine_sync(engine));
    double start = qb_now_ms();
    QB_TRY(qb_engine_prefill_last(engine, s->tokens, p->batch, p->context));
    QB_TRY(qb_engine_head(engine, 0, 0, 1, p->batch));
    QB_TRY(qb_engine_sync(engine));
    *ms = qb_now_ms() - start;
    return QB_OK;
}

static qb_status decode_token(stopwatch *s, qb_engine *engine)
{
    QB_TRY(qb_engine_decode_step(engine, s->tokens + qb_engine_position(engine) * s->plan->batch));
    return qb_engine_head(engine, 0, 0, 1, s->plan->batch);
}

/* One untimed token brings the engine's weights back to the caches it can keep them in, after the
 * other engines' turns; then a run is timed. */
static qb_status sample_decode(stopwatch *s, size_t e, double *ms)
{
    const qb_speed_plan *p = s->plan;
    qb_engine *engine = p->engines[e];
    size_t run = p->decode_steps > s->run ? s->run : p->decode_steps - 1;
    size_t position = qb_engine_position(engine);
    if (position < p->decode_from || position + run + 1 > p->decode_from + p->decode_steps)
        QB_TRY(qb_engine_prefill_last(engine, s->tokens, p->batch, p->decode_from));
    QB_TRY(decode_token(s, engine));
    QB_TRY(qb_engine_sync(engine));
    double start = qb_now_ms();
    for (size_t i = 0; i < run; i++) QB_TRY(decode_token(s, engine));
    QB_TRY(qb_engine_sync(engine));
    *ms = (qb_now_ms() - start) / (double)run;
    return QB_OK;
}

/* ---- rounds ---- */

static qb_status run_round(stopwatch *s, sample_fn sample, double *ms)
{
    for (size_t e = 0; e < s->plan->n_engines; e++) {
        QB_TRY(qb_interrupt_check());
        QB_TRY(sample(s, e, &ms[e]));
        qb_progress_update(&s->progress, ++s->done);
    }
    return QB_OK;
}

static double slowest(const double *ms, size_t n)
{
    double most = 0;
    for (size_t i = 0; i < n; i++) most = fmax(most, ms[i]);
    return most;
}

/* Rounds until one repeats the times of the one before; ms is left with that round's times, which
 * are the first samples. */
static qb_status warm_up(stopwatch *s, sample_fn sample, double *ms, bool *steady)
{
    double *last = ms + s->plan->n_engines, start = qb_now_ms();
    bool same = false;
    for (size_t round = 0; round < MAX_WARM_UPS && !same; round++) {
        if (round > 1 && qb_now_ms() - start > warm_up_ms) break;
        memcpy(last, ms, s->plan->n_engines * sizeof *ms);
        QB_TRY(run_round(s, sample, ms));
        same = round > 0;
        s->run = slowest(ms, s->plan->n_engines) < fast_ms ? FAST_RUN : DECODE_RUN;
        for (size_t e = 0; e < s->plan->n_engines; e++)
            same = same && fabs(ms[e] / last[e] - 1) < steady_change;
    }
    *steady = *steady && same;
    return QB_OK;
}

static qb_samples *samples_of(qb_speed *speed, size_t e, size_t offset)
{
    return (qb_samples *)((char *)&speed->engines[e] + offset);
}

static qb_status all_narrow(qb_speed *speed, size_t offset, bool *out)
{
    *out = true;
    for (size_t e = 0; e < speed->n_engines && *out; e++) {
        qb_timing t;
        QB_TRY(qb_samples_summarize(samples_of(speed, e, offset), &t));
        *out = qb_timing_half_width(&t) < narrow_enough;
    }
    return QB_OK;
}

/* Fills the samples at `offset` of each engine's result. */
static qb_status measure_operation(stopwatch *s, sample_fn sample, size_t offset, qb_speed *speed)
{
    const qb_speed_plan *p = s->plan;
    double *ms, start = qb_now_ms();
    size_t min_samples = p->min_samples ? p->min_samples : MIN_SAMPLES;
    bool enough = false;
    QB_TRY(QB_NEW_ZERO(&ms, 2 * p->n_engines, "times of a round"));
    qb_status status = warm_up(s, sample, ms, &speed->steady);
    for (size_t n = 1; status == QB_OK; n++) {
        for (size_t e = 0; e < p->n_engines && status == QB_OK; e++)
            status = qb_samples_add(samples_of(speed, e, offset), ms[e]);
        if (status == QB_OK && n >= min_samples) status = all_narrow(speed, offset, &enough);
        bool late = qb_now_ms() - start > 1e3 * p->budget_s;
        if (enough || n >= MAX_SAMPLES || (n >= min_samples && late)) break;
        if (status == QB_OK) status = run_round(s, sample, ms);
    }
    qb_free(ms);
    return status;
}

/* ---- energy ---- */

/* Decoding without pause for as long as the meter asks; its mean power over the time of a token. */
static qb_status measure_energy(stopwatch *s, size_t e, qb_speed_result *result)
{
    qb_energy_meter *meter;
    qb_timing timing;
    double ms;
    qb_status status = QB_OK;
    if (isnan(qb_energy_read_j())) return QB_OK;
    QB_TRY(qb_energy_begin(&meter));
    while (status == QB_OK && !qb_energy_enough(meter)) {
        status = qb_interrupt_check();
        if (status == QB_OK) status = sample_decode(s, e, &ms);
    }
    double watts = qb_energy_end(meter);
    if (status == QB_OK) status = qb_samples_summarize(&result->decode, &timing);
    if (status == QB_OK) result->j_per_token = watts / timing.tok_per_s;
    return status;
}

/* ---- the run ---- */

static qb_status create(stopwatch *s, qb_speed *speed)
{
    const qb_speed_plan *p = s->plan;
    size_t vocab = qb_engine_model(p->engines[0])->config.vocab;
    size_t n = p->batch * (qb_speed_cache_context(p) + 1);
    QB_TRY(QB_NEW(&s->tokens, n, "random tokens"));
    QB_TRY(QB_NEW_ZERO(&speed->engines, p->n_engines, "timings"));
    speed->n_engines = p->n_engines;
    for (size_t e = 0; e < p->n_engines; e++) {
        speed->engines[e].prefill.tokens_per_sample = (double)(p->batch * p->context);
        speed->engines[e].decode.tokens_per_sample = (double)p->batch;
        speed->engines[e].j_per_token = NAN;
    }
    for (size_t i = 0; i < n; i++)
        s->tokens[i] = (int32_t)qb_rng_below(p->seed, QB_STREAM_SAMPLER, i, vocab);
    return QB_OK;
}

static qb_status run(stopwatch *s, qb_speed *speed)
{
    const qb_speed_plan *p = s->plan;
    QB_TRY(create(s, speed));
    QB_TRY(measure_operation(s, sample_prefill, offsetof(qb_speed_result, prefill), speed));
    if (p->decode_steps < 2) return QB_OK; /* a context too short to decode in */
    QB_TRY(measure_operation(s, sample_decode, offsetof(qb_speed_result, decode), speed));
    for (size_t e = 0; p->energy && e < p->n_engines; e++)
        QB_TRY(measure_energy(s, e, &speed->engines[e]));
    return QB_OK;
}

qb_status qb_speed_measure(const qb_speed_plan *plan, qb_speed *out)
{
    qb_speed speed = {.steady = true};
    size_t rounds = 2 * (1 + (plan->min_samples ? plan->min_samples : MIN_SAMPLES));
    stopwatch s = {.plan = plan,
                   .run = DECODE_RUN,
                   .progress = qb_progress_begin(plan->label, rounds * plan->n_engines)};
    qb_status status = run(&s, &speed);
    qb_progress_end(&s.progress);
    qb_free(s.tokens);
    if (status != QB_OK) {
        qb_speed_deinit(&speed);
        return status;
    }
    *out = speed;
    return QB_OK;
}

void qb_speed_deinit(qb_speed *speed)
{
    for (size_t e = 0; speed->engines && e < speed->n_engines; e++) {
        qb_samples_deinit(&speed->engines[e].prefill);
        qb_samples_deinit(&speed->engines[e].decode);
    }
    qb_free(speed->engines);
    *speed = (qb_speed){0};
}
