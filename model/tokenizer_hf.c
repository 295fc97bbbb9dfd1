/* model/tokenizer_hf.c - tokenizer.json of Hugging Face tokenizers, in. Every part that would
 * change the ids is either known or refused by name; out is tokenizer_hf_write.c. */
#include "model/tokenizer_internal.h"

#include "core/file.h"
#include "core/json.h"
#include "core/memory.h"

enum { MAX_JSON_BYTES = 64 << 20 };

/* Texts and settings while the JSON is read; qb_tokenizer_spec borrows from it. */
typedef struct hf_parts {
    qb_tokenizer_spec spec;
    const char **texts;
    size_t *text_bytes;
    uint8_t *types;
    const char **merges;
    size_t *merge_bytes;
    char *joined; /* "left right" of merges given as pairs */
    bool normalizes;
} hf_parts;

static bool absent(const json_t *v)
{
    return !v || json_is_null(v);
}

/* The "type" of a component, "" where it has none. */
static const char *type_of(const json_t *v)
{
    const char *type = json_string_value(json_object_get(v, "type"));
    return type ? type : "";
}

static qb_status refuse(const char *part, const char *found, const char *expected)
{
    return QB_FAIL(QB_ERR_UNSUPPORTED, "%s: found \"%s\", expected %s", part, found, expected);
}

/* ByteLevel's settings. */
static qb_status read_byte_level(const json_t *v, bool *prefix, bool *use_regex)
{
    *prefix = *use_regex = true; /* the library's defaults */
    QB_TRY(qb_json_get_bool(v, "add_prefix_space", prefix));
    return qb_json_get_bool(v, "use_regex", use_regex);
}

static qb_status read_split(const json_t *v, const qb__pre **pre)
{
    const char *behavior = "", *regex = "";
    bool invert = false;
    QB_TRY(qb_json_get_string(v, "behavior", &behavior));
    QB_TRY(qb_json_get_bool(v, "invert", &invert));
    if (strcmp(behavior, "Isolated") || invert)
        return refuse("pre_tokenizer Split", invert ? "invert" : behavior, "Isolated");
    const json_t *pattern = json_object_get(v, "pattern");
    if (json_is_object(pattern)) QB_TRY(qb_json_get_string(pattern, "Regex", &regex));
    *pre = qb__pre_find_hf_regex(regex);
    return *pre ? QB_OK : refuse("pre_tokenizer Split pattern", regex, qb__pre_names());
}

/* Sequence[Digits or Split, ByteLevel]: the two forms that have a row in the table. */
static qb_status read_sequence(const json_t *v, const qb__pre **pre)
{
    const json_t *list = json_object_get(v, "pretokenizers");
    const json_t *first = json_array_get(list, 0), *second = json_array_get(list, 1);
    if (json_array_size(list) != 2 || strcmp(type_of(second), "ByteLevel"))
        return refuse("pre_tokenizer Sequence", second ? type_of(second) : type_of(first),
                      "two members, the second ByteLevel");
    bool prefix, use_regex, individual = false;
    QB_TRY(read_byte_level(second, &prefix, &use_regex));
    if (prefix) return refuse("pre_tokenizer ByteLevel", "add_prefix_space", "false in a Sequence");
    if (!strcmp(type_of(first), "Digits")) {
        QB_TRY(qb_json_get_bool(first, "individual_digits", &individual));
        if (!individual || !use_regex)
            return refuse("pre_tokenizer Digits", "digits together or use_regex false",
                          "individual_digits and use_regex");
        *pre = qb__pre_find_hf_digits();
        return QB_OK;
    }
    if (strcmp(type_of(first), "Split"))
        return refuse("pre_tokenizer", type_of(first), "Digits or Split before ByteLevel");
    if (use_regex) return refuse("pre_tokenizer ByteLevel", "use_regex", "false after Split");
    return read_split(first, pre);
}

