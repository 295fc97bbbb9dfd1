/* tests/unit/test_protocols.c - windows of each protocol over toy texts, written out by hand. */
#include "support.h"

#include "infer/protocols.h"

#include <stdlib.h>
#include <string.h>

enum { MAX_TOKENS = 64 };

static int32_t ids[MAX_TOKENS];
static size_t ends[4];

/* Tokens 0, 1, 2, ... in one document, or in documents ending at `ends`. */
static qb_stream toy(size_t n, size_t n_docs)
{
    for (size_t i = 0; i < MAX_TOKENS; i++) ids[i] = (int32_t)i;
    if (n_docs == 1) ends[0] = n;
    return (qb_stream){.tokens = {.ids = ids, .n = n}, .doc_end = ends, .n_docs = n_docs};
}

/* "0 1 2>.,.,3 | ..." : what each window feeds, and the target of each fed token, '.' = not scored.
 */
static void describe(const qb_stream *stream, const qb_windows *windows, char *text)
{
    char *p = text;
    *p = 0;
    for (size_t w = 0; w < windows->n; w++) {
        const qb_window *window = &windows->items[w];
        int32_t fed[MAX_TOKENS], target[MAX_TOKENS];
        qb_window_tokens(stream, window, fed, target);
        if (w) p += sprintf(p, " | ");
        for (size_t j = 0; j < window->n_feed; j++) p += sprintf(p, j ? " %d" : "%d", fed[j]);
        p += sprintf(p, ">");
        for (size_t j = 0; j < window->n_feed; j++)
            p += target[j] < 0 ? sprintf(p, j ? " ." : ".")
                               : sprintf(p, j ? " %d" : "%d", target[j]);
    }
}

static void expect(const char *protocol, const qb_stream *stream, qb_protocol_options options,
                   const char *want)
{
    qb_windows windows;
    char got[4096];
    QB_CHECK_OK(qb_windows_create(qb_protocol_find(protocol), stream, &options, &windows));
    describe(stream, &windows, got);
    assert_string_equal(got, want);
    qb_windows_deinit(&windows);
}

static const qb_protocol_options four = {.context = 4, .bos = -1, .eos = -1};

static void paper_scores_every_target_of_disjoint_windows(void **state)
{
    (void)state;
    qb_stream s = toy(13, 1); /* two windows of 5, a tail of 3 is dropped */
    expect("paper", &s, four, "0 1 2 3>1 2 3 4 | 5 6 7 8>6 7 8 9");
    s = toy(5, 1);
    expect("paper", &s, four, "0 1 2 3>1 2 3 4");
}

static void hf_disjoint_loses_each_first_token(void **state)
{
    (void)state;
    qb_stream s = toy(11, 1);
    expect("hf-disjoint", &s, four, "0 1 2 3>1 2 3 . | 4 5 6 7>5 6 7 .");
}

static void hf_stride_scores_each_token_once(void **state)
{
    (void)state;
    qb_stream s = toy(9, 1);
    expect("hf-stride", &s, four,
           "0 1 2 3>1 2 3 . | 2 3 4 5>. 4 5 . | 4 5 6 7>. 6 7 . | 6 7 8>. 8 .");
    qb_protocol_options one = four, whole = four;
    one.stride = 1;
    s = toy(6, 1);
    expect("hf-stride", &s, one, "0 1 2 3>1 2 3 . | 1 2 3 4>. . 4 . | 2 3 4 5>. . 5 .");
    whole.stride = 4; /* then each window's first token has nothing before it */
    s = toy(9, 1);
    expect("hf-stride", &s, whole, "0 1 2 3>1 2 3 . | 4 5 6 7>5 6 7 .");
    s = toy(3, 1); /* the only window is the last, which may be short */
    expect("hf-stride", &s, four, "0 1 2>1 2 .");
}

static void llama_cpp_scores_the_second_half(void **state)
{
    (void)state;
    qb_protocol_options six = {.context = 6, .bos = 50, .eos = -1};
    qb_stream s = toy(13, 1); /* first = 3: logits 3 and 4, targets 4 and 5 */
    expect("llama.cpp", &s, six, "0 1 2 3 4 5>. . . 4 5 . | 6 7 8 9 10 11>. . . 10 11 .");
    six.add_bos = true; /* BOS takes the place of each window's first token */
    expect("llama.cpp", &s, six, "50 1 2 3 4 5>. . . 4 5 . | 50 7 8 9 10 11>. . . 10 11 .");
}

