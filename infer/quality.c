/* infer/quality.c - see quality.h. */
#include "infer/quality.h"

#include "core/interrupt.h"
#include "core/memory.h"
#include "core/progress.h"

#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

/* ---- memory of the figures ---- */

static qb_status create_scores(const qb_quality_case *c, size_t n, qb_quality_scores *out)
{
    if (!c->engine) return QB_OK;
    QB_TRY(QB_NEW(&out->nll, n, "losses"));
    QB_TRY(QB_NEW(&out->kl, n, "divergences"));
    QB_TRY(QB_NEW(&out->agree, n, "agreements"));
    if (c->fake) QB_TRY(QB_NEW(&out->nll_fake, n, "losses"));
    return QB_OK;
}

static qb_status create(const qb_quality_plan *plan, qb_quality *q)
{
    q->n = plan->windows->n_scored;
    q->n_cases = plan->n_cases;
    QB_TRY(QB_NEW(&q->nll_full, q->n, "losses"));
    QB_TRY(QB_NEW(&q->target, q->n, "targets"));
    QB_TRY(QB_NEW_ZERO(&q->cases, q->n_cases, "figures of the schemes"));
    for (size_t i = 0; i < q->n_cases; i++)
        QB_TRY(create_scores(&plan->cases[i], q->n, &q->cases[i]));
    return QB_OK;
}

void qb_quality_deinit(qb_quality *q)
{
    for (size_t i = 0; q->cases && i < q->n_cases; i++) {
        qb_free(q->cases[i].nll);
        qb_free(q->cases[i].kl);
        qb_free(q->cases[i].agree);
        qb_free(q->cases[i].nll_fake);
    }
    qb_free(q->cases);
    qb_free(q->nll_full);
    qb_free(q->target);
    *q = (qb_quality){0};
}

/* ---- rows of logits ---- */

/* A run in progress: what all sets of engines share. */
typedef struct shared {
    const qb_quality_plan *plan;
    qb_quality *q; /* each batch fills its own rows */
    pthread_mutex_t mutex;
    size_t next_window, next_row; /* of the batch to be handed out, and among the scored tokens */
    bool stopped;                 /* one set failed: hand out no more */
    qb_progress progress;
    size_t done;
} shared;

/* One set of engines at work. A chunk is up to chunk_rows consecutive rows of one batch. */
typedef struct measure {
    shared *run;
    const qb_quality_plan *plan;
    qb_quality *q;
    qb_engine *full;
    const qb_quality_case *cases;
    size_t chunk_rows;
    qb_logit_stats *stats; /* (chunk_rows) */
    int32_t *fed;          /* tokens of a batch */
    float *fake_max_diff;  /* (n_cases) */
    size_t at;             /* index of the next row to be compared among the scored tokens */
    pthread_t thread;
    bool has_thread;
    qb_status status;
    char message[1024]; /* of the failure, which is the thread's own */
} measure;

static void advance(measure *m, size_t work)
{
    pthread_mutex_lock(&m->run->mutex);
    m->run->done += work;
    qb_progress_update(&m->run->progress, m->run->done);
    pthread_mutex_unlock(&m->run->mutex);
}

/* Progress counts a fed token as 4 and a row of logits as 1: about their costs. */
enum { FEED_WORK = 4 };

enum { FULL, SCHEME, FAKE }; /* slots of logits */

static void add_full(measure *m, size_t n_rows)
{
    for (size_t i = 0; i < n_rows; i++) m->q->nll_full[m->at + i] = m->stats[i].nll_a;
}

static void add_scheme(measure *m, size_t n_rows, qb_quality_scores *scores)
{
    for (size_t i = 0; i < n_rows; i++) {
        scores->nll[m->at + i] = m->stats[i].nll_b;
        scores->kl[m->at + i] = m->stats[i].kl;
        scores->agree[m->at + i] = m->stats[i].top_a == m->stats[i].top_b;
    }
}

/* The larger one, NaN if one is: in any order of calls the same. */
static void raise_to(float *max, float value)
{
    if (!isnan(*max) && !(value <= *max)) *max = value;
}

static void add_fake(measure *m, size_t n_rows, size_t c)
{
    for (size_t i = 0; i < n_rows; i++) {
        m->q->cases[c].nll_fake[m->at + i] = m->stats[i].nll_b;
        raise_to(&m->fake_max_diff[c], m->stats[i].max_diff);
    }
}

