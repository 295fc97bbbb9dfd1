/* cli/cmd_kernels.c - qbench kernels: every row of every operation, and why it is refused here. */
#include "cli/cli.h"
#include "kernels/registry.h"

#include <stdbool.h>
#include <stdio.h>

/* The first row that is not refused is the one that runs. */
static void print_operation(const qb_kernel_op *op)
{
    bool taken = false;
    printf("%s: %s\n", op->name, op->what);
    for (const char *row = op->rows; ((const qb_kernel_info *)row)->name; row += op->row_bytes) {
        const qb_kernel_info *info = (const qb_kernel_info *)row;
        const char *why = qb_kernel_refusal(info);
        const char *state = why ? why : taken ? "usable" : "used";
        printf("  %-26s %-5s %s\n", info->name, info->device, state);
        taken |= !why;
    }
}

qb_status qb_cmd_kernels(const qb_cli *cli)
{
    QB_TRY(qb_kernel_force(qb_cli_string(cli, "kernel")));
    for (const qb_kernel_op *op = qb_kernel_ops; op->name; op++) print_operation(op);
    return QB_OK;
}
