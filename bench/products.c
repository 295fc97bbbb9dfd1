/* bench/products.c - see products.h. */
#include "bench/products.h"

#include "core/memory.h"

#include <stdio.h>
#include <string.h>

enum { COLD_BYTES = 192 << 20 }; /* more than the last cache of the processors at hand */

qb_status qb_bench_weights_make(qb_bench_weights *w, size_t packed_bytes, size_t m)
{
    w->bytes = qb_round_up(packed_bytes, QB_ALIGN_BYTES);
    w->n_copies = m == 1 ? COLD_BYTES / w->bytes + 1 : 1;
    return QB_NEW(&w->packed, w->n_copies * w->bytes, "packed weights");
}

void qb_bench_weights_repeat(qb_bench_weights *w)
{
    for (size_t i = 1; i < w->n_copies; i++) memcpy(w->packed + i * w->bytes, w->packed, w->bytes);
}

const void *qb_bench_weights_next(qb_bench_weights *w)
{
    const char *packed = w->packed + w->next * w->bytes;
    w->next = (w->next + 1) % w->n_copies;
    return packed;
}

void qb_bench_weights_free(qb_bench_weights *w)
{
    qb_free(w->packed);
}

void qb_bench_add_product(qb_bench_case c, const char *row, size_t m, size_t n, size_t k, bool cold)
{
    c.ops_per_iter = 2.0 * (double)m * (double)n * (double)k;
    snprintf(c.name, sizeof c.name, "%s%s/M:%zu/N:%zu/K:%zu", row, cold ? "/cold" : "", m, n, k);
    qb_bench_name_threads(&c);
    qb_bench_add(&c);
}
