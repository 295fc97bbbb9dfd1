/* infer/analysis_stream.c - adding up the residual stream and what is added to it. */
#include "infer/analysis_internal.h"

#include <assert.h>
#include <math.h>
#include <string.h>

enum { SPAN_CHANNELS = 32 };

/* ---- tokens ---- */

void qb__analysis_add_norm(norm_sums *s, size_t position, double norm)
{
    s->by_position[position] += norm;
    s->sum[position > 0] += norm;
    s->n[position > 0]++;
}

static void add_tokens(qb_analysis *a, layer_sums *l, const qb_tap_view *v)
{
    qb_outlier_add_tokens(&l->outliers, a->tokens, v->batch, v->n_tokens);
    for (size_t row = 0; row < v->batch * v->n_tokens; row++) {
        const qb_token_figures *t = &a->tokens[row];
        size_t position = row % v->n_tokens;
        if (t->norm != 0) {
            l->norm_ratio[position > 0] += t->max_abs / t->norm;
            l->n_norm_ratio[position > 0]++;
        }
        qb__analysis_add_norm(&l->hidden, position, t->norm);
    }
}

/* Figures of whole windows, from those of their tokens. Bondarenko et al. 2023 (arXiv:2306.12929)
 * divide by the unbiased variance squared + 1e-6. */
static void add_samples(const qb_analysis *a, sample_sums *s, const qb_tap_view *v)
{
    for (size_t b = 0; b < v->batch; b++) {
        qb_moments m = {0};
        double inf_norm = 0;
        for (size_t t = 0; t < v->n_tokens; t++) {
            const qb_token_figures *token = &a->tokens[b * v->n_tokens + t];
            qb_moments_merge(&m, &token->moments);
            if (!isnan(inf_norm) && !(token->max_abs <= inf_norm)) inf_norm = token->max_abs;
        }
        double variance = m.m2 / (m.n - 1);
        s->kurt += m.m4 / m.n / (variance * variance + 1e-6);
        s->inf_norm += inf_norm;
        s->n_windows++;
    }
}

void qb__analysis_add_sample(qb_analysis *a, sample_sums *s, const qb_tap_view *v)
{
    assert(v->stride == v->width);
    qb_token_figures_of(v->x, v->batch * v->n_tokens, v->width, a->options.pool, a->tokens);
    add_samples(a, s, v);
}

/* ---- channels ---- */

typedef struct channel_job {
    layer_sums *l;
    const qb_tap_view *v;
} channel_job;

static void channel_task(void *context, size_t begin, size_t end)
{
    const channel_job *j = context;
    for (size_t row = 0; row < j->v->batch * j->v->n_tokens; row++)
        for (size_t c = begin; c < end; c++)
            qb_moments_add(&j->l->channels[c], j->v->x[row * j->v->stride + c]);
}

/* ---- magnitudes of a window ---- */

typedef struct window_job {
    const qb_analysis *a;
    const qb_tap_view *v;
} window_job;

static void find_top(const float *magnitude, size_t n, double *top)
{
    memset(top, 0, ANALYSIS_TOP * sizeof *top);
    for (size_t i = 0; i < n; i++) {
        if (magnitude[i] <= top[ANALYSIS_TOP - 1]) continue;
        size_t at = ANALYSIS_TOP - 1;
        for (; at > 0 && magnitude[i] > top[at - 1]; at--) top[at] = top[at - 1];
        top[at] = magnitude[i];
    }
}

/* The mean of the two middle ones where n is even. */
static double median_of(float *x, size_t n)
{
    double upper = qb_select(x, n, n / 2);
    if (n % 2) return upper;
    float lower = x[0]; /* all before n / 2 are at most as large */
    for (size_t i = 1; i < n / 2; i++) lower = x[i] > lower ? x[i] : lower;
    return (lower + upper) / 2;
}

/* ||h_1|| over the median of the others' norms; NaN for a window of one token, or of zeros. */
static double residual_peak(const qb_token_figures *tokens, size_t n, float *scratch)
{
    if (n < 2) return NAN;
    for (size_t t = 1; t < n; t++) scratch[t - 1] = (float)tokens[t].norm;
    return tokens[0].norm / median_of(scratch, n - 1);
}

