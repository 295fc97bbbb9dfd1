/* model/safetensors.c - strict reader of the container; the writer is in safetensors_write.c. */
#include "model/safetensors.h"

#include "core/json.h"
#include "core/memory.h"
#include "model/safetensors_internal.h"

#include <stdlib.h>

/* The format allows a header of 100,000,000 bytes. JSON in memory takes up to 85 times its text, so
 * hostile headers are held to what real ones need: the largest model files have some thousand
 * tensors at about 100 bytes each. */
enum { MAX_HEADER_BYTES = 8 << 20, MAX_TENSORS = 1 << 15, MAX_VALUES = 1 << 19 };
#define FORMAT_MAX_HEADER_BYTES 100000000u

struct qb_safetensors {
    qb_file owned; /* zeroed where the mapping is the caller's */
    const qb_file *file;
    json_t *header;
    const uint8_t *data; /* first byte after the header */
    size_t data_bytes;
    qb_st_tensor *tensors; /* by offset */
    size_t n_tensors;
    const qb_st_tensor **by_name;
};

const qb__st_dtype qb__st_dtypes[] = {
    {"F32", 32, QB_F32},
    {"F16", 16, QB_F16},
    {"BF16", 16, QB_BF16},
    {"F64", 64, QB_F64},
    {"I8", 8, QB_S8},
    {"U8", 8, QB_U8},
    {"I16", 16, QB_S16},
    {"I32", 32, QB_S32},
    {"I64", 64, QB_S64},
    {"BOOL", 8, QB_DTYPE_COUNT},
    {"U16", 16, QB_DTYPE_COUNT},
    {"U32", 32, QB_DTYPE_COUNT},
    {"U64", 64, QB_DTYPE_COUNT},
    {"C64", 64, QB_DTYPE_COUNT},
    {"F4", 4, QB_DTYPE_COUNT},
    {"F6_E2M3", 6, QB_DTYPE_COUNT},
    {"F6_E3M2", 6, QB_DTYPE_COUNT},
    {"F8_E5M2", 8, QB_DTYPE_COUNT},
    {"F8_E4M3", 8, QB_DTYPE_COUNT},
    {"F8_E8M0", 8, QB_DTYPE_COUNT},
    {"F8_E4M3FNUZ", 8, QB_DTYPE_COUNT},
    {"F8_E5M2FNUZ", 8, QB_DTYPE_COUNT},
    {0},
};

/* ---- the header's bytes ---- */

/* One linear pass before the JSON library sees the text: how many values it may come to. */
static qb_status check_budget(const char *text, size_t bytes)
{
    size_t n_objects = 0, n_values = 0, at = 0;
    for (char c; (c = qb_json_next_mark(text, bytes, &at));) {
        n_objects += c == '{' || c == '[';
        n_values += c == ',';
    }
    if (n_objects > 3 * (size_t)MAX_TENSORS + 2 || n_values > MAX_VALUES)
        return QB_FAIL(QB_ERR_FORMAT,
                       "header: found %zu objects and %zu values, expected at most %d tensors",
                       n_objects, n_values, MAX_TENSORS);
    return QB_OK;
}

static qb_status check_header_size(const qb_file *file, size_t *out)
{
    if (file->bytes < 8)
        return QB_FAIL(QB_ERR_FORMAT,
                       "header too small: found a file of %zu bytes, expected at least 8",
                       file->bytes);
    uint64_t n = 0;
    for (int i = 0; i < 8; i++) n |= (uint64_t)file->data[i] << 8 * i;
    if (n > FORMAT_MAX_HEADER_BYTES)
        return QB_FAIL(QB_ERR_FORMAT, "header too large: found %llu bytes, expected at most %u",
                       (unsigned long long)n, FORMAT_MAX_HEADER_BYTES);
    if (n > file->bytes - 8)
        return QB_FAIL(QB_ERR_FORMAT,
                       "invalid header length: found %llu bytes, expected at most the %zu that "
                       "remain (truncated?)",
                       (unsigned long long)n, file->bytes - 8);
    if (n > MAX_HEADER_BYTES)
        return QB_FAIL(QB_ERR_UNSUPPORTED, "header: found %llu bytes, expected at most %d",
                       (unsigned long long)n, MAX_HEADER_BYTES);
    *out = (size_t)n;
    return QB_OK;
}

