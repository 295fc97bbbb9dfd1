/* kernels/cuda/gemm_u4_sm90.cuh - many tokens times 4-bit weights by wgmma.
 *
 * The product is made transposed: weights are the A operand, which wgmma takes from registers, so
 * codes become bf16 there and never pass through memory as such; activations are the B operand in
 * shared memory. A block is a producer warp and two warpgroups of MT * 64 output channels each,
 * times BN tokens, or two such pairs that take turns with the input channels and add their sums;
 * while the tensor cores work on some input channels, the codes of the next become
 * integers. Blocks are persistent and outputs leave through shared memory; or, where there are few
 * tiles, the blocks of a cluster share the input channels of one tile, and each sends its sums to
 * the block that finishes those tokens. */
#ifndef QB_KERNELS_CUDA_GEMM_U4_SM90_CUH
#define QB_KERNELS_CUDA_GEMM_U4_SM90_CUH

#include "kernels/cuda/gemm_u4_sm90_sums.cuh"

namespace gemm_u4
{

/* ---- the sums of two pairs ---- */

enum { SUMS_THERE = 3, SUMS_TAKEN = 5 }; /* barriers, two each, of the pairs' warpgroups */

/* The second pair leaves its sums in shared memory and goes on, the first adds them to its own. */
template <class C>
static __device__ __forceinline__ void add_pairs(const shared_at &s, const worker &me,
                                                 bool is_first, bool is_last,
                                                 float (&acc)[C::MT][C::BN / 2])
{
    constexpr int FOURS = C::BN / 8;
    const uint32_t at =
        s.base + C::SUMS_AT + me.group * C::SUM_BYTES + (me.warp * 32 + me.lane) * 16;
    if (me.pair == 1) {
        if (!is_first) qb_bar_sync(SUMS_TAKEN + me.group, 256);
    } else {
        qb_bar_sync(SUMS_THERE + me.group, 256);
    }
#pragma unroll
    for (int q = 0; q < C::MT * FOURS; q++) {
        float *v = acc[q / FOURS] + q % FOURS * 4, w[4];
        if (me.pair == 1) {
            asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(at + q * 2048), "f"(v[0]),
                         "f"(v[1]), "f"(v[2]), "f"(v[3])
                         : "memory");
        } else {
            asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
                         : "=f"(w[0]), "=f"(w[1]), "=f"(w[2]), "=f"(w[3])
                         : "r"(at + q * 2048)
                         : "memory");
#pragma unroll
            for (int c = 0; c < 4; c++) v[c] += w[c];
        }
    }
    if (me.pair == 1)
        qb_bar_arrive(SUMS_THERE + me.group, 256);
    else if (!is_last)
        qb_bar_arrive(SUMS_TAKEN + me.group, 256);
}

/* ---- outputs ---- */

/* What a thread applies to its channels g and g + 8 of 64. */
struct affine {
    float scale[2], bias[2];
};

template <class C>
static __device__ __forceinline__ affine load_affine(const qb__u4_product &p, int channel)
{
    affine f;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const int n = channel + 8 * h;
        f.scale[h] = n >= p.n ? 0.0f : C::GROUPED ? 1.0f : __ldg(p.scale + n);
        f.bias[h] = p.bias && n < p.n ? __ldg(p.bias + n) : 0.0f;
    }
    return f;
}

/* act(scale * sum + bias) of 64 channels x 64 tokens. */
static __device__ __forceinline__ void finish(float *acc, const affine &f, int act)
{
#pragma unroll
    for (int c = 0; c < 32; c++) acc[c] = fmaf(acc[c], f.scale[c / 2 % 2], f.bias[c / 2 % 2]);
    if (act == QB_EPI_GELU) {
#pragma unroll
        for (int c = 0; c < 32; c++) acc[c] = qb_gelu(acc[c]);
    } else if (act == QB_EPI_RELU) {
#pragma unroll
        for (int c = 0; c < 32; c++) acc[c] = acc[c] < 0.0f ? 0.0f : acc[c];
    }
}

/* 64 channels of 64 tokens: rows of 64 channels in bf16, 128 bytes in 128-byte swizzle. */
static __device__ __forceinline__ void stage_bf16(const float *acc, uint32_t to, const worker &me)
{
    const int token = me.lane / 16 * 8 + me.lane % 8, chunk = me.warp * 2 + me.lane / 8 % 2;
#pragma unroll
    for (int j = 0; j < 8; j += 2) {
        const float *v = acc + 4 * j;
        const int row = j * 8 + token;
        qb__stmatrix_x4_trans(to + row * 128 + ((chunk ^ (row & 7)) << 4), qb_bf16_pair(v[0], v[1]),
                              qb_bf16_pair(v[2], v[3]), qb_bf16_pair(v[4], v[5]),
                              qb_bf16_pair(v[6], v[7]));
    }
}

