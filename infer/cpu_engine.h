/* infer/cpu_engine.h - the CPU's engine: what cpu_engine.c (making), cpu_forward.c and cpu_head.c
 * (running) and calibrate.c share. */
#ifndef QB_INFER_CPU_ENGINE_H
#define QB_INFER_CPU_ENGINE_H

#include "infer/backend.h"
#include "kernels/attention.h"
#include "kernels/pointwise.h"
#include "quant/linear.h"

/* Norm gains and biases as f32, owned. */
typedef struct norm_weights {
    float *gain, *bias; /* bias NULL = none */
} norm_weights;

typedef struct gate_weights {
    float *w, *bias; /* (H, C), (H), owned */
} gate_weights;

typedef struct cpu_backbone {
    qb_backbone base;
    const qb_pointwise_row *pointwise;
    const qb_attention_row *attention;
    norm_weights *norms; /* 2 a layer (norm1, norm2), then the final norm */
    gate_weights *gates; /* (n_layers) of gated attention, or NULL */
    float **sinks;       /* (n_layers) of H logits, or NULL */
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
    float *gate_values; /* (rows, H) of gated attention; NULL without */
    float *ff;          /* (rows, F) gate, or the only one */
    float *ff2;         /* (rows, F) up of SwiGLU; NULL without */
    float *attention_scratch;
    size_t attention_scratch_elems; /* in all */
    qb_linear_scratch linear;
    qb_linear_need need;
    size_t scratch_bytes;

    float *slots[QB_LOGIT_SLOTS]; /* (logit_rows, V) each */
} cpu_backbone;

/* The linear layers of a block in the order of the forward pass; absent ones have n == 0. */
typedef struct qb_block {
    qb_linear qkv, q, k, v, o, gate, up, down;
} qb_block;

typedef struct cpu_engine {
    qb_engine base;
    qb_block *blocks;    /* (n_layers) */
    qb_linear own_head;  /* with quantize_head; else n == 0 and the backbone's is used */
    qb_model *own_codes; /* codes that a fake layer reads, if the engine made them */

    float *k_cache, *v_cache; /* (n_layers, cache_batch, cache_context, Hkv D); NULL = none */

    float *hidden;       /* (max_tokens, C) after the final norm */
    float head_in_scale; /* of the last call, where the head's input has one dynamic scale */
    qb_outlier_set head_outliers; /* likewise, where it has outliers; owned */
    bool head_ready;
    float *head_chunk; /* (HEAD_CHUNK_ROWS, V): the pass that finds the head's largest output */
} cpu_engine;

static inline cpu_backbone *qb__cpu_backbone(qb_backbone *backbone)
{
    return (cpu_backbone *)backbone;
}
static inline cpu_engine *qb__cpu_engine(qb_engine *engine)
{
    return (cpu_engine *)engine;
}

/* cpu_forward.c */
qb_status qb__cpu_forward(qb_engine *engine, const int32_t *tokens, size_t batch, size_t n_tokens,
                          size_t past, bool last_only);

/* cpu_head.c */
qb_status qb__cpu_logits(qb_engine *engine, size_t first_row, size_t n_rows, float *logits);
qb_status qb__cpu_head(qb_engine *engine, size_t slot, size_t first_row, size_t row_step,
                       size_t n_rows);
qb_status qb__cpu_compare(qb_backbone *backbone, int slot_a, int slot_b, size_t n_rows,
                          const int32_t *target, qb_logit_stats *out);

/* ---- cpu_work.c ---- */

enum { QB_ROW_WORKS = 3 };
/* A pass over m rows of `width` (of the staged input where there is one). */
typedef struct cpu_pass {
    qb_phase phase;
    int layer;
    size_t m, width;
    const char *kernel;
} cpu_pass;
/* The pass with the requantising of `before` and the staging for `after` (NULL = none), in their
 * order. */
size_t qb__cpu_row_works(const cpu_pass *pass, const qb_linear *before, const qb_linear *after,
                         qb_work works[QB_ROW_WORKS]);
qb_work qb__cpu_attention_work(const qb_attention_args *args, const qb_attention_row *row,
                               int layer);
/* Products of one input of m rows. */
qb_work qb__cpu_product_work(qb_linear *const *linears, size_t n, size_t m, int layer, int role);

enum { HEAD_CHUNK_ROWS = 16 };

/* Rows in parallel: fn(context, m0, m1) for blocks that cover [0, m). */
void qb__for_rows(qb_pool *pool, size_t m, qb_span_task task, void *context);

#endif
