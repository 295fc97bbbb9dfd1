/* train/metrics_log.h - what a run reports as it goes: metrics.jsonl, and a TensorBoard event file.
 *
 * Both only grow. A checkpoint remembers their lengths, and a resumed run cuts them there, so that
 * the lines of steps that are done again do not stand twice. */
#ifndef QB_TRAIN_METRICS_LOG_H
#define QB_TRAIN_METRICS_LOG_H

#include "core/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct qb_metric {
    const char *name;
    double value; /* NaN = not measured: null in JSON, absent in TensorBoard */
} qb_metric;

typedef struct qb_metrics_log qb_metrics_log;

/* FOLDER/metrics.jsonl and, with tensorboard, FOLDER/events.out.tfevents.qbench, each cut to the
 * length given (0: begun anew). QB_ERR_FORMAT: one is shorter than that. */
qb_status qb_metrics_log_open(const char *folder, bool tensorboard, uint64_t metrics_bytes,
                              uint64_t events_bytes, qb_metrics_log **out);
void qb_metrics_log_close(qb_metrics_log *log); /* accepts NULL */
/* {"kind": "train", "step": 10, "loss": ...} as one line; "train/loss" in TensorBoard, whose curves
 * have one point a step: not of kind "skip", which has a line for each part of the model. */
qb_status qb_metrics_log_write(qb_metrics_log *log, const char *kind, uint64_t step,
                               const qb_metric *metrics, size_t n);
/* Lengths of the two, all of it on disk; 0 for an absent one. */
qb_status qb_metrics_log_sync(qb_metrics_log *log, uint64_t *metrics_bytes, uint64_t *events_bytes);

/* ---- the record format of TensorFlow's event files ---- */

/* CRC-32C (Castagnoli), and its masked form in records. */
uint32_t qb_crc32c(const void *data, size_t bytes);
static inline uint32_t qb_crc32c_mask(uint32_t crc)
{
    return (crc >> 15 | crc << 17) + 0xa282ead8u;
}

#ifdef __cplusplus
}
#endif
#endif
