/* cli/cmd_report.c - qbench report: result files as a page. */
#include "cli/output.h"
#include "report/html.h"

typedef struct page {
    const qb_report *report;
    const char *title;
} page;

static qb_status write_html(const void *what, FILE *stream)
{
    const page *p = what;
    return qb_report_write_html(p->report, p->title, stream);
}

static qb_status write_csv(const void *what, FILE *stream)
{
    return qb_results_write_csv(&((const page *)what)->report->results, stream);
}

static qb_status write_markdown(const void *what, FILE *stream)
{
    const page *p = what;
    return qb_report_write_markdown(p->report, p->title, stream);
}

static const struct {
    const char *option;
    qb_cli_writer write;
} outputs[] = {{"out", write_html}, {"csv", write_csv}, {"md", write_markdown}};

static qb_status write_outputs(const qb_cli *cli, const qb_report *report)
{
    const page p = {report, qb_cli_string(cli, "title")};
    for (size_t i = 0; i < QB_COUNT(outputs); i++) {
        const char *path = qb_cli_string(cli, outputs[i].option);
        if (path) QB_TRY(qb_cli_write(path, outputs[i].write, &p));
    }
    const char *folder = qb_cli_string(cli, "tables");
    return folder ? qb_report_write_tables(report, folder) : QB_OK;
}

qb_status qb_cmd_report(const qb_cli *cli)
{
    const char *names[QB_COUNT(outputs) + 1] = {0};
    bool any = qb_cli_is_set(cli, "tables");
    qb_report report = {0};
    qb_status status = QB_OK;
    for (size_t i = 0; i < QB_COUNT(outputs); i++) {
        names[i] = outputs[i].option;
        any |= qb_cli_is_set(cli, names[i]);
    }
    if (!any)
        return QB_FAIL(QB_ERR_USAGE,
                       "report: found no output, expected --out, --md, --csv or --tables");
    QB_TRY(qb_cli_check_outputs(cli, names));
    for (size_t i = 0; i < qb_cli_n_args(cli) && status == QB_OK; i++)
        status = qb_report_add(&report, qb_cli_arg(cli, i));
    if (status == QB_OK && !report.results.n && !report.n_runs && !report.n_analyses &&
        !report.n_profiles)
        status = QB_FAIL(
            QB_ERR_FORMAT,
            "%s: found no records, expected results, a training run, an analysis or a profile",
            qb_cli_arg(cli, 0));
    if (status == QB_OK) status = write_outputs(cli, &report);
    qb_report_deinit(&report);
    return status;
}
