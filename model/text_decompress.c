/* model/text_decompress.c - gzip by zlib, xz by liblzma, into a buffer with a limit: a small file
 * that unpacks without end is refused when it passes the limit. */
#include "model/text_internal.h"

#include "core/memory.h"

#include <lzma.h>
#include <zlib.h>

enum { STEP_BYTES = 1 << 16, GZIP_FRAME = 16 };
static const uint64_t XZ_MEMORY = (uint64_t)256 << 20; /* xz -9 needs 65 MiB */

static void *alloc_block(size_t n, size_t size)
{
    void *block;
    return qb_alloc(&block, n, size, "decompression") == QB_OK ? block : NULL;
}

static voidpf alloc_for_zlib(voidpf context, uInt n, uInt size)
{
    (void)context;
    return alloc_block(n, size);
}

static void *alloc_for_lzma(void *context, size_t n, size_t size)
{
    (void)context;
    return alloc_block(n, size);
}

static void free_block(void *context, void *block)
{
    (void)context;
    qb_free(block);
}

/* One gzip member from *data on; both move on behind it. */
static qb_status inflate_member(z_stream *z, const uint8_t **data, size_t *left, qb__growing *out)
{
    int code = Z_OK;
    do {
        QB_TRY(qb__growing_room(out, STEP_BYTES));
        uInt given = *left > STEP_BYTES ? STEP_BYTES : (uInt)*left;
        z->next_in = (Bytef *)*data; /* not written to: zlib's field lacks the const */
        z->avail_in = given;
        z->next_out = (Bytef *)out->data + out->n;
        z->avail_out = STEP_BYTES;
        code = inflate(z, Z_NO_FLUSH);
        *data += given - z->avail_in;
        *left -= given - z->avail_in;
        out->n += STEP_BYTES - z->avail_out;
        QB_TRY(qb__growing_check(out));
        if (code == Z_MEM_ERROR) return QB_FAIL(QB_ERR_MEMORY, "gzip: no memory to unpack");
        if (code == Z_BUF_ERROR && !*left)
            return QB_FAIL(QB_ERR_FORMAT, "gzip: truncated: found the end, expected more");
        if (code != Z_OK && code != Z_STREAM_END && code != Z_BUF_ERROR)
            return QB_FAIL(QB_ERR_FORMAT, "gzip: found %s, expected whole data",
                           z->msg ? z->msg : "broken data");
    } while (code != Z_STREAM_END);
    return QB_OK;
}

static qb_status inflate_all(z_stream *z, const uint8_t *data, size_t left, qb__growing *out)
{
    for (;;) {
        QB_TRY(inflate_member(z, &data, &left, out));
        while (left && !*data) data++, left--; /* padding of tapes, as gzip allows it */
        if (!left) return QB_OK;
        if (left < 2 || data[0] != 0x1f || data[1] != 0x8b)
            return QB_FAIL(
                QB_ERR_FORMAT,
                "gzip: found %zu bytes that are no gzip member at the end, expected none", left);
        if (inflateReset(z) != Z_OK) return QB_FAIL(QB_ERR_MEMORY, "gzip: cannot start again");
    }
}

qb_status qb__gunzip(const uint8_t *data, size_t bytes, qb__growing *out)
{
    z_stream z = {.zalloc = alloc_for_zlib, .zfree = free_block};
    if (inflateInit2(&z, MAX_WBITS + GZIP_FRAME) != Z_OK)
        return QB_FAIL(QB_ERR_MEMORY, "gzip: no memory to unpack");
    qb_status status = inflate_all(&z, data, bytes, out);
    inflateEnd(&z);
    return status;
}

static const char *xz_text(lzma_ret code)
{
    switch (code) {
    case LZMA_BUF_ERROR:
        return "truncated";
    case LZMA_MEMLIMIT_ERROR:
        return "a dictionary beyond 256 MiB";
    case LZMA_OPTIONS_ERROR:
        return "unknown options";
    case LZMA_FORMAT_ERROR:
        return "bytes that are no xz stream";
    default:
        return "broken data";
    }
}

static qb_status run_xz(lzma_stream *z, qb__growing *out)
{
    lzma_ret code = LZMA_OK;
    while (code != LZMA_STREAM_END) {
        QB_TRY(qb__growing_room(out, STEP_BYTES));
        z->next_out = (uint8_t *)out->data + out->n;
        z->avail_out = STEP_BYTES;
        code = lzma_code(z, LZMA_FINISH); /* all input is there from the start */
        out->n += STEP_BYTES - z->avail_out;
        QB_TRY(qb__growing_check(out));
        if (code == LZMA_MEM_ERROR) return QB_FAIL(QB_ERR_MEMORY, "xz: no memory to unpack");
        if (code != LZMA_OK && code != LZMA_STREAM_END)
            return QB_FAIL(QB_ERR_FORMAT, "xz: found %s, expected whole data", xz_text(code));
    }
    return QB_OK;
}

qb_status qb__unxz(const uint8_t *data, size_t bytes, qb__growing *out)
{
    const lzma_allocator allocator = {alloc_for_lzma, free_block, NULL};
    lzma_stream z = LZMA_STREAM_INIT;
    z.allocator = &allocator;
    z.next_in = data;
    z.avail_in = bytes;
    if (lzma_stream_decoder(&z, XZ_MEMORY, LZMA_CONCATENATED) != LZMA_OK)
        return QB_FAIL(QB_ERR_MEMORY, "xz: no memory to unpack");
    qb_status status = run_xz(&z, out);
    lzma_end(&z);
    return status;
}
