/* train/loop_internal.h - a run while it lasts: what loop.c (steps) and loop_report.c (what is said
 * of them) share. */
#ifndef QB_TRAIN_LOOP_INTERNAL_H
#define QB_TRAIN_LOOP_INTERNAL_H

#include "core/progress.h"
#include "train/data/prefetch.h"
#include "train/loop.h"
#include "train/saver.h"
#include "train/trainer.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct qb__loop {
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
} qb__loop;

static inline bool qb__loop_is_root(const qb__loop *l)
{
    return qb_comm_rank(l->options->comm) == 0;
}

/* The mean over the last log_every steps, as far as they are remembered; NaN = none is. */
double qb__loop_mean_loss(const qb_run_state *state, size_t log_every);
/* After a step, which `state` counts already: keeps its loss and shows it; log: writes a line. */
qb_status qb__loop_report(qb__loop *l, const qb_step_stats *stats, double lr, bool log);
/* Evaluates the weights as they are and says whether they are the best so far (seen.is_best). */
qb_status qb__loop_evaluate(qb__loop *l);

#ifdef __cplusplus
}
#endif
#endif
