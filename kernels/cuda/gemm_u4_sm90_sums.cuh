/* kernels/cuda/gemm_u4_sm90_sums.cuh - the sums of a tile: how gemm_u4_sm90.cuh brings operands to
 * the tensor cores. */
#ifndef QB_KERNELS_CUDA_GEMM_U4_SM90_SUMS_CUH
#define QB_KERNELS_CUDA_GEMM_U4_SM90_SUMS_CUH

#include "kernels/cuda/gemm_u4_internal.h"
#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/wgmma_u4.cuh"

struct qb__u4_sm90 {
    CUtensorMap x, codes, y, residual;
    qb__u4_product product;
    int token_tiles, channel_tiles;
    int split; /* blocks of a cluster, which share a tile's input channels; 1 = no cluster */
};

namespace gemm_u4
{

template <int MT_, int BN_, int STAGES_, int STEPS_, int PAIRS_, bool GROUPED_> struct config {
    static constexpr int MT = MT_, BN = BN_;
    static constexpr int STAGES = STAGES_; /* a multiple of PAIRS */
    static constexpr int STEPS = STEPS_;   /* of 16 input channels, converted at a time: 1 or 4 */
    static constexpr int PAIRS = PAIRS_;   /* of warpgroups, 1 or 2; each has a tile at least */
    static constexpr bool GROUPED = GROUPED_; /* several scales a channel; one pair then */
    static constexpr int CHANNELS = 128 * MT, THREADS = 128 + 256 * PAIRS;
    static constexpr int REGISTERS = PAIRS == 1 ? 240 : 112;
    static constexpr int X_BYTES = BN * 128, CODE_BYTES = CHANNELS / 16 * 512;
    static constexpr int STAGING_BYTES = 16384;        /* a warpgroup */
    static constexpr int SUM_BYTES = MT * 64 * BN * 4; /* of a warpgroup */
    static constexpr int SUMS_AT = 2 * STAGING_BYTES,
                         X_AT = SUMS_AT + (PAIRS == 2 ? 2 * SUM_BYTES : 0),
                         CODES_AT = X_AT + STAGES * X_BYTES,
                         BARS_AT = CODES_AT + STAGES * CODE_BYTES,
                         ZEROS_AT = BARS_AT + STAGES * 16, /* (k) bf16, where they are by input */
        SMEM_BYTES = ZEROS_AT + 1024;                      /* 1024: alignment */
};

/* Position in the ring of stages. */
struct ring {
    int stage, phase;
    template <int STAGES> __device__ __forceinline__ void next(int step)
    {
        stage += step;
        if (stage >= STAGES) stage -= STAGES, phase ^= 1;
    }
};

struct shared_at {
    uint32_t base, full, empty;
};

struct span { /* tiles of 64 input channels that a block multiplies */
    int begin, end;
};

/* ---- producer ---- */

template <class C>
static __device__ __forceinline__ void load_codes(const qb__u4_sm90 &a, const shared_at &s,
                                                  int stage, int tile, int channel0)
{
    const uint32_t full = s.full + stage * 8;
    qb_mbar_expect(full, C::X_BYTES + C::CODE_BYTES);
    qb_tma_load(s.base + C::CODES_AT + stage * C::CODE_BYTES, &a.codes, full, tile * 128,
                channel0 / 16);
}

/* `asked`: codes of the first tiles, into the first stages, are on their way. */
template <class C>
static __device__ __forceinline__ void produce_tile(const qb__u4_sm90 &a, const shared_at &s,
                                                    ring &r, const span &k, int asked, int token0,
                                                    int channel0)
{
    for (int tile = k.begin; tile < k.end; tile++) {
        if (tile - k.begin >= asked) {
            qb_mbar_wait(s.empty + r.stage * 8, r.phase ^ 1);
            load_codes<C>(a, s, r.stage, tile, channel0);
        }
        qb_tma_load(s.base + C::X_AT + r.stage * C::X_BYTES, &a.x, s.full + r.stage * 8, tile * 64,
                    token0);
        r.template next<C::STAGES>(1);
    }
}

/* Codes do not depend on the kernel before, so the first are asked for before waiting for it. */
template <class C>
static __device__ __forceinline__ void produce(const qb__u4_sm90 &a, const shared_at &s,
                                               const span &k, int first, int n_units, int step)
{
    ring r = {0, 0};
    int asked = first < n_units ? min(C::STAGES, k.end - k.begin) : 0;
    for (int i = 0; i < asked; i++)
        load_codes<C>(a, s, i, k.begin + i, first % a.channel_tiles * C::CHANNELS);
    qb__wait_previous_grid();
    for (int unit = first; unit < n_units; unit += step, asked = 0)
        produce_tile<C>(a, s, r, k, asked, unit / a.channel_tiles * C::BN,
                        unit % a.channel_tiles * C::CHANNELS);
}

/* ---- weights ---- */

struct worker {      /* a thread's place */
    int pair, group; /* its pair of warpgroups, its warpgroup of the pair */
    int warp, lane;  /* of the warpgroup */
};

/* Scales and zero points of a thread's channels g and g + 8 of each tile of 64. */
template <int MT> struct slices {
    float scale[MT][2];
    int zero_point[MT][2];
};

template <class C>
static __device__ __forceinline__ void load_slices(const qb__u4_product &p, int group, int channel,
                                                   slices<C::MT> &s)
{
#pragma unroll
    for (int i = 0; i < C::MT; i++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const int n = channel + 64 * i + 8 * h;
            const size_t at = (size_t)group * p.n_pad + n;
            s.scale[i][h] = C::GROUPED && n < p.n_pad ? __ldg(p.scale + at) : 0.0f;
            s.zero_point[i][h] = n < p.n_pad ? __ldg(p.zero_point + at) : 0;
        }
}

template <int MT>
static __device__ __forceinline__ void zeros_by_output(const slices<MT> &s, uint32_t zero[MT][4])
{
#pragma unroll
    for (int i = 0; i < MT; i++) {
        zero[i][0] = zero[i][2] = qb__u4_zero_pair(s.zero_point[i][0], s.zero_point[i][0]);
        zero[i][1] = zero[i][3] = qb__u4_zero_pair(s.zero_point[i][1], s.zero_point[i][1]);
    }
}

/* Zero points by input channel lie as the lanes want them: [16 channels][t][2 registers]. */
static __device__ __forceinline__ void fill_input_zeros(const qb__u4_product &p, uint32_t to)
{
    for (int i = threadIdx.x; i < p.k_tiles * 32; i += blockDim.x) {
        const int t = i / 2 % 4, h = i % 2;
        const short2 z = __ldg((const short2 *)p.x_zero_point + i / 8 * 8 + h * 4 + t);
        asm volatile("st.shared.u32 [%0], %1;" ::"r"(to + i * 4), "r"(qb__u4_zero_pair(z.x, z.y))
                     : "memory");
    }
}

template <int MT>
static __device__ __forceinline__ void zeros_by_input(uint32_t zeros_shared, int step, int lane,
                                                      uint32_t zero[MT][4])
{
    uint32_t z[2];
    asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];"
                 : "=r"(z[0]), "=r"(z[1])
                 : "r"(zeros_shared + step * 32 + lane % 4 * 8));