static qb_status read_pre_tokenizer(const json_t *root, qb_tokenizer_spec *spec)
{
    const json_t *v = json_object_get(root, "pre_tokenizer");
    const qb__pre *pre = NULL;
    if (!strcmp(type_of(v), "Sequence")) {
        QB_TRY(read_sequence(v, &pre));
    } else if (!strcmp(type_of(v), "ByteLevel")) {
        bool use_regex;
        QB_TRY(read_byte_level(v, &spec->add_space_prefix, &use_regex));
        if (!use_regex) return refuse("pre_tokenizer ByteLevel", "use_regex false", "use_regex");
        pre = qb__pre_find_hf_byte_level();
    } else {
        return refuse("pre_tokenizer", absent(v) ? "none" : type_of(v), "ByteLevel or Sequence");
    }
    spec->pre = pre->name;
    return QB_OK;
}

static bool is_empty_sequence(const json_t *v, const char *members)
{
    const json_t *list = json_object_get(v, members);
    return !strcmp(type_of(v), "Sequence") && json_is_array(list) && !json_array_size(list);
}

/* TemplateProcessing: [bos, text] or [text]; anything behind the text is not ours to add. */
static qb_status read_template(const json_t *v, const char **bos)
{
    const json_t *single = json_object_get(v, "single");
    size_t n = json_array_size(single);
    const json_t *first = json_object_get(json_array_get(single, 0), "SpecialToken");
    const json_t *last = json_object_get(json_array_get(single, n - 1), "Sequence");
    if (n < 1 || n > 2 || !last || (n == 2 && !first))
        return refuse("post_processor", "TemplateProcessing of another form", "bos and the text");
    if (n == 2) *bos = json_string_value(json_object_get(first, "id"));
    return QB_OK;
}

static qb_status read_post_processor(const json_t *v, int depth, const char **bos)
{
    if (absent(v) || !strcmp(type_of(v), "ByteLevel")) return QB_OK;
    if (!strcmp(type_of(v), "TemplateProcessing")) return read_template(v, bos);
    const json_t *list = json_object_get(v, "processors");
    if (strcmp(type_of(v), "Sequence") || !json_is_array(list) || depth > 0)
        return refuse("post_processor", type_of(v), "ByteLevel or TemplateProcessing");
    for (size_t i = 0; i < json_array_size(list); i++)
        QB_TRY(read_post_processor(json_array_get(list, i), depth + 1, bos));
    return QB_OK;
}

/* A model key that must be absent, null, false, 0 or "". */
static qb_status want_unset(const json_t *model, const char *key)
{
    const json_t *v = json_object_get(model, key);
    bool unset = absent(v) || json_is_false(v) ||
                 (json_is_number(v) && json_number_value(v) == 0) ||
                 (json_is_string(v) && !json_string_length(v));
    if (unset) return QB_OK;
    return QB_FAIL(QB_ERR_UNSUPPORTED, "model: found %s set, expected none", key);
}

static qb_status check_model(const json_t *model)
{
    if (!json_is_object(model))
        return QB_FAIL(QB_ERR_FORMAT, "found no key \"model\", expected one");
    const json_t *v = json_object_get(model, "type"); /* old files have none */
    if (!absent(v) && strcmp(type_of(model), "BPE")) return refuse("model", type_of(model), "BPE");
    static const char *const unset[] = {"dropout", "continuing_subword_prefix",
                                        "end_of_word_suffix"};
    for (size_t i = 0; i < QB_COUNT(unset); i++) QB_TRY(want_unset(model, unset[i]));
    return QB_OK;
}

/* None, or NFC (Qwen2). */
static qb_status read_plain_normalizer(const json_t *v, bool *nfc)
{
    const json_t *list = json_object_get(v, "normalizers");
    if (!strcmp(type_of(v), "Sequence") && json_array_size(list) == 1) v = json_array_get(list, 0);
    if (absent(v) || is_empty_sequence(v, "normalizers")) return QB_OK;
    *nfc = !strcmp(type_of(v), "NFC");
    return *nfc ? QB_OK : refuse("normalizer", type_of(v), "none or NFC");
}

