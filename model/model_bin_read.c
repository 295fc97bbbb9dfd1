/* model/model_bin_read.c - model.bin into memory, every rule checked before it is relied on.
 *
 * In order: header, JSON, payload table (sizes, order, alignment, padding), CRCs, and only then the
 * model. Raw payloads stay mapped and leave the resident set again after their CRC was computed;
 * deflated ones are inflated into blocks of the model's own. */
#include "model/model_bin_internal.h"

#include "core/json.h"
#include "core/memory.h"
#include "model/tokenizer.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define MAX_GROUP ((size_t)1 << 20) /* of columns under one scale; convert makes no larger ones */

/* ---- tensors ---- */

/* "h.12.attn.q": role and layer; false for a name that no tensor has. */
static bool role_of(const qb_config *config, const char *name, qb_role *role, size_t *layer_idx)
{
    size_t layer = 0;
    const char *digits = strpbrk(name, "0123456789");
    if (digits && strlen(digits) < 64) layer = (size_t)strtoul(digits, NULL, 10);
    if (layer >= config->n_layers) layer = 0;
    for (int i = 0; i < QB_ROLE_COUNT; i++) {
        char text[64];
        qb_role_name((qb_role)i, layer, text, sizeof text);
        if (strcmp(text, name)) continue;
        *role = (qb_role)i;
        *layer_idx = qb_roles[i].per_layer ? layer : 0;
        return true;
    }
    return false;
}

static qb_status check_floats(const float *x, size_t n, bool may_be_negative, const char *what)
{
    for (size_t i = 0; i < n; i++)
        if (!isfinite(x[i]) || (!may_be_negative && x[i] < 0))
            return QB_FAIL(QB_ERR_FORMAT, "%s[%zu]: found %g, expected a finite value%s", what, i,
                           (double)x[i], may_be_negative ? "" : " >= 0");
    return QB_OK;
}

/* NAME.suffix with n_slices elements; *data stays NULL where it is absent and may be. */
static qb_status take_side(qb_bin_reader *r, const qb_bin_payload *codes, const char *suffix,
                           qb_dtype dtype, size_t n_slices, bool required, const void **data)
{
    qb_bin_payload *p = qb__bin_find(r, codes->name, suffix);
    if (!p) {
        if (!required) return QB_OK;
        return QB_FAIL(QB_ERR_FORMAT, "its codes: found no %s%s, expected one", codes->name,
                       suffix);
    }
    if (p->dtype != dtype || p->rows != 1 || p->cols != n_slices)
        return QB_FAIL(QB_ERR_FORMAT, "%s: found (%zu, %zu) %s, expected (%zu) %s", suffix, p->rows,
                       p->cols, qb_dtype_get(p->dtype)->name, n_slices, qb_dtype_get(dtype)->name);
    p->taken = true;
    *data = p->data;
    return QB_OK;
}

/* Columns are odd: the high nibble of each row's last byte is no code and must be 0. */
static qb_status check_spare_nibbles(const qb_bin_payload *p)
{
    size_t row_bytes = p->cols / 2 + 1;
    for (size_t row = 0; p->cols % 2 && row < p->rows; row++)
        if (p->data[(row + 1) * row_bytes - 1] >> 4)
            return QB_FAIL(QB_ERR_FORMAT, "row %zu: found a code past the last column, expected 0",
                           row);
    return QB_OK;
}

static qb_status parse_quant(const qb_bin_payload *p, qb_tensor_quant *q)
{
    const char *axis;
    size_t bits;
    QB_TRY(qb__bin_need_string(p->quant, "axis", &axis));
    for (int i = QB_AXIS_OUT; i <= QB_AXIS_GROUP; i++)
        if (!strcmp(axis, qb_axis_names[i])) q->axis = (qb_axis)i;
    if (q->axis == QB_AXIS_NONE)
        return QB_FAIL(QB_ERR_FORMAT, "quant axis: found \"%s\", expected out, in, tensor or group",
                       axis);
    QB_TRY(qb__bin_need_size(p->quant, "bits", 4, 8, &bits));
    q->bits = (unsigned)bits;
    if (!(bits == 8 && p->dtype == QB_S8) && !(bits == 4 && p->dtype == QB_U4))
        return QB_FAIL(QB_ERR_FORMAT, "quant: found %zu bits as %s, expected 8 as s8 or 4 as u4",
                       bits, qb_dtype_get(p->dtype)->name);
    if (q->axis == QB_AXIS_GROUP) /* a row narrower than a group is one group */
        QB_TRY(qb__bin_need_size(p->quant, "group", 1, qb_max_size(p->cols, MAX_GROUP),
                                 &q->group_elems));
    q->n_slices = qb_axis_n_slices(q->axis, q->group_elems, p->rows, p->cols);
    return QB_OK;
}

