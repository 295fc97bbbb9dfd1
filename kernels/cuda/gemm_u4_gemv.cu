/* kernels/cuda/gemm_u4_gemv.cu - up to 16 tokens times 4-bit weights, bound by reading the weights.
 *
 * A block has all activations in shared memory and walks over some tiles of 16 output channels; its
 * warps share out the input channels in tiles of 64, each with DEPTH tiles of codes on their way
 * from device memory to its registers, whatever output they belong to. After every few output tiles
 * the sums of the warps are added, in the order of the warps. Codes, scales and zero points do not
 * depend on the kernel before, so they are asked for before waiting for it. */
#include "kernels/cuda/gemm_u4_internal.h"

#include "kernels/cuda/mma.cuh"

#include <algorithm>

namespace
{

enum { MAX_WARPS = 16 };
enum slices { ONE_GROUP, GROUPS, BY_INPUT }; /* whose scales and zero points there are */

struct layout { /* of a block's shared memory, in bytes; shared by the host and the kernel */
    int n_tiles, max_block_tiles, round; /* round: output tiles between two additions */
    int slices_at, sums_at, bytes;
};

/* What a lane has of one tile. */
template <int MODE> struct piece {
    uint4 words;
    float scale[MODE == GROUPS ? 2 : 1]; /* GROUPS: of its two channels */
    int zero_point[MODE == GROUPS ? 2 : 1];
};

/* The warp's next turn: the tile to ask for, or none. All warps have as many turns an output tile
 * (tiles up to `end`), so that they meet at the same barrier of the unrolled code. */
struct cursor {
    const uint4 *codes;
    int left, tile, end, output_tile;
};

template <int MODE>
__device__ __forceinline__ void ask(const qb__u4_product &p, cursor &c, int n_warps, int lane,
                                    piece<MODE> &to)
{
    if (c.left == 0) return;
    if (c.tile < p.k_tiles) to.words = qb__load_once(c.codes);
    if (MODE == GROUPS && c.tile < p.k_tiles) {
        const size_t at =
            (size_t)(c.tile / p.group_tiles) * p.n_pad + c.output_tile * 16 + lane / 4;
#pragma unroll
        for (int h = 0; h < 2; h++) {
            to.scale[h] = __ldg(p.scale + at + 8 * h);
            to.zero_point[h] = __ldg(p.zero_point + at + 8 * h);
        }
    }
    c.left--;
    c.codes += n_warps * 32;
    c.tile += n_warps;
    if (c.tile < c.end) return;
    const int first = threadIdx.x / 32;
    c.codes += (p.k_tiles - c.tile + first) * 32;
    c.tile = first;
    c.output_tile++;
}

/* Rows of 64 activations, 128 bytes each, their 16-byte chunks swizzled by the row:
 * [tile][token][128 bytes]. */
__device__ __forceinline__ void load_x(const qb__u4_product &p, uint32_t x_shared)
{
    for (int i = threadIdx.x; i < p.k_tiles * p.m * 8; i += blockDim.x) {
        const int chunk = i % 8, tile = i / 8 % p.k_tiles, row = i / 8 / p.k_tiles;
        qb__cp_async_16(x_shared + (tile * p.m + row) * 128 + ((chunk ^ row) & 7) * 16,
                        p.x + (size_t)row * p.x_stride + tile * 64 + chunk * 8,
                        qb__u4_chunk_bytes(p, tile * 64 + chunk * 8));
    }
    qb__cp_async_commit();
}

/* ONE_GROUP: zero points of the block's outputs as bf16 pairs, then their scales. BY_INPUT: pairs
 * of 128 + zero point for each two input channels. */
template <int MODE>
__device__ __forceinline__ void load_slices(const qb__u4_product &p, const layout &l, int first,
                                            int n_tiles, uint32_t *slices)
{
    for (int i = threadIdx.x; MODE == ONE_GROUP && i < n_tiles * 16; i += blockDim.x) {
        const int zero = __ldg(p.zero_point + first * 16 + i);
        slices[i] = qb__u4_zero_pair(zero, zero);
        slices[l.max_block_tiles * 16 + i] = __float_as_uint(__ldg(p.scale + first * 16 + i));
    }
    for (int i = threadIdx.x; MODE == BY_INPUT && i < p.k_tiles * 32; i += blockDim.x) {
        const short2 zero = __ldg((const short2 *)p.x_zero_point + i);
        slices[i] = qb__u4_zero_pair(zero.x, zero.y);
    }
}

template <int TOK8, int MODE>
__device__ __forceinline__ void multiply_tile(uint4 words, uint32_t x_shared,
                                              const uint32_t *input_zeros, int lane,
                                              uint32_t zero[4], float sum[TOK8][4])
{
    const uint32_t word[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
    for (int half = 0; half < 2; half++) {
        uint32_t b[TOK8][4];
#pragma unroll
        for (int n = 0; n < TOK8; n++)
            qb__ldmatrix_x4(b[n], x_shared + n * 1024 + (half * 64 ^ (lane & 4) * 16));
#pragma unroll
        for (int j = 0; j < 2; j++) {
            uint32_t a[4];
            if (MODE == BY_INPUT) {
                const uint32_t *z = input_zeros + (half * 2 + j) * 8 + lane % 4;
                zero[0] = zero[1] = z[0], zero[2] = zero[3] = z[4];
            }
            qb__u4_fragment(word[half * 2 + j], zero, a);
#pragma unroll
            for (int n = 0; n < TOK8; n++) qb__mma_bf16(sum[n], a, b[n][2 * j], b[n][2 * j + 1]);
        }
    }
}

/* Adds the warps' sums of a round of output tiles: [tile][warp][token][channel]. */
template <int MODE>
__device__ __forceinline__ void finish_round(const qb__u4_product &p, const float *sums,
                                             const uint32_t *scales, int first, int n_tiles)
{
    const int n_warps = blockDim.x / 32, warp_sums = p.m * 16;
    for (int i = threadIdx.x; i < n_tiles * warp_sums; i += blockDim.x) {
        const int tile = i / warp_sums, at = i % warp_sums, n = (first + tile) * 16 + at % 16;
        const float *from = sums + tile * n_warps * warp_sums + at;
        float sum = 0.0f;
        for (int w = 0; w < n_warps; w++) sum += from[w * warp_sums];
        if (MODE == ONE_GROUP) sum *= __uint_as_float(scales[tile * 16 + at % 16]);
        if (MODE == BY_INPUT && n < p.n) sum *= __ldg(p.scale + n);
        if (n < p.n) qb__u4_store(p, at / 16, n, sum);
    }
}

template <int TOK8, int MODE, int DEPTH>
__global__ void __launch_bounds__(MAX_WARPS * 32, DEPTH <= 4 && MODE != GROUPS ? 2 : 1)
    gemv(const __grid_constant__ qb__u4_product p, const __grid_constant__ layout l)
{
    extern __shared__ __align__(128) unsigned char shared[];
    uint32_t *slices = reinterpret_cast<uint32_t *>(shared + l.slices_at);
    float *sums = reinterpret_cast<float *>(shared + l.sums_at);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, n_warps = blockDim.x / 32;
    const int first = (int)((long long)l.n_tiles * blockIdx.x / gridDim.x);
    const int n_tiles = (int)((long long)l.n_tiles * (blockIdx.x + 1) / gridDim.x) - first;
    const int per_output = (p.k_tiles + n_warps - 1) / n_warps, end = per_output * n_warps;
    const uint32_t x_shared = qb_smem(shared);
    /* of ldmatrix, in a tile: row lane % 8, chunk lane / 8 (and 4 more), swizzled */
    const uint32_t x_lane = x_shared + lane % 8 * 128 + ((lane / 8 ^ lane) & 3) * 16;

    piece<MODE> ring[DEPTH];
    cursor c = {p.codes + ((size_t)first * p.k_tiles + warp) * 32 + lane, n_tiles * per_output,
                warp, end, first};
    qb__start_next_grid();
#pragma unroll
    for (int d = 0; d < DEPTH; d++) ask<MODE>(p, c, n_warps, lane, ring[d]);
    load_slices<MODE>(p, l, first, n_tiles, slices);
    qb__wait_previous_grid();
    load_x(p, x_shared);
    qb__cp_async_wait<0>();
    __syncthreads();

    float acc[TOK8][4] = {};
    uint32_t zero[4] = {};
    int tile = warp, output_tile = 0, in_round = 0, parity = 0;
    for (int s = 0; output_tile < n_tiles; s += DEPTH) {
#pragma unroll
        for (int d = 0; d < DEPTH; d++) {
            if (output_tile == n_tiles) break;
            if (MODE == ONE_GROUP && tile == warp) {
                zero[0] = zero[2] = slices[output_tile * 16 + lane / 4];
                zero[1] = zero[3] = slices[output_tile * 16 + lane / 4 + 8];
            }
            float part[TOK8][4] = {};
            if (MODE == GROUPS) {
                zero[0] = zero[2] = qb__u4_zero_pair(ring[d].zero_point[0], ring[d].zero_point[0]);
                zero[1] = zero[3] = qb__u4_zero_pair(ring[d].zero_point[1], ring[d].zero_point[1]);
            }
            if (tile < p.k_tiles)
                multiply_tile<TOK8, MODE>(ring[d].words, x_lane + tile * p.m * 128,
                                          slices + tile * 32, lane, zero,
                                          MODE == GROUPS ? part : acc);
            if (MODE == GROUPS && tile < p.k_tiles) {
#pragma unroll
                for (int n = 0; n < TOK8; n++)
#pragma unroll
                    for (int i = 0; i < 4; i++)
                        acc[n][i] = fmaf(ring[d].scale[i / 2], part[n][i], acc[n][i]);
            }
            ask<MODE>(p, c, n_warps, lane, ring[d]);
            tile += n_warps;
            if (tile < end) continue;

            tile = warp; /* an output tile is complete */
            float *mine = sums + ((parity * l.round + in_round) * n_warps + warp) * p.m * 16;
#pragma unroll
            for (int n = 0; n < TOK8; n++)
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const int m = n * 8 + lane % 4 * 2 + i % 2;
                    if (m < p.m) mine[m * 16 + lane / 4 + i / 2 * 8] = acc[n][i];
                    acc[n][i] = 0.0f;
                }
            output_tile++, in_round++;
            if (in_round < l.round && output_tile < n_tiles) continue;
            __syncthreads();
            const int begin = output_tile - in_round;
            finish_round<MODE>(p, sums + parity * l.round * n_warps * p.m * 16,
                               slices + l.max_block_tiles * 16 + begin * 16, first + begin,
                               in_round);
            in_round = 0, parity ^= 1;
        }
    }
}

layout layout_of(const qb__u4_product &p, int mode, int n_blocks, int n_warps)
{
    layout l;
    l.n_tiles = (p.n + 15) / 16;
    l.max_block_tiles = (l.n_tiles + n_blocks - 1) / n_blocks;
    l.round = std::min(l.max_block_tiles, std::max(1, 8 / p.m));
    l.slices_at = p.k_tiles * p.m * 128 + 2048; /* ldmatrix reads up to 16 rows */
    const int n_slices = mode == ONE_GROUP  ? l.max_block_tiles * 32
                         : mode == BY_INPUT ? p.k_tiles * 32
                                            : 0;
    l.sums_at = l.slices_at + n_slices * 4;
    l.bytes = l.sums_at + 2 * l.round * n_warps * p.m * 16 * 4;
    return l;
}

/* As many warps as leave the fewest without a tile in the last turn. */
int warps_for(int k_tiles)
{
    int best = std::min<int>(k_tiles, MAX_WARPS);
    for (int w = best; w >= 8; w--)
        if ((k_tiles + w - 1) / w * w < (k_tiles + best - 1) / best * best) best = w;
    return best;
}

/* Most shared memory of a block; 0 = no GPU. */
int max_shared()
{
    int device, bytes;
    if (cudaGetDevice(&device) != cudaSuccess ||
        cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) !=
            cudaSuccess)
        return 0;
    return bytes;
}

