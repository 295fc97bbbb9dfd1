/* train/data/bpe_merge.c - greedy merging of the commonest pair, with counts kept up to date.
 *
 * Every pair of neighbours has a row: its count and a list of the words that it was seen in. A
 * merge visits the words of its pair alone and corrects the counts of the pairs beside each
 * occurrence. The heap may hold old counts: every rise pushes a new entry, and an entry that
 * promises too much is pushed again with the count of now. */
#include "train/data/bpe_merge_internal.h"

#include "core/hash.h"
#include "core/interrupt.h"
#include "core/memory.h"
#include "core/progress.h"
#include "train/data/bpe_train.h"

#include <math.h>

enum { FIRST_PAIRS = 1 << 16, CHECK_EVERY = 64 };
#define NONE UINT32_MAX

typedef struct pair {
    uint32_t left, right;
    uint64_t count;
    uint32_t seen_in;   /* newest node of its list, NONE = empty */
    uint32_t last_word; /* that was put into the list */
    bool rose;          /* its count rose in the present merge */
} pair;

typedef struct node {
    uint32_t word, next;
} node;

typedef struct entry {
    uint64_t count;
    uint32_t pair_idx;
} entry;

typedef struct merging {
    const qb_word_counts *counts;
    uint32_t *symbols; /* of all words in a row */
    size_t *at;        /* (n words) */
    uint32_t *length;  /* (n words) */
    pair *pairs;
    size_t n_pairs, pairs_capacity;
    uint32_t *slots; /* pair index + 1; 0 = free */
    size_t n_slots;
    node *nodes;
    size_t n_nodes, nodes_capacity;
    entry *heap;
    size_t n_heap, heap_capacity;
    uint32_t *rose; /* pairs whose count rose in the present merge */
    size_t n_rose, rose_capacity;
    size_t bytes_capacity;
    qb__bpe_merges out;
} merging;

static qb_status grow(void *block, size_t n, size_t *capacity, size_t elem_bytes)
{
    if (n < *capacity) return QB_OK;
    size_t bigger = *capacity ? 2 * *capacity : FIRST_PAIRS;
    QB_TRY(qb_realloc(block, n, bigger, elem_bytes, "BPE pairs"));
    *capacity = bigger;
    return QB_OK;
}

/* ---- the heap: commonest first, then the lower ids ---- */

static bool comes_before(const merging *m, entry a, entry b)
{
    if (a.count != b.count) return a.count > b.count;
    const pair *p = &m->pairs[a.pair_idx], *q = &m->pairs[b.pair_idx];
    return p->left != q->left ? p->left < q->left : p->right < q->right;
}

static qb_status push(merging *m, uint32_t pair_idx)
{
    QB_TRY(grow(&m->heap, m->n_heap, &m->heap_capacity, sizeof *m->heap));
    entry e = {m->pairs[pair_idx].count, pair_idx};
    size_t i = m->n_heap++;
    for (; i && comes_before(m, e, m->heap[(i - 1) / 2]); i = (i - 1) / 2)
        m->heap[i] = m->heap[(i - 1) / 2];
    m->heap[i] = e;
    return QB_OK;
}

static entry pop(merging *m)
{
    entry top = m->heap[0], last = m->heap[--m->n_heap];
    size_t i = 0;
    for (size_t child; (child = 2 * i + 1) < m->n_heap; i = child) {
        if (child + 1 < m->n_heap && comes_before(m, m->heap[child + 1], m->heap[child])) child++;
        if (!comes_before(m, m->heap[child], last)) break;
        m->heap[i] = m->heap[child];
    }
    m->heap[i] = last;
    return top;
}

/* The commonest pair of now, NONE = no pair is left that counts. */
static qb_status pop_commonest(merging *m, uint32_t *pair_idx)
{
    while (m->n_heap) {
        entry e = pop(m);
        uint64_t count = m->pairs[e.pair_idx].count;
        *pair_idx = e.pair_idx;
        if (e.count == count) return QB_OK;
        if (count < e.count && count >= QB_BPE_MIN_COUNT) QB_TRY(push(m, e.pair_idx));
    }
    *pair_idx = NONE;
    return QB_OK;
}

/* ---- pairs ---- */

static size_t find_slot(const merging *m, uint32_t left, uint32_t right)
{
    size_t mask = m->n_slots - 1;
    size_t slot = qb_hash_u64((uint64_t)left << 32 | right) & mask;
    for (; m->slots[slot]; slot = (slot + 1) & mask) {
        const pair *p = &m->pairs[m->slots[slot] - 1];
        if (p->left == left && p->right == right) break;
    }
    return slot;
}

