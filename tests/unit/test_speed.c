/* tests/unit/test_speed.c - timings: their summary, the number of samples, short contexts, ends. */
#include "support.h"
#include "tiny_model.h"

#include "core/interrupt.h"
#include "core/memory.h"
#include "infer/speed.h"

#include <math.h>

static void summary_of_made_up_times(void **state)
{
    (void)state;
    double ms[11];
    for (size_t i = 0; i < 11; i++) ms[i] = (double)(11 - i); /* 1..11, not sorted */
    qb_samples samples = {ms, 11, 11, 512};
    qb_timing t;
    QB_CHECK_OK(qb_samples_summarize(&samples, &t));
    assert_true(t.p50_ms == 6 && t.p90_ms == 10 && fabs(t.p99_ms - 10.9) < 1e-12);
    assert_true(fabs(t.tok_per_s - 512e3 / 6) < 1e-6);
    assert_true(fabs(t.tok_per_s_ci95.low - 512e3 / 10) < 1e-6); /* ranks 2 and 10 of 11 */
    assert_true(fabs(t.tok_per_s_ci95.high - 512e3 / 2) < 1e-6);
    assert_true(ms[0] == 11);
    samples.n = 3;
    QB_CHECK_OK(qb_samples_summarize(&samples, &t));
    assert_true(isnan(t.tok_per_s_ci95.low) && isinf(qb_timing_half_width(&t)));
    samples.n = 0;
    QB_CHECK_OK(qb_samples_summarize(&samples, &t));
    assert_true(isnan(t.tok_per_s));
}

static void contexts_fit_the_model(void **state)
{
    (void)state;
    qb_config config = qb_test_tiny_config("gpt2");
    qb_speed_plan plan = {0};
    config.context = 1024;
    qb_speed_plan_contexts(&config, 512, &plan);
    assert_int_equal(plan.context, 512);
    assert_int_equal(plan.decode_from, 256);
    assert_int_equal(plan.decode_steps, 128);
    assert_int_equal(qb_speed_cache_context(&plan), 512);
    config.context = 24;
    qb_speed_plan_contexts(&config, 512, &plan);
    assert_int_equal(plan.context, 24);
    assert_int_equal(plan.decode_from, 12);
    assert_int_equal(plan.decode_steps, 12);
    config.context = 1;
    qb_speed_plan_contexts(&config, 512, &plan);
    assert_true(plan.context == 1 && plan.decode_steps == 0 && plan.decode_from == 1);
}

static void engines_are_timed_in_turns(void **state)
{
    (void)state;
    static const size_t contexts[] = {64, 4, 1};
    for (size_t i = 0; i < QB_COUNT(contexts); i++) {
        qb_config config = qb_test_tiny_config("gpt2");
        config.context = contexts[i];
        qb_model *model = qb_test_tiny_model(&config, 5);
        qb_speed_plan plan = {.batch = 2, .budget_s = 0.2, .label = "test", .n_engines = 2};
        qb_speed_plan_contexts(&config, 512, &plan);
        size_t cache_context = qb_speed_cache_context(&plan);
        qb_backbone *backbone;
        qb_backbone_options wide = {
            .max_tokens = 2 * cache_context, .logit_slots = 1, .logit_rows = 2};
        QB_CHECK_OK(qb_backbone_create(model, &wide, &backbone));
        qb_engine *engines[2];
        qb_engine_options o = {.cache_batch = 2, .cache_context = cache_context};
        for (size_t e = 0; e < 2; e++) {
            o.scheme = &qb_schemes[e ? 2 : 0];
            QB_CHECK_OK(qb_engine_create(backbone, &o, &engines[e]));
        }
        plan.engines = engines;
        size_t blocks = qb_memory_live_blocks();
        qb_speed speed;
        QB_CHECK_OK(qb_speed_measure(&plan, &speed));
        const qb_speed_result *a = &speed.engines[0], *b = &speed.engines[1];
        assert_true(a->prefill.n >= 10 && a->prefill.n == b->prefill.n);
        assert_true(a->decode.n == b->decode.n);
        if (contexts[i] > 1) assert_true(a->decode.n >= 10);
        assert_true(a->prefill.tokens_per_sample == (double)(2 * plan.context));
        assert_true(a->decode.tokens_per_sample == 2);
        for (size_t k = 0; k < a->prefill.n; k++) assert_true(a->prefill.ms[k] > 0);
        qb_speed_deinit(&speed);
        qb_interrupt_set(true);
        assert_int_equal(qb_speed_measure(&plan, &speed), QB_ERR_INTERRUPTED);
        qb_interrupt_set(false);
        for (size_t n = 1; n <= 6; n++) {
            qb_memory_fail_at(n);
            assert_int_equal(qb_speed_measure(&plan, &speed), QB_ERR_MEMORY);
            qb_memory_fail_at(0);
            assert_int_equal(qb_memory_live_blocks(), blocks);
        }
        for (size_t e = 0; e < 2; e++) qb_engine_destroy(engines[e]);
        qb_backbone_destroy(backbone);
        qb_model_close(model);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(summary_of_made_up_times),
        cmocka_unit_test(contexts_fit_the_model),
        cmocka_unit_test(engines_are_timed_in_turns),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
