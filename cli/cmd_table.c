/* cli/cmd_table.c - qbench table: a table of the paper beside our recorded runs. */
#include "cli/output.h"

#include "core/file.h"
#include "report/table.h"

#include <stdlib.h>

static qb_status write_screen(const void *what, FILE *stream)
{
    return qb_table_write_screen(what, qb_cli_wants_colour(), stream);
}

static qb_status write_markdown(const void *what, FILE *stream)
{
    return qb_table_write_markdown(what, stream);
}

static qb_status write_csv(const void *what, FILE *stream)
{
    return qb_table_write_csv(what, stream);
}

static qb_status write_json(const void *what, FILE *stream)
{
    return qb_table_write_json(what, stream);
}

static const struct {
    const char *option;
    qb_cli_writer write;
} outputs[] = {{"md", write_markdown}, {"csv", write_csv}, {"json", write_json}};

static qb_status find_table(const char *word, const qb_paper_table **out)
{
    char *end;
    long number = strtol(word, &end, 10);
    *out = end == word || *end ? NULL : qb_paper_table_find((int)number);
    if (*out) return QB_OK;
    return QB_FAIL(QB_ERR_USAGE,
                   "table: no such table: found '%.40s', expected 1, 2, 3, 4, 5, 6 or 9", word);
}

/* The records of all paths; where none is given those of a checkout of this project. */
static qb_status read_records(const qb_cli *cli, qb_table_records *records)
{
    if (qb_cli_n_args(cli) == 1) {
        if (!qb_is_folder("results"))
            return QB_FAIL(QB_ERR_USAGE,
                           "table: no RESULTS: found no folder results here, expected "
                           "files or folders of recorded runs");
        QB_TRY(qb_table_records_add(records, "results"));
        return qb_is_folder("share/models") ? qb_table_records_add(records, "share/models") : QB_OK;
    }
    for (size_t i = 1; i < qb_cli_n_args(cli); i++)
        QB_TRY(qb_table_records_add(records, qb_cli_arg(cli, i)));
    return QB_OK;
}

/* The screen, unless another output goes where it would. */
static qb_status write_outputs(const qb_cli *cli, const qb_table *table)
{
    bool taken = false;
    for (size_t i = 0; i < QB_COUNT(outputs); i++) {
        const char *path = qb_cli_string(cli, outputs[i].option);
        if (!path) continue;
        taken |= qb_cli_is_stdout(path);
        QB_TRY(qb_cli_write(path, outputs[i].write, table));
    }
    return taken ? QB_OK : qb_cli_write("-", write_screen, table);
}

qb_status qb_cmd_table(const qb_cli *cli)
{
    const char *names[QB_COUNT(outputs) + 1] = {0};
    const qb_paper_table *paper;
    qb_table_records records = {0};
    qb_table table = {0};
    for (size_t i = 0; i < QB_COUNT(outputs); i++) names[i] = outputs[i].option;
    QB_TRY(find_table(qb_cli_arg(cli, 0), &paper));
    QB_TRY(qb_cli_check_outputs(cli, names));
    qb_status status = read_records(cli, &records);
    for (size_t i = 0; status == QB_OK && i < records.left_out.n; i++)
        qb_cli_note(cli, "left out: %s", records.left_out.items[i]);
    if (status == QB_OK) status = qb_table_make(paper, &records, &table);
    if (status == QB_OK) status = write_outputs(cli, &table);
    qb_table_deinit(&table);
    qb_table_records_deinit(&records);
    return status;
}
