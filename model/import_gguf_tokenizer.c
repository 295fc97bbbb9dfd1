/* model/import_gguf_tokenizer.c - tokenizer.ggml.* metadata as a tokenizer. */
#include "core/memory.h"
#include "model/gguf_internal.h"

#include <string.h>

/* tokenizer.ggml.token_type (llama.h): 1 normal, 2 unknown, 3 control, 4 user, 5 unused, 6 byte. */
static const uint8_t types_by_number[] = {
    [1] = QB_TOKEN_NORMAL, [2] = QB_TOKEN_UNKNOWN, [3] = QB_TOKEN_CONTROL,
    [4] = QB_TOKEN_USER,   [5] = QB_TOKEN_UNUSED,  [6] = QB_TOKEN_BYTE,
};

/* What the specification borrows during creation. */
typedef struct gguf_vocab {
    const char **texts, **merges;
    size_t *text_bytes, *merge_bytes;
    uint8_t *types;
    float *scores;
    char pre[64];
} gguf_vocab;

static void vocab_deinit(gguf_vocab *v)
{
    qb_free(v->texts);
    qb_free(v->merges);
    qb_free(v->text_bytes);
    qb_free(v->merge_bytes);
    qb_free(v->types);
    qb_free(v->scores);
}

/* An array of the given type; n 0 = any length. NULL in *out where absent and not required. */
static qb_status get_array(const qb_gguf *g, const char *key, qb_gguf_type type, size_t n,
                           bool required, const qb_gguf_kv **out)
{
    const qb_gguf_kv *kv = qb_gguf_find(g, key);
    *out = NULL;
    if (!kv && !required) return QB_OK;
    if (!kv) return QB_FAIL(QB_ERR_FORMAT, "key %s is missing: found none, expected one", key);
    if (!kv->is_array || kv->type != type)
        return QB_FAIL(QB_ERR_FORMAT, "key %s: found %s type %d, expected an array of type %d", key,
                       kv->is_array ? "an array of" : "one value of", kv->type, type);
    if (n && kv->n != n)
        return QB_FAIL(QB_ERR_FORMAT, "key %s: found %zu items, expected %zu", key, kv->n, n);
    *out = kv;
    return QB_OK;
}

static qb_status split_texts(const qb_gguf_kv *kv, const char ***texts, size_t **bytes)
{
    QB_TRY(QB_NEW(texts, kv->n, "token texts"));
    QB_TRY(QB_NEW(bytes, kv->n, "token lengths"));
    const uint8_t *at = kv->value;
    for (size_t i = 0; i < kv->n; i++) {
        qb_gguf_text text = qb_gguf_next_text(&at);
        (*texts)[i] = text.data;
        (*bytes)[i] = text.bytes;
    }
    return QB_OK;
}

static qb_status read_types(const qb_gguf_kv *kv, gguf_vocab *v)
{
    QB_TRY(QB_NEW(&v->types, kv->n, "token types"));
    for (size_t i = 0; i < kv->n; i++) {
        uint32_t number;
        memcpy(&number, kv->value + 4 * i, 4);
        if (number < 1 || number >= QB_COUNT(types_by_number))
            return QB_FAIL(QB_ERR_FORMAT,
                           "key tokenizer.ggml.token_type: item %zu: found %u, expected 1 to %zu",
                           i, number, QB_COUNT(types_by_number) - 1);
        v->types[i] = types_by_number[number];
    }
    return QB_OK;
}

/* A token id, or -1 where the key is absent. */
static qb_status get_id(const qb_gguf *g, const char *key, size_t vocab, int32_t *out)
{
    size_t id = SIZE_MAX;
    QB_TRY(qb_gguf_get_size(g, key, vocab - 1, &id));
    *out = id == SIZE_MAX ? -1 : (int32_t)id;
    return QB_OK;
}

static qb_status read_pre(const qb_gguf *g, const char *default_pre, gguf_vocab *v)
{
    qb_gguf_text pre = {NULL, 0};
    QB_TRY(qb_gguf_get_text(g, "tokenizer.ggml.pre", &pre));
    if (!pre.data && default_pre) pre = (qb_gguf_text){default_pre, strlen(default_pre)};
    if (!pre.data)
        return QB_FAIL(
            QB_ERR_UNSUPPORTED,
            "key tokenizer.ggml.pre is missing: found none, expected the pre-tokenizer that "
            "the model was made with");
    if (pre.bytes >= sizeof v->pre || memchr(pre.data, 0, pre.bytes))
        return QB_FAIL(QB_ERR_UNSUPPORTED,
                       "key tokenizer.ggml.pre: found \"%.*s\", expected a known one",
                       (int)(pre.bytes < 60 ? pre.bytes : 60), pre.data);
    memcpy(v->pre, pre.data, pre.bytes);
    v->pre[pre.bytes] = 0;
    return QB_OK;
}

