/* infer/sampler.c - greedy, temperature and nucleus sampling. */
#include "infer/sampler.h"

#include "core/memory.h"
#include "core/rng.h"

#include <float.h>
#include <math.h>
#include <stdbool.h>
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

/* The heavy ones, to the front: all n could reach top_p only with weights of (1 - top_p) / n and
 * more. */
static size_t drop_light(qb_sampler *s, size_t n, double sum)
{
    candidate *c = s->candidates;
    double least = (1 - s->options.top_p) * sum / (double)n;
    size_t n_heavy = 0;
    for (size_t i = 0; i < n; i++)
        if (c[i].weight >= least) c[n_heavy++] = c[i];
    return n_heavy;
}

/* The one of `n` candidates that stands where u of the weights' sum is passed. */
static int32_t walk(const candidate *c, size_t n, double left)
{
    for (size_t i = 0; i + 1 < n; i++) {
        if (left < c[i].weight) return c[i].id;
        left -= c[i].weight;
    }
    return c[n - 1].id;
}

/* The definition: the likeliest of n first, until they reach `enough`; one of them by u in [0, 1).
 */
static int32_t draw_sorted(candidate *c, size_t n, double enough, double u)
{
    double reached = 0;
    size_t n_kept = 0;
    qsort(c, n, sizeof *c, by_weight);
    while (n_kept < n && (!n_kept || reached < enough)) reached += c[n_kept++].weight;
    return walk(c, n_kept, u * reached);
}

/* Puts the likelier ones of c[0..n) before a pivot, the others behind it. Returns its place, *sum
 * the weights before it. */
static size_t split(candidate *c, size_t n, double *sum)
{
    size_t a = 0, b = n / 2, last = n - 1, place = 0; /* b: of the three, the one in the middle */
    if (by_weight(&c[a], &c[b]) > 0) a = b, b = 0;
    if (by_weight(&c[b], &c[last]) > 0) b = by_weight(&c[a], &c[last]) > 0 ? a : last;
    candidate pivot = c[b];
    double before = 0;
    c[b] = c[last];
    for (size_t i = 0; i < last; i++) { /* without branches, which would be guesses */
        candidate x = c[i];
        bool is_before =
            (x.weight > pivot.weight) | ((x.weight == pivot.weight) & (x.id < pivot.id));
        c[i] = c[place];
        c[place] = x;
        place += is_before;
        before += is_before ? x.weight : 0;
    }
    *sum = before;
    c[last] = c[place];
    c[place] = pivot;
    return place;
}

/* Finds the one with which the likeliest of n first reach `target`, with all likelier ones before
 * it in c; *reached: their weights' sum with its own. Sums are taken in another order than the
 * definition's: false where they are too close to the target to tell by `slack`, or where splitting
 * makes no headway. O(n) as a rule. */
static bool find_reaching(candidate *c, size_t n, double target, double slack, size_t *index,
                          double *reached)
{
    enum { MOST_SPLITS = 100 };
    size_t from = 0, to = n;
    double before = 0;
    for (size_t i = 0; i < MOST_SPLITS && from < to; i++) {
        double sum;
        size_t at = from + split(c + from, to - from, &sum);
        double with_pivot = before + sum + c[at].weight;
        if (at > from && fabs(before + sum - target) <= slack) return false;
        if (fabs(with_pivot - target) <= slack) return false;
        if (at > from && before + sum > target) {
            to = at;
        } else if (with_pivot > target) {
            *index = at;
            *reached = with_pivot;
            return true;
        } else {
            before = with_pivot;
            from = at + 1;
        }
    }
    return false;
}

/* What draw_sorted draws, without sorting: of a flat distribution nearly all candidates are kept.
 */
static int32_t draw_selected(candidate *c, size_t n, double enough, double u)
{
    size_t last, drawn;
    double reached, slack = 4 * DBL_EPSILON * (double)n * enough;
    if (find_reaching(c, n, enough, slack, &last, &reached) &&
        find_reaching(c, last + 1, u * reached, slack, &drawn, &reached))
        return c[drawn].id;
    return draw_sorted(c, n, enough, u);
}

int32_t qb_sampler_next(qb_sampler *s, const float *logits)
{
    int32_t top = argmax(logits, s->vocab);
    uint64_t draw = s->n_draws++;
    if (s->options.temperature <= 0 || !isfinite(logits[top])) return top;
    double sum, u = qb_rng_double(s->options.seed, QB_STREAM_SAMPLER, draw);
    size_t n = weigh(s, logits, (double)logits[top], &sum);
    if (!(s->options.top_p < 1)) return walk(s->candidates, n, u * sum);
    return draw_selected(s->candidates, drop_light(s, n, sum), s->options.top_p * sum, u);
}
