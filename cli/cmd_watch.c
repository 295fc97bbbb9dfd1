/* cli/cmd_watch.c - qbench watch: results over time. */
#include "cli/output.h"
#include "report/history.h"
#include "report/read_json.h"

enum { RECENT = 10 };

static qb_status write_screen(const void *what, FILE *stream)
{
    return qb_watch_write_screen(what, qb_cli_wants_colour(), stream);
}

static qb_status add_result(const qb_cli *cli, const char *path, const char *history_path)
{
    qb_results history = {0}, results;
    size_t n_added = 0;
    QB_TRY(qb_results_read_json(path, &results));
    qb_status status = qb_history_read(history_path, &history);
    if (status == QB_OK) status = qb_history_append(history_path, &history, &results, &n_added);
    if (status == QB_OK)
        qb_cli_note(cli, "%s: %zu of %zu records are new", path, n_added, results.n);
    qb_results_deinit(&history);
    qb_results_deinit(&results);
    return status;
}

static qb_status verdict(const qb_watch *watch, const char *path)
{
    size_t n = 0;
    for (size_t i = 0; i < watch->n; i++) n += qb_series_is_worse(&watch->items[i], RECENT);
    if (!n) return QB_OK;
    return QB_FAIL(QB_ERR_GATE, "%s: found %zu figures that became worse, expected none", path, n);
}

qb_status qb_cmd_watch(const qb_cli *cli)
{
    const char *path = qb_cli_arg(cli, 0);
    qb_results history = {0};
    qb_watch watch = {0};
    qb_status status;
    for (size_t i = 1; i < qb_cli_n_args(cli); i++)
        QB_TRY(add_result(cli, qb_cli_arg(cli, i), path));
    QB_TRY(qb_history_read(path, &history));
    if (!history.n) {
        qb_results_deinit(&history);
        return QB_FAIL(QB_ERR_IO, "%s: found no records, expected some, or results to add", path);
    }
    QB_TRY_GOTO(status, qb_watch_make(&history, 0.01, qb_cli_size(cli, "seed"), &watch), done);
    QB_TRY_GOTO(status, qb_cli_write("-", write_screen, &watch), done);
    if (qb_cli_flag(cli, "fail-on-change")) status = verdict(&watch, path);
done:
    qb_watch_deinit(&watch);
    qb_results_deinit(&history);
    return status;
}
