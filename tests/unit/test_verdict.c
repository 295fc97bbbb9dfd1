/* tests/unit/test_verdict.c - the rules on passes that were made so that their cause is known, and
 * the crossover of a sweep. */
#include "support.h"

#include "report/format.h"
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
    r->phases[QB_PHASE_EMBEDDING] = (qb_profile_part){.ms = 3, .calls = 3000};
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
        {"launch-bound", false, make_short_calls,
         "3071 steps a pass of 4.2 us on average; up to 1.0 us of each are no work but start and "
         "end (embedding), together 31 % of the pass"},
        {"bandwidth-bound", true, make_bandwidth, "memory bandwidth"},
        {"bandwidth-bound", false, make_bandwidth,
         "70 % of the pass and move 11 MB at 1.57 GB/s, 79 %"},
        {"compute-bound", true, make_compute, "70 % of the pass at 142.9 Gop/s"},
        {"too few rows", false, make_few_rows, "from about 40 rows on"},
        {"quantise cost", false, make_quantise, "1.250 ms, 12 % of the pass"},
        {"quantise cost", false, make_slow_norm, "1.200 ms, 12 % of the pass"},
        {"requantise synchronisation", false, make_requantise, "0.500 ms, 5 % of the pass"},
        {"attention-bound", true, make_attention, "4.500 ms, 45 % of the pass"},
        {"head-bound", false, make_head, "4.000 ms, 40 % of the pass"},
        {"slower than full", false, make_slower,
         "gains most in gemm (-0.100 ms) and loses most in activation (+0.750 ms)"},
        {"faster than full", false, make_faster,
         "1.25 times faster than full precision (8.000 ms against 10.000); it gains most in gemm "
         "(-1.500 ms)"},
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

/* Full precision activates and rotates in its products: steps of their own are compared with that.
 */
static void what_one_fuses_is_compared_with_the_products(void **state)
{
    (void)state;
    qb_profile p = both_healthy();
    qb_profile_operation *op = &p.operations[QB_PROFILE_DECODE];
    op->scheme.ms = 11;
    op->scheme.phases[QB_PHASE_GEMM].ms = 4;
    op->scheme.phases[QB_PHASE_ACTIVATION] = (qb_profile_part){.ms = 2.5, .calls = 10};
    op->full.phases[QB_PHASE_POSITION] = (qb_profile_part){.ms = 0.25, .calls = 10};
    const qb_finding *f = find(&p, "slower than full", false);
    assert_non_null(strstr(f->text, "loses most in gemm with position and activation (+0.250 ms)"));
    f = find(&p, "quantise cost", false);
    assert_non_null(strstr(f->text, "2.500 ms, 23 % of the pass (2.500 of it in activations"));
    assert_non_null(strstr(f->text, "the products gain 2.250 ms"));
    op->scheme.phases[QB_PHASE_GEMM].ms = 7;
    f = find(&p, "quantise cost", false);
    assert_non_null(strstr(f->text, "the products themselves lose 0.750 ms"));
}

/* 2 ms of weights; inputs and outputs take 0.01 ms a row, operations 0.02. */
static void rows_are_counted_with_their_inputs_and_outputs(void **state)
{
    (void)state;
    qb_profile p = both_healthy();
    p.operations[QB_PROFILE_PREFILL] = p.operations[QB_PROFILE_DECODE];
    for (size_t i = 0; i < QB_PROFILE_OPERATIONS; i++) {
        qb_profile_operation *op = &p.operations[i];
        qb_profile_part *gemm = &op->scheme.phases[QB_PHASE_GEMM];
        op->rows = i == QB_PROFILE_DECODE ? 1 : 1000;
        gemm->memory_ms = 2 + 0.01 * (double)op->rows;
        gemm->compute_ms = 0.02 * (double)op->rows;
    }
    assert_non_null(strstr(find(&p, "too few rows", false)->text, "from about 200 rows on"));
    p.operations[QB_PROFILE_DECODE].scheme.phases[QB_PHASE_GEMM].compute_ms = 0.005;
    assert_non_null(strstr(find(&p, "too few rows", false)->text, "take longer still"));
    p.operations[QB_PROFILE_DECODE].scheme.phases[QB_PHASE_GEMM].ms = 7; /* held by neither */
    assert_null(find(&p, "too few rows", false));
}

static void speeds_of_gpus_are_short(void **state)
{
    (void)state;
    char t[QB_FORMAT_BYTES];
    assert_string_equal(qb_profile_format_rate(91.23, t), "91.23 Gop/s");
    assert_string_equal(qb_profile_format_rate(50543.9, t), "50,544 Gop/s");
    assert_string_equal(qb_profile_format_rate(1657328.65, t), "1657 Top/s");
}

static void help_is_for_the_device(void **state)
{
    (void)state;
    qb_profile p = both_healthy();
    make_gaps(&p.operations[QB_PROFILE_DECODE].full);
    strcpy(p.device, "cpu");
    assert_non_null(strstr(find(&p, "launch-bound", true)->help, "threads"));
    strcpy(p.device, "cuda");
    assert_null(strstr(find(&p, "launch-bound", true)->help, "threads"));
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
    static const double decode[] = {9, 11, 10.05, 12, 13, 7}; /* half a percent is noise */
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
        cmocka_unit_test(what_one_fuses_is_compared_with_the_products),
        cmocka_unit_test(rows_are_counted_with_their_inputs_and_outputs),
        cmocka_unit_test(speeds_of_gpus_are_short),
        cmocka_unit_test(help_is_for_the_device),
        cmocka_unit_test(rules_of_schemes_do_not_judge_full_precision),
        cmocka_unit_test(findings_come_by_weight),
        cmocka_unit_test(crossover_is_where_all_larger_batches_win),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
