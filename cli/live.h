/* cli/live.h - qbench train --serve: a page of the run under way, on 127.0.0.1. */
#ifndef QB_CLI_LIVE_H
#define QB_CLI_LIVE_H

#include "cli/cli.h"
#include "core/serve.h"
#include "report/html.h"

typedef struct qb_live {
    qb_server *server; /* NULL = there is no --serve */
    char *path;        /* of metrics.jsonl */
    char name[104];
    qb_live_run run;
} qb_live;

/* Takes the port where --serve is given. */
qb_status qb_live_open(const qb_cli *cli, qb_live *live);
/* Serves the run in that folder until the close; says where. */
qb_status qb_live_start(const qb_cli *cli, qb_live *live, const char *folder, const char *name,
                        uint64_t n_steps);
void qb_live_close(qb_live *live); /* accepts a zeroed one */

#endif
