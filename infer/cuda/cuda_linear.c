/* infer/cuda/cuda_linear.c - weights on their way to the device, and running one product. */
#include "infer/cuda/cuda_engine.h"

#include "core/memory.h"
#include "kernels/cuda/absmax.h"
#include "kernels/cuda/gemm_float.h"
#include "kernels/gemm_s8.h"
#include "quant/linear.h"

#include <string.h>

/* ---- uploading ---- */

enum { CHUNK_BYTES = 32 << 20 };

/* One tensor's rows in chunks: converted in parallel on the host, then copied. */
typedef struct upload {
    const qb_tensor *tensor;
    qb_cuda_dtype type;
    size_t stride;     /* elements of a row on the device */
    size_t first, end; /* rows of this chunk */
    char *host;        /* chunk, rows of stride elements */
    float *rows_f32;   /* one row a thread */
} upload;

static void convert_row(void *context, size_t i, size_t thread_idx)
{
    const upload *u = context;
    const qb_tensor *t = u->tensor;
    size_t row = u->first + i, elem_bytes = qb_cuda_dtype_bytes(u->type);
    char *dst = u->host + i * u->stride * elem_bytes;
    memset(dst + t->cols * elem_bytes, 0, (u->stride - t->cols) * elem_bytes);
    if (u->type == QB_CUDA_S8) {
        memcpy(dst, (const int8_t *)t->data + row * t->cols, t->cols);
    } else if (u->type == QB_CUDA_F32) {
        qb_tensor_rows_f32(t, row, 1, (float *)dst);
    } else {
        float *x = u->rows_f32 + thread_idx * t->cols;
        qb_tensor_rows_f32(t, row, 1, x);
        for (size_t k = 0; k < t->cols; k++) ((uint16_t *)dst)[k] = qb_bf16_from_f32(x[k]);
    }
}

static qb_status upload_rows(upload *u, qb_pool *pool, char *dev)
{
    size_t row_bytes = u->stride * qb_cuda_dtype_bytes(u->type);
    size_t chunk = CHUNK_BYTES / row_bytes ? CHUNK_BYTES / row_bytes : 1;
    if (chunk > u->tensor->rows) chunk = u->tensor->rows;
    QB_TRY(QB_NEW(&u->rows_f32, qb_pool_n_threads(pool) * u->tensor->cols, "row"));
    qb_status status = qb_alloc((void **)&u->host, chunk, row_bytes, "rows on their way");
    for (u->first = 0; status == QB_OK && u->first < u->tensor->rows; u->first = u->end) {
        u->end = u->first + chunk < u->tensor->rows ? u->first + chunk : u->tensor->rows;
        qb_parallel_for(pool, u->end - u->first, convert_row, u);
        status =
            qb_cuda_upload(dev + u->first * row_bytes, u->host, (u->end - u->first) * row_bytes, 0);
        if (status == QB_OK) status = qb_cuda_sync(0);
    }
    qb_free(u->rows_f32);
    qb_free(u->host);
    return status;
}

static qb_status upload_matrix(const qb_tensor *const *tensors, size_t n_tensors,
                               qb_cuda_dtype type, qb_pool *pool, void **out)
{
    size_t stride = qb_cuda_stride(tensors[0]->cols), rows = 0;
    size_t row_bytes = stride * qb_cuda_dtype_bytes(type);
    for (size_t i = 0; i < n_tensors; i++) rows += tensors[i]->rows;
    /* tiles may read past the last row */
    QB_TRY(qb_cuda_alloc_zero(out, rows + QB_CUDA_ROW_PAD, row_bytes, "weights"));
    char *dev = *out;
    for (size_t i = 0; i < n_tensors; i++) {
        upload u = {.tensor = tensors[i], .type = type, .stride = stride};
        qb_status status = upload_rows(&u, pool, dev);
        if (status != QB_OK) {
            qb_cuda_free(*out);
            *out = NULL;
            return status;
        }
        dev += tensors[i]->rows * row_bytes;
    }
    return QB_OK;
}

