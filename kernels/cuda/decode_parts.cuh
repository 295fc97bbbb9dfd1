/* kernels/cuda/decode_parts.cuh - what the phases of the persistent decode kernel share: its shared
 * memory, barriers of the grid and of the block, the ring of weight chunks, block-wide reductions.
 */
#ifndef QB_KERNELS_CUDA_DECODE_PARTS_CUH
#define QB_KERNELS_CUDA_DECODE_PARTS_CUH

#include "kernels/cuda/decode_internal.h"

#include <cuda_bf16.h>
#include <cuda_runtime.h>

namespace qb_decode
{

constexpr int N_WARPS = QB__DECODE_WARPS, N_CONSUMERS = QB__DECODE_CONSUMERS;
constexpr int TILE = QB__DECODE_TILE, FLUSH = QB__DECODE_FLUSH;
constexpr int GROUP_WARPS = N_WARPS / FLUSH;    /* that share a tile */
constexpr long long SPIN_CLOCKS = 4000000000ll; /* about 2 s: a lost signal ends in a fault */

/* The block's share of a product, worked out ahead by the clerk. */
struct product_work {
    uint32_t first, count; /* tiles */
    uint32_t pass, pitch;  /* chunks between two loads of staged rows, bytes of a row */
};

/* Starts shared memory. */
struct header {
    uint64_t full[QB__DECODE_MAX_STAGES], empty[QB__DECODE_MAX_STAGES];
    alignas(16) float2 reduce[4][N_WARPS];
    float x_scale[16];
    float2 x_sum[16][N_WARPS]; /* of a staged row, and its correction; a warp's part each */
    uint32_t seg_max[4], last;
    alignas(16) float q[256];                    /* of the head that the block works on */
    alignas(16) uint16_t new_k[256], new_v[256]; /* of the new token */
    alignas(16) qb__decode_layer layer[2];
    product_work work[2][4];
    uint64_t layer_full[2], layer_empty[2];
};
static_assert(sizeof(header) <= QB__DECODE_HEADER_BYTES, "the plan reserves them");

__device__ __forceinline__ float *partial_sums(char *smem)
{
    return (float *)(smem + QB__DECODE_HEADER_BYTES);
}

struct context { /* of a consumer thread */
    const qb__decode_params &p;
    header *h;
    char *smem;
    int tid, warp, lane;
    int position;
    uint32_t grid_epoch, rows_epoch, reduce_turn;
    uint32_t stage; /* chunks consumed by the block so far */
    float mean;     /* of the row at the norm before; near this one's */
};

/* Hides where the thread's number comes from: what a phase derives from it is then computed there,
 * and does not take a register, or worse a word of local memory, through all other phases. */
__device__ __forceinline__ void forget(context &c)
{
    asm volatile("" : "+r"(c.tid));
    c.warp = c.tid >> 5, c.lane = c.tid & 31;
}

__device__ __forceinline__ uint32_t shared_address(const void *p)
{
    return (uint32_t)__cvta_generic_to_shared(p);
}

__device__ __forceinline__ void mbarrier_init(uint64_t *b, uint32_t count)
{
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(b)), "r"(count));
}

__device__ __forceinline__ void mbarrier_expect(uint64_t *b, uint32_t bytes)
{
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(b)),
                 "r"(bytes)
                 : "memory");
}

__device__ __forceinline__ void mbarrier_arrive(uint64_t *b, uint32_t count)
{
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(b)), "r"(count)
                 : "memory");
}

__device__ __forceinline__ bool mbarrier_try(uint64_t *b, uint32_t parity)
{
    uint32_t done;
    asm volatile("{\n.reg .pred p;\n"
                 "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
                 "selp.u32 %0, 1, 0, p;\n}"
                 : "=r"(done)
                 : "r"(shared_address(b)), "r"(parity)
                 : "memory");
    return done;
}

