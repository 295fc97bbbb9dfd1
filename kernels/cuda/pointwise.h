/* kernels/cuda/pointwise.h - the passes between two products, fused: what finishes the output of
 * the one, what stands between, and what quantises the input of the next.
 *
 *     requantise:  y' = clamp(round_half_even(y / s)) * s,  s = max|y| / 127, per segment       (1)
 *     quantise:    q  = clamp(round_half_even(y / s), -127, 127)  (kernels/quantize.h)          (2)
 *
 * Divisions are true divisions; codes equal the C reference's bit for bit for equal inputs. */
#ifndef QB_KERNELS_CUDA_POINTWISE_H
#define QB_KERNELS_CUDA_POINTWISE_H

#include "kernels/cuda/matrix.h"

#ifdef __cplusplus
extern "C" {
#endif

/* The output of a product that is still to be requantised, or not. */
typedef struct qb_cuda_pending {
    const void *y; /* (m, width) F32 or BF16; NULL = none */
    qb_cuda_dtype type;
    size_t stride;
    const uint32_t
        *max_bits;      /* per segment, dynamic scale: max_bits / 127; NULL = static or none */
    const float *scale; /* per segment, static scale; NULL = dynamic or none */
    qb_cuda_segments segments; /* used with either */
} qb_cuda_pending;

/* How the next product wants its input. */
typedef enum {
    QB_STAGE_FLOAT,   /* y as `type` */
    QB_STAGE_TOKEN,   /* (2), a scale a row, made here */
    QB_STAGE_TENSOR,  /* (2), one scale, dynamic: two passes inside the call */
    QB_STAGE_STATIC,  /* (2), one scale, given in scale[0] */
    QB_STAGE_CHANNEL, /* (2), scale (width) given */
} qb_stage_kind;
typedef struct qb_cuda_stage {
    qb_stage_kind kind;
    bool fake;          /* store code * scale as `type` into y in place of codes */
    qb_cuda_dtype type; /* of y: F32 or BF16 */
    void *y;
    int8_t *q;
    size_t stride;      /* of y or q */
    float *scale;       /* TOKEN: (m) out. TENSOR: [0] out. STATIC, CHANNEL: in */
    uint32_t *max_bits; /* TENSOR: scratch, one word; the call clears it */
    float *row_stats;   /* TENSOR: scratch (m, 2), so that the second pass need not reduce again */
} qb_cuda_stage;

/* x[m] = tok_embd[token] (+ pos_embd[position]); x is (batch * n_tokens, width) f32. */
typedef struct qb_cuda_embed_args {
    const int32_t *tokens; /* (batch, n_tokens) */
    size_t batch, n_tokens, width;
    size_t past;             /* position of a sequence's first token */
    const int32_t *past_dev; /* read in place of past, or NULL */
    qb_cuda_dtype type;      /* of the tables */
    const void *tok_embd;    /* (V, stride) */
    const void *pos_embd;    /* (T, stride) or NULL */
    size_t table_stride;
    float *x;
    size_t x_stride;
} qb_cuda_embed_args;
qb_status qb_cuda_embed(const qb_cuda_embed_args *args, qb_cuda_stream stream);

/* x += pending (requantised), then stage norm(x). LayerNorm, RMSNorm, RMSNorm-Single as in
 * kernels/pointwise.h. x f32. */
typedef struct qb_cuda_norm_args {
    size_t m, width;
    float *x;
    size_t x_stride;
    qb_cuda_pending pending;
    qb_norm_kind norm;
    const float *gain; /* (width), or (1) for RMSNorm-Single */
    const float *bias; /* NULL = none */
    float eps;
    qb_cuda_stage stage;
    uint32_t *cleared; /* NULL, or (m) words set to 0 on the way: row maxima of the next product */
} qb_cuda_norm_args;
qb_status qb_cuda_add_norm(const qb_cuda_norm_args *args, qb_cuda_stream stream);

/* Stages act(pending): GELU, ReLU of (m, width); SwiGLU: segments up | gate, each `width` wide, out
 * = silu(gate) * up. act NONE stages the matrix as it is (attention's output). */
typedef struct qb_cuda_act_args {
    size_t m, width;
    bool apply; /* false: no activation */
    qb_act_kind act;
    qb_cuda_pending in;
    /* TOKEN: NULL, or (m) bits of the row maxima of |in| made by the product's epilogue */
    const uint32_t *row_max_bits;
    qb_cuda_stage stage;
} qb_cuda_act_args;
qb_status qb_cuda_act(const qb_cuda_act_args *args, qb_cuda_stream stream);

/* q | k | v of a product: requantise, rotate q and k, write q (in `type`) in place or to q_out and
 * k, v to the cache or to the same buffer. */
typedef struct qb_cuda_position_args {
    size_t batch, n_tokens, past;
    const int32_t *past_dev;
    size_t n_heads, n_kv_heads, head_dim;
    qb_cuda_pending qkv;        /* (m, (H + 2 Hkv) D) */
    const float *cosine, *sine; /* (positions, head_dim / 2); NULL = no rotation */
    qb_cuda_dtype type;         /* of what is written */
    void *q_out;                /* row stride q_stride */
    size_t q_stride;
    void *k_out, *v_out; /* as in attention.h */
    size_t kv_stride, kv_batch_stride;
} qb_cuda_position_args;
qb_status qb_cuda_position(const qb_cuda_position_args *args, qb_cuda_stream stream);

typedef struct qb_cuda_pointwise_row {
    qb_kernel_info info;
    qb_status (*embed)(const qb_cuda_embed_args *args, qb_cuda_stream stream);
    qb_status (*add_norm)(const qb_cuda_norm_args *args, qb_cuda_stream stream);
    qb_status (*act)(const qb_cuda_act_args *args, qb_cuda_stream stream);
    qb_status (*position)(const qb_cuda_position_args *args, qb_cuda_stream stream);
} qb_cuda_pointwise_row;
extern const qb_cuda_pointwise_row qb_cuda_pointwise_kernels[]; /* one row; ends with a zero row */

#ifdef __cplusplus
}
#endif
#endif
