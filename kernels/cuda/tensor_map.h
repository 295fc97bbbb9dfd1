/* kernels/cuda/tensor_map.h - descriptions of matrices for Hopper's bulk copy engine. */
#ifndef QB_KERNELS_CUDA_TENSOR_MAP_H
#define QB_KERNELS_CUDA_TENSOR_MAP_H

#include "core/status.h"

#include <cuda.h>
#include <cudaTypedefs.h>
#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct qb__tensor_map_args {
    CUtensorMapDataType type;
    size_t elem_bytes;
    const void *base; /* 16-byte aligned */
    size_t cols, rows;
    size_t stride_elems; /* a multiple of 16 bytes */
    int box_cols, box_rows;
    CUtensorMapSwizzle swizzle;
} qb__tensor_map_args;
/* The driver's encoder, looked up at run time, since nothing links the driver. QB_ERR_DEVICE: it
 * has none. */
qb_status qb__tensor_map_encoder(PFN_cuTensorMapEncodeTiled_v12000 *out);
qb_status qb__tensor_map(CUtensorMap *out, const qb__tensor_map_args *args);
/* Of n_planes such matrices, a box in one of them; n_planes 0 is the same as above. */
qb_status qb__tensor_map_planes(CUtensorMap *out, const qb__tensor_map_args *args, size_t n_planes,
                                size_t plane_stride_elems);

/* Heads of bf16 matrices as 4D maps (dimension, head, token, sequence): boxes of 64 dimensions of
 * one head by box_tokens tokens, in 128-byte swizzle, zeros outside. */
typedef struct qb__head_map_args {
    const void *base;
    size_t head_dim, n_heads, n_tokens, batch;
    size_t stride, batch_stride; /* elements, multiples of 8 */
    int box_tokens;
} qb__head_map_args;
qb_status qb__head_map(CUtensorMap *out, const qb__head_map_args *args);

#ifdef __cplusplus
}
#endif
#endif
