/* cli/cmd_tokenize.c - qbench tokenize: the bytes of a file to ids, one JSON array, and back. */
#include "cli/prepare.h"
#include "core/file.h"
#include "core/json.h"
#include "core/memory.h"
#include "model/model.h"
#include "model/tokenizer.h"

#include <stdio.h>
#include <string.h>

/* All of a file, or of standard input ("-"). */
typedef struct input {
    qb_file file;
    char *read; /* owned */
    const char *name, *text;
    size_t n_bytes;
} input;

static void input_deinit(input *in)
{
    qb_file_close(&in->file);
    qb_free(in->read);
}

static qb_status read_standard_input(input *in)
{
    size_t capacity = 0;
    for (;;) {
        if (in->n_bytes > QB_TOKENIZER_MAX_TEXT)
            return QB_FAIL(QB_ERR_FORMAT,
                           "standard input: found more than %zu bytes, expected fewer",
                           QB_TOKENIZER_MAX_TEXT);
        if (in->n_bytes == capacity) {
            size_t grown = capacity ? 2 * capacity : 1 << 16;
            QB_TRY(qb_realloc((void **)&in->read, capacity, grown, 1, "standard input"));
            capacity = grown;
        }
        size_t n;
        qb_status status = qb_stdin_read(in->read + in->n_bytes, capacity - in->n_bytes, &n);
        if (status != QB_OK) return qb_error_prefix(status, in->name);
        if (n == 0) break;
        in->n_bytes += n;
    }
    in->text = in->read;
    return QB_OK;
}

static qb_status input_open(const char *path, input *in)
{
    in->name = strcmp(path, "-") ? path : "standard input";
    if (!strcmp(path, "-")) return read_standard_input(in);
    QB_TRY(qb_file_open(path, &in->file));
    in->text = in->file.bytes ? (const char *)in->file.data : "";
    in->n_bytes = in->file.bytes;
    return QB_OK;
}

static qb_status emit_ids(const qb_tokens *ids)
{
    enum { MOST_BYTES = 13 }; /* of one id: eleven characters, a comma, a space */
    char *text;
    QB_TRY(qb_alloc((void **)&text, ids->n + 1, MOST_BYTES, "ids as JSON"));
    size_t at = 0;
    text[at++] = '[';
    for (size_t i = 0; i < ids->n; i++)
        at += (size_t)snprintf(text + at, MOST_BYTES, "%s%d", i ? ", " : "", ids->ids[i]);
    text[at++] = ']';
    text[at++] = '\n';
    qb_status status = qb_cli_emit("-", text, at);
    qb_free(text);
    return status;
}

/* Special tokens as the program that trained the tokenizer would see them: the first token that
 * the model expects, and those written in the text. */
static qb_status encode(const qb_tokenizer *t, const input *in, bool special)
{
    qb_tokens ids = {0};
    qb_status status = QB_OK;
    if (special && qb_tokenizer_add_bos(t)) status = qb_tokens_push(&ids, qb_tokenizer_bos(t));
    if (status == QB_OK) status = qb_tokenizer_encode(t, in->text, in->n_bytes, special, &ids);
    if (status == QB_OK) status = emit_ids(&ids);
    qb_tokens_deinit(&ids);
    return status;
}

static qb_status read_ids(const qb_tokenizer *t, const json_t *list, qb_tokens *ids)
{
    if (!json_is_array(list))
        return QB_FAIL(QB_ERR_FORMAT, "found another kind of JSON, expected an array");
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *v = json_array_get(list, i);
        json_int_t id = json_is_integer(v) ? json_integer_value(v) : -1;
        if (id < 0 || (uint64_t)id >= qb_tokenizer_vocab(t))
            return QB_FAIL(QB_ERR_FORMAT, "number %zu: found %s%lld, expected 0 to %zu", i,
                           json_is_integer(v) ? "" : "no integer, ", (long long)id,
                           qb_tokenizer_vocab(t) - 1);
        QB_TRY(qb_tokens_push(ids, (int32_t)id));
    }
    return QB_OK;
}

static qb_status decode(const qb_tokenizer *t, const input *in, bool special)
{
    json_t *list;
    QB_TRY(qb_json_parse(in->n_bytes ? in->text : "", in->n_bytes, QB_TOKENIZER_MAX_TEXT, in->name,
                         &list));
    qb_tokens ids = {0};
    qb_status status = read_ids(t, list, &ids);
    json_decref(list);
    if (status != QB_OK) qb_error_prefix(status, in->name);
    /* The first token that encode puts there is not part of the text. */
    size_t skip = special && qb_tokenizer_add_bos(t) && ids.n && ids.ids[0] == qb_tokenizer_bos(t);
    char *text = NULL;
    size_t n_bytes;
    if (status == QB_OK)
        status =
            qb_tokenizer_decode(t, ids.n ? ids.ids + skip : NULL, ids.n - skip, &text, &n_bytes);
    if (status == QB_OK) status = qb_cli_emit("-", text, n_bytes);
    qb_free(text);
    qb_tokens_deinit(&ids);
    return status;
}

qb_status qb_cmd_tokenize(const qb_cli *cli)
{
    bool special = !qb_cli_flag(cli, "no-special");
    qb_cli_tokenizer s = {0};
    input in = {0};
    qb_status status = qb_cli_tokenizer_open(qb_cli_arg(cli, 0), &s);
    if (status == QB_OK)
        status = input_open(qb_cli_n_args(cli) > 1 ? qb_cli_arg(cli, 1) : "-", &in);
    if (status == QB_OK)
        status = (qb_cli_flag(cli, "decode") ? decode : encode)(s.tokenizer, &in, special);
    input_deinit(&in);
    qb_cli_tokenizer_close(&s);
    return status;
}
