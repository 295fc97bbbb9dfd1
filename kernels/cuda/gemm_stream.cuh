/* kernels/cuda/gemm_stream.cuh - products of a few tokens on Hopper, bound by reading the weights:
 * what the kinds of weights share.
 *
 * A block finishes up to four groups of 16 output channels, the A operand of mma.sync; tokens are
 * the B operand. One warp copies the weights in chunks into a ring of shared memory. They do not
 * depend on the kernel before, so the ring is full before that one has ended; blocks are small
 * enough for two kernels' to be on a multiprocessor at once. Eight warps share out the input
 * channels of a chunk: a token's channels go to the registers of the one warp that multiplies them,
 * and serve all groups. At the end the warps' sums are added, in the order of the warps. Where rows
 * are long, the blocks of a cluster share out their input channels, and each block finishes some
 * tokens: the others send it their sums.
 *
 * A unit is what a warp multiplies at a time. The order of the channels within a product is free as
 * long as both operands agree. */
#ifndef QB_KERNELS_CUDA_GEMM_STREAM_CUH
#define QB_KERNELS_CUDA_GEMM_STREAM_CUH

#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/ptx.cuh"

namespace gemm_stream
{

enum {
    WARPS = 8, /* that multiply; one more copies */
    THREADS = 32 * WARPS,
    CHUNK = 16, /* units; each warp has two */
    MOST_STAGES = 12,
    MOST_GROUPS = 4,
    MOST_SPLIT = 4,
    ROW = 20, /* sums of a token's 16 channels, and four that part banks */
};

/* The work of a launch. */
struct plan {
    const char *w, *x;
    size_t w_stride, x_stride; /* bytes */
    int m, n, k;
    int n_groups, n_units;   /* units: of a row */
    int block_groups, split; /* split: blocks of a cluster */
    int n_stages, received_at, bytes;
};

__device__ __forceinline__ uint4 load_shared(uint32_t from)
{
    uint4 v;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "r"(from)
                 : "memory");
    return v;
}
/* 16 bytes into another block's shared memory, counted by a barrier of its. */
__device__ __forceinline__ void send(uint32_t to, uint32_t bar, int rank, uint4 v)
{
    asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 "
                 "[%0], {%1, %2, %3, %4}, [%5];" ::"r"(qb_cluster_map(to, rank)),
                 "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w), "r"(qb_cluster_map(bar, rank))
                 : "memory");
}

/* A block's share. */
struct share {
    int rank, first, groups, unit, n_units, n_chunks;
    __device__ explicit share(const plan &p)
    {
        rank = blockIdx.x % p.split;
        first = blockIdx.x / p.split * p.block_groups;
        groups = min(p.block_groups, p.n_groups - first);
        unit = p.n_units * rank / p.split;
        n_units = p.n_units * (rank + 1) / p.split - unit;
        n_chunks = (n_units + CHUNK - 1) / CHUNK;
    }
};

struct barriers {
    uint64_t full[MOST_STAGES], empty[MOST_STAGES], received;
};

/* ---- how weights lie ---- */

/* In rows: a unit is 64 bytes of each of 16 rows, a chunk 1 KiB of each. Lane 4 g + t takes 16
 * consecutive bytes of rows g and g + 8 and of token g. */
template <int TOK8> struct row_unit {
    uint4 x[TOK8];
};
struct rows {
    enum { PITCH = 1024 + 64, STAGE_BYTES = 16 * PITCH, UNIT_BYTES = 1024, X_UNIT = 64 };
    template <int TOK8> using tokens = row_unit<TOK8>;

