/* report/verdict.c - the rules; see verdict.h. */
#include "report/verdict.h"

#include "report/format.h"

#include <math.h>
#include <stdarg.h>
#include <string.h>

/* What a rule looks at. */
typedef struct pass {
    const qb_profile *profile;
    const qb_profile_operation *op;
    const qb_profile_run *run, *full; /* full: full precision beside a scheme; NULL = run is it */
} pass;

/* The share of the pass that the rule is about, with the sentence in text; < 0: does not hold. */
typedef double (*rule_check)(const pass *p, char *text);

static void say(char *text, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void say(char *text, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(text, QB_FINDING_BYTES, format, args);
    va_end(args);
}

static double share_of(const pass *p, qb_phase phase)
{
    return p->run->phases[phase].ms / p->run->ms;
}

static double percent(double share)
{
    return 100 * share;
}

/* The products and the head: what reads the weights. */
static qb_profile_part weights_part(const qb_profile_run *run)
{
    static const qb_phase phases[] = {QB_PHASE_GEMM, QB_PHASE_HEAD};
    qb_profile_part sum = {0};
    for (size_t i = 0; i < QB_COUNT(phases); i++) {
        const qb_profile_part *part = &run->phases[phases[i]];
        sum.ms += part->ms;
        sum.calls += part->calls;
        sum.bytes += part->bytes;
        sum.ops += part->ops;
        sum.memory_ms += part->memory_ms;
        sum.compute_ms += part->compute_ms;
        sum.bound_ms += part->bound_ms;
    }
    return sum;
}

/* ---- the rules ---- */

static double check_launch(const pass *p, char *text)
{
    const double most_call_us = 25, tiny_call_us = 0.5, least_gaps = 0.15, small_roof = 0.3;
    const qb_profile_run *r = p->run;
    double calls = 0, covered = 0;
    for (size_t i = 0; i < QB_PHASE_COUNT; i++) {
        calls += r->phases[i].calls;
        covered += r->phases[i].ms;
    }
    double call_us = 1e3 * covered / calls, gaps = r->gaps_ms / r->ms, roof = r->roof_ms / r->ms;
    bool short_calls = call_us < tiny_call_us || (call_us < most_call_us && roof < small_roof);
    if (!(gaps > least_gaps) && !short_calls) return -1;
    say(text,
        "%.0f steps a pass of %.1f us on average; %.0f %% of the pass lies between them, and all "
        "of it could take %.0f %% of its time: what a step costs to start outweighs its work",
        calls, call_us, percent(fmax(gaps, 0)), percent(roof));
    return fmax(gaps, short_calls ? fmax(1 - roof, 0) : 0);
}

static double check_bandwidth(const pass *p, char *text)
{
    const double least_share = 0.5, least_roof = 0.5;
    qb_profile_part w = weights_part(p->run);
    double share = w.ms / p->run->ms, roof = w.bound_ms / w.ms;
    if (!(share > least_share) || !(roof > least_roof) || !(w.memory_ms > w.compute_ms)) return -1;
    say(text,
        "products and logits take %.0f %% of the pass and move %.0f MB at %.1f GB/s, %.0f %% of "
        "what they need at the measured %s bandwidth",
        percent(share), 1e-6 * w.bytes, 1e-6 * w.bytes / w.ms, percent(roof),
        p->run->in_cache ? "cache" : "memory");
    return share * roof;
}

static double check_compute(const pass *p, char *text)
{
    const double least_share = 0.5, least_roof = 0.5;
    qb_profile_part w = weights_part(p->run);
    double share = w.ms / p->run->ms, roof = w.bound_ms / w.ms;
    if (!(share > least_share) || !(roof > least_roof) || !(w.compute_ms > w.memory_ms)) return -1;
    say(text,
        "products and logits take %.0f %% of the pass at %.0f Gop/s, %.0f %% of the fastest "
        "product measured here",
        percent(share), 1e-6 * w.ops / w.ms, percent(roof));
    return share * roof;
}

/* Few rows: the weights' bytes decide, and a faster multiplication is of no use. */
static double check_rows(const pass *p, char *text)
{
    const qb_profile_part *gemm = &p->run->phases[QB_PHASE_GEMM];
    double share = share_of(p, QB_PHASE_GEMM), idle = 1 - gemm->compute_ms / gemm->memory_ms;
    if (!p->full || !(share > 0.2) || !(gemm->compute_ms < 0.5 * gemm->memory_ms)) return -1;
    double rows = (double)p->op->rows * gemm->memory_ms / gemm->compute_ms;
    say(text,
        "%zu row%s a product: its bytes take %.2f ms at the measured bandwidth, its operations "
        "%.2f at the measured rate, so the faster multiplication idles; from about %.0f rows on it "
        "would not",
        p->op->rows, p->op->rows == 1 ? "" : "s", gemm->memory_ms, gemm->compute_ms, rows);
    return share * idle;
}

/* Where passes that norm or activate make the codes too, what they take beyond full precision's. */
static double check_quantise(const pass *p, char *text)
{
    static const qb_phase shared[] = {QB_PHASE_NORM, QB_PHASE_ACTIVATION};
    if (!p->full) return -1;
    double ms = p->run->phases[QB_PHASE_QUANTISE].ms;
    for (size_t i = 0; i < QB_COUNT(shared); i++)
        ms += fmax(p->run->phases[shared[i]].ms - p->full->phases[shared[i]].ms, 0);
    double share = ms / p->run->ms;
    if (!(share > 0.08)) return -1;
    double gained = p->full->phases[QB_PHASE_GEMM].ms - p->run->phases[QB_PHASE_GEMM].ms;
    say(text,
        "making codes of the inputs takes %.3f ms, %.0f %% of the pass; the products gain "
        "%.3f ms by them",
        ms, percent(share), gained);
    return share;
}

static double check_requantise(const pass *p, char *text)
{
    double share = share_of(p, QB_PHASE_REQUANTISE);
    if (!p->full || !(share > 0.04)) return -1;
    say(text,
        "outputs wait for their largest value and are rounded in a pass of their own: %.3f ms, "
        "%.0f %% of the pass",
        p->run->phases[QB_PHASE_REQUANTISE].ms, percent(share));
    return share;
}

static double check_attention(const pass *p, char *text)
{
    double share = share_of(p, QB_PHASE_ATTENTION);
    if (!(share > 0.3)) return -1;
    say(text, "attention takes %.3f ms, %.0f %% of the pass, which no scheme here changes",
        p->run->phases[QB_PHASE_ATTENTION].ms, percent(share));
    return share;
}

static double check_head(const pass *p, char *text)
{
    double share = share_of(p, QB_PHASE_HEAD);
    if (!(share > 0.3)) return -1;
    say(text, "the logits take %.3f ms, %.0f %% of the pass: %.0f MB for a vocabulary of %.0f",
        p->run->phases[QB_PHASE_HEAD].ms, percent(share),
        1e-6 * p->run->phases[QB_PHASE_HEAD].bytes, p->profile->model.vocab);
    return share;
}

static double phase_or_gaps(const qb_profile_run *run, size_t i)
{
    return i < QB_PHASE_COUNT ? run->phases[i].ms : run->gaps_ms;
}

/* The whole difference in a sentence: who lost and who gained most. */
static double check_difference(const pass *p, char *text, bool slower)
{
    if (!p->full) return -1;
    double ratio = p->run->ms / p->full->ms;
    if (slower ? !(ratio > 1.02) : !(ratio < 0.98)) return -1;
    size_t lost = 0, gained = 0;
    double most = -INFINITY, least = INFINITY;
    for (size_t i = 0; i <= QB_PHASE_COUNT; i++) {
        double d = phase_or_gaps(p->run, i) - phase_or_gaps(p->full, i);
        if (d > most) most = d, lost = i;
        if (d < least) least = d, gained = i;
    }
    const char *lost_name = lost < QB_PHASE_COUNT ? qb_phase_names[lost] : "gaps";
    const char *gained_name = gained < QB_PHASE_COUNT ? qb_phase_names[gained] : "gaps";
    double speed = slower ? ratio : 1 / ratio;
    say(text,
        "%.2f times %s full precision (%.3f ms, %.3f); it gains most in %s (%+.3f ms) and loses "
        "most in %s (%+.3f ms)",
        speed, slower ? "slower than" : "faster than", p->run->ms, p->full->ms, gained_name, least,
        lost_name, most);
    return fabs(1 - ratio);
}

static double check_slower(const pass *p, char *text)
{
    return check_difference(p, text, true);
}

static double check_faster(const pass *p, char *text)
{
    return check_difference(p, text, false);
}

/* clang-format off */
static const struct {
    const char *name;
    rule_check check;
    const char *help;
} rules[] = {
    {"slower than full", check_slower,
        "see the phase that loses most; --sweep finds the batch from which on the scheme wins"},
    {"faster than full", check_faster,
        "the gain ends where the next finding below begins"},
    {"launch-bound", check_launch,
        "more sequences at once (--batch), a larger model, fewer threads on the processor"},
    {"bandwidth-bound", check_bandwidth,
        "fewer bytes a weight (8 or 4 bits, --quantize-head), or more sequences for each reading"},
    {"compute-bound", check_compute,
        "a scheme whose products are faster here (see peaks), or more threads"},
    {"too few rows", check_rows,
        "a larger --batch; below it only the size of the codes counts, and 4 bits win"},
    {"quantise cost", check_quantise,
        "static scales (--act-scale static), or one scale a token in place of one a tensor"},
    {"requantise synchronisation", check_requantise,
        "a scheme without output quantisation (fine, moderate), or static scales"},
    {"attention-bound", check_attention,
        "a shorter context, or fewer key heads; quantising weights does not touch it"},
    {"head-bound", check_head,
        "--quantize-head, or a smaller vocabulary"},
};
/* clang-format on */

static size_t judge_run(const pass *p, int operation, qb_finding *out, size_t n, size_t most)
{
    for (size_t i = 0; i < QB_COUNT(rules) && n < most; i++) {
        qb_finding f = {.rule = rules[i].name,
                        .operation = qb_profile_operation_names[operation],
                        .of_full = !p->full,
                        .help = rules[i].help};
        f.weight = rules[i].check(p, f.text);
        if (f.weight >= 0) out[n++] = f;
    }
    return n;
}

size_t qb_verdict_judge(const qb_profile *profile, int operation, qb_finding *out, size_t most)
{
    const qb_profile_operation *op = &profile->operations[operation];
    size_t n = 0;
    if (!op->measured) return 0;
    pass p = {.profile = profile, .op = op, .run = &op->scheme, .full = &op->full};
    if (op->scheme.measured) n = judge_run(&p, operation, out, n, most);
    p.run = &op->full;
    p.full = NULL;
    n = judge_run(&p, operation, out, n, most);
    for (size_t i = 1; i < n; i++) /* few: by weight, equal ones in the table's order */
        for (size_t k = i; k > 0 && out[k].weight > out[k - 1].weight; k--) {
            qb_finding swap = out[k];
            out[k] = out[k - 1];
            out[k - 1] = swap;
        }
    return n;
}