qb_status qb__cuda_upload_float(const qb_tensor *const *tensors, size_t n_tensors,
                                qb_cuda_dtype type, qb_pool *pool, void **out)
{
    return upload_matrix(tensors, n_tensors, type, pool, out);
}

static qb_status upload_floats(const float *values, size_t n, float **out)
{
    QB_TRY(QB_CUDA_NEW(out, n, "scales and biases"));
    qb_status status = qb_cuda_upload(*out, values, n * sizeof *values, 0);
    if (status == QB_OK) status = qb_cuda_sync(0);
    return status;
}

qb_status qb__cuda_upload_vector(const qb_tensor *t, float **out)
{
    float *values;
    *out = NULL;
    if (!t->data) return QB_OK;
    QB_TRY(QB_NEW(&values, t->rows * t->cols, "vector"));
    qb_tensor_rows_f32(t, 0, t->rows, values);
    qb_status status = upload_floats(values, t->rows * t->cols, out);
    qb_free(values);
    return status;
}

/* ---- making a product ---- */

static qb_status set_biases(const qb_tensor *const *biases, const qb_tensor *const *weights,
                            size_t n_segments, qb_cuda_linear *l)
{
    if (!biases || !biases[0]->data) return QB_OK;
    float *values;
    QB_TRY(QB_NEW(&values, l->n, "bias"));
    for (size_t i = 0, at = 0; i < n_segments; at += weights[i++]->rows)
        qb_tensor_rows_f32(biases[i], 0, 1, values + at);
    qb_status status = upload_floats(values, l->n, &l->bias);
    qb_free(values);
    return status;
}

static qb_status set_weight_scales(const qb_tensor *const *weights, size_t n_segments,
                                   qb_cuda_linear *l)
{
    float *values;
    QB_TRY(QB_NEW(&values, l->n, "weight scales"));
    for (size_t i = 0, at = 0; i < n_segments; at += weights[i++]->rows) {
        const qb_tensor_quant *q = &weights[i]->quant;
        for (size_t n = 0; n < weights[i]->rows; n++)
            values[at + n] = q->scale[q->axis == QB_AXIS_OUT ? n : 0];
    }
    qb_status status = upload_floats(values, l->n, &l->w_scale);
    qb_free(values);
    return status;
}

static qb_status set_u4(const qb_tensor *const *weights, size_t n_segments, qb_cuda_linear *l,
                        const char **why)
{
    qb_u4_weights views[QB_CUDA_SEGMENTS];
    for (size_t i = 0; i < n_segments; i++) views[i] = qb_u4_view(weights[i]);
    *why = NULL;
    QB_TRY(qb_cuda_u4_pack_many(views, n_segments, &l->u4, why));
    if (!*why) l->kind = QB_CUDA_LINEAR_U4;
    return QB_OK;
}

static qb_status set_weights(const qb_tensor *const *weights, size_t n_segments,
                             const cuda_linear_options *o, qb_cuda_linear *l)
{
    const qb_tensor_quant *q = &weights[0]->quant;
    const char *why = NULL;
    const bool as_codes = !o->fake && o->scheme->weights.bits && q->axis != QB_AXIS_NONE;
    if (as_codes && q->bits == 8) {
        l->kind = QB_CUDA_LINEAR_S8;
        if (l->k > QB_GEMM_S8_MAX_K)
            return QB_FAIL(QB_ERR_SHAPE, "8-bit linear layer: found %zu input channels, at most %d",
                           l->k, QB_GEMM_S8_MAX_K);
        QB_TRY(set_weight_scales(weights, n_segments, l));
        return upload_matrix(weights, n_segments, QB_CUDA_S8, o->pool, &l->w);
    }
    if (as_codes && q->bits == 4) {
        QB_TRY(set_u4(weights, n_segments, l, &why));
        if (!why) return QB_OK;
    }
    /* floats, codes that a twin or a scheme without quantised weights dequantises, or codes that
     * the 4-bit layout cannot hold */
    l->type = o->type;
    return upload_matrix(weights, n_segments, o->type, o->pool, &l->w);
}

