/* model/text_internal.h - a growing buffer with a limit, and the decompressors that fill it. */
#ifndef QB_MODEL_TEXT_INTERNAL_H
#define QB_MODEL_TEXT_INTERNAL_H

#include "core/status.h"

#include <stddef.h>
#include <stdint.h>

typedef struct qb__growing {
    char *data; /* owned; NULL while empty */
    size_t n, capacity;
    size_t max; /* more is refused */
} qb__growing;

/* At least `bytes` free behind n. */
qb_status qb__growing_room(qb__growing *g, size_t bytes);
/* QB_ERR_FORMAT where n has passed max. */
qb_status qb__growing_check(const qb__growing *g);

/* All members of a gzip file, all streams of an xz file, appended to out. */
qb_status qb__gunzip(const uint8_t *data, size_t bytes, qb__growing *out);
qb_status qb__unxz(const uint8_t *data, size_t bytes, qb__growing *out);

#endif
