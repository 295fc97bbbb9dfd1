/* model/model.c - the model in memory: slots, ownership, reading rows as f32. */
#include "model/model.h"

#include "core/memory.h"
#include "model/tokenizer.h"

#include <string.h>

/* Roles that come once a layer have a run of n_layers slots, the others use the run's first. */
static qb_tensor *slot_of(const qb_model *model, qb_role role, size_t layer_idx)
{
    size_t layer = qb_roles[role].per_layer ? layer_idx : 0;
    return &model->tensors[(size_t)role * model->config.n_layers + layer];
}

/* ---- making and closing ---- */

/* "folder/name.bin" and "folder/name/" give "name"; "llama-1.7B" stays whole. */
static qb_status stem_of(const char *path, char **out)
{
    static const char *const extensions[] = {".bin", ".gguf", ".safetensors"};
    size_t end = strlen(path);
    while (end > 1 && path[end - 1] == '/') end--;
    size_t start = end;
    while (start > 0 && path[start - 1] != '/') start--;
    for (size_t i = 0; i < QB_COUNT(extensions); i++) {
        size_t n = strlen(extensions[i]);
        if (end - start > n && !strncmp(path + end - n, extensions[i], n)) {
            end -= n;
            break;
        }
    }
    return qb_strndup(out, path + start, end - start);
}

static qb_status fill_texts(qb_model *model, const char *path, const char *format)
{
    QB_TRY(qb_strdup(&model->path, path));
    QB_TRY(qb_strdup(&model->format, format));
    return stem_of(path, &model->name);
}

static void fill_slots(qb_model *model)
{
    for (int r = 0; r < QB_ROLE_COUNT; r++)
        for (size_t i = 0; i < model->config.n_layers; i++) {
            qb_tensor *t = &model->tensors[(size_t)r * model->config.n_layers + i];
            t->role = (qb_role)r;
            t->layer_idx = i;
        }
}

qb_status qb_model_create(const qb_config *config, const char *path, const char *format,
                          qb_model **out)
{
    QB_TRY(qb_config_check(config));
    qb_model *model;
    QB_TRY(QB_NEW_ZERO(&model, 1, "model"));
    model->config = *config;
    qb_status status =
        QB_NEW_ZERO(&model->tensors, (size_t)QB_ROLE_COUNT * config->n_layers, "tensor slots");
    if (status == QB_OK) status = fill_texts(model, path, format);
    if (status != QB_OK) {
        qb_model_close(model);
        return status;
    }
    fill_slots(model);
    *out = model;
    return QB_OK;
}

void qb_model_close(qb_model *model)
{
    if (!model) return;
    qb_tokenizer_destroy(model->tokenizer);
    json_decref(model->training);
    json_decref(model->calibration);
    for (size_t i = 0; i < model->n_files; i++) qb_file_close(&model->files[i]);
    for (size_t i = 0; i < model->n_blocks; i++) qb_free(model->blocks[i]);
    qb_free(model->files);
    qb_free(model->blocks);
    qb_free(model->tensors);
    qb_free(model->stored_scheme);
    qb_free(model->name);
    qb_free(model->path);
    qb_free(model->format);
    qb_free(model);
}

qb_status qb_model_set_name(qb_model *model, const char *name)
{
    char *copy;
    QB_TRY(qb_strdup(&copy, name));
    qb_free(model->name);
    model->name = copy;
    return QB_OK;
}

qb_status qb_model_take_file(qb_model *model, qb_file *file)
{
    QB_TRY(qb_realloc((void **)&model->files, model->n_files, model->n_files + 1,
                      sizeof *model->files, "mappings"));
    model->files[model->n_files++] = *file;
    *file = (qb_file){0};
    return QB_OK;
}

qb_status qb_model_new_block(qb_model *model, size_t bytes, void **out)
{
    QB_TRY(qb_realloc((void **)&model->blocks, model->n_blocks, model->n_blocks + 1,
                      sizeof *model->blocks, "blocks"));
    void *block;
    QB_TRY(qb_alloc(&block, bytes, 1, "tensors"));
    model->blocks[model->n_blocks++] = block;
    *out = block;
    return QB_OK;
}

/* ---- setting tensors ---- */

