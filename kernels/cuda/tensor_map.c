/* kernels/cuda/tensor_map.c - see tensor_map.h. */
#include "kernels/cuda/tensor_map.h"

#include <cuda_runtime_api.h>
#include <stdatomic.h>
#include <stdint.h>

qb_status qb__tensor_map_encoder(PFN_cuTensorMapEncodeTiled_v12000 *out)
{
    static _Atomic(PFN_cuTensorMapEncodeTiled_v12000) found;
    *out = atomic_load(&found);
    if (*out) return QB_OK;
    void *address = NULL;
    enum cudaDriverEntryPointQueryResult result;
    if (cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &address, 12000,
                                         cudaEnableDefault, &result) != cudaSuccess ||
        result != cudaDriverEntryPointSuccess)
        return QB_FAIL(QB_ERR_DEVICE, "cuda: no cuTensorMapEncodeTiled in the driver");
    *out = (PFN_cuTensorMapEncodeTiled_v12000)address;
    atomic_store(&found, *out);
    return QB_OK;
}

qb_status qb__tensor_map_planes(CUtensorMap *out, const qb__tensor_map_args *a, size_t n_planes,
                                size_t plane_stride_elems)
{
    const cuuint64_t dims[] = {a->cols, a->rows, n_planes},
                     strides[] = {a->stride_elems * a->elem_bytes,
                                  plane_stride_elems * a->elem_bytes};
    const cuuint32_t box[] = {(cuuint32_t)a->box_cols, (cuuint32_t)a->box_rows, 1},
                     steps[] = {1, 1, 1};
    PFN_cuTensorMapEncodeTiled_v12000 encode;
    QB_TRY(qb__tensor_map_encoder(&encode));
    CUresult code = encode(out, a->type, n_planes ? 3 : 2, (void *)(uintptr_t)a->base, dims,
                           strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, a->swizzle,
                           CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    if (code == CUDA_SUCCESS) return QB_OK;
    return QB_FAIL(QB_ERR_DEVICE, "cuda: tensor map of (%zu, %zu), stride %zu: error %d", a->rows,
                   a->cols, a->stride_elems, (int)code);
}

qb_status qb__tensor_map(CUtensorMap *out, const qb__tensor_map_args *a)
{
    return qb__tensor_map_planes(out, a, 0, 0);
}

qb_status qb__head_map(CUtensorMap *out, const qb__head_map_args *a)
{
    const cuuint64_t dims[] = {a->head_dim, a->n_heads, a->n_tokens, a->batch};
    const cuuint64_t strides[] = {a->head_dim * 2, a->stride * 2, a->batch_stride * 2};
    const cuuint32_t box[] = {64, 1, (cuuint32_t)a->box_tokens, 1}, steps[] = {1, 1, 1, 1};
    PFN_cuTensorMapEncodeTiled_v12000 encode;
    QB_TRY(qb__tensor_map_encoder(&encode));
    CUresult code =
        encode(out, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 4, (void *)(uintptr_t)a->base, dims, strides,
               box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
               CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    if (code == CUDA_SUCCESS) return QB_OK;
    return QB_FAIL(QB_ERR_DEVICE, "cuda: tensor map of %zu heads of %zu, stride %zu: error %d",
                   a->n_heads, a->head_dim, a->stride, (int)code);
}