static void lm_eval_rolls_over_each_document(void **state)
{
    (void)state;
    qb_protocol_options options = {.context = 4, .bos = -1, .eos = 60};
    qb_stream s = toy(10, 1); /* the last window is full: 5 6 7 8 are fed, 8 and 9 are new */
    expect("lm-eval", &s, options, "60 0 1 2>0 1 2 3 | 3 4 5 6>4 5 6 7 | 5 6 7 8>. . 8 9");
    options.bos = 61; /* bos before eos */
    ends[0] = 3, ends[1] = 3, ends[2] = 8;
    s = toy(8, 3); /* short, empty, and one token longer than a window */
    expect("lm-eval", &s, options, "61 0 1>0 1 2 | 61 3 4 5>3 4 5 6 | 3 4 5 6>. . . 7");
    qb_windows w;
    qb_protocol_options none = four;
    assert_int_equal(qb_windows_create(qb_protocol_find("lm-eval"), &s, &none, &w),
                     QB_ERR_UNSUPPORTED);
}

/* A free prefix of 2: two targets less in each window, and none left in a window that scores no
 * others. lm-eval counts every token or none. */
static void free_prefixes_are_left_out(void **state)
{
    (void)state;
    qb_protocol_options options = four;
    qb_stream s = toy(9, 1);
    options.unscored = 2;
    expect("hf-disjoint", &s, options, "0 1 2 3>. . 3 . | 4 5 6 7>. . 7 .");
    expect("paper", &s, options, "0 1 2 3>. . 3 4");
    expect("hf-stride", &s, options, "0 1 2 3>. . 3 . | 2 3 4 5>. . 5 . | 4 5 6 7>. . 7 .");
    qb_windows w;
    options.unscored = 4;
    QB_CHECK_OK(qb_windows_create(qb_protocol_find("paper"), &s, &options, &w));
    assert_int_equal(w.n + w.n_scored, 0);
    qb_windows_deinit(&w);
    assert_int_equal(qb_windows_create(qb_protocol_find("lm-eval"), &s, &options, &w),
                     QB_ERR_UNSUPPORTED);
}

static void short_texts_are_refused_with_both_numbers(void **state)
{
    (void)state;
    qb_stream s = toy(4, 1);
    qb_windows w;
    assert_int_equal(qb_windows_create(qb_protocol_find("paper"), &s, &four, &w), QB_ERR_SHAPE);
    assert_non_null(strstr(qb_error_message(), "found 4 tokens, expected at least 5"));
    assert_int_equal(qb_protocol_largest_context(qb_protocol_find("paper"), &s), 3);
    assert_int_equal(qb_protocol_largest_context(qb_protocol_find("hf-disjoint"), &s), 4);
    s = toy(3, 1);
    assert_int_equal(qb_windows_create(qb_protocol_find("llama.cpp"), &s, &four, &w), QB_ERR_SHAPE);
    s = toy(1, 1);
    assert_int_equal(qb_protocol_largest_context(qb_protocol_find("paper"), &s), 0);
    assert_int_equal(qb_windows_create(qb_protocol_find("hf-stride"), &s, &four, &w), QB_ERR_SHAPE);
    assert_non_null(strstr(qb_error_message(), "found 1 tokens, expected at least 2"));
    qb_protocol_options strided = four;
    s = toy(20, 1);
    strided.stride = 5;
    assert_int_equal(qb_windows_create(qb_protocol_find("hf-stride"), &s, &strided, &w),
                     QB_ERR_USAGE);
    strided.stride = 2;
    assert_int_equal(qb_windows_create(qb_protocol_find("paper"), &s, &strided, &w), QB_ERR_USAGE);
}

