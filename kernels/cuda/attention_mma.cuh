/* kernels/cuda/attention_mma.cuh - the steps of attention with mma.sync: a warp's 16 rows of
 * queries against a tile of keys in shared memory.
 *
 * Rows in shared memory are 16 bytes longer than the head, so that ldmatrix meets no bank twice.
 * Fragments: element [n][e] of a 16 x 8 N tile is row lane / 4 + 8 (e / 2), column
 * 8 n + 2 (lane % 4) + e % 2. */
#ifndef QB_KERNELS_CUDA_ATTENTION_MMA_CUH
#define QB_KERNELS_CUDA_ATTENTION_MMA_CUH

#include "kernels/cuda/attention_device.cuh"
#include "kernels/cuda/mma.cuh"

namespace attention_mma
{

/* Rows 0 to n_rows of a tile of ROWS; zeros in the rest and past head_dim. By THREADS threads. */
template <int DIM, int ROWS, int THREADS>
__device__ void load_tile(uint32_t tile, const __nv_bfloat16 *from, size_t stride, int n_rows,
                          int head_dim, int thread)
{
    for (int i = thread; i < ROWS * DIM / 8; i += THREADS) {
        int row = i / (DIM / 8), d = i % (DIM / 8) * 8;
        bool inside = row < n_rows && d < head_dim;
        qb__cp_async_16(tile + (row * (DIM + 8) + d) * 2, inside ? from + row * stride + d : from,
                        inside ? 16 : 0);
    }
}

/* s = q . k of 16 rows with KEYS keys. */
template <int DIM, int KEYS>
__device__ void scores(float (&s)[KEYS / 8][4], uint32_t q_tile, uint32_t k_tile)
{
    constexpr int LD = (DIM + 8) * 2;
    int lane = threadIdx.x % 32, i = lane % 8, j = lane / 8;
    uint32_t q_from = q_tile + (i + j % 2 * 8) * LD + j / 2 * 16;
    uint32_t k_from = k_tile + (i + j / 2 * 8) * LD + j % 2 * 16;
#pragma unroll
    for (int d = 0; d < DIM; d += 16) {
        uint32_t q[4], k[4];
        qb__ldmatrix_x4(q, q_from + d * 2);
#pragma unroll
        for (int n = 0; n < KEYS / 8; n += 2) {
            qb__ldmatrix_x4(k, k_from + n * 8 * LD + d * 2);
            qb__mma_bf16(s[n], q, k[0], k[1]);
            qb__mma_bf16(s[n + 1], q, k[2], k[3]);
        }
    }
}

/* out += p . v */
template <int DIM, int KEYS>
__device__ void add_values(float (&out)[DIM / 8][4], const float (&p)[KEYS / 8][4], uint32_t v_tile)
{
    constexpr int LD = (DIM + 8) * 2;
    int lane = threadIdx.x % 32, i = lane % 8, j = lane / 8;
    uint32_t v_from = v_tile + (i + j % 2 * 8) * LD + j / 2 * 16;
#pragma unroll
    for (int n = 0; n < KEYS / 8; n += 2) {
        uint32_t a[4] = {qb_bf16_pair(p[n][0], p[n][1]), qb_bf16_pair(p[n][2], p[n][3]),
                         qb_bf16_pair(p[n + 1][0], p[n + 1][1]),
                         qb_bf16_pair(p[n + 1][2], p[n + 1][3])};
#pragma unroll
        for (int d = 0; d < DIM; d += 16) {
            uint32_t v[4];
            qb__ldmatrix_x4_trans(v, v_from + n * 8 * LD + d * 2);
            qb__mma_bf16(out[d / 8], a, v[0], v[1]);
            qb__mma_bf16(out[d / 8 + 1], a, v[2], v[3]);
        }
    }
}

/* Scores become p, in place; rescale: what earlier sums are multiplied by. `last` is the last key
 * that the thread's first row sees, counted from the tile's first; its second row, 8 below, sees
 * `more` more. */
template <int KEYS>
__device__ void softmax(float (&s)[KEYS / 8][4], attention_running &run, float (&rescale)[2],
                        int last, int more, float scale_log2, bool relu)
{
    int t = threadIdx.x % 4 * 2;
    if (last < KEYS - 1)
        for (int n = 0; n < KEYS / 8; n++)
            for (int e = 0; e < 4; e++)
                if (8 * n + t + e % 2 > last + e / 2 * more) s[n][e] = -CUDART_INF_F;
    if (relu) {
        for (int n = 0; n < KEYS / 8; n++)
            for (int e = 0; e < 4; e++) s[n][e] = fmaxf(s[n][e], 0);
        rescale[0] = rescale[1] = 1;
        return;
    }
    for (int r = 0; r < 2; r++) {
        float max = run.max[r];
        for (int n = 0; n < KEYS / 8; n++) max = fmaxf(max, fmaxf(s[n][2 * r], s[n][2 * r + 1]));
        max = fmaxf(max, __shfl_xor_sync(~0u, max, 1));
        max = fmaxf(max, __shfl_xor_sync(~0u, max, 2));
        float shift = max == -CUDART_INF_F ? 0 : max * scale_log2, sum = 0;
        rescale[r] = qb_exp2(fmaf(run.max[r], scale_log2, -shift));
        for (int n = 0; n < KEYS / 8; n++)
            for (int e = 2 * r; e < 2 * r + 2; e++)
                sum += s[n][e] = qb_exp2(fmaf(s[n][e], scale_log2, -shift));
        run.sum[r] = fmaf(run.sum[r], rescale[r], sum);
        run.max[r] = max;
    }
}

} // namespace attention_mma

#endif
