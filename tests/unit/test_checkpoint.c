/* tests/unit/test_checkpoint.c - checkpoints: round trip bit for bit, every damaged byte refused,
 * sizes that lie, and folders with several of them. */
#include "support.h"

#include "core/memory.h"
#include "train/checkpoint.h"
#include "train/presets.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { N_ELEMS = 192 };

static char folder[] = "/tmp/qb_checkpoint.XXXXXX";

static qb_train_config config_of(void)
{
    qb_train_config config;
    qb_train_config_init(&config);
    QB_CHECK_OK(qb_preset_apply("bb-1l", &config));
    QB_CHECK_OK(qb_train_config_set(&config, "lr", "0.3333333333333333148"));
    QB_CHECK_OK(qb_train_config_resolve(&config, 67));
    return config;
}

static qb_run_state state_of(uint64_t step)
{
    qb_run_state s = {.step = step,
                      .windows = 512 * step,
                      .evaluated_step = step / 2,
                      .valid_loss = 1.0 / 3,
                      .best_loss = NAN,
                      .metrics_bytes = 77,
                      .seconds = 0.1,
                      .n_losses = 3,
                      .losses = {3.25, 1e-300, -0.0},
                      .data_sha256 = "0123"};
    return s;
}

static void save(uint64_t step, float *buffers[3])
{
    static float memory[3][N_ELEMS];
    qb_train_config config = config_of();
    qb_run_state state = state_of(step);
    for (size_t i = 0; i < 3; i++) {
        qb_test_fill_f32(memory[i], N_ELEMS, 10 * step + i);
        buffers[i] = memory[i];
    }
    QB_CHECK_OK(
        qb_checkpoint_write(folder, &config, &state, (const float *const *)buffers, 3, N_ELEMS));
}

static char *path_of(uint64_t step)
{
    char *path;
    QB_CHECK_OK(qb_checkpoint_path(folder, step, &path));
    return path;
}

static void empty_folder(void)
{
    QB_CHECK_OK(qb_checkpoint_prune(folder, 0));
}

/* The bytes of a small checkpoint; qb_free. */
static uint8_t *bytes_of(uint64_t step, size_t *n)
{
    float *buffers[3];
    save(step, buffers);
    char *path = path_of(step);
    qb_file file;
    QB_CHECK_OK(qb_file_open(path, &file));
    uint8_t *bytes;
    QB_CHECK_OK(QB_NEW(&bytes, file.bytes, "bytes"));
    memcpy(bytes, file.data, file.bytes);
    *n = file.bytes;
    qb_file_close(&file);
    qb_free(path);
    return bytes;
}

static qb_status parse(const uint8_t *bytes, size_t n)
{
    qb_checkpoint c;
    qb_file file = {.data = bytes, .bytes = n, .path = (char *)"memory"};
    qb_status status = qb_checkpoint_parse(&file, &c); /* borrowed: not to be closed */
    return status;
}

static void everything_comes_back(void **state)
{
    (void)state;
    float *buffers[3];
    save(12, buffers);
    char *path = path_of(12);
    qb_checkpoint c;
    QB_CHECK_OK(qb_checkpoint_open(path, &c));
    qb_train_config config = config_of();
    qb_run_state s = state_of(12);
    assert_memory_equal(&c.config, &config, sizeof config);
    assert_int_equal(c.state.step, 12);
    assert_int_equal(c.state.windows, s.windows);
    assert_int_equal(c.state.evaluated_step, 6);
    assert_int_equal(c.state.metrics_bytes, 77);
    assert_memory_equal(&c.state.valid_loss, &s.valid_loss, sizeof(double));
    assert_true(isnan(c.state.best_loss));
    assert_int_equal(c.state.n_losses, 3);
    assert_memory_equal(c.state.losses, s.losses, 3 * sizeof(double));
    assert_memory_equal(&c.state.seconds, &s.seconds, sizeof(double));
    assert_string_equal(c.state.data_sha256, "0123");
    assert_int_equal(c.n_buffers, 3);
    assert_int_equal(c.n_elems, N_ELEMS);
    for (size_t i = 0; i < 3; i++) {
        assert_int_equal((uintptr_t)c.buffers[i] % 64, 0);
        assert_memory_equal(c.buffers[i], buffers[i], N_ELEMS * sizeof(float));
    }
    qb_checkpoint_close(&c);
    qb_free(path);
    empty_folder();
}

