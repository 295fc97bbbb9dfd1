/* core/file.h - files in and out.
 *
 * In: opened with O_CLOEXEC, must be a regular file (a directory, FIFO or device is refused,
 * nothing hangs), mapped read-only. A mapped file that is truncated behind our back would raise
 * SIGBUS: while a mapping lives, cli/ turns that signal into one error line and exit 3
 * (cli/main.c). Out: written to NAME.tmp.PID in the same folder, fsync, rename, fsync of the
 * folder; nothing is left under either name when a step fails, also on Ctrl-C (qb_file_cleanup). */
#ifndef QB_CORE_FILE_H
#define QB_CORE_FILE_H

#include "core/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct qb_file {
    const uint8_t *data; /* the mapping, read-only; NULL for an empty file */
    size_t bytes;
    char *path; /* owned */
} qb_file;

/* QB_ERR_IO: cannot open, or no regular file; messages start with the path. */
qb_status qb_file_open(const char *path, qb_file *out);
void qb_file_close(qb_file *file); /* accepts a zeroed one */
/* Says that [offset, offset + bytes) will not be read again soon: the pages leave the resident set.
 */
void qb_file_forget(const qb_file *file, size_t offset, size_t bytes);
/* Up to `capacity` bytes of standard input into data, *n = 0 at its end. Ctrl-C ends the waiting
 * for them. Messages do not name the input. */
qb_status qb_stdin_read(void *data, size_t capacity, size_t *n);
/* True for a folder. */
bool qb_is_folder(const char *path);
/* True where both names lead to one file, by links too. */
bool qb_same_file(const char *a, const char *b);
/* Whether the file starts with these bytes, its format's magic; false for a folder. */
qb_status qb_file_begins_with(const char *path, const void *bytes, size_t n, bool *out);
bool qb_ends_with(const char *text, const char *end); /* "model.gguf", ".gguf" */
/* FOLDER/NAME, owned by the caller. */
qb_status qb_path_join(const char *folder, const char *name, char **out);

/* What the operating system refused, with errno: "x.bin: cannot be opened: found "Permission
 * denied", expected a file that can be read". Wants <string.h>. */
#define QB_FAIL_SYSTEM(path, error, verb, expected)                                                \
    QB_FAIL(QB_ERR_IO, "%s: cannot be " verb ": found \"%s\", expected " expected, (path),         \
            strerror(error))

/* What the first bytes look like when they are no known model: "a git-LFS pointer", "a zip
 * archive", "gzip data", ...; NULL = nothing known. For error messages. */
const char *qb_file_looks_like(const uint8_t *data, size_t bytes);

/* True for a pipe or a character device, which is written to as it is and never replaced. */
bool qb_is_stream(const char *path);
/* What path leads to over symbolic links, also where that is not there yet; the caller frees it. */
qb_status qb_follow_links(const char *path, char **out);

typedef struct qb_writer qb_writer;
/* Opens PATH.tmp.PID for writing, or the next free PATH.tmp.PID.N. Where PATH is a symbolic link,
 * the file that it leads to is written, beside itself; a file that is replaced keeps its
 * permissions. QB_ERR_IO: PATH is there and no regular file. */
qb_status qb_writer_open(const char *path, qb_writer **out);
qb_status qb_writer_write(qb_writer *writer, const void *data, size_t bytes);
/* Overwrites bytes already written (a header that is known only at the end). */
qb_status qb_writer_write_at(qb_writer *writer, uint64_t offset, const void *data, size_t bytes);
/* Reads back bytes already written (to digest them). */
qb_status qb_writer_read_at(qb_writer *writer, uint64_t offset, void *data, size_t bytes);
uint64_t qb_writer_offset(const qb_writer *writer);
/* fsync, rename onto PATH, fsync the folder. Frees the writer in every case. */
qb_status qb_writer_commit(qb_writer *writer);
void qb_writer_abandon(qb_writer *writer); /* removes the temporary file; accepts NULL */
/* The whole of `data` as the file PATH, atomically; a device or FIFO (/dev/null, a pipe of the
 * shell's) is written to as it is. */
qb_status qb_file_write_whole(const char *path, const void *data, size_t bytes);
/* Adds whole lines at the end, under a lock and in one write, and waits for the disk. Makes the
 * file where it is not there. QB_ERR_FORMAT: its last line was cut off. */
qb_status qb_file_append_lines(const char *path, const void *data, size_t bytes);
/* Removes the temporary files of all open writers; async-signal-safe. */
void qb_file_cleanup(void);

uint32_t qb_crc32(const void *data, size_t bytes); /* zlib's CRC-32 */
typedef struct qb_sha256 qb_sha256;
qb_status qb_sha256_create(qb_sha256 **out);
void qb_sha256_update(qb_sha256 *hash, const void *data, size_t bytes);
/* hex is 64 characters and a NUL. Frees the hash. */
void qb_sha256_finish(qb_sha256 *hash, char hex[65]);
qb_status qb_sha256_hex(const void *data, size_t bytes, char hex[65]);

#ifdef __cplusplus
}
#endif
#endif
