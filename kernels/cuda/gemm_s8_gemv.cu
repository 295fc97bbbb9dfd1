/* kernels/cuda/gemm_s8_gemv.cu - up to 16 tokens in int8, bound by reading the weights.
 *
 * A block owns 16 output channels, its warps share out the input channels. Lane 4 g + t takes 16
 * consecutive bytes of rows g and g + 8 and of token g: the order of the channels within a product
 * of mma.m16n8k32 is free as long as both operands agree, so 64 channels are two of them without a
 * shuffle. Sums are exact in any order. */
#include "kernels/cuda/gemm_s8_element.cuh"
#include "kernels/cuda/gemm_s8_internal.h"

#include <algorithm>

namespace
{

enum { MAX_M = 16, MAX_WARPS = 16, RUN = 2 }; /* RUN: consecutive tiles of 64 channels, 128 bytes */

struct product {
    qb_cuda_gemm_s8_args a;
    int k_tiles;
};

struct tiles {
    uint4 w[RUN][2];
};

/* A warp's place: its lane's two rows of weights. */
struct place {
    const int8_t *row[2];
    int g, t;
};

static __device__ __forceinline__ void load_w(const product &p, const place &me, int tile,
                                              tiles &to)
{
#pragma unroll
    for (int i = 0; i < RUN; i++)
#pragma unroll
        for (int h = 0; h < 2; h++)
            if (tile + i < p.k_tiles)
                to.w[i][h] =
                    qb__load_once((const uint4 *)(me.row[h] + (tile + i) * 64 + me.t * 16));
}

template <int TOK8>
static __device__ __forceinline__ void load_x(const product &p, const place &me, int tile,
                                              uint4 x[RUN][TOK8])
{
#pragma unroll
    for (int i = 0; i < RUN; i++)
#pragma unroll
        for (int n = 0; n < TOK8; n++) {
            const int token = n * 8 + me.g;
            if (tile + i < p.k_tiles && token < (int)p.a.m)
                x[i][n] =
                    *(const uint4 *)(p.a.x + token * p.a.x_stride + (tile + i) * 64 + me.t * 16);
        }
}

template <int TOK8>
static __device__ __forceinline__ void multiply(const product &p, int tile, const tiles &from,
                                                const uint4 x[RUN][TOK8], int acc[TOK8][4])
{
#pragma unroll
    for (int i = 0; i < RUN; i++) {
        if (tile + i >= p.k_tiles) return;
        const uint4 *w = from.w[i];
        const uint32_t low[4] = {w[0].x, w[1].x, w[0].y, w[1].y};
        const uint32_t high[4] = {w[0].z, w[1].z, w[0].w, w[1].w};
#pragma unroll
        for (int n = 0; n < TOK8; n++) {
            qb__mma_s8(acc[n], low, x[i][n].x, x[i][n].y);
            qb__mma_s8(acc[n], high, x[i][n].z, x[i][n].w);
        }
    }
}

template <int TOK8>
static __device__ __forceinline__ void reduce_and_store(const product &p, const int acc[TOK8][4])
{
    using namespace gemm_s8_element;
    const qb_cuda_gemm_s8_args &a = p.a;
    enum { ROW = 17 };
    __shared__ int sums[MAX_WARPS][TOK8 * 8][ROW];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, n_warps = blockDim.x / 32;
#pragma unroll
    for (int n = 0; n < TOK8; n++)
#pragma unroll
        for (int c = 0; c < 4; c++)
            sums[warp][n * 8 + lane % 4 * 2 + c % 2][lane / 4 + c / 2 * 8] = acc[n][c];
    __syncthreads();
    for (int i = threadIdx.x; i / 32 * 32 < (int)a.m * 16; i += blockDim.x) { /* whole warps */
        const int m = i / 16, n = blockIdx.x * 16 + i % 16;
        const bool mine = m < (int)a.m && n < (int)a.n;
        float z = 0.0f, row_max = 0.0f;
        if (mine) {
            int sum = 0;
            for (int w = 0; w < n_warps; w++) sum += sums[w][m][i % 16];
            if (a.out != QB_CUDA_S32 || a.residual || a.max_bits || a.row_max_bits)
                z = finish(a, m, n, sum);
            store(a, m, n, sum, z);
            row_max = row_magnitude(a, z);
        }
        if (a.max_bits) raise_segments(a, mine ? segment_of(a.segments, n) : 0, fabsf(z));
        if (!a.row_max_bits) continue;
        for (int step = 8; step > 0; step /= 2)
            row_max = fmaxf(row_max, __shfl_xor_sync(0xffffffffu, row_max, step));
        if (i % 16 == 0 && m < (int)a.m) raise(a.row_max_bits + m, row_max);
    }
}

template <int TOK8>
__global__ void __launch_bounds__(MAX_WARPS * 32) gemv(const __grid_constant__ product p)
{
    const int lane = threadIdx.x % 32, step = blockDim.x / 32 * RUN;
    place me;
    me.g = lane / 4, me.t = lane % 4;
    for (int h = 0; h < 2; h++) {
        const int n = min(blockIdx.x * 16 + me.g + 8 * h, (int)p.a.n - 1);
        me.row[h] = p.a.w + n * p.a.w_stride;
    }
    int acc[TOK8][4] = {};
    tiles even, odd;
    uint4 x_even[RUN][TOK8] = {}, x_odd[RUN][TOK8] = {};
    int tile = threadIdx.x / 32 * RUN;
    qb__start_next_grid();
    load_w(p, me, tile, even);
    load_w(p, me, tile + step, odd);
    if (threadIdx.x == 0) { /* the block's 16 channels' */
        if (p.a.w_scale) qb__prefetch(p.a.w_scale + blockIdx.x * 16);
        if (p.a.bias) qb__prefetch(p.a.bias + blockIdx.x * 16);
    }
    qb__wait_previous_grid();
    load_x<TOK8>(p, me, tile, x_even);
    for (; tile < p.k_tiles; tile += 2 * step) {
        load_x<TOK8>(p, me, tile + step, x_odd);
        multiply<TOK8>(p, tile, even, x_even, acc);
        load_w(p, me, tile + 2 * step, even);
        load_x<TOK8>(p, me, tile + 2 * step, x_even);
        multiply<TOK8>(p, tile + step, odd, x_odd, acc);
        load_w(p, me, tile + 3 * step, odd);
    }
    reduce_and_store<TOK8>(p, acc);
}

} // namespace

const char *qb__gemm_s8_refuse_gemv(const qb_cuda_gemm_s8_args *a)
{
    return a->m > MAX_M ? "more than 16 tokens" : qb__gemm_s8_refuse_cache(a);
}

qb_status qb__gemm_s8_run_gemv(const qb_cuda_gemm_s8_args *a, qb_cuda_stream stream)
{
    const product p = {*a, (int)((a->k + 63) / 64)};
    const int n_warps = std::min<int>(MAX_WARPS, std::max(4, (p.k_tiles + 3) / 4));
    return qb__launch_overlapped(a->m <= 8 ? gemv<1> : gemv<2>, dim3((unsigned)(a->n + 15) / 16),
                                 dim3((unsigned)n_warps * 32), 0, stream, p);
}
