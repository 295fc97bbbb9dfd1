/* tests/cuda/test_cuda_engine.c - the engine on a GPU: f32 against a plain forward pass in double,
 * bf16 and every scheme against the CPU's engine, decode against prefill, equal bits twice. */
#include "gpu.h"
#include "rig.h"

#include "kernels/cuda/decode.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { BATCH = 3, TOKENS = 17, ROWS = BATCH * TOKENS };

static qb_test_rig rig_create(const qb_config *config)
{
    return qb_test_rig_create(config, &(qb_test_rig_options){.batch = BATCH,
                                                             .n_tokens = TOKENS,
                                                             .device = "cuda",
                                                             .logit_slots = QB_LOGIT_SLOTS,
                                                             .logit_rows = ROWS});
}

static void check_full(const qb_config *config, const char *what)
{
    static size_t n_before;
    if (qb_test_is_small() && n_before++ % 4 != 1) return;
    qb_test_rig r = rig_create(config);
    double *want = malloc(r.n_logits * sizeof *want), top = 0;
    qb_test_forward(r.model, r.tokens, BATCH, TOKENS, want);
    for (size_t i = 0; i < r.n_logits; i++) top = fmax(top, fabs(want[i]));
    static const struct {
        const char *scheme;
        double bound;
    } kinds[] = {{"full-f32", 5e-6}, {"full", 3e-2}};
    for (size_t k = 0; k < QB_COUNT(kinds); k++) {
        float *got = qb_test_logits(&r, r.gpu, qb_scheme_find(kinds[k].scheme), false, false);
        double worst = 0;
        for (size_t i = 0; i < r.n_logits; i++) {
            double d = fabs((double)got[i] - want[i]) / top;
            if (!(d <= worst)) worst = d; /* NaN stays */
        }
        print_message("%s %s: %.2g of the largest logit\n", what, kinds[k].scheme, worst);
        if (!(worst <= kinds[k].bound))
            fail_msg("%s %s: difference %g, bound %g", what, kinds[k].scheme, worst,
                     kinds[k].bound);
        free(got);
    }
    free(want);
    qb_test_rig_destroy(&r);
}

static void full_precision_equals_plain_forward(void **state)
{
    (void)state;
    QB_NEEDS_GPU();
    qb_test_each_tiny_config(check_full);
}

/* Root mean square of the differences. */
static double distance(const float *a, const float *b, size_t n)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += ((double)a[i] - b[i]) * ((double)a[i] - b[i]);
    return sqrt(sum / (double)n);
}

static void check_same_again(const qb_test_rig *r, const qb_scheme *s, bool head, const float *got)
{
    float *again = qb_test_logits(r, r->gpu, s, false, head);
    assert_memory_equal(got, again, r->n_logits * sizeof *got);
    free(again);
}

/* Both devices make the same codes from the same values. The twin computes in f32 and comes close;
 * bf16 between the layers moves values over rounding boundaries, as another sample of the same
 * quantisation noise. */
static void schemes_equal_the_cpu(void **state)
{
    (void)state;
    QB_NEEDS_GPU();
    for (int arch = 0; arch < 3; arch++) {
        qb_config config = qb_test_tiny_config(arch == 1 ? "llama" : "gpt2");
        config.attn_gate = arch == 2; /* from the norm's output before it is quantised */
        qb_test_rig r = rig_create(&config);
        float *full = qb_test_logits(&r, r.cpu, qb_scheme_find("full"), false, false);
        for (const qb_scheme *row = qb_schemes; row->name; row++)
            for (int head = 0; head < 2 && row->weights.bits; head++) {
                if (qb_test_is_small() && (row - qb_schemes + arch + head) % 4) continue;
                const qb_scheme tiny = qb_test_tiny_scheme(row), *s = &tiny;
                float *want = qb_test_logits(&r, r.cpu, s, false, head),
                      *got = qb_test_logits(&r, r.gpu, s, false, head),
                      *fake = qb_test_logits(&r, r.gpu, s, true, head);
                double effect = distance(want, full, r.n_logits),
                       gap = distance(got, want, r.n_logits),
                       fake_gap = distance(fake, want, r.n_logits);
                print_message("%s %s%s: effect %.3g, GPU against CPU %.3g, twin %.3g\n",
                              config.arch->name, s->name, head ? " +head" : "", effect, gap,
                              fake_gap);
                if (!qb_test_is_small()) check_same_again(&r, s, head, got);
                if (!(gap < 1.2 * effect) || !(fake_gap < 0.3 * effect))
                    fail_msg("%s %s: beyond the bound", config.arch->name, s->name);
                free(want);
                free(got);
                free(fake);
            }
        free(full);
        qb_test_rig_destroy(&r);
    }
}