static bool has_nan(const qb_token_figures *tokens, size_t n)
{
    for (size_t t = 0; t < n; t++)
        if (isnan(tokens[t].norm)) return true;
    return false;
}

static void window_task(void *context, size_t b, size_t thread_idx)
{
    (void)thread_idx;
    const window_job *j = context;
    size_t n = j->v->n_tokens * j->v->width;
    const float *x = j->v->x + b * n;
    float *magnitude = j->a->magnitudes + b * n;
    window_figures *w = &j->a->windows[b];
    w->peak = residual_peak(j->a->tokens + b * j->v->n_tokens, j->v->n_tokens, magnitude);
    for (size_t i = 0; i < n; i++) magnitude[i] = fabsf(x[i]);
    find_top(magnitude, n, w->top);
    w->median = median_of(magnitude, n);
    if (has_nan(j->a->tokens + b * j->v->n_tokens, j->v->n_tokens))
        *w = (window_figures){{NAN, NAN, NAN}, NAN, NAN};
}

static void add_massive_value(massive_sums *m, size_t window, size_t position, double value)
{
    double magnitude = fabs(value);
    if (m->n == 0 || magnitude < m->least) m->least = magnitude;
    if (magnitude > m->most) m->most = magnitude;
    m->n++;
    m->n_first += position == 0;
    m->sum += value;
    m->sum_squares += value * value;
    if (m->last_window != window) m->windows++;
    m->last_window = window;
}

static void add_massive(layer_sums *l, const qb_tap_view *v, size_t b, size_t window,
                        const window_figures *w)
{
    double least = fmax(ANALYSIS_MASSIVE_ABS, ANALYSIS_MASSIVE_MEDIANS * w->median);
    if (isnan(w->median)) l->massive = NAN;
    if (!(w->top[0] > ANALYSIS_MASSIVE_ABS && w->top[0] >= least)) return;
    for (size_t t = 0; t < v->n_tokens; t++) {
        const float *x = v->x + (b * v->n_tokens + t) * v->stride;
        for (size_t c = 0; c < v->width; c++) {
            if (!(fabsf(x[c]) > ANALYSIS_MASSIVE_ABS && fabsf(x[c]) >= least)) continue;
            l->massive++;
            add_massive_value(&l->massive_channels[c], window, t, x[c]);
        }
    }
}

static void add_windows(qb_analysis *a, layer_sums *l, const qb_tap_view *v)
{
    window_job job = {a, v};
    qb_parallel_for(a->options.pool, v->batch, window_task, &job);
    for (size_t b = 0; b < v->batch; b++) {
        const window_figures *w = &a->windows[b];
        for (size_t i = 0; i < ANALYSIS_TOP; i++) l->top[i] += w->top[i];
        l->median += w->median;
        if (!isnan(w->peak) || isnan(w->median)) {
            l->peak += w->peak;
            l->n_peak++;
        }
        l->n_windows++;
        add_massive(l, v, b, (size_t)l->n_windows, w);
    }
}

/* ---- the first window's magnitudes ---- */

static void draw_stream(const qb_analysis *a, layer_sums *l, const qb_tap_view *v)
{
    for (size_t t = 0; t < v->n_tokens; t++)
        for (size_t c = 0; c < v->width; c++) {
            size_t row = t * a->map_rows / v->n_tokens, column = c * a->map_columns / v->width;
            float *cell = &l->stream_map[row * a->map_columns + column];
            *cell = fmaxf(*cell, fabsf(v->x[t * v->stride + c]));
        }
}

qb_status qb__analysis_add_stream(qb_analysis *a, layer_sums *l, const qb_tap_view *v)
{
    channel_job job = {l, v};
    assert(v->stride == v->width);
    if (l->stream_map && l->n_windows == 0) draw_stream(a, l, v);
    qb_token_figures_of(v->x, v->batch * v->n_tokens, v->width, a->options.pool, a->tokens);
    add_tokens(a, l, v);
    add_samples(a, &l->samples[SAMPLE_STREAM], v);
    qb_parallel_spans(a->options.pool, v->width, SPAN_CHANNELS, channel_task, &job);
    add_windows(a, l, v);
    return QB_OK;
}