    template <class Do>
    __device__ static void pieces(const plan &p, int group, int unit, int n, int lane, const Do &f)
    {
        if (lane >= 16) return;
        const int row = min(group * 16 + lane, p.n - 1); /* a row that is there */
        f(lane * PITCH, p.w + row * p.w_stride + (size_t)unit * 64, n * 64);
    }
    template <int TOK8>
    __device__ static void load(const plan &p, int unit, int lane, bool there, row_unit<TOK8> &to)
    {
#pragma unroll
        for (int i = 0; i < TOK8; i++) {
            const int token = i * 8 + lane / 4;
            to.x[i] = make_uint4(0, 0, 0, 0);
            if (there && token < p.m)
                to.x[i] = __ldcg(
                    (const uint4 *)(p.x + token * p.x_stride + (size_t)unit * 64 + lane % 4 * 16));
        }
    }
    template <int TOK8> __device__ static void arrange(const plan &, int, int, row_unit<TOK8> &)
    {
    }
};

/* In tiles of 512 bytes, 16 x 64 (gemm_u4.h), each a unit. A lane loads 8 consecutive channels
 * twice; the fragments of mma.m16n8k16 want two of each 8, so the four lanes of a token trade. */
template <int TOK8> struct tile_unit {
    uint32_t x[TOK8][8];
};
struct tiles {
    enum { STAGE_BYTES = CHUNK * 512, UNIT_BYTES = 512, X_UNIT = 128 };
    template <int TOK8> using tokens = tile_unit<TOK8>;

    template <class Do>
    __device__ static void pieces(const plan &p, int group, int unit, int n, int lane, const Do &f)
    {
        const int at = lane * 4; /* four tiles a piece */
        if (at < n)
            f(at * 512, p.w + ((size_t)group * p.n_units + unit + at) * 512, min(4, n - at) * 512);
    }
    template <int TOK8>
    __device__ static void load(const plan &p, int unit, int lane, bool there, tile_unit<TOK8> &to)
    {
#pragma unroll
        for (int i = 0; i < TOK8; i++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const int token = i * 8 + lane / 4;
                uint4 v = make_uint4(0, 0, 0, 0);
                if (there && token < p.m)
                    v = __ldcg((const uint4 *)(p.x + token * p.x_stride + (size_t)unit * 128 +
                                               half * 64 + lane % 4 * 16));
                uint32_t *x = to.x[i] + 4 * half;
                x[0] = v.x, x[1] = v.y, x[2] = v.z, x[3] = v.w;
            }
    }
    /* Word j of lane t becomes word t of lane j. What lies past k becomes 0, since the padding of
     * the weights is minus a zero point. */
    template <int TOK8>
    __device__ static void arrange(const plan &p, int unit, int lane, tile_unit<TOK8> &u)
    {
        if (unit * 64 + 64 > p.k)
#pragma unroll
            for (int q = 0; q < 8; q++) {
                const int inside = p.k - unit * 64 - q / 4 * 32 - lane % 4 * 8 - q % 4 * 2;
                const uint32_t mask = inside >= 2 ? 0xffffffffu : inside == 1 ? 0xffffu : 0;
#pragma unroll
                for (int i = 0; i < TOK8; i++) u.x[i][q] &= mask;
            }
#pragma unroll
        for (int i = 0; i < TOK8; i++)
#pragma unroll
            for (int q = 0; q < 8; q += 4)
#pragma unroll
                for (int bit = 1; bit < 4; bit *= 2)
#pragma unroll
                    for (int j = 0; j < 4; j++) {
                        if (j & bit) continue;
                        uint32_t &low = u.x[i][q + j], &high = u.x[i][q + j + bit];
                        const bool upper = lane & bit;
                        const uint32_t got = __shfl_xor_sync(0xffffffffu, upper ? low : high, bit);
                        low = upper ? got : low;
                        high = upper ? high : got;
                    }
    }
};

/* ---- the warp that copies ---- */

