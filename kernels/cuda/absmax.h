/* kernels/cuda/absmax.h - largest magnitudes of a matrix: for outputs of products that have no
 * epilogue of ours, and for the scale of a head's input. */
#ifndef QB_KERNELS_CUDA_ABSMAX_H
#define QB_KERNELS_CUDA_ABSMAX_H

#include "kernels/cuda/matrix.h"

#ifdef __cplusplus
extern "C" {
#endif

/* max_bits[s] is raised to the bits of max |y| over all rows and the columns of segment s; NaN is
 * ignored. y (m, segments' end) F32 or BF16. */
qb_status qb_cuda_absmax(const void *y, qb_cuda_dtype type, size_t m, size_t stride,
                         const qb_cuda_segments *segments, uint32_t *max_bits,
                         qb_cuda_stream stream);
/* *scale = max_bits / 127. */
qb_status qb_cuda_absmax_scale(const uint32_t *max_bits, float *scale, qb_cuda_stream stream);

#ifdef __cplusplus
}
#endif
#endif
