/* model/tokenizer_bin.c - the form of a tokenizer inside model.bin. Little-endian:
 *
 *   "QBTK" | u8 version 1 | u8 kind | u8 flags | u8 n | pre-splitter name (n bytes)
 *   | i32 bos, eos, unk | u32 vocab | u32 n_merges
 *   | u8 type (vocab) | u16 text length (vocab) | texts | f32 score (vocab, SentencePiece by
 * scores) | u32 left, right (n_merges, byte-level BPE and SentencePiece by merges)
 *
 * flags: 1 add_bos, 2 add_space_prefix, 4 ignore_merges; of SentencePiece: 8 prefix_first_only,
 * 16 prefix_unless_space, 32 by merges instead of scores; of byte-level BPE: 64 nfc. The SHA-256 of
 * it names the tokenizer. */
#include "model/tokenizer_internal.h"

#include "core/dtype.h"
#include "core/memory.h"

static const char MAGIC[4] = {'Q', 'B', 'T', 'K'};
enum {
    VERSION = 1,
    ADD_BOS = 1,
    ADD_SPACE_PREFIX = 2,
    IGNORE_MERGES = 4,
    PREFIX_FIRST_ONLY = 8,
    PREFIX_UNLESS_SPACE = 16,
    BY_MERGES = 32,
    NFC = 64,
    BPE_FLAGS = 7 | NFC,
    SPM_FLAGS = 63,
};

static uint8_t *put(uint8_t *p, uint32_t value, size_t n_bytes)
{
    for (size_t i = 0; i < n_bytes; i++) *p++ = (uint8_t)(value >> 8 * i);
    return p;
}

static uint32_t get(const uint8_t *p, size_t n_bytes)
{
    uint32_t value = 0;
    for (size_t i = 0; i < n_bytes; i++) value |= (uint32_t)p[i] << 8 * i;
    return value;
}

static uint32_t flags_of(const qb_tokenizer *t)
{
    bool by_merges = t->kind == QB_TOKENIZER_SPM && !t->scores;
    return (t->add_bos ? ADD_BOS : 0u) | (t->add_space_prefix ? ADD_SPACE_PREFIX : 0u) |
           (t->ignore_merges ? IGNORE_MERGES : 0u) |
           (t->prefix_first_only ? PREFIX_FIRST_ONLY : 0u) |
           (t->prefix_unless_space ? PREFIX_UNLESS_SPACE : 0u) | (by_merges ? BY_MERGES : 0u) |
           (t->nfc ? NFC : 0u);
}

qb_status qb_tokenizer_serialize(const qb_tokenizer *t, uint8_t **out, size_t *bytes)
{
    const char *pre = t->pre ? t->pre->name : "";
    size_t n_pre = strlen(pre), text_bytes = t->text_at[t->vocab];
    size_t total = 8 + n_pre + 20 + 3 * t->vocab + text_bytes + 8 * t->n_merges +
                   (t->scores ? 4 * t->vocab : 0);
    uint8_t *data;
    QB_TRY(QB_NEW(&data, total, "tokenizer bytes"));
    uint8_t *p = data;
    memcpy(p, MAGIC, 4);
    p = put(p + 4, VERSION, 1);
    p = put(p, t->kind, 1);
    p = put(p, flags_of(t), 1);
    p = put(p, (uint32_t)n_pre, 1);
    memcpy(p, pre, n_pre);
    p += n_pre;
    const uint32_t numbers[] = {(uint32_t)t->bos, (uint32_t)t->eos, (uint32_t)t->unk,
                                (uint32_t)t->vocab, (uint32_t)t->n_merges};
    for (size_t i = 0; i < QB_COUNT(numbers); i++) p = put(p, numbers[i], 4);
    memcpy(p, t->types, t->vocab);
    p += t->vocab;
    for (size_t id = 0; id < t->vocab; id++)
        p = put(p, (uint32_t)(t->text_at[id + 1] - t->text_at[id]), 2);
    memcpy(p, t->texts, text_bytes);
    p += text_bytes;
    for (size_t id = 0; t->scores && id < t->vocab; id++) p = put(p, qb_f32_bits(t->scores[id]), 4);
    for (size_t i = 0; i < t->n_merges; i++)
        p = put(put(p, t->merges[i].left, 4), t->merges[i].right, 4);
    *out = data;
    *bytes = total;
    return QB_OK;
}

/* What is left of the input. */
typedef struct source {
    const uint8_t *p;
    size_t left;
} source;

static qb_status take(source *s, size_t n, size_t elem_bytes, const uint8_t **out, const char *what)
{
    size_t bytes;
    if (!qb_mul_size(n, elem_bytes, &bytes) || bytes > s->left)
        return QB_FAIL(QB_ERR_FORMAT,
                       "tokenizer: truncated in its %s: found %zu bytes left, expected %zu x %zu",
                       what, s->left, n, elem_bytes);
    *out = s->p;
    s->p += bytes;
    s->left -= bytes;
    return QB_OK;
}

