/* kernels/cuda/attention_parts.cuh - attention over keys that are cut into parts: each has its own
 * maximum, sum and output, and a second kernel joins them in a fixed order, so that equal calls
 * give equal bits. */
#ifndef QB_KERNELS_CUDA_ATTENTION_PARTS_CUH
#define QB_KERNELS_CUDA_ATTENTION_PARTS_CUH

#include "kernels/cuda/attention_device.cuh"
#include "kernels/cuda/mma.cuh"

namespace attention_parts
{

struct split_params {
    attention_params a;
    float *partial; /* (batch, n_heads, n_parts, head_dim + 2): sums of p v, maximum, sum of p */
    int n_parts, lanes; /* lanes a key */

    /* The keys of part i. */
    __device__ void range(int i, int n_keys, int *begin, int *end) const
    {
        int part = (n_keys + n_parts - 1) / n_parts;
        part = (part + QB__CUDA_ATTENTION_PART - 1) / QB__CUDA_ATTENTION_PART *
               QB__CUDA_ATTENTION_PART;
        *begin = min(i * part, n_keys);
        *end = min(*begin + part, n_keys);
    }
    __device__ float *partial_of(size_t row, int part) const
    {
        return partial + (row * n_parts + part) * (a.head_dim + 2);
    }
};

static __device__ inline void store1(float x, float *to)
{
    *to = x;
}
static __device__ inline void store1(float x, __nv_bfloat16 *to)
{
    *to = __float2bfloat16_rn(x);
}

/* Adds part y to x; both hold sums relative to their own maxima. */
static __device__ inline void join(float *max, float *sum, float y_max, float y_sum,
                                   float *x_factor, float *y_factor, bool relu)
{
    *x_factor = *y_factor = 1;
    if (relu) return;
    float new_max = fmaxf(*max, y_max), shift = new_max == -CUDART_INF_F ? 0 : new_max;
    *x_factor = expf(*max - shift);
    *y_factor = expf(y_max - shift);
    *sum = *sum * *x_factor + y_sum * *y_factor;
    *max = new_max;
}

template <typename T>
static __device__ void finish(const attention_params &a, T *out, int d, float max, float sum,
                              float value, int n_keys)
{
    float x_factor = 1, y_factor;
    if (a.kind == QB_SOFTMAX1) join(&max, &sum, 0, 1, &x_factor, &y_factor, false);
    float divisor = attention_row_divisor(a.kind, sum, n_keys);
    store1(divisor > 0 ? value * x_factor / divisor : 0.0f, out + d);
}

/* A block a query head of a sequence. */
template <typename T> static __global__ void combine(const split_params s)
{
    const attention_params &a = s.a;
    const float *from = s.partial_of((size_t)blockIdx.y * a.n_heads + blockIdx.x, 0);
    const int d = threadIdx.x, stride = a.head_dim + 2;
    const bool relu = a.kind == QB_SOFTMAX_RELU;
    qb__start_next_grid();
    qb__wait_previous_grid();
    if (d >= a.head_dim) return;
    float max = -CUDART_INF_F, sum = 0, value = 0;
    for (int i = 0; i < s.n_parts; i++) max = fmaxf(max, from[i * stride + a.head_dim]);
    float shift = max == -CUDART_INF_F ? 0 : max;
#pragma unroll 8
    for (int i = 0; i < s.n_parts; i++) {
        float factor = relu ? 1 : expf(from[i * stride + a.head_dim] - shift);
        sum = fmaf(from[i * stride + a.head_dim + 1], factor, sum);
        value = fmaf(from[i * stride + d], factor, value);
    }
    finish(a, (T *)a.out + blockIdx.y * a.out_stride + (size_t)blockIdx.x * a.head_dim, d, max, sum,
           value, a.past() + 1);
}

template <typename T>
static qb_status launch_combine(const split_params &s, size_t batch, qb_cuda_stream stream)
{
    if (s.n_parts == 1) return QB_OK;
    dim3 heads((unsigned)s.a.n_heads, (unsigned)batch);
    return qb__launch_overlapped(combine<T>, heads, dim3((unsigned)((s.a.head_dim + 31) / 32 * 32)),
                                 0, stream, s);
}

} // namespace attention_parts

#endif
