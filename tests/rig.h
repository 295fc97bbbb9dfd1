/* tests/rig.h - a tiny model ready to run: threads, a backbone on the processor and one on a GPU
 * where it is asked for, calibration, tokens; and what an engine on either makes of the tokens. */
#ifndef QB_TESTS_RIG_H
#define QB_TESTS_RIG_H

#include "infer/engine.h"
#include "tiny_model.h"

typedef struct qb_test_rig {
    qb_pool *pool;
    qb_model *model;
    qb_backbone *cpu, *gpu;
    qb_calibration *calibration;
    int32_t *tokens; /* (batch, n_tokens) */
    size_t batch, n_tokens, n_rows, n_logits;
} qb_test_rig;

typedef struct qb_test_rig_options {
    size_t batch, n_tokens;
    size_t n_threads;               /* 0: two */
    const char *device;             /* "cuda"; NULL: no backbone `gpu` */
    size_t logit_slots, logit_rows; /* of each backbone; 0: as it chooses */
} qb_test_rig_options;

qb_test_rig qb_test_rig_create(const qb_config *config, const qb_test_rig_options *options);
void qb_test_rig_destroy(qb_test_rig *r);

/* The logits (batch, n_tokens, V) of a prefill by the engine; free() them. */
float *qb_test_prefill(const qb_test_rig *r, qb_engine *e);
/* The same by an engine that is made for it. */
float *qb_test_logits(const qb_test_rig *r, qb_backbone *backbone, const qb_scheme *scheme,
                      bool fake, bool quantize_head);

#endif
