/* model/tokenizer_bpe.c - byte-level BPE (Radford et al. 2019): the pre-splitter cuts the text into
 * words, and in each word the pair of lowest rank is merged until none is left. */
#include "core/interrupt.h"
#include "core/memory.h"
#include "model/nfc.h"
#include "model/tokenizer_internal.h"

uint32_t qb__pair_rank(const qb_tokenizer *t, const char *word, const qb__symbol *left,
                       const qb__symbol *right, uint32_t end_at, int32_t *result)
{
    (void)word;
    (void)end_at;
    if (left->id < 0 || right->id < 0) return QB__NO_KEY;
    uint64_t pair = (uint64_t)left->id << 32 | (uint32_t)right->id;
    size_t slot = qb_hash_u64(pair) & t->pair_mask;
    for (; t->pair_slots[slot].pair != UINT64_MAX; slot = (slot + 1) & t->pair_mask)
        if (t->pair_slots[slot].pair == pair) {
            *result = t->pair_slots[slot].result;
            return t->pair_slots[slot].rank;
        }
    return QB__NO_KEY;
}

static qb_status merge_word(qb_encoder *e, const char *word, size_t n_bytes)
{
    QB_TRY(qb__encoder_reserve_symbols(e, n_bytes));
    for (size_t i = 0; i < n_bytes; i++) {
        e->symbols[i].at = (uint32_t)i;
        e->symbols[i].id = e->t->byte_id[(uint8_t)word[i]];
    }
    qb__merge_symbols(e, word, n_bytes, n_bytes, qb__pair_rank);
    for (size_t i = 0; i < n_bytes; i = e->symbols[i].next)
        if (e->symbols[i].id >= 0) QB_TRY(qb_tokens_push(e->out, e->symbols[i].id));
    return QB_OK;
}

/* The token that is the whole word, -1 = none. */
static qb_status find_whole(qb_encoder *e, const char *word, size_t n_bytes, int32_t *id)
{
    *id = -1;
    if (n_bytes > e->t->max_text_bytes) return QB_OK;
    QB_TRY(qb__reserve_chars(&e->spelled, &e->spelled_capacity, 2 * n_bytes));
    size_t n = qb_words_spell(word, n_bytes, e->spelled);
    *id = qb__tokenizer_find(e->t, e->spelled, n);
    return QB_OK;
}

static qb_status encode_word(qb_encoder *e, const char *word, size_t n_bytes)
{
    if (n_bytes == 1 && e->t->byte_id[(uint8_t)*word] >= 0)
        return qb_tokens_push(e->out, e->t->byte_id[(uint8_t)*word]);
    size_t slot, first_out = e->out->n;
    bool found;
    QB_TRY(qb__cache_get(e, word, n_bytes, &slot, &found));
    if (found) return QB_OK;
    int32_t id = -1;
    if (e->t->ignore_merges) QB_TRY(find_whole(e, word, n_bytes, &id));
    if (id >= 0)
        QB_TRY(qb_tokens_push(e->out, id));
    else
        QB_TRY(merge_word(e, word, n_bytes));
    qb__cache_put(e, word, n_bytes, slot, first_out);
    return QB_OK;
}

static qb_status encode_words(qb_encoder *e, const char *text, size_t n_bytes)
{
    if (e->t->add_space_prefix && *text != ' ') {
        QB_TRY(qb__reserve_chars(&e->work, &e->work_capacity, n_bytes + 1));
        e->work[0] = ' ';
        memcpy(e->work + 1, text, n_bytes);
        text = e->work;
        n_bytes++;
    }
    qb_words_start(&e->words, text, n_bytes);
    for (;;) {
        const char *word;
        size_t word_bytes;
        QB_TRY(qb_interrupt_check());
        QB_TRY(qb_words_next(&e->words, &word, &word_bytes));
        if (!word_bytes) return QB_OK;
        QB_TRY(encode_word(e, word, word_bytes));
    }
}

qb_status qb__bpe_encode_segment(qb_encoder *e, const char *text, size_t n_bytes)
{
    if (!e->t->nfc || qb_nfc_is_plain(text, n_bytes)) return encode_words(e, text, n_bytes);
    char *composed;
    size_t composed_bytes;
    QB_TRY(qb_nfc(text, n_bytes, &composed, &composed_bytes));
    qb_status status = encode_words(e, composed, composed_bytes);
    qb_free(composed);
    return status;
}