template <int TOK8, int MODE, int DEPTH>
qb_status launch_with(const qb__u4_product &p, int most_blocks, qb_cuda_stream stream)
{
    const int n_warps = warps_for(p.k_tiles), n_blocks = std::min((p.n + 15) / 16, most_blocks);
    const layout l = layout_of(p, MODE, n_blocks, n_warps);
    /* the same for all launches, some of which a graph keeps */
    QB_CUDA_TRY(cudaFuncSetAttribute(gemv<TOK8, MODE, DEPTH>,
                                     cudaFuncAttributeMaxDynamicSharedMemorySize, max_shared()));
    return qb__launch_overlapped(gemv<TOK8, MODE, DEPTH>, dim3((unsigned)n_blocks),
                                 dim3((unsigned)n_warps * 32), (size_t)l.bytes, stream, p, l);
}

/* One block a multiprocessor leaves room for the next kernel's to start early; long kernels gain
 * more from two. Few output tiles of many input channels want deeper queues. */
template <int TOK8> qb_status launch(const qb__u4_product &p, qb_cuda_stream stream)
{
    int device, n_sms;
    QB_CUDA_TRY(cudaGetDevice(&device));
    QB_CUDA_TRY(cudaDeviceGetAttribute(&n_sms, cudaDevAttrMultiProcessorCount, device));
    const int n_tiles = (p.n + 15) / 16;
    if (p.x_zero_point) return launch_with<TOK8, BY_INPUT, 4>(p, n_sms, stream);
    if (p.group_tiles < p.k_tiles) return launch_with<TOK8, GROUPS, 4>(p, n_sms, stream);
    if constexpr (TOK8 == 1)
        if (n_tiles <= n_sms) return launch_with<TOK8, ONE_GROUP, 8>(p, n_sms, stream);
    return launch_with<TOK8, ONE_GROUP, 4>(p, n_tiles > 4 * n_sms ? 2 * n_sms : n_sms, stream);
}

} // namespace

const char *qb__gemm_u4_refuse_gemv(const qb_cuda_gemm_u4_args *a)
{
    if (a->m > QB__U4_GEMV_MAX_M) return "more than 16 tokens";
    const qb__u4_product p = qb__u4_product_of(a);
    const layout l = layout_of(p, p.x_zero_point ? BY_INPUT : ONE_GROUP, 1, MAX_WARPS);
    return l.bytes > max_shared() ? "activations larger than shared memory" : NULL;
}

qb_status qb__gemm_u4_gemv(const qb_cuda_gemm_u4_args *a, qb_cuda_stream stream)
{
    const qb__u4_product p = qb__u4_product_of(a);
    return p.m <= 8 ? launch<1>(p, stream) : launch<2>(p, stream);
}
