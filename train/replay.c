/* train/replay.c - see replay.h. */
#include "train/replay.h"

#include "core/json.h"
#include "core/memory.h"
#include "model/safetensors.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The record's names of our tensors. */
static const struct {
    qb_role role;
    const char *name; /* %zu: the layer */
} names[] = {
    {QB_ROLE_TOK_EMBD, "wte"},      {QB_ROLE_POS_EMBD, "wpe"},
    {QB_ROLE_NORM1, "h%zu.norm1"},  {QB_ROLE_NORM1_B, "h%zu.norm1_b"},
    {QB_ROLE_QKV, "h%zu.attn.qkv"}, {QB_ROLE_O, "h%zu.attn.out"},
    {QB_ROLE_NORM2, "h%zu.norm2"},  {QB_ROLE_NORM2_B, "h%zu.norm2_b"},
    {QB_ROLE_UP, "h%zu.mlp.fc"},    {QB_ROLE_DOWN, "h%zu.mlp.out"},
    {QB_ROLE_NORM_F, "norm_f"},     {QB_ROLE_NORM_F_B, "norm_f_b"},
};

enum { NAME_BYTES = 96, DEFAULT_HEADS = 2 };

/* What a run needs at once. */
typedef struct replay {
    const qb_replay_options *o;
    qb_safetensors *file;
    qb_config config;
    const qb_optimizer *optimizer;
    qb_trainer *trainer;
    size_t n_steps, n_windows, context;
    int32_t *tokens;
    float *a, *b; /* n_elems each */
} replay;

static void name_of(const qb_param *p, const char *prefix, char text[NAME_BYTES])
{
    for (size_t i = 0; i < QB_COUNT(names); i++) {
        if (names[i].role != p->role) continue;
        const char *name = names[i].name, *mark = strstr(name, "%zu");
        if (mark)
            snprintf(text, NAME_BYTES, "%s.%.*s%zu%s", prefix, (int)(mark - name), name,
                     p->layer_idx, mark + 3);
        else
            snprintf(text, NAME_BYTES, "%s.%s", prefix, name);
    }
}

static qb_status find(const replay *r, const char *name, const qb_st_tensor **out)
{
    *out = qb_safetensors_find(r->file, name);
    if (*out) return QB_OK;
    return QB_FAIL(QB_ERR_FORMAT, "%s: found no tensor %s, expected one",
                   qb_safetensors_path(r->file), name);
}

static qb_status read_f32(const replay *r, const char *name, size_t n_elems, float *to)
{
    const qb_st_tensor *t;
    QB_TRY(find(r, name, &t));
    if (t->n_elems != n_elems)
        return QB_FAIL(QB_ERR_FORMAT, "%s: tensor %s: found %zu elements, expected %zu",
                       qb_safetensors_path(r->file), name, t->n_elems, n_elems);
    return qb_st_tensor_to_f32(t, to);
}

/* ---- the configuration ---- */

static qb_status read_norm(replay *r)
{
    const char *want = r->o->norm;
    bool bias = qb_safetensors_find(r->file, "init.norm_f_b");
    const qb_st_tensor *gain;
    QB_TRY(find(r, "init.norm_f", &gain));
    qb_config *c = &r->config;
    c->norm = bias                 ? QB_NORM_LAYERNORM
              : gain->n_elems == 1 ? QB_NORM_RMSNORM_SINGLE
                                   : QB_NORM_RMSNORM;
    c->norm_bias = bias;
    if (!want) return QB_OK;
    const char *found = qb_norm_names[c->norm];
    if (!strcmp(want, "rmsnorm_s")) want = qb_norm_names[QB_NORM_RMSNORM_SINGLE];
    if (!strcmp(want, found)) return QB_OK;
    return QB_FAIL(QB_ERR_USAGE, "%s: the record has %s, asked for %s",
                   qb_safetensors_path(r->file), found, want);
}

static qb_status read_heads(replay *r)
{
    const json_t *metadata = qb_safetensors_metadata(r->file);
    const char *text = metadata ? json_string_value(json_object_get(metadata, "n_heads")) : NULL;
    size_t heads = text ? strtoull(text, NULL, 10) : DEFAULT_HEADS;
    if (heads < 1 || heads > r->config.d_model || r->config.d_model % heads)
        return QB_FAIL(QB_ERR_FORMAT, "%s: n_heads: found %zu, expected a divisor of %zu",
                       qb_safetensors_path(r->file), heads, r->config.d_model);
    r->config.n_heads = r->config.n_kv_heads = heads;
    r->config.head_dim = r->config.d_model / heads;
    return QB_OK;
}

