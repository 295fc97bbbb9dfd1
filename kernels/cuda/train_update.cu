/* kernels/cuda/train_update.cu - sums over all parameters and the optimiser's element-wise rules
 * ((2) to (4) of train/optimizers.h). */
#include "kernels/cuda/pointwise.cuh"
#include "kernels/cuda/train.h"

namespace
{
enum { THREADS = 256 };

/* Valid in thread 0. */
__device__ double block_sum(double v)
{
    __shared__ double part[32];
    v = qb_warp_sum(v);
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = v;
    __syncthreads();
    if (threadIdx.x >= 32) return 0.0;
    return qb_warp_sum(threadIdx.x < blockDim.x / 32 ? part[threadIdx.x] : 0.0);
}

__global__ void __launch_bounds__(1024)
    add_losses(const float *losses, size_t m, qb_cuda_train_totals *totals)
{
    double sum = 0.0;
    for (size_t i = threadIdx.x; i < m; i += 1024) sum += losses[i];
    sum = block_sum(sum);
    if (threadIdx.x == 0) totals->loss_sum += sum;
}

/* n is a multiple of 4. A thread adds up to 4 * 64 squares in f32 before it goes on in double. */
__global__ void __launch_bounds__(THREADS) squares(const float4 *g, size_t n4, double *partials)
{
    double sum = 0.0;
    const size_t all = (size_t)gridDim.x * THREADS;
    size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x;
    while (i < n4) {
        float part = 0.0f;
#pragma unroll 4
        for (int j = 0; j < 64 && i < n4; j++, i += all) {
            const float4 v = g[i];
            part += v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
        }
        sum += part;
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) partials[blockIdx.x] = sum;
}

__global__ void __launch_bounds__(1024)
    finish_norm(const double *partials, qb_cuda_train_totals *totals)
{
    const double sum = block_sum(partials[threadIdx.x]);
    if (threadIdx.x == 0) totals->square_sum = sum, totals->grad_norm = sqrt(sum);
}

__global__ void count_nonfinite(const float *x, size_t n, qb_cuda_train_totals *totals)
{
    int count = 0;
    for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < n;
         i += (size_t)gridDim.x * blockDim.x)
        count += !isfinite(x[i]);
    if (count) atomicAdd(&totals->n_nonfinite, count); /* of integers: the order is no matter */
}

__global__ void make_scales(const __grid_constant__ qb_cuda_train_update a)
{
    qb_cuda_train_totals *t = a.totals;
    const qb_cuda_train_rates r = *a.rates;
    const double norm = t->grad_norm * r.grad_scale;
    t->halted = t->halted || !isfinite(t->grad_norm) || !isfinite(t->loss_sum);
    t->finite = !t->halted;
    const double clipped = a.clip > 0.0f && norm > a.clip ? a.clip / norm : 1.0;
    t->grad_scale = t->finite ? (float)(r.grad_scale * clipped) : 0.0f;
    t->minus_lr = t->finite ? -r.lr : 0.0f;
    t->keep = t->finite ? 1.0f - r.decay : 1.0f;
    t->keep_all = 1.0f;
}

/* delta of one element; m and v are updated */
template <int RULE>
__device__ __forceinline__ float delta_of(const qb_cuda_train_update &a,
                                          const qb_cuda_train_rates &r, float g, float &m, float &v)
{
    if constexpr (RULE == QB_CUDA_ADAM) {
        m = a.beta1 * m + a.one_minus_beta1 * g;
        v = a.beta2 * v + a.one_minus_beta2 * (g * g);
        return m * r.inv_bias1 / (sqrtf(v) * r.inv_sqrt_bias2 + a.eps);
    } else if constexpr (RULE == QB_CUDA_RMSPROP) {
        v = a.beta2 * v + a.one_minus_beta2 * (g * g);
        return g / (sqrtf(v) + a.eps);
    } else {
        m = a.momentum * m + g;
        return m;
    }
}

/* Up to 4 neighbouring elements; all 4 at an aligned address go as one. */
__device__ __forceinline__ void get(const float *p, size_t at, int n, float (&v)[4])
{
#pragma unroll
    for (int e = 0; e < 4; e++) v[e] = 0.0f;
    if (!p) return;
    if (n == 4 && at % 4 == 0) {
        const float4 f = *(const float4 *)(p + at);
        v[0] = f.x, v[1] = f.y, v[2] = f.z, v[3] = f.w;
        return;
    }
#pragma unroll
    for (int e = 0; e < 4; e++)
        if (e < n) v[e] = p[at + e];
}
__device__ __forceinline__ void put(float *p, size_t at, int n, const float (&v)[4])
{
    if (!p) return;
    if (n == 4 && at % 4 == 0) {
        *(float4 *)(p + at) = make_float4(v[0], v[1], v[2], v[3]);
        return;
    }
#pragma unroll
    for (int e = 0; e < 4; e++)
        if (e < n) p[at + e] = v[e];
}
__device__ __forceinline__ void put_bf16(void *p, size_t at, int n, const float (&v)[4])
{
    if (!p) return;
    if (n == 4 && at % 4 == 0) {
        *(uint2 *)((uint16_t *)p + at) =
            make_uint2(qb_bf16_pair(v[0], v[1]), qb_bf16_pair(v[2], v[3]));
        return;
    }
#pragma unroll
    for (int e = 0; e < 4; e++)
        if (e < n) qb_store_one(p, QB_CUDA_BF16, at + e, v[e]);
}

