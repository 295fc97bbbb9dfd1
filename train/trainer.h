/* train/trainer.h - parameters, gradients, moments and one training step on one device.
 *
 * The trainer knows nothing of files, schedules or data: the loop (train/loop.h) hands it tokens
 * and a learning rate. The model's walk forward and backward is written once (train/transformer.c)
 * over the operations of a device (train/ops.h): the table has a row for the CPU (f32) and one for
 * CUDA (bf16 with f32 master weights, or f32). */
#ifndef QB_TRAIN_TRAINER_H
#define QB_TRAIN_TRAINER_H

#include "core/threads.h"
#include "train/comm.h"
#include "train/optimizers.h"
#include "train/params.h"
#include "train/rotation.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct qb_trainer qb_trainer;

typedef struct qb_trainer_options {
    const char *device; /* "cpu", "cuda", "cuda:1" */
    size_t micro_batch; /* windows of one pass forward and backward */
    size_t context;     /* targets a window; at most the model's context */
    const qb_optimizer *optimizer;
    qb_optimizer_settings settings;
    qb_rotation rotation; /* of a rotated optimiser */
    double clip;          /* largest global norm of the gradient; 0 = none */
    bool full_f32;        /* CUDA: everything in f32 */
    bool recompute;       /* activations of a block are worked out again in the backward pass */
    bool deterministic;   /* fixed order of every sum: same bits in every run */
    bool no_graphs;       /* CUDA: kernels are launched one by one every time */
    size_t n_threads;     /* CPU; 0 = as many as this process may use */
    qb_comm *comm;        /* ranks that train together, borrowed; NULL = alone */
} qb_trainer_options;

typedef struct qb_step_stats {
    double loss;      /* mean nats a scored target */
    double grad_norm; /* before clipping */
    bool finite;      /* false: nothing was updated; `culprit` names the first bad tensor */
    char culprit[64];
} qb_step_stats;

/* Whether this build has a row for the device at all. */
bool qb_trainer_has_device(const char *device);
/* QB_ERR_UNSUPPORTED: the device cannot train this configuration (the message says why).
 * QB_ERR_MEMORY: needed and free bytes. */
qb_status qb_trainer_create(const qb_config *config, const qb_trainer_options *options,
                            qb_trainer **out);
void qb_trainer_destroy(qb_trainer *trainer); /* accepts NULL */
const qb_params *qb_trainer_params(const qb_trainer *trainer);

/* Buffers of params->n_elems floats, host memory. state_idx 0 <= i < optimizer->n_states. All ranks
 * set the same; get_state is a call of all ranks, and rank 0 alone gets something (elsewhere state
 * may be NULL). */
qb_status qb_trainer_set_weights(qb_trainer *trainer, const float *weights);
/* All ranks', after a call of all ranks of fetch_weights since the last step. */
qb_status qb_trainer_fetch_weights(qb_trainer *trainer);
qb_status qb_trainer_get_weights(qb_trainer *trainer, float *weights);
qb_status qb_trainer_set_state(qb_trainer *trainer, size_t state_idx, const float *state);
qb_status qb_trainer_get_state(qb_trainer *trainer, size_t state_idx, float *state);
/* Gradients of the last step, before clipping; of several ranks the own elements. For tests. */
qb_status qb_trainer_get_gradients(qb_trainer *trainer, float *gradients);
/* Replaces the basis of one parameter's axis (n, n); for recorded runs (golden data). */
qb_status qb_trainer_set_rotation(qb_trainer *trainer, const qb_param *param, size_t axis,
                                  const float *q);

/* One optimiser step over n_windows windows of context + 1 tokens, of which `tokens` are this
 * rank's (qb_comm_part); alone, a multiple of micro_batch. Gradients are the mean over all scored
 * targets. step is 1-based. */
qb_status qb_trainer_step(qb_trainer *trainer, const int32_t *tokens, size_t n_windows, double lr,
                          uint64_t step, qb_step_stats *stats);
/* The same in two halves: the step is queued, and its figures are collected later, in order; the
 * tokens are the caller's again at once. Before all is collected there is no qb_trainer_step.
 * Behind a step that is not finite no step that is queued already changes anything, and their
 * figures are not finite either: the first of them is the one. It has a culprit where no other
 * was queued behind it; else, all being collected, the same step again finds it. */
qb_status qb_trainer_queue(qb_trainer *trainer, const int32_t *tokens, size_t n_windows, double lr,
                           uint64_t step);
qb_status qb_trainer_collect(qb_trainer *trainer, qb_step_stats *stats);
size_t qb_trainer_queued(const qb_trainer *trainer); /* and not collected */
/* How many to leave queued so that the device never waits; 3 at most may be, with the one on top.
 * A processor makes a step when it is queued. */
size_t qb_trainer_steps_ahead(const qb_trainer *trainer);
/* Mean loss over windows (any number; the last pass may be partly filled), without gradients. */
qb_status qb_trainer_evaluate(qb_trainer *trainer, const int32_t *tokens, size_t n_windows,
                              double *loss);
/* A block's parts that a pass leaves out: they add nothing to the stream. */
typedef struct qb_walk_skip {
    size_t layer;
    bool attention, mlp;
} qb_walk_skip;
/* Host copies of what passes forward over the windows (any number) compute, as they go. */
typedef struct qb_observed {
    size_t layer;        /* of attention and stream */
    size_t first, batch; /* windows of this pass, of those given */
    const float *values; /* (batch, context, width); good during the call */
    size_t width;
} qb_observed;
typedef struct qb_observer {
    qb_status (*attention)(void *context, const qb_observed *qkv); /* as it enters the scores */
    qb_status (*stream)(void *context, const qb_observed *x);      /* after each block */
    qb_status (*head_input)(void *context, const qb_observed *h);  /* after the last norm */
    void *context;
    qb_walk_skip skip; /* zeros: nothing */
} qb_observer;
qb_status qb_trainer_observe(qb_trainer *trainer, const int32_t *tokens, size_t n_windows,
                             const qb_observer *observer);
/* Floating-point operations of a step over that many windows, as MFU counts them: 6 per parameter
 * of a product and token, and attention's causal half. */
double qb_trainer_flops(const qb_trainer *trainer, size_t n_windows);
size_t qb_trainer_memory_bytes(const qb_trainer *trainer);

#ifdef __cplusplus
}
#endif
#endif
