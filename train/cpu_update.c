/* train/cpu_update.c - the optimiser's step on the processor.
 *
 * Rotated parameters: with Q_r, Q_c the bases of rows and columns (an axis without one stays),
 *     G' = Q_r G Q_c^T    delta' = rule(G'; moments)    delta = Q_r^T delta' Q_c               (1)
 */
#include "core/memory.h"
#include "train/cpu_ops_internal.h"

#include <math.h>
#include <string.h>

enum { UPDATE_CHUNK = 2048, NORM_CHUNK = 1 << 15 };

static size_t n_norm_sums(const qb_train_device *d)
{
    return d->params->n_elems / NORM_CHUNK + 1;
}

/* ---- the norm ---- */

static void norm_task(void *context, size_t begin, size_t end)
{
    qb_train_device *d = context;
    d->norm_sums[begin / NORM_CHUNK] =
        d->gradient->sum_squares(d->arrays[QB_ARRAY_GRADIENTS] + begin, end - begin);
}

qb_status qb__cpu_gradient_norm(qb_train_device *d)
{
    double sum = 0;
    qb_parallel_spans(d->pool, d->params->n_elems, NORM_CHUNK, norm_task, d);
    for (size_t i = 0; i < n_norm_sums(d); i++) sum += d->norm_sums[i];
    d->grad_norm = sqrt(sum);
    return QB_OK;
}

/* ---- rotations ---- */

static qb_status create_bases(qb_train_device *d)
{
    size_t most = 1, packed = 1;
    for (size_t axis = 0; axis < 2; axis++)
        QB_TRY(qb__cpu_alloc(d, d->params->n, sizeof(float *), "bases", (void **)&d->bases[axis]));
    for (size_t i = 0; i < d->params->n; i++)
        for (size_t axis = 0; axis < 2; axis++) {
            const qb_param *p = &d->params->list[i];
            size_t n = qb_rotation_axis_elems(&d->options->rotation, p, axis);
            if (!n) continue;
            QB_TRY(qb__cpu_alloc(d, n * n, sizeof(float), "bases", (void **)&d->bases[axis][i]));
            if (p->rows * p->cols > most) most = p->rows * p->cols;
            size_t bytes = d->gemm->packed_bytes(p->cols, n);
            if (bytes > packed) packed = bytes;
        }
    for (size_t i = 0; i < 2; i++)
        QB_TRY(qb__cpu_alloc(d, most, sizeof(float), "rotated gradient", (void **)&d->rotated[i]));
    return qb__cpu_alloc(d, packed, 1, "packed operands", (void **)&d->packed_turn);
}

qb_status qb__cpu_update_create(qb_train_device *d)
{
    QB_TRY(qb__cpu_alloc(d, n_norm_sums(d), sizeof(double), "norms", (void **)&d->norm_sums));
    return d->options->optimizer->rotated ? create_bases(d) : QB_OK;
}

qb_status qb__cpu_set_rotation(qb_train_device *d, const qb_param *param, size_t axis,
                               const float *q)
{
    size_t n = axis ? param->cols : param->rows;
    float *basis = d->bases[axis] ? d->bases[axis][param - d->params->list] : NULL;
    if (!basis)
        return QB_FAIL(QB_ERR_USAGE, "basis of axis %zu: this run does not rotate it", axis);
    memcpy(basis, q, n * n * sizeof *q);
    return QB_OK;
}

/* One factor of (1): from becomes to along the axis, by Q or, back, by Q^T. */
static void turn(const qb_train_device *d, const qb_param *p, size_t axis, bool back,
                 const float *basis, const float *from, float *to)
{
    qb_gemm_f32_args product = {
        .m = p->rows, .n = p->cols, .w = d->packed_turn, .y = to, .y_stride = p->cols};
    if (axis == 0) { /* Q times the columns of `from` */
        product.k = product.x_stride = p->rows;
        product.x = basis;
        product.x_transposed = back;
        qb__cpu_pack(d, from, true, p->cols, p->rows, d->packed_turn);
    } else {
        product.k = product.x_stride = p->cols;
        product.x = from;
        qb__cpu_pack(d, basis, back, p->cols, p->cols, d->packed_turn);
    }
    qb_gemm_f32_run(d->gemm, &product, 1, d->pool);
}

