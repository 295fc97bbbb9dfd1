/* cli/analyze_text.c - what `analyze` looks at: texts cut into windows, or rows of given tokens. */
#include "cli/analyze.h"

#include "cli/logits.h"
#include "core/memory.h"

#include <math.h>
#include <string.h>

enum { DEFAULT_TOKENS = 2048 }; /* of a forward call: figures do not depend on it, memory does */

static size_t default_batch(size_t n_feed)
{
    return n_feed < DEFAULT_TOKENS ? DEFAULT_TOKENS / n_feed : 1;
}

/* ---- given tokens ---- */

/* A row is a window: it is fed whole, and each token but the first is a target. */
static qb_status lay_rows(const qb_token_grid *g, qb_run_text *r)
{
    r->protocol = qb_protocol_find("hf-disjoint");
    r->stream = (qb_stream){.n_words = NAN, .n_text_bytes = NAN};
    r->windows = (qb_windows){.n = g->batch, .n_feed_max = g->n_tokens, .context = g->n_tokens};
    r->windows.stride = g->n_tokens;
    r->windows.n_scored = g->batch * (g->n_tokens - 1);
    r->n_bytes = r->n_words = NAN;
    QB_TRY(QB_NEW(&r->windows.items, g->batch, "windows"));
    for (size_t b = 0; b < g->batch; b++)
        r->windows.items[b] = (qb_window){.first_target = b * g->n_tokens + 1,
                                          .n_feed = g->n_tokens,
                                          .n_scored = g->n_tokens - 1,
                                          .first_id = -1};
    size_t n = g->batch * g->n_tokens;
    QB_TRY(QB_NEW(&r->stream.tokens.ids, n, "tokens"));
    memcpy(r->stream.tokens.ids, g->ids, n * sizeof *g->ids);
    r->stream.tokens.n = r->stream.tokens.capacity = n;
    return QB_OK;
}

static qb_status open_tokens(qb_analyze *a, const char *path, qb_analyze_text *t)
{
    int32_t *ids;
    qb_token_grid grid;
    QB_TRY(qb_token_grid_read(path, &a->model->config, &ids, &grid));
    const char *slash = strrchr(path, '/');
    qb_status status = qb_strdup(&t->text.name, slash ? slash + 1 : path);
    t->text.raw_bytes = grid.batch * grid.n_tokens * sizeof *ids;
    if (status == QB_OK) status = qb_sha256_hex(ids, t->text.raw_bytes, t->text.sha256);
    if (status == QB_OK) status = lay_rows(&grid, &t->run);
    t->run.batch = qb_cli_is_set(a->cli, "batch") ? qb_cli_size(a->cli, "batch")
                                                  : default_batch(grid.n_tokens);
    qb_free(ids);
    return status;
}

/* ---- texts ---- */

/* --bos: what sinks and outliers of a first token are, depends on which it is. */
static qb_status begin_with_bos(const qb_analyze *a, qb_run_text *r)
{
    int32_t bos = qb_tokenizer_bos(a->model->tokenizer);
    if (bos < 0)
        return QB_FAIL(QB_ERR_FORMAT,
                       "%s: --bos: found a tokenizer without a first token, expected one with it",
                       a->model->path);
    for (size_t i = 0; i < r->windows.n; i++) r->windows.items[i].first_id = bos;
    return QB_OK;
}

static qb_status open_text(qb_analyze *a, const char *path, qb_analyze_text *t)
{
    if (!a->model->tokenizer)
        return QB_FAIL(QB_ERR_FORMAT,
                       "%s: no tokenizer in the file: found a text, expected --tokens FILE",
                       a->model->path);
    if (path) {
        QB_TRY(qb_text_open(path, 0, &t->text));
    } else {
        QB_TRY(qb_text_builtin(&t->text));
        qb_cli_note(a->cli, "no --text: the built-in text is used (%zu bytes)", t->text.raw_bytes);
    }
    QB_TRY(qb_run_text_open(a->cli, a->model, &t->text, NULL, &t->run));
    if (!qb_cli_is_set(a->cli, "batch")) t->run.batch = default_batch(t->run.windows.n_feed_max);
    return qb_cli_flag(a->cli, "bos") ? begin_with_bos(a, &t->run) : QB_OK;
}

static qb_status open_one(qb_analyze *a, size_t i)
{
    if (qb_cli_is_set(a->cli, "tokens"))
        return open_tokens(a, qb_cli_list_item(a->cli, "tokens", i), &a->texts[i]);
    bool given = qb_cli_is_set(a->cli, "text");
    return open_text(a, given ? qb_cli_list_item(a->cli, "text", i) : NULL, &a->texts[i]);
}

qb_status qb_analyze_open_texts(qb_analyze *a)
{
    size_t n_texts = qb_cli_list_n_items(a->cli, "text"),
           n_tokens = qb_cli_list_n_items(a->cli, "tokens");
    if (n_texts && n_tokens)
        return QB_FAIL(QB_ERR_USAGE, "analyze: --text and --tokens: found both, expected one");
    if (n_tokens && qb_cli_flag(a->cli, "bos"))
        return QB_FAIL(QB_ERR_USAGE, "analyze: --bos and --tokens: found both, expected texts");
    a->n_texts = n_texts + n_tokens ? n_texts + n_tokens : 1;
    QB_TRY(QB_NEW_ZERO(&a->texts, a->n_texts, "texts"));
    for (size_t i = 0; i < a->n_texts; i++) {
        qb_run_text *r = &a->texts[i].run;
        QB_TRY(open_one(a, i));
        if (r->batch > r->windows.n) r->batch = r->windows.n;
        size_t rows = r->batch * r->windows.n_feed_max;
        if (rows > a->max_rows) a->max_rows = rows;
        if (r->windows.n_feed_max > a->context) a->context = r->windows.n_feed_max;
    }
    return QB_OK;
}

void qb_analyze_close_texts(qb_analyze *a)
{
    for (size_t i = 0; a->texts && i < a->n_texts; i++) {
        qb_run_text_close(&a->texts[i].run);
        qb_text_deinit(&a->texts[i].text);
    }
    qb_free(a->texts);
}
