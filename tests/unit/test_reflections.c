/* tests/unit/test_reflections.c - every row of reflections.h against the reference, bit for bit,
 * and the reference against reflections one after the other. */
#include "support.h"

#include "kernels/reflections.h"

#include <math.h>
#include <string.h>

enum { M = QB_REFLECTIONS, MOST = 136, COLUMNS = 9 };

typedef struct fixture {
    size_t n, stride;
    double v[M * (MOST + 8)], t[M * M], x[COLUMNS * MOST];
} fixture;

static void fill(double *x, size_t n, uint64_t seed)
{
    float some[MOST * M];
    qb_test_fill_f32(some, n, seed);
    for (size_t i = 0; i < n; i++) x[i] = (double)some[i];
}

/* Vectors of norm 1 and their T; those past `used` are numbers that T does not look at. */
static fixture make(size_t n, size_t used)
{
    fixture f = {.n = n, .stride = n + 8};
    for (size_t k = 0; k < M; k++) {
        double *v = f.v + k * f.stride, squares = 0;
        fill(v, n, k + 1);
        for (size_t i = 0; i < n; i++) squares += v[i] * v[i];
        for (size_t i = 0; i < n; i++) v[i] /= sqrt(squares);
    }
    for (size_t k = 0; k < used; k++) {
        f.t[k * M + k] = 2;
        for (size_t j = 0; j < k; j++) {
            double w = 0;
            for (size_t i = 0; i < n; i++) w += f.v[j * f.stride + i] * f.v[k * f.stride + i];
            for (size_t i = 0; i <= j; i++) f.t[i * M + k] -= 2 * f.t[i * M + j] * w;
        }
    }
    fill(f.x, COLUMNS * n, 99);
    return f;
}

static qb_reflections of(const fixture *f)
{
    return (qb_reflections){.n = f->n, .v = f->v, .stride = f->stride, .t = f->t};
}

static const qb_reflections_row *reference(void)
{
    const qb_reflections_row *row = qb_reflections_kernels;
    while (row[1].info.name) row++;
    return row;
}

static void reference_is_one_after_the_other(void **state)
{
    (void)state;
    static const size_t used[] = {0, 1, 5, M};
    for (size_t u = 0; u < QB_COUNT(used); u++) {
        fixture f = make(40, used[u]);
        const qb_reflections r = of(&f);
        double want[COLUMNS * MOST];
        memcpy(want, f.x, sizeof want);
        for (size_t c = 0; c < COLUMNS; c++)
            for (size_t k = used[u]; k-- > 0;) {
                double *x = want + c * f.n, dot = 0;
                const double *v = f.v + k * f.stride;
                for (size_t i = 0; i < f.n; i++) dot += v[i] * x[i];
                for (size_t i = 0; i < f.n; i++) x[i] -= 2 * dot * v[i];
            }
        reference()->apply(&r, f.x, f.n, COLUMNS);
        for (size_t i = 0; i < COLUMNS * f.n; i++) assert_true(fabs(f.x[i] - want[i]) < 1e-13);
    }
}

static void rows_have_the_same_bits(void **state)
{
    (void)state;
    static const size_t sizes[] = {8, 16, 24, 136};
    for (const qb_reflections_row *row = qb_reflections_kernels; row->info.name; row++) {
        if (qb_kernel_refusal(&row->info)) continue;
        for (size_t s = 0; s < QB_COUNT(sizes); s++)
            for (size_t columns = 0; columns <= COLUMNS; columns++) {
                fixture f = make(sizes[s], M), g = f;
                const qb_reflections r = of(&f);
                double dots[M], want[M];
                row->dots(&r, f.x, dots);
                reference()->dots(&r, f.x, want);
                assert_memory_equal(dots, want, sizeof want);
                row->apply(&r, f.x, f.n, columns);
                reference()->apply(&r, g.x, g.n, columns);
                assert_memory_equal(f.x, g.x, sizeof g.x);
            }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reference_is_one_after_the_other),
        cmocka_unit_test(rows_have_the_same_bits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
