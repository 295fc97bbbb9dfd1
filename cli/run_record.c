/* cli/run_record.c - what was seen becomes the record of one (model, scheme); see run.h. */
#include "cli/run.h"

#include "core/memory.h"
#include "version.h"

#include <math.h>
#include <stdio.h>

static qb_status record_model(const qb_run_seen *seen, qb_result *r)
{
    const qb_model *m = seen->model;
    const qb_config *c = &m->config;
    const char *optimizer = NULL;
    size_t tokens = SIZE_MAX;
    if (m->training) { /* a record of another kind is no error here */
        optimizer = json_string_value(json_object_get(m->training, "optimizer"));
        json_t *n = json_object_get(m->training, "tokens");
        if (json_is_integer(n)) tokens = (size_t)json_integer_value(n);
    }
    QB_TRY(qb_result_set(&r->model.path, m->path));
    QB_TRY(qb_result_set(&r->model.name, m->name));
    QB_TRY(qb_result_set(&r->model.sha256, seen->model_sha256));
    QB_TRY(qb_result_set(&r->model.arch, c->arch->name));
    QB_TRY(qb_result_set(&r->model.softmax, qb_softmax_names[c->softmax]));
    QB_TRY(qb_result_set(&r->model.norm, qb_norm_names[c->norm]));
    QB_TRY(qb_result_set(&r->model.optimizer, optimizer));
    r->model.n_layers = (int64_t)c->n_layers;
    r->model.d_model = (int64_t)c->d_model;
    r->model.n_heads = (int64_t)c->n_heads;
    r->model.n_params = (int64_t)qb_config_n_params(c);
    r->model.vocab = (int64_t)c->vocab;
    r->model.context = (int64_t)c->context;
    r->model.train_tokens = (int64_t)tokens; /* SIZE_MAX becomes -1: not known */
    return QB_OK;
}

static qb_status record_text(const qb_run_seen *seen, qb_result *r)
{
    const qb_run_text *t = seen->run_text;
    QB_TRY(qb_result_set(&r->text.name, seen->text->name));
    QB_TRY(qb_result_set(&r->text.sha256, seen->text->sha256));
    const qb_tokenizer *tokenizer = seen->model->tokenizer; /* NULL: tokens were given */
    QB_TRY(qb_result_set(&r->text.tokenizer_sha256,
                         tokenizer ? qb_tokenizer_sha256(tokenizer) : NULL));
    QB_TRY(qb_result_set(&r->protocol.name, t->protocol->name));
    r->text.bytes = (int64_t)seen->text->raw_bytes;
    r->text.tokens = (int64_t)t->stream.tokens.n;
    r->protocol.context = (int64_t)t->windows.context;
    r->protocol.stride = (int64_t)t->windows.stride;
    r->protocol.batch = (int64_t)t->batch;
    r->protocol.windows = (int64_t)t->windows.n;
    r->protocol.scored_tokens = (int64_t)t->windows.n_scored;
    return QB_OK;
}

static qb_status record_scheme(const qb_scheme *s, qb_result *r)
{
    QB_TRY(qb_result_set(&r->scheme.name, s->name));
    if (s->weights.bits) {
        char axis[32];
        qb_weight_axis_text(&s->weights, axis);
        r->scheme.weight_bits = s->weights.bits;
        QB_TRY(qb_result_set(&r->scheme.weight_axis, axis));
    }
    if (s->input.bits) {
        r->scheme.act_bits = s->input.bits;
        QB_TRY(qb_result_set(&r->scheme.act_axis, qb_span_text(&s->input)));
        QB_TRY(qb_result_set(&r->scheme.act_scale, s->input.is_static ? "static" : "dynamic"));
    }
    if (s->output.bits) r->scheme.out_bits = s->output.bits;
    return QB_OK;
}

