/* kernels/cuda/gemm_u4_sm90.cu - the row gemm_u4/sm90: tensor maps, the choice of a tile, launches.
 */
#include "kernels/cuda/gemm_u4_sm90.cuh"

#include "kernels/cuda/tensor_map.h"

using namespace gemm_u4;

enum {
    MAX_ZEROS = 8192,      /* zero points by input channel that fit beside the stages */
    MAX_SMEM = 227 * 1024, /* a block's: set once for all launches, some of which a graph keeps */
};

static qb_status make_maps(const qb_cuda_gemm_u4_args *a, int channels, int tokens,
                           qb__u4_sm90 *out)
{
    const qb_cuda_u4 *w = a->w;
    const bool f32 = a->out == QB_CUDA_F32;
    const CUtensorMapDataType types[] = {CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                                         CU_TENSOR_MAP_DATA_TYPE_FLOAT32};
    const CUtensorMapSwizzle swizzle = CU_TENSOR_MAP_SWIZZLE_128B;
    const qb__tensor_map_args x = {types[0], 2, a->x, w->k, a->m, a->x_stride, 64, tokens, swizzle};
    const qb__tensor_map_args codes = {CU_TENSOR_MAP_DATA_TYPE_UINT32,
                                       4,
                                       w->codes,
                                       w->k_pad * 2,
                                       w->n_pad / 16,
                                       w->k_pad * 2,
                                       128,
                                       channels / 16,
                                       CU_TENSOR_MAP_SWIZZLE_NONE};
    const qb__tensor_map_args y = {types[f32],  f32 ? 4u : 2u, a->y, w->n,   a->m,
                                   a->y_stride, f32 ? 32 : 64, 64,   swizzle};
    const qb__tensor_map_args residual = {types[1],           4,  a->residual, w->n,   a->m,
                                          a->residual_stride, 32, 64,          swizzle};
    QB_TRY(qb__tensor_map(&out->x, &x));
    QB_TRY(qb__tensor_map(&out->codes, &codes));
    if (a->y) QB_TRY(qb__tensor_map(&out->y, &y));
    if (a->residual) QB_TRY(qb__tensor_map(&out->residual, &residual));
    return QB_OK;
}

template <class C>
static qb_status launch(const qb_cuda_gemm_u4_args *args, int split, int n_sms,
                        qb_cuda_stream stream)
{
    qb__u4_sm90 a = {};
    a.product = qb__u4_product_of(args);
    a.split = split;
    a.token_tiles = (a.product.m + C::BN - 1) / C::BN;
    a.channel_tiles = (a.product.n + C::CHANNELS - 1) / C::CHANNELS;
    QB_TRY(make_maps(args, C::CHANNELS, C::BN, &a));

    const int bytes = C::SMEM_BYTES + (a.product.x_zero_point ? a.product.k_tiles * 128 : 0);
    QB_CUDA_TRY(cudaFuncSetAttribute(gemm_u4_sm90<C>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                     MAX_SMEM));
    cudaLaunchAttribute attributes[2] = {};
    attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[0].val.programmaticStreamSerializationAllowed = 1;
    attributes[1].id = cudaLaunchAttributeClusterDimension;
    attributes[1].val.clusterDim.x = (unsigned)split;
    attributes[1].val.clusterDim.y = attributes[1].val.clusterDim.z = 1;
    const int n_units = a.token_tiles * a.channel_tiles;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3((unsigned)(split > 1 || n_units < n_sms ? n_units * split : n_sms));
    config.blockDim = dim3(C::THREADS);
    config.dynamicSmemBytes = (size_t)bytes, config.stream = stream;
    config.attrs = attributes, config.numAttrs = 2;
    QB_CUDA_TRY(cudaLaunchKernelEx(&config, gemm_u4_sm90<C>, a));
    return QB_OK;
}

