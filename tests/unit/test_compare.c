/* tests/unit/test_compare.c - comparisons and the gate on records whose truth is known: equal ones,
 * injected regressions, 1,000 pairs of the same machine and model, and what is refused. */
#include "support.h"

#include "core/memory.h"
#include "core/rng.h"
#include "report/gate.h"
#include "report/read_json.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { N_WINDOWS = 24, N_SAMPLES = 40, TOKENS = 200 };

static const qb_compare_options default_options = {
    .margin_ppl = 0.001, .margin_speed = 0.01, .seed = 42};

/* ---- records ---- */

static double noise(uint64_t seed, size_t i)
{
    float x;
    qb_rng_normal_f32(seed, QB_STREAM_TEST, i, 1, 1.0f, &x);
    return (double)x;
}

static void set_windows(qb_result *r, double cost, uint64_t seed)
{
    qb_result_windows *w = &r->quality.windows;
    qb_reals *const lists[] = {&w->n, &w->nll, &w->nll_full, &w->kl, &w->agree};
    for (size_t i = 0; i < QB_COUNT(lists); i++) QB_CHECK_OK(qb_reals_resize(lists[i], N_WINDOWS));
    for (size_t i = 0; i < N_WINDOWS; i++) {
        double full = 3 + 0.3 * noise(1, i); /* hard windows are hard for every scheme */
        w->n.items[i] = TOKENS;
        w->nll_full.items[i] = TOKENS * full;
        w->nll.items[i] = TOKENS * (full + cost + 0.002 * noise(seed, i));
        w->kl.items[i] = TOKENS * (0.004 + 0.0005 * noise(seed + 1, i));
        w->agree.items[i] = rint(TOKENS * (0.97 + 0.005 * noise(seed + 2, i)));
    }
}

/* The figures that a run would make of the windows and samples. */
static void set_figures(qb_result *r)
{
    const qb_result_windows *w = &r->quality.windows;
    double n = qb_sum(w->n.items, w->n.n);
    r->quality.ppl = exp(qb_sum(w->nll.items, w->n.n) / n);
    r->quality.ppl_full = exp(qb_sum(w->nll_full.items, w->n.n) / n);
    r->quality.penalty = r->quality.ppl - r->quality.ppl_full;
    r->quality.kl_mean = qb_sum(w->kl.items, w->n.n) / n;
    r->quality.top1_agreement = qb_sum(w->agree.items, w->n.n) / n;
}

static void set_timing(qb_result_timing *t, double ms, double spread, uint64_t seed)
{
    QB_CHECK_OK(qb_reals_resize(&t->samples_ms, N_SAMPLES));
    double sorted[N_SAMPLES];
    for (size_t i = 0; i < N_SAMPLES; i++)
        sorted[i] = t->samples_ms.items[i] = ms * (1 + spread * noise(seed, i));
    qb_sort(sorted, N_SAMPLES);
    t->tok_per_s = 1e3 / qb_quantile(sorted, N_SAMPLES, 0.5);
    t->samples = N_SAMPLES;
}

static void add_record(qb_results *results, const char *model, const char *scheme)
{
    qb_result *r;
    QB_CHECK_OK(qb_results_add(results, &r));
    QB_CHECK_OK(qb_result_set(&r->model.name, model));
    QB_CHECK_OK(qb_result_set(&r->model.sha256, "aa"));
    QB_CHECK_OK(qb_result_set(&r->model.arch, "gpt2"));
    QB_CHECK_OK(qb_result_set(&r->text.sha256, "bb"));
    QB_CHECK_OK(qb_result_set(&r->protocol.name, "paper"));
    QB_CHECK_OK(qb_result_set(&r->scheme.name, scheme));
    QB_CHECK_OK(qb_result_set(&r->environment.device, "cpu"));
    QB_CHECK_OK(qb_result_set(&r->environment.cpu, "a processor"));
    r->model.n_layers = 2;
    r->protocol.context = 128;
    r->scheme.weight_bits = 8;
    r->memory.weights_bytes = 1000000;
    r->memory.scratch_bytes = 5000;
    set_windows(r, 0.01, 10);
    set_figures(r);
    set_timing(&r->speed.prefill, 9, 0.01, 20);
    set_timing(&r->speed.decode, 5, 0.01, 21);
    set_timing(&r->speed.full.prefill, 20, 0.01, 22);
    set_timing(&r->speed.full.decode, 12, 0.01, 23);
}

