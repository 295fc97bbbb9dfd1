/* tests/unit/test_tokenizer_json.c - tokenizer.json: what is read of byte-level BPE and of
 * SentencePiece BPE, what is refused by name, hostile files. */
#include "support.h"
#include "token_checks.h"

#include "core/json.h"
#include "core/memory.h"
#include "model/tokenizer_internal.h"

#include <stdlib.h>
#include <string.h>

#define MODEL(more) "\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":1,\"ab\":2}" more "}"
#define BYTE_LEVEL "\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false}"
#define MERGES ",\"merges\":[\"a b\"]"
#define SPLIT(regex)                                                                               \
    "\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\","             \
    "\"pattern\":{\"Regex\":\"" regex "\"},\"behavior\":\"Isolated\"},"                            \
    "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":false}]}"
#define LLAMA3                                                                                     \
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\\\r\\\\n\\\\p{L}\\\\p{N}]?\\\\p{L}+|\\\\p{N}{1,3}| "         \
    "?[^\\\\s\\\\p{L}\\\\p{N}]+[\\\\r\\\\n]*|\\\\s*[\\\\r\\\\n]+|\\\\s+(?!\\\\S)|\\\\s+"

#define METASPACE(scheme, split)                                                                   \
    "\"pre_tokenizer\":{\"type\":\"Metaspace\",\"replacement\":\"▁\",\"prepend_scheme\":\"" scheme \
    "\",\"split\":" split "}"
#define REPLACE "{\"type\":\"Replace\",\"pattern\":{\"String\":\" \"},\"content\":\"▁\"}"
#define PREPEND                                                                                    \
    "\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"Prepend\",\"prepend\":"    \
    "\"▁\"}," REPLACE "]}"

static qb_status parse(const char *text, qb_tokenizer **out)
{
    json_t *root;
    QB_CHECK_OK(qb_json_parse(text, strlen(text), 1 << 20, "test", &root));
    qb_status status = qb_tokenizer_from_hf_json(root, "test", out);
    json_decref(root);
    return status;
}

static void hf_files_give_their_splitter(void **state)
{
    (void)state;
    static const struct {
        const char *json, *pre;
        bool add_bos;
    } cases[] = {
        {"{" BYTE_LEVEL "," MODEL(MERGES) "}", "gpt-2", false},
        {"{" BYTE_LEVEL "," MODEL(",\"merges\":[[\"a\",\"b\"]]") "}", "gpt-2", false},
        {"{\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Digits\","
         "\"individual_digits\":true},{\"type\":\"ByteLevel\",\"add_prefix_space\":false,"
         "\"use_regex\":true}]}," MODEL(MERGES) "}",
         "smollm", false},
        {"{" SPLIT(LLAMA3) "," MODEL(
             MERGES) ",\"added_tokens\":[{\"id\":3,\"content\":\"<|b|>\",\"special\":true}],"
                     "\"post_processor\":{\"type\":\"Sequence\",\"processors\":[{\"type\":"
                     "\"ByteLevel\"},"
                     "{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"<|b|"
                     ">\"}},"
                     "{\"Sequence\":{\"id\":\"A\"}}]}]}}",
         "llama-bpe", true},
    };
    for (size_t i = 0; i < QB_COUNT(cases); i++) {
        qb_tokenizer *t, *back;
        QB_CHECK_OK(parse(cases[i].json, &t));
        assert_string_equal(qb_tokenizer_pre(t), cases[i].pre);
        assert_int_equal(qb_tokenizer_add_bos(t), cases[i].add_bos);
        if (cases[i].add_bos) assert_int_equal(qb_tokenizer_bos(t), 3);
        qb_test_ids(t, "abb", false, 2, (int32_t[]){2, 1});
        json_t *root;
        QB_CHECK_OK(qb_tokenizer_to_hf_json(t, &root));
        QB_CHECK_OK(qb_tokenizer_from_hf_json(root, "written", &back));
        assert_string_equal(qb_tokenizer_sha256(t), qb_tokenizer_sha256(back));
        json_decref(root);
        qb_tokenizer_destroy(t);
        qb_tokenizer_destroy(back);
    }
}

/* SentencePiece as tokenizer.json has it: three special tokens, the bytes, five characters and what
 * eight merges make of them. */
