/* infer/analysis_metrics.c - the table of metrics: how the sums of a layer become its figures.
 *
 * The first six are the paper's (arXiv:2410.17174, Table 2) under the contract's names; the others
 * have names of their own, since they are not interchangeable (docs/analyze.md). */
#include "infer/analysis_internal.h"

#include <math.h>

/* ---- the stream ---- */

#define OUTLIER(field)                                                                             \
    static double field(const qb_analysis *a, const layer_sums *l)                                 \
    {                                                                                              \
        (void)a;                                                                                   \
        return qb_outlier_finish(&l->outliers).field;                                              \
    }
OUTLIER(kurt_token_first)
OUTLIER(kurt_token_rest)
OUTLIER(max_abs_first)
OUTLIER(max_abs_rest)
OUTLIER(attn_first_argmax)
OUTLIER(attn_first_share)

/* A field divided by another. */
#define MEAN(name, sum, n)                                                                         \
    static double name(const qb_analysis *a, const layer_sums *l)                                  \
    {                                                                                              \
        (void)a;                                                                                   \
        return (l->sum) / (l->n);                                                                  \
    }
MEAN(norm_ratio_first, norm_ratio[0], n_norm_ratio[0])
MEAN(norm_ratio_rest, norm_ratio[1], n_norm_ratio[1])
MEAN(act_top1, top[0], n_windows)
MEAN(act_top2, top[1], n_windows)
MEAN(act_top3, top[2], n_windows)
MEAN(act_median, median, n_windows)
MEAN(massive_count, massive, n_windows)
MEAN(residual_peak, peak, n_peak)
MEAN(norm_hidden_first, hidden.sum[0], hidden.n[0])
MEAN(norm_hidden_rest, hidden.sum[1], hidden.n[1])
MEAN(norm_key_first, key.sum[0], key.n[0])
MEAN(norm_key_rest, key.sum[1], key.n[1])
MEAN(norm_value_first, value.sum[0], value.n[0])
MEAN(norm_value_rest, value.sum[1], value.n[1])
MEAN(sink_alpha, alpha[0], n_alpha)

