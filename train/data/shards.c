/* train/data/shards.c - token shards: the checked reader over a mapping, the writer. */
#include "train/data/shards.h"

#include "core/memory.h"

#include <string.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "shards are mapped as they are");
_Static_assert(sizeof(qb_shard_header) == QB_SHARD_HEADER_BYTES, "the header has no padding");
_Static_assert(offsetof(qb_shard_header, digest) == QB_SHARD_HEADER_BYTES - 64, "digest is last");

enum { WRITE_TOKENS = 1 << 16 };
static const uint64_t MAX_COUNT = (uint64_t)1 << 56; /* keeps sums of sizes far from overflow */

static uint64_t tokens_offset(uint64_t n_docs)
{
    return qb_round_up(QB_SHARD_HEADER_BYTES + 8 * n_docs, QB_SHARD_ALIGN_BYTES);
}

static bool is_hex(const char *text)
{
    for (int i = 0; i < 64; i++)
        if (!memchr("0123456789abcdef", text[i], 16)) return false;
    return true;
}

static qb_status check_vocabulary(const qb_shard_header *h)
{
    if (h->version != QB_SHARD_VERSION)
        return QB_FAIL(QB_ERR_UNSUPPORTED, "version: found %u, expected %d", h->version,
                       QB_SHARD_VERSION);
    if (h->vocab < 1 || h->vocab > INT32_MAX)
        return QB_FAIL(QB_ERR_FORMAT, "vocabulary: found %u, expected 1 to %d", h->vocab,
                       INT32_MAX);
    if (h->eos < -1 || h->eos >= (int64_t)h->vocab)
        return QB_FAIL(QB_ERR_FORMAT, "end-of-text token: found %d, expected -1 to %u", h->eos,
                       h->vocab - 1);
    if (h->token_bytes != (h->vocab <= 65536 ? 2u : 4u))
        return QB_FAIL(QB_ERR_FORMAT, "bytes a token: found %u, expected %d for %u tokens",
                       h->token_bytes, h->vocab <= 65536 ? 2 : 4, h->vocab);
    if (!is_hex(h->tokenizer_sha256) || !is_hex(h->text_sha256) || !is_hex(h->digest))
        return QB_FAIL(
            QB_ERR_FORMAT,
            "a digest of the header: found other characters, expected a hexadecimal number");
    if (h->reserved)
        return QB_FAIL(QB_ERR_FORMAT, "reserved field: found another value, expected 0");
    return QB_OK;
}

/* All positions follow from the two counts, so there is nothing to choose for a bad file. */
static qb_status check_sizes(const qb_shard_header *h, uint64_t file_bytes)
{
    if (h->n_docs > MAX_COUNT || h->n_tokens > MAX_COUNT)
        return QB_FAIL(
            QB_ERR_FORMAT,
            "found %llu documents and %llu tokens, expected no more than a file can hold",
            (unsigned long long)h->n_docs, (unsigned long long)h->n_tokens);
    if (h->tokens_offset != tokens_offset(h->n_docs))
        return QB_FAIL(QB_ERR_FORMAT, "offset of the tokens: found %llu, expected %llu",
                       (unsigned long long)h->tokens_offset,
                       (unsigned long long)tokens_offset(h->n_docs));
    uint64_t expected = h->tokens_offset + h->n_tokens * h->token_bytes;
    if (file_bytes != expected)
        return QB_FAIL(QB_ERR_FORMAT, "size: found %llu bytes, expected %llu",
                       (unsigned long long)file_bytes, (unsigned long long)expected);
    return QB_OK;
}

