/* tests/tiny_model.h - small random models in memory, one for every flag of the architecture table,
 * and a forward pass in plain double precision to hold the engine against. */
#ifndef QB_TESTS_TINY_MODEL_H
#define QB_TESTS_TINY_MODEL_H

#include "model/model.h"
#include "quant/calibration.h"
#include "quant/schemes.h"

/* Sizes that are odd on purpose: nothing is a multiple of a vector. */
qb_config qb_test_tiny_config(const char *arch);
/* check(configuration, what it shows) for each family and each value of each flag of the
 * architecture table. */
void qb_test_each_tiny_config(void (*check)(const qb_config *config, const char *what));
/* Seeded normal weights (gains near 1), with a few large ones. */
qb_model *qb_test_tiny_model(const qb_config *config, uint64_t seed);
/* logits (batch, n_tokens, V) of equation (1) in model/arch.h, all in double. */
void qb_test_forward(const qb_model *model, const int32_t *tokens, size_t batch, size_t n_tokens,
                     double *logits);
/* Deterministic ids below the vocabulary's size. */
void qb_test_tokens(const qb_config *config, int32_t *tokens, size_t n, uint64_t seed);
/* The row as it is, but with outliers that begin where these models have some. */
qb_scheme qb_test_tiny_scheme(const qb_scheme *row);
/* Maxima that are large enough for these models and clip nothing: calibration without a text. */
qb_calibration *qb_test_constant_calibration(const qb_config *config);

#endif
