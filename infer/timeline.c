/* infer/timeline.c - see timeline.h. */
#include "infer/timeline.h"

#include "core/clock.h"
#include "core/memory.h"
#include "infer/backend.h"
#include "infer/nvtx.h"

#include <stdatomic.h>
#include <string.h>

enum {
    SECTIONS_A_LAYER = 16,
    MORE_SECTIONS = 16, /* embedding, final norm, head in pieces */
    WORKS_A_SECTION = 3,
    LOOPS_A_SECTION = 4,
};

/* One thread's counts and loops, on cache lines of its own. */
typedef struct thread_track {
    _Alignas(64) int64_t lap_ns[QB_PHASE_COUNT];
    qb_thread_span *loops;
    size_t n_loops;
} thread_track;

struct qb_timeline {
    qb_timeline_clock clock;
    qb_timespan *spans;
    double *shares; /* of each span: the share of its section at which it ends */
    size_t *stamps; /* of each section: begin, end */
    size_t n_spans, n_sections, n_stamps, max_sections;
    double *us; /* of the stamps */
    thread_track *threads;
    size_t n_threads;
    int64_t *host_ns; /* stamps of the processor's clock */
    int64_t start_ns;
    size_t slice, n_slices, version;
    bool is_open, splits, was_closed; /* was_closed: nothing untimed ran since the last section */
};

/* ---- the processor's clock ---- */

static qb_status host_stamp(void *context, size_t i)
{
    qb_timeline *t = context;
    t->host_ns[i] = qb_now_ns();
    return QB_OK;
}

static qb_status host_read(void *context, size_t n, double *us)
{
    const qb_timeline *t = context;
    for (size_t i = 0; i < n; i++) us[i] = 1e-3 * (double)(t->host_ns[i] - t->start_ns);
    return QB_OK;
}

static void host_destroy(void *context)
{
    (void)context;
}

/* ---- making ---- */

static size_t new_version(void)
{
    static atomic_size_t last;
    return atomic_fetch_add(&last, 1) + 1;
}

static qb_status allocate(qb_timeline *t)
{
    size_t n = t->max_sections;
    QB_TRY(QB_NEW_ZERO(&t->spans, n * WORKS_A_SECTION, "timeline"));
    QB_TRY(QB_NEW_ZERO(&t->shares, n * WORKS_A_SECTION, "timeline"));
    QB_TRY(QB_NEW_ZERO(&t->stamps, 2 * n, "timeline"));
    QB_TRY(QB_NEW_ZERO(&t->us, 2 * n, "timeline"));
    QB_TRY(QB_NEW_ZERO(&t->host_ns, 2 * n, "timeline"));
    QB_TRY(QB_NEW_ZERO(&t->threads, t->n_threads, "timeline"));
    for (size_t i = 0; i < t->n_threads; i++)
        QB_TRY(QB_NEW_ZERO(&t->threads[i].loops, n * LOOPS_A_SECTION, "timeline"));
    return QB_OK;
}

qb_status qb_timeline_create(qb_backbone *backbone, qb_timeline **out)
{
    qb_timeline *t;
    QB_TRY(QB_NEW_ZERO(&t, 1, "timeline"));
    t->n_slices = 1;
    t->version = new_version();
    t->n_threads = qb_pool_n_threads(backbone->pool);
    t->max_sections = SECTIONS_A_LAYER * backbone->config->n_layers + MORE_SECTIONS;
    t->clock = (qb_timeline_clock){
        .context = t, .stamp = host_stamp, .read = host_read, .destroy = host_destroy};
    qb_status status = allocate(t);
    if (status == QB_OK && backbone->backend->timeline_clock)
        status = backbone->backend->timeline_clock(backbone, 2 * t->max_sections, &t->clock);
    if (status != QB_OK) {
        qb_timeline_destroy(t);
        return status;
    }
    *out = t;
    return QB_OK;
}

void qb_timeline_destroy(qb_timeline *t)
{
    if (!t) return;
    t->clock.destroy(t->clock.context);
    for (size_t i = 0; t->threads && i < t->n_threads; i++) qb_free(t->threads[i].loops);
    qb_free(t->threads);
    qb_free(t->host_ns);
    qb_free(t->us);
    qb_free(t->stamps);
    qb_free(t->shares);
    qb_free(t->spans);
    qb_free(t);
}

void qb_timeline_set_slice(qb_timeline *t, size_t slice, size_t n_slices)
{
    t->slice = slice;
    t->n_slices = n_slices;
    t->version = new_version();
}

bool qb_timeline_on_host(const qb_timeline *t)
{
    return t->clock.context == t;
}

size_t qb_timeline_version(const qb_timeline *t)
{
    return t ? t->version : 0;
}

/* ---- a pass ---- */

void qb__timeline_restart(qb_timeline *t, size_t n_spans, size_t n_stamps)
{
    if (!t) return;
    t->n_spans = n_spans;
    t->n_stamps = n_stamps;
    t->n_sections = n_spans ? t->spans[n_spans - 1].section + 1 : 0;
    t->is_open = t->was_closed = false;
    for (size_t i = 0; i < t->n_threads; i++) t->threads[i].n_loops = 0;
    t->start_ns = qb_now_ns();
}

