/* train/cuda/cuda_peers.h - GPUs of one host that write into each other's memory.
 *
 * Copy engines do it and streams wait for it themselves, so that no multiprocessor takes part: a
 * kernel that wants all of them at once loses nothing to what travels beside it.
 *
 * Every rank has an inbox that the others write into: of each of them QB_CUDA_PEERS_PLACES places
 * for a message, and two counters. A message goes to the next place when that is free again, then
 * the receiver's counter of what has arrived is set; what has been used is counted at the sender.
 * Messages of one rank to another are received in the order in which they were sent. */
#ifndef QB_TRAIN_CUDA_CUDA_PEERS_H
#define QB_TRAIN_CUDA_CUDA_PEERS_H

#include "core/cuda.h"
#include "train/comm.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct qb_cuda_peers qb_cuda_peers;

enum { QB_CUDA_PEERS_PLACES = 2 };

/* A call of all ranks, for messages of up to max_bytes. *out is NULL on all of them where one has a
 * peer that it cannot write to: on another host, on a GPU that it is not shown, with
 * QB_PEER_COPIES=off in its environment, or where a first message does not arrive. */
qb_status qb_cuda_peers_create(qb_comm *comm, size_t max_bytes, qb_cuda_peers **out);
/* Accepts NULL. The inbox stays until the process ends: others may still count there. */
void qb_cuda_peers_destroy(qb_cuda_peers *peers);
size_t qb_cuda_peers_memory_bytes(const qb_cuda_peers *peers);

/* Queued on the stream, like what follows; one stream for all that is sent, and one for all that is
 * received. 0 bytes are a message too. */
qb_status qb_cuda_peers_send(qb_cuda_peers *peers, size_t to, const void *message_dev, size_t bytes,
                             qb_cuda_stream stream);
/* The next message of every other rank: that of rank r lies in the i-th of their places, which are
 * stride_bytes apart, i = r for r before this rank, else r - 1; all have to have sent as many
 * messages. What is queued on the stream until done may read them. */
qb_status qb_cuda_peers_receive(qb_cuda_peers *peers, const void **first_dev, size_t *stride_bytes,
                                qb_cuda_stream stream);
qb_status qb_cuda_peers_done(qb_cuda_peers *peers, qb_cuda_stream stream);

/* Whatever waits for a message waits no longer: the ranks are lost. For any thread. */
void qb_cuda_peers_give_up(qb_cuda_peers *peers);

#ifdef __cplusplus
}
#endif
#endif
