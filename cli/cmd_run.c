/* cli/cmd_run.c - qbench run. */
#include "cli/cli.h"

qb_status qb_cmd_run(const qb_cli *cli)
{
    (void)cli;
    return QB_FAIL(QB_ERR_UNSUPPORTED, "run: this build has no such command yet");
}
