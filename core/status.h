/* core/status.h - the one error path.
 *
 * Everything that data or machine can do wrong returns a qb_status; QB_FAIL stores a one-line
 * message (object, value found, value allowed) for this thread and returns the code, QB_TRY
 * forwards. Our own bugs are asserts. Nothing below cli/ prints or exits; cli/ maps a status to an
 * exit code by qb_status_exit_code. */
#ifndef QB_CORE_STATUS_H
#define QB_CORE_STATUS_H

#ifdef __cplusplus
extern "C" {
#endif

/* name, exit code (the man page lists them), text */
#define QB_STATUS_LIST(X)                                                                          \
    X(QB_OK, 0, "done")                                                                            \
    X(QB_ERR_GATE, 1, "a gate's limit is broken")                                                  \
    X(QB_ERR_USAGE, 2, "usage")                                                                    \
    X(QB_ERR_FORMAT, 3, "bad input file")                                                          \
    X(QB_ERR_IO, 3, "input or output failed")                                                      \
    X(QB_ERR_UNSUPPORTED, 3, "not supported")                                                      \
    X(QB_ERR_SHAPE, 3, "wrong shape")                                                              \
    X(QB_ERR_MEMORY, 4, "out of memory")                                                           \
    X(QB_ERR_DEVICE, 4, "device")                                                                  \
    X(QB_ERR_INCONCLUSIVE, 5, "inconclusive")                                                      \
    X(QB_ERR_INTERRUPTED, 130, "interrupted")

typedef enum qb_status {
#define X(name, code, text) name,
    QB_STATUS_LIST(X)
#undef X
} qb_status;

/* Columns of the list. */
int qb_status_exit_code(qb_status status);
const char *qb_status_text(qb_status status);

/* The message of the last failure in this thread: one line, no newline, "" before any failure. */
const char *qb_error_message(void);
/* "file.c:123" of the last failure in this thread. */
const char *qb_error_place(void);

/* Stores the message and returns status. Use through QB_FAIL. */
qb_status qb__fail(qb_status status, const char *file, int line, const char *format, ...)
    __attribute__((format(printf, 4, 5), cold));
/* Puts "prefix: " before the stored message, once (a reader adds the file's name). Returns status.
 */
qb_status qb_error_prefix(qb_status status, const char *prefix);

#define QB_FAIL(status, ...) qb__fail((status), __FILE__, __LINE__, __VA_ARGS__)
#define QB_TRY(call)                                                                               \
    do {                                                                                           \
        qb_status qb__try_status = (call);                                                         \
        if (qb__try_status != QB_OK) return qb__try_status;                                        \
    } while (0)
/* The same where resources wait at `label`; `status` is a local variable. */
#define QB_TRY_GOTO(status, call, label)                                                           \
    do {                                                                                           \
        if (((status) = (call)) != QB_OK) goto label;                                              \
    } while (0)

#define QB_COUNT(array) (sizeof(array) / sizeof((array)[0]))

#ifdef __cplusplus
}
#endif
#endif
