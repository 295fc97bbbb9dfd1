/* train/cuda/cuda_train_share.c - what GPUs of several ranks send each other in a step: gradients
 * to their owners, and the updated weights back.
 *
 * Of weights travels what is read before the next update: in bf16 the rounded copy, and unrounded
 * what is no matrix (gains and the like, which are read as they are). f32 weights of others are
 * fetched when a checkpoint or an evaluation wants them. */
#include "core/memory.h"
#include "train/cuda/cuda_train.h"

#ifdef QB_HAVE_CUBLASLT

/* ---- what is read unrounded ---- */

static size_t count_unrounded(const qb_train_device *d, size_t rank)
{
    size_t n = 0;
    for (size_t i = 0; i < d->params->n; i++) {
        const qb_param *p = &d->params->list[i];
        bool own = p->offset >= d->share->bounds[rank] && p->offset < d->share->bounds[rank + 1];
        if (own && !p->is_matrix) n += p->rows * p->cols;
    }
    return n;
}

static qb_status send_places(qb_train_device *d)
{
    uint64_t *places;
    size_t n = 0;
    QB_TRY(QB_NEW(&places, d->n_unrounded, "places of weights"));
    for (size_t i = 0; i < d->params->n; i++) {
        const qb_param *p = &d->params->list[i];
        for (size_t j = 0; !p->is_matrix && j < p->rows * p->cols; j++) places[n++] = p->offset + j;
    }
    qb_status status = qb_cuda_upload(d->unrounded_places, places, n * sizeof *places, d->stream);
    if (status == QB_OK) status = qb_cuda_sync(d->stream);
    qb_free(places);
    return status;
}

qb_status qb__cuda_train_share_create(qb_train_device *d)
{
    const size_t n_ranks = qb_comm_size(d->share->comm);
    if (n_ranks == 1 || !d->copy) return QB_OK;
    QB_TRY(QB_NEW(&d->unrounded_bounds, n_ranks + 1, "places of weights"));
    for (size_t r = 0; r < n_ranks; r++) {
        d->unrounded_bounds[r] = d->n_unrounded;
        d->n_unrounded += count_unrounded(d, r);
    }
    d->unrounded_bounds[n_ranks] = d->n_unrounded;
    if (!d->n_unrounded) return QB_OK;
    QB_TRY(QB__CUDA_TRAIN_NEW(d, &d->unrounded_places, d->n_unrounded, "places of weights"));
    QB_TRY(QB__CUDA_TRAIN_NEW(d, &d->unrounded, d->n_unrounded, "weights"));
    return send_places(d);
}

void qb__cuda_train_share_destroy(qb_train_device *d)
{
    qb_free(d->unrounded_bounds);
}

/* ---- gradients ---- */

/* What carries them is set up by the first step, when every rank has got its memory. */
qb_status qb__cuda_train_share_gradients(qb_train_device *d, size_t first, size_t end)
{
    if (!d->ranks)
        QB_TRY(qb_cuda_ranks_create(d->share, d->options->deterministic, d->index, d->stream,
                                    &d->ranks));
    return qb_cuda_ranks_reduce(d->ranks, d->arrays[QB_ARRAY_GRADIENTS], first, end);
}

qb_status qb__cuda_train_gradient_norm(qb_train_device *d)
{
    if (d->ranks) QB_TRY(qb_cuda_ranks_join(d->ranks));
    QB_TRY(qb_cuda_train_norm_of(d->arrays[QB_ARRAY_GRADIENTS] + d->share->first,
                                 qb__cuda_train_own_elems(d), d->norm_partials, d->totals,
                                 d->stream));
    return d->ranks ? qb_cuda_ranks_totals(d->ranks, d->totals) : QB_OK;
}

/* ---- weights ---- */

static qb_gather all_weights(const qb_train_device *d, bool rounded)
{
    return (qb_gather){.x = rounded ? (void *)d->copy : (void *)d->arrays[QB_ARRAY_WEIGHTS],
                       .elem_bytes = rounded ? sizeof *d->copy : sizeof(float),
                       .bounds = d->share->bounds};
}

qb_status qb__cuda_train_send_weights(qb_train_device *d, size_t chunk_idx)
{
    qb_gather weights = all_weights(d, d->copy);
    weights.chunk_idx = chunk_idx;
    d->lacks_weights = d->copy;
    return qb_cuda_ranks_gather(d->ranks, &weights);
}

qb_status qb__cuda_train_send_unrounded(qb_train_device *d)
{
    const size_t rank = qb_comm_rank(d->share->comm), *bounds = d->unrounded_bounds;
    float *weights = d->arrays[QB_ARRAY_WEIGHTS];
    if (!d->n_unrounded) return QB_OK;
    QB_TRY(qb_cuda_ranks_pick(weights, d->unrounded_places, bounds[rank], bounds[rank + 1],
                              d->unrounded, d->stream));
    qb_gather some = {.x = d->unrounded, .elem_bytes = sizeof *weights, .bounds = bounds};
    const size_t n_chunks = qb_cuda_ranks_chunks(bounds, qb_comm_size(d->share->comm));
    for (; some.chunk_idx < n_chunks; some.chunk_idx++)
        QB_TRY(qb_cuda_ranks_gather(d->ranks, &some));
    return qb_cuda_ranks_place(d->unrounded, d->unrounded_places, d->n_unrounded, weights,
                               qb_cuda_ranks_behind(d->ranks));
}

qb_status qb__cuda_train_await_weights(qb_train_device *d)
{
    return d->ranks ? qb_cuda_ranks_join(d->ranks) : QB_OK;
}

qb_status qb__cuda_train_fetch_weights(qb_train_device *d)
{
    qb_gather weights = all_weights(d, false);
    QB_TRY(qb_cuda_use(d->index));
    if (!d->lacks_weights) return qb__cuda_train_await_weights(d); /* they may be on their way */
    for (; weights.chunk_idx < d->n_chunks; weights.chunk_idx++)
        QB_TRY(qb_cuda_ranks_gather(d->ranks, &weights));
    d->lacks_weights = false;
    return qb__cuda_train_await_weights(d);
}

#endif
