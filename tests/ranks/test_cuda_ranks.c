/* tests/ranks/test_cuda_ranks.c - steps of several ranks whose GPUs write into each other's memory:
 * sums at their owners in the order of the ranks, weights everywhere, whatever waits for whom. */
#include "tests/ranks/fake_cuda.h"
#include "tests/support.h"
#include "train/cuda/cuda_ranks.h"

#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { STEPS = 4 };

/* ---- kernels ---- */

typedef struct sums {
    float *x;
    const float *others;
    size_t n, stride, rank, n_ranks;
} sums;

static void do_add(const void *argument)
{
    const sums *a = argument;
    for (size_t i = 0; i < a->n; i++) {
        const float own = a->x[i];
        float sum = 0;
        for (size_t r = 0, j = 0; r < a->n_ranks; r++)
            sum += r == a->rank ? own : a->others[j++ * a->stride + i];
        a->x[i] = sum;
    }
}

qb_status qb_cuda_ranks_add(float *x, size_t n, const float *others, size_t stride, size_t rank,
                            size_t n_ranks, qb_cuda_stream stream)
{
    const sums a = {x, others, n, stride, rank, n_ranks};
    fake_queue(stream, do_add, &a, sizeof a);
    return QB_OK;
}

typedef struct totals_call {
    const double *all;
    size_t n_ranks;
    qb_cuda_train_totals *totals;
} totals_call;

static void do_add_totals(const void *argument)
{
    const totals_call *a = argument;
    a->totals->loss_sum = a->totals->square_sum = 0;
    for (size_t r = 0; r < a->n_ranks; r++) {
        a->totals->loss_sum += a->all[2 * r];
        a->totals->square_sum += a->all[2 * r + 1];
    }
}

qb_status qb_cuda_ranks_add_totals(const double *all, size_t n_ranks, qb_cuda_train_totals *totals,
                                   qb_cuda_stream stream)
{
    const totals_call a = {all, n_ranks, totals};
    fake_queue(stream, do_add_totals, &a, sizeof a);
    return QB_OK;
}

/* ---- what a step makes, and what it should find ---- */

typedef struct span {
    float *x;
    size_t first, end, step, rank, n_ranks;
} span;

static atomic_size_t n_wrong;

/* Rank r's share of element i: sums of them depend on the order. */
static float gradient(size_t i, size_t step, size_t rank)
{
    const uint32_t bits = (uint32_t)i * 2654435761u ^ (uint32_t)(97 * rank + 31 * step);
    return (float)(bits % 1000) / 7.0f + (rank ? 0.0f : 1e5f);
}

static float weight(size_t i, size_t step)
{
    return (float)((i * 40503 + step * 17) % 777);
}

static void make_gradients(const void *argument)
{
    const span *s = argument;
    for (size_t i = s->first; i < s->end; i++) s->x[i] = gradient(i, s->step, s->rank);
}

static void check_gradients(const void *argument)
{
    const span *s = argument;
    for (size_t i = s->first; i < s->end; i++) {
        float sum = 0;
        for (size_t r = 0; r < s->n_ranks; r++) sum += gradient(i, s->step, r);
        n_wrong += s->x[i] != sum;
    }
}

static void forget(const void *argument)
{
    const span *s = argument;
    memset(s->x + s->first, 0, (s->end - s->first) * sizeof *s->x);
}

static void make_weights(const void *argument)
{
    const span *s = argument;
    for (size_t i = s->first; i < s->end; i++) s->x[i] = weight(i, s->step);
}

static void check_weights(const void *argument)
{
    const span *s = argument;
    for (size_t i = s->first; i < s->end; i++) n_wrong += s->x[i] != weight(i, s->step);
}

typedef struct figures {
    qb_cuda_train_totals *totals;
    size_t step, rank, n_ranks;
} figures;

static void make_totals(const void *argument)
{
    const figures *f = argument;
    *f->totals = (qb_cuda_train_totals){.loss_sum = (double)(f->step * (f->rank + 1)),
                                        .square_sum = (double)(10 * (f->rank + 1))};
}

static void check_totals(const void *argument)
{
    const figures *f = argument;
    const double n = (double)(f->n_ranks * (f->n_ranks + 1) / 2);
    n_wrong += f->totals->loss_sum != (double)f->step * n || f->totals->square_sum != 10 * n;
}

/* ---- a rank ---- */

typedef struct member {
    qb_train_share share;
    size_t rank, size, n;
    qb_cuda_stream stream;
    float *gradients, *weights;
    qb_cuda_train_totals *totals;
    qb_cuda_ranks *ranks;
} member;

/* Of unequal parts, the last rank's the smallest: three chunks and less. */
static member member_create(qb_comm *comm)
{
    member m = {.rank = qb_comm_rank(comm), .size = qb_comm_size(comm)};
    const size_t chunk = qb_cuda_ranks_chunk_elems(m.size);
    m.share = (qb_train_share){.comm = comm, .bounds = calloc(m.size + 1, sizeof(size_t))};
    for (size_t r = 0; r < m.size; r++)
        m.share.bounds[r + 1] =
            m.share.bounds[r] + (r + 1 < m.size ? 2 * chunk + 512 + 4 * r : 700);
    m.share.first = m.share.bounds[m.rank];
    m.share.end = m.share.bounds[m.rank + 1];
    m.n = m.share.bounds[m.size];
    qb_cuda_stream_create(&m.stream);
    m.gradients = calloc(m.n, sizeof *m.gradients);
    m.weights = calloc(m.n, sizeof *m.weights);
    m.totals = calloc(1, sizeof *m.totals);
    return m;
}

