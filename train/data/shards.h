/* train/data/shards.h - files of token ids (.qbs), cut into documents.
 *
 * Little-endian: a header of 256 bytes (qb_shard_header), the table of document ends (n_docs u64,
 * counted in tokens), zeros up to a multiple of 64, the tokens as u16 or u32. Every document starts
 * with the end-of-text token where the tokenizer has one. The digest is the SHA-256 of all bytes of
 * the file but its own 64. docs/data.md states the rules. */
#ifndef QB_TRAIN_DATA_SHARDS_H
#define QB_TRAIN_DATA_SHARDS_H

#include "core/file.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { QB_SHARD_VERSION = 1, QB_SHARD_HEADER_BYTES = 256, QB_SHARD_ALIGN_BYTES = 64 };
#define QB_SHARD_MAGIC "QBSHARD" /* and its NUL */

typedef struct qb_shard_header {
    char magic[8];
    uint32_t version;
    uint32_t token_bytes; /* 2 (vocab <= 65536) or 4 */
    uint32_t vocab;
    int32_t eos; /* -1 = none */
    uint64_t n_docs, n_tokens;
    uint64_t text_bytes;       /* of the documents, end-of-text tokens not counted */
    uint64_t tokens_offset;    /* 256 + 8 n_docs, rounded up to 64 */
    uint64_t reserved;         /* 0 */
    char tokenizer_sha256[64]; /* hexadecimal, no NUL */
    char text_sha256[64];      /* of the decompressed text as it was read */
    char digest[64];
} qb_shard_header;

typedef struct qb_shard {
    qb_shard_header header;
    const uint64_t *doc_end; /* (n_docs) borrowed from the mapping */
    const void *tokens;      /* (n_tokens) u16 or u32, 64-byte aligned; borrowed */
    qb_file file;
} qb_shard;

/* Checks all but the digest and the tokens' range. */
qb_status qb_shard_open(const char *path, qb_shard *out);
/* The same of a file in memory, which is borrowed (out->file has no path to close). */
qb_status qb_shard_parse(const qb_file *file, qb_shard *out);
void qb_shard_close(qb_shard *shard); /* accepts a zeroed one */
/* The digest and the range of every token. */
qb_status qb_shard_verify(const qb_shard *shard);
/* dst[i] = token first + i, i < n. QB_ERR_FORMAT: one is outside the vocabulary. */
qb_status qb_shard_read(const qb_shard *shard, uint64_t first, size_t n, int32_t *dst);
/* *out = the first bytes are a shard's; false for a folder. QB_ERR_IO: cannot be opened. */
qb_status qb_shard_recognise(const char *path, bool *out);

typedef struct qb_shard_contents {
    const int32_t *tokens; /* (n_tokens), each in [0, vocab) */
    size_t n_tokens;
    const uint64_t *doc_end; /* (n_docs) ends in tokens, rising, the last = n_tokens */
    size_t n_docs;
    size_t vocab;
    int32_t eos;
    uint64_t text_bytes;
    const char *tokenizer_sha256, *text_sha256; /* 64 characters */
} qb_shard_contents;
/* Whole or not at all. digest: 65 characters, or NULL. */
qb_status qb_shard_write(const char *path, const qb_shard_contents *contents, char *digest);

#ifdef __cplusplus
}
#endif
#endif
