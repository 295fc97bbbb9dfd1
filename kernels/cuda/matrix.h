/* kernels/cuda/matrix.h - how matrices lie in device memory, for all CUDA rows.
 *
 * Row-major; the row stride is a multiple of QB_CUDA_ALIGN elements and the columns from the width
 * to the stride are 0 wherever the matrix is an input of a product, so that odd widths cost nothing
 * in the kernels. Bases are 256-byte aligned. Buffers of activations have QB_CUDA_ROW_PAD rows more
 * than they need, so that a tile may read (never write) past the last row. */
#ifndef QB_KERNELS_CUDA_MATRIX_H
#define QB_KERNELS_CUDA_MATRIX_H

#include "core/cuda.h"
#include "core/kinds.h"
#include "kernels/registry.h"

#define QB_CUDA_ALIGN 64
#define QB_CUDA_ROW_PAD 256
static inline size_t qb_cuda_stride(size_t width)
{
    return (width + QB_CUDA_ALIGN - 1) / QB_CUDA_ALIGN * QB_CUDA_ALIGN;
}

typedef enum { QB_CUDA_F32, QB_CUDA_BF16, QB_CUDA_S8, QB_CUDA_S32 } qb_cuda_dtype;
static inline size_t qb_cuda_dtype_bytes(qb_cuda_dtype t)
{
    return t == QB_CUDA_BF16 ? 2 : t == QB_CUDA_S8 ? 1 : 4;
}

/* Several linear layers that share their input are one product whose output channels are cut into
 * segments (q | k | v, up | gate): the scheme's "per tensor" spans one segment. */
#define QB_CUDA_SEGMENTS 3
typedef struct qb_cuda_segments {
    int n;                     /* 1 to QB_CUDA_SEGMENTS */
    int end[QB_CUDA_SEGMENTS]; /* end[i] = first column after segment i; end[n - 1] = N */
} qb_cuda_segments;

#endif
