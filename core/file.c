/* core/file.c - guarded reading and atomic writing. */
#include "core/file.h"

#include "core/interrupt.h"
#include "core/memory.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <openssl/evp.h>
#include <poll.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

/* ---- reading ---- */

static const char *kind_of(mode_t mode)
{
    if (S_ISDIR(mode)) return "a folder";
    if (S_ISFIFO(mode)) return "a FIFO";
    if (S_ISCHR(mode) || S_ISBLK(mode)) return "a device";
    return "not a regular file";
}

static qb_status map_descriptor(int fd, const char *path, qb_file *out)
{
    struct stat st;
    if (fstat(fd, &st)) return QB_FAIL_SYSTEM(path, errno, "opened", "a file that can be read");
    if (!S_ISREG(st.st_mode))
        return QB_FAIL(QB_ERR_IO, "%s: found %s, expected a regular file", path,
                       kind_of(st.st_mode));
    qb_file file = {.bytes = (size_t)st.st_size};
    if (file.bytes) {
        void *map = mmap(NULL, file.bytes, PROT_READ, MAP_PRIVATE, fd, 0);
        if (map == MAP_FAILED)
            return QB_FAIL_SYSTEM(path, errno, "mapped", "a file that can be read");
        file.data = map;
    }
    qb_status status = qb_strdup(&file.path, path);
    if (status != QB_OK) {
        if (file.data) munmap((void *)file.data, file.bytes);
        return status;
    }
    *out = file;
    return QB_OK;
}

qb_status qb_file_open(const char *path, qb_file *out)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* O_NONBLOCK: a FIFO must not hang */
    if (fd < 0) return QB_FAIL_SYSTEM(path, errno, "opened", "a file that can be read");
    qb_status status = map_descriptor(fd, path, out);
    close(fd);
    return status;
}

void qb_file_close(qb_file *file)
{
    if (file->data) munmap((void *)file->data, file->bytes);
    qb_free(file->path);
    *file = (qb_file){0};
}

void qb_file_forget(const qb_file *file, size_t offset, size_t bytes)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    size_t from = qb_round_up(offset, page), to = (offset + bytes) / page * page;
    if (file->data && to > from && to <= file->bytes)
        madvise((void *)(file->data + from), to - from, MADV_DONTNEED);
}

/* read() goes on after a signal whose handler restarts it, poll() never does; its limit of time is
 * for a signal between the check and the wait. */
qb_status qb_stdin_read(void *data, size_t capacity, size_t *n)
{
    enum { WAIT_MS = 200 };
    struct pollfd input = {.fd = STDIN_FILENO, .events = POLLIN};
    for (;;) {
        QB_TRY(qb_interrupt_check());
        int ready = poll(&input, 1, WAIT_MS);
        if (ready == 0 || (ready < 0 && errno == EINTR)) continue;
        ssize_t got = read(STDIN_FILENO, data, capacity);
        if (got >= 0) {
            *n = (size_t)got;
            return QB_OK;
        }
        if (errno != EINTR && errno != EAGAIN)
            return QB_FAIL(QB_ERR_IO, "cannot be read: found \"%s\", expected a file or a pipe",
                           strerror(errno));
    }
}

bool qb_is_folder(const char *path)
{
    struct stat st;
    return !stat(path, &st) && S_ISDIR(st.st_mode);
}

bool qb_is_stream(const char *path)
{
    struct stat st;
    return !stat(path, &st) && (S_ISCHR(st.st_mode) || S_ISFIFO(st.st_mode));
}

bool qb_same_file(const char *a, const char *b)
{
    struct stat x, y;
    return !stat(a, &x) && !stat(b, &y) && x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}

qb_status qb_file_begins_with(const char *path, const void *bytes, size_t n, bool *out)
{
    qb_file file;
    *out = false;
    if (qb_is_folder(path)) return QB_OK;
    QB_TRY(qb_file_open(path, &file));
    *out = file.bytes >= n && !memcmp(file.data, bytes, n);
    qb_file_close(&file);
    return QB_OK;
}

bool qb_ends_with(const char *text, const char *end)
{
    size_t n = strlen(text), n_end = strlen(end);
    return n >= n_end && !strcmp(text + n - n_end, end);
}

