/* model/tokenizer.c - the tokenizer object: creation from a vocabulary, lookup, decode. */
#include "model/tokenizer_internal.h"

#include "core/memory.h"

void qb_tokens_deinit(qb_tokens *tokens)
{
    qb_free(tokens->ids);
    *tokens = (qb_tokens){0};
}

qb_status qb__tokens_reserve(qb_tokens *tokens, size_t extra)
{
    size_t need;
    if (!qb_add_size(tokens->n, extra, &need))
        return QB_FAIL(QB_ERR_MEMORY, "token ids: more than memory can hold");
    if (need <= tokens->capacity) return QB_OK;
    size_t capacity = tokens->capacity + tokens->capacity / 2;
    if (capacity < need) capacity = need;
    if (capacity < 16) capacity = 16;
    QB_TRY(
        qb_realloc((void **)&tokens->ids, tokens->n, capacity, sizeof *tokens->ids, "token ids"));
    tokens->capacity = capacity;
    return QB_OK;
}

qb_status qb_tokens_push(qb_tokens *tokens, int32_t id)
{
    if (tokens->n == tokens->capacity) QB_TRY(qb__tokens_reserve(tokens, 1));
    tokens->ids[tokens->n++] = id;
    return QB_OK;
}

uint32_t qb__byte_to_code_point(uint8_t byte)
{
    if ((byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174) return byte;
    if (byte <= 32) return 256u + byte;
    return byte <= 160 ? 256u + 33 + (byte - 127u) : 256u + 67; /* 173 is the last of the 68 */
}

int qb__code_point_to_byte(uint32_t code_point)
{
    if (code_point < 256)
        return qb__byte_to_code_point((uint8_t)code_point) == code_point ? (int)code_point : -1;
    uint32_t k = code_point - 256;
    return k <= 32 ? (int)k : k <= 66 ? (int)(k - 33 + 127) : k == 67 ? 173 : -1;
}

size_t qb__utf8_length(const char *s, size_t n_bytes)
{
    const uint8_t *u = (const uint8_t *)s;
    if (n_bytes >= 1 && u[0] < 0x80) return 1;
    if (n_bytes < 2 || u[0] < 0xc2 || u[0] > 0xf4) return 0;
    uint8_t low = u[0] == 0xe0 ? 0xa0 : u[0] == 0xf0 ? 0x90 : 0x80;  /* no overlong forms */
    uint8_t high = u[0] == 0xed ? 0x9f : u[0] == 0xf4 ? 0x8f : 0xbf; /* surrogates, > U+10FFFF */
    if (u[1] < low || u[1] > high) return 0;
    if (u[0] < 0xe0) return 2;
    if (n_bytes < 3 || (u[2] & 0xc0) != 0x80) return 0;
    if (u[0] < 0xf0) return 3;
    return n_bytes >= 4 && (u[3] & 0xc0) == 0x80 ? 4 : 0;
}

static qb_status take_texts(qb_tokenizer *t, const qb_tokenizer_spec *spec)
{
    size_t total = 0;
    for (size_t id = 0; id < spec->vocab; id++)
        if (!qb_add_size(total, spec->text_bytes[id], &total))
            return QB_FAIL(
                QB_ERR_FORMAT,
                "tokenizer: found token texts larger than memory, expected smaller ones");
    QB_TRY(QB_NEW(&t->texts, total, "token texts"));
    QB_TRY(QB_NEW(&t->text_at, spec->vocab + 1, "token texts"));
    QB_TRY(QB_NEW_ZERO(&t->types, spec->vocab, "token types"));
    t->text_at[0] = 0;
    for (size_t id = 0; id < spec->vocab; id++) {
        memcpy(t->texts + t->text_at[id], spec->texts[id], spec->text_bytes[id]);
        t->text_at[id + 1] = t->text_at[id] + spec->text_bytes[id];
    }
    if (spec->types) memcpy(t->types, spec->types, spec->vocab);
    return QB_OK;
}

static qb_status take_merges(qb_tokenizer *t, const qb_tokenizer_spec *spec)
{
    QB_TRY(QB_NEW(&t->merges, spec->n_merges, "merges"));
    t->n_merges = spec->n_merges;
    for (size_t i = 0; i < spec->n_merges; i++) {
        const char *text = spec->merges[i];
        size_t n = spec->merge_bytes[i];
        const char *space = memchr(text, ' ', n);
        if (!space || memchr(space + 1, ' ', n - (size_t)(space + 1 - text)))
            return QB_FAIL(QB_ERR_FORMAT,
                           "tokenizer: merge %zu: found another text, expected two and one space",
                           i);
        size_t left_bytes = (size_t)(space - text);
        int32_t left = qb__tokenizer_find(t, text, left_bytes);
        int32_t right = qb__tokenizer_find(t, space + 1, n - left_bytes - 1);
        if (left < 0 || right < 0)
            return QB_FAIL(QB_ERR_FORMAT,
                           "tokenizer: merge %zu: found a %s side that is no token, expected one",
                           i, left < 0 ? "left" : "right");
        t->merges[i] = (qb__merge){(uint32_t)left, (uint32_t)right};
    }
    return QB_OK;
}

static qb_status fill(qb_tokenizer *t, const qb_tokenizer_spec *spec)
{
    if (spec->vocab < 1 || spec->vocab > QB__MAX_VOCAB)
        return QB_FAIL(QB_ERR_FORMAT, "tokenizer: found a vocabulary of %zu, expected 1 to %d",
                       spec->vocab, QB__MAX_VOCAB);
    t->kind = spec->kind;
    t->vocab = spec->vocab;
    t->bos = spec->bos;
    t->eos = spec->eos;
    t->unk = spec->unk;
    t->add_bos = spec->add_bos;
    t->add_space_prefix = spec->add_space_prefix;
    t->prefix_first_only = spec->prefix_first_only;
    t->prefix_unless_space = spec->prefix_unless_space;
    t->ignore_merges = spec->ignore_merges;
    t->nfc = spec->nfc;
    if (t->kind == QB_TOKENIZER_BPE) {
        t->pre = spec->pre ? qb__pre_find(spec->pre) : NULL;
        if (!t->pre)
            return QB_FAIL(QB_ERR_UNSUPPORTED,
                           "tokenizer: unknown pre-tokenizer: found \"%s\", expected %s",
                           spec->pre ? spec->pre : "", qb__pre_names());
    } else if (!spec->scores && !spec->merges) {
        return QB_FAIL(
            QB_ERR_FORMAT,
            "tokenizer: SentencePiece vocabulary: found neither scores nor merges, expected one");
    }
    QB_TRY(take_texts(t, spec));
    QB_TRY(qb__tokenizer_index_texts(t));
    if (!spec->scores) {
        QB_TRY(take_merges(t, spec));
    } else {
        QB_TRY(QB_NEW(&t->scores, t->vocab, "token scores"));
        memcpy(t->scores, spec->scores, t->vocab * sizeof *t->scores);
    }
    return qb__tokenizer_finish(t);
}

qb_status qb_tokenizer_create(const qb_tokenizer_spec *spec, qb_tokenizer **out)
{
    qb_tokenizer *t;
    QB_TRY(QB_NEW_ZERO(&t, 1, "tokenizer"));
    qb_status status = fill(t, spec);
    if (status != QB_OK)
        qb_tokenizer_destroy(t);
    else
        *out = t;
    return status;
}

void qb_tokenizer_destroy(qb_tokenizer *t)
{
    if (!t) return;
    pcre2_code_free(t->splitter);
    void *const blocks[] = {t->texts, t->text_at,  t->types,      t->scores,     t->merges,
                            t->bytes, t->bytes_at, t->text_slots, t->pair_slots, t->specials,
                            t};
    for (size_t i = 0; i < QB_COUNT(blocks); i++) qb_free(blocks[i]);
}

const char *qb_tokenizer_token_bytes(const qb_tokenizer *t, int32_t id, size_t *n_bytes)
{
    bool known = id >= 0 && (size_t)id < t->vocab;
    if (n_bytes) *n_bytes = known ? t->bytes_at[id + 1] - t->bytes_at[id] - 1 : 0;
    return known ? t->bytes + t->bytes_at[id] : "";
}

/* Where encode put a space before a segment (SentencePiece), decode takes it out. */
static bool drops_space(const qb_tokenizer *t, const int32_t *ids, size_t i)
{
    if (t->kind != QB_TOKENIZER_SPM || !t->add_space_prefix) return false;
    if (i == 0) return true;
    if (!t->scores) return false; /* as the decoder of tokenizer.json, Strip */
    int32_t before = ids[i - 1];
    return before >= 0 && (size_t)before < t->vocab && qb__token_is_special(t, (size_t)before) &&
           before != t->unk;
}

qb_status qb_tokenizer_decode(const qb_tokenizer *t, const int32_t *ids, size_t n, char **out,
                              size_t *n_bytes)
{
    size_t total = 1, at = 0;
    for (size_t i = 0; i < n; i++) {
        size_t bytes;
        qb_tokenizer_token_bytes(t, ids[i], &bytes);
        if (!qb_add_size(total, bytes, &total))
            return QB_FAIL(QB_ERR_MEMORY, "text of %zu tokens: larger than memory", n);
    }
    char *text;
    QB_TRY(QB_NEW(&text, total, "decoded text"));
    for (size_t i = 0; i < n; i++) {
        size_t bytes;
        const char *piece = qb_tokenizer_token_bytes(t, ids[i], &bytes);
        if (bytes && piece[0] == ' ' && drops_space(t, ids, i)) piece++, bytes--;
        memcpy(text + at, piece, bytes);
        at += bytes;
    }
    text[at] = 0;
    *out = text;
    *n_bytes = at;
    return QB_OK;
}

size_t qb_tokenizer_vocab(const qb_tokenizer *t)
{
    return t->vocab;
}

int32_t qb_tokenizer_bos(const qb_tokenizer *t)
{
    return t->bos;
}

int32_t qb_tokenizer_eos(const qb_tokenizer *t)
{
    return t->eos;
}

bool qb_tokenizer_add_bos(const qb_tokenizer *t)
{
    return t->add_bos;
}

const char *qb_tokenizer_pre(const qb_tokenizer *t)
{
    return t->pre ? t->pre->name : "sentencepiece";
}

const char *qb_tokenizer_sha256(const qb_tokenizer *t)
{
    return t->sha256;
}