static json_t *spm_json(const char *components)
{
    static const char *const merges[][2] = {{"b", "c"},  {"a", "b"},  {"▁", "a"}, {"▁", "▁"},
                                            {"a", "bc"}, {"ab", "c"}, {"a", "a"}, {"▁▁", "a"}};
    static const char *const chars[] = {"▁", "a", "b", "c", "é"};
    static const char *const special[] = {"<unk>", "<s>", "</s>"};
    json_t *root, *vocab = json_object(), *list = json_array(), *added = json_array();
    int id = 0;
    char text[64];
    for (size_t i = 0; i < 3; i++) {
        json_array_append_new(added, json_pack("{s:i, s:s, s:b, s:b}", "id", id, "content",
                                               special[i], "special", 1, "normalized", 0));
        json_object_set_new(vocab, special[i], json_integer(id++));
    }
    for (unsigned byte = 0; byte < 256; byte++) {
        snprintf(text, sizeof text, "<0x%02X>", byte);
        json_object_set_new(vocab, text, json_integer(id++));
    }
    for (size_t i = 0; i < QB_COUNT(chars); i++)
        json_object_set_new(vocab, chars[i], json_integer(id++));
    for (size_t i = 0; i < QB_COUNT(merges); i++) {
        snprintf(text, sizeof text, "%s%s", merges[i][0], merges[i][1]);
        if (!json_object_get(vocab, text)) json_object_set_new(vocab, text, json_integer(id++));
        json_array_append_new(list, json_pack("[s, s]", merges[i][0], merges[i][1]));
    }
    QB_CHECK_OK(qb_json_parse(components, strlen(components), 1 << 20, "test", &root));
    json_object_set_new(root, "added_tokens", added);
    json_object_set_new(root, "model",
                        json_pack("{s:s, s:s, s:b, s:b, s:o, s:o}", "type", "BPE", "unk_token",
                                  "<unk>", "fuse_unk", 1, "byte_fallback", 1, "vocab", vocab,
                                  "merges", list));
    return root;
}

/* The vocabulary's texts of the ids of `text`, with a bar between them. */
static const char *token_texts(const qb_tokenizer *t, const char *text)
{
    static char out[512];
    qb_tokens ids = {0};
    size_t at = 0, n;
    QB_CHECK_OK(qb_tokenizer_encode(t, text, strlen(text), true, &ids));
    for (size_t i = 0; i < ids.n; i++) {
        const char *token = qb__token_text(t, (size_t)ids.ids[i], &n);
        at += (size_t)snprintf(out + at, sizeof out - at, "%s%.*s", i ? "|" : "", (int)n, token);
    }
    qb_tokens_deinit(&ids);
    return out;
}

/* Every expected text is from the Python package tokenizers 0.23.3. */
static void spm_json_is_read_as_tokenizers_does(void **state)
{
    (void)state;
    static const char *const texts[] = {"abc aab", "  a b", "a<s>b</s> c", "éñ\n"};
    static const struct {
        const char *components, *want[QB_COUNT(texts)];
    } cases[] = {
        {"{" PREPEND "}",
         {"▁a|bc|▁a|ab", "▁▁|▁a|▁|b", "▁a|<s>|▁|b|</s>|▁▁|c", "▁|é|<0xC3>|<0xB1>|<0x0A>"}},
        {"{\"normalizer\":" REPLACE "}",
         {"abc|▁a|ab", "▁|▁a|▁|b", "a|<s>|b|</s>|▁|c", "é|<0xC3>|<0xB1>|<0x0A>"}},
        {"{" METASPACE("first", "false") "}",
         {"▁a|bc|▁a|ab", "▁|▁a|▁|b", "▁a|<s>|b|</s>|▁|c", "▁|é|<0xC3>|<0xB1>|<0x0A>"}},
        {"{" METASPACE("always", "false") "}",
         {"▁a|bc|▁a|ab", "▁|▁a|▁|b", "▁a|<s>|▁|b|</s>|▁|c", "▁|é|<0xC3>|<0xB1>|<0x0A>"}},
        {"{" METASPACE("never", "false") "}",
         {"abc|▁a|ab", "▁|▁a|▁|b", "a|<s>|b|</s>|▁|c", "é|<0xC3>|<0xB1>|<0x0A>"}},
    };
    for (size_t i = 0; i < QB_COUNT(cases); i++) {
        json_t *root = spm_json(cases[i].components), *written;
        qb_tokenizer *t, *back, *from_json;
        uint8_t *data;
        size_t bytes;
        QB_CHECK_OK(qb_tokenizer_from_hf_json(root, "test", &t));
        QB_CHECK_OK(qb_tokenizer_serialize(t, &data, &bytes));
        QB_CHECK_OK(qb_tokenizer_deserialize(data, bytes, &back));
        for (size_t k = 0; k < QB_COUNT(texts); k++)
            assert_string_equal(token_texts(back, texts[k]), cases[i].want[k]);
        QB_CHECK_OK(qb_tokenizer_to_hf_json(t, &written));
        QB_CHECK_OK(qb_tokenizer_from_hf_json(written, "written", &from_json));
        assert_string_equal(qb_tokenizer_sha256(from_json), qb_tokenizer_sha256(back));
        assert_int_equal(qb_tokenizer_eos(back), 2);
        qb_test_decoded(back, "abc é", "abc é");
        json_decref(written);
        json_decref(root);
        qb_free(data);
        qb_tokenizer_destroy(t);
        qb_tokenizer_destroy(back);
        qb_tokenizer_destroy(from_json);
    }
}

