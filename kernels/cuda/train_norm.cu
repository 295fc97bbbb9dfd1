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

/* 8 neighbouring values as they lie in memory. Rows are kept so until they are worked with: in bf16
 * that is half the registers, and all of a row's loads are under way before the first is waited
 * for. */
template <qb_cuda_dtype TYPE> struct unit {
    uint4 bits[TYPE == QB_CUDA_F32 ? 2 : 1];

    __device__ __forceinline__ void load(const void *p, size_t at)
    {
        const uint4 *from = (const uint4 *)((const char *)p + at * (TYPE == QB_CUDA_F32 ? 4 : 2));
#pragma unroll
        for (int i = 0; i < (TYPE == QB_CUDA_F32 ? 2 : 1); i++) bits[i] = from[i];
    }
    __device__ __forceinline__ void clear()
    {
#pragma unroll
        for (int i = 0; i < (TYPE == QB_CUDA_F32 ? 2 : 1); i++) bits[i] = make_uint4(0, 0, 0, 0);
    }
    __device__ __forceinline__ float operator[](int i) const
    {
        const uint4 &b = bits[TYPE == QB_CUDA_F32 ? i / 4 : 0];
        const int word = TYPE == QB_CUDA_F32 ? i % 4 : i / 2;
        const uint32_t w = word == 0 ? b.x : word == 1 ? b.y : word == 2 ? b.z : b.w;
        if constexpr (TYPE == QB_CUDA_F32) return __uint_as_float(w);
        return i % 2 ? qb_bf16_high(w) : qb_bf16_low(w);
    }
};

__device__ __forceinline__ int column_of(int u)
{
    return (u * LANES + (int)threadIdx.x) * UNIT;
}

/* A row's units of this lane, zeros beyond the width's last unit. */
template <int U, qb_cuda_dtype TYPE>
__device__ __forceinline__ void load_row(const void *p, size_t at, int width, unit<TYPE> (&v)[U])
{
#pragma unroll
    for (int u = 0; u < U; u++)
        if (column_of(u) < width)
            v[u].load(p, at + column_of(u));
        else
            v[u].clear();
}

/* gain of a column; one value for all where it is single */
__device__ __forceinline__ float gain_at(const float *p, bool single, int column, int width)
{
    return column < width ? p[single ? 0 : column] : 0.0f;
}