#pragma unroll
    for (int i = 0; i < MT; i++) zero[i][0] = zero[i][1] = z[0], zero[i][2] = zero[i][3] = z[1];
}

template <class C>
static __device__ __forceinline__ void load_words(const shared_at &s, int stage, const worker &me,
                                                  uint32_t words[C::MT][4])
{
#pragma unroll
    for (int i = 0; i < C::MT; i++) {
        const uint32_t from = s.base + C::CODES_AT + stage * C::CODE_BYTES +
                              ((me.group * C::MT + i) * 4 + me.warp) * 512 + me.lane * 16;
        asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                     : "=r"(words[i][0]), "=r"(words[i][1]), "=r"(words[i][2]), "=r"(words[i][3])
                     : "r"(from));
    }
}

/* ---- consumers ---- */

/* What a thread holds while its warpgroup makes a tile. */
template <class C> struct state {
    uint32_t words[C::MT][4], zero[C::MT][4];
    slices<C::MT> now, next; /* of this group and of the one after it */
    int group, group_end, accumulate;
    int before; /* the stage that the tensor cores may still be reading; -1 = none */
};

template <class C>
static __device__ __forceinline__ void release(const shared_at &s, const worker &me, int stage)
{
    if (stage >= 0 && me.lane == 0) qb_mbar_arrive(s.empty + stage * 8);
}

