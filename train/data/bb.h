/* train/data/bb.h - sequences of the Bigram-Backcopy task (Guo et al. 2024, arXiv:2410.13835).
 *
 * A sequence starts with n_bos tokens <s>; the next is drawn from the unigram counts without the
 * triggers. After a trigger comes the token before it again (backcopy), after any other token v one
 * drawn from the counts of the pairs (v, .). Triggers are the n_triggers commonest tokens, so two
 * are never adjacent. Counts are of a text's characters: ids 0, 1, ... by code point, then <s>,
 * then <d>, which never occurs. Draws are exact (whole counts, no rounded probabilities) and depend
 * on (seed, sequence, position) alone. */
#ifndef QB_TRAIN_DATA_BB_H
#define QB_TRAIN_DATA_BB_H

#include "core/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { QB_BB_MAX_TOKENS = 4096, QB_BB_MAX_CONTEXT = (1 << 20) - 1 };

typedef struct qb_bb_options {
    size_t n_triggers; /* 3 in the paper; 0 = bigrams only */
    size_t n_bos;      /* tokens <s> at the start: 1 in the paper, 0 to 2 */
} qb_bb_options;

typedef struct qb_bb {
    size_t vocab;      /* characters + 2 */
    int32_t bos;       /* <s>: the number of characters */
    size_t n_bos;      /* as in the options */
    bool *is_trigger;  /* (vocab) */
    int32_t *triggers; /* (n_triggers) commonest first, ties to the lower id */
    size_t n_triggers;
    uint32_t *code_points;   /* (vocab - 2) */
    double *conditional;     /* (vocab, vocab) p(next | token); row <s> = unigram, row <d> = 0 */
    char sha256[65];         /* of the file of counts */
    struct qb_bb_draw *draw; /* cumulated counts */
} qb_bb;

/* counts_path: a table as share/bb/tinyshakespeare-bigrams.tsv (lines starting with # are comments;
 * then a line a character: code point, count, counts of the pairs, separated by tabs). NULL = that
 * table, which is built in. QB_ERR_FORMAT names the line. */
qb_status qb_bb_open(const char *counts_path, const qb_bb_options *options, qb_bb *out);
void qb_bb_deinit(qb_bb *bb); /* accepts a zeroed one */

/* tokens (n_sequences, length) of sequences first_sequence, ...; length <= QB_BB_MAX_CONTEXT + 1,
 * sequence numbers below 2^44. Thread-safe. */
void qb_bb_fill(const qb_bb *bb, uint64_t seed, uint64_t first_sequence, size_t n_sequences,
                size_t length, int32_t *tokens);

#ifdef __cplusplus
}
#endif
#endif
