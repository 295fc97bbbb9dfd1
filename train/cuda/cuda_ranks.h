/* train/cuda/cuda_ranks.h - what train/comm.h does with arrays in host memory, for GPUs: through
 * NCCL, in the order of a stream.
 *
 * Everything is queued, on a stream of its own beside the given one: gradients travel while the
 * backward pass goes on. A thread watches: where a process of this host has ended, NCCL reports a
 * fault, or nothing has moved for the time that train/comm.h waits, what is under way is aborted,
 * so that the stream goes on; the ranks are lost then. */
#ifndef QB_TRAIN_CUDA_CUDA_RANKS_H
#define QB_TRAIN_CUDA_CUDA_RANKS_H

#include "kernels/cuda/ranks.h"
#include "train/ops.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct qb_cuda_ranks qb_cuda_ranks;

/* A call of all ranks, each with a GPU of its own. share and stream are borrowed. ordered: sums in
 * the order of the ranks; else NCCL's own way, which crosses each link between hosts once. */
qb_status qb_cuda_ranks_create(const qb_train_share *share, bool ordered, int device,
                               qb_cuda_stream stream, qb_cuda_ranks **out);
void qb_cuda_ranks_destroy(qb_cuda_ranks *ranks); /* accepts NULL */
size_t qb_cuda_ranks_memory_bytes(const qb_cuda_ranks *ranks);

/* As qb_comm_reduce and qb_comm_gather: after all that is queued on the stream. What reduce gives
 * is there for what is queued on it after a join; of the others at once. */
qb_status qb_cuda_ranks_reduce(qb_cuda_ranks *ranks, float *x_dev, size_t first, size_t end);
qb_status qb_cuda_ranks_gather(qb_cuda_ranks *ranks, float *x_dev);
qb_status qb_cuda_ranks_join(qb_cuda_ranks *ranks);
/* Loss and norm become those of all ranks. */
qb_status qb_cuda_ranks_totals(qb_cuda_ranks *ranks, qb_cuda_train_totals *totals_dev);

#ifdef __cplusplus
}
#endif
#endif
