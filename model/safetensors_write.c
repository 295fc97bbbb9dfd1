/* model/safetensors_write.c - writer of the container: the largest alignment first, then by name,
 * as the reference writer does, and the header padded so that the data start 8-byte aligned. */
#include "core/json.h"
#include "core/memory.h"
#include "model/safetensors.h"
#include "model/safetensors_internal.h"

#include <assert.h>
#include <stdlib.h>

struct qb_st_writer {
    qb_writer *file;
    size_t *offset, *bytes; /* of each entry: absolute offset, size */
    size_t left_bytes;      /* still to be put */
};

typedef struct sorted_entry {
    const qb_st_entry *entry;
    const qb__st_dtype *dtype;
    size_t bytes;
} sorted_entry;

static int by_alignment_then_name(const void *a, const void *b)
{
    const sorted_entry *x = a, *y = b;
    if (x->dtype->bits != y->dtype->bits) return x->dtype->bits > y->dtype->bits ? -1 : 1;
    return strcmp(x->entry->name, y->entry->name);
}

static qb_status describe(const qb_st_entry *e, sorted_entry *out)
{
    out->entry = e;
    out->dtype = NULL;
    for (const qb__st_dtype *d = qb__st_dtypes; d->name; d++)
        if (d->as == e->dtype && e->dtype != QB_DTYPE_COUNT) out->dtype = d;
    if (!out->dtype)
        return QB_FAIL(QB_ERR_UNSUPPORTED,
                       "tensor %s: found dtype %s, expected one that safetensors has", e->name,
                       qb_dtype_get(e->dtype)->name);
    size_t bytes = out->dtype->bits / 8;
    for (size_t i = 0; i < e->rank; i++)
        if (!qb_mul_size(bytes, e->shape[i], &bytes))
            return QB_FAIL(QB_ERR_SHAPE, "tensor %s: its size overflows", e->name);
    out->bytes = bytes;
    return QB_OK;
}

/* NULL where memory lacks: a header with a piece missing must not come about. */
static json_t *entry_to_json(const sorted_entry *s, size_t begin)
{
    json_t *shape = json_array();
    int failed = !shape;
    for (size_t i = 0; i < s->entry->rank; i++)
        failed |= json_array_append_new(shape, json_integer((json_int_t)s->entry->shape[i]));
    if (failed) {
        json_decref(shape);
        return NULL;
    }
    return json_pack("{s:s, s:o, s:[I, I]}", "dtype", s->dtype->name, "shape", shape,
                     "data_offsets", (json_int_t)begin, (json_int_t)(begin + s->bytes));
}

/* The header's JSON, and offsets relative to the data for each entry. */
static qb_status build_header(const sorted_entry *sorted, const qb_st_entry *entries, size_t n,
                              const json_t *metadata, qb_st_writer *w, char **out)
{
    json_t *header = json_object();
    int failed = metadata ? json_object_set(header, "__metadata__", (json_t *)metadata) : 0;
    size_t at = 0;
    for (size_t i = 0; i < n; i++) {
        size_t entry_idx = (size_t)(sorted[i].entry - entries);
        failed |= json_object_set_new(header, sorted[i].entry->name, entry_to_json(&sorted[i], at));
        w->offset[entry_idx] = at;
        w->bytes[entry_idx] = sorted[i].bytes;
        at += sorted[i].bytes;
    }
    w->left_bytes = at;
    bool unique = json_object_size(header) == n + (metadata != NULL);
    qb_status status = failed ? QB_FAIL(QB_ERR_MEMORY, "safetensors: no memory for the header")
                              : qb_json_dump(header, JSON_COMPACT, "safetensors header", out);
    json_decref(header);
    assert(failed || unique);
    return status;
}

static qb_status write_header(qb_st_writer *w, const char *text, size_t n_entries)
{
    size_t n = strlen(text), padded = qb_round_up(n, 8);
    uint8_t length[8];
    for (int i = 0; i < 8; i++) length[i] = (uint8_t)((uint64_t)padded >> 8 * i);
    QB_TRY(qb_writer_write(w->file, length, 8));
    QB_TRY(qb_writer_write(w->file, text, n));
    QB_TRY(qb_writer_write(w->file, "        ", padded - n));
    for (size_t i = 0; i < n_entries; i++) w->offset[i] += 8 + padded;
    return QB_OK;
}

static qb_status start(const char *path, const qb_st_entry *entries, size_t n,
                       const json_t *metadata, sorted_entry *sorted, qb_st_writer *w)
{
    QB_TRY(QB_NEW(&w->offset, n, "offsets"));
    QB_TRY(QB_NEW(&w->bytes, n, "sizes"));
    for (size_t i = 0; i < n; i++) QB_TRY(describe(&entries[i], &sorted[i]));
    qsort(sorted, n, sizeof *sorted, by_alignment_then_name);
    char *text = NULL;
    QB_TRY(build_header(sorted, entries, n, metadata, w, &text));
    qb_status status = qb_writer_open(path, &w->file);
    if (status == QB_OK) status = write_header(w, text, n);
    qb_library_free(text);
    return status;
}

qb_status qb_st_writer_open(const char *path, const qb_st_entry *entries, size_t n,
                            const json_t *metadata, qb_st_writer **out)
{
    qb_st_writer *w;
    sorted_entry *sorted;
    QB_TRY(QB_NEW(&sorted, n, "sorted entries"));
    qb_status status = QB_NEW_ZERO(&w, 1, "safetensors writer");
    if (status != QB_OK) {
        qb_free(sorted);
        return status;
    }
    status = start(path, entries, n, metadata, sorted, w);
    qb_free(sorted);
    if (status != QB_OK) {
        qb_st_writer_abandon(w);
        return status;
    }
    *out = w;
    return QB_OK;
}

qb_status qb_st_writer_put(qb_st_writer *w, size_t i, size_t offset, const void *data, size_t bytes)
{
    assert(offset <= w->bytes[i] && bytes <= w->bytes[i] - offset && bytes <= w->left_bytes);
    QB_TRY(qb_writer_write_at(w->file, w->offset[i] + offset, data, bytes));
    w->left_bytes -= bytes;
    return QB_OK;
}

static void writer_free(qb_st_writer *w)
{
    qb_free(w->offset);
    qb_free(w->bytes);
    qb_free(w);
}

qb_status qb_st_writer_commit(qb_st_writer *w)
{
    assert(w->left_bytes == 0);
    qb_status status = qb_writer_commit(w->file);
    writer_free(w);
    return status;
}

void qb_st_writer_abandon(qb_st_writer *w)
{
    if (!w) return;
    qb_writer_abandon(w->file);
    writer_free(w);
}

qb_status qb_safetensors_write(const char *path, const qb_st_entry *entries, size_t n,
                               const json_t *metadata)
{
    qb_st_writer *w;
    QB_TRY(qb_st_writer_open(path, entries, n, metadata, &w));
    for (size_t i = 0; i < n; i++) {
        qb_status status = qb_st_writer_put(w, i, 0, entries[i].data, w->bytes[i]);
        if (status != QB_OK) {
            qb_st_writer_abandon(w);
            return status;
        }
    }
    return qb_st_writer_commit(w);
}
