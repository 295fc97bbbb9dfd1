/* train/trainer.c - see trainer.h. */
#include "train/trainer_internal.h"

#include "core/memory.h"

#include <math.h>
#include <string.h>

/* ---- making ---- */

/* "cuda:1" is a device of the row "cuda". */
static const qb_train_ops *find_ops(const char *device)
{
    for (size_t i = 0; qb_train_devices[i]; i++) {
        size_t n = strlen(qb_train_devices[i]->device);
        if (!strncmp(device, qb_train_devices[i]->device, n) && (!device[n] || device[n] == ':'))
            return qb_train_devices[i];
    }
    return NULL;
}

bool qb_trainer_has_device(const char *device)
{
    return find_ops(device) != NULL;
}

static qb_status check_options(const qb_config *config, const qb_trainer_options *o)
{
    if (o->micro_batch < 1)
        return QB_FAIL(QB_ERR_USAGE, "micro batch: found 0, expected at least 1");
    if (o->context < 1 || o->context > config->context)
        return QB_FAIL(QB_ERR_USAGE, "training context: found %zu, expected 1 to the model's %zu",
                       o->context, config->context);
    if (o->context <= qb_train_first_target(config))
        return QB_FAIL(QB_ERR_USAGE, "free_prefix: found %zu, which leaves no target of %zu",
                       config->free_prefix, o->context);
    size_t rows;
    if (!qb_mul_size(o->micro_batch, o->context, &rows) || rows > (size_t)1 << 31)
        return QB_FAIL(QB_ERR_USAGE, "micro batch: %zu windows of %zu tokens are too many",
                       o->micro_batch, o->context);
    return QB_OK;
}

/* Bases to work out: as many at a time as there are threads, since each takes memory for a few
 * matrices of its size, and norms' gains between them would leave threads without one. */
typedef struct basis {
    size_t param, axis;
    float *q;
    qb_status status;
} basis;
typedef struct bases {
    const qb_trainer *t;
    size_t n;
    basis *list;
} bases;

static size_t basis_elems(const qb_trainer *t, size_t param, size_t axis)
{
    const qb_param *p = &t->params.list[param];
    return qb_train_owns(&t->share, p) ? qb_rotation_axis_elems(&t->options.rotation, p, axis) : 0;
}

static void fill_task(void *context, size_t i, size_t thread_idx)
{
    (void)thread_idx;
    const qb_trainer *t = ((const bases *)context)->t;
    basis *b = &((const bases *)context)->list[i];
    const size_t n = basis_elems(t, b->param, b->axis);
    b->status = QB_NEW(&b->q, n * n, "basis");
    if (b->status == QB_OK)
        b->status =
            qb_rotation_fill(&t->options.rotation, &t->params.list[b->param], b->axis, n, b->q);
}

static qb_status fill_and_set(qb_trainer *t, bases *some, qb_pool *pool)
{
    qb_status status = QB_OK;
    qb_parallel_for(pool, some->n, fill_task, some);
    for (size_t i = 0; i < some->n; i++) {
        const basis *b = &some->list[i];
        if (status == QB_OK && b->status != QB_OK)
            status = QB_FAIL(b->status, "bases of OrthoAdam: %s", qb_status_text(b->status));
        if (status == QB_OK)
            status = t->ops->set_rotation(t->device, &t->params.list[b->param], b->axis, b->q);
        qb_free(b->q);
    }
    some->n = 0;
    return status;
}

static qb_status fill_bases(qb_trainer *t, qb_pool *pool)
{
    const size_t at_once = qb_pool_n_threads(pool);
    bases some = {.t = t};
    QB_TRY(QB_NEW(&some.list, at_once, "bases"));
    qb_status status = QB_OK;
    for (size_t i = 0; status == QB_OK && i < 2 * t->params.n; i++) {
        if (!basis_elems(t, i / 2, i % 2)) continue;
        some.list[some.n++] = (basis){.param = i / 2, .axis = i % 2};
        if (some.n == at_once) status = fill_and_set(t, &some, pool);
    }
    if (status == QB_OK) status = fill_and_set(t, &some, pool);
    qb_free(some.list);
    return status;
}

static qb_status create_bases(qb_trainer *t)
{
    qb_pool *pool;
    QB_TRY(qb_pool_create(t->options.n_threads, &pool));
    qb_status status = fill_bases(t, pool);
    qb_pool_destroy(pool);
    return status;
}

static qb_status create_share(qb_trainer *t)
{
    size_t n = qb_comm_size(t->options.comm), rank = qb_comm_rank(t->options.comm);
    QB_TRY(QB_NEW(&t->share.bounds, n + 1, "shares of the parameters"));
    qb_params_cut(&t->params, n, t->share.bounds);
    t->share.comm = n > 1 ? t->options.comm : NULL;
    t->share.first = t->share.bounds[rank];
    t->share.end = t->share.bounds[rank + 1];
    return QB_OK;
}

