/* cli/cmd_compare.h - what compare and gate share. */
#ifndef QB_CLI_CMD_COMPARE_H
#define QB_CLI_CMD_COMPARE_H

#include "cli/cli.h"
#include "report/compare.h"

/* --across, --margin-ppl, --margin-speed, --seed. */
qb_status qb_cli_compare_options(const qb_cli *cli, qb_compare_options *out);
/* The files of `run --nll` that two records name, where both are there as they were written
 * (cli/nll_files.c). A file is looked for under the name in the record, and beside the result. */
extern const qb_token_source qb_cli_nll_files;
/* A function that makes JSON of `what`, and its text. */
typedef qb_status (*qb_cli_to_json)(const void *what, json_t **out);
qb_status qb_cli_write_json(const char *path, qb_cli_to_json to_json, const void *what);

#endif
