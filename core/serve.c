/* core/serve.c - see serve.h. HTTP itself is libmicrohttpd's. */
#include "core/serve.h"

#ifdef QB_WITH_HTTP

#include "core/memory.h"

#include <arpa/inet.h>
#include <errno.h>
#include <microhttpd.h>
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { MAX_CONNECTIONS = 16, CONNECTION_BYTES = 16 << 10, TIMEOUT_S = 10, NICER = 10 };
enum { MAX_PAGES = 4 };

struct qb_server {
    int fd; /* -1 = the daemon has it */
    uint16_t port;
    struct MHD_Daemon *daemon;
    const qb_serve_page *pages;
    size_t n_pages;
    void *context;
    /* of the server's thread: */
    bool is_nice;
    struct MHD_Response *made[MAX_PAGES]; /* of the last second */
    double made_at[MAX_PAGES];
};

const char *qb_server_refusal(void)
{
    return NULL;
}

/* ---- answers ---- */

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* "localhost", "127.0.0.1:8000": any port, since a tunnel may end at another. */
static bool is_own_host(const char *host)
{
    static const char *const own[] = {"127.0.0.1", "localhost"};
    if (!host) return false;
    size_t n = strcspn(host, ":");
    if (host[n] && strspn(host + n + 1, "0123456789") != strlen(host + n + 1)) return false;
    for (size_t i = 0; i < QB_COUNT(own); i++)
        if (n == strlen(own[i]) && !strncasecmp(host, own[i], n)) return true;
    return false;
}

/* malloc's text becomes the library's. */
static struct MHD_Response *respond(char *text, size_t bytes, const char *type, const char *policy)
{
    const char *const headers[][2] = {{"Content-Type", type},
                                      {"Content-Security-Policy", policy},
                                      {"X-Content-Type-Options", "nosniff"},
                                      {"X-Frame-Options", "DENY"},
                                      {"Cross-Origin-Resource-Policy", "same-origin"},
                                      {"Referrer-Policy", "no-referrer"},
                                      {"Cache-Control", "no-store"}};
    struct MHD_Response *r = MHD_create_response_from_buffer(bytes, text, MHD_RESPMEM_MUST_FREE);
    if (!r) {
        free(text);
        return NULL;
    }
    for (size_t i = 0; i < QB_COUNT(headers); i++)
        MHD_add_response_header(r, headers[i][0], headers[i][1]);
    return r;
}

static enum MHD_Result say(struct MHD_Connection *c, unsigned code, const char *text)
{
    char *line = NULL;
    int n = asprintf(&line, "%s\n", text);
    if (n < 0) return MHD_NO;
    struct MHD_Response *r =
        respond(line, (size_t)n, "text/plain; charset=utf-8", "default-src 'none'");
    if (!r) return MHD_NO;
    if (code == MHD_HTTP_METHOD_NOT_ALLOWED) MHD_add_response_header(r, "Allow", "GET, HEAD");
    enum MHD_Result result = MHD_queue_response(c, code, r);
    MHD_destroy_response(r);
    return result;
}

static qb_status make_page(qb_server *s, size_t i)
{
    const qb_serve_page *page = &s->pages[i];
    char *text = NULL;
    size_t bytes = 0;
    FILE *stream = open_memstream(&text, &bytes);
    if (!stream) return QB_FAIL(QB_ERR_MEMORY, "%s: no memory", page->path);
    qb_status status = page->write(s->context, stream);
    if (fclose(stream) && status == QB_OK)
        status = QB_FAIL(QB_ERR_MEMORY, "%s: no memory", page->path);
    if (status != QB_OK) {
        free(text);
        return status;
    }
    struct MHD_Response *r = respond(text, bytes, page->type, page->policy);
    if (!r) return QB_FAIL(QB_ERR_MEMORY, "%s: no memory", page->path);
    if (s->made[i]) MHD_destroy_response(s->made[i]); /* who still sends it has a share in it */
    s->made[i] = r;
    s->made_at[i] = now();
    return QB_OK;
}

