/* kernels/cuda/attention_splitkv.cu - attention of one new token a sequence: reads the cache once.
 *
 * One token leaves a block for each key head, too few to fill the GPU, so the keys are cut into
 * parts (FlashDecoding), each with its own maximum, sum and output; a second kernel joins them, in
 * a fixed order, so that equal calls give equal bits. All query heads of a key head are done
 * together.
 *
 * bf16: the heads are the rows of an mma tile; each warp walks over 16 keys at a time on its own,
 * the next ones on their way. f32: a key is read by the 1 to 32 lanes that hold its vector, 8
 * elements each, and every such group of lanes keeps a running softmax of its own. */
#include "kernels/cuda/attention_mma.cuh"
#include "kernels/cuda/attention_parts.cuh"

using namespace attention_mma;
using namespace attention_parts;

namespace
{

constexpr int WARPS = 4, KEYS = 4;  /* f32: keys in flight a group of lanes */
constexpr int ROWS = 16, STEP = 16; /* bf16: heads a block, keys a warp at a time */

__device__ void load8(const float *from, float (&x)[8])
{
    *(float4 *)x = *(const float4 *)from;
    *(float4 *)(x + 4) = *(const float4 *)(from + 4);
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

/* One part of the keys of one key head; HEADS query heads at a time. */
template <int HEADS> __global__ void __launch_bounds__(32 * WARPS) attend_f32(const split_params s)
{
    const attention_params &a = s.a;
    __shared__ float join_out[32 * WARPS][8 + 1], join_max[32 * WARPS], join_sum[32 * WARPS];
    const int tid = threadIdx.x, lane = tid % s.lanes, group = tid / s.lanes;
    const int n_groups = 32 * WARPS / s.lanes;
    const int part = blockIdx.x, g = blockIdx.y, b = blockIdx.z;
    qb__start_next_grid();
    qb__wait_previous_grid();
    const int n_keys = a.past() + 1;
    int begin, end;
    s.range(part, n_keys, &begin, &end);
    const size_t kv = b * a.kv_batch_stride + (size_t)g * a.head_dim + 8 * lane;
    const float *k = (const float *)a.k + kv, *v = (const float *)a.v + kv;
    const bool live = 8 * lane < a.head_dim, relu = a.kind == QB_SOFTMAX_RELU;

    for (int h0 = g * a.group; h0 < (g + 1) * a.group; h0 += HEADS) {
        const int n_heads = min(HEADS, (g + 1) * a.group - h0);
        float q[HEADS][8] = {};
        state x[HEADS];
        for (int h = 0; h < HEADS; h++) {
            x[h] = {-CUDART_INF_F, 0, {}};
            if (live && h < n_heads)
                load8((const float *)a.q + b * a.q_stride + (size_t)(h0 + h) * a.head_dim +
                          8 * lane,
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
                    finish(a, (float *)a.out + b * a.out_stride + (size_t)(h0 + h) * a.head_dim, d,
                           max, sum, value, n_keys);
                    continue;
                }
                float *to = s.partial_of(row, part);
                to[d] = value;
                if (d == 0) to[a.head_dim] = max, to[a.head_dim + 1] = sum;
            }
            __syncthreads();
        }
    }
}

/* What one warp of attend_bf16 found, for the block to join. */
template <int DIM, int N> struct found {
    float out[N][ROWS][DIM], max[N][ROWS], sum[N][ROWS];
};
template <int DIM> constexpr int N_WARPS = DIM > 128 ? 2 : 4;
template <int DIM> constexpr int STEP_BYTES = STEP *(DIM + 8) * 2; /* of keys or values */
template <int DIM> constexpr int SMEM_BYTES = (ROWS / STEP + 4 * N_WARPS<DIM>)*STEP_BYTES<DIM>;

template <int DIM>
__device__ void put(found<DIM, N_WARPS<DIM>> *to, int warp, const float (&out)[DIM / 8][4],
                    const attention_running &run, float scale)
{
    int lane = threadIdx.x % 32;
    for (int r = 0; r < 2; r++) {
        int row = lane / 4 + 8 * r;
        float sum = run.sum[r];
        sum += __shfl_xor_sync(~0u, sum, 1);
        sum += __shfl_xor_sync(~0u, sum, 2);
        if (lane % 4 == 0) to->max[warp][row] = run.max[r] * scale, to->sum[warp][row] = sum;
        for (int n = 0; n < DIM / 8; n++)
            for (int e = 0; e < 2; e++)
                to->out[warp][row][8 * n + lane % 4 * 2 + e] = out[n][2 * r + e];
    }
}

/* One part of the keys of up to 16 heads that share a key head. */
template <int DIM>
__global__ void __launch_bounds__(32 * N_WARPS<DIM>) attend_bf16(const split_params s)
{
    constexpr int N = N_WARPS<DIM>, BYTES = STEP_BYTES<DIM>;
    const attention_params &a = s.a;
    extern __shared__ __align__(16) char smem[];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, part = blockIdx.x, b = blockIdx.z;
    const int n_row_tiles = (a.group + ROWS - 1) / ROWS, g = blockIdx.y / n_row_tiles;
    const int first = blockIdx.y % n_row_tiles * ROWS, n_rows = min(ROWS, a.group - first);
    qb__start_next_grid();
    qb__wait_previous_grid();
    const int n_keys = a.past() + 1, h0 = g * a.group + first;
    const bool relu = a.kind == QB_SOFTMAX_RELU;
    const size_t kv = b * a.kv_batch_stride + (size_t)g * a.head_dim;
    const __nv_bfloat16 *k = (const __nv_bfloat16 *)a.k + kv, *v = (const __nv_bfloat16 *)a.v + kv;
    const uint32_t q_tile = qb_smem(smem), mine = q_tile + BYTES + warp * 4 * BYTES;
    int begin, end;
    s.range(part, n_keys, &begin, &end);

    load_tile<DIM, ROWS, 32 * N>(
        q_tile, (const __nv_bfloat16 *)a.q + b * a.q_stride + (size_t)h0 * a.head_dim, a.head_dim,
        n_rows, a.head_dim, threadIdx.x);
    qb__cp_async_commit();
    auto load = [&](int i) { /* the warp's i-th keys, and as another group their values */
                             int j = begin + (i * N + warp) * STEP;
                             uint32_t to = mine + i % 2 * 2 * BYTES;
                             if (j < end)
                                 load_tile<DIM, STEP, 32>(to, k + j * a.kv_stride, a.kv_stride,
                                                          end - j, a.head_dim, lane);
                             qb__cp_async_commit();
                             if (j < end)
                                 load_tile<DIM, STEP, 32>(to + BYTES, v + j * a.kv_stride,
                                                          a.kv_stride, end - j, a.head_dim, lane);
                             qb__cp_async_commit();
    };
    load(0);
    load(1);
    qb__cp_async_wait<4>();
    __syncthreads();

    float out[DIM / 8][4] = {}, rescale[2];
    attention_running run = {{-CUDART_INF_F, -CUDART_INF_F}, {0, 0}};
    for (int i = 0; begin + (i * N + warp) * STEP < end; i++) {
        const int j = begin + (i * N + warp) * STEP;
        const uint32_t at = mine + i % 2 * 2 * BYTES;
        float p[STEP / 8][4] = {};
        qb__cp_async_wait<3>();
        __syncwarp();
        scores<DIM, STEP>(p, q_tile, at);
        softmax<STEP>(p, run, rescale, end - 1 - j, 0, a.scale * CUDART_L2E_F, relu);
#pragma unroll
        for (int n = 0; n < DIM / 8; n++)
            for (int e = 0; e < 4; e++) out[n][e] *= rescale[e / 2];
        qb__cp_async_wait<2>();
        __syncwarp();
        add_values<DIM, STEP>(out, p, at + BYTES);
        __syncwarp();
        load(i + 2);
    }
    qb__cp_async_wait<0>();
    __syncthreads();
    auto *all = (found<DIM, N> *)smem;
    static_assert(sizeof *all <= SMEM_BYTES<DIM>, "the results take the place of the tiles");
    put<DIM>(all, warp, out, run, a.scale);
    __syncthreads();
    for (int i = threadIdx.x; i < n_rows * a.head_dim; i += 32 * N) {
        int row = i / a.head_dim, d = i % a.head_dim;
        float max = -CUDART_INF_F, sum = 0, value = 0, x_factor, y_factor;
        for (int w = 0; w < N; w++) {
            join(&max, &sum, all->max[w][row], all->sum[w][row], &x_factor, &y_factor, relu);
            value = value * x_factor + all->out[w][row][d] * y_factor;
        }
        if (relu) value *= a.scale;
        if (s.n_parts == 1) {
            finish(a, (__nv_bfloat16 *)a.out + b * a.out_stride + (size_t)(h0 + row) * a.head_dim,
                   d, max, sum, value, n_keys);
            continue;
        }
        float *to = s.partial_of((size_t)b * a.n_heads + h0 + row, part);
        to[d] = value;
        if (d == 0) to[a.head_dim] = max, to[a.head_dim + 1] = sum;
    }
}

qb_status run_f32(split_params s, const qb_cuda_attention_args *args, qb_cuda_stream stream)
{
    for (s.lanes = 1; 8 * s.lanes < s.a.head_dim;) s.lanes *= 2;
    dim3 grid((unsigned)s.n_parts, (unsigned)args->n_kv_heads, (unsigned)args->batch);
    QB_TRY(qb__launch_overlapped(s.a.group == 1 ? attend_f32<1> : attend_f32<4>, grid,
                                 dim3(32 * WARPS), 0, stream, s));
    return launch_combine<float>(s, args->batch, stream);
}

template <int DIM>
qb_status run_bf16(const split_params &s, const qb_cuda_attention_args *args, qb_cuda_stream stream)
{
    QB_CUDA_TRY(cudaFuncSetAttribute(attend_bf16<DIM>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                     SMEM_BYTES<DIM>));
    size_t row_tiles = (size_t)(s.a.group + ROWS - 1) / ROWS;
    dim3 grid((unsigned)s.n_parts, (unsigned)(args->n_kv_heads * row_tiles), (unsigned)args->batch);
    QB_TRY(qb__launch_overlapped(attend_bf16<DIM>, grid, dim3(32 * N_WARPS<DIM>), SMEM_BYTES<DIM>,
                                 stream, s));
    return launch_combine<__nv_bfloat16>(s, args->batch, stream);
}

} // namespace