static qb_status read_byte_level_parts(const json_t *root, qb_tokenizer_spec *spec)
{
    QB_TRY(read_plain_normalizer(json_object_get(root, "normalizer"), &spec->nfc));
    const json_t *v = json_object_get(root, "decoder");
    if (!absent(v) && strcmp(type_of(v), "ByteLevel"))
        return refuse("decoder", type_of(v), "ByteLevel");
    spec->kind = QB_TOKENIZER_BPE;
    return read_pre_tokenizer(root, spec);
}

static qb_status read_id(const json_t *v, size_t limit, const char *text, size_t *id)
{
    json_int_t n = json_is_integer(v) ? json_integer_value(v) : -1;
    if (n < 0 || (uint64_t)n >= limit)
        return QB_FAIL(QB_ERR_FORMAT, "id of token \"%.40s\": found %lld, expected 0 to %zu", text,
                       (long long)n, limit - 1);
    *id = (size_t)n;
    return QB_OK;
}

static qb_status put_text(hf_parts *h, size_t id, const char *text, uint8_t type)
{
    if (h->texts[id] && strcmp(h->texts[id], text))
        return QB_FAIL(QB_ERR_FORMAT,
                       "id %zu: found both \"%.40s\" and \"%.40s\", expected one text", id,
                       h->texts[id], text);
    h->texts[id] = text;
    h->text_bytes[id] = strlen(text);
    h->types[id] = type;
    return QB_OK;
}

static qb_status put_added_token(hf_parts *h, const json_t *token, size_t limit)
{
    const char *text = NULL;
    QB_TRY(qb_json_get_string(token, "content", &text));
    if (!text || !*text)
        return QB_FAIL(QB_ERR_FORMAT, "an added token: found no content, expected some");
    bool special = false;
    QB_TRY(qb_json_get_bool(token, "special", &special));
    static const char *const unset[] = {"lstrip", "rstrip", "single_word"};
    for (size_t i = 0; i < QB_COUNT(unset); i++) {
        bool set = false;
        QB_TRY(qb_json_get_bool(token, unset[i], &set));
        if (set)
            return QB_FAIL(QB_ERR_UNSUPPORTED,
                           "added token \"%.40s\": found %s set, expected false", text, unset[i]);
    }
    /* The normalizer would be applied to its text too, and change where it is found. */
    bool normalized = false;
    QB_TRY(qb_json_get_bool(token, "normalized", &normalized));
    if (normalized && h->normalizes)
        return QB_FAIL(
            QB_ERR_UNSUPPORTED,
            "added token \"%.40s\": found normalized set, expected false with a normalizer", text);
    size_t id;
    QB_TRY(read_id(json_object_get(token, "id"), limit, text, &id));
    if (id >= h->spec.vocab) h->spec.vocab = id + 1;
    return put_text(h, id, text, special ? QB_TOKEN_CONTROL : QB_TOKEN_USER);
}