qb_status qb_path_join(const char *folder, const char *name, char **out)
{
    size_t n = strlen(folder), m = strlen(name);
    char *path;
    QB_TRY(QB_NEW(&path, n + m + 2, "path"));
    snprintf(path, n + m + 2, "%s%s%s", folder, n && folder[n - 1] == '/' ? "" : "/", name);
    *out = path;
    return QB_OK;
}

const char *qb_file_looks_like(const uint8_t *data, size_t bytes)
{
    static const struct {
        const char *magic, *text;
        size_t n;
    } known[] = {
        {"version https://git-lfs", "a git-LFS pointer, not the file itself", 23},
        {"PK\003\004", "a zip archive (a PyTorch pickle?)", 4},
        {"\x80\x02", "a Python pickle", 2},
        {"\037\213", "gzip data", 2},
        {"\xfd"
         "7zXZ",
         "xz data", 5},
        {"GGUF", "a GGUF file", 4},
        {"\x93NUMPY", "a NumPy array", 6},
        {"<!DOCTYPE", "an HTML page", 9},
        {"<html", "an HTML page", 5},
        {"\177ELF", "a program", 4},
    };
    if (!bytes) return "an empty file";
    for (size_t i = 0; i < QB_COUNT(known); i++)
        if (bytes >= known[i].n && !memcmp(data, known[i].magic, known[i].n)) return known[i].text;
    return NULL;
}

/* ---- writing ---- */

struct qb_writer {
    char *path;   /* as given, for messages */
    char *target; /* the file itself, behind symbolic links */
    char *tmp;
    int fd;
    uint64_t offset;
    int slot; /* in open_tmp, -1 = none free */
};

/* Names to remove on Ctrl-C. A slot is published after its name is complete. */
enum { MAX_OPEN = 16 };
static _Atomic(char *) open_tmp[MAX_OPEN];

static int remember(char *tmp)
{
    for (int i = 0; i < MAX_OPEN; i++) {
        char *none = NULL;
        if (atomic_compare_exchange_strong(&open_tmp[i], &none, tmp)) return i;
    }
    return -1;
}

void qb_file_cleanup(void)
{
    for (int i = 0; i < MAX_OPEN; i++) {
        char *tmp = atomic_load(&open_tmp[i]);
        if (tmp) unlink(tmp);
    }
}

static void writer_free(qb_writer *w)
{
    if (w->slot >= 0) atomic_store(&open_tmp[w->slot], NULL);
    if (w->fd >= 0) close(w->fd);
    qb_free(w->tmp);
    qb_free(w->target);
    qb_free(w->path);
    qb_free(w);
}

/* A device or a pipe cannot be replaced by a rename without harm; a folder not at all. */
static qb_status check_replaceable(const char *path)
{
    struct stat st;
    if (stat(path, &st) || S_ISREG(st.st_mode)) return QB_OK;
    return QB_FAIL(QB_ERR_IO, "%s: found %s, expected a regular file or none", path,
                   kind_of(st.st_mode));
}

/* The name that a symbolic link holds, seen from where the link lies; *out = NULL: path is no link.
 */
static qb_status read_link(const char *path, char **out)
{
    char held[PATH_MAX];
    *out = NULL;
    ssize_t n = readlink(path, held, sizeof held - 1);
    if (n < 0) return QB_OK;
    held[n] = 0;
    const char *slash = strrchr(path, '/');
    if (*held == '/' || !slash) return qb_strdup(out, held);
    char *folder;
    QB_TRY(qb_strndup(&folder, path, (size_t)(slash - path) + 1));
    qb_status status = qb_path_join(folder, held, out);
    qb_free(folder);
    return status;
}

qb_status qb_follow_links(const char *path, char **out)
{
    enum { MOST_LINKS = 40 };
    char *now;
    QB_TRY(qb_strdup(&now, path));
    qb_status status = QB_OK;
    for (int i = 0; status == QB_OK; i++) {
        char *next = NULL;
        status = i < MOST_LINKS ? read_link(now, &next)
                                : QB_FAIL_SYSTEM(path, ELOOP, "written", "a file or none");
        if (status == QB_OK && !next) {
            *out = now;
            return QB_OK;
        }
        qb_free(now);
        now = next;
    }
    return status;
}

