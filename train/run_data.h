/* train/run_data.h - what a run learns from and is judged on, opened as its configuration says. */
#ifndef QB_TRAIN_RUN_DATA_H
#define QB_TRAIN_RUN_DATA_H

#include "model/tokenizer.h"
#include "train/config.h"
#include "train/data/batches.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct qb_run_data {
    qb_batches *train, *valid; /* valid NULL: the folder has no validation shards */
    qb_tokenizer *tokenizer;   /* NULL: the folder has none */
    qb_bb bb;
    size_t vocab;
} qb_run_data;

/* task text: config->data is a folder; its shards (.qbs) whose names start with "valid" are judged
 * on (or all of the folder config->valid), all others are learnt from, and tokenizer.json must be
 * the one that they were made with. task bb: fresh sequences, those for validation with another
 * seed. task random: tokens below the model's vocabulary, none to judge on. Uses of the
 * configuration only what belongs to the data, context and seed: it need not be resolved.
 * QB_ERR_USAGE: data not set. QB_ERR_IO, QB_ERR_FORMAT: the folder or a file in it. */
qb_status qb_run_data_open(const qb_train_config *config, qb_run_data *out);
void qb_run_data_close(qb_run_data *data); /* accepts a zeroed one */

#ifdef __cplusplus
}
#endif
#endif
