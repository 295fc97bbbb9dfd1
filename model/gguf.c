/* model/gguf.c - see gguf.h. Every number from the file is compared with what remains of it before
 * use; the known attacks on other parsers (sizes that wrap, arrays longer than the file, dimensions
 * of 0, wild alignments) are refused by the rule that they break. */
#include "model/gguf.h"

#include "core/memory.h"

#include <stdlib.h>

enum {
    MAX_KVS = 1 << 16,
    MAX_TENSORS = 1 << 16,
    MAX_KEY_BYTES = 65535,
    MAX_NAME_BYTES = 64,
    MAX_DIMS = 4,
    DEFAULT_ALIGNMENT = 32,
    MAX_ALIGNMENT = 1 << 16,
};

/* Item sizes by type; 0 = of variable length. */
static const uint8_t type_bytes[QB_GGUF_TYPE_COUNT] = {
    [QB_GGUF_U8] = 1,  [QB_GGUF_S8] = 1,  [QB_GGUF_U16] = 2, [QB_GGUF_S16] = 2,
    [QB_GGUF_U32] = 4, [QB_GGUF_S32] = 4, [QB_GGUF_F32] = 4, [QB_GGUF_BOOL] = 1,
    [QB_GGUF_U64] = 8, [QB_GGUF_S64] = 8, [QB_GGUF_F64] = 8,
};

/* ggml_type numbers (ggml.h) that are read; the names of the others are for messages. */
static const struct {
    uint32_t number;
    const char *name;
    qb_dtype dtype; /* QB_DTYPE_COUNT = not read */
} ggml_types[] = {
    {0, "F32", QB_F32},
    {1, "F16", QB_F16},
    {2, "Q4_0", QB_Q4_0},
    {3, "Q4_1", QB_Q4_1},
    {6, "Q5_0", QB_Q5_0},
    {7, "Q5_1", QB_Q5_1},
    {8, "Q8_0", QB_Q8_0},
    {10, "Q2_K", QB_Q2_K},
    {11, "Q3_K", QB_Q3_K},
    {12, "Q4_K", QB_Q4_K},
    {13, "Q5_K", QB_Q5_K},
    {14, "Q6_K", QB_Q6_K},
    {20, "IQ4_NL", QB_IQ4_NL},
    {23, "IQ4_XS", QB_IQ4_XS},
    {30, "BF16", QB_BF16},
    {34, "TQ1_0", QB_TQ1_0},
    {35, "TQ2_0", QB_TQ2_0},
    {16, "IQ2_XXS", QB_DTYPE_COUNT},
    {17, "IQ2_XS", QB_DTYPE_COUNT},
    {18, "IQ3_XXS", QB_DTYPE_COUNT},
    {19, "IQ1_S", QB_DTYPE_COUNT},
    {21, "IQ3_S", QB_DTYPE_COUNT},
    {22, "IQ2_S", QB_DTYPE_COUNT},
    {29, "IQ1_M", QB_DTYPE_COUNT},
    {39, "MXFP4", QB_DTYPE_COUNT},
    {40, "NVFP4", QB_DTYPE_COUNT},
};

/* ---- a cursor that never passes the end ---- */

typedef struct cursor {
    const uint8_t *start, *at, *end;
} cursor;

static size_t left(const cursor *c)
{
    return (size_t)(c->end - c->at);
}

static size_t offset(const cursor *c)
{
    return (size_t)(c->at - c->start);
}

static uint64_t load(const uint8_t *p, size_t bytes)
{
    uint64_t v = 0;
    for (size_t i = 0; i < bytes; i++) v |= (uint64_t)p[i] << 8 * i;
    return v;
}

static qb_status need(const cursor *c, uint64_t bytes, const char *what)
{
    if (bytes <= left(c)) return QB_OK;
    return QB_FAIL(QB_ERR_FORMAT, "truncated: %s at offset %zu: expected %llu bytes, found %zu",
                   what, offset(c), (unsigned long long)bytes, left(c));
}

static qb_status read_u32(cursor *c, const char *what, uint32_t *out)
{
    QB_TRY(need(c, 4, what));
    *out = (uint32_t)load(c->at, 4);
    c->at += 4;
    return QB_OK;
}

static qb_status read_u64(cursor *c, const char *what, uint64_t *out)
{
    QB_TRY(need(c, 8, what));
    *out = load(c->at, 8);
    c->at += 8;
    return QB_OK;
}

static qb_status read_text(cursor *c, const char *what, qb_gguf_text *out)
{
    uint64_t n;
    QB_TRY(read_u64(c, what, &n));
    QB_TRY(need(c, n, what));
    *out = (qb_gguf_text){(const char *)c->at, (size_t)n};
    c->at += n;
    return QB_OK;
}

