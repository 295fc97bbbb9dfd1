/* cli/analyze_weights.c - the weights behind the activations: norms and kurtosis of each matrix,
 * and where --checkpoint holds them, the optimiser's moments of its gradient. */
#include "cli/analyze.h"

#include "core/memory.h"
#include "core/moments.h"
#include "train/checkpoint.h"
#include "train/optimizers.h"

#include <math.h>
#include <string.h>

static bool is_matrix(const qb_tensor *t)
{
    return t->data && t->rows > 1;
}

/* ---- all numbers of a tensor ---- */

typedef struct figures {
    qb_moments moments;
    double max_abs;
} figures;

static void add_row(figures *f, const float *x, size_t n)
{
    const qb_moments row = qb_moments_of(x, n);
    qb_moments_merge(&f->moments, &row);
    f->max_abs = fmax(f->max_abs, qb_max_abs(x, n));
}

static double sum_of_squares(const qb_moments *m)
{
    return m->m2 + m->n * m->mean * m->mean;
}

typedef struct tensor_job {
    const qb_tensor *const *tensors;
    figures *found;
    float *rows; /* of each thread */
    size_t row_elems;
} tensor_job;

static void tensor_task(void *context, size_t i, size_t thread_idx)
{
    const tensor_job *j = context;
    const qb_tensor *t = j->tensors[i];
    float *row = j->rows + thread_idx * j->row_elems;
    for (size_t r = 0; r < t->rows; r++) {
        qb_tensor_rows_f32(t, r, 1, row);
        add_row(&j->found[i], row, t->cols);
    }
}

/* ---- a checkpoint's states ---- */

typedef struct state {
    qb_checkpoint checkpoint;
    qb_params params;
    const qb_optimizer *optimizer;
    const float *first, *second; /* moments, or NULL */
} state;

static qb_status open_state(const qb_analyze *a, const char *path, state *s)
{
    QB_TRY(qb_checkpoint_open(path, &s->checkpoint));
    const qb_checkpoint *c = &s->checkpoint;
    QB_TRY(qb_params_create(&c->config.model, &s->params));
    size_t expected = qb_config_n_params(&a->model->config),
           found = qb_config_n_params(&c->config.model);
    if (found != expected || c->n_elems != s->params.n_elems ||
        c->config.model.n_layers != a->model->config.n_layers)
        return QB_FAIL(QB_ERR_FORMAT, "%s: found %zu parameters in %zu layers, expected %zu in %zu",
                       path, found, c->config.model.n_layers, expected, a->model->config.n_layers);
    s->optimizer = &qb_optimizers[c->config.optimizer];
    bool has_first = s->optimizer->rule != QB_RULE_RMSPROP;
    if (c->n_buffers > 1 && has_first) s->first = c->buffers[1];
    if (s->optimizer->rule != QB_RULE_SGD && c->n_buffers > 1)
        s->second = c->buffers[c->n_buffers - 1];
    return QB_OK;
}

static void add_state(const state *s, const qb_tensor *t, json_t *object)
{
    const qb_param *p = qb_params_find(&s->params, t->role, t->layer_idx);
    figures first = {0}, second = {0};
    if (!p) return;
    for (size_t row = 0; row < p->rows; row++) {
        size_t at = p->offset + row * p->cols;
        if (s->first) add_row(&first, s->first + at, p->cols);
        if (s->second) add_row(&second, s->second + at, p->cols);
    }
    json_object_set_new(object, "first_moment_rms",
                        qb_json_real(sqrt(sum_of_squares(&first.moments) / first.moments.n)));
    json_object_set_new(object, "second_moment_mean",
                        qb_json_real(s->second ? second.moments.mean : NAN));
    json_object_set_new(object, "second_moment_max",
                        qb_json_real(s->second ? second.max_abs : NAN));
    json_object_set_new(object, "second_moment_kurt",
                        qb_json_real(qb_moments_kurtosis(&second.moments)));
}

static void add_checkpoint(const state *s, const char *path, json_t *root)
{
    json_t *object = json_object();
    json_object_set_new(object, "path", json_string(path));
    json_object_set_new(object, "step", json_integer((json_int_t)s->checkpoint.state.step));
    json_object_set_new(object, "optimizer", json_string(s->optimizer->name));
    json_object_set_new(object, "rotated", json_boolean(s->optimizer->rotated));
    json_object_set_new(root, "checkpoint", object);
}

/* ---- the section ---- */

static json_t *record(const qb_tensor *t, const figures *f, const state *s)
{
    char name[64];
    double squares = sum_of_squares(&f->moments);
    json_t *object = json_object();
    qb_role_name(t->role, t->layer_idx, name, sizeof name);
    json_object_set_new(object, "name", json_string(name));
    json_object_set_new(object, "layer",
                        qb_roles[t->role].per_layer ? json_integer((json_int_t)t->layer_idx + 1)
                                                    : json_null());
    json_object_set_new(object, "norm", qb_json_real(sqrt(squares)));
    json_object_set_new(object, "rms", qb_json_real(sqrt(squares / f->moments.n)));
    json_object_set_new(object, "max_abs", qb_json_real(f->max_abs));
    json_object_set_new(object, "kurt", qb_json_real(qb_moments_kurtosis(&f->moments)));
    if (s) add_state(s, t, object);
    return object;
}

static qb_status measure(qb_analyze *a, const qb_tensor **tensors, size_t n, figures *found)
{
    tensor_job job = {.tensors = tensors, .found = found};
    for (size_t i = 0; i < n; i++)
        if (tensors[i]->cols > job.row_elems) job.row_elems = tensors[i]->cols;
    QB_TRY(QB_NEW(&job.rows, qb_pool_n_threads(a->pool) * job.row_elems, "rows of weights"));
    qb_parallel_for(a->pool, n, tensor_task, &job);
    qb_free(job.rows);
    return QB_OK;
}

static size_t list_matrices(const qb_model *model, const qb_tensor **tensors)
{
    size_t n = 0, n_layers = model->config.n_layers;
    for (int pass = 0; pass < 2; pass++) /* the embeddings and the head first */
        for (size_t layer = 0; layer < (pass ? n_layers : 1); layer++)
            for (int role = 0; role < QB_ROLE_COUNT; role++) {
                const qb_tensor *t = qb_model_tensor(model, (qb_role)role, layer);
                if (qb_roles[role].per_layer == (pass > 0) && is_matrix(t)) tensors[n++] = t;
            }
    return n;
}

qb_status qb_analyze_add_weights(qb_analyze *a, json_t *root)
{
    const char *path = qb_cli_string(a->cli, "checkpoint");
    const qb_tensor **tensors = NULL;
    figures *found = NULL;
    state s = {0};
    json_t *list = json_array();
    size_t most = QB_ROLE_COUNT * (a->model->config.n_layers + 1);
    qb_status status;
    QB_TRY_GOTO(status, QB_NEW(&tensors, most, "matrices"), done);
    QB_TRY_GOTO(status, QB_NEW_ZERO(&found, most, "matrices"), done);
    if (path) QB_TRY_GOTO(status, open_state(a, path, &s), done);
    size_t n = list_matrices(a->model, tensors);
    QB_TRY_GOTO(status, measure(a, tensors, n, found), done);
    for (size_t i = 0; i < n; i++)
        json_array_append_new(list, record(tensors[i], &found[i], path ? &s : NULL));
    if (path) add_checkpoint(&s, path, root);
done:
    json_object_set_new(root, "weights", list);
    qb_params_destroy(&s.params);
    qb_checkpoint_close(&s.checkpoint);
    qb_free(tensors);
    qb_free(found);
    return status;
}
