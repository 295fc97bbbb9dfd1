/* train/run_folder.h - the folder that a run lives in:
 *
 *   config.json            the resolved configuration, as --config takes it
 *   step-N.ckpt            checkpoints (train/checkpoint.h)
 *   model.bin best.bin     the model at the last checkpoint, and that of the lowest validation loss
 *   metrics.jsonl          what was measured (train/metrics_log.h) */
#ifndef QB_TRAIN_RUN_FOLDER_H
#define QB_TRAIN_RUN_FOLDER_H

#include "train/checkpoint.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct qb_run_folder {
    char *path; /* owned */
    int fd;     /* holds the lock; -1 = closed */
} qb_run_folder;

/* Makes the folder where it is absent and locks it: two processes never write into one. Temporary
 * files of a process that was killed are removed. QB_ERR_USAGE: new_run, and a run is there
 * already. QB_ERR_IO: no such folder to resume, or another process writes there. */
qb_status qb_run_folder_open(const char *path, bool new_run, qb_run_folder *out);
void qb_run_folder_close(qb_run_folder *folder); /* accepts a zeroed one with fd -1 */

/* The folder of a run that another rank holds the lock of: nothing is made, changed or checked. */
qb_status qb_run_folder_join(const char *path, qb_run_folder *out);
qb_status qb_run_folder_write_config(const qb_run_folder *folder, const qb_train_config *config);
/* The configuration and the newest whole checkpoint to go on from; before the first one was
 * written, out->file.path is NULL and the run starts anew. */
qb_status qb_run_folder_resume(const qb_run_folder *folder, qb_train_config *config,
                               qb_checkpoint *out, size_t *n_broken);

#ifdef __cplusplus
}
#endif
#endif
