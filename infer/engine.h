/* infer/engine.h - runs a model under a scheme: prefill, logits, decode.
 *
 * What several engines of one model share (norms, embedding, packed head, scratch) lives in a
 * qb_backbone; an engine adds the packed linear layers of one scheme and, if asked for, a KV cache.
 * After creation nothing is allocated. One engine of a backbone runs at a time (they share
 * scratch); results are the same bits at any number of threads.
 *
 * The backend says where: a row of qb_backends (infer/backend.h) for the CPU and for CUDA. On CUDA
 * calls return once their work is queued, except those that hand something to the host. */
#ifndef QB_INFER_ENGINE_H
#define QB_INFER_ENGINE_H

#include "core/threads.h"
#include "kernels/pointwise.h"
#include "quant/calibration.h"
#include "quant/schemes.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct qb_backend qb_backend; /* infer/backend.h */
/* Where an engine runs. */
typedef struct qb_device {
    const qb_backend *backend; /* NULL = the CPU */
    int index;                 /* of several GPUs */
    size_t n_shared; /* devices from `index` on that an evaluation may share out over; 0 = one */
} qb_device;
/* "cpu", "cuda" (all GPUs for evaluations, else the first), "cuda:1", "auto": a GPU if there is one
 * that can be used, else the CPU, and then *note says why in one line (NULL = nothing to say; lives
 * until the thread's next call). QB_ERR_USAGE: no such name; QB_ERR_DEVICE: not here. */
qb_status qb_device_find(const char *name, qb_device *out, const char **note);
const char *qb_device_backend_name(const qb_device *device); /* "cpu", "cuda" */
bool qb_device_is_cpu(const qb_device *device);
bool qb_device_full_is_f32(const qb_device *device); /* there, scheme full-f32 is full */

enum { QB_LOGIT_SLOTS = 3 };
typedef struct qb_backbone qb_backbone;
typedef struct qb_backbone_options {
    size_t max_tokens; /* most rows (batch x tokens) of one prefill call, >= 1 */
    qb_pool *pool;     /* borrowed; NULL = one thread */
    qb_device device;
    size_t logit_slots, logit_rows; /* for qb_engine_head: slots in use (0 to QB_LOGIT_SLOTS) and
                                       rows in each */
} qb_backbone_options;
/* Rows of logits that are worth having at a time for comparisons. */
size_t qb_device_logit_rows(const qb_device *device, size_t vocab);
/* The model is borrowed and must outlive the backbone. */
qb_status qb_backbone_create(const qb_model *model, const qb_backbone_options *options,
                             qb_backbone **out);
void qb_backbone_destroy(qb_backbone *backbone); /* accepts NULL */
size_t qb_backbone_logit_rows(const qb_backbone *backbone);
size_t qb_backbone_n_threads(const qb_backbone *backbone);

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
/* The backbone must outlive the engine. All memory is taken here: forward calls allocate nothing.
 * QB_ERR_SHAPE: a cache longer than the model's positions; QB_ERR_MEMORY, QB_ERR_DEVICE. */
qb_status qb_engine_create(qb_backbone *backbone, const qb_engine_options *options,
                           qb_engine **out);
void qb_engine_destroy(qb_engine *engine); /* accepts NULL */

/* An engine without cache whose linear layers are those of `full`, which quantises nothing, or of
 * `part`, as qb_engine_mix chooses; at first full's. The head is full's. Both are of one backbone,
 * no twins, and must outlive it; so must a device's choice of arithmetic be the same in both. */
qb_status qb_engine_create_mixed(qb_engine *full, qb_engine *part, qb_engine **out);
/* from_part[layer * QB_ROLE_COUNT + role]: 1 = that linear layer is part's. QB_ERR_UNSUPPORTED:
 * layers that take one norm's output differ where the engine cannot tell them apart. */
qb_status qb_engine_mix(qb_engine *mixed, const uint8_t *from_part);
/* Whether layers that take one norm's output can be mixed one by one: not where the device runs
 * them as one product or the scheme smooths them together. */
