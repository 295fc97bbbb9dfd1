/* kernels/cuda/pointwise_act.cu - requantise, activate, stage: what stands between two products
 * without a norm. */
#include "kernels/cuda/pointwise.cuh"

namespace
{
enum act_pass { PASS_WHOLE, PASS_MAXIMUM, PASS_CODES };
enum act_op { OP_NONE, OP_GELU, OP_RELU, OP_SWIGLU };
enum { UNIT = 8, MOST_WIDTH = 32768 };

/* v / (1 + e^-u), to about 3 ulp: two units of the special function pipe a value. For u -> -inf the
 * power overflows and the quotient is 0, as it should be. */
__device__ __forceinline__ float times_sigmoid(float v, float minus_u_log2e)
{
    float power, reciprocal;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(minus_u_log2e));
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(reciprocal) : "f"(__fadd_rn(1.0f, power)));
    return __fmul_rn(v, reciprocal);
}

/* 0.5 v (1 + tanh(w)) = v / (1 + e^(-2 w)), w = sqrt(2 / pi) (v + 0.044715 v^3) */
__device__ __forceinline__ float gelu_tanh(float v)
{
    const float a = -2.0f * 1.4426950408889634f * 0.7978845608028654f, b = a * 0.044715f;
    return times_sigmoid(v, __fmul_rn(v, __fmaf_rn(__fmul_rn(v, v), b, a)));
}
__device__ __forceinline__ float silu(float v)
{
    return times_sigmoid(v, __fmul_rn(v, -1.4426950408889634f));
}

__device__ __forceinline__ void activate(act_op op, const float (&gate)[UNIT], float (&v)[UNIT])
{
    if (op == OP_GELU) {
#pragma unroll
        for (int i = 0; i < UNIT; i++) v[i] = gelu_tanh(v[i]);
    } else if (op == OP_RELU) {
#pragma unroll
        for (int i = 0; i < UNIT; i++) v[i] = v[i] < 0.0f ? 0.0f : v[i];
    } else if (op == OP_SWIGLU) {
#pragma unroll
        for (int i = 0; i < UNIT; i++) v[i] = __fmul_rn(silu(gate[i]), v[i]);
    }
}

/* Columns at + 0 .. UNIT - 1 of a row of the input; `limit` ends what belongs to this half. */
__device__ __forceinline__ void load_in(const qb_cuda_pending &in, size_t row, int at, int n_inside,
                                        float (&v)[UNIT])
{
    size_t from = row * in.stride + at;
    if (n_inside >= UNIT && at % UNIT == 0)
        qb_load(in.y, in.type, from, v);
    else
        qb_load_edge(in.y, in.type, from, n_inside, v);
}

template <int V, act_op OP>
__device__ __forceinline__ void load_row(const qb_cuda_act_args &a, size_t row, bool live,
                                         float (&v)[V][UNIT])
{
    float gate[OP == OP_SWIGLU ? V : 1][UNIT];
#pragma unroll
    for (int u = 0; u < V; u++) {
        int column = (u * blockDim.x + threadIdx.x) * UNIT;
        int n_inside = live ? (int)a.width - column : 0;
        load_in(a.in, row, column, n_inside, v[u]);
        if (OP == OP_SWIGLU) load_in(a.in, row, column + (int)a.width, n_inside, gate[u]);
    }
    qb_requantiser requantiser = qb_requantiser_make(a.in);
#pragma unroll
    for (int u = 0; u < V; u++) {
        int column = (u * blockDim.x + threadIdx.x) * UNIT;
        qb_requantise(requantiser, column, v[u]);
        if (OP == OP_SWIGLU) qb_requantise(requantiser, column + (int)a.width, gate[u]);
        activate(OP, gate[OP == OP_SWIGLU ? u : 0], v[u]);
        /* a column past the width may have been made NaN: 0 / (infinite scale) * scale */
#pragma unroll
        for (int i = 0; i < UNIT; i++)
            if (column + i >= (int)a.width) v[u][i] = 0.0f;
    }
}

