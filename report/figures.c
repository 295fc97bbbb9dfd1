/* report/figures.c - the table of figures that comparisons, gates and histories look at. */
#include "report/compare_internal.h"
#include "report/format.h"

#include <math.h>

static char *format_gain(double value, char *text)
{
    snprintf(text, QB_FORMAT_BYTES, "%.3fx", value);
    return text;
}

static char *format_memory(double value, char *text)
{
    return qb_format_bytes(isnan(value) ? -1 : (int64_t)value, text);
}

double qb__memory_bytes(const qb_result *r, bool with_kv, bool with_scratch)
{
    if (r->memory.weights_bytes < 0) return NAN;
    return (double)r->memory.weights_bytes +
           (with_kv && r->memory.kv_bytes > 0 ? (double)r->memory.kv_bytes : 0) +
           (with_scratch && r->memory.scratch_bytes > 0 ? (double)r->memory.scratch_bytes : 0);
}

static double gain_of(const qb_result *r, const qb_result_timing *own, const qb_result_timing *full)
{
    return qb_result_is_full(r) ? NAN : own->tok_per_s / full->tok_per_s;
}

#define VALUE(name, expression)                                                                    \
    static double name(const qb_result *r)                                                         \
    {                                                                                              \
        return expression;                                                                         \
    }
VALUE(ppl, r->quality.ppl)
VALUE(penalty, r->quality.penalty)
VALUE(kl, r->quality.kl_mean)
VALUE(top1, r->quality.top1_agreement)
VALUE(prefill, r->speed.prefill.tok_per_s)
VALUE(decode, r->speed.decode.tok_per_s)
VALUE(prefill_gain, gain_of(r, &r->speed.prefill, &r->speed.full.prefill))
VALUE(decode_gain, gain_of(r, &r->speed.decode, &r->speed.full.decode))
VALUE(memory, qb__memory_bytes(r, true, true))
VALUE(energy, r->energy.j_per_token)

static double margin_ppl(const qb_compare_options *options, const qb_result *a)
{
    (void)a;
    return options->margin_ppl; /* of a KL, too: 0.001 nats are about 0.1 % of perplexity */
}

static double margin_penalty(const qb_compare_options *options, const qb_result *a)
{
    return options->margin_ppl * a->quality.ppl; /* as much perplexity */
}

static double margin_speed(const qb_compare_options *options, const qb_result *a)
{
    (void)a;
    return options->margin_speed;
}

/* clang-format off */
const qb_figure qb_figures[QB_FIGURE_COUNT] = {
    [QB_FIGURE_PPL] = {"ppl", "perplexity", true, true, -1,
        ppl, margin_ppl, qb_format_perplexity},
    [QB_FIGURE_PENALTY] = {"penalty", "penalty", false, false, -1,
        penalty, margin_penalty, qb_format_signed},
    [QB_FIGURE_KL] = {"kl_mean", "KL, nats", false, false, -1,
        kl, margin_ppl, qb_format_significant},
    [QB_FIGURE_TOP1] = {"top1_agreement", "top-1 agreement", false, true, 1,
        top1, margin_ppl, qb_format_percent},
    [QB_FIGURE_PREFILL] = {"prefill", "prefill, tok/s", true, true, 1,
        prefill, margin_speed, qb_format_significant},
    [QB_FIGURE_DECODE] = {"decode", "decode, tok/s", true, true, 1,
        decode, margin_speed, qb_format_significant},
    [QB_FIGURE_PREFILL_GAIN] = {"prefill_gain", "prefill / full", true, true, 1,
        prefill_gain, margin_speed, format_gain},
    [QB_FIGURE_DECODE_GAIN] = {"decode_gain", "decode / full", true, true, 1,
        decode_gain, margin_speed, format_gain},
    [QB_FIGURE_MEMORY] = {"memory_bytes", "memory", true, true, -1,
        memory, NULL, format_memory},
    [QB_FIGURE_ENERGY] = {"j_per_token", "energy, J/token", true, true, -1,
        energy, NULL, qb_format_significant},
};
/* clang-format on */
