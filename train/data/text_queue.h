/* train/data/text_queue.h - texts in order, the next ones read and decompressed in the background:
 * decompression uses one thread a file, what follows uses all. */
#ifndef QB_TRAIN_DATA_TEXT_QUEUE_H
#define QB_TRAIN_DATA_TEXT_QUEUE_H

#include "model/text.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct qb_text_queue qb_text_queue;

/* As many as n_ahead texts (1 to QB_TEXT_QUEUE_MAX) are held beside the one that was taken. paths
 * are borrowed; "-" (standard input) is read when its turn comes. max_bytes as in qb_text_open. */
enum { QB_TEXT_QUEUE_MAX = 16 };
qb_status qb_text_queue_open(const char *const *paths, size_t n_paths, size_t n_ahead,
                             size_t max_bytes, qb_text_queue **out);
/* The next text, or why it cannot be had; the caller's to deinit. At most n_paths calls. */
qb_status qb_text_queue_next(qb_text_queue *queue, qb_text *out);
/* Waits for the files that are being read; accepts NULL. */
void qb_text_queue_close(qb_text_queue *queue);

#ifdef __cplusplus
}
#endif
#endif
