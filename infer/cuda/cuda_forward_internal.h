/* infer/cuda/cuda_forward_internal.h - a forward call while it runs: what cuda_forward.c (layers,
 * graphs), cuda_passes.c and cuda_attention.c share. All is queued on the backbone's stream. */
#ifndef QB_INFER_CUDA_CUDA_FORWARD_INTERNAL_H
#define QB_INFER_CUDA_CUDA_FORWARD_INTERNAL_H

#include "infer/cuda/cuda_engine.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Lives for one call; pointers are borrowed from the engine and its backbone. Rows (m) are those
 * that the next pass works on: batch * n_tokens, fewer behind the last attention of last_only. */
typedef struct cuda_forward {
    cuda_engine *e;
    cuda_backbone *b;
    const qb_config *c;
    size_t batch, n_tokens, past, m; /* past: of a captured step the most it may be */
    const int32_t *tokens, *past_dev;
    bool last_only;
    float *x;  /* (m, C) residual stream */
    void *att; /* (m, H D) */
    size_t layer;
    const cuda_block *block;
    qb_cuda_pending pending; /* of the product before, to be added to the residual stream */
    size_t q_width, kv_width, qkv_width, x_stride;
    const qb_taps *taps; /* who looks; NULL = nobody */
} cuda_forward;

static inline char *qb__cuda_element(void *base, qb_cuda_dtype type, size_t i)
{
    return (char *)base + i * qb_cuda_dtype_bytes(type);
}

/* ---- cuda_passes.c ---- */

/* Shows m rows of `width` to who looks; nobody = nothing is done. */
qb_status qb__cuda_show_rows(const cuda_forward *f, qb_tap tap, qb_role role, void *dev,
                             qb_cuda_dtype type, size_t width, size_t stride);
qb_status qb__cuda_show_x(const cuda_forward *f, qb_tap tap, qb_role role);
qb_status qb__cuda_show_normed(const cuda_forward *f, qb_role role, const qb_cuda_stage *stage);

/* A section of the timeline; -1 = of no layer. */
int qb__cuda_layer_of(const cuda_forward *f);
void qb__cuda_open_part(const cuda_forward *f);
/* After a pass over rows of `width` that reads and writes so many bytes an element. */
void qb__cuda_close_pass(const cuda_forward *f, qb_phase phase, size_t width, size_t elem_bytes);

/* Zeroes the columns from the width to the stride: what attention and the products write stops at
 * the width, and the next product may read the whole row. Widths are mostly multiples. */
qb_status qb__cuda_clear_padding(const cuda_forward *f, void *y, size_t width);

qb_status qb__cuda_embed(const cuda_forward *f);
/* Adds what is pending to x, then stages its norm; `cleared`: zeroed beside, NULL = nothing. */
qb_status qb__cuda_add_norm(const cuda_forward *f, const cuda_norm *w, const qb_cuda_stage *stage,
                            uint32_t *cleared);
qb_status qb__cuda_run_act(const cuda_forward *f, const qb_cuda_act_args *args);
/* A pass that only adds what is pending to x; its norm goes where nothing is kept yet. */
qb_status qb__cuda_settle(cuda_forward *f);

/* The output in floats, or, where it is to be requantised, in f32 with its largest value. */
cuda_output qb__cuda_float_output(const cuda_forward *f, const qb_cuda_linear *l, void *y,
                                  size_t width);
qb_status qb__cuda_run_linear(const cuda_forward *f, const qb_cuda_linear *l, qb_role role,
                              const cuda_input *in, const cuda_output *out);
/* A product whose output is added to x, at once or by the next pass (pending). */
qb_status qb__cuda_run_into_x(cuda_forward *f, const qb_cuda_linear *l, qb_role role,
                              const cuda_input *in);

/* ---- cuda_attention.c ---- */

/* From the norm before attention to the product behind it. */
qb_status qb__cuda_attention_part(cuda_forward *f);
/* Behind the last layer's attention only the rows that are asked for go on: in the final hidden
 * states' place, and where q, k and v have been. */
qb_status qb__cuda_keep_last_rows(cuda_forward *f);

#ifdef __cplusplus
}
#endif
#endif
