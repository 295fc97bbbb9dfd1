/* train/outliers.h - the outlier metrics of an evaluation (arXiv:2410.17174, Table 2; definitions
 * and names as in `analyze`).
 *
 * The hidden state is the residual stream after each block: kurtosis (Pearson: 3 for a Gaussian)
 * and largest absolute value of each token over its channels, averaged over first tokens and,
 * apart, over all others. Attention: over (query, head), queries 2 to T, the share whose largest
 * weight is on the first key (ties to the lower index), and the mean weight there. All are means
 * over layers.
 *
 * A device hands over what it computed as f32 on the host; the sums are made here, in double and in
 * an order that no number of threads changes. */
#ifndef QB_TRAIN_OUTLIERS_H
#define QB_TRAIN_OUTLIERS_H

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
    double n_tokens[2];
    double argmax, share, n_queries;
} qb_outlier_sums;

/* What single queries do with the first key, (batch, H, context) each; borrowed. */
typedef struct qb_first_key_view {
    float *weight; /* of the first key */
    float *gap;    /* its score less the mean score of keys 2 to i - 1 of query i; 0 for i < 3 */
} qb_first_key_view;

/* x (batch, context, width): the stream after one block. */
qb_status qb_outlier_add_stream(qb_outlier_sums *sums, const float *x, size_t batch, size_t context,
                                size_t width, qb_pool *pool);
/* qkv (batch, context, (H + 2 Hkv) D) as they enter the scores of one layer; sink (H) where softmax
 * is sink; view may be NULL. */
qb_status qb_outlier_add_attention(qb_outlier_sums *sums, const qb_config *config, const float *qkv,
                                   const float *sink, size_t batch, size_t context, qb_pool *pool,
                                   const qb_first_key_view *view);
/* NaN where nothing was added. */
qb_outliers qb_outlier_finish(const qb_outlier_sums *sums);

#ifdef __cplusplus
}
#endif
#endif
