/* kernels/cuda/ranks.h - sums over what the ranks of a training run have, in their order: the same
 * bits in every run of as many ranks. */
#ifndef QB_KERNELS_CUDA_RANKS_H
#define QB_KERNELS_CUDA_RANKS_H

#include "kernels/cuda/train.h"

#ifdef __cplusplus
extern "C" {
#endif

/* x[i] (n) = sum over r of others[r * stride + i], where rank's own term is x[i] itself. */
qb_status qb_cuda_ranks_add(float *x, size_t n, const float *others, size_t stride, size_t rank,
                            size_t n_ranks, qb_cuda_stream stream);
/* totals' loss_sum, square_sum and grad_norm from (n_ranks, 2) of the first two. */
qb_status qb_cuda_ranks_add_totals(const double *all, size_t n_ranks, qb_cuda_train_totals *totals,
                                   qb_cuda_stream stream);

#ifdef __cplusplus
}
#endif
#endif
