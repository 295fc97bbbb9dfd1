/* cli/cmd_kernels.c - qbench kernels: every row of every operation, and why it is refused here. */
#include "cli/cli.h"
#include "kernels/registry.h"

#include <stdbool.h>
#include <stdio.h>

/* Of the processor's rows the first that is not refused is the one that runs; which of the GPU's is
 * taken depends on the shape of each call too. */
static void print_table(const qb_kernel_table *table, bool by_shape)
{
    bool taken = false;
    const qb_kernel_info *row = qb_kernel_row(table, 0);
    for (size_t i = 1; row->name; row = qb_kernel_row(table, i++)) {
        const char *why = qb_kernel_refusal(row);
        const char *state = why ? why : taken || by_shape ? "usable" : "used";
        printf("  %-26s %-5s %s\n", row->name, row->device, state);
        taken |= !why;
    }
}

qb_status qb_cmd_kernels(const qb_cli *cli)
{
    QB_TRY(qb_kernel_force(qb_cli_string(cli, "kernel")));
    for (const qb_kernel_op *op = qb_kernel_ops; op->name; op++) {
        printf("%s: %s\n", op->name, op->what);
        for (size_t t = 0; t < QB_KERNEL_TABLES; t++)
            print_table(&op->tables[t], t == QB_KERNEL_CUDA);
    }
    return QB_OK;
}
