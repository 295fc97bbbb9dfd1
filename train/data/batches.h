/* train/data/batches.h - the windows of tokens that training sees, in their order.
 *
 * Window w is a pure function of (files, context, seed, w): any window can be asked for at any
 * time, by any number of threads, so a run is resumed by its number of windows alone. There are
 * three sources, with one interface: shards  the documents of all shards, shuffled anew each epoch
 * (Fisher-Yates on the counter-based generator), laid end to end; window w of an epoch holds the
 * tokens w * context to (w + 1) * context of that, both ends included: every token but the first is
 * a target once, what does not fill a window at the end of an epoch is left out; bb Bigram-Backcopy
 * sequences (train/data/bb.h), fresh ones without end; random  tokens drawn uniformly from the
 * vocabulary, without end: nothing can be learnt from them, but speed be measured without data. */
#ifndef QB_TRAIN_DATA_BATCHES_H
#define QB_TRAIN_DATA_BATCHES_H

#include "core/status.h"
#include "train/data/bb.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct qb_batches qb_batches;

typedef struct qb_batches_options {
    size_t context; /* targets a window */
    uint64_t seed;
    bool in_order; /* documents as they are stored, the same in every epoch: for evaluation */
} qb_batches_options;

/* All shards must be of one tokenizer. QB_ERR_FORMAT: a broken shard, different tokenizers, fewer
 * than context + 1 tokens. The tokens themselves are read when they are asked for. */
qb_status qb_batches_open(const char *const *paths, size_t n_paths,
                          const qb_batches_options *options, qb_batches **out);
/* bb is borrowed and outlives the batches. in_order has no meaning here. */
qb_status qb_batches_open_bb(const qb_bb *bb, const qb_batches_options *options, qb_batches **out);
/* Ids below vocab, 1 to 2^31. in_order has no meaning here either. */
qb_status qb_batches_open_random(size_t vocab, const qb_batches_options *options, qb_batches **out);
void qb_batches_close(qb_batches *batches); /* accepts NULL */

/* tokens (n_windows, context + 1) of windows first_window, first_window + 1, ...; thread-safe.
 * QB_ERR_FORMAT: a token of a damaged shard is outside the vocabulary. */
qb_status qb_batches_fill(const qb_batches *batches, uint64_t first_window, size_t n_windows,
                          int32_t *tokens);

size_t qb_batches_context(const qb_batches *batches);
size_t qb_batches_vocab(const qb_batches *batches);
/* Tokens of one epoch and the windows that they fill; UINT64_MAX where the source has no end. */
uint64_t qb_batches_n_tokens(const qb_batches *batches);
uint64_t qb_batches_windows_per_epoch(const qb_batches *batches);
/* Bytes of text that n_tokens stand for, as they are counted in bits per byte; 0 = no text. */
uint64_t qb_batches_text_bytes(const qb_batches *batches);
const char *qb_batches_tokenizer_sha256(const qb_batches *batches); /* "" = none */
/* SHA-256 of all that the windows depend on: equal in two runs = the same windows. */
const char *qb_batches_sha256(const qb_batches *batches);

#ifdef __cplusplus
}
#endif
#endif
