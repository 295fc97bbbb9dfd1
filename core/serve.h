/* core/serve.h - a few read-only pages for a browser on this machine, while something else runs.
 *
 * Listens on 127.0.0.1 alone, on a thread of its own with a lower priority than the rest and all
 * signals blocked. Answers GET and HEAD of the paths it was given; another path is 404, another
 * method 405, and a request whose Host is neither 127.0.0.1 nor localhost 403 (a page of the
 * network that a name leads back here could read the answers: DNS rebinding). A page is made at
 * most once a second however often it is asked for; connections, their memory and their time are
 * limited. */
#ifndef QB_CORE_SERVE_H
#define QB_CORE_SERVE_H

#include "core/status.h"

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct qb_serve_page {
    const char *path;   /* "/" */
    const char *type;   /* its media type */
    const char *policy; /* Content-Security-Policy */
    /* Runs on the server's thread, one call at a time. On failure the answer is 503 and the
     * message. */
    qb_status (*write)(void *context, FILE *stream);
} qb_serve_page;

typedef struct qb_server qb_server;

/* NULL = pages can be served here, else why not. libmicrohttpd is looked for in the folder
 * $QB_MICROHTTPD_PATH, or without it where the loader looks. */
const char *qb_server_refusal(void);
/* Takes the port (0 = any that is free). QB_ERR_USAGE: it is in use, or not ours to take;
 * QB_ERR_UNSUPPORTED: there is no libmicrohttpd here. */
qb_status qb_server_open(uint16_t port, qb_server **out);
uint16_t qb_server_port(const qb_server *server);
/* Begins to answer, until the close; pages and context are borrowed. */
qb_status qb_server_start(qb_server *server, const qb_serve_page *pages, size_t n_pages,
                          void *context);
void qb_server_close(qb_server *server); /* accepts NULL */

#ifdef __cplusplus
}
#endif
#endif