#define SAMPLE(suffix, tensor)                                                                     \
    MEAN(kurt_sample##suffix, samples[tensor].kurt, samples[tensor].n_windows)                     \
    MEAN(inf_norm##suffix, samples[tensor].inf_norm, samples[tensor].n_windows)
SAMPLE(, SAMPLE_STREAM)
SAMPLE(_attn_out, SAMPLE_ATTN_OUT)
SAMPLE(_mlp_out, SAMPLE_MLP_OUT)
SAMPLE(_norm1, SAMPLE_NORM1)
SAMPLE(_norm2, SAMPLE_NORM2)

/* ---- channels ---- */

enum { TOP_CHANNELS = 10 };

/* The largest excess kurtoses, largest first; returns how many. A channel that is the same in all
 * tokens has none; of one that holds NaN it is NaN, and shows. */
static size_t find_top_channels(const qb_analysis *a, const layer_sums *l, double *top)
{
    size_t n = 0;
    for (size_t c = 0; c < a->c->d_model; c++) {
        if (l->channels[c].m2 == 0) continue;
        double kurt = qb_moments_kurtosis(&l->channels[c]) - 3;
        if (isnan(kurt)) kurt = INFINITY; /* no number is so large: null in the end */
        if (n == TOP_CHANNELS && !(kurt > top[n - 1])) continue;
        if (n < TOP_CHANNELS) n++;
        size_t at = n - 1;
        for (; at > 0 && kurt > top[at - 1]; at--) top[at] = top[at - 1];
        top[at] = kurt;
    }
    return n;
}

static double kurt_channel_max(const qb_analysis *a, const layer_sums *l)
{
    double top[TOP_CHANNELS];
    return find_top_channels(a, l, top) ? top[0] : NAN;
}

static double kurt_channel_top10(const qb_analysis *a, const layer_sums *l)
{
    double top[TOP_CHANNELS], sum = 0;
    size_t n = find_top_channels(a, l, top);
    for (size_t i = 0; i < n; i++) sum += top[i];
    return sum / (double)n;
}

/* He et al. 2024, arXiv:2405.19279, section 3: of the features' mean squares; 1 to C. */
static double kurt_neuron_rms(const qb_analysis *a, const layer_sums *l)
{
    double squares = 0, fourths = 0, width = (double)a->c->d_model;
    for (size_t c = 0; c < a->c->d_model; c++) {
        const qb_moments *m = &l->channels[c];
        double square = m->m2 / m->n + m->mean * m->mean;
        squares += square;
        fourths += square * square;
    }
    return fourths / width / (squares / width * (squares / width));
}

/* ---- attention ---- */

static double sink_eps(const qb_analysis *a, const layer_sums *l)
{
    (void)a;
    return 100 * l->sinks[0] / l->n_alpha;
}

static double value_drain(const qb_analysis *a, const layer_sums *l)
{
    return norm_value_first(a, l) / norm_value_rest(a, l);
}

static double of_heads(const qb_analysis *a, const layer_sums *l, size_t offset)
{
    double sum = 0, n = 0;
    for (size_t i = 0; i < a->options.n_texts * a->c->n_heads; i++) {
        sum += *(const double *)((const char *)&l->heads[i].figures + offset);
        n += l->heads[i].n_queries;
    }
    return sum / n;
}

static double attn_silent_share(const qb_analysis *a, const layer_sums *l)
{
    return of_heads(a, l, offsetof(qb_head_figures, silent));
}

static double dormant_share(const qb_analysis *a, const layer_sums *l)
{
    return of_heads(a, l, offsetof(qb_head_figures, dormant));
}

/* ---- the table ---- */

enum { ANY = 0, BLOCK = 1, ATTENTION = 2 };
/* clang-format off */
#define ROW(name, place) { #name, (place) == ATTENTION, (place) != ANY, name }

const layer_metric qb__analysis_metrics[] = {
    ROW(kurt_token_first, ANY),           /* Pearson kurtosis of a window's first token */
    ROW(kurt_token_rest, ANY),            /* the same of all other tokens */
    ROW(max_abs_first, ANY),              /* largest |x| of a window's first token */
    ROW(max_abs_rest, ANY),               /* the same of all other tokens */
    ROW(attn_first_argmax, ATTENTION),    /* share of (query, head) that see the first key most */
    ROW(attn_first_share, ATTENTION),     /* mean weight on the first key */
    ROW(norm_ratio_first, ANY),           /* max|x| / ||x|| of a window's first token */
    ROW(norm_ratio_rest, ANY),            /* the same of all other tokens */
    ROW(kurt_sample, ANY),                /* kurtosis of a whole window's stream */
    ROW(kurt_sample_attn_out, ATTENTION), /* the same of what attention adds */
    ROW(kurt_sample_mlp_out, BLOCK),      /* the same of what the MLP adds */
    ROW(kurt_sample_norm1, ATTENTION),    /* the same of the norm before attention */
    ROW(kurt_sample_norm2, BLOCK),        /* the same of the norm before the MLP */
    ROW(inf_norm, ANY),                   /* largest |x| of a whole window's stream */
    ROW(inf_norm_attn_out, ATTENTION),    /* the same of what attention adds */
    ROW(inf_norm_mlp_out, BLOCK),         /* the same of what the MLP adds */
    ROW(inf_norm_norm1, ATTENTION),       /* the same of the norm before attention */
    ROW(inf_norm_norm2, BLOCK),           /* the same of the norm before the MLP */
    ROW(kurt_channel_max, ANY),           /* largest excess kurtosis of a channel over all tokens */
    ROW(kurt_channel_top10, ANY),         /* mean of the ten largest */
    ROW(kurt_neuron_rms, ANY),            /* kurtosis of the channels' RMS, 1 to d_model */
    ROW(massive_count, ANY),              /* massive activations a window */
    ROW(act_top1, ANY),                   /* largest |x| of a window */
    ROW(act_top2, ANY),                   /* the second */
    ROW(act_top3, ANY),                   /* the third */
    ROW(act_median, ANY),                 /* median |x| of a window */
    ROW(residual_peak, ANY),              /* norm of the first token / median norm of the others */
    ROW(norm_hidden_first, ANY),          /* norm of a window's first token */
    ROW(norm_hidden_rest, ANY),           /* the same of all other tokens */
    ROW(norm_key_first, ATTENTION),       /* norm of the first key, mean over heads */
    ROW(norm_key_rest, ATTENTION),        /* the same of all others */
    ROW(norm_value_first, ATTENTION),     /* norm of the first value, mean over heads */
    ROW(norm_value_rest, ATTENTION),      /* the same of all others */
    ROW(value_drain, ATTENTION),          /* norm_value_first / norm_value_rest */
    ROW(sink_eps, ATTENTION),             /* percent of (window, head) whose alpha_1 is over 0.3 */
    ROW(sink_alpha, ATTENTION),           /* mean alpha_1 */
    ROW(attn_silent_share, ATTENTION),    /* mean weight on no key (softmax-1, sink logits) */
    ROW(dormant_share, ATTENTION),        /* share of dormant (query, head) pairs */
    {0},
};
/* clang-format on */

double qb__analysis_value(const qb_analysis *a, const layer_sums *l, const layer_metric *metric)
{
    bool there = (l->is_block || !metric->of_block) && (l->has_attention || !metric->of_attention);
    return there ? metric->finish(a, l) : NAN;
}
