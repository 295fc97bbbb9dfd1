/* kernels/cuda/decode_chain_attention.cuh - attention of the decode chain: a cluster of blocks
 * takes a head, a block a part of its keys. The parts meet in distributed shared memory: each block
 * sums some channels of the head over all parts. */
#ifndef QB_KERNELS_CUDA_DECODE_CHAIN_ATTENTION_CUH
#define QB_KERNELS_CUDA_DECODE_CHAIN_ATTENTION_CUH

#include "kernels/cuda/decode_attention.cuh"
#include "kernels/cuda/decode_chain.h"
#include "kernels/cuda/decode_stage.cuh"

namespace qb_chain
{

using namespace qb_decode;

struct shares { /* of the block's channels, from every part */
    uint64_t received;
    float2 most_sum[QB__CHAIN_MAX_SPLITS];
    float y[256];
};
static_assert(sizeof(shares) <= QB__CHAIN_SHARE_BYTES, "the launch reserves them");

/* All threads of the cluster's blocks: they have started, and what they initialised is seen. The
 * relaxed arrival leaves out a fence of the whole GPU. */
__device__ __forceinline__ void cluster_start()
{
    __syncwarp();
    asm volatile("barrier.cluster.arrive.relaxed.aligned;\n"
                 "barrier.cluster.wait.acquire.aligned;" ::
                     : "memory");
}

/* The address of `p` in the shared memory of the cluster's block `rank`. */
__device__ __forceinline__ uint32_t remote_address(const void *p, int rank)
{
    uint32_t at;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(at) : "r"(shared_address(p)), "r"(rank));
    return at;
}

/* Sends 4 bytes to `to` in block `rank`; they count for its barrier. */
__device__ __forceinline__ void send(const void *to, uint32_t v, const uint64_t *barrier, int rank)
{
    asm volatile(
        "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.u32 [%0], %1, [%2];" ::"r"(
            remote_address(to, rank)),
        "r"(v), "r"(remote_address(barrier, rank))
        : "memory");
}

__device__ __forceinline__ void send(const void *to, float v, const uint64_t *barrier, int rank)
{
    send(to, __float_as_uint(v), barrier, rank);
}

__device__ __forceinline__ void send(const void *to, int v, const uint64_t *barrier, int rank)
{
    send(to, (uint32_t)v, barrier, rank);
}

/* A thread's 4 values of q, or of the new token's k or v; in: NULL = none. */
struct head_place {
    const float *in;
    uint16_t *cache, *copy; /* of k and v: where they are kept, and in shared memory; q: NULL */
    int d;
};

__device__ __forceinline__ head_place place_head(const context &c, const qb__decode_layer &layer,
                                                 const unit &u)
{
    const qb__decode_params &p = c.p;
    const int width = (int)p.head_dim, quads = width / 4, group = divide(u.head, p.by_repeat);
    const int which = (c.tid >= quads) + (c.tid >= 2 * quads);
    const bool last = u.first <= c.position && c.position < u.end;
    head_place at = {NULL, NULL, NULL, (c.tid - which * quads) * 4};
    if (c.tid >= (last ? 3 : 1) * quads) return at;
    int column = u.head * width;
    if (which) column = ((int)p.n_heads + group + (which == 2 ? (int)p.n_kv_heads : 0)) * width;
    at.in = p.qkv + column + at.d;
    if (which == 0) return at;
    at.copy = (which == 1 ? c.h->new_k : c.h->new_v) + at.d;
    if (u.head == group * (int)p.repeat)
        at.cache = (uint16_t *)(which == 1 ? layer.k_cache : layer.v_cache) +
                   cache_at(p, u, c.position) + at.d;
    return at;
}

/* load_head of neither rotated nor requantised heads. */
__device__ __forceinline__ void load_plain_head(const context &c, const head_place &at, float scale)
{
    if (at.in) {
        float v[4];
        load4_l2(at.in, 0, v);
        if (!at.copy) {
#pragma unroll
            for (int e = 0; e < 4; e++) c.h->q[at.d + e] = v[e] * scale;
        } else {
            const uint2 rounded = make_uint2(pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]));
            *(uint2 *)at.copy = rounded;
            if (at.cache) *(uint2 *)at.cache = rounded;
        }
    }
    consumers_sync();
}

/* Before the cluster starts: what the block is going to receive. */
__device__ __forceinline__ void expect_parts(const context &c, shares *s)
{
    const uint32_t splits = c.p.n_splits;
    if (c.tid != 0) return;
    mbarrier_init(&s->received, 1);
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    mbarrier_expect(&s->received, c.p.head_dim * 4 + splits * 8);
}

/* The sum of the block's warps, to the blocks whose channels it has. */
__device__ __forceinline__ void send_parts(const context &c, shares *s, int rank)
{
    const qb__decode_params &p = c.p;
    const int width = (int)p.head_dim, slice = divide(width, p.by_splits);
    const float *acc = partial_sums(c.smem), *most = acc + N_WARPS * 256, *sum = most + N_WARPS;
    if (c.tid >= width) return;
    float all = -INFINITY, y = 0.0f, total = 0.0f;
#pragma unroll
    for (int w = 0; w < N_WARPS; w++) all = fmaxf(all, most[w]);
#pragma unroll
    for (int w = 0; w < N_WARPS; w++) {
        const float f = part_weight(p.softmax, most[w], all);
        total += f * sum[w];
        y += f * acc[w * width + c.tid];
    }
    const int owner = c.tid / slice;
    send(&s->y[rank * slice + c.tid - owner * slice], y, &s->received, owner);
    if (c.tid < (int)p.n_splits) {
        send(&s->most_sum[rank].x, all, &s->received, c.tid);
        send(&s->most_sum[rank].y, total, &s->received, c.tid);
    }
}

/* The block's channels of the head, from all parts. */
__device__ __forceinline__ void sum_parts(const context &c, shares *s, int head, int rank)
{
    const qb__decode_params &p = c.p;
    const int width = (int)p.head_dim, slice = divide(width, p.by_splits);
    if (c.tid >= slice) return;
    mbarrier_wait(&s->received, 0);
    float most = p.softmax == QB_SOFTMAX1 ? 0.0f : -INFINITY;
    for (int i = 0; i < (int)p.n_splits; i++) most = fmaxf(most, s->most_sum[i].x);
    float total = p.softmax == QB_SOFTMAX1 ? exp2_fast(-most) : 0.0f, y = 0.0f;
    for (int i = 0; i < (int)p.n_splits; i++) {
        const float f = part_weight(p.softmax, s->most_sum[i].x, most);
        total += f * s->most_sum[i].y;
        y += f * s->y[i * slice + c.tid];
    }
    if (p.softmax != QB_SOFTMAX_RELU) y = total > 0.0f ? __fdividef(y, total) : 0.0f;
    p.att[head * width + rank * slice + c.tid] = y;
}

} // namespace qb_chain
#endif
