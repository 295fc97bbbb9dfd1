/* model/words.h - the words that byte-level BPE merges inside of: a pre-splitter's pieces of a
 * text.
 *
 * The pieces tile the text. A byte that is no UTF-8 is a piece alone, and for the pieces before it
 * the text ends there. */
#ifndef QB_MODEL_WORDS_H
#define QB_MODEL_WORDS_H

#include "core/status.h"

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct qb_words qb_words;

/* By the name of the pre-splitter row: "gpt-2", "smollm", "llama-bpe". One thread at a time. */
qb_status qb_words_create(const char *pre, qb_words **out);
void qb_words_destroy(qb_words *words); /* accepts NULL */
/* Begins with a text, which is borrowed. */
void qb_words_start(qb_words *words, const char *text, size_t n_bytes);
/* The next piece; *n_bytes 0 = there is none. */
qb_status qb_words_next(qb_words *words, const char **word, size_t *n_bytes);

/* Bytes in the alphabet of byte-level BPE (GPT-2's bytes_to_unicode), where each is a printable
 * character: dst has room for 2 n_bytes; returns the bytes written. */
size_t qb_words_spell(const char *bytes, size_t n_bytes, char *dst);

#ifdef __cplusplus
}
#endif
#endif