/* Sums of neighbouring windows where there are more than a record holds. */
static qb_status record_windows(const qb_quality *q, size_t i, const qb_windows *windows,
                                qb_result_windows *out)
{
    const qb_quality_scores *scores = &q->cases[i];
    size_t per_block = (windows->n + QB_RESULT_MAX_BLOCKS - 1) / QB_RESULT_MAX_BLOCKS;
    size_t n = per_block ? (windows->n + per_block - 1) / per_block : 0;
    QB_TRY(qb_reals_resize(&out->n, n));
    QB_TRY(qb_reals_resize(&out->nll, n));
    QB_TRY(qb_reals_resize(&out->nll_full, n));
    if (scores->nll) QB_TRY(qb_reals_resize(&out->kl, n));
    if (scores->nll) QB_TRY(qb_reals_resize(&out->agree, n));
    for (size_t block = 0, w = 0, at = 0; block < n; block++) {
        size_t count = 0, agree = 0;
        for (size_t end = w + per_block; w < end && w < windows->n; w++)
            count += windows->items[w].n_scored;
        for (size_t k = 0; scores->nll && k < count; k++) agree += scores->agree[at + k];
        out->n.items[block] = (double)count;
        out->nll_full.items[block] = qb_sum(q->nll_full + at, count);
        out->nll.items[block] = qb_sum((scores->nll ? scores->nll : q->nll_full) + at, count);
        if (scores->nll) out->kl.items[block] = qb_sum(scores->kl + at, count);
        if (scores->nll) out->agree.items[block] = (double)agree;
        at += count;
    }
    return QB_OK;
}

static qb_status record_quality(const qb_run_seen *seen, size_t i, qb_result *r)
{
    const qb_run_text *t = seen->run_text;
    qb_summary_options options = {.n_bytes = t->n_bytes,
                                  .n_words = t->n_words,
                                  .by_document = t->protocol->per_document,
                                  .seed = qb_cli_size(seen->cli, "seed")};
    qb_quality_summary s;
    QB_TRY(qb_quality_summarize(seen->quality, i, &t->windows, &options, &s));
    r->quality.ppl_full = s.ppl_full;
    r->quality.ppl = s.ppl;
    r->quality.penalty = s.penalty;
    r->quality.penalty_ci95 = s.penalty_ci95;
    r->quality.kl_mean = s.kl_mean;
    r->quality.kl_p99 = s.kl_p99;
    r->quality.top1_agreement = s.top1_agreement;
    r->quality.bits_per_byte = s.bits_per_byte;
    r->quality.word_ppl = s.word_ppl;
    r->quality.byte_ppl = s.byte_ppl;
    r->quality.ppl_fake = s.ppl_fake;
    r->quality.fake_max_logit_diff = s.fake_max_logit_diff;
    return record_windows(seen->quality, i, &t->windows, &r->quality.windows);
}

/* Also keeps the fewest samples and the widest interval, for the trust. */
static qb_status record_timing(const qb_samples *samples, qb_trust_input *trust,
                               qb_result_timing *out)
{
    qb_timing t;
    if (!samples->n) return QB_OK;
    QB_TRY(qb_samples_summarize(samples, &t));
    out->tok_per_s = t.tok_per_s;
    out->tok_per_s_ci95 = t.tok_per_s_ci95;
    out->p50_ms = t.p50_ms;
    out->p90_ms = t.p90_ms;
    out->p99_ms = t.p99_ms;
    out->samples = (int64_t)t.n;
    size_t kept = t.n < QB_RESULT_MAX_SAMPLES ? t.n : QB_RESULT_MAX_SAMPLES;
    QB_TRY(qb_reals_resize(&out->samples_ms, kept));
    for (size_t i = 0; i < kept; i++) out->samples_ms.items[i] = rint(samples->ms[i] * 1e5) / 1e5;
    double half_width = qb_timing_half_width(&t);
    if (half_width > trust->half_width) trust->half_width = half_width;
    if ((int64_t)t.n < trust->samples) trust->samples = (int64_t)t.n;
    return QB_OK;
}

