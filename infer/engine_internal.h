/* infer/engine_internal.h - what engine.c (making), forward.c (running) and calibrate.c share. */
#ifndef QB_INFER_ENGINE_INTERNAL_H
#define QB_INFER_ENGINE_INTERNAL_H

#include "infer/engine.h"
#include "kernels/attention.h"
#include "kernels/pointwise.h"
#include "quant/linear.h"

enum { ENGINE_KERNELS_TEXT = 512 };

/* Norm gains and biases as f32, owned. */
typedef struct norm_weights {
    float *gain, *bias; /* bias NULL = none */
} norm_weights;

struct qb_backbone {
    const qb_model *model;
    const qb_config *config; /* &model->config */
    qb_pool *pool;
    size_t max_tokens;
    const qb_pointwise_row *pointwise;
    const qb_attention_row *attention;
    norm_weights *norms; /* 2 a layer (norm1, norm2), then the final norm */
    float *pos_embd;     /* (context, C) or NULL */
    qb_linear head;      /* full precision; made by the first engine that needs it */
    bool has_head;
    float *cosine, *sine; /* (n_rope, head_dim / 2) */
    size_t n_rope;

    /* Scratch of one forward call, rows = max_tokens. */
    float *x;   /* (rows, C) residual stream */
    float *h;   /* (rows, C) normed input, then the output of a product before it is added to x */
    float *qkv; /* (rows, (H + 2 Hkv) D) */
    float *att; /* (rows, H D) */
    float *ff;  /* (rows, F) gate, or the only one */
    float *ff2; /* (rows, F) up of SwiGLU; NULL without */
    float *attention_scratch;
    size_t attention_scratch_elems; /* in all */
    qb_linear_scratch linear;
    qb_linear_need need;
    size_t scratch_bytes;
};

/* The linear layers of a block in the order of the forward pass; absent ones have n == 0. */
typedef struct qb_block {
    qb_linear qkv, q, k, v, o, gate, up, down;
} qb_block;

struct qb_engine {
    qb_backbone *backbone;
    qb_scheme scheme;
    qb_block *blocks;    /* (n_layers) */
    qb_linear own_head;  /* with quantize_head; else n == 0 and the backbone's is used */
    qb_model *own_codes; /* codes that a fake layer reads, if the engine made them */
    size_t linears_quantised;
    size_t weights_bytes;

    float *k_cache, *v_cache; /* (n_layers, cache_batch, cache_context, Hkv D); NULL = none */
    size_t cache_batch, cache_context;

    float *hidden;                  /* (max_tokens, C) after the final norm */
    size_t batch, position, n_rows; /* of the last call */
    float head_in_scale; /* of the last call, where the head's input has one dynamic scale */
    bool head_ready;
    float *head_chunk; /* (HEAD_CHUNK_ROWS, V): the pass that finds the head's largest output */

    qb_calibration *collect; /* not NULL while calibrating */
    char kernels[ENGINE_KERNELS_TEXT];
};

enum { HEAD_CHUNK_ROWS = 16 };

/* Rows in parallel: fn(context, m0, m1) for blocks that cover [0, m). */
typedef void (*rows_fn)(void *context, size_t m0, size_t m1);
void qb__for_rows(qb_pool *pool, size_t m, rows_fn fn, void *context);

#endif
