/* kernels/cuda/cublaslt_matmul.h - one call for every float product that cuBLASLt does for us.
 *
 *     d (m, n) = epilogue(alpha * sum over k of x[m, k] * w[n, k] + beta * d[m, n])             (1)
 *
 * All matrices are row-major; x may be stored as (k, m) and w as (k, n), so that the products of a
 * backward pass need no transposed copies. The first algorithm of the heuristics is taken and kept
 * a shape: timing would choose differently from run to run, and with it the bits. */
#ifndef QB_KERNELS_CUDA_CUBLASLT_MATMUL_H
#define QB_KERNELS_CUDA_CUBLASLT_MATMUL_H

#include "kernels/cuda/cublaslt.h"
#include "kernels/cuda/matrix.h"

#ifdef __cplusplus
extern "C" {
#endif

#ifdef QB_HAVE_CUBLASLT

/* At the end of the stream's workspace, for a bias rounded to bf16. What is left are the 32 MiB
 * that cuBLASLt's best algorithms for Hopper ask for. */
#define QB_LT_BIAS_BYTES ((size_t)1 << 20)
#define QB_LT_BYTES (QB_CUBLASLT_WORKSPACE_BYTES - QB_LT_BIAS_BYTES)

typedef enum {
    QB_LT_NONE,
    QB_LT_GELU, /* tanh GELU */
    QB_LT_RELU,
    QB_LT_GELU_AUX, /* aux = (1) before GELU */
    QB_LT_DGELU,    /* (1) times GELU'(aux) */
} qb_lt_epilogue;

typedef enum {
    QB_LT_STRICT, /* f32: multiply-adds in order of preference without tf32; bf16: f32 sums */
    QB_LT_TF32,   /* f32 inputs may be rounded to tf32 (11 bits) */
} qb_lt_arithmetic;

typedef struct qb_lt_matmul_args { /* device pointers */
    size_t m, n, k;
    qb_cuda_dtype in, out; /* F32 or BF16; of x and w, of d */
    qb_lt_arithmetic arithmetic;
    bool x_is_km, w_is_kn; /* stored transposed */
    const void *x, *w;
    void *d;
    size_t x_stride, w_stride, d_stride;
    size_t batch; /* 0 counts as 1; then the distances of one matrix from the next, in elements */
    size_t x_batch_stride, w_batch_stride, d_batch_stride;
    float alpha, beta;
    const float *alpha_dev, *beta_dev; /* both or none: read from the device in place of these */
    qb_lt_epilogue epilogue;
    const void *bias; /* (n) in the type of d, or NULL */
    void *aux;        /* (m, n) in the type of d, stride aux_stride, a multiple of 8 */
    size_t aux_stride;
} qb_lt_matmul_args;

/* *found = cuBLASLt has an algorithm for the case; it is kept. Not while a stream is captured. */
qb_status qb_lt_matmul_prepare(const qb_lt_matmul_args *args, bool *found);
/* QB_ERR_DEVICE: no algorithm. Queued on the stream; the first call of a shape prepares it. */
qb_status qb_lt_matmul(const qb_lt_matmul_args *args, qb_cuda_stream stream);

#endif

#ifdef __cplusplus
}
#endif
#endif
