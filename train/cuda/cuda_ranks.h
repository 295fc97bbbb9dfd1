/* train/cuda/cuda_ranks.h - what train/comm.h does with arrays in host memory, for GPUs, in the
 * order of a stream: GPUs of one host copy into each other's memory (cuda_peers.h), others use
 * NCCL.
 *
 * Everything is queued, on streams of its own beside the given one: gradients travel while the
 * backward pass goes on, weights while others are updated. A thread watches: where a process of
 * this host has ended, NCCL reports a fault, or nothing has moved for the time that train/comm.h
 * waits, what is under way is aborted, so that the stream goes on; the ranks are lost then. */
#ifndef QB_TRAIN_CUDA_CUDA_RANKS_H
#define QB_TRAIN_CUDA_CUDA_RANKS_H

#include "kernels/cuda/ranks.h"
#include "train/ops.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct qb_cuda_ranks qb_cuda_ranks;

/* A call of all ranks, each with a GPU of its own. share and stream are borrowed. ordered: sums in
 * the order of the ranks; else NCCL may have its own way, which crosses each link between hosts
 * once. */
qb_status qb_cuda_ranks_create(const qb_train_share *share, bool ordered, int device,
                               qb_cuda_stream stream, qb_cuda_ranks **out);
void qb_cuda_ranks_destroy(qb_cuda_ranks *ranks); /* accepts NULL */
size_t qb_cuda_ranks_memory_bytes(const qb_cuda_ranks *ranks);

/* After all that is queued on the stream; the arrays are the call's until a join, when what is
 * queued on the stream finds the results.
 * reduce: for first <= i < end the owner's x[i] becomes the sum over the ranks. */
qb_status qb_cuda_ranks_reduce(qb_cuda_ranks *ranks, float *x_dev, size_t first, size_t end);
/* gather: the owners' are everywhere. Rank r has elements bounds[r] to bounds[r + 1]; of each
 * rank's the chunk_idx-th chunk is sent, so that the first can leave while the last are worked out.
 */
typedef struct qb_gather {
    void *x; /* device */
    size_t elem_bytes;
    const size_t *bounds;
    size_t chunk_idx;
} qb_gather;
qb_status qb_cuda_ranks_gather(qb_cuda_ranks *ranks, const qb_gather *gather);
/* Of so many elements each, for so many ranks; as many as the rank with the most elements has. */
size_t qb_cuda_ranks_chunk_elems(size_t n_ranks);
size_t qb_cuda_ranks_chunks(const size_t *bounds, size_t n_ranks);
qb_status qb_cuda_ranks_join(qb_cuda_ranks *ranks);
/* What is queued here finds what has been gathered so far. */
qb_cuda_stream qb_cuda_ranks_behind(const qb_cuda_ranks *ranks);
/* Loss and norm become those of all ranks, at once. */
qb_status qb_cuda_ranks_totals(qb_cuda_ranks *ranks, qb_cuda_train_totals *totals_dev);

#ifdef __cplusplus
}
#endif
#endif