qb_status qb_model_set(qb_model *model, qb_role role, size_t layer_idx, qb_dtype dtype, size_t rows,
                       size_t cols, const void *data, size_t bytes, const char *what)
{
    if (qb_roles[role].per_layer && layer_idx >= model->config.n_layers)
        return QB_FAIL(QB_ERR_FORMAT,
                       "tensor %s: found layer %zu, expected fewer than the %zu of the model", what,
                       layer_idx, model->config.n_layers);
    size_t want_rows = 0, want_cols = 0, want_bytes;
    qb_config_shape(&model->config, role, &want_rows, &want_cols);
    if (!qb_config_has(&model->config, role, layer_idx))
        return QB_FAIL(QB_ERR_FORMAT,
                       "tensor %s: found one that is not part of this configuration, expected none",
                       what);
    if (rows != want_rows || cols != want_cols)
        return QB_FAIL(QB_ERR_FORMAT, "tensor %s: found shape (%zu, %zu), expected (%zu, %zu)",
                       what, rows, cols, want_rows, want_cols);
    if (!qb_dtype_bytes(dtype, rows, cols, &want_bytes))
        return QB_FAIL(QB_ERR_FORMAT,
                       "tensor %s: found %zu columns, expected a multiple of the %s block of %zu",
                       what, cols, qb_dtype_get(dtype)->name, qb_dtype_get(dtype)->block_elems);
    if (bytes != want_bytes)
        return QB_FAIL(QB_ERR_FORMAT, "tensor %s: found %zu bytes, expected %zu", what, bytes,
                       want_bytes);
    qb_tensor *t = slot_of(model, role, layer_idx);
    if (t->data) return QB_FAIL(QB_ERR_FORMAT, "tensor %s: found twice, expected once", what);
    t->dtype = dtype;
    t->rows = rows;
    t->cols = cols;
    t->data = data;
    t->bytes = bytes;
    return QB_OK;
}

static size_t n_groups(size_t cols, size_t group_elems)
{
    return cols / group_elems + (cols % group_elems != 0);
}

size_t qb_axis_n_slices(qb_axis axis, size_t group_elems, size_t rows, size_t cols)
{
    switch (axis) {
    case QB_AXIS_OUT:
        return rows;
    case QB_AXIS_IN:
        return cols;
    case QB_AXIS_TENSOR:
        return 1;
    case QB_AXIS_GROUP:
        return group_elems ? rows * n_groups(cols, group_elems) : 0;
    case QB_AXIS_NONE:
        break;
    }
    return 0;
}

qb_status qb_model_set_quant(qb_model *model, qb_role role, size_t layer_idx,
                             const qb_tensor_quant *quant, const char *what)
{
    qb_tensor *t = slot_of(model, role, layer_idx);
    size_t want = qb_axis_n_slices(quant->axis, quant->group_elems, t->rows, t->cols);
    if (!want || quant->n_slices != want)
        return QB_FAIL(QB_ERR_FORMAT, "tensor %s: found %zu scales, expected %zu for its axis",
                       what, quant->n_slices, want);
    bool s8 = quant->bits == 8 && t->dtype == QB_S8 && !quant->zero_point;
    bool u4 = quant->bits == 4 && t->dtype == QB_U4 && quant->zero_point;
    if (!s8 && !u4)
        return QB_FAIL(QB_ERR_FORMAT,
                       "tensor %s: found %u-bit codes in %s %s zero points, expected 8-bit s8 "
                       "without or 4-bit u4 with them",
                       what, quant->bits, qb_dtype_get(t->dtype)->name,
                       quant->zero_point ? "with" : "without");
    t->quant = *quant;
    if (qb_roles[role].linear) model->quantized = true;
    return QB_OK;
}

qb_status qb_model_check_complete(const qb_model *model)
{
    for (int r = 0; r < QB_ROLE_COUNT; r++) {
        size_t rows, cols, n = qb_roles[r].per_layer ? model->config.n_layers : 1;
        if (!qb_config_shape(&model->config, (qb_role)r, &rows, &cols)) continue;
        for (size_t i = 0; i < n; i++) {
            if (!qb_config_has(&model->config, (qb_role)r, i)) continue;
            const qb_tensor *t = slot_of(model, (qb_role)r, i);
            bool readable = t->data && (qb_dtype_get(t->dtype)->is_float || t->quant.axis);
            if (readable) continue;
            char name[64];
            qb_role_name((qb_role)r, i, name, sizeof name);
            if (!t->data)
                return QB_FAIL(QB_ERR_FORMAT,
                               "tensor %s (%zu, %zu) is missing: found none, expected one", name,
                               rows, cols);
            return QB_FAIL(QB_ERR_FORMAT, "tensor %s: found dtype %s, expected a float type", name,
                           qb_dtype_get(t->dtype)->name);
        }
    }
    return QB_OK;
}