static qb_results one(void)
{
    qb_results results = {0};
    add_record(&results, "m", "coarse");
    return results;
}

/* ---- comparing ---- */

typedef struct judged {
    qb_comparison comparison;
    qb_gate gate;
} judged;

static qb_gate_limits limits_from(const char *json)
{
    qb_gate_limits limits;
    qb_gate_limits_init(&limits);
    QB_CHECK_OK(qb_gate_limits_parse(json, strlen(json), "limits", &limits));
    return limits;
}

#define USUAL                                                                                      \
    "{\"limits\": {\"max-ppl-delta\": \"0.5%\", \"max-penalty\": 0.5, \"max-kl\": 0.01, "          \
    "\"max-slowdown\": \"3%\", \"max-memory-growth\": \"2%\", \"min-top1\": \"95%\"}}"

static judged judge(const qb_results *a, const qb_results *b, const char *limits_json)
{
    judged out;
    const qb_compare_side side_a = {a, "a.json"}, side_b = {b, "b.json"};
    QB_CHECK_OK(qb_compare(&side_a, &side_b, &default_options, &out.comparison));
    qb_gate_limits limits = limits_from(limits_json);
    QB_CHECK_OK(qb_gate_judge(&out.comparison, &limits, false, &out.gate));
    qb_gate_limits_deinit(&limits);
    return out;
}

static void forget(judged *j)
{
    qb_gate_deinit(&j->gate);
    qb_comparison_deinit(&j->comparison);
}

static qb_verdict verdict(const judged *j, qb_figure_id figure)
{
    return j->comparison.pairs[0].changes[figure].verdict;
}

static bool is_broken(const judged *j, qb_figure_id figure)
{
    bool broken = false;
    for (size_t i = 0; i < j->gate.n; i++)
        broken =
            broken || (j->gate.items[i].figure == figure && j->gate.items[i].outcome == QB_BROKEN);
    return broken;
}

static void equal_records_are_the_same_and_keep_every_limit(void **state)
{
    (void)state;
    qb_results a = one(), b = one();
    judged j = judge(&a, &b, USUAL);
    for (size_t i = 0; i <= QB_FIGURE_MEMORY; i++)
        if (i <= QB_FIGURE_TOP1 || i == QB_FIGURE_MEMORY)
            assert_int_equal(verdict(&j, (qb_figure_id)i), QB_SAME);
    assert_int_equal(j.gate.n, 7); /* the slowdown is two figures */
    assert_int_equal(j.gate.n_broken + j.gate.n_undecided, 0);
    forget(&j);
    j = judge(&a, &b, "{\"limits\": {\"max-ppl-delta\": \"0%\", \"max-memory-growth\": \"0%\"}}");
    assert_int_equal(j.gate.n_broken + j.gate.n_undecided, 0); /* equal is no growth at all */
    forget(&j);
    qb_results_deinit(&a);
    qb_results_deinit(&b);
}

/* ---- injected regressions ---- */

static void slow(qb_result *r)
{
    set_timing(&r->speed.decode, 5 * 1.05, 0.01, 31); /* 5 %, with noise of its own */
}

static void slow_machine(qb_result *r) /* for every engine alike */
{
    set_timing(&r->speed.decode, 5 * 1.2, 0.01, 32);
    set_timing(&r->speed.full.decode, 12 * 1.2, 0.01, 33);
}

static void raise_loss(qb_result *r) /* a perturbed weight: every window a little worse */
{
    set_windows(r, 0.02, 10);
    set_figures(r);
}

static void round_otherwise(qb_result *r) /* another rounding: other noise, a small cost, more KL */
{
    set_windows(r, 0.02, 40);
    for (size_t i = 0; i < N_WINDOWS; i++) r->quality.windows.kl.items[i] *= 4;
    set_figures(r);
}

static void disagree(qb_result *r)
{
    for (size_t i = 0; i < N_WINDOWS; i++) r->quality.windows.agree.items[i] -= 0.04 * TOKENS;
    set_figures(r);
}

static void grow(qb_result *r)
{
    r->memory.weights_bytes += 30000;
}

static void destroy(qb_result *r) /* NaN everywhere: null in the file */
{
    for (size_t i = 0; i < N_WINDOWS; i++) r->quality.windows.nll.items[i] = NAN;
    r->quality.ppl = r->quality.penalty = r->quality.kl_mean = NAN;
}

