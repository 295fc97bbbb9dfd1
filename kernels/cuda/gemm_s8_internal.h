/* kernels/cuda/gemm_s8_internal.h - the rows of gemm_s8 on the GPU, and the choice of a variant. */
#ifndef QB_KERNELS_CUDA_GEMM_S8_INTERNAL_H
#define QB_KERNELS_CUDA_GEMM_S8_INTERNAL_H

#include "kernels/cuda/gemm_s8.h"

#ifdef __cplusplus
extern "C" {
#endif

/* What rows say that store all segments to y. */
static inline const char *qb__gemm_s8_refuse_cache(const qb_cuda_gemm_s8_args *args)
{
    return args->cache.n_tokens ? "columns are to go to a cache" : NULL;
}

const char *qb__gemm_s8_refuse_sm90(const qb_cuda_gemm_s8_args *args);
qb_status qb__gemm_s8_run_sm90(const qb_cuda_gemm_s8_args *args, qb_cuda_stream stream);
const char *qb__gemm_s8_refuse_gemv(const qb_cuda_gemm_s8_args *args);
qb_status qb__gemm_s8_run_gemv(const qb_cuda_gemm_s8_args *args, qb_cuda_stream stream);
const char *qb__gemm_s8_refuse_sm80(const qb_cuda_gemm_s8_args *args);
qb_status qb__gemm_s8_run_sm80(const qb_cuda_gemm_s8_args *args, qb_cuda_stream stream);
const char *qb__gemm_s8_refuse_cublaslt(const qb_cuda_gemm_s8_args *args);
qb_status qb__gemm_s8_run_cublaslt(const qb_cuda_gemm_s8_args *args, qb_cuda_stream stream);

/* Equations (2) and (3) and what is stored, from sums in memory. */
qb_status qb__gemm_s8_finish(const int32_t *acc, size_t acc_stride,
                             const qb_cuda_gemm_s8_args *args, qb_cuda_stream stream);

/* ---- the variants of gemm_s8/sm90: one compiled kernel each ---- */

typedef struct qb__gemm_s8_variant {
    const char *name; /* "128x256/c2x1": tile of a block, then what else is special */
    int bm, bn;       /* rows and columns that a block finishes at a time */
    int cm, cn;       /* blocks of a cluster that share columns of w, rows of x */
    int split;        /* blocks of a cluster that share a tile's k */
    int ping_pong;    /* 1: two tiles in flight a block */
    /* raster: row tiles that are walked before the next column tile. */
    qb_status (*launch)(const qb_cuda_gemm_s8_args *args, int raster, qb_cuda_stream stream);
} qb__gemm_s8_variant;
/* Variant i of gemm_s8_variants.h; NULL past the last. */
const qb__gemm_s8_variant *qb__gemm_s8_variant_at(size_t i);

/* What the tuned table or its model chooses. */
typedef struct qb__gemm_s8_plan {
    const qb__gemm_s8_variant *variant;
    int raster;
} qb__gemm_s8_plan;
qb__gemm_s8_plan qb__gemm_s8_choose(const qb_cuda_gemm_s8_args *args);
/* For tests and tuning: all runs of gemm_s8/sm90 take this plan; a NULL variant lifts it. */
void qb__gemm_s8_force(qb__gemm_s8_plan plan);

#ifdef __cplusplus
}
#endif
#endif
