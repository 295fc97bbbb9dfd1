/* kernels/reflections_internal.h - the functions of the rows, and what they have in common. */
#ifndef QB_KERNELS_REFLECTIONS_INTERNAL_H
#define QB_KERNELS_REFLECTIONS_INTERNAL_H

#include "kernels/reflections.h"

#include <math.h>

#define QB_REFLECTIONS_DECLARE(isa)                                                                \
    void qb__reflections_dots_##isa(const qb_reflections *r, const double *x, double *w);          \
    void qb__reflections_apply_##isa(const qb_reflections *r, double *columns, size_t stride,      \
                                     size_t n_columns);
QB_REFLECTIONS_DECLARE(ref)
QB_REFLECTIONS_DECLARE(avx2)
QB_REFLECTIONS_DECLARE(avx512)
#undef QB_REFLECTIONS_DECLARE

static inline double qb__add_lanes(const double *s)
{
    return ((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7]));
}

/* u = T w */
static inline void qb__turn_dots(const qb_reflections *r, const double *w, double *u)
{
    for (size_t i = 0; i < QB_REFLECTIONS; i++) {
        const double *t = r->t + i * QB_REFLECTIONS;
        u[i] = 0;
        for (size_t j = 0; j < QB_REFLECTIONS; j++) u[i] = fma(t[j], w[j], u[i]);
    }
}

#endif
