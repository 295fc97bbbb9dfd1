/* kernels/cuda/attention_train_sm80.cu - the gradients of attention in bf16 with mma.sync, for
 * every GPU from 8.0 on: all kinds of softmax, heads of up to 256, shared keys, free prefixes.
 *
 * Two passes of one kernel, as in attention_train_long_sm90.cu: a block owns 64 rows, streams tiles
 * of 64 rows of the other side past them and keeps its sums in registers, so that no sum crosses
 * blocks.
 *     queries: owns q, d_out, streams k, v:  s = q k^T,   dp = d_out v^T,   sum1 = dq += ds k
 *     keys:    owns k, v, streams q, d_out:  s^T = k q^T, dp^T = v d_out^T, sum1 = dk += ds^T q,
 *                                                                           sum2 = dv += w^T d_out
 * Eight warps: two share 16 owned rows. Each makes the scores of half of the passing rows; both
 * take all of them by way of shared memory for half of the dimensions. The first pass leaves delta
 * for the second; a clipped softmax needs a round over the keys for it. */
#include "kernels/cuda/attention_internal.h"
#include "kernels/cuda/attention_mma.cuh"
#include "kernels/cuda/attention_train_internal.h"

using namespace attention_mma;

namespace
{

enum side { KEYS, QUERIES };
constexpr int TILE = 64, HALF = TILE / 2, THREADS = 256, W_LD = TILE + 8;

struct train_params {
    const __nv_bfloat16 *q, *k, *v, *d_out, *out;
    __nv_bfloat16 *d_q, *d_k, *d_v;
    const float *lse;
    float *delta; /* (batch, n_heads, n_tokens) */
    size_t qkv_stride, out_stride, d_out_stride, d_qkv_stride;
    int n_tokens, n_heads, n_kv_heads, head_dim, prefix;
    qb_softmax_kind kind;
    float scale, gamma, zeta;

    __device__ int n_keys(int query) const
    {
        return ::max(query + 1, prefix);
    }
    /* What a query's elements need beside the scores: lse in units of 2 (ReLU: 1 / n_keys), and
     * delta. Rows past the end get what makes no infinity of 0. */
    __device__ float first_stat(size_t head, int query) const
    {
        if (kind == QB_SOFTMAX_RELU) return 1.0f / (float)n_keys(query);
        return query < n_tokens ? lse[head * n_tokens + query] * CUDART_L2E_F : 0;
    }
    __device__ float second_stat(size_t head, int query) const
    {
        return query < n_tokens && kind != QB_SOFTMAX_RELU ? delta[head * n_tokens + query] : 0;
    }
};

/* Shared memory of a block. */
template <int DIM> struct layout {
    static constexpr int TILE_BYTES = TILE * (DIM + 8) * 2, W_BYTES = TILE * W_LD * 2;
    static constexpr int Y_AT = 2 * TILE_BYTES, W_AT = Y_AT + 4 * TILE_BYTES,
                         STATS_AT = W_AT + 2 * W_BYTES, BYTES = STATS_AT + 4 * TILE * 4;
};

/* Which rows a block owns, and which pass by: tiles first to end of n_heads heads from head on. */
template <side SIDE> struct work {
    int owner, row, head, n_heads, first, n_tiles;
    size_t token; /* row 0 of the sequence */

    __device__ explicit work(const train_params &p)
    {
        const int group = p.n_heads / p.n_kv_heads, last = (int)gridDim.x - 1;
        owner = blockIdx.y;
        token = (size_t)blockIdx.z * p.n_tokens;
        const int all = (p.n_tokens + TILE - 1) / TILE;
        if (SIDE == KEYS) { /* the longest way first */
            row = (int)blockIdx.x * TILE;
            head = owner * group, n_heads = group;
            first = row < p.prefix ? 0 : row / TILE;
            n_tiles = all - first;
        } else {
            row = (last - (int)blockIdx.x) * TILE;
            head = owner, n_heads = 1;
            first = 0;
            n_tiles = ::min((p.n_keys(row + TILE - 1) + TILE - 1) / TILE, all);
        }
    }
    __device__ int passing_row(int i) const
    {
        return (first + i % n_tiles) * TILE;
    }
    __device__ int passing_head(int i) const
    {
        return head + i / n_tiles;
    }
};

/* ---- elements ---- */

/* x of the thread's elements of a 16 x HALF tile become f(element, its row or column). */
template <class F> __device__ __forceinline__ void each(F f)
{
#pragma unroll
    for (int n = 0; n < HALF / 8; n++)
#pragma unroll
        for (int e = 0; e < 4; e++) f(n, e);
}

/* s becomes w and dp becomes ds. first, second: of each element. */
template <class A, class B>
__device__ __forceinline__ void weigh(const train_params &p, float (&s)[HALF / 8][4],
                                      float (&dp)[HALF / 8][4], A first, B second)
{
    const float scale_log2 = p.scale * CUDART_L2E_F, gain = p.zeta - p.gamma;
    if (p.kind == QB_SOFTMAX_RELU)
        each([&](int n, int e) {
            dp[n][e] = s[n][e] > 0 ? dp[n][e] * first(n, e) : 0;
            s[n][e] = fmaxf(s[n][e] * p.scale, 0) * first(n, e);
        });
    else if (p.kind != QB_SOFTMAX_CLIPPED)
        each([&](int n, int e) {
            s[n][e] = qb_exp2(fmaf(s[n][e], scale_log2, -first(n, e)));
            dp[n][e] = s[n][e] * (dp[n][e] - second(n, e));
        });
    else
        each([&](int n, int e) {
            const float x = qb_exp2(fmaf(s[n][e], scale_log2, -first(n, e)));
            const float w = fmaf(gain, x, p.gamma), dw = w > 0 && w < 1 ? gain * dp[n][e] : 0;
            s[n][e] = fminf(fmaxf(w, 0), 1);
            dp[n][e] = x * (dw - second(n, e));
        });
}

/* The thread's elements, in bf16, to a tile of W_LD a row. */
__device__ __forceinline__ void put(const float (&x)[HALF / 8][4], __nv_bfloat16 *tile)
{
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int n = 0; n < HALF / 8; n++)
#pragma unroll
        for (int r = 0; r < 2; r++)
            *(uint32_t *)(tile + (lane / 4 + 8 * r) * W_LD + 8 * n + lane % 4 * 2) =
                qb_bf16_pair(x[n][2 * r], x[n][2 * r + 1]);
}

