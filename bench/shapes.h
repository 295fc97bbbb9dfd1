/* bench/shapes.h - the linear layers that the benchmarks time, by the models they come from. */
#ifndef QB_BENCH_SHAPES_H
#define QB_BENCH_SHAPES_H

#include <stddef.h>

typedef struct qb_layer_shape {
    const char *name; /* NULL ends the list */
    size_t n, k;      /* output and input channels */
} qb_layer_shape;
extern const qb_layer_shape qb_layer_shapes[];

/* Numbers of tokens: a decode step, a small batch, a prompt; 0 ends the list. */
extern const size_t qb_token_counts[];

/* Numbers of threads: 1, and all that the process may use where there are more; 0 ends the list. */
const size_t *qb_thread_counts(void);

#endif
