/* tests/model_bytes.c - see model_bytes.h. */
#include "model_bytes.h"

#include "support.h"

#include "core/rng.h"

#include <stdlib.h>
#include <string.h>

void test_bytes_add(test_bytes *b, const void *data, size_t n)
{
    if (b->n + n > b->capacity) {
        b->capacity = 2 * (b->n + n);
        b->data = realloc(b->data, b->capacity);
        assert_non_null(b->data);
    }
    memcpy(b->data + b->n, data, n);
    b->n += n;
}

void test_bytes_u32(test_bytes *b, uint32_t value)
{
    test_bytes_add(b, &value, 4);
}

void test_bytes_u64(test_bytes *b, uint64_t value)
{
    test_bytes_add(b, &value, 8);
}

void test_bytes_pad(test_bytes *b, size_t multiple)
{
    while (b->n % multiple) test_bytes_add(b, "", 1);
}

void test_bytes_free(test_bytes *b)
{
    free(b->data);
    *b = (test_bytes){0};
}

qb_status test_build_bytes(test_build build, const void *data, size_t n, qb_model **out)
{
    static uint8_t *guarded;
    static size_t guarded_bytes;
    if (guarded) qb_test_guarded_free(guarded, guarded_bytes);
    guarded = qb_test_guarded_alloc(n);
    guarded_bytes = n;
    memcpy(guarded, data, n);
    static qb_file file;
    file = (qb_file){.data = guarded, .bytes = n, .path = (char *)"memory"};
    return build(&file, out);
}

static void read_all(const qb_model *m)
{
    for (int r = 0; r < QB_ROLE_COUNT; r++)
        for (size_t i = 0; i < (qb_roles[r].per_layer ? m->config.n_layers : 1); i++) {
            const qb_tensor *t = qb_model_tensor(m, (qb_role)r, i);
            if (!t->data) continue;
            float *row = malloc(t->cols * sizeof *row);
            for (size_t k = 0; k < t->rows; k++) qb_tensor_rows_f32(t, k, 1, row);
            free(row);
        }
}

size_t test_damage(test_build build, const void *data, size_t n)
{
    qb_model *model;
    size_t n_refused = 0;
    QB_CHECK_OK(test_build_bytes(build, data, n, &model));
    qb_model_close(model);
    /* All cuts of the first part, where the structure is, then every 97th. */
    for (size_t cut = 0; cut < n; cut += cut < 6000 ? 1 : 97)
        assert_int_not_equal(test_build_bytes(build, data, cut, &model), QB_OK);
    assert_int_not_equal(test_build_bytes(build, data, n - 1, &model), QB_OK);
    uint8_t *damaged = malloc(n);
    for (uint64_t i = 0; i < 1000; i++) {
        memcpy(damaged, data, n);
        /* Half of the flips go to the first part. */
        uint64_t span = i % 2 && n > 4000 ? 4000 : n, at = qb_rng_below(1, 5, i, span);
        damaged[at] ^= (uint8_t)(1u << qb_rng_below(1, 6, i, 8));
        qb_status status = test_build_bytes(build, damaged, n, &model);
        if (status == QB_OK) {
            read_all(model);
            qb_model_close(model);
            continue;
        }
        n_refused++;
        assert_int_equal(qb_status_exit_code(status), 3);
        assert_true(*qb_error_message());
    }
    free(damaged);
    return n_refused;
}

void test_models_equal(const qb_model *a, const qb_model *b)
{
    json_t *x, *y;
    QB_CHECK_OK(qb_config_to_json(&a->config, &x));
    QB_CHECK_OK(qb_config_to_json(&b->config, &y));
    if (!json_equal(x, y))
        fail_msg("configurations differ: %s and %s", json_dumps(x, 0), json_dumps(y, 0));
    json_decref(x);
    json_decref(y);
    for (int r = 0; r < QB_ROLE_COUNT; r++)
        for (size_t i = 0; i < (qb_roles[r].per_layer ? a->config.n_layers : 1); i++) {
            const qb_tensor *s = qb_model_tensor(a, (qb_role)r, i);
            const qb_tensor *t = qb_model_tensor(b, (qb_role)r, i);
            assert_int_equal(s->data != NULL, t->data != NULL);
            if (!s->data) continue;
            assert_int_equal(s->rows, t->rows);
            assert_int_equal(s->cols, t->cols);
            float *f = malloc(s->rows * s->cols * sizeof *f), *g = malloc(s->rows * s->cols * 4);
            qb_tensor_rows_f32(s, 0, s->rows, f);
            qb_tensor_rows_f32(t, 0, t->rows, g);
            if (memcmp(f, g, s->rows * s->cols * 4)) {
                char name[64];
                qb_role_name((qb_role)r, i, name, sizeof name);
                fail_msg("tensor %s differs", name);
            }
            free(f);
            free(g);
        }
}
