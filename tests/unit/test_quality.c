/* tests/unit/test_quality.c - the figures of quality against a plain computation from whole logits;
 * the same bits at any number of threads and on any integer kernel rows. */
#include "support.h"
#include "tiny_model.h"

#include "core/interrupt.h"
#include "core/memory.h"
#include "infer/calibrate.h"
#include "infer/nll_file.h"
#include "kernels/registry.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { N_TOKENS = 700, CONTEXT = 300, BATCH = 2, MAX_CASES = 8, LOGIT_ROWS = 256 };

typedef struct rig {
    qb_pool *pool;
    qb_model *model;
    qb_backbone *backbone;
    qb_calibration *calibration;
    qb_stream stream;
    qb_windows windows;
    qb_engine *full, *engines[2 * MAX_CASES];
    qb_quality_case cases[MAX_CASES];
    size_t n_cases;
} rig;

/* Windows longer than a chunk of logits (256 rows), two to a batch, one left over. */
static rig rig_create(const char *arch, const char *protocol, size_t n_threads)
{
    rig r = {0};
    qb_config config = qb_test_tiny_config(arch);
    config.context = 512;
    QB_CHECK_OK(qb_pool_create(n_threads, &r.pool));
    r.model = qb_test_tiny_model(&config, 5);
    qb_backbone_options options = {.max_tokens = BATCH * CONTEXT,
                                   .pool = r.pool,
                                   .logit_slots = QB_LOGIT_SLOTS,
                                   .logit_rows = LOGIT_ROWS};
    QB_CHECK_OK(qb_backbone_create(r.model, &options, &r.backbone));
    r.calibration = qb_test_constant_calibration(&config);
    QB_CHECK_OK(qb_alloc((void **)&r.stream.tokens.ids, N_TOKENS, sizeof(int32_t), "ids"));
    QB_CHECK_OK(qb_alloc((void **)&r.stream.doc_end, 1, sizeof(size_t), "ends"));
    r.stream.tokens.n = r.stream.doc_end[0] = N_TOKENS;
    r.stream.n_docs = 1;
    qb_test_tokens(&config, r.stream.tokens.ids, N_TOKENS, 3);
    qb_protocol_options laid = {.context = CONTEXT, .bos = 0, .eos = -1};
    QB_CHECK_OK(qb_windows_create(qb_protocol_find(protocol), &r.stream, &laid, &r.windows));
    qb_engine_options full = {.scheme = qb_scheme_find("full")};
    QB_CHECK_OK(qb_engine_create(r.backbone, &full, &r.full));
    return r;
}

static void add_case(rig *r, const char *scheme)
{
    qb_engine_options o = {.scheme = qb_scheme_find(scheme), .calibration = r->calibration};
    qb_quality_case *c = &r->cases[r->n_cases];
    QB_CHECK_OK(qb_engine_create(r->backbone, &o, &c->engine));
    o.fake = true;
    QB_CHECK_OK(qb_engine_create(r->backbone, &o, &c->fake));
    r->engines[2 * r->n_cases] = c->engine;
    r->engines[2 * r->n_cases + 1] = c->fake;
    r->n_cases++;
}

static void rig_destroy(rig *r)
{
    for (size_t i = 0; i < 2 * r->n_cases; i++) qb_engine_destroy(r->engines[i]);
    qb_engine_destroy(r->full);
    qb_windows_deinit(&r->windows);
    qb_stream_deinit(&r->stream);
    qb_calibration_destroy(r->calibration);
    qb_backbone_destroy(r->backbone);
    qb_model_close(r->model);
    qb_pool_destroy(r->pool);
}

static qb_quality_plan plan_of(const rig *r)
{
    return (qb_quality_plan){.stream = &r->stream,
                             .windows = &r->windows,
                             .batch = BATCH,
                             .full = r->full,
                             .cases = r->cases,
                             .n_cases = r->n_cases,
                             .label = "test"};
}

/* ---- against a plain computation ---- */

static double plain_lse(const float *x, size_t n)
{
    double top = -INFINITY, sum = 0;
    for (size_t i = 0; i < n; i++) top = fmax(top, (double)x[i]);
    for (size_t i = 0; i < n; i++) sum += exp((double)x[i] - top);
    return top + log(sum);
}

