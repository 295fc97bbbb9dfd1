/* core/histogram.h - positive numbers counted in buckets of 1 % and less: percentiles of any number
 * of values in a fixed space, after Tene's HdrHistogram.
 *
 * A power of two is cut into QB_HISTOGRAM_STEPS equal buckets (log-linear), so a bucket is at most
 * 1 / QB_HISTOGRAM_STEPS of its lower end wide, and its middle at most half of that from any value
 * in it. Values outside [QB_HISTOGRAM_MIN, QB_HISTOGRAM_MAX) count in the first or last bucket; the
 * smallest and largest value are kept exactly. */
#ifndef QB_CORE_HISTOGRAM_H
#define QB_CORE_HISTOGRAM_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define QB_HISTOGRAM_MIN 0x1p-20 /* of milliseconds: a nanosecond */
#define QB_HISTOGRAM_MAX 0x1p24  /* of milliseconds: 4.7 hours */
enum { QB_HISTOGRAM_STEPS = 64, QB_HISTOGRAM_BUCKETS = 44 * QB_HISTOGRAM_STEPS };

typedef struct qb_histogram {
    uint64_t n;
    double low, high; /* smallest and largest value; unset while n is 0 */
    uint32_t count[QB_HISTOGRAM_BUCKETS];
} qb_histogram;

/* A zeroed histogram is empty. Value > 0; what is not a positive number counts as the smallest. */
void qb_histogram_add(qb_histogram *histogram, double value);
/* The value that a share q of all values does not pass, within 1 % (the exact smallest and largest
 * for q = 0 and 1); NaN of an empty histogram. */
double qb_histogram_quantile(const qb_histogram *histogram, double q);
/* The bounds of bucket i. */
double qb_histogram_bucket_low(size_t i);

#ifdef __cplusplus
}
#endif
#endif
