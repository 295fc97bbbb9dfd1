/* kernels/cuda/attention_step.cu - attention of one new token a sequence where each query head has
 * keys of its own: bound by reading the cache once.
 *
 * A block takes the keys of one head of one sequence, or a part of them where that leaves too few
 * blocks. A key is held by the 8 to 32 lanes that its vector fills, 8 elements each; every such
 * group of lanes keeps KEYS keys and values on their way to its registers and a running softmax of
 * its own. The cache was written by earlier steps, so its first keys are asked for before the
 * kernel before has ended; the token's own key and value come last, from the product or the cache.
 */
#include "kernels/cuda/attention_parts.cuh"

#include <algorithm>

using namespace attention_parts;

namespace
{

constexpr int WARPS = 8, KEYS = 8; /* KEYS: in flight a group of lanes */

struct step_params {
    split_params s;
    const __nv_bfloat16 *k_new, *v_new; /* of sequence b at + b * new_stride; NULL = in the cache */
    size_t new_stride;
    bool past_is_constant;
};

/* A lane's elements of KEYS keys or values. */
struct run_of_keys {
    uint4 x[KEYS];
};

__device__ __forceinline__ void unpack(uint4 from, float (&x)[8])
{
    const uint32_t pair[4] = {from.x, from.y, from.z, from.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        x[2 * i] = __uint_as_float(pair[i] << 16);
        x[2 * i + 1] = __uint_as_float(pair[i] & 0xffff0000u);
    }
}

__device__ __forceinline__ float dot(const float (&q)[8], uint4 key)
{
    float x[8], sum = 0;
    unpack(key, x);
#pragma unroll
    for (int d = 0; d < 8; d++) sum = fmaf(q[d], x[d], sum);
    return sum;
}

/* Over the lanes of a key; all of them get it. */
template <int LANES> __device__ __forceinline__ float key_sum(float x)
{
#pragma unroll
    for (int o = LANES / 2; o; o /= 2) x += __shfl_xor_sync(~0u, x, o);
    return x;
}

/* Keys j, j + GROUPS, ... as far as they lie before `stop`; zeros for the others. */
template <int GROUPS>
__device__ __forceinline__ void ask(run_of_keys &to, const __nv_bfloat16 *from, size_t stride,
                                    int j, int stop, bool live)
{
#pragma unroll
    for (int i = 0; i < KEYS; i++) {
        const int at = j + i * GROUPS;
        to.x[i] = make_uint4(0, 0, 0, 0);
        if (live && at < stop) to.x[i] = qb__load_once((const uint4 *)(from + at * stride));
    }
}

/* The running softmax of a group of lanes; out: of the lane's elements. */
struct state {
    float max, sum, out[8];
};

/* Scores become p, relative to the new maximum. */
__device__ __forceinline__ void raise(state &x, float (&score)[KEYS], bool relu)
{
    if (relu) {
#pragma unroll
        for (int i = 0; i < KEYS; i++) score[i] = fmaxf(score[i], 0);
        return;
    }
    float max = x.max;
#pragma unroll
    for (int i = 0; i < KEYS; i++) max = fmaxf(max, score[i]);
    const float shift = max == -CUDART_INF_F ? 0 : max * CUDART_L2E_F;
    const float rescale = qb_exp2(fmaf(x.max, CUDART_L2E_F, -shift));
    float sum = 0;
#pragma unroll
    for (int i = 0; i < KEYS; i++) {
        score[i] = qb_exp2(fmaf(score[i], CUDART_L2E_F, -shift));
        sum += score[i];
    }
    x.sum = fmaf(x.sum, rescale, sum);
    x.max = max;
#pragma unroll
    for (int d = 0; d < 8; d++) x.out[d] *= rescale;
}

/* The state after the token's own key alone, which goes to the cache if it is not there yet. */
template <int LANES>
__device__ void start_with_own(const step_params &p, const float (&q)[8], int b, size_t column,
                               size_t cached, bool live, bool relu, state &x)
{
    const attention_params &a = p.s.a;
    __nv_bfloat16 *k = (__nv_bfloat16 *)a.k + cached, *v = (__nv_bfloat16 *)a.v + cached;
    uint4 key = make_uint4(0, 0, 0, 0), value = key;
    if (live) {
        key = *(const uint4 *)(p.k_new ? p.k_new + b * p.new_stride + column : k);
        value = *(const uint4 *)(p.k_new ? p.v_new + b * p.new_stride + column : v);
    }
    if (live && p.k_new) *(uint4 *)k = key, *(uint4 *)v = value;
    float score = key_sum<LANES>(dot(q, key));
    unpack(value, x.out);
    x.max = score, x.sum = 1;
#pragma unroll
    for (int d = 0; relu && d < 8; d++) x.out[d] *= fmaxf(score, 0);
}

template <int LANES> __device__ __forceinline__ void join_groups(state &x, bool relu)
{
#pragma unroll
    for (int o = LANES; o < 32; o *= 2) {
        float x_factor, y_factor;
        const float y_max = __shfl_xor_sync(~0u, x.max, o), y_sum = __shfl_xor_sync(~0u, x.sum, o);
        join(&x.max, &x.sum, y_max, y_sum, &x_factor, &y_factor, relu);
#pragma unroll
        for (int d = 0; d < 8; d++)
            x.out[d] = x.out[d] * x_factor + __shfl_xor_sync(~0u, x.out[d], o) * y_factor;
    }
}

template <int LANES>
__global__ void __launch_bounds__(32 * WARPS, 2) attend(const __grid_constant__ step_params p)
{
    constexpr int GROUPS = 32 / LANES, TURN = WARPS * KEYS * GROUPS;
    __shared__ float out[WARPS][8 * LANES], most[WARPS], sums[WARPS];
    const attention_params &a = p.s.a;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = lane / LANES;
    const int part = blockIdx.x, h = blockIdx.y, b = blockIdx.z;
    const bool live = lane % LANES * 8 < a.head_dim, relu = a.kind == QB_SOFTMAX_RELU;
    const size_t column = (size_t)h * a.head_dim + lane % LANES * 8;
    const size_t cached = b * a.kv_batch_stride + column;
    const __nv_bfloat16 *k = (const __nv_bfloat16 *)a.k + cached,
                        *v = (const __nv_bfloat16 *)a.v + cached;
    qb__start_next_grid();
    if (!p.past_is_constant) qb__wait_previous_grid();
    const int past = a.past();
    int begin, end;
    p.s.range(part, past + 1, &begin, &end);
    const int stop = min(end, past);
    int j = begin + warp * KEYS * GROUPS + group;
    run_of_keys key, value;
    ask<GROUPS>(key, k, a.kv_stride, j, stop, live);
    ask<GROUPS>(value, v, a.kv_stride, j, stop, live);
    qb__wait_previous_grid();

    float q[8] = {};
    if (live) unpack(*(const uint4 *)((const __nv_bfloat16 *)a.q + b * a.q_stride + column), q);
#pragma unroll
    for (int d = 0; d < 8; d++) q[d] *= a.scale;
    state x = {-CUDART_INF_F, 0, {}};
    if (begin <= past && past < end && warp == 0) { /* whole warps: the sum is over lanes */
        state own;
        start_with_own<LANES>(p, q, b, column, cached + past * a.kv_stride, live && group == 0,
                              relu, own);
        if (group == 0) x = own;
    }
    for (; j - group < stop; j += TURN) {
        float score[KEYS];
#pragma unroll
        for (int i = 0; i < KEYS; i++) score[i] = dot(q, key.x[i]);
        ask<GROUPS>(key, k, a.kv_stride, j + TURN, stop, live);
#pragma unroll
        for (int i = 0; i < KEYS; i++) {
            score[i] = key_sum<LANES>(score[i]);
            if (j + i * GROUPS >= stop) score[i] = -CUDART_INF_F;
        }
        raise(x, score, relu);
#pragma unroll
        for (int i = 0; i < KEYS; i++) {
            float w[8];
            unpack(value.x[i], w);
#pragma unroll
            for (int d = 0; d < 8; d++) x.out[d] = fmaf(score[i], w[d], x.out[d]);
        }
        ask<GROUPS>(value, v, a.kv_stride, j + TURN, stop, live);
    }
    join_groups<LANES>(x, relu);
    if (group == 0) {
#pragma unroll
        for (int d = 0; d < 8; d++) out[warp][lane * 8 + d] = x.out[d];
    }
    if (lane == 0) most[warp] = x.max, sums[warp] = x.sum;
    __syncthreads();
    const int d = threadIdx.x;
    if (d >= a.head_dim) return;
    float max = -CUDART_INF_F, sum = 0, all = 0, x_factor, y_factor;
#pragma unroll
    for (int w = 0; w < WARPS; w++) {
        join(&max, &sum, most[w], sums[w], &x_factor, &y_factor, relu);
        all = all * x_factor + out[w][d] * y_factor;
    }
    if (p.s.n_parts == 1) {
        finish(a, (__nv_bfloat16 *)a.out + b * a.out_stride + (size_t)h * a.head_dim, d, max, sum,
               all, past + 1);
        return;
    }
    float *to = p.s.partial_of((size_t)b * a.n_heads + h, part);
    to[d] = all;
    if (d == 0) to[a.head_dim] = max, to[a.head_dim + 1] = sum;
}

/* Two blocks a multiprocessor, which are all there at once. */
int parts_of(const qb_cuda_attention_args *args)
{
    const size_t most = args->n_past / QB__CUDA_ATTENTION_PART + 1;
    const size_t wanted = qb__cuda_attention_blocks() / 3 / (args->batch * args->n_heads);
    return args->workspace ? (int)std::max<size_t>(1, std::min(wanted, most)) : 1;
}

} // namespace

