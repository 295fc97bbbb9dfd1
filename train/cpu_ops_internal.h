/* train/cpu_ops_internal.h - the device of train/ops.h on the processor, in f32: what its files
 * share.
 *
 * Every sum has a fixed order that depends on the shapes alone: work is cut by rows, columns or
 * heads, each part written by one task, and parts are added up in order. So results are the same
 * bits at any number of threads. */
#ifndef QB_TRAIN_CPU_OPS_INTERNAL_H
#define QB_TRAIN_CPU_OPS_INTERNAL_H

#include "core/memory.h"
#include "kernels/gemm_f32.h"
#include "kernels/gradient.h"
#include "kernels/pointwise.h"
#include "train/ops.h"

struct qb_train_device {
    const qb_params *params;
    const qb_config *c;
    const qb_trainer_options *options;
    const qb_train_share *share;
    qb_pool *pool;
    const qb_pointwise_row *pointwise;
    const qb_gradient_row *gradient;
    const qb_gemm_f32_row *gemm;

    float *arrays[QB_ARRAY_COUNT]; /* of states the own elements alone */
    /* Bases of rows and of columns, (params->n) each: blocks along the diagonal one after the other
     * (one of all n, but for BLOCK), or factors; NULL or n = 0: that axis stays. */
    float **bases[2];
    qb_hadamard *hadamards[2];
    float *rotated[2];  /* scratch of the update: a matrix each */
    float *packed_turn; /* operand of a rotation */
    float *lanes;       /* of the Hadamard transform: 2 (n, QB_HADAMARD_LANES) a thread */
    size_t lanes_elems; /* a thread */

    size_t max_rows;
    size_t batch, m; /* of the tokens loaded last; m = batch * context */
    int32_t *tokens;
    float *cosine, *sine, *minus_sine;         /* (context, D / 2) */
    double *row_loss;                          /* (max_rows) */
    float *packed, *packed_head, *packed_back; /* operands of products */
    float *logits;                             /* (head_rows, V) */
    size_t head_rows;
    float *partial_sums;      /* of gains and biases of norms: (blocks of rows, 2 C) */
    float *attention_scratch; /* of each thread, laid out by cpu_attention.c */
    double *sink_sums;        /* (micro_batch, H) */
    double *norm_sums;        /* squares of the gradient, a chunk each */

    double loss_sum, grad_norm;
    qb_train_totals totals[QB_TRAIN_TOTALS];
    qb_update update; /* the one to come */
    bool halted;      /* a loss or norm was not finite */
    qb_blocks blocks; /* everything allocated */
};

/* Owned by the device, cleared. */
qb_status qb__cpu_alloc(qb_train_device *d, size_t n_elems, size_t elem_bytes, const char *what,
                        void **out);

enum { QB__CPU_ROWS = 32 }; /* of a task that goes through rows */

static inline const float *qb__cpu_weights(const qb_train_device *d, size_t offset)
{
    return offset == QB_NO_PARAM ? NULL : d->arrays[QB_ARRAY_WEIGHTS] + offset;
}
static inline float *qb__cpu_gradients(const qb_train_device *d, size_t offset)
{
    return offset == QB_NO_PARAM ? NULL : d->arrays[QB_ARRAY_GRADIENTS] + offset;
}

/* ---- train/cpu_linear.c ---- */
qb_status qb__cpu_linear_create(qb_train_device *d);
/* packed = w as product()'s operand: (n, k) rows, or (k, n) rows of that stride where transposed.
 */
void qb__cpu_pack(const qb_train_device *d, const float *w, bool transposed, size_t n, size_t k,
                  float *packed);
qb_status qb__cpu_linear_forward(qb_train_device *d, const qb_train_linear *l, const void *x,
                                 void *pre, void *y);
qb_status qb__cpu_linear_backward_input(qb_train_device *d, const qb_train_linear *l,
                                        const void *dy, const void *pre, bool accumulate, void *dx);
qb_status qb__cpu_linear_backward_weights(qb_train_device *d, const qb_train_linear *l,
                                          const void *x, const void *dy);
qb_status qb__cpu_classifier(qb_train_device *d, const void *h, float scale, void *dh);

/* ---- train/cpu_attention.c ---- */
qb_status qb__cpu_attention_create(qb_train_device *d);
qb_status qb__cpu_attention_forward(qb_train_device *d, const qb_train_attention *a);
qb_status qb__cpu_attention_backward(qb_train_device *d, const qb_train_attention *a,
                                     const void *dout, void *dqkv);

/* ---- train/cpu_update.c ---- */
qb_status qb__cpu_update_create(qb_train_device *d);
void qb__cpu_update_destroy(qb_train_device *d);
qb_status qb__cpu_set_rotation(qb_train_device *d, const qb_param *param, size_t axis,
                               const float *q);
qb_status qb__cpu_share_gradients(qb_train_device *d, size_t first, size_t end);
qb_status qb__cpu_gradient_norm(qb_train_device *d);
qb_status qb__cpu_set_update(qb_train_device *d, const qb_update *update);
qb_status qb__cpu_update(qb_train_device *d, double clip);
qb_status qb__cpu_go_on(qb_train_device *d);

#endif