static void every_injected_regression_is_caught(void **state)
{
    (void)state;
    static const struct {
        void (*inject)(qb_result *);
        qb_figure_id figure;
    } cases[] = {{slow, QB_FIGURE_DECODE},        {raise_loss, QB_FIGURE_PPL},
                 {raise_loss, QB_FIGURE_PENALTY}, {round_otherwise, QB_FIGURE_PPL},
                 {round_otherwise, QB_FIGURE_KL}, {disagree, QB_FIGURE_TOP1},
                 {grow, QB_FIGURE_MEMORY},        {destroy, QB_FIGURE_PPL},
                 {destroy, QB_FIGURE_PENALTY}};
    for (size_t i = 0; i < QB_COUNT(cases); i++) {
        qb_results a = one(), b = one();
        cases[i].inject(&b.items[0]);
        judged j =
            judge(&a, &b,
                  "{\"limits\": {\"max-ppl-delta\": \"0.5%\", \"max-penalty\": 0.3, "
                  "\"max-kl\": 0.01, \"max-slowdown\": \"3%\", \"max-memory-growth\": \"2%\", "
                  "\"min-top1\": \"95%\"}}");
        if (!is_broken(&j, cases[i].figure)) fail_msg("case %zu is not caught", i);
        assert_int_equal(verdict(&j, cases[i].figure), QB_WORSE);
        forget(&j);
        j = judge(&b, &a, USUAL); /* the other way round it is an improvement, or one of a wreck */
        assert_int_not_equal(verdict(&j, cases[i].figure), QB_WORSE);
        assert_int_equal(j.gate.n_broken, 0);
        forget(&j);
        qb_results_deinit(&a);
        qb_results_deinit(&b);
    }
}

/* A slower machine is a slowdown, but not of the gain over full precision. */
static void drift_cancels_in_the_gain(void **state)
{
    (void)state;
    static const struct {
        void (*inject)(qb_result *);
        bool slowdown, loss;
    } cases[] = {{slow_machine, true, false}, {slow, true, true}};
    for (size_t i = 0; i < QB_COUNT(cases); i++) {
        qb_results a = one(), b = one();
        cases[i].inject(&b.items[0]);
        judged j =
            judge(&a, &b, "{\"limits\": {\"max-slowdown\": \"3%\", \"max-speedup-loss\": \"3%\"}}");
        assert_int_equal(is_broken(&j, QB_FIGURE_DECODE), cases[i].slowdown);
        assert_int_equal(is_broken(&j, QB_FIGURE_DECODE_GAIN), cases[i].loss);
        assert_int_equal(is_broken(&j, QB_FIGURE_PREFILL_GAIN), false);
        forget(&j);
        qb_results_deinit(&a);
        qb_results_deinit(&b);
    }
}

/* Without windows and samples: from the intervals, or not at all. */
static void older_files_are_compared_by_their_intervals(void **state)
{
    (void)state;
    qb_results a = one(), b = one();
    raise_loss(&b.items[0]);
    slow(&b.items[0]);
    qb_result *records[] = {&a.items[0], &b.items[0]};
    for (size_t i = 0; i < 2; i++) {
        qb_result *r = records[i];
        qb_reals *const lists[] = {&r->quality.windows.n,        &r->quality.windows.nll,
                                   &r->quality.windows.nll_full, &r->quality.windows.kl,
                                   &r->quality.windows.agree,    &r->speed.prefill.samples_ms,
                                   &r->speed.decode.samples_ms};
        for (size_t k = 0; k < QB_COUNT(lists); k++) QB_CHECK_OK(qb_reals_resize(lists[k], 0));
        r->protocol.windows = N_WINDOWS;
        r->quality.penalty_ci95 =
            (qb_interval){r->quality.penalty - 0.02, r->quality.penalty + 0.02};
        double rate = r->speed.decode.tok_per_s;
        r->speed.decode.tok_per_s_ci95 = (qb_interval){rate * 0.995, rate * 1.005};
    }
    judged j = judge(&a, &b, USUAL);
    assert_int_equal(verdict(&j, QB_FIGURE_PENALTY), QB_WORSE);
    assert_int_equal(verdict(&j, QB_FIGURE_DECODE), QB_WORSE);
    assert_int_equal(verdict(&j, QB_FIGURE_PPL), QB_UNSURE);
    assert_int_equal(verdict(&j, QB_FIGURE_KL), QB_SAME); /* equal to the last bit */
    assert_true(j.gate.n_undecided > 0);
    forget(&j);
    qb_results_deinit(&a);
    qb_results_deinit(&b);
}

