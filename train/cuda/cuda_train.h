/* train/cuda/cuda_train.h - the GPU's row of train/ops.h, inside: what its files share.
 *
 * Weights, gradients and moments are f32 in the layout of train/params.h; products and activations
 * are bf16 with f32 sums, with full_f32 all is f32. A bf16 copy of the weights follows every
 * update. Activations are (m, width) matrices of row stride qb_cuda_stride(width). Everything is
 * queued on one stream; the host runs ahead by as many passes as there are slots for tokens. What a
 * step launches is kept as graphs: all that changes from step to step is read from memory. */
#ifndef QB_TRAIN_CUDA_CUDA_TRAIN_H
#define QB_TRAIN_CUDA_CUDA_TRAIN_H

#include "core/memory.h"
#include "kernels/cuda/attention_train.h"
#include "kernels/cuda/cublaslt_matmul.h"
#include "kernels/cuda/gemm_bf16.h"
#include "kernels/cuda/train.h"
#include "train/cuda/cuda_ranks.h"
#include "train/ops.h"

enum { QB__CUDA_SLOTS = 4, QB__CUDA_GRAPHS = 256 }; /* several ranks: one a layer */

/* Matrices of one shape at equal distances (a role's in all layers), turned by one batched product.
 */
typedef struct cuda_turn {
    size_t axis, rows, cols, n; /* n bases of rows x rows (axis 0) or cols x cols (axis 1) */
    size_t offset, stride;      /* elements: of the first matrix, to the next */
    size_t first_param;         /* its place in the list; the others follow at param_stride */
    size_t param_stride;
    float *q;         /* (n, size, size) */
    bool first, last; /* of the axes that the matrices are turned on */
    bool decays;
} cuda_turn;

/* Host memory, page-locked, on its way to or from the device until `moved` has happened. */
typedef struct cuda_slot {
    void *host;
    void *moved; /* cudaEvent_t */
    bool used;
} cuda_slot;

/* Launches that are made again and again; exec NULL: they were made once, one by one. */
typedef struct cuda_graph {
    qb_train_repeat key;
    void *exec; /* cudaGraphExec_t */
} cuda_graph;

struct qb_train_device {
    const qb_params *params;
    const qb_config *c;
    const qb_trainer_options *options;
    const qb_train_share *share;
    qb_cuda_ranks *ranks; /* NULL alone, and before the first step */
    int index;
    qb_cuda_stream stream;
    qb_cuda_dtype type;
    size_t max_rows, batch, m; /* m = batch * context: rows of the pass */

    qb_blocks blocks;              /* device memory, freed by destroy */
    float *arrays[QB_ARRAY_COUNT]; /* of states the own elements alone */
    uint16_t *copy;                /* bf16 weights; NULL with full_f32 */

    int32_t *tokens; /* device: tokens, n_groups, order, start, group_token, as in a slot */
    int32_t *n_groups, *order, *start, *group_token;
    size_t slot_elems;
    cuda_slot token_slots[QB__CUDA_SLOTS], rate_slots[QB__CUDA_SLOTS],
        totals_slots[QB_TRAIN_TOTALS];
    size_t next_tokens, next_rates;
    qb_update update;           /* the one to come; what changes of it is in */
    qb_cuda_train_rates *rates; /* device */
    cuda_graph graphs[QB__CUDA_GRAPHS];
    size_t n_graphs;
    int32_t *counts; /* host scratch (vocab) */

    float *cosine, *sine; /* rope */
    float *partials;      /* of norms and column sums */
    float *losses;        /* (max_rows) */
    double *norm_partials;
    void *logits; /* (head_rows, stride of the vocabulary), or exponentials in their place: */
    size_t head_rows;
    bool has_exponentials;
    bool owns_act; /* products about the activation are our own: cuda_train_products.c */
    qb_cuda_train_softmax softmax; /* the arrays of the rows */
    float *sums, *maxima;
    void *scaled; /* (head_rows, d_model) */
    void *d_act;  /* (m, d_ff): SwiGLU's gradient before it is split; else NULL */
    void *attention_workspace;
    qb_cuda_train_totals *totals; /* device */

