/* cli/profile_figures.c - spans of an engine to the figures of a profile: sums over phases, layers
 * and kernel rows, and what the peaks say of each; see profile_figures.h. */
#include "cli/profile_figures.h"

#include "core/memory.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- one span ---- */

static double memory_gb_per_s(const qb_peaks *peaks, bool in_cache)
{
    if (in_cache) return peaks->cache_gb_per_s;
    return fmax(peaks->copy_gb_per_s, peaks->read_gb_per_s); /* of the one that is a number */
}

static double at_least_0(double value)
{
    return value > 0 ? value : 0;
}

static qb_profile_part part_of(const qb_profiled_span *s, const qb_peaks *peaks, bool in_cache)
{
    const qb_work *w = &s->span.work;
    qb_profile_part part = {
        .ms = 1e-3 * s->typical_us, .calls = 1, .bytes = w->bytes, .ops = w->ops};
    part.memory_ms = at_least_0(1e-6 * w->bytes / memory_gb_per_s(peaks, in_cache));
    part.compute_ms = at_least_0(1e-6 * w->ops / peaks->gops_per_s[w->rate]);
    part.bound_ms = fmax(part.memory_ms, part.compute_ms);
    return part;
}

static void add_part(qb_profile_part *sum, const qb_profile_part *part)
{
    sum->ms += part->ms;
    sum->calls += part->calls;
    sum->bytes += part->bytes;
    sum->ops += part->ops;
    sum->memory_ms += part->memory_ms;
    sum->compute_ms += part->compute_ms;
    sum->bound_ms += part->bound_ms;
}

/* ---- kernel rows ---- */

/* "q" of "h.%zu.attn.q"; "head". */
static const char *role_name(int role)
{
    if (role < 0) return "";
    const char *name = qb_roles[role].name, *layer = strstr(name, "%zu.");
    return layer ? layer + strlen("%zu.") : name;
}

static qb_profile_kernel *find_kernel(qb_profile_run *run, const qb_work *w)
{
    const char *kernel = w->kernel ? w->kernel : "-", *role = role_name(w->role);
    for (size_t i = 0; i < run->n_kernels; i++) {
        qb_profile_kernel *k = &run->kernels[i];
        if (k->phase == w->phase && !strcmp(k->kernel, kernel) && !strcmp(k->role, role)) return k;
    }
    qb_profile_kernel *k = &run->kernels[run->n_kernels++];
    *k = (qb_profile_kernel){.phase = w->phase};
    snprintf(k->kernel, sizeof k->kernel, "%s", kernel);
    snprintf(k->role, sizeof k->role, "%s", role);
    return k;
}

static int by_time(const void *a, const void *b)
{
    double x = ((const qb_profile_kernel *)a)->part.ms, y = ((const qb_profile_kernel *)b)->part.ms;
    return x < y ? 1 : x > y ? -1 : 0;
}

/* Percentiles of a call in all layers and passes. */
static void find_percentiles(const qb_profiled *seen, qb_profile_run *run, size_t i,
                             qb_histogram *h)
{
    qb_profile_kernel *k = &run->kernels[i];
    memset(h, 0, sizeof *h);
    for (size_t s = 0; s < seen->n_spans; s++)
        if (find_kernel(run, &seen->spans[s].span.work) == k)
            for (size_t n = 0; n < seen->spans[s].n; n++)
                qb_histogram_add(h, 1e-3 * at_least_0(seen->spans[s].us[n] - seen->stamp_us));
    k->p50_us = 1e3 * qb_histogram_quantile(h, 0.5);
    k->p90_us = 1e3 * qb_histogram_quantile(h, 0.9);
    k->p99_us = 1e3 * qb_histogram_quantile(h, 0.99);
}

/* ---- the run ---- */

static qb_status sum_spans(const qb_profiled *seen, const qb_peaks *peaks, qb_profile_run *run)
{
    QB_TRY(QB_NEW_ZERO(&run->layers, run->n_layers, "layers of a profile"));
    QB_TRY(QB_NEW_ZERO(&run->kernels, seen->n_spans, "kernels of a profile"));
    for (size_t i = 0; i < seen->n_spans; i++) {
        const qb_work *w = &seen->spans[i].span.work;
        qb_profile_part part = part_of(&seen->spans[i], peaks, run->in_cache);
        add_part(&run->phases[w->phase], &part);
        add_part(&find_kernel(run, w)->part, &part);
        run->covered_ms += part.ms;
        run->roof_ms += part.bound_ms;
        if (w->layer < 0) continue;
        run->layers[w->layer].ms += part.ms;
        run->layers[w->layer].phase_ms[w->phase] += part.ms;
    }
    return QB_OK;
}

