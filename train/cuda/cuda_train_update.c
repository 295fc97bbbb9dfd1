/* train/cuda/cuda_train_update.c - the optimiser's step on the GPU.
 *
 * Rotated matrices (OrthoAdam, arXiv:2410.17174, Algorithm 1), Q_r and Q_c the bases of rows and
 * columns, where they have one:
 *     G' = Q_r G Q_c^T    delta' = rule(G'; moments)    W <- keep W - lr Q_r^T delta' Q_c       (1)
 * The matrices of a role in all layers are one batched product. The last product of the way back
 * has -lr and keep as its factors and the weights as its output, so that turning back is the
 * update. Products are in tf32: each factor is rounded to 11 bits, a relative error of an entry of
 * at most 2^-10 |Q| |G| / |Q G|, which for Haar Q averages out to about 2^-11 / sqrt(n) of the
 * row's norm. */
#include "core/memory.h"
#include "train/cuda/cuda_train.h"

#ifdef QB_HAVE_CUBLASLT

/* ---- what is turned ---- */

static bool is_rotated(const qb_train_device *d, const qb_param *p)
{
    const qb_rotation *r = &d->options->rotation;
    return d->options->optimizer->rotated &&
           (qb_rotation_axis_elems(r, p, 0) || qb_rotation_axis_elems(r, p, 1));
}

static bool decays(const qb_train_device *d, const qb_param *p)
{
    return p->is_matrix || d->options->settings.decay_all;
}

/* The parameter of the same role in another layer that one product can take with it: NULL where
 * there is none, another rank has it, or layers that have attention and such as have none put it at
 * another distance. */
static const qb_param *neighbour(const qb_train_device *d, const qb_param *p, size_t layer)
{
    const qb_param *q = qb_params_find(d->params, p->role, layer);
    bool alike =
        qb_config_has_attention(d->c, layer) == qb_config_has_attention(d->c, p->layer_idx);
    return q && alike && qb_train_owns(d->share, q) ? q : NULL;
}

static const qb_param *next_layer(const qb_train_device *d, const qb_param *p)
{
    return qb_roles[p->role].per_layer ? neighbour(d, p, p->layer_idx + 1) : NULL;
}

/* Of a run of neighbouring layers. */
static bool is_first_layer(const qb_train_device *d, const qb_param *p)
{
    return !qb_roles[p->role].per_layer || !p->layer_idx || !neighbour(d, p, p->layer_idx - 1);
}

static size_t n_layers_from(const qb_train_device *d, const qb_param *p)
{
    size_t n = 1;
    while ((p = next_layer(d, p))) n++;
    return n;
}

static cuda_turn turn_of(const qb_train_device *d, const qb_param *p, size_t axis)
{
    const qb_rotation *r = &d->options->rotation;
    const qb_param *next = next_layer(d, p);
    return (cuda_turn){.axis = axis,
                       .rows = p->rows,
                       .cols = p->cols,
                       .n = n_layers_from(d, p),
                       .offset = p->offset,
                       .stride = next ? next->offset - p->offset : 0,
                       .first_param = (size_t)(p - d->params->list),
                       .param_stride = next ? (size_t)(next - p) : 1,
                       .first = axis == 0 || !qb_rotation_axis_elems(r, p, 0),
                       .last = axis == 1 || !qb_rotation_axis_elems(r, p, 1),
                       .decays = decays(d, p)};
}

static size_t turn_size(const cuda_turn *t)
{
    return t->axis ? t->cols : t->rows;
}

/* Memory for own elements, as if the others lay before it. */
static qb_status create_own(qb_train_device *d, const char *what, float **out)
{
    QB_TRY(QB__CUDA_TRAIN_NEW(d, out, qb__cuda_train_own_elems(d), what));
    *out = qb__cuda_train_from_zero(d, *out);
    return QB_OK;
}

