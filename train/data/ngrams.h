/* train/data/ngrams.h - the 13-grams of evaluation texts, to keep them out of training (Brown et
 * al. 2020, appendix C, in its plain form).
 *
 * A word is a longest run of ASCII letters, digits and bytes from 0x80 on; letters are compared in
 * lower case, whatever stands between words is ignored. A 13-gram is 13 words in a row inside one
 * document. A hash finds candidates, the words decide: there are no false hits. */
#ifndef QB_TRAIN_DATA_NGRAMS_H
#define QB_TRAIN_DATA_NGRAMS_H

#include "model/text.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { QB_NGRAM_WORDS = 13 };

typedef struct qb_ngrams qb_ngrams;

/* An empty set. */
qb_status qb_ngrams_create(qb_ngrams **out);
void qb_ngrams_destroy(qb_ngrams *ngrams); /* accepts NULL */
/* Adds the 13-grams of each document. */
qb_status qb_ngrams_add(qb_ngrams *ngrams, const qb_text *text);
size_t qb_ngrams_n(const qb_ngrams *ngrams); /* different ones */
/* True where the document shares a 13-gram with a text that was added. Thread-safe. */
bool qb_ngrams_shares(const qb_ngrams *ngrams, const char *text, size_t n_bytes);

#ifdef __cplusplus
}
#endif
#endif
