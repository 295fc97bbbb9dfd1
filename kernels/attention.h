/* kernels/attention.h - causal attention over a KV cache, with grouped heads.
 *
 *     s[i, j] = scale * q_i . k_j,  j <= n_past + i            p = softmax kind (core/kinds.h) of s
 *     out_i   = sum over j of p[i, j] * v_j                                                     (1)
 *
 * Query head h uses key head h / (n_heads / n_kv_heads). An empty row gives zeros. f32; a query's
 * result does not depend on the batch, on n_q or on the number of threads within one row. */
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
    size_t batch, n_q, n_past; /* n_q new tokens a sequence, after n_past in the cache */
    size_t n_heads, n_kv_heads,
        head_dim; /* head_dim <= QB_ATTENTION_MAX_HEAD_DIM, any value >= 1 */
    qb_softmax_kind softmax;
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

typedef struct qb_attention_row {
    qb_kernel_info info;
    size_t (*scratch_elems)(
        const qb_attention_args *args); /* a thread; grows with n_past + n_q, head_dim */
    size_t (*n_tasks)(const qb_attention_args *args, size_t n_threads);
    void (*task)(const qb_attention_args *args, size_t i, size_t n_tasks, size_t thread_idx);
} qb_attention_row;
extern const qb_attention_row qb_attention_kernels[];

void qb_attention_run(const qb_attention_row *row, const qb_attention_args *args, qb_pool *pool);

#ifdef __cplusplus
}
#endif
#endif
