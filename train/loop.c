/* train/loop.c - see loop.h: what is due when, and the steps between. */
#include "train/loop_internal.h"

#include "core/clock.h"
#include "core/interrupt.h"
#include "core/memory.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* ---- the trainer ---- */

/* Divisors of batch, so that every pass is full. */
static size_t smaller_divisor(size_t batch, size_t than)
{
    size_t d = than - 1;
    while (batch % d) d--;
    return d;
}

static qb_status create_trainer(qb__loop *l, size_t micro_batch)
{
    const qb_train_config *c = l->config;
    const qb_trainer_options options = {
        .device = l->options->device,
        .micro_batch = micro_batch,
        .context = c->model.context,
        .optimizer = &qb_optimizers[c->optimizer],
        .settings = c->settings,
        .rotation = {.kind = (qb_rotation_kind)c->rotation,
                     .block_elems = c->rotation_block,
                     .both_axes = c->rotate_both,
                     .seed = c->seed},
        .clip = c->clip,
        .full_f32 = c->precision == QB_PRECISION_F32,
        .recompute = c->recompute,
        .deterministic = c->deterministic,
        .no_graphs = !c->graphs,
        .n_threads = c->threads,
        .comm = l->options->comm,
    };
    return qb_trainer_create(&c->model, &options, &l->trainer);
}

/* The most windows of a step that a rank has. */
static size_t windows_of_rank(const qb__loop *l)
{
    size_t n_ranks = qb_comm_size(l->options->comm);
    return (l->config->batch + n_ranks - 1) / n_ranks;
}

/* What one rank lacks memory for no rank does. */
static qb_status agree_on_memory(qb__loop *l, qb_status status)
{
    enum { LACKS = 1, FAILED = 2 };
    unsigned bits = status == QB_OK ? 0u : status == QB_ERR_MEMORY ? LACKS : FAILED;
    QB_TRY(qb_comm_agree(l->options->comm, &bits));
    if (!bits || (status != QB_OK && !(bits & FAILED))) return status;
    if (status != QB_OK && status != QB_ERR_MEMORY) return status;
    qb_trainer_destroy(l->trainer);
    l->trainer = NULL;
    return bits & FAILED ? QB_FAIL(QB_ERR_DEVICE, "another rank failed")
                         : QB_FAIL(QB_ERR_MEMORY, "another rank lacks memory");
}

/* Where the configuration leaves it open: what keeps a processor's caches and a GPU busy, and less
 * where memory does not suffice. */
static qb_status choose_micro_batch(qb__loop *l)
{
    qb_train_config *c = l->config;
    enum { CPU_TOKENS = 4096, GPU_TOKENS = 131072 }; /* of a pass */
    size_t tokens = !strcmp(l->options->device, "cpu") ? CPU_TOKENS : GPU_TOKENS;
    size_t most = tokens / c->model.context, micro_batch = c->batch;
    if (most > windows_of_rank(l)) most = windows_of_rank(l);
    if (micro_batch > most) micro_batch = smaller_divisor(c->batch, most ? most + 1 : 2);
    for (;;) {
        qb_status status = agree_on_memory(l, create_trainer(l, micro_batch));
        if (status != QB_ERR_MEMORY || micro_batch == 1) {
            if (status == QB_OK) c->micro_batch = micro_batch;
            return status;
        }
        micro_batch = smaller_divisor(c->batch, micro_batch);
    }
}

static qb_status draw_weights(qb__loop *l)
{
    const qb_params *params = qb_trainer_params(l->trainer);
    float *weights;
    QB_TRY(QB_NEW_ZERO(&weights, params->n_elems, "weights"));
    qb_params_init(params, (qb_init_kind)l->config->init, l->config->seed, weights);
    qb_status status = qb_trainer_set_weights(l->trainer, weights);
    qb_free(weights);
    return status;
}

