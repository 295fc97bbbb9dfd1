/* kernels/cuda/attention_f32.cu - attention in f32 multiply-adds, any head size and layout.
 *
 * A block of 256 threads takes 64 queries of one head and walks over tiles of 64 keys: scores,
 * their exponentials against a running maximum, products with the values. A thread holds 4 x 4
 * scores and 4 x (dim / 16) outputs. The sums of a tile are made apart and then added to the
 * running ones, so that the error grows with the number of tiles and not of keys. bf16 is widened
 * on the way in: the last resort of layouts that the other rows refuse, and the one row for sink
 * logits, free prefixes and a clipped softmax, which goes over the keys twice: for the maximum and
 * the sum, then for the weights. */
#include "kernels/cuda/attention_device.cuh"

namespace
{

constexpr int TILE = 64, THREADS = 256, P_STRIDE = TILE + 4;

/* Dimensions of keys or values in shared memory at a time: with 256, 99 KB must do (8.9). */
template <int DIM> constexpr int CHUNK_OF = DIM > 128 ? 64 : DIM;
template <int DIM>
constexpr int SMEM_BYTES = TILE *(DIM + 4 + CHUNK_OF<DIM> + 4 + P_STRIDE) * (int)sizeof(float);

__device__ float to_f32(float x)
{
    return x;
}
__device__ float to_f32(__nv_bfloat16 x)
{
    return __bfloat162float(x);
}
__device__ void from_f32(float x, float *out)
{
    *out = x;
}
__device__ void from_f32(float x, __nv_bfloat16 *out)
{
    *out = __float2bfloat16_rn(x);
}

/* Rows 0 to n_rows of a tile, zeros in the rest and in the columns past head_dim. */
template <int DIM, typename T>
__device__ void load_tile(float *tile, const T *from, size_t stride, int n_rows, int head_dim)
{
    for (int i = threadIdx.x; i < TILE * DIM; i += THREADS) {
        int row = i / DIM, d = i % DIM;
        bool inside = row < n_rows && d < head_dim;
        tile[row * (DIM + 4) + d] = inside ? to_f32(from[row * stride + d]) : 0.0f;
    }
}

template <int DIM>
__device__ void load_tile_x4(float *tile, const float *from, size_t stride, int n_rows,
                             int head_dim)
{
    for (int i = threadIdx.x; i < TILE * DIM / 4; i += THREADS) {
        int row = i / (DIM / 4), d = i % (DIM / 4) * 4;
        float4 x = make_float4(0, 0, 0, 0);
        if (row < n_rows && d < head_dim) x = *(const float4 *)(from + row * stride + d);
        *(float4 *)(tile + row * (DIM + 4) + d) = x;
    }
}

template <int DIM, typename T>
__device__ void load(float *tile, const T *from, size_t stride, int n_rows, int head_dim, bool wide)
{
    if constexpr (sizeof(T) == 4) {
        if (wide) return load_tile_x4<DIM>(tile, from, stride, n_rows, head_dim);
    }
    load_tile<DIM>(tile, from, stride, n_rows, head_dim);
}

__device__ float dot4(float4 a, float4 b, float sum)
{
    return fmaf(a.w, b.w, fmaf(a.z, b.z, fmaf(a.y, b.y, fmaf(a.x, b.x, sum))));
}

/* Over the 16 threads that share a row. */
__device__ float row_max(float x)
{
    for (int o = 8; o; o /= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, o));
    return x;
}
__device__ float row_sum(float x)
{
    for (int o = 8; o; o /= 2) x += __shfl_xor_sync(~0u, x, o);
    return x;
}

/* Scores of the thread's rows 4 ty + r with keys tx + 16 c become p; `last` is the last key that
 * row r sees, counted from the tile's first. Returns what earlier sums are multiplied by. */
__device__ float softmax_row(float (&s)[4], int tx, int last, float scale, qb_softmax_kind kind,
                             float *max, float *sum)
{
    float tile_max = -CUDART_INF_F, tile_sum = 0, rescale = 1;
    for (int c = 0; c < 4; c++) {
        s[c] = tx + 16 * c <= last ? s[c] * scale : -CUDART_INF_F;
        tile_max = fmaxf(tile_max, s[c]);
    }
    if (kind == QB_SOFTMAX_RELU) {
        for (int c = 0; c < 4; c++) s[c] = fmaxf(s[c], 0);
        return 1;
    }
    float new_max = fmaxf(*max, row_max(tile_max));
    float shift = new_max == -CUDART_INF_F ? 0 : new_max; /* all masked: each exponential is 0 */
    rescale = expf(*max - shift);
    for (int c = 0; c < 4; c++) tile_sum += s[c] = expf(s[c] - shift);
    *sum = fmaf(*sum, rescale, row_sum(tile_sum));
    *max = new_max;
    return rescale;
}