static void run_all(const qb_test_rig *r, qb_engine *e, float *logits)
{
    QB_CHECK_OK(qb_engine_prefill(e, r->tokens, BATCH, TOKENS));
    QB_CHECK_OK(qb_engine_logits(e, 0, ROWS, logits));
}

/* Two engines of full precision and the scheme on a device, and one mixed of them by the mask. */
static void run_mixed(const qb_test_rig *r, qb_backbone *backbone, const qb_scheme *s,
                      const uint8_t *mask, float *full, float *part, float *mixed)
{
    qb_engine *engines[3];
    float *const logits[] = {full, part, mixed};
    qb_engine_options options = {.scheme = qb_scheme_find("full"), .calibration = r->calibration};
    QB_CHECK_OK(qb_engine_create(backbone, &options, &engines[0]));
    options.scheme = s;
    QB_CHECK_OK(qb_engine_create(backbone, &options, &engines[1]));
    QB_CHECK_OK(qb_engine_create_mixed(engines[0], engines[1], &engines[2]));
    for (int times = 0; times < 3; times++) { /* as it is, captured, and captured again */
        QB_CHECK_OK(qb_engine_mix(engines[2], mask));
        for (size_t i = 0; i < 3; i++) run_all(r, engines[i], logits[i]);
        run_all(r, engines[2], logits[2]);
    }
    for (size_t i = 3; i-- > 0;) qb_engine_destroy(engines[i]);
}

static void mixed_engines_have_the_chosen_layers(void **state)
{
    (void)state;
    QB_NEEDS_GPU();
    static const char *const schemes[] = {"fine", "coarse", "zeropoint4", "llm-int8",
                                          "smoothquant"};
    for (size_t i = 0; i < 2 * QB_COUNT(schemes); i++) {
        if (qb_test_is_small() && i % 5 != 1) continue;
        qb_config config = qb_test_tiny_config(i % 2 ? "llama" : "gpt2");
        const qb_scheme tiny = qb_test_tiny_scheme(qb_scheme_find(schemes[i / 2]));
        qb_test_rig r = rig_create(&config);
        size_t bytes = r.n_logits * sizeof(float), n = config.n_layers * QB_ROLE_COUNT;
        float *logits[6];
        uint8_t *mask = calloc(n, 1);
        assert_non_null(mask);
        for (size_t k = 0; k < QB_COUNT(logits); k++) logits[k] = malloc(bytes);
        for (int all = 0; all < 2 && !qb_test_is_small(); all++) {
            memset(mask, all, n);
            run_mixed(&r, r.gpu, &tiny, mask, logits[0], logits[1], logits[2]);
            assert_memory_equal(logits[2], logits[all], bytes);
        }
        for (size_t k = 0; k < n; k++) {
            qb_role role = (qb_role)(k % QB_ROLE_COUNT);
            mask[k] = role == QB_ROLE_DOWN || qb_roles[role].norm == QB_ROLE_NORM1;
        }
        run_mixed(&r, r.gpu, &tiny, mask, logits[0], logits[1], logits[2]);
        run_mixed(&r, r.cpu, &tiny, mask, logits[3], logits[4], logits[5]);
        double effect = distance(logits[5], logits[3], r.n_logits),
               gap = distance(logits[2], logits[5], r.n_logits);
        print_message("%s %s, half of the layers: effect %.3g, GPU against CPU %.3g\n",
                      config.arch->name, tiny.name, effect, gap);
        if (!(gap < 1.2 * effect)) fail_msg("%s: beyond the bound", tiny.name);
        for (size_t k = 0; k < QB_COUNT(logits); k++) free(logits[k]);
        free(mask);
        qb_test_rig_destroy(&r);
    }
}

