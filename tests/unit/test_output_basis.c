/* tests/unit/test_output_basis.c - rotation to singular vectors, and the kurtosis of outputs in
 * given bases against plain loops in double. */
#include "support.h"
#include "tiny_model.h"

#include "core/memory.h"
#include "core/moments.h"
#include "infer/output_basis.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static void rotated_columns_are_orthogonal(void **state)
{
    (void)state;
    enum { ROWS = 12, COLS = 20 }; /* more columns than the rank: eight become zero */
    float x[ROWS * COLS];
    double y[ROWS * COLS], before = 0, after = 0;
    qb_test_fill_f32(x, ROWS * COLS, 3);
    for (size_t i = 0; i < ROWS * COLS; i++) {
        y[i] = x[i];
        before += y[i] * y[i];
    }
    qb_rotate_to_singular(y, ROWS, COLS);
    size_t n_zero = 0;
    for (size_t a = 0; a < COLS; a++) {
        double norm = 0;
        for (size_t i = 0; i < ROWS; i++) norm += y[a * ROWS + i] * y[a * ROWS + i];
        n_zero += norm < 1e-18 * before;
        after += norm;
        for (size_t b = 0; b < a; b++) {
            double dot = 0;
            for (size_t i = 0; i < ROWS; i++) dot += y[a * ROWS + i] * y[b * ROWS + i];
            assert_true(fabs(dot) < 1e-10 * before);
        }
    }
    assert_int_equal(n_zero, COLS - ROWS);
    assert_true(fabs(after - before) < 1e-10 * before);
    /* Lengths of rows stay, since V is orthogonal. */
    for (size_t i = 0; i < ROWS; i++) {
        double row[2] = {0};
        for (size_t c = 0; c < COLS; c++) {
            row[0] += (double)x[c * ROWS + i] * x[c * ROWS + i];
            row[1] += y[c * ROWS + i] * y[c * ROWS + i];
        }
        assert_true(fabs(row[0] - row[1]) < 1e-10 * before);
    }
}

enum { BATCH = 2, TOKENS = 11, M = BATCH * TOKENS };

typedef struct rig {
    const qb_config *c;
    float *q;    /* (C, C), orthogonal and not symmetric */
    float *seen; /* (M, C) of the first layer's attention */
} rig;

static qb_status fill(void *context, qb_role role, size_t layer, float *q, bool *found)
{
    const rig *r = context;
    *found = layer == 0 && role == QB_ROLE_O;
    memcpy(q, r->q, r->c->d_model * r->c->d_model * sizeof *q);
    return QB_OK;
}

static qb_status see(void *context, const qb_tap_view *v)
{
    const rig *r = context;
    if (v->layer == 0 && v->role == QB_ROLE_O)
        memcpy(r->seen, v->x, M * r->c->d_model * sizeof *v->x);
    return QB_OK;
}

/* Givens rotations of neighbours, one after the other. */
static void fill_q(float *q, size_t n)
{
    for (size_t i = 0; i < n * n; i++) q[i] = i % (n + 1) == 0;
    for (size_t j = 0; j + 1 < n; j++)
        for (size_t row = 0; row < n; row++) {
            float *a = q + row * n + j, *b = a + 1, x = *a;
            *a = 0.8f * x - 0.6f * *b;
            *b = 0.6f * x + 0.8f * *b;
        }
}

static double plain(const rig *r, bool transposed, bool rest)
{
    size_t n = r->c->d_model;
    double sum = 0, count = 0;
    for (size_t row = 0; row < M; row++) {
        qb_moments m = {0};
        if ((row % TOKENS > 0) != rest) continue;
        for (size_t c = 0; c < n; c++) {
            double y = 0;
            for (size_t k = 0; k < n; k++)
                y += (double)r->seen[row * n + k] * r->q[transposed ? c * n + k : k * n + c];
            qb_moments_add(&m, y);
        }
        sum += qb_moments_kurtosis(&m);
        count++;
    }
    return sum / count;
}

static double said(const json_t *list, size_t i, const char *basis, const char *tokens)
{
    const json_t *value = json_object_get(json_object_get(json_array_get(list, i), basis), tokens);
    return json_is_number(value) ? json_number_value(value) : NAN;
}

static void kurtosis_in_given_bases(void **state)
{
    (void)state;
    const qb_config config = qb_test_tiny_config("gpt2");
    size_t n = config.d_model;
    qb_model *model = qb_test_tiny_model(&config, 8);
    rig r = {
        .c = &config, .q = malloc(n * n * sizeof(float)), .seen = malloc(M * n * sizeof(float))};
    const qb_taps taps = {.sees = QB_TAP_BIT(QB_TAP_ADDED), .see = see, .context = &r};
    int32_t tokens[M];
    qb_backbone *backbone;
    qb_engine *e;
    qb_output_basis *basis;
    json_t *list;
    qb_test_tokens(&config, tokens, M, 4);
    fill_q(r.q, n);
    QB_CHECK_OK(qb_backbone_create(model, &(qb_backbone_options){.max_tokens = M}, &backbone));
    QB_CHECK_OK(
        qb_engine_create(backbone, &(qb_engine_options){.scheme = qb_scheme_find("full")}, &e));
    QB_CHECK_OK(qb_output_basis_create(&config, M, NULL, fill, &r, &basis));
    QB_CHECK_OK(qb_engine_observe(e, &taps));
    QB_CHECK_OK(qb_engine_prefill(e, tokens, BATCH, TOKENS));
    QB_CHECK_OK(qb_engine_observe(e, qb_output_basis_taps(basis)));
    QB_CHECK_OK(qb_engine_prefill(e, tokens, BATCH, TOKENS));
    QB_CHECK_OK(qb_output_basis_to_json(basis, &list));
    assert_int_equal(json_array_size(list), 2 * config.n_layers);
    for (int rest = 0; rest < 2; rest++) {
        const char *which = rest ? "rest" : "first";
        assert_true(fabs(said(list, 0, "q", which) - plain(&r, false, rest)) < 1e-4);
        assert_true(fabs(said(list, 0, "qt", which) - plain(&r, true, rest)) < 1e-4);
        assert_true(fabs(said(list, 0, "q", which) - said(list, 0, "qt", which)) > 1e-2);
        assert_true(isnan(said(list, 1, "q", which)) && said(list, 1, "own", which) > 1);
    }
    assert_true(said(list, 0, "v", "rest") > said(list, 0, "own", "rest"));
    json_decref(list);
    qb_output_basis_destroy(basis);
    qb_engine_destroy(e);
    qb_backbone_destroy(backbone);
    qb_model_close(model);
    free(r.q);
    free(r.seen);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rotated_columns_are_orthogonal),
        cmocka_unit_test(kurtosis_in_given_bases),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
