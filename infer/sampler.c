/* infer/sampler.c - greedy, temperature and nucleus sampling. */
#include "infer/sampler.h"

#include "core/memory.h"
#include "core/rng.h"

#include <math.h>
#include <stdlib.h>

typedef struct candidate {
    double weight; /* (1) before the division by the sum */
    int32_t id;
} candidate;

struct qb_sampler {
    qb_sampler_options options;
    size_t vocab;
    uint64_t n_draws;
    candidate *candidates; /* (vocab) */
};

qb_status qb_sampler_create(size_t vocab, const qb_sampler_options *options, qb_sampler **out)
{
    qb_sampler *s;
    QB_TRY(QB_NEW_ZERO(&s, 1, "sampler"));
    s->options = *options;
    s->vocab = vocab;
    qb_status status = QB_NEW(&s->candidates, vocab, "sampler");
    if (status != QB_OK) {
        qb_free(s);
        return status;
    }
    *out = s;
    return QB_OK;
}

void qb_sampler_destroy(qb_sampler *s)
{
    if (!s) return;
    qb_free(s->candidates);
    qb_free(s);
}

static int32_t argmax(const float *x, size_t n)
{
    size_t best = 0;
    for (size_t i = 1; i < n; i++)
        if (x[i] > x[best] || (isnan(x[best]) && !isnan(x[i]))) best = i;
    return (int32_t)best;
}

static int by_weight(const void *a, const void *b)
{
    const candidate *x = a, *y = b;
    if (x->weight != y->weight) return x->weight < y->weight ? 1 : -1;
    return x->id < y->id ? -1 : 1;
}

/* The candidates of (1) that are not negligible; returns how many, *sum their weights' sum. */
static size_t weigh(qb_sampler *s, const float *x, double max, double *sum)
{
    size_t n = 0;
    *sum = 0;
    for (size_t i = 0; i < s->vocab; i++) {
        double exponent = ((double)x[i] - max) / s->options.temperature;
        if (!(exponent > -45)) continue; /* < 3e-20 of the largest; also NaN and -inf */
        s->candidates[n] = (candidate){exp(exponent), (int32_t)i};
        *sum += s->candidates[n++].weight;
    }
    return n;
}

/* Keeps the nucleus, likeliest first. All n could reach top_p only with weights of (1 - top_p) / n
 * and more: lighter ones are dropped before the sort, which leaves few. */
static size_t keep_nucleus(qb_sampler *s, size_t n, double *sum)
{
    candidate *c = s->candidates;
    double least = (1 - s->options.top_p) * *sum / (double)n, reached = 0;
    size_t n_heavy = 0, n_kept = 0;
    for (size_t i = 0; i < n; i++)
        if (c[i].weight >= least) c[n_heavy++] = c[i];
    qsort(c, n_heavy, sizeof *c, by_weight);
    while (n_kept < n_heavy && (!n_kept || reached < s->options.top_p * *sum))
        reached += c[n_kept++].weight;
    *sum = reached;
    return n_kept;
}

int32_t qb_sampler_next(qb_sampler *s, const float *logits)
{
    int32_t top = argmax(logits, s->vocab);
    uint64_t draw = s->n_draws++;
    if (s->options.temperature <= 0 || !isfinite(logits[top])) return top;
    double sum;
    size_t n = weigh(s, logits, (double)logits[top], &sum);
    if (s->options.top_p < 1) n = keep_nucleus(s, n, &sum);
    double left = qb_rng_double(s->options.seed, QB_STREAM_SAMPLER, draw) * sum;
    for (size_t i = 0; i + 1 < n; i++) {
        if (left < s->candidates[i].weight) return s->candidates[i].id;
        left -= s->candidates[i].weight;
    }
    return s->candidates[n - 1].id;
}