static qb_stage_kind stage_kind(const qb_act_quant *input)
{
    if (!input->bits) return QB_STAGE_FLOAT;
    if (input->span == QB_SPAN_TOKEN) return QB_STAGE_TOKEN;
    if (input->span == QB_SPAN_CHANNEL) return QB_STAGE_CHANNEL;
    return input->is_static ? QB_STAGE_STATIC : QB_STAGE_TENSOR;
}

/* Layers of one product have the same input, so the first one's scales are everyone's. */
static qb_status set_static_input(const qb_calibration_linear *c, const float *smooth,
                                  qb_cuda_linear *l)
{
    bool channels = l->input == QB_STAGE_CHANNEL;
    float *values;
    QB_TRY(QB_NEW(&values, l->k, "input scales"));
    for (size_t i = 0; channels && i < l->k; i++) values[i] = c->in_channel_max[i] / 127.0f;
    if (!channels) values[0] = qb_static_in_scale(c, smooth);
    qb_status status = upload_floats(values, channels ? l->k : 1, &l->in_scale);
    qb_free(values);
    return status;
}

static qb_status set_activations(const qb_tensor *const *weights, size_t n_segments,
                                 const cuda_linear_options *o, qb_cuda_linear *l)
{
    const qb_scheme *s = o->scheme;
    l->input = stage_kind(&s->input);
    l->outlier_min = s->input.bits ? s->input.outlier_min : 0;
    bool wants_in = s->input.bits && s->input.is_static,
         wants_out = s->output.bits && s->output.is_static;
    if (s->output.bits) l->requant = wants_out ? QB_CUDA_REQUANT_STATIC : QB_CUDA_REQUANT_DYNAMIC;
    if (!wants_in && !wants_out) return QB_OK;
    if (!o->calibration) return QB_FAIL(QB_ERR_USAGE, "static activation scales need calibration");
    float out_scale[QB_CUDA_SEGMENTS];
    for (size_t i = 0; i < n_segments; i++)
        out_scale[i] =
            qb_calibration_at(o->calibration, weights[i]->role, weights[i]->layer_idx)->out_max /
            127.0f;
    if (wants_out) QB_TRY(upload_floats(out_scale, n_segments, &l->out_scale));
    if (!wants_in) return QB_OK;
    return set_static_input(
        qb_calibration_at(o->calibration, weights[0]->role, weights[0]->layer_idx),
        s->weights.smooth_alpha > 0 ? weights[0]->quant.fold : NULL, l);
}

/* Smoothed weights as they are: it is the norm before them that undoes the factors. */
static const qb_tensor *without_fold(const qb_tensor *weight, const qb_scheme *scheme,
                                     qb_tensor *copy)
{
    if (!(scheme->weights.smooth_alpha > 0)) return weight;
    *copy = *weight;
    copy->quant.fold = NULL;
    return copy;
}

qb_status qb__cuda_linear_create(const qb_tensor *const *weights, const qb_tensor *const *biases,
                                 size_t n_segments, const cuda_linear_options *o,
                                 qb_cuda_linear *out)
{
    qb_cuda_linear l = {.k = weights[0]->cols,
                        .segments = {.n = (int)n_segments},
                        .w_stride = qb_cuda_stride(weights[0]->cols)};
    qb_tensor as_smoothed[QB_CUDA_SEGMENTS];
    const qb_tensor *smoothed[QB_CUDA_SEGMENTS];
    for (size_t i = 0; i < n_segments; i++) {
        l.n += weights[i]->rows;
        l.segments.end[i] = (int)l.n;
        smoothed[i] = without_fold(weights[i], o->scheme, &as_smoothed[i]);
    }
    qb_status status;
    QB_TRY_GOTO(status, set_weights(smoothed, n_segments, o, &l), failed);
    QB_TRY_GOTO(status, set_activations(weights, n_segments, o, &l), failed);
    QB_TRY_GOTO(status, set_biases(biases, weights, n_segments, &l), failed);
    *out = l;
    return QB_OK;
failed:
    qb__cuda_linear_destroy(&l);
    return status;
}