/* Angstrom's sign is the letter, but with the bytes of the letter alone the sign gives nothing. */
static void nfc_is_applied_before_the_split(void **state)
{
    (void)state;
    static const char json[] =
        "{\"normalizer\":{\"type\":\"NFC\"}," BYTE_LEVEL ",\"model\":{\"type\":\"BPE\",\"vocab\":"
        "{\"a\":0,\"Ã\":1,\"ħ\":2,\"Ãħ\":3},\"merges\":[\"Ã ħ\"]}}";
    qb_tokenizer *t, *back, *read;
    json_t *root;
    uint8_t *data;
    size_t bytes;
    QB_CHECK_OK(parse(json, &t));
    QB_CHECK_OK(qb_tokenizer_to_hf_json(t, &root));
    QB_CHECK_OK(qb_tokenizer_from_hf_json(root, "written", &back));
    QB_CHECK_OK(qb_tokenizer_serialize(back, &data, &bytes));
    QB_CHECK_OK(qb_tokenizer_deserialize(data, bytes, &read));
    qb_test_ids(read, "a\u212ba A\u030a", false, 4, (int32_t[]){0, 3, 0, 3});
    qb_free(data);
    json_decref(root);
    qb_tokenizer_destroy(t);
    qb_tokenizer_destroy(back);
    qb_tokenizer_destroy(read);
}

static void unknown_hf_parts_are_refused_by_name(void **state)
{
    (void)state;
    static const struct {
        const char *json, *named;
    } cases[] = {
        {"{" MODEL(MERGES) "}", "pre_tokenizer"},
        {"{\"pre_tokenizer\":{\"type\":\"Whitespace\"}," MODEL(MERGES) "}", "Whitespace"},
        {"{" SPLIT("\\\\d+") "," MODEL(MERGES) "}", "\\d+"},
        {"{\"normalizer\":{\"type\":\"NFKC\"}," BYTE_LEVEL "," MODEL(MERGES) "}", "NFKC"},
        {"{\"decoder\":{\"type\":\"WordPiece\"}," BYTE_LEVEL "," MODEL(MERGES) "}", "WordPiece"},
        {"{\"post_processor\":{\"type\":\"BertProcessing\"}," BYTE_LEVEL "," MODEL(MERGES) "}",
         "BertProcessing"},
        {"{" BYTE_LEVEL "," MODEL(MERGES ",\"dropout\":0.1") "}", "dropout"},
        {"{" BYTE_LEVEL "," MODEL(MERGES ",\"byte_fallback\":true") "}", "Metaspace"},
        {"{" METASPACE("first", "true") "," MODEL(MERGES ",\"byte_fallback\":true") "}", "split"},
        {"{" METASPACE("last", "false") "," MODEL(MERGES ",\"byte_fallback\":true") "}", "last"},
        {"{" METASPACE("first", "false") "," MODEL(
             MERGES ",\"byte_fallback\":true,\"ignore_merges\":true") "}",
         "ignore_merges"},
        {"{\"normalizer\":{\"type\":\"NFC\"}," MODEL(MERGES ",\"byte_fallback\":true") "}", "NFC"},
        {"{" PREPEND
         "," MODEL(MERGES ",\"byte_fallback\":true") ",\"added_tokens\":[{\"id\":3,"
                                                     "\"content\":\"<m>\",\"normalized\":true}]}",
         "normalized"},
        {"{" BYTE_LEVEL "," MODEL(MERGES ",\"end_of_word_suffix\":\"</w>\"") "}",
         "end_of_word_suffix"},
        {"{" BYTE_LEVEL "," MODEL(MERGES ",\"continuing_subword_prefix\":\"##\"") "}",
         "continuing_subword_prefix"},
        {"{" BYTE_LEVEL "," MODEL(MERGES ",\"unk_token\":\"a\"") "}", "unk_token"},
        {"{" BYTE_LEVEL ",\"model\":{\"type\":\"Unigram\"}}", "Unigram"},
        {"{" BYTE_LEVEL
         "," MODEL(MERGES) ",\"added_tokens\":[{\"id\":3,\"content\":\"<m>\",\"lstrip\":true}]}",
         "lstrip"},
    };
    for (size_t i = 0; i < QB_COUNT(cases); i++) {
        qb_tokenizer *t = NULL;
        assert_int_equal(parse(cases[i].json, &t), QB_ERR_UNSUPPORTED);
        assert_non_null(strstr(qb_error_message(), cases[i].named));
        assert_null(t);
    }
}