/* sum (16, DIMS) += w (16, TILE) y (TILE, DIMS), y in rows of LD elements. */
template <int DIMS, int LD>
__device__ __forceinline__ void add_product(float (&sum)[DIMS / 8][4], uint32_t w, uint32_t y)
{
    const int lane = threadIdx.x % 32, i = lane % 8, j = lane / 8;
    const uint32_t w_from = w + (i + j % 2 * 8) * W_LD * 2 + j / 2 * 16,
                   y_from = y + (i + j % 2 * 8) * LD * 2 + j / 2 * 16;
#pragma unroll
    for (int k = 0; k < TILE; k += 16) {
        uint32_t a[4];
        qb__ldmatrix_x4(a, w_from + k * 2);
#pragma unroll
        for (int d = 0; d < DIMS; d += 16) {
            uint32_t b[4];
            qb__ldmatrix_x4_trans(b, y_from + (k * LD + d) * 2);
            qb__mma_bf16(sum[d / 8], a, b[0], b[1]);
            qb__mma_bf16(sum[d / 8 + 1], a, b[2], b[3]);
        }
    }
}

/* ---- rows ---- */

/* delta of the owned queries by out, four threads a row, to stats. */
__device__ void make_delta(const train_params &p, const work<QUERIES> &w, size_t head, float *stats)
{
    const int row = threadIdx.x / 4, query = w.row + row;
    float sum = 0;
    if (query < p.n_tokens) {
        const size_t at = (size_t)w.owner * p.head_dim, token = w.token + query;
        const __nv_bfloat16 *out = p.out + token * p.out_stride + at,
                            *d_out = p.d_out + token * p.d_out_stride + at;
        for (int d = threadIdx.x % 4 * 8; d < p.head_dim; d += 32) {
            const uint4 x = *(const uint4 *)(out + d), y = *(const uint4 *)(d_out + d);
            const __nv_bfloat162 *a = (const __nv_bfloat162 *)&x, *b = (const __nv_bfloat162 *)&y;
            for (int i = 0; i < 4; i++) {
                const float2 u = __bfloat1622float2(a[i]), v = __bfloat1622float2(b[i]);
                sum = fmaf(u.x, v.x, fmaf(u.y, v.y, sum));
            }
        }
    }
    sum += __shfl_xor_sync(~0u, sum, 1);
    sum += __shfl_xor_sync(~0u, sum, 2);
    if (threadIdx.x % 4 == 0) {
        stats[row] = sum;
        if (query < p.n_tokens) p.delta[head * p.n_tokens + query] = sum;
    }
}

