/* train/data/shard_maker.h - texts to token shards, on all threads. */
#ifndef QB_TRAIN_DATA_SHARD_MAKER_H
#define QB_TRAIN_DATA_SHARD_MAKER_H

#include "core/progress.h"
#include "core/threads.h"
#include "model/text.h"
#include "train/data/ngrams.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct qb_shard_maker qb_shard_maker;

typedef struct qb_shard_made {
    size_t n_docs, n_dropped; /* n_docs: those that were kept */
    size_t n_tokens, text_bytes;
    char digest[65];
} qb_shard_made;

/* All borrowed. unwanted: documents that share a 13-gram with it are dropped; NULL = none are. */
qb_status qb_shard_maker_create(const qb_tokenizer *tokenizer, const qb_ngrams *unwanted,
                                qb_pool *pool, qb_shard_maker **out);
void qb_shard_maker_destroy(qb_shard_maker *maker); /* accepts NULL */
/* One shard of one text: the same bytes at any number of threads. progress moves on by
 * QB_SHARD_STEPS; NULL = none. */
enum { QB_SHARD_STEPS = 1000 };
qb_status qb_shard_maker_write(qb_shard_maker *maker, const qb_text *text, const char *path,
                               qb_progress *progress, qb_shard_made *out);

#ifdef __cplusplus
}
#endif
#endif