static qb_status grow_slots(merging *m)
{
    size_t n_slots = m->n_slots ? 2 * m->n_slots : 4 * FIRST_PAIRS;
    uint32_t *slots;
    QB_TRY(QB_NEW_ZERO(&slots, n_slots, "BPE pairs"));
    qb_free(m->slots);
    m->slots = slots;
    m->n_slots = n_slots;
    for (size_t i = 0; i < m->n_pairs; i++)
        slots[find_slot(m, m->pairs[i].left, m->pairs[i].right)] = (uint32_t)i + 1;
    return QB_OK;
}

static qb_status find_or_add(merging *m, uint32_t left, uint32_t right, uint32_t *pair_idx)
{
    if (2 * (m->n_pairs + 1) > m->n_slots) QB_TRY(grow_slots(m));
    size_t slot = find_slot(m, left, right);
    if (!m->slots[slot]) {
        QB_TRY(grow(&m->pairs, m->n_pairs, &m->pairs_capacity, sizeof *m->pairs));
        m->pairs[m->n_pairs] =
            (pair){.left = left, .right = right, .seen_in = NONE, .last_word = NONE};
        m->slots[slot] = (uint32_t)++m->n_pairs;
    }
    *pair_idx = m->slots[slot] - 1;
    return QB_OK;
}

static qb_status gain(merging *m, uint32_t left, uint32_t right, uint32_t word)
{
    uint32_t pair_idx;
    QB_TRY(find_or_add(m, left, right, &pair_idx));
    pair *p = &m->pairs[pair_idx];
    p->count += m->counts->words[word].count;
    if (p->last_word != word) {
        if (m->n_nodes >= NONE) return QB_FAIL(QB_ERR_MEMORY, "BPE pairs: too many words");
        QB_TRY(grow(&m->nodes, m->n_nodes, &m->nodes_capacity, sizeof *m->nodes));
        m->nodes[m->n_nodes] = (node){word, p->seen_in};
        p->seen_in = (uint32_t)m->n_nodes++;
        p->last_word = word;
    }
    if (p->rose) return QB_OK;
    QB_TRY(grow(&m->rose, m->n_rose, &m->rose_capacity, sizeof *m->rose));
    p->rose = true;
    m->rose[m->n_rose++] = pair_idx;
    return QB_OK;
}

static void lose(merging *m, uint32_t left, uint32_t right, uint32_t word)
{
    m->pairs[m->slots[find_slot(m, left, right)] - 1].count -= m->counts->words[word].count;
}

static qb_status push_risen(merging *m)
{
    for (size_t i = 0; i < m->n_rose; i++) {
        m->pairs[m->rose[i]].rose = false;
        if (m->pairs[m->rose[i]].count >= QB_BPE_MIN_COUNT) QB_TRY(push(m, m->rose[i]));
    }
    m->n_rose = 0;
    return QB_OK;
}

/* ---- tokens ---- */

static size_t token_bytes(const merging *m, uint32_t id)
{
    return m->out.bytes_at[id + 1] - m->out.bytes_at[id];
}

/* The token that left and right make. It is a new one: a string that stands between ends of tokens
 * has been cut in the same way at every place, since a merge looks at nothing outside it. */
static qb_status add_token(merging *m, uint32_t left, uint32_t right, uint32_t *id)
{
    size_t n_left = token_bytes(m, left), n_right = token_bytes(m, right);
    size_t n_tokens = 256 + m->out.n_merges, end = m->out.bytes_at[n_tokens];
    if (m->bytes_capacity - end < n_left + n_right) {
        size_t capacity = 2 * m->bytes_capacity + n_left + n_right;
        QB_TRY(qb_realloc((void **)&m->out.bytes, end, capacity, 1, "BPE tokens"));
        m->bytes_capacity = capacity;
    }
    memcpy(m->out.bytes + end, m->out.bytes + m->out.bytes_at[left], n_left);
    memcpy(m->out.bytes + end + n_left, m->out.bytes + m->out.bytes_at[right], n_right);
    m->out.bytes_at[n_tokens + 1] = end + n_left + n_right;
    m->out.merges[m->out.n_merges++] = (qb__bpe_merge){left, right};
    *id = (uint32_t)n_tokens;
    return QB_OK;
}

/* ---- the start ---- */

static qb_status start_tokens(merging *m, const uint8_t first_ids[256], size_t max_merges)
{
    QB_TRY(QB_NEW(&m->out.merges, max_merges, "BPE merges"));
    QB_TRY(QB_NEW(&m->out.bytes_at, 256 + max_merges + 1, "BPE tokens"));
    QB_TRY(QB_NEW(&m->out.bytes, FIRST_PAIRS, "BPE tokens"));
    m->bytes_capacity = FIRST_PAIRS;
    for (size_t i = 0; i <= 256; i++) m->out.bytes_at[i] = i;
    for (int b = 0; b < 256; b++) m->out.bytes[first_ids[b]] = (char)b;
    return QB_OK;
}

