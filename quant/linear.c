/* quant/linear.c - making one linear layer: its packed weights, scales and scratch. */
#include "quant/linear_internal.h"

#include "core/memory.h"

#include <string.h>

enum { PACK_ROWS = 32 }; /* output channels a task, at least */

/* ---- packing ---- */

typedef struct pack_job {
    qb_linear *linear;
    const qb_tensor *weight;
    qb_u4_weights u4;
    float *rows_f32;    /* per thread, chunk rows */
    size_t chunk;       /* output channels a task */
    const char *reason; /* why a u4 row refused; written by any task */
} pack_job;

/* Output channels a task: whole panels of the kernel row. */
static size_t pack_chunk(size_t align)
{
    return qb_round_up(PACK_ROWS, align);
}

static void pack_f32_task(void *context, size_t i, size_t thread_idx)
{
    pack_job *job = context;
    qb_linear *l = job->linear;
    size_t n0 = i * job->chunk, n1 = n0 + job->chunk < l->n ? n0 + job->chunk : l->n;
    float *rows = job->rows_f32 + thread_idx * job->chunk * l->k;
    qb_tensor_rows_f32(job->weight, n0, n1 - n0, rows);
    l->f32->pack(rows, n0, n1, l->n, l->k, l->packed);
}

static void pack_s8_task(void *context, size_t i, size_t thread_idx)
{
    (void)thread_idx;
    pack_job *job = context;
    qb_linear *l = job->linear;
    size_t n0 = i * job->chunk, n1 = n0 + job->chunk < l->n ? n0 + job->chunk : l->n;
    l->s8->pack((const int8_t *)job->weight->data + n0 * l->k, n0, n1, l->n, l->k, l->packed);
}

static void pack_u4_task(void *context, size_t i, size_t thread_idx)
{
    (void)thread_idx;
    pack_job *job = context;
    qb_linear *l = job->linear;
    size_t n0 = i * job->chunk, n1 = n0 + job->chunk < l->n ? n0 + job->chunk : l->n;
    const char *reason = l->u4->pack(&job->u4, n0, n1, l->packed);
    if (reason) __atomic_store_n(&job->reason, reason, __ATOMIC_RELAXED);
}

static void pack_chunks(pack_job *job, size_t align, qb_task task, qb_pool *pool)
{
    job->chunk = pack_chunk(align);
    qb_parallel_for(pool, (job->linear->n + job->chunk - 1) / job->chunk, task, job);
}

static qb_status run_pack(pack_job *job, size_t packed_bytes, size_t align, qb_task task,
                          qb_pool *pool)
{
    qb_linear *l = job->linear;
    QB_TRY(qb_alloc_zero(&l->packed, packed_bytes, 1, "packed weights"));
    l->packed_bytes = packed_bytes;
    pack_chunks(job, align, task, pool);
    return QB_OK;
}

static size_t f32_rows_elems(const qb_linear *l, size_t n_threads)
{
    return n_threads * pack_chunk(l->f32->pack_n_align) * l->k;
}

static qb_status pack_f32(pack_job *job, qb_pool *pool)
{
    qb_linear *l = job->linear;
    QB_TRY(QB_NEW(&job->rows_f32, f32_rows_elems(l, qb_pool_n_threads(pool)), "rows"));
    qb_status status =
        run_pack(job, l->f32->packed_bytes(l->n, l->k), l->f32->pack_n_align, pack_f32_task, pool);
    qb_free(job->rows_f32);
    return status;
}

void qb__linear_pack_fake(const qb_linear *l, qb_linear_scratch *s, qb_pool *pool)
{
    qb_linear packer = {.n = l->n, .k = l->k, .f32 = l->f32, .packed = s->fake_packed};
    pack_job job = {.linear = &packer, .weight = l->weight, .rows_f32 = s->fake_rows};
    pack_chunks(&job, l->f32->pack_n_align, pack_f32_task, pool);
}

qb_u4_weights qb_u4_view(const qb_tensor *t)
{
    const qb_tensor_quant *q = &t->quant;
    qb_u4_weights w = {.n = t->rows,
                       .k = t->cols,
                       .codes = t->data,
                       .k_group = t->cols,
                       .scale = q->scale,
                       .zero_point = q->zero_point,
                       .fill = q->fill};
    if (q->axis == QB_AXIS_OUT) w.n_step = 1;
    if (q->axis == QB_AXIS_IN) w.k_group = 1, w.k_step = 1;
    if (q->axis == QB_AXIS_GROUP) {
        w.n_step = (t->cols + q->group_elems - 1) / q->group_elems;
        w.k_group = q->group_elems;
        w.k_step = 1;
    }
    return w;
}

