/* tests/unit/test_optimizers.c - the element-wise rules against their formulas in double, and the
 * orthogonal bases. */
#include "support.h"

#include "core/memory.h"
#include "train/optimizers.h"
#include "train/rotation.h"

#include <math.h>
#include <string.h>

enum { N = 37, STEPS = 5 };

/* (2) to (4) of optimizers.h, one element. */
static double delta_of(const qb_optimizer *o, const qb_optimizer_settings *s, double g, double *m,
                       double *v, int t)
{
    switch (o->rule) {
    case QB_RULE_ADAM:
        *m = s->beta1 * *m + (1 - s->beta1) * g;
        *v = s->beta2 * *v + (1 - s->beta2) * g * g;
        return *m / (1 - pow(s->beta1, t)) / (sqrt(*v / (1 - pow(s->beta2, t))) + s->eps);
    case QB_RULE_RMSPROP:
        *v = s->beta2 * *v + (1 - s->beta2) * g * g;
        return g / (sqrt(*v) + s->eps);
    default:
        *m = s->momentum * *m + g;
        return *m;
    }
}

static void rules_follow_their_formulas(void **state)
{
    (void)state;
    for (const qb_optimizer *o = qb_optimizers; o->name; o++) {
        float m[N] = {0}, v[N] = {0}, g[N], delta[N];
        double want_m[N] = {0}, want_v[N] = {0};
        assert_ptr_equal(qb_optimizer_find(o->name), o);
        for (int t = 1; t <= STEPS; t++) {
            qb_update u = qb_update_make(o, &o->defaults, o->lr, (uint64_t)t, 0.5);
            assert_true(fabs((double)u.lr / o->lr - 1) < 1e-7);
            qb_test_fill_f32(g, N, (uint64_t)t);
            qb_update_delta(&u, N, g, o->n_states > (o->rule == QB_RULE_RMSPROP) ? m : NULL,
                            o->rule == QB_RULE_SGD ? NULL : v, delta);
            for (size_t i = 0; i < N; i++) {
                double want =
                    delta_of(o, &o->defaults, 0.5 * (double)g[i], &want_m[i], &want_v[i], t);
                if (!(fabs((double)delta[i] - want) <=
                      1e-6 * (fabs(want) + 1))) /* sums may cancel */
                    fail_msg("%s step %d: %g, not %g", o->name, t, (double)delta[i], want);
            }
        }
    }
    assert_null(qb_optimizer_find("adamax"));
}

/* ---- bases ---- */

static const qb_param some_param = {.role = QB_ROLE_QKV, .layer_idx = 3};

static float *basis(qb_rotation rotation, const qb_param *param, size_t axis, size_t n)
{
    float *q;
    QB_CHECK_OK(QB_NEW(&q, n * n, "basis"));
    QB_CHECK_OK(qb_rotation_fill(&rotation, param, axis, n, q));
    return q;
}

static double worst_product(const float *q, size_t n) /* of q q^T - 1 */
{
    double worst = 0;
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j < n; j++) {
            double sum = i == j ? -1 : 0;
            for (size_t k = 0; k < n; k++) sum += (double)q[i * n + k] * (double)q[j * n + k];
            worst = fmax(worst, fabs(sum));
        }
    return worst;
}

static void bases_are_orthogonal(void **state)
{
    (void)state;
    static const size_t sizes[] = {1, 2, 3, 10, 64, 96, 130};
    for (int kind = 0; kind < QB_ROTATION_COUNT; kind++)
        for (size_t i = 0; i < QB_COUNT(sizes); i++) {
            qb_rotation r = {.kind = (qb_rotation_kind)kind, .block_elems = 24, .seed = 9};
            float *q = basis(r, &some_param, 1, sizes[i]);
            assert_true(worst_product(q, sizes[i]) < 5e-7);
            qb_free(q);
        }
}

static void bases_depend_on_their_recipe_alone(void **state)
{
    (void)state;
    enum { SIZE = 24, BYTES = SIZE * SIZE * sizeof(float) };
    for (int kind = 0; kind < QB_ROTATION_COUNT; kind++) {
        qb_rotation r = {.kind = (qb_rotation_kind)kind, .block_elems = 8, .seed = 9}, s = r;
        qb_param other = some_param;
        other.layer_idx++;
        s.seed++;
        float *q = basis(r, &some_param, 0, SIZE), *same = basis(r, &some_param, 0, SIZE);
        float *seed = basis(s, &some_param, 0, SIZE), *layer = basis(r, &other, 0, SIZE),
              *axis = basis(r, &some_param, 1, SIZE);
        assert_memory_equal(q, same, BYTES);
        assert_memory_not_equal(q, seed, BYTES);
        assert_memory_not_equal(q, layer, BYTES);
        assert_memory_not_equal(q, axis, BYTES);
        float *const all[] = {q, same, seed, layer, axis};
        for (size_t i = 0; i < QB_COUNT(all); i++) qb_free(all[i]);
    }
}

