/* report/write_profile_json.c - a profile as JSON: docs/profile.schema.json. */
#include "report/profile.h"
#include "report/result.h"

#include <math.h>
#include <string.h>

/* A failed allocation is seen by qb_json_check_memory at the end. */
static void set(json_t *object, const char *key, json_t *value)
{
    json_object_set_new(object, key, value);
}

static void set_real(json_t *object, const char *key, double value)
{
    set(object, key, qb_json_real(value));
}

static void set_count(json_t *object, const char *key, size_t value)
{
    set(object, key, json_integer((json_int_t)value));
}

static json_t *text_or_null(const char *text)
{
    return text && *text ? json_string(text) : json_null();
}

/* ---- a run ---- */

static void set_part(json_t *o, const qb_profile_part *part, double total_ms)
{
    bool works = part->ms > 0;
    set_real(o, "ms", part->ms);
    set_real(o, "share", part->ms / total_ms);
    set_real(o, "calls", part->calls);
    set_real(o, "bytes", part->bytes);
    set_real(o, "ops", part->ops);
    set_real(o, "gb_per_s", works ? 1e-6 * part->bytes / part->ms : NAN);
    set_real(o, "gops_per_s", works ? 1e-6 * part->ops / part->ms : NAN);
    set_real(o, "roofline_share", works ? part->bound_ms / part->ms : NAN);
    bool known = part->bound_ms > 0;
    set(o, "limit",
        known ? json_string(part->memory_ms >= part->compute_ms ? "memory" : "compute")
              : json_null());
}

static json_t *phases_to_json(const qb_profile_run *run)
{
    json_t *array = json_array();
    for (size_t i = 0; i < QB_PHASE_COUNT; i++) {
        json_t *o = json_object();
        if (run->phases[i].calls > 0) {
            set(o, "phase", json_string(qb_phase_names[i]));
            set_part(o, &run->phases[i], run->ms);
            json_array_append(array, o);
        }
        json_decref(o);
    }
    return array;
}

static json_t *layers_to_json(const qb_profile_run *run)
{
    json_t *array = json_array();
    for (size_t l = 0; l < run->n_layers; l++) {
        json_t *o = json_object(), *phases = json_object();
        for (size_t i = 0; i < QB_PHASE_COUNT; i++)
            set_real(phases, qb_phase_names[i], run->layers[l].phase_ms[i]);
        set_count(o, "layer", l + 1);
        set_real(o, "ms", run->layers[l].ms);
        set(o, "phases_ms", phases);
        json_array_append_new(array, o);
    }
    return array;
}

static json_t *kernels_to_json(const qb_profile_run *run)
{
    json_t *array = json_array();
    for (size_t i = 0; i < run->n_kernels; i++) {
        const qb_profile_kernel *k = &run->kernels[i];
        json_t *o = json_object();
        set(o, "kernel", json_string(k->kernel));
        set(o, "phase", json_string(qb_phase_names[k->phase]));
        set(o, "role", text_or_null(k->role));
        set_part(o, &k->part, run->ms);
        set_real(o, "p50_us", k->p50_us);
        set_real(o, "p90_us", k->p90_us);
        set_real(o, "p99_us", k->p99_us);
        json_array_append_new(array, o);
    }
    return array;
}

static json_t *histogram_to_json(const qb_histogram *h)
{
    json_t *array = json_array();
    for (size_t i = 0; h && i + 1 < QB_HISTOGRAM_BUCKETS; i++) {
        if (!h->count[i]) continue;
        json_t *o = json_object();
        set_real(o, "low_ms", qb_histogram_bucket_low(i));
        set_real(o, "high_ms", qb_histogram_bucket_low(i + 1));
        set_count(o, "n", h->count[i]);
        json_array_append_new(array, o);
    }
    return array;
}

static json_t *samples_to_json(const qb_profile_run *run)
{
    if (!run->samples_ms) return json_null();
    json_t *array = json_array();
    for (size_t i = 0; i < run->n_samples; i++)
        json_array_append_new(array, qb_json_real(run->samples_ms[i]));
    return array;
}

static json_t *interval_to_json(qb_interval ci)
{
    if (!isfinite(ci.low) || !isfinite(ci.high)) return json_null();
    json_t *array = json_array();
    json_array_append_new(array, qb_json_real(ci.low));
    json_array_append_new(array, qb_json_real(ci.high));
    return array;
}

