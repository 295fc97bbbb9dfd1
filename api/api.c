/* api/api.c - include/qbench/qbench.h: a command line of the program, run on what the caller holds.
 */
#include "cli/logits.h"
#include "cli/run.h"
#include "core/interrupt.h"
#include "core/memory.h"
#include "model/model.h"
#include "qbench/qbench.h"

#include "version.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

struct qbench_model {
    qb_model *model;
};

/* Forced kernel rows, the choice of a GPU and progress belong to the process. */
static pthread_mutex_t one_at_a_time = PTHREAD_MUTEX_INITIALIZER;

static qbench_status leave(qb_status status)
{
    pthread_mutex_unlock(&one_at_a_time);
    return (qbench_status)qb_status_exit_code(status);
}

/* ---- the library itself ---- */

int qbench_api_version(void)
{
    return QBENCH_API_VERSION;
}

const char *qbench_version(void)
{
    return QB_VERSION " (commit " QB_GIT_COMMIT ")";
}

const char *qbench_error(void)
{
    return qb_error_message();
}

const char *qbench_scheme_name(size_t i)
{
    for (size_t k = 0; k < i; k++)
        if (!qb_schemes[k].name) return NULL;
    return qb_schemes[i].name;
}

void qbench_interrupt(int wanted)
{
    qb_interrupt_set(wanted != 0);
}

void qbench_free(void *block)
{
    free(block);
}

/* ---- models ---- */

qbench_status qbench_model_open(const char *path, qbench_model **out)
{
    qbench_model *handle = NULL;
    pthread_mutex_lock(&one_at_a_time);
    qb_status status = QB_NEW_ZERO(&handle, 1, "model handle");
    if (status == QB_OK) status = qb_model_open(path, &handle->model);
    if (status == QB_OK)
        *out = handle;
    else
        qb_free(handle);
    return leave(status);
}

void qbench_model_close(qbench_model *model)
{
    if (!model) return;
    pthread_mutex_lock(&one_at_a_time);
    qb_model_close(model->model);
    qb_free(model);
    leave(QB_OK);
}

const char *qbench_model_name(const qbench_model *model)
{
    return model->model->name;
}

size_t qbench_model_vocab(const qbench_model *model)
{
    return model->model->config.vocab;
}

size_t qbench_model_context(const qbench_model *model)
{
    return model->model->config.context;
}

static qb_status copy_out(const void *data, size_t bytes, void **out)
{
    void *copy = malloc(bytes ? bytes : 1);
    if (!copy) return QB_FAIL(QB_ERR_MEMORY, "no memory for a result of %zu bytes", bytes);
    if (bytes) memcpy(copy, data, bytes);
    *out = copy;
    return QB_OK;
}

static qb_status tokenize(const qb_model *model, const char *text, size_t n_bytes, int32_t **ids,
                          size_t *n_ids)
{
    qb_tokens tokens = {0};
    if (!model->tokenizer)
        return QB_FAIL(QB_ERR_FORMAT, "%s: the model has no tokenizer", model->path);
    QB_TRY(qb_tokenizer_encode(model->tokenizer, text, n_bytes, true, &tokens));
    qb_status status = copy_out(tokens.ids, tokens.n * sizeof *tokens.ids, (void **)ids);
    if (status == QB_OK) *n_ids = tokens.n;
    qb_tokens_deinit(&tokens);
    return status;
}

qbench_status qbench_tokenize(qbench_model *model, const char *text, size_t n_bytes, int32_t **ids,
                              size_t *n_ids)
{
    pthread_mutex_lock(&one_at_a_time);
    return leave(tokenize(model->model, text, n_bytes, ids, n_ids));
}

/* ---- a command line ---- */

/* `qbench VERB --quiet --scheme SCHEME OPTIONS... -- PATH`. The words are borrowed by *out, and
 * *words is to be freed after it. */