const char *qb__cuda_attention_refuse_step(const qb_cuda_attention_args *args)
{
    if (args->lse) return "it does not give lse";
    if (args->n_q != 1) return "more than one query a sequence";
    if (qb__cuda_attention_uncommon(args)) return qb__cuda_attention_uncommon(args);
    if (args->n_heads != args->n_kv_heads) return "heads share keys";
    if (args->type != QB_CUDA_BF16) return "type is not bf16";
    if (args->head_dim % 8) return "head_dim is no multiple of 8";
    if (args->head_dim > 256) return "head_dim is over 256";
    return qb__cuda_attention_misaligned(args);
}

qb_status qb__cuda_attention_run_step(const qb_cuda_attention_args *args, qb_cuda_stream stream)
{
    const step_params p = {{attention_params_of(args), (float *)args->workspace, parts_of(args), 1},
                           (const __nv_bfloat16 *)args->k_new,
                           (const __nv_bfloat16 *)args->v_new,
                           args->new_stride,
                           args->past_is_constant};
    const dim3 grid((unsigned)p.s.n_parts, (unsigned)args->n_heads, (unsigned)args->batch);
    auto *kernel = args->head_dim <= 64    ? attend<8>
                   : args->head_dim <= 128 ? attend<16>
                                           : attend<32>;
    QB_TRY(qb__launch_overlapped(kernel, grid, dim3(32 * WARPS), 0, stream, p));
    return launch_combine<__nv_bfloat16>(p.s, args->batch, stream);
}
