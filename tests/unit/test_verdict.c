/* tests/unit/test_verdict.c - the rules on passes that were made so that their cause is known, and
 * the crossover of a sweep. */
#include "support.h"

#include "report/verdict.h"

#include <math.h>
#include <string.h>

/* A pass of 10 ms that no rule has anything to say of. */
static qb_profile_run healthy(const char *scheme)
{
    qb_profile_run run = {
        .measured = true, .ms = 10, .gaps_ms = 0.2, .roof_ms = 4, .covered_ms = 9.8};
    snprintf(run.scheme, sizeof run.scheme, "%s", scheme);
    run.phases[QB_PHASE_GEMM] = (qb_profile_part){.ms = 6,
                                                  .calls = 40,
                                                  .bytes = 1e7,
                                                  .ops = 1e9,
                                                  .memory_ms = 2,
                                                  .compute_ms = 2.5,
                                                  .bound_ms = 2.5};
    run.phases[QB_PHASE_NORM] = (qb_profile_part){.ms = 1.3, .calls = 20};
    run.phases[QB_PHASE_ATTENTION] = (qb_profile_part){.ms = 1.5, .calls = 10};
    run.phases[QB_PHASE_HEAD] = (qb_profile_part){.ms = 1, .calls = 1, .bytes = 1e6};
    return run;
}

static qb_profile both_healthy(void)
{
    qb_profile p = {.batch = 1};
    p.operations[QB_PROFILE_DECODE] = (qb_profile_operation){
        .measured = true, .rows = 1, .full = healthy("full"), .scheme = healthy("fine")};
    return p;
}

static const qb_finding *find(const qb_profile *p, const char *rule, bool of_full)
{
    static qb_finding found[QB_PROFILE_MAX_FINDINGS];
    size_t n = qb_verdict_judge(p, QB_PROFILE_DECODE, found, QB_PROFILE_MAX_FINDINGS);
    for (size_t i = 0; i < n; i++)
        if (!strcmp(found[i].rule, rule) && found[i].of_full == of_full) return &found[i];
    return NULL;
}

static void nothing_is_said_of_a_healthy_pass(void **state)
{
    (void)state;
    qb_finding found[QB_PROFILE_MAX_FINDINGS];
    qb_profile p = both_healthy();
    assert_int_equal(qb_verdict_judge(&p, QB_PROFILE_DECODE, found, QB_PROFILE_MAX_FINDINGS), 0);
    assert_int_equal(qb_verdict_judge(&p, QB_PROFILE_PREFILL, found, QB_PROFILE_MAX_FINDINGS), 0);
}

/* Each cause alone: its rule speaks, of that engine, with its numbers; nobody else does. */
typedef struct cause {
    const char *rule;
    bool of_full;
    void (*make)(qb_profile_run *run);
    const char *says;
} cause;

static void make_gaps(qb_profile_run *r)
{
    r->gaps_ms = 4;
}

static void make_short_calls(qb_profile_run *r)
{
    r->phases[QB_PHASE_NORM].calls = 3000;
    r->roof_ms = 1;
}

static void make_bandwidth(qb_profile_run *r)
{
    r->phases[QB_PHASE_GEMM].memory_ms = r->phases[QB_PHASE_GEMM].bound_ms = 5.5;
    r->phases[QB_PHASE_GEMM].compute_ms = 4;
}

static void make_compute(qb_profile_run *r)
{
    r->phases[QB_PHASE_GEMM].compute_ms = r->phases[QB_PHASE_GEMM].bound_ms = 5.5;
}

static void make_few_rows(qb_profile_run *r)
{
    r->phases[QB_PHASE_GEMM].compute_ms = 0.05;
}

static void make_quantise(qb_profile_run *r)
{
    r->phases[QB_PHASE_QUANTISE] = (qb_profile_part){.ms = 1.25, .calls = 40};
}

static void make_slow_norm(qb_profile_run *r)
{
    r->phases[QB_PHASE_NORM].ms = 2.5;
}

static void make_requantise(qb_profile_run *r)
{
    r->phases[QB_PHASE_REQUANTISE] = (qb_profile_part){.ms = 0.5, .calls = 40};
}

static void make_attention(qb_profile_run *r)
{
    r->phases[QB_PHASE_ATTENTION].ms = 4.5;
}

static void make_head(qb_profile_run *r)
{
    r->phases[QB_PHASE_HEAD].ms = 4;
}

static void make_slower(qb_profile_run *r)
{
    r->ms = 11;
    r->phases[QB_PHASE_ACTIVATION].ms = 0.75;
    r->phases[QB_PHASE_GEMM].ms = 5.9;
}

static void make_faster(qb_profile_run *r)
{
    r->ms = 8;
    r->phases[QB_PHASE_GEMM].ms = 4.5;
}

