/* train/comm.c - see comm.h. */
#include "train/comm.h"

#include "core/clock.h"
#include "core/memory.h"
#include "train/comm_internal.h"

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { TEXT_BYTES = 480, FAREWELL_S = 5 };

size_t qb_comm_rank(const qb_comm *c)
{
    return c ? c->rank : 0;
}

size_t qb_comm_size(const qb_comm *c)
{
    return c ? c->size : 1;
}

size_t qb_comm_local_rank(const qb_comm *c)
{
    return c ? c->local_rank : 0;
}

bool qb_comm_is_lost(const qb_comm *c)
{
    return c && atomic_load(&c->lost);
}

void qb_comm_part(const qb_comm *c, size_t n, size_t *first, size_t *own)
{
    size_t size = qb_comm_size(c), rank = qb_comm_rank(c), each = n / size, more = n % size;
    *first = rank * each + (rank < more ? rank : more);
    *own = each + (rank < more);
}

/* ---- waiting ---- */

qb_status qb_comm_lose(qb_comm *c, const char *why)
{
    if (!atomic_exchange(&c->losing, true)) {
        snprintf(c->why, sizeof c->why, "%s", why);
        atomic_store(&c->lost, true);
    }
    return QB_FAIL(QB_ERR_DEVICE, "rank %zu of %zu: %s", c->rank, c->size,
                   atomic_load(&c->lost) ? c->why : why);
}

double qb_comm_timeout_s(const qb_comm *c)
{
    return c ? c->timeout_s : 0;
}

bool qb_comm_is_near(const qb_comm *c, size_t rank)
{
    if (!c || c->size == 1) return true;
    const qb_comm_peer *own = &c->peers[c->rank], *p = &c->peers[rank];
    return own->host[0] && !strcmp(p->host, own->host) && !strcmp(p->processes, own->processes);
}

/* A process that nobody has waited for yet still counts as alive; launchers wait at once. */
qb_status qb_comm_check_alive(qb_comm *c)
{
    char why[64];
    if (!c || c->size == 1) return QB_OK;
    if (qb_comm_is_lost(c)) return qb_comm_lose(c, c->why);
    for (size_t r = 0; r < c->size; r++) {
        const qb_comm_peer *p = &c->peers[r];
        if (!qb_comm_is_near(c, r) || !kill(p->id, 0) || errno != ESRCH) continue;
        snprintf(why, sizeof why, "rank %zu (process %ld) was lost", r, (long)p->id);
        return qb_comm_lose(c, why);
    }
    return QB_OK;
}

qb_comm_wait qb__comm_wait_begin(void)
{
    double now = qb_now_s();
    return (qb_comm_wait){now, now, 0};
}

/* Busy at first, for what comes at once; then ever longer rests, up to 0.5 ms. */
static void rest(unsigned rounds)
{
    if (rounds < 200) {
        sched_yield();
        return;
    }
    struct timespec t = {.tv_nsec = rounds < 2000 ? 20000 : 500000};
    nanosleep(&t, NULL);
}

qb_status qb__comm_wait_more(qb_comm *c, qb_comm_wait *w)
{
    enum { LOOK_EVERY_MS = 100 };
    char why[64];
    rest(w->rounds++);
    double now = qb_now_s();
    if (now - w->looked_s < LOOK_EVERY_MS / 1e3) return QB_OK;
    w->looked_s = now;
    QB_TRY(qb_comm_check_alive(c));
    if (now - w->began_s < c->timeout_s) return QB_OK;
    snprintf(why, sizeof why, "the others were waited for in vain, %.0f s", c->timeout_s);
    return qb_comm_lose(c, why);
}

/* ---- who is there ---- */

