/* kernels/cuda/attention_sm90.cu - attention in bf16 for Hopper: wgmma, the copy engine, warps with
 * roles.
 *
 * After FlashAttention-3 (arXiv:2407.08608). A block stays on its SM and takes tiles of queries in
 * turn. One warp feeds a ring of key and value tiles (and the next tile's queries) through the copy
 * engine; WGS warpgroups of 64 queries each multiply. A warpgroup starts the scores of key tile j
 * and the products with the values of tile j - 1 together and makes the exponentials of j while the
 * latter run; named barriers make the warpgroups take turns in starting, so that one's exponentials
 * run beside the other's products.
 *
 * Causal tiles differ in length: a block takes the i-th and the i-th last of a head together where
 * there are enough heads, else tiles from the longest to the shortest. */
#include "kernels/cuda/attention_device.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/wgmma_bf16.cuh"

#include <cuda.h>

namespace
{

constexpr int ROWS = 64; /* queries of a warpgroup */

template <int DIM_, int KEYS_, int WGS_, int STAGES_> struct config {
    static constexpr int DIM = DIM_, KEYS = KEYS_, WGS = WGS_, STAGES = STAGES_;
    static constexpr int BLOCKS = (DIM + 63) / 64; /* of 64 dimensions = 128 bytes of a row */
    static constexpr int Q_BYTES = BLOCKS * ROWS * 128, KV_BYTES = BLOCKS * KEYS * 128;
    static constexpr bool OUT_APART = 2 * WGS * Q_BYTES + 2 * STAGES * KV_BYTES <= 220 * 1024;
    static constexpr int K_AT = WGS * Q_BYTES, V_AT = K_AT + STAGES * KV_BYTES,
                         OUT_AT = OUT_APART ? V_AT + STAGES * KV_BYTES : 0,
                         BARS_AT = V_AT + STAGES * KV_BYTES + (OUT_APART ? WGS * Q_BYTES : 0);
    static constexpr int N_BARS = 2 + 4 * STAGES, SMEM_BYTES = BARS_AT + 8 * N_BARS + 1024;
    static constexpr int THREADS = 128 * (WGS + 1);
    static constexpr int PRODUCER_REGS = WGS == 2 ? 24 : 32, CONSUMER_REGS = WGS == 2 ? 240 : 160;
};

struct sm90_params {
    CUtensorMap q, k, v, out; /* (batch, token, head, dimension) */
    int n_q, n_past, n_heads, group, n_tiles, n_pairs, n_items;
    qb_softmax_kind kind;
    float scale;
};

/* ---- the order of work, the same for all warps of a block ---- */

struct work {
    int tile, other; /* other < 0: only one */
    int h, b;
};

/* The round-th piece of this block; n_pairs > 0: pairs of tiles of a head, else single tiles. */
__device__ bool next_work(const sm90_params &p, int round, work *w)
{
    int turn = round & 1 ? (int)(gridDim.x - 1 - blockIdx.x) : (int)blockIdx.x;
    int item = round * (int)gridDim.x + turn, head;
    if (item >= p.n_items) return false;
    if (p.n_pairs) {
        int i = item % p.n_pairs;
        head = item / p.n_pairs;
        w->tile = p.n_tiles - 1 - i;
        w->other = i < w->tile ? i : -1;
    } else {
        int n_heads = p.n_items / p.n_tiles;
        head = item % n_heads;
        w->tile = p.n_tiles - 1 - item / n_heads;
        w->other = -1;
    }
    w->h = head % p.n_heads;
    w->b = head / p.n_heads;
    return true;
}

template <class C> __device__ int n_key_tiles(const sm90_params &p, int tile)
{
    int n_keys = p.n_past + min((tile + 1) * C::WGS * ROWS, p.n_q);
    return (n_keys + C::KEYS - 1) / C::KEYS;
}

/* ---- 4-dimensional boxes ---- */

__device__ void load_box(uint32_t to, const CUtensorMap *map, uint32_t bar, int d, int h, int token,
                         int b)
{
    asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%3, %4, %5, %6}], [%2];" ::"r"(to),
                 "l"(map), "r"(bar), "r"(d), "r"(h), "r"(token), "r"(b)
                 : "memory");
}
__device__ void store_box(const CUtensorMap *map, uint32_t from, int d, int h, int token, int b)
{
    asm volatile("cp.async.bulk.tensor.4d.global.shared::cta.bulk_group "
                 "[%0, {%2, %3, %4, %5}], [%1];" ::"l"(map),
                 "r"(from), "r"(d), "r"(h), "r"(token), "r"(b)
                 : "memory");
}

