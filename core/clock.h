/* core/clock.h - the clock that durations are measured with: it never goes back. */
#ifndef QB_CORE_CLOCK_H
#define QB_CORE_CLOCK_H

#include <stdint.h>
#include <time.h>

#ifdef __cplusplus
extern "C" {
#endif

static inline int64_t qb_now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static inline double qb_now_ms(void)
{
    return 1e-6 * (double)qb_now_ns();
}

static inline double qb_now_s(void)
{
    return 1e-9 * (double)qb_now_ns();
}

#ifdef __cplusplus
}
#endif
#endif