size_t qb__cuda_attention_blocks(void)
{
    int device = 0, n_sms = 0;
    if (cudaGetDevice(&device) != cudaSuccess ||
        cudaDeviceGetAttribute(&n_sms, cudaDevAttrMultiProcessorCount, device) != cudaSuccess)
        return 1;
    return 6 * (size_t)n_sms; /* two waves of three a multiprocessor */
}

const char *qb__cuda_attention_refuse_splitkv(const qb_cuda_attention_args *args)
{
    if (args->lse) return "it does not give lse";
    if (args->n_q != 1) return "more than one query a sequence";
    if (qb__cuda_attention_uncommon(args)) return qb__cuda_attention_uncommon(args);
    if (args->type != QB_CUDA_BF16 && args->type != QB_CUDA_F32) return "type is not f32 or bf16";
    if (args->head_dim % 8) return "head_dim is no multiple of 8";
    if (args->head_dim > 256) return "head_dim is over 256";
    if (!(args->scale > 0)) return "the scale is not positive";
    return qb__cuda_attention_misaligned(args);
}

qb_status qb__cuda_attention_run_splitkv(const qb_cuda_attention_args *args, qb_cuda_stream stream)
{
    split_params s = {attention_params_of(args), (float *)args->workspace, 1, 1};
    if (args->workspace) s.n_parts = (int)qb__cuda_attention_splits(args);
    if (args->type == QB_CUDA_F32) return run_f32(s, args, stream);
    if (args->head_dim <= 64) return run_bf16<64>(s, args, stream);
    if (args->head_dim <= 128) return run_bf16<128>(s, args, stream);
    return run_bf16<256>(s, args, stream);
}