static qb_status load_checkpoint(qb__loop *l, const qb_checkpoint *from)
{
    size_t n_elems = qb_trainer_params(l->trainer)->n_elems;
    size_t n_buffers = 1 + qb_optimizers[l->config->optimizer].n_states;
    if (from->n_elems != n_elems || from->n_buffers != n_buffers)
        return QB_FAIL(QB_ERR_FORMAT, "%s: found %zu buffers of %zu numbers, expected %zu of %zu",
                       from->file.path, from->n_buffers, from->n_elems, n_buffers, n_elems);
    QB_TRY(qb_trainer_set_weights(l->trainer, from->buffers[0]));
    for (size_t i = 1; i < n_buffers; i++)
        QB_TRY(qb_trainer_set_state(l->trainer, i - 1, from->buffers[i]));
    l->state = from->state;
    l->saved_step = from->state.step;
    return QB_OK;
}

/* ---- when ----
 *
 * Steps are queued ahead of what is known of them: `state` is of those whose figures have been
 * collected. Whatever looks at the weights comes when all are. */

static bool every(uint64_t step, size_t n, uint64_t last)
{
    return step && (step == last || (n && step % n == 0));
}

static qb_status save(qb__loop *l, unsigned what)
{
    if (qb__loop_is_root(l))
        QB_TRY(qb_metrics_log_sync(l->log, &l->state.metrics_bytes, &l->state.events_bytes));
    QB_TRY(qb_trainer_fetch_weights(l->trainer));
    if (l->config->checkpoints) QB_TRY(qb_saver_start(l->saver, what, &l->state));
    if (what & QB_SAVE_CHECKPOINT) l->saved_step = l->state.step;
    return QB_OK;
}

/* 10, 12, 15, 20, 25, 30, 40, 50, 60, 80 and those times a power of 10: the R10 series (ISO 3), in
 * round numbers. */
static bool is_preferred(uint64_t step)
{
    static const uint64_t numbers[] = {10, 12, 15, 20, 25, 30, 40, 50, 60, 80};
    while (step >= 100 && step % 10 == 0) step /= 10;
    for (size_t i = 0; i < QB_COUNT(numbers); i++)
        if (step == numbers[i]) return true;
    return false;
}

static bool evaluation_is_due(const qb__loop *l, uint64_t step)
{
    const qb_train_config *c = l->config;
    bool wanted = every(step, c->eval_every, l->n_steps) || (c->eval_log && is_preferred(step));
    return l->options->valid && l->state.evaluated_step != step && wanted;
}

static bool checkpoint_is_due(const qb__loop *l, uint64_t step)
{
    return l->saved_step != step && every(step, l->config->save_every, l->n_steps);
}

/* What is due between two steps. An interrupted evaluation is made up for by the resumed run. */
static qb_status between_steps(qb__loop *l)
{
    uint64_t step = l->state.step;
    unsigned what = 0;
    if (evaluation_is_due(l, step)) {
        QB_TRY(qb__loop_evaluate(l));
        if (l->seen.is_best) what |= QB_SAVE_BEST;
    }
    if (checkpoint_is_due(l, step)) what |= QB_SAVE_CHECKPOINT;
    return what ? save(l, what) : QB_OK;
}

/* ---- steps ---- */

static uint64_t queued_step(const qb__loop *l)
{
    return l->state.step + qb_trainer_queued(l->trainer);
}

static double rate_of(const qb__loop *l, uint64_t step)
{
    return qb_schedule_lr(&l->config->schedule, step, l->n_steps);
}

static qb_status tokens_of(qb__loop *l, uint64_t step, const int32_t **tokens)
{
    size_t first, own;
    qb_comm_part(l->options->comm, l->config->batch, &first, &own);
    uint64_t before = l->state.windows + (step - 1 - l->state.step) * l->config->batch;
    return qb_prefetch_get(l->windows, before + first, tokens);
}

static qb_status queue_step(qb__loop *l)
{
    const int32_t *tokens;
    uint64_t step = queued_step(l) + 1;
    QB_TRY(tokens_of(l, step, &tokens));
    return qb_trainer_queue(l->trainer, tokens, l->config->batch, rate_of(l, step), step);
}

