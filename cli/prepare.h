/* cli/prepare.h - what several verbs do first. */
#ifndef QB_CLI_PREPARE_H
#define QB_CLI_PREPARE_H

#include "cli/cli.h"
#include "core/threads.h"
#include "infer/engine.h"
#include "model/tokenizer.h"

/* Applies --kernel, finds --device (cuda that is not there: QB_ERR_DEVICE; auto: the CPU where no
 * GPU can be used, with a note) and makes the pool of --threads. */
qb_status qb_cli_prepare(const qb_cli *cli, qb_device *device, qb_pool **pool);
/* The row of that name (NULL: what the model's file is stored in, else full) with --weight-axis,
 * --act-axis and --act-scale applied. QB_ERR_USAGE: no such scheme; the message lists them. */
qb_status qb_cli_scheme(const qb_cli *cli, const char *name, const qb_model *model, qb_scheme *out);
/* Calibration where the scheme needs it (the model's own, else made from the built-in text, and
 * said so), else NULL. */
qb_status qb_cli_calibration(const qb_cli *cli, const qb_scheme *scheme, const qb_model *model,
                             qb_pool *pool, qb_calibration **out);

/* The tokenizer of a tokenizer.json (alone or in a folder) or inside a model. */
typedef struct qb_cli_tokenizer {
    qb_tokenizer *own; /* NULL where it belongs to the model */
    qb_model *model;
    const qb_tokenizer *tokenizer;
} qb_cli_tokenizer;
qb_status qb_cli_tokenizer_open(const char *path, qb_cli_tokenizer *out);
void qb_cli_tokenizer_close(qb_cli_tokenizer *t); /* accepts a zeroed one */

/* True where the file's first character is an opening brace. */
qb_status qb_cli_is_json_file(const char *path, bool *is_json);

/* The value as the file PATH, or on standard output ("-"); `what` names it in messages. */
qb_status qb_cli_emit_json(const char *path, const json_t *root, const char *what);

#endif
