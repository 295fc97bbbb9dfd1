/* train/comm_mpi.c - ranks that MPI started, talking through host memory.
 *
 * Only calls that do not block: what waits also looks whether the others are alive. */
#include "train/comm_internal.h"

#ifdef QB_WITH_MPI
#include "core/memory.h"

#include <mpi.h>

typedef struct mpi {
    MPI_Comm work, apart;  /* the same ranks; apart: for the farewell */
    MPI_Request *requests; /* (2 size) */
} mpi;

static bool open_mpi(qb_comm *c)
{
    int provided, rank, size;
    mpi *m;
    if (QB_NEW_ZERO(&m, 1, "MPI") != QB_OK) return false;
    c->state = m;
    if (MPI_Init_thread(NULL, NULL, MPI_THREAD_FUNNELED, &provided)) return false;
    MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN); /* duplicates inherit it */
    bool ok = !MPI_Comm_dup(MPI_COMM_WORLD, &m->work) && !MPI_Comm_dup(MPI_COMM_WORLD, &m->apart) &&
              !MPI_Comm_rank(m->work, &rank) && !MPI_Comm_size(m->work, &size);
    if (!ok) return false;
    c->rank = (size_t)rank;
    c->size = (size_t)size;
    return QB_NEW(&m->requests, 2 * c->size, "MPI") == QB_OK;
}

/* After a loss MPI_Finalize would wait for ever. */
static void close_mpi(qb_comm *c, bool orderly)
{
    mpi *m = c->state;
    if (orderly) MPI_Finalize();
    if (m) qb_free(m->requests);
    qb_free(m);
}

static qb_status wait_for(qb_comm *c, int n)
{
    const mpi *m = c->state;
    qb_comm_wait wait = qb__comm_wait_begin();
    for (;;) {
        int done;
        if (MPI_Testall(n, m->requests, &done, MPI_STATUSES_IGNORE))
            return qb_comm_lose(c, "MPI reports that another was lost");
        if (done) return QB_OK;
        QB_TRY(qb__comm_wait_more(c, &wait));
    }
}

static qb_status all_mpi(qb_comm *c, bool apart, const void *mine, size_t bytes, void *all)
{
    const mpi *m = c->state;
    int n = (int)bytes;
    if (MPI_Iallgather(mine, n, MPI_BYTE, all, n, MPI_BYTE, apart ? m->apart : m->work,
                       m->requests))
        return qb_comm_lose(c, "MPI reports that another was lost");
    return wait_for(c, 1);
}

static qb_status exchange_mpi(qb_comm *c, const qb_comm_piece *send, const qb_comm_piece *receive)
{
    const mpi *m = c->state;
    int n = 0, failed = 0;
    for (size_t r = 0; r < c->size; r++)
        if (r != c->rank && receive[r].bytes)
            failed |= MPI_Irecv(receive[r].at, (int)receive[r].bytes, MPI_BYTE, (int)r, 0, m->work,
                                &m->requests[n++]);
    for (size_t r = 0; r < c->size; r++)
        if (r != c->rank && send[r].bytes)
            failed |= MPI_Isend(send[r].at, (int)send[r].bytes, MPI_BYTE, (int)r, 0, m->work,
                                &m->requests[n++]);
    if (failed) return qb_comm_lose(c, "MPI reports that another was lost");
    return wait_for(c, n);
}

const qb_comm_row qb__comm_mpi = {
    .name = "mpi", .open = open_mpi, .close = close_mpi, .all = all_mpi, .exchange = exchange_mpi};
#endif