static double decode_gap(const qb_test_rig *r, const char *name, bool fake, size_t batch)
{
    size_t vocab = r->model->config.vocab;
    float *want = qb_test_logits(r, r->gpu, qb_scheme_find(name), fake, false), got[BATCH * 61];
    int32_t start[ROWS], next[BATCH];
    double worst = 0, top = 0;
    qb_engine *e;
    qb_engine_options options = {.scheme = qb_scheme_find(name),
                                 .fake = fake,
                                 .cache_batch = BATCH,
                                 .cache_context = TOKENS};
    QB_CHECK_OK(qb_engine_create(r->gpu, &options, &e));
    const size_t prompt = qb_test_is_small() ? TOKENS - 2 : 9;
    for (size_t b = 0; b < batch; b++)
        memcpy(start + b * prompt, r->tokens + b * TOKENS, prompt * sizeof *start);
    QB_CHECK_OK(qb_engine_prefill(e, start, batch, prompt));
    for (size_t t = prompt; t < TOKENS; t++) {
        for (size_t b = 0; b < batch; b++) next[b] = r->tokens[b * TOKENS + t];
        QB_CHECK_OK(qb_engine_decode_step(e, next));
        QB_CHECK_OK(qb_engine_head(e, 0, 0, 1, batch));
        QB_CHECK_OK(qb_engine_logits(e, 0, batch, got));
        for (size_t b = 0; b < batch; b++) {
            const float *row = want + (b * TOKENS + t) * vocab;
            worst = fmax(worst, qb_test_max_diff(got + b * vocab, row, vocab, NULL));
            for (size_t v = 0; v < vocab; v++) top = fmax(top, fabs((double)row[v]));
        }
    }
    assert_int_equal(qb_engine_position(e), TOKENS);
    assert_int_equal(qb_engine_decode_step(e, next), QB_ERR_SHAPE); /* the cache is full */
    print_message("%s, %zu sequences by %s: decode against prefill %.3g of %.3g\n", name, batch,
                  qb_engine_kernels(e), worst, top);
    qb_engine_destroy(e);
    free(want);
    return worst / top;
}

/* Prefill of 9 tokens and 8 decode steps give the logits of the prefill of 17. Per-tensor scales
 * span a call, so this holds for schemes with none. Sums in another order move a code to the other
 * side of a rounding boundary now and then, in the twin too: about 0.01 of the largest logit. */
static void decode_continues_prefill(void **state)
{
    (void)state;
    QB_NEEDS_GPU();
    static const struct {
        const char *scheme;
        bool fake;
        double bound;
    } cases[] = {{"full-f32", false, 1e-5},   {"full", false, 3e-2},
                 {"fine", false, 5e-2},       {"fine", true, 3e-2},
                 {"zeropoint4", false, 3e-2}, {"zeropoint4-in", false, 3e-2}};
    for (int kind = 0; kind < 10; kind++) {
        if (qb_test_is_small() && kind != 1 && kind != 2 && kind != 7 && kind != 8) continue;
        qb_config config = qb_test_tiny_config(kind & 1 ? "llama" : "gpt2");
        if (kind & 4) { /* what the decode chain refuses, or the engine for it */
            config.softmax = kind & 1 ? QB_SOFTMAX_SINK : QB_SOFTMAX_CLIPPED;
            config.softmax_zeta = 1.2;
            config.attn_gate = kind & 2;
            config.free_prefix = 5; /* inside the prompt */
        }
        if (kind & 8) config.d_ff = 8256; /* more input channels than it takes */
        if (kind & (2 | 8)) {             /* a head size that the decode chain takes */
            config.head_dim = 16;
            config.d_model = config.n_heads * config.head_dim;
        }
        qb_test_rig r = rig_create(&config);
        for (size_t i = 0; i < QB_COUNT(cases); i++) {
            if (qb_test_is_small() && (i + (size_t)kind / 2) % 2) continue;
            for (size_t batch = 1; batch <= BATCH; batch += 2) {
                if (qb_test_is_small() && batch / 2 != i / 2 % 2) continue;
                double gap = decode_gap(&r, cases[i].scheme, cases[i].fake, batch);
                if (!(gap < cases[i].bound)) fail_msg("%s: %g", cases[i].scheme, gap);
            }
        }
        qb_test_rig_destroy(&r);
    }
}

/* A step of one sequence goes by the decode chain; where it refuses the model, by single kernels.
 */
static void the_chain_takes_common_models(void **state)
{
    (void)state;
    QB_NEEDS_GPU();
    static const char *const names[] = {"full", "fine", "coarse", "zeropoint4"};
    if (qb_kernel_refusal(&qb_cuda_decode_kernels[0].info)) skip();
    for (int wide = 0; wide < 2; wide++) {
        qb_config config = qb_test_tiny_config("gpt2");
        config.head_dim = 16, config.d_model = config.n_heads * config.head_dim;
        if (wide) config.d_ff = 8256;
        qb_test_rig r = rig_create(&config);
        for (size_t i = 0; i < (qb_test_is_small() ? 1 : QB_COUNT(names)); i++) {
            qb_engine_options options = {
                .scheme = qb_scheme_find(names[i]), .cache_batch = 2, .cache_context = TOKENS};
            qb_engine *e;
            QB_CHECK_OK(qb_engine_create(r.gpu, &options, &e));
            assert_int_equal(strstr(qb_engine_kernels(e), "decode/chain") == NULL, wide);
            qb_engine_destroy(e);
        }
        qb_test_rig_destroy(&r);
    }
}

