/* train/schedule.h - the learning rate of each step.
 *
 * It rises linearly over `warmup` steps to `peak`, then stays (constant) or falls on half a cosine
 * to floor * peak (Loshchilov & Hutter 2017, arXiv:1608.03983, without restarts). */
#ifndef QB_TRAIN_SCHEDULE_H
#define QB_TRAIN_SCHEDULE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum { QB_SCHEDULE_COSINE, QB_SCHEDULE_CONSTANT, QB_SCHEDULE_COUNT } qb_schedule_kind;
extern const char *const qb_schedule_names[QB_SCHEDULE_COUNT]; /* cosine constant */

typedef struct qb_schedule {
    unsigned kind; /* qb_schedule_kind */
    double peak, floor;
    size_t warmup;
} qb_schedule;

/* step 1-based, n_steps in all. The first step's rate is peak / warmup and the last one's a little
 * above the floor, so that neither is wasted on a rate of 0. */
double qb_schedule_lr(const qb_schedule *schedule, uint64_t step, uint64_t n_steps);

#ifdef __cplusplus
}
#endif
#endif
