/* kernels/cuda/decode_sm90.cu - the persistent decode kernel: one block on each SM, 16 warps that
 * compute and one that streams the weights of all layers through a ring in shared memory.
 *
 *     embed | norm1, [qkv] | attention | [o] | norm2, [up] | act, [down] | ... | norm, [head]
 *
 * where | is a barrier of the grid and [ ] a product. The ring fills during the barriers. */
#include "kernels/cuda/decode_attention.cuh"
#include "kernels/cuda/decode_gemm.cuh"

namespace qb_decode
{

/* Raises the maxima of the output to what the block found, once a product. */
__device__ __forceinline__ void flush_max(context &c, const output &out)
{
    if (out.n_max == 0) return;
    consumers_sync();
    if (c.tid < out.n_max) {
        atomicMax(out.max_bits + c.tid, c.h->seg_max[c.tid]);
        c.h->seg_max[c.tid] = 0;
    }
}

struct place { /* of a product in the model */
    int layer, which;
    bool head;
};

__device__ __forceinline__ void store_hidden(context &c, int b, const from_residual &source)
{
    const int d = (int)c.p.d_model;
    if (c.p.batch == 1 && blockIdx.x != 0) return;
    for (int i = c.tid * 4; i < d; i += QB__DECODE_STEP) {
        float v[4];
        source.get(c, i, v);
#pragma unroll
        for (int e = 0; e < 4; e++)
            if (i + e < d) c.p.hidden[(size_t)b * d + i + e] = v[e];
    }
}

/* Stores the row and, for 4-bit weights, each warp's sums of it. */
template <typename S>
__device__ __forceinline__ void stage_row(context &c, const qb__decode_linear &l, int b,
                                          const S &source, bool max_known)
{
    const qb__decode_params &p = c.p;
    const bool alone = p.batch == 1;
    float2 sums;
    char *row = alone ? c.smem + p.x_off : p.staged + (size_t)b * p.staged_stride;
    const float scale = store_row(c, l, source, max_known, row, sums);
    if (c.tid == 0) *(alone ? c.h->x_scale : p.staged_scale + b) = scale;
    if (l.kind != QB_CUDA_LINEAR_U4) return;
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
        sums.x += __shfl_xor_sync(0xffffffffu, sums.x, step);
        sums.y += __shfl_xor_sync(0xffffffffu, sums.y, step);
    }
    float2 *parts = alone ? c.h->x_sum[0] : (float2 *)p.staged_sums + b * N_WARPS;
    if (c.lane == 0) parts[c.warp] = sums;
}

/* What stands before a product. `before`: the layer whose output joins the residual stream. */
__device__ __forceinline__ void stage(context &c, const place &at, const qb__decode_linear &l,
                                      const qb__decode_layer &layer,
                                      const qb__decode_linear &before)
{
    const qb__decode_params &p = c.p;
    const bool alone = p.batch == 1;
    const int b = alone ? 0 : (int)blockIdx.x;
    if (b < (int)p.batch) {
        if (at.head || at.which == 0 || at.which == 2) {
            const bool second = !at.head && at.which == 2;
            const float *pending = second ? p.o : at.layer > 0 ? p.down : NULL;
            const from_residual source =
                add_pending(c, pending ? pending + (size_t)b * p.o_stride : NULL, before,
                            second ? layer.norm2_gain : layer.norm1_gain,
                            second ? layer.norm2_bias : layer.norm1_bias);
            if (at.head) store_hidden(c, b, source);
            stage_row(c, l, b, source, false);
        } else if (at.which == 1) {
            const size_t units = (size_t)b * p.n_heads * p.n_splits;
            const from_attention source = {p.att + units * p.head_dim, p.att_ml + units * 2};
            stage_row(c, l, b, source, false);
        } else {
            const requantizer finish(p, layer.linear[2]);
            const from_up source = {p.up + (size_t)b * p.up_stride, finish};
            stage_row(c, l, b, source, p.max_in_epilogue && alone);
        }
    }
    if (alone) {
        consumers_sync();
    } else {
        grid_arrive(c);
        grid_wait(c);
    }
}

