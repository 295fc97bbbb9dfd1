/* infer/cuda/cuda_engine.h - the CUDA engine: what cuda_engine.c (making), cuda_linear.c (weights),
 * cuda_forward.c, cuda_attention.c and cuda_passes.c (running) and cuda_head.c (logits) share.
 *
 * An engine's activations are bf16 with an f32 residual stream, or f32 throughout (full-f32 and the
 * fake-quant twins). Everything is queued on the backbone's stream. */
#ifndef QB_INFER_CUDA_CUDA_ENGINE_H
#define QB_INFER_CUDA_CUDA_ENGINE_H

#include "infer/backend.h"
#include "kernels/cuda/attention.h"
#include "kernels/cuda/decode.h"
#include "kernels/cuda/head_gates.h"
#include "kernels/cuda/linear.h"
#include "kernels/cuda/outliers.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct cuda_norm {
    qb_norm_kind kind;
    float *gain, *bias; /* bias NULL = none */
} cuda_norm;

enum { CUDA_TYPES = 2 }; /* QB_CUDA_F32, QB_CUDA_BF16: of tables, heads and activations */

/* The step's position and tokens as the host writes them, copied to the device in one piece. A
 * piece is used again after RING steps, by then it was read. */
enum { RING = 128 };

typedef struct cuda_gate {
    float *w, *bias; /* (H, C), (H) */
} cuda_gate;

typedef struct cuda_backbone {
    qb_backbone base;
    qb_cuda_stream stream;
    cuda_norm *norms; /* 2 a layer (norm1, norm2), then the final norm; host array */
    cuda_gate *gates; /* (n_layers) of gated attention, or NULL; host array */
    float **sinks;    /* (n_layers) of H logits, or NULL; host array */
    void *tok_embd[CUDA_TYPES], *pos_embd[CUDA_TYPES];
    qb_cuda_linear head[CUDA_TYPES]; /* full precision; may be tok_embd */
    size_t table_stride;             /* of the embeddings and the head */
    float *cosine, *sine;            /* (n_rope, head_dim / 2) */
    size_t n_rope;
    float *one; /* 1.0f: the input scale of layers whose scales are folded in */

    /* Scratch of one forward call; rows = max_tokens, at most 4 bytes an element. */
    float *x;      /* (rows, C) residual stream */
    void *normed;  /* (rows, C) */
    void *out;     /* (rows, C) of a product that is still to be requantised */
    void *qkv;     /* (rows, (H + 2 Hkv) D) as the product made it */
    void *rotated; /* the same requantised */
    void *att;     /* (rows, H D) */
    void *ff;      /* (rows, F), SwiGLU (rows, 2 F) */
    void *act;     /* (rows, widest of C, H D, F): a staged input */
    int8_t *q;     /* likewise, codes */
    float *scale, *row_stats;
    uint32_t *row_max_bits, *max_bits; /* max_bits: QB_CUDA_SEGMENTS a layer and product */
    void *u4_x;                        /* (rows, widest input) bf16; NULL without such layers */
    qb_cuda_outliers outliers;         /* of the layer that runs; NULL without such layers */
    int8_t *outlier_w;                 /* codes of the largest layer, by input channel */
    size_t outlier_w_bytes;
    void *attention_workspace;
    size_t attention_workspace_bytes;
    int32_t *tokens; /* (rows) */
    size_t scratch_bytes;
    size_t layout; /* counts the moves of scratch: graphs captured before hold old addresses */

    float *slots[QB_LOGIT_SLOTS]; /* (logit_rows, slot_stride) */
    size_t slot_stride;
    qb_engine *slot_owner; /* whose last decode step wrote its logits to slot 0; NULL = none */
    int32_t *target;       /* (logit_rows) */
    qb_logit_stats *stats; /* (logit_rows) */
    float *head_scale;     /* of a head with one input scale */
    void *head_x;          /* (logit_rows, C) */
    int8_t *head_q;
} cuda_backbone;

/* The kernels of a forward call of one shape, captured when the shape comes the second time. */
typedef struct cuda_graph {
    void *exec; /* cudaGraphExec_t; NULL = none yet */
    size_t batch, n_tokens;
    size_t layout; /* of the backbone when it was captured */
    bool last_only;
    const int32_t *tokens;    /* where it reads them: a prefill of one token is no step */
    size_t version;           /* of the timeline; 0 = none */
    size_t n_spans, n_stamps; /* that it had when all was captured */
} cuda_graph;