static size_t argmax(const float *x, size_t n)
{
    size_t best = 0;
    for (size_t i = 1; i < n; i++)
        if (x[i] > x[best]) best = i;
    return best;
}

typedef struct plain {
    double nll_full, nll, kl, nll_fake, diff;
    bool agree;
} plain;

static plain plain_row(const float *full, const float *scheme, const float *fake, size_t vocab,
                       int32_t target)
{
    double lf = plain_lse(full, vocab), ls = plain_lse(scheme, vocab);
    plain p = {.nll_full = lf - (double)full[target],
               .nll = ls - (double)scheme[target],
               .nll_fake = plain_lse(fake, vocab) - (double)fake[target],
               .agree = argmax(full, vocab) == argmax(scheme, vocab)};
    for (size_t v = 0; v < vocab; v++) {
        double lp = (double)full[v] - lf, lq = (double)scheme[v] - ls;
        p.kl += exp(lp) * (lp - lq);
        p.diff = fmax(p.diff, fabs((double)scheme[v] - (double)fake[v]));
    }
    return p;
}

static float *whole_logits(const rig *r, qb_engine *e, const int32_t *fed, size_t batch)
{
    size_t rows = batch * CONTEXT;
    float *logits = malloc(rows * r->model->config.vocab * sizeof *logits);
    QB_CHECK_OK(qb_engine_prefill(e, fed, batch, CONTEXT));
    QB_CHECK_OK(qb_engine_logits(e, 0, rows, logits));
    return logits;
}

static void check_window(const rig *r, const qb_quality *q, size_t w, const float *const *logits,
                         size_t *at, double *worst_diff)
{
    size_t vocab = r->model->config.vocab;
    int32_t target[CONTEXT];
    qb_window_tokens(&r->stream, &r->windows.items[w], NULL, target);
    for (size_t j = 0; j < CONTEXT; j++) {
        if (target[j] < 0) continue;
        size_t row = ((w % BATCH) * CONTEXT + j) * vocab;
        plain p = plain_row(logits[0] + row, logits[1] + row, logits[2] + row, vocab, target[j]);
        assert_int_equal(q->target[*at], target[j]);
        assert_true(fabs(q->nll_full[*at] - p.nll_full) < 1e-5);
        assert_true(fabs(q->cases[0].nll[*at] - p.nll) < 1e-5);
        assert_true(fabs(q->cases[0].kl[*at] - p.kl) < 1e-6 + 1e-4 * p.kl);
        assert_true(fabs(q->cases[0].nll_fake[*at] - p.nll_fake) < 1e-5);
        assert_int_equal(q->cases[0].agree[*at], p.agree);
        *worst_diff = fmax(*worst_diff, p.diff);
        ++*at;
    }
}

static void figures_equal_a_plain_computation(void **state)
{
    (void)state;
    static const char *const protocols[] = {"paper", "hf-disjoint", "llama.cpp"};
    for (size_t i = 0; i < QB_COUNT(protocols); i++) {
        rig r = rig_create("llama", protocols[i], 2);
        add_case(&r, "coarse");
        qb_quality q;
        qb_quality_plan plan = plan_of(&r);
        QB_CHECK_OK(qb_quality_measure(&plan, &q));
        assert_int_equal(q.n, r.windows.n_scored);
        int32_t fed[BATCH * CONTEXT];
        size_t at = 0;
        double worst_diff = 0;
        for (size_t w = 0; w < r.windows.n; w += BATCH) {
            size_t batch = qb_windows_batch(&r.windows, w, BATCH);
            for (size_t b = 0; b < batch; b++)
                qb_window_tokens(&r.stream, &r.windows.items[w + b], fed + b * CONTEXT, NULL);
            float *logits[] = {whole_logits(&r, r.full, fed, batch),
                               whole_logits(&r, r.cases[0].engine, fed, batch),
                               whole_logits(&r, r.cases[0].fake, fed, batch)};
            for (size_t b = 0; b < batch; b++)
                check_window(&r, &q, w + b, (const float *const *)logits, &at, &worst_diff);
            for (size_t k = 0; k < 3; k++) free(logits[k]);
        }
        assert_int_equal(at, q.n);
        assert_true((double)q.cases[0].fake_max_diff == worst_diff);
        qb_quality_deinit(&q);
        rig_destroy(&r);
    }
}