/* The first usable row that takes these weights; the reference takes all. */
static qb_status pack_u4(pack_job *job, qb_pool *pool)
{
    qb_linear *l = job->linear;
    job->u4 = qb_u4_view(job->weight);
    for (l->u4 = QB_KERNEL_PICK(qb_gemm_u4_kernels); l->u4->info.name; l->u4++) {
        if (qb_kernel_refusal(&l->u4->info)) continue;
        job->reason = NULL;
        QB_TRY(
            run_pack(job, l->u4->packed_bytes(&job->u4), l->u4->pack_n_align, pack_u4_task, pool));
        if (!job->reason) return QB_OK;
        qb_free(l->packed);
        l->packed = NULL;
    }
    return QB_FAIL(QB_ERR_UNSUPPORTED, "4-bit weights: %s",
                   job->reason ? job->reason : "no kernel row");
}

/* Under a scheme that quantises no weights, stored codes are the values they stand for. */
static qb_status pack_weights(qb_linear *l, const qb_tensor *weight, const qb_scheme *scheme,
                              bool fake, qb_pool *pool)
{
    pack_job job = {.linear = l, .weight = weight};
    l->f32 = QB_KERNEL_PICK(qb_gemm_f32_kernels);
    if (fake) {
        l->kind = QB_LINEAR_FAKE;
        l->weight = weight;
        return QB_OK;
    }
    if (weight->quant.axis == QB_AXIS_NONE || !scheme->weights.bits) {
        l->kind = QB_LINEAR_F32;
        return pack_f32(&job, pool);
    }
    if (weight->quant.bits == 4) {
        l->kind = QB_LINEAR_U4;
        l->own_prepare = weight->quant.axis == QB_AXIS_IN;
        return pack_u4(&job, pool);
    }
    l->kind = QB_LINEAR_S8;
    l->s8 = QB_KERNEL_PICK(qb_gemm_s8_kernels);
    if (l->k > QB_GEMM_S8_MAX_K)
        return QB_FAIL(QB_ERR_SHAPE, "8-bit linear layer: found %zu input channels, at most %d",
                       l->k, QB_GEMM_S8_MAX_K);
    const qb_tensor_quant *q = &weight->quant;
    QB_TRY(QB_NEW(&l->w_scale, q->n_slices, "weight scales"));
    memcpy(l->w_scale, q->scale, q->n_slices * sizeof *l->w_scale);
    l->w_scale_step = q->axis == QB_AXIS_OUT;
    return run_pack(&job, l->s8->packed_bytes(l->n, l->k), l->s8->pack_n_align, pack_s8_task, pool);
}

/* ---- making a layer ---- */

static qb_status set_static_scales(qb_linear *l, const qb_tensor *weight,
                                   const qb_calibration *calibration)
{
    bool wants_in = l->input.bits && l->input.is_static,
         wants_out = l->output.bits && l->output.is_static;
    if (!wants_in && !wants_out) return QB_OK;
    if (!calibration) return QB_FAIL(QB_ERR_USAGE, "static activation scales need calibration");
    const qb_calibration_linear *c =
        qb_calibration_at(calibration, weight->role, weight->layer_idx);
    if (wants_out) l->out_scale = c->out_max / 127.0f;
    if (!wants_in) return QB_OK;
    bool channels = l->input.span == QB_SPAN_CHANNEL;
    QB_TRY(QB_NEW(&l->in_scale, channels ? l->k : 1, "input scales"));
    for (size_t i = 0; channels && i < l->k; i++) l->in_scale[i] = c->in_channel_max[i] / 127.0f;
    if (!channels) l->in_scale[0] = qb_static_in_scale(c, l->smooth);
    return QB_OK;
}

float qb_static_in_scale(const qb_calibration_linear *c, const float *smooth)
{
    float max = smooth ? 0 : c->in_max;
    for (size_t i = 0; smooth && i < c->cols; i++) {
        float x = c->in_channel_max[i] / smooth[i];
        max = x > max ? x : max;
    }
    return max / 127.0f;
}

static qb_status set_smooth(qb_linear *l, const qb_tensor *weight, const qb_scheme *scheme)
{
    if (!(scheme->weights.smooth_alpha > 0) || !weight->quant.fold) return QB_OK;
    QB_TRY(QB_NEW(&l->smooth, l->k, "smoothing factors"));
    memcpy(l->smooth, weight->quant.fold, l->k * sizeof *l->smooth);
    return QB_OK;
}

