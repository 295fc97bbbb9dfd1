/* kernels/cuda/scalar.cuh - single values in registers: pairs of bf16, the special function unit,
 * activations. Kernels that activate the same value get the same bits. */
#ifndef QB_KERNELS_CUDA_SCALAR_CUH
#define QB_KERNELS_CUDA_SCALAR_CUH

#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <stdint.h>

/* ---- bf16 ---- */

static __device__ __forceinline__ float qb_bf16_low(uint32_t pair)
{
    return __uint_as_float(pair << 16);
}
static __device__ __forceinline__ float qb_bf16_high(uint32_t pair)
{
    return __uint_as_float(pair & 0xffff0000u);
}
static __device__ __forceinline__ uint32_t qb_bf16_pair(float low, float high)
{
    uint32_t pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}

/* ---- the special function unit ---- */

/* 2^x to 2 ulp, subnormal results as 0. */
static __device__ __forceinline__ float qb_exp2(float x)
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/* 1 / x to 1 ulp, subnormal results as 0. */
static __device__ __forceinline__ float qb_reciprocal(float x)
{
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

#define QB_LOG2E 1.4426950408889634f

/* ---- activations, to about 3 ulp: two units of the special function pipe a value ---- */

/* 1 / (1 + e^-x), of -x log2(e). For x -> -inf the power overflows and the quotient is 0, as it
 * should be. */
static __device__ __forceinline__ float qb_sigmoid_log2(float minus_x_log2e)
{
    return qb_reciprocal(__fadd_rn(1.0f, qb_exp2(minus_x_log2e)));
}

/* GELU by tanh (Hendrycks & Gimpel 2016): 0.5 x (1 + tanh w) = x sigmoid(2 w),
 * w = sqrt(2 / pi) (x + 0.044715 x^3). This is the sigmoid. */
#define QB_GELU_2C 1.5957691216057308f /* 2 sqrt(2 / pi) */
static __device__ __forceinline__ float qb_gelu_share(float x)
{
    const float a = -QB_LOG2E * QB_GELU_2C, b = a * 0.044715f;
    return qb_sigmoid_log2(__fmul_rn(x, __fmaf_rn(__fmul_rn(x, x), b, a)));
}
static __device__ __forceinline__ float qb_gelu(float x)
{
    return __fmul_rn(x, qb_gelu_share(x));
}
/* Its slope where it is y = x share. */
static __device__ __forceinline__ float qb_gelu_slope(float x, float y, float share)
{
    const float inner = fmaf(__fmul_rn(x, x), 3.0f * 0.044715f * QB_GELU_2C, QB_GELU_2C);
    return fmaf(y * (1.0f - share), inner, share);
}

static __device__ __forceinline__ float qb_sigmoid(float x)
{
    return qb_sigmoid_log2(__fmul_rn(x, -QB_LOG2E));
}
static __device__ __forceinline__ float qb_swiglu(float up, float gate)
{
    return __fmul_rn(__fmul_rn(gate, qb_sigmoid(gate)), up);
}

#endif