static qb_status compare_case(measure *m, size_t first_row, size_t n_rows, size_t c)
{
    const qb_quality_case *engines = &m->cases[c];
    qb_backbone *b = qb_engine_backbone(m->full);
    const int32_t *target = m->q->target + m->at;
    if (!engines->engine) return QB_OK;
    QB_TRY(qb_interrupt_check());
    QB_TRY(qb_engine_head(engines->engine, SCHEME, first_row, 1, n_rows));
    QB_TRY(qb_backbone_compare(b, FULL, SCHEME, n_rows, target, m->stats));
    add_scheme(m, n_rows, &m->q->cases[c]);
    advance(m, n_rows);
    if (!engines->fake) return QB_OK;
    QB_TRY(qb_engine_head(engines->fake, FAKE, first_row, 1, n_rows));
    QB_TRY(qb_backbone_compare(b, SCHEME, FAKE, n_rows, target, m->stats));
    add_fake(m, n_rows, c);
    advance(m, n_rows);
    return QB_OK;
}

static qb_status compare_chunk(measure *m, size_t first_row, size_t n_rows)
{
    QB_TRY(qb_interrupt_check());
    QB_TRY(qb_engine_head(m->full, FULL, first_row, 1, n_rows));
    QB_TRY(qb_backbone_compare(qb_engine_backbone(m->full), FULL, -1, n_rows, m->q->target + m->at,
                               m->stats));
    add_full(m, n_rows);
    advance(m, n_rows);
    for (size_t c = 0; c < m->plan->n_cases; c++) QB_TRY(compare_case(m, first_row, n_rows, c));
    m->at += n_rows;
    return QB_OK;
}

static qb_status prefill(measure *m, qb_engine *engine, size_t batch, size_t n_feed)
{
    if (!engine) return QB_OK;
    QB_TRY(qb_interrupt_check());
    QB_TRY(qb_engine_prefill(engine, m->fed, batch, n_feed));
    advance(m, FEED_WORK * batch * n_feed);
    return QB_OK;
}

/* Windows [first, first + batch), all of the same length. */
static qb_status run_batch(measure *m, size_t first, size_t batch)
{
    const qb_quality_plan *plan = m->plan;
    const qb_window *windows = plan->windows->items + first;
    size_t n_feed = windows->n_feed;
    for (size_t w = 0; w < batch; w++)
        qb_window_tokens(plan->stream, &windows[w], m->fed + w * n_feed, NULL);
    QB_TRY(prefill(m, m->full, batch, n_feed));
    for (size_t c = 0; c < plan->n_cases; c++) {
        QB_TRY(prefill(m, m->cases[c].engine, batch, n_feed));
        QB_TRY(prefill(m, m->cases[c].fake, batch, n_feed));
    }
    for (size_t w = 0; w < batch; w++)
        for (size_t done = 0; done < windows[w].n_scored;) {
            size_t n_rows = windows[w].n_scored - done;
            if (n_rows > m->chunk_rows) n_rows = m->chunk_rows;
            size_t from = windows[w].score_from + done;
            memcpy(m->q->target + m->at, plan->stream->tokens.ids + windows[w].first_target + from,
                   n_rows * sizeof *m->q->target);
            QB_TRY(compare_chunk(m, w * n_feed + from, n_rows));
            done += n_rows;
        }
    return QB_OK;
}

/* ---- the run ---- */

static qb_status check_ids(const qb_quality_plan *plan, size_t vocab)
{
    const qb_tokens *tokens = &plan->stream->tokens;
    for (size_t i = 0; i < tokens->n; i++)
        if (tokens->ids[i] < 0 || (size_t)tokens->ids[i] >= vocab)
            return QB_FAIL(QB_ERR_FORMAT,
                           "tokenizer and model do not fit: found token id %d, expected 0 to %zu",
                           (int)tokens->ids[i], vocab - 1);
    return QB_OK;
}

static size_t work_of(const qb_quality_plan *plan)
{
    size_t fed = 0, engines = 1;
    for (size_t w = 0; w < plan->windows->n; w++) fed += plan->windows->items[w].n_feed;
    for (size_t c = 0; c < plan->n_cases; c++)
        engines += (size_t)(plan->cases[c].engine != NULL) + (plan->cases[c].fake != NULL);
    return engines * (FEED_WORK * fed + plan->windows->n_scored);
}

