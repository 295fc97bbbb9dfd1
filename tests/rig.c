/* tests/rig.c - see rig.h. */
#include "rig.h"

#include "support.h"

#include <stdlib.h>

qb_test_rig qb_test_rig_create(const qb_config *config, const qb_test_rig_options *options)
{
    const size_t n_rows = options->batch * options->n_tokens;
    qb_test_rig r = {.batch = options->batch,
                     .n_tokens = options->n_tokens,
                     .n_rows = n_rows,
                     .n_logits = n_rows * config->vocab};
    QB_CHECK_OK(qb_pool_create(options->n_threads ? options->n_threads : 2, &r.pool));
    r.model = qb_test_tiny_model(config, 5);
    qb_backbone_options backbone = {.max_tokens = n_rows,
                                    .pool = r.pool,
                                    .logit_slots = options->logit_slots,
                                    .logit_rows = options->logit_rows};
    QB_CHECK_OK(qb_backbone_create(r.model, &backbone, &r.cpu));
    if (options->device) {
        const char *note;
        QB_CHECK_OK(qb_device_find(options->device, &backbone.device, &note));
        QB_CHECK_OK(qb_backbone_create(r.model, &backbone, &r.gpu));
    }
    r.calibration = qb_test_constant_calibration(config);
    r.tokens = malloc(n_rows * sizeof *r.tokens);
    assert_non_null(r.tokens);
    qb_test_tokens(config, r.tokens, n_rows, 3);
    return r;
}

void qb_test_rig_destroy(qb_test_rig *r)
{
    free(r->tokens);
    qb_calibration_destroy(r->calibration);
    qb_backbone_destroy(r->gpu);
    qb_backbone_destroy(r->cpu);
    qb_model_close(r->model);
    qb_pool_destroy(r->pool);
}

float *qb_test_prefill(const qb_test_rig *r, qb_engine *e)
{
    const size_t vocab = r->model->config.vocab, half = r->n_rows / 2;
    float *logits = malloc(r->n_logits * sizeof *logits);
    assert_non_null(logits);
    QB_CHECK_OK(qb_engine_prefill(e, r->tokens, r->batch, r->n_tokens));
    /* any order, any piece */
    QB_CHECK_OK(qb_engine_logits(e, half, r->n_rows - half, logits + half * vocab));
    QB_CHECK_OK(qb_engine_logits(e, 0, half, logits));
    return logits;
}

float *qb_test_logits(const qb_test_rig *r, qb_backbone *backbone, const qb_scheme *scheme,
                      bool fake, bool quantize_head)
{
    qb_engine *e;
    const qb_engine_options options = {.scheme = scheme,
                                       .fake = fake,
                                       .quantize_head = quantize_head,
                                       .calibration = r->calibration};
    QB_CHECK_OK(qb_engine_create(backbone, &options, &e));
    float *logits = qb_test_prefill(r, e);
    qb_engine_destroy(e);
    return logits;
}
