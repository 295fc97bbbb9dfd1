/* tests/golden_model.c - see golden_model.h. */
#include "golden_model.h"

#include "support.h"

#include "core/memory.h"
#include "infer/calibrate.h"
#include "kernels/pointwise.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

const char *const qb_golden_models[] = {"a-gpt2", "a-llama-mha", "a-llama-gqa-tied",
                                        "a-llama3-scaled", NULL};

qb_golden qb_golden_open(const char *name)
{
    char file[128], folder[4096];
    size_t n_tokens, n_logits, n_nll;
    snprintf(file, sizeof file, "%s/golden.safetensors", name);
    const char *path = qb_test_golden(file);
    if (!path) QB_SKIP("golden cases are absent");
    qb_golden g = {0};
    g.tokens = qb_test_safetensor(path, "tokens", "I32", &n_tokens);
    g.logits = qb_test_safetensor(path, "logits", "F32", &n_logits);
    float *nll = qb_test_safetensor(path, "nll", "F32", &n_nll);
    for (size_t i = 0; i < n_nll; i++) g.mean_nll += (double)nll[i] / (double)n_nll;
    qb_free(nll);
    g.vocab = n_logits / n_tokens;
    g.batch = n_tokens - n_nll;
    g.n_tokens = n_tokens / g.batch;
    snprintf(folder, sizeof folder, "%s", path);
    *strrchr(folder, '/') = 0;
    QB_CHECK_OK(qb_model_open(folder, &g.model));
    QB_CHECK_OK(qb_calibrate(g.model, NULL, NULL, 512, &g.calibration));
    return g;
}

void qb_golden_close(qb_golden *golden)
{
    qb_model_close(golden->model);
    qb_calibration_destroy(golden->calibration);
    qb_free(golden->tokens);
    qb_free(golden->logits);
}

float *qb_golden_run(const qb_golden *golden, const char *device, const qb_scheme *scheme)
{
    qb_backbone *backbone;
    qb_engine *engine;
    const char *note;
    const size_t rows = golden->batch * golden->n_tokens;
    qb_backbone_options options = {.max_tokens = rows};
    QB_CHECK_OK(qb_pool_create(2, &options.pool));
    QB_CHECK_OK(qb_device_find(device, &options.device, &note));
    QB_CHECK_OK(qb_backbone_create(golden->model, &options, &backbone));
    qb_engine_options engine_options = {.scheme = scheme, .calibration = golden->calibration};
    QB_CHECK_OK(qb_engine_create(backbone, &engine_options, &engine));
    QB_CHECK_OK(qb_engine_prefill(engine, golden->tokens, golden->batch, golden->n_tokens));
    float *logits = malloc(rows * golden->vocab * sizeof *logits);
    assert_non_null(logits);
    QB_CHECK_OK(qb_engine_logits(engine, 0, rows, logits));
    qb_engine_destroy(engine);
    qb_backbone_destroy(backbone);
    qb_pool_destroy(options.pool);
    return logits;
}

double qb_golden_error(const qb_golden *golden, const float *logits)
{
    const size_t n = golden->batch * golden->n_tokens * golden->vocab;
    double top = 0;
    for (size_t i = 0; i < n; i++) top = fmax(top, fabs((double)golden->logits[i]));
    return qb_test_max_diff(logits, golden->logits, n, NULL) / top;
}

double qb_golden_nll_error(const qb_golden *golden, const float *logits)
{
    const qb_pointwise_row *kernels = QB_KERNEL_PICK(qb_pointwise_kernels);
    double sum = 0;
    int32_t top;
    for (size_t b = 0; b < golden->batch; b++)
        for (size_t t = 0; t + 1 < golden->n_tokens; t++) {
            const float *row = logits + (b * golden->n_tokens + t) * golden->vocab;
            sum += kernels->logsumexp(row, golden->vocab, &top) -
                   (double)row[golden->tokens[b * golden->n_tokens + t + 1]];
        }
    return fabs(sum / (double)(golden->batch * (golden->n_tokens - 1)) / golden->mean_nll - 1);
}
