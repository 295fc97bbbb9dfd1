/* core/json.h - jansson with our limits: hostile text is refused by size, depth and duplicate keys.
 * The library does the parsing; this header holds what every reader of JSON here needs beside it.
 */
#ifndef QB_CORE_JSON_H
#define QB_CORE_JSON_H

#include "core/status.h"

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* jansson allocates through qb_library_alloc (set before main). A text from json_dumps is therefore
 * given back with qb_library_free, not with free. */

/* Where an allocation fails, jansson gives NULL or leaves a value out. Code that builds values
 * takes a mark first and asks at the end whether any failed since, in this thread: QB_ERR_MEMORY.
 */
size_t qb_json_mark(void);
qb_status qb_json_check_memory(size_t mark, const char *what);

/* For limits that are checked before parsing: the next of { } [ ] , outside of strings from *at on,
 * which moves behind it; 0 = there is none. */
char qb_json_next_mark(const char *text, size_t bytes, size_t *at);

/* Parses text[0..bytes) (no NUL needed), at most max_bytes. Leading and trailing white space is
 * allowed, anything else after the value is not; duplicate keys, NUL in strings, depth over 64,
 * more than 2^20 lists and objects and numbers out of range are refused. `what` names the text. The
 * caller owns *out (json_decref). */
qb_status qb_json_parse(const char *text, size_t bytes, size_t max_bytes, const char *what,
                        json_t **out);
qb_status qb_json_read_file(const char *path, size_t max_bytes, json_t **out);
/* A text of JSON, an object a line: calls line(context, object, where) for each, `where` being
 * "line 3"; the object is the walk's. Stops at the first failure; a message of the walk's own
 * begins with that place. A last line without its end is still being written, and left out, or it
 * was cut off, which is QB_ERR_FORMAT. */
typedef enum qb_last_line { QB_LAST_LINE_MAY_BE_OPEN, QB_LAST_LINE_IS_WHOLE } qb_last_line;
typedef qb_status (*qb_json_line)(void *context, const json_t *object, const char *where);
qb_status qb_json_walk_lines(const char *text, size_t bytes, size_t max_line_bytes,
                             qb_last_line last, qb_json_line line, void *context);
/* json_dumps with the flags; the text ends in a NUL and is given back with qb_library_free. A
 * failed allocation is QB_ERR_MEMORY, where jansson alone may leave a key out and go on. */
qb_status qb_json_dump(const json_t *value, size_t flags, const char *what, char **out);

/* Typed access with range checks; the message names `key`. The value may be absent: *out keeps its
 * value and QB_OK comes back, so callers preset the default. null counts as absent. */
qb_status qb_json_get_size(const json_t *object, const char *key, size_t min, size_t max,
                           size_t *out);
qb_status qb_json_get_double(const json_t *object, const char *key, double min, double max,
                             double *out);
qb_status qb_json_get_bool(const json_t *object, const char *key, bool *out);
/* Borrowed from the object. */
qb_status qb_json_get_string(const json_t *object, const char *key, const char **out);
/* For who only shows a value: NaN where it is no number, "-" where it is no text (borrowed). */
double qb_json_real_at(const json_t *object, const char *key);
const char *qb_json_text_at(const json_t *object, const char *key);
/* A number, or null where it is NaN or infinite (the contract: not measured is null, never 0). */
json_t *qb_json_real(double value);
void qb_json_set_real(json_t *object, const char *key, double value);
void qb_json_set_size(json_t *object, const char *key, size_t value);

#ifdef __cplusplus
}
#endif
#endif
