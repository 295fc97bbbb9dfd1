/* cli/cmd_generate.c - qbench generate. */
#include "cli/cli.h"

qb_status qb_cmd_generate(const qb_cli *cli)
{
    (void)cli;
    return QB_FAIL(QB_ERR_UNSUPPORTED, "generate: this build has no such command yet");
}
