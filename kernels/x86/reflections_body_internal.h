/* kernels/x86/reflections_body_internal.h - reflections.h for AVX2 and AVX-512: one text, compiled
 * twice. The 8 lanes of a sum are one vector of AVX-512 and two of AVX2. */
#include "kernels/reflections_internal.h"
#include "kernels/x86/vector_internal.h"

enum {
    UNIT = QB_REFLECTION_LANES, /* elements that are worked on at a time */
    PARTS = 2 * UNIT / LANES,   /* vectors of them */
    TILE = LANES == 16 ? 4 : 2, /* products of so many vectors with so many columns */
    COLUMNS = 4
};

QB_INLINE vd part(const double *x, size_t i, size_t which)
{
    return vd_load(x + i + which * (LANES / 2));
}

/* w[c][k] = v_k x_c for TILE vectors from the k-th on and n_columns <= TILE columns */
QB_INLINE void tile_of_dots(const qb_reflections *r, size_t k, const double *x, size_t stride,
                            size_t n_columns, double w[][QB_REFLECTIONS])
{
    const double *v = r->v + k * r->stride;
    vd sums[TILE][TILE][PARTS];
    for (size_t a = 0; a < TILE; a++)
        for (size_t c = 0; c < n_columns; c++)
            for (size_t p = 0; p < PARTS; p++) sums[a][c][p] = vd_zero();
    for (size_t i = 0; i < r->n; i += UNIT)
        for (size_t p = 0; p < PARTS; p++) {
            vd columns[TILE];
            for (size_t c = 0; c < n_columns; c++) columns[c] = part(x + c * stride, i, p);
            for (size_t a = 0; a < TILE; a++) {
                vd own = part(v + a * r->stride, i, p);
                for (size_t c = 0; c < n_columns; c++)
                    sums[a][c][p] = vd_fma(own, columns[c], sums[a][c][p]);
            }
        }
    for (size_t a = 0; a < TILE; a++)
        for (size_t c = 0; c < n_columns; c++) {
            double lanes[UNIT];
            for (size_t p = 0; p < PARTS; p++) vd_store(lanes + p * (LANES / 2), sums[a][c][p]);
            w[c][k + a] = qb__add_lanes(lanes);
        }
}

/* x_c -= V u_c */
QB_INLINE void subtract(const qb_reflections *r, double u[][QB_REFLECTIONS], double *x,
                        size_t stride, size_t n_columns)
{
    for (size_t i = 0; i < r->n; i += UNIT) {
        vd columns[COLUMNS][PARTS];
        for (size_t c = 0; c < n_columns; c++)
            for (size_t p = 0; p < PARTS; p++) columns[c][p] = part(x + c * stride, i, p);
        for (size_t k = 0; k < QB_REFLECTIONS; k++)
            for (size_t p = 0; p < PARTS; p++) {
                vd own = part(r->v + k * r->stride, i, p);
                for (size_t c = 0; c < n_columns; c++)
                    columns[c][p] = vd_fma(vd_set(-u[c][k]), own, columns[c][p]);
            }
        for (size_t c = 0; c < n_columns; c++)
            for (size_t p = 0; p < PARTS; p++)
                vd_store(x + c * stride + i + p * (LANES / 2), columns[c][p]);
    }
}

/* With a constant n_columns of 1 or COLUMNS all of the above stays in registers. */
QB_INLINE void apply(const qb_reflections *r, double *x, size_t stride, size_t n_columns)
{
    double w[COLUMNS][QB_REFLECTIONS], u[COLUMNS][QB_REFLECTIONS];
    const size_t at_once = n_columns < TILE ? n_columns : TILE;
    for (size_t c = 0; c < n_columns; c += at_once)
        for (size_t k = 0; k < QB_REFLECTIONS; k += TILE)
            tile_of_dots(r, k, x + c * stride, stride, at_once, w + c);
    for (size_t c = 0; c < n_columns; c++) qb__turn_dots(r, w[c], u[c]);
    subtract(r, u, x, stride, n_columns);
}

void QB_ISA(qb__reflections_dots)(const qb_reflections *r, const double *x, double *w)
{
    double dots[1][QB_REFLECTIONS];
    for (size_t k = 0; k < QB_REFLECTIONS; k += TILE) tile_of_dots(r, k, x, 0, 1, dots);
    for (size_t k = 0; k < QB_REFLECTIONS; k++) w[k] = dots[0][k];
}

void QB_ISA(qb__reflections_apply)(const qb_reflections *r, double *columns, size_t stride,
                                   size_t n_columns)
{
    size_t c = 0;
    for (; c + COLUMNS <= n_columns; c += COLUMNS) apply(r, columns + c * stride, stride, COLUMNS);
    for (; c < n_columns; c++) apply(r, columns + c * stride, stride, 1);
}
