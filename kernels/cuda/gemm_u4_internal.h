/* kernels/cuda/gemm_u4_internal.h - the rows of gemm_u4.h, and what they share on the device. */
#ifndef QB_KERNELS_CUDA_GEMM_U4_INTERNAL_H
#define QB_KERNELS_CUDA_GEMM_U4_INTERNAL_H

#include "kernels/cuda/gemm_u4.h"

enum { QB__U4_GEMV_MAX_M = 16 };

#ifdef __cplusplus
extern "C" {
#endif
#define QB__CUDA_U4_DECLARE(name)                                                                  \
    const char *qb__gemm_u4_refuse_##name(const qb_cuda_gemm_u4_args *args);                       \
    qb_status qb__gemm_u4_##name(const qb_cuda_gemm_u4_args *args, qb_cuda_stream stream);
QB__CUDA_U4_DECLARE(stream)
bool qb__gemm_u4_stream_is_slower(const qb_cuda_gemm_u4_args *args);
QB__CUDA_U4_DECLARE(gemv)
QB__CUDA_U4_DECLARE(sm80)
QB__CUDA_U4_DECLARE(sm90)
#undef QB__CUDA_U4_DECLARE
#ifdef __cplusplus
}
#endif

#ifdef __CUDACC__
#include "kernels/cuda/gemm_s8_math.cuh"

#include <cuda_bf16.h>

/* Arguments by value, as kernels take them. */
struct qb__u4_product {
    int m, n, k, n_pad, k_tiles; /* k_tiles of 64 */
    const uint4 *codes;          /* [n_pad / 16][k_tiles][32 lanes] */
    const float *scale;          /* (n_groups, n_pad) */
    const int16_t *zero_point;
    const int16_t *x_zero_point; /* or NULL */
    int group_tiles;             /* k tiles a group */
    const __nv_bfloat16 *x;
    size_t x_stride;
    const float *bias;
    int act; /* qb_epilogue_act */
    float *y_f32;
    __nv_bfloat16 *y_bf16; /* at most one of the two */
    size_t y_stride;
    float *residual;
    size_t residual_stride;
};

static inline qb__u4_product qb__u4_product_of(const qb_cuda_gemm_u4_args *a)
{
    const qb_cuda_u4 *w = a->w;
    qb__u4_product p = {};
    p.m = (int)a->m, p.n = (int)w->n, p.k = (int)w->k;
    p.n_pad = (int)w->n_pad, p.k_tiles = (int)(w->k_pad / 64);
    p.codes = (const uint4 *)w->codes;
    p.scale = w->scale, p.zero_point = w->zero_point, p.x_zero_point = w->x_zero_point;
    p.group_tiles = (int)(w->group / 64);
    p.x = (const __nv_bfloat16 *)a->x, p.x_stride = a->x_stride;
    p.bias = a->bias, p.act = (int)a->act;
    p.y_f32 = a->out == QB_CUDA_F32 ? (float *)a->y : nullptr;
    p.y_bf16 = a->out == QB_CUDA_BF16 ? (__nv_bfloat16 *)a->y : nullptr;
    p.y_stride = a->y_stride;
    p.residual = a->residual, p.residual_stride = a->residual_stride;
    return p;
}

/* Of 16 bytes of activations from channel k on, those within the width: what lies past it is taken
 * as 0, since the padding of the weights is minus a zero point. */
__device__ __forceinline__ int qb__u4_chunk_bytes(const qb__u4_product &p, int k)
{
    return max(0, min(8, p.k - k)) * 2;
}

/* 128 + zero point as a bf16 pair: exact for |zero point| <= 120. */
__device__ __forceinline__ uint32_t qb__u4_zero_pair(int first, int second)
{
    uint32_t pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;"
        : "=r"(pair)
        : "f"((float)(128 + second)), "f"((float)(128 + first)));
    return pair;
}

/* (128 + code) - (128 + zero point), exact: an integer below 256. */
__device__ __forceinline__ uint32_t qb__u4_pair(uint32_t shifted, uint32_t zero)
{
    uint32_t pair, out;
    asm("lop3.b32 %0, %1, 0x000f000f, 0x43004300, 0xea;" : "=r"(pair) : "r"(shifted));
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" /* -zero + pair */
        : "=r"(out)
        : "r"(zero), "r"(0xbf80bf80u), "r"(pair));
    return out;
}

/* A fragment of 16 x 16 weights from a packed word; zero[i] belongs to register i. */
__device__ __forceinline__ void qb__u4_fragment(uint32_t word, const uint32_t zero[4],
                                                uint32_t a[4])
{
#pragma unroll
    for (int i = 0; i < 4; i++) a[i] = qb__u4_pair(word >> (4 * i), zero[i]);
}

/* The zero points of a lane's two output channels (n0 + g and 8 more), for all of a group's k. */
__device__ __forceinline__ void qb__u4_zeros_by_output(const int16_t *zero_point, int channel,
                                                       uint32_t zero[4])
{
    const int a = __ldg(zero_point + channel), b = __ldg(zero_point + channel + 8);
    zero[0] = zero[2] = qb__u4_zero_pair(a, a);
    zero[1] = zero[3] = qb__u4_zero_pair(b, b);
}

/* The zero points of a lane's input channels k .. k + 15, for all outputs. */
__device__ __forceinline__ void qb__u4_zeros_by_input(const int16_t *x_zero_point, int k, int t,
                                                      uint32_t zero[4])
{
    const short2 a = __ldg((const short2 *)(x_zero_point + k + 2 * t));
    const short2 b = __ldg((const short2 *)(x_zero_point + k + 2 * t + 8));
    zero[0] = zero[1] = qb__u4_zero_pair(a.x, a.y);
    zero[2] = zero[3] = qb__u4_zero_pair(b.x, b.y);
}

__device__ __forceinline__ float qb__u4_act(float z, int act)
{
    if (act == QB_EPI_GELU) return qb_gelu(z);
    return act == QB_EPI_RELU && z < 0.0f ? 0.0f : z;
}

/* Stores output (m, n). */
__device__ __forceinline__ void qb__u4_put(const qb__u4_product &p, int m, int n, float z)
{
    if (p.residual) p.residual[(size_t)m * p.residual_stride + n] += z;
    if (p.y_f32) p.y_f32[(size_t)m * p.y_stride + n] = z;
    if (p.y_bf16) p.y_bf16[(size_t)m * p.y_stride + n] = __float2bfloat16_rn(z);
}

/* The same of the scaled sum. */
__device__ __forceinline__ void qb__u4_store(const qb__u4_product &p, int m, int n, float sum)
{
    qb__u4_put(p, m, n, qb__u4_act(p.bias ? sum + __ldg(p.bias + n) : sum, p.act));
}
#endif
#endif