qb_status qb_linear_create(const qb_tensor *weight, const qb_tensor *bias, const qb_scheme *scheme,
                           bool fake, const qb_calibration *calibration, qb_pool *pool,
                           qb_linear *out)
{
    qb_linear l = {.n = weight->rows,
                   .k = weight->cols,
                   .quantize = QB_KERNEL_PICK(qb_quantize_kernels),
                   .input = scheme->input,
                   .output = scheme->output};
    qb_status status;
    QB_TRY_GOTO(status, pack_weights(&l, weight, scheme, fake, pool), failed);
    QB_TRY_GOTO(status, set_smooth(&l, weight, scheme), failed);
    QB_TRY_GOTO(status, qb__linear_set_columns(&l, weight), failed);
    QB_TRY_GOTO(status, set_static_scales(&l, weight, calibration), failed);
    if (bias && bias->data) {
        QB_TRY_GOTO(status, QB_NEW(&l.bias, l.n, "bias"), failed);
        qb_tensor_rows_f32(bias, 0, 1, l.bias);
    }
    *out = l;
    return QB_OK;
failed:
    qb_linear_deinit(&l);
    return status;
}

void qb_linear_deinit(qb_linear *l)
{
    qb_free(l->packed);
    qb_free(l->bias);
    qb_free(l->in_scale);
    qb_free(l->w_scale);
    qb_free(l->smooth);
    qb_free(l->columns);
    *l = (qb_linear){0};
}

size_t qb_linear_bytes(const qb_linear *l)
{
    size_t n_scales = !l->w_scale ? 0 : l->w_scale_step ? l->n : 1;
    size_t n_floats = n_scales + (l->bias ? l->n : 0) + (l->smooth ? l->k : 0);
    return l->packed_bytes + n_floats * sizeof(float) + (l->columns ? l->n * l->k : 0);
}

/* ---- scratch ---- */

void qb_linear_need_add(const qb_linear *l, size_t max_rows, size_t n_threads, qb_linear_need *need)
{
    need->max_k = qb_max_size(need->max_k, l->k);
    if (l->kind == QB_LINEAR_U4)
        need->prepared_bytes =
            qb_max_size(need->prepared_bytes, l->u4->prepared_bytes(max_rows, l->k));
    if (l->input.outlier_min > 0) {
        need->outlier_k = qb_max_size(need->outlier_k, l->k);
        need->inlier_elems = qb_max_size(need->inlier_elems, n_threads * l->k);
    }
    if (l->kind != QB_LINEAR_FAKE) return;
    need->fake_rows_elems = qb_max_size(need->fake_rows_elems, f32_rows_elems(l, n_threads));
    need->fake_packed_bytes =
        qb_max_size(need->fake_packed_bytes, l->f32->packed_bytes(l->n, l->k));
}

static qb_status grow_block(void *block, size_t elems, size_t elem_bytes, size_t *total)
{
    void **b = block;
    qb_free(*b);
    *b = NULL;
    *total += elems * elem_bytes;
    return qb_alloc_zero(b, elems, elem_bytes, "scratch of linear layers");
}

qb_status qb_linear_scratch_grow(qb_linear_scratch *s, size_t max_rows, const qb_linear_need *need)
{
    s->bytes = 0;
    QB_TRY(grow_block(&s->q, max_rows * qb_gemm_s8_x_stride(need->max_k), 1, &s->bytes));
    QB_TRY(grow_block(&s->q_sum, max_rows, sizeof *s->q_sum, &s->bytes));
    QB_TRY(grow_block(&s->q_scale, max_rows, sizeof *s->q_scale, &s->bytes));
    QB_TRY(grow_block(&s->row_max, max_rows, sizeof *s->row_max, &s->bytes));
    QB_TRY(grow_block(&s->prepared, need->prepared_bytes, 1, &s->bytes));
    QB_TRY(grow_block(&s->fake_rows, need->fake_rows_elems, sizeof *s->fake_rows, &s->bytes));
    QB_TRY(grow_block(&s->fake_packed, need->fake_packed_bytes, 1, &s->bytes));
    QB_TRY(grow_block(&s->outliers.is_outlier, need->outlier_k, 1, &s->bytes));
    QB_TRY(
        grow_block(&s->outliers.channel, need->outlier_k, sizeof *s->outliers.channel, &s->bytes));
    QB_TRY(grow_block(&s->inliers, need->inlier_elems, sizeof *s->inliers, &s->bytes));
    return QB_OK;
}

void qb_linear_scratch_deinit(qb_linear_scratch *s)
{
    qb_free(s->q);
    qb_free(s->q_sum);
    qb_free(s->q_scale);
    qb_free(s->row_max);
    qb_free(s->prepared);
    qb_free(s->fake_rows);
    qb_free(s->fake_packed);
    qb_free(s->outliers.is_outlier);
    qb_free(s->outliers.channel);
    qb_free(s->inliers);
    *s = (qb_linear_scratch){0};
}
