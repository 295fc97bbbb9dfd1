/* kernels/cuda/logits.h - statistics of rows of logits, made where the logits are, so that only a
 * few numbers a token leave the device (kernels/pointwise.h: logsumexp, logit_stats). */
#ifndef QB_KERNELS_CUDA_LOGITS_H
#define QB_KERNELS_CUDA_LOGITS_H

#include "kernels/cuda/matrix.h"
#include "kernels/pointwise.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Logits f32 (m, vocab), row stride `stride` (a multiple of 4). Sums in a fixed order: equal calls,
 * equal bits. All pointers are on the device. */
/* out[i] of rows a[i], b[i] and target[i] (negative: nll 0). b NULL: nll_a and top_a,
 * the others 0. target NULL: nll 0. */
qb_status qb_cuda_logit_stats(const float *a, const float *b, size_t m, size_t vocab, size_t stride,
                              const int32_t *target, qb_logit_stats *out, qb_cuda_stream stream);
/* ids[i] = argmax of row i, lowest index at ties. */
qb_status qb_cuda_argmax(const float *logits, size_t m, size_t vocab, size_t stride, int32_t *ids,
                         qb_cuda_stream stream);

typedef struct qb_cuda_logits_row {
    qb_kernel_info info;
    qb_status (*stats)(const float *a, const float *b, size_t m, size_t vocab, size_t stride,
                       const int32_t *target, qb_logit_stats *out, qb_cuda_stream stream);
    qb_status (*argmax)(const float *logits, size_t m, size_t vocab, size_t stride, int32_t *ids,
                        qb_cuda_stream stream);
} qb_cuda_logits_row;
extern const qb_cuda_logits_row qb_cuda_logits_kernels[]; /* one row; ends with a zero row */

#ifdef __cplusplus
}
#endif
#endif
