/* kernels/cuda/attention_train_sm90.cuh - what the backward kernels for Hopper share. */
#ifndef QB_KERNELS_CUDA_ATTENTION_TRAIN_SM90_CUH
#define QB_KERNELS_CUDA_ATTENTION_TRAIN_SM90_CUH

#include "kernels/cuda/attention_train_internal.h"
#include "kernels/cuda/attention_wgmma.cuh"
#include "kernels/cuda/tensor_map.h"

namespace attention_train
{

using namespace attention_wgmma;

/* x[i] of lane t of four becomes x[t] of lane i. */
static __device__ __forceinline__ void transpose_quad(uint32_t (&x)[4])
{
#pragma unroll
    for (int step = 1; step <= 2; step *= 2) {
        const bool high = threadIdx.x & step;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            if (i & step) continue;
            uint32_t got = __shfl_xor_sync(~0u, high ? x[i] : x[i | step], step);
            if (high)
                x[i] = got;
            else
                x[i | step] = got;
        }
    }
}

/* A warpgroup's 64 rows of a fragment of 2 N columns, times factor, in bf16 to rows from `to` on;
 * rows from n_rows on are left out. 16 bytes a lane. */
template <int N>
__device__ __forceinline__ void store_rows(const float (&x)[N], float factor, __nv_bfloat16 *to,
                                           size_t stride, int n_rows)
{
    const int quad = threadIdx.x % 4, row0 = threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int row = row0 + 8 * half;
#pragma unroll
        for (int i = 0; i < N / 4; i += 4) {
            uint32_t part[4];
#pragma unroll
            for (int j = 0; j < 4; j++) {
                const float *y = &x[4 * (i + j) + 2 * half];
                part[j] = qb_bf16_pair(y[0] * factor, y[1] * factor);
            }
            transpose_quad(part);
            if (row < n_rows)
                *(uint4 *)(to + row * stride + 8 * (i + quad)) =
                    make_uint4(part[0], part[1], part[2], part[3]);
        }
    }
}

/* What the exponentials need of a query, and what its ds need: lse * log2 e and delta. ReLU:
 * 1 / n_keys, twice. Such as make p and ds 0 for rows past the end. */
static __device__ __forceinline__ float2 query_stats(bool relu, bool used, int query, float lse,
                                                     float delta)
{
    if (!used) return make_float2(relu ? 0 : CUDART_INF_F, 0);
    const float share = 1.0f / (float)(query + 1);
    return relu ? make_float2(share, share) : make_float2(lse * CUDART_L2E_F, delta);
}

/* Either of them for a fragment's elements: by column from shared memory, or by row. */
struct by_column {
    static constexpr bool KEYS_ARE_ROWS = true;
    uint32_t at;
    __device__ __forceinline__ float2 load(int n) const
    {
        return *(const float2 *)__cvta_shared_to_generic(at + 4 * (8 * n + threadIdx.x % 4 * 2));
    }
    __device__ __forceinline__ float pick(float2 x, int i) const
    {
        return i % 2 ? x.y : x.x;
    }
};
struct by_row {
    static constexpr bool KEYS_ARE_ROWS = false;
    float2 rows; /* of lane / 4, and 8 rows on */
    __device__ __forceinline__ float2 load(int) const
    {
        return rows;
    }
    __device__ __forceinline__ float pick(float2 x, int i) const
    {
        return i / 2 ? x.y : x.x;
    }
};

/* x of a fragment = f(x, its statistic). */
template <int N, class V, class F> __device__ __forceinline__ void each(float (&x)[N], V stats, F f)
{
#pragma unroll
    for (int n = 0; n < N / 4; n++) {
        const float2 two = stats.load(n);
#pragma unroll
        for (int i = 4 * n; i < 4 * n + 4; i++) x[i] = f(i, stats.pick(two, i % 4));
    }
}

/* Scores become p (ReLU: w). ahead: how many tokens the query of the thread's first element is
 * after its key; masked: some pairs of the tile are hidden. */
template <int N, class V>
__device__ __forceinline__ void make_p(float (&s)[N], V first, float scale, bool relu, bool masked,
                                       int ahead)
{
    const float scale_log2 = scale * CUDART_L2E_F;
    if (relu)
        each(s, first, [&](int i, float share) { return fmaxf(s[i] * scale, 0) * share; });
    else
        each(s, first, [&](int i, float lse2) { return qb_exp2(fmaf(s[i], scale_log2, -lse2)); });
    if (!masked) return;
#pragma unroll
    for (int i = 0; i < N; i++) {
        const int column = i / 4 * 8 + i % 2, row = i / 2 % 2 * 8;
        if (ahead + (V::KEYS_ARE_ROWS ? column - row : row - column) < 0) s[i] = 0;
    }
}