/* Position in a ring: slot and the parity of its round. */
template <int STAGES> struct ring {
    int slot = 0;
    uint32_t parity = 0;
    __device__ void step()
    {
        if (++slot == STAGES) slot = 0, parity ^= 1;
    }
};

template <class C> struct barriers {
    uint32_t base;
    __device__ uint32_t q_full() const
    {
        return base;
    }
    __device__ uint32_t q_empty() const
    {
        return base + 8;
    }
    __device__ uint32_t k_full(int i) const
    {
        return base + 16 + 8 * i;
    }
    __device__ uint32_t k_empty(int i) const
    {
        return base + 16 + 8 * (C::STAGES + i);
    }
    __device__ uint32_t v_full(int i) const
    {
        return base + 16 + 8 * (2 * C::STAGES + i);
    }
    __device__ uint32_t v_empty(int i) const
    {
        return base + 16 + 8 * (3 * C::STAGES + i);
    }
};

/* ---- the warp that loads ---- */

template <class C> __device__ void produce(const sm90_params &p, uint32_t smem, barriers<C> bars)
{
    ring<C::STAGES> at;
    uint32_t q_parity = 0;
    work w;
    for (int round = 0; next_work(p, round, &w); round++)
        for (int tile = w.tile; tile >= 0; tile = tile == w.tile ? w.other : -1) {
            int n = n_key_tiles<C>(p, tile), g = w.h / p.group;
            for (int j = 0; j < n; j++, at.step()) {
                qb_mbar_wait(bars.k_empty(at.slot), at.parity ^ 1);
                qb_mbar_expect(bars.k_full(at.slot), C::KV_BYTES);
                for (int i = 0; i < C::BLOCKS; i++)
                    load_box(smem + C::K_AT + at.slot * C::KV_BYTES + i * C::KEYS * 128, &p.k,
                             bars.k_full(at.slot), 64 * i, g, j * C::KEYS, w.b);
                if (j == 0) {
                    qb_mbar_wait(bars.q_empty(), q_parity ^ 1);
                    qb_mbar_expect(bars.q_full(), C::WGS * C::Q_BYTES);
                    for (int i = 0; i < C::WGS * C::BLOCKS; i++)
                        load_box(smem + i * ROWS * 128, &p.q, bars.q_full(), i % C::BLOCKS * 64,
                                 w.h, (tile * C::WGS + i / C::BLOCKS) * ROWS, w.b);
                    q_parity ^= 1;
                }
                qb_mbar_wait(bars.v_empty(at.slot), at.parity ^ 1);
                qb_mbar_expect(bars.v_full(at.slot), C::KV_BYTES);
                for (int i = 0; i < C::BLOCKS; i++)
                    load_box(smem + C::V_AT + at.slot * C::KV_BYTES + i * C::KEYS * 128, &p.v,
                             bars.v_full(at.slot), 64 * i, g, j * C::KEYS, w.b);
            }
        }
}

/* ---- the warpgroups that multiply ---- */

/* What wgmma writes behind the compiler's back must not be read before the wait above this. */
template <int N> __device__ __forceinline__ void pin(float (&x)[N])
{
#pragma unroll
    for (int i = 0; i < N; i++) asm volatile("" : "+f"(x[i])::"memory");
}

template <class C>
__device__ __forceinline__ void start_scores(float (&s)[C::KEYS / 2], uint32_t q, uint32_t k)
{
    uint64_t a = qb_wgmma_desc(q), b = qb_wgmma_desc(k);
#pragma unroll
    for (int d = 0; d < C::DIM; d += 16)
        qb_wgmma_bf16(s, a + (d / 64 * ROWS * 128 + d % 64 * 2) / 16,
                      b + (d / 64 * C::KEYS * 128 + d % 64 * 2) / 16, d > 0);
}

