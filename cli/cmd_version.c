/* cli/cmd_version.c - qbench version: what a bug report needs. */
#include "cli/cli.h"
#include "core/cpu_features.h"

#include "version.h"

#include <stdio.h>

qb_status qb_cmd_version(const qb_cli *cli)
{
    (void)cli;
    char cpu[64], present[96], used[96];
    qb_cpu_name(cpu, sizeof cpu);
    qb_cpu_features_text(qb_cpu_features_present(), present, sizeof present);
    qb_cpu_features_text(qb_cpu_features(), used, sizeof used);
    printf("qbench %s (commit %s)\n", QB_VERSION, QB_GIT_COMMIT);
    printf("compiler   %s, %s\n", QB_COMPILER, QB_BUILD_TYPE);
    printf("processor  %s\n", cpu);
    printf("features   %s; used: %s\n", present, used);
    return QB_OK;
}