static qb_status read_vocab(hf_parts *h, const json_t *root, const json_t *model)
{
    json_t *vocab = json_object_get(model, "vocab");
    const json_t *added = json_object_get(root, "added_tokens");
    if (!json_is_object(vocab))
        return QB_FAIL(QB_ERR_FORMAT, "model: found no key \"vocab\", expected one");
    if (!absent(added) && !json_is_array(added))
        return QB_FAIL(QB_ERR_FORMAT, "added_tokens: found no array, expected one");
    /* Ids may have holes, but not so many that a small file asks for a large table. */
    size_t limit = 2 * (json_object_size(vocab) + json_array_size(added)) + 1024;
    if (limit > QB__MAX_VOCAB) limit = QB__MAX_VOCAB;
    QB_TRY(QB_NEW_ZERO(&h->texts, limit, "token texts"));
    QB_TRY(QB_NEW_ZERO(&h->text_bytes, limit, "token texts"));
    QB_TRY(QB_NEW(&h->types, limit, "token types"));
    memset(h->types, QB_TOKEN_UNUSED, limit);
    const char *text;
    json_t *value;
    json_object_foreach(vocab, text, value)
    {
        size_t id;
        QB_TRY(read_id(value, limit, text, &id));
        if (id >= h->spec.vocab) h->spec.vocab = id + 1;
        QB_TRY(put_text(h, id, text, QB_TOKEN_NORMAL));
    }
    for (size_t i = 0; i < json_array_size(added); i++)
        QB_TRY(put_added_token(h, json_array_get(added, i), limit));
    for (size_t id = 0; id < h->spec.vocab; id++)
        if (!h->texts[id]) h->texts[id] = "";
    h->spec.texts = h->texts;
    h->spec.text_bytes = h->text_bytes;
    h->spec.types = h->types;
    return QB_OK;
}

/* "left right" of one merge, written to *joined where the file has a pair. */
static qb_status read_merge(hf_parts *h, size_t i, const json_t *merge, char **joined)
{
    if (json_is_string(merge)) {
        h->merges[i] = json_string_value(merge);
        h->merge_bytes[i] = json_string_length(merge);
        return QB_OK;
    }
    const json_t *left = json_array_get(merge, 0), *right = json_array_get(merge, 1);
    if (json_array_size(merge) != 2 || !json_is_string(left) || !json_is_string(right))
        return QB_FAIL(
            QB_ERR_FORMAT,
            "merge %zu: found another kind of value, expected a string or a pair of strings", i);
    size_t left_bytes = json_string_length(left), right_bytes = json_string_length(right);
    char *p = *joined;
    memcpy(p, json_string_value(left), left_bytes);
    p[left_bytes] = ' ';
    memcpy(p + left_bytes + 1, json_string_value(right), right_bytes);
    h->merges[i] = p;
    h->merge_bytes[i] = left_bytes + 1 + right_bytes;
    *joined += h->merge_bytes[i];
    return QB_OK;
}

static qb_status read_merges(hf_parts *h, const json_t *model)
{
    const json_t *list = json_object_get(model, "merges");
    if (!json_is_array(list))
        return QB_FAIL(QB_ERR_FORMAT, "model: found no key \"merges\", expected one");
    size_t n = json_array_size(list), total = 0;
    for (size_t i = 0; i < n; i++) {
        const json_t *merge = json_array_get(list, i);
        total += json_string_length(json_array_get(merge, 0)) + 1 +
                 json_string_length(json_array_get(merge, 1));
    }
    QB_TRY(QB_NEW(&h->merges, n, "merges"));
    QB_TRY(QB_NEW(&h->merge_bytes, n, "merges"));
    QB_TRY(QB_NEW(&h->joined, total, "merges"));
    char *joined = h->joined;
    for (size_t i = 0; i < n; i++) QB_TRY(read_merge(h, i, json_array_get(list, i), &joined));
    h->spec.n_merges = n;
    h->spec.merges = h->merges;
    h->spec.merge_bytes = h->merge_bytes;
    return QB_OK;
}

static int32_t find_special(const hf_parts *h, const char *text)
{
    for (size_t id = 0; text && id < h->spec.vocab; id++)
        if ((h->types[id] == QB_TOKEN_CONTROL || h->types[id] == QB_TOKEN_USER) &&
            !strcmp(h->texts[id], text))
            return (int32_t)id;
    return -1;
}