/* Values lie with their dimensions contiguous: blocks of 64 dimensions KEYS * 128 bytes apart,
 * groups of 8 keys 1024. */
template <class C>
__device__ __forceinline__ void start_values(float (&out)[C::DIM / 2],
                                             const uint32_t (&p)[C::KEYS / 4], uint32_t v)
{
    uint64_t b = (uint64_t)((v & 0x3ffff) >> 4) | (uint64_t)(C::KEYS * 128 / 16) << 16 |
                 (uint64_t)64 << 32 | (uint64_t)1 << 62;
#pragma unroll
    for (int i = 0; i < C::KEYS / 16; i++)
        qb_wgmma_bf16_ra(out, p[4 * i], p[4 * i + 1], p[4 * i + 2], p[4 * i + 3],
                         b + i * 16 * 128 / 16);
}

struct running {
    float max[2], sum[2]; /* of rows lane / 4 and lane / 4 + 8; sums of this thread's keys only */
};

/* Scores become p, in place; rescale: what earlier sums are multiplied by. `last` is the last key
 * that the thread's first row sees, counted from the tile's first. */
template <int KEYS>
__device__ __forceinline__ void softmax(float (&s)[KEYS / 2], running &run, float (&rescale)[2],
                                        int last, float scale_log2, bool relu)
{
    int t = threadIdx.x % 4 * 2;
    if (last < KEYS - 1) {
#pragma unroll
        for (int i = 0; i < KEYS / 2; i++)
            if (i / 4 * 8 + t + i % 2 > last + i / 2 % 2 * 8) s[i] = -CUDART_INF_F;
    }
    if (relu) {
#pragma unroll
        for (int i = 0; i < KEYS / 2; i++) s[i] = fmaxf(s[i], 0);
        rescale[0] = rescale[1] = 1;
        return;
    }
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float max = run.max[r];
#pragma unroll
        for (int i = 0; i < KEYS / 8; i++)
            max = fmaxf(max, fmaxf(s[4 * i + 2 * r], s[4 * i + 2 * r + 1]));
        max = fmaxf(max, __shfl_xor_sync(~0u, max, 1));
        max = fmaxf(max, __shfl_xor_sync(~0u, max, 2));
        float shift = max == -CUDART_INF_F ? 0 : max * scale_log2, sum = 0;
        rescale[r] = attention_exp2(fmaf(run.max[r], scale_log2, -shift));
#pragma unroll
        for (int i = 0; i < KEYS / 8; i++) {
            s[4 * i + 2 * r] = attention_exp2(fmaf(s[4 * i + 2 * r], scale_log2, -shift));
            s[4 * i + 2 * r + 1] = attention_exp2(fmaf(s[4 * i + 2 * r + 1], scale_log2, -shift));
            sum += s[4 * i + 2 * r] + s[4 * i + 2 * r + 1];
        }
        run.sum[r] = fmaf(run.sum[r], rescale[r], sum);
        run.max[r] = max;
    }
}

__device__ __forceinline__ uint32_t pack_bf16(float low, float high)
{
    __nv_bfloat162 x = __floats2bfloat162_rn(low, high);
    return *(uint32_t *)&x;
}

/* p in bf16, as the A operand of the product with the values. */
template <int KEYS>
__device__ __forceinline__ void pack_p(const float (&s)[KEYS / 2], uint32_t (&p)[KEYS / 4])
{
#pragma unroll
    for (int i = 0; i < KEYS / 4; i++) p[i] = pack_bf16(s[2 * i], s[2 * i + 1]);
}