__device__ __forceinline__ void mbarrier_wait(uint64_t *b, uint32_t parity)
{
    if (mbarrier_try(b, parity)) return;
    const long long start = clock64();
    while (!mbarrier_try(b, parity))
        if (clock64() - start > SPIN_CLOCKS) __trap();
}

__device__ __forceinline__ void bulk_copy(void *dst, const void *src, uint32_t bytes, uint64_t *b)
{
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], "
                 "%2, [%3];" ::"r"(shared_address(dst)),
                 "l"(src), "r"(bytes), "r"(shared_address(b))
                 : "memory");
}

__device__ __forceinline__ void copy_16(void *dst, const void *src)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(dst)), "l"(src)
                 : "memory");
}

__device__ __forceinline__ void copies_wait()
{
    asm volatile("cp.async.wait_all;" ::: "memory");
}

/* All consumer threads; the streaming warp is not among them. */
__device__ __forceinline__ void consumers_sync()
{
    __syncwarp();
    asm volatile("bar.sync 1, %0;" ::"n"(N_CONSUMERS) : "memory");
}

__device__ __forceinline__ void signal(uint32_t *counter)
{
    asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(counter) : "memory");
}

__device__ __forceinline__ void wait_for(const uint32_t *counter, uint32_t count)
{
    const long long start = clock64();
    for (;;) {
        uint32_t seen;
        asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(counter) : "memory");
        if (seen >= count) return;
        if (clock64() - start > SPIN_CLOCKS) __trap();
    }
}

/* What the block wrote before is seen by every block that passes grid_wait. */
__device__ __forceinline__ void grid_arrive(context &c)
{
    consumers_sync();
    c.grid_epoch++;
    if (c.tid == 0) signal(c.p.counters);
}

__device__ __forceinline__ void grid_wait(context &c)
{
    if (c.tid == 0) wait_for(c.p.counters, c.grid_epoch * c.p.n_blocks);
    consumers_sync();
}

/* The same among the blocks that stage a row each (blocks 0 to batch - 1). */
__device__ __forceinline__ void rows_sync(context &c)
{
    consumers_sync();
    c.rows_epoch++;
    if (c.tid == 0) {
        signal(c.p.counters + 32);
        wait_for(c.p.counters + 32, c.rows_epoch * c.p.batch);
    }
    consumers_sync();
}

/* n / d by the plan's reciprocal, for n below 2^20. */
__device__ __forceinline__ int divide(int n, const qb__decode_divisor &d)
{
    return (int)__umulhi((uint32_t)n, d.magic) + (d.magic ? 0 : n);
}

/* Sums over the consumer threads, in a fixed order; the same values in each. */
__device__ __forceinline__ float2 block_sums(context &c, float a, float b)
{
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
        a += __shfl_xor_sync(0xffffffffu, a, step);
        b += __shfl_xor_sync(0xffffffffu, b, step);
    }
    float2 *slots = c.h->reduce[c.reduce_turn++ & 3]; /* four turns: one barrier each is enough */
    if (c.lane == 0) slots[c.warp] = make_float2(a, b);
    consumers_sync();
    float4 sum = *(const float4 *)slots;
#pragma unroll
    for (int i = 2; i < N_WARPS; i += 2) {
        const float4 more = *(const float4 *)(slots + i);
        sum.x += more.x, sum.y += more.y, sum.z += more.z, sum.w += more.w;
    }
    return make_float2(sum.x + sum.z, sum.y + sum.w);
}

/* The largest of values that are not negative. */
__device__ __forceinline__ float block_max(context &c, float v)
{
    const uint32_t bits = __reduce_max_sync(0xffffffffu, __float_as_uint(v));
    uint32_t *slots = (uint32_t *)c.h->reduce[c.reduce_turn++ & 3];
    if (c.lane == 0) slots[c.warp] = bits;
    consumers_sync();
    uint32_t most = 0;
#pragma unroll
    for (int i = 0; i < N_WARPS; i += 4) {
        const uint4 q = *(const uint4 *)(slots + i);
        most = max(max(most, max(q.x, q.y)), max(q.z, q.w));
    }
    return __uint_as_float(most);
}

