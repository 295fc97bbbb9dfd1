/* tests/unit/test_profiling.c - the timeline of an engine: same logits with it as without, spans
 * that lie in order, shares, slices, threads; a profile of rounds, and its ends. */
#include "rig.h"
#include "support.h"

#include "core/clock.h"
#include "core/interrupt.h"
#include "core/memory.h"
#include "infer/profiling.h"

#include <math.h>
#include <string.h>

enum { BATCH = 2, TOKENS = 9, CONTEXT = 16 };

typedef struct rig {
    qb_test_rig base;
    qb_engine *engine;
    qb_timeline *timeline;
} rig;

static rig rig_create(const qb_config *config, const char *scheme)
{
    rig r = {.base = qb_test_rig_create(config, &(qb_test_rig_options){.batch = BATCH,
                                                                       .n_tokens = CONTEXT,
                                                                       .logit_slots = 1,
                                                                       .logit_rows = BATCH})};
    qb_engine_options o = {.scheme = qb_scheme_find(scheme),
                           .calibration = r.base.calibration,
                           .cache_batch = BATCH,
                           .cache_context = CONTEXT};
    QB_CHECK_OK(qb_engine_create(r.base.cpu, &o, &r.engine));
    QB_CHECK_OK(qb_timeline_create(r.base.cpu, &r.timeline));
    return r;
}

static void rig_destroy(rig *r)
{
    qb_timeline_destroy(r->timeline);
    qb_engine_destroy(r->engine);
    qb_test_rig_destroy(&r->base);
}

/* A prefill, two steps, and the logits of both, which are (3, BATCH, V). */
static float *run(rig *r)
{
    size_t vocab = r->base.model->config.vocab, n = BATCH * vocab;
    float *logits;
    QB_CHECK_OK(QB_NEW(&logits, 3 * n, "logits"));
    QB_CHECK_OK(qb_engine_prefill_last(r->engine, r->base.tokens, BATCH, TOKENS));
    QB_CHECK_OK(qb_engine_logits(r->engine, 0, BATCH, logits));
    for (size_t i = 1; i < 3; i++) {
        QB_CHECK_OK(qb_engine_decode_step(r->engine, r->base.tokens + i * BATCH));
        QB_CHECK_OK(qb_engine_logits(r->engine, 0, BATCH, logits + i * n));
    }
    return logits;
}

static void check_spans(const rig *r, double wall_us)
{
    const qb_timespan *spans;
    size_t n, n_layers = r->base.model->config.n_layers, heads = 0, gemms = 0;
    double at = 0;
    QB_CHECK_OK(qb_timeline_read(r->timeline, &spans, &n));
    for (size_t i = 0; i < n; i++) {
        assert_true(spans[i].begin_us >= at - 1e-6 && spans[i].end_us >= spans[i].begin_us);
        assert_non_null(spans[i].work.kernel);
        assert_true(spans[i].work.layer < (int)n_layers);
        heads += spans[i].work.phase == QB_PHASE_HEAD;
        gemms += spans[i].work.phase == QB_PHASE_GEMM;
        if (spans[i].work.phase == QB_PHASE_GEMM)
            assert_true(spans[i].work.ops > 0 && spans[i].work.bytes > 0);
        at = spans[i].end_us;
    }
    assert_int_equal(heads, 1);
    assert_true(gemms >= 2 * n_layers && at <= wall_us);
}

static void check_config(const qb_config *config, const char *what)
{
    static const char *const schemes[] = {"full", "fine", "coarse", "zeropoint4"};
    for (size_t s = 0; s < QB_COUNT(schemes); s++) {
        rig r = rig_create(config, schemes[s]);
        size_t bytes = 3 * BATCH * config->vocab * sizeof(float);
        float *want = run(&r);
        qb_engine_set_timeline(r.engine, r.timeline);
        int64_t start = qb_now_ns();
        float *got = run(&r);
        check_spans(&r, 1e-3 * (double)(qb_now_ns() - start));
        if (memcmp(want, got, bytes)) fail_msg("%s, %s: other logits", what, schemes[s]);
        size_t blocks = qb_memory_live_blocks();
        qb_memory_fail_at(1); /* a pass with a timeline allocates nothing */
        QB_CHECK_OK(qb_engine_prefill_last(r.engine, r.base.tokens, BATCH, TOKENS));
        qb_memory_fail_at(0);
        assert_int_equal(qb_memory_live_blocks(), blocks);
        qb_free(want);
        qb_free(got);
        rig_destroy(&r);
    }
}