/* The warpgroup's 64 rows, through shared memory in the swizzle of the copy engine's boxes. */
template <class C>
__device__ __forceinline__ void store_out(const sm90_params &p, const float (&out)[C::DIM / 2],
                                          const float (&factor)[2], uint32_t to, int wg, int h,
                                          int token, int b)
{
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
    int row = 16 * warp + lane % 16;
    if (C::OUT_APART) { /* the tile before may still be on its way out of there */
        if (threadIdx.x % 128 == 0) qb_tma_wait_read<0>();
        qb_bar_sync(1 + wg, 128);
    }
#pragma unroll
    for (int n = 0; n < C::DIM / 8; n += 2) {
        uint32_t chunk = (uint32_t)((n + lane / 16) % 8 ^ row % 8);
        qb_stmatrix_x4(to + n / 8 * ROWS * 128 + row * 128 + chunk * 16,
                       pack_bf16(out[4 * n] * factor[0], out[4 * n + 1] * factor[0]),
                       pack_bf16(out[4 * n + 2] * factor[1], out[4 * n + 3] * factor[1]),
                       pack_bf16(out[4 * n + 4] * factor[0], out[4 * n + 5] * factor[0]),
                       pack_bf16(out[4 * n + 6] * factor[1], out[4 * n + 7] * factor[1]));
    }
    qb_fence_async();
    qb_bar_sync(1 + wg, 128);
    if (threadIdx.x % 128 == 0) {
        if (token < p.n_q)
            for (int i = 0; i < C::BLOCKS; i++)
                store_box(&p.out, to + i * ROWS * 128, 64 * i, h, token, b);
        qb_tma_commit();
    }
}

template <class C>
__device__ void consume(const sm90_params &p, uint32_t smem, barriers<C> bars, int wg)
{
    const bool relu = p.kind == QB_SOFTMAX_RELU, leader = threadIdx.x % 128 == 0;
    const uint32_t q_tile = smem + wg * C::Q_BYTES, out_tile = smem + C::OUT_AT + wg * C::Q_BYTES;
    const int my_turn = 1 + C::WGS + wg, next_turn = 1 + C::WGS + (wg + 1) % C::WGS;
    const int row = threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4;
    const float scale_log2 = p.scale * CUDART_L2E_F;
    ring<C::STAGES> k_at, v_at;
    uint32_t q_parity = 0;
    work w;
    if (wg == C::WGS - 1) qb_bar_arrive(1 + C::WGS, 256); /* the first turn is warpgroup 0's */

    for (int round = 0; next_work(p, round, &w); round++)
        for (int tile = w.tile; tile >= 0; tile = tile == w.tile ? w.other : -1) {
            const int n = n_key_tiles<C>(p, tile), token = (tile * C::WGS + wg) * ROWS;
            int last = p.n_past + token + row; /* less the first key of the tile at hand */
            float s[C::KEYS / 2], out[C::DIM / 2], rescale[2];
            uint32_t weights[C::KEYS / 4];
            running run;
#pragma unroll
            for (int i = 0; i < C::DIM / 2; i++) out[i] = 0;
            for (int r = 0; r < 2; r++) {
                attention_row_start(p.kind, &run.max[r], &run.sum[r]);
                if (threadIdx.x % 4) run.sum[r] = 0; /* one of the quad counts softmax-1's e^0 */
            }

            qb_mbar_wait(bars.q_full(), q_parity);
            q_parity ^= 1;
            qb_mbar_wait(bars.k_full(k_at.slot), k_at.parity);
            qb_wgmma_fence();
            start_scores<C>(s, q_tile, smem + C::K_AT + k_at.slot * C::KV_BYTES);
            qb_wgmma_commit();
            qb_wgmma_wait<0>();
            pin(s);
            if (leader) qb_mbar_arrive(bars.k_empty(k_at.slot));
            k_at.step();
            softmax<C::KEYS>(s, run, rescale, last, scale_log2, relu);
            pack_p<C::KEYS>(s, weights);

            for (int j = 1; j < n; j++) {
                last -= C::KEYS;
                qb_mbar_wait(bars.k_full(k_at.slot), k_at.parity);
                qb_bar_sync(my_turn, 256);
                qb_wgmma_fence();
                start_scores<C>(s, q_tile, smem + C::K_AT + k_at.slot * C::KV_BYTES);
                qb_wgmma_commit();
                qb_mbar_wait(bars.v_full(v_at.slot), v_at.parity);
                start_values<C>(out, weights, smem + C::V_AT + v_at.slot * C::KV_BYTES);
                qb_wgmma_commit();
                qb_bar_arrive(next_turn, 256);
                qb_wgmma_wait<1>();
                pin(s);
                if (leader) qb_mbar_arrive(bars.k_empty(k_at.slot));
                k_at.step();
                softmax<C::KEYS>(s, run, rescale, last, scale_log2, relu);
                qb_wgmma_wait<0>();
                pin(out);
                pin(s);
                if (leader) qb_mbar_arrive(bars.v_empty(v_at.slot));
                v_at.step();
#pragma unroll
                for (int i = 0; i < C::DIM / 2; i++) out[i] *= rescale[i / 2 % 2];
                pack_p<C::KEYS>(s, weights);
            }
            if (C::OUT_APART && leader) qb_mbar_arrive(bars.q_empty());
            qb_mbar_wait(bars.v_full(v_at.slot), v_at.parity);
            qb_wgmma_fence();
            start_values<C>(out, weights, smem + C::V_AT + v_at.slot * C::KV_BYTES);
            qb_wgmma_commit();
            float factor[2];
            for (int r = 0; r < 2; r++) {
                float sum = run.sum[r];
                sum += __shfl_xor_sync(~0u, sum, 1);
                sum += __shfl_xor_sync(~0u, sum, 2);
                float divisor =
                    attention_row_divisor(p.kind, sum, p.n_past + token + row + 8 * r + 1);
                factor[r] = divisor > 0 ? (relu ? p.scale : 1) / divisor : 0;
            }
            qb_wgmma_wait<0>();
            pin(out);
            if (leader) qb_mbar_arrive(bars.v_empty(v_at.slot));
            v_at.step();
            store_out<C>(p, out, factor, out_tile, wg, w.h, token, w.b);
            if (!C::OUT_APART && leader) { /* the queries' place: free once it has been read */
                qb_tma_wait_read<0>();
                qb_mbar_arrive(bars.q_empty());
            }
        }
}