static qb_status read_bpe(const qb_gguf *g, const char *default_pre, gguf_vocab *v,
                          qb_tokenizer_spec *spec)
{
    const qb_gguf_kv *merges;
    QB_TRY(read_pre(g, default_pre, v));
    QB_TRY(get_array(g, "tokenizer.ggml.merges", QB_GGUF_STRING, 0, true, &merges));
    QB_TRY(split_texts(merges, &v->merges, &v->merge_bytes));
    spec->kind = QB_TOKENIZER_BPE;
    spec->pre = v->pre;
    spec->n_merges = merges->n;
    spec->merges = v->merges;
    spec->merge_bytes = v->merge_bytes;
    /* llama.cpp turns both on for the same pre-tokenizers, those of Llama 3. */
    spec->ignore_merges = spec->add_bos = qb_tokenizer_pre_ignores_merges(v->pre);
    return QB_OK;
}

static qb_status read_spm(const qb_gguf *g, gguf_vocab *v, qb_tokenizer_spec *spec)
{
    const qb_gguf_kv *scores;
    QB_TRY(get_array(g, "tokenizer.ggml.scores", QB_GGUF_F32, spec->vocab, true, &scores));
    QB_TRY(QB_NEW(&v->scores, spec->vocab, "token scores"));
    memcpy(v->scores, scores->value, scores->value_bytes);
    spec->kind = QB_TOKENIZER_SPM;
    spec->pre = "";
    spec->scores = v->scores;
    spec->add_bos = spec->add_space_prefix = true; /* llama.cpp's defaults for this kind */
    return qb_gguf_get_bool(g, "tokenizer.ggml.add_space_prefix", &spec->add_space_prefix);
}

static qb_status read_vocab(const qb_gguf *g, qb_gguf_text kind, const char *default_pre,
                            size_t vocab, gguf_vocab *v, qb_tokenizer_spec *spec)
{
    const qb_gguf_kv *tokens, *types;
    QB_TRY(get_array(g, "tokenizer.ggml.tokens", QB_GGUF_STRING, 0, true, &tokens));
    if (tokens->n < 1 || tokens->n > vocab)
        return QB_FAIL(QB_ERR_FORMAT,
                       "key tokenizer.ggml.tokens: found %zu tokens, expected 1 to %zu, the rows "
                       "of the embedding",
                       tokens->n, vocab);
    QB_TRY(split_texts(tokens, &v->texts, &v->text_bytes));
    spec->vocab = tokens->n;
    spec->texts = v->texts;
    spec->text_bytes = v->text_bytes;
    QB_TRY(get_array(g, "tokenizer.ggml.token_type", QB_GGUF_S32, tokens->n, false, &types));
    if (types) QB_TRY(read_types(types, v));
    spec->types = v->types;
    if (qb_gguf_text_is(kind, "gpt2"))
        QB_TRY(read_bpe(g, default_pre, v, spec));
    else if (qb_gguf_text_is(kind, "llama"))
        QB_TRY(read_spm(g, v, spec));
    else
        return QB_FAIL(QB_ERR_UNSUPPORTED,
                       "key tokenizer.ggml.model: found \"%.*s\", expected gpt2 or llama",
                       (int)(kind.bytes < 60 ? kind.bytes : 60), kind.data);
    QB_TRY(qb_gguf_get_bool(g, "tokenizer.ggml.add_bos_token", &spec->add_bos));
    QB_TRY(get_id(g, "tokenizer.ggml.bos_token_id", tokens->n, &spec->bos));
    QB_TRY(get_id(g, "tokenizer.ggml.eos_token_id", tokens->n, &spec->eos));
    QB_TRY(get_id(g, "tokenizer.ggml.unknown_token_id", tokens->n, &spec->unk));
    if (spec->bos < 0) spec->add_bos = false;
    return QB_OK;
}

qb_status qb__gguf_tokenizer(const qb_gguf *g, const char *default_pre, size_t vocab,
                             qb_tokenizer **out)
{
    qb_gguf_text kind = {NULL, 0};
    QB_TRY(qb_gguf_get_text(g, "tokenizer.ggml.model", &kind));
    if (!kind.data || qb_gguf_text_is(kind, "no_vocab")) return QB_OK;
    gguf_vocab v = {0};
    qb_tokenizer_spec spec = {.bos = -1, .eos = -1, .unk = -1};
    qb_status status = read_vocab(g, kind, default_pre, vocab, &v, &spec);
    if (status == QB_OK) status = qb_tokenizer_create(&spec, out);
    vocab_deinit(&v);
    return status;
}