/* ---- what belongs together ---- */

static void records_are_matched_and_strangers_named(void **state)
{
    (void)state;
    qb_results a = one(), b = {0};
    add_record(&a, "m", "fine");
    add_record(&a, "m", "gone");
    add_record(&b, "m", "new");
    add_record(&b, "m", "fine");
    add_record(&b, "m", "coarse");
    judged j = judge(&a, &b, USUAL);
    assert_int_equal(j.comparison.n, 2);
    assert_true(j.comparison.pairs[0].b == &b.items[2] && j.comparison.pairs[1].b == &b.items[1]);
    assert_string_equal(j.comparison.only_a.items[0], "m, gone");
    assert_string_equal(j.comparison.only_b.items[0], "m, new");
    forget(&j);
    QB_CHECK_OK(qb_result_set(&b.items[2].environment.cpu, "another"));
    QB_CHECK_OK(qb_result_set(&b.items[2].model.sha256, "cc"));
    j = judge(&a, &b, USUAL);
    assert_true(isnan(j.comparison.pairs[0].changes[QB_FIGURE_DECODE].change.estimate));
    assert_non_null(
        strstr(j.comparison.pairs[0].notes.items[0], "environment.cpu was a processor"));
    assert_non_null(strstr(j.comparison.pairs[0].notes.items[1], "other weights"));
    assert_int_equal(j.gate.n_undecided, 2); /* the slowdown of prefill and decode */
    assert_true(!isnan(j.comparison.pairs[0].changes[QB_FIGURE_MEMORY].change.estimate));
    forget(&j);
    QB_CHECK_OK(qb_result_set(&b.items[2].environment.device, "cuda:0"));
    j = judge(&a, &b, USUAL);
    assert_true(isnan(j.comparison.pairs[0].changes[QB_FIGURE_MEMORY].change.estimate));
    assert_non_null(strstr(j.comparison.pairs[0].notes.items[1], "memory is not compared"));
    forget(&j);
    qb_results_deinit(&a);
    qb_results_deinit(&b);
}

static void what_differs_is_refused_by_name(void **state)
{
    (void)state;
    qb_results a = one(), b = one();
    qb_result *r = &b.items[0];
    const qb_compare_side side_a = {&a, "a.json"}, side_b = {&b, "b.json"};
    qb_comparison out;
    r->protocol.context = 64;
    assert_int_equal(qb_compare(&side_a, &side_b, &default_options, &out), QB_ERR_FORMAT);
    assert_string_equal(qb_error_message(),
                        "b.json: protocol.context: found 64, expected 128 as in "
                        "a.json (model m, scheme coarse)");
    r->protocol.context = 128;
    r->model.n_layers = 3;
    assert_int_equal(qb_compare(&side_a, &side_b, &default_options, &out), QB_ERR_FORMAT);
    assert_non_null(strstr(qb_error_message(), "model.n_layers: found 3, expected 2"));
    QB_CHECK_OK(qb_result_set(&r->text.sha256, "dd"));
    r->model.n_layers = 2;
    assert_int_equal(qb_compare(&side_a, &side_b, &default_options, &out), QB_ERR_FORMAT);
    assert_non_null(strstr(qb_error_message(), "text.sha256: found dd, expected bb"));
    QB_CHECK_OK(qb_result_set(&r->text.sha256, "bb"));
    QB_CHECK_OK(qb_result_set(&r->model.name, "other"));
    assert_int_equal(qb_compare(&side_a, &side_b, &default_options, &out), QB_ERR_FORMAT);
    assert_non_null(strstr(qb_error_message(), "model.name: found other, expected m"));
    qb_compare_options across = default_options;
    across.across = true;
    r->model.n_layers = 3;
    QB_CHECK_OK(qb_compare(&side_a, &side_b, &across, &out));
    assert_int_equal(out.n, 1);
    qb_comparison_deinit(&out);
    b.n = 0;
    assert_int_equal(qb_compare(&side_a, &side_b, &default_options, &out), QB_ERR_FORMAT);
    b.n = 1;
    qb_results_deinit(&a);
    qb_results_deinit(&b);
}

