/* model/model_bin_internal.h - what the reader and the writer of model.bin share: the fixed header
 * and the limits. docs/formats.md describes the layout field by field. */
#ifndef QB_MODEL_MODEL_BIN_INTERNAL_H
#define QB_MODEL_MODEL_BIN_INTERNAL_H

#include "core/file.h"
#include "core/threads.h"
#include "model/model_bin.h"

#ifdef __cplusplus
extern "C" {
#endif

enum {
    QB_BIN_VERSION = 1,
    QB_BIN_HEADER_BYTES = 64,
    QB_BIN_ALIGN = 64, /* of payloads in the file: mapped ones can be read with aligned loads */
    QB_BIN_DIGEST_BYTES = 32,
    QB_BIN_MAX_JSON_BYTES = 64 << 20,
    QB_BIN_CHUNK_BYTES = 1 << 20, /* of deflated payloads, as written; readers take 4 KiB..64 MiB */
    QB_BIN_MIN_CHUNK_BYTES = 4 << 10,
    QB_BIN_MAX_CHUNK_BYTES = 64 << 20,
    QB_BIN_MAX_RATIO = 1032, /* deflate cannot do better (zlib.net/zlib_tech.html) */
};

#define QB_BIN_TOKENIZER_NAME "tokenizer"

typedef struct qb_bin_header {
    uint32_t version, json_crc;
    uint64_t json_bytes, n_payloads, total_bytes, digest_offset;
} qb_bin_header;

void qb__bin_header_pack(const qb_bin_header *header, uint8_t out[QB_BIN_HEADER_BYTES]);
/* Reads and checks every field against the file; QB_ERR_FORMAT names the rule. */
qb_status qb__bin_header_unpack(const qb_file *file, qb_bin_header *out);

/* One payload as the file's table describes it. */
typedef struct qb_bin_payload {
    const char *name; /* borrowed from the JSON */
    qb_dtype dtype;
    size_t rows, cols, offset, bytes, stored_bytes;
    uint32_t crc;
    size_t chunk_bytes;
    const json_t *chunks; /* stored bytes of each chunk; NULL = raw */
    const json_t *quant;
    const uint8_t *data; /* raw or inflated, by qb__bin_load_payloads */
    bool taken;          /* became a tensor, or part of one */
} qb_bin_payload;

typedef struct qb_bin_reader {
    qb_file *file; /* of the caller until the model takes it over */
    qb_bin_header header;
    json_t *root;
    qb_bin_payload *payloads; /* in the order of the file */
    qb_bin_payload **by_name; /* sorted */
    size_t n;
    qb_pool *pool;
    qb_model *model;
} qb_bin_reader;

/* The table of the JSON, every size and place checked: payloads stand in its order, each at the
 * next aligned offset, zeros between them, up to the digest. */
qb_status qb__bin_read_table(qb_bin_reader *reader);
/* The CRC-32 of every payload, in parallel; its pages leave the resident set again. */
qb_status qb__bin_check_crcs(const qb_bin_reader *reader);
/* Sets data: into the mapping, or into a block of the model with the inflated bytes. */
qb_status qb__bin_load_payloads(const qb_bin_reader *reader);
/* NAMEsuffix, or NULL. */
qb_bin_payload *qb__bin_find(const qb_bin_reader *reader, const char *name, const char *suffix);

/* A value that must be there, within its range. */
qb_status qb__bin_need_size(const json_t *object, const char *key, size_t min, size_t max,
                            size_t *out);
qb_status qb__bin_need_string(const json_t *object, const char *key, const char **out);
/* "tensor NAME: " before the message. */
qb_status qb__bin_fail_in(qb_status status, const qb_bin_payload *payload);
/* zlib's memory hooks: counted like all other memory. */
void *qb__bin_zlib_alloc(void *opaque, unsigned items, unsigned bytes);
void qb__bin_zlib_free(void *opaque, void *block);

#ifdef __cplusplus
}
#endif
#endif
