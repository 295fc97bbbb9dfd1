/* quant/linear_outliers.c - input channels that stay float: finding them, the codes of the others,
 * and the product of what was left out; (4) of schemes.h, in the order that linear.h fixes. */
#include "quant/linear_internal.h"

#include "core/memory.h"

#include <math.h>
#include <string.h>

/* The codes once more, so that a channel's lie side by side. */
qb_status qb__linear_set_columns(qb_linear *l, const qb_tensor *weight)
{
    const int8_t *codes = weight->data;
    if (l->kind != QB_LINEAR_S8 || !(l->input.outlier_min > 0)) return QB_OK;
    QB_TRY(QB_NEW(&l->columns, l->n * l->k, "codes by input channel"));
    for (size_t n = 0; n < l->n; n++)
        for (size_t k = 0; k < l->k; k++) l->columns[k * l->n + n] = codes[n * l->k + k];
    return QB_OK;
}

typedef struct outlier_rows {
    const qb_linear *linear;
    const qb_linear_input *input;
    const qb_outlier_set *outliers;
} outlier_rows;

static void mark_rows(void *context, size_t m0, size_t m1)
{
    const outlier_rows *job = context;
    const qb_linear_input *in = job->input;
    for (size_t m = m0; m < m1; m++)
        for (size_t c = 0; c < in->k; c++)
            if (fabsf(in->x[m * in->k + c]) >= job->linear->input.outlier_min)
                __atomic_store_n(&job->outliers->is_outlier[c], 1, __ATOMIC_RELAXED);
}

void qb_linear_find_outliers(const qb_linear *l, const qb_linear_input *in, qb_outlier_set *out,
                             qb_pool *pool)
{
    outlier_rows job = {l, in, out};
    memset(out->is_outlier, 0, in->k);
    qb_parallel_spans(pool, in->m, QB__LINEAR_ROWS_A_TASK, mark_rows, &job);
    out->n = 0;
    for (size_t c = 0; c < in->k; c++)
        if (out->is_outlier[c]) out->channel[out->n++] = (uint32_t)c;
}

static const qb_outlier_set *outliers_of(const qb_linear_input *in)
{
    return in->fixed_outliers ? in->fixed_outliers : &in->scratch->outliers;
}

/* Rows per token, outliers left out of scale and codes; a twin's rows keep them as they are. */
static void inlier_rows(void *context, size_t m0, size_t m1)
{
    const outlier_rows *job = context;
    const qb_linear *l = job->linear;
    const qb_linear_input *in = job->input;
    qb_linear_scratch *s = in->scratch;
    size_t k = in->k, stride = qb_gemm_s8_x_stride(k);
    float *row = s->inliers + qb_thread_idx() * k;
    for (size_t m = m0; m < m1; m++) {
        float *x = in->x + m * k;
        memcpy(row, x, k * sizeof *row);
        for (size_t o = 0; o < job->outliers->n; o++) row[job->outliers->channel[o]] = 0;
        float scale = s->q_scale[m] = l->quantize->absmax(row, k) / 127.0f;
        if (l->kind == QB_LINEAR_FAKE) {
            l->quantize->requantize(row, k, scale, NULL);
            for (size_t c = 0; c < k; c++)
                if (!job->outliers->is_outlier[c]) x[c] = row[c];
            continue;
        }
        s->q_sum[m] = l->quantize->quantize_s8(row, k, scale, s->q + m * stride);
        memset(s->q + m * stride + k, 0, qb_round_up(k, QB_GEMM_S8_K_ALIGN) - k);
    }
}

void qb__linear_stage_inliers(const qb_linear *l, const qb_linear_input *in, qb_pool *pool)
{
    outlier_rows job = {l, in, outliers_of(in)};
    if (!in->fixed_outliers) qb_linear_find_outliers(l, in, &in->scratch->outliers, pool);
    qb_parallel_spans(pool, in->m, QB__LINEAR_ROWS_A_TASK, inlier_rows, &job);
}

enum { OUTLIER_BLOCK = 256 };

typedef struct outlier_job {
    const qb_linear *linear;
    const qb_linear_output *out;
    const qb_linear_input *input;
    size_t n_blocks; /* of OUTLIER_BLOCK output channels */
} outlier_job;

static void outlier_task(void *context, size_t i, size_t thread_idx)
{
    (void)thread_idx;
    const outlier_job *job = context;
    const qb_linear *l = job->linear;
    const qb_outlier_set *outliers = outliers_of(job->input);
    size_t m = i / job->n_blocks, n0 = i % job->n_blocks * OUTLIER_BLOCK;
    size_t n = l->n - n0 < OUTLIER_BLOCK ? l->n - n0 : OUTLIER_BLOCK;
    const float *x = job->input->x + m * l->k;
    float *y = job->out->y + m * job->out->stride + n0, sum[OUTLIER_BLOCK] = {0};
    for (size_t o = 0; o < outliers->n; o++) {
        float value = x[outliers->channel[o]];
        const int8_t *column = l->columns + outliers->channel[o] * l->n + n0;
        for (size_t j = 0; j < n; j++) sum[j] += value * (float)column[j];
    }
    for (size_t j = 0; j < n; j++) y[j] += sum[j] * l->w_scale[(n0 + j) * l->w_scale_step];
}

void qb__linear_add_outliers(const qb_linear *l, const qb_linear_output *out,
                             const qb_linear_input *in, qb_pool *pool)
{
    if (!l->columns || !outliers_of(in)->n) return;
    size_t n_blocks = (l->n + OUTLIER_BLOCK - 1) / OUTLIER_BLOCK;
    outlier_job job = {l, out, in, n_blocks};
    qb_parallel_for(pool, in->m * n_blocks, outlier_task, &job);
}
