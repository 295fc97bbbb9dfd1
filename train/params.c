/* train/params.c - see params.h. */
#include "train/params.h"

#include "core/memory.h"
#include "core/rng.h"
#include "train/torch_random.h"

#include <math.h>
#include <string.h>

/* The order of the buffer; `joins`: back to back with the one before. */
typedef struct slot {
    qb_role role;
    bool joins;
} slot;
static const slot first_slots[] = {{QB_ROLE_TOK_EMBD, false}, {QB_ROLE_POS_EMBD, false}};
static const slot layer_slots[] = {
    {QB_ROLE_NORM1, false},
    {QB_ROLE_NORM1_B, false},
    {QB_ROLE_QKV, false},
    {QB_ROLE_QKV_B, false},
    {QB_ROLE_Q, false},
    {QB_ROLE_K, true},
    {QB_ROLE_V, true},
    {QB_ROLE_Q_B, false},
    {QB_ROLE_K_B, true},
    {QB_ROLE_V_B, true},
    {QB_ROLE_SINK, false},
    {QB_ROLE_ATTN_GATE, false},
    {QB_ROLE_ATTN_GATE_B, false},
    {QB_ROLE_O, false},
    {QB_ROLE_O_B, false},
    {QB_ROLE_NORM2, false},
    {QB_ROLE_NORM2_B, false},
    {QB_ROLE_GATE, false},
    {QB_ROLE_UP, true},
    {QB_ROLE_GATE_B, false},
    {QB_ROLE_UP_B, true},
    {QB_ROLE_DOWN, false},
    {QB_ROLE_DOWN_B, false},
};
static const slot last_slots[] = {
    {QB_ROLE_NORM_F, false}, {QB_ROLE_NORM_F_B, false}, {QB_ROLE_HEAD, false}};

/* Without a list it only counts. */
static void lay_out(qb_params *p, const slot *slots, size_t n_slots, size_t layer_idx)
{
    for (size_t i = 0; i < n_slots; i++) {
        qb_param q = {.role = slots[i].role, .layer_idx = layer_idx};
        if (!qb_config_has(&p->config, q.role, layer_idx)) continue;
        qb_config_shape(&p->config, q.role, &q.rows, &q.cols);
        /* of a joined group the first may be absent (up without gate) */
        bool joins =
            slots[i].joins && p->n && p->list && p->list[p->n - 1].role == slots[i - 1].role;
        q.offset = joins ? p->n_elems : qb_round_up(p->n_elems, QB_PARAM_ALIGN);
        q.residual = qb_roles[q.role].residual;
        q.is_matrix = q.residual != QB_RESIDUAL_NONE;
        p->n_elems = q.offset + q.rows * q.cols;
        if (p->list) p->list[p->n] = q;
        p->n++;
    }
}

static void lay_out_all(qb_params *p)
{
    p->n = p->n_elems = 0;
    lay_out(p, first_slots, QB_COUNT(first_slots), 0);
    for (size_t l = 0; l < p->config.n_layers; l++)
        lay_out(p, layer_slots, QB_COUNT(layer_slots), l);
    lay_out(p, last_slots, QB_COUNT(last_slots), 0);
    p->n_elems = qb_round_up(p->n_elems, QB_PARAM_ALIGN);
}

qb_status qb_params_create(const qb_config *config, qb_params *out)
{
    QB_TRY(qb_config_check(config));
    qb_params p = {.config = *config};
    lay_out_all(&p);
    QB_TRY(QB_NEW(&p.list, p.n, "list of parameters"));
    lay_out_all(&p);
    *out = p;
    return QB_OK;
}

/* Each cut is where a parameter begins, as near as can be to where equal parts would be cut. */
void qb_params_cut(const qb_params *params, size_t n_parts, size_t *bounds)
{
    size_t at = 0;
    for (size_t part = 0; part < n_parts; part++) {
        size_t want = params->n_elems / n_parts * part, place = params->list[at].offset;
        for (size_t i = at; part && i < params->n; i++) {
            size_t offset = params->list[i].offset;
            size_t off = offset > want ? offset - want : want - offset;
            if (offset % QB_PARAM_ALIGN || off >= (place > want ? place - want : want - place))
                continue;
            at = i;
            place = offset;
        }
        bounds[part] = part ? place : 0;
    }
    bounds[n_parts] = params->n_elems;
}

void qb_params_destroy(qb_params *params)
{
    qb_free(params->list);
    *params = (qb_params){0};
}

const qb_param *qb_params_find(const qb_params *params, qb_role role, size_t layer_idx)
{
    for (size_t i = 0; i < params->n; i++)
        if (params->list[i].role == role && params->list[i].layer_idx == layer_idx)
            return &params->list[i];
    return NULL;
}

/* ---- fresh models ---- */

