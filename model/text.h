/* model/text.h - texts to evaluate: plain UTF-8, gzip, xz, JSON lines (key "text"), standard input.
 *
 * Documents are separated by a line holding exactly <|endoftext|> (plain text) or are the lines of
 * a .jsonl file. Found by content (magic bytes) and, for JSON lines, by the name .jsonl[.gz|.xz].
 */
#ifndef QB_MODEL_TEXT_H
#define QB_MODEL_TEXT_H

#include "model/tokenizer.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct qb_text {
    char *name;  /* file name, "standard input", "built-in" */
    char *bytes; /* all documents in order, separator lines taken out; owned */
    size_t n_bytes;
    size_t *doc_end; /* (n_docs) end offset of each document */
    size_t n_docs;
    char *raw; /* the decompressed input as read, separators and JSON included; owned */
    size_t raw_bytes;
    char sha256[65]; /* of raw */
} qb_text;

/* PATH "-" = standard input. max_bytes 0 = 1 GiB: more decompressed text is refused (a bomb).
 * QB_ERR_FORMAT: broken compression, bad JSON line (its number is named), no text. */
qb_status qb_text_open(const char *path, size_t max_bytes, qb_text *out);
/* From memory, as if it were a plain file. */
qb_status qb_text_from_memory(const char *name, const char *data, size_t n_bytes, qb_text *out);
/* The texts that are built into the program (share/text/). */
qb_status qb_text_builtin(qb_text *out);
qb_status qb_text_builtin_calibration(qb_text *out);
void qb_text_deinit(qb_text *text);

/* The i-th document; its bytes are borrowed. */
const char *qb_text_document(const qb_text *text, size_t i, size_t *n_bytes);
/* The first document that starts at this byte or behind it, n_docs = none does: cuts a text into
 * tasks of about equal size. */
size_t qb_text_document_from(const qb_text *text, size_t byte);

/* Tokens of all documents, in order; between documents stands the eos token where there is one. */
qb_status qb_text_tokenize(const qb_text *text, const qb_tokenizer *tokenizer, qb_tokens *out);
/* Tokens of the raw bytes, for protocols that read a file as one text (llama.cpp's perplexity tool
 * does so with parse_special false and no bos unless the model asks for it). */
qb_status qb_text_tokenize_raw(const qb_text *text, const qb_tokenizer *tokenizer,
                               bool parse_special, qb_tokens *out);

#ifdef __cplusplus
}
#endif
#endif
