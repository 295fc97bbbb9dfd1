/* kernels/cuda/attention_sm80.cu - attention in bf16 with mma.sync, for every GPU from 8.0 on.
 *
 * FlashAttention-2 (arXiv:2307.08691): a block of 4 warps takes 64 queries of one head, a warp 16
 * of them, and walks over tiles of 64 keys with a running maximum and sum in f32. While scores are
 * made the tile's values arrive, while values are used the next tile's keys. A clipped softmax goes
 * over the keys twice: for the maximum and the sum, then for the values. */
#include "kernels/cuda/attention_mma.cuh"

using namespace attention_mma;

namespace
{

constexpr int TILE = 64, THREADS = 128;

template <int DIM> constexpr int smem_bytes()
{
    return 3 * TILE * (DIM + 8) * (int)sizeof(__nv_bfloat16);
}

/* The warp's 16 rows of out, by way of its rows of the tile of queries, which is used up. */
template <int DIM>
__device__ void store(const float (&out)[DIM / 8][4], const float (&factor)[2], __nv_bfloat16 *tile,
                      __nv_bfloat16 *to, size_t stride, int n_rows, int head_dim)
{
    constexpr int LD = DIM + 8;
    int lane = threadIdx.x % 32, first = threadIdx.x / 32 * 16;
    __syncwarp();
    for (int n = 0; n < DIM / 8; n++)
        for (int r = 0; r < 2; r++)
            *(uint32_t *)(tile + (first + lane / 4 + 8 * r) * LD + 8 * n + lane % 4 * 2) =
                qb_bf16_pair(out[n][2 * r] * factor[r], out[n][2 * r + 1] * factor[r]);
    __syncwarp();
    for (int i = lane; i < 16 * DIM / 8; i += 32) {
        int row = first + i / (DIM / 8), d = i % (DIM / 8) * 8;
        if (row < n_rows && d < head_dim)
            *(uint4 *)(to + row * stride + d) = *(uint4 *)(tile + row * LD + d);
    }
}

/* A sink logit is one key more, whose value is 0; clipping starts as softmax does. */
__device__ void start_uncommon(const attention_params &a, int head, attention_running &run)
{
    for (int r = 0; r < 2; r++) {
        if (a.kind == QB_SOFTMAX_CLIPPED) run.max[r] = -CUDART_INF_F;
        if (a.kind == QB_SOFTMAX_SINK) run.max[r] = a.sink[head] / a.scale, run.sum[r] = 1;
    }
}

/* The four threads of a row have summed apart. */
__device__ void join_sums(attention_running &run)
{
    for (int r = 0; r < 2; r++) {
        run.sum[r] += __shfl_xor_sync(~0u, run.sum[r], 1);
        run.sum[r] += __shfl_xor_sync(~0u, run.sum[r], 2);
    }
}

/* Scores become clipped weights, maximum and sum being known; `last` and `more` as in softmax. */
__device__ void clip(float (&s)[TILE / 8][4], const attention_params &a,
                     const attention_running &run, int last, int more)
{
    const float scale_log2 = a.scale * CUDART_L2E_F;
    const int t = threadIdx.x % 4 * 2;
    for (int r = 0; r < 2; r++) {
        const float shift = run.max[r] * scale_log2, factor = (a.zeta - a.gamma) / run.sum[r];
        for (int n = 0; n < TILE / 8; n++)
            for (int e = 2 * r; e < 2 * r + 2; e++) {
                const bool seen = 8 * n + t + e % 2 <= last + r * more;
                const float x = qb_exp2(fmaf(s[n][e], scale_log2, -shift));
                s[n][e] = seen ? fminf(fmaxf(fmaf(x, factor, a.gamma), 0), 1) : 0;
            }
    }
}

/* UNCOMMON: with what few models have. */
template <int DIM, bool UNCOMMON>
__global__ void __launch_bounds__(THREADS) attention(const attention_params a)
{
    constexpr int LD = DIM + 8;
    extern __shared__ __align__(16) __nv_bfloat16 smem[];
    const uint32_t q_tile = qb_smem(smem), k_tile = q_tile + TILE * LD * 2,
                   v_tile = k_tile + TILE * LD * 2;
    const int first = ((int)gridDim.x - 1 - (int)blockIdx.x) * TILE; /* the longest rows first */
    const int h = blockIdx.y, past = a.past(), n_rows = min(TILE, a.n_q - first);
    const bool relu = a.kind == QB_SOFTMAX_RELU, clipped = UNCOMMON && a.kind == QB_SOFTMAX_CLIPPED;
    const int prefix = UNCOMMON ? min(a.free_prefix, past + a.n_q) : 0; /* keys that all see */
    const int n_keys = ::max(past + first + n_rows, prefix);            /* of the last row */
    const size_t token = (size_t)blockIdx.z * a.n_q + first;
    const size_t kv = blockIdx.z * a.kv_batch_stride + (size_t)(h / a.group) * a.head_dim;
    const __nv_bfloat16 *q = (const __nv_bfloat16 *)a.q + token * a.q_stride + h * a.head_dim;
    const __nv_bfloat16 *k = (const __nv_bfloat16 *)a.k + kv, *v = (const __nv_bfloat16 *)a.v + kv;
    const int row = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4;
    const int last = ::max(past + first + row, prefix - 1); /* key that the thread's row sees */
    const int more = ::max(past + first + row + 8, prefix - 1) - last;

    load_tile<DIM, TILE, THREADS>(q_tile, q, a.q_stride, n_rows, a.head_dim, threadIdx.x);
    load_tile<DIM, TILE, THREADS>(k_tile, k, a.kv_stride, n_keys, a.head_dim, threadIdx.x);
    qb__cp_async_commit();
    float out[DIM / 8][4] = {}, rescale[2] = {1, 1};
    attention_running run;
    for (int r = 0; r < 2; r++) attention_row_start(a.kind, &run.max[r], &run.sum[r]);
    if (UNCOMMON) start_uncommon(a, h, run);
    /* the quad's threads sum apart: only one of them counts what stands beside the keys */
    if (threadIdx.x % 4) run.sum[0] = run.sum[1] = 0;

    /* clipped: from begin to 0 without values */
    const int begin = clipped ? -((n_keys + TILE - 1) / TILE * TILE) : 0;
    for (int at = begin; at < n_keys; at += TILE) {
        const int j = at < 0 ? at - begin : at, next = at + TILE == 0 ? 0 : j + TILE;
        if (at >= 0)
            load_tile<DIM, TILE, THREADS>(v_tile, v + j * a.kv_stride, a.kv_stride, n_keys - j,
                                          a.head_dim, threadIdx.x);
        qb__cp_async_commit();
        qb__cp_async_wait<1>();
        __syncthreads();
        float s[TILE / 8][4] = {};
        scores<DIM, TILE>(s, q_tile + threadIdx.x / 32 * 16 * LD * 2, k_tile);
        __syncthreads();
        if (next < n_keys)
            load_tile<DIM, TILE, THREADS>(k_tile, k + next * a.kv_stride, a.kv_stride,
                                          n_keys - next, a.head_dim, threadIdx.x);
        qb__cp_async_commit();
        if (clipped && at == 0) join_sums(run);
        if (clipped && at >= 0)
            clip(s, a, run, last - j, more);
        else
            softmax<TILE>(s, run, rescale, last - j, more, a.scale * CUDART_L2E_F, relu);
        if (at < 0) continue;
#pragma unroll
        for (int n = 0; n < DIM / 8; n++)
            for (int e = 0; e < 4; e++) out[n][e] *= clipped ? 1 : rescale[e / 2];
        qb__cp_async_wait<1>();
        __syncthreads();
        add_values<DIM, TILE>(out, s, v_tile);
        __syncthreads();
    }
    if (!clipped) join_sums(run);
    float factor[2];
    for (int r = 0; r < 2; r++) {
        const int query = first + row + 8 * r;
        float divisor = attention_row_divisor(a.kind, run.sum[r], last + r * more + 1);
        if (clipped) divisor = 1;
        factor[r] = divisor > 0 ? (relu ? a.scale : 1) / divisor : 0;
        if (a.lse && !relu && threadIdx.x % 4 == 0 && query < a.n_q)
            a.lse[((size_t)blockIdx.z * a.n_heads + h) * a.n_q + query] =
                fmaf(run.max[r], a.scale, logf(run.sum[r]));
    }
    store<DIM>(out, factor, smem, (__nv_bfloat16 *)a.out + token * a.out_stride + h * a.head_dim,
               a.out_stride, n_rows, a.head_dim);
}

template <int DIM> qb_status launch(const qb_cuda_attention_args *args, qb_cuda_stream stream)
{
    auto kernel = qb__cuda_attention_uncommon(args) ? attention<DIM, true> : attention<DIM, false>;
    QB_CUDA_TRY(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                     smem_bytes<DIM>()));
    dim3 grid((unsigned)((args->n_q + TILE - 1) / TILE), (unsigned)args->n_heads,
              (unsigned)args->batch);
    kernel<<<grid, THREADS, smem_bytes<DIM>(), stream>>>(attention_params_of(args));
    QB_CUDA_TRY(cudaGetLastError());
    return QB_OK;
}

} // namespace

const char *qb__cuda_attention_refuse_sm80(const qb_cuda_attention_args *args)
{
    if (args->type != QB_CUDA_BF16) return "type is not bf16";
    if (args->head_dim > 256) return "head_dim is over 256";
    if (!(args->scale > 0)) return "the scale is not positive";
    return qb__cuda_attention_misaligned(args);
}

qb_status qb__cuda_attention_run_sm80(const qb_cuda_attention_args *args, qb_cuda_stream stream)
{
    if (args->head_dim <= 32) return launch<32>(args, stream);
    if (args->head_dim <= 64) return launch<64>(args, stream);
    if (args->head_dim <= 96) return launch<96>(args, stream);
    if (args->head_dim <= 128) return launch<128>(args, stream);
    if (args->head_dim <= 192) return launch<192>(args, stream);
    return launch<256>(args, stream);
}
