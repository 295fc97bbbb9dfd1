/* infer/protocols.c - the table of perplexity protocols; see protocols.h. */
#include "infer/protocols.h"

#include "core/memory.h"

#include <math.h>
#include <string.h>

/* ---- laying windows ---- */

static qb_status push(qb_windows *windows, size_t *capacity, qb_window window)
{
    if (windows->n == *capacity) {
        size_t more = *capacity ? 2 * *capacity : 64;
        QB_TRY(qb_realloc((void **)&windows->items, *capacity, more, sizeof *windows->items,
                          "windows"));
        *capacity = more;
    }
    windows->items[windows->n++] = window;
    if (window.n_feed > windows->n_feed_max) windows->n_feed_max = window.n_feed;
    windows->n_scored += window.n_scored;
    return QB_OK;
}

/* paper, hf-disjoint, llama.cpp: windows side by side; a tail shorter than a window is dropped. */
static qb_status lay_disjoint(const qb_protocol *protocol, const qb_stream *stream,
                              const qb_protocol_options *options, qb_windows *windows)
{
    size_t capacity = 0, context = options->context, span = context + protocol->n_beyond;
    size_t score_from = protocol->second_half ? context / 2 : 0;
    /* the last target is the last token of the span */
    size_t n_scored = span - 1 - score_from;
    int32_t first_id = protocol->raw && options->add_bos ? options->bos : -1;
    for (size_t at = 0; at + span <= stream->tokens.n; at += span)
        QB_TRY(
            push(windows, &capacity, (qb_window){at + 1, context, score_from, n_scored, first_id}));
    return QB_OK;
}

/* hf-stride: windows start every `stride` tokens; a window scores the tokens that no window before
 * it has fed. The last one ends with the text, and may be shorter. */
static qb_status lay_stride(const qb_protocol *protocol, const qb_stream *stream,
                            const qb_protocol_options *options, qb_windows *windows)
{
    (void)protocol;
    size_t capacity = 0, n = stream->tokens.n, scored_end = 1; /* token 0 has nothing before it */
    for (size_t at = 0; scored_end < n; at += windows->stride) {
        size_t end = n - at < options->context ? n : at + options->context;
        if (scored_end == at) scored_end++; /* stride = context: the first has nothing before it */
        if (scored_end == n) break;
        QB_TRY(push(windows, &capacity,
                    (qb_window){at + 1, end - at, scored_end - at - 1, end - scored_end, -1}));
        scored_end = end;
    }
    return QB_OK;
}

/* lm-eval: each document behind one prefix token; windows side by side, the last one reaches back
 * for context so that it is full (get_rolling_token_windows, make_disjoint_window). */
static qb_status lay_rolling(const qb_protocol *protocol, const qb_stream *stream,
                             const qb_protocol_options *options, qb_windows *windows)
{
    size_t capacity = 0, context = options->context, start = 0;
    int32_t prefix = options->bos >= 0 ? options->bos : options->eos;
    if (prefix < 0)
        return QB_FAIL(QB_ERR_UNSUPPORTED,
                       "protocol %s: found neither bos nor eos in the tokenizer, expected one to "
                       "start a text with",
                       protocol->name);
    for (size_t d = 0; d < stream->n_docs; start = stream->doc_end[d++]) {
        size_t n = stream->doc_end[d] - start, first = n < context ? n : context;
        if (!n) continue;
        QB_TRY(push(windows, &capacity, (qb_window){start, first, 0, first, prefix}));
        for (size_t done = first; done < n;) {
            size_t n_scored = n - done < context ? n - done : context;
            done += n_scored;
            QB_TRY(push(
                windows, &capacity,
                (qb_window){start + done - context, context, context - n_scored, n_scored, -1}));
        }
    }
    return QB_OK;
}

/* clang-format off */
const qb_protocol qb_protocols[] = {
    {.name = "paper", .n_beyond = 1, .lay = lay_disjoint,
     .what = "disjoint windows of context+1 tokens, every one of the context targets scored, no BOS",
     .source = "arXiv:2410.17174 section 5"},
    {.name = "hf-disjoint", .lay = lay_disjoint,
     .what = "disjoint windows of context tokens, all but the first token scored, tail dropped",
     .source = "transformers run_clm.py, group_texts"},
    {.name = "hf-stride", .has_stride = true, .lay = lay_stride,
     .what = "sliding windows; each scores the tokens that no earlier window has seen",
     .source = "transformers documentation, Perplexity of fixed-length models"},
    {.name = "llama.cpp", .default_context = 512, .raw = true, .second_half = true,
     .lay = lay_disjoint,
     .what = "disjoint windows of context tokens of the raw file, second half scored",
     .source = "llama.cpp tools/perplexity"},
    {.name = "lm-eval", .per_document = true, .lay = lay_rolling,
     .what = "each document behind one prefix token, every token scored once, last window full",
     .source = "lm-evaluation-harness loglikelihood_rolling"},
    {0}};
