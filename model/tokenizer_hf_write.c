/* model/tokenizer_hf_write.c - tokenizer.json out. Merges are written as "left right" strings,
 * which every version of Hugging Face tokenizers reads. */
#include "model/tokenizer_internal.h"

#include "core/json.h"

static json_t *text_json(const qb_tokenizer *t, size_t id)
{
    size_t n_bytes;
    const char *text = qb__token_text(t, id, &n_bytes);
    return json_stringn(text, n_bytes);
}

static json_t *byte_level(bool prefix, bool use_regex)
{
    return json_pack("{s:s, s:b, s:b, s:b}", "type", "ByteLevel", "add_prefix_space", prefix,
                     "trim_offsets", 1, "use_regex", use_regex);
}

static json_t *pre_tokenizer(const qb_tokenizer *t)
{
    if (t->pre->hf_byte_level) return byte_level(t->add_space_prefix, true);
    json_t *first = t->pre->hf_digits
                        ? json_pack("{s:s, s:b}", "type", "Digits", "individual_digits", 1)
                        : json_pack("{s:s, s:{s:s}, s:s, s:b}", "type", "Split", "pattern", "Regex",
                                    t->pre->hf_regex, "behavior", "Isolated", "invert", 0);
    return json_pack("{s:s, s:[o, o]}", "type", "Sequence", "pretokenizers", first,
                     byte_level(false, t->pre->hf_digits));
}

static json_t *post_processor(const qb_tokenizer *t)
{
    if (!t->add_bos || t->bos < 0) return json_null();
    json_t *bos = text_json(t, (size_t)t->bos);
    const char *name = json_string_value(bos);
    json_t *v =
        json_pack("{s:s, s:[{s:{s:O, s:i}}, {s:{s:s, s:i}}], s:[{s:{s:O, s:i}}, {s:{s:s, s:i}}, "
                  "{s:{s:s, s:i}}], s:{s:{s:O, s:[i], s:[O]}}}",
                  "type", "TemplateProcessing", "single", "SpecialToken", "id", bos, "type_id", 0,
                  "Sequence", "id", "A", "type_id", 0, "pair", "SpecialToken", "id", bos, "type_id",
                  0, "Sequence", "id", "A", "type_id", 0, "Sequence", "id", "B", "type_id", 1,
                  "special_tokens", name ? name : "", "id", bos, "ids", (int)t->bos, "tokens", bos);
    json_decref(bos);
    return v;
}

static json_t *added_tokens(const qb_tokenizer *t)
{
    json_t *list = json_array();
    for (size_t id = 0; list && id < t->vocab; id++) {
        if (!qb__token_is_special(t, id)) continue;
        json_t *token = json_pack("{s:i, s:o, s:b, s:b, s:b, s:b, s:b}", "id", (int)id, "content",
                                  text_json(t, id), "single_word", 0, "lstrip", 0, "rstrip", 0,
                                  "normalized", 0, "special", t->types[id] != QB_TOKEN_USER);
        if (json_array_append_new(list, token)) {
            json_decref(list);
            return NULL;
        }
    }
    return list;
}

static json_t *vocab(const qb_tokenizer *t)
{
    json_t *map = json_object();
    for (size_t id = 0; map && id < t->vocab; id++) {
        size_t n_bytes;
        const char *text = qb__token_text(t, id, &n_bytes);
        if (!n_bytes) continue;
        json_t *key = json_stringn(text, n_bytes); /* NULL: not UTF-8; a NUL cannot be a key */
        bool usable = key && !memchr(text, 0, n_bytes);
        if (!usable || json_object_set_new(map, json_string_value(key), json_integer((int)id))) {
            json_decref(key);
            json_decref(map);
            return NULL;
        }
        json_decref(key);
    }
    return map;
}

static json_t *merges(const qb_tokenizer *t)
{
    json_t *list = json_array();
    for (size_t i = 0; list && i < t->n_merges; i++) {
        size_t left_bytes, right_bytes;
        const char *left = qb__token_text(t, t->merges[i].left, &left_bytes);
        const char *right = qb__token_text(t, t->merges[i].right, &right_bytes);
        json_t *merge = json_sprintf("%.*s %.*s", (int)left_bytes, left, (int)right_bytes, right);
        if (json_array_append_new(list, merge)) {
            json_decref(list);
            return NULL;
        }
    }
    return list;
}

qb_status qb_tokenizer_to_hf_json(const qb_tokenizer *t, json_t **out)
{
    bool spm = t->kind == QB_TOKENIZER_SPM;
    if (spm && t->scores)
        return QB_FAIL(QB_ERR_UNSUPPORTED,
                       "tokenizer.json: found SentencePiece by scores, expected "
                       "what has merges");
    size_t mark = qb_json_mark();
    json_t *normalizer = NULL, *pre = NULL, *decoder = NULL;
    if (spm)
        qb__hf_spm_components(t, &normalizer, &pre, &decoder);
    else
        normalizer = t->nfc ? json_pack("{s:s}", "type", "NFC") : json_null(),
        pre = pre_tokenizer(t), decoder = byte_level(true, true);
    json_t *unk = spm && t->unk >= 0 ? text_json(t, (size_t)t->unk) : json_null();
    json_t *model = json_pack(
        "{s:s, s:n, s:o, s:n, s:n, s:b, s:b, s:b, s:o, s:o}", "type", "BPE", "dropout", "unk_token",
        unk, "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk", spm, "byte_fallback",
        spm, "ignore_merges", t->ignore_merges, "vocab", vocab(t), "merges", merges(t));
    json_t *root = json_pack("{s:s, s:n, s:n, s:o, s:o, s:o, s:o, s:o, s:o}", "version", "1.0",
                             "truncation", "padding", "added_tokens", added_tokens(t), "normalizer",
                             normalizer, "pre_tokenizer", pre, "post_processor", post_processor(t),
                             "decoder", decoder, "model", model);
    qb_status status = qb_json_check_memory(mark, "tokenizer.json");
    if (status == QB_OK && !root)
        status = QB_FAIL(QB_ERR_FORMAT,
                         "tokenizer.json: found a token text that is not UTF-8, expected UTF-8");
    if (status != QB_OK) {
        json_decref(root);
        return status;
    }
    *out = root;
    return QB_OK;
}
