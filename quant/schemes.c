/* quant/schemes.c - the table of schemes. A new scheme is a row here; names in the command line,
 * tests, documents and result tables loop over it. */
#include "quant/schemes.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PAPER "arXiv:2410.17174 sec. 5.2"

const qb_scheme qb_schemes[] = {
    {"full",
     {0},
     {0},
     {0},
     "full precision: f32 on CPU, bf16 with f32 accumulation on CUDA",
     "-",
     false},
    {"full-f32", {0}, {0}, {0}, "full precision: f32 on every device", "-", true},
    {"fine",
     {.bits = 8, .axis = QB_AXIS_OUT},
     {.bits = 8, .span = QB_SPAN_TOKEN},
     {0},
     "8-bit absmax: weights per output channel, inputs per token",
     PAPER,
     false},
    {"fine-channel",
     {.bits = 8, .axis = QB_AXIS_OUT, .fold_inputs = true},
     {.bits = 8, .span = QB_SPAN_CHANNEL, .is_static = true},
     {0},
     "8-bit absmax: weights per output channel, inputs per input channel with calibrated scales",
     PAPER ", read literally",
     false},
    {"moderate",
     {.bits = 8, .axis = QB_AXIS_TENSOR},
     {.bits = 8, .span = QB_SPAN_TENSOR},
     {0},
     "8-bit absmax: weights and inputs per tensor",
     PAPER,
     false},
    {"coarse",
     {.bits = 8, .axis = QB_AXIS_TENSOR},
     {.bits = 8, .span = QB_SPAN_TENSOR},
     {.bits = 8, .span = QB_SPAN_TENSOR},
     "8-bit absmax: weights, inputs and outputs per tensor",
     PAPER,
     false},
    {"zeropoint4",
     {.bits = 4, .axis = QB_AXIS_OUT},
     {0},
     {0},
     "4-bit zero point: weights per output channel",
     PAPER,
     false},
    {"zeropoint4-in",
     {.bits = 4, .axis = QB_AXIS_IN},
     {0},
     {0},
     "4-bit zero point: weights per input channel",
     PAPER,
     false},
    {"zeropoint4-tensor",
     {.bits = 4, .axis = QB_AXIS_TENSOR},
     {0},
     {0},
     "4-bit zero point: weights per tensor",
     PAPER,
     false},
    {"zeropoint4-g128",
     {.bits = 4, .axis = QB_AXIS_GROUP, .group_elems = 128},
     {0},
     {0},
     "4-bit zero point: weights in groups of 128 input channels",
     "groups as in arXiv:2210.17323",
     false},
    {"llm-int8",
     {.bits = 8, .axis = QB_AXIS_OUT},
     {.bits = 8, .span = QB_SPAN_TOKEN, .outlier_min = 6.0f},
     {0},
     "LLM.int8(): as fine, but input channels with a value of 6 or more stay float",
     "arXiv:2208.07339 sec. 3",
     false},
    {"smoothquant",
     {.bits = 8, .axis = QB_AXIS_TENSOR, .smooth_alpha = 0.5f},
     {.bits = 8, .span = QB_SPAN_TENSOR},
     {0},
     "SmoothQuant-O2, alpha 0.5: as moderate, after half of each outlier moved into the weights",
     "arXiv:2211.10438 sec. 4",
     false},
    {0}};

const qb_scheme *qb_scheme_find(const char *name)
{
    for (const qb_scheme *s = qb_schemes; s->name; s++)
        if (!strcmp(s->name, name)) return s;
    return NULL;
}

bool qb_scheme_needs_calibration(const qb_scheme *scheme)
{
    return scheme->weights.fold_inputs || scheme->weights.smooth_alpha > 0 ||
           (scheme->input.bits && scheme->input.is_static) ||
           (scheme->output.bits && scheme->output.is_static);
}

static qb_status override_weight_axis(const char *word, qb_scheme *s)
{
    if (!s->weights.bits)
        return QB_FAIL(QB_ERR_USAGE, "--weight-axis: scheme %s quantises no weights", s->name);
    if (!strcmp(word, "out")) {
        s->weights.axis = QB_AXIS_OUT;
    } else if (!strcmp(word, "in")) {
        s->weights.axis = QB_AXIS_IN;
    } else if (!strcmp(word, "tensor")) {
        s->weights.axis = QB_AXIS_TENSOR;
    } else if (!strncmp(word, "group:", 6)) {
        char *end;
        unsigned long n = strtoul(word + 6, &end, 10);
        if (*end || end == word + 6 || n < 1 || n > 1u << 20)
            return QB_FAIL(QB_ERR_USAGE, "--weight-axis: found %s, expected group:1 to group:%u",
                           word, 1u << 20);
        s->weights.axis = QB_AXIS_GROUP;
        s->weights.group_elems = n;
    } else {
        return QB_FAIL(QB_ERR_USAGE, "--weight-axis: found %s, expected out, in, tensor or group:N",
                       word);
    }
    return QB_OK;
}

