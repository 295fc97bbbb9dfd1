/* tests/support.h - what the tests share: cmocka in one include, the choice of a program's tests,
 * checks of status, guard pages, the folder of golden cases. */
#ifndef QB_TESTS_SUPPORT_H
#define QB_TESTS_SUPPORT_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "core/status.h"

#include <stdbool.h>
#include <stdio.h>

/* cmocka's runner, with two variables: QB_TEST_LIST=1 prints the names of the tests and runs none;
 * QB_TEST_ONLY=PATTERN (as a shell's) runs those that match it, and fails where none does. */
int qb_test_run(const char *group, const struct CMUnitTest *tests, size_t n,
                CMFixtureFunction setup, CMFixtureFunction teardown);
#undef cmocka_run_group_tests
#define cmocka_run_group_tests(tests, setup, teardown)                                             \
    qb_test_run(#tests, tests, sizeof(tests) / sizeof((tests)[0]), setup, teardown)

/* A call that must succeed; prints the stored message where it does not. */
#define QB_CHECK_OK(call) qb_test_check_ok((call), #call, __FILE__, __LINE__)
void qb_test_check_ok(qb_status status, const char *call, const char *file, int line);

/* Prints why and skips the running test. */
#define QB_SKIP(...)                                                                               \
    do {                                                                                           \
        printf("skipped: " __VA_ARGS__);                                                           \
        printf("\n");                                                                              \
        skip();                                                                                    \
    } while (0)

/* `bytes` of memory that end right before an inaccessible page (and start 64-byte aligned only if
 * bytes is a multiple of 64): reading or writing past the end faults. */
void *qb_test_guarded_alloc(size_t bytes);
void qb_test_guarded_free(void *memory, size_t bytes);

/* The path of a golden case ("a-gpt2/golden.safetensors") in QB_GOLDEN or ../shared/golden; NULL
 * where it is absent (skip, with the reason). The string lives until the next call. */
const char *qb_test_golden(const char *name);

/* A folder of the program's own, for setup and teardown of cmocka_run_group_tests, which removes it
 * with what is in it; and the path of NAME in it, good until the fourth call from now. */
int qb_test_make_folder(void **state);
int qb_test_remove_folder(void **state);
const char *qb_test_folder(void);
const char *qb_test_in_folder(const char *name);

/* Deterministic test numbers: normal with a few outliers, uniform in [-1, 1), bytes. */
void qb_test_fill_f32(float *x, size_t n, uint64_t seed);
void qb_test_fill_bytes(void *x, size_t n, uint64_t seed);

/* max |a - b|, and its index. */
double qb_test_max_diff(const float *a, const float *b, size_t n, size_t *at);

/* One tensor of a safetensors file of the golden cases, widened to its C type; n_elems is checked.
 * Aborts the test when it is absent. Free with qb_free. dtype letters as in the file: "F32" ... */
void *qb_test_safetensor(const char *path, const char *tensor, const char *dtype, size_t *n_elems);

#endif
