/* tests/unit/test_sensitivity.c - mixed engines: none of the layers, all of them and each alone;
 * and what a sensitivity says, against engines made for the purpose. */
#include "rig.h"
#include "support.h"

#include "core/memory.h"
#include "infer/sensitivity.h"
#include "infer/taps.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { BATCH = 2, TOKENS = 15, VOCAB = 61, N_LOGITS = BATCH * TOKENS * VOCAB, CELLS = 256 };

typedef struct rig {
    qb_test_rig base;
    qb_engine *full, *scheme, *mixed;
    size_t n_layers;
} rig;

static rig rig_create(const char *arch, const char *scheme)
{
    const qb_config config = qb_test_tiny_config(arch);
    const qb_scheme tiny = qb_test_tiny_scheme(qb_scheme_find(scheme));
    assert_int_equal(config.vocab, VOCAB);
    assert_true(config.n_layers * QB_ROLE_COUNT <= CELLS);
    rig r = {.n_layers = config.n_layers,
             .base =
                 qb_test_rig_create(&config, &(qb_test_rig_options){.batch = BATCH,
                                                                    .n_tokens = TOKENS,
                                                                    .logit_slots = QB_LOGIT_SLOTS,
                                                                    .logit_rows = 8})};
    qb_engine_options full = {.scheme = qb_scheme_find("full")},
                      part = {.scheme = &tiny, .calibration = r.base.calibration};
    QB_CHECK_OK(qb_engine_create(r.base.cpu, &full, &r.full));
    QB_CHECK_OK(qb_engine_create(r.base.cpu, &part, &r.scheme));
    QB_CHECK_OK(qb_engine_create_mixed(r.full, r.scheme, &r.mixed));
    return r;
}

static void rig_destroy(rig *r)
{
    qb_engine_destroy(r->mixed);
    qb_engine_destroy(r->scheme);
    qb_engine_destroy(r->full);
    qb_test_rig_destroy(&r->base);
}

static void run(rig *r, qb_engine *e, float *logits)
{
    QB_CHECK_OK(qb_engine_prefill(e, r->base.tokens, BATCH, TOKENS));
    QB_CHECK_OK(qb_engine_logits(e, 0, BATCH * TOKENS, logits));
}

static bool has(const rig *r, size_t layer, int role)
{
    return qb_roles[role].linear && qb_model_tensor(r->base.model, (qb_role)role, layer)->data;
}

/* Bits of full precision with no layer, of the scheme with all, of neither with one; and a layer's
 * neighbours in its group are none of its own business. */
static void check_mixed(const char *arch, const char *scheme)
{
    static float full[N_LOGITS], all[N_LOGITS], got[N_LOGITS], before[N_LOGITS];
    rig r = rig_create(arch, scheme);
    uint8_t mask[CELLS];
    qb_coverage coverage;
    run(&r, r.full, full);
    run(&r, r.scheme, all);
    run(&r, r.mixed, got);
    assert_memory_equal(got, full, sizeof full);
    memset(mask, 1, sizeof mask);
    QB_CHECK_OK(qb_engine_mix(r.mixed, mask));
    run(&r, r.mixed, got);
    assert_memory_equal(got, all, sizeof all);
    memset(before, 0, sizeof before);
    for (size_t i = 0; i < r.n_layers * QB_ROLE_COUNT; i++) {
        if (!has(&r, i / QB_ROLE_COUNT, (int)(i % QB_ROLE_COUNT))) continue;
        memset(mask, 0, sizeof mask);
        mask[i] = 1;
        qb_status status = qb_engine_mix(r.mixed, mask);
        if (!qb_engine_mixes_singly(r.mixed) && status != QB_OK) {
            assert_int_equal(status, QB_ERR_UNSUPPORTED);
            continue;
        }
        QB_CHECK_OK(status);
        run(&r, r.mixed, got);
        qb_engine_coverage(r.mixed, &coverage);
        assert_int_equal(coverage.linears_quantised, 1);
        if (!memcmp(got, full, sizeof full) || !memcmp(got, all, sizeof all) ||
            !memcmp(got, before, sizeof before))
            fail_msg("%s %s: layer %zu role %zu changes nothing", arch, scheme, i / QB_ROLE_COUNT,
                     i % QB_ROLE_COUNT);
        memcpy(before, got, sizeof before);
    }
    rig_destroy(&r);
}

static void mixed_engines_have_the_chosen_layers(void **state)
{
    (void)state;
    static const char *const schemes[] = {"fine",       "fine-channel", "coarse",
                                          "zeropoint4", "llm-int8",     "smoothquant"};
    for (size_t i = 0; i < QB_COUNT(schemes); i++) {
        check_mixed("gpt2", schemes[i]);
        check_mixed("llama", schemes[i]);
    }
}