static qb_status parse_header(qb_safetensors *st)
{
    size_t bytes = 0;
    QB_TRY(check_header_size(st->file, &bytes));
    const char *text = (const char *)st->file->data + 8;
    QB_TRY(check_budget(text, bytes));
    QB_TRY(qb_json_parse(text, bytes, MAX_HEADER_BYTES, "header", &st->header));
    if (!json_is_object(st->header))
        return QB_FAIL(QB_ERR_FORMAT, "header: found another kind of JSON, expected an object");
    st->data = st->file->data + 8 + bytes;
    st->data_bytes = st->file->bytes - 8 - bytes;
    return QB_OK;
}

/* ---- one entry ---- */

/* A non-negative integer; fractions, negative numbers and other types are refused. */
static bool as_size(const json_t *value, size_t *out)
{
    if (!json_is_integer(value) || json_integer_value(value) < 0) return false;
    *out = (size_t)json_integer_value(value);
    return true;
}

/* What stands where a size should, for messages. */
static const char *describe(const json_t *value, char text[32])
{
    static const char *const words[] = {"an object", "an array", "a string", "an integer",
                                        "a number",  "true",     "false",    "null"};
    if (json_is_integer(value))
        snprintf(text, 32, "%lld", (long long)json_integer_value(value));
    else if (json_is_real(value))
        snprintf(text, 32, "%g", json_real_value(value));
    else
        snprintf(text, 32, "%s", value ? words[json_typeof(value)] : "nothing");
    return text;
}

static const qb__st_dtype *find_dtype(const char *name)
{
    for (const qb__st_dtype *d = qb__st_dtypes; d->name; d++)
        if (!strcmp(d->name, name)) return d;
    return NULL;
}

static qb_status parse_shape(const json_t *shape, qb_st_tensor *t)
{
    if (!json_is_array(shape))
        return QB_FAIL(QB_ERR_FORMAT, "tensor %.200s: shape: found no array, expected one",
                       t->name);
    t->rank = json_array_size(shape);
    if (t->rank > QB_ST_MAX_RANK)
        return QB_FAIL(QB_ERR_UNSUPPORTED, "tensor %.200s: rank: found %zu, expected at most %d",
                       t->name, t->rank, QB_ST_MAX_RANK);
    t->n_elems = 1;
    char found[32];
    for (size_t i = 0; i < t->rank; i++) {
        if (!as_size(json_array_get(shape, i), &t->shape[i]))
            return QB_FAIL(QB_ERR_FORMAT,
                           "tensor %.200s: shape[%zu]: found %s, expected a non-negative integer",
                           t->name, i, describe(json_array_get(shape, i), found));
        if (!qb_mul_size(t->n_elems, t->shape[i], &t->n_elems))
            return QB_FAIL(QB_ERR_FORMAT,
                           "tensor %.200s: shape: found a product that overflows at %zu, expected "
                           "one in 64 bits",
                           t->name, t->shape[i]);
    }
    return QB_OK;
}

static qb_status check_bytes(const qb_st_tensor *t, unsigned element_bits)
{
    size_t bits;
    if (!qb_mul_size(t->n_elems, element_bits, &bits))
        return QB_FAIL(
            QB_ERR_FORMAT,
            "tensor %.200s: size: found %zu elements of %s, which overflow, expected fewer",
            t->name, t->n_elems, t->dtype);
    if (bits % 8)
        return QB_FAIL(QB_ERR_FORMAT, "tensor %.200s: size: found %zu bits, expected whole bytes",
                       t->name, bits);
    if (t->bytes != bits / 8)
        return QB_FAIL(QB_ERR_FORMAT,
                       "tensor %.200s: size: found data_offsets of %zu bytes, expected %zu for "
                       "its shape and dtype",
                       t->name, t->bytes, bits / 8);
    return QB_OK;
}

