/* quant/quantize_model.c - weights to codes. A matrix is worked on in chunks of rows, in parallel,
 * read through a callback, so that a whole f32 copy of a large matrix never exists. */
#include "quant/quantize_model.h"

#include "core/interrupt.h"
#include "core/memory.h"
#include "core/progress.h"
#include "kernels/quantize.h"

#include <float.h>
#include <math.h>
#include <stdatomic.h>
#include <string.h>

enum { CHUNK_ROWS = 32 };

typedef struct matrix_source {
    const float *w;          /* a dense matrix, or NULL: */
    const qb_tensor *tensor; /* rows of a tensor */
    const float *fold;       /* (cols) factor of each input channel; NULL = none */
    size_t rows, cols;
} matrix_source;

typedef struct quantize_job {
    const qb_weight_quant *quant;
    const qb_quantize_row *kernels;
    matrix_source source;
    size_t n_groups; /* groups a row; 1 for the other axes */
    void *codes;
    float *scale;
    int32_t *zero_point;
    float *fill;
    float *rows_f32;   /* a chunk of rows for each thread */
    float *low, *high; /* per chunk: smallest and largest value, of the tensor or of each column */
    atomic_bool not_finite;
} quantize_job;

/* Halves to even without a call of rintf: adding 1.5 * 2^23 leaves no room for a fraction. */
static inline float round_even(float x)
{
    const float magic = 12582912.0f;
    return fabsf(x) < 4194304.0f ? (x + magic) - magic : rintf(x);
}

static float *load_chunk(quantize_job *job, size_t chunk, size_t thread_idx, size_t *n_rows)
{
    const matrix_source *s = &job->source;
    size_t first = chunk * CHUNK_ROWS, left = s->rows - first;
    size_t n = left < CHUNK_ROWS ? left : CHUNK_ROWS;
    float *dst = job->rows_f32 + thread_idx * CHUNK_ROWS * s->cols;
    if (s->w)
        memcpy(dst, s->w + first * s->cols, n * s->cols * sizeof *dst);
    else
        qb_tensor_rows_f32(s->tensor, first, n, dst);
    for (size_t r = 0; s->fold && r < n; r++)
        for (size_t c = 0; c < s->cols; c++) dst[r * s->cols + c] *= s->fold[c];
    *n_rows = n;
    return dst;
}

static void min_max(const float *x, size_t n, float *low, float *high)
{
    float lo = *low, hi = *high;
    for (size_t i = 0; i < n; i++) {
        lo = x[i] < lo ? x[i] : lo;
        hi = x[i] > hi ? x[i] : hi;
    }
    *low = lo;
    *high = hi;
}

static bool all_finite(const float *x, size_t n)
{
    uint32_t worst = 0; /* the exponent is all ones for inf and NaN alone */
    for (size_t i = 0; i < n; i++) {
        uint32_t bits = qb_f32_bits(x[i]) & 0x7fffffff;
        worst = bits > worst ? bits : worst;
    }
    return worst < 0x7f800000;
}

/* Scale, zero point and fill of one slice from its smallest and largest value. */
static void set_slice(quantize_job *job, size_t slice, float low, float high)
{
    float scale, fill = 0;
    int32_t zero_point = 0;
    if (job->quant->bits == 8) {
        scale = fmaxf(fabsf(low), fabsf(high)) / 127.0f;
    } else {
        scale = (high - low) / 15.0f;
        if (scale > 0 && isfinite(scale))
            zero_point = (int32_t)round_even(-low / scale);
        else
            fill = low;
    }
    if (!isfinite(scale)) atomic_store(&job->not_finite, true); /* max - min is beyond f32 */
    job->scale[slice] = scale;
    if (job->zero_point) job->zero_point[slice] = zero_point;
    if (job->fill) job->fill[slice] = fill;
}