static qb_status record_speed(const qb_run_seen *seen, size_t speed_idx, qb_trust_input *trust,
                              qb_result *r)
{
    const qb_speed_result *own = &seen->speed->engines[speed_idx], *full = seen->speed->engines;
    r->speed.batch = (int64_t)seen->speed_plan->batch;
    r->speed.context = (int64_t)seen->speed_plan->context;
    r->speed.decode_after = (int64_t)seen->speed_plan->decode_from;
    trust->samples = INT64_MAX;
    QB_TRY(record_timing(&own->prefill, trust, &r->speed.prefill));
    QB_TRY(record_timing(&own->decode, trust, &r->speed.decode));
    QB_TRY(record_timing(&full->prefill, trust, &r->speed.full.prefill));
    QB_TRY(record_timing(&full->decode, trust, &r->speed.full.decode));
    if (isnan(own->j_per_token)) return QB_OK;
    r->energy.j_per_token = own->j_per_token;
    return qb_result_set(&r->energy.source, qb_energy_source());
}

static qb_status record_facts(const qb_run_seen *seen, size_t i, qb_result *r)
{
    const qb_run_facts *full = &seen->facts[0];
    const qb_run_facts *own = seen->schemes->items[i].is_full ? full : &seen->facts[1 + i];
    r->coverage.linears = (int64_t)own->coverage.linears;
    r->coverage.linears_quantised = (int64_t)own->coverage.linears_quantised;
    r->coverage.macs_share = own->coverage.macs_share;
    r->coverage.bytes_share = own->coverage.bytes_share;
    for (const char *const *kept = own->coverage.kept_float; *kept; kept++)
        QB_TRY(qb_texts_add(&r->coverage.kept_float, *kept));
    r->memory.weights_bytes = (int64_t)own->memory.weights_bytes;
    r->memory.full_weights_bytes = (int64_t)full->memory.weights_bytes;
    if (seen->speed) r->memory.kv_bytes = (int64_t)own->memory.kv_bytes;
    r->memory.scratch_bytes = (int64_t)own->memory.scratch_bytes;
    size_t peak = qb_process_peak_bytes();
    if (peak) r->memory.peak_bytes = (int64_t)peak;
    return qb_result_set(&r->environment.kernels, own->kernels);
}

static qb_status set_version(char **text, int version) /* 13000 = 13.0 */
{
    char digits[32];
    snprintf(digits, sizeof digits, "%d.%d", version / 1000, version % 1000 / 10);
    return version ? qb_result_set(text, digits) : QB_OK;
}

static qb_status record_gpu_state(const qb_nvml_reading *now, qb_result *r)
{
    char throttle[160];
    r->environment.gpu.sm_mhz = now->sm_mhz;
    r->environment.gpu.sm_max_mhz = now->sm_max_mhz;
    r->environment.gpu.memory_mhz = now->memory_mhz;
    r->environment.gpu.power_w = now->power_w;
    r->environment.gpu.power_limit_w = now->power_limit_w;
    r->environment.gpu.temperature_c = now->temperature_c;
    r->environment.gpu.other_processes = now->other_processes;
    qb_gpu_throttle_text(now->throttle, throttle, sizeof throttle);
    if (now->throttle >= 0) QB_TRY(qb_result_set(&r->environment.gpu.throttle, throttle));
    if (now->ecc >= 0) QB_TRY(qb_result_set(&r->environment.gpu.ecc, now->ecc ? "on" : "off"));
    return *now->driver ? qb_result_set(&r->environment.gpu.driver, now->driver) : QB_OK;
}

