/* cli/cmd_generate.c - qbench generate: a prompt in, its continuation out, token by token. */
#include "cli/prepare.h"

#include "core/clock.h"
#include "core/file.h"
#include "core/interrupt.h"
#include "core/memory.h"
#include "infer/sampler.h"
#include "model/tokenizer.h"

#include <stdio.h>
#include <string.h>

/* ---- the prompt ---- */

enum { MAX_PROMPT_BYTES = 1 << 24 };

static qb_status grow_prompt(char **text, size_t *capacity)
{
    size_t grown = *capacity ? 2 * *capacity : 4096;
    if (grown > MAX_PROMPT_BYTES)
        return QB_FAIL(QB_ERR_FORMAT,
                       "prompt too long: found more than %zu bytes, expected at most %d", *capacity,
                       MAX_PROMPT_BYTES / 2);
    QB_TRY(qb_realloc((void **)text, *capacity, grown, 1, "prompt"));
    *capacity = grown;
    return QB_OK;
}

/* All of standard input; the caller frees it. */
static qb_status read_standard_input(char **out, size_t *n_bytes)
{
    char *text = NULL;
    size_t n = 0, capacity = 0;
    for (;;) {
        qb_status status = QB_OK;
        if (n == capacity) status = grow_prompt(&text, &capacity);
        size_t got = 0;
        if (status == QB_OK) status = qb_stdin_read(text + n, capacity - n, &got);
        if (status != QB_OK) {
            qb_free(text);
            return qb_error_prefix(status, "standard input");
        }
        if (!got) break;
        n += got;
    }
    *out = text;
    *n_bytes = n;
    return QB_OK;
}

/* The prompt's ids, with the model's own first token; a model must be given at least one. */
static qb_status encode_prompt(const qb_cli *cli, const qb_model *model, qb_tokens *ids)
{
    const qb_tokenizer *tokenizer = model->tokenizer;
    int32_t bos = qb_tokenizer_bos(tokenizer);
    const char *prompt = qb_cli_string(cli, "prompt");
    char *read = NULL;
    size_t n_bytes = strlen(prompt);
    if (!strcmp(prompt, "-")) {
        QB_TRY(read_standard_input(&read, &n_bytes));
        prompt = read;
    }
    qb_status status = QB_OK;
    if (bos >= 0 && (qb_tokenizer_add_bos(tokenizer) || !n_bytes))
        status = qb_tokens_push(ids, bos);
    if (status == QB_OK) status = qb_tokenizer_encode(tokenizer, prompt, n_bytes, true, ids);
    qb_free(read);
    if (status == QB_OK && !ids->n)
        status = QB_FAIL(QB_ERR_USAGE, "--prompt: found no token, expected at least one");
    return status;
}

/* ---- the text ---- */

/* Bytes of tokens on their way to standard output. A character may be spread over tokens: its first
 * bytes wait here until it is whole. */
typedef struct text_stream {
    char held[4];
    size_t n_held;
    char last; /* byte written */
} text_stream;

/* Length of the UTF-8 sequence that this byte starts; 1 where it starts none. */
static size_t sequence_bytes(unsigned char first)
{
    if (first >= 0xf0 && first < 0xf5) return 4;
    if (first >= 0xe0) return first < 0xf0 ? 3 : 1;
    return first >= 0xc2 ? 2 : 1;
}

static void put_held(text_stream *stream)
{
    if (!stream->n_held) return;
    fwrite(stream->held, 1, stream->n_held, stdout);
    stream->last = stream->held[stream->n_held - 1];
    stream->n_held = 0;
}

/* Bytes that are no UTF-8 go out as they are. */
static qb_status put_bytes(text_stream *stream, const char *bytes, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        bool continues = ((unsigned char)bytes[i] & 0xc0) == 0x80;
        if (!continues) put_held(stream);
        stream->held[stream->n_held++] = bytes[i];
        if (stream->n_held >= sequence_bytes((unsigned char)stream->held[0])) put_held(stream);
    }
    return qb_cli_flush();
}

/* ---- the loop ---- */

typedef struct generation {
    const qb_cli *cli;
    const qb_model *model;
    qb_engine *engine;
    qb_sampler *sampler;
    float *logits;
    qb_tokens prompt;
    size_t max_new, n_new;
    double start_s, first_token_s, end_s;
} generation;

static qb_status generate_tokens(generation *g, text_stream *stream)
{
    int32_t eos = qb_tokenizer_eos(g->model->tokenizer);
    QB_TRY(qb_engine_prefill_last(g->engine, g->prompt.ids, 1, g->prompt.n));
    for (;;) {
        QB_TRY(qb_engine_logits(g->engine, 0, 1, g->logits));
        int32_t id = qb_sampler_next(g->sampler, g->logits);
        g->end_s = qb_now_s();
        if (!g->n_new++) g->first_token_s = g->end_s;
        if (id == eos) return QB_OK;
        size_t n_bytes;
        const char *bytes = qb_tokenizer_token_bytes(g->model->tokenizer, id, &n_bytes);
        QB_TRY(put_bytes(stream, bytes, n_bytes));
        if (g->n_new == g->max_new) return QB_OK;
        QB_TRY(qb_interrupt_check());
        QB_TRY(qb_engine_decode_step(g->engine, &id));
    }
}

