/* kernels/cuda/decode_chain_parts.cuh - what the kernels of the decode chain share: waiting, sums
 * that other blocks of a cluster receive, codes, activations. */
#ifndef QB_KERNELS_CUDA_DECODE_CHAIN_PARTS_CUH
#define QB_KERNELS_CUDA_DECODE_CHAIN_PARTS_CUH

#include "kernels/cuda/decode_chain.h"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/scalar.cuh"

namespace qb_chain
{

constexpr int WARPS = QB__CHAIN_WARPS, CONSUMERS = QB__CHAIN_CONSUMERS;
constexpr int THREADS = QB__CHAIN_THREADS, TILE = QB__CHAIN_TILE;
constexpr int STEP = CONSUMERS * 4; /* elements that the threads stage at once */
/* About 20 s: a lost signal ends in a fault. Under compute-sanitizer a wait takes seconds. */
constexpr long long SPIN_CLOCKS = 40000000000ll;

/* Until the phase with that parity ends. */
__device__ __forceinline__ void wait_for(const uint64_t *barrier, uint32_t parity)
{
    if (qb_mbar_try(qb_smem(barrier), parity)) return;
    const long long start = clock64();
    while (!qb_mbar_try(qb_smem(barrier), parity))
        if (clock64() - start > SPIN_CLOCKS) __trap();
}

/* All threads that compute; the one that fetches weights is not among them. */
__device__ __forceinline__ void block_sync()
{
    __syncwarp();
    asm volatile("bar.sync 1, %0;" ::"n"(CONSUMERS) : "memory");
}

/* All threads of the cluster's blocks: they have started, and what they initialised is seen. */
__device__ __forceinline__ void cluster_start()
{
    __syncwarp();
    qb_cluster_arrive_relaxed();
    qb_cluster_wait();
}

/* Sends 4 bytes to `to` in the cluster's block `rank`; they count for its barrier. */
__device__ __forceinline__ void send(const void *to, uint32_t v, const uint64_t *barrier, int rank)
{
    asm volatile(
        "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.u32 [%0], %1, [%2];" ::"r"(
            qb_cluster_map(qb_smem(to), rank)),
        "r"(v), "r"(qb_cluster_map(qb_smem(barrier), rank))
        : "memory");
}

__device__ __forceinline__ void send(const void *to, float v, const uint64_t *barrier, int rank)
{
    send(to, __float_as_uint(v), barrier, rank);
}

__device__ __forceinline__ void send(const void *to, int v, const uint64_t *barrier, int rank)
{
    send(to, (uint32_t)v, barrier, rank);
}

__device__ __forceinline__ void load4(const float *p, int i, int n, float out[4])
{
    if (i + 3 < n) {
        float4 q = *(const float4 *)(p + i);
        out[0] = q.x, out[1] = q.y, out[2] = q.z, out[3] = q.w;
    } else {
#pragma unroll
        for (int e = 0; e < 4; e++) out[e] = i + e < n ? p[i + e] : 0.0f;
    }
}

__device__ __forceinline__ void load4_l2(const float *p, int i, float out[4])
{
    float4 q = __ldcg((const float4 *)(p + i));
    out[0] = q.x, out[1] = q.y, out[2] = q.z, out[3] = q.w;
}

/* n / d by the plan's reciprocal, for n below 2^20. */
__device__ __forceinline__ int divide(int n, const qb__chain_divisor &d)
{
    return (int)__umulhi((uint32_t)n, d.magic) + (d.magic ? 0 : n);
}

/* kernels/quantize.h (1): rint of the rounded quotient x / scale, without a division. `inverse` is
 * about 1 / scale and only picks the half h = n + 1/2 beside the quotient. fma(-h, scale, |x|) has
 * the sign of the true quotient minus h, and the rounded quotient is h itself where that difference
 * is within half a unit of h's last place (half of that below 1/2, a power of two). */
__device__ __forceinline__ float code_of(float x, float scale, float inverse)
{
    const float h = floorf(fminf(fabsf(x) * inverse, 127.4f)) + 0.5f;
    const float beyond = fmaf(-h, scale, fabsf(x));
    const float unit = __uint_as_float((__float_as_uint(h) & 0x7f800000u) - (24u << 23));
    const float above = scale * unit, below = h == 0.5f ? 0.5f * above : above;
    float code = 2.0f * rintf(0.5f * h); /* the even neighbour */
    if (beyond > above) code = h + 0.5f;
    if (beyond < -below) code = h - 0.5f;
    code = fminf(code, 127.0f);
    if (scale == 0.0f || x != x) code = 0.0f;
    return copysignf(code, x);
}

/* Scales below 2^-64 are used times 2^60, and so is x, that nothing underflows. */
struct divisor {
    float scale, inverse, up;
    __device__ __forceinline__ divisor(float s)
    {
        up = s < 5.4e-20f ? 1152921504606846976.0f : 1.0f;
        scale = s * up, inverse = qb_reciprocal(scale);
    }
    __device__ __forceinline__ float code(float x) const
    {
        return code_of(x * up, scale, inverse);
    }
};

__device__ __forceinline__ float scale_of_bits(uint32_t max_bits)
{
    const float most = __uint_as_float(max_bits), r = 1.0f / 127.0f, q = most * r;
    if (most < 1e-30f) return __fdiv_rn(most, 127.0f);
    return fmaf(fmaf(-q, 127.0f, most), r, q); /* rounded as the division: Markstein */
}

/* How a product's output is requantised when it is read. */
struct requantizer {
    int n, end0, end1;
    float scale[3];
    __device__ __forceinline__ explicit requantizer(const qb__chain_requant &r)
    {
        n = r.n;
        if (n == 0) return;
        end0 = r.end[0], end1 = n > 1 ? r.end[1] : r.end[0];
#pragma unroll
        for (int i = 0; i < 3; i++) {
            scale[i] = 0.0f;
            if (i < n) scale[i] = r.scale ? r.scale[i] : scale_of_bits(__ldcg(r.max_bits + i));
        }
    }
    __device__ __forceinline__ float scale_at(int column) const
    {
        return column < end0 ? scale[0] : column < end1 ? scale[1] : scale[2];
    }
    /* y at columns column to column + N - 1, of one segment */
    template <int N> __device__ __forceinline__ void apply(float (&y)[N], int column) const
    {
        if (n == 0) return;
        const float f = scale_at(column);
        const divisor by(f);
#pragma unroll
        for (int e = 0; e < N; e++) y[e] = __fmul_rn(by.code(y[e]), f);
    }
    __device__ __forceinline__ float one(float y, int column) const
    {
        float v[1] = {y};
        apply(v, column);
        return v[0];
    }
};

__device__ __forceinline__ float activate(uint32_t act, float v)
{
    return act == QB_ACT_RELU ? (v < 0.0f ? 0.0f : v) : qb_gelu(v);
}

} // namespace qb_chain
#endif
