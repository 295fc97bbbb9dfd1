/* kernels/cuda/pointwise_embed.cu - a token's vector on the way in, and positions of q and k; the
 * table of the pointwise row. */
#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/pointwise.cuh"

namespace
{
/* ---- embedding ---- */

enum { UNIT = 8 };

__device__ __forceinline__ void load_table(const void *table, qb_cuda_dtype type, size_t at,
                                           int n_inside, float (&v)[UNIT])
{
    if (n_inside >= UNIT)
        qb_load(table, type, at, v);
    else
        qb_load_edge(table, type, at, n_inside, v);
}

__global__ void embed_rows(const __grid_constant__ qb_cuda_embed_args a, int n_columns)
{
    const size_t row = blockIdx.x;
    qb__start_next_grid();
    qb__wait_previous_grid();
    const size_t past = a.past_dev ? (size_t)*a.past_dev : a.past;
    const size_t token = (size_t)a.tokens[row] * a.table_stride;
    const size_t position = (past + row % a.n_tokens) * a.table_stride;
    for (int column = threadIdx.x * UNIT; column < n_columns; column += blockDim.x * UNIT) {
        int n_inside = (int)a.width - column;
        float v[UNIT], p[UNIT];
        load_table(a.tok_embd, a.type, token + column, n_inside, v);
        if (a.pos_embd) {
            load_table(a.pos_embd, a.type, position + column, n_inside, p);
#pragma unroll
            for (int i = 0; i < UNIT; i++) v[i] = __fadd_rn(v[i], p[i]);
        }
        qb_store(a.x, QB_CUDA_F32, row * a.x_stride + column, v);
    }
}

/* ---- positions ---- */

/* Where the columns of a row of q | k | v go. */
struct place {
    void *to;
    size_t at; /* element of column 0 of the head */
};

__device__ __forceinline__ place place_of(const qb_cuda_position_args &a, size_t row, size_t head)
{
    size_t n_tokens = a.n_tokens, sequence = row / n_tokens;
    size_t past = a.past_dev ? (size_t)*a.past_dev : a.past;
    size_t position = past + row % n_tokens;
    size_t cached = sequence * a.kv_batch_stride + position * a.kv_stride;
    if (head < a.n_heads) return {a.q_out, row * a.q_stride + head * a.head_dim};
    head -= a.n_heads;
    if (head < a.n_kv_heads) return {a.k_out, cached + head * a.head_dim};
    return {a.v_out, cached + (head - a.n_kv_heads) * a.head_dim};
}

/* N columns with their partners half a head away; N = 1 takes any head size and alignment. */
template <int N>
__device__ __forceinline__ void load_columns(const qb_cuda_pending &y, size_t row, int column,
                                             const qb_requantiser &requantiser, float (&v)[N])
{
    const size_t at = row * y.stride + column;
    const bool requantise = y.max_bits || y.scale;
    if constexpr (N == 1) {
        v[0] = qb_load_one(y.y, y.type, at);
        if (requantise) v[0] = qb_requantise_one(requantiser, column, v[0]);
    } else {
        qb_load(y.y, y.type, at, v);
        if (requantise) qb_requantise(requantiser, column, v);
    }
}
template <int N>
__device__ __forceinline__ void store_columns(const place &p, qb_cuda_dtype type, size_t column,
                                              const float (&v)[N])
{
    if constexpr (N == 1)
        qb_store_one(p.to, type, p.at + column, v[0]);
    else
        qb_store(p.to, type, p.at + column, v);
}
template <int N>
__device__ __forceinline__ void load_angles(const float *table, size_t at, float (&v)[N])
{
    if constexpr (N == 1)
        v[0] = table[at];
    else
        qb_load(table, QB_CUDA_F32, at, v);
}

/* One thread: columns i .. i + N - 1 and half + i .. of one head of one row. Products and sums are
 * rounded one by one, as the CPU's are. */
template <int N>
__device__ __forceinline__ void position_unit(const qb_cuda_position_args &a, size_t row,
                                              size_t head, size_t i,
                                              const qb_requantiser &requantiser)
{
    const size_t half = a.head_dim / 2;
    const bool rotated = a.cosine && head < a.n_heads + a.n_kv_heads;
    const int column = (int)(head * a.head_dim + i);
    float x[N], y[N];
    load_columns(a.qkv, row, column, requantiser, x);
    load_columns(a.qkv, row, column + (int)half, requantiser, y);
    if (rotated) {
        size_t past = a.past_dev ? (size_t)*a.past_dev : a.past;
        size_t angle = (past + row % a.n_tokens) * half + i;
        float cosine[N], sine[N];
        load_angles(a.cosine, angle, cosine);
        load_angles(a.sine, angle, sine);
#pragma unroll
        for (int j = 0; j < N; j++) {
            float u = x[j], w = y[j];
            x[j] = __fsub_rn(__fmul_rn(u, cosine[j]), __fmul_rn(w, sine[j]));
            y[j] = __fadd_rn(__fmul_rn(w, cosine[j]), __fmul_rn(u, sine[j]));
        }
    }
    place p = place_of(a, row, head);
    store_columns(p, a.type, i, x);
    store_columns(p, a.type, i + half, y);
}

template <int N>
__global__ void position_rows(const __grid_constant__ qb_cuda_position_args a, int first_head,
                              int n_heads)
{
    const size_t row = blockIdx.x, half = a.head_dim / 2;
    const int units_a_head = (int)(half + N - 1) / N;
    __shared__ qb_requantiser requantiser;
    qb__start_next_grid();
    qb__wait_previous_grid();
    qb_requantiser_init(requantiser, a.qkv);
    for (int unit = threadIdx.x; unit < n_heads * units_a_head; unit += blockDim.x)
        position_unit<N>(a, row, first_head + unit / units_a_head,
                         (size_t)(unit % units_a_head) * N, requantiser);
    if (a.head_dim % 2 == 0) return;
    const size_t last = a.head_dim - 1; /* an odd head has no rotation and one column more */
    for (int head = first_head + threadIdx.x; head < first_head + n_heads; head += blockDim.x) {
        float v[1];
        load_columns<1>(a.qkv, row, (int)(head * a.head_dim + last), requantiser, v);
        store_columns<1>(place_of(a, row, head), a.type, last, v);
    }
}

bool is_aligned(const qb_cuda_position_args *a, size_t unit)
{
    size_t elems =
        a->head_dim / 2 | a->qkv.stride | a->q_stride | a->kv_stride | a->kv_batch_stride;
    uintptr_t bytes = (uintptr_t)a->qkv.y | (uintptr_t)a->q_out | (uintptr_t)a->k_out |
                      (uintptr_t)a->v_out | (uintptr_t)a->cosine | (uintptr_t)a->sine;
    return a->head_dim % 2 == 0 && elems % unit == 0 && bytes % 16 == 0;
}
} /* namespace */

