/* core/changes.h - where a series of measurements changed its level.
 *
 * A segment is split where the cumulative sum of its ranks, over the deviation that such a sum has
 * by chance, is largest, if that is larger than in all but a few shuffles of the segment; then both
 * parts are searched alike (CUSUM on ranks, after Pettitt 1979, with binary segmentation). Ranks
 * take no harm from outliers. In a series that never changed, a change is found with probability
 * `false_alarms`. The values and the seed alone decide. */
#ifndef QB_CORE_CHANGES_H
#define QB_CORE_CHANGES_H

#include "core/status.h"

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* places[0..*n_places) ascending = the first values after changes; room for n of them. At least 2
 * values stand between two changes. */
qb_status qb_find_changes(const double *x, size_t n, double false_alarms, uint64_t seed,
                          size_t *places, size_t *n_places);

#ifdef __cplusplus
}
#endif
#endif
