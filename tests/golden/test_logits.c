/* tests/golden/test_logits.c - logits and losses of the golden models (saved by Hugging Face
 * transformers, computed in float64) on every set of kernel rows; integer schemes equal on all of
 * them. */
#include "support.h"

#include "core/memory.h"
#include "infer/calibrate.h"
#include "infer/engine.h"
#include "kernels/pointwise.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const char *const models[] = {"a-gpt2", "a-llama-mha", "a-llama-gqa-tied",
                                     "a-llama3-scaled"};
static const char *const disabled[] = {"", "avx512vnni", "avx512", "avx2"};

typedef struct golden {
    int32_t *tokens;
    float *logits, *nll;
    size_t batch, n_tokens, vocab;
    qb_model *model;
} golden;

static golden golden_open(const char *name)
{
    char file[128], folder[4096];
    size_t n_tokens, n_logits, n_nll;
    snprintf(file, sizeof file, "%s/golden.safetensors", name);
    const char *path = qb_test_golden(file);
    golden g;
    g.tokens = qb_test_safetensor(path, "tokens", "I32", &n_tokens);
    g.logits = qb_test_safetensor(path, "logits", "F32", &n_logits);
    g.nll = qb_test_safetensor(path, "nll", "F32", &n_nll);
    g.vocab = n_logits / n_tokens;
    g.batch = n_tokens - n_nll;
    g.n_tokens = n_tokens / g.batch;
    snprintf(folder, sizeof folder, "%s", path);
    *strrchr(folder, '/') = 0;
    QB_CHECK_OK(qb_model_open(folder, &g.model));
    return g;
}

static void golden_close(golden *g)
{
    qb_model_close(g->model);
    qb_free(g->tokens);
    qb_free(g->logits);
    qb_free(g->nll);
}

/* Logits of the whole (B, T) as one batch. */
static float *run(const golden *g, const qb_scheme *scheme)
{
    qb_pool *pool;
    qb_backbone *backbone;
    qb_engine *engine;
    size_t rows = g->batch * g->n_tokens;
    QB_CHECK_OK(qb_pool_create(2, &pool));
    QB_CHECK_OK(qb_backbone_create(
        g->model, &(qb_backbone_options){.max_tokens = rows, .pool = pool}, &backbone));
    QB_CHECK_OK(qb_engine_create(backbone, &(qb_engine_options){.scheme = scheme}, &engine));
    QB_CHECK_OK(qb_engine_prefill(engine, g->tokens, g->batch, g->n_tokens));
    float *logits = malloc(rows * g->vocab * sizeof *logits);
    QB_CHECK_OK(qb_engine_logits(engine, 0, rows, logits));
    qb_engine_destroy(engine);
    qb_backbone_destroy(backbone);
    qb_pool_destroy(pool);
    return logits;
}

static double mean_nll(const golden *g, const float *logits)
{
    const qb_pointwise_row *kernels = QB_KERNEL_PICK(qb_pointwise_kernels);
    double sum = 0;
    int32_t top;
    for (size_t b = 0; b < g->batch; b++)
        for (size_t t = 0; t + 1 < g->n_tokens; t++) {
            const float *row = logits + (b * g->n_tokens + t) * g->vocab;
            sum += kernels->logsumexp(row, g->vocab, &top) -
                   (double)row[g->tokens[b * g->n_tokens + t + 1]];
        }
    return sum / (double)(g->batch * (g->n_tokens - 1));
}

static void logits_equal_float64(void **state)
{
    (void)state;
    if (!qb_test_golden("a-gpt2/golden.safetensors")) QB_SKIP("golden cases are absent");
    for (size_t i = 0; i < QB_COUNT(models); i++) {
        golden g = golden_open(models[i]);
        size_t n = g.batch * g.n_tokens * g.vocab, n_nll = g.batch * (g.n_tokens - 1);
        double top = 0, want_nll = 0;
        for (size_t j = 0; j < n; j++) top = fmax(top, fabs((double)g.logits[j]));
        for (size_t j = 0; j < n_nll; j++) want_nll += (double)g.nll[j] / (double)n_nll;
        for (size_t d = 0; d < QB_COUNT(disabled); d++) {
            setenv("QB_DISABLE", disabled[d], 1);
            float *logits = run(&g, qb_scheme_find("full"));
            double worst = qb_test_max_diff(logits, g.logits, n, NULL) / top;
            double nll = mean_nll(&g, logits);
            print_message("%s without %s: %.2g of the largest logit, nll off by %.2g\n", models[i],
                          *disabled[d] ? disabled[d] : "nothing", worst, fabs(nll / want_nll - 1));
            assert_true(worst <= 2e-4);
            assert_true(fabs(nll / want_nll - 1) <= 1e-5);
            free(logits);
        }
        setenv("QB_DISABLE", "", 1);
        golden_close(&g);
    }
}

/* Integer products are exact and so equal on all rows; what differs are the float parts around
 * them, pinned here by forcing these to the reference. */
static void integer_layers_are_the_same_bits(void **state)
{
    (void)state;
    if (!qb_test_golden("a-gpt2/golden.safetensors")) QB_SKIP("golden cases are absent");
    QB_CHECK_OK(qb_kernel_force("gemm_f32/ref,attention/ref,pointwise/ref"));
    for (size_t i = 0; i < QB_COUNT(models); i++) {
        golden g = golden_open(models[i]);
        for (const qb_scheme *s = qb_schemes; s->name; s++) {
            if (s->weights.bits != 8 || s->weights.fold_inputs) continue;
            float *first = NULL;
            for (size_t d = 0; d < QB_COUNT(disabled); d++) {
                setenv("QB_DISABLE", disabled[d], 1);
                float *logits = run(&g, s);
                if (first)
                    assert_memory_equal(first, logits,
                                        g.batch * g.n_tokens * g.vocab * sizeof *first);
                if (first)
                    free(logits);
                else
                    first = logits;
            }
            free(first);
        }
        golden_close(&g);
    }
    setenv("QB_DISABLE", "", 1);
    QB_CHECK_OK(qb_kernel_force(NULL));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(logits_equal_float64),
        cmocka_unit_test(integer_layers_are_the_same_bits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