static void each_cause_is_found_alone(void **state)
{
    (void)state;
    static const cause causes[] = {
        {"launch-bound", false, make_gaps, "40 % of the pass lies between"},
        {"launch-bound", true, make_gaps, "40 % of the pass lies between"},
        {"launch-bound", false, make_short_calls, "3051 steps a pass of 3.2 us"},
        {"bandwidth-bound", true, make_bandwidth, "memory bandwidth"},
        {"bandwidth-bound", false, make_bandwidth, "70 % of the pass and move 11 MB at 1.6 GB/s"},
        {"compute-bound", true, make_compute, "70 % of the pass at 143 Gop/s"},
        {"too few rows", false, make_few_rows, "from about 40 rows on"},
        {"quantise cost", false, make_quantise, "1.250 ms, 12 % of the pass"},
        {"quantise cost", false, make_slow_norm, "1.200 ms, 12 % of the pass"},
        {"requantise synchronisation", false, make_requantise, "0.500 ms, 5 % of the pass"},
        {"attention-bound", true, make_attention, "4.500 ms, 45 % of the pass"},
        {"head-bound", false, make_head, "4.000 ms, 40 % of the pass"},
        {"slower than full", false, make_slower,
         "gains most in gemm (-0.100 ms) and loses most in activation (+0.750 ms)"},
        {"faster than full", false, make_faster, "1.25 times faster than"},
    };
    for (size_t i = 0; i < QB_COUNT(causes); i++) {
        qb_profile p = both_healthy();
        qb_profile_operation *op = &p.operations[QB_PROFILE_DECODE];
        causes[i].make(causes[i].of_full ? &op->full : &op->scheme);
        qb_finding all[QB_PROFILE_MAX_FINDINGS];
        size_t n = qb_verdict_judge(&p, QB_PROFILE_DECODE, all, QB_PROFILE_MAX_FINDINGS);
        const qb_finding *f = find(&p, causes[i].rule, causes[i].of_full);
        if (!f) fail_msg("%s: not found", causes[i].rule);
        if (!strstr(f->text, causes[i].says)) fail_msg("%s: %s", causes[i].rule, f->text);
        if (n != 1) fail_msg("%s: %zu findings, also %s", causes[i].rule, n, all[n - 1].rule);
        assert_true(f->weight > 0 && f->help && strlen(f->text) < QB_FINDING_BYTES - 1);
    }
}

static void rules_of_schemes_do_not_judge_full_precision(void **state)
{
    (void)state;
    qb_profile p = both_healthy();
    make_few_rows(&p.operations[QB_PROFILE_DECODE].full);
    make_quantise(&p.operations[QB_PROFILE_DECODE].full);
    assert_null(find(&p, "too few rows", true));
    assert_null(find(&p, "quantise cost", true));
    p.operations[QB_PROFILE_DECODE].scheme.measured = false; /* full precision alone */
    make_gaps(&p.operations[QB_PROFILE_DECODE].full);
    assert_non_null(find(&p, "launch-bound", true));
}

static void findings_come_by_weight(void **state)
{
    (void)state;
    qb_profile p = both_healthy();
    qb_profile_run *run = &p.operations[QB_PROFILE_DECODE].scheme;
    make_requantise(run);
    make_quantise(run);
    make_attention(run);
    qb_finding found[QB_PROFILE_MAX_FINDINGS];
    size_t n = qb_verdict_judge(&p, QB_PROFILE_DECODE, found, QB_PROFILE_MAX_FINDINGS);
    assert_int_equal(n, 3);
    assert_string_equal(found[0].rule, "attention-bound");
    assert_string_equal(found[2].rule, "requantise synchronisation");
    assert_int_equal(qb_verdict_judge(&p, QB_PROFILE_DECODE, found, 2), 2);
}

static void crossover_is_where_all_larger_batches_win(void **state)
{
    (void)state;
    qb_sweep_row rows[6] = {{0}};
    static const double decode[] = {9, 11, 9, 12, 13, 7};
    qb_profile p = {.sweep = rows, .n_sweep = 6};
    for (size_t i = 0; i < 6; i++) {
        rows[i] = (qb_sweep_row){.batch = (size_t)1 << i, .context = 64};
        rows[i].full_tok_per_s[QB_PROFILE_DECODE] = 10;
        rows[i].tok_per_s[QB_PROFILE_DECODE] = decode[i];
    }
    rows[5].skipped = "too long";
    assert_int_equal(qb_sweep_crossover(&p, QB_PROFILE_DECODE, 64), 8);
    assert_int_equal(qb_sweep_crossover(&p, QB_PROFILE_DECODE, 128), 0);
    rows[5].skipped = NULL;
    assert_int_equal(qb_sweep_crossover(&p, QB_PROFILE_DECODE, 64), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(nothing_is_said_of_a_healthy_pass),
        cmocka_unit_test(each_cause_is_found_alone),
        cmocka_unit_test(rules_of_schemes_do_not_judge_full_precision),
        cmocka_unit_test(findings_come_by_weight),
        cmocka_unit_test(crossover_is_where_all_larger_batches_win),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
