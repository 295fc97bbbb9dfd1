/* report/profile.c - see profile.h. */
#include "report/profile.h"

#include "core/memory.h"

const char *const qb_profile_operation_names[QB_PROFILE_OPERATIONS] = {"prefill", "decode"};

static void deinit_run(qb_profile_run *run)
{
    qb_free(run->samples_ms);
    qb_free(run->histogram);
    qb_free(run->layers);
    qb_free(run->kernels);
}

void qb_profile_deinit(qb_profile *p)
{
    for (size_t i = 0; i < QB_PROFILE_OPERATIONS; i++) {
        deinit_run(&p->operations[i].full);
        deinit_run(&p->operations[i].scheme);
    }
    qb_free(p->model.path);
    qb_free(p->model.name);
    qb_free(p->sweep);
    *p = (qb_profile){0};
}

/* Rows of a context come by growing batch. */
size_t qb_sweep_crossover(const qb_profile *p, int operation, size_t context)
{
    size_t from = 0;
    for (size_t i = 0; i < p->n_sweep; i++) {
        const qb_sweep_row *row = &p->sweep[i];
        if (row->context != context || row->skipped) continue;
        bool wins = row->tok_per_s[operation] > row->full_tok_per_s[operation];
        if (!wins)
            from = 0;
        else if (!from)
            from = row->batch;
    }
    return from;
}
