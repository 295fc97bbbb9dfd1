/* core/memory.h - allocation that counts and can be told to fail, and checked size arithmetic.
 *
 * All memory is 64-byte aligned, so that kernels may use aligned vector loads. Thread-safe. */
#ifndef QB_CORE_MEMORY_H
#define QB_CORE_MEMORY_H

#include "core/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define QB_ALIGN_BYTES 64

/* *out = n_elems * elem_bytes bytes (at least 1), not cleared. QB_ERR_MEMORY: overflow or no
 * memory; `what` names the object in the message. *out is untouched on failure. */
qb_status qb_alloc(void **out, size_t n_elems, size_t elem_bytes, const char *what);
/* The same, cleared. */
qb_status qb_alloc_zero(void **out, size_t n_elems, size_t elem_bytes, const char *what);
/* Grows *block (from qb_alloc, or NULL) from old_elems to new_elems, keeping the contents. */
qb_status qb_realloc(void **block, size_t old_elems, size_t new_elems, size_t elem_bytes,
                     const char *what);
void qb_free(void *block); /* accepts NULL */
qb_status qb_strdup(char **out, const char *text);
qb_status qb_strndup(char **out, const char *text, size_t n_bytes); /* adds the final NUL */

#define QB_NEW(out, n, what) qb_alloc((void **)(out), (n), sizeof **(out), (what))
#define QB_NEW_ZERO(out, n, what) qb_alloc_zero((void **)(out), (n), sizeof **(out), (what))

/* Blocks of one kind of memory that live equally long; a zeroed list is empty. */
typedef struct qb_blocks {
    void **items; /* owned */
    size_t n, bytes;
} qb_blocks;
typedef qb_status (*qb_allocator)(void **out, size_t n_elems, size_t elem_bytes, const char *what);
/* *out = a block of `allocate`, which the list keeps until qb_blocks_free. */
qb_status qb_blocks_add(qb_blocks *blocks, qb_allocator allocate, size_t n_elems, size_t elem_bytes,
                        const char *what, void **out);
void qb_blocks_free(qb_blocks *blocks, void (*release)(void *block));

/* For libraries with allocator hooks (jansson): counted and told to fail like qb_alloc, but with
 * malloc's alignment and no header, since their blocks are many and small. NULL = no memory. */
void *qb_library_alloc(size_t bytes);
void qb_library_free(void *block); /* accepts NULL */

size_t qb_memory_live_bytes(void); /* what qb_alloc has given and not taken back */
size_t qb_memory_peak_bytes(void); /* the most that ever was */
size_t qb_memory_live_blocks(void);
/* For tests: the n-th allocation from now on fails (1 = the next); 0 = never. */
void qb_memory_fail_at(size_t n);
/* The process's peak resident set in bytes, 0 where unknown. */
size_t qb_process_peak_bytes(void);

/* Checked arithmetic: true = *out holds the exact result; false = it would overflow, *out
 * untouched. */
static inline bool qb_mul_size(size_t a, size_t b, size_t *out)
{
    size_t r;
    if (__builtin_mul_overflow(a, b, &r)) return false;
    *out = r;
    return true;
}
static inline bool qb_add_size(size_t a, size_t b, size_t *out)
{
    size_t r;
    if (__builtin_add_overflow(a, b, &r)) return false;
    *out = r;
    return true;
}
/* Rounds up to a multiple of `multiple`; the caller knows that it cannot overflow. */
static inline size_t qb_round_up(size_t n, size_t multiple)
{
    return (n + multiple - 1) / multiple * multiple;
}
static inline size_t qb_max_size(size_t a, size_t b)
{
    return a > b ? a : b;
}

#ifdef __cplusplus
}
#endif
#endif
