/* infer/calibrate.c - maxima of activations on calibration text. */
#include "infer/calibrate.h"

#include "core/interrupt.h"
#include "core/memory.h"
#include "core/progress.h"
#include "core/rng.h"
#include "infer/cpu_engine.h"

#include <string.h>

enum { DEFAULT_TOKENS = 4096, WINDOW_TOKENS = 512, HEAD_ROWS = 32 };

/* The largest values on both sides of each linear layer. */
typedef struct maxima {
    qb_calibration *calibration;
    const qb_quantize_row *quantize;
} maxima;

static qb_status collect(void *context, const qb_tap_view *view)
{
    const maxima *m = context;
    qb_calibration_linear *l = qb_calibration_at(m->calibration, view->role, view->layer);
    for (size_t row = 0; row < view->batch * view->n_tokens; row++) {
        const float *x = view->x + row * view->stride;
        if (view->tap == QB_TAP_INPUT) {
            m->quantize->absmax_channels(x, view->width, l->in_channel_max);
            continue;
        }
        float out = m->quantize->absmax(x, view->width);
        l->out_max = out > l->out_max ? out : l->out_max;
    }
    if (view->tap == QB_TAP_INPUT) l->in_max = m->quantize->absmax(l->in_channel_max, view->width);
    return QB_OK;
}

/* The head's input is the final hidden state, its output the logits: HEAD_ROWS rows at a time. */
static qb_status collect_head(qb_engine *e, qb_calibration *c, float *logits)
{
    qb_calibration_linear *l = qb_calibration_at(c, QB_ROLE_HEAD, 0);
    const qb_linear *head = &qb__cpu_backbone(e->backbone)->head;
    const float *hidden = qb__cpu_engine(e)->hidden;
    for (size_t m = 0; m < e->n_rows; m++)
        head->quantize->absmax_channels(hidden + m * head->k, head->k, l->in_channel_max);
    for (size_t m = 0; m < e->n_rows; m += HEAD_ROWS) {
        size_t n = e->n_rows - m < HEAD_ROWS ? e->n_rows - m : HEAD_ROWS;
        QB_TRY(qb_engine_logits(e, m, n, logits));
        float out = head->quantize->absmax(logits, n * head->n);
        l->out_max = out > l->out_max ? out : l->out_max;
    }
    l->in_max = head->quantize->absmax(l->in_channel_max, head->k);
    return QB_OK;
}

static qb_status run_windows(qb_backbone *b, const qb_tokens *tokens, size_t window,
                             qb_calibration *c)
{
    qb_scheme full = {.name = "full"};
    maxima m = {.calibration = c, .quantize = QB_KERNEL_PICK(qb_quantize_kernels)};
    const qb_taps taps = {.sees = QB_TAP_BIT(QB_TAP_INPUT) | QB_TAP_BIT(QB_TAP_OUTPUT),
                          .see = collect,
                          .context = &m};
    qb_engine *e = NULL;
    float *logits = NULL;
    qb_status status;
    QB_TRY_GOTO(status, qb_engine_create(b, &(qb_engine_options){.scheme = &full}, &e), done);
    QB_TRY_GOTO(status, QB_NEW(&logits, HEAD_ROWS * b->config->vocab, "logits"), done);
    QB_TRY_GOTO(status, qb_engine_observe(e, &taps), done);
    qb_progress progress = qb_progress_begin("calibration", tokens->n);
    for (size_t at = 0; at < tokens->n && status == QB_OK; at += window) {
        size_t n = tokens->n - at < window ? tokens->n - at : window;
        status = qb_interrupted() ? QB_FAIL(QB_ERR_INTERRUPTED, "interrupted")
                                  : qb_engine_prefill(e, tokens->ids + at, 1, n);
        if (status == QB_OK) status = collect_head(e, c, logits);
        qb_progress_update(&progress, at + n);
    }
    qb_progress_end(&progress);
    c->n_tokens = tokens->n;
done:
    qb_engine_destroy(e);
    qb_free(logits);
    return status;
}

static qb_status random_tokens(size_t n, size_t vocab, qb_tokens *out)
{
    for (size_t i = 0; i < n; i++)
        QB_TRY(qb_tokens_push(out, (int32_t)qb_rng_below(0, QB_STREAM_DATA, i, vocab)));
    return QB_OK;
}

static qb_status make_tokens(const qb_model *model, const qb_text *text, size_t max_tokens,
                             qb_tokens *out, qb_calibration *c)
{
    if (!model->tokenizer) {
        QB_TRY(qb_strdup(&c->text_name, "random token ids, since the model has no tokenizer"));
        return random_tokens(max_tokens / 4, model->config.vocab, out);
    }
    QB_TRY(qb_strdup(&c->text_name, text->name));
    memcpy(c->text_sha256, text->sha256, sizeof c->text_sha256);
    QB_TRY(qb_text_tokenize(text, model->tokenizer, out));
    if (!out->n)
        return QB_FAIL(QB_ERR_FORMAT, "%s: found no tokens to calibrate on, expected some",
                       text->name);
    if (out->n > max_tokens) out->n = max_tokens;
    return QB_OK;
}

static qb_status calibrate_on(const qb_model *model, qb_pool *pool, const qb_text *text,
                              size_t max_tokens, qb_calibration **out)
{
    size_t window = model->config.context < WINDOW_TOKENS ? model->config.context : WINDOW_TOKENS;
    qb_tokens tokens = {0};
    qb_backbone *backbone = NULL;
    qb_calibration *c = NULL;
    qb_status status;
    QB_TRY_GOTO(status, qb_calibration_create(&model->config, &c), done);
    QB_TRY_GOTO(status, make_tokens(model, text, max_tokens, &tokens, c), done);
    qb_backbone_options options = {.max_tokens = window, .pool = pool};
    QB_TRY_GOTO(status, qb_backbone_create(model, &options, &backbone), done);
    status = run_windows(backbone, &tokens, window, c);
done:
    qb_backbone_destroy(backbone);
    qb_tokens_deinit(&tokens);
    if (status != QB_OK)
        qb_calibration_destroy(c);
    else
        *out = c;
    return status;
}

qb_status qb_calibrate(const qb_model *model, qb_pool *pool, const qb_text *text, size_t max_tokens,
                       qb_calibration **out)
{
    if (!max_tokens) max_tokens = DEFAULT_TOKENS;
    if (!text && model->calibration)
        return qb_calibration_from_json(model->calibration, &model->config, out);
    if (text) return calibrate_on(model, pool, text, max_tokens, out);
    qb_text builtin;
    QB_TRY(qb_text_builtin_calibration(&builtin));
    qb_status status = calibrate_on(model, pool, &builtin, max_tokens, out);
    qb_text_deinit(&builtin);
    return status;
}