void qb__timeline_begin(qb_timeline *t)
{
    if (!t) return;
    qb__timeline_restart(t, 0, 0);
    t->version = new_version();
}

void qb__timeline_count(const qb_timeline *t, size_t *n_spans, size_t *n_stamps)
{
    *n_spans = t->n_spans;
    *n_stamps = t->n_stamps;
}

bool qb__timeline_is_open(const qb_timeline *t)
{
    return t && t->is_open;
}

/* A stamp that cannot be taken shows when the stamps are read. */
static size_t take_stamp(qb_timeline *t)
{
    (void)t->clock.stamp(t->clock.context, t->n_stamps);
    return t->n_stamps++;
}

void qb__timeline_open(qb_timeline *t, int layer, bool splits)
{
    if (!t) return;
    size_t slice = layer < 0 ? 0 : (size_t)layer % t->n_slices;
    if (slice != t->slice || t->n_sections == t->max_sections) {
        t->was_closed = false;
        return;
    }
    t->is_open = true;
    bool joins = t->clock.joins && t->was_closed;
    t->stamps[2 * t->n_sections] = joins ? t->n_stamps - 1 : take_stamp(t);
    t->splits = splits;
    for (size_t i = 0; splits && i < t->n_threads; i++)
        memset(t->threads[i].lap_ns, 0, sizeof t->threads[i].lap_ns);
}

void qb__timeline_close(qb_timeline *t, const qb_work *works, size_t n_works)
{
    if (!t || !t->is_open) return;
    t->stamps[2 * t->n_sections + 1] = take_stamp(t);
    t->is_open = false;
    t->was_closed = true;
    double ns[WORKS_A_SECTION], sum = 0;
    for (size_t w = 0; w < n_works; w++) {
        ns[w] = n_works == 1;
        for (size_t i = 0; n_works > 1 && i < t->n_threads; i++)
            ns[w] += (double)t->threads[i].lap_ns[works[w].phase];
        sum += ns[w];
    }
    double at = 0;
    for (size_t w = 0; w < n_works; w++) {
        at += sum > 0 ? ns[w] / sum : 1 / (double)n_works;
        t->shares[t->n_spans] = at;
        t->spans[t->n_spans++] =
            (qb_timespan){.work = works[w], .section = t->n_sections, .is_share = n_works > 1};
    }
    t->n_sections++;
}

void qb__timeline_thread_ran(void *context, size_t thread_idx, int64_t begin_ns, int64_t end_ns)
{
    qb_timeline *t = context;
    thread_track *track = &t->threads[thread_idx];
    if (!t->is_open || track->n_loops == t->max_sections * LOOPS_A_SECTION) return;
    track->loops[track->n_loops++] =
        (qb_thread_span){.section = t->n_sections,
                         .begin_us = 1e-3 * (double)(begin_ns - t->start_ns),
                         .end_us = 1e-3 * (double)(end_ns - t->start_ns)};
}

qb_status qb_timeline_read(qb_timeline *t, const qb_timespan **spans, size_t *n_spans)
{
    if (t->n_stamps) QB_TRY(t->clock.read(t->clock.context, t->n_stamps, t->us));
    for (size_t i = 0; i < t->n_spans; i++) {
        qb_timespan *span = &t->spans[i];
        bool is_first = !i || t->spans[i - 1].section != span->section;
        const size_t *stamps = &t->stamps[2 * span->section];
        double begin = t->us[stamps[0]], length = t->us[stamps[1]] - begin;
        span->begin_us = is_first ? begin : t->spans[i - 1].end_us;
        span->end_us = begin + length * t->shares[i];
    }
    *spans = t->spans;
    *n_spans = t->n_spans;
    return QB_OK;
}

const qb_thread_span *qb_timeline_thread(const qb_timeline *t, size_t thread_idx, size_t *n)
{
    *n = t->threads[thread_idx].n_loops;
    return t->threads[thread_idx].loops;
}

/* ---- tasks ---- */

void qb_lap_begin(qb_lap *lap, qb_timeline *timeline)
{
    lap->timeline = qb__timeline_is_open(timeline) && timeline->splits ? timeline : NULL;
    if (!lap->timeline) return;
    memset(lap->ns, 0, sizeof lap->ns);
    lap->at_ns = qb_now_ns();
}

void qb__lap_mark(qb_lap *lap, qb_phase phase)
{
    int64_t now = qb_now_ns();
    lap->ns[phase] += now - lap->at_ns;
    lap->at_ns = now;
}

void qb_lap_end(qb_lap *lap)
{
    if (!lap->timeline) return;
    int64_t *sum = lap->timeline->threads[qb_thread_idx()].lap_ns;
    for (size_t i = 0; i < QB_PHASE_COUNT; i++) sum[i] += lap->ns[i];
}
