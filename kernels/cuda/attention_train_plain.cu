/* kernels/cuda/attention_train_plain.cu - attention for training with ordinary arithmetic: every
 * kind, type, size and layout, in f32. The reference of the other rows on the GPU.
 *
 * A warp takes a query (forward, dq) or a key (dk, dv) and goes through its row or column of
 * scores, the head's dimensions spread over the lanes. Nothing is kept but lse and delta: scores
 * are made again where they are needed. */
#include "kernels/cuda/attention_train_internal.h"

#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <math_constants.h>

namespace
{

constexpr int MAX_DIM = 256, PER_LANE = MAX_DIM / 32, WARPS = 4, SINK_THREADS = 512;

template <class T> struct plain_params {
    const T *q, *k, *v, *d_out;
    T *out, *d_q, *d_k, *d_v;
    const float *sink;
    float *lse, *delta;
    size_t qkv_stride, out_stride, d_out_stride, d_qkv_stride;
    int batch, n_tokens, n_heads, n_kv_heads, head_dim;
    qb_softmax_kind kind;
    float scale, gamma, zeta;
    int prefix;

    __device__ int n_keys(int query) const
    {
        return max(query + 1, prefix);
    }
    __device__ size_t stat(int b, int head, int query) const
    {
        return ((size_t)b * n_heads + head) * n_tokens + query;
    }
};

struct lane_row { /* a head's row: dimension lane + 32 i in x[i] */
    float x[PER_LANE];
};

template <class T> __device__ lane_row load(const T *row, int head_dim)
{
    lane_row r;
#pragma unroll
    for (int i = 0; i < PER_LANE; i++) {
        int d = threadIdx.x % 32 + 32 * i;
        r.x[i] = d < head_dim ? (float)row[d] : 0;
    }
    return r;
}
template <class T> __device__ void store(T *row, int head_dim, const lane_row &r, float factor)
{
#pragma unroll
    for (int i = 0; i < PER_LANE; i++) {
        int d = threadIdx.x % 32 + 32 * i;
        if (d < head_dim) row[d] = (T)(r.x[i] * factor);
    }
}
__device__ float dot(const lane_row &a, const lane_row &b)
{
    float sum = 0;
#pragma unroll
    for (int i = 0; i < PER_LANE; i++) sum = fmaf(a.x[i], b.x[i], sum);
    for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
    return sum;
}
__device__ void add(lane_row *sum, float factor, const lane_row &x)
{
#pragma unroll
    for (int i = 0; i < PER_LANE; i++) sum->x[i] = fmaf(factor, x.x[i], sum->x[i]);
}

/* What score s gives: the value's weight, and the gradient by s as p * (gain * dw - delta). */
struct weight {
    float value, p, gain;
};
template <class T> __device__ weight weigh(const plain_params<T> &p, float s, float lse, int query)
{
    if (p.kind == QB_SOFTMAX_RELU) {
        float each = 1.0f / (float)p.n_keys(query);
        return {fmaxf(s, 0) * each, s > 0 ? each : 0, 1};
    }
    float x = expf(s - lse);
    if (p.kind != QB_SOFTMAX_CLIPPED) return {x, x, 1};
    float w = fmaf(p.zeta - p.gamma, x, p.gamma);
    return {fminf(fmaxf(w, 0), 1), x, w > 0 && w < 1 ? p.zeta - p.gamma : 0};
}

/* The task of this warp: token and head of a sequence. */
struct place {
    int token, head, b;
    bool none;
};
__device__ place my_place(int n_tokens, int n_heads)
{
    int token = (int)(blockIdx.x * WARPS + threadIdx.x / 32), row = (int)blockIdx.y;
    return {token, row % n_heads, row / n_heads, token >= n_tokens};
}

/* Where a query's head lies, and its keys. */
struct query_place {
    size_t row, head_at, kv;
    int n_keys;
};
template <class T> __device__ query_place query_at(const plain_params<T> &p, const place &at)
{
    const size_t first = (size_t)at.b * p.n_tokens;
    const int kv_head = at.head / (p.n_heads / p.n_kv_heads);
    return {first + at.token, (size_t)at.head * p.head_dim,
            first * p.qkv_stride + (size_t)kv_head * p.head_dim, p.n_keys(at.token)};
}

template <class T>
__device__ float row_lse(const plain_params<T> &p, const lane_row &q, const query_place &to,
                         int head)
{
    float max = -CUDART_INF_F, sum = 0;
    if (p.kind == QB_SOFTMAX1 || p.kind == QB_SOFTMAX_SINK)
        max = p.kind == QB_SOFTMAX_SINK ? p.sink[head] : 0, sum = 1;
    for (int j = 0; j < to.n_keys; j++) {
        float s = p.scale * dot(q, load(p.k + to.kv + j * p.qkv_stride, p.head_dim));
        float new_max = fmaxf(max, s);
        if (new_max == -CUDART_INF_F) continue;
        sum = sum * expf(max - new_max) + expf(s - new_max);
        max = new_max;
    }
    return max + logf(sum);
}

template <class T> __global__ void __launch_bounds__(32 * WARPS) forward(const plain_params<T> p)
{
    const place at = my_place(p.n_tokens, p.n_heads);
    if (at.none) return;
    const query_place to = query_at(p, at);
    const lane_row q = load(p.q + to.row * p.qkv_stride + to.head_at, p.head_dim);
    float lse = 0;
    if (p.kind != QB_SOFTMAX_RELU) {
        lse = row_lse(p, q, to, at.head);
        if (threadIdx.x % 32 == 0) p.lse[p.stat(at.b, at.head, at.token)] = lse;
    }
    lane_row out = {};
    for (int j = 0; j < to.n_keys; j++) {
        float s = p.scale * dot(q, load(p.k + to.kv + j * p.qkv_stride, p.head_dim));
        add(&out, weigh(p, s, lse, at.token).value,
            load(p.v + to.kv + j * p.qkv_stride, p.head_dim));
    }
    store(p.out + to.row * p.out_stride + to.head_at, p.head_dim, out, 1);
}

/* Calls with each key and what its score gives: f(k, weight, g . v). */
template <class T, class F>
__device__ void each_key(const plain_params<T> &p, const query_place &to, int query,
                         const lane_row &q, const lane_row &g, float lse, F f)
{
    for (int j = 0; j < to.n_keys; j++) {
        const lane_row k = load(p.k + to.kv + j * p.qkv_stride, p.head_dim);
        const lane_row v = load(p.v + to.kv + j * p.qkv_stride, p.head_dim);
        f(k, weigh(p, p.scale * dot(q, k), lse, query), dot(g, v));
    }
}

/* dq of a query, and its delta. */
template <class T>
__global__ void __launch_bounds__(32 * WARPS) backward_queries(const plain_params<T> p)
{
    const place at = my_place(p.n_tokens, p.n_heads);
    if (at.none) return;
    const query_place to = query_at(p, at);
    const size_t stat = p.stat(at.b, at.head, at.token);
    const lane_row q = load(p.q + to.row * p.qkv_stride + to.head_at, p.head_dim);
    const lane_row g = load(p.d_out + to.row * p.d_out_stride + to.head_at, p.head_dim);
    const float lse = p.kind == QB_SOFTMAX_RELU ? 0 : p.lse[stat];
    float delta = 0;
    if (p.kind == QB_SOFTMAX_CLIPPED)
        each_key(p, to, at.token, q, g, lse, [&](const lane_row &, const weight &w, float dw) {
            delta = fmaf(w.p * w.gain, dw, delta);
        });
    else if (p.kind != QB_SOFTMAX_RELU)
        delta = dot(g, load(p.out + to.row * p.out_stride + to.head_at, p.head_dim));
    if (threadIdx.x % 32 == 0) p.delta[stat] = delta;
    lane_row dq = {};
    each_key(p, to, at.token, q, g, lse, [&](const lane_row &k, const weight &w, float dw) {
        add(&dq, w.p * (w.gain * dw - delta), k);
    });
    store(p.d_q + to.row * p.d_qkv_stride + to.head_at, p.head_dim, dq, p.scale);
}

/* dk and dv of a key: over the heads that read it, then over queries. */
template <class T>
__global__ void __launch_bounds__(32 * WARPS) backward_keys(const plain_params<T> p)
{
    const place at = my_place(p.n_tokens, p.n_kv_heads);
    if (at.none) return;
    const int group = p.n_heads / p.n_kv_heads;
    const size_t first = (size_t)at.b * p.n_tokens, row = first + at.token;
    const size_t kv_at = (size_t)at.head * p.head_dim;
    const lane_row k = load(p.k + row * p.qkv_stride + kv_at, p.head_dim);
    const lane_row v = load(p.v + row * p.qkv_stride + kv_at, p.head_dim);
    lane_row dk = {}, dv = {};
    for (int h = at.head * group; h < (at.head + 1) * group; h++)
        for (int i = at.token < p.prefix ? 0 : at.token; i < p.n_tokens; i++) {
            const size_t head_at = (size_t)h * p.head_dim, stat = p.stat(at.b, h, i);
            const lane_row q = load(p.q + (first + i) * p.qkv_stride + head_at, p.head_dim);
            const lane_row g = load(p.d_out + (first + i) * p.d_out_stride + head_at, p.head_dim);
            float lse = p.kind == QB_SOFTMAX_RELU ? 0 : p.lse[stat];
            weight w = weigh(p, p.scale * dot(q, k), lse, i);
            add(&dv, w.value, g);
            add(&dk, w.p * (w.gain * dot(g, v) - p.delta[stat]), q);
        }
    store(p.d_k + row * p.d_qkv_stride + kv_at, p.head_dim, dk, p.scale);
    store(p.d_v + row * p.d_qkv_stride + kv_at, p.head_dim, dv, 1);
}

/* attention_train.h (3), a block a head. */
__global__ void __launch_bounds__(SINK_THREADS)
    sink_gradient(const float *sink, const float *lse, const float *delta, int batch, int n_tokens,
                  float *d_sink)
{
    __shared__ float sums[SINK_THREADS];
    const int h = (int)blockIdx.x, n_heads = (int)gridDim.x;
    float sum = 0;
#pragma unroll 4
    for (int r = (int)threadIdx.x; r < batch * n_tokens; r += SINK_THREADS) {
        const size_t head = (size_t)(r / n_tokens) * n_heads + h;
        const size_t at = head * n_tokens + r % n_tokens;
        sum -= expf(sink[h] - lse[at]) * delta[at];
    }
    sums[threadIdx.x] = sum;
    for (int step = SINK_THREADS / 2; step > 0; step /= 2) {
        __syncthreads();
        if ((int)threadIdx.x < step) sums[threadIdx.x] += sums[threadIdx.x + step];
    }
    if (threadIdx.x == 0) d_sink[h] += sums[0];
}

/* ---- host ---- */

template <class T> plain_params<T> params_of(const qb_cuda_attention_train_args *a)
{
    plain_params<T> p = {};
    p.q = (const T *)a->q, p.k = (const T *)a->k, p.v = (const T *)a->v;
    p.d_out = (const T *)a->d_out, p.out = (T *)a->out;
    p.d_q = (T *)a->d_q, p.d_k = (T *)a->d_k, p.d_v = (T *)a->d_v;
    p.lse = a->lse, p.delta = (float *)a->workspace;
    p.sink = a->sink, p.gamma = a->gamma, p.zeta = a->zeta;
    p.prefix = (int)(a->free_prefix < a->n_tokens ? a->free_prefix : a->n_tokens);
    p.qkv_stride = a->qkv_stride, p.out_stride = a->out_stride;
    p.d_out_stride = a->d_out_stride, p.d_qkv_stride = a->d_qkv_stride;
    p.batch = (int)a->batch, p.n_tokens = (int)a->n_tokens, p.n_heads = (int)a->n_heads;
    p.n_kv_heads = (int)a->n_kv_heads, p.head_dim = (int)a->head_dim;
    p.kind = a->softmax, p.scale = a->scale;
    return p;
}

template <class T>
qb_status launch(void (*kernel)(plain_params<T>), const qb_cuda_attention_train_args *a,
                 size_t n_heads, qb_cuda_stream stream)
{
    dim3 grid((unsigned)((a->n_tokens + WARPS - 1) / WARPS), (unsigned)(a->batch * n_heads));
    kernel<<<grid, 32 * WARPS, 0, stream>>>(params_of<T>(a));
    QB_CUDA_TRY(cudaGetLastError());
    return QB_OK;
}

template <class T>
qb_status run_backward(const qb_cuda_attention_train_args *a, qb_cuda_stream stream)
{
    QB_TRY(launch<T>(backward_queries<T>, a, a->n_heads, stream));
    QB_TRY(launch<T>(backward_keys<T>, a, a->n_kv_heads, stream));
    return qb__attention_train_sink_gradient(a, stream);
}

} // namespace