template <class C>
__global__ void __launch_bounds__(C::THREADS, 1) attention(const __grid_constant__ sm90_params p)
{
    extern __shared__ char raw[];
    const uint32_t smem = (qb_smem(raw) + 1023) & ~1023u;
    const barriers<C> bars = {smem + C::BARS_AT};
    if (threadIdx.x == 0) {
        qb_mbar_init(bars.q_full(), 1);
        qb_mbar_init(bars.q_empty(), C::WGS);
        for (int i = 0; i < C::STAGES; i++) {
            qb_mbar_init(bars.k_full(i), 1);
            qb_mbar_init(bars.k_empty(i), C::WGS);
            qb_mbar_init(bars.v_full(i), 1);
            qb_mbar_init(bars.v_empty(i), C::WGS);
        }
        qb_mbar_init_fence();
    }
    __syncthreads();
    const int wg = threadIdx.x / 128;
    if (wg == C::WGS) {
        qb_regs_give<C::PRODUCER_REGS>();
        if (threadIdx.x == 128 * C::WGS) produce<C>(p, smem, bars);
    } else {
        qb_regs_take<C::CONSUMER_REGS>();
        consume<C>(p, smem, bars, wg);
    }
}

/* ---- host ---- */

typedef CUresult (*encode_function)(CUtensorMap *, CUtensorMapDataType, cuuint32_t, void *,
                                    const cuuint64_t *, const cuuint64_t *, const cuuint32_t *,
                                    const cuuint32_t *, CUtensorMapInterleave, CUtensorMapSwizzle,
                                    CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

qb_status encoder(encode_function *out)
{
    static encode_function function;
    cudaDriverEntryPointQueryResult found;
    if (!function)
        QB_CUDA_TRY(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", (void **)&function,
                                                     12000, cudaEnableDefault, &found));
    *out = function;
    return QB_OK;
}

