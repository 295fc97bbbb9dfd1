/* train/data/ngrams.c - a rolling hash over words; tables of the grams of evaluation texts.
 *
 * The hash of a gram is sum_i h_i P^(12-i) mod 2^64 over the hashes h_i of its words, so the next
 * one takes two products. Most grams of a training text are unknown: a bit table that fits a cache
 * says so before the large table is looked at. */
#include "train/data/ngrams.h"

#include "core/interrupt.h"
#include "core/memory.h"

#include <string.h>

#define FACTOR 0x9e3779b97f4a7c15u
enum { FIRST_SLOTS = 1 << 12, BITS_PER_SLOT = 8 };

typedef struct slot {
    uint64_t hash;
    size_t at; /* first byte in words, + 1; 0 = free */
} slot;

struct qb_ngrams {
    char *words; /* of all documents, in lower case, each followed by a space */
    size_t n_bytes, capacity;
    slot *slots;
    size_t n_slots, n;
    uint64_t *bits; /* (n_slots * BITS_PER_SLOT / 64) */
};

/* ---- words ---- */

/* The byte as it is compared, 0 = it belongs to no word. */
static inline char word_byte(char c)
{
    uint8_t u = (uint8_t)c;
    if (u >= 0x80) return c;
    if (u >= 'A' && u <= 'Z') return (char)(u + 32);
    return (u >= 'a' && u <= 'z') || (u >= '0' && u <= '9') ? c : 0;
}

/* The last 13 words of a walk over a text. */
typedef struct window {
    const char *text;
    size_t n_bytes, at;           /* at: behind the newest word */
    size_t start[QB_NGRAM_WORDS]; /* word i at i mod 13 */
    uint64_t hash[QB_NGRAM_WORDS];
    size_t n_words;
    uint64_t rolling;
} window;

static uint64_t power_of_factor(void)
{
    uint64_t p = 1;
    for (int i = 0; i < QB_NGRAM_WORDS; i++) p *= FACTOR;
    return p;
}

/* Takes the next word in; false at the end of the text. */
static bool next_word(window *w, uint64_t leaving_factor)
{
    while (w->at < w->n_bytes && !word_byte(w->text[w->at])) w->at++;
    if (w->at == w->n_bytes) return false;
    size_t place = w->n_words++ % QB_NGRAM_WORDS;
    uint64_t hash = 0xcbf29ce484222325u;
    w->start[place] = w->at;
    for (char c; w->at < w->n_bytes && (c = word_byte(w->text[w->at])); w->at++)
        hash = (hash ^ (uint8_t)c) * 0x100000001b3u; /* FNV-1a */
    hash ^= hash >> 29;
    w->rolling = w->rolling * FACTOR + hash;
    if (w->n_words > QB_NGRAM_WORDS) w->rolling -= w->hash[place] * leaving_factor;
    w->hash[place] = hash;
    return true;
}

static bool is_full(const window *w)
{
    return w->n_words >= QB_NGRAM_WORDS;
}

static uint64_t gram_hash(const window *w)
{
    uint64_t h = w->rolling ^ w->rolling >> 32;
    h *= 0xd6e8feb86659fd93u;
    return h ^ h >> 32;
}

/* The window's words against those that start at `known`. */
static bool same_words(const window *w, const char *known)
{
    const char *p = w->text + w->start[w->n_words % QB_NGRAM_WORDS], *end = w->text + w->at;
    while (p < end) {
        char c = word_byte(*p++);
        if (!c) {
            while (!word_byte(*p)) p++; /* the window ends with a word */
            c = ' ';
        }
        if (c != *known++) return false;
    }
    return *known == ' ';
}

/* ---- the tables ---- */

static size_t find_slot(const qb_ngrams *g, const window *w, uint64_t hash)
{
    size_t i = hash & (g->n_slots - 1);
    for (; g->slots[i].at; i = (i + 1) & (g->n_slots - 1))
        if (g->slots[i].hash == hash && same_words(w, g->words + g->slots[i].at - 1)) break;
    return i;
}

static inline bool bit_is_set(const qb_ngrams *g, uint64_t hash)
{
    uint64_t bit = (hash >> 20) & (g->n_slots * BITS_PER_SLOT - 1);
    return g->bits[bit / 64] >> bit % 64 & 1;
}

static void set_bit(qb_ngrams *g, uint64_t hash)
{
    uint64_t bit = (hash >> 20) & (g->n_slots * BITS_PER_SLOT - 1);
    g->bits[bit / 64] |= (uint64_t)1 << bit % 64;
}