static qb_status read_softmax(replay *r)
{
    for (int i = 0; i < QB_SOFTMAX_COUNT; i++)
        if (!strcmp(r->o->softmax, qb_softmax_names[i])) {
            r->config.softmax = (qb_softmax_kind)i;
            return QB_OK;
        }
    return QB_FAIL(QB_ERR_USAGE, "softmax \"%.40s\": expected one like softmax or softmax1",
                   r->o->softmax);
}

static qb_status read_config(replay *r)
{
    const qb_st_tensor *wte, *wpe, *fc;
    qb_config *c = &r->config;
    *c = qb_arch_find("gpt2")->defaults;
    c->arch = qb_arch_find("gpt2");
    c->attn_bias = c->mlp_bias = false;
    QB_TRY(find(r, "init.wte", &wte));
    QB_TRY(find(r, "init.wpe", &wpe));
    QB_TRY(find(r, "init.h0.mlp.fc", &fc));
    if (wte->rank != 2 || wpe->rank != 2 || fc->rank != 2)
        return QB_FAIL(
            QB_ERR_FORMAT,
            "%s: init.wte, init.wpe and init.h0.mlp.fc: found other ranks, expected matrices",
            qb_safetensors_path(r->file));
    c->vocab = wte->shape[0];
    c->d_model = wte->shape[1];
    c->context = wpe->shape[0];
    c->d_ff = fc->shape[0];
    for (c->n_layers = 0;; c->n_layers++) {
        char name[NAME_BYTES];
        name_of(&(qb_param){.role = QB_ROLE_QKV, .layer_idx = c->n_layers}, "init", name);
        if (!qb_safetensors_find(r->file, name)) break;
    }
    QB_TRY(read_softmax(r));
    QB_TRY(read_norm(r));
    QB_TRY(read_heads(r));
    return qb_config_check(c);
}

static qb_status read_tokens(replay *r)
{
    const qb_st_tensor *t;
    QB_TRY(find(r, "tokens", &t));
    if (t->rank != 3 || t->n_elems == 0 || t->shape[2] < 2)
        return QB_FAIL(QB_ERR_FORMAT,
                       "%s: tokens: found another shape, expected (steps, windows, T + 1)",
                       qb_safetensors_path(r->file));
    r->n_steps = t->shape[0];
    r->n_windows = t->shape[1];
    r->context = t->shape[2] - 1;
    QB_TRY(QB_NEW(&r->tokens, t->n_elems, "tokens"));
    return qb_st_tensor_to_s32(t, r->tokens);
}

/* ---- the start ---- */

static qb_status set_start(replay *r)
{
    const qb_params *p = qb_trainer_params(r->trainer);
    char name[NAME_BYTES];
    QB_TRY(QB_NEW_ZERO(&r->a, p->n_elems, "weights"));
    QB_TRY(QB_NEW(&r->b, p->n_elems, "gradients"));
    for (size_t i = 0; i < p->n; i++) {
        name_of(&p->list[i], "init", name);
        QB_TRY(read_f32(r, name, p->list[i].rows * p->list[i].cols, r->a + p->list[i].offset));
    }
    return qb_trainer_set_weights(r->trainer, r->a);
}

static qb_status set_bases(replay *r)
{
    const qb_params *p = qb_trainer_params(r->trainer);
    size_t width = r->config.d_model;
    float *q;
    QB_TRY(QB_NEW(&q, width * width, "basis"));
    qb_status status = QB_OK;
    for (size_t i = 0; status == QB_OK && i < p->n; i++) {
        char name[NAME_BYTES];
        if (p->list[i].residual == QB_RESIDUAL_NONE) continue;
        name_of(&p->list[i], "q", name);
        status = read_f32(r, name, width * width, q);
        if (status == QB_OK)
            status = qb_trainer_set_rotation(r->trainer, &p->list[i],
                                             p->list[i].residual == QB_RESIDUAL_COLS, q);
    }
    qb_free(q);
    return status;
}

static qb_status create_trainer(replay *r)
{
    const qb_replay_options *o = r->o;
    qb_trainer_options options = {.device = o->device ? o->device : "cpu",
                                  .micro_batch = o->micro_batch ? o->micro_batch : r->n_windows,
                                  .context = r->context,
                                  .optimizer = r->optimizer,
                                  .settings = r->optimizer->defaults,
                                  .full_f32 = o->full_f32,
                                  .recompute = o->recompute,
                                  .n_threads = o->n_threads};
    options.settings.weight_decay = 0;
    QB_TRY(qb_trainer_create(&r->config, &options, &r->trainer));
    QB_TRY(set_start(r));
    return r->optimizer->rotated ? set_bases(r) : QB_OK;
}

/* ---- the comparison ---- */