template <class F>
__device__ void copy_all(const plan &p, const share &s, char *shared, barriers &bars)
{
    const int lane = threadIdx.x % 32, total = s.groups * s.n_chunks;
    auto each_piece = [&](int i, const auto &f) {
        const int chunk = i / s.groups, n = min((int)CHUNK, s.n_units - chunk * CHUNK);
        F::pieces(p, s.first + i % s.groups, s.unit + chunk * CHUNK, n, lane, f);
        return n;
    };
    auto copy = [&](int i, int stage) {
        const uint32_t bar = qb_smem(&bars.full[stage]),
                       to = qb_smem(shared) + stage * F::STAGE_BYTES;
        const int n = min((int)CHUNK, s.n_units - i / s.groups * CHUNK);
        if (lane == 0) qb_mbar_expect(bar, n * F::UNIT_BYTES);
        __syncwarp();
        each_piece(i, [&](int offset, const char *from, int bytes) {
            qb_bulk_load(to + offset, from, bar, bytes);
        });
    };
    const int ahead = min(total, p.n_stages);
    for (int i = 0; i < ahead; i++) copy(i, i);
    int stage = 0, parity = 0;
    for (int i = ahead; i < total; i++) {
        qb_mbar_wait(qb_smem(&bars.empty[stage]), parity);
        copy(i, stage);
        if (++stage == p.n_stages) stage = 0, parity ^= 1;
    }
}

/* ---- the warps that multiply ---- */

/* Four channels of a token: what one thread finishes. */
struct item {
    int group, token, n; /* group: of the block's; n: the first channel */
    bool mine;
};

template <class F, int TOK8, int GROUPS>
__device__ __forceinline__ void multiply_chunks(const plan &p, const typename F::call &c,
                                                const share &s, char *shared, barriers &bars,
                                                const item &to, typename F::kept &kept,
                                                typename F::sum (&acc)[GROUPS][TOK8][4])
{
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    typename F::channels channels[GROUPS];
#pragma unroll
    for (int g = 0; g < GROUPS; g++)
        if (g < s.groups) F::load_channels(c, (s.first + g) * 16, lane, channels[g]);
    typename F::template tokens<TOK8> x[2];
    auto load = [&](int chunk, int i) {
        const int unit = chunk * CHUNK + 2 * warp + i;
        F::template load<TOK8>(p, s.unit + unit, lane, unit < s.n_units, x[i]);
    };
    qb__wait_previous_grid();
    load(0, 0);
    load(0, 1);
    F::keep(c, p, to, kept);
    int first = 0, parity = 0; /* of the chunk's stages */
    for (int chunk = 0; chunk < s.n_chunks; chunk++) {
        int stage = first, phase = parity;
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const bool there = chunk * CHUNK + 2 * warp + i < s.n_units;
            stage = first, phase = parity;
            F::template arrange<TOK8>(p, s.unit + chunk * CHUNK + 2 * warp + i, lane, x[i]);
#pragma unroll
            for (int g = 0; g < GROUPS; g++) {
                if (g >= s.groups) break;
                if (i == 0) qb_mbar_wait(qb_smem(&bars.full[stage]), phase);
                if (there)
                    F::template multiply<TOK8>(qb_smem(shared) + stage * F::STAGE_BYTES,
                                               2 * warp + i, lane, channels[g], x[i], acc[g]);
                if (i == 1) {
                    __syncwarp();
                    if (lane == 0) qb_mbar_arrive(qb_smem(&bars.empty[stage]));
                }
                if (++stage == p.n_stages) stage = 0, phase ^= 1;
            }
            load(chunk + 1, i);
        }
        first = stage, parity = phase;
    }
}

