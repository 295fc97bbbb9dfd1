/* kernels/cuda/attention.h - causal attention on the GPU; the formula is kernels/attention.h.
 *
 * Softmax-1 (arXiv:2410.17174 eq. 1) is softmax with one more logit of 0: out * sigmoid(lse),
 * exact. bf16: products in bf16 with f32 accumulation, online softmax in f32. f32: all in f32. */
#ifndef QB_KERNELS_CUDA_ATTENTION_H
#define QB_KERNELS_CUDA_ATTENTION_H

#include "kernels/cuda/matrix.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct qb_cuda_attention_args { /* device pointers; elements of `type` */
    qb_cuda_dtype type;                 /* F32 or BF16, of q, k, v and out */
    size_t batch, n_q, n_past;          /* n_q new tokens a sequence, after n_past in the cache */
    const int32_t *n_past_dev; /* NULL, or read in place of n_past when the kernel runs (a captured
                                  graph); n_past is then the most it may be */
    size_t n_heads, n_kv_heads, head_dim; /* head_dim 1 to 256 */
    qb_softmax_kind softmax;
    float gamma, zeta;  /* clipped */
    const float *sink;  /* sink: (n_heads) f32 */
    size_t free_prefix; /* as in kernels/attention.h */
    float scale;
    const void *q; /* token b * n_q + i, head h at q + token * q_stride + h * head_dim */
    size_t q_stride;
    const void *k, *v; /* sequence b, position j, key head g at
                          k + b * kv_batch_stride + j * kv_stride + g * head_dim */
    size_t kv_stride, kv_batch_stride;
    /* The token's own key and value, which the cache gets on the way: key head g of sequence b at
     * + b * new_stride + g * head_dim. NULL = the cache has them. n_q is 1; see appends. */
    const void *k_new, *v_new;
    size_t new_stride;
    /* The first n_past keys and n_past_dev were complete when the kernel before this one was
     * queued, as in a step of decoding: they may be read while that one still runs. */
    bool past_is_constant;
    void *out; /* as q */
    size_t out_stride;
    float *lse; /* NULL, or (batch, n_heads, n_q): log of a row's sum of exponentials, softmax-1's 1
                   included; two rows of the table give it, for training */
    void *workspace; /* qb_cuda_attention_workspace bytes, for split-KV; may be NULL if 0 */
} qb_cuda_attention_args;
/* Enough for these arguments and for any with a smaller batch or n_past. */
size_t qb_cuda_attention_workspace(const qb_cuda_attention_args *args);

typedef struct qb_cuda_attention_row {
    qb_kernel_info info;
    const char *(*refuse)(const qb_cuda_attention_args *args);
    qb_status (*run)(const qb_cuda_attention_args *args, qb_cuda_stream stream);
    bool appends; /* takes k_new */
} qb_cuda_attention_row;
extern const qb_cuda_attention_row qb_cuda_attention_kernels[];
/* Whether there is a row that takes these arguments, k_new included. */
bool qb_cuda_attention_takes(const qb_cuda_attention_args *args);
qb_status qb_cuda_attention(const qb_cuda_attention_args *args, qb_cuda_stream stream);

#ifdef __cplusplus
}
#endif
#endif
