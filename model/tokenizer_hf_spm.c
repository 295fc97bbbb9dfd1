/* model/tokenizer_hf_spm.c - the parts of a tokenizer.json whose model is SentencePiece BPE (Llama
 * 2, Mistral 7B): byte_fallback, and spaces that a normalizer or Metaspace turns into U+2581. */
#include "model/tokenizer_internal.h"

#include "core/json.h"

static const char SPACE[] = "\xe2\x96\x81"; /* U+2581 */

static const char *text_at(const json_t *v, const char *key)
{
    const char *text = json_string_value(json_object_get(v, key));
    return text ? text : "";
}

static qb_status refuse(const char *part, const char *found, const char *expected)
{
    return QB_FAIL(QB_ERR_UNSUPPORTED, "%s: found \"%s\", expected %s", part, found, expected);
}

static bool is_replacement(const json_t *v)
{
    return !strcmp(text_at(v, "type"), "Replace") && !strcmp(text_at(v, "content"), SPACE) &&
           !strcmp(text_at(json_object_get(v, "pattern"), "String"), " ");
}

/* Replace, or Prepend and Replace. */
static qb_status read_normalizer(const json_t *v, qb_tokenizer_spec *spec)
{
    static const char expected[] = "Prepend and Replace of a space with U+2581";
    const json_t *list = json_object_get(v, "normalizers"), *last = v;
    if (!strcmp(text_at(v, "type"), "Sequence")) {
        size_t n = json_array_size(list);
        const json_t *first = json_array_get(list, 0);
        bool prepends = n == 2 && !strcmp(text_at(first, "type"), "Prepend") &&
                        !strcmp(text_at(first, "prepend"), SPACE);
        if (n != 1 && !prepends) return refuse("normalizer", text_at(first, "type"), expected);
        spec->add_space_prefix = prepends;
        last = json_array_get(list, n - 1);
    }
    return is_replacement(last) ? QB_OK : refuse("normalizer", text_at(last, "type"), expected);
}

static qb_status read_metaspace(const json_t *v, qb_tokenizer_spec *spec)
{
    const char *scheme = "always", *replacement = SPACE;
    bool split = true, prefix = true; /* the library's defaults */
    if (strcmp(text_at(v, "type"), "Metaspace"))
        return refuse("pre_tokenizer", text_at(v, "type"), "Metaspace, or a normalizer");
    QB_TRY(qb_json_get_string(v, "replacement", &replacement));
    QB_TRY(qb_json_get_string(v, "prepend_scheme", &scheme));
    QB_TRY(qb_json_get_bool(v, "add_prefix_space", &prefix)); /* before there were schemes */
    QB_TRY(qb_json_get_bool(v, "split", &split));
    if (split || strcmp(replacement, SPACE))
        return refuse("pre_tokenizer Metaspace", split ? "split" : replacement,
                      "no split, and U+2581");
    spec->prefix_first_only = !strcmp(scheme, "first");
    spec->add_space_prefix = strcmp(scheme, "never") != 0;
    spec->prefix_unless_space = spec->add_space_prefix;
    if (!spec->prefix_first_only && spec->add_space_prefix && strcmp(scheme, "always"))
        return refuse("pre_tokenizer Metaspace", scheme, "always, first or never");
    if (!prefix && spec->add_space_prefix)
        return refuse("pre_tokenizer Metaspace", "add_prefix_space false", "prepend_scheme never");
    return QB_OK;
}

/* Ids do not depend on it; another one would mean another kind of text. */
static qb_status check_decoder(const json_t *v)
{
    static const char *const known[] = {"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"};
    const json_t *list = json_object_get(v, "decoders");
    if (!v || json_is_null(v) || !strcmp(text_at(v, "type"), "Metaspace")) return QB_OK;
    if (strcmp(text_at(v, "type"), "Sequence"))
        return refuse("decoder", text_at(v, "type"), "Sequence or Metaspace");
    for (size_t i = 0; i < json_array_size(list); i++) {
        const char *type = text_at(json_array_get(list, i), "type");
        bool found = false;
        for (size_t k = 0; k < QB_COUNT(known); k++) found = found || !strcmp(type, known[k]);
        if (!found) return refuse("decoder", type, "Replace, ByteFallback, Fuse or Strip");
    }
    return QB_OK;
}

qb_status qb__hf_read_spm(const json_t *root, qb_tokenizer_spec *spec)
{
    const json_t *normalizer = json_object_get(root, "normalizer");
    const json_t *pre = json_object_get(root, "pre_tokenizer");
    bool normalizes = normalizer && !json_is_null(normalizer), splits = pre && !json_is_null(pre);
    spec->kind = QB_TOKENIZER_SPM;
    QB_TRY(check_decoder(json_object_get(root, "decoder")));
    if (normalizes && splits)
        return refuse("pre_tokenizer", text_at(pre, "type"), "none beside a normalizer");
    return normalizes ? read_normalizer(normalizer, spec) : read_metaspace(pre, spec);
}

/* ---- out ---- */

static json_t *decoder(const qb_tokenizer *t)
{
    json_t *v = json_pack("{s:s, s:[{s:s, s:{s:s}, s:s}, {s:s}, {s:s}]}", "type", "Sequence",
                          "decoders", "type", "Replace", "pattern", "String", SPACE, "content", " ",
                          "type", "ByteFallback", "type", "Fuse");
    json_t *strip =
        json_pack("{s:s, s:s, s:i, s:i}", "type", "Strip", "content", " ", "start", 1, "stop", 0);
    if (t->add_space_prefix)
        json_array_append_new(json_object_get(v, "decoders"), strip);
    else
        json_decref(strip);
    return v;
}

void qb__hf_spm_components(const qb_tokenizer *t, json_t **normalizer, json_t **pre_tokenizer,
                           json_t **out_decoder)
{
    bool plain = t->add_space_prefix && !t->prefix_unless_space && !t->prefix_first_only;
    const char *scheme = !t->add_space_prefix ? "never" : t->prefix_first_only ? "first" : "always";
    *normalizer = !plain ? json_null()
                         : json_pack("{s:s, s:[{s:s, s:s}, {s:s, s:{s:s}, s:s}]}", "type",
                                     "Sequence", "normalizers", "type", "Prepend", "prepend", SPACE,
                                     "type", "Replace", "pattern", "String", " ", "content", SPACE);
    *pre_tokenizer = plain ? json_null()
                           : json_pack("{s:s, s:s, s:s, s:b}", "type", "Metaspace", "replacement",
                                       SPACE, "prepend_scheme", scheme, "split", 0);
    *out_decoder = decoder(t);
}
