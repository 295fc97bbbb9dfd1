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
    const float *own = d->arrays[QB_ARRAY_GRADIENTS] + d->share->first;
    d->norm_sums[begin / NORM_CHUNK] = d->gradient->sum_squares(own + begin, end - begin);
}

qb_status qb__cpu_share_gradients(qb_train_device *d, size_t first, size_t end)
{
    return qb_comm_reduce(d->share->comm, d->arrays[QB_ARRAY_GRADIENTS], d->share->bounds, first,
                          end);
}

qb_status qb__cpu_gradient_norm(qb_train_device *d)
{
    double sums[] = {d->loss_sum, 0};
    qb_parallel_spans(d->pool, d->share->end - d->share->first, NORM_CHUNK, norm_task, d);
    for (size_t i = 0; i < n_norm_sums(d); i++) sums[1] += d->norm_sums[i];
    QB_TRY(qb_comm_add(d->share->comm, sums, QB_COUNT(sums)));
    d->loss_sum = sums[0];
    d->grad_norm = sqrt(sums[1]);
    return QB_OK;
}

/* ---- bases ---- */

static size_t block_elems(const qb_train_device *d, size_t n)
{
    const qb_rotation *r = &d->options->rotation;
    return r->kind == QB_ROTATION_BLOCK && r->block_elems < n ? r->block_elems : n;
}

/* The largest sizes over all parameters. */
typedef struct basis_sizes {
    size_t matrix, axis, packed_bytes;
} basis_sizes;

static qb_status create_basis(qb_train_device *d, size_t i, size_t axis, basis_sizes *most)
{
    const qb_param *p = &d->params->list[i];
    const qb_rotation *rotation = &d->options->rotation;
    size_t n = qb_rotation_axis_elems(rotation, p, axis), block = block_elems(d, n);
    if (!n || !qb_train_owns(d->share, p)) return QB_OK;
    if (p->rows * p->cols > most->matrix) most->matrix = p->rows * p->cols;
    if (n > most->axis) most->axis = n;
    if (rotation->kind == QB_ROTATION_HADAMARD)
        return qb_hadamard_create(rotation, p, axis, n, &d->hadamards[axis][i]);
    if (block < 1)
        return QB_FAIL(QB_ERR_USAGE, "rotation: blocks of 0 elements, expected at least 1");
    size_t bytes = d->gemm->packed_bytes(axis ? block : p->cols, block);
    if (bytes > most->packed_bytes) most->packed_bytes = bytes;
    return qb__cpu_alloc(d, n * block, sizeof(float), "bases", (void **)&d->bases[axis][i]);
}

static qb_status create_bases(qb_train_device *d)
{
    basis_sizes most = {1, 1, 1};
    size_t n = d->params->n;
    for (size_t axis = 0; axis < 2; axis++) {
        QB_TRY(qb__cpu_alloc(d, n, sizeof(float *), "bases", (void **)&d->bases[axis]));
        QB_TRY(qb__cpu_alloc(d, n, sizeof(qb_hadamard), "bases", (void **)&d->hadamards[axis]));
    }
    for (size_t i = 0; i < n; i++)
        for (size_t axis = 0; axis < 2; axis++) QB_TRY(create_basis(d, i, axis, &most));
    for (size_t i = 0; i < 2; i++)
        QB_TRY(qb__cpu_alloc(d, most.matrix, sizeof(float), "rotated gradient",
                             (void **)&d->rotated[i]));
    d->lanes_elems = 2 * most.axis * QB_HADAMARD_LANES;
    if (d->options->rotation.kind == QB_ROTATION_HADAMARD)
        return qb__cpu_alloc(d, qb_pool_n_threads(d->pool) * d->lanes_elems, sizeof(float),
                             "rotation", (void **)&d->lanes);
    return qb__cpu_alloc(d, most.packed_bytes, 1, "packed operands", (void **)&d->packed_turn);
}

qb_status qb__cpu_update_create(qb_train_device *d)
{
    QB_TRY(qb__cpu_alloc(d, n_norm_sums(d), sizeof(double), "norms", (void **)&d->norm_sums));
    return d->options->optimizer->rotated ? create_bases(d) : QB_OK;
}

void qb__cpu_update_destroy(qb_train_device *d)
{
    for (size_t axis = 0; axis < 2; axis++)
        for (size_t i = 0; d->hadamards[axis] && i < d->params->n; i++)
            qb_hadamard_destroy(&d->hadamards[axis][i]);
}

qb_status qb__cpu_set_rotation(qb_train_device *d, const qb_param *param, size_t axis,
                               const float *q)
{
    size_t n = axis ? param->cols : param->rows, block = block_elems(d, n);
    float *basis = d->bases[axis] ? d->bases[axis][param - d->params->list] : NULL;
    if (!basis) return QB_FAIL(QB_ERR_USAGE, "basis of axis %zu: this run takes none there", axis);
    for (size_t b = 0; b < n; b += block) {
        size_t size = n - b < block ? n - b : block;
        for (size_t i = b; i < b + size; i++, basis += size)
            memcpy(basis, q + i * n + b, size * sizeof *q);
    }
    return QB_OK;
}

/* ---- rotations ---- */