static qb_status create(qb_trainer *t, const qb_config *config)
{
    QB_TRY(qb_params_create(config, &t->params));
    QB_TRY(create_share(t));
    QB_TRY(check_options(config, &t->options));
    t->ops = find_ops(t->options.device);
    if (!t->ops)
        return QB_FAIL(QB_ERR_UNSUPPORTED, "device \"%.40s\": this build cannot train on it",
                       t->options.device);
    const char *why = t->ops->refuse(&t->params.config, &t->options);
    if (why) return QB_FAIL(QB_ERR_UNSUPPORTED, "training on %s: %s", t->ops->device, why);
    QB_TRY(t->ops->create(&t->params, &t->options, &t->share, &t->device));
    QB_TRY(qb_transformer_create(&t->params, t->ops, t->device, t->options.recompute, &t->walk));
    bool made = t->options.rotation.kind == QB_ROTATION_HADAMARD && t->ops->makes_hadamard;
    return t->options.optimizer->rotated && !made ? create_bases(t) : QB_OK;
}

qb_status qb_trainer_create(const qb_config *config, const qb_trainer_options *options,
                            qb_trainer **out)
{
    qb_trainer *t;
    QB_TRY(QB_NEW_ZERO(&t, 1, "trainer"));
    t->options = *options;
    qb_status status = create(t, config);
    if (status == QB_OK)
        *out = t;
    else
        qb_trainer_destroy(t);
    return status;
}

void qb_trainer_destroy(qb_trainer *t)
{
    if (!t) return;
    qb_transformer_destroy(t->walk);
    if (t->ops) t->ops->destroy(t->device);
    qb_params_destroy(&t->params);
    qb_free(t->share.bounds);
    qb_free(t);
}

/* ---- weights and states ---- */

const qb_params *qb_trainer_params(const qb_trainer *t)
{
    return &t->params;
}

qb_status qb_trainer_set_weights(qb_trainer *t, const float *weights)
{
    return t->ops->copy_in(t->device, QB_ARRAY_WEIGHTS, weights);
}

qb_status qb_trainer_get_weights(qb_trainer *t, float *weights)
{
    return t->ops->copy_out(t->device, QB_ARRAY_WEIGHTS, weights);
}

qb_status qb_trainer_fetch_weights(qb_trainer *t)
{
    return t->ops->fetch_weights ? t->ops->fetch_weights(t->device) : QB_OK;
}

static qb_status check_state(const qb_trainer *t, size_t state_idx)
{
    size_t n = t->options.optimizer->n_states;
    if (state_idx < n) return QB_OK;
    return QB_FAIL(QB_ERR_USAGE, "state %zu of %s: it has %zu", state_idx,
                   t->options.optimizer->name, n);
}

qb_status qb_trainer_set_state(qb_trainer *t, size_t state_idx, const float *state)
{
    QB_TRY(check_state(t, state_idx));
    return t->ops->copy_in(t->device, (qb_train_array)(QB_ARRAY_STATE0 + state_idx),
                           state + t->share.first);
}

qb_status qb_trainer_get_state(qb_trainer *t, size_t state_idx, float *state)
{
    qb_train_array array = (qb_train_array)(QB_ARRAY_STATE0 + state_idx);
    float *own = state;
    QB_TRY(check_state(t, state_idx));
    bool is_root = qb_comm_rank(t->share.comm) == 0; /* whose elements are the first */
    if (!is_root) QB_TRY(QB_NEW(&own, t->share.end - t->share.first, "states of a rank"));
    qb_status status = t->ops->copy_out(t->device, array, own);
    if (status == QB_OK) status = qb_comm_collect(t->share.comm, own, t->share.bounds);
    if (!is_root) qb_free(own);
    return status;
}

qb_status qb_trainer_get_gradients(qb_trainer *t, float *gradients)
{
    return t->ops->copy_out(t->device, QB_ARRAY_GRADIENTS, gradients);
}

qb_status qb_trainer_set_rotation(qb_trainer *t, const qb_param *param, size_t axis, const float *q)
{
    if (!t->options.optimizer->rotated)
        return QB_FAIL(QB_ERR_USAGE, "basis: %s rotates nothing", t->options.optimizer->name);
    return qb_train_owns(&t->share, param) ? t->ops->set_rotation(t->device, param, axis, q)
                                           : QB_OK;
}

/* ---- steps ---- */

static size_t targets_of(const qb_trainer *t, size_t n_windows)
{
    return n_windows * (t->options.context - qb_train_first_target(&t->params.config));
}

