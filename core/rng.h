/* core/rng.h - counter-based random numbers (Philox4x32-10, Salmon et al. 2011, "Parallel random
 * numbers: as easy as 1, 2, 3"): a number depends on (seed, stream, index) and on nothing else, so
 * results are the same at any parallelism. */
#ifndef QB_CORE_RNG_H
#define QB_CORE_RNG_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Streams in use, so that no two purposes share numbers. */
typedef enum qb_rng_stream {
    QB_STREAM_WEIGHTS = 1, /* + tensor index in the high half */
    QB_STREAM_BOOTSTRAP = 2,
    QB_STREAM_SAMPLER = 3,
    QB_STREAM_DATA = 4, /* + epoch in the high half */
    QB_STREAM_TEST = 5,
    QB_STREAM_BB = 6,
    QB_STREAM_ROTATION = 7, /* + parameter and axis in the high half */
    QB_STREAM_PERMUTATION = 8,
} qb_rng_stream;

/* The four words of block `index`. */
void qb_philox(uint64_t seed, uint64_t stream, uint64_t index, uint32_t out[4]);
uint32_t qb_rng_u32(uint64_t seed, uint64_t stream, uint64_t index);
/* Uniform in [0, n), n >= 1 (multiply-shift; bias below n / 2^64). */
uint64_t qb_rng_below(uint64_t seed, uint64_t stream, uint64_t index, uint64_t n);
/* Uniform in [0, 1), 53 bits. */
double qb_rng_double(uint64_t seed, uint64_t stream, uint64_t index);
/* dst[i] = standard_deviation * N(0, 1), number i of the stream counted from `first` (Box-Muller).
 */
void qb_rng_normal_f32(uint64_t seed, uint64_t stream, uint64_t first, size_t n,
                       float standard_deviation, float *dst);

#ifdef __cplusplus
}
#endif
#endif