static void member_destroy(member *m)
{
    qb_cuda_sync(m->stream);
    qb_cuda_ranks_destroy(m->ranks);
    qb_cuda_stream_destroy(m->stream);
    free(m->share.bounds);
    free(m->gradients);
    free(m->weights);
    free(m->totals);
}

static void queue_span(const member *m, void (*run)(const void *), float *x, size_t first,
                       size_t end, size_t step)
{
    const span s = {x, first, end, step, m->rank, m->size};
    if (first < end) fake_queue(m->stream, run, &s, sizeof s);
}

/* From the last elements to the first, cut anywhere. */
static qb_status share_gradients(const member *m, size_t step)
{
    const size_t cuts[] = {m->n, m->n * 7 / 8, m->n / 2 + 100, m->n / 3, 77 * 4, 0};
    for (size_t i = 1; i < QB_COUNT(cuts); i++) {
        queue_span(m, make_gradients, m->gradients, cuts[i], cuts[i - 1], step);
        QB_TRY(qb_cuda_ranks_reduce(m->ranks, m->gradients, cuts[i], cuts[i - 1]));
    }
    QB_TRY(qb_cuda_ranks_join(m->ranks));
    queue_span(m, check_gradients, m->gradients, m->share.first, m->share.end, step);
    queue_span(m, forget, m->gradients, 0, m->share.first, step); /* all have left */
    queue_span(m, forget, m->gradients, m->share.end, m->n, step);
    return QB_OK;
}

static qb_status send_weights(const member *m, size_t step)
{
    const size_t chunk = qb_cuda_ranks_chunk_elems(m->size);
    qb_gather g = {.x = m->weights, .elem_bytes = sizeof(float), .bounds = m->share.bounds};
    for (; g.chunk_idx < qb_cuda_ranks_chunks(m->share.bounds, m->size); g.chunk_idx++) {
        size_t first = m->share.first + g.chunk_idx * chunk, end = first + chunk;
        if (end > m->share.end) end = m->share.end;
        queue_span(m, make_weights, m->weights, first, end, step);
        QB_TRY(qb_cuda_ranks_gather(m->ranks, &g));
    }
    return QB_OK;
}

static qb_status queue_step(const member *m, size_t step)
{
    const figures f = {m->totals, step, m->rank, m->size};
    queue_span(m, forget, m->gradients, 0, m->n, step);
    QB_TRY(qb_cuda_ranks_join(m->ranks));
    if (step) queue_span(m, check_weights, m->weights, 0, m->n, step - 1);
    QB_TRY(share_gradients(m, step));
    fake_queue(m->stream, make_totals, &f, sizeof f);
    QB_TRY(qb_cuda_ranks_totals(m->ranks, m->totals));
    fake_queue(m->stream, check_totals, &f, sizeof f);
    return send_weights(m, step);
}

static void be_member(qb_comm *comm, void *context)
{
    member m = member_create(comm);
    (void)context;
    qb_status status = qb_cuda_ranks_create(&m.share, true, 0, m.stream, &m.ranks);
    for (size_t step = 0; status == QB_OK && step < STEPS; step++) status = queue_step(&m, step);
    if (status == QB_OK) status = qb_cuda_ranks_join(m.ranks);
    queue_span(&m, check_weights, m.weights, 0, m.n, STEPS - 1);
    n_wrong += status != QB_OK;
    member_destroy(&m);
}

static void steps_find_what_was_sent(void **state)
{
    (void)state;
    for (size_t n = 2; n <= 5; n++) {
        n_wrong = 0;
        fake_ranks(n, be_member, NULL);
        if (n_wrong) fail_msg("%zu ranks: %zu elements are wrong", n, (size_t)n_wrong);
    }
}

/* The last rank stops in the second step, and nobody comes to its aid. */
static void be_member_of_lost(qb_comm *comm, void *context)
{
    member m = member_create(comm);
    (void)context;
    qb_status status = qb_cuda_ranks_create(&m.share, true, 0, m.stream, &m.ranks);
    if (status == QB_OK) status = queue_step(&m, 0);
    if (m.rank + 1 == m.size) {
        usleep(100000);
        fake_lose(comm);
    } else if (status == QB_OK) {
        status = queue_step(&m, 1);
    }
    member_destroy(&m); /* waits for the streams */
}

static void lost_ranks_keep_nobody_waiting(void **state)
{
    (void)state;
    for (size_t n = 2; n <= 3; n++) fake_ranks(n, be_member_of_lost, NULL);
}

static void be_without_shared_memory(qb_comm *comm, void *context)
{
    member m = member_create(comm);
    (void)context;
    n_wrong += qb_cuda_ranks_create(&m.share, true, 0, m.stream, &m.ranks) != QB_ERR_UNSUPPORTED;
    n_wrong += !strstr(qb_error_message(), "no NCCL here");
    member_destroy(&m);
}

static void memory_that_is_not_shared_leaves_nccl(void **state)
{
    (void)state;
    n_wrong = 0;
    fake_shares_memory = false;
    fake_ranks(3, be_without_shared_memory, NULL);
    fake_shares_memory = true;
    fake_loses_writes = true;
    fake_ranks(2, be_without_shared_memory, NULL);
    fake_loses_writes = false;
    assert_int_equal(n_wrong, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(steps_find_what_was_sent),
        cmocka_unit_test(lost_ranks_keep_nobody_waiting),
        cmocka_unit_test(memory_that_is_not_shared_leaves_nccl),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