/* A name that nobody has: neither another container's process of this number, whose half of a file
 * must not become ours, nor a link that somebody laid there. */
static qb_status open_tmp_file(qb_writer *w)
{
    enum { MOST_TRIES = 100 };
    size_t n = strlen(w->target) + 40;
    QB_TRY(QB_NEW(&w->tmp, n, "path"));
    int at = snprintf(w->tmp, n, "%s.tmp.%ld", w->target, (long)getpid());
    for (int i = 1; i <= MOST_TRIES; i++) {
        w->fd = open(w->tmp, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        if (w->fd >= 0 || errno != EEXIST) break;
        snprintf(w->tmp + at, n - (size_t)at, ".%d", i);
    }
    if (w->fd < 0)
        return QB_FAIL_SYSTEM(w->path, errno, "written", "a folder that exists and is writable");
    struct stat old;
    if (!stat(w->target, &old) && fchmod(w->fd, old.st_mode & 0777)) {
        int error = errno;
        unlink(w->tmp);
        return QB_FAIL_SYSTEM(w->path, error, "written", "a file whose permissions can be kept");
    }
    return QB_OK;
}

qb_status qb_writer_open(const char *path, qb_writer **out)
{
    QB_TRY(check_replaceable(path));
    qb_writer *w;
    QB_TRY(QB_NEW_ZERO(&w, 1, "writer"));
    w->fd = w->slot = -1;
    qb_status status = qb_strdup(&w->path, path);
    if (status == QB_OK) status = qb_follow_links(path, &w->target);
    if (status == QB_OK) status = open_tmp_file(w);
    if (status != QB_OK) {
        writer_free(w);
        return status;
    }
    w->slot = remember(w->tmp);
    *out = w;
    return QB_OK;
}

static qb_status write_all(qb_writer *w, uint64_t offset, const void *data, size_t bytes)
{
    const char *p = data;
    while (bytes) {
        ssize_t n = pwrite(w->fd, p, bytes, (off_t)offset);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0)
            return QB_FAIL(
                QB_ERR_IO,
                "%s: cannot be written: found \"%s\", expected a writable file with space for it",
                w->path, n ? strerror(errno) : "disk full");
        p += n;
        offset += (uint64_t)n;
        bytes -= (size_t)n;
    }
    return QB_OK;
}

qb_status qb_writer_write(qb_writer *w, const void *data, size_t bytes)
{
    QB_TRY(write_all(w, w->offset, data, bytes));
    w->offset += bytes;
    return QB_OK;
}

qb_status qb_writer_write_at(qb_writer *w, uint64_t offset, const void *data, size_t bytes)
{
    return write_all(w, offset, data, bytes);
}

qb_status qb_writer_read_at(qb_writer *w, uint64_t offset, void *data, size_t bytes)
{
    char *p = data;
    while (bytes) {
        ssize_t n = pread(w->fd, p, bytes, (off_t)offset);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0)
            return QB_FAIL(QB_ERR_IO,
                           "%s: cannot be read back: found \"%s\", expected the bytes just written",
                           w->path, n ? strerror(errno) : "ended");
        p += n;
        offset += (uint64_t)n;
        bytes -= (size_t)n;
    }
    return QB_OK;
}

uint64_t qb_writer_offset(const qb_writer *w)
{
    return w->offset;
}

static void sync_folder_of(const char *path)
{
    const char *slash = strrchr(path, '/');
    char folder[PATH_MAX];
    snprintf(folder, sizeof folder, "%.*s", slash ? (int)(slash - path) + 1 : 1,
             slash ? path : ".");
    int fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd >= 0) {
        fsync(fd);
        close(fd);
    }
}

qb_status qb_writer_commit(qb_writer *w)
{
    qb_status status = QB_OK;
    if (fsync(w->fd) && errno != EINVAL)
        status = QB_FAIL_SYSTEM(w->path, errno, "written", "a writable file with space for it");
    else if (rename(w->tmp, w->target))
        status = QB_FAIL(
            QB_ERR_IO, "%s: cannot get its name: found \"%s\", expected a folder that is writable",
            w->path, strerror(errno));
    if (status != QB_OK)
        unlink(w->tmp);
    else
        sync_folder_of(w->target);
    writer_free(w);
    return status;
}