static qb_status summarize(const qb_profiled *seen, bool keep_samples, qb_profile_run *run)
{
    const qb_samples *samples = &seen->undisturbed;
    qb_timing timing;
    QB_TRY(qb_samples_summarize(samples, &timing));
    double tokens = 1e3 * samples->tokens_per_sample;
    run->ms = timing.p50_ms;
    run->ms_ci95 =
        (qb_interval){tokens / timing.tok_per_s_ci95.high, tokens / timing.tok_per_s_ci95.low};
    run->tok_per_s = timing.tok_per_s;
    run->n_samples = samples->n;
    QB_TRY(qb_samples_summarize(&seen->instrumented, &timing));
    run->instrumented_ms = timing.p50_ms;
    run->overhead = seen->overhead;
    run->stamp_us = seen->stamp_us;
    run->n_passes = seen->n_passes;
    QB_TRY(QB_NEW_ZERO(&run->histogram, 1, "histogram"));
    for (size_t i = 0; i < samples->n; i++) qb_histogram_add(run->histogram, samples->ms[i]);
    run->p90_ms = qb_histogram_quantile(run->histogram, 0.9);
    run->p99_ms = qb_histogram_quantile(run->histogram, 0.99);
    if (!keep_samples) return QB_OK;
    QB_TRY(QB_NEW(&run->samples_ms, samples->n, "samples"));
    memcpy(run->samples_ms, samples->ms, samples->n * sizeof *run->samples_ms);
    return QB_OK;
}

qb_status qb_profile_figures(const qb_profiled *seen, const qb_engine *engine, const char *name,
                             const qb_peaks *peaks, bool keep_samples, qb_profile_run *out)
{
    qb_engine_memory memory;
    qb_histogram *scratch;
    qb_engine_memory_get(engine, &memory);
    snprintf(out->scheme, sizeof out->scheme, "%s", name);
    out->measured = true;
    out->slices = seen->n_slices;
    out->n_layers = qb_engine_model(engine)->config.n_layers;
    out->weights_bytes = (double)memory.weights_bytes;
    out->in_cache = peaks->cache_gb_per_s > 0 && out->weights_bytes < 0.75 * peaks->cache_bytes;
    QB_TRY(summarize(seen, keep_samples, out));
    QB_TRY(sum_spans(seen, peaks, out));
    out->gaps_ms = out->ms - out->covered_ms;
    qsort(out->kernels, out->n_kernels, sizeof *out->kernels, by_time);
    QB_TRY(QB_NEW(&scratch, 1, "histogram"));
    for (size_t i = 0; i < out->n_kernels; i++) find_percentiles(seen, out, i, scratch);
    qb_free(scratch);
    return QB_OK;
}

/* ---- trace ---- */

static json_t *args_of(const qb_profiled_span *s)
{
    const qb_work *w = &s->span.work;
    json_t *args = json_object();
    json_object_set_new(args, "kernel", json_string(w->kernel ? w->kernel : "-"));
    if (w->layer >= 0) json_object_set_new(args, "layer", json_integer(w->layer + 1));
    json_object_set_new(args, "bytes", qb_json_real(w->bytes));
    json_object_set_new(args, "ops", qb_json_real(w->ops));
    json_object_set_new(args, "typical_us", qb_json_real(s->typical_us));
    if (s->span.is_share) json_object_set_new(args, "share_of_a_pass", json_true());
    return args;
}

static void name_span(const qb_work *w, char *text, size_t capacity)
{
    const char *role = role_name(w->role);
    if (*role)
        snprintf(text, capacity, "%s %s", qb_phase_names[w->phase], role);
    else
        snprintf(text, capacity, "%s", qb_phase_names[w->phase]);
}

/* "norm + quantise": the works of the section that a thread's span belongs to. */
static void name_section(const qb_profiled *seen, size_t section, char *text, size_t capacity)
{
    size_t n = 0;
    *text = 0;
    for (size_t i = 0; i < seen->n_spans && n < capacity; i++) {
        const qb_timespan *span = &seen->spans[i].span;
        if (span->section != section && n) break; /* other slices use the numbers again */
        if (span->section != section) continue;
        char name[48];
        name_span(&span->work, name, sizeof name);
        n += (size_t)snprintf(text + n, capacity - n, "%s%s", n ? " + " : "", name);
    }
}

void qb_profile_trace(const qb_profiled *seen, size_t process, const char *name, qb_trace *trace)
{
    char text[128];
    qb_trace_name_process(trace, process, name);
    qb_trace_name_track(trace, process, 0, "phases");
    for (size_t i = 0; i < seen->n_spans; i++) {
        const qb_timespan *span = &seen->spans[i].span;
        name_span(&span->work, text, sizeof text);
        qb_trace_add(trace, &(qb_trace_span){.name = text,
                                             .category = qb_phase_names[span->work.phase],
                                             .process = process,
                                             .begin_us = span->begin_us,
                                             .length_us = span->end_us - span->begin_us,
                                             .args = args_of(&seen->spans[i])});
    }
    for (size_t t = 0; t < seen->n_threads; t++) {
        if (!seen->n_thread_spans[t]) continue;
        snprintf(text, sizeof text, "thread %zu", t);
        qb_trace_name_track(trace, process, 1 + t, text);
        for (size_t i = 0; i < seen->n_thread_spans[t]; i++) {
            const qb_thread_span *span = &seen->threads[t][i];
            name_section(seen, span->section, text, sizeof text);
            qb_trace_add(trace, &(qb_trace_span){.name = text,
                                                 .category = "thread",
                                                 .process = process,
                                                 .track = 1 + t,
                                                 .begin_us = span->begin_us,
                                                 .length_us = span->end_us - span->begin_us});
        }
    }
}
