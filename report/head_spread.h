/* report/head_spread.h - heads that sleep on one text and work on another (arXiv:2410.13835): those
 * of an analysis whose share of dormant queries depends most on the text. */
#ifndef QB_REPORT_HEAD_SPREAD_H
#define QB_REPORT_HEAD_SPREAD_H

#include "core/json.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct qb_head_spread {
    double layer, head;           /* from 1 */
    double least, most;           /* shares of dormant queries */
    size_t least_text, most_text; /* of which text, from 0 */
} qb_head_spread;

/* `heads` of an analysis; the most different first, at most max_heads. Returns how many: none where
 * there are not two texts. */
size_t qb_head_spreads(const json_t *heads, qb_head_spread *out, size_t max_heads);

#ifdef __cplusplus
}
#endif
#endif
