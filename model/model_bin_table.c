/* model/model_bin_table.c - the payload table of model.bin and the payloads' bytes: places, CRCs,
 * inflating. Nothing is allocated for a payload before its declared size is known to fit. */
#include "model/model_bin_internal.h"

#include "core/json.h"
#include "core/memory.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

#define MAX_SIDE ((size_t)1 << 40) /* of a shape: rows and columns */
/* All deflated payloads together, inflated. More than any model that such files are made for, and
 * the system refuses earlier what it cannot give. */
#define MAX_INFLATED_BYTES ((size_t)1 << 38)
enum { PIECE_BYTES = 1 << 20 }; /* of the file, for one task of the CRC check */

/* ---- the payload table ---- */

qb_status qb__bin_need_size(const json_t *object, const char *key, size_t min, size_t max,
                            size_t *out)
{
    size_t value = SIZE_MAX;
    QB_TRY(qb_json_get_size(object, key, min, max, &value));
    if (value == SIZE_MAX)
        return QB_FAIL(QB_ERR_FORMAT, "key \"%s\": found none, expected one", key);
    *out = value;
    return QB_OK;
}

qb_status qb__bin_need_string(const json_t *object, const char *key, const char **out)
{
    const char *value = NULL;
    QB_TRY(qb_json_get_string(object, key, &value));
    if (!value) return QB_FAIL(QB_ERR_FORMAT, "key \"%s\": found none, expected one", key);
    *out = value;
    return QB_OK;
}

static qb_status parse_shape(const json_t *object, qb_bin_payload *p)
{
    const json_t *shape = json_object_get(object, "shape");
    size_t rank = json_array_size(shape), side[2] = {1, 1};
    if (rank < 1 || rank > 2)
        return QB_FAIL(QB_ERR_FORMAT, "shape: found %zu dimensions, expected 1 or 2", rank);
    for (size_t i = 0; i < rank; i++) {
        const json_t *n = json_array_get(shape, i);
        json_int_t value = json_integer_value(n); /* 0 where it is no integer */
        if (value < 1 || (size_t)value > MAX_SIDE)
            return QB_FAIL(QB_ERR_FORMAT, "shape: found %lld, expected 1 to %zu", (long long)value,
                           MAX_SIDE);
        side[2 - rank + i] = (size_t)value;
    }
    p->rows = side[0];
    p->cols = side[1];
    return QB_OK;
}

/* One chunk: as many bytes as it holds (stored as it is), or fewer (zlib). */
static qb_status check_chunks(const qb_bin_payload *p)
{
    size_t n = (p->bytes - 1) / p->chunk_bytes + 1, sum = 0;
    if (json_array_size(p->chunks) != n)
        return QB_FAIL(QB_ERR_FORMAT, "chunks: found %zu, expected %zu", json_array_size(p->chunks),
                       n);
    for (size_t i = 0; i < n; i++) {
        size_t left = p->bytes - i * p->chunk_bytes;
        size_t whole = left < p->chunk_bytes ? left : p->chunk_bytes;
        json_int_t stored = json_integer_value(json_array_get(p->chunks, i));
        if (stored < 1 || (size_t)stored > whole)
            return QB_FAIL(QB_ERR_FORMAT, "chunk %zu: found %lld stored bytes, expected 1 to %zu",
                           i, (long long)stored, whole);
        if (whole / QB_BIN_MAX_RATIO > (size_t)stored)
            return QB_FAIL(QB_ERR_FORMAT,
                           "chunk %zu: found %lld stored bytes for %zu, expected at most %d to 1",
                           i, (long long)stored, whole, QB_BIN_MAX_RATIO);
        sum += (size_t)stored;
    }
    if (sum != p->stored_bytes)
        return QB_FAIL(QB_ERR_FORMAT, "chunks: found %zu bytes in all, expected %zu", sum,
                       p->stored_bytes);
    return QB_OK;
}

