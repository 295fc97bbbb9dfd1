/* infer/analysis_internal.h - the sums of an analysis: what analysis.c (making, dispatch),
 * analysis_stream.c and analysis_heads.c (adding), analysis_metrics.c (finishing) and
 * analysis_json.c share. */
#ifndef QB_INFER_ANALYSIS_INTERNAL_H
#define QB_INFER_ANALYSIS_INTERNAL_H

#include "infer/analysis.h"
#include "model/model.h"
#include "quant/outliers.h"

enum {
    ANALYSIS_TOP = 3,          /* largest values of a window */
    ANALYSIS_SINK_TOKENS = 64, /* T of sink_eps */
    ANALYSIS_SINK_BINS = 20,   /* of the distribution of alpha_1 */
    ANALYSIS_MAP_CELLS = 64,   /* a side */
    ANALYSIS_LISTED_MASSIVE = 32,
    ANALYSIS_ALL_POSITIONS = 64, /* norms at fewer of those beyond */
};
#define ANALYSIS_SINK_EPS 0.3
#define ANALYSIS_MASSIVE_ABS 100.0      /* arXiv:2402.17762, section 2: above this */
#define ANALYSIS_MASSIVE_MEDIANS 1000.0 /* and at least so many times the median */

/* Means over windows of a whole tensor (T x width) of each. */
typedef struct sample_sums {
    double kurt, inf_norm, n_windows;
} sample_sums;

/* The tensors of which sample figures are taken. */
typedef enum {
    SAMPLE_STREAM,
    SAMPLE_ATTN_OUT,
    SAMPLE_MLP_OUT,
    SAMPLE_NORM1,
    SAMPLE_NORM2,
    SAMPLE_COUNT
} sample_tensor;

/* One window of the stream after one block. */
typedef struct window_figures {
    double top[ANALYSIS_TOP], median, peak;
} window_figures;

typedef struct massive_sums {
    double n, n_first; /* of them at the first position */
    double sum, sum_squares;
    double least, most; /* of |value| */
    double windows;     /* that hold one */
    size_t last_window; /* counted from 1 */
} massive_sums;

/* A mean norm by position. */
typedef struct norm_sums {
    double *by_position; /* (context) sums */
    double sum[2], n[2]; /* first tokens, others */
} norm_sums;

typedef struct head_sums {
    qb_head_figures figures;
    double n_queries;
    double alpha, sinks, n_windows; /* of alpha_1, windows with at least sink_tokens tokens */
} head_sums;

typedef struct layer_sums {
    bool has_attention, is_block; /* is_block: not the embedding */
    qb_outlier_sums outliers;
    double norm_ratio[2], n_norm_ratio[2]; /* first tokens, others; a zero has none */
    sample_sums samples[SAMPLE_COUNT];
    double top[ANALYSIS_TOP], median, massive, peak, n_peak, n_windows;
    qb_moments *channels;           /* (C) */
    massive_sums *massive_channels; /* (C) */
    norm_sums hidden, key, value;   /* key, value: a mean over heads too */
    head_sums *heads;               /* (n_texts, H) */
    double alpha[ANALYSIS_SINK_TOKENS], sinks[ANALYSIS_SINK_TOKENS]; /* over windows and heads */
    double sink_bins[ANALYSIS_SINK_BINS];
    double n_alpha;
    double *attention_map; /* (cells, cells), mean over heads, of the first window; NULL = none */
    float *stream_map;     /* (cells of positions, cells of channels) largest |x| */
} layer_sums;

struct qb_analysis {
    const qb_model *model;
    const qb_config *c;
    qb_analysis_options options;
    qb_taps taps;
    size_t text, n_windows;        /* n_windows: begun, of all texts */
    size_t sink_tokens;            /* ANALYSIS_SINK_TOKENS, or the context where that is shorter */
    size_t map_rows, map_columns;  /* cells of positions and of channels */
    size_t *position_n;            /* (context) windows that have this position */
    layer_sums embedding, *layers; /* (n_layers) */
    sample_sums final_norm;
    float **sinks; /* (n_layers) of H logits, where softmax is sink; owned */

    /* Scratch of one view. */
    qb_token_figures *tokens; /* (max_rows) */
    float *magnitudes;        /* (max_rows, C) */
    window_figures *windows;  /* (max_rows) */
    qb_head_figures *heads;   /* (max_rows H) */
    double *columns; /* (max_rows H) x sink_tokens; a window has sink_tokens rows or more */
    double *map;     /* (H, cells, cells) */
};

/* ---- analysis_stream.c ---- */
qb_status qb__analysis_add_stream(qb_analysis *a, layer_sums *l, const qb_tap_view *v);
void qb__analysis_add_sample(qb_analysis *a, sample_sums *s, const qb_tap_view *v);
/* ---- analysis_heads.c ---- */
qb_status qb__analysis_add_heads(qb_analysis *a, layer_sums *l, const qb_tap_view *v);
void qb__analysis_add_norm(norm_sums *s, size_t position, double norm);

/* ---- analysis_metrics.c ---- */
typedef struct layer_metric {
    const char *name;
    bool of_attention; /* null where a block has none, and for the embedding */
    bool of_block;     /* null for the embedding */
    double (*finish)(const qb_analysis *a, const layer_sums *l);
} layer_metric;
extern const layer_metric qb__analysis_metrics[]; /* ends with a zero row */
double qb__analysis_value(const qb_analysis *a, const layer_sums *l, const layer_metric *metric);

#endif
