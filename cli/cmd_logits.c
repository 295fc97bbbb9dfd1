/* cli/cmd_logits.c - qbench logits. */
#include "cli/cli.h"

qb_status qb_cmd_logits(const qb_cli *cli)
{
    (void)cli;
    return QB_FAIL(QB_ERR_UNSUPPORTED, "logits: this build has no such command yet");
}
