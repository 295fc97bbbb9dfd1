/* kernels/cuda/gemm_s8.h - int8 matrix product on the GPU; the formulas are kernels/gemm_s8.h.
 *
 *     acc[m, n] = sum over k < K of x[m, k] * w[n, k]                    exact                  (1)
 *     y[m, n]   = (float)acc[m, n] * (x_scale[m] * w_scale[n]) + bias[n] one rounding each      (2)
 *     z[m, n]   = act(y[m, n])                                                                  (3)
 *
 * What is stored (out): F32 and BF16: z. S32: acc. S8: clamp(round_half_even(z / *out_scale)), the
 * static requantising epilogue. With residual, residual[m, n] += z in f32 and y may be NULL.
 * (2) is bit-identical to the CPU rows; (3) uses the same formulas in f32. Beside the last column
 * of y up to the next multiple of 16 bytes may be written, with zeros. */
#ifndef QB_KERNELS_CUDA_GEMM_S8_H
#define QB_KERNELS_CUDA_GEMM_S8_H

#include "kernels/cuda/matrix.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum { QB_EPI_NONE, QB_EPI_GELU, QB_EPI_RELU } qb_epilogue_act;

/* Where the last columns are stored in place of y, as the keys and values of q | k | v go to their
 * cache: `width` columns from `first` on to y[0], the next, which end the product, to y[1], each as
 * (sequences, n_tokens, width). n_tokens 0: all go to y. Few rows can: see
 * qb_cuda_gemm_s8_refusal. */
typedef struct qb_cuda_gemm_s8_cache {
    void *y[2];
    size_t n_tokens, first, width;
    size_t stride, batch_stride; /* of a token and of a sequence, in elements */
} qb_cuda_gemm_s8_cache;

typedef struct qb_cuda_gemm_s8_args { /* device pointers */
    size_t m, n, k;
    const int8_t *x; /* (m, k) codes */
    size_t x_stride; /* qb_cuda_stride(k) */
    const int8_t *w; /* (n, k) codes, row stride w_stride = qb_cuda_stride(k) */
    size_t w_stride;
    const float *x_scale; /* x_scale[m * x_scale_step], step 1 per token, 0 per tensor */
    size_t x_scale_step;
    const float *w_scale; /* (n) always; one value repeated where the scheme is per tensor */
    const float *bias;    /* (n) or NULL */
    qb_epilogue_act act;
    qb_cuda_dtype out;
    void *y;
    size_t y_stride;
    float *residual; /* (m, n), stride residual_stride; NULL = none */
    size_t residual_stride;
    const float *out_scale; /* out S8: one value a segment */
    uint32_t *max_bits;     /* NULL, or one a segment: raised to the bits of max |z| (2)(3) */
    uint32_t *row_max_bits; /* NULL, or (m): raised to the bits of max over n of |z as stored| */
    qb_cuda_segments segments;
    qb_cuda_gemm_s8_cache cache;
    /* w was complete when the kernel before this one was queued, as a model's weights are: it may
     * then be read while that one still runs. */
    bool w_is_constant;
} qb_cuda_gemm_s8_args;

typedef struct qb_cuda_gemm_s8_row {
    qb_kernel_info info;
    /* NULL = takes these, else why not (shape, out type). Cheap; asked before each run. */
    const char *(*refuse)(const qb_cuda_gemm_s8_args *args);
    qb_status (*run)(const qb_cuda_gemm_s8_args *args, qb_cuda_stream stream);
} qb_cuda_gemm_s8_row;
extern const qb_cuda_gemm_s8_row qb_cuda_gemm_s8_kernels[]; /* ends with a zero row */

/* NULL = some usable row takes the arguments; else why not. */
const char *qb_cuda_gemm_s8_refusal(const qb_cuda_gemm_s8_args *args);
/* Runs the first usable row that takes the arguments (the tuned table may prefer another). */
qb_status qb_cuda_gemm_s8(const qb_cuda_gemm_s8_args *args, qb_cuda_stream stream);

#ifdef __cplusplus
}
#endif
#endif
