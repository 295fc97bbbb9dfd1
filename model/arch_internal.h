/* model/arch_internal.h - the rules that arch.c and arch_rope.c share. */
#ifndef QB_MODEL_ARCH_INTERNAL_H
#define QB_MODEL_ARCH_INTERNAL_H

#include "model/arch.h"

enum { QB__MAX_ROWS = 1 << 24 }; /* vocab, context */

qb_status qb__check_range(const char *field, size_t value, size_t max);
/* NaN is out of any range. */
qb_status qb__check_real(const char *field, double value, double min, double max);
/* One of the words as its index; absent keys leave *out. */
qb_status qb__get_word(const json_t *object, const char *key, const char *const *words,
                       size_t n_words, int *out);

qb_status qb__rope_check(const qb_rope *rope, size_t head_dim);
json_t *qb__rope_to_json(const qb_rope *rope); /* NULL where memory lacks */
qb_status qb__rope_from_json(const json_t *object, qb_rope *rope);

#endif
