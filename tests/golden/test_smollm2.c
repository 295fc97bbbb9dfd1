/* tests/golden/test_smollm2.c - a real pretrained model: llama.cpp's perplexity, and what each kind
 * of scheme does to massive activations. Needs the model (tools/fetch_smollm2.sh; QB_SMOLLM2 names
 * another place) and the corpus beside the golden cases; skips without. */
#include "support.h"

#include "core/json.h"
#include "core/memory.h"
#include "infer/calibrate.h"
#include "infer/quality.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { N_THREADS = 2, BATCH_TOKENS = 8192 };

typedef struct rig {
    qb_pool *pool;
    qb_model *model;
    qb_backbone *backbone;
    qb_stream stream;
    qb_windows windows;
} rig;

static const char *model_path(void)
{
    static const char *const names[] = {"models/smollm2.bin", "models/smollm2-135m-instruct.gguf"};
    static char path[4096];
    const char *given = getenv("QB_SMOLLM2");
    if (given) return given;
    for (size_t i = 0; i < QB_COUNT(names); i++) {
        snprintf(path, sizeof path, "%s/%s", QB_SOURCE_DIR, names[i]);
        if (!access(path, R_OK)) return path;
    }
    return NULL;
}

/* The first bytes of the validation text, whose hash golden/smollm2/llamacpp.json has. */
static qb_text open_text(const json_t *golden)
{
    const char *path = qb_test_golden("../corpus/valid.txt.xz");
    size_t n = (size_t)json_integer_value(json_object_get(golden, "text_bytes"));
    qb_text whole, text;
    QB_CHECK_OK(qb_text_open(path, 0, &whole));
    assert_true(whole.raw_bytes >= n);
    QB_CHECK_OK(qb_text_from_memory("valid.txt", whole.raw, n, &text));
    qb_text_deinit(&whole);
    assert_string_equal(text.sha256, json_string_value(json_object_get(golden, "text_sha256")));
    return text;
}

static rig rig_create(const qb_text *text, const char *protocol, size_t context, size_t max_tokens)
{
    rig r = {0};
    const qb_protocol *p = qb_protocol_find(protocol);
    QB_CHECK_OK(qb_pool_create(N_THREADS, &r.pool));
    QB_CHECK_OK(qb_model_open(model_path(), &r.model));
    qb_backbone_options options = {.max_tokens = BATCH_TOKENS,
                                   .pool = r.pool,
                                   .logit_slots = QB_LOGIT_SLOTS,
                                   .logit_rows = 32};
    QB_CHECK_OK(qb_backbone_create(r.model, &options, &r.backbone));
    QB_CHECK_OK(qb_protocol_tokenize(p, text, r.model->tokenizer, max_tokens, &r.stream));
    qb_protocol_options laid = {.context = context,
                                .bos = qb_tokenizer_bos(r.model->tokenizer),
                                .eos = qb_tokenizer_eos(r.model->tokenizer),
                                .add_bos = qb_tokenizer_add_bos(r.model->tokenizer)};
    QB_CHECK_OK(qb_windows_create(p, &r.stream, &laid, &r.windows));
    return r;
}

static void rig_destroy(rig *r)
{
    qb_windows_deinit(&r->windows);
    qb_stream_deinit(&r->stream);
    qb_backbone_destroy(r->backbone);
    qb_model_close(r->model);
    qb_pool_destroy(r->pool);
}

