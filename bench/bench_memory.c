/* bench/bench_memory.c - plain streaming reads: the bandwidth that a decode step can hope for. */
#include "bench/shapes.h"
#include "bench/shim.h"

#include "core/memory.h"

#include <stdio.h>
#include <string.h>

enum { BUFFER_BYTES = 256 << 20, PART_BYTES = 1 << 20 };

typedef struct memory_state {
    qb_pool *pool;
    uint64_t *data;
    uint64_t sums[BUFFER_BYTES / PART_BYTES];
} memory_state;

static void read_part(void *context, size_t i, size_t thread_idx)
{
    memory_state *s = context;
    const uint64_t *p = s->data + i * (PART_BYTES / sizeof *p);
    uint64_t sum[8] = {0};
    (void)thread_idx;
    for (size_t j = 0; j < PART_BYTES / sizeof *p; j += 8)
        for (size_t l = 0; l < 8; l++) sum[l] ^= p[j + l];
    for (size_t l = 0; l < 8; l++) s->sums[i] ^= sum[l]; /* used, so that no read can be dropped */
}

static void memory_run(void *state)
{
    memory_state *s = state;
    qb_parallel_for(s->pool, BUFFER_BYTES / PART_BYTES, read_part, s);
}

static void memory_teardown(void *state)
{
    memory_state *s = state;
    qb_free(s->data);
}

static qb_status memory_setup(void *state, const void *params, qb_pool *pool)
{
    memory_state *s = state;
    (void)params;
    s->pool = pool;
    QB_TRY(QB_NEW(&s->data, BUFFER_BYTES / sizeof *s->data, "benchmark buffer"));
    memset(s->data, 1, BUFFER_BYTES);
    return QB_OK;
}

void qb_bench_memory(void)
{
    for (const size_t *threads = qb_thread_counts(); *threads; threads++) {
        qb_bench_case c = {.name = "memory/read/cold",
                           .n_threads = *threads,
                           .state_bytes = sizeof(memory_state),
                           .setup = memory_setup,
                           .run = memory_run,
                           .teardown = memory_teardown,
                           .bytes_per_iter = BUFFER_BYTES};
        qb_bench_name_threads(&c);
        qb_bench_add(&c);
    }
}
