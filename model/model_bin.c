/* model/model_bin.c - the fixed header of model.bin, and verify. The reader is in model_bin_read.c,
 * the writer in model_bin_write.c. */
#include "model/model_bin_internal.h"

#include "core/interrupt.h"
#include "core/memory.h"

#include <string.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "payloads are mapped as they are");

const char *const qb_axis_names[QB_AXIS_GROUP + 1] = {"none", "out", "in", "tensor", "group"};

static const uint8_t magic[8] = {'Q', 'B', 'E', 'N', 'C', 'H', 0, 0};

static void put_le(uint8_t *out, uint64_t value, int n_bytes)
{
    for (int i = 0; i < n_bytes; i++) out[i] = (uint8_t)(value >> 8 * i);
}

static uint64_t get_le(const uint8_t *in, int n_bytes)
{
    uint64_t value = 0;
    for (int i = 0; i < n_bytes; i++) value |= (uint64_t)in[i] << 8 * i;
    return value;
}

void qb__bin_header_pack(const qb_bin_header *header, uint8_t out[QB_BIN_HEADER_BYTES])
{
    memset(out, 0, QB_BIN_HEADER_BYTES);
    memcpy(out, magic, sizeof magic);
    put_le(out + 8, header->version, 4);
    put_le(out + 12, header->json_crc, 4);
    put_le(out + 16, header->json_bytes, 8);
    put_le(out + 24, header->n_payloads, 8);
    put_le(out + 32, header->total_bytes, 8);
    put_le(out + 40, header->digest_offset, 8);
}

static qb_status check_sizes(const qb_bin_header *h, size_t file_bytes)
{
    if (h->total_bytes != file_bytes)
        return QB_FAIL(QB_ERR_FORMAT, "%s: found %zu bytes, expected %llu",
                       file_bytes < h->total_bytes ? "truncated" : "bytes after the end",
                       file_bytes, (unsigned long long)h->total_bytes);
    if (file_bytes < QB_BIN_HEADER_BYTES + QB_BIN_DIGEST_BYTES)
        return QB_FAIL(QB_ERR_FORMAT, "truncated: found %zu bytes, expected at least %d",
                       file_bytes, QB_BIN_HEADER_BYTES + QB_BIN_DIGEST_BYTES);
    if (h->digest_offset != file_bytes - QB_BIN_DIGEST_BYTES || h->digest_offset % QB_BIN_ALIGN)
        return QB_FAIL(QB_ERR_FORMAT, "digest offset: found %llu, expected %zu, a multiple of %d",
                       (unsigned long long)h->digest_offset, file_bytes - QB_BIN_DIGEST_BYTES,
                       QB_BIN_ALIGN);
    size_t room = file_bytes - QB_BIN_HEADER_BYTES - QB_BIN_DIGEST_BYTES;
    if (h->json_bytes > room || h->json_bytes > QB_BIN_MAX_JSON_BYTES)
        return QB_FAIL(QB_ERR_FORMAT, "JSON length: found %llu, expected at most %zu",
                       (unsigned long long)h->json_bytes,
                       room < QB_BIN_MAX_JSON_BYTES ? room : (size_t)QB_BIN_MAX_JSON_BYTES);
    return QB_OK;
}

qb_status qb__bin_header_unpack(const qb_file *file, qb_bin_header *out)
{
    if (file->bytes < QB_BIN_HEADER_BYTES)
        return QB_FAIL(QB_ERR_FORMAT, "truncated: found %zu bytes, expected a header of %d",
                       file->bytes, QB_BIN_HEADER_BYTES);
    const uint8_t *p = file->data;
    if (memcmp(p, magic, sizeof magic))
        return QB_FAIL(QB_ERR_FORMAT, "magic: found other bytes, expected QBENCH and two NULs");
    qb_bin_header h = {(uint32_t)get_le(p + 8, 4), (uint32_t)get_le(p + 12, 4), get_le(p + 16, 8),
                       get_le(p + 24, 8),          get_le(p + 32, 8),           get_le(p + 40, 8)};
    if (h.version < 1 || h.version > QB_BIN_VERSION)
        return QB_FAIL(QB_ERR_FORMAT, "format version: found %u, expected 1 to %d", h.version,
                       QB_BIN_VERSION);
    for (int i = 48; i < QB_BIN_HEADER_BYTES; i++)
        if (p[i])
            return QB_FAIL(QB_ERR_FORMAT, "reserved header byte %d: found %u, expected 0", i, p[i]);
    QB_TRY(check_sizes(&h, file->bytes));
    uint32_t crc = qb_crc32(p + QB_BIN_HEADER_BYTES, h.json_bytes);
    if (crc != h.json_crc)
        return QB_FAIL(QB_ERR_FORMAT, "CRC-32 of the JSON header: found %08x, expected %08x", crc,
                       h.json_crc);
    *out = h;
    return QB_OK;
}

void *qb__bin_zlib_alloc(void *opaque, unsigned items, unsigned bytes)
{
    (void)opaque;
    return qb_library_alloc((size_t)items * bytes);
}

void qb__bin_zlib_free(void *opaque, void *block)
{
    (void)opaque;
    qb_library_free(block);
}

bool qb_model_bin_recognise(const char *path, const qb_file *file)
{
    (void)path;
    return file && file->bytes >= 6 && !memcmp(file->data, magic, 6);
}

/* ---- verify ---- */

static qb_status check_digest(const qb_file *file)
{
    enum { STEP = 4 << 20 };
    size_t end = file->bytes - QB_BIN_DIGEST_BYTES;
    qb_sha256 *hash;
    QB_TRY(qb_sha256_create(&hash));
    qb_status status = QB_OK;
    for (size_t from = 0; status == QB_OK && from < end; from += STEP) {
        size_t n = end - from < STEP ? end - from : STEP;
        qb_sha256_update(hash, file->data + from, n);
        qb_file_forget(file, from, n);
        status = qb_interrupt_check();
    }
    char found[65], expected[65];
    qb_sha256_finish(hash, found);
    QB_TRY(status);
    for (int i = 0; i < QB_BIN_DIGEST_BYTES; i++)
        snprintf(expected + 2 * i, 3, "%02x", file->data[end + (size_t)i]);
    if (strcmp(found, expected))
        return QB_FAIL(QB_ERR_FORMAT, "SHA-256 of the whole: found %s, expected %s", found,
                       expected);
    return QB_OK;
}

qb_status qb_model_bin_verify(const char *path, size_t *n_tensors)
{
    qb_file file;
    qb_model *model;
    QB_TRY(qb_file_open(path, &file));
    QB_TRY(qb_model_bin_open(path, &file, &model));
    qb_status status = check_digest(&model->files[0]);
    size_t n = qb_model_n_tensors(model);
    qb_model_close(model);
    if (status != QB_OK) return qb_error_prefix(status, path);
    if (n_tensors) *n_tensors = n;
    return QB_OK;
}
