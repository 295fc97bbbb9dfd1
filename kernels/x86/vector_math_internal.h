/* kernels/x86/vector_math_internal.h - the exponential on vectors of floats, and the logistic
 * function.
 *
 *     x = n log 2 + r,  |r| <= log(2) / 2       e^x = 2^n (1 + r + r^2 Q(r))                    (1)
 *
 * Q is the polynomial of degree 4 that interpolates (e^r - 1 - r) / r^2 at Chebyshev nodes: it
 * makes (1) err by 1.1e-8; with the roundings the error is below 1 ulp (0.98 at most over every
 * third float in [-87.33, 88.72]). e^0 = 1 exactly. NaN stays NaN. */
#ifndef QB_KERNELS_X86_VECTOR_MATH_INTERNAL_H
#define QB_KERNELS_X86_VECTOR_MATH_INTERNAL_H

#include "kernels/gelu_internal.h"
#include "kernels/x86/vector_internal.h"

/* e^x for x <= 88.72, -inf included; results below 2^-126 are denormal, or 0 with AVX2. */
QB_INLINE vf vf_exp_neg(vf x)
{
    x = vf_max(vf_set(-110.0f), x); /* e^-110 is 0 as a float */
    vf n = vf_round(vf_mul(x, vf_set(0x1.715476p+0f)));
    vf r = vf_fma(n, vf_set(-0x1.62e43p-1f), x); /* log 2 in two parts */
    r = vf_fma(n, vf_set(0x1.05c61p-29f), r);
    vf p = vf_set(0x1.6d110ap-10f);
    p = vf_fma(p, r, vf_set(0x1.120b6ep-7f));
    p = vf_fma(p, r, vf_set(0x1.55551ap-5f));
    p = vf_fma(p, r, vf_set(0x1.5554dcp-3f));
    p = vf_fma(p, r, vf_set(0.5f));
    p = vf_fma(p, r, vf_set(1.0f));
    p = vf_fma(p, r, vf_set(1.0f));
    return vf_scale2(p, n);
}

/* e^x for any x; saturates at e^88.72 = 3.4e38. */
QB_INLINE vf vf_exp(vf x)
{
    return vf_exp_neg(vf_min(vf_set(88.72f), x));
}

/* x / (1 + e^-z) */
QB_INLINE vf times_logistic(vf x, vf z)
{
    return vf_div(x, vf_add(vf_set(1), vf_exp(vf_sub(vf_set(0), z))));
}

/* z of kernels/gelu_internal.h (1), and its derivative. */
QB_INLINE vf gelu_z(vf x)
{
    const vf a = vf_set((float)QB__GELU_A), ab = vf_set((float)QB__GELU_A * (float)QB__GELU_B);
    return vf_mul(x, vf_fma(vf_mul(x, x), ab, a));
}

QB_INLINE vf gelu_z_slope(vf x)
{
    const vf a = vf_set((float)QB__GELU_A), ab = vf_set((float)QB__GELU_A * (float)QB__GELU_B);
    return vf_fma(vf_mul(x, x), vf_mul(vf_set(3), ab), a);
}

#endif
