/* core/significance.h - is a difference more than noise? Tests and resampled distributions for
 * comparisons. As in core/stats.h, results depend on the values and the seed alone. */
#ifndef QB_CORE_SIGNIFICANCE_H
#define QB_CORE_SIGNIFICANCE_H

#include "core/stats.h"

#ifdef __cplusplus
extern "C" {
#endif

/* P(T <= t) of Student's t with df >= 1 degrees of freedom; exact (Abramowitz and Stegun 26.7.3,
 * 26.7.4). */
double qb_student_cdf(double t, size_t df);

/* Two-sided p of the Mann-Whitney U test: exact up to 20 values a side without ties, else by the
 * normal approximation with corrections for ties and continuity. 1 where a side is empty or all
 * values are equal. No NaN among them. */
qb_status qb_mann_whitney(const double *a, size_t n_a, const double *b, size_t n_b, double *p);

/* Holm's step-down correction in place: of all p that are now below alpha, with probability
 * 1 - alpha none is there by chance (Holm 1979). */
qb_status qb_holm(double *p, size_t n);

/* What resampling says of a figure. */
typedef struct qb_draws {
    double estimate;  /* of the data themselves; NaN = there is none */
    double deviation; /* standard deviation of the draws; 0 = exact, NaN = not known */
    qb_interval ci95;
    size_t n_units; /* windows or samples behind it: few of them widen intervals */
} qb_draws;
/* From values[0..n), which are sorted on the way: percentiles at the level that a t interval of
 * n_units values would have (see qb_bootstrap_penalty). */
qb_draws qb_draws_summarize(double estimate, double *values, size_t n, size_t n_units);
/* Known exactly: no interval but the point. */
qb_draws qb_draws_exact(double value);
/* The figure's chance of looking this far above `limit` if it were at or below it: one-sided p of
 * Student's t on n_units - 1. NaN where the deviation is not known. */
double qb_draws_p_at_most(const qb_draws *draws, double limit);

/* Of median(a) / median(b) - 1, each side resampled: the change of a rate from a to b where a and b
 * are times. */
qb_status qb_bootstrap_medians(const double *a, size_t n_a, const double *b, size_t n_b,
                               size_t n_resamples, uint64_t seed, qb_draws *out);

#ifdef __cplusplus
}
#endif
#endif
