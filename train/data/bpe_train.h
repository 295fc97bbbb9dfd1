/* train/data/bpe_train.h - a byte-level BPE vocabulary from texts (Sennrich et al. 2016, on bytes
 * as in Radford et al. 2019).
 *
 * The texts are cut into words (model/words.h, the gpt-2 row). Ids: the 256 bytes in the order of
 * their characters in the byte-level alphabet (as GPT-2's vocabulary), then one a merge, then
 * <|endoftext|>. Each merge joins the commonest pair of neighbours inside words; of pairs equally
 * common the one with the lower left id, then the lower right id. So the result depends on the
 * counts of words alone: not on threads, not on the order of the texts. */
#ifndef QB_TRAIN_DATA_BPE_TRAIN_H
#define QB_TRAIN_DATA_BPE_TRAIN_H

#include "core/threads.h"
#include "model/text.h"

#ifdef __cplusplus
extern "C" {
#endif

enum {
    QB_BPE_MIN_VOCAB = 257, /* bytes and <|endoftext|> */
    QB_BPE_MAX_VOCAB = 1 << 20,
    QB_BPE_MIN_COUNT = 2,         /* a pair that occurs once is not joined */
    QB_BPE_MAX_TOKEN_BYTES = 256, /* no longer token is made */
};

typedef struct qb_bpe_trainer qb_bpe_trainer;

/* pool is borrowed; NULL = one thread. */
qb_status qb_bpe_trainer_create(qb_pool *pool, qb_bpe_trainer **out);
void qb_bpe_trainer_destroy(qb_bpe_trainer *trainer); /* accepts NULL */
/* Counts the words of a text. */
qb_status qb_bpe_trainer_add(qb_bpe_trainer *trainer, const qb_text *text);
/* Merges until the vocabulary has `vocab` tokens or no pair is left that occurs twice: then it is
 * smaller. The counts are used up. */
qb_status qb_bpe_trainer_finish(qb_bpe_trainer *trainer, size_t vocab, qb_tokenizer **out);

#ifdef __cplusplus
}
#endif
#endif
