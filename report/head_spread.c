/* report/head_spread.c - see head_spread.h. */
#include "report/head_spread.h"

#include <math.h>

static qb_head_spread spread_of(const json_t *head)
{
    const json_t *list = json_object_get(head, "dormant_share_by_text");
    qb_head_spread s = {.layer = qb_json_real_at(head, "layer"),
                        .head = qb_json_real_at(head, "head"),
                        .least = INFINITY,
                        .most = -INFINITY};
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *value = json_array_get(list, i);
        double share = json_number_value(value);
        if (!json_is_number(value)) continue;
        if (share > s.most) {
            s.most = share;
            s.most_text = i;
        }
        if (share < s.least) {
            s.least = share;
            s.least_text = i;
        }
    }
    return s;
}

static double difference(const qb_head_spread *s)
{
    return s->most - s->least;
}

size_t qb_head_spreads(const json_t *heads, qb_head_spread *out, size_t max_heads)
{
    size_t n = 0;
    for (size_t i = 0; max_heads && i < json_array_size(heads); i++) {
        const qb_head_spread s = spread_of(json_array_get(heads, i));
        if (!(difference(&s) > 0)) continue;
        if (n == max_heads && difference(&s) <= difference(&out[n - 1])) continue;
        if (n < max_heads) n++;
        size_t at = n - 1;
        for (; at > 0 && difference(&s) > difference(&out[at - 1]); at--) out[at] = out[at - 1];
        out[at] = s;
    }
    return n;
}