/* The products of a block. */
typedef struct cuda_block {
    qb_cuda_linear qkv, o, up, down; /* up: up, or up | gate */
} cuda_block;

typedef struct cuda_engine {
    qb_engine base;
    qb_cuda_dtype type; /* of activations and cache */
    bool fake;
    cuda_block *blocks; /* (n_layers) */
    cuda_norm *norms;   /* the backbone's, or own ones that divide by the factors of smoothing */
    bool own_norms;     /* the array, and in it what is not a part's (mixed engines) */
    qb_cuda_linear own_head; /* with quantize_head; else n == 0 */
    void *k_cache,
        *v_cache;     /* (n_layers, cache_batch, cache_context, Hkv D) of type; NULL = none */
    size_t kv_stride; /* Hkv D */
    float *hidden;    /* (rows, C) f32 after the final norm */
    bool head_ready;  /* scales or outliers of own_head that span the call are made */
    qb_cuda_outliers head_outliers;
    size_t staged_bytes; /* weights on the device */

    int32_t *step_host, *step; /* [RING][1 + batch], [1 + batch]: position, tokens */
    size_t n_steps;
    const qb_cuda_decode_row *decode_row;
    qb_cuda_decode *decode; /* of one sequence; NULL = single kernels under a graph */
    qb_cuda_decode_layer *decode_layers;
    cuda_graph prefill, single_step; /* single_step: where no row takes the step */
    cuda_graph timed;                /* either with the engine's timeline */
    size_t row_spans, row_stamps;    /* of the row's step with it, */
    size_t row_version, n_watches;   /* captured at this version, the n-th */
} cuda_engine;

static inline cuda_backbone *qb__cuda_backbone(qb_backbone *backbone)
{
    return (cuda_backbone *)backbone;
}
static inline cuda_engine *qb__cuda_engine(qb_engine *engine)
{
    return (cuda_engine *)engine;
}

/* ---- cuda_backbone.c ---- */

/* What a backbone has of these grows to what the engine that asks needs. */
qb_status qb__cuda_need_tables(cuda_backbone *b, qb_cuda_dtype type);
qb_status qb__cuda_make_rope(cuda_backbone *b, size_t n_positions);
qb_status qb__cuda_new_rows(cuda_backbone *b, size_t rows, size_t width, size_t elem_bytes,
                            void *out);
qb_status qb__cuda_need_attention(cuda_backbone *b, qb_cuda_dtype type, size_t batch, size_t n_q,
                                  size_t n_past);
qb_status qb__cuda_outliers_create(size_t k, qb_cuda_outliers *out);
void qb__cuda_outliers_destroy(qb_cuda_outliers *o);
void qb__cuda_backbone_destroy(qb_backbone *backbone);
qb_status qb__cuda_backbone_create(const qb_backbone *base, qb_backbone **out);

/* ---- cuda_engine.c ---- */

void qb__cuda_engine_destroy(qb_engine *engine);

/* ---- cuda_mixed.c ---- */

/* Own norms, divided by the factors of the smoothed layers of `codes` behind them. */
qb_status qb__cuda_smooth_norms(cuda_engine *e, const qb_model *codes, bool quantize_head);
void qb__cuda_destroy_norms(cuda_engine *e);
qb_status qb__cuda_mixed_create(const qb_engine *base, qb_engine **out);
qb_status qb__cuda_mix(qb_engine *mixed, const uint8_t *from_part);

/* ---- cuda_linear.c ---- */

/* Rows of `tensors` one below the other as (n, k) of `type`, padded columns 0. */
qb_status qb__cuda_upload_float(const qb_tensor *const *tensors, size_t n_tensors,
                                qb_cuda_dtype type, qb_pool *pool, void **out);
qb_status qb__cuda_upload_vector(const qb_tensor *tensor,
                                 float **out); /* NULL where there is none */

