/* train/params.h - the parameters of a model as one flat f32 buffer.
 *
 * Weights, gradients and each of the optimiser's states are buffers of n_elems floats with the same
 * layout, so that clipping, sharding, checkpoints and the element-wise update are loops over one
 * array. Order: model/arch.h's roles, layer by layer. What one product reads together (q, k, v;
 * gate, up) lies back to back, so that it is one matrix of more rows; each such group starts at a
 * multiple of QB_PARAM_ALIGN elements and the gaps hold zeros. */
#ifndef QB_TRAIN_PARAMS_H
#define QB_TRAIN_PARAMS_H

#include "model/model.h"

#ifdef __cplusplus
extern "C" {
#endif

#define QB_PARAM_ALIGN 64 /* elements */

typedef struct qb_param {
    qb_role role;
    size_t layer_idx;
    size_t rows, cols;         /* a vector is (1, n) */
    size_t offset;             /* elements from the start of the buffer */
    qb_residual_axis residual; /* of the role */
    bool is_matrix;            /* takes weight decay unless the configuration says all do */
} qb_param;

typedef struct qb_params {
    qb_config config;
    qb_param *list; /* owned */
    size_t n;       /* parameters (tensors) */
    size_t n_elems; /* of a buffer, gaps included; a multiple of QB_PARAM_ALIGN */
} qb_params;

/* How a fresh model is drawn. GPT2: N(0, 0.02), the matrices that write to the residual stream
 * N(0, 0.02 / sqrt(2 n_layers)) (Radford et al. 2019). PYTORCH: embeddings N(0, 1), matrices
 * uniform within 1 / sqrt(fan_in), the very numbers that PyTorch gives modules without biases which
 * are made in this order after torch.manual_seed (arXiv:2410.13835). Gains 1, biases and sink
 * logits 0. */
typedef enum { QB_INIT_GPT2, QB_INIT_PYTORCH, QB_INIT_COUNT } qb_init_kind;
extern const char *const qb_init_names[QB_INIT_COUNT]; /* gpt2 pytorch */

/* The tensors of a configuration and where each lies in a buffer of n_elems; no buffer is made.
 * Only memory can fail. The caller destroys *out after success. */
qb_status qb_params_create(const qb_config *config, qb_params *out);
void qb_params_destroy(qb_params *params); /* accepts a zeroed one */
/* NULL = the configuration has no such tensor. */
const qb_param *qb_params_find(const qb_params *params, qb_role role, size_t layer_idx);
/* bounds[0..n_parts]: the buffer in n_parts ranges of about the same size, each of whole parameters
 * and beginning at a multiple of QB_PARAM_ALIGN. Ranges may be empty. */
void qb_params_cut(const qb_params *params, size_t n_parts, size_t *bounds);
/* GPT2: numbers depend on (seed, role, layer, element) alone. */
void qb_params_init(const qb_params *params, qb_init_kind kind, uint64_t seed, float *weights);
/* Weights of a model of the same configuration, and a model that borrows nothing (its tensors are
 * copies, f32; without tokenizer and training record). */
qb_status qb_params_from_model(const qb_params *params, const qb_model *model, float *weights);
qb_status qb_params_to_model(const qb_params *params, const float *weights, const char *name,
                             qb_model **out);

#ifdef __cplusplus
}
#endif
#endif
