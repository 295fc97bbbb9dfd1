/* infer/profiling.c - see profiling.h. */
#include "infer/profiling.h"

#include "core/clock.h"
#include "core/interrupt.h"
#include "core/memory.h"
#include "core/progress.h"
#include "core/rng.h"
#include "core/stats.h"
#include "infer/nvtx.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum {
    WARM_UPS = 3, /* the third repeats the second: CUDA captures a graph in the second */
    MIN_ROUNDS = 8,
    FEW_ROUNDS = 3, /* where a pass takes seconds */
    MAX_ROUNDS = 400,
    MAX_RUN = 32, /* decode steps a sample */
    MIN_RUN = 4,
    SLICE_ROUNDS = 6, /* rounds with one slice */
};
static const double run_ms = 8;           /* of a sample of decoding */
static const double most_overhead = 0.02; /* of a pass that times all layers */
static const double long_ms = 3;          /* of a pass that readings of a clock do not lengthen */

typedef struct profiler {
    const qb_profiling_plan *plan;
    int32_t *tokens; /* (batch, context + decode_steps), random */
    qb_timeline *timelines[QB_PROFILED_ENGINES];
    size_t run; /* passes a sample */
    size_t n_slices, slice;
    qb_profiled *out;
    qb_progress progress;
    size_t done;
} profiler;

/* ---- one sample ---- */

static qb_status run_prefill(const profiler *p, qb_engine *engine)
{
    QB_TRY(qb_engine_prefill_last(engine, p->tokens, p->plan->batch, p->plan->context));
    return qb_engine_head(engine, 0, 0, 1, p->plan->batch);
}

static qb_status run_step(const profiler *p, qb_engine *engine)
{
    size_t position = qb_engine_position(engine);
    QB_TRY(qb_engine_decode_step(engine, p->tokens + position * p->plan->batch));
    return qb_engine_head(engine, 0, 0, 1, p->plan->batch);
}

/* Fills the cache where it is not filled to the plan's context, or has no room for n steps. */
static qb_status make_room(const profiler *p, qb_engine *engine, size_t n)
{
    const qb_profiling_plan *plan = p->plan;
    size_t position = qb_engine_position(engine);
    if (position >= plan->context && position + n <= plan->context + plan->decode_steps)
        return QB_OK;
    return qb_engine_prefill_last(engine, p->tokens, plan->batch, plan->context);
}

/* `n` passes after each other; *ms of one. */
static qb_status time_passes(const profiler *p, qb_engine *engine, size_t n, double *ms)
{
    QB_TRY(qb_engine_sync(engine));
    double start = qb_now_ms();
    for (size_t i = 0; i < n; i++) QB_TRY((p->plan->decode ? run_step : run_prefill)(p, engine));
    QB_TRY(qb_engine_sync(engine));
    *ms = (qb_now_ms() - start) / (double)n;
    return QB_OK;
}

/* A step that is not timed brings the engine's weights back to the caches that hold them, after the
 * other engine's turn. */
static qb_status sample(const profiler *p, qb_engine *engine, qb_timeline *timeline, double *ms)
{
    size_t n = p->plan->decode ? p->run : 1;
    if (p->plan->decode) QB_TRY(make_room(p, engine, n + 1));
    qb_engine_set_timeline(engine, timeline);
    qb_nvtx_push(p->plan->decode ? "decode" : "prefill");
    qb_status status = QB_OK;
    if (p->plan->decode) status = run_step(p, engine);
    if (status == QB_OK) status = time_passes(p, engine, n, ms);
    qb_nvtx_pop();
    qb_engine_set_timeline(engine, NULL);
    return status;
}

/* ---- what a timeline saw ---- */

static size_t first_of_slice(const qb_profiled *out, size_t slice, size_t n_slices, size_t *n)
{
    size_t first = 0, i = 0;
    *n = 0;
    for (; i < out->n_spans; i++) {
        const qb_work *w = &out->spans[i].span.work;
        size_t own = w->layer < 0 ? 0 : (size_t)w->layer % n_slices;
        if (own != slice) continue;
        if (!*n) first = i;
        ++*n;
    }
    return first;
}

