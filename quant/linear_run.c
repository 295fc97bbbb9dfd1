/* quant/linear_run.c - running one linear layer: staging its input, the product, the finish; see
 * linear.h for the order of calls. */
#include "quant/linear_internal.h"

#include "core/memory.h"

#include <string.h>

/* ---- input ---- */

bool qb_linear_stage_waits(const qb_linear *l, const qb_linear_input *in)
{
    if (qb__linear_has_outliers(l)) return true;
    return l->input.bits && l->input.span == QB_SPAN_TENSOR && !l->input.is_static &&
           !in->fixed_scale;
}

/* Codes of rows [m0, m1) with the scales as they are known now. */
static void quantize_rows(const qb_linear *l, const qb_linear_input *in, const float *tensor_scale,
                          size_t m0, size_t m1)
{
    const qb_quantize_row *kernels = l->quantize;
    qb_linear_scratch *s = in->scratch;
    size_t k = in->k, stride = qb_gemm_s8_x_stride(k);
    bool fake = l->kind == QB_LINEAR_FAKE;
    for (size_t m = m0; m < m1; m++) {
        float *x = in->x + m * k;
        int8_t *q = s->q + m * stride;
        if (l->input.span == QB_SPAN_CHANNEL) {
            if (fake)
                kernels->requantize_channels(x, k, l->in_scale, NULL);
            else
                s->q_sum[m] = kernels->quantize_s8_channels(x, k, l->in_scale, q);
        } else {
            float scale = tensor_scale ? *tensor_scale : kernels->absmax(x, k) / 127.0f;
            if (!tensor_scale) s->q_scale[m] = scale;
            if (fake)
                kernels->requantize(x, k, scale, NULL);
            else
                s->q_sum[m] = kernels->quantize_s8(x, k, scale, q);
        }
        for (size_t c = 0; fake && l->smooth && c < k; c++) x[c] *= l->smooth[c];
        if (!fake) memset(q + k, 0, qb_round_up(k, QB_GEMM_S8_K_ALIGN) - k);
    }
}

void qb_linear_smooth_row(const qb_linear *l, float *x)
{
    for (size_t c = 0; l->smooth && c < l->k; c++) x[c] /= l->smooth[c];
}

void qb_linear_stage_rows(const qb_linear *l, const qb_linear_input *in, size_t m0, size_t m1)
{
    if (!l->input.bits || qb__linear_has_outliers(l)) return;
    for (size_t m = m0; m < m1; m++) qb_linear_smooth_row(l, in->x + m * in->k);
    if (qb_linear_stage_waits(l, in)) {
        for (size_t m = m0; m < m1; m++)
            in->scratch->row_max[m] = l->quantize->absmax(in->x + m * in->k, in->k);
        return;
    }
    const float *scale = l->input.span == QB_SPAN_TOKEN ? NULL
                         : l->input.is_static           ? l->in_scale
                                                        : in->fixed_scale;
    quantize_rows(l, in, scale, m0, m1);
}

typedef struct rows_job {
    const qb_linear *linear;
    const qb_linear_input *input;
} rows_job;

static void finish_rows(void *context, size_t m0, size_t m1)
{
    const rows_job *job = context;
    quantize_rows(job->linear, job->input, job->input->scratch->q_scale, m0, m1);
}

void qb_linear_stage_finish(const qb_linear *l, const qb_linear_input *in, qb_pool *pool)
{
    if (!qb_linear_stage_waits(l, in)) return;
    if (qb__linear_has_outliers(l)) {
        qb__linear_stage_inliers(l, in, pool);
        return;
    }
    qb_linear_scratch *s = in->scratch;
    s->q_scale[0] = l->quantize->absmax(s->row_max, in->m) / 127.0f;
    rows_job job = {l, in};
    qb_parallel_spans(pool, in->m, QB__LINEAR_ROWS_A_TASK, finish_rows, &job);
}

/* ---- product ---- */

static uint32_t *wanted_max(qb_linear *l)
{
    l->max_abs_bits = 0;
    return l->output.bits && !l->output.is_static ? &l->max_abs_bits : NULL;
}

static void run_s8(qb_linear *const *linears, const qb_linear_output *out, size_t n_linears,
                   const qb_linear_input *in, qb_pool *pool)
{
    static const float one = 1.0f;
    qb_gemm_s8_args jobs[QB_LINEAR_GROUP_MAX] = {{0}};
    const qb_linear_scratch *s = in->scratch;
    for (size_t i = 0; i < n_linears; i++) {
        qb_linear *l = linears[i];
        bool per_token = l->input.span == QB_SPAN_TOKEN,
             channels = l->input.span == QB_SPAN_CHANNEL;
        const float *scale = channels             ? &one
                             : per_token          ? s->q_scale
                             : l->input.is_static ? l->in_scale
                             : in->fixed_scale    ? in->fixed_scale
                                                  : s->q_scale;
        jobs[i] = (qb_gemm_s8_args){.m = in->m,
                                    .n = l->n,
                                    .k = l->k,
                                    .x = s->q,
                                    .x_stride = qb_gemm_s8_x_stride(l->k),
                                    .x_sum = s->q_sum,
                                    .w = l->packed,
                                    .y = out[i].y,
                                    .y_stride = out[i].stride,
                                    .x_scale = scale,
                                    .x_scale_step = per_token,
                                    .w_scale = l->w_scale,
                                    .w_scale_step = l->w_scale_step,
                                    .bias = l->bias,
                                    .max_abs_bits = wanted_max(l)};
    }
    qb_gemm_s8_run(linears[0]->s8, jobs, n_linears, pool);
    for (size_t i = 0; i < n_linears; i++) qb__linear_add_outliers(linears[i], &out[i], in, pool);
}

