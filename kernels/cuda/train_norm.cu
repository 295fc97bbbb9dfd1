/* kernels/cuda/train_norm.cu - norms forward and backward, and sums over the rows of a matrix.
 *
 * A warp takes a row and keeps it in registers: each lane units of 8 columns, 32 units apart. The
 * sums over rows (gradients of gains and biases) are kept by lanes over all rows of a warp, then
 * added over the block's warps and over the blocks, always in the same order. */
#include "kernels/cuda/pointwise.cuh"
#include "kernels/cuda/train.h"

namespace
{
enum { UNIT = 8, LANES = 32, WARPS = 8, PARTIAL_BLOCKS = 264 };

__device__ __forceinline__ float warp_sum(float v)
{
#pragma unroll
    for (int step = 16; step; step >>= 1) v += __shfl_xor_sync(0xffffffffu, v, step);
    return v;
}

/* The values of a row, zeros beyond its width. */
template <int U>
__device__ __forceinline__ void load_row(const void *p, qb_cuda_dtype type, size_t at, int width,
                                         float (&v)[U][UNIT])
{
#pragma unroll
    for (int u = 0; u < U; u++) {
        const int column = (u * LANES + threadIdx.x) * UNIT;
        if (column < width)
            qb_load(p, type, at + column, v[u]);
        else
#pragma unroll
            for (int i = 0; i < UNIT; i++) v[u][i] = 0.0f;
        qb_clear_edge(width - column, v[u]);
    }
}

template <int U>
__device__ __forceinline__ void store_row(void *p, qb_cuda_dtype type, size_t at, int width,
                                          const float (&v)[U][UNIT])
{
#pragma unroll
    for (int u = 0; u < U; u++) {
        const int column = (u * LANES + threadIdx.x) * UNIT;
        if (column < width) qb_store(p, type, at + column, v[u]);
    }
}

/* gain of a column; one value for all where it is single */
__device__ __forceinline__ float gain_at(const float *p, bool single, int column, int width)
{
    return column < width ? p[single ? 0 : column] : 0.0f;
}

template <int U> __device__ __forceinline__ float sum_row(const float (&v)[U][UNIT])
{
    float s = 0.0f;
#pragma unroll
    for (int u = 0; u < U; u++)
#pragma unroll
        for (int i = 0; i < UNIT; i++) s += v[u][i];
    return warp_sum(s);
}

template <int U>
__global__ void __launch_bounds__(LANES *WARPS)
    norm_rows(const __grid_constant__ qb_cuda_train_norm a)
{
    const int width = (int)a.width;
    const bool centred = a.norm == QB_NORM_LAYERNORM, single = a.norm == QB_NORM_RMSNORM_SINGLE;
    float v[U][UNIT];
    for (size_t row = (size_t)blockIdx.x * WARPS + threadIdx.y; row < a.m;
         row += (size_t)gridDim.x * WARPS) {
        const size_t at = row * a.stride;
        load_row(a.x, a.type, at, width, v);
        if (a.add) {
            float b[U][UNIT];
            load_row(a.add, a.type, at, width, b);
#pragma unroll
            for (int u = 0; u < U; u++)
#pragma unroll
                for (int i = 0; i < UNIT; i++) {
                    v[u][i] += b[u][i];
                    /* as the backward pass will read it */
                    if (a.type == QB_CUDA_BF16)
                        v[u][i] = __bfloat162float(__float2bfloat16_rn(v[u][i]));
                }
            store_row(a.sum, a.type, at, width, v);
        }
        const float mean = centred ? sum_row(v) / width : 0.0f;
        float square = 0.0f;
#pragma unroll
        for (int u = 0; u < U; u++)
#pragma unroll
            for (int i = 0; i < UNIT; i++) {
                const bool inside = (u * LANES + (int)threadIdx.x) * UNIT + i < width;
                const float d = inside ? v[u][i] - mean : 0.0f;
                square += d * d;
            }
        const float inverse = rsqrtf(warp_sum(square) / width + a.eps);
        if (threadIdx.x == 0) a.stats[2 * row] = mean, a.stats[2 * row + 1] = inverse;
        const float gain = single ? a.gain[0] : 0.0f;
#pragma unroll
        for (int u = 0; u < U; u++) {
            const int column = (u * LANES + threadIdx.x) * UNIT;
            if (column >= width) continue;
#pragma unroll
            for (int i = 0; i < UNIT; i++) {
                const bool inside = column + i < width;
                const float g = single ? gain : inside ? a.gain[column + i] : 0.0f;
                const float b = a.bias && inside ? a.bias[column + i] : 0.0f;
                v[u][i] = inside ? (v[u][i] - mean) * inverse * g + b : 0.0f;
            }
            qb_store(a.y, a.type, at + column, v[u]);
        }
    }
}

/* The warps' sums of the lanes' columns, added in order, become row blockIdx.x of the partials. */
template <int U>
__device__ void store_partials(const float (&sum)[U][UNIT], int width, float *partials)
{
    __shared__ float part[WARPS][LANES * UNIT];
#pragma unroll
    for (int u = 0; u < U; u++) {
        __syncthreads();
#pragma unroll
        for (int i = 0; i < UNIT; i++) part[threadIdx.y][threadIdx.x * UNIT + i] = sum[u][i];
        __syncthreads();
        const int own = threadIdx.y * LANES + threadIdx.x, column = u * LANES * UNIT + own;
        float total = 0.0f;
        for (int w = 0; w < WARPS; w++) total += part[w][own];
        if (column < width) partials[(size_t)blockIdx.x * width + column] = total;
    }
}

/* HAS_BIAS also stands for a mean that is taken off (LayerNorm): both cost registers. */
template <int U, bool HAS_BIAS>
__global__ void __launch_bounds__(LANES *WARPS)
    norm_gradients(const __grid_constant__ qb_cuda_train_norm a)
{
    const int width = (int)a.width;
    const bool centred = HAS_BIAS && a.norm == QB_NORM_LAYERNORM;
    const bool single = a.norm == QB_NORM_RMSNORM_SINGLE;
    constexpr bool KEPT = U <= 4; /* gains in registers; else read each time */
    float gain[KEPT ? U : 1][UNIT], d_gain[U][UNIT] = {}, d_bias[HAS_BIAS ? U : 1][UNIT] = {};
    if constexpr (KEPT)
#pragma unroll
        for (int u = 0; u < U; u++)
#pragma unroll
            for (int i = 0; i < UNIT; i++)
                gain[u][i] = gain_at(a.gain, single, (u * LANES + threadIdx.x) * UNIT + i, width);
    for (size_t row = (size_t)blockIdx.x * WARPS + threadIdx.y; row < a.m;
         row += (size_t)gridDim.x * WARPS) {
        const size_t at = row * a.stride;
        const float mean = a.stats[2 * row], inverse = a.stats[2 * row + 1];
        float x[U][UNIT], h[U][UNIT];
        load_row(a.x, a.type, at, width, x);
        load_row(a.dy, a.type, at, width, h);
        float s1 = 0.0f, s2 = 0.0f;
#pragma unroll
        for (int u = 0; u < U; u++)
#pragma unroll
            for (int i = 0; i < UNIT; i++) {
                const int column = (u * LANES + (int)threadIdx.x) * UNIT + i;
                x[u][i] = column < width ? (x[u][i] - mean) * inverse : 0.0f;
                d_gain[u][i] += h[u][i] * x[u][i];
                if constexpr (HAS_BIAS) d_bias[u][i] += h[u][i];
                if constexpr (KEPT)
                    h[u][i] *= gain[u][i];
                else
                    h[u][i] *= gain_at(a.gain, single, column, width);
                s1 += h[u][i];
                s2 += h[u][i] * x[u][i];
            }
        s2 = warp_sum(s2) / width;
        s1 = centred ? warp_sum(s1) / width : 0.0f;
#pragma unroll
        for (int u = 0; u < U; u++) {
            const int column = (u * LANES + threadIdx.x) * UNIT;
            if (column >= width) continue;
            float before[UNIT] = {};
            if (a.accumulate) qb_load(a.dx, a.type, at + column, before);
#pragma unroll
            for (int i = 0; i < UNIT; i++)
                h[u][i] = before[i] + inverse * (h[u][i] - s1 - x[u][i] * s2);
            qb_clear_edge(width - column, h[u]);
            qb_store(a.dx, a.type, at + column, h[u]);
        }
    }
    store_partials(d_gain, width, a.partials);
    if constexpr (HAS_BIAS)
        if (a.d_bias) store_partials(d_bias, width, a.partials + (size_t)PARTIAL_BLOCKS * width);
}

/* Sums over the rows that a block takes: rows blockIdx.x * WARPS + y, then PARTIAL_BLOCKS on. */
__global__ void __launch_bounds__(LANES *WARPS)
    sum_columns(const void *x, qb_cuda_dtype type, size_t m, int width, size_t stride,
                float *partials)
{
    __shared__ float part[WARPS][LANES * UNIT];
    const int first = blockIdx.y * LANES * UNIT, column = first + threadIdx.x * UNIT;
    float sum[UNIT] = {};
    if (column < width)
        for (size_t row = (size_t)blockIdx.x * WARPS + threadIdx.y; row < m;
             row += (size_t)gridDim.x * WARPS) {
            float v[UNIT];
            qb_load(x, type, row * stride + column, v);
#pragma unroll
            for (int i = 0; i < UNIT; i++) sum[i] += v[i];
        }
#pragma unroll
    for (int i = 0; i < UNIT; i++) part[threadIdx.y][threadIdx.x * UNIT + i] = sum[i];
    __syncthreads();
    const int own = threadIdx.y * LANES + threadIdx.x;
    float total = 0.0f;
    for (int w = 0; w < WARPS; w++) total += part[w][own];
    if (first + own < width) partials[(size_t)blockIdx.x * width + first + own] = total;
}

/* d[column] += sum of the partials of all blocks, or of all columns too where the gain is single */
__global__ void add_columns(const float *partials, int width, float *d)
{
    const int column = blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= width) return;
    float total = 0.0f;
    for (int b = 0; b < PARTIAL_BLOCKS; b++) total += partials[(size_t)b * width + column];
    d[column] += total;
}

