/* core/moments.h - count, mean and central moments of a set of numbers, in double, whose parts may
 * come one by one or as sets: the kurtosis of what is too much to hold.
 *
 * Adding a number and merging two sets are the updates of Pebay 2008 (SAND2008-6212), equations
 * 3.1 and 2.1; so nothing is lost where the mean is far from zero, as with sums of powers. */
#ifndef QB_CORE_MOMENTS_H
#define QB_CORE_MOMENTS_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct qb_moments {
    double n, mean;
    double m2, m3, m4; /* sums of (x - mean)^k */
} qb_moments;

qb_moments qb_moments_of(const float *x, size_t n); /* in two passes */
/* One number, or another set, more; a zeroed qb_moments is the empty set. */
void qb_moments_add(qb_moments *moments, double x);
void qb_moments_merge(qb_moments *moments, const qb_moments *more);
/* Pearson's: 3 for a Gaussian; NaN where all numbers are equal, or there is none. */
double qb_moments_kurtosis(const qb_moments *moments);

/* Largest magnitude; 0 for none. */
float qb_max_abs(const float *x, size_t n);
/* Pearson's correlation of x and y; NaN where one of them does not vary. */
double qb_correlation(const double *x, const double *y, size_t n);
/* The k-th smallest (from 0) of x[0..n), n > k; x is left in another order, and holds no NaN. */
float qb_select(float *x, size_t n, size_t k);

#ifdef __cplusplus
}
#endif
#endif
