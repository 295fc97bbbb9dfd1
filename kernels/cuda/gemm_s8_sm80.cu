/* kernels/cuda/gemm_s8_sm80.cu - int8 products by mma.sync, for any shape and every GPU since 8.0.
 *
 * A block makes 128 x 128 outputs, each of its 8 warps 64 x 32; both operands pass through three
 * stages of shared memory of 64 input channels each. Rows of 64 bytes lie in pairs of 128 bytes,
 * their 16-byte chunks swizzled by the pair, so that ldmatrix meets no bank twice. */
#include "kernels/cuda/gemm_s8_element.cuh"
#include "kernels/cuda/gemm_s8_internal.h"

namespace
{

enum {
    TILE = 128,
    THREADS = 256,
    STAGES = 3,
    OPERAND_BYTES = TILE * 64,
    STAGE_BYTES = 2 * OPERAND_BYTES,
    M16 = 4, /* of a warp's 64 rows */
    N8 = 4,  /* of its 32 columns */
};

struct product {
    qb_cuda_gemm_s8_args a;
    int k_tiles;
};

static __device__ __forceinline__ uint32_t chunk_at(int row, int chunk)
{
    return row / 2 * 128 + (((row % 2 * 4 + chunk) ^ (row / 2)) & 7) * 16;
}

static __device__ __forceinline__ void load_operand(const int8_t *from, size_t stride, int row0,
                                                    int n_rows, int tile, uint32_t to)
{
    for (int i = threadIdx.x; i < TILE * 4; i += THREADS) {
        const int row = i / 4, chunk = i % 4;
        const bool take = row0 + row < n_rows;
        qb__cp_async_16(to + chunk_at(row, chunk),
                        from + (size_t)(take ? row0 + row : 0) * stride + tile * 64 + chunk * 16,
                        take ? 16 : 0);
    }
}

static __device__ __forceinline__ void load_stage(const product &p, int tile, int m0, int n0,
                                                  uint32_t shared)
{
    const uint32_t stage = shared + tile % STAGES * STAGE_BYTES;
    if (tile < p.k_tiles) {
        load_operand(p.a.x, p.a.x_stride, m0, (int)p.a.m, tile, stage);
        load_operand(p.a.w, p.a.w_stride, n0, (int)p.a.n, tile, stage + OPERAND_BYTES);
    }
    qb__cp_async_commit();
}

/* 32 input channels: chunks 2 half and 2 half + 1 of each row. */
static __device__ __forceinline__ void multiply_32(uint32_t stage, int half, int warp, int lane,
                                                   int acc[M16][N8][4])
{
    const int row_m = warp % 2 * 64, row_n = warp / 2 * 32;
    uint32_t x[M16][4], w[N8 / 2][4];
#pragma unroll
    for (int i = 0; i < M16; i++)
        qb__ldmatrix_x4(x[i], stage + chunk_at(row_m + i * 16 + lane % 16, 2 * half + lane / 16));
#pragma unroll
    for (int j = 0; j < N8 / 2; j++)
        qb__ldmatrix_x4(
            w[j], stage + OPERAND_BYTES +
                      chunk_at(row_n + j * 16 + lane / 16 * 8 + lane % 8, 2 * half + lane / 8 % 2));
#pragma unroll
    for (int i = 0; i < M16; i++)
#pragma unroll
        for (int j = 0; j < N8; j++)
            qb__mma_s8(acc[i][j], x[i], w[j / 2][j % 2 * 2], w[j / 2][j % 2 * 2 + 1]);
}

/* One of a thread's rows: 8 elements of it, 2 of each 8 columns. */
static __device__ __forceinline__ void finish_row(const product &p, int m, int n0, int half,
                                                  const int acc[N8][4])
{
    using namespace gemm_s8_element;
    const qb_cuda_gemm_s8_args &a = p.a;
    const bool wants_z = a.out != QB_CUDA_S32 || a.residual || a.max_bits || a.row_max_bits;
    float row_max = 0.0f;
#pragma unroll
    for (int j = 0; j < N8; j++)
#pragma unroll
        for (int c = 0; c < 2; c++) {
            const int n = n0 + j * 8 + threadIdx.x % 4 * 2 + c;
            const bool mine = m < (int)a.m && n < (int)a.n;
            float z = 0.0f;
            if (mine) {
                if (wants_z) z = finish(a, m, n, acc[j][half * 2 + c]);
                store(a, m, n, acc[j][half * 2 + c], z);
                row_max = fmaxf(row_max, row_magnitude(a, z));
            }
            if (a.max_bits) raise_segments(a, mine ? segment_of(a.segments, n) : 0, fabsf(z));
        }
    if (!a.row_max_bits) return;
    row_max = fmaxf(row_max, __shfl_xor_sync(0xffffffffu, row_max, 1));
    row_max = fmaxf(row_max, __shfl_xor_sync(0xffffffffu, row_max, 2));
    if (threadIdx.x % 4 == 0 && m < (int)a.m) raise(a.row_max_bits + m, row_max);
}

__global__ void __launch_bounds__(THREADS) gemm(const __grid_constant__ product p)
{
    __shared__ __align__(128) unsigned char stages[STAGES * STAGE_BYTES];
    const uint32_t shared = qb_smem(stages);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int m0 = blockIdx.x * TILE, n0 = blockIdx.y * TILE;
    int acc[M16][N8][4] = {};
    for (int i = 0; i < STAGES - 1; i++) load_stage(p, i, m0, n0, shared);
    for (int tile = 0; tile < p.k_tiles; tile++) {
        qb__cp_async_wait<STAGES - 2>();
        __syncthreads();
        load_stage(p, tile + STAGES - 1, m0, n0, shared);
        const uint32_t stage = shared + tile % STAGES * STAGE_BYTES;
        multiply_32(stage, 0, warp, lane, acc);
        multiply_32(stage, 1, warp, lane, acc);
    }
#pragma unroll
    for (int i = 0; i < M16; i++)
#pragma unroll
        for (int half = 0; half < 2; half++)
            finish_row(p, m0 + warp % 2 * 64 + i * 16 + half * 8 + lane / 4, n0 + warp / 2 * 32,
                       half, acc[i]);
}

} // namespace

const char *qb__gemm_s8_refuse_sm80(const qb_cuda_gemm_s8_args *a)
{
    return qb__gemm_s8_refuse_cache(a);
}

qb_status qb__gemm_s8_run_sm80(const qb_cuda_gemm_s8_args *a, qb_cuda_stream stream)
{
    const product p = {*a, (int)((a->k + 63) / 64)};
    const dim3 grid((unsigned)((a->m + TILE - 1) / TILE), (unsigned)((a->n + TILE - 1) / TILE));
    gemm<<<grid, THREADS, 0, stream>>>(p);
    QB_CUDA_TRY(cudaGetLastError());
    return QB_OK;
}
