/* kernels/cuda/decode.h - one token of one sequence through the whole model.
 *
 * Decoding reads every weight once a token, so the limit is the copy bandwidth; launches and the
 * waits between the phases of a layer are what keeps one from it. Weights do not depend on
 * activations, so that they are on their way to shared memory before a phase's input is there. The
 * arithmetic is that of the prefill rows: the same codes and integer sums; float sums may differ in
 * order.
 *
 * Rows: kernels, or graphs of them, that take a whole model, best first. A model that all refuse,
 * and more sequences than one, go by single kernels (infer/cuda). */
#ifndef QB_KERNELS_CUDA_DECODE_H
#define QB_KERNELS_CUDA_DECODE_H

#include "kernels/cuda/linear.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct qb_cuda_decode_layer {
    qb_cuda_linear qkv, o, up, down; /* up: one segment, or up | gate (SwiGLU) */
    const float *norm1_gain, *norm1_bias, *norm2_gain, *norm2_bias; /* biases may be NULL */
    void *k_cache, *v_cache; /* bf16 (context, n_kv_heads * head_dim) */
} qb_cuda_decode_layer;

typedef struct qb_cuda_decode_model { /* host struct; pointers in it are on the device */
    size_t n_layers, d_model, n_heads, n_kv_heads, head_dim, d_ff, vocab;
    size_t context; /* of the cache */
    qb_norm_kind norm;
    qb_act_kind act;
    qb_softmax_kind softmax;
    float norm_eps;
    const qb_cuda_decode_layer *layers; /* host array */
    const void *tok_embd;               /* bf16 (V, table_stride) */
    const void *pos_embd;               /* bf16 (T, table_stride) or NULL */
    size_t table_stride;
    const float *cosine, *sine; /* (context, head_dim / 2) or NULL */
    const float *norm_f_gain, *norm_f_bias;
    qb_cuda_linear head; /* bf16, or of the scheme; its output is f32 logits */
} qb_cuda_decode_model;

typedef struct qb_cuda_decode qb_cuda_decode;

typedef enum {
    QB_CUDA_DECODE_QKV,
    QB_CUDA_DECODE_ATTENTION,
    QB_CUDA_DECODE_O,
    QB_CUDA_DECODE_UP,
    QB_CUDA_DECODE_DOWN,
    QB_CUDA_DECODE_HEAD
} qb_cuda_decode_part;
/* Who wants to know of each kernel while a step is captured, to queue stamps beside it. */
typedef struct qb_cuda_decode_watch {
    void *context;
    size_t version; /* a step that was captured for another is captured anew */
    /* layer -1: the head. */
    void (*begins)(void *context, int layer);
    void (*ended)(void *context, int layer, qb_cuda_decode_part part);
} qb_cuda_decode_watch;

typedef struct qb_cuda_decode_row {
    qb_kernel_info info;
    const char *(*refuse)(const qb_cuda_decode_model *model); /* NULL = takes it */
    /* Copies the description, allocates its scratch; the arrays on the device stay borrowed. */
    qb_status (*create)(const qb_cuda_decode_model *model, qb_cuda_decode **out);
    void (*destroy)(qb_cuda_decode *decode); /* accepts NULL */
    size_t (*scratch_bytes)(const qb_cuda_decode *decode);
    /* Queues one step. token_dev: an id; position_dev: its position (= tokens in the cache before),
     * which the caller advances. Writes the token's k and v to the caches, the final hidden state
     * to hidden_dev (d_model) f32 and the logits to logits_dev (vocab) f32. Never waits, but for
     * the first call with other pointers than the one before. */
    qb_status (*step)(qb_cuda_decode *decode, const int32_t *token_dev, const int32_t *position_dev,
                      float *hidden_dev, float *logits_dev, qb_cuda_stream stream);
    /* The same, watched: captured on `stream`, which must not be the default one. */
    qb_status (*watched_step)(qb_cuda_decode *decode, const int32_t *token_dev,
                              const int32_t *position_dev, float *hidden_dev, float *logits_dev,
                              const qb_cuda_decode_watch *watch, qb_cuda_stream stream);
} qb_cuda_decode_row;
extern const qb_cuda_decode_row qb_cuda_decode_kernels[]; /* ends with a zero row */

#ifdef __cplusplus
}
#endif
#endif