static qb_status append_spans(qb_profiled *out, const qb_timespan *spans, size_t n)
{
    QB_TRY(qb_realloc((void **)&out->spans, out->n_spans, out->n_spans + n, sizeof *out->spans,
                      "spans"));
    for (size_t i = 0; i < n; i++) {
        qb_profiled_span *s = &out->spans[out->n_spans];
        *s = (qb_profiled_span){.span = spans[i]};
        QB_TRY(QB_NEW(&s->us, MAX_ROUNDS, "lengths of a span"));
        out->n_spans++;
    }
    return QB_OK;
}

static qb_status keep_threads(qb_profiled *out, const qb_timeline *timeline, size_t n_threads)
{
    if (!out->threads) {
        QB_TRY(QB_NEW_ZERO(&out->threads, n_threads, "threads"));
        QB_TRY(QB_NEW_ZERO(&out->n_thread_spans, n_threads, "threads"));
        out->n_threads = n_threads;
    }
    for (size_t i = 0; i < n_threads; i++) {
        size_t n;
        const qb_thread_span *spans = qb_timeline_thread(timeline, i, &n);
        qb_free(out->threads[i]);
        out->threads[i] = NULL;
        QB_TRY(QB_NEW(&out->threads[i], n, "spans of a thread"));
        memcpy(out->threads[i], spans, n * sizeof *spans);
        out->n_thread_spans[i] = n;
    }
    return QB_OK;
}

/* Passes of a slice have the same spans in the same order; a pass that is otherwise (it cannot be,
 * but for a bug) would be left out and missed in the sums. */
static qb_status collect(const profiler *p, size_t e)
{
    qb_profiled *out = &p->out[e];
    const qb_timespan *spans;
    size_t n, n_known;
    QB_TRY(qb_timeline_read(p->timelines[e], &spans, &n));
    size_t first = first_of_slice(out, p->slice, p->n_slices, &n_known);
    if (!n_known) {
        size_t n_stamps;
        first = out->n_spans;
        QB_TRY(append_spans(out, spans, n));
        qb__timeline_count(p->timelines[e], &n, &n_stamps);
        out->n_stamps += n_stamps;
    } else if (n != n_known) {
        return QB_OK;
    }
    for (size_t i = 0; i < n; i++) {
        qb_profiled_span *s = &out->spans[first + i];
        s->span = spans[i];
        if (s->n < MAX_ROUNDS) s->us[s->n++] = spans[i].end_us - spans[i].begin_us;
    }
    if (p->slice) return QB_OK;
    qb_backbone *backbone = qb_engine_backbone(p->plan->engines[e]);
    return keep_threads(out, p->timelines[e], qb_backbone_n_threads(backbone));
}

/* ---- rounds ---- */

typedef struct round_times {
    double undisturbed[QB_PROFILED_ENGINES], instrumented[QB_PROFILED_ENGINES];
} round_times;

static qb_status run_round(profiler *p, round_times *t)
{
    const qb_profiling_plan *plan = p->plan;
    for (size_t timed = 0; timed < 1 + (size_t)plan->with_timeline; timed++)
        for (size_t e = 0; e < plan->n_engines; e++) {
            QB_TRY(qb_interrupt_check());
            QB_TRY(sample(p, plan->engines[e], timed ? p->timelines[e] : NULL,
                          timed ? &t->instrumented[e] : &t->undisturbed[e]));
            qb_progress_update(&p->progress, ++p->done);
        }
    return QB_OK;
}

/* Waits for a device weigh less in a run of passes. The processor does one, so that the passes of
 * both kinds are single ones. */
static void choose_run(profiler *p, const round_times *t)
{
    double slowest = 0;
    for (size_t e = 0; e < p->plan->n_engines; e++) slowest = fmax(slowest, t->undisturbed[e]);
    size_t run = slowest > 0 ? (size_t)ceil(run_ms / slowest) : MAX_RUN;
    size_t most = p->plan->decode_steps - 1;
    if (p->timelines[0] && qb_timeline_on_host(p->timelines[0])) return;
    if (run < MIN_RUN) run = MIN_RUN;
    if (run > MAX_RUN) run = MAX_RUN;
    p->run = run < most ? run : most ? most : 1;
}

/* The passes before the first that counts. Leaves the times of the last. */
static qb_status warm_up(profiler *p, round_times *t)
{
    p->run = 1;
    for (size_t i = 0; i < WARM_UPS; i++) {
        QB_TRY(run_round(p, t));
        choose_run(p, t);
    }
    return QB_OK;
}