/* The step after `state` was not finite. Where others were queued behind it, which changed nothing
 * either, it is made again for the name of the tensor. */
static qb_status fail_not_finite(qb__loop *l, qb_step_stats *stats)
{
    qb_step_stats later;
    const int32_t *tokens;
    uint64_t step = l->state.step + 1;
    bool again = qb_trainer_queued(l->trainer) > 0;
    while (qb_trainer_queued(l->trainer)) QB_TRY(qb_trainer_collect(l->trainer, &later));
    if (again) {
        QB_TRY(tokens_of(l, step, &tokens));
        QB_TRY(
            qb_trainer_step(l->trainer, tokens, l->config->batch, rate_of(l, step), step, stats));
    }
    QB_TRY(qb_saver_wait(l->saver)); /* the newest checkpoint is the one that is named */
    return qb_fail_not_finite(l->options->folder, step,
                              stats->culprit[0] ? stats->culprit : "the loss");
}

static qb_status collect_step(qb__loop *l)
{
    const qb_train_config *c = l->config;
    qb_run_state *state = &l->state;
    qb_step_stats stats;
    QB_TRY(qb_trainer_collect(l->trainer, &stats));
    if (!stats.finite) return fail_not_finite(l, &stats);
    double now = qb_now_s();
    l->busy_s += now - l->mark_s;
    l->mark_s = now;
    l->busy_steps++;
    state->step++;
    state->windows += c->batch;
    return qb__loop_report(l, &stats, rate_of(l, state->step),
                           every(state->step, c->log_every, l->n_steps));
}

/* Until so many are left queued. */
static qb_status collect_steps(qb__loop *l, size_t n_left)
{
    while (qb_trainer_queued(l->trainer) > n_left) QB_TRY(collect_step(l));
    return QB_OK;
}

/* What makes a run stop between two steps; one rank's reason is all ranks'. */
enum { STOP_INTERRUPTED = 1, STOP_TIME_UP = 2 };

static bool time_is_up(const qb__loop *l)
{
    double limit_s = 60 * l->config->minutes;
    return limit_s > 0 && qb_now_s() - l->begun_s >= limit_s;
}

static qb_status stop_early(qb__loop *l)
{
    if (l->saved_step != l->state.step) QB_TRY(save(l, QB_SAVE_CHECKPOINT));
    return qb_saver_wait(l->saver);
}

/* What is due after the steps that are queued, with none of them left. */
static qb_status do_what_is_due(qb__loop *l)
{
    uint64_t step = queued_step(l);
    if (!evaluation_is_due(l, step) && !checkpoint_is_due(l, step)) return QB_OK;
    QB_TRY(collect_steps(l, 0));
    qb_status status = between_steps(l);
    l->mark_s = qb_now_s(); /* no time of steps */
    return status;
}

static qb_status fail_interrupted(qb__loop *l)
{
    QB_TRY(stop_early(l));
    if (!l->config->checkpoints)
        return QB_FAIL(QB_ERR_INTERRUPTED, "%s: interrupted after step %llu of %llu, nothing saved",
                       l->options->folder, (unsigned long long)l->state.step,
                       (unsigned long long)l->n_steps);
    return QB_FAIL(
        QB_ERR_INTERRUPTED,
        "%s: interrupted after step %llu of %llu and saved; to go on: qbench train --resume %s",
        l->options->folder, (unsigned long long)l->state.step, (unsigned long long)l->n_steps,
        l->options->folder);
}

static qb_status run_steps(qb__loop *l, qb_loop_end *end)
{
    *end = QB_LOOP_DONE;
    l->mark_s = qb_now_s();
    for (;;) {
        qb_status status = do_what_is_due(l);
        if (status != QB_OK && status != QB_ERR_INTERRUPTED) return status;
        unsigned stop =
            (qb_interrupted() ? STOP_INTERRUPTED : 0u) | (time_is_up(l) ? STOP_TIME_UP : 0u);
        QB_TRY(qb_comm_agree(l->options->comm, &stop));
        if (stop || queued_step(l) >= l->n_steps) QB_TRY(collect_steps(l, 0));
        if (status == QB_ERR_INTERRUPTED ||
            ((stop & STOP_INTERRUPTED) && l->state.step < l->n_steps))
            return fail_interrupted(l);
        if (l->state.step >= l->n_steps) return qb_saver_wait(l->saver);
        if (stop & STOP_TIME_UP) {
            *end = QB_LOOP_TIME_UP;
            return stop_early(l);
        }
        QB_TRY(queue_step(l));
        QB_TRY(collect_steps(l, qb_trainer_steps_ahead(l->trainer)));
    }
}

