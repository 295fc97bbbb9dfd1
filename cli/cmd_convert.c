/* cli/cmd_convert.c - qbench convert. */
#include "cli/cli.h"

qb_status qb_cmd_convert(const qb_cli *cli)
{
    (void)cli;
    return QB_FAIL(QB_ERR_UNSUPPORTED, "convert: this build has no such command yet");
}
