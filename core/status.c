/* core/status.c - messages of failures, one buffer a thread. */
#include "core/status.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

enum { MESSAGE_BYTES = 1024, PLACE_BYTES = 256 };

static _Thread_local char message[MESSAGE_BYTES];
static _Thread_local char place[PLACE_BYTES];

int qb_status_exit_code(qb_status status)
{
    switch (status) {
#define X(name, code, text)                                                                        \
    case name:                                                                                     \
        return code;
        QB_STATUS_LIST(X)
#undef X
    }
    return 4;
}

const char *qb_status_text(qb_status status)
{
    switch (status) {
#define X(name, code, text)                                                                        \
    case name:                                                                                     \
        return text;
        QB_STATUS_LIST(X)
#undef X
    }
    return "unknown status";
}

const char *qb_error_message(void)
{
    return message;
}

const char *qb_error_place(void)
{
    return place;
}

/* Messages quote names and strings from hostile files: keep them one printable line. */
static void make_one_line(char *text)
{
    for (char *p = text; *p; p++)
        if ((unsigned char)*p < 0x20 || *p == 0x7f) *p = '?';
}

qb_status qb__fail(qb_status status, const char *file, int line, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(message, sizeof message, format, args);
    va_end(args);
    make_one_line(message);
    const char *stem = strrchr(file, '/');
    snprintf(place, sizeof place, "%s:%d", stem ? stem + 1 : file, line);
    return status;
}

qb_status qb_error_prefix(qb_status status, const char *prefix)
{
    char old[MESSAGE_BYTES];
    memcpy(old, message, sizeof old);
    snprintf(message, sizeof message, "%.300s: %.700s", prefix, old);
    make_one_line(message);
    return status;
}
