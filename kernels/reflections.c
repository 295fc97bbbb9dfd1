/* kernels/reflections.c - the reference of reflections.h, and its table. */
#include "kernels/reflections_internal.h"

enum { LANES = QB_REFLECTION_LANES };

void qb__reflections_dots_ref(const qb_reflections *r, const double *x, double *w)
{
    for (size_t k = 0; k < QB_REFLECTIONS; k++) {
        const double *v = r->v + k * r->stride;
        double sums[LANES] = {0};
        for (size_t i = 0; i < r->n; i++) sums[i % LANES] = fma(v[i], x[i], sums[i % LANES]);
        w[k] = qb__add_lanes(sums);
    }
}

void qb__reflections_apply_ref(const qb_reflections *r, double *columns, size_t stride,
                               size_t n_columns)
{
    for (size_t c = 0; c < n_columns; c++) {
        double *x = columns + c * stride, w[QB_REFLECTIONS], u[QB_REFLECTIONS];
        qb__reflections_dots_ref(r, x, w);
        qb__turn_dots(r, w, u);
        for (size_t i = 0; i < r->n; i++)
            for (size_t k = 0; k < QB_REFLECTIONS; k++)
                x[i] = fma(-u[k], r->v[k * r->stride + i], x[i]);
    }
}

#define ROW(isa, needs)                                                                            \
    {                                                                                              \
        {"reflections/" #isa, "cpu", needs}, qb__reflections_dots_##isa,                           \
            qb__reflections_apply_##isa                                                            \
    }
const qb_reflections_row qb_reflections_kernels[] = {
#ifdef QB_WITH_X86
    ROW(avx512, QB_CPU_AVX512),
    ROW(avx2, QB_CPU_AVX2),
#endif
    ROW(ref, 0),
    {{0}, 0, 0},
};