void qb_writer_abandon(qb_writer *w)
{
    if (!w) return;
    unlink(w->tmp);
    writer_free(w);
}

static qb_status write_stream(const char *path, const void *data, size_t bytes)
{
    FILE *stream = fopen(path, "wbe");
    bool ok = stream && fwrite(data, 1, bytes, stream) == bytes;
    if (stream && fclose(stream)) ok = false;
    return ok ? QB_OK : QB_FAIL_SYSTEM(path, errno, "written", "a writable file with space for it");
}

qb_status qb_file_write_whole(const char *path, const void *data, size_t bytes)
{
    if (qb_is_stream(path)) return write_stream(path, data, bytes);
    qb_writer *w;
    QB_TRY(qb_writer_open(path, &w));
    qb_status status = qb_writer_write(w, data, bytes);
    if (status == QB_OK) return qb_writer_commit(w);
    qb_writer_abandon(w);
    return status;
}

/* ---- appending ---- */

/* The lock goes with the descriptor. */
static qb_status append_locked(int fd, const char *path, const void *data, size_t bytes)
{
    struct stat st;
    char last = '\n';
    if (flock(fd, LOCK_EX) || fstat(fd, &st))
        return QB_FAIL_SYSTEM(path, errno, "locked", "a file that can be");
    if (st.st_size && pread(fd, &last, 1, st.st_size - 1) != 1)
        return QB_FAIL_SYSTEM(path, errno, "read", "a file that can be");
    if (last != '\n')
        return QB_FAIL(QB_ERR_FORMAT, "%s: found a last line without an end, expected whole lines",
                       path);
    ssize_t n = write(fd, data, bytes);
    if (n == (ssize_t)bytes && !fsync(fd)) return QB_OK;
    int error = n < 0 || n == (ssize_t)bytes ? errno : ENOSPC;
    if (n > 0 && ftruncate(fd, st.st_size)) error = errno; /* no half of a line stays */
    return QB_FAIL_SYSTEM(path, error, "written", "a writable file with space for it");
}

qb_status qb_file_append_lines(const char *path, const void *data, size_t bytes)
{
    int fd = open(path, O_RDWR | O_APPEND | O_CREAT | O_CLOEXEC | O_NONBLOCK, 0666);
    if (fd < 0) return QB_FAIL_SYSTEM(path, errno, "opened", "a file that can be read");
    qb_status status = append_locked(fd, path, data, bytes);
    close(fd);
    return status;
}

/* ---- checksums ---- */

uint32_t qb_crc32(const void *data, size_t bytes)
{
    return (uint32_t)crc32_z(crc32_z(0, NULL, 0), data, bytes);
}

struct qb_sha256 {
    EVP_MD_CTX *context;
};

qb_status qb_sha256_create(qb_sha256 **out)
{
    qb_sha256 *hash;
    QB_TRY(QB_NEW_ZERO(&hash, 1, "sha256"));
    hash->context = EVP_MD_CTX_new();
    if (!hash->context || !EVP_DigestInit_ex(hash->context, EVP_sha256(), NULL)) {
        EVP_MD_CTX_free(hash->context);
        qb_free(hash);
        return QB_FAIL(QB_ERR_MEMORY, "sha256: cannot start the digest");
    }
    *out = hash;
    return QB_OK;
}

void qb_sha256_update(qb_sha256 *hash, const void *data, size_t bytes)
{
    EVP_DigestUpdate(hash->context, data, bytes);
}

void qb_sha256_finish(qb_sha256 *hash, char hex[65])
{
    unsigned char digest[EVP_MAX_MD_SIZE] = {0};
    unsigned n = 0;
    EVP_DigestFinal_ex(hash->context, digest, &n);
    for (int i = 0; i < 32; i++) snprintf(hex + 2 * i, 3, "%02x", digest[i]);
    EVP_MD_CTX_free(hash->context);
    qb_free(hash);
}

qb_status qb_sha256_hex(const void *data, size_t bytes, char hex[65])
{
    qb_sha256 *hash;
    QB_TRY(qb_sha256_create(&hash));
    qb_sha256_update(hash, data, bytes);
    qb_sha256_finish(hash, hex);
    return QB_OK;
}
