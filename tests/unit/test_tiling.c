/* tests/unit/test_tiling.c - tasks cover the output once, and there are enough of them. */
#include "support.h"

#include "kernels/tiling.h"

#include <string.h>

enum { MAX_PANELS = 40, MAX_TILES = 300 };

static void check_cover(const qb_tiling *t, size_t n_threads)
{
    static unsigned char seen[MAX_PANELS][MAX_TILES];
    size_t n_tasks = qb_tiling_n_tasks(t, n_threads);
    memset(seen, 0, sizeof seen);
    assert_true(n_tasks >= 1 && n_tasks <= t->n_panels * t->n_tiles);
    for (size_t i = 0; i < n_tasks; i++) {
        qb_task_span s = qb_tiling_span(t, i, n_tasks);
        assert_true(s.panel0 < s.panel1 && s.tile0 < s.tile1);
        for (size_t p = s.panel0; p < s.panel1; p++)
            for (size_t j = s.tile0; j < s.tile1; j++) seen[p][j]++;
    }
    for (size_t p = 0; p < t->n_panels; p++)
        for (size_t j = 0; j < t->n_tiles; j++) assert_int_equal(seen[p][j], 1);
    size_t enough = n_threads == 1 ? 1 : 2 * n_threads;
    size_t most = t->n_panels * t->n_tiles;
    assert_true(n_tasks >= (enough < most ? enough : most) / 2);
}

static void tasks_cover_the_output_once(void **state)
{
    (void)state;
    static const size_t tile_bytes[] = {64, 6912, 98304, 1 << 20};
    for (size_t panels = 1; panels <= MAX_PANELS; panels += 3)
        for (size_t tiles = 1; tiles <= MAX_TILES; tiles = tiles * 2 + 1)
            for (size_t b = 0; b < QB_COUNT(tile_bytes); b++)
                for (size_t n_threads = 1; n_threads <= 256; n_threads *= 2)
                    check_cover(&(qb_tiling){panels, tiles, tile_bytes[b]}, n_threads);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(tasks_cover_the_output_once)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
