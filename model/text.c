/* model/text.c - texts: reading, decompressing, cutting into documents, tokenizing as a whole. */
#include "model/text.h"
#include "model/text_internal.h"

#include "core/file.h"
#include "core/json.h"
#include "core/memory.h"

#include <stdio.h>
#include <string.h>

enum { MAX_LINE_BYTES = 64 << 20 }; /* of JSON lines */
enum { LOOK_BYTES = 1 << 16 };
static const size_t DEFAULT_MAX_BYTES = (size_t)1 << 30;
static const char SEPARATOR[] = "<|endoftext|>";

/* generated from share/text/ by cmake/embed.cmake */
extern const unsigned char qb__text_eval[], qb__text_calibration[];
extern const unsigned long qb__text_eval_bytes, qb__text_calibration_bytes;

qb_status qb__growing_room(qb__growing *g, size_t bytes)
{
    if (g->capacity - g->n >= bytes) return QB_OK;
    size_t capacity = g->capacity * 2 < g->n + bytes ? g->n + bytes : g->capacity * 2;
    QB_TRY(qb_realloc((void **)&g->data, g->n, capacity, 1, "text"));
    g->capacity = capacity;
    return QB_OK;
}

qb_status qb__growing_check(const qb__growing *g)
{
    if (g->n <= g->max) return QB_OK;
    return QB_FAIL(QB_ERR_FORMAT, "text: found more than %zu bytes, expected fewer", g->max);
}

static qb_status append(qb__growing *g, const void *data, size_t bytes)
{
    if (bytes > g->max || g->n > g->max - bytes)
        return QB_FAIL(QB_ERR_FORMAT, "text: found %zu bytes, expected at most %zu", g->n + bytes,
                       g->max);
    QB_TRY(qb__growing_room(g, bytes));
    if (bytes) memcpy(g->data + g->n, data, bytes);
    g->n += bytes;
    return QB_OK;
}

static qb_status append_stdin(qb__growing *g)
{
    for (;;) {
        QB_TRY(qb__growing_room(g, 1 << 16));
        size_t n;
        QB_TRY(qb_stdin_read(g->data + g->n, g->capacity - g->n, &n));
        if (n == 0) return QB_OK;
        g->n += n;
        QB_TRY(qb__growing_check(g));
    }
}

/* data as read, decompressed where it is compressed, into raw. */
static qb_status decompress(const uint8_t *data, size_t bytes, qb__growing *raw)
{
    if (bytes >= 2 && !memcmp(data, "\x1f\x8b", 2)) return qb__gunzip(data, bytes, raw);
    if (bytes >= 6 && !memcmp(data,
                              "\xfd"
                              "7zXZ\0",
                              6))
        return qb__unxz(data, bytes, raw);
    const char *other = qb_file_looks_like(data, bytes);
    if (other) return QB_FAIL(QB_ERR_FORMAT, "found %s, expected text", other);
    return append(raw, data, bytes);
}

/* A model or an image has a NUL early, a text has none: millions of tokens of nothing are refused.
 */
static qb_status check_is_text(const qb__growing *raw)
{
    const char *nul = memchr(raw->data, 0, raw->n < LOOK_BYTES ? raw->n : LOOK_BYTES);
    if (!nul) return QB_OK;
    return QB_FAIL(QB_ERR_FORMAT, "no text: found a NUL at byte %zu, expected UTF-8",
                   (size_t)(nul - raw->data));
}

/* Ends a document at text->n_bytes; empty ones do not count. */
static qb_status end_document(qb_text *text, size_t *capacity)
{
    size_t start = text->n_docs ? text->doc_end[text->n_docs - 1] : 0;
    if (text->n_bytes == start) return QB_OK;
    if (text->n_docs == *capacity) {
        size_t bigger = *capacity ? 2 * *capacity : 64;
        QB_TRY(qb_realloc((void **)&text->doc_end, text->n_docs, bigger, sizeof *text->doc_end,
                          "documents"));
        *capacity = bigger;
    }
    text->doc_end[text->n_docs++] = text->n_bytes;
    return QB_OK;
}

static bool is_separator(const char *line, size_t n)
{
    if (n && line[n - 1] == '\n') n--;
    if (n && line[n - 1] == '\r') n--;
    return n == sizeof SEPARATOR - 1 && !memcmp(line, SEPARATOR, n);
}

static qb_status put_plain_line(qb_text *text, const char *line, size_t n, size_t *capacity)
{
    if (is_separator(line, n)) return end_document(text, capacity);
    memcpy(text->bytes + text->n_bytes, line, n);
    text->n_bytes += n;
    return QB_OK;
}

/* A JSON string is never shorter than what it stands for, so the text fits. */
static qb_status put_json_line(qb_text *text, const char *line, size_t n, size_t *capacity)
{
    size_t blank = 0;
    while (blank < n && strchr(" \t\r\n", line[blank]) && line[blank]) blank++;
    if (blank == n) return QB_OK;
    json_t *object;
    QB_TRY(qb_json_parse(line, n, MAX_LINE_BYTES, "JSON line", &object));
    const json_t *value = json_object_get(object, "text");
    size_t bytes = json_string_length(value);
    bool found = json_is_string(value);
    if (found) memcpy(text->bytes + text->n_bytes, json_string_value(value), bytes);
    json_decref(object);
    if (!found) return QB_FAIL(QB_ERR_FORMAT, "found no key \"text\" with a string, expected one");
    text->n_bytes += bytes;
    return end_document(text, capacity);
}