static qb_status parse_encoding(const json_t *object, qb_bin_payload *p)
{
    const char *encoding;
    QB_TRY(qb__bin_need_string(object, "encoding", &encoding));
    if (!strcmp(encoding, "raw")) {
        if (p->stored_bytes != p->bytes)
            return QB_FAIL(QB_ERR_FORMAT, "raw payload: found %zu stored bytes, expected %zu",
                           p->stored_bytes, p->bytes);
        return QB_OK;
    }
    if (strcmp(encoding, "zlib"))
        return QB_FAIL(QB_ERR_FORMAT, "encoding: found \"%s\", expected raw or zlib", encoding);
    QB_TRY(qb__bin_need_size(object, "chunk_bytes", QB_BIN_MIN_CHUNK_BYTES, QB_BIN_MAX_CHUNK_BYTES,
                             &p->chunk_bytes));
    p->chunks = json_object_get(object, "chunks");
    if (!json_is_array(p->chunks))
        return QB_FAIL(QB_ERR_FORMAT, "chunks: found no array, expected one");
    return check_chunks(p);
}

static qb_status parse_payload(const qb_bin_reader *r, const json_t *object, qb_bin_payload *p)
{
    const char *dtype;
    size_t crc, bytes;
    QB_TRY(qb__bin_need_string(object, "dtype", &dtype));
    if (!qb_dtype_from_name(dtype, &p->dtype))
        return QB_FAIL(QB_ERR_FORMAT, "dtype: found \"%s\", expected a known one", dtype);
    QB_TRY(parse_shape(object, p));
    QB_TRY(qb__bin_need_size(object, "offset", QB_BIN_HEADER_BYTES, r->file->bytes, &p->offset));
    QB_TRY(qb__bin_need_size(object, "bytes", 1, MAX_INFLATED_BYTES, &p->bytes));
    QB_TRY(qb__bin_need_size(object, "stored_bytes", 1, r->file->bytes, &p->stored_bytes));
    QB_TRY(qb__bin_need_size(object, "crc32", 0, UINT32_MAX, &crc));
    p->crc = (uint32_t)crc;
    if (!qb_dtype_bytes(p->dtype, p->rows, p->cols, &bytes) || bytes != p->bytes)
        return QB_FAIL(QB_ERR_FORMAT, "(%zu, %zu) %s: found %zu bytes, expected its size", p->rows,
                       p->cols, dtype, p->bytes);
    p->quant = json_object_get(object, "quant");
    return parse_encoding(object, p);
}

/* Payloads stand in the order of the table, each at the next aligned offset, zeros between them, up
 * to the digest: so no byte of the file is unaccounted for. */
static qb_status check_place(const qb_bin_reader *r, const qb_bin_payload *p, size_t *end)
{
    size_t expected = qb_round_up(*end, QB_BIN_ALIGN);
    if (p->offset != expected)
        return QB_FAIL(QB_ERR_FORMAT, "offset: found %zu, expected %zu (%s)", p->offset, expected,
                       p->offset % QB_BIN_ALIGN ? "misaligned"
                       : p->offset < expected   ? "overlap"
                                                : "hole");
    if (p->stored_bytes > r->header.digest_offset - expected)
        return QB_FAIL(QB_ERR_FORMAT,
                       "found %zu stored bytes at %zu, expected the payloads to end at %llu",
                       p->stored_bytes, p->offset, (unsigned long long)r->header.digest_offset);
    *end = p->offset + p->stored_bytes;
    return QB_OK;
}

static qb_status check_padding(const qb_bin_reader *r, size_t from)
{
    for (size_t i = from; i < qb_round_up(from, QB_BIN_ALIGN); i++)
        if (r->file->data[i])
            return QB_FAIL(QB_ERR_FORMAT, "padding byte at %zu: found %u, expected 0", i,
                           r->file->data[i]);
    return QB_OK;
}

static int compare_names(const void *a, const void *b)
{
    return strcmp((*(qb_bin_payload *const *)a)->name, (*(qb_bin_payload *const *)b)->name);
}

qb_bin_payload *qb__bin_find(const qb_bin_reader *r, const char *name, const char *suffix)
{
    char text[128];
    int n = snprintf(text, sizeof text, "%s%s", name, suffix);
    if (n < 0 || (size_t)n >= sizeof text) return NULL;
    qb_bin_payload key = {.name = text}, *wanted = &key;
    qb_bin_payload **found = bsearch(&wanted, r->by_name, r->n, sizeof *r->by_name, compare_names);
    return found ? *found : NULL;
}

