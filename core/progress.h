/* core/progress.h - one progress line with the time left, for work that takes more than 2 s.
 *
 * Silent until cli/ opens a stream (not with --quiet). On a terminal the line is rewritten about
 * 10 times a second and taken away at the end; elsewhere a whole line comes every 10 s. Calls come
 * from one thread at a time; an update costs a clock reading. */
#ifndef QB_CORE_PROGRESS_H
#define QB_CORE_PROGRESS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct qb_progress {
    const char *what; /* "coarse: quality", borrowed */
    size_t done, total;
    size_t first;                /* done before this work began (a resumed run) */
    const char *detail;          /* ", detail" follows the share; borrowed, NULL = none */
    uint64_t start_ns, shown_ns; /* shown_ns 0 = nothing printed yet */
} qb_progress;

/* NULL closes it. is_terminal: rewrite one line. */
void qb_progress_open(FILE *stream, bool is_terminal);

/* `total` units of work, of any kind; `done` counts them from 0 (or `first`). */
qb_progress qb_progress_begin(const char *what, size_t total);
void qb_progress_update(qb_progress *progress, size_t done);
/* Takes the line away (terminal). Also on failure. */
void qb_progress_end(qb_progress *progress);

#ifdef __cplusplus
}
#endif
#endif
