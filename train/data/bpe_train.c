/* train/data/bpe_train.c - counting words on all threads, the vocabulary from merges. */
#include "train/data/bpe_train.h"

#include "core/interrupt.h"
#include "core/memory.h"
#include "core/progress.h"
#include "model/words.h"
#include "train/data/bpe_merge_internal.h"

#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

static const char PRE[] = "gpt-2", END_OF_TEXT[] = "<|endoftext|>";
enum { TASK_BYTES = 1 << 20 };

typedef struct worker {
    qb_words *words;
    qb_word_counts counts;
} worker;

struct qb_bpe_trainer {
    qb_pool *pool;
    worker *workers;
    size_t n_workers;
};

qb_status qb_bpe_trainer_create(qb_pool *pool, qb_bpe_trainer **out)
{
    qb_bpe_trainer *t;
    QB_TRY(QB_NEW_ZERO(&t, 1, "BPE trainer"));
    t->pool = pool;
    qb_status status = QB_NEW_ZERO(&t->workers, qb_pool_n_threads(pool), "BPE trainer");
    while (status == QB_OK && t->n_workers < qb_pool_n_threads(pool))
        status = qb_words_create(PRE, &t->workers[t->n_workers++].words);
    if (status != QB_OK)
        qb_bpe_trainer_destroy(t);
    else
        *out = t;
    return status;
}

void qb_bpe_trainer_destroy(qb_bpe_trainer *t)
{
    if (!t) return;
    for (size_t i = 0; i < t->n_workers; i++) {
        qb_words_destroy(t->workers[i].words);
        qb_word_counts_deinit(&t->workers[i].counts);
    }
    qb_free(t->workers);
    qb_free(t);
}

/* ---- counting ---- */

typedef struct counting {
    qb_bpe_trainer *trainer;
    const qb_text *text;
    _Atomic qb_status status; /* the first failure */
} counting;

static qb_status count_document(worker *w, const char *text, size_t n_bytes)
{
    const char *word;
    size_t n;
    if (n_bytes > QB_TOKENIZER_MAX_TEXT)
        return QB_FAIL(QB_ERR_UNSUPPORTED, "found a document of %zu bytes, expected at most %zu",
                       n_bytes, QB_TOKENIZER_MAX_TEXT);
    qb_words_start(w->words, text, n_bytes);
    for (;;) {
        QB_TRY(qb_words_next(w->words, &word, &n));
        if (!n) return QB_OK;
        QB_TRY(qb_word_counts_add(&w->counts, word, n, 1));
    }
}

/* Task i takes the documents that start in its TASK_BYTES. */
static void count_task(void *context, size_t i, size_t thread_idx)
{
    counting *c = context;
    worker *w = &c->trainer->workers[thread_idx];
    size_t end = qb_text_document_from(c->text, (i + 1) * TASK_BYTES);
    qb_status status = atomic_load(&c->status);
    for (size_t d = qb_text_document_from(c->text, i * TASK_BYTES); d < end && status == QB_OK;
         d++) {
        size_t n;
        const char *document = qb_text_document(c->text, d, &n);
        status = qb_interrupt_check();
        if (status == QB_OK) status = count_document(w, document, n);
    }
    if (status != QB_OK) atomic_store(&c->status, status);
}

qb_status qb_bpe_trainer_add(qb_bpe_trainer *t, const qb_text *text)
{
    counting c = {.trainer = t, .text = text};
    qb_parallel_for(t->pool, text->n_bytes / TASK_BYTES + 1, count_task, &c);
    qb_status status = atomic_load(&c.status);
    if (status == QB_OK) return QB_OK;
    /* the message is another thread's */
    if (status == QB_ERR_INTERRUPTED) return qb_interrupt_check();
    return QB_FAIL(status, "%s: cannot count its words: %s", text->name,
                   status == QB_ERR_MEMORY ? "no memory" : "a document is too long");
}

/* ---- the vocabulary ---- */

/* Bytes in the order of their characters in the byte-level alphabet. */
static void order_bytes(uint8_t ids[256])
{
    char spelled[256][2] = {{0}};
    for (int b = 0; b < 256; b++) {
        char byte = (char)b;
        if (qb_words_spell(&byte, 1, spelled[b]) == 1)
            spelled[b][1] = spelled[b][0], spelled[b][0] = 0;
    }
    for (int b = 0; b < 256; b++) {
        int n_before = 0;
        for (int other = 0; other < 256; other++)
            n_before += memcmp(spelled[other], spelled[b], 2) < 0;
        ids[b] = (uint8_t)n_before;
    }
}