static qb_status cut_documents(qb_text *text, bool is_jsonl)
{
    QB_TRY(QB_NEW(&text->bytes, text->raw_bytes, "text"));
    size_t capacity = 0, line_number = 0;
    for (size_t at = 0, next; at < text->raw_bytes; at = next) {
        const char *line = text->raw + at;
        const char *end = memchr(line, '\n', text->raw_bytes - at);
        next = end ? (size_t)(end - text->raw) + 1 : text->raw_bytes;
        line_number++;
        qb_status status =
            (is_jsonl ? put_json_line : put_plain_line)(text, line, next - at, &capacity);
        if (status != QB_OK) {
            char number[40];
            snprintf(number, sizeof number, "line %zu", line_number);
            return qb_error_prefix(status, number);
        }
    }
    QB_TRY(end_document(text, &capacity));
    return text->n_docs ? QB_OK : QB_FAIL(QB_ERR_FORMAT, "found no text in it, expected some");
}

static bool ends_with(const char *name, size_t n, const char *end)
{
    return n >= strlen(end) && !memcmp(name + n - strlen(end), end, strlen(end));
}

static bool named_jsonl(const char *name)
{
    size_t n = strlen(name);
    if (ends_with(name, n, ".gz") || ends_with(name, n, ".xz")) n -= 3;
    return ends_with(name, n, ".jsonl");
}

/* Takes raw->data over, also on failure. */
static qb_status make_text(const char *name, qb__growing *raw, bool is_jsonl, qb_text *out)
{
    qb_text text = {.raw = raw->data, .raw_bytes = raw->n};
    raw->data = NULL;
    qb_status status = qb_strdup(&text.name, name);
    if (status == QB_OK) status = cut_documents(&text, is_jsonl);
    if (status == QB_OK) status = qb_sha256_hex(text.raw, text.raw_bytes, text.sha256);
    if (status != QB_OK)
        qb_text_deinit(&text);
    else
        *out = text;
    return status;
}

static qb_status open_data(const char *name, const uint8_t *data, size_t bytes, size_t max_bytes,
                           bool is_jsonl, qb_text *out)
{
    qb__growing raw = {.max = max_bytes ? max_bytes : DEFAULT_MAX_BYTES};
    qb_status status = decompress(data, bytes, &raw);
    if (status == QB_OK && raw.n) status = check_is_text(&raw);
    if (status == QB_OK) status = make_text(name, &raw, is_jsonl, out);
    qb_free(raw.data);
    return status;
}

static qb_status open_stdin(size_t max_bytes, qb_text *out)
{
    static const char name[] = "standard input";
    qb__growing input = {.max = max_bytes ? max_bytes : DEFAULT_MAX_BYTES};
    qb_status status = append_stdin(&input);
    if (status == QB_OK)
        status = open_data(name, (const uint8_t *)(input.n ? input.data : ""), input.n, max_bytes,
                           false, out);
    qb_free(input.data);
    return status == QB_OK ? QB_OK : qb_error_prefix(status, name);
}

static const char *file_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

qb_status qb_text_open(const char *path, size_t max_bytes, qb_text *out)
{
    if (!strcmp(path, "-")) return open_stdin(max_bytes, out);
    qb_file file;
    QB_TRY(qb_file_open(path, &file));
    qb_status status =
        open_data(file_name(path), file.data, file.bytes, max_bytes, named_jsonl(path), out);
    qb_file_close(&file);
    return status == QB_OK ? QB_OK : qb_error_prefix(status, path);
}

qb_status qb_text_from_memory(const char *name, const char *data, size_t n_bytes, qb_text *out)
{
    return open_data(name, (const uint8_t *)data, n_bytes, 0, named_jsonl(name), out);
}

qb_status qb_text_builtin(qb_text *out)
{
    return qb_text_from_memory("built-in", (const char *)qb__text_eval, qb__text_eval_bytes, out);
}

qb_status qb_text_builtin_calibration(qb_text *out)
{
    return qb_text_from_memory("built-in calibration", (const char *)qb__text_calibration,
                               qb__text_calibration_bytes, out);
}

void qb_text_deinit(qb_text *text)
{
    qb_free(text->name);
    qb_free(text->bytes);
    qb_free(text->raw);
    qb_free(text->doc_end);
    *text = (qb_text){0};
}

const char *qb_text_document(const qb_text *text, size_t i, size_t *n_bytes)
{
    size_t start = i ? text->doc_end[i - 1] : 0;
    *n_bytes = text->doc_end[i] - start;
    return text->bytes + start;
}

size_t qb_text_document_from(const qb_text *text, size_t byte)
{
    size_t low = 0, high = text->n_docs;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if ((middle ? text->doc_end[middle - 1] : 0) < byte)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static qb_status encode_documents(const qb_text *text, int32_t eos, qb_encoder *encoder,
                                  qb_tokens *out)
{
    for (size_t i = 0; i < text->n_docs; i++) {
        size_t n;
        const char *document = qb_text_document(text, i, &n);
        if (i && eos >= 0) QB_TRY(qb_tokens_push(out, eos));
        QB_TRY(qb_encoder_encode(encoder, document, n, false, out));
    }
    return QB_OK;
}

qb_status qb_text_tokenize(const qb_text *text, const qb_tokenizer *tokenizer, qb_tokens *out)
{
    size_t first = out->n;
    qb_encoder *encoder;
    QB_TRY(qb_encoder_create(tokenizer, text->n_bytes, &encoder));
    qb_status status = encode_documents(text, qb_tokenizer_eos(tokenizer), encoder, out);
    qb_encoder_destroy(encoder);
    if (status != QB_OK) out->n = first;
    return status;
}

qb_status qb_text_tokenize_raw(const qb_text *text, const qb_tokenizer *tokenizer,
                               bool parse_special, qb_tokens *out)
{
    return qb_tokenizer_encode(tokenizer, text->raw, text->raw_bytes, parse_special, out);
}