static qb_status set_slice(profiler *p, size_t slice)
{
    round_times ignored;
    p->slice = slice;
    for (size_t e = 0; e < p->plan->n_engines; e++)
        qb_timeline_set_slice(p->timelines[e], slice, p->n_slices);
    QB_TRY(run_round(p, &ignored)); /* as in warm_up */
    return run_round(p, &ignored);
}

/* What timing all layers adds to a pass of the engine that it adds most to: medians of rounds. */
static qb_status probe_overhead(profiler *p, double *worst)
{
    enum { PROBES = 15 };
    double ratio[QB_PROFILED_ENGINES][PROBES];
    *worst = 0;
    for (size_t i = 0; i < PROBES; i++) {
        round_times t;
        QB_TRY(run_round(p, &t));
        for (size_t e = 0; e < p->plan->n_engines; e++)
            ratio[e][i] = t.instrumented[e] / t.undisturbed[e] - 1;
    }
    for (size_t e = 0; e < p->plan->n_engines; e++) {
        qb_sort(ratio[e], PROBES);
        *worst = fmax(*worst, ratio[e][PROBES / 2]);
    }
    return QB_OK;
}

/* So many slices that their share of that is what is allowed. Readings of the processor's clock are
 * nothing in a long pass, where noise would be taken for them. */
static qb_status choose_slices(profiler *p, const round_times *last)
{
    double overhead;
    size_t n_layers = qb_engine_model(p->plan->engines[0])->config.n_layers;
    if (qb_timeline_on_host(p->timelines[0]) && last->undisturbed[0] > long_ms) return QB_OK;
    QB_TRY(probe_overhead(p, &overhead));
    double n = ceil(overhead / most_overhead);
    p->n_slices = n < 1 ? 1 : n < (double)n_layers ? (size_t)n : n_layers;
    return p->n_slices > 1 ? set_slice(p, 0) : QB_OK;
}

static qb_status keep_round(profiler *p, const round_times *t)
{
    for (size_t e = 0; e < p->plan->n_engines; e++) {
        QB_TRY(qb_samples_add(&p->out[e].undisturbed, t->undisturbed[e]));
        if (!p->plan->with_timeline) continue;
        QB_TRY(qb_samples_add(&p->out[e].instrumented, t->instrumented[e]));
        QB_TRY(collect(p, e));
    }
    return QB_OK;
}

/* Whole turns of all slices, so that each is timed equally often. */
static qb_status run_rounds(profiler *p)
{
    double start = qb_now_ms(), budget_ms = 1e3 * p->plan->budget_s;
    size_t each = p->n_slices > 1 ? SLICE_ROUNDS : 1;
    for (size_t n = 0; n < MAX_ROUNDS; n++) {
        round_times t;
        bool whole = n % (each * p->n_slices) == 0;
        double spent = qb_now_ms() - start;
        if (whole &&
            ((n >= MIN_ROUNDS && spent > budget_ms) || (n >= FEW_ROUNDS && spent > 4 * budget_ms)))
            break;
        if (p->n_slices > 1 && n % each == 0) QB_TRY(set_slice(p, n / each % p->n_slices));
        QB_TRY(run_round(p, &t));
        QB_TRY(keep_round(p, &t));
    }
    return QB_OK;
}

/* ---- what is typical ---- */

typedef struct ranked_pass {
    double us;
    size_t i;
} ranked_pass;

static int by_length(const void *a, const void *b)
{
    double x = ((const ranked_pass *)a)->us, y = ((const ranked_pass *)b)->us;
    return x < y ? -1 : x > y ? 1 : 0;
}

/* Medians of spans would not add up to the median of passes, since what disturbs a pass hits
 * another span each time: so a span's length is its mean over the passes that were neither among
 * the quickest nor among the slowest third. */
static void find_typical(qb_profiled_span *spans, size_t n_spans)
{
    ranked_pass passes[MAX_ROUNDS];
    size_t n = n_spans ? spans[0].n : 0;
    for (size_t i = 0; i < n; i++) {
        passes[i] = (ranked_pass){0, i};
        for (size_t s = 0; s < n_spans; s++) passes[i].us += spans[s].us[i];
    }
    qsort(passes, n, sizeof *passes, by_length);
    size_t from = n / 3, to = n - n / 3;
    for (size_t s = 0; s < n_spans; s++) {
        double sum = 0;
        for (size_t i = from; i < to; i++) sum += spans[s].us[passes[i].i];
        spans[s].typical_us = to > from ? sum / (double)(to - from) : 0;
    }
}