static void stats_task(void *context, size_t chunk, size_t thread_idx)
{
    quantize_job *job = context;
    size_t n, cols = job->source.cols;
    const float *x = load_chunk(job, chunk, thread_idx, &n);
    if (!all_finite(x, n * cols)) atomic_store(&job->not_finite, true);
    if (job->quant->axis == QB_AXIS_TENSOR) {
        job->low[chunk] = job->high[chunk] = x[0];
        min_max(x, n * cols, &job->low[chunk], &job->high[chunk]);
        return;
    }
    float *low = job->low + chunk * cols, *high = job->high + chunk * cols;
    memcpy(low, x, cols * sizeof *low);
    memcpy(high, x, cols * sizeof *high);
    for (size_t r = 1; r < n; r++)
        for (size_t c = 0; c < cols; c++) {
            float v = x[r * cols + c];
            low[c] = v < low[c] ? v : low[c];
            high[c] = v > high[c] ? v : high[c];
        }
}

static inline uint8_t code_u4(float w, float scale, int32_t zero_point)
{
    if (!(scale > 0)) return 0;
    float q = round_even(w / scale) + (float)zero_point;
    return (uint8_t)(q < 0 ? 0 : q > 15 ? 15 : q);
}

/* Codes of one row; slices of the row start at `slice` and step as the axis says. */
static void row_u4(const quantize_job *job, const float *x, size_t row, uint8_t *codes)
{
    size_t cols = job->source.cols;
    const qb_weight_quant *q = job->quant;
    size_t first = q->axis == QB_AXIS_OUT || q->axis == QB_AXIS_GROUP ? row * job->n_groups : 0;
    size_t span = q->axis == QB_AXIS_IN ? 1 : q->axis == QB_AXIS_GROUP ? q->group_elems : cols;
    memset(codes, 0, (cols + 1) / 2);
    for (size_t c0 = 0, slice = first; c0 < cols; c0 += span, slice++) {
        size_t c1 = c0 + span < cols ? c0 + span : cols;
        float scale = job->scale[slice];
        int32_t zero_point = job->zero_point[slice];
        for (size_t c = c0; c < c1; c++)
            codes[c / 2] |= (uint8_t)(code_u4(x[c], scale, zero_point) << (c % 2 * 4));
    }
}

static void row_s8(const quantize_job *job, const float *x, size_t row, int8_t *codes)
{
    size_t cols = job->source.cols;
    const qb_weight_quant *q = job->quant;
    if (q->axis == QB_AXIS_IN) {
        job->kernels->quantize_s8_channels(x, cols, job->scale, codes);
        return;
    }
    size_t span = q->axis == QB_AXIS_GROUP ? q->group_elems : cols;
    size_t slice = q->axis == QB_AXIS_TENSOR ? 0 : row * job->n_groups;
    for (size_t c = 0; c < cols; c += span, slice++) {
        size_t n = c + span < cols ? span : cols - c;
        job->kernels->quantize_s8(x + c, n, job->scale[slice], codes + c);
    }
}

static void row_slices(quantize_job *job, const float *x, size_t row)
{
    size_t cols = job->source.cols;
    size_t span = job->quant->axis == QB_AXIS_GROUP ? job->quant->group_elems : cols;
    size_t slice = row * job->n_groups;
    for (size_t c = 0; c < cols; c += span, slice++) {
        size_t n = c + span < cols ? span : cols - c;
        float low = x[c], high = x[c];
        if (job->quant->bits == 8) {
            high = job->kernels->absmax(x + c, n);
            low = -high;
        } else {
            min_max(x + c, n, &low, &high);
        }
        set_slice(job, slice, low, high);
    }
}

static void codes_task(void *context, size_t chunk, size_t thread_idx)
{
    quantize_job *job = context;
    bool own_slices = job->quant->axis == QB_AXIS_OUT || job->quant->axis == QB_AXIS_GROUP;
    size_t n, cols = job->source.cols, first = chunk * CHUNK_ROWS;
    const float *x = load_chunk(job, chunk, thread_idx, &n);
    if (own_slices && !all_finite(x, n * cols)) atomic_store(&job->not_finite, true);
    for (size_t r = 0; r < n; r++) {
        const float *row = x + r * cols;
        if (own_slices) row_slices(job, row, first + r);
        if (job->quant->bits == 8)
            row_s8(job, row, first + r, (int8_t *)job->codes + (first + r) * cols);
        else
            row_u4(job, row, first + r, (uint8_t *)job->codes + (first + r) * ((cols + 1) / 2));
    }
}

