/* quant/schemes.h - quantisation schemes are data: one row each (docs/schemes.md).
 *
 *   absmax, b = 8:     scale = max|w|/127,       q = clamp(round_half_even(w/scale), -127, 127) (1)
 *   zero point, b = 4: scale = (max - min)/15,   zp = round(-min/scale),
 *                      q = clamp(round(w/scale) + zp, 0, 15) (2)
 *
 *   smoothing:         s_j = max|x_j|^alpha / max|w_j|^(1 - alpha),  x_j / s_j,  w_j * s_j (3)
 *   outliers:          y = sum over j of O of x_j w_j + the product of codes of the others, where
 *                      O = the input channels j with |x_j| >= outlier_min in any token (4)
 *
 * (1) and (2) over the slices that `axis` spans (arXiv:2410.17174 section 5.2; Dettmers et al.
 * 2022); (3) arXiv:2211.10438 equation 4, (4) arXiv:2208.07339 section 3.2, both in full in
 * docs/schemes.md. The engine asks for a scheme's fields, never for its name. */
#ifndef QB_QUANT_SCHEMES_H
#define QB_QUANT_SCHEMES_H

#include "core/status.h"
#include "model/model.h"

#include <stdbool.h>
#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct qb_weight_quant {
    unsigned bits; /* 0 = none, 8 = (1), 4 = (2) */
    qb_axis axis;
    size_t group_elems; /* QB_AXIS_GROUP */
    bool fold_inputs;   /* the static scales of the input channels are multiplied in before (1) */
    float smooth_alpha; /* > 0: layers behind a norm are smoothed by (3) before (1) */
} qb_weight_quant;

typedef enum { QB_SPAN_TOKEN, QB_SPAN_TENSOR, QB_SPAN_CHANNEL } qb_span;
typedef struct qb_act_quant {
    unsigned bits; /* 0 = none, 8 = (1) */
    qb_span span; /* what one scale spans; "tensor" = all tokens of one forward call of one layer */
    bool is_static;    /* scales come from calibration, not from the values themselves */
    float outlier_min; /* > 0: input channels with a value of at least this size in the call stay
                          float (4); scales are then those of the other channels */
} qb_act_quant;

typedef struct qb_scheme {
    const char *name; /* "fine"; with overrides "fine" stays and the fields say the rest */
    qb_weight_quant weights;
    qb_act_quant input, output; /* of each linear layer */
    const char *what;           /* one line for help and docs */
    const char *source;
    bool f32; /* float arithmetic in f32 on every device, not in what the device prefers */
} qb_scheme;
extern const qb_scheme qb_schemes[]; /* `full` first; ends with a zero row */

const qb_scheme *qb_scheme_find(const char *name); /* NULL = none */
/* True if any scale or factor of the scheme comes from calibration. */
bool qb_scheme_needs_calibration(const qb_scheme *scheme);

/* The user's overrides on top of a row. NULL strings and false leave the row's fields. */
typedef struct qb_scheme_overrides {
    const char *weight_axis; /* "out", "in", "tensor", "group:N" */
    const char *act_axis;    /* "token", "tensor", "channel" */
    const char *act_scale;   /* "dynamic", "static" */
} qb_scheme_overrides;
/* QB_ERR_USAGE: an unknown word, or a combination that has no integer arithmetic (the message says
 * which and why). */
qb_status qb_scheme_override(const qb_scheme *row, const qb_scheme_overrides *overrides,
                             qb_scheme *out);

/* Words for JSON and tables. */
void qb_weight_axis_text(const qb_weight_quant *weights,
                         char text[32]);             /* "out", "group:128", "none" */
const char *qb_span_text(const qb_act_quant *quant); /* "token", ..., "none" */

#ifdef __cplusplus
}
#endif
#endif
