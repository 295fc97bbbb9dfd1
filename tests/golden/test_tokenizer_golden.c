/* tests/golden/test_tokenizer_golden.c - ids against Hugging Face tokenizers and llama.cpp. */
#include "support.h"

#include "core/memory.h"
#include "model/model.h"
#include "model/text.h"
#include "model/tokenizer.h"

#include <jansson.h>

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Every case of a list of {"text", "ids"}: encode gives the ids and decode the text. */
static void check_cases(const qb_tokenizer *t, const json_t *cases)
{
    assert_true(json_array_size(cases) > 0);
    for (size_t i = 0; i < json_array_size(cases); i++) {
        const json_t *one = json_array_get(cases, i), *ids = json_object_get(one, "ids");
        const char *text = json_string_value(json_object_get(one, "text"));
        size_t n_bytes = json_string_length(json_object_get(one, "text"));
        qb_tokens got = {0};
        QB_CHECK_OK(qb_tokenizer_encode(t, text, n_bytes, true, &got));
        bool same = got.n == json_array_size(ids);
        for (size_t k = 0; same && k < got.n; k++)
            same = got.ids[k] == json_integer_value(json_array_get(ids, k));
        if (!same) {
            printf("case %zu \"%s\":", i, text);
            for (size_t k = 0; k < got.n; k++) printf(" %d", got.ids[k]);
            printf("\n");
            fail();
        }
        char *back;
        size_t back_bytes;
        QB_CHECK_OK(qb_tokenizer_decode(t, got.ids, got.n, &back, &back_bytes));
        assert_int_equal(back_bytes, n_bytes);
        assert_memory_equal(back, text, n_bytes);
        qb_free(back);
        qb_tokens_deinit(&got);
    }
}

static json_t *golden_json(const char *name)
{
    const char *path = qb_test_golden(name);
    json_t *v = path ? json_load_file(path, JSON_ALLOW_NUL, NULL) : NULL; /* a case has a NUL */
    assert_true(v || !path);
    return v;
}

/* The same tokenizer.json with its merges in the other layout. */
static void swap_merge_layout(json_t *root)
{
    json_t *model = json_object_get(root, "model"), *merges = json_object_get(model, "merges");
    json_t *other = json_array();
    for (size_t i = 0; i < json_array_size(merges); i++) {
        json_t *m = json_array_get(merges, i);
        json_array_append_new(other, json_sprintf("%s %s", json_string_value(json_array_get(m, 0)),
                                                  json_string_value(json_array_get(m, 1))));
    }
    json_object_set_new(model, "merges", other);
}

static void hf_cases_are_exact(void **state)
{
    (void)state;
    json_t *root = golden_json("bpe-hf/tokenizer.json"), *cases = golden_json("bpe-hf/cases.json");
    if (!root || !cases) QB_SKIP("no golden/bpe-hf");
    qb_tokenizer *pairs, *strings;
    QB_CHECK_OK(qb_tokenizer_from_hf_json(root, "pairs", &pairs));
    check_cases(pairs, cases);
    swap_merge_layout(root);
    QB_CHECK_OK(qb_tokenizer_from_hf_json(root, "strings", &strings));
    assert_string_equal(qb_tokenizer_sha256(pairs), qb_tokenizer_sha256(strings));
    json_decref(root);

    QB_CHECK_OK(qb_tokenizer_to_hf_json(strings, &root));
    qb_tokenizer_destroy(strings);
    QB_CHECK_OK(qb_tokenizer_from_hf_json(root, "written", &strings));
    assert_string_equal(qb_tokenizer_sha256(pairs), qb_tokenizer_sha256(strings));
    qb_tokenizer_destroy(pairs);
    qb_tokenizer_destroy(strings);
    json_decref(root);
    json_decref(cases);
}

static void check_ids(const qb_tokens *got, const json_t *ids)
{
    assert_int_equal(got->n, json_array_size(ids));
    for (size_t k = 0; k < got->n; k++)
        assert_int_equal(got->ids[k], json_integer_value(json_array_get(ids, k)));
}

/* The first bytes of the corpus as llama.cpp's perplexity tool reads them: one text, the
 * separator lines plain text, no first token. */
static void check_corpus(const qb_tokenizer *t, const json_t *golden)
{
    const char *path = qb_test_golden("../corpus/valid.txt.xz");
    if (!path) return;
    qb_text corpus, text;
    QB_CHECK_OK(qb_text_open(path, 0, &corpus));
    size_t n = (size_t)json_integer_value(json_object_get(golden, "text_bytes"));
    assert_true(n <= corpus.raw_bytes);
    QB_CHECK_OK(qb_text_from_memory("head", corpus.raw, n, &text));
    assert_string_equal(text.sha256, json_string_value(json_object_get(golden, "text_sha256")));
    qb_tokens ids = {0};
    QB_CHECK_OK(qb_text_tokenize_raw(&text, t, false, &ids));
    check_ids(&ids, json_object_get(golden, "text_ids"));
    qb_tokens_deinit(&ids);
    qb_text_deinit(&text);
    qb_text_deinit(&corpus);
}

static void smollm2_cases_are_exact(void **state)
{
    (void)state;
    const char *path = getenv("QB_SMOLLM2");
    if (!path) path = QB_SOURCE_DIR "/models/smollm2-135m-instruct.gguf";
    json_t *golden = golden_json("smollm2/llamacpp.json");
    if (!golden || access(path, R_OK)) {
        json_decref(golden);
        QB_SKIP("no golden/smollm2, or no %s (QB_SMOLLM2)", path);
    }
    qb_model *model;
    QB_CHECK_OK(qb_model_open(path, &model));
    assert_string_equal(qb_tokenizer_pre(model->tokenizer), "smollm");
    check_cases(model->tokenizer, json_object_get(golden, "cases"));
    check_corpus(model->tokenizer, golden);
    qb_model_close(model);
    json_decref(golden);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(hf_cases_are_exact),
        cmocka_unit_test(smollm2_cases_are_exact),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
