/* kernels/cuda/gemm_s8_sm90.h - what the host passes to the kernels of gemm_s8/sm90. */
#ifndef QB_KERNELS_CUDA_GEMM_S8_SM90_H
#define QB_KERNELS_CUDA_GEMM_S8_SM90_H

#include "kernels/cuda/gemm_s8.h"

#include <cuda.h>

typedef struct qb__gemm_s8_params {
    CUtensorMap x, w;        /* boxes of 128 bytes of k by the rows that a block loads */
    CUtensorMap y, residual; /* boxes of 128 bytes of columns by 64 rows */
    CUtensorMap cache[2];    /* likewise, of a sequence */
    int m, n;
    int n_blocks_k;               /* blocks of 128 codes */
    int n_units_m, n_units_n;     /* tiles of a cluster */
    int raster;                   /* unit rows walked before the next unit column */
    int has_y, has_residual, out; /* out: qb_cuda_dtype */
    int act;
    int x_scale_step;
    const float *x_scale, *w_scale, *bias, *out_scale;
    uint32_t *max_bits, *row_max_bits;
    int w_is_constant;
    int n_tokens; /* of a sequence of the cache; 0 = none */
    int cache_first, cache_width;
    int n_segments, segment_end[QB_CUDA_SEGMENTS];
} qb__gemm_s8_params;

#endif
