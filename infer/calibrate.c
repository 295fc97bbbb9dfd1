/* infer/calibrate.c - maxima of activations on calibration text. */
#include "infer/calibrate.h"

#include "core/memory.h"
#include "infer/engine_internal.h"

#include <string.h>

enum { DEFAULT_TOKENS = 4096, WINDOW_TOKENS = 512, HEAD_ROWS = 32 };

/* The head's input is the final hidden state, its output the logits: HEAD_ROWS rows at a time. */
static qb_status collect_head(qb_engine *e, qb_calibration *c, float *logits)
{
    qb_calibration_linear *l = qb_calibration_at(c, QB_ROLE_HEAD, 0);
    const qb_linear *head = &e->backbone->head;
    for (size_t m = 0; m < e->n_rows; m++)
        head->quantize->absmax_channels(e->hidden + m * head->k, head->k, l->in_channel_max);
    for (size_t m = 0; m < e->n_rows; m += HEAD_ROWS) {
        size_t n = e->n_rows - m < HEAD_ROWS ? e->n_rows - m : HEAD_ROWS;
        QB_TRY(qb_engine_logits(e, m, n, logits));
        float out = head->quantize->absmax(logits, n * head->n);
        l->out_max = out > l->out_max ? out : l->out_max;
    }
    l->in_max = head->quantize->absmax(l->in_channel_max, head->k);
    return QB_OK;
}

static qb_status run_windows(qb_backbone *b, const qb_tokens *tokens, size_t max_tokens,
                             qb_calibration *c)
{
    qb_scheme full = {.name = "full"};
    qb_engine *e = NULL;
    float *logits = NULL;
    qb_status status;
    size_t window = b->config->context < WINDOW_TOKENS ? b->config->context : WINDOW_TOKENS;
    window = window < b->max_tokens ? window : b->max_tokens;
    size_t n = tokens->n < max_tokens ? tokens->n : max_tokens;
    QB_TRY_GOTO(status, qb_engine_create(b, &(qb_engine_options){.scheme = &full}, &e), done);
    QB_TRY_GOTO(status, QB_NEW(&logits, HEAD_ROWS * b->config->vocab, "logits"), done);
    e->collect = c;
    for (size_t at = 0; at < n; at += window) {
        size_t n_now = n - at < window ? n - at : window;
        QB_TRY_GOTO(status, qb_engine_prefill(e, tokens->ids + at, 1, n_now), done);
        QB_TRY_GOTO(status, collect_head(e, c, logits), done);
    }
    c->n_tokens = n;
done:
    qb_engine_destroy(e);
    qb_free(logits);
    return status;
}

static qb_status calibrate_on(qb_backbone *b, const qb_text *text, size_t max_tokens,
                              qb_calibration **out)
{
    if (!b->model->tokenizer)
        return QB_FAIL(QB_ERR_FORMAT, "%s: no tokenizer, so static scales cannot be calibrated",
                       b->model->path);
    qb_tokens tokens = {0};
    qb_calibration *c = NULL;
    qb_status status;
    QB_TRY_GOTO(status, qb_text_tokenize(text, b->model->tokenizer, &tokens), done);
    if (!tokens.n) {
        status = QB_FAIL(QB_ERR_FORMAT, "%s: no tokens to calibrate on", text->name);
        goto done;
    }
    QB_TRY_GOTO(status, qb_calibration_create(b->config, &c), done);
    QB_TRY_GOTO(status, qb_strdup(&c->text_name, text->name), done);
    memcpy(c->text_sha256, text->sha256, sizeof c->text_sha256);
    QB_TRY_GOTO(status, run_windows(b, &tokens, max_tokens ? max_tokens : DEFAULT_TOKENS, c), done);
done:
    qb_tokens_deinit(&tokens);
    if (status != QB_OK)
        qb_calibration_destroy(c);
    else
        *out = c;
    return status;
}

qb_status qb_calibrate(qb_backbone *backbone, const qb_text *text, size_t max_tokens,
                       qb_calibration **out)
{
    const qb_model *model = backbone->model;
    if (!text && model->calibration)
        return qb_calibration_from_json(model->calibration, &model->config, out);
    if (text) return calibrate_on(backbone, text, max_tokens, out);
    qb_text builtin;
    QB_TRY(qb_text_builtin_calibration(&builtin));
    qb_status status = calibrate_on(backbone, &builtin, max_tokens, out);
    qb_text_deinit(&builtin);
    return status;
}