/* Boxes of 64 dimensions of one head of `box_tokens` tokens; zeros outside. Strides in elements. */
qb_status make_map(CUtensorMap *out, const void *base, size_t head_dim, size_t n_heads,
                   size_t n_tokens, size_t batch, size_t stride, size_t batch_stride,
                   int box_tokens)
{
    encode_function encode;
    QB_TRY(encoder(&encode));
    const cuuint64_t dims[4] = {head_dim, n_heads, n_tokens, batch};
    const cuuint64_t strides[3] = {head_dim * 2, stride * 2, batch_stride * 2};
    const cuuint32_t box[4] = {64, 1, (cuuint32_t)box_tokens, 1}, steps[4] = {1, 1, 1, 1};
    CUresult code = encode(out, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 4, (void *)base, dims, strides,
                           box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                           CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    if (code == CUDA_SUCCESS) return QB_OK;
    return QB_FAIL(QB_ERR_DEVICE, "cuda: attention/sm90: tensor map: code %d", (int)code);
}

template <class C> qb_status launch(const qb_cuda_attention_args *a, qb_cuda_stream stream)
{
    sm90_params p = {};
    size_t n_keys = a->n_past + a->n_q;
    size_t kv_batch = a->batch > 1 ? a->kv_batch_stride : n_keys * a->kv_stride;
    QB_TRY(make_map(&p.q, a->q, a->head_dim, a->n_heads, a->n_q, a->batch, a->q_stride,
                    a->n_q * a->q_stride, ROWS));
    QB_TRY(make_map(&p.k, a->k, a->head_dim, a->n_kv_heads, n_keys, a->batch, a->kv_stride,
                    kv_batch, C::KEYS));
    QB_TRY(make_map(&p.v, a->v, a->head_dim, a->n_kv_heads, n_keys, a->batch, a->kv_stride,
                    kv_batch, C::KEYS));
    QB_TRY(make_map(&p.out, a->out, a->head_dim, a->n_heads, a->n_q, a->batch, a->out_stride,
                    a->n_q * a->out_stride, ROWS));
    p.n_q = (int)a->n_q, p.n_past = (int)a->n_past, p.n_heads = (int)a->n_heads;
    p.group = (int)(a->n_heads / a->n_kv_heads), p.kind = a->softmax, p.scale = a->scale;
    int device, n_sms;
    QB_CUDA_TRY(cudaGetDevice(&device));
    QB_CUDA_TRY(cudaDeviceGetAttribute(&n_sms, cudaDevAttrMultiProcessorCount, device));
    int n_rows = C::WGS * ROWS, n_heads = (int)(a->n_heads * a->batch);
    p.n_tiles = (p.n_q + n_rows - 1) / n_rows;
    p.n_pairs = (p.n_tiles + 1) / 2 * n_heads >= 2 * n_sms ? (p.n_tiles + 1) / 2 : 0;
    p.n_items = (p.n_pairs ? p.n_pairs : p.n_tiles) * n_heads;
    QB_CUDA_TRY(cudaFuncSetAttribute(attention<C>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                     C::SMEM_BYTES));
    int n_blocks = p.n_items < n_sms ? p.n_items : n_sms;
    attention<C><<<(unsigned)n_blocks, C::THREADS, C::SMEM_BYTES, stream>>>(p);
    QB_CUDA_TRY(cudaGetLastError());
    return QB_OK;
}

} // namespace

const char *qb__cuda_attention_refuse_sm90(const qb_cuda_attention_args *args)
{
    if (args->type != QB_CUDA_BF16) return "type is not bf16";
    if (args->n_past_dev) return "the number of past tokens is on the device";
    if (args->head_dim > 256) return "head_dim is over 256";
    if (!(args->scale > 0)) return "the scale is not positive";
    return qb__cuda_attention_misaligned(args);
}

qb_status qb__cuda_attention_run_sm90(const qb_cuda_attention_args *args, qb_cuda_stream stream)
{
    if (args->head_dim <= 64) return launch<config<64, 128, 2, 2>>(args, stream);
    if (args->head_dim <= 128) return launch<config<128, 128, 2, 2>>(args, stream);
    return launch<config<256, 64, 2, 2>>(args, stream);
}
