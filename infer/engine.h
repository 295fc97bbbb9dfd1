/* infer/engine.h - runs a model under a scheme: prefill, logits, decode.
 *
 * What several engines of one model share (norms, embedding, packed head, scratch) lives in a
 * qb_backbone; an engine adds the packed linear layers of one scheme and, if asked for, a KV cache.
 * After creation nothing is allocated. One engine of a backbone runs at a time (they share
 * scratch); results are the same bits at any number of threads. */
#ifndef QB_INFER_ENGINE_H
#define QB_INFER_ENGINE_H

#include "core/threads.h"
#include "quant/calibration.h"
#include "quant/schemes.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct qb_backbone qb_backbone;
typedef struct qb_backbone_options {
    size_t max_tokens; /* most rows (batch x tokens) of one prefill call, >= 1 */
    qb_pool *pool;     /* borrowed; NULL = one thread */
} qb_backbone_options;
/* The model is borrowed and must outlive the backbone. */
qb_status qb_backbone_create(const qb_model *model, const qb_backbone_options *options,
                             qb_backbone **out);
void qb_backbone_destroy(qb_backbone *backbone); /* accepts NULL */

typedef struct qb_engine qb_engine;
typedef struct qb_engine_options {
    const qb_scheme *scheme; /* copied */
    bool fake;               /* the fake-quant twin: quantise, dequantise, float product */
    bool quantize_head;      /* the output projection is a linear layer of the scheme too */
    const qb_model
        *quantized; /* weights already as codes for this scheme (quant/quantize_model.h),
                       borrowed, must outlive a fake engine; NULL = the engine makes its own */
    const qb_calibration *calibration; /* where the scheme needs it; borrowed for the call */
    size_t cache_batch;                /* sequences in the KV cache; 0 = no cache, prefill only */
    size_t cache_context;              /* positions a sequence in the KV cache */
} qb_engine_options;
qb_status qb_engine_create(qb_backbone *backbone, const qb_engine_options *options,
                           qb_engine **out);
void qb_engine_destroy(qb_engine *engine); /* accepts NULL */

/* Runs `batch` sequences of n_tokens tokens each, tokens (batch, n_tokens), from position 0. Scales
 * "per tensor" span all batch * n_tokens rows. With a cache: batch == cache_batch or fewer, and the
 * cache then holds these sequences. Ids are checked (QB_ERR_SHAPE); so are the limits. */
qb_status qb_engine_prefill(qb_engine *engine, const int32_t *tokens, size_t batch,
                            size_t n_tokens);
/* Appends one token to each of the sequences of the last prefill; tokens (batch). */
qb_status qb_engine_decode_step(qb_engine *engine, const int32_t *tokens);
/* Positions now in the cache. */
size_t qb_engine_position(const qb_engine *engine);

/* Logits of rows [first_row, first_row + n_rows) of the last prefill (row = sequence * n_tokens +
 * t) or decode step (row = sequence), (n_rows, V) dense. May be called for any rows in any order.
 */
qb_status qb_engine_logits(qb_engine *engine, size_t first_row, size_t n_rows, float *logits);
/* Final hidden states after the last norm of the last call, (rows, C); borrowed. */
const float *qb_engine_hidden(const qb_engine *engine);

/* What is quantised and what is not. */
typedef struct qb_coverage {
    size_t linears, linears_quantised; /* linear layers incl. the head */
    double macs_share, bytes_share;    /* of all linear layers' multiply-adds and weight bytes */
    const char *kept_float[8];         /* "embedding", "norms", "softmax", ...; NULL ends */
} qb_coverage;
void qb_engine_coverage(const qb_engine *engine, qb_coverage *out);

typedef struct qb_engine_memory {
    size_t
        weights_bytes; /* as packed: codes, scales and what stays float (norms, embedding, head) */
    size_t kv_bytes, scratch_bytes;
} qb_engine_memory;
void qb_engine_memory_get(const qb_engine *engine, qb_engine_memory *out);

/* "gemm_s8/avx512vnni attention/avx512 ..." : the rows that this engine uses; borrowed. */
const char *qb_engine_kernels(const qb_engine *engine);
const qb_model *qb_engine_model(const qb_engine *engine);

#ifdef __cplusplus
}
#endif
#endif
