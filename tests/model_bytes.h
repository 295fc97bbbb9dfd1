/* tests/model_bytes.h - what the tests of the readers share: bytes built piece by piece, files that
 * end at a guard page, damage, and comparing two models. */
#ifndef QB_TESTS_MODEL_BYTES_H
#define QB_TESTS_MODEL_BYTES_H

#include "model/model.h"

#include <stdbool.h>

typedef struct test_bytes {
    uint8_t *data; /* malloc */
    size_t n, capacity;
} test_bytes;
void test_bytes_add(test_bytes *b, const void *data, size_t n);
void test_bytes_u32(test_bytes *b, uint32_t value);
void test_bytes_u64(test_bytes *b, uint64_t value);
void test_bytes_pad(test_bytes *b, size_t multiple);
void test_bytes_free(test_bytes *b);

/* Builds a model from bytes that end right before an inaccessible page; the bytes live until the
 * next call, longer than the model must. */
typedef qb_status (*test_build)(const qb_file *file, qb_model **out);
qb_status test_build_bytes(test_build build, const void *data, size_t n, qb_model **out);

/* Every truncation is refused; each of 1,000 bit flips gives a model that can be read throughout or
 * a refusal with one line. Returns how many flips were refused. */
size_t test_damage(test_build build, const void *data, size_t n);

/* Every tensor widened to f32 has the same bits, and so has the configuration. */
void test_models_equal(const qb_model *a, const qb_model *b);

#endif
