/* kernels/cuda/gemm_u4_sm80.cu - any number of tokens times 4-bit weights by mma.sync.
 *
 * A block makes 128 output channels x 64 tokens, a warp 32 channels of it; activations pass through
 * three stages of shared memory, codes go straight to the registers of the lanes that use them. */
#include "kernels/cuda/gemm_u4_internal.h"

#include "kernels/cuda/mma.cuh"

namespace
{

enum {
    WARPS = 4,
    NT = 2, /* of 16 channels, per warp */
    TOKENS = 64,
    TOK8 = TOKENS / 8,
    STAGES = 3,
    STAGE_BYTES = TOKENS * 128,
};

struct slice { /* of a lane's two channels in each of its warp's tiles */
    int group;
    float scale[NT][2];
    uint32_t zero[NT][4];
};

__device__ __forceinline__ void load_stage(const qb__u4_product &p, int tile, int m0,
                                           uint32_t shared)
{
    const uint32_t stage = shared + tile % STAGES * STAGE_BYTES;
    for (int i = threadIdx.x; tile < p.k_tiles && i < TOKENS * 8; i += WARPS * 32) {
        const int row = i / 8, chunk = i % 8;
        const bool take = m0 + row < p.m;
        const __nv_bfloat16 *x = p.x + (size_t)(take ? m0 + row : 0) * p.x_stride;
        qb__cp_async_16(stage + row * 128 + ((chunk ^ row) & 7) * 16, x + tile * 64 + chunk * 8,
                        take ? qb__u4_chunk_bytes(p, tile * 64 + chunk * 8) : 0);
    }
    qb__cp_async_commit();
}

__device__ __forceinline__ void load_words(const qb__u4_product &p, int tile, int n0, int lane,
                                           uint32_t words[NT][4])
{
    if (tile >= p.k_tiles || n0 >= p.n_pad) return;
#pragma unroll
    for (int i = 0; i < NT; i++) {
        const uint4 v = __ldg(p.codes + ((size_t)(n0 / 16 + i) * p.k_tiles + tile) * 32 + lane);
        words[i][0] = v.x, words[i][1] = v.y, words[i][2] = v.z, words[i][3] = v.w;
    }
}

__device__ __forceinline__ void load_slice(const qb__u4_product &p, int group, int n0, int lane,
                                           slice &s)
{
    if (group == s.group || n0 >= p.n_pad) return;
    s.group = group;
#pragma unroll
    for (int i = 0; i < NT; i++) {
        const size_t at = (size_t)group * p.n_pad + n0 + i * 16 + lane / 4;
        s.scale[i][0] = __ldg(p.scale + at);
        s.scale[i][1] = __ldg(p.scale + at + 8);
        if (!p.x_zero_point) qb__u4_zeros_by_output(p.zero_point, (int)at, s.zero[i]);
    }
}

/* part += 16 input channels. */
__device__ __forceinline__ void multiply_16(const qb__u4_product &p, const uint32_t words[NT][4],
                                            int j, int k, uint32_t stage, int lane, slice &s,
                                            float part[NT][TOK8][4])
{
    uint32_t a[NT][4];
#pragma unroll
    for (int i = 0; i < NT; i++) {
        if (p.x_zero_point) qb__u4_zeros_by_input(p.x_zero_point, k, lane % 4, s.zero[i]);
        qb__u4_fragment(words[i][j], s.zero[i], a[i]);
    }
#pragma unroll
    for (int n = 0; n < TOK8; n += 2) { /* 16 tokens by one ldmatrix */
        uint32_t b[4];
        const int row = n * 8 + lane / 16 * 8 + lane % 8, chunk = 2 * j + lane / 8 % 2;
        qb__ldmatrix_x4(b, stage + row * 128 + ((chunk ^ row) & 7) * 16);
#pragma unroll
        for (int i = 0; i < NT; i++) {
            qb__mma_bf16(part[i][n], a[i], b[0], b[1]);
            qb__mma_bf16(part[i][n + 1], a[i], b[2], b[3]);
        }
    }
}

/* acc += scale * part, and part = 0: at the end of each group. */
__device__ __forceinline__ void fold(const slice &s, float acc[NT][TOK8][4],
                                     float part[NT][TOK8][4])
{
#pragma unroll
    for (int i = 0; i < NT; i++)
#pragma unroll
        for (int n = 0; n < TOK8; n++)
#pragma unroll
            for (int c = 0; c < 4; c++) {
                acc[i][n][c] = fmaf(s.scale[i][c / 2], part[i][n][c], acc[i][n][c]);
                part[i][n][c] = 0.0f;
            }
}

__global__ void __launch_bounds__(WARPS * 32) gemm(const __grid_constant__ qb__u4_product p)
{
    __shared__ __align__(128) unsigned char stages[STAGES * STAGE_BYTES];
    const uint32_t shared = qb_smem(stages);
    const int lane = threadIdx.x % 32, m0 = blockIdx.x * TOKENS;
    const int n0 = blockIdx.y * WARPS * NT * 16 + threadIdx.x / 32 * NT * 16;
    float acc[NT][TOK8][4] = {}, part[NT][TOK8][4] = {};
    slice s;
    s.group = -1;
    uint32_t words[NT][4], next[NT][4];
    for (int i = 0; i < STAGES - 1; i++) load_stage(p, i, m0, shared);
    load_words(p, 0, n0, lane, words);
    for (int tile = 0; tile < p.k_tiles; tile++) {
        qb__cp_async_wait<STAGES - 2>();
        __syncthreads();
        load_stage(p, tile + STAGES - 1, m0, shared);
        load_words(p, tile + 1, n0, lane, next);
        if (n0 < p.n_pad) {
            load_slice(p, tile / p.group_tiles, n0, lane, s);
#pragma unroll
            for (int j = 0; j < 4; j++)
                multiply_16(p, words, j, tile * 64 + j * 16, shared + tile % STAGES * STAGE_BYTES,
                            lane, s, part);
            if ((tile + 1) % p.group_tiles == 0 || tile + 1 == p.k_tiles) fold(s, acc, part);
        }
#pragma unroll
        for (int i = 0; i < NT; i++)
#pragma unroll
            for (int j = 0; j < 4; j++) words[i][j] = next[i][j];
    }
#pragma unroll
    for (int i = 0; i < NT; i++)
#pragma unroll
        for (int t = 0; t < TOK8; t++)
#pragma unroll
            for (int c = 0; c < 4; c++) {
                const int m = m0 + t * 8 + lane % 4 * 2 + c % 2;
                const int n = n0 + i * 16 + lane / 4 + c / 2 * 8;
                if (m < p.m && n < p.n) qb__u4_store(p, m, n, acc[i][t][c]);
            }
}

} // namespace

const char *qb__gemm_u4_refuse_sm80(const qb_cuda_gemm_u4_args *a)
{
    (void)a;
    return NULL;
}

qb_status qb__gemm_u4_sm80(const qb_cuda_gemm_u4_args *a, qb_cuda_stream stream)
{
    const qb__u4_product p = qb__u4_product_of(a);
    const dim3 grid((unsigned)(p.m + TOKENS - 1) / TOKENS,
                    (unsigned)(p.n + WARPS * NT * 16 - 1) / (WARPS * NT * 16));
    gemm<<<grid, WARPS * 32, 0, stream>>>(p);
    QB_CUDA_TRY(cudaGetLastError());
    return QB_OK;
}