/* ---- limits ---- */

static void limits_files_are_checked(void **state)
{
    (void)state;
    static const struct {
        const char *json, *message;
    } cases[] = {
        {"[]", "found no object"},
        {"{\"limit\": {}}",
         "limit: found another key or kind, expected the keys limits and schemes"},
        {"{\"limits\": []}", "limits: found no object"},
        {"{\"limits\": {\"max-kll\": 1}}",
         "found 'max-kll', expected a known one: did you mean max-kl"},
        {"{\"limits\": {\"max-kl\": \"1%\"}}", "limits.max-kl: found '1%', expected a number"},
        {"{\"limits\": {\"max-slowdown\": 3}}",
         "limits.max-slowdown: found '3', expected a percent"},
        {"{\"limits\": {\"min-top1\": \"101%\"}}", "found '101%', expected at most 100%"},
        {"{\"limits\": {\"max-kl\": -1}}", "expected a number from 0 on"},
        {"{\"limits\": {\"max-kl\": \"1x\"}}", "expected a number from 0 on"},
        {"{\"limits\": {\"max-kl\": true}}", "found neither text nor number"},
        {"{\"schemes\": {\"coarse\": {\"min-top\": \"9%\"}}}", "schemes.coarse: no such limit"},
    };
    qb_gate_limits limits;
    for (size_t i = 0; i < QB_COUNT(cases); i++) {
        qb_gate_limits_init(&limits);
        assert_int_equal(qb_gate_limits_parse(cases[i].json, strlen(cases[i].json), "f", &limits),
                         QB_ERR_FORMAT);
        if (!strstr(qb_error_message(), cases[i].message)) fail_msg("%s", qb_error_message());
        qb_gate_limits_deinit(&limits);
    }
    qb_results a = one(), b = one();
    raise_loss(&b.items[0]);
    judged j = judge(&a, &b,
                     "{\"limits\": {\"max-ppl-delta\": \"0.5%\", \"max-kl\": 0.001}, \"schemes\": "
                     "{\"coarse\": {\"max-ppl-delta\": \"5%\", \"max-kl\": null}}}");
    assert_int_equal(j.gate.n, 1); /* the scheme's own limit, and none of KL */
    assert_int_equal(j.gate.items[0].outcome, QB_KEPT);
    forget(&j);
    j = judge(&a, &b, "{\"limits\": {\"max-ppl-delta\": 0.1}}"); /* in perplexity, of about 20 */
    assert_int_equal(j.gate.n_broken, 1);
    forget(&j);
    j = judge(&a, &b, "{\"limits\": {\"max-ppl-delta\": 0.4}}");
    assert_int_equal(j.gate.n_broken, 0);
    forget(&j);
    qb_results_deinit(&a);
    qb_results_deinit(&b);
}

static void strict_takes_undecided_for_broken(void **state)
{
    (void)state;
    qb_results a = one(), b = one();
    set_timing(&a.items[0].speed.decode, 5, 0.2, 50);
    set_timing(&b.items[0].speed.decode, 5, 0.2, 51);
    const qb_compare_side side_a = {&a, "a.json"}, side_b = {&b, "b.json"};
    qb_gate_limits limits = limits_from("{\"limits\": {\"max-slowdown\": \"3%\"}}");
    for (int strict = 0; strict < 2; strict++) {
        judged j;
        QB_CHECK_OK(qb_compare(&side_a, &side_b, &default_options, &j.comparison));
        QB_CHECK_OK(qb_gate_judge(&j.comparison, &limits, strict, &j.gate));
        assert_int_equal(j.gate.n_undecided, strict ? 0 : 1);
        assert_int_equal(j.gate.n_broken, strict ? 1 : 0);
        char text[QB_JUDGEMENT_BYTES];
        assert_non_null(strstr(qb_judgement_text(&j.gate.items[1], text), "too large to decide"));
        forget(&j);
    }
    qb_gate_limits_deinit(&limits);
    qb_results_deinit(&a);
    qb_results_deinit(&b);
}

/* ---- false alarms ---- */

