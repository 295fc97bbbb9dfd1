/* train/metrics_log.c - see metrics_log.h.
 *
 * An event file is a row of records: length u64, masked CRC-32C of it, data, masked CRC-32C of
 * that. The data are protocol buffers (tensorflow/core/util/event.proto): Event {double wall_time =
 * 1; int64 step = 2; string file_version = 3; Summary summary = 5}, Summary {repeated Value value =
 * 1}, Value {string tag = 1; float simple_value = 2}. */
#include "train/metrics_log.h"

#include "core/file.h"
#include "core/memory.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

/* A file that only grows. */
typedef struct log_file {
    int fd; /* -1 = none */
    char *path;
    uint64_t bytes;
} log_file;

struct qb_metrics_log {
    log_file jsonl, events;
};

/* ---- files ---- */

static qb_status log_file_cut(log_file *f, uint64_t bytes)
{
    struct stat st;
    f->fd = open(f->path, O_RDWR | O_CREAT | O_CLOEXEC | O_NONBLOCK, 0666);
    if (f->fd < 0 || fstat(f->fd, &st))
        return QB_FAIL_SYSTEM(f->path, errno, "opened", "a file that can be read and written");
    if (!S_ISREG(st.st_mode))
        return QB_FAIL(QB_ERR_IO, "%s: found another kind of file, expected a regular one or none",
                       f->path);
    if ((uint64_t)st.st_size < bytes)
        return QB_FAIL(QB_ERR_FORMAT,
                       "%s: found %lld bytes, expected at least the %llu of the checkpoint",
                       f->path, (long long)st.st_size, (unsigned long long)bytes);
    if (ftruncate(f->fd, (off_t)bytes) || lseek(f->fd, 0, SEEK_END) < 0)
        return QB_FAIL_SYSTEM(f->path, errno, "cut", "a file that is writable");
    f->bytes = bytes;
    return QB_OK;
}

static qb_status log_file_open(log_file *f, const char *folder, const char *name, uint64_t bytes)
{
    QB_TRY(qb_path_join(folder, name, &f->path));
    return log_file_cut(f, bytes);
}

static qb_status log_file_append(log_file *f, const void *data, size_t bytes)
{
    const char *p = data;
    f->bytes += bytes;
    while (bytes) {
        ssize_t n = write(f->fd, p, bytes);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0)
            return QB_FAIL_SYSTEM(f->path, errno, "written", "a writable file with space for it");
        p += n;
        bytes -= (size_t)n;
    }
    return QB_OK;
}

static void log_file_close(log_file *f)
{
    if (f->fd >= 0) close(f->fd);
    qb_free(f->path);
}

static qb_status log_file_sync(const log_file *f)
{
    if (f->fd >= 0 && fsync(f->fd) && errno != EINVAL)
        return QB_FAIL_SYSTEM(f->path, errno, "written", "a writable file with space for it");
    return QB_OK;
}

/* ---- TensorBoard ---- */

uint32_t qb_crc32c(const void *data, size_t bytes)
{
    const uint8_t *p = data;
    uint32_t crc = ~0u;
    for (size_t i = 0; i < bytes; i++) {
        crc ^= p[i];
        for (int k = 0; k < 8; k++) crc = crc >> 1 ^ (crc & 1 ? 0x82f63b78u : 0);
    }
    return ~crc;
}

/* A message under construction; texts here are short, so nothing can run over (an assert of ours
 * would be a bug of ours: put drops what does not fit, and the record is then not written). */
typedef struct message {
    uint8_t data[512];
    size_t n;
    bool too_long;
} message;

static void put(message *m, const void *data, size_t bytes)
{
    if (bytes > sizeof m->data - m->n) {
        m->too_long = true;
        return;
    }
    memcpy(m->data + m->n, data, bytes);
    m->n += bytes;
}

static void put_varint(message *m, uint64_t value)
{
    do {
        uint8_t byte = (uint8_t)(value & 0x7f) | (value > 0x7f ? 0x80 : 0);
        put(m, &byte, 1);
        value >>= 7;
    } while (value);
}

enum { WIRE_VARINT = 0, WIRE_64 = 1, WIRE_BYTES = 2, WIRE_32 = 5 };

static void put_field(message *m, unsigned number, unsigned wire, const void *data, size_t bytes)
{
    put_varint(m, number << 3 | wire);
    if (wire == WIRE_BYTES) put_varint(m, bytes);
    put(m, data, bytes);
}