static qb_status grow_tables(qb_ngrams *g)
{
    size_t n_slots = g->n_slots ? 2 * g->n_slots : FIRST_SLOTS, n_before = g->n_slots;
    slot *slots, *before = g->slots;
    uint64_t *bits;
    QB_TRY(QB_NEW_ZERO(&slots, n_slots, "13-grams"));
    qb_status status = QB_NEW_ZERO(&bits, n_slots * BITS_PER_SLOT / 64, "13-grams");
    if (status != QB_OK) {
        qb_free(slots);
        return status;
    }
    qb_free(g->bits);
    g->slots = slots;
    g->bits = bits;
    g->n_slots = n_slots;
    for (size_t i = 0; i < n_before; i++) {
        if (!before[i].at) continue;
        size_t k = before[i].hash & (n_slots - 1);
        while (slots[k].at) k = (k + 1) & (n_slots - 1);
        slots[k] = before[i];
        set_bit(g, before[i].hash);
    }
    qb_free(before);
    return QB_OK;
}

qb_status qb_ngrams_create(qb_ngrams **out)
{
    qb_ngrams *g;
    QB_TRY(QB_NEW_ZERO(&g, 1, "13-grams"));
    qb_status status = grow_tables(g);
    if (status != QB_OK)
        qb_ngrams_destroy(g);
    else
        *out = g;
    return status;
}

void qb_ngrams_destroy(qb_ngrams *g)
{
    if (!g) return;
    qb_free(g->words);
    qb_free(g->slots);
    qb_free(g->bits);
    qb_free(g);
}

size_t qb_ngrams_n(const qb_ngrams *g)
{
    return g->n;
}

/* ---- adding and asking ---- */

/* The document's words behind those of the others. */
static qb_status append_words(qb_ngrams *g, const char *text, size_t n_bytes)
{
    if (g->capacity - g->n_bytes < n_bytes + 1) {
        size_t capacity = 2 * g->capacity + n_bytes + 1;
        QB_TRY(qb_realloc((void **)&g->words, g->n_bytes, capacity, 1, "13-grams"));
        g->capacity = capacity;
    }
    bool inside = false;
    for (size_t i = 0; i < n_bytes; i++) {
        char c = word_byte(text[i]);
        if (c)
            g->words[g->n_bytes++] = c;
        else if (inside)
            g->words[g->n_bytes++] = ' ';
        inside = c != 0;
    }
    if (inside) g->words[g->n_bytes++] = ' ';
    return QB_OK;
}

static qb_status add_gram(qb_ngrams *g, const window *w)
{
    if (2 * (g->n + 1) > g->n_slots) QB_TRY(grow_tables(g));
    uint64_t hash = gram_hash(w);
    size_t i = find_slot(g, w, hash);
    if (g->slots[i].at) return QB_OK;
    const char *first = w->text + w->start[w->n_words % QB_NGRAM_WORDS];
    g->slots[i] = (slot){hash, (size_t)(first - g->words) + 1};
    set_bit(g, hash);
    g->n++;
    return QB_OK;
}

static qb_status add_document(qb_ngrams *g, const char *text, size_t n_bytes)
{
    size_t first = g->n_bytes;
    QB_TRY(append_words(g, text, n_bytes));
    window w = {.text = g->words + first, .n_bytes = g->n_bytes - first};
    uint64_t leaving_factor = power_of_factor();
    while (next_word(&w, leaving_factor))
        if (is_full(&w)) QB_TRY(add_gram(g, &w));
    return QB_OK;
}

qb_status qb_ngrams_add(qb_ngrams *g, const qb_text *text)
{
    for (size_t d = 0; d < text->n_docs; d++) {
        size_t n;
        const char *document = qb_text_document(text, d, &n);
        QB_TRY(qb_interrupt_check());
        QB_TRY(add_document(g, document, n));
    }
    return QB_OK;
}

bool qb_ngrams_shares(const qb_ngrams *g, const char *text, size_t n_bytes)
{
    window w = {.text = text, .n_bytes = n_bytes};
    uint64_t leaving_factor = power_of_factor();
    while (next_word(&w, leaving_factor)) {
        if (!is_full(&w)) continue;
        uint64_t hash = gram_hash(&w);
        if (bit_is_set(g, hash) && g->slots[find_slot(g, &w, hash)].at) return true;
    }
    return false;
}
