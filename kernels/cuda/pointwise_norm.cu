/* kernels/cuda/pointwise_norm.cu - x += pending; norm; stage: one trip over x. A per-tensor dynamic
 * scale takes a second one, since no code can be made before the last row's maximum. */
#include "kernels/cuda/pointwise.cuh"

namespace
{
enum norm_pass { PASS_WHOLE, PASS_MAXIMUM, PASS_CODES };
enum { UNIT = 4, MOST_WIDTH = 16384 };

struct row_stats {
    float mean, inverse;
};

/* (x - mean) * inverse * gain + bias, each step rounded, so that both passes agree. */
__device__ __forceinline__ void normalise(const qb_cuda_norm_args &a, row_stats stats, int column,
                                          bool vectors, float (&v)[UNIT])
{
    int n_inside = min(UNIT, (int)a.width - column);
    float gain[UNIT], bias[UNIT] = {0.0f, 0.0f, 0.0f, 0.0f};
    if (a.norm == QB_NORM_RMSNORM_SINGLE) {
        gain[0] = gain[1] = gain[2] = gain[3] = a.gain[0];
    } else if (vectors && n_inside == UNIT) {
        qb_load(a.gain, QB_CUDA_F32, column, gain);
    } else {
        qb_load_edge(a.gain, QB_CUDA_F32, column, n_inside, gain);
    }
    if (a.bias && vectors && n_inside == UNIT)
        qb_load(a.bias, QB_CUDA_F32, column, bias);
    else if (a.bias)
        qb_load_edge(a.bias, QB_CUDA_F32, column, n_inside, bias);
#pragma unroll
    for (int i = 0; i < UNIT; i++) {
        float y = __fmul_rn(__fmul_rn(__fsub_rn(v[i], stats.mean), stats.inverse), gain[i]);
        v[i] = i < n_inside ? __fadd_rn(y, bias[i]) : 0.0f;
    }
}

/* Columns from the width on count 0 (v is 0 there for the mean). */
template <int V>
__device__ __forceinline__ row_stats reduce_row(const qb_cuda_norm_args &a,
                                                const float (&v)[V][UNIT], qb_row_scratch &scratch)
{
    const float n = (float)a.width;
    row_stats stats = {0.0f, 0.0f};
    float sum = 0.0f;
    if (a.norm == QB_NORM_LAYERNORM) {
#pragma unroll
        for (int u = 0; u < V; u++) sum = __fadd_rn(sum, qb_unit_sum(v[u]));
        stats.mean = __fdiv_rn(qb_row_reduce<qb_sum_of>(sum, scratch, 0), n);
    }
    sum = 0.0f;
#pragma unroll
    for (int u = 0; u < V; u++) {
        int column = (u * blockDim.x + threadIdx.x) * UNIT;
        float squares[UNIT];
#pragma unroll
        for (int i = 0; i < UNIT; i++) {
            float d = __fsub_rn(v[u][i], stats.mean);
            squares[i] = column + i < (int)a.width ? __fmul_rn(d, d) : 0.0f;
        }
        sum = __fadd_rn(sum, qb_unit_sum(squares));
    }
    float variance = __fdiv_rn(qb_row_reduce<qb_sum_of>(sum, scratch, 1), n);
    stats.inverse = __fdiv_rn(1.0f, __fsqrt_rn(__fadd_rn(variance, a.eps)));
    return stats;
}

/* A product writes nothing past its width. */
__device__ __forceinline__ void load_pending(const qb_cuda_norm_args &a, size_t row, int column,
                                             float (&v)[UNIT])
{
    int n_inside = (int)a.width - column;
    size_t at = row * a.pending.stride + column;
    if (n_inside >= UNIT)
        qb_load(a.pending.y, a.pending.type, at, v);
    else
        qb_load_edge(a.pending.y, a.pending.type, at, n_inside, v);
}

template <int V>
__device__ __forceinline__ void load_row(const qb_cuda_norm_args &a, size_t row, bool live,
                                         bool add, float (&v)[V][UNIT])
{
    float pending[V][UNIT];
#pragma unroll
    for (int u = 0; u < V; u++) {
        int column = (u * blockDim.x + threadIdx.x) * UNIT;
        bool inside = live && column < (int)a.width;
#pragma unroll
        for (int i = 0; i < UNIT; i++) v[u][i] = pending[u][i] = 0.0f;
        if (inside) qb_load(a.x, QB_CUDA_F32, row * a.x_stride + column, v[u]);
        if (inside && add) load_pending(a, row, column, pending[u]);
    }
    qb_requantiser requantiser;
    if (add) requantiser = qb_requantiser_make(a.pending);
#pragma unroll
    for (int u = 0; u < V; u++) {
        int column = (u * blockDim.x + threadIdx.x) * UNIT;
        if (add) qb_requantise(requantiser, column, pending[u]);
#pragma unroll
        for (int i = 0; i < UNIT; i++) {
            if (add) v[u][i] = __fadd_rn(v[u][i], pending[u][i]);
            if (column + i >= (int)a.width) v[u][i] = 0.0f;
        }
        if (add && live && column < (int)a.width)
            qb_store(a.x, QB_CUDA_F32, row * a.x_stride + column, v[u]);
    }
}

template <int V>
__global__ void __launch_bounds__(32 * QB_ROW_WARPS)
    add_norm_rows(const __grid_constant__ qb_cuda_norm_args a, norm_pass pass, int n_columns,
                  bool vectors)
{
    __shared__ qb_row_scratch scratch;
    const size_t row = (size_t)blockIdx.x * blockDim.y + threadIdx.y;
    const bool live = row < a.m;
    const qb_cuda_stage &stage = a.stage;
    float v[V][UNIT];
    load_row(a, row, live, a.pending.y && pass != PASS_CODES, v);

    row_stats stats = {0.0f, 0.0f};
    if (pass != PASS_CODES)
        stats = reduce_row(a, v, scratch);
    else if (live)
        stats.mean = stage.row_stats[2 * row], stats.inverse = stage.row_stats[2 * row + 1];
#pragma unroll
    for (int u = 0; u < V; u++)
        normalise(a, stats, (u * blockDim.x + threadIdx.x) * UNIT, vectors, v[u]);

    float scale = 0.0f;
    if (stage.kind == QB_STAGE_TOKEN || pass == PASS_MAXIMUM) {
        float max_abs = 0.0f;
#pragma unroll
        for (int u = 0; u < V; u++) max_abs = qb_unit_max(max_abs, v[u]);
        max_abs = qb_row_reduce<qb_max_of>(max_abs, scratch, 2);
        scale = qb_scale_of_max(max_abs);
        if (live && threadIdx.x == 0) {
            if (pass == PASS_MAXIMUM) {
                stage.row_stats[2 * row] = stats.mean;
                stage.row_stats[2 * row + 1] = stats.inverse;
                qb_raise_max(stage.max_bits, max_abs);
            } else {
                stage.scale[row] = scale;
            }
        }
    } else {
        scale = qb_stage_scale(stage);
        if (pass == PASS_CODES && row == 0 && threadIdx.x == 0) stage.scale[0] = scale;
    }
    if (pass == PASS_MAXIMUM || !live) return;
    qb_quantiser quantiser = qb_quantiser_make(scale);
#pragma unroll
    for (int u = 0; u < V; u++) {
        int column = (u * blockDim.x + threadIdx.x) * UNIT;
        if (column < n_columns) qb_stage_unit(stage, row, column, (int)a.width, v[u], quantiser);
    }
}

qb_status launch(const qb_cuda_norm_args *a, norm_pass pass, qb_cuda_stream stream)
{
    int n_columns = qb_stage_columns(&a->stage, a->width);
    size_t n_units = ((size_t)n_columns + UNIT - 1) / UNIT;
    int units_a_thread = n_units <= 1024 ? 2 : n_units <= 2048 ? 4 : 8;
    dim3 block = qb_row_block(n_units, units_a_thread);
    unsigned grid = (unsigned)((a->m + block.y - 1) / block.y);
    bool vectors = ((uintptr_t)a->gain | (uintptr_t)a->bias) % 16 == 0;
    if (units_a_thread == 2)
        add_norm_rows<2><<<grid, block, 0, stream>>>(*a, pass, n_columns, vectors);
    else if (units_a_thread == 4)
        add_norm_rows<4><<<grid, block, 0, stream>>>(*a, pass, n_columns, vectors);
    else
        add_norm_rows<8><<<grid, block, 0, stream>>>(*a, pass, n_columns, vectors);
    QB_CUDA_TRY(cudaGetLastError());
    return QB_OK;
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
