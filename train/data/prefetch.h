/* train/data/prefetch.h - the windows of the next step are made while the present one runs.
 *
 * The tokens are those of qb_batches_fill, whatever is asked for; asking for windows in a row only
 * makes it fast. */
#ifndef QB_TRAIN_DATA_PREFETCH_H
#define QB_TRAIN_DATA_PREFETCH_H

#include "train/data/batches.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct qb_prefetch qb_prefetch;

/* n_windows at a time, `step` windows further each time; batches is borrowed. One thread at a time
 * calls get. */
qb_status qb_prefetch_create(const qb_batches *batches, size_t n_windows, size_t step,
                             qb_prefetch **out);
void qb_prefetch_destroy(qb_prefetch *prefetch); /* accepts NULL */
/* tokens (n_windows, context + 1) from first_window on; borrowed until the next call. The windows
 * a step further are begun with. */
qb_status qb_prefetch_get(qb_prefetch *prefetch, uint64_t first_window, const int32_t **tokens);

#ifdef __cplusplus
}
#endif
#endif
