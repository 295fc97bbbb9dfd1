/* infer/peaks.h - how fast this machine is at most, measured: what the share of a roofline is of.
 *
 * Copying and reading far more than the caches hold, reading a quarter of the last cache (by a
 * product of one row, which does little else), and a large product in each number type by the row
 * that is first in its table here. Best of several turns: about a second. */
#ifndef QB_INFER_PEAKS_H
#define QB_INFER_PEAKS_H

#include "core/phases.h"
#include "infer/engine.h"

#ifdef __cplusplus
extern "C" {
#endif

/* QB_ERR_INTERRUPTED on Ctrl-C. */
qb_status qb_peaks_measure(const qb_device *device, qb_pool *pool, qb_peaks *out);

/* Raises *out to what `other` has higher. */
void qb_peaks_raise(const qb_peaks *other, qb_peaks *out);

enum { QB_PEAKS_KEY_BYTES = 512 };
/* What the peaks depend on: processor, threads, kernel rows, GPU and driver. Equal keys, equal
 * machines. */
void qb_peaks_key(const qb_device *device, const qb_pool *pool, char key[QB_PEAKS_KEY_BYTES]);

typedef struct qb_kept_peaks {
    qb_peaks peaks;
    char time_utc[32]; /* of the measurement */
} qb_kept_peaks;
/* From the user's cache: $XDG_CACHE_HOME/qbench or ~/.cache/qbench, a file a key. *found is false
 * where there is none or it cannot be used (cut off, of another version or machine). */
qb_status qb_peaks_load(const char *key, qb_kept_peaks *out, bool *found);
/* Whole or not at all. QB_ERR_IO: the message names the file. */
qb_status qb_peaks_store(const char *key, const qb_kept_peaks *peaks);

#ifdef __cplusplus
}
#endif
#endif