/* The same in f32: channels 0 to 31 and 32 to 63 apart. */
static __device__ __forceinline__ void stage_f32(const float *acc, uint32_t to, const worker &me)
{
    const int channel = me.warp % 2 * 16 + me.lane / 4;
    to += me.warp / 2 * 8192;
#pragma unroll
    for (int j = 0; j < 8; j++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int row = 8 * j + me.lane % 4 * 2 + i % 2, ch = channel + i / 2 * 8;
            asm volatile("st.shared.f32 [%0], %1;" ::"r"(to + row * 128 +
                                                         ((ch / 4 ^ (row & 7)) << 4) + ch % 4 * 4),
                         "f"(acc[4 * j + i])
                         : "memory");
        }
}

struct outlet { /* a warpgroup's way out */
    uint32_t staging;
    int slot, barrier;
    bool leader, whole; /* whole: what was sent last filled all of it */
};

/* Sends 64 channels of 64 tokens through shared memory to the copy engine, which clips them to the
 * 16 bytes that hold the last channel (what lies past it is 0). In f32 they fill the staging
 * memory, in bf16 half of it. */
template <bool F32>
static __device__ __forceinline__ void send(outlet &o, const CUtensorMap *map, bool add,
                                            const qb__u4_product &p, const worker &me, int channel0,
                                            int token0, const float *acc)
{
    const uint32_t to = o.staging + (F32 ? 0 : o.slot * 8192);
    if (o.leader && (F32 || o.whole)) qb_tma_wait_read<0>();
    if (o.leader && !F32) qb_tma_wait_read<1>();
    o.slot ^= 1, o.whole = F32;
    qb_bar_sync(o.barrier, 128);
    if (F32)
        stage_f32(acc, to, me);
    else
        stage_bf16(acc, to, me);
    qb_fence_async();
    qb_bar_sync(o.barrier, 128);
    if (!o.leader) return;
    for (int part = 0; part < (F32 ? 2 : 1); part++) {
        const int column = channel0 + 32 * part;
        if (column >= p.n) break;
        if (add)
            qb_tma_add(map, to + part * 8192, column, token0);
        else
            qb_tma_store(map, to + part * 8192, column, token0);
    }
    qb_tma_commit();
}

template <class C>
static __device__ __forceinline__ void store_tile(const qb__u4_sm90 &a, const worker &me, outlet &o,
                                                  int token0, int channel0,
                                                  float (&acc)[C::MT][C::BN / 2])
{
    const qb__u4_product &p = a.product;
    const int channel = channel0 + me.warp * 16 + me.lane / 4;
#pragma unroll
    for (int i = 0; i < C::MT; i++) {
        if (channel0 + 64 * i >= p.n) return;
        const affine f = load_affine<C>(p, channel + 64 * i);
#pragma unroll
        for (int h = 0; h < C::BN / 64; h++) {
            const int column = channel0 + 64 * i, token = token0 + 64 * h;
            float *part = acc[i] + 32 * h;
            if (token >= p.m) break;
            finish(part, f, p.act);
            if (p.residual) send<true>(o, &a.residual, true, p, me, column, token, part);
            if (p.y_f32) send<true>(o, &a.y, false, p, me, column, token, part);
            if (p.y_bf16) send<false>(o, &a.y, false, p, me, column, token, part);
        }
    }
}

/* ---- input channels shared out over a cluster ---- */

static __device__ __forceinline__ void cluster_sync()
{
    qb_cluster_arrive();
    qb_cluster_wait();
}

/* Block r finishes the r-th part of each thread's fours of sums (two tokens of two channels). All
 * blocks write what they have of it into its stages, which are no longer used; it adds them in the
 * order of the ranks. */
template <class C>
static __device__ __forceinline__ void share_out(const qb__u4_sm90 &a, const shared_at &s,
                                                 const worker &me, int token0, int channel0,
                                                 const float (&acc)[C::MT][C::BN / 2])
{
    constexpr int FOURS = C::BN / 8, ALL = C::MT * FOURS, FOUR_BYTES = 256 * 16;
    static_assert(ALL * FOUR_BYTES <= C::STAGES * (C::X_BYTES + C::CODE_BYTES), "");
    const qb__u4_product &p = a.product;
    const int rank = (int)qb_cluster_rank(), per_block = ALL / a.split;
    const uint32_t mine = s.base + C::X_AT + (me.group * 128 + me.warp * 32 + me.lane) * 16;
    const int channel = channel0 + me.warp * 16 + me.lane / 4;
    const affine low = load_affine<C>(p, channel);
    affine high = low;
    if (C::MT == 2) high = load_affine<C>(p, channel + 64);
    cluster_sync();
#pragma unroll
    for (int q = 0; q < ALL; q++) {
        const float *v = acc[q / FOURS] + q % FOURS * 4;
        const int owner = q * a.split / ALL; /* all are powers of two */
        const uint32_t to = mine + (rank * per_block + (q & (per_block - 1))) * FOUR_BYTES;
        if (owner == rank) /* not over the network */
            asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(to), "f"(v[0]), "f"(v[1]),
                         "f"(v[2]), "f"(v[3])
                         : "memory");
        else
            asm volatile("st.shared::cluster.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(
                             qb_cluster_map(to, (uint32_t)owner)),
                         "f"(v[0]), "f"(v[1]), "f"(v[2]), "f"(v[3])
                         : "memory");
    }
    cluster_sync();
