/* core/serve.c - see serve.h. HTTP itself is libmicrohttpd's, found when the program runs. The few
 * prototypes are those of the public interface of libmicrohttpd.so.12; its header is not needed to
 * build. */
#include "core/serve.h"

#include "core/clock.h"
#include "core/library.h"
#include "core/memory.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

enum { MAX_CONNECTIONS = 16, CONNECTION_BYTES = 16 << 10, TIMEOUT_S = 10, NICER = 10 };
enum { MAX_PAGES = 4 };

/* ---- libmicrohttpd ---- */

enum { HTTP_OK = 200, HTTP_FORBIDDEN = 403, HTTP_NOT_FOUND = 404, HTTP_NOT_ALLOWED = 405 };
enum { HTTP_UNAVAILABLE = 503 };
enum { MHD_NO = 0, MHD_HEADER_KIND = 1, MHD_RESPMEM_MUST_FREE = 1 };
enum { MHD_USE_AUTO_INTERNAL_THREAD = 8 | 65536 };
enum {
    MHD_OPTION_END = 0,
    MHD_OPTION_CONNECTION_MEMORY_LIMIT = 1, /* size_t */
    MHD_OPTION_CONNECTION_LIMIT = 2,        /* unsigned */
    MHD_OPTION_CONNECTION_TIMEOUT = 3,      /* unsigned, seconds */
    MHD_OPTION_LISTEN_SOCKET = 12,          /* int */
};
typedef struct MHD_Daemon http_daemon;
typedef struct MHD_Connection http_connection;
typedef struct MHD_Response http_response;
typedef int http_answer(void *context, http_connection *c, const char *path, const char *method,
                        const char *version, const char *upload, size_t *upload_bytes, void **own);

static struct {
    const char *refusal;
    char refusal_text[128];
    http_daemon *(*start)(unsigned flags, uint16_t port, void *accept, void *accept_context,
                          http_answer *answer, void *context, ...);
    void (*stop)(http_daemon *daemon);
    const char *(*header)(http_connection *c, int kind, const char *key);
    http_response *(*respond)(size_t bytes, void *text, int mode);
    int (*add_header)(http_response *r, const char *key, const char *value);
    int (*queue)(http_connection *c, unsigned code, http_response *r);
    void (*destroy)(http_response *r); /* gives up a share in it */
} http;

static void load(void)
{
    static const char *const names[] = {"libmicrohttpd.so.12"};
    const char *own = getenv("QB_MICROHTTPD_PATH");
    const char *const folders[] = {own ? own : ""};
    const qb_library_entry entries[] = {{"MHD_start_daemon", &http.start},
                                        {"MHD_stop_daemon", &http.stop},
                                        {"MHD_lookup_connection_value", &http.header},
                                        {"MHD_create_response_from_buffer", &http.respond},
                                        {"MHD_add_response_header", &http.add_header},
                                        {"MHD_queue_response", &http.queue},
                                        {"MHD_destroy_response", &http.destroy}};
    const char *missing = qb_library_load(folders, QB_COUNT(folders), names, QB_COUNT(names),
                                          entries, QB_COUNT(entries));
    if (!missing) return;
    snprintf(http.refusal_text, sizeof http.refusal_text,
             "needs libmicrohttpd: found no %s, expected it (Debian: libmicrohttpd12)", missing);
    http.refusal = http.refusal_text;
}

const char *qb_server_refusal(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, load);
    return http.refusal;
}

/* ---- answers ---- */

struct qb_server {
    int fd; /* -1 = the daemon has it */
    uint16_t port;
    http_daemon *daemon;
    const qb_serve_page *pages;
    size_t n_pages;
    void *context;
    /* of the server's thread: */
    bool is_nice;
    http_response *made[MAX_PAGES]; /* of the last second */
    double made_at[MAX_PAGES];
};

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
static http_response *respond(char *text, size_t bytes, const char *type, const char *policy)
{
    const char *const headers[][2] = {{"Content-Type", type},
                                      {"Content-Security-Policy", policy},
                                      {"X-Content-Type-Options", "nosniff"},
                                      {"X-Frame-Options", "DENY"},
                                      {"Cross-Origin-Resource-Policy", "same-origin"},
                                      {"Referrer-Policy", "no-referrer"},
                                      {"Cache-Control", "no-store"}};
    http_response *r = http.respond(bytes, text, MHD_RESPMEM_MUST_FREE);
    if (!r) {
        free(text);
        return NULL;
    }
    for (size_t i = 0; i < QB_COUNT(headers); i++) http.add_header(r, headers[i][0], headers[i][1]);
    return r;
}

static int say(http_connection *c, unsigned code, const char *text)
{
    char *line = NULL;
    int n = asprintf(&line, "%s\n", text);
    if (n < 0) return MHD_NO;
    http_response *r = respond(line, (size_t)n, "text/plain; charset=utf-8", "default-src 'none'");
    if (!r) return MHD_NO;
    if (code == HTTP_NOT_ALLOWED) http.add_header(r, "Allow", "GET, HEAD");
    int result = http.queue(c, code, r);
    http.destroy(r);
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
    http_response *r = respond(text, bytes, page->type, page->policy);
    if (!r) return QB_FAIL(QB_ERR_MEMORY, "%s: no memory", page->path);
    if (s->made[i]) http.destroy(s->made[i]); /* who still sends it has a share in it */
    s->made[i] = r;
    s->made_at[i] = qb_now_s();
    return QB_OK;
}

static int answer(void *context, http_connection *c, const char *path, const char *method,
                  const char *version, const char *upload, size_t *upload_bytes, void **own)
{
    qb_server *s = context;
    size_t i = 0;
    (void)version, (void)upload, (void)upload_bytes, (void)own;
    if (!s->is_nice) setpriority(PRIO_PROCESS, (id_t)gettid(), NICER); /* of this thread */
    s->is_nice = true;
    if (!is_own_host(http.header(c, MHD_HEADER_KIND, "Host")))
        return say(c, HTTP_FORBIDDEN, "403: expected Host: 127.0.0.1 or localhost");
    while (i < s->n_pages && strcmp(path, s->pages[i].path)) i++;
    if (i == s->n_pages) return say(c, HTTP_NOT_FOUND, "404: no such page");
    if (strcmp(method, "GET") && strcmp(method, "HEAD"))
        return say(c, HTTP_NOT_ALLOWED, "405: pages are only read");
    if ((!s->made[i] || qb_now_s() - s->made_at[i] >= 1) && make_page(s, i) != QB_OK)
        return say(c, HTTP_UNAVAILABLE, qb_error_message());
    return http.queue(c, HTTP_OK, s->made[i]);
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
    if (qb_server_refusal()) return QB_FAIL(QB_ERR_UNSUPPORTED, "%s", qb_server_refusal());
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
    s->daemon = http.start(MHD_USE_AUTO_INTERNAL_THREAD, s->port, NULL, NULL, answer, s,
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
    if (s->daemon) http.stop(s->daemon); /* and its thread; connections are cut */
    for (size_t i = 0; i < MAX_PAGES; i++)
        if (s->made[i]) http.destroy(s->made[i]);
    if (s->fd >= 0) close(s->fd);
    qb_free(s);
}
