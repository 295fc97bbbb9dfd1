/* train/schedule.c - see schedule.h. */
#include "train/schedule.h"

#include <math.h>

const char *const qb_schedule_names[QB_SCHEDULE_COUNT] = {"cosine", "constant"};

double qb_schedule_lr(const qb_schedule *s, uint64_t step, uint64_t n_steps)
{
    if (step <= s->warmup) return s->peak * (double)step / (double)s->warmup;
    if (s->kind == QB_SCHEDULE_CONSTANT) return s->peak;
    if (step > n_steps) return s->peak * s->floor;
    double done = (double)(step - 1 - s->warmup) / (double)(n_steps - s->warmup);
    return s->peak * (s->floor + (1.0 - s->floor) * 0.5 * (1.0 + cos(M_PI * done)));
}