/* ---- the same bits ---- */

static qb_quality measure_all(const char *arch, size_t n_threads, bool integer_only)
{
    rig r = rig_create(arch, "paper", n_threads);
    for (const qb_scheme *s = qb_schemes; s->name && r.n_cases < MAX_CASES; s++)
        if (s->weights.bits && (!integer_only || s->input.bits)) add_case(&r, s->name);
    qb_quality q;
    qb_quality_plan plan = plan_of(&r);
    QB_CHECK_OK(qb_quality_measure(&plan, &q));
    rig_destroy(&r);
    return q;
}

static void check_equal(const qb_quality *a, const qb_quality *b, bool twins_too)
{
    assert_int_equal(a->n_cases, b->n_cases);
    assert_memory_equal(a->nll_full, b->nll_full, a->n * sizeof *a->nll_full);
    for (size_t i = 0; i < a->n_cases; i++) {
        assert_memory_equal(a->cases[i].nll, b->cases[i].nll, a->n * sizeof(double));
        assert_memory_equal(a->cases[i].kl, b->cases[i].kl, a->n * sizeof(double));
        assert_memory_equal(a->cases[i].agree, b->cases[i].agree, a->n);
        if (!twins_too) continue;
        assert_memory_equal(a->cases[i].nll_fake, b->cases[i].nll_fake, a->n * sizeof(double));
        assert_true(a->cases[i].fake_max_diff == b->cases[i].fake_max_diff);
    }
}

static void threads_do_not_change_a_bit(void **state)
{
    (void)state;
    static const char *const archs[] = {"gpt2", "llama"};
    for (size_t i = 0; i < QB_COUNT(archs); i++) {
        qb_quality one = measure_all(archs[i], 1, false);
        for (size_t n_threads = 2; n_threads <= 4; n_threads *= 2) {
            qb_quality more = measure_all(archs[i], n_threads, false);
            check_equal(&one, &more, true);
            qb_quality_deinit(&more);
        }
        qb_quality_deinit(&one);
    }
}

/* A second and third set of engines, each with a backbone and a pool of its own, as GPUs have. */
static qb_quality measure_with_replicas(size_t n_replicas, size_t batch)
{
    static const char *const schemes[] = {"coarse", "fine", "zeropoint4", NULL};
    rig sets[3];
    qb_quality_replica replicas[2];
    for (size_t i = 0; i <= n_replicas; i++) {
        sets[i] = rig_create("llama", "llama.cpp", 1 + i);
        for (size_t s = 0; schemes[s]; s++) add_case(&sets[i], schemes[s]);
        if (i) replicas[i - 1] = (qb_quality_replica){sets[i].full, sets[i].cases};
    }
    qb_quality_plan plan = plan_of(&sets[0]);
    plan.batch = batch;
    plan.replicas = replicas;
    plan.n_replicas = n_replicas;
    qb_quality q;
    QB_CHECK_OK(qb_quality_measure(&plan, &q));
    for (size_t i = 0; i <= n_replicas; i++) rig_destroy(&sets[i]);
    return q;
}

static void replicas_do_not_change_a_bit(void **state)
{
    (void)state;
    for (size_t batch = 1; batch <= BATCH; batch++) {
        qb_quality one = measure_with_replicas(0, batch);
        for (size_t n = 1; n <= 2; n++) {
            qb_quality more = measure_with_replicas(n, batch);
            check_equal(&one, &more, true);
            assert_memory_equal(one.target, more.target, one.n * sizeof *one.target);
            qb_quality_deinit(&more);
        }
        qb_quality_deinit(&one);
    }
}