/* How many processes the launcher says it started; 1 = it said nothing. */
static unsigned long launched(void)
{
    static const char *const names[] = {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"};
    for (size_t i = 0; i < QB_COUNT(names); i++) {
        const char *text = getenv(names[i]);
        unsigned long n = text ? strtoul(text, NULL, 10) : 0;
        if (n > 1) return n;
    }
    return 1;
}

static void read_line(const char *path, char *to, size_t bytes)
{
    FILE *file = fopen(path, "r");
    if (!file || !fgets(to, (int)bytes, file)) to[0] = 0;
    to[strcspn(to, "\n")] = 0;
    if (file) fclose(file);
}

static qb_comm_peer this_process(void)
{
    qb_comm_peer p = {.id = getpid()};
    read_line("/proc/sys/kernel/random/boot_id", p.host, sizeof p.host);
    ssize_t n = readlink("/proc/self/ns/pid", p.processes, sizeof p.processes - 1);
    if (n < 0) p.host[0] = 0; /* no telling whose ids are whose */
    return p;
}

static qb_status meet(qb_comm *c)
{
    const char *limit = getenv("QB_COMM_TIMEOUT");
    c->timeout_s = limit && atof(limit) > 0 ? atof(limit) : 600;
    QB_TRY(QB_NEW_ZERO(&c->peers, c->size, "ranks"));
    QB_TRY(QB_NEW_ZERO(&c->send, c->size, "ranks"));
    QB_TRY(QB_NEW_ZERO(&c->receive, c->size, "ranks"));
    QB_TRY(QB_NEW(&c->scratch, c->size * QB_COMM_CHUNK_ELEMS, "sums over ranks"));
    qb_comm_peer own = this_process(), *all;
    QB_TRY(QB_NEW_ZERO(&all, c->size, "ranks"));
    qb_status status = qb_comm_all(c, &own, sizeof own, all); /* into peers when all are known */
    if (status == QB_OK) memcpy(c->peers, all, c->size * sizeof *all);
    qb_free(all);
    for (size_t r = 0; r < c->rank; r++) c->local_rank += !strcmp(c->peers[r].host, own.host);
    return status;
}

bool qb_comm_has_mpi(void)
{
#ifdef QB_WITH_MPI
    return true;
#else
    return false;
#endif
}

static qb_status open_row(qb_comm *c)
{
    unsigned long n = launched();
    if (n == 1) return QB_OK;
#ifdef QB_WITH_MPI
    c->row = &qb__comm_mpi;
    if (!c->row->open(c)) return QB_FAIL(QB_ERR_UNSUPPORTED, "MPI: could not be initialised");
    if (c->size != n)
        return QB_FAIL(QB_ERR_UNSUPPORTED,
                       "found one of %lu processes, expected the %zu that MPI knows of (srun needs "
                       "--mpi=pmix, and mpirun must be of the MPI that qbench was built with)",
                       n, c->size);
    return meet(c);
#else
    (void)c;
    (void)meet;
    return QB_FAIL(QB_ERR_UNSUPPORTED,
                   "found one of %lu processes, expected a single one: this build was configured "
                   "without MPI (-DQB_MPI=ON)",
                   n);
#endif
}

static void release(qb_comm *c)
{
    qb_free(c->peers);
    qb_free(c->send);
    qb_free(c->receive);
    qb_free(c->scratch);
    qb_free(c);
}

qb_status qb_comm_open(qb_comm **out)
{
    qb_comm *c;
    QB_TRY(QB_NEW_ZERO(&c, 1, "ranks"));
    c->size = 1;
    qb_status status = open_row(c);
    if (status == QB_OK) {
        *out = c;
        return QB_OK;
    }
    if (c->row) c->row->close(c, false);
    release(c);
    return status;
}

bool qb_comm_close(qb_comm *c, qb_status status)
{
    bool said = false;
    if (!c) return false;
    if (c->row) {
        int mine = (int)status, *all = NULL;
        bool met = !qb_comm_is_lost(c) && QB_NEW(&all, c->size, "ranks") == QB_OK;
        c->timeout_s = FAREWELL_S;
        met = met && c->row->all(c, true, &mine, sizeof mine, all) == QB_OK;
        said = met && c->rank && all[0] == mine;
        c->row->close(c, met);
        qb_free(all);
    }
    release(c);
    return said;
}

/* ---- small things ---- */

qb_status qb_comm_all(qb_comm *c, const void *mine, size_t bytes, void *all)
{
    if (qb_comm_size(c) > 1) return c->row->all(c, false, mine, bytes, all);
    memcpy(all, mine, bytes);
    return QB_OK;
}

qb_status qb_comm_agree(qb_comm *c, unsigned *bits)
{
    if (qb_comm_size(c) == 1) return QB_OK;
    unsigned *all = (unsigned *)c->scratch;
    QB_TRY(qb_comm_all(c, bits, sizeof *bits, all));
    for (size_t r = 0; r < c->size; r++) *bits |= all[r];
    return QB_OK;
}

qb_status qb_comm_add(qb_comm *c, double *values, size_t n)
{
    const size_t most = QB_COMM_CHUNK_BYTES / sizeof *values;
    if (qb_comm_size(c) == 1) return QB_OK;
    double *all = (double *)c->scratch;
    for (size_t first = 0; first < n; first += most) {
        size_t now = n - first < most ? n - first : most;
        QB_TRY(qb_comm_all(c, values + first, now * sizeof *values, all));
        for (size_t i = 0; i < now; i++) {
            values[first + i] = all[i];
            for (size_t r = 1; r < c->size; r++) values[first + i] += all[r * now + i];
        }
    }
    return QB_OK;
}

typedef struct outcome {
    int status;
    char text[TEXT_BYTES];
} outcome;

qb_status qb_comm_check(qb_comm *c, qb_status status)
{
    outcome mine = {.status = (int)status}, *all;
    if (qb_comm_size(c) == 1 || qb_comm_is_lost(c)) return status;
    if (status != QB_OK) snprintf(mine.text, sizeof mine.text, "%s", qb_error_message());
    QB_TRY(QB_NEW(&all, c->size, "ranks"));
    qb_status met = qb_comm_all(c, &mine, sizeof mine, all);
    size_t r = 0;
    while (met == QB_OK && r < c->size && all[r].status == QB_OK) r++;
    if (met == QB_OK && r < c->size) {
        met = r ? QB_FAIL((qb_status)all[r].status, "rank %zu: %s", r, all[r].text)
                : QB_FAIL((qb_status)all[r].status, "%s", all[r].text);
    }
    qb_free(all);
    return met;
}

/* ---- arrays ---- */

/* The part of the range [first, end) that lies within rank r's elements. */
static void clip(const size_t *bounds, size_t r, size_t first, size_t end, size_t *from, size_t *to)
{
    *from = bounds[r] > first ? bounds[r] : first;
    *to = bounds[r + 1] < end ? bounds[r + 1] : end;
    if (*to < *from) *to = *from;
}

static size_t n_chunks(const qb_comm *c, const size_t *bounds, size_t first, size_t end)
{
    size_t most = 0, from, to;
    for (size_t r = 0; r < c->size; r++) {
        clip(bounds, r, first, end, &from, &to);
        if (to - from > most) most = to - from;
    }
    return (most + QB_COMM_CHUNK_ELEMS - 1) / QB_COMM_CHUNK_ELEMS;
}

/* The i-th chunk of what rank r has of the range. */
static qb_comm_piece chunk_of(float *x, const size_t *bounds, size_t r, size_t i, size_t first,
                              size_t end)
{
    size_t from, to;
    clip(bounds, r, first, end, &from, &to);
    from += i * QB_COMM_CHUNK_ELEMS;
    if (from >= to) return (qb_comm_piece){NULL, 0};
    size_t n = to - from < QB_COMM_CHUNK_ELEMS ? to - from : QB_COMM_CHUNK_ELEMS;
    return (qb_comm_piece){x + from, n * sizeof *x};
}

/* x = the ranks' values in their order, of which x holds this rank's. */
static void add_in_order(const qb_comm *c, size_t n, float *x)
{
    for (size_t i = 0; i < n; i++) {
        float sum = c->rank ? c->scratch[i] : x[i];
        for (size_t r = 1; r < c->size; r++)
            sum += r == c->rank ? x[i] : c->scratch[r * QB_COMM_CHUNK_ELEMS + i];
        x[i] = sum;
    }
}

qb_status qb_comm_reduce(qb_comm *c, float *x, const size_t *bounds, size_t first, size_t end)
{
    if (qb_comm_size(c) == 1) return QB_OK;
    for (size_t i = 0; i < n_chunks(c, bounds, first, end); i++) {
        qb_comm_piece own = chunk_of(x, bounds, c->rank, i, first, end);
        for (size_t r = 0; r < c->size; r++) {
            c->send[r] = chunk_of(x, bounds, r, i, first, end);
            c->receive[r] = (qb_comm_piece){c->scratch + r * QB_COMM_CHUNK_ELEMS, own.bytes};
        }
        QB_TRY(c->row->exchange(c, c->send, c->receive));
        add_in_order(c, own.bytes / sizeof *x, own.at);
    }
    return QB_OK;
}

qb_status qb_comm_gather(qb_comm *c, float *x, const size_t *bounds)
{
    if (qb_comm_size(c) == 1) return QB_OK;
    size_t end = bounds[c->size];
    for (size_t i = 0; i < n_chunks(c, bounds, 0, end); i++) {
        for (size_t r = 0; r < c->size; r++) {
            c->send[r] = chunk_of(x, bounds, c->rank, i, 0, end);
            c->receive[r] = chunk_of(x, bounds, r, i, 0, end);
        }
        QB_TRY(c->row->exchange(c, c->send, c->receive));
    }
    return QB_OK;
}

qb_status qb_comm_collect(qb_comm *c, float *x, const size_t *bounds)
{
    if (qb_comm_size(c) == 1) return QB_OK;
    const size_t own[] = {0, bounds[c->rank + 1] - bounds[c->rank]};
    for (size_t i = 0; i < n_chunks(c, bounds, 0, bounds[c->size]); i++) {
        memset(c->send, 0, c->size * sizeof *c->send);
        memset(c->receive, 0, c->size * sizeof *c->receive);
        if (c->rank) c->send[0] = chunk_of(x, own, 0, i, 0, own[1]);
        for (size_t r = 1; !c->rank && r < c->size; r++)
            c->receive[r] = chunk_of(x, bounds, r, i, 0, bounds[c->size]);
        QB_TRY(c->row->exchange(c, c->send, c->receive));
    }
    return QB_OK;
}
