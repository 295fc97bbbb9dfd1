/* kernels/cuda/gemm_s8_sm90.cu - the row gemm_s8/sm90: tensor maps, launches, the choice. */
#include "kernels/cuda/gemm_s8_launch.cuh"
#include "kernels/cuda/tensor_map.h"

#include <pthread.h>
#include <string.h>

namespace gemm_s8
{

/* What a map is made from. Compared as bytes: cleared before it is filled. */
struct map_key {
    const void *base;
    size_t cols, rows, stride;
    size_t n_planes, plane_stride;
    int type, box_cols, box_rows, zero;
};

static qb_status encode(CUtensorMap *out, const map_key &k)
{
    static const CUtensorMapDataType types[] = {
        CU_TENSOR_MAP_DATA_TYPE_FLOAT32, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
        CU_TENSOR_MAP_DATA_TYPE_UINT8, CU_TENSOR_MAP_DATA_TYPE_INT32};
    const size_t elem = qb_cuda_dtype_bytes((qb_cuda_dtype)k.type);
    const CUtensorMapSwizzle swizzle =
        k.box_cols * elem == 128 ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_64B;
    const qb__tensor_map_args args = {types[k.type], elem,       k.base,     k.cols, k.rows,
                                      k.stride,      k.box_cols, k.box_rows, swizzle};
    return qb__tensor_map_planes(out, &args, k.n_planes, k.plane_stride);
}

/* Maps are kept: a model's products come again with the same matrices, and making a map costs more
 * than a launch. A map says nothing of a device beyond the address. */
enum { kKeptMaps = 1024 };
static struct {
    pthread_mutex_t mutex;
    struct {
        map_key key;
        CUtensorMap map;
    } kept[kKeptMaps];
} cache = {PTHREAD_MUTEX_INITIALIZER, {}};

static size_t slot_of(const map_key &k)
{
    const size_t parts[] = {(size_t)k.base, k.cols, k.rows, k.stride, (size_t)k.box_rows};
    size_t h = (size_t)k.type * 64 + (size_t)k.box_cols;
    for (size_t part : parts) h = (h ^ part) * 0x9e3779b97f4a7c15u;
    return (h >> 40) % kKeptMaps;
}

static qb_status find_map(CUtensorMap *out, const map_key &k)
{
    qb_status status = QB_OK;
    pthread_mutex_lock(&cache.mutex);
    auto &kept = cache.kept[slot_of(k)];
    if (memcmp(&kept.key, &k, sizeof k)) {
        status = encode(&kept.map, k);
        kept.key = status == QB_OK ? k : map_key{};
    }
    *out = kept.map;
    pthread_mutex_unlock(&cache.mutex);
    return status;
}

qb_status encode_map(CUtensorMap *out, qb_cuda_dtype type, const void *base, size_t cols,
                     size_t rows, size_t stride_elems, int box_cols, int box_rows)
{
    return find_map(out, {base, cols, rows, stride_elems, 0, 0, type, box_cols, box_rows, 0});
}

qb_status encode_cache_map(CUtensorMap *out, const qb_cuda_gemm_s8_args *a, int i)
{
    const qb_cuda_gemm_s8_cache &c = a->cache;
    return find_map(out, {c.y[i], c.width, c.n_tokens, c.stride, a->m / c.n_tokens, c.batch_stride,
                          a->out, 64, 64, 0});
}

qb_status fill_params(const qb_cuda_gemm_s8_args *a, qb__gemm_s8_params *p)
{
    p->m = (int)a->m;
    p->n = (int)a->n;
    p->n_blocks_k = (int)((a->k + kBlockK - 1) / kBlockK);
    p->has_y = a->y != NULL;
    p->has_residual = a->residual != NULL;
    p->out = a->out;
    p->act = a->act;
    p->x_scale_step = (int)a->x_scale_step;
    p->x_scale = a->x_scale;
    p->w_scale = a->w_scale;
    p->bias = a->bias;
    p->out_scale = a->out_scale;
    p->max_bits = a->max_bits;
    p->row_max_bits = a->row_max_bits;
    p->w_is_constant = a->w_is_constant;
    p->n_tokens = (int)a->cache.n_tokens;
    p->cache_first = (int)a->cache.first;
    p->cache_width = (int)a->cache.width;
    p->n_segments = a->segments.n;
    for (int i = 0; i < QB_CUDA_SEGMENTS; i++) p->segment_end[i] = a->segments.end[i];
    return QB_OK;
}

static void fill_config(cudaLaunchConfig_t *c, cudaLaunchAttribute *attributes, int n_blocks,
                        int cluster, int threads, int smem_bytes, qb_cuda_stream stream)
{
    attributes[0].id = cudaLaunchAttributeClusterDimension;
    attributes[0].val.clusterDim.x = (unsigned)cluster;
    attributes[0].val.clusterDim.y = attributes[0].val.clusterDim.z = 1;
    c->gridDim = dim3((unsigned)n_blocks);
    c->blockDim = dim3((unsigned)threads);
    c->dynamicSmemBytes = (size_t)smem_bytes;
    c->stream = stream;
    c->attrs = attributes;
    attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[1].val.programmaticStreamSerializationAllowed = 1; /* the kernel waits by itself */
    c->numAttrs = 2;
}

qb_status resident_clusters(const void *kernel, int cluster, int threads, int smem_bytes,
                            int (&cache)[kMaxDevices], int *out)
{
    int device;
    QB_CUDA_TRY(cudaGetDevice(&device));
    if (device >= kMaxDevices)
        return QB_FAIL(QB_ERR_DEVICE, "cuda: GPU %d: this row knows GPUs 0 to %d", device,
                       kMaxDevices - 1);
    if (!(*out = __atomic_load_n(&cache[device], __ATOMIC_ACQUIRE))) {
        QB_CUDA_TRY(
            cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, smem_bytes));
        cudaLaunchConfig_t config = {};
        cudaLaunchAttribute attributes[2];
        fill_config(&config, attributes, cluster, cluster, threads, smem_bytes, nullptr);
        QB_CUDA_TRY(cudaOccupancyMaxActiveClusters(out, kernel, &config));
        if (*out < 1)
            return QB_FAIL(QB_ERR_DEVICE, "cuda: no cluster of %d blocks with %d bytes fits",
                           cluster, smem_bytes);
        __atomic_store_n(&cache[device], *out, __ATOMIC_RELEASE);
    }
    return QB_OK;
}