typedef struct cuda_linear_options {
    const qb_scheme *scheme;
    bool fake;
    qb_cuda_dtype type; /* of float weights */
    const qb_calibration *calibration;
    qb_pool *pool;
} cuda_linear_options;
/* The product of the tensors `weights` (one a segment) with their biases (NULL data = none). */
qb_status qb__cuda_linear_create(const qb_tensor *const *weights, const qb_tensor *const *biases,
                                 size_t n_segments, const cuda_linear_options *options,
                                 qb_cuda_linear *out);
void qb__cuda_linear_destroy(qb_cuda_linear *linear); /* accepts a zeroed one */
size_t qb__cuda_linear_bytes(const qb_cuda_linear *linear);
const char *qb__cuda_linear_kernel(const qb_cuda_linear *linear); /* name of its first usable row */

/* What goes in: floats of `type`, or codes with their scale. */
typedef struct cuda_input {
    size_t m;
    const void *x;
    size_t x_stride;
    qb_cuda_dtype type;
    const int8_t *q;
    size_t q_stride;
    const float *scale; /* of q; scale_step 1 = a row, 0 = one */
    size_t scale_step;
    const qb_cuda_outliers *outliers; /* known beforehand; NULL = found in x where wanted */
} cuda_input;
typedef struct cuda_output {
    void *y;
    size_t stride;
    qb_cuda_dtype type;
    qb_epilogue_act act;
    float *residual;
    size_t residual_stride;
    uint32_t *max_bits; /* per segment, cleared here; where the layer requantises dynamically */
    uint32_t
        *row_max_bits; /* cleared by the caller; NULL = not wanted. Untouched by float products */
    qb_cuda_gemm_s8_cache cache; /* only where qb__cuda_linear_caches */
} cuda_output;
/* The product can store its later segments to the cache itself. */
bool qb__cuda_linear_caches(const qb_cuda_linear *linear, const cuda_input *in,
                            const cuda_output *out);
qb_status qb__cuda_linear_run(const qb_cuda_linear *linear, const cuda_input *in,
                              const cuda_output *out, cuda_backbone *b);
/* How the next pass has to finish the output. */
qb_cuda_pending qb__cuda_pending(const qb_cuda_linear *linear, const cuda_output *out);

/* ---- cuda_timeline.c ---- */

qb_status qb__cuda_timeline_clock(qb_backbone *backbone, size_t n_stamps, qb_timeline_clock *out);
/* The product that was run last. */
qb_work qb__cuda_linear_work(const qb_cuda_linear *linear, const cuda_input *in,
                             const cuda_output *out, int layer, int role);

/* A kernel of a step of one sequence. */
qb_work qb__cuda_part_work(const cuda_engine *e, int layer, qb_cuda_decode_part part);

/* ---- cuda_peaks.c ---- */

qb_status qb__cuda_peaks(int device_idx, qb_peaks *out);

/* ---- cuda_forward.c ---- */

qb_status qb__cuda_forward(qb_engine *engine, const int32_t *tokens, size_t batch, size_t n_tokens,
                           size_t past, bool last_only);

/* ---- cuda_passes.c ---- */

/* The input of a product that `stage` made. */
cuda_input qb__cuda_staged(const qb_cuda_linear *linear, const qb_cuda_stage *stage, size_t m,
                           const cuda_backbone *b);
/* A stage for the input of `linear` in the backbone's scratch. */
qb_cuda_stage qb__cuda_stage(const cuda_engine *e, const qb_cuda_linear *linear, void *y);

/* ---- cuda_taps.c ---- */

/* Rows of a view on the device: `stride` elements of `type` from one to the next. */
typedef struct cuda_shown {
    void *dev;
    qb_cuda_dtype type;
    size_t stride;
    qb_cuda_stream stream;
} cuda_shown;
/* view: without x and stride. */
qb_status qb__cuda_show(const cuda_shown *rows, const qb_taps *taps, qb_tap_view view);

/* ---- cuda_head.c ---- */

qb_status qb__cuda_logits(qb_engine *engine, size_t first_row, size_t n_rows, float *logits);
qb_status qb__cuda_head(qb_engine *engine, size_t slot, size_t first_row, size_t row_step,
                        size_t n_rows);
qb_status qb__cuda_compare(qb_backbone *backbone, int slot_a, int slot_b, size_t n_rows,
                           const int32_t *target, qb_logit_stats *out);

#ifdef __cplusplus
}
#endif
#endif
