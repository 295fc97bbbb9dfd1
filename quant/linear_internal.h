/* quant/linear_internal.h - what linear.c needs of linear_outliers.c. */
#ifndef QB_QUANT_LINEAR_INTERNAL_H
#define QB_QUANT_LINEAR_INTERNAL_H

#include "quant/linear.h"

static inline bool qb__linear_has_outliers(const qb_linear *l)
{
    return l->input.bits && l->input.outlier_min > 0;
}

/* The codes once more by input channel, where outliers are to be multiplied. */
qb_status qb__linear_set_columns(qb_linear *linear, const qb_tensor *weight);
/* After all rows: finds the outliers, unless they are given, and makes the codes of the others. */
void qb__linear_stage_inliers(const qb_linear *linear, const qb_linear_input *input, qb_pool *pool);
/* Adds the outliers' product to the output of the product of codes. */
void qb__linear_add_outliers(const qb_linear *linear, const qb_linear_output *output,
                             const qb_linear_input *input, qb_pool *pool);

#endif