using large = config<1, 256, 5, 1, 1, false>;
using middle = config<1, 128, 6, 1, 2, false>;
using small = config<1, 64, 10, 4, 2, false>;
using grouped = config<1, 128, 8, 4, 1, true>;

const char *qb__gemm_u4_refuse_sm90(const qb_cuda_gemm_u4_args *a)
{
    const size_t y_step = a->out == QB_CUDA_F32 ? 4 : 8; /* elements of 16 bytes */
    if (a->w->x_zero_point && a->w->k_pad > MAX_ZEROS) return "too many zero points";
    if ((uintptr_t)a->x % 16 || a->x_stride % 8) return "x is not aligned to 16 bytes";
    if (a->y && ((uintptr_t)a->y % 16 || a->y_stride % y_step)) return "y is not aligned";
    if (a->residual && ((uintptr_t)a->residual % 16 || a->residual_stride % 4))
        return "the residual is not aligned";
    return NULL;
}

/* ---- the choice of a tile ---- */

/* Measured on an H100: microseconds a tile of 64 input channels, and besides them, without and with
 * input channels shared out. */
struct tile_cost {
    int channels, tokens;
    float per_k_tile, fixed, shared;
};
static const tile_cost costs[] = {{large::CHANNELS, large::BN, 0.62f, 4.6f, 13.5f},
                                  {middle::CHANNELS, middle::BN, 0.35f, 3.7f, 9.8f},
                                  {small::CHANNELS, small::BN, 0.26f, 3.1f, 6.3f}};
static const float next_wave = 1.5f; /* from one tile of a block to its next */

/* Clusters of 1, 2, 4 and 8 blocks that run at a time: the larger do not fill every part of the
 * chip. */
static int clusters_at_a_time(int split, int n_sms)
{
    return split == 1 ? n_sms : split == 2 ? n_sms / 2 : n_sms * 7 / (8 * split);
}

static float expected_time(const qb_cuda_gemm_u4_args *a, const tile_cost &c, int split, int n_sms)
{
    const size_t tiles =
        ((a->m + c.tokens - 1) / c.tokens) * ((a->w->n + c.channels - 1) / c.channels);
    const size_t at_a_time = clusters_at_a_time(split, n_sms);
    const float waves = (float)((tiles + at_a_time - 1) / at_a_time);
    const float product = (float)(a->w->k_pad / 64) / (float)split * c.per_k_tile;
    return split == 1 ? c.fixed + waves * product + (waves - 1.0f) * next_wave
                      : waves * (product + c.shared);
}

struct choice {
    int tile, split; /* of costs */
};

static choice choose(const qb_cuda_gemm_u4_args *a, int n_sms)
{
    choice best = {0, 1};
    float best_time = 0.0f;
    for (int tile = 0; tile < 3; tile++)
        for (int split = 1; split <= 8; split *= 2) {
            if (a->w->n_groups > 1 && tile != 1) continue;
            const bool pairs = tile > 0 && a->w->n_groups == 1; /* each wants a k tile */
            if (a->w->k_pad / 64 < (size_t)(pairs ? 2 * split : split)) continue;
            const float time = expected_time(a, costs[tile], split, n_sms);
            if (best_time != 0.0f && time >= best_time) continue;
            best = {tile, split};
            best_time = time;
        }
    return best;
}

qb_status qb__gemm_u4_sm90(const qb_cuda_gemm_u4_args *a, qb_cuda_stream stream)
{
    int device, n_sms;
    QB_CUDA_TRY(cudaGetDevice(&device));
    QB_CUDA_TRY(cudaDeviceGetAttribute(&n_sms, cudaDevAttrMultiProcessorCount, device));
    const choice c = choose(a, n_sms);
    if (a->w->n_groups > 1) return launch<grouped>(a, c.split, n_sms, stream);
    if (c.tile == 0) return launch<large>(a, c.split, n_sms, stream);
    if (c.tile == 1) return launch<middle>(a, c.split, n_sms, stream);
    return launch<small>(a, c.split, n_sms, stream);
}
