/* bench/products.h - what the benchmarks of products share: the name of a case, and weights that
 * one token reads in turn from copies which together exceed the caches. */
#ifndef QB_BENCH_PRODUCTS_H
#define QB_BENCH_PRODUCTS_H

#include "bench/shim.h"

enum {
    QB_BENCH_CHECKED_TOKENS = 3
}; /* the first, whose results setup compares with a plain loop */

typedef struct qb_bench_weights {
    char *packed; /* n_copies, `bytes` apart; owned */
    size_t n_copies, bytes, next;
} qb_bench_weights;
/* Room for packed weights of so many bytes, which the caller puts into ->packed; copies of them for
 * one token (m == 1). */
qb_status qb_bench_weights_make(qb_bench_weights *weights, size_t packed_bytes, size_t m);
/* Fills the copies. */
void qb_bench_weights_repeat(qb_bench_weights *weights);
/* The copy that was not read for the longest time. */
const void *qb_bench_weights_next(qb_bench_weights *weights);
void qb_bench_weights_free(qb_bench_weights *weights);

/* Adds a case of (m, k) times (k, n), which has its functions, params and bytes_per_iter. */
void qb_bench_add_product(qb_bench_case bench_case, const char *row, size_t m, size_t n, size_t k,
                          bool cold);

#endif