/* Layers are laid out alike, so the parameters of the first that is owned stand for all. */
static qb_status create_turns(qb_train_device *d)
{
    bool twice = false;
    QB_TRY(QB_NEW_ZERO(&d->turns, 2 * d->params->n, "bases"));
    for (size_t axis = 0; axis < 2; axis++)
        for (size_t i = 0; i < d->params->n; i++) {
            const qb_param *p = &d->params->list[i];
            if (!qb_train_owns(d->share, p) || !is_first_layer(d, p)) continue;
            if (!qb_rotation_axis_elems(&d->options->rotation, p, axis)) continue;
            cuda_turn *t = &d->turns[d->n_turns++];
            *t = turn_of(d, p, axis);
            twice = twice || !t->first || !t->last;
            size_t size = turn_size(t);
            QB_TRY(QB__CUDA_TRAIN_NEW(d, &t->q, t->n * size * size, "bases of OrthoAdam"));
        }
    QB_TRY(create_own(d, "rotated gradients", &d->rotated));
    return twice ? create_own(d, "rotated gradients", &d->half_turned) : QB_OK;
}

static size_t n_pieces_of(const qb_train_device *d, const qb_param *p)
{
    if (!qb_train_owns(d->share, p)) return 0;
    return (p->rows * p->cols + QB_CUDA_TRAIN_PIECE - 1) / QB_CUDA_TRAIN_PIECE;
}

/* How many pieces begin in the first chunk, in the first two, and so on: no own element of a chunk
 * is in a later piece. */
static qb_status create_chunks(qb_train_device *d, const qb_cuda_train_piece *pieces)
{
    const size_t n_ranks = qb_comm_size(d->share->comm);
    const size_t each = n_ranks > 1 ? qb_cuda_ranks_chunk_elems(n_ranks) : d->params->n_elems;
    d->n_chunks = n_ranks > 1 ? qb_cuda_ranks_chunks(d->share->bounds, n_ranks) : 1;
    QB_TRY(QB_NEW(&d->piece_ends, d->n_chunks, "pieces of parameters"));
    for (size_t i = 0, n = 0; i < d->n_chunks; i++) {
        while (n < d->n_pieces && pieces[n].first < d->share->first + (i + 1) * each) n++;
        d->piece_ends[i] = n;
    }
    return QB_OK;
}

static qb_status send_pieces(qb_train_device *d, const qb_cuda_train_piece *pieces)
{
    if (!d->n_pieces) return QB_OK; /* more ranks than parameters */
    QB_TRY(QB__CUDA_TRAIN_NEW(d, &d->pieces, d->n_pieces, "pieces of parameters"));
    QB_TRY(qb_cuda_upload(d->pieces, pieces, d->n_pieces * sizeof *pieces, d->stream));
    return qb_cuda_sync(d->stream);
}

static qb_status create_pieces(qb_train_device *d)
{
    qb_cuda_train_piece *pieces;
    for (size_t i = 0; i < d->params->n; i++) d->n_pieces += n_pieces_of(d, &d->params->list[i]);
    QB_TRY(QB_NEW(&pieces, d->n_pieces + 1, "pieces of parameters"));
    size_t n = 0;
    for (size_t i = 0; i < d->params->n; i++) {
        const qb_param *p = &d->params->list[i];
        if (!qb_train_owns(d->share, p)) continue;
        for (size_t at = 0; at < p->rows * p->cols; at += QB_CUDA_TRAIN_PIECE) {
            size_t left = p->rows * p->cols - at;
            pieces[n++] = (qb_cuda_train_piece){
                .first = p->offset + at,
                .n_elems = (uint32_t)(left < QB_CUDA_TRAIN_PIECE ? left : QB_CUDA_TRAIN_PIECE),
                .decays = decays(d, p),
                .rotated = is_rotated(d, p)};
        }
    }
    qb_status status = send_pieces(d, pieces);
    if (status == QB_OK) status = create_chunks(d, pieces);
    qb_free(pieces);
    return status;
}

qb_status qb__cuda_train_update_create(qb_train_device *d)
{
    QB_TRY(create_pieces(d));
    QB_TRY(QB__CUDA_TRAIN_NEW(d, &d->norm_partials, QB_CUDA_TRAIN_SUM_PARTIALS, "norms"));
    QB_TRY(QB__CUDA_TRAIN_NEW(d, &d->rates, 1, "rates"));
    for (size_t i = 0; i < QB__CUDA_SLOTS; i++)
        QB_TRY(qb__cuda_train_slot_create(&d->rate_slots[i], sizeof *d->rates));
    return d->options->optimizer->rotated ? create_turns(d) : QB_OK;
}

