/* train/loop.c - see loop.h. */
#include "train/loop.h"

#include "core/clock.h"
#include "core/interrupt.h"
#include "core/memory.h"
#include "core/progress.h"
#include "train/data/prefetch.h"
#include "train/saver.h"
#include "train/trainer.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

typedef struct loop {
    const qb_loop_options *options;
    qb_train_config *config;
    qb_trainer *trainer;
    qb_saver *saver;
    qb_metrics_log *log;
    qb_prefetch *windows;         /* of the steps */
    uint64_t n_steps, saved_step; /* saved: a checkpoint is there or on its way */
    double begun_s, earlier_s;    /* this process's start; seconds of those before it */
    double busy_s, mark_s;        /* in steps since the last line of the log, up to the mark */
    uint64_t busy_steps;
    qb_run_state state;
    qb_loop_seen seen;
    qb_progress progress;
    char detail[128];
} loop;

/* ---- the trainer ---- */

/* Divisors of batch, so that every pass is full. */
static size_t smaller_divisor(size_t batch, size_t than)
{
    size_t d = than - 1;
    while (batch % d) d--;
    return d;
}

static qb_status create_trainer(loop *l, size_t micro_batch)
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
static size_t windows_of_rank(const loop *l)
{
    size_t n_ranks = qb_comm_size(l->options->comm);
    return (l->config->batch + n_ranks - 1) / n_ranks;
}

static bool is_root(const loop *l)
{
    return qb_comm_rank(l->options->comm) == 0;
}