/* Texts as qb_tokenizer_spec wants them. */
typedef struct spelling {
    char *text; /* of tokens, then of merges */
    const char **texts, **merges;
    size_t *text_bytes, *merge_bytes;
    uint8_t *types;
} spelling;

static void spell_tokens(const qb__bpe_merges *m, spelling *s)
{
    char *p = s->text;
    for (size_t id = 0; id < 256 + m->n_merges; id++) {
        size_t at = m->bytes_at[id];
        s->texts[id] = p;
        s->text_bytes[id] = qb_words_spell(m->bytes + at, m->bytes_at[id + 1] - at, p);
        p += s->text_bytes[id];
    }
    for (size_t i = 0; i < m->n_merges; i++) {
        size_t left = m->merges[i].left, right = m->merges[i].right;
        s->merges[i] = p;
        p = (char *)memcpy(p, s->texts[left], s->text_bytes[left]) + s->text_bytes[left];
        *p++ = ' ';
        p = (char *)memcpy(p, s->texts[right], s->text_bytes[right]) + s->text_bytes[right];
        s->merge_bytes[i] = (size_t)(p - s->merges[i]);
    }
}

static qb_status spell(const qb__bpe_merges *m, spelling *s)
{
    size_t vocab = 256 + m->n_merges + 1;
    size_t bytes = 4 * m->bytes_at[vocab - 1] + m->n_merges; /* each twice, at most 2 a byte */
    QB_TRY(QB_NEW(&s->text, bytes, "token texts"));
    QB_TRY(QB_NEW(&s->texts, vocab, "token texts"));
    QB_TRY(QB_NEW(&s->text_bytes, vocab, "token texts"));
    QB_TRY(QB_NEW_ZERO(&s->types, vocab, "token types"));
    QB_TRY(QB_NEW(&s->merges, m->n_merges, "merges"));
    QB_TRY(QB_NEW(&s->merge_bytes, m->n_merges, "merges"));
    spell_tokens(m, s);
    s->texts[vocab - 1] = END_OF_TEXT;
    s->text_bytes[vocab - 1] = strlen(END_OF_TEXT);
    s->types[vocab - 1] = QB_TOKEN_CONTROL;
    return QB_OK;
}

static qb_status make_tokenizer(const qb__bpe_merges *m, qb_tokenizer **out)
{
    spelling s = {0};
    qb_status status = spell(m, &s);
    int32_t eos = (int32_t)(256 + m->n_merges);
    const qb_tokenizer_spec spec = {.kind = QB_TOKENIZER_BPE,
                                    .pre = PRE,
                                    .vocab = 256 + m->n_merges + 1,
                                    .texts = s.texts,
                                    .text_bytes = s.text_bytes,
                                    .types = s.types,
                                    .n_merges = m->n_merges,
                                    .merges = s.merges,
                                    .merge_bytes = s.merge_bytes,
                                    .bos = eos,
                                    .eos = eos,
                                    .unk = -1};
    if (status == QB_OK) status = qb_tokenizer_create(&spec, out);
    void *const blocks[] = {s.text, s.texts, s.merges, s.text_bytes, s.merge_bytes, s.types};
    for (size_t i = 0; i < QB_COUNT(blocks); i++) qb_free(blocks[i]);
    return status;
}

/* All counts into those of the first worker. */
static qb_status join_counts(qb_bpe_trainer *t)
{
    for (size_t i = 1; i < t->n_workers; i++) {
        QB_TRY(qb_word_counts_merge(&t->workers[0].counts, &t->workers[i].counts));
        qb_word_counts_deinit(&t->workers[i].counts);
    }
    return QB_OK;
}

qb_status qb_bpe_trainer_finish(qb_bpe_trainer *t, size_t vocab, qb_tokenizer **out)
{
    if (vocab < QB_BPE_MIN_VOCAB || vocab > QB_BPE_MAX_VOCAB)
        return QB_FAIL(QB_ERR_USAGE, "vocabulary: found %zu, expected %d to %d", vocab,
                       QB_BPE_MIN_VOCAB, QB_BPE_MAX_VOCAB);
    uint8_t first_ids[256];
    qb__bpe_merges merges;
    order_bytes(first_ids);
    QB_TRY(join_counts(t));
    QB_TRY(
        qb__bpe_merges_make(&t->workers[0].counts, first_ids, vocab - QB_BPE_MIN_VOCAB, &merges));
    qb_word_counts_deinit(&t->workers[0].counts);
    qb_status status = make_tokenizer(&merges, out);
    qb__bpe_merges_deinit(&merges);
    return status;
}