/* The logits of a prompt of whole blocks, then of steps after it. */
enum { PROMPTS = 3, PROMPT = 64 };
typedef struct continued {
    float prompt[PROMPTS * PROMPT * 61], steps[4][PROMPTS * 61];
} continued;

static void continue_prompt(qb_engine *e, const int32_t *tokens, continued *out)
{
    QB_CHECK_OK(qb_engine_prefill(e, tokens, PROMPTS, PROMPT));
    QB_CHECK_OK(qb_engine_logits(e, 0, PROMPTS * PROMPT, out->prompt));
    for (size_t i = 0; i < 4; i++) {
        QB_CHECK_OK(qb_engine_decode_step(e, tokens + i));
        QB_CHECK_OK(qb_engine_logits(e, 0, PROMPTS, out->steps[i]));
    }
}

/* Keys and values are stored by their product where it can, else by a pass: the same bits. */
static void whole_prompts_fill_the_cache(void **state)
{
    (void)state;
    QB_NEEDS_GPU();
    qb_config config = qb_test_tiny_config("gpt2");
    config.n_heads = config.n_kv_heads = 4;
    config.head_dim = 16;
    config.d_model = 64;
    config.context = PROMPT + 4;
    qb_test_rig r = qb_test_rig_create(
        &config, &(qb_test_rig_options){.batch = PROMPTS, .n_tokens = PROMPT, .device = "cuda"});
    qb_engine_options options = {
        .scheme = qb_scheme_find("fine"), .cache_batch = 4, .cache_context = PROMPT + 4};
    qb_engine *e;
    static continued by_product, by_pass;
    QB_CHECK_OK(qb_engine_create(r.gpu, &options, &e));
    continue_prompt(e, r.tokens, &by_product);
    QB_CHECK_OK(qb_kernel_force("gemm_s8/sm80"));
    continue_prompt(e, r.tokens, &by_pass);
    QB_CHECK_OK(qb_kernel_force(NULL));
    assert_memory_equal(&by_product, &by_pass, sizeof by_pass);
    qb_engine_destroy(e);
    qb_test_rig_destroy(&r);
}

/* prefill_last gives the last rows of prefill, and decoding goes on from either alike. Products of
 * floats may add up in another order where there are fewer rows. */
static void check_last_rows(bool gated)
{
    qb_config config = qb_test_tiny_config("gpt2");
    config.attn_gate = gated; /* worked out from rows that have moved */
    qb_test_rig r = rig_create(&config);
    static const char *const names[] = {"full-f32", "full", "fine", "coarse", "zeropoint4"};
    for (size_t i = 0; i < 2 * QB_COUNT(names); i++) {
        if (qb_test_is_small() && (i + gated) % 4) continue;
        qb_engine *e;
        qb_engine_options options = {.scheme = qb_scheme_find(names[i / 2]),
                                     .quantize_head = i % 2,
                                     .cache_batch = BATCH,
                                     .cache_context = TOKENS + 1};
        enum { N = BATCH * 61 };
        float all[N], last[N], next[2][N];
        QB_CHECK_OK(qb_engine_create(r.gpu, &options, &e));
        QB_CHECK_OK(qb_engine_prefill(e, r.tokens, BATCH, TOKENS));
        for (size_t b = 0; b < BATCH; b++)
            QB_CHECK_OK(qb_engine_logits(e, (b + 1) * TOKENS - 1, 1, all + b * config.vocab));
        QB_CHECK_OK(qb_engine_decode_step(e, r.tokens));
        QB_CHECK_OK(qb_engine_logits(e, 0, BATCH, next[0]));
        for (int again = 0; again < 3; again++) { /* the third is captured */
            QB_CHECK_OK(qb_engine_prefill_last(e, r.tokens, BATCH, TOKENS));
            QB_CHECK_OK(qb_engine_logits(e, 0, BATCH, last));
            assert_int_equal(qb_engine_logits(e, BATCH, 1, next[1]), QB_ERR_SHAPE);
            const double gap = qb_test_max_diff(last, all, N, NULL);
            print_message("%s: last rows against all %.3g\n", names[i / 2], gap);
            assert_true(gap < (options.scheme->weights.bits == 8 ? 1e-4 : 3e-2));
        }
        QB_CHECK_OK(qb_engine_decode_step(e, r.tokens));
        QB_CHECK_OK(qb_engine_logits(e, 0, BATCH, next[1]));
        assert_true(qb_test_max_diff(next[1], next[0], N, NULL) == 0);
        qb_engine_destroy(e);
    }
    qb_test_rig_destroy(&r);
}