/* The first array with an entry that is no number, for the message; "" = none. */
static qb_status search_culprit(qb_trainer *t, char culprit[64])
{
    culprit[0] = 0;
    static const struct {
        qb_train_array array;
        const char *what;
    } arrays[] = {{QB_ARRAY_WEIGHTS, "weights of"}, {QB_ARRAY_GRADIENTS, "gradient of"}};
    for (size_t a = 0; a < QB_COUNT(arrays); a++)
        for (size_t i = 0; i < t->params.n; i++) {
            const qb_param *p = &t->params.list[i];
            bool bad;
            char name[48];
            if (!qb_train_owns(&t->share, p)) continue;
            QB_TRY(t->ops->has_nonfinite(t->device, arrays[a].array, p->offset, p->rows * p->cols,
                                         &bad));
            if (!bad) continue;
            qb_role_name(p->role, p->layer_idx, name, sizeof name);
            snprintf(culprit, 64, "%s %s", arrays[a].what, name);
            return QB_OK;
        }
    return QB_OK;
}

/* What the first rank that finds something finds. */
static qb_status find_culprit(qb_trainer *t, qb_step_stats *stats)
{
    char(*all)[64];
    size_t n = qb_comm_size(t->share.comm);
    QB_TRY(search_culprit(t, stats->culprit));
    QB_TRY(QB_NEW(&all, n, "names of tensors"));
    qb_status status = qb_comm_all(t->share.comm, stats->culprit, sizeof *all, all);
    for (size_t r = n; status == QB_OK && r-- > 0;)
        if (all[r][0]) memcpy(stats->culprit, all[r], sizeof *all);
    qb_free(all);
    if (status != QB_OK || stats->culprit[0]) return status;
    snprintf(stats->culprit, sizeof stats->culprit, "%s",
             isfinite(stats->loss) ? "norm of the gradient" : "loss");
    return QB_OK;
}

static qb_status check_windows(const qb_trainer *t, size_t n_windows)
{
    if (t->share.comm || (n_windows && n_windows % t->options.micro_batch == 0)) return QB_OK;
    return QB_FAIL(QB_ERR_USAGE, "batch: found %zu windows, expected a multiple of %zu", n_windows,
                   t->options.micro_batch);
}

/* What is queued in a step, as bits; with PART the part's number above them. */
enum { FIRST = 1, PASS = 2, LAST = 4, PART = 8, PART_SHIFT = 4 };
typedef struct step_part {
    qb_trainer *t;
    unsigned what;
    float scale;
} step_part;

static qb_status finish_step(const qb_trainer *t)
{
    QB_TRY(t->ops->gradient_norm(t->device));
    return t->ops->update(t->device, t->options.clip);
}

static qb_status queue_part(void *context)
{
    const step_part *p = context;
    const qb_trainer *t = p->t;
    if (p->what & PART) return qb_transformer_learn_part(t->walk, p->what >> PART_SHIFT, p->scale);
    if (p->what & FIRST) QB_TRY(t->ops->begin(t->device, true));
    if (p->what & PASS) QB_TRY(qb_transformer_learn(t->walk, p->scale));
    return p->what & LAST ? finish_step(t) : QB_OK;
}

static qb_status do_part(const step_part *p, size_t batch)
{
    const qb_train_repeat repeat = {p->what, batch, p->scale, queue_part, (void *)p};
    return p->t->ops->repeat(p->t->device, &repeat);
}

/* The last pass of several ranks, and the update. batch 0: this one has no pass. */
static qb_status do_shared_part(const step_part *shared, size_t batch)
{
    const qb_trainer *t = shared->t;
    for (size_t i = 0; i < qb_transformer_parts(t->walk); i++) {
        step_part part = *shared;
        part.what = PART | (unsigned)i << PART_SHIFT;
        if (batch) QB_TRY(do_part(&part, batch));
        QB_TRY(qb_transformer_share_part(t->walk, i));
    }
    return finish_step(t);
}

static qb_status queue_passes(qb_trainer *t, const int32_t *tokens, size_t own, float scale)
{
    size_t micro_batch = t->options.micro_batch;
    step_part part = {t, 0, scale};
    const bool alone = !t->share.comm;
    if (!alone) QB_TRY(t->ops->begin(t->device, true));
    if (!own) return do_shared_part(&part, 0);
    for (size_t w = 0; w < own; w += micro_batch) {
        size_t batch = own - w < micro_batch ? own - w : micro_batch;
        const bool last = w + batch == own;
        part.what = PASS | (alone && !w ? FIRST : 0u) | (alone && last ? LAST : 0u);
        QB_TRY(t->ops->load_tokens(t->device, tokens + w * (t->options.context + 1), batch, true));
        QB_TRY(last && !alone ? do_shared_part(&part, batch) : do_part(&part, batch));
    }
    return QB_OK;
}

