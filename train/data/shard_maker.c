/* train/data/shard_maker.c - documents are cut into tasks of some 100 kB; each task's tokens lie in
 * a list of its own until all are put together in order. */
#include "train/data/shard_maker.h"

#include "core/interrupt.h"
#include "core/memory.h"
#include "train/data/shards.h"

#include <string.h>

enum { TASK_BYTES = 1 << 17, TASKS_A_ROUND = 8 }; /* a thread and a look at progress and Ctrl-C */

struct qb_shard_maker {
    const qb_tokenizer *tokenizer;
    const qb_ngrams *unwanted;
    qb_pool *pool;
    qb_encoder **encoders; /* one a thread */
    size_t n_threads;
};

qb_status qb_shard_maker_create(const qb_tokenizer *tokenizer, const qb_ngrams *unwanted,
                                qb_pool *pool, qb_shard_maker **out)
{
    qb_shard_maker *m;
    QB_TRY(QB_NEW_ZERO(&m, 1, "shard maker"));
    *m = (qb_shard_maker){tokenizer, unwanted, pool, NULL, qb_pool_n_threads(pool)};
    qb_status status = QB_NEW_ZERO(&m->encoders, m->n_threads, "encoders");
    for (size_t i = 0; i < m->n_threads && status == QB_OK; i++)
        status = qb_encoder_create(tokenizer, SIZE_MAX, &m->encoders[i]);
    if (status != QB_OK)
        qb_shard_maker_destroy(m);
    else
        *out = m;
    return status;
}

void qb_shard_maker_destroy(qb_shard_maker *m)
{
    if (!m) return;
    for (size_t i = 0; m->encoders && i < m->n_threads; i++) qb_encoder_destroy(m->encoders[i]);
    qb_free(m->encoders);
    qb_free(m);
}

/* ---- encoding ---- */

/* Task i takes the documents that start in its TASK_BYTES. */
typedef struct task {
    qb_tokens tokens;
    qb_status status;
} task;

typedef struct job {
    qb_shard_maker *maker;
    const qb_text *text;
    task *tasks;
    size_t n_tasks, first_task; /* of the round */
    uint64_t *doc_tokens;       /* (n_docs) 0 = dropped, or nothing in it has a token */
} job;

static qb_status encode_document(const job *j, qb_encoder *encoder, size_t doc, qb_tokens *out)
{
    const qb_shard_maker *m = j->maker;
    size_t n, before = out->n;
    const char *text = qb_text_document(j->text, doc, &n);
    if (m->unwanted && qb_ngrams_shares(m->unwanted, text, n)) return QB_OK;
    int32_t eos = qb_tokenizer_eos(m->tokenizer);
    if (eos >= 0) QB_TRY(qb_tokens_push(out, eos));
    QB_TRY(qb_encoder_encode(encoder, text, n, false, out));
    j->doc_tokens[doc] = out->n - before;
    return QB_OK;
}

static void run_task(void *context, size_t i, size_t thread_idx)
{
    job *j = context;
    i += j->first_task;
    task *t = &j->tasks[i];
    size_t end = qb_text_document_from(j->text, (i + 1) * TASK_BYTES);
    for (size_t d = qb_text_document_from(j->text, i * TASK_BYTES); d < end && t->status == QB_OK;
         d++)
        t->status = encode_document(j, j->maker->encoders[thread_idx], d, &t->tokens);
}

static qb_status run_round(job *j, size_t n)
{
    QB_TRY(qb_interrupt_check());
    qb_parallel_for(j->maker->pool, n, run_task, j);
    for (size_t i = 0; i < n; i++) {
        qb_status status = j->tasks[j->first_task + i].status; /* its message is another thread's */
        if (status != QB_OK)
            return QB_FAIL(status, "%s: cannot be encoded: %s", j->text->name,
                           status == QB_ERR_MEMORY ? "no memory" : "a document is too long");
    }
    return QB_OK;
}

