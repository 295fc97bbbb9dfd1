/* kernels/cuda/train_embed.cu - embeddings forward and backward.
 *
 * The gradient of a token's vector is a sum over the rows where it stands. The host groups the rows
 * by token (a counting sort, while the GPU is busy with the pass before), a frequent token's in
 * several groups. A block sums a group in a fixed order, and one adds up those of a token: no
 * atomics, the same bits every time. How many groups there are is read from memory, so that the
 * launch is the same for any tokens. */
#include "kernels/cuda/pointwise.cuh"
#include "kernels/cuda/train.h"

namespace
{
enum { UNIT = 8, LANES = 16, ROWS = 16 }; /* a block: 16 rows at a time x 16 units of columns */
constexpr size_t MAX_BLOCKS = 8192;       /* of groups of tokens, which they take in turn */

__device__ __forceinline__ void load_unit(const void *p, qb_cuda_dtype type, size_t at,
                                          int n_inside, bool aligned, float (&v)[UNIT])
{
    if (n_inside >= UNIT && aligned)
        qb_load(p, type, at, v);
    else
        qb_load_edge(p, type, at, n_inside, v);
}

__device__ __forceinline__ size_t token_at(const qb_cuda_train_embed &a, size_t row)
{
    return row / a.n_tokens * (a.n_tokens + 1) + row % a.n_tokens;
}

__global__ void embed_rows(const __grid_constant__ qb_cuda_train_embed a, int n_columns)
{
    const size_t row = blockIdx.x;
    const size_t token = (size_t)a.tokens[token_at(a, row)] * a.width;
    const size_t position = row % a.n_tokens * a.width;
    const bool aligned = a.width % UNIT == 0;
    for (int column = threadIdx.x * UNIT; column < n_columns; column += blockDim.x * UNIT) {
        const int n_inside = (int)a.width - column;
        float v[UNIT], p[UNIT];
        load_unit(a.tok_embd, a.type, token + column, n_inside, aligned, v);
        if (a.pos_embd) {
            load_unit(a.pos_embd, a.type, position + column, n_inside, aligned, p);
#pragma unroll
            for (int i = 0; i < UNIT; i++) v[i] = __fadd_rn(v[i], p[i]);
        }
        qb_store(a.x, a.type, row * a.x_stride + column, v);
    }
}

/* The block's ROWS partial sums of a unit, added up in order into d, or to d. */
__device__ __forceinline__ void add_partials(const float (&sum)[UNIT], int width, float *d_row,
                                             bool replaces)
{
    __shared__ float part[ROWS][LANES * UNIT];
#pragma unroll
    for (int i = 0; i < UNIT; i++) part[threadIdx.y][threadIdx.x * UNIT + i] = sum[i];
    __syncthreads();
    const int own = threadIdx.y * LANES + threadIdx.x, first = blockIdx.y * LANES * UNIT;
    if (own < LANES * UNIT && first + own < width) {
        float total = 0.0f;
        for (int r = 0; r < ROWS; r++) total += part[r][own];
        d_row[first + own] = replaces ? total : d_row[first + own] + total;
    }
}

/* Whether the token has more groups; whether this is its first. */
struct group_place {
    bool is_alone, is_first;
};
__device__ __forceinline__ group_place place_of(const qb_cuda_train_embed &a, int group,
                                                int n_groups)
{
    const int token = a.group_token[group];
    const bool before = group > 0 && a.group_token[group - 1] == token;
    const bool after = group + 1 < n_groups && a.group_token[group + 1] == token;
    return {!before && !after, !before};
}
/* Of a token with several groups. All but the last of them are full, so that two of the first or
 * two of the others begin a whole group apart. */
__device__ __forceinline__ float *partial_of(const qb_cuda_train_embed &a, int group, bool is_first)
{
    const int at = a.start[group] / QB_CUDA_TRAIN_GROUP * 2 + is_first;
    return a.partials + (size_t)at * a.width;
}

__global__ void __launch_bounds__(LANES *ROWS)
    token_gradients(const __grid_constant__ qb_cuda_train_embed a)
{
    const int column = (blockIdx.y * LANES + threadIdx.x) * UNIT, n_groups = *a.n_groups;
    for (int g = blockIdx.x; g < n_groups; g += gridDim.x) {
        const int begin = a.start[g], end = a.start[g + 1];
        const group_place at = place_of(a, g, n_groups);
        float *token = a.d_tok_embd + (size_t)a.group_token[g] * a.width, sum[UNIT] = {};
        if (column < (int)a.width)
#pragma unroll 4
            for (int i = begin + threadIdx.y; i < end; i += ROWS) {
                float v[UNIT];
                qb_load(a.x, a.type, (size_t)a.order[i] * a.x_stride + column, v);
#pragma unroll
                for (int e = 0; e < UNIT; e++) sum[e] += v[e];
            }
        add_partials(sum, (int)a.width, at.is_alone ? token : partial_of(a, g, at.is_first),
                     !at.is_alone);
        __syncthreads(); /* the partial sums have been read */
    }
}

/* At a token's first group, all of its groups are added up. */
__global__ void join_groups(const __grid_constant__ qb_cuda_train_embed a)
{
    const int n_groups = *a.n_groups;
    for (int first = blockIdx.x; first < n_groups; first += gridDim.x) {
        const group_place at = place_of(a, first, n_groups);
        const int token = a.group_token[first];
        if (at.is_alone || !at.is_first) continue;
        for (int column = threadIdx.x; column < (int)a.width; column += blockDim.x) {
            float sum = 0.0f;
            for (int g = first; g < n_groups && a.group_token[g] == token; g++)
                sum += partial_of(a, g, g == first)[column];
            a.d_tok_embd[(size_t)token * a.width + column] += sum;
        }
    }
}

__global__ void __launch_bounds__(LANES *ROWS)
    position_gradients(const __grid_constant__ qb_cuda_train_embed a)
{
    const int column = (blockIdx.y * LANES + threadIdx.x) * UNIT;
    float sum[UNIT] = {};
    if (column < (int)a.width)
#pragma unroll 4
        for (size_t b = threadIdx.y; b < a.batch; b += ROWS) {
            float v[UNIT];
            qb_load(a.x, a.type, (b * a.n_tokens + blockIdx.x) * a.x_stride + column, v);
#pragma unroll
            for (int e = 0; e < UNIT; e++) sum[e] += v[e];
        }
    add_partials(sum, (int)a.width, a.d_pos_embd + (size_t)blockIdx.x * a.width, false);
}
} // namespace