template <int NT>
__device__ __forceinline__ void any_product(context &c, const qb__decode_linear &l,
                                            const output &out)
{
    if (l.kind == QB_CUDA_LINEAR_S8)
        product<QB_CUDA_LINEAR_S8, NT>(c, l, out);
    else if (l.kind == QB_CUDA_LINEAR_U4)
        product<QB_CUDA_LINEAR_U4, NT>(c, l, out);
    else
        product<QB_CUDA_LINEAR_FLOAT, NT>(c, l, out);
    flush_max(c, out);
}

__device__ __forceinline__ output output_of(const qb__decode_params &p, const place &at,
                                            const qb__decode_layer &layer)
{
    const qb__decode_linear &l = layer.linear[at.which];
    output out = {p.logits, p.logits_stride, false, 0, p.max_bits + l.slot};
    if (l.requant == QB_CUDA_REQUANT_DYNAMIC) out.n_max = l.seg_n;
    if (at.head) return out;
    out.y = at.which == 0 ? p.qkv : at.which == 1 ? p.o : at.which == 2 ? p.up : p.down;
    out.stride = at.which == 0 ? p.qkv_stride : at.which == 2 ? p.up_stride : p.o_stride;
    if (at.which == 2 && p.act_in_epilogue) {
        out.activate = true;
        if (p.max_in_epilogue && p.batch == 1) {
            out.n_max = 1;
            out.max_bits = p.max_bits + layer.linear[3].slot + QB_CUDA_SEGMENTS;
        }
    }
    return out;
}

/* A head whose logits are requantised: each thread changes the ones that it wrote. */
__device__ __forceinline__ void finish_logits(context &c, const qb__decode_linear &head)
{
    const qb__decode_params &p = c.p;
    if (head.requant == QB_CUDA_REQUANT_NONE) return;
    grid_arrive(c);
    grid_wait(c);
    const requantizer finish(p, head);
    const tile_range t = tiles_of(p, head);
    for (uint32_t i = c.tid; i < t.count * TILE * p.batch; i += N_CONSUMERS) {
        const uint32_t n = t.first * TILE + i % (t.count * TILE), b = i / (t.count * TILE);
        if (n >= head.n) continue;
        float *y = p.logits + (size_t)b * p.logits_stride + n;
        *y = finish.one(__ldcg(y), (int)n);
    }
}

/* The last block to end clears the counters for the next launch. */
__device__ __forceinline__ void leave(context &c)
{
    const qb__decode_params &p = c.p;
    consumers_sync();
    if (c.tid == 0) c.h->last = atomicAdd(p.counters + 64, 1) == p.n_blocks - 1;
    consumers_sync();
    if (!c.h->last) return;
    for (uint32_t i = c.tid; i < p.n_max_bits; i += N_CONSUMERS) p.max_bits[i] = 0;
    if (c.tid < 3) p.counters[32 * c.tid] = 0;
}

/* Descriptions of layer i to shared memory, while the layer before is at work. */
__device__ __forceinline__ void fetch_layer(context &c, uint32_t i)
{
    if (i > c.p.n_layers) return;
    const uint32_t *from = (const uint32_t *)(c.p.layers + i);
    uint32_t *to = (uint32_t *)&c.h->layer[i & 1];
    for (uint32_t w = c.tid; w < sizeof(qb__decode_layer) / 4; w += N_CONSUMERS) to[w] = from[w];
}

/* Asks for the next layer's scales, biases and gains: the weights in between push them out of L2,
 * and a block would wait for each. A warp takes one array: of the block's own channels, or of all
 * in turn with the other blocks. */
__device__ __forceinline__ void prefetch_constants(context &c, const qb__decode_layer &layer)
{
    const float *at = NULL;
    if (c.warp < 8) {
        const qb__decode_linear &l = layer.linear[c.warp & 3];
        const tile_range t = tiles_of(c.p, l);
        const float *from = c.warp < 4 ? l.w_scale : l.bias;
        if (from && c.lane < (int)t.count) at = from + tile_at(l, t, c.lane) * TILE;
    } else if (c.warp < 12 && c.p.norm != QB_NORM_RMSNORM_SINGLE) {
        const float *const all[] = {layer.norm1_gain, layer.norm1_bias, layer.norm2_gain,
                                    layer.norm2_bias};
        const uint32_t i = (blockIdx.x + c.lane * c.p.n_blocks) * 32; /* 32 floats are a line */
        if (all[c.warp - 8] && i < c.p.d_model) at = all[c.warp - 8] + i;
    }
    if (at) asm volatile("prefetch.global.L2 [%0];" ::"l"(at));
}

