/* cli/run_text.c - tokens and windows of a text for one model; see run.h. */
#include "cli/run.h"

#include "core/memory.h"

#include <math.h>
#include <string.h>

enum { MOST_DEFAULT_CONTEXT = 1024 };

static qb_status choose_context(const qb_cli *cli, const qb_model *model, const qb_run_text *t,
                                size_t *out)
{
    const qb_config *config = &model->config;
    if (qb_cli_is_set(cli, "context")) {
        *out = qb_cli_size(cli, "context");
        if (*out > qb_config_longest(config))
            return QB_FAIL(QB_ERR_USAGE, "--context: found %zu, expected at most %zu (%s of %s)",
                           *out, qb_config_longest(config), qb_config_limit(config), model->path);
        if (*out > config->context)
            qb_cli_note(cli, "--context %zu is more than %s was trained with (%zu)", *out,
                        model->name, config->context);
        return QB_OK;
    }
    size_t context = config->context,
           largest = qb_protocol_largest_context(t->protocol, &t->stream);
    if (context > MOST_DEFAULT_CONTEXT) context = MOST_DEFAULT_CONTEXT;
    if (t->protocol->default_context && t->protocol->default_context < config->context)
        context = t->protocol->default_context;
    if (largest < 2) {
        context = 2; /* the least that a text must be good for */
    } else if (largest < context) {
        qb_cli_note(cli, "the text has %zu tokens: windows of %zu instead of %zu",
                    t->stream.tokens.n, largest, context);
        context = largest;
    }
    *out = context;
    return QB_OK;
}

static qb_status lay(const qb_cli *cli, const qb_model *model, qb_run_text *t)
{
    const qb_tokenizer *tokenizer = model->tokenizer; /* NULL: tokens were given */
    qb_protocol_options options = {.stride = qb_cli_size(cli, "stride"),
                                   .bos = tokenizer ? qb_tokenizer_bos(tokenizer) : -1,
                                   .eos = tokenizer ? qb_tokenizer_eos(tokenizer) : -1,
                                   .add_bos = tokenizer && qb_tokenizer_add_bos(tokenizer),
                                   .unscored = model->config.free_prefix};
    QB_TRY(choose_context(cli, model, t, &options.context));
    QB_TRY(qb_windows_create(t->protocol, &t->stream, &options, &t->windows));
    if (!t->windows.n_scored)
        return QB_FAIL(QB_ERR_FORMAT,
                       "%s: found no token of the text that is scored, expected some",
                       t->protocol->name);
    if (options.unscored)
        qb_cli_note(cli,
                    "the first %zu targets of each window are not scored: tokens of %s's free "
                    "prefix see each other",
                    options.unscored, model->name);
    t->batch = qb_cli_is_set(cli, "batch") ? qb_cli_size(cli, "batch")
                                           : qb_protocol_default_batch(options.context);
    if (t->batch > t->windows.n) t->batch = t->windows.n;
    return QB_OK;
}

static qb_status take_tokens(const qb_run_given *given, size_t max_tokens, qb_stream *s)
{
    size_t n = given->n_tokens;
    if (max_tokens && max_tokens < n) n = max_tokens;
    *s = (qb_stream){.n_docs = 1, .n_words = NAN, .n_text_bytes = NAN};
    QB_TRY(QB_NEW(&s->doc_end, 1, "documents"));
    QB_TRY(QB_NEW(&s->tokens.ids, n ? n : 1, "tokens"));
    if (n) memcpy(s->tokens.ids, given->tokens, n * sizeof *s->tokens.ids);
    s->tokens.n = s->tokens.capacity = s->doc_end[0] = n;
    return QB_OK;
}

qb_status qb_run_text_check(const qb_model *model)
{
    if (model->tokenizer) return QB_OK;
    return QB_FAIL(QB_ERR_FORMAT,
                   "%s: found no tokenizer in the file, expected one to evaluate a text with "
                   "(--no-quality measures speed alone)",
                   model->path);
}

/* For messages: the path as it was given. */
static const char *input_name(const qb_cli *cli, const qb_text *text)
{
    const char *path = qb_cli_string(cli, "text");
    return path && strcmp(path, "-") ? path : text->name;
}

qb_status qb_run_text_open(const qb_cli *cli, const qb_model *model, const qb_text *text,
                           const qb_run_given *given, qb_run_text *out)
{
    bool has_tokens = given && given->tokens;
    if (!has_tokens) QB_TRY(qb_run_text_check(model));
    qb_run_text t = {.protocol = qb_protocol_find(qb_cli_string(cli, "protocol"))};
    size_t max_tokens = qb_cli_size(cli, "max-tokens");
    qb_status status = has_tokens ? take_tokens(given, max_tokens, &t.stream)
                                  : qb_protocol_tokenize(t.protocol, text, model->tokenizer,
                                                         max_tokens, &t.stream);
    if (status == QB_OK) status = lay(cli, model, &t);
    if (status != QB_OK) {
        qb_run_text_close(&t);
        return status == QB_ERR_USAGE ? status : qb_error_prefix(status, input_name(cli, text));
    }
    t.n_words = t.stream.n_words;
    t.n_bytes = t.stream.n_text_bytes;
    if (isnan(t.n_bytes) && model->tokenizer)
        t.n_bytes = qb_quality_scored_bytes(&t.stream, &t.windows, model->tokenizer);
    *out = t;
    return QB_OK;
}

void qb_run_text_close(qb_run_text *text)
{
    qb_windows_deinit(&text->windows);
    qb_stream_deinit(&text->stream);
}