void qb__cuda_train_update_destroy(qb_train_device *d)
{
    qb_free(d->turns);
    qb_free(d->piece_ends);
}

qb_status qb__cuda_train_set_rotation(qb_train_device *d, const qb_param *param, size_t axis,
                                      const float *q)
{
    const size_t at = (size_t)(param - d->params->list);
    for (size_t i = 0; i < d->n_turns; i++) {
        const cuda_turn *t = &d->turns[i];
        if (t->axis != axis || at < t->first_param) continue;
        const size_t steps = (at - t->first_param) / t->param_stride;
        if ((at - t->first_param) % t->param_stride || steps >= t->n) continue;
        if (d->params->list[at].role != d->params->list[t->first_param].role) continue;
        const size_t elems = turn_size(t) * turn_size(t);
        QB_TRY(qb_cuda_upload(t->q + steps * elems, q, elems * sizeof *q, d->stream));
        return qb_cuda_sync(d->stream);
    }
    return QB_FAIL(QB_ERR_USAGE, "basis of axis %zu: this run does not rotate it", axis);
}

/* ---- the step ---- */

/* One factor of (1) for all matrices of a turn: `to` = Q from, Q^T from, from Q^T or from Q. */
static qb_lt_matmul_args turn_product(const qb_train_device *d, const cuda_turn *t, bool back,
                                      const float *from, float *to)
{
    const size_t size = turn_size(t);
    qb_lt_matmul_args product = {.m = t->rows,
                                 .n = t->cols,
                                 .k = size,
                                 .in = QB_CUDA_F32,
                                 .out = QB_CUDA_F32,
                                 .arithmetic = d->options->full_f32 ? QB_LT_STRICT : QB_LT_TF32,
                                 .d = to + t->offset,
                                 .d_stride = t->cols,
                                 .d_batch_stride = t->stride,
                                 .batch = t->n,
                                 .alpha = 1};
    if (t->axis == 0) {
        product.x = t->q, product.x_stride = size, product.x_batch_stride = size * size;
        product.x_is_km = back;
        product.w = from + t->offset, product.w_stride = t->cols;
        product.w_batch_stride = t->stride;
        product.w_is_kn = true;
    } else {
        product.x = from + t->offset, product.x_stride = t->cols;
        product.x_batch_stride = t->stride;
        product.w = t->q, product.w_stride = size, product.w_batch_stride = size * size;
        product.w_is_kn = back;
    }
    return product;
}

static qb_status turn_gradients(const qb_train_device *d)
{
    for (size_t i = 0; i < d->n_turns; i++) {
        const cuda_turn *t = &d->turns[i];
        const float *from = t->first ? d->arrays[QB_ARRAY_GRADIENTS] : d->half_turned;
        float *to = t->last ? d->rotated : d->half_turned;
        qb_lt_matmul_args product = turn_product(d, t, false, from, to);
        QB_TRY(qb_lt_matmul(&product, d->stream));
    }
    return QB_OK;
}

static qb_status turn_back(const qb_train_device *d)
{
    for (size_t i = 0; i < d->n_turns; i++) {
        const cuda_turn *t = &d->turns[i];
        const float *from = t->first ? d->rotated : d->half_turned;
        float *to = t->last ? d->arrays[QB_ARRAY_WEIGHTS] : d->half_turned;
        qb_lt_matmul_args product = turn_product(d, t, true, from, to);
        if (t->last) {
            product.alpha_dev = &d->totals->minus_lr;
            product.beta_dev = t->decays ? &d->totals->keep : &d->totals->keep_all;
        }
        QB_TRY(qb_lt_matmul(&product, d->stream));
    }
    return QB_OK;
}

