/* tests/cuda/test_cuda_quality.c - quality measured by several sets of engines on GPUs: the same
 * bits as by one set. With one GPU all sets are on it, which shares the work out in the same way.
 */
#include "gpu.h"
#include "tiny_model.h"

#include "core/memory.h"
#include "infer/quality.h"

#include <string.h>

enum {
    N_TOKENS = 1500,
    /* 200 of them with QB_TEST_SMALL */ CONTEXT = 96,
    BATCH = 2,
    N_SCHEMES = 3,
    MAX_SETS = 3
};

typedef struct text {
    qb_stream stream;
    qb_windows windows;
} text;

static text text_create(const qb_config *config)
{
    text t = {0};
    QB_CHECK_OK(qb_alloc((void **)&t.stream.tokens.ids, N_TOKENS, sizeof(int32_t), "ids"));
    QB_CHECK_OK(qb_alloc((void **)&t.stream.doc_end, 1, sizeof(size_t), "ends"));
    t.stream.tokens.n = t.stream.doc_end[0] = qb_test_is_small() ? 200 : N_TOKENS;
    t.stream.n_docs = 1;
    qb_test_tokens(config, t.stream.tokens.ids, N_TOKENS, 3);
    qb_protocol_options laid = {.context = CONTEXT, .bos = 0, .eos = -1};
    QB_CHECK_OK(qb_windows_create(qb_protocol_find("paper"), &t.stream, &laid, &t.windows));
    return t;
}

static void text_destroy(text *t)
{
    qb_windows_deinit(&t->windows);
    qb_stream_deinit(&t->stream);
}

/* Full precision and three schemes, with twins, on one GPU. */
typedef struct engine_set {
    qb_backbone *backbone;
    qb_engine *full;
    qb_quality_case cases[N_SCHEMES];
} engine_set;

static engine_set set_create(const qb_model *model, size_t gpu)
{
    static const char *const schemes[N_SCHEMES] = {"coarse", "fine", "zeropoint4"};
    engine_set s = {0};
    char name[16];
    const char *note;
    qb_backbone_options options = {
        .max_tokens = BATCH * CONTEXT, .logit_slots = QB_LOGIT_SLOTS, .logit_rows = 64};
    snprintf(name, sizeof name, "cuda:%zu", gpu);
    QB_CHECK_OK(qb_device_find(name, &options.device, &note));
    QB_CHECK_OK(qb_backbone_create(model, &options, &s.backbone));
    qb_engine_options o = {.scheme = qb_scheme_find("full")};
    QB_CHECK_OK(qb_engine_create(s.backbone, &o, &s.full));
    for (size_t i = 0; i < N_SCHEMES; i++) {
        o.scheme = qb_scheme_find(schemes[i]);
        o.fake = false;
        QB_CHECK_OK(qb_engine_create(s.backbone, &o, &s.cases[i].engine));
        o.fake = true;
        QB_CHECK_OK(qb_engine_create(s.backbone, &o, &s.cases[i].fake));
    }
    return s;
}

static void set_destroy(engine_set *s)
{
    for (size_t i = 0; i < N_SCHEMES; i++) {
        qb_engine_destroy(s->cases[i].engine);
        qb_engine_destroy(s->cases[i].fake);
    }
    qb_engine_destroy(s->full);
    qb_backbone_destroy(s->backbone);
}

static qb_quality measure(const qb_model *model, const text *t, size_t n_sets)
{
    engine_set sets[MAX_SETS];
    qb_quality_replica replicas[MAX_SETS];
    for (size_t i = 0; i < n_sets; i++) {
        sets[i] = set_create(model, i % qb_cuda_count());
        if (i) replicas[i - 1] = (qb_quality_replica){sets[i].full, sets[i].cases};
    }
    qb_quality_plan plan = {.stream = &t->stream,
                            .windows = &t->windows,
                            .batch = BATCH,
                            .full = sets[0].full,
                            .cases = sets[0].cases,
                            .n_cases = N_SCHEMES,
                            .replicas = replicas,
                            .n_replicas = n_sets - 1,
                            .label = "test"};
    qb_quality q;
    QB_CHECK_OK(qb_quality_measure(&plan, &q));
    for (size_t i = 0; i < n_sets; i++) set_destroy(&sets[i]);
    return q;
}

static void check_equal(const qb_quality *a, const qb_quality *b)
{
    assert_memory_equal(a->target, b->target, a->n * sizeof *a->target);
    assert_memory_equal(a->nll_full, b->nll_full, a->n * sizeof *a->nll_full);
    for (size_t i = 0; i < N_SCHEMES; i++) {
        assert_memory_equal(a->cases[i].nll, b->cases[i].nll, a->n * sizeof(double));
        assert_memory_equal(a->cases[i].kl, b->cases[i].kl, a->n * sizeof(double));
        assert_memory_equal(a->cases[i].agree, b->cases[i].agree, a->n);
        assert_memory_equal(a->cases[i].nll_fake, b->cases[i].nll_fake, a->n * sizeof(double));
        assert_true(a->cases[i].fake_max_diff == b->cases[i].fake_max_diff);
    }
}

static void sets_of_engines_do_not_change_a_bit(void **state)
{
    (void)state;
    QB_NEEDS_GPU();
    static const char *const archs[] = {"gpt2", "llama"};
    const bool small = qb_test_is_small();
    for (size_t a = 0; a < (small ? 1 : QB_COUNT(archs)); a++) {
        qb_config config = qb_test_tiny_config(archs[a]);
        config.context = 128;
        qb_model *model = qb_test_tiny_model(&config, 5);
        text t = text_create(&config);
        qb_quality one = measure(model, &t, 1);
        assert_true(one.n == t.windows.n_scored && one.nll_full[0] > 0);
        for (size_t n = small ? 2 : 1; n <= (small ? 2 : MAX_SETS); n++) {
            qb_quality more = measure(model, &t, n);
            check_equal(&one, &more);
            qb_quality_deinit(&more);
        }
        qb_quality_deinit(&one);
        text_destroy(&t);
        qb_model_close(model);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(sets_of_engines_do_not_change_a_bit)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
