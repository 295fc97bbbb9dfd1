/* kernels/cuda/train_act.cu - what stands between the products of a training step: activations,
 * biases, rotary positions, the gate of attention's heads. Units of 8 columns a thread. */
#include "kernels/cuda/pointwise.cuh"
#include "kernels/cuda/train.h"

namespace
{
enum { UNIT = 8, THREADS = 256 };

__device__ __forceinline__ float act(qb_act_kind kind, float x)
{
    return kind == QB_ACT_RELU ? fmaxf(x, 0.0f) : qb_gelu(x);
}
__device__ __forceinline__ float act_slope(qb_act_kind kind, float x)
{
    if (kind == QB_ACT_RELU) return x > 0.0f ? 1.0f : 0.0f;
    const float share = qb_gelu_share(x);
    return qb_gelu_slope(x, x * share, share);
}

/* Unit of this thread, counted over all rows; false beyond the last. */
__device__ __forceinline__ bool place(size_t m, int width, size_t *row, int *column)
{
    const size_t units = (width + UNIT - 1) / UNIT;
    const size_t unit = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    *row = unit / units;
    *column = (int)(unit % units) * UNIT;
    return *row < m;
}
inline unsigned blocks_for(size_t m, size_t width)
{
    return (unsigned)((m * ((width + UNIT - 1) / UNIT) + THREADS - 1) / THREADS);
}

/* Columns of gate and up need not start at a multiple of 8. */
__device__ __forceinline__ void load_any(const void *p, qb_cuda_dtype type, size_t at, int n_inside,
                                         bool aligned, float (&v)[UNIT])
{
    if (aligned && n_inside >= UNIT)
        qb_load(p, type, at, v);
    else
        qb_load_edge(p, type, at, n_inside, v);
}
__device__ __forceinline__ void store_any(void *p, qb_cuda_dtype type, size_t at, int n_inside,
                                          bool aligned, const float (&v)[UNIT])
{
    if (aligned && n_inside >= UNIT)
        qb_store(p, type, at, v);
    else
        for (int i = 0; i < UNIT && i < n_inside; i++) qb_store_one(p, type, at + i, v[i]);
}

__global__ void __launch_bounds__(THREADS) act_rows(const __grid_constant__ qb_cuda_train_act a)
{
    size_t row;
    int column;
    const int width = (int)a.width;
    if (!place(a.m, width, &row, &column)) return;
    float v[UNIT];
    const size_t at = row * a.pre_stride + column;
    load_any(a.pre, a.type, at, width - column, true, v);
    if (a.act == QB_ACT_SWIGLU) {
        float up[UNIT];
        load_any(a.pre, a.type, at + width, width - column, width % UNIT == 0, up);
#pragma unroll
        for (int i = 0; i < UNIT; i++) v[i] = qb_swiglu(up[i], v[i]);
    } else
#pragma unroll
        for (int i = 0; i < UNIT; i++) v[i] = act(a.act, v[i]);
    store_any(a.y, a.type, row * a.y_stride + column, width - column, true, v);
}

__global__ void __launch_bounds__(THREADS)
    act_gradients(const __grid_constant__ qb_cuda_train_act a)
{
    size_t row;
    int column;
    const int width = (int)a.width;
    if (!place(a.m, width, &row, &column)) return;
    float v[UNIT], dy[UNIT];
    const int n_inside = width - column;
    const size_t at = row * a.pre_stride + column;
    load_any(a.pre, a.type, at, n_inside, true, v);
    load_any(a.y, a.type, row * a.y_stride + column, n_inside, true, dy);
    if (a.act == QB_ACT_SWIGLU) {
        const bool aligned = width % UNIT == 0;
        float up[UNIT];
        load_any(a.pre, a.type, at + width, n_inside, aligned, up);
#pragma unroll
        for (int i = 0; i < UNIT; i++) {
            const float s = qb_sigmoid(v[i]), silu = v[i] * s;
            const float d_gate = dy[i] * up[i] * (s + silu * (1.0f - s));
            up[i] = dy[i] * silu;
            v[i] = d_gate;
        }
        store_any(a.d_pre, a.type, at, n_inside, true, v);
        store_any(a.d_pre, a.type, at + width, n_inside, aligned, up);
        return;
    }
#pragma unroll
    for (int i = 0; i < UNIT; i++) v[i] = dy[i] * act_slope(a.act, v[i]);
    store_any(a.d_pre, a.type, at, n_inside, true, v);
}

/* One pair (i, i + D / 2) of one head of one row a thread. */
__global__ void __launch_bounds__(THREADS)
    rotate(void *qkv, qb_cuda_dtype type, size_t n_pairs, size_t n_tokens, size_t stride,
           unsigned n_heads, unsigned half, const float *cosine, const float *sine, float sign)
{
    const size_t pair = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (pair >= n_pairs) return;
    const unsigned i = (unsigned)(pair % half), head = (unsigned)(pair / half % n_heads);
    const size_t row = pair / half / n_heads, angle = row % n_tokens * half + i;
    const size_t at = row * stride + (size_t)head * 2 * half + i;
    const float c = cosine[angle], s = sign * sine[angle];
    const float x = qb_load_one(qkv, type, at), y = qb_load_one(qkv, type, at + half);
    qb_store_one(qkv, type, at, x * c - y * s);
    qb_store_one(qkv, type, at + half, y * c + x * s);
}

/* A warp takes one head of one row. */
__global__ void __launch_bounds__(THREADS) gate_rows(const __grid_constant__ qb_cuda_train_gate a)
{
    const size_t task = ((size_t)blockIdx.x * THREADS + threadIdx.x) / 32;
    if (task >= a.m * a.n_heads) return;
    const size_t row = task / a.n_heads, head = task % a.n_heads;
    const size_t at = row * a.stride + head * a.head_dim;
    const float s = qb_sigmoid(qb_load_one(a.gate, a.type, row * a.gate_stride + head));
    for (size_t i = threadIdx.x % 32; i < a.head_dim; i += 32)
        qb_store_one(a.gated, a.type, at + i, s * qb_load_one(a.out, a.type, at + i));
}

__global__ void __launch_bounds__(THREADS)
    gate_gradients(const __grid_constant__ qb_cuda_train_gate a)
{
    const size_t task = ((size_t)blockIdx.x * THREADS + threadIdx.x) / 32;
    if (task >= a.m * a.n_heads) return;
    const size_t row = task / a.n_heads, head = task % a.n_heads;
    const size_t at = row * a.stride + head * a.head_dim, gate_at = row * a.gate_stride + head;
    const float s = qb_sigmoid(qb_load_one(a.gate, a.type, gate_at));
    float sum = 0.0f;
    for (size_t i = threadIdx.x % 32; i < a.head_dim; i += 32) {
        const float d = qb_load_one(a.d_gated, a.type, at + i);
        sum += d * qb_load_one(a.out, a.type, at + i);
        qb_store_one(a.d_out, a.type, at + i, d * s);
    }
    sum = qb_warp_sum(sum);
    if (threadIdx.x % 32 == 0) qb_store_one(a.d_gate, a.type, gate_at, sum * s * (1.0f - s));
}
} // namespace

