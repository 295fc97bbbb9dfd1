/* train/loop_report.c - what a run says of itself: progress, the log of its steps, evaluations. */
#include "train/loop_internal.h"

#include "core/clock.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* ---- steps ---- */

static void keep_loss(qb_run_state *s, double loss)
{
    if (s->n_losses == QB_LOSS_TAIL)
        memmove(s->losses, s->losses + 1, --s->n_losses * sizeof *s->losses);
    s->losses[s->n_losses++] = loss;
}

double qb__loop_mean_loss(const qb_run_state *s, size_t log_every)
{
    size_t n = log_every < s->n_losses ? log_every : s->n_losses;
    double sum = 0;
    for (size_t i = s->n_losses - n; i < s->n_losses; i++) sum += s->losses[i];
    return n ? sum / (double)n : NAN;
}

static void show_progress(qb__loop *l)
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

static void see_step(qb__loop *l, const qb_step_stats *stats, double lr)
{
    double tokens = (double)l->config->batch * (double)l->config->model.context;
    double rate = (double)l->busy_steps / l->busy_s;
    double peak = l->options->peak.tflops * 1e12 * (double)qb_comm_size(l->options->comm);
    qb_loop_seen *s = &l->seen;
    s->step = l->state.step;
    s->loss = qb__loop_mean_loss(&l->state, l->config->log_every);
    s->lr = lr;
    s->grad_norm = stats->grad_norm;
    s->tok_per_s = tokens * rate;
    s->mfu = peak > 0 ? qb_trainer_flops(l->trainer, l->config->batch) * rate / peak : NAN;
    s->seconds = l->state.seconds = l->earlier_s + qb_now_s() - l->begun_s;
}

static qb_status log_step(qb__loop *l, double loss)
{
    if (!qb__loop_is_root(l)) return QB_OK;
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

qb_status qb__loop_report(qb__loop *l, const qb_step_stats *stats, double lr, bool log)
{
    keep_loss(&l->state, stats->loss);
    see_step(l, stats, lr);
    show_progress(l);
    return log ? log_step(l, stats->loss) : QB_OK;
}

/* ---- evaluation ---- */

static qb_status log_evaluation(qb__loop *l)
{
    char names[QB_EVALUATION_MAX_METRICS][32];
    qb_metric metrics[QB_EVALUATION_MAX_METRICS];
    size_t n = qb_evaluation_metrics(&l->seen.evaluation, names, metrics);
    return qb_metrics_log_write(l->log, "eval", l->state.step, metrics, n);
}

/* Each block without its attention, without its MLP, and without both. */
static qb_status evaluate_without_parts(qb__loop *l, const qb_evaluation_plan *plan)
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
        if (qb__loop_is_root(l))
            QB_TRY(qb_metrics_log_write(l->log, "skip", l->state.step, metrics, n));
    }
    return QB_OK;
}

/* Of Bigram-Backcopy the last evaluation looks at all of its windows. */
static size_t observed_windows(const qb__loop *l)
{
    const qb_train_config *c = l->config;
    size_t n = c->observe_windows ? c->observe_windows : l->options->bb ? 64 : 16;
    bool is_last = l->options->bb && l->state.step == l->n_steps;
    return !c->outliers ? 0 : is_last && c->eval_windows > n ? c->eval_windows : n;
}

qb_status qb__loop_evaluate(qb__loop *l)
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
    QB_TRY(qb_trainer_fetch_weights(l->trainer));
    QB_TRY(qb_evaluate(&plan, l->trainer, &s->evaluation));
    double loss = s->evaluation.loss;
    s->is_best = isfinite(loss) && !(loss >= state->best_loss); /* which may be NaN: none yet */
    state->evaluated_step = state->step;
    state->valid_loss = loss;
    if (s->is_best) {
        state->best_loss = loss;
        state->best_step = state->step;
    }
    if (qb__loop_is_root(l)) QB_TRY(log_evaluation(l));
    if (l->options->bb && c->outliers && state->step == l->n_steps)
        QB_TRY(evaluate_without_parts(l, &plan));
    if (!qb__loop_is_root(l)) return QB_OK;
    qb_progress_end(&l->progress);
    if (l->options->evaluated) l->options->evaluated(l->options->context, s);
    return QB_OK;
}
