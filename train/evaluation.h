/* train/evaluation.h - one evaluation of the model in a trainer: loss on the first windows of the
 * validation text, outlier metrics of some of them, and for Bigram-Backcopy its risks. */
#ifndef QB_TRAIN_EVALUATION_H
#define QB_TRAIN_EVALUATION_H

#include "train/bb_probe.h"
#include "train/data/batches.h"
#include "train/metrics_log.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { QB_EVALUATION_MAX_METRICS = 80 };

typedef struct qb_evaluation_plan {
    const qb_batches *valid;
    const qb_bb *bb;    /* NULL = text */
    size_t n_windows;   /* for the loss; fewer where there are not so many */
    size_t micro_batch; /* windows of one pass */
    size_t n_observed;  /* of them for all but the loss; 0 = none */
    size_t n_threads;
    qb_comm *comm; /* passes are shared out over its ranks; NULL = one process */
} qb_evaluation_plan;

typedef struct qb_evaluation {
    double loss, bits_per_byte; /* NaN = not measured, as in all that follow */
    qb_outliers outliers;
    qb_bb_metrics bb; /* n_layers 0 = none */
} qb_evaluation;

/* QB_ERR_INTERRUPTED: between two passes. Every rank gets the loss, the same bits at any number of
 * ranks; rank 0 alone all else. */
qb_status qb_evaluate(const qb_evaluation_plan *plan, qb_trainer *trainer, qb_evaluation *out);
/* What the probe of Bigram-Backcopy finds where parts of a block are left out; rank 0 alone. */
qb_status qb_evaluate_without(const qb_evaluation_plan *plan, qb_trainer *trainer,
                              const qb_walk_skip *skip, qb_bb_metrics *out);
/* exp(loss); infinity where that is beyond any use. */
double qb_perplexity(double loss);
/* Every figure with its name, as metrics.jsonl has them. names is the memory of those that are
 * made. Returns their number. */
size_t qb_evaluation_metrics(const qb_evaluation *evaluation, char names[][32],
                             qb_metric metrics[QB_EVALUATION_MAX_METRICS]);
/* Those of the probe alone. */
size_t qb_bb_metrics_list(const qb_bb_metrics *bb, char names[][32], qb_metric *metrics);

#ifdef __cplusplus
}
#endif
#endif