/* *begin goes to the data pointer as an offset; the tiling is checked after sorting. */
static qb_status parse_range(const qb_safetensors *st, const json_t *range, qb_st_tensor *t)
{
    size_t begin, end;
    char first[32], second[32];
    if (json_array_size(range) != 2 || !as_size(json_array_get(range, 0), &begin) ||
        !as_size(json_array_get(range, 1), &end))
        return QB_FAIL(
            QB_ERR_FORMAT,
            "tensor %.200s: data_offsets: found [%s, %s], expected two non-negative integers",
            t->name, describe(json_array_get(range, 0), first),
            describe(json_array_get(range, 1), second));
    if (begin > end)
        return QB_FAIL(
            QB_ERR_FORMAT,
            "tensor %.200s: data_offsets: found end %zu, expected it not before begin %zu", t->name,
            end, begin);
    if (end > st->data_bytes)
        return QB_FAIL(
            QB_ERR_FORMAT,
            "tensor %.200s: truncated: expected %zu bytes of data, found %zu in the file", t->name,
            end, st->data_bytes);
    t->data = st->data + begin;
    t->bytes = end - begin;
    return QB_OK;
}

static qb_status parse_entry(const qb_safetensors *st, const json_t *entry, qb_st_tensor *t)
{
    char found[32];
    const char *dtype = json_string_value(json_object_get(entry, "dtype"));
    if (!dtype)
        return QB_FAIL(QB_ERR_FORMAT, "tensor %.200s: dtype: found %s, expected a string", t->name,
                       describe(json_object_get(entry, "dtype"), found));
    const qb__st_dtype *d = find_dtype(dtype);
    if (!d)
        return QB_FAIL(QB_ERR_FORMAT,
                       "tensor %.200s: dtype: found \"%.40s\", expected one of the "
                       "format's, such as F32",
                       t->name, dtype);
    t->dtype = d->name;
    t->known = d->as != QB_DTYPE_COUNT;
    t->as = d->as;
    QB_TRY(parse_shape(json_object_get(entry, "shape"), t));
    QB_TRY(parse_range(st, json_object_get(entry, "data_offsets"), t));
    if (json_object_size(entry) != 3)
        return QB_FAIL(QB_ERR_FORMAT,
                       "tensor %.200s: found %zu keys, expected dtype, shape and data_offsets",
                       t->name, json_object_size(entry));
    return check_bytes(t, d->bits);
}

static qb_status check_metadata(const json_t *metadata)
{
    const char *key;
    json_t *value;
    if (!json_is_object(metadata))
        return QB_FAIL(QB_ERR_FORMAT,
                       "__metadata__: found another kind of value, expected an object of strings");
    json_object_foreach((json_t *)metadata, key, value)
    {
        if (!json_is_string(value))
            return QB_FAIL(
                QB_ERR_FORMAT,
                "__metadata__: key \"%.100s\": found another kind of value, expected a string",
                key);
    }
    return QB_OK;
}

/* ---- all entries ---- */

static int by_offset(const void *a, const void *b)
{
    const qb_st_tensor *x = a, *y = b;
    if (x->data != y->data) return x->data < y->data ? -1 : 1;
    if (x->bytes != y->bytes) return x->bytes < y->bytes ? -1 : 1; /* empty tensors first */
    return strcmp(x->name, y->name);
}

static int by_name(const void *a, const void *b)
{
    const qb_st_tensor *const *x = a, *const *y = b;
    return strcmp((*x)->name, (*y)->name);
}

static qb_status check_tiling(const qb_safetensors *st)
{
    size_t at = 0;
    for (size_t i = 0; i < st->n_tensors; i++) {
        const qb_st_tensor *t = &st->tensors[i];
        size_t begin = (size_t)(t->data - st->data);
        if (begin != at)
            return QB_FAIL(QB_ERR_FORMAT, "offset %s tensor %.200s: found %zu, expected %zu",
                           begin > at ? "hole before" : "overlap at", t->name, begin, at);
        at += t->bytes;
    }
    if (at != st->data_bytes)
        return QB_FAIL(QB_ERR_FORMAT,
                       "trailing bytes: expected %zu bytes of data as the tensors have, found %zu",
                       at, st->data_bytes);
    return QB_OK;
}

static qb_status parse_entries(qb_safetensors *st)
{
    size_t n = json_object_size(st->header), i = 0;
    QB_TRY(QB_NEW_ZERO(&st->tensors, n, "tensor list"));
    const char *name;
    json_t *entry;
    json_object_foreach(st->header, name, entry)
    {
        if (!strcmp(name, "__metadata__")) {
            QB_TRY(check_metadata(entry));
            continue;
        }
        st->tensors[i].name = name;
        QB_TRY(parse_entry(st, entry, &st->tensors[i]));
        i++;
    }
    st->n_tensors = i;
    qsort(st->tensors, i, sizeof *st->tensors, by_offset);
    return check_tiling(st);
}

