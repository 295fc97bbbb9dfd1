/* cli/cmd_tokenize.c - qbench tokenize. */
#include "cli/cli.h"

qb_status qb_cmd_tokenize(const qb_cli *cli)
{
    (void)cli;
    return QB_FAIL(QB_ERR_UNSUPPORTED, "tokenize: this build has no such command yet");
}
