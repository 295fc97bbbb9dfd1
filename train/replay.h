/* train/replay.h - recorded training runs (golden data): the same start, tokens and bases, and how
 * far the losses and gradients are from the record.
 *
 * The file is a safetensors with, in the names of the paper's GPT2,
 *     init.*  grad.SOFTMAX.*  q.*  tokens (steps, windows, T + 1)  loss.SOFTMAX.OPTIMIZER (steps)
 * for * = wte, wpe, hL.norm1, hL.attn.qkv, hL.attn.out, hL.norm2, hL.mlp.fc, hL.mlp.out, norm_f; a
 * LayerNorm's bias is *_b. No other biases, tied head, learned positions, tanh GELU. All sizes come
 * from the shapes, but for the heads: the file's metadata "n_heads", else 2. */
#ifndef QB_TRAIN_REPLAY_H
#define QB_TRAIN_REPLAY_H

#include "train/trainer.h"

#include <jansson.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct qb_replay_options {
    const char *softmax;   /* as in the names of the file: softmax softmax1 */
    const char *optimizer; /* of qb_optimizers; the loss of that name need not be in the file */
    const char *norm;      /* rmsnorm_s layernorm, or qb_norm_names; NULL: as the shapes say */
    double lr;             /* constant; 0 = as the record was made: 1e-3, sgd 0.2, momentum 0.05 */
    const char *device;    /* as in qb_trainer_options */
    bool full_f32;
    bool recompute;
    size_t micro_batch; /* windows; 0 = all of a step at once */
    size_t n_threads;
} qb_replay_options;

typedef struct qb_replay_result {
    size_t n_steps;
    double *losses;            /* (n_steps) owned */
    bool has_losses;           /* the file has this optimiser's losses */
    double loss_max_rel_error; /* largest |loss / recorded - 1|; NaN where it has none */
    bool has_gradients;
    /* Over the tensors: largest |g - recorded| / max |recorded| of step 1; NaN where it has none */
    double grad_max_rel_error;
    char worst_gradient[96];
} qb_replay_result;

/* QB_ERR_FORMAT: the file is no such record; QB_ERR_USAGE: it is of another norm than asked for, or
 * there is no such softmax or optimiser. The caller deinits *out after success. */
qb_status qb_replay_run(const char *path, const qb_replay_options *options, qb_replay_result *out);
void qb_replay_result_deinit(qb_replay_result *result);
/* {"losses": [...], "grad_max_rel_error": x, ...}; what was not measured is null. */
qb_status qb_replay_to_json(const qb_replay_result *result, json_t **out);

#ifdef __cplusplus
}
#endif
#endif
