/* kernels/x86/wide_internal.h - sums over a row in double, lane by lane, then over the lanes. */
#ifndef QB_KERNELS_X86_WIDE_INTERNAL_H
#define QB_KERNELS_X86_WIDE_INTERNAL_H

#include "kernels/x86/vector_internal.h"

typedef struct wide { /* the lanes of a vf, in double */
    vd low, high;
} wide;

QB_INLINE wide wide_zero(void)
{
    return (wide){vd_zero(), vd_zero()};
}

QB_INLINE void wide_add(wide *sum, vf x)
{
    sum->low = vd_add(sum->low, vd_low(x));
    sum->high = vd_add(sum->high, vd_high(x));
}

QB_INLINE void wide_add_squares(wide *sum, vf x, double mean)
{
    vd low = vd_sub(vd_low(x), vd_set(mean)), high = vd_sub(vd_high(x), vd_set(mean));
    sum->low = vd_fma(low, low, sum->low);
    sum->high = vd_fma(high, high, sum->high);
}

QB_INLINE double wide_total(wide sum)
{
    return vd_hsum(vd_add(sum.low, sum.high));
}

QB_INLINE double wide_sum(const float *x, size_t n)
{
    size_t i = 0;
    wide sum = wide_zero();
    for (; i + LANES <= n; i += LANES) wide_add(&sum, vf_load(x + i));
    double total = wide_total(sum);
    for (; i < n; i++) total += x[i];
    return total;
}

/* sum of (x - mean)^2 */
QB_INLINE double wide_squares(const float *x, size_t n, double mean)
{
    size_t i = 0;
    wide sum = wide_zero();
    for (; i + LANES <= n; i += LANES) wide_add_squares(&sum, vf_load(x + i), mean);
    double total = wide_total(sum);
    for (; i < n; i++) total += (x[i] - mean) * (x[i] - mean);
    return total;
}

/* (x - mean) * inverse, in double, since x - mean may cancel */
QB_INLINE vf wide_normed(vf x, double mean, double inverse)
{
    return vf_from_vd(vd_mul(vd_sub(vd_low(x), vd_set(mean)), vd_set(inverse)),
                      vd_mul(vd_sub(vd_high(x), vd_set(mean)), vd_set(inverse)));
}

#endif