/* The median over rounds: what both kinds of passes of a round suffered falls out. */
static qb_status find_overhead(qb_profiled *out)
{
    double *ratio;
    size_t n = out->instrumented.n;
    QB_TRY(QB_NEW(&ratio, n, "overheads"));
    for (size_t i = 0; i < n; i++) ratio[i] = out->instrumented.ms[i] / out->undisturbed.ms[i];
    qb_sort(ratio, n);
    out->overhead = qb_quantile(ratio, n, 0.5) - 1;
    qb_free(ratio);
    return QB_OK;
}

qb_status qb__profiled_settle(qb_profiled *p, bool on_host)
{
    qb_timing timing;
    QB_TRY(find_overhead(p));
    QB_TRY(qb_samples_summarize(&p->undisturbed, &timing));
    if (!on_host && p->n_stamps) {
        double all_us = 1e3 * fmax(p->overhead, 0) * timing.p50_ms * (double)p->n_slices;
        p->stamp_us = all_us / (double)p->n_stamps;
    }
    for (size_t slice = 0; slice < p->n_slices; slice++) {
        size_t n, first = first_of_slice(p, slice, p->n_slices, &n);
        find_typical(p->spans + first, n);
    }
    for (size_t i = 0; i < p->n_spans; i++)
        p->spans[i].typical_us = fmax(p->spans[i].typical_us - p->stamp_us, 0);
    return QB_OK;
}

static qb_status create(profiler *p)
{
    const qb_profiling_plan *plan = p->plan;
    size_t vocab = qb_engine_model(plan->engines[0])->config.vocab;
    size_t n = plan->batch * (plan->context + plan->decode_steps + 1);
    QB_TRY(QB_NEW(&p->tokens, n, "random tokens"));
    for (size_t i = 0; i < n; i++)
        p->tokens[i] = (int32_t)qb_rng_below(plan->seed, QB_STREAM_SAMPLER, i, vocab);
    for (size_t e = 0; e < plan->n_engines; e++) {
        double tokens = (double)(plan->batch * (plan->decode ? 1 : plan->context));
        p->out[e].undisturbed.tokens_per_sample = p->out[e].instrumented.tokens_per_sample = tokens;
        if (plan->with_timeline)
            QB_TRY(qb_timeline_create(qb_engine_backbone(plan->engines[e]), &p->timelines[e]));
    }
    return QB_OK;
}

static qb_status run(profiler *p)
{
    round_times t;
    QB_TRY(create(p));
    QB_TRY(warm_up(p, &t));
    if (p->plan->with_timeline) QB_TRY(choose_slices(p, &t));
    QB_TRY(run_rounds(p));
    for (size_t e = 0; e < p->plan->n_engines; e++) {
        p->out[e].n_slices = p->n_slices;
        p->out[e].n_passes = p->plan->decode ? p->run : 1;
        if (p->plan->with_timeline)
            QB_TRY(qb__profiled_settle(&p->out[e], qb_timeline_on_host(p->timelines[0])));
    }
    return QB_OK;
}

qb_status qb_profiling_run(const qb_profiling_plan *plan, qb_profiled *out)
{
    size_t rounds = (1 + (size_t)plan->with_timeline) * plan->n_engines * (WARM_UPS + MIN_ROUNDS);
    profiler p = {.plan = plan,
                  .n_slices = 1,
                  .out = out,
                  .progress = qb_progress_begin(plan->label, rounds)};
    memset(out, 0, plan->n_engines * sizeof *out);
    qb_status status = run(&p);
    qb_progress_end(&p.progress);
    for (size_t e = 0; e < plan->n_engines; e++) {
        qb_engine_set_timeline(plan->engines[e], NULL);
        qb_timeline_destroy(p.timelines[e]);
        if (status != QB_OK) qb_profiled_deinit(&out[e]);
    }
    qb_free(p.tokens);
    return status;
}

void qb_profiled_deinit(qb_profiled *p)
{
    for (size_t i = 0; i < p->n_spans; i++) qb_free(p->spans[i].us);
    qb_free(p->spans);
    for (size_t i = 0; p->threads && i < p->n_threads; i++) qb_free(p->threads[i]);
    qb_free(p->threads);
    qb_free(p->n_thread_spans);
    qb_samples_deinit(&p->undisturbed);
    qb_samples_deinit(&p->instrumented);
    *p = (qb_profiled){0};
}