static qb_status read_quant(qb_bin_reader *r, const qb_bin_payload *p, qb_tensor_quant *out)
{
    qb_tensor_quant q = {.axis = QB_AXIS_NONE};
    const void *scale = NULL, *zero_point = NULL, *fill = NULL, *fold = NULL;
    QB_TRY(parse_quant(p, &q));
    QB_TRY(take_side(r, p, ".scale", QB_F32, q.n_slices, true, &scale));
    if (q.bits == 4) QB_TRY(take_side(r, p, ".zero_point", QB_S32, q.n_slices, true, &zero_point));
    QB_TRY(take_side(r, p, ".fill", QB_F32, q.n_slices, false, &fill));
    QB_TRY(take_side(r, p, ".fold", QB_F32, p->cols, false, &fold));
    q.scale = scale;
    q.zero_point = zero_point;
    q.fill = fill;
    q.fold = fold;
    QB_TRY(check_floats(q.scale, q.n_slices, false, "scale"));
    if (q.fill) QB_TRY(check_floats(q.fill, q.n_slices, true, "fill"));
    if (q.fold) QB_TRY(check_floats(q.fold, p->cols, false, "fold"));
    if (q.bits == 4) QB_TRY(check_spare_nibbles(p));
    *out = q;
    return QB_OK;
}

static qb_status set_tensor(qb_bin_reader *r, qb_bin_payload *p, qb_role role, size_t layer_idx)
{
    qb_tensor_quant quant = {.axis = QB_AXIS_NONE};
    if (p->quant && !qb_roles[role].linear && role != QB_ROLE_HEAD)
        return QB_FAIL(QB_ERR_FORMAT, "tensor %s: found codes, expected them in linear layers only",
                       p->name);
    qb_status status = p->quant ? read_quant(r, p, &quant) : QB_OK;
    if (status != QB_OK) return qb__bin_fail_in(status, p);
    QB_TRY(qb_model_set(r->model, role, layer_idx, p->dtype, p->rows, p->cols, p->data, p->bytes,
                        p->name));
    p->taken = true;
    if (!p->quant) return QB_OK; /* that it is of a float dtype is checked with completeness */
    return qb_model_set_quant(r->model, role, layer_idx, &quant, p->name);
}

static qb_status set_tensors(qb_bin_reader *r)
{
    for (size_t i = 0; i < r->n; i++) {
        qb_bin_payload *p = &r->payloads[i];
        qb_role role;
        size_t layer_idx;
        if (!role_of(&r->model->config, p->name, &role, &layer_idx)) continue;
        QB_TRY(set_tensor(r, p, role, layer_idx));
    }
    return qb_model_check_complete(r->model);
}

/* ---- the rest of the JSON ---- */

