/* quant/calibration.h - largest absolute values seen at each linear layer on calibration text: what
 * static scales are made of. Filled by running the full-precision engine with a collector
 * (infer/calibrate.h), stored in model.bin's header as JSON. */
#ifndef QB_QUANT_CALIBRATION_H
#define QB_QUANT_CALIBRATION_H

#include "model/model.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct qb_calibration_linear {
    float in_max, out_max; /* over all tokens and channels */
    float *in_channel_max; /* (cols) */
    size_t cols;
} qb_calibration_linear;

typedef struct qb_calibration {
    char *text_name;
    char text_sha256[65];
    size_t n_tokens;
    size_t n_layers;
    qb_calibration_linear
        *linears; /* (n_layers + 1) x QB_ROLE_COUNT; the last row's HEAD is the head */
} qb_calibration;

qb_status qb_calibration_create(const qb_config *config, qb_calibration **out); /* all maxima 0 */
void qb_calibration_destroy(qb_calibration *calibration);                       /* accepts NULL */
/* Borrowed; layer_idx is ignored for QB_ROLE_HEAD. */
qb_calibration_linear *qb_calibration_at(const qb_calibration *calibration, qb_role role,
                                         size_t layer_idx);
qb_status qb_calibration_to_json(const qb_calibration *calibration, json_t **out);
/* Checks every size against the configuration and that all values are finite and not negative. */
qb_status qb_calibration_from_json(const json_t *object, const qb_config *config,
                                   qb_calibration **out);

#ifdef __cplusplus
}
#endif
#endif
