/* core/significance.c - see significance.h. */
#include "core/significance.h"

#include "core/memory.h"
#include "core/rng.h"

#include <math.h>
#include <stdbool.h>
#include <string.h>

/* ---- distributions ---- */

static double normal_cdf(double z)
{
    return 0.5 * erfc(-z / sqrt(2.0));
}

double qb_student_cdf(double t, size_t df)
{
    if (isinf(t) || df > 100000) return normal_cdf(t);
    double theta = atan(t / sqrt((double)df)), c = cos(theta), s = sin(theta);
    bool odd = df % 2;
    double sum = 0, term = odd ? c : 1;
    for (size_t i = odd ? 1 : 0; i + 2 <= df; i += 2) { /* df / 2 terms, from c or from 1 on */
        sum += term;
        term *= c * c * (double)(i + 1) / (double)(i + 2);
    }
    double within = odd ? 2 / M_PI * (theta + s * sum) : s * sum; /* P(|T| < t), signed */
    return 0.5 * (1 + within);
}

/* ---- Mann-Whitney ---- */

enum { MAX_EXACT = 20 };

/* P(U >= u) without ties: the counts are the coefficients of the Gaussian binomial, a product of
 * (1 - q^(n_b + i)) / (1 - q^i) over i = 1 .. n_a. All of them are exact in a double. */
static double exact_tail(size_t n_a, size_t n_b, double u)
{
    double count[MAX_EXACT * MAX_EXACT + 1] = {1};
    size_t top = n_a * n_b;
    for (size_t i = 1; i <= n_a; i++) {
        for (size_t k = top + 1; k-- > n_b + i;) count[k] -= count[k - n_b - i];
        for (size_t k = i; k <= top; k++) count[k] += count[k - i];
    }
    double all = 0, tail = 0;
    for (size_t k = 0; k <= top; k++) {
        all += count[k];
        if ((double)k >= u) tail += count[k];
    }
    return tail / all;
}

/* Sum of t^3 - t over groups of t equal values. */
static double tie_sum(const double *sorted, size_t n)
{
    double sum = 0;
    for (size_t i = 0, end; i < n; i = end) {
        for (end = i + 1; end < n && sorted[end] == sorted[i];) end++;
        double t = (double)(end - i);
        sum += t * t * t - t;
    }
    return sum;
}

qb_status qb_mann_whitney(const double *a, size_t n_a, const double *b, size_t n_b, double *p)
{
    *p = 1;
    if (!n_a || !n_b) return QB_OK;
    double *all, u = 0, n = (double)(n_a + n_b), pairs = (double)n_a * (double)n_b;
    QB_TRY(QB_NEW(&all, n_a + n_b, "values of both sides"));
    memcpy(all, a, n_a * sizeof *a);
    memcpy(all + n_a, b, n_b * sizeof *b);
    qb_sort(all, n_a + n_b);
    double ties = tie_sum(all, n_a + n_b);
    qb_free(all);
    for (size_t i = 0; i < n_a; i++)
        for (size_t k = 0; k < n_b; k++) u += a[i] > b[k] ? 1 : a[i] == b[k] ? 0.5 : 0;
    u = fmax(u, pairs - u);
    if (ties == 0 && n_a <= MAX_EXACT && n_b <= MAX_EXACT) {
        *p = fmin(1, 2 * exact_tail(n_a, n_b, u));
        return QB_OK;
    }
    double variance = pairs / 12 * (n + 1 - ties / (n * (n - 1)));
    if (variance > 0) *p = fmin(1, 2 * normal_cdf(-(u - pairs / 2 - 0.5) / sqrt(variance)));
    return QB_OK;
}

/* ---- Holm ---- */

qb_status qb_holm(double *p, size_t n)
{
    bool *done;
    double least = 0;
    QB_TRY(QB_NEW_ZERO(&done, n, "tests"));
    for (size_t rank = 0; rank < n; rank++) {
        size_t next = SIZE_MAX;
        for (size_t i = 0; i < n; i++)
            if (!done[i] && (next == SIZE_MAX || p[i] < p[next])) next = i;
        least = fmax(least, fmin(1, p[next] * (double)(n - rank)));
        p[next] = least;
        done[next] = true;
    }
    qb_free(done);
    return QB_OK;
}

/* ---- draws ---- */

qb_draws qb_draws_exact(double value)
{
    return (qb_draws){value, 0, {value, value}, SIZE_MAX};
}

qb_draws qb_draws_summarize(double estimate, double *values, size_t n, size_t n_units)
{
    qb_draws out = {estimate, NAN, {NAN, NAN}, n_units};
    if (n < 2 || n_units < 2) return out;
    double mean = qb_sum(values, n) / (double)n, squares = 0;
    if (!isfinite(mean)) return out; /* exp overflows on a destroyed model */
    for (size_t i = 0; i < n; i++) squares += (values[i] - mean) * (values[i] - mean);
    out.deviation = sqrt(squares / (double)(n - 1));
    out.ci95 = qb_percentile_ci95(values, n, n_units);
    return out;
}

double qb_draws_p_at_most(const qb_draws *draws, double limit)
{
    double above = draws->estimate - limit, deviation = draws->deviation;
    if (isnan(deviation) || isnan(above)) return NAN;
    if (deviation <= 1e-12 * fabs(draws->estimate)) return above > 0 ? 0 : 1; /* rounding alone */
    double n = (double)draws->n_units;
    /* the deviation of a bootstrap is short by sqrt((n - 1) / n) */
    return 1 - qb_student_cdf(above / deviation * sqrt((n - 1) / n), draws->n_units - 1);
}

static double resampled_median(const double *x, size_t n, uint64_t seed, uint64_t first,
                               double *space)
{
    for (size_t i = 0; i < n; i++)
        space[i] = x[qb_rng_below(seed, QB_STREAM_BOOTSTRAP, first + i, n)];
    qb_sort(space, n);
    return qb_quantile(space, n, 0.5);
}

static double median(const double *x, size_t n, double *space)
{
    memcpy(space, x, n * sizeof *x);
    qb_sort(space, n);
    return qb_quantile(space, n, 0.5);
}

qb_status qb_bootstrap_medians(const double *a, size_t n_a, const double *b, size_t n_b,
                               size_t n_resamples, uint64_t seed, qb_draws *out)
{
    size_t n_max = n_a > n_b ? n_a : n_b, n_min = n_a < n_b ? n_a : n_b;
    double *values;
    *out = (qb_draws){NAN, NAN, {NAN, NAN}, n_min};
    if (!n_min) return QB_OK;
    QB_TRY(QB_NEW(&values, n_resamples + n_max, "bootstrap resamples"));
    double *space = values + n_resamples;
    double m_a = median(a, n_a, space), estimate = m_a / median(b, n_b, space) - 1;
    for (size_t r = 0; r < n_resamples; r++) {
        uint64_t first = (uint64_t)r * (n_a + n_b);
        m_a = resampled_median(a, n_a, seed, first, space);
        values[r] = m_a / resampled_median(b, n_b, seed, first + n_a, space) - 1;
    }
    *out = qb_draws_summarize(estimate, values, n_resamples, n_min);
    qb_free(values);
    return QB_OK;
}
