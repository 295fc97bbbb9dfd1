/* train/saver.h - writes a run's files while training goes on.
 *
 * start copies what is to be written out of the trainer and returns; a thread writes
 *     best.bin        where this is the best model so far
 *     model.bin, step-N.ckpt
 * in this order, each atomically, and removes old checkpoints. Weights that hold a NaN or infinity
 * are not written. So where a checkpoint stands, the models that it speaks of stand too, whenever
 * the process is killed. One is in flight at most. */
#ifndef QB_TRAIN_SAVER_H
#define QB_TRAIN_SAVER_H

#include "model/tokenizer.h"
#include "train/checkpoint.h"
#include "train/trainer.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { QB_SAVE_BEST = 1, QB_SAVE_CHECKPOINT = 2 };

typedef struct qb_saver qb_saver;

/* All borrowed for the saver's life. tokenizer may be NULL. The configuration is copied. Several
 * ranks save together: folder NULL in all but rank 0, which hand over what they hold. */
qb_status qb_saver_create(const char *folder, const qb_train_config *config, qb_trainer *trainer,
                          const qb_tokenizer *tokenizer, qb_saver **out);
/* what: QB_SAVE_ bits. Waits for the one before first, and returns its error. */
qb_status qb_saver_start(qb_saver *saver, unsigned what, const qb_run_state *state);
/* Waits until all is written. */
qb_status qb_saver_wait(qb_saver *saver);
void qb_saver_destroy(qb_saver *saver); /* waits; accepts NULL */

/* The newest checkpoint of the folder, or "none yet"; the caller frees it. */
qb_status qb_saver_last_good(const char *folder, char **path);
/* QB_ERR_DEVICE: a NaN or infinity in `what` at that step; names the last checkpoint on disk. */
qb_status qb_fail_not_finite(const char *folder, uint64_t step, const char *what);

#ifdef __cplusplus
}
#endif
#endif