static qb_status start_words(merging *m, const uint8_t first_ids[256])
{
    const qb_word_counts *c = m->counts;
    QB_TRY(QB_NEW(&m->symbols, c->n_bytes, "BPE words"));
    QB_TRY(QB_NEW(&m->at, c->n, "BPE words"));
    QB_TRY(QB_NEW(&m->length, c->n, "BPE words"));
    QB_TRY(grow_slots(m));
    for (size_t i = 0; i < c->n_bytes; i++) m->symbols[i] = first_ids[(uint8_t)c->bytes[i]];
    for (size_t i = 0; i < c->n; i++) {
        const uint32_t *s = m->symbols + (m->at[i] = c->words[i].at);
        m->length[i] = c->words[i].n_bytes;
        for (size_t k = 0; k + 1 < m->length[i]; k++) QB_TRY(gain(m, s[k], s[k + 1], (uint32_t)i));
    }
    return push_risen(m);
}

/* ---- one merge ---- */

/* Joins every left, right of the word, from the left; the counts of the pairs around follow. */
static qb_status merge_word(merging *m, uint32_t word, uint32_t left, uint32_t right,
                            uint32_t result)
{
    uint32_t *s = m->symbols + m->at[word];
    size_t n = m->length[word], kept = 0;
    for (size_t i = 0; i < n; kept++) {
        if (i + 1 == n || s[i] != left || s[i + 1] != right) {
            s[kept] = s[i++];
            continue;
        }
        lose(m, left, right, word);
        if (kept) {
            lose(m, s[kept - 1], left, word);
            QB_TRY(gain(m, s[kept - 1], result, word));
        }
        if (i + 2 < n) {
            lose(m, right, s[i + 2], word);
            QB_TRY(gain(m, result, s[i + 2], word));
        }
        s[kept] = result;
        i += 2;
    }
    m->length[word] = (uint32_t)kept;
    return QB_OK;
}

static qb_status merge_pair(merging *m, uint32_t pair_idx)
{
    uint32_t left = m->pairs[pair_idx].left, right = m->pairs[pair_idx].right, result;
    QB_TRY(add_token(m, left, right, &result));
    uint32_t at = m->pairs[pair_idx].seen_in;
    m->pairs[pair_idx].seen_in = NONE;
    m->pairs[pair_idx].last_word = NONE;
    for (; at != NONE; at = m->nodes[at].next)
        QB_TRY(merge_word(m, m->nodes[at].word, left, right, result));
    return push_risen(m);
}

/* A pair's count, and with it the work of its merge, falls about as 1 / its rank, so that the work
 * of the first i merges grows as log i. */
static size_t work_done(size_t n_merges)
{
    return (size_t)(1000 * log(1 + (double)n_merges));
}

static qb_status merge_all(merging *m, size_t max_merges)
{
    qb_progress progress = qb_progress_begin("BPE merges", work_done(max_merges));
    qb_status status = QB_OK;
    while (m->out.n_merges < max_merges && status == QB_OK) {
        uint32_t pair_idx = NONE;
        if (m->out.n_merges % CHECK_EVERY == 0) status = qb_interrupt_check();
        if (status == QB_OK) status = pop_commonest(m, &pair_idx);
        if (pair_idx == NONE) break;
        const pair *p = &m->pairs[pair_idx];
        if (token_bytes(m, p->left) + token_bytes(m, p->right) <= QB_BPE_MAX_TOKEN_BYTES)
            status = merge_pair(m, pair_idx);
        qb_progress_update(&progress, work_done(m->out.n_merges));
    }
    qb_progress_end(&progress);
    return status;
}

qb_status qb__bpe_merges_make(const qb_word_counts *counts, const uint8_t first_ids[256],
                              size_t max_merges, qb__bpe_merges *out)
{
    merging m = {.counts = counts};
    qb_status status = start_tokens(&m, first_ids, max_merges);
    if (status == QB_OK) status = start_words(&m, first_ids);
    if (status == QB_OK) status = merge_all(&m, max_merges);
    void *const blocks[] = {m.symbols, m.at, m.length, m.pairs, m.slots, m.nodes, m.heap, m.rose};
    for (size_t i = 0; i < QB_COUNT(blocks); i++) qb_free(blocks[i]);
    if (status != QB_OK)
        qb__bpe_merges_deinit(&m.out);
    else
        *out = m.out;
    return status;
}

void qb__bpe_merges_deinit(qb__bpe_merges *merges)
{
    qb_free(merges->merges);
    qb_free(merges->bytes);
    qb_free(merges->bytes_at);
    *merges = (qb__bpe_merges){0};
}
