/* kernels/cuda/gemm_stream_sm90.cu - products of a few tokens (gemm_stream.cuh) with bf16 and 4-bit
 * weights. */
#include "kernels/cuda/gemm_float_internal.h"
#include "kernels/cuda/gemm_stream.cuh"
#include "kernels/cuda/gemm_u4_internal.h"

#include <algorithm>

namespace
{

using namespace gemm_stream;

/* What a thread needs to finish its item, asked for before it has the sums. */
struct kept_values {
    float scale[4], bias[4], residual[4];
};

/* Of 4 channels that may reach past the last. */
__device__ __forceinline__ void keep_vector(const float *from, int n, int width, float (&to)[4])
{
    if (n + 4 <= width && (uintptr_t)(from + n) % 16 == 0) {
        const float4 v = __ldcg((const float4 *)(from + n));
        to[0] = v.x, to[1] = v.y, to[2] = v.z, to[3] = v.w;
        return;
    }
#pragma unroll
    for (int i = 0; i < 4; i++) to[i] = n + i < width ? __ldcg(from + n + i) : 0.0f;
}

template <class Call>
__device__ __forceinline__ void keep_residual(const Call &c, const plan &p, const item &to,
                                              kept_values &k)
{
    if (to.mine && c.residual)
        keep_vector(c.residual + to.token * c.residual_stride, to.n, p.n, k.residual);
}

/* Stores z as the float outputs want it. */
template <class Call>
__device__ __forceinline__ void put_floats(const Call &c, const plan &p, const item &to,
                                           const kept_values &k, const float (&z)[4])
{
    const int n_inside = p.n - to.n;
    if (c.residual) {
        float *r = c.residual + to.token * c.residual_stride + to.n;
        float sum[4];
#pragma unroll
        for (int i = 0; i < 4; i++) sum[i] = __fadd_rn(k.residual[i], z[i]);
        if (n_inside >= 4)
            *(float4 *)r = make_float4(sum[0], sum[1], sum[2], sum[3]);
        else
            for (int i = 0; i < 4; i++)
                if (i < n_inside) r[i] = sum[i];
    }
    if (!c.y) return;
    const size_t at = to.token * c.y_stride + to.n;
    if (c.out == QB_CUDA_F32) {
        float *y = (float *)c.y + at;
        if (n_inside >= 4)
            *(float4 *)y = make_float4(z[0], z[1], z[2], z[3]);
        else
            for (int i = 0; i < 4; i++)
                if (i < n_inside) y[i] = z[i];
    }
    if (c.out == QB_CUDA_BF16) {
        __nv_bfloat16 *y = (__nv_bfloat16 *)c.y + at;
        __nv_bfloat162 pair[2] = {__floats2bfloat162_rn(z[0], z[1]),
                                  __floats2bfloat162_rn(z[2], z[3])};
        if (n_inside >= 4)
            *(uint2 *)y = *(const uint2 *)pair;
        else
            for (int i = 0; i < 4; i++)
                if (i < n_inside) y[i] = __float2bfloat16_rn(z[i]);
    }
}

/* A lane's fragments of a unit of rows: two products that share out its 16 bytes. */
template <class T, int TOK8, class Mma>
__device__ __forceinline__ void multiply_rows(uint32_t w, int unit, int lane,
                                              const row_unit<TOK8> &u, T (&acc)[TOK8][4],
                                              const Mma &mma)
{
    w += lane / 4 * rows::PITCH + unit * 64 + lane % 4 * 16;
    const uint4 a = load_shared(w), b = load_shared(w + 8 * rows::PITCH);
    const uint32_t low[4] = {a.x, b.x, a.y, b.y}, high[4] = {a.z, b.z, a.w, b.w};
#pragma unroll
    for (int i = 0; i < TOK8; i++) {
        mma(acc[i], low, u.x[i].x, u.x[i].y);
        mma(acc[i], high, u.x[i].z, u.x[i].w);
    }
}

/* ---- weights ---- */

/* What becomes of a sum. */
struct float_call {
    const float *scale; /* (n) or NULL */
    const float *bias;
    const int16_t *zero_point;
    qb_epilogue_act act;
    qb_cuda_dtype out;
    void *y;
    size_t y_stride;
    float *residual;
    size_t residual_stride;
};

struct float_outputs {
    using sum = float;
    using call = float_call;
    using kept = kept_values;
    __device__ static float of_bits(uint32_t v)
    {
        return __uint_as_float(v);
    }
    __device__ static uint32_t bits_of(float v)
    {
        return __float_as_uint(v);
    }
    __device__ static void keep_constants(const call &c, const plan &p, const item &to, kept &k)
    {
#pragma unroll
        for (int i = 0; i < 4; i++) k.scale[i] = 1.0f, k.bias[i] = 0.0f;
        if (!to.mine) return;
        if (c.scale) keep_vector(c.scale, to.n, p.n, k.scale);
        if (c.bias) keep_vector(c.bias, to.n, p.n, k.bias);
    }
    __device__ static void keep(const call &c, const plan &p, const item &to, kept &k)
    {
        keep_residual(c, p, to, k);
    }
    __device__ static void put(const call &c, const plan &p, const kept &k, const item &to,
                               const float (&acc)[4])
    {
        float z[4];
        if (!to.mine) return;
#pragma unroll
        for (int i = 0; i < 4; i++) z[i] = qb__u4_act(acc[i] * k.scale[i] + k.bias[i], c.act);
        put_floats(c, p, to, k, z);
    }
};

struct bf16_weights : rows, float_outputs {
    struct channels {
    };
    __device__ static void load_channels(const call &, int, int, channels &)
    {
    }
    template <int TOK8>
    __device__ static void multiply(uint32_t w, int unit, int lane, const channels &,
                                    const row_unit<TOK8> &u, float (&acc)[TOK8][4])
    {
        multiply_rows(w, unit, lane, u, acc,
                      [](float *d, const uint32_t *a, uint32_t b0, uint32_t b1) {
                          qb__mma_bf16(d, a, b0, b1);
                      });
    }
};

struct u4_weights : tiles, float_outputs {
    struct channels {
        uint32_t zero[2]; /* of rows lane / 4 and 8 more, as pairs */
    };
    __device__ static void load_channels(const call &c, int n, int lane, channels &to)
    {
        uint32_t zero[4];
        qb__u4_zeros_by_output(c.zero_point, n + lane / 4, zero);
        to.zero[0] = zero[0], to.zero[1] = zero[1];
    }
    template <int TOK8>
    __device__ static void multiply(uint32_t w, int unit, int lane, const channels &ch,
                                    const tile_unit<TOK8> &u, float (&acc)[TOK8][4])
    {
        const uint4 words = load_shared(w + unit * 512 + lane * 16);
        const uint32_t word[4] = {words.x, words.y, words.z, words.w};
        const uint32_t zero[4] = {ch.zero[0], ch.zero[1], ch.zero[0], ch.zero[1]};
#pragma unroll
        for (int j = 0; j < 4; j++) {
            uint32_t a[4];
            qb__u4_fragment(word[j], zero, a);
#pragma unroll
            for (int i = 0; i < TOK8; i++)
                qb__mma_bf16(acc[i], a, u.x[i][2 * j], u.x[i][2 * j + 1]);
        }
    }
};

/* ---- launch ---- */

/* Blocks of two kernels fit on a multiprocessor. */
enum { MOST_BYTES = 112 << 10, MOST_M = 16 };

/* What a block and an exchange take besides its bytes, as bytes. */
enum { BLOCK_COST = 8 << 10, EXCHANGE_COST = 16 << 10 };

struct device {
    int n_sms, index;
};

qb_status ask_device(device *d)
{
    QB_CUDA_TRY(cudaGetDevice(&d->index));
    QB_CUDA_TRY(cudaDeviceGetAttribute(&d->n_sms, cudaDevAttrMultiProcessorCount, d->index));
    return QB_OK;
}

/* Bytes that the busiest multiprocessor moves. It does not depend on the number of tokens, so that
 * a token's sums do not either. */
template <class F> long cost_of(const plan &p, const device &d, int block_groups, int split)
{
    const int n_blocks = (p.n_groups + block_groups - 1) / block_groups * split;
    const long units = (p.n_units + split - 1) / split, turns = (n_blocks + d.n_sms - 1) / d.n_sms,
               unit_bytes = block_groups * F::UNIT_BYTES + MOST_M * F::X_UNIT;
    return turns * (units * unit_bytes + BLOCK_COST) + (split > 1 ? EXCHANGE_COST : 0);
}

/* Fills in how the work is cut. */
template <class F> int make_plan(plan &p, const device &d)
{
    long best = -1;
    for (int split = 1; split <= MOST_SPLIT; split *= 2)
        for (int groups = 1; groups <= MOST_GROUPS; groups++) {
            if (split > 1 && p.n_units / split < 2 * WARPS) continue;
            const long cost = cost_of<F>(p, d, groups, split);
            if (best >= 0 && cost >= best) continue;
            best = cost, p.block_groups = groups, p.split = split;
        }
    const int tokens = p.m <= 8 ? 8 : 16, groups = p.block_groups <= 2 ? p.block_groups : 4;
    const int chunks = (((p.n_units + p.split - 1) / p.split + CHUNK - 1) / CHUNK) * p.block_groups;
    const int received = p.split > 1 ? groups * tokens * 64 : 0,
              sums = WARPS * groups * tokens * ROW * 4;
    p.n_stages = std::min<int>(std::min<int>(chunks, MOST_STAGES),
                               (MOST_BYTES - received - 1024) / F::STAGE_BYTES);
    p.received_at = std::max<int>(p.n_stages * F::STAGE_BYTES, sums);
    p.bytes = p.received_at + received;
    return (p.n_groups + p.block_groups - 1) / p.block_groups * p.split;
}

template <class F, int TOK8, int GROUPS>
qb_status launch(const plan &p, const typename F::call &c, int n_blocks, qb_cuda_stream stream)
{
    QB_CUDA_TRY(cudaFuncSetAttribute(gemm_stream::stream<F, TOK8, GROUPS>,
                                     cudaFuncAttributeMaxDynamicSharedMemorySize, MOST_BYTES));
    cudaLaunchAttribute attributes[2] = {};
    attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[0].val.programmaticStreamSerializationAllowed = 1;
    attributes[1].id = cudaLaunchAttributeClusterDimension;
    attributes[1].val.clusterDim.x = (unsigned)p.split;
    attributes[1].val.clusterDim.y = attributes[1].val.clusterDim.z = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3((unsigned)n_blocks), config.blockDim = dim3(THREADS + 32);
    config.dynamicSmemBytes = (size_t)p.bytes, config.stream = stream;
    config.attrs = attributes, config.numAttrs = p.split > 1 ? 2 : 1;
    QB_CUDA_TRY(cudaLaunchKernelEx(&config, gemm_stream::stream<F, TOK8, GROUPS>, p, c));
    return QB_OK;
}

template <class F, int TOK8>
qb_status launch_groups(const plan &p, const typename F::call &c, int n_blocks,
                        qb_cuda_stream stream)
{
    if (p.block_groups == 1) return launch<F, TOK8, 1>(p, c, n_blocks, stream);
    if (p.block_groups == 2) return launch<F, TOK8, 2>(p, c, n_blocks, stream);
    return launch<F, TOK8, 4>(p, c, n_blocks, stream);
}

template <class F> qb_status run(plan p, const typename F::call &c, qb_cuda_stream stream)
{
    device d;
    QB_TRY(ask_device(&d));
    const int n_blocks = make_plan<F>(p, d);
    if (p.m <= 8) return launch_groups<F, 1>(p, c, n_blocks, stream);
    return launch_groups<F, 2>(p, c, n_blocks, stream);
}

const char *refuse(const plan &p)
{
    if (p.m > MOST_M) return "more than 16 tokens";
    if (((uintptr_t)p.w | (uintptr_t)p.x | p.w_stride | p.x_stride) % 16) return "not aligned";
    return NULL;
}

/* Outputs are stored four columns at a time. */
const char *refuse_outputs(const void *y, size_t y_stride, const float *residual,
                           size_t residual_stride)
{
    return ((uintptr_t)y | (uintptr_t)residual) % 16 || (y_stride | residual_stride) % 4
               ? "outputs are not aligned"
               : NULL;
}

plan plan_of(const qb_cuda_gemm_float_args *a)
{
    plan p = {};
    p.w = (const char *)a->w, p.x = (const char *)a->x;
    p.w_stride = a->w_stride * 2, p.x_stride = a->x_stride * 2;
    p.m = (int)a->m, p.n = (int)a->n, p.k = (int)a->k;
    p.n_groups = (p.n + 15) / 16, p.n_units = (int)(a->k + 31) / 32;
    return p;
}

plan plan_of(const qb_cuda_gemm_u4_args *a)
{
    plan p = {};
    p.w = (const char *)a->w->codes, p.x = (const char *)a->x;
    p.x_stride = a->x_stride * 2;
    p.m = (int)a->m, p.n = (int)a->w->n, p.k = (int)a->w->k;
    p.n_groups = (p.n + 15) / 16, p.n_units = (int)(a->w->k_pad / 64);
    return p;
}

template <class Args> float_call call_of(const Args *a)
{
    float_call c = {};
    c.bias = a->bias, c.act = a->act, c.out = a->out;
    c.y = a->y, c.y_stride = a->y_stride;
    c.residual = a->residual, c.residual_stride = a->residual_stride;
    return c;
}

template <class Args> const char *refusal_of(const Args *a)
{
    const char *why = refuse(plan_of(a));
    return why ? why : refuse_outputs(a->y, a->y_stride, a->residual, a->residual_stride);
}

} // namespace