bool qb_engine_mixes_singly(const qb_engine *mixed);
/* One product of the engine: y (m, n) dense = the layer's output as it is handed on, of x (m, k)
 * dense, on the host, which may be overwritten. m at most max_tokens; the engine must not be in a
 * forward call unless that engine quantises nothing. QB_ERR_UNSUPPORTED on CUDA. */
qb_status qb_engine_product(qb_engine *engine, qb_role role, size_t layer, float *x, size_t m,
                            float *y);

/* Runs `batch` sequences of n_tokens tokens each, tokens (batch, n_tokens), from position 0. Scales
 * "per tensor" span all batch * n_tokens rows. With a cache: batch == cache_batch or fewer, and the
 * cache then holds these sequences. Ids are checked (QB_ERR_SHAPE); so are the limits. */
qb_status qb_engine_prefill(qb_engine *engine, const int32_t *tokens, size_t batch,
                            size_t n_tokens);
/* The same from block `first_block` on, with the stream before it, (batch * n_tokens, C) on the
 * host, as an earlier call with these tokens had it (QB_TAP_STREAM). No cache. QB_ERR_UNSUPPORTED
 * where qb_engine_resumes says false. */
qb_status qb_engine_prefill_from(qb_engine *engine, const int32_t *tokens, size_t batch,
                                 size_t n_tokens, size_t first_block, const float *stream);
bool qb_engine_resumes(const qb_engine *engine);
/* The same for who wants only the logits of each sequence's last token: they are rows 0 to batch -
 * 1 then, as after a decode step. Where no scale spans rows, the rest of the last layer, behind the
 * cache, runs for these rows alone. */
qb_status qb_engine_prefill_last(qb_engine *engine, const int32_t *tokens, size_t batch,
                                 size_t n_tokens);
/* Appends one token to each of the sequences of the last prefill; tokens (batch). It sees all
 * before it, and those do not see it: a free prefix (model/arch.h) is that of one prefill. */
qb_status qb_engine_decode_step(qb_engine *engine, const int32_t *tokens);
/* Positions now in the cache. */
size_t qb_engine_position(const qb_engine *engine);

/* Logits of rows [first_row, first_row + n_rows) of the last prefill (row = sequence * n_tokens +
 * t), prefill_last or decode step (row = sequence), (n_rows, V) dense. May be called for any rows
 * in any order. */
qb_status qb_engine_logits(qb_engine *engine, size_t first_row, size_t n_rows, float *logits);
/* The same for rows first_row, first_row + row_step, ... (n_rows of them), left where the engine
 * runs: in a slot of its backbone, for qb_backbone_compare or for nothing (to time it). */
qb_status qb_engine_head(qb_engine *engine, size_t slot, size_t first_row, size_t row_step,
                         size_t n_rows);
/* Statistics of the first n_rows rows in slot a and slot b (full precision and scheme); b < 0: of a
 * alone (nll_a, top_a). Waits. */
qb_status qb_backbone_compare(qb_backbone *backbone, int slot_a, int slot_b, size_t n_rows,
                              const int32_t *target, qb_logit_stats *out);
/* Waits until all that was queued is done; errors of the device surface here at the latest. */
qb_status qb_engine_sync(qb_engine *engine);

/* From now on the engine's passes are timed by it (infer/timeline.h); NULL = no more. Borrowed. */
typedef struct qb_timeline qb_timeline;
void qb_engine_set_timeline(qb_engine *engine, qb_timeline *timeline);

/* What is quantised and what is not. */
typedef struct qb_coverage {
    size_t linears, linears_quantised; /* linear layers incl. the head */
    double macs_share, bytes_share;    /* of all linear layers' multiply-adds and weight bytes */
    const char *kept_float[10];        /* "embedding", "norms", "softmax", ...; NULL ends */
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
qb_backbone *qb_engine_backbone(const qb_engine *engine);

#ifdef __cplusplus
}
#endif
#endif