/* %.*s arguments, held short: a message is one line. */
#define TEXT(t) (int)((t).bytes < 100 ? (t).bytes : 100), (t).data

static int compare_texts(qb_gguf_text a, qb_gguf_text b)
{
    size_t n = a.bytes < b.bytes ? a.bytes : b.bytes;
    int order = n ? memcmp(a.data, b.data, n) : 0;
    return order ? order : (a.bytes > b.bytes) - (a.bytes < b.bytes);
}

/* ---- header ---- */

static qb_status read_header(cursor *c, uint64_t *n_tensors, uint64_t *n_kvs)
{
    uint32_t version = 0;
    if (left(c) < 4 || memcmp(c->at, "GGUF", 4))
        return QB_FAIL(QB_ERR_FORMAT, "magic: found other bytes, expected GGUF");
    c->at += 4;
    QB_TRY(read_u32(c, "version", &version));
    if (!(version & 0xffff) && version)
        return QB_FAIL(QB_ERR_UNSUPPORTED,
                       "version: found 0x%08x, a big-endian file; expected little-endian version 3",
                       version);
    if (version != 3) return QB_FAIL(QB_ERR_UNSUPPORTED, "version: found %u, expected 3", version);
    QB_TRY(read_u64(c, "tensor count", n_tensors));
    QB_TRY(read_u64(c, "key count", n_kvs));
    if (*n_tensors > MAX_TENSORS)
        return QB_FAIL(QB_ERR_FORMAT, "tensor count: found %llu, expected at most %d",
                       (unsigned long long)*n_tensors, MAX_TENSORS);
    if (*n_kvs > MAX_KVS)
        return QB_FAIL(QB_ERR_FORMAT, "key count: found %llu, expected at most %d",
                       (unsigned long long)*n_kvs, MAX_KVS);
    /* The shortest key takes 8 + 1 + 4 + 1 bytes, the shortest tensor 8 + 1 + 4 + 8 + 4 + 8. */
    if (*n_kvs * 14 + *n_tensors * 33 > left(c))
        return QB_FAIL(QB_ERR_FORMAT,
                       "truncated: %llu keys and %llu tensors: found %zu bytes, expected more",
                       (unsigned long long)*n_kvs, (unsigned long long)*n_tensors, left(c));
    return QB_OK;
}

/* ---- keys and values ---- */

static qb_status check_key(qb_gguf_text key, size_t at)
{
    if (key.bytes < 1 || key.bytes > MAX_KEY_BYTES)
        return QB_FAIL(QB_ERR_FORMAT, "key at offset %zu: found %zu bytes, expected 1 to %d", at,
                       key.bytes, MAX_KEY_BYTES);
    for (size_t i = 0; i < key.bytes; i++)
        if (key.data[i] <= 0x20 || key.data[i] >= 0x7f)
            return QB_FAIL(QB_ERR_FORMAT, "key at offset %zu: found byte 0x%02x, expected ASCII",
                           at, (unsigned char)key.data[i]);
    return QB_OK;
}

static qb_status skip_items(cursor *c, qb_gguf_kv *kv)
{
    size_t bytes;
    kv->value = c->at;
    if (kv->type == QB_GGUF_STRING) {
        if (kv->n > left(c) / 8)
            return QB_FAIL(QB_ERR_FORMAT,
                           "key %.*s: truncated: %zu strings: found %zu bytes, expected more",
                           TEXT(kv->key), kv->n, left(c));
        qb_gguf_text unused;
        for (size_t i = 0; i < kv->n; i++) QB_TRY(read_text(c, "string", &unused));
    } else {
        if (!qb_mul_size(kv->n, type_bytes[kv->type], &bytes) || bytes > left(c))
            return QB_FAIL(
                QB_ERR_FORMAT,
                "key %.*s: truncated: %zu items of %u bytes: found %zu bytes, expected more",
                TEXT(kv->key), kv->n, type_bytes[kv->type], left(c));
        c->at += bytes;
    }
    kv->value_bytes = (size_t)(c->at - kv->value);
    return QB_OK;
}

static qb_status read_type(cursor *c, qb_gguf_text key, uint32_t *out)
{
    QB_TRY(read_u32(c, "value type", out));
    if (*out >= QB_GGUF_TYPE_COUNT)
        return QB_FAIL(QB_ERR_FORMAT, "key %.*s: value type: found %u, expected 0 to %d", TEXT(key),
                       *out, QB_GGUF_TYPE_COUNT - 1);
    return QB_OK;
}