static qb_status read_head(source *s, qb_tokenizer *t, bool *by_merges)
{
    const uint8_t *p = NULL, *name = NULL;
    QB_TRY(take(s, 8, 1, &p, "head"));
    if (memcmp(p, MAGIC, 4))
        return QB_FAIL(QB_ERR_FORMAT,
                       "tokenizer: wrong magic: found other bytes, expected its own");
    if (p[4] != VERSION)
        return QB_FAIL(QB_ERR_FORMAT, "tokenizer: found version %u, expected %d", p[4], VERSION);
    if (p[5] > QB_TOKENIZER_SPM || p[6] & ~(p[5] == QB_TOKENIZER_SPM ? SPM_FLAGS : BPE_FLAGS))
        return QB_FAIL(QB_ERR_FORMAT, "tokenizer: found kind %u and flags %u, expected known ones",
                       p[5], p[6]);
    t->kind = p[5] == QB_TOKENIZER_SPM ? QB_TOKENIZER_SPM : QB_TOKENIZER_BPE;
    t->add_bos = p[6] & ADD_BOS;
    t->add_space_prefix = p[6] & ADD_SPACE_PREFIX;
    t->ignore_merges = p[6] & IGNORE_MERGES;
    t->prefix_first_only = p[6] & PREFIX_FIRST_ONLY;
    t->prefix_unless_space = p[6] & PREFIX_UNLESS_SPACE;
    t->nfc = p[6] & NFC;
    *by_merges = p[6] & BY_MERGES;
    if (t->kind == QB_TOKENIZER_SPM && p[7])
        return QB_FAIL(QB_ERR_FORMAT,
                       "tokenizer: SentencePiece: found a pre-splitter, expected none");
    QB_TRY(take(s, p[7], 1, &name, "pre-splitter name"));
    char text[256] = "";
    memcpy(text, name, p[7]);
    t->pre = t->kind == QB_TOKENIZER_BPE ? qb__pre_find(text) : NULL;
    const char *name_written = t->pre ? t->pre->name : "";
    if ((t->kind == QB_TOKENIZER_BPE && !t->pre) || strlen(name_written) != p[7] ||
        memcmp(name_written, name, p[7]))
        return QB_FAIL(QB_ERR_UNSUPPORTED,
                       "tokenizer: unknown pre-tokenizer: found \"%s\", expected %s", text,
                       qb__pre_names());
    QB_TRY(take(s, 5, 4, &p, "numbers"));
    t->bos = (int32_t)get(p, 4);
    t->eos = (int32_t)get(p + 4, 4);
    t->unk = (int32_t)get(p + 8, 4);
    t->vocab = get(p + 12, 4);
    t->n_merges = get(p + 16, 4);
    if (t->vocab < 1 || t->vocab > QB__MAX_VOCAB)
        return QB_FAIL(QB_ERR_FORMAT, "tokenizer: found a vocabulary of %zu, expected 1 to %d",
                       t->vocab, QB__MAX_VOCAB);
    if (t->kind == QB_TOKENIZER_SPM && t->n_merges && !*by_merges)
        return QB_FAIL(QB_ERR_FORMAT,
                       "tokenizer: SentencePiece by scores: found %zu merges, expected none",
                       t->n_merges);
    return QB_OK;
}

static qb_status read_texts(source *s, qb_tokenizer *t)
{
    const uint8_t *types = NULL, *lengths = NULL, *texts = NULL;
    QB_TRY(take(s, t->vocab, 1, &types, "types"));
    QB_TRY(take(s, t->vocab, 2, &lengths, "lengths"));
    size_t total = 0;
    for (size_t id = 0; id < t->vocab; id++) total += get(lengths + 2 * id, 2);
    QB_TRY(take(s, total, 1, &texts, "texts"));
    QB_TRY(QB_NEW(&t->types, t->vocab, "token types"));
    QB_TRY(QB_NEW(&t->text_at, t->vocab + 1, "token texts"));
    QB_TRY(QB_NEW(&t->texts, total, "token texts"));
    memcpy(t->types, types, t->vocab);
    memcpy(t->texts, texts, total);
    t->text_at[0] = 0;
    for (size_t id = 0; id < t->vocab; id++)
        t->text_at[id + 1] = t->text_at[id] + get(lengths + 2 * id, 2);
    return QB_OK;
}

static qb_status read_all(source *s, qb_tokenizer *t)
{
    bool by_merges = false;
    QB_TRY(read_head(s, t, &by_merges));
    QB_TRY(read_texts(s, t));
    const uint8_t *p = NULL;
    if (t->kind == QB_TOKENIZER_SPM && !by_merges) {
        QB_TRY(take(s, t->vocab, 4, &p, "scores"));
        QB_TRY(QB_NEW(&t->scores, t->vocab, "token scores"));
        for (size_t id = 0; id < t->vocab; id++)
            t->scores[id] = qb_f32_from_bits(get(p + 4 * id, 4));
    }
    QB_TRY(take(s, t->n_merges, 8, &p, "merges"));
    QB_TRY(QB_NEW(&t->merges, t->n_merges, "merges"));
    for (size_t i = 0; i < t->n_merges; i++)
        t->merges[i] = (qb__merge){get(p + 8 * i, 4), get(p + 8 * i + 4, 4)};
    if (s->left)
        return QB_FAIL(QB_ERR_FORMAT, "tokenizer: found %zu bytes after its end, expected none",
                       s->left);
    return qb__tokenizer_finish(t);
}

qb_status qb_tokenizer_deserialize(const uint8_t *data, size_t bytes, qb_tokenizer **out)
{
    qb_tokenizer *t;
    QB_TRY(QB_NEW_ZERO(&t, 1, "tokenizer"));
    source s = {data, bytes};
    qb_status status = read_all(&s, t);
    if (status != QB_OK)
        qb_tokenizer_destroy(t);
    else
        *out = t;
    return status;
}
