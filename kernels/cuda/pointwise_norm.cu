/* kernels/cuda/pointwise_norm.cu - x += pending; norm; stage: one trip over x. A per-tensor dynamic
 * scale takes a second one, since no code can be made before the last row's maximum. */
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

template <int V>
__device__ __forceinline__ slots slots_make(const norm_call &c, char *shared, int n_stages)
{
    const int n_threads = blockDim.x * blockDim.y, thread = threadIdx.y * blockDim.x + threadIdx.x,
              bytes = c.args.pending.type == QB_CUDA_BF16 ? 8 : 16;
    return {shared + thread * 16, shared + n_stages * V * n_threads * 16 + thread * bytes,
            n_threads * 16, n_threads * bytes};
}

/* Columns from the width on become 0. */
template <int V>
__device__ __forceinline__ void copy_row(const norm_call &c, const slots &s, size_t row, int stage)
{
    const qb_cuda_norm_args &a = c.args;
    if (row < a.m) {
        const float *x = a.x + row * a.x_stride;
        const size_t pending = row * a.pending.stride;
#pragma unroll
        for (int u = 0; u < V; u++) {
            const int column = column_of(u), n_inside = min(UNIT, (int)a.width - column),
                      slot = stage * V + u;
            if (n_inside <= 0) break;
            qb_copy_ahead<16>(s.x + slot * s.x_step, x + column, n_inside * 4);
            if (c.add && a.pending.type == QB_CUDA_BF16)
                qb_copy_ahead<8>(s.pending + slot * s.pending_step,
                                 (const __nv_bfloat16 *)a.pending.y + pending + column,
                                 n_inside * 2);
            else if (c.add)
                qb_copy_ahead<16>(s.pending + slot * s.pending_step,
                                  (const float *)a.pending.y + pending + column, n_inside * 4);
        }
    }
    qb_copies_commit();
}

/* v = x + pending, which is written back to x. */
template <int V>
__device__ __forceinline__ void take_row(const norm_call &c, const slots &s, size_t row, int stage,
                                         const qb_requantiser &requantiser, float (&v)[V][UNIT])
{
    const qb_cuda_norm_args &a = c.args;
#pragma unroll
    for (int u = 0; u < V; u++) {
        const int column = column_of(u), slot = stage * V + u;
#pragma unroll
        for (int i = 0; i < UNIT; i++) v[u][i] = 0.0f;
        if (row >= a.m || column >= (int)a.width) continue;
        qb_load(s.x + slot * s.x_step, QB_CUDA_F32, 0, v[u]);
        if (!c.add) continue;
        float pending[UNIT];
        qb_load(s.pending + slot * s.pending_step, a.pending.type, 0, pending);
        if (c.requantise) qb_requantise(requantiser, column, pending);
#pragma unroll
        for (int i = 0; i < UNIT; i++) v[u][i] = __fadd_rn(v[u][i], pending[i]);
        qb_clear_edge((int)a.width - column, v[u]);
        qb_store(a.x, QB_CUDA_F32, row * a.x_stride + column, v[u]);
    }
}

/* ---- norm ---- */

/* v -= mean; columns from the width on stay 0. */
template <int V>
__device__ __forceinline__ void centre_row(const norm_call &c, float mean, float (&v)[V][UNIT])
{
    if (c.args.norm != QB_NORM_LAYERNORM) return;
#pragma unroll
    for (int u = 0; u < V; u++) {
        const int n_inside = (int)c.args.width - column_of(u);
        if (n_inside <= 0) continue;
#pragma unroll
        for (int i = 0; i < UNIT; i++) v[u][i] = __fsub_rn(v[u][i], mean);
        qb_clear_edge(n_inside, v[u]);
    }
}

/* 1 / sqrt(x), about an ulp: one step of Newton's after the approximation. */
__device__ __forceinline__ float inverse_root(float x)
{
    const float y = rsqrtf(x), half = __fmul_rn(0.5f, x);
    const float better = __fmul_rn(y, __fmaf_rn(-__fmul_rn(half, y), y, 1.5f));
    return x > 0x1p-100f && x < 0x1p100f ? better : y; /* else the products may overflow */
}

/* Centres the row. */
template <int V>
__device__ __forceinline__ row_stats reduce_row(const norm_call &c, float (&v)[V][UNIT],
                                                qb_row_scratch &scratch, int odd)
{
    row_stats stats = {0.0f, 0.0f};
    float sum = 0.0f;
    if (c.args.norm == QB_NORM_LAYERNORM) {
#pragma unroll
        for (int u = 0; u < V; u++) sum = __fadd_rn(sum, qb_unit_sum(v[u]));
        stats.mean = __fmul_rn(qb_row_sum(sum, scratch, odd, 0), c.inverse_width);
    }
    centre_row(c, stats.mean, v);
    sum = 0.0f;
#pragma unroll
    for (int u = 0; u < V; u++) sum = __fadd_rn(sum, qb_unit_squares(v[u]));
    const float variance = __fmul_rn(qb_row_sum(sum, scratch, odd, 1), c.inverse_width);
    stats.inverse = inverse_root(__fadd_rn(variance, c.args.eps));
    return stats;
}

