/* cli/cmd_help.c - qbench help [COMMAND], --man, --completion. */
#include "cli/options.h"

qb_status qb_cmd_help(const qb_cli *cli)
{
    if (qb_cli_flag(cli, "man")) {
        qb_help_print_man();
    } else if (qb_cli_is_set(cli, "completion")) {
        qb_help_print_completion(qb_cli_string(cli, "completion"));
    } else {
        const qb_verb *verb = NULL;
        if (qb_cli_n_args(cli)) QB_TRY(qb_cli_find_verb(qb_cli_arg(cli, 0), &verb));
        qb_help_print(verb);
    }
    return QB_OK;
}
