/* kernels/attention.h - causal attention over a KV cache, with grouped heads.
 *
 *     s[i, j] = scale * q_i . k_j,  j < n_keys(i)              p = softmax kind (core/kinds.h) of s
 *     out_i   = sum over j of p[i, j] * v_j                                                     (1)
 *
 * Query head h uses key head h / (n_heads / n_kv_heads). A query sees the keys up to its own; those
 * of the free prefix see all of it, as far as this call has it (qb_attention_n_keys). An empty row
 * gives zeros. f32; a query's result depends on its own keys, not on the batch, on n_q or on the
 * number of threads within one row. */
#ifndef QB_KERNELS_ATTENTION_H
#define QB_KERNELS_ATTENTION_H

#include "core/kinds.h"
#include "core/threads.h"
#include "kernels/registry.h"

#ifdef __cplusplus
extern "C" {
#endif

#define QB_ATTENTION_MAX_HEAD_DIM 256

typedef struct qb_attention_args {
    size_t batch, n_q, n_past;  /* n_q new tokens a sequence, after n_past in the cache */
    size_t n_heads, n_kv_heads; /* the former is a multiple of the latter */
    size_t head_dim;            /* 1 to QB_ATTENTION_MAX_HEAD_DIM */
    qb_softmax_kind softmax;
    float gamma, zeta;  /* clipped: gamma <= 0, zeta >= 1 */
    const float *sink;  /* sink: (n_heads) logits */
    size_t free_prefix; /* positions, from 0, that see each other */
    float scale;
    const float *q; /* token b * n_q + i, head h at q + token * q_stride + h * head_dim */
    size_t q_stride;
    const float *k, *v; /* sequence b, position j, key head g at
                           k + b * kv_batch_stride + j * kv_stride + g * head_dim */
    size_t kv_stride, kv_batch_stride;
    float *out; /* as q; may not overlap q */
    size_t out_stride;
    float *scratch; /* scratch_elems(args) a thread, dense by thread; 64-byte aligned */
} qb_attention_args;

/* Keys that query i sees, from position 0 on; never fewer for a later query. */
static inline size_t qb_attention_n_keys(const qb_attention_args *args, size_t i)
{
    size_t own = args->n_past + i + 1, all = args->n_past + args->n_q;
    size_t prefix = args->free_prefix < all ? args->free_prefix : all;
    return own > prefix ? own : prefix;
}

typedef struct qb_attention_row {
    qb_kernel_info info;
    size_t (*scratch_elems)(
        const qb_attention_args *args); /* a thread; grows with n_past + n_q, head_dim */
    size_t (*n_tasks)(const qb_attention_args *args, size_t n_threads);
    void (*task)(const qb_attention_args *args, size_t i, size_t n_tasks, size_t thread_idx);
} qb_attention_row;
extern const qb_attention_row qb_attention_kernels[];

/* The whole of `args` over the pool (NULL = one thread). Never allocates; exact for any number of
 * threads. */
void qb_attention_run(const qb_attention_row *row, const qb_attention_args *args, qb_pool *pool);

#ifdef __cplusplus
}
#endif
#endif