template <int NT> __device__ void compute(context &c)
{
    const qb__decode_params &p = c.p;
    fetch_layer(c, 0);
    if (p.batch == 1 || blockIdx.x < p.batch) embed_row(c, p.batch == 1 ? 0 : (int)blockIdx.x);
    consumers_sync();
    const uint32_t n_products = 4 * p.n_layers + 1;
    for (uint32_t i = 0; i < n_products; i++) {
        const place at = {(int)(i / 4), (int)(i & 3), i + 1 == n_products};
        const qb__decode_layer &layer = c.h->layer[at.layer & 1];
        const qb__decode_linear &l = layer.linear[at.which];
        const qb__decode_linear &before =
            at.which == 2 ? layer.linear[1] : c.h->layer[(at.layer + 1) & 1].linear[3];
        forget(c);
        stage(c, at, l, layer, before);
        forget(c);
        if (at.which == 1) fetch_layer(c, at.layer + 1);
        if (at.which == 3) prefetch_constants(c, c.h->layer[(at.layer + 1) & 1]);
        if (at.which == 0 && !at.head) prefetch_cache(c, layer);
        any_product<NT>(c, l, output_of(p, at, layer));
        if (at.head) {
            finish_logits(c, l);
            break;
        }
        forget(c);
        grid_arrive(c);
        some_keys ahead;
        if (at.which == 0) ahead = load_ahead(c, layer);
        grid_wait(c);
        if (at.which == 0) {
            attention(c, layer, ahead);
            grid_arrive(c);
            grid_wait(c);
        }
    }
    leave(c);
}

template <int NT>
__global__ void __launch_bounds__(QB__DECODE_THREADS, 1)
    decode_step(const __grid_constant__ qb__decode_params p)
{
    extern __shared__ __align__(128) char smem[];
    header *h = (header *)smem;
    if (threadIdx.x == 0) {
        for (uint32_t i = 0; i < p.n_stages; i++) {
            mbarrier_init(&h->full[i], 1);
            mbarrier_init(&h->empty[i], N_WARPS);
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
        for (int i = 0; i < 4; i++) h->seg_max[i] = 0;
    }
    __syncthreads();
    if (threadIdx.x >= N_CONSUMERS) {
        stream_weights(p, h, smem, threadIdx.x - N_CONSUMERS);
        return;
    }
    context c = {p,
                 h,
                 smem,
                 (int)threadIdx.x,
                 (int)threadIdx.x / 32,
                 (int)threadIdx.x % 32,
                 *p.position,
                 0,
                 0,
                 0,
                 0,
                 0.0f};
    compute<NT>(c);
}

} // namespace qb_decode

extern "C" qb_status qb__decode_limits_sm90(qb__decode_limits *out)
{
    int device, n_sms, smem;
    QB_CUDA_TRY(cudaGetDevice(&device));
    QB_CUDA_TRY(cudaDeviceGetAttribute(&n_sms, cudaDevAttrMultiProcessorCount, device));
    QB_CUDA_TRY(cudaDeviceGetAttribute(&smem, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
    *out = {};
    out->n_blocks = (uint32_t)n_sms;
    out->smem_bytes = (uint32_t)smem;
    /* once, and not while a stream is captured */
    QB_CUDA_TRY(cudaFuncSetAttribute(qb_decode::decode_step<1>,
                                     cudaFuncAttributeMaxDynamicSharedMemorySize, smem));
    QB_CUDA_TRY(cudaFuncSetAttribute(qb_decode::decode_step<2>,
                                     cudaFuncAttributeMaxDynamicSharedMemorySize, smem));
    return QB_OK;
}

extern "C" qb_status qb__decode_launch_sm90(const qb__decode_params *params, qb_cuda_stream stream)
{
    void *args[] = {(void *)params};
    const void *kernel = params->batch > 8 ? (const void *)qb_decode::decode_step<2>
                                           : (const void *)qb_decode::decode_step<1>;
    QB_CUDA_TRY(cudaLaunchCooperativeKernel(kernel, dim3(params->n_blocks),
                                            dim3(QB__DECODE_THREADS), args, params->smem_bytes,
                                            stream));
    return QB_OK;
}