__device__ __forceinline__ float reciprocal(float x) /* within 1 ulp */
{
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/* kernels/quantize.h (1): rint of the rounded quotient x / scale, without a division. `inverse` is
 * about 1 / scale and only picks the half h = n + 1/2 beside the quotient. fma(-h, scale, |x|) has
 * the sign of the true quotient minus h, and the rounded quotient is h itself where that difference
 * is within half a unit of h's last place (half of that below 1/2, a power of two). */
__device__ __forceinline__ float code_of(float x, float scale, float inverse)
{
    const float h = floorf(fminf(fabsf(x) * inverse, 127.4f)) + 0.5f;
    const float beyond = fmaf(-h, scale, fabsf(x));
    const float unit = __uint_as_float((__float_as_uint(h) & 0x7f800000u) - (24u << 23));
    const float above = scale * unit, below = h == 0.5f ? 0.5f * above : above;
    float code = 2.0f * rintf(0.5f * h); /* the even neighbour */
    if (beyond > above) code = h + 0.5f;
    if (beyond < -below) code = h - 0.5f;
    code = fminf(code, 127.0f);
    if (scale == 0.0f || x != x) code = 0.0f;
    return copysignf(code, x);
}

/* Scales below 2^-64 are used times 2^60, and so is x, that nothing underflows. */
struct divisor {
    float scale, inverse, up;
    __device__ __forceinline__ divisor(float s)
    {
        up = s < 5.4e-20f ? 1152921504606846976.0f : 1.0f;
        scale = s * up, inverse = reciprocal(scale);
    }
    __device__ __forceinline__ float code(float x) const
    {
        return code_of(x * up, scale, inverse);
    }
};

__device__ __forceinline__ float scale_of_bits(uint32_t max_bits)
{
    const float most = __uint_as_float(max_bits), r = 1.0f / 127.0f, q = most * r;
    if (most < 1e-30f) return __fdiv_rn(most, 127.0f);
    return fmaf(fmaf(-q, 127.0f, most), r, q); /* rounded as the division: Markstein */
}

/* How a product's output is requantised when it is read. */
struct requantizer {
    int n, end0, end1;
    float scale[3];
    __device__ requantizer()
    {
    }
    __device__ requantizer(const qb__decode_params &p, const qb__decode_linear &l)
    {
        n = l.requant == QB_CUDA_REQUANT_NONE ? 0 : l.seg_n;
        if (n == 0) return;
        end0 = l.seg_end[0], end1 = l.seg_n > 1 ? l.seg_end[1] : l.seg_end[0];
#pragma unroll
        for (int i = 0; i < 3; i++) {
            scale[i] = 0.0f;
            if (i < n)
                scale[i] = l.requant == QB_CUDA_REQUANT_STATIC
                               ? l.out_scale[i]
                               : scale_of_bits(__ldcg(p.max_bits + l.slot + i));
        }
    }
    __device__ __forceinline__ float scale_at(int column) const
    {
        return column < end0 ? scale[0] : column < end1 ? scale[1] : scale[2];
    }
    /* y at columns column to column + N - 1, of one segment */
    template <int N> __device__ __forceinline__ void apply(float (&y)[N], int column) const
    {
        if (n == 0) return;
        const float f = scale_at(column);
        const divisor by(f);
#pragma unroll
        for (int e = 0; e < N; e++) y[e] = __fmul_rn(by.code(y[e]), f);
    }
    __device__ __forceinline__ float one(float y, int column) const
    {
        float v[1] = {y};
        apply(v, column);
        return v[0];
    }
};

__device__ __forceinline__ float exp2_fast(float x)
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ __forceinline__ float bf16_float(uint32_t bits16)
{
    return __uint_as_float(bits16 << 16);
}

__device__ __forceinline__ uint32_t pack_bf16(float lo, float hi)
{
    uint32_t r;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
    return r;
}

} // namespace qb_decode
#endif
