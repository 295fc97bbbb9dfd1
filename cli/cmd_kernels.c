/* cli/cmd_kernels.c - qbench kernels. */
#include "cli/cli.h"

qb_status qb_cmd_kernels(const qb_cli *cli)
{
    (void)cli;
    return QB_FAIL(QB_ERR_UNSUPPORTED, "kernels: this build has no such command yet");
}