/* Slices that span rows: the extremes of all chunks, joined. */
static void join_slices(quantize_job *job, size_t n_chunks, size_t n_slices)
{
    for (size_t s = 0; s < n_slices; s++) {
        float low = job->low[s], high = job->high[s];
        for (size_t i = 1; i < n_chunks; i++) {
            low = fminf(low, job->low[i * n_slices + s]);
            high = fmaxf(high, job->high[i * n_slices + s]);
        }
        set_slice(job, s, low, high);
    }
}

static qb_status quantize_source(quantize_job *job, qb_pool *pool)
{
    size_t rows = job->source.rows, cols = job->source.cols;
    size_t n_chunks = (rows + CHUNK_ROWS - 1) / CHUNK_ROWS, n_threads = qb_pool_n_threads(pool);
    bool joint = job->quant->axis == QB_AXIS_TENSOR || job->quant->axis == QB_AXIS_IN;
    size_t n_slices = qb_axis_n_slices(job->quant->axis, job->quant->group_elems, rows, cols),
           n_low = joint ? n_chunks * n_slices : 0;
    job->kernels = QB_KERNEL_PICK(qb_quantize_kernels);
    job->n_groups = job->quant->axis == QB_AXIS_GROUP ? n_slices / rows : 1;
    qb_status status;
    QB_TRY_GOTO(status, QB_NEW(&job->rows_f32, n_threads * CHUNK_ROWS * cols, "rows"), done);
    QB_TRY_GOTO(status, QB_NEW(&job->low, n_low, "slices"), done);
    QB_TRY_GOTO(status, QB_NEW(&job->high, n_low, "slices"), done);
    if (joint) {
        qb_parallel_for(pool, n_chunks, stats_task, job);
        join_slices(job, n_chunks, n_slices);
    }
    qb_parallel_for(pool, n_chunks, codes_task, job);
    if (atomic_load(&job->not_finite))
        status = QB_FAIL(QB_ERR_FORMAT,
                         "%s: found NaN, infinity or a range beyond f32, expected finite numbers",
                         job->source.fold ? "weights times the scales of their inputs" : "weights");
done:
    qb_free(job->rows_f32);
    qb_free(job->low);
    qb_free(job->high);
    return status;
}

qb_status qb_quantize_matrix(const qb_weight_quant *quant, const float *w, size_t rows, size_t cols,
                             void *codes, float *scale, int32_t *zero_point, float *fill,
                             qb_pool *pool)
{
    quantize_job job = {.quant = quant,
                        .source = {.w = w, .rows = rows, .cols = cols},
                        .codes = codes,
                        .scale = scale,
                        .zero_point = zero_point,
                        .fill = fill};
    return quantize_source(&job, pool);
}

/* ---- a whole model ---- */

static bool wants_fold(const qb_weight_quant *q, qb_role role)
{
    return q->fold_inputs || (q->smooth_alpha > 0 && qb_roles[role].norm);
}

/* A fold does not tell what it was made of; the scheme that the codes are for does. */
static float stored_alpha(const qb_model *model)
{
    const qb_scheme *row = model->stored_scheme ? qb_scheme_find(model->stored_scheme) : NULL;
    return row ? row->weights.smooth_alpha : 0;
}

static bool same_codes(const qb_model *in, const qb_tensor *t, const qb_weight_quant *q)
{
    return t->quant.axis == q->axis && t->quant.bits == q->bits &&
           (q->axis != QB_AXIS_GROUP || t->quant.group_elems == q->group_elems) &&
           (t->quant.fold != NULL) == wants_fold(q, t->role) &&
           (!t->quant.fold || stored_alpha(in) == q->smooth_alpha);
}

/* What layers that take the output of one norm are made of and made into. */
typedef struct model_job {
    const qb_model *in;
    const qb_scheme *scheme;
    const qb_calibration *calibration;
    qb_pool *pool;
    qb_model *out;
} model_job;

static const qb_tensor *source_of(const qb_model *in, qb_role role, size_t layer)
{
    return role == QB_ROLE_HEAD ? qb_model_head(in) : qb_model_tensor(in, role, layer);
}

