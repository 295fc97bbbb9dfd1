/* kernels/cuda/pointwise_norm.cu - x += pending; norm; stage: one trip over x. A per-tensor dynamic
 * scale takes a second one, since no code can be made before the last row's maximum. */
#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/pointwise.cuh"

namespace
{
enum norm_pass { PASS_WHOLE, PASS_MAXIMUM, PASS_CODES };
enum { UNIT = 4, MOST_WIDTH = 16384 };

struct norm_call {
    qb_cuda_norm_args args;
    norm_pass pass;
    float inverse_width;
    int n_columns;        /* that the stage writes */
    bool add, requantise; /* there is something pending; with a scale */
    bool vectors;         /* gain and bias are aligned to 16 bytes */
};

/* What is known when the kernel is compiled: ANY nothing; PLAIN that every thread's units lie
 * inside the width, gain and bias are vectors, and nothing is pending; ADDS the same with bf16
 * pending. */
enum norm_case { ANY, PLAIN, ADDS };

template <norm_case CASE> __device__ __forceinline__ bool adds(const norm_call &c)
{
    return CASE == ANY ? c.add : CASE == ADDS;
}
template <norm_case CASE> __device__ __forceinline__ bool is_bf16(const norm_call &c)
{
    return CASE == ADDS || c.args.pending.type == QB_CUDA_BF16;
}
template <norm_case CASE> __device__ __forceinline__ int inside(const norm_call &c, int column)
{
    return CASE == ANY ? (int)c.args.width - column : UNIT;
}

struct row_stats {
    float mean, inverse;
};

__device__ __forceinline__ int column_of(int u)
{
    return (u * (int)blockDim.x + (int)threadIdx.x) * UNIT;
}

/* ---- this thread's part of a row, on its way through shared memory ---- */

struct slots {
    char *x, *pending; /* of this thread; a unit and a stage further are apart by... */
    int x_step, pending_step;
};

template <int V, norm_case CASE>
__device__ __forceinline__ slots slots_make(const norm_call &c, char *shared, int n_stages)
{
    const int n_threads = blockDim.x * blockDim.y, thread = threadIdx.y * blockDim.x + threadIdx.x,
              bytes = is_bf16<CASE>(c) ? 8 : 16;
    return {shared + thread * 16, shared + n_stages * V * n_threads * 16 + thread * bytes,
            n_threads * 16, n_threads * bytes};
}

/* Columns from the width on become 0. */
template <int V, norm_case CASE>
__device__ __forceinline__ void copy_row(const norm_call &c, const slots &s, size_t row, int stage)
{
    const qb_cuda_norm_args &a = c.args;
    if (row < a.m) {
        const float *x = a.x + row * a.x_stride;
        const size_t pending = row * a.pending.stride;
#pragma unroll
        for (int u = 0; u < V; u++) {
            const int column = column_of(u), n = min(UNIT, inside<CASE>(c, column)),
                      slot = stage * V + u;
            if (n <= 0) break;
            qb_copy_ahead<16>(s.x + slot * s.x_step, x + column, n * 4);
            if (!adds<CASE>(c)) continue;
            char *to = s.pending + slot * s.pending_step;
            if (is_bf16<CASE>(c))
                qb_copy_ahead<8>(to, (const __nv_bfloat16 *)a.pending.y + pending + column, n * 2);
            else
                qb_copy_ahead<16>(to, (const float *)a.pending.y + pending + column, n * 4);
        }
    }
    qb_copies_commit();
}

/* v = x + pending, which is written back to x. */
template <int V, norm_case CASE>
__device__ __forceinline__ void take_row(const norm_call &c, const slots &s, size_t row, int stage,
                                         const qb_requantiser &requantiser, float (&v)[V][UNIT])
{
    const qb_cuda_norm_args &a = c.args;
#pragma unroll
    for (int u = 0; u < V; u++)
#pragma unroll
        for (int i = 0; i < UNIT; i++) v[u][i] = 0.0f;
    if (row >= a.m) return;
    float *x = a.x + row * a.x_stride;
#pragma unroll
    for (int u = 0; u < V; u++) {
        const int column = column_of(u), n = inside<CASE>(c, column), slot = stage * V + u;
        if (n <= 0) continue;
        qb_load(s.x + slot * s.x_step, QB_CUDA_F32, 0, v[u]);
        if (!adds<CASE>(c)) continue;
        float pending[UNIT];
        qb_load(s.pending + slot * s.pending_step, is_bf16<CASE>(c) ? QB_CUDA_BF16 : QB_CUDA_F32, 0,
                pending);
        if (c.requantise) qb_requantise(requantiser, column, pending);
#pragma unroll
        for (int i = 0; i < UNIT; i++) v[u][i] = __fadd_rn(v[u][i], pending[i]);
        qb_clear_edge(n, v[u]);
        qb_store(x, QB_CUDA_F32, column, v[u]);
    }
}

/* ---- norm ---- */

/* v -= mean; columns from the width on stay 0. */
template <int V, norm_case CASE>
__device__ __forceinline__ void centre_row(const norm_call &c, float mean, float (&v)[V][UNIT])
{
#pragma unroll
    for (int u = 0; u < V; u++) {
        const int n = inside<CASE>(c, column_of(u));
        if (n <= 0) continue;
#pragma unroll
        for (int i = 0; i < UNIT; i++) v[u][i] = __fsub_rn(v[u][i], mean);
        qb_clear_edge(n, v[u]);
    }
}

/* 1 / sqrt(x), about an ulp: one step of Newton's after the approximation. */
__device__ __forceinline__ float inverse_root(float x)
{
    const float y = rsqrtf(x), half = __fmul_rn(0.5f, x);
    const float better = __fmul_rn(y, __fmaf_rn(-__fmul_rn(half, y), y, 1.5f));
    return x > 0x1p-100f && x < 0x1p100f ? better : y; /* else the products may overflow */
}

/* Centres the row, if the norm is one that does. */
template <int V, norm_case CASE>
__device__ __forceinline__ row_stats reduce_row(const norm_call &c, float (&v)[V][UNIT],
                                                qb_row_scratch &scratch, int odd)
{
    row_stats stats = {0.0f, 0.0f};
    float sum = 0.0f;
    if (c.args.norm == QB_NORM_LAYERNORM) {
#pragma unroll
        for (int u = 0; u < V; u++) sum = __fadd_rn(sum, qb_unit_sum(v[u]));
        stats.mean = __fmul_rn(qb_row_sum(sum, scratch, odd, 0), c.inverse_width);
        centre_row<V, CASE>(c, stats.mean, v);
    }
    sum = 0.0f;
#pragma unroll
    for (int u = 0; u < V; u++) sum = __fadd_rn(sum, qb_unit_squares(v[u]));
    const float variance = __fmul_rn(qb_row_sum(sum, scratch, odd, 1), c.inverse_width);
    stats.inverse = inverse_root(__fadd_rn(variance, c.args.eps));
    return stats;
}

/* The same in the second pass. */
template <int V, norm_case CASE>
__device__ __forceinline__ row_stats recall_row(const norm_call &c, size_t row, float (&v)[V][UNIT])
{
    const float *from = c.args.stage.row_stats + 2 * row;
    if (c.args.norm == QB_NORM_LAYERNORM) centre_row<V, CASE>(c, from[0], v);
    return {from[0], from[1]};
}

template <norm_case CASE>
__device__ __forceinline__ void load_channels(const norm_call &c, const float *from, int column,
                                              int n, float (&v)[UNIT])
{
    if (CASE != ANY || (c.vectors && n >= UNIT))
        qb_load(from, QB_CUDA_F32, column, v);
    else
        qb_load_edge(from, QB_CUDA_F32, column, n, v);
}

/* v * inverse * gain + bias of centred units; rounded step by step, so that both passes agree. */
template <int V, norm_case CASE, bool BIAS>
__device__ __forceinline__ void normalise(const norm_call &c, float inverse, float (&v)[V][UNIT])
{
    const qb_cuda_norm_args &a = c.args;
#pragma unroll
    for (int u = 0; u < V; u++) {
        const int column = column_of(u), n = inside<CASE>(c, column);
        float gain[UNIT], bias[UNIT] = {0.0f, 0.0f, 0.0f, 0.0f};
        if (n <= 0) continue;
        if (CASE == ANY && a.norm == QB_NORM_RMSNORM_SINGLE)
            gain[0] = gain[1] = gain[2] = gain[3] = a.gain[0];
        else
            load_channels<CASE>(c, a.gain, column, n, gain);
        if (BIAS) load_channels<CASE>(c, a.bias, column, n, bias);
#pragma unroll
        for (int i = 0; i < UNIT; i++)
            v[u][i] = __fmaf_rn(__fmul_rn(v[u][i], inverse), gain[i], bias[i]);
        qb_clear_edge(n, v[u]); /* 0 * an infinite inverse */
    }
}

/* ---- a row ---- */

/* The scale of this row's codes; writes what the pass keeps of the row. */
template <int V>
__device__ __forceinline__ float scale_of_row(const norm_call &c, size_t row, row_stats stats,
                                              const float (&v)[V][UNIT], qb_row_scratch &scratch,
                                              int odd)
{
    const qb_cuda_stage &stage = c.args.stage;
    float max_abs = 0.0f;
#pragma unroll
    for (int u = 0; u < V; u++) max_abs = qb_unit_max(max_abs, v[u]);
    max_abs = qb_row_max(max_abs, scratch, odd, 2);
    const float scale = qb_scale_of_max(max_abs);
    if (row >= c.args.m || threadIdx.x) return scale;
    if (c.pass == PASS_MAXIMUM) {
        stage.row_stats[2 * row] = stats.mean;
        stage.row_stats[2 * row + 1] = stats.inverse;
        qb_raise_max(stage.max_bits, max_abs);
    } else {
        stage.scale[row] = scale;
    }
    return scale;
}

template <int V, int STAGES, norm_case CASE>
__global__ void __launch_bounds__(32 * QB_ROW_WARPS, V <= 4 ? 2 : 1)
    add_norm_rows(const __grid_constant__ norm_call c)
{
    __shared__ qb_row_scratch scratch;
    __shared__ qb_requantiser requantiser;
    extern __shared__ __align__(16) char shared[];
    const qb_cuda_norm_args &a = c.args;
    const qb_cuda_stage &stage = a.stage;
    const slots s = slots_make<V, CASE>(c, shared, STAGES);
    const size_t step = (size_t)gridDim.x * blockDim.y;
    const bool by_row = stage.kind == QB_STAGE_TOKEN || c.pass == PASS_MAXIMUM;
    size_t row = (size_t)blockIdx.x * blockDim.y + threadIdx.y;
    qb__start_next_grid();
    qb__wait_previous_grid();
    for (int ahead = 0; ahead < STAGES - 1; ahead++)
        copy_row<V, CASE>(c, s, row + ahead * step, ahead);

    if (adds<CASE>(c)) qb_requantiser_init(requantiser, a.pending);
    float scale = by_row ? 0.0f : qb_stage_scale(stage);
    qb_quantiser quantiser = qb_quantiser_make(scale);
    if (c.pass == PASS_CODES && row == 0 && threadIdx.x == 0) stage.scale[0] = scale;

    for (int i = 0; row - threadIdx.y < a.m; i++, row += step) {
        float v[V][UNIT];
        if (a.cleared && threadIdx.x == 0 && row < a.m) a.cleared[row] = 0;
        copy_row<V, CASE>(c, s, row + (STAGES - 1) * step, (i + STAGES - 1) % STAGES);
        qb_copies_wait<STAGES - 1>();
        take_row<V, CASE>(c, s, row, i % STAGES, requantiser, v);
        row_stats stats = {0.0f, 0.0f};
        if (c.pass != PASS_CODES)
            stats = reduce_row<V, CASE>(c, v, scratch, i % 2);
        else if (row < a.m)
            stats = recall_row<V, CASE>(c, row, v);
        if (a.bias)
            normalise<V, CASE, true>(c, stats.inverse, v);
        else
            normalise<V, CASE, false>(c, stats.inverse, v);
        if (by_row) quantiser = qb_quantiser_make(scale_of_row(c, row, stats, v, scratch, i % 2));
        if (c.pass == PASS_MAXIMUM || row >= a.m) continue;
        qb_stage_row<CASE != ANY>(stage, row, (int)a.width, c.n_columns, v, quantiser);
    }
}

/* ---- launch ---- */

template <int V, int STAGES, norm_case CASE>
qb_status launch_case(const norm_call &c, dim3 block, qb_cuda_stream stream)
{
    const size_t unit_bytes = 16 + (!c.add                                ? 0
                                    : c.args.pending.type == QB_CUDA_BF16 ? 8
                                                                          : 16),
                 bytes = unit_bytes * STAGES * V * block.x * block.y;
    unsigned grid;
    QB_TRY((qb_row_grid<add_norm_rows<V, STAGES, CASE>>)(block, bytes, c.args.m, &grid));
    return qb__launch_overlapped(add_norm_rows<V, STAGES, CASE>, dim3(grid), block, bytes, stream,
                                 c);
}

/* The sums of a row are the same in all cases: they depend on V alone. */
template <int V, int STAGES> qb_status launch_units(const norm_call &c, qb_cuda_stream stream)
{
    const qb_cuda_norm_args &a = c.args;
    const dim3 block = qb_row_block((size_t)c.n_columns / UNIT, V);
    const bool whole = a.width == (size_t)V * UNIT * block.x && c.n_columns == (int)a.width &&
                       c.vectors && a.norm != QB_NORM_RMSNORM_SINGLE;
    if (whole && !c.add) return launch_case<V, STAGES, PLAIN>(c, block, stream);
    if (whole && a.pending.type == QB_CUDA_BF16)
        return launch_case<V, STAGES, ADDS>(c, block, stream);
    return launch_case<V, STAGES, ANY>(c, block, stream);
}

qb_status launch(const qb_cuda_norm_args *a, norm_pass pass, qb_cuda_stream stream)
{
    norm_call c;
    c.args = *a;
    c.pass = pass;
    c.inverse_width = 1.0f / (float)a->width;
    c.n_columns = qb_stage_columns(&a->stage, a->width);
    c.add = a->pending.y && pass != PASS_CODES;
    c.requantise = a->pending.max_bits || a->pending.scale;
    c.vectors = ((uintptr_t)a->gain | (uintptr_t)a->bias) % 16 == 0;
    if (c.n_columns < 2048) return launch_units<2, 2>(c, stream);
    if (c.n_columns <= 4 * 32 * QB_ROW_WARPS * UNIT) return launch_units<4, 2>(c, stream);
    return launch_case<8, 1, ANY>(c, qb_row_block((size_t)c.n_columns / UNIT, 8), stream);
}
} /* namespace */

qb_status qb_cuda_add_norm(const qb_cuda_norm_args *a, qb_cuda_stream stream)
{
    if (a->m == 0) return QB_OK;
    if (a->width == 0 || a->width > MOST_WIDTH)
        return QB_FAIL(QB_ERR_SHAPE, "norm: width %zu, expected 1 to %d", a->width, MOST_WIDTH);
    if (a->x_stride % 4 || a->stage.stride % 4 || (a->pending.y && a->pending.stride % 4))
        return QB_FAIL(QB_ERR_SHAPE, "norm: row strides %zu, %zu and %zu, expected multiples of 4",
                       a->x_stride, a->stage.stride, a->pending.stride);
    if (a->stage.kind != QB_STAGE_TENSOR) return launch(a, PASS_WHOLE, stream);
    QB_TRY(qb_cuda_zero(a->stage.max_bits, sizeof *a->stage.max_bits, stream));
    QB_TRY(launch(a, PASS_MAXIMUM, stream));
    return launch(a, PASS_CODES, stream);
}