/* Half of the samples to each side, at random without order. */
static void halve(const qb_reals *all, uint64_t seed, qb_reals *a, qb_reals *b)
{
    double shuffled[QB_RESULT_MAX_SAMPLES];
    memcpy(shuffled, all->items, all->n * sizeof *shuffled);
    for (size_t i = all->n - 1; i > 0; i--) {
        size_t k = qb_rng_below(seed, QB_STREAM_TEST, i, i + 1);
        double swap = shuffled[i];
        shuffled[i] = shuffled[k];
        shuffled[k] = swap;
    }
    memcpy(a->items, shuffled, a->n * sizeof *shuffled);
    memcpy(b->items, shuffled + a->n, b->n * sizeof *shuffled);
}

/* The recorded samples of a busy machine (results/gate_samples.json), halved anew each time, and
 * two roundings of equal worth whose windows differ by chance. */
static size_t false_alarms(const qb_results *recorded, const char *limits_json, size_t n_pairs,
                           size_t *n_undecided)
{
    const qb_result *r = &recorded->items[0];
    qb_results a = one(), b = one();
    qb_gate_limits limits = limits_from(limits_json);
    qb_compare_options options = default_options;
    options.n_resamples = 100;
    size_t alarms = 0;
    qb_result_timing *const to[][2] = {{&a.items[0].speed.prefill, &b.items[0].speed.prefill},
                                       {&a.items[0].speed.decode, &b.items[0].speed.decode}};
    const qb_result_timing *const from[] = {&r->speed.prefill, &r->speed.decode};
    for (size_t t = 0; t < 2; t++)
        for (size_t side = 0; side < 2; side++)
            QB_CHECK_OK(qb_reals_resize(&to[t][side]->samples_ms, from[t]->samples_ms.n / 2));
    *n_undecided = 0;
    for (size_t pair = 0; pair < n_pairs; pair++) {
        for (size_t t = 0; t < 2; t++)
            halve(&from[t]->samples_ms, 2 * pair + t, &to[t][0]->samples_ms, &to[t][1]->samples_ms);
        set_windows(&a.items[0], 0.01, 1000 + 10 * pair);
        set_windows(&b.items[0], 0.01, 1005 + 10 * pair);
        set_figures(&a.items[0]);
        set_figures(&b.items[0]);
        options.seed = pair;
        const qb_compare_side side_a = {&a, "a"}, side_b = {&b, "b"};
        judged j;
        QB_CHECK_OK(qb_compare(&side_a, &side_b, &options, &j.comparison));
        QB_CHECK_OK(qb_gate_judge(&j.comparison, &limits, false, &j.gate));
        alarms += j.gate.n_broken > 0;
        *n_undecided += j.gate.n_broken == 0 && j.gate.n_undecided > 0;
        forget(&j);
    }
    qb_gate_limits_deinit(&limits);
    qb_results_deinit(&a);
    qb_results_deinit(&b);
    return alarms;
}

static void pairs_of_the_same_raise_no_alarm(void **state)
{
    (void)state;
    qb_results recorded;
    size_t undecided, boundary_undecided;
    QB_CHECK_OK(qb_results_read_json(QB_SOURCE_DIR "/results/gate_samples.json", &recorded));
    size_t usual = false_alarms(&recorded, USUAL, 1000, &undecided);
    size_t boundary = false_alarms(
        &recorded, "{\"limits\": {\"max-ppl-delta\": \"0%\", \"max-slowdown\": \"0%\"}}", 300,
        &boundary_undecided);
    qb_results_deinit(&recorded);
    printf("1,000 pairs of the same: %zu alarms, %zu undecided; with limits of 0 %%: %zu alarms of "
           "300\n",
           usual, undecided, boundary);
    assert_true(usual <= 10);    /* 1 % */
    assert_true(boundary <= 20); /* 5 % and a standard error: no change at all is the worst case */
    assert_true(boundary >= 1);
}

/* ---- writers ---- */

typedef qb_status (*gate_writer)(const qb_gate *gate, FILE *stream);

static qb_status screen(const qb_gate *gate, FILE *stream)
{
    QB_TRY(qb_comparison_write_screen(gate->comparison, false, stream));
    return qb_gate_write_screen(gate, false, stream);
}

static qb_status github(const qb_gate *gate, FILE *stream)
{
    return qb_gate_write_github(gate, "base:1,line.json", stream);
}

static char *written(gate_writer write, const qb_gate *gate)
{
    char *text;
    size_t bytes;
    FILE *stream = open_memstream(&text, &bytes);
    QB_CHECK_OK(write(gate, stream));
    assert_int_equal(fclose(stream), 0);
    return text;
}

