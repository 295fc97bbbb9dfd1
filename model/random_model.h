/* model/random_model.h - seeded random models in the paper's sizes, for timing: `convert --random`.
 *
 * Their text is noise. They have a tokenizer of single bytes and an end-of-text token, so that
 * every verb runs on them. */
#ifndef QB_MODEL_RANDOM_MODEL_H
#define QB_MODEL_RANDOM_MODEL_H

#include "core/threads.h"
#include "model/model.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct qb_random_preset {
    const char *name; /* "gpt2-130m"; NULL ends the table */
    const char *arch;
    size_t n_layers, d_model, n_heads, d_ff, vocab, context;
} qb_random_preset;
extern const qb_random_preset qb_random_presets[];

/* The model of that name: matrices in bf16, normal with standard deviation 0.02, those that write
 * into the residual stream divided by sqrt(2 n_layers) (Radford et al. 2019); gains 1. The same
 * bits for a seed at any number of threads; pool NULL = this thread. QB_ERR_USAGE: no such preset
 * (the message lists them). */
qb_status qb_random_model(const char *preset, uint64_t seed, qb_pool *pool, qb_model **out);

#ifdef __cplusplus
}
#endif
#endif