static qb_status read_kv(cursor *c, qb_gguf_kv *kv)
{
    size_t at = offset(c);
    uint32_t type = 0;
    uint64_t n = 1;
    QB_TRY(read_text(c, "key", &kv->key));
    QB_TRY(check_key(kv->key, at));
    QB_TRY(read_type(c, kv->key, &type));
    kv->is_array = type == QB_GGUF_ARRAY;
    if (kv->is_array) {
        QB_TRY(read_type(c, kv->key, &type));
        if (type == QB_GGUF_ARRAY)
            return QB_FAIL(QB_ERR_UNSUPPORTED,
                           "key %.*s: found an array of arrays, expected one of numbers or strings",
                           TEXT(kv->key));
        QB_TRY(read_u64(c, "array length", &n));
    }
    kv->type = (qb_gguf_type)type;
    kv->n = (size_t)n;
    return skip_items(c, kv);
}

static int by_key(const void *a, const void *b)
{
    return compare_texts(((const qb_gguf_kv *)a)->key, ((const qb_gguf_kv *)b)->key);
}

static qb_status read_kvs(cursor *c, qb_gguf *g)
{
    for (size_t i = 0; i < g->n_kvs; i++) QB_TRY(read_kv(c, &g->kvs[i]));
    qsort(g->kvs, g->n_kvs, sizeof *g->kvs, by_key);
    for (size_t i = 1; i < g->n_kvs; i++)
        if (!compare_texts(g->kvs[i - 1].key, g->kvs[i].key))
            return QB_FAIL(QB_ERR_FORMAT, "key %.*s: found twice, expected once",
                           TEXT(g->kvs[i].key));
    return QB_OK;
}

static qb_status read_alignment(qb_gguf *g)
{
    const qb_gguf_kv *kv = qb_gguf_find(g, "general.alignment");
    g->alignment = DEFAULT_ALIGNMENT;
    if (!kv) return QB_OK;
    if (kv->type != QB_GGUF_U32 || kv->is_array)
        return QB_FAIL(QB_ERR_FORMAT, "general.alignment: found another type, expected u32");
    g->alignment = (size_t)load(kv->value, 4);
    if (!g->alignment || g->alignment & (g->alignment - 1) || g->alignment > MAX_ALIGNMENT)
        return QB_FAIL(QB_ERR_FORMAT,
                       "general.alignment: found %zu, expected a power of two up to %d",
                       g->alignment, MAX_ALIGNMENT);
    return QB_OK;
}

/* ---- tensors ---- */

static qb_status read_dims(cursor *c, qb_gguf_tensor *t)
{
    uint32_t n_dims = 0;
    QB_TRY(read_u32(c, "dimension count", &n_dims));
    if (n_dims < 1 || n_dims > MAX_DIMS)
        return QB_FAIL(QB_ERR_FORMAT, "tensor %.*s: dimensions: found %u, expected 1 to %d",
                       TEXT(t->name), n_dims, MAX_DIMS);
    t->n_dims = n_dims;
    t->rows = 1;
    size_t elems = 1;
    for (uint32_t i = 0; i < n_dims; i++) {
        uint64_t ne = 0;
        QB_TRY(read_u64(c, "dimension", &ne));
        if (!ne || ne > INT64_MAX)
            return QB_FAIL(QB_ERR_FORMAT,
                           "tensor %.*s: dimension %u: found %llu, expected 1 to 2^63 - 1",
                           TEXT(t->name), i, (unsigned long long)ne);
        if (!qb_mul_size(elems, (size_t)ne, &elems) || elems > INT64_MAX)
            return QB_FAIL(
                QB_ERR_FORMAT,
                "tensor %.*s: found dimensions whose product overflows, expected a size in 64 bits",
                TEXT(t->name));
        if (i == 0) t->cols = (size_t)ne;
    }
    t->rows = elems / t->cols;
    return QB_OK;
}

static qb_status read_dtype(cursor *c, qb_gguf_tensor *t)
{
    uint32_t number = 0;
    QB_TRY(read_u32(c, "tensor type", &number));
    const char *name = "unknown";
    for (size_t i = 0; i < QB_COUNT(ggml_types); i++) {
        if (ggml_types[i].number != number) continue;
        name = ggml_types[i].name;
        t->dtype = ggml_types[i].dtype;
        if (t->dtype == QB_DTYPE_COUNT) break;
        if (qb_dtype_bytes(t->dtype, t->rows, t->cols, &t->bytes)) return QB_OK;
        return QB_FAIL(
            QB_ERR_FORMAT,
            "tensor %.*s: found a row of %zu elements, expected a multiple of the %s block of "
            "%zu, and a size that does not overflow",
            TEXT(t->name), t->cols, name, qb_dtype_get(t->dtype)->block_elems);
    }
    return QB_FAIL(QB_ERR_UNSUPPORTED,
                   "tensor %.*s: type: found %s (%u), expected F32, F16, BF16, Q8_0, Q4_0, Q4_1, "
                   "Q5_0, Q5_1, Q2_K to Q6_K, IQ4_NL, IQ4_XS, TQ1_0 or TQ2_0",
                   TEXT(t->name), name, number);
}