static void every_writer_says_what_is_broken(void **state)
{
    (void)state;
    static const struct {
        gate_writer write;
        const char *needles[4];
    } cases[] = {
        {screen, {"perplexity", "WORSE", "broken     m<&>|, coarse: perplexity +1.0", "undecided"}},
        {qb_gate_write_markdown, {"## qbench gate: broken", "m<&>\\|", "| WORSE |", "| broken |"}},
        {qb_gate_write_junit,
         {"<failure message=\"m&lt;&amp;&gt;|, coarse", "failures=\"1\"", "<skipped",
          "name=\"max"}},
        {github,
         {"::error file=base%3A1%2Cline.json,title=qbench max-ppl-delta::m<&>|", "1.0", "::warning",
          "\n"}},
    };
    qb_results a = one(), b = one();
    QB_CHECK_OK(qb_result_set(&a.items[0].model.name, "m<&>|"));
    QB_CHECK_OK(qb_result_set(&b.items[0].model.name, "m<&>|"));
    QB_CHECK_OK(qb_result_set(&b.items[0].environment.cpu, "another"));
    raise_loss(&b.items[0]);
    judged j = judge(&a, &b, USUAL);
    j.gate.comparison = &j.comparison; /* it was moved */
    for (size_t i = 0; i < QB_COUNT(cases); i++) {
        char *text = written(cases[i].write, &j.gate);
        for (size_t k = 0; k < 4; k++)
            if (!strstr(text, cases[i].needles[k]))
                fail_msg("writer %zu: no '%s' in: %s", i, cases[i].needles[k], text);
        free(text);
    }
    json_t *root;
    QB_CHECK_OK(qb_gate_to_json(&j.gate, &root));
    assert_int_equal(json_array_size(json_object_get(root, "limits")), 7);
    assert_int_equal(json_array_size(json_object_get(root, "pairs")), 1);
    json_decref(root);
    forget(&j);
    qb_results_deinit(&a);
    qb_results_deinit(&b);
}

static qb_status whole_gate(const qb_results *a, const qb_results *b)
{
    const qb_compare_side side_a = {a, "a"}, side_b = {b, "b"};
    qb_compare_options options = default_options;
    options.n_resamples = 10;
    qb_comparison comparison;
    qb_gate gate;
    qb_gate_limits limits;
    qb_gate_limits_init(&limits);
    qb_status status = qb_gate_limits_parse(USUAL, strlen(USUAL), "f", &limits);
    if (status == QB_OK) status = qb_compare(&side_a, &side_b, &options, &comparison);
    if (status == QB_OK) {
        status = qb_gate_judge(&comparison, &limits, false, &gate);
        json_t *root;
        if (status == QB_OK) {
            status = qb_gate_to_json(&gate, &root);
            if (status == QB_OK) json_decref(root);
            qb_gate_deinit(&gate);
        }
        qb_comparison_deinit(&comparison);
    }
    qb_gate_limits_deinit(&limits);
    return status;
}

static void failed_allocations_come_back_clean(void **state)
{
    (void)state;
    qb_results a = one(), b = one();
    QB_CHECK_OK(qb_result_set(&b.items[0].model.sha256, "cc")); /* a note is allocated, too */
    size_t live = qb_memory_live_blocks();
    qb_status status = QB_ERR_MEMORY;
    for (size_t n = 1; status != QB_OK; n++) {
        qb_memory_fail_at(n);
        status = whole_gate(&a, &b);
        qb_memory_fail_at(0);
        assert_true(status == QB_OK || status == QB_ERR_MEMORY);
        assert_int_equal(qb_memory_live_blocks(), live);
    }
    qb_results_deinit(&a);
    qb_results_deinit(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(equal_records_are_the_same_and_keep_every_limit),
        cmocka_unit_test(every_injected_regression_is_caught),
        cmocka_unit_test(drift_cancels_in_the_gain),
        cmocka_unit_test(older_files_are_compared_by_their_intervals),
        cmocka_unit_test(records_are_matched_and_strangers_named),
        cmocka_unit_test(what_differs_is_refused_by_name),
        cmocka_unit_test(limits_files_are_checked),
        cmocka_unit_test(strict_takes_undecided_for_broken),
        cmocka_unit_test(pairs_of_the_same_raise_no_alarm),
        cmocka_unit_test(every_writer_says_what_is_broken),
        cmocka_unit_test(failed_allocations_come_back_clean),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
