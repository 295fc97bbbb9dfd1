/* train/loop.h - a training run: steps, evaluations, files, and when to stop.
 *
 * All that a run does is a function of its configuration, its data and the number of steps done, so
 * a run that was stopped or killed at any moment and resumed ends in the same bits as one that was
 * not. The loop prints nothing: it tells what it has seen through a callback. */
#ifndef QB_TRAIN_LOOP_H
#define QB_TRAIN_LOOP_H

#include "model/tokenizer.h"
#include "train/checkpoint.h"
#include "train/data/batches.h"
#include "train/evaluation.h"
#include "train/peak.h"

#ifdef __cplusplus
extern "C" {
#endif

/* What the lines of metrics.jsonl hold too. NaN = not measured. */
typedef struct qb_loop_seen {
    uint64_t step, n_steps;
    double loss; /* mean of the last log_every steps */
    double lr, grad_norm, tok_per_s, mfu;
    qb_evaluation evaluation; /* the last one */
    bool is_best;
    double seconds; /* of training so far */
    size_t memory_bytes;
} qb_loop_seen;

typedef struct qb_loop_options {
    const char *folder;        /* of the run; exists */
    const char *device;        /* cpu, cuda, cuda:1 */
    const qb_checkpoint *from; /* NULL = from the start */
    qb_comm *comm; /* ranks that run this together; NULL = alone. Rank 0 alone writes and tells */
    const qb_batches *train;
    const qb_batches *valid;       /* NULL = no evaluation */
    const qb_bb *bb;               /* NULL = text */
    const qb_tokenizer *tokenizer; /* goes into the models; may be NULL */
    qb_peak peak;
    void (*evaluated)(void *context, const qb_loop_seen *seen); /* after each evaluation */
    void *context;
} qb_loop_options;

typedef enum { QB_LOOP_DONE, QB_LOOP_TIME_UP } qb_loop_end;

typedef struct qb_loop_result {
    qb_loop_end end;
    qb_run_state state;
    qb_loop_seen seen; /* of the last step */
} qb_loop_result;

/* config is resolved; where micro_batch is 0 the loop chooses, and stores its choice there. All is
 * on disk when it returns. QB_ERR_INTERRUPTED: the step was finished and saved; the message says
 * how to go on. QB_ERR_DEVICE: a loss or gradient was not finite; the message has the step, the
 * tensor and the last good checkpoint, and that step changed nothing. */
qb_status qb_loop_run(const qb_loop_options *options, qb_train_config *config, qb_loop_result *out);

#ifdef __cplusplus
}
#endif
#endif