/* The same in the second pass. */
template <int V>
__device__ __forceinline__ row_stats recall_row(const norm_call &c, size_t row, float (&v)[V][UNIT])
{
    const float *from = c.args.stage.row_stats + 2 * row;
    centre_row(c, from[0], v);
    return {from[0], from[1]};
}

__device__ __forceinline__ void load_channels(const float *from, bool vectors, int column,
                                              int n_inside, float (&v)[UNIT])
{
    if (vectors && n_inside >= UNIT)
        qb_load(from, QB_CUDA_F32, column, v);
    else
        qb_load_edge(from, QB_CUDA_F32, column, n_inside, v);
}

/* v * inverse * gain + bias of a centred unit; rounded step by step, so that both passes agree. */
__device__ __forceinline__ void normalise(const norm_call &c, float inverse, int column,
                                          float (&v)[UNIT])
{
    const qb_cuda_norm_args &a = c.args;
    const int n_inside = (int)a.width - column;
    float gain[UNIT], bias[UNIT] = {0.0f, 0.0f, 0.0f, 0.0f};
    if (n_inside <= 0) return;
    if (a.norm == QB_NORM_RMSNORM_SINGLE)
        gain[0] = gain[1] = gain[2] = gain[3] = a.gain[0];
    else
        load_channels(a.gain, c.vectors, column, n_inside, gain);
    if (a.bias) load_channels(a.bias, c.vectors, column, n_inside, bias);
#pragma unroll
    for (int i = 0; i < UNIT; i++) v[i] = __fmaf_rn(__fmul_rn(v[i], inverse), gain[i], bias[i]);
    qb_clear_edge(n_inside, v); /* 0 * an infinite inverse */
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

template <int V, int STAGES>
__global__ void __launch_bounds__(32 * QB_ROW_WARPS, V <= 4 ? 2 : 1)
    add_norm_rows(const __grid_constant__ norm_call c)
{
    __shared__ qb_row_scratch scratch;
    __shared__ qb_requantiser requantiser;
    extern __shared__ __align__(16) char shared[];
    const qb_cuda_norm_args &a = c.args;
    const qb_cuda_stage &stage = a.stage;
    const slots s = slots_make<V>(c, shared, STAGES);
    const size_t step = (size_t)gridDim.x * blockDim.y;
    const bool by_row = stage.kind == QB_STAGE_TOKEN || c.pass == PASS_MAXIMUM;
    size_t row = (size_t)blockIdx.x * blockDim.y + threadIdx.y;
    for (int ahead = 0; ahead < STAGES - 1; ahead++) copy_row<V>(c, s, row + ahead * step, ahead);

    if (c.add) qb_requantiser_init(requantiser, a.pending);
    float scale = by_row ? 0.0f : qb_stage_scale(stage);
    qb_quantiser quantiser = qb_quantiser_make(scale);
    if (c.pass == PASS_CODES && row == 0 && threadIdx.x == 0) stage.scale[0] = scale;

    for (int i = 0; row - threadIdx.y < a.m; i++, row += step) {
        float v[V][UNIT];
        copy_row<V>(c, s, row + (STAGES - 1) * step, (i + STAGES - 1) % STAGES);
        qb_copies_wait<STAGES - 1>();
        take_row(c, s, row, i % STAGES, requantiser, v);
        row_stats stats = {0.0f, 0.0f};
        if (c.pass != PASS_CODES)
            stats = reduce_row(c, v, scratch, i % 2);
        else if (row < a.m)
            stats = recall_row(c, row, v);
#pragma unroll
        for (int u = 0; u < V; u++) normalise(c, stats.inverse, column_of(u), v[u]);
        if (by_row) quantiser = qb_quantiser_make(scale_of_row(c, row, stats, v, scratch, i % 2));
        if (c.pass == PASS_MAXIMUM || row >= a.m) continue;
#pragma unroll
        for (int u = 0; u < V; u++)
            if (column_of(u) < c.n_columns)
                qb_stage_unit(stage, row, column_of(u), (int)a.width, v[u], quantiser);
    }
}

/* ---- launch ---- */

template <int V, int STAGES> qb_status launch_units(const norm_call &c, qb_cuda_stream stream)
{
    const dim3 block = qb_row_block((size_t)c.n_columns / UNIT, V);
    const size_t unit_bytes = 16 + (!c.add                                ? 0
                                    : c.args.pending.type == QB_CUDA_BF16 ? 8
                                                                          : 16),
                 bytes = unit_bytes * STAGES * V * block.x * block.y;
    unsigned grid;
    QB_TRY((qb_row_grid<add_norm_rows<V, STAGES>>)(block, bytes, c.args.m, &grid));
    add_norm_rows<V, STAGES><<<grid, block, bytes, stream>>>(c);
    QB_CUDA_TRY(cudaGetLastError());
    return QB_OK;
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
    if (c.n_columns <= 2 * 32 * QB_ROW_WARPS * UNIT) return launch_units<2, 2>(c, stream);
    if (c.n_columns <= 4 * 32 * QB_ROW_WARPS * UNIT) return launch_units<4, 2>(c, stream);
    return launch_units<8, 1>(c, stream);
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
