/* kernels/cuda/gemm_s8_launch.cuh - host side of one variant of gemm_s8/sm90: its tensor maps, its
 * grid, its launch. */
#ifndef QB_KERNELS_CUDA_GEMM_S8_LAUNCH_CUH
#define QB_KERNELS_CUDA_GEMM_S8_LAUNCH_CUH

#include "kernels/cuda/gemm_s8_internal.h"
#include "kernels/cuda/gemm_s8_sm90.cuh"

namespace gemm_s8
{

/* In gemm_s8_sm90.cu. */
qb_status encode_map(CUtensorMap *out, qb_cuda_dtype type, const void *base, size_t cols,
                     size_t rows, size_t stride_elems, int box_cols, int box_rows);
qb_status encode_cache_map(CUtensorMap *out, const qb_cuda_gemm_s8_args *args, int i);
qb_status fill_params(const qb_cuda_gemm_s8_args *args, qb__gemm_s8_params *out);
qb_status launch_clusters(const void *kernel, const qb__gemm_s8_params &params, int n_blocks,
                          int cluster, int threads, int smem_bytes, qb_cuda_stream stream);
/* How many clusters of a kernel fit on the current device at a time; sets up its shared memory.
 * `cache` is the kernel's own, one entry a device. */
enum { kMaxDevices = 64 };
qb_status resident_clusters(const void *kernel, int cluster, int threads, int smem_bytes,
                            int (&cache)[kMaxDevices], int *out);

template <class C>
qb_status launch(const qb_cuda_gemm_s8_args *args, int raster, qb_cuda_stream stream)
{
    static int cache[kMaxDevices];
    const void *kernel = (const void *)gemm_s8_sm90<C>;
    int n_resident;
    QB_TRY(resident_clusters(kernel, C::CLUSTER, C::THREADS, C::SMEM_BYTES, cache, &n_resident));
    qb__gemm_s8_params p;
    QB_TRY(fill_params(args, &p));
    const int slice =
        args->out == QB_CUDA_S8 ? kCodeWidth<C::NOUT> : 128 / (int)qb_cuda_dtype_bytes(args->out);
    QB_TRY(encode_map(&p.x, QB_CUDA_S8, args->x, args->k, args->m, args->x_stride, kBlockK,
                      C::BM / C::CN));
    QB_TRY(encode_map(&p.w, QB_CUDA_S8, args->w, args->k, args->n, args->w_stride, kBlockK,
                      C::BN / C::CM));
    if (p.has_y)
        QB_TRY(encode_map(&p.y, args->out, args->y, args->n, args->m, args->y_stride, slice, 64));
    for (int i = 0; p.n_tokens && i < 2; i++) QB_TRY(encode_cache_map(&p.cache[i], args, i));
    if (p.has_residual)
        QB_TRY(encode_map(&p.residual, QB_CUDA_F32, args->residual, args->n, args->m,
                          args->residual_stride, 32, 64));
    p.n_units_m = (p.m + C::CM * C::BM - 1) / (C::CM * C::BM);
    p.n_units_n = (p.n + C::CN * C::BN - 1) / (C::CN * C::BN);
    p.raster = raster < 1 ? 1 : raster < p.n_units_m ? raster : p.n_units_m;
    const int n_units = p.n_units_m * p.n_units_n;
    const int n_clusters = C::SPLIT > 1 || n_units < n_resident ? n_units : n_resident;
    return launch_clusters(kernel, p, n_clusters * C::CLUSTER, C::CLUSTER, C::THREADS,
                           C::SMEM_BYTES, stream);
}

/* A row of gemm_s8_variants.h as a table entry. */
template <class C> constexpr qb__gemm_s8_variant variant_of(const char *name)
{
    return {name, C::BM, C::BN, C::CM, C::CN, C::SPLIT, C::PP, launch<C>};
}

} // namespace gemm_s8

#define QB__GEMM_S8_ROW(name, ...) gemm_s8::variant_of<gemm_s8::config<__VA_ARGS__>>(name),

#endif
