/* core/memory.c - counted, 64-byte aligned allocation. Each block is preceded by one aligned header
 * that remembers its size. */
#include "core/memory.h"

#include <malloc.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

typedef struct block_header {
    size_t bytes;
} block_header;

static atomic_size_t live_bytes, peak_bytes, live_blocks, fail_countdown;

static bool told_to_fail(void)
{
    size_t left = atomic_load(&fail_countdown);
    while (left > 0)
        if (atomic_compare_exchange_weak(&fail_countdown, &left, left - 1)) return left == 1;
    return false;
}

static void count_block(size_t bytes)
{
    atomic_fetch_add(&live_blocks, 1);
    size_t live = atomic_fetch_add(&live_bytes, bytes) + bytes;
    size_t peak = atomic_load(&peak_bytes);
    while (live > peak && !atomic_compare_exchange_weak(&peak_bytes, &peak, live)) {
    }
}

qb_status qb_alloc(void **out, size_t n_elems, size_t elem_bytes, const char *what)
{
    size_t bytes, total;
    if (!qb_mul_size(n_elems, elem_bytes, &bytes) ||
        !qb_add_size(bytes, 2 * QB_ALIGN_BYTES, &total) || told_to_fail())
        return QB_FAIL(QB_ERR_MEMORY, "%s: cannot allocate %zu x %zu bytes", what, n_elems,
                       elem_bytes);
    char *raw = aligned_alloc(QB_ALIGN_BYTES, qb_round_up(bytes + QB_ALIGN_BYTES, QB_ALIGN_BYTES));
    if (!raw) return QB_FAIL(QB_ERR_MEMORY, "%s: cannot allocate %zu bytes", what, bytes);
    ((block_header *)raw)->bytes = bytes;
    count_block(bytes);
    *out = raw + QB_ALIGN_BYTES;
    return QB_OK;
}

qb_status qb_alloc_zero(void **out, size_t n_elems, size_t elem_bytes, const char *what)
{
    QB_TRY(qb_alloc(out, n_elems, elem_bytes, what));
    memset(*out, 0, n_elems * elem_bytes);
    return QB_OK;
}

qb_status qb_realloc(void **block, size_t old_elems, size_t new_elems, size_t elem_bytes,
                     const char *what)
{
    void *bigger;
    QB_TRY(qb_alloc(&bigger, new_elems, elem_bytes, what));
    size_t keep = old_elems < new_elems ? old_elems : new_elems;
    if (*block && keep) memcpy(bigger, *block, keep * elem_bytes);
    qb_free(*block);
    *block = bigger;
    return QB_OK;
}

void qb_free(void *block)
{
    if (!block) return;
    char *raw = (char *)block - QB_ALIGN_BYTES;
    atomic_fetch_sub(&live_bytes, ((block_header *)raw)->bytes);
    atomic_fetch_sub(&live_blocks, 1);
    free(raw);
}

qb_status qb_blocks_add(qb_blocks *b, qb_allocator allocate, size_t n_elems, size_t elem_bytes,
                        const char *what, void **out)
{
    void *block;
    QB_TRY(qb_realloc((void **)&b->items, b->n, b->n + 1, sizeof *b->items, what));
    QB_TRY(allocate(&block, n_elems, elem_bytes, what));
    b->items[b->n++] = block;
    b->bytes += n_elems * elem_bytes;
    *out = block;
    return QB_OK;
}

void qb_blocks_free(qb_blocks *b, void (*release)(void *block))
{
    for (size_t i = 0; i < b->n; i++) release(b->items[i]);
    qb_free(b->items);
    *b = (qb_blocks){0};
}

void *qb_library_alloc(size_t bytes)
{
    void *block = told_to_fail() ? NULL : malloc(bytes);
    if (block) count_block(malloc_usable_size(block));
    return block;
}

void qb_library_free(void *block)
{
    if (!block) return;
    atomic_fetch_sub(&live_bytes, malloc_usable_size(block));
    atomic_fetch_sub(&live_blocks, 1);
    free(block);
}

qb_status qb_strndup(char **out, const char *text, size_t n_bytes)
{
    char *copy;
    QB_TRY(qb_alloc((void **)&copy, n_bytes + 1, 1, "string"));
    memcpy(copy, text, n_bytes);
    copy[n_bytes] = 0;
    *out = copy;
    return QB_OK;
}

qb_status qb_strdup(char **out, const char *text)
{
    return qb_strndup(out, text, strlen(text));
}

size_t qb_memory_live_bytes(void)
{
    return atomic_load(&live_bytes);
}

size_t qb_memory_peak_bytes(void)
{
    return atomic_load(&peak_bytes);
}

size_t qb_memory_live_blocks(void)
{
    return atomic_load(&live_blocks);
}

void qb_memory_fail_at(size_t n)
{
    atomic_store(&fail_countdown, n);
}

size_t qb_process_peak_bytes(void)
{
    struct rusage usage;
    if (getrusage(RUSAGE_SELF, &usage)) return 0;
    return (size_t)usage.ru_maxrss * 1024;
}
