/* kernels/cuda/ranks.h - sums over what the ranks of a training run have, in their order: the same
 * bits in every run of as many ranks. */
#ifndef QB_KERNELS_CUDA_RANKS_H
#define QB_KERNELS_CUDA_RANKS_H

#include "kernels/cuda/train.h"

#ifdef __cplusplus
extern "C" {
#endif

/* x[i] (n) = sum over r of rank r's values, in the order of the ranks: `rank`'s own is x[i] itself;
 * the others' lie at others[r * stride + i], r counted without it. */
qb_status qb_cuda_ranks_add(float *x, size_t n, const float *others, size_t stride, size_t rank,
                            size_t n_ranks, qb_cuda_stream stream);
/* packed[i] = x[places[i]] for first <= i < end, */
qb_status qb_cuda_ranks_pick(const float *x, const uint64_t *places, size_t first, size_t end,
                             float *packed, qb_cuda_stream stream);
/* and x[places[i]] = packed[i] for i < n. */
qb_status qb_cuda_ranks_place(const float *packed, const uint64_t *places, size_t n, float *x,
                              qb_cuda_stream stream);
/* totals' loss_sum, square_sum and grad_norm from (n_ranks, 2) of the first two. */
qb_status qb_cuda_ranks_add_totals(const double *all, size_t n_ranks, qb_cuda_train_totals *totals,
                                   qb_cuda_stream stream);

#ifdef __cplusplus
}
#endif
#endif
