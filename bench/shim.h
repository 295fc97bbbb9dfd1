/* bench/shim.h - Google Benchmark for C: a case is a name, a set-up, one call to time, a tear-down.
 *
 * Times are those of a warm call unless the name says cold. */
#ifndef QB_BENCH_SHIM_H
#define QB_BENCH_SHIM_H

#include "core/status.h"
#include "core/threads.h"

#include <stdbool.h>
#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Each file of benchmarks, bench_<name>.c, registers its cases in qb_bench_<name>(). */
#define QB_BENCH_FILES(X)                                                                          \
    X(memory) X(gemm_s8) X(gemm_u4) X(quantize) X(gemm_f32) X(attention) X(pointwise)
/* bench/cuda/bench_<name>.c, in a build with CUDA. */
#ifdef QB_WITH_CUDA
#define QB_BENCH_CUDA_FILES(X)                                                                     \
    X(pointwise_cuda) X(gemm_s8_cuda) X(gemm_u4_cuda) X(attention_cuda) X(attention_train_cuda)
#else
#define QB_BENCH_CUDA_FILES(X)
#endif
#define X(name) void qb_bench_##name(void);
QB_BENCH_FILES(X)
QB_BENCH_CUDA_FILES(X)
#undef X

enum { QB_BENCH_NAME_CHARS = 128, QB_BENCH_PARAMS_BYTES = 64 };

typedef struct qb_bench_case {
    char name[QB_BENCH_NAME_CHARS];
    char params[QB_BENCH_PARAMS_BYTES]; /* a struct of the file's own, for setup */
    size_t n_threads;                   /* size of the pool */
    size_t state_bytes; /* of the state that the next three share, zeroed at first */
    /* Makes what run needs and checks its result once; a failure skips the case with the message.
     * pool: NULL for one thread. With on_gpu the first GPU is in use. */
    qb_status (*setup)(void *state, const void *params, qb_pool *pool);
    void (*run)(void *state); /* the call and nothing else */
    void (*teardown)(
        void *state); /* frees what setup made, all or a part; NULL = nothing to free */
    double ops_per_iter, bytes_per_iter; /* 0 = not reported */
    double floor_s; /* what the machine's limits allow, to report its share of the time; 0 = not */
    bool on_gpu;    /* run queues work on the default stream of the current GPU, which is timed */
    bool cold;      /* on_gpu: the L2 cache is emptied before each call */
} qb_bench_case;

/* Copies the case. */
void qb_bench_add(const qb_bench_case *bench_case);

/* Appends "/threads:N" to the name where N > 1. */
void qb_bench_name_threads(qb_bench_case *bench_case);

#ifdef __cplusplus
}
#endif
#endif