/* Fragments of the 16 input channels `step` of a tile. */
template <class C>
static __device__ __forceinline__ void convert(const qb__u4_product &p, const shared_at &s,
                                               const worker &me, state<C> &t, int tile, int step,
                                               uint32_t (&out)[C::MT][4])
{
    if (p.x_zero_point)
        zeros_by_input<C::MT>(s.base + C::ZEROS_AT, tile * 4 + step, me.lane, t.zero);
#pragma unroll
    for (int i = 0; i < C::MT; i++) qb__u4_fragment(t.words[i][step], t.zero[i], out[i]);
}

template <class C>
static __device__ __forceinline__ void multiply(const shared_at &s, int stage, int step,
                                                float (&acc)[C::MT][C::BN / 2],
                                                const uint32_t (&a)[C::MT][4], int accumulate)
{
    const uint64_t b = qb_wgmma_desc(s.base + C::X_AT + stage * C::X_BYTES) + 2 * step;
#pragma unroll
    for (int i = 0; i < C::MT; i++) qb_wgmma_bf16_rs(acc[i], a[i], b, accumulate);
}

template <class C>
static __device__ __forceinline__ void fetch_words(const shared_at &s, const ring &r,
                                                   const worker &me, state<C> &t)
{
    qb_mbar_wait(s.full + r.stage * 8, r.phase);
    load_words<C>(s, r.stage, me, t.words);
}

/* The sums of a group are complete: adds them, scaled, and goes on to the next group. */
template <class C>
static __device__ __forceinline__ void fold(const qb__u4_product &p, const span &k, int channel,
                                            state<C> &t, const float (&acc)[C::MT][C::BN / 2],
                                            float (&total)[C::MT][C::BN / 2])
{
#pragma unroll
    for (int i = 0; i < C::MT; i++)
#pragma unroll
        for (int c = 0; c < C::BN / 2; c++)
            total[i][c] = fmaf(t.now.scale[i][c / 2 % 2], acc[i][c], total[i][c]);
    t.accumulate = 0;
    t.now = t.next;
    t.group++;
    t.group_end = min(t.group_end + p.group_tiles, k.end);
    if (t.group_end < k.end) load_slices<C>(p, t.group + 1, channel, t.next);
}

/* One step at a time: the fragments of the next are made while it runs. */
template <class C>
static __device__ __forceinline__ void
multiply_by_steps(const qb__u4_product &p, const shared_at &s, ring &r, const span &k,
                  const worker &me, state<C> &t, float (&acc)[C::MT][C::BN / 2])
{
    uint32_t even[C::MT][4], odd[C::MT][4];
    auto step = [&](int stage, int j, const uint32_t(&a)[C::MT][4], int accumulate) {
        qb_wgmma_fence();
        multiply<C>(s, stage, j, acc, a, accumulate);
        qb_wgmma_commit();
        qb_wgmma_wait<1>();
    };
    convert<C>(p, s, me, t, k.begin, 0, even);
    for (int tile = k.begin; tile < k.end; tile += C::PAIRS) {
        const int stage = r.stage;
        step(stage, 0, even, t.accumulate);
        t.accumulate = 1;
        release<C>(s, me, t.before);
        t.before = stage;
        convert<C>(p, s, me, t, tile, 1, odd);
        step(stage, 1, odd, 1);
        convert<C>(p, s, me, t, tile, 2, even);
        step(stage, 2, even, 1);
        convert<C>(p, s, me, t, tile, 3, odd);
        step(stage, 3, odd, 1);
        r.template next<C::STAGES>(C::PAIRS);
        if (tile + C::PAIRS >= k.end) break;
        fetch_words<C>(s, r, me, t);
        convert<C>(p, s, me, t, tile + C::PAIRS, 0, even);
    }
}

