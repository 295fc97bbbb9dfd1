/* train/trainer_internal.h - what a trainer holds: trainer.c makes and steps it, trainer_observe.c
 * looks into its forward passes. */
#ifndef QB_TRAIN_TRAINER_INTERNAL_H
#define QB_TRAIN_TRAINER_INTERNAL_H

#include "train/trainer.h"
#include "train/transformer.h"

struct qb_trainer {
    qb_params params;
    qb_trainer_options options;
    const qb_train_ops *ops;
    qb_train_share share;
    qb_train_device *device;
    qb_transformer *walk;
    size_t n_windows[QB_TRAIN_TOTALS]; /* of the steps that are queued, by place */
    uint64_t n_queued, n_collected;
    bool halted; /* what is collected now came behind a step that was not finite */
};

#endif
