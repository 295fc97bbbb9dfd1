/* quant/linear.h - one linear layer prepared for its kernel row: packed weights, how its input is
 * quantised, what happens to its output. The engine composes a forward pass from these and never
 * asks which scheme it runs.
 *
 *     input rows -> qb_linear_stage_rows -> qb_linear_stage_finish -> qb_linear_run -> y
 *     consumer of y: qb_linear_finish_row (requantises the output where the scheme says so)
 *
 * A fake layer does the same in floats: quantise and dequantise the input in place, float product
 * with dequantised weights, the same finish. A smoothed layer (schemes.h (3)) divides the input in
 * place first. With outliers (schemes.h (4)) the sum over their channels,
 *
 *     y[m, n] = product of codes + bias[n] + (sum over j of O, ascending, of x[m, j] q[n, j]) *
 * w_scale[n]
 *
 * is made in f32, one rounding an operation in this order: the same bits wherever it runs. */
#ifndef QB_QUANT_LINEAR_H
#define QB_QUANT_LINEAR_H

#include "core/threads.h"
#include "kernels/gemm_f32.h"
#include "kernels/gemm_s8.h"
#include "kernels/gemm_u4.h"
#include "kernels/quantize.h"
#include "quant/calibration.h"
#include "quant/schemes.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum { QB_LINEAR_F32, QB_LINEAR_S8, QB_LINEAR_U4, QB_LINEAR_FAKE } qb_linear_kind;

typedef struct qb_linear {
    qb_linear_kind kind;
    size_t n, k;             /* output and input channels */
    const qb_tensor *weight; /* borrowed by a fake layer, which reads it in each call; else NULL */
    void *packed;            /* NULL for a fake layer */
    size_t packed_bytes;
    const qb_gemm_f32_row *f32; /* the row of its kind; a fake layer uses f32 */
    const qb_gemm_s8_row *s8;
    const qb_gemm_u4_row *u4;
    const qb_quantize_row *quantize;
    float *w_scale; /* 8-bit codes: (n) per output channel or (1) per tensor; owned */
    size_t w_scale_step;
    bool own_prepare; /* 4-bit weights with scales per input channel: these become part of the
                         prepared input, which other layers then cannot share */
    float *bias;      /* (n) or NULL; owned */
    qb_act_quant input, output;
    float *in_scale;       /* static: (1) per tensor or (k) per channel; owned; NULL = dynamic */
    float out_scale;       /* static scale of the output */
    float *smooth;         /* (k) factors that the input is divided by; owned; NULL = none */
    int8_t *columns;       /* (k, n) codes by input channel, for outliers; owned; NULL = none */
    uint32_t max_abs_bits; /* of the last output, for the dynamic scale */
} qb_linear;

/* The layer of `weight` (f32-like or codes) under the scheme. calibration: where static scales are
 * asked for. weight must outlive a fake layer. */
qb_status qb_linear_create(const qb_tensor *weight, const qb_tensor *bias, const qb_scheme *scheme,
                           bool fake, const qb_calibration *calibration, qb_pool *pool,
                           qb_linear *out);
void qb_linear_deinit(qb_linear *linear); /* accepts a zeroed one */
/* Packed weights, scales and bias. */
size_t qb_linear_bytes(const qb_linear *linear);

/* The input channels that stay float in one call. */
typedef struct qb_outlier_set {
    uint8_t *is_outlier; /* (k) 0 or 1 */
    uint32_t *channel;   /* (n) ascending */
    size_t n;
} qb_outlier_set;

/* Memory that the layers of an engine share, sized for the largest; owned by the backbone. */
typedef struct qb_linear_scratch {
    int8_t *q;      /* (max_rows, qb_gemm_s8_x_stride(k)) codes of the input */
    int32_t *q_sum; /* (max_rows) */
    float *q_scale; /* (max_rows) per token, or one in [0] */
    float *row_max; /* (max_rows) */
    void *prepared; /* gemm_u4 */
    size_t prepared_bytes;
    float *fake_rows; /* dequantised rows before packing, for each thread */
    void *fake_packed;
    qb_outlier_set outliers;
    float *inliers; /* a row for each thread, outliers 0 */
    size_t bytes;
} qb_linear_scratch;
/* What one layer will need at most `max_rows` rows; take the maximum over layers. */
typedef struct qb_linear_need {
    size_t max_k, prepared_bytes, fake_rows_elems, fake_packed_bytes;
    size_t outlier_k, inlier_elems;
} qb_linear_need;
void qb_linear_need_add(const qb_linear *linear, size_t max_rows, size_t n_threads,
                        qb_linear_need *need);
/* Grows the scratch to the need. */
qb_status qb_linear_scratch_grow(qb_linear_scratch *scratch, size_t max_rows,
                                 const qb_linear_need *need);
void qb_linear_scratch_deinit(qb_linear_scratch *scratch);

/* The input of layers that share it (q, k and v): m rows of f32, stride k. */
typedef struct qb_linear_input {
    float *x; /* (m, k); a fake layer overwrites it with the dequantised values */
    size_t m, k;
    const float
        *fixed_scale; /* dynamic scale per tensor known beforehand; NULL = made by the stage */
    const qb_outlier_set *fixed_outliers; /* likewise */
    qb_linear_scratch *scratch;
} qb_linear_input;

/* Stages rows [m0, m1) of x, once they are complete; disjoint rows may be staged in parallel. */
void qb_linear_stage_rows(const qb_linear *linear, const qb_linear_input *input, size_t m0,
                          size_t m1);
/* True if the codes must wait until all rows are there. */
bool qb_linear_stage_waits(const qb_linear *linear, const qb_linear_input *input);
/* After all rows: makes a dynamic per-tensor scale or the set of outliers, and the codes, where
 * they wait. */
void qb_linear_stage_finish(const qb_linear *linear, const qb_linear_input *input, qb_pool *pool);
/* Divides one row of k values by the layer's factors, where it has some. */
void qb_linear_smooth_row(const qb_linear *linear, float *x);
/* Which channels of the input are outliers for the layer; *out has room for k. */
void qb_linear_find_outliers(const qb_linear *linear, const qb_linear_input *input,
                             qb_outlier_set *out, qb_pool *pool);
/* The static scale of an input with one scale: the largest of its channels after smoothing
 * (NULL = none) / 127. */
float qb_static_in_scale(const qb_calibration_linear *calibration, const float *smooth);

/* A tensor's 4-bit codes as the kernels read them; borrows from the tensor. */
qb_u4_weights qb_u4_view(const qb_tensor *tensor);

typedef struct qb_linear_output {
    float *y; /* (m, n) with row stride stride */
    size_t stride;
} qb_linear_output;
#define QB_LINEAR_GROUP_MAX 3
/* Runs up to QB_LINEAR_GROUP_MAX layers with the same staged input, neighbours of one kind as one
 * parallel loop. */
void qb_linear_run(qb_linear *const *linears, const qb_linear_output *outputs, size_t n_linears,
                   const qb_linear_input *input, qb_pool *pool);
/* Requantises one row of the output of the last run, where the scheme quantises outputs. */
void qb_linear_finish_row(const qb_linear *linear, float *y);

#ifdef __cplusplus
}
#endif
#endif
