/* report/trace.c - see trace.h. */
#include "report/trace.h"

#include "core/memory.h"

static void append(qb_trace *t, json_t *event)
{
    if (!t->events) t->events = json_array();
    json_array_append_new(t->events, event);
}

static void name_it(qb_trace *t, const char *kind, size_t process, size_t track, const char *name)
{
    append(t, json_pack("{s:s, s:s, s:i, s:i, s:{s:s}}", "name", kind, "ph", "M", "pid",
                        (int)process, "tid", (int)track, "args", "name", name));
}

void qb_trace_name_process(qb_trace *t, size_t process, const char *name)
{
    name_it(t, "process_name", process, 0, name);
}

void qb_trace_name_track(qb_trace *t, size_t process, size_t track, const char *name)
{
    name_it(t, "thread_name", process, track, name);
}

void qb_trace_add(qb_trace *t, const qb_trace_span *span)
{
    json_t *event = json_pack("{s:s, s:s, s:s, s:i, s:i, s:f, s:f}", "name", span->name, "cat",
                              span->category, "ph", "X", "pid", (int)span->process, "tid",
                              (int)span->track, "ts", span->begin_us, "dur", span->length_us);
    if (span->args) json_object_set_new(event, "args", span->args);
    append(t, event);
}

qb_status qb_trace_write(const qb_trace *t, FILE *stream)
{
    size_t mark = qb_json_mark();
    char *text = NULL;
    json_t *root = json_object();
    json_object_set_new(root, "displayTimeUnit", json_string("ms"));
    json_object_set(root, "traceEvents", t->events);
    qb_status status = qb_json_check_memory(mark, "trace");
    if (status == QB_OK) status = qb_json_dump(root, JSON_COMPACT, "trace", &text);
    json_decref(root);
    QB_TRY(status);
    fputs(text, stream);
    fputc('\n', stream);
    qb_library_free(text);
    return QB_OK;
}

void qb_trace_deinit(qb_trace *t)
{
    json_decref(t->events);
    *t = (qb_trace){0};
}