static void logits_are_the_same_with_a_timeline(void **state)
{
    (void)state;
    qb_test_each_tiny_config(check_config);
}

/* Which phases a scheme has: of coarse all, of full no codes. */
static void phases_are_those_of_the_scheme(void **state)
{
    (void)state;
    static const char *const schemes[] = {"full", "fine", "coarse"};
    for (size_t s = 0; s < QB_COUNT(schemes); s++) {
        qb_config config = qb_test_tiny_config("gpt2");
        rig r = rig_create(&config, schemes[s]);
        const qb_timespan *spans;
        size_t n, count[QB_PHASE_COUNT] = {0};
        qb_engine_set_timeline(r.engine, r.timeline);
        QB_CHECK_OK(qb_engine_prefill(r.engine, r.base.tokens, BATCH, TOKENS));
        QB_CHECK_OK(qb_timeline_read(r.timeline, &spans, &n));
        for (size_t i = 0; i < n; i++) count[spans[i].work.phase]++;
        size_t layers = config.n_layers;
        assert_int_equal(count[QB_PHASE_EMBEDDING], 1);
        assert_int_equal(count[QB_PHASE_NORM], 2 * layers + 1);
        assert_int_equal(count[QB_PHASE_GEMM], 4 * layers);
        assert_int_equal(count[QB_PHASE_QUANTISE] > 0, s > 0);
        assert_int_equal(count[QB_PHASE_REQUANTISE], s == 2 ? 4 * layers : 0);
        assert_int_equal(count[QB_PHASE_HEAD], 0); /* no logits were asked for */
        rig_destroy(&r);
    }
}

static void slices_share_out_the_layers(void **state)
{
    (void)state;
    qb_config config = qb_test_tiny_config("gpt2");
    rig r = rig_create(&config, "fine");
    size_t sum = 0, all, n;
    const qb_timespan *spans;
    qb_engine_set_timeline(r.engine, r.timeline);
    QB_CHECK_OK(qb_engine_prefill(r.engine, r.base.tokens, BATCH, TOKENS));
    QB_CHECK_OK(qb_timeline_read(r.timeline, &spans, &all));
    for (size_t slice = 0; slice < 2; slice++) {
        qb_timeline_set_slice(r.timeline, slice, 2);
        QB_CHECK_OK(qb_engine_prefill(r.engine, r.base.tokens, BATCH, TOKENS));
        QB_CHECK_OK(qb_timeline_read(r.timeline, &spans, &n));
        for (size_t i = 0; i < n; i++) {
            int layer = spans[i].work.layer;
            assert_true(layer < 0 ? slice == 0 : (size_t)layer % 2 == slice);
        }
        sum += n;
    }
    assert_int_equal(sum, all);
    rig_destroy(&r);
}

static void spin(int64_t ns)
{
    for (int64_t start = qb_now_ns(); qb_now_ns() - start < ns;) {
    }
}

/* Twice as long for the second: also where another process came between, since both clocks saw it.
 */
static void a_section_is_shared_by_what_was_counted(void **state)
{
    (void)state;
    qb_config config = qb_test_tiny_config("gpt2");
    rig r = rig_create(&config, "fine");
    const qb_work works[] = {{.phase = QB_PHASE_NORM}, {.phase = QB_PHASE_QUANTISE}};
    const qb_timespan *spans;
    size_t n;
    qb_lap lap;
    size_t version = qb_timeline_version(r.timeline);
    qb__timeline_begin(r.timeline); /* what a graph recorded before is gone, */
    assert_true(qb_timeline_version(r.timeline) != version);
    version = qb_timeline_version(r.timeline);
    qb__timeline_restart(r.timeline, 0, 0); /* but not for one that is run again */
    assert_true(qb_timeline_version(r.timeline) == version);
    qb__timeline_open(r.timeline, 0, true);
    int64_t at[3];
    qb_lap_begin(&lap, r.timeline);
    at[0] = qb_now_ns();
    spin(400000);
    qb_lap_mark(&lap, QB_PHASE_NORM);
    at[1] = qb_now_ns();
    spin(800000);
    qb_lap_mark(&lap, QB_PHASE_QUANTISE);
    at[2] = qb_now_ns();
    qb_lap_end(&lap);
    qb__timeline_close(r.timeline, works, 2);
    qb__timeline_open(r.timeline, 1, false); /* one work takes all, lap or not */
    qb_lap_begin(&lap, r.timeline);
    qb_lap_mark(&lap, QB_PHASE_QUANTISE);
    qb_lap_end(&lap);
    qb__timeline_close(r.timeline, works, 1);
    QB_CHECK_OK(qb_timeline_read(r.timeline, &spans, &n));
    assert_int_equal(n, 3);
    assert_true(spans[0].is_share && spans[1].is_share && !spans[2].is_share);
    double first = spans[0].end_us - spans[0].begin_us, both = spans[1].end_us - spans[0].begin_us;
    double want = (double)(at[1] - at[0]) / (double)(at[2] - at[0]);
    assert_true(fabs(first / both - want) < 0.02 && both > 1200);
    assert_true(spans[1].begin_us == spans[0].end_us && spans[2].begin_us >= spans[1].end_us);
    rig_destroy(&r);
}