__global__ void __launch_bounds__(1024) add_all(const float *partials, int n, float *d)
{
    __shared__ float part[32];
    float total = 0.0f;
    for (int i = threadIdx.x; i < n; i += 1024) total += partials[i];
    total = warp_sum(total);
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = total;
    __syncthreads();
    if (threadIdx.x < 32) {
        total = warp_sum(part[threadIdx.x]);
        if (threadIdx.x == 0) d[0] += total;
    }
}

template <int U> void launch_forward(const qb_cuda_train_norm &a, qb_cuda_stream stream)
{
    const size_t blocks = (a.m + WARPS - 1) / WARPS;
    norm_rows<U><<<(unsigned)(blocks < 2112 ? blocks : 2112), dim3(LANES, WARPS), 0, stream>>>(a);
}

template <int U> void launch_backward(const qb_cuda_train_norm &a, qb_cuda_stream stream)
{
    const dim3 block(LANES, WARPS);
    if (a.d_bias || a.norm == QB_NORM_LAYERNORM)
        norm_gradients<U, true><<<PARTIAL_BLOCKS, block, 0, stream>>>(a);
    else
        norm_gradients<U, false><<<PARTIAL_BLOCKS, block, 0, stream>>>(a);
}

typedef void (*launcher)(const qb_cuda_train_norm &, qb_cuda_stream);
/* By units a lane: 256 columns each. */
const launcher forward[] = {launch_forward<1>, launch_forward<2>, launch_forward<3>,
                            launch_forward<4>, launch_forward<8>};