/* A sink logit is one key more, whose value is 0; clipping starts as softmax does. */
__device__ void start_uncommon_row(const attention_params &a, int head, float *max, float *sum)
{
    if (a.kind == QB_SOFTMAX_CLIPPED) *max = -CUDART_INF_F;
    if (a.kind != QB_SOFTMAX_SINK) return;
    *max = a.sink[head];
    *sum = *max == -CUDART_INF_F ? 0 : 1;
}

/* Scores become clipped weights, the maximum and (zeta - gamma) / sum of the row being known. */
__device__ void clip_row(float (&s)[4], int tx, int last, const attention_params &a, float max,
                         float factor)
{
    const float shift = max == -CUDART_INF_F ? 0 : max;
    for (int c = 0; c < 4; c++) {
        const float p = fmaf(expf(s[c] * a.scale - shift), factor, a.gamma);
        s[c] = tx + 16 * c > last || p < 0 ? 0 : p > 1 ? 1 : p;
    }
}

/* s += q . k over one chunk of the dimensions. */
template <int CHUNK>
__device__ void add_scores(float (&s)[4][4], const float *q, const float *k, int q_stride, int n)
{
#pragma unroll 2
    for (int d = 0; d < n; d += 4) {
        float4 q4[4], k4[4];
        for (int r = 0; r < 4; r++) q4[r] = *(const float4 *)(q + r * q_stride + d);
        for (int c = 0; c < 4; c++) k4[c] = *(const float4 *)(k + 16 * c * (CHUNK + 4) + d);
        for (int r = 0; r < 4; r++)
            for (int c = 0; c < 4; c++) s[r][c] = dot4(q4[r], k4[c], s[r][c]);
    }
}

/* out = out * rescale + p . v for one chunk: dimensions 64 n + 4 tx + 0 to 3. */
template <int CHUNK, int N>
__device__ void add_values(float (&out)[4][N], int at, const float (&rescale)[4], const float *p,
                           const float *v)
{
    float tile[4][CHUNK / 16] = {};
#pragma unroll 2
    for (int i = 0; i < TILE; i += 4) {
        float w[4][4];
        for (int r = 0; r < 4; r++) *(float4 *)w[r] = *(const float4 *)(p + r * P_STRIDE + i);
        for (int ii = 0; ii < 4; ii++)
            for (int n = 0; n < CHUNK / 64; n++) {
                float4 x = *(const float4 *)(v + (i + ii) * (CHUNK + 4) + 64 * n);
                for (int r = 0; r < 4; r++) {
                    tile[r][4 * n] = fmaf(w[r][ii], x.x, tile[r][4 * n]);
                    tile[r][4 * n + 1] = fmaf(w[r][ii], x.y, tile[r][4 * n + 1]);
                    tile[r][4 * n + 2] = fmaf(w[r][ii], x.z, tile[r][4 * n + 2]);
                    tile[r][4 * n + 3] = fmaf(w[r][ii], x.w, tile[r][4 * n + 3]);
                }
            }
    }
    for (int r = 0; r < 4; r++)
        for (int i = 0; i < CHUNK / 16; i++)
            out[r][at + i] = fmaf(out[r][at + i], rescale[r], tile[r][i]);
}

