/* infer/protocols.h - perplexity protocols: how a text becomes windows, and which tokens count.
 *
 * A protocol is a row. It says how the text becomes tokens, lays windows over them and names the
 * positions that are scored. Numbers of different protocols are not comparable, so the protocol is
 * always printed with the number (docs/protocols.md has each one's rules and source). */
#ifndef QB_INFER_PROTOCOLS_H
#define QB_INFER_PROTOCOLS_H

#include "model/text.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A text as one sequence of tokens, and what normalising by words or bytes needs. */
typedef struct qb_stream {
    qb_tokens tokens;
    size_t *doc_end; /* (n_docs) end of each document in tokens; owned */
    size_t n_docs;
    double n_words, n_text_bytes; /* of the documents behind all tokens; NaN = not countable */
} qb_stream;

/* The first fed token is first_id, or the stream's own where first_id < 0:
 *     fed[j]    = tokens[first_target - 1 + j]                                            (1)
 *     target[j] = tokens[first_target + j], scored for score_from <= j < score_from + n_scored */
typedef struct qb_window {
    size_t first_target;
    size_t n_feed;
    size_t score_from, n_scored;
    int32_t first_id;
} qb_window;

typedef struct qb_windows {
    qb_window *items; /* owned */
    size_t n;
    size_t n_feed_max; /* the longest window */
    size_t n_scored;   /* in all windows */
    size_t context, stride;
} qb_windows;

typedef struct qb_protocol_options {
    size_t context;   /* >= 2 */
    size_t stride;    /* 0 = half the context; only for protocols with has_stride */
    int32_t bos, eos; /* of the tokenizer, -1 = none */
    bool add_bos;     /* the tokenizer puts BOS before a text */
    size_t unscored;  /* first targets of every window to leave out: the model's free prefix, whose
                         tokens see each other (model/arch.h); 0 = none */
} qb_protocol_options;

typedef struct qb_protocol qb_protocol;
struct qb_protocol {
    const char *name;
    size_t default_context; /* 0 = the trained context, at most 1,024 */
    bool has_stride;
    bool per_document; /* windows do not cross documents, and no eos stands between them */
    bool raw;          /* the file as one text, separator lines and all */
    size_t n_beyond;   /* disjoint windows: a window spans context + n_beyond tokens of the text */
    bool second_half;  /* disjoint windows: only targets of the second half are scored */
    qb_status (*lay)(const qb_protocol *protocol, const qb_stream *stream,
                     const qb_protocol_options *options, qb_windows *windows);
    const char *what; /* one line for help, the screen and docs */
    const char *source;
};
extern const qb_protocol qb_protocols[];               /* `paper` first; ends with a zero row */
const qb_protocol *qb_protocol_find(const char *name); /* NULL = none */

/* The text as the protocol wants it, at most max_tokens tokens (0 = all). */
qb_status qb_protocol_tokenize(const qb_protocol *protocol, const qb_text *text,
                               const qb_tokenizer *tokenizer, size_t max_tokens, qb_stream *out);
void qb_stream_deinit(qb_stream *stream); /* accepts a zeroed one */

/* The largest context of which the stream holds a whole window; 0 = none at all. */
size_t qb_protocol_largest_context(const qb_protocol *protocol, const qb_stream *stream);
/* Lays the windows. QB_ERR_SHAPE where the stream is shorter than one window: the message names
 * both numbers. QB_ERR_USAGE: a stride where the protocol has none, or beyond the context.
 * QB_ERR_UNSUPPORTED: targets to leave out where the protocol's figures need them all. */
qb_status qb_windows_create(const qb_protocol *protocol, const qb_stream *stream,
                            const qb_protocol_options *options, qb_windows *out);
void qb_windows_deinit(qb_windows *windows); /* accepts a zeroed one */

/* Writes (1): fed[0..n_feed); targets[j] is -1 where j is not scored. Either may be NULL. */
void qb_window_tokens(const qb_stream *stream, const qb_window *window, int32_t *fed,
                      int32_t *targets);
/* Windows [first, first + result) run as one batch: consecutive, equally long, at most
 * max_batch. */
size_t qb_windows_batch(const qb_windows *windows, size_t first, size_t max_batch);
/* As many windows as make 8,192 tokens, at least 1. */
size_t qb_protocol_default_batch(size_t context);

#ifdef __cplusplus
}
#endif
#endif