/* r->a holds the gradients; each tensor against its record. */
static qb_status compare_gradients(replay *r, qb_replay_result *out)
{
    const qb_params *p = qb_trainer_params(r->trainer);
    char prefix[NAME_BYTES / 2], name[NAME_BYTES];
    snprintf(prefix, sizeof prefix, "grad.%s", r->o->softmax);
    out->grad_max_rel_error = NAN;
    name_of(&p->list[0], prefix, name);
    if (!qb_safetensors_find(r->file, name)) return QB_OK;
    QB_TRY(qb_trainer_get_gradients(r->trainer, r->a));
    out->has_gradients = true;
    out->grad_max_rel_error = 0;
    for (size_t i = 0; i < p->n; i++) {
        size_t n = p->list[i].rows * p->list[i].cols;
        const float *got = r->a + p->list[i].offset;
        name_of(&p->list[i], prefix, name);
        QB_TRY(read_f32(r, name, n, r->b));
        double worst = 0, most = 0;
        for (size_t j = 0; j < n; j++) {
            double diff = fabs((double)got[j] - (double)r->b[j]);
            worst = diff <= worst ? worst : diff; /* a NaN stays */
            most = fmax(most, fabs((double)r->b[j]));
        }
        double error = most > 0 ? worst / most : worst;
        if (error <= out->grad_max_rel_error) continue;
        out->grad_max_rel_error = error;
        snprintf(out->worst_gradient, sizeof out->worst_gradient, "%s", name);
    }
    return QB_OK;
}

static qb_status compare_losses(replay *r, qb_replay_result *out)
{
    char name[NAME_BYTES];
    snprintf(name, sizeof name, "loss.%s.%s", r->o->softmax, r->optimizer->name);
    out->loss_max_rel_error = NAN;
    if (!qb_safetensors_find(r->file, name)) return QB_OK;
    float *want;
    QB_TRY(QB_NEW(&want, r->n_steps, "losses"));
    qb_status status = read_f32(r, name, r->n_steps, want);
    out->has_losses = status == QB_OK;
    out->loss_max_rel_error = 0;
    for (size_t i = 0; status == QB_OK && i < r->n_steps; i++) {
        double error = fabs(out->losses[i] / (double)want[i] - 1);
        if (!(error <= out->loss_max_rel_error)) out->loss_max_rel_error = error;
    }
    qb_free(want);
    return status;
}

static qb_status run_steps(replay *r, qb_replay_result *out)
{
    double lr = r->o->lr > 0 ? r->o->lr : r->optimizer->lr;
    for (size_t i = 0; i < r->n_steps; i++) {
        qb_step_stats stats;
        const int32_t *tokens = r->tokens + i * r->n_windows * (r->context + 1);
        QB_TRY(qb_trainer_step(r->trainer, tokens, r->n_windows, lr, i + 1, &stats));
        out->losses[i] = stats.loss;
        if (i == 0) QB_TRY(compare_gradients(r, out));
    }
    return compare_losses(r, out);
}

static qb_status run(replay *r, const char *path, qb_replay_result *out)
{
    r->optimizer = qb_optimizer_find(r->o->optimizer);
    if (!r->optimizer)
        return QB_FAIL(QB_ERR_USAGE, "optimizer \"%.40s\": unknown", r->o->optimizer);
    QB_TRY(qb_safetensors_open(path, &r->file));
    QB_TRY(read_config(r));
    QB_TRY(read_tokens(r));
    QB_TRY(create_trainer(r));
    QB_TRY(QB_NEW_ZERO(&out->losses, r->n_steps, "losses"));
    out->n_steps = r->n_steps;
    return run_steps(r, out);
}

qb_status qb_replay_run(const char *path, const qb_replay_options *options, qb_replay_result *out)
{
    replay r = {.o = options};
    qb_replay_result result = {0};
    qb_status status = run(&r, path, &result);
    qb_trainer_destroy(r.trainer);
    qb_safetensors_close(r.file);
    qb_free(r.tokens);
    qb_free(r.a);
    qb_free(r.b);
    if (status == QB_OK)
        *out = result;
    else
        qb_replay_result_deinit(&result);
    return status;
}

void qb_replay_result_deinit(qb_replay_result *result)
{
    qb_free(result->losses);
    *result = (qb_replay_result){0};
}

qb_status qb_replay_to_json(const qb_replay_result *result, json_t **out)
{
    size_t mark = qb_json_mark();
    json_t *losses = json_array();
    for (size_t i = 0; i < result->n_steps; i++)
        json_array_append_new(losses, qb_json_real(result->losses[i]));
    json_t *o = json_pack("{s:o, s:o, s:o}", "losses", losses, "grad_max_rel_error",
                          qb_json_real(result->grad_max_rel_error), "loss_max_rel_error",
                          qb_json_real(result->loss_max_rel_error));
    if (o && result->has_gradients)
        json_object_set_new(o, "worst_gradient", json_string(result->worst_gradient));
    qb_status status = qb_json_check_memory(mark, "replay");
    if (status != QB_OK)
        json_decref(o);
    else
        *out = o;
    return status;
}