static qb_status read_tokenizer(qb_bin_reader *r)
{
    qb_bin_payload *p = qb__bin_find(r, QB_BIN_TOKENIZER_NAME, "");
    const json_t *about = json_object_get(r->root, "tokenizer");
    if (!p != !about)
        return QB_FAIL(QB_ERR_FORMAT, "tokenizer: found %s, expected both or neither",
                       p ? "a payload without the key" : "the key without a payload");
    if (!p) return QB_OK;
    if (p->dtype != QB_U8 || p->rows != 1)
        return QB_FAIL(QB_ERR_FORMAT, "tokenizer: found (%zu, %zu) %s, expected bytes", p->rows,
                       p->cols, qb_dtype_get(p->dtype)->name);
    p->taken = true;
    QB_TRY(qb_tokenizer_deserialize(p->data, p->bytes, &r->model->tokenizer));
    const char *sha256;
    QB_TRY(qb__bin_need_string(about, "sha256", &sha256));
    if (strcmp(sha256, qb_tokenizer_sha256(r->model->tokenizer)))
        return QB_FAIL(QB_ERR_FORMAT, "tokenizer: found SHA-256 %s, expected %.64s",
                       qb_tokenizer_sha256(r->model->tokenizer), sha256);
    size_t vocab = qb_tokenizer_vocab(r->model->tokenizer);
    if (vocab > r->model->config.vocab)
        return QB_FAIL(QB_ERR_FORMAT,
                       "tokenizer: found %zu tokens, expected at most the %zu of the model", vocab,
                       r->model->config.vocab);
    return QB_OK;
}

static qb_status keep_record(const qb_bin_reader *r, const char *key, json_t **out)
{
    json_t *record = json_object_get(r->root, key);
    if (!record || json_is_null(record)) return QB_OK;
    if (!json_is_object(record))
        return QB_FAIL(QB_ERR_FORMAT, "key \"%s\": found no object, expected one", key);
    *out = json_incref(record);
    return QB_OK;
}

static qb_status read_records(qb_bin_reader *r)
{
    const char *name = NULL, *scheme = NULL;
    QB_TRY(qb_json_get_string(r->root, "name", &name));
    if (name) QB_TRY(qb_model_set_name(r->model, name));
    QB_TRY(qb_json_get_string(r->root, "scheme", &scheme));
    if (scheme) QB_TRY(qb_strdup(&r->model->stored_scheme, scheme));
    QB_TRY(keep_record(r, "training", &r->model->training));
    return keep_record(r, "calibration", &r->model->calibration);
}

static qb_status check_all_taken(const qb_bin_reader *r)
{
    for (size_t i = 0; i < r->n; i++)
        if (!r->payloads[i].taken)
            return QB_FAIL(
                QB_ERR_FORMAT,
                "tensor %s: found one, but the architecture has no such tensor, expected none",
                r->payloads[i].name);
    return QB_OK;
}

/* ---- the whole ---- */

static qb_status read_json(qb_bin_reader *r)
{
    QB_TRY(qb__bin_header_unpack(r->file, &r->header));
    QB_TRY(qb_json_parse((const char *)r->file->data + QB_BIN_HEADER_BYTES, r->header.json_bytes,
                         QB_BIN_MAX_JSON_BYTES, "JSON header", &r->root));
    if (!json_is_object(r->root))
        return QB_FAIL(QB_ERR_FORMAT, "JSON header: found no object, expected one");
    return QB_OK;
}

static qb_status read_all(qb_bin_reader *r)
{
    qb_config config;
    QB_TRY(read_json(r));
    QB_TRY(qb_config_from_json(json_object_get(r->root, "architecture"), &config));
    QB_TRY(qb__bin_read_table(r));
    QB_TRY(qb_pool_create(0, &r->pool));
    QB_TRY(qb__bin_check_crcs(r));
    QB_TRY(qb_model_create(&config, r->file->path, "model.bin", &r->model));
    QB_TRY(qb_model_take_file(r->model, r->file));
    r->file = &r->model->files[0];
    QB_TRY(qb__bin_load_payloads(r));
    QB_TRY(set_tensors(r));
    QB_TRY(read_tokenizer(r));
    QB_TRY(check_all_taken(r));
    QB_TRY(read_records(r));
    qb_file_forget(r->file, 0, r->file->bytes); /* what the pieces left at their borders */
    return QB_OK;
}

qb_status qb_model_bin_open(const char *path, qb_file *file, qb_model **out)
{
    qb_bin_reader r = {.file = file};
    qb_status status = read_all(&r);
    json_decref(r.root);
    qb_free(r.payloads);
    qb_free(r.by_name);
    qb_pool_destroy(r.pool);
    if (status == QB_OK) {
        *out = r.model;
        return QB_OK;
    }
    qb_model_close(r.model);
    qb_file_close(file); /* zeroed where the model had it */
    return qb_error_prefix(status, path);
}