qb_status qb_cuda_embed(const qb_cuda_embed_args *a, qb_cuda_stream stream)
{
    size_t m = a->batch * a->n_tokens, padded = qb_cuda_stride(a->width);
    if (m == 0) return QB_OK;
    if (a->x_stride % UNIT || a->table_stride % UNIT)
        return QB_FAIL(QB_ERR_SHAPE, "embed: row strides %zu and %zu, expected multiples of %d",
                       a->x_stride, a->table_stride, UNIT);
    int n_columns = (int)(a->x_stride < padded ? a->x_stride : padded);
    int threads = n_columns <= 32 * UNIT ? 32 : n_columns <= 128 * UNIT ? 128 : 256;
    return qb__launch_overlapped(embed_rows, dim3((unsigned)m), dim3((unsigned)threads), 0, stream,
                                 *a, n_columns);
}

qb_status qb_cuda_position(const qb_cuda_position_args *args, qb_cuda_stream stream)
{
    qb_cuda_position_args a = *args;
    size_t m = a.batch * a.n_tokens, q_width = a.n_heads * a.head_dim,
           kv_width = a.n_kv_heads * a.head_dim, bytes = qb_cuda_dtype_bytes(a.type);
    if (m == 0) return QB_OK;
    if (a.cosine && a.head_dim % 2)
        return QB_FAIL(QB_ERR_SHAPE, "position: head size %zu, rotation needs an even one",
                       a.head_dim);
    char *y = (char *)a.qkv.y;
    if (!a.q_out) a.q_out = y, a.q_stride = a.qkv.stride;
    if (!a.k_out) {
        a.k_out = y + q_width * bytes, a.v_out = y + (q_width + kv_width) * bytes;
        a.kv_stride = a.qkv.stride, a.kv_batch_stride = a.n_tokens * a.qkv.stride;
    }
    if (a.type != a.qkv.type && (a.q_out == y || a.k_out == y + q_width * bytes))
        return QB_FAIL(QB_ERR_SHAPE, "position: another type cannot be written in place");
    /* heads that stay as and where they are need no thread */
    bool same = !a.qkv.max_bits && !a.qkv.scale && a.type == a.qkv.type && !a.cosine;
    bool skip_q = same && a.q_out == y;
    int first = skip_q ? (int)a.n_heads : 0, n = (int)(a.n_heads + 2 * a.n_kv_heads) - first;
    if (skip_q && a.k_out == y + q_width * bytes) return QB_OK;
    const bool aligned = is_aligned(&a, 8);
    return qb__launch_overlapped(aligned ? position_rows<8> : position_rows<1>, dim3((unsigned)m),
                                 dim3(aligned ? 128 : 256), 0, stream, a, first, n);
}

const qb_cuda_pointwise_row qb_cuda_pointwise_kernels[] = {
    {{"pointwise/cuda", "cuda", QB_CUDA_SM80},
     qb_cuda_embed,
     qb_cuda_add_norm,
     qb_cuda_act,
     qb_cuda_position},
    {{nullptr, nullptr, 0}, nullptr, nullptr, nullptr, nullptr},
};