/* The running sum of padded sizes is what the next offset must be. */
static qb_status read_tensor(cursor *c, size_t alignment, uint64_t *expected, qb_gguf_tensor *t)
{
    uint64_t at = 0;
    QB_TRY(read_text(c, "tensor name", &t->name));
    if (t->name.bytes < 1 || t->name.bytes > MAX_NAME_BYTES)
        return QB_FAIL(QB_ERR_FORMAT,
                       "tensor name at offset %zu: found %zu bytes, expected 1 to %d",
                       offset(c) - t->name.bytes, t->name.bytes, MAX_NAME_BYTES);
    QB_TRY(read_dims(c, t));
    QB_TRY(read_dtype(c, t));
    QB_TRY(read_u64(c, "tensor offset", &at));
    if (at != *expected)
        return QB_FAIL(
            QB_ERR_FORMAT, "tensor %.*s: offset: found %llu, expected %llu, a multiple of %zu",
            TEXT(t->name), (unsigned long long)at, (unsigned long long)*expected, alignment);
    size_t end;
    if (!qb_add_size(*expected, t->bytes, &end) || end > SIZE_MAX - alignment)
        return QB_FAIL(QB_ERR_FORMAT,
                       "tensor %.*s: found sizes whose sum overflows, expected one in 64 bits",
                       TEXT(t->name));
    *expected = qb_round_up(end, alignment);
    return QB_OK;
}

static int by_name(const void *a, const void *b)
{
    return compare_texts((*(const qb_gguf_tensor *const *)a)->name,
                         (*(const qb_gguf_tensor *const *)b)->name);
}

static qb_status check_names(const qb_gguf *g)
{
    const qb_gguf_tensor **sorted;
    QB_TRY(QB_NEW(&sorted, g->n_tensors, "tensor names"));
    for (size_t i = 0; i < g->n_tensors; i++) sorted[i] = &g->tensors[i];
    qsort(sorted, g->n_tensors, sizeof *sorted, by_name);
    qb_status status = QB_OK;
    for (size_t i = 1; i < g->n_tensors && status == QB_OK; i++)
        if (!compare_texts(sorted[i - 1]->name, sorted[i]->name))
            status = QB_FAIL(QB_ERR_FORMAT, "tensor %.*s: found twice, expected once",
                             TEXT(sorted[i]->name));
    qb_free(sorted);
    return status;
}

/* Offsets in the file are relative to the data, which start after the infos, aligned. */
static qb_status place_tensors(const cursor *c, qb_gguf *g)
{
    size_t at = qb_round_up(offset(c), g->alignment), size = (size_t)(c->end - c->start);
    for (size_t i = 0; i < g->n_tensors; i++) {
        qb_gguf_tensor *t = &g->tensors[i];
        if (at > size || t->bytes > size - at)
            return QB_FAIL(
                QB_ERR_FORMAT,
                "truncated: tensor %.*s at offset %zu: expected %zu bytes, found a file of %zu",
                TEXT(t->name), at, t->bytes, size);
        t->data = c->start + at;
        at = qb_round_up(at + t->bytes, g->alignment);
    }
    return QB_OK;
}

static qb_status parse(qb_gguf *g)
{
    cursor c = {g->file->data, g->file->data, g->file->data + g->file->bytes};
    uint64_t n_tensors = 0, n_kvs = 0, expected = 0;
    QB_TRY(read_header(&c, &n_tensors, &n_kvs));
    QB_TRY(QB_NEW_ZERO(&g->kvs, (size_t)n_kvs, "GGUF keys"));
    g->n_kvs = (size_t)n_kvs;
    QB_TRY(read_kvs(&c, g));
    QB_TRY(read_alignment(g));
    QB_TRY(QB_NEW_ZERO(&g->tensors, (size_t)n_tensors, "GGUF tensors"));
    g->n_tensors = (size_t)n_tensors;
    for (size_t i = 0; i < g->n_tensors; i++)
        QB_TRY(read_tensor(&c, g->alignment, &expected, &g->tensors[i]));
    QB_TRY(check_names(g));
    return place_tensors(&c, g);
}

