/* train/data/word_counts.c - open addressing; a word's bytes lie in one growing block. */
#include "train/data/word_counts.h"

#include "core/hash.h"
#include "core/memory.h"

enum { FIRST_SLOTS = 1 << 12 };

void qb_word_counts_deinit(qb_word_counts *c)
{
    qb_free(c->words);
    qb_free(c->slots);
    qb_free(c->bytes);
    *c = (qb_word_counts){0};
}

static qb_status grow_slots(qb_word_counts *c)
{
    size_t n_slots = c->n_slots ? 2 * c->n_slots : FIRST_SLOTS;
    uint32_t *slots;
    QB_TRY(QB_NEW_ZERO(&slots, n_slots, "word counts"));
    for (size_t i = 0; i < c->n; i++) {
        size_t slot = c->words[i].hash & (n_slots - 1);
        while (slots[slot]) slot = (slot + 1) & (n_slots - 1);
        slots[slot] = (uint32_t)i + 1;
    }
    qb_free(c->slots);
    c->slots = slots;
    c->n_slots = n_slots;
    return QB_OK;
}

/* Room for one more word of n_bytes. */
static qb_status reserve(qb_word_counts *c, size_t n_bytes)
{
    if (c->n >= INT32_MAX)
        return QB_FAIL(QB_ERR_MEMORY, "word counts: more than %d different words", INT32_MAX);
    if (2 * (c->n + 1) > c->n_slots) QB_TRY(grow_slots(c));
    if (c->n == c->capacity) {
        size_t capacity = c->capacity ? 2 * c->capacity : FIRST_SLOTS / 2;
        QB_TRY(qb_realloc((void **)&c->words, c->n, capacity, sizeof *c->words, "word counts"));
        c->capacity = capacity;
    }
    if (c->bytes_capacity - c->n_bytes < n_bytes) {
        size_t capacity = 2 * c->bytes_capacity + n_bytes + (1 << 14);
        QB_TRY(qb_realloc((void **)&c->bytes, c->n_bytes, capacity, 1, "word counts"));
        c->bytes_capacity = capacity;
    }
    return QB_OK;
}

static qb_status add_hashed(qb_word_counts *c, const char *word, size_t n_bytes, uint64_t hash,
                            uint64_t count)
{
    size_t mask = c->n_slots - 1, slot = hash & mask;
    for (; c->n_slots && c->slots[slot]; slot = (slot + 1) & mask) {
        qb_word_count *w = &c->words[c->slots[slot] - 1];
        if (w->hash == hash && w->n_bytes == n_bytes && !memcmp(c->bytes + w->at, word, n_bytes)) {
            w->count += count;
            return QB_OK;
        }
    }
    size_t n_slots = c->n_slots;
    QB_TRY(reserve(c, n_bytes));
    if (c->n_slots != n_slots) {
        mask = c->n_slots - 1;
        for (slot = hash & mask; c->slots[slot];) slot = (slot + 1) & mask;
    }
    c->slots[slot] = (uint32_t)c->n + 1;
    c->words[c->n++] = (qb_word_count){hash, count, c->n_bytes, (uint32_t)n_bytes};
    memcpy(c->bytes + c->n_bytes, word, n_bytes);
    c->n_bytes += n_bytes;
    return QB_OK;
}

qb_status qb_word_counts_add(qb_word_counts *c, const char *word, size_t n_bytes, uint64_t count)
{
    return add_hashed(c, word, n_bytes, qb_hash_bytes(word, n_bytes), count);
}

qb_status qb_word_counts_merge(qb_word_counts *dst, const qb_word_counts *src)
{
    for (size_t i = 0; i < src->n; i++) {
        const qb_word_count *w = &src->words[i];
        QB_TRY(add_hashed(dst, src->bytes + w->at, w->n_bytes, w->hash, w->count));
    }
    return QB_OK;
}
