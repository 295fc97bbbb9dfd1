/* tests/token_checks.h - what a tokenizer makes of a text, for its tests. */
#ifndef QB_TESTS_TOKEN_CHECKS_H
#define QB_TESTS_TOKEN_CHECKS_H

#include "model/tokenizer.h"

/* The ids of the text are these n. */
void qb_test_ids(const qb_tokenizer *t, const char *text, bool parse_special, size_t n,
                 const int32_t *ids);
/* The text's ids are decoded to `expected`. */
void qb_test_decoded(const qb_tokenizer *t, const char *text, const char *expected);

#endif