qb_status qb_gguf_parse(const qb_file *file, qb_gguf *out)
{
    qb_gguf g = {.file = file};
    if (!file->bytes) return QB_FAIL(QB_ERR_FORMAT, "magic: found an empty file, expected GGUF");
    qb_status status = parse(&g);
    if (status != QB_OK)
        qb_gguf_deinit(&g);
    else
        *out = g;
    return status;
}

void qb_gguf_deinit(qb_gguf *g)
{
    qb_free(g->kvs);
    qb_free(g->tensors);
    *g = (qb_gguf){0};
}

/* ---- values ---- */

bool qb_gguf_text_is(qb_gguf_text text, const char *word)
{
    return text.bytes == strlen(word) && !memcmp(text.data, word, text.bytes);
}

qb_gguf_text qb_gguf_next_text(const uint8_t **at)
{
    qb_gguf_text text = {(const char *)*at + 8, (size_t)load(*at, 8)};
    *at += 8 + text.bytes;
    return text;
}

const qb_gguf_kv *qb_gguf_find(const qb_gguf *g, const char *key)
{
    const qb_gguf_kv wanted = {.key = {key, strlen(key)}};
    if (!g->n_kvs) return NULL;
    return bsearch(&wanted, g->kvs, g->n_kvs, sizeof *g->kvs, by_key);
}

static qb_status wrong_type(const qb_gguf_kv *kv, const char *expected)
{
    return QB_FAIL(QB_ERR_FORMAT, "key %.*s: found %stype %d, expected %s", TEXT(kv->key),
                   kv->is_array ? "an array of " : "", kv->type, expected);
}

/* Writers use u32, some u64 or i32 for the same key: any integer type will do. */
qb_status qb_gguf_get_size(const qb_gguf *g, const char *key, size_t max, size_t *out)
{
    const qb_gguf_kv *kv = qb_gguf_find(g, key);
    if (!kv) return QB_OK;
    bool is_signed = kv->type == QB_GGUF_S8 || kv->type == QB_GGUF_S16 || kv->type == QB_GGUF_S32 ||
                     kv->type == QB_GGUF_S64;
    bool is_unsigned = kv->type == QB_GGUF_U8 || kv->type == QB_GGUF_U16 ||
                       kv->type == QB_GGUF_U32 || kv->type == QB_GGUF_U64;
    if (kv->is_array || (!is_signed && !is_unsigned)) return wrong_type(kv, "one integer");
    uint64_t value = load(kv->value, type_bytes[kv->type]);
    bool negative = is_signed && value >> (8 * type_bytes[kv->type] - 1);
    if (negative || value > max)
        return QB_FAIL(QB_ERR_FORMAT, "key %s: found %s%llu, expected 0 to %zu", key,
                       negative ? "a negative number, bits " : "", (unsigned long long)value, max);
    *out = (size_t)value;
    return QB_OK;
}

qb_status qb_gguf_get_double(const qb_gguf *g, const char *key, double *out)
{
    const qb_gguf_kv *kv = qb_gguf_find(g, key);
    if (!kv) return QB_OK;
    if (!kv->is_array && kv->type == QB_GGUF_F32) {
        *out = (double)qb_f32_from_bits((uint32_t)load(kv->value, 4));
        return QB_OK;
    }
    if (!kv->is_array && kv->type == QB_GGUF_F64) {
        memcpy(out, kv->value, 8);
        return QB_OK;
    }
    return wrong_type(kv, "one float");
}

qb_status qb_gguf_get_bool(const qb_gguf *g, const char *key, bool *out)
{
    const qb_gguf_kv *kv = qb_gguf_find(g, key);
    if (!kv) return QB_OK;
    if (kv->is_array || kv->type != QB_GGUF_BOOL) return wrong_type(kv, "one bool");
    if (kv->value[0] > 1)
        return QB_FAIL(QB_ERR_FORMAT, "key %s: found %u, expected 0 or 1", key, kv->value[0]);
    *out = kv->value[0];
    return QB_OK;
}

qb_status qb_gguf_get_text(const qb_gguf *g, const char *key, qb_gguf_text *out)
{
    const qb_gguf_kv *kv = qb_gguf_find(g, key);
    if (!kv) return QB_OK;
    if (kv->is_array || kv->type != QB_GGUF_STRING) return wrong_type(kv, "one string");
    const uint8_t *at = kv->value;
    *out = qb_gguf_next_text(&at);
    return QB_OK;
}
