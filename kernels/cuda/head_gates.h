/* kernels/cuda/head_gates.h - gated attention on the GPU: equation (2) of model/arch.h.
 *
 *     y[h * head_dim + d] *= 1 / (1 + e^-(w[h] . norm(x) + bias[h]))                        (1)
 *
 * One pass after attention. The norm is worked out again from the residual stream, which attention
 * leaves as it is: what the norm's own pass keeps may be codes alone. All in f32; y may be bf16. */
#ifndef QB_KERNELS_CUDA_HEAD_GATES_H
#define QB_KERNELS_CUDA_HEAD_GATES_H

#include "core/kinds.h"
#include "kernels/cuda/matrix.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct qb_cuda_head_gates_args {
    size_t m, width, n_heads, head_dim; /* rows; n_heads at most 8192 */
    const float *x;                     /* (m, width) residual stream */
    size_t x_stride;
    qb_norm_kind norm;
    const float *gain, *bias; /* of the norm, as qb_cuda_norm_args has them */
    float eps;
    const float *gate_w, *gate_bias; /* (n_heads, width) dense, (n_heads) */
    qb_cuda_dtype type;              /* F32 or BF16, of y */
    void *y;                         /* (m, n_heads * head_dim) attention's output, in place */
    size_t y_stride;
} qb_cuda_head_gates_args;
/* Queued on the stream. Bits depend on the row alone. */
qb_status qb_cuda_head_gates(const qb_cuda_head_gates_args *args, qb_cuda_stream stream);

#ifdef __cplusplus
}
#endif
#endif
