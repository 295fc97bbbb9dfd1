/* cli/logits.h - parts of `qbench logits` (cli/cmd_logits.c) for other verbs and the library. */
#ifndef QB_CLI_LOGITS_H
#define QB_CLI_LOGITS_H

#include "cli/cli.h"
#include "infer/engine.h"

typedef struct qb_token_grid {
    const int32_t *ids; /* (batch, n_tokens) */
    size_t batch, n_tokens;
} qb_token_grid;
/* `tokens` (B, T) of a safetensors file, B and T at least 1, as a model of `config` can take them.
 * The caller frees *ids. */
qb_status qb_token_grid_read(const char *path, const qb_config *config, int32_t **ids,
                             qb_token_grid *out);

/* Runs the tokens as one batch, as the command line of `logits` says, and hands the engine over:
 * its logits are those of every token. */
qb_status qb_logits_run(const qb_cli *cli, const qb_model *model, const qb_token_grid *grid,
                        qb_status (*use)(qb_engine *engine, const qb_token_grid *grid, void *what),
                        void *what);

#endif