/* What one rank lacks memory for no rank does. */
static qb_status agree_on_memory(loop *l, qb_status status)
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
static qb_status choose_micro_batch(loop *l)
{
    qb_train_config *c = l->config;
    size_t tokens = !strcmp(l->options->device, "cpu") ? 4096 : 131072;
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

static qb_status draw_weights(loop *l)
{
    const qb_params *params = qb_trainer_params(l->trainer);
    float *weights;
    QB_TRY(QB_NEW_ZERO(&weights, params->n_elems, "weights"));
    qb_params_init(params, (qb_init_kind)l->config->init, l->config->seed, weights);
    qb_status status = qb_trainer_set_weights(l->trainer, weights);
    qb_free(weights);
    return status;
}

static qb_status load_checkpoint(loop *l, const qb_checkpoint *from)
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

/* ---- what is reported ---- */

static void keep_loss(qb_run_state *s, double loss)
{
    if (s->n_losses == QB_LOSS_TAIL)
        memmove(s->losses, s->losses + 1, --s->n_losses * sizeof *s->losses);
    s->losses[s->n_losses++] = loss;
}

/* Over the last log_every steps, as far as they are remembered. */
static double mean_loss(const qb_run_state *s, size_t log_every)
{
    size_t n = log_every < s->n_losses ? log_every : s->n_losses;
    double sum = 0;
    for (size_t i = s->n_losses - n; i < s->n_losses; i++) sum += s->losses[i];
    return n ? sum / (double)n : NAN;
}

static void show_progress(loop *l)
{
    const qb_loop_seen *s = &l->seen;
    char mfu[32] = "";
    if (isfinite(s->mfu)) snprintf(mfu, sizeof mfu, ", MFU %.0f %%", 100 * s->mfu);
    bool mega = s->tok_per_s >= 1e6;
    snprintf(l->detail, sizeof l->detail, "step %llu, loss %.3f, lr %.1e, %.*f %stok/s%s, %.0f MB",
             (unsigned long long)s->step, s->loss, s->lr, mega ? 2 : 1,
             s->tok_per_s / (mega ? 1e6 : 1e3), mega ? "M" : "k", mfu,
             (double)s->memory_bytes / 1e6);
    l->progress.detail = l->detail;
    qb_progress_update(&l->progress, (size_t)s->step);
}

static void see_step(loop *l, const qb_step_stats *stats, double lr)
{
    double tokens = (double)l->config->batch * (double)l->config->model.context;
    double rate = (double)l->busy_steps / l->busy_s;
    double peak = l->options->peak.tflops * 1e12 * (double)qb_comm_size(l->options->comm);
    qb_loop_seen *s = &l->seen;
    s->step = l->state.step;
    s->loss = mean_loss(&l->state, l->config->log_every);
    s->lr = lr;
    s->grad_norm = stats->grad_norm;
    s->tok_per_s = tokens * rate;
    s->mfu = peak > 0 ? qb_trainer_flops(l->trainer, l->config->batch) * rate / peak : NAN;
    s->seconds = l->state.seconds = l->earlier_s + qb_now_s() - l->begun_s;
}

static qb_status log_step(loop *l, double loss)
{
    if (!is_root(l)) return QB_OK;
    const qb_loop_seen *s = &l->seen;
    const qb_metric metrics[] = {
        {"loss", loss},
        {"loss_mean", s->loss},
        {"lr", s->lr},
        {"grad_norm", s->grad_norm},
        {"tokens", (double)l->state.windows * (double)l->config->model.context},
        {"tok_per_s", s->tok_per_s},
        {"mfu", s->mfu},
        {"memory_bytes", (double)s->memory_bytes},
        {"seconds", s->seconds},
    };
    QB_TRY(qb_metrics_log_write(l->log, "train", l->state.step, metrics, QB_COUNT(metrics)));
    l->busy_s = 0;
    l->busy_steps = 0;
    return QB_OK;
}

/* ---- evaluation ---- */

static qb_status log_evaluation(loop *l)
{
    char names[QB_EVALUATION_MAX_METRICS][32];
    qb_metric metrics[QB_EVALUATION_MAX_METRICS];
    size_t n = qb_evaluation_metrics(&l->seen.evaluation, names, metrics);
    return qb_metrics_log_write(l->log, "eval", l->state.step, metrics, n);
}

/* Each block without its attention, without its MLP, and without both. */
static qb_status evaluate_without_parts(loop *l, const qb_evaluation_plan *plan)
{
    for (size_t i = 0; i < 3 * l->config->model.n_layers; i++) {
        const qb_walk_skip skip = {i / 3, i % 3 != 1, i % 3 != 0};
        if (skip.attention && !qb_config_has_attention(&l->config->model, skip.layer)) continue;
        char names[QB_EVALUATION_MAX_METRICS][32];
        qb_bb_metrics bb;
        qb_metric metrics[QB_EVALUATION_MAX_METRICS] = {{"layer", (double)skip.layer + 1},
                                                        {"no_attention", skip.attention},
                                                        {"no_mlp", skip.mlp}};
        QB_TRY(qb_evaluate_without(plan, l->trainer, &skip, &bb));
        size_t n = 3 + qb_bb_metrics_list(&bb, names, metrics + 3);
        if (is_root(l)) QB_TRY(qb_metrics_log_write(l->log, "skip", l->state.step, metrics, n));
    }
    return QB_OK;
}

/* Of Bigram-Backcopy the last evaluation looks at all of its windows. */
static size_t observed_windows(const loop *l)
{
    const qb_train_config *c = l->config;
    size_t n = c->observe_windows ? c->observe_windows : l->options->bb ? 64 : 16;
    bool is_last = l->options->bb && l->state.step == l->n_steps;
    return !c->outliers ? 0 : is_last && c->eval_windows > n ? c->eval_windows : n;
}

static qb_status evaluate(loop *l)
{
    const qb_train_config *c = l->config;
    const qb_evaluation_plan plan = {.valid = l->options->valid,
                                     .bb = l->options->bb,
                                     .n_windows = c->eval_windows,
                                     .micro_batch = c->micro_batch,
                                     .n_observed = observed_windows(l),
                                     .n_threads = c->threads,
                                     .comm = l->options->comm};
    qb_run_state *state = &l->state;
    qb_loop_seen *s = &l->seen;
    QB_TRY(qb_evaluate(&plan, l->trainer, &s->evaluation));
    double loss = s->evaluation.loss;
    s->is_best = isfinite(loss) && !(loss >= state->best_loss); /* which may be NaN: none yet */
    state->evaluated_step = state->step;
    state->valid_loss = loss;
    if (s->is_best) {
        state->best_loss = loss;
        state->best_step = state->step;
    }
    if (is_root(l)) QB_TRY(log_evaluation(l));
    if (l->options->bb && c->outliers && state->step == l->n_steps)
        QB_TRY(evaluate_without_parts(l, &plan));
    if (!is_root(l)) return QB_OK;
    qb_progress_end(&l->progress);
    if (l->options->evaluated) l->options->evaluated(l->options->context, s);
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

static qb_status save(loop *l, unsigned what)
{
    if (is_root(l))
        QB_TRY(qb_metrics_log_sync(l->log, &l->state.metrics_bytes, &l->state.events_bytes));
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

static bool evaluation_is_due(const loop *l, uint64_t step)
{
    const qb_train_config *c = l->config;
    bool wanted = every(step, c->eval_every, l->n_steps) || (c->eval_log && is_preferred(step));
    return l->options->valid && l->state.evaluated_step != step && wanted;
}

static bool checkpoint_is_due(const loop *l, uint64_t step)
{
    return l->saved_step != step && every(step, l->config->save_every, l->n_steps);
}

/* What is due between two steps. An interrupted evaluation is made up for by the resumed run. */
static qb_status between_steps(loop *l)
{
    uint64_t step = l->state.step;
    unsigned what = 0;
    if (evaluation_is_due(l, step)) {
        QB_TRY(evaluate(l));
        if (l->seen.is_best) what |= QB_SAVE_BEST;
    }
    if (checkpoint_is_due(l, step)) what |= QB_SAVE_CHECKPOINT;
    return what ? save(l, what) : QB_OK;
}

/* ---- steps ---- */

static uint64_t queued_step(const loop *l)
{
    return l->state.step + qb_trainer_queued(l->trainer);
}

static double rate_of(const loop *l, uint64_t step)
{
    return qb_schedule_lr(&l->config->schedule, step, l->n_steps);
}

static qb_status tokens_of(loop *l, uint64_t step, const int32_t **tokens)
{
    size_t first, own;
    qb_comm_part(l->options->comm, l->config->batch, &first, &own);
    uint64_t before = l->state.windows + (step - 1 - l->state.step) * l->config->batch;
    return qb_prefetch_get(l->windows, before + first, tokens);
}

static qb_status queue_step(loop *l)
{
    const int32_t *tokens;
    uint64_t step = queued_step(l) + 1;
    QB_TRY(tokens_of(l, step, &tokens));
    return qb_trainer_queue(l->trainer, tokens, l->config->batch, rate_of(l, step), step);
}

/* The step after `state` was not finite. Where others were queued behind it, which changed nothing
 * either, it is made again for the name of the tensor. */
static qb_status fail_not_finite(loop *l, qb_step_stats *stats)
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

static qb_status collect_step(loop *l)
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
    keep_loss(state, stats.loss);
    see_step(l, &stats, rate_of(l, state->step));
    show_progress(l);
    return every(state->step, c->log_every, l->n_steps) ? log_step(l, stats.loss) : QB_OK;
}

/* Until so many are left queued. */
static qb_status collect_steps(loop *l, size_t n_left)
{
    while (qb_trainer_queued(l->trainer) > n_left) QB_TRY(collect_step(l));
    return QB_OK;
}

/* What makes a run stop between two steps; one rank's reason is all ranks'. */
enum { STOP_INTERRUPTED = 1, STOP_TIME_UP = 2 };

static bool time_is_up(const loop *l)
{
    double limit_s = 60 * l->config->minutes;
    return limit_s > 0 && qb_now_s() - l->begun_s >= limit_s;
}

static qb_status stop_early(loop *l)
{
    if (l->saved_step != l->state.step) QB_TRY(save(l, QB_SAVE_CHECKPOINT));
    return qb_saver_wait(l->saver);
}

/* What is due after the steps that are queued, with none of them left. */
static qb_status do_what_is_due(loop *l)
{
    uint64_t step = queued_step(l);
    if (!evaluation_is_due(l, step) && !checkpoint_is_due(l, step)) return QB_OK;
    QB_TRY(collect_steps(l, 0));
    qb_status status = between_steps(l);
    l->mark_s = qb_now_s(); /* no time of steps */
    return status;
}

static qb_status fail_interrupted(loop *l)
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

static qb_status run_steps(loop *l, qb_loop_end *end)
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

static qb_status prepare(loop *l)
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
    QB_TRY(qb_saver_create(is_root(l) ? o->folder : NULL, c, l->trainer, o->tokenizer, &l->saver));
    if (is_root(l))
        QB_TRY(qb_metrics_log_open(o->folder, c->tensorboard, l->state.metrics_bytes,
                                   c->tensorboard ? l->state.events_bytes : 0, &l->log));
    l->seen = (qb_loop_seen){.step = l->state.step,
                             .n_steps = l->n_steps,
                             .loss = mean_loss(&l->state, c->log_every),
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
static qb_status fail_lost(loop *l)
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

static void clean_up(loop *l)
{
    qb_saver_destroy(l->saver);
    qb_metrics_log_close(l->log);
    qb_trainer_destroy(l->trainer);
    qb_prefetch_destroy(l->windows);
}

qb_status qb_loop_run(const qb_loop_options *options, qb_train_config *config, qb_loop_result *out)
{
    loop l = {.options = options, .config = config};
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