qb_status launch_clusters(const void *kernel, const qb__gemm_s8_params &params, int n_blocks,
                          int cluster, int threads, int smem_bytes, qb_cuda_stream stream)
{
    cudaLaunchConfig_t config = {};
    cudaLaunchAttribute attributes[2];
    void *args[] = {(void *)&params};
    fill_config(&config, attributes, n_blocks, cluster, threads, smem_bytes, stream);
    QB_CUDA_TRY(cudaLaunchKernelExC(&config, kernel, args));
    return QB_OK;
}

} // namespace gemm_s8

/* ---- the row ---- */

extern "C" {
extern const qb__gemm_s8_variant qb__gemm_s8_wide[], qb__gemm_s8_ping_pong[], qb__gemm_s8_small[];
}

const qb__gemm_s8_variant *qb__gemm_s8_variant_at(size_t i)
{
    const qb__gemm_s8_variant *const groups[] = {qb__gemm_s8_wide, qb__gemm_s8_ping_pong,
                                                 qb__gemm_s8_small};
    for (const qb__gemm_s8_variant *v : groups)
        for (; v->name; v++)
            if (i-- == 0) return v;
    return nullptr;
}

/* What the copy engine asks of a matrix. */
static bool fits_copy(const void *base, size_t stride, size_t elem_bytes)
{
    return (uintptr_t)base % 16 == 0 && stride * elem_bytes % 16 == 0;
}

/* A slice of 64 rows and columns must lie in one matrix of one sequence. */
static const char *refuse_cache(const qb_cuda_gemm_s8_args *a)
{
    const qb_cuda_gemm_s8_cache *c = &a->cache;
    if (!c->n_tokens) return nullptr;
    if (a->out != QB_CUDA_BF16) return "a cache is of bf16";
    if (c->n_tokens % 64 || a->m % c->n_tokens) return "sequences are not of 64 rows each";
    if (c->first % 64 || c->width % 64 || c->first + 2 * c->width != a->n)
        return "keys and values are not of 64 columns each";
    if (!fits_copy(c->y[0], c->stride, 2) || !fits_copy(c->y[1], c->batch_stride, 2))
        return "the cache is not in rows of 16 bytes";
    return nullptr;
}

const char *qb__gemm_s8_refuse_sm90(const qb_cuda_gemm_s8_args *a)
{
    if (a->m > INT32_MAX / 2 || a->n > INT32_MAX / 2) return "m or n too large";
    if (!fits_copy(a->x, a->x_stride, 1) || !fits_copy(a->w, a->w_stride, 1))
        return "x or w is not in rows of 16 bytes";
    if (a->y && !fits_copy(a->y, a->y_stride, qb_cuda_dtype_bytes(a->out)))
        return "y is not in rows of 16 bytes";
    if (a->residual && !fits_copy(a->residual, a->residual_stride, sizeof(float)))
        return "the residual is not in rows of 16 bytes";
    return refuse_cache(a);
}

qb_status qb__gemm_s8_run_sm90(const qb_cuda_gemm_s8_args *args, qb_cuda_stream stream)
{
    const qb__gemm_s8_plan plan = qb__gemm_s8_choose(args);
    return plan.variant->launch(args, plan.raster, stream);
}