/* Rows or columns [b, b + size) of `from` by one block of the basis, or its transpose. */
static void turn_block(const qb_train_device *d, const qb_param *p, size_t axis, bool back,
                       const float *basis, size_t b, size_t size, const float *from, float *to)
{
    qb_gemm_f32_args product = {
        .m = p->rows, .n = p->cols, .k = size, .w = d->packed_turn, .y_stride = p->cols};
    if (axis == 0) { /* the block times rows of `from` */
        product.m = product.x_stride = size;
        product.x = basis;
        product.x_transposed = back;
        product.y = to + b * p->cols;
        qb__cpu_pack(d, from + b * p->cols, true, p->cols, size, d->packed_turn);
    } else {
        product.n = size;
        product.x = from + b;
        product.x_stride = p->cols;
        product.y = to + b;
        qb__cpu_pack(d, basis, back, size, size, d->packed_turn);
    }
    qb_gemm_f32_run(d->gemm, &product, 1, d->pool);
}

static void turn(const qb_train_device *d, const qb_param *p, size_t axis, bool back,
                 const float *basis, const float *from, float *to)
{
    size_t n = axis ? p->cols : p->rows, block = block_elems(d, n);
    for (size_t b = 0; b < n; b += block) {
        size_t size = n - b < block ? n - b : block;
        turn_block(d, p, axis, back, basis, b, size, from, to);
        basis += size * size;
    }
}

typedef struct hadamard_call {
    const qb_train_device *d;
    const qb_hadamard *h;
    bool back;
    size_t n_vectors, step, next; /* of elements along the axis; of vectors */
    const float *from;
    float *to;
} hadamard_call;

static void hadamard_task(void *context, size_t i, size_t thread_idx)
{
    enum { LANES = QB_HADAMARD_LANES };
    const hadamard_call *c = context;
    float *x = c->d->lanes + thread_idx * c->d->lanes_elems, *scratch = x + c->h->n * LANES;
    size_t first = i * LANES, left = c->n_vectors - first, lanes = left < LANES ? left : LANES;
    memset(x, 0, c->h->n * LANES * sizeof *x);
    for (size_t k = 0; k < c->h->n; k++)
        for (size_t l = 0; l < lanes; l++)
            x[k * LANES + l] = c->from[k * c->step + (first + l) * c->next];
    qb_hadamard_turn(c->h, c->back, x, scratch);
    for (size_t k = 0; k < c->h->n; k++)
        for (size_t l = 0; l < lanes; l++)
            c->to[k * c->step + (first + l) * c->next] = x[k * LANES + l];
}

static void turn_hadamard(const qb_train_device *d, const qb_param *p, size_t axis, bool back,
                          const qb_hadamard *h, const float *from, float *to)
{
    hadamard_call c = {.d = d, .h = h, .back = back, .from = from, .to = to};
    c.n_vectors = axis ? p->rows : p->cols;
    c.step = axis ? 1 : p->cols;
    c.next = axis ? p->cols : 1;
    qb_parallel_for(d->pool, (c.n_vectors + QB_HADAMARD_LANES - 1) / QB_HADAMARD_LANES,
                    hadamard_task, &c);
}

static bool is_rotated(const qb_train_device *d, const qb_param *p, size_t axis)
{
    return d->options->optimizer->rotated && qb_rotation_axis_elems(&d->options->rotation, p, axis);
}

/* One factor of (1) after the other; *at is where the matrix is before and after. */
static void turn_both(const qb_train_device *d, const qb_param *p, bool back, const float **at)
{
    size_t i = (size_t)(p - d->params->list);
    for (size_t axis = 0; axis < 2; axis++) {
        if (!is_rotated(d, p, axis)) continue;
        float *to = *at == d->rotated[0] ? d->rotated[1] : d->rotated[0];
        if (d->hadamards[axis][i].n)
            turn_hadamard(d, p, axis, back, &d->hadamards[axis][i], *at, to);
        else
            turn(d, p, axis, back, d->bases[axis][i], *at, to);
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
    for (size_t i = 0; i < 2; i++)
        states[i] = states[i] ? states[i] + (p->offset - d->share->first) : NULL;
    bool only_v = optimizer->rule == QB_RULE_RMSPROP;
    update_call c = {.u = u,
                     .g = d->arrays[QB_ARRAY_GRADIENTS] + p->offset,
                     .m = only_v ? NULL : states[0],
                     .v = only_v ? states[0] : states[1],
                     .w = d->arrays[QB_ARRAY_WEIGHTS] + p->offset};
    if (!is_rotated(d, p, 0) && !is_rotated(d, p, 1)) {
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

qb_status qb__cpu_set_update(qb_train_device *d, const qb_update *update)
{
    d->update = *update;
    return QB_OK;
}

qb_status qb__cpu_go_on(qb_train_device *d)
{
    d->halted = false;
    return QB_OK;
}

qb_status qb__cpu_update(qb_train_device *d, double clip)
{
    d->halted = d->halted || !isfinite(d->grad_norm) || !isfinite(d->loss_sum);
    if (d->halted) return QB_OK;
    qb_update with_decay = d->update, without = d->update;
    without.decay = 0;
    if (clip > 0 && d->grad_norm > clip)
        with_decay.grad_scale = without.grad_scale =
            (float)((double)d->update.grad_scale * clip / d->grad_norm);
    for (size_t i = 0; i < d->params->n; i++) {
        const qb_param *p = &d->params->list[i];
        if (!qb_train_owns(d->share, p)) continue;
        bool decays = p->is_matrix || d->options->settings.decay_all;
        update_param(d, p, decays ? &with_decay : &without);
    }
    return qb_comm_gather(d->share->comm, d->arrays[QB_ARRAY_WEIGHTS], d->share->bounds);
}