qb_status qb__attention_train_sink_gradient(const qb_cuda_attention_train_args *a,
                                            qb_cuda_stream stream)
{
    if (a->softmax != QB_SOFTMAX_SINK) return QB_OK;
    sink_gradient<<<(unsigned)a->n_heads, SINK_THREADS, 0, stream>>>(
        a->sink, a->lse, (const float *)a->workspace, (int)a->batch, (int)a->n_tokens, a->d_sink);
    QB_CUDA_TRY(cudaGetLastError());
    return QB_OK;
}

const char *qb__cuda_attention_train_refuse_plain(const qb_cuda_attention_train_args *args)
{
    if (args->type != QB_CUDA_F32 && args->type != QB_CUDA_BF16) return "type is not f32 or bf16";
    if (args->head_dim == 0 || args->head_dim > MAX_DIM) return "head_dim is not 1 to 256";
    if (args->batch * args->n_heads > 65535) return "more than 65535 heads of all sequences";
    return NULL;
}

qb_status qb__cuda_attention_train_forward_plain(const qb_cuda_attention_train_args *args,
                                                 qb_cuda_stream stream)
{
    if (args->type == QB_CUDA_F32)
        return launch<float>(forward<float>, args, args->n_heads, stream);
    return launch<__nv_bfloat16>(forward<__nv_bfloat16>, args, args->n_heads, stream);
}

qb_status qb__cuda_attention_train_backward_plain(const qb_cuda_attention_train_args *args,
                                                  qb_cuda_stream stream)
{
    if (args->type == QB_CUDA_F32) return run_backward<float>(args, stream);
    return run_backward<__nv_bfloat16>(args, stream);
}