/* A block takes a piece. */
template <int RULE>
__global__ void __launch_bounds__(THREADS) update(const __grid_constant__ qb_cuda_train_update a)
{
    const qb_cuda_train_piece piece = a.pieces[blockIdx.x];
    if (!a.totals->finite) { /* the products that turn delta back add 0 times it: no NaN then */
        for (uint32_t i = threadIdx.x; piece.rotated && i < piece.n_elems; i += THREADS)
            a.rotated[piece.first + i] = 0.0f;
        return;
    }
    const qb_cuda_train_rates r = *a.rates;
    const float scale = a.totals->grad_scale, keep = piece.decays ? 1.0f - r.decay : 1.0f;
    const float *from = piece.rotated ? a.rotated : a.gradients;
    for (uint32_t i = 4 * threadIdx.x; i < piece.n_elems; i += 4 * THREADS) {
        const size_t at = piece.first + i;
        const int n = min(4, (int)(piece.n_elems - i));
        float g[4], m[4], v[4], delta[4];
        get(from, at, n, g), get(a.m, at, n, m), get(a.v, at, n, v);
#pragma unroll
        for (int e = 0; e < 4; e++) delta[e] = delta_of<RULE>(a, r, g[e] * scale, m[e], v[e]);
        put(a.m, at, n, m), put(a.v, at, n, v);
        if (piece.rotated) {
            put(a.rotated, at, n, delta);
            continue;
        }
        float w[4];
        get(a.weights, at, n, w);
#pragma unroll
        for (int e = 0; e < 4; e++) w[e] = keep * w[e] - r.lr * delta[e];
        put(a.weights, at, n, w);
        put_bf16(a.copy, at, n, w);
    }
}

__global__ void __launch_bounds__(THREADS) round_to_bf16(const float4 *from, uint2 *to, size_t n4)
{
    for (size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x; i < n4;
         i += (size_t)gridDim.x * THREADS) {
        const float4 v = from[i];
        to[i] = make_uint2(qb_bf16_pair(v.x, v.y), qb_bf16_pair(v.z, v.w));
    }
}
} // namespace

qb_status qb_cuda_train_add_losses(const float *losses, size_t m, qb_cuda_train_totals *totals,
                                   qb_cuda_stream stream)
{
    add_losses<<<1, 1024, 0, stream>>>(losses, m, totals);
    return qb_launched();
}

qb_status qb_cuda_train_norm_of(const float *g, size_t n, double *partials,
                                qb_cuda_train_totals *totals, qb_cuda_stream stream)
{
    squares<<<QB_CUDA_TRAIN_SUM_PARTIALS, THREADS, 0, stream>>>((const float4 *)g, n / 4, partials);
    finish_norm<<<1, QB_CUDA_TRAIN_SUM_PARTIALS, 0, stream>>>(partials, totals);
    return qb_launched();
}

qb_status qb_cuda_train_count_nonfinite(const float *x, size_t n, qb_cuda_train_totals *totals,
                                        qb_cuda_stream stream)
{
    QB_TRY(qb_cuda_zero(&totals->n_nonfinite, sizeof totals->n_nonfinite, stream));
    count_nonfinite<<<256, THREADS, 0, stream>>>(x, n, totals);
    return qb_launched();
}

qb_status qb_cuda_train_scales(const qb_cuda_train_update *args, qb_cuda_stream stream)
{
    make_scales<<<1, 1, 0, stream>>>(*args);
    return qb_launched();
}

qb_status qb_cuda_train_apply(const qb_cuda_train_update *args, qb_cuda_stream stream)
{
    const unsigned blocks = (unsigned)args->n_pieces;
    switch (args->rule) {
    case QB_CUDA_ADAM:
        update<QB_CUDA_ADAM><<<blocks, THREADS, 0, stream>>>(*args);
        break;
    case QB_CUDA_RMSPROP:
        update<QB_CUDA_RMSPROP><<<blocks, THREADS, 0, stream>>>(*args);
        break;
    case QB_CUDA_SGD:
        update<QB_CUDA_SGD><<<blocks, THREADS, 0, stream>>>(*args);
        break;
    }
    return qb_launched();
}

qb_status qb_cuda_train_round(const float *from, void *to, size_t n, qb_cuda_stream stream)
{
    round_to_bf16<<<1056, THREADS, 0, stream>>>((const float4 *)from, (uint2 *)to, n / 4);
    return qb_launched();
}