static void last_rows_equal_those_of_all(void **state)
{
    (void)state;
    QB_NEEDS_GPU();
    for (int gated = 0; gated < 2; gated++) check_last_rows(gated);
}

/* Statistics made on the device equal those of the logits that it hands over. */
static void comparisons_equal_the_logits(void **state)
{
    (void)state;
    QB_NEEDS_GPU();
    qb_config config = qb_test_tiny_config("gpt2");
    qb_test_rig r = rig_create(&config);
    qb_engine *full, *fine;
    QB_CHECK_OK(
        qb_engine_create(r.gpu, &(qb_engine_options){.scheme = qb_scheme_find("full")}, &full));
    QB_CHECK_OK(
        qb_engine_create(r.gpu, &(qb_engine_options){.scheme = qb_scheme_find("fine")}, &fine));
    float *a = qb_test_logits(&r, r.gpu, qb_scheme_find("full"), false, false),
          *b = qb_test_logits(&r, r.gpu, qb_scheme_find("fine"), false, false);
    QB_CHECK_OK(qb_engine_prefill(full, r.tokens, BATCH, TOKENS));
    QB_CHECK_OK(qb_engine_head(full, 0, 0, 1, ROWS));
    QB_CHECK_OK(qb_engine_prefill(fine, r.tokens, BATCH, TOKENS));
    QB_CHECK_OK(qb_engine_head(fine, 1, 0, 1, ROWS));
    qb_logit_stats got[ROWS], want;
    QB_CHECK_OK(qb_backbone_compare(r.gpu, 0, 1, ROWS, r.tokens, got));
    const qb_pointwise_row *kernels = QB_KERNEL_PICK(qb_pointwise_kernels);
    for (size_t i = 0; i < ROWS; i++) {
        kernels->logit_stats(a + i * config.vocab, b + i * config.vocab, config.vocab, r.tokens[i],
                             &want);
        assert_true(fabs(got[i].nll_a - want.nll_a) < 1e-5);
        assert_true(fabs(got[i].nll_b - want.nll_b) < 1e-5);
        assert_true(fabs(got[i].kl - want.kl) < 1e-5);
        assert_int_equal(got[i].top_a, want.top_a);
        assert_int_equal(got[i].top_b, want.top_b);
    }
    /* every other row into slot 2 */
    QB_CHECK_OK(qb_engine_head(full, 2, 1, 2, ROWS / 2));
    QB_CHECK_OK(qb_backbone_compare(r.gpu, 2, -1, ROWS / 2, r.tokens, got));
    kernels->logit_stats(a + 3 * config.vocab, a, config.vocab, r.tokens[1], &want);
    assert_true(fabs(got[1].nll_a - want.nll_a) < 1e-5);
    qb_engine_destroy(full);
    qb_engine_destroy(fine);
    free(a);
    free(b);
    qb_test_rig_destroy(&r);
}

static void too_large_a_backbone_says_what_it_needs(void **state)
{
    (void)state;
    QB_NEEDS_GPU();
    qb_config config = qb_test_tiny_config("gpt2");
    qb_model *model = qb_test_tiny_model(&config, 5);
    qb_backbone_options options = {.max_tokens = (size_t)1 << 31};
    const char *note;
    qb_backbone *b;
    QB_CHECK_OK(qb_device_find("cuda", &options.device, &note));
    assert_int_equal(qb_backbone_create(model, &options, &b), QB_ERR_MEMORY);
    assert_non_null(strstr(qb_error_message(), "needed"));
    assert_non_null(strstr(qb_error_message(), "free"));
    qb_model_close(model);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(full_precision_equals_plain_forward),
        cmocka_unit_test(schemes_equal_the_cpu),
        cmocka_unit_test(mixed_engines_have_the_chosen_layers),
        cmocka_unit_test(decode_continues_prefill),
        cmocka_unit_test(the_chain_takes_common_models),
        cmocka_unit_test(whole_prompts_fill_the_cache),
        cmocka_unit_test(last_rows_equal_those_of_all),
        cmocka_unit_test(comparisons_equal_the_logits),
        cmocka_unit_test(too_large_a_backbone_says_what_it_needs),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
