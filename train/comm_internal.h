/* train/comm_internal.h - what a way of talking between processes provides: a row of train/comm.c.
 */
#ifndef QB_TRAIN_COMM_INTERNAL_H
#define QB_TRAIN_COMM_INTERNAL_H

#include "train/comm.h"

#include <stdatomic.h>
#include <stdint.h>
#include <sys/types.h>

typedef struct qb_comm_piece {
    void *at;
    size_t bytes; /* at most QB_COMM_CHUNK_BYTES; 0 = none */
} qb_comm_piece;
enum { QB_COMM_CHUNK_ELEMS = 1 << 18, QB_COMM_CHUNK_BYTES = 4 * QB_COMM_CHUNK_ELEMS };

/* Where a rank runs. */
typedef struct qb_comm_peer {
    char host[48];      /* of the running kernel, not its name: names may be equal */
    char processes[32]; /* the space that the id is of */
    pid_t id;
} qb_comm_peer;

typedef struct qb_comm_row {
    const char *name;
    bool (*open)(qb_comm *comm); /* sets rank and size; false: not to be had */
    void (*close)(qb_comm *comm, bool orderly);
    /* As qb_comm_all; apart: beside the calls that may be under way. */
    qb_status (*all)(qb_comm *comm, bool apart, const void *mine, size_t bytes, void *all);
    /* send[r] to each other rank r, receive[r] from it: (size) each, the own ones are ignored. */
    qb_status (*exchange)(qb_comm *comm, const qb_comm_piece *send, const qb_comm_piece *receive);
} qb_comm_row;

struct qb_comm {
    const qb_comm_row *row;
    size_t rank, size, local_rank;
    qb_comm_peer *peers;           /* (size) */
    qb_comm_piece *send, *receive; /* (size) */
    float *scratch;                /* (size, QB_COMM_CHUNK_ELEMS) */
    double timeout_s;
    atomic_bool losing, lost; /* the first to lose says why */
    char why[128];
    void *state; /* the row's */
};

extern const qb_comm_row qb__comm_mpi; /* in a build with MPI */

/* While a call waits: QB_OK = go on. Rests a little longer each time. */
typedef struct qb_comm_wait {
    double began_s, looked_s;
    unsigned rounds;
} qb_comm_wait;
qb_comm_wait qb__comm_wait_begin(void);
qb_status qb__comm_wait_more(qb_comm *comm, qb_comm_wait *wait);

#endif
