/* kernels/cuda/attention_sm80.cu - attention in bf16 with mma.sync, for every GPU from 8.0 on.
 *
 * FlashAttention-2 (arXiv:2307.08691): a block of 4 warps takes 64 queries of one head, a warp 16
 * of them, and walks over tiles of 64 keys with a running maximum and sum in f32. While scores are
 * made the tile's values arrive, while values are used the next tile's keys. Rows in shared memory
 * are 16 bytes longer than the head, so that ldmatrix meets no bank twice. */
#include "kernels/cuda/attention_device.cuh"

namespace
{

constexpr int TILE = 64, THREADS = 128;

template <int DIM> constexpr int smem_bytes()
{
    return 3 * TILE * (DIM + 8) * (int)sizeof(__nv_bfloat16);
}

__device__ uint32_t smem_address(const void *p)
{
    return (uint32_t)__cvta_generic_to_shared(p);
}

/* Copies 16 bytes, or writes zeros. */
__device__ void copy_async(uint32_t to, const void *from, bool inside)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
                 "r"(inside ? 16 : 0));
}
__device__ void commit()
{
    asm volatile("cp.async.commit_group;");
}
template <int N> __device__ void wait()
{
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

__device__ void load_matrices(uint32_t (&r)[4], uint32_t from)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(from)
                 : "memory");
}
__device__ void load_transposed(uint32_t (&r)[4], uint32_t from)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(from)
                 : "memory");
}