template <int V, act_op OP>
__global__ void __launch_bounds__(32 * QB_ROW_WARPS)
    act_rows(const __grid_constant__ qb_cuda_act_args a, act_pass pass, int n_columns)
{
    __shared__ qb_row_scratch scratch;
    const size_t row = (size_t)blockIdx.x * blockDim.y + threadIdx.y;
    const bool live = row < a.m;
    const qb_cuda_stage &stage = a.stage;
    float v[V][UNIT];
    load_row<V, OP>(a, row, live, v);

    float scale = 0.0f;
    if (stage.kind == QB_STAGE_TOKEN || pass == PASS_MAXIMUM) {
        float max_abs = 0.0f;
        if (a.row_max_bits) {
            if (live) max_abs = __uint_as_float(a.row_max_bits[row]);
        } else {
#pragma unroll
            for (int u = 0; u < V; u++) max_abs = qb_unit_max(max_abs, v[u]);
            max_abs = qb_row_reduce<qb_max_of>(max_abs, scratch, 0);
        }
        scale = qb_scale_of_max(max_abs);
        if (live && threadIdx.x == 0) {
            if (pass == PASS_MAXIMUM)
                qb_raise_max(stage.max_bits, max_abs);
            else
                stage.scale[row] = scale;
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

template <act_op OP>
qb_status launch_op(const qb_cuda_act_args *a, act_pass pass, qb_cuda_stream stream)
{
    int n_columns = qb_stage_columns(&a->stage, a->width);
    size_t n_units = ((size_t)n_columns + UNIT - 1) / UNIT;
    int units_a_thread = n_units <= 256 ? 1 : n_units <= 2048 ? 4 : 8;
    dim3 block = qb_row_block(n_units, units_a_thread);
    unsigned grid = (unsigned)((a->m + block.y - 1) / block.y);
    if (units_a_thread == 1)
        act_rows<1, OP><<<grid, block, 0, stream>>>(*a, pass, n_columns);
    else if (units_a_thread == 4)
        act_rows<4, OP><<<grid, block, 0, stream>>>(*a, pass, n_columns);
    else
        act_rows<8, OP><<<grid, block, 0, stream>>>(*a, pass, n_columns);
    QB_CUDA_TRY(cudaGetLastError());
    return QB_OK;
}

qb_status launch(const qb_cuda_act_args *a, act_pass pass, qb_cuda_stream stream)
{
    if (!a->apply) return launch_op<OP_NONE>(a, pass, stream);
    if (a->act == QB_ACT_GELU_TANH) return launch_op<OP_GELU>(a, pass, stream);
    if (a->act == QB_ACT_RELU) return launch_op<OP_RELU>(a, pass, stream);
    return launch_op<OP_SWIGLU>(a, pass, stream);
}
} /* namespace */

qb_status qb_cuda_act(const qb_cuda_act_args *args, qb_cuda_stream stream)
{
    qb_cuda_act_args a = *args;
    if (a.m == 0) return QB_OK;
    if (a.width == 0 || a.width > MOST_WIDTH)
        return QB_FAIL(QB_ERR_SHAPE, "act: width %zu, expected 1 to %d", a.width, MOST_WIDTH);
    if (a.in.stride % 8 || a.stage.stride % 8)
        return QB_FAIL(QB_ERR_SHAPE, "act: row strides %zu and %zu, expected multiples of 8",
                       a.in.stride, a.stage.stride);
    /* the maxima are those of the product's output, which is not what is staged then */
    if (a.apply || a.in.max_bits || a.in.scale) a.row_max_bits = NULL;
    if (a.stage.kind != QB_STAGE_TENSOR) return launch(&a, PASS_WHOLE, stream);
    QB_TRY(qb_cuda_zero(a.stage.max_bits, sizeof *a.stage.max_bits, stream));
    QB_TRY(launch(&a, PASS_MAXIMUM, stream));
    return launch(&a, PASS_CODES, stream);
}