/* UNCOMMON: with what only this row has, which costs registers. */
template <typename T, int DIM, bool UNCOMMON>
__global__ void __launch_bounds__(THREADS, DIM > 128 || UNCOMMON ? 1 : 2)
    attention(const attention_params a, bool wide)
{
    constexpr int CHUNK = CHUNK_OF<DIM>, LD = CHUNK + 4;
    extern __shared__ float smem[];
    float *q_tile = smem, *kv_tile = q_tile + TILE * (DIM + 4), *p_tile = kv_tile + TILE * LD;
    const int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
    const int first = ((int)gridDim.x - 1 - (int)blockIdx.x) * TILE; /* the longest rows first */
    const int h = blockIdx.y, past = a.past(), n_rows = min(TILE, a.n_q - first);
    const bool clipped = UNCOMMON && a.kind == QB_SOFTMAX_CLIPPED;
    const int prefix = UNCOMMON ? min(a.free_prefix, past + a.n_q) : 0; /* keys that all see */
    const int n_keys = UNCOMMON ? ::max(past + first + n_rows, prefix)  /* of the last row */
                                : past + first + n_rows;
    const size_t token = (size_t)blockIdx.z * a.n_q + first;
    const size_t kv = blockIdx.z * a.kv_batch_stride + (size_t)(h / a.group) * a.head_dim;
    const T *k = (const T *)a.k + kv, *v = (const T *)a.v + kv;

    load<DIM>(q_tile, (const T *)a.q + token * a.q_stride + (size_t)h * a.head_dim, a.q_stride,
              n_rows, a.head_dim, wide);
    float max[4], sum[4], out[4][DIM / 16] = {};
    for (int r = 0; r < 4; r++) {
        attention_row_start(a.kind, &max[r], &sum[r]);
        if (UNCOMMON) start_uncommon_row(a, h, &max[r], &sum[r]);
    }

    /* A clipped softmax sees the tiles twice; the first time, from begin to 0, without values. */
    const int begin = clipped ? -((n_keys + TILE - 1) / TILE * TILE) : 0;
    for (int at = begin; at < n_keys; at += TILE) {
        const int j = UNCOMMON && at < 0 ? at - begin : at;
        if (clipped && at == 0)
            for (int r = 0; r < 4; r++) sum[r] = sum[r] > 0 ? (a.zeta - a.gamma) / sum[r] : 0;
        float s[4][4] = {}, rescale[4];
        for (int d = 0; d < a.head_dim; d += CHUNK) {
            if (d) __syncthreads();
            load<CHUNK>(kv_tile, k + j * a.kv_stride + d, a.kv_stride, n_keys - j, a.head_dim - d,
                        wide);
            __syncthreads();
            add_scores<CHUNK>(s, q_tile + 4 * ty * (DIM + 4) + d, kv_tile + tx * LD, DIM + 4,
                              min(CHUNK, a.head_dim - d));
        }
        for (int r = 0; r < 4; r++) {
            int last = past + first + 4 * ty + r - j;
            if (UNCOMMON) last = ::max(last, prefix - 1 - j);
            if (clipped && at >= 0)
                clip_row(s[r], tx, last, a, max[r], sum[r]), rescale[r] = 1;
            else
                rescale[r] = softmax_row(s[r], tx, last, a.scale, a.kind, &max[r], &sum[r]);
            for (int c = 0; c < 4; c++) p_tile[(4 * ty + r) * P_STRIDE + tx + 16 * c] = s[r][c];
        }
#pragma unroll
        for (int d = 0; d < DIM; d += CHUNK) {
            if (d >= a.head_dim || (UNCOMMON && at < 0)) break;
            __syncthreads(); /* what is in kv_tile is used up, p is there */
            load<CHUNK>(kv_tile, v + j * a.kv_stride + d, a.kv_stride, n_keys - j, a.head_dim - d,
                        wide);
            __syncthreads();
            add_values<CHUNK>(out, d / 16, rescale, p_tile + 4 * ty * P_STRIDE, kv_tile + 4 * tx);
        }
        __syncthreads();
    }
    for (int r = 0; r < 4; r++) {
        int row = 4 * ty + r;
        if (row >= n_rows) break;
        int sees = past + first + row + 1;
        if (UNCOMMON) sees = ::max(sees, prefix);
        float divisor = clipped ? 1 : attention_row_divisor(a.kind, sum[r], sees);
        T *to = (T *)a.out + (token + row) * a.out_stride + (size_t)h * a.head_dim;
        for (int i = 0; i < DIM / 16; i++) {
            int d = i / 4 * 64 + 4 * tx + i % 4;
            if (d < a.head_dim) from_f32(divisor > 0 ? out[r][i] / divisor : 0.0f, to + d);
        }
    }
}

template <typename T, int DIM, bool UNCOMMON>
qb_status launch(const qb_cuda_attention_args *args, qb_cuda_stream stream)
{
    constexpr int bytes = SMEM_BYTES<DIM>;
    QB_CUDA_TRY(cudaFuncSetAttribute(attention<T, DIM, UNCOMMON>,
                                     cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
    bool wide = args->type == QB_CUDA_F32 && !qb__cuda_attention_misaligned(args);
    dim3 grid((unsigned)((args->n_q + TILE - 1) / TILE), (unsigned)args->n_heads,
              (unsigned)args->batch);
    attention<T, DIM, UNCOMMON><<<grid, THREADS, bytes, stream>>>(attention_params_of(args), wide);
    QB_CUDA_TRY(cudaGetLastError());
    return QB_OK;
}

template <typename T, int DIM>
qb_status launch_kind(const qb_cuda_attention_args *args, qb_cuda_stream stream)
{
    if (qb__cuda_attention_uncommon(args)) return launch<T, DIM, true>(args, stream);
    return launch<T, DIM, false>(args, stream);
}

template <typename T> qb_status run(const qb_cuda_attention_args *args, qb_cuda_stream stream)
{
    if (args->head_dim <= 64) return launch_kind<T, 64>(args, stream);
    if (args->head_dim <= 128) return launch_kind<T, 128>(args, stream);
    return launch_kind<T, 256>(args, stream);
}

} // namespace

const char *qb__cuda_attention_refuse_f32(const qb_cuda_attention_args *args)
{
    if (args->lse) return "it does not give lse";
    if (args->type != QB_CUDA_F32 && args->type != QB_CUDA_BF16) return "type is not f32 or bf16";
    if (args->head_dim == 0 || args->head_dim > 256) return "head_dim is not 1 to 256";
    return NULL;
}

qb_status qb__cuda_attention_run_f32(const qb_cuda_attention_args *args, qb_cuda_stream stream)
{
    return args->type == QB_CUDA_F32 ? run<float>(args, stream) : run<__nv_bfloat16>(args, stream);
}
