/* report/trace.h - spans as a trace that Perfetto and chrome://tracing show: JSON objects of kind
 * "X" on tracks, a track a thread or stream, a process an engine and operation. */
#ifndef QB_REPORT_TRACE_H
#define QB_REPORT_TRACE_H

#include "core/json.h"

#include <stdio.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct qb_trace {
    json_t *events; /* array; NULL = empty */
} qb_trace;

typedef struct qb_trace_span {
    const char *name, *category;
    size_t process, track;
    double begin_us, length_us;
    json_t *args; /* taken; NULL = none */
} qb_trace_span;

/* Allocations that fail show when the trace is written. */
void qb_trace_name_process(qb_trace *trace, size_t process, const char *name);
void qb_trace_name_track(qb_trace *trace, size_t process, size_t track, const char *name);
void qb_trace_add(qb_trace *trace, const qb_trace_span *span);
qb_status qb_trace_write(const qb_trace *trace, FILE *stream);
void qb_trace_deinit(qb_trace *trace); /* accepts a zeroed one */

#ifdef __cplusplus
}
#endif
#endif
