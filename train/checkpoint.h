/* train/checkpoint.h - the files that a run is continued from.
 *
 *   64-byte header | JSON | zeros up to 64 | weights | optimiser states      (f32, n_elems each)
 *
 * Little-endian. The header has a CRC-32 of itself and of the JSON; the JSON holds the resolved
 * configuration, what the run knows beside its buffers, and a CRC-32 of each buffer, so every byte
 * of the file is covered. Random numbers and the order of the data are functions of the seed and of
 * what is counted here, so nothing else is needed to go on bit for bit. docs/training.md. */
#ifndef QB_TRAIN_CHECKPOINT_H
#define QB_TRAIN_CHECKPOINT_H

#include "core/file.h"
#include "train/config.h"

#ifdef __cplusplus
extern "C" {
#endif

enum {
    QB_CHECKPOINT_VERSION = 1,
    QB_CHECKPOINT_MAX_BUFFERS = 3, /* weights and up to two states */
    QB_LOSS_TAIL = 64,
};
#define QB_CHECKPOINT_MAGIC "QBTRAIN" /* and its NUL */

/* What a run knows beside its buffers. */
typedef struct qb_run_state {
    uint64_t step;           /* steps done */
    uint64_t windows;        /* of the training data, seen */
    uint64_t evaluated_step; /* 0 = not evaluated yet */
    double valid_loss;       /* of that step; NaN = none */
    double best_loss;        /* lowest valid_loss; NaN = none */
    uint64_t best_step;
    double losses[QB_LOSS_TAIL]; /* of the last n_losses steps, oldest first */
    size_t n_losses;
    uint64_t metrics_bytes, events_bytes; /* of metrics.jsonl and the event file, up to this step */
    double seconds;                       /* of training */
    char data_sha256[65];                 /* of all that the windows depend on */
} qb_run_state;

typedef struct qb_checkpoint {
    qb_train_config config;
    qb_run_state state;
    size_t n_buffers, n_elems;
    const float *buffers[QB_CHECKPOINT_MAX_BUFFERS]; /* borrowed from the mapping */
    qb_file file;
} qb_checkpoint;

qb_status qb_run_state_to_json(const qb_run_state *state, json_t **out);
/* Atomically: FOLDER/step-00001000.ckpt is there and whole, or not at all. */
qb_status qb_checkpoint_write(const char *folder, const qb_train_config *config,
                              const qb_run_state *state, const float *const *buffers,
                              size_t n_buffers, size_t n_elems);
/* Checks everything. QB_ERR_FORMAT names the rule. */
qb_status qb_checkpoint_open(const char *path, qb_checkpoint *out);
/* The same of a file in memory, which out->file takes over on success. */
qb_status qb_checkpoint_parse(qb_file *file, qb_checkpoint *out);
void qb_checkpoint_close(qb_checkpoint *checkpoint); /* accepts a zeroed one */
/* True of a file whose first bytes are a checkpoint's; false of a folder. */
qb_status qb_checkpoint_recognise(const char *path, bool *out);

/* Steps of the whole files step-N.ckpt in the folder, newest first; n may be 0. The caller frees
 * *steps. */
qb_status qb_checkpoint_list(const char *folder, uint64_t **steps, size_t *n);
/* FOLDER/step-00001000.ckpt; the caller frees it. */
qb_status qb_checkpoint_path(const char *folder, uint64_t step, char **out);
/* The newest that can be read; broken ones before it are counted. QB_ERR_IO: none. */
qb_status qb_checkpoint_open_newest(const char *folder, qb_checkpoint *out, size_t *n_broken);
/* Removes all but the newest `keep`. */
qb_status qb_checkpoint_prune(const char *folder, size_t keep);

#ifdef __cplusplus
}
#endif
#endif