    qb_cuda_train_piece *pieces; /* device */
    size_t n_pieces;
    size_t *piece_ends; /* (n_chunks): cuda_ranks.h's, alone 1 */
    size_t n_chunks;
    /* Beside the bf16 weights of all ranks, what is read unrounded: cuda_train_share.c. */
    uint64_t *unrounded_places; /* device (n_unrounded) */
    float *unrounded;
    size_t n_unrounded, *unrounded_bounds;
    bool lacks_weights; /* others' f32 weights are those of an earlier step */
    /* Where element 0 would be: of these too the own elements alone are there. half_turned:
     * matrices turned on one of two axes. */
    float *rotated, *half_turned;
    cuda_turn *turns;
    size_t n_turns;
};

qb_status qb__cuda_train_alloc(qb_train_device *d, size_t n_elems, size_t elem_bytes,
                               const char *what, void **out_dev);
#define QB__CUDA_TRAIN_NEW(d, ptr, n, what)                                                        \
    qb__cuda_train_alloc((d), (n), sizeof **(ptr), (what), (void **)(ptr))

/* Weights as the products read them. NULL for QB_NO_PARAM. */
static inline const void *qb__cuda_train_weights(const qb_train_device *d, size_t offset)
{
    if (offset == QB_NO_PARAM) return NULL;
    return d->copy ? (const void *)(d->copy + offset)
                   : (const void *)(d->arrays[QB_ARRAY_WEIGHTS] + offset);
}
static inline float *qb__cuda_train_array(const qb_train_device *d, qb_train_array array,
                                          size_t offset)
{
    return offset == QB_NO_PARAM || !d->arrays[array] ? NULL : d->arrays[array] + offset;
}
/* Memory of the own elements, as if the others lay before it: kernels count from element 0. */
static inline float *qb__cuda_train_from_zero(const qb_train_device *d, float *own)
{
    return own ? (float *)((uintptr_t)own - d->share->first * sizeof *own) : NULL;
}
static inline size_t qb__cuda_train_own_elems(const qb_train_device *d)
{
    return d->share->end - d->share->first;
}
static inline size_t qb__cuda_train_head_offset(const qb_train_device *d)
{
    return qb_params_find(d->params, d->c->tied_head ? QB_ROLE_TOK_EMBD : QB_ROLE_HEAD, 0)->offset;
}

qb_status qb__cuda_train_linear_forward(qb_train_device *d, const qb_train_linear *linear,
                                        const void *x, void *pre, void *y);
qb_status qb__cuda_train_linear_backward_input(qb_train_device *d, const qb_train_linear *linear,
                                               const void *dy, const void *pre, bool accumulate,
                                               void *dx);
qb_status qb__cuda_train_linear_backward_weights(qb_train_device *d, const qb_train_linear *linear,
                                                 const void *x, const void *dy);
qb_status qb__cuda_train_products_create(qb_train_device *d);
qb_status qb__cuda_train_classifier(qb_train_device *d, const void *h, float scale, void *dh);

/* For `bytes`, which the slot's last user is through with when open returns. */
qb_status qb__cuda_train_slot_create(cuda_slot *slot, size_t bytes);
void qb__cuda_train_slot_destroy(cuda_slot *slot);
qb_status qb__cuda_train_slot_open(const cuda_slot *slot);
/* After a copy to or from it was queued. */
qb_status qb__cuda_train_slot_close(qb_train_device *d, cuda_slot *slot);
qb_status qb__cuda_train_repeat(qb_train_device *d, const qb_train_repeat *repeat);
void qb__cuda_train_graphs_destroy(qb_train_device *d);

qb_status qb__cuda_train_update_create(qb_train_device *d);
void qb__cuda_train_update_destroy(qb_train_device *d);
qb_status qb__cuda_train_set_rotation(qb_train_device *d, const qb_param *param, size_t axis,
                                      const float *q);
qb_status qb__cuda_train_set_update(qb_train_device *d, const qb_update *update);
qb_status qb__cuda_train_update(qb_train_device *d, double clip);
qb_status qb__cuda_train_go_on(qb_train_device *d);

qb_status qb__cuda_train_share_create(qb_train_device *d);
void qb__cuda_train_share_destroy(qb_train_device *d);
qb_status qb__cuda_train_share_gradients(qb_train_device *d, size_t first, size_t end);
qb_status qb__cuda_train_gradient_norm(qb_train_device *d);
/* Weights as the products read them, chunk by chunk when the own ones are updated; then the rest.
 */
qb_status qb__cuda_train_send_weights(qb_train_device *d, size_t chunk_idx);
qb_status qb__cuda_train_send_unrounded(qb_train_device *d);
qb_status qb__cuda_train_await_weights(qb_train_device *d);
qb_status qb__cuda_train_fetch_weights(qb_train_device *d);

#endif
