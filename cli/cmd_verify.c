/* cli/cmd_verify.c - qbench verify. */
#include "cli/cli.h"

qb_status qb_cmd_verify(const qb_cli *cli)
{
    (void)cli;
    return QB_FAIL(QB_ERR_UNSUPPORTED, "verify: this build has no such command yet");
}
