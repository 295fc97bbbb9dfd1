/* train/data/word_counts.h - how often each word occurs: a hash table over strings of bytes. */
#ifndef QB_TRAIN_DATA_WORD_COUNTS_H
#define QB_TRAIN_DATA_WORD_COUNTS_H

#include "core/status.h"

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct qb_word_count {
    uint64_t hash, count;
    size_t at; /* in bytes */
    uint32_t n_bytes;
} qb_word_count;

typedef struct qb_word_counts { /* starts zeroed */
    qb_word_count *words;       /* (n) in the order of their first occurrence */
    size_t n, capacity;
    uint32_t *slots; /* index + 1; 0 = free */
    size_t n_slots;
    char *bytes;
    size_t n_bytes, bytes_capacity;
} qb_word_counts;

void qb_word_counts_deinit(qb_word_counts *counts);
/* QB_ERR_MEMORY, also beyond 2^31 different words. */
qb_status qb_word_counts_add(qb_word_counts *counts, const char *word, size_t n_bytes,
                             uint64_t count);
/* Adds all of src to dst. */
qb_status qb_word_counts_merge(qb_word_counts *dst, const qb_word_counts *src);

#ifdef __cplusplus
}
#endif
#endif
