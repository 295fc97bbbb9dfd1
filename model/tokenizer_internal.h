/* model/tokenizer_internal.h - the tokenizer object as its own files see it.
 *
 * tokenizer.c        create, lookup, decode               tokenizer_bin.c   the form in model.bin
 * tokenizer_index.c  hash tables, checks                  tokenizer_hf.c    tokenizer.json
 * tokenizer_hf_spm.c what SentencePiece has in it         tokenizer_hf_write.c  tokenizer.json out
 * tokenizer_encode.c special tokens, the merge heap       tokenizer_pre.c   pre-splitter table
 * tokenizer_bpe.c    words and pairs of byte-level BPE    words.c           cutting into words
 * tokenizer_spm.c    SentencePiece BPE */
#ifndef QB_MODEL_TOKENIZER_INTERNAL_H
#define QB_MODEL_TOKENIZER_INTERNAL_H

#include "core/hash.h"
#include "model/tokenizer.h"
#include "model/words.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <string.h>

enum {
    QB__MAX_VOCAB = 1 << 24,
    QB__MAX_TEXT_BYTES = 65535, /* of one token; the longest seen in the field has 512 */
    QB__MAX_SPECIAL_BYTES = 256,
};

/* One row a pre-splitter: every alternative together covers any text, so the pieces tile it. */
typedef struct qb__pre {
    const char *name;     /* as in GGUF's tokenizer.ggml.pre */
    const char *aliases;  /* comma list of other names for the same split; NULL = none */
    const char *hf_regex; /* the Split pattern of tokenizer.json; NULL = hf_digits form */
    bool hf_digits;       /* tokenizer.json: Sequence[Digits individual, ByteLevel] */
    bool hf_byte_level;   /* tokenizer.json: plain ByteLevel with its own regex */
    bool gguf_ignore_merges;
    const char *pattern; /* PCRE2 with PCRE2_UTF */
    /* The bytes of the piece at s where ASCII alone decides, 0 = ask the pattern; NULL = always. */
    size_t (*scan)(const char *s, size_t n_bytes);
} qb__pre;
const qb__pre *qb__pre_find(const char *name); /* NULL = unknown */
const qb__pre *qb__pre_find_hf_regex(const char *regex);
const qb__pre *qb__pre_find_hf_digits(void);
const qb__pre *qb__pre_find_hf_byte_level(void);
/* "gpt-2, smollm, ..." for messages. */
const char *qb__pre_names(void);
qb_status qb__pre_compile(const qb__pre *pre, pcre2_code **out);
size_t qb__scan_gpt2(const char *s, size_t n_bytes);
size_t qb__scan_smollm(const char *s, size_t n_bytes);

struct qb_words {
    const qb__pre *pre;
    const pcre2_code *code; /* borrowed */
    pcre2_code *own_code;   /* NULL where code belongs to a tokenizer */
    pcre2_match_data *match;
    const char *text;
    size_t n_bytes, at;
    const char *subject; /* the well-formed stretch that `at` is in, up to valid_end */
    size_t subject_at, valid_end;
};
qb_status qb__words_init(qb_words *words, const qb__pre *pre, const pcre2_code *code);
void qb__words_deinit(qb_words *words);

/* A merge of two tokens, by rank. */
typedef struct qb__merge {
    uint32_t left, right;
} qb__merge;
typedef struct qb__pair_slot {
    uint64_t pair; /* left << 32 | right; all ones = free */
    uint32_t rank;
    int32_t result;
} qb__pair_slot;

struct qb_tokenizer {
    qb_tokenizer_kind kind;
    const qb__pre *pre; /* BPE */
    size_t vocab, n_merges;
    char *texts;       /* all token texts in a row, as in the vocabulary */
    size_t *text_at;   /* (vocab + 1) */
    uint8_t *types;    /* (vocab) */
    float *scores;     /* (vocab) SentencePiece by scores, else NULL */
    qb__merge *merges; /* (n_merges) BPE, SentencePiece by merges */
    int32_t bos, eos, unk;
    bool add_bos, add_space_prefix, ignore_merges, nfc, prefix_first_only, prefix_unless_space;

    /* derived by qb__tokenizer_finish */
    char *bytes;          /* what each token stands for, each followed by a NUL */
    size_t *bytes_at;     /* (vocab + 1) */
    uint32_t *text_slots; /* hash of text -> id + 1; 0 = free */
    size_t text_mask, max_text_bytes;
    qb__pair_slot *pair_slots; /* of the merges */
    size_t pair_mask;
    int32_t byte_id[256]; /* -1 = the vocabulary has no such byte */
    int32_t *specials;    /* control, user and unknown tokens, sorted by text */
    size_t n_specials;
    bool special_first[256]; /* a special token starts with this byte */
    bool splits_at_spaces;   /* SentencePiece: no token has a space after something else */
    pcre2_code *splitter;    /* BPE */
    char sha256[65];
};