/* One tile at a time. */
template <class C>
static __device__ __forceinline__ void
multiply_by_tiles(const qb__u4_product &p, const shared_at &s, ring &r, const span &k,
                  const worker &me, int channel, state<C> &t, float (&acc)[C::MT][C::BN / 2],
                  float (&total)[C::MT][C::BN / 2])
{
    uint32_t even[4][C::MT][4], odd[4][C::MT][4];
    auto convert_tile = [&](int tile, uint32_t(&out)[4][C::MT][4]) {
#pragma unroll
        for (int j = 0; j < 4; j++) convert<C>(p, s, me, t, tile, j, out[j]);
    };
    auto turn = [&](int tile, const uint32_t(&a)[4][C::MT][4], uint32_t(&following)[4][C::MT][4]) {
        const int stage = r.stage;
        const bool group_ends = C::GROUPED && tile + 1 == t.group_end;
        qb_wgmma_fence();
#pragma unroll
        for (int j = 0; j < 4; j++) multiply<C>(s, stage, j, acc, a[j], j ? 1 : t.accumulate);
        qb_wgmma_commit();
        t.accumulate = 1;
        r.template next<C::STAGES>(C::PAIRS);
        qb_wgmma_wait<1>();
        release<C>(s, me, t.before);
        t.before = stage;
        if (tile + C::PAIRS < k.end) {
            if (group_ends && !p.x_zero_point) zeros_by_output(t.next, t.zero);
            fetch_words<C>(s, r, me, t);
            convert_tile(tile + C::PAIRS, following);
        }
        if (group_ends) {
            qb_wgmma_wait<0>();
            fold<C>(p, k, channel, t, acc, total);
        }
    };
    convert_tile(k.begin, even);
    for (int tile = k.begin; tile < k.end; tile += 2 * C::PAIRS) {
        turn(tile, even, odd);
        if (tile + C::PAIRS < k.end) turn(tile + C::PAIRS, odd, even);
    }
}

/* acc = the pair's sums of a tile; scaled by group where there are groups. */
template <class C>
static __device__ __forceinline__ void multiply_tile(const qb__u4_product &p, const shared_at &s,
                                                     ring &r, const span &k, const worker &me,
                                                     int channel, float (&acc)[C::MT][C::BN / 2])
{
    state<C> t;
    t.group = C::GROUPED ? k.begin / p.group_tiles : 0;
    t.group_end = C::GROUPED ? min((t.group + 1) * p.group_tiles, k.end) : k.end;
    t.accumulate = 0, t.before = -1;
    load_slices<C>(p, t.group, channel, t.now);
    if (C::GROUPED && t.group_end < k.end) load_slices<C>(p, t.group + 1, channel, t.next);
    zeros_by_output(t.now, t.zero);
    fetch_words<C>(s, r, me, t);
    if constexpr (C::GROUPED) {
        float part[C::MT][C::BN / 2];
#pragma unroll
        for (int i = 0; i < C::MT; i++)
#pragma unroll
            for (int c = 0; c < C::BN / 2; c++) acc[i][c] = 0.0f;
        multiply_by_tiles<C>(p, s, r, k, me, channel, t, part, acc);
    } else if constexpr (C::STEPS == 4) {
        multiply_by_tiles<C>(p, s, r, k, me, channel, t, acc, acc);
    } else {
        multiply_by_steps<C>(p, s, r, k, me, t, acc);
    }
    qb_wgmma_wait<0>();
    release<C>(s, me, t.before);
}

} // namespace gemm_u4

#endif
