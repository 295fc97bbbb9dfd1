/* cli/gate_run.h - a model measured as its baseline was, for qbench gate. */
#ifndef QB_CLI_GATE_RUN_H
#define QB_CLI_GATE_RUN_H

#include "cli/cli.h"
#include "report/result.h"

/* Runs the command's models with the schemes, protocol, batch and tokens of the baseline, through
 * `qbench run`'s own code. The text is --text or the built-in one and must be the baseline's
 * (QB_ERR_FORMAT, before anything is run). The caller deinits *out after success. */
qb_status qb_gate_run(const qb_cli *cli, const qb_results *baseline, bool wants_speed,
                      qb_results *out);

#endif