qb_status qb_trainer_queue(qb_trainer *t, const int32_t *tokens, size_t n_windows, double lr,
                           uint64_t step)
{
    size_t place = t->n_queued % QB_TRAIN_TOTALS, first, own;
    float scale = (float)(1 / (double)targets_of(t, n_windows));
    qb_update update = qb_update_make(t->options.optimizer, &t->options.settings, lr, step, 1);
    QB_TRY(check_windows(t, n_windows));
    if (qb_trainer_queued(t) == QB_TRAIN_TOTALS)
        return QB_FAIL(QB_ERR_USAGE, "step %llu: %zu before it are not collected",
                       (unsigned long long)step, qb_trainer_queued(t));
    qb_comm_part(t->share.comm, n_windows, &first, &own);
    QB_TRY(t->ops->set_update(t->device, &update));
    QB_TRY(queue_passes(t, tokens, own, scale));
    QB_TRY(t->ops->send_totals(t->device, place));
    t->n_windows[place] = n_windows;
    t->n_queued++;
    return QB_OK;
}

size_t qb_trainer_queued(const qb_trainer *t)
{
    return (size_t)(t->n_queued - t->n_collected);
}

size_t qb_trainer_steps_ahead(const qb_trainer *t)
{
    return t->ops->steps_ahead;
}

/* The gradients are those of the step that was queued last. */
static qb_status see_not_finite(qb_trainer *t, qb_step_stats *stats)
{
    bool was_halted = t->halted;
    stats->finite = false;
    t->halted = qb_trainer_queued(t) > 0;
    if (t->halted) return QB_OK;
    if (!was_halted) QB_TRY(find_culprit(t, stats));
    return t->ops->go_on(t->device);
}

qb_status qb_trainer_collect(qb_trainer *t, qb_step_stats *stats)
{
    qb_train_totals totals;
    size_t place = t->n_collected % QB_TRAIN_TOTALS;
    if (!qb_trainer_queued(t)) return QB_FAIL(QB_ERR_USAGE, "figures of a step: none is queued");
    QB_TRY(t->ops->receive_totals(t->device, place, &totals));
    t->n_collected++;
    *stats = (qb_step_stats){.loss = totals.loss_sum / (double)targets_of(t, t->n_windows[place]),
                             .grad_norm = totals.grad_norm};
    stats->finite = isfinite(stats->loss) && isfinite(stats->grad_norm);
    return stats->finite && !t->halted ? QB_OK : see_not_finite(t, stats);
}

qb_status qb_trainer_step(qb_trainer *t, const int32_t *tokens, size_t n_windows, double lr,
                          uint64_t step, qb_step_stats *stats)
{
    if (qb_trainer_queued(t))
        return QB_FAIL(QB_ERR_USAGE, "step %llu: %zu before it are not collected",
                       (unsigned long long)step, qb_trainer_queued(t));
    QB_TRY(qb_trainer_queue(t, tokens, n_windows, lr, step));
    return qb_trainer_collect(t, stats);
}

qb_status qb_trainer_evaluate(qb_trainer *t, const int32_t *tokens, size_t n_windows, double *loss)
{
    size_t micro_batch = t->options.micro_batch;
    if (!n_windows || qb_trainer_queued(t))
        return QB_FAIL(QB_ERR_USAGE, "evaluation: %zu windows, %zu steps not collected", n_windows,
                       qb_trainer_queued(t));
    QB_TRY(t->ops->begin(t->device, false));
    for (size_t w = 0; w < n_windows; w += micro_batch) {
        size_t batch = n_windows - w < micro_batch ? n_windows - w : micro_batch;
        const int32_t *now = tokens + w * (t->options.context + 1);
        QB_TRY(t->ops->load_tokens(t->device, now, batch, false));
        QB_TRY(qb_transformer_evaluate(t->walk));
    }
    qb_train_totals totals;
    QB_TRY(t->ops->send_totals(t->device, 0));
    QB_TRY(t->ops->receive_totals(t->device, 0, &totals));
    *loss = totals.loss_sum / (double)targets_of(t, n_windows);
    return QB_OK;
}

/* ---- what it takes ---- */

double qb_trainer_flops(const qb_trainer *t, size_t n_windows)
{
    const qb_config *c = &t->params.config;
    double in_products = (double)c->vocab * (double)c->d_model; /* the head, tied or not */
    for (size_t i = 0; i < t->params.n; i++) {
        const qb_param *p = &t->params.list[i];
        if (qb_roles[p->role].linear || p->role == QB_ROLE_ATTN_GATE)
            in_products += (double)p->rows * (double)p->cols;
    }
    double attention = (double)qb_config_n_attention(c) * (double)t->options.context *
                       (double)(c->n_heads * c->head_dim); /* causal half of scores and sums */
    return 6 * (double)(n_windows * t->options.context) * (in_products + attention);
}

size_t qb_trainer_memory_bytes(const qb_trainer *t)
{
    return t->ops->memory_bytes(t->device);
}