/* ---- the whole ---- */

static qb_status prepare(qb__loop *l)
{
    const qb_loop_options *o = l->options;
    qb_train_config *c = l->config;
    l->state = (qb_run_state){.valid_loss = NAN, .best_loss = NAN};
    l->saved_step = UINT64_MAX;
    l->n_steps = qb_train_config_n_steps(c);
    size_t most = windows_of_rank(l);
    QB_TRY(c->micro_batch ? create_trainer(l, c->micro_batch < most ? c->micro_batch : most)
                          : choose_micro_batch(l));
    QB_TRY(o->from ? load_checkpoint(l, o->from) : draw_weights(l));
    snprintf(l->state.data_sha256, sizeof l->state.data_sha256, "%s", qb_batches_sha256(o->train));
    size_t first, own;
    qb_comm_part(o->comm, c->batch, &first, &own);
    QB_TRY(qb_prefetch_create(o->train, own, c->batch, &l->windows));
    QB_TRY(qb_saver_create(qb__loop_is_root(l) ? o->folder : NULL, c, l->trainer, o->tokenizer,
                           &l->saver));
    if (qb__loop_is_root(l))
        QB_TRY(qb_metrics_log_open(o->folder, c->tensorboard, l->state.metrics_bytes,
                                   c->tensorboard ? l->state.events_bytes : 0, &l->log));
    l->seen = (qb_loop_seen){.step = l->state.step,
                             .n_steps = l->n_steps,
                             .loss = qb__loop_mean_loss(&l->state, c->log_every),
                             .lr = NAN,
                             .grad_norm = NAN,
                             .tok_per_s = NAN,
                             .mfu = NAN,
                             .seconds = l->state.seconds,
                             .memory_bytes = qb_trainer_memory_bytes(l->trainer)};
    l->earlier_s = l->state.seconds;
    l->begun_s = qb_now_s();
    return QB_OK;
}

/* A rank was lost, as the message says; what is being written is written first. */
static qb_status fail_lost(qb__loop *l)
{
    char why[160], *path;
    qb_comm_check_alive(l->options->comm); /* says why, whatever failed after it */
    snprintf(why, sizeof why, "%s", qb_error_message());
    if (l->saver) QB_TRY(qb_saver_wait(l->saver));
    QB_TRY(qb_saver_last_good(l->options->folder, &path));
    qb_status status =
        QB_FAIL(QB_ERR_DEVICE, "%s: %s; last good checkpoint: %s", l->options->folder, why, path);
    qb_free(path);
    return status;
}

static void clean_up(qb__loop *l)
{
    qb_saver_destroy(l->saver);
    qb_metrics_log_close(l->log);
    qb_trainer_destroy(l->trainer);
    qb_prefetch_destroy(l->windows);
}

qb_status qb_loop_run(const qb_loop_options *options, qb_train_config *config, qb_loop_result *out)
{
    qb__loop l = {.options = options, .config = config};
    qb_status status = qb_comm_check(options->comm, prepare(&l));
    if (status == QB_OK) {
        l.progress = qb_progress_begin("train", (size_t)l.n_steps);
        l.progress.first = l.progress.done = (size_t)l.state.step;
        status = run_steps(&l, &out->end);
        qb_progress_end(&l.progress);
    }
    if (qb_comm_is_lost(options->comm)) status = fail_lost(&l);
    out->state = l.state;
    out->seen = l.seen;
    clean_up(&l);
    return status;
}
