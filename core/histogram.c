/* core/histogram.c - see histogram.h. */
#include "core/histogram.h"

#include <math.h>

enum { MIN_EXPONENT = -20 }; /* of QB_HISTOGRAM_MIN */

static size_t bucket_of(double value)
{
    int exponent;
    if (!(value >= QB_HISTOGRAM_MIN)) return 0;
    if (value >= QB_HISTOGRAM_MAX) return QB_HISTOGRAM_BUCKETS - 1;
    double fraction = frexp(value, &exponent); /* [0.5, 1) x 2^exponent */
    size_t step = (size_t)((2 * fraction - 1) * QB_HISTOGRAM_STEPS);
    return (size_t)(exponent - 1 - MIN_EXPONENT) * QB_HISTOGRAM_STEPS + step;
}

double qb_histogram_bucket_low(size_t i)
{
    double fraction = 1 + (double)(i % QB_HISTOGRAM_STEPS) / QB_HISTOGRAM_STEPS;
    return ldexp(fraction, (int)(i / QB_HISTOGRAM_STEPS) + MIN_EXPONENT);
}

void qb_histogram_add(qb_histogram *h, double value)
{
    if (!(value > 0)) value = QB_HISTOGRAM_MIN;
    if (!h->n || value < h->low) h->low = value;
    if (!h->n || value > h->high) h->high = value;
    h->n++;
    h->count[bucket_of(value)]++;
}

double qb_histogram_quantile(const qb_histogram *h, double q)
{
    uint64_t seen = 0;
    if (!h->n) return NAN;
    if (q <= 0) return h->low;
    if (q >= 1) return h->high;
    uint64_t rank = (uint64_t)ceil(q * (double)h->n); /* the rank-th smallest */
    size_t i = 0;
    for (; i < QB_HISTOGRAM_BUCKETS - 1; i++)
        if ((seen += h->count[i]) >= rank) break;
    double middle = (qb_histogram_bucket_low(i) + qb_histogram_bucket_low(i + 1)) / 2;
    return fmin(fmax(middle, h->low), h->high);
}