/* w_max[c] = max over the rows of all layers behind `norm` of |w[., c]|. */
static qb_status column_maxima(const model_job *job, qb_role norm, size_t layer, size_t cols,
                               float *w_max)
{
    const qb_quantize_row *kernels = QB_KERNEL_PICK(qb_quantize_kernels);
    float *row;
    QB_TRY(QB_NEW(&row, cols, "row"));
    for (int role = 0; role < QB_ROLE_COUNT; role++) {
        if (qb_roles[role].norm != norm || !norm) continue;
        const qb_tensor *t = source_of(job->in, (qb_role)role, layer);
        for (size_t r = 0; t->data && r < t->rows; r++) {
            qb_tensor_rows_f32(t, r, 1, row);
            kernels->absmax_channels(row, cols, w_max);
        }
    }
    qb_free(row);
    return QB_OK;
}

/* (3) of schemes.h; 1 where either maximum is 0. */
static float smooth_factor(float x_max, float w_max, float alpha)
{
    if (!(x_max > 0 && w_max > 0)) return 1.0f;
    double a = (double)alpha;
    float s = (float)(pow((double)x_max, a) / pow((double)w_max, 1.0 - a));
    return s > 0 && isfinite(s) ? s : 1.0f;
}

/* Layers behind one norm share one array of factors: the first of them makes it. */
static qb_status make_smooth(const model_job *job, const qb_tensor *t, float *fold)
{
    const qb_calibration_linear *l = qb_calibration_at(job->calibration, t->role, t->layer_idx);
    float *w_max;
    QB_TRY(QB_NEW_ZERO(&w_max, t->cols, "largest weights"));
    qb_status status = column_maxima(job, qb_roles[t->role].norm, t->layer_idx, t->cols, w_max);
    for (size_t c = 0; status == QB_OK && c < t->cols; c++)
        fold[c] = smooth_factor(l->in_channel_max[c], w_max[c], job->scheme->weights.smooth_alpha);
    qb_free(w_max);
    return status;
}

static const float *fold_of_neighbour(const qb_model *out, const qb_tensor *t)
{
    for (int role = 0; role < (int)t->role; role++) {
        const qb_tensor *other = qb_model_tensor(out, (qb_role)role, t->layer_idx);
        if (qb_roles[role].norm == qb_roles[t->role].norm && other->data && other->quant.fold)
            return other->quant.fold;
    }
    return NULL;
}

static qb_status make_fold(const model_job *job, const qb_tensor *t, const float **out)
{
    bool smooth = job->scheme->weights.smooth_alpha > 0;
    float *fold;
    if (smooth && (*out = fold_of_neighbour(job->out, t))) return QB_OK;
    QB_TRY(qb_model_new_block(job->out, t->cols * sizeof(float), (void **)&fold));
    *out = fold;
    if (smooth) return make_smooth(job, t, fold);
    const qb_calibration_linear *l = qb_calibration_at(job->calibration, t->role, t->layer_idx);
    for (size_t c = 0; c < t->cols; c++) fold[c] = l->in_channel_max[c] / 127.0f;
    return QB_OK;
}

static qb_status quantize_tensor(const model_job *whole, const qb_tensor *from, qb_tensor *to)
{
    qb_model *out = whole->out;
    const qb_scheme *scheme = whole->scheme;
    const qb_weight_quant *q = &scheme->weights;
    size_t n_slices = qb_axis_n_slices(q->axis, q->group_elems, from->rows, from->cols), bytes = 0;
    qb_dtype dtype = q->bits == 8 ? QB_S8 : QB_U4;
    qb_dtype_bytes(dtype, from->rows, from->cols, &bytes);
    float *scale, *fill = NULL;
    const float *fold = NULL;
    int32_t *zero_point = NULL;
    void *codes;
    QB_TRY(qb_model_new_block(out, bytes, &codes));
    QB_TRY(qb_model_new_block(out, n_slices * sizeof *scale, (void **)&scale));
    if (q->bits == 4) {
        QB_TRY(qb_model_new_block(out, n_slices * sizeof *zero_point, (void **)&zero_point));
        QB_TRY(qb_model_new_block(out, n_slices * sizeof *fill, (void **)&fill));
    }
    if (wants_fold(q, to->role)) QB_TRY(make_fold(whole, to, &fold));
    quantize_job job = {
        .quant = q,
        .source = {.tensor = from, .fold = fold, .rows = from->rows, .cols = from->cols},
        .codes = codes,
        .scale = scale,
        .zero_point = zero_point,
        .fill = fill};
    qb_status status = quantize_source(&job, whole->pool);
    if (status != QB_OK) {
        char name[64];
        qb_role_name(to->role, to->layer_idx, name, sizeof name);
        return qb_error_prefix(status, name);
    }
    to->dtype = dtype;
    to->data = codes;
    to->bytes = bytes;
    to->quant = (qb_tensor_quant){.axis = q->axis,
                                  .bits = q->bits,
                                  .group_elems = q->group_elems,
                                  .n_slices = n_slices,
                                  .scale = scale,
                                  .zero_point = zero_point,
                                  .fill = fill,
                                  .fold = fold};
    return QB_OK;
}

