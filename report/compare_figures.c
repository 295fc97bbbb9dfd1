/* report/compare_figures.c - changes of quality and of speed, with what they are worth. */
#include "report/compare_internal.h"

#include "core/memory.h"
#include "core/rng.h"

#include <math.h>

enum { N_RESAMPLES = 2000 };

static size_t n_resamples(const qb_compare_options *options)
{
    return options->n_resamples ? options->n_resamples : N_RESAMPLES;
}

/* ---- quality, window by window ---- */

/* What is made of the windows' sums, and resampled with them. */
typedef enum value_id {
    PPL_CHANGE, /* share of a's */
    PENALTY_CHANGE,
    PENALTY_LEVEL,
    KL_CHANGE,
    KL_LEVEL,
    TOP1_CHANGE,
    TOP1_LEVEL,
    N_VALUES
} value_id;

typedef struct side_sums {
    double nll, full, kl, agree;
} side_sums;

static double item(const qb_reals *reals, size_t i)
{
    return reals->n ? reals->items[i] : NAN;
}

static void add_window(const qb_result_windows *w, size_t i, side_sums *sums)
{
    sums->nll += item(&w->nll, i);
    sums->full += item(&w->nll_full, i);
    sums->kl += item(&w->kl, i);
    sums->agree += item(&w->agree, i);
}

static void values_of(const side_sums *a, const side_sums *b, double n, double out[N_VALUES])
{
    double ppl_a = exp(a->nll / n), ppl_b = exp(b->nll / n);
    out[PPL_CHANGE] = ppl_b / ppl_a - 1;
    out[PENALTY_LEVEL] = ppl_b - exp(b->full / n);
    out[PENALTY_CHANGE] = out[PENALTY_LEVEL] - (ppl_a - exp(a->full / n));
    out[KL_LEVEL] = b->kl / n;
    out[KL_CHANGE] = out[KL_LEVEL] - a->kl / n;
    out[TOP1_LEVEL] = b->agree / n;
    out[TOP1_CHANGE] = out[TOP1_LEVEL] - a->agree / n;
}

/* pick(r, i) = window i of resample r; r = SIZE_MAX: the data themselves. */
static void resample(const qb_result_windows *a, const qb_result_windows *b, uint64_t seed,
                     size_t r, double out[N_VALUES])
{
    side_sums sum_a = {0}, sum_b = {0};
    double n = 0;
    for (size_t i = 0; i < a->n.n; i++) {
        size_t pick = r == SIZE_MAX ? i
                                    : qb_rng_below(seed, QB_STREAM_BOOTSTRAP,
                                                   (uint64_t)r * a->n.n + i, a->n.n);
        n += a->n.items[pick];
        add_window(a, pick, &sum_a);
        add_window(b, pick, &sum_b);
    }
    values_of(&sum_a, &sum_b, n, out);
}

static bool have_same_windows(const qb_result_windows *a, const qb_result_windows *b)
{
    if (!a->n.n || a->n.n != b->n.n) return false;
    for (size_t i = 0; i < a->n.n; i++)
        if (a->n.items[i] != b->n.items[i]) return false;
    return true;
}

static qb_status compare_windows(qb_pair *pair, const qb_result_windows *a,
                                 const qb_result_windows *b, const qb_compare_options *options)
{
    size_t n = n_resamples(options), n_units = a->n.n;
    double *draws, point[N_VALUES], one[N_VALUES];
    QB_TRY(QB_NEW(&draws, n * N_VALUES, "bootstrap resamples"));
    pair->n_windows = n_units;
    resample(a, b, options->seed, SIZE_MAX, point);
    for (size_t r = 0; r < n; r++) {
        resample(a, b, options->seed, r, one);
        for (size_t v = 0; v < N_VALUES; v++) draws[v * n + r] = one[v];
    }
    qb_draws *const to[N_VALUES] = {[PPL_CHANGE] = &pair->changes[QB_FIGURE_PPL].change,
                                    [PENALTY_CHANGE] = &pair->changes[QB_FIGURE_PENALTY].change,
                                    [PENALTY_LEVEL] = &pair->changes[QB_FIGURE_PENALTY].level,
                                    [KL_CHANGE] = &pair->changes[QB_FIGURE_KL].change,
                                    [KL_LEVEL] = &pair->changes[QB_FIGURE_KL].level,
                                    [TOP1_CHANGE] = &pair->changes[QB_FIGURE_TOP1].change,
                                    [TOP1_LEVEL] = &pair->changes[QB_FIGURE_TOP1].level};
    for (size_t v = 0; v < N_VALUES; v++)
        *to[v] = qb_draws_summarize(point[v], draws + v * n, n, n_units);
    qb_free(draws);
    return QB_OK;
}

/* ---- quality, of files without windows ---- */

/* A 95 % interval that was computed elsewhere, as draws. */
static qb_draws from_interval(double estimate, qb_interval ci95, int64_t n_units)
{
    qb_draws out = {estimate, NAN, ci95, n_units > 1 ? (size_t)n_units : 0};
    if (n_units > 1) out.deviation = (ci95.high - ci95.low) / 2 / qb_student_t975(out.n_units - 1);
    return out;
}