qb_status qb_cuda_train_embed_forward(const qb_cuda_train_embed *args, qb_cuda_stream stream)
{
    const int n_columns = (int)((args->width + UNIT - 1) / UNIT * UNIT);
    int threads = (n_columns / UNIT + 31) / 32 * 32;
    if (threads > 256) threads = 256;
    embed_rows<<<(unsigned)(args->batch * args->n_tokens), threads, 0, stream>>>(*args, n_columns);
    return qb_launched();
}

qb_status qb_cuda_train_embed_backward(const qb_cuda_train_embed *args, qb_cuda_stream stream)
{
    const unsigned columns = (unsigned)((args->width + LANES * UNIT - 1) / (LANES * UNIT));
    const dim3 block(LANES, ROWS);
    const unsigned groups =
        (unsigned)(args->max_groups < MAX_BLOCKS ? args->max_groups : MAX_BLOCKS);
    if (groups) {
        token_gradients<<<dim3(groups, columns), block, 0, stream>>>(*args);
        join_groups<<<groups, 256, 0, stream>>>(*args);
    }
    if (args->d_pos_embd)
        position_gradients<<<dim3((unsigned)args->n_tokens, columns), block, 0, stream>>>(*args);
    return qb_launched();
}

size_t qb_cuda_train_most_groups(size_t n_rows, size_t vocab)
{
    return (n_rows < vocab ? n_rows : vocab) + n_rows / QB_CUDA_TRAIN_GROUP;
}

size_t qb_cuda_train_embed_partials(size_t n_rows, size_t width)
{
    return (n_rows / QB_CUDA_TRAIN_GROUP + 1) * 2 * width;
}

size_t qb_cuda_train_group_tokens(const int32_t *tokens, size_t batch, size_t n_tokens,
                                  size_t vocab, int32_t *count, int32_t *order, int32_t *start,
                                  int32_t *group_token)
{
    size_t n_groups = 0;
    int32_t first = 0;
    for (size_t v = 0; v < vocab; v++) count[v] = 0;
    for (size_t b = 0; b < batch; b++)
        for (size_t t = 0; t < n_tokens; t++) count[tokens[b * (n_tokens + 1) + t]]++;
    for (size_t v = 0; v < vocab; v++) {
        const int32_t end = first + count[v];
        count[v] = first;
        for (; first<end; first = end - first> QB_CUDA_TRAIN_GROUP ? first + QB_CUDA_TRAIN_GROUP
                                                                   : end) {
            group_token[n_groups] = (int32_t)v;
            start[n_groups++] = first;
        }
    }
    start[n_groups] = first;
    for (size_t b = 0; b < batch; b++)
        for (size_t t = 0; t < n_tokens; t++)
            order[count[tokens[b * (n_tokens + 1) + t]]++] = (int32_t)(b * n_tokens + t);
    return n_groups;
}
