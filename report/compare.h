/* report/compare.h - two result files side by side: what changed from A to B, and is it more than
 * noise?
 *
 * A record of B belongs to the record of A with the same model and scheme. Quality is compared
 * window by window (a paired bootstrap over the windows of both), speed by Mann-Whitney and by
 * resampled medians; of files without windows or samples only what their intervals allow. */
#ifndef QB_REPORT_COMPARE_H
#define QB_REPORT_COMPARE_H

#include "core/significance.h"
#include "report/result.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum qb_verdict { QB_SAME, QB_BETTER, QB_WORSE, QB_UNSURE } qb_verdict;
extern const char *const qb_verdict_names[];

typedef enum qb_figure_id {
    QB_FIGURE_PPL,
    QB_FIGURE_PENALTY,
    QB_FIGURE_KL,
    QB_FIGURE_TOP1,
    QB_FIGURE_PREFILL,
    QB_FIGURE_DECODE,
    QB_FIGURE_PREFILL_GAIN, /* over full precision, sampled in turns with it */
    QB_FIGURE_DECODE_GAIN,
    QB_FIGURE_MEMORY,
    QB_FIGURE_ENERGY,
    QB_FIGURE_COUNT
} qb_figure_id;

struct qb_compare_options;
typedef struct qb_figure {
    const char *key;  /* in JSON */
    const char *name; /* for people */
    bool relative;    /* changes are shares of A's value */
    bool percent;     /* changes are written in %, or in points of a share */
    int better;       /* +1: more is better, -1: less is */
    double (*value)(const qb_result *result); /* NaN = not measured */
    /* Changes from A up to this are none; NULL = any is one. */
    double (*margin)(const struct qb_compare_options *options, const qb_result *a);
    char *(*format)(double, char *); /* one value, as report/format.h */
} qb_figure;
extern const qb_figure qb_figures[QB_FIGURE_COUNT];

typedef struct qb_change {
    double a, b;     /* NaN = not measured */
    qb_draws change; /* from a to b; its estimate is NaN where one of them was not measured */
    qb_draws level;  /* of b alone, for limits on it */
    double u_p;      /* two-sided Mann-Whitney p of speeds; NaN = no samples */
    qb_verdict verdict;
} qb_change;

/* What changes of quality were made from. */
typedef enum qb_quality_source {
    QB_FROM_NOTHING,
    QB_FROM_INTERVALS, /* of the records */
    QB_FROM_WINDOWS,   /* of the records: sums over windows */
    QB_FROM_TOKENS     /* files of each token's losses, that the records name */
} qb_quality_source;
extern const char *const qb_quality_source_names[]; /* in JSON; NULL = nothing */

typedef struct qb_pair {
    const qb_result *a, *b; /* borrowed */
    qb_quality_source source;
    size_t n_windows; /* that were resampled */
    qb_change changes[QB_FIGURE_COUNT];
    qb_texts notes; /* what was left out and why, other weights, ... */
} qb_pair;

typedef struct qb_comparison {
    const char *name_a, *name_b; /* borrowed: the files */
    qb_pair *pairs;
    size_t n;
    qb_texts only_a, only_b; /* "model, scheme" without a counterpart */
} qb_comparison;

typedef struct qb_compare_side {
    const qb_results *results;
    const char *name; /* of the file, for messages */
} qb_compare_side;

/* Sums over windows from elsewhere than the records, of the same tokens on both sides. */
typedef struct qb_token_source {
    /* *found: a and b are set, and the caller's to deinit; else `why` may say why not, "" = there
     * is nothing to say. Fails where what the records name contradicts them. */
    qb_status (*read)(const qb_compare_side *side_a, const qb_compare_side *side_b,
                      const qb_pair *pair, qb_result_windows *a, qb_result_windows *b, bool *found,
                      char why[300]);
} qb_token_source;

typedef struct qb_compare_options {
    double margin_ppl;   /* changes of perplexity below this share are none: 0.001 */
    double margin_speed; /* the same of speed: 0.01 */
    bool across;         /* the models in order, whatever their names and shapes */
    size_t n_resamples;  /* 0 = 2,000 */
    uint64_t seed;
    const qb_token_source *tokens; /* NULL = none */
} qb_compare_options;

/* QB_ERR_FORMAT: nothing in B belongs to anything in A, or a pair differs in shape, text or
 * protocol; the message names the field and both values. *out borrows from both sides. */
qb_status qb_compare(const qb_compare_side *a, const qb_compare_side *b,
                     const qb_compare_options *options, qb_comparison *out);
void qb_comparison_deinit(qb_comparison *comparison); /* accepts a zeroed one */

/* For the writers: +0.12 %, and +0.12 % [+0.05, +0.19]; "-" without an estimate. */
#define QB_CHANGE_BYTES 96
char *qb_change_text(qb_figure_id figure, const qb_draws *change, char text[QB_CHANGE_BYTES]);

/* "quality from the losses of each token, 24 windows in pairs"; NULL where no quality was compared.
 */
const char *qb_pair_source_text(const qb_pair *pair, char text[QB_CHANGE_BYTES]);

qb_status qb_comparison_write_screen(const qb_comparison *comparison, bool colour, FILE *stream);
qb_status qb_comparison_write_markdown(const qb_comparison *comparison, FILE *stream);
qb_status qb_comparison_to_json(const qb_comparison *comparison, json_t **out);

#ifdef __cplusplus
}
#endif
#endif