/* clang-format on */

const qb_protocol *qb_protocol_find(const char *name)
{
    for (const qb_protocol *p = qb_protocols; p->name; p++)
        if (!strcmp(p->name, name)) return p;
    return NULL;
}

size_t qb_protocol_default_batch(size_t context)
{
    enum { TOKENS = 8192 };
    return context < TOKENS ? TOKENS / context : 1;
}

/* ---- text to stream ---- */

static size_t utf8_step(const unsigned char *p, size_t n, uint32_t *code)
{
    if (p[0] >= 0xe0 && p[0] < 0xf0 && n >= 3) {
        *code = (uint32_t)(p[0] & 15) << 12 | (uint32_t)(p[1] & 63) << 6 | (p[2] & 63);
        return 3;
    }
    if (p[0] >= 0xc0 && p[0] < 0xe0 && n >= 2) {
        *code = (uint32_t)(p[0] & 31) << 6 | (p[1] & 63);
        return 2;
    }
    *code = p[0] < 0x80 ? p[0] : 0xfffd; /* no other byte starts a white-space character */
    return 1;
}

/* What \s matches in a Python str pattern. */
static bool is_python_space(uint32_t c)
{
    return (c >= 9 && c <= 13) || (c >= 0x1c && c <= 0x20) || c == 0x85 || c == 0xa0 ||
           c == 0x1680 || (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 ||
           c == 0x202f || c == 0x205f || c == 0x3000;
}

/* Words as lm-eval counts them: len(re.split(r"\s+", text)), so a text has one word more than runs
 * of white space. */
static size_t count_words(const char *text, size_t n_bytes)
{
    size_t words = 1;
    bool in_space = false;
    for (size_t i = 0; i < n_bytes;) {
        uint32_t code;
        size_t step = utf8_step((const unsigned char *)text + i, n_bytes - i, &code);
        bool space = is_python_space(code);
        if (space && !in_space) words++;
        in_space = space;
        i += step;
    }
    return words;
}

static qb_status tokenize_documents(const qb_text *text, const qb_tokenizer *tokenizer,
                                    qb_stream *stream)
{
    QB_TRY(QB_NEW(&stream->doc_end, text->n_docs, "document ends"));
    stream->n_words = stream->n_text_bytes = 0;
    size_t start = 0;
    for (size_t d = 0; d < text->n_docs; start = text->doc_end[d++]) {
        const char *bytes = text->bytes + start;
        size_t n = text->doc_end[d] - start;
        QB_TRY(qb_tokenizer_encode(tokenizer, bytes, n, false, &stream->tokens));
        stream->doc_end[stream->n_docs++] = stream->tokens.n;
        stream->n_words += (double)count_words(bytes, n);
        stream->n_text_bytes += (double)n;
    }
    return QB_OK;
}

static qb_status tokenize_as_one(const qb_protocol *protocol, const qb_text *text,
                                 const qb_tokenizer *tokenizer, qb_stream *stream)
{
    if (protocol->raw && qb_tokenizer_add_bos(tokenizer))
        QB_TRY(qb_tokens_push(&stream->tokens, qb_tokenizer_bos(tokenizer)));
    if (protocol->raw)
        QB_TRY(qb_text_tokenize_raw(text, tokenizer, false, &stream->tokens));
    else
        QB_TRY(qb_text_tokenize(text, tokenizer, &stream->tokens));
    QB_TRY(QB_NEW(&stream->doc_end, 1, "document ends"));
    stream->doc_end[0] = stream->tokens.n;
    stream->n_docs = 1;
    stream->n_words = stream->n_text_bytes = NAN;
    return QB_OK;
}

static void truncate_stream(qb_stream *stream, size_t max_tokens)
{
    if (!max_tokens || stream->tokens.n <= max_tokens) return;
    stream->tokens.n = max_tokens;
    while (stream->n_docs > 1 && stream->doc_end[stream->n_docs - 2] >= max_tokens)
        stream->n_docs--;
    stream->doc_end[stream->n_docs - 1] = max_tokens;
    stream->n_words = stream->n_text_bytes = NAN; /* the cut need not fall between words */
}

qb_status qb_protocol_tokenize(const qb_protocol *protocol, const qb_text *text,
                               const qb_tokenizer *tokenizer, size_t max_tokens, qb_stream *out)
{
    qb_stream stream = {0};
    qb_status status = protocol->per_document ? tokenize_documents(text, tokenizer, &stream)
                                              : tokenize_as_one(protocol, text, tokenizer, &stream);
    if (status != QB_OK) {
        qb_stream_deinit(&stream);
        return status;
    }
    truncate_stream(&stream, max_tokens);
    *out = stream;
    return QB_OK;
}

void qb_stream_deinit(qb_stream *stream)
{
    qb_tokens_deinit(&stream->tokens);
    qb_free(stream->doc_end);
    *stream = (qb_stream){0};
}

/* ---- windows ---- */

size_t qb_protocol_largest_context(const qb_protocol *protocol, const qb_stream *stream)
{
    size_t n = stream->tokens.n;
    if (protocol->per_document) return n ? SIZE_MAX : 0;
    if (protocol->has_stride) return n > 1 ? SIZE_MAX : 0; /* its last window may be short */
    return n > protocol->n_beyond + 1 ? n - protocol->n_beyond : 0;
}

static qb_status check(const qb_protocol *protocol, const qb_stream *stream,
                       const qb_protocol_options *options)
{
    if (options->stride && !protocol->has_stride)
        return QB_FAIL(QB_ERR_USAGE, "--stride: protocol %s has none, expected hf-stride",
                       protocol->name);
    if (options->stride > options->context)
        return QB_FAIL(QB_ERR_USAGE, "--stride: found %zu, expected at most the context %zu",
                       options->stride, options->context);
    if (options->unscored && protocol->per_document)
        return QB_FAIL(
            QB_ERR_UNSUPPORTED,
            "protocol %s scores every token: found the first %zu of a window to see each "
            "other in this model (free_prefix), expected another --protocol",
            protocol->name, options->unscored);
    if (qb_protocol_largest_context(protocol, stream) < options->context)
        return QB_FAIL(QB_ERR_SHAPE,
                       "text too short: found %zu tokens, expected at least %zu for "
                       "one window of protocol %s",
                       stream->tokens.n,
                       protocol->has_stride ? 2 : options->context + protocol->n_beyond,
                       protocol->name);
    return QB_OK;
}

/* Targets before `unscored` are left out, and windows that have no other. */
static void leave_out(qb_windows *windows, size_t unscored)
{
    size_t n = 0;
    windows->n_scored = 0;
    for (size_t i = 0; i < windows->n; i++) {
        qb_window w = windows->items[i];
        size_t end = w.score_from + w.n_scored;
        if (w.score_from < unscored) w.score_from = unscored;
        if (w.score_from >= end) continue;
        w.n_scored = end - w.score_from;
        windows->n_scored += w.n_scored;
        windows->items[n++] = w;
    }
    windows->n = n;
}

qb_status qb_windows_create(const qb_protocol *protocol, const qb_stream *stream,
                            const qb_protocol_options *options, qb_windows *out)
{
    QB_TRY(check(protocol, stream, options));
    qb_windows windows = {.context = options->context, .stride = options->stride};
    if (!windows.stride)
        windows.stride = protocol->has_stride ? (options->context + 1) / 2
                                              : options->context + protocol->n_beyond;
    qb_status status = protocol->lay(protocol, stream, options, &windows);
    if (status != QB_OK) {
        qb_windows_deinit(&windows);
        return status;
    }
    if (options->unscored) leave_out(&windows, options->unscored);
    *out = windows;
    return QB_OK;
}

void qb_windows_deinit(qb_windows *windows)
{
    qb_free(windows->items);
    *windows = (qb_windows){0};
}

void qb_window_tokens(const qb_stream *stream, const qb_window *window, int32_t *fed,
                      int32_t *targets)
{
    const int32_t *target = stream->tokens.ids + window->first_target;
    for (size_t j = 0; j < window->n_feed; j++) {
        bool scored = j >= window->score_from && j < window->score_from + window->n_scored;
        if (fed) fed[j] = j == 0 && window->first_id >= 0 ? window->first_id : target[j - 1];
        if (targets) targets[j] = scored ? target[j] : -1;
    }
}

size_t qb_windows_batch(const qb_windows *windows, size_t first, size_t max_batch)
{
    size_t n = 0;
    while (n < max_batch && first + n < windows->n &&
           windows->items[first + n].n_feed == windows->items[first].n_feed)
        n++;
    return n;
}
