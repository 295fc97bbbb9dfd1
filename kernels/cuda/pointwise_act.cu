/* kernels/cuda/pointwise_act.cu - requantise, activate, stage: what stands between two products
 * without a norm. */
#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/pointwise.cuh"

namespace
{
enum act_pass { PASS_WHOLE, PASS_MAXIMUM, PASS_CODES };
enum act_op { OP_NONE, OP_GELU, OP_RELU, OP_SWIGLU };
enum { UNIT = 8, MOST_WIDTH = 32768 };

__device__ __forceinline__ void activate(act_op op, const float (&gate)[UNIT], float (&v)[UNIT])
{
    if (op == OP_GELU) {
#pragma unroll
        for (int i = 0; i < UNIT; i++) v[i] = qb_gelu(v[i]);
    } else if (op == OP_RELU) {
#pragma unroll
        for (int i = 0; i < UNIT; i++) v[i] = v[i] < 0.0f ? 0.0f : v[i];
    } else if (op == OP_SWIGLU) {
#pragma unroll
        for (int i = 0; i < UNIT; i++) v[i] = qb_swiglu(v[i], gate[i]);
    }
}

__device__ __forceinline__ int column_of(int u)
{
    return (u * (int)blockDim.x + (int)threadIdx.x) * UNIT;
}

/* ---- this thread's part of a row, on its way through shared memory ---- */

struct act_call {
    qb_cuda_act_args args;
    const uint32_t *largest; /* PASS_MAXIMUM: key of the largest input, or NULL */
    act_pass pass;
    int n_columns; /* that the stage writes */
    bool requantise;
    bool ahead; /* the gate is copied ahead as the rest is; else it is loaded when it is needed */
};

/* The unit at `column`, in halves of 16 bytes where it is of f32. */
template <bool WHOLE>
__device__ __forceinline__ void copy_unit(const qb_cuda_pending &in, char *slot, size_t row,
                                          int column, int n_inside)
{
    if (WHOLE || in.type == QB_CUDA_BF16) {
        const __nv_bfloat16 *from = (const __nv_bfloat16 *)in.y + row * in.stride + column;
        qb_copy_ahead<16>(slot, from, min(UNIT, n_inside) * 2);
        return;
    }
    const float *from = (const float *)in.y + row * in.stride + column;
    qb_copy_ahead<16>(slot, from, min(4, n_inside) * 4);
    qb_copy_ahead<16>(slot + 16, n_inside > 4 ? from + 4 : from, max(0, min(4, n_inside - 4)) * 4);
}

template <int V, act_op OP, bool WHOLE>
__device__ __forceinline__ void copy_row(const act_call &c, char *slots, int slot_step, size_t row,
                                         int stage)
{
    const qb_cuda_act_args &a = c.args;
    const int halves = OP == OP_SWIGLU && (WHOLE || c.ahead) ? 2 : 1;
    if (row < a.m) {
#pragma unroll
        for (int u = 0; u < V; u++) {
            const int column = column_of(u),
                      n_inside = qb_inside<WHOLE, UNIT>((int)a.width, column);
            char *slot = slots + (stage * V + u) * halves * slot_step;
            if (n_inside <= 0) break;
            copy_unit<WHOLE>(a.in, slot, row, column, n_inside);
            if (OP == OP_SWIGLU && (WHOLE || c.ahead))
                copy_unit<WHOLE>(a.in, slot + slot_step, row, column + (int)a.width, n_inside);
        }
    }
    qb_copies_commit();
}

template <int V, act_op OP, bool WHOLE>
__device__ __forceinline__ void take_row(const act_call &c, const char *slots, int slot_step,
                                         size_t row, int stage, const qb_requantiser &requantiser,
                                         float (&v)[V][UNIT])
{
    const qb_cuda_act_args &a = c.args;
    const qb_cuda_dtype type = WHOLE ? QB_CUDA_BF16 : a.in.type;
    const int halves = OP == OP_SWIGLU && (WHOLE || c.ahead) ? 2 : 1;
#pragma unroll
    for (int u = 0; u < V; u++) {
        const int column = column_of(u), n_inside = qb_inside<WHOLE, UNIT>((int)a.width, column);
        const char *slot = slots + (stage * V + u) * halves * slot_step;
        float gate[UNIT];
#pragma unroll
        for (int i = 0; i < UNIT; i++) v[u][i] = 0.0f;
        if (row >= a.m || n_inside <= 0) continue;
        qb_load(slot, type, 0, v[u]);
        if (c.requantise) qb_requantise(requantiser, column, v[u]);
        if (OP == OP_SWIGLU) {
            const int at = column + (int)a.width;
            if (WHOLE || c.ahead)
                qb_load(slot + slot_step, type, 0, gate);
            else
                qb_load_edge(a.in.y, a.in.type, row * a.in.stride + at, n_inside, gate);
            if (c.requantise) qb_requantise(requantiser, at, gate);
        }
        activate(OP, gate, v[u]);
        /* a column past the width may have been made NaN: 0 / (infinite scale) * scale */
        qb_clear_edge(n_inside, v[u]);
    }
}

/* ---- the maximum of an activation, from the largest input ---- */

/* ReLU and, from 0 on, GELU grow with their input, and below 0 |GELU| stays under GELU_BELOW. So
 * where the largest input gives more, it gives the maximum: one pass that only compares replaces
 * one that computes. Inputs must lie further apart than the rounding of GELU: bf16, or requantised.
 */
#define GELU_BELOW 0.1701f
enum { WORTH_ASKING = 1 << 18 }; /* below, the launches take longer than what they save */

/* A key that orders all floats but NaN; 0 is below all of them. */
__device__ __forceinline__ uint32_t key_of(float x)
{
    const uint32_t bits = __float_as_uint(x);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
__device__ __forceinline__ float value_of(uint32_t key)
{
    return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}

__global__ void __launch_bounds__(256)
    largest_of_rows(const __grid_constant__ qb_cuda_act_args a, uint32_t *largest)
{
    const int width = (int)a.width;
    uint32_t mine = 0;
    for (size_t row = blockIdx.x; row < a.m; row += gridDim.x) {
        float largest_here = -CUDART_INF_F;
        bool any = false;
#pragma unroll 4
        for (int column = threadIdx.x * UNIT; column < width; column += blockDim.x * UNIT) {
            float v[UNIT];
            if (column + UNIT <= width)
                qb_load(a.in.y, a.in.type, row * a.in.stride + column, v);
            else
                qb_load_edge(a.in.y, a.in.type, row * a.in.stride + column, width - column, v);
#pragma unroll
            for (int i = 0; i < UNIT; i++)
                largest_here = column + i < width ? fmaxf(largest_here, v[i]) : largest_here;
            any = true;
        }
        if (any) mine = max(mine, key_of(largest_here));
    }
    mine = __reduce_max_sync(0xffffffffu, mine);
    if (threadIdx.x % 32 == 0 && mine > *(volatile uint32_t *)largest) atomicMax(largest, mine);
}

/* True and the maximum, if the largest input tells it. */
template <act_op OP>
__device__ __forceinline__ bool is_told(const act_call &c, const qb_requantiser &requantiser,
                                        float *max_abs)
{
    if ((OP != OP_GELU && OP != OP_RELU) || !c.largest || *c.largest == 0) return false;
    float v[UNIT] = {value_of(*c.largest)};
    if (c.requantise) v[0] = qb_requantise_one(requantiser, 0, v[0]);
    activate(OP, v, v);
    *max_abs = v[0];
    return v[0] > (OP == OP_RELU ? 0.0f : GELU_BELOW);
}

/* ---- a row ---- */

/* The scale of this row's codes; writes what the pass keeps of the row. */
template <int V>
__device__ __forceinline__ float scale_of_row(const act_call &c, size_t row,
                                              const float (&v)[V][UNIT], qb_row_scratch &scratch,
                                              int odd)
{
    const qb_cuda_stage &stage = c.args.stage;
    const bool live = row < c.args.m;
    float max_abs = 0.0f;
    if (c.args.row_max_bits) {
        if (live) max_abs = __uint_as_float(c.args.row_max_bits[row]);
    } else {
#pragma unroll
        for (int u = 0; u < V; u++) max_abs = qb_unit_max(max_abs, v[u]);
        max_abs = qb_row_max(max_abs, scratch, odd, 0);
    }
    const float scale = qb_scale_of_max(max_abs);
    if (live && threadIdx.x == 0) {
        if (c.pass == PASS_MAXIMUM)
            qb_raise_max(stage.max_bits, max_abs);
        else
            stage.scale[row] = scale;
    }
    return scale;
}

/* WHOLE: every thread's units lie inside the width, the input is bf16, and it is copied ahead. */
template <int V, act_op OP, int STAGES, bool WHOLE>
__global__ void __launch_bounds__(32 * QB_ROW_WARPS, V <= 2 ? 2 : 1)
    act_rows(const __grid_constant__ act_call c)
{
    __shared__ qb_row_scratch scratch;
    __shared__ qb_requantiser requantiser;
    extern __shared__ __align__(16) char shared[];
    const qb_cuda_act_args &a = c.args;
    const qb_cuda_stage &stage = a.stage;
    const int unit_bytes = WHOLE || a.in.type == QB_CUDA_BF16 ? 16 : 32,
              slot_step = (int)(blockDim.x * blockDim.y) * unit_bytes;
    char *slots = shared + (threadIdx.y * blockDim.x + threadIdx.x) * unit_bytes;
    const size_t step = (size_t)gridDim.x * blockDim.y;
    const bool by_row = stage.kind == QB_STAGE_TOKEN || c.pass == PASS_MAXIMUM;
    size_t row = (size_t)blockIdx.x * blockDim.y + threadIdx.y;
    qb__start_next_grid();
    qb__wait_previous_grid();
    qb_requantiser_init(requantiser, a.in);
    float told;
    if (c.pass == PASS_MAXIMUM && is_told<OP>(c, requantiser, &told)) {
        if (row == 0 && threadIdx.x == 0) *stage.max_bits = __float_as_uint(told);
        return;
    }
    for (int ahead = 0; ahead < STAGES - 1; ahead++)
        copy_row<V, OP, WHOLE>(c, slots, slot_step, row + ahead * step, ahead);

    float scale = by_row ? 0.0f : qb_stage_scale(stage);
    qb_quantiser quantiser = qb_quantiser_make(scale);
    if (c.pass == PASS_CODES && row == 0 && threadIdx.x == 0) stage.scale[0] = scale;

    for (int i = 0; row - threadIdx.y < a.m; i++, row += step) {
        float v[V][UNIT];
        copy_row<V, OP, WHOLE>(c, slots, slot_step, row + (STAGES - 1) * step,
                               (i + STAGES - 1) % STAGES);
        qb_copies_wait<STAGES - 1>();
        take_row<V, OP, WHOLE>(c, slots, slot_step, row, i % STAGES, requantiser, v);
        if (by_row) quantiser = qb_quantiser_make(scale_of_row(c, row, v, scratch, i % 2));
        if (c.pass == PASS_MAXIMUM || row >= a.m) continue;
        qb_stage_row<WHOLE>(stage, row, (int)a.width, c.n_columns, v, quantiser);
    }
}

/* ---- launch ---- */

template <int V, act_op OP, int STAGES, bool WHOLE>
qb_status launch_case(const act_call &c, dim3 block, qb_cuda_stream stream)
{
    const size_t unit_bytes = UNIT * qb_cuda_dtype_bytes(c.args.in.type),
                 halves = OP == OP_SWIGLU && c.ahead ? 2 : 1,
                 bytes = unit_bytes * halves * STAGES * V * block.x * block.y;
    unsigned grid;
    QB_TRY((qb_row_grid<act_rows<V, OP, STAGES, WHOLE>>)(block, bytes, c.args.m, &grid));
    return qb__launch_overlapped(act_rows<V, OP, STAGES, WHOLE>, dim3(grid), block, bytes, stream,
                                 c);
}

template <act_op OP> qb_status launch_op(act_call c, qb_cuda_stream stream)
{
    const qb_cuda_act_args &a = c.args;
    const bool wide = c.n_columns > 2 * 32 * QB_ROW_WARPS * UNIT,
               /* rows of 768 columns and the like: with 2 units some threads would have none */
        thirds = a.width % (2 * 32 * UNIT) && a.width % (3 * 32 * UNIT) == 0;
    const dim3 block = qb_row_block((size_t)c.n_columns / UNIT, wide ? 8 : thirds ? 3 : 2);
    /* a gate that is not aligned, or too much for shared memory, is loaded when it is needed */
    c.ahead = a.width % UNIT == 0 && !(wide && a.in.type == QB_CUDA_F32);
    if (wide) return launch_case<8, OP, 1, false>(c, block, stream);
    const bool whole = a.width == (size_t)(thirds ? 3 : 2) * UNIT * block.x &&
                       c.n_columns == (int)a.width && a.in.type == QB_CUDA_BF16;
    if (thirds)
        return whole ? launch_case<3, OP, 2, true>(c, block, stream)
                     : launch_case<3, OP, 2, false>(c, block, stream);
    return whole ? launch_case<2, OP, 2, true>(c, block, stream)
                 : launch_case<2, OP, 2, false>(c, block, stream);
}

qb_status find_largest(const qb_cuda_act_args *a, uint32_t *largest, qb_cuda_stream stream)
{
    const size_t most = 1024; /* blocks: several on each multiprocessor */
    QB_TRY(qb_cuda_zero(largest, sizeof *largest, stream));
    largest_of_rows<<<(unsigned)(a->m < most ? a->m : most), 256, 0, stream>>>(*a, largest);
    QB_CUDA_TRY(cudaGetLastError());
    return QB_OK;
}

qb_status launch(const qb_cuda_act_args *a, act_pass pass, const uint32_t *largest,
                 qb_cuda_stream stream)
{
    act_call c;
    c.args = *a;
    c.largest = largest;
    c.pass = pass;
    c.n_columns = qb_stage_columns(&a->stage, a->width);
    c.requantise = a->in.max_bits || a->in.scale;
    c.ahead = false; /* set where the split over threads is known */
    if (!a->apply) return launch_op<OP_NONE>(c, stream);
    if (a->act == QB_ACT_GELU_TANH) return launch_op<OP_GELU>(c, stream);
    if (a->act == QB_ACT_RELU) return launch_op<OP_RELU>(c, stream);
    return launch_op<OP_SWIGLU>(c, stream);
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
    if (a.stage.kind != QB_STAGE_TENSOR) return launch(&a, PASS_WHOLE, NULL, stream);
    QB_TRY(qb_cuda_zero(a.stage.max_bits, sizeof *a.stage.max_bits, stream));
    uint32_t *largest = NULL;
    if (a.m * a.width >= WORTH_ASKING && a.apply && a.act != QB_ACT_SWIGLU &&
        a.in.segments.n <= 1 && (a.in.type == QB_CUDA_BF16 || a.in.max_bits || a.in.scale))
        largest = (uint32_t *)a.stage.row_stats;
    if (largest) QB_TRY(find_largest(&a, largest, stream));
    QB_TRY(launch(&a, PASS_MAXIMUM, largest, stream));
    return launch(&a, PASS_CODES, NULL, stream);
}