static void no_byte_can_change(void **state)
{
    (void)state;
    size_t n;
    uint8_t *bytes = bytes_of(1, &n);
    assert_int_equal(parse(bytes, n), QB_OK);
    for (size_t i = 0; i < n; i++) {
        bytes[i] ^= (uint8_t)(1 << i % 8);
        if (parse(bytes, n) == QB_OK) fail_msg("byte %zu of %zu may change", i, n);
        bytes[i] ^= (uint8_t)(1 << i % 8);
    }
    for (size_t cut = 0; cut < n; cut += cut < 80 ? 1 : 61)
        assert_int_not_equal(parse(bytes, cut), QB_OK);
    qb_free(bytes);
    empty_folder();
}

/* Sizes that were chosen to overflow, in a header whose own CRC fits. */
static void lying_sizes_are_refused(void **state)
{
    (void)state;
    size_t n;
    uint8_t *bytes = bytes_of(1, &n);
    static const struct {
        size_t offset;
        uint64_t value;
    } lies[] = {
        {16, 0}, {16, UINT64_MAX}, {16, UINT64_MAX - 63}, {16, 1 << 20},    {24, 0},
        {24, 4}, {24, UINT64_MAX}, {32, UINT64_MAX},      {32, 1ull << 62}, {32, UINT64_MAX / 12},
        {40, 0}, {40, UINT64_MAX}};
    for (size_t i = 0; i < QB_COUNT(lies); i++) {
        uint8_t header[64];
        memcpy(header, bytes, 64);
        memcpy(bytes + lies[i].offset, &lies[i].value, 8);
        uint32_t crc = qb_crc32(bytes, 60);
        memcpy(bytes + 60, &crc, 4);
        assert_int_equal(parse(bytes, n), QB_ERR_FORMAT);
        memcpy(bytes, header, 64);
    }
    assert_int_equal(parse(bytes, n), QB_OK);
    qb_free(bytes);
    empty_folder();
}

static void newest_whole_one_is_taken(void **state)
{
    (void)state;
    float *buffers[3];
    qb_checkpoint c;
    size_t n_broken;
    assert_int_equal(qb_checkpoint_open_newest(folder, &c, &n_broken), QB_ERR_IO);
    for (uint64_t step = 8; step <= 11; step++) save(step, buffers);
    char *path = path_of(11), other[64];
    assert_int_equal(truncate(path, 4000), 0); /* as a disk may do it */
    QB_CHECK_OK(qb_checkpoint_open_newest(folder, &c, &n_broken));
    assert_int_equal(c.state.step, 10);
    assert_int_equal(n_broken, 1);
    qb_checkpoint_close(&c);
    snprintf(other, sizeof other, "%s/step-9.ckpt", folder); /* not our spelling: left alone */
    assert_int_equal(rename(path, other), 0);
    QB_CHECK_OK(qb_checkpoint_prune(folder, 2));
    uint64_t *steps;
    size_t n;
    QB_CHECK_OK(qb_checkpoint_list(folder, &steps, &n));
    assert_int_equal(n, 2);
    assert_true(steps[0] == 10 && steps[1] == 9);
    qb_free(steps);
    qb_free(path);
    unlink(other);
    empty_folder();
}

static void all_broken_says_so(void **state)
{
    (void)state;
    float *buffers[3];
    qb_checkpoint c;
    size_t n_broken;
    save(5, buffers);
    char *path = path_of(5);
    assert_int_equal(truncate(path, 100), 0);
    assert_int_equal(qb_checkpoint_open_newest(folder, &c, &n_broken), QB_ERR_FORMAT);
    assert_non_null(strstr(qb_error_message(), "step-00000005.ckpt"));
    qb_free(path);
    empty_folder();
}

static int make_folder(void **state)
{
    (void)state;
    return mkdtemp(folder) ? 0 : -1;
}

static int remove_folder(void **state)
{
    (void)state;
    return rmdir(folder); /* fails where a test left something */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(everything_comes_back),   cmocka_unit_test(no_byte_can_change),
        cmocka_unit_test(lying_sizes_are_refused), cmocka_unit_test(newest_whole_one_is_taken),
        cmocka_unit_test(all_broken_says_so),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
