/* infer/calibrate.h - runs the full-precision model over calibration text and records the maxima.
 */
#ifndef QB_INFER_CALIBRATE_H
#define QB_INFER_CALIBRATE_H

#include "infer/engine.h"
#include "model/text.h"

#ifdef __cplusplus
extern "C" {
#endif

/* The calibration stored in the model, or one made from `text` (NULL = the built-in calibration
 * text) in windows of min(context, 512) tokens, at most max_tokens (0 = 4,096), with a backbone of
 * its own, so that the same model and text always give the same scales. A model without tokenizer
 * is calibrated on random token ids, and text_name says so. The caller destroys it. */
qb_status qb_calibrate(const qb_model *model, qb_pool *pool, const qb_text *text, size_t max_tokens,
                       qb_calibration **out);

#ifdef __cplusplus
}
#endif
#endif