static qb_status create_measure(shared *run, qb_engine *full, const qb_quality_case *cases,
                                measure *m)
{
    const qb_quality_plan *plan = run->plan;
    *m = (measure){.run = run, .plan = plan, .q = run->q, .full = full, .cases = cases};
    m->chunk_rows = qb_backbone_logit_rows(qb_engine_backbone(full));
    QB_TRY(QB_NEW(&m->stats, m->chunk_rows, "statistics of logits"));
    QB_TRY(QB_NEW_ZERO(&m->fake_max_diff, plan->n_cases, "logit differences"));
    return QB_NEW(&m->fed, plan->batch * plan->windows->n_feed_max, "tokens of a batch");
}

static void destroy_measure(measure *m)
{
    qb_free(m->stats);
    qb_free(m->fed);
    qb_free(m->fake_max_diff);
}

/* The next batch and the place of its first row; false when there is none. */
static bool take_batch(measure *m, size_t *first, size_t *batch)
{
    shared *run = m->run;
    const qb_windows *windows = run->plan->windows;
    pthread_mutex_lock(&run->mutex);
    bool taken = !run->stopped && run->next_window < windows->n;
    if (taken) {
        *first = run->next_window;
        *batch = qb_windows_batch(windows, *first, run->plan->batch);
        m->at = run->next_row;
        run->next_window += *batch;
        for (size_t w = 0; w < *batch; w++) run->next_row += windows->items[*first + w].n_scored;
    }
    pthread_mutex_unlock(&run->mutex);
    return taken;
}

static void *run_batches(void *context)
{
    measure *m = context;
    size_t first, batch;
    while (m->status == QB_OK && take_batch(m, &first, &batch))
        m->status = run_batch(m, first, batch);
    if (m->status == QB_OK) return NULL;
    snprintf(m->message, sizeof m->message, "%s", qb_error_message());
    pthread_mutex_lock(&m->run->mutex);
    m->run->stopped = true;
    pthread_mutex_unlock(&m->run->mutex);
    return NULL;
}

/* The first set works on the calling thread. A thread that cannot be had leaves its share to the
 * others. */
static qb_status run_sets(measure *sets, size_t n)
{
    for (size_t i = 1; i < n; i++)
        sets[i].has_thread = !pthread_create(&sets[i].thread, NULL, run_batches, &sets[i]);
    run_batches(&sets[0]);
    for (size_t i = 1; i < n; i++)
        if (sets[i].has_thread) pthread_join(sets[i].thread, NULL);
    for (size_t i = 0; i < n; i++)
        if (sets[i].status != QB_OK) return QB_FAIL(sets[i].status, "%s", sets[i].message);
    for (size_t c = 0; c < sets->plan->n_cases; c++)
        for (size_t i = 0; i < n; i++)
            raise_to(&sets->q->cases[c].fake_max_diff, sets[i].fake_max_diff[c]);
    return QB_OK;
}

static qb_status run(shared *run)
{
    const qb_quality_plan *plan = run->plan;
    measure *sets;
    qb_status status;
    QB_TRY(check_ids(plan, qb_engine_model(plan->full)->config.vocab));
    QB_TRY(create(plan, run->q));
    QB_TRY(QB_NEW_ZERO(&sets, 1 + plan->n_replicas, "sets of engines"));
    QB_TRY_GOTO(status, create_measure(run, plan->full, plan->cases, &sets[0]), done);
    for (size_t i = 0; i < plan->n_replicas; i++)
        QB_TRY_GOTO(
            status,
            create_measure(run, plan->replicas[i].full, plan->replicas[i].cases, &sets[1 + i]),
            done);
    status = run_sets(sets, 1 + plan->n_replicas);
done:
    for (size_t i = 0; i <= plan->n_replicas; i++) destroy_measure(&sets[i]);
    qb_free(sets);
    return status;
}

qb_status qb_quality_measure(const qb_quality_plan *plan, qb_quality *out)
{
    qb_quality quality = {0};
    shared state = {.plan = plan,
                    .q = &quality,
                    .mutex = PTHREAD_MUTEX_INITIALIZER,
                    .progress = qb_progress_begin(plan->label, work_of(plan))};
    qb_status status = run(&state);
    qb_progress_end(&state.progress);
    if (status != QB_OK) {
        qb_quality_deinit(&quality);
        return status;
    }
    *out = quality;
    return QB_OK;
}

