/* core/library.h - shared libraries found when the program runs.
 *
 * Nothing is linked: such libraries are large, or versioned by rules of their own, or absent on
 * machines that do well without them. What needs one says that it is missing, and the rest works.
 */
#ifndef QB_CORE_LIBRARY_H
#define QB_CORE_LIBRARY_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct qb_library_entry {
    const char *name;
    void *slot; /* of the function's pointer */
} qb_library_entry;

/* Opens the first of the names in the first of the folders that has it (NULL is passed over, "" is
 * where the loader looks) and fills all slots. NULL = done, else the first name or entry that is
 * missing. */
const char *qb_library_load(const char *const *folders, size_t n_folders, const char *const *names,
                            size_t n_names, const qb_library_entry *entries, size_t n_entries);

#ifdef __cplusplus
}
#endif
#endif
