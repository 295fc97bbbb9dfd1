/* core/nearest.h - words for error messages: the one that was probably meant ("did you mean ...?"),
 * and those there are ("expected one of ..."). */
#ifndef QB_CORE_NEAREST_H
#define QB_CORE_NEAREST_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct qb_nearest {
    const char *typed; /* borrowed */
    const char *word;  /* the best so far, borrowed; NULL = none is near enough */
    size_t distance;   /* edits between the two */
} qb_nearest;

qb_nearest qb_nearest_begin(const char *typed);
/* Takes `word` where fewer edits (insert, delete, replace, swap neighbours) lead to it than to the
 * best so far, and not more than a slip or two. */
void qb_nearest_consider(qb_nearest *nearest, const char *word);

/* "fine, coarse": adds a word to the list in `text`, which starts as "". What does not fit into
 * `capacity` bytes with the NUL is left out. */
void qb_names_add(char *text, size_t capacity, const char *word);

#ifdef __cplusplus
}
#endif
#endif