static qb_status check_documents(const qb_shard *s)
{
    uint64_t before = 0;
    for (uint64_t i = 0; i < s->header.n_docs; before = s->doc_end[i++])
        if (s->doc_end[i] <= before || s->doc_end[i] > s->header.n_tokens)
            return QB_FAIL(QB_ERR_FORMAT, "end of document %llu: found %llu, expected %llu to %llu",
                           (unsigned long long)i, (unsigned long long)s->doc_end[i],
                           (unsigned long long)before + 1, (unsigned long long)s->header.n_tokens);
    if (before != s->header.n_tokens)
        return QB_FAIL(QB_ERR_FORMAT, "documents: found their end at token %llu, expected %llu",
                       (unsigned long long)before, (unsigned long long)s->header.n_tokens);
    return QB_OK;
}

static qb_status parse(const qb_file *file, qb_shard *s)
{
    size_t n = sizeof QB_SHARD_MAGIC;
    if (file->bytes < n || memcmp(file->data, QB_SHARD_MAGIC, n)) {
        const char *other = qb_file_looks_like(file->data, file->bytes);
        return QB_FAIL(QB_ERR_FORMAT, "found %s, expected a token shard (.qbs)",
                       other ? other : "other bytes");
    }
    if (file->bytes < QB_SHARD_HEADER_BYTES)
        return QB_FAIL(QB_ERR_FORMAT, "size: found %zu bytes, expected at least %d", file->bytes,
                       QB_SHARD_HEADER_BYTES);
    memcpy(&s->header, file->data, sizeof s->header);
    QB_TRY(check_vocabulary(&s->header));
    QB_TRY(check_sizes(&s->header, file->bytes));
    s->doc_end = (const uint64_t *)(file->data + QB_SHARD_HEADER_BYTES);
    s->tokens = file->data + s->header.tokens_offset;
    return check_documents(s);
}

qb_status qb_shard_parse(const qb_file *file, qb_shard *out)
{
    qb_shard s = {.file = *file};
    qb_status status = parse(file, &s);
    if (status != QB_OK) return qb_error_prefix(status, file->path);
    *out = s;
    return QB_OK;
}

qb_status qb_shard_open(const char *path, qb_shard *out)
{
    qb_file file;
    QB_TRY(qb_file_open(path, &file));
    qb_status status = qb_shard_parse(&file, out);
    if (status != QB_OK) qb_file_close(&file);
    return status;
}

qb_status qb_shard_recognise(const char *path, bool *out)
{
    return qb_file_begins_with(path, QB_SHARD_MAGIC, sizeof QB_SHARD_MAGIC, out);
}

void qb_shard_close(qb_shard *s)
{
    qb_file_close(&s->file);
    *s = (qb_shard){0};
}

qb_status qb_shard_read(const qb_shard *s, uint64_t first, size_t n, int32_t *dst)
{
    uint32_t largest = 0;
    if (s->header.token_bytes == 2) {
        const uint16_t *src = (const uint16_t *)s->tokens + first;
        for (size_t i = 0; i < n; i++) {
            largest = src[i] > largest ? src[i] : largest;
            dst[i] = src[i];
        }
    } else {
        const uint32_t *src = (const uint32_t *)s->tokens + first;
        for (size_t i = 0; i < n; i++) {
            largest = src[i] > largest ? src[i] : largest;
            dst[i] = (int32_t)src[i];
        }
    }
    if (largest < s->header.vocab) return QB_OK;
    return QB_FAIL(QB_ERR_FORMAT, "%s: found token %u, expected at most %u (qbench verify)",
                   s->file.path, largest, s->header.vocab - 1);
}

/* All bytes but those of the digest itself. */
static qb_status digest_file(const qb_file *file, char hex[65])
{
    qb_sha256 *hash;
    QB_TRY(qb_sha256_create(&hash));
    qb_sha256_update(hash, file->data, offsetof(qb_shard_header, digest));
    qb_sha256_update(hash, file->data + QB_SHARD_HEADER_BYTES, file->bytes - QB_SHARD_HEADER_BYTES);
    qb_sha256_finish(hash, hex);
    return QB_OK;
}