static json_t *run_to_json(const qb_profile_run *run)
{
    if (!run->measured) return json_null();
    json_t *o = json_object();
    set(o, "scheme", json_string(run->scheme));
    set_real(o, "ms", run->ms);
    set(o, "ms_ci95", interval_to_json(run->ms_ci95));
    set_real(o, "p90_ms", run->p90_ms);
    set_real(o, "p99_ms", run->p99_ms);
    set_real(o, "tok_per_s", run->tok_per_s);
    set_count(o, "samples", run->n_samples);
    set_count(o, "passes_a_sample", run->n_passes);
    set(o, "samples_ms", samples_to_json(run));
    set(o, "histogram", histogram_to_json(run->histogram));
    set_real(o, "instrumented_ms", run->instrumented_ms);
    set_real(o, "overhead", run->overhead);
    set_count(o, "slices", run->slices);
    set_real(o, "stamp_us", run->stamp_us);
    set_real(o, "covered_ms", run->covered_ms);
    set_real(o, "gaps_ms", run->gaps_ms);
    set_real(o, "roof_ms", run->roof_ms);
    set_real(o, "weights_bytes", run->weights_bytes);
    set(o, "in_cache", json_boolean(run->in_cache));
    set(o, "phases", phases_to_json(run));
    set(o, "layers", layers_to_json(run));
    set(o, "kernels", kernels_to_json(run));
    return o;
}

/* ---- the rest ---- */

static void append_difference(json_t *array, const char *phase, double full, double scheme)
{
    json_t *o = json_object();
    set(o, "phase", json_string(phase));
    set_real(o, "full_ms", full);
    set_real(o, "scheme_ms", scheme);
    set_real(o, "difference_ms", scheme - full);
    json_array_append_new(array, o);
}

static json_t *difference_to_json(const qb_profile_operation *op)
{
    const qb_profile_run *a = &op->full, *b = &op->scheme;
    if (!b->measured) return json_null();
    json_t *array = json_array();
    for (size_t i = 0; i < QB_PHASE_COUNT; i++)
        if (a->phases[i].calls > 0 || b->phases[i].calls > 0)
            append_difference(array, qb_phase_names[i], a->phases[i].ms, b->phases[i].ms);
    append_difference(array, "gaps", a->gaps_ms, b->gaps_ms);
    return array;
}

static json_t *operations_to_json(const qb_profile *p)
{
    json_t *array = json_array();
    for (size_t i = 0; i < QB_PROFILE_OPERATIONS; i++) {
        const qb_profile_operation *op = &p->operations[i];
        if (!op->measured) continue;
        json_t *o = json_object();
        set(o, "operation", json_string(qb_profile_operation_names[i]));
        set_real(o, "tokens", op->tokens);
        set_count(o, "rows", op->rows);
        set_count(o, "context", op->context);
        set_real(o, "sampling_us", op->sampling_us);
        set(o, "full", run_to_json(&op->full));
        set(o, "scheme", run_to_json(&op->scheme));
        set(o, "difference", difference_to_json(op));
        json_array_append_new(array, o);
    }
    return array;
}

static json_t *findings_to_json(const qb_profile *p)
{
    json_t *array = json_array();
    for (size_t i = 0; i < p->n_findings; i++) {
        const qb_finding *f = &p->findings[i];
        json_t *o = json_object();
        set(o, "rule", json_string(f->rule));
        set(o, "operation", json_string(f->operation));
        set(o, "engine", json_string(f->of_full ? "full" : "scheme"));
        set_real(o, "weight", f->weight);
        set(o, "text", json_string(f->text));
        set(o, "help", json_string(f->help));
        json_array_append_new(array, o);
    }
    return array;
}

static json_t *sweep_row_to_json(const qb_sweep_row *row)
{
    json_t *o = json_object();
    set_count(o, "batch", row->batch);
    set_count(o, "context", row->context);
    set_real(o, "full_prefill_tok_per_s", row->full_tok_per_s[QB_PROFILE_PREFILL]);
    set_real(o, "prefill_tok_per_s", row->tok_per_s[QB_PROFILE_PREFILL]);
    set_real(o, "full_decode_tok_per_s", row->full_tok_per_s[QB_PROFILE_DECODE]);
    set_real(o, "decode_tok_per_s", row->tok_per_s[QB_PROFILE_DECODE]);
    set(o, "skipped", text_or_null(row->skipped));
    return o;
}

