/* cli/cmd_train.c - qbench train. */
#include "cli/cli.h"
#include "core/json.h"
#include "core/memory.h"
#include "train/replay.h"

#include <string.h>

static qb_status emit_replay(const qb_cli *cli, const qb_replay_result *result)
{
    json_t *o;
    char *text = NULL;
    QB_TRY(qb_replay_to_json(result, &o));
    qb_status status = qb_json_dump(o, JSON_REAL_PRECISION(17), "replay", &text);
    json_decref(o);
    if (status == QB_OK) status = qb_cli_emit(qb_cli_string(cli, "out"), text, strlen(text));
    qb_library_free(text);
    return status;
}

static qb_status replay(const qb_cli *cli)
{
    const qb_replay_options options = {.softmax = qb_cli_string(cli, "softmax"),
                                       .optimizer = qb_cli_string(cli, "optimizer"),
                                       .norm = qb_cli_string(cli, "norm"),
                                       .lr = qb_cli_double(cli, "lr"),
                                       .device = qb_cli_string(cli, "device"),
                                       .n_threads = qb_cli_size(cli, "threads")};
    qb_replay_result result;
    QB_TRY(qb_replay_run(qb_cli_string(cli, "replay"), &options, &result));
    qb_status status = emit_replay(cli, &result);
    qb_replay_result_deinit(&result);
    return status;
}

qb_status qb_cmd_train(const qb_cli *cli)
{
    if (!qb_cli_is_set(cli, "replay"))
        return QB_FAIL(QB_ERR_USAGE, "train: --replay FILE is needed");
    return replay(cli);
}
