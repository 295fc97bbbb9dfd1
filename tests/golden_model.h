/* tests/golden_model.h - the golden models (saved by Hugging Face transformers, computed in
 * float64), and an engine's logits of them on any device. */
#ifndef QB_TESTS_GOLDEN_MODEL_H
#define QB_TESTS_GOLDEN_MODEL_H

#include "model/model.h"
#include "quant/calibration.h"
#include "quant/schemes.h"

/* Folders of golden models; NULL ends them. */
extern const char *const qb_golden_models[];

typedef struct qb_golden {
    int32_t *tokens;
    float *logits;   /* (batch, n_tokens, vocab) */
    double mean_nll; /* of the next tokens */
    size_t batch, n_tokens, vocab;
    qb_model *model;
    qb_calibration *calibration; /* on a few hundred tokens */
} qb_golden;

/* Skips the running test where the golden cases are absent. */
qb_golden qb_golden_open(const char *name);
void qb_golden_close(qb_golden *golden);

/* Logits of the whole (batch, n_tokens) as one prefill on "cpu" or "cuda"; the caller frees. */
float *qb_golden_run(const qb_golden *golden, const char *device, const qb_scheme *scheme);
/* max |difference| of such logits over the largest golden logit, and the same of the mean nll. */
double qb_golden_error(const qb_golden *golden, const float *logits);
double qb_golden_nll_error(const qb_golden *golden, const float *logits);

#endif
