/* core/phases.h - what the time of a forward pass goes to: the words that the engines' timelines,
 * the records of a profile and its verdict share. */
#ifndef QB_CORE_PHASES_H
#define QB_CORE_PHASES_H

#ifdef __cplusplus
extern "C" {
#endif

typedef enum qb_phase {
    QB_PHASE_EMBEDDING,
    QB_PHASE_NORM,       /* the sum of the residual stream with it */
    QB_PHASE_QUANTISE,   /* floats to the codes of a product's input, scales included */
    QB_PHASE_GEMM,       /* the products of the blocks, with what their epilogues do */
    QB_PHASE_REQUANTISE, /* outputs rounded to codes and back, once their scale is known */
    QB_PHASE_POSITION,   /* rotary positions, keys and values into the cache */
    QB_PHASE_ATTENTION,
    QB_PHASE_ACTIVATION,
    QB_PHASE_HEAD, /* logits of the rows asked for */
    QB_PHASE_COUNT
} qb_phase;
/* "embedding", "norm", ..., as in JSON. */
extern const char *const qb_phase_names[QB_PHASE_COUNT];

/* At what rate a product can go at most: by the type that is multiplied. */
typedef enum qb_rate { QB_RATE_F32, QB_RATE_BF16, QB_RATE_S8, QB_RATE_COUNT } qb_rate;
extern const char *const qb_rate_names[QB_RATE_COUNT]; /* "f32", "bf16", "s8" */

/* The highest speeds measured on a device; NaN = it has none or it was not measured. */
typedef struct qb_peaks {
    double copy_gb_per_s;             /* read + written, far more than the caches hold */
    double read_gb_per_s;             /* read alone, likewise */
    double cache_gb_per_s;            /* read, a quarter of the last cache */
    double cache_bytes;               /* of the last cache; NaN = not known */
    double gops_per_s[QB_RATE_COUNT]; /* 10^9 operations a second of a large product; a
                                         multiply-add is two */
} qb_peaks;

#ifdef __cplusplus
}
#endif
#endif