/* Makes texts findable; the first step of finish, earlier where merges are given as texts. */
qb_status qb__tokenizer_index_texts(qb_tokenizer *t);
/* Fills what is derived and checks everything that the serialised part can get wrong. */
qb_status qb__tokenizer_finish(qb_tokenizer *t);
/* The id of a vocabulary text, -1 = none. */
int32_t qb__tokenizer_find(const qb_tokenizer *t, const char *text, size_t n_bytes);
static inline const char *qb__token_text(const qb_tokenizer *t, size_t id, size_t *n_bytes)
{
    *n_bytes = t->text_at[id + 1] - t->text_at[id];
    return t->texts + t->text_at[id];
}
static inline bool qb__token_is_special(const qb_tokenizer *t, size_t id)
{
    return t->types[id] == QB_TOKEN_CONTROL || t->types[id] == QB_TOKEN_USER ||
           t->types[id] == QB_TOKEN_UNKNOWN;
}
qb_status qb__tokens_reserve(qb_tokens *tokens, size_t extra);
/* Length of the well-formed UTF-8 sequence at s (Unicode 15, table 3-7); 0 = none. */
size_t qb__utf8_length(const char *s, size_t n_bytes);
/* The byte-level alphabet of GPT-2 (bytes_to_unicode): code point of each byte, and back. */
uint32_t qb__byte_to_code_point(uint8_t byte);
int qb__code_point_to_byte(uint32_t code_point); /* -1 = not in the alphabet */

/* The byte that a SentencePiece text <0xXX> stands for, -1 = it is no such text. */
int qb__byte_of_text(const char *text, size_t n_bytes);
/* Normalizer, pre-tokenizer and decoder of a SentencePiece tokenizer.json: sets the kind and how
 * spaces are put first, or refuses by name; and the other way (NULL where memory lacks). */
qb_status qb__hf_read_spm(const json_t *root, qb_tokenizer_spec *spec);
void qb__hf_spm_components(const qb_tokenizer *t, json_t **normalizer, json_t **pre_tokenizer,
                           json_t **decoder);

/* ---- one call of encode ---- */

#define QB__NO_KEY UINT32_MAX
typedef struct qb__symbol {
    uint32_t at;         /* first byte in the word */
    uint32_t prev, next; /* symbol indices; next of the last = n_symbols */
    int32_t id;          /* -1 = no such token */
    uint32_t key;        /* priority of merging this with the next, smallest first */
} qb__symbol;
/* A word and its ids, in one cache line; longer ones are merged anew each time. */
enum { QB__CACHED_BYTES = 30, QB__CACHED_IDS = 8 };
typedef struct qb__cached_word {
    uint8_t n_bytes; /* 0 = free */
    uint8_t n_ids;
    char word[QB__CACHED_BYTES];
    int32_t ids[QB__CACHED_IDS];
} qb__cached_word;

struct qb_encoder {
    const qb_tokenizer *t;
    qb_tokens *out; /* of this call */
    qb__symbol *symbols;
    size_t symbols_capacity;
    uint64_t *heap; /* key << 32 | symbol index */
    size_t heap_n;
    qb__cached_word *cache;
    size_t cache_mask;
    bool at_start; /* the segment is the text's first, without a special token before it */
    char *work;    /* the segment, escaped or prefixed */
    size_t work_capacity;
    char *spelled; /* a word in the byte-level alphabet */
    size_t spelled_capacity;
    qb_words words; /* BPE */
};

/* The priority of joining two neighbours whose text ends before end_at, QB__NO_KEY = cannot be
 * joined; *result = the token they become. */
typedef uint32_t (*qb__pair_key)(const qb_tokenizer *t, const char *word, const qb__symbol *left,
                                 const qb__symbol *right, uint32_t end_at, int32_t *result);
/* By the list of merges. */
uint32_t qb__pair_rank(const qb_tokenizer *t, const char *word, const qb__symbol *left,
                       const qb__symbol *right, uint32_t end_at, int32_t *result);
/* Merges symbols[0..n) greedily: smallest key first, ties from the left. n log n. */
void qb__merge_symbols(qb_encoder *e, const char *word, size_t n_bytes, size_t n,
                       qb__pair_key pair_key);
qb_status qb__encoder_reserve_symbols(qb_encoder *e, size_t n);
/* Appends the ids of a word seen before and sets *found, or gives the slot in which qb__cache_put
 * is to remember the word once its ids stand in out from first_out on. */
qb_status qb__cache_get(qb_encoder *e, const char *word, size_t n_bytes, size_t *slot, bool *found);
void qb__cache_put(qb_encoder *e, const char *word, size_t n_bytes, size_t slot, size_t first_out);
/* Grows a buffer of characters; the contents are lost. */
qb_status qb__reserve_chars(char **buffer, size_t *capacity, size_t bytes);

/* Encodes a segment without special tokens. It stands after the start or a special token, so this
 * is where add_space_prefix acts. */
qb_status qb__bpe_encode_segment(qb_encoder *e, const char *text, size_t n_bytes);
qb_status qb__spm_encode_segment(qb_encoder *e, const char *text, size_t n_bytes);

#endif