static void print_statistics(const generation *g)
{
    fprintf(stderr, "prompt %zu tokens; first token after %.3f s; ", g->prompt.n,
            g->first_token_s - g->start_s);
    double decode_s = g->end_s - g->first_token_s;
    if (g->n_new > 1 && decode_s > 0)
        fprintf(stderr, "%zu tokens at %.1f tok/s; ", g->n_new, (double)(g->n_new - 1) / decode_s);
    else
        fprintf(stderr, "%zu token%s; ", g->n_new, g->n_new == 1 ? "" : "s");
    fprintf(stderr, "peak memory %.1f MB\n", (double)qb_process_peak_bytes() / 1e6);
}

/* The stream ends on a line of its own also where it is cut short. */
static qb_status stream_text(generation *g)
{
    text_stream stream = {.last = '\n'};
    qb_status status = generate_tokens(g, &stream);
    put_held(&stream);
    if (stream.last != '\n') putchar('\n');
    if (status == QB_OK) status = qb_cli_flush();
    if (status == QB_OK && !qb_cli_flag(g->cli, "quiet")) print_statistics(g);
    return status;
}

/* How many tokens fit, checked before anything large is made. */
static qb_status choose_lengths(generation *g)
{
    size_t trained = g->model->config.context, context = qb_cli_size(g->cli, "context");
    if (context > trained)
        return QB_FAIL(QB_ERR_USAGE, "--context: out of range: found %zu, expected at most %zu",
                       context, trained);
    if (!context) context = trained;
    if (g->prompt.n >= context)
        return QB_FAIL(
            QB_ERR_USAGE,
            "--prompt: too long: found %zu tokens, expected fewer than the context of %zu",
            g->prompt.n, context);
    g->max_new = qb_cli_size(g->cli, "max-tokens");
    if (g->max_new > context - g->prompt.n) {
        g->max_new = context - g->prompt.n;
        qb_cli_note(g->cli, "the context of %zu leaves room for %zu new tokens", context,
                    g->max_new);
    }
    return QB_OK;
}

static qb_status run_engine(generation *g, qb_device device, qb_pool *pool)
{
    qb_scheme scheme;
    qb_backbone *backbone = NULL;
    qb_calibration *calibration = NULL;
    qb_status status;
    QB_TRY(qb_cli_scheme(g->cli, qb_cli_string(g->cli, "scheme"), g->model, &scheme));
    qb_backbone_options rows = {.max_tokens = g->prompt.n, .pool = pool, .device = device};
    QB_TRY_GOTO(status, qb_backbone_create(g->model, &rows, &backbone), done);
    QB_TRY_GOTO(status, qb_cli_calibration(g->cli, &scheme, g->model, pool, &calibration), done);
    qb_engine_options options = {.scheme = &scheme,
                                 .quantize_head = qb_cli_flag(g->cli, "quantize-head"),
                                 .calibration = calibration,
                                 .cache_batch = 1,
                                 .cache_context = g->prompt.n + g->max_new};
    QB_TRY_GOTO(status, qb_engine_create(backbone, &options, &g->engine), done);
    status = stream_text(g);
done:
    qb_engine_destroy(g->engine);
    qb_calibration_destroy(calibration);
    qb_backbone_destroy(backbone);
    return status;
}

static qb_status generate(generation *g, qb_device device, qb_pool *pool)
{
    if (!g->model->tokenizer)
        return QB_FAIL(QB_ERR_UNSUPPORTED, "%s: no tokenizer in the file: found none, expected one",
                       g->model->path);
    qb_sampler_options sampling = {.temperature = qb_cli_double(g->cli, "temp"),
                                   .top_p = qb_cli_double(g->cli, "top-p"),
                                   .seed = qb_cli_size(g->cli, "seed")};
    QB_TRY(encode_prompt(g->cli, g->model, &g->prompt));
    QB_TRY(choose_lengths(g));
    QB_TRY(qb_sampler_create(g->model->config.vocab, &sampling, &g->sampler));
    QB_TRY(QB_NEW(&g->logits, g->model->config.vocab, "logits"));
    return run_engine(g, device, pool);
}

qb_status qb_cmd_generate(const qb_cli *cli)
{
    generation g = {.cli = cli, .start_s = qb_now_s()};
    qb_model *model = NULL;
    qb_pool *pool = NULL;
    qb_device device;
    qb_status status;
    if (!qb_cli_is_set(cli, "prompt"))
        return QB_FAIL(QB_ERR_USAGE, "generate: --prompt TEXT is needed");
    QB_TRY_GOTO(status, qb_cli_prepare(cli, &device, &pool), done);
    QB_TRY_GOTO(status, qb_model_open(qb_cli_arg(cli, 0), &model), done);
    g.model = model;
    status = generate(&g, device, pool);
done:
    qb_free(g.logits);
    qb_sampler_destroy(g.sampler);
    qb_tokens_deinit(&g.prompt);
    qb_model_close(model);
    qb_pool_destroy(pool);
    return status;
}
