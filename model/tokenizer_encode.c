/* model/tokenizer_encode.c - what both kinds of encoding share: special tokens written in the text,
 * the cache of words, greedy merging with a heap. */
#include "model/tokenizer_internal.h"

#include "core/memory.h"

enum { CACHE_MIN = 64, CACHE_MAX = 1 << 16 };

qb_status qb__reserve_chars(char **buffer, size_t *capacity, size_t bytes)
{
    if (bytes <= *capacity) return QB_OK;
    char *bigger;
    QB_TRY(QB_NEW(&bigger, bytes + bytes / 2, "tokenizer work space"));
    qb_free(*buffer);
    *buffer = bigger;
    *capacity = bytes + bytes / 2;
    return QB_OK;
}

qb_status qb__encoder_reserve_symbols(qb_encoder *e, size_t n)
{
    if (n <= e->symbols_capacity) return QB_OK;
    size_t capacity = n + n / 2;
    qb__symbol *symbols;
    uint64_t *heap;
    QB_TRY(QB_NEW(&symbols, capacity, "tokenizer symbols"));
    /* n - 1 pairs at first; every merge takes at least one entry out and puts at most two in. */
    qb_status status = QB_NEW(&heap, 2 * capacity, "tokenizer heap");
    if (status != QB_OK) {
        qb_free(symbols);
        return status;
    }
    qb_free(e->symbols);
    qb_free(e->heap);
    e->symbols = symbols;
    e->heap = heap;
    e->symbols_capacity = capacity;
    return QB_OK;
}

static void sift_down(uint64_t *heap, size_t n, size_t i)
{
    uint64_t item = heap[i];
    for (size_t child; (child = 2 * i + 1) < n; i = child) {
        if (child + 1 < n && heap[child + 1] < heap[child]) child++;
        if (heap[child] >= item) break;
        heap[i] = heap[child];
    }
    heap[i] = item;
}

static void heap_push(qb_encoder *e, uint64_t item)
{
    size_t i = e->heap_n++;
    for (; i && e->heap[(i - 1) / 2] > item; i = (i - 1) / 2) e->heap[i] = e->heap[(i - 1) / 2];
    e->heap[i] = item;
}

static uint64_t heap_pop(qb_encoder *e)
{
    uint64_t top = e->heap[0];
    e->heap[0] = e->heap[--e->heap_n];
    if (e->heap_n) sift_down(e->heap, e->heap_n, 0);
    return top;
}

/* One word in the course of merging. */
typedef struct merging {
    const char *word;
    size_t n_bytes, n;
    qb__pair_key pair_key;
} merging;

/* The key of symbol i and its neighbour, and the token that they make. */
static uint32_t key_at(const qb_encoder *e, const merging *m, size_t i, int32_t *result)
{
    const qb__symbol *left = &e->symbols[i];
    if (left->next >= m->n) return QB__NO_KEY;
    const qb__symbol *right = &e->symbols[left->next];
    uint32_t end = right->next < m->n ? e->symbols[right->next].at : (uint32_t)m->n_bytes;
    return m->pair_key(e->t, m->word, left, right, end, result);
}

static void renew_key(qb_encoder *e, const merging *m, size_t i)
{
    int32_t result;
    e->symbols[i].key = key_at(e, m, i, &result);
    if (e->symbols[i].key != QB__NO_KEY) heap_push(e, (uint64_t)e->symbols[i].key << 32 | i);
}

static void merge_at(qb_encoder *e, const merging *m, size_t i)
{
    qb__symbol *s = &e->symbols[i];
    int32_t result = -1;
    key_at(e, m, i, &result);
    qb__symbol *taken = &e->symbols[s->next];
    taken->key = QB__NO_KEY;
    s->id = result;
    s->next = taken->next;
    if (s->next < m->n) e->symbols[s->next].prev = (uint32_t)i;
    renew_key(e, m, i);
    if (i > 0) renew_key(e, m, s->prev);
}

void qb__merge_symbols(qb_encoder *e, const char *word, size_t n_bytes, size_t n,
                       qb__pair_key pair_key)
{
    const merging m = {word, n_bytes, n, pair_key};
    e->heap_n = 0;
    for (size_t i = 0; i < n; i++) {
        e->symbols[i].prev = i ? (uint32_t)i - 1 : 0;
        e->symbols[i].next = (uint32_t)i + 1;
    }
    for (size_t i = 0; i < n; i++) {
        int32_t result;
        e->symbols[i].key = key_at(e, &m, i, &result);
        if (e->symbols[i].key != QB__NO_KEY)
            e->heap[e->heap_n++] = (uint64_t)e->symbols[i].key << 32 | i;
    }
    for (size_t i = e->heap_n / 2; i-- > 0;) sift_down(e->heap, e->heap_n, i);
    while (e->heap_n) {
        uint64_t item = heap_pop(e);
        size_t i = item & UINT32_MAX;
        if (e->symbols[i].key == item >> 32) merge_at(e, &m, i); /* else overtaken by a merge */
    }
}

qb_status qb__cache_get(qb_encoder *e, const char *word, size_t n_bytes, size_t *slot, bool *found)
{
    *slot = qb_hash_bytes(word, n_bytes) & e->cache_mask;
    const qb__cached_word *c = &e->cache[*slot];
    *found = c->n_bytes == n_bytes && !memcmp(c->word, word, n_bytes);
    if (!*found) return QB_OK;
    QB_TRY(qb__tokens_reserve(e->out, QB__CACHED_IDS));
    memcpy(e->out->ids + e->out->n, c->ids, sizeof c->ids); /* all: a fixed size is faster */
    e->out->n += c->n_ids;
    return QB_OK;
}

