/* kernels/cuda/gemm_s8_math.cuh - one element of the epilogues of gemm_s8.h. */
#ifndef QB_KERNELS_CUDA_GEMM_S8_MATH_CUH
#define QB_KERNELS_CUDA_GEMM_S8_MATH_CUH

#include "kernels/cuda/gemm_s8.h"
#include "kernels/cuda/scalar.cuh"

namespace gemm_s8
{

/* A scale prepared for division: the quotient of two floats by two Newton steps on the correctly
 * rounded reciprocal is the correctly rounded one (Markstein 1990), as long as nothing underflows;
 * `shift` keeps scales far from 1 away from that. */
struct divisor {
    float s, inverse, shift;
};

static __device__ __forceinline__ divisor make_divisor(float s)
{
    divisor d;
    d.shift = s < 0x1p-100f ? 0x1p64f : s > 0x1p100f ? 0x1p-64f : 1.0f;
    d.s = s * d.shift;
    d.inverse = s == 0.0f ? 0.0f : __frcp_rn(d.s); /* a scale of 0 makes codes of 0 */
    return d;
}

/* Not below -127; above 127 where z is. */
static __device__ __forceinline__ int quantize(float z, const divisor &d)
{
    z *= d.shift;
    const float first = __fmul_rn(z, d.inverse);
    float t = fmaf(fmaf(-first, d.s, z), d.inverse, first);
    t = fmaf(fmaf(-t, d.s, z), d.inverse, t);
    if (!(fabsf(first) < 256.0f)) t = first; /* clipped; an infinity has no remainder */
    return max(__float2int_rn(t), -127);     /* NaN is 0 */
}

static __device__ __forceinline__ float max_or_nan(float a, float b)
{
    float max;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(max) : "f"(a), "f"(b));
    return max;
}

static __device__ __forceinline__ float min_or_nan(float a, float b)
{
    float min;
    asm("min.NaN.f32 %0, %1, %2;" : "=f"(min) : "f"(a), "f"(b));
    return min;
}

/* The same at half the cost where the quotient is not near a tie: multiplied by the reciprocal it
 * is wrong by less than 1.2e-5 within the codes' range. Raises *worst to the distance from the
 * code. The code is in the lowest byte: adding 1.5 * 2^23 rounds to an integer, halves to even. */
constexpr float kSafelyRounded = 0.499985f;
static __device__ __forceinline__ uint32_t quantize_fast(float z, const divisor &d, float limit,
                                                         float *worst)
{
    const float magic = 12582912.0f;
    z = min_or_nan(max_or_nan(z, -limit), limit);
    const float shifted = __fmaf_rn(z, d.inverse, magic);
    const float code = __fadd_rn(shifted, -magic);
    *worst = max_or_nan(*worst, fabsf(__fmaf_rn(z, d.inverse, -code)));
    return __float_as_uint(shifted);
}

} // namespace gemm_s8

#endif