static enum MHD_Result answer(void *context, struct MHD_Connection *c, const char *path,
                              const char *method, const char *version, const char *upload,
                              size_t *upload_bytes, void **own)
{
    qb_server *s = context;
    size_t i = 0;
    (void)version, (void)upload, (void)upload_bytes, (void)own;
    if (!s->is_nice) setpriority(PRIO_PROCESS, (id_t)gettid(), NICER); /* of this thread */
    s->is_nice = true;
    if (!is_own_host(MHD_lookup_connection_value(c, MHD_HEADER_KIND, "Host")))
        return say(c, MHD_HTTP_FORBIDDEN, "403: expected Host: 127.0.0.1 or localhost");
    while (i < s->n_pages && strcmp(path, s->pages[i].path)) i++;
    if (i == s->n_pages) return say(c, MHD_HTTP_NOT_FOUND, "404: no such page");
    if (strcmp(method, "GET") && strcmp(method, "HEAD"))
        return say(c, MHD_HTTP_METHOD_NOT_ALLOWED, "405: pages are only read");
    if ((!s->made[i] || now() - s->made_at[i] >= 1) && make_page(s, i) != QB_OK)
        return say(c, MHD_HTTP_SERVICE_UNAVAILABLE, qb_error_message());
    return MHD_queue_response(c, MHD_HTTP_OK, s->made[i]);
}

/* ---- life ---- */

static qb_status take_port(qb_server *s, uint16_t port)
{
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(port)};
    socklen_t bytes = sizeof at;
    int on = 1;
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    s->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (s->fd < 0) return QB_FAIL(QB_ERR_IO, "socket: %s", strerror(errno));
    setsockopt(s->fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on); /* right after another run */
    if (bind(s->fd, (struct sockaddr *)&at, bytes) || listen(s->fd, MAX_CONNECTIONS)) {
        if (errno == EADDRINUSE)
            return QB_FAIL(QB_ERR_USAGE, "port %u is in use, expected a free one (0 takes any)",
                           port);
        return QB_FAIL(QB_ERR_USAGE, "port %u: %s", port, strerror(errno));
    }
    if (getsockname(s->fd, (struct sockaddr *)&at, &bytes))
        return QB_FAIL(QB_ERR_IO, "port %u: %s", port, strerror(errno));
    s->port = ntohs(at.sin_port);
    return QB_OK;
}

qb_status qb_server_open(uint16_t port, qb_server **out)
{
    qb_server *s;
    QB_TRY(QB_NEW_ZERO(&s, 1, "server"));
    s->fd = -1;
    qb_status status = take_port(s, port);
    if (status != QB_OK)
        qb_server_close(s);
    else
        *out = s;
    return status;
}

uint16_t qb_server_port(const qb_server *server)
{
    return server->port;
}

qb_status qb_server_start(qb_server *s, const qb_serve_page *pages, size_t n_pages, void *context)
{
    sigset_t all, before;
    if (n_pages > MAX_PAGES) return QB_FAIL(QB_ERR_UNSUPPORTED, "more than %d pages", MAX_PAGES);
    s->pages = pages;
    s->n_pages = n_pages;
    s->context = context;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before); /* the thread inherits it */
    s->daemon = MHD_start_daemon(MHD_USE_AUTO_INTERNAL_THREAD, s->port, NULL, NULL, answer, s,
                                 MHD_OPTION_LISTEN_SOCKET, s->fd, MHD_OPTION_CONNECTION_LIMIT,
                                 (unsigned)MAX_CONNECTIONS, MHD_OPTION_CONNECTION_MEMORY_LIMIT,
                                 (size_t)CONNECTION_BYTES, MHD_OPTION_CONNECTION_TIMEOUT,
                                 (unsigned)TIMEOUT_S, MHD_OPTION_END);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (!s->daemon) return QB_FAIL(QB_ERR_IO, "the server did not start: %s", strerror(errno));
    s->fd = -1; /* closed with the daemon */
    return QB_OK;
}

void qb_server_close(qb_server *s)
{
    if (!s) return;
    if (s->daemon) MHD_stop_daemon(s->daemon); /* and its thread; connections are cut */
    for (size_t i = 0; i < MAX_PAGES; i++)
        if (s->made[i]) MHD_destroy_response(s->made[i]);
    if (s->fd >= 0) close(s->fd);
    qb_free(s);
}

#else

const char *qb_server_refusal(void)
{
    return "built without libmicrohttpd";
}

qb_status qb_server_open(uint16_t port, qb_server **out)
{
    (void)port, (void)out;
    return QB_FAIL(QB_ERR_UNSUPPORTED, "%s", qb_server_refusal());
}

uint16_t qb_server_port(const qb_server *server)
{
    (void)server;
    return 0;
}

qb_status qb_server_start(qb_server *server, const qb_serve_page *pages, size_t n_pages,
                          void *context)
{
    (void)server, (void)pages, (void)n_pages, (void)context;
    return QB_FAIL(QB_ERR_UNSUPPORTED, "%s", qb_server_refusal());
}

void qb_server_close(qb_server *server)
{
    (void)server;
}

#endif
