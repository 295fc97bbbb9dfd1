/* kernels/max_abs_internal.h - the running maximum of |y| that a product's tasks raise together. */
#ifndef QB_KERNELS_MAX_ABS_INTERNAL_H
#define QB_KERNELS_MAX_ABS_INTERNAL_H

#include "core/dtype.h"

#include <stdint.h>

/* *bits = max(*bits, bits of max_abs), atomically; a non-negative float compares like its bits. */
static inline void qb__raise_max_abs(uint32_t *bits, float max_abs)
{
    uint32_t mine = qb_f32_bits(max_abs), seen = __atomic_load_n(bits, __ATOMIC_RELAXED);
    while (seen < mine &&
           !__atomic_compare_exchange_n(bits, &seen, mine, 1, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
    }
}

#endif