/* One smoothed product of three cannot be taken out: they share a divided input. */
static void layers_behind_one_norm_stay_together(void **state)
{
    (void)state;
    rig r = rig_create("llama", "smoothquant");
    uint8_t mask[CELLS] = {0};
    assert_false(qb_engine_mixes_singly(r.mixed));
    mask[QB_ROLE_Q] = mask[QB_ROLE_K] = 1;
    assert_int_equal(qb_engine_mix(r.mixed, mask), QB_ERR_UNSUPPORTED);
    mask[QB_ROLE_V] = 1;
    QB_CHECK_OK(qb_engine_mix(r.mixed, mask));
    rig_destroy(&r);
}

static qb_status keep_first_stream(void *context, const qb_tap_view *v)
{
    if (v->layer == 0)
        for (size_t r = 0; r < BATCH * TOKENS; r++)
            memcpy((float *)context + r * v->width, v->x + r * v->stride, v->width * sizeof(float));
    return QB_OK;
}

static void a_pass_goes_on_from_a_stream(void **state)
{
    (void)state;
    static float want[N_LOGITS], got[N_LOGITS], stream[BATCH * TOKENS * 64];
    for (int arch = 0; arch < 2; arch++) {
        rig r = rig_create(arch ? "llama" : "gpt2", "fine");
        const qb_taps taps = {
            .sees = QB_TAP_BIT(QB_TAP_STREAM), .see = keep_first_stream, .context = stream};
        assert_true(r.base.model->config.d_model <= 64 && qb_engine_resumes(r.scheme));
        QB_CHECK_OK(qb_engine_observe(r.scheme, &taps));
        run(&r, r.scheme, want);
        QB_CHECK_OK(qb_engine_observe(r.scheme, NULL));
        memset(got, 0, sizeof got);
        QB_CHECK_OK(qb_engine_prefill_from(r.scheme, r.base.tokens, BATCH, TOKENS, 1, stream));
        QB_CHECK_OK(qb_engine_logits(r.scheme, 0, BATCH * TOKENS, got));
        assert_memory_equal(got, want, sizeof got);
        stream[0] += 1;
        QB_CHECK_OK(qb_engine_prefill_from(r.scheme, r.base.tokens, BATCH, TOKENS, 1, stream));
        QB_CHECK_OK(qb_engine_logits(r.scheme, 0, BATCH * TOKENS, got));
        assert_memory_not_equal(got, want, sizeof got);
        run(&r, r.scheme, got); /* nothing is left of it */
        assert_memory_equal(got, want, sizeof got);
        rig_destroy(&r);
    }
}

/* ---- sensitivity ---- */

static qb_sensitivity measure(rig *r, qb_sensitivity_by by)
{
    const size_t bytes = r->base.n_rows * sizeof *r->base.tokens;
    int32_t *ids = malloc(bytes);
    memcpy(ids, r->base.tokens, bytes);
    qb_stream stream = {.tokens = {.ids = ids, .n = BATCH * TOKENS}};
    qb_window items[BATCH];
    for (size_t i = 0; i < BATCH; i++)
        items[i] = (qb_window){.first_target = i * TOKENS + 1,
                               .n_feed = TOKENS,
                               .n_scored = TOKENS - 1,
                               .first_id = -1};
    qb_windows windows = {.items = items,
                          .n = BATCH,
                          .n_feed_max = TOKENS,
                          .context = TOKENS,
                          .n_scored = BATCH * (TOKENS - 1)};
    const qb_sensitivity_plan plan = {.stream = &stream,
                                      .windows = &windows,
                                      .batch = BATCH,
                                      .full = r->full,
                                      .scheme = r->scheme,
                                      .probe_full = r->full,
                                      .probe = r->scheme,
                                      .by = by};
    qb_sensitivity s;
    QB_CHECK_OK(qb_sensitivity_measure(&plan, &s));
    free(ids);
    return s;
}

static double perplexity_of(rig *r, qb_engine *e)
{
    static float logits[N_LOGITS];
    double sum = 0;
    run(r, e, logits);
    for (size_t row = 0; row < BATCH * TOKENS; row++) {
        if (row % TOKENS == TOKENS - 1) continue;
        double total = 0;
        for (size_t v = 0; v < VOCAB; v++) total += exp((double)logits[row * VOCAB + v]);
        sum += log(total) - (double)logits[row * VOCAB + (size_t)r->base.tokens[row + 1]];
    }
    return exp(sum / (BATCH * (TOKENS - 1)));
}

