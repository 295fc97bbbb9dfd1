/* cli/cmd_compare.c - qbench compare: two result files, figure by figure. */
#include "cli/cmd_compare.h"

#include "cli/output.h"
#include "report/gate.h"
#include "report/read_json.h"

#include <math.h>

static qb_status margin(const qb_cli *cli, const char *option, const char *what, double *out)
{
    qb_amount amount;
    QB_TRY(qb_amount_parse(qb_cli_string(cli, option), what, &amount));
    if (!amount.percent)
        return QB_FAIL(QB_ERR_USAGE, "%s: found '%s', expected a percentage, as 0.1%%", what,
                       qb_cli_string(cli, option));
    *out = amount.value;
    return QB_OK;
}

qb_status qb_cli_compare_options(const qb_cli *cli, qb_compare_options *out)
{
    *out = (qb_compare_options){.across = qb_cli_flag(cli, "across"),
                                .seed = qb_cli_size(cli, "seed"),
                                .tokens = &qb_cli_nll_files};
    QB_TRY(margin(cli, "margin-ppl", "--margin-ppl", &out->margin_ppl));
    return margin(cli, "margin-speed", "--margin-speed", &out->margin_speed);
}

typedef struct json_output {
    qb_cli_to_json to_json;
    const void *what;
} json_output;

static qb_status write_json_output(const void *what, FILE *stream)
{
    const json_output *o = what;
    json_t *root;
    QB_TRY(o->to_json(o->what, &root));
    qb_status status = qb_json_write_lines(root, "comparison", stream);
    json_decref(root);
    return status;
}

qb_status qb_cli_write_json(const char *path, qb_cli_to_json to_json, const void *what)
{
    const json_output o = {to_json, what};
    return qb_cli_write(path, write_json_output, &o);
}

static qb_status write_screen(const void *what, FILE *stream)
{
    return qb_comparison_write_screen(what, qb_cli_wants_colour(), stream);
}

static qb_status write_markdown(const void *what, FILE *stream)
{
    return qb_comparison_write_markdown(what, stream);
}

static qb_status to_json(const void *what, json_t **out)
{
    return qb_comparison_to_json(what, out);
}

static qb_status write_outputs(const qb_cli *cli, const qb_comparison *comparison)
{
    const char *json = qb_cli_string(cli, "json"), *md = qb_cli_string(cli, "md");
    if (json) QB_TRY(qb_cli_write_json(json, to_json, comparison));
    if (md) QB_TRY(qb_cli_write(md, write_markdown, comparison));
    if (qb_cli_is_stdout(json) || qb_cli_is_stdout(md)) return QB_OK;
    return qb_cli_write("-", write_screen, comparison);
}

qb_status qb_cmd_compare(const qb_cli *cli)
{
    static const char *const outputs[] = {"json", "md", NULL};
    qb_compare_options options;
    qb_results a = {0}, b = {0};
    qb_comparison comparison = {0};
    qb_status status;
    QB_TRY(qb_cli_compare_options(cli, &options));
    QB_TRY(qb_cli_check_outputs(cli, outputs));
    QB_TRY_GOTO(status, qb_results_read_json(qb_cli_arg(cli, 0), &a), done);
    QB_TRY_GOTO(status, qb_results_read_json(qb_cli_arg(cli, 1), &b), done);
    const qb_compare_side side_a = {&a, qb_cli_arg(cli, 0)}, side_b = {&b, qb_cli_arg(cli, 1)};
    QB_TRY_GOTO(status, qb_compare(&side_a, &side_b, &options, &comparison), done);
    status = write_outputs(cli, &comparison);
done:
    qb_comparison_deinit(&comparison);
    qb_results_deinit(&a);
    qb_results_deinit(&b);
    return status;
}