/* As it was when the timings ended, or is now. */
static qb_status record_gpu(const qb_run_seen *seen, qb_result *r)
{
    qb_gpu gpu;
    char text[32];
    qb_gpu_read(&gpu);
    if (!gpu.in_use) return qb_result_set(&r->environment.device, "cpu");
    if (seen->watch) {
        gpu = seen->watch->gpu;
        r->environment.gpu.power_capped_share = gpu.now.power_capped_s / seen->watch->wall_s;
    }
    snprintf(text, sizeof text, "cuda:%d", gpu.index);
    QB_TRY(qb_result_set(&r->environment.device, text));
    snprintf(text, sizeof text, "%d.%d", gpu.info.major, gpu.info.minor);
    QB_TRY(qb_result_set(&r->environment.gpu.name, gpu.info.name));
    QB_TRY(qb_result_set(&r->environment.gpu.compute_capability, text));
    QB_TRY(set_version(&r->environment.gpu.cuda_driver, gpu.info.driver));
    QB_TRY(set_version(&r->environment.gpu.cuda_runtime, gpu.info.runtime));
    r->environment.gpu.index = gpu.index;
    r->environment.gpu.n_sms = gpu.info.n_sms;
    r->environment.gpu.memory_bytes = (int64_t)gpu.info.memory_bytes;
    return record_gpu_state(&gpu.now, r);
}

static qb_status record_environment(const qb_run_seen *seen, qb_result *r)
{
    const qb_machine *m = seen->machine;
    QB_TRY(record_gpu(seen, r));
    QB_TRY(qb_result_set(&r->environment.cpu, m->cpu));
    QB_TRY(qb_result_set(&r->environment.features, m->features));
    QB_TRY(qb_result_set(&r->environment.os, m->os));
    QB_TRY(qb_result_set(&r->environment.kernel_version, m->kernel_version));
    QB_TRY(qb_result_set(&r->environment.hypervisor, *m->hypervisor ? m->hypervisor : NULL));
    QB_TRY(qb_result_set(&r->environment.governor, *m->governor ? m->governor : NULL));
    QB_TRY(qb_result_set(&r->environment.compiler, QB_COMPILER " " QB_BUILD_TYPE));
    r->environment.cores = (int64_t)m->n_cpus;
    r->environment.threads = (int64_t)seen->n_threads;
    r->environment.load = m->load;
    r->environment.memory_bytes = m->memory_bytes;
    QB_TRY(qb_result_set(&r->time_utc, seen->time_utc));
    QB_TRY(qb_result_set(&r->qbench_version, QB_VERSION));
    QB_TRY(qb_result_set(&r->git_commit, QB_GIT_COMMIT));
    return qb_result_set(&r->command, qb_cli_command(seen->cli));
}

static qb_status record_trust(const qb_trust_input *input, qb_result *r)
{
    qb_trust trust;
    qb_trust_judge(input, &trust);
    QB_TRY(qb_result_set(&r->trust.level, qb_trust_text(trust.level)));
    for (size_t i = 0; i < trust.n_reasons; i++)
        QB_TRY(qb_texts_add(&r->trust.reasons, trust.reasons[i]));
    return QB_OK;
}

qb_status qb_run_record_common(const qb_run_seen *seen, qb_result *r)
{
    QB_TRY(record_model(seen, r));
    QB_TRY(record_environment(seen, r));
    return seen->run_text ? record_text(seen, r) : QB_OK;
}

qb_status qb_run_record(const qb_run_seen *seen, size_t i, size_t speed_idx, qb_result *r)
{
    const qb_run_scheme *item = &seen->schemes->items[i];
    qb_trust_input trust = {.machine = seen->machine,
                            .watch = seen->watch,
                            .n_threads = seen->n_threads,
                            .steady = !seen->speed || seen->speed->steady,
                            .windows = -1};
    QB_TRY(qb_run_record_common(seen, r));
    QB_TRY(record_scheme(&item->scheme, r));
    QB_TRY(record_facts(seen, i, r));
    if (seen->quality) {
        QB_TRY(record_quality(seen, i, r));
        if (!item->is_full) trust.windows = r->protocol.windows;
        trust.not_finite = !isfinite(r->quality.ppl_full) || !isfinite(r->quality.ppl);
    }
    if (seen->speed) QB_TRY(record_speed(seen, speed_idx, &trust, r));
    return record_trust(&trust, r);
}
