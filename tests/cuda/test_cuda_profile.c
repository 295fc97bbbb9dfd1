/* tests/cuda/test_cuda_profile.c - timelines on a GPU: the same logits with one as without, in
 * captured graphs too; spans in order; a profile whose phases add up to a pass. */
#include "gpu.h"
#include "rig.h"

#include "core/memory.h"
#include "infer/profiling.h"

#include <string.h>

enum { BATCH = 3, TOKENS = 17, STEPS = 6, CONTEXT = TOKENS + STEPS };

static qb_test_rig rig_create(const qb_config *config)
{
    return qb_test_rig_create(config, &(qb_test_rig_options){.batch = BATCH,
                                                             .n_tokens = CONTEXT,
                                                             .device = "cuda",
                                                             .logit_slots = 1,
                                                             .logit_rows = BATCH});
}

static qb_engine *make_engine(const qb_test_rig *r, const char *scheme, size_t batch)
{
    qb_engine *e;
    qb_engine_options o = {.scheme = qb_scheme_find(scheme),
                           .calibration = r->calibration,
                           .cache_batch = batch,
                           .cache_context = CONTEXT};
    QB_CHECK_OK(qb_engine_create(r->gpu, &o, &e));
    return e;
}

static size_t n_steps(void)
{
    return qb_test_is_small() ? 2 : STEPS;
}

/* In order, and of the pass that was run: a decode row's kernel is in its steps alone, and alone.
 */
static void check_spans(qb_timeline *timeline, bool by_row)
{
    const qb_timespan *spans;
    size_t n_spans;
    double end = 0;
    QB_CHECK_OK(qb_timeline_read(timeline, &spans, &n_spans));
    assert_true(n_spans > 0);
    for (size_t s = 0; s < n_spans; s++) {
        assert_true(spans[s].begin_us >= end - 1e-3);
        assert_true(spans[s].end_us >= spans[s].begin_us);
        assert_non_null(spans[s].work.kernel);
        assert_int_equal(!strncmp(spans[s].work.kernel, "decode/", 7), by_row);
        end = spans[s].end_us;
    }
    assert_true(end < 1e6);
}

/* Three prefills (as it is, captured, again) and steps behind each, with the logits of all. */
static float *run(const qb_test_rig *r, qb_engine *e, size_t batch, qb_timeline *timeline)
{
    size_t n = batch * r->model->config.vocab;
    bool has_row = batch == 1 && strstr(qb_engine_kernels(e), "decode/");
    float *logits, *at;
    QB_CHECK_OK(QB_NEW(&logits, 3 * (1 + n_steps()) * n, "logits"));
    at = logits;
    for (size_t i = 0; i < 3; i++)
        for (size_t step = 0; step <= n_steps(); step++, at += n) {
            if (step)
                QB_CHECK_OK(qb_engine_decode_step(e, r->tokens + step));
            else
                QB_CHECK_OK(qb_engine_prefill_last(e, r->tokens, batch, TOKENS));
            QB_CHECK_OK(qb_engine_logits(e, 0, batch, at));
            if (timeline) check_spans(timeline, has_row && step);
        }
    return logits;
}

static void check_config(const qb_config *config, const char *what)
{
    static const char *const schemes[] = {"full", "fine", "coarse", "zeropoint4", "llm-int8"};
    static size_t n_before;
    if (qb_test_is_small() && n_before++ != 1) return;
    qb_test_rig r = rig_create(config);
    for (size_t s = 0; s < QB_COUNT(schemes); s += qb_test_is_small() ? 3 : 1)
        for (size_t batch = 1; batch <= BATCH; batch += 2) { /* one: decode rows; more: graphs */
            qb_timeline *timeline;
            qb_engine *e = make_engine(&r, schemes[s], batch);
            QB_CHECK_OK(qb_timeline_create(r.gpu, &timeline));
            float *want = run(&r, e, batch, NULL);
            qb_engine_set_timeline(e, timeline);
            float *got = run(&r, e, batch, timeline);
            qb_timeline_set_slice(timeline, 1, 2);
            float *sliced = run(&r, e, batch, timeline);
            qb_engine_set_timeline(e, NULL);
            float *after = run(&r, e, batch, NULL);
            size_t bytes = 3 * (1 + n_steps()) * batch * config->vocab * sizeof *want;
            if (memcmp(want, got, bytes)) fail_msg("%s, %s: other logits", what, schemes[s]);
            if (memcmp(want, sliced, bytes)) fail_msg("%s, %s: sliced", what, schemes[s]);
            if (memcmp(want, after, bytes)) fail_msg("%s, %s: afterwards", what, schemes[s]);
            qb_free(want);
            qb_free(got);
            qb_free(sliced);
            qb_free(after);
            qb_timeline_destroy(timeline);
            qb_engine_destroy(e);
        }
    qb_test_rig_destroy(&r);
}

static void logits_are_the_same_with_a_timeline(void **state)
{
    (void)state;
    QB_NEEDS_GPU();
    qb_test_each_tiny_config(check_config);
}

static void a_profile_runs_and_adds_up(void **state)
{
    (void)state;
    QB_NEEDS_GPU();
    qb_config config = qb_test_tiny_config("gpt2");
    qb_test_rig r = rig_create(&config);
    for (int decode = 0; decode < 2; decode++)
        for (size_t batch = 1; batch <= BATCH; batch += 2) {
            qb_engine *engines[] = {make_engine(&r, "full", batch),
                                    make_engine(&r, "coarse", batch)};
            qb_profiling_plan plan = {.decode = decode,
                                      .batch = batch,
                                      .context = TOKENS,
                                      .decode_steps = STEPS,
                                      .with_timeline = true,
                                      .engines = engines,
                                      .n_engines = 2,
                                      .label = "test"};
            qb_profiled seen[2];
            QB_CHECK_OK(qb_profiling_run(&plan, seen));
            for (size_t e = 0; e < 2; e++) {
                double us = 0;
                for (size_t i = 0; i < seen[e].n_spans; i++) us += seen[e].spans[i].typical_us;
                qb_timing pass; /* beside its phases, which its stamps lengthened */
                QB_CHECK_OK(qb_samples_summarize(&seen[e].undisturbed, &pass));
                print_message("%s, %zu sequences: %zu spans, %zu slices, %.1f us of %.1f; the "
                              "timeline adds %.1f %%, %.2f us a stamp\n",
                              decode ? "decode" : "prefill", batch, seen[e].n_spans,
                              seen[e].n_slices, us, 1e3 * pass.p50_ms, 100 * seen[e].overhead,
                              seen[e].stamp_us);
                assert_true(seen[e].stamp_us >= 0 && seen[e].n_stamps >= seen[e].n_slices);
                assert_true(seen[e].n_spans > 0 && us > 0);
                qb_profiled_deinit(&seen[e]);
                qb_engine_destroy(engines[e]);
            }
        }
    qb_test_rig_destroy(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(logits_are_the_same_with_a_timeline),
        cmocka_unit_test(a_profile_runs_and_adds_up),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