const launcher backward[] = {launch_backward<1>, launch_backward<2>, launch_backward<3>,
                             launch_backward<4>, launch_backward<8>};

int launcher_of(size_t width)
{
    const size_t units = (width + LANES * UNIT - 1) / (LANES * UNIT);
    return units <= 4 ? (int)units - 1 : 4;
}
} // namespace

size_t qb_cuda_train_partials(size_t width)
{
    return 2 * PARTIAL_BLOCKS * width;
}

qb_status qb_cuda_train_norm_forward(const qb_cuda_train_norm *args, qb_cuda_stream stream)
{
    if (args->width > QB_CUDA_TRAIN_MAX_NORM)
        return QB_FAIL(QB_ERR_UNSUPPORTED, "norm: width %zu, at most %d", args->width,
                       QB_CUDA_TRAIN_MAX_NORM);
    forward[launcher_of(args->width)](*args, stream);
    QB_CUDA_TRY(cudaGetLastError());
    return QB_OK;
}

qb_status qb_cuda_train_norm_backward(const qb_cuda_train_norm *args, qb_cuda_stream stream)
{
    const int width = (int)args->width;
    if (args->width > QB_CUDA_TRAIN_MAX_NORM)
        return QB_FAIL(QB_ERR_UNSUPPORTED, "norm: width %zu, at most %d", args->width,
                       QB_CUDA_TRAIN_MAX_NORM);
    backward[launcher_of(args->width)](*args, stream);
    const unsigned blocks = (unsigned)(width + 127) / 128;
    if (args->norm == QB_NORM_RMSNORM_SINGLE)
        add_all<<<1, 1024, 0, stream>>>(args->partials, PARTIAL_BLOCKS * width, args->d_gain);
    else
        add_columns<<<blocks, 128, 0, stream>>>(args->partials, width, args->d_gain);
    if (args->d_bias)
        add_columns<<<blocks, 128, 0, stream>>>(args->partials + (size_t)PARTIAL_BLOCKS * width,
                                                width, args->d_bias);
    QB_CUDA_TRY(cudaGetLastError());
    return QB_OK;
}

qb_status qb_cuda_train_column_sums(const void *dy, qb_cuda_dtype type, size_t m, size_t n,
                                    size_t stride, float *partials, float *d_bias,
                                    qb_cuda_stream stream)
{
    const dim3 grid(PARTIAL_BLOCKS, (unsigned)((n + LANES * UNIT - 1) / (LANES * UNIT)));
    sum_columns<<<grid, dim3(LANES, WARPS), 0, stream>>>(dy, type, m, (int)n, stride, partials);
    add_columns<<<(unsigned)(n + 127) / 128, 128, 0, stream>>>(partials, (int)n, d_bias);
    QB_CUDA_TRY(cudaGetLastError());
    return QB_OK;
}
