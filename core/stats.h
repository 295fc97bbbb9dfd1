/* core/stats.h - order statistics and resampling: what a measured number is worth.
 *
 * All results depend on the values and the seed alone; nothing here asks for a clock. */
#ifndef QB_CORE_STATS_H
#define QB_CORE_STATS_H

#include "core/status.h"

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct qb_interval {
    double low, high; /* both NaN where the data cannot give one */
} qb_interval;

/* Sum of x[0..n) in index order. */
double qb_sum(const double *x, size_t n);
void qb_sort(double *x, size_t n); /* ascending; x holds no NaN */

/* The q-quantile, 0 <= q <= 1, of sorted x by linear interpolation between order statistics
 * (Hyndman and Fan 1996, type 7). NaN for n = 0. */
double qb_quantile(const double *sorted, size_t n, double q);

/* Distribution-free 95 % interval of the median: [x_(k), x_(n+1-k)] with the largest k for which
 * P(Binomial(n, 1/2) < k) <= 2.5 %. NaN below 6 values, which have no such k. */
qb_interval qb_median_ci95(const double *sorted, size_t n);

/* Two-sided 5 % point of Student's t with df >= 1 degrees of freedom (12.71, 4.30, ..., 1.96). */
double qb_student_t975(size_t df);

/* Blocks (windows of a text) with paired sums of negative log-likelihoods. */
typedef struct qb_paired_blocks {
    const double *sum_a, *sum_b; /* (n_blocks) */
    const size_t *count;         /* (n_blocks) tokens in the block */
    size_t n_blocks;
} qb_paired_blocks;

/* exp(sum_b / n) - exp(sum_a / n) over all blocks: the penalty in perplexity. */
double qb_perplexity_difference(const qb_paired_blocks *blocks);

/* 95 % interval of a figure from draws of it, each made by resampling n_units values. Sorts the
 * draws. Percentiles are taken at the level that a t interval of n_units values would have (the
 * expanded percentile interval of Hesterberg 2015, arXiv:1411.5279, section 5.2), since plain
 * percentiles are too narrow for few values. NaN below 2 units or where a draw is not finite. */
qb_interval qb_percentile_ci95(double *draws, size_t n_draws, size_t n_units);

/* 95 % interval of the penalty by the paired block bootstrap: n_resamples times n_blocks blocks
 * drawn with replacement, the exact penalty of each, and their percentiles. */
qb_status qb_bootstrap_penalty(const qb_paired_blocks *blocks, size_t n_resamples, uint64_t seed,
                               qb_interval *out);

#ifdef __cplusplus
}
#endif
#endif