static qb_status sort_by_name(qb_bin_reader *r)
{
    QB_TRY(QB_NEW(&r->by_name, r->n, "payload names"));
    for (size_t i = 0; i < r->n; i++) r->by_name[i] = &r->payloads[i];
    qsort(r->by_name, r->n, sizeof *r->by_name, compare_names);
    for (size_t i = 1; i < r->n; i++)
        if (!strcmp(r->by_name[i - 1]->name, r->by_name[i]->name))
            return QB_FAIL(QB_ERR_FORMAT, "tensor %s: found twice in the table, expected once",
                           r->by_name[i]->name);
    return QB_OK;
}

qb_status qb__bin_fail_in(qb_status status, const qb_bin_payload *p)
{
    char prefix[160];
    snprintf(prefix, sizeof prefix, "tensor %.128s", p->name);
    return qb_error_prefix(status, prefix);
}

qb_status qb__bin_read_table(qb_bin_reader *r)
{
    const json_t *table = json_object_get(r->root, "tensors");
    r->n = json_array_size(table);
    if (!r->n || r->n != r->header.n_payloads)
        return QB_FAIL(QB_ERR_FORMAT,
                       "payload table: found %zu entries, expected %llu as the header says", r->n,
                       (unsigned long long)r->header.n_payloads);
    QB_TRY(QB_NEW_ZERO(&r->payloads, r->n, "payload table"));
    size_t end = QB_BIN_HEADER_BYTES + r->header.json_bytes, inflated = 0;
    for (size_t i = 0; i < r->n; i++) {
        qb_bin_payload *p = &r->payloads[i];
        const json_t *object = json_array_get(table, i);
        QB_TRY(qb__bin_need_string(object, "name", &p->name));
        qb_status status = parse_payload(r, object, p);
        size_t before = end;
        if (status == QB_OK) status = check_place(r, p, &end);
        if (status != QB_OK) return qb__bin_fail_in(status, p);
        QB_TRY(check_padding(r, before));
        if (p->chunks) inflated += p->bytes; /* cannot overflow: 2^38 each, 2^25 at most */
    }
    if (qb_round_up(end, QB_BIN_ALIGN) != r->header.digest_offset)
        return QB_FAIL(
            QB_ERR_FORMAT,
            "payloads: found their end at %zu, expected the digest there and not at %llu", end,
            (unsigned long long)r->header.digest_offset);
    QB_TRY(check_padding(r, end));
    if (inflated > MAX_INFLATED_BYTES)
        return QB_FAIL(QB_ERR_FORMAT,
                       "deflated payloads: found %zu bytes inflated, expected at most %zu",
                       inflated, MAX_INFLATED_BYTES);
    return sort_by_name(r);
}

/* ---- CRCs ---- */

typedef struct piece {
    const qb_bin_payload *payload;
    size_t offset, bytes;
    uint32_t crc;
} piece;

typedef struct crc_job {
    const qb_file *file;
    piece *pieces;
} crc_job;

static void crc_piece(void *context, size_t i, size_t thread_idx)
{
    (void)thread_idx;
    const crc_job *job = context;
    piece *p = &job->pieces[i];
    p->crc = qb_crc32(job->file->data + p->offset, p->bytes);
    qb_file_forget(job->file, p->offset, p->bytes);
}

static qb_status combine_crcs(const qb_bin_reader *r, const piece *pieces)
{
    for (size_t i = 0; i < r->n; i++) {
        const qb_bin_payload *p = &r->payloads[i];
        uint32_t crc = qb_crc32(NULL, 0);
        for (; pieces->payload == p; pieces++)
            crc = (uint32_t)crc32_combine(crc, pieces->crc, (z_off_t)pieces->bytes);
        if (crc != p->crc)
            return QB_FAIL(QB_ERR_FORMAT, "tensor %s: CRC-32: found %08x, expected %08x", p->name,
                           crc, p->crc);
    }
    return QB_OK;
}