void qb__cuda_linear_destroy(qb_cuda_linear *l)
{
    qb_cuda_free(l->w);
    qb_cuda_free(l->w_scale);
    qb_cuda_free(l->bias);
    qb_cuda_free(l->in_scale);
    qb_cuda_free(l->out_scale);
    qb_cuda_u4_free(&l->u4);
    *l = (qb_cuda_linear){0};
}

size_t qb__cuda_linear_bytes(const qb_cuda_linear *l)
{
    size_t floats = (l->w_scale ? l->n : 0) + (l->bias ? l->n : 0);
    size_t elem_bytes = l->kind == QB_CUDA_LINEAR_S8 ? 1 : qb_cuda_dtype_bytes(l->type);
    size_t matrix = l->kind == QB_CUDA_LINEAR_U4 ? l->u4.bytes : l->n * l->w_stride * elem_bytes;
    return matrix + floats * sizeof(float);
}

/* ---- running one ---- */

static qb_cuda_gemm_s8_args s8_args(const qb_cuda_linear *l, const cuda_input *in,
                                    const cuda_output *out)
{
    return (qb_cuda_gemm_s8_args){.m = in->m,
                                  .n = l->n,
                                  .k = l->k,
                                  .x = in->q,
                                  .x_stride = in->q_stride,
                                  .w = l->w,
                                  .w_stride = l->w_stride,
                                  .x_scale = in->scale,
                                  .x_scale_step = in->scale_step,
                                  .w_scale = l->w_scale,
                                  .bias = l->bias,
                                  .act = out->act,
                                  .out = out->type,
                                  .y = out->y,
                                  .y_stride = out->stride,
                                  .residual = out->residual,
                                  .residual_stride = out->residual_stride,
                                  .max_bits = out->max_bits,
                                  .row_max_bits = out->row_max_bits,
                                  .segments = l->segments,
                                  .cache = out->cache,
                                  .w_is_constant = true};
}

bool qb__cuda_linear_caches(const qb_cuda_linear *l, const cuda_input *in, const cuda_output *out)
{
    if (l->kind != QB_CUDA_LINEAR_S8 || l->outlier_min > 0) return false;
    qb_cuda_gemm_s8_args args = s8_args(l, in, out);
    return !qb_cuda_gemm_s8_refusal(&args);
}

/* Finds the outliers of the input, which was staged as floats, and stages the others. */
static qb_status stage_inliers(const qb_cuda_linear *l, const cuda_input *in, cuda_backbone *b)
{
    const qb_cuda_outliers *outliers = in->outliers ? in->outliers : &b->outliers;
    float *x = (float *)in->x;
    if (!in->outliers)
        QB_TRY(qb_cuda_outliers_find(x, in->m, l->k, in->x_stride, l->outlier_min, outliers,
                                     b->stream));
    qb_cuda_outliers_stage_args args = {.m = in->m,
                                        .k = l->k,
                                        .x = x,
                                        .x_stride = in->x_stride,
                                        .outliers = outliers,
                                        .q = l->kind == QB_CUDA_LINEAR_S8 ? (int8_t *)in->q : NULL,
                                        .scale = (float *)in->scale};
    return qb_cuda_outliers_stage(&args, b->stream);
}

static qb_status add_outliers(const qb_cuda_linear *l, const cuda_input *in, const cuda_output *out,
                              cuda_backbone *b)
{
    qb_cuda_outliers_add_args args = {.m = in->m,
                                      .n = l->n,
                                      .x = in->x,
                                      .x_stride = in->x_stride,
                                      .outliers = in->outliers ? in->outliers : &b->outliers,
                                      .w = l->w,
                                      .w_stride = l->w_stride,
                                      .w_scale = l->w_scale,
                                      .gathered = b->outlier_w,
                                      .type = out->residual ? QB_CUDA_F32 : out->type,
                                      .y = out->residual ? out->residual : out->y,
                                      .y_stride =
                                          out->residual ? out->residual_stride : out->stride};
    return qb_cuda_outliers_add(&args, b->stream);
}

