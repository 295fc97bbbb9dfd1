/* kernels/cuda/outliers.cu - see outliers.h. Plain kernels: O is small where the split is worth it.
 */
#include "kernels/cuda/outliers.h"

#include "kernels/cuda/pointwise.cuh"

namespace
{

constexpr int THREADS = 256, WARPS = THREADS / 32;
constexpr int ADD_ROWS = 8, ADD_CHUNK = 64; /* rows a thread, channels in shared memory */

/* ---- which channels ---- */

__global__ void __launch_bounds__(THREADS)
    mark(const float *__restrict__ x, int m, int k, size_t stride, float least,
         uint8_t *__restrict__ is_outlier)
{
    const int c = blockIdx.x * THREADS + threadIdx.x;
    if (c >= k) return;
    bool any = false;
    for (int row = blockIdx.y; row < m; row += gridDim.y)
        any |= fabsf(x[row * stride + c]) >= least;
    if (any) is_outlier[c] = 1; /* all who write write the same */
}

/* One block: each round places THREADS channels behind those before. */
__global__ void __launch_bounds__(THREADS) list(const qb_cuda_outliers o, int k)
{
    __shared__ int in_warp[WARPS];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int before = 0;
    for (int c0 = 0; c0 < k; c0 += THREADS) {
        const int c = c0 + threadIdx.x;
        const bool is = c < k && o.is_outlier[c];
        const unsigned mask = __ballot_sync(0xffffffffu, is);
        if (lane == 0) in_warp[warp] = __popc(mask);
        __syncthreads();
        int at = before + __popc(mask & ((1u << lane) - 1));
        for (int w = 0; w < WARPS; w++) {
            if (w < warp) at += in_warp[w];
            before += in_warp[w];
        }
        if (is) o.channel[at] = c;
        __syncthreads();
    }
    if (threadIdx.x == 0) *o.n = before;
}

/* ---- the codes of the others ---- */

__device__ float block_max(float x, float *partial)
{
    const uint32_t bits = __reduce_max_sync(0xffffffffu, __float_as_uint(x));
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = __uint_as_float(bits);
    __syncthreads();
    float largest = 0;
    for (int w = 0; w < WARPS; w++) largest = fmaxf(largest, partial[w]);
    return largest;
}

__global__ void __launch_bounds__(THREADS)
    stage(const qb_cuda_outliers_stage_args a, const uint8_t *__restrict__ is_outlier)
{
    __shared__ float partial[WARPS];
    float *x = a.x + blockIdx.x * a.x_stride;
    float largest = 0;
    for (int c = threadIdx.x; c < (int)a.k; c += THREADS)
        if (!is_outlier[c]) largest = fmaxf(largest, fabsf(x[c]));
    const float scale = __fdiv_rn(block_max(largest, partial), 127.0f);
    if (threadIdx.x == 0) a.scale[blockIdx.x] = scale;
    for (int c = threadIdx.x; c < (int)a.x_stride; c += THREADS) {
        const bool in = c < (int)a.k && !is_outlier[c];
        const int code = in ? (int)qb_code_divided(x[c], scale) : 0; /* of -0.3 not -0 */
        if (a.q)
            a.q[blockIdx.x * a.x_stride + c] = (int8_t)code;
        else if (in)
            x[c] = (float)code * scale;
    }
}

/* ---- the float product ---- */

__global__ void __launch_bounds__(THREADS)
    gather(const qb_cuda_outliers_add_args a, const int32_t *__restrict__ channel,
           const int32_t *__restrict__ n_outliers)
{
    const int n = blockIdx.x * THREADS + threadIdx.x, count = *n_outliers;
    if (n >= (int)a.n) return;
    for (int o = blockIdx.y; o < count; o += gridDim.y)
        a.gathered[o * a.n + n] = a.w[n * a.w_stride + channel[o]];
}

__global__ void __launch_bounds__(THREADS)
    add(const qb_cuda_outliers_add_args a, const int32_t *__restrict__ channel,
        const int32_t *__restrict__ n_outliers)
{
    __shared__ float x[ADD_ROWS][ADD_CHUNK];
    const int n = blockIdx.x * THREADS + threadIdx.x, count = *n_outliers;
    const int row0 = blockIdx.y * ADD_ROWS, rows = min(ADD_ROWS, (int)a.m - row0);
    if (!count) return;
    float sum[ADD_ROWS] = {};
    for (int o0 = 0; o0 < count; o0 += ADD_CHUNK) {
        const int here = min(ADD_CHUNK, count - o0);
        __syncthreads();
        for (int i = threadIdx.x; i < rows * ADD_CHUNK; i += THREADS)
            if (i % ADD_CHUNK < here)
                x[i / ADD_CHUNK][i % ADD_CHUNK] =
                    a.x[(row0 + i / ADD_CHUNK) * a.x_stride + channel[o0 + i % ADD_CHUNK]];
        __syncthreads();
        for (int o = 0; n < (int)a.n && o < here; o++) {
            const float w = (float)a.gathered[(o0 + o) * a.n + n];
#pragma unroll
            for (int r = 0; r < ADD_ROWS; r++)
                if (r < rows) sum[r] = __fadd_rn(sum[r], __fmul_rn(x[r][o], w));
        }
    }
    if (n >= (int)a.n) return;
    const float scale = a.w_scale[n];
    for (int r = 0; r < rows; r++) {
        const size_t at = (row0 + r) * a.y_stride + n;
        const float y = qb_load_one(a.y, a.type, at);
        qb_store_one(a.y, a.type, at, __fadd_rn(y, __fmul_rn(sum[r], scale)));
    }
}

unsigned blocks_of(size_t n, size_t size)
{
    return (unsigned)((n + size - 1) / size);
}

} // namespace

qb_status qb_cuda_outliers_find(const float *x, size_t m, size_t k, size_t x_stride, float least,
                                const qb_cuda_outliers *out, qb_cuda_stream stream)
{
    QB_TRY(qb_cuda_zero(out->is_outlier, k, stream));
    const dim3 grid(blocks_of(k, THREADS), m < 256 ? (unsigned)m : 256);
    mark<<<grid, THREADS, 0, stream>>>(x, (int)m, (int)k, x_stride, least, out->is_outlier);
    list<<<1, THREADS, 0, stream>>>(*out, (int)k);
    return qb_launched();
}

qb_status qb_cuda_outliers_stage(const qb_cuda_outliers_stage_args *args, qb_cuda_stream stream)
{
    stage<<<(unsigned)args->m, THREADS, 0, stream>>>(*args, args->outliers->is_outlier);
    return qb_launched();
}

qb_status qb_cuda_outliers_add(const qb_cuda_outliers_add_args *args, qb_cuda_stream stream)
{
    const qb_cuda_outliers *o = args->outliers;
    const dim3 columns(blocks_of(args->n, THREADS), 64);
    gather<<<columns, THREADS, 0, stream>>>(*args, o->channel, o->n);
    if (blocks_of(args->m, ADD_ROWS) > 65535)
        return QB_FAIL(QB_ERR_SHAPE, "outliers: found %zu rows, at most %d", args->m,
                       65535 * ADD_ROWS);
    const dim3 grid(blocks_of(args->n, THREADS), blocks_of(args->m, ADD_ROWS));
    add<<<grid, THREADS, 0, stream>>>(*args, o->channel, o->n);
    return qb_launched();
}
