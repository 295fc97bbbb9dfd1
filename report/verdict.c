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

static bool is_on_gpu(const pass *p)
{
    return strcmp(p->profile->device, "cpu") && *p->profile->device;
}

static bool has(const qb_profile_run *run, qb_phase phase)
{
    return run->phases[phase].calls > 0;
}

/* A step of its own in one of the two alone: the other does it in the kernels of its products. */
static bool is_fused_in_one(const pass *p, qb_phase phase)
{
    bool can_be = phase == QB_PHASE_POSITION || phase == QB_PHASE_ACTIVATION;
    return can_be && p->full && has(p->run, phase) != has(p->full, phase);
}

/* The products, with what one of the two does in them, so that both do the same. */
static double products_ms(const pass *p, const qb_profile_run *run)
{
    double ms = run->phases[QB_PHASE_GEMM].ms;
    for (size_t i = 0; i < QB_PHASE_COUNT; i++)
        if (is_fused_in_one(p, (qb_phase)i)) ms += run->phases[i].ms;
    return ms;
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

/* What starting and ending a step can cost at most: what the phase that is quickest so takes beyond
 * its bytes and operations. A phase that its work fills says nothing of it. */
static double start_us(const qb_profile_run *run, qb_phase *of)
{
    const double filled = 0.9;
    double least = INFINITY;
    for (size_t i = 0; i < QB_PHASE_COUNT; i++) {
        const qb_profile_part *part = &run->phases[i];
        double us = 1e3 * (part->ms - part->bound_ms) / part->calls;
        if (!(part->calls > 0) || part->bound_ms > filled * part->ms || !(us < least)) continue;
        least = us;
        *of = (qb_phase)i;
    }
    return isfinite(least) ? least : 0;
}

static double check_launch(const pass *p, char *text)
{
    const double most_call_us = 25, tiny_call_us = 0.5, least_gaps = 0.15, least_starts = 0.25;
    const qb_profile_run *r = p->run;
    double calls = 0, covered = 0;
    for (size_t i = 0; i < QB_PHASE_COUNT; i++) {
        calls += r->phases[i].calls;
        covered += r->phases[i].ms;
    }
    qb_phase of = QB_PHASE_GEMM;
    double call_us = 1e3 * covered / calls, gaps = r->gaps_ms / r->ms, start = start_us(r, &of);
    double starts = 1e-3 * start * calls / r->ms;
    bool many = call_us < tiny_call_us || (call_us < most_call_us && starts > least_starts);
    if (!(gaps > least_gaps) && !many) return -1;
    int n = snprintf(text, QB_FINDING_BYTES, "%.0f steps a pass of %.1f us on average; ", calls,
                     call_us);
    if (gaps > least_gaps)
        n += snprintf(text + n, QB_FINDING_BYTES - (size_t)n,
                      "%.0f %% of the pass lies between them%s", percent(gaps), many ? "; " : "");
    if (many)
        snprintf(text + n, QB_FINDING_BYTES - (size_t)n,
                 "up to %.1f us of each are no work but start and end (%s), together %.0f %% of "
                 "the pass",
                 start, qb_phase_names[of], percent(starts));
    return fmax(gaps, many ? starts : 0);
}

static double check_bandwidth(const pass *p, char *text)
{
    const double least_share = 0.5, least_roof = 0.5;
    qb_profile_part w = weights_part(p->run);
    double share = w.ms / p->run->ms, roof = w.bound_ms / w.ms;
    char t[QB_FORMAT_BYTES];
    if (!(share > least_share) || !(roof > least_roof) || !(w.memory_ms > w.compute_ms)) return -1;
    say(text,
        "products and logits take %.0f %% of the pass and move %.0f MB at %s GB/s, %.0f %% of the "
        "measured %s bandwidth",
        percent(share), 1e-6 * w.bytes, qb_format_significant(1e-6 * w.bytes / w.ms, t),
        percent(w.memory_ms / w.ms), p->run->in_cache ? "cache" : "memory");
    return share * roof;
}

static double check_compute(const pass *p, char *text)
{
    const double least_share = 0.5, least_roof = 0.5;
    qb_profile_part w = weights_part(p->run);
    double share = w.ms / p->run->ms, roof = w.bound_ms / w.ms;
    char t[QB_FORMAT_BYTES];
    if (!(share > least_share) || !(roof > least_roof) || !(w.compute_ms > w.memory_ms)) return -1;
    say(text,
        "products and logits take %.0f %% of the pass at %s, %.0f %% of the fastest products "
        "measured here",
        percent(share), qb_profile_format_rate(1e-6 * w.ops / w.ms, t),
        percent(w.compute_ms / w.ms));
    return share * roof;
}

/* Rows from which on multiplying takes longer than memory does: bytes are weights, read once, and
 * inputs and outputs, which grow with the rows. The other operation of the same engine tells them
 * apart; without it all count as weights. INFINITY = never. */
static double rows_to_balance(const pass *p)
{
    const qb_profile_operation *other = &p->profile->operations[QB_PROFILE_PREFILL];
    if (other == p->op) other = &p->profile->operations[QB_PROFILE_DECODE];
    const qb_profile_run *run = p->full ? &other->scheme : &other->full;
    const qb_profile_part *gemm = &p->run->phases[QB_PHASE_GEMM];
    double rows = (double)p->op->rows, other_rows = (double)other->rows, a_row = 0;
    if (other->measured && run->measured && rows != other_rows)
        a_row =
            fmax((run->phases[QB_PHASE_GEMM].memory_ms - gemm->memory_ms) / (other_rows - rows), 0);
    double weights = gemm->memory_ms - a_row * rows, gain = gemm->compute_ms / rows - a_row;
    return gain > 0 ? weights / gain : INFINITY;
}

/* Few rows: the weights' bytes decide, and a faster multiplication is of no use. Where the products
 * take far longer than their bytes, something else does. */
static double check_rows(const pass *p, char *text)
{
    const double least_share = 0.2, least_roof = 0.3;
    const qb_profile_part *gemm = &p->run->phases[QB_PHASE_GEMM];
    double share = share_of(p, QB_PHASE_GEMM), idle = 1 - gemm->compute_ms / gemm->memory_ms;
    char t[2][QB_FORMAT_BYTES];
    if (!p->full || !(share > least_share) || !(gemm->compute_ms < 0.5 * gemm->memory_ms) ||
        !(gemm->memory_ms > least_roof * gemm->ms))
        return -1;
    int n = snprintf(text, QB_FINDING_BYTES,
                     "%zu row%s a product: its bytes take %s ms at the measured bandwidth, its "
                     "operations %s at the measured rate, so the faster multiplication idles; ",
                     p->op->rows, p->op->rows == 1 ? "" : "s",
                     qb_format_significant(gemm->memory_ms, t[0]),
                     qb_format_significant(gemm->compute_ms, t[1]));
    double rows = rows_to_balance(p);
    if (isfinite(rows))
        snprintf(text + n, QB_FINDING_BYTES - (size_t)n, "from about %.0f rows on it would not",
                 rows);
    else
        snprintf(text + n, QB_FINDING_BYTES - (size_t)n,
                 "with more rows their inputs and outputs take longer still");
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
    const qb_phase positions = QB_PHASE_POSITION;
    if (is_fused_in_one(p, positions))
        gained += p->full->phases[positions].ms - p->run->phases[positions].ms;
    int n = snprintf(text, QB_FINDING_BYTES,
                     "making codes of the inputs takes %.3f ms, %.0f %% of "
                     "the pass",
                     ms, percent(share));
    if (is_fused_in_one(p, QB_PHASE_ACTIVATION))
        n += snprintf(text + n, QB_FINDING_BYTES - (size_t)n,
                      " (%.3f of it in activations, which full precision does in its products)",
                      p->run->phases[QB_PHASE_ACTIVATION].ms);
    snprintf(text + n, QB_FINDING_BYTES - (size_t)n, "; the products %s %.3f ms",
             gained < 0 ? "themselves lose" : "gain", fabs(gained));
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

/* "gemm with position" where one of the two does that in its products. */
static void name_products(const pass *p, char text[64])
{
    bool position = is_fused_in_one(p, QB_PHASE_POSITION);
    bool activation = is_fused_in_one(p, QB_PHASE_ACTIVATION);
    snprintf(text, 64, "gemm%s%s%s%s", position || activation ? " with " : "",
             position ? qb_phase_names[QB_PHASE_POSITION] : "",
             position && activation ? " and " : "",
             activation ? qb_phase_names[QB_PHASE_ACTIVATION] : "");
}

/* What the scheme takes more than full precision in a phase; i = QB_PHASE_COUNT: in the gaps, which
 * are too uncertain on a GPU. */
static double more_ms(const pass *p, size_t i)
{
    if (i == QB_PHASE_COUNT) return is_on_gpu(p) ? 0 : p->run->gaps_ms - p->full->gaps_ms;
    if (i == QB_PHASE_GEMM) return products_ms(p, p->run) - products_ms(p, p->full);
    if (is_fused_in_one(p, (qb_phase)i)) return 0;
    return p->run->phases[i].ms - p->full->phases[i].ms;
}

/* The whole difference in a sentence: who lost and who gained most. */
static double check_difference(const pass *p, char *text, bool slower)
{
    if (!p->full) return -1;
    double ratio = p->run->ms / p->full->ms, more[QB_PHASE_COUNT + 1];
    const char *names[QB_PHASE_COUNT + 1];
    char products[64];
    if (slower ? !(ratio > 1.02) : !(ratio < 0.98)) return -1;
    size_t lost = 0, gained = 0;
    name_products(p, products);
    for (size_t i = 0; i <= QB_PHASE_COUNT; i++) {
        more[i] = more_ms(p, i);
        names[i] = i == QB_PHASE_GEMM ? products : i < QB_PHASE_COUNT ? qb_phase_names[i] : "gaps";
        if (more[i] > more[lost]) lost = i;
        if (more[i] < more[gained]) gained = i;
    }
    say(text, "%.2f times %s than full precision (%.3f ms against %.3f); ",
        slower ? ratio : 1 / ratio, slower ? "slower" : "faster", p->run->ms, p->full->ms);
    const double least_ms = 0.005 * p->full->ms; /* less is noise */
    bool gains = more[gained]<-least_ms, loses = more[lost]> least_ms;
    size_t n = strlen(text);
    if (gains)
        n += (size_t)snprintf(text + n, QB_FINDING_BYTES - n, "it gains most in %s (%+.3f ms)%s",
                              names[gained], more[gained], loses ? " and " : "");
    if (loses)
        snprintf(text + n, QB_FINDING_BYTES - n, "%sloses most in %s (%+.3f ms)",
                 gains ? "" : "it ", names[lost], more[lost]);
    if (!gains && !loses) snprintf(text + n, QB_FINDING_BYTES - n, "a little in every phase");
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
    const char *help, *help_on_gpu; /* help_on_gpu: NULL = the same */
} rules[] = {
    {"slower than full", check_slower,
        "see the phase that loses most; --sweep finds the batch from which on the scheme wins",
        NULL},
    {"faster than full", check_faster,
        "the other findings of this pass say what keeps it from more", NULL},
    {"launch-bound", check_launch,
        "more sequences at once (--batch), a larger model, fewer threads",
        "more sequences at once (--batch), or a larger model"},
    {"bandwidth-bound", check_bandwidth,
        "fewer bytes a weight (8 or 4 bits, --quantize-head), or more sequences for each reading",
        NULL},
    {"compute-bound", check_compute,
        "a scheme whose products are faster here (see peaks), or more threads",
        "a scheme whose products are faster here (see peaks)"},
    {"too few rows", check_rows,
        "a larger --batch; below it only the size of the codes counts, and 4 bits win", NULL},
    {"quantise cost", check_quantise,
        "static scales (--act-scale static); where a tensor has one scale, one a token", NULL},
    {"requantise synchronisation", check_requantise,
        "a scheme without output quantisation (fine, moderate), or static scales", NULL},
    {"attention-bound", check_attention,
        "a shorter context, or fewer key heads; quantising weights does not touch it", NULL},
    {"head-bound", check_head,
        "--quantize-head, or a smaller vocabulary", NULL},
};
/* clang-format on */

static size_t judge_run(const pass *p, int operation, qb_finding *out, size_t n, size_t most)
{
    for (size_t i = 0; i < QB_COUNT(rules) && n < most; i++) {
        qb_finding f = {.rule = rules[i].name,
                        .operation = qb_profile_operation_names[operation],
                        .of_full = !p->full,
                        .help = is_on_gpu(p) && rules[i].help_on_gpu ? rules[i].help_on_gpu
                                                                     : rules[i].help};
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