/* What reflections one after the other, in plain C, gave: a run that is resumed needs the same. */
static void haar_stays_what_it_was(void **state)
{
    (void)state;
    static const struct {
        size_t n;
        double first, middle, last;
    } known[] = {{1, -1, -1, -1},
                 {3, -0.892794192, 0.859422326, 0.965781093},
                 {10, -0.569901228, -0.143786788, -0.0915857553},
                 {33, -0.273057669, 0.328320593, -0.123040542},
                 {96, -0.14728114, 0.071383737, -0.0133402748},
                 {130, -0.124725208, -0.0598247312, -0.14360413}};
    for (size_t i = 0; i < QB_COUNT(known); i++) {
        const size_t n = known[i].n;
        float *q = basis((qb_rotation){.seed = 9}, &some_param, 1, n);
        assert_true(fabs((double)q[0] - known[i].first) < 1e-7);
        assert_true(fabs((double)q[n * n / 2] - known[i].middle) < 1e-7);
        assert_true(fabs((double)q[n * n - 1] - known[i].last) < 1e-7);
        qb_free(q);
    }
}

/* Without the signs of R's diagonal, a Householder Q has q[0][0] of one sign. An entry of a Haar
 * matrix has mean 0 and variance 1 / n. */
static void haar_is_unbiased(void **state)
{
    (void)state;
    enum { SIZE = 4, DRAWS = 400 };
    double sum[SIZE] = {0}, squares = 0;
    for (uint64_t seed = 0; seed < DRAWS; seed++) {
        float *q = basis((qb_rotation){.seed = seed}, &some_param, 0, SIZE);
        for (size_t i = 0; i < SIZE; i++) sum[i] += (double)q[i * SIZE + i] / DRAWS;
        squares += pow((double)q[1], 2) / DRAWS;
        qb_free(q);
    }
    for (size_t i = 0; i < SIZE; i++) assert_true(fabs(sum[i]) < 4 * 0.5 / sqrt(DRAWS));
    assert_true(fabs(squares - 0.25) < 0.05);
}

static void shapes_of_blocks_and_hadamard(void **state)
{
    (void)state;
    float *q =
        basis((qb_rotation){.kind = QB_ROTATION_BLOCK, .block_elems = 4}, &some_param, 0, 10);
    for (size_t i = 0; i < 10; i++)
        for (size_t j = 0; j < 10; j++) assert_true((q[i * 10 + j] == 0) == (i / 4 != j / 4));
    qb_free(q);
    q = basis((qb_rotation){.kind = QB_ROTATION_HADAMARD}, &some_param, 0, 16);
    size_t negative = 0;
    for (size_t i = 0; i < 256; i++) {
        assert_true(fabsf(q[i]) == 0.25f);
        negative += q[i] < 0;
    }
    assert_true(negative > 64 && negative < 192);
    qb_free(q);
    float one;
    assert_int_equal(
        qb_rotation_fill(&(qb_rotation){.kind = QB_ROTATION_BLOCK}, &some_param, 0, 1, &one),
        QB_ERR_USAGE);
    assert_int_equal(
        qb_rotation_fill(&(qb_rotation){0}, &some_param, 0, QB_ROTATION_MAX_AXIS + 1, &one),
        QB_ERR_SHAPE);
}

/* The fast transform is the product with the matrix, and back its inverse. */
static void hadamard_is_fast_and_the_same(void **state)
{
    (void)state;
    enum { LANES = QB_HADAMARD_LANES, MOST = 96 };
    static const size_t sizes[] = {1, 2, 3, 16, 24, 96, 75};
    const qb_rotation r = {.kind = QB_ROTATION_HADAMARD, .seed = 8};
    for (size_t s = 0; s < QB_COUNT(sizes); s++) {
        size_t n = sizes[s];
        float *q = basis(r, &some_param, 1, n), from[MOST * LANES], x[MOST * LANES];
        float scratch[MOST * LANES];
        qb_hadamard h;
        QB_CHECK_OK(qb_hadamard_create(&r, &some_param, 1, n, &h));
        qb_test_fill_f32(from, n * LANES, 1);
        memcpy(x, from, n * LANES * sizeof *x);
        qb_hadamard_turn(&h, false, x, scratch);
        for (size_t i = 0; i < n * LANES; i++) {
            double want = 0;
            for (size_t k = 0; k < n; k++)
                want += (double)q[i / LANES * n + k] * (double)from[k * LANES + i % LANES];
            assert_true(fabs((double)x[i] - want) < 1e-5);
        }
        qb_hadamard_turn(&h, true, x, scratch);
        assert_true(qb_test_max_diff(x, from, n * LANES, NULL) < 1e-5);
        qb_hadamard_destroy(&h);
        qb_free(q);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rules_follow_their_formulas),
        cmocka_unit_test(bases_are_orthogonal),
        cmocka_unit_test(bases_depend_on_their_recipe_alone),
        cmocka_unit_test(haar_stays_what_it_was),
        cmocka_unit_test(haar_is_unbiased),
        cmocka_unit_test(shapes_of_blocks_and_hadamard),
        cmocka_unit_test(hadamard_is_fast_and_the_same),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
