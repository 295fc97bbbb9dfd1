/* quant/quantize_model.h - a model whose linear layers hold codes: what convert --quantize stores
 * and what engines pack. */
#ifndef QB_QUANT_QUANTIZE_MODEL_H
#define QB_QUANT_QUANTIZE_MODEL_H

#include "core/threads.h"
#include "quant/calibration.h"
#include "quant/schemes.h"

#ifdef __cplusplus
extern "C" {
#endif

/* *out = the linear layers of the blocks (and the head with quantize_head; where it is tied, the
 * model gets a head of its own) as codes by scheme->weights; everything else refers to `in`, which
 * must outlive it. A layer that already holds codes of the same kind is taken as it is. calibration
 * only where weights.fold_inputs or .smooth_alpha. QB_ERR_USAGE: the scheme quantises no weights.
 */
qb_status qb_quantize_model(const qb_model *in, const qb_scheme *scheme,
                            const qb_calibration *calibration, bool quantize_head, qb_pool *pool,
                            qb_model **out);

/* One matrix (rows, cols): (1) or (2) of schemes.h. codes: s8 (rows, cols), or u4 (rows,
 * ceil(cols/2)). scale, zero_point, fill (qb_axis_n_slices each; zero_point and fill may be
 * NULL for 8 bits). */
qb_status qb_quantize_matrix(const qb_weight_quant *quant, const float *w, size_t rows, size_t cols,
                             void *codes, float *scale, int32_t *zero_point, float *fill,
                             qb_pool *pool);

#ifdef __cplusplus
}
#endif
#endif
