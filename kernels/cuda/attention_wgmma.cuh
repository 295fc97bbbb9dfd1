/* kernels/cuda/attention_wgmma.cuh - the steps of attention with wgmma: a warpgroup's 64 rows of
 * queries against a tile of keys in shared memory.
 *
 * Tiles in shared memory: blocks of 64 dimensions = 128 bytes a row, one block after the other, in
 * the 128-byte swizzle. Fragments: wgmma_bf16.cuh. */
#ifndef QB_KERNELS_CUDA_ATTENTION_WGMMA_CUH
#define QB_KERNELS_CUDA_ATTENTION_WGMMA_CUH

#include "kernels/cuda/attention_device.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/wgmma_bf16.cuh"

namespace attention_wgmma
{

constexpr int ROWS = 64; /* queries of a warpgroup */

/* What wgmma writes behind the compiler's back must not be read before the wait above this. */
template <int N> __device__ __forceinline__ void pin(float (&x)[N])
{
#pragma unroll
    for (int i = 0; i < N; i++) asm volatile("" : "+f"(x[i])::"memory");
}

template <int N> __device__ __forceinline__ void clear(float (&x)[N])
{
#pragma unroll
    for (int i = 0; i < N; i++) x[i] = 0;
}

/* Position in a ring: slot and the parity of its round. */
template <int STAGES> struct ring {
    int slot = 0;
    uint32_t parity = 0;
    __device__ void step()
    {
        if (++slot == STAGES) slot = 0, parity ^= 1;
    }
};

template <int DIM, int KEYS>
__device__ __forceinline__ void start_scores(float (&s)[KEYS / 2], uint32_t q, uint32_t k)
{
    uint64_t a = qb_wgmma_desc(q), b = qb_wgmma_desc(k);
#pragma unroll
    for (int d = 0; d < DIM; d += 16)
        qb_wgmma_bf16(s, a + (d / 64 * ROWS * 128 + d % 64 * 2) / 16,
                      b + (d / 64 * KEYS * 128 + d % 64 * 2) / 16, d > 0);
}

/* Values lie with their dimensions contiguous: blocks of 64 dimensions KEYS * 128 bytes apart,
 * groups of 8 keys 1024. */
template <int DIM, int KEYS>
__device__ __forceinline__ void start_values(float (&out)[DIM / 2], const uint32_t (&p)[KEYS / 4],
                                             uint32_t v)
{
    uint64_t b = (uint64_t)((v & 0x3ffff) >> 4) | (uint64_t)(KEYS * 128 / 16) << 16 |
                 (uint64_t)64 << 32 | (uint64_t)1 << 62;
#pragma unroll
    for (int i = 0; i < KEYS / 16; i++)
        qb_wgmma_bf16_ra(out, p[4 * i], p[4 * i + 1], p[4 * i + 2], p[4 * i + 3],
                         b + i * 16 * 128 / 16);
}

/* Scores become p, in place; rescale: what earlier sums are multiplied by. `last` is the last key
 * that the thread's first row sees, counted from the tile's first. */
template <int KEYS>
__device__ __forceinline__ void softmax(float (&s)[KEYS / 2], attention_running &run,
                                        float (&rescale)[2], int last, float scale_log2, bool relu)
{
    int t = threadIdx.x % 4 * 2;
    if (last < KEYS - 1) {
#pragma unroll
        for (int i = 0; i < KEYS / 2; i++)
            if (i / 4 * 8 + t + i % 2 > last + i / 2 % 2 * 8) s[i] = -CUDART_INF_F;
    }
    if (relu) {
#pragma unroll
        for (int i = 0; i < KEYS / 2; i++) s[i] = fmaxf(s[i], 0);
        rescale[0] = rescale[1] = 1;
        return;
    }
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float max = run.max[r];
#pragma unroll
        for (int i = 0; i < KEYS / 8; i++)
            max = fmaxf(max, fmaxf(s[4 * i + 2 * r], s[4 * i + 2 * r + 1]));
        max = fmaxf(max, __shfl_xor_sync(~0u, max, 1));
        max = fmaxf(max, __shfl_xor_sync(~0u, max, 2));
        float shift = max == -CUDART_INF_F ? 0 : max * scale_log2, sum = 0;
        rescale[r] = qb_exp2(fmaf(run.max[r], scale_log2, -shift));
#pragma unroll
        for (int i = 0; i < KEYS / 8; i++) {
            float *x = &s[4 * i + 2 * r];
            x[0] = qb_exp2(fmaf(x[0], scale_log2, -shift));
            x[1] = qb_exp2(fmaf(x[1], scale_log2, -shift));
            sum += x[0] + x[1];
        }
        run.sum[r] = fmaf(run.sum[r], rescale[r], sum);
        run.max[r] = max;
    }
}

/* p in bf16, as the A operand of the product with the values. */
template <int KEYS>
__device__ __forceinline__ void pack_p(const float (&s)[KEYS / 2], uint32_t (&p)[KEYS / 4])
{
#pragma unroll
    for (int i = 0; i < KEYS / 4; i++) p[i] = qb_bf16_pair(s[2 * i], s[2 * i + 1]);
}

} // namespace attention_wgmma

#endif
