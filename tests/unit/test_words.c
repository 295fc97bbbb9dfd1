/* tests/unit/test_words.c - cutting into words: what each row does with a text, and that the scan
 * of ASCII and the pattern never differ. */
#include "support.h"

#include "core/memory.h"
#include "core/rng.h"
#include "model/tokenizer_internal.h"

#include <string.h>

/* The pieces with a bar between them. */
static const char *pieces(qb_words *w, const char *text, size_t n_bytes)
{
    static char out[4096];
    char *p = out;
    const char *word, *expected = text;
    size_t n;
    qb_words_start(w, text, n_bytes);
    for (;;) {
        QB_CHECK_OK(qb_words_next(w, &word, &n));
        if (!n) break;
        assert_ptr_equal(word, expected); /* they tile the text */
        expected += n;
        if (p > out) *p++ = '|';
        p = (char *)memcpy(p, word, n) + n;
    }
    assert_ptr_equal(expected, text + n_bytes);
    *p = 0;
    return out;
}

static void rows_cut_as_documented(void **state)
{
    (void)state;
    static const struct {
        const char *pre, *text, *cut;
    } cases[] = {
        {"gpt-2", "Hello  world's 42nd\n\n day", "Hello| | world|'s| 42|nd|\n\n| day"},
        {"gpt-2", "we're 'tis it'll'x --'s  ", "we|'re| '|tis| it|'ll|'|x| --'|s|  "},
        {"gpt-2", "caf\xc3\xa9s \xe2\x80\x94 x\xc2\xa0y",
         "caf\xc3\xa9s| \xe2\x80\x94| x|\xc2\xa0|y"},
        {"gpt-2",
         "ab\xff"
         "cd \xc3 e",
         "ab|\xff|cd| |\xc3| e"},
        {"smollm", "in 2024  7x", "in| |2|0|2|4|  |7|x"},
        {"llama-bpe", "in 20245 WE'RE\n\nx", "in| |202|45| WE|'RE|\n\n|x"},
    };
    for (size_t i = 0; i < QB_COUNT(cases); i++) {
        qb_words *w;
        QB_CHECK_OK(qb_words_create(cases[i].pre, &w));
        assert_string_equal(pieces(w, cases[i].text, strlen(cases[i].text)), cases[i].cut);
        qb_words_destroy(w);
    }
    qb_words *w;
    assert_int_equal(qb_words_create("gpt-3", &w), QB_ERR_UNSUPPORTED);
    assert_int_equal(qb_memory_live_blocks(), 0);
}

/* Random texts of the characters where the rows turn: apostrophes, blanks, letters, digits, some
 * beyond ASCII and some that are no UTF-8. */
static size_t make_text(uint64_t seed, char *text, size_t n)
{
    static const char *const parts[] = {
        " ", " ",  " ",  "\n", "\t", "\r", "'",        "'s",       "'ll", "'re",  "t",
        "d", "ve", "Ab", "z",  "0",  "42", "-",        "!",        "_",   "\x1c", "\x7f",
        "m", "@",  "[",  "`",  "{",  "/",  "\xc3\xa9", "\xc2\xa0", ":",   "\xff", "\xe2\x82\xac",
    };
    size_t at = 0;
    for (uint64_t i = 0; at + 4 < n; i++) {
        const char *part = parts[qb_rng_below(seed, QB_STREAM_TEST, i, QB_COUNT(parts))];
        memcpy(text + at, part, strlen(part));
        at += strlen(part);
    }
    return at;
}

static void scan_and_pattern_agree(void **state)
{
    (void)state;
    static const char *const names[] = {"gpt-2", "smollm"};
    for (size_t k = 0; k < QB_COUNT(names); k++) {
        qb_words *fast, *slow;
        QB_CHECK_OK(qb_words_create(names[k], &fast));
        QB_CHECK_OK(qb_words_create(names[k], &slow));
        qb__pre without = *slow->pre;
        assert_non_null(without.scan);
        without.scan = NULL;
        slow->pre = &without;
        for (uint64_t seed = 0; seed < 3000; seed++) {
            char text[300], first[4096];
            size_t n = make_text(seed, text, 8 + seed % 290);
            strcpy(first, pieces(fast, text, n));
            const char *second = pieces(slow, text, n);
            if (strcmp(first, second))
                fail_msg("%s, seed %d: \"%s\" and \"%s\"", names[k], (int)seed, first, second);
        }
        qb_words_destroy(fast);
        qb_words_destroy(slow);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rows_cut_as_documented),
        cmocka_unit_test(scan_and_pattern_agree),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
