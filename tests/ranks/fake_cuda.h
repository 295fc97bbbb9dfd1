/* tests/ranks/fake_cuda.h - as much of CUDA as train/cuda/cuda_ranks.c and cuda_peers.c call, made
 * of threads: a stream is one that does what is queued, in order and at its own uneven pace; memory
 * of a device is memory; a rank is a thread that calls. So what would be wrong only now and then on
 * GPUs is wrong soon, and needs none. */
#ifndef QB_TESTS_FAKE_CUDA_H
#define QB_TESTS_FAKE_CUDA_H

#include "core/cuda.h"
#include "train/comm.h"

/* Queues a call of `run` with a copy of the argument. */
enum { FAKE_ARGUMENT_BYTES = 64 };
void fake_queue(qb_cuda_stream stream, void (*run)(const void *argument), const void *argument,
                size_t bytes);

/* n ranks, each a thread that calls `run`; waits for them. Rank r's comm is its argument. */
void fake_ranks(size_t n, void (*run)(qb_comm *comm, void *context), void *context);
/* From now on the ranks count as lost. */
void fake_lose(qb_comm *comm);
/* What the next ranks' devices can. */
extern bool fake_shares_memory, fake_loses_writes;

#endif
