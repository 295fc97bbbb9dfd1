/* tests/unit/test_metrics_log.c - metrics.jsonl, TensorBoard's records, and cutting both where a
 * checkpoint says. */
#include "support.h"

#include "core/file.h"
#include "core/json.h"
#include "core/memory.h"
#include "train/metrics_log.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char folder[] = "/tmp/qb_metrics.XXXXXX";

static qb_file read_file(const char *name)
{
    char path[128];
    qb_file file;
    snprintf(path, sizeof path, "%s/%s", folder, name);
    QB_CHECK_OK(qb_file_open(path, &file));
    return file;
}

static void check_text(const char *want)
{
    qb_file file = read_file("metrics.jsonl");
    assert_int_equal(file.bytes, strlen(want));
    assert_memory_equal(file.data, want, file.bytes);
    qb_file_close(&file);
}

static void write_line(qb_metrics_log *log, uint64_t step, double loss)
{
    const qb_metric metrics[] = {{"loss", loss}, {"mfu", NAN}};
    QB_CHECK_OK(qb_metrics_log_write(log, "train", step, metrics, 2));
}

static void lines_are_json_and_cut_on_resume(void **state)
{
    (void)state;
    uint64_t bytes, events;
    qb_metrics_log *log;
    QB_CHECK_OK(qb_metrics_log_open(folder, false, 0, 0, &log));
    write_line(log, 1, 2.5);
    QB_CHECK_OK(qb_metrics_log_sync(log, &bytes, &events));
    write_line(log, 2, INFINITY);
    qb_metrics_log_close(log);
    const char *first = "{\"kind\": \"train\", \"step\": 1, \"loss\": 2.5, \"mfu\": null}\n";
    assert_int_equal(bytes, strlen(first));
    assert_int_equal(events, 0);
    QB_CHECK_OK(qb_metrics_log_open(folder, false, bytes, 0, &log));
    check_text(first);
    qb_metrics_log_close(log);
    assert_int_equal(qb_metrics_log_open(folder, false, bytes + 1, 0, &log), QB_ERR_FORMAT);
    QB_CHECK_OK(qb_metrics_log_open(folder, false, 0, 0, &log));
    qb_metrics_log_close(log);
    check_text("");
}

/* RFC 3720, section B.4; TensorFlow's crc32c tests. */
static void crc32c_has_the_published_values(void **state)
{
    (void)state;
    uint8_t bytes[32] = {0};
    assert_int_equal(qb_crc32c("123456789", 9), 0xe3069283);
    assert_int_equal(qb_crc32c(bytes, 32), 0x8a9136aa);
    memset(bytes, 0xff, 32);
    assert_int_equal(qb_crc32c(bytes, 32), 0x62a8ab43);
    assert_int_equal(qb_crc32c_mask(0), 0xa282ead8);
}

/* The next record's data; checks its frame. */
static const uint8_t *next_record(const qb_file *file, size_t *at, uint64_t *n)
{
    uint32_t crc;
    const uint8_t *p = file->data + *at;
    assert_true(*at + 16 <= file->bytes);
    memcpy(n, p, 8);
    memcpy(&crc, p + 8, 4);
    assert_int_equal(crc, qb_crc32c_mask(qb_crc32c(p, 8)));
    assert_true(*n <= file->bytes - *at - 16);
    memcpy(&crc, p + 12 + *n, 4);
    assert_int_equal(crc, qb_crc32c_mask(qb_crc32c(p + 12, *n)));
    *at += 16 + *n;
    return p + 12;
}

static void tensorboard_records_hold_tag_step_and_value(void **state)
{
    (void)state;
    uint64_t bytes, events, n;
    size_t at = 0;
    qb_metrics_log *log;
    QB_CHECK_OK(qb_metrics_log_open(folder, true, 0, 0, &log));
    write_line(log, 300, 2.5); /* the NaN beside it leaves no record, */
    QB_CHECK_OK(qb_metrics_log_write(log, "skip", 300, &(qb_metric){"loss", 9}, 1)); /* nor this */
    QB_CHECK_OK(qb_metrics_log_sync(log, &bytes, &events));
    write_line(log, 301, 2.5);
    qb_metrics_log_close(log);
    QB_CHECK_OK(qb_metrics_log_open(folder, true, bytes, events, &log));
    qb_metrics_log_close(log);
    qb_file file = read_file("events.out.tfevents.qbench");
    const uint8_t *version = next_record(&file, &at, &n);
    assert_int_equal(n, 9 + 2 + 13);
    assert_memory_equal(version + 9,
                        "\x1a\x0d"
                        "brain.Event:2",
                        15);
    const uint8_t *event = next_record(&file, &at, &n);
    /* step = 300, summary { value { tag "train/loss" simple_value 2.5 } } */
    static const uint8_t want[] = "\x10\xac\x02\x2a\x13\x0a\x11\x0a\x0atrain/loss\x15\0\0\x20\x40";
    assert_int_equal(n, 9 + sizeof want - 1);
    assert_memory_equal(event + 9, want, sizeof want - 1);
    assert_int_equal(at, file.bytes);
    qb_file_close(&file);
}

static int make_folder(void **state)
{
    (void)state;
    return mkdtemp(folder) ? 0 : -1;
}

static int remove_folder(void **state)
{
    (void)state;
    char path[128];
    const char *names[] = {"metrics.jsonl", "events.out.tfevents.qbench"};
    for (size_t i = 0; i < 2; i++) {
        snprintf(path, sizeof path, "%s/%s", folder, names[i]);
        unlink(path);
    }
    return rmdir(folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(lines_are_json_and_cut_on_resume),
        cmocka_unit_test(crc32c_has_the_published_values),
        cmocka_unit_test(tensorboard_records_hold_tag_step_and_value),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
