/* cli/prepare.h - what every verb that runs a model does first. */
#ifndef QB_CLI_PREPARE_H
#define QB_CLI_PREPARE_H

#include "cli/cli.h"
#include "core/threads.h"
#include "infer/engine.h"

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

#endif
