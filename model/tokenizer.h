/* model/tokenizer.h - text to token ids and back: byte-level BPE and SentencePiece BPE.
 *
 * Sources: tokenizer.json (Hugging Face), GGUF metadata, model.bin. An unknown pre-tokenizer is
 * refused, never guessed. Immutable after creation; encode and decode are thread-safe. */
#ifndef QB_MODEL_TOKENIZER_H
#define QB_MODEL_TOKENIZER_H

#include "core/status.h"

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct qb_tokenizer qb_tokenizer;

typedef struct qb_tokens {
    int32_t *ids; /* owned */
    size_t n;
    size_t capacity;
} qb_tokens;
void qb_tokens_deinit(qb_tokens *tokens); /* accepts a zeroed one */
qb_status qb_tokens_push(qb_tokens *tokens, int32_t id);

typedef enum { QB_TOKENIZER_BPE, QB_TOKENIZER_SPM } qb_tokenizer_kind;
typedef enum {
    QB_TOKEN_NORMAL,
    QB_TOKEN_CONTROL,
    QB_TOKEN_USER,
    QB_TOKEN_UNKNOWN,
    QB_TOKEN_BYTE,
    QB_TOKEN_UNUSED
} qb_token_type;

/* PCRE2's version ("10.42"), which splits texts into words; true where it compiles its patterns. */
bool qb_tokenizer_regex(char *version, unsigned capacity);

/* True where llama.cpp takes a pre-split word that is a token whole (ignore_merges) by the name of
 * the GGUF pre-tokenizer alone. */
bool qb_tokenizer_pre_ignores_merges(const char *pre);

/* What an importer knows; strings are borrowed for the call. Texts of BPE tokens are in the
 * byte-level alphabet (a space is U+0120), of SentencePiece with U+2581 for a space. */
typedef struct qb_tokenizer_spec {
    qb_tokenizer_kind kind;
    const char *pre; /* name of the pre-splitter row: "gpt-2", "smollm", "llama-bpe", ... */
    size_t vocab;
    const char *const *texts; /* (vocab) */
    const size_t *text_bytes; /* (vocab) */
    const uint8_t *types;     /* (vocab) qb_token_type; NULL = all normal */
    const float *scores;      /* (vocab) SentencePiece by scores; NULL for what has merges */
    size_t n_merges;
    const char *const *merges; /* (n_merges) "left right", rank = index; BPE, SentencePiece of
                                * tokenizer.json */
    const size_t *merge_bytes;
    int32_t bos, eos, unk; /* -1 = none */
    bool add_bos;          /* the model expects bos first; the caller of encode puts it there */
    bool add_space_prefix; /* text after the start or a special token gets a space (BPE: where it
                            * has none) */
    /* SentencePiece, with add_space_prefix: not after a special token; not before a space. */
    bool prefix_first_only, prefix_unless_space;
    bool nfc;           /* BPE: the text is put into normalization form C first (Qwen2) */
    bool ignore_merges; /* BPE: a pre-split word that is a token is taken whole */
} qb_tokenizer_spec;

qb_status qb_tokenizer_create(const qb_tokenizer_spec *spec, qb_tokenizer **out);
void qb_tokenizer_destroy(qb_tokenizer *tokenizer); /* accepts NULL */
/* A tokenizer.json file, or its parsed JSON. */
qb_status qb_tokenizer_open_json(const char *path, qb_tokenizer **out);
qb_status qb_tokenizer_from_hf_json(const json_t *root, const char *what, qb_tokenizer **out);
/* For model.bin: a self-contained byte string (owned by the caller, qb_free) and back. */
qb_status qb_tokenizer_serialize(const qb_tokenizer *tokenizer, uint8_t **out, size_t *bytes);
qb_status qb_tokenizer_deserialize(const uint8_t *data, size_t bytes, qb_tokenizer **out);

/* Appends the ids of text[0..n_bytes), at most QB_TOKENIZER_MAX_TEXT bytes a call; on failure *out
 * is as before. parse_special: control tokens written out in the text (such as <|endoftext|>)
 * become their ids, else they are plain text; user tokens are found in both cases. No BOS is added.
 * Invalid UTF-8 bytes are encoded as bytes. A byte for which a BPE vocabulary has no token gives
 * nothing, as in llama.cpp and tokenizers; SentencePiece gives unk, and reads U+2581 in the text as
 * a space. */
#define QB_TOKENIZER_MAX_TEXT ((size_t)1 << 30)
qb_status qb_tokenizer_encode(const qb_tokenizer *tokenizer, const char *text, size_t n_bytes,
                              bool parse_special, qb_tokens *out);
/* The same for many texts: it remembers the words that it has met, so short texts are encoded
 * several times faster. One thread at a time; the tokenizer is borrowed. */
typedef struct qb_encoder qb_encoder;
qb_status qb_encoder_create(const qb_tokenizer *tokenizer, size_t text_bytes, qb_encoder **out);
void qb_encoder_destroy(qb_encoder *encoder); /* accepts NULL */
qb_status qb_encoder_encode(qb_encoder *encoder, const char *text, size_t n_bytes,
                            bool parse_special, qb_tokens *out);
/* The bytes of one token (SentencePiece spaces resolved); borrowed. n_bytes may be NULL. An id out
 * of range gives "". */
const char *qb_tokenizer_token_bytes(const qb_tokenizer *tokenizer, int32_t id, size_t *n_bytes);
/* The text of ids; owned by the caller (qb_free), NUL-terminated, *n_bytes without the NUL. The
 * space that add_space_prefix put in (SentencePiece) is taken out; by tokenizer.json's merges only
 * that at the start, as the Python package does. */
qb_status qb_tokenizer_decode(const qb_tokenizer *tokenizer, const int32_t *ids, size_t n,
                              char **out, size_t *n_bytes);
size_t qb_tokenizer_vocab(const qb_tokenizer *tokenizer);
int32_t qb_tokenizer_bos(const qb_tokenizer *tokenizer); /* -1 = none */
int32_t qb_tokenizer_eos(const qb_tokenizer *tokenizer);
bool qb_tokenizer_add_bos(const qb_tokenizer *tokenizer);
const char *qb_tokenizer_pre(const qb_tokenizer *tokenizer);
/* SHA-256 of the serialised form. */
const char *qb_tokenizer_sha256(const qb_tokenizer *tokenizer);
/* tokenizer.json's form, for model.bin -> HF folder (QB_ERR_UNSUPPORTED for SentencePiece by
 * scores, which it cannot say). */
qb_status qb_tokenizer_to_hf_json(const qb_tokenizer *tokenizer, json_t **out);

#ifdef __cplusplus
}
#endif
#endif
