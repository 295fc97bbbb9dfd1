/* quant/linear_internal.h - what linear.c (making), linear_run.c and linear_outliers.c share. */
#ifndef QB_QUANT_LINEAR_INTERNAL_H
#define QB_QUANT_LINEAR_INTERNAL_H

#include "quant/linear.h"

enum { QB__LINEAR_ROWS_A_TASK = 8 }; /* of loops over the rows of an input */

static inline bool qb__linear_has_outliers(const qb_linear *l)
{
    return l->input.bits && l->input.outlier_min > 0;
}

/* A fake layer's weights, dequantised and packed into scratch->fake_packed. */
void qb__linear_pack_fake(const qb_linear *linear, qb_linear_scratch *scratch, qb_pool *pool);
/* The codes once more by input channel, where outliers are to be multiplied. */
qb_status qb__linear_set_columns(qb_linear *linear, const qb_tensor *weight);
/* After all rows: finds the outliers, unless they are given, and makes the codes of the others. */
void qb__linear_stage_inliers(const qb_linear *linear, const qb_linear_input *input, qb_pool *pool);
/* Adds the outliers' product to the output of the product of codes. */
void qb__linear_add_outliers(const qb_linear *linear, const qb_linear_output *output,
                             const qb_linear_input *input, qb_pool *pool);

#endif
