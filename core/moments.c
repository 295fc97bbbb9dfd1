/* core/moments.c - see moments.h. */
#include "core/moments.h"

#include <math.h>

qb_moments qb_moments_of(const float *x, size_t n)
{
    qb_moments m = {.n = (double)n};
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += x[i];
    if (n) m.mean = sum / m.n;
    for (size_t i = 0; i < n; i++) {
        double d = x[i] - m.mean, square = d * d;
        m.m2 += square;
        m.m3 += square * d;
        m.m4 += square * square;
    }
    return m;
}

void qb_moments_add(qb_moments *m, double x)
{
    double before = m->n, n = before + 1, d = x - m->mean, step = d / n, term = d * step * before;
    m->n = n;
    m->mean += step;
    m->m4 += term * step * step * (n * n - 3 * n + 3) + 6 * step * step * m->m2 - 4 * step * m->m3;
    m->m3 += term * step * (n - 2) - 3 * step * m->m2;
    m->m2 += term;
}

void qb_moments_merge(qb_moments *a, const qb_moments *b)
{
    if (b->n == 0) return;
    double n = a->n + b->n, d = b->mean - a->mean, d_n = d / n, ab = a->n * b->n;
    double m4 = b->m4 + d * d_n * d_n * d_n * ab * (a->n * a->n - ab + b->n * b->n) +
                6 * d_n * d_n * (a->n * a->n * b->m2 + b->n * b->n * a->m2) +
                4 * d_n * (a->n * b->m3 - b->n * a->m3);
    double m3 =
        b->m3 + d * d_n * d_n * ab * (a->n - b->n) + 3 * d_n * (a->n * b->m2 - b->n * a->m2);
    a->m4 += m4;
    a->m3 += m3;
    a->m2 += b->m2 + d * d_n * ab;
    a->mean += d_n * b->n;
    a->n = n;
}

double qb_moments_kurtosis(const qb_moments *m)
{
    return m->n * m->m4 / (m->m2 * m->m2); /* 0 / 0 = NaN */
}

float qb_max_abs(const float *x, size_t n)
{
    float most = 0;
    for (size_t i = 0; i < n; i++) most = fabsf(x[i]) > most ? fabsf(x[i]) : most;
    return most;
}

double qb_correlation(const double *x, const double *y, size_t n)
{
    double mean_x = 0, mean_y = 0, xx = 0, yy = 0, xy = 0;
    for (size_t i = 0; i < n; i++) {
        mean_x += x[i] / (double)n;
        mean_y += y[i] / (double)n;
    }
    for (size_t i = 0; i < n; i++) {
        double dx = x[i] - mean_x, dy = y[i] - mean_y;
        xx += dx * dx;
        yy += dy * dy;
        xy += dx * dy;
    }
    return xx > 0 && yy > 0 ? xy / sqrt(xx * yy) : NAN;
}

/* Hoare's selection. The pivot is the median of three, so that an end is never the only value at or
 * beyond it, and each round takes at least one away. */
float qb_select(float *x, size_t n, size_t k)
{
    size_t low = 0, high = n - 1;
    while (low < high) {
        float a = x[low], b = x[low + (high - low) / 2], c = x[high];
        float pivot = a < b ? (b < c ? b : a < c ? c : a) : (a < c ? a : b < c ? c : b);
        size_t i = low, j = high;
        for (;;) {
            while (x[i] < pivot) i++;
            while (x[j] > pivot) j--;
            if (i >= j) break;
            float swapped = x[i];
            x[i++] = x[j];
            x[j--] = swapped;
        }
        if (k <= j) /* x[low..j] <= pivot <= x[j + 1..high] */
            high = j;
        else
            low = j + 1;
    }
    return x[k];
}