template <class F, int TOK8, int GROUPS>
__device__ void multiply_all(const plan &p, const typename F::call &c, const share &s, char *shared,
                             barriers &bars)
{
    using T = typename F::sum;
    enum { TOKENS = TOK8 * 8, GROUP_SUMS = TOKENS * ROW, WARP_SUMS = GROUPS * GROUP_SUMS };
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, thread = threadIdx.x;
    const int tokens = TOKENS / p.split; /* that this block finishes */
    const item to = {thread / (tokens * 4), s.rank * tokens + thread / 4 % tokens,
                     (s.first + thread / (tokens * 4)) * 16 + thread % 4 * 4,
                     thread < s.groups * tokens * 4 && s.rank * tokens + thread / 4 % tokens < p.m};
    typename F::kept kept;
    F::keep_constants(c, p, to, kept);
    T acc[GROUPS][TOK8][4] = {};
    multiply_chunks<F, TOK8, GROUPS>(p, c, s, shared, bars, to, kept, acc);

    qb_bar_sync(1, THREADS); /* all have read the ring: sums take its place */
    T *const sums = (T *)shared;
#pragma unroll
    for (int g = 0; g < GROUPS; g++)
#pragma unroll
        for (int i = 0; i < TOK8; i++)
#pragma unroll
            for (int e = 0; e < 4; e++)
                sums[warp * WARP_SUMS + g * GROUP_SUMS + (i * 8 + lane % 4 * 2 + e % 2) * ROW +
                     lane / 4 + e / 2 * 8] = acc[g][i][e];
    qb_bar_sync(1, THREADS);
    /* the block's sums of 4 channels of a token */
    const int group = thread / (TOKENS * 4), token = thread / 4 % TOKENS;
    T v[4] = {};
    if (group < s.groups) {
        const uint32_t from = qb_smem(sums + group * GROUP_SUMS + token * ROW + thread % 4 * 4);
#pragma unroll
        for (int w = 0; w < WARPS; w++) {
            const uint4 bits = load_shared(from + w * WARP_SUMS * 4);
            v[0] += F::of_bits(bits.x), v[1] += F::of_bits(bits.y);
            v[2] += F::of_bits(bits.z), v[3] += F::of_bits(bits.w);
        }
    }
    if (p.split > 1) {
        const uint32_t received = qb_smem(shared + p.received_at), bar = qb_smem(&bars.received);
        const int one = s.groups * tokens * 4 * 16; /* bytes of a block's sums */
        qb_cluster_wait();                          /* all blocks of the cluster have started */
        if (group < s.groups)
            send(
                received + s.rank * one + ((group * tokens + token % tokens) * 4 + thread % 4) * 16,
                bar, token / tokens,
                make_uint4(F::bits_of(v[0]), F::bits_of(v[1]), F::bits_of(v[2]), F::bits_of(v[3])));
        qb_mbar_wait(bar, 0);
        v[0] = v[1] = v[2] = v[3] = 0;
        for (int r = 0; to.mine && r < p.split; r++) {
            const uint4 bits = load_shared(received + r * one + thread * 16);
            v[0] += F::of_bits(bits.x), v[1] += F::of_bits(bits.y);
            v[2] += F::of_bits(bits.z), v[3] += F::of_bits(bits.w);
        }
    }
    F::put(c, p, kept, to, v);
}

template <class F, int TOK8, int GROUPS>
__global__ void __launch_bounds__(THREADS + 32, 2)
    stream(const __grid_constant__ plan p, const __grid_constant__ typename F::call c)
{
    extern __shared__ __align__(128) char shared[];
    __shared__ barriers bars;
    const share s(p);
    qb__start_next_grid();
    if (threadIdx.x == THREADS) {
        for (int i = 0; i < p.n_stages; i++) {
            qb_mbar_init(qb_smem(&bars.full[i]), 1);
            qb_mbar_init(qb_smem(&bars.empty[i]), WARPS);
        }
        qb_mbar_init(qb_smem(&bars.received), 1);
        qb_mbar_init_fence();
        if (p.split > 1) /* the sums of TOKENS / split tokens from `split` blocks */
            qb_mbar_expect(qb_smem(&bars.received), s.groups * TOK8 * 8 * 4 * 16);
    }
    __syncthreads();
    if (p.split > 1) qb_cluster_arrive();
    if (threadIdx.x < THREADS) {
        multiply_all<F, TOK8, GROUPS>(p, c, s, shared, bars);
    } else {
        copy_all<F>(p, s, shared, bars);
        if (p.split > 1) qb_cluster_wait();
    }
}

} // namespace gemm_stream

#endif