/* The block's sums, by way of an owned tile that is used up, to rows that exist. */
template <int DIM>
__device__ void store_sums(const float (&sum)[DIM / 16][4], float factor, __nv_bfloat16 *tile,
                           __nv_bfloat16 *to, size_t stride, int n_rows, int head_dim)
{
    constexpr int LD = DIM + 8;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int row = warp % 4 * 16 + lane / 4, column = warp / 4 * DIM / 2 + lane % 4 * 2;
#pragma unroll
    for (int n = 0; n < DIM / 16; n++)
#pragma unroll
        for (int r = 0; r < 2; r++)
            *(uint32_t *)(tile + (row + 8 * r) * LD + column + 8 * n) =
                qb_bf16_pair(sum[n][2 * r] * factor, sum[n][2 * r + 1] * factor);
    __syncthreads();
    for (int i = threadIdx.x; i < TILE * DIM / 8; i += THREADS) {
        const int r = i / (DIM / 8), d = i % (DIM / 8) * 8;
        if (r < n_rows && d < head_dim)
            *(uint4 *)(to + r * stride + d) = *(uint4 *)(tile + r * LD + d);
    }
}

template <side SIDE, int DIM> struct block {
    const train_params &p;
    const work<SIDE> &w;
    char *smem;
    using at = layout<DIM>;

    __device__ float *stats(int stage, int which) const
    {
        return (float *)(smem + at::STATS_AT) + (stage * 2 + which) * TILE;
    }
    __device__ __nv_bfloat16 *weights(int which) const /* w, ds */
    {
        return (__nv_bfloat16 *)(smem + at::W_AT + which * at::W_BYTES);
    }
    __device__ uint32_t x(int which) const
    {
        return qb_smem(smem) + which * at::TILE_BYTES;
    }
    __device__ uint32_t y(int stage, int which) const
    {
        return qb_smem(smem) + at::Y_AT + (stage * 2 + which) * at::TILE_BYTES;
    }

    __device__ void load_rows(uint32_t to, const __nv_bfloat16 *from, size_t stride, int head,
                              int row) const
    {
        load_tile<DIM, TILE, THREADS>(to,
                                      from + (w.token + row) * stride + (size_t)head * p.head_dim,
                                      stride, p.n_tokens - row, p.head_dim, threadIdx.x);
    }
    __device__ void load_owned() const
    {
        const bool keys = SIDE == KEYS;
        load_rows(x(0), keys ? p.k : p.q, p.qkv_stride, w.owner, w.row);
        load_rows(x(1), keys ? p.v : p.d_out, keys ? p.qkv_stride : p.d_out_stride, w.owner, w.row);
    }
    __device__ void load_passing(int i, int stage) const
    {
        const int row = w.passing_row(i), h = w.passing_head(i);
        if (SIDE == QUERIES) {
            const int kv_head = h / (p.n_heads / p.n_kv_heads);
            load_rows(y(stage, 0), p.k, p.qkv_stride, kv_head, row);
            load_rows(y(stage, 1), p.v, p.qkv_stride, kv_head, row);
            return;
        }
        load_rows(y(stage, 0), p.q, p.qkv_stride, h, row);
        load_rows(y(stage, 1), p.d_out, p.d_out_stride, h, row);
        const size_t head = (size_t)blockIdx.z * p.n_heads + h;
        const int which = threadIdx.x / TILE, query = row + threadIdx.x % TILE;
        if (which < 2)
            stats(stage, which)[threadIdx.x % TILE] =
                which ? p.second_stat(head, query) : p.first_stat(head, query);
    }

    /* w and ds of the warp's rows and its half of the passing rows. */
    __device__ __forceinline__ void scores_of(int i, int stage, float (&s)[HALF / 8][4],
                                              float (&dp)[HALF / 8][4], const float (&first)[2],
                                              const float (&second)[2]) const
    {
        constexpr int LD = DIM + 8;
        const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, half = warp / 4;
        const uint32_t rows = warp % 4 * 16 * LD * 2, passing = half * HALF * LD * 2;
        each([&](int n, int e) { s[n][e] = dp[n][e] = 0; });
        scores<DIM, HALF>(s, x(0) + rows, y(stage, 0) + passing);
        scores<DIM, HALF>(dp, x(1) + rows, y(stage, 1) + passing);
        const int owned0 = w.row + warp % 4 * 16 + lane / 4,
                  passing0 = w.passing_row(i) + half * HALF + lane % 4 * 2;
        if (SIDE == KEYS) {
            const float *a = stats(stage, 0) + half * HALF + lane % 4 * 2, *b = a + TILE;
            weigh(
                p, s, dp, [&](int n, int e) { return a[8 * n + e % 2]; },
                [&](int n, int e) { return b[8 * n + e % 2]; });
        } else
            weigh(
                p, s, dp, [&](int, int e) { return first[e / 2]; },
                [&](int, int e) { return second[e / 2]; });
        each([&](int n, int e) {
            const int o = owned0 + e / 2 * 8, y = passing0 + 8 * n + e % 2;
            const int key = SIDE == KEYS ? o : y, query = SIDE == KEYS ? y : o;
            if (key >= p.n_keys(query) || query >= p.n_tokens) s[n][e] = dp[n][e] = 0;
        });
    }
};