/* Summaries of full precision (schemes NULL) or of each scheme, with their twins. */
static void measure(const rig *r, const char *const *schemes, size_t n, qb_quality_summary *out)
{
    enum { MOST = 8 };
    qb_engine *full, *engines[2 * MOST] = {0};
    qb_quality_case cases[MOST] = {{0}};
    qb_engine_options o = {.scheme = qb_scheme_find("full")};
    QB_CHECK_OK(qb_engine_create(r->backbone, &o, &full));
    for (size_t i = 0; schemes && i < n; i++) {
        o.scheme = qb_scheme_find(schemes[i]);
        o.fake = false;
        QB_CHECK_OK(qb_engine_create(r->backbone, &o, &engines[2 * i]));
        o.fake = true;
        QB_CHECK_OK(qb_engine_create(r->backbone, &o, &engines[2 * i + 1]));
        cases[i] = (qb_quality_case){engines[2 * i], engines[2 * i + 1]};
    }
    qb_quality_plan plan = {.stream = &r->stream,
                            .windows = &r->windows,
                            .batch = BATCH_TOKENS / r->windows.context,
                            .full = full,
                            .cases = cases,
                            .n_cases = n,
                            .label = "test"};
    qb_quality q;
    QB_CHECK_OK(qb_quality_measure(&plan, &q));
    qb_summary_options options = {.n_bytes = NAN, .n_words = NAN};
    for (size_t i = 0; i < n; i++)
        QB_CHECK_OK(qb_quality_summarize(&q, i, &r->windows, &options, &out[i]));
    qb_quality_deinit(&q);
    for (size_t i = 0; i < QB_COUNT(engines); i++) qb_engine_destroy(engines[i]);
    qb_engine_destroy(full);
}

static json_t *golden_or_skip(void)
{
    if (!model_path()) QB_SKIP("no model: run tools/fetch_smollm2.sh");
    if (!qb_test_golden("smollm2/llamacpp.json")) QB_SKIP("golden cases are absent");
    if (!qb_test_golden("../corpus/valid.txt.xz")) QB_SKIP("the validation text is absent");
    json_t *golden;
    QB_CHECK_OK(qb_json_read_file(qb_test_golden("smollm2/llamacpp.json"), 1 << 24, &golden));
    return golden;
}

static void perplexity_equals_llama_cpp(void **state)
{
    (void)state;
    json_t *golden = golden_or_skip();
    qb_text text = open_text(golden);
    rig r = rig_create(&text, "llama.cpp", 512, 0);
    assert_int_equal(r.stream.tokens.n, json_integer_value(json_object_get(golden, "n_tokens")));
    qb_quality_summary s;
    measure(&r, NULL, 1, &s);
    double want = json_real_value(json_object_get(golden, "llama_cpp_ppl_f32_ctx512"));
    print_message("perplexity %.4f, llama.cpp %.4f\n", s.ppl, want);
    assert_true(fabs(s.ppl - want) <= 0.01);
    rig_destroy(&r);
    qb_text_deinit(&text);
    json_decref(golden);
}

/* The picture: per-token and per-channel scales cost little, per-tensor scales double the
 * perplexity, per-tensor 4 bits destroy it. */
static void schemes_keep_their_order(void **state)
{
    (void)state;
    static const char *const schemes[] = {"fine", "moderate", "zeropoint4", "zeropoint4-tensor"};
    json_t *golden = golden_or_skip();
    qb_text text = open_text(golden);
    rig r = rig_create(&text, "paper", 256, 4 * 257);
    qb_quality_summary s[QB_COUNT(schemes)];
    measure(&r, schemes, QB_COUNT(schemes), s);
    for (size_t i = 0; i < QB_COUNT(schemes); i++)
        print_message("%s: %.2f of %.2f, fake %.2f\n", schemes[i], s[i].ppl, s[i].ppl_full,
                      s[i].ppl_fake);
    double full = s[0].ppl_full;
    assert_true(s[0].ppl > full && s[0].ppl < 1.1 * full);
    assert_true(s[1].ppl > 1.4 * full && s[1].ppl < 10 * full);
    assert_true(s[2].ppl > 1.2 * full && s[2].ppl < 4 * full);
    assert_true(s[3].ppl > 1000 * full);
    assert_true(fabs(s[0].ppl_fake / s[0].ppl - 1) < 0.02); /* few tokens: last-place noise */
    rig_destroy(&r);
    qb_text_deinit(&text);
    json_decref(golden);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(perplexity_equals_llama_cpp),
        cmocka_unit_test(schemes_keep_their_order),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