/* Whatever the protocol and the text, no target is scored twice, none before its time. */
static void no_target_counts_twice(void **state)
{
    (void)state;
    for (const qb_protocol *p = qb_protocols; p->name; p++)
        for (size_t n = 2; n < 40; n++)
            for (size_t context = 3; context <= 9; context++) {
                qb_stream s = toy(n, 1);
                qb_protocol_options options = {.context = context, .bos = 60, .eos = -1};
                qb_windows w;
                if (qb_windows_create(p, &s, &options, &w) != QB_OK) continue;
                int seen[MAX_TOKENS] = {0};
                size_t n_scored = 0;
                for (size_t i = 0; i < w.n; i++) {
                    int32_t fed[MAX_TOKENS], target[MAX_TOKENS];
                    assert_true(w.items[i].n_feed <= context);
                    qb_window_tokens(&s, &w.items[i], fed, target);
                    for (size_t j = 0; j < w.items[i].n_feed; j++) {
                        if (target[j] < 0) continue;
                        assert_int_equal(seen[target[j]]++, 0);
                        if (fed[j] != 60) assert_int_equal(fed[j] + 1, target[j]);
                        n_scored++;
                    }
                }
                assert_int_equal(n_scored, w.n_scored);
                if (p->has_stride)
                    assert_int_equal(n_scored, n - 1); /* the default stride < context */
                if (p->per_document) assert_int_equal(n_scored, n);
                qb_windows_deinit(&w);
            }
}

static void batches_hold_equal_windows(void **state)
{
    (void)state;
    qb_window items[] = {{0, 4, 0, 4, -1}, {4, 4, 0, 4, -1}, {8, 4, 0, 4, -1}, {12, 3, 0, 3, -1}};
    qb_windows w = {.items = items, .n = 4};
    assert_int_equal(qb_windows_batch(&w, 0, 2), 2);
    assert_int_equal(qb_windows_batch(&w, 2, 2), 1);
    assert_int_equal(qb_windows_batch(&w, 0, 9), 3);
    assert_int_equal(qb_windows_batch(&w, 3, 9), 1);
    assert_int_equal(qb_protocol_default_batch(1024), 8);
    assert_int_equal(qb_protocol_default_batch(512), 16);
    assert_int_equal(qb_protocol_default_batch(10000), 1);
}

/* As Python's re.split(r"\\s+"): one word more than runs of white space, which other characters
 * than ASCII's are, too. */
static void words_are_counted_as_python_splits(void **state)
{
    (void)state;
    static const char *const texts[] = {"<unk>"};
    static const size_t text_bytes[] = {5};
    static const uint8_t types[] = {QB_TOKEN_UNKNOWN};
    static const float scores[] = {0};
    const qb_tokenizer_spec spec = {.kind = QB_TOKENIZER_SPM,
                                    .pre = "",
                                    .vocab = 1,
                                    .texts = texts,
                                    .text_bytes = text_bytes,
                                    .types = types,
                                    .scores = scores,
                                    .bos = -1,
                                    .eos = -1};
    static char bytes[] = "a\u00a0b\u2003c \u2028d\u3000\u00e9" /* five words */
                          "x "; /* one, and the empty one behind it */
    size_t doc_end[] = {sizeof bytes - 3, sizeof bytes - 1};
    const qb_text text = {
        .bytes = bytes, .n_bytes = sizeof bytes - 1, .doc_end = doc_end, .n_docs = 2};
    const qb_protocol *protocol = qb_protocols;
    while (!protocol->per_document) protocol++;
    qb_tokenizer *tokenizer;
    qb_stream stream;
    QB_CHECK_OK(qb_tokenizer_create(&spec, &tokenizer));
    QB_CHECK_OK(qb_protocol_tokenize(protocol, &text, tokenizer, 0, &stream));
    assert_true(stream.n_words == 5 + 2);
    assert_true(stream.n_text_bytes == (double)text.n_bytes);
    qb_stream_deinit(&stream);
    qb_tokenizer_destroy(tokenizer);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(paper_scores_every_target_of_disjoint_windows),
        cmocka_unit_test(hf_disjoint_loses_each_first_token),
        cmocka_unit_test(hf_stride_scores_each_token_once),
        cmocka_unit_test(llama_cpp_scores_the_second_half),
        cmocka_unit_test(lm_eval_rolls_over_each_document),
        cmocka_unit_test(free_prefixes_are_left_out),
        cmocka_unit_test(short_texts_are_refused_with_both_numbers),
        cmocka_unit_test(no_target_counts_twice),
        cmocka_unit_test(batches_hold_equal_windows),
        cmocka_unit_test(words_are_counted_as_python_splits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
