/* kernels/tiling.h - how the products cut their output into tasks: a grid of n_parts spans of
 * panels (of output channels) by m_parts spans of tiles (of tokens).
 *
 * A task goes through its panels tile by tile, so the tokens of a span should stay in the second
 * cache level while the panels pass by: the span's size depends on the shape alone, and the number
 * of spans of panels on the threads. */
#ifndef QB_KERNELS_TILING_H
#define QB_KERNELS_TILING_H

#include <stddef.h>

#define QB_TILING_L2_BYTES                                                                         \
    ((size_t)256 << 10) /* tokens of a span; panels need room beside them                          \
                         */

typedef struct qb_tiling {
    size_t n_panels, n_tiles; /* of the whole product */
    size_t tile_bytes;        /* input of one tile */
} qb_tiling;

typedef struct qb_task_span {
    size_t panel0, panel1, tile0, tile1;
} qb_task_span;

/* Spans of tokens that fit. */
static inline size_t qb_tiling_fewest_m_parts(const qb_tiling *t)
{
    size_t tiles = QB_TILING_L2_BYTES / t->tile_bytes;
    if (tiles < 4) tiles = 4; /* a panel's way from the second level must pay */
    return (t->n_tiles + tiles - 1) / tiles;
}

/* Few tasks where there are few tokens (a task should outlast handing it out), four a thread
 * otherwise, so that the last ones end together. Shorter spans of tokens only where single panels
 * are not tasks enough. */
static inline size_t qb_tiling_n_tasks(const qb_tiling *t, size_t n_threads)
{
    size_t m_parts = qb_tiling_fewest_m_parts(t), want = (t->n_tiles == 1 ? 2 : 4) * n_threads;
    if (n_threads == 1) want = 1;
    if (want <= m_parts * t->n_panels) return m_parts * ((want + m_parts - 1) / m_parts);
    m_parts = (want + t->n_panels - 1) / t->n_panels;
    return t->n_panels * (m_parts < t->n_tiles ? m_parts : t->n_tiles);
}

/* The number of tasks tells which of the two grids it was. */
static inline qb_task_span qb_tiling_span(const qb_tiling *t, size_t i, size_t n_tasks)
{
    size_t m_parts = qb_tiling_fewest_m_parts(t);
    if (n_tasks > m_parts * t->n_panels) m_parts = n_tasks / t->n_panels;
    size_t n_parts = n_tasks / m_parts, n_part = i / m_parts, m_part = i % m_parts;
    return (qb_task_span){t->n_panels * n_part / n_parts, t->n_panels * (n_part + 1) / n_parts,
                          t->n_tiles * m_part / m_parts, t->n_tiles * (m_part + 1) / m_parts};
}

#endif