static qb_status index_names(qb_safetensors *st)
{
    QB_TRY(QB_NEW(&st->by_name, st->n_tensors, "tensor names"));
    for (size_t i = 0; i < st->n_tensors; i++) st->by_name[i] = &st->tensors[i];
    qsort(st->by_name, st->n_tensors, sizeof *st->by_name, by_name);
    return QB_OK;
}

qb_status qb_safetensors_parse(const qb_file *file, qb_safetensors **out)
{
    qb_safetensors *st;
    QB_TRY(QB_NEW_ZERO(&st, 1, "safetensors"));
    st->file = file;
    qb_status status = parse_header(st);
    if (status == QB_OK) status = parse_entries(st);
    if (status == QB_OK) status = index_names(st);
    if (status != QB_OK) {
        qb_safetensors_close(st);
        return qb_error_prefix(status, file->path);
    }
    *out = st;
    return QB_OK;
}

qb_status qb_safetensors_open(const char *path, qb_safetensors **out)
{
    qb_file file;
    QB_TRY(qb_file_open(path, &file));
    qb_safetensors *st;
    qb_status status = qb_safetensors_parse(&file, &st);
    if (status != QB_OK) {
        qb_file_close(&file);
        return status;
    }
    st->owned = file;
    st->file = &st->owned;
    *out = st;
    return QB_OK;
}

void qb_safetensors_close(qb_safetensors *st)
{
    if (!st) return;
    json_decref(st->header);
    qb_free(st->by_name);
    qb_free(st->tensors);
    qb_file_close(&st->owned);
    qb_free(st);
}

/* ---- access ---- */

const char *qb_safetensors_path(const qb_safetensors *st)
{
    return st->file->path;
}

size_t qb_safetensors_n_tensors(const qb_safetensors *st)
{
    return st->n_tensors;
}

const qb_st_tensor *qb_safetensors_get(const qb_safetensors *st, size_t i)
{
    return &st->tensors[i];
}

const qb_st_tensor *qb_safetensors_find(const qb_safetensors *st, const char *name)
{
    const qb_st_tensor key = {.name = name}, *key_pointer = &key;
    const qb_st_tensor **found =
        bsearch(&key_pointer, st->by_name, st->n_tensors, sizeof *st->by_name, by_name);
    return found ? *found : NULL;
}

const json_t *qb_safetensors_metadata(const qb_safetensors *st)
{
    return json_object_get(st->header, "__metadata__");
}

qb_status qb_st_tensor_to_f32(const qb_st_tensor *t, float *dst)
{
    if (!t->known || !qb_dtype_get(t->as)->is_float)
        return QB_FAIL(QB_ERR_FORMAT, "tensor %.200s: dtype: found %s, expected a float type",
                       t->name, t->dtype);
    qb_dtype_to_f32(t->as, t->data, t->n_elems, dst);
    return QB_OK;
}

static int64_t integer_at(const qb_st_tensor *t, size_t i)
{
    size_t width = t->bytes / t->n_elems;
    uint64_t raw = 0;
    for (size_t b = 0; b < width; b++) raw |= (uint64_t)t->data[i * width + b] << 8 * b;
    if (t->as == QB_U8) return (int64_t)raw;
    unsigned unused = 64 - 8 * (unsigned)width;
    return (int64_t)(raw << unused) >> unused; /* sign extension */
}

qb_status qb_st_tensor_to_s32(const qb_st_tensor *t, int32_t *dst)
{
    bool integer = t->known && (t->as == QB_S32 || t->as == QB_S64 || t->as == QB_S16 ||
                                t->as == QB_S8 || t->as == QB_U8);
    if (!integer)
        return QB_FAIL(QB_ERR_FORMAT, "tensor %.200s: dtype: found %s, expected I32", t->name,
                       t->dtype);
    for (size_t i = 0; i < t->n_elems; i++) {
        int64_t v = integer_at(t, i);
        if (v < INT32_MIN || v > INT32_MAX)
            return QB_FAIL(QB_ERR_FORMAT, "tensor %.200s: element %zu: found %lld, expected int32",
                           t->name, i, (long long)v);
        dst[i] = (int32_t)v;
    }
    return QB_OK;
}
