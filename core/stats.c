/* core/stats.c - see stats.h. */
#include "core/stats.h"

#include "core/memory.h"
#include "core/rng.h"

#include <math.h>
#include <stdlib.h>

double qb_sum(const double *x, size_t n)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += x[i];
    return sum;
}

static int compare_doubles(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

void qb_sort(double *x, size_t n)
{
    if (n) qsort(x, n, sizeof *x, compare_doubles);
}

double qb_quantile(const double *sorted, size_t n, double q)
{
    if (!n) return NAN;
    double at = q * (double)(n - 1);
    size_t i = (size_t)at;
    if (i + 1 >= n) return sorted[n - 1];
    return sorted[i] + (at - (double)i) * (sorted[i + 1] - sorted[i]);
}

qb_interval qb_median_ci95(const double *sorted, size_t n)
{
    /* Binomial terms in logs: 0.5^n is 0 in double from n = 1075 on. */
    double log_term = (double)n * log(0.5), below = 0;
    size_t k = 0;
    while (k < n) {
        below += exp(log_term); /* P(X <= k) */
        if (below > 0.025) break;
        log_term += log((double)(n - k)) - log((double)(k + 1));
        k++;
    }
    if (k == 0) return (qb_interval){NAN, NAN};
    return (qb_interval){sorted[k - 1], sorted[n - k]};
}

double qb_student_t975(size_t df)
{
    static const double exact[] = {12.7062, 4.3027, 3.1824, 2.7764}; /* the series is poor here */
    if (df <= QB_COUNT(exact)) return exact[df ? df - 1 : 0];
    /* Cornish-Fisher expansion about the normal quantile; Abramowitz and Stegun 26.7.5. */
    const double z = 1.959963984540054, z3 = z * z * z, z5 = z3 * z * z, z7 = z5 * z * z,
                 z9 = z7 * z * z;
    double v = (double)df;
    return z + (z3 + z) / (4 * v) + (5 * z5 + 16 * z3 + 3 * z) / (96 * v * v) +
           (3 * z7 + 19 * z5 + 17 * z3 - 15 * z) / (384 * v * v * v) +
           (79 * z9 + 776 * z7 + 1482 * z5 - 1920 * z3 - 945 * z) / (92160 * v * v * v * v);
}

static double penalty_of(double sum_a, double sum_b, size_t count)
{
    return exp(sum_b / (double)count) - exp(sum_a / (double)count);
}

double qb_perplexity_difference(const qb_paired_blocks *blocks)
{
    double a = 0, b = 0;
    size_t count = 0;
    for (size_t i = 0; i < blocks->n_blocks; i++) {
        a += blocks->sum_a[i];
        b += blocks->sum_b[i];
        count += blocks->count[i];
    }
    return count ? penalty_of(a, b, count) : NAN;
}

static double resample(const qb_paired_blocks *blocks, uint64_t seed, uint64_t first)
{
    double a = 0, b = 0;
    size_t count = 0;
    for (size_t i = 0; i < blocks->n_blocks; i++) {
        size_t pick = qb_rng_below(seed, QB_STREAM_BOOTSTRAP, first + i, blocks->n_blocks);
        a += blocks->sum_a[pick];
        b += blocks->sum_b[pick];
        count += blocks->count[pick];
    }
    return penalty_of(a, b, count);
}

qb_interval qb_percentile_ci95(double *draws, size_t n_draws, size_t n_units)
{
    if (n_units < 2 || !n_draws) return (qb_interval){NAN, NAN};
    for (size_t i = 0; i < n_draws; i++) /* exp overflows on a destroyed model */
        if (!isfinite(draws[i])) return (qb_interval){NAN, NAN};
    qb_sort(draws, n_draws);
    double t = sqrt((double)n_units / (double)(n_units - 1)) * qb_student_t975(n_units - 1);
    double tail = 0.5 * erfc(t / sqrt(2.0)); /* normal probability beyond t */
    return (qb_interval){qb_quantile(draws, n_draws, tail), qb_quantile(draws, n_draws, 1 - tail)};
}

qb_status qb_bootstrap_penalty(const qb_paired_blocks *blocks, size_t n_resamples, uint64_t seed,
                               qb_interval *out)
{
    size_t n = blocks->n_blocks;
    if (n < 2 || !n_resamples) {
        *out = (qb_interval){NAN, NAN};
        return QB_OK;
    }
    double *penalty;
    QB_TRY(QB_NEW(&penalty, n_resamples, "bootstrap resamples"));
    for (size_t r = 0; r < n_resamples; r++) penalty[r] = resample(blocks, seed, (uint64_t)r * n);
    *out = qb_percentile_ci95(penalty, n_resamples, n);
    qb_free(penalty);
    return QB_OK;
}