/* p dw of the elements that a query sees, of a clipped softmax. */
template <int DIM>
__device__ void add_delta(const block<QUERIES, DIM> &k, int i, int stage, const float (&first)[2],
                          float (&delta)[2])
{
    float s[HALF / 8][4], dp[HALF / 8][4];
    const float none[2] = {};
    k.scores_of(i, stage, s, dp, first, none); /* dp = p dw */
    each([&](int n, int e) { delta[e / 2] += dp[n][e]; });
}

/* The two warps' and the quads' parts become one. */
__device__ void join_delta(float (&delta)[2], float *parts)
{
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, row = warp % 4 * 16 + lane / 4;
    for (int r = 0; r < 2; r++) {
        delta[r] += __shfl_xor_sync(~0u, delta[r], 1);
        delta[r] += __shfl_xor_sync(~0u, delta[r], 2);
        if (lane % 4 == 0) parts[warp / 4 * TILE + row + 8 * r] = delta[r];
    }
    __syncthreads();
    for (int r = 0; r < 2; r++) delta[r] = parts[row + 8 * r] + parts[TILE + row + 8 * r];
}

template <side SIDE, int DIM>
__global__ void __launch_bounds__(THREADS) backward(const train_params p)
{
    constexpr int LD = DIM + 8;
    extern __shared__ __align__(16) char smem[];
    const work<SIDE> w(p);
    const block<SIDE, DIM> k = {p, w, smem};
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, half = warp / 4;
    const int row = warp % 4 * 16 + lane / 4, n = w.n_tiles * w.n_heads;
    const bool clipped = SIDE == QUERIES && p.kind == QB_SOFTMAX_CLIPPED;
    const size_t head = (size_t)blockIdx.z * p.n_heads + w.owner; /* QUERIES */
    float sum1[DIM / 16][4] = {}, sum2[SIDE == KEYS ? DIM / 16 : 1][4] = {};
    float first[2] = {}, second[2] = {};

    /* clipped: the tiles pass by twice */
    const int begin = clipped ? -n : 0;
    k.load_owned();
    k.load_passing(0, begin & 1);
    qb__cp_async_commit();
    if constexpr (SIDE == QUERIES) {
        if (p.kind != QB_SOFTMAX_RELU && !clipped) make_delta(p, w, head, k.stats(0, 0));
        for (int r = 0; r < 2; r++) first[r] = p.first_stat(head, w.row + row + 8 * r);
    }
    for (int i = begin; i < n; i++) {
        const int now = i < 0 ? i + n : i, next = now + 1 == n ? 0 : now + 1, stage = i & 1;
        qb__cp_async_wait<0>();
        __syncthreads();
        if (i + 1 < n) k.load_passing(next, stage ^ 1);
        qb__cp_async_commit();
        if constexpr (SIDE == QUERIES) {
            if (i < 0) {
                add_delta(k, now, stage, first, second);
                continue;
            }
            if (i == 0 && clipped)
                join_delta(second, k.stats(0, 0));
            else if (i == 0)
                for (int r = 0; r < 2; r++) second[r] = k.stats(0, 0)[row + 8 * r];
        }
        float s[HALF / 8][4], dp[HALF / 8][4];
        k.scores_of(now, stage, s, dp, first, second);
        const int place = warp % 4 * 16 * W_LD;
        if (SIDE == KEYS) put(s, k.weights(0) + place + half * HALF);
        put(dp, k.weights(1) + place + half * HALF);
        asm volatile("bar.sync %0, 64;" ::"r"(1 + warp % 4) : "memory"); /* the rows' two warps */
        const uint32_t dims = half * DIM / 2 * 2;
        add_product<DIM / 2, LD>(sum1, qb_smem(k.weights(1) + place), k.y(stage, 0) + dims);
        if constexpr (SIDE == KEYS)
            add_product<DIM / 2, LD>(sum2, qb_smem(k.weights(0) + place), k.y(stage, 1) + dims);
    }
    __syncthreads();
    const size_t to = (w.token + w.row) * p.d_qkv_stride + (size_t)w.owner * p.head_dim;
    const int n_rows = p.n_tokens - w.row;
    __nv_bfloat16 *tile = (__nv_bfloat16 *)smem;
    store_sums<DIM>(sum1, p.scale, tile, (SIDE == KEYS ? p.d_k : p.d_q) + to, p.d_qkv_stride,
                    n_rows, p.head_dim);
    if constexpr (SIDE == KEYS)
        store_sums<DIM>(sum2, 1, tile + TILE * LD, p.d_v + to, p.d_qkv_stride, n_rows, p.head_dim);
    if (clipped && half == 0 && lane % 4 == 0)
        for (int r = 0; r < 2; r++)
            if (row + 8 * r < n_rows) p.delta[head * p.n_tokens + w.row + row + 8 * r] = second[r];
}

