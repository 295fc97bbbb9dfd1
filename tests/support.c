/* tests/support.c - see support.h. The safetensors reader here is a few lines on purpose: tests
 * must not lean on the reader they test. */
#include "support.h"

#include "core/file.h"
#include "core/json.h"
#include "core/memory.h"
#include "core/rng.h"

#include <fnmatch.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

int qb_test_run(const char *group, const struct CMUnitTest *tests, size_t n,
                CMFixtureFunction setup, CMFixtureFunction teardown)
{
    const char *only = getenv("QB_TEST_ONLY");
    const bool list = getenv("QB_TEST_LIST") != NULL;
    size_t n_chosen = 0;
    for (size_t i = 0; i < n; i++) {
        if (only && fnmatch(only, tests[i].name, 0)) continue;
        if (list) printf("%s\n", tests[i].name);
        n_chosen++;
    }
    if (n_chosen == 0) {
        fprintf(stderr, "QB_TEST_ONLY=%s: none of the program's tests\n", only);
        return 1;
    }
    if (list) return 0;
    cmocka_set_test_filter(only);
    return _cmocka_run_group_tests(group, tests, n, setup, teardown);
}

void qb_test_check_ok(qb_status status, const char *call, const char *file, int line)
{
    if (status == QB_OK) return;
    print_error("%s: %s (%s)\n", call, qb_error_message(), qb_error_place());
    _fail(file, line);
}

static size_t guarded_span(size_t bytes)
{
    return qb_round_up(bytes ? bytes : 1, (size_t)sysconf(_SC_PAGESIZE));
}

void *qb_test_guarded_alloc(size_t bytes)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE), span = guarded_span(bytes);
    char *map = mmap(NULL, span + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_true(map != MAP_FAILED);
    assert_int_equal(mprotect(map + span, page, PROT_NONE), 0);
    return map + span - bytes;
}

void qb_test_guarded_free(void *memory, size_t bytes)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE), span = guarded_span(bytes);
    munmap((char *)memory + bytes - span, span + page);
}

const char *qb_test_golden(const char *name)
{
    static char path[4096];
    const char *folder = getenv("QB_GOLDEN");
    if (folder)
        snprintf(path, sizeof path, "%s/%s", folder, name);
    else
        snprintf(path, sizeof path, "%s/../shared/golden/%s", QB_SOURCE_DIR, name);
    return access(path, R_OK) ? NULL : path;
}

static char folder[] = "/tmp/qb_test.XXXXXX";

int qb_test_make_folder(void **state)
{
    (void)state;
    return mkdtemp(folder) ? 0 : -1;
}

int qb_test_remove_folder(void **state)
{
    (void)state;
    char command[40];
    snprintf(command, sizeof command, "rm -rf %s", folder);
    return system(command);
}

const char *qb_test_folder(void)
{
    return folder;
}

const char *qb_test_in_folder(const char *name)
{
    static char paths[4][256];
    static unsigned next;
    char *path = paths[next++ % QB_COUNT(paths)];
    snprintf(path, sizeof paths[0], "%s/%s", folder, name);
    return path;
}

void qb_test_fill_f32(float *x, size_t n, uint64_t seed)
{
    qb_rng_normal_f32(seed, QB_STREAM_TEST, 0, n, 1.0f, x);
    for (size_t i = 0; i < n; i++) /* activations of real models have outliers */
        if (qb_rng_u32(seed, QB_STREAM_TEST + 100, i) % 97 == 0) x[i] *= 20.0f;
}

void qb_test_fill_bytes(void *x, size_t n, uint64_t seed)
{
    uint8_t *p = x;
    for (size_t i = 0; i < n; i++) p[i] = (uint8_t)qb_rng_u32(seed, QB_STREAM_TEST + 200, i);
}

double qb_test_max_diff(const float *a, const float *b, size_t n, size_t *at)
{
    double worst = -1;
    for (size_t i = 0; i < n; i++) {
        double d = fabs((double)a[i] - (double)b[i]);
        if (d > worst || isnan(d)) {
            worst = isnan(d) ? INFINITY : d;
            if (at) *at = i;
        }
    }
    return worst < 0 ? 0 : worst;
}

void *qb_test_safetensor(const char *path, const char *name, const char *dtype, size_t *n_elems)
{
    qb_file file;
    QB_CHECK_OK(qb_file_open(path, &file));
    uint64_t header_bytes;
    memcpy(&header_bytes, file.data, 8);
    json_t *header;
    QB_CHECK_OK(qb_json_parse((const char *)file.data + 8, header_bytes, 1u << 26, path, &header));
    const json_t *entry = json_object_get(header, name);
    if (!entry) fail_msg("%s: no tensor %s", path, name);
    assert_string_equal(json_string_value(json_object_get(entry, "dtype")), dtype);
    const json_t *range = json_object_get(entry, "data_offsets");
    size_t from = (size_t)json_integer_value(json_array_get(range, 0));
    size_t to = (size_t)json_integer_value(json_array_get(range, 1));
    size_t elem = !strcmp(dtype, "F32") || !strcmp(dtype, "I32") ? 4 : 1;
    void *out;
    QB_CHECK_OK(qb_alloc(&out, to - from, 1, name));
    memcpy(out, file.data + 8 + header_bytes + from, to - from);
    *n_elems = (to - from) / elem;
    json_decref(header);
    qb_file_close(&file);
    return out;
}