/* Both axes that have a basis; *at is where the matrix is before and after. */
static void turn_both(const qb_train_device *d, const qb_param *p, bool back, const float **at)
{
    for (size_t axis = 0; axis < 2; axis++) {
        const float *basis = d->bases[axis][p - d->params->list];
        if (!basis) continue;
        float *to = *at == d->rotated[0] ? d->rotated[1] : d->rotated[0];
        turn(d, p, axis, back, basis, *at, to);
        *at = to;
    }
}

/* ---- the step ---- */

typedef struct update_call {
    const qb_update *u;
    const float *g;
    float *m, *v; /* NULL where the rule has none */
    float *w;     /* NULL: only delta is wanted */
    float *delta; /* may be g; NULL: only w is wanted */
} update_call;

static void apply(const qb_update *u, size_t n, const float *delta, float *w)
{
    for (size_t i = 0; i < n; i++) w[i] -= u->lr * delta[i] + u->decay * w[i];
}

static void update_task(void *context, size_t at, size_t end)
{
    const update_call *c = context;
    size_t n = end - at;
    float delta[UPDATE_CHUNK];
    float *to = c->delta ? c->delta + at : delta;
    qb_update_delta(c->u, n, c->g + at, c->m ? c->m + at : NULL, c->v ? c->v + at : NULL, to);
    if (c->w) apply(c->u, n, to, c->w + at);
}

static void apply_task(void *context, size_t at, size_t end)
{
    const update_call *c = context;
    apply(c->u, end - at, c->delta + at, c->w + at);
}

static void update_param(qb_train_device *d, const qb_param *p, const qb_update *u)
{
    const qb_optimizer *optimizer = d->options->optimizer;
    size_t n = p->rows * p->cols;
    float *states[2] = {d->arrays[QB_ARRAY_STATE0], d->arrays[QB_ARRAY_STATE1]};
    for (size_t i = 0; i < 2; i++) states[i] = states[i] ? states[i] + p->offset : NULL;
    bool only_v = optimizer->rule == QB_RULE_RMSPROP;
    update_call c = {.u = u,
                     .g = d->arrays[QB_ARRAY_GRADIENTS] + p->offset,
                     .m = only_v ? NULL : states[0],
                     .v = only_v ? states[0] : states[1],
                     .w = d->arrays[QB_ARRAY_WEIGHTS] + p->offset};
    size_t at = (size_t)(p - d->params->list);
    if (!optimizer->rotated || (!d->bases[0][at] && !d->bases[1][at])) {
        qb_parallel_spans(d->pool, n, UPDATE_CHUNK, update_task, &c);
        return;
    }
    update_call inner = c;
    turn_both(d, p, false, &inner.g);
    inner.delta = inner.g == d->rotated[0] ? d->rotated[0] : d->rotated[1];
    inner.w = NULL;
    qb_parallel_spans(d->pool, n, UPDATE_CHUNK, update_task, &inner);
    const float *delta = inner.delta;
    turn_both(d, p, true, &delta);
    c.delta = delta == d->rotated[0] ? d->rotated[0] : d->rotated[1];
    qb_parallel_spans(d->pool, n, UPDATE_CHUNK, apply_task, &c);
}

qb_status qb__cpu_update(qb_train_device *d, const qb_update *update, double clip)
{
    if (!isfinite(d->grad_norm) || !isfinite(d->loss_sum)) return QB_OK;
    qb_update with_decay = *update, without = *update;
    without.decay = 0;
    if (clip > 0 && d->grad_norm > clip)
        with_decay.grad_scale = without.grad_scale =
            (float)((double)update->grad_scale * clip / d->grad_norm);
    for (size_t i = 0; i < d->params->n; i++) {
        const qb_param *p = &d->params->list[i];
        bool decays = p->is_matrix || d->options->settings.decay_all;
        update_param(d, p, decays ? &with_decay : &without);
    }
    return QB_OK;
}
