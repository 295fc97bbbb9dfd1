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
                                            const product_work &work, const output &out)
{
    if (l.kind == QB_CUDA_LINEAR_S8)
        product<QB_CUDA_LINEAR_S8, NT>(c, l, work, out);
    else if (l.kind == QB_CUDA_LINEAR_U4 && l.group)
        product<LINEAR_U4_GROUPS, NT>(c, l, work, out);
    else if (l.kind == QB_CUDA_LINEAR_U4)
        product<QB_CUDA_LINEAR_U4, NT>(c, l, work, out);
    else
        product<QB_CUDA_LINEAR_FLOAT, NT>(c, l, work, out);
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

/* ---- the clerk: a warp that works ahead ---- */

/* Asks for a layer's scales, biases and gains: the weights in between push them out of L2. Its own
 * channels' for a block, the gains in turn with the other blocks. */
__device__ __forceinline__ void prefetch(const void *at)
{
    asm volatile("prefetch.global.L2 [%0];" ::"l"(at));
}

__device__ __forceinline__ void prefetch_constants(const qb__decode_params &p,
                                                   const qb__decode_layer &layer,
                                                   const product_work *work, int lane)
{
    for (int j = 0; j < 4; j++) {
        const qb__decode_linear &l = layer.linear[j];
        const tile_range t = {work[j].first, work[j].count};
        if (lane >= (int)t.count) continue;
        const uint32_t n = tile_at(l, t, lane) * TILE;
        if (l.w_scale && !l.group) prefetch(l.w_scale + n);
        if (l.zero_point && !l.group) prefetch(l.zero_point + n);
        if (l.bias) prefetch(l.bias + n);
    }
    const uint32_t i = (blockIdx.x + lane * p.n_blocks) * 32; /* 32 floats are a line */
    if (i >= (p.norm == QB_NORM_RMSNORM_SINGLE ? 1 : p.d_model)) return;
    prefetch(layer.norm1_gain + i);
    if (layer.norm1_bias) prefetch(layer.norm1_bias + i);
    if (layer.norm2_gain) prefetch(layer.norm2_gain + i);
    if (layer.norm2_bias) prefetch(layer.norm2_bias + i);
}

/* Puts the descriptions of the layers where the block reads them, one layer ahead. */
__device__ __forceinline__ void run_clerk(const qb__decode_params &p, header *h, int lane)
{
    const int position = *p.position;
    for (uint32_t i = 0; i <= p.n_layers; i++) {
        const uint32_t slot = i & 1;
        if (i >= 2) mbarrier_wait(&h->layer_empty[slot], (i / 2 - 1) & 1);
        const uint32_t *from = (const uint32_t *)(p.layers + i);
        uint32_t *to = (uint32_t *)&h->layer[slot];
        for (uint32_t w = lane; w < sizeof(qb__decode_layer) / 4; w += 32) to[w] = from[w];
        __syncwarp();
        const qb__decode_layer &layer = h->layer[slot];
        if (lane < 4) h->work[slot][lane] = work_of(p, layer.linear[lane]);
        __syncwarp();
        if (lane == 0) mbarrier_arrive(&h->layer_full[slot], 1);
        if (i == p.n_layers) break;
        prefetch_constants(p, layer, h->work[slot], lane);
        prefetch_cache(p, layer, position, lane);
    }
}

/* ---- the phases ---- */

template <int NT> __device__ void compute(context &c)
{
    const qb__decode_params &p = c.p;
    if (p.batch == 1 || blockIdx.x < p.batch) embed_row(c, p.batch == 1 ? 0 : (int)blockIdx.x);
    consumers_sync();
    const uint32_t n_products = 4 * p.n_layers + 1;
    for (uint32_t i = 0; i < n_products; i++) {
        const place at = {(int)(i / 4), (int)(i & 3), i + 1 == n_products};
        const qb__decode_layer &layer = c.h->layer[at.layer & 1];
        const qb__decode_linear &l = layer.linear[at.which];
        const qb__decode_linear &before =
            at.which == 2 || at.layer == 0 /* nothing is pending: any description that is there */
                ? layer.linear[1]
                : c.h->layer[(at.layer + 1) & 1].linear[3];
        if (at.which == 0) mbarrier_wait(&c.h->layer_full[at.layer & 1], (at.layer / 2) & 1);
        forget(c);
        stage(c, at, l, layer, before);
        forget(c);
        if (at.which == 1 && at.layer > 0 && c.tid == 0) /* the layer before is done with */
            mbarrier_arrive(&c.h->layer_empty[(at.layer + 1) & 1], 1);
        any_product<NT>(c, l, c.h->work[at.layer & 1][at.which], output_of(p, at, layer));
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
        for (int i = 0; i < 2; i++) {
            mbarrier_init(&h->layer_full[i], 1);
            mbarrier_init(&h->layer_empty[i], 1);
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
        for (int i = 0; i < 4; i++) h->seg_max[i] = 0;
    }
    __syncthreads();
    if (threadIdx.x >= N_CONSUMERS + 32) {
        run_clerk(p, h, threadIdx.x & 31);
        return;
    }
    if (threadIdx.x >= N_CONSUMERS) {
        stream_weights(p, h, smem, threadIdx.x & 31);
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