/* ---- reading ---- */

const qb_tensor *qb_model_tensor(const qb_model *model, qb_role role, size_t layer_idx)
{
    return slot_of(model, role, layer_idx);
}

size_t qb_model_n_tensors(const qb_model *model)
{
    size_t n = 0;
    for (size_t i = 0; i < QB_ROLE_COUNT * model->config.n_layers; i++)
        n += model->tensors[i].data != NULL;
    return n;
}

size_t qb_model_file_bytes(const qb_model *model)
{
    size_t bytes = 0;
    for (size_t i = 0; i < model->n_files; i++) bytes += model->files[i].bytes;
    return bytes;
}

const qb_tensor *qb_model_head(const qb_model *model)
{
    return slot_of(model, model->config.tied_head ? QB_ROLE_TOK_EMBD : QB_ROLE_HEAD, 0);
}

static int code_at(const qb_tensor *t, const uint8_t *row, size_t k)
{
    if (t->dtype == QB_S8) return (int8_t)row[k];
    return k % 2 ? row[k / 2] >> 4 : row[k / 2] & 15;
}

/* Columns [k0, k1) of row n: those of a slice, or single columns on the input axis. */
static void widen_codes(const qb_tensor *t, const uint8_t *row, size_t slice, size_t slice_step,
                        size_t k0, size_t k1, float *dst)
{
    const qb_tensor_quant *q = &t->quant;
    for (size_t k = k0; k < k1; k++, slice += slice_step) {
        float scale = q->scale[slice];
        int zero_point = q->zero_point ? q->zero_point[slice] : 0;
        /* In 64 bits: a zero point from a file may be any int32. */
        float value = (float)((int64_t)code_at(t, row, k) - zero_point) * scale;
        dst[k] = scale == 0.0f ? (q->fill ? q->fill[slice] : 0.0f) : value;
    }
}

static void row_of_codes_f32(const qb_tensor *t, size_t n, float *dst)
{
    const qb_tensor_quant *q = &t->quant;
    const uint8_t *row = (const uint8_t *)t->data + n * (t->bytes / t->rows);
    switch (q->axis) {
    case QB_AXIS_OUT:
        widen_codes(t, row, n, 0, 0, t->cols, dst);
        break;
    case QB_AXIS_IN:
        widen_codes(t, row, 0, 1, 0, t->cols, dst);
        break;
    case QB_AXIS_GROUP: {
        size_t groups = n_groups(t->cols, q->group_elems);
        for (size_t g = 0; g < groups; g++) {
            size_t k0 = g * q->group_elems, k1 = k0 + q->group_elems;
            widen_codes(t, row, n * groups + g, 0, k0, k1 < t->cols ? k1 : t->cols, dst);
        }
        break;
    }
    default:
        widen_codes(t, row, 0, 0, 0, t->cols, dst);
    }
    for (size_t k = 0; q->fold && k < t->cols; k++)
        dst[k] = q->fold[k] == 0.0f ? 0.0f : dst[k] / q->fold[k];
}

void qb_tensor_rows_f32(const qb_tensor *t, size_t first_row, size_t n_rows, float *dst)
{
    if (t->quant.axis == QB_AXIS_NONE) {
        const uint8_t *src = (const uint8_t *)t->data + first_row * (t->bytes / t->rows);
        qb_dtype_to_f32(t->dtype, src, n_rows * t->cols, dst);
        return;
    }
    for (size_t i = 0; i < n_rows; i++) row_of_codes_f32(t, first_row + i, dst + i * t->cols);
}

void qb_tensor_forget(const qb_model *model, const qb_tensor *t)
{
    for (size_t i = 0; i < model->n_files; i++) {
        const qb_file *file = &model->files[i];
        uintptr_t start = (uintptr_t)file->data, at = (uintptr_t)t->data;
        if (at >= start && at - start < file->bytes) qb_file_forget(file, at - start, t->bytes);
    }
}