/* What SentencePiece has and byte-level BPE has not: tokens of bytes, and one for the unknown. */
static void mark_spm_types(hf_parts *h, const json_t *model)
{
    const char *unk = json_string_value(json_object_get(model, "unk_token"));
    for (size_t id = 0; id < h->spec.vocab; id++)
        if (h->types[id] == QB_TOKEN_NORMAL &&
            qb__byte_of_text(h->texts[id], h->text_bytes[id]) >= 0)
            h->types[id] = QB_TOKEN_BYTE;
    h->spec.unk = find_special(h, unk);
    if (h->spec.unk >= 0) h->types[h->spec.unk] = QB_TOKEN_UNKNOWN;
}

/* tokenizer.json does not say which token ends a text: the names of the families read here. */
static int32_t find_eos(const hf_parts *h)
{
    static const char *const names[] = {"<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>"};
    int32_t id = -1;
    for (size_t i = 0; i < QB_COUNT(names) && id < 0; i++) id = find_special(h, names[i]);
    return id;
}

static qb_status read_parts(hf_parts *h, const json_t *root)
{
    const json_t *model = json_object_get(root, "model");
    const char *bos = NULL;
    bool spm = json_is_true(json_object_get(model, "byte_fallback"));
    h->normalizes = !absent(json_object_get(root, "normalizer"));
    QB_TRY(check_model(model));
    QB_TRY(spm ? qb__hf_read_spm(root, &h->spec) : read_byte_level_parts(root, &h->spec));
    if (spm) QB_TRY(want_unset(model, "ignore_merges"));
    QB_TRY(read_post_processor(json_object_get(root, "post_processor"), 0, &bos));
    QB_TRY(qb_json_get_bool(model, "ignore_merges", &h->spec.ignore_merges));
    QB_TRY(read_vocab(h, root, model));
    QB_TRY(read_merges(h, model));
    h->spec.eos = find_eos(h);
    h->spec.unk = -1;
    if (spm) mark_spm_types(h, model);
    h->spec.add_bos = bos != NULL;
    h->spec.bos = find_special(h, bos ? bos : spm ? "<s>" : "<|endoftext|>");
    if (bos && h->spec.bos < 0)
        return QB_FAIL(QB_ERR_FORMAT, "post_processor: found \"%.40s\", expected an added token",
                       bos);
    return QB_OK;
}

/* With unk_token set, a byte without a token would have to become that token. */
static qb_status check_unk(const json_t *root, const qb_tokenizer *t)
{
    const json_t *unk = json_object_get(json_object_get(root, "model"), "unk_token");
    for (unsigned byte = 0; byte < 256 && !absent(unk); byte++)
        if (t->byte_id[byte] < 0)
            return QB_FAIL(QB_ERR_UNSUPPORTED,
                           "found unk_token set and no token for byte 0x%02x, expected one a byte",
                           byte);
    return QB_OK;
}

qb_status qb_tokenizer_from_hf_json(const json_t *root, const char *what, qb_tokenizer **out)
{
    hf_parts h = {0};
    qb_tokenizer *t = NULL;
    qb_status status =
        json_is_object(root)
            ? read_parts(&h, root)
            : QB_FAIL(QB_ERR_FORMAT, "found no object, expected one as in tokenizer.json");
    if (status == QB_OK) status = qb_tokenizer_create(&h.spec, &t);
    if (status == QB_OK) status = check_unk(root, t);
    void *const blocks[] = {h.texts, h.text_bytes, h.types, h.merges, h.merge_bytes, h.joined};
    for (size_t i = 0; i < QB_COUNT(blocks); i++) qb_free(blocks[i]);
    if (status != QB_OK) {
        qb_tokenizer_destroy(t);
        return qb_error_prefix(status, what);
    }
    *out = t;
    return QB_OK;
}

qb_status qb_tokenizer_open_json(const char *path, qb_tokenizer **out)
{
    json_t *root;
    QB_TRY(qb_json_read_file(path, MAX_JSON_BYTES, &root));
    qb_status status = qb_tokenizer_from_hf_json(root, path, out);
    json_decref(root);
    return status;
}