static qb_status command_line(const char *verb, const char *scheme, const char *const *options,
                              const qb_model *model, char ***words, qb_cli **out)
{
    size_t n = 0, n_options = 0;
    while (options && options[n_options]) n_options++;
    char **w;
    QB_TRY(QB_NEW(&w, n_options + 7, "options"));
    w[n++] = "qbench";
    w[n++] = (char *)verb; /* parsing changes no word */
    w[n++] = "--quiet";
    if (scheme) {
        w[n++] = "--scheme";
        w[n++] = (char *)scheme;
    }
    for (size_t i = 0; i < n_options; i++) w[n++] = (char *)options[i];
    w[n++] = "--";
    w[n++] = model->path;
    qb_status status = qb_cli_parse((int)n, w, out);
    if (status == QB_OK)
        *words = w;
    else
        qb_free(w);
    return status;
}

static qb_status check_tokens(const qb_model *model, const int32_t *tokens, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (tokens[i] < 0 || (size_t)tokens[i] >= model->config.vocab)
            return QB_FAIL(QB_ERR_SHAPE, "token %zu: found %d, expected 0 to %zu", i, tokens[i],
                           model->config.vocab - 1);
    return QB_OK;
}

/* ---- evaluate ---- */

static qb_status to_json(const qb_results *results, char **json)
{
    size_t bytes;
    FILE *stream = open_memstream(json, &bytes);
    if (!stream) return QB_FAIL(QB_ERR_MEMORY, "no memory for the result");
    qb_status status = qb_results_write_json(results, stream);
    if (fclose(stream) && status == QB_OK)
        status = QB_FAIL(QB_ERR_MEMORY, "no memory for the result");
    if (status != QB_OK) free(*json);
    return status;
}

static qb_status evaluate(const char *schemes, const qb_run_given *given,
                          const char *const *options, char **json)
{
    char **words;
    qb_cli *cli;
    qb_results results = {0};
    if (given->tokens) QB_TRY(check_tokens(given->model, given->tokens, given->n_tokens));
    QB_TRY(command_line("run", schemes, options, given->model, &words, &cli));
    qb_status status = qb_run_measure(cli, given, &results);
    char *text = NULL;
    if (status == QB_OK) status = to_json(&results, &text);
    if (status == QB_OK) *json = text;
    qb_results_deinit(&results);
    qb_cli_destroy(cli);
    qb_free(words);
    return status;
}

qbench_status qbench_evaluate_text(qbench_model *model, const char *schemes, const char *text,
                                   size_t n_bytes, const char *const *options, char **json)
{
    const qb_run_given given = {.model = model->model, .text = text, .n_text_bytes = n_bytes};
    pthread_mutex_lock(&one_at_a_time);
    return leave(evaluate(schemes, &given, options, json));
}

qbench_status qbench_evaluate_tokens(qbench_model *model, const char *schemes,
                                     const int32_t *tokens, size_t n_tokens,
                                     const char *const *options, char **json)
{
    const qb_run_given given = {.model = model->model, .tokens = tokens, .n_tokens = n_tokens};
    pthread_mutex_lock(&one_at_a_time);
    return leave(evaluate(schemes, &given, options, json));
}

/* ---- logits ---- */

static qb_status copy_logits(qb_engine *engine, const qb_token_grid *grid, void *logits)
{
    return qb_engine_logits(engine, 0, grid->batch * grid->n_tokens, logits);
}

static qb_status logits_of(const qb_model *model, const char *scheme, const qb_token_grid *grid,
                           const char *const *options, float *logits)
{
    char **words;
    qb_cli *cli;
    if (!grid->batch || !grid->n_tokens || grid->batch > SIZE_MAX / grid->n_tokens)
        return QB_FAIL(QB_ERR_SHAPE, "tokens: found %zu x %zu, expected 1 x 1 at least",
                       grid->batch, grid->n_tokens);
    QB_TRY(check_tokens(model, grid->ids, grid->batch * grid->n_tokens));
    QB_TRY(command_line("logits", scheme, options, model, &words, &cli));
    qb_status status = qb_logits_run(cli, model, grid, copy_logits, logits);
    qb_cli_destroy(cli);
    qb_free(words);
    return status;
}

qbench_status qbench_logits(qbench_model *model, const char *scheme, const int32_t *tokens,
                            size_t batch, size_t n_tokens, const char *const *options,
                            float *logits)
{
    const qb_token_grid grid = {.ids = tokens, .batch = batch, .n_tokens = n_tokens};
    pthread_mutex_lock(&one_at_a_time);
    return leave(logits_of(model->model, scheme, &grid, options, logits));
}