static qb_status override_act_axis(const char *word, qb_scheme *s)
{
    static const char *const words[] = {"token", "tensor", "channel"};
    if (!s->input.bits)
        return QB_FAIL(QB_ERR_USAGE, "--act-axis: scheme %s quantises no activations", s->name);
    for (size_t i = 0; i < QB_COUNT(words); i++)
        if (!strcmp(word, words[i])) {
            s->input.span = (qb_span)i;
            if (s->input.span == QB_SPAN_CHANNEL) s->input.is_static = true;
            s->weights.fold_inputs = s->input.span == QB_SPAN_CHANNEL;
            return QB_OK;
        }
    return QB_FAIL(QB_ERR_USAGE, "--act-axis: found %s, expected token, tensor or channel", word);
}

static qb_status override_act_scale(const char *word, qb_scheme *s)
{
    bool is_static = !strcmp(word, "static");
    if (!is_static && strcmp(word, "dynamic"))
        return QB_FAIL(QB_ERR_USAGE, "--act-scale: found %s, expected dynamic or static", word);
    if (!s->input.bits)
        return QB_FAIL(QB_ERR_USAGE, "--act-scale: scheme %s quantises no activations", s->name);
    s->input.is_static = is_static;
    if (s->output.bits) s->output.is_static = is_static;
    return QB_OK;
}

/* Scales must be constant along the sum over input channels, or there is no integer sum. */
static qb_status check_combination(const qb_scheme *s)
{
    if (s->weights.bits == 8 && (s->weights.axis == QB_AXIS_IN || s->weights.axis == QB_AXIS_GROUP))
        return QB_FAIL(
            QB_ERR_USAGE,
            "--weight-axis: scheme %s multiplies 8-bit integers, whose scales cannot vary "
            "inside the sum over input channels: expected out or tensor",
            s->name);
    if (s->input.outlier_min > 0 && s->input.span != QB_SPAN_TOKEN)
        return QB_FAIL(QB_ERR_USAGE,
                       "--act-axis: scheme %s finds its outliers in each call and "
                       "scales the rest per token: expected token",
                       s->name);
    if (s->weights.smooth_alpha > 0 && s->weights.fold_inputs)
        return QB_FAIL(QB_ERR_USAGE,
                       "--act-axis: scheme %s has factors of its input channels already: "
                       "expected token or tensor",
                       s->name);
    if (s->input.bits && s->input.span == QB_SPAN_TOKEN && s->input.is_static)
        return QB_FAIL(QB_ERR_USAGE,
                       "--act-scale static: a token's own scale cannot be known before "
                       "the token; expected --act-axis tensor or channel");
    if (s->input.bits && s->input.span == QB_SPAN_CHANNEL && !s->input.is_static)
        return QB_FAIL(QB_ERR_USAGE,
                       "--act-scale dynamic: scales per input channel are folded into "
                       "the weights and must be static");
    return QB_OK;
}

qb_status qb_scheme_override(const qb_scheme *row, const qb_scheme_overrides *o, qb_scheme *out)
{
    qb_scheme s = *row;
    if (o->weight_axis) QB_TRY(override_weight_axis(o->weight_axis, &s));
    if (o->act_axis) QB_TRY(override_act_axis(o->act_axis, &s));
    if (o->act_scale) QB_TRY(override_act_scale(o->act_scale, &s));
    QB_TRY(check_combination(&s));
    *out = s;
    return QB_OK;
}

void qb_weight_axis_text(const qb_weight_quant *weights, char text[32])
{
    static const char *const words[] = {"none", "out", "in", "tensor", "group"};
    if (!weights->bits)
        snprintf(text, 32, "none");
    else if (weights->axis == QB_AXIS_GROUP)
        snprintf(text, 32, "group:%zu", weights->group_elems);
    else
        snprintf(text, 32, "%s", words[weights->axis]);
}

const char *qb_span_text(const qb_act_quant *quant)
{
    static const char *const words[] = {"token", "tensor", "channel"};
    return quant->bits ? words[quant->span] : "none";
}