#pragma unroll 2
    for (int i = 0; i < per_block; i++) {
        const int q = rank * per_block + i;
        const bool is_high = C::MT == 2 && q >= FOURS;
        float sum[4] = {};
#pragma unroll 2
        for (int from = 0; from < a.split; from++) {
            float v[4];
            asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
                         : "=f"(v[0]), "=f"(v[1]), "=f"(v[2]), "=f"(v[3])
                         : "r"(mine + (from * per_block + i) * FOUR_BYTES));
#pragma unroll
            for (int c = 0; c < 4; c++) sum[c] += v[c];
        }
#pragma unroll
        for (int c = 0; c < 4; c++) {
            const int m = token0 + q % FOURS * 8 + me.lane % 4 * 2 + c % 2;
            const int n = channel + is_high * 64 + c / 2 * 8;
            const float scale = is_high ? high.scale[c / 2] : low.scale[c / 2];
            const float bias = is_high ? high.bias[c / 2] : low.bias[c / 2];
            if (m < p.m && n < p.n)
                qb__u4_put(p, m, n, qb__u4_act(fmaf(sum[c], scale, bias), p.act));
        }
    }
}

template <class C>
__global__ void __launch_bounds__(C::THREADS, 1) gemm_u4_sm90(const __grid_constant__ qb__u4_sm90 a)
{
    extern __shared__ unsigned char memory[];
    const qb__u4_product &p = a.product;
    shared_at s;
    s.base = (qb_smem(memory) + 1023) & ~1023u;
    s.full = s.base + C::BARS_AT;
    s.empty = s.full + C::STAGES * 8;
    const int n_units = a.token_tiles * a.channel_tiles;
    const int first = blockIdx.x / a.split, step = gridDim.x / a.split;
    const int part = a.split > 1 ? (int)qb_cluster_rank() : 0;
    const span k = {p.k_tiles * part / a.split, p.k_tiles * (part + 1) / a.split};
    if (threadIdx.x == 0) {
        for (int i = 0; i < C::STAGES; i++) {
            qb_mbar_init(s.full + i * 8, 1);
            qb_mbar_init(s.empty + i * 8, 8); /* the warps of a pair */
        }
        qb_mbar_init_fence();
    }
    if (p.x_zero_point) fill_input_zeros(p, s.base + C::ZEROS_AT);
    __syncthreads();
    qb__start_next_grid();

    const int warpgroup = threadIdx.x / 128;
    if (warpgroup == 0) {
        qb_regs_give<24>();
        if (threadIdx.x == 0) produce<C>(a, s, k, first, n_units, step);
        if (a.split > 1) { /* one unit a cluster */
            __syncwarp();
            cluster_sync();
            cluster_sync();
        }
    } else {
        qb_regs_take<C::REGISTERS>();
        qb__wait_previous_grid();
        const worker me = {(warpgroup - 1) / 2, (warpgroup - 1) % 2, (int)threadIdx.x / 32 % 4,
                           (int)threadIdx.x % 32};
        outlet o = {s.base + me.group * C::STAGING_BYTES, 0, 1 + me.group,
                    me.pair == 0 && me.warp == 0 && me.lane == 0, false};
        ring r = {me.pair, 0};
        int turn = me.pair; /* the pair's first tile of input channels, 0 or 1 */
        for (int unit = first; unit < n_units; unit += step) {
            const int token0 = unit / a.channel_tiles * C::BN;
            const int channel0 = unit % a.channel_tiles * C::CHANNELS + me.group * C::MT * 64;
            const span mine = {k.begin + turn, k.end};
            float acc[C::MT][C::BN / 2];
            multiply_tile<C>(p, s, r, mine, me, channel0 + me.warp * 16 + me.lane / 4, acc);
            if constexpr (C::PAIRS == 2) {
                add_pairs<C>(s, me, unit == first, unit + step >= n_units, acc);
                turn = (turn + k.end - k.begin) % 2;
            }
            if (a.split > 1 && me.pair == 0) {
                share_out<C>(a, s, me, token0, channel0, acc);
            } else if (a.split > 1) {
                cluster_sync();
                cluster_sync();
            } else if (me.pair == 0) {
                store_tile<C>(a, me, o, token0, channel0, acc);
            }
        }
        if (o.leader) qb_tma_wait_read<0>();
    }
}

} // namespace gemm_u4

#endif