static void prepare_rows(void *context, size_t m0, size_t m1)
{
    const rows_job *job = context;
    const qb_linear_input *in = job->input;
    job->linear->u4->prepare(in->x, in->k, m0, m1, in->m, in->k, job->linear->packed,
                             in->scratch->prepared);
}

/* Layers that take the same prepared input by the same row run as one loop. */
static size_t u4_together(qb_linear *const *linears, size_t n_linears)
{
    size_t n = 1;
    while (n < n_linears && !linears[0]->own_prepare && linears[n]->u4 == linears[0]->u4) n++;
    return n;
}

static void run_u4(qb_linear *const *linears, const qb_linear_output *out, size_t n_linears,
                   const qb_linear_input *in, qb_pool *pool)
{
    qb_gemm_u4_args jobs[QB_LINEAR_GROUP_MAX];
    for (size_t n = 0; n_linears > 0; linears += n, out += n, n_linears -= n) {
        n = u4_together(linears, n_linears);
        bool prepared = linears[0]->u4->prepared_bytes(in->m, in->k) > 0;
        rows_job prepare = {linears[0], in};
        if (prepared)
            qb_parallel_spans(pool, in->m, QB__LINEAR_ROWS_A_TASK, prepare_rows, &prepare);
        for (size_t i = 0; i < n; i++)
            jobs[i] = (qb_gemm_u4_args){.m = in->m,
                                        .n = linears[i]->n,
                                        .k = in->k,
                                        .x = in->x,
                                        .x_stride = in->k,
                                        .x_prepared = prepared ? in->scratch->prepared : NULL,
                                        .w = linears[i]->packed,
                                        .y = out[i].y,
                                        .y_stride = out[i].stride,
                                        .bias = linears[i]->bias};
        qb_gemm_u4_run(linears[0]->u4, jobs, n, pool);
    }
}

static void run_f32(qb_linear *const *linears, const qb_linear_output *out, size_t n_linears,
                    const qb_linear_input *in, void *const *packed, qb_pool *pool)
{
    qb_gemm_f32_args jobs[QB_LINEAR_GROUP_MAX];
    for (size_t i = 0; i < n_linears; i++) {
        qb_linear *l = linears[i];
        jobs[i] = (qb_gemm_f32_args){.m = in->m,
                                     .n = l->n,
                                     .k = l->k,
                                     .x = in->x,
                                     .x_stride = in->k,
                                     .w = packed[i],
                                     .y = out[i].y,
                                     .y_stride = out[i].stride,
                                     .bias = l->bias,
                                     .max_abs_bits = wanted_max(l)};
    }
    qb_gemm_f32_run(linears[0]->f32, jobs, n_linears, pool);
}

/* A fake layer's weights are dequantised for each call into shared scratch: a call has thousands of
 * rows where fake layers are used, so this costs little and saves an f32 copy of the model. */
static void run_fake(qb_linear *l, const qb_linear_output *out, const qb_linear_input *in,
                     qb_pool *pool)
{
    qb__linear_pack_fake(l, in->scratch, pool);
    qb_linear *const one[] = {l};
    void *const packed[] = {in->scratch->fake_packed};
    run_f32(one, out, 1, in, packed, pool);
}

void qb_linear_run(qb_linear *const *linears, const qb_linear_output *outputs, size_t n_linears,
                   const qb_linear_input *input, qb_pool *pool)
{
    void *packed[QB_LINEAR_GROUP_MAX];
    size_t n_all = n_linears, n = 1;
    while (n < n_all && linears[n]->kind == linears[0]->kind) n++;
    n_linears = n;
    switch (linears[0]->kind) {
    case QB_LINEAR_S8:
        run_s8(linears, outputs, n_linears, input, pool);
        break;
    case QB_LINEAR_U4:
        run_u4(linears, outputs, n_linears, input, pool);
        break;
    case QB_LINEAR_F32:
        for (size_t i = 0; i < n_linears; i++) packed[i] = linears[i]->packed;
        run_f32(linears, outputs, n_linears, input, packed, pool);
        break;
    case QB_LINEAR_FAKE:
        for (size_t i = 0; i < n_linears; i++) run_fake(linears[i], &outputs[i], input, pool);
        break;
    }
    if (n < n_all) qb_linear_run(linears + n, outputs + n, n_all - n, input, pool);
}

static float out_scale_of(const qb_linear *l)
{
    return l->output.is_static ? l->out_scale : qb_f32_from_bits(l->max_abs_bits) / 127.0f;
}

void qb_linear_finish_row(const qb_linear *l, float *y)
{
    if (l->output.bits) l->quantize->requantize(y, l->n, out_scale_of(l), NULL);
}