qb_status qb_cuda_train_act_forward(const qb_cuda_train_act *args, qb_cuda_stream stream)
{
    act_rows<<<blocks_for(args->m, args->width), THREADS, 0, stream>>>(*args);
    return qb_launched();
}

qb_status qb_cuda_train_act_backward(const qb_cuda_train_act *args, qb_cuda_stream stream)
{
    act_gradients<<<blocks_for(args->m, args->width), THREADS, 0, stream>>>(*args);
    return qb_launched();
}

qb_status qb_cuda_train_rope(void *qkv, qb_cuda_dtype type, size_t m, size_t n_tokens,
                             size_t stride, size_t n_rotated_heads, size_t head_dim,
                             const float *cosine, const float *sine, bool inverse,
                             qb_cuda_stream stream)
{
    const size_t n_pairs = m * n_rotated_heads * (head_dim / 2);
    rotate<<<(unsigned)((n_pairs + THREADS - 1) / THREADS), THREADS, 0, stream>>>(
        qkv, type, n_pairs, n_tokens, stride, (unsigned)n_rotated_heads, (unsigned)head_dim / 2,
        cosine, sine, inverse ? -1.0f : 1.0f);
    return qb_launched();
}

qb_status qb_cuda_train_gate_forward(const qb_cuda_train_gate *args, qb_cuda_stream stream)
{
    const size_t threads = args->m * args->n_heads * 32;
    gate_rows<<<(unsigned)((threads + THREADS - 1) / THREADS), THREADS, 0, stream>>>(*args);
    return qb_launched();
}

qb_status qb_cuda_train_gate_backward(const qb_cuda_train_gate *args, qb_cuda_stream stream)
{
    const size_t threads = args->m * args->n_heads * 32;
    gate_gradients<<<(unsigned)((threads + THREADS - 1) / THREADS), THREADS, 0, stream>>>(*args);
    return qb_launched();
}