/* dp becomes ds. */
template <int N, class V>
__device__ __forceinline__ void make_ds(float (&dp)[N], const float (&p)[N], V second, bool relu)
{
    if (relu)
        each(dp, second, [&](int i, float share) { return p[i] > 0 ? dp[i] * share : 0; });
    else
        each(dp, second, [&](int i, float delta) { return p[i] * (dp[i] - delta); });
}

/* Products of eight bf16, summed. */
static __device__ __forceinline__ float dot8(const uint4 &a, const uint4 &b)
{
    const __nv_bfloat162 *x = (const __nv_bfloat162 *)&a, *y = (const __nv_bfloat162 *)&b;
    float sum = 0;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float2 u = __bfloat1622float2(x[i]), v = __bfloat1622float2(y[i]);
        sum = fmaf(u.x, v.x, fmaf(u.y, v.y, sum));
    }
    return sum;
}

/* ---- where the scores are made once ----
 *
 * A warpgroup owns 64 keys of a head of 64 dimensions, tiles of 64 queries pass by: p and ds are
 * made transposed, in registers, for dv and dk, and ds is left in shared memory for dq. */

/* The n-th use of a ring's slot. */
template <int SLOTS> struct turn {
    int slot;
    uint32_t parity;
    __device__ explicit turn(uint32_t n) : slot(n % SLOTS), parity(n / SLOTS & 1)
    {
    }
};

static __device__ __forceinline__ void store_ds(const uint32_t (&ds)[16], uint32_t to)
{
    const int lane = threadIdx.x % 32, row = threadIdx.x % 128 / 32 * 16 + lane % 16;
#pragma unroll
    for (int n = 0; n < 8; n += 2) {
        uint32_t chunk = (uint32_t)((n + lane / 16) ^ row % 8);
        qb_stmatrix_x4(to + row * 128 + chunk * 16, ds[2 * n], ds[2 * n + 1], ds[2 * n + 2],
                       ds[2 * n + 3]);
    }
}

/* A tile of queries and one of keys; places in shared memory. */
struct meeting {
    uint32_t keys, queries, stats;             /* k, then v; q, then d_out; query_stats */
    uint32_t queries_full, stats_full, parity; /* barriers */
    uint32_t ds, ds_full, ds_empty, ds_parity;
};

/* release: the products that were under way have read what they read. */
template <class F>
__device__ __forceinline__ void meet(float (&dk)[32], float (&dv)[32], const meeting &m,
                                     float scale, bool relu, bool masked, F release)
{
    float s[32], dp[32];
    uint32_t a[16], c[16];
    const int ahead = threadIdx.x % 4 * 2 - threadIdx.x % 128 / 32 * 16 - threadIdx.x % 32 / 4;
    const uint32_t tile_bytes = ROWS * 128;
    qb_mbar_wait_block(m.queries_full, m.parity);
    qb_wgmma_fence();
    start_scores<64, ROWS>(s, m.keys, m.queries);
    qb_wgmma_commit();
    start_scores<64, ROWS>(dp, m.keys + tile_bytes, m.queries + tile_bytes);
    qb_wgmma_commit();
    qb_wgmma_wait<1>();
    pin(s);
    release();
    qb_mbar_wait_block(m.stats_full, m.parity);
    make_p(s, by_column{m.stats}, scale, relu, masked, ahead);
    pack_p<ROWS>(s, a);
    qb_wgmma_fence();
    start_values<64, ROWS>(dv, a, m.queries + tile_bytes);
    qb_wgmma_commit();
    qb_wgmma_wait<1>();
    pin(dp);
    make_ds(dp, s, by_column{m.stats + ROWS * 4}, relu);
    pack_p<ROWS>(dp, c);
    qb_wgmma_fence();
    start_values<64, ROWS>(dk, c, m.queries);
    qb_wgmma_commit();
    qb_mbar_wait_block(m.ds_empty, m.ds_parity ^ 1);
    store_ds(c, m.ds);
    qb_fence_async();
    __syncwarp();
    if (threadIdx.x % 32 == 0) qb_mbar_arrive(m.ds_full);
}

/* dq of 64 queries += ds * k, both tiles with what the product does not sum over contiguous. */
static __device__ __forceinline__ void start_dq(float (&dq)[32], uint32_t ds, uint32_t k)
{
    const uint64_t a = qb_wgmma_desc(ds), b = qb_wgmma_desc(k);
#pragma unroll
    for (int step = 0; step < ROWS / 16; step++)
        qb_wgmma_bf16_mn(dq, a + step * 16 * 128 / 16, b + step * 16 * 128 / 16, 1);
}

} // namespace attention_train

#endif