const char *const qb_init_names[QB_INIT_COUNT] = {"gpt2", "pytorch"};

static uint64_t stream_of(const qb_param *p)
{
    return QB_STREAM_WEIGHTS | ((uint64_t)p->role << 12 | p->layer_idx) << 32;
}

static void init_gpt2(const qb_params *params, const qb_param *p, uint64_t seed, float *w)
{
    double deviation = 0.02;
    if (p->residual == QB_RESIDUAL_ROWS) /* writes to the residual stream */
        deviation /= sqrt(2.0 * (double)params->config.n_layers);
    qb_rng_normal_f32(seed, stream_of(p), 0, p->rows * p->cols, (float)deviation, w);
}

/* Numbers follow one another. The published model draws the attention of blocks without it too. */
static void init_pytorch(const qb_params *params, const qb_param *p, qb_torch_random *random,
                         float *w)
{
    const qb_config *c = &params->config;
    bool embedding = p->role == QB_ROLE_TOK_EMBD || p->role == QB_ROLE_POS_EMBD;
    bool is_first_of_mlp = p->role == (c->act == QB_ACT_SWIGLU ? QB_ROLE_GATE : QB_ROLE_UP);
    if (is_first_of_mlp && !qb_params_find(params, QB_ROLE_O, p->layer_idx))
        qb_torch_skip(random, 2 * (c->n_heads + c->n_kv_heads) * c->head_dim * c->d_model);
    if (embedding)
        qb_torch_normal(random, p->rows * p->cols, w);
    else
        qb_torch_uniform(random, (float)(1 / sqrt((double)p->cols)), p->rows * p->cols, w);
}

void qb_params_init(const qb_params *params, qb_init_kind kind, uint64_t seed, float *weights)
{
    qb_torch_random random;
    qb_torch_seed(&random, seed);
    memset(weights, 0, params->n_elems * sizeof *weights);
    for (size_t i = 0; i < params->n; i++) {
        const qb_param *p = &params->list[i];
        float *w = weights + p->offset;
        bool gain =
            p->role == QB_ROLE_NORM1 || p->role == QB_ROLE_NORM2 || p->role == QB_ROLE_NORM_F;
        if (p->is_matrix && kind == QB_INIT_GPT2) init_gpt2(params, p, seed, w);
        if (p->is_matrix && kind == QB_INIT_PYTORCH) init_pytorch(params, p, &random, w);
        for (size_t j = 0; gain && j < p->cols; j++) w[j] = 1;
    }
}

/* ---- models ---- */

qb_status qb_params_from_model(const qb_params *params, const qb_model *model, float *weights)
{
    for (size_t i = 0; i < params->n; i++) {
        const qb_param *p = &params->list[i];
        char name[64];
        qb_role_name(p->role, p->layer_idx, name, sizeof name);
        if (qb_roles[p->role].per_layer && p->layer_idx >= model->config.n_layers)
            return QB_FAIL(QB_ERR_SHAPE, "layers: found %zu, expected %zu", model->config.n_layers,
                           params->config.n_layers);
        const qb_tensor *t = qb_model_tensor(model, p->role, p->layer_idx);
        if (!t->data) return QB_FAIL(QB_ERR_SHAPE, "tensor %s: the model has none", name);
        if (t->rows != p->rows || t->cols != p->cols)
            return QB_FAIL(QB_ERR_SHAPE, "tensor %s: found %zu x %zu, expected %zu x %zu", name,
                           t->rows, t->cols, p->rows, p->cols);
    }
    memset(weights, 0, params->n_elems * sizeof *weights);
    for (size_t i = 0; i < params->n; i++) {
        const qb_param *p = &params->list[i];
        qb_tensor_rows_f32(qb_model_tensor(model, p->role, p->layer_idx), 0, p->rows,
                           weights + p->offset);
    }
    return QB_OK;
}

static qb_status copy_param(const qb_param *p, const float *weights, qb_model *model)
{
    size_t bytes = p->rows * p->cols * sizeof *weights;
    void *block;
    QB_TRY(qb_model_new_block(model, bytes, &block));
    memcpy(block, weights + p->offset, bytes);
    return qb_model_set(model, p->role, p->layer_idx, QB_F32, p->rows, p->cols, block, bytes,
                        qb_roles[p->role].name);
}

qb_status qb_params_to_model(const qb_params *params, const float *weights, const char *name,
                             qb_model **out)
{
    qb_model *model;
    QB_TRY(qb_model_create(&params->config, name, "trained", &model));
    qb_status status = qb_model_set_name(model, name);
    for (size_t i = 0; status == QB_OK && i < params->n; i++)
        status = copy_param(&params->list[i], weights, model);
    if (status == QB_OK) status = qb_model_check_complete(model);
    if (status == QB_OK)
        *out = model;
    else
        qb_model_close(model);
    return status;
}
