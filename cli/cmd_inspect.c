/* cli/cmd_inspect.c - qbench inspect. */
#include "cli/cli.h"

qb_status qb_cmd_inspect(const qb_cli *cli)
{
    (void)cli;
    return QB_FAIL(QB_ERR_UNSUPPORTED, "inspect: this build has no such command yet");
}
