/* cli/live.c - see live.h. The server's thread shares nothing with the training but the file that
 * the training writes. */
#include "cli/live.h"

#include "core/file.h"
#include "core/memory.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MAX_FILE_BYTES = 64 << 20 }; /* a quarter of a million lines */

/* ---- metrics.jsonl as far as it is written ---- */

static qb_status read_all(int fd, const char *path, char *text, size_t bytes, size_t *out)
{
    size_t at = 0;
    while (at < bytes) {
        ssize_t n = read(fd, text + at, bytes - at);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return QB_FAIL_SYSTEM(path, errno, "read", "a file that can be");
        if (!n) break;
        at += (size_t)n;
    }
    while (at && text[at - 1] != '\n') at--; /* whole lines */
    *out = at;
    return QB_OK;
}

/* Read, not mapped: a resumed run cuts it. */
static qb_status read_open(int fd, const char *path, char **text, size_t *bytes)
{
    struct stat st;
    if (fstat(fd, &st)) return QB_FAIL_SYSTEM(path, errno, "opened", "a file that can be read");
    if (!S_ISREG(st.st_mode))
        return QB_FAIL(QB_ERR_IO, "%s: found another kind of file, expected a regular one", path);
    if (st.st_size > MAX_FILE_BYTES)
        return QB_FAIL(QB_ERR_UNSUPPORTED, "%s: found %lld bytes, expected at most %d", path,
                       (long long)st.st_size, MAX_FILE_BYTES);
    char *block;
    QB_TRY(QB_NEW(&block, (size_t)st.st_size, "metrics"));
    qb_status status = read_all(fd, path, block, (size_t)st.st_size, bytes);
    if (status != QB_OK)
        qb_free(block);
    else
        *text = block;
    return status;
}

/* *text is freed by the caller; before the first line NULL. */
static qb_status read_lines(const char *path, char **text, size_t *bytes)
{
    *text = NULL;
    *bytes = 0;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0 && errno == ENOENT) return QB_OK;
    if (fd < 0) return QB_FAIL_SYSTEM(path, errno, "opened", "a file that can be read");
    qb_status status = read_open(fd, path, text, bytes);
    close(fd);
    return status;
}

/* ---- the pages ---- */

static qb_status write_page(void *context, FILE *stream)
{
    const qb_live *live = context;
    char *text;
    size_t bytes;
    qb_metrics metrics;
    QB_TRY(read_lines(live->path, &text, &bytes));
    qb_status status = qb_metrics_parse(text ? text : "", bytes, live->path, &metrics);
    qb_free(text);
    QB_TRY(status);
    status = qb_report_write_live(&metrics, &live->run, stream);
    qb_metrics_deinit(&metrics);
    return status;
}

static qb_status write_lines(void *context, FILE *stream)
{
    const qb_live *live = context;
    char *text;
    size_t bytes;
    QB_TRY(read_lines(live->path, &text, &bytes));
    if (bytes) fwrite(text, 1, bytes, stream); /* the server sees to errors of the stream */
    qb_free(text);
    return QB_OK;
}

static const qb_serve_page pages[] = {
    {"/", "text/html; charset=utf-8", qb_report_live_policy, write_page},
    {"/metrics.jsonl", "text/plain; charset=utf-8", "default-src 'none'", write_lines},
};

/* ---- life ---- */

qb_status qb_live_open(const qb_cli *cli, qb_live *live)
{
    if (!qb_cli_is_set(cli, "serve")) return QB_OK;
    qb_status status = qb_server_open((uint16_t)qb_cli_size(cli, "serve"), &live->server);
    return status == QB_OK ? QB_OK : qb_error_prefix(status, "--serve");
}

/* Which port was free has to be said even with --quiet. */
static void print_address(const qb_cli *cli, unsigned port)
{
    if (qb_cli_flag(cli, "quiet") && qb_cli_size(cli, "serve")) return;
    fprintf(stderr, "qbench: note: live page: http://127.0.0.1:%u/\n", port);
}

qb_status qb_live_start(const qb_cli *cli, qb_live *live, const char *folder, const char *name,
                        uint64_t n_steps)
{
    if (!live->server) return QB_OK;
    QB_TRY(qb_path_join(folder, "metrics.jsonl", &live->path));
    snprintf(live->name, sizeof live->name, "%.100s", name);
    live->run = (qb_live_run){live->name, (double)n_steps};
    qb_status status = qb_server_start(live->server, pages, QB_COUNT(pages), live);
    if (status != QB_OK) return qb_error_prefix(status, "--serve");
    print_address(cli, qb_server_port(live->server));
    return QB_OK;
}

void qb_live_close(qb_live *live)
{
    qb_server_close(live->server);
    qb_free(live->path);
    *live = (qb_live){0};
}