static json_t *crossovers_to_json(const qb_profile *p)
{
    json_t *array = json_array();
    for (int i = 0; i < QB_PROFILE_OPERATIONS; i++)
        for (size_t r = 0; r < p->n_sweep; r++) {
            if (r && p->sweep[r].context == p->sweep[r - 1].context) continue;
            size_t batch = qb_sweep_crossover(p, i, p->sweep[r].context);
            json_t *o = json_object();
            set(o, "operation", json_string(qb_profile_operation_names[i]));
            set_count(o, "context", p->sweep[r].context);
            set(o, "batch", batch ? json_integer((json_int_t)batch) : json_null());
            json_array_append_new(array, o);
        }
    return array;
}

static json_t *sweep_to_json(const qb_profile *p)
{
    if (!p->sweep) return json_null();
    json_t *o = json_object(), *rows = json_array();
    for (size_t i = 0; i < p->n_sweep; i++)
        json_array_append_new(rows, sweep_row_to_json(&p->sweep[i]));
    set(o, "rows", rows);
    set(o, "crossover", crossovers_to_json(p));
    return o;
}

static json_t *peaks_to_json(const qb_profile *p)
{
    json_t *o = json_object();
    set_real(o, "copy_gb_per_s", p->peaks.copy_gb_per_s);
    set_real(o, "read_gb_per_s", p->peaks.read_gb_per_s);
    set_real(o, "cache_gb_per_s", p->peaks.cache_gb_per_s);
    set_real(o, "cache_bytes", p->peaks.cache_bytes);
    set_real(o, "f32_gops_per_s", p->peaks.gops_per_s[QB_RATE_F32]);
    set_real(o, "bf16_gops_per_s", p->peaks.gops_per_s[QB_RATE_BF16]);
    set_real(o, "s8_gops_per_s", p->peaks.gops_per_s[QB_RATE_S8]);
    set(o, "time_utc", text_or_null(p->peaks_time_utc));
    return o;
}

static json_t *model_to_json(const qb_profile *p)
{
    json_t *o = json_object();
    set(o, "path", json_string(p->model.path));
    set(o, "name", json_string(p->model.name));
    set(o, "arch", json_string(p->model.arch));
    set_real(o, "n_layers", p->model.n_layers);
    set_real(o, "d_model", p->model.d_model);
    set_real(o, "n_heads", p->model.n_heads);
    set_real(o, "n_params", p->model.n_params);
    set_real(o, "vocab", p->model.vocab);
    set_real(o, "context", p->model.context);
    return o;
}

static json_t *notes_to_json(const qb_profile *p)
{
    json_t *array = json_array();
    for (size_t i = 0; i < p->n_notes; i++) json_array_append_new(array, json_string(p->notes[i]));
    return array;
}

qb_status qb_profile_write_json(const qb_profile *p, FILE *stream)
{
    size_t mark = qb_json_mark();
    json_t *root = json_object();
    set(root, "schema", json_string("qbench.profile/1"));
    set(root, "model", model_to_json(p));
    set(root, "scheme", json_string(p->scheme));
    set(root, "device", json_string(p->device));
    set(root, "machine", json_string(p->machine));
    set(root, "cpu", json_string(p->cpu));
    set_count(root, "threads", p->threads);
    set_count(root, "batch", p->batch);
    set_count(root, "context", p->context);
    set(root, "peaks", peaks_to_json(p));
    set(root, "operations", operations_to_json(p));
    set(root, "verdict", findings_to_json(p));
    set(root, "notes", notes_to_json(p));
    set(root, "sweep", sweep_to_json(p));
    set(root, "time_utc", json_string(p->time_utc));
    set(root, "qbench_version", json_string(p->qbench_version));
    set(root, "git_commit", json_string(p->git_commit));
    set(root, "command", json_string(p->command));
    qb_status status = qb_json_check_memory(mark, "profile");
    if (status == QB_OK) status = qb_json_write_lines(root, "profile", stream);
    json_decref(root);
    return status;
}
