/* kernels/cuda/attention_splitkv.cu - attention of one new token a sequence: reads the cache once.
 *
 * One token leaves a block for each key head, too few to fill the GPU, so the keys are cut into
 * parts (FlashDecoding), each with its own maximum, sum and output; a second kernel joins them. All
 * query heads of a key head are done together. Inside a part a key is read by the 4 to 32 lanes
 * that hold its vector, 8 elements each, and every such group of lanes keeps a running softmax of
 * its own; they are joined in a fixed order, so equal calls give equal bits. */
#include "kernels/cuda/attention_device.cuh"

namespace
{

constexpr int WARPS = 4, KEYS = 4; /* keys in flight a group of lanes */
constexpr int MIN_PART_KEYS = 32;

struct split_params {
    attention_params a;
    float *partial; /* (batch, n_heads, n_parts, head_dim + 2): sums of p v, maximum, sum of p */
    int n_parts, lanes; /* lanes a key */
};

__device__ void load8(const float *from, float (&x)[8])
{
    *(float4 *)x = *(const float4 *)from;
    *(float4 *)(x + 4) = *(const float4 *)(from + 4);
}
__device__ void load8(const __nv_bfloat16 *from, float (&x)[8])
{
    uint4 w = *(const uint4 *)from;
    const uint32_t words[4] = {w.x, w.y, w.z, w.w};
    for (int i = 0; i < 4; i++) {
        x[2 * i] = __uint_as_float(words[i] << 16);
        x[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
    }
}
__device__ void store1(float x, float *to)
{
    *to = x;
}
__device__ void store1(float x, __nv_bfloat16 *to)
{
    *to = __float2bfloat16_rn(x);
}

/* The state of one query head in one group of lanes. */
struct state {
    float max, sum, out[8];
};

/* KEYS keys more: scores s, values v. */
__device__ void add_keys(state &x, float (&s)[KEYS], const float (&v)[KEYS][8], bool relu)
{
    float rescale = 1;
    if (relu) {
        for (int i = 0; i < KEYS; i++) s[i] = fmaxf(s[i], 0);
    } else {
        float max = x.max, sum = 0;
        for (int i = 0; i < KEYS; i++) max = fmaxf(max, s[i]);
        float shift = max == -CUDART_INF_F ? 0 : max;
        rescale = expf(x.max - shift);
        for (int i = 0; i < KEYS; i++) sum += s[i] = expf(s[i] - shift);
        x.sum = fmaf(x.sum, rescale, sum);
        x.max = max;
    }
    for (int d = 0; d < 8; d++) {
        float sum = 0;
        for (int i = 0; i < KEYS; i++) sum = fmaf(s[i], v[i][d], sum);
        x.out[d] = fmaf(x.out[d], rescale, sum);
    }
}

/* Adds part y to x; both hold sums relative to their own maxima. */
__device__ void join(float *max, float *sum, float y_max, float y_sum, float *x_factor,
                     float *y_factor, bool relu)
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
__device__ void finish(const attention_params &a, T *out, int d, float max, float sum, float value,
                       int n_keys)
{
    float x_factor = 1, y_factor;
    if (a.kind == QB_SOFTMAX1) join(&max, &sum, 0, 1, &x_factor, &y_factor, false);
    float divisor = attention_row_divisor(a.kind, sum, n_keys);
    store1(divisor > 0 ? value * x_factor / divisor : 0.0f, out + d);
}

/* One part of the keys of one key head; HEADS query heads at a time. */
template <typename T, int HEADS>
__global__ void __launch_bounds__(32 * WARPS) attend(const split_params s)
{
    const attention_params &a = s.a;
    __shared__ float join_out[32 * WARPS][8 + 1], join_max[32 * WARPS], join_sum[32 * WARPS];
    const int tid = threadIdx.x, lane = tid % s.lanes, group = tid / s.lanes;
    const int n_groups = 32 * WARPS / s.lanes;
    const int part = blockIdx.x, g = blockIdx.y, b = blockIdx.z;
    const int n_keys = a.past() + 1;
    const int part_keys = max((n_keys + s.n_parts - 1) / s.n_parts, MIN_PART_KEYS);
    const int begin = min(part * part_keys, n_keys), end = min(begin + part_keys, n_keys);
    const size_t kv = b * a.kv_batch_stride + (size_t)g * a.head_dim + 8 * lane;
    const T *k = (const T *)a.k + kv, *v = (const T *)a.v + kv;
    const bool live = 8 * lane < a.head_dim, relu = a.kind == QB_SOFTMAX_RELU;

    for (int h0 = g * a.group; h0 < (g + 1) * a.group; h0 += HEADS) {
        const int n_heads = min(HEADS, (g + 1) * a.group - h0);
        float q[HEADS][8] = {};
        state x[HEADS];
        for (int h = 0; h < HEADS; h++) {
            x[h] = {-CUDART_INF_F, 0, {}};
            if (live && h < n_heads)
                load8((const T *)a.q + b * a.q_stride + (size_t)(h0 + h) * a.head_dim + 8 * lane,
                      q[h]);
        }
        for (int j = begin; j < end; j += KEYS * n_groups) {
            float key[KEYS][8] = {}, value[KEYS][8] = {};
            for (int i = 0; i < KEYS; i++) {
                int at = j + i * n_groups + group;
                if (live && at < end) {
                    load8(k + at * a.kv_stride, key[i]);
                    load8(v + at * a.kv_stride, value[i]);
                }
            }
            for (int h = 0; h < HEADS; h++) {
                float score[KEYS];
                for (int i = 0; i < KEYS; i++) {
                    float sum = 0;
                    for (int d = 0; d < 8; d++) sum = fmaf(q[h][d], key[i][d], sum);
                    for (int o = s.lanes / 2; o; o /= 2) sum += __shfl_xor_sync(~0u, sum, o);
                    score[i] = j + i * n_groups + group < end ? sum * a.scale : -CUDART_INF_F;
                }
                add_keys(x[h], score, value, relu);
            }
        }
        for (int h = 0; h < HEADS && h < n_heads; h++) {
            for (int d = 0; d < 8; d++) join_out[tid][d] = x[h].out[d];
            join_max[tid] = x[h].max;
            join_sum[tid] = x[h].sum;
            __syncthreads();
            for (int d = tid; d < a.head_dim; d += 32 * WARPS) {
                float max = -CUDART_INF_F, sum = 0, value = 0, x_factor, y_factor;
                for (int i = d / 8; i < 32 * WARPS; i += s.lanes) {
                    join(&max, &sum, join_max[i], join_sum[i], &x_factor, &y_factor, relu);
                    value = value * x_factor + join_out[i][d % 8] * y_factor;
                }
                size_t row = (size_t)b * a.n_heads + h0 + h;
                if (s.n_parts == 1) {
                    finish(a, (T *)a.out + b * a.out_stride + (size_t)(h0 + h) * a.head_dim, d, max,
                           sum, value, n_keys);
                    continue;
                }
                float *to = s.partial + (row * s.n_parts + part) * (a.head_dim + 2);
                to[d] = value;
                if (d == 0) to[a.head_dim] = max, to[a.head_dim + 1] = sum;
            }
            __syncthreads();
        }
    }
}

/* A block a query head of a sequence. */
template <typename T> __global__ void combine(const split_params s)
{
    const attention_params &a = s.a;
    const size_t row = (size_t)blockIdx.y * a.n_heads + blockIdx.x;
    const float *from = s.partial + row * s.n_parts * (a.head_dim + 2);
    const int d = threadIdx.x;
    if (d >= a.head_dim) return;
    float max = -CUDART_INF_F, sum = 0, value = 0, x_factor, y_factor;
    for (int i = 0; i < s.n_parts; i++, from += a.head_dim + 2) {
        join(&max, &sum, from[a.head_dim], from[a.head_dim + 1], &x_factor, &y_factor,
             a.kind == QB_SOFTMAX_RELU);
        value = value * x_factor + from[d] * y_factor;
    }
    finish(a, (T *)a.out + blockIdx.y * a.out_stride + (size_t)blockIdx.x * a.head_dim, d, max, sum,
           value, a.past() + 1);
}

template <typename T> qb_status run(const qb_cuda_attention_args *args, qb_cuda_stream stream)
{
    split_params s = {attention_params_of(args), (float *)args->workspace, 1, 4};
    if (args->workspace) s.n_parts = (int)qb__cuda_attention_splits(args);
    while (8 * s.lanes < s.a.head_dim) s.lanes *= 2;
    dim3 grid((unsigned)s.n_parts, (unsigned)args->n_kv_heads, (unsigned)args->batch);
    if (s.a.group == 1)
        attend<T, 1><<<grid, 32 * WARPS, 0, stream>>>(s);
    else
        attend<T, 4><<<grid, 32 * WARPS, 0, stream>>>(s);
    QB_CUDA_TRY(cudaGetLastError());
    if (s.n_parts == 1) return QB_OK;
    dim3 heads((unsigned)args->n_heads, (unsigned)args->batch);
    combine<T><<<heads, (unsigned)((args->head_dim + 31) / 32 * 32), 0, stream>>>(s);
    QB_CUDA_TRY(cudaGetLastError());
    return QB_OK;
}

} // namespace

size_t qb__cuda_attention_splits(const qb_cuda_attention_args *args)
{
    int device = 0, n_sms = 0;
    if (cudaGetDevice(&device) != cudaSuccess ||
        cudaDeviceGetAttribute(&n_sms, cudaDevAttrMultiProcessorCount, device) != cudaSuccess)
        return 1;
    size_t blocks = args->batch * args->n_kv_heads;
    size_t most = (args->n_past + 1 + 2 * MIN_PART_KEYS - 1) / (2 * MIN_PART_KEYS);
    size_t wanted = (4 * (size_t)n_sms + blocks - 1) / blocks;
    return wanted < most ? wanted : most;
}

const char *qb__cuda_attention_refuse_splitkv(const qb_cuda_attention_args *args)
{
    if (args->n_q != 1) return "more than one query a sequence";
    if (args->type != QB_CUDA_BF16 && args->type != QB_CUDA_F32) return "type is not f32 or bf16";
    if (args->head_dim % 8) return "head_dim is no multiple of 8";
    if (args->head_dim > 256) return "head_dim is over 256";
    return qb__cuda_attention_misaligned(args);
}

qb_status qb__cuda_attention_run_splitkv(const qb_cuda_attention_args *args, qb_cuda_stream stream)
{
    return args->type == QB_CUDA_F32 ? run<float>(args, stream) : run<__nv_bfloat16>(args, stream);
}
