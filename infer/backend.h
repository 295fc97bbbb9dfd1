/* infer/backend.h - what a device must bring to run engines: one row of qb_backends each.
 *
 * infer/engine.c checks arguments, counts what is quantised and calls the row; a backend's own
 * structs begin with the ones below. Adding a device is a row and its files. */
#ifndef QB_INFER_BACKEND_H
#define QB_INFER_BACKEND_H

#include "infer/taps.h"
#include "infer/timeline.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { ENGINE_KERNELS_TEXT = 512 }; /* bytes of the names of an engine's kernels, with the NUL */

struct qb_backbone {
    const qb_backend *backend;
    int device_idx;
    const qb_model *model;
    const qb_config *config; /* &model->config */
    qb_pool *pool;
    size_t max_tokens;
    size_t logit_slots, logit_rows;
};

struct qb_engine {
    qb_backbone *backbone;
    qb_scheme scheme;
    size_t linears, linears_quantised;
    double macs, macs_quantised; /* multiply-adds a token of all linear layers */
    size_t weights_bytes;
    size_t cache_batch, cache_context;
    size_t batch, position, n_rows; /* of the last call */
    size_t row_step;        /* the last of each row_step rows can be asked for; 1 = all can */
    const qb_taps *taps;    /* who looks at prefills; NULL = nobody */
    qb_engine *full, *part; /* of a mixed engine: whose linear layers it has; else NULL */
    size_t first_block;     /* of the forward call: the first to run, from `stream`; */
    const float *stream;    /* NULL = from the embedding */
    char kernels[ENGINE_KERNELS_TEXT];
    qb_timeline *timeline; /* NULL = off */
};

struct qb_backend {
    const char *name; /* "cpu", "cuda" */
    /* NULL = device `index` can be used, else why not, in one line. */
    const char *(*refusal)(int index);
    size_t (*count)(void); /* devices that are there */
    bool full_is_f32;      /* scheme `full` computes in f32 here, so full-f32 is the same */
    /* What is worth holding of logits: bytes of one slot. */
    size_t logit_bytes;
    unsigned taps; /* bits of those that it shows */
    /* These allocate and fill the backend's struct around a base that is already set up; on failure
     * they leave nothing behind. */
    qb_status (*backbone_create)(const qb_backbone *base, qb_backbone **out);
    void (*backbone_destroy)(qb_backbone *backbone);
    qb_status (*engine_create)(const qb_engine *base, const qb_engine_options *options,
                               qb_engine **out);
    void (*engine_destroy)(qb_engine *engine);
    /* As engine_create, from a base with full and part; mix then sets its layers and counts them.
     */
    qb_status (*mixed_create)(const qb_engine *base, qb_engine **out);
    qb_status (*mix)(qb_engine *mixed, const uint8_t *from_part);
    bool mixes_singly; /* layers behind one norm can be of different parts */
    bool resumes;      /* forward looks at first_block and stream */
    /* y (m, n) = the layer of x (m, k), which it may overwrite; as in a forward call, without what
     * follows. NULL = not here. The role is a linear layer that the model has. */
    qb_status (*product)(qb_engine *engine, qb_role role, size_t layer, float *x, size_t m,
                         float *y);
    /* tokens (batch, n_tokens), checked, from position `past` on. last_only: only each sequence's
     * last row is asked for afterwards, as row `sequence`. */
    qb_status (*forward)(qb_engine *engine, const int32_t *tokens, size_t batch, size_t n_tokens,
                         size_t past, bool last_only);
    /* qb_engine_logits, qb_engine_head, qb_backbone_compare and qb_engine_sync of engine.h, with
     * arguments that were checked; rows are those of the forward call. */
    qb_status (*logits)(qb_engine *engine, size_t first_row, size_t n_rows, float *logits);
    qb_status (*head)(qb_engine *engine, size_t slot, size_t first_row, size_t row_step,
                      size_t n_rows);
    qb_status (*compare)(qb_backbone *backbone, int slot_a, int slot_b, size_t n_rows,
                         const int32_t *target, qb_logit_stats *out);
    qb_status (*sync)(qb_backbone *backbone);
    void (*memory)(const qb_engine *engine, qb_engine_memory *out); /* bytes on the device */
    /* NULL = the processor's clock. For at most n_stamps stamps. */
    qb_status (*timeline_clock)(qb_backbone *backbone, size_t n_stamps, qb_timeline_clock *out);
    /* The device's peaks; NULL = the processor's. */
    qb_status (*peaks)(int index, qb_peaks *out);
};
extern const qb_backend qb__cpu_backend, qb__cuda_backend;
extern const qb_backend *const qb_backends[]; /* the CPU first; NULL ends */

/* For backends in a forward call: shows the view to taps->see if it is among those wanted. */
qb_status qb__taps_show(const qb_taps *taps, const qb_tap_view *view);

/* For backends while they make an engine. */
void qb__engine_count_linear(qb_engine *engine, size_t n, size_t k, bool quantised);
void qb__engine_name_kernel(qb_engine *engine, const char *name);
/* Bytes of norms, embeddings and biases: what no linear layer counts. */
size_t qb__float_weights_bytes(const qb_model *model);

#ifdef __cplusplus
}
#endif
#endif