/* Everything of `in` by reference; the caller then replaces what is to be quantised. */
static qb_status share_tensors(const qb_model *in, qb_model *out)
{
    for (size_t layer = 0; layer < in->config.n_layers; layer++)
        for (int role = 0; role < QB_ROLE_COUNT; role++)
            *(qb_tensor *)qb_model_tensor(out, (qb_role)role, layer) =
                *qb_model_tensor(in, (qb_role)role, layer);
    qb_free(out->name);
    out->name = NULL;
    QB_TRY(qb_strdup(&out->name, in->name));
    out->training = json_incref(in->training);
    out->calibration = json_incref(in->calibration);
    return QB_OK;
}

static qb_status quantize_role(const model_job *job, qb_role role, size_t layer)
{
    const qb_tensor *from = source_of(job->in, role, layer);
    qb_tensor *to = (qb_tensor *)qb_model_tensor(job->out, role, layer);
    if (!from->data) return QB_OK;
    if (role == QB_ROLE_HEAD) {
        to->rows = from->rows;
        to->cols = from->cols;
    }
    if (!same_codes(job->in, from, &job->scheme->weights)) return quantize_tensor(job, from, to);
    qb_role own_role = to->role;
    *to = *from;
    to->role = own_role;
    return QB_OK;
}

static qb_status quantize_layers(const model_job *job, bool quantize_head)
{
    size_t n_layers = job->in->config.n_layers;
    qb_progress progress = qb_progress_begin("quantising", n_layers);
    qb_status status = QB_OK;
    for (size_t layer = 0; layer < n_layers && status == QB_OK; layer++) {
        status = qb_interrupt_check();
        for (int role = 0; role < QB_ROLE_COUNT && status == QB_OK; role++)
            if (qb_roles[role].linear) status = quantize_role(job, (qb_role)role, layer);
        qb_progress_update(&progress, layer + 1);
    }
    if (status == QB_OK && quantize_head) status = quantize_role(job, QB_ROLE_HEAD, 0);
    qb_progress_end(&progress);
    return status;
}

qb_status qb_quantize_model(const qb_model *in, const qb_scheme *scheme,
                            const qb_calibration *calibration, bool quantize_head, qb_pool *pool,
                            qb_model **out)
{
    if (!scheme->weights.bits)
        return QB_FAIL(QB_ERR_USAGE, "scheme %s quantises no weights", scheme->name);
    if ((scheme->weights.fold_inputs || scheme->weights.smooth_alpha > 0) && !calibration)
        return QB_FAIL(QB_ERR_USAGE, "scheme %s needs calibration", scheme->name);
    qb_config config = in->config;
    if (quantize_head) config.tied_head = false;
    qb_model *model;
    QB_TRY(qb_model_create(&config, in->path, in->format, &model));
    const model_job job = {in, scheme, calibration, pool, model};
    qb_status status = share_tensors(in, model);
    if (status == QB_OK) status = quantize_layers(&job, quantize_head);
    if (status == QB_OK) status = qb_strdup(&model->stored_scheme, scheme->name);
    if (status != QB_OK) {
        qb_model_close(model);
        return status == QB_ERR_FORMAT ? qb_error_prefix(status, in->path) : status;
    }
    model->quantized = true;
    *out = model;
    return QB_OK;
}