/* ---- summaries ---- */

static double perplexity(const double *nll, size_t n)
{
    return exp(qb_sum(nll, n) / (double)n);
}

static qb_status interval(const qb_quality *q, const qb_quality_scores *scores,
                          const qb_windows *windows, const qb_summary_options *options,
                          qb_quality_summary *out)
{
    double *sums;
    size_t *counts, at = 0;
    QB_TRY(QB_NEW(&sums, 2 * windows->n, "sums of the windows"));
    qb_status status = QB_NEW(&counts, windows->n, "tokens of the windows");
    if (status == QB_OK) {
        for (size_t w = 0; w < windows->n; at += counts[w++]) {
            counts[w] = windows->items[w].n_scored;
            sums[w] = qb_sum(q->nll_full + at, counts[w]);
            sums[windows->n + w] = qb_sum(scores->nll + at, counts[w]);
        }
        qb_paired_blocks blocks = {sums, sums + windows->n, counts, windows->n};
        size_t n_resamples = options->n_resamples ? options->n_resamples : 2000;
        status = qb_bootstrap_penalty(&blocks, n_resamples, options->seed, &out->penalty_ci95);
        qb_free(counts);
    }
    qb_free(sums);
    return status;
}

static qb_status divergence(const qb_quality *q, const qb_quality_scores *scores,
                            qb_quality_summary *out)
{
    double *sorted;
    QB_TRY(QB_NEW(&sorted, q->n, "sorted divergences"));
    memcpy(sorted, scores->kl, q->n * sizeof *sorted);
    qb_sort(sorted, q->n);
    out->kl_mean = qb_sum(scores->kl, q->n) / (double)q->n;
    if (isfinite(out->kl_mean)) out->kl_p99 = qb_quantile(sorted, q->n, 0.99);
    qb_free(sorted);
    size_t agree = 0;
    for (size_t i = 0; i < q->n; i++) agree += scores->agree[i];
    out->top1_agreement = (double)agree / (double)q->n;
    return QB_OK;
}

qb_status qb_quality_summarize(const qb_quality *q, size_t case_idx, const qb_windows *windows,
                               const qb_summary_options *options, qb_quality_summary *out)
{
    const qb_quality_scores *scores = &q->cases[case_idx];
    const double *nll = scores->nll ? scores->nll : q->nll_full;
    double total = qb_sum(nll, q->n);
    qb_quality_summary s = {.ppl_full = perplexity(q->nll_full, q->n),
                            .ppl = perplexity(nll, q->n),
                            .penalty = NAN,
                            .penalty_ci95 = {NAN, NAN},
                            .kl_mean = NAN,
                            .kl_p99 = NAN,
                            .top1_agreement = NAN,
                            .bits_per_byte = total / log(2.0) / options->n_bytes,
                            .word_ppl = NAN,
                            .byte_ppl = NAN,
                            .ppl_fake = NAN,
                            .fake_max_logit_diff = NAN};
    if (options->by_document) {
        s.word_ppl = exp(total / options->n_words);
        s.byte_ppl = exp(total / options->n_bytes);
    }
    if (scores->nll) {
        s.penalty = s.ppl - s.ppl_full;
        QB_TRY(interval(q, scores, windows, options, &s));
        QB_TRY(divergence(q, scores, &s));
    }
    if (scores->nll_fake) {
        s.ppl_fake = perplexity(scores->nll_fake, q->n);
        s.fake_max_logit_diff = (double)scores->fake_max_diff;
    }
    *out = s;
    return QB_OK;
}

double qb_quality_scored_bytes(const qb_stream *stream, const qb_windows *windows,
                               const qb_tokenizer *tokenizer)
{
    double total = 0;
    int32_t bos = qb_tokenizer_bos(tokenizer), eos = qb_tokenizer_eos(tokenizer);
    for (size_t w = 0; w < windows->n; w++) {
        const qb_window *window = &windows->items[w];
        const int32_t *target = stream->tokens.ids + window->first_target + window->score_from;
        for (size_t j = 0; j < window->n_scored; j++) {
            size_t n_bytes = 0;
            if (target[j] != bos && target[j] != eos)
                qb_tokenizer_token_bytes(tokenizer, target[j], &n_bytes);
            total += (double)n_bytes;
        }
    }
    return total;
}