static qb_status run_s8(const qb_cuda_linear *l, const cuda_input *in, const cuda_output *out,
                        cuda_backbone *b)
{
    const qb_cuda_gemm_s8_args args = s8_args(l, in, out);
    QB_TRY(qb_cuda_gemm_s8(&args, b->stream));
    return l->outlier_min > 0 ? add_outliers(l, in, out, b) : QB_OK;
}

static qb_status run_u4(const qb_cuda_linear *l, const cuda_input *in, const cuda_output *out,
                        cuda_backbone *b)
{
    qb_cuda_gemm_u4_args args = {.m = in->m,
                                 .x = in->x,
                                 .x_stride = in->x_stride,
                                 .w = &l->u4,
                                 .bias = l->bias,
                                 .act = out->act,
                                 .out = out->type,
                                 .y = out->y,
                                 .y_stride = out->stride,
                                 .residual = out->residual,
                                 .residual_stride = out->residual_stride};
    if (l->u4.x_scale) {
        QB_TRY(qb_cuda_u4_x(in->x, in->x_stride, in->m, &l->u4, b->u4_x, qb_cuda_stride(l->k),
                            b->stream));
        args.x = b->u4_x;
        args.x_stride = qb_cuda_stride(l->k);
    }
    return qb_cuda_gemm_u4(&args, b->stream);
}

static qb_status run_float(const qb_cuda_linear *l, const cuda_input *in, const cuda_output *out,
                           cuda_backbone *b)
{
    qb_cuda_gemm_float_args args = {.m = in->m,
                                    .n = l->n,
                                    .k = l->k,
                                    .in = l->type,
                                    .x = in->x,
                                    .w = l->w,
                                    .x_stride = in->x_stride,
                                    .w_stride = l->w_stride,
                                    .bias = l->bias,
                                    .act = out->act,
                                    .out = out->type,
                                    .y = out->y,
                                    .y_stride = out->stride,
                                    .residual = out->residual,
                                    .residual_stride = out->residual_stride};
    QB_TRY(qb_cuda_gemm_float(&args, b->stream));
    if (!out->max_bits) return QB_OK;
    return qb_cuda_absmax(out->y, out->type, in->m, out->stride, &l->segments, out->max_bits,
                          b->stream);
}

qb_status qb__cuda_linear_run(const qb_cuda_linear *l, const cuda_input *in, const cuda_output *out,
                              cuda_backbone *b)
{
    if (out->max_bits)
        QB_TRY(qb_cuda_zero(out->max_bits, QB_CUDA_SEGMENTS * sizeof *out->max_bits, b->stream));
    if (l->outlier_min > 0) QB_TRY(stage_inliers(l, in, b));
    switch (l->kind) {
    case QB_CUDA_LINEAR_S8:
        return run_s8(l, in, out, b);
    case QB_CUDA_LINEAR_U4:
        return run_u4(l, in, out, b);
    default:
        return run_float(l, in, out, b);
    }
}

qb_cuda_pending qb__cuda_pending(const qb_cuda_linear *l, const cuda_output *out)
{
    return (qb_cuda_pending){.y = out->y,
                             .type = out->type,
                             .stride = out->stride,
                             .max_bits = out->max_bits,
                             .scale = l->out_scale,
                             .segments = l->segments};
}

const char *qb__cuda_linear_kernel(const qb_cuda_linear *l)
{
    const qb_kernel_info *row =
        l->kind == QB_CUDA_LINEAR_S8   ? QB_KERNEL_PICK(qb_cuda_gemm_s8_kernels)
        : l->kind == QB_CUDA_LINEAR_U4 ? QB_KERNEL_PICK(qb_cuda_gemm_u4_kernels)
                                       : QB_KERNEL_PICK(qb_cuda_gemm_float_kernels);
    return row->name;
}