template <int U, qb_cuda_dtype TYPE>
__global__ void __launch_bounds__(LANES *WARPS)
    norm_rows(const __grid_constant__ qb_cuda_train_norm a)
{
    const int width = (int)a.width;
    const bool centred = a.norm == QB_NORM_LAYERNORM, single = a.norm == QB_NORM_RMSNORM_SINGLE;
    for (size_t row = (size_t)blockIdx.x * WARPS + threadIdx.y; row < a.m;
         row += (size_t)gridDim.x * WARPS) {
        const size_t at = row * a.stride;
        unit<TYPE> x[U], add[U];
        float v[U][UNIT], sum = 0.0f, square = 0.0f;
        load_row(a.x, at, width, x);
        if (a.add) load_row(a.add, at, width, add);
#pragma unroll
        for (int u = 0; u < U; u++) {
#pragma unroll
            for (int i = 0; i < UNIT; i++) {
                v[u][i] = x[u][i];
                if (a.add) v[u][i] += add[u][i];
                /* as the backward pass will read it */
                if (TYPE == QB_CUDA_BF16) v[u][i] = __bfloat162float(__float2bfloat16_rn(v[u][i]));
            }
            qb_clear_edge(width - column_of(u), v[u]);
            if (a.add && column_of(u) < width) qb_store(a.sum, TYPE, at + column_of(u), v[u]);
#pragma unroll
            for (int i = 0; i < UNIT; i++) sum += v[u][i];
        }
        const float mean = centred ? qb_warp_sum(sum) / width : 0.0f;
#pragma unroll
        for (int u = 0; u < U; u++)
#pragma unroll
            for (int i = 0; i < UNIT; i++) {
                const float d = column_of(u) + i < width ? v[u][i] - mean : 0.0f;
                square += d * d;
            }
        const float inverse = rsqrtf(qb_warp_sum(square) / width + a.eps);
        if (threadIdx.x == 0) a.stats[2 * row] = mean, a.stats[2 * row + 1] = inverse;
        const float gain = single ? a.gain[0] : 0.0f;
#pragma unroll
        for (int u = 0; u < U; u++) {
            const int column = column_of(u);
            if (column >= width) continue;
#pragma unroll
            for (int i = 0; i < UNIT; i++) {
                const bool inside = column + i < width;
                const float g = single ? gain : inside ? a.gain[column + i] : 0.0f;
                const float b = a.bias && inside ? a.bias[column + i] : 0.0f;
                v[u][i] = inside ? (v[u][i] - mean) * inverse * g + b : 0.0f;
            }
            qb_store(a.y, TYPE, at + column, v[u]);
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

/* What a norm's gradients need: with a gain a channel its gradient, with a bias that too and a mean
 * that is taken off. Each costs registers. */
enum { SINGLE_GAIN, CHANNEL_GAIN, GAIN_AND_BIAS };

template <int U, qb_cuda_dtype TYPE, int KIND>
__global__ void __launch_bounds__(LANES *WARPS)
    norm_gradients(const __grid_constant__ qb_cuda_train_norm a)
{
    constexpr bool SINGLE = KIND == SINGLE_GAIN, BIASED = KIND == GAIN_AND_BIAS;
    constexpr bool KEPT = !SINGLE && U <= 4; /* gains in registers; else read each time */
    const int width = (int)a.width;
    const bool centred = BIASED && a.norm == QB_NORM_LAYERNORM;
    const float one_gain = SINGLE ? a.gain[0] : 0.0f;
    float gain[KEPT ? U : 1][UNIT], d_single = 0.0f;
    float d_gain[SINGLE ? 1 : U][UNIT] = {}, d_bias[BIASED ? U : 1][UNIT] = {};
    if constexpr (KEPT)
#pragma unroll
        for (int u = 0; u < U; u++)
#pragma unroll
            for (int i = 0; i < UNIT; i++)
                gain[u][i] = gain_at(a.gain, false, column_of(u) + i, width);
    for (size_t row = (size_t)blockIdx.x * WARPS + threadIdx.y; row < a.m;
         row += (size_t)gridDim.x * WARPS) {
        const size_t at = row * a.stride;
        unit<TYPE> x[U], dy[U], before[U];
        load_row(a.x, at, width, x);
        load_row(a.dy, at, width, dy);
        if (a.accumulate) load_row(a.dx, at, width, before);
        const float mean = a.stats[2 * row], inverse = a.stats[2 * row + 1];
        float s1 = 0.0f, s2 = 0.0f;
        /* the gain's part of a value, and the value normed */
        const auto h_of = [&](int u, int i) {
            const int column = column_of(u) + i;
            if constexpr (SINGLE) return column < width ? dy[u][i] * one_gain : 0.0f;
            if constexpr (KEPT) return dy[u][i] * gain[u][i];
            return dy[u][i] * gain_at(a.gain, false, column, width);
        };
        const auto normed = [&](int u, int i) {
            return column_of(u) + i < width ? (x[u][i] - mean) * inverse : 0.0f;
        };
#pragma unroll
        for (int u = 0; u < U; u++)
#pragma unroll
            for (int i = 0; i < UNIT; i++) {
                const float n = normed(u, i), h = h_of(u, i);
                if constexpr (SINGLE)
                    d_single += dy[u][i] * n;
                else
                    d_gain[u][i] += dy[u][i] * n;
                if constexpr (BIASED) d_bias[u][i] += dy[u][i];
                s1 += h;
                s2 += h * n;
            }
        s2 = qb_warp_sum(s2) / width;
        s1 = centred ? qb_warp_sum(s1) / width : 0.0f;
#pragma unroll
        for (int u = 0; u < U; u++) {
            if (column_of(u) >= width) continue;
            float dx[UNIT];
#pragma unroll
            for (int i = 0; i < UNIT; i++)
                dx[i] = (a.accumulate ? before[u][i] : 0.0f) +
                        inverse * (h_of(u, i) - s1 - normed(u, i) * s2);
            qb_clear_edge(width - column_of(u), dx);
            qb_store(a.dx, TYPE, at + column_of(u), dx);
        }
    }
    if constexpr (SINGLE) {
        d_single = qb_warp_sum(d_single);
        if (threadIdx.x == 0) a.partials[blockIdx.x * WARPS + threadIdx.y] = d_single;
    } else
        store_partials(d_gain, width, a.partials);
    if constexpr (BIASED)
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

/* d[column] += sum of the partials of all blocks */
__global__ void add_columns(const float *partials, int width, float *d)
{
    const int column = blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= width) return;
    float total = 0.0f;
    for (int b = 0; b < PARTIAL_BLOCKS; b++) total += partials[(size_t)b * width + column];
    d[column] += total;
}

/* d[0] += sum of n partials */
__global__ void __launch_bounds__(1024) add_all(const float *partials, int n, float *d)
{
    __shared__ float part[32];
    float total = 0.0f;
    for (int i = threadIdx.x; i < n; i += 1024) total += partials[i];
    total = qb_warp_sum(total);
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = total;
    __syncthreads();
    if (threadIdx.x < 32) {
        total = qb_warp_sum(part[threadIdx.x]);
        if (threadIdx.x == 0) d[0] += total;
    }
}

template <int U, qb_cuda_dtype TYPE>
void launch_forward(const qb_cuda_train_norm &a, qb_cuda_stream stream)
{
    const size_t blocks = (a.m + WARPS - 1) / WARPS;
    norm_rows<U, TYPE>
        <<<(unsigned)(blocks < 2112 ? blocks : 2112), dim3(LANES, WARPS), 0, stream>>>(a);
}

template <int U, qb_cuda_dtype TYPE>
void launch_backward(const qb_cuda_train_norm &a, qb_cuda_stream stream)
{
    const dim3 block(LANES, WARPS);
    if (a.norm == QB_NORM_RMSNORM_SINGLE)
        norm_gradients<U, TYPE, SINGLE_GAIN><<<PARTIAL_BLOCKS, block, 0, stream>>>(a);
    else if (a.d_bias || a.norm == QB_NORM_LAYERNORM)
        norm_gradients<U, TYPE, GAIN_AND_BIAS><<<PARTIAL_BLOCKS, block, 0, stream>>>(a);
    else
        norm_gradients<U, TYPE, CHANNEL_GAIN><<<PARTIAL_BLOCKS, block, 0, stream>>>(a);
}

typedef void (*launcher)(const qb_cuda_train_norm &, qb_cuda_stream);
/* By units a lane: 256 columns each. */
#define BY_UNITS(launch, type)                                                                     \
    {                                                                                              \
        launch<1, type>, launch<2, type>, launch<3, type>, launch<4, type>, launch<8, type>        \
    }
const launcher forward[2][5] = {BY_UNITS(launch_forward, QB_CUDA_F32),
                                BY_UNITS(launch_forward, QB_CUDA_BF16)};
const launcher backward[2][5] = {BY_UNITS(launch_backward, QB_CUDA_F32),
                                 BY_UNITS(launch_backward, QB_CUDA_BF16)};

launcher launcher_of(const launcher (&table)[2][5], const qb_cuda_train_norm &a)
{
    const size_t units = (a.width + LANES * UNIT - 1) / (LANES * UNIT);
    return table[a.type == QB_CUDA_BF16][units <= 4 ? units - 1 : 4];
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
    launcher_of(forward, *args)(*args, stream);
    return qb_launched();
}

qb_status qb_cuda_train_norm_backward(const qb_cuda_train_norm *args, qb_cuda_stream stream)
{
    const int width = (int)args->width;
    if (args->width > QB_CUDA_TRAIN_MAX_NORM)
        return QB_FAIL(QB_ERR_UNSUPPORTED, "norm: width %zu, at most %d", args->width,
                       QB_CUDA_TRAIN_MAX_NORM);
    launcher_of(backward, *args)(*args, stream);
    const unsigned blocks = (unsigned)(width + 127) / 128;
    if (args->norm == QB_NORM_RMSNORM_SINGLE)
        add_all<<<1, 1024, 0, stream>>>(args->partials, PARTIAL_BLOCKS * WARPS, args->d_gain);
    else
        add_columns<<<blocks, 128, 0, stream>>>(args->partials, width, args->d_gain);
    if (args->d_bias)
        add_columns<<<blocks, 128, 0, stream>>>(args->partials + (size_t)PARTIAL_BLOCKS * width,
                                                width, args->d_bias);
    return qb_launched();
}

qb_status qb_cuda_train_column_sums(const void *dy, qb_cuda_dtype type, size_t m, size_t n,
                                    size_t stride, float *partials, float *d_bias,
                                    qb_cuda_stream stream)
{
    const dim3 grid(PARTIAL_BLOCKS, (unsigned)((n + LANES * UNIT - 1) / (LANES * UNIT)));
    sum_columns<<<grid, dim3(LANES, WARPS), 0, stream>>>(dy, type, m, (int)n, stride, partials);
    add_columns<<<(unsigned)(n + 127) / 128, 128, 0, stream>>>(partials, (int)n, d_bias);
    return qb_launched();
}
