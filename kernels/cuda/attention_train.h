/* kernels/cuda/attention_train.h - causal attention and its gradients on the GPU, for training.
 *
 * Forward (kernels/attention.h with nothing in the cache), head h on key head
 * h / (n_heads / n_kv_heads):
 *     s[i, j] = scale * q_i . k_j,  j < n_keys(i)    w = softmax kind (core/kinds.h) of s
 *     out_i   = sum over j of w[i, j] * v_j                                                     (1)
 *     lse_i   = log(sum over j of e^s[i, j]); softmax-1 and sink: with the silent logit's term  (2)
 *
 * Backward, g the gradient of the loss by out; p[i, j] = e^(s[i, j] - lse_i), so that the kinds of
 * softmax differ in (2) alone:
 *     dv_j = sum over i of w[i, j] g_i               dw[i, j] = g_i . v_j
 *     ds   = p (dw - delta_i),                       delta_i  = sum over j of p dw = g_i . out_i
 *     dq_i = scale * sum over j of ds[i, j] k_j      dk_j     = scale * sum over i of ds[i, j] q_i
 *     d_sink -= sum over i of e^(sink - lse_i) delta_i                                          (3)
 *
 * clipped: dw is (zeta - gamma) g_i . v_j where w is inside (0, 1), else 0.
 * ReLU: ds = dw / n_keys(i) where s > 0; lse is neither written nor read.
 *
 * Sums in f32, in a fixed order: same arguments, same bits. bf16: w, p and ds may be rounded to
 * bf16 as operands of products. */
#ifndef QB_KERNELS_CUDA_ATTENTION_TRAIN_H
#define QB_KERNELS_CUDA_ATTENTION_TRAIN_H

#include "kernels/cuda/matrix.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Device pointers; elements of `type` unless float. Sequence b, token i is row b * n_tokens + i. */
typedef struct qb_cuda_attention_train_args {
    qb_cuda_dtype type; /* F32 or BF16 */
    size_t batch, n_tokens;
    size_t n_heads, n_kv_heads, head_dim; /* head_dim 1 to 256 */
    qb_softmax_kind softmax;
    float gamma, zeta;  /* clipped: gamma <= 0, zeta >= 1 */
    const float *sink;  /* sink: (n_heads) logits */
    size_t free_prefix; /* positions, from 0, that see each other */
    float scale;
    /* Row r, head h at q + r * qkv_stride + h * head_dim; k and v likewise with key heads. As a
     * rule columns of one (M, (H + 2 Hkv) D) matrix. */
    const void *q, *k, *v;
    size_t qkv_stride;
    void *out; /* row r, head h at out + r * out_stride + h * head_dim */
    size_t out_stride;
    float *lse; /* (batch, n_heads, n_tokens) */

    /* The backward pass alone; out and lse are what the forward pass left. */
    const void *d_out;
    size_t d_out_stride;
    void *d_q, *d_k, *d_v; /* as q, k and v; overwritten */
    size_t d_qkv_stride;
    float *d_sink;   /* sink: (n_heads), added to */
    void *workspace; /* qb_cuda_attention_train_workspace bytes */
} qb_cuda_attention_train_args;
/* Of the backward pass; enough for any row, and for a smaller batch. */
size_t qb_cuda_attention_train_workspace(const qb_cuda_attention_train_args *args);

typedef struct qb_cuda_attention_train_row {
    qb_kernel_info info;
    const char *(*refuse)(const qb_cuda_attention_train_args *args); /* for both passes */
    qb_status (*forward)(const qb_cuda_attention_train_args *args, qb_cuda_stream stream);
    qb_status (*backward)(const qb_cuda_attention_train_args *args, qb_cuda_stream stream);
} qb_cuda_attention_train_row;
extern const qb_cuda_attention_train_row qb_cuda_attention_train_kernels[];
/* The first row that takes the arguments. No tokens are no work. QB_ERR_UNSUPPORTED: no row. */
qb_status qb_cuda_attention_train_forward(const qb_cuda_attention_train_args *args,
                                          qb_cuda_stream stream);
qb_status qb_cuda_attention_train_backward(const qb_cuda_attention_train_args *args,
                                           qb_cuda_stream stream);

#ifdef __cplusplus
}
#endif
#endif