/* The failure of another thread is the caller's, with its message. */
static void a_failing_replica_fails_the_run(void **state)
{
    (void)state;
    rig r = rig_create("llama", "paper", 1), small = rig_create("llama", "paper", 1);
    qb_backbone *backbone;
    qb_engine *engine;
    qb_backbone_options options = {
        .max_tokens = 7, .logit_slots = QB_LOGIT_SLOTS, .logit_rows = LOGIT_ROWS};
    qb_engine_options full = {.scheme = qb_scheme_find("full")};
    QB_CHECK_OK(qb_backbone_create(small.model, &options, &backbone));
    QB_CHECK_OK(qb_engine_create(backbone, &full, &engine));
    const qb_quality_replica too_small = {small.full, NULL}, failing = {engine, NULL};
    for (int first = 0; first < 2; first++) {
        qb_quality_plan plan = plan_of(first ? &small : &r);
        plan.batch = 1;
        if (first) plan.full = engine; /* on the calling thread */
        plan.replicas = first ? &too_small : &failing;
        plan.n_replicas = 1;
        qb_quality q = {0};
        qb_status status = qb_quality_measure(&plan, &q);
        /* the other set may have taken every window before the failing one came to it */
        if (status == QB_OK) qb_quality_deinit(&q);
        if (status == QB_OK) continue;
        assert_int_equal(status, QB_ERR_SHAPE);
        assert_non_null(strstr(qb_error_message(), "expected 1 to 7"));
        assert_null(q.nll_full);
    }
    qb_engine_destroy(engine);
    qb_backbone_destroy(backbone);
    rig_destroy(&r);
    rig_destroy(&small);
}

/* The float parts are held on the reference; the integer products and quantising passes run on
 * every set of rows. */
static void integer_rows_do_not_change_a_bit(void **state)
{
    (void)state;
    static const char *const disabled[] = {"avx512vnni", "avx512", "avx2"};
    QB_CHECK_OK(qb_kernel_force("gemm_f32/ref,attention/ref,pointwise/ref"));
    qb_quality all = measure_all("llama", 2, true);
    for (size_t i = 0; i < QB_COUNT(disabled); i++) {
        setenv("QB_DISABLE", disabled[i], 1);
        qb_quality fewer = measure_all("llama", 2, true);
        check_equal(&all, &fewer, true);
        qb_quality_deinit(&fewer);
    }
    unsetenv("QB_DISABLE");
    QB_CHECK_OK(qb_kernel_force(NULL));
    qb_quality_deinit(&all);
}

/* ---- summaries, files, ends ---- */

static void summary_of_made_up_figures(void **state)
{
    (void)state;
    double full[] = {log(2), log(8), log(2), log(8)}, nll[] = {log(4), log(8), log(4), log(16)};
    double kl[] = {0.1, 0.2, 0.3, 0.4}, fake[] = {log(4), log(8), log(4), log(8)};
    uint8_t agree[] = {1, 1, 1, 0};
    qb_quality_scores scores = {nll, kl, agree, fake, 0.5f};
    qb_quality q = {4, full, (int32_t[]){1, 2, 3, 4}, &scores, 1};
    qb_window items[] = {{.n_scored = 2}, {.n_scored = 2}};
    qb_windows windows = {.items = items, .n = 2, .n_scored = 4};
    qb_summary_options options = {.n_bytes = 16, .n_words = 2, .seed = 1};
    qb_quality_summary s;
    QB_CHECK_OK(qb_quality_summarize(&q, 0, &windows, &options, &s));
    assert_true(fabs(s.ppl_full - 4) < 1e-12);
    assert_true(fabs(s.ppl - pow(2, 11 / 4.0)) < 1e-12);
    assert_true(s.penalty == s.ppl - s.ppl_full);
    assert_true(s.penalty_ci95.low < s.penalty && s.penalty < s.penalty_ci95.high);
    assert_true(fabs(s.kl_mean - 0.25) < 1e-12 && fabs(s.kl_p99 - 0.397) < 1e-12);
    assert_true(s.top1_agreement == 0.75);
    assert_true(fabs(s.bits_per_byte - 11.0 / 16) < 1e-12);
    assert_true(isnan(s.word_ppl) && isnan(s.byte_ppl));
    assert_true(fabs(s.ppl_fake - pow(2, 10 / 4.0)) < 1e-12 && s.fake_max_logit_diff == 0.5);
    options.by_document = true;
    QB_CHECK_OK(qb_quality_summarize(&q, 0, &windows, &options, &s));
    assert_true(fabs(s.word_ppl - pow(2, 5.5)) < 1e-9);
    assert_true(fabs(s.byte_ppl - pow(2, 11 / 16.0)) < 1e-12);
    scores = (qb_quality_scores){0}; /* full precision itself */
    QB_CHECK_OK(qb_quality_summarize(&q, 0, &windows, &options, &s));
    assert_true(s.ppl == s.ppl_full && isnan(s.penalty) && isnan(s.kl_mean) && isnan(s.ppl_fake));
}