static void check_part(rig *r, const qb_sensitivity *s, const qb_sensitivity_part *p)
{
    uint8_t mask[CELLS] = {0};
    memcpy(mask, p->mask, r->n_layers * QB_ROLE_COUNT);
    QB_CHECK_OK(qb_engine_mix(r->mixed, mask));
    double alone = perplexity_of(r, r->mixed);
    for (size_t i = 0; i < CELLS; i++) mask[i] = !mask[i];
    QB_CHECK_OK(qb_engine_mix(r->mixed, mask));
    double without = perplexity_of(r, r->mixed);
    assert_true(fabs(p->ppl - alone) < 1e-5 * alone);
    assert_true(fabs(p->ppl_without - without) < 1e-5 * without);
    assert_true(fabs(p->penalty - (p->ppl - s->ppl_full)) < 1e-9 * p->ppl);
    assert_true(fabs(p->saved - (s->ppl - p->ppl_without)) < 1e-9 * p->ppl);
    assert_true(p->sqnr_db > 5 && p->sqnr_db < 60);
    assert_true(p->input_kurtosis > 1 && p->amax_ratio >= 1 && p->input_amax >= p->input_p999);
}

static void figures_are_those_of_single_engines(void **state)
{
    (void)state;
    static const size_t n_parts[][QB_SENSITIVITY_COUNT] = {{4, 1, 4}, {7, 1, 7}};
    for (int arch = 0; arch < 2; arch++) {
        rig r = rig_create(arch ? "llama" : "gpt2", "moderate");
        for (int by = 0; by < QB_SENSITIVITY_COUNT; by++) {
            qb_sensitivity s = measure(&r, (qb_sensitivity_by)by);
            size_t each = n_parts[arch][by], linears = 0;
            assert_int_equal(s.n_parts, by == QB_SENSITIVITY_ROLE ? each : each * r.n_layers);
            assert_true(fabs(s.ppl_full - perplexity_of(&r, r.full)) < 1e-5 * s.ppl_full);
            assert_true(fabs(s.ppl - perplexity_of(&r, r.scheme)) < 1e-5 * s.ppl);
            double share = 0;
            const bool costly = s.parts[0].penalty > 0; /* random weights may do better */
            for (size_t i = 0; i < s.n_parts; i++) {
                check_part(&r, &s, &s.parts[i]);
                linears += s.parts[i].linears;
                share += s.parts[i].share;
                assert_true(i == 0 || s.parts[i].penalty <= s.parts[i - 1].penalty);
                assert_true(!costly || fabs(s.parts[i].cumulative_share - share) < 1e-12);
            }
            assert_int_equal(linears, n_parts[arch][0] * r.n_layers);
            assert_true(costly ? fabs(share - 1) < 1e-12 : isnan(share));
            if (s.n_kept) assert_true(s.kept[0].n == 1 && s.kept[0].ppl == s.parts[0].ppl_without);
            qb_sensitivity_deinit(&s);
        }
        rig_destroy(&r);
    }
}

static void smoothed_layers_are_one_part(void **state)
{
    (void)state;
    rig r = rig_create("llama", "smoothquant");
    qb_sensitivity s = measure(&r, QB_SENSITIVITY_LINEAR);
    bool found = false;
    assert_int_equal(s.n_parts, 4 * r.n_layers);
    for (size_t i = 0; i < s.n_parts; i++) {
        found |= !strcmp(s.parts[i].name, "h.0.attn.q+attn.k+attn.v");
        check_part(&r, &s, &s.parts[i]);
    }
    assert_true(found);
    qb_sensitivity_deinit(&s);
    rig_destroy(&r);
}

static void nothing_leaks(void **state)
{
    (void)state;
    size_t before = qb_memory_live_blocks();
    rig r = rig_create("gpt2", "llm-int8");
    qb_sensitivity s = measure(&r, QB_SENSITIVITY_ROLE);
    json_decref(qb_sensitivity_to_json(&s));
    qb_sensitivity_deinit(&s);
    rig_destroy(&r);
    assert_int_equal(qb_memory_live_blocks(), before);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(mixed_engines_have_the_chosen_layers),
        cmocka_unit_test(layers_behind_one_norm_stay_together),
        cmocka_unit_test(a_pass_goes_on_from_a_stream),
        cmocka_unit_test(figures_are_those_of_single_engines),
        cmocka_unit_test(smoothed_layers_are_one_part),
        cmocka_unit_test(nothing_leaks),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