/* Larger weights cuBLASLt reads as fast. */
bool qb__cuda_gemm_float_stream_is_slower(const qb_cuda_gemm_float_args *a)
{
    return a->n * a->k * 2 > (size_t)16 << 20;
}

/* gemm_u4/gemv keeps up where there are few tokens or little to read. */
bool qb__gemm_u4_stream_is_slower(const qb_cuda_gemm_u4_args *a)
{
    return a->m <= 4 || a->w->n * a->w->k / 2 < (size_t)2 << 20;
}

const char *qb__cuda_gemm_float_stream_refuse(const qb_cuda_gemm_float_args *a)
{
    if (a->in != QB_CUDA_BF16) return "weights are not bf16";
    return refusal_of(a);
}

qb_status qb__cuda_gemm_float_stream(const qb_cuda_gemm_float_args *a, qb_cuda_stream stream)
{
    return run<bf16_weights>(plan_of(a), call_of(a), stream);
}

const char *qb__gemm_u4_refuse_stream(const qb_cuda_gemm_u4_args *a)
{
    if (a->w->x_zero_point || a->w->n_groups > 1) return "scales of groups or input channels";
    return refusal_of(a);
}

qb_status qb__gemm_u4_stream(const qb_cuda_gemm_u4_args *a, qb_cuda_stream stream)
{
    float_call c = call_of(a);
    c.scale = a->w->scale, c.zero_point = a->w->zero_point;
    return run<u4_weights>(plan_of(a), c, stream);
}