static void failed_allocations_in_spm_json_are_reported(void **state)
{
    (void)state;
    json_t *root = spm_json("{" PREPEND "}");
    size_t live = qb_memory_live_blocks();
    for (size_t n = 1;; n += 1 + n / 8) {
        qb_tokenizer *t = NULL;
        json_t *written = NULL;
        qb_memory_fail_at(n);
        qb_status status = qb_tokenizer_from_hf_json(root, "test", &t);
        if (status == QB_OK) status = qb_tokenizer_to_hf_json(t, &written);
        qb_memory_fail_at(0);
        json_decref(written);
        qb_tokenizer_destroy(t);
        assert_int_equal(qb_memory_live_blocks(), live);
        if (status == QB_OK) break;
        assert_int_equal(status, QB_ERR_MEMORY);
    }
    json_decref(root);
}

static void broken_hf_files_are_refused(void **state)
{
    (void)state;
    static const char *const cases[] = {
        "[]",
        "{}",
        "{" BYTE_LEVEL "}",
        "{" BYTE_LEVEL "," MODEL("") "}",
        "{" BYTE_LEVEL "," MODEL(",\"merges\":[\"ab\"]") "}",
        "{" BYTE_LEVEL "," MODEL(",\"merges\":[\"a b c\"]") "}",
        "{" BYTE_LEVEL "," MODEL(",\"merges\":[[\"a\"]]") "}",
        "{" BYTE_LEVEL "," MODEL(",\"merges\":[[\"a\",\"b\",\"b\"]]") "}",
        "{" BYTE_LEVEL "," MODEL(",\"merges\":[[\"a\",7]]") "}",
        "{" BYTE_LEVEL "," MODEL(",\"merges\":[\"b a\"]") "}",
        "{" BYTE_LEVEL "," MODEL(",\"merges\":[\"a x\"]") "}",
        "{" BYTE_LEVEL ",\"model\":{\"vocab\":{},\"merges\":[]}}",
        "{" BYTE_LEVEL ",\"model\":{\"vocab\":{\"a\":-1},\"merges\":[]}}",
        "{" BYTE_LEVEL ",\"model\":{\"vocab\":{\"a\":0.5},\"merges\":[]}}",
        "{" BYTE_LEVEL ",\"model\":{\"vocab\":{\"a\":\"0\"},\"merges\":[]}}",
        "{" BYTE_LEVEL ",\"model\":{\"vocab\":{\"a\":4000000000},\"merges\":[]}}",
        "{" BYTE_LEVEL ",\"model\":{\"vocab\":{\"a\":0,\"b\":0},\"merges\":[]}}",
        "{" BYTE_LEVEL "," MODEL(MERGES) ",\"added_tokens\":[{\"id\":0,\"content\":\"x\"}]}",
        "{" BYTE_LEVEL "," MODEL(MERGES) ",\"added_tokens\":[{\"id\":9,\"content\":\"a\"}]}",
        "{" BYTE_LEVEL "," MODEL(MERGES) ",\"added_tokens\":[{\"id\":9}]}",
        "{" BYTE_LEVEL "," MODEL(MERGES) ",\"added_tokens\":7}",
    };
    for (size_t i = 0; i < QB_COUNT(cases); i++) {
        qb_tokenizer *t = NULL;
        if (parse(cases[i], &t) != QB_ERR_FORMAT) fail_msg("case %zu: %s", i, cases[i]);
        assert_int_equal(strncmp(qb_error_message(), "test: ", 6), 0);
        assert_null(t);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(hf_files_give_their_splitter),
        cmocka_unit_test(spm_json_is_read_as_tokenizers_does),
        cmocka_unit_test(nfc_is_applied_before_the_split),
        cmocka_unit_test(unknown_hf_parts_are_refused_by_name),
        cmocka_unit_test(failed_allocations_in_spm_json_are_reported),
        cmocka_unit_test(broken_hf_files_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