void qb__cache_put(qb_encoder *e, const char *word, size_t n_bytes, size_t slot, size_t first_out)
{
    size_t n_ids = e->out->n - first_out;
    if (n_bytes > QB__CACHED_BYTES || n_ids > QB__CACHED_IDS) return;
    qb__cached_word *c = &e->cache[slot];
    c->n_bytes = (uint8_t)n_bytes;
    c->n_ids = (uint8_t)n_ids;
    memcpy(c->word, word, n_bytes);
    memcpy(c->ids, e->out->ids + first_out, n_ids * sizeof *c->ids);
}

/* The longest special token at the start of s, -1 = none. */
static int32_t special_at(const qb_tokenizer *t, const char *s, size_t n, bool parse_special,
                          size_t *n_bytes)
{
    int32_t best = -1;
    size_t low = 0, high = t->n_specials;
    for (size_t k = 0; k < n && low < high; k++) {
        for (int side = 0; side < 2; side++) { /* narrow to those whose byte k is s[k] */
            size_t a = low, b = high;
            while (a < b) {
                size_t middle = (a + b) / 2, bytes;
                uint8_t c = (uint8_t)qb__token_text(t, (size_t)t->specials[middle], &bytes)[k];
                if (c < (uint8_t)s[k] + side)
                    a = middle + 1;
                else
                    b = middle;
            }
            *(side ? &high : &low) = a;
        }
        size_t bytes;
        if (low == high) break;
        qb__token_text(t, (size_t)t->specials[low], &bytes);
        if (bytes > k + 1) continue;
        int32_t id = t->specials[low++]; /* ends here; the others are longer */
        if (parse_special || t->types[id] == QB_TOKEN_USER) {
            best = id;
            *n_bytes = bytes;
        }
    }
    return best;
}

static qb_status encode_segments(qb_encoder *e, const char *text, size_t n_bytes,
                                 bool parse_special)
{
    const qb_tokenizer *t = e->t;
    qb_status (*encode)(qb_encoder *, const char *, size_t) =
        t->kind == QB_TOKENIZER_BPE ? qb__bpe_encode_segment : qb__spm_encode_segment;
    size_t start = 0, i = 0;
    while (i < n_bytes) {
        size_t special_bytes = 0;
        int32_t id = -1;
        if (t->special_first[(uint8_t)text[i]])
            id = special_at(t, text + i, n_bytes - i, parse_special, &special_bytes);
        if (id < 0) {
            i++;
            continue;
        }
        e->at_start = start == 0;
        if (i > start) QB_TRY(encode(e, text + start, i - start));
        QB_TRY(qb_tokens_push(e->out, id));
        start = i += special_bytes;
    }
    e->at_start = start == 0;
    return n_bytes > start ? encode(e, text + start, n_bytes - start) : QB_OK;
}

/* text_bytes: of all that will be encoded, as far as it is known. */
static qb_status encoder_init(qb_encoder *e, size_t text_bytes)
{
    size_t slots = CACHE_MIN;
    while (slots < CACHE_MAX && slots < text_bytes / 8) slots *= 2;
    QB_TRY(QB_NEW_ZERO(&e->cache, slots, "tokenizer cache"));
    e->cache_mask = slots - 1;
    return e->t->splitter ? qb__words_init(&e->words, e->t->pre, e->t->splitter) : QB_OK;
}

static void encoder_deinit(qb_encoder *e)
{
    qb__words_deinit(&e->words);
    qb_free(e->cache);
    qb_free(e->symbols);
    qb_free(e->heap);
    qb_free(e->work);
    qb_free(e->spelled);
}

qb_status qb_encoder_create(const qb_tokenizer *t, size_t text_bytes, qb_encoder **out)
{
    qb_encoder *e;
    QB_TRY(QB_NEW_ZERO(&e, 1, "encoder"));
    e->t = t;
    qb_status status = encoder_init(e, text_bytes);
    if (status != QB_OK)
        qb_encoder_destroy(e);
    else
        *out = e;
    return status;
}

void qb_encoder_destroy(qb_encoder *e)
{
    if (!e) return;
    encoder_deinit(e);
    qb_free(e);
}

qb_status qb_encoder_encode(qb_encoder *e, const char *text, size_t n_bytes, bool parse_special,
                            qb_tokens *out)
{
    if (n_bytes > QB_TOKENIZER_MAX_TEXT)
        return QB_FAIL(QB_ERR_UNSUPPORTED,
                       "tokenizer: found a text of %zu bytes, expected at most %zu", n_bytes,
                       QB_TOKENIZER_MAX_TEXT);
    size_t first = out->n;
    e->out = out;
    qb_status status = encode_segments(e, text, n_bytes, parse_special);
    if (status != QB_OK) out->n = first;
    return status;
}

qb_status qb_tokenizer_encode(const qb_tokenizer *t, const char *text, size_t n_bytes,
                              bool parse_special, qb_tokens *out)
{
    qb_encoder e = {.t = t};
    qb_status status = encoder_init(&e, n_bytes);
    if (status == QB_OK) status = qb_encoder_encode(&e, text, n_bytes, parse_special, out);
    encoder_deinit(&e);
    return status;
}
