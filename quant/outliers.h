/* quant/outliers.h - the outlier metrics of activations (arXiv:2410.17174, Table 2): their one
 * home, for evaluations while training and for `analyze`.
 *
 * The hidden state is the residual stream after each block: kurtosis (Pearson: 3 for a Gaussian)
 * and largest absolute value of each token over its channels, averaged over first tokens and,
 * apart, over all others; a token whose channels are all equal has no kurtosis and is left out of
 * that mean. Attention: over (query, head), queries 2 to T, the share whose largest
 * weight is on the first key (ties to the lower index), and the mean weight there. All are means
 * over layers.
 *
 * A device hands over what it computed as f32 on the host; the sums are made here, in double and in
 * an order that no number of threads changes. */
#ifndef QB_QUANT_OUTLIERS_H
#define QB_QUANT_OUTLIERS_H

#include "core/moments.h"
#include "core/threads.h"
#include "model/arch.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct qb_outliers {
    double kurt_token_first, kurt_token_rest, max_abs_first, max_abs_rest;
    double attn_first_argmax, attn_first_share;
} qb_outliers;

enum { QB_N_OUTLIERS = 6 };
extern const char *const qb_outlier_names[QB_N_OUTLIERS]; /* the fields, in order */

typedef struct qb_outlier_sums {
    double kurt[2], max_abs[2]; /* first tokens, others */
    double n_kurt[2], n_tokens[2];
    double argmax, share, n_queries;
} qb_outlier_sums;

/* ---- the residual stream ---- */

/* One token over its channels. */
typedef struct qb_token_figures {
    qb_moments moments;
    double max_abs, norm; /* L-infinity, L2 */
} qb_token_figures;
/* Of each row of x (n_rows, width). */
void qb_token_figures_of(const float *x, size_t n_rows, size_t width, qb_pool *pool,
                         qb_token_figures *out);
/* Adds the tokens of windows of `context` tokens each. */
void qb_outlier_add_tokens(qb_outlier_sums *sums, const qb_token_figures *tokens, size_t batch,
                           size_t context);
/* Both, of x (batch, context, width): the stream after one block. */
qb_status qb_outlier_add_stream(qb_outlier_sums *sums, const float *x, size_t batch, size_t context,
                                size_t width, qb_pool *pool);

/* ---- attention ---- */

/* A query is dormant whose weights on the first key and on no key at all (of softmax-1 and sink
 * logits) are together over this: its head does next to nothing for it. */
#define QB_DORMANT_WEIGHT 0.5

/* One head in one window: sums over queries 2 to T. */
typedef struct qb_head_figures {
    double argmax, share; /* the largest weight is on the first key; the weight there */
    double silent;        /* weight on no key; 0 where softmax has no such thing */
    double dormant;       /* queries */
} qb_head_figures;

/* What single queries do, with the first key above all, (batch, H, context) each; borrowed. */
typedef struct qb_first_key_view {
    float *weight; /* of the first key */
    float *gap;    /* its score less the mean score of keys 2 to i - 1 of query i; 0 for i < 3; NULL
                      = not wanted */
    float *marked_weight; /* of the marked keys together; not looked at where marked is NULL */
    const bool *marked;   /* (batch, context); NULL = not wanted */
} qb_first_key_view;

/* More that can be asked for; NULL = not wanted. All borrowed; overwritten. */
typedef struct qb_attention_wishes {
    const qb_first_key_view *view;
    /* (batch, H, n_columns): of the first n_columns tokens, the sum of the weights of key k over
     * the queries k to n_columns. */
    double *column;
    size_t n_columns; /* at most context */
    /* (H, n_cells, n_cells): the first window's mean weight in cells of queries (rows) times keys;
     * keys that a query does not see count as 0. */
    double *map;
    size_t n_cells; /* at most context */
} qb_attention_wishes;

/* qkv (batch, context, (H + 2 Hkv) D) as they enter the scores of one layer; sink (H) where softmax
 * is sink; wishes may be NULL; out (batch, H). */
qb_status qb_attention_figures(const qb_config *config, const float *qkv, const float *sink,
                               size_t batch, size_t context, qb_pool *pool,
                               const qb_attention_wishes *wishes, qb_head_figures *out);
void qb_outlier_add_heads(qb_outlier_sums *sums, const qb_head_figures *heads, size_t n,
                          size_t context);
/* Both; view may be NULL. */
qb_status qb_outlier_add_attention(qb_outlier_sums *sums, const qb_config *config, const float *qkv,
                                   const float *sink, size_t batch, size_t context, qb_pool *pool,
                                   const qb_first_key_view *view);

/* NaN where nothing was added. */
qb_outliers qb_outlier_finish(const qb_outlier_sums *sums);

#ifdef __cplusplus
}
#endif
#endif
