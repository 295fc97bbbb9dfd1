/* model/tokenizer_spm.c - SentencePiece BPE (Kudo and Richardson 2018): spaces become U+2581, pairs
 * of characters are merged, and what is no token falls back to its bytes. As llama.cpp reads it,
 * the pair that makes the token of the best score comes first; where tokenizer.json lists merges,
 * the pair of the lowest rank. Ties go from the left. */
#include "model/tokenizer_internal.h"

#include "core/dtype.h"

static const char SPACE[] = "\xe2\x96\x81"; /* U+2581 */

/* Smaller for a better score, in the order of floats. */
static uint32_t key_of_score(float score)
{
    uint32_t bits = qb_f32_bits(score + 0.0f); /* -0 and 0 are one score */
    return bits & 0x80000000u ? bits : ~bits & 0x7fffffffu;
}

static uint32_t pair_score(const qb_tokenizer *t, const char *word, const qb__symbol *left,
                           const qb__symbol *right, uint32_t end_at, int32_t *result)
{
    (void)right;
    int32_t id = qb__tokenizer_find(t, word + left->at, end_at - left->at);
    if (id < 0) return QB__NO_KEY;
    *result = id;
    return key_of_score(t->scores[id]);
}

static qb_status push_bytes(qb_encoder *e, const char *bytes, size_t n_bytes)
{
    for (size_t i = 0; i < n_bytes; i++) {
        int32_t id = e->t->byte_id[(uint8_t)bytes[i]];
        QB_TRY(qb_tokens_push(e->out, id >= 0 ? id : e->t->unk));
    }
    return QB_OK;
}

static qb_status encode_word(qb_encoder *e, const char *word, size_t n_bytes)
{
    size_t slot, first_out = e->out->n, n = 0;
    bool found;
    QB_TRY(qb__cache_get(e, word, n_bytes, &slot, &found));
    if (found) return QB_OK;
    QB_TRY(qb__encoder_reserve_symbols(e, n_bytes));
    for (size_t at = 0; at < n_bytes; n++) {
        size_t length = qb__utf8_length(word + at, n_bytes - at);
        if (!length) length = 1;
        e->symbols[n].at = (uint32_t)at;
        e->symbols[n].id = qb__tokenizer_find(e->t, word + at, length);
        at += length;
    }
    qb__merge_symbols(e, word, n_bytes, n, e->t->scores ? pair_score : qb__pair_rank);
    for (size_t i = 0; i < n; i = e->symbols[i].next) {
        const qb__symbol *s = &e->symbols[i];
        size_t end = s->next < n ? e->symbols[s->next].at : n_bytes;
        if (s->id >= 0)
            QB_TRY(qb_tokens_push(e->out, s->id));
        else
            QB_TRY(push_bytes(e, word + s->at, end - s->at));
    }
    qb__cache_put(e, word, n_bytes, slot, first_out);
    return QB_OK;
}

static bool wants_prefix(const qb_encoder *e, const char *text, size_t n_bytes)
{
    const qb_tokenizer *t = e->t;
    bool space = *text == ' ' || (n_bytes >= 3 && !memcmp(text, SPACE, 3));
    return t->add_space_prefix && (e->at_start || !t->prefix_first_only) &&
           !(space && t->prefix_unless_space);
}

/* The segment with its spaces escaped, in e->work. */
static qb_status escape(qb_encoder *e, const char *text, size_t n_bytes, size_t *n_escaped)
{
    bool prefix = wants_prefix(e, text, n_bytes);
    size_t n_spaces = prefix, n = 0;
    for (size_t i = 0; i < n_bytes; i++) n_spaces += text[i] == ' ';
    QB_TRY(qb__reserve_chars(&e->work, &e->work_capacity, n_bytes + 2 * n_spaces + 1));
    if (prefix) memcpy(e->work, SPACE, 3), n = 3;
    for (size_t i = 0; i < n_bytes; i++) {
        if (text[i] == ' ')
            memcpy(e->work + n, SPACE, 3), n += 3;
        else
            e->work[n++] = text[i];
    }
    *n_escaped = n;
    return QB_OK;
}

/* The end of the word at s: where no token has a space after something else, no merge can cross
 * such a place, so words can be merged one by one. */
static size_t word_bytes(const char *s, size_t n)
{
    size_t i = 0;
    while (n - i >= 3 && !memcmp(s + i, SPACE, 3)) i += 3;
    const char *space = memmem(s + i, n - i, SPACE, 3);
    return space ? (size_t)(space - s) : n;
}

qb_status qb__spm_encode_segment(qb_encoder *e, const char *text, size_t n_bytes)
{
    size_t n;
    QB_TRY(escape(e, text, n_bytes, &n));
    for (size_t at = 0, length; at < n; at += length) {
        length = e->t->splits_at_spaces ? word_bytes(e->work + at, n - at) : n - at;
        QB_TRY(encode_word(e, e->work + at, length));
    }
    return QB_OK;
}
