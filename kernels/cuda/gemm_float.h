/* kernels/cuda/gemm_float.h - bf16 and f32 matrix products, most through cuBLASLt (loaded at run
 * time).
 *
 *     z = act(x . w^T + bias)          bf16: f32 accumulation; f32: f32 multiply-adds, no tf32  (1)
 *
 * The algorithm of a shape is the first of the heuristics, so that equal calls give equal bits, in
 * this process and in the next. A bias of a bf16 output is rounded to bf16 by cuBLASLt's row. */
#ifndef QB_KERNELS_CUDA_GEMM_FLOAT_H
#define QB_KERNELS_CUDA_GEMM_FLOAT_H

#include "kernels/cuda/gemm_s8.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct qb_cuda_gemm_float_args {
    size_t m, n, k;
    qb_cuda_dtype in;  /* of x and w: F32 or BF16 */
    const void *x, *w; /* (m, k), (n, k); w was complete when the kernel before was queued */
    size_t x_stride, w_stride;
    const float *bias; /* (n) f32 or NULL */
    qb_epilogue_act act;
    qb_cuda_dtype out; /* F32 or BF16 */
    void *y;
    size_t y_stride;
    float *residual; /* += z in f32; y is then NULL */
    size_t residual_stride;
} qb_cuda_gemm_float_args;

typedef struct qb_cuda_gemm_float_row {
    qb_kernel_info info;
    const char *(*refuse)(const qb_cuda_gemm_float_args *args);
    qb_status (*run)(const qb_cuda_gemm_float_args *args, qb_cuda_stream stream);
    /* NULL, or whether a later row takes the arguments and is as fast. */
    bool (*is_slower)(const qb_cuda_gemm_float_args *args);
} qb_cuda_gemm_float_row;
/* A few tokens; cuBLASLt; a plain kernel without it last (right, not fast). */
extern const qb_cuda_gemm_float_row qb_cuda_gemm_float_kernels[];
qb_status qb_cuda_gemm_float(const qb_cuda_gemm_float_args *args, qb_cuda_stream stream);

#ifdef __cplusplus
}
#endif
#endif