static qb_status run_all(job *j, qb_progress *progress)
{
    size_t round = TASKS_A_ROUND * j->maker->n_threads, begun = progress ? progress->done : 0;
    for (; j->first_task < j->n_tasks; j->first_task += round) {
        size_t left = j->n_tasks - j->first_task;
        QB_TRY(run_round(j, left < round ? left : round));
        if (progress)
            qb_progress_update(progress, begun + QB_SHARD_STEPS * j->first_task / j->n_tasks);
    }
    if (progress) qb_progress_update(progress, begun + QB_SHARD_STEPS);
    return QB_OK;
}

/* ---- putting together ---- */

typedef struct joined {
    int32_t *tokens;
    uint64_t *doc_end;
} joined;

static qb_status join(job *j, joined *all, qb_shard_made *made)
{
    const qb_text *text = j->text;
    for (size_t i = 0; i < j->n_tasks; i++) made->n_tokens += j->tasks[i].tokens.n;
    QB_TRY(QB_NEW(&all->tokens, made->n_tokens, "tokens"));
    QB_TRY(QB_NEW(&all->doc_end, text->n_docs, "documents"));
    size_t at = 0, end = 0;
    for (size_t i = 0; i < j->n_tasks; i++) {
        qb_tokens *tokens = &j->tasks[i].tokens;
        if (tokens->n) memcpy(all->tokens + at, tokens->ids, tokens->n * sizeof *tokens->ids);
        at += tokens->n;
        qb_tokens_deinit(tokens);
    }
    for (size_t d = 0; d < text->n_docs; d++) {
        size_t n;
        if (!j->doc_tokens[d]) continue;
        qb_text_document(text, d, &n);
        all->doc_end[made->n_docs++] = end += j->doc_tokens[d];
        made->text_bytes += n;
    }
    made->n_dropped = text->n_docs - made->n_docs;
    return QB_OK;
}

static qb_status write_joined(const job *j, const joined *all, const char *path,
                              qb_shard_made *made)
{
    const qb_tokenizer *t = j->maker->tokenizer;
    const qb_shard_contents contents = {.tokens = all->tokens,
                                        .n_tokens = made->n_tokens,
                                        .doc_end = all->doc_end,
                                        .n_docs = made->n_docs,
                                        .vocab = qb_tokenizer_vocab(t),
                                        .eos = qb_tokenizer_eos(t),
                                        .text_bytes = made->text_bytes,
                                        .tokenizer_sha256 = qb_tokenizer_sha256(t),
                                        .text_sha256 = j->text->sha256};
    return qb_shard_write(path, &contents, made->digest);
}

static qb_status make(job *j, joined *all, const char *path, qb_progress *progress,
                      qb_shard_made *made)
{
    QB_TRY(QB_NEW_ZERO(&j->doc_tokens, j->text->n_docs, "documents"));
    QB_TRY(QB_NEW_ZERO(&j->tasks, j->text->n_bytes / TASK_BYTES + 1, "documents"));
    j->n_tasks = j->text->n_bytes / TASK_BYTES + 1;
    QB_TRY(run_all(j, progress));
    QB_TRY(join(j, all, made));
    return write_joined(j, all, path, made);
}

qb_status qb_shard_maker_write(qb_shard_maker *m, const qb_text *text, const char *path,
                               qb_progress *progress, qb_shard_made *out)
{
    job j = {.maker = m, .text = text};
    joined all = {0};
    qb_shard_made made = {0};
    qb_status status = make(&j, &all, path, progress, &made);
    for (size_t i = 0; i < j.n_tasks; i++) qb_tokens_deinit(&j.tasks[i].tokens);
    qb_free(j.tasks);
    qb_free(j.doc_tokens);
    qb_free(all.tokens);
    qb_free(all.doc_end);
    if (status == QB_OK) *out = made;
    return status;
}