qb_status qb_shard_verify(const qb_shard *s)
{
    char hex[65];
    QB_TRY(digest_file(&s->file, hex));
    if (memcmp(hex, s->header.digest, 64))
        return QB_FAIL(QB_ERR_FORMAT, "%s: digest: found %s, expected %.64s", s->file.path, hex,
                       s->header.digest);
    int32_t buffer[4096];
    for (uint64_t at = 0; at < s->header.n_tokens; at += QB_COUNT(buffer)) {
        uint64_t left = s->header.n_tokens - at;
        QB_TRY(qb_shard_read(s, at, left < QB_COUNT(buffer) ? left : QB_COUNT(buffer), buffer));
    }
    return QB_OK;
}

/* ---- writing ---- */

static qb_status put(qb_writer *w, qb_sha256 *hash, const void *data, size_t bytes)
{
    qb_sha256_update(hash, data, bytes);
    return qb_writer_write(w, data, bytes);
}

static qb_status put_tokens(qb_writer *w, qb_sha256 *hash, const qb_shard_contents *c)
{
    if (c->vocab > 65536) return put(w, hash, c->tokens, 4 * c->n_tokens);
    uint16_t *narrow;
    QB_TRY(QB_NEW(&narrow, WRITE_TOKENS, "tokens to write"));
    qb_status status = QB_OK;
    for (size_t at = 0; at < c->n_tokens && status == QB_OK; at += WRITE_TOKENS) {
        size_t n = c->n_tokens - at < WRITE_TOKENS ? c->n_tokens - at : WRITE_TOKENS;
        for (size_t i = 0; i < n; i++) narrow[i] = (uint16_t)c->tokens[at + i];
        status = put(w, hash, narrow, 2 * n);
    }
    qb_free(narrow);
    return status;
}

static qb_status put_body(qb_writer *w, qb_sha256 *hash, const qb_shard_contents *c,
                          const qb_shard_header *h)
{
    static const char zeros[QB_SHARD_ALIGN_BYTES];
    QB_TRY(put(w, hash, c->doc_end, 8 * c->n_docs));
    QB_TRY(put(w, hash, zeros, h->tokens_offset - QB_SHARD_HEADER_BYTES - 8 * c->n_docs));
    return put_tokens(w, hash, c);
}

static qb_status put_all(qb_writer *w, const qb_shard_contents *c, qb_shard_header *h,
                         char digest[65])
{
    qb_sha256 *hash;
    QB_TRY(qb_sha256_create(&hash));
    qb_sha256_update(hash, h, offsetof(qb_shard_header, digest));
    qb_status status = qb_writer_write(w, h, sizeof *h);
    if (status == QB_OK) status = put_body(w, hash, c, h);
    qb_sha256_finish(hash, digest);
    memcpy(h->digest, digest, 64);
    if (status == QB_OK) status = qb_writer_write_at(w, 0, h, sizeof *h);
    return status;
}

qb_status qb_shard_write(const char *path, const qb_shard_contents *c, char *digest)
{
    qb_shard_header h = {.magic = QB_SHARD_MAGIC,
                         .version = QB_SHARD_VERSION,
                         .token_bytes = c->vocab <= 65536 ? 2 : 4,
                         .vocab = (uint32_t)c->vocab,
                         .eos = c->eos,
                         .n_docs = c->n_docs,
                         .n_tokens = c->n_tokens,
                         .text_bytes = c->text_bytes,
                         .tokens_offset = tokens_offset(c->n_docs)};
    char hex[65];
    memcpy(h.tokenizer_sha256, c->tokenizer_sha256, 64);
    memcpy(h.text_sha256, c->text_sha256, 64);
    qb_writer *w;
    QB_TRY(qb_writer_open(path, &w));
    qb_status status = put_all(w, c, &h, hex);
    if (status == QB_OK) {
        status = qb_writer_commit(w);
    } else {
        qb_writer_abandon(w);
    }
    if (status == QB_OK && digest) memcpy(digest, hex, sizeof hex);
    return status;
}