qb_status qb__cuda_train_set_update(qb_train_device *d, const qb_update *u)
{
    cuda_slot *slot = &d->rate_slots[d->next_rates++ % QB__CUDA_SLOTS];
    qb_cuda_train_rates *host = slot->host;
    QB_TRY(qb_cuda_use(d->index));
    QB_TRY(qb__cuda_train_slot_open(slot));
    d->update = *u;
    *host = (qb_cuda_train_rates){.inv_bias1 = u->inv_bias1,
                                  .inv_sqrt_bias2 = u->inv_sqrt_bias2,
                                  .lr = u->lr,
                                  .decay = u->decay,
                                  .grad_scale = u->grad_scale};
    QB_TRY(qb_cuda_upload(d->rates, host, sizeof *host, d->stream));
    return qb__cuda_train_slot_close(d, slot);
}

qb_status qb__cuda_train_go_on(qb_train_device *d)
{
    return qb_cuda_zero(&d->totals->halted, sizeof d->totals->halted, d->stream);
}

static qb_cuda_train_update update_args(const qb_train_device *d, double clip)
{
    const qb_update *u = &d->update;
    static const qb_cuda_rule rules[QB_RULE_COUNT] = {[QB_RULE_ADAM] = QB_CUDA_ADAM,
                                                      [QB_RULE_RMSPROP] = QB_CUDA_RMSPROP,
                                                      [QB_RULE_SGD] = QB_CUDA_SGD};
    float *state0 = qb__cuda_train_from_zero(d, d->arrays[QB_ARRAY_STATE0]);
    float *state1 = qb__cuda_train_from_zero(d, d->arrays[QB_ARRAY_STATE1]);
    const bool only_v = u->rule == QB_RULE_RMSPROP;
    return (qb_cuda_train_update){.rule = rules[u->rule],
                                  .beta1 = u->beta1,
                                  .beta2 = u->beta2,
                                  .one_minus_beta1 = u->one_minus_beta1,
                                  .one_minus_beta2 = u->one_minus_beta2,
                                  .eps = u->eps,
                                  .momentum = u->momentum,
                                  .clip = (float)clip,
                                  .rates = d->rates,
                                  .pieces = d->pieces,
                                  .n_pieces = d->n_pieces,
                                  .gradients = d->arrays[QB_ARRAY_GRADIENTS],
                                  .rotated = d->rotated,
                                  .weights = d->arrays[QB_ARRAY_WEIGHTS],
                                  .m = only_v ? NULL : state0,
                                  .v = only_v ? state0 : state1,
                                  .copy = d->copy,
                                  .totals = d->totals};
}

/* A chunk of the own weights at a time, which sets out while the next is worked out. */
static qb_status apply(qb_train_device *d, const qb_cuda_train_update *args)
{
    size_t done = 0;
    for (size_t i = 0; i < d->n_chunks; i++) {
        qb_cuda_train_update part = *args;
        part.pieces += done, part.n_pieces = d->piece_ends[i] - done;
        done = d->piece_ends[i];
        if (part.n_pieces) QB_TRY(qb_cuda_train_apply(&part, d->stream));
        if (d->ranks && !d->n_turns) QB_TRY(qb__cuda_train_send_weights(d, i));
    }
    return QB_OK;
}

static qb_status round_own(const qb_train_device *d)
{
    const size_t first = d->share->first;
    if (!d->copy) return QB_OK;
    return qb_cuda_train_round(d->arrays[QB_ARRAY_WEIGHTS] + first, d->copy + first,
                               qb__cuda_train_own_elems(d), d->stream);
}

static qb_status finish_turned(qb_train_device *d)
{
    QB_TRY(turn_back(d));
    QB_TRY(round_own(d));
    for (size_t i = 0; d->ranks && i < d->n_chunks; i++) QB_TRY(qb__cuda_train_send_weights(d, i));
    return QB_OK;
}

qb_status qb__cuda_train_update(qb_train_device *d, double clip)
{
    qb_cuda_train_update args = update_args(d, clip);
    QB_TRY(qb_cuda_train_scales(&args, d->stream));
    QB_TRY(turn_gradients(d));
    QB_TRY(apply(d, &args));
    if (d->n_turns) QB_TRY(finish_turned(d));
    return d->ranks ? qb__cuda_train_send_unrounded(d) : QB_OK;
}

#endif