qb_status qb__bin_check_crcs(const qb_bin_reader *r)
{
    size_t n = 0;
    for (size_t i = 0; i < r->n; i++) n += (r->payloads[i].stored_bytes - 1) / PIECE_BYTES + 1;
    crc_job job = {.file = r->file};
    QB_TRY(QB_NEW_ZERO(&job.pieces, n + 1, "CRC table")); /* + 1: an end that is no payload's */
    piece *next = job.pieces;
    for (size_t i = 0; i < r->n; i++) {
        const qb_bin_payload *p = &r->payloads[i];
        for (size_t at = 0; at < p->stored_bytes; at += PIECE_BYTES) {
            size_t left = p->stored_bytes - at;
            *next++ = (piece){p, p->offset + at, left < PIECE_BYTES ? left : PIECE_BYTES, 0};
        }
    }
    qb_parallel_for(r->pool, n, crc_piece, &job);
    qb_status status = combine_crcs(r, job.pieces);
    qb_free(job.pieces);
    return status;
}

/* ---- inflating ---- */

typedef struct inflate_job {
    const qb_bin_payload *payload;
    const uint8_t *stored;
    const size_t *chunk_offset; /* (n_chunks + 1) in stored */
    uint8_t *out;
    atomic_int status; /* the first that is not QB_OK */
} inflate_job;

static qb_status inflate_chunk(const uint8_t *in, size_t stored, uint8_t *out, size_t bytes)
{
    if (stored == bytes) {
        memcpy(out, in, bytes);
        return QB_OK;
    }
    z_stream z = {.zalloc = qb__bin_zlib_alloc,
                  .zfree = qb__bin_zlib_free,
                  .next_in = (Bytef *)in,
                  .avail_in = (uInt)stored,
                  .next_out = out,
                  .avail_out = (uInt)bytes};
    if (inflateInit(&z) != Z_OK) return QB_ERR_MEMORY;
    int code = inflate(&z, Z_FINISH);
    bool whole = code == Z_STREAM_END && z.total_out == bytes && z.avail_in == 0;
    inflateEnd(&z);
    if (code == Z_MEM_ERROR) return QB_ERR_MEMORY;
    return whole ? QB_OK : QB_ERR_FORMAT;
}

static void inflate_task(void *context, size_t i, size_t thread_idx)
{
    (void)thread_idx;
    inflate_job *job = context;
    const qb_bin_payload *p = job->payload;
    size_t from = i * p->chunk_bytes, left = p->bytes - from;
    qb_status status = inflate_chunk(
        job->stored + job->chunk_offset[i], job->chunk_offset[i + 1] - job->chunk_offset[i],
        job->out + from, left < p->chunk_bytes ? left : p->chunk_bytes);
    int ok = QB_OK;
    if (status != QB_OK) atomic_compare_exchange_strong(&job->status, &ok, (int)status);
}

static qb_status inflate_payload(const qb_bin_reader *r, qb_bin_payload *p)
{
    size_t n = json_array_size(p->chunks), *chunk_offset;
    void *out;
    QB_TRY(qb_model_new_block(r->model, p->bytes, &out));
    QB_TRY(QB_NEW(&chunk_offset, n + 1, "chunk table"));
    chunk_offset[0] = 0;
    for (size_t i = 0; i < n; i++)
        chunk_offset[i + 1] =
            chunk_offset[i] + (size_t)json_integer_value(json_array_get(p->chunks, i));
    inflate_job job = {p, r->file->data + p->offset, chunk_offset, out, QB_OK};
    qb_parallel_for(r->pool, n, inflate_task, &job);
    qb_free(chunk_offset);
    qb_file_forget(r->file, p->offset, p->stored_bytes);
    p->data = out;
    int status = atomic_load(&job.status);
    if (status == QB_ERR_MEMORY) return QB_FAIL(QB_ERR_MEMORY, "no memory to inflate");
    if (status != QB_OK)
        return QB_FAIL(QB_ERR_FORMAT,
                       "a deflated chunk: found other bytes, expected those declared");
    return QB_OK;
}

qb_status qb__bin_load_payloads(const qb_bin_reader *r)
{
    for (size_t i = 0; i < r->n; i++) {
        qb_bin_payload *p = &r->payloads[i];
        p->data = r->file->data + p->offset;
        if (!p->chunks) continue;
        qb_status status = inflate_payload(r, p);
        if (status != QB_OK) return qb__bin_fail_in(status, p);
    }
    return QB_OK;
}