/* ---- host ---- */

train_params params_of(const qb_cuda_attention_train_args *a)
{
    train_params p = {};
    p.q = (const __nv_bfloat16 *)a->q, p.k = (const __nv_bfloat16 *)a->k;
    p.v = (const __nv_bfloat16 *)a->v, p.out = (const __nv_bfloat16 *)a->out;
    p.d_out = (const __nv_bfloat16 *)a->d_out, p.lse = a->lse, p.delta = (float *)a->workspace;
    p.d_q = (__nv_bfloat16 *)a->d_q, p.d_k = (__nv_bfloat16 *)a->d_k;
    p.d_v = (__nv_bfloat16 *)a->d_v;
    p.qkv_stride = a->qkv_stride, p.out_stride = a->out_stride;
    p.d_out_stride = a->d_out_stride, p.d_qkv_stride = a->d_qkv_stride;
    p.n_tokens = (int)a->n_tokens, p.head_dim = (int)a->head_dim;
    p.n_heads = (int)a->n_heads, p.n_kv_heads = (int)a->n_kv_heads;
    p.prefix = (int)(a->free_prefix < a->n_tokens ? a->free_prefix : a->n_tokens);
    p.kind = a->softmax, p.scale = a->scale, p.gamma = a->gamma, p.zeta = a->zeta;
    return p;
}

template <side SIDE, int DIM>
qb_status launch_pass(const qb_cuda_attention_train_args *a, qb_cuda_stream stream)
{
    constexpr int bytes = layout<DIM>::BYTES;
    const size_t owners = SIDE == KEYS ? a->n_kv_heads : a->n_heads;
    QB_CUDA_TRY(cudaFuncSetAttribute(backward<SIDE, DIM>,
                                     cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
    dim3 grid((unsigned)((a->n_tokens + TILE - 1) / TILE), (unsigned)owners, (unsigned)a->batch);
    backward<SIDE, DIM><<<grid, THREADS, bytes, stream>>>(params_of(a));
    QB_CUDA_TRY(cudaGetLastError());
    return QB_OK;
}

template <int DIM> qb_status launch(const qb_cuda_attention_train_args *a, qb_cuda_stream stream)
{
    QB_TRY((launch_pass<QUERIES, DIM>(a, stream)));
    return launch_pass<KEYS, DIM>(a, stream);
}

} // namespace

const char *qb__cuda_attention_train_refuse_sm80(const qb_cuda_attention_train_args *args)
{
    const qb_cuda_attention_args forward = qb__attention_train_forward_args(args);
    const char *why = qb__attention_train_misaligned(args);
    return why ? why : qb__cuda_attention_refuse_sm80(&forward);
}

qb_status qb__cuda_attention_train_forward_sm80(const qb_cuda_attention_train_args *args,
                                                qb_cuda_stream stream)
{
    const qb_cuda_attention_args forward = qb__attention_train_forward_args(args);
    return qb__cuda_attention_run_sm80(&forward, stream);
}

qb_status qb__cuda_attention_train_backward_sm80(const qb_cuda_attention_train_args *args,
                                                 qb_cuda_stream stream)
{
    QB_TRY((args->head_dim <= 32    ? launch<32>
            : args->head_dim <= 64  ? launch<64>
            : args->head_dim <= 128 ? launch<128>
                                    : launch<256>)(args, stream));
    return qb__attention_train_sink_gradient(args, stream);
}