/* b - a of two figures that know nothing of each other. */
static qb_draws difference(const qb_draws *a, const qb_draws *b)
{
    size_t n_units = a->n_units < b->n_units ? a->n_units : b->n_units;
    qb_draws out = {
        b->estimate - a->estimate, hypot(a->deviation, b->deviation), {NAN, NAN}, n_units};
    if (n_units < 2 || isnan(out.deviation)) return out;
    double half = out.deviation * qb_student_t975(n_units - 1);
    out.ci95 = (qb_interval){out.estimate - half, out.estimate + half};
    return out;
}

static void compare_points(qb_pair *pair)
{
    for (size_t i = QB_FIGURE_PPL; i <= QB_FIGURE_TOP1; i++) {
        qb_change *c = &pair->changes[i];
        double change = qb_figures[i].relative ? c->b / c->a - 1 : c->b - c->a;
        if (c->a == c->b) c->change = qb_draws_exact(0);
        c->change.estimate = change;
        c->level.estimate = c->b;
    }
    qb_change *penalty = &pair->changes[QB_FIGURE_PENALTY];
    const qb_result *a = pair->a, *b = pair->b;
    qb_draws before = from_interval(penalty->a, a->quality.penalty_ci95, a->protocol.windows);
    penalty->level = from_interval(penalty->b, b->quality.penalty_ci95, b->protocol.windows);
    if (penalty->a != penalty->b) penalty->change = difference(&before, &penalty->level);
}

qb_status qb__compare_quality(qb_pair *pair, const qb_result_windows *tokens_a,
                              const qb_result_windows *tokens_b, const qb_compare_options *options)
{
    const qb_result_windows *a = &pair->a->quality.windows, *b = &pair->b->quality.windows;
    for (size_t i = QB_FIGURE_PPL; i <= QB_FIGURE_TOP1; i++) {
        pair->changes[i].a = qb_figures[i].value(pair->a);
        pair->changes[i].b = qb_figures[i].value(pair->b);
    }
    if (tokens_a && have_same_windows(tokens_a, tokens_b)) {
        pair->source = QB_FROM_TOKENS;
        QB_TRY(compare_windows(pair, tokens_a, tokens_b, options));
    } else if (have_same_windows(a, b)) {
        pair->source = QB_FROM_WINDOWS;
        QB_TRY(compare_windows(pair, a, b, options));
    } else {
        pair->source = QB_FROM_INTERVALS;
        compare_points(pair);
    }
    /* A model that was destroyed has no figure, which is worse than any. */
    for (size_t i = QB_FIGURE_PPL; i <= QB_FIGURE_TOP1; i++) {
        qb_change *c = &pair->changes[i];
        if (isfinite(c->a) && !isfinite(c->b))
            c->change = c->level = qb_draws_exact(-qb_figures[i].better * (double)INFINITY);
    }
    return QB_OK;
}

/* ---- speed ---- */

qb_status qb__compare_timing(const qb_result_timing *a, const qb_result_timing *b,
                             const qb_compare_options *options, qb_change *out)
{
    const qb_reals *x = &a->samples_ms, *y = &b->samples_ms;
    out->a = a->tok_per_s;
    out->b = b->tok_per_s;
    if (isnan(out->a) || isnan(out->b)) return QB_OK;
    if (x->n && y->n) {
        QB_TRY(qb_mann_whitney(x->items, x->n, y->items, y->n, &out->u_p));
        return qb_bootstrap_medians(x->items, x->n, y->items, y->n, n_resamples(options),
                                    options->seed, &out->change);
    }
    qb_interval i = a->tok_per_s_ci95, k = b->tok_per_s_ci95;
    qb_draws before = from_interval(0, (qb_interval){i.low / out->a, i.high / out->a}, a->samples);
    qb_draws after = from_interval(out->b / out->a - 1,
                                   (qb_interval){k.low / out->a, k.high / out->a}, b->samples);
    out->change = difference(&before, &after);
    return QB_OK;
}

/* Own times in times of full precision, round by round: the drift of a machine hits both alike. */
static qb_status make_ratios(const qb_result *r, qb_figure_id figure, qb_result_timing *out)
{
    bool prefill = figure == QB_FIGURE_PREFILL_GAIN;
    const qb_reals *own = prefill ? &r->speed.prefill.samples_ms : &r->speed.decode.samples_ms;
    const qb_reals *full =
        prefill ? &r->speed.full.prefill.samples_ms : &r->speed.full.decode.samples_ms;
    out->tok_per_s = qb_figures[figure].value(r);
    if (own->n != full->n) return QB_OK;
    QB_TRY(qb_reals_resize(&out->samples_ms, own->n));
    for (size_t i = 0; i < own->n; i++) out->samples_ms.items[i] = own->items[i] / full->items[i];
    return QB_OK;
}

qb_status qb__compare_gain(qb_pair *pair, qb_figure_id figure, const qb_compare_options *options)
{
    qb_result_timing a = {.tok_per_s_ci95 = {NAN, NAN}}, b = a;
    qb_status status = make_ratios(pair->a, figure, &a);
    if (status == QB_OK) status = make_ratios(pair->b, figure, &b);
    if (status == QB_OK) status = qb__compare_timing(&a, &b, options, &pair->changes[figure]);
    qb_free(a.samples_ms.items);
    qb_free(b.samples_ms.items);
    return status;
}
