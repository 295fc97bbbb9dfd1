/* report/profile.c - see profile.h. */
#include "report/profile.h"

#include "core/memory.h"
#include "report/format.h"

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

char *qb_profile_format_rate(double gops_per_s, char *text)
{
    const double many = 1e5; /* a GPU's: more digits than anybody reads */
    char t[QB_FORMAT_BYTES];
    bool tera = gops_per_s >= many;
    snprintf(text, QB_FORMAT_BYTES, "%.30s %s",
             qb_format_significant(gops_per_s / (tera ? 1e3 : 1), t), tera ? "Top/s" : "Gop/s");
    return text;
}

/* Rows of a context come by growing batch. Less than a hundredth is the noise of two medians. */
size_t qb_sweep_crossover(const qb_profile *p, int operation, size_t context)
{
    size_t from = 0;
    for (size_t i = 0; i < p->n_sweep; i++) {
        const qb_sweep_row *row = &p->sweep[i];
        if (row->context != context || row->skipped) continue;
        bool wins = row->tok_per_s[operation] > 1.01 * row->full_tok_per_s[operation];
        if (!wins)
            from = 0;
        else if (!from)
            from = row->batch;
    }
    return from;
}
