/* train/comm.h - the processes that train one model together: one a device, started by mpirun or
 * srun. A process started alone is rank 0 of 1, and every call here is then next to nothing.
 *
 * All ranks make the same calls in the same order. Sums are added up in the order of the ranks, so
 * the same number of ranks gives the same bits in every run. Calls that wait notice within a second
 * that a process of this host has ended, and give up after QB_COMM_TIMEOUT seconds (600) in any
 * case: QB_ERR_DEVICE, and qb_comm_is_lost is true from then on. One thread at a time. */
#ifndef QB_TRAIN_COMM_H
#define QB_TRAIN_COMM_H

#include "core/status.h"

#include <stdbool.h>
#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct qb_comm qb_comm;

/* Takes part in what mpirun or srun started. QB_ERR_UNSUPPORTED: this process is one of several,
 * and the build has no MPI or the launcher did not tell it of them. */
qb_status qb_comm_open(qb_comm **out);
bool qb_comm_has_mpi(void); /* this build can be one of several processes */
/* The ranks part: `status` is how this one ends. Waits a few seconds for the others, which may be
 * elsewhere if one failed alone. True: rank 0 is another one and ends in the same way, so that it
 * says what there is to say. Accepts NULL. */
bool qb_comm_close(qb_comm *comm, qb_status status);

/* NULL is a process alone, here and in all that follows. */
size_t qb_comm_rank(const qb_comm *comm);
size_t qb_comm_size(const qb_comm *comm);
/* Of the ranks of this host, from 0 on: the GPU to take. */
size_t qb_comm_local_rank(const qb_comm *comm);
/* It runs on this host, where its process id means the same. */
bool qb_comm_is_near(const qb_comm *comm, size_t rank);
bool qb_comm_is_lost(const qb_comm *comm);
/* QB_ERR_DEVICE: the ranks are lost, or one of this host has ended. Does not wait; for any thread.
 */
qb_status qb_comm_check_alive(qb_comm *comm);
/* The ranks are lost, for that reason if it is the first. Returns QB_ERR_DEVICE; any thread. */
qb_status qb_comm_lose(qb_comm *comm, const char *why);
double qb_comm_timeout_s(const qb_comm *comm);

/* Of n things in a row, those of this rank: they depend on n and the ranks alone. */
void qb_comm_part(const qb_comm *comm, size_t n, size_t *first, size_t *own);

/* Small things, in host memory: all (size, bytes) gets what each rank has. */
qb_status qb_comm_all(qb_comm *comm, const void *mine, size_t bytes, void *all);
/* *bits of all ranks together. */
qb_status qb_comm_agree(qb_comm *comm, unsigned *bits);
/* values[i] becomes the sum over the ranks. */
qb_status qb_comm_add(qb_comm *comm, double *values, size_t n);
/* QB_OK where every rank has it, else the first failure and its message, on all ranks. */
qb_status qb_comm_check(qb_comm *comm, qb_status status);

/* Arrays in host memory. Rank r owns the elements bounds[r] to bounds[r + 1].
 * reduce: for first <= i < end the owner's x[i] becomes the sum over the ranks.
 * gather: x[i] becomes the owner's. collect: the same on rank 0 alone; elsewhere x is the memory of
 * the own elements only. */
qb_status qb_comm_reduce(qb_comm *comm, float *x, const size_t *bounds, size_t first, size_t end);
qb_status qb_comm_gather(qb_comm *comm, float *x, const size_t *bounds);
qb_status qb_comm_collect(qb_comm *comm, float *x, const size_t *bounds);

#ifdef __cplusplus
}
#endif
#endif
