/* cli/analyze_basis.c - --rotate-output-basis: the bases come from the model's training record. */
#include "cli/analyze.h"

#include "core/memory.h"
#include "infer/output_basis.h"
#include "train/config.h"
#include "train/optimizers.h"
#include "train/params.h"

typedef struct recipe {
    qb_params params;
    qb_rotation rotation;
} recipe;

bool qb_analyze_wants_basis(const qb_cli *cli)
{
    return qb_cli_flag(cli, "rotate-output-basis");
}

static qb_status read_recipe(const qb_model *model, qb_rotation *out)
{
    const json_t *config = json_object_get(model->training, "config");
    qb_train_config c;
    if (!json_is_object(config))
        return QB_FAIL(QB_ERR_FORMAT,
                       "%s: --rotate-output-basis: found no training record with its "
                       "configuration, expected a model of qbench train",
                       model->path);
    qb_train_config_init(&c);
    QB_TRY(qb_train_config_merge(&c, config));
    if (!qb_optimizers[c.optimizer].rotated)
        return QB_FAIL(
            QB_ERR_FORMAT,
            "%s: --rotate-output-basis: found optimizer %s, expected a rotated one (orthoadam)",
            model->path, qb_optimizers[c.optimizer].name);
    *out = (qb_rotation){.kind = (qb_rotation_kind)c.rotation,
                         .block_elems = c.rotation_block,
                         .both_axes = c.rotate_both,
                         .seed = c.seed};
    return QB_OK;
}

/* Before the long work. */
qb_status qb_analyze_check_basis(const qb_analyze *a)
{
    qb_rotation ignored;
    return qb_analyze_wants_basis(a->cli) ? read_recipe(a->model, &ignored) : QB_OK;
}

/* The residual stream is the rows of both products. */
static qb_status fill(void *context, qb_role role, size_t layer, float *q, bool *found)
{
    const recipe *r = context;
    const qb_param *p = qb_params_find(&r->params, role, layer);
    size_t n = p ? qb_rotation_axis_elems(&r->rotation, p, 0) : 0;
    *found = n == r->params.config.d_model;
    return *found ? qb_rotation_fill(&r->rotation, p, 0, n, q) : QB_OK;
}

qb_status qb_analyze_add_basis(qb_analyze *a, json_t *root)
{
    recipe r = {0};
    qb_output_basis *basis = NULL;
    json_t *list = NULL;
    qb_status status;
    QB_TRY_GOTO(status, read_recipe(a->model, &r.rotation), done);
    QB_TRY_GOTO(status, qb_params_create(&a->model->config, &r.params), done);
    QB_TRY_GOTO(status,
                qb_output_basis_create(&a->model->config, a->max_rows, a->pool, fill, &r, &basis),
                done);
    QB_TRY_GOTO(status, qb_engine_observe(a->engine, qb_output_basis_taps(basis)), done);
    QB_TRY_GOTO(status, qb_analyze_pass(a, "output basis", NULL), done);
    QB_TRY_GOTO(status, qb_output_basis_to_json(basis, &list), done);
    json_object_set_new(root, "output_basis", list);
done:
    qb_engine_observe(a->engine, NULL);
    qb_output_basis_destroy(basis);
    qb_params_destroy(&r.params);
    return status;
}