static void losses_go_to_a_file(void **state)
{
    (void)state;
    rig r = rig_create("gpt2", "paper", 1);
    add_case(&r, "fine");
    qb_quality q;
    qb_quality_plan plan = plan_of(&r);
    QB_CHECK_OK(qb_quality_measure(&plan, &q));
    char folder[] = "/tmp/qb_nll_XXXXXX", path[64];
    assert_non_null(mkdtemp(folder));
    snprintf(path, sizeof path, "%s/m-fine.safetensors", folder);
    char *written;
    QB_CHECK_OK(qb_nll_file_write(&q, 0, &r.windows, NULL, folder, "m-fine", &written));
    assert_string_equal(written, path);
    qb_free(written);
    size_t n;
    double *nll = qb_test_safetensor(path, "nll", "F64", &n);
    assert_memory_equal(nll, q.cases[0].nll, q.n * sizeof *nll);
    int32_t *window = qb_test_safetensor(path, "window", "I32", &n);
    assert_int_equal(n, q.n);
    assert_int_equal(window[0], 0);
    assert_int_equal(window[CONTEXT - 1], 0);
    assert_int_equal(window[CONTEXT], 1);
    double *nll_fake = qb_test_safetensor(path, "nll_fake", "F64", &n);
    assert_memory_equal(nll_fake, q.cases[0].nll_fake, q.n * sizeof *nll_fake);
    qb_file file;
    qb_nll read;
    QB_CHECK_OK(qb_file_open(path, &file));
    QB_CHECK_OK(qb_nll_parse(&file, &read));
    qb_file_close(&file);
    assert_int_equal(read.n, q.n);
    assert_int_equal(read.n_windows, r.windows.n);
    assert_memory_equal(read.nll_full, q.nll_full, q.n * sizeof *nll);
    assert_memory_equal(read.nll, nll, q.n * sizeof *nll);
    assert_memory_equal(read.kl, q.cases[0].kl, q.n * sizeof *nll);
    assert_memory_equal(read.agree, q.cases[0].agree, q.n);
    assert_memory_equal(read.target, q.target, q.n * sizeof *q.target);
    qb_nll_deinit(&read);
    qb_free(nll_fake);
    qb_free(nll);
    qb_free(window);
    assert_int_equal(qb_nll_file_write(&q, 0, &r.windows, NULL, path, "x", &written), QB_ERR_IO);
    unlink(path);
    rmdir(folder);
    qb_quality_deinit(&q);
    rig_destroy(&r);
}

static void interrupts_and_bad_ids_end_it(void **state)
{
    (void)state;
    rig r = rig_create("gpt2", "paper", 1);
    add_case(&r, "moderate");
    qb_quality q;
    qb_quality_plan plan = plan_of(&r);
    size_t blocks = qb_memory_live_blocks();
    qb_interrupt_set(true);
    assert_int_equal(qb_quality_measure(&plan, &q), QB_ERR_INTERRUPTED);
    qb_interrupt_set(false);
    r.stream.tokens.ids[7] = (int32_t)r.model->config.vocab;
    assert_int_equal(qb_quality_measure(&plan, &q), QB_ERR_FORMAT);
    r.stream.tokens.ids[7] = 0;
    for (size_t n = 1; n < 20; n++) {
        qb_memory_fail_at(n);
        qb_status status = qb_quality_measure(&plan, &q);
        qb_memory_fail_at(0);
        if (status == QB_OK) {
            qb_quality_deinit(&q);
            assert_true(n > 8);
            break;
        }
        assert_int_equal(status, QB_ERR_MEMORY);
        assert_int_equal(qb_memory_live_blocks(), blocks);
    }
    rig_destroy(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(figures_equal_a_plain_computation),
        cmocka_unit_test(threads_do_not_change_a_bit),
        cmocka_unit_test(replicas_do_not_change_a_bit),
        cmocka_unit_test(a_failing_replica_fails_the_run),
        cmocka_unit_test(integer_rows_do_not_change_a_bit),
        cmocka_unit_test(summary_of_made_up_figures),
        cmocka_unit_test(losses_go_to_a_file),
        cmocka_unit_test(interrupts_and_bad_ids_end_it),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
