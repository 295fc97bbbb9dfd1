/* train/data/bpe_merge_internal.h - the merges of a BPE vocabulary, from counted words. */
#ifndef QB_TRAIN_DATA_BPE_MERGE_INTERNAL_H
#define QB_TRAIN_DATA_BPE_MERGE_INTERNAL_H

#include "train/data/word_counts.h"

/* Merge i makes token 256 + i. */
typedef struct qb__bpe_merge {
    uint32_t left, right; /* ids */
} qb__bpe_merge;

typedef struct qb__bpe_merges {
    qb__bpe_merge *merges; /* (n_merges) owned */
    size_t n_merges;
    char *bytes;      /* of the tokens in a row; owned */
    size_t *bytes_at; /* (256 + n_merges + 1) owned */
} qb__bpe_merges;

/* first_ids[b] = the id of byte b, a permutation of 0 ... 255. */
qb_status qb__bpe_merges_make(const qb_word_counts *counts, const uint8_t first_ids[256],
                              size_t max_merges, qb__bpe_merges *out);
void qb__bpe_merges_deinit(qb__bpe_merges *merges);

#endif
