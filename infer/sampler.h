/* infer/sampler.h - the next token from a row of logits.
 *
 *     p[i] = exp((x[i] - max x) / temperature) / sum                                           (1)
 *
 * temperature 0 takes the largest logit (lowest index at ties). top_p < 1 keeps the likeliest
 * tokens whose probabilities first reach top_p together (Holtzman et al. 2020, nucleus sampling).
 * Draw n depends on (seed, n) and the logits alone. NaN counts as -inf. */
#ifndef QB_INFER_SAMPLER_H
#define QB_INFER_SAMPLER_H

#include "core/status.h"

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct qb_sampler_options {
    double temperature; /* >= 0 */
    double top_p;       /* in [0, 1]; 1 keeps all, 0 the likeliest alone */
    uint64_t seed;
} qb_sampler_options;

typedef struct qb_sampler qb_sampler;
/* The options are copied and were checked before (cli/options.c); only memory can fail. */
qb_status qb_sampler_create(size_t vocab, const qb_sampler_options *options, qb_sampler **out);
void qb_sampler_destroy(qb_sampler *sampler); /* accepts NULL */
/* logits (vocab). Never allocates. */
int32_t qb_sampler_next(qb_sampler *sampler, const float *logits);

#ifdef __cplusplus
}
#endif
#endif
