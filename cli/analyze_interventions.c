/* cli/analyze_interventions.c - the interventions that flags of `analyze` ask for, each with its
 * perplexity beside the untouched model's. */
#include "cli/analyze.h"

#include "core/memory.h"
#include "infer/interventions.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static const char *const flags[] = {"zero-massive", "mean-massive", "zero-first-value",
                                    "drop-first-key"};

bool qb_analyze_wants_interventions(const qb_cli *cli)
{
    for (size_t i = 0; i < QB_COUNT(flags); i++)
        if (qb_cli_flag(cli, flags[i])) return true;
    return qb_cli_list_n_items(cli, "remove") > 0;
}

/* fn for each that is asked for. */
static qb_status each(qb_analyze *a, qb_status (*fn)(qb_analyze *a, const char *what, void *to),
                      void *to)
{
    for (size_t i = 0; i < QB_COUNT(flags); i++)
        if (qb_cli_flag(a->cli, flags[i])) QB_TRY(fn(a, flags[i], to));
    for (size_t i = 0; i < qb_cli_list_n_items(a->cli, "remove"); i++)
        QB_TRY(fn(a, qb_cli_list_item(a->cli, "remove", i), to));
    return QB_OK;
}

static qb_status check_one(qb_analyze *a, const char *what, void *to)
{
    (void)to;
    return qb_intervention_check(a->model, what);
}

qb_status qb_analyze_check_interventions(qb_analyze *a)
{
    return each(a, check_one, NULL);
}

static double mean_loss(const qb_analyze *a, const double *nll_sums)
{
    double sum = 0, n = 0;
    for (size_t i = 0; i < a->n_texts; i++) {
        sum += nll_sums[i];
        n += (double)a->texts[i].run.windows.n_scored;
    }
    return sum / n;
}

static json_t *record(const qb_analyze *a, const char *what, const double *nll_sums, size_t n_edits)
{
    double before = mean_loss(a, a->nll_sums), after = mean_loss(a, nll_sums);
    json_t *object = json_object(), *texts = json_array();
    json_object_set_new(object, "name", json_string(what));
    json_object_set_new(object, "ppl_untouched", qb_json_real(exp(before)));
    json_object_set_new(object, "ppl", qb_json_real(exp(after)));
    json_object_set_new(object, "loss_increase", qb_json_real(after - before));
    json_object_set_new(object, "values_set", json_integer((json_int_t)n_edits));
    for (size_t i = 0; i < a->n_texts; i++)
        json_array_append_new(
            texts, qb_json_real(exp(nll_sums[i] / (double)a->texts[i].run.windows.n_scored)));
    json_object_set_new(object, "ppl_by_text", texts);
    return object;
}

typedef struct all {
    qb_intervention_options options;
    double *nll_sums;
    json_t *list;
} all;

static qb_status run_one(qb_analyze *a, const char *what, void *to)
{
    all *these = to;
    qb_intervention *intervention;
    char label[80];
    snprintf(label, sizeof label, "%.60s", what);
    QB_TRY(qb_intervention_create(a->model, what, &these->options, &intervention));
    qb_status status = qb_engine_observe(a->engine, qb_intervention_taps(intervention));
    if (status == QB_OK) status = qb_analyze_pass(a, label, these->nll_sums);
    if (status == QB_OK)
        json_array_append_new(
            these->list, record(a, what, these->nll_sums, qb_intervention_n_edits(intervention)));
    qb_engine_observe(a->engine, NULL);
    qb_intervention_destroy(intervention);
    return status;
}

qb_status qb_analyze_add_interventions(qb_analyze *a, json_t *root)
{
    qb_massive_place *places = NULL;
    all these = {.options = {.max_rows = a->max_rows, .pool = a->pool}, .list = json_array()};
    qb_status status;
    QB_TRY_GOTO(status, qb_analysis_massive(a->analysis, &places, &these.options.n_places), done);
    QB_TRY_GOTO(status, QB_NEW(&these.nll_sums, a->n_texts, "losses"), done);
    these.options.places = places;
    if (!places || !these.options.n_places)
        if (qb_cli_flag(a->cli, "zero-massive") || qb_cli_flag(a->cli, "mean-massive"))
            qb_cli_note(a->cli, "no massive activation was found: nothing is set");
    status = each(a, run_one, &these);
done:
    json_object_set_new(root, "interventions", these.list);
    qb_free(these.nll_sums);
    qb_free(places);
    return status;
}