static void a_profile_adds_up(void **state)
{
    (void)state;
    for (int decode = 0; decode < 2; decode++) {
        qb_config config = qb_test_tiny_config("llama");
        rig r = rig_create(&config, "coarse");
        qb_profiling_plan plan = {.decode = decode,
                                  .batch = BATCH,
                                  .context = TOKENS,
                                  .decode_steps = CONTEXT - TOKENS,
                                  .with_timeline = true,
                                  .engines = &r.engine,
                                  .n_engines = 1,
                                  .label = "test"};
        qb_profiled seen;
        QB_CHECK_OK(qb_profiling_run(&plan, &seen));
        assert_true(seen.undisturbed.n >= 3 && seen.undisturbed.n == seen.instrumented.n);
        assert_true(seen.undisturbed.tokens_per_sample == (decode ? BATCH : BATCH * TOKENS));
        assert_true(seen.n_threads == 2 && seen.n_spans > 0);
        for (size_t i = 0; i < seen.n_spans; i++)
            assert_true(seen.spans[i].n >= 3 && seen.spans[i].typical_us >= 0);
        qb_profiled_deinit(&seen);
        size_t blocks = qb_memory_live_blocks();
        qb_interrupt_set(true);
        assert_int_equal(qb_profiling_run(&plan, &seen), QB_ERR_INTERRUPTED);
        qb_interrupt_set(false);
        for (size_t n = 1; n <= 12; n++) {
            qb_memory_fail_at(n);
            assert_int_equal(qb_profiling_run(&plan, &seen), QB_ERR_MEMORY);
            qb_memory_fail_at(0);
            assert_int_equal(qb_memory_live_blocks(), blocks);
        }
        rig_destroy(&r);
    }
}

/* Two layers timed in turn, each stamp of which adds 2 us to a pass of 100: the phases then are
 * what an undisturbed pass takes. */
static void what_stamps_add_is_taken_off(void **state)
{
    (void)state;
    for (int on_host = 0; on_host < 2; on_host++) {
        enum { ROUNDS = 9, SPANS = 4 };
        double us[SPANS][ROUNDS], sum = 0;
        qb_profiled_span spans[SPANS];
        qb_profiled p = {.spans = spans, .n_spans = SPANS, .n_slices = 2, .n_stamps = SPANS};
        for (size_t i = 0; i < SPANS; i++) {
            spans[i] = (qb_profiled_span){.us = us[i], .n = ROUNDS};
            spans[i].span.work.layer = i < 2 ? 0 : 1;
            for (size_t n = 0; n < ROUNDS; n++) us[i][n] = 25 + 2;
        }
        for (size_t n = 0; n < 2 * ROUNDS; n++) { /* each pass has the stamps of one layer */
            QB_CHECK_OK(qb_samples_add(&p.undisturbed, 0.1));
            QB_CHECK_OK(qb_samples_add(&p.instrumented, n == 3 ? 7 : 0.104));
        }
        QB_CHECK_OK(qb__profiled_settle(&p, on_host));
        for (size_t i = 0; i < SPANS; i++) sum += spans[i].typical_us;
        assert_true(fabs(p.overhead - 0.04) < 1e-9);
        assert_true(fabs(p.stamp_us - (on_host ? 0 : 2)) < 1e-9);
        assert_true(fabs(sum - (on_host ? 108 : 100)) < 1e-9);
        qb_samples_deinit(&p.undisturbed);
        qb_samples_deinit(&p.instrumented);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(logits_are_the_same_with_a_timeline),
        cmocka_unit_test(phases_are_those_of_the_scheme),
        cmocka_unit_test(slices_share_out_the_layers),
        cmocka_unit_test(a_section_is_shared_by_what_was_counted),
        cmocka_unit_test(what_stamps_add_is_taken_off),
        cmocka_unit_test(a_profile_adds_up),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