static qb_status write_record(log_file *f, const message *m)
{
    if (m->too_long) return QB_FAIL(QB_ERR_UNSUPPORTED, "%s: a record is too long", f->path);
    message record = {.n = 0};
    uint8_t *p = record.data;
    uint64_t length = m->n;
    uint32_t length_crc = qb_crc32c_mask(qb_crc32c(&length, 8));
    uint32_t data_crc = qb_crc32c_mask(qb_crc32c(m->data, m->n));
    if (m->n + 16 > sizeof record.data)
        return QB_FAIL(QB_ERR_UNSUPPORTED, "%s: a record is too long", f->path);
    memcpy(p, &length, 8);
    memcpy(p + 8, &length_crc, 4);
    memcpy(p + 12, m->data, m->n);
    memcpy(p + 12 + m->n, &data_crc, 4);
    return log_file_append(f, p, m->n + 16);
}

static message event_begin(void)
{
    message m = {.n = 0};
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    double seconds = (double)t.tv_sec + (double)t.tv_nsec / 1e9;
    put_field(&m, 1, WIRE_64, &seconds, 8);
    return m;
}

static qb_status write_version(log_file *f)
{
    static const char version[] = "brain.Event:2";
    message m = event_begin();
    put_field(&m, 3, WIRE_BYTES, version, sizeof version - 1);
    return write_record(f, &m);
}

static qb_status write_scalar(log_file *f, uint64_t step, const char *tag, double value)
{
    float simple = (float)value;
    message m = event_begin(), one = {.n = 0}, summary = {.n = 0};
    put_varint(&m, 2 << 3 | WIRE_VARINT);
    put_varint(&m, step);
    put_field(&one, 1, WIRE_BYTES, tag, strlen(tag));
    put_field(&one, 2, WIRE_32, &simple, 4);
    put_field(&summary, 1, WIRE_BYTES, one.data, one.n);
    put_field(&m, 5, WIRE_BYTES, summary.data, summary.n);
    return write_record(f, &m);
}

/* ---- the log ---- */

static qb_status open_both(qb_metrics_log *log, const char *folder, bool tensorboard,
                           uint64_t metrics_bytes, uint64_t events_bytes)
{
    QB_TRY(log_file_open(&log->jsonl, folder, "metrics.jsonl", metrics_bytes));
    if (!tensorboard) return QB_OK;
    QB_TRY(log_file_open(&log->events, folder, "events.out.tfevents.qbench", events_bytes));
    return events_bytes ? QB_OK : write_version(&log->events);
}

qb_status qb_metrics_log_open(const char *folder, bool tensorboard, uint64_t metrics_bytes,
                              uint64_t events_bytes, qb_metrics_log **out)
{
    qb_metrics_log *log;
    QB_TRY(QB_NEW_ZERO(&log, 1, "metrics"));
    log->jsonl.fd = log->events.fd = -1;
    qb_status status = open_both(log, folder, tensorboard, metrics_bytes, events_bytes);
    if (status != QB_OK)
        qb_metrics_log_close(log);
    else
        *out = log;
    return status;
}

void qb_metrics_log_close(qb_metrics_log *log)
{
    if (!log) return;
    log_file_close(&log->jsonl);
    log_file_close(&log->events);
    qb_free(log);
}

qb_status qb_metrics_log_write(qb_metrics_log *log, const char *kind, uint64_t step,
                               const qb_metric *metrics, size_t n)
{
    char line[8192];
    size_t at = (size_t)snprintf(line, sizeof line, "{\"kind\": \"%s\", \"step\": %llu", kind,
                                 (unsigned long long)step);
    for (size_t i = 0; i < n && at < sizeof line; i++) {
        const qb_metric *m = &metrics[i];
        char value[32] = "null";
        if (isfinite(m->value)) snprintf(value, sizeof value, "%.12g", m->value);
        at += (size_t)snprintf(line + at, sizeof line - at, ", \"%s\": %s", m->name, value);
    }
    if (at + 3 > sizeof line) return QB_FAIL(QB_ERR_UNSUPPORTED, "metrics: a line is too long");
    memcpy(line + at, "}\n", 3);
    QB_TRY(log_file_append(&log->jsonl, line, at + 2));
    const bool drawn = log->events.fd >= 0 && strcmp(kind, "skip") != 0;
    for (size_t i = 0; i < n && drawn; i++) {
        char tag[128];
        snprintf(tag, sizeof tag, "%s/%s", kind, metrics[i].name);
        if (isfinite(metrics[i].value))
            QB_TRY(write_scalar(&log->events, step, tag, metrics[i].value));
    }
    return QB_OK;
}

qb_status qb_metrics_log_sync(qb_metrics_log *log, uint64_t *metrics_bytes, uint64_t *events_bytes)
{
    QB_TRY(log_file_sync(&log->jsonl));
    QB_TRY(log_file_sync(&log->events));
    *metrics_bytes = log->jsonl.bytes;
    *events_bytes = log->events.bytes;
    return QB_OK;
}