__device__ void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1)
{
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ uint32_t pack(float low, float high)
{
    __nv_bfloat162 x = __floats2bfloat162_rn(low, high);
    return *(uint32_t *)&x;
}

/* Rows 0 to n_rows of a tile; zeros in the rest and past head_dim. */
template <int DIM>
__device__ void load_tile(uint32_t tile, const __nv_bfloat16 *from, size_t stride, int n_rows,
                          int head_dim)
{
    for (int i = threadIdx.x; i < TILE * DIM / 8; i += THREADS) {
        int row = i / (DIM / 8), d = i % (DIM / 8) * 8;
        bool inside = row < n_rows && d < head_dim;
        copy_async(tile + (row * (DIM + 8) + d) * 2, inside ? from + row * stride + d : from,
                   inside);
    }
}

/* s = q . k of the warp's 16 rows; element [n][e] is row lane / 4 + 8 (e / 2), key
 * 8 n + 2 (lane % 4) + e % 2. */
template <int DIM> __device__ void scores(float (&s)[TILE / 8][4], uint32_t q_tile, uint32_t k_tile)
{
    constexpr int LD = (DIM + 8) * 2;
    int lane = threadIdx.x % 32, i = lane % 8, j = lane / 8;
    uint32_t q_from = q_tile + (i + j % 2 * 8) * LD + j / 2 * 16;
    uint32_t k_from = k_tile + (i + j / 2 * 8) * LD + j % 2 * 16;
#pragma unroll
    for (int d = 0; d < DIM; d += 16) {
        uint32_t q[4], k[4];
        load_matrices(q, q_from + d * 2);
#pragma unroll
        for (int n = 0; n < TILE / 8; n += 2) {
            load_matrices(k, k_from + n * 8 * LD + d * 2);
            mma(s[n], q, k[0], k[1]);
            mma(s[n + 1], q, k[2], k[3]);
        }
    }
}

/* out += p . v; out's elements lie as those of scores(). */
template <int DIM>
__device__ void add_values(float (&out)[DIM / 8][4], const float (&p)[TILE / 8][4], uint32_t v_tile)
{
    constexpr int LD = (DIM + 8) * 2;
    int lane = threadIdx.x % 32, i = lane % 8, j = lane / 8;
    uint32_t v_from = v_tile + (i + j % 2 * 8) * LD + j / 2 * 16;
#pragma unroll
    for (int n = 0; n < TILE / 8; n += 2) {
        uint32_t a[4] = {pack(p[n][0], p[n][1]), pack(p[n][2], p[n][3]),
                         pack(p[n + 1][0], p[n + 1][1]), pack(p[n + 1][2], p[n + 1][3])};
#pragma unroll
        for (int d = 0; d < DIM; d += 16) {
            uint32_t v[4];
            load_transposed(v, v_from + n * 8 * LD + d * 2);
            mma(out[d / 8], a, v[0], v[1]);
            mma(out[d / 8 + 1], a, v[2], v[3]);
        }
    }
}

struct running {
    float max[2], sum[2]; /* of rows lane / 4 and lane / 4 + 8; sums of this thread's keys only */
};

/* Scores become p, in place; rescale: what earlier sums are multiplied by. `last` is the last key
 * that the thread's first row sees, counted from the tile's first. */
__device__ void softmax(float (&s)[TILE / 8][4], running &run, float (&rescale)[2], int last,
                        float scale_log2, bool relu)
{
    int t = threadIdx.x % 4 * 2;
    if (last < TILE - 1)
        for (int n = 0; n < TILE / 8; n++)
            for (int e = 0; e < 4; e++)
                if (8 * n + t + e % 2 > last + e / 2 * 8) s[n][e] = -CUDART_INF_F;
    if (relu) {
        for (int n = 0; n < TILE / 8; n++)
            for (int e = 0; e < 4; e++) s[n][e] = fmaxf(s[n][e], 0);
        rescale[0] = rescale[1] = 1;
        return;
    }
    for (int r = 0; r < 2; r++) {
        float max = run.max[r];
        for (int n = 0; n < TILE / 8; n++) max = fmaxf(max, fmaxf(s[n][2 * r], s[n][2 * r + 1]));
        max = fmaxf(max, __shfl_xor_sync(~0u, max, 1));
        max = fmaxf(max, __shfl_xor_sync(~0u, max, 2));
        float shift = max == -CUDART_INF_F ? 0 : max * scale_log2, sum = 0;
        rescale[r] = attention_exp2(fmaf(run.max[r], scale_log2, -shift));
        for (int n = 0; n < TILE / 8; n++)
            for (int e = 2 * r; e < 2 * r + 2; e++)
                sum += s[n][e] = attention_exp2(fmaf(s[n][e], scale_log2, -shift));
        run.sum[r] = fmaf(run.sum[r], rescale[r], sum);
        run.max[r] = max;
    }
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
                pack(out[n][2 * r] * factor[r], out[n][2 * r + 1] * factor[r]);
    __syncwarp();
    for (int i = lane; i < 16 * DIM / 8; i += 32) {
        int row = first + i / (DIM / 8), d = i % (DIM / 8) * 8;
        if (row < n_rows && d < head_dim)
            *(uint4 *)(to + row * stride + d) = *(uint4 *)(tile + row * LD + d);
    }
}

template <int DIM> __global__ void __launch_bounds__(THREADS) attention(const attention_params a)
{
    constexpr int LD = DIM + 8;
    extern __shared__ __align__(16) __nv_bfloat16 smem[];
    const uint32_t q_tile = smem_address(smem), k_tile = q_tile + TILE * LD * 2,
                   v_tile = k_tile + TILE * LD * 2;
    const int first = ((int)gridDim.x - 1 - (int)blockIdx.x) * TILE; /* the longest rows first */
    const int h = blockIdx.y, past = a.past(), n_rows = min(TILE, a.n_q - first);
    const int n_keys = past + first + n_rows; /* of the last row */
    const size_t token = (size_t)blockIdx.z * a.n_q + first;
    const size_t kv = blockIdx.z * a.kv_batch_stride + (size_t)(h / a.group) * a.head_dim;
    const __nv_bfloat16 *q = (const __nv_bfloat16 *)a.q + token * a.q_stride + h * a.head_dim;
    const __nv_bfloat16 *k = (const __nv_bfloat16 *)a.k + kv, *v = (const __nv_bfloat16 *)a.v + kv;
    const int row = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4;
    const bool relu = a.kind == QB_SOFTMAX_RELU;

    load_tile<DIM>(q_tile, q, a.q_stride, n_rows, a.head_dim);
    load_tile<DIM>(k_tile, k, a.kv_stride, n_keys, a.head_dim);
    commit();
    float out[DIM / 8][4] = {}, rescale[2];
    running run;
    for (int r = 0; r < 2; r++) attention_row_start(a.kind, &run.max[r], &run.sum[r]);
    /* the quad's threads sum apart: only one of them counts softmax-1's e^0 */
    if (threadIdx.x % 4) run.sum[0] = run.sum[1] = 0;

    for (int j = 0; j < n_keys; j += TILE) {
        load_tile<DIM>(v_tile, v + j * a.kv_stride, a.kv_stride, n_keys - j, a.head_dim);
        commit();
        wait<1>();
        __syncthreads();
        float s[TILE / 8][4] = {};
        scores<DIM>(s, q_tile + threadIdx.x / 32 * 16 * LD * 2, k_tile);
        __syncthreads();
        if (j + TILE < n_keys)
            load_tile<DIM>(k_tile, k + (j + TILE) * a.kv_stride, a.kv_stride, n_keys - j - TILE,
                           a.head_dim);
        commit();
        softmax(s, run, rescale, past + first + row - j, a.scale * CUDART_L2E_F, relu);
#pragma unroll
        for (int n = 0; n < DIM / 8; n++)
            for (int e = 0; e < 4; e++) out[n][e] *= rescale[e / 2];
        wait<1>();
        __syncthreads();
        add_values<DIM>(out, s, v_tile);
        __syncthreads();
    }
    float factor[2];
    for (int r = 0; r < 2; r++) {
        float sum = run.sum[r];
        sum += __shfl_xor_sync(~0u, sum, 1);
        sum += __shfl_xor_sync(~0u, sum, 2);
        float divisor = attention_row_divisor(a.kind, sum, past + first + row + 8 * r + 1);
        factor[r] = divisor > 0 ? (relu ? a.scale : 1) / divisor : 0;
    }
    store<DIM>(out, factor, smem, (__nv_bfloat16 *)a.out + token * a.out_stride + h * a.head_dim,
               a.out_stride, n_rows, a.head_dim);
}

template <int DIM> qb_status launch(const qb_cuda_attention_args *args, qb_cuda_stream stream)
{
    QB_CUDA_TRY(cudaFuncSetAttribute(attention<DIM>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                     smem_bytes<DIM>()));
    dim3 grid((unsigned)((args->n_q + TILE - 1) / TILE), (unsigned)args->n_heads,
              (unsigned)args->batch);
    attention<DIM><<<grid, THREADS, smem_bytes<DIM>(), stream>>>(attention_params_of(args));
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
